//! Hot standby: what `libtcpr_hot.so`, which is loaded before this library, asks of it. That library records what the program gets
//! from outside, or has it follow a record; this one knows the manager and the protected connections.

use std::collections::HashMap;
use std::ffi::c_void;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use libc::c_int;
use tcpr_node::channel::client::{Client, ClientError};
use tcpr_node::channel::wire::RecoveredInfo;
use tcpr_node::channel::Origin;
use tcpr_node::trace_memory::{Place, TraceMemory};
use tcpr_session::trace::SESSION;
use tcpr_session::tuple::FourTuple;

use super::{attach, kept_options, stash};
use crate::table::{self, Entry};
use crate::{connections, manager, sys};

/// How long the sockets of a program that takes over may take.
const PATIENCE: Duration = Duration::from_secs(10);
const NAP: Duration = Duration::from_micros(200);

static MEMORY: OnceLock<TraceMemory> = OnceLock::new();

/// Where a program that takes over stands with one connection.
#[repr(C)]
pub struct HotConnection {
    /// The descriptor; -1: the program has closed the connection.
    pub fd: c_int,
    /// Given: 1 if the program has ended its output. Returned: 1 if the descriptor is the session's socket now.
    pub state: u32,
    /// How much the program has read.
    pub read: u64,
    /// How much it has written.
    pub written: u64,
    /// Where the trace was when the program got it.
    pub since: u64,
    /// The end of what it has written, and how much of that is here.
    pub tail: *const c_void,
    /// As above.
    pub tail_len: u64,
    /// The ends of the connection: [`FourTuple::to_bytes`].
    pub tuple: [u8; FourTuple::BYTES],
}

/// Joins the manager. Returns a descriptor of the trace's memory, or why there is none for this process.
pub fn memory() -> Result<c_int, ClientError> {
    let memory = manager::join()?.trace()?;
    let copy = memory.try_clone()?;
    if let Ok(memory) = TraceMemory::open(copy) {
        let _ = MEMORY.set(memory);
    }
    Ok(memory.into_raw_fd())
}

/// Whether a descriptor is a protected connection.
pub enum Session {
    None,
    /// Its addresses, and how much of its input and output there had been before this process got it.
    Is([u8; SESSION]),
    /// It is connecting.
    Coming,
}

/// Whether a descriptor is a protected connection; if so, which one.
pub fn session(fd: c_int) -> Session {
    attach::arrive(fd);
    match table::get(fd) {
        Some(Entry::Connection { handle }) => facts(handle).map_or(Session::None, Session::Is),
        Some(Entry::Connecting | Entry::Attaching) => Session::Coming,
        _ => Session::None,
    }
}

fn facts(handle: u32) -> Option<[u8; SESSION]> {
    let (tuple, _) = connections::facts(handle)?;
    let mut session = [0; SESSION];
    let (addresses, numbers) = session.split_first_chunk_mut()?;
    *addresses = tuple.to_bytes();
    for (to, number) in numbers.chunks_exact_mut(8).zip(connections::before(handle)) {
        to.copy_from_slice(&number.to_ne_bytes());
    }
    Some(session)
}

/// Tells the manager where the program stands, and puts the sockets of the sessions under the numbers that they have in it.
///
/// # Safety
/// `tail` of each connection points to `tail_len` bytes.
pub unsafe fn stand(list: &mut [HotConnection]) -> Option<usize> {
    let (memory, client) = (MEMORY.get()?, manager::joined()?);
    let tail = |c: &HotConnection| match c.tail.is_null() {
        true => &[][..],
        // SAFETY: the caller's promise.
        false => unsafe { std::slice::from_raw_parts(c.tail.cast::<u8>(), c.tail_len as usize) },
    };
    // A connection may have several descriptors: the first speaks for it.
    let mut holders: HashMap<FourTuple, Vec<usize>> = HashMap::new();
    let mut told = Vec::new();
    for (n, c) in list.iter().enumerate() {
        let Some(tuple) = FourTuple::from_bytes(&c.tuple) else { continue };
        let closed = c.fd < 0;
        let of_this = holders.entry(tuple).or_default();
        if of_this.is_empty() {
            told.push((Place { tuple, read: c.read, written: c.written, since: c.since, shut: c.state == 1, closed }, tail(c)));
        }
        if !closed {
            of_this.push(n);
        }
    }
    list.iter_mut().for_each(|c| c.state = 0);
    if !memory.write_standing(told.into_iter()) {
        return None;
    }
    let until = Instant::now() + PATIENCE;
    let mut adopted = 0;
    while Instant::now() < until {
        let (sessions, more) = match client.standing() {
            Ok(answer) => answer,
            Err(e) => {
                log::error!("the manager does not give the sockets of the sessions: {e}");
                return None;
            }
        };
        let none = sessions.is_empty();
        for (info, socket) in sessions {
            let Some((first, others)) = holders.get(&info.tuple).and_then(|all| all.split_first()) else {
                log::error!("{} was restored, and the program does not have it", info.tuple);
                continue;
            };
            let fd = list[*first].fd;
            adopt(client, fd, &info, socket);
            adopted += 1;
            let entry = table::get(fd);
            for other in others {
                sys::duplicate_to(fd, list[*other].fd);
                entry.iter().for_each(|entry| connections::duplicated(*entry, list[*other].fd));
            }
            [*first].iter().chain(others).for_each(|n| list[*n].state = 1);
        }
        if !more {
            client.kick();
            return Some(adopted);
        }
        if none {
            std::thread::sleep(NAP);
        }
    }
    log::error!("the manager has not restored all sessions in time");
    None
}

/// A restored socket takes the place of what the program had in its stead.
fn adopt(client: &Client, fd: c_int, info: &RecoveredInfo, socket: OwnedFd) {
    let modes = sys::modes(fd);
    let socket = socket.into_raw_fd();
    let port = info.tuple.local.port();
    let listener = table::range(0, u32::MAX).find(|(_, entry)| *entry == Entry::Listener { port });
    if let Some((listener, _)) = listener {
        stash::adopt_options(listener, port, socket, 0);
    }
    connections::forget(fd);
    sys::duplicate_to(socket, fd);
    sys::close(socket);
    let (nonblocking, cloexec) = modes;
    sys::set_modes(fd, nonblocking, cloexec);
    kept_options::give(fd, &info.options);
    connections::attach(client, fd, info.tuple, Origin::Recovered, info.absorb, false);
    log::info!("the program goes on with {} as descriptor {fd}", info.tuple);
}
