//! What goes between parts of the program while it follows: pipes, pairs of sockets and event counters of this member hold what the
//! program has written and not read, by the trace. At a promotion it goes on with that.
//!
//! In the trace a read may stand before the write that it got its bytes from: a thread's record comes after its call. The
//! missing bytes are remembered, and removed from the next write. All this happens in the order of the trace: before the
//! record of the call is done.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use libc::iovec;

use crate::descriptors::{self, Kind};
use crate::raw::{self, raw};

/// Where something is owed: by the number of the end that reads; 0: nowhere.
struct Owed {
    end: AtomicU32,
    amount: AtomicU64,
}

/// As many as are owed to at a time. Beyond, something may be there twice.
const MOST: usize = 256;
static OWED: [Owed; MOST] = [const { Owed { end: AtomicU32::new(0), amount: AtomicU64::new(0) } }; MOST];

fn find(end: u32) -> Option<&'static Owed> {
    OWED.iter().find(|owed| owed.end.load(Ordering::Relaxed) == end)
}

fn owe(end: u32, amount: u64) {
    if end == 0 || amount == 0 {
        return;
    }
    if let Some(owed) = find(end).or_else(|| find(0)) {
        owed.amount.fetch_add(amount, Ordering::Relaxed);
        owed.end.store(end, Ordering::Relaxed);
    }
}

/// How much of what is written there was read already.
fn pay(end: u32, most: u64) -> u64 {
    let Some(owed) = find(end).filter(|_| end != 0) else { return 0 };
    let amount = owed.amount.load(Ordering::Relaxed);
    let paid = amount.min(most);
    owed.amount.store(amount - paid, Ordering::Relaxed);
    if paid == amount {
        owed.end.store(0, Ordering::Relaxed);
    }
    paid
}

/// Nothing is owed any more: from here on all is as it is in fact.
pub fn end() {
    OWED.iter().for_each(|owed| owed.end.store(0, Ordering::Relaxed));
    OWED.iter().for_each(|owed| owed.amount.store(0, Ordering::Relaxed));
}

/// The program has read these bytes, by the trace.
pub fn has_read(fd: i32, bytes: &[u8]) {
    match descriptors::kind(fd) {
        Kind::Event => {
            let end = descriptors::pair(fd);
            let read = bytes.first_chunk().map_or(0, |value| u64::from_ne_bytes(*value));
            let was = take_count(fd);
            owe(end, read.saturating_sub(was));
            give_count(fd, was.saturating_sub(read));
        }
        Kind::Pipe => {
            let lacking = take(fd, bytes.len(), 1) as u64;
            // What a child has written comes from the trace alone.
            if raw::poll_now(fd, libc::POLLIN) & libc::POLLHUP == 0 {
                owe(descriptors::pair(fd), lacking);
            }
        }
        // A timer gives nothing to whoever has no room for a number.
        Kind::Timer => _ = take(fd, bytes.len(), 8),
        _ => {}
    }
}

/// Takes so many bytes, as far as they are there. Returns how many are not.
fn take(fd: i32, n: usize, least: usize) -> usize {
    let mut left = n;
    let mut rubbish = [0u8; 4096];
    while left > 0 && raw::poll_now(fd, libc::POLLIN) & libc::POLLIN != 0 {
        let got = raw!(SYS_read, fd, rubbish.as_mut_ptr(), left.min(rubbish.len()).max(least));
        if got <= 0 {
            break;
        }
        left = left.saturating_sub(got as usize);
    }
    left
}

/// What a counter of events gives at a read: all, or one if it is a semaphore.
fn take_count(fd: i32) -> u64 {
    let mut count = 0u64;
    let is_there = raw::poll_now(fd, libc::POLLIN) & libc::POLLIN != 0;
    if is_there && raw!(SYS_read, fd, &raw mut count, 8) == 8 {
        count
    } else {
        0
    }
}

fn give_count(fd: i32, count: u64) {
    if count != 0 && raw::poll_now(fd, libc::POLLOUT) & libc::POLLOUT != 0 {
        raw!(SYS_write, fd, &raw const count, 8);
    }
}

/// The program has written these bytes, by the trace.
pub fn has_written<'a>(fd: i32, mut pieces: impl Iterator<Item = &'a [u8]>) {
    match descriptors::kind(fd) {
        Kind::Event => {
            let value = pieces.next().and_then(|piece| piece.first_chunk()).map_or(0, |value| u64::from_ne_bytes(*value));
            give_count(fd, value - pay(descriptors::pair(fd), value));
        }
        Kind::Pipe => write(fd, pieces),
        _ => {}
    }
}

fn write<'a>(fd: i32, pieces: impl Iterator<Item = &'a [u8]>) {
    // Nobody reads: the leader's reader is a process that the follower does not have.
    if raw::poll_now(fd, libc::POLLOUT) != libc::POLLOUT {
        return;
    }
    let end = descriptors::other_end(fd);
    for piece in pieces {
        const NO_WAIT: i32 = 8;
        let paid = pay(end, piece.len() as u64) as usize;
        let piece = &piece[paid..];
        let one = iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() };
        let result = if piece.is_empty() { 0 } else { raw!(SYS_pwritev2, fd, &raw const one, 1, -1, -1, NO_WAIT) };
        if matches!(-result as i32, libc::EOPNOTSUPP | libc::ESPIPE | libc::EINVAL) {
            raw!(SYS_write, fd, piece.as_ptr(), piece.len());
        }
    }
}
