//! Accepting without waiting on a listener that blocks: the listener is lent a short receive timeout for that moment.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;

use libc::c_int;
use tcpr_node::doorbell;

use super::address::Name;
use crate::locks::{lock, Locked};
use crate::sys;

/// Who lends, of the threads of this process; and the receive timeout that the program had set when it was last looked at.
static LENDING: Mutex<libc::timeval> = Mutex::new(libc::timeval { tv_sec: 0, tv_usec: 0 });
/// For the moment in which nobody waits for long on a listener: see `accept_now`.
const LENT: libc::timeval = libc::timeval { tv_sec: 0, tv_usec: 1000 };

/// The program has set such a timeout on some socket.
static SETS_SUCH: AtomicBool = AtomicBool::new(false);

/// The program has set this receive timeout.
pub fn note_set(timeout: &libc::timeval) {
    // The kernel rounds up what it is given.
    if timeout.tv_sec == 0 && (1..=10_000).contains(&timeout.tv_usec) {
        SETS_SUCH.store(true, Ordering::Relaxed);
    }
}

/// Keeps the threads of this process from lending: over a fork, and where a copy of a listener's descriptor is closed, which would
/// end a loan's lock.
pub fn hold() -> Locked<'static, libc::timeval> {
    lock(&LENDING)
}

/// The receive timeout that the program has set on a listener, and not one that a thread of this or another process has lent
/// it just now: then it is what the program had set before.
fn receive_timeout(fd: c_int, known: &mut libc::timeval) -> libc::timeval {
    match sys::option::<libc::timeval>(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO) {
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

/// Whether the program has set a receive timeout on a listener.
pub fn has_receive_timeout(fd: c_int) -> bool {
    let t = receive_timeout(fd, &mut lock(&LENDING));
    t.tv_sec != 0 || t.tv_usec != 0
}

/// The listener had a short timeout whenever it was looked at for a while. If the program sets such ones, and the listener has it
/// while nobody lends, it is the program's.
pub fn look_for_the_programs(listener: c_int) {
    if !SETS_SUCH.load(Ordering::Relaxed) {
        return;
    }
    let mut known = lock(&LENDING);
    let Some(_alone) = doorbell::Alone::with(listener) else { return };
    if let Some(found) = sys::option::<libc::timeval>(listener, libc::SOL_SOCKET, libc::SO_RCVTIMEO) {
        *known = found;
    }
}

/// Accepts what waits on the listener, without blocking. `None` also if others do the same there for long.
pub fn accept_now(listener: c_int, flags: c_int) -> Option<(c_int, Option<SocketAddr>)> {
    if !sys::is_ready(listener, libc::POLLIN) {
        return None;
    }
    if sys::is_nonblocking(listener) {
        return accept(listener, flags);
    }
    // Another thread may be faster, and then we would block. Non-blocking mode would be seen by everybody who shares the
    // listener. A timeout is seen only by threads that block at this moment, and the hook has them go on when they see it.
    // Only one thread may set the timeout at a time: a second one that restored it would leave us blocked for ever.
    let mut known = lock(&LENDING);
    let alone = doorbell::Alone::with(listener)?;
    // Those before us may have left nothing.
    if !sys::is_ready(listener, libc::POLLIN) {
        return None;
    }
    let before = receive_timeout(listener, &mut known);
    sys::set_option(listener, libc::SOL_SOCKET, libc::SO_RCVTIMEO, LENT);
    let new = accept(listener, flags);
    sys::set_option(listener, libc::SOL_SOCKET, libc::SO_RCVTIMEO, before);
    drop(alone);
    new.iter().for_each(|(new, _)| give_back(*new, before));
    new
}

/// A connection that was made while its listener was lent a timeout has that, too.
pub fn mend(new: c_int) {
    if is_lent_to(new) {
        give_back(new, *lock(&LENDING));
    }
}

fn give_back(new: c_int, timeout: libc::timeval) {
    if is_lent_to(new) {
        sys::set_option(new, libc::SOL_SOCKET, libc::SO_RCVTIMEO, timeout);
    }
}

fn accept(listener: c_int, flags: c_int) -> Option<(c_int, Option<SocketAddr>)> {
    let mut peer = Name::default();
    let (name, size) = peer.parts();
    // SAFETY: the name is live, writable and of the given size.
    let new = unsafe { sys::accept(listener, name, size, flags) };
    (new >= 0).then(|| (new, peer.address()))
}
