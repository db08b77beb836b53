//! The few system calls of the channel, as safe functions.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Room for the ancillary data of one message: 253 descriptors, the kernel's limit.
const CONTROL_WORDS: usize = (16 + 253 * 4 + 16) / 8 + 1;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Takes a descriptor that a system call just made.
fn own(result: libc::c_int) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel just gave us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn abstract_address(name: &str) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: all-zero is a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    // The leading zero byte makes it abstract.
    let path = &mut address.sun_path[1..];
    if name.len() > path.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "service name too long"));
    }
    for (to, from) in path.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let length = mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
    Ok((address, length as libc::socklen_t))
}

fn seqpacket(flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    own(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | flags, 0) })
}

pub(super) fn seqpacket_listen(name: &str) -> io::Result<OwnedFd> {
    let (address, length) = abstract_address(name)?;
    let socket = seqpacket(libc::SOCK_NONBLOCK)?;
    // SAFETY: address is a live sockaddr_un of which length bytes are valid.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    // SAFETY: takes no pointers.
    check(unsafe { libc::listen(socket.as_raw_fd(), 128) })?;
    Ok(socket)
}

/// Takes an abstract name for as long as the socket lives. `AddrInUse`: somebody has it.
pub(crate) fn hold_name(name: &str) -> io::Result<OwnedFd> {
    let (address, length) = abstract_address(name)?;
    let socket = seqpacket(0)?;
    // SAFETY: address is a live sockaddr_un of which length bytes are valid.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket)
}

pub(super) fn seqpacket_connect(name: &str) -> io::Result<OwnedFd> {
    let (address, length) = abstract_address(name)?;
    let socket = seqpacket(0)?;
    // SAFETY: address is a live sockaddr_un of which length bytes are valid.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket)
}

/// Accepts without blocking; `None` when nobody waits.
pub(super) fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: null address pointers are allowed.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) };
    match own(fd) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) => match e.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR | libc::ECONNABORTED) => Ok(None),
            _ => Err(e),
        },
    }
}

/// Sends one message with descriptors. The socket's own mode decides whether it may block.
pub(super) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut control = [0u64; CONTROL_WORDS];
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &mut iov;
    message.msg_iovlen = 1;
    // The channel's socket does not look at this; TCP refuses it, and so do most others, should the number have become theirs a
    // moment ago: none of our bytes get into a connection of the application.
    let nobody = libc::AF_UNSPEC as libc::sa_family_t;
    message.msg_name = (&raw const nobody).cast_mut().cast();
    message.msg_namelen = mem::size_of_val(&nobody) as _;
    if !fds.is_empty() {
        let payload = fds.len() * mem::size_of::<RawFd>();
        // SAFETY: pure arithmetic.
        let space = unsafe { libc::CMSG_SPACE(payload as u32) } as usize;
        if space > mem::size_of_val(&control) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
        }
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = space as _;
        // SAFETY: msg_control points to `control`, aligned for cmsghdr, with at least `space` bytes, so that
        // the first header and its data lie within it.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(payload as u32) as _;
            let data = libc::CMSG_DATA(header).cast::<RawFd>();
            for (i, fd) in fds.iter().enumerate() {
                data.add(i).write_unaligned(fd.as_raw_fd());
            }
        }
    }
    loop {
        // SAFETY: message points to the live iov, bytes and control above; the kernel only reads them.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL | libc::MSG_FASTOPEN) };
        if sent >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Receives one message with its descriptors, without blocking. Zero bytes: the other side is gone.
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = [0u64; CONTROL_WORDS];
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = mem::size_of_val(&control) as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    let received = loop {
        // SAFETY: message points to the live, writable buffer and control above, with their true lengths.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, flags) };
        if received >= 0 {
            break received as usize;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    let mut fds = Vec::new();
    // SAFETY: the kernel filled msg_control with msg_controllen bytes of well-formed headers; the descriptors
    // in SCM_RIGHTS were just installed for us alone.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                for i in 0..bytes / mem::size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(i).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&message, header);
        }
    }
    if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "truncated message on the channel"));
    }
    Ok((received, fds))
}

/// Anonymous memory of a fixed size: nobody can shrink it under the other side's feet.
pub(super) fn memory(size: usize) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a NUL-terminated literal.
    let fd = own(unsafe { libc::memfd_create(c"tcpr-channel".as_ptr(), flags) })?;
    // SAFETY: takes no pointers.
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), size as libc::off_t) })?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: takes no pointers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) })?;
    Ok(fd)
}

