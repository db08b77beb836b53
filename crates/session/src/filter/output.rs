//! Segments of the local TCP: held until they may leave (the release rule).

use std::collections::VecDeque;
use std::time::Duration;

use super::app::IN_ORDER;
use super::gate::{LogPosition, Released};
use super::live::Live;
use super::local::Says;
use super::old_output::OldOutput;
use super::ownership::{Closer, WhyAsked};
use super::packets::Held;
use super::peer::local_shift;
use super::processes::SUSPICIOUS;
use super::segments;
use super::stage::Stage;
use super::timestamps::TIMESTAMP_LEAD_MS;
use super::{Action, Filter, Mode};
use crate::record::{self, EndReason};
use crate::segment::{flags, Segment};
use crate::seq;
use crate::store::Session;
use crate::tuple::{FourTuple, SessionId};
use crate::Now;

/// A window that moved less than this is told with the next thing that moves: a restored socket opens more.
const EDGE_LEAD: u64 = 16 << 10;

enum Rule {
    /// Not yet: a turn must end, or a process be judged.
    Wait,
    /// As soon as the replica has stored the log up to here.
    At(LogPosition),
}

impl Filter {
    /// A packet from the OUTPUT queue.
    pub fn packet_out(&mut self, now: Now, id: u32, bytes: &[u8]) {
        self.clock = now;
        self.counters.packets_out += 1;
        if !self.gate.serves() {
            if self.gate.mode() == Mode::Passive {
                self.keep_call(now, bytes);
            }
            return self.actions.push(Action::DropOut(id));
        }
        let Ok(segment) = Segment::parse(bytes) else {
            self.counters.unknown_dropped += 1;
            return self.actions.push(Action::DropOut(id));
        };
        let tuple = FourTuple { local: segment.source(), peer: segment.destination() };
        if segment.flags() & (flags::SYN | flags::ACK) == flags::SYN {
            return self.calling(now, Some(id), tuple, &segment, bytes);
        }
        let Some(tuple) = self.peer_tuple(&tuple) else {
            self.counters.unknown_dropped += 1;
            return self.actions.push(Action::DropOut(id));
        };
        let session = self.store.find(&tuple);
        if session.is_some_and(|session| self.local_answer(now, id, session, &segment)) {
            return;
        }
        if segment.has(flags::SYN | flags::ACK) {
            return self.opening(now, id, tuple, &segment);
        }
        let corrected = self.corrected_out(&tuple, &segment);
        let (segment, bytes) = match &corrected {
            Some(bytes) => (Segment::parse(bytes).expect("a segment as before"), &bytes[..]),
            None => (segment, bytes),
        };
        match session {
            Some(session) => self.known_out(now, id, session, &segment, bytes, corrected.is_some()),
            None => self.unknown_out(now, id, &tuple, &segment, corrected.as_deref()),
        }
    }

    fn unknown_out(&mut self, now: Now, id: u32, tuple: &FourTuple, segment: &Segment<'_>, corrected: Option<&[u8]>) {
        let f = segment.flags();
        let (rst, fin) = (f & flags::RST != 0, f & flags::FIN != 0);
        if rst && self.handshakes.refused_too_soon(now, tuple) {
            self.counters.refusals_withheld += 1;
            return self.actions.push(Action::DropOut(id));
        }
        let last_words = !rst && !fin && segment.payload().is_empty();
        // Once every session of the store is back, a stranger may be told to reconnect.
        let refuses = rst && self.gate.mode() == Mode::Active;
        if (last_words || refuses) && !self.gate.fenced() {
            let need = if refuses && self.gate.needs_replica() {
                // The next master may know it. Only what the replica says after the stranger came proves that there
                // is none yet.
                self.write(0, |out| record::encode_commit(&[], false, out))
            } else {
                // The last words of a connection that has just ended, or is in TIME_WAIT: they may acknowledge what
                // the replica has yet to store.
                self.gate.end()
            };
            let (bytes, corrected) = (corrected.map(<[u8]>::to_vec), corrected.is_some());
            let held = Held { fin, rst, corrected, bytes, ..Held::bare(id, now) };
            return self.wait_or_release(now, None, need, held);
        }
        // Anything more is not ours to send.
        self.counters.unknown_dropped += 1;
        self.actions.push(Action::DropOut(id));
        if !rst && self.gate.mode() == Mode::Active && !self.gate.fenced() && segment.has(flags::ACK) {
            self.reset_stranger(now, segment, corrected.is_some());
        }
    }

