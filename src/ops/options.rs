//! Options of protected sockets: those that protection does not go together with are refused as by a kernel that lacks them, so
//! that the program goes on without; what it sets otherwise, on a listener or on a connection, a recovered connection has, too.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{c_int, socklen_t};
use tcpr_node::channel::client::{Bypass, Client};
use tcpr_node::channel::Event;
use tcpr_session::options::{self, LONGEST};

use super::accept::is_lent_to;
use super::{connection, inside};
use crate::ffi::Checked;
use crate::table::{self, Entry};
use crate::{ffi, process, real};

const TCP_REPAIR: c_int = 19;
const TCP_FASTOPEN_CONNECT: c_int = 30;
const TCP_ULP: c_int = 31;
const TCP_ZEROCOPY_RECEIVE: c_int = 35;

/// An option of a connection that outlives its process.
struct Kept {
    level: c_int,
    name: c_int,
    /// An accepted socket has it from its listener.
    inherited: bool,
    /// Also where it was set on the connection itself. If not, it belongs to what the program was just doing.
    own: bool,
}

const fn kept(level: c_int, name: c_int) -> Kept {
    Kept { level, name, inherited: true, own: true }
}

const fn of_listener(level: c_int, name: c_int) -> Kept {
    Kept { level, name, inherited: true, own: false }
}

/// Those that an accepted socket inherits from its listener (but for one), and that can be set on a connection that exists. One that
/// changes another stands before it. `docs/socket-options.md` has them by name, and those that cannot be restored.
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

/// Buffer sizes, which the kernel does not give back as they were set. Set on a connection, they are as the others.
const SIZES: [c_int; 4] = [libc::SO_SNDBUF, libc::SO_RCVBUF, libc::SO_SNDBUFFORCE, libc::SO_RCVBUFFORCE];

/// What a recovered connection is to have as well, if the program sets it on this one.
fn outlives(level: c_int, name: c_int) -> bool {
    KEPT.iter().any(|k| k.own && (k.level, k.name) == (level, name)) || level == libc::SOL_SOCKET && SIZES.contains(&name)
}

/// The program has set an option of a connection: it is told as the kernel gives it.
fn tell(client: &Client, handle: u32, fd: c_int, level: c_int, name: c_int) {
    let mut room = [0; LONGEST];
    let size = match name {
        libc::SO_SNDBUF | libc::SO_SNDBUFFORCE => Some(libc::SO_SNDBUF),
        libc::SO_RCVBUF | libc::SO_RCVBUFFORCE => Some(libc::SO_RCVBUF),
        _ => None,
    };
    // The kernel doubles what it is given.
    let half = size
        .filter(|_| level == libc::SOL_SOCKET)
        .and_then(|size| ffi::option::<c_int>(fd, level, size))
        .map(|size| (size / 2).to_ne_bytes());
    let value = match &half {
        Some(half) => Some(&half[..]),
        None => ffi::raw_option(fd, level, name, &mut room).map(|value| &*value),
    };
    if let Some(value) = value {
        client.push(&Event::Option { handle, level: level as u8, name: name as u8, value });
    }
}

/// The options of KEPT in which a recovered socket differs from its listener, with the listener's values: see
/// `tcpr_session::options`.
pub(super) fn lacking(listener: c_int, fd: c_int) -> Vec<u8> {
    let mut run = Vec::new();
    for Kept { level, name, inherited, .. } in KEPT {
        if !inherited {
            // IP_TOS has changed it.
            options::append(&mut run, *level as u8, *name as u8, &[0; 4]);
            continue;
        }
        if (*level, *name) == (libc::SOL_SOCKET, libc::SO_RCVTIMEO) && is_lent_to(listener) {
            continue;
        }
        let (mut wanted, mut has) = ([0; LONGEST], [0; LONGEST]);
        let Some(wanted) = ffi::raw_option(listener, *level, *name, &mut wanted) else { continue };
        if ffi::raw_option(fd, *level, *name, &mut has).as_deref() != Some(wanted) {
            options::append(&mut run, *level as u8, *name as u8, wanted);
        }
    }
    run
}

/// Sets the options of a run. The kernel may refuse one of them: a privilege was given up.
pub(super) fn give(fd: c_int, run: &[u8]) {
    for (level, name, value) in options::each(run) {
        if !ffi::set_raw_option(fd, level.into(), name.into(), value) {
            log::debug!("descriptor {fd}: option {level}/{name}: {}", std::io::Error::last_os_error());
        }
    }
}

