//! Where a process stands in its trace: as a leader, which appends to it, or as a follower, which executes it.

use std::fmt;
use std::ops::Range;

use super::codec::{decode, encode_parts, Deltas, Malformed};
use super::record::{Bytes, Call, Errno, Place, Quoted, Record};

/// A place in a trace. A leader appends at its end ([`Cursor::append`]); a follower takes one record after another
/// ([`Cursor::step`], [`Cursor::executed`]). A follower that is promoted appends from where it is.
///
/// The trace itself is the caller's: each call is given the bytes of it from [`Cursor::position`] on. What is before that is
/// not looked at again.
#[derive(Clone, Default, Debug)]
pub struct Cursor {
    deltas: Deltas,
    position: u64,
    records: u64,
    /// The record at `position`, once it was decoded.
    next: Option<Next>,
}

/// A record without its data.
#[derive(Clone, Debug)]
struct Next {
    thread: u16,
    call: Call,
    fd: i32,
    result: i64,
    /// Where its data are behind its first byte: to its end.
    data: Range<usize>,
}

/// What a thread of a follower finds when it makes a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step<'a> {
    /// This is the call's record. When all is done that it says, [`Cursor::executed`] is called.
    Result(Record<'a>),
    /// Something comes before the call that no call asks for: a signal is handled ([`Cursor::executed`], then the program's
    /// handler), or a connection has been made ([`Call::Connected`]). Then the call asks again.
    Before(Record<'a>),
    /// It is this other thread's turn.
    Others(u16),
    /// There is no more, as yet.
    End,
    /// The program does something else than the trace says.
    Diverged(Divergence<'a>),
    /// The trace cannot be read.
    Malformed(Malformed),
}

impl Cursor {
    /// The position in the trace before which everything is appended or executed.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// How many records were appended or executed, markers among them.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Writes a record to the beginning of `room`, which is behind the trace. Its data are these parts, one after another,
    /// and not `record.data`. Returns the record's length; `None`: there is no room, and nothing has changed. A follower may
    /// append where it has found [`Step::End`].
    pub fn append(&mut self, record: &Record<'_>, parts: &[&[u8]], room: &mut [u8]) -> Option<usize> {
        let len = encode_parts(record, parts, &mut self.deltas, room)?;
        self.records += 1;
        self.position += len as u64;
        self.next = None;
        Some(len)
    }

    /// What comes next for a thread that makes this call.
    pub fn step<'a>(&mut self, rest: &'a [u8], thread: u16, call: Call, fd: i32) -> Step<'a> {
        let record = match self.peek(rest) {
            Ok(Some(record)) => record,
            Ok(None) => return Step::End,
            Err(malformed) => return Step::Malformed(malformed),
        };
        if record.thread != thread {
            Step::Others(record.thread)
        } else if matches!(record.call, Call::Signal | Call::Connected) {
            Step::Before(record)
        } else if (record.call, record.fd) == (call, fd) {
            Step::Result(record)
        } else {
            Step::Diverged(Divergence { number: self.records, trace: record, program: Program::Calls { call, fd } })
        }
    }

    /// The next record, whoever's it is. Markers are nobody's: they are passed over.
    pub fn peek<'a>(&mut self, mut rest: &'a [u8]) -> Result<Option<Record<'a>>, Malformed> {
        loop {
            if self.next.is_none() {
                let Some((record, len)) = decode(rest, &mut self.deltas)? else { return Ok(None) };
                let Record { thread, call, fd, result, data } = record;
                self.next = Some(Next { thread, call, fd, result, data: len - data.len()..len });
            }
            match &self.next {
                Some(next) if next.call != Call::Marker => {
                    let Next { thread, call, fd, result, .. } = *next;
                    // The bytes that were decoded are there, or the caller has given another trace.
                    let data = rest.get(next.data.clone()).unwrap_or_default();
                    return Ok(Some(Record { thread, call, fd, result, data }));
                }
                next => {
                    rest = rest.get(next.as_ref().map_or(0, |next| next.data.end)..).unwrap_or_default();
                    self.executed();
                }
            }
        }
    }

    /// The record that was found is executed: the next one's turn.
    pub fn executed(&mut self) {
        if let Some(next) = self.next.take() {
            self.records += 1;
            self.position += next.data.end as u64;
        }
    }

    /// Refuses a record that the program does not match in another way than by its call.
    #[must_use]
    pub fn diverged<'a>(&self, trace: Record<'a>, program: Program<'a>) -> Divergence<'a> {
        Divergence { number: self.records, trace, program }
    }

    /// Whether the program has room for what it gets.
    ///
    /// # Errors
    /// It has less.
    pub fn check_room<'a>(&self, record: Record<'a>, room: usize) -> Result<(), Divergence<'a>> {
        if record.data.len() > room {
            return Err(self.diverged(record, Program::HasRoom(room)));
        }
        Ok(())
    }

    /// Whether the program writes what it has written in the trace. `pieces` is all that it offers now; of that the trace says
    /// how much was taken.
    ///
    /// # Errors
    /// It offers less, or other bytes.
    pub fn check_output<'a>(&self, record: Record<'a>, pieces: impl Iterator<Item = &'a [u8]>) -> Result<(), Divergence<'a>> {
        let taken = usize::try_from(record.result).unwrap_or(0);
        let (mut hash, mut left, mut offered, mut start) = (Hash::new(), taken, 0usize, [].as_slice());
        for piece in pieces {
            start = if start.is_empty() { piece } else { start };
            offered = offered.saturating_add(piece.len());
            let now = &piece[..piece.len().min(left)];
            hash.add(now);
            left -= now.len();
        }
        if left > 0 {
            return Err(self.diverged(record, Program::Offers(offered)));
        }
        if taken > 0 && record.data != hash.finish().to_ne_bytes() {
            return Err(self.diverged(record, Program::Writes(start)));
        }
        Ok(())
    }
}

