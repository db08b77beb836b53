//! Input that arrived out of order, until what stands before it has come.

use std::collections::BTreeMap;

use super::Filter;
use crate::pooled::Blank;
use crate::tuple::SessionId;
use crate::Now;

/// Most memory kept for one session, and for all of them; and what keeping a piece costs beside its bytes.
const MAX_REASSEMBLY: usize = 16 << 20;
const MAX_REASSEMBLIES: usize = 64 << 20;
const PIECE_COST: usize = 96;
/// Pieces grow to this by what continues them.
const LARGE_PIECE: usize = 64 << 10;

/// Pieces of a stream, and where it ends if that is known.
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    /// By offset; none overlaps another.
    pieces: BTreeMap<u64, Vec<u8>>,
    cost: usize,
    fin: Option<u64>,
    /// Its place in [`Reassemblies`]; 0: none.
    since: u64,
}

/// What came out of order of all sessions together.
#[derive(Debug, Default)]
pub(super) struct Reassemblies {
    cost: usize,
    /// Sessions with a hole, in the order in which the holes came.
    holes: BTreeMap<u64, SessionId>,
    last: u64,
}

impl Blank for Reassembly {
    const BLANK: &'static Reassembly = &Reassembly { pieces: BTreeMap::new(), cost: 0, fin: None, since: 0 };

    fn is_blank(&self) -> bool {
        self.pieces.is_empty() && self.fin.is_none()
    }
}

impl Reassembly {
    /// Whether these bytes, and with `fin` the end behind them, are what is known of their places.
    pub fn agrees(&self, offset: u64, bytes: &[u8], fin: bool) -> bool {
        let end = offset + bytes.len() as u64;
        if self.fin.is_some_and(|known| end > known || (fin && end < known)) {
            return false;
        }
        if fin && self.pieces.last_key_value().is_some_and(|(start, piece)| start + piece.len() as u64 > end) {
            return false;
        }
        self.known(offset, end).all(|(start, piece)| {
            let (from, to) = (start.max(offset), (start + piece.len() as u64).min(end));
            from >= to
                || piece[(from - start) as usize..(to - start) as usize]
                    == bytes[(from - offset) as usize..(to - offset) as usize]
        })
    }

    /// The pieces that may have bytes of this range, in order.
    fn known(&self, offset: u64, end: u64) -> impl Iterator<Item = (u64, &[u8])> {
        let from = self.pieces.range(..=offset).next_back().map_or(offset, |(start, _)| *start);
        self.pieces.range(from..end.max(from)).map(|(start, piece)| (*start, &piece[..]))
    }

    /// What of this range is not known yet.
    fn gaps(&self, offset: u64, end: u64) -> Vec<std::ops::Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = offset;
        for (start, piece) in self.known(offset, end) {
            if start > at {
                gaps.push(at..start);
            }
            at = at.max(start + piece.len() as u64);
        }
        if at < end {
            gaps.push(at..end);
        }
        gaps
    }

    /// Keeps what of these bytes is not known yet. False: there is no room.
    fn keep(&mut self, offset: u64, bytes: &[u8], fin: bool) -> bool {
        let end = offset + bytes.len() as u64;
        let gaps = self.gaps(offset, end);
        if self.cost + cost_of(&gaps) > MAX_REASSEMBLY {
            return false;
        }
        for gap in gaps {
            let fresh = &bytes[(gap.start - offset) as usize..(gap.end - offset) as usize];
            let before = self.pieces.range_mut(..gap.start).next_back();
            match before {
                Some((start, piece)) if start + piece.len() as u64 == gap.start && piece.len() < LARGE_PIECE => {
                    self.cost -= piece.capacity();
                    piece.extend_from_slice(fresh);
                    self.cost += piece.capacity();
                }
                _ => {
                    self.cost += fresh.len() + PIECE_COST;
                    self.pieces.insert(gap.start, fresh.to_vec());
                }
            }
        }
        if fin {
            self.fin = Some(end);
        }
        true
    }

    /// Where the first piece begins.
    pub fn first(&self) -> Option<u64> {
        self.pieces.first_key_value().map(|(start, _)| *start)
    }

    /// Appends what continues a stream that reaches to `at`, and forgets what lies before its new end, be it the same or not:
    /// what came in order counts, as it does for the local TCP. Returns whether the stream ends there.
    fn join(&mut self, mut at: u64, stream: &mut Vec<u8>) -> bool {
        while let Some((&start, _)) = self.pieces.first_key_value() {
            if start > at {
                break;
            }
            let (_, piece) = self.pieces.pop_first().expect("first");
            self.cost -= piece.capacity() + PIECE_COST;
            let known = (at - start) as usize;
            if known < piece.len() {
                stream.extend_from_slice(&piece[known..]);
                at = start + piece.len() as u64;
            }
        }
        let ends = self.fin == Some(at);
        if ends {
            self.clear();
        }
        self.fin = self.fin.filter(|fin| *fin > at);
        ends
    }

    fn clear(&mut self) {
        *self = Reassembly { since: self.since, ..Reassembly::default() };
    }
}

fn cost_of(gaps: &[std::ops::Range<u64>]) -> usize {
    gaps.iter().map(|gap| (gap.end - gap.start) as usize + PIECE_COST).sum()
}

