//! Descriptors of protected sockets: their copies and their ends.

use libc::{c_int, c_long, c_uint};

use super::attach::arrive;
use super::stash;
use crate::guard::inside;
use crate::table::{self, Entry};
use crate::{connections, diag, errno, manager, real, sys, turn};

const CLOSE_RANGE_UNSHARE: c_int = 2;

/// A descriptor is about to be closed.
fn closing(fd: c_int) {
    arrive(fd);
    let waits = matches!(table::get(fd), Some(Entry::Connection { .. })) && lingers(fd);
    inside((), || connections::forget(fd));
    if waits {
        // The close waits until the peer has all output, which leaves when the turn is over.
        turn::before_wait(|| false);
    }
}

/// Whether a close waits until the peer has everything (SO_LINGER).
fn lingers(fd: c_int) -> bool {
    inside(None, || sys::option::<libc::linger>(fd, libc::SOL_SOCKET, libc::SO_LINGER))
        .is_some_and(|l| l.l_onoff != 0 && l.l_linger > 0 && !sys::is_nonblocking(fd))
}

/// Whether a call names a descriptor of our own: to the application its number is not in use.
pub fn is_internal(fd: c_int) -> bool {
    table::get(fd) == Some(Entry::Internal) && manager::acts()
}

pub fn refuse() -> c_int {
    errno::set(libc::EBADF);
    -1
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn close(fd: c_int) -> c_int {
    if is_internal(fd) {
        return refuse();
    }
    if manager::acts() {
        closing(fd);
    }
    // SAFETY: the caller's argument.
    unsafe { real::close(fd) }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    let ours = || table::range(first, last);
    // Else the call closes nothing: it only sets close-on-exec, or fails.
    let closes = flags & !CLOSE_RANGE_UNSHARE == 0 && first <= last;
    if !closes || ours().next().is_none() || !manager::acts() {
        // SAFETY: the caller's arguments.
        return unsafe { real::close_range(first, last, flags) };
    }
    let mut from = first;
    for (fd, entry) in ours() {
        if entry != Entry::Internal {
            closing(fd);
            continue;
        }
        let fd = fd as c_uint;
        if fd > from {
            // SAFETY: a part of the caller's range.
            let result = unsafe { real::close_range(from, fd - 1, flags) };
            if result != 0 {
                return result;
            }
        }
        from = fd + 1;
    }
    if from > last {
        return 0;
    }
    // SAFETY: the rest of the caller's range.
    unsafe { real::close_range(from, last, flags) }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn closefrom(first: c_int) {
    let low = first.max(0) as c_uint;
    if table::range(low, c_uint::MAX).next().is_none() || !manager::acts() {
        // SAFETY: the caller's argument.
        return unsafe { real::closefrom(first) };
    }
    // SAFETY: takes no pointers.
    unsafe { close_range(low, c_uint::MAX, 0) };
}

/// Notes that `new` is a copy of `old`.
fn copied(old: c_int, new: c_int) -> c_int {
    if new >= 0 && manager::acts() {
        arrive(old);
        inside((), || match table::get(old) {
            Some(Entry::Connecting | Entry::Attaching | Entry::Internal) | None => connections::forget(new),
            Some(entry) => connections::duplicated(entry, new),
        });
    }
    new
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn dup(fd: c_int) -> c_int {
    if is_internal(fd) {
        return refuse();
    }
    // SAFETY: the caller's argument.
    copied(fd, unsafe { real::dup(fd) })
}

/// `to` is about to be closed and to become a copy of `from`.
fn replacing(from: c_int, to: c_int) {
    // A failing call must not change anything.
    let valid = sys::is_open(from);
    if !valid || !manager::acts() {
        return;
    }
    arrive(to);
    inside((), || match table::get(to) {
        Some(Entry::Internal) => vacate(to),
        _ => connections::forget(to),
    });
}

/// The application wants a number for itself that is one of ours.
fn vacate(fd: c_int) {
    table::note(fd, false);
    if let Some(client) = manager::joined() {
        client.vacate(fd);
    }
    stash::vacate(fd);
    diag::vacate(fd);
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn dup2(from: c_int, to: c_int) -> c_int {
    if is_internal(from) {
        return refuse();
    }
    if from == to || (table::is_plain(from) && table::is_plain(to)) {
        // SAFETY: the caller's arguments.
        return unsafe { real::dup2(from, to) };
    }
    replacing(from, to);
    // SAFETY: the caller's arguments.
    copied(from, unsafe { real::dup2(from, to) })
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
    let refused = from == to || flags & !libc::O_CLOEXEC != 0;
    if !refused && is_internal(from) {
        return refuse();
    }
    if refused || (table::is_plain(from) && table::is_plain(to)) {
        // SAFETY: the caller's arguments.
        return unsafe { real::dup3(from, to, flags) };
    }
    replacing(from, to);
    // SAFETY: the caller's arguments.
    copied(from, unsafe { real::dup3(from, to, flags) })
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn fcntl(fd: c_int, command: c_int, argument: c_long) -> c_int {
    let copies = matches!(command, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC);
    if is_internal(fd) {
        return refuse();
    }
    // SAFETY: the caller's arguments.
    let result = unsafe { real::fcntl(fd, command, argument) };
    if copies {
        return copied(fd, result);
    }
    result
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn fcntl64(fd: c_int, command: c_int, argument: c_long) -> c_int {
    // SAFETY: the caller's arguments; on 64-bit systems it is the same function.
    unsafe { fcntl(fd, command, argument) }
}