pub(super) fn file_size(fd: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: all-zero is a valid stat.
    let mut stat: libc::stat = unsafe { mem::zeroed() };
    // SAFETY: stat is live and writable.
    check(unsafe { libc::fstat(fd.as_raw_fd(), &mut stat) })?;
    Ok(stat.st_size as u64)
}

/// TFD_IOC_SET_TICKS, `_IOW('T', 0, u64)`: to a timer it is as if it had expired so often.
pub const KICK: libc::c_ulong = 0x4008_5400;

/// What wakes the manager: a timer that never expires by itself. No byte is written to it: whatever else its number may have
/// become in a process that closes what it does not know, nothing of ours gets into that. Its interval tells it from others.
pub(super) fn kick_timer(channel: u32) -> io::Result<OwnedFd> {
    const NEVER: libc::time_t = 50 * 365 * 24 * 3600;
    // SAFETY: takes no pointers.
    let timer = own(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) })?;
    let interval = libc::timespec { tv_sec: NEVER, tv_nsec: libc::c_long::from(channel % 1_000_000_000) };
    set_timer(timer.as_raw_fd(), 0, libc::timespec { tv_sec: NEVER, tv_nsec: 0 }, interval)?;
    Ok(timer)
}

fn set_timer(fd: RawFd, flags: libc::c_int, value: libc::timespec, interval: libc::timespec) -> io::Result<()> {
    let times = libc::itimerspec { it_interval: interval, it_value: value };
    // SAFETY: `times` is live, and no old value is asked for.
    check(unsafe { libc::timerfd_settime(fd, flags, &times, std::ptr::null_mut()) }).map(|_| ())
}

/// The interval of a timer; `None`: the number is something else.
fn interval(fd: RawFd) -> Option<(i64, i64)> {
    // SAFETY: all-zero is a valid itimerspec.
    let mut times: libc::itimerspec = unsafe { mem::zeroed() };
    // SAFETY: `times` is live and writable.
    let result = unsafe { libc::timerfd_gettime(fd, &mut times) };
    (result == 0).then_some((times.it_interval.tv_sec, times.it_interval.tv_nsec))
}

/// Clears a kick.
pub(super) fn unkick(timer: BorrowedFd<'_>) {
    let mut count = [0u8; 8];
    // SAFETY: `count` is live, writable and eight bytes long.
    unsafe { libc::syscall(libc::SYS_read, timer.as_raw_fd(), count.as_mut_ptr(), count.len()) };
}

/// A descriptor of ours in a process that may close any number, by calls that no hook sees, and have it for something else.
/// Before something is done with it that would not leave everything else alone, it is asked whether it still is what it was;
/// and it is closed only then.
#[derive(Debug)]
pub struct Own {
    fd: RawFd,
    identity: Identity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    /// Device and number.
    File(u64, u64),
    /// All timers are one file: its interval.
    Timer(i64, i64),
}

impl Own {
    /// A socket or a file.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let identity = file(fd.as_raw_fd())?;
        Ok(Self { fd: fd.into_raw_fd(), identity })
    }

    /// What [`kick_timer`] made.
    pub(super) fn timer(fd: OwnedFd) -> io::Result<Self> {
        let (sec, nsec) = interval(fd.as_raw_fd()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { fd: fd.into_raw_fd(), identity: Identity::Timer(sec, nsec) })
    }

    /// Its number.
    pub fn number(&self) -> RawFd {
        self.fd
    }

    /// Whether the number is still that.
    pub fn is_ours(&self) -> bool {
        match self.identity {
            Identity::File(..) => file(self.fd).is_ok_and(|now| now == self.identity),
            Identity::Timer(sec, nsec) => interval(self.fd) == Some((sec, nsec)),
        }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open, or the number of something that the application has opened since; a borrow of that may do no more than
        // fail, which is what the callers see to.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }

    /// Gives it away; `None`: it is lost.
    pub fn release(self) -> Option<OwnedFd> {
        // SAFETY: it is ours, and nobody closes it any more.
        let fd = self.is_ours().then(|| unsafe { OwnedFd::from_raw_fd(self.fd) });
        mem::forget(self);
        fd
    }

    /// Moves to another number. False: there is none, or it is lost.
    pub fn make_way(&mut self) -> bool {
        let Some(copy) = self.is_ours().then(|| self.as_fd().try_clone_to_owned().ok()).flatten() else { return false };
        // What was there is closed.
        *self = Self { fd: move_high(copy).into_raw_fd(), identity: self.identity };
        true
    }

    /// Wakes whoever watches the timer. Nothing but a timer understands it. False: it is lost.
    pub(super) fn kick(&self) -> bool {
        let (Identity::Timer(tv_sec, tv_nsec), one) = (&self.identity, 1u64) else { return false };
        // SAFETY: `one` is live.
        if unsafe { libc::ioctl(self.fd, KICK, &raw const one) } == 0 {
            return true;
        }
        // A kernel without that call (CONFIG_CHECKPOINT_RESTORE): let it expire.
        let interval = libc::timespec { tv_sec: *tv_sec, tv_nsec: *tv_nsec };
        let long_ago = libc::timespec { tv_sec: 0, tv_nsec: 1 };
        self.is_ours() && set_timer(self.fd, libc::TFD_TIMER_ABSTIME, long_ago, interval).is_ok()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if self.is_ours() {
            // By number: in the application `close` is a hook and a cancellation point.
            // SAFETY: takes no pointers.
            unsafe { libc::syscall(libc::SYS_close, self.fd) };
        }
    }
}

