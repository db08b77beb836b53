//! SIGTERM, SIGINT and SIGCHLD as a descriptor.
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The signals that end a service, and the one that tells of ended children.
pub struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Blocks them in the calling thread (and in those it starts) and takes them over.
    pub fn take() -> io::Result<Signals> {
        // SAFETY: all zeroes is a valid value of this plain C structure, and the calls below fill it.
        let mut set: libc::sigset_t = unsafe { mem::zeroed() };
        // SAFETY: the pointers are those of `set`, which lives through the calls; the result is checked.
        let fd = unsafe {
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            libc::sigaddset(&raw mut set, libc::SIGCHLD);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor just made, owned by nobody else.
        Ok(Signals { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Leaves all signals to the other threads of the process.
    pub fn block_all() {
        // SAFETY: all zeroes is a valid value of this plain C structure, which sigfillset fills; both outlive the calls.
        unsafe {
            let mut all: libc::sigset_t = mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
        }
    }

    /// The descriptor to watch.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// The next signal.
    pub fn read(&mut self) -> Option<u32> {
        // SAFETY: all zeroes is a valid value of this plain C structure.
        let mut info: libc::signalfd_siginfo = unsafe { mem::zeroed() };
        let size = mem::size_of_val(&info);
        // SAFETY: pointer and size are those of `info`, which lives through the call.
        let n = unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut info).cast(), size) };
        (n == size as isize).then_some(info.ssi_signo)
    }
}
