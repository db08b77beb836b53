//! Which descriptors are protected: an array indexed by descriptor, read without a lock by every hook.
//!
//! It is mapped when the first descriptor is protected; until then a hook's look at it is one load of a null
//! pointer. A fork copies it, a vfork shares it.

use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use libc::c_int;
use tcpr_node::place;

/// Descriptors from here on are never protected; Linux's default `fs.nr_open`.
const CAPACITY: usize = 1 << 20;

const KIND_SHIFT: u32 = 29;
const VALUE_MASK: u32 = (1 << KIND_SHIFT) - 1;
/// The largest connection handle.
pub const MAX_HANDLE: u32 = VALUE_MASK;

/// What a descriptor is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A socket that will be a protected listener, if it listens where the configuration says.
    Candidate,
    /// Listens on a protected port.
    Listener {
        /// The port.
        port: u16,
    },
    /// A protected connection.
    Connection {
        /// Its name on the channel.
        handle: u32,
    },
    /// A descriptor of our own.
    Internal,
    /// Connects, or has connected, to a protected destination; nothing was done with it since.
    Connecting,
    /// The same, and a thread is about to make it a connection.
    Attaching,
    /// Listens elsewhere: not ours.
    Foreign,
}

impl Entry {
    fn encode(self) -> u32 {
        let (kind, value) = match self {
            Entry::Candidate => (1, 0),
            Entry::Listener { port } => (2, u32::from(port)),
            Entry::Connection { handle } => (3, handle & VALUE_MASK),
            Entry::Internal => (4, 0),
            Entry::Connecting => (5, 0),
            Entry::Attaching => (6, 0),
            Entry::Foreign => (7, 0),
        };
        kind << KIND_SHIFT | value
    }

    fn decode(word: u32) -> Option<Self> {
        let value = word & VALUE_MASK;
        match word >> KIND_SHIFT {
            1 => Some(Entry::Candidate),
            2 => Some(Entry::Listener { port: value as u16 }),
            3 => Some(Entry::Connection { handle: value }),
            4 => Some(Entry::Internal),
            5 => Some(Entry::Connecting),
            6 => Some(Entry::Attaching),
            7 => Some(Entry::Foreign),
            _ => None,
        }
    }
}

static BASE: AtomicPtr<AtomicU32> = AtomicPtr::new(std::ptr::null_mut());
/// One more than the highest descriptor that ever had an entry.
static END: AtomicU32 = AtomicU32::new(0);

#[inline]
fn slot(fd: c_int) -> Option<&'static AtomicU32> {
    let base = BASE.load(Ordering::Acquire);
    if base.is_null() || fd as usize >= CAPACITY {
        return None;
    }
    // SAFETY: a non-null base points to CAPACITY entries that are never unmapped (a negative descriptor is a
    // huge usize and was turned away above).
    Some(unsafe { &*base.add(fd as usize) })
}

/// Whether hooks pass the descriptor straight to the C library.
#[inline]
pub fn is_plain(fd: c_int) -> bool {
    slot(fd).is_none_or(|s| s.load(Ordering::Acquire) == 0)
}

/// What the descriptor is to us; `None`: nothing.
#[inline]
pub fn get(fd: c_int) -> Option<Entry> {
    slot(fd).and_then(|s| Entry::decode(s.load(Ordering::Acquire)))
}

/// Sets or clears an entry and returns the one before. A descriptor
/// beyond the table stays plain.
pub fn set(fd: c_int, entry: Option<Entry>) -> Option<Entry> {
    if entry.is_some() {
        map();
        END.fetch_max(fd as u32 + 1, Ordering::Relaxed);
    }
    let word = entry.map_or(0, Entry::encode);
    slot(fd).and_then(|s| Entry::decode(s.swap(word, Ordering::AcqRel)))
}

/// Puts an entry in the place of another one. False: it is not there, or another thread was faster.
pub fn replace(fd: c_int, from: Entry, to: Option<Entry>) -> bool {
    let (from, to) = (from.encode(), to.map_or(0, Entry::encode));
    slot(fd).is_some_and(|s| s.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok())
}

/// A number is a descriptor of our own from now on, or none any more.
pub fn note(fd: c_int, ours: bool) {
    match ours {
        true => drop(set(fd, Some(Entry::Internal))),
        false => drop(replace(fd, Entry::Internal, None)),
    }
}

/// The descriptors in a range that have an entry.
pub fn range(first: u32, last: u32) -> impl Iterator<Item = (c_int, Entry)> {
    let end = END.load(Ordering::Relaxed).min(last.saturating_add(1));
    (first..end).filter_map(|fd| get(fd as c_int).map(|entry| (fd as c_int, entry)))
}

/// Room before the table: a fork of any kind finds it wiped, the child of a vfork shares it.
const GUARD_BYTES: usize = 64 << 10;

fn guard() -> Option<&'static AtomicU32> {
    let base = BASE.load(Ordering::Acquire);
    if base.is_null() {
        return None;
    }
    // SAFETY: the mapping begins GUARD_BYTES before the table and is never unmapped.
    Some(unsafe { &*base.byte_sub(GUARD_BYTES) })
}

/// Whether the table was copied by a fork that went around the C library, so that nobody put things in order: what
/// the table says is the parent's.
pub fn is_foreign() -> bool {
    guard().is_some_and(|g| g.load(Ordering::Relaxed) == 0)
}

/// Says that the table is this process's.
pub fn claim() {
    map();
    if let Some(guard) = guard() {
        guard.store(1, Ordering::Relaxed);
    }
}

fn map() {
    if !BASE.load(Ordering::Acquire).is_null() {
        return;
    }
    let length = GUARD_BYTES + CAPACITY * size_of::<AtomicU32>();
    // SAFETY: a fresh private mapping at an address of the kernel's choice.
    let base = unsafe {
        libc::mmap(
            place::wish(length),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        log::error!("no memory for the descriptor table: nothing will be protected");
        return;
    }
    // SAFETY: the first part of our own mapping. A kernel older than 4.14 refuses: then a fork around the C
    // library is not noticed.
    unsafe { libc::madvise(base, GUARD_BYTES, libc::MADV_WIPEONFORK) };
    let null = std::ptr::null_mut();
    // SAFETY: within the mapping.
    let table = unsafe { base.byte_add(GUARD_BYTES) };
    if BASE.compare_exchange(null, table.cast(), Ordering::AcqRel, Ordering::Acquire).is_err() {
        // Another thread was faster.
        // SAFETY: our own mapping, known to nobody.
        unsafe { libc::munmap(base, length) };
    }
}
