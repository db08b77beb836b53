//! What of an application's work is done: hook events go in, commits come out.
//!
//! A thread's turn is what it does between two waits. Turns of different threads that touched the same
//! session form one group, and a group commits as one, when the last of its threads has ended its turn.
//! So a commit never claims input whose answer is still being written somewhere else.
//!
//! The parts own what they know:
//!
//! - `progress`: what the application has done with one session, and what of it a commit may claim
//! - `groups`, `sleep`: turns that are open, which of them commit as one, and for how long they may go on
//! - `pairs`: for whom the application has made its connections
//! - `puts`: values of the service that were put in turns that are not over
//! - `commits`: commits that were made and not taken yet
//!
//! The policy joins them: `events` (what the hooks tell of a session), `answers` (what a write answers), `kept` (the
//! application's own data) and `ends` (how turns end, and what is committed then).

mod answers;
mod commits;
mod ends;
mod events;
mod groups;
mod kept;
mod pairs;
#[cfg(test)]
mod part_tests;
mod port;
mod progress;
mod puts;
mod sleep;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::data;
use crate::tuple::{BySession, SessionId};
use crate::Now;
use commits::Commits;
use groups::{Group, Groups};
use pairs::Pairs;
use progress::{Progress, NO_GROUP};
use puts::Puts;

pub use commits::{Commit, CommitEntry};
pub use port::{PortPolicy, Unanswered};
pub use sleep::Rest;

/// A thread of a hooked application: `channel << 32 | thread`.
pub type Thread = u64;

type Sessions = BySession<Box<Progress>>;

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

/// Decides which input is done and which output may leave.
///
/// Events of unknown sessions are ignored.
#[derive(Debug)]
pub struct TurnPolicy {
    max_turn: Duration,
    sessions: Sessions,
    pairs: Pairs,
    /// Reads so far.
    reads: u64,
    groups: Groups,
    commits: Commits,
    puts: Puts,
    /// What the application's data costs of which no commit was polled yet.
    data: u64,
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
            sessions: Sessions::default(),
            pairs: Pairs::default(),
            reads: 0,
            groups: Groups::default(),
            commits: Commits::default(),
            puts: Puts::default(),
            data: 0,
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
        self.pairs.part(s);
        self.groups.forget_session(p.group, s);
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
        self.pairs.part(out);
        if let Some(client) = client.filter(|c| self.sessions.contains_key(c) && self.sessions.contains_key(&out)) {
            self.pairs.pair(out, client);
        }
    }

    /// The application has made this connection for a client, and it is not known for which. What is read and written there says
    /// nothing of anybody else until [`Self::pair`] tells whose it is.
    pub fn unclear(&mut self, out: SessionId) {
        self.pairs.part(out);
        if self.sessions.contains_key(&out) {
            self.pairs.set_unclear(out);
        }
    }

    /// Those of them that the thread has read last, and that wait to be passed on to whoever they are for.
    pub fn read_unclear(&self, t: Thread) -> Vec<SessionId> {
        let read = |out: &SessionId| self.sessions.get(out).is_some_and(|p| p.last_read.0 == t && p.waits());
        self.pairs.unclear().filter(read).collect()
    }

    // ---- what comes of it ----------------------------------------------------------------------------

    /// When `handle_timeout` wants to be called.
    pub fn poll_timeout(&self) -> Option<Now> {
        self.groups.poll_timeout()
    }

    /// Takes the threads to ask the kernel about, for [`Self::rest`].
    pub fn poll_asked(&mut self) -> std::vec::Drain<'_, Thread> {
        self.groups.poll_asked()
    }

    /// Takes the oldest commit that was not taken yet into `out`; `false` if there is none.
    pub fn poll_commit(&mut self, out: &mut Commit) -> bool {
        let any = self.commits.poll(out);
        self.data -= out.changes.iter().map(data::Change::cost).sum::<u64>();
        any
    }

    /// It is this time, though nothing was heard of any thread.
    pub fn at(&mut self, now: Now) {
        self.groups.at(now);
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

    /// Whether no open turn has touched the session and all that was read of it is done.
    pub fn quiescent(&self, s: SessionId) -> bool {
        self.sessions.get(&s).is_none_or(|p| p.quiescent())
    }

    /// Whether an open turn has output that no commit covers yet, or a commit waits to be taken.
    pub fn has_uncommitted(&self) -> bool {
        let touched = |g: &Group| g.sessions().iter().any(|s| self.pending(*s));
        !self.commits.is_empty() || self.groups.iter().any(touched)
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }
}
