//! What `libtcpr_hot.so` calls. These symbols are private: they change with that library, which is built with this one.

use libc::{c_int, size_t};
use tcpr_node::channel::client::Bypass;
use tcpr_session::trace::SESSION;

use crate::guard::inside;
use crate::ops::standing::{self, HotConnection, Session};
use crate::table::{self, Entry};
use crate::{ops, turn};

/// A descriptor of the trace's memory; -1: this process neither leads nor follows; -2: this library is just beginning.
#[no_mangle]
pub extern "C" fn tcpr_hot_memory() -> c_int {
    inside(-1, || match ops::begin() {
        true => standing::memory().unwrap_or(-1),
        false => -2,
    })
}

/// Whether a descriptor is one of this library's own: 1; else 0.
#[no_mangle]
pub extern "C" fn tcpr_hot_owns(fd: c_int) -> c_int {
    (table::get(fd) == Some(Entry::Internal)).into()
}

/// Whether this process has forbidden itself system calls: 1; else 0. Then nothing is called that the program does not call.
#[no_mangle]
pub extern "C" fn tcpr_hot_is_locked_in() -> c_int {
    ops::is_locked_in().into()
}

/// The calling thread has the memory of one in another process, and goes on from a wait: what this library knew of that one is
/// of no account here.
#[no_mangle]
pub extern "C" fn tcpr_hot_thread_begins() {
    Bypass::reset();
    turn::forget(false);
}

/// Whether a descriptor is a protected connection: 1, and which one; 2: it is connecting to a protected destination; 0: neither.
///
/// # Safety
/// `session` points to room for [`SESSION`] bytes.
#[no_mangle]
pub unsafe extern "C" fn tcpr_hot_session(fd: c_int, session: *mut u8) -> c_int {
    match inside(Session::None, || standing::session(fd)) {
        Session::None => 0,
        Session::Coming => 2,
        Session::Is(found) => {
            // SAFETY: the caller's promise.
            unsafe { std::ptr::copy_nonoverlapping(found.as_ptr(), session, SESSION) };
            1
        }
    }
}

/// The program takes over: hands over where it stands with its connections, and puts their sockets under their numbers. Returns
/// how many there were, or -1.
///
/// # Safety
/// `list` points to `n` connections; each has `tail_len` bytes at its `tail`.
#[no_mangle]
pub unsafe extern "C" fn tcpr_hot_stand(list: *mut HotConnection, n: size_t) -> c_int {
    let connections = match n {
        0 => &mut [][..],
        // SAFETY: the caller's promise.
        _ => unsafe { std::slice::from_raw_parts_mut(list, n) },
    };
    // SAFETY: the caller's promise.
    let adopted = inside(None, || unsafe { standing::stand(connections) });
    adopted.map_or(-1, |n| n as c_int)
}
