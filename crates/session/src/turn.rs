//! What of an application's work is done: hook events go in, commits come out.
//!
//! A thread's turn is what it does between two waits. Turns of different threads that touched the same
//! session form one group, and a group commits as one, when the last of its threads has ended its turn.
//! So a commit never claims input whose answer is still being written somewhere else.

mod progress;
mod puts;
#[cfg(test)]
mod tests;

use crate::data::{self, Change};
use crate::framing::Framing;
use crate::tuple::{BySession, SessionId};
use crate::Now;
use progress::{Progress, Settled, NO_GROUP};
use puts::Puts;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

/// A thread of a hooked application: `channel << 32 | thread`.
pub type Thread = u64;

/// So many times `max_turn` longer may a turn last whose output would tear a session that could not be torn.
const PUT_OFF: u32 = 9;
/// How long a turn that keeps something back goes on before it is asked whether its threads sleep; then less and less often.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(64);
/// How long a thread has slept that does not sleep for a moment only: one that keeps back an answer, and one that has only
/// read, or that waits for a lock, for it may be in the middle of its work.
const SLEEPS: Duration = Duration::from_millis(1);
const SLEEPS_ON: Duration = Duration::from_millis(500);
/// Most threads that are asked about at a time.
const MOST_ASKED: usize = 64;

/// Past this many open turns, further ones end with each event: an application that makes up thread
/// numbers must not eat the manager's memory.
const MAX_OPEN_TURNS: usize = 1 << 16;

/// What becomes of input that was read and not answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unanswered {
    /// It is not done: it is read again after a failover.
    #[default]
    Redeliver,
    /// It is done when the turn ends (with framing: as far as its messages are complete).
    Discard,
}

/// How the sessions of a port are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortPolicy {
    /// Message boundaries of the input.
    pub framing: Framing,
    /// What becomes of unanswered input.
    pub unanswered: Unanswered,
    /// A session with more input than this that is read and not done is torn.
    pub max_unanswered_bytes: u64,
    /// What is written to a session follows from that session's input alone, as in a file server: each is judged as
    /// if the turn had touched no other.
    pub independent: bool,
    /// What the application knows of a session dies with it, and the session is worth nothing without: it is reset at a takeover.
    pub reset: bool,
}

impl PortPolicy {
    /// The defaults that go with a framing: `Discard` where it is set, else `Redeliver`.
    pub fn framed(framing: Framing) -> Self {
        PortPolicy {
            framing,
            unanswered: if framing.is_set() { Unanswered::Discard } else { Unanswered::Redeliver },
            max_unanswered_bytes: 4 << 20,
            independent: false,
            reset: false,
        }
    }
}

impl Default for PortPolicy {
    fn default() -> Self {
        PortPolicy::framed(Framing::None)
    }
}

/// What a commit says about one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitEntry {
    /// The session.
    pub session: SessionId,
    /// Input before this offset is done.
    pub in_done: u64,
    /// Output before this offset may be released.
    pub out_done: u64,
    /// The output offset that belongs to `in_done`: less than `out_done` while a response is open, or
    /// while a recovered application has not yet written again what is already out.
    pub out_base: u64,
    /// The application ended its output: a FIN may leave.
    pub fin: bool,
    /// The state of the session cannot be known after a crash.
    pub torn: bool,
}

/// What is done, for all sessions of a group of turns: all of it or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// One entry for each touched session about which there is something new to say.
    pub entries: Vec<CommitEntry>,
    /// The application's data.
    pub changes: Vec<Change<Box<[u8]>>>,
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Commits made.
    pub commits: u64,
    /// Times a session became torn.
    pub torn: u64,
    /// Commits that left a response open.
    pub open_commits: u64,
    /// Turns that outlasted `max_turn`.
    pub timeouts: u64,
}

/// A thread as the kernel sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It runs, or nobody can tell.
    Awake,
    /// It sleeps in a system call.
    Asleep {
        /// How often it has gone to sleep, this time included.
        times: u64,
        /// It waits for a lock, or it is not known for what.
        lock: bool,
    },
}

#[derive(Debug)]
struct OpenTurn {
    group: u32,
    /// The session this thread read last, and how far: a write answers it.
    last_read: Option<(SessionId, u64)>,
    /// It looked for events without waiting, and what it had written until then was let go as open.
    polled: bool,
    /// It waits in the middle of a write.
    blocked: bool,
    /// Since when it has been seen asleep, and the how manieth time it was; nothing was heard of it since.
    asleep: Option<(Now, u64)>,
}

/// Open turns that commit as one.
#[derive(Debug, Default)]
struct Group {
    /// Threads whose turn has not ended.
    threads: Vec<Thread>,
    sessions: Vec<SessionId>,
    deadline: Option<Now>,
    /// It was put off.
    late: bool,
    /// When to ask whether its threads sleep, and how long it was until then.
    look: Option<Now>,
    nap: Duration,
    /// More than one session was touched (also if one is closed meanwhile).
    several: bool,
    /// A session was touched whose port is not `independent`.
    dependent: bool,
    /// The process of the threads; `shared` if there is more than one.
    channel: u32,
    shared: bool,
    /// What the application's data costs that it has given in this turn.
    data: u64,
    /// There are values of the service among it: the turn is all or nothing, as one over several sessions is.
    puts: bool,
}