fn file(fd: RawFd) -> io::Result<Identity> {
    // SAFETY: all-zero is a valid stat.
    let mut stat: libc::stat = unsafe { mem::zeroed() };
    // By number: C libraries differ in which call they make, and a program's seccomp filter may look.
    // SAFETY: stat is live and writable, and what the kernel fills on 64-bit systems.
    check(unsafe { libc::syscall(libc::SYS_fstat, fd, &raw mut stat) } as libc::c_int)?;
    Ok(Identity::File(stat.st_dev, stat.st_ino))
}

/// The process at the other end of a Unix socket, as this process numbers it, and its user.
pub(super) fn peer(socket: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = mem::size_of_val(&credentials) as libc::socklen_t;
    // SAFETY: credentials is live, writable and of the given length.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut credentials).cast(), &mut length)
    })?;
    Ok((credentials.pid as u32, credentials.uid))
}

/// A descriptor that becomes readable when the process ends.
pub(super) fn pidfd(socket: BorrowedFd<'_>, pid: u32) -> io::Result<OwnedFd> {
    // Since Linux 6.5 the socket knows its peer itself; before, the number might have been used again.
    const SO_PEERPIDFD: libc::c_int = 77;
    let mut fd: RawFd = -1;
    let mut length = mem::size_of_val(&fd) as libc::socklen_t;
    // SAFETY: fd is live, writable and of the given length.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, (&raw mut fd).cast(), &mut length) };
    if result == 0 && fd >= 0 {
        return own(fd);
    }
    // SAFETY: takes no pointers.
    own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as libc::c_int)
}

/// Waits for one descriptor; returns what poll found, 0 after the timeout.
pub(super) fn poll(fd: BorrowedFd<'_>, events: libc::c_short, timeout: Duration) -> io::Result<libc::c_short> {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    let wait = libc::timespec { tv_sec: timeout.as_secs() as libc::time_t, tv_nsec: timeout.subsec_nanos() as libc::c_long };
    // By number: in the application `ppoll` is a hook and a cancellation point.
    // SAFETY: entry and wait are live; no signal mask is given.
    let result =
        unsafe { libc::syscall(libc::SYS_ppoll, &raw mut entry, 1, &raw const wait, std::ptr::null::<libc::sigset_t>(), 8) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(if result == 0 { 0 } else { entry.revents })
}

/// Waits while a futex in shared memory holds a value; spurious returns are possible.
pub(super) fn futex_wait(word: &AtomicU32, value: u32, timeout: Option<Duration>) {
    let wait = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs().min(i32::MAX as u64) as libc::time_t,
        tv_nsec: t.subsec_nanos() as libc::c_long,
    });
    let wait_pointer = wait.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: word outlives the call; wait_pointer is null or points to `wait`.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, wait_pointer) };
}

/// Wakes all who wait for a futex in shared memory.
pub(super) fn futex_wake(word: &AtomicU32) {
    // SAFETY: word outlives the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// How many descriptors this process may have (the soft RLIMIT_NOFILE).
pub fn descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: limit is live and writable. It fails for a bad pointer only.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    limit.rlim_cur
}

/// Moves a descriptor to a high number, out of the way of applications that count theirs.
pub fn move_high(fd: OwnedFd) -> OwnedFd {
    // The kernel's table grows to the highest number, and every fork copies it: high, but not a million.
    let floor = descriptor_limit().min(4096).saturating_sub(64) as libc::c_int;
    // SAFETY: takes no pointers.
    let high = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, floor) };
    own(high).unwrap_or(fd)
}
