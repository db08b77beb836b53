//! Waiting for semaphores of System V: the operations of a call say whether it may wait.

use libc::{c_int, sembuf, size_t, timespec};

use crate::{real, turn};

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn semop(set: c_int, operations: *mut sembuf, n: size_t) -> c_int {
    // SAFETY: the caller's operations.
    unsafe { before(operations, n) };
    // SAFETY: the caller's arguments.
    unsafe { real::semop(set, operations, n) }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn semtimedop(set: c_int, operations: *mut sembuf, n: size_t, timeout: *const timespec) -> c_int {
    // SAFETY: the caller's operations.
    unsafe { before(operations, n) };
    // SAFETY: the caller's arguments.
    unsafe { real::semtimedop(set, operations, n, timeout) }
}

/// Ends the turn if one of the operations may wait. An operation that adds to a semaphore never does.
///
/// # Safety
/// As for `semop`.
unsafe fn before(operations: *const sembuf, n: size_t) {
    /// The kernel takes no more (SEMOPM, by default), and says so.
    const MOST: usize = 500;
    if !turn::is_dirty() || operations.is_null() || n > MOST {
        return;
    }
    // SAFETY: not null; the caller vouches for the rest.
    let operations = unsafe { std::slice::from_raw_parts(operations, n) };
    if operations.iter().any(|o| o.sem_op <= 0 && c_int::from(o.sem_flg) & libc::IPC_NOWAIT == 0) {
        turn::before_wait(|| false);
    }
}