/// Decides which input is done and which output may leave.
///
/// Events of unknown sessions are ignored.
#[derive(Debug)]
pub struct TurnPolicy {
    max_turn: Duration,
    sessions: BySession<Box<Progress>>,
    /// Whom the application has made a connection for, and the other way round.
    pairs: HashMap<SessionId, Vec<SessionId>>,
    /// Connections that the application has made for some client, and it is not known for which.
    unclear: BTreeSet<SessionId>,
    /// Reads so far.
    reads: u64,
    /// Only threads with an open turn are in here.
    threads: HashMap<Thread, OpenTurn>,
    groups: Vec<Group>,
    free_groups: Vec<u32>,
    /// Commits to be polled: all entries and all changes in a row, and the numbers of them that each commit takes.
    entries: VecDeque<CommitEntry>,
    changes: VecDeque<Change<Box<[u8]>>>,
    commits: VecDeque<(usize, usize)>,
    /// What the application's data costs of which no commit was polled yet.
    data: u64,
    /// Values of the service that were put in turns that are not over.
    puts: Puts,
    /// Threads to ask about: see `poll_asked`.
    asked: Vec<Thread>,
    /// When something was heard last.
    heard: Now,
    counters: Counters,
}

fn channel_of(t: Thread) -> u32 {
    (t >> 32) as u32
}

impl TurnPolicy {
    /// A policy without sessions; `max_turn` counts from a turn's first output.
    pub fn new(max_turn: Duration) -> Self {
        TurnPolicy {
            max_turn,
            sessions: BySession::default(),
            pairs: HashMap::new(),
            unclear: BTreeSet::new(),
            reads: 0,
            threads: HashMap::new(),
            groups: Vec::new(),
            free_groups: Vec::new(),
            entries: VecDeque::new(),
            changes: VecDeque::new(),
            commits: VecDeque::new(),
            data: 0,
            puts: Puts::default(),
            asked: Vec::new(),
            heard: Duration::ZERO,
            counters: Counters::default(),
        }
    }

    /// A session is attached, new or recovered. The application will read from `in_done` on and write
    /// from `out_base` on; what it writes below `out_done` is absorbed.
    pub fn open(&mut self, s: SessionId, policy: PortPolicy, in_done: u64, out_done: u64, out_base: u64) {
        self.close(s);
        let progress = Progress::new(s, policy, in_done, out_done, out_base);
        self.sessions.insert(s, Box::new(progress));
    }

    /// The session is deleted; what was not committed for it never will be.
    pub fn close(&mut self, s: SessionId) {
        let Some(p) = self.sessions.remove(&s) else {
            return;
        };
        self.data -= p.checkpoint.map_or(0, |c| data::cost(c.len()));
        self.part(s);
        if p.group != NO_GROUP {
            self.groups[p.group as usize].sessions.retain(|x| *x != s);
        }
        // The number may be given to another session while the turn still goes on.
        for turn in self.threads.values_mut() {
            if turn.last_read.is_some_and(|(r, _)| r == s) {
                turn.last_read = None;
            }
        }
    }

    /// The application has made this session's connection: what it reads there are replies, and what it writes requests.
    pub fn called(&mut self, s: SessionId) {
        if let Some(p) = self.sessions.get_mut(&s) {
            p.called = true;
        }
    }

    /// The application has made this connection for that client's sake, or it is not known for whose. What was read of one is
    /// passed on by a write to the other, whatever else is read and written in between.
    pub fn pair(&mut self, out: SessionId, client: Option<SessionId>) {
        self.part(out);
        if let Some(client) = client.filter(|c| self.sessions.contains_key(c) && self.sessions.contains_key(&out)) {
            self.pairs.entry(out).or_default().push(client);
            self.pairs.entry(client).or_default().push(out);
        }
    }

    /// The application has made this connection for a client, and it is not known for which. What is read and written there says
    /// nothing of anybody else until [`Self::pair`] tells whose it is.
    pub fn unclear(&mut self, out: SessionId) {
        self.part(out);
        if self.sessions.contains_key(&out) {
            self.unclear.insert(out);
        }
    }

    /// Those of them that the thread has read last, and that wait to be passed on to whoever they are for.
    pub fn read_unclear(&self, t: Thread) -> Vec<SessionId> {
        let read = |out: &&SessionId| self.sessions.get(out).is_some_and(|p| p.last_read.0 == t && p.waits());
        self.unclear.iter().filter(read).copied().collect()
    }

    fn part(&mut self, s: SessionId) {
        self.unclear.remove(&s);
        for other in self.pairs.remove(&s).unwrap_or_default() {
            if let Some(others) = self.pairs.get_mut(&other) {
                others.retain(|x| *x != s);
                if others.is_empty() {
                    self.pairs.remove(&other);
                }
            }
        }
    }

    /// In-order input as it is stored (also that which is stored when a session is opened). Needed for
    /// framed sessions only.
    pub fn input(&mut self, s: SessionId, offset: u64, bytes: &[u8]) {
        if let Some(p) = self.sessions.get_mut(&s) {
            if let Some(scanner) = &mut p.scanner {
                scanner.feed(offset, bytes);
            }
        }
    }

    /// The thread took `n` bytes of input from the socket (0: it looked for some, and there was none).
    pub fn read(&mut self, now: Now, t: Thread, s: SessionId, n: u64) {
        self.reads_next(t, s);
        if n == 0 || !self.touch(t, s) {
            return;
        }
        self.look_after(now, t);
        let (Some(p), Some(turn)) = (self.sessions.get_mut(&s), self.threads.get_mut(&t)) else {
            return;
        };
        self.reads += 1;
        p.read(n);
        p.last_read = (t, self.reads);
        turn.last_read = Some((s, p.in_read));
        if p.oversized() {
            // A thread that reads a stream without ever waiting must not make the store keep it all.
            self.start_clock(now, t);
        }
        self.bound(t);
    }

