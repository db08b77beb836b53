//! Accepting on a protected port: sessions that the manager restored come first, as if they had just connected.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use libc::{c_int, sockaddr, sockaddr_storage, socklen_t};
use tcpr_node::channel::client::{Bypass, Client};
use tcpr_node::channel::wire::{Recovered, RecoveredInfo};
use tcpr_node::channel::{descriptor_limit, Origin};
use tcpr_session::tuple::FourTuple;

use super::inside;
use super::sockets::{address, local_name, peer_name, set_send_buffer, tuple, SO_BUF_LOCK};
use crate::process::lock;
use crate::table::{self, Entry};
use crate::{ffi, process, real, turn};

/// How many recovered sessions are fetched at a time.
const BATCH: u32 = 128;

/// Recovered sessions of one listening port that were fetched and not yet handed out.
#[derive(Default)]
struct Queue {
    sessions: VecDeque<(RecoveredInfo, OwnedFd)>,
    /// The manager had more when they were fetched.
    more: bool,
    inherited: Option<Inherited>,
}

type Stash = HashMap<u16, Queue>;

static STASH: Mutex<Option<Stash>> = Mutex::new(None);
static STASHED: AtomicUsize = AtomicUsize::new(0);

/// Keeps others from the stash.
pub struct StashGuard(MutexGuard<'static, Option<Stash>>);

/// Held over a fork.
pub fn lock_stash() -> StashGuard {
    StashGuard(lock(&STASH))
}

impl StashGuard {
    /// Closes what it holds.
    pub fn clear(&mut self) {
        *self.0 = None;
        STASHED.store(0, Ordering::Relaxed);
    }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn accept(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { take(fd, address, length, 0, || real::accept(fd, address, length)) }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn accept4(fd: c_int, address: *mut sockaddr, length: *mut socklen_t, flags: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { take(fd, address, length, flags, || real::accept4(fd, address, length, flags)) }
}

/// What an accepted connection is.
enum Accepted {
    /// The manager's, to wake whoever waits on the listener.
    Doorbell,
    /// A peer's.
    Connection,
}

/// # Safety
/// As for `accept4`.
unsafe fn take(
    fd: c_int,
    to: *mut sockaddr,
    length: *mut socklen_t,
    flags: c_int,
    plain: impl FnOnce() -> c_int,
) -> c_int {
    let Some(Entry::Listener { port }) = table::get(fd) else { return plain() };
    if flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) != 0 || Bypass::active() || !process::is_ours() {
        return plain();
    }
    // SAFETY: null, or the caller's length.
    let room = unsafe { length.as_ref() }.copied();
    if !to.is_null() && room.is_none_or(|room| (room as i32) < 0) {
        return plain();
    }
    let Some(client) = inside(None, process::client) else { return plain() };
    // SAFETY: takes nothing; nothing of ours is alive if it unwinds.
    unsafe { real::pthread_testcancel() };
    let saved = ffi::errno();
    let mut peer = Name::default();
    let new = loop {
        let taken = inside(None, || recovered(client, fd, port, flags));
        if let Some(new) = taken {
            peer.ask(new);
            break new;
        }
        turn::before_read();
        let blocking = !ffi::is_nonblocking(fd);
        if blocking && turn::is_dirty() && !ffi::is_ready(fd, libc::POLLIN) {
            turn::before_wait(|| false);
        }
        // Into our own memory: a doorbell's address is nobody else's business.
        peer = Name::default();
        // SAFETY: the name is live, writable and of the given size.
        let new = unsafe { real::accept4(fd, peer.pointer(), &mut peer.size, flags) };
        if new < 0 {
            if ffi::errno() == libc::EAGAIN && blocking && !has_receive_timeout(fd) {
                // Another thread had lent the listener a timeout for a moment; see `take_doorbell_off`.
                continue;
            }
            return -1;
        }
        match inside(Accepted::Connection, || classify(client, new, peer.address())) {
            Accepted::Connection => break new,
            Accepted::Doorbell => inside((), || {
                ffi::raw_close(new);
                if client.pending(port) > 0 && STASHED.load(Ordering::Relaxed) == 0 {
                    // It rings for sessions that another process has fetched and not accepted yet.
                    std::thread::sleep(Duration::from_millis(1));
                }
            }),
        }
    };
    turn::read_other();
    if let (false, Some(room)) = (to.is_null(), room) {
        // SAFETY: the caller's address has room for that many bytes.
        unsafe { peer.tell(fd, to, length, room) };
    }
    ffi::set_errno(saved);
    new
}

fn has_receive_timeout(fd: c_int) -> bool {
    ffi::option::<libc::timeval>(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO)
        .is_some_and(|t| t.tv_sec != 0 || t.tv_usec != 0)
}

/// Looks at what the kernel gave us and attaches it if it is a peer's.
fn classify(client: &Client, fd: c_int, peer: Option<SocketAddr>) -> Accepted {
    process::forget(fd);
    let local = local_name(fd).filter(|local| process::is_virtual(client, local.ip()));
    let (Some(local), Some(peer)) = (local, peer) else { return Accepted::Connection };
    if process::is_virtual(client, peer.ip()) && client.is_doorbell(peer.port()) {
        return Accepted::Doorbell;
    }
    let tuple = tuple(local, peer);
    match spliced(client, &tuple) {
        Some(r) => {
            if r.finished {
                ffi::raw_shutdown(fd, libc::SHUT_WR);
            }
            process::attach(client, fd, tuple, Origin::Recovered, r.absorb, r.greeted);
            client.kick();
            log::info!("recovered {tuple} as descriptor {fd}");
        }
        None => process::attach(client, fd, tuple, Origin::Accepted, 0, false),
    }
    Accepted::Connection
}

/// What the manager knows of a connection that may be a restored session.
fn spliced(client: &Client, tuple: &FourTuple) -> Option<Recovered> {
    if !client.welcome().spliced || client.pending(tuple.local.port()) == 0 {
        return None;
    }
    match client.session(*tuple) {
        Ok(facts) => facts.recovered,
        Err(e) => {
            log::error!("the manager does not say what {tuple} is: {e}");
            None
        }
    }
}

/// A recovered session of the port, if one waits. May return a new connection instead.
fn recovered(client: &Client, listener: c_int, port: u16, flags: c_int) -> Option<c_int> {
    if client.welcome().spliced || client.pending(port) == 0 && STASHED.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let (info, socket, last) = next_recovered(client, listener, port)?;
    let mut doorbell = None;
    if last {
        // As long as a session waits so does a doorbell. Off it goes with the last one, or a program that
        // waited for readiness would accept once more and block.
        if let Some(new) = take_doorbell_off(listener, flags) {
            match classify(client, new, peer_name(new)) {
                Accepted::Doorbell => doorbell = Some(new),
                Accepted::Connection => {
                    put_back(port, info, socket);
                    return Some(new);
                }
            }
        }
    }
    let fd = socket.into_raw_fd();
    adopt_options(listener, port, fd, flags);
    process::attach(client, fd, info.tuple, Origin::Recovered, info.absorb, info.greeted);
    if STASHED.load(Ordering::Relaxed) == 0 {
        // The barrier falls when the manager has heard of the last one; of those before it hears with it.
        client.kick();
    }
    // Only now: the manager rings again as long as it believes that sessions wait.
    if let Some(doorbell) = doorbell {
        ffi::raw_close(doorbell);
    }
    log::info!("recovered {} as descriptor {fd}", info.tuple);
    Some(fd)
}

/// Takes one from the stash, which is filled when it is empty; and says whether it is the last that waits.
fn next_recovered(client: &Client, listener: c_int, port: u16) -> Option<(RecoveredInfo, OwnedFd, bool)> {
    let mut guard = lock(&STASH);
    let queue = guard.get_or_insert_default().entry(port).or_default();
    if queue.sessions.is_empty() {
        let room = room(listener);
        if room == 0 {
            // As the kernel says it.
            return None;
        }
        match client.recovered(port, room) {
            Ok((sessions, more)) => {
                STASHED.fetch_add(sessions.len(), Ordering::Relaxed);
                *queue = Queue { sessions: sessions.into(), more, inherited: None };
            }
            Err(e) => {
                log::error!("recovered sessions of port {port}: {e}");
                return None;
            }
        }
    }
    let (info, socket) = queue.sessions.pop_front()?;
    STASHED.fetch_sub(1, Ordering::Relaxed);
    // `pending` cannot tell: it falls only when the manager has heard of those that we handed out.
    Some((info, socket, queue.sessions.is_empty() && !queue.more))
}

/// How many sessions fit into this process, up to a batch: descriptors that it cannot take would be lost on their way.
fn room(listener: c_int) -> u32 {
    let lowest = ffi::raw_dup(listener);
    if lowest < 0 {
        return 0;
    }
    ffi::raw_close(lowest);
    if lowest as u64 + 4 * u64::from(BATCH) < descriptor_limit() {
        // They are given out from below.
        return BATCH;
    }
    let mut copies = [-1; BATCH as usize];
    let mut n = 0;
    while n < copies.len() {
        copies[n] = ffi::raw_dup(listener);
        if copies[n] < 0 {
            break;
        }
        n += 1;
    }
    copies[..n].iter().for_each(|&fd| ffi::raw_close(fd));
    n as u32
}

fn put_back(port: u16, info: RecoveredInfo, socket: OwnedFd) {
    let mut guard = lock(&STASH);
    guard.get_or_insert_default().entry(port).or_default().sessions.push_front((info, socket));
    STASHED.fetch_add(1, Ordering::Relaxed);
}

/// Accepts what waits on the listener, without blocking.
fn take_doorbell_off(listener: c_int, flags: c_int) -> Option<c_int> {
    if !ffi::is_ready(listener, libc::POLLIN) {
        return None;
    }
    let timeout = libc::timeval { tv_sec: 0, tv_usec: 1000 };
    let option = (libc::SOL_SOCKET, libc::SO_RCVTIMEO);
    let before = if ffi::is_nonblocking(listener) {
        None
    } else {
        // Another thread may be faster. Non-blocking mode would be seen by everybody who shares the listener;
        // a timeout is seen by those who block just now, and ours go on when they see it.
        let before = ffi::option::<libc::timeval>(listener, option.0, option.1);
        ffi::set_option(listener, option.0, option.1, timeout);
        before
    };
    let new = ffi::raw_accept(listener, flags);
    if let Some(before) = before {
        ffi::set_option(listener, option.0, option.1, before);
    }
    (new >= 0).then_some(new)
}

/// What an accepted socket has from its listener and a restored one has not. The sockets of a batch lack the same: it is
/// found out with the first.
struct Inherited {
    listener: c_int,
    options: Vec<(c_int, c_int, Value)>,
    /// As the kernel gives them, twice what they were set to.
    receive_buffer: Option<c_int>,
    /// With what the program has fixed (SO_BUF_LOCK).
    send_buffer: Option<(c_int, c_int)>,
}

/// An option's value.
enum Value {
    Number(c_int),
    Linger(libc::linger),
    Time(libc::timeval),
    Name([u8; 16]),
}

impl Inherited {
    /// Compares a restored socket with the listener.
    fn lacking(listener: c_int, fd: c_int) -> Inherited {
        const TCP_NOTSENT_LOWAT: c_int = 25;
        const TCP_INQ: c_int = 36;
        const SO_MAX_PACING_RATE: c_int = 47;
        let numbers = [
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
            (libc::SOL_SOCKET, libc::SO_OOBINLINE),
            (libc::SOL_SOCKET, libc::SO_PRIORITY),
            (libc::SOL_TCP, libc::TCP_NODELAY),
            (libc::SOL_TCP, libc::TCP_KEEPIDLE),
            (libc::SOL_TCP, libc::TCP_KEEPINTVL),
            (libc::SOL_TCP, libc::TCP_KEEPCNT),
            (libc::SOL_TCP, libc::TCP_USER_TIMEOUT),
            (libc::SOL_TCP, TCP_NOTSENT_LOWAT),
            (libc::SOL_SOCKET, libc::SO_RCVLOWAT),
            (libc::SOL_SOCKET, libc::SO_BUSY_POLL),
            (libc::SOL_TCP, TCP_INQ),
            (libc::SOL_TCP, libc::TCP_LINGER2),
            (libc::SOL_SOCKET, libc::SO_MARK),
            (libc::SOL_SOCKET, libc::SO_TIMESTAMP),
            (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS),
            (libc::SOL_SOCKET, SO_MAX_PACING_RATE),
            (libc::SOL_IP, libc::IP_TOS),
            (libc::SOL_IP, libc::IP_TTL),
            (libc::SOL_IPV6, libc::IPV6_TCLASS),
            (libc::SOL_IPV6, libc::IPV6_UNICAST_HOPS),
        ];
        let mut options = Vec::new();
        for (level, option) in numbers {
            options.extend(differs::<c_int>(listener, fd, level, option).map(|v| (level, option, Value::Number(v))));
        }
        let socket = libc::SOL_SOCKET;
        let linger = differs::<libc::linger>(listener, fd, socket, libc::SO_LINGER);
        options.extend(linger.map(|v| (socket, libc::SO_LINGER, Value::Linger(v))));
        for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
            options.extend(differs::<libc::timeval>(listener, fd, socket, option).map(|v| (socket, option, Value::Time(v))));
        }
        let (tcp, congestion) = (libc::SOL_TCP, libc::TCP_CONGESTION);
        options.extend(differs::<[u8; 16]>(listener, fd, tcp, congestion).map(|v| (tcp, congestion, Value::Name(v))));
        // A kernel that does not tell what the program has set could not be told to go on tuning either.
        let locked = ffi::option::<c_int>(listener, socket, SO_BUF_LOCK);
        let size = |option| ffi::option::<c_int>(listener, socket, option);
        let receive_buffer = locked.filter(|locked| locked & 2 != 0).and_then(|_| size(libc::SO_RCVBUF));
        // Always: what the manager gave it to hold its queue would grow with every failover, as the queue fills it.
        let send_buffer = locked.and_then(|locked| Some((size(libc::SO_SNDBUF)?, locked)));
        Inherited { listener, options, receive_buffer, send_buffer }
    }

    fn give(&self, fd: c_int) {
        for (level, option, value) in &self.options {
            match value {
                Value::Number(v) => ffi::set_option(fd, *level, *option, *v),
                Value::Linger(v) => ffi::set_option(fd, *level, *option, *v),
                Value::Time(v) => ffi::set_option(fd, *level, *option, *v),
                Value::Name(v) => ffi::set_option(fd, *level, *option, *v),
            };
        }
        // The kernel doubles what it is given.
        if let Some(size) = self.receive_buffer {
            ffi::set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, size / 2);
        }
        if let Some((size, locked)) = self.send_buffer {
            set_send_buffer(fd, size / 2, locked);
        }
    }
}

