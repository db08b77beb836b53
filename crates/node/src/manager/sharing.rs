//! Which of several processes gets the next recovered session. The kernel wakes the same one again and again (with
//! EPOLLEXCLUSIVE whoever waited first; without, whoever is fastest), so one that has more than another waits for that one
//! to ask, and the doorbell wakes others meanwhile. Who accepts at all is not known before it asks.

use std::collections::HashMap;
use std::time::Duration;

/// How long one that has had more waits for another to ask.
pub(super) const HOLD: Duration = Duration::from_millis(10);
/// One that did not come meanwhile is not waited for again before the other has had so many more.
const EXCUSED: usize = 4;
/// How long all these waits of one takeover may be: clients wait, too.
const MOST: Duration = Duration::from_millis(100);

/// The processes that have asked for sessions of one port since the takeover began.
#[derive(Debug, Default)]
pub(super) struct Sharing {
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
    pub fn asks(&mut self, channel: u32) -> bool {
        let new = !self.askers.contains_key(&channel);
        self.askers.entry(channel).or_default().excused = 0;
        new
    }

    /// Whether it is to wait: another has had less, or one that nobody knows yet may be there.
    pub fn holds(&self, channel: u32) -> bool {
        let taken = self.askers.get(&channel).map_or(0, |asker| asker.taken);
        let behind = |(id, asker): (&u32, &Asker)| *id != channel && asker.taken < taken && asker.excused <= taken;
        self.waited < MOST && (!self.known && taken > 0 || self.askers.iter().any(behind))
    }

    /// It got some.
    pub fn took(&mut self, channel: u32, n: usize) {
        self.askers.entry(channel).or_default().taken += n;
    }

    /// These have waited, and nobody else came.
    pub fn waited_in_vain(&mut self, held: &[u32]) {
        self.known = true;
        self.waited += HOLD;
        let most = held.iter().filter_map(|id| self.askers.get(id)).map(|asker| asker.taken).max().unwrap_or(0);
        for (_, asker) in self.askers.iter_mut().filter(|(id, _)| !held.contains(id)) {
            asker.excused = most + EXCUSED;
        }
    }

    /// It is dead.
    pub fn gone(&mut self, channel: u32) {
        self.askers.remove(&channel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
