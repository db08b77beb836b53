//! How turns end, and what is committed then.

use super::progress::Settled;
use super::{channel_of, Group, Progress, Rest, SessionId, Thread, TurnPolicy, NO_GROUP};
use crate::data::{self, Change};
use crate::Now;

/// So many times `max_turn` longer may a turn last whose output would tear a session that could not be torn.
const PUT_OFF: u32 = 9;

impl TurnPolicy {
    /// The thread is about to wait, or said commit.
    pub fn turn_end(&mut self, _now: Now, t: Thread) {
        self.thread_gone(t);
    }

    /// The thread looks for events with a timeout of zero: it has more to do. A turn that has only read goes on. One
    /// that has written lets its output go, and its responses stay open until the thread waits, or reads on; only a
    /// turn over sessions that depend on each other ends here. Tells whether it ended.
    pub fn polls(&mut self, t: Thread) -> bool {
        let Some(g) = self.groups.of(t) else {
            return true;
        };
        let group = self.groups.get(g);
        if !group.sessions().iter().any(|s| self.pending(*s)) {
            return false;
        }
        if group.threads().len() > 1 || group.is_tied() {
            self.thread_gone(t);
            return true;
        }
        if self.is_ahead_of_what_it_keeps(g) {
            return false;
        }
        self.release_output(g);
        self.groups.set_polled(t);
        false
    }

    /// The thread waits in the middle of a write, for a peer that does not take what it has written so far unless it
    /// gets it. Only a turn over sessions that depend on each other keeps it back, for as long as a turn may last.
    pub fn blocked(&mut self, t: Thread) {
        let Some(g) = self.groups.set_blocked(t) else {
            return;
        };
        let group = self.groups.get(g);
        if group.threads().len() == 1 && !group.is_tied() {
            self.release_output(g);
        }
    }

    /// It waits no more, and its write ends as it is.
    pub fn unblocked(&mut self, t: Thread) {
        self.groups.hear_now(t);
    }

    fn is_ahead_of_what_it_keeps(&self, g: u32) -> bool {
        self.of_group(self.groups.get(g)).any(Progress::is_ahead_of_what_it_keeps)
    }

    fn of_group<'a>(&'a self, group: &'a Group) -> impl Iterator<Item = &'a Progress> {
        group.sessions().iter().filter_map(|s| self.sessions.get(s)).map(|p| &**p)
    }

    /// Lets the output of a turn go that is not over: its responses are open.
    fn release_output(&mut self, g: u32) {
        self.groups.clear_deadline(g);
        self.settle_group(g, |p| p.settle(true, true));
    }

    /// The thread has written, and is about to read: that ends its turn, unless its sessions do not depend on each
    /// other (it may be in the middle of serving several). Tells whether it ended.
    pub fn reads_after_write(&mut self, t: Thread) -> bool {
        let ends = self.groups.of(t).is_none_or(|g| self.groups.get(g).is_dependent());
        if ends {
            self.thread_gone(t);
        }
        ends
    }

    /// Reading on says that the response before it was whole.
    pub(super) fn reads_next(&mut self, t: Thread, s: SessionId) {
        let g = self.groups.of(t).unwrap_or(NO_GROUP);
        let group = (g != NO_GROUP).then(|| self.groups.get(g));
        if group.is_some_and(Group::is_dependent) && self.groups.has_polled(t) {
            self.thread_gone(t);
        } else if self.sessions.get(&s).is_some_and(|p| p.independent && (p.group == g || p.group == NO_GROUP))
            && !group.is_some_and(Group::has_puts)
        {
            self.commit(&[s], |p| p.settle(true, false));
        }
    }

    /// After a look, writing goes on with the open response, or ends it by going elsewhere.
    pub(super) fn writes_on(&mut self, t: Thread, s: SessionId) {
        let Some(g) = self.groups.of(t).filter(|_| self.groups.has_polled(t)) else {
            return;
        };
        let here = self.sessions.get(&s).is_some_and(|p| p.group == g);
        if !here && self.groups.get(g).is_dependent() {
            self.thread_gone(t);
        }
    }

