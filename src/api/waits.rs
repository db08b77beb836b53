//! Waiting for events: each ends the calling thread's turn.

use libc::{c_int, epoll_event, fd_set, nfds_t, pollfd, sigset_t, timespec, timeval};

use crate::hooks;

/// As `poll`. The calling thread's turn ends.
///
/// # Safety
/// As for `poll`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_poll(fds: *mut pollfd, n: nfds_t, timeout: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { hooks::poll(fds, n, timeout) }
}

/// As `ppoll`. The calling thread's turn ends.
///
/// # Safety
/// As for `ppoll`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_ppoll(
    fds: *mut pollfd,
    n: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { hooks::ppoll(fds, n, timeout, mask) }
}

/// As `select`. The calling thread's turn ends.
///
/// # Safety
/// As for `select`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_select(
    n: c_int,
    reading: *mut fd_set,
    writing: *mut fd_set,
    failing: *mut fd_set,
    timeout: *mut timeval,
) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { hooks::select(n, reading, writing, failing, timeout) }
}

/// As `pselect`. The calling thread's turn ends.
///
/// # Safety
/// As for `pselect`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_pselect(
    n: c_int,
    reading: *mut fd_set,
    writing: *mut fd_set,
    failing: *mut fd_set,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { hooks::pselect(n, reading, writing, failing, timeout, mask) }
}

/// As `epoll_wait`. The calling thread's turn ends.
///
/// # Safety
/// As for `epoll_wait`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_epoll_wait(ep: c_int, events: *mut epoll_event, max: c_int, timeout: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { hooks::epoll_wait(ep, events, max, timeout) }
}

/// As `epoll_pwait`. The calling thread's turn ends.
///
/// # Safety
/// As for `epoll_pwait`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_epoll_pwait(
    ep: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout: c_int,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { hooks::epoll_pwait(ep, events, max, timeout, mask) }
}
