//! What the hooks tell: descriptors, reads, writes, turns, and processes that end.

use std::collections::BTreeSet;

use super::around;
use super::live::Live;
use super::ownership::{Closer, WhyAsked};
use super::processes::{thread_key, SUSPICIOUS};
use super::stage::{LocalHandshake, Stage};
use super::{Action, Filter, Mode};
use crate::data::Change;
use crate::hook::{HookEvent, Origin};
use crate::record::{self, Cause, Committed, MAX_OPEN};
use crate::store::Session;
use crate::tuple::{FourTuple, SessionId};
use crate::turn::{Rest, Thread, TurnPolicy};
use crate::Now;

/// Most output that a process may have announced before the kernel has sent it: more than a send buffer is.
const MOST_UNSENT: u64 = 256 << 20;
/// A record has room for so many sessions.
const MOST_ENTRIES: usize = u16::MAX as usize;

/// In place of the channel of a process that has ended in order.
pub(super) const IN_ORDER: u32 = u32::MAX;

impl Filter {
    /// What the hooks of the process on this channel tell. [`Self::run_commits`] follows when all that there is was told.
    pub fn handle(&mut self, now: Now, channel: u32, event: HookEvent<'_>) {
        match event {
            HookEvent::Attach { thread, handle, origin, tuple } => {
                self.attach(now, channel, handle, origin, &tuple);
                self.taken(channel, thread, handle, origin);
            }
            HookEvent::Write { thread, handle, asked, bytes, .. } => self.write_of(now, channel, thread, handle, bytes, asked),
            HookEvent::Read { thread, handle, n } => self.read(now, channel, thread, handle, n),
            HookEvent::Wait { thread, zero_timeout: true } => self.polls(now, channel, thread),
            HookEvent::Wait { thread, .. } | HookEvent::Commit { thread } => self.turn_end(now, channel, thread),
            HookEvent::ReadAfterWrite { thread } => self.reads_after_write(now, channel, thread),
            HookEvent::Option { handle, level, name, value } => self.option_set(channel, handle, level, name, value),
            HookEvent::ReadElsewhere { thread } => self.reads_other(channel, thread),
            HookEvent::Blocked { thread, over: false } => self.blocked(channel, thread),
            HookEvent::Blocked { thread, over: true } => self.unblocked(channel, thread),
            HookEvent::Consume { thread, handle, n } => self.consume(channel, thread, handle, n),
            HookEvent::Shutdown { thread, handle } => self.shutdown(now, channel, thread, handle),
            HookEvent::Close { thread, handle, shared } => self.close(now, channel, thread, handle, shared),
            HookEvent::Exit => self.exit(now, channel),
            HookEvent::Absorbed { thread, handle, n } => self.absorbed(now, channel, thread, handle, n),
        }
    }

    /// A process holds a connection under a handle: as [`HookEvent::Attach`], but no thread is named, so that nothing is
    /// concluded about whose connects are for this session. Connections that are no session of ours (local ones) are passed
    /// over, and so is everything said of them.
    pub fn attach(&mut self, now: Now, channel: u32, handle: u32, origin: Origin, tuple: &FourTuple) {
        let Some(session) = self.peer_tuple(tuple).and_then(|tuple| self.store.find(&tuple)) else { return };
        if self.gate.mode() == Mode::Passive {
            return;
        }
        let Some(live) = self.live.get(&session) else { return };
        // Nobody can hold what has no socket; and what a process had to say of one that we lost track of is over.
        if matches!(live.stage, Stage::Embryo { .. } | Stage::Probing) || live.loose() {
            return;
        }
        if !self.processes.has_room(channel) {
            return;
        }
        if origin == Origin::Inherited && self.live[&session].ownership.is_closed() && self.gate.serves() {
            // Whoever closed it had passed it on before, and what it told came first.
            self.run_commits(now);
            let (s, live) = (self.store.get(session).expect("found"), &self.live[&session]);
            if live.only_told_closed(s) {
                self.reopen(session);
                self.judge_held(now, session);
            }
        }
        self.processes.attach(channel, handle, session);
        let (mut first, mut answered, mut made) = (false, false, false);
        self.recount(session, |live| {
            live.ownership.held_by(channel, origin == Origin::Inherited);
            first = !live.ownership.is_attached();
            answered = matches!(live.recovery.handshake, Some(LocalHandshake::Answered { .. })) && live.outgoing;
            made = live.recovery.handshake.is_some();
            live.handed_over();
        });
        if first {
            let accepted = (made || self.splices.get(tuple).is_some())
                && !self.live[&session].outgoing
                && !self.live[&session].ownership.is_unhooked();
            self.splices.unaccepted = self.splices.unaccepted.saturating_sub(usize::from(accepted));
            self.begin_turns(session);
            if accepted {
                self.open_halves(now);
            }
        }
        if answered {
            // The hook was faster than the last segment of the handshake.
            self.called(now, session);
        }
        if self.live.get(&session).is_some_and(|live| live.stage == Stage::Restored) {
            self.barrier_met(now);
        }
        self.note_taken(now, session);
    }

