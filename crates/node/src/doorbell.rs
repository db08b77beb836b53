//! The local connection that wakes whoever waits on a listener. The kernel has no way to take a connection back that
//! waits to be accepted, so it is the accept hook that does: whoever accepts sees by the connection itself what it is.

use std::io::{self, Write};
use std::mem;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::channel::client::nap;
use crate::repair::with_sockaddr;

/// The longest segment that a doorbell takes, and about the shortest that Linux lets anybody ask for (88). Nobody else has
/// such a number: connections of this host to itself have tens of thousands, or what somebody asks for. Of it timestamps
/// and the IP options of a listener take their part.
const MSS: u32 = 89;

/// Whether a doorbell that was rung has not been taken off yet.
pub fn waits(rung: &TcpStream) -> bool {
    rung.peer_addr().is_ok() && rung.peek(&mut [0]).is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
}

/// Whether an accepted connection is a doorbell. Asks the kernel alone, so that every process knows, whether it has joined,
/// or can, or not.
pub fn is_one(fd: RawFd, local: SocketAddr, peer: SocketAddr) -> bool {
    // From the virtual IP to itself.
    if local.ip().to_canonical() != peer.ip().to_canonical() {
        return false;
    }
    // SAFETY: all-zero is a valid tcp_info.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = mem::size_of_val(&info) as libc::socklen_t;
    // SAFETY: the pointers are those of `info` and of its length, which live through the call.
    let result = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &mut length) };
    result == 0 && info.tcpi_snd_mss <= MSS
}

/// How often it is looked whether another process has let a listener go, and how long is waited in between.
const TRIES: usize = 50;
const NAP: Duration = Duration::from_millis(1);

/// The lock of a listener for one of the processes that share it: who takes doorbells off without blocking changes it for that
/// moment. It is a record lock of the kernel's, which ends with its process (an exec does not end it), and if that closes any copy
/// of the descriptor. It keeps no other thread of the process out.
pub struct Alone(RawFd);

impl Alone {
    /// `None`: another process has had the listener for long. Where it cannot be locked at all it is not.
    #[must_use]
    pub fn with(listener: RawFd) -> Option<Alone> {
        for _ in 0..TRIES {
            if lock(listener, libc::F_WRLCK) == 0 {
                return Some(Alone(listener));
            }
            // Linux says nothing else of a lock that is held. EACCES is a security module's.
            let held = io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
            if !held {
                return Some(Alone(listener));
            }
            nap(NAP);
        }
        None
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        lock(self.0, libc::F_UNLCK);
    }
}

fn lock(fd: RawFd, kind: libc::c_int) -> libc::c_int {
    // SAFETY: all-zero is a valid flock, and means all of a file.
    let mut record: libc::flock = unsafe { mem::zeroed() };
    record.l_type = kind as libc::c_short;
    record.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the pointer is that of `record`, which lives through the call.
    unsafe { libc::fcntl(fd, libc::F_SETLK, &raw const record) }
}

/// Connects from an address of this host to a port of the same, and sends one byte: a listener with TCP_DEFER_ACCEPT wakes
/// only for data. Over lo the connection is made before connect returns, or refused.
pub fn ring(address: IpAddr, port: u16) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // A full accept queue must not stop the manager: the connection may come about later.
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor just made, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mss = MSS as libc::c_int;
    let length = mem::size_of_val(&mss) as libc::socklen_t;
    // SAFETY: the pointer and the length are those of `mss`.
    let set = unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_MAXSEG, (&raw const mss).cast(), length) };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    // A listener may believe only what comes from near (IP_MINTTL, IPV6_MINHOPCOUNT).
    let (level, name) = if address.is_ipv4() { (libc::SOL_IP, libc::IP_TTL) } else { (libc::SOL_IPV6, libc::IPV6_UNICAST_HOPS) };
    let longest: libc::c_int = 255;
    let length = mem::size_of_val(&longest) as libc::socklen_t;
    // SAFETY: the pointer and the length are those of `longest`, which lives through the call.
    if unsafe { libc::setsockopt(fd, level, name, (&raw const longest).cast(), length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the pointer and the length are those of an address that lives through the call.
    let bound = with_sockaddr(&SocketAddr::new(address, 0), |at, length| unsafe { libc::bind(fd, at, length) });
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the pointer and the length are those of an address that lives through the call.
    let result =
        with_sockaddr(&SocketAddr::new(address, port), |to, length| unsafe { libc::connect(socket.as_raw_fd(), to, length) });
    if result < 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINPROGRESS) {
            return Err(error);
        }
    }
    let mut stream = TcpStream::from(socket);
    match stream.write(b"\n") {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(stream),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn whoever_accepts_knows_a_doorbell_from_a_client() {
        for address in ["127.0.0.1", "::1"] {
            let listener = TcpListener::bind((address, 0)).unwrap();
            let at = listener.local_addr().unwrap();
            let bell = ring(at.ip(), at.port()).unwrap();
            assert!(waits(&bell));
            let (accepted, peer) = listener.accept().unwrap();
            assert!(waits(&bell) && is_one(accepted.as_raw_fd(), at, peer));
            drop(accepted);
            assert!(!waits(&bell));
            let client = TcpStream::connect(at).unwrap();
            let (accepted, peer) = listener.accept().unwrap();
            assert!(!is_one(accepted.as_raw_fd(), at, peer));
            drop(client);
            // One that has gone meanwhile is known all the same.
            drop(ring(at.ip(), at.port()).unwrap());
            let (accepted, peer) = listener.accept().unwrap();
            assert!(is_one(accepted.as_raw_fd(), at, peer));
        }
    }
}