/// The follower did something else than the leader: both sides in words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Divergence<'a> {
    /// The record's number; the first one is 0.
    pub number: u64,
    /// What the leader did.
    pub trace: Record<'a>,
    /// What the follower did.
    pub program: Program<'a>,
}

/// What the follower did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program<'a> {
    /// Another call.
    Calls {
        /// Its kind.
        call: Call,
        /// Its descriptor, or what [`Call`] says.
        fd: i32,
    },
    /// It has room for fewer bytes.
    HasRoom(usize),
    /// It offers fewer bytes.
    Offers(usize),
    /// It writes other bytes: these.
    Writes(&'a [u8]),
    /// The call that both members make had another result here.
    Gets(i64),
    /// Something else, in words that go on from "the program".
    Does(&'a str),
}

impl fmt::Display for Divergence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {}: the trace says: {}; the program ", self.number, self.trace)?;
        match self.program {
            Program::Calls { call, fd } => write!(f, "does: {}", Place { call, fd }),
            Program::HasRoom(room) => write!(f, "has room for {}", Bytes(room as i64)),
            Program::Offers(bytes) => write!(f, "offers {}", Bytes(bytes as i64)),
            Program::Writes(bytes) => write!(f, "writes other bytes: {}", Quoted(bytes)),
            Program::Gets(result) if result < 0 => write!(f, "gets: {}", Errno(result.saturating_neg())),
            Program::Gets(result) => write!(f, "gets: {result}"),
            Program::Does(what) => f.write_str(what),
        }
    }
}

/// A hash of output, which goes on from piece to piece as if they were one. It finds accidents, not attacks.
#[derive(Clone, Debug)]
pub struct Hash {
    value: u64,
    word: [u8; 8],
    filled: usize,
}

impl Default for Hash {
    fn default() -> Self {
        Self::new()
    }
}

impl Hash {
    /// Of nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { value: 1, word: [0; 8], filled: 0 }
    }

    fn mix(&mut self, word: u64) {
        self.value = (self.value ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.value ^= self.value >> 29;
    }

    /// Goes on with these bytes.
    pub fn add(&mut self, mut bytes: &[u8]) {
        if self.filled > 0 {
            let (now, rest) = bytes.split_at(bytes.len().min(8 - self.filled));
            self.word[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = rest;
            if self.filled < 8 {
                return;
            }
            self.filled = 0;
            self.mix(u64::from_ne_bytes(self.word));
        }
        let words = bytes.chunks_exact(8);
        let rest = words.remainder();
        words.for_each(|word| self.mix(word.try_into().map(u64::from_ne_bytes).unwrap_or_default()));
        self.word[..rest.len()].copy_from_slice(rest);
        self.filled = rest.len();
    }

    /// The hash.
    #[must_use]
    pub fn finish(mut self) -> u64 {
        let mut last = [0; 8];
        last[..self.filled].copy_from_slice(&self.word[..self.filled]);
        last[7] = self.filled as u8;
        self.mix(u64::from_ne_bytes(last));
        self.value
    }
}
