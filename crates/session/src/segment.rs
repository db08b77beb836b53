//! A checked view of one TCP segment in its IP packet, and the few ways we write one.
//!
//! Parsed once, then trusted: every accessor is infallible. Byte order is handled here and nowhere else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::seq::Seq;

/// TCP flag bits (RFC 9293, section 3.1).
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Resets a connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
    /// Congestion was met (RFC 3168); on a SYN with CWR: that is understood.
    pub const ECE: u8 = 0x40;
    /// The sender has slowed down.
    pub const CWR: u8 = 0x80;
}

/// Why a packet is not a TCP segment that we can judge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ParseError {
    /// Shorter than its headers say.
    Truncated,
    /// Neither IPv4 nor IPv6, or with extension headers that we do not follow.
    NotIp,
    /// Not TCP.
    NotTcp,
    /// A fragment: its segment is elsewhere.
    Fragment,
    /// A header length that cannot be.
    BadLength,
}

/// TCP options that matter to a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Maximum segment size, on a SYN.
    pub mss: Option<u16>,
    /// Window scale shift, on a SYN.
    pub window_scale: Option<u8>,
    /// SACK permitted, on a SYN.
    pub sack_permitted: bool,
    /// Timestamp value and echo reply.
    pub timestamps: Option<(u32, u32)>,
}

/// A view of an IPv4 or IPv6 packet that holds a whole TCP header.
#[derive(Clone, Copy)]
pub struct Segment<'a> {
    packet: &'a [u8],
    tcp: usize,
    data: usize,
    end: usize,
}

fn be16(b: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([b[at], b[at + 1]])
}