    /// From now on the turn policy knows the session.
    pub(super) fn begin_turns(&mut self, session: SessionId) {
        let s = self.store.get(session).expect("known");
        let policy = self.policy(&s.open.tuple);
        self.processes.turns.open(session, policy, s.in_done, s.out_done, s.out_base);
        if self.live.get(&session).is_some_and(|l| l.outgoing) {
            self.processes.turns.called(session);
        }
        if self.store.data(session).is_some() {
            self.processes.turns.says_itself(session);
        }
        self.pair_turns(session);
        self.input_again(session);
    }

    /// Tells the turn policy for whom a connection was made.
    pub(super) fn pair_turns(&mut self, session: SessionId) {
        if self.live.get(&session).is_some_and(|l| l.outgoing) {
            match self.store.get(session).and_then(|s| s.cause) {
                Some(Cause::Unclear { .. }) => self.processes.turns.unclear(session),
                _ => self.processes.turns.pair(session, self.known().root(session)),
            }
        } else {
            self.store.caused_by(session).iter().for_each(|out| self.processes.turns.pair(*out, Some(session)));
        }
    }

    /// Tells the turn policy all input that there is.
    pub(super) fn input_again(&mut self, session: SessionId) {
        let s = self.store.get(session).expect("known");
        let (a, b) = s.input.as_slices();
        for (offset, bytes) in [(s.in_done, a), (s.in_done + a.len() as u64, b)] {
            if !bytes.is_empty() {
                self.processes.turns.input(session, offset, bytes);
            }
        }
    }

    /// What another process, to which a recovered session is passed, does not write again: so much of its output, and
    /// whether a greeting.
    #[must_use]
    pub fn passed_info(&self, tuple: &FourTuple) -> Option<(u64, bool)> {
        let id = self.store.find(&self.peer_tuple(tuple)?)?;
        let (s, live) = (self.store.get(id)?, self.live.get(&id)?);
        let greeted = s.out_base > 0 && self.processes.turns.in_read(id) == Some(live.local.base());
        let unwritten = self.processes.turns.unwritten(id);
        (live.ownership.is_attached() && live.local.is_new_half() && (greeted || unwritten > 0)).then_some((unwritten, greeted))
    }

    pub(super) fn session_of(&self, channel: u32, handle: u32) -> Option<SessionId> {
        let id = self.processes.session(channel, handle)?;
        self.live.get(&id)?.ownership.is_attached().then_some(id)
    }

    pub(super) fn turn_of(&mut self, channel: u32, thread: u32) -> Thread {
        self.processes.in_turn(channel, thread)
    }

