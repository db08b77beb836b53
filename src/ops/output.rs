//! Writing to a protected connection.
//!
//! A write goes in rounds: its next bytes are announced in the ring, given to the kernel without blocking, and
//! the count that the kernel took is noted; then, if the caller's call may block, it waits outside.

use std::ffi::c_void;
use std::time::{Duration, Instant};

use libc::{
    c_int, c_uint, iovec, mmsghdr, msghdr, off64_t, off_t, size_t, sockaddr, socklen_t, ssize_t, timespec, MSG_DONTWAIT,
    MSG_NOSIGNAL, MSG_OOB, MSG_ZEROCOPY,
};
use tcpr_node::channel::client::Client;
use tcpr_node::channel::ring::{Sent, MAX_PAYLOAD};
use tcpr_node::channel::Event;

use super::descriptors::{is_for_us, is_internal, refuse};
use super::{connection, inside, passing};
use crate::process::{self, Swallowed};
use crate::ffi::Checked;
use crate::{ffi, real, table, turn};

/// What is left to write of an application's buffers.
struct Source<'a> {
    iov: &'a [iovec],
    /// Bytes of the first buffer that are written already.
    skip: usize,
    left: usize,
    checked: Checked,
}

impl<'a> Source<'a> {
    /// `None` if the C library is to refuse the arguments.
    ///
    /// # Safety
    /// What can be read at `iov` stays for as long as `'a`.
    unsafe fn new(iov: *const iovec, count: usize, mut checked: Checked) -> Option<Self> {
        let known = count <= libc::UIO_MAXIOV as usize && checked.is_readable(iov, count * size_of::<iovec>());
        if iov.is_null() || !known {
            return None;
        }
        // SAFETY: it was found readable, and stays, says the caller.
        let iov = unsafe { std::slice::from_raw_parts(iov, count) };
        let mut left = 0usize;
        for part in iov {
            if part.iov_base.is_null() && part.iov_len > 0 {
                return None;
            }
            left = left.checked_add(part.iov_len).filter(|&n| n <= isize::MAX as usize)?;
        }
        // Nothing to announce: the C library knows what a write of nothing does.
        (left > 0).then_some(Self { iov, skip: 0, left, checked: Checked::default() })
    }

    /// Whether the next bytes can be read.
    fn is_readable(&mut self, mut n: usize) -> bool {
        let mut skip = self.skip;
        for part in self.iov {
            let here = (part.iov_len - skip).min(n);
            if !self.checked.is_readable(part.iov_base.cast::<u8>().wrapping_add(skip), here) {
                return false;
            }
            n -= here;
            skip = 0;
            if n == 0 {
                break;
            }
        }
        true
    }

    /// Copies the next bytes, without taking them.
    fn copy_to(&self, mut to: &mut [u8]) {
        let mut skip = self.skip;
        for part in self.iov {
            let n = (part.iov_len - skip).min(to.len());
            // SAFETY: they were found readable, and the application keeps them while its call lasts; should another thread of
            // it change them, we send what we copied.
            unsafe {
                let from = part.iov_base.cast::<u8>().add(skip);
                std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), n);
            }
            to = &mut to[n..];
            skip = 0;
            if to.is_empty() {
                return;
            }
        }
    }

    fn advance(&mut self, mut n: usize) {
        self.left -= n;
        while let [first, rest @ ..] = self.iov {
            let here = first.iov_len - self.skip;
            if n < here {
                self.skip += n;
                return;
            }
            n -= here;
            self.skip = 0;
            self.iov = rest;
        }
    }
}

/// How a write ended, before it became a result of the C interface.
enum Outcome {
    /// So many bytes.
    Wrote(usize),
    /// errno, with nothing written.
    Failed(c_int),
    /// Nothing was written, and the C library goes on: the manager is gone, or the memory is bad.
    Plain,
}

impl Outcome {
    fn result(self, flags: c_int, plain: impl FnOnce() -> ssize_t) -> ssize_t {
        match self {
            Outcome::Wrote(n) => n as ssize_t,
            Outcome::Failed(error) => {
                if error == libc::EPIPE && flags & MSG_NOSIGNAL == 0 {
                    ffi::raise_sigpipe();
                }
                ffi::set_errno(error);
                -1
            }
            Outcome::Plain => plain(),
        }
    }
}