fn be32(b: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// Most extension headers of IPv6 that are passed over; RFC 8200, section 4.1 has seven.
const MAX_EXTENSIONS: usize = 8;
/// What is written over an option.
const NOP: u8 = 1;

/// Where the TCP header of an IPv6 packet is, behind its extension headers (RFC 8200, section 4). What has another address
/// than the IP header says is refused: a source route that is not over yet, and a home address (RFC 6275).
fn behind_extensions(packet: &[u8]) -> Result<usize, ParseError> {
    let (mut kind, mut at) = (packet[6], 40);
    for n in 0..=MAX_EXTENSIONS {
        match kind {
            6 => return Ok(at),
            // Options for each hop come first, or not at all.
            0 if n > 0 => return Err(ParseError::NotIp),
            0 | 43 | 44 | 60 => {}
            _ => return Err(ParseError::NotTcp),
        }
        if at + 8 > packet.len() {
            return Err(ParseError::Truncated);
        }
        let length = match kind {
            // All of it in one piece is no fragment (RFC 6946).
            44 if be16(packet, at + 2) & 0xfff9 != 0 => return Err(ParseError::Fragment),
            44 => 8,
            _ => usize::from(packet[at + 1]) * 8 + 8,
        };
        if at + length > packet.len() {
            return Err(ParseError::Truncated);
        }
        if kind == 43 && packet[at + 3] != 0 || kind == 60 && names_home(&packet[at + 2..at + length]) {
            return Err(ParseError::NotIp);
        }
        (kind, at) = (packet[at], at + length);
    }
    Err(ParseError::NotIp)
}

/// Whether these options of IPv6 hold a home address.
fn names_home(mut options: &[u8]) -> bool {
    while let [kind, rest @ ..] = options {
        options = match (kind, rest) {
            (0, _) => rest,
            (0xc9, _) => return true,
            (_, [length, rest @ ..]) => rest.get(usize::from(*length)..).unwrap_or_default(),
            _ => return false,
        };
    }
    false
}

/// Whether an option is one that sessions know, or a signature, which is the local TCP's to judge. No other is negotiated:
/// Fast Open, Multipath TCP, Accurate ECN, and whatever is invented.
fn is_known(kind: u8) -> bool {
    matches!(kind, 2..=5 | 8) || signs(kind)
}

/// TCP-MD5 (RFC 2385), TCP-AO (RFC 5925).
fn signs(kind: u8) -> bool {
    matches!(kind, 19 | 29)
}

impl<'a> Segment<'a> {
    /// Checks the lengths and finds the parts.
    ///
    /// # Errors
    /// Says why these bytes are no TCP segment.
    pub fn parse(packet: &'a [u8]) -> Result<Segment<'a>, ParseError> {
        let first = *packet.first().ok_or(ParseError::Truncated)?;
        let (tcp, end) = match first >> 4 {
            4 => {
                if packet.len() < 20 {
                    return Err(ParseError::Truncated);
                }
                let header = usize::from(first & 15) * 4;
                if header < 20 {
                    return Err(ParseError::BadLength);
                }
                if packet[9] != 6 {
                    return Err(ParseError::NotTcp);
                }
                if be16(packet, 6) & 0x3fff != 0 {
                    return Err(ParseError::Fragment);
                }
                // A GSO packet of 64 KiB and more carries 0 here (BIG TCP).
                let total = match usize::from(be16(packet, 2)) {
                    0 => packet.len(),
                    n => n,
                };
                (header, total)
            }
            6 => {
                if packet.len() < 40 {
                    return Err(ParseError::Truncated);
                }
                let total = match usize::from(be16(packet, 4)) {
                    0 => packet.len(),
                    n => n + 40,
                };
                (behind_extensions(packet)?, total)
            }
            _ => return Err(ParseError::NotIp),
        };
        if end > packet.len() || tcp + 20 > end {
            return Err(ParseError::Truncated);
        }
        let data = tcp + usize::from(packet[tcp + 12] >> 4) * 4;
        if data < tcp + 20 {
            return Err(ParseError::BadLength);
        }
        if data > end {
            return Err(ParseError::Truncated);
        }
        Ok(Segment { packet, tcp, data, end })
    }

    /// Source address and port.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        SocketAddr::new(self.address(12, 8), be16(self.packet, self.tcp))
    }

    /// Destination address and port.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.address(16, 24), be16(self.packet, self.tcp + 2))
    }

    fn address(&self, v4: usize, v6: usize) -> IpAddr {
        let p = self.packet;
        if p[0] >> 4 == 4 {
            IpAddr::V4(Ipv4Addr::new(p[v4], p[v4 + 1], p[v4 + 2], p[v4 + 3]))
        } else {
            let mut a = [0; 16];
            a.copy_from_slice(&p[v6..v6 + 16]);
            IpAddr::V6(Ipv6Addr::from(a))
        }
    }

    /// Sequence number.
    #[must_use]
    pub fn seq(&self) -> Seq {
        Seq(be32(self.packet, self.tcp + 4))
    }

    /// Acknowledgement number; counts only with ACK set.
    #[must_use]
    pub fn ack(&self) -> Seq {
        Seq(be32(self.packet, self.tcp + 8))
    }

    /// Flag bits, as in [`flags`].
    #[must_use]
    pub fn flags(&self) -> u8 {
        self.packet[self.tcp + 13]
    }

    /// Whether all of these flag bits are set.
    #[must_use]
    pub fn has(&self, bits: u8) -> bool {
        self.flags() & bits == bits
    }

    /// Window as on the wire, unscaled.
    #[must_use]
    pub fn window(&self) -> u16 {
        be16(self.packet, self.tcp + 14)
    }

    /// Payload bytes.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        &self.packet[self.data..self.end]
    }

    /// Sequence space that it takes: payload, and one each for SYN and FIN.
    #[must_use]
    pub fn sequence_length(&self) -> u32 {
        let f = self.flags();
        (self.end - self.data) as u32 + u32::from(f & flags::SYN != 0) + u32::from(f & flags::FIN != 0)
    }

    /// The options we know; unknown or malformed ones are passed over.
    #[must_use]
    pub fn options(&self) -> Options {
        let mut found = Options::default();
        self.each_option(|kind, at| match (kind, &self.packet[at.start + 2..at.end]) {
            // 0 says nothing.
            (2, [a, b]) if (*a, *b) != (0, 0) => found.mss = Some(u16::from_be_bytes([*a, *b])),
            // RFC 7323, section 2.3: a shift above 14 is used as 14.
            (3, [shift]) => found.window_scale = Some((*shift).min(14)),
            (4, []) => found.sack_permitted = true,
            (8, v @ [_, _, _, _, _, _, _, _]) => found.timestamps = Some((be32(v, 0), be32(v, 4))),
            _ => {}
        });
        found
    }

    /// The blocks of a selective acknowledgement (RFC 2018): the first number of each, and the one behind its last.
    pub fn sacks(&self) -> impl Iterator<Item = (Seq, Seq)> + 'a {
        let mut blocks = 0..0;
        self.each_option(|kind, at| {
            if kind == 5 {
                blocks = at.start + 2..at.end;
            }
        });
        self.packet[blocks].chunks_exact(8).map(|b| (Seq(be32(b, 0)), Seq(be32(b, 4))))
    }

    /// Whether it is signed (TCP-MD5, TCP-AO): whoever changes it makes it worthless.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        let mut signed = false;
        self.each_option(|kind, _| signed |= signs(kind));
        signed
    }

    /// Whether it has options that sessions know nothing of.
    #[must_use]
    pub fn has_unknown_options(&self) -> bool {
        // Most have none, or timestamps.
        match &self.packet[self.tcp + 20..self.data] {
            [] | [NOP, NOP, 8, 10, _, _, _, _, _, _, _, _] => false,
            _ => {
                let mut unknown = false;
                self.each_option(|kind, _| unknown |= !is_known(kind));
                unknown
            }
        }
    }

    /// Whether the TCP checksum is right.
    #[must_use]
    pub fn checksum_ok(&self) -> bool {
        fold(self.pseudo_sum(self.end - self.tcp) + sum(&self.packet[self.tcp..self.end])) == 0xffff
    }

    /// Of the pseudo header with this length of header and payload.
    fn pseudo_sum(&self, length: usize) -> u64 {
        let addresses = if self.packet[0] >> 4 == 4 { &self.packet[12..20] } else { &self.packet[8..40] };
        sum(addresses) + 6 + length as u64
    }

    /// Copies the packet into `out` with other sequence and acknowledgement numbers and a full checksum: after
    /// NFQUEUE replaced a payload, the kernel takes no offload for granted.
    pub fn rewrite(&self, seq: Seq, ack: Seq, out: &mut Vec<u8>) {
        self.copy_to(out);
        self.put_seq(seq, out);
        self.put_ack(ack, out);
        self.finish(out);
    }

    /// The same with another acknowledgement number, with nothing in it urgent, and without options that sessions do not know.
    pub fn rewrite_inline(&self, ack: Seq, out: &mut Vec<u8>) {
        self.copy_to(out);
        self.put_ack(ack, out);
        out[self.tcp + 13] &= !flags::URG;
        self.blank_unknown_options(out);
        self.finish(out);
    }

    /// What of a SYN (or SYN-ACK) a session can go on with: without payload, which whoever has sent it sends again
    /// when it is not acknowledged, without ECN, and without options that no restored socket knows. None: it is that already,
    /// or it is signed.
    #[must_use]
    pub fn plain_syn(&self) -> Option<Vec<u8>> {
        let ecn = self.flags() & (flags::ECE | flags::CWR) != 0 || self.packet[self.tcp + 12] & 0xf != 0;
        let more = ecn || self.data < self.end || self.has_unknown_options() || self.has(flags::FIN | flags::ACK);
        (more && !self.is_signed()).then(|| {
            let fin = if self.has(flags::ACK) { flags::FIN } else { 0 };
            self.header_only(self.flags() & !(flags::ECE | flags::CWR | flags::URG | fin))
        })
    }

    /// What the segment says beside its bytes, and what follows them. None: it has none, or it is signed.
    #[must_use]
    pub fn bare(&self) -> Option<Vec<u8>> {
        let more = self.data < self.end || self.has_unknown_options();
        (more && !self.is_signed()).then(|| self.header_only(self.flags() & !(flags::FIN | flags::URG | flags::PSH)))
    }

    fn header_only(&self, flag_bits: u8) -> Vec<u8> {
        let mut out = self.packet[..self.data].to_vec();
        // Accurate ECN's bit beside the length.
        out[self.tcp + 12] &= 0xf0;
        out[self.tcp + 13] = flag_bits;
        self.blank_unknown_options(&mut out);
        if self.packet[0] >> 4 == 4 {
            out[2..4].copy_from_slice(&(self.data as u16).to_be_bytes());
            out[10..12].fill(0);
            let check = !fold(sum(&out[..self.tcp]));
            out[10..12].copy_from_slice(&check.to_be_bytes());
        } else {
            out[4..6].copy_from_slice(&((self.data - 40) as u16).to_be_bytes());
        }
        self.finish(&mut out);
        out
    }

    // ---- changing a copy -----------------------------------------------------------------------------

    /// Makes `out` the packet, without what a card may have put behind it.
    pub(crate) fn copy_to(&self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.packet[..self.end]);
    }

    /// Sets the sequence number of a copy.
    pub(crate) fn put_seq(&self, seq: Seq, out: &mut [u8]) {
        out[self.tcp + 4..self.tcp + 8].copy_from_slice(&seq.0.to_be_bytes());
    }

    /// Sets the acknowledgement number of a copy.
    pub(crate) fn put_ack(&self, ack: Seq, out: &mut [u8]) {
        out[self.tcp + 8..self.tcp + 12].copy_from_slice(&ack.0.to_be_bytes());
    }

    /// Sets the ports of a copy.
    pub(crate) fn put_ports(&self, source: u16, destination: u16, out: &mut [u8]) {
        out[self.tcp..self.tcp + 2].copy_from_slice(&source.to_be_bytes());
        out[self.tcp + 2..self.tcp + 4].copy_from_slice(&destination.to_be_bytes());
    }

    /// Sets the window of a copy, as on the wire.
    pub(crate) fn put_window(&self, window: u16, out: &mut [u8]) {
        out[self.tcp + 14..self.tcp + 16].copy_from_slice(&window.to_be_bytes());
    }

    /// Sets the timestamp value of a copy.
    pub(crate) fn put_timestamp(&self, value: u32, out: &mut [u8]) {
        self.each_option(|kind, at| {
            if (kind, at.len()) == (8, 10) {
                out[at.start + 2..at.start + 6].copy_from_slice(&value.to_be_bytes());
            }
        });
    }

    /// Kind and place in the packet of each option that has a length; what is malformed, and all behind it, is passed over.
    pub(crate) fn each_option(&self, mut f: impl FnMut(u8, std::ops::Range<usize>)) {
        let (mut at, end) = (self.tcp + 20, self.data);
        while at < end {
            match self.packet[at] {
                0 => return,
                1 => at += 1,
                kind => {
                    let length = if at + 1 < end { usize::from(self.packet[at + 1]) } else { 0 };
                    if length < 2 || at + length > end {
                        return;
                    }
                    f(kind, at..at + length);
                    at += length;
                }
            }
        }
    }

    fn blank_unknown_options(&self, out: &mut [u8]) {
        self.each_option(|kind, at| {
            if !is_known(kind) {
                out[at].fill(NOP);
            }
        });
    }

    /// Gives a copy its full checksum.
    pub(crate) fn finish(&self, out: &mut [u8]) {
        out[self.tcp + 16..self.tcp + 18].fill(0);
        let total = fold(self.pseudo_sum(out.len() - self.tcp) + sum(&out[self.tcp..]));
        out[self.tcp + 16..self.tcp + 18].copy_from_slice(&(!total).to_be_bytes());
    }
}