/// The listener's value of an option, where the socket has another.
fn differs<T: Copy + PartialEqBytes>(listener: c_int, fd: c_int, level: c_int, option: c_int) -> Option<T> {
    let wanted = ffi::option::<T>(listener, level, option)?;
    let has = ffi::option::<T>(fd, level, option);
    (!has.is_some_and(|has| has.same(&wanted))).then_some(wanted)
}

/// Gives a recovered socket what an accepted one has from its listener.
fn adopt_options(listener: c_int, port: u16, fd: c_int, flags: c_int) {
    let mut guard = lock(&STASH);
    let queue = guard.get_or_insert_default().entry(port).or_default();
    if queue.inherited.as_ref().is_none_or(|i| i.listener != listener) {
        queue.inherited = Some(Inherited::lacking(listener, fd));
    }
    queue.inherited.iter().for_each(|inherited| inherited.give(fd));
    drop(guard);
    ffi::set_modes(fd, flags & libc::SOCK_NONBLOCK != 0, flags & libc::SOCK_CLOEXEC != 0);
}

/// Comparison of C's plain data.
trait PartialEqBytes {
    fn same(&self, other: &Self) -> bool;
}

impl PartialEqBytes for c_int {
    fn same(&self, other: &Self) -> bool {
        self == other
    }
}

