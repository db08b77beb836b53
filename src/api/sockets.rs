//! Sockets and their life.

use libc::{c_int, c_void, sockaddr, socklen_t};

use crate::{ops, preload};

/// As `socket`. A TCP socket made by it is protected if it is bound to a protected port and listens.
///
/// # Safety
/// As for `socket`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    ops::protected_socket(domain, kind, protocol)
}

/// As `bind`. The first one to an address with a port joins the manager, as `tcpr_init(NULL)` does; if that fails, so does it,
/// with errno ENOTCONN or what `tcpr_init` gives. A virtual address may be bound on the backup too.
///
/// # Safety
/// As for `bind`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_bind(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { preload::bind(fd, address, length) }
}

/// As `listen`, on any descriptor.
///
/// # Safety
/// As for `listen`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_listen(fd: c_int, backlog: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { preload::listen(fd, backlog) }
}

/// As `accept`. On a protected port, connections that were taken over come first, as if they had just connected.
///
/// # Safety
/// As for `accept`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_accept(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { preload::accept(fd, address, length) }
}

/// As `accept4`; see `tcpr_accept`.
///
/// # Safety
/// As for `accept4`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_accept4(fd: c_int, address: *mut sockaddr, length: *mut socklen_t, flags: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { preload::accept4(fd, address, length, flags) }
}

/// As `connect`. Connections of TCP sockets to destinations of the configuration (`[[service.outgoing]]`) are protected, if
/// the socket was made by `tcpr_socket` or the program runs under `tcpr run`: they come from the virtual IP, and after a
/// failover connecting to the same destination gives the old connection back, where it left off (`tcpr_session_info` tells).
/// On a backup they wait for its turn to be master, as for a host that does not answer. The socket is not bound, or bound to
/// the virtual IP; `getsockname` tells a port that may be another than the one that the peer sees. Errors beside those of
/// `connect`: EINVAL (bound to another address; `tcpr_strerror` says more), ENOTCONN (no manager).
///
/// # Safety
/// As for `connect`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_connect(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { preload::connect(fd, address, length) }
}

/// As `shutdown`, on any descriptor.
///
/// # Safety
/// As for `shutdown`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_shutdown(fd: c_int, how: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { preload::shutdown(fd, how) }
}

/// As `getsockname`.
///
/// # Safety
/// As for `getsockname`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_getsockname(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { libc::getsockname(fd, address, length) }
}

/// As `getpeername`.
///
/// # Safety
/// As for `getpeername`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_getpeername(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { libc::getpeername(fd, address, length) }
}

/// As `getsockopt`.
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
    unsafe { preload::getsockopt(fd, level, name, value, length) }
}

/// As `setsockopt`.
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
    unsafe { preload::setsockopt(fd, level, name, value, length) }
}
