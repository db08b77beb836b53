//! ARP: telling the network where the virtual IP is now (for IPv6 by an unsolicited neighbour advertisement), and
//! asking whether somebody is there.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use etherparse::icmpv6::{NdpOptionHeader, NdpOptionType, NeighborAdvertisementHeader};
use etherparse::{ArpEthIpv4Packet, ArpOperation, ArpPacket, EtherType, Ethernet2Header, Icmpv6Type, PacketBuilder};

/// When a new master announces its address again, counted from the moment that it took and announced it: a burst
/// against loss while peers wait, then repetitions for switches that learn slowly.
pub const ANNOUNCE_AGAIN: [Duration; 6] = [
    Duration::from_millis(2),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// When its neighbours are told one by one, counted likewise.
pub const TELL_AGAIN: [Duration; 2] = [Duration::from_millis(5), Duration::from_secs(1)];

const BROADCAST: Mac = [0xff; 6];
const NOBODY: Mac = [0; 6];
/// All nodes of the network, and the Ethernet address of that group.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

/// An Ethernet address.
pub type Mac = [u8; 6];

/// An ARP frame that somebody else sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArpHeard {
    /// Who says so (0.0.0.0: a machine that asks before it takes an address).
    pub ip: Ipv4Addr,
    /// Its Ethernet address.
    pub mac: Mac,
    /// It answered a question of this machine; else we only overheard it.
    pub answer: bool,
}

/// A packet socket for the ARP frames of one interface; non-blocking.
#[derive(Debug)]
pub struct Arp {
    socket: OwnedFd,
    interface: String,
}

impl Arp {
    /// Opens the socket. The interface must exist and be Ethernet; it may be down.
    pub fn new(interface: &str) -> io::Result<Arp> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // Protocol 0 hears nothing; bind sets both protocol and interface, so that no frame of another
        // interface is ever queued.
        // SAFETY: socket takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            let e = io::Error::last_os_error();
            let text = format!("cannot open a packet socket: {e}; run as root or with CAP_NET_RAW");
            return Err(io::Error::new(e.kind(), text));
        }
        // SAFETY: `fd` was just opened and nobody else knows it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let name = std::ffi::CString::new(interface)?;
        // SAFETY: `name` ends with a zero byte and outlives the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!(
                    "there is no interface \"{interface}\" on this machine; set service.interface to one that `ip link` shows"
                ),
            ));
        }
        let mut a = no_address();
        a.sll_family = libc::AF_PACKET as u16;
        a.sll_protocol = EtherType::ARP.0.to_be();
        a.sll_ifindex = index as i32;
        // SAFETY: the pointer and the length are those of `a`, which outlives the call.
        let rc = unsafe { libc::bind(fd, (&raw const a).cast(), size_of_val(&a) as u32) };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
        let arp = Arp { socket, interface: interface.to_string() };
        arp.mac()?;
        Ok(arp)
    }

    /// The interface's own Ethernet address. It is asked for each time: a bond changes it.
    pub fn mac(&self) -> io::Result<Mac> {
        let mut a = no_address();
        let mut length = size_of_val(&a) as u32;
        // SAFETY: both pointers are to locals that outlive the call, and `length` is the size of `a`.
        let rc = unsafe { libc::getsockname(self.socket.as_raw_fd(), (&raw mut a).cast(), &raw mut length) };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
        if a.sll_hatype != libc::ARPHRD_ETHER || a.sll_halen != 6 {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("{} is not an Ethernet interface (or has gone); a virtual IP needs one", self.interface),
            ));
        }
        let mut mac = [0; 6];
        mac.copy_from_slice(&a.sll_addr[..6]);
        Ok(mac)
    }

    /// Tells everybody that `ip` is here. Both forms are sent, request and reply, because there are
    /// systems that believe only one of them.
    pub fn send_gratuitous(&self, ip: IpAddr) -> io::Result<()> {
        let mac = self.mac()?;
        let ip = match ip {
            IpAddr::V4(ip) => ip,
            IpAddr::V6(ip) => return self.send(&advertisement(mac, ip)),
        };
        self.send(&frame(ArpOperation::REQUEST, mac, ip, NOBODY, ip))?;
        self.send(&frame(ArpOperation::REPLY, mac, ip, BROADCAST, ip))
    }

    /// Asks who has `ip`. `sender` is an address of this machine that is *not* the virtual IP (a backup
    /// that asked in its name would draw its traffic), or 0.0.0.0, which leaves no trace anywhere but
    /// goes unanswered by a Linux with `arp_ignore=2`.
    pub fn probe(&self, ip: Ipv4Addr, sender: Ipv4Addr) -> io::Result<()> {
        self.send(&frame(ArpOperation::REQUEST, self.mac()?, sender, NOBODY, ip))
    }

    /// Tells this neighbour that `ip` is here, by asking for its own address in that name: a question to themselves is
    /// what systems believe that ignore gratuitous ARP.
    pub fn tell(&self, neighbour: Ipv4Addr, ip: Ipv4Addr) -> io::Result<()> {
        self.probe(neighbour, ip)
    }

    /// The next frame from somebody else; `None`: nothing more for now.
    pub fn recv(&self) -> io::Result<Option<ArpHeard>> {
        let mut buffer = [0u8; 128];
        loop {
            // SAFETY: the pointer and the length are those of `buffer`, which outlives the call.
            let n = unsafe { libc::recv(self.socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_TRUNC) };
            if n < 0 {
                let e = io::Error::last_os_error();
                match e.raw_os_error() {
                    // Said once when the interface goes down; the socket works again when it is up.
                    Some(libc::ENETDOWN | libc::EINTR) => continue,
                    Some(libc::EAGAIN) => return Ok(None),
                    _ => return Err(self.context(e)),
                }
            }
            let frame = &buffer[..(n as usize).min(buffer.len())];
            if let Some(heard) = parse(frame, self.mac()?) {
                return Ok(Some(heard));
            }
        }
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer and the length are those of `frame`, which outlives the call.
        let n = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if n < 0 {
            return Err(self.context(io::Error::last_os_error()));
        }
        Ok(())
    }

    fn context(&self, e: io::Error) -> io::Error {
        io::Error::new(e.kind(), format!("ARP on {}: {e}", self.interface))
    }
}

