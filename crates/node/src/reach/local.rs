//! What this machine knows of its network: addresses, default gateway, neighbours.
//!
//! `/proc/thread-self/net`, not `/proc/net`: the latter shows the network namespace of the process's
//! first thread, and the manager may be a thread in another one.

use std::ffi::CStr;
use std::net::Ipv4Addr;

use crate::arp::Mac;

/// An IPv4 address of this machine.
#[derive(Debug)]
pub(super) struct Address {
    pub(super) interface: String,
    pub(super) addr: Ipv4Addr,
    pub(super) mask: u32,
}

pub(super) fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

/// All IPv4 addresses of this machine; none if the kernel does not say.
pub(super) fn addresses() -> Vec<Address> {
    let mut list = Vec::new();
    let mut first: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: the pointer is to a local; on success the call stores a list there that is ours to free.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return list;
    }
    let mut at = first;
    while !at.is_null() {
        // SAFETY: `at` is not null, and comes from the list, which is freed only after the loop.
        let entry = unsafe { &*at };
        at = entry.ifa_next;
        // SAFETY: ifa_addr and ifa_netmask are null or point to socket addresses in the same list.
        let pair = unsafe { (ipv4(entry.ifa_addr), ipv4(entry.ifa_netmask)) };
        if let (Some(addr), Some(mask)) = pair {
            // SAFETY: ifa_name is a string that ends with a zero byte, in the same list.
            let name = unsafe { CStr::from_ptr(entry.ifa_name) };
            // An alias is called "eth0:1"; it is an address of eth0.
            let name = name.to_string_lossy();
            let name = name.split(':').next().unwrap_or_default();
            list.push(Address { interface: name.to_string(), addr, mask: mask.to_bits() });
        }
    }
    // SAFETY: `first` came from getifaddrs and nothing points into the list any more.
    unsafe { libc::freeifaddrs(first) };
    list
}

/// The IPv4 address in a socket address.
///
/// # Safety
/// `a` is null or points to a socket address that is as long as its family says.
unsafe fn ipv4(a: *const libc::sockaddr) -> Option<Ipv4Addr> {
    if a.is_null() {
        return None;
    }
    // SAFETY: `a` is not null, so it points to a socket address, whose family may be read.
    if i32::from(unsafe { (*a).sa_family }) != libc::AF_INET {
        return None;
    }
    // SAFETY: of this family, the address is a sockaddr_in; read without asking for its alignment.
    let a = unsafe { a.cast::<libc::sockaddr_in>().read_unaligned() };
    Some(a.sin_addr.s_addr.to_ne_bytes().into())
}

/// The default gateway, if it is reached through this interface.
pub(super) fn gateway(interface: &str) -> Option<Ipv4Addr> {
    parse_gateway(&std::fs::read_to_string("/proc/thread-self/net/route").ok()?, interface)
}

fn parse_gateway(table: &str, interface: &str) -> Option<Ipv4Addr> {
    let mut best: Option<(u32, Ipv4Addr)> = None;
    for line in table.lines().skip(1) {
        let f: Vec<&str> = line.split_whitespace().collect();
        let hex = |i: usize| f.get(i).and_then(|t| u32::from_str_radix(t, 16).ok());
        let (Some(to), Some(via), Some(flags), Some(mask)) = (hex(1), hex(2), hex(3), hex(7)) else {
            continue;
        };
        let metric = f.get(6).and_then(|t| t.parse().ok()).unwrap_or(u32::MAX);
        // RTF_UP | RTF_GATEWAY.
        if f[0] != interface || to != 0 || mask != 0 || flags & 3 != 3 {
            continue;
        }
        if best.is_none_or(|(m, _)| metric < m) {
            // The file has addresses as the machine holds them in memory.
            best = Some((metric, via.to_ne_bytes().into()));
        }
    }
    best.map(|(_, via)| via)
}

/// The Ethernet addresses that the kernel knows on this interface.
pub(crate) fn neighbours(interface: &str) -> Vec<(Ipv4Addr, Mac)> {
    let table = std::fs::read_to_string("/proc/thread-self/net/arp").unwrap_or_default();
    parse_neighbours(&table, interface)
}

fn parse_neighbours(table: &str, interface: &str) -> Vec<(Ipv4Addr, Mac)> {
    let entry = |line: &str| {
        let f: Vec<&str> = line.split_whitespace().collect();
        if f.len() != 6 || f[5] != interface {
            return None;
        }
        let mut mac = [0u8; 6];
        let mut parts = f[3].split(':');
        for byte in &mut mac {
            *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
        }
        // All zero: asked for and not answered.
        (mac != [0; 6]).then_some((f[0].parse().ok()?, mac))
    };
    table.lines().skip(1).filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes() {
        let line = |iface: &str, to: &str, via: [u8; 4], flags: &str, metric: u32, mask: &str| {
            let via = u32::from_ne_bytes(via);
            format!("{iface}\t{to}\t{via:08X}\t{flags}\t0\t0\t{metric}\t{mask}\t0\t0\t0\n")
        };
        let table = "Iface\tDestination\tGateway ...\n".to_string()
            + &line("eth1", "00000000", [10, 0, 0, 9], "0003", 0, "00000000")
            + &line("eth0", "00000000", [10, 0, 0, 2], "0003", 200, "00000000")
            + &line("eth0", "00000000", [10, 0, 0, 1], "0003", 100, "00000000")
            + &line("eth0", "0000000A", [0, 0, 0, 0], "0001", 0, "00FFFFFF")
            + "eth0 nonsense\n";
        assert_eq!(parse_gateway(&table, "eth0"), Some([10, 0, 0, 1].into()));
        assert_eq!(parse_gateway(&table, "eth2"), None);
        assert_eq!(parse_gateway("", "eth0"), None);
    }

    #[test]
    fn neighbour_table() {
        let table = "IP address HW type Flags HW address Mask Device\n\
            192.0.2.2  0x1  0x2  02:00:00:00:00:0a  *  eth0\n\
            192.0.2.3  0x1  0x0  00:00:00:00:00:00  *  eth0\n\
            192.0.2.4  0x1  0x2  02:00:00:00:00:0b  *  eth1\n";
        let found = parse_neighbours(table, "eth0");
        assert_eq!(found, [([192, 0, 2, 2].into(), [2, 0, 0, 0, 0, 10])]);
    }

    #[test]
    fn masks() {
        assert_eq!((mask(0), mask(24), mask(32)), (0, 0xffff_ff00, u32::MAX));
    }
}
