//! Message boundaries in a byte stream, so that a message half read is not taken as done.

use std::collections::VecDeque;

/// How the messages of a port are delimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// Nothing is known: what is done is inferred from the answers.
    #[default]
    None,
    /// A message ends with a line feed.
    Lines,
    /// A message carries its length in a field of fixed width.
    Length {
        /// Where the length field starts, counted from the start of the message.
        at: usize,
        /// The width of the length field: 1, 2, 4 or 8 bytes.
        bytes: u8,
        /// Whether the length is sent most significant byte first.
        big_endian: bool,
        /// Whether the length counts the whole message, or only what follows the length field.
        counts_whole_message: bool,
    },
}

impl Framing {
    /// Whether message boundaries are known at all.
    pub fn is_set(&self) -> bool {
        !matches!(self, Framing::None)
    }
}

/// Finds the ends of messages in a stream that is fed to it in order, in pieces of any size.
///
/// An end is the offset just past the last byte of a message. Ends are kept as one bit each in 64-byte
/// windows: a peer that sends nothing but line feeds makes us keep a quarter of what it sent, not eight
/// times as much.
#[derive(Clone, Debug)]
pub struct Scanner {
    framing: Framing,
    /// Everything before this offset was looked at.
    position: u64,
    /// (offset / 64, bit set of the offsets in that window), ascending.
    ends: VecDeque<(u64, u64)>,
    broken: bool,
    /// Length framing: where the current message starts, the part of its length seen, and its end once known.
    start: u64,
    value: u64,
    end: Option<u64>,
}

impl Scanner {
    /// A scanner whose first byte has offset `start`, which is the start of a message.
    pub fn new(framing: Framing, start: u64) -> Self {
        let broken = matches!(framing, Framing::Length { bytes, .. } if !matches!(bytes, 1 | 2 | 4 | 8));
        Scanner { framing, position: start, ends: VecDeque::new(), broken, start, value: 0, end: None }
    }

    /// Forgets what was fed; a message starts at `start`.
    pub fn restart(&mut self, start: u64) {
        *self = Scanner::new(self.framing, start);
    }

    /// The offset of the next byte to be fed.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether the stream was found not to follow its framing; from there on no message is ever complete.
    pub fn broken(&self) -> bool {
        self.broken
    }

    /// Looks at `bytes`, the first of which has offset `offset`. Bytes seen before are skipped; a gap
    /// breaks the framing, for nothing behind it can be trusted.
    pub fn feed(&mut self, offset: u64, bytes: &[u8]) {
        let Some(limit) = offset.checked_add(bytes.len() as u64) else {
            self.broken = true;
            return;
        };
        if limit <= self.position {
            return;
        }
        if offset > self.position {
            self.broken = self.framing.is_set();
            self.position = offset;
        }
        let fresh = &bytes[(self.position - offset) as usize..];
        if !self.broken {
            match self.framing {
                Framing::None => {}
                Framing::Lines => self.scan_lines(fresh),
                Framing::Length { at, bytes, big_endian, counts_whole_message } => {
                    let header = (at as u64).checked_add(u64::from(bytes));
                    let ok = header.is_some_and(|header| {
                        self.scan_lengths(fresh, header, bytes, big_endian, counts_whole_message).is_some()
                    });
                    self.broken = !ok;
                }
            }
        }
        self.position = limit;
    }

    fn scan_lines(&mut self, fresh: &[u8]) {
        for (i, byte) in fresh.iter().enumerate() {
            if *byte == b'\n' {
                self.note_end(self.position + i as u64 + 1);
            }
        }
    }

    /// `None` when the stream breaks the framing.
    fn scan_lengths(&mut self, fresh: &[u8], header: u64, width: u8, big_endian: bool, whole: bool) -> Option<()> {
        let origin = self.position;
        let limit = origin + fresh.len() as u64;
        let mut position = origin;
        loop {
            if let Some(end) = self.end {
                if end > limit {
                    return Some(());
                }
                self.note_end(end);
                position = end;
                self.start = end;
                self.value = 0;
                self.end = None;
            }
            let after_header = self.start.checked_add(header)?;
            let field = after_header - u64::from(width);
            position = position.max(field);
            while position < after_header {
                if position >= limit {
                    return Some(());
                }
                let byte = u64::from(fresh[(position - origin) as usize]);
                if big_endian {
                    self.value = self.value << 8 | byte;
                } else {
                    self.value |= byte << (8 * (position - field));
                }
                position += 1;
            }
            let length = if whole { self.value } else { self.value.checked_add(header)? };
            if length < header {
                return None;
            }
            self.end = Some(self.start.checked_add(length)?);
        }
    }

    fn note_end(&mut self, end: u64) {
        let (window, bit) = (end / 64, 1u64 << (end % 64));
        match self.ends.back_mut() {
            Some(last) if last.0 == window => last.1 |= bit,
            _ => self.ends.push_back((window, bit)),
        }
    }

