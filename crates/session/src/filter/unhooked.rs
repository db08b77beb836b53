//! Programs that no library can enter (static, Go, set-uid): nothing tells what they read, what belongs together, or when
//! they close. Each segment of output is a turn of its own; how much was read when it was sent the kernel says.

use super::ownership::WhyAsked;
use super::stage::Stage;
use super::{Action, Filter};
use crate::tuple::{FourTuple, SessionId};
use crate::Now;

/// The channel of a program without hooks, for [`Filter::process_gone`] and [`Filter::process_alive`].
pub const PROGRAM: u32 = u32::MAX - 1;
/// So much input may be stored before it is asked whether it was read.
const ASK_AFTER: usize = 256 << 10;

impl Filter {
    /// Without hooks a session is the program's as soon as the kernel has its socket and the barrier is behind it.
    pub(super) fn accepted_unhooked(&mut self, id: SessionId) {
        if self.config.hooked
            || !self
                .live
                .get(&id)
                .is_some_and(|l| !l.ownership.is_attached() && !l.ownership.is_lost() && l.stage != Stage::Probing)
        {
            return;
        }
        self.recount(id, |live| {
            live.ownership.held_only_by(PROGRAM);
            live.handed_over();
        });
        self.begin_turns(id);
        self.processes.may_read(id);
    }

    /// Without hooks: the listener's queue is empty. The program has those recovered sessions whose sockets are there.
    pub fn all_accepted(&mut self, now: Now, is_there: impl Fn(&FourTuple) -> bool) {
        let restored = self.live.iter().filter(|(_, l)| l.stage == Stage::Restored);
        let mut taken: Vec<SessionId> = restored.map(|(id, _)| *id).collect();
        taken.retain(|id| self.store.get(*id).is_some_and(|s| is_there(&s.open.tuple)));
        taken.into_iter().for_each(|id| self.accepted_unhooked(id));
        self.barrier_met(now);
    }

    /// Input has come of which nobody will say that it was read.
    pub(super) fn input_unhooked(&mut self, id: SessionId) {
        if self.config.hooked {
            return;
        }
        self.processes.may_read(id);
        let (s, live) = (self.store.get(id).expect("known"), self.live.get_mut(&id).expect("live"));
        if s.input.len() > ASK_AFTER && live.ownership.ask(WhyAsked::Room) {
            self.actions.push(Action::AskUnread(id));
        }
    }

    /// The program has read up to here.
    pub(super) fn read_unhooked(&mut self, id: SessionId, read: u64) {
        if !self.config.hooked && self.store.get(id).is_some_and(|s| read == s.in_end()) {
            self.processes.has_read(id);
        }
    }

    /// Before output of this session is adopted: what others have sent may be what it answers.
    pub(super) fn ask_readers(&mut self, id: SessionId) {
        let asked = self.processes.ask_readers(id);
        self.actions.extend(asked.iter().map(|other| Action::AskUnread(*other)));
    }

    /// The program has ended in order: what the kernel closed for it, it meant to close.
    pub fn program_exited(&mut self, now: Now) {
        let mut held: Vec<SessionId> = self
            .live
            .iter()
            .filter(|(_, l)| l.ownership.is_held_by(PROGRAM) && l.held.iter().any(|h| l.unasked(h)))
            .map(|(id, _)| *id)
            .collect();
        held.sort_unstable();
        for id in held {
            self.closed_unasked(now, PROGRAM, id);
            self.judge_held(now, id);
        }
    }
}