    /// The peer, which has all that is out, sends more: an open response was whole.
    pub fn asked_anew(&mut self, s: SessionId) {
        if self.sessions.get(&s).is_some_and(|p| p.independent && p.group == NO_GROUP) {
            self.commit(&[s], |p| p.settle(true, false));
        }
    }

    /// The application has read up to this offset at least, be it with or without a hook: the kernel says so. Reads that a
    /// hook tells later may be among them.
    pub fn read_around(&mut self, s: SessionId, upto: u64) {
        if let Some(p) = self.sessions.get_mut(&s) {
            p.read_around(upto);
        }
    }

    /// More was read of a session than it may keep, and nobody tells: that is done, or the session is torn.
    pub fn overflow(&mut self, s: SessionId) {
        let Some(p) = self.sessions.get(&s).filter(|p| p.oversized()) else {
            return;
        };
        let in_turn = p.group != NO_GROUP;
        self.commit(&[s], |p| if in_turn { p.settle_part() } else { p.settle(true, false) });
    }

    /// The program is about to lose the session in order. What it has read is done, as at the end of a turn, if it reads around the
    /// hooks: the kernel counts so much more than hooks tell that they cannot just be late.
    pub fn leave(&mut self, s: SessionId) {
        if self.sessions.get(&s).is_some_and(|p| p.group == NO_GROUP && p.reads_around()) {
            self.commit(&[s], |p| p.settle(true, false));
        }
    }

    /// Input from `in_done` on is not what [`Self::input`] was told: its messages are looked for anew.
    pub fn rescan(&mut self, s: SessionId) {
        if let Some(p) = self.sessions.get_mut(&s) {
            let done = p.done.in_done;
            if let Some(scanner) = &mut p.scanner {
                scanner.restart(done);
            }
        }
    }

    /// The thread has something else from which its next output may follow: what it read from a descriptor that is no
    /// session's, or a connection that it accepted.
    pub fn reads_other(&mut self, t: Thread) {
        if let Some(turn) = self.threads.get_mut(&t) {
            turn.last_read = None;
        }
    }

    /// The thread wrote: the kernel took `taken` bytes (or they were absorbed), and not all if `short`.
    pub fn write(&mut self, now: Now, t: Thread, s: SessionId, taken: u64, short: bool) {
        self.write_of(now, t, s, taken, taken.saturating_add(u64::from(short)));
        if let Some(p) = self.sessions.get_mut(&s) {
            p.left = 0;
        }
    }

    /// The same, where it is known how many bytes the application had `asked` for.
    pub fn write_of(&mut self, now: Now, t: Thread, s: SessionId, taken: u64, asked: u64) {
        if asked == 0 {
            return;
        }
        self.writes_on(t, s);
        if !self.touch(t, s) {
            return;
        }
        let follows = self.sessions.get(&s).is_some_and(|p| p.follows(asked));
        let passed = match follows {
            true => self.pass_on(t, s),
            // It goes on with what was passed on before.
            false => self.pairs.contains_key(&s).then_some(0),
        };
        if let Some(p) = self.sessions.get_mut(&s) {
            p.write(t, taken, asked, passed);
        }
        if follows && passed.is_none() {
            self.answer(t, s);
        }
        self.start_clock(now, t);
        self.bound(t);
    }

    /// Bytes of the application were seen on the wire that no hook had announced. What was read of `others` without a hook
    /// is settled with them.
    pub fn adopted(&mut self, now: Now, s: SessionId, n: u64, others: &[SessionId]) {
        let Some(p) = self.sessions.get_mut(&s) else {
            return;
        };
        if n == 0 {
            return;
        }
        p.resume(true);
        let announced = p.pending();
        p.adopt(n);
        if p.group != NO_GROUP {
            let group = &mut self.groups[p.group as usize];
            // Nor may its input be done before the rest of a turn over several sessions.
            if announced || group.several {
                let deadline = now.saturating_add(self.max_turn);
                group.deadline.get_or_insert(deadline);
                return;
            }
        }
        let mut all = vec![s];
        all.extend_from_slice(others);
        self.commit(&all, |p| p.settle(true, false));
    }

    /// Nobody tells when its turns end: what was read so far counts as one.
    pub fn idle(&mut self, s: SessionId) {
        self.commit(&[s], |p| p.settle(true, false));
    }

    /// The application says that `n` more bytes of input are done. From its first call on (`n` may be 0)
    /// nothing is inferred for this session.
    pub fn consume(&mut self, t: Thread, s: SessionId, n: u64) {
        if !self.touch(t, s) {
            return;
        }
        self.look_after(self.heard, t);
        if let Some(p) = self.sessions.get_mut(&s) {
            p.consume(n);
        }
        self.bound(t);
    }

    /// The application says what it keeps of the session. That counts with the thread's turn; with it, the input that was read of
    /// this session until now is done, and from now on nothing is inferred for this session. False: it has given more in this turn
    /// than one may have.
    #[must_use]
    pub fn checkpoint(&mut self, t: Thread, s: SessionId, data: &[u8]) -> bool {
        if !self.touch(t, s) {
            return true;
        }
        self.look_after(self.heard, t);
        let cost = data::cost(data.len());
        let group = self.threads.get(&t).map(|turn| &mut self.groups[turn.group as usize]);
        let Some(group) = group.filter(|group| group.data + cost <= data::MAX_TURN) else { return false };
        group.data += cost;
        if let Some(p) = self.sessions.get_mut(&s) {
            let before = p.checkpoint(data);
            self.data = self.data + cost - before.map_or(0, |c| data::cost(c.len()));
        }
        self.bound(t);
        true
    }

