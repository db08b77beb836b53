//! What routers say of packets that were too long for them: ICMP "fragmentation needed" (RFC 1191) and "packet too big"
//! (RFC 8201). They quote the beginning of the packet, as it was on the wire.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::segment::{fold, sum};
use crate::seq::Seq;
use crate::tuple::FourTuple;

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
/// Least that any path is taken to be: for IPv4 as Linux has it (min_pmtu), for IPv6 as the protocol has it. Less is a lie, or
/// would be (RFC 5927, section 7).
const LEAST: [u32; 2] = [552, 1280];
/// Lengths that are tried one after another where nobody says what would fit.
const STEPS: [u32; 2] = [1280, 576];

/// The packet that was too long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Quoted {
    /// Its ends, ours first.
    pub tuple: FourTuple,
    /// Its sequence number.
    pub seq: Seq,
    /// Its length, IP header included.
    pub length: u32,
}

impl Quoted {
    /// Of an IP packet of ours, or what is quoted of it: its first segment's header up to the sequence number.
    pub fn parse(packet: &[u8]) -> Option<Quoted> {
        let be16 = |at: usize| Some(u16::from_be_bytes(*packet.get(at..)?.first_chunk()?));
        let (tcp, length, ips): (usize, u32, (IpAddr, IpAddr)) = match packet.first()? >> 4 {
            4 => {
                let header = usize::from(packet[0] & 0xf) * 4;
                let first = be16(6)? & 0x1fff == 0;
                if header < 20 || *packet.get(9)? != TCP || !first {
                    return None;
                }
                let ip = |at: usize| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?));
                (header, u32::from(be16(2)?), (ip(12)?.into(), ip(16)?.into()))
            }
            6 => {
                if *packet.get(6)? != TCP {
                    return None;
                }
                let ip = |at: usize| Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?));
                (40, 40 + u32::from(be16(4)?), (ip(8)?.into(), ip(24)?.into()))
            }
            _ => return None,
        };
        let seq = u32::from_be_bytes(*packet.get(tcp + 4..)?.first_chunk()?);
        let tuple = FourTuple { local: SocketAddr::new(ips.0, be16(tcp)?), peer: SocketAddr::new(ips.1, be16(tcp + 2)?) };
        Some(Quoted { tuple, seq: Seq(seq), length })
    }

    /// What fits, if a router says so (0: it does not); never less than any path takes. None: this packet would have, too.
    pub fn fits(&self, mtu: u32) -> Option<u32> {
        let v4 = self.tuple.local.is_ipv4();
        let mtu = if mtu == 0 { shorter(self.length, v4) } else { mtu.max(LEAST[usize::from(!v4)]) };
        (mtu < self.length).then_some(mtu)
    }

    /// The message about it, as a router would send it.
    pub fn message(&self, mtu: u32) -> Vec<u8> {
        let tuple = &self.tuple;
        let mut out = Vec::new();
        match (tuple.local.ip(), tuple.peer.ip()) {
            (IpAddr::V4(local), IpAddr::V4(peer)) => {
                ip_v4(peer, local, 20 + 8 + 20 + 8, ICMP, &mut out);
                out.extend_from_slice(&[3, 4, 0, 0, 0, 0]);
                out.extend_from_slice(&(mtu.min(u32::from(u16::MAX)) as u16).to_be_bytes());
                ip_v4(local, peer, self.length as u16, TCP, &mut out);
            }
            (IpAddr::V6(local), IpAddr::V6(peer)) => {
                ip_v6(peer, local, 8 + 40 + 8, ICMP_V6, &mut out);
                out.extend_from_slice(&[2, 0, 0, 0]);
                out.extend_from_slice(&mtu.to_be_bytes());
                ip_v6(local, peer, self.length.saturating_sub(40) as u16, TCP, &mut out);
            }
            _ => unreachable!("a session has one address family"),
        }
        out.extend_from_slice(&tuple.local.port().to_be_bytes());
        out.extend_from_slice(&tuple.peer.port().to_be_bytes());
        out.extend_from_slice(&self.seq.0.to_be_bytes());
        let (at, pseudo) = match tuple.local {
            SocketAddr::V4(_) => (20, 0),
            SocketAddr::V6(_) => (40, sum(&out[8..40]) + (out.len() - 40) as u64 + u64::from(ICMP_V6)),
        };
        let check = !fold(pseudo + sum(&out[at..]));
        out[at + 2..at + 4].copy_from_slice(&check.to_be_bytes());
        out
    }
}

