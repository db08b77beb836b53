//! Segments of the local TCP: held until they may leave (the release rule).

use std::cmp::Reverse;
use std::time::Duration;

use super::{Action, Filter, Held, Live, Mode, Stage, Waiting};
use crate::record::{EndReason, Open};
use crate::segment::{flags, Segment};
use crate::seq;
use crate::store::Session;
use crate::tuple::{FourTuple, SessionId};
use crate::Now;

/// How long a FIN or RST that nobody announced waits before we ask whether its process lives.
const SUSPICIOUS: Duration = Duration::from_millis(50);

enum Rule {
    /// Not yet: a turn must end, or a process be judged.
    Wait,
    /// As soon as the replica has stored the log up to here.
    At(u64),
}

impl Filter {
    /// A packet from the OUTPUT queue.
    pub fn packet_out(&mut self, now: Now, id: u32, bytes: &[u8]) {
        self.counters.packets_out += 1;
        if matches!(self.mode, Mode::Passive | Mode::Frozen) {
            return self.actions.push(Action::DropOut(id));
        }
        let Ok(segment) = Segment::parse(bytes) else {
            self.counters.unknown_dropped += 1;
            return self.actions.push(Action::DropOut(id));
        };
        let tuple = FourTuple { local: segment.source(), peer: segment.destination() };
        if segment.has(flags::SYN | flags::ACK) {
            return self.opening(now, id, tuple, &segment);
        }
        match self.store.find(&tuple) {
            Some(session) => self.known_out(now, id, session, &segment, bytes),
            None => self.unknown_out(id, &segment),
        }
    }

    fn unknown_out(&mut self, id: u32, segment: &Segment<'_>) {
        let f = segment.flags();
        let passes = if f & flags::RST != 0 {
            // Once every session of the store is back, a stranger may be told to reconnect.
            self.mode == Mode::Active && !self.fenced
        } else {
            // The last words of a closed connection in TIME_WAIT; anything more is not ours to send.
            f & flags::FIN == 0 && segment.payload().is_empty() && !self.fenced
        };
        if passes {
            self.actions.push(Action::AcceptOut(id));
        } else {
            self.counters.unknown_dropped += 1;
            self.actions.push(Action::DropOut(id));
        }
    }

    /// A SYN-ACK: the session's record goes to the replica before the peer can know of the session.
    fn opening(&mut self, now: Now, id: u32, tuple: FourTuple, segment: &Segment<'_>) {
        if let Some(old) = self.store.find(&tuple) {
            let s = self.store.get(old).expect("found");
            if s.open.isn_out == segment.seq() {
                let need = self.live.get(&old).map_or(0, |l| l.open_pos);
                return self.wait_or_release(now, old, need, opening_held(now, id));
            }
            // The peer's port came round again and TCP has accepted it: the old session is history.
            self.end_session(now, old, EndReason::Closed);
        }
        let Some(syn) = self.syns.remove(&tuple) else {
            // We never saw its SYN (dropped past the bound): the peer sends it again.
            self.counters.unknown_dropped += 1;
            return self.actions.push(Action::DropOut(id));
        };
        let ours = segment.options();
        let session = self.next_session_id();
        let open = Open {
            session,
            tuple,
            internal_port: tuple.local.port(),
            isn_in: syn.isn,
            isn_out: segment.seq(),
            mss: syn.options.mss.unwrap_or(536),
            shifts: syn.options.window_scale.zip(ours.window_scale),
            sack: syn.options.sack_permitted && ours.sack_permitted,
            timestamps: ours.timestamps.is_some(),
            established: false,
            window: syn.window,
            ts_recent: syn.options.timestamps.map_or(0, |t| t.0),
            ts_value: ours.timestamps.map_or(0, |t| t.0),
            in_done: 0,
            out_acked: 0,
        };
        let position = self.write(0, |out| open.encode(out));
        self.counters.opened += 1;
        let mut live = Live::new(now, self.store.get(session).expect("just opened"));
        live.open_pos = position;
        // The window of a SYN-ACK is not scaled.
        live.edge = u64::from(segment.window());
        self.live.insert(session, live);
        self.wait_or_release(now, session, position, opening_held(now, id));
    }

    pub(super) fn next_session_id(&mut self) -> SessionId {
        loop {
            let id = self.next_id;
            self.next_id = self.next_id.wrapping_add(1);
            if id != 0 && self.store.get(id).is_none() {
                return id;
            }
        }
    }

