//! Options that the program sets. Those that protection does not go together with are refused as by a kernel that lacks them,
//! so that the program goes on without. What is set on a connection is told: a recovered one has it, too.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{c_int, socklen_t};

use super::attach::connection;
use super::kept_options::{outlives, tell};
use super::lent_timeout;
use crate::guard::inside;
use crate::memory::Checked;
use crate::table::{self, Entry};
use crate::{errno, manager, real, sys};

const TCP_REPAIR: c_int = 19;
const TCP_FASTOPEN_CONNECT: c_int = 30;
const TCP_ULP: c_int = 31;
const TCP_ZEROCOPY_RECEIVE: c_int = 35;

/// The program has set SO_RCVLOWAT on some socket: from then on reads ask for its value.
static LOW_WATER: AtomicBool = AtomicBool::new(false);

/// Whether this socket is one of ours, or may become one.
fn is_protected(fd: c_int) -> bool {
    let ours = matches!(
        table::get(fd),
        Some(Entry::Candidate | Entry::Listener { .. } | Entry::Connection { .. } | Entry::Connecting | Entry::Attaching)
    );
    ours && manager::acts()
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
        // Such a socket connects when the program writes, with bytes that nobody has stored.
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
    if let Some(errno) = refused(level, name).filter(|_| !table::is_plain(fd) && is_protected(fd)) {
        let off = name != TCP_ULP
            && !value.is_null()
            && length as usize >= size_of::<c_int>()
            && Checked::default().is_readable(value, size_of::<c_int>())
            // SAFETY: the caller's value, of which so much is there; nothing is known of its alignment.
            && unsafe { value.cast::<c_int>().read_unaligned() } == 0;
        if !off {
            errno::set(errno);
            return -1;
        }
    }
    if must_accept_at_once(fd, level, name) {
        return 0;
    }
    // SAFETY: the caller's arguments.
    let result = unsafe { real::setsockopt(fd, level, name, value, length) };
    if result == 0 && (level, name) == (libc::SOL_SOCKET, libc::SO_RCVTIMEO) && length as usize >= size_of::<libc::timeval>() {
        // SAFETY: the kernel has just read so much there; nothing is known of its alignment.
        lent_timeout::note_set(&unsafe { value.cast::<libc::timeval>().read_unaligned() });
    }
    if result == 0 && !table::is_plain(fd) && outlives(level, name) && manager::acts() {
        let saved = errno::get();
        if let Some((client, handle)) = connection(fd) {
            inside((), || tell(client, handle, fd, level, name));
        }
        errno::set(saved);
    }
    result
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, length: *mut socklen_t) -> c_int {
    // This call reads, and the manager would not hear how much.
    if (level, name) == (libc::SOL_TCP, TCP_ZEROCOPY_RECEIVE) && is_protected(fd) {
        errno::set(libc::ENOPROTOOPT);
        return -1;
    }
    // SAFETY: the caller's arguments.
    unsafe { real::getsockopt(fd, level, name, value, length) }
}

/// A socket that is about to connect to a protected destination sends no bytes with its SYN.
pub fn stop_fast_open(fd: c_int) {
    if sys::option::<c_int>(fd, libc::SOL_TCP, TCP_FASTOPEN_CONNECT) == Some(1) {
        sys::set_option::<c_int>(fd, libc::SOL_TCP, TCP_FASTOPEN_CONNECT, 0);
    }
}

/// Whether a listener must not defer accepting (engine `splice`, see `listening`). A program that wants it to is told that it
/// does, is woken early, and waits in its first read.
fn must_accept_at_once(fd: c_int, level: c_int, name: c_int) -> bool {
    (level, name) == (libc::SOL_TCP, libc::TCP_DEFER_ACCEPT)
        && matches!(table::get(fd), Some(Entry::Listener { .. }))
        && is_protected(fd)
        && manager::joined().is_some_and(|client| client.welcome().spliced)
}

/// Below how many bytes a read of this socket waits for more (SO_RCVLOWAT).
pub fn low_water(fd: c_int) -> usize {
    if !LOW_WATER.load(Ordering::Relaxed) {
        return 1;
    }
    let mark = sys::option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT);
    mark.map_or(1, |mark| usize::try_from(mark).unwrap_or(1))
}
