//! The shared memory of a channel: a header of atomics, then a byte ring from the application's hooks
//! (producer) to the manager (consumer).
//!
//! An entry is a multiple of eight bytes long; a header of 32 bytes, then its payload. The ring is mapped twice
//! in a row, so that every entry is contiguous.
//!
//! The consumer trusts nothing that it finds here. Numbers are loaded once and then checked; bytes are copied
//! out and never looked at in place.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{fence, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

use tcpr_session::options::LONGEST;
use tcpr_session::tuple::FourTuple;

use super::{sys, Event, Origin};
use crate::place;

/// Size of the byte ring.
pub const RING_BYTES: usize = 4 << 20;
/// The largest payload of one entry: what one round of a write offers to the kernel.
pub const MAX_PAYLOAD: usize = 256 << 10;
/// How many listening ports a header has room for.
pub const SLOTS: usize = 16;

/// The ring starts here, so that it can be mapped again behind itself whatever the page size (<= 64 KiB).
const RING_OFFSET: usize = 64 << 10;
/// Size of the shared memory.
pub(super) const MEMORY_BYTES: usize = RING_OFFSET + RING_BYTES;

const MAGIC: u32 = 0x5250_4354;
const LAYOUT_VERSION: u32 = 2;
const ENTRY_HEADER: usize = 32;

const KIND_ATTACH: u8 = 1;
const KIND_WRITE: u8 = 2;
const KIND_READ: u8 = 3;
const KIND_WAIT: u8 = 4;
const KIND_CONSUME: u8 = 5;
const KIND_COMMIT: u8 = 6;
const KIND_SHUTDOWN: u8 = 7;
const KIND_CLOSE: u8 = 8;
const KIND_EXIT: u8 = 9;
const KIND_ABSORBED: u8 = 10;
const KIND_BLOCKED: u8 = 11;
const KIND_READS_ON: u8 = 12;
const KIND_READS_OTHER: u8 = 13;
const KIND_OPTION: u8 = 20;

/// State of a write: it is closed, and the low bits tell how much the kernel took.
const CLOSED: u32 = 0x8000_0000;
/// Beside [`CLOSED`]: the send failed for good; nothing was taken and nothing more will be.
const FAILED: u32 = 0x4000_0000;

/// The part of the shared memory that is not the ring. Fields that different sides write do not share a
/// cache line.
#[repr(C)]
pub(super) struct Header {
    magic: AtomicU32,
    version: AtomicU32,
    _pad0: [u32; 14],
    /// Everything before it was consumed. Written by the consumer.
    head: AtomicU64,
    /// The consumer sleeps and wants a kick.
    sleeping: AtomicU32,
    _pad1: [u32; 13],
    /// Everything before it was produced. Written by the producer.
    tail: AtomicU64,
    _pad2: [u32; 14],
    pub(super) role: AtomicU32,
    pub(super) role_member: AtomicU32,
    pub(super) epoch: AtomicU64,
    pub(super) recovered: [RecoveredSlot; SLOTS],
    /// How far the log is ahead of the replica (futex word): 0, or [`EASE`], or [`STOP`].
    pub(super) pressure: AtomicU32,
}

/// Who has not begun to write waits.
pub const EASE: u32 = 1;
/// Whoever writes waits.
pub const STOP: u32 = 2;

/// Recovered sessions of one listening port that nobody has accepted yet.
#[repr(C)]
pub(super) struct RecoveredSlot {
    pub(super) port: AtomicU32,
    pub(super) pending: AtomicU32,
    /// Each session that is accepted takes a doorbell off the listener's queue, if one waits there; else the last one does.
    pub(super) each_rings: AtomicU32,
}

/// One mapping of the shared memory.
pub(super) struct Mapping {
    base: NonNull<u8>,
}