impl AsRawFd for Arp {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn no_address() -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: 0,
        sll_protocol: 0,
        sll_ifindex: 0,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    }
}

fn frame(operation: ArpOperation, mac: Mac, sender: Ipv4Addr, target_mac: Mac, target: Ipv4Addr) -> Vec<u8> {
    let arp =
        ArpEthIpv4Packet { operation, sender_mac: mac, sender_ipv4: sender.octets(), target_mac, target_ipv4: target.octets() };
    let builder = PacketBuilder::ethernet2(mac, BROADCAST).arp(arp.to_arp_packet());
    let mut frame = Vec::with_capacity(builder.size());
    builder.write_to_vec(&mut frame).expect("addresses of Ethernet and IPv4 fit");
    frame
}

/// An unsolicited neighbour advertisement to all nodes, overriding what they know (RFC 4861, sections 4.4 and 7.2.6).
fn advertisement(mac: Mac, ip: Ipv6Addr) -> Vec<u8> {
    let flags = NeighborAdvertisementHeader { router: false, solicited: false, r#override: true };
    // The hop limit shows that no router passed it on.
    let builder = PacketBuilder::ethernet2(mac, ALL_NODES_MAC)
        .ipv6(ip.octets(), ALL_NODES.octets(), 255)
        .icmpv6(Icmpv6Type::NeighborAdvertisement(flags));
    let option = NdpOptionHeader { option_type: NdpOptionType::TARGET_LINK_LAYER_ADDRESS, length_units: 1 };
    let body = [&ip.octets()[..], &option.to_bytes(), &mac].concat();
    let mut frame = Vec::with_capacity(builder.size(body.len()));
    builder.write_to_vec(&mut frame, &body).expect("an advertisement is short enough for every length");
    frame
}

fn parse(frame: &[u8], own: Mac) -> Option<ArpHeard> {
    let (ethernet, rest) = Ethernet2Header::from_slice(frame).ok()?;
    if ethernet.ether_type != EtherType::ARP {
        return None;
    }
    let arp = ArpPacket::from_slice(rest).ok()?.try_eth_ipv4().ok()?;
    // A switch that sends our own frames back must not look like somebody else.
    if arp.sender_mac == own || ethernet.source == own {
        return None;
    }
    let answer = arp.operation == ArpOperation::REPLY && arp.target_mac == own;
    Some(ArpHeard { ip: arp.sender_ipv4_addr(), mac: arp.sender_mac, answer })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vip::testnet::{eventually, in_netns, ip, Pair};

    fn hear(arp: &Arp) -> ArpHeard {
        let mut heard = None;
        eventually("an ARP frame", || {
            heard = arp.recv().unwrap();
            heard.is_some()
        });
        heard.unwrap()
    }

    #[test]
    fn gratuitous_and_probe_over_a_wire() {
        in_netns(|| {
            let pair = Pair::new();
            ip("addr add 192.0.2.1/24 dev v0");
            let vip = Ipv4Addr::new(192, 0, 2, 200);
            let here = Arp::new("v0").unwrap();
            let there = pair.there(|| {
                ip("addr add 192.0.2.7/24 dev v1");
                // An entry that exists is what a gratuitous frame has to correct.
                ip("neigh add 192.0.2.200 lladdr 02:00:00:00:00:09 dev v1 nud stale");
                Arp::new("v1").unwrap()
            });
            here.send_gratuitous(vip.into()).unwrap();
            let mac = here.mac().unwrap();
            for _ in 0..2 {
                assert_eq!(hear(&there), ArpHeard { ip: vip, mac, answer: false });
            }
            let table = pair.there(|| std::fs::read_to_string("/proc/thread-self/net/arp").unwrap());
            let hex = mac.map(|b| format!("{b:02x}")).join(":");
            assert!(table.contains(&hex), "{hex} is not in {table}");
            for sender in [Ipv4Addr::UNSPECIFIED, [192, 0, 2, 1].into()] {
                here.probe([192, 0, 2, 7].into(), sender).unwrap();
                let answer = ArpHeard { ip: [192, 0, 2, 7].into(), mac: there.mac().unwrap(), answer: true };
                assert_eq!(hear(&here), answer);
            }
            assert_eq!(here.recv().unwrap(), None);
            // The same for IPv6: an entry that exists is corrected.
            let six: IpAddr = "2001:db8::200".parse().unwrap();
            let neighbour = || {
                pair.there(|| {
                    let out = std::process::Command::new("ip").args(["-6", "neigh", "show", "2001:db8::200"]).output();
                    String::from_utf8(out.unwrap().stdout).unwrap()
                })
            };
            pair.there(|| {
                ip("addr add 2001:db8::7/64 dev v1 nodad\nneigh add 2001:db8::200 lladdr 02:00:00:00:00:09 dev v1 nud stale")
            });
            eventually("the neighbour is corrected", || {
                here.send_gratuitous(six).unwrap();
                neighbour().contains(&hex)
            });
            // Down and up again: sending fails while it lasts, and the socket survives.
            ip("link set v0 down");
            assert!(here.send_gratuitous(vip.into()).is_err());
            assert_eq!(here.recv().unwrap(), None);
            ip("link set v0 up");
            eventually("sending again", || here.send_gratuitous(vip.into()).is_ok());
        });
    }

    #[test]
    fn only_ethernet_interfaces_that_exist() {
        in_netns(|| {
            let e = Arp::new("v7").unwrap_err().to_string();
            assert!(e.contains("no interface \"v7\""), "{e}");
            let e = Arp::new("lo").unwrap_err().to_string();
            assert!(e.contains("not an Ethernet interface"), "{e}");
        });
    }

    #[test]
    fn frames_that_are_none_or_ours() {
        let own = [2, 0, 0, 0, 0, 1];
        let other = [2, 0, 0, 0, 0, 2];
        let good = frame(ArpOperation::REPLY, other, [1, 2, 3, 4].into(), own, [1, 2, 3, 5].into());
        assert!(parse(&good, own).unwrap().answer);
        assert!(parse(&good, other).is_none());
        assert!(!parse(&good, BROADCAST).unwrap().answer);
        assert_eq!(good.len(), 42);
        for n in 0..good.len() {
            assert!(parse(&good[..n], own).is_none());
        }
        // Short frames are padded on the way.
        assert!(parse(&[&good[..], &[0; 18]].concat(), own).unwrap().answer);
    }

    #[test]
    fn frames_are_the_bytes_that_the_standards_say() {
        let mac = [2, 0, 0, 0, 0, 9];
        let arp = frame(ArpOperation::REQUEST, mac, [1, 2, 3, 4].into(), NOBODY, [1, 2, 3, 5].into());
        let head = [&BROADCAST[..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
        assert_eq!(arp, [&head[..], &mac, &[1, 2, 3, 4], &[0; 6], &[1, 2, 3, 5]].concat());
        let ip: Ipv6Addr = "2001:db8::200".parse().unwrap();
        let six = advertisement(mac, ip);
        let head = [&ALL_NODES_MAC[..], &mac, &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]].concat();
        let addresses = [ip.octets(), ALL_NODES.octets()].concat();
        assert_eq!(six[..54], [&head[..], &addresses].concat());
        // Type, code; the checksum is the kernel's to judge, in the other test; the override flag.
        assert_eq!((&six[54..56], &six[58..62]), (&[136, 0][..], &[0x20, 0, 0, 0][..]));
        assert_eq!(six[62..], [&ip.octets()[..], &[2, 1], &mac].concat());
    }
}
