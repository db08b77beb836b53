//! Restored sessions that wait for a process, in the order in which they are handed out. Each may end at any time, and tens of
//! thousands may wait: one that ends is not looked for by going through the others.

use std::collections::{btree_map, BTreeMap};
use std::os::fd::OwnedFd;

use tcpr_session::tuple::{BySession, SessionId};

use crate::channel::wire::RecoveredInfo;

/// A restored session and its socket.
pub(super) struct Ready {
    pub(super) info: RecoveredInfo,
    pub(super) socket: OwnedFd,
}

/// See the module's description.
#[derive(Default)]
pub(super) struct Queue {
    sessions: BTreeMap<i64, Ready>,
    places: BySession<i64>,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Ready> {
        self.sessions.values()
    }

    pub(super) fn push_back(&mut self, ready: Ready) {
        let place = self.sessions.last_key_value().map_or(0, |(last, _)| last + 1);
        self.put(place, ready);
    }

    pub(super) fn push_front(&mut self, ready: Ready) {
        let place = self.sessions.first_key_value().map_or(0, |(first, _)| first - 1);
        self.put(place, ready);
    }

    fn put(&mut self, place: i64, ready: Ready) {
        // One that is restored again has another socket.
        self.take(ready.info.session);
        self.places.insert(ready.info.session, place);
        self.sessions.insert(place, ready);
    }

    /// Takes a session out, wherever it is.
    pub(super) fn take(&mut self, session: SessionId) -> Option<Ready> {
        self.sessions.remove(&self.places.remove(&session)?)
    }

    pub(super) fn pop_front(&mut self) -> Option<Ready> {
        let (_, ready) = self.sessions.pop_first()?;
        self.places.remove(&ready.info.session);
        Some(ready)
    }
}

impl Extend<Ready> for Queue {
    fn extend<T: IntoIterator<Item = Ready>>(&mut self, all: T) {
        all.into_iter().for_each(|ready| self.push_back(ready));
    }
}

impl IntoIterator for Queue {
    type Item = Ready;
    type IntoIter = btree_map::IntoValues<i64, Ready>;

    fn into_iter(self) -> Self::IntoIter {
        self.sessions.into_values()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn ready(session: SessionId) -> Ready {
        let tuple = tcpr_session::tuple::FourTuple {
            local: "192.0.2.200:5555".parse().unwrap(),
            peer: ([192, 0, 2, 9], session as u16).into(),
        };
        let info = RecoveredInfo { tuple, session, absorb: 0, greeted: false, in_done: 0, out_base: 0, options: Vec::new() };
        Ready { info, socket: File::open("/dev/null").unwrap().into() }
    }

    fn sessions(queue: &Queue) -> Vec<SessionId> {
        queue.iter().map(|ready| ready.info.session).collect()
    }

    #[test]
    fn sessions_come_in_their_order_and_end_in_any() {
        let mut queue = Queue::default();
        queue.extend((1..=5).map(ready));
        assert_eq!(queue.take(3).map(|ready| ready.info.session), Some(3));
        assert!(queue.take(3).is_none() && queue.take(9).is_none());
        let first = queue.pop_front().unwrap();
        assert_eq!(first.info.session, 1);
        assert!(queue.take(1).is_none());
        queue.push_front(first);
        queue.push_back(ready(6));
        assert_eq!(sessions(&queue), [1, 2, 4, 5, 6]);
        assert_eq!(queue.len(), 5);
        // The same session once more: there is one of it.
        queue.push_back(ready(1));
        assert_eq!(sessions(&queue), [2, 4, 5, 6, 1]);
        assert_eq!(queue.into_iter().count(), 5);
        let mut none = Queue::default();
        assert!(none.is_empty() && none.pop_front().is_none());
    }
}
