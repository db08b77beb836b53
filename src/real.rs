//! The C library's own functions, found behind ours.
//!
//! Each is looked up when it is first called, without memory or locks of ours: hooks run before any
//! constructor, in signal handlers and inside other people's allocators.

use std::ffi::{c_char, c_void, CStr};
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{
    c_int, c_long, c_uint, clockid_t, epoll_event, fd_set, gid_t, id_t, idtype_t, iovec, mmsghdr, msghdr, nfds_t, off64_t, off_t,
    pid_t, pollfd, pthread_cond_t, pthread_mutex_t, pthread_t, rusage, sem_t, sembuf, sigaction as SigAction, sighandler_t,
    siginfo_t, sigset_t, size_t, sockaddr, socklen_t, ssize_t, timespec, timeval, uid_t, FILE,
};

use crate::errno;
use crate::hook_list::for_each_hook;

/// What a function that this C library lacks returns, beside ENOSYS.
trait Lacking {
    const RESULT: Self;
}

impl Lacking for c_int {
    const RESULT: Self = -1;
}

impl Lacking for c_uint {
    const RESULT: Self = 0;
}

impl Lacking for usize {
    const RESULT: Self = libc::SIG_ERR;
}

impl Lacking for isize {
    const RESULT: Self = -1;
}

impl Lacking for c_long {
    const RESULT: Self = -1;
}

impl Lacking for *mut FILE {
    const RESULT: Self = std::ptr::null_mut();
}

impl Lacking for () {
    const RESULT: Self = ();
}

macro_rules! real_functions {
    (
        reads { $(fn $r_name:ident($($r_arg:ident: $r_type:ty),*) -> $r_ret:ty, polls $r_polls:expr;)* }
        by_descriptor { $(fn $d_name:ident($($d_arg:ident: $d_type:ty),*) -> $d_ret:ty;)* }
        waits { $(fn $w_name:ident($($w_arg:ident: $w_type:ty),*) -> $w_ret:ty, polls $polls:expr;)* }
        always { $(fn $a_name:ident($($a_arg:ident: $a_type:ty),*) -> $a_ret:ty;)* }
    ) => {
        $(real_functions! { @one $r_name($($r_arg: $r_type),*) -> $r_ret })*
        $(real_functions! { @one $d_name($($d_arg: $d_type),*) -> $d_ret })*
        $(real_functions! { @one $w_name($($w_arg: $w_type),*) -> $w_ret })*
        $(real_functions! { @one $a_name($($a_arg: $a_type),*) -> $a_ret })*
    };
    (@one $name:ident($($arg:ident: $type:ty),*) -> $ret:ty) => {
        /// As in the C library.
        ///
        /// # Safety
        /// As in the C library.
        #[allow(non_snake_case)] // C's names
        #[inline]
        pub unsafe fn $name($($arg: $type),*) -> $ret {
            static FOUND: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
            let mut found = FOUND.load(Ordering::Relaxed);
            if found.is_null() {
                found = find(concat!(stringify!($name), "\0"));
                if found.is_null() {
                    errno::set(libc::ENOSYS);
                    return Lacking::RESULT;
                }
                FOUND.store(found, Ordering::Relaxed);
            }
            // SAFETY: the C library's function of this name has this signature on 64-bit Linux; the fixed
            // arguments of a variadic one travel like any others.
            let function = unsafe {
                std::mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn($($type),*) -> $ret>(found)
            };
            // SAFETY: the caller keeps the C library's contract.
            unsafe { function($($arg),*) }
        }
    };
}
for_each_hook!(real_functions);

#[cold]
fn find(name: &'static str) -> *mut c_void {
    let Ok(name) = CStr::from_bytes_with_nul(name.as_bytes()) else { return std::ptr::null_mut() };
    // glibc keeps an older pthread_cond_* with another layout, and dlsym may return the oldest.
    if name.to_bytes().starts_with(b"pthread_cond_") {
        // SAFETY: both strings are NUL-terminated.
        let found = unsafe { libc::dlvsym(libc::RTLD_NEXT, name.as_ptr(), c"GLIBC_2.3.2".as_ptr()) };
        if !found.is_null() {
            return found;
        }
    }
    // SAFETY: name is NUL-terminated.
    unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) }
}

