//! Takeover (docs/design.md, "Takeover"): probe the peers, restore sockets, keep input behind the barrier, then inject
//! what the application has yet to read.

use std::time::Duration;

use super::live::Live;
use super::local::feed_from;
use super::log_positions::LogPositions;
use super::old_output::room_after;
use super::peer::local_shift;
use super::segments::LEAST_WINDOW;
use super::stage::Stage;
use super::timestamps::{TIMESTAMP_LEAD_MS, TIMESTAMP_MARGIN_MS};
use super::{segments, solo, Action, Engine, Filter, Mode};
use crate::bytes;
use crate::record::{Cause, EndReason};
use crate::segment::flags;
use crate::store::Session;
use crate::tuple::{BySession, FourTuple, SessionId};
use crate::Now;

/// Largest injected segment: the local TCP takes any size over lo. With its headers it fits 32 KB of memory, which is
/// what it takes of the receive buffer.
const INJECT: usize = 31 << 10;
/// Most injected input that the local TCP has not acknowledged: well within the smallest receive buffer.
const INJECT_AHEAD: u64 = 64 << 10;
/// How long the local TCP has to acknowledge injected input before it is injected again; then twice as long,
/// up to the second. It goes on as long as it takes: the peer was told that we have these bytes, and an
/// application that is slow to read makes the kernel drop them.
const INJECT_AGAIN: Duration = Duration::from_millis(20);
const INJECT_SLOWEST: u32 = 5;
/// When the first unacknowledged segment is sent again: a fresh socket's own timer starts at a second.
const RESEND: [Duration; 3] = [Duration::from_millis(20), Duration::from_millis(40), Duration::from_millis(80)];
/// What it takes to make the socket of a session.
#[derive(Clone, Debug)]
pub struct RestoreSpec {
    /// Number of the session.
    pub session: SessionId,
    /// Its ends, as the local TCP is to name them: see [`Filter::take_other_name`].
    pub tuple: FourTuple,
    /// Sequence number of the first byte of the send queue.
    pub snd_una: u32,
    /// Output that the peer may have and has not acknowledged: queued as sent.
    pub sent: Vec<u8>,
    /// Output that the peer does not have: written afterwards, as new.
    pub unsent: Vec<u8>,
    /// Sequence number of the next input byte that the application has to read.
    pub rcv_nxt: u32,
    /// Bytes of window from `rcv_nxt`.
    pub rcv_wnd: u32,
    /// The peer's maximum segment size.
    pub mss: u16,
    /// The peer's window shift and ours.
    pub shifts: Option<(u8, u8)>,
    /// SACK was negotiated.
    pub sack: bool,
    /// Timestamp value to go on from, where timestamps were negotiated.
    pub timestamp: Option<u32>,
    /// The peer's window in bytes.
    pub snd_wnd: u32,
    /// The application ended its output: FIN after the bytes.
    pub fin: bool,
    /// The application closed it: nobody is to get the socket.
    pub closed: bool,
    /// Output bytes that the application will write again and that are absorbed.
    pub absorb: u64,
    /// Output beside these was sent.
    pub greeted: bool,
    /// The application reads from this offset of the input on.
    pub in_done: u64,
    /// The application writes from this offset of the output on.
    pub out_base: u64,
    /// Input waits to be read.
    pub input_pending: bool,
    /// Options that the application had set on it: see [`crate::options`].
    pub options: Vec<u8>,
}

impl Filter {
    /// Becomes master with the replica's store: every session starts as unprobed.
    pub fn take_over(&mut self, now: Now) {
        assert!(self.gate.mode() == Mode::Passive, "only a backup takes over");
        self.store.drop_uncommitted();
        self.handshakes.number_behind(&self.store);
        self.gate.take_over(self.handshakes.first_unused());
        self.start_over(now, &BySession::default());
        self.tear_mid_turn();
        if self.config.asynchronous {
            self.await_evidence(now);
        }
        self.answer_kept(now);
    }