    /// The local TCP has a connection of which no store knows, and goes on sending: both ends are told that it is over. (Or
    /// it is over already, and this was a FIN once more: then neither minds.)
    fn reset_stranger(&mut self, now: Now, segment: &Segment<'_>, corrected: bool) {
        let next = segment.seq().add(u64::from(segment.sequence_length()));
        let to_kernel = segments::reset(segment.destination(), segment.source(), segment.ack(), next);
        let to_kernel = if corrected { self.corrected_in(&to_kernel).unwrap_or(to_kernel) } else { to_kernel };
        self.actions.push(Action::Inject(to_kernel));
        self.counters.unrecorded += u64::from(!segment.payload().is_empty());
        // The next master may know it, see above.
        let need =
            if self.gate.needs_replica() { self.write(0, |out| record::encode_commit(&[], false, out)) } else { self.gate.end() };
        self.gate.defer_reset(need, segments::reset(segment.source(), segment.destination(), segment.seq(), segment.ack()));
        self.release_stored(now);
    }

    fn known_out(&mut self, now: Now, id: u32, session: SessionId, segment: &Segment<'_>, bytes: &[u8], corrected: bool) {
        let s = self.store.get(session).expect("found");
        let live = self.live.get_mut(&session).expect("a master's session is live");
        let (rst, fin) = (segment.has(flags::RST), segment.has(flags::FIN));
        let length = u64::from(segment.sequence_length());
        let end = seq::offset(s.open.isn_out, segment.seq().add(length), s.out_done);
        if end.unwrap_or(0) < length && !rst {
            // Bytes before the first one.
            self.counters.unknown_dropped += 1;
            return self.actions.push(Action::DropOut(id));
        }
        // An empty one before the first byte is a keepalive of an untouched connection: it carries its ACK.
        let end = end.unwrap_or(0);
        let start = end.saturating_sub(length);
        let ack = if segment.has(flags::ACK) {
            seq::offset(s.open.isn_in, segment.ack(), s.in_ackable()).unwrap_or(0)
        } else {
            // Of an RST it counts only if it is there.
            0
        };
        let payload = !segment.payload().is_empty();
        if live.loose() && !rst {
            self.follow(now, session, ack, if payload { start } else { 0 });
        }
        let (Some(s), Some(live)) = (self.store.get(session), self.live.get_mut(&session)) else {
            // What it held was a reset, and could go.
            return self.actions.push(Action::DropOut(id));
        };
        let (mut dirty, mut leap, mut lost) = (false, false, false);
        let mut ts = None;
        let told_closed = s.closed && live.only_told_closed(s);
        if !rst {
            lost = contradicts(s, live, start, segment.payload());
            self.counters.contradicted += u64::from(lost);
            while live.held.back().is_some_and(|h| h.rst && live.unasked(h)) {
                // A TCP that goes on has reset nothing. It was its listener, which answers SYNs with cookies once too many
                // wait to be accepted, and took a segment that overtook the first one for a stranger's.
                let reset = live.held.get_mut_if_any().and_then(VecDeque::pop_back).expect("at the back");
                self.actions.push(Action::DropOut(reset.id));
            }
            let edge = ack + (u64::from(segment.window()) << local_shift(s));
            live.local.on_segment(Says { end, ack, edge }, s.in_ackable());
            live.peer.was_shown_window(edge);
            dirty = live.established && live.peer.rcv_adv() > s.in_edge.max(s.in_end()) + EDGE_LEAD;
            if let Some((value, _)) = segment.options().timestamps.filter(|_| s.open.timestamps) {
                let round = live.peer.time.says(now, value);
                leap = round || (value.wrapping_sub(s.ts_value) as i32) > TIMESTAMP_LEAD_MS as i32;
                ts = Some(value);
            }
        }
        let again = if rst { None } else { raised(s, live, ack, segment) };
        let (ack, bytes, corrected) = match &again {
            Some((ack, bytes)) => (*ack, &bytes[..], true),
            None => (ack, bytes, corrected),
        };
        let empty = start == end && !rst;
        let ahead = ack > s.in_ackable();
        let announced = live.announced_end(s);
        // What came by before it never did, or it is about to come again.
        let beyond = if payload && start > announced { start } else { 0 };
        let astray = (!rst && (ahead || beyond > 0)).then_some(if ahead { ack } else { 0 });
        if ahead {
            self.counters.ack_beyond_store += 1;
            live.ack_ahead |= !empty;
            // Packets may have gone around the queues; unless we have forgotten it ourselves.
            if live.recovery.astray.is_none() {
                self.around.ask(session);
            }
        }
        // What TCP has and no store: an empty segment acknowledges as much as there is, so that the peer sends
        // the rest again; anything else waits for it.
        let lowered = ahead && empty;
        let ack = if lowered { s.in_ackable() } else { ack };
        let ahead = empty && start > live.peer.released();
        let keep = corrected || lowered || ahead || end - u64::from(fin).min(end) > announced;
        let bytes = keep.then(|| bytes.to_vec());
        let held = Held { id, start, end, ack, lowered, ahead, ts, fin, rst, corrected, bytes, since: now };
        let silenced = live.local.is_silenced() && start != end && !rst;
        let goes_on = told_closed && end > announced && !fin && !rst && start <= announced;
        if !silenced {
            live.held.get_or_take(&mut self.pools.held).push_back(held);
        }
        if leap {
            let position = self.write_sync(session);
            self.live.get_mut(&session).expect("live").base_pos = position;
        } else if dirty {
            self.mark_dirty(now, session);
        }
        if goes_on {
            // First of all: what it carries is no end.
            self.reopen(session);
        }
        if lost {
            self.tear(now, session);
        }
        if let Some(taken) = astray {
            self.stray(now, session, taken, beyond, 0);
        }
        if !self.live.contains_key(&session) {
            self.actions.extend(silenced.then_some(Action::DropOut(id)));
            return;
        }
        if silenced {
            self.drop_silenced(id, session, end);
        }
        self.fed(now, session);
        self.judge_held(now, session);
    }

