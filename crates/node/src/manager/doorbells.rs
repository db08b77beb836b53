//! When a doorbell is rung: the connection that wakes whoever waits on a listener that has recovered sessions.

use std::collections::HashMap;
use std::net::TcpStream;
use std::time::Duration;

use tcpr_session::Now;

use crate::doorbell;

/// How long a doorbell may wait, and nobody accept, before another one is rung: for a wait that is woken by what comes only
/// (EPOLLET), or another of several listeners (SO_REUSEPORT).
pub(super) const RING_AGAIN: Duration = Duration::from_millis(5);
/// One that accepts all that is there need not be rung for each.
const RING_SELDOM: Duration = Duration::from_millis(1);
/// When nobody has accepted for so long one more is rung, whatever waits: whom the others woke has found something else to do, or
/// has a session and waits with it.
pub(super) const STUCK: Duration = Duration::from_secs(1);
/// Most doorbells that wait at once with a listener: fewer than a small accept queue takes.
const MOST_BELLS: usize = 8;

/// What to do about a port now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Decision {
    /// Look again then.
    Later(Now),
    /// Ring. `each`: from now on each session takes a doorbell off the queue, which is told before it can be heard.
    Ring { each: bool },
}

/// The rhythm of one port's doorbells. Pure.
#[derive(Default)]
struct Rhythm {
    /// When the last one was rung, or a session accepted; and how many sessions there were then.
    at: Now,
    left: usize,
    /// Each session takes a doorbell off the queue: several processes accept, or a wait is woken by what comes only.
    each: bool,
    /// How many listeners there are; 0: nobody has looked yet.
    listeners: usize,
}

impl Rhythm {
    /// So many doorbells wait, and so many sessions are left for whoever is woken. `alone`: one process accepts; `more`: for
    /// somebody beside those whom the last doorbell woke.
    fn decide(&mut self, now: Now, waiting: usize, left: usize, alone: bool, more: bool) -> Decision {
        let most = MOST_BELLS * self.listeners;
        let progress = self.left.saturating_sub(left);
        let due = match waiting {
            0 if self.each || !alone || progress <= 1 => now,
            0 => self.at + RING_SELDOM,
            _ if more => now,
            n if n >= most => return Decision::Later(now + RING_AGAIN),
            _ if progress > 0 => now + RING_AGAIN,
            _ => self.at + RING_AGAIN,
        };
        if progress > 0 {
            (self.at, self.left) = (now, left);
        }
        let stuck = now >= self.at + STUCK;
        if due > now || waiting >= left.min(most) && !stuck {
            return Decision::Later(due.max(now + RING_SELDOM));
        }
        let each = self.each || !alone || waiting > 0;
        (self.at, self.left) = (now, left);
        Decision::Ring { each: !std::mem::replace(&mut self.each, each) && each }
    }
}

/// The doorbells of all ports.
#[derive(Default)]
pub(super) struct Doorbells {
    ports: HashMap<u16, (Rhythm, Vec<TcpStream>)>,
}

impl Doorbells {
    /// How many listeners a port has; `None`: nobody has looked yet.
    pub(super) fn listeners(&self, port: u16) -> Option<usize> {
        self.ports.get(&port).map(|(rhythm, _)| rhythm.listeners).filter(|n| *n > 0)
    }

    pub(super) fn note_listeners(&mut self, port: u16, listeners: usize) {
        self.ports.entry(port).or_default().0.listeners = listeners.max(1);
    }

    /// What to do for whoever accepts on a port that so many sessions are left for.
    pub(super) fn decide(&mut self, now: Now, port: u16, left: usize, alone: bool, more: bool) -> Decision {
        let (rhythm, rung) = self.ports.entry(port).or_default();
        rung.retain(doorbell::waits);
        rhythm.decide(now, rung.len(), left, alone, more)
    }

    pub(super) fn rung(&mut self, port: u16, bell: TcpStream) {
        self.ports.entry(port).or_default().1.push(bell);
    }

    pub(super) fn clear(&mut self) {
        self.ports.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Now {
        Duration::from_millis(n)
    }

    fn rhythm() -> Rhythm {
        Rhythm { listeners: 1, ..Rhythm::default() }
    }

    #[test]
    fn one_that_accepts_all_that_is_there_is_not_rung_for_each() {
        let mut rhythm = rhythm();
        assert_eq!(rhythm.decide(ms(10), 0, 100, true, false), Decision::Ring { each: false });
        // It took the doorbell, and has accepted thirty of them.
        assert_eq!(rhythm.decide(ms(10), 0, 70, true, false), Decision::Later(ms(11)));
        assert_eq!(rhythm.decide(ms(11), 0, 70, true, false), Decision::Ring { each: false });
    }

    #[test]
    fn a_doorbell_that_nobody_takes_is_followed_by_another_one_up_to_a_number() {
        let mut rhythm = rhythm();
        assert_eq!(rhythm.decide(ms(0), 0, 100, true, false), Decision::Ring { each: false });
        assert_eq!(rhythm.decide(ms(1), 1, 100, true, false), Decision::Later(ms(5)));
        assert_eq!(rhythm.decide(ms(5), 1, 100, true, false), Decision::Ring { each: true }, "told once");
        assert_eq!(rhythm.decide(ms(10), 2, 100, true, false), Decision::Ring { each: false });
        assert_eq!(rhythm.decide(ms(20), MOST_BELLS, 100, true, false), Decision::Later(ms(25)));
        // Never more than there are sessions: a program that trusts its epoll would wait in accept for nobody.
        assert_eq!(rhythm.decide(ms(20), 3, 3, true, true), Decision::Later(ms(21)));
    }

    #[test]
    fn as_long_as_nobody_accepts_somebody_is_rung_again() {
        let mut rhythm = rhythm();
        assert_eq!(rhythm.decide(ms(0), 0, 1, true, false), Decision::Ring { each: false });
        assert_eq!(rhythm.decide(ms(999), 1, 1, true, false), Decision::Later(ms(1000)));
        assert_eq!(rhythm.decide(ms(1000), 1, 1, true, false), Decision::Ring { each: true }, "a session takes them all off");
        assert_eq!(rhythm.decide(ms(1999), 2, 1, true, false), Decision::Later(ms(2000)));
        assert_eq!(rhythm.decide(ms(2000), 2, 1, true, false), Decision::Ring { each: false });
        // One that is taken shows that somebody is there.
        assert_eq!(rhythm.decide(ms(2001), 0, 1, true, false), Decision::Ring { each: false });
        assert_eq!(rhythm.decide(ms(3000), 1, 1, true, false), Decision::Later(ms(3001)));
        // There is an end to it.
        assert_eq!(rhythm.decide(ms(9000), MOST_BELLS, 1, true, false), Decision::Later(ms(9005)));
    }

    #[test]
    fn several_processes_are_rung_for_each_session() {
        let mut rhythm = rhythm();
        assert_eq!(rhythm.decide(ms(0), 0, 9, false, false), Decision::Ring { each: true });
        assert_eq!(rhythm.decide(ms(0), 0, 8, false, false), Decision::Ring { each: false });
        // For somebody beside the one whom the last doorbell woke.
        assert_eq!(rhythm.decide(ms(0), 1, 8, false, true), Decision::Ring { each: false });
    }
}
