//! Streams of <stdio.h> on descriptors that are traced: the C library would read and write past our hooks.

use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

use libc::{off64_t, size_t, ssize_t, FILE};

use super::exported::hooks;
use crate::activity::is_threaded;
use crate::descriptors::{self, Kind};
use crate::next::{self, call_next};
use crate::{start, thread};

/// cookie_io_functions_t of glibc's <stdio.h>.
#[repr(C)]
struct CookieCalls {
    read: unsafe extern "C-unwind" fn(*mut c_void, *mut c_char, size_t) -> ssize_t,
    write: unsafe extern "C-unwind" fn(*mut c_void, *const c_char, size_t) -> ssize_t,
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

/// All or nothing, as the C library wants it.
unsafe extern "C-unwind" fn write_cookie(cookie: *mut c_void, buffer: *const c_char, n: size_t) -> ssize_t {
    let mut done = 0;
    while done < n {
        // SAFETY: the C library's buffer; the cookie is a descriptor.
        let now = unsafe { super::data::write(cookie as usize as c_int, buffer.add(done).cast(), n - done) };
        if now <= 0 {
            break;
        }
        done += now as usize;
    }
    done as ssize_t
}

unsafe extern "C-unwind" fn close_cookie(cookie: *mut c_void) -> c_int {
    // SAFETY: the cookie is a descriptor.
    unsafe { super::descriptors::close(cookie as usize as c_int) }
}

/// Our streams, and their descriptors, which the C library does not know.
static STREAMS: [(AtomicPtr<FILE>, AtomicI32); 1024] =
    [const { (AtomicPtr::new(std::ptr::null_mut()), AtomicI32::new(-1)) }; 1024];

/// A stream of ours on a descriptor.
///
/// # Safety
/// As for `fdopen`.
pub unsafe fn stream_on(fd: c_int, mode: *const c_char) -> *mut FILE {
    let calls = CookieCalls { read: read_cookie, write: write_cookie, seek: None, close: close_cookie };
    // SAFETY: as the caller says.
    let file = unsafe { fopencookie(fd as usize as *mut c_void, mode, calls) };
    if !file.is_null() {
        let null = std::ptr::null_mut();
        let free = |(at, _): &&(AtomicPtr<FILE>, AtomicI32)| {
            at.compare_exchange(null, file, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        if let Some((_, number)) = STREAMS.iter().find(free) {
            number.store(fd, Ordering::Release);
        }
    }
    file
}

fn place_of(file: *mut FILE) -> Option<&'static (AtomicPtr<FILE>, AtomicI32)> {
    STREAMS.iter().find(|(at, _)| at.load(Ordering::Acquire) == file)
}

/// A stream of what comes from outside reads by our hooks.
///
/// # Safety
/// As for `fopen`.
unsafe fn open_stream(path: *const c_char, mode: *const c_char, live: impl FnOnce() -> *mut FILE) -> *mut FILE {
    // SAFETY: as the caller says.
    unsafe {
        let outside = super::files::kind_of(path) == Kind::Outside;
        let flags = flags_of(mode).filter(|flags| outside && *flags == libc::O_RDONLY || !outside && is_threaded());
        let Some(flags) = flags else { return thread::outside(live) };
        // Threads get numbers in the order of the trace.
        let fd = super::files::open(path, flags, 0o666);
        if fd < 0 {
            return std::ptr::null_mut();
        }
        if outside {
            stream_on(fd, mode)
        } else {
            thread::outside(|| next::fdopen(fd, mode))
        }
    }
}

/// What `fopen` opens with.
///
/// # Safety
/// Null or NUL-terminated.
unsafe fn flags_of(mode: *const c_char) -> Option<c_int> {
    if mode.is_null() {
        return None;
    }
    // SAFETY: as the caller says.
    let mode = unsafe { std::ffi::CStr::from_ptr(mode) }.to_bytes();
    let both = mode.contains(&b'+');
    let one_way = |flag| if both { libc::O_RDWR } else { flag };
    let flags = match mode.first()? {
        b'r' => one_way(libc::O_RDONLY),
        b'w' => one_way(libc::O_WRONLY) | libc::O_CREAT | libc::O_TRUNC,
        b'a' => one_way(libc::O_WRONLY) | libc::O_CREAT | libc::O_APPEND,
        _ => return None,
    };
    let exclusive = if mode.contains(&b'x') { libc::O_EXCL } else { 0 };
    let cloexec = if mode.contains(&b'e') { libc::O_CLOEXEC } else { 0 };
    Some(flags | exclusive | cloexec)
}

hooks! {
    fn fopen(path: *const c_char, mode: *const c_char) -> *mut FILE {
        open_stream(path, mode, || next(path, mode))
    }

    fn fopen64(path: *const c_char, mode: *const c_char) -> *mut FILE {
        open_stream(path, mode, || next(path, mode))
    }

    fn fdopen(fd: c_int, mode: *const c_char) -> *mut FILE {
        if fd > 2 && descriptors::is_traced(fd) { stream_on(fd, mode) } else { thread::outside(|| next(fd, mode)) }
    }
}

// Streams stay ours when nothing is recorded any more.

/// As in the C library.
///
/// # Safety
/// As in the C library.
#[no_mangle]
pub unsafe extern "C-unwind" fn fileno(file: *mut FILE) -> c_int {
    match place_of(file) {
        Some((_, fd)) => fd.load(Ordering::Acquire),
        None => call_next!(fileno(file: *mut FILE) -> c_int),
    }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
#[no_mangle]
pub unsafe extern "C-unwind" fn fileno_unlocked(file: *mut FILE) -> c_int {
    match place_of(file) {
        Some((_, fd)) => fd.load(Ordering::Acquire),
        None => call_next!(fileno_unlocked(file: *mut FILE) -> c_int),
    }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
#[no_mangle]
pub unsafe extern "C-unwind" fn fclose(file: *mut FILE) -> c_int {
    if let Some((at, _)) = place_of(file) {
        at.store(std::ptr::null_mut(), Ordering::Release);
    } else if !start::passes() && is_threaded() {
        // SAFETY: an open stream, says the caller.
        let fd = thread::outside(|| unsafe { fileno(file) });
        if fd >= 0 {
            // SAFETY: as above.
            return super::descriptors::closed(fd, || unsafe { close_stream(file) });
        }
    }
    // SAFETY: the caller keeps the C library's contract.
    unsafe { close_stream(file) }
}

unsafe fn close_stream(file: *mut FILE) -> c_int {
    call_next!(fclose(file: *mut FILE) -> c_int)
}