/// Writes to a protected connection.
fn transmit(
    client: &Client,
    handle: u32,
    fd: c_int,
    mut source: Source<'_>,
    flags: c_int,
    mut extra: Option<&msghdr>,
) -> Outcome {
    let saved = ffi::errno();
    let flags = match ours(fd, flags) {
        Ok(flags) => flags,
        Err(error) => return Outcome::Failed(error),
    };
    let total = source.left;
    match inside(Swallowed::Nothing, || process::swallow(handle, total as u64)) {
        Swallowed::Nothing => {}
        Swallowed::Greeting => return Outcome::Wrote(total),
        Swallowed::Sent(n) => {
            inside((), || turn::output(client, |thread| Event::Absorbed { thread, handle, n }));
            source.advance(n as usize);
        }
    }
    let mut patience = None;
    while source.left > 0 {
        turn::before_write(client);
        let written = total - source.left;
        let chunk = source.left.min(MAX_PAYLOAD);
        if !source.is_readable(chunk) {
            if written > 0 {
                break;
            }
            // The kernel says what is wrong with it.
            return Outcome::Plain;
        }
        let sent = inside(None, || {
            let send = |bytes: &[u8]| match ffi::raw_send(fd, bytes, flags, extra) {
                n if n >= 0 => Sent::Taken(n as usize),
                _ => match ffi::errno() {
                    libc::EAGAIN | libc::EINTR => Sent::Taken(0),
                    error => Sent::Failed(error),
                },
            };
            turn::write(client, handle, source.left as u64, chunk, |to| source.copy_to(to), send)
        });
        match sent {
            Some(Sent::Taken(n)) => {
                source.advance(n);
                if n > 0 {
                    // Ancillary data goes with the first bytes.
                    extra = None;
                }
                if n == chunk {
                    continue;
                }
            }
            Some(Sent::Failed(libc::ENOTSOCK)) => {
                inside((), || process::forget(fd));
                return if written > 0 { Outcome::Wrote(written) } else { Outcome::Plain };
            }
            Some(Sent::Failed(error)) if written == 0 => return Outcome::Failed(error),
            None if written == 0 => return Outcome::Plain,
            // The kernel keeps the error for the next call.
            Some(Sent::Failed(_)) | None => break,
        }
        let written = total - source.left;
        if flags & MSG_DONTWAIT != 0 || ffi::is_nonblocking(fd) {
            if written == 0 {
                return Outcome::Failed(libc::EAGAIN);
            }
            break;
        }
        inside((), || turn::blocked(client));
        let patience = patience.get_or_insert_with(|| Patience::of(fd));
        match patience.wait_writable(fd) {
            Ok(()) => {}
            Err(_) if written > 0 => break,
            Err(error) => return Outcome::Failed(error),
        }
    }
    ffi::set_errno(saved);
    Outcome::Wrote(total - source.left)
}

/// The flags with which the kernel gets the bytes of a protected connection, or why it cannot have them.
fn ours(fd: c_int, flags: c_int) -> Result<c_int, c_int> {
    if flags & MSG_OOB != 0 {
        // After a failover it would be an ordinary byte: the peer's program would read one more than before.
        return Err(libc::EOPNOTSUPP);
    }
    if flags & MSG_ZEROCOPY != 0 {
        // Only of a socket that was told so before it was protected is anybody going to wait for word of the end of it;
        // this is what the kernel says when it can pin no more, and then the program copies.
        if ffi::option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_ZEROCOPY).is_some_and(|on| on != 0) {
            return Err(libc::ENOBUFS);
        }
        return Ok(flags & !MSG_ZEROCOPY);
    }
    Ok(flags)
}

/// How long a blocking write may wait: SO_SNDTIMEO.
struct Patience {
    until: Option<Instant>,
}

impl Patience {
    fn of(fd: c_int) -> Self {
        let timeout = ffi::option::<libc::timeval>(fd, libc::SOL_SOCKET, libc::SO_SNDTIMEO)
            .map(|t| Duration::new(t.tv_sec.max(0) as u64, t.tv_usec.max(0) as u32 * 1000))
            .filter(|t| !t.is_zero());
        Self { until: timeout.map(|t| Instant::now() + t) }
    }

