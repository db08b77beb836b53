//! Programs that no library can enter (static, Go, set-uid): nothing tells what they read, what belongs together, or when
//! they close. Each segment of output is a turn of its own; how much was read when it was sent the kernel says.

use super::live::Stage;
use super::owners::Owners;
use super::{Action, Filter};
use crate::tuple::{FourTuple, SessionId};
use crate::Now;

/// The channel of a program without hooks, for [`Filter::process_gone`] and [`Filter::process_alive`].
pub const PROGRAM: u32 = u32::MAX - 1;
/// So much input may be stored before it is asked whether it was read.
const ASK_AFTER: usize = 256 << 10;
/// Most connections that are asked about when another one writes.
const MAX_READERS: usize = 64;

impl Filter {
    /// Without hooks a session is the program's as soon as the kernel has its socket and the barrier is behind it.
    pub(super) fn accepted_unhooked(&mut self, id: SessionId) {
        if self.config.hooked || !self.live.get(&id).is_some_and(|l| !l.attached && !l.lost && l.stage != Stage::Probing) {
            return;
        }
        self.recount(id, |live| {
            live.owners = Owners::of(PROGRAM);
            live.orphan = false;
            live.handed_over();
        });
        self.begin_turns(id);
        self.readers.insert(id);
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
        self.readers.insert(id);
        let (s, live) = (self.store.get(id).expect("known"), self.live.get_mut(&id).expect("live"));
        if s.input.len() > ASK_AFTER && !std::mem::replace(&mut live.swallowing, true) {
            self.actions.push(Action::AskUnread(id));
        }
    }

    /// The program has read up to here.
    pub(super) fn read_unhooked(&mut self, now: Now, id: SessionId, read: u64) {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get_mut(&id)) else { return };
        if self.config.hooked {
            return;
        }
        if read == s.in_end() {
            self.readers.remove(&id);
        }
        if std::mem::take(&mut live.swallowing) {
            self.turns.idle(id);
            self.run_commits(now);
        }
    }

    /// Before output of this session is adopted: what others have sent may be what it answers.
    pub(super) fn ask_readers(&mut self, id: SessionId) {
        self.asked = self.readers.iter().copied().filter(|other| *other != id).take(MAX_READERS).collect();
        self.actions.extend(self.asked.iter().map(|other| Action::AskUnread(*other)));
    }

    /// The program has ended in order: what the kernel closed for it, it meant to close.
    pub fn program_exited(&mut self, now: Now) {
        let mut held: Vec<SessionId> = self
            .live
            .iter()
            .filter(|(_, l)| l.owners.contains(&PROGRAM) && l.held.iter().any(|h| l.unasked(h)))
            .map(|(id, _)| *id)
            .collect();
        held.sort_unstable();
        for id in held {
            self.closed_unasked(now, PROGRAM, id);
            self.judge_held(now, id);
        }
    }
}
