//! The virtual IP: an address, IPv4 or IPv6, that is added to an interface for a limited time.
//!
//! The lifetime is finite so that the address vanishes by itself when the manager dies or is paused:
//! the partner, which takes it over, must not meet it on the wire a second time. The kernel counts
//! lifetimes in seconds, so one second is the least.
//!
//! It is added as an address alone (/32, /128), not as one of its network. As one of its network it would be *secondary* to the
//! member's own address, or, if that is removed and put back (DHCP, netplan), the other way round: the kernel then removes the
//! member's address with the virtual IP. And in IPv6 the route of the member's network would end with the virtual IP's
//! lifetime. The network of the virtual IP gets a route of its own, behind all others: it is needed where the member has no
//! address in that network.
//!
//! The netlink messages are written by hand: two requests and two answers do not earn a library that
//! is loaded into other people's processes.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

#[cfg(test)]
pub(crate) mod testnet;

// From linux/if_link.h and linux/if_addr.h.
const IFLA_IFNAME: u16 = 3;
const IFLA_CARRIER_DOWN_COUNT: u16 = 48;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
/// Without duplicate address detection: it would take a second, and the former owner may still be there.
const IFA_F_NODAD: u32 = 0x02;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
/// How long the local route of an address may take, and how often it is looked for.
const ROUTE_WAIT: Duration = Duration::from_millis(50);
const ROUTE_NAP: Duration = Duration::from_micros(50);
const HEADER: usize = 16;
const IFADDRMSG: usize = 8;
const IFINFOMSG: usize = 16;
/// From linux/rtnetlink.h.
const RTMSG: usize = 12;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_EXPIRES: u16 = 23;
/// Whose routes they are, as `ip route` shows it: nobody else has this number.
const PROTOCOL: u8 = 84;
/// The metric of the route to the virtual IP's network: any other is better.
const METRIC: u32 = 65_000;

/// The state of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// It was switched on (`ip link set up`).
    pub up: bool,
    /// The lower layer says that it carries frames (`IFF_LOWER_UP`): a cable, a peer, a switch.
    pub carrier: bool,
    /// How often the carrier was lost since the interface exists: tells a flap between two looks.
    pub carrier_losses: u32,
}

/// How an address is present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Presence {
    /// Its prefix length.
    pub prefix: u8,
    /// Seconds that it will still live; `None`: for ever. That is not of tcpr's making, and means
    /// that somebody configured the virtual IP statically.
    pub remaining_s: Option<u32>,
}

/// One virtual IP on one interface, with a netlink socket of its own: a change is one round trip to
/// the kernel.
#[derive(Debug)]
pub struct Vip {
    socket: OwnedFd,
    interface: String,
    index: u32,
    addr: IpAddr,
    /// That of its network.
    prefix: u8,
    sequence: u32,
}

impl Vip {
    /// Prepares the address; nothing is added. The interface must exist.
    pub fn new(interface: &str, addr: IpAddr, prefix: u8) -> io::Result<Vip> {
        let mut vip = Vip { socket: route_socket()?, interface: interface.to_string(), index: 0, addr, prefix, sequence: 0 };
        vip.index = vip.link()?.index;
        Ok(vip)
    }

    /// Index of the interface that carries it.
    pub fn interface(&self) -> u32 {
        self.index
    }

    /// The address.
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// Adds the address for `lifetime_s` seconds (at least one), or gives it that lifetime anew.
    pub fn add(&mut self, lifetime_s: u32) -> io::Result<()> {
        let mut result = self.set(lifetime_s);
        if matches!(&result, Err(e) if e.raw_os_error() == Some(libc::ENODEV)) {
            // The interface was removed and made again, under a new number.
            self.index = self.link()?.index;
            result = self.set(lifetime_s);
        }
        result.map_err(|e| self.context("cannot add", e))?;
        self.set_route(lifetime_s);
        if self.addr.is_ipv6() {
            self.await_route();
        }
        Ok(())
    }

