//! Accepting on a protected port: sessions that the manager restored come first, as if they had just connected.

use std::net::SocketAddr;
use std::os::fd::IntoRawFd;
use std::time::Duration;

use libc::{c_int, sockaddr, socklen_t};
use tcpr_node::channel::client::Client;
use tcpr_node::channel::wire::Recovered;
use tcpr_node::channel::Origin;
use tcpr_node::doorbell;
use tcpr_session::tuple::FourTuple;

use super::address::{local_name, tuple, Name};
use super::adopt::unseen_listener;
use super::attach::take_back;
use super::lent_timeout::{self, accept_now, has_receive_timeout};
use super::{kept_options, stash};
use crate::guard::inside;
use crate::memory::Checked;
use crate::table::{self, Entry};
use crate::{connections, errno, manager, real, sys, turn};

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

/// Accepts on a listener that is none of ours: the turn is told of the connection, and that the thread waits for one.
fn elsewhere(fd: c_int, accept: impl FnOnce() -> c_int) -> c_int {
    turn::before_foreign_read(fd, || false);
    let new = accept();
    if new >= 0 {
        turn::read_other();
    }
    new
}

/// More loans in a row than there are.
const MOST_LOANS: u32 = 20;

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
    if flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) != 0 || !manager::acts() {
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
    // In a process that cannot join the listener is plain, but for doorbells.
    let client = inside(None, manager::client);
    // SAFETY: takes nothing; nothing of ours is alive if it unwinds.
    unsafe { real::pthread_testcancel() };
    let saved = errno::get();
    let mut peer = Name::default();
    let mut rung = false;
    let mut in_vain = 0u32;
    let new = loop {
        let taken = client.and_then(|client| inside(None, || recovered(client, fd, port, flags, rung)));
        if let Some(new) = taken {
            peer.ask(new);
            break new;
        }
        turn::before_read();
        let blocking = !sys::is_nonblocking(fd);
        if blocking && turn::is_dirty() && !sys::is_ready(fd, libc::POLLIN) {
            turn::before_wait(|| false);
        }
        // Into our own memory: a doorbell's address is nobody else's business.
        peer = Name::default();
        let (name, size) = peer.parts();
        // SAFETY: the name is live, writable and of the given size.
        let new = unsafe { real::accept4(fd, name, size, flags) };
        if new < 0 {
            if errno::get() == libc::EAGAIN && blocking && !has_receive_timeout(fd) {
                // Another thread had lent the listener a timeout for a moment: see `lent_timeout`.
                in_vain += 1;
                if in_vain.is_multiple_of(MOST_LOANS) {
                    inside((), || lent_timeout::look_for_the_programs(fd));
                }
                continue;
            }
            return -1;
        }
        match inside(Accepted::Connection, || classify(client, new, peer.address())) {
            Accepted::Connection => {
                if blocking {
                    inside((), || lent_timeout::mend(new));
                }
                break new;
            }
            Accepted::Doorbell => {
                inside((), || {
                    sys::close(new);
                    if rung || client.is_none() {
                        // The doorbell rings for sessions that are another process's to accept.
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
                rung = true;
            }
        }
    };
    turn::read_other();
    if let (false, Some(room)) = (to.is_null(), room) {
        if !Checked::is_writable(to, room.min(peer.size()) as usize) {
            // As in the kernel, the connection is off the queue then.
            inside((), || {
                connections::forget(new);
                sys::close(new);
            });
            errno::set(libc::EFAULT);
            return -1;
        }
        // SAFETY: the caller's address has room for that many bytes.
        unsafe { peer.tell(fd, to, length, room) };
    }
    errno::set(saved);
    new
}

/// Looks at what the kernel gave us and attaches it if it is a peer's.
fn classify(client: Option<&Client>, fd: c_int, peer: Option<SocketAddr>) -> Accepted {
    connections::forget(fd);
    let (Some(local), Some(peer)) = (local_name(fd), peer) else { return Accepted::Connection };
    if doorbell::is_one(fd, local, peer) {
        return Accepted::Doorbell;
    }
    let Some(client) = client.filter(|client| manager::is_virtual(client, local.ip())) else { return Accepted::Connection };
    let tuple = tuple(local, peer);
    match spliced(client, &tuple) {
        Some((recovered, options)) => take_back(client, fd, tuple, recovered, &options),
        None => connections::attach(client, fd, tuple, Origin::Accepted, 0, false),
    }
    Accepted::Connection
}

/// What the manager knows of a connection that may be a restored session.
fn spliced(client: &Client, tuple: &FourTuple) -> Option<(Recovered, Vec<u8>)> {
    // Engine `repair` leaves some ports to their listeners, too.
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
    if client.welcome().spliced || !rung && client.pending(port) == 0 && stash::is_empty() {
        return None;
    }
    let (info, socket, last) = stash::next(client, listener, port)?;
    let mut doorbells = Vec::new();
    // A doorbell waits on the listener as long as a session waits. They are taken off with the last session, or one with each
    // session: else a program that waited for readiness would accept once more and block.
    while last || client.each_rings(port) {
        let Some((new, peer)) = accept_now(listener, flags) else { break };
        match classify(Some(client), new, peer) {
            Accepted::Doorbell => doorbells.push(new),
            Accepted::Connection => {
                stash::put_back(client, port, info, socket);
                doorbells.into_iter().for_each(sys::close);
                return Some(new);
            }
        }
    }
    let fd = socket.into_raw_fd();
    stash::adopt_options(listener, port, fd, flags);
    kept_options::give(fd, &info.options);
    connections::attach(client, fd, info.tuple, Origin::Recovered, info.absorb, info.greeted);
    connections::goes_on(fd, [info.in_done, info.out_base]);
    // Only now: the manager rings again as long as it believes that sessions wait.
    let rang = !doorbells.is_empty();
    doorbells.into_iter().for_each(sys::close);
    if rang || stash::is_empty() {
        // The barrier falls when the manager has heard of the last session. It hears of those before at the same time.
        client.kick();
    }
    log::info!("recovered {} as descriptor {fd}", info.tuple);
    Some(fd)
}