    /// Looks again at everything that a session holds.
    pub(super) fn judge_held(&mut self, now: Now, session: SessionId) {
        let mut at = 0;
        loop {
            let (Some(s), Some(live)) = (self.store.get(session), self.live.get_mut(&session)) else { return };
            if at >= live.held.len() {
                live.held.give_back_if_empty(&mut self.pools.held);
                return;
            }
            let h = &live.held[at];
            let (start, end, ack, rst) = (h.start, h.end, h.ack, h.rst);
            match rule(s, live, (start, end, ack, rst), self.gate.acked()) {
                Rule::At(need) => {
                    let held = live.held.get_mut_if_any().and_then(|held| held.remove(at)).expect("in range");
                    self.wait_or_release(now, Some(session), need, held);
                }
                Rule::Wait if live.ownership.is_orphan() => {
                    // Nobody will ever ask for it.
                    let held = live.held.get_mut_if_any().and_then(|held| held.remove(at)).expect("in range");
                    self.counters.endings_withheld += u64::from(held.fin || held.rst);
                    self.actions.push(Action::DropOut(held.id));
                }
                Rule::Wait => {
                    if self.adopt(now, session, at) {
                        // Committed: everything is judged anew.
                        at = 0;
                        continue;
                    }
                    at += 1;
                }
            }
        }
    }