    /// Waits until the kernel takes bytes again. This is a cancellation point.
    fn wait_writable(&self, fd: c_int) -> Result<(), c_int> {
        loop {
            let mut entry = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
            let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
            let left = left.map(|l| timespec {
                tv_sec: l.as_secs() as libc::time_t,
                tv_nsec: l.subsec_nanos() as libc::c_long,
            });
            let timeout = left.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
            // SAFETY: entry and the timeout are live; no mask is given.
            let found = unsafe { real::ppoll(&mut entry, 1, timeout, std::ptr::null()) };
            match found {
                0 => return Err(libc::EAGAIN),
                n if n > 0 => return Ok(()),
                _ if ffi::errno() == libc::EINTR && !may_interrupt() => {}
                _ => return Err(ffi::errno()),
            }
        }
    }
}

/// Whether a signal handler is installed without SA_RESTART: a send that it interrupts fails with EINTR.
/// Otherwise the kernel would have gone on waiting, which poll never does.
fn may_interrupt() -> bool {
    (1..=31).any(|signal| {
        // SAFETY: all-zero is a valid sigaction.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: only asks; action is live and writable.
        let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &mut action) };
        let handled = action.sa_sigaction != libc::SIG_DFL && action.sa_sigaction != libc::SIG_IGN;
        asked == 0 && handled && action.sa_flags & libc::SA_RESTART == 0
    })
}

