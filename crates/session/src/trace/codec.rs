//! Records as bytes.
//!
//! The first byte of a record holds its slot (bits 0 to 5) and its form (bits 6 and 7). A slot is a kind of call, or one of
//! the clocks: each slot remembers its last descriptor and result, so clocks that alternate cost no more than one alone.
//!
//! | form | meaning | follows |
//! |---|---|---|
//! | 0 | as the slot's last record, in the last record's thread, no data | nothing |
//! | 1 | the same, with another result | result |
//! | 2 | anything | flags, and what they say: thread, descriptor, result, length and data |
//!
//! Numbers are little-endian base 128, signed ones with the sign in bit 0. Results of clocks are differences to the last one.

use super::record::{clock, Call, Record};

/// Most bytes of data in one record.
pub const MAX_DATA: usize = 1 << 30;

/// Bytes of a record without its data: form and slot, flags, thread, descriptor, result, length.
const HEAD_MAX: usize = 1 + 1 + 3 + 5 + 10 + 5;

const SAME: u8 = 0 << 6;
const RESULT: u8 = 1 << 6;
const LONG: u8 = 2 << 6;
const FORM: u8 = 3 << 6;

const HAS_THREAD: u8 = 1;
const HAS_FD: u8 = 2;
const HAS_RESULT: u8 = 4;
/// The result is the length of the data.
const RESULT_IS_LENGTH: u8 = 8;
const HAS_DATA: u8 = 16;

const SLOTS: usize = 64;
/// The first slot of a clock.
const CLOCKS: usize = SLOTS - clock::COUNT as usize;

/// What encoder and decoder remember of the records before, alike on both sides.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deltas {
    thread: u16,
    slots: [Last; SLOTS],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Last {
    fd: i32,
    result: i64,
}

impl Default for Deltas {
    fn default() -> Self {
        let mut slots = [Last { fd: 0, result: 0 }; SLOTS];
        for (id, slot) in (0..).zip(&mut slots[CLOCKS..]) {
            slot.fd = id;
        }
        Self { thread: 0, slots }
    }
}

/// Bytes that no encoder wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed(pub &'static str);

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "this is no trace: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// Upper bound of the length of a record with so many bytes of data.
#[must_use]
pub const fn longest(data: usize) -> usize {
    HEAD_MAX + data
}

/// Writes a record to the beginning of `out`, and says how long it is. `None`: it does not fit (or its data is longer than
/// [`MAX_DATA`]), and `deltas` and `out` are unchanged.
pub fn encode(record: &Record<'_>, deltas: &mut Deltas, out: &mut [u8]) -> Option<usize> {
    encode_parts(record, &[record.data], deltas, out)
}

/// As [`encode`], with data that are these parts, one after another, instead of the record's.
pub fn encode_parts(record: &Record<'_>, parts: &[&[u8]], deltas: &mut Deltas, out: &mut [u8]) -> Option<usize> {
    let data = parts.iter().fold(0, |sum: usize, part| sum.saturating_add(part.len()));
    let slot = slot_of(record);
    let last = deltas.slots[slot];
    let same_place = record.thread == deltas.thread && record.fd == last.fd && data == 0;
    let mut head = Head::default();
    if same_place && record.result == last.result {
        head.byte(SAME | slot as u8);
    } else if same_place {
        head.byte(RESULT | slot as u8);
        head.signed(difference(slot, record.result, last.result));
    } else {
        encode_long(record, data, deltas.thread, slot, last, &mut head);
    }
    if data > MAX_DATA || head.len + data > out.len() {
        return None;
    }
    let (to, mut rest) = out.split_at_mut(head.len);
    to.copy_from_slice(&head.bytes[..head.len]);
    for part in parts {
        let (to, behind) = rest.split_at_mut(part.len());
        to.copy_from_slice(part);
        rest = behind;
    }
    deltas.thread = record.thread;
    deltas.slots[slot] = Last { fd: record.fd, result: record.result };
    Some(head.len + data)
}

fn encode_long(record: &Record<'_>, data: usize, thread: u16, slot: usize, last: Last, head: &mut Head) {
    let is_length = data > 0 && record.result == data as i64;
    let mut flags = 0;
    for (flag, set) in [
        (HAS_THREAD, record.thread != thread),
        (HAS_FD, record.fd != last.fd),
        (HAS_RESULT, !is_length && record.result != last.result),
        (RESULT_IS_LENGTH, is_length),
        (HAS_DATA, data > 0),
    ] {
        flags |= if set { flag } else { 0 };
    }
    head.byte(LONG | slot as u8);
    head.byte(flags);
    if flags & HAS_THREAD != 0 {
        head.unsigned(record.thread.into());
    }
    if flags & HAS_FD != 0 {
        head.signed(record.fd.into());
    }
    if flags & HAS_RESULT != 0 {
        head.signed(difference(slot, record.result, last.result));
    }
    if flags & HAS_DATA != 0 {
        head.unsigned(data as u64);
    }
}

