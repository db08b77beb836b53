//! Connecting to a protected destination. After a failover the manager answers such a connect itself: the application gets
//! its old connection back, where it left off.
//!
//! A connect may be over long after the call, and nothing tells us: the descriptor becomes a protected connection when
//! something is done with it for the first time (`attach`).

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use libc::{c_int, sockaddr, socklen_t};
use tcpr_node::channel::client::Bypass;

use super::address::{is_tcp, named, peer_name};
use super::attach::connection;
use super::options::stop_fast_open;
use crate::guard::{inside, Failure};
use crate::table::{self, Entry};
use crate::{errno, manager, real, sys, turn};

/// What a connect is to us.
enum Connect {
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
    let mut kind = if before == Some(Entry::Connecting) { Connect::Protected } else { Connect::Plain };
    if (candidate || before.is_none() && manager::may_protect_connects()) && !Bypass::active() {
        let to = named(at, length);
        if let Some(to) = to {
            kind = inside(Connect::Plain, || kind_of(fd, to, candidate));
        }
    }
    match kind {
        // SAFETY: the caller's arguments.
        Connect::Plain => return unsafe { real::connect(fd, at, length) },
        Connect::Refused(failure) => {
            inside((), || failure.tell());
            errno::set(failure.errno());
            return -1;
        }
        Connect::Protected => {}
    }
    turn::before_wait(|| sys::is_nonblocking(fd));
    inside((), || stop_fast_open(fd));
    // Known before the answer comes: another thread may use it at once.
    inside(None, || table::set(fd, Some(Entry::Connecting)));
    // SAFETY: the caller's arguments.
    let result = unsafe { real::connect(fd, at, length) };
    let saved = errno::get();
    match (result, saved) {
        (0, _) | (_, libc::EISCONN) => {
            connection(fd);
        }
        // The kernel goes on connecting.
        (_, libc::EINPROGRESS | libc::EALREADY | libc::EINTR) => {}
        _ => {
            inside(None, || table::set(fd, candidate.then_some(Entry::Candidate)));
        }
    }
    errno::set(saved);
    result
}

fn kind_of(fd: c_int, to: SocketAddr, candidate: bool) -> Connect {
    let to = SocketAddr::new(to.ip().to_canonical(), to.port());
    if !manager::protects_destination(to, candidate) || !is_tcp(fd) || peer_name(fd).is_some() {
        return Connect::Plain;
    }
    let client = match manager::join_or_embed(None) {
        Ok(client) => client,
        Err(e) => return Connect::Refused(e.into()),
    };
    // SAFETY: the caller has given it to us as an open socket; it is borrowed for one request.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    match client.call(to, turn::thread(), socket) {
        Ok(()) => Connect::Protected,
        Err(e) => Connect::Refused(e.into()),
    }
}
