//! Input of which nobody says that it was read: by a raw system call, or a program without hooks. The kernel counts what was
//! read, but does not say so by itself. It is asked when more has come than a session may keep, then after each piece of input,
//! and by the clock while there is any that may be read meanwhile: a peer that has sent all causes no packet any more. And it is
//! asked before a handover, so that the next process is not given again what this one has read.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::ownership::WhyAsked;
use super::{Action, Filter};
use crate::store::Session;
use crate::tuple::{BySession, SessionId};
use crate::Now;

/// So much input may be there before the kernel is asked, even if a session may keep less; without hooks, any session may have
/// so much.
const LEAST: u64 = 1 << 20;
const LEAST_UNHOOKED: u64 = 256 << 10;
/// It is asked again after so much more.
const PIECE: u32 = 20;
/// It is asked again after so long, twice as long if nothing was read meanwhile, and so on.
const SOON: Duration = Duration::from_millis(2);
const LATE: Duration = Duration::from_millis(128);
/// Input of a session that we lost track of is kept in pieces of this size, for as long as nobody answers it.
const LOOSE_INPUT: usize = 64 << 10;

/// The sessions that the kernel is asked about by the clock.
#[derive(Debug, Default)]
pub(super) struct Unseen {
    sessions: BySession<Again>,
    /// When they are due; entries may be stale.
    due: BinaryHeap<Reverse<(Now, SessionId)>>,
}

#[derive(Debug)]
struct Again {
    /// None: it was asked, and the answer is to come.
    due: Option<Now>,
    pause: Duration,
}

impl Unseen {
    pub fn poll_timeout(&self) -> Option<Now> {
        self.due.peek().map(|Reverse((due, _))| *due)
    }

    pub fn forget(&mut self, id: SessionId) {
        self.sessions.remove(&id);
    }

    /// The kernel has answered, and is to be asked again. `moved`: something was read since it was asked last.
    fn again(&mut self, now: Now, id: SessionId, moved: bool) {
        let again = self.sessions.entry(id).or_insert(Again { due: None, pause: SOON });
        again.pause = if moved { SOON } else { (2 * again.pause).min(LATE) };
        if again.due.is_none() {
            let due = now + again.pause;
            again.due = Some(due);
            self.due.push(Reverse((due, id)));
        }
    }

    fn next_due(&mut self, now: Now) -> Option<SessionId> {
        while self.poll_timeout().is_some_and(|due| now >= due) {
            let Reverse((due, id)) = self.due.pop()?;
            if let Some(again) = self.sessions.get_mut(&id).filter(|again| again.due == Some(due)) {
                again.due = None;
                return Some(id);
            }
        }
        None
    }
}

impl Filter {
    /// More of its input may have been read than a session may keep.
    fn may_be_read(&self, s: &Session) -> bool {
        let id = s.open.session;
        let most = if self.config.hooked { self.policy(&s.open.tuple).max_unanswered_bytes.max(LEAST) } else { LEAST_UNHOOKED };
        s.input.len() as u64 > most && s.in_end() > self.processes.turns.in_read(id).unwrap_or(s.in_done)
    }

    fn ask_what_is_read(&mut self, id: SessionId, why: WhyAsked) {
        if self.live.get_mut(&id).is_some_and(|live| live.ownership.ask(why)) {
            self.actions.push(Action::AskUnread(id));
        }
    }

    /// So much input has come that was not there before.
    pub(super) fn ask_unseen(&mut self, now: Now, id: SessionId, fresh: usize) {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get(&id)) else { return };
        if live.loose() {
            if s.input.len() > LOOSE_INPUT {
                self.commit_unattached(now, id, false);
            }
            return;
        }
        let another_piece = s.in_end() >> PIECE != (s.in_end() - fresh as u64) >> PIECE;
        if self.config.hooked && another_piece && self.may_be_read(s) {
            self.ask_what_is_read(id, WhyAsked::Room);
        }
    }

    /// Asks about the sessions that are due.
    pub(super) fn ask_unseen_again(&mut self, now: Now) {
        while let Some(id) = self.unseen.next_due(now) {
            self.ask_what_is_read(id, WhyAsked::Room);
        }
    }

    /// A master that is about to hand over: the kernel is asked about every session of which hooks have not told all that may
    /// have been read.
    pub fn before_handover(&mut self) {
        let turns = &self.processes.turns;
        let untold = |s: &&Session| s.in_end() > turns.told(s.open.session).unwrap_or(s.in_done).max(s.in_done);
        let mut ids: Vec<SessionId> = self.store.iter().filter(untold).map(|s| s.open.session).collect();
        ids.sort_unstable();
        ids.into_iter().for_each(|id| self.ask_what_is_read(id, WhyAsked::Handover));
    }

    /// The kernel has answered: what was read is up to `read`, and that is more than was known if it `moved`.
    pub(super) fn read_unseen(&mut self, now: Now, id: SessionId, read: u64, moved: bool) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let room = live.ownership.answered(WhyAsked::Room);
        let handover = live.ownership.answered(WhyAsked::Handover);
        let attached = live.ownership.is_attached();
        let Some(s) = self.store.get(id).filter(|_| (room || handover) && self.gate.serves()) else { return };
        if !self.config.hooked {
            self.processes.turns.idle(id);
        } else if !attached && read.saturating_sub(s.in_done) > self.policy(&s.open.tuple).max_unanswered_bytes {
            return self.lose(now, id);
        } else if attached && handover {
            self.processes.turns.leave(id);
        } else if attached {
            self.processes.turns.overflow(id);
        }
        self.run_commits(now);
        match self.store.get(id) {
            Some(s) if self.may_be_read(s) => self.unseen.again(now, id, moved),
            _ => self.unseen.forget(id),
        }
    }

    /// The answer to [`Action::AskUnread`] where the kernel has no such socket: it is being closed, or its process has died. What
    /// was read of it will never be known, and the death may be told later: so nothing of it is done for that.
    pub fn unread_gone(&mut self, now: Now, session: SessionId) {
        if let Some(live) = self.live.get_mut(&session) {
            let (room, handover) = (live.ownership.answered(WhyAsked::Room), live.ownership.answered(WhyAsked::Handover));
            if room || handover {
                self.unseen.forget(session);
                if !live.ownership.is_asked() && live.recovery.held_in.is_empty() {
                    return;
                }
            }
        }
        // In a socket that is gone nothing waits.
        self.unread(now, session, u64::MAX >> 1, 0);
    }
}
