//! The protected connections that this process holds.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::Mutex;

use libc::c_int;
use tcpr_node::channel::client::Client;
use tcpr_node::channel::{Event, Origin};
use tcpr_session::tuple::FourTuple;

use crate::locks::{lock, Locked};
use crate::table::{self, Entry};
use crate::{manager, turn};

type Connections = HashMap<u32, Connection>;

static CONNECTIONS: Mutex<Option<Connections>> = Mutex::new(None);
static NEXT_HANDLE: AtomicU32 = AtomicU32::new(1);
/// Connections of which something is still to be absorbed. While there are none, reads and writes need not take the lock.
static ABSORBING: AtomicUsize = AtomicUsize::new(0);

/// A protected connection of this process.
struct Connection {
    /// Its addresses, IPv4-mapped ones as IPv4.
    tuple: FourTuple,
    origin: Origin,
    /// Number of descriptors.
    descriptors: u32,
    /// How many of the bytes that are written next were sent before the failover.
    absorb: u64,
    /// `greeting = "absorb"`, and nothing has been read yet: all that is written was sent before the failover.
    absorbs_greeting: bool,
    /// A process that we forked, or to which we passed the connection, may hold it, too.
    shared: bool,
    /// How much of its input and output there had been before: of a session of a process that died.
    before: [u64; 2],
}

impl Connection {
    fn absorbs(&self) -> bool {
        self.absorbs_greeting || self.absorb > 0
    }
}

/// Runs `f` on a connection that this process holds, and counts it again if that was the end of its absorbing.
fn with<T>(handle: u32, f: impl FnOnce(&mut Connection) -> T) -> Option<T> {
    let mut connections = lock(&CONNECTIONS);
    let connection = connections.as_mut()?.get_mut(&handle)?;
    let absorbed = connection.absorbs();
    let result = f(connection);
    if absorbed && !connection.absorbs() {
        ABSORBING.fetch_sub(1, Ordering::Relaxed);
    }
    Some(result)
}

/// Makes a descriptor a protected connection and tells the manager.
///
/// `absorb`: how much of what the program writes first was sent before a failover; `greeted`: and something before that.
pub fn attach(client: &Client, fd: c_int, tuple: FourTuple, origin: Origin, absorb: u64, greeted: bool) {
    let handle = NEXT_HANDLE.fetch_add(1, Ordering::Relaxed);
    if handle > table::MAX_HANDLE {
        log::error!("this process has had too many connections: the next ones are not protected");
        NEXT_HANDLE.store(table::MAX_HANDLE + 1, Ordering::Relaxed);
        return;
    }
    let (port, welcome) = (tuple.local.port(), client.welcome());
    let absorbs_greeting = greeted
        && (welcome.ports.iter().any(|p| p.port == port && p.absorb_greeting)
            || welcome.outgoing.iter().any(|o| o.address == tuple.peer && o.absorb_greeting));
    let connection = Connection { tuple, origin, descriptors: 1, absorb, absorbs_greeting, shared: false, before: [0; 2] };
    if connection.absorbs() {
        ABSORBING.fetch_add(1, Ordering::Relaxed);
    }
    lock(&CONNECTIONS).get_or_insert_default().insert(handle, connection);
    // Told before the descriptor is used: the attachment precedes every other event of it.
    turn::attached(client, handle, origin, tuple);
    release(table::set(fd, Some(Entry::Connection { handle })));
}

/// A forked process has joined: tells the manager what it has from its parent.
pub fn attach_inherited(client: &Client) {
    for (&handle, connection) in lock(&CONNECTIONS).iter().flatten() {
        let tuple = connection.tuple;
        client.push(&Event::Attach { thread: turn::thread(), handle, origin: Origin::Inherited, tuple });
    }
}

/// Addresses and origin of a connection.
pub fn facts(handle: u32) -> Option<(FourTuple, Origin)> {
    with(handle, |connection| (connection.tuple, connection.origin))
}

