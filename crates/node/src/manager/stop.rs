//! The end of a manager: what is done first when it is told to stop, and how long each step is waited for.

use std::time::Duration;

use tcpr_session::Now;

/// How long a member that stops waits for its partner to take over.
const HAND_OVER: Duration = Duration::from_secs(1);
/// How often it is looked at whether the program has ended.
const LOOK: Duration = Duration::from_millis(100);

/// What is to be done next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Wait,
    /// Tell the program to end: it closes its connections in order.
    Terminate,
    Kill,
    /// Nothing is left.
    Leave,
}

#[derive(Clone, Copy, Debug)]
struct Stopping {
    since: Now,
    told_program: bool,
}

/// A stop that is under way, and the manager's exit code once it leaves.
pub(super) struct Stop {
    /// How long a program that was told to end has for it.
    patience: Duration,
    stopping: Option<Stopping>,
    exit: Option<i32>,
}

impl Stop {
    pub(super) fn new(patience: Duration) -> Stop {
        Stop { patience, stopping: None, exit: None }
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.stopping.is_some()
    }

    pub(super) fn begin(&mut self, now: Now) {
        self.stopping = Some(Stopping { since: now, told_program: false });
    }

    /// Whoever asks twice does not want to wait for a handover: the program is told at once.
    pub(super) fn hurry(&mut self) {
        self.begin(Now::ZERO);
    }

    pub(super) fn poll_timeout(&self, now: Now) -> Option<Now> {
        self.stopping.map(|s| s.since + LOOK).filter(|at| *at > now)
    }

    /// The next step, which counts as done. A handover goes first, while a partner may take it; then the program ends.
    pub(super) fn next(&mut self, now: Now, hands_over: bool, program_runs: bool) -> Step {
        let Some(stopping) = self.stopping else { return Step::Wait };
        if hands_over && now < stopping.since + HAND_OVER {
            return Step::Wait;
        }
        if !program_runs {
            return Step::Leave;
        }
        let step = match stopping.told_program {
            false => Step::Terminate,
            true if now > stopping.since + self.patience => Step::Kill,
            true => return Step::Wait,
        };
        self.stopping = Some(Stopping { since: now, told_program: true });
        step
    }

    /// The manager leaves with this exit code.
    pub(super) fn leave(&mut self, code: i32) {
        self.exit = Some(code);
    }

    pub(super) fn exit(&self) -> Option<i32> {
        self.exit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_the_handover_then_the_program() {
        let (mut stop, ms) = (Stop::new(Duration::from_millis(3000)), Duration::from_millis);
        assert_eq!(stop.next(ms(0), true, true), Step::Wait, "nobody asked");
        stop.begin(ms(5000));
        assert_eq!(stop.next(ms(5999), true, true), Step::Wait);
        assert_eq!(stop.next(ms(6000), true, true), Step::Terminate, "the partner does not take over");
        assert_eq!(stop.next(ms(8999), false, true), Step::Wait);
        assert_eq!(stop.next(ms(9001), false, true), Step::Kill);
        assert_eq!(stop.next(ms(9002), false, false), Step::Leave);
    }

    #[test]
    fn whoever_asks_twice_waits_for_no_handover() {
        let (mut stop, ms) = (Stop::new(Duration::ZERO), Duration::from_millis);
        stop.begin(ms(5000));
        stop.hurry();
        assert_eq!(stop.next(ms(5001), true, true), Step::Terminate);
    }

    #[test]
    fn without_a_program_the_end_of_the_handover_is_the_end() {
        let (mut stop, ms) = (Stop::new(Duration::ZERO), Duration::from_millis);
        stop.begin(ms(0));
        assert_eq!(stop.next(ms(10), true, false), Step::Wait);
        assert_eq!(stop.next(ms(10), false, false), Step::Leave);
    }
}
