//! The memory of the trace, mapped where `tcpr_session::trace::memory` says.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicU8, Ordering};

use tcpr_session::trace::memory::{
    EXECUTED_AT, HEAD_AT, KEPT_AT, LIMIT_AT, LOG_ADDR, MAGIC, MAGIC_AT, MODE_AT, REASON_AT, REASON_LEN_AT, REASON_MAX,
    RECORDS_AT, ROOM_UNIT, SNAPSHOT_AT, SNAPSHOT_BYTES_AT, SNAPSHOT_PAUSE_AT, SNAPSHOT_POSITION_AT, SNAPSHOT_READ_AT,
    SNAPSHOT_ROOM, SNAPSHOT_WRITTEN_AT, STATE_AT, TRACE_AT, VERSION, VERSION_AT,
};

use crate::raw::raw;

/// What stands before the trace.
#[repr(C)]
pub struct Header {
    pub magic: AtomicU32,
    pub version: AtomicU32,
    pub head: AtomicU64,
    pub mode: AtomicU32,
    _reserved: AtomicU32,
    pub executed: AtomicU64,
    pub records: AtomicU64,
    pub state: AtomicU32,
    _reserved_too: AtomicU32,
    pub limit: AtomicU64,
    reason_len: AtomicU32,
    /// Whose file this is; offline only.
    pub owner: AtomicU32,
    reason: [AtomicU8; REASON_MAX],
    pub kept: AtomicU64,
    pub snapshot: AtomicU32,
    _reserved_three: AtomicU32,
    pub snapshot_position: AtomicU64,
    pub snapshot_written: AtomicU64,
    pub snapshot_read: AtomicU64,
    pub snapshot_pause: AtomicU64,
}

const _: () = {
    assert!(offset_of!(Header, magic) == MAGIC_AT && offset_of!(Header, version) == VERSION_AT);
    assert!(offset_of!(Header, head) == HEAD_AT && offset_of!(Header, mode) == MODE_AT);
    assert!(offset_of!(Header, executed) == EXECUTED_AT);
    assert!(offset_of!(Header, records) == RECORDS_AT && offset_of!(Header, state) == STATE_AT);
    assert!(offset_of!(Header, limit) == LIMIT_AT);
    assert!(offset_of!(Header, reason_len) == REASON_LEN_AT && offset_of!(Header, reason) == REASON_AT);
    assert!(offset_of!(Header, kept) == KEPT_AT && offset_of!(Header, snapshot) == SNAPSHOT_AT);
    assert!(offset_of!(Header, snapshot_position) == SNAPSHOT_POSITION_AT);
    assert!(offset_of!(Header, snapshot_written) == SNAPSHOT_WRITTEN_AT);
    assert!(offset_of!(Header, snapshot_read) == SNAPSHOT_READ_AT);
    assert!(offset_of!(Header, snapshot_pause) == SNAPSHOT_PAUSE_AT);
    assert!(size_of::<Header>() <= SNAPSHOT_BYTES_AT);
};

/// The header. Only after [`map`] has succeeded: who is not OFF has mapped it.
pub fn header() -> &'static Header {
    // SAFETY: mapped for good; everything in it is atomic.
    unsafe { &*(LOG_ADDR as *const Header) }
}

/// Maps the memory. False: it is not what it should be, or its place is taken. `again`: the room for the trace is used again, so
/// it lies a second time behind itself.
pub fn map(fd: i32, limit: u64, again: bool) -> bool {
    let (flags, protection) =
        (libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE, libc::PROT_READ | libc::PROT_WRITE);
    let map = |at: usize, bytes: u64, from: usize| raw!(SYS_mmap, at, bytes, protection, flags, fd, from) == at as i64;
    if again && (limit == 0 || !limit.is_multiple_of(ROOM_UNIT)) {
        return false;
    }
    map(LOG_ADDR, TRACE_AT as u64 + limit, 0) && (!again || map(LOG_ADDR + TRACE_AT + limit as usize, limit, TRACE_AT))
}

