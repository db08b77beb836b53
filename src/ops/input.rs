//! Reading from a protected connection.

use std::ffi::c_void;

use libc::{
    c_int, c_uint, iovec, mmsghdr, msghdr, off64_t, size_t, sockaddr, socklen_t, ssize_t, timespec, MSG_DONTWAIT, MSG_ERRQUEUE,
    MSG_OOB, MSG_PEEK, MSG_WAITALL, SPLICE_F_NONBLOCK,
};

use super::attach::connection;
use super::descriptors::{is_internal, refuse};
use super::options::low_water;
use super::passing;
use crate::guard::inside;
use crate::memory::Checked;
use crate::{connections, errno, real, sys, table, turn};

/// One read: `attempt` makes it without blocking (by number, with extra flags) and `block` as the caller asked.
fn receive(
    fd: c_int,
    flags: c_int,
    len: usize,
    attempt: impl FnOnce(c_int) -> ssize_t,
    block: impl FnOnce() -> ssize_t,
) -> ssize_t {
    if is_internal(fd) {
        return refuse() as ssize_t;
    }
    // A read of nothing returns at once; the error queue and a peek at urgent data are no input of the stream.
    if len == 0 || flags & (MSG_ERRQUEUE | MSG_OOB) != 0 {
        return block();
    }
    let Some((client, handle)) = connection(fd) else {
        return turn::foreign_read(fd, || flags & MSG_DONTWAIT != 0, block);
    };
    // SAFETY: takes nothing; nothing of ours is alive if it unwinds.
    unsafe { real::pthread_testcancel() };
    let taken = |n: ssize_t| {
        if n > 0 && flags & MSG_PEEK == 0 {
            inside((), || {
                connections::was_read(handle);
                turn::read(client, handle, n as u64);
            });
        }
        n
    };
    // A peek is no read after a write.
    let wrote = turn::before_read() && flags & MSG_PEEK == 0;
    let found_none = || {
        if wrote {
            inside((), || turn::found_none(client, handle));
        }
    };
    let saved = errno::get();
    let never_waits = flags & MSG_DONTWAIT != 0;
    // Where the call waits for more than one byte, the kernel knows best for how long.
    let least = if flags & MSG_WAITALL != 0 { len } else { low_water(fd).min(len) };
    if least == 1 || never_waits || flags & MSG_WAITALL == 0 && sys::is_nonblocking(fd) {
        let n = attempt(MSG_DONTWAIT);
        if n >= 0 {
            errno::set(saved);
            return taken(n);
        }
        if errno::get() == libc::EAGAIN {
            found_none();
        }
        match errno::get() {
            libc::EAGAIN if !never_waits && !sys::is_nonblocking(fd) => {}
            libc::ENOTSOCK => {
                inside((), || connections::forget(fd));
            }
            error => {
                errno::set(error);
                return -1;
            }
        }
    }
    if least == 1 || sys::input_queued(fd) < least {
        turn::before_wait(|| false);
    }
    errno::set(saved);
    taken(block())
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn read(fd: c_int, buffer: *mut c_void, n: size_t) -> ssize_t {
    let null = std::ptr::null_mut();
    receive(
        fd,
        0,
        n,
        // SAFETY: the caller's arguments.
        |flags| unsafe { sys::recvfrom(fd, buffer, n, flags, null, null.cast()) },
        // SAFETY: the caller's arguments.
        || unsafe { real::read(fd, buffer, n) },
    )
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn __read_chk(fd: c_int, buffer: *mut c_void, n: size_t, size: size_t) -> ssize_t {
    if n > size {
        // It aborts, with the message that people know.
        // SAFETY: the caller's arguments.
        return unsafe { real::__read_chk(fd, buffer, n, size) };
    }
    // SAFETY: the caller's arguments.
    unsafe { read(fd, buffer, n) }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn recv(fd: c_int, buffer: *mut c_void, n: size_t, flags: c_int) -> ssize_t {
    let null = std::ptr::null_mut();
    receive(
        fd,
        flags,
        n,
        // SAFETY: the caller's arguments.
        |more| unsafe { sys::recvfrom(fd, buffer, n, flags | more, null, null.cast()) },
        // SAFETY: the caller's arguments.
        || unsafe { real::recv(fd, buffer, n, flags) },
    )
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn __recv_chk(fd: c_int, buffer: *mut c_void, n: size_t, size: size_t, flags: c_int) -> ssize_t {
    if n > size {
        // SAFETY: the caller's arguments; it aborts.
        return unsafe { real::__recv_chk(fd, buffer, n, size, flags) };
    }
    // SAFETY: the caller's arguments.
    unsafe { recv(fd, buffer, n, flags) }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn recvfrom(
    fd: c_int,
    buffer: *mut c_void,
    n: size_t,
    flags: c_int,
    address: *mut sockaddr,
    length: *mut socklen_t,
) -> ssize_t {
    receive(
        fd,
        flags,
        n,
        // SAFETY: the caller's arguments.
        |more| unsafe { sys::recvfrom(fd, buffer, n, flags | more, address, length) },
        // SAFETY: the caller's arguments.
        || unsafe { real::recvfrom(fd, buffer, n, flags, address, length) },
    )
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn __recvfrom_chk(
    fd: c_int,
    buffer: *mut c_void,
    n: size_t,
    size: size_t,
    flags: c_int,
    address: *mut sockaddr,
    length: *mut socklen_t,
) -> ssize_t {
    if n > size {
        // SAFETY: the caller's arguments; it aborts.
        return unsafe { real::__recvfrom_chk(fd, buffer, n, size, flags, address, length) };
    }
    // SAFETY: the caller's arguments.
    unsafe { recvfrom(fd, buffer, n, flags, address, length) }
}

/// As in the C library. Descriptors may come with the message, also from a socket that is none of ours.
///
/// # Safety
/// As in the C library.
pub unsafe fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    if table::is_plain(fd) {
        // SAFETY: the caller's arguments.
        let n = turn::foreign_read(fd, || flags & MSG_DONTWAIT != 0, || unsafe { real::recvmsg(fd, message, flags) });
        if n >= 0 {
            // SAFETY: the C library has filled the caller's message.
            unsafe { passing::received(&*message) };
        }
        return n;
    }
    let mut checked = Checked::default();
    let len = if checked.is_readable(message, size_of::<msghdr>()) {
        // SAFETY: it can be read, or is null.
        unsafe { message.as_ref() }.map_or(0, |m| unsafe { total(m.msg_iov, m.msg_iovlen, &mut checked) })
    } else {
        0
    };
    receive(
        fd,
        flags,
        len,
        // SAFETY: the caller's arguments.
        |more| unsafe { sys::recvmsg(fd, message, flags | more) },
        // SAFETY: the caller's arguments.
        || unsafe { real::recvmsg(fd, message, flags) },
    )
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn readv(fd: c_int, iov: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: the caller's vector.
    let len = usize::try_from(count).map_or(0, |count| unsafe { total(iov, count, &mut Checked::default()) });
    // SAFETY: all-zero is a valid msghdr.
    let mut message: msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iov.cast_mut();
    message.msg_iovlen = count as _;
    receive(
        fd,
        0,
        len,
        // SAFETY: the caller's vector.
        |flags| unsafe { sys::recvmsg(fd, &raw mut message, flags) },
        // SAFETY: the caller's arguments.
        || unsafe { real::readv(fd, iov, count) },
    )
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn recvmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int, timeout: *mut timespec) -> c_int {
    let Some((client, handle)) = connection(fd) else {
        turn::before_foreign_read(fd, || flags & MSG_DONTWAIT != 0);
        // SAFETY: the caller's arguments.
        let received = unsafe { real::recvmmsg(fd, messages, count, flags, timeout) };
        for i in 0..received.max(0) as usize {
            // SAFETY: the C library filled that many elements of the caller's array.
            unsafe { passing::received(&(*messages.add(i)).msg_hdr) };
        }
        if received > 0 {
            turn::read_other();
        }
        return received;
    };
    turn::before_read();
    // How many of its messages will block is not worth finding out: for TCP hardly anybody calls it.
    if flags & MSG_DONTWAIT == 0 && !sys::is_nonblocking(fd) {
        turn::before_wait(|| false);
    }
    // SAFETY: the caller's arguments.
    let received = unsafe { real::recvmmsg(fd, messages, count, flags, timeout) };
    if received > 0 && flags & (MSG_PEEK | MSG_ERRQUEUE) == 0 {
        // SAFETY: the C library filled that many elements of the caller's array.
        let messages = unsafe { std::slice::from_raw_parts(messages, received as usize) };
        let n = messages.iter().map(|m| u64::from(m.msg_len)).sum();
        inside((), || {
            connections::was_read(handle);
            turn::read(client, handle, n);
        });
    }
    received
}

/// Moves input of a connection into a pipe. The kernel does it; the manager must know how much it was.
///
/// # Safety
/// As for `splice`.
pub(super) unsafe fn splice_from(
    fd: c_int,
    from_at: *mut off64_t,
    to: c_int,
    to_at: *mut off64_t,
    n: size_t,
    flags: c_uint,
) -> ssize_t {
    if flags & SPLICE_F_NONBLOCK == 0 && !sys::is_ready(to, libc::POLLOUT) {
        turn::before_wait(|| false);
        let mut room = libc::pollfd { fd: to, events: libc::POLLOUT, revents: 0 };
        // SAFETY: room is live and writable.
        if unsafe { real::poll(&raw mut room, 1, -1) } < 0 {
            return -1;
        }
    }
    let attempt = |_| match sys::is_ready(fd, libc::POLLIN) {
        // SAFETY: the caller's arguments.
        true => unsafe { sys::splice(fd, from_at, to, to_at, n, flags | SPLICE_F_NONBLOCK) },
        false => {
            errno::set(libc::EAGAIN);
            -1
        }
    };
    // SAFETY: the caller's arguments.
    receive(fd, 0, n, attempt, || unsafe { real::splice(fd, from_at, to, to_at, n, flags) })
}

/// How many bytes a vector names; 0 if the C library will refuse it.
///
/// # Safety
/// What can be read at `iov` stays while the call lasts.
unsafe fn total(iov: *const iovec, count: usize, checked: &mut Checked) -> usize {
    // SAFETY: the caller vouches for it.
    let iov = unsafe { checked.vector(iov, count) }.unwrap_or(&[]);
    iov.iter().map(|v| v.iov_len).fold(0, usize::saturating_add)
}