// SAFETY: the memory is shared with another process anyway: everything in it is accessed through atomics, or
// as bytes of ring entries whose ownership passes between producer and consumer through atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    const LENGTH: usize = MEMORY_BYTES + RING_BYTES;

    /// Maps memory that the manager made, after checking that it is what it should be.
    pub(super) fn new(memory: BorrowedFd<'_>) -> io::Result<Self> {
        if sys::file_size(memory)? != MEMORY_BYTES as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "shared memory of a foreign size"));
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh reservation at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                place::wish(Self::LENGTH),
                Self::LENGTH,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // From here on dropped, and so unmapped, on every path.
        let mapping = Mapping { base: NonNull::new(base.cast()).expect("mmap does not return null") };
        let parts = [(0, MEMORY_BYTES, 0), (MEMORY_BYTES, RING_BYTES, RING_OFFSET)];
        for (at, length, offset) in parts {
            // SAFETY: replaces a part of the reservation above, which nobody else uses.
            let mapped = unsafe {
                libc::mmap(
                    base.byte_add(at),
                    length,
                    protection,
                    libc::MAP_SHARED | libc::MAP_FIXED,
                    memory.as_raw_fd(),
                    offset as libc::off_t,
                )
            };
            if mapped == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(mapping)
    }

    pub(super) fn header(&self) -> &Header {
        // SAFETY: the mapping is page-aligned, larger than a Header, and lives as long as self; a Header is
        // made of atomics (and padding), for which every bit pattern is valid.
        unsafe { self.base.cast::<Header>().as_ref() }
    }

    /// Address of the byte at a position of the ring; a whole ring of bytes follows it contiguously.
    fn at(&self, position: u64) -> NonNull<u8> {
        let offset = RING_OFFSET + (position as usize & (RING_BYTES - 1));
        // SAFETY: offset is below MEMORY_BYTES, within the mapping.
        unsafe { self.base.add(offset) }
    }

    fn word(&self, position: u64, index: u64) -> &AtomicU64 {
        // SAFETY: positions are multiples of eight (checked by whoever calls), so the address is aligned; it
        // lies within the twice-mapped ring, and an AtomicU64 may hold anything.
        unsafe { self.at(position + index * 8).cast::<AtomicU64>().as_ref() }
    }

    fn state(&self, position: u64) -> &AtomicU32 {
        // SAFETY: as for `word`; 24 is a multiple of four.
        unsafe { self.at(position + 24).cast::<AtomicU32>().as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the whole range was reserved by `new`, and no reference into it outlives self.
        unsafe { libc::munmap(self.base.as_ptr().cast(), Self::LENGTH) };
    }
}

/// Writes the parts of a header that never change. The manager calls it before it hands the memory out.
pub(super) fn initialise(mapping: &Mapping) {
    mapping.header().magic.store(MAGIC, Ordering::Relaxed);
    mapping.header().version.store(LAYOUT_VERSION, Ordering::Release);
}

/// Header of an entry, before it is laid out.
#[derive(Clone, Copy, Default)]
struct Raw {
    len: u32,
    kind: u8,
    flags: u8,
    thread: u32,
    handle: u32,
    a: u64,
    state: u32,
    payload_len: u32,
}

impl Raw {
    fn store(&self, mapping: &Mapping, position: u64) {
        let kind = u64::from(self.kind) | u64::from(self.flags) << 8;
        mapping.word(position, 0).store(u64::from(self.len) | kind << 32, Ordering::Relaxed);
        mapping.word(position, 1).store(u64::from(self.thread) | u64::from(self.handle) << 32, Ordering::Relaxed);
        mapping.word(position, 2).store(self.a, Ordering::Relaxed);
        mapping.word(position, 3).store(u64::from(self.state) | u64::from(self.payload_len) << 32, Ordering::Relaxed);
    }

    fn load(mapping: &Mapping, position: u64) -> Self {
        let word = |i| mapping.word(position, i).load(Ordering::Relaxed);
        let (first, second, third) = (word(0), word(1), word(3));
        // The state may change at any time, and what it guards is read after it.
        let state = mapping.state(position).load(Ordering::Acquire);
        Raw {
            len: first as u32,
            kind: (first >> 32) as u8,
            flags: (first >> 40) as u8,
            thread: second as u32,
            handle: (second >> 32) as u32,
            a: word(2),
            state,
            payload_len: (third >> 32) as u32,
        }
    }
}