    /// Bytes that the kernel took from the application, which had `asked` it to take so many.
    pub(super) fn write_of(&mut self, now: Now, channel: u32, thread: u32, handle: u32, bytes: &[u8], asked: u64) {
        let Some(session) = self.session_of(channel, handle) else { return };
        let (s, live) = (self.store.get(session).expect("live"), self.live.get_mut(&session).expect("live"));
        let announced = s.out_done + (live.announced.len() + bytes.len()) as u64;
        if announced.saturating_sub(live.local.snd_nxt().max(s.out_acked)) > MOST_UNSENT {
            return self.lose(now, session);
        }
        live.announced.append(bytes, &mut self.pools.announced);
        // That may show whose the session is, which says what is passed on.
        self.note_write(now, thread_key(channel, thread), session, bytes.len() as u64 >= asked);
        let thread = self.turn_of(channel, thread);
        self.processes.turns.write_of(now, thread, session, bytes.len() as u64, asked);
    }

    /// Bytes that the application wrote again after a failover, and that the hook absorbed.
    pub(super) fn absorbed(&mut self, now: Now, channel: u32, thread: u32, handle: u32, n: u64) {
        if let Some(session) = self.session_of(channel, handle) {
            self.note_write(now, thread_key(channel, thread), session, true);
            let thread = self.turn_of(channel, thread);
            self.processes.turns.write(now, thread, session, n, false);
        }
    }

    /// A thread has read something else than a session: see [`crate::turn::TurnPolicy::reads_other`].
    pub(super) fn reads_other(&mut self, channel: u32, thread: u32) {
        if self.gate.mode() != Mode::Passive {
            self.processes.turns.reads_other(thread_key(channel, thread));
        }
    }

    /// Bytes that the application has taken from the socket; 0: it looked for some, and there were none.
    pub(super) fn read(&mut self, now: Now, channel: u32, thread: u32, handle: u32, n: u64) {
        let Some(session) = self.session_of(channel, handle) else { return };
        let told = self.processes.turns.told(session).unwrap_or(0);
        let there = self.store.get(session).expect("live").in_end().saturating_sub(told);
        if n > there && self.gate.serves() {
            // More than ever came through here.
            if n > there.saturating_add(around::MOST) {
                return self.lose(now, session);
            }
            self.around.claims(session, told.saturating_add(n));
        }
        if self.processes.turns.in_read(session) > Some(told) && self.config.hooked {
            // Either the kernel had counted this one before it was told, or it had counted one that is told by nobody.
            let live = self.live.get_mut(&session).expect("live");
            if live.ownership.ask(WhyAsked::Recount) {
                self.actions.push(Action::AskUnread(session));
            }
        }
        if n > 0 {
            self.note_read(thread_key(channel, thread), session);
        }
        let thread = self.turn_of(channel, thread);
        self.processes.turns.read(now, thread, session, n);
    }

    /// `tcpr_consume`.
    pub(super) fn consume(&mut self, channel: u32, thread: u32, handle: u32, n: u64) {
        if let Some(session) = self.session_of(channel, handle) {
            let thread = self.turn_of(channel, thread);
            self.processes.turns.consume(thread, session, n);
        }
    }

    /// A thread waits, or said commit: its turn is over.
    pub(super) fn turn_end(&mut self, now: Now, channel: u32, thread: u32) {
        self.causes.waits(thread_key(channel, thread));
        self.end_turn(now, channel, thread);
    }

    fn end_turn(&mut self, now: Now, channel: u32, thread: u32) {
        if self.gate.mode() == Mode::Passive {
            return;
        }
        self.processes.end_turn(now, thread_key(channel, thread));
    }

    /// A thread looks for events and will not wait: see [`crate::turn::TurnPolicy::polls`].
    pub(super) fn polls(&mut self, now: Now, channel: u32, thread: u32) {
        self.end_if(now, channel, thread, |turns, thread| turns.polls(thread));
    }

    /// A thread that has written is about to read: see [`crate::turn::TurnPolicy::reads_after_write`].
    pub(super) fn reads_after_write(&mut self, now: Now, channel: u32, thread: u32) {
        self.end_if(now, channel, thread, |turns, thread| turns.reads_after_write(thread));
    }

