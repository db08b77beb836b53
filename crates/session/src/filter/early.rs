//! Input that arrived out of order, until what stands before it has come.

use std::collections::BTreeMap;

use crate::seldom::Blank;

/// Most bytes kept of one session, and what keeping a piece costs beside its bytes.
const MAX_EARLY: usize = 16 << 20;
const EARLY_PIECE: usize = 96;

/// Pieces of a stream, and where it ends if that is known.
#[derive(Debug, Default)]
pub(super) struct Early {
    /// By offset; none overlaps another.
    pieces: BTreeMap<u64, Vec<u8>>,
    cost: usize,
    fin: Option<u64>,
}

impl Blank for Early {
    const BLANK: &'static Early = &Early { pieces: BTreeMap::new(), cost: 0, fin: None };

    fn is_blank(&self) -> bool {
        self.pieces.is_empty() && self.fin.is_none()
    }
}

impl Early {
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
            from >= to || piece[(from - start) as usize..(to - start) as usize]
                == bytes[(from - offset) as usize..(to - offset) as usize]
        })
    }

    /// The pieces that may have bytes of this range, in order.
    fn known(&self, offset: u64, end: u64) -> impl Iterator<Item = (u64, &[u8])> {
        let from = self.pieces.range(..=offset).next_back().map_or(offset, |(start, _)| *start);
        self.pieces.range(from..end.max(from)).map(|(start, piece)| (*start, &piece[..]))
    }

    /// Keeps what of these bytes is not known yet. False: there is no room.
    pub fn keep(&mut self, offset: u64, bytes: &[u8], fin: bool) -> bool {
        let end = offset + bytes.len() as u64;
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
        let cost: usize = gaps.iter().map(|gap| (gap.end - gap.start) as usize + EARLY_PIECE).sum();
        if self.cost + cost > MAX_EARLY {
            return false;
        }
        self.cost += cost;
        for gap in gaps {
            let piece = bytes[(gap.start - offset) as usize..(gap.end - offset) as usize].to_vec();
            self.pieces.insert(gap.start, piece);
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

    /// Appends what continues a stream that reaches to `at`, and forgets what lies before its new end. Returns whether
    /// the stream ends there.
    pub fn join(&mut self, mut at: u64, stream: &mut Vec<u8>) -> bool {
        while let Some((&start, _)) = self.pieces.first_key_value() {
            if start > at {
                break;
            }
            let (_, piece) = self.pieces.pop_first().expect("first");
            self.cost -= piece.len() + EARLY_PIECE;
            let known = (at - start) as usize;
            if known < piece.len() {
                stream.extend_from_slice(&piece[known..]);
                at = start + piece.len() as u64;
            }
        }
        let ends = self.fin == Some(at);
        if ends {
            *self = Early::default();
        }
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn room_is_bounded_and_comes_back() {
        let mut e = Early::default();
        let mut kept = 0;
        while e.keep(2 * kept + 1, b"x", false) {
            kept += 1;
        }
        assert!(kept > 100_000 && e.cost <= MAX_EARLY);
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
        let mut e = Early::default();
        assert!(e.keep(5, b"fg", true));
        assert!(e.agrees(6, b"g", true) && e.agrees(6, b"g", false) && e.agrees(7, b"", true));
        assert!(!e.agrees(6, b"gh", false), "behind the end");
        assert!(!e.agrees(5, b"f", true), "another end");
        assert!(!e.agrees(7, b"h", true), "another end");
        let mut e = Early::default();
        assert!(e.keep(5, b"fg", false));
        assert!(!e.agrees(3, b"de", true), "something stands behind it");
        assert!(e.agrees(6, b"g", true));
    }

    proptest! {
        /// Against a map of single bytes.
        #[test]
        fn keeps_what_came_first(pieces in proptest::collection::vec((1u64..60, 1usize..20, any::<bool>()), 1..60)) {
            let mut e = Early::default();
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
                let cost: usize = e.pieces.values().map(|p| p.len() + EARLY_PIECE).sum();
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