/// The program has asked for SO_RCVLOWAT on some socket: a read that may wait is left to the kernel where it is set.
static LOW_WATER: AtomicBool = AtomicBool::new(false);

/// Whether this socket is one of ours, or may become one.
fn is_protected(fd: c_int) -> bool {
    let ours = matches!(
        table::get(fd),
        Some(Entry::Candidate | Entry::Listener { .. } | Entry::Connection { .. } | Entry::Calling | Entry::Arriving)
    );
    ours && !Bypass::active() && process::is_ours()
}

/// The errno with which an option cannot be set on a protected socket.
fn refused(level: c_int, name: c_int) -> Option<c_int> {
    match (level, name) {
        // The kernel would send from the memory in which the next write is announced.
        (libc::SOL_SOCKET, libc::SO_ZEROCOPY) => Some(libc::ENOPROTOOPT),
        // What is written is not what is sent (kTLS), and nobody else has what the kernel knows of it.
        (libc::SOL_TCP, TCP_ULP) => Some(libc::ENOENT),
        // Numbers and queues are the manager's to set.
        (libc::SOL_TCP, TCP_REPAIR) => Some(libc::EPERM),
        // It connects when it writes, with bytes that nobody has stored.
        (libc::SOL_TCP, TCP_FASTOPEN_CONNECT) => Some(libc::ENOPROTOOPT),
        _ => None,
    }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, length: socklen_t) -> c_int {
    if (level, name) == (libc::SOL_SOCKET, libc::SO_RCVLOWAT) {
        LOW_WATER.store(true, Ordering::Relaxed);
    }
    if let Some(errno) = refused(level, name).filter(|_| !table::is_plain(fd) && is_protected(fd)) {
        let off = name != TCP_ULP
            && !value.is_null()
            && length as usize >= size_of::<c_int>()
            && Checked::default().is_readable(value, size_of::<c_int>())
            // SAFETY: the caller's value, of which so much is there; nothing is known of its alignment.
            && unsafe { value.cast::<c_int>().read_unaligned() } == 0;
        if !off {
            ffi::set_errno(errno);
            return -1;
        }
    }
    if must_accept_at_once(fd, level, name) {
        return 0;
    }
    // SAFETY: the caller's arguments.
    let result = unsafe { real::setsockopt(fd, level, name, value, length) };
    if result == 0 && !table::is_plain(fd) && outlives(level, name) && !Bypass::active() && process::is_ours() {
        let saved = ffi::errno();
        if let Some((client, handle)) = connection(fd) {
            inside((), || tell(client, handle, fd, level, name));
        }
        ffi::set_errno(saved);
    }
    result
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, length: *mut socklen_t) -> c_int {
    // It reads, and nobody would be told how much.
    if (level, name) == (libc::SOL_TCP, TCP_ZEROCOPY_RECEIVE) && is_protected(fd) {
        ffi::set_errno(libc::ENOPROTOOPT);
        return -1;
    }
    // SAFETY: the caller's arguments.
    unsafe { real::getsockopt(fd, level, name, value, length) }
}

/// A socket that is about to connect to a protected destination sends no bytes with its SYN.
pub(super) fn connect_at_once(fd: c_int) {
    if ffi::option::<c_int>(fd, libc::SOL_TCP, TCP_FASTOPEN_CONNECT) == Some(1) {
        ffi::set_option::<c_int>(fd, libc::SOL_TCP, TCP_FASTOPEN_CONNECT, 0);
    }
}

/// A listener from which sessions are taken back in their peers' names: some of them say nothing for long, and it is to accept them
/// all the same.
pub(super) fn accept_at_once(fd: c_int) {
    ffi::set_option::<c_int>(fd, libc::SOL_TCP, libc::TCP_DEFER_ACCEPT, 0);
}

/// What is asked of such a listener is not done, and a program that is woken early waits in its first read.
fn must_accept_at_once(fd: c_int, level: c_int, name: c_int) -> bool {
    (level, name) == (libc::SOL_TCP, libc::TCP_DEFER_ACCEPT)
        && matches!(table::get(fd), Some(Entry::Listener { .. }))
        && is_protected(fd)
        && process::joined().is_some_and(|client| client.welcome().spliced)
}

/// Below how many bytes a read of this socket waits for more (SO_RCVLOWAT).
pub(super) fn low_water(fd: c_int) -> usize {
    if !LOW_WATER.load(Ordering::Relaxed) {
        return 1;
    }
    let mark = ffi::option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT);
    mark.map_or(1, |mark| usize::try_from(mark).unwrap_or(1))
}
