//! The few socket calls that the standard library lacks: a connect that does not wait, and epoll.

use std::io;
use std::mem;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Starts a connection from `local` (any port of it, if 0) and returns before it is made.
pub(crate) fn start_connect(to: SocketAddr, local: Option<SocketAddr>, user_timeout: Duration) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: a descriptor just made, owned by nobody else.
    let stream = TcpStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    if let Some(local) = local {
        let (address, length) = raw_address(local);
        // SAFETY: the pointer and length are those of a socket address that lives through the call.
        check(unsafe { libc::bind(fd, (&raw const address).cast(), length) })?;
    }
    tune(&stream, user_timeout)?;
    let (address, length) = raw_address(to);
    // SAFETY: as above.
    match check(unsafe { libc::connect(fd, (&raw const address).cast(), length) }) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(stream),
    }
}

/// The options of either end of a link.
pub(crate) fn tune(stream: &TcpStream, user_timeout: Duration) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    let timeout = user_timeout.as_millis() as libc::c_uint;
    // SAFETY: the pointer and length are those of `timeout`, which lives through the call.
    check(unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_USER_TIMEOUT,
            (&raw const timeout).cast(),
            mem::size_of_val(&timeout) as libc::socklen_t,
        )
    })
}

fn raw_address(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all zeroes is a valid value of this plain C structure.
    let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let at = &raw mut storage;
    let length = match address {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: a sockaddr_storage has room and alignment for every socket address.
            unsafe { at.cast::<libc::sockaddr_in>().write(raw) };
            mem::size_of_val(&raw)
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { at.cast::<libc::sockaddr_in6>().write(raw) };
            mem::size_of_val(&raw)
        }
    };
    (storage, length as libc::socklen_t)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// An epoll instance, which can itself be watched by another one.
pub(crate) struct Epoll(OwnedFd);

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        check(fd)?;
        // SAFETY: a descriptor just made, owned by nobody else.
        Ok(Epoll(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Watches `fd` from now on, or watches it for something else.
    pub fn set(&self, fd: RawFd, read: bool, write: bool) -> io::Result<()> {
        let mut events = 0;
        if read {
            events |= libc::EPOLLIN as u32;
        }
        if write {
            events |= libc::EPOLLOUT as u32;
        }
        let mut event = libc::epoll_event { events, u64: fd as u64 };
        // SAFETY: `event` lives through both calls.
        match check(unsafe { libc::epoll_ctl(self.fd(), libc::EPOLL_CTL_MOD, fd, &raw mut event) }) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                // SAFETY: as above.
                check(unsafe { libc::epoll_ctl(self.fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) })
            }
            result => result,
        }
    }

    pub fn remove(&self, fd: RawFd) {
        // SAFETY: no event is passed, which is allowed for this operation.
        unsafe { libc::epoll_ctl(self.fd(), libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut()) };
    }

    /// What is ready, up to 16 at a time: (descriptor, readable, writable). Errors count as both.
    pub fn wait(&self, timeout_ms: i32) -> io::Result<impl Iterator<Item = (RawFd, bool, bool)>> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
        // SAFETY: the pointer and length are those of `events`.
        let count = unsafe { libc::epoll_wait(self.fd(), events.as_mut_ptr(), events.len() as libc::c_int, timeout_ms) };
        check(count)?;
        Ok(events.into_iter().take(count as usize).map(|event| {
            let happened = event.events;
            let failed = happened & (libc::EPOLLERR | libc::EPOLLHUP) as u32 != 0;
            let readable = happened & libc::EPOLLIN as u32 != 0;
            let writable = happened & libc::EPOLLOUT as u32 != 0;
            (event.u64 as RawFd, readable || failed, writable || failed)
        }))
    }

    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
