//! How a socket becomes a protected connection of this process.

use std::net::SocketAddr;

use libc::c_int;
use tcpr_node::channel::client::{Bypass, Client};
use tcpr_node::channel::wire::Recovered;
use tcpr_node::channel::Origin;
use tcpr_session::tuple::FourTuple;

use super::address::{local_name, peer_name, tuple};
use super::kept_options;
use crate::guard::{guarded, inside};
use crate::table::{self, Entry};
use crate::{connections, errno, manager, sys};

/// The connection behind a descriptor, if this call is to act on it.
pub fn connection(fd: c_int) -> Option<(&'static Client, u32)> {
    let entry =
        table::get(fd).filter(|entry| matches!(entry, Entry::Connection { .. } | Entry::Connecting | Entry::Attaching))?;
    if Bypass::active() {
        return None;
    }
    let client = guarded(None, manager::client)?;
    match entry {
        Entry::Connection { handle } => Some((client, handle)),
        _ => inside(None, || arrived(client, fd)).map(|handle| (client, handle)),
    }
}

/// A socket that has connected, and with which nothing was done since, is a connection from now on.
pub fn arrive(fd: c_int) {
    if matches!(table::get(fd), Some(Entry::Connecting | Entry::Attaching)) {
        connection(fd);
    }
}

/// Something is done with a descriptor that connects, be it that it is closed: makes the descriptor a protected connection, if
/// it has connected.
pub fn arrived(client: &Client, fd: c_int) -> Option<u32> {
    let names = || Some((local_name(fd)?, peer_name(fd)?));
    let saved = errno::get();
    while let Some((local, peer)) = names() {
        match table::get(fd) {
            Some(Entry::Connection { handle }) => {
                errno::set(saved);
                return Some(handle);
            }
            Some(Entry::Connecting) if table::replace(fd, Entry::Connecting, Some(Entry::Attaching)) => {
                let _arrival = Arrival(fd);
                attach(client, fd, local, peer);
            }
            Some(Entry::Connecting | Entry::Attaching) => std::thread::yield_now(),
            _ => break,
        }
    }
    errno::set(saved);
    None
}

/// A descriptor that a thread makes a connection. Whatever becomes of that, other threads do not wait for it afterwards.
struct Arrival(c_int);

impl Drop for Arrival {
    fn drop(&mut self) {
        table::replace(self.0, Entry::Attaching, None);
    }
}

fn attach(client: &Client, fd: c_int, local: SocketAddr, peer: SocketAddr) {
    let tuple = tuple(local, peer);
    match session(client, tuple) {
        Session::Unknown => {}
        Session::New => connections::attach(client, fd, tuple, Origin::Connected, 0, false),
        Session::Recovered(recovered, options) => take_back(client, fd, tuple, recovered, &options),
    }
}

/// What the manager says a connection is.
pub enum Session {
    /// Over already, or none of this member's.
    Unknown,
    /// A new one, or one of which the manager does not say what it is.
    New,
    /// A restored session, with the options that were set on it.
    Recovered(Recovered, Vec<u8>),
}

/// Asks the manager what a connection is.
pub fn session(client: &Client, tuple: FourTuple) -> Session {
    match client.session(tuple) {
        Ok(facts) => match facts.recovered {
            Some(recovered) => Session::Recovered(recovered, facts.options),
            None => Session::New,
        },
        Err(e) if e.errno == libc::ENOTCONN => Session::Unknown,
        Err(e) => {
            log::error!("the manager does not say what {tuple} is: {e}");
            Session::New
        }
    }
}

/// A connection that is new to the kernel is a session from before a failover.
pub fn take_back(client: &Client, fd: c_int, tuple: FourTuple, recovered: Recovered, options: &[u8]) {
    kept_options::give(fd, options);
    if recovered.finished {
        sys::shutdown(fd, libc::SHUT_WR);
    }
    connections::attach(client, fd, tuple, Origin::Recovered, recovered.absorb, recovered.greeted);
    connections::goes_on(fd, [recovered.in_done, recovered.out_base]);
    client.kick();
    log::info!("recovered {tuple} as descriptor {fd}");
}
