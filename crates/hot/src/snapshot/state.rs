//! What the leader's process knows of its snapshots; the fresh process has that in its memory, too.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering};

use super::process;
use crate::memory::header;
use crate::raw::raw;

/// Timers of the process, which a copy does not have; they are in its memory.
pub static TIMERS: [[AtomicI64; 4]; 3] = [const { [const { AtomicI64::new(0) }; 4] }; 3];
/// Where the C library keeps the list of locks that are to be given back if the thread dies. A copy has none.
pub static ROBUST: AtomicU64 = AtomicU64::new(0);
/// The copy that writes a snapshot.
pub static WRITER: AtomicI32 = AtomicI32::new(0);
/// How often one was tried in a row, and when last.
pub static TRIES: AtomicU32 = AtomicU32::new(0);
pub static TRIED: AtomicI64 = AtomicI64::new(0);

/// Handlers of signals that tell a fault: libtcpr has them, and its memory stays behind.
pub struct Faults(pub UnsafeCell<[Option<libc::sigaction>; 65]>);

// SAFETY: written by the first thread before the copy is made, and read by the first thread of the process that has this memory.
unsafe impl Sync for Faults {}

/// Those, by signal.
pub static FAULTS: Faults = Faults(UnsafeCell::new([None; 65]));

/// What the program began with: device and inode of its root directory, and how many seccomp filters it has from those who started
/// it.
static SURROUNDINGS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
/// How many threads the kernel knew when the descriptors were listed.
pub static THREADS: AtomicU64 = AtomicU64::new(0);

fn surroundings() -> [u64; 3] {
    // SAFETY: all zeroes is a value of this plain structure.
    let mut root: libc::stat = unsafe { std::mem::zeroed() };
    raw!(SYS_newfstatat, libc::AT_FDCWD, c"/".as_ptr(), &raw mut root, 0);
    let mut status = [0; 8192];
    let n = process::read_file(format_args!("/proc/self/status"), &mut status);
    [root.st_dev, root.st_ino, process::number_in(&status[..n], b"Seccomp_filters:", 10)]
}

/// Before the program changes them.
pub fn note_surroundings() {
    SURROUNDINGS.iter().zip(surroundings()).for_each(|(to, n)| to.store(n, Ordering::Relaxed));
}

/// What the program has changed of them, in words.
pub fn changed_surroundings() -> Option<&'static str> {
    let before = SURROUNDINGS.each_ref().map(|n| n.load(Ordering::Relaxed));
    let now = surroundings();
    match (before[..2] == now[..2], before[2] == now[2]) {
        (false, _) => Some("its root directory is another one (chroot)"),
        (_, false) => Some("it has locked itself in (seccomp)"),
        _ => None,
    }
}

/// Whether the state was this one; then it is that one.
pub fn swap(from: u32, to: u32) -> bool {
    header().snapshot.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}