/// A write of one vector.
///
/// # Safety
/// As for `writev`.
unsafe fn put(
    fd: c_int,
    (iov, count, checked): (*const iovec, usize, Checked),
    flags: c_int,
    extra: Option<&msghdr>,
    plain: impl FnOnce() -> ssize_t,
) -> ssize_t {
    if is_internal(fd) {
        return refuse() as ssize_t;
    }
    let Some((client, handle)) = connection(fd) else { return plain() };
    // SAFETY: the caller keeps writev's contract.
    let Some(source) = (unsafe { Source::new(iov, count, checked) }) else { return plain() };
    // SAFETY: takes nothing; nothing of ours is alive if it unwinds.
    unsafe { real::pthread_testcancel() };
    transmit(client, handle, fd, source, flags, extra).result(flags, plain)
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn write(fd: c_int, buffer: *const c_void, n: size_t) -> ssize_t {
    let iov = iovec { iov_base: buffer.cast_mut(), iov_len: n };
    // SAFETY: the caller's buffer, and the C library's function for it.
    unsafe { put(fd, (&iov, 1, Checked::OURS), 0, None, || real::write(fd, buffer, n)) }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn writev(fd: c_int, iov: *const iovec, count: c_int) -> ssize_t {
    let elements = usize::try_from(count).unwrap_or(usize::MAX);
    // SAFETY: the caller's vector, and the C library's function for it.
    unsafe { put(fd, (iov, elements, Checked::default()), 0, None, || real::writev(fd, iov, count)) }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn send(fd: c_int, buffer: *const c_void, n: size_t, flags: c_int) -> ssize_t {
    let iov = iovec { iov_base: buffer.cast_mut(), iov_len: n };
    // SAFETY: the caller's buffer, and the C library's function for it.
    unsafe { put(fd, (&iov, 1, Checked::OURS), flags, None, || real::send(fd, buffer, n, flags)) }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn sendto(
    fd: c_int,
    buffer: *const c_void,
    n: size_t,
    flags: c_int,
    address: *const sockaddr,
    length: socklen_t,
) -> ssize_t {
    let iov = iovec { iov_base: buffer.cast_mut(), iov_len: n };
    // SAFETY: all-zero is a valid msghdr.
    let mut message: msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = address.cast_mut().cast();
    message.msg_namelen = length;
    let extra = (!address.is_null()).then_some(&message);
    // SAFETY: the caller's buffer, and the C library's function for it.
    unsafe { put(fd, (&iov, 1, Checked::OURS), flags, extra, || real::sendto(fd, buffer, n, flags, address, length)) }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    let plain = || {
        // SAFETY: the caller's arguments.
        unsafe { real::sendmsg(fd, message, flags) }
    };
    if table::is_plain(fd) && !is_for_us() {
        return plain();
    }
    let mut checked = Checked::default();
    // SAFETY: the caller's message, if it can be read.
    let Some(m) = (unsafe { passing::sending(message, &mut checked) }) else { return plain() };
    if table::is_plain(fd) {
        return plain();
    }
    let extra = (m.msg_controllen > 0 || !m.msg_name.is_null()).then_some(m);
    // SAFETY: the message's own vector, and the C library's function for it.
    unsafe { put(fd, (m.msg_iov, m.msg_iovlen, checked), flags, extra, plain) }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int {
    // The kernel's own bound.
    let count = count.min(libc::UIO_MAXIOV as c_uint);
    let known = Checked::is_writable(messages, count as usize * size_of::<mmsghdr>());
    if !known || connection(fd).is_none() {
        let mut checked = Checked::default();
        for i in (0..count).take_while(|_| known && is_for_us()) {
            // SAFETY: the caller's array has count elements.
            unsafe { passing::sending(&raw const (*messages.add(i as usize)).msg_hdr, &mut checked) };
        }
        // SAFETY: the caller's arguments.
        return unsafe { real::sendmmsg(fd, messages, count, flags) };
    }
    for i in 0..count {
        // SAFETY: the caller's array has count elements.
        let message = unsafe { &mut *messages.add(i as usize) };
        // SAFETY: an element of the caller's array.
        let n = unsafe { sendmsg(fd, &message.msg_hdr, flags) };
        if n < 0 {
            return if i > 0 { i as c_int } else { -1 };
        }
        message.msg_len = n as c_uint;
    }
    count as c_int
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn sendfile(fd: c_int, from: c_int, offset: *mut off_t, n: size_t) -> ssize_t {
    let plain = || {
        // SAFETY: the caller's arguments.
        unsafe { real::sendfile(fd, from, offset, n) }
    };
    let Some((client, handle)) = connection(fd) else { return plain() };
    if !offset.is_null() && !Checked::is_writable(offset, size_of::<off_t>()) {
        return plain();
    }
    // SAFETY: null, or the caller's offset.
    let start = match unsafe { offset.as_ref() } {
        Some(offset) => *offset,
        // SAFETY: takes no pointers.
        None => unsafe { libc::lseek(from, 0, libc::SEEK_CUR) },
    };
    // A pipe or a bad descriptor: the C library says what is wrong. The kernel's largest count.
    let n = n.min(0x7fff_f000);
    if start < 0 || n == 0 {
        return plain();
    }
    // SAFETY: takes nothing; nothing of ours is alive if it unwinds.
    unsafe { real::pthread_testcancel() };
    let outcome = copy_file(client, handle, fd, from, start, n);
    if let Outcome::Wrote(written) = outcome {
        let end = start + written as off_t;
        // SAFETY: null, or the caller's offset.
        match unsafe { offset.as_mut() } {
            Some(offset) => *offset = end,
            // SAFETY: takes no pointers.
            None => drop(unsafe { libc::lseek(from, end, libc::SEEK_SET) }),
        }
    }
    outcome.result(0, plain)
}

/// Reads the file and writes what was read, so that what is announced is what is sent.
fn copy_file(client: &Client, handle: u32, fd: c_int, from: c_int, start: off_t, n: usize) -> Outcome {
    let mut buffer = vec![0u8; n.min(MAX_PAYLOAD)];
    let mut written = 0;
    while written < n {
        let want = (n - written).min(buffer.len());
        let got = ffi::raw_pread(from, &mut buffer[..want], start + written as off_t);
        if got <= 0 {
            if got < 0 && written == 0 {
                return Outcome::Failed(ffi::errno());
            }
            break;
        }
        let iov = [iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: got as usize }];
        let source = Source { iov: &iov, skip: 0, left: got as usize, checked: Checked::OURS };
        match transmit(client, handle, fd, source, 0, None) {
            Outcome::Wrote(sent) => {
                written += sent;
                if sent < got as usize {
                    break;
                }
            }
            other if written == 0 => return other,
            _ => break,
        }
    }
    Outcome::Wrote(written)
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn sendfile64(fd: c_int, from: c_int, offset: *mut off_t, n: size_t) -> ssize_t {
    // SAFETY: the caller's arguments; off_t has 64 bits.
    unsafe { sendfile(fd, from, offset, n) }
}

/// As in the C library. To and from a protected connection it would go around us: a program whose kernel cannot splice
/// something copies it.
///
/// # Safety
/// As in the C library.
pub unsafe fn splice(from: c_int, from_at: *mut off64_t, to: c_int, to_at: *mut off64_t, n: size_t, flags: c_uint) -> ssize_t {
    let ours = |fd| !table::is_plain(fd) && connection(fd).is_some();
    if ours(from) || ours(to) {
        ffi::set_errno(libc::EINVAL);
        return -1;
    }
    // SAFETY: the caller's arguments.
    unsafe { real::splice(from, from_at, to, to_at, n, flags) }
}