    /// The kernel makes the local route of an IPv6 address a little later, in a work queue, if it was not to look for
    /// duplicates (addrconf_dad_begin). What is sent to the address until then, as if it came from a peer, would leave by
    /// the interface: the rules refuse it, and it is lost. Without a carrier the route may not come at all.
    fn await_route(&mut self) {
        let until = Instant::now() + ROUTE_WAIT;
        while !self.is_local().unwrap_or(false) {
            if Instant::now() > until {
                return log::warn!(address:% = self.addr; "the virtual IP is not usable yet");
            }
            std::thread::sleep(ROUTE_NAP);
        }
    }

    /// Whether what is sent to the address stays on this machine. That an address is there, and is chosen as the source of
    /// what is sent to it, does not say so: the kernel looks at its addresses for that, not at its routes.
    pub fn is_local(&mut self) -> io::Result<bool> {
        self.is_here(self.addr)
    }

    /// The same of any address.
    pub fn is_here(&mut self, address: IpAddr) -> io::Result<bool> {
        let octets = octets(address);
        let mut body = vec![0u8; RTMSG];
        body[0] = family(address);
        body[1] = 8 * octets.len() as u8;
        attribute(&mut body, RTA_DST, &octets);
        let mut local = false;
        self.ask(libc::RTM_GETROUTE, 0, &body, |kind, m| {
            local |= kind == libc::RTM_NEWROUTE && m.get(7) == Some(&libc::RTN_LOCAL);
        })?;
        Ok(local)
    }

    /// Gives the address `lifetime_s` more seconds. False: it has vanished, and is *not* added again.
    ///
    /// A master that was paused for longer than the lifetime comes here first when it thaws, before it
    /// has read what its partner sent meanwhile. It must find out, not fight for the address.
    pub fn renew(&mut self, lifetime_s: u32) -> io::Result<bool> {
        // The kernel creates an address that is not there even without NLM_F_CREATE, so look first.
        if !self.present()? {
            return Ok(false);
        }
        self.set(lifetime_s).map_err(|e| self.context("cannot renew", e))?;
        self.set_route(lifetime_s);
        Ok(true)
    }

