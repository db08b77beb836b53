//! Just enough rtnetlink to build a lab without starting `ip` for every step.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use crate::sys::{self, cvt};

const AF_BRIDGE: u8 = 7;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;
const VETH_INFO_PEER: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;

/// A route netlink socket; it belongs to the namespace in which it was opened, for ever.
pub(crate) struct Netlink {
    fd: OwnedFd,
    seq: u32,
}

struct Msg(Vec<u8>);

impl Msg {
    fn new(ty: u16, flags: i32) -> Msg {
        let mut m = Msg(vec![0; 16]);
        m.0[4..6].copy_from_slice(&ty.to_ne_bytes());
        let f = (flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        m.0[6..8].copy_from_slice(&f.to_ne_bytes());
        m
    }

    fn ifinfo(&mut self, family: u8, index: u32, flags: u32, change: u32) -> &mut Msg {
        self.0.extend_from_slice(&[family, 0, 0, 0]);
        self.0.extend_from_slice(&index.to_ne_bytes());
        self.0.extend_from_slice(&flags.to_ne_bytes());
        self.0.extend_from_slice(&change.to_ne_bytes());
        self
    }

    fn attr(&mut self, ty: u16, data: &[u8]) -> &mut Msg {
        let len = (4 + data.len()) as u16;
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&ty.to_ne_bytes());
        self.0.extend_from_slice(data);
        self.pad()
    }

    fn pad(&mut self) -> &mut Msg {
        while self.0.len() & 3 != 0 {
            self.0.push(0);
        }
        self
    }

    fn attr_u32(&mut self, ty: u16, v: u32) -> &mut Msg {
        self.attr(ty, &v.to_ne_bytes())
    }

    fn attr_str(&mut self, ty: u16, s: &str) -> &mut Msg {
        let mut b = s.as_bytes().to_vec();
        b.push(0);
        self.attr(ty, &b)
    }

    fn nest(&mut self, ty: u16, inner: impl FnOnce(&mut Msg)) -> &mut Msg {
        let at = self.0.len();
        self.0.extend_from_slice(&[0, 0]);
        self.0.extend_from_slice(&ty.to_ne_bytes());
        inner(self);
        let len = (self.0.len() - at) as u16;
        self.0[at..at + 2].copy_from_slice(&len.to_ne_bytes());
        self.pad()
    }
}

