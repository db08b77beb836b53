//! Which socket options a recovered connection has from the one before: those of its listener, and those that the program set
//! on the connection.

use libc::c_int;
use tcpr_node::channel::client::Client;
use tcpr_node::channel::Event;
use tcpr_session::options::{self, LONGEST};

use super::lent_timeout::is_lent_to;
use crate::sys;

/// An option of a connection that outlives its process.
struct Kept {
    level: c_int,
    name: c_int,
    /// An accepted socket inherits the option from its listener.
    inherited: bool,
    /// The option is kept, too, if it was set on the connection itself. If not, it belongs to what the program was just doing.
    own: bool,
}

const fn kept(level: c_int, name: c_int) -> Kept {
    Kept { level, name, inherited: true, own: true }
}

const fn of_listener(level: c_int, name: c_int) -> Kept {
    Kept { level, name, inherited: true, own: false }
}

/// Options that an accepted socket inherits from its listener (but for one), and that can be set on an existing connection. An
/// option that changes another one stands before it. `docs/socket-options.md` has them by name, and those that cannot be
/// restored.
const KEPT: &[Kept] = &[
    kept(libc::SOL_IP, libc::IP_TOS),
    kept(libc::SOL_IP, libc::IP_TTL),
    kept(libc::SOL_IP, libc::IP_RECVOPTS),
    kept(libc::SOL_IP, libc::IP_RETOPTS),
    kept(libc::SOL_IP, libc::IP_PKTINFO),
    kept(libc::SOL_IP, libc::IP_MTU_DISCOVER),
    kept(libc::SOL_IP, libc::IP_RECVERR),
    kept(libc::SOL_IP, libc::IP_RECVTTL),
    kept(libc::SOL_IP, libc::IP_RECVTOS),
    kept(libc::SOL_IP, libc::IP_FREEBIND),
    kept(libc::SOL_IP, 18), // IP_PASSSEC
    kept(libc::SOL_IP, libc::IP_TRANSPARENT),
    kept(libc::SOL_IP, 20), // IP_RECVORIGDSTADDR
    kept(libc::SOL_IP, 21), // IP_MINTTL
    kept(libc::SOL_IP, 23), // IP_CHECKSUM
    kept(libc::SOL_IP, 24), // IP_BIND_ADDRESS_NO_PORT
    kept(libc::SOL_IP, 25), // IP_RECVFRAGSIZE
    kept(libc::SOL_IP, 26), // IP_RECVERR_RFC4884
    kept(libc::SOL_IP, 34), // IP_MULTICAST_LOOP
    kept(libc::SOL_IP, 49), // IP_MULTICAST_ALL
    kept(libc::SOL_IP, 50), // IP_UNICAST_IF
    kept(libc::SOL_IP, 51), // IP_LOCAL_PORT_RANGE
    kept(libc::SOL_IPV6, libc::IPV6_TCLASS),
    kept(libc::SOL_IPV6, libc::IPV6_UNICAST_HOPS),
    kept(libc::SOL_IPV6, libc::IPV6_MULTICAST_LOOP),
    kept(libc::SOL_IPV6, 23), // IPV6_MTU_DISCOVER
    kept(libc::SOL_IPV6, 25), // IPV6_RECVERR
    kept(libc::SOL_IPV6, 29), // IPV6_MULTICAST_ALL
    kept(libc::SOL_IPV6, 31), // IPV6_RECVERR_RFC4884
    kept(libc::SOL_IPV6, 33), // IPV6_FLOWINFO_SEND
    kept(libc::SOL_IPV6, libc::IPV6_RECVPKTINFO),
    kept(libc::SOL_IPV6, 51), // IPV6_RECVHOPLIMIT
    kept(libc::SOL_IPV6, 53), // IPV6_RECVHOPOPTS
    kept(libc::SOL_IPV6, 56), // IPV6_RECVRTHDR
    kept(libc::SOL_IPV6, 58), // IPV6_RECVDSTOPTS
    kept(libc::SOL_IPV6, 60), // IPV6_RECVPATHMTU
    kept(libc::SOL_IPV6, 62), // IPV6_DONTFRAG
    kept(libc::SOL_IPV6, libc::IPV6_RECVTCLASS),
    kept(libc::SOL_IPV6, 70), // IPV6_AUTOFLOWLABEL
    kept(libc::SOL_IPV6, 72), // IPV6_ADDR_PREFERENCES
    kept(libc::SOL_IPV6, 73), // IPV6_MINHOPCOUNT
    kept(libc::SOL_IPV6, 74), // IPV6_RECVORIGDSTADDR
    kept(libc::SOL_IPV6, 75), // IPV6_TRANSPARENT
    kept(libc::SOL_IPV6, 76), // IPV6_UNICAST_IF
    kept(libc::SOL_IPV6, 77), // IPV6_RECVFRAGSIZE
    kept(libc::SOL_IPV6, 78), // IPV6_FREEBIND
    kept(libc::SOL_SOCKET, libc::SO_DEBUG),
    kept(libc::SOL_SOCKET, libc::SO_DONTROUTE),
    kept(libc::SOL_SOCKET, libc::SO_BROADCAST),
    kept(libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    kept(libc::SOL_SOCKET, libc::SO_OOBINLINE),
    kept(libc::SOL_SOCKET, libc::SO_NO_CHECK),
    // The kernel gives an accepted socket none, whatever the listener's is.
    Kept { level: libc::SOL_SOCKET, name: libc::SO_PRIORITY, inherited: false, own: true },
    kept(libc::SOL_SOCKET, libc::SO_LINGER),
    kept(libc::SOL_SOCKET, libc::SO_REUSEPORT),
    // A read of a program that does not ask for it would wait for ever.
    of_listener(libc::SOL_SOCKET, libc::SO_RCVLOWAT),
    kept(libc::SOL_SOCKET, libc::SO_RCVTIMEO),
    kept(libc::SOL_SOCKET, libc::SO_SNDTIMEO),
    kept(libc::SOL_SOCKET, libc::SO_BINDTODEVICE),
    kept(libc::SOL_SOCKET, libc::SO_TIMESTAMP),
    kept(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS),
    kept(libc::SOL_SOCKET, libc::SO_TIMESTAMPING),
    kept(libc::SOL_SOCKET, libc::SO_MARK),
    kept(libc::SOL_SOCKET, libc::SO_RXQ_OVFL),
    kept(libc::SOL_SOCKET, 41), // SO_WIFI_STATUS
    kept(libc::SOL_SOCKET, libc::SO_PEEK_OFF),
    kept(libc::SOL_SOCKET, 43), // SO_NOFCS
    kept(libc::SOL_SOCKET, 45), // SO_SELECT_ERR_QUEUE
    kept(libc::SOL_SOCKET, libc::SO_BUSY_POLL),
    kept(libc::SOL_SOCKET, 47), // SO_MAX_PACING_RATE
    kept(libc::SOL_SOCKET, 69), // SO_PREFER_BUSY_POLL
    kept(libc::SOL_SOCKET, 70), // SO_BUSY_POLL_BUDGET
    kept(libc::SOL_SOCKET, 74), // SO_TXREHASH
    kept(libc::SOL_SOCKET, 75), // SO_RCVMARK
    kept(libc::SOL_TCP, libc::TCP_NODELAY),
    of_listener(libc::SOL_TCP, libc::TCP_CORK),
    kept(libc::SOL_TCP, libc::TCP_KEEPIDLE),
    kept(libc::SOL_TCP, libc::TCP_KEEPINTVL),
    kept(libc::SOL_TCP, libc::TCP_KEEPCNT),
    kept(libc::SOL_TCP, libc::TCP_SYNCNT),
    kept(libc::SOL_TCP, libc::TCP_LINGER2),
    kept(libc::SOL_TCP, libc::TCP_WINDOW_CLAMP),
    kept(libc::SOL_TCP, libc::TCP_CONGESTION),
    kept(libc::SOL_TCP, 16), // TCP_THIN_LINEAR_TIMEOUTS
    kept(libc::SOL_TCP, libc::TCP_USER_TIMEOUT),
    kept(libc::SOL_TCP, 25), // TCP_NOTSENT_LOWAT
    kept(libc::SOL_TCP, 27), // TCP_SAVE_SYN
    kept(libc::SOL_TCP, 36), // TCP_INQ
    kept(libc::SOL_TCP, 37), // TCP_TX_DELAY
    kept(libc::SOL_TCP, 44), // TCP_RTO_MAX_MS
    kept(libc::SOL_TCP, 45), // TCP_RTO_MIN_US
    kept(libc::SOL_TCP, 46), // TCP_DELACK_MAX_US
];

/// Buffer sizes, which the kernel does not give back as they were set. If they are set on a connection they are kept, too.
const SIZES: [c_int; 4] = [libc::SO_SNDBUF, libc::SO_RCVBUF, libc::SO_SNDBUFFORCE, libc::SO_RCVBUFFORCE];

/// Whether a recovered connection is to have this option as well, if the program sets it on this one.
pub fn outlives(level: c_int, name: c_int) -> bool {
    KEPT.iter().any(|k| k.own && (k.level, k.name) == (level, name)) || level == libc::SOL_SOCKET && SIZES.contains(&name)
}

/// The program has set an option of a connection: tells the manager the value that the kernel gives.
pub fn tell(client: &Client, handle: u32, fd: c_int, level: c_int, name: c_int) {
    let mut room = [0; LONGEST];
    let size = match name {
        libc::SO_SNDBUF | libc::SO_SNDBUFFORCE => Some(libc::SO_SNDBUF),
        libc::SO_RCVBUF | libc::SO_RCVBUFFORCE => Some(libc::SO_RCVBUF),
        _ => None,
    };
    // The kernel doubles what it is given.
    let half = size
        .filter(|_| level == libc::SOL_SOCKET)
        .and_then(|size| sys::option::<c_int>(fd, level, size))
        .map(|size| (size / 2).to_ne_bytes());
    let value = match &half {
        Some(half) => Some(&half[..]),
        None => sys::option_bytes(fd, level, name, &mut room).map(|value| &*value),
    };
    if let Some(value) = value {
        client.push(&Event::Option { handle, level: level as u8, name: name as u8, value });
    }
}

/// The options of KEPT in which a recovered socket differs from its listener, with the listener's values: see
/// `tcpr_session::options`.
fn lacking(listener: c_int, fd: c_int) -> Vec<u8> {
    let mut run = Vec::new();
    for Kept { level, name, inherited, .. } in KEPT {
        if !inherited {
            // Setting IP_TOS has changed this one (SO_PRIORITY).
            options::append(&mut run, *level as u8, *name as u8, &[0; 4]);
            continue;
        }
        if (*level, *name) == (libc::SOL_SOCKET, libc::SO_RCVTIMEO) && is_lent_to(listener) {
            continue;
        }
        let (mut wanted, mut has) = ([0; LONGEST], [0; LONGEST]);
        let Some(wanted) = sys::option_bytes(listener, *level, *name, &mut wanted) else { continue };
        if sys::option_bytes(fd, *level, *name, &mut has).as_deref() != Some(wanted) {
            options::append(&mut run, *level as u8, *name as u8, wanted);
        }
    }
    run
}

/// Sets the options of a run. The kernel may refuse some: the program has given up a privilege.
pub fn give(fd: c_int, run: &[u8]) {
    for (level, name, value) in options::each(run) {
        if !sys::set_option_bytes(fd, level.into(), name.into(), value) {
            log::debug!("descriptor {fd}: option {level}/{name}: {}", std::io::Error::last_os_error());
        }
    }
}

/// What an accepted socket has from its listener and a restored one lacks. All sockets of a batch lack the same, so the first
/// one is compared.
pub struct Inherited {
    listener: c_int,
    options: Vec<u8>,
    /// As the kernel gives it: twice what was set.
    receive_buffer: Option<c_int>,
    /// The same, with SO_BUF_LOCK: which sizes the program has fixed.
    send_buffer: Option<(c_int, c_int)>,
}

impl Inherited {
    /// Whether this is what sockets have from that listener.
    pub fn is_from(&self, listener: c_int) -> bool {
        self.listener == listener
    }

    /// Compares a restored socket with the listener.
    pub fn lacking(listener: c_int, fd: c_int) -> Inherited {
        let socket = libc::SOL_SOCKET;
        // A kernel that does not tell what the program has set could not be told to go on tuning either.
        let locked = sys::option::<c_int>(listener, socket, SO_BUF_LOCK);
        let size = |option| sys::option::<c_int>(listener, socket, option);
        let receive_buffer = locked.filter(|locked| locked & 2 != 0).and_then(|_| size(libc::SO_RCVBUF));
        // Always: the size that the manager set to hold the queue would else grow with every failover, as the queue fills it.
        let send_buffer = locked.and_then(|locked| Some((size(libc::SO_SNDBUF)?, locked)));
        Inherited { listener, options: lacking(listener, fd), receive_buffer, send_buffer }
    }

    /// Gives it to a restored socket.
    pub fn give(&self, fd: c_int) {
        give(fd, &self.options);
        // The kernel doubles what it is given.
        if let Some(size) = self.receive_buffer {
            sys::set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, size / 2);
        }
        if let Some((size, locked)) = self.send_buffer {
            set_send_buffer(fd, size / 2, locked);
        }
    }
}

/// The option that says which buffer sizes the kernel does not tune: `SOCK_SNDBUF_LOCK` is 1, `SOCK_RCVBUF_LOCK` 2 (Linux 5.14).
pub const SO_BUF_LOCK: c_int = 72;

/// Sets a send buffer's size without the lock that comes with it: the kernel may shrink it when memory runs short.
pub fn set_send_buffer(fd: c_int, size: c_int, locked: c_int) {
    let set = |option| sys::set_option(fd, libc::SOL_SOCKET, option, size);
    if set(libc::SO_SNDBUFFORCE) || set(libc::SO_SNDBUF) {
        sys::set_option(fd, libc::SOL_SOCKET, SO_BUF_LOCK, locked);
    }
}
