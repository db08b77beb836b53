//! Which of several processes gets the next recovered session. The kernel wakes the same one again and again (with
//! EPOLLEXCLUSIVE whoever waited first; without, whoever is fastest), so a process with more sessions than another waits
//! until the other has asked, and the doorbell wakes others meanwhile. Who accepts at all is not known before it asks.

use std::collections::HashMap;
use std::time::Duration;

use tcpr_session::Now;

/// How long one that has had more waits for another to ask.
const HOLD: Duration = Duration::from_millis(10);
/// One that did not come meanwhile is not waited for again before the other has had so many more.
const EXCUSED: usize = 4;
/// How long all these waits of one takeover may be: clients wait, too.
const MOST: Duration = Duration::from_millis(100);

/// A process that asks for recovered sessions of a port, by the request of this number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Asking {
    pub(super) channel: u32,
    pub(super) number: u32,
    pub(super) port: u16,
}

/// Who asks, and who of them waits for others to ask first.
#[derive(Debug, Default)]
pub(super) struct Askers {
    sharing: HashMap<u16, Sharing>,
    waiting: Vec<Asking>,
    /// Until when they wait.
    until: Option<Now>,
}

impl Askers {
    pub(super) fn asks(&mut self, now: Now, asking: Asking) {
        if self.sharing.entry(asking.port).or_default().asks(asking.channel) {
            self.until = self.until.map(|_| now + HOLD);
        }
        self.waiting.push(asking);
    }

    /// Takes the next one that need not wait for others. `none_left`: whether a port has no sessions.
    pub(super) fn next(&mut self, none_left: impl Fn(u16) -> bool) -> Option<Asking> {
        let holds = |asking: &Asking| self.sharing.get(&asking.port).is_some_and(|sharing| sharing.holds(asking.channel));
        let at = self.waiting.iter().position(|asking| none_left(asking.port) || !holds(asking))?;
        Some(self.waiting.remove(at))
    }

    /// All others wait. Returns their ports.
    pub(super) fn wait(&mut self, now: Now) -> Vec<u16> {
        if self.waiting.is_empty() {
            self.until = None;
            return Vec::new();
        }
        self.until.get_or_insert(now + HOLD);
        let mut ports: Vec<u16> = self.waiting.iter().map(|asking| asking.port).collect();
        ports.dedup();
        ports
    }

    /// They have waited for long enough, and nobody else came.
    pub(super) fn waited_in_vain(&mut self) {
        self.until = None;
        let held: Vec<u32> = self.waiting.iter().map(|asking| asking.channel).collect();
        for (port, sharing) in &mut self.sharing {
            if self.waiting.iter().any(|asking| asking.port == *port) {
                sharing.waited_in_vain(&held);
            }
        }
    }

    /// A process got some.
    pub(super) fn took(&mut self, channel: u32, port: u16, n: usize) {
        self.sharing.entry(port).or_default().took(channel, n);
    }

    /// A process is dead.
    pub(super) fn gone(&mut self, channel: u32) {
        self.sharing.values_mut().for_each(|sharing| sharing.gone(channel));
        self.waiting.retain(|asking| asking.channel != channel);
    }

    /// The takeover is done: the next one begins anew.
    pub(super) fn forget_shares(&mut self) {
        self.sharing.clear();
    }

    /// No takeover any more.
    pub(super) fn abandon(&mut self) {
        self.sharing.clear();
        self.until = None;
    }

    pub(super) fn poll_timeout(&self) -> Option<Now> {
        self.until
    }
}

/// The processes that have asked for sessions of one port since the takeover began.
#[derive(Debug, Default)]
struct Sharing {
    askers: HashMap<u32, Asker>,
    /// Nobody new has asked for as long as one waited.
    known: bool,
    waited: Duration,
}

#[derive(Debug, Default)]
struct Asker {
    taken: usize,
    /// It did not ask when another waited for it: is not waited for before that one has had so many.
    excused: usize,
}

impl Sharing {
    /// A process asks. Returns whether it is new.
    fn asks(&mut self, channel: u32) -> bool {
        let new = !self.askers.contains_key(&channel);
        self.askers.entry(channel).or_default().excused = 0;
        new
    }

    /// Whether it is to wait: another has had less, or one that nobody knows yet may be there.
    fn holds(&self, channel: u32) -> bool {
        let taken = self.askers.get(&channel).map_or(0, |asker| asker.taken);
        let behind = |(id, asker): (&u32, &Asker)| *id != channel && asker.taken < taken && asker.excused <= taken;
        self.waited < MOST && (!self.known && taken > 0 || self.askers.iter().any(behind))
    }