    /// The application puts a value of the service, or deletes one (None). That counts with the thread's turn. False: it has given
    /// more in this turn than one may have.
    #[must_use]
    pub fn put(&mut self, t: Thread, key: &[u8], value: Option<&[u8]>) -> bool {
        if !self.threads.contains_key(&t) {
            let g = self.new_group();
            self.add_thread(g, t, None);
        }
        self.join_put(t, key);
        self.start_clock(self.heard, t);
        let cost = data::cost(key.len() + value.map_or(0, <[u8]>::len));
        let Some(g) = self.threads.get(&t).map(|turn| turn.group) else { return false };
        let group = &mut self.groups[g as usize];
        if group.data + cost > data::MAX_TURN {
            return false;
        }
        group.data += cost;
        (group.puts, group.several, group.dependent) = (true, true, true);
        self.data = self.data + cost - self.puts.put(channel_of(t), g, key, value);
        self.bound(t);
        true
    }

    /// Whether a process has put or deleted a key in a turn that is not over.
    #[must_use]
    pub fn has_put(&self, channel: u32, key: &[u8]) -> bool {
        self.puts.find(channel, key).is_some()
    }

    /// What the thread's process has put under a key in a turn that is not over (None: it has deleted that). The thread's turn
    /// then depends on that one, and they commit as one.
    pub fn find_put(&mut self, t: Thread, key: &[u8]) -> Option<Option<&[u8]>> {
        let has_room = self.threads.len() < MAX_OPEN_TURNS;
        if has_room && self.puts.find(channel_of(t), key).is_some() && !self.threads.contains_key(&t) {
            let g = self.new_group();
            self.add_thread(g, t, None);
        }
        self.join_put(t, key);
        self.puts.find(channel_of(t), key).map(|put| put.value.as_deref())
    }

    /// The next key behind this one that a process has put in a turn that is not over, and whether it has deleted that.
    #[must_use]
    pub fn next_put(&self, channel: u32, after: &[u8]) -> Option<(&[u8], bool)> {
        self.puts.next(channel, after)
    }

    /// Turns of threads of one process that touch the same key commit as one.
    fn join_put(&mut self, t: Thread, key: &[u8]) {
        let own = self.threads.get(&t).map(|turn| turn.group);
        let other = self.puts.find(channel_of(t), key).map(|put| put.group);
        if let Some((own, other)) = own.zip(other).filter(|(own, other)| own != other) {
            self.merge(own, other);
        }
    }

    /// What the application has said that it keeps of a session, if no commit says so yet.
    #[must_use]
    pub fn uncommitted_checkpoint(&self, s: SessionId) -> Option<&[u8]> {
        self.sessions.get(&s)?.checkpoint.as_deref().map(Box::as_ref)
    }

    /// What a turn that is over has put under a key (None: it has deleted that), if its commit was not taken yet.
    #[must_use]
    pub fn queued_value(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        self.changes.iter().rev().find_map(|change| match change {
            Change::Put { key: of, value } if **of == *key => Some(Some(&**value)),
            Change::Delete { key: of } if **of == *key => Some(None),
            _ => None,
        })
    }

    /// What a turn that is over keeps of a session, if its commit was not taken yet.
    #[must_use]
    pub fn queued_checkpoint(&self, s: SessionId) -> Option<&[u8]> {
        self.changes.iter().rev().find_map(|change| match change {
            Change::Checkpoint { session, data } if *session == s => Some(&**data),
            _ => None,
        })
    }

    /// It is this time, though nothing was heard of any thread.
    pub fn at(&mut self, now: Now) {
        self.heard = self.heard.max(now);
    }

    /// What the application's data costs of which no commit was polled yet.
    #[must_use]
    pub fn uncommitted_data(&self) -> u64 {
        self.data
    }

    /// A commit has said before what the application keeps of the session: nothing is inferred.
    pub fn says_itself(&mut self, s: SessionId) {
        if let Some(p) = self.sessions.get_mut(&s) {
            p.says_itself();
        }
    }

    /// The thread ends the output of the session. That answers what was read of this one, and of no other: it says
    /// nothing.
    pub fn shutdown(&mut self, now: Now, t: Thread, s: SessionId) {
        if !self.touch(t, s) {
            return;
        }
        if let Some(p) = self.sessions.get_mut(&s) {
            p.shutdown();
        }
        self.start_clock(now, t);
        self.bound(t);
    }

    /// The thread is about to wait, or said commit.
    pub fn turn_end(&mut self, _now: Now, t: Thread) {
        self.thread_gone(t);
    }

    /// The thread looks for events with a timeout of zero: it has more to do. A turn that has only read goes on. One
    /// that has written lets its output go, and its responses stay open until the thread waits, or reads on; only a
    /// turn over sessions that depend on each other ends here. Tells whether it ended.
    pub fn polls(&mut self, t: Thread) -> bool {
        let Some(turn) = self.threads.get(&t) else {
            return true;
        };
        let g = turn.group;
        let group = &self.groups[g as usize];
        if !group.sessions.iter().any(|s| self.pending(*s)) {
            return false;
        }
        if group.threads.len() > 1 || (group.several && group.dependent) {
            self.thread_gone(t);
            return true;
        }
        if self.is_ahead_of_what_it_keeps(g) {
            return false;
        }
        self.release_output(g);
        if let Some(turn) = self.threads.get_mut(&t) {
            turn.polled = true;
        }
        false
    }

