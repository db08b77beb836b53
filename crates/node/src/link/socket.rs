//! The few socket calls that the standard library lacks: a connect that does not wait, and epoll.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::set_tcp_user_timeout;
use rustix::net::{bind, connect, socket_with, AddressFamily, SocketFlags, SocketType};

/// Starts a connection from `local` (any port of it, if 0) and returns before it is made.
pub(crate) fn start_connect(to: SocketAddr, local: Option<SocketAddr>, user_timeout: Duration) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    if let Some(local) = local {
        bind(&socket, &local)?;
    }
    let stream = TcpStream::from(socket);
    tune(&stream, user_timeout)?;
    match connect(&stream, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(stream),
        Err(error) => Err(error.into()),
    }
}

/// The options of either end of a link.
pub(crate) fn tune(stream: &TcpStream, user_timeout: Duration) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    Ok(set_tcp_user_timeout(stream, user_timeout.as_millis() as u32)?)
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