    /// Deletes the address. False: it was not there.
    pub fn remove(&mut self) -> io::Result<bool> {
        let mut any = false;
        // Somebody may have added it with a prefix of his own, beside ours.
        while let Some(there) = self.find()? {
            let mut body = self.ifaddrmsg(there.prefix);
            attribute(&mut body, IFA_LOCAL, &octets(self.addr));
            attribute(&mut body, IFA_ADDRESS, &octets(self.addr));
            match self.change(libc::RTM_DELADDR, 0, &body) {
                Ok(()) => any = true,
                Err(e) if matches!(e.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::ENODEV)) => break,
                Err(e) => return Err(self.context("cannot remove", e)),
            }
        }
        // That of IPv4 went with its address.
        if any && self.addr.is_ipv6() && self.prefix < self.full() {
            let body = self.route(0);
            if let Err(error) = self.change(libc::RTM_DELROUTE, 0, &body) {
                log::debug!(address:% = self.addr, error:%; "no route to the network of the virtual IP");
            }
        }
        Ok(any)
    }

    /// The route to the network of the address, for as long as the address is there.
    fn set_route(&mut self, lifetime_s: u32) {
        if self.prefix == self.full() {
            return;
        }
        let body = self.route(lifetime_s.max(1));
        // Only where the member has no address in that network it matters; on an interface that is down there is none.
        if let Err(error) = self.change(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &body) {
            log::debug!(address:% = self.addr, error:%; "no route to the network of the virtual IP");
        }
    }

    fn route(&self, lifetime_s: u32) -> Vec<u8> {
        let mut network = octets(self.addr);
        for (i, byte) in network.iter_mut().enumerate() {
            let kept = usize::from(self.prefix).saturating_sub(8 * i).min(8);
            *byte &= (0xff00u16 >> kept) as u8;
        }
        let scope = if self.addr.is_ipv4() { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE };
        let mut body = vec![family(self.addr), self.prefix, 0, 0, libc::RT_TABLE_MAIN, PROTOCOL, scope, libc::RTN_UNICAST];
        body.resize(RTMSG, 0);
        attribute(&mut body, RTA_DST, &network);
        attribute(&mut body, RTA_OIF, &self.index.to_ne_bytes());
        attribute(&mut body, RTA_PRIORITY, &METRIC.to_ne_bytes());
        if self.addr.is_ipv4() {
            // It ends with the address.
            attribute(&mut body, RTA_PREFSRC, &octets(self.addr));
        } else if lifetime_s > 0 {
            attribute(&mut body, RTA_EXPIRES, &lifetime_s.to_ne_bytes());
        }
        body
    }

    fn full(&self) -> u8 {
        if self.addr.is_ipv4() {
            32
        } else {
            128
        }
    }

    /// Whether the interface has the address.
    pub fn present(&mut self) -> io::Result<bool> {
        Ok(self.find()?.is_some())
    }

    /// How the interface has the address, if it does.
    pub fn find(&mut self) -> io::Result<Option<Presence>> {
        let mut body = vec![family(self.addr), 0, 0, 0];
        body.extend(self.index.to_ne_bytes());
        let (addr, index) = (self.addr, self.index);
        let mut found = None;
        self.ask(libc::RTM_GETADDR, libc::NLM_F_DUMP, &body, |kind, m| {
            if kind != libc::RTM_NEWADDR || u32_at(m, 4) != Some(index) {
                return;
            }
            let attributes = m.get(IFADDRMSG..).unwrap_or_default();
            // IPv6 has IFA_LOCAL only where the other end of a link has an address too.
            let local = find_attribute(attributes, IFA_LOCAL).or_else(|| find_attribute(attributes, IFA_ADDRESS));
            if local != Some(&octets(addr)[..]) {
                return;
            }
            // struct ifa_cacheinfo: preferred, valid, created, updated.
            let valid = find_attribute(attributes, IFA_CACHEINFO).and_then(|c| u32_at(c, 4));
            found = Some(Presence { prefix: m[1], remaining_s: valid.filter(|v| *v != u32::MAX) });
        })
        .map_err(|e| self.context("cannot look for", e))?;
        Ok(found)
    }

    /// The state of the interface. This waits for the kernel's configuration lock, which others may
    /// hold for milliseconds: `running` is for every heartbeat, this is for when something is wrong.
    pub fn link(&mut self) -> io::Result<Link> {
        let mut body = vec![0u8; IFINFOMSG];
        let mut name = self.interface.clone().into_bytes();
        name.push(0);
        attribute(&mut body, IFLA_IFNAME, &name);
        let mut link = None;
        self.ask(libc::RTM_GETLINK, 0, &body, |kind, m| {
            let (Some(index), Some(flags)) = (u32_at(m, 4), u32_at(m, 8)) else {
                return;
            };
            if kind != libc::RTM_NEWLINK {
                return;
            }
            let attributes = m.get(IFINFOMSG..).unwrap_or_default();
            let losses = find_attribute(attributes, IFLA_CARRIER_DOWN_COUNT);
            link = Some(Link {
                index,
                up: flags & libc::IFF_UP as u32 != 0,
                carrier: flags & libc::IFF_LOWER_UP as u32 != 0,
                carrier_losses: losses.and_then(|a| u32_at(a, 0)).unwrap_or(0),
            });
        })
        .map_err(|e| match e.raw_os_error() {
            Some(libc::ENODEV) => self.no_interface(),
            _ => e,
        })?;
        link.ok_or_else(|| self.no_interface())
    }

    /// Whether the interface is up and works, without any lock. After a loss of carrier the kernel
    /// may take up to a second to say so here; `link` knows at once.
    pub fn running(&self) -> io::Result<bool> {
        let mut name = [0 as libc::c_char; libc::IFNAMSIZ];
        for (to, from) in name.iter_mut().zip(self.interface.bytes().take(libc::IFNAMSIZ - 1)) {
            *to = from as libc::c_char;
        }
        let mut request = libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 } };
        // SAFETY: `request` is a whole ifreq that outlives the call, its name ends with a zero byte, and
        // SIOCGIFFLAGS writes nothing but its flags.
        let rc = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut request) };
        if rc < 0 {
            let e = io::Error::last_os_error();
            return Err(match e.raw_os_error() {
                Some(libc::ENODEV) => self.no_interface(),
                _ => e,
            });
        }
        // SAFETY: the call succeeded, so the kernel has written the flags; before it we had.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        let wanted = libc::IFF_UP | libc::IFF_RUNNING;
        Ok(flags & wanted == wanted)
    }

    fn set(&mut self, lifetime_s: u32) -> io::Result<()> {
        let mut body = self.ifaddrmsg(self.full());
        attribute(&mut body, IFA_LOCAL, &octets(self.addr));
        attribute(&mut body, IFA_ADDRESS, &octets(self.addr));
        let s = lifetime_s.max(1).to_ne_bytes();
        let mut cacheinfo = [0u8; 16];
        // Deprecated at once in IPv6: else it would be the nearest address to much, and this host speak in its name.
        if self.addr.is_ipv4() {
            cacheinfo[0..4].copy_from_slice(&s);
        }
        cacheinfo[4..8].copy_from_slice(&s);
        attribute(&mut body, IFA_CACHEINFO, &cacheinfo);
        let nodad = if self.addr.is_ipv6() { IFA_F_NODAD } else { 0 };
        attribute(&mut body, IFA_FLAGS, &(nodad | IFA_F_NOPREFIXROUTE).to_ne_bytes());
        self.change(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &body)
    }

    fn ifaddrmsg(&self, prefix: u8) -> Vec<u8> {
        let mut body = vec![family(self.addr), prefix, 0, libc::RT_SCOPE_UNIVERSE];
        body.extend(self.index.to_ne_bytes());
        body
    }

    fn change(&mut self, kind: u16, flags: i32, body: &[u8]) -> io::Result<()> {
        self.ask(kind, flags | libc::NLM_F_ACK, body, |_, _| {})
    }

    /// One request; `each` is given the kind and body of every message that answers it.
    fn ask(&mut self, kind: u16, flags: i32, body: &[u8], mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(body);
        let fd = self.socket.as_raw_fd();
        // SAFETY: the pointer and the length are those of `message`, which outlives the call.
        if unsafe { libc::send(fd, message.as_ptr().cast(), message.len(), 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // A dump is cut into pieces of at most 32 KiB.
        let mut buffer = vec![0u8; 32 << 10];
        loop {
            // SAFETY: the pointer and the length are those of `buffer`, which outlives the call.
            let n = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            if n < 0 {
                let e = io::Error::last_os_error();
                if e.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                // The kernel answers within the request; an empty socket is its refusal, not a delay.
                return Err(e);
            }
            let mut rest = &buffer[..n as usize];
            while let Some((m, after)) = split_message(rest) {
                rest = after;
                if m.sequence != self.sequence {
                    continue;
                }
                match i32::from(m.kind) {
                    libc::NLMSG_ERROR => {
                        let code = u32_at(m.body, 0).unwrap_or(0) as i32;
                        return match code {
                            0 => Ok(()),
                            code => Err(io::Error::from_raw_os_error(-code)),
                        };
                    }
                    libc::NLMSG_DONE => return Ok(()),
                    _ => each(m.kind, m.body),
                }
                if i32::from(m.flags) & libc::NLM_F_MULTI == 0 {
                    return Ok(());
                }
            }
        }
    }

    fn no_interface(&self) -> io::Error {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "there is no interface \"{}\" on this machine; set service.interface to one that `ip link` shows",
                self.interface
            ),
        )
    }

    fn context(&self, what: &str, e: io::Error) -> io::Error {
        let advice = match e.raw_os_error() {
            Some(libc::EPERM) => "; run as root or with CAP_NET_ADMIN",
            _ => "",
        };
        io::Error::new(e.kind(), format!("{what} {}/{} on {}: {e}{advice}", self.addr, self.prefix, self.interface))
    }
}