    /// Ends a turn if the policy does, or if it closed a session.
    fn end_if(&mut self, now: Now, channel: u32, thread: u32, ends: impl FnOnce(&mut TurnPolicy, Thread) -> bool) {
        let key = thread_key(channel, thread);
        let closes = self.processes.has_closed_in_turn(key);
        if closes || self.gate.mode() != Mode::Passive && ends(&mut self.processes.turns, key) {
            self.end_turn(now, channel, thread);
        }
    }

    /// The answer to [`Action::AskAsleep`].
    pub fn rest(&mut self, now: Now, channel: u32, thread: u32, rest: Rest) {
        if self.gate.serves() && self.processes.turns.rest(now, thread_key(channel, thread), rest) {
            self.turn_end(now, channel, thread);
            self.run_commits(now);
        }
    }

    /// A thread waits in the middle of a write: see [`crate::turn::TurnPolicy::blocked`].
    pub(super) fn blocked(&mut self, channel: u32, thread: u32) {
        if self.gate.mode() != Mode::Passive {
            self.processes.turns.blocked(thread_key(channel, thread));
        }
    }

    /// It waits no more, and goes on without having written all.
    pub(super) fn unblocked(&mut self, channel: u32, thread: u32) {
        if self.gate.mode() != Mode::Passive {
            self.processes.turns.unblocked(thread_key(channel, thread));
        }
    }

    /// The application ends its output.
    pub(super) fn shutdown(&mut self, now: Now, channel: u32, thread: u32, handle: u32) {
        if let Some(session) = self.session_of(channel, handle) {
            self.live.get_mut(&session).expect("live").ownership.end_output();
            let thread = self.turn_of(channel, thread);
            self.processes.turns.shutdown(now, thread, session);
        }
    }

    /// A process closes its last descriptor of a connection: FIN or RST may leave when that is committed. `shared`: a
    /// process that it forked may hold the connection, too, and may not have joined yet. Then the kernel's FIN tells.
    pub(super) fn close(&mut self, now: Now, channel: u32, thread: u32, handle: u32, shared: bool) {
        let Some(session) = self.session_of(channel, handle) else {
            return self.close_unattached(now, channel, handle, shared);
        };
        self.processes.detach(channel, handle);
        self.causes.closed(channel, session);
        let live = self.live.get_mut(&session).expect("live");
        live.ownership.left_by(channel);
        if live.ownership.is_held() {
            return;
        }
        live.ownership.set_closed_by(channel);
        if !shared {
            let before = live.ownership.close();
            let thread = self.turn_of(channel, thread);
            self.processes.turns.shutdown(now, thread, session);
            if !before {
                self.processes.closes(thread, session);
                // Another process may have it all the same, which no hook told: the kernel is asked, unless it ends it.
                self.processes.suspect(now + SUSPICIOUS, session);
            }
        }
    }

    /// Of a session that has ended, or that its hooks do not know any more.
    fn close_unattached(&mut self, now: Now, channel: u32, handle: u32, shared: bool) {
        let Some(session) = self.processes.detach(channel, handle) else { return };
        self.causes.closed(channel, session);
        let Some(live) = self.live.get_mut(&session).filter(|l| l.loose() && !shared) else { return };
        live.ownership.left_by(channel);
        if !live.ownership.is_held() {
            self.closed_unasked(now, channel, session);
        }
    }

    /// The answer to [`Action::AskClosed`]: some process still has it.
    pub fn still_open(&mut self, now: Now, session: SessionId) {
        self.clock = now;
        let (Some(s), Some(live)) = (self.store.get(session), self.live.get(&session)) else { return };
        if self.gate.serves() && s.closed && live.only_told_closed(s) {
            self.reopen(session);
            self.judge_held(now, session);
        }
    }