impl PartialEqBytes for [u8; 16] {
    fn same(&self, other: &Self) -> bool {
        self == other
    }
}

impl PartialEqBytes for libc::linger {
    fn same(&self, other: &Self) -> bool {
        (self.l_onoff, self.l_linger) == (other.l_onoff, other.l_linger)
    }
}

impl PartialEqBytes for libc::timeval {
    fn same(&self, other: &Self) -> bool {
        (self.tv_sec, self.tv_usec) == (other.tv_sec, other.tv_usec)
    }
}

/// A socket's address in the C interface.
struct Name {
    storage: sockaddr_storage,
    size: socklen_t,
}

impl Default for Name {
    fn default() -> Self {
        // SAFETY: all-zero is a valid sockaddr_storage.
        let storage: sockaddr_storage = unsafe { mem::zeroed() };
        Self { storage, size: mem::size_of::<sockaddr_storage>() as socklen_t }
    }
}

impl Name {
    fn pointer(&mut self) -> *mut sockaddr {
        (&raw mut self.storage).cast()
    }

    /// Asks the kernel for the peer of a connection.
    fn ask(&mut self, fd: c_int) {
        *self = Self::default();
        let saved = ffi::errno();
        // SAFETY: the storage is live, writable and of the given size.
        if unsafe { libc::getpeername(fd, self.pointer(), &mut self.size) } != 0 {
            self.size = 0;
        }
        ffi::set_errno(saved);
    }