/// What is tried next when packets of this length seem not to get through.
pub(crate) fn shorter(length: u32, v4: bool) -> u32 {
    let least = LEAST[usize::from(!v4)];
    STEPS.into_iter().find(|step| *step < length).unwrap_or(least).max(least)
}

fn ip_v4(source: Ipv4Addr, destination: Ipv4Addr, length: u16, protocol: u8, out: &mut Vec<u8>) {
    let at = out.len();
    out.extend_from_slice(&[0x45, 0]);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&[0, 0, 0x40, 0, 64, protocol, 0, 0]);
    out.extend_from_slice(&source.octets());
    out.extend_from_slice(&destination.octets());
    let check = !fold(sum(&out[at..]));
    out[at + 10..at + 12].copy_from_slice(&check.to_be_bytes());
}

fn ip_v6(source: Ipv6Addr, destination: Ipv6Addr, length: u16, protocol: u8, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0x60, 0, 0, 0]);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&[protocol, 64]);
    out.extend_from_slice(&source.octets());
    out.extend_from_slice(&destination.octets());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::Build;
    use proptest::prelude::*;

    fn packet(v6: bool, bytes: usize) -> (FourTuple, Vec<u8>) {
        let (local, peer) =
            if v6 { ("[2001:db8::200]:5555", "[2001:db8::9]:1000") } else { ("192.0.2.200:5555", "192.0.2.9:1000") };
        let tuple = FourTuple { local: local.parse().unwrap(), peer: peer.parse().unwrap() };
        let mut out = Vec::new();
        Build {
            source: tuple.local,
            destination: tuple.peer,
            seq: Seq(77),
            ack: Seq(1),
            flags: 16,
            window: 1,
            timestamps: None,
            payload: &vec![7; bytes],
        }
        .write(&mut out);
        (tuple, out)
    }

    #[test]
    fn a_quotation_says_which_packet_it_was() {
        for v6 in [false, true] {
            let (tuple, packet) = packet(v6, 1400);
            let whole = Quoted::parse(&packet).unwrap();
            assert_eq!(whole, Quoted { tuple, seq: Seq(77), length: packet.len() as u32 });
            let header = if v6 { 40 } else { 20 };
            assert_eq!(Quoted::parse(&packet[..header + 8]), Some(whole), "the first eight bytes of TCP are enough");
            assert_eq!(Quoted::parse(&packet[..header + 7]), None);
            // What we say of it ourselves quotes the same.
            let message = whole.message(1300);
            assert_eq!(Quoted::parse(&message[header + 8..]), Some(whole));
            let pseudo = if v6 { sum(&message[8..40]) + (message.len() - 40) as u64 + 58 } else { 0 };
            assert_eq!(fold(pseudo + sum(&message[header..])), 0xffff);
        }
        // No first fragment, and no TCP.
        for (at, byte) in [(7, 1), (9, 17)] {
            let mut other = packet(false, 10).1;
            other[at] = byte;
            assert_eq!(Quoted::parse(&other), None);
        }
    }

    #[test]
    fn nobody_can_say_that_less_fits_than_any_path_takes() {
        let quoted = |v6| Quoted::parse(&packet(v6, 1400).1).unwrap();
        assert_eq!((quoted(false).fits(1), quoted(false).fits(552), quoted(true).fits(68)), (Some(552), Some(552), Some(1280)));
        assert_eq!((quoted(false).fits(1400), quoted(false).fits(1440), quoted(false).fits(u32::MAX)), (Some(1400), None, None));
        // An old router does not say what fits.
        assert_eq!((quoted(false).fits(0), quoted(true).fits(0)), (Some(1280), Some(1280)));
        assert_eq!(([1281, 1280, 576, 100].map(|n| shorter(n, true)), shorter(900, false)), ([1280, 576, 552, 552], 1280));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100), head in any::<u8>(), mtu in any::<u32>()) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = if head & 1 == 0 { 0x40 | head >> 4 } else { 0x60 };
            }
            if let Some(quoted) = Quoted::parse(&bytes) {
                prop_assert!(quoted.fits(mtu).is_none_or(|fits| fits < quoted.length && fits >= 552));
                quoted.message(mtu);
            }
        }
    }
}
