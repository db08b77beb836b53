//! epoll with the manager's own names for what it watches.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Most events taken at once.
const BATCH: usize = 64;

/// What the manager watches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Token {
    /// Inbound packets.
    QueueIn,
    /// Outbound packets.
    QueueOut,
    /// New replication connections.
    LinkListener,
    /// The replication connection.
    Link,
    /// Heartbeats.
    Heartbeat,
    /// Answers of others in reach.
    Reach,
    /// New control connections.
    Control,
    /// A control connection.
    Asker(u32),
    /// New applications.
    Channels,
    /// Requests of an application.
    Channel(u32),
    /// Hook events of an application.
    Kick(u32),
    /// The death of an application.
    Process(u32),
    /// The death of the program that we started.
    Program,
    /// Signals to ourselves.
    Signal,
    /// Routers' words on packets that were too long.
    PathMtu,
    /// What became of what is ours on this host.
    Guard,
    /// What the program says of itself.
    Notify,
}

impl Token {
    fn pack(self) -> u64 {
        let (kind, id) = match self {
            Token::QueueIn => (0, 0),
            Token::QueueOut => (1, 0),
            Token::LinkListener => (2, 0),
            Token::Link => (3, 0),
            Token::Heartbeat => (5, 0),
            Token::Reach => (6, 0),
            Token::Control => (7, 0),
            Token::Asker(id) => (8, id),
            Token::Channels => (9, 0),
            Token::Channel(id) => (10, id),
            Token::Kick(id) => (11, id),
            Token::Process(id) => (12, id),
            Token::Program => (13, 0),
            Token::Signal => (14, 0),
            Token::PathMtu => (15, 0),
            Token::Guard => (16, 0),
            Token::Notify => (17, 0),
        };
        kind << 32 | u64::from(id)
    }

    fn unpack(packed: u64) -> Token {
        let id = packed as u32;
        match packed >> 32 {
            0 => Token::QueueIn,
            1 => Token::QueueOut,
            2 => Token::LinkListener,
            3 => Token::Link,
            5 => Token::Heartbeat,
            6 => Token::Reach,
            7 => Token::Control,
            8 => Token::Asker(id),
            9 => Token::Channels,
            10 => Token::Channel(id),
            11 => Token::Kick(id),
            12 => Token::Process(id),
            13 => Token::Program,
            15 => Token::PathMtu,
            16 => Token::Guard,
            17 => Token::Notify,
            _ => Token::Signal,
        }
    }
}

/// One thing that happened.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// To what.
    pub token: Token,
    /// It can be read, or has failed.
    pub readable: bool,
    /// It can be written.
    pub writable: bool,
}

/// An epoll instance.
pub struct Poller {
    fd: OwnedFd,
}

impl Poller {
    /// A new one.
    pub fn new() -> io::Result<Poller> {
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor just made, owned by nobody else.
        Ok(Poller { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Watches a descriptor for readable.
    pub fn add(&self, fd: RawFd, token: Token) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, true, false)
    }

    /// Changes what a descriptor is watched for.
    pub fn set(&self, fd: RawFd, token: Token, read: bool, write: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, read, write)
    }

    /// Stops watching; a descriptor that is gone already is no error.
    pub fn remove(&self, fd: RawFd) {
        let _gone = self.control(libc::EPOLL_CTL_DEL, fd, Token::Signal, false, false);
    }

    fn control(&self, op: libc::c_int, fd: RawFd, token: Token, read: bool, write: bool) -> io::Result<()> {
        let events = if read { libc::EPOLLIN } else { 0 } | if write { libc::EPOLLOUT } else { 0 };
        let mut event = libc::epoll_event { events: events as u32, u64: token.pack() };
        // SAFETY: the pointer is that of `event`, which lives through the call.
        let result = unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), op, fd, &raw mut event) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Waits; an interrupted wait is an empty one.
    pub fn wait(&self, timeout: Duration, out: &mut Vec<Ready>) -> io::Result<()> {
        // SAFETY: all zeroes is a valid value of this plain C structure.
        let mut events: [libc::epoll_event; BATCH] = unsafe { mem::zeroed() };
        // Rounded up: waking before a timer is due would spin.
        let ms = timeout.as_nanos().div_ceil(1_000_000).min(60_000) as libc::c_int;
        // SAFETY: pointer and count are those of `events`, which lives through the call.
        let n = unsafe { libc::epoll_wait(self.fd.as_raw_fd(), events.as_mut_ptr(), BATCH as libc::c_int, ms) };
        if n < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        out.extend(events[..n as usize].iter().map(|e| {
            let bits = e.events as libc::c_int;
            Ready {
                token: Token::unpack(e.u64),
                readable: bits & (libc::EPOLLIN | libc::EPOLLERR | libc::EPOLLHUP) != 0,
                writable: bits & (libc::EPOLLOUT | libc::EPOLLERR | libc::EPOLLHUP) != 0,
            }
        }));
        Ok(())
    }
}