    fn known_out(&mut self, now: Now, id: u32, session: SessionId, segment: &Segment<'_>, bytes: &[u8]) {
        let s = self.store.get(session).expect("found");
        let live = self.live.get_mut(&session).expect("a master's session is live");
        let near = s.out_done;
        let rst = segment.has(flags::RST);
        let (Some(end), Some(ack)) = (
            seq::offset(s.open.isn_out, segment.seq().add(u64::from(segment.sequence_length())), near),
            // An RST may carry no ACK; then it covers nothing.
            if segment.has(flags::ACK) {
                seq::offset(s.open.isn_in, segment.ack(), s.in_ackable())
            } else {
                Some(0)
            },
        ) else {
            // Numbers before the first byte: a keepalive of an untouched connection. It carries nothing.
            if segment.payload().is_empty() && !rst && !self.fenced {
                self.actions.push(Action::AcceptOut(id));
            } else {
                self.counters.unknown_dropped += 1;
                self.actions.push(Action::DropOut(id));
            }
            return;
        };
        let start = end - u64::from(segment.sequence_length()).min(end);
        if !rst {
            live.kernel_nxt = live.kernel_nxt.max(end);
            live.kernel_ack = live.kernel_ack.max(ack.min(s.in_ackable()));
            let shift = s.open.shifts.map_or(0, |(_, ours)| ours);
            live.edge = live.edge.max(ack + (u64::from(segment.window()) << shift));
            if let Some((value, _)) = segment.options().timestamps {
                live.ts_value = value;
            }
        }
        if live.orphan && (rst || segment.has(flags::FIN)) && !live.closed && !live.fin_asked {
            self.counters.endings_withheld += 1;
            return self.actions.push(Action::DropOut(id));
        }
        if ack > s.in_ackable() {
            self.counters.ack_beyond_store += 1;
        }
        let empty = start == end && !rst;
        let announced = s.out_done + live.pending.len() as u64;
        let fin = segment.has(flags::FIN);
        let keep = (empty && start > live.released) || end - u64::from(fin) > announced;
        let held = Held { id, start, end, ack, fin, rst, bytes: keep.then(|| bytes.to_vec()), since: now };
        live.held.push_back(held);
        self.judge_held(now, session);
    }