/// Whether what is mapped has the layout that we know.
pub fn is_known() -> bool {
    header().magic.load(Ordering::Relaxed) == MAGIC && header().version.load(Ordering::Relaxed) == VERSION
}

/// Where a position of the trace lies.
fn place(at: u64) -> usize {
    LOG_ADDR + TRACE_AT + (at % header().limit.load(Ordering::Relaxed).max(1)) as usize
}

/// The trace from a position that is kept up to its head.
pub fn trace(from: u64, head: u64) -> &'static [u8] {
    let length = head.saturating_sub(from).min(header().limit.load(Ordering::Relaxed));
    // SAFETY: mapped for good, twice in a row where it is used again. The manager keeps what we have not executed, so these bytes
    // do not change before that.
    unsafe { std::slice::from_raw_parts(place(from) as *const u8, length as usize) }
}

/// The room behind the head.
///
/// # Safety
/// Only for whoever appends, under the lock of the log, one at a time.
pub unsafe fn room() -> &'static mut [u8] {
    let (head, limit) = (header().head.load(Ordering::Relaxed), header().limit.load(Ordering::Relaxed));
    let used = head.saturating_sub(header().kept.load(Ordering::Acquire));
    // SAFETY: mapped, twice in a row where it is used again, and nobody else's, says the caller.
    unsafe { std::slice::from_raw_parts_mut(place(head) as *mut u8, limit.saturating_sub(used) as usize) }
}

/// Appends to the snapshot as much as there is room for, and returns how much that is. `None`: the header makes no sense.
///
/// # Safety
/// Only for whoever writes the snapshot: one process, one thread.
pub unsafe fn append_to_snapshot(bytes: &[u8]) -> Option<usize> {
    let (written, read) = (header().snapshot_written.load(Ordering::Relaxed), header().snapshot_read.load(Ordering::Acquire));
    let room = SNAPSHOT_ROOM.checked_sub(written.checked_sub(read)? as usize)?;
    let at = written as usize % SNAPSHOT_ROOM;
    let n = bytes.len().min(room).min(SNAPSHOT_ROOM - at);
    // SAFETY: mapped for good, and nobody reads these bytes before `snapshot_written` says that they are there.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (LOG_ADDR + SNAPSHOT_BYTES_AT + at) as *mut u8, n) };
    header().snapshot_written.store(written + n as u64, Ordering::Release);
    Some(n)
}

/// Says why; the state is set after that.
pub fn set_reason(text: &[u8]) {
    for (to, from) in header().reason.iter().zip(text) {
        to.store(*from, Ordering::Relaxed);
    }
    header().reason_len.store(text.len().min(REASON_MAX) as u32, Ordering::Release);
}

/// The same of words.
pub fn say_why(why: std::fmt::Arguments<'_>) {
    set_reason(Text::of(why).bytes());
}

/// What was said last.
pub fn reason() -> Text {
    let mut text = Text { bytes: [0; REASON_MAX], len: header().reason_len.load(Ordering::Acquire) as usize };
    text.bytes.iter_mut().zip(&header().reason).for_each(|(to, from)| *to = from.load(Ordering::Relaxed));
    text.len = text.len.min(REASON_MAX);
    text
}

/// Text without allocation, cut where the room ends.
pub struct Text {
    bytes: [u8; REASON_MAX],
    len: usize,
}

impl Text {
    /// These words.
    pub fn of(words: std::fmt::Arguments<'_>) -> Self {
        let mut text = Self { bytes: [0; REASON_MAX], len: 0 };
        let _ = std::fmt::write(&mut text, words);
        text
    }

    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl std::fmt::Write for Text {
    fn write_str(&mut self, s: &str) -> std::fmt::Result {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        let mut n = s.len().min(room.len());
        while !s.is_char_boundary(n) {
            n -= 1;
        }
        for (to, from) in room.iter_mut().zip(&s.as_bytes()[..n]) {
            *to = *from;
        }
        self.len += n;
        Ok(())
    }
}
