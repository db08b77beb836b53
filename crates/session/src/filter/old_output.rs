//! Output of a session's former life that its peer has yet to acknowledge, where the local half is new and does not have
//! it (engine `splice`): sent by ourselves, in order, within the peer's window and what the network seems to take
//! (RFC 5681, RFC 6582). What the new half says waits until all of it is acknowledged.
//!
//! Nothing is known of the path either. What a router says of packets that are too long for it is heard here, for what we
//! send ourselves and, corrected, for what the halves send; where no router says so, what is lost again and again is sent
//! in shorter ones (RFC 4821).

use std::time::Duration;

use super::{Action, Filter};
use crate::bytes;
use crate::icmp::{shorter, Quoted};
use crate::segment::flags;
use crate::seq;
use crate::store::Session;
use crate::tuple::{FourTuple, SessionId};
use crate::Now;

/// When the first segment is sent again: nothing is known of the way yet, and most are short.
const EARLY: [Duration; 3] = [Duration::from_millis(20), Duration::from_millis(40), Duration::from_millis(80)];
/// And once something was acknowledged; twice as long each time that nothing is.
const RTO: Duration = Duration::from_millis(200);
const MAX_DOUBLINGS: u32 = 4;
/// Segments under way at the beginning (RFC 6928), and after a loss.
const INITIAL: u64 = 10;
const AFTER_LOSS: u64 = 2;
/// Most bytes under way.
const MAX_CWND: u64 = 1 << 20;
/// So many acknowledgements of the same mean that a segment is lost.
const DUPLICATES: u32 = 3;

/// Every so many timeouts in a row with nothing acknowledged between them, shorter packets are tried.
const LOST: u32 = 2;

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct OldOutput {
    /// Offset behind it; a FIN counts one.
    end: u64,
    /// Sent up to here; and, before what was sent again, up to there.
    nxt: u64,
    highest: u64,
    cwnd: u64,
    /// A loss is being mended until this is acknowledged.
    recover: u64,
    duplicates: u32,
    next: Now,
    tries: u32,
    /// Timeouts since something was acknowledged.
    lost: u32,
    /// Longest packet.
    longest: u32,
}

impl OldOutput {
    /// What the peer was shown of our numbers, as far as we know: what it has is not far from that.
    pub fn shown(&self) -> u64 {
        self.highest
    }

    /// The longest segment that seems to get through, options included.
    pub fn mss(&self, s: &Session) -> u16 {
        (self.longest - headers(&s.open.tuple)) as u16
    }
}

