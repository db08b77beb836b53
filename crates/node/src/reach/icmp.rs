//! ICMP echo by a raw socket: requests out, and those replies in that answer them.

use std::fs::File;
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use etherparse::icmpv4::TYPE_ECHO_REPLY;
use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type, Ipv4HeaderSlice};

// From linux/icmp.h.
const SOL_RAW: libc::c_int = 255;
const ICMP_FILTER: libc::c_int = 1;

#[derive(Debug)]
pub(super) struct Icmp {
    socket: OwnedFd,
    id: u16,
    /// The identifier alone has 16 bits, which every other ping on this machine may share.
    cookie: [u8; 8],
    sequence: u16,
    /// Rounds since the question began; an answer to an earlier one does not count.
    rounds: u16,
}

impl Icmp {
    pub(super) fn new() -> io::Result<Icmp> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: socket takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_INET, kind, libc::IPPROTO_ICMP) };
        if fd < 0 {
            let e = io::Error::last_os_error();
            let text = format!("cannot open an ICMP socket for failover.reachability: {e}; run as root or with CAP_NET_RAW");
            return Err(io::Error::new(e.kind(), text));
        }
        // SAFETY: `fd` was just opened and nobody else knows it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // A set bit hides that type. Without the filter every ICMP message of the machine would wake us.
        let hidden: u32 = !(1 << TYPE_ECHO_REPLY);
        // SAFETY: the pointer and the length are those of `hidden`, which outlives the call.
        let rc = unsafe { libc::setsockopt(fd, SOL_RAW, ICMP_FILTER, (&raw const hidden).cast(), size_of_val(&hidden) as u32) };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut random = [0u8; 10];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        let mut cookie = [0; 8];
        cookie.copy_from_slice(&random[2..]);
        Ok(Icmp { socket, id: u16::from_be_bytes([random[0], random[1]]), cookie, sequence: 0, rounds: 0 })
    }

    pub(super) fn send(&self, to: Ipv4Addr) -> io::Result<()> {
        let request = Icmpv4Type::EchoRequest(IcmpEchoHeader { id: self.id, seq: self.sequence });
        let header = Icmpv4Header::with_checksum(request, &self.cookie);
        let m = [&header.to_bytes()[..], &self.cookie].concat();
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(to.octets()) },
            sin_zero: [0; 8],
        };
        // SAFETY: both pointers are to locals that outlive the call, each with its own size.
        let n = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                m.as_ptr().cast(),
                m.len(),
                0,
                (&raw const address).cast(),
                size_of_val(&address) as u32,
            )
        };
        if n < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    pub(super) fn next_round(&mut self) {
        self.sequence = self.sequence.wrapping_add(1);
        self.rounds = self.rounds.saturating_add(1);
    }

    pub(super) fn restart(&mut self) {
        // What waits in the socket was sent before this round, and is skipped by its number.
        self.rounds = 0;
    }

    /// The sender of the next answer that counts.
    pub(super) fn recv(&self) -> Option<Ipv4Addr> {
        let mut buffer = [0u8; 128];
        loop {
            // SAFETY: the pointer and the length are those of `buffer`, which outlives the call.
            let n = unsafe { libc::recv(self.socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            if n < 0 {
                let e = io::Error::last_os_error();
                if matches!(e.raw_os_error(), Some(libc::EAGAIN)) {
                    return None;
                }
                // Anything else is an error that the network reported for an earlier question; reading it
                // has taken it off the socket.
                if e.kind() != io::ErrorKind::Interrupted {
                    log::debug!(error:% = e; "reachability");
                }
                continue;
            }
            if let Some(ip) = self.answer(&buffer[..n as usize]) {
                return Some(ip);
            }
        }
    }

    fn answer(&self, packet: &[u8]) -> Option<Ipv4Addr> {
        let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
        let message = Icmpv4Slice::from_slice(packet.get(ip.slice().len()..)?).ok()?;
        let Icmpv4Type::EchoReply(echo) = message.icmp_type() else { return None };
        // 1 is the round that was sent last.
        let age = self.sequence.wrapping_sub(echo.seq);
        let ours = echo.id == self.id && message.payload().starts_with(&self.cookie);
        (ours && (1..=self.rounds).contains(&age)).then(|| ip.source_addr())
    }
}

impl AsRawFd for Icmp {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