/// Whether a plain name reaches this library first: not so when it was dlopened.
pub fn interposes() -> bool {
    // SAFETY: the name is NUL-terminated.
    let first = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"read".as_ptr()) };
    // Our own `read` cannot be asked for its address: it is a symbol like any other, and would name the first one.
    object_of(first).is_some_and(|object| object_of(interposes as *const c_void) == Some(object))
}

/// Whether CPython runs this program, or is part of it.
pub fn has_cpython() -> bool {
    // SAFETY: the name is NUL-terminated.
    !unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"PyEval_RestoreThread".as_ptr()) }.is_null()
}

/// Whether the process has had no other thread than this one; where the C library does not say, it may have.
pub fn is_single_threaded() -> bool {
    // SAFETY: the name is NUL-terminated.
    let flag = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__libc_single_threaded".as_ptr()) };
    // SAFETY: a char of the C library's, which it alone changes.
    !flag.is_null() && unsafe { flag.cast::<c_char>().read_volatile() } != 0
}

/// Where the library or program that an address belongs to begins.
fn object_of(address: *const c_void) -> Option<*mut c_void> {
    // SAFETY: all-zero is a valid Dl_info.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: any address may be asked for; info is live and writable.
    (unsafe { libc::dladdr(address, &raw mut info) } != 0).then_some(info.dli_fbase)
}

/// cookie_io_functions_t of glibc's <stdio.h>.
#[repr(C)]
pub struct CookieCalls {
    pub read: unsafe extern "C-unwind" fn(*mut c_void, *mut c_char, size_t) -> ssize_t,
    pub write: unsafe extern "C-unwind" fn(*mut c_void, *const c_char, size_t) -> ssize_t,
    pub seek: unsafe extern "C-unwind" fn(*mut c_void, *mut off64_t, c_int) -> c_int,
    pub close: unsafe extern "C-unwind" fn(*mut c_void) -> c_int,
}

extern "C-unwind" {
    /// Acts on a pending cancellation, which our attempts by number would otherwise skip.
    pub fn pthread_testcancel();
    /// A stream that calls functions of ours with the cookie.
    pub fn fopencookie(cookie: *mut c_void, mode: *const c_char, calls: CookieCalls) -> *mut FILE;
    /// Keeps others from the C library's list of streams, as fork does after its handlers have run. Recursive.
    fn _IO_list_lock();
    fn _IO_list_unlock();
    fn _IO_list_resetlock();
    // Not in the libc crate.
    fn ftrylockfile(file: *mut FILE) -> c_int;
    fn funlockfile(file: *mut FILE);
    fn fflush_unlocked(file: *mut FILE) -> c_int;
    /// Not in the libc crate.
    fn pthread_atfork(prepare: Option<extern "C" fn()>, parent: Option<extern "C" fn()>, child: Option<extern "C" fn()>)
        -> c_int;
}

/// The C library's list of streams, which whoever flushes them all holds while our hooks write: it comes before any lock of
/// ours.
pub fn lock_stream_list() {
    // SAFETY: takes nothing; unlocked, or reset in a forked child, by the functions below.
    unsafe { _IO_list_lock() }
}

/// Ends [`lock_stream_list`].
pub fn unlock_stream_list() {
    // SAFETY: locked by this thread.
    unsafe { _IO_list_unlock() }
}

/// Ends it in the child of a fork, whose only thread this is.
pub fn reset_stream_list() {
    // SAFETY: no other thread can hold it.
    unsafe { _IO_list_resetlock() }
}

/// Writes what is in a stream's buffer; not if another thread has locked the stream.
///
/// # Safety
/// An open stream.
pub unsafe fn flush_unless_locked(file: *mut FILE) {
    // SAFETY: an open stream, says the caller.
    unsafe {
        if ftrylockfile(file) == 0 {
            fflush_unlocked(file);
            funlockfile(file);
        }
    }
}

/// Has functions called around every fork of this process.
pub fn at_fork(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    // SAFETY: the functions live as long as the library, which is never unloaded (-z nodelete).
    unsafe { pthread_atfork(Some(prepare), Some(parent), Some(child)) };
}