    fn address(&self) -> Option<SocketAddr> {
        // SAFETY: the storage is live, and the kernel wrote `size` bytes of it (0 of an unknown name).
        unsafe { address((&raw const self.storage).cast(), self.size) }
    }

    /// Tells the application as accept does: as much as it has room for, and the whole length.
    ///
    /// # Safety
    /// `to` has `room` writable bytes, and `length` is writable.
    unsafe fn tell(&mut self, listener: c_int, to: *mut sockaddr, length: *mut socklen_t, room: socklen_t) {
        if let Some(SocketAddr::V4(v4)) = self.address() {
            let domain = ffi::option::<c_int>(listener, libc::SOL_SOCKET, libc::SO_DOMAIN);
            if domain == Some(libc::AF_INET6) {
                // The manager restored an IPv4 socket; who listens with IPv6 sees mapped addresses.
                // SAFETY: all-zero is a valid sockaddr_in6.
                let mut v6: libc::sockaddr_in6 = unsafe { mem::zeroed() };
                v6.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                v6.sin6_port = v4.port().to_be();
                v6.sin6_addr.s6_addr = v4.ip().to_ipv6_mapped().octets();
                // SAFETY: the storage has room and alignment for every kind of address.
                unsafe { self.pointer().cast::<libc::sockaddr_in6>().write(v6) };
                self.size = mem::size_of_val(&v6) as socklen_t;
            }
        }
        let n = self.size.min(room) as usize;
        // SAFETY: n is at most the storage's size and at most the caller's room.
        unsafe {
            std::ptr::copy_nonoverlapping((&raw const self.storage).cast::<u8>(), to.cast::<u8>(), n);
            *length = self.size;
        }
    }
}
