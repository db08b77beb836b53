//! What routers say of packets that were too long for them: ICMP "fragmentation needed" (RFC 1191) and "packet too big" (RFC
//! 8201), read from raw sockets beside the kernel, which hears the same. What it cannot make sense of (of packets that the
//! manager sends itself, and of spliced sessions, whose numbers on the wire are not those of its sockets) the filter can.
//! It is a copy that is read: where that fails nothing else does.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use etherparse::checksum::Sum16BitWords;
use etherparse::icmpv4::{CODE_DST_UNREACH_NEED_FRAG as FRAGMENTATION_NEEDED, TYPE_DEST_UNREACH as UNREACHABLE};
use etherparse::icmpv6::TYPE_PACKET_TOO_BIG as PACKET_TOO_BIG;
use etherparse::{Icmpv4Slice, Icmpv6Slice, Ipv4HeaderSlice};

// From linux/icmp.h and linux/icmpv6.h.
const SOL_RAW: libc::c_int = 255;
const ICMP_FILTER: libc::c_int = 1;
const ICMPV6_FILTER: libc::c_int = 1;
/// A router quotes no more than makes a message of 576 bytes (RFC 1812, section 4.3.2.3), or 1280 of IPv6.
const BUFFER: usize = 2048;

/// The two sockets.
#[derive(Debug)]
pub struct PathMtu {
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
}

impl PathMtu {
    /// Opens the sockets in the network namespace of the calling thread. Needs CAP_NET_RAW; what cannot be opened is
    /// warned of, and done without.
    #[must_use]
    pub fn open() -> PathMtu {
        let or_warn = |opened: io::Result<OwnedFd>| match opened {
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            opened => {
                opened.map_err(|error| log::warn!(error:%; "routers will not be heard about packets that are too long")).ok()
            }
        };
        // A set bit hides that type: without these filters every ICMP message of the machine would wake us.
        let hidden: u32 = !(1 << UNREACHABLE);
        let v4 = raw_socket(libc::AF_INET, libc::IPPROTO_ICMP, (SOL_RAW, ICMP_FILTER), &[hidden]);
        let mut hidden = [u32::MAX; 8];
        hidden[0] = !(1 << PACKET_TOO_BIG);
        let v6 = raw_socket(libc::AF_INET6, libc::IPPROTO_ICMPV6, (libc::IPPROTO_ICMPV6, ICMPV6_FILTER), &hidden);
        PathMtu { v4: or_warn(v4), v6: or_warn(v6) }
    }

    /// What is to be watched.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> + '_ {
        [&self.v4, &self.v6].into_iter().flatten().map(AsRawFd::as_raw_fd)
    }

    /// Reads up to `most` messages of each family, and tells of each what it quotes and what would fit (0: it does not say).
    pub fn receive(&self, most: usize, mut tell: impl FnMut(&[u8], u32)) {
        let mut buffer = [0u8; BUFFER];
        for (socket, read) in [(&self.v4, of_v4 as fn(&[u8]) -> Option<(&[u8], u32)>), (&self.v6, of_v6)] {
            let Some(socket) = socket else { continue };
            for _ in 0..most {
                let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
                // SAFETY: the pointer and the length are those of `buffer`, which outlives the call.
                let n = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) };
                // Nothing is there, or an error that the network reported: reading it has taken it off the socket.
                let Ok(n) = usize::try_from(n) else { break };
                if let Some((quoted, mtu)) = buffer.get(..n).and_then(read) {
                    tell(quoted, mtu);
                }
            }
        }
    }
}

fn raw_socket(
    family: libc::c_int,
    protocol: libc::c_int,
    (level, option): (libc::c_int, libc::c_int),
    hidden: &[u32],
) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes no pointers.
    let fd = unsafe { libc::socket(family, kind, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the pointer and the length are those of `hidden`, which outlives the call.
    let rc = unsafe { libc::setsockopt(fd, level, option, hidden.as_ptr().cast(), size_of_val(hidden) as libc::socklen_t) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// An IPv4 packet, as its raw socket gives it: nobody has looked at the checksum of what is in it.
fn of_v4(packet: &[u8]) -> Option<(&[u8], u32)> {
    let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let message = Icmpv4Slice::from_slice(packet.get(ip.slice().len()..)?).ok()?;
    let meant = (message.type_u8(), message.code_u8()) == (UNREACHABLE, FRAGMENTATION_NEEDED) && checksum_ok(message.slice());
    let [_, _, high, low] = message.bytes5to8();
    meant.then(|| (message.payload(), u32::from(u16::from_be_bytes([high, low]))))
}

/// An ICMPv6 message, as its raw socket gives it: the kernel has checked it.
fn of_v6(message: &[u8]) -> Option<(&[u8], u32)> {
    let message = Icmpv6Slice::from_slice(message).ok()?;
    (message.type_u8() == PACKET_TOO_BIG).then(|| (message.payload(), u32::from_be_bytes(message.bytes5to8())))
}

/// Of the whole message: a router may use the bytes that the header's type leaves free (RFC 4884).
fn checksum_ok(message: &[u8]) -> bool {
    Sum16BitWords::new().add_slice(message).ones_complement() == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_says_what_it_is_about_and_what_fits() {
        let mut v4 = vec![0x45; 20];
        v4.extend_from_slice(&[3, 4, 0, 0, 0, 0, 5, 120, b'q']);
        assert_eq!(of_v4(&v4), None, "its checksum is wrong");
        let sum: u32 = v4[20..].chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], *c.get(1).unwrap_or(&0)]))).sum();
        v4[22..24].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        assert_eq!(of_v4(&v4), Some((&b"q"[..], 1400)));
        v4[21] = 1;
        assert_eq!(of_v4(&v4), None);
        assert_eq!(of_v6(&[2, 0, 0, 0, 0, 0, 5, 120, b'q']), Some((&b"q"[..], 1400)));
        assert_eq!(of_v6(&[1, 0, 0, 0, 0, 0, 5, 120, b'q']), None);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            of_v4(&bytes);
            of_v6(&bytes);
        }
    }
}
