//! Numbers of processes: the program knows those of the leader, where it lives or has lived behind one.

use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use libc::pid_t;

use crate::activity::was_promoted;
use crate::raw::raw;

/// The process id that the program knows, by the trace.
static PROCESS: AtomicI32 = AtomicI32::new(0);

/// Children of the leader: the follower has none, and on its machine their numbers may be anybody's. The newest ones; those of
/// this machine are negative.
static CHILDREN: [AtomicI32; 256] = [const { AtomicI32::new(0) }; 256];
static NEWEST: AtomicUsize = AtomicUsize::new(0);
/// No process has this number, which is above all that the kernel gives out.
const NOBODY: pid_t = pid_t::MAX;

/// The process id that the program knows; 0: none yet.
pub fn known() -> pid_t {
    PROCESS.load(Ordering::Relaxed)
}

/// It knows this one.
pub fn set_known(pid: pid_t) {
    PROCESS.store(pid, Ordering::Relaxed);
}

/// A child that the leader has made, and the follower has not.
pub fn note_child(pid: pid_t) {
    CHILDREN[NEWEST.fetch_add(1, Ordering::Relaxed) % CHILDREN.len()].store(pid, Ordering::Relaxed);
}

/// A child of this machine.
pub fn note_own_child(pid: pid_t) {
    for child in &CHILDREN {
        for number in [pid, -pid] {
            let _ = child.compare_exchange(number, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
    note_child(-pid);
}

/// What was a child of this machine is one of another machine now: this process has the memory of a leader.
pub fn children_stay_behind() {
    for child in &CHILDREN {
        let pid = child.load(Ordering::Relaxed);
        child.store(pid.saturating_abs(), Ordering::Relaxed);
    }
}

/// What the kernel calls the process, or process group, that the program calls so.
pub fn to_kernel_pid(pid: pid_t) -> pid_t {
    if !was_promoted() {
        return pid;
    }
    let number = pid.saturating_abs();
    let to = if number != 0 && number == PROCESS.load(Ordering::Relaxed) {
        raw!(SYS_getpid) as pid_t
    } else if number > 1 && CHILDREN.iter().any(|child| child.load(Ordering::Relaxed) == number) {
        NOBODY
    } else {
        number
    };
    if pid < 0 {
        -to
    } else {
        to
    }
}
