//! What the calls do to protected descriptors. Functions have the names and the arguments of the calls that they
//! serve; they are reached only when a descriptor has an entry in the table, or when it may get one.
//!
//! The rule for every function here: whatever is not for us (we are inside already, a vfork child, bad
//! arguments) goes to the C library with the caller's own arguments, so that its result is the C library's.

mod accept;
mod calling;
mod credentials;
mod descriptors;
mod input;
mod lock_in;
mod options;
mod output;
mod passing;
mod signals;
mod sockets;
mod streams;
mod waits;

pub use accept::{accept, accept4, lock_stash, note_fork, vacate_stash, StashGuard};
pub use calling::{arrived, connect};
pub use credentials::{initgroups, setegid, seteuid, setgid, setgroups, setregid, setresgid, setresuid, setreuid, setuid};
pub use descriptors::{close, close_range, closefrom, dup, dup2, dup3, fcntl, fcntl64, syscall};
pub use input::{__read_chk, __recv_chk, __recvfrom_chk, read, readv, recv, recvfrom, recvmmsg, recvmsg};
pub use lock_in::{_Fork, clone, prctl, setns, unshare};
pub use options::{getsockopt, setsockopt};
pub use output::{send, sendfile, sendfile64, sendmmsg, sendmsg, sendto, splice, write, writev};
pub use passing::look_for_listeners;
pub use signals::{__sysv_signal, bsd_signal, leave_handlers, sigaction, signal, sigset, ssignal, sysv_signal, watch_handlers};
pub use sockets::{bind, listen, protected_socket, shutdown, socket, tell_listener};
pub use streams::{fclose, fdopen, fileno, fileno_unlocked, flush_streams, lock_streams, StreamsGuard};
pub use waits::{pthread_cond_clockwait, pthread_cond_timedwait, pthread_cond_wait, semop, semtimedop};

use libc::c_int;
use tcpr_node::channel::client::{Bypass, Client};

use crate::table::{self, Entry};
use crate::{ffi, process};

/// The connection behind a descriptor, if this call is to act on it.
pub fn connection(fd: c_int) -> Option<(&'static Client, u32)> {
    let entry = table::get(fd).filter(|entry| matches!(entry, Entry::Connection { .. } | Entry::Calling | Entry::Arriving))?;
    if Bypass::active() {
        return None;
    }
    let client = ffi::guarded(None, process::client)?;
    match entry {
        Entry::Connection { handle } => Some((client, handle)),
        _ => inside(None, || calling::arrived(client, fd)).map(|handle| (client, handle)),
    }
}

/// Runs bookkeeping inside the panic boundary and with the hooks of this thread off.
fn inside<T>(fallback: T, f: impl FnOnce() -> T) -> T {
    ffi::guarded(fallback, || {
        let _inside = Bypass::enter();
        f()
    })
}