/// A copy of a packet that can go anywhere: its checksum is right, and full where `vouched` had left that to
/// hardware. None if it is no TCP segment or its checksum is wrong.
#[must_use]
pub fn completed(packet: &[u8], vouched: bool) -> Option<Vec<u8>> {
    let segment = Segment::parse(packet).ok()?;
    if !vouched && !segment.checksum_ok() {
        return None;
    }
    let mut out = Vec::new();
    segment.rewrite(segment.seq(), segment.ack(), &mut out);
    Some(out)
}

/// The RST that a host without such a connection answers with, to a segment that carries an ACK.
#[must_use]
pub fn reset_for(segment: &Segment<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    Build {
        source: segment.destination(),
        destination: segment.source(),
        seq: segment.ack(),
        ack: Seq(0),
        flags: flags::RST,
        window: 0,
        timestamps: None,
        payload: &[],
    }
    .write(&mut out);
    out
}

pub(crate) fn sum(bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(4);
    let mut total: u64 = 0;
    for c in &mut chunks {
        total += u64::from(be32(c, 0));
    }
    let mut last = [0; 4];
    let rest = chunks.remainder();
    last[..rest.len()].copy_from_slice(rest);
    total + u64::from(u32::from_be_bytes(last))
}

pub(crate) fn fold(mut total: u64) -> u16 {
    while total >> 16 != 0 {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// What a segment that we make ourselves says.
#[derive(Clone, Copy, Debug)]
pub struct Build<'a> {
    /// Sender.
    pub source: SocketAddr,
    /// Receiver.
    pub destination: SocketAddr,
    /// Sequence number.
    pub seq: Seq,
    /// Acknowledgement number.
    pub ack: Seq,
    /// Flag bits.
    pub flags: u8,
    /// Window, unscaled.
    pub window: u16,
    /// Timestamp value and echo, where the session uses them.
    pub timestamps: Option<(u32, u32)>,
    /// Payload.
    pub payload: &'a [u8],
}

impl Build<'_> {
    /// Writes the whole IP packet into `out`, checksums included. Both addresses are of one family.
    pub fn write(&self, out: &mut Vec<u8>) {
        self.write_with(&[], out);
    }

    /// The same with further options, as on a SYN; their length is a multiple of four.
    pub fn write_with(&self, further: &[u8], out: &mut Vec<u8>) {
        debug_assert!(further.len().is_multiple_of(4) && further.len() <= 28, "options are padded and there is room");
        out.clear();
        let options = further.len() + if self.timestamps.is_some() { 12 } else { 0 };
        let tcp_len = 20 + options + self.payload.len();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                out.extend_from_slice(&[0x45, 0]);
                out.extend_from_slice(&((20 + tcp_len) as u16).to_be_bytes());
                // No fragments, TCP; and the longest life, for either end may want it (IP_MINTTL, RFC 5082).
                out.extend_from_slice(&[0, 0, 0x40, 0, 255, 6, 0, 0]);
                out.extend_from_slice(&s.octets());
                out.extend_from_slice(&d.octets());
                let check = !fold(sum(&out[..20]));
                out[10..12].copy_from_slice(&check.to_be_bytes());
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                out.extend_from_slice(&[0x60, 0, 0, 0]);
                out.extend_from_slice(&(tcp_len as u16).to_be_bytes());
                out.extend_from_slice(&[6, 255]);
                out.extend_from_slice(&s.octets());
                out.extend_from_slice(&d.octets());
            }
            _ => unreachable!("a session has one address family"),
        }
        out.extend_from_slice(&self.source.port().to_be_bytes());
        out.extend_from_slice(&self.destination.port().to_be_bytes());
        out.extend_from_slice(&self.seq.0.to_be_bytes());
        out.extend_from_slice(&self.ack.0.to_be_bytes());
        out.extend_from_slice(&[(((20 + options) / 4) << 4) as u8, self.flags]);
        out.extend_from_slice(&self.window.to_be_bytes());
        out.extend_from_slice(&[0, 0, 0, 0]);
        if let Some((value, echo)) = self.timestamps {
            out.extend_from_slice(&[1, 1, 8, 10]);
            out.extend_from_slice(&value.to_be_bytes());
            out.extend_from_slice(&echo.to_be_bytes());
        }
        out.extend_from_slice(further);
        out.extend_from_slice(self.payload);
        let (tcp, check) = {
            let view = Segment::parse(out).expect("what we build parses");
            (view.tcp, !fold(view.pseudo_sum(out.len() - view.tcp) + sum(&out[view.tcp..])))
        };
        out[tcp + 16..tcp + 18].copy_from_slice(&check.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn build(v6: bool, payload: &[u8], ts: Option<(u32, u32)>) -> Vec<u8> {
        let (s, d) = if v6 { ("[2001:db8::1]:5", "[2001:db8::2]:6") } else { ("192.0.2.1:5", "192.0.2.2:6") };
        let mut out = Vec::new();
        Build {
            source: s.parse().unwrap(),
            destination: d.parse().unwrap(),
            seq: Seq(7),
            ack: Seq(9),
            flags: flags::ACK | flags::PSH,
            window: 1000,
            timestamps: ts,
            payload,
        }
        .write(&mut out);
        out
    }

    fn looked_at(bytes: &[u8]) {
        if let Ok(s) = Segment::parse(bytes) {
            let _ = (s.options(), s.checksum_ok(), s.payload(), s.sequence_length(), s.source(), s.is_signed());
            for changed in [s.plain_syn(), s.bare()].into_iter().flatten() {
                let c = Segment::parse(&changed).expect("a segment as before");
                assert!(c.checksum_ok() && c.payload().is_empty() && !c.has_unknown_options());
            }
        }
    }

    proptest! {
        #[test]
        fn what_we_build_parses_and_agrees_with_etherparse(
            v6 in any::<bool>(), payload in proptest::collection::vec(any::<u8>(), 0..300),
            ts in proptest::option::of(any::<(u32, u32)>()), seq in any::<u32>(), ack in any::<u32>()
        ) {
            let packet = build(v6, &payload, ts);
            let s = Segment::parse(&packet).unwrap();
            prop_assert!(s.checksum_ok());
            prop_assert_eq!(s.payload(), &payload[..]);
            prop_assert_eq!(s.options().timestamps, ts);
            let mut changed = Vec::new();
            s.rewrite(Seq(seq), Seq(ack), &mut changed);
            let c = Segment::parse(&changed).unwrap();
            prop_assert!(c.checksum_ok());
            prop_assert_eq!((c.seq(), c.ack()), (Seq(seq), Seq(ack)));
            let theirs = etherparse::SlicedPacket::from_ip(&changed).unwrap();
            let Some(etherparse::TransportSlice::Tcp(tcp)) = theirs.transport else { panic!() };
            prop_assert_eq!(tcp.sequence_number(), seq);
            prop_assert_eq!(tcp.payload(), &payload[..]);
            let expect = match theirs.net.unwrap() {
                etherparse::NetSlice::Ipv4(ip) => tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()).unwrap(),
                etherparse::NetSlice::Ipv6(ip) => tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination()).unwrap(),
                _ => panic!(),
            };
            prop_assert_eq!(tcp.checksum(), expect);
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100), head in any::<bool>()) {
            let mut bytes = bytes;
            if head && bytes.len() > 20 { bytes[0] = 0x45; bytes[9] = 6; bytes[6] = 0; bytes[7] = 0; bytes[2] = 0; }
            looked_at(&bytes);
        }

        #[test]
        fn garbage_of_ipv6_never_panics(bytes in proptest::collection::vec(any::<u8>(), 48..200), kind in 0usize..5) {
            let mut bytes = bytes;
            (bytes[0], bytes[4], bytes[5], bytes[6]) = (0x60, 0, 0, [0, 43, 44, 60, 6][kind]);
            for at in (40..bytes.len() - 8).step_by(8) {
                bytes[at] = [6, 60, 43, 44][usize::from(bytes[at]) % 4];
                bytes[at + 1] %= 3;
            }
            looked_at(&bytes);
        }

        #[test]
        fn a_flipped_bit_breaks_the_checksum(payload in proptest::collection::vec(any::<u8>(), 1..64), bit in 0usize..1000) {
            let mut packet = build(false, &payload, None);
            let at = 20 + bit / 8 % (packet.len() - 20);
            packet[at] ^= 1 << (bit % 8);
            if let Ok(s) = Segment::parse(&packet) {
                prop_assert!(!s.checksum_ok());
            }
        }
    }

    /// The packet with these extension headers, each with the kind of header that it is.
    fn extended(packet: &[u8], headers: &[(u8, &[u8])]) -> Vec<u8> {
        let mut out = packet[..40].to_vec();
        let all: usize = headers.iter().map(|(_, h)| h.len()).sum();
        out[4..6].copy_from_slice(&((packet.len() - 40 + all) as u16).to_be_bytes());
        for (i, (kind, header)) in headers.iter().enumerate() {
            let before = if i == 0 { 6 } else { out.len() - headers[i - 1].1.len() };
            out[before] = *kind;
            out.extend_from_slice(header);
            let at = out.len() - header.len();
            out[at] = 6;
        }
        out.extend_from_slice(&packet[40..]);
        out
    }

    #[test]
    fn extension_headers_of_ipv6_are_passed_over() {
        let plain = build(true, b"hello", Some((1, 2)));
        let pad = [0, 0, 1, 4, 0, 0, 0, 0];
        let long = [&[0, 2, 1, 20][..], &[0; 20]].concat();
        let (route, over) = ([0, 2, 4, 1].repeat(6), [&[0, 2, 4, 0][..], &[0; 20]].concat());
        let (atomic, first, later) = ([0, 0, 0, 0, 0, 0, 0, 9], [0, 0, 0, 1, 0, 0, 0, 9], [0, 0, 0, 8, 0, 0, 0, 9]);
        let home = [&[0, 2, 1, 2, 0, 0, 0xc9, 16][..], &[7; 16]].concat();
        for headers in [
            &[(0, &pad[..])][..],
            &[(60, &pad)],
            &[(60, &long)],
            &[(43, &over)],
            &[(44, &atomic)],
            &[(0, &long), (60, &pad), (43, &over), (44, &atomic), (60, &long)],
        ] {
            let packet = extended(&plain, headers);
            let s = Segment::parse(&packet).unwrap();
            assert!(s.checksum_ok(), "{headers:?}");
            assert_eq!((s.payload(), s.source().port(), s.options().timestamps), (&b"hello"[..], 5, Some((1, 2))));
            let mut changed = Vec::new();
            s.rewrite(Seq(70), Seq(90), &mut changed);
            let bare = s.bare().unwrap();
            for (changed, payload) in [(&changed, &b"hello"[..]), (&bare, b"")] {
                let c = Segment::parse(changed).unwrap();
                assert!(c.checksum_ok() && c.payload() == payload);
                let theirs = etherparse::SlicedPacket::from_ip(changed).unwrap();
                assert!(matches!(theirs.transport, Some(etherparse::TransportSlice::Tcp(tcp)) if tcp.payload() == payload));
            }
            // Cut short anywhere it is no segment.
            for n in 0..packet.len() {
                assert!(Segment::parse(&packet[..n]).is_err());
            }
        }
        for (headers, error) in [
            (&[(43, &route[..])][..], ParseError::NotIp),
            (&[(60, &home)], ParseError::NotIp),
            (&[(60, &pad), (0, &pad)], ParseError::NotIp),
            (&[(60, &pad[..]); 9], ParseError::NotIp),
            (&[(44, &first)], ParseError::Fragment),
            (&[(0, &pad), (44, &later)], ParseError::Fragment),
            (&[(50, &pad)], ParseError::NotTcp),
        ] {
            assert_eq!(Segment::parse(&extended(&plain, headers)).map(|_| ()), Err(error), "{headers:?}");
        }
    }

    #[test]
    fn options_of_a_syn() {
        let mut p = build(false, &[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 3, 3, 7], None);
        p[32] = 10 << 4;
        let o = Segment::parse(&p).unwrap().options();
        assert_eq!(o, Options { mss: Some(1460), window_scale: Some(7), sack_permitted: true, timestamps: Some((1, 2)) });
    }
}
