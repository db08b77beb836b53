//! Every segment that we make ourselves: to peers in the local TCP's name, and to the local TCP in a peer's.

use std::net::SocketAddr;

use super::live::Live;
use super::peer::local_shift;
use super::stage::Stage;
use crate::segment::{flags, Build, Segment};
use crate::seq::Seq;
use crate::store::Session;
use crate::tuple::FourTuple;

/// Most window that we tell a peer ourselves, scaled or not.
const MOST_WINDOW: u64 = 65_535;
/// Least window that a restored socket has: the smallest receive buffer (SOCK_MIN_RCVBUF, 2,304 bytes) takes it. More than
/// its buffer takes no socket may be granted: it takes back what it cannot hold, and is deaf from then on to a peer that has
/// used it, also to what that peer says of its own window. The local TCP opens its window itself, with its first ACK.
pub(super) const LEAST_WINDOW: u64 = 1152;

/// A segment to the peer that the local TCP does not know of. `ackable`: what it may acknowledge at the most (I1).
pub(super) fn to_peer(s: &Session, live: Option<&Live>, ackable: u64, bits: u8, seq: Seq, payload: &[u8]) -> Vec<u8> {
    let (ts_value, ts_recent) = live.map_or((s.ts_value, s.ts_recent), |l| (l.peer.time.shown(), l.peer.time.recent()));
    // The peer may not forget what the local TCP has yet to take, and nobody but the peer would give it.
    let ack = match live.map(|l| (l.stage, l.local.rcv_nxt())) {
        Some((Stage::Feeding { until, .. }, _)) => ackable.min(until),
        Some((Stage::Live, rcv_nxt)) => ackable.min(rcv_nxt),
        _ => ackable,
    };
    let shift = local_shift(s);
    // Once there is a TCP its window counts: what is beyond that waits for it in the store, and more each time. Before
    // that counts what was told.
    let room = match live {
        Some(l) if matches!(l.stage, Stage::Feeding { .. } | Stage::Live) => l.local.edge().saturating_sub(ack),
        // None is told only where that is true: half a step of a large scale would be none.
        Some(l) => l.peer.rcv_adv().saturating_sub(ack).max(LEAST_WINDOW).next_multiple_of(1 << shift),
        None => LEAST_WINDOW,
    };
    let mut packet = Vec::new();
    Build {
        source: s.open.tuple.local,
        destination: s.open.tuple.peer,
        seq,
        ack: s.in_seq(ack),
        flags: bits,
        window: (room.min(MOST_WINDOW) >> shift) as u16,
        timestamps: s.open.timestamps.then_some((ts_value, ts_recent)),
        payload,
    }
    .write(&mut packet);
    debug_assert!(Segment::parse(&packet).is_ok());
    packet
}

/// A segment of the peer's that the local TCP is to see, in the peer's numbers. Its input begins at `offset`.
pub(super) fn to_local(s: &Session, live: &Live, offset: u64, bits: u8, payload: &[u8]) -> Vec<u8> {
    let FourTuple { local, peer } = s.open.tuple;
    let mut packet = Vec::new();
    Build {
        source: peer,
        destination: local,
        seq: s.in_seq(offset),
        ack: s.out_seq(live.local.ackable(live.peer.una())),
        flags: bits,
        window: live.peer.window(),
        timestamps: s.open.timestamps.then_some((live.peer.time.recent(), live.peer.time.value())),
        payload,
    }
    .write(&mut packet);
    packet
}

/// The SYN-ACK of a half-open session once more, to its peer.
pub(super) fn syn_ack(s: &Session, live: &Live) -> Vec<u8> {
    // Our own limit is not in the record; what the peer can take, over an ordinary Ethernet, is safe.
    let most = if s.open.tuple.local.is_ipv4() { 1460 } else { 1440 };
    let options = syn_options(s.open.mss.min(most), s.open.shifts.map(|(_, ours)| ours), s.open.sack);
    let mut packet = Vec::new();
    Build {
        source: s.open.tuple.local,
        destination: s.open.tuple.peer,
        seq: s.open.isn_out,
        ack: s.in_seq(0),
        flags: flags::SYN | flags::ACK,
        // Nor is our window: the least that any socket has. The restored one opens it.
        window: LEAST_WINDOW as u16,
        timestamps: s.open.timestamps.then_some((live.peer.time.value(), live.peer.time.recent())),
        payload: &[],
    }
    .write_with(&options, &mut packet);
    packet
}

/// The peer's SYN once more, to the local TCP, with a number that is ours to choose: that of the last input byte before what
/// the application will read, which is at `from`. `acknowledges`: our number and timestamp.
pub(super) fn peers_syn(s: &Session, live: &Live, from: u64, bits: u8, acknowledges: (Seq, u32)) -> Vec<u8> {
    // Nor longer segments than get through, as far as we know by now.
    let mss = live.recovery.old_output.map_or(s.open.mss, |old| s.open.mss.min(old.mss(s)));
    let options = syn_options(mss, s.open.shifts.map(|(theirs, _)| theirs), s.open.sack);
    let FourTuple { local, peer } = s.open.tuple;
    let mut packet = Vec::new();
    Build {
        source: peer,
        destination: local,
        seq: s.in_seq(from).add(u64::from(u32::MAX)),
        ack: acknowledges.0,
        flags: bits,
        window: live.peer.window_bytes(s).min(u32::from(u16::MAX)) as u16,
        timestamps: s.open.timestamps.then_some((live.peer.time.recent(), acknowledges.1)),
        payload: &[],
    }
    .write_with(&options, &mut packet);
    packet
}

/// The options of a SYN beside the timestamps.
fn syn_options(mss: u16, shift: Option<u8>, sack: bool) -> Vec<u8> {
    let mut options = vec![2, 4];
    options.extend_from_slice(&mss.to_be_bytes());
    if let Some(shift) = shift {
        options.extend_from_slice(&[1, 3, 3, shift]);
    }
    if sack {
        options.extend_from_slice(&[1, 1, 4, 2]);
    }
    options
}

/// A reset of a connection that no session knows.
pub(super) fn reset(source: SocketAddr, destination: SocketAddr, seq: Seq, ack: Seq) -> Vec<u8> {
    let mut packet = Vec::new();
    Build { source, destination, seq, ack, flags: flags::RST | flags::ACK, window: 0, timestamps: None, payload: &[] }
        .write(&mut packet);
    packet
}
