//! The manager's clock, and what it says of the manager itself: a manager that stands still is taken for dead.

use std::time::{Duration, Instant};

use tcpr_session::Now;

/// Times since the manager's start.
pub(super) struct Clock {
    start: Instant,
    /// When the loop last waited for events, or showed the partner that we live.
    alive_at: Now,
    /// The longest time between two of these.
    longest_pause: Duration,
}

impl Clock {
    pub(super) fn start() -> Clock {
        Clock { start: Instant::now(), alive_at: Now::ZERO, longest_pause: Duration::ZERO }
    }

    pub(super) fn now(&self) -> Now {
        self.start.elapsed()
    }

    /// The loop has waited: what was before is no pause.
    pub(super) fn woke(&mut self) {
        self.alive_at = self.now();
    }

    /// The loop is about to wait, or the partner is shown that we live.
    pub(super) fn note_pause(&mut self) {
        let now = self.now();
        self.longest_pause = self.longest_pause.max(now - std::mem::replace(&mut self.alive_at, now));
    }

    pub(super) fn longest_pause(&self) -> Duration {
        self.longest_pause
    }
}
