//! Waiting for semaphores of System V, where the operations say whether the call may wait, and on condition variables, which
//! an interpreter's lock may be made of.

use libc::{c_int, clockid_t, pthread_cond_t, pthread_mutex_t, sembuf, size_t, timespec};

use crate::memory::Checked;
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
    if !Checked::default().is_readable(operations, n * size_of::<sembuf>()) {
        // The kernel refuses them.
        return;
    }
    // SAFETY: not null, and found readable.
    let operations = unsafe { std::slice::from_raw_parts(operations, n) };
    if operations.iter().any(|o| o.sem_op <= 0 && c_int::from(o.sem_flg) & libc::IPC_NOWAIT == 0) {
        turn::before_wait(|| false);
    }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn pthread_cond_wait(cond: *mut pthread_cond_t, mutex: *mut pthread_mutex_t) -> c_int {
    turn::before_condition();
    // SAFETY: the caller's arguments.
    unsafe { real::pthread_cond_wait(cond, mutex) }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn pthread_cond_timedwait(cond: *mut pthread_cond_t, mutex: *mut pthread_mutex_t, until: *const timespec) -> c_int {
    turn::before_condition();
    // SAFETY: the caller's arguments.
    unsafe { real::pthread_cond_timedwait(cond, mutex, until) }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn pthread_cond_clockwait(
    cond: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
    clock: clockid_t,
    until: *const timespec,
) -> c_int {
    turn::before_condition();
    // SAFETY: the caller's arguments.
    unsafe { real::pthread_cond_clockwait(cond, mutex, clock, until) }
}