    /// The kernel goes on with a connection that was closed by the process that held it: another one holds it, which got
    /// it in a way that no hook saw. The end is taken back, for none is out; from now on the kernel's FIN tells. What is held
    /// is to be judged again.
    pub(super) fn reopen(&mut self, session: SessionId) {
        self.recount(session, |live| live.ownership.reopen());
        self.processes.turns.reopen(session);
        self.processes.reopen(session);
        if !self.store.get(session).is_some_and(|s| s.out_fin) {
            return;
        }
        // An end is for ever, in the store: it is told anew what the session is.
        let mut records = Vec::new();
        self.store.snapshot_open(session, &mut records);
        let position = self.tell_anew(session, &records);
        self.live.get_mut(&session).expect("live").base_pos = position;
    }

    /// A process exits in order: what it holds is closed by the kernel, as it asked for.
    pub fn exit(&mut self, now: Now, channel: u32) {
        for handle in self.processes.handles_of(channel) {
            self.close(now, channel, u32::MAX, handle, false);
        }
        self.processes.ended(channel);
        // Those that have a handle were closed by that.
        let loose = |l: &Live| l.loose() && l.ownership.is_held_by(channel);
        if self.processes.is_cut_off(channel) {
            #[cfg(test)]
            (self.walks += 1);
            self.ids_of(loose).into_iter().for_each(|id| self.closed_unasked(now, channel, id));
        }
        self.turns_end(now, channel);
    }

    /// Who closed a session that others may hold.
    pub(super) fn closer(&self, live: &Live) -> Option<Closer> {
        match live.ownership.closed_by() {
            Some(Closer::Process(channel)) if self.processes.has_ended(channel) => Some(Closer::Ended),
            closer => closer,
        }
    }

    /// What the process of this channel did so far is whole: it has ended, or executes another program.
    pub fn turns_end(&mut self, now: Now, channel: u32) {
        for thread in self.processes.threads_of(channel) {
            self.turn_end(now, channel, thread);
        }
    }

    /// Which writes have an open intent, as (channel, handle), told after each drain of the hooks' rings.
    pub fn set_intents(&mut self, intents: impl IntoIterator<Item = (u32, u32)>) {
        for session in self.processes.set_intents(intents) {
            // What went around the hooks meanwhile could not be told from the write.
            self.judge_held(self.clock, session);
        }
    }

    /// To be called after a round of hook events: applies the commits that they led to.
    pub fn run_commits(&mut self, now: Now) {
        self.clock = now;
        if !self.gate.serves() {
            return;
        }
        let mut commit = std::mem::take(&mut self.commit);
        let mut entries = std::mem::take(&mut self.entries);
        while self.processes.turns.poll_commit(&mut commit) {
            entries.clear();
            for e in &commit.entries {
                let (Some(s), Some(live)) = (self.store.get(e.session), self.live.get_mut(&e.session)) else {
                    continue;
                };
                let fresh = e.out_done.saturating_sub(s.out_done);
                // Behind the end that another process asked for there can be nothing.
                let room = if s.out_fin { 0 } else { live.announced.len() as u64 };
                let taken = fresh.min(room);
                let from = s.out_done;
                let out_done = from + taken;
                let open = out_done.saturating_sub(e.out_base);
                let in_done = e.in_done.clamp(s.in_done, s.in_end());
                // Output that is nowhere, or a response longer than a record can say: it cannot be told any more.
                if taken < fresh || open > MAX_OPEN || e.in_done < s.in_done {
                    live.ownership.lose();
                }
                let (lost, in_end) = (live.ownership.is_lost(), s.in_end());
                if e.in_done > in_end {
                    self.around.claims(e.session, e.in_done);
                }
                let around = self.around.outlasts(e.session, in_done, out_done);
                let (Some(s), Some(live)) = (self.store.get(e.session), self.live.get(&e.session)) else { continue };
                entries.push(Committed {
                    session: e.session,
                    in_done: in_done as u32,
                    out_done: out_done as u32,
                    open: open.min(MAX_OPEN),
                    fin: e.fin,
                    // Not by a turn that has yet to come to its end.
                    closed: s.closed || live.ownership.is_closed() && e.fin && !self.processes.is_closing(e.session),
                    torn: e.torn || lost || around,
                });
                self.write_output(e.session, from, taken as usize);
            }
            // Of one that has ended meanwhile nothing is kept.
            commit.changes.retain(|change| match change {
                Change::Checkpoint { session, .. } => self.live.contains_key(session),
                Change::Put { .. } | Change::Delete { .. } => true,
            });
            self.complete(&mut entries, &commit.changes);
            self.write_commit(now, &entries, &commit.changes);
        }
        self.commit = commit;
        self.entries = entries;
        for session in self.processes.take_closed() {
            // A close after a shutdown moves nothing that a turn knows of; still nobody is to get the session.
            let (Some(s), Some(live)) = (self.store.get(session), self.live.get(&session)) else { continue };
            if live.ownership.is_closed() && s.out_fin && !s.closed {
                let entry = Committed { closed: true, ..s.committed() };
                self.write_commit(now, &[entry], &[]);
            }
        }
    }

