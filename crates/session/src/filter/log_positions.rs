//! Which part of the log each offset of one direction of a session needs: a segment waits for the records of its
//! own bytes, not for all that was written since.

use std::collections::VecDeque;

use super::gate::LogPosition;
use crate::pooled::{Pool, Pooled};

/// More positions than this are joined, two to one.
const MAX_POSITIONS: usize = 64;

/// Log positions behind the records of one direction.
#[derive(Debug)]
pub(super) struct LogPositions {
    /// The replica has what lies before this offset.
    known: u64,
    /// (offset, position): what lies before the offset is in the log up to the position. Both rise.
    ahead: Pooled<VecDeque<(u64, LogPosition)>>,
    /// Offset and position of the newest record.
    end: u64,
    last: LogPosition,
}

impl LogPositions {
    /// What lies before the offset `end` is in the log up to `position`.
    pub fn new(end: u64, position: LogPosition) -> LogPositions {
        LogPositions { known: 0, ahead: Pooled::default(), end, last: position }
    }

    /// A record that ends at `position` of the log told what lies before `offset`.
    pub fn wrote(&mut self, offset: u64, position: LogPosition, pool: &mut Pool<VecDeque<(u64, LogPosition)>>) {
        let before = (self.end, std::mem::replace(&mut self.last, position));
        if offset <= self.end {
            return;
        }
        let ahead = self.ahead.get_or_take(pool);
        if ahead.is_empty() {
            ahead.push_back(before);
        }
        self.end = offset;
        if ahead.len() == MAX_POSITIONS {
            // Of two the later one says what is true of both.
            let mut at = 0;
            ahead.retain(|_| {
                at += 1;
                at % 2 == 0
            });
        }
        ahead.push_back((offset, position));
    }

    /// Log position that what lies before `offset` needs, where the replica has stored the log up to `acked`.
    pub fn need(&mut self, offset: u64, acked: LogPosition) -> LogPosition {
        self.pass(acked);
        if offset <= self.known {
            return LogPosition::START;
        }
        let at = self.ahead.partition_point(|&(o, _)| o < offset);
        self.ahead.get(at).map_or(self.last, |&(_, position)| position)
    }

    fn pass(&mut self, acked: LogPosition) {
        let Some(ahead) = self.ahead.get_mut_if_any() else { return };
        while let Some(&(known, _)) = ahead.front().filter(|(_, position)| *position <= acked) {
            self.known = known;
            ahead.pop_front();
        }
    }

    /// Nobody will ask for what the replica has.
    pub fn settle(&mut self, acked: LogPosition, pool: &mut Pool<VecDeque<(u64, LogPosition)>>) {
        self.pass(acked);
        self.ahead.give_back_if_empty(pool);
    }

    /// Position behind all of them.
    pub fn last(&self) -> LogPosition {
        self.last
    }

    /// Another replica: what is known of the former does not count.
    pub fn forget(&mut self) {
        self.known = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_offset_waits_for_its_own_record() {
        let (mut m, mut pool) = (LogPositions::new(3, LogPosition(5)), Pool::default());
        assert_eq!(m.need(1, LogPosition(4)).0, 5);
        m.wrote(10, LogPosition(100), &mut pool);
        m.wrote(20, LogPosition(200), &mut pool);
        assert_eq!([3, 4, 10, 11, 20].map(|offset| m.need(offset, LogPosition(0)).0), [5, 100, 100, 200, 200]);
        assert_eq!([m.need(3, LogPosition(5)).0, m.need(4, LogPosition(5)).0, m.last().0], [0, 100, 200]);
        assert_eq!([m.need(10, LogPosition(100)).0, m.need(11, LogPosition(199)).0, m.need(20, LogPosition(200)).0], [0, 200, 0]);
        // A record that told nothing new of this direction.
        m.wrote(20, LogPosition(300), &mut pool);
        assert_eq!([m.need(20, LogPosition(200)).0, m.need(21, LogPosition(200)).0, m.last().0], [0, 300, 300]);
        m.forget();
        assert_eq!(m.need(1, LogPosition(0)).0, 300);
        m.wrote(30, LogPosition(400), &mut pool);
        assert_eq!([m.need(20, LogPosition(0)).0, m.need(21, LogPosition(0)).0, m.need(20, LogPosition(300)).0], [300, 400, 0]);
    }

    proptest! {
        /// Never less than the truth, and exactly it while the positions are few.
        #[test]
        fn never_too_early(steps in proptest::collection::vec((0u64..3, 1u64..50, 0u64..400, 0u64..100), 1..200)) {
            let (mut m, mut truth, mut pool) = (LogPositions::new(0, LogPosition(0)), vec![(0, 0)], Pool::default());
            let (mut offset, mut position, mut acked) = (0, 0, 0);
            for (bytes, record, ask, stored) in steps {
                offset += bytes;
                position += record;
                m.wrote(offset, LogPosition(position), &mut pool);
                if truth.last().is_none_or(|&(o, _)| o < offset) {
                    truth.push((offset, position));
                }
                acked = position.min(acked + stored);
                let ask = ask.min(offset);
                let exact = truth.iter().find(|t| t.0 >= ask).map_or(0, |t| t.1);
                let need = m.need(ask, LogPosition(acked)).0;
                m.settle(LogPosition(acked), &mut pool);
                prop_assert_eq!(m.need(ask, LogPosition(acked)).0, need);
                prop_assert!(need > acked || exact <= acked, "{ask} needs {exact}, not {need}; stored {acked}");
                if truth.len() < MAX_POSITIONS {
                    prop_assert_eq!(need > acked, exact > acked);
                }
            }
        }
    }
}
