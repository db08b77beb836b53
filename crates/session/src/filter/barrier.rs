//! The barrier of a takeover: what it still waits for, and which sessions this takeover has reset.

use std::collections::BTreeSet;

use super::live::Live;
use crate::tuple::FourTuple;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Barrier {
    /// Sessions without a socket, and those that the application is to take.
    unprobed: usize,
    awaited: usize,
    /// Torn sessions that were reset, while strangers are not answered otherwise.
    resets: BTreeSet<FourTuple>,
}

impl Barrier {
    /// This session counts, as it is now.
    pub fn count(&mut self, live: &Live) {
        self.unprobed += usize::from(live.probing());
        self.awaited += usize::from(live.awaited());
    }

    /// It does not any more, as it was until now.
    pub fn discount(&mut self, live: &Live) {
        self.unprobed -= usize::from(live.probing());
        self.awaited -= usize::from(live.awaited());
    }

    /// The barrier does not fall before [`Self::may_fall`].
    pub fn hold(&mut self) {
        self.awaited += 1;
    }

    pub fn may_fall(&mut self) {
        self.awaited -= 1;
    }

    pub fn unprobed(&self) -> usize {
        self.unprobed
    }

    pub fn awaited(&self) -> usize {
        self.awaited
    }

    /// No session is known any more.
    pub fn clear(&mut self) {
        *self = Barrier::default();
    }

    // ---- sessions that were reset ----------------------------------------------------------------------

    pub fn note_reset(&mut self, tuple: FourTuple) {
        self.resets.insert(tuple);
    }

    pub fn has_reset(&self, tuple: &FourTuple) -> bool {
        self.resets.contains(tuple)
    }

    /// The kernel answers for it as for any stranger.
    pub fn forget_reset(&mut self, tuple: &FourTuple) {
        self.resets.remove(tuple);
    }

    /// The kernel answers strangers from now on.
    pub fn fell(&mut self) {
        self.resets.clear();
    }
}
