//! Writing to a protected connection.
//!
//! A write goes in rounds. Its next bytes are announced in the ring and given to the kernel without blocking, and the count that
//! the kernel took is noted. Then, if the application's call may block, the thread waits, outside of the bookkeeping.

use std::ffi::c_void;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use libc::{
    c_int, c_uint, iovec, mmsghdr, msghdr, off64_t, off_t, size_t, sockaddr, socklen_t, ssize_t, timespec, MSG_DONTWAIT,
    MSG_MORE, MSG_NOSIGNAL, MSG_OOB, MSG_ZEROCOPY, SPLICE_F_MORE, SPLICE_F_NONBLOCK,
};
use tcpr_node::channel::client::Client;
use tcpr_node::channel::ring::{Sent, MAX_PAYLOAD};
use tcpr_node::channel::Event;
use tcpr_node::place;

use super::attach::connection;
use super::descriptors::{is_internal, refuse};
use super::{input, passing};
use crate::connections::{self, Absorbed};
use crate::guard::inside;
use crate::memory::Checked;
use crate::{errno, manager, real, sys, table, turn};

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
        // SAFETY: what can be read stays, says the caller.
        let iov: &'a [iovec] = unsafe { checked.vector(iov, count) }?;
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
                    sys::raise_sigpipe();
                }
                errno::set(error);
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
    patience: &mut Patience,
) -> Outcome {
    let saved = errno::get();
    let flags = match ours(fd, flags) {
        Ok(flags) => flags,
        Err(error) => return Outcome::Failed(error),
    };
    let total = source.left;
    match inside(Absorbed::Nothing, || connections::absorb(handle, total as u64)) {
        Absorbed::Nothing => {}
        Absorbed::Greeting => return Outcome::Wrote(total),
        Absorbed::Sent(n) => {
            inside((), || turn::output(client, |thread| Event::Absorbed { thread, handle, n }));
            source.advance(n as usize);
        }
    }
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
            let send = |bytes: &[u8]| match sys::send(fd, bytes, flags, extra) {
                n if n >= 0 => Sent::Taken(n as usize),
                _ => match errno::get() {
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
                    patience.begun = true;
                }
                if n == chunk {
                    continue;
                }
            }
            Some(Sent::Failed(libc::ENOTSOCK)) => {
                inside((), || connections::forget(fd));
                return if written > 0 { Outcome::Wrote(written) } else { Outcome::Plain };
            }
            Some(Sent::Failed(error)) if written == 0 => return Outcome::Failed(error),
            None if written == 0 => return Outcome::Plain,
            // The kernel keeps the error for the next call.
            Some(Sent::Failed(_)) | None => break,
        }
        let written = total - source.left;
        if flags & MSG_DONTWAIT != 0 || sys::is_nonblocking(fd) {
            if written == 0 {
                return Outcome::Failed(libc::EAGAIN);
            }
            break;
        }
        inside((), || turn::blocked(client));
        match patience.wait_writable(fd) {
            // Meanwhile a file that is mapped there may have become shorter.
            Ok(()) => source.checked = Checked::default(),
            Err(error) => {
                inside((), || turn::unblocked(client));
                match written {
                    0 => return Outcome::Failed(error),
                    _ => break,
                }
            }
        }
    }
    errno::set(saved);
    Outcome::Wrote(total - source.left)
}

/// The flags with which the kernel gets the bytes of a protected connection, or the errno with which the write fails.
fn ours(fd: c_int, flags: c_int) -> Result<c_int, c_int> {
    if flags & MSG_OOB != 0 {
        // After a failover the urgent byte would be an ordinary one: the peer's program would read one byte more than before.
        return Err(libc::EOPNOTSUPP);
    }
    if flags & MSG_ZEROCOPY != 0 {
        // Only where SO_ZEROCOPY was set before the socket was protected will the program wait for word of the end of its
        // write. ENOBUFS is what the kernel says when it can pin no more memory: then programs write with a copy.
        if sys::option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_ZEROCOPY).is_some_and(|on| on != 0) {
            return Err(libc::ENOBUFS);
        }
        return Ok(flags & !MSG_ZEROCOPY);
    }
    Ok(flags)
}

/// What a blocking write does when it has to wait.
#[derive(Default)]
struct Patience {
    /// How long it may yet wait: SO_SNDTIMEO, looked at when it first waits.
    left: Option<Option<Duration>>,
    /// Something is written already.
    begun: bool,
}

impl Patience {
    /// Waits until the kernel takes bytes again. This is a cancellation point. As the kernel does it for TCP: any signal that
    /// is handled ends a write that has begun, or that has a timeout; else the handler's SA_RESTART decides.
    fn wait_writable(&mut self, fd: c_int) -> Result<(), c_int> {
        let left = self.left.get_or_insert_with(|| {
            sys::option::<libc::timeval>(fd, libc::SOL_SOCKET, libc::SO_SNDTIMEO)
                .map(|t| Duration::new(t.tv_sec.max(0) as u64, t.tv_usec.max(0) as u32 * 1000))
                .filter(|t| !t.is_zero())
        });
        if !self.begun && left.is_none() {
            return wait_in_send(fd);
        }
        let started = Instant::now();
        let timeout = left.map(|l| timespec { tv_sec: l.as_secs() as libc::time_t, tv_nsec: l.subsec_nanos() as libc::c_long });
        let mut entry = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
        // SAFETY: entry and the timeout are live; no mask is given.
        let found = unsafe {
            real::ppoll(&mut entry, 1, timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref), std::ptr::null())
        };
        if let Some(left) = left {
            *left = left.saturating_sub(started.elapsed());
        }
        match found {
            0 => Err(libc::EAGAIN),
            n if n > 0 => Ok(()),
            _ => Err(errno::get()),
        }
    }
}