    /// The last message end at or before `upto`, if one is remembered.
    pub fn last_end(&self, upto: u64) -> Option<u64> {
        let window = upto / 64;
        let after = self.ends.partition_point(|e| e.0 <= window);
        let top = |(w, bits): (u64, u64)| (bits != 0).then(|| w * 64 + 63 - u64::from(bits.leading_zeros()));
        let (w, bits) = *self.ends.get(after.checked_sub(1)?)?;
        if w < window {
            return top((w, bits));
        }
        let up_to_here = bits & (u64::MAX >> (63 - upto % 64));
        top((w, up_to_here)).or_else(|| top(*self.ends.get(after.checked_sub(2)?)?))
    }

    /// Forgets ends before `done` (a few at or just before it may stay remembered).
    pub fn forget(&mut self, done: u64) {
        while self.ends.front().is_some_and(|e| e.0 < done / 64) {
            self.ends.pop_front();
        }
    }

    /// How many 64-byte windows with message ends are remembered: what this scanner costs in memory.
    pub fn windows(&self) -> usize {
        self.ends.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length(at: usize, bytes: u8, big_endian: bool, whole: bool) -> Framing {
        Framing::Length { at, bytes, big_endian, counts_whole_message: whole }
    }

    /// All ends, found by asking for every offset.
    fn ends(framing: Framing, start: u64, bytes: &[u8], piece: usize) -> (Vec<u64>, bool) {
        let mut scanner = Scanner::new(framing, start);
        let mut offset = start;
        for chunk in bytes.chunks(piece) {
            scanner.feed(offset, chunk);
            offset += chunk.len() as u64;
        }
        let mut found: Vec<u64> = (start..=offset).filter_map(|o| scanner.last_end(o)).collect();
        found.dedup();
        (found, scanner.broken())
    }

    #[test]
    fn lines_in_any_split() {
        for piece in 1..=9 {
            let text = b"ab\n\n0123456\nrest";
            assert_eq!(ends(Framing::Lines, 0, text, piece), (vec![3, 4, 12], false));
            assert_eq!(ends(Framing::Lines, 1000, text, piece), (vec![1003, 1004, 1012], false));
        }
    }

    #[test]
    fn lengths_in_any_split() {
        let rest = [0, 2, b'a', b'b', 0, 0, 0, 1, b'c', 0, 9];
        let whole = [b'x', 4, 0, b'y', b'x', 3, 0, b'x', 5];
        for piece in 1..=12 {
            let f = length(0, 2, true, false);
            assert_eq!(ends(f, 7, &rest, piece), (vec![11, 13, 16], false));
            let f = length(1, 2, false, true);
            assert_eq!(ends(f, 0, &whole, piece), (vec![4, 7], false));
        }
        // A large field position and a length that is never reached.
        let f = length(1 << 40, 8, true, false);
        assert_eq!(ends(f, 0, &[0xff; 100], 100), (vec![], false));
    }

    #[test]
    fn hostile_lengths_break_the_framing_and_nothing_else() {
        for piece in 1..=6 {
            let f = length(0, 2, true, true);
            let bytes = [0, 3, 9, 0, 1, 0, 3, 9];
            assert_eq!(ends(f, 0, &bytes, piece), (vec![3], true));
            let f = length(0, 8, true, false);
            assert_eq!(ends(f, 0, &[0xff; 40], piece), (vec![], true));
            let f = length(0, 8, false, true);
            assert_eq!(ends(f, 5, &[0xff; 40], piece), (vec![], true));
        }
        assert!(Scanner::new(length(0, 3, true, true), 0).broken());
        let (found, broken) = ends(length(usize::MAX, 8, true, true), 9, &[1; 30], 7);
        assert!(found.is_empty() && broken);
    }

    #[test]
    fn overlap_is_skipped_and_a_gap_breaks() {
        let mut s = Scanner::new(Framing::Lines, 0);
        s.feed(0, b"a\nb");
        s.feed(1, b"\nb\n");
        s.feed(0, b"a\n");
        assert_eq!((s.last_end(9), s.position()), (Some(4), 4));
        s.feed(6, b"\n");
        assert!(s.broken());
        assert_eq!(s.last_end(9), Some(4));
        s.feed(u64::MAX, b"12");
        let mut s = Scanner::new(Framing::None, 0);
        s.feed(6, b"\n");
        assert!(!s.broken());
        assert_eq!(s.position(), 7);
    }

    #[test]
    fn memory_stays_bounded() {
        let mut s = Scanner::new(Framing::Lines, 0);
        let flood = [b'\n'; 4096];
        for i in 0..1000u64 {
            s.feed(i * 4096, &flood);
            assert_eq!(s.last_end(i * 4096 + 4095), Some(i * 4096 + 4095));
            s.forget((i + 1) * 4096);
            assert!(s.windows() <= 65);
        }
    }
}
