//! Output that hooks announced and no commit covers yet. Its bytes are counted: all of it will be in the log, and who writes
//! waits before the log is too far ahead of the replica.

use std::collections::VecDeque;
use std::ops::{Deref, Range};

use crate::pooled::{Pool, Pooled};

/// That of one session.
#[derive(Debug, Default)]
pub(super) struct Announced(Pooled<VecDeque<u8>>);

/// What is common to that of all sessions.
#[derive(Debug)]
pub(super) struct AllAnnounced {
    pool: Pool<VecDeque<u8>>,
    bytes: u64,
}

impl Announced {
    pub fn append(&mut self, bytes: &[u8], all: &mut AllAnnounced) {
        self.0.get_or_take(&mut all.pool).extend(bytes);
        all.bytes += bytes.len() as u64;
    }

    pub fn drop_first(&mut self, n: usize, all: &mut AllAnnounced) {
        self.0.drop_first(n, &mut all.pool);
        all.bytes -= n as u64;
    }

    /// Keeps the first `n` bytes at most.
    pub fn truncate(&mut self, n: usize, all: &mut AllAnnounced) {
        let Some(queue) = self.0.get_mut_if_any() else { return };
        let before = queue.len();
        queue.truncate(n);
        all.bytes -= (before - queue.len()) as u64;
        self.0.give_back_if_empty(&mut all.pool);
    }

    /// Other bytes stand in this place than hooks said.
    pub fn correct(&mut self, at: Range<usize>, bytes: &[u8]) {
        if let Some(queue) = self.0.get_mut_if_any() {
            queue.range_mut(at).zip(bytes).for_each(|(told, sent)| *told = *sent);
        }
    }
}

impl Deref for Announced {
    type Target = VecDeque<u8>;

    fn deref(&self) -> &VecDeque<u8> {
        &self.0
    }
}

impl AllAnnounced {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The sessions are forgotten, with all that was announced.
    pub fn forget(&mut self) {
        self.bytes = 0;
    }
}

impl Default for AllAnnounced {
    fn default() -> AllAnnounced {
        AllAnnounced { pool: Pool::passing(), bytes: 0 }
    }
}
