//! Connecting to a protected destination. After a failover the manager answers such a connect itself: the application gets
//! its old connection back, where it left off.
//!
//! A connect may be over long after the call, and nothing tells us: the descriptor becomes a protected connection when
//! something is done with it for the first time.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use libc::{c_int, sockaddr, socklen_t};
use tcpr_node::channel::client::{Bypass, Client};
use tcpr_node::channel::Origin;

use super::options::connect_at_once;
use super::sockets::{is_tcp, local_name, named, peer_name, tuple};
use super::{inside, options};
use crate::ffi::{self, Failure};
use crate::table::{self, Entry};
use crate::{process, real, turn};

/// What a connect is to us.
enum Call {
    Plain,
    /// To a protected destination.
    Protected,
    Refused(Failure),
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn connect(fd: c_int, at: *const sockaddr, length: socklen_t) -> c_int {
    let before = table::get(fd);
    let candidate = before == Some(Entry::Candidate);
    let mut call = if before == Some(Entry::Calling) { Call::Protected } else { Call::Plain };
    if (candidate || before.is_none() && process::may_call()) && !Bypass::active() {
        let to = named(at, length);
        if let Some(to) = to {
            call = inside(Call::Plain, || calls(fd, to, candidate));
        }
    }
    match call {
        // SAFETY: the caller's arguments.
        Call::Plain => return unsafe { real::connect(fd, at, length) },
        Call::Refused(failure) => {
            inside((), || failure.tell());
            ffi::set_errno(failure.errno());
            return -1;
        }
        Call::Protected => {}
    }
    turn::before_wait(|| ffi::is_nonblocking(fd));
    inside((), || connect_at_once(fd));
    // Known before the answer comes: another thread may use it at once.
    inside(None, || table::set(fd, Some(Entry::Calling)));
    // SAFETY: the caller's arguments.
    let result = unsafe { real::connect(fd, at, length) };
    let saved = ffi::errno();
    match (result, saved) {
        (0, _) | (_, libc::EISCONN) => {
            super::connection(fd);
        }
        // The kernel goes on connecting.
        (_, libc::EINPROGRESS | libc::EALREADY | libc::EINTR) => {}
        _ => {
            inside(None, || table::set(fd, candidate.then_some(Entry::Candidate)));
        }
    }
    ffi::set_errno(saved);
    result
}

fn calls(fd: c_int, to: SocketAddr, candidate: bool) -> Call {
    let to = SocketAddr::new(to.ip().to_canonical(), to.port());
    if !process::calls(to, candidate) || !is_tcp(fd) || peer_name(fd).is_some() {
        return Call::Plain;
    }
    let client = match process::join_or_embed(None) {
        Ok(client) => client,
        Err(e) => return Call::Refused(e.into()),
    };
    // SAFETY: the caller has given it to us as an open socket; it is borrowed for one request.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    match client.call(to, turn::thread(), socket) {
        Ok(()) => Call::Protected,
        Err(e) => Call::Refused(e.into()),
    }
}

/// Something is done with a descriptor that connects, be it that it is closed: makes it a protected connection, if it has connected.
pub fn arrived(client: &Client, fd: c_int) -> Option<u32> {
    let names = || Some((local_name(fd)?, peer_name(fd)?));
    let saved = ffi::errno();
    while let Some((local, peer)) = names() {
        match table::get(fd) {
            Some(Entry::Connection { handle }) => {
                ffi::set_errno(saved);
                return Some(handle);
            }
            Some(Entry::Calling) if table::replace(fd, Entry::Calling, Some(Entry::Arriving)) => {
                let _arrival = Arrival(fd);
                attach(client, fd, local, peer);
            }
            Some(Entry::Calling | Entry::Arriving) => std::thread::yield_now(),
            _ => break,
        }
    }
    ffi::set_errno(saved);
    None
}

/// A descriptor that a thread makes a connection: whatever becomes of that, nobody waits for it afterwards.
struct Arrival(c_int);

impl Drop for Arrival {
    fn drop(&mut self) {
        table::replace(self.0, Entry::Arriving, None);
    }
}

fn attach(client: &Client, fd: c_int, local: SocketAddr, peer: SocketAddr) {
    let tuple = tuple(local, peer);
    let recovered = match client.session(tuple) {
        Ok(facts) => facts.recovered.zip(Some(facts.options)),
        // Over already, or no longer this member's.
        Err(e) if e.errno == libc::ENOTCONN => return,
        Err(e) => {
            log::error!("the manager does not say what {tuple} is: {e}");
            None
        }
    };
    let Some((r, own)) = recovered else {
        return process::attach(client, fd, tuple, Origin::Connected, 0, false);
    };
    options::give(fd, &own);
    if r.finished {
        ffi::raw_shutdown(fd, libc::SHUT_WR);
    }
    process::attach(client, fd, tuple, Origin::Recovered, r.absorb, r.greeted);
    client.kick();
    log::info!("recovered {tuple} as descriptor {fd}");
}
