//! Hot standby: the shared memory with the trace of a program's life.
//!
//! The program writes it where it leads, and reads it where it follows; the manager the other way round. The layout is that of
//! [`tcpr_session::trace::memory`]. Whoever maps it believes nothing of what the other side wrote: numbers are loaded once and
//! checked, bytes are copied out.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tcpr_session::standing::Standing;
use tcpr_session::trace::memory::{self, snapshot, state};
use tcpr_session::tuple::FourTuple;

use crate::place;

/// Connections of which a program that takes over can tell where it stands.
const MOST_STANDING: usize = 128 << 10;
/// One of them: its addresses, two offsets, how much of its output follows behind the table, what has ended, since when.
const STANDING: usize = FourTuple::BYTES + 40;
/// What has ended: the output, the connection.
const SHUT: u64 = 1;
const CLOSED: u64 = 2;
const TABLE: usize = 8 + MOST_STANDING * STANDING;
/// Room for output.
const TAILS: usize = 32 << 20;

/// Where a program stands with a connection: [`Standing`] without the output.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The ends of the connection.
    pub tuple: FourTuple,
    /// How much was read.
    pub read: u64,
    /// How much was written.
    pub written: u64,
    /// Where the trace was when the program got it.
    pub since: u64,
    /// The output was ended.
    pub shut: bool,
    /// The connection was closed.
    pub closed: bool,
}

/// The memory, mapped.
pub struct TraceMemory {
    /// Of whoever has made it. The program has none: its descriptors are its own.
    fd: Option<OwnedFd>,
    base: NonNull<u8>,
    limit: u64,
    /// The first byte of the trace that is kept. The program is told, and not believed.
    kept: AtomicU64,
    /// How much of the snapshot that is under way was read. The program is told, and not believed.
    snapshot_read: AtomicU64,
}

// SAFETY: the memory is shared with another process anyway: all of it is accessed through atomics, or copied as bytes.
unsafe impl Send for TraceMemory {}
// SAFETY: as above.
unsafe impl Sync for TraceMemory {}

impl TraceMemory {
    /// Makes the memory for so many bytes of a trace, and a few more. Nothing of it is taken before it is written to.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn create(limit: u64) -> io::Result<TraceMemory> {
        let limit = limit.next_multiple_of(memory::ROOM_UNIT);
        // SAFETY: the name is a C string; the call takes nothing else.
        let fd = unsafe { libc::memfd_create(c"tcpr-trace".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor; nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        rustix::fs::ftruncate(&fd, size(limit) as u64)?;
        // A process that shrank it would have the other side killed by SIGBUS.
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: takes no pointers.
        if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut memory = Self::map(&fd, limit)?;
        memory.fd = Some(fd);
        memory.word(memory::MAGIC_AT).store(memory::MAGIC, Ordering::Relaxed);
        memory.word(memory::VERSION_AT).store(memory::VERSION, Ordering::Relaxed);
        memory.long(memory::LIMIT_AT).store(limit, Ordering::Release);
        Ok(memory)
    }

    /// Maps the memory that a manager has made.
    ///
    /// # Errors
    /// It is not such a memory, or cannot be mapped.
    pub fn open(fd: OwnedFd) -> io::Result<TraceMemory> {
        let length = rustix::fs::fstat(&fd)?.st_size as u64;
        let limit = length.checked_sub(size(0) as u64);
        let limit = limit.filter(|limit| *limit > 0);
        let limit = limit.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a trace memory of a foreign size"))?;
        Self::map(&fd, limit)
    }

    fn map(fd: &OwnedFd, limit: u64) -> io::Result<TraceMemory> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { libc::mmap(place::wish(size(limit)), size(limit), protection, flags, fd.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(TraceMemory {
            fd: None,
            base: NonNull::new(base.cast()).expect("mmap does not return null"),
            limit,
            kept: AtomicU64::new(0),
            snapshot_read: AtomicU64::new(0),
        })
    }

    /// A descriptor of it, for whoever has made it.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        // SAFETY: `at` is one of the header's offsets: aligned, within the mapping, which lives as long as self.
        unsafe { self.base.add(at).cast::<AtomicU32>().as_ref() }
    }

    fn long(&self, at: usize) -> &AtomicU64 {
        // SAFETY: as for `word`; those of u64 are multiples of eight.
        unsafe { self.base.add(at).cast::<AtomicU64>().as_ref() }
    }

    /// Where the trace ends.
    pub fn head(&self) -> u64 {
        let kept = self.kept();
        self.long(memory::HEAD_AT).load(Ordering::Acquire).clamp(kept, kept.saturating_add(self.limit))
    }

    /// Where what is kept of it begins.
    pub fn kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }

    /// Gives up what is before a position: it may be written over.
    pub fn give_up(&self, before: u64) {
        let before = before.min(self.head());
        if before > self.kept() {
            self.kept.store(before, Ordering::Relaxed);
            self.long(memory::KEPT_AT).store(before, Ordering::Release);
        }
    }

    /// The most bytes of it that are kept.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// What the program is to do: see [`memory::mode`].
    pub fn mode(&self) -> u32 {
        self.word(memory::MODE_AT).load(Ordering::Acquire)
    }

    /// Tells the program what to do, and wakes it if it waits for that.
    pub fn set_mode(&self, mode: u32) {
        let word = self.word(memory::MODE_AT);
        word.store(mode, Ordering::Release);
        wake(word.as_ptr());
        self.wake_follower();
    }

    /// Whoever follows waits for more of the trace by the low half of its end.
    fn wake_follower(&self) {
        wake(self.long(memory::HEAD_AT).as_ptr().cast());
    }

    /// What the program does: see [`state`].
    pub fn state(&self) -> u32 {
        self.word(memory::STATE_AT).load(Ordering::Acquire)
    }

    /// As the program's library does.
    #[cfg(test)]
    pub fn set_state(&self, state: u32) {
        self.word(memory::STATE_AT).store(state, Ordering::Release);
    }

    /// As the program's library does.
    #[cfg(test)]
    pub fn set_executed(&self, executed: u64) {
        self.long(memory::EXECUTED_AT).store(executed, Ordering::Release);
    }

    /// How far the follower has come.
    pub fn executed(&self) -> u64 {
        self.long(memory::EXECUTED_AT).load(Ordering::Acquire)
    }

    /// How many records were recorded, or executed.
    pub fn records(&self) -> u64 {
        self.long(memory::RECORDS_AT).load(Ordering::Relaxed)
    }

    /// The trace is to begin at this position, where a snapshot is. Only for a memory that is empty, and of which no program knows.
    pub fn begin_at(&self, position: u64) {
        self.kept.store(position, Ordering::Relaxed);
        for at in [memory::KEPT_AT, memory::HEAD_AT, memory::EXECUTED_AT] {
            self.long(at).store(position, Ordering::Release);
        }
    }

    /// Another process is to begin with this trace, from the first byte that is kept of it.
    pub fn begin_again(&self) {
        self.long(memory::EXECUTED_AT).store(self.kept(), Ordering::Relaxed);
        self.long(memory::RECORDS_AT).store(0, Ordering::Relaxed);
        self.word(memory::STATE_AT).store(state::STARTING, Ordering::Release);
    }

    /// Asks the program for a snapshot, to be made at its next wait.
    pub fn ask_for_snapshot(&self) {
        self.snapshot_read.store(0, Ordering::Relaxed);
        for at in [memory::SNAPSHOT_WRITTEN_AT, memory::SNAPSHOT_READ_AT] {
            self.long(at).store(0, Ordering::Relaxed);
        }
        self.word(memory::REASON_LEN_AT).store(0, Ordering::Relaxed);
        self.word(memory::SNAPSHOT_AT).store(snapshot::ASKED, Ordering::Release);
    }

    /// What became of it: see [`memory::snapshot`].
    pub fn snapshot_state(&self) -> u32 {
        self.word(memory::SNAPSHOT_AT).load(Ordering::Acquire)
    }

    /// Nobody wants the snapshot any more, or all of it is read.
    pub fn end_snapshot(&self) {
        self.word(memory::SNAPSHOT_AT).store(snapshot::NONE, Ordering::Release);
    }