    /// It got some.
    fn took(&mut self, channel: u32, n: usize) {
        self.askers.entry(channel).or_default().taken += n;
    }

    /// These have waited, and nobody else came.
    fn waited_in_vain(&mut self, held: &[u32]) {
        self.known = true;
        self.waited += HOLD;
        let most = held.iter().filter_map(|id| self.askers.get(id)).map(|asker| asker.taken).max().unwrap_or(0);
        for (_, asker) in self.askers.iter_mut().filter(|(id, _)| !held.contains(id)) {
            asker.excused = most + EXCUSED;
        }
    }

    /// It is dead.
    fn gone(&mut self, channel: u32) {
        self.askers.remove(&channel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_had_more_waits_for_another_to_ask_but_not_for_ever() {
        let (now, left, none) = (Duration::from_secs(1), |_| false, |_| true);
        let asking = |channel, port| Asking { channel, number: channel, port };
        let mut askers = Askers::default();
        assert!(askers.wait(now).is_empty());
        askers.asks(now, asking(1, 80));
        assert_eq!(askers.next(left), Some(asking(1, 80)), "nobody has had any");
        askers.took(1, 80, 1);
        askers.asks(now, asking(1, 80));
        assert_eq!((askers.next(left), askers.wait(now), askers.poll_timeout()), (None, vec![80], Some(now + HOLD)));
        askers.asks(now + HOLD / 2, asking(2, 80));
        assert_eq!(askers.poll_timeout(), Some(now + HOLD / 2 + HOLD), "one more may come");
        assert_eq!(askers.next(left), Some(asking(2, 80)));
        askers.took(2, 80, 1);
        assert_eq!(askers.next(left), None);
        askers.waited_in_vain();
        assert_eq!((askers.next(left), askers.poll_timeout()), (Some(asking(1, 80)), None));
        askers.took(1, 80, 1);
        askers.asks(now, asking(1, 80));
        askers.asks(now, asking(1, 81));
        assert_eq!(askers.next(none), Some(asking(1, 80)), "there is nothing to wait for");
        askers.gone(1);
        assert!(askers.next(none).is_none() && askers.wait(now).is_empty());
    }

    /// Processes of which the first that may asks, until none of so many sessions is left. Returns what each got.
    fn share(processes: &[u32], mut sessions: usize) -> (Vec<usize>, Duration) {
        let mut sharing = Sharing::default();
        let mut held: Vec<u32> = Vec::new();
        while sessions > 0 {
            let asks = processes.iter().copied().find(|id| !held.contains(id));
            if let Some(id) = asks {
                sharing.asks(id);
                held.push(id);
            } else {
                sharing.waited_in_vain(&held);
            }
            while let Some(at) = held.iter().position(|id| sessions > 0 && !sharing.holds(*id)) {
                sharing.took(held.remove(at), 1);
                sessions -= 1;
            }
        }
        (processes.iter().map(|id| sharing.askers.get(id).map_or(0, |asker| asker.taken)).collect(), sharing.waited)
    }

    #[test]
    fn sessions_are_shared_evenly_however_eager_one_is() {
        assert_eq!(share(&[1, 2], 64).0, [32, 32]);
        assert_eq!(share(&[1, 2, 3, 4], 64).0, [16; 4]);
        assert_eq!(share(&[1, 2, 3], 2).0, [1, 1, 0]);
    }

    #[test]
    fn who_is_alone_waits_once() {
        assert_eq!(share(&[1], 1000), (vec![1000], HOLD));
    }

    #[test]
    fn one_that_stops_asking_is_not_waited_for_again() {
        let mut sharing = Sharing::default();
        for id in [1, 2] {
            sharing.asks(id);
            sharing.took(id, 1);
        }
        assert!(sharing.holds(1));
        sharing.waited_in_vain(&[1]);
        sharing.took(1, 1);
        assert!(!sharing.holds(1));
        sharing.asks(2);
        assert!(sharing.holds(1) && !sharing.holds(2));
        sharing.gone(2);
        assert!(!sharing.holds(1));
    }

    #[test]
    fn there_is_an_end_to_waiting() {
        let mut sharing = Sharing::default();
        for i in 0..100 {
            sharing.asks(2);
            sharing.asks(1);
            sharing.took(1, i);
            if sharing.holds(1) {
                sharing.waited_in_vain(&[1]);
            }
        }
        assert_eq!(sharing.waited, MOST);
    }
}
