//! Clients that check every byte they receive: what a peer of a protected service would notice.
//!
//! All of them run their connections on one thread with epoll, are deterministic for a given seed (sizes,
//! contents and pauses, as far as time lets them), never reconnect, and share the controls and statistics
//! of [`Clients`].

mod chat;
mod echo;
mod engine;
mod memcached;
mod stream;

pub use chat::{ChatClients, ChatOptions, Heard};
pub use echo::{EchoClients, EchoOptions};
#[doc(hidden)]
pub use engine::Protocol;
pub use engine::{ClientError, Clients, End, Failure, Stall, Stats};
pub use memcached::{MemcachedClients, MemcachedOptions};
pub use stream::{StreamClient, StreamOptions};

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use crate::sys;

/// A connection from this very port, be it only just out of use; made and, later, written within the timeout.
pub fn connect_from(port: u16, to: SocketAddrV4, timeout: Duration) -> io::Result<TcpStream> {
    let reuse = (libc::SOL_SOCKET, libc::SO_REUSEADDR);
    connect_bound(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port), reuse, to, timeout)
}

/// A connection from this address and any port: one address has no more than 64,512 of them.
pub fn connect_via(source: Ipv4Addr, to: SocketAddrV4, timeout: Duration) -> io::Result<TcpStream> {
    // The port is chosen when the peer is known: one that is in use towards somebody else will do.
    let late = (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT);
    connect_bound(SocketAddrV4::new(source, 0), late, to, timeout)
}

fn connect_bound(source: SocketAddrV4, option: (i32, i32), to: SocketAddrV4, timeout: Duration) -> io::Result<TcpStream> {
    let socket = sys::socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    let fd = socket.as_fd();
    sys::setsockopt(fd, option.0, option.1, &1)?;
    let time = libc::timeval { tv_sec: timeout.as_secs() as libc::time_t, tv_usec: 0 };
    sys::setsockopt(fd, libc::SOL_SOCKET, libc::SO_SNDTIMEO, &time)?;
    sys::name_v4(fd, libc::bind, source)?;
    sys::name_v4(fd, libc::connect, to)?;
    Ok(TcpStream::from(socket))
}

/// How much and how often a client sends: both ranges include their ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bytes of a write (of a line's payload in a chat).
    pub bytes: (u32, u32),
    /// Pause after it.
    pub pause: (Duration, Duration),
}

impl Rate {
    /// Writes of `bytes` bytes with pauses of `pause_ms` milliseconds between them.
    pub const fn new(bytes: (u32, u32), pause_ms: (u64, u64)) -> Rate {
        Rate { bytes, pause: (Duration::from_millis(pause_ms.0), Duration::from_millis(pause_ms.1)) }
    }

    /// Mostly silent: a small write every second or so.
    pub const fn idle() -> Rate {
        Rate::new((1, 64), (500, 1500))
    }

    /// Small to middling writes every few milliseconds.
    pub const fn normal() -> Rate {
        Rate::new((1, 3000), (0, 30))
    }

    /// Writes of up to 16 KiB nearly without pause.
    pub const fn busy() -> Rate {
        Rate::new((1, 16_384), (0, 2))
    }
}
