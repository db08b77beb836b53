//! System calls by number, and what they say of a descriptor.
//!
//! A system call by number is not a cancellation point. Between two steps of our bookkeeping everything is called by number,
//! so that a pthread_cancel can unwind only out of calls that block. Those are made with nothing of ours alive.

use std::ffi::c_void;
use std::mem;
use std::sync::atomic::AtomicU32;

use libc::{c_int, c_long, c_uint, msghdr, off64_t, size_t, sockaddr, socklen_t, ssize_t};

use crate::{errno, real};

/// A system call that returns a byte count, or -1 and errno. By the C library's `syscall`, not by our hook of that name.
macro_rules! raw {
    ($number:expr $(, $argument:expr)* $(,)?) => {{
        let given: &[c_long] = &[$($argument as c_long),*];
        let at = |i: usize| given.get(i).copied().unwrap_or(0);
        // SAFETY: the caller passes on what the application gave us, or its own live memory.
        unsafe { real::syscall($number, at(0), at(1), at(2), at(3), at(4), at(5)) as ssize_t }
    }};
}

/// Writes a few bytes of our own.
pub fn write(fd: c_int, bytes: &[u8]) -> ssize_t {
    raw!(libc::SYS_write, fd, bytes.as_ptr(), bytes.len())
}

/// A system call that changes the ids of this thread alone.
///
/// # Safety
/// As for the call of the C library: a pointer may be read through.
pub unsafe fn set_ids(number: c_long, [a, b, c]: [c_long; 3]) -> ssize_t {
    raw!(number, a, b, c)
}

/// `recvfrom` with the application's arguments.
///
/// # Safety
/// As for `recvfrom`: the pointers may be written through.
pub unsafe fn recvfrom(
    fd: c_int,
    buffer: *mut c_void,
    n: size_t,
    flags: c_int,
    address: *mut sockaddr,
    length: *mut socklen_t,
) -> ssize_t {
    raw!(libc::SYS_recvfrom, fd, buffer, n, flags, address, length)
}

/// `recvmsg` with the application's arguments.
///
/// # Safety
/// As for `recvmsg`: the message's pointers may be written through.
pub unsafe fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    raw!(libc::SYS_recvmsg, fd, message, flags)
}

/// Sends without blocking and without SIGPIPE, with the address and ancillary data of `extra`.
pub fn send(fd: c_int, bytes: &[u8], flags: c_int, extra: Option<&msghdr>) -> ssize_t {
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let Some(extra) = extra else {
        return raw!(libc::SYS_sendto, fd, bytes.as_ptr(), bytes.len(), flags, 0, 0);
    };
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let message = msghdr { msg_iov: &mut iov, msg_iovlen: 1, ..*extra };
    raw!(libc::SYS_sendmsg, fd, &raw const message, flags)
}

/// `splice` with the application's arguments.
///
/// # Safety
/// As for `splice`: the pointers may be written through.
pub unsafe fn splice(from: c_int, from_at: *mut off64_t, to: c_int, to_at: *mut off64_t, n: size_t, flags: c_uint) -> ssize_t {
    raw!(libc::SYS_splice, from, from_at, to, to_at, n, flags)
}

/// Reads what there is.
pub fn read(fd: c_int, to: &mut [u8]) -> ssize_t {
    raw!(libc::SYS_read, fd, to.as_mut_ptr(), to.len())
}

/// A pipe of our own: where it is read, and where it is written.
pub fn pipe() -> Option<[c_int; 2]> {
    let mut ends = [0; 2];
    (raw!(libc::SYS_pipe2, ends.as_mut_ptr(), libc::O_CLOEXEC) == 0).then_some(ends)
}

/// Whether the descriptor is a pipe.
pub fn is_pipe(fd: c_int) -> bool {
    errno::kept(|| raw!(libc::SYS_fcntl, fd, libc::F_GETPIPE_SZ, 0) > 0)
}

/// Gives one pipe the capacity of another, if it may.
pub fn set_capacity_of(pipe: c_int, other: c_int) {
    let size = raw!(libc::SYS_fcntl, other, libc::F_GETPIPE_SZ, 0);
    if size > 0 {
        raw!(libc::SYS_fcntl, pipe, libc::F_SETPIPE_SZ, size);
    }
}

/// Reads a file at a position.
pub fn pread(fd: c_int, to: &mut [u8], position: i64) -> ssize_t {
    raw!(libc::SYS_pread64, fd, to.as_mut_ptr(), to.len(), position)
}

