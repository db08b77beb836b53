//! Sockets and their life.

use libc::{c_int, c_void, sockaddr, socklen_t};

use crate::{hooks, ops};

/// As `socket`. A TCP socket that this call makes is protected if it listens on a protected port of the virtual IP, or
/// connects to a protected destination.
///
/// # Safety
/// As for `socket`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    ops::protected_socket(domain, kind, protocol)
}

/// As `bind`. The first bind to a port of a socket made by `tcpr_socket` joins the manager, as `tcpr_init(NULL)` does; if that
/// fails, the bind fails with the errno of `tcpr_init`. The virtual IP may be bound on the backup, too.
///
/// # Safety
/// As for `bind`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_bind(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { hooks::bind(fd, address, length) }
}

/// As `listen`, on any descriptor.
///
/// # Safety
/// As for `listen`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_listen(fd: c_int, backlog: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { hooks::listen(fd, backlog) }
}

/// As `accept`. On a protected port, sessions that were taken over come first, as if their peers had just connected
/// (`tcpr_session_info` tells them from new ones).
///
/// # Safety
/// As for `accept`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_accept(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { hooks::accept(fd, address, length) }
}

/// As `accept4`; see `tcpr_accept`.
///
/// # Safety
/// As for `accept4`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_accept4(fd: c_int, address: *mut sockaddr, length: *mut socklen_t, flags: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { hooks::accept4(fd, address, length, flags) }
}

/// As `connect`. A connection to a destination of the configuration (`[[service.outgoing]]`) is protected if its TCP socket
/// was made by `tcpr_socket`, or if the program runs under `tcpr run`. It comes from the virtual IP. After a failover, a
/// connect to the same destination gives the old connection back, where it left off (`tcpr_session_info` tells).
///
/// On a backup such a connect waits until the member is master, as for a host that does not answer. The socket must not be
/// bound, or be bound to the virtual IP. The port that `getsockname` gives may differ from the one that the peer sees.
///
/// Errors beside those of `connect`: EINVAL (the socket is bound to another address; `tcpr_strerror` says more), ENOTCONN (this
/// process cannot join a manager).
///
/// # Safety
/// As for `connect`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_connect(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { hooks::connect(fd, address, length) }
}

/// As `shutdown`, on any descriptor.
///
/// # Safety
/// As for `shutdown`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_shutdown(fd: c_int, how: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { hooks::shutdown(fd, how) }
}

/// As `getsockname`, on any descriptor.
///
/// # Safety
/// As for `getsockname`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_getsockname(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { libc::getsockname(fd, address, length) }
}

/// As `getpeername`, on any descriptor.
///
/// # Safety
/// As for `getpeername`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_getpeername(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { libc::getpeername(fd, address, length) }
}

/// As `getsockopt`, on any descriptor. TCP_ZEROCOPY_RECEIVE is refused with ENOPROTOOPT on protected sockets.
///
/// # Safety
/// As for `getsockopt`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    length: *mut socklen_t,
) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { hooks::getsockopt(fd, level, name, value, length) }
}

/// As `setsockopt`, on any descriptor. On protected sockets it refuses to turn on what protection does not go together with:
/// SO_ZEROCOPY and TCP_FASTOPEN_CONNECT (ENOPROTOOPT), TCP_ULP (ENOENT), TCP_REPAIR (EPERM).
///
/// # Safety
/// As for `setsockopt`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    length: socklen_t,
) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { hooks::setsockopt(fd, level, name, value, length) }
}
