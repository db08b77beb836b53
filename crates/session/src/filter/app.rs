//! What the hooks tell: descriptors, reads, writes, turns, and processes that end.

use super::around;
use super::live::{Live, Stage};
use super::output::SUSPICIOUS;
use super::splicing::Handshake;
use super::{Action, Filter, Mode};
use crate::record::{self, Cause, Committed, MAX_OPEN};
use crate::store::Session;
use crate::tuple::{FourTuple, SessionId};
use crate::turn::{Rest, Thread, TurnPolicy};
use crate::Now;

/// How a process came to hold a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// By accept.
    Accepted,
    /// By connect.
    Connected,
    /// By accept, restored after a takeover.
    Recovered,
    /// From its parent.
    Inherited,
}

/// Most handles of one process, and most threads whose open turns are remembered: what it makes up must not eat the
/// manager's memory. (A process may have no more descriptors, fs.nr_open.)
const MOST_HANDLES: usize = 1 << 20;
const MOST_THREADS: usize = 1 << 16;
/// Most output that a process may have announced before the kernel has sent it: more than a send buffer is.
const MOST_UNSENT: u64 = 256 << 20;
/// A record has room for so many sessions.
const MOST_ENTRIES: usize = u16::MAX as usize;

/// In place of the channel of a process that has ended in order.
pub(super) const IN_ORDER: u32 = u32::MAX;

pub(super) fn thread_key(channel: u32, thread: u32) -> Thread {
    Thread::from(channel) << 32 | Thread::from(thread)
}

pub(super) fn as_it_is(s: &Session) -> Committed {
    Committed {
        session: s.open.session,
        in_done: s.in_done as u32,
        out_done: s.out_done as u32,
        open: s.out_done - s.out_base,
        fin: s.out_fin,
        closed: s.closed,
        torn: s.torn,
    }
}

