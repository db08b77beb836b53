//! Files: each member has its own. Their state and what the kernel makes up (/proc, /dev/urandom) come from the trace.

use std::ffi::{c_char, c_int, c_uint, c_void, CStr};

use libc::{off64_t, size_t, ssize_t, stat as Stat, FILE};
use tcpr_session::trace::Call;

use crate::descriptors::Kind;
use crate::forms::{hooks, live, structure};
use crate::{errno, thread};

/// What a path leads to.
///
/// # Safety
/// Null or NUL-terminated.
unsafe fn kind_of(path: *const c_char) -> Kind {
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

/// cookie_io_functions_t of glibc's <stdio.h>.
#[repr(C)]
struct CookieCalls {
    read: unsafe extern "C-unwind" fn(*mut c_void, *mut c_char, size_t) -> ssize_t,
    write: Option<unsafe extern "C-unwind" fn(*mut c_void, *const c_char, size_t) -> ssize_t>,
    seek: Option<unsafe extern "C-unwind" fn(*mut c_void, *mut off64_t, c_int) -> c_int>,
    close: unsafe extern "C-unwind" fn(*mut c_void) -> c_int,
}

extern "C-unwind" {
    fn fopencookie(cookie: *mut c_void, mode: *const c_char, calls: CookieCalls) -> *mut FILE;
}

unsafe extern "C-unwind" fn read_cookie(cookie: *mut c_void, buffer: *mut c_char, n: size_t) -> ssize_t {
    // SAFETY: the C library's buffer; the cookie is a descriptor.
    unsafe { super::data::read(cookie as usize as c_int, buffer.cast(), n) }
}

unsafe extern "C-unwind" fn close_cookie(cookie: *mut c_void) -> c_int {
    // SAFETY: the cookie is a descriptor.
    unsafe { super::descriptors::close(cookie as usize as c_int) }
}

/// A stream of what comes from outside reads by our hooks; the C library's own would not.
///
/// # Safety
/// As for `fopen`.
unsafe fn open_stream(path: *const c_char, mode: *const c_char, live: impl FnOnce() -> *mut FILE) -> *mut FILE {
    // SAFETY: as the caller says.
    unsafe {
        if mode.is_null() || *mode != b'r' as c_char || kind_of(path) != Kind::Outside {
            return thread::outside(live);
        }
        let fd = open(path, libc::O_RDONLY, 0);
        if fd < 0 {
            return std::ptr::null_mut();
        }
        let calls = CookieCalls { read: read_cookie, write: None, seek: None, close: close_cookie };
        fopencookie(fd as usize as *mut c_void, mode, calls)
    }
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

    fn fopen(path: *const c_char, mode: *const c_char) -> *mut FILE {
        open_stream(path, mode, || next(path, mode))
    }

    fn fopen64(path: *const c_char, mode: *const c_char) -> *mut FILE {
        open_stream(path, mode, || next(path, mode))
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