fn entry_len(payload: usize) -> usize {
    (ENTRY_HEADER + payload + 7) & !7
}

/// What became of a send inside [`Producer::write`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The kernel took so many bytes (perhaps none, because its buffer is full).
    Taken(usize),
    /// The kernel refuses for good (errno).
    Failed(i32),
}

/// The ring has no room now.
#[derive(Debug)]
pub struct Full;

/// The application's end of the ring. One per process, behind its one lock.
pub struct Producer {
    mapping: Arc<Mapping>,
    tail: u64,
    /// What the consumer had consumed when we last looked.
    head_seen: u64,
}

impl Producer {
    /// Checks that the memory is a ring of our layout and takes its producing end.
    pub(super) fn new(mapping: Arc<Mapping>) -> io::Result<Self> {
        let header = mapping.header();
        if header.version.load(Ordering::Acquire) != LAYOUT_VERSION || header.magic.load(Ordering::Relaxed) != MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "shared memory of a foreign layout"));
        }
        let tail = header.tail.load(Ordering::Relaxed);
        let head_seen = header.head.load(Ordering::Acquire);
        Ok(Self { mapping, tail, head_seen })
    }

    /// Appends an event other than [`Event::Write`].
    pub fn push(&mut self, event: &Event<'_>) -> Result<(), Full> {
        let mut payload = [0u8; FourTuple::BYTES];
        let mut raw = Raw::default();
        match *event {
            Event::Attach { thread, handle, origin, tuple } => {
                payload = tuple.to_bytes();
                raw = Raw { kind: KIND_ATTACH, flags: code_of(origin), thread, handle, ..raw };
                raw.payload_len = FourTuple::BYTES as u32;
            }
            Event::Write { .. } => unreachable!("writes go through Producer::write"),
            Event::Read { thread, handle, n } => raw = Raw { kind: KIND_READ, thread, handle, a: n, ..raw },
            Event::Wait { thread, zero_timeout } => {
                raw = Raw { kind: KIND_WAIT, thread, flags: zero_timeout.into(), ..raw };
            }
            Event::ReadAfterWrite { thread } => raw = Raw { kind: KIND_READS_ON, thread, ..raw },
            Event::ReadElsewhere { thread } => raw = Raw { kind: KIND_READS_OTHER, thread, ..raw },
            Event::Blocked { thread, over } => raw = Raw { kind: KIND_BLOCKED, thread, flags: over.into(), ..raw },
            Event::Consume { thread, handle, n } => {
                raw = Raw { kind: KIND_CONSUME, thread, handle, a: n, ..raw };
            }
            Event::Commit { thread } => raw = Raw { kind: KIND_COMMIT, thread, ..raw },
            Event::Shutdown { thread, handle } => {
                raw = Raw { kind: KIND_SHUTDOWN, thread, handle, ..raw };
            }
            Event::Close { thread, handle, shared } => {
                raw = Raw { kind: KIND_CLOSE, thread, handle, flags: shared.into(), ..raw };
            }
            Event::Exit => raw = Raw { kind: KIND_EXIT, ..raw },
            Event::Absorbed { thread, handle, n } => {
                raw = Raw { kind: KIND_ABSORBED, thread, handle, a: n, ..raw };
            }
            Event::Option { handle, level, name, value } => {
                let length = value.len().min(payload.len());
                payload[..length].copy_from_slice(&value[..length]);
                raw = Raw { kind: KIND_OPTION, flags: level, handle, a: name.into(), payload_len: length as u32, ..raw };
            }
        }
        let payload = &payload[..raw.payload_len as usize];
        self.reserve(payload.len())?;
        self.payload(payload.len()).copy_from_slice(payload);
        self.publish(raw);
        Ok(())
    }

    /// Announces a write, performs it and notes how it went.
    ///
    /// `fill` puts the bytes into the ring, `send` gives those to the kernel, without blocking, and must not
    /// unwind: until it returns the consumer stands still at this entry.
    pub fn write(
        &mut self,
        thread: u32,
        handle: u32,
        asked: u64,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
        send: impl FnOnce(&[u8]) -> Sent,
    ) -> Result<Sent, Full> {
        let len = len.min(MAX_PAYLOAD);
        self.reserve(len)?;
        let payload = self.payload(len);
        fill(payload);
        let (start, payload) = (payload.as_ptr(), payload.len());
        let position = self.tail;
        self.publish(Raw { kind: KIND_WRITE, thread, handle, a: asked, payload_len: payload as u32, ..Raw::default() });
        // SAFETY: the entry stays ours to read until `head` passes it, which cannot happen while it is open;
        // the other side only reads these bytes too.
        let sent = send(unsafe { std::slice::from_raw_parts(start, payload) });
        let state = match sent {
            Sent::Taken(n) => CLOSED | n.min(payload) as u32,
            Sent::Failed(_) => CLOSED | FAILED,
        };
        self.mapping.state(position).store(state, Ordering::Release);
        Ok(sent)
    }

    /// Whether the consumer asked for a kick; clears the wish.
    pub fn wants_kick(&mut self) -> bool {
        // Pairs with the fence in `Consumer::prepare_sleep`: either we see `sleeping`, or it sees our entry.
        fence(Ordering::SeqCst);
        let sleeping = &self.mapping.header().sleeping;
        sleeping.load(Ordering::Relaxed) != 0 && sleeping.swap(0, Ordering::Relaxed) != 0
    }

    /// Whether so much is waiting that the consumer should be woken before it asks.
    pub fn is_half_full(&self) -> bool {
        self.tail.wrapping_sub(self.head_seen) > RING_BYTES as u64 / 2
            && self.tail.wrapping_sub(self.mapping.header().head.load(Ordering::Relaxed)) > RING_BYTES as u64 / 2
    }

    fn reserve(&mut self, payload: usize) -> Result<(), Full> {
        let end = self.tail + entry_len(payload) as u64;
        if end - self.head_seen > RING_BYTES as u64 {
            // What lies behind `head` was read by the consumer before it stored it.
            let head = self.mapping.header().head.load(Ordering::Acquire);
            if head > self.tail || end.wrapping_sub(head) > RING_BYTES as u64 {
                return Err(Full);
            }
            self.head_seen = head;
        }
        Ok(())
    }

    /// The payload of the entry to be published next. Its room must have been reserved.
    fn payload(&mut self, len: usize) -> &mut [u8] {
        let start = self.mapping.at(self.tail + ENTRY_HEADER as u64);
        // SAFETY: `reserve` made sure that these bytes lie between tail and head + RING_BYTES: until publish
        // they belong to the producer, of which there is one, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) }
    }

    fn publish(&mut self, mut raw: Raw) {
        let len = entry_len(raw.payload_len as usize);
        raw.len = len as u32;
        raw.store(&self.mapping, self.tail);
        self.tail += len as u64;
        self.mapping.header().tail.store(self.tail, Ordering::Release);
    }
}

