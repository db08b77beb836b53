//! Events that come again and again: the log gets one line for as many of a kind as come in a while.

use std::time::Duration;

use tcpr_session::Now;

/// A line of one kind is written to the log no more often than this.
const EVERY: Duration = Duration::from_secs(10);

/// What may happen many times a second, because of a stranger or of a fault that lasts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Recurring {
    /// A datagram on the heartbeat port is not the partner's.
    HeartbeatRefused,
    /// Somebody who is not the partner connected to the replication port.
    LinkRefused,
    /// The epoch file cannot be written.
    EpochNotWritten,
    /// This member does not start to serve, because the partner's manager is of another version.
    HeldBack,
}

/// When each kind was last written to the log.
#[derive(Default)]
pub(super) struct Throttle {
    written: Vec<(Recurring, Now)>,
}

impl Throttle {
    /// Whether an event of this kind is to be written to the log now.
    pub(super) fn admits(&mut self, now: Now, event: Recurring) -> bool {
        match self.written.iter_mut().find(|(kind, _)| *kind == event) {
            Some((_, at)) if now < *at + EVERY => false,
            Some((_, at)) => {
                *at = now;
                true
            }
            None => {
                self.written.push((event, now));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_line_at_once_and_then_one_in_ten_seconds() {
        let mut throttle = Throttle::default();
        let s = Duration::from_secs;
        assert!(throttle.admits(s(5), Recurring::HeartbeatRefused));
        assert!(!throttle.admits(s(14), Recurring::HeartbeatRefused));
        assert!(throttle.admits(s(14), Recurring::LinkRefused));
        assert!(throttle.admits(s(15), Recurring::HeartbeatRefused));
        assert!(!throttle.admits(s(24), Recurring::HeartbeatRefused));
        assert!(!throttle.admits(s(23), Recurring::LinkRefused));
    }
}
