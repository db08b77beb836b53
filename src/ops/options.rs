//! Options of protected sockets that protection does not go together with: refused as by a kernel that lacks them, so that
//! the program goes on without.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{c_int, socklen_t};
use tcpr_node::channel::client::Bypass;

use crate::table::{self, Entry};
use crate::{ffi, process, real};

const TCP_REPAIR: c_int = 19;
const TCP_FASTOPEN_CONNECT: c_int = 30;
const TCP_ULP: c_int = 31;
const TCP_ZEROCOPY_RECEIVE: c_int = 35;

/// The program has asked for SO_RCVLOWAT on some socket: a read that may wait is left to the kernel where it is set.
static LOW_WATER: AtomicBool = AtomicBool::new(false);

/// Whether this socket is one of ours, or may become one.
fn is_protected(fd: c_int) -> bool {
    let ours = matches!(
        table::get(fd),
        Some(Entry::Candidate | Entry::Listener { .. } | Entry::Connection { .. } | Entry::Calling | Entry::Arriving)
    );
    ours && !Bypass::active() && process::is_ours()
}

/// The errno with which an option cannot be set on a protected socket.
fn refused(level: c_int, name: c_int) -> Option<c_int> {
    match (level, name) {
        // The kernel would send from the memory in which the next write is announced.
        (libc::SOL_SOCKET, libc::SO_ZEROCOPY) => Some(libc::ENOPROTOOPT),
        // What is written is not what is sent (kTLS), and nobody else has what the kernel knows of it.
        (libc::SOL_TCP, TCP_ULP) => Some(libc::ENOENT),
        // Numbers and queues are the manager's to set.
        (libc::SOL_TCP, TCP_REPAIR) => Some(libc::EPERM),
        // It connects when it writes, with bytes that nobody has stored.
        (libc::SOL_TCP, TCP_FASTOPEN_CONNECT) => Some(libc::ENOPROTOOPT),
        _ => None,
    }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, length: socklen_t) -> c_int {
    if (level, name) == (libc::SOL_SOCKET, libc::SO_RCVLOWAT) {
        LOW_WATER.store(true, Ordering::Relaxed);
    }
    if (level, name) == (libc::SOL_TCP, libc::TCP_DEFER_ACCEPT) && !table::is_plain(fd) && is_protected(fd) && is_spliced() {
        return 0;
    }
    if let Some(errno) = refused(level, name).filter(|_| !table::is_plain(fd) && is_protected(fd)) {
        let off = name != TCP_ULP
            && !value.is_null()
            && length as usize >= size_of::<c_int>()
            // SAFETY: the caller's value, of which so much is there; nothing is known of its alignment.
            && unsafe { value.cast::<c_int>().read_unaligned() } == 0;
        if !off {
            ffi::set_errno(errno);
            return -1;
        }
    }
    // SAFETY: the caller's arguments.
    unsafe { real::setsockopt(fd, level, name, value, length) }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, length: *mut socklen_t) -> c_int {
    // It reads, and nobody would be told how much.
    if (level, name) == (libc::SOL_TCP, TCP_ZEROCOPY_RECEIVE) && is_protected(fd) {
        ffi::set_errno(libc::ENOPROTOOPT);
        return -1;
    }
    // SAFETY: the caller's arguments.
    unsafe { real::getsockopt(fd, level, name, value, length) }
}

/// Recovered connections are the listener's own: it makes them by handshakes.
fn is_spliced() -> bool {
    process::joined().is_some_and(|client| client.welcome().spliced)
}

/// A listener that keeps connections to itself until their clients have said something (TCP_DEFER_ACCEPT) would do so with
/// recovered ones, too, whose clients may have nothing to say, and all others wait for these. It may be asked for at any time,
/// and programs do without: after a while such a connection is accepted all the same.
pub(super) fn accept_at_once(listener: c_int) {
    if is_spliced() && ffi::option::<c_int>(listener, libc::SOL_TCP, libc::TCP_DEFER_ACCEPT).is_some_and(|seconds| seconds != 0) {
        ffi::set_option::<c_int>(listener, libc::SOL_TCP, libc::TCP_DEFER_ACCEPT, 0);
    }
}

/// A socket that is about to connect to a protected destination sends no bytes with its SYN.
pub(super) fn connect_at_once(fd: c_int) {
    if ffi::option::<c_int>(fd, libc::SOL_TCP, TCP_FASTOPEN_CONNECT) == Some(1) {
        ffi::set_option::<c_int>(fd, libc::SOL_TCP, TCP_FASTOPEN_CONNECT, 0);
    }
}

/// Below how many bytes a read of this socket waits for more (SO_RCVLOWAT).
pub(super) fn low_water(fd: c_int) -> usize {
    if !LOW_WATER.load(Ordering::Relaxed) {
        return 1;
    }
    let mark = ffi::option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT);
    mark.map_or(1, |mark| usize::try_from(mark).unwrap_or(1))
}