/// Makes pages present as `madvise` can. False: the kernel does not do it.
pub fn advise(from: usize, bytes: usize, advice: c_int) -> bool {
    raw!(libc::SYS_madvise, from, bytes, advice) == 0
}

/// Waits while the word is `value`, or until somebody wakes us.
pub fn futex_wait(word: &AtomicU32, value: u32) {
    let wait = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    raw!(libc::SYS_futex, word.as_ptr(), wait, value, std::ptr::null::<libc::timespec>());
}

/// Wakes one who waits for the word.
pub fn futex_wake_one(word: &AtomicU32) {
    raw!(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 1);
}

/// Whether the kernel cannot read this page: it looks at a word of it, without waiting.
pub fn faults(page: usize) -> bool {
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let wait = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    raw!(libc::SYS_futex, page, wait, 0, &raw const at_once) < 0 && errno::get() == libc::EFAULT
}

/// What `poll` says of a descriptor now, without waiting.
pub fn is_ready(fd: c_int, events: libc::c_short) -> bool {
    poll_now(fd, events) > 0
}

/// 1: ready. 0: not ready. -1: errno.
fn poll_now(fd: c_int, events: libc::c_short) -> ssize_t {
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    raw!(libc::SYS_ppoll, &raw mut entry, 1, &raw const at_once, 0, 8)
}

/// Another number for a descriptor, the lowest that is free; -1 and EMFILE if none is.
pub fn dup(fd: c_int) -> c_int {
    raw!(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, 0) as c_int
}

/// Makes `to` another descriptor of what `from` is.
pub fn duplicate_to(from: c_int, to: c_int) {
    raw!(libc::SYS_dup3, from, to, 0);
}

/// Whether a descriptor does not block, and whether it is closed by an exec.
pub fn modes(fd: c_int) -> (bool, bool) {
    let flags = raw!(libc::SYS_fcntl, fd, libc::F_GETFD, 0);
    (is_nonblocking(fd), flags > 0 && flags as c_int & libc::FD_CLOEXEC != 0)
}

/// Closes a descriptor of ours.
pub fn close(fd: c_int) {
    raw!(libc::SYS_close, fd);
}

/// Ends one direction of a connection of ours.
pub fn shutdown(fd: c_int, how: c_int) {
    raw!(libc::SYS_shutdown, fd, how);
}

/// Accepts; no address is asked for.
///
/// # Safety
/// As for `accept4`.
pub unsafe fn accept(fd: c_int, address: *mut libc::sockaddr, length: *mut socklen_t, flags: c_int) -> c_int {
    raw!(libc::SYS_accept4, fd, address, length, flags) as c_int
}

/// Sends the signal to the calling thread, as the kernel does for a broken pipe.
pub fn raise_sigpipe() {
    let (process, thread) = (raw!(libc::SYS_getpid), raw!(libc::SYS_gettid));
    raw!(libc::SYS_tgkill, process, thread, libc::SIGPIPE);
}

/// Which signals this thread has blocked, one bit each, from signal 1 on.
pub fn set_signal_mask(mask: u64) {
    raw!(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, 0, mem::size_of_val(&mask));
}

/// Sends the calling thread a signal that it has got. False: it cannot be.
///
/// # Safety
/// `info` is what the kernel said of it.
pub unsafe fn send_again(signal: c_int, info: *const libc::siginfo_t) -> bool {
    let (process, thread) = (raw!(libc::SYS_getpid), raw!(libc::SYS_gettid));
    raw!(libc::SYS_rt_tgsigqueueinfo, process, thread, signal, info) == 0 || raw!(libc::SYS_tgkill, process, thread, signal) == 0
}

/// The kernel's number of the calling thread.
pub fn thread_id() -> u32 {
    raw!(libc::SYS_gettid) as u32
}

/// Ends the process.
pub fn exit_group(status: c_int) -> ! {
    loop {
        raw!(libc::SYS_exit_group, status);
    }
}

/// Whether the descriptor is a socket of the internet: somebody's connection.
pub fn is_internet_socket(fd: c_int) -> bool {
    let domain = errno::kept(|| option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_DOMAIN));
    matches!(domain, Some(libc::AF_INET | libc::AF_INET6))
}

/// Whether the descriptor is open.
pub fn is_open(fd: c_int) -> bool {
    errno::kept(|| raw!(libc::SYS_fcntl, fd, libc::F_GETFD, 0) >= 0)
}

