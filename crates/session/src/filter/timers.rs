//! When sessions want to be looked at again.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::tuple::SessionId;
use crate::Now;

/// See the module's description. Entries may be stale: whoever is looked at says whether it was due.
#[derive(Debug, Default)]
pub(super) struct Timers {
    due: BinaryHeap<Reverse<(Now, SessionId)>>,
}

impl Timers {
    pub fn set(&mut self, due: Now, id: SessionId) {
        self.due.push(Reverse((due, id)));
    }

    pub fn clear(&mut self) {
        self.due.clear();
    }

    pub fn poll_timeout(&self) -> Option<Now> {
        self.due.peek().map(|Reverse((due, _))| *due)
    }

    /// The next session that is due.
    pub fn next_due(&mut self, now: Now) -> Option<SessionId> {
        self.poll_timeout().filter(|due| *due <= now)?;
        self.due.pop().map(|Reverse((_, id))| id)
    }
}