fn route_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let on: libc::c_int = 1;
    // Makes a dump honour the interface number. Older kernels lack it and send more, which we skip, so
    // the result does not matter.
    // SAFETY: the pointer and the length are those of `on`, which outlives the call.
    unsafe {
        libc::setsockopt(fd, libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, (&raw const on).cast(), size_of_val(&on) as u32)
    };
    Ok(socket)
}

fn family(ip: IpAddr) -> u8 {
    (if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    to.extend(((4 + value.len()) as u16).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

fn find_attribute(mut list: &[u8], kind: u16) -> Option<&[u8]> {
    while list.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([list[0], list[1]]));
        let this = u16::from_ne_bytes([list[2], list[3]]);
        let value = list.get(4..length)?;
        // The two upper bits are flags.
        if this & 0x3fff == kind {
            return Some(value);
        }
        list = list.get(length.next_multiple_of(4)..)?;
    }
    None
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The first message in `data`, and what follows it.
fn split_message(data: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let length = u32_at(data, 0)? as usize;
    let body = data.get(HEADER..length)?;
    let message = Message {
        kind: u16::from_ne_bytes([data[4], data[5]]),
        flags: u16::from_ne_bytes([data[6], data[7]]),
        sequence: u32_at(data, 8)?,
        body,
    };
    let after = data.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((message, after))
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::testnet::{in_netns, ip};
    use super::*;

    #[test]
    fn added_renewed_removed_and_gone_by_itself() {
        in_netns(|| {
            ip("link add v0 type veth peer name v1\nlink set v0 up\nlink set v1 up\naddr add 192.0.2.1/24 dev v0");
            let mut vip = Vip::new("v0", "192.0.2.200".parse().unwrap(), 24).unwrap();
            assert!(!vip.present().unwrap());
            assert!(!vip.remove().unwrap());
            assert!(!vip.renew(5).unwrap(), "renewing must not add");
            assert!(!vip.present().unwrap());
            vip.add(5).unwrap();
            let p = vip.find().unwrap().unwrap();
            assert_eq!(p.prefix, 32);
            assert!(p.remaining_s.unwrap() <= 5);
            assert!(vip.renew(30).unwrap());
            assert!(vip.find().unwrap().unwrap().remaining_s.unwrap() > 5);
            vip.add(20).unwrap();
            assert!(vip.remove().unwrap());
            assert!(!vip.present().unwrap());
            // Another address on the interface is not the VIP, and a static one shows as such.
            let mut own = Vip::new("v0", "192.0.2.1".parse().unwrap(), 24).unwrap();
            assert_eq!(own.find().unwrap().unwrap().remaining_s, None);
            vip.add(0).unwrap();
            assert!(vip.present().unwrap());
            let mut waited = Duration::ZERO;
            while vip.present().unwrap() {
                assert!(waited < Duration::from_secs(20), "the address did not expire");
                std::thread::sleep(Duration::from_millis(50));
                waited += Duration::from_millis(50);
            }
        });
    }

    #[test]
    fn an_ipv6_address_is_usable_at_once() {
        in_netns(|| {
            ip("link add v0 type veth peer name v1\nlink set v0 up\nlink set v1 up");
            let address: IpAddr = "2001:db8::200".parse().unwrap();
            let mut vip = Vip::new("v0", address, 64).unwrap();
            assert!(!vip.remove().unwrap());
            for _ in 0..100 {
                vip.add(5).unwrap();
                assert!(vip.is_local().unwrap(), "what is sent to it stays here");
                assert!(vip.remove().unwrap());
            }
            vip.add(5).unwrap();
            // Not tentative: a bind would fail.
            std::net::TcpListener::bind((address, 5555)).unwrap();
            let p = vip.find().unwrap().unwrap();
            assert_eq!(p.prefix, 128);
            assert!(p.remaining_s.unwrap() <= 5);
            assert!(vip.renew(30).unwrap());
            assert!(vip.find().unwrap().unwrap().remaining_s.unwrap() > 5);
            assert!(vip.remove().unwrap());
            assert!(!vip.renew(5).unwrap());
        });
    }

    fn shown(what: &str) -> String {
        let out = std::process::Command::new("ip").args(what.split(' ')).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    }

    /// Whichever of the two comes and goes, the other stays, and so does the way to their network.
    #[test]
    fn the_members_own_address_comes_and_goes_beside_it() {
        in_netns(|| {
            ip("link add v0 type veth peer name v1\nlink set v0 up\nlink set v1 up");
            for (address, network, own, peer, prefix) in [
                ("192.0.2.200", "192.0.2.0/24", "192.0.2.1/24", "192.0.2.9", 24),
                ("2001:db8::200", "2001:db8::/64", "2001:db8::1/64 nodad", "2001:db8::9", 64),
            ] {
                let bare = own.split(' ').next().unwrap();
                let there = |what: &str| shown("addr show dev v0").contains(what);
                let way = || shown(&format!("route get {peer}"));
                for promote in ["0", "1"] {
                    std::fs::write("/proc/sys/net/ipv4/conf/v0/promote_secondaries", promote).unwrap();
                    let mut vip = Vip::new("v0", address.parse().unwrap(), prefix).unwrap();
                    ip(&format!("addr add {own} dev v0"));
                    vip.add(5).unwrap();
                    assert!(way().contains(bare.split('/').next().unwrap()), "the own address speaks: {}", way());
                    // Removed and put back: now the virtual IP was there first.
                    ip(&format!("addr del {bare} dev v0"));
                    assert!(vip.present().unwrap() && vip.is_local().unwrap());
                    assert!(way().contains("dev v0"), "the network is in reach all the while: {}", way());
                    ip(&format!("addr add {own} dev v0"));
                    assert!(vip.renew(5).unwrap());
                    assert!(vip.remove().unwrap());
                    assert!(there(bare), "{}", shown("addr show dev v0"));
                    assert!(way().contains("dev v0"), "{}", way());
                    assert!(
                        !shown(&format!("-{} route show", if prefix == 24 { 4 } else { 6 })).contains("65000"),
                        "no route is left"
                    );
                    // With none of its own the member reaches that network by the virtual IP's.
                    ip(&format!("addr del {bare} dev v0"));
                    assert!(!way().contains("dev v0"), "{}", way());
                    vip.add(1).unwrap();
                    assert!(way().contains("dev v0") && way().contains(address), "{}", way());
                    // An operator's copy goes with it. Of an IPv6 address there is but one, whatever its prefix.
                    if prefix == 24 {
                        ip(&format!("addr add {address}/{prefix} dev v0"));
                    }
                    vip.remove().unwrap();
                    assert!(!there(address), "{}", shown("addr show dev v0"));
                    assert!(!shown("route show").contains(network), "{}", shown("route show"));
                }
            }
        });
    }

    /// A manager that was killed leaves the member as it was.
    #[test]
    fn the_members_network_outlives_an_address_that_expires() {
        in_netns(|| {
            ip("link add v0 type veth peer name v1\nlink set v0 up\nlink set v1 up\naddr add 192.0.2.1/24 dev v0\naddr add 2001:db8::1/64 dev v0 nodad");
            // How often the kernel puts away IPv6 routes that have expired: half a minute, else.
            std::fs::write("/proc/sys/net/ipv6/route/gc_interval", "1").unwrap();
            for (address, prefix) in [("192.0.2.200", 24), ("2001:db8::200", 64)] {
                let mut vip = Vip::new("v0", address.parse().unwrap(), prefix).unwrap();
                vip.add(1).unwrap();
                assert!(vip.renew(1).unwrap());
                testnet::eventually("it expires", || !vip.present().unwrap());
            }
            testnet::eventually("its route does, too", || {
                !shown("-6 route show").contains("65000") && !shown("route show").contains("65000")
            });
            assert!(shown("route get 192.0.2.9").contains("dev v0"));
            assert!(shown("-6 route get 2001:db8::9").contains("dev v0"));
        });
    }

    #[test]
    fn link_state_and_carrier() {
        in_netns(|| {
            ip("link add v0 type veth peer name v1\nlink set v0 up\nlink set v1 up");
            let mut vip = Vip::new("v0", "192.0.2.200".parse().unwrap(), 32).unwrap();
            let before = vip.link().unwrap();
            assert!(before.up && before.carrier, "{before:?}");
            ip("link set v1 down");
            let after = vip.link().unwrap();
            assert!(after.up && !after.carrier, "{after:?}");
            assert_eq!(after.carrier_losses, before.carrier_losses + 1);
            ip("link set v0 down");
            assert!(!vip.link().unwrap().up);
            assert!(!vip.running().unwrap());
            // Made again under another number.
            ip("link del v0\nlink add d0 type veth peer name d1\nlink add v0 type veth peer name v1\nlink set v0 up");
            vip.add(3).unwrap();
            assert!(vip.present().unwrap());
            ip("link del v0");
            assert!(!vip.remove().unwrap());
            let e = vip.add(3).unwrap_err().to_string();
            assert!(e.contains("no interface \"v0\"") && e.contains("ip link"), "{e}");
            assert!(vip.running().unwrap_err().to_string().contains("no interface"));
            assert!(Vip::new("v7", "192.0.2.200".parse().unwrap(), 24).is_err());
        });
    }
}