/// A recovered connection goes on behind so much input and output.
pub fn goes_on(fd: c_int, before: [u64; 2]) {
    if let Some(Entry::Connection { handle }) = table::get(fd) {
        with(handle, |connection| connection.before = before);
    }
}

/// How much of its input and output there had been before this process got it.
pub fn before(handle: u32) -> [u64; 2] {
    with(handle, |connection| connection.before).unwrap_or_default()
}

/// A connection of this process with these addresses.
pub fn holds(tuple: &FourTuple) -> Option<u32> {
    let connections = lock(&CONNECTIONS);
    connections.iter().flatten().find(|(_, connection)| connection.tuple == *tuple).map(|(handle, _)| *handle)
}

/// A descriptor is about to be passed to another process, which may hold the connection, too, from then on.
pub fn passed(handle: u32) {
    with(handle, |connection| connection.shared = true);
}

/// A further descriptor of the same thing.
pub fn duplicated(entry: Entry, fd: c_int) {
    if let Entry::Connection { handle } = entry {
        with(handle, |connection| connection.descriptors += 1);
    }
    release(table::set(fd, Some(entry)));
}

/// A descriptor is none of ours any more: it is about to be closed, or its number was closed behind our back and is used for
/// something else. The manager hears of it if it was the last one of a connection.
///
/// Called before a close: the number may belong to somebody else the moment it is closed.
pub fn forget(fd: c_int) {
    release(table::set(fd, None));
}

/// One descriptor less, if this was one of a connection; the manager hears of the last.
fn release(entry: Option<Entry>) {
    let Some(Entry::Connection { handle }) = entry else { return };
    let Some(last) = released(handle) else { return };
    if let Some(client) = manager::joined() {
        turn::output(client, |thread| Event::Close { thread, handle, shared: last.shared });
    }
}

/// One descriptor less; the connection if it was the last.
fn released(handle: u32) -> Option<Connection> {
    let mut guard = lock(&CONNECTIONS);
    let connections = guard.as_mut()?;
    let connection = connections.get_mut(&handle)?;
    connection.descriptors = connection.descriptors.saturating_sub(1);
    if connection.descriptors > 0 {
        return None;
    }
    if connection.absorbs() {
        ABSORBING.fetch_sub(1, Ordering::Relaxed);
    }
    connections.remove(&handle)
}

/// What a recovered connection does not write again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absorbed {
    /// Write everything.
    Nothing,
    /// The first so many bytes were sent before the failover.
    Sent(u64),
    /// A greeting that the peer has already had.
    Greeting,
}

/// How much of a write of `n` bytes is to be absorbed.
pub fn absorb(handle: u32, n: u64) -> Absorbed {
    if ABSORBING.load(Ordering::Relaxed) == 0 {
        return Absorbed::Nothing;
    }
    let absorbed = with(handle, |connection| {
        if connection.absorbs_greeting {
            return Absorbed::Greeting;
        }
        match connection.absorb.min(n) {
            0 => Absorbed::Nothing,
            part => {
                connection.absorb -= part;
                Absorbed::Sent(part)
            }
        }
    });
    absorbed.unwrap_or(Absorbed::Nothing)
}

/// A connection was read from: what is written from now on is no greeting.
pub fn was_read(handle: u32) {
    if ABSORBING.load(Ordering::Relaxed) > 0 {
        with(handle, |connection| connection.absorbs_greeting = false);
    }
}

/// The list of connections, locked for a fork.
pub struct ConnectionsGuard(Locked<'static, Option<Connections>>);

/// Keeps others from the list.
pub fn hold() -> ConnectionsGuard {
    ConnectionsGuard(lock(&CONNECTIONS))
}

impl ConnectionsGuard {
    /// A forked process may hold all of them, too.
    pub fn share(&mut self) {
        self.0.iter_mut().flat_map(HashMap::values_mut).for_each(|connection| connection.shared = true);
    }
}

/// Those that another process may hold, too.
pub fn shared() -> Vec<u32> {
    let connections = lock(&CONNECTIONS);
    connections.iter().flatten().filter(|(_, connection)| connection.shared).map(|(handle, _)| *handle).collect()
}