    /// A master whose application died and is started again here: takes over from itself. Replica and log go
    /// on. The kernel's sockets of the dead application must be gone, or vanish silently, before the restore. Whoever
    /// fenced the filter for that is done with it.
    pub fn recover(&mut self, now: Now) {
        assert!(self.gate.serves(), "only a master recovers");
        self.standing = None;
        self.write_syncs();
        let before = self.drop_in_hand();
        // What the dead application called for has no socket any more: nobody would have the connection.
        self.handshakes.forget_ours();
        self.gate.recover();
        self.start_over(now, &before);
    }

    fn start_over(&mut self, now: Now, before: &BySession<Box<Live>>) {
        self.clock = now;
        self.forget_spliced_ports();
        let mut ids: Vec<SessionId> = self.store.iter().map(|s| s.open.session).collect();
        ids.sort_unstable();
        let mut unpaired = self.unpaired();
        unpaired.retain(|id| !self.stands(*id));
        self.counters.unpaired += unpaired.len() as u64;
        let lacking = |id: &SessionId| self.store.get(*id).is_some_and(|s| self.is_lacking(s));
        let lost = |id: &SessionId| unpaired.binary_search(id).is_ok() || lacking(id);
        let (unwanted, ids): (Vec<_>, Vec<_>) =
            ids.into_iter().partition(|id| !self.stands(*id) && self.store.get(*id).is_some_and(|s| self.is_unwanted(s)));
        let (torn, whole): (Vec<_>, Vec<_>) =
            ids.into_iter().partition(|id| lost(id) || self.store.get(*id).is_some_and(|s| s.torn));
        for id in whole {
            let s = self.store.get(id).expect("listed");
            let mut live = Live::new(s);
            live.local.clamp_to(s.out_sendable());
            live.outgoing = self.is_outgoing(&s.open.tuple);
            if let Some(old) = before.get(&id) {
                // Nothing of it may leave before the replica has it, and what left may be acknowledged.
                live.base_pos = self.gate.end();
                live.in_positions = LogPositions::new(s.in_ackable(), self.gate.end());
                live.out_positions = LogPositions::new(s.out_sendable(), self.gate.end());
                live.peer.carry_over(&old.peer, s);
                live.alone = old.alone;
            } else {
                // The peer must not see our clock go back (RFC 7323, section 5.3), and may have seen this much.
                live.peer.time.lead(now, TIMESTAMP_LEAD_MS);
            }
            if s.established {
                live.stage = Stage::Probing;
            } else {
                let next = now + INJECT_AGAIN;
                live.stage = Stage::Embryo { next, tries: 0 };
                live.peer.was_shown_window(LEAST_WINDOW);
                self.handshakes.opens_again();
                self.timers.set(next, id);
            }
            self.barrier.count(&live);
            self.live.insert(id, Box::new(live));
        }
        // Nothing that was kept goes on while some of these are still in the store: it would meet sessions that nobody knows.
        self.barrier.hold();
        let kept = self.calls.take_kept();
        for id in unwanted {
            self.counters.reset_on_takeover += 1;
            self.reset_session(now, id);
        }
        for id in torn {
            self.restore_failed(now, id);
        }
        self.note_hand_outs();
        self.barrier.may_fall();
        self.calls.keep_again(kept);
        self.barrier_met(now);
    }

    /// Asks each peer for its true ACK, with a keepalive probe; half-open ones get their SYN-ACK. May be
    /// called again.
    pub fn probes(&mut self) {
        if self.gate.fenced() {
            return;
        }
        for id in self.ids_of(|l| l.stage == Stage::Probing && !l.peer.has_answered() || matches!(l.stage, Stage::Embryo { .. }))
        {
            if matches!(self.live[&id].stage, Stage::Embryo { .. }) {
                self.send_syn_ack(id);
                continue;
            }
            let live = &self.live[&id];
            if live.outgoing && live.peer.released() == 0 && !self.may_leave(live.base_pos) {
                // Just made, and perhaps known to nobody else: the peer would take a probe for the end of its handshake (I1).
                continue;
            }
            self.probe(id);
        }
    }

