//! Threads that sleep without having said so: when they are asked about, and for how long one has slept.

use std::time::Duration;

use crate::Now;

/// How long a turn that keeps something back goes on before it is asked whether its threads sleep; then less and less often.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(64);
/// How long a thread has slept that does not sleep for a moment only: one that keeps back an answer, and one that has only
/// read, or that waits for a lock, for it may be in the middle of its work.
const SLEEPS: Duration = Duration::from_millis(1);
const SLEEPS_ON: Duration = Duration::from_millis(500);

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

/// When to ask whether the threads of a group sleep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Look {
    at: Now,
    /// How long it was until then.
    nap: Duration,
}

impl Look {
    pub fn first(now: Now) -> Look {
        Look { at: now.saturating_add(FIRST_LOOK), nap: FIRST_LOOK }
    }

    pub fn at(self) -> Now {
        self.at
    }

    pub fn again(self, now: Now) -> Look {
        Look { at: now.saturating_add(self.nap), nap: (self.nap * 2).min(LAST_LOOK) }
    }

    /// That of two groups that become one.
    pub fn sooner(self, other: Look) -> Look {
        Look { at: self.at.min(other.at), nap: self.nap.min(other.nap) }
    }
}

/// A thread that was seen asleep; nothing was heard of it since.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Asleep {
    since: Now,
    times: u64,
}

impl Asleep {
    /// It is seen asleep now; `before`: as it was seen before.
    pub fn seen(now: Now, times: u64, before: Option<Asleep>) -> Asleep {
        before.filter(|asleep| asleep.times == times).unwrap_or(Asleep { since: now, times })
    }

    /// Whether it does not sleep for a moment only. `answers`: it keeps back an answer; `lock`: it waits for a lock.
    pub fn is_long(self, now: Now, answers: bool, lock: bool) -> bool {
        now.saturating_sub(self.since) >= if answers && !lock { SLEEPS } else { SLEEPS_ON }
    }
}