impl Filter {
    /// A process holds a connection under a handle. Connections that are no session of ours (local ones) are
    /// passed over, and so is everything said of them.
    pub fn attach(&mut self, now: Now, channel: u32, handle: u32, origin: Origin, tuple: &FourTuple) {
        let Some(session) = self.outer(tuple).and_then(|tuple| self.store.find(&tuple)) else { return };
        if self.mode == Mode::Passive {
            return;
        }
        let Some(live) = self.live.get(&session) else { return };
        // Nobody can hold what has no socket; and what a process had to say of one that we lost track of is over.
        if matches!(live.stage, Stage::Embryo { .. } | Stage::Probing) || live.loose() {
            return;
        }
        let many = || self.handles.keys().filter(|(c, _)| *c == channel).count() >= MOST_HANDLES;
        if self.handles.len() >= MOST_HANDLES && many() {
            return;
        }
        if origin == Origin::Inherited && self.live[&session].closed && self.mode.serves() {
            // Whoever closed it had passed it on before, and what it told came first.
            self.run_commits(now);
            let (s, live) = (self.store.get(session).expect("found"), &self.live[&session]);
            if live.only_told_closed(s) {
                self.reopen(session);
                self.judge_held(now, session);
            }
        }
        self.handles.insert((channel, handle), session);
        let (mut first, mut answered, mut made) = (false, false, false);
        self.recount(session, |live| {
            if !live.owners.contains(&channel) {
                live.owners.push(channel);
            }
            live.orphan = false;
            // A forked process has joined, and says itself when it closes it.
            if origin == Origin::Inherited {
                live.let_go = None;
            }
            first = !live.attached;
            answered = matches!(live.recovery.handshake, Some(Handshake::Answered { .. })) && live.outgoing;
            made = live.recovery.handshake.is_some();
            live.handed_over();
        });
        if first {
            let accepted =
                (made || self.splices.get(tuple).is_some()) && !self.live[&session].outgoing && !self.live[&session].bare;
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
        self.turns.open(session, policy, s.in_done, s.out_done, s.out_base);
        if self.live.get(&session).is_some_and(|l| l.outgoing) {
            self.turns.called(session);
        }
        self.pair_turns(session);
        self.input_again(session);
    }

    /// Tells the turn policy for whom a connection was made.
    pub(super) fn pair_turns(&mut self, session: SessionId) {
        if self.live.get(&session).is_some_and(|l| l.outgoing) {
            match self.store.get(session).and_then(|s| s.cause) {
                Some(Cause::Unclear { .. }) => self.turns.unclear(session),
                _ => self.turns.pair(session, self.root(session)),
            }
        } else {
            self.store.caused_by(session).iter().for_each(|out| self.turns.pair(*out, Some(session)));
        }
    }

    /// Tells the turn policy all input that there is.
    pub(super) fn input_again(&mut self, session: SessionId) {
        let s = self.store.get(session).expect("known");
        let (a, b) = s.input.as_slices();
        for (offset, bytes) in [(s.in_done, a), (s.in_done + a.len() as u64, b)] {
            if !bytes.is_empty() {
                self.turns.input(session, offset, bytes);
            }
        }
    }

    /// What another process, to which a recovered session is passed, does not write again: so much of its output, and
    /// whether a greeting.
    #[must_use]
    pub fn passed_info(&self, tuple: &FourTuple) -> Option<(u64, bool)> {
        let id = self.store.find(&self.outer(tuple)?)?;
        let (s, live) = (self.store.get(id)?, self.live.get(&id)?);
        let greeted = s.out_base > 0 && self.turns.in_read(id) == Some(live.kernel_base);
        let unwritten = self.turns.unwritten(id);
        (live.attached && live.restored && (greeted || unwritten > 0)).then_some((unwritten, greeted))
    }

    pub(super) fn session_of(&self, channel: u32, handle: u32) -> Option<SessionId> {
        let id = *self.handles.get(&(channel, handle))?;
        self.live.get(&id)?.attached.then_some(id)
    }

    fn turn_of(&mut self, channel: u32, thread: u32) -> Thread {
        let thread = thread_key(channel, thread);
        if self.in_turn.len() < MOST_THREADS {
            self.in_turn.insert(thread);
        }
        thread
    }

    /// Bytes that the kernel took from the application; `short`: fewer than it offered.
    pub fn write_out(&mut self, now: Now, channel: u32, thread: u32, handle: u32, bytes: &[u8], short: bool) {
        let asked = bytes.len() as u64 + u64::from(short);
        self.write_of(now, channel, thread, handle, bytes, asked);
    }

    /// The same, where it is known how many bytes the application had `asked` for.
    pub fn write_of(&mut self, now: Now, channel: u32, thread: u32, handle: u32, bytes: &[u8], asked: u64) {
        let Some(session) = self.session_of(channel, handle) else { return };
        let (s, live) = (self.store.get(session).expect("live"), self.live.get_mut(&session).expect("live"));
        let announced = s.out_done + (live.pending.len() + bytes.len()) as u64;
        if announced.saturating_sub(live.kernel_nxt.max(s.out_acked)) > MOST_UNSENT {
            return self.lose(now, session);
        }
        live.pending.lend(&mut self.spares.pending).extend(bytes);
        // That may show whose the session is, which says what is passed on.
        self.note_write(now, channel, thread, session, bytes.len() as u64 >= asked);
        let thread = self.turn_of(channel, thread);
        self.turns.write_of(now, thread, session, bytes.len() as u64, asked);
    }

    /// Bytes that the application wrote again after a failover, and that the hook swallowed.
    pub fn absorbed(&mut self, now: Now, channel: u32, thread: u32, handle: u32, n: u64) {
        if let Some(session) = self.session_of(channel, handle) {
            self.note_write(now, channel, thread, session, true);
            let thread = self.turn_of(channel, thread);
            self.turns.write(now, thread, session, n, false);
        }
    }

    /// A thread has read something else than a session: see [`crate::turn::TurnPolicy::reads_other`].
    pub fn reads_other(&mut self, channel: u32, thread: u32) {
        if self.mode != Mode::Passive {
            self.turns.reads_other(thread_key(channel, thread));
        }
    }

    /// Bytes that the application has taken from the socket; 0: it looked for some, and there were none.
    pub fn read(&mut self, now: Now, channel: u32, thread: u32, handle: u32, n: u64) {
        let Some(session) = self.session_of(channel, handle) else { return };
        let told = self.turns.told(session).unwrap_or(0);
        let there = self.store.get(session).expect("live").in_end().saturating_sub(told);
        if n > there && self.mode.serves() {
            // More than ever came through here.
            if n > there.saturating_add(around::MOST) {
                return self.lose(now, session);
            }
            self.claims_more(session, told.saturating_add(n));
        }
        if self.turns.in_read(session) > Some(told) && self.config.hooked {
            // Either the kernel had counted this one before it was told, or it had counted one that is told by nobody.
            let live = self.live.get_mut(&session).expect("live");
            if !std::mem::replace(&mut live.recount, true) {
                self.actions.push(Action::AskUnread(session));
            }
        }
        if n > 0 {
            self.note_read(channel, thread, session);
        }
        let thread = self.turn_of(channel, thread);
        self.turns.read(now, thread, session, n);
    }

    /// `tcpr_consume`.
    pub fn consume(&mut self, channel: u32, thread: u32, handle: u32, n: u64) {
        if let Some(session) = self.session_of(channel, handle) {
            let thread = self.turn_of(channel, thread);
            self.turns.consume(thread, session, n);
        }
    }

    /// A thread waits, or said commit: its turn is over.
    pub fn turn_end(&mut self, now: Now, channel: u32, thread: u32) {
        self.note_wait(channel, thread);
        self.end_turn(now, channel, thread);
    }

    fn end_turn(&mut self, now: Now, channel: u32, thread: u32) {
        if self.mode == Mode::Passive {
            return;
        }
        let thread = thread_key(channel, thread);
        self.in_turn.remove(&thread);
        self.turns.turn_end(now, thread);
        let closed = &mut self.closed;
        self.closing.retain(|&(t, session)| {
            if t == thread {
                closed.push(session);
            }
            t != thread
        });
    }

    /// A thread looks for events and will not wait: see [`crate::turn::TurnPolicy::look`].
    pub fn look(&mut self, now: Now, channel: u32, thread: u32) {
        self.end_if(now, channel, thread, |turns, thread| turns.look(thread));
    }

    /// A thread that has written is about to read: see [`crate::turn::TurnPolicy::reads_on`].
    pub fn reads_on(&mut self, now: Now, channel: u32, thread: u32) {
        self.end_if(now, channel, thread, |turns, thread| turns.reads_on(thread));
    }

    /// Ends a turn if the policy does, or if it closed a session.
    fn end_if(&mut self, now: Now, channel: u32, thread: u32, ends: impl FnOnce(&mut TurnPolicy, Thread) -> bool) {
        let key = thread_key(channel, thread);
        let closes = self.closing.iter().any(|&(t, _)| t == key);
        if closes || self.mode != Mode::Passive && ends(&mut self.turns, key) {
            self.end_turn(now, channel, thread);
        }
    }

    /// The answer to [`Action::AskAsleep`].
    pub fn rest(&mut self, now: Now, channel: u32, thread: u32, rest: Rest) {
        if self.mode.serves() && self.turns.rest(now, thread_key(channel, thread), rest) {
            self.turn_end(now, channel, thread);
            self.run_commits(now);
        }
    }

    /// A thread waits in the middle of a write: see [`crate::turn::TurnPolicy::blocked`].
    pub fn blocked(&mut self, channel: u32, thread: u32) {
        if self.mode != Mode::Passive {
            self.turns.blocked(thread_key(channel, thread));
        }
    }

    /// It waits no more, and goes on without having written all.
    pub fn unblocked(&mut self, channel: u32, thread: u32) {
        if self.mode != Mode::Passive {
            self.turns.unblocked(thread_key(channel, thread));
        }
    }

    /// The application ends its output.
    pub fn shutdown(&mut self, now: Now, channel: u32, thread: u32, handle: u32) {
        if let Some(session) = self.session_of(channel, handle) {
            self.live.get_mut(&session).expect("live").fin_asked = true;
            let thread = self.turn_of(channel, thread);
            self.turns.shutdown(now, thread, session);
        }
    }

    /// A process closes its last descriptor of a connection: FIN or RST may leave when that is committed. `shared`: a
    /// process that it forked may hold the connection, too, and may not have joined yet. Then the kernel's FIN tells.
    pub fn close(&mut self, now: Now, channel: u32, thread: u32, handle: u32, shared: bool) {
        let Some(session) = self.session_of(channel, handle) else {
            return self.close_unattached(now, channel, handle, shared);
        };
        self.handles.remove(&(channel, handle));
        self.note_close(channel, session);
        let live = self.live.get_mut(&session).expect("live");
        live.owners.retain(|&c| c != channel);
        if !live.owners.is_empty() {
            return;
        }
        live.let_go = Some(channel);
        if !shared {
            live.fin_asked = true;
            let before = std::mem::replace(&mut live.closed, true);
            let thread = self.turn_of(channel, thread);
            self.turns.shutdown(now, thread, session);
            if !before {
                self.closing.push((thread, session));
                // Another process may have it all the same, which no hook told: the kernel is asked, unless it ends it.
                self.suspicious.push_back((now + SUSPICIOUS, session));
            }
        }
    }

    /// Of a session that has ended, or that its hooks do not know any more.
    fn close_unattached(&mut self, now: Now, channel: u32, handle: u32, shared: bool) {
        let Some(session) = self.handles.remove(&(channel, handle)) else { return };
        let Some(live) = self.live.get_mut(&session).filter(|l| l.loose() && !shared) else { return };
        live.owners.retain(|&c| c != channel);
        if live.owners.is_empty() {
            self.closed_unasked(now, channel, session);
        }
    }

    /// The answer to [`Action::AskClosed`]: some process still has it.
    pub fn still_open(&mut self, now: Now, session: SessionId) {
        self.clock = now;
        let (Some(s), Some(live)) = (self.store.get(session), self.live.get(&session)) else { return };
        if self.mode.serves() && s.closed && live.only_told_closed(s) {
            self.reopen(session);
            self.judge_held(now, session);
        }
    }

    /// The kernel goes on with a connection that was closed by the process that held it: another one holds it, which got
    /// it in a way that no hook saw. The end is taken back, for none is out; from now on the kernel's FIN tells. What is held
    /// is to be judged again.
    pub(super) fn reopen(&mut self, session: SessionId) {
        self.recount(session, |live| {
            live.closed = false;
            live.fin_asked = false;
        });
        self.turns.reopen(session);
        self.closing.retain(|(_, id)| *id != session);
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
        let mut held: Vec<u32> = self.handles.keys().filter(|(c, _)| *c == channel).map(|(_, h)| *h).collect();
        held.sort_unstable();
        for handle in held {
            self.close(now, channel, u32::MAX, handle, false);
        }
        let mut loose = Vec::new();
        for (id, live) in &mut self.live {
            if live.let_go == Some(channel) {
                live.let_go = Some(IN_ORDER);
            }
            if live.loose() && live.owners.contains(&channel) {
                loose.push(*id);
            }
        }
        loose.sort_unstable();
        loose.into_iter().for_each(|id| self.closed_unasked(now, channel, id));
        self.turns_end(now, channel);
    }

    /// What the process of this channel did so far is whole: it has ended, or executes another program.
    pub fn turns_end(&mut self, now: Now, channel: u32) {
        let first = thread_key(channel, 0);
        let turns: Vec<Thread> = self.in_turn.range(first..=first | u64::from(u32::MAX)).copied().collect();
        for thread in turns {
            self.turn_end(now, channel, thread as u32);
        }
    }

    /// Which writes have an open intent, as (channel, handle), told after each drain of the hooks' rings.
    pub fn set_intents(&mut self, intents: impl IntoIterator<Item = (u32, u32)>) {
        let before = std::mem::take(&mut self.intents);
        self.intents.extend(intents);
        for key in before {
            if !self.intents.contains(&key) {
                // What went around the hooks meanwhile could not be told from the write.
                if let Some(&session) = self.handles.get(&key) {
                    self.judge_held(self.clock, session);
                }
            }
        }
    }

    /// To be called after a round of hook events: applies the commits that they led to.
    pub fn run_commits(&mut self, now: Now) {
        self.clock = now;
        if !self.mode.serves() {
            return;
        }
        let mut commit = std::mem::take(&mut self.commit);
        let mut entries = std::mem::take(&mut self.entries);
        while self.turns.poll_commit(&mut commit) {
            entries.clear();
            for e in &commit.entries {
                let (Some(s), Some(live)) = (self.store.get(e.session), self.live.get_mut(&e.session)) else {
                    continue;
                };
                let fresh = e.out_done.saturating_sub(s.out_done);
                // Behind the end that another process asked for there can be nothing.
                let room = if s.out_fin { 0 } else { live.pending.len() as u64 };
                let taken = fresh.min(room);
                let from = s.out_done;
                let out_done = from + taken;
                let open = out_done.saturating_sub(e.out_base);
                let in_done = e.in_done.clamp(s.in_done, s.in_end());
                // Output that is nowhere, or a response longer than a record can say: it cannot be told any more.
                live.lost |= taken < fresh || open > MAX_OPEN || e.in_done < s.in_done;
                let (lost, in_end) = (live.lost, s.in_end());
                if e.in_done > in_end {
                    self.claims_more(e.session, e.in_done);
                }
                let around = self.still_around(e.session, in_done, out_done);
                let (Some(s), Some(live)) = (self.store.get(e.session), self.live.get(&e.session)) else { continue };
                entries.push(Committed {
                    session: e.session,
                    in_done: in_done as u32,
                    out_done: out_done as u32,
                    open: open.min(MAX_OPEN),
                    fin: e.fin,
                    // Not by a turn that has yet to come to its end.
                    closed: s.closed || live.closed && e.fin && !self.closing.iter().any(|(_, id)| *id == e.session),
                    torn: e.torn || lost || around,
                });
                self.write_output(e.session, from, taken as usize);
            }
            self.write_commit(now, &entries);
        }
        self.commit = commit;
        self.entries = entries;
        for session in std::mem::take(&mut self.closed) {
            // A close after a shutdown moves nothing that a turn knows of; still nobody is to get the session.
            let (Some(s), Some(live)) = (self.store.get(session), self.live.get(&session)) else { continue };
            if live.closed && s.out_fin && !s.closed {
                let entry = Committed { closed: true, ..as_it_is(s) };
                self.write_commit(now, &[entry]);
            }
        }
    }

    /// Nobody can know this session's state any more.
    pub(super) fn tear(&mut self, now: Now, session: SessionId) {
        let s = self.store.get(session).expect("known");
        self.live.get_mut(&session).expect("live").lost = true;
        let entry = Committed { torn: true, ..as_it_is(s) };
        self.write_commit(now, &[entry]);
    }

    pub(super) fn write_commit(&mut self, now: Now, entries: &[Committed]) {
        if entries.len() > MOST_ENTRIES {
            // More than one record tells of. Whatever the replica gets of them, none of these sessions goes on as if it had got
            // all: each is torn until its own part is there.
            let torn = |e: &Committed| Some(Committed { torn: true, ..as_it_is(self.store.get(e.session)?) });
            let torn: Vec<Committed> = entries.iter().filter_map(torn).collect();
            torn.chunks(MOST_ENTRIES).for_each(|part| self.write_part(now, part));
        }
        entries.chunks(MOST_ENTRIES).for_each(|part| self.write_part(now, part));
    }

    fn write_part(&mut self, now: Now, entries: &[Committed]) {
        let position = self.write(0, |out| record::encode_commit(entries, out));
        for e in entries {
            if let (Some(s), Some(live)) = (self.store.get(e.session), self.live.get_mut(&e.session)) {
                live.out_marks.wrote(s.out_sendable(), position, &mut self.spares.marks);
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
        let s = self.store.get(session).expect("known");
        let live = self.live.get_mut(&session).expect("live");
        if s.out_fin {
            live.pending.take();
        }
        let pending = live.pending.len();
        let (in_done, from) = (s.in_end(), s.out_done);
        let entry = Committed {
            session,
            in_done: in_done as u32,
            out_done: (from + pending as u64) as u32,
            open: 0,
            fin: fin || s.out_fin,
            closed: fin || s.closed,
            torn: live.lost,
        };
        self.write_output(session, from, pending);
        let torn = self.still_around(session, in_done, from + pending as u64);
        self.write_commit(now, &[Committed { torn: torn || entry.torn, ..entry }]);
    }

    /// Writes the first `n` announced bytes to the log.
    fn write_output(&mut self, session: SessionId, from: u64, n: usize) {
        if n == 0 {
            return;
        }
        let mut pending = std::mem::take(&mut self.live.get_mut(&session).expect("live").pending);
        let (a, b) = pending.as_slices();
        let (a, b) = (&a[..n.min(a.len())], &b[..n.saturating_sub(a.len())]);
        self.write(n, |out| {
            for (at, part) in [(from, a), (from + a.len() as u64, b)] {
                if !part.is_empty() {
                    record::encode_output(session, at, part, out);
                }
            }
        });
        pending.drop_first(n, &mut self.spares.pending);
        self.live.get_mut(&session).expect("live").pending = pending;
    }

    /// What the process of this channel says is not to be believed any more: its sessions go on as those that no hook knows,
    /// and are torn. Its death is told by [`Self::process_gone`] all the same.
    pub fn cut_off(&mut self, now: Now, channel: u32) {
        let mut ids: Vec<SessionId> =
            self.live.iter().filter(|(_, l)| l.attached && l.owners.contains(&channel)).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids.into_iter().for_each(|id| self.lose(now, id));
        self.counters.cut_off += 1;
        self.turns.process_gone(channel);
        self.run_commits(now);
        self.forget_process(channel);
    }

    /// Whether the process of this channel has connections.
    #[must_use]
    pub fn has_connections(&self, channel: u32) -> bool {
        self.live.values().any(|live| live.owners.contains(&channel))
    }

    /// Those, as the kernel names them.
    #[must_use]
    pub fn tuples_of(&self, channel: u32) -> Vec<FourTuple> {
        let of_it = self.live.iter().filter(|(_, live)| live.owners.contains(&channel));
        of_it.filter_map(|(id, _)| self.store.get(*id)).map(|s| self.inner(&s.open.tuple)).collect()
    }

    fn forget_process(&mut self, channel: u32) {
        self.handles.retain(|(c, _), _| *c != channel);
        self.closing.retain(|(t, _)| (*t >> 32) as u32 != channel);
        self.intents.retain(|(c, _)| *c != channel);
        self.in_turn.retain(|t| (*t >> 32) as u32 != channel);
    }

    /// The process of this channel is dead: its open turns never happened, and its endings are withheld.
    pub fn process_gone(&mut self, now: Now, channel: u32) {
        self.last_death = Some(now);
        for (&id, live) in self.live.iter().filter(|(_, live)| live.owners.contains(&channel)) {
            let Some(s) = self.store.get(id) else { continue };
            // What another process holds is not read again.
            let alone = live.owners.iter().all(|c| *c == channel);
            if alone && live.attached && self.turns.unanswered(id) && self.turns.in_read(id).is_some_and(|read| read > s.in_done)
            {
                let (from, deaths) = self.deaths.entry(id).or_insert((s.in_done, 0));
                *deaths = if *from == s.in_done { *deaths + 1 } else { 1 };
                *from = s.in_done;
            }
        }
        self.turns.process_gone(channel);
        self.causes.process_gone(channel);
        // What the policy has to say of turns that the dead one shared with the living comes first.
        self.run_commits(now);
        self.forget_process(channel);
        let mut orphans = Vec::new();
        for (&id, live) in &mut self.live {
            let s = self.store.get(id).expect("live");
            let held_it = live.owners.contains(&channel) || live.let_go == Some(channel) && !s.closed;
            live.owners.retain(|&c| c != channel);
            // Closed in a turn that never came to its end.
            let unclosed = (live.fin_asked && !s.out_fin || live.closed && !s.closed) && !self.turns.pending(id);
            // Accepted, and dead before it could say so.
            let unsaid = !live.attached && live.held.iter().any(|h| live.unasked(h));
            if live.owners.is_empty() && (held_it || live.attached && unclosed || unsaid) {
                orphans.push(id);
            }
        }
        orphans.sort_unstable();
        for id in orphans {
            // The end of one may be the end of another.
            let (Some(s), Some(live)) = (self.store.get(id), self.live.get_mut(&id)) else { continue };
            live.orphan = true;
            live.pending.take();
            live.fin_asked = s.out_fin;
            live.closed = s.closed;
            self.judge_held(now, id);
        }
    }

    /// The answer to [`Action::AskUnread`]: how many bytes of input the kernel's socket has taken since it was made, and
    /// how many of them the application has not read.
    pub fn unread(&mut self, now: Now, session: SessionId, received: u64, unread: u64) {
        self.clock = now;
        let (Some(s), Some(live)) = (self.store.get(session), self.live.get_mut(&session)) else { return };
        live.recount = false;
        let taken = live.kernel_base.saturating_add(received);
        let read = taken.saturating_sub(unread).min(s.in_end());
        self.turns.read_around(session, read);
        self.read_unhooked(now, session, read);
        self.read_unseen(now, session, read);
        self.settle_dispute(now, session, taken);
        let Some(live) = self.live.get_mut(&session) else { return };
        if !std::mem::take(&mut live.unread_asked) {
            return;
        }
        live.unread_known = true;
        self.judge_held(now, session);
        if let Some(live) = self.live.get_mut(&session) {
            live.unread_known = false;
        }
    }

    /// The process of this channel lives: what it ended, it ended behind our back, and on purpose.
    pub fn process_alive(&mut self, now: Now, channel: u32) {
        if !self.mode.serves() {
            return;
        }
        let asked = std::mem::take(&mut self.suspects);
        let (silent, others) = asked.into_iter().partition(|id| {
            let held_it = |l: &Live| l.owners.contains(&channel) || l.owners.is_empty() && l.let_go == Some(channel);
            let silent = |l: &Live| held_it(l) && l.held.iter().any(|h| l.unasked(h));
            self.live.get(id).is_some_and(|l| silent(l))
        });
        self.suspects = others;
        for session in silent {
            self.counters.unhooked_closes += 1;
            self.closed_unasked(now, channel, session);
            self.judge_held(now, session);
        }
    }

    /// The kernel has closed it, and on purpose, though no hook said so.
    pub(super) fn closed_unasked(&mut self, now: Now, channel: u32, session: SessionId) {
        let Some(live) = self.live.get_mut(&session) else { return };
        live.fin_asked = true;
        live.closed = true;
        if live.loose() {
            return self.commit_unattached(now, session, true);
        }
        let thread = thread_key(channel, u32::MAX);
        self.turns.shutdown(now, thread, session);
        self.closing.push((thread, session));
        self.turn_end(now, channel, u32::MAX);
        self.run_commits(now);
    }
}