    pub(super) fn probe(&mut self, id: SessionId) {
        let s = self.store.get(id).expect("live");
        // One before what is acknowledged: never acceptable, always answered (RFC 9293, section 3.8.4). The byte is an
        // old one for the peer, whatever it is; Linux limits the rate of answers to empty ones.
        let seq = s.out_seq(s.out_acked.min(s.out_done)).add(u64::from(u32::MAX));
        let packet = self.segment_to_peer(id, flags::ACK, seq, &[0]);
        self.actions.push(Action::SendPeer(packet));
    }

    pub(super) fn ids_of(&self, which: impl Fn(&Live) -> bool) -> Vec<SessionId> {
        let mut ids: Vec<SessionId> = self.live.iter().filter(|(_, l)| which(l)).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// How many sessions still wait for the probe's answer.
    #[must_use]
    pub fn unprobed(&self) -> usize {
        self.barrier.unprobed()
    }

    /// Sessions that have no socket yet. Half-open ones are not among them: each is told as probed once its
    /// peer has completed the handshake, if need be long after the takeover.
    #[must_use]
    pub fn unrestored(&self) -> Vec<SessionId> {
        self.ids_of(Live::probing)
    }

    /// How many sessions are not yet in the application's hands and should be.
    #[must_use]
    pub fn not_handed_over(&self) -> usize {
        self.barrier.awaited()
    }

    /// What it takes to make the socket of this session. `answered`: the peer told its true ACK; then all that
    /// it has not acknowledged is new to it. `elapsed_ms`: since the session's newest record came, or less.
    /// None: it has its socket, or is half open, or has ended.
    #[must_use]
    pub fn restore_spec(&mut self, id: SessionId, answered: bool, elapsed_ms: u32) -> Option<RestoreSpec> {
        let live = self.live.get(&id)?;
        if live.stage != Stage::Probing || live.recovery.evidence.is_some() {
            return None;
        }
        if live.outgoing && self.name_is_taken(&self.store.get(id)?.open.tuple) {
            self.take_other_name(id);
        }
        let s = self.store.get(id)?;
        let tuple = self.local_tuple(&s.open.tuple);
        let live = self.live.get_mut(&id)?;
        // The FIN's acknowledgement counts one; it has no byte.
        let una = live.peer.una().min(s.out_done);
        live.local.plan(una);
        let start = s.out_acked.min(s.out_done);
        let output = bytes::copy(&s.output, (una - start) as usize..(s.out_done - start) as usize);
        let (sent, unsent) = if answered { (Vec::new(), output) } else { (output, Vec::new()) };
        // As much as the former socket was known to have room for: the new one has nothing in its buffer. What was told
        // beyond that, for input that is read again now, it gets from the store as it has room.
        let from = feed_from(s);
        let widest = u64::from(u16::MAX) << local_shift(s);
        let rcv_wnd = live.peer.rcv_adv().saturating_sub(s.in_ackable()).clamp(LEAST_WINDOW, widest.min(1 << 30));
        live.local.plan_window(from + rcv_wnd);
        // What the kernel will take is believed, too.
        live.peer.was_shown_window(live.local.edge());
        Some(RestoreSpec {
            session: id,
            tuple,
            snd_una: s.out_seq(una).0,
            sent,
            unsent,
            rcv_nxt: s.in_seq(from).0,
            rcv_wnd: rcv_wnd as u32,
            mss: s.open.mss,
            shifts: s.open.shifts,
            sack: s.open.sack,
            timestamp: s
                .open
                .timestamps
                .then(|| live.peer.time.value().wrapping_add(elapsed_ms).wrapping_add(TIMESTAMP_MARGIN_MS) & !1),
            snd_wnd: live.peer.window_bytes(s),
            fin: s.out_fin,
            closed: s.closed,
            absorb: s.out_done - s.out_base,
            greeted: s.out_base > 0,
            in_done: s.in_done,
            out_base: s.out_base,
            input_pending: !s.input.is_empty() || s.in_fin,
            options: self.store.options(id).to_vec(),
        })
    }

    /// Its socket exists, with `sent` as in its last [`RestoreSpec`].
    pub fn restored(&mut self, now: Now, id: SessionId, sent: usize) {
        let Some(s) = self.store.get(id) else { return };
        let live = self.live.get_mut(&id).expect("live");
        assert!(live.stage == Stage::Probing, "a session is restored once");
        live.local.restored(sent as u64, feed_from(s));
        // The peer may have it, and acknowledge it, whatever a new replica has.
        live.peer.was_released(live.local.snd_nxt());
        if s.out_sendable() > live.peer.una() {
            live.recovery.get_or_make().resend = Some((now + RESEND[0], 0, live.peer.una()));
            self.timers.set(now + RESEND[0], id);
        }
        if live.peer.una().min(live.local.snd_nxt()) > live.local.snd_una() {
            // Acknowledged while the socket was being made.
            self.inject(id, self.live[&id].local.rcv_nxt(), flags::ACK, &[]);
        }
        self.counters.restored += 1;
        self.recount(id, |l| l.stage = Stage::Restored);
        self.mark_dirty(now, id);
        if self.gate.mode() == Mode::Active {
            self.through_barrier(now, id);
        } else {
            self.barrier_met(now);
        }
    }

    /// A session of a port whose sessions are reset at a takeover, or a connection that was made for one. One that was never open
    /// has nothing that could be lost, and of one that the application has closed the kernel alone does what is left.
    pub(super) fn is_unwanted(&self, s: &Session) -> bool {
        if !s.established || s.closed {
            return false;
        }
        match s.cause {
            Some(Cause::Of { session, .. }) if self.is_outgoing(&s.open.tuple) => {
                self.store.get(session).is_some_and(|client| !self.is_outgoing(&client.open.tuple) && self.is_unwanted(client))
            }
            _ => !self.is_outgoing(&s.open.tuple) && self.policy(&s.open.tuple).reset,
        }
    }

    /// A socket could not be made: the session is reset and counted, never left hanging.
    pub fn restore_failed(&mut self, now: Now, id: SessionId) {
        self.counters.torn += u64::from(self.store.get(id).is_some());
        self.reset_session(now, id);
    }

    fn reset_session(&mut self, now: Now, id: SessionId) {
        let Some(tuple) = self.store.get(id).map(|s| s.open.tuple) else { return };
        self.barrier.note_reset(tuple);
        let resets = self.resets_of(id);
        if self.gate.needs_replica() {
            self.end_session(now, id, EndReason::Torn);
            let end = self.gate.end();
            resets.into_iter().for_each(|packet| self.gate.defer_reset(end, packet));
            return self.release_stored(now);
        }
        self.actions.extend(resets.into_iter().map(Action::SendPeer));
        self.end_session(now, id, EndReason::Torn);
    }

    /// Resets that still wait for the replica to know of their sessions' ends.
    #[must_use]
    pub fn take_deferred_resets(&mut self) -> Vec<Vec<u8>> {
        self.gate.take_deferred_resets()
    }

    // ---- two histories -------------------------------------------------------------------------------

    /// No longer master: names the sessions for which this one released anything since it went on by itself, for the partner
    /// may have gone on by itself, too, and has won. To be asked before [`Self::demote`].
    #[must_use]
    pub fn named_alone(&self) -> Vec<u8> {
        let named = self.ids_of(|l| l.alone);
        self.gate.solo.names(named.iter().map(|id| &self.store.get(*id).expect("live").open))
    }

    /// As the master that has won: the partner released something for these sessions, so nobody knows what their peers have
    /// heard (I7). Those that both had are reset; their ends as the kernel has them are returned.
    pub fn tear_named(&mut self, now: Now, names: &[u8]) -> Vec<FourTuple> {
        let is_here = |(id, name): &(SessionId, &[u8])| self.store.get(*id).is_some_and(|s| solo::is_name(&s.open, name));
        let sessions = solo::named(names).filter(is_here).map(|(id, _)| id).collect();
        self.tear_shared_of(now, sessions)
    }

    /// The same where the partner cannot say for which sessions.
    pub fn tear_shared(&mut self, now: Now) -> Vec<FourTuple> {
        let all = self.ids_of(|_| true);
        self.tear_shared_of(now, all)
    }

    fn tear_shared_of(&mut self, now: Now, sessions: Vec<SessionId>) -> Vec<FourTuple> {
        let mut ends = Vec::new();
        for id in sessions {
            // A frozen log does not grow; but whoever hands over has a partner that follows.
            let Some(s) = self.store.get(id).filter(|_| self.gate.serves() && self.gate.solo.shares(id)) else { continue };
            let tuple = s.open.tuple;
            ends.push(self.local_tuple(&tuple));
            self.restore_failed(now, id);
            if self.gate.mode() == Mode::Active {
                // The kernel answers strangers.
                self.barrier.forget_reset(&tuple);
            }
        }
        ends
    }

    /// Whether a recovered session is still to be accepted.
    #[must_use]
    pub fn awaits_accept(&self, id: SessionId) -> bool {
        self.live.get(&id).is_some_and(|live| live.unaccepted())
    }

    /// How many recovered sessions nobody has accepted, whatever became of the barrier. Looks at all sessions.
    #[must_use]
    pub fn never_accepted(&self) -> usize {
        self.live.values().filter(|live| live.unaccepted()).count()
    }

    /// Nobody will accept them: they are reset. Returns their ends as the kernel has them. Those that the local listener made, and
    /// that a process has got all the same, go on: of them no hook has told.
    pub fn give_up_unaccepted(&mut self, now: Now, mut has: impl FnMut(&FourTuple) -> bool) -> Vec<FourTuple> {
        if !self.gate.serves() || self.gate.fenced() {
            return Vec::new();
        }
        let mut ends = Vec::new();
        for id in self.ids_of(Live::unaccepted) {
            let Some(tuple) = self.store.get(id).map(|s| s.open.tuple) else { continue };
            let inner = self.local_tuple(&tuple);
            if self.splices.get(&tuple).is_some() && has(&inner) {
                continue;
            }
            ends.push(inner);
            self.counters.unaccepted += 1;
            self.reset_session(now, id);
            if self.gate.mode() == Mode::Active {
                // The kernel answers strangers.
                self.barrier.forget_reset(&tuple);
            }
        }
        ends
    }

    /// The application dies of what it is asked: connections with input that it had read when it died, and not answered,
    /// so many times since [`Self::forget_deaths`], are reset. Returns how many there were.
    pub fn give_up_deadly(&mut self, now: Now, times: u32) -> usize {
        if !self.gate.serves() || self.gate.fenced() {
            return 0;
        }
        let deadly = |id: &SessionId| self.processes.deaths_of(*id) >= times.max(1);
        let ids: Vec<SessionId> = self.ids_of(|l| l.established).into_iter().filter(deadly).collect();
        for id in &ids {
            self.restore_failed(now, *id);
        }
        ids.len()
    }

    /// The application has lived for a while.
    pub fn forget_deaths(&mut self) {
        self.processes.forget_deaths();
    }

    /// The barrier falls when the application holds all sessions that it is to have; with engine `repair` not before every
    /// session has its socket, or was given up.
    pub fn barrier_met(&mut self, now: Now) {
        // A session that waits for the local listener is known all the same: nobody answers for it meanwhile.
        // Or for what its peer proves.
        let early = self.config.engine == Engine::Splice || self.config.asynchronous;
        if self.gate.mode() == Mode::Restoring && self.barrier.awaited() == 0 && (self.barrier.unprobed() == 0 || early) {
            self.lift_barrier(now);
        }
    }

    /// Every session that has its socket shows its input, held packets go on, new connections may come. Called when it took
    /// the application too long: the sessions that have none yet go on when they have.
    pub fn lift_barrier(&mut self, now: Now) {
        if self.gate.mode() != Mode::Restoring {
            return;
        }
        self.gate.restored();
        self.barrier.fell();
        // Those that the application has yet to take go on when it does.
        for id in self.ids_of(|l| l.stage == Stage::Restored && !(l.outgoing && l.recovery.handshake.is_some())) {
            self.accepted_unhooked(id);
            self.through_barrier(now, id);
        }
        let syns = self.handshakes.take_held();
        self.replay_held(now, syns);
    }

    /// One session goes on: its kept input is injected, and what was held follows.
    pub(super) fn through_barrier(&mut self, now: Now, id: SessionId) {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get_mut(&id)) else { return };
        let (from, until, next) = (live.local.rcv_nxt(), s.in_ackable(), now + INJECT_AGAIN);
        let held = live.recovery.get_mut_if_any().map_or_else(Vec::new, |r| std::mem::take(&mut r.held_in));
        self.recount(id, |l| l.stage = Stage::Feeding { until, fed: from, next, tries: 0 });
        self.timers.set(next, id);
        self.feed_on(now, id, 0);
        self.replay_held(now, held);
    }