impl Filter {
    /// Changes what came out of order of a session.
    fn change_reassembly<R>(&mut self, id: SessionId, change: impl FnOnce(&mut Reassembly) -> R) -> R {
        let (all, live) = (&mut self.reassemblies, self.live.get_mut(&id).expect("live"));
        let queue = live.reassembly.get_or_make();
        let before = queue.cost;
        let result = change(queue);
        all.cost = all.cost + queue.cost - before;
        match (queue.is_blank(), queue.since) {
            (true, _) => {
                all.holes.remove(&queue.since);
            }
            (false, 0) => {
                all.last += 1;
                queue.since = all.last;
                all.holes.insert(queue.since, id);
            }
            (false, _) => {}
        }
        live.reassembly.drop_if_empty();
        result
    }

    /// Keeps input that came out of order. Where there is no room for that of all sessions, those are forgotten that have waited
    /// for the longest: who leaves a hole open costs the others nothing. False: there is none all the same.
    pub(super) fn keep_out_of_order(&mut self, now: Now, id: SessionId, offset: u64, bytes: &[u8], fin: bool) -> bool {
        let cost = cost_of(&self.live[&id].reassembly.gaps(offset, offset + bytes.len() as u64));
        while self.reassemblies.cost + cost > MAX_REASSEMBLIES {
            let Some(oldest) = self.reassemblies.holes.values().copied().find(|other| *other != id) else { return false };
            self.counters.early_forgotten += 1;
            self.forget_out_of_order(oldest);
            // The local TCP may have it, and acknowledge it; that is held until the peer has sent it again, as every TCP does
            // for which a receiver has forgotten what it acknowledged selectively (RFC 2018, section 8).
            self.stray_late(now, oldest);
        }
        self.change_reassembly(id, |queue| queue.keep(offset, bytes, fin))
    }

    /// Input has come in order up to `at`: appends what continues it. Returns whether the stream ends there.
    pub(super) fn join_reassembled(&mut self, id: SessionId, at: u64, stream: &mut Vec<u8>) -> bool {
        self.change_reassembly(id, |queue| queue.join(at, stream))
    }

    pub(super) fn forget_out_of_order(&mut self, id: SessionId) {
        if self.live.get(&id).is_some_and(|live| !live.reassembly.is_blank()) {
            self.change_reassembly(id, Reassembly::clear);
        }
    }

    /// What is kept out of order by all sessions together, in bytes of memory.
    #[must_use]
    pub fn out_of_order_bytes(&self) -> usize {
        self.reassemblies.cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn room_is_bounded_and_comes_back() {
        let mut e = Reassembly::default();
        let mut kept = 0;
        while e.keep(2 * kept + 1, b"x", false) {
            kept += 1;
        }
        assert!(kept > 100_000 && e.cost <= MAX_REASSEMBLY);
        // What is known costs nothing.
        assert!(e.keep(1, b"x", false));
        let mut stream = Vec::new();
        for i in 0..kept {
            e.join(2 * i + 1, &mut stream);
        }
        assert_eq!((stream.len() as u64, e.cost, e.is_blank()), (kept, 0, true));
    }

    #[test]
    fn an_end_is_believed_once() {
        let mut e = Reassembly::default();
        assert!(e.keep(5, b"fg", true));
        assert!(e.agrees(6, b"g", true) && e.agrees(6, b"g", false) && e.agrees(7, b"", true));
        assert!(!e.agrees(6, b"gh", false), "behind the end");
        assert!(!e.agrees(5, b"f", true), "another end");
        assert!(!e.agrees(7, b"h", true), "another end");
        let mut e = Reassembly::default();
        assert!(e.keep(5, b"fg", false));
        assert!(!e.agrees(3, b"de", true), "something stands behind it");
        assert!(e.agrees(6, b"g", true));
    }

    proptest! {
        /// Against a map of single bytes.
        #[test]
        fn keeps_what_came_first(pieces in proptest::collection::vec((1u64..60, 1usize..20, any::<bool>()), 1..60)) {
            let mut e = Reassembly::default();
            let mut model: BTreeMap<u64, u8> = BTreeMap::new();
            for (offset, length, honest) in pieces {
                let bytes: Vec<u8> = (offset..).take(length).map(|o| if honest { o as u8 } else { !(o as u8) }).collect();
                let all = || (offset..).zip(bytes.iter().copied());
                let agrees = all().all(|(o, b)| model.get(&o).is_none_or(|known| *known == b));
                prop_assert_eq!(e.agrees(offset, &bytes, false), agrees);
                if agrees {
                    prop_assert!(e.keep(offset, &bytes, false));
                    model.extend(all());
                }
                let cost: usize = e.pieces.values().map(|p| p.capacity() + PIECE_COST).sum();
                prop_assert_eq!(cost, e.cost);
                prop_assert_eq!(model.len(), e.pieces.values().map(Vec::len).sum::<usize>());
            }
            let first = *model.first_key_value().expect("not empty").0;
            let expected: Vec<u8> =
                model.iter().zip(first..).take_while(|((o, _), at)| *o == at).map(|((_, b), _)| *b).collect();
            let mut stream = Vec::new();
            prop_assert!(!e.join(first, &mut stream));
            prop_assert_eq!(stream, expected);
        }
    }
}