    /// Nobody can know this session's state any more.
    pub(super) fn tear(&mut self, now: Now, session: SessionId) {
        let s = self.store.get(session).expect("known");
        self.live.get_mut(&session).expect("live").ownership.lose();
        let entry = Committed { torn: true, ..s.committed() };
        self.write_commit(now, &[entry], &[]);
    }

    /// Each session whose data changes is among the entries, if only for a replica that knows no data.
    fn complete(&self, entries: &mut Vec<Committed>, changes: &[Change<Box<[u8]>>]) {
        if changes.is_empty() {
            return;
        }
        let there: BTreeSet<SessionId> = entries.iter().map(|e| e.session).collect();
        let kept = changes.iter().filter_map(|change| match change {
            Change::Checkpoint { session, .. } => Some(*session),
            Change::Put { .. } | Change::Delete { .. } => None,
        });
        let lacking = kept.filter(|session| !there.contains(session));
        entries.extend(lacking.filter_map(|session| self.store.get(session)).map(Session::committed));
    }

    pub(super) fn write_commit(&mut self, now: Now, entries: &[Committed], mut changes: &[Change<Box<[u8]>>]) {
        if entries.len() > MOST_ENTRIES {
            // More than one record tells of. Whatever the replica gets of them, none of these sessions goes on as if it had got
            // all: each is torn until its own part is there.
            let torn = |e: &Committed| Some(Committed { torn: true, ..self.store.get(e.session)?.committed() });
            let torn: Vec<Committed> = entries.iter().filter_map(torn).collect();
            torn.chunks(MOST_ENTRIES).for_each(|part| self.write_part(now, part, &[]));
        }
        if entries.is_empty() && !changes.is_empty() {
            return self.write_part(now, entries, changes);
        }
        for part in entries.chunks(MOST_ENTRIES) {
            self.write_part(now, part, std::mem::take(&mut changes));
        }
    }

    fn write_part(&mut self, now: Now, entries: &[Committed], changes: &[Change<Box<[u8]>>]) {
        let position = self.gate.append_commit(self.clock, &mut self.store, entries, changes);
        for e in entries {
            if let (Some(s), Some(live)) = (self.store.get(e.session), self.live.get_mut(&e.session)) {
                live.out_positions.wrote(s.out_sendable(), position, &mut self.pools.positions);
                if e.torn {
                    // What is wrong of it may be among the bytes of older records.
                    live.base_pos = position;
                }
            }
        }
        for e in entries {
            self.judge_held(now, e.session);
        }
    }

    /// Output of a session that no hook knows: each segment is its own turn, and its input is done at once.
    pub(super) fn commit_unattached(&mut self, now: Now, session: SessionId, fin: bool) {
        let read = self.store.get(session).expect("known").in_end();
        self.commit_read(now, session, read, fin);
    }