    /// The thread waits in the middle of a write, for a peer that does not take what it has written so far unless it
    /// gets it. Only a turn over sessions that depend on each other keeps it back, for as long as a turn may last.
    pub fn blocked(&mut self, t: Thread) {
        let Some(turn) = self.threads.get_mut(&t) else {
            return;
        };
        turn.blocked = true;
        let g = turn.group;
        let group = &self.groups[g as usize];
        if group.threads.len() == 1 && !(group.several && group.dependent) {
            self.release_output(g);
        }
    }

    /// It waits no more, and its write ends as it is.
    pub fn unblocked(&mut self, t: Thread) {
        self.look_after(self.heard, t);
    }

    fn is_ahead_of_what_it_keeps(&self, g: u32) -> bool {
        let sessions = self.groups[g as usize].sessions.iter().filter_map(|s| self.sessions.get(s));
        sessions.into_iter().any(|p| p.is_ahead_of_what_it_keeps())
    }

    /// Lets the output of a turn go that is not over: its responses are open.
    fn release_output(&mut self, g: u32) {
        self.groups[g as usize].deadline = None;
        self.settle_group(g, 0, |p| p.settle(true, true));
    }

    /// The thread has written, and is about to read: that ends its turn, unless its sessions do not depend on each
    /// other (it may be in the middle of serving several). Tells whether it ended.
    pub fn reads_after_write(&mut self, t: Thread) -> bool {
        let ends = self.threads.get(&t).is_none_or(|turn| self.groups[turn.group as usize].dependent);
        if ends {
            self.thread_gone(t);
        }
        ends
    }

    /// Reading on says that the response before it was whole.
    fn reads_next(&mut self, t: Thread, s: SessionId) {
        let turn = self.threads.get(&t);
        let group = turn.map_or(NO_GROUP, |turn| turn.group);
        if turn.is_some_and(|turn| turn.polled && self.groups[group as usize].dependent) {
            self.thread_gone(t);
        } else if self.sessions.get(&s).is_some_and(|p| p.independent && (p.group == group || p.group == NO_GROUP))
            && (group == NO_GROUP || !self.groups[group as usize].puts)
        {
            self.commit(&[s], |p| p.settle(true, false));
        }
    }

    /// After a look, writing goes on with the open response, or ends it by going elsewhere.
    fn writes_on(&mut self, t: Thread, s: SessionId) {
        let Some(turn) = self.threads.get(&t).filter(|turn| turn.polled) else {
            return;
        };
        let here = self.sessions.get(&s).is_some_and(|p| p.group == turn.group);
        if !here && self.groups[turn.group as usize].dependent {
            self.thread_gone(t);
        }
    }

    /// The thread ended: so did its turn.
    pub fn thread_gone(&mut self, t: Thread) {
        let Some(turn) = self.threads.remove(&t) else {
            return;
        };
        let group = &mut self.groups[turn.group as usize];
        if let Some(i) = group.threads.iter().rposition(|x| *x == t) {
            group.threads.swap_remove(i);
        }
        if group.threads.is_empty() {
            self.commit_group(turn.group, false);
            self.dissolve(turn.group);
        }
    }

    /// The process died: see [`Self::processes_gone`].
    pub fn process_gone(&mut self, channel: u32) {
        self.processes_gone(|gone| *gone == channel);
    }

    /// Processes died: what their threads did since their last commit never happened.
    pub fn processes_gone(&mut self, gone: impl Fn(&u32) -> bool) {
        // What was put in a turn that is over, and that waits for another process's, counts with that one.
        let groups = &self.groups;
        let waits = |group: &Group| group.shared && !group.threads.iter().any(|t| gone(&channel_of(*t)));
        self.data -= self.puts.forget(|of, group| gone(of) && !waits(&groups[group as usize]));
        let mut dead: Vec<Thread> = self.threads.keys().copied().collect();
        dead.retain(|t| gone(&channel_of(*t)));
        dead.sort_unstable();
        for t in dead {
            let Some(turn) = self.threads.get(&t) else {
                continue;
            };
            let g = turn.group;
            let group = &self.groups[g as usize];
            if group.shared {
                // Another process holds the same socket, with the dead one's bytes in it: they can
                // neither be taken back nor told apart.
                for s in &group.sessions {
                    if let Some(p) = self.sessions.get_mut(s) {
                        p.tear();
                    }
                }
                self.thread_gone(t);
            } else {
                for s in &group.sessions {
                    if let Some(p) = self.sessions.get_mut(s) {
                        roll_back(p, &mut self.data);
                    }
                }
                for t in &group.threads {
                    self.threads.remove(t);
                }
                self.dissolve(g);
            }
        }
        // What was read in earlier turns and is not done will be read again as well.
        for p in self.sessions.values_mut() {
            if p.channel.as_ref().is_some_and(&gone) && p.group == NO_GROUP {
                roll_back(p, &mut self.data);
            }
        }
    }

    /// When `handle_timeout` wants to be called.
    pub fn poll_timeout(&self) -> Option<Now> {
        self.groups.iter().flat_map(|g| [g.deadline, g.look]).flatten().min()
    }

