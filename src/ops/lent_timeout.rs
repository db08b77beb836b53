//! Accepting without waiting on a listener that blocks: the listener is lent a short receive timeout for that moment.

use std::net::SocketAddr;
use std::sync::Mutex;

use libc::c_int;

use super::address::Name;
use crate::locks::lock;
use crate::sys;

/// The receive timeout that the program has set on a listener, and not one that a thread of this or another process has lent
/// it just now.
fn receive_timeout(fd: c_int) -> libc::timeval {
    /// The last one that was not lent: of a program that sets one while somebody else has lent one.
    static KNOWN: Mutex<libc::timeval> = Mutex::new(libc::timeval { tv_sec: 0, tv_usec: 0 });
    let found = sys::option::<libc::timeval>(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO);
    let mut known = lock(&KNOWN);
    match found {
        Some(found) if !is_lent(&found) => *known = found,
        _ => {}
    }
    *known
}

/// The kernel rounds up to its ticks, of which the longest is 10 ms.
fn is_lent(timeout: &libc::timeval) -> bool {
    timeout.tv_sec == 0 && (LENT.tv_usec..=10_000).contains(&timeout.tv_usec)
}

/// Whether a listener has such a timeout just now.
pub fn is_lent_to(listener: c_int) -> bool {
    sys::option::<libc::timeval>(listener, libc::SOL_SOCKET, libc::SO_RCVTIMEO).is_some_and(|timeout| is_lent(&timeout))
}

/// For the moment in which nobody waits for long on a listener: see `accept_now`.
const LENT: libc::timeval = libc::timeval { tv_sec: 0, tv_usec: 1000 };

/// Whether the program has set a receive timeout on a listener.
pub fn has_receive_timeout(fd: c_int) -> bool {
    let t = receive_timeout(fd);
    t.tv_sec != 0 || t.tv_usec != 0
}

/// Accepts what waits on the listener, without blocking.
pub fn accept_now(listener: c_int, flags: c_int) -> Option<(c_int, Option<SocketAddr>)> {
    if !sys::is_ready(listener, libc::POLLIN) {
        return None;
    }
    let option = (libc::SOL_SOCKET, libc::SO_RCVTIMEO);
    let before = if sys::is_nonblocking(listener) {
        None
    } else {
        // Another thread may be faster, and then we would block. Non-blocking mode would be seen by everybody who shares the
        // listener. A timeout is seen only by threads that block at this moment, and the hook has them go on when they see it.
        // Others may lend a timeout, too.
        let before = receive_timeout(listener);
        sys::set_option(listener, option.0, option.1, LENT);
        Some(before)
    };
    let mut peer = Name::default();
    let (name, size) = peer.parts();
    // SAFETY: the name is live, writable and of the given size.
    let new = unsafe { sys::accept(listener, name, size, flags) };
    if let Some(before) = before {
        sys::set_option(listener, option.0, option.1, before);
    }
    (new >= 0).then(|| (new, peer.address()))
}
