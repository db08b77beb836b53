//! Descriptors of protected sockets: their copies and their ends.

use libc::{c_int, c_long, c_uint};
use tcpr_node::channel::client::Bypass;

use super::{inside, lock_in};
use crate::table::{self, Entry};
use crate::{ffi, process, real, turn};

const CLOSE_RANGE_UNSHARE: c_int = 2;

/// Whether changes to the table are this thread's to make.
pub(super) fn is_for_us() -> bool {
    !Bypass::active() && process::is_ours()
}

/// A descriptor is about to be closed.
fn closing(fd: c_int) {
    arrive(fd);
    let waits = matches!(table::get(fd), Some(Entry::Connection { .. })) && lingers(fd);
    inside((), || process::closing(fd));
    if waits {
        // For the peer to have it all: it leaves when the turn is over.
        turn::before_wait(|| false);
    }
}

/// Whether a close waits until the peer has everything (SO_LINGER).
fn lingers(fd: c_int) -> bool {
    inside(None, || ffi::option::<libc::linger>(fd, libc::SOL_SOCKET, libc::SO_LINGER))
        .is_some_and(|l| l.l_onoff != 0 && l.l_linger > 0 && !ffi::is_nonblocking(fd))
}

/// One that has connected, and nothing was done with it since, is a connection from now on.
pub(super) fn arrive(fd: c_int) {
    if matches!(table::get(fd), Some(Entry::Calling | Entry::Arriving)) {
        super::connection(fd);
    }
}

/// Whether a call names a descriptor of our own: to the application its number is not in use.
pub(super) fn is_internal(fd: c_int) -> bool {
    table::get(fd) == Some(Entry::Internal) && is_for_us()
}

pub(super) fn refuse() -> c_int {
    ffi::set_errno(libc::EBADF);
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
    if is_for_us() {
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
    // Nothing is closed: it only marks, or it fails.
    let closes = flags & !CLOSE_RANGE_UNSHARE == 0 && first <= last;
    if !closes || ours().next().is_none() || !is_for_us() {
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
    if table::range(low, c_uint::MAX).next().is_none() || !is_for_us() {
        // SAFETY: the caller's argument.
        return unsafe { real::closefrom(first) };
    }
    // SAFETY: takes no pointers.
    unsafe { close_range(low, c_uint::MAX, 0) };
}

/// Notes that `new` is a copy of `old`.
fn copied(old: c_int, new: c_int) -> c_int {
    if new >= 0 && is_for_us() {
        arrive(old);
        inside((), || match table::get(old) {
            Some(Entry::Calling | Entry::Arriving | Entry::Internal) | None => process::forget(new),
            Some(entry) => process::duplicated(entry, new),
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
    let valid = ffi::is_open(from);
    if !valid || !is_for_us() {
        return;
    }
    arrive(to);
    inside((), || match table::get(to) {
        Some(Entry::Internal) => process::vacate(to),
        _ => process::closing(to),
    });
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

/// As in the C library. Node closes its sockets by number, and languages wait by number.
///
/// What reads and writes a protected descriptor by number is as good as the function of that name.
///
/// # Safety
/// As in the C library.
pub unsafe fn syscall(number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long {
    match number {
        _ if table::is_plain(a as c_int) || Bypass::active() => {}
        // SAFETY: the caller's arguments.
        libc::SYS_read => return unsafe { super::read(a as c_int, b as _, c as _) } as c_long,
        // SAFETY: the caller's arguments.
        libc::SYS_readv => return unsafe { super::readv(a as c_int, b as _, c as _) } as c_long,
        // SAFETY: the caller's arguments.
        libc::SYS_recvfrom => return unsafe { super::recvfrom(a as c_int, b as _, c as _, d as _, e as _, f as _) } as c_long,
        // SAFETY: the caller's arguments.
        libc::SYS_recvmsg => return unsafe { super::recvmsg(a as c_int, b as _, c as _) } as c_long,
        // SAFETY: the caller's arguments.
        libc::SYS_write => return unsafe { super::write(a as c_int, b as _, c as _) } as c_long,
        // SAFETY: the caller's arguments.
        libc::SYS_writev => return unsafe { super::writev(a as c_int, b as _, c as _) } as c_long,
        // SAFETY: the caller's arguments.
        libc::SYS_sendto => return unsafe { super::sendto(a as c_int, b as _, c as _, d as _, e as _, f as _) } as c_long,
        // SAFETY: the caller's arguments.
        libc::SYS_sendmsg => return unsafe { super::sendmsg(a as c_int, b as _, c as _) } as c_long,
        // SAFETY: the caller's arguments.
        libc::SYS_sendfile => return unsafe { super::sendfile(a as c_int, b as _, c as _, d as _) } as c_long,
        // SAFETY: the caller's arguments.
        libc::SYS_shutdown => return c_long::from(unsafe { super::shutdown(a as c_int, b as c_int) }),
        libc::SYS_close => {
            // SAFETY: the caller's argument.
            return c_long::from(unsafe { close(a as c_int) });
        }
        _ => {}
    }
    match number {
        // SAFETY: the caller's arguments.
        libc::SYS_close_range => return c_long::from(unsafe { close_range(a as c_uint, b as c_uint, c as c_int) }),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller's arguments.
        libc::SYS_dup2 => return c_long::from(unsafe { dup2(a as c_int, b as c_int) }),
        // SAFETY: the caller's arguments.
        libc::SYS_dup3 => return c_long::from(unsafe { dup3(a as c_int, b as c_int, c as c_int) }),
        libc::SYS_clone if lock_in::forks(a as c_int) && b == 0 => {
            // SAFETY: the caller's arguments.
            return lock_in::forked(|| unsafe { real::syscall(number, a, b, c, d, e, f) });
        }
        // SAFETY: the caller's arguments.
        libc::SYS_clone3 if unsafe { lock_in::forks_by(a as *const lock_in::CloneArguments, b as usize) } => {
            // SAFETY: the caller's arguments.
            return lock_in::forked(|| unsafe { real::syscall(number, a, b, c, d, e, f) });
        }
        // SAFETY: the caller's arguments.
        #[cfg(target_arch = "x86_64")]
        libc::SYS_fork => return lock_in::forked(|| unsafe { real::syscall(number, a, b, c, d, e, f) }),
        // SAFETY: the caller's arguments.
        libc::SYS_prctl => return c_long::from(unsafe { lock_in::prctl(a as c_int, b, c, d, e) }),
        libc::SYS_seccomp => lock_in::before_seccomp(a, b, c),
        libc::SYS_unshare if a as c_int & libc::CLONE_NEWNET != 0 => lock_in::before_namespace(),
        libc::SYS_setns => lock_in::before_namespace(),
        // Its first descriptor or its second.
        libc::SYS_splice if !Bypass::active() => {
            // SAFETY: the caller's arguments.
            return unsafe { super::splice(a as c_int, b as _, c as c_int, d as _, e as _, f as _) } as c_long;
        }
        libc::SYS_futex_waitv => turn::before_wait(|| false),
        libc::SYS_futex if turn::is_dirty() => {
            const COMMANDS: c_int = !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
            if matches!(b as c_int & COMMANDS, libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET) {
                turn::before_wait(|| false);
            }
        }
        _ => {}
    }
    // SAFETY: the caller's arguments.
    unsafe { real::syscall(number, a, b, c, d, e, f) }
}