    /// Bytes on the wire that no hook announced, of a living process with no open intent: they went around the
    /// hooks (stdio, raw system calls) and are taken from the packet. Returns whether anything changed.
    fn adopt(&mut self, now: Now, session: SessionId, at: usize) -> bool {
        if !self.gate.serves() || self.processes.is_written(session) {
            return false;
        }
        let s = self.store.get(session).expect("known");
        let live = self.live.get_mut(&session).expect("live");
        let h = &live.held[at];
        let payload_end = h.end - u64::from(h.fin).min(h.end);
        let announced = live.announced_end(s);
        let gap = h.start > announced && !self.config.hooked && live.local.clamp() > h.start;
        if payload_end > announced && (h.start <= announced || gap) && !s.out_fin && !h.rst {
            if self.gate.overloaded() {
                self.gate.defer(session);
                return false;
            }
            let Some(read) = self.processes.take_read_known(session) else {
                // What it has read went around the hooks as well: the kernel knows.
                if live.ownership.ask(WhyAsked::Output) {
                    self.ask_readers(session);
                    self.actions.push(Action::AskUnread(session));
                }
                return false;
            };
            if gap {
                let start = h.start;
                self.sent_around(now, session, start);
                return true;
            }
            if !self.config.hooked {
                // What was sent is known again.
                live.local.clamp_to(0);
            }
            let h = &live.held[at];
            let Some(bytes) = h.bytes.as_deref() else { return false };
            let payload = Segment::parse(bytes).expect("parsed before").payload();
            let fresh = &payload[(announced - h.start) as usize..];
            let n = fresh.len() as u64;
            live.announced.append(fresh, &mut self.pools.announced);
            self.counters.adopted_bytes += n;
            if live.ownership.is_attached() {
                self.processes.adopted(now, session, n);
                self.run_commits(now);
            } else {
                // No hook knows this session: nothing tells its turns.
                self.commit_read(now, session, read, false);
            }
            return true;
        }
        if live.unasked(h) && !live.suspected {
            live.suspected = true;
            // Hooks may be about to say it.
            let wait = if self.config.hooked { SUSPICIOUS } else { Duration::ZERO };
            self.processes.suspect(h.since + wait, session);
        }
        false
    }

    pub(super) fn check_suspicious(&mut self, now: Now) {
        let mut asked = Vec::new();
        while let Some(session) = self.processes.next_suspicious(now) {
            let closer = self.live.get(&session).and_then(|live| self.closer(live));
            let (Some(s), Some(live)) = (self.store.get(session), self.live.get_mut(&session)) else { continue };
            if s.closed && live.only_told_closed(s) {
                self.actions.push(Action::AskClosed(session));
            }
            live.suspected = false;
            if !live.held.iter().any(|h| live.unasked(h)) {
                continue;
            }
            if !live.ownership.is_attached() && !live.ownership.is_held() {
                // An RST of a connection that the application asked for: it gave up before the peer answered. One of a
                // listener may be no end, see `known_out`.
                if let Some(h) = live.held.iter().find(|h| h.fin || h.rst && live.outgoing) {
                    if self.processes.last_death().is_some_and(|death| h.since <= death + SUSPICIOUS) {
                        // Accepted by whoever died, most likely, and closed by its death, which we heard of first.
                        live.ownership.die();
                        self.judge_held(now, session);
                        continue;
                    }
                    // No hook knows this session, and no process of ours has died.
                    self.recount(session, |live| {
                        live.ownership.close();
                    });
                    self.commit_unattached(now, session, true);
                    self.judge_held(now, session);
                }
                continue;
            }
            if !live.ownership.is_held() && closer == Some(Closer::Ended) {
                self.closed_unasked(now, IN_ORDER, session);
                self.judge_held(now, session);
                continue;
            }
            self.processes.ask_about(session);
            asked.extend(live.ownership.holders());
            if let Some(Closer::Process(channel)) = closer {
                asked.push(channel);
            }
        }
        asked.sort_unstable();
        asked.dedup();
        self.actions.extend(asked.into_iter().map(Action::AskAlive));
    }