    /// Where the trace was when the snapshot was made, and for how many nanoseconds the program was stopped, once some of it is there.
    pub fn snapshot_made(&self) -> Option<(u64, u64)> {
        let is_there = self.long(memory::SNAPSHOT_WRITTEN_AT).load(Ordering::Acquire) > 0;
        let pause = self.long(memory::SNAPSHOT_PAUSE_AT).load(Ordering::Relaxed);
        is_there.then(|| (self.snapshot_position(), pause))
    }

    /// Where the trace was when the newest snapshot was made.
    pub fn snapshot_position(&self) -> u64 {
        self.long(memory::SNAPSHOT_POSITION_AT).load(Ordering::Relaxed)
    }

    /// Reads the next bytes of the snapshot, up to so many; none are there yet, or any more, where it is empty. `None`: what the
    /// program says of it makes no sense.
    pub fn read_snapshot(&self, most: usize) -> Option<Vec<u8>> {
        let read = self.snapshot_read.load(Ordering::Relaxed);
        let there = self.long(memory::SNAPSHOT_WRITTEN_AT).load(Ordering::Acquire).checked_sub(read)?;
        let at = (read % memory::SNAPSHOT_ROOM as u64) as usize;
        let there = usize::try_from(there).ok().filter(|n| *n <= memory::SNAPSHOT_ROOM)?;
        let mut bytes = vec![0; there.min(most).min(memory::SNAPSHOT_ROOM - at)];
        self.copy_out(memory::SNAPSHOT_BYTES_AT + at, &mut bytes);
        let read = read + bytes.len() as u64;
        self.snapshot_read.store(read, Ordering::Relaxed);
        self.long(memory::SNAPSHOT_READ_AT).store(read, Ordering::Release);
        Some(bytes)
    }

    /// Whether all of the snapshot that was written is read.
    pub fn snapshot_is_read(&self) -> bool {
        self.long(memory::SNAPSHOT_WRITTEN_AT).load(Ordering::Acquire) == self.snapshot_read.load(Ordering::Relaxed)
    }

    /// As the program's library does.
    #[cfg(test)]
    pub fn write_snapshot(&self, state: u32, position: u64, bytes: &[u8]) {
        let written = self.long(memory::SNAPSHOT_WRITTEN_AT).load(Ordering::Relaxed);
        assert!(bytes.len() as u64 + written <= memory::SNAPSHOT_ROOM as u64, "a short one");
        self.long(memory::SNAPSHOT_POSITION_AT).store(position, Ordering::Relaxed);
        self.copy_in(memory::SNAPSHOT_BYTES_AT + written as usize, bytes);
        self.long(memory::SNAPSHOT_WRITTEN_AT).store(written + bytes.len() as u64, Ordering::Release);
        self.word(memory::SNAPSHOT_AT).store(state, Ordering::Release);
    }

    /// Why the program does not follow, or does not record, in its library's words.
    pub fn reason(&self) -> String {
        let length = self.word(memory::REASON_LEN_AT).load(Ordering::Acquire) as usize;
        let mut text = vec![0; length.min(memory::REASON_MAX)];
        self.copy_out(memory::REASON_AT, &mut text);
        String::from_utf8_lossy(&text).replace(|c: char| c.is_control(), " ")
    }

    /// Appends what the leader has recorded, if it goes on where the trace ends and there is room.
    #[must_use]
    pub fn append(&self, at: u64, bytes: &[u8]) -> bool {
        let end = at.saturating_add(bytes.len() as u64);
        if at != self.head() || end - self.kept() > self.limit {
            return false;
        }
        let (first, second) = bytes.split_at(bytes.len().min(self.up_to_the_end(at)));
        self.copy_in(self.place(at), first);
        self.copy_in(memory::TRACE_AT, second);
        self.long(memory::HEAD_AT).store(end, Ordering::Release);
        self.wake_follower();
        true
    }