    /// The thread ended: so did its turn.
    pub fn thread_gone(&mut self, t: Thread) {
        if let Some((g, true)) = self.groups.remove_thread(t) {
            self.commit_group(g, false);
            self.groups.dissolve(g, &mut self.sessions);
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
        let waits = |group: &Group| group.is_shared() && !group.threads().iter().any(|t| gone(&channel_of(*t)));
        self.data -= self.puts.forget(|of, group| gone(of) && !waits(groups.get(group)));
        for t in self.groups.threads_of(&gone) {
            let Some(g) = self.groups.of(t) else {
                continue;
            };
            let shared = self.groups.get(g).is_shared();
            for s in self.groups.get(g).sessions() {
                match self.sessions.get_mut(s) {
                    // Another process holds the same socket, with the dead one's bytes in it: they can
                    // neither be taken back nor told apart.
                    Some(p) if shared => p.tear(),
                    Some(p) => roll_back(p, &mut self.data),
                    None => {}
                }
            }
            match shared {
                true => self.thread_gone(t),
                false => self.groups.dissolve(g, &mut self.sessions),
            }
        }
        // What was read in earlier turns and is not done will be read again as well.
        for p in self.sessions.values_mut() {
            if p.channel.as_ref().is_some_and(&gone) && p.group == NO_GROUP {
                roll_back(p, &mut self.data);
            }
        }
    }

    /// What the kernel says of a thread, all of whose events until then were told. A thread that sleeps has ended its turn,
    /// whatever it waits for, unless it may be in the middle of it. Tells whether it has.
    #[must_use]
    pub fn rest(&mut self, now: Now, t: Thread, rest: Rest) -> bool {
        let sessions = &self.sessions;
        let answers = |of: &[SessionId]| of.iter().filter_map(|s| sessions.get(s)).any(|p| p.keeps_answer());
        self.groups.rests(now, t, rest, answers)
    }

    /// Lets go what turns that outlast `max_turn` have written so far; the turns go on. A turn over several
    /// sessions is not committed by that: until it ends, the sessions that it wrote to are torn. But turns of
    /// several threads that tie each other together are cut here, for they might overlap for ever.
    pub fn handle_timeout(&mut self, now: Now) {
        let sessions = &self.sessions;
        let keeps = |s: &SessionId| sessions.get(s).is_some_and(|p| p.keeps());
        self.groups.ask_sleepers(now, |group| group.has_puts() || group.sessions().iter().any(keeps));
        for g in 0..self.groups.len() {
            let Some(late) = self.groups.take_deadline(g, now) else {
                continue;
            };
            if !late && self.is_ahead_of_what_it_keeps(g) {
                // It may end yet, and then nothing is torn.
                self.groups.set_deadline(g, now.saturating_add(self.max_turn * PUT_OFF));
                continue;
            }
            let group = self.groups.get(g);
            let (several, puts, one_thread) = (group.is_several(), group.has_puts(), group.threads().len() <= 1);
            // Threads that put values of the same keys might overlap for ever, too.
            if group.sessions().is_empty() && (!puts || one_thread) {
                continue;
            }
            self.counters.timeouts += 1;
            if several && one_thread {
                self.settle_group(g, |p| match p.independent && !puts {
                    true => p.settle(true, true),
                    false => p.settle_part(),
                });
                continue;
            }
            self.commit_group(g, true);
            if several {
                self.groups.split(g, &mut self.sessions);
            }
        }
    }

    // ---- commits ---------------------------------------------------------------------------------------

    fn commit_group(&mut self, g: u32, timeout: bool) {
        let group = self.groups.get(g);
        let (several, puts) = (group.is_several(), group.has_puts());
        if puts {
            self.puts.take(g).for_each(|change| self.commits.add_change(change));
        }
        self.settle_group(g, |p| p.settle(!several || p.independent && !puts, timeout || p.stays_open() && !puts));
    }

    fn settle_group(&mut self, g: u32, settle: impl Fn(&mut Progress) -> Settled) {
        let sessions = self.groups.take_sessions(g);
        self.commit(&sessions, settle);
        self.groups.keep_sessions(g, sessions);
    }

    /// Commits these sessions, with the changes that are in the next commit already.
    pub(super) fn commit(&mut self, sessions: &[SessionId], settle: impl Fn(&mut Progress) -> Settled) {
        let mut open = false;
        for s in sessions {
            let Some(p) = self.sessions.get_mut(s) else {
                continue;
            };
            let settled = settle(p);
            self.counters.torn += u64::from(settled.newly_torn);
            if settled.changed {
                open |= settled.open;
                self.commits.add(p.done);
            }
            if let Some(checkpoint) = p.checkpoint.take_if(|_| settled.whole) {
                p.explicit = true;
                self.groups.commit_data(p.group, data::cost(checkpoint.len()));
                self.commits.add_change(Change::Checkpoint { session: *s, data: *checkpoint });
            }
        }
        if self.commits.finish() {
            self.counters.commits += 1;
            self.counters.open_commits += u64::from(open);
        }
    }
}

/// Whoever goes on with the session starts from what is committed.
fn roll_back(p: &mut Progress, data: &mut u64) {
    *data -= p.checkpoint.take().map_or(0, |c| data::cost(c.len()));
    p.roll_back();
}
