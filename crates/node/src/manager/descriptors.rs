//! Sessions whose sockets are made when the application has taken others: a process may have only so many descriptors.

use std::collections::BTreeMap;
use std::time::Duration;

use tcpr_session::tuple::SessionId;
use tcpr_session::Now;

/// How long sessions wait for descriptors before it is tried again, if the application took none meanwhile.
const AGAIN: Duration = Duration::from_millis(20);

/// What to do for the sessions that wait.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// None waits.
    Done,
    /// There is no room yet.
    Wait,
    /// This one's socket is made; whether its peer has answered.
    Make(SessionId, bool),
}

/// See the module's description.
#[derive(Default)]
pub(super) struct Descriptors {
    /// Whether their peers answered.
    waiting: BTreeMap<SessionId, bool>,
    /// No socket is made before this.
    again_at: Option<Now>,
    /// A socket with this number is the last: the process has other things to open.
    last: u64,
    /// How many sockets there were when no more could be made.
    most_made: usize,
}

impl Descriptors {
    /// A process may have so many.
    pub(super) fn set_limit(&mut self, limit: u64) {
        self.last = limit / 4 * 3;
    }

    /// A socket has this number. Returns whether it is the last that may be made for now.
    pub(super) fn is_last(&self, number: u64) -> bool {
        number >= self.last
    }

    /// There are no descriptors for more sockets than `made`, or only those that other things may need. Returns whether no
    /// session waits yet.
    pub(super) fn ran_short(&mut self, now: Now, made: usize) -> bool {
        self.most_made = made.max(1);
        self.again_at = Some(now + AGAIN);
        self.waiting.is_empty()
    }

    /// Whether no socket is made now.
    pub(super) fn are_short(&self) -> bool {
        self.again_at.is_some()
    }

    pub(super) fn wait(&mut self, session: SessionId, answered: bool) {
        *self.waiting.entry(session).or_default() |= answered;
    }

    /// Sockets are made again. Returns whether they were not.
    pub(super) fn try_again(&mut self) -> bool {
        self.again_at.take().is_some()
    }

    /// The next session whose socket is made, where there are so many that the application has yet to take.
    pub(super) fn next(&mut self, now: Now, made: usize) -> Next {
        let full = self.are_short() || made >= self.most_made;
        match self.waiting.first_entry() {
            None => Next::Done,
            Some(_) if full => {
                self.again_at.get_or_insert(now + AGAIN);
                Next::Wait
            }
            Some(next) => {
                let (session, answered) = next.remove_entry();
                Next::Make(session, answered)
            }
        }
    }

    pub(super) fn waiting(&self) -> impl Iterator<Item = SessionId> + '_ {
        self.waiting.keys().copied()
    }

    pub(super) fn forget(&mut self, session: SessionId) {
        self.waiting.remove(&session);
    }

    pub(super) fn forget_waiting(&mut self) {
        self.waiting.clear();
    }

    /// No takeover any more.
    pub(super) fn abandon(&mut self) {
        self.waiting.clear();
        self.again_at = None;
    }

    pub(super) fn poll_timeout(&self) -> Option<Now> {
        self.again_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_wait_until_the_application_has_taken_others() {
        let now = Duration::from_secs(1);
        let mut d = Descriptors::default();
        d.set_limit(1024);
        assert!(!d.is_last(767) && d.is_last(768));
        assert!(d.ran_short(now, 100) && d.are_short());
        d.wait(2, false);
        d.wait(2, true);
        d.wait(3, false);
        assert!(!d.ran_short(now, 100) && d.poll_timeout() == Some(now + AGAIN));
        assert!(d.try_again() && !d.try_again());
        assert_eq!(d.next(now, 100), Next::Wait);
        assert!(d.try_again());
        assert_eq!((d.next(now, 99), d.next(now, 99), d.next(now, 100)), (Next::Make(2, true), Next::Make(3, false), Next::Done));
        assert!(!d.are_short());
    }
}
