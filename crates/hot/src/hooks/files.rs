//! Files: each member has its own. Their state and what the kernel makes up (/proc, /dev/urandom) come from the trace.

use std::ffi::{c_char, c_int, c_uint, CStr};

use libc::stat as Stat;
use tcpr_session::trace::Call;

use super::exported::hooks;
use crate::descriptors::Kind;
use crate::errno;
use crate::forms::{live, structure};

/// What a path leads to.
///
/// # Safety
/// Null or NUL-terminated.
pub unsafe fn kind_of(path: *const c_char) -> Kind {
    if path.is_null() {
        return Kind::Own;
    }
    // SAFETY: as the caller says.
    let path = unsafe { CStr::from_ptr(path) }.to_bytes();
    let outside = path == b"/dev/urandom" || path == b"/dev/random" || path.starts_with(b"/proc/") || path.starts_with(b"/sys/");
    if outside {
        Kind::Outside
    } else {
        Kind::Own
    }
}

/// # Safety
/// As for `open`.
unsafe fn open_any(path: *const c_char, live: impl FnOnce() -> i64) -> c_int {
    // SAFETY: as the caller says.
    let kind = unsafe { kind_of(path) };
    errno::c(super::descriptors::new_one(Call::Open, 0, kind, false, live)) as c_int
}

hooks! {
    fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
        open_any(path, || live!(next(path, flags, mode)))
    }

    fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
        open_any(path, || live!(next(path, flags, mode)))
    }

    fn openat(at: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
        open_any(path, || live!(next(at, path, flags, mode)))
    }

    fn openat64(at: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
        open_any(path, || live!(next(at, path, flags, mode)))
    }

    fn creat(path: *const c_char, mode: c_uint) -> c_int {
        open_any(path, || live!(next(path, mode)))
    }

    fn creat64(path: *const c_char, mode: c_uint) -> c_int {
        open_any(path, || live!(next(path, mode)))
    }

    fn __open_2(path: *const c_char, flags: c_int) -> c_int {
        open_any(path, || live!(next(path, flags)))
    }

    fn __open64_2(path: *const c_char, flags: c_int) -> c_int {
        open_any(path, || live!(next(path, flags)))
    }

    fn __openat_2(at: c_int, path: *const c_char, flags: c_int) -> c_int {
        open_any(path, || live!(next(at, path, flags)))
    }

    fn __openat64_2(at: c_int, path: *const c_char, flags: c_int) -> c_int {
        open_any(path, || live!(next(at, path, flags)))
    }

    fn fstat(fd: c_int, to: *mut Stat) -> c_int {
        errno::c(structure(Call::Stat, fd, to, || live!(next(fd, to)))) as c_int
    }

    fn fstat64(fd: c_int, to: *mut Stat) -> c_int {
        errno::c(structure(Call::Stat, fd, to, || live!(next(fd, to)))) as c_int
    }

    fn stat(path: *const c_char, to: *mut Stat) -> c_int {
        errno::c(structure(Call::Stat, -1, to, || live!(next(path, to)))) as c_int
    }

    fn stat64(path: *const c_char, to: *mut Stat) -> c_int {
        errno::c(structure(Call::Stat, -1, to, || live!(next(path, to)))) as c_int
    }

    fn lstat(path: *const c_char, to: *mut Stat) -> c_int {
        errno::c(structure(Call::Stat, -1, to, || live!(next(path, to)))) as c_int
    }

    fn lstat64(path: *const c_char, to: *mut Stat) -> c_int {
        errno::c(structure(Call::Stat, -1, to, || live!(next(path, to)))) as c_int
    }

    fn fstatat(at: c_int, path: *const c_char, to: *mut Stat, flags: c_int) -> c_int {
        errno::c(structure(Call::Stat, -1, to, || live!(next(at, path, to, flags)))) as c_int
    }

    fn fstatat64(at: c_int, path: *const c_char, to: *mut Stat, flags: c_int) -> c_int {
        errno::c(structure(Call::Stat, -1, to, || live!(next(at, path, to, flags)))) as c_int
    }

    fn statx(at: c_int, path: *const c_char, flags: c_int, mask: c_uint, to: *mut libc::statx) -> c_int {
        errno::c(structure(Call::Stat, -1, to, || live!(next(at, path, flags, mask, to)))) as c_int
    }

    fn statvfs(path: *const c_char, to: *mut libc::statvfs) -> c_int {
        errno::c(structure(Call::Stat, -1, to, || live!(next(path, to)))) as c_int
    }

    fn statvfs64(path: *const c_char, to: *mut libc::statvfs) -> c_int {
        errno::c(structure(Call::Stat, -1, to, || live!(next(path, to)))) as c_int
    }

    fn fstatvfs(fd: c_int, to: *mut libc::statvfs) -> c_int {
        errno::c(structure(Call::Stat, fd, to, || live!(next(fd, to)))) as c_int
    }

    fn fstatvfs64(fd: c_int, to: *mut libc::statvfs) -> c_int {
        errno::c(structure(Call::Stat, fd, to, || live!(next(fd, to)))) as c_int
    }

    fn statfs(path: *const c_char, to: *mut libc::statfs) -> c_int {
        errno::c(structure(Call::Stat, -1, to, || live!(next(path, to)))) as c_int
    }

    fn fstatfs(fd: c_int, to: *mut libc::statfs) -> c_int {
        errno::c(structure(Call::Stat, fd, to, || live!(next(fd, to)))) as c_int
    }
}