    /// The same where only so much of the input was read.
    pub(super) fn commit_read(&mut self, now: Now, session: SessionId, read: u64, fin: bool) {
        let s = self.store.get(session).expect("known");
        let live = self.live.get_mut(&session).expect("live");
        if s.out_fin {
            live.announced.truncate(0, &mut self.pools.announced);
        }
        let pending = live.announced.len();
        let (in_done, from) = (read.clamp(s.in_done, s.in_end()), s.out_done);
        let entry = Committed {
            session,
            in_done: in_done as u32,
            out_done: (from + pending as u64) as u32,
            open: 0,
            fin: fin || s.out_fin,
            closed: fin || s.closed,
            torn: live.ownership.is_lost(),
        };
        self.write_output(session, from, pending);
        let torn = self.around.outlasts(session, in_done, from + pending as u64);
        self.write_commit(now, &[Committed { torn: torn || entry.torn, ..entry }], &[]);
    }

    /// Writes the first `n` announced bytes to the log.
    fn write_output(&mut self, session: SessionId, from: u64, n: usize) {
        if n == 0 {
            return;
        }
        let mut pending = std::mem::take(&mut self.live.get_mut(&session).expect("live").announced);
        let (a, b) = pending.as_slices();
        let (a, b) = (&a[..n.min(a.len())], &b[..n.saturating_sub(a.len())]);
        self.write(n, |out| {
            for (at, part) in [(from, a), (from + a.len() as u64, b)] {
                if !part.is_empty() {
                    record::encode_output(session, at, part, out);
                }
            }
        });
        pending.drop_first(n, &mut self.pools.announced);
        self.live.get_mut(&session).expect("live").announced = pending;
    }

    /// What the process of this channel says is not to be believed any more: its sessions go on as those that no hook knows,
    /// and are torn. Its death is told by [`Self::process_gone`] all the same.
    pub fn cut_off(&mut self, now: Now, channel: u32) {
        let mut ids: Vec<SessionId> = self
            .live
            .iter()
            .filter(|(_, l)| l.ownership.is_attached() && l.ownership.is_held_by(channel))
            .map(|(id, _)| *id)
            .collect();
        ids.sort_unstable();
        ids.into_iter().for_each(|id| self.lose(now, id));
        self.counters.cut_off += 1;
        self.processes.turns.processes_gone(|gone| *gone == channel);
        self.run_commits(now);
        self.processes.cut_off(channel);
    }

    /// Whether the process of this channel has connections.
    #[must_use]
    pub fn has_connections(&self, channel: u32) -> bool {
        self.live.values().any(|live| live.ownership.is_held_by(channel))
    }

    /// Those, as the kernel names them.
    #[must_use]
    pub fn tuples_of(&self, channel: u32) -> Vec<FourTuple> {
        let of_it = self.live.iter().filter(|(_, live)| live.ownership.is_held_by(channel));
        of_it.filter_map(|(id, _)| self.store.get(*id)).map(|s| self.local_tuple(&s.open.tuple)).collect()
    }

    /// The process of this channel is dead: see [`Self::processes_gone`].
    pub fn process_gone(&mut self, now: Now, channel: u32) {
        self.processes_gone(now, &[channel].into());
    }

