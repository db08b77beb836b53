//! Whether this member is cut off: evidence that somebody other than the partner is in reach, and the carrier.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;
use std::time::Duration;

use tcpr_session::Now;

use crate::config::Config;
use crate::reach::{Reach, MAX_PEERS};

/// The time limit of a question, and the state of the carrier. Pure.
#[derive(Debug)]
struct Evidence {
    /// When nobody counts as in reach, if nobody answers.
    silent_at: Option<Now>,
    /// How long those who are asked have to answer.
    patience: Duration,
    carrier: bool,
    carrier_due: Now,
    carrier_every: Duration,
}

impl Evidence {
    fn of(config: &Config, now: Now) -> Evidence {
        let failover = &config.failover;
        let suspicion = failover.heartbeat * failover.misses;
        // One answer may be late, as one heartbeat may; but a member that is cut off must know it before the master goes on
        // alone. Not longer than suspicion takes: what was asked before is over when it is asked anew.
        let patience = (failover.solo_after.saturating_sub(suspicion) / 2).min(suspicion).max(failover.heartbeat);
        Evidence { silent_at: None, patience, carrier: true, carrier_due: now, carrier_every: failover.heartbeat }
    }

    /// A question was sent. Its time limit is never put off by asking again: a member that stutters while it is cut off must
    /// know it in time, too.
    fn asked(&mut self, now: Now) {
        self.silent_at.get_or_insert(now + self.patience);
    }

    fn answered(&mut self) {
        self.silent_at = None;
    }

    /// Whether nobody has answered in time; it is said once.
    fn is_silent(&mut self, now: Now) -> bool {
        self.silent_at.take_if(|at| now >= *at).is_some()
    }

    /// Looks at the carrier once an interval. Returns its state if that has changed.
    fn carrier_change(&mut self, now: Now, carrier: impl FnOnce() -> bool) -> Option<bool> {
        if now < self.carrier_due {
            return None;
        }
        self.carrier_due = now + self.carrier_every;
        let carrier = carrier();
        (std::mem::replace(&mut self.carrier, carrier) != carrier).then_some(carrier)
    }
}

/// Asks others, and knows how long to wait for them.
pub(super) struct Reachability {
    reach: Reach,
    evidence: Evidence,
}

impl Reachability {
    pub(super) fn new(config: &Config, now: Now) -> io::Result<Reachability> {
        Ok(Reachability { reach: Reach::of(config)?, evidence: Evidence::of(config, now) })
    }

    pub(super) fn fds(&self) -> impl Iterator<Item = RawFd> {
        self.reach.fds()
    }

    pub(super) fn poll_timeout(&self) -> Option<Now> {
        self.evidence.silent_at
    }

    /// Asks whether anybody is in reach: those whom the configuration names, or the gateway and a few of these peers. False:
    /// there is nobody to ask.
    pub(super) fn ask(&mut self, now: Now, peers: impl Iterator<Item = IpAddr>) -> bool {
        self.reach.set_peers(&some_of(peers));
        if self.reach.nothing_to_probe() {
            return false;
        }
        self.reach.probe();
        self.evidence.asked(now);
        true
    }

    /// Reads what has come. Whether somebody who counts has answered.
    pub(super) fn on_readable(&mut self) -> bool {
        self.reach.on_readable()
    }

    /// The answer was taken for one: the question is over.
    pub(super) fn answered(&mut self) {
        self.evidence.answered();
    }

    /// Whether nobody has answered in time; it is said once.
    pub(super) fn is_silent(&mut self, now: Now) -> bool {
        self.evidence.is_silent(now)
    }

    /// Looks at the carrier once an interval. Returns its state if that has changed.
    pub(super) fn carrier_change(&mut self, now: Now, carrier: impl FnOnce() -> bool) -> Option<bool> {
        self.evidence.carrier_change(now, carrier)
    }
}

/// A few of these addresses, each once.
fn some_of(peers: impl Iterator<Item = IpAddr>) -> Vec<Ipv4Addr> {
    let mut some = Vec::new();
    for peer in peers {
        if let IpAddr::V4(ip) = peer {
            if !some.contains(&ip) {
                some.push(ip);
            }
        }
        if some.len() == MAX_PEERS {
            break;
        }
    }
    some
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence() -> Evidence {
        let ms = Duration::from_millis;
        Evidence { silent_at: None, patience: ms(20), carrier: true, carrier_due: ms(0), carrier_every: ms(20) }
    }

    #[test]
    fn asking_again_does_not_put_the_time_limit_off() {
        let (mut evidence, ms) = (evidence(), Duration::from_millis);
        evidence.asked(ms(100));
        evidence.asked(ms(115));
        assert!(!evidence.is_silent(ms(119)));
        assert!(evidence.is_silent(ms(120)));
        assert!(!evidence.is_silent(ms(121)), "said once");
        evidence.asked(ms(125));
        evidence.answered();
        assert!(!evidence.is_silent(ms(1000)));
    }

    #[test]
    fn a_carrier_is_looked_at_once_an_interval_and_told_when_it_changes() {
        let (mut evidence, ms) = (evidence(), Duration::from_millis);
        assert_eq!(evidence.carrier_change(ms(0), || true), None);
        assert_eq!(evidence.carrier_change(ms(19), || unreachable!()), None);
        assert_eq!(evidence.carrier_change(ms(20), || false), Some(false));
        assert_eq!(evidence.carrier_change(ms(40), || false), None);
        assert_eq!(evidence.carrier_change(ms(60), || true), Some(true));
    }

    #[test]
    fn a_few_peers_are_asked_each_once() {
        let all = [1, 1, 2, 3, 2, 4, 5].map(|n| IpAddr::from([192, 0, 2, n]));
        let six = "2001:db8::1".parse::<IpAddr>().expect("an address");
        assert_eq!(some_of(std::iter::once(six).chain(all)), [1, 2, 3, 4].map(|n| Ipv4Addr::from([192, 0, 2, n])));
    }
}
