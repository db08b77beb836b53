//! `durability = "async"`: nothing waits for the replica, so after a takeover a peer may be ahead of the store. The session
//! adopts what the peer's segments prove: what it acknowledges was sent; what it does not send again was heard.

use std::time::Duration;

use super::peer::local_shift;
use super::stage::Stage;
use super::{Action, Filter};
use crate::record::{self, Adopted, MAX_OPEN};
use crate::segment::{flags, Segment};
use crate::seq;
use crate::store::Session;
use crate::tuple::SessionId;
use crate::Now;

/// A peer with output that nobody has acknowledged sends it again within this time, the lowest byte of it, too: the least
/// retransmission timeout of Linux is 200 ms. Longer than one that has backed off twice.
const SHOWS: Duration = Duration::from_secs(1);
/// A silent peer is asked again this often, and given up after so many times.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const ASKS: u32 = 60;
/// Farther from the store no peer is: it would be another connection.
const FARTHEST: i64 = 1 << 28;
/// Whoever does not echo a timestamp of ours is believed this near to the store, or within so many windows.
const NEAR: i64 = 1 << 20;
const NEAR_WINDOWS: i64 = 4;

/// What a peer has shown since the takeover.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence {
    /// When it was first heard.
    since: Option<Now>,
    /// The highest output offset that it acknowledged.
    acked: u64,
    /// The lowest input offset that it sent, and the one behind the highest that it has ever sent.
    lowest: Option<u64>,
    nxt: u64,
    /// It has output beyond a hole.
    holes: bool,
    /// Its last window.
    window: u16,
    next: Now,
    asks: u32,
}

impl Filter {
    /// The peers' evidence is waited for.
    pub(super) fn await_evidence(&mut self, now: Now) {
        for (&id, live) in self.live.iter_mut().filter(|(_, l)| l.stage == Stage::Probing) {
            let next = now + ASK_AGAIN;
            live.recovery.get_or_make().evidence =
                Some(Evidence { since: None, acked: 0, lowest: None, nxt: 0, holes: false, window: 0, next, asks: 0 });
            self.timers.set(next, id);
        }
    }

    /// A segment of a peer whose evidence is waited for.
    pub(super) fn note_evidence(&mut self, now: Now, id: SessionId, segment: &Segment<'_>) {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get_mut(&id)) else { return };
        let timestamps = segment.options().timestamps.filter(|_| s.open.timestamps);
        let echoes = timestamps.is_some_and(|(_, echo)| live.peer.time.sent(echo));
        let Some(evidence) = live.recovery.get_mut_if_any().and_then(|r| r.evidence.as_mut()) else { return };
        if !segment.has(flags::ACK) || segment.has(flags::SYN) || segment.has(flags::RST) {
            return;
        }
        let at = i64::from(segment.seq().since(s.in_seq(s.in_ackable()))) + s.in_ackable() as i64;
        let end = at + i64::from(segment.sequence_length());
        let Some(ack) = seq::offset(s.open.isn_out, segment.ack(), s.out_sendable()) else { return };
        // What a stranger says must not move the session: it would have to guess all of this.
        let ours = i64::from(u16::MAX) << local_shift(s);
        let theirs = i64::from(live.peer.most_window().max(u32::from(u16::MAX)));
        let near = |known: u64, told: i64, window: i64| {
            let most = if echoes { FARTHEST } else { (NEAR_WINDOWS * window).max(NEAR) };
            (told - known as i64).abs() <= most
        };
        let known = near(s.in_ackable().max(s.in_edge), end, ours) || near(s.in_ackable(), end, ours);
        // There is nothing beyond an end.
        let beyond = s.in_fin && end > s.in_ackable() as i64 || s.out_fin && ack > s.out_sendable();
        if beyond || !known || !near(s.out_sendable(), ack as i64, theirs) {
            self.counters.disbelieved += 1;
            return;
        }
        if evidence.since.is_none() {
            evidence.since = Some(now);
            evidence.next = now + SHOWS;
            self.timers.set(now + SHOWS, id);
        }
        evidence.acked = evidence.acked.max(ack);
        evidence.nxt = evidence.nxt.max(u64::try_from(end).unwrap_or(0));
        evidence.window = segment.window();
        if let Some((value, echo)) = timestamps.filter(|_| echoes) {
            // It has heard of our clock what the store may not know. Its own may have come round since it was last told.
            live.peer.time.hears_evidence(now, value, echo);
        }
        // One byte that nobody pushes is a keepalive's, or asks for window: it may be an old one.
        if segment.sequence_length() > 1 || segment.sequence_length() == 1 && segment.flags() & (flags::PSH | flags::FIN) != 0 {
            let at = u64::try_from(at).unwrap_or(0);
            evidence.lowest = Some(evidence.lowest.map_or(at, |lowest| lowest.min(at)));
        }
        // A block below the acknowledgement tells of what came twice (D-SACK, RFC 2883), as our probe's byte did.
        evidence.holes |= segment.sacks().any(|(from, _)| from.after(segment.ack()));
        self.judge_evidence(now, id);
    }