    /// Copies the trace from `from`, which is kept, to `to`, which is not beyond [`Self::head`], behind `out`.
    pub fn copy(&self, from: u64, to: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + to.saturating_sub(from).min(self.limit) as usize, 0);
        let bytes = &mut out[start..];
        let (first, second) = bytes.split_at_mut(bytes.len().min(self.up_to_the_end(from)));
        self.copy_out(self.place(from), first);
        self.copy_out(memory::TRACE_AT, second);
    }

    /// Where a byte of the trace lies.
    fn place(&self, at: u64) -> usize {
        memory::TRACE_AT + (at % self.limit) as usize
    }

    /// How many bytes of the trace lie behind it before it goes on at the beginning of its room.
    fn up_to_the_end(&self, at: u64) -> usize {
        (self.limit - at % self.limit) as usize
    }

    /// The program that takes over tells where it stands with its connections: each with the end of its output. False: they are
    /// too many.
    #[must_use]
    pub fn write_standing<'a>(&self, connections: impl ExactSizeIterator<Item = (Place, &'a [u8])>) -> bool {
        let count = connections.len();
        if count > MOST_STANDING {
            return false;
        }
        let table = memory::TRACE_AT + self.limit as usize;
        let mut tails = table + TABLE;
        for (n, (place, tail)) in connections.enumerate() {
            // What does not fit is missed only if the log does not have it.
            let tail = if tails + tail.len() > size(self.limit) { &[] } else { tail };
            let mut entry = [0; STANDING];
            let (to, numbers) = entry.split_at_mut(FourTuple::BYTES);
            to.copy_from_slice(&place.tuple.to_bytes());
            let ended = if place.shut { SHUT } else { 0 } | if place.closed { CLOSED } else { 0 };
            for (to, number) in
                numbers.chunks_exact_mut(8).zip([place.read, place.written, tail.len() as u64, ended, place.since])
            {
                to.copy_from_slice(&number.to_ne_bytes());
            }
            self.copy_in(table + 8 + n * STANDING, &entry);
            self.copy_in(tails, tail);
            tails += tail.len();
        }
        self.copy_in(table, &(count as u64).to_ne_bytes());
        self.word(memory::STATE_AT).store(state::STANDING, Ordering::Release);
        true
    }

    /// Where the program that takes over stands with its connections; what is nonsense is passed over.
    pub fn read_standing(&self) -> Vec<Standing> {
        let table = memory::TRACE_AT + self.limit as usize;
        let mut count = [0; 8];
        self.copy_out(table, &mut count);
        let count = (u64::from_ne_bytes(count) as usize).min(MOST_STANDING);
        let mut tails = table + TABLE;
        let entry = |n: usize| {
            let mut entry = [0; STANDING];
            self.copy_out(table + 8 + n * STANDING, &mut entry);
            let (tuple, numbers) = entry.split_at(FourTuple::BYTES);
            let mut numbers = numbers.chunks_exact(8).map(|n| u64::from_ne_bytes(n.try_into().expect("eight bytes")));
            let (read, written, length) = (numbers.next()?, numbers.next()?, numbers.next()? as usize);
            let (ended, since) = (numbers.next()?, numbers.next()?);
            let mut tail = vec![0; length.min(size(self.limit).saturating_sub(tails))];
            self.copy_out(tails, &mut tail);
            tails += tail.len();
            let (shut, closed) = (ended & SHUT != 0, ended & CLOSED != 0);
            Some(Standing { tuple: FourTuple::from_bytes(tuple)?, read, written, tail, since, shut, closed })
        };
        (0..count).filter_map(entry).collect()
    }

    fn copy_in(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= size(self.limit), "within the memory");
        // SAFETY: checked to lie within the mapping; the source is ours. The other side may look at it meanwhile: it is told by an
        // atomic when it is whole.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.as_ptr().add(at), bytes.len()) };
    }

    fn copy_out(&self, at: usize, to: &mut [u8]) {
        assert!(at + to.len() <= size(self.limit), "within the memory");
        // SAFETY: checked to lie within the mapping; the target is ours. A hostile program may change the bytes meanwhile: we copy
        // whatever is there, once.
        unsafe { std::ptr::copy_nonoverlapping(self.base.as_ptr().add(at), to.as_mut_ptr(), to.len()) };
    }
}

fn wake(word: *mut u32) {
    // SAFETY: the address is that of a live, aligned word; FUTEX_WAKE only looks it up.
    unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAKE, i32::MAX) };
}

fn size(limit: u64) -> usize {
    memory::TRACE_AT + limit as usize + TABLE + TAILS
}

impl Drop for TraceMemory {
    fn drop(&mut self) {
        // SAFETY: the whole range was mapped by `map`, and no reference into it outlives self.
        unsafe { libc::munmap(self.base.as_ptr().cast(), size(self.limit)) };
    }
}