    /// The processes of these channels are dead: their open turns never happened, and their endings are withheld. Looks at all
    /// sessions, once for all of them.
    pub fn processes_gone(&mut self, now: Now, channels: &BTreeSet<u32>) {
        self.processes.died(now);
        let gone = |channel: &u32| channels.contains(channel);
        #[cfg(test)]
        (self.walks += 1);
        for (&id, live) in &self.live {
            // What another process holds is not read again.
            if !live.ownership.is_held() || !live.ownership.holders().all(|channel| gone(&channel)) {
                continue;
            }
            let Some(s) = self.store.get(id) else { continue };
            if live.ownership.is_attached()
                && self.processes.turns.unanswered(id)
                && self.processes.turns.in_read(id).is_some_and(|read| read > s.in_done)
            {
                self.processes.died_of(id, s.in_done);
            }
        }
        self.processes.turns.processes_gone(gone);
        self.causes.processes_gone(gone);
        // What the policy has to say of turns that the dead ones shared with the living comes first.
        self.run_commits(now);
        let mut orphans = Vec::new();
        for (&id, live) in &mut self.live {
            let s = self.store.get(id).expect("live");
            let closer = match live.ownership.closed_by() {
                Some(Closer::Process(channel)) if gone(&channel) => Some(channel),
                _ => None,
            };
            // What one that ended in order had closed, it meant to close.
            let meant = closer.is_some_and(|channel| self.processes.has_ended(channel));
            if meant {
                live.ownership.closer_ended();
            }
            let close_was_cut_off = closer.is_some() && !meant && !s.closed;
            let held_it = live.ownership.left_by_all(gone) || close_was_cut_off;
            // Closed in a turn that never came to its end.
            let unclosed = (live.ownership.fin_asked() && !s.out_fin || live.ownership.is_closed() && !s.closed)
                && !self.processes.turns.pending(id);
            // Accepted, and dead before it could say so.
            let unsaid = !live.ownership.is_attached() && live.held.iter().any(|h| live.unasked(h));
            if !live.ownership.is_held() && (held_it || live.ownership.is_attached() && unclosed || unsaid) {
                orphans.push(id);
            }
        }
        self.processes.gone(channels);
        orphans.sort_unstable();
        for id in orphans {
            // The end of one may be the end of another.
            let (Some(s), Some(live)) = (self.store.get(id), self.live.get_mut(&id)) else { continue };
            live.ownership.roll_back(s);
            live.announced.truncate(0, &mut self.pools.announced);
            self.judge_held(now, id);
        }
    }

    /// The answer to [`Action::AskUnread`]: how many bytes of input the kernel's socket has taken since it was made, and
    /// how many of them the application has not read.
    pub fn unread(&mut self, now: Now, session: SessionId, received: u64, unread: u64) {
        self.clock = now;
        let (Some(s), Some(live)) = (self.store.get(session), self.live.get_mut(&session)) else { return };
        live.ownership.answered(WhyAsked::Recount);
        let taken = live.local.base().saturating_add(received);
        let read = taken.saturating_sub(unread).min(s.in_end());
        let moved = self.processes.turns.in_read(session).is_some_and(|before| read > before);
        self.processes.turns.read_around(session, read);
        self.read_unhooked(session, read);
        self.read_unseen(now, session, read, moved);
        self.settle_dispute(now, session, taken);
        let Some(live) = self.live.get_mut(&session) else { return };
        if !live.ownership.answered(WhyAsked::Output) {
            return;
        }
        self.processes.set_read_known(session, read);
        self.judge_held(now, session);
        self.processes.forget_read_known();
    }

    /// The process of this channel lives: what it ended, it ended behind our back, and on purpose.
    pub fn process_alive(&mut self, now: Now, channel: u32) {
        if !self.gate.serves() {
            return;
        }
        let (live, ended) = (&self.live, self.processes.has_ended(channel));
        let closed = |l: &Live| !ended && !l.ownership.is_held() && l.ownership.closed_by() == Some(Closer::Process(channel));
        let silent = |l: &Live| (l.ownership.is_held_by(channel) || closed(l)) && l.held.iter().any(|h| l.unasked(h));
        for session in self.processes.take_suspects(|id| live.get(&id).is_some_and(|l| silent(l))) {
            self.counters.unhooked_closes += 1;
            self.closed_unasked(now, channel, session);
            self.judge_held(now, session);
        }
    }

    /// The kernel has closed it, and on purpose, though no hook said so.
    pub(super) fn closed_unasked(&mut self, now: Now, channel: u32, session: SessionId) {
        let Some(live) = self.live.get_mut(&session) else { return };
        live.ownership.close();
        if live.loose() {
            return self.commit_unattached(now, session, true);
        }
        let thread = thread_key(channel, u32::MAX);
        self.processes.turns.shutdown(now, thread, session);
        self.processes.closes(thread, session);
        self.turn_end(now, channel, u32::MAX);
        self.run_commits(now);
    }
}