    /// Gives the local TCP more of the kept input, as far as it has acknowledged what it was given and has room;
    /// `least` bytes even if it has none.
    pub(super) fn feed_on(&mut self, now: Now, id: SessionId, least: u64) {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get_mut(&id)) else { return };
        let Stage::Feeding { until, fed, .. } = live.stage else { return };
        if live.local.rcv_nxt() >= until {
            live.stage = Stage::Live;
            return;
        }
        // What the store has dropped meanwhile was read: the kernel has it.
        let from = fed.max(live.local.rcv_nxt()).max(s.in_done);
        let room = live.local.edge().min(live.local.rcv_nxt().max(s.in_done) + INJECT_AHEAD);
        let to = until.min(room.max(from + least));
        if to <= from {
            return;
        }
        live.stage = Stage::Feeding { until, fed: to, next: now + INJECT_AGAIN, tries: 0 };
        let end = to.min(s.in_end());
        let fin = s.in_fin && to > s.in_end();
        let at = |offset: u64| (offset - s.in_done).min(s.input.len() as u64) as usize;
        let bytes = bytes::copy(&s.input, at(from)..at(end.max(from)));
        let parts = bytes.len().div_ceil(INJECT).max(1);
        for part in 0..parts {
            let piece = &bytes[part * INJECT..bytes.len().min((part + 1) * INJECT)];
            let last = if fin && part + 1 == parts { flags::FIN } else { 0 };
            self.inject(id, from + (part * INJECT) as u64, flags::ACK | flags::PSH | last, piece);
        }
    }

    pub(super) fn handle_recovery_timeout(&mut self, now: Now) {
        while let Some(id) = self.timers.next_due(now) {
            let next = [
                self.embryo_timeout(now, id),
                self.feed_timeout(now, id),
                self.resend_timeout(now, id),
                self.handshake_timeout(now, id),
                self.called_timeout(now, id),
                self.old_output_timeout(now, id),
                self.evidence_timeout(now, id),
                self.astray_timeout(now, id),
                self.gate_timeout(now, id),
            ];
            if let Some(due) = next.into_iter().flatten().min() {
                self.timers.set(due, id);
            } else if let Some(live) = self.live.get_mut(&id) {
                live.recovery.drop_if_empty();
            }
        }
        self.open_halves(now);
        self.behind_gate(now);
    }

    /// Input that the local TCP has not acknowledged is injected again. Returns when to look again.
    fn feed_timeout(&mut self, now: Now, id: SessionId) -> Option<Now> {
        let live = self.live.get_mut(&id)?;
        let Stage::Feeding { until, next, tries, .. } = live.stage else { return None };
        if next > now {
            return Some(next);
        }
        let tries = (tries + 1).min(INJECT_SLOWEST);
        let next = now + INJECT_AGAIN * 2u32.pow(tries);
        live.stage = Stage::Feeding { until, fed: live.local.rcv_nxt(), next, tries };
        // One byte tells it, and makes it tell, how much room there is.
        self.feed_on(now, id, 1);
        let live = self.live.get_mut(&id)?;
        let Stage::Feeding { until, fed, .. } = live.stage else { return None };
        live.stage = Stage::Feeding { until, fed, next, tries };
        Some(next)
    }

    fn resend_timeout(&mut self, now: Now, id: SessionId) -> Option<Now> {
        let live = self.live.get_mut(&id)?;
        let (due, step, una) = live.recovery.resend?;
        if live.peer.una() > una {
            live.recovery.get_or_make().resend = None;
            return None;
        }
        if due > now {
            return Some(due);
        }
        live.recovery.get_or_make().resend = RESEND.get(step as usize + 1).map(|wait| (now + *wait, step + 1, una));
        let next = live.recovery.resend.map(|r| r.0);
        self.resend_first(id, step);
        next
    }

    /// Sends the first unacknowledged output again, by ourselves, and less of it after each of the `losses`: the path may
    /// take less than the peer does.
    fn resend_first(&mut self, id: SessionId, losses: u32) {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get(&id)) else { return };
        // Only what the release rule has let go before.
        let end = live.peer.released().min(s.out_done);
        let start = s.out_acked.min(s.out_done);
        if live.peer.una() >= end || !self.may_leave(live.all_pos()) {
            return;
        }
        let room = (end - live.peer.una()).min(room_after(s, losses)) as usize;
        let from = (live.peer.una() - start) as usize;
        let bytes = bytes::copy(&s.output, from..from + room);
        let packet = self.segment_to_peer(id, flags::ACK | flags::PSH, s.out_seq(live.peer.una()), &bytes);
        self.actions.push(Action::SendPeer(packet));
    }

    /// What tells the peer that its connection is over, at the numbers that it most likely expects; any other is
    /// challenged, and the answer to the challenge is right.
    fn resets_of(&self, id: SessionId) -> Vec<Vec<u8>> {
        if self.gate.fenced() {
            return Vec::new();
        }
        let s = self.store.get(id).expect("known");
        let mut ends = vec![s.out_acked, s.out_sendable()];
        ends.dedup();
        ends.into_iter().map(|end| self.segment_to_peer(id, flags::RST | flags::ACK, s.out_seq(end), &[])).collect()
    }

    /// A segment of ours that the local TCP does not know of.
    pub(super) fn segment_to_peer(&self, id: SessionId, bits: u8, seq: crate::seq::Seq, payload: &[u8]) -> Vec<u8> {
        let s = self.store.get(id).expect("known");
        let live = self.live.get(&id);
        // I1 holds for what we say ourselves, too.
        let ackable = match live {
            Some(l) if self.gate.needs_replica() && self.gate.acked() < l.in_positions.last() => l.peer.released_ack(),
            None if self.gate.needs_replica() => s.in_done,
            _ => s.in_ackable(),
        };
        segments::to_peer(s, live.map(|l| &**l), ackable, bits, seq, payload)
    }

    /// Tells the local TCP in the peer's name, and by that what the peer has acknowledged.
    pub(super) fn inject(&mut self, id: SessionId, offset: u64, bits: u8, payload: &[u8]) {
        let packet = self.segment_to_kernel(id, offset, bits, payload);
        let live = self.live.get_mut(&id).expect("live");
        live.local.acknowledged(live.peer.una().min(live.local.snd_nxt()));
        self.actions.push(Action::Inject(packet));
    }

    /// A segment of the peer's that the local TCP is to see.
    pub(super) fn segment_to_kernel(&self, id: SessionId, offset: u64, bits: u8, payload: &[u8]) -> Vec<u8> {
        let (s, live) = (self.store.get(id).expect("known"), &self.live[&id]);
        let packet = segments::to_local(s, live, offset, bits, payload);
        self.corrected_in(&packet).unwrap_or(packet)
    }
}