/// Reads the record at the beginning of `bytes`, and says how long it is. `None`: its end is not there yet, and `deltas` is
/// unchanged, as it is after an error.
pub fn decode<'a>(bytes: &'a [u8], deltas: &mut Deltas) -> Result<Option<(Record<'a>, usize)>, Malformed> {
    match read(bytes, deltas) {
        Ok((record, len)) => {
            deltas.thread = record.thread;
            deltas.slots[slot_of(&record)] = Last { fd: record.fd, result: record.result };
            Ok(Some((record, len)))
        }
        Err(Cut::Short) => Ok(None),
        Err(Cut::Malformed(why)) => Err(Malformed(why)),
    }
}

/// Why there is no record.
enum Cut {
    Short,
    Malformed(&'static str),
}

fn read<'a>(bytes: &'a [u8], deltas: &Deltas) -> Result<(Record<'a>, usize), Cut> {
    let mut input = Input { bytes, at: 0 };
    let first = input.byte()?;
    let slot = usize::from(first & !FORM);
    let call = call_of(slot).ok_or(Cut::Malformed("a call of unknown kind"))?;
    let last = deltas.slots[slot];
    let mut record = Record { thread: deltas.thread, call, fd: last.fd, result: last.result, data: &[] };
    match first & FORM {
        SAME => {}
        RESULT => record.result = sum(slot, input.signed()?, last.result),
        LONG => {
            let flags = input.byte()?;
            if flags & !(HAS_THREAD | HAS_FD | HAS_RESULT | RESULT_IS_LENGTH | HAS_DATA) != 0 {
                return Err(Cut::Malformed("unknown flags"));
            }
            if flags & RESULT_IS_LENGTH != 0 && flags & (HAS_DATA | HAS_RESULT) != HAS_DATA {
                return Err(Cut::Malformed("flags that contradict each other"));
            }
            if flags & HAS_THREAD != 0 {
                let thread = input.unsigned()?;
                record.thread = thread.try_into().map_err(|_| Cut::Malformed("a thread's number is too high"))?;
            }
            if flags & HAS_FD != 0 {
                record.fd = input.signed()?.try_into().map_err(|_| Cut::Malformed("a descriptor's number is too high"))?;
            }
            if flags & HAS_RESULT != 0 {
                record.result = sum(slot, input.signed()?, last.result);
            }
            if flags & HAS_DATA != 0 {
                let len = usize::try_from(input.unsigned()?).ok().filter(|&len| len <= MAX_DATA);
                record.data = input.take(len.ok_or(Cut::Malformed("data is too long"))?)?;
            }
            if flags & RESULT_IS_LENGTH != 0 {
                record.result = record.data.len() as i64;
            }
        }
        _ => return Err(Cut::Malformed("a record of unknown form")),
    }
    // The slot of a clock holds that clock and no other.
    if slot_of(&record) != slot {
        return Err(Cut::Malformed("a clock in the place of another"));
    }
    Ok((record, input.at))
}

fn slot_of(record: &Record<'_>) -> usize {
    match record.call {
        Call::Clock if (0..clock::COUNT).contains(&record.fd) => CLOCKS + record.fd as usize,
        call => call as usize,
    }
}

fn call_of(slot: usize) -> Option<Call> {
    if slot >= CLOCKS {
        return Some(Call::Clock);
    }
    Call::ALL.get(slot).copied()
}

/// Whether results of a slot are written as differences.
fn goes_on(slot: usize) -> bool {
    slot >= CLOCKS || slot == Call::Clock as usize || slot == Call::Tsc as usize
}

fn difference(slot: usize, result: i64, last: i64) -> i64 {
    if goes_on(slot) {
        result.wrapping_sub(last)
    } else {
        result
    }
}

fn sum(slot: usize, number: i64, last: i64) -> i64 {
    if goes_on(slot) {
        number.wrapping_add(last)
    } else {
        number
    }
}

/// The bytes before the data.
#[derive(Default)]
struct Head {
    bytes: [u8; HEAD_MAX],
    len: usize,
}

impl Head {
    fn byte(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn unsigned(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.byte(number as u8 | 0x80);
            number >>= 7;
        }
        self.byte(number as u8);
    }

    fn signed(&mut self, number: i64) {
        self.unsigned((number << 1 ^ number >> 63) as u64);
    }
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn byte(&mut self) -> Result<u8, Cut> {
        let byte = *self.bytes.get(self.at).ok_or(Cut::Short)?;
        self.at += 1;
        Ok(byte)
    }

    fn unsigned(&mut self) -> Result<u64, Cut> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            if shift == 63 && byte > 1 {
                break;
            }
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Cut::Malformed("a number is too long"))
    }

    fn signed(&mut self) -> Result<i64, Cut> {
        let number = self.unsigned()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Cut> {
        let data = self.bytes.get(self.at..).and_then(|rest| rest.get(..len)).ok_or(Cut::Short)?;
        self.at += len;
        Ok(data)
    }
}