    /// Lets a packet go as soon as the log is stored up to `need`.
    pub(super) fn wait_or_release(&mut self, now: Now, session: Option<SessionId>, need: LogPosition, held: Held) {
        if let Some(held) = self.gate.wait(self.clock, session, need, held) {
            self.release(now, session, held);
        }
    }

    pub(super) fn may_leave(&self, need: LogPosition) -> bool {
        self.gate.may_leave(self.clock, need)
    }

    pub(super) fn release_stored(&mut self, now: Now) {
        self.clock = now;
        while let Some(released) = self.gate.next_released(self.clock) {
            match released {
                Released::Reset(packet) => self.actions.push(Action::SendPeer(packet)),
                Released::Packet(waiting) => self.release(now, waiting.session, waiting.held),
            }
        }
    }

    fn release(&mut self, now: Now, session: Option<SessionId>, held: Held) {
        let known = session.and_then(|id| Some((id, self.store.get(id)?, self.live.get_mut(&id)?)));
        let Some((session, s, live)) = known else {
            // The record is gone: what it said was stored, and is an old duplicate or a last ACK.
            return self.actions.push(if held.ahead { Action::DropOut(held.id) } else { held.verdict() });
        };
        live.alone |=
            self.gate.solo.is_on() && (held.rst || held.end > live.peer.released() || held.ack > live.peer.released_ack());
        if held.rst {
            self.actions.push(held.verdict());
            return self.end_session(now, session, EndReason::ResetByUs);
        }
        assert!(held.ack <= s.in_ackable(), "I1: an ACK of input that is not stored");
        live.peer.was_released_ack(held.ack);
        let mut held = held;
        if let (true, Some(bytes)) = (held.corrected, &mut held.bytes) {
            in_order_of_time(live, bytes);
        }
        // While we send old output ourselves, the local TCP's number may be beyond the peer's window.
        let shown = live.recovery.old_output.as_ref().map_or(live.peer.released(), OldOutput::shown);
        if held.start == held.end && (held.start > shown || held.lowered) {
            // An empty segment obeys only the ACK rule, but shows no number that was not released.
            let Some(bytes) = held.bytes.as_deref() else {
                // It was not to be changed when it came. What it says the local TCP says again.
                return self.actions.push(Action::DropOut(held.id));
            };
            let segment = Segment::parse(bytes).expect("parsed before");
            let seq = s.out_seq(held.start.min(shown));
            let ack = if held.lowered { s.in_seq(held.ack) } else { segment.ack() };
            if live.signed {
                // Changed it is nothing that the peer would hear; what it says comes with the next one.
                return self.actions.push(Action::DropOut(held.id));
            }
            let mut changed = Vec::new();
            segment.rewrite(seq, ack, &mut changed);
            if held.start > live.peer.released() {
                // What it overtakes is older.
                segment.put_timestamp(live.peer.time.shown(), &mut changed);
                segment.finish(&mut changed);
            } else {
                live.peer.time.shows(held.ts);
            }
            self.actions.push(Action::ModifyOut(held.id, changed));
        } else {
            live.peer.time.shows(held.ts);
            assert!(held.start == held.end || held.end <= s.out_sendable(), "I2: output of an open turn");
            live.peer.was_released(held.end);
            self.actions.push(held.verdict());
        }
        // The last packet of an exchange leaves it idle.
        let stored = self.gate.settled();
        live.in_positions.settle(stored, &mut self.pools.positions);
        live.out_positions.settle(stored, &mut self.pools.positions);
        self.end_if_finished(now, session);
    }

    /// Progress of the local TCP through injected input.
    fn fed(&mut self, now: Now, session: SessionId) {
        if !matches!(self.live[&session].stage, Stage::Feeding { .. }) {
            return;
        }
        self.feed_on(now, session, 0);
        let live = self.live.get_mut(&session).expect("live");
        let taken = !matches!(live.stage, Stage::Feeding { fed, .. } if fed > live.local.rcv_nxt());
        if taken && live.local.take_tell_again() {
            self.inject(session, self.live[&session].local.rcv_nxt(), flags::ACK, &[]);
        }
    }
}

