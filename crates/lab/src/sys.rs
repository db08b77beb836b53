//! Thin safe wrappers over the system calls that std does not offer.

use std::ffi::{CStr, CString};
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

/// Turns a C result into an `io::Result`.
pub(crate) fn cvt(r: libc::c_int) -> io::Result<libc::c_int> {
    if r < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(r)
    }
}

/// Says in which step an error happened; the kind is kept.
pub(crate) fn ctx(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{what}: {e}"))
}

/// An error with a text of our own.
pub(crate) fn other(text: impl Into<String>) -> io::Error {
    io::Error::other(text.into())
}

pub(crate) fn cstring(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Moves the calling thread into a network namespace.
pub(crate) fn setns_net(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is passed; the descriptor is open for the whole call.
    cvt(unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Gives the calling thread real-time priority, where that is allowed. Its children do not inherit it.
pub(crate) fn raise_priority() {
    let parameter = libc::sched_param { sched_priority: 10 };
    // SAFETY: the pointer is that of `parameter`, which lives through the call; 0 is the calling thread.
    let raised = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameter) };
    if let Err(e) = cvt(raised) {
        eprintln!("no real-time priority: {e}");
    }
}

/// Gives the calling thread a new, empty network namespace.
pub(crate) fn unshare_net() -> io::Result<()> {
    // SAFETY: no memory is passed; only the calling thread changes its namespace.
    cvt(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

pub(crate) fn mount(source: &Path, target: &Path, flags: libc::c_ulong) -> io::Result<()> {
    let (s, t) = (cstring(source)?, cstring(target)?);
    // SAFETY: three strings that end in NUL and live through the call; no data argument.
    cvt(unsafe { libc::mount(s.as_ptr(), t.as_ptr(), c"none".as_ptr(), flags, std::ptr::null()) }).map(drop)
}

pub(crate) fn umount_detach(target: &Path) -> io::Result<()> {
    let t = cstring(target)?;
    // SAFETY: a string that ends in NUL and lives through the call.
    cvt(unsafe { libc::umount2(t.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

/// `flock`; with `wait` false an `Ok(false)` says that somebody else holds it.
pub(crate) fn flock(fd: BorrowedFd<'_>, wait: bool) -> io::Result<bool> {
    let op = if wait { libc::LOCK_EX } else { libc::LOCK_EX | libc::LOCK_NB };
    // SAFETY: no memory is passed; the descriptor is open for the whole call.
    match cvt(unsafe { libc::flock(fd.as_raw_fd(), op) }) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(e) => Err(e),
    }
}

/// `kill`; a negative pid means a process group.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    if pid == 0 || pid == -1 || pid == 1 {
        return Err(other(format!("refusing to signal pid {pid}")));
    }
    // SAFETY: no memory is passed.
    cvt(unsafe { libc::kill(pid, signal) }).map(drop)
}

pub(crate) fn geteuid() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

pub(crate) fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: callers pass a descriptor that the kernel has just returned to them alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

pub(crate) fn socket(domain: i32, ty: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    cvt(unsafe { libc::socket(domain, ty | libc::SOCK_CLOEXEC, protocol) }).map(owned)
}

/// The hardware address of an interface of the socket's namespace.
pub(crate) fn hardware_address(fd: BorrowedFd<'_>, interface: &CStr) -> io::Result<[u8; 6]> {
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.to_bytes_with_nul()) {
        *to = *from as libc::c_char;
    }
    // SAFETY: the pointer is that of `request`, which lives through the call.
    cvt(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) })?;
    // SAFETY: the kernel has filled this member of the union.
    let data = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    Ok(std::array::from_fn(|i| data[i] as u8))
}

/// Binds to an IPv4 address, or connects to one.
pub(crate) fn name_v4(
    fd: BorrowedFd<'_>,
    call: unsafe extern "C" fn(libc::c_int, *const libc::sockaddr, libc::socklen_t) -> libc::c_int,
    address: SocketAddrV4,
) -> io::Result<()> {
    let name = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: pointer and length describe `name`, which lives through the call.
    cvt(unsafe { call(fd.as_raw_fd(), (&raw const name).cast(), size_of_val(&name) as libc::socklen_t) }).map(drop)
}

/// Sets an option that is a number.
pub fn set_number(socket: &impl std::os::fd::AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    setsockopt(socket.as_fd(), level, name, &value)
}

pub(crate) fn setsockopt<T>(fd: BorrowedFd<'_>, level: i32, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: pointer and length describe `value`, which lives through the call.
    cvt(unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), size_of::<T>() as libc::socklen_t)
    })
    .map(drop)
}

pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed; the result is a new descriptor or -1.
    cvt(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as libc::c_int).map(owned)
}

/// Waits until one descriptor is readable; false after the timeout.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    let mut p = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let ts = timespec(timeout);
    // SAFETY: one pollfd and one timespec of this frame; no signal mask.
    match cvt(unsafe { libc::ppoll(&mut p, 1, &ts, std::ptr::null()) }) {
        Ok(n) => Ok(n > 0),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(e) => Err(e),
    }
}

pub(crate) fn timespec(d: Duration) -> libc::timespec {
    libc::timespec { tv_sec: d.as_secs().min(1 << 31) as libc::time_t, tv_nsec: d.subsec_nanos() as libc::c_long }
}

/// Lets this process, and what it starts, hold as many descriptors as its hard limit permits: two
/// thousand client connections do not fit into the usual 1024.
pub(crate) fn raise_nofile() {
    let mut r = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit of this frame.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut r) } == 0 && r.rlim_cur < r.rlim_max {
        r.rlim_cur = r.rlim_max.min(1 << 20);
        // SAFETY: as above.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &r) };
    }
}

/// Lets this process, and what it starts, hold so many descriptors, beyond the hard limit where that may be; tells how
/// many it may hold now.
pub fn allow_descriptors(n: u64) -> io::Result<u64> {
    let mut r = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit of this frame.
    cvt(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut r) })?;
    for max in [r.rlim_max.max(n), r.rlim_max] {
        if r.rlim_cur >= n.min(max) {
            break;
        }
        let wanted = libc::rlimit { rlim_cur: n.min(max), rlim_max: max };
        // SAFETY: as above.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &wanted) } == 0 {
            return Ok(wanted.rlim_cur);
        }
    }
    Ok(r.rlim_cur)
}

/// An epoll instance; tokens are the caller's numbers.
pub(crate) struct Epoll(OwnedFd);

impl Epoll {
    pub(crate) fn new() -> io::Result<Epoll> {
        // SAFETY: no memory is passed.
        cvt(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(|fd| Epoll(owned(fd)))
    }

    fn ctl(&self, op: i32, fd: RawFd, events: i32, token: u64) -> io::Result<()> {
        let mut ev = libc::epoll_event { events: events as u32, u64: token };
        // SAFETY: the event lives through the call.
        cvt(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), op, fd, &mut ev) }).map(drop)
    }

    pub(crate) fn add(&self, fd: RawFd, events: i32, token: u64) -> io::Result<()> {
        self.ctl(libc::EPOLL_CTL_ADD, fd, events, token)
    }

    pub(crate) fn modify(&self, fd: RawFd, events: i32, token: u64) -> io::Result<()> {
        self.ctl(libc::EPOLL_CTL_MOD, fd, events, token)
    }

    pub(crate) fn remove(&self, fd: RawFd) {
        let _ = self.ctl(libc::EPOLL_CTL_DEL, fd, 0, 0);
    }

    /// Waits with a resolution finer than a millisecond (a client that sends every millisecond needs it).
    pub(crate) fn wait(&self, events: &mut Vec<libc::epoll_event>, timeout: Option<Duration>) -> io::Result<()> {
        let ts = timeout.map(timespec);
        let tsp = ts.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        events.clear();
        // SAFETY: the kernel writes at most `capacity` events into the vector's own buffer; the length is
        // set to what it reports as written; no signal mask.
        let n = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.0.as_raw_fd(),
                events.as_mut_ptr(),
                events.capacity() as libc::c_int,
                tsp,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        if n < 0 {
            let e = io::Error::last_os_error();
            return if e.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(e) };
        }
        // SAFETY: the kernel has initialised the first n elements, n <= capacity.
        unsafe { events.set_len(n as usize) };
        Ok(())
    }
}

/// An eventfd that wakes a thread out of its epoll or poll.
pub(crate) struct Waker(OwnedFd);

impl Waker {
    pub(crate) fn new() -> io::Result<Waker> {
        // SAFETY: no memory is passed.
        cvt(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }).map(|fd| Waker(owned(fd)))
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    pub(crate) fn wake(&self) {
        let one = 1u64;
        // SAFETY: eight bytes of a live u64.
        unsafe { libc::write(self.fd(), std::ptr::from_ref(&one).cast(), 8) };
    }

    pub(crate) fn clear(&self) {
        let mut v = 0u64;
        // SAFETY: eight bytes into a live u64; the descriptor does not block.
        unsafe { libc::read(self.fd(), std::ptr::from_mut(&mut v).cast(), 8) };
    }
}