/// Whether the descriptor is in non-blocking mode.
pub fn is_nonblocking(fd: c_int) -> bool {
    let flags = raw!(libc::SYS_fcntl, fd, libc::F_GETFL, 0);
    flags >= 0 && flags as c_int & libc::O_NONBLOCK != 0
}

/// Whether a read of this descriptor would wait now. Leaves errno alone.
pub fn would_wait(fd: c_int) -> bool {
    errno::kept(|| poll_now(fd, libc::POLLIN) == 0 && !is_nonblocking(fd))
}

/// Sets or clears non-blocking mode and close-on-exec.
pub fn set_modes(fd: c_int, nonblocking: bool, cloexec: bool) {
    let flags = raw!(libc::SYS_fcntl, fd, libc::F_GETFL, 0) as c_int;
    let wanted = if nonblocking { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
    if wanted != flags {
        raw!(libc::SYS_fcntl, fd, libc::F_SETFL, wanted);
    }
    raw!(libc::SYS_fcntl, fd, libc::F_SETFD, if cloexec { libc::FD_CLOEXEC } else { 0 });
}

/// Reads a socket option of plain data.
pub fn option<T: Copy>(fd: c_int, level: c_int, name: c_int) -> Option<T> {
    let mut value = mem::MaybeUninit::<T>::zeroed();
    let mut length = mem::size_of::<T>() as socklen_t;
    // SAFETY: value is live, writable and of the given length.
    let result = unsafe { libc::getsockopt(fd, level, name, value.as_mut_ptr().cast(), &mut length) };
    if result != 0 || length as usize != mem::size_of::<T>() {
        return None;
    }
    // SAFETY: the kernel wrote all of it; T is plain data of the C interface (integers, timeval, linger).
    Some(unsafe { value.assume_init() })
}

/// Reads a socket option as bytes: as many as it has.
pub fn option_bytes(fd: c_int, level: c_int, name: c_int, value: &mut [u8]) -> Option<&mut [u8]> {
    let mut length = value.len() as socklen_t;
    // SAFETY: value is live, writable and of the given length.
    let result = unsafe { libc::getsockopt(fd, level, name, value.as_mut_ptr().cast(), &mut length) };
    value.get_mut(..length as usize).filter(|_| result == 0)
}

/// Sets a socket option to these bytes; false if the kernel refuses.
pub fn set_option_bytes(fd: c_int, level: c_int, name: c_int, value: &[u8]) -> bool {
    // SAFETY: value is live and of the given length.
    unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), value.len() as socklen_t) == 0 }
}

/// Sets a socket option of plain data; false if the kernel refuses.
pub fn set_option<T: Copy>(fd: c_int, level: c_int, name: c_int, value: T) -> bool {
    let length = mem::size_of::<T>() as socklen_t;
    // SAFETY: value is live and of the given length.
    unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), length) == 0 }
}

/// How many bytes wait in the receive queue.
pub fn input_queued(fd: c_int) -> usize {
    let mut n: c_int = 0;
    // SAFETY: n is live and writable.
    let result = unsafe { libc::ioctl(fd, libc::FIONREAD, &mut n) };
    if result == 0 && n > 0 {
        n as usize
    } else {
        0
    }
}

/// For a thread of our own: the application's signals are handled by its own threads.
pub fn block_signals() {
    // SAFETY: all zeroes is a valid sigset_t, which sigfillset fills; both pointers are live.
    unsafe {
        let mut all: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
    }
}

/// Does something while all signals are blocked in this thread: a thread that it makes inherits that.
pub fn with_signals_blocked<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: all zeroes is a valid sigset_t, which sigfillset fills; the pointers are live.
    let before = unsafe {
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = (mem::zeroed(), mem::zeroed());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before);
        before
    };
    let result = f();
    // SAFETY: the mask is the one of before; no other is asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    result
}

/// Closes descriptors of a process that exits, whose other threads still run: their numbers become those of
/// /dev/null, so that nobody gets one of them for something else. Without a descriptor to spare they are just closed.
pub fn close_and_keep(descriptors: impl Iterator<Item = c_int>) {
    // SAFETY: the path is NUL-terminated.
    let null = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, c"/dev/null".as_ptr(), libc::O_RDWR) };
    if null < 0 {
        return descriptors.for_each(close);
    }
    for fd in descriptors {
        // SAFETY: no pointers; the kernel closes what the number was.
        unsafe { libc::syscall(libc::SYS_dup3, null, fd, libc::O_CLOEXEC) };
    }
}