impl Netlink {
    /// Opens a socket in the namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Netlink> {
        let fd = sys::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
        Ok(Netlink { fd, seq: 0 })
    }

    fn call(&mut self, msg: &mut Msg) -> io::Result<()> {
        self.seq += 1;
        let len = msg.0.len() as u32;
        msg.0[0..4].copy_from_slice(&len.to_ne_bytes());
        msg.0[8..12].copy_from_slice(&self.seq.to_ne_bytes());
        let fd = self.fd.as_raw_fd();
        // SAFETY: pointer and length describe the message, which lives through the call.
        cvt(unsafe { libc::send(fd, msg.0.as_ptr().cast(), msg.0.len(), 0) } as i32)?;
        let mut buf = [0u8; 8192];
        loop {
            // SAFETY: pointer and length describe `buf`.
            let n = cvt(unsafe { libc::recv(fd, buf.as_mut_ptr().cast(), buf.len(), 0) } as i32)?;
            let reply = &buf[..n as usize];
            if reply.len() < 20 || reply[8..12] != self.seq.to_ne_bytes() {
                continue;
            }
            if u16::from_ne_bytes([reply[4], reply[5]]) == libc::NLMSG_ERROR as u16 {
                let code = i32::from_ne_bytes([reply[16], reply[17], reply[18], reply[19]]);
                return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
            }
        }
    }

    /// Adds a bridge that is up. Multicast snooping is off: hosts of a lab need no querier.
    pub(crate) fn add_bridge(&mut self, name: &str, index: u32) -> io::Result<()> {
        let up = libc::IFF_UP as u32;
        let mut m = Msg::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        m.ifinfo(0, index, up, up).attr_str(libc::IFLA_IFNAME, name).nest(libc::IFLA_LINKINFO, |m| {
            m.attr_str(libc::IFLA_INFO_KIND, "bridge").nest(libc::IFLA_INFO_DATA, |m| {
                m.attr(IFLA_BR_MCAST_SNOOPING, &[0]);
            });
        });
        self.call(&mut m)
    }

    /// Adds a veth pair: `name` here, enslaved to `master` and up; `peer_name` in the other namespace.
    pub(crate) fn add_veth(
        &mut self,
        name: &str,
        index: u32,
        master: u32,
        peer_name: &str,
        peer_index: u32,
        peer_ns: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let up = libc::IFF_UP as u32;
        let mut m = Msg::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        m.ifinfo(0, index, up, up).attr_str(libc::IFLA_IFNAME, name).attr_u32(libc::IFLA_MASTER, master).nest(
            libc::IFLA_LINKINFO,
            |m| {
                m.attr_str(libc::IFLA_INFO_KIND, "veth").nest(libc::IFLA_INFO_DATA, |m| {
                    m.nest(VETH_INFO_PEER, |m| {
                        m.ifinfo(0, peer_index, 0, 0)
                            .attr_str(libc::IFLA_IFNAME, peer_name)
                            .attr_u32(libc::IFLA_NET_NS_FD, peer_ns.as_raw_fd() as u32);
                    });
                });
            },
        );
        self.call(&mut m)
    }

    /// Sets an interface up or down.
    pub(crate) fn set_up(&mut self, index: u32, up: bool) -> io::Result<()> {
        let bit = libc::IFF_UP as u32;
        let mut m = Msg::new(libc::RTM_NEWLINK, 0);
        m.ifinfo(0, index, if up { bit } else { 0 }, bit);
        self.call(&mut m)
    }

    /// Makes an interface a port of bridge `master`, or of none (0).
    pub(crate) fn set_master(&mut self, index: u32, master: u32) -> io::Result<()> {
        let mut m = Msg::new(libc::RTM_NEWLINK, 0);
        m.ifinfo(0, index, 0, 0).attr_u32(libc::IFLA_MASTER, master);
        self.call(&mut m)
    }

    /// Isolated ports of a bridge exchange nothing with each other, everything with the other ports.
    pub(crate) fn set_isolated(&mut self, index: u32, isolated: bool) -> io::Result<()> {
        let mut m = Msg::new(libc::RTM_SETLINK, 0);
        m.ifinfo(AF_BRIDGE, index, 0, 0).nest(libc::IFLA_PROTINFO | NLA_F_NESTED, |m| {
            m.attr(IFLA_BRPORT_ISOLATED, &[u8::from(isolated)]);
        });
        self.call(&mut m)
    }

    /// Adds an address.
    pub(crate) fn add_addr(&mut self, index: u32, ip: IpAddr, prefix: u8) -> io::Result<()> {
        let mut m = Msg::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        let (family, bytes, flags) = match ip {
            IpAddr::V4(a) => (libc::AF_INET, a.octets().to_vec(), 0),
            // Duplicate address detection would keep a fresh host silent for a second.
            IpAddr::V6(a) => (libc::AF_INET6, a.octets().to_vec(), libc::IFA_F_NODAD as u8),
        };
        m.0.extend_from_slice(&[family as u8, prefix, flags, 0]);
        m.0.extend_from_slice(&index.to_ne_bytes());
        m.attr(libc::IFA_LOCAL, &bytes).attr(libc::IFA_ADDRESS, &bytes);
        if let IpAddr::V4(a) = ip {
            let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
            m.attr(libc::IFA_BROADCAST, &(u32::from(a) | host_bits).to_be_bytes());
        }
        self.call(&mut m)
    }
}
