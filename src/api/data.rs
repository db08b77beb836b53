//! Reading and writing.

use libc::{c_int, c_void, iovec, msghdr, off_t, size_t, sockaddr, socklen_t, ssize_t};

use crate::hooks;

/// As `read`, on any descriptor.
///
/// # Safety
/// As for `read`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_read(fd: c_int, buffer: *mut c_void, n: size_t) -> ssize_t {
    // SAFETY: the caller's arguments.
    unsafe { hooks::read(fd, buffer, n) }
}

/// As `readv`, on any descriptor.
///
/// # Safety
/// As for `readv`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_readv(fd: c_int, iov: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: the caller's arguments.
    unsafe { hooks::readv(fd, iov, count) }
}

/// As `recv`, on any descriptor.
///
/// # Safety
/// As for `recv`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_recv(fd: c_int, buffer: *mut c_void, n: size_t, flags: c_int) -> ssize_t {
    // SAFETY: the caller's arguments.
    unsafe { hooks::recv(fd, buffer, n, flags) }
}

/// As `recvfrom`, on any descriptor.
///
/// # Safety
/// As for `recvfrom`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_recvfrom(
    fd: c_int,
    buffer: *mut c_void,
    n: size_t,
    flags: c_int,
    address: *mut sockaddr,
    length: *mut socklen_t,
) -> ssize_t {
    // SAFETY: the caller's arguments.
    unsafe { hooks::recvfrom(fd, buffer, n, flags, address, length) }
}

/// As `recvmsg`, on any descriptor.
///
/// # Safety
/// As for `recvmsg`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's arguments.
    unsafe { hooks::recvmsg(fd, message, flags) }
}

/// As `write`, on any descriptor.
///
/// # Safety
/// As for `write`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_write(fd: c_int, buffer: *const c_void, n: size_t) -> ssize_t {
    // SAFETY: the caller's arguments.
    unsafe { hooks::write(fd, buffer, n) }
}

/// As `writev`, on any descriptor.
///
/// # Safety
/// As for `writev`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_writev(fd: c_int, iov: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: the caller's arguments.
    unsafe { hooks::writev(fd, iov, count) }
}

/// As `send`, on any descriptor. MSG_OOB is refused with EOPNOTSUPP on protected connections; so it is by `tcpr_sendto` and
/// `tcpr_sendmsg`.
///
/// # Safety
/// As for `send`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_send(fd: c_int, buffer: *const c_void, n: size_t, flags: c_int) -> ssize_t {
    // SAFETY: the caller's arguments.
    unsafe { hooks::send(fd, buffer, n, flags) }
}

/// As `sendto`, on any descriptor.
///
/// # Safety
/// As for `sendto`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_sendto(
    fd: c_int,
    buffer: *const c_void,
    n: size_t,
    flags: c_int,
    address: *const sockaddr,
    length: socklen_t,
) -> ssize_t {
    // SAFETY: the caller's arguments.
    unsafe { hooks::sendto(fd, buffer, n, flags, address, length) }
}

/// As `sendmsg`, on any descriptor.
///
/// # Safety
/// As for `sendmsg`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's arguments.
    unsafe { hooks::sendmsg(fd, message, flags) }
}

/// As `sendfile`, on any descriptor.
///
/// # Safety
/// As for `sendfile`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_sendfile(fd: c_int, from: c_int, offset: *mut off_t, n: size_t) -> ssize_t {
    // SAFETY: the caller's arguments.
    unsafe { hooks::sendfile(fd, from, offset, n) }
}
