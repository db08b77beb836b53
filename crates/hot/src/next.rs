//! The functions of the same names that come next: libtcpr's, or the C library's.

use std::ffi::{c_char, c_void, CStr};

/// What a function that nobody has returns, beside ENOSYS.
pub trait Lacking {
    const RESULT: Self;
}

impl Lacking for i32 {
    const RESULT: Self = -1;
}

impl Lacking for u32 {
    const RESULT: Self = 0;
}

impl Lacking for isize {
    const RESULT: Self = -1;
}

impl Lacking for usize {
    const RESULT: Self = usize::MAX;
}

impl Lacking for i64 {
    const RESULT: Self = -1;
}

impl<T> Lacking for *mut T {
    const RESULT: Self = std::ptr::null_mut();
}

impl Lacking for () {
    const RESULT: Self = ();
}

/// The body of a function that calls the next one of its name.
macro_rules! call_next {
    ($name:ident($($arg:ident: $type:ty),*) -> $ret:ty) => {{
        static FOUND: std::sync::atomic::AtomicPtr<std::ffi::c_void> = std::sync::atomic::AtomicPtr::new(std::ptr::null_mut());
        let mut found = FOUND.load(std::sync::atomic::Ordering::Relaxed);
        if found.is_null() {
            found = $crate::next::find(concat!(stringify!($name), "\0"));
            if found.is_null() {
                $crate::errno::set(libc::ENOSYS);
                return $crate::next::Lacking::RESULT;
            }
            FOUND.store(found, std::sync::atomic::Ordering::Relaxed);
        }
        // SAFETY: the function of this name has this signature on 64-bit Linux; the fixed arguments of a variadic one
        // travel like any others.
        let function = unsafe {
            std::mem::transmute::<*mut std::ffi::c_void, unsafe extern "C-unwind" fn($($type),*) -> $ret>(found)
        };
        // SAFETY: the caller keeps the C library's contract.
        unsafe { function($($arg),*) }
    }};
}
pub(crate) use call_next;

#[cold]
pub fn find(name: &'static str) -> *mut c_void {
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

/// A function that any library may have.
pub fn find_anywhere(name: &CStr) -> *mut c_void {
    // SAFETY: name is NUL-terminated.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr().cast::<c_char>()) }
}

/// Functions that hooks of another name call.
macro_rules! next_functions {
    ($(fn $name:ident($($arg:ident: $type:ty),*) -> $ret:ty;)*) => {$(
        /// The next function of this name.
        ///
        /// # Safety
        /// As in the C library.
        pub unsafe fn $name($($arg: $type),*) -> $ret {
            call_next!($name($($arg: $type),*) -> $ret)
        }
    )*};
}

use libc::{epoll_event, fd_set, nfds_t, pollfd, pthread_t, sigset_t, sockaddr, socklen_t, timespec};

next_functions! {
    fn accept4(fd: i32, address: *mut sockaddr, length: *mut socklen_t, flags: i32) -> i32;
    fn dup3(from: i32, to: i32, flags: i32) -> i32;
    fn epoll_pwait(epoll: i32, events: *mut epoll_event, max: i32, timeout: i32, mask: *const sigset_t) -> i32;
    fn ppoll(fds: *mut pollfd, n: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> i32;
    fn pselect(n: i32, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *const timespec, mask: *const sigset_t) -> i32;
    fn nanosleep(time: *const timespec, left: *mut timespec) -> i32;
    fn sigsuspend(mask: *const sigset_t) -> i32;
    fn sigaction(signal: i32, new: *const libc::sigaction, old: *mut libc::sigaction) -> i32;
    fn close(fd: i32) -> i32;
    fn socket(domain: i32, kind: i32, protocol: i32) -> i32;
    fn bind(fd: i32, address: *const sockaddr, length: socklen_t) -> i32;
    fn listen(fd: i32, backlog: i32) -> i32;
    fn setsockopt(fd: i32, level: i32, name: i32, value: *const c_void, length: socklen_t) -> i32;
    fn fork() -> i32;
    fn pthread_clockjoin_np(thread: pthread_t, result: *mut *mut c_void, clock: i32, until: *const timespec) -> i32;
    fn pthread_cond_clockwait(condition: *mut c_void, mutex: *mut c_void, clock: i32, until: *const timespec) -> i32;
    fn pthread_mutex_lock(mutex: *mut c_void) -> i32;
    fn pthread_mutex_unlock(mutex: *mut c_void) -> i32;
    fn pthread_rwlock_rdlock(lock: *mut c_void) -> i32;
    fn pthread_rwlock_wrlock(lock: *mut c_void) -> i32;
    fn pthread_spin_lock(lock: *mut c_void) -> i32;
    fn sem_wait(semaphore: *mut c_void) -> i32;
    fn sem_clockwait(semaphore: *mut c_void, clock: i32, until: *const timespec) -> i32;
    fn fdopen(fd: i32, mode: *const c_char) -> *mut libc::FILE;
    fn getrandom(buffer: *mut c_void, n: usize, flags: u32) -> isize;
}