    /// Looks again at everything that a session holds.
    pub(super) fn judge_held(&mut self, now: Now, session: SessionId) {
        let mut at = 0;
        loop {
            let (Some(s), Some(live)) = (self.store.get(session), self.live.get_mut(&session)) else { return };
            if at >= live.held.len() {
                return;
            }
            let h = &live.held[at];
            let (start, end, ack, rst) = (h.start, h.end, h.ack, h.rst);
            match rule(s, live, (start, end, ack, rst), self.acked) {
                Rule::At(need) => {
                    let held = live.held.remove(at).expect("in range");
                    self.wait_or_release(now, session, need, held);
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
        let s = self.store.get(session).expect("known");
        let live = self.live.get_mut(&session).expect("live");
        let h = &live.held[at];
        let (payload_end, held_start, since) = (h.end - u64::from(h.fin), h.start, h.since);
        let announced = s.out_done + live.pending.len() as u64;
        let intended = self.intent.is_some_and(|key| self.handles.get(&key) == Some(&session));
        if intended || live.orphan {
            return false;
        }
        if payload_end > announced && held_start <= announced && !s.out_fin {
            let Some(bytes) = h.bytes.take_payload() else { return false };
            let fresh = &bytes[(announced - held_start) as usize..];
            live.pending.extend(fresh);
            let n = fresh.len() as u64;
            self.counters.adopted_bytes += n;
            if live.attached {
                self.turns.adopted(now, session, n);
                self.run_commits(now);
            } else {
                // No hook knows this session: nothing tells its turns.
                self.commit_unattached(now, session, false);
            }
            return true;
        }
        let live = self.live.get_mut(&session).expect("live");
        let h = &live.held[at];
        if (h.fin && !s.out_fin || h.rst) && !live.fin_asked && !live.closed {
            if !live.attached && live.owners.is_empty() && h.fin {
                live.fin_asked = true;
                self.commit_unattached(now, session, true);
                return true;
            }
            let due = since + SUSPICIOUS;
            if self.suspicious.back().is_none_or(|last| last.1 != session) {
                self.suspicious.push_back((due, session));
            }
        }
        false
    }

    pub(super) fn check_suspicious(&mut self, now: Now) {
        while let Some(&(due, session)) = self.suspicious.front() {
            if due > now {
                return;
            }
            self.suspicious.pop_front();
            let Some(live) = self.live.get(&session) else { continue };
            if live.held.iter().any(|h| h.fin || h.rst) {
                for &channel in &live.owners {
                    self.actions.push(Action::AskAlive(channel));
                }
            }
        }
    }

    /// Lets a packet go as soon as the log is stored up to `need`.
    fn wait_or_release(&mut self, now: Now, session: SessionId, need: u64, held: Held) {
        if self.may_leave(need) {
            self.release(now, session, held);
        } else {
            self.counters.held += 1;
            self.serial += 1;
            self.waiting.push(Reverse(Waiting { need, serial: self.serial, session, held }));
        }
    }

    fn may_leave(&self, need: u64) -> bool {
        !self.fenced && self.mode != Mode::Frozen && (!self.needs_replica || need <= self.acked)
    }

    pub(super) fn release_stored(&mut self, now: Now) {
        while self.waiting.peek().is_some_and(|Reverse(w)| self.may_leave(w.need)) {
            let Reverse(w) = self.waiting.pop().expect("peeked");
            self.release(now, w.session, w.held);
        }
    }

    fn release(&mut self, now: Now, session: SessionId, held: Held) {
        let (Some(s), Some(live)) = (self.store.get(session), self.live.get_mut(&session)) else {
            // The record is gone: what it said was stored, and is an old duplicate or a last ACK.
            return self.actions.push(Action::AcceptOut(held.id));
        };
        if held.rst {
            self.actions.push(Action::AcceptOut(held.id));
            return self.end_session(now, session, EndReason::ResetByUs);
        }
        assert!(held.ack <= s.in_ackable(), "I1: an ACK of input that is not stored");
        live.released_ack = live.released_ack.max(held.ack);
        if held.start == held.end && held.start > live.released {
            // An empty segment obeys only the ACK rule, but shows no number that was not released.
            let bytes = held.bytes.as_deref().expect("kept");
            let segment = Segment::parse(bytes).expect("parsed before");
            let mut changed = Vec::new();
            segment.rewrite(s.out_seq(live.released), segment.ack(), &mut changed);
            self.actions.push(Action::ModifyOut(held.id, changed));
        } else {
            assert!(held.start == held.end || held.end <= s.out_sendable(), "I2: output of an open turn");
            live.released = live.released.max(held.end);
            self.actions.push(Action::AcceptOut(held.id));
        }
        self.end_if_finished(now, session);
    }
}

/// The release rule for one packet.
fn rule(s: &Session, live: &mut Live, (start, end, ack, rst): (u64, u64, u64, bool), acked: u64) -> Rule {
    if acked >= live.in_pos {
        live.in_known = live.in_known.max(s.in_ackable());
    }
    if acked >= live.out_pos {
        live.out_known = live.out_known.max(s.out_sendable());
    }
    if ack > s.in_ackable() {
        return Rule::Wait;
    }
    let input = if ack > live.in_known { live.in_pos } else { 0 };
    if rst {
        // Asked for by the application, after what it has said.
        return if live.closed || live.abort { Rule::At(live.out_pos.max(input)) } else { Rule::Wait };
    }
    if start == end {
        return Rule::At(input);
    }
    if end > s.out_sendable() {
        return Rule::Wait;
    }
    let output = if end > live.out_known { live.out_pos } else { 0 };
    Rule::At(input.max(output))
}

fn opening_held(now: Now, id: u32) -> Held {
    Held { id, start: 0, end: 0, ack: 0, fin: false, rst: false, bytes: None, since: now }
}

trait TakePayload {
    fn take_payload(&self) -> Option<Vec<u8>>;
}

impl TakePayload for Option<Vec<u8>> {
    fn take_payload(&self) -> Option<Vec<u8>> {
        let bytes = self.as_deref()?;
        Some(Segment::parse(bytes).ok()?.payload().to_vec())
    }
}

impl Live {
    pub(super) fn new(now: Now, s: &Session) -> Live {
        Live {
            stage: Stage::Live,
            opened: now,
            owners: Vec::new(),
            orphan: false,
            attached: false,
            pending: Default::default(),
            closed: s.closed,
            abort: false,
            fin_asked: s.out_fin,
            kernel_nxt: s.out_acked,
            kernel_ack: s.in_done,
            released: s.out_acked,
            released_ack: 0,
            open_pos: 0,
            in_pos: 0,
            in_known: 0,
            out_pos: 0,
            out_known: 0,
            held: Default::default(),
            held_in: Vec::new(),
            early: Default::default(),
            early_bytes: 0,
            early_fin: None,
            acked: s.out_acked,
            edge: s.in_edge,
            window: s.window,
            ts_recent: s.ts_recent,
            ts_value: s.ts_value,
            dirty: false,
            clamp: None,
            resend: None,
        }
    }
}
