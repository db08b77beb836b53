//! The local connection that wakes whoever waits on a listener.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A doorbell before it is rung: bound, so that its port can be announced first.
pub struct Doorbell {
    socket: OwnedFd,
    address: Ipv4Addr,
    /// Its own port.
    pub port: u16,
}

fn raw(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
        sin_zero: [0; 8],
    }
}

impl Doorbell {
    /// Binds a socket to any port of the address.
    pub fn new(address: Ipv4Addr) -> io::Result<Doorbell> {
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor just made, owned by nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut at = raw(SocketAddrV4::new(address, 0));
        let mut size = size_of_val(&at) as libc::socklen_t;
        // SAFETY: pointer and size are those of `at`, which lives through the calls.
        let result = unsafe {
            match libc::bind(fd, (&raw const at).cast(), size) {
                0 => libc::getsockname(fd, (&raw mut at).cast(), &raw mut size),
                failed => failed,
            }
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Doorbell { socket, address, port: u16::from_be(at.sin_port) })
    }

    /// Connects to the listener and sends one byte: one with TCP_DEFER_ACCEPT wakes only for data. Over lo the
    /// connection is made before connect returns, or refused.
    pub fn ring(self, port: u16) -> io::Result<TcpStream> {
        let to = raw(SocketAddrV4::new(self.address, port));
        // A full accept queue must not stop the manager: the connection may come about later.
        // SAFETY: no pointers.
        unsafe { libc::fcntl(self.socket.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        // SAFETY: pointer and size are those of `to`, which lives through the call.
        let result =
            unsafe { libc::connect(self.socket.as_raw_fd(), (&raw const to).cast(), size_of_val(&to) as libc::socklen_t) };
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
