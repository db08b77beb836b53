//! Forks: the child finds our locks free, and joins a manager of its own when it first needs one.

use std::cell::RefCell;
use std::ffi::c_void;
use std::mem;

use libc::{c_int, c_long, pid_t};
use tcpr_node::channel::client::Bypass;
use tcpr_node::channel::Own;

use super::{lent_timeout, stash, streams};
use crate::guard::inside;
use crate::locks::Locked;
use crate::memory::Checked;
use crate::table::{self, Entry};
use crate::{connections, diag, heap, manager, real, roles, turn};

/// Our locks, held over a fork. They are taken in this order.
struct Held {
    _joining: manager::JoiningGuard,
    stash: stash::StashGuard,
    _lending: Locked<'static, libc::timeval>,
    _streams: streams::StreamsGuard,
    connections: connections::ConnectionsGuard,
    roles: roles::RolesGuard,
    _log: Locked<'static, Option<Own>>,
}

thread_local! {
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

/// Before a fork: what the child is to find free is held.
pub extern "C" fn before() {
    // A fork inside one of our critical sections can come from a signal handler only.
    if Bypass::active() {
        return;
    }
    inside((), || {
        real::lock_stream_list();
        let held = Held {
            _joining: manager::hold(),
            stash: stash::hold(),
            _lending: lent_timeout::hold(),
            _streams: streams::hold(),
            connections: connections::hold(),
            roles: roles::hold(),
            _log: diag::hold(),
        };
        HELD.with(|h| *h.borrow_mut() = Some(held));
        heap::hold();
    });
}

/// After a fork, and after one that failed.
pub extern "C" fn after_in_parent() {
    heap::release();
    inside((), || {
        if let Some(mut held) = HELD.with(|h| h.borrow_mut().take()) {
            held.connections.share();
            stash::note_fork();
            drop(held);
            real::unlock_stream_list();
        }
    });
}

/// In the child: what the parent told is not this process's.
pub extern "C" fn after_in_child() {
    heap::release();
    inside((), || {
        if let Some(mut held) = HELD.with(|h| h.borrow_mut().take()) {
            // Recovered connections that the parent has not handed out are the parent's.
            held.stash.clear();
            held.roles.forget();
            stash::note_fork();
            drop(held);
            real::reset_stream_list();
        }
        let inherited = manager::orphan();
        turn::forget(inherited.as_ref().is_some_and(|inherited| inherited.embedded));
        if inherited.is_none() {
            return;
        }
        for (fd, entry) in table::range(0, u32::MAX) {
            match entry {
                Entry::Internal => table::set(fd, None),
                // The thread that was about to attach it is in the parent.
                Entry::Attaching => table::set(fd, Some(Entry::Connecting)),
                _ => continue,
            };
        }
        table::claim();
        diag::keep();
    });
}

/// Whether these flags of a clone make a process of its own, as fork does.
pub fn forks(flags: c_int) -> bool {
    flags & (libc::CLONE_VM | libc::CLONE_FILES) == 0
}

/// The beginning of `struct clone_args`.
#[repr(C)]
pub struct CloneArguments {
    flags: u64,
    _ids: [u64; 4],
    stack: u64,
}

/// The same for clone3.
///
/// # Safety
/// What can be read there are the caller's arguments.
pub unsafe fn forks_by(arguments: *const CloneArguments, bytes: usize) -> bool {
    let known = bytes >= size_of::<CloneArguments>() && Checked::default().is_readable(arguments, size_of::<CloneArguments>());
    // SAFETY: it can be read, or is null.
    known && unsafe { arguments.as_ref() }.is_some_and(|a| forks(a.flags as c_int) && a.stack == 0)
}

/// Forks without the C library, with the same steps before and after as around one of its forks. Not in a process of several
/// threads, where only the C library can leave its own memory consistent: there the child is a process without hooks.
pub fn forked(fork: impl FnOnce() -> c_long) -> c_long {
    if !manager::acts() || !real::is_single_threaded() {
        return fork();
    }
    before();
    let child = fork();
    match child {
        0 => after_in_child(),
        _ => after_in_parent(),
    }
    child
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
#[allow(non_snake_case)] // C's name
pub unsafe fn _Fork() -> pid_t {
    // SAFETY: takes nothing.
    forked(|| c_long::from(unsafe { real::_Fork() })) as pid_t
}

/// What a cloned process is to do.
struct Task {
    f: *mut c_void,
    argument: *mut c_void,
}

extern "C-unwind" fn begin(task: *mut c_void) -> c_int {
    after_in_child();
    // SAFETY: the task is on the stack of whoever cloned us, of which this process has a copy; the function is that of its
    // caller, of clone's own type.
    unsafe {
        let task = &*task.cast::<Task>();
        mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn(*mut c_void) -> c_int>(task.f)(task.argument)
    }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn clone(
    f: *mut c_void,
    stack: *mut c_void,
    flags: c_int,
    argument: *mut c_void,
    parent: *mut c_void,
    tls: *mut c_void,
    child: *mut c_void,
) -> c_int {
    if f.is_null() || stack.is_null() || !forks(flags) || !manager::acts() || !real::is_single_threaded() {
        // SAFETY: the caller's arguments.
        return unsafe { real::clone(f, stack, flags, argument, parent, tls, child) };
    }
    let mut task = Task { f, argument };
    before();
    // SAFETY: the caller's arguments, but for what is done first.
    let pid = unsafe { real::clone(begin as *mut c_void, stack, flags, (&raw mut task).cast(), parent, tls, child) };
    after_in_parent();
    pid
}
