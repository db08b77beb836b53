//! Programs that take from themselves what the hooks need: system calls, by seccomp, and the network in which the manager is;
//! and those that fork around the C library, most often to do so.

use std::ffi::c_void;
use std::mem;

use libc::{c_int, c_long, pid_t};
use tcpr_node::channel::client::Bypass;

use super::descriptors::is_for_us;
use super::inside;
use crate::ffi::Checked;
use crate::{process, real};

const SECCOMP_SET_MODE_STRICT: c_long = 0;
const SECCOMP_SET_MODE_FILTER: c_long = 1;

/// Before a filter is installed: the manager is told, and from then on nothing is done for this process but what it asks for
/// itself. What a filter would let through nobody knows, and it may kill.
pub(super) fn before_seccomp(operation: c_long, flags: c_long, argument: c_long) {
    let locks = match operation {
        SECCOMP_SET_MODE_STRICT => flags == 0 && argument == 0,
        // Without a filter it only finds out whether there are any.
        SECCOMP_SET_MODE_FILTER => argument != 0,
        _ => false,
    };
    if locks && !Bypass::active() {
        inside((), process::leave);
    }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn prctl(option: c_int, a: c_long, b: c_long, c: c_long, d: c_long) -> c_int {
    if option == libc::PR_SET_SECCOMP {
        match a as u32 {
            libc::SECCOMP_MODE_STRICT => before_seccomp(SECCOMP_SET_MODE_STRICT, 0, 0),
            libc::SECCOMP_MODE_FILTER => before_seccomp(SECCOMP_SET_MODE_FILTER, 0, b),
            _ => {}
        }
    }
    // SAFETY: the caller's arguments.
    unsafe { real::prctl(option, a, b, c, d) }
}

/// Before the process goes where the manager is not: a forked one joins while it can.
pub(super) fn before_namespace() {
    if !Bypass::active() {
        inside(None, || process::client().map(|_| ()));
    }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn unshare(flags: c_int) -> c_int {
    if flags & libc::CLONE_NEWNET != 0 {
        before_namespace();
    }
    // SAFETY: takes no pointers.
    unsafe { real::unshare(flags) }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn setns(fd: c_int, kind: c_int) -> c_int {
    if kind == 0 || kind & libc::CLONE_NEWNET != 0 {
        before_namespace();
    }
    // SAFETY: takes no pointers.
    unsafe { real::setns(fd, kind) }
}

/// Whether these flags of a clone make a process of its own, as fork does.
pub(super) fn forks(flags: c_int) -> bool {
    flags & (libc::CLONE_VM | libc::CLONE_FILES) == 0
}

/// The beginning of `struct clone_args`.
#[repr(C)]
pub(super) struct CloneArguments {
    flags: u64,
    _ids: [u64; 4],
    stack: u64,
}

/// The same of clone3.
///
/// # Safety
/// What can be read there are the caller's arguments.
pub(super) unsafe fn forks_by(arguments: *const CloneArguments, bytes: usize) -> bool {
    let known = bytes >= size_of::<CloneArguments>() && Checked::default().is_readable(arguments, size_of::<CloneArguments>());
    // SAFETY: it can be read, or is null.
    known && unsafe { arguments.as_ref() }.is_some_and(|a| forks(a.flags as c_int) && a.stack == 0)
}

/// Forks around the C library: things are put in order as around one of its forks. Not in a process of several threads, whose
/// memory nobody puts in order: there the child is one without hooks.
pub(super) fn forked(fork: impl FnOnce() -> c_long) -> c_long {
    if !is_for_us() || !real::is_single_threaded() {
        return fork();
    }
    process::before_fork();
    let child = fork();
    match child {
        0 => process::after_fork_in_child(),
        _ => process::after_fork_in_parent(),
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
    process::after_fork_in_child();
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
    if f.is_null() || stack.is_null() || !forks(flags) || !is_for_us() || !real::is_single_threaded() {
        // SAFETY: the caller's arguments.
        return unsafe { real::clone(f, stack, flags, argument, parent, tls, child) };
    }
    let mut task = Task { f, argument };
    process::before_fork();
    // SAFETY: the caller's arguments, but for what is done first.
    let pid = unsafe {
        real::clone(begin as *mut c_void, stack, flags, (&raw mut task).cast(), parent, tls, child)
    };
    process::after_fork_in_parent();
    pid
}