impl Filter {
    /// Starts to send what there is.
    pub(super) fn start_old_output(&mut self, now: Now, id: SessionId) {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get_mut(&id)) else { return };
        let end = s.out_sendable();
        if live.peer.una() >= end {
            return;
        }
        let (nxt, cwnd, next) = (live.peer.una(), INITIAL * u64::from(s.open.mss), now + EARLY[0]);
        let longest = longest(s);
        let old = OldOutput { end, nxt, highest: nxt, cwnd, recover: 0, duplicates: 0, next, tries: 0, lost: 0, longest };
        live.recovery.get_or_make().old_output = Some(old);
        self.timers.set(next, id);
        self.send_old_output(id);
    }

    /// Sends what window and network allow.
    fn send_old_output(&mut self, id: SessionId) {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get(&id)) else { return };
        let Some(old) = live.recovery.old_output else { return };
        let window = u64::from(live.peer.window_bytes(s));
        let limit = (live.peer.una() + old.cwnd.min(window)).min(old.end);
        let mut nxt = old.nxt.max(live.peer.una());
        while nxt < limit {
            let sent = self.send_piece(id, nxt, limit);
            if sent == nxt {
                break;
            }
            nxt = sent;
        }
        if let Some(old) = self.live.get_mut(&id).and_then(|l| l.recovery.get_mut_if_any()?.old_output.as_mut()) {
            (old.nxt, old.highest) = (nxt, old.highest.max(nxt));
        }
    }

    /// Sends one segment from an offset on. Returns the offset behind it: the same if nothing may leave.
    fn send_piece(&mut self, id: SessionId, at: u64, limit: u64) -> u64 {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get(&id)) else { return at };
        if !self.may_leave(live.all_pos()) {
            return at;
        }
        let start = s.out_acked.min(s.out_done);
        let Some(old) = live.recovery.old_output else { return at };
        let most = u64::from(old.mss(s)) - if s.open.timestamps { 12 } else { 0 };
        let end = (at + most).min(limit).min(s.out_done);
        let payload = bytes::copy(&s.output, (at.min(end) - start) as usize..(end - start) as usize);
        let fin = s.out_fin && end == s.out_done && limit > s.out_done;
        let bits = flags::ACK | if fin { flags::FIN } else { flags::PSH };
        let packet = self.segment_to_peer(id, bits, s.out_seq(at), &payload);
        self.actions.push(Action::SendPeer(packet));
        end + u64::from(fin)
    }

    fn resend_piece(&mut self, id: SessionId) {
        if let Some((acked, end)) = self.live.get(&id).and_then(|l| Some((l.peer.una(), l.recovery.old_output?.end))) {
            self.send_piece(id, acked, end);
        }
    }

    /// The peer has acknowledged `fresh` bytes more, or (0) the same as before.
    pub(super) fn old_output_acked(&mut self, now: Now, id: SessionId, fresh: u64) {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get_mut(&id)) else { return };
        let Some(old) = live.recovery.get_mut_if_any().and_then(|r| r.old_output.as_mut()) else { return };
        let acked = live.peer.una();
        if acked >= old.end {
            live.recovery.get_or_make().old_output = None;
            return self.judge_held(now, id);
        }
        if fresh > 0 {
            old.cwnd = (old.cwnd + fresh).min(MAX_CWND);
            (old.duplicates, old.tries, old.next, old.lost) = (0, EARLY.len() as u32, now + RTO, 0);
            if acked < old.recover {
                // The next hole.
                self.resend_piece(id);
            }
        } else if old.nxt > acked {
            old.duplicates += 1;
            if old.duplicates == DUPLICATES && acked >= old.recover {
                old.recover = old.nxt;
                old.cwnd = (old.cwnd / 2).max(AFTER_LOSS * u64::from(s.open.mss));
                self.resend_piece(id);
            }
        }
        self.send_old_output(id);
    }

    pub(super) fn old_output_timeout(&mut self, now: Now, id: SessionId) -> Option<Now> {
        let (s, live) = (self.store.get(id)?, self.live.get_mut(&id)?);
        let old = live.recovery.get_mut_if_any()?.old_output.as_mut()?;
        if old.next > now {
            return Some(old.next);
        }
        old.tries += 1;
        let doublings = old.tries.saturating_sub(EARLY.len() as u32).min(MAX_DOUBLINGS);
        old.next = now + EARLY.get(old.tries as usize).copied().unwrap_or(RTO * 2u32.pow(doublings));
        // Everything after the hole may be lost, too.
        old.nxt = live.peer.una();
        old.recover = 0;
        old.duplicates = 0;
        old.cwnd = AFTER_LOSS * u64::from(s.open.mss);
        if live.peer.window() > 0 {
            old.lost += 1;
            if old.lost % LOST == 0 {
                old.longest = old.longest.min(shorter(old.longest, s.open.tuple.local.is_ipv4()));
            }
        }
        let next = old.next;
        if live.peer.window() == 0 {
            // An old byte asks whether it has opened: a new one would be beyond it.
            self.probe(id);
        } else {
            self.send_old_output(id);
        }
        Some(next)
    }

    /// A router (or this host, of its own interface) says that a packet was too long: `quoted` is how that began, and `mtu`
    /// what would fit, or 0. Anybody can say so, and guess four addresses and ports: it counts for what is on its way to the
    /// peer (RFC 5927, section 4.1), and nobody is believed that less fits than any path takes.
    pub fn too_long(&mut self, now: Now, quoted: &[u8], mtu: u32) {
        self.clock = now;
        if !self.gate.serves() || self.gate.fenced() {
            return;
        }
        let Some(quoted) = Quoted::parse(quoted) else { return };
        let (Some(fits), Some(id)) = (quoted.fits(mtu), self.store.find(&quoted.tuple)) else { return };
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get_mut(&id)) else { return };
        let Some(at) = seq::offset(s.open.isn_out, quoted.seq, live.peer.una()).filter(|at| *at >= live.peer.una()) else {
            return;
        };
        let (acked, released) = (live.peer.una(), live.peer.released());
        if let Some(old) = live.recovery.get_mut_if_any().and_then(|r| r.old_output.as_mut()).filter(|old| at < old.highest) {
            if fits < old.longest {
                old.longest = fits;
                old.nxt = acked;
                self.send_old_output(id);
            }
            return;
        }
        // A TCP whose numbers are the peer's has heard it, too.
        let Some(splice) = self.splices.get(&quoted.tuple).filter(|_| at < released) else { return };
        let local = (quoted.tuple.local.ip(), splice.ports.0).into();
        let seq = quoted.seq.add(u64::from(splice.output.seq.wrapping_neg()));
        let inner = Quoted { tuple: FourTuple { local, ..quoted.tuple }, seq, ..quoted };
        self.actions.push(Action::Inject(inner.message(fits)));
    }
}

/// The IP header, and TCP's without options.
fn headers(tuple: &FourTuple) -> u32 {
    if tuple.local.is_ipv4() {
        40
    } else {
        60
    }
}

/// The longest packet that the peer takes.
fn longest(s: &Session) -> u32 {
    (headers(&s.open.tuple) + u32::from(s.open.mss.max(64))).min(u32::from(u16::MAX))
}

/// How long the bytes may be of a segment that was lost so many times before, in packets that get shorter (as in
/// [`OldOutput`], but sooner: there are few).
pub(super) fn room_after(s: &Session, losses: u32) -> u64 {
    let v4 = s.open.tuple.local.is_ipv4();
    let mut longest = longest(s);
    for _ in 0..losses {
        longest = longest.min(shorter(longest, v4));
    }
    u64::from(longest - headers(&s.open.tuple)) - 12
}