/// Waits for room, in the call that the application makes: only the kernel knows which signal came, and whether its handler
/// has the call go on. Where there is room it finds that our byte cannot be read, and takes none.
fn wait_in_send(fd: c_int) -> Result<(), c_int> {
    static UNREADABLE: OnceLock<usize> = OnceLock::new();
    let page = *UNREADABLE.get_or_init(|| {
        // SAFETY: a fresh mapping at an address of the kernel's choice; it is never unmapped.
        let page =
            unsafe { libc::mmap(place::wish(4096), 4096, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
        page.addr()
    });
    // SAFETY: the address is for the kernel alone, which checks it.
    let sent = unsafe { real::send(fd, std::ptr::without_provenance(page), 1, MSG_NOSIGNAL) };
    match errno::get() {
        _ if sent >= 0 => Ok(()),
        libc::EFAULT => Ok(()),
        error => Err(error),
    }
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
    transmit(client, handle, fd, source, flags, extra, &mut Patience::default()).result(flags, plain)
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
    if table::is_plain(fd) && !manager::acts() {
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
        for i in (0..count).take_while(|_| known && manager::acts()) {
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
        // SAFETY: the message's own vector, as in `sendmsg`, which has just written it.
        let asked =
            unsafe { Source::new(message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen, Checked::OURS) }.map_or(0, |s| s.left);
        if (n as usize) < asked {
            // What comes next would follow a gap.
            return i as c_int + 1;
        }
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
    let mut patience = Patience::default();
    while written < n {
        let want = (n - written).min(buffer.len());
        let got = sys::pread(from, &mut buffer[..want], start + written as off_t);
        if got <= 0 {
            if got < 0 && written == 0 {
                return Outcome::Failed(errno::get());
            }
            break;
        }
        let iov = [iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: got as usize }];
        let source = Source { iov: &iov, skip: 0, left: got as usize, checked: Checked::OURS };
        match transmit(client, handle, fd, source, 0, None, &mut patience) {
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

/// As in the C library. What goes from a pipe to a connection is announced, so it is copied.
///
/// # Safety
/// As in the C library.
pub unsafe fn splice(from: c_int, from_at: *mut off64_t, to: c_int, to_at: *mut off64_t, n: size_t, flags: c_uint) -> ssize_t {
    let plain = || {
        // SAFETY: the caller's arguments.
        unsafe { real::splice(from, from_at, to, to_at, n, flags) }
    };
    if !table::is_plain(from) && connection(from).is_some() {
        // SAFETY: the caller's arguments.
        return unsafe { input::splice_from(from, from_at, to, to_at, n, flags) };
    }
    let known = || sys::is_pipe(from) && from_at.is_null() && to_at.is_null() && n > 0;
    match if table::is_plain(to) { None } else { connection(to) } {
        // The kernel says what is wrong with its arguments.
        Some((client, handle)) if known() => copy_pipe(client, handle, to, from, n, flags, plain),
        Some(_) => plain(),
        None => turn::foreign_read(from, || flags & SPLICE_F_NONBLOCK != 0, plain),
    }
}

/// A pipe of ours into which the beginning of another one is copied.
struct Copy([c_int; 2]);

impl Drop for Copy {
    fn drop(&mut self) {
        self.0.into_iter().for_each(sys::close);
    }
}

/// Writes what is in a pipe. It stays there until the kernel has taken it.
fn copy_pipe(
    client: &Client,
    handle: u32,
    fd: c_int,
    from: c_int,
    n: usize,
    flags: c_uint,
    plain: impl FnOnce() -> ssize_t,
) -> ssize_t {
    // SAFETY: takes nothing; nothing of ours is alive if it unwinds.
    unsafe { real::pthread_testcancel() };
    let saved = errno::get();
    let Some(copy) = inside(None, || sys::pipe().map(Copy)) else {
        errno::set(libc::ENOMEM);
        return -1;
    };
    sys::set_capacity_of(copy.0[1], from);
    let send_flags = if flags & SPLICE_F_MORE != 0 { MSG_MORE } else { 0 };
    let mut buffer = vec![0; n.min(MAX_PAYLOAD)];
    let (mut written, mut patience) = (0, Patience::default());
    while written < n {
        let want = (n - written).min(buffer.len());
        let waits = written == 0 && flags & SPLICE_F_NONBLOCK == 0;
        if waits && sys::would_wait(from) {
            turn::before_wait(|| false);
        }
        // SAFETY: takes no pointers; it is a cancellation point, and the copy is closed then, too.
        let got = unsafe { libc::tee(from, copy.0[1], want, if waits { 0 } else { SPLICE_F_NONBLOCK }) };
        if got <= 0 {
            if got < 0 && written == 0 {
                return -1;
            }
            break;
        }
        if sys::read(copy.0[0], &mut buffer[..got as usize]) != got {
            break;
        }
        let iov = [iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: got as usize }];
        let source = Source { iov: &iov, skip: 0, left: got as usize, checked: Checked::OURS };
        match transmit(client, handle, fd, source, send_flags, None, &mut patience) {
            Outcome::Wrote(sent) => {
                let mut left = sent;
                while left > 0 {
                    match sys::read(from, &mut buffer[..left]) {
                        taken if taken > 0 => left -= taken as usize,
                        _ => break,
                    }
                }
                written += sent;
                if sent < got as usize {
                    break;
                }
            }
            other if written == 0 => return other.result(0, plain),
            _ => break,
        }
    }
    errno::set(saved);
    written as ssize_t
}
