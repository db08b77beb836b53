//! The local connection that wakes whoever waits on a listener.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::repair::with_sockaddr;

/// Whether a doorbell that was rung has not been taken off yet.
pub fn waits(rung: &TcpStream) -> bool {
    let asked = rung.peek(&mut [0]);
    rung.peer_addr().is_ok() && asked.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
}

/// A doorbell before it is rung: bound, so that its port can be announced first.
pub struct Doorbell {
    socket: OwnedFd,
    address: IpAddr,
    /// Its own port.
    pub port: u16,
}

impl Doorbell {
    /// Binds a socket to any port of the address.
    pub fn new(address: IpAddr) -> io::Result<Doorbell> {
        let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor just made, owned by nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: the pointer and the length are those of an address that lives through the call.
        let result = with_sockaddr(&SocketAddr::new(address, 0), |at, length| unsafe { libc::bind(fd, at, length) });
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // A listener may believe only what comes from near (IP_MINTTL, IPV6_MINHOPCOUNT).
        let (level, name) = if address.is_ipv4() { (libc::SOL_IP, libc::IP_TTL) } else { (libc::SOL_IPV6, libc::IPV6_UNICAST_HOPS) };
        let longest: libc::c_int = 255;
        // SAFETY: the pointer and the length are those of `longest`, which lives through the call.
        if unsafe { libc::setsockopt(fd, level, name, (&raw const longest).cast(), size_of_val(&longest) as libc::socklen_t) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = TcpStream::from(socket);
        let port = socket.local_addr()?.port();
        Ok(Doorbell { socket: socket.into(), address, port })
    }

    /// Connects to the listener and sends one byte: one with TCP_DEFER_ACCEPT wakes only for data. Over lo the
    /// connection is made before connect returns, or refused.
    pub fn ring(self, port: u16) -> io::Result<TcpStream> {
        let fd = self.socket.as_raw_fd();
        // A full accept queue must not stop the manager: the connection may come about later.
        // SAFETY: no pointers.
        unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) };
        let to = SocketAddr::new(self.address, port);
        // SAFETY: the pointer and the length are those of an address that lives through the call.
        let result = with_sockaddr(&to, |to, length| unsafe { libc::connect(fd, to, length) });
        if result < 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EINPROGRESS) {
                return Err(error);
            }
        }
        let mut stream = TcpStream::from(self.socket);
        match stream.write(b"\n") {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(stream),
        }
    }
}