    /// Takes the threads to ask the kernel about, for [`Self::rest`].
    pub fn poll_asked(&mut self) -> std::vec::Drain<'_, Thread> {
        self.asked.drain(..)
    }

    /// What the kernel says of a thread, all of whose events until then were told. A thread that sleeps has ended its turn,
    /// whatever it waits for, unless it may be in the middle of it. Tells whether it has.
    #[must_use]
    pub fn rest(&mut self, now: Now, t: Thread, rest: Rest) -> bool {
        let Some(turn) = self.threads.get_mut(&t) else { return false };
        let Rest::Asleep { times, lock } = rest else {
            turn.asleep = None;
            return false;
        };
        if turn.blocked {
            return false;
        }
        let since = match turn.asleep {
            Some((since, before)) if before == times => since,
            _ => turn.asleep.insert((now, times)).0,
        };
        let sessions = &self.groups[turn.group as usize].sessions;
        let answers = sessions.iter().filter_map(|s| self.sessions.get(s)).any(|p| p.keeps_answer());
        now.saturating_sub(since) >= if answers && !lock { SLEEPS } else { SLEEPS_ON }
    }

    /// Whose threads are to be asked about: those of groups that have something to say when they end.
    fn ask_sleepers(&mut self, now: Now) {
        for g in 0..self.groups.len() {
            if self.groups[g].look.is_none_or(|at| at > now) {
                continue;
            }
            let sessions = self.groups[g].sessions.iter().filter_map(|s| self.sessions.get(s));
            if !self.groups[g].puts && !sessions.clone().any(|p| p.keeps()) {
                self.groups[g].look = None;
                continue;
            }
            let group = &mut self.groups[g];
            group.look = Some(now.saturating_add(group.nap));
            group.nap = (group.nap * 2).min(LAST_LOOK);
            let awake = |t: &Thread| self.threads.get(t).is_some_and(|turn| !turn.blocked);
            let room = MOST_ASKED.saturating_sub(self.asked.len());
            self.asked.extend(self.groups[g].threads.iter().copied().filter(awake).take(room));
        }
    }

    /// Lets go what turns that outlast `max_turn` have written so far; the turns go on. A turn over several
    /// sessions is not committed by that: until it ends, the sessions that it wrote to are torn. But turns of
    /// several threads that tie each other together are cut here, for they might overlap for ever.
    pub fn handle_timeout(&mut self, now: Now) {
        self.ask_sleepers(now);
        for g in 0..self.groups.len() as u32 {
            let group = &mut self.groups[g as usize];
            if group.deadline.is_none_or(|d| d > now) {
                continue;
            }
            group.deadline = None;
            if !std::mem::replace(&mut group.late, true) && self.is_ahead_of_what_it_keeps(g) {
                // It may end yet, and then nothing is torn.
                self.groups[g as usize].deadline = Some(now.saturating_add(self.max_turn * PUT_OFF));
                continue;
            }
            let group = &mut self.groups[g as usize];
            // Threads that put values of the same keys might overlap for ever, too.
            if group.sessions.is_empty() && !(group.puts && group.threads.len() > 1) {
                continue;
            }
            let (several, puts, one_thread) = (group.several, group.puts, group.threads.len() <= 1);
            self.counters.timeouts += 1;
            if several && one_thread {
                self.settle_group(g, 0, |p| match p.independent && !puts {
                    true => p.settle(true, true),
                    false => p.settle_part(),
                });
                continue;
            }
            self.commit_group(g, true);
            if several {
                self.split(g);
            }
        }
    }

    /// Takes the oldest commit that was not taken yet into `out`; `false` if there is none.
    pub fn poll_commit(&mut self, out: &mut Commit) -> bool {
        out.entries.clear();
        out.changes.clear();
        let Some((entries, changes)) = self.commits.pop_front() else {
            return false;
        };
        out.entries.extend(self.entries.drain(..entries));
        out.changes.extend(self.changes.drain(..changes));
        self.data -= out.changes.iter().map(Change::cost).sum::<u64>();
        true
    }

    /// How far the application has read, if the session is known.
    pub fn in_read(&self, s: SessionId) -> Option<u64> {
        self.sessions.get(&s).map(|p| p.in_read)
    }

    /// How far it has read by what the hooks have told, if the session is known.
    pub fn told(&self, s: SessionId) -> Option<u64> {
        self.sessions.get(&s).map(|p| p.told)
    }

    /// The last commit of the session, if it is known.
    pub fn done(&self, s: SessionId) -> Option<CommitEntry> {
        self.sessions.get(&s).map(|p| p.done)
    }

    /// Whether the session has output (or its end) that no commit covers yet.
    pub fn pending(&self, s: SessionId) -> bool {
        self.sessions.get(&s).is_some_and(|p| p.pending())
    }

    /// Whether something that was read of the session waits for its answer, or an open turn has touched it.
    pub fn unanswered(&self, s: SessionId) -> bool {
        self.sessions.get(&s).is_some_and(|p| p.unanswered())
    }

    /// How much of what is out the application has yet to write again, after a failover.
    pub fn unwritten(&self, s: SessionId) -> u64 {
        self.sessions.get(&s).map_or(0, |p| p.unwritten())
    }

    /// The session is not closed after all: another process holds it.
    pub fn reopen(&mut self, s: SessionId) {
        if let Some(p) = self.sessions.get_mut(&s) {
            p.reopen();
        }
    }

    /// Whether no open turn has touched the session and all that was read of it is done.
    pub fn quiescent(&self, s: SessionId) -> bool {
        self.sessions.get(&s).is_none_or(|p| p.quiescent())
    }

    /// Whether an open turn has output that no commit covers yet, or a commit waits to be taken.
    pub fn has_uncommitted(&self) -> bool {
        let touched = |g: &Group| g.sessions.iter().any(|s| self.pending(*s));
        !self.commits.is_empty() || self.groups.iter().any(touched)
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The session becomes part of the thread's turn. `false` if it is unknown.
    fn touch(&mut self, t: Thread, s: SessionId) -> bool {
        let Some(p) = self.sessions.get_mut(&s) else {
            return false;
        };
        let another = p.channel.replace(channel_of(t)) != Some(channel_of(t));
        p.resume(another);
        let of_session = p.group;
        match self.threads.get(&t).map(|turn| turn.group) {
            Some(g) if g == of_session => {}
            Some(g) if of_session == NO_GROUP => self.add_session(g, s),
            Some(g) => self.merge(g, of_session),
            None if of_session == NO_GROUP => {
                let g = self.new_group();
                self.add_thread(g, t, None);
                self.add_session(g, s);
            }
            None => self.add_thread(of_session, t, None),
        }
        true
    }

    /// What the thread has read on the other side of `s` goes on to `s`. Returns when it read that last (see `reads`); None:
    /// nothing is passed on by this.
    fn pass_on(&mut self, t: Thread, s: SessionId) -> Option<u64> {
        let mut last = None;
        for i in 0..self.pairs.get(&s).map_or(0, Vec::len) {
            let other = self.pairs[&s][i];
            let (Some(to), Some(from)) = (self.sessions.get(&s), self.sessions.get(&other)) else { continue };
            let ((reader, at), upto) = (from.last_read, from.in_read);
            // An upstream's greeting comes after the request that it was called for: a write answers the greeting then.
            let greets = to.called && to.waits() && to.last_read.0 == t && to.last_read.1 > at;
            if reader == t && from.waits() && !greets && !from.independent && !to.independent && self.touch(t, other) {
                last = last.max(Some(at));
                if let Some(from) = self.sessions.get_mut(&other) {
                    from.answer(upto);
                }
            }
        }
        last
    }

    /// Whether it is known that the one is for another client than the other, and that what is read of one is not for the other.
    fn strangers(&self, a: SessionId, b: SessionId) -> bool {
        let called = |s: SessionId| self.sessions.get(&s).is_some_and(|p| p.called);
        let client = |s: SessionId| match called(s) {
            true => self.pairs.get(&s).and_then(|of| of.first().copied()),
            false => Some(s),
        };
        (called(a) || called(b)) && client(a).zip(client(b)).is_some_and(|(a, b)| a != b)
    }

    /// Whether what the thread has for `s` may come from a connection of which it is not known whose it is.
    fn may_be_passed_on(&self, t: Thread, s: SessionId) -> bool {
        self.unclear.contains(&s) || !self.read_unclear(t).is_empty()
    }

    /// The thread had output for `s`: that answers what it read last, be it of another session. But what answers `s`
    /// itself answers no other's request; a reply of an upstream may be passed on by it. And what a client with an upstream of its
    /// own has asked for is answered by these two alone.
    fn answer(&mut self, t: Thread, s: SessionId) {
        let Some((r, upto)) = self.threads.get(&t).and_then(|turn| turn.last_read) else {
            return;
        };
        let own = self.sessions.get(&s).is_some_and(|p| p.own);
        let others = self.pairs.get(&r).is_some_and(|with| !with.contains(&s));
        let apart = self.sessions.get(&r).is_some_and(|p| p.independent || !p.called && (own || others));
        // It may have left the group when an overlong turn was split.
        if r != s && !apart && !self.strangers(r, s) && !self.may_be_passed_on(t, s) && self.touch(t, r) {
            if let Some(p) = self.sessions.get_mut(&r) {
                p.answer(upto);
            }
        }
    }

    /// Something was heard of the thread: it is awake, and from now on it may fall asleep.
    fn look_after(&mut self, now: Now, t: Thread) {
        self.heard = now;
        let Some(turn) = self.threads.get_mut(&t) else { return };
        (turn.blocked, turn.asleep) = (false, None);
        let group = &mut self.groups[turn.group as usize];
        if group.look.is_none() {
            (group.look, group.nap) = (Some(now.saturating_add(FIRST_LOOK)), FIRST_LOOK);
        }
    }

    fn start_clock(&mut self, now: Now, t: Thread) {
        self.look_after(now, t);
        if let Some(turn) = self.threads.get(&t) {
            let deadline = now.saturating_add(self.max_turn);
            self.groups[turn.group as usize].deadline.get_or_insert(deadline);
        }
    }

    fn bound(&mut self, t: Thread) {
        if self.threads.len() > MAX_OPEN_TURNS {
            self.thread_gone(t);
        }
    }

    fn new_group(&mut self) -> u32 {
        self.free_groups.pop().unwrap_or_else(|| {
            self.groups.push(Group::default());
            (self.groups.len() - 1) as u32
        })
    }

    fn add_thread(&mut self, g: u32, t: Thread, last_read: Option<(SessionId, u64)>) {
        let group = &mut self.groups[g as usize];
        if group.threads.is_empty() {
            group.channel = channel_of(t);
        }
        group.shared |= group.channel != channel_of(t);
        group.threads.push(t);
        let group = g;
        self.threads.insert(t, OpenTurn { group, last_read, polled: false, blocked: false, asleep: None });
    }

    fn add_session(&mut self, g: u32, s: SessionId) {
        let group = &mut self.groups[g as usize];
        group.several |= !group.sessions.is_empty();
        group.sessions.push(s);
        if let Some(p) = self.sessions.get_mut(&s) {
            p.group = g;
            p.own = false;
            p.before = p.in_read;
            group.dependent |= !p.independent;
        }
    }

    fn merge(&mut self, a: u32, b: u32) {
        let size = |g: u32| {
            let group = &self.groups[g as usize];
            group.sessions.len() + group.threads.len()
        };
        let (into, from) = if size(a) >= size(b) { (a, b) } else { (b, a) };
        let mut from_group = std::mem::take(&mut self.groups[from as usize]);
        for t in &from_group.threads {
            if let Some(turn) = self.threads.get_mut(t) {
                turn.group = into;
            }
        }
        for s in &from_group.sessions {
            if let Some(p) = self.sessions.get_mut(s) {
                p.group = into;
            }
        }
        if from_group.puts {
            self.puts.merge(into, from);
        }
        let group = &mut self.groups[into as usize];
        group.puts |= from_group.puts;
        group.threads.append(&mut from_group.threads);
        group.sessions.append(&mut from_group.sessions);
        group.several |= from_group.several || group.sessions.len() > 1;
        group.dependent |= from_group.dependent;
        group.shared |= from_group.shared || group.channel != from_group.channel;
        group.data += from_group.data;
        group.deadline = match (group.deadline, from_group.deadline) {
            (Some(x), Some(y)) => Some(x.min(y)),
            (x, y) => x.or(y),
        };
        // Both have one, or have had and nothing to say.
        (group.look, group.nap) = match (group.look, from_group.look) {
            (Some(x), Some(y)) => (Some(x.min(y)), group.nap.min(from_group.nap)),
            (None, y) => (y, from_group.nap),
            (x, None) => (x, group.nap),
        };
        self.free_groups.push(from);
    }

    /// Lets go of all sessions and threads of the group.
    fn dissolve(&mut self, g: u32) {
        self.release_sessions(g);
        let group = &mut self.groups[g as usize];
        group.threads.clear();
        group.shared = false;
        (group.deadline, group.look) = (None, None);
        self.free_groups.push(g);
    }

    fn release_sessions(&mut self, g: u32) {
        let group = &mut self.groups[g as usize];
        for s in group.sessions.drain(..) {
            if let Some(p) = self.sessions.get_mut(&s) {
                p.group = NO_GROUP;
            }
        }
        group.several = false;
        group.dependent = false;
        group.puts = false;
        group.data = 0;
        group.late = false;
    }

    /// The group was just committed in mid-turn: nothing ties its threads together any more. Without
    /// this, threads whose turns always overlap would stay one group for ever.
    fn split(&mut self, g: u32) {
        self.release_sessions(g);
        let threads = std::mem::take(&mut self.groups[g as usize].threads);
        self.groups[g as usize].shared = false;
        for (i, t) in threads.into_iter().enumerate() {
            let last_read = self.threads.remove(&t).and_then(|turn| turn.last_read);
            let own = if i == 0 { g } else { self.new_group() };
            self.add_thread(own, t, last_read);
        }
    }

    fn commit_group(&mut self, g: u32, timeout: bool) {
        let Group { several, puts, .. } = self.groups[g as usize];
        let before = self.changes.len();
        if puts {
            self.changes.extend(self.puts.take(g));
        }
        let put = self.changes.len() - before;
        self.settle_group(g, put, |p| p.settle(!several || p.independent && !puts, timeout || p.stays_open() && !puts));
    }

    /// The last `put` of the changes are among those of the group's turn.
    fn settle_group(&mut self, g: u32, put: usize, settle: impl Fn(&mut Progress) -> Settled) {
        let sessions = std::mem::take(&mut self.groups[g as usize].sessions);
        self.commit_with(&sessions, put, settle);
        self.groups[g as usize].sessions = sessions;
    }

    fn commit(&mut self, sessions: &[SessionId], settle: impl Fn(&mut Progress) -> Settled) {
        self.commit_with(sessions, 0, settle);
    }

    fn commit_with(&mut self, sessions: &[SessionId], mut changes: usize, settle: impl Fn(&mut Progress) -> Settled) {
        let mut entries = 0;
        let mut open = false;
        for s in sessions {
            let Some(p) = self.sessions.get_mut(s) else {
                continue;
            };
            let settled = settle(p);
            self.counters.torn += u64::from(settled.newly_torn);
            if settled.changed {
                open |= settled.open;
                entries += 1;
                self.entries.push_back(p.done);
            }
            if let Some(checkpoint) = p.checkpoint.take_if(|_| settled.whole) {
                p.explicit = true;
                if let Some(group) = self.groups.get_mut(p.group as usize) {
                    group.data = group.data.saturating_sub(data::cost(checkpoint.len()));
                }
                changes += 1;
                self.changes.push_back(Change::Checkpoint { session: *s, data: *checkpoint });
            }
        }
        if entries > 0 || changes > 0 {
            self.counters.commits += 1;
            self.counters.open_commits += u64::from(open);
            self.commits.push_back((entries, changes));
        }
    }
}

/// Whoever goes on with the session starts from what is committed.
fn roll_back(p: &mut Progress, data: &mut u64) {
    *data -= p.checkpoint.take().map_or(0, |c| data::cost(c.len()));
    p.roll_back();
}
