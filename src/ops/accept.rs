//! Accepting on a protected port: sessions that the manager restored come first, as if they had just connected.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Mutex;
use std::time::Duration;

use libc::{c_int, sockaddr, sockaddr_storage, socklen_t};
use tcpr_node::channel::client::{Bypass, Client};
use tcpr_node::channel::wire::{Recovered, RecoveredInfo};
use tcpr_node::channel::{descriptor_limit, Origin, Own};
use tcpr_node::doorbell;
use tcpr_session::tuple::FourTuple;

use super::passing::unseen_listener;
use super::sockets::{address, local_name, set_send_buffer, tuple, SO_BUF_LOCK};
use super::{inside, options};
use crate::ffi::Checked;
use crate::process::{lock, Locked};
use crate::table::{self, Entry};
use crate::{ffi, process, real, turn};

/// How many recovered sessions are fetched at a time.
const BATCH: u32 = 128;

/// Recovered sessions of one listening port that were fetched and not yet handed out.
#[derive(Default)]
struct Queue {
    sessions: VecDeque<(RecoveredInfo, Own)>,
    /// The manager had more when they were fetched.
    more: bool,
    inherited: Option<Inherited>,
}

type Stash = HashMap<u16, Queue>;

static STASH: Mutex<Option<Stash>> = Mutex::new(None);
static STASHED: AtomicUsize = AtomicUsize::new(0);
/// This process has forked, or was: others may accept, too, and none of them gets at what this one has fetched.
static FORKED: AtomicBool = AtomicBool::new(false);

/// In a process that forks, and in its child.
pub fn note_fork() {
    FORKED.store(true, Ordering::Relaxed);
}