/// The application put nonsense into the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("corrupt ring: {0}")]
pub struct Corrupt(pub &'static str);

impl From<Corrupt> for io::Error {
    fn from(corrupt: Corrupt) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, corrupt)
    }
}

/// The manager's end of the ring.
pub(super) struct Consumer {
    mapping: Arc<Mapping>,
    /// Kept here: the one in the header is only told, never believed.
    head: u64,
    open: Option<u32>,
    copy: Vec<u8>,
}

impl Consumer {
    pub(super) fn new(mapping: Arc<Mapping>) -> Self {
        Self { mapping, head: 0, open: None, copy: Vec::new() }
    }

    /// The connection of the write at which the last `drain` stopped.
    pub(super) fn open_intent(&self) -> Option<u32> {
        self.open
    }

    /// Consumes what the ring holds at this moment, up to the first open intent.
    pub(super) fn drain(&mut self, mut f: impl FnMut(Event<'_>)) -> Result<usize, Corrupt> {
        self.open = None;
        let tail = self.tail()?;
        let mut count = 0;
        while self.head != tail {
            let raw = self.entry(tail)?;
            if raw.kind == KIND_WRITE && raw.state & CLOSED == 0 {
                self.open = Some(raw.handle);
                break;
            }
            let event = event(&self.mapping, self.head, &raw, &mut self.copy)?;
            // Handed back before it is told, so that the producer can go on.
            self.head += u64::from(raw.len);
            self.mapping.header().head.store(self.head, Ordering::Release);
            if let Some(event) = event {
                f(event);
                count += 1;
            }
        }
        Ok(count)
    }

    /// Whether there is something to drain.
    pub(super) fn told(&self) -> Result<bool, Corrupt> {
        let tail = self.tail()?;
        Ok(self.head != tail && {
            let raw = self.entry(tail)?;
            raw.kind != KIND_WRITE || raw.state & CLOSED != 0
        })
    }

    /// Asks for a kick. False if there is something to drain already.
    pub(super) fn prepare_sleep(&mut self) -> Result<bool, Corrupt> {
        self.mapping.header().sleeping.store(1, Ordering::Relaxed);
        // Pairs with the fence in `Producer::wants_kick`.
        fence(Ordering::SeqCst);
        let told = self.told()?;
        if told {
            self.wake();
        }
        Ok(!told)
    }

    pub(super) fn wake(&mut self) {
        self.mapping.header().sleeping.store(0, Ordering::Relaxed);
    }

    fn tail(&self) -> Result<u64, Corrupt> {
        let tail = self.mapping.header().tail.load(Ordering::Acquire);
        let filled = tail.wrapping_sub(self.head);
        if filled > RING_BYTES as u64 || !filled.is_multiple_of(8) {
            return Err(Corrupt("its end is out of bounds"));
        }
        Ok(tail)
    }

    /// Loads the entry at `head` and checks that it lies within what was produced.
    fn entry(&self, tail: u64) -> Result<Raw, Corrupt> {
        let filled = tail.wrapping_sub(self.head);
        if filled < ENTRY_HEADER as u64 {
            return Err(Corrupt("half an entry"));
        }
        let raw = Raw::load(&self.mapping, self.head);
        let payload = raw.payload_len as usize;
        if payload > MAX_PAYLOAD || raw.len as usize != entry_len(payload) || u64::from(raw.len) > filled {
            return Err(Corrupt("an entry of impossible length"));
        }
        Ok(raw)
    }
}

/// Consumes a ring that holds these bytes, of which so many are said to be produced. For the fuzz target `ring`: the process at
/// the other end may write anything.
#[cfg(fuzzing)]
pub fn consume_foreign(tail: u64, bytes: &[u8]) {
    use std::os::fd::AsFd;

    let memory = sys::memory(MEMORY_BYTES).expect("shared memory");
    let mapping = Arc::new(Mapping::new(memory.as_fd()).expect("shared memory maps"));
    let len = bytes.len().min(RING_BYTES);
    // SAFETY: a whole ring of bytes follows the address, and nobody else has the memory.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), mapping.at(0).as_ptr(), len) };
    mapping.header().tail.store(tail, Ordering::Release);
    let mut consumer = Consumer::new(mapping);
    let _ = consumer.told();
    let mut consumed = 0;
    let drained = consumer.drain(|event| match event {
        Event::Write { taken, asked, bytes, .. } => {
            assert!(bytes.len() == taken as usize && bytes.len() <= MAX_PAYLOAD && asked >= u64::from(taken));
            consumed += 1;
        }
        Event::Option { value, .. } => {
            assert!(value.len() <= LONGEST);
            consumed += 1;
        }
        _ => consumed += 1,
    });
    assert!(drained.is_err() || drained == Ok(consumed));
    assert!(consumer.head <= tail && consumer.head % 8 == 0 && (consumer.open_intent().is_none() || consumer.head < tail));
}

/// Copies `len` payload bytes of a checked entry out of the ring.
fn copy_payload(mapping: &Mapping, head: u64, len: usize, to: &mut Vec<u8>) {
    debug_assert!(len <= MAX_PAYLOAD);
    to.clear();
    to.reserve(len);
    let from = mapping.at(head + ENTRY_HEADER as u64);
    // SAFETY: `Consumer::entry` checked that the payload lies within the ring, which is mapped twice in a row; `to` has the
    // capacity. A hostile producer may change the bytes meanwhile: we copy whatever is there, once.
    unsafe {
        std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr(), len);
        to.set_len(len);
    }
}