/// What a restored TCP says while it takes input that was acknowledged in its former life, as the peer may see it: an
/// acknowledgement much older than the newest is refused, with all that comes with it (RFC 5961, section 5.2). Nor does
/// the peer lose anything by the newest: what is stored we give to that TCP. Its window ends where it ends.
fn raised(s: &Session, live: &Live, ack: u64, segment: &Segment<'_>) -> Option<(u64, Vec<u8>)> {
    let told = match live.stage {
        Stage::Restored => s.in_ackable(),
        Stage::Feeding { until, .. } => until,
        _ => return None,
    };
    if ack >= told || !segment.has(flags::ACK) {
        return None;
    }
    let shift = local_shift(s);
    let edge = ack + (u64::from(segment.window()) << shift);
    let mut bytes = Vec::with_capacity(1 << 11);
    segment.copy_to(&mut bytes);
    segment.put_ack(s.in_seq(told), &mut bytes);
    // No more than there was.
    segment.put_window((edge.saturating_sub(told) >> shift) as u16, &mut bytes);
    segment.finish(&mut bytes);
    Some((told, bytes))
}

/// What had to wait for old output must not look older than that.
fn in_order_of_time(live: &Live, packet: &mut Vec<u8>) {
    let copy = std::mem::take(packet);
    let segment = Segment::parse(&copy).expect("a segment");
    match segment.options().timestamps {
        Some((value, _)) if live.peer.time.looks_old(value) => {
            segment.copy_to(packet);
            segment.put_timestamp(live.peer.time.shown(), packet);
            segment.finish(packet);
        }
        _ => *packet = copy,
    }
}

/// What is sent for the first time is compared with what the hooks announced: where bytes went around them in
/// between, the wire is right. What is not committed is put right; returns whether something committed is wrong.
fn contradicts(s: &Session, live: &mut Live, start: u64, payload: &[u8]) -> bool {
    let end = (start + payload.len() as u64).min(live.announced_end(s));
    let from = start.max(live.local.snd_nxt()).max(s.out_acked);
    if from >= end {
        return false;
    }
    let sent = &payload[(from - start) as usize..(end - start) as usize];
    let (committed, fresh) = sent.split_at((s.out_done.clamp(from, end) - from) as usize);
    let wrong = !same(&s.output, (from - s.out_acked.min(s.out_done)) as usize, committed);
    let at = (from.max(s.out_done) - s.out_done) as usize;
    if !same(&live.announced, at, fresh) {
        live.announced.correct(at..at + fresh.len(), fresh);
    }
    wrong
}

fn same(told: &VecDeque<u8>, at: usize, sent: &[u8]) -> bool {
    if sent.is_empty() {
        return true;
    }
    let (a, b) = told.as_slices();
    let first = a.get(at.min(a.len())..(at + sent.len()).min(a.len())).unwrap_or(&[]);
    let (head, tail) = sent.split_at(first.len());
    let next = (at + first.len()).saturating_sub(a.len());
    first == head && b.get(next..next + tail.len()) == Some(tail)
}

/// The release rule for one packet.
fn rule(s: &Session, live: &mut Live, (start, end, ack, rst): (u64, u64, u64, bool), acked: LogPosition) -> Rule {
    if ack > s.in_ackable() {
        return Rule::Wait;
    }
    let input = live.in_positions.need(ack, acked);
    if rst {
        // Asked for by the application, in a turn that is over.
        return if s.closed { Rule::At(live.out_positions.last().max(input).max(live.base_pos)) } else { Rule::Wait };
    }
    if start == end {
        return Rule::At(input.max(live.base_pos));
    }
    // What comes before it the peer gets from us.
    if end > s.out_sendable() || live.recovery.old_output.is_some() {
        return Rule::Wait;
    }
    let output = live.out_positions.need(end, acked);
    Rule::At(input.max(output).max(live.base_pos))
}
