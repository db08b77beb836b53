//! Who is woken at a condition variable while it does not wait in it: in a follower, where the trace says when a wait ends, and
//! between two slices of a wait. Programs may not be woken for no reason: POSIX allows it, and some take it for the event that they
//! wait for (memcached makes its hash table twice as large). And nobody may be forgotten.
//!
//! A thread is entered here before it unlocks its mutex. A signal that is given while threads are entered marks one of them; when
//! it comes back, it knows that it was woken. After a promotion a thread that was not goes on waiting, in fact.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use crate::thread::MOST;
use crate::{raw, thread};

/// A thread that was entered, by its number.
struct Waiter {
    /// The condition's address; 0: it is not entered.
    condition: AtomicUsize,
    woken: AtomicBool,
}

static WAITERS: [Waiter; MOST] = [const { Waiter { condition: AtomicUsize::new(0), woken: AtomicBool::new(false) } }; MOST];
/// How many are entered, and a number above all that ever were.
static ENTERED: AtomicUsize = AtomicUsize::new(0);
static ABOVE: AtomicUsize = AtomicUsize::new(0);
static LOCK: AtomicU32 = AtomicU32::new(0);

fn locked<T>(f: impl FnOnce() -> T) -> T {
    while LOCK.swap(1, Ordering::Acquire) != 0 {
        raw::yield_now();
    }
    let result = f();
    LOCK.store(0, Ordering::Release);
    result
}

fn me() -> Option<&'static Waiter> {
    WAITERS.get(usize::try_from(thread::id()).ok()?)
}

/// Those that are entered at this condition, and marked or not.
fn at(condition: usize, woken: bool) -> impl Iterator<Item = &'static Waiter> {
    let all = WAITERS.iter().take(ABOVE.load(Ordering::Relaxed));
    all.filter(move |w| w.condition.load(Ordering::Relaxed) == condition && w.woken.load(Ordering::Relaxed) == woken)
}

/// This thread is about to wait. The caller has locked its mutex.
pub fn enter(condition: *mut c_void) {
    let Some(waiter) = me() else { return };
    locked(|| {
        if waiter.condition.swap(condition as usize, Ordering::Relaxed) == 0 {
            ENTERED.fetch_add(1, Ordering::SeqCst);
        }
        waiter.woken.store(false, Ordering::Relaxed);
        ABOVE.fetch_max(thread::id() as usize + 1, Ordering::Relaxed);
    });
}

/// A thread of a process that begins with a snapshot was waiting: it is entered, if it was not before. Nobody else runs.
pub fn enter_as(number: usize, condition: usize) {
    let Some(waiter) = WAITERS.get(number) else { return };
    if waiter.condition.swap(condition, Ordering::Relaxed) == 0 {
        ENTERED.fetch_add(1, Ordering::SeqCst);
        waiter.woken.store(false, Ordering::Relaxed);
    }
    ABOVE.fetch_max(number + 1, Ordering::Relaxed);
}

/// Whether it was marked.
pub fn is_woken() -> bool {
    me().is_some_and(|waiter| waiter.woken.load(Ordering::Relaxed))
}

/// It waits no more. Returns whether it was marked.
pub fn leave() -> bool {
    let Some(waiter) = me() else { return false };
    locked(|| {
        if waiter.condition.swap(0, Ordering::Relaxed) != 0 {
            ENTERED.fetch_sub(1, Ordering::SeqCst);
        }
        waiter.woken.swap(false, Ordering::Relaxed)
    })
}

/// The trace says that it was woken: if somebody else is marked, this thread was meant.
pub fn leave_woken(condition: *mut c_void) {
    if !leave() {
        locked(|| {
            if let Some(other) = at(condition as usize, true).next() {
                other.woken.store(false, Ordering::Relaxed);
            }
        });
    }
}

/// A thread signals the condition, for one that waits, or for all.
pub fn signalled(condition: *mut c_void, all: bool) {
    if ENTERED.load(Ordering::SeqCst) == 0 {
        return;
    }
    locked(|| {
        let many = if all { usize::MAX } else { 1 };
        at(condition as usize, false).take(many).for_each(|waiter| waiter.woken.store(true, Ordering::Relaxed));
    });
}
