//! Output of a session's former life that its peer has yet to acknowledge, where the local half is new and does not have
//! it (engine `splice`): sent by ourselves, in order, within the peer's window and what the network seems to take
//! (RFC 5681, RFC 6582). What the new half says waits until all of it is acknowledged.

use std::cmp::Reverse;
use std::time::Duration;

use super::{Action, Filter};
use crate::bytes;
use crate::segment::flags;
use crate::tuple::SessionId;
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

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tail {
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
}

impl Tail {
    /// What the peer was shown of our numbers, as far as we know: what it has is not far from that.
    pub fn shown(&self) -> u64 {
        self.highest
    }
}

impl Filter {
    /// Starts to send what there is.
    pub(super) fn start_tail(&mut self, now: Now, id: SessionId) {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get_mut(&id)) else { return };
        let end = s.out_sendable();
        if live.acked >= end {
            return;
        }
        let (nxt, cwnd, next) = (live.acked, INITIAL * u64::from(s.open.mss), now + EARLY[0]);
        live.recovery.make().tail = Some(Tail { end, nxt, highest: nxt, cwnd, recover: 0, duplicates: 0, next, tries: 0 });
        self.timers.push(Reverse((next, id)));
        self.send_tail(id);
    }

    /// Sends what window and network allow.
    fn send_tail(&mut self, id: SessionId) {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get(&id)) else { return };
        let Some(tail) = live.recovery.tail else { return };
        let window = u64::from(live.window) << s.open.shifts.map_or(0, |(theirs, _)| theirs);
        let limit = (live.acked + tail.cwnd.min(window)).min(tail.end);
        let mut nxt = tail.nxt.max(live.acked);
        while nxt < limit {
            let sent = self.send_piece(id, nxt, limit);
            if sent == nxt {
                break;
            }
            nxt = sent;
        }
        if let Some(tail) = self.live.get_mut(&id).and_then(|l| l.recovery.there()?.tail.as_mut()) {
            (tail.nxt, tail.highest) = (nxt, tail.highest.max(nxt));
        }
    }

    /// Sends one segment from an offset on. Returns the offset behind it: the same if nothing may leave.
    fn send_piece(&mut self, id: SessionId, at: u64, limit: u64) -> u64 {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get(&id)) else { return at };
        if !self.may_leave(live.all_pos()) {
            return at;
        }
        let start = s.out_acked.min(s.out_done);
        let most = u64::from(s.open.mss.max(64)) - if s.open.timestamps { 12 } else { 0 };
        let end = (at + most).min(limit).min(s.out_done);
        let payload = bytes::copy(&s.output, (at.min(end) - start) as usize..(end - start) as usize);
        let fin = s.out_fin && end == s.out_done && limit > s.out_done;
        let bits = flags::ACK | if fin { flags::FIN } else { flags::PSH };
        let packet = self.segment_to_peer(id, bits, s.out_seq(at), &payload);
        self.actions.push(Action::SendPeer(packet));
        end + u64::from(fin)
    }

    fn resend_piece(&mut self, id: SessionId) {
        if let Some((acked, end)) = self.live.get(&id).and_then(|l| Some((l.acked, l.recovery.tail?.end))) {
            self.send_piece(id, acked, end);
        }
    }

    /// The peer has acknowledged `fresh` bytes more, or (0) the same as before.
    pub(super) fn tail_acked(&mut self, now: Now, id: SessionId, fresh: u64) {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get_mut(&id)) else { return };
        let Some(tail) = live.recovery.there().and_then(|r| r.tail.as_mut()) else { return };
        let acked = live.acked;
        if acked >= tail.end {
            live.recovery.make().tail = None;
            return self.judge_held(now, id);
        }
        if fresh > 0 {
            tail.cwnd = (tail.cwnd + fresh).min(MAX_CWND);
            (tail.duplicates, tail.tries, tail.next) = (0, EARLY.len() as u32, now + RTO);
            if acked < tail.recover {
                // The next hole.
                self.resend_piece(id);
            }
        } else if tail.nxt > acked {
            tail.duplicates += 1;
            if tail.duplicates == DUPLICATES && acked >= tail.recover {
                tail.recover = tail.nxt;
                tail.cwnd = (tail.cwnd / 2).max(AFTER_LOSS * u64::from(s.open.mss));
                self.resend_piece(id);
            }
        }
        self.send_tail(id);
    }

    pub(super) fn tail_timeout(&mut self, now: Now, id: SessionId) -> Option<Now> {
        let (s, live) = (self.store.get(id)?, self.live.get_mut(&id)?);
        let tail = live.recovery.there()?.tail.as_mut()?;
        if tail.next > now {
            return Some(tail.next);
        }
        tail.tries += 1;
        let doublings = tail.tries.saturating_sub(EARLY.len() as u32).min(MAX_DOUBLINGS);
        tail.next = now + EARLY.get(tail.tries as usize).copied().unwrap_or(RTO * 2u32.pow(doublings));
        // Everything after the hole may be lost, too.
        tail.nxt = live.acked;
        tail.recover = 0;
        tail.duplicates = 0;
        tail.cwnd = AFTER_LOSS * u64::from(s.open.mss);
        let next = tail.next;
        if live.window == 0 {
            // An old byte asks whether it has opened: a new one would be beyond it.
            self.probe(id);
        } else {
            self.send_tail(id);
        }
        Some(next)
    }
}