/// Keeps others from the stash.
pub struct StashGuard(Locked<'static, Option<Stash>>);

/// Held over a fork.
pub fn lock_stash() -> StashGuard {
    StashGuard(lock(&STASH))
}

impl StashGuard {
    /// Closes what it holds.
    pub fn clear(&mut self) {
        for (_, socket) in self.0.take().iter().flat_map(HashMap::values).flat_map(|queue| &queue.sessions) {
            process::note(socket.number(), false);
        }
        STASHED.store(0, Ordering::Relaxed);
    }
}

/// The application wants a number for itself that one in the stash may have.
pub fn vacate_stash(fd: c_int) {
    let mut guard = lock(&STASH);
    let sockets = guard.iter_mut().flat_map(HashMap::values_mut).flat_map(|queue| &mut queue.sessions);
    for (_, socket) in sockets.filter(|(_, socket)| socket.number() == fd) {
        if socket.make_way() {
            process::note(socket.number(), true);
        }
    }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn accept(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { take(fd, address, length, 0, || elsewhere(fd, || real::accept(fd, address, length))) }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn accept4(fd: c_int, address: *mut sockaddr, length: *mut socklen_t, flags: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe { take(fd, address, length, flags, || elsewhere(fd, || real::accept4(fd, address, length, flags))) }
}

/// Of what is accepted on a listener that is none of ours, the turn is told, and of waiting for it.
fn elsewhere(fd: c_int, accept: impl FnOnce() -> c_int) -> c_int {
    turn::before_foreign_read(fd, || false);
    let new = accept();
    if new >= 0 {
        turn::read_other();
    }
    new
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
unsafe fn take(fd: c_int, to: *mut sockaddr, length: *mut socklen_t, flags: c_int, plain: impl FnOnce() -> c_int) -> c_int {
    let entry = table::get(fd);
    if !matches!(entry, None | Some(Entry::Listener { .. })) {
        return plain();
    }
    if entry.is_none() {
        unseen_listener(fd);
    }
    let Some(Entry::Listener { port }) = table::get(fd) else { return plain() };
    if flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) != 0 || Bypass::active() || !process::is_ours() {
        return plain();
    }
    if !to.is_null() && !Checked::is_writable(length, size_of::<socklen_t>()) {
        return plain();
    }
    // SAFETY: null, or the caller's length.
    let room = if to.is_null() { None } else { unsafe { length.as_ref() }.copied() };
    if !to.is_null() && room.is_none_or(|room| (room as i32) < 0) {
        return plain();
    }
    // One that cannot join is plain, but for doorbells.
    let client = inside(None, process::client);
    // SAFETY: takes nothing; nothing of ours is alive if it unwinds.
    unsafe { real::pthread_testcancel() };
    let saved = ffi::errno();
    let mut peer = Name::default();
    let mut rung = false;
    let new = loop {
        let taken = client.and_then(|client| inside(None, || recovered(client, fd, port, flags, rung)));
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
                // Another thread had lent the listener a timeout for a moment; see `accept_at_once`.
                continue;
            }
            return -1;
        }
        match inside(Accepted::Connection, || classify(client, new, peer.address())) {
            Accepted::Connection => break new,
            Accepted::Doorbell => {
                inside((), || {
                    ffi::raw_close(new);
                    if rung || client.is_none() {
                        // It rings for sessions that are another process's to accept.
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
                rung = true;
            }
        }
    };
    turn::read_other();
    if let (false, Some(room)) = (to.is_null(), room) {
        if !Checked::is_writable(to, room.min(peer.size) as usize) {
            // As in the kernel, that takes it off the queue.
            inside((), || {
                process::closing(new);
                ffi::raw_close(new);
            });
            ffi::set_errno(libc::EFAULT);
            return -1;
        }
        // SAFETY: the caller's address has room for that many bytes.
        unsafe { peer.tell(fd, to, length, room) };
    }
    ffi::set_errno(saved);
    new
}

/// The program's receive timeout of a listener: not one that a thread of this or of another process has lent it just now.
fn receive_timeout(fd: c_int) -> libc::timeval {
    /// The last one that was not lent: of a program that sets one, while somebody else lends his.
    static KNOWN: Mutex<libc::timeval> = Mutex::new(libc::timeval { tv_sec: 0, tv_usec: 0 });
    let found = ffi::option::<libc::timeval>(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO);
    let mut known = lock(&KNOWN);
    match found {
        Some(found) if !is_lent(&found) => *known = found,
        _ => {}
    }
    *known
}

/// The kernel counts in ticks: what comes back may be more, up to the longest of them.
fn is_lent(timeout: &libc::timeval) -> bool {
    timeout.tv_sec == 0 && (LENT.tv_usec..=10_000).contains(&timeout.tv_usec)
}

/// Whether a listener has such a timeout just now.
pub(super) fn is_lent_to(listener: c_int) -> bool {
    ffi::option::<libc::timeval>(listener, libc::SOL_SOCKET, libc::SO_RCVTIMEO).is_some_and(|timeout| is_lent(&timeout))
}

/// For a moment in which nobody waits for long on a listener; see `accept_at_once`.
const LENT: libc::timeval = libc::timeval { tv_sec: 0, tv_usec: 1000 };

fn has_receive_timeout(fd: c_int) -> bool {
    let t = receive_timeout(fd);
    t.tv_sec != 0 || t.tv_usec != 0
}

/// Looks at what the kernel gave us and attaches it if it is a peer's.
fn classify(client: Option<&Client>, fd: c_int, peer: Option<SocketAddr>) -> Accepted {
    process::forget(fd);
    let (Some(local), Some(peer)) = (local_name(fd), peer) else { return Accepted::Connection };
    if doorbell::is_one(fd, local, peer) {
        return Accepted::Doorbell;
    }
    let Some(client) = client.filter(|client| process::is_virtual(client, local.ip())) else { return Accepted::Connection };
    let tuple = tuple(local, peer);
    match spliced(client, &tuple) {
        Some((r, own)) => {
            options::give(fd, &own);
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
fn spliced(client: &Client, tuple: &FourTuple) -> Option<(Recovered, Vec<u8>)> {
    // Also where engine `repair` left a port to its listener.
    if client.pending(tuple.local.port()) == 0 {
        return None;
    }
    match client.session(*tuple) {
        Ok(facts) => facts.recovered.zip(Some(facts.options)),
        Err(e) => {
            log::error!("the manager does not say what {tuple} is: {e}");
            None
        }
    }
}

/// A recovered session of the port, if one waits. May return a new connection instead. `rung`: a doorbell has just said so.
fn recovered(client: &Client, listener: c_int, port: u16, flags: c_int, rung: bool) -> Option<c_int> {
    if client.welcome().spliced || !rung && client.pending(port) == 0 && STASHED.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let (info, socket, last) = next_recovered(client, listener, port)?;
    let mut doorbells = Vec::new();
    // As long as a session waits so does a doorbell, and never more of them. Off they go with the last session, or with each:
    // else a program that waited for readiness would accept once more and block.
    while last || client.each_rings(port) {
        let Some((new, peer)) = accept_at_once(listener, flags) else { break };
        match classify(Some(client), new, peer) {
            Accepted::Doorbell => doorbells.push(new),
            Accepted::Connection => {
                put_back(client, port, info, socket);
                doorbells.into_iter().for_each(ffi::raw_close);
                return Some(new);
            }
        }
    }
    let fd = socket.into_raw_fd();
    adopt_options(listener, port, fd, flags);
    options::give(fd, &info.options);
    process::attach(client, fd, info.tuple, Origin::Recovered, info.absorb, info.greeted);
    // Only now: the manager rings again as long as it believes that sessions wait.
    let rang = !doorbells.is_empty();
    doorbells.into_iter().for_each(ffi::raw_close);
    if rang || STASHED.load(Ordering::Relaxed) == 0 {
        // The barrier falls when the manager has heard of the last one; of those before it hears with it.
        client.kick();
    }
    log::info!("recovered {} as descriptor {fd}", info.tuple);
    Some(fd)
}

/// Takes one from the stash, which is filled when it is empty; and says whether it is the last that waits.
fn next_recovered(client: &Client, listener: c_int, port: u16) -> Option<(RecoveredInfo, OwnedFd, bool)> {
    let mut guard = lock(&STASH);
    let queue = guard.get_or_insert_default().entry(port).or_default();
    loop {
        if queue.sessions.is_empty() {
            // Where others accept, too, or where one that is handed out at once is not lost to a program that closes what it
            // does not know.
            let one = FORKED.load(Ordering::Relaxed) || client.has_lost();
            let room = if one { room(listener).min(1) } else { room(listener) };
            if room == 0 {
                // As the kernel says it.
                return None;
            }
            match client.recovered(port, room) {
                Ok((sessions, more)) => {
                    sessions.iter().for_each(|(_, socket)| process::note(socket.number(), true));
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
        process::note(socket.number(), false);
        // `pending` cannot tell: it falls only when the manager has heard of those that we handed out.
        let last = queue.sessions.is_empty() && !queue.more;
        match socket.release() {
            Some(socket) => return Some((info, socket, last)),
            None => log::error!("{} is lost: the program has closed its socket, which it had not accepted yet", info.tuple),
        }
    }
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

fn put_back(client: &Client, port: u16, info: RecoveredInfo, socket: OwnedFd) {
    // Where others accept, too, it may be one of them that comes next.
    if client.each_rings(port) {
        match client.give_back(info.session, socket.as_fd()) {
            // Also if the answer is lost: the manager may have it, and nobody else may then.
            Err(e) if !matches!(e.errno, libc::ETIMEDOUT | libc::EBADF) => {}
            _ => return,
        }
    }
    let Ok(socket) = Own::new(socket) else { return };
    process::note(socket.number(), true);
    let mut guard = lock(&STASH);
    guard.get_or_insert_default().entry(port).or_default().sessions.push_front((info, socket));
    STASHED.fetch_add(1, Ordering::Relaxed);
}

/// Accepts what waits on the listener, without blocking.
fn accept_at_once(listener: c_int, flags: c_int) -> Option<(c_int, Option<SocketAddr>)> {
    if !ffi::is_ready(listener, libc::POLLIN) {
        return None;
    }
    let option = (libc::SOL_SOCKET, libc::SO_RCVTIMEO);
    let before = if ffi::is_nonblocking(listener) {
        None
    } else {
        // Another thread may be faster. Non-blocking mode would be seen by everybody who shares the listener;
        // a timeout is seen by those who block just now, and ours go on when they see it. Others may lend one, too.
        let before = receive_timeout(listener);
        ffi::set_option(listener, option.0, option.1, LENT);
        Some(before)
    };
    let mut peer = Name::default();
    // SAFETY: the name is live, writable and of the given size.
    let new = unsafe { ffi::raw_accept(listener, peer.pointer(), &mut peer.size, flags) };
    if let Some(before) = before {
        ffi::set_option(listener, option.0, option.1, before);
    }
    (new >= 0).then(|| (new, peer.address()))
}

/// What an accepted socket has from its listener and a restored one has not. The sockets of a batch lack the same: it is
/// found out with the first.
struct Inherited {
    listener: c_int,
    options: Vec<u8>,
    /// As the kernel gives them, twice what they were set to.
    receive_buffer: Option<c_int>,
    /// With what the program has fixed (SO_BUF_LOCK).
    send_buffer: Option<(c_int, c_int)>,
}

impl Inherited {
    /// Compares a restored socket with the listener.
    fn lacking(listener: c_int, fd: c_int) -> Inherited {
        let socket = libc::SOL_SOCKET;
        // A kernel that does not tell what the program has set could not be told to go on tuning either.
        let locked = ffi::option::<c_int>(listener, socket, SO_BUF_LOCK);
        let size = |option| ffi::option::<c_int>(listener, socket, option);
        let receive_buffer = locked.filter(|locked| locked & 2 != 0).and_then(|_| size(libc::SO_RCVBUF));
        // Always: what the manager gave it to hold its queue would grow with every failover, as the queue fills it.
        let send_buffer = locked.and_then(|locked| Some((size(libc::SO_SNDBUF)?, locked)));
        Inherited { listener, options: options::lacking(listener, fd), receive_buffer, send_buffer }
    }

    fn give(&self, fd: c_int) {
        options::give(fd, &self.options);
        // The kernel doubles what it is given.
        if let Some(size) = self.receive_buffer {
            ffi::set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, size / 2);
        }
        if let Some((size, locked)) = self.send_buffer {
            set_send_buffer(fd, size / 2, locked);
        }
    }
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