/// What a closed entry says; `None` if nothing came of it.
fn event<'a>(mapping: &Mapping, head: u64, raw: &Raw, copy: &'a mut Vec<u8>) -> Result<Option<Event<'a>>, Corrupt> {
    let Raw { thread, handle, a: n, .. } = *raw;
    Ok(Some(match raw.kind {
        KIND_ATTACH => {
            if raw.payload_len as usize != FourTuple::BYTES {
                return Err(Corrupt("an attachment without addresses"));
            }
            copy_payload(mapping, head, FourTuple::BYTES, copy);
            let origin = origin_of(raw.flags).ok_or(Corrupt("an unknown origin"))?;
            let tuple = FourTuple::from_bytes(copy).ok_or(Corrupt("impossible addresses"))?;
            Event::Attach { thread, handle, origin, tuple }
        }
        KIND_WRITE => {
            let taken = raw.state & !(CLOSED | FAILED);
            if taken > raw.payload_len || n < u64::from(taken) {
                return Err(Corrupt("more taken than offered"));
            }
            if raw.state & FAILED != 0 {
                return Ok(None);
            }
            copy_payload(mapping, head, taken as usize, copy);
            Event::Write { thread, handle, taken, asked: n, bytes: copy }
        }
        KIND_READ => Event::Read { thread, handle, n },
        KIND_WAIT => Event::Wait { thread, zero_timeout: raw.flags & 1 != 0 },
        KIND_READS_ON => Event::ReadAfterWrite { thread },
        KIND_READS_OTHER => Event::ReadElsewhere { thread },
        KIND_BLOCKED => Event::Blocked { thread, over: raw.flags & 1 != 0 },
        KIND_CONSUME => Event::Consume { thread, handle, n },
        KIND_COMMIT => Event::Commit { thread },
        KIND_SHUTDOWN => Event::Shutdown { thread, handle },
        KIND_CLOSE => Event::Close { thread, handle, shared: raw.flags & 1 != 0 },
        KIND_EXIT => Event::Exit,
        KIND_ABSORBED => Event::Absorbed { thread, handle, n },
        KIND_OPTION => {
            let length = raw.payload_len as usize;
            let name = u8::try_from(n).ok().filter(|_| length <= LONGEST).ok_or(Corrupt("an impossible option"))?;
            copy_payload(mapping, head, length, copy);
            Event::Option { handle, level: raw.flags, name, value: copy }
        }
        _ => return Err(Corrupt("an entry of unknown kind")),
    }))
}

/// How the ring says how a process came by a connection.
fn code_of(origin: Origin) -> u8 {
    match origin {
        Origin::Accepted => 0,
        Origin::Connected => 1,
        Origin::Recovered => 2,
        Origin::Inherited => 3,
    }
}

fn origin_of(code: u8) -> Option<Origin> {
    Some(match code {
        0 => Origin::Accepted,
        1 => Origin::Connected,
        2 => Origin::Recovered,
        3 => Origin::Inherited,
        _ => return None,
    })
}