    fn judge_evidence(&mut self, now: Now, id: SessionId) {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get(&id)) else { return };
        let Some((evidence, since)) = live.recovery.evidence.and_then(|p| Some((p, p.since?))) else { return };
        let whole = evidence.nxt <= s.in_ackable() || evidence.lowest.is_some_and(|lowest| lowest <= s.in_ackable());
        if !whole && now < since + SHOWS {
            return;
        }
        let ahead = evidence.acked > s.out_sendable();
        if ahead && evidence.holes {
            // What lies beyond the hole nobody knows, and it would be mixed with other bytes.
            return self.restore_failed(now, id);
        }
        let adopted = adopt(s, &evidence, whole, ahead);
        if adopted.is_some_and(|a| a.in_done > s.in_done) && self.store.data(id).is_some() {
            // What the application keeps is of before what was lost.
            return self.restore_failed(now, id);
        }
        if let Some(adopted) = adopted {
            self.counters.adopted_sessions += 1;
            self.write(0, |out| record::encode_adopted(&adopted, out));
        }
        let s = self.store.get(id).expect("known");
        let live = self.live.get_mut(&id).expect("live");
        live.recovery.get_or_make().evidence = None;
        if adopted.is_some() {
            live.peer.acknowledges(evidence.acked.min(s.out_sendable()));
            live.local.clamp_to(s.out_sendable());
            live.peer.was_released(s.out_done);
            live.local.has_sent(s.out_acked);
            live.local.has_taken(s.in_done);
        }
        live.peer.acknowledges(evidence.acked.min(s.out_sendable()));
        live.peer.resumes_window(evidence.window);
        live.peer.was_shown_window(evidence.nxt);
        live.peer.answers();
        self.mark_dirty(now, id);
        self.actions.push(Action::Probed(id));
    }

    pub(super) fn evidence_timeout(&mut self, now: Now, id: SessionId) -> Option<Now> {
        let live = self.live.get_mut(&id)?;
        let evidence = live.recovery.get_mut_if_any()?.evidence.as_mut()?;
        if evidence.next > now {
            return Some(evidence.next);
        }
        if evidence.since.is_some() {
            self.judge_evidence(now, id);
            return None;
        }
        evidence.asks += 1;
        evidence.next = now + ASK_AGAIN;
        let (asks, next) = (evidence.asks, evidence.next);
        if asks > ASKS {
            self.restore_failed(now, id);
            return None;
        }
        self.probe(id);
        Some(next)
    }
}

/// What the session becomes, if its peer is ahead of the store.
fn adopt(s: &Session, evidence: &Evidence, whole: bool, ahead: bool) -> Option<Adopted> {
    if whole && !ahead {
        return None;
    }
    // The acknowledgement of our FIN has no byte.
    let out_done = if s.out_fin { s.out_done } else { s.out_done.max(evidence.acked) };
    let open = out_done - s.out_base;
    if whole && open <= MAX_OPEN {
        // The request is here and its answer is out in part: an open response.
        return Some(Adopted { session: s.open.session, in_done: s.in_done, out_done, out_base: s.out_base });
    }
    // Part of a request is lost: the exchange under way is passed over.
    let in_done = if whole { s.in_end() } else { evidence.lowest.unwrap_or(evidence.nxt) };
    Some(Adopted { session: s.open.session, in_done, out_done, out_base: out_done })
}
