//! Descriptors.

use libc::c_int;

use crate::hooks;

/// As `close`, on any descriptor.
///
/// # Safety
/// As for `close`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_close(fd: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { hooks::close(fd) }
}

/// As `dup`, on any descriptor.
///
/// # Safety
/// As for `dup`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_dup(fd: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { hooks::dup(fd) }
}

/// As `dup2`, on any descriptor.
///
/// # Safety
/// As for `dup2`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_dup2(from: c_int, to: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { hooks::dup2(from, to) }
}

/// As `dup3`, on any descriptor.
///
/// # Safety
/// As for `dup3`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { hooks::dup3(from, to, flags) }
}
