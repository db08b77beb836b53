//! Recovered sessions that were fetched from the manager and that the application has not accepted yet.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Mutex;

use libc::c_int;
use tcpr_node::channel::client::Client;
use tcpr_node::channel::wire::RecoveredInfo;
use tcpr_node::channel::{descriptor_limit, Own};

use super::kept_options::Inherited;
use super::lent_timeout;
use crate::locks::{lock, Locked};
use crate::{sys, table};

/// How many recovered sessions are fetched at a time.
const BATCH: u32 = 128;

/// Recovered sessions of one listening port that were fetched and not yet handed out.
#[derive(Default)]
struct Queue {
    sessions: VecDeque<(RecoveredInfo, Own)>,
    /// The manager had more sessions when these were fetched.
    more: bool,
    /// More than one was fetched: the manager does not know which of them is still here.
    several: bool,
    inherited: Option<Inherited>,
}

type Stash = HashMap<u16, Queue>;

static STASH: Mutex<Option<Stash>> = Mutex::new(None);
/// How many sessions are in it.
static STASHED: AtomicUsize = AtomicUsize::new(0);
/// This process has forked, or was forked. Other processes may accept, too, and cannot reach what this one has fetched.
static FORKED: AtomicBool = AtomicBool::new(false);

/// Whether there are none. Takes no lock.
pub fn is_empty() -> bool {
    STASHED.load(Ordering::Relaxed) == 0
}

/// Called in a process that forks, and in its child.
pub fn note_fork() {
    FORKED.store(true, Ordering::Relaxed);
}

/// Keeps others from the stash.
pub struct StashGuard(Locked<'static, Option<Stash>>);

/// Held over a fork.
pub fn hold() -> StashGuard {
    StashGuard(lock(&STASH))
}

impl StashGuard {
    /// Closes what is in the stash.
    pub fn clear(&mut self) {
        for (_, socket) in self.0.take().iter().flat_map(HashMap::values).flat_map(|queue| &queue.sessions) {
            table::note(socket.number(), false);
        }
        STASHED.store(0, Ordering::Relaxed);
    }
}

/// The application wants a descriptor number for itself that a session in the stash may have.
pub fn vacate(fd: c_int) {
    let mut guard = lock(&STASH);
    let sockets = guard.iter_mut().flat_map(HashMap::values_mut).flat_map(|queue| &mut queue.sessions);
    for (_, socket) in sockets.filter(|(_, socket)| socket.number() == fd) {
        if socket.make_way() {
            table::note(socket.number(), true);
        }
    }
}

/// Takes a session from the stash, which is filled when it is empty. The flag: this is the last session that waits.
pub fn next(client: &Client, listener: c_int, port: u16) -> Option<(RecoveredInfo, OwnedFd, bool)> {
    let mut guard = lock(&STASH);
    let queue = guard.get_or_insert_default().entry(port).or_default();
    loop {
        if queue.sessions.is_empty() {
            // One at a time where other processes accept, too, and where the program closes descriptors that it does not know.
            let one = FORKED.load(Ordering::Relaxed) || client.has_lost();
            let room = if one { room(listener).min(1) } else { room(listener) };
            if room == 0 {
                // The kernel says the same when the application accepts.
                return None;
            }
            if !fetch(queue, client, port, room) {
                return None;
            }
        }
        let (info, socket) = queue.sessions.pop_front()?;
        STASHED.fetch_sub(1, Ordering::Relaxed);
        table::note(socket.number(), false);
        // `pending` does not tell: it falls only when the manager has heard of the sessions that we handed out.
        let mut last = queue.sessions.is_empty() && !queue.more;
        if last && std::mem::take(&mut queue.several) {
            // The manager rings doorbells until it hears that this stash is empty; one may ring right now. It hears it here.
            fetch(queue, client, port, 0);
            last = queue.sessions.is_empty() && !queue.more;
        }
        match socket.release() {
            Some(socket) => return Some((info, socket, last)),
            None => log::error!("{} is lost: the program has closed its socket, which it had not accepted yet", info.tuple),
        }
    }
}

/// Fills an empty queue. Returns whether the manager has answered.
fn fetch(queue: &mut Queue, client: &Client, port: u16, most: u32) -> bool {
    match client.recovered(port, most) {
        Ok((sessions, more)) => {
            sessions.iter().for_each(|(_, socket)| table::note(socket.number(), true));
            STASHED.fetch_add(sessions.len(), Ordering::Relaxed);
            let several = sessions.len() > 1;
            *queue = Queue { sessions: sessions.into(), more, several, inherited: None };
            true
        }
        Err(e) => {
            log::error!("recovered sessions of port {port}: {e}");
            false
        }
    }
}

/// How many sessions this process has descriptors for, up to a batch. Descriptors that it cannot take are lost on their way.
fn room(listener: c_int) -> u32 {
    // To close a copy of the listener ends the lock of a thread that lends it a timeout.
    let _nobody = lent_timeout::hold();
    let lowest = sys::dup(listener);
    if lowest < 0 {
        return 0;
    }
    sys::close(lowest);
    if lowest as u64 + 4 * u64::from(BATCH) < descriptor_limit() {
        // The kernel gives out the lowest number first.
        return BATCH;
    }
    let mut copies = [-1; BATCH as usize];
    let mut n = 0;
    while n < copies.len() {
        copies[n] = sys::dup(listener);
        if copies[n] < 0 {
            break;
        }
        n += 1;
    }
    copies[..n].iter().for_each(|&fd| sys::close(fd));
    n as u32
}

/// A session that was taken cannot be accepted now. The manager gets it back, and rings for it: whoever accepts next takes it.
pub fn put_back(client: &Client, port: u16, info: RecoveredInfo, socket: OwnedFd) {
    match client.give_back(info.session, socket.as_fd()) {
        // Also if the answer is lost: the manager may have the session, and nobody else may have it then.
        Err(e) if !matches!(e.errno, libc::ETIMEDOUT | libc::EBADF) => {}
        _ => return,
    }
    let Ok(socket) = Own::new(socket) else { return };
    table::note(socket.number(), true);
    let mut guard = lock(&STASH);
    guard.get_or_insert_default().entry(port).or_default().sessions.push_front((info, socket));
    STASHED.fetch_add(1, Ordering::Relaxed);
}

/// Gives a recovered socket what an accepted one has from its listener.
pub fn adopt_options(listener: c_int, port: u16, fd: c_int, flags: c_int) {
    let mut guard = lock(&STASH);
    let queue = guard.get_or_insert_default().entry(port).or_default();
    if queue.inherited.as_ref().is_none_or(|inherited| !inherited.is_from(listener)) {
        queue.inherited = Some(Inherited::lacking(listener, fd));
    }
    queue.inherited.iter().for_each(|inherited| inherited.give(fd));
    drop(guard);
    sys::set_modes(fd, flags & libc::SOCK_NONBLOCK != 0, flags & libc::SOCK_CLOEXEC != 0);
}
