//! The follower keeps the newest output that its program made: at a promotion the log of the member may lack that of the turn
//! that was under way.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::raw::raw;

/// Where it is kept: away from the program's own mappings, and of two halves the one that is written is emptied when the other
/// is full.
const AT: usize = 0x5300_0000_0000;
const HALF: usize = 16 << 20;
/// Before each piece: the connection's serial number and the length, u32 each.
const HEAD: usize = 8;

/// How much of each half is filled, and which one is written.
static FILLED: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];
static NOW: AtomicUsize = AtomicUsize::new(0);

/// Takes the memory, of which nothing is used before there is output. False: there is none.
pub fn begin() -> bool {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let flags = flags | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;
    FILLED.iter().chain([&NOW]).for_each(|n| n.store(0, Ordering::Relaxed));
    raw!(SYS_mmap, AT, 2 * HALF, protection, flags, -1, 0) == AT as i64
}

/// Nothing is kept any more.
pub fn end() {
    raw!(SYS_munmap, AT, 2 * HALF);
}

/// Keeps output of a connection. Called in the order of the trace, by one thread at a time.
pub fn keep(serial: u32, bytes: &[u8]) {
    let bytes = &bytes[bytes.len().saturating_sub(HALF - HEAD)..];
    if bytes.is_empty() {
        return;
    }
    let mut half = NOW.load(Ordering::Relaxed);
    if FILLED[half].load(Ordering::Relaxed) + HEAD + bytes.len() > HALF {
        half = 1 - half;
        FILLED[half].store(0, Ordering::Relaxed);
        NOW.store(half, Ordering::Relaxed);
    }
    let at = FILLED[half].fetch_add(HEAD + bytes.len(), Ordering::Relaxed);
    // SAFETY: `begin` has mapped both halves for good; the piece fits, and nobody else writes.
    let to = unsafe { std::slice::from_raw_parts_mut((AT + half * HALF + at) as *mut u8, HEAD + bytes.len()) };
    for (to, number) in to.chunks_exact_mut(4).zip([serial, bytes.len() as u32]) {
        to.copy_from_slice(&number.to_ne_bytes());
    }
    to[HEAD..].copy_from_slice(bytes);
}

/// All pieces, oldest first: serial number, bytes.
pub fn each(mut f: impl FnMut(u32, &[u8])) {
    let now = NOW.load(Ordering::Relaxed);
    for half in [1 - now, now] {
        let filled = FILLED[half].load(Ordering::Relaxed);
        // SAFETY: `begin` has mapped it for good; so much is filled, and nobody writes now.
        let mut rest = unsafe { std::slice::from_raw_parts((AT + half * HALF) as *const u8, filled) };
        while let Some((head, more)) = rest.split_first_chunk::<HEAD>() {
            let number = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let Some((bytes, after)) = more.split_at_checked(number(4) as usize) else { return };
            f(number(0), bytes);
            rest = after;
        }
    }
}
