//! Threads, in the order in which they get locks.
//!
//! Locks that the allocator takes are left out: what it does differs from run to run, and the program does not see it.

use std::ffi::{c_int, c_void};

use libc::{pthread_attr_t, pthread_t, timespec};
use tcpr_session::trace::Call;

use super::exported::{hooks, with_caller};
use crate::activity::{self, follows, is_threaded};
use crate::clocks::to_kernel;
use crate::engine::{append, take};
use crate::snapshot::park;
use crate::threads::{create, end, Start};
use crate::{conditions, errno, next, signals, thread};

/// A lock that was waited for.
fn lock(next: impl Fn() -> i64) -> i64 {
    attempt(Call::Lock, &next, &next)
}

/// A lock that was tried. What was got in the trace is waited for by the follower.
fn attempt(call: Call, live: impl Fn() -> i64, wait: impl Fn() -> i64) -> i64 {
    attempt_if(is_threaded(), call, live, wait)
}

/// The same of a lock that may be left out of the trace.
fn attempt_if(traced: bool, call: Call, live: impl Fn() -> i64, wait: impl Fn() -> i64) -> i64 {
    attempt_at(traced, call, None, live, wait)
}

/// The same of a semaphore, at which a thread may wait while a snapshot is made.
fn attempt_at(traced: bool, call: Call, semaphore: Option<*mut c_void>, live: impl Fn() -> i64, wait: impl Fn() -> i64) -> i64 {
    if !traced {
        return thread::outside(live);
    }
    loop {
        if !follows() {
            let live = || thread::outside(&live);
            let result = match semaphore {
                Some(it) => park::wait(park::For::Semaphore(it), live),
                None => Some(live()),
            };
            if let Some(result) = result {
                append(call, 0, result, &[]);
                return result;
            }
        }
        if let Some(taken) = take(call, 0) {
            let result = taken.result();
            if result == 0 {
                thread::outside(wait);
            }
            taken.done();
            return result;
        }
    }
}

/// A wait for a condition variable that ends by a clock of the kernel's at the time that `end` says, or never. `wait` waits in fact,
/// until then.
///
/// # Safety
/// The mutex is the caller's, which has locked it.
unsafe fn wait(
    condition: *mut c_void,
    mutex: *mut c_void,
    end: impl Fn() -> (c_int, Option<timespec>),
    wait: impl Fn(Option<&timespec>) -> c_int,
) -> c_int {
    if !is_threaded() && !signals::waits_in_slices() {
        return thread::outside(|| wait(end().1.as_ref()));
    }
    let mut entered = follows();
    if entered {
        conditions::enter(condition);
        // SAFETY: as the caller says.
        thread::outside(|| unsafe { next::pthread_mutex_unlock(mutex) });
        // SAFETY: as the caller says.
        if let Some(result) = unsafe { follow_wait(condition, mutex) } {
            return result;
        }
    }
    loop {
        if let Some(result) = wait_in_slices((condition, mutex), entered, end(), &wait) {
            signals::deliver_in(std::ptr::null());
            append(Call::CondWait, 0, result.into(), &[]);
            return result;
        }
        // A fresh process goes on here, and follows: on another machine, with another clock. The thread is entered, and has not
        // locked its mutex.
        // SAFETY: as the caller says.
        let followed = unsafe { follow_wait(condition, mutex) };
        // It has locked it anew, and was counted as a user all the time, as in any wait for a condition.
        // SAFETY: the program's mutex, which this thread holds; glibc's has `__nusers` there (x86-64, where snapshots are made).
        unsafe {
            let users = mutex.cast::<u32>().add(3);
            users.write(users.read().wrapping_sub(1));
        }
        if let Some(result) = followed {
            return result;
        }
        entered = true;
    }
}

/// The wait of a thread that is entered, and has not locked its mutex. `None`: the trace has ended.
///
/// # Safety
/// The mutex is the program's own.
unsafe fn follow_wait(condition: *mut c_void, mutex: *mut c_void) -> Option<c_int> {
    let taken = take(Call::CondWait, 0);
    // SAFETY: as the caller says.
    thread::outside(|| unsafe { next::pthread_mutex_lock(mutex) });
    let taken = taken?;
    let result = taken.result() as c_int;
    match result {
        0 => conditions::leave_woken(condition),
        _ => drop(conditions::leave()),
    }
    taken.done();
    Some(result)
}

/// How long a thread that waited at a promotion waits at a time: whoever signals without the mutex may do so just before it waits.
const RESUMED_NS: i64 = 1_000_000_000;

/// In slices, where that has a reason: the first thread's signals, or that the wait began in a follower (`entered`).
/// `None`: the thread goes on in a fresh process.
fn wait_in_slices(
    (condition, mutex): (*mut c_void, *mut c_void),
    mut entered: bool,
    (clock, until): (c_int, Option<timespec>),
    wait: impl Fn(Option<&timespec>) -> c_int,
) -> Option<c_int> {
    loop {
        if entered && conditions::is_woken() {
            conditions::leave();
            return Some(0);
        }
        let resumed = || if entered && signals::can_slice() { signals::slice_of(clock, until, RESUMED_NS) } else { None };
        let slice = signals::slice(clock, until).or_else(resumed);
        if slice.is_some() && !entered {
            conditions::enter(condition);
            entered = true;
        }
        let what = park::For::Condition(condition, mutex);
        let result = park::wait(what, || thread::outside(|| wait(slice.or(until).as_ref())))?;
        let sliced = slice.is_some() && result == libc::ETIMEDOUT;
        if sliced && !signals::let_in() {
            continue;
        }
        // Where a handler has run, the program is woken: it may wait for what that does.
        let woken = entered && conditions::leave();
        return Some(if woken || sliced { 0 } else { result });
    }
}

/// A wait for a semaphore, likewise. It counts: nobody who gives it is missed.
fn semaphore(clock: c_int, until: Option<timespec>, wait: impl Fn(Option<&timespec>) -> c_int) -> i64 {
    const LATE: i64 = -(libc::ETIMEDOUT as i64);
    loop {
        let slice = signals::slice(clock, until);
        let result = errno::kernel(wait(slice.or(until).as_ref()).into());
        if result != LATE {
            return result;
        }
        if signals::let_in() {
            return -i64::from(libc::EINTR);
        }
        if slice.is_none() {
            return LATE;
        }
    }
}

/// The clock that a lock goes by of which that is not known here: times of the calendar lie far above those that count from a
/// machine's start.
fn clock_of(time: *const timespec) -> c_int {
    // SAFETY: the program's time, which the C library is about to read.
    match unsafe { time.as_ref() } {
        Some(time) if time.tv_sec < 1_000_000_000 => libc::CLOCK_MONOTONIC,
        _ => libc::CLOCK_REALTIME,
    }
}

/// A time by the program's clock as the kernel has it.
fn until(clock: Option<c_int>, time: *const timespec) -> Option<timespec> {
    // SAFETY: as above.
    let time = unsafe { time.as_ref() }.copied()?;
    let clock = clock.unwrap_or_else(|| clock_of(&raw const time));
    Some(if clock == libc::CLOCK_MONOTONIC { to_kernel(clock, time) } else { time })
}

/// As the C library takes it.
fn pointer(time: Option<&timespec>) -> *const timespec {
    time.map_or(std::ptr::null(), std::ptr::from_ref)
}

with_caller! {
    "r8" "x4" fn pthread_create(thread: *mut pthread_t, attributes: *const pthread_attr_t, start: Start, argument: *mut c_void) -> c_int; by create_called {
        create(start, argument, |run, argument| next(thread, attributes, run as *const () as Start, argument))
    }

    "rsi" "x1" fn pthread_mutex_lock(mutex: *mut c_void) -> c_int; by mutex_lock {
        lock(|| next(mutex).into()) as c_int
    }

    "rsi" "x1" fn pthread_mutex_trylock(mutex: *mut c_void) -> c_int; by mutex_trylock {
        attempt(Call::TryLock, || next(mutex).into(), || next::pthread_mutex_lock(mutex).into()) as c_int
    }

    "rdx" "x2" fn pthread_mutex_timedlock(mutex: *mut c_void, time: *const timespec) -> c_int; by mutex_timedlock {
        attempt(Call::TryLock, || next(mutex, time).into(), || next::pthread_mutex_lock(mutex).into()) as c_int
    }

    "rcx" "x3" fn pthread_mutex_clocklock(mutex: *mut c_void, clock: c_int, time: *const timespec) -> c_int; by mutex_clocklock {
        attempt(Call::TryLock, || {
            let until = until(Some(clock), time);
            next(mutex, clock, pointer(until.as_ref())).into()
        }, || next::pthread_mutex_lock(mutex).into()) as c_int
    }

    "rsi" "x1" fn pthread_rwlock_rdlock(it: *mut c_void) -> c_int; by rwlock_rdlock {
        lock(|| next(it).into()) as c_int
    }

    "rsi" "x1" fn pthread_rwlock_wrlock(it: *mut c_void) -> c_int; by rwlock_wrlock {
        lock(|| next(it).into()) as c_int
    }

    "rsi" "x1" fn pthread_rwlock_tryrdlock(it: *mut c_void) -> c_int; by rwlock_tryrdlock {
        attempt(Call::TryLock, || next(it).into(), || next::pthread_rwlock_rdlock(it).into()) as c_int
    }

    "rsi" "x1" fn pthread_rwlock_trywrlock(it: *mut c_void) -> c_int; by rwlock_trywrlock {
        attempt(Call::TryLock, || next(it).into(), || next::pthread_rwlock_wrlock(it).into()) as c_int
    }

    "rsi" "x1" fn pthread_spin_lock(it: *mut c_void) -> c_int; by spin_lock {
        lock(|| next(it).into()) as c_int
    }

    "rsi" "x1" fn pthread_spin_trylock(it: *mut c_void) -> c_int; by spin_trylock {
        attempt(Call::TryLock, || next(it).into(), || next::pthread_spin_lock(it).into()) as c_int
    }

    "rsi" "x1" fn sem_wait(it: *mut c_void) -> c_int; by semaphore_wait {
        const CLOCK: c_int = libc::CLOCK_MONOTONIC;
        let live = || semaphore(CLOCK, None, |until| until.map_or_else(|| next(it), |until| next::sem_clockwait(it, CLOCK, until)));
        let traced = is_threaded() || signals::waits_in_slices();
        errno::c(attempt_at(traced, Call::Lock, Some(it), live, || errno::kernel(next(it).into()))) as c_int
    }

    "rsi" "x1" fn sem_trywait(it: *mut c_void) -> c_int; by semaphore_trywait {
        errno::c(attempt(Call::TryLock, || errno::kernel(next(it).into()), || next::sem_wait(it).into())) as c_int
    }

    "rdx" "x2" fn sem_timedwait(it: *mut c_void, time: *const timespec) -> c_int; by semaphore_timedwait {
        let live = || semaphore(libc::CLOCK_REALTIME, time.as_ref().copied(), |until| next(it, pointer(until)));
        errno::c(attempt_at(is_threaded(), Call::TryLock, Some(it), live, || next::sem_wait(it).into())) as c_int
    }

    "rcx" "x3" fn sem_clockwait(it: *mut c_void, clock: c_int, time: *const timespec) -> c_int; by semaphore_clockwait {
        let live = || semaphore(clock, until(Some(clock), time), |until| next(it, clock, pointer(until)));
        errno::c(attempt_at(is_threaded(), Call::TryLock, Some(it), live, || next::sem_wait(it).into())) as c_int
    }

    "rdx" "x2" fn pthread_cond_wait(it: *mut c_void, mutex: *mut c_void) -> c_int; by condition_wait, left_out {
        const CLOCK: c_int = libc::CLOCK_MONOTONIC;
        wait(it, mutex, || (CLOCK, None), |until| {
            until.map_or_else(|| next(it, mutex), |until| next::pthread_cond_clockwait(it, mutex, CLOCK, until))
        })
    }

    "rcx" "x3" fn pthread_cond_timedwait(it: *mut c_void, mutex: *mut c_void, time: *const timespec) -> c_int; by condition_timedwait, left_out {
        wait(it, mutex, || (clock_of(time), until(None, time)), |until| next(it, mutex, pointer(until)))
    }

    "r8" "x4" fn pthread_cond_clockwait(it: *mut c_void, mutex: *mut c_void, clock: c_int, time: *const timespec) -> c_int; by condition_clockwait, left_out {
        wait(it, mutex, || (clock, until(Some(clock), time)), |until| next(it, mutex, clock, pointer(until)))
    }
}

hooks! {
    fn pthread_cond_signal(it: *mut c_void) -> c_int {
        conditions::signalled(it, false);
        next(it)
    }

    fn pthread_cond_broadcast(it: *mut c_void) -> c_int {
        conditions::signalled(it, true);
        next(it)
    }

    fn pthread_join(thread: pthread_t, result: *mut *mut c_void) -> c_int {
        if !is_threaded() {
            return next(thread, result);
        }
        if follows() {
            if let Some(taken) = take(Call::Join, 0) {
                let error = taken.result() as c_int;
                if error == 0 {
                    crate::thread::outside(|| next(thread, result));
                }
                taken.done();
                return error;
            }
        }
        let error = loop {
            let Some(until) = signals::slice(libc::CLOCK_MONOTONIC, None) else {
                break crate::thread::outside(|| next(thread, result));
            };
            let clock = libc::CLOCK_MONOTONIC;
            match crate::thread::outside(|| next::pthread_clockjoin_np(thread, result, clock, &raw const until)) {
                libc::ETIMEDOUT => signals::let_in(),
                error => break error,
            };
        };
        append(Call::Join, 0, error.into(), &[]);
        error
    }

    fn pthread_exit(result: *mut c_void) -> () {
        end();
        next(result)
    }

    fn pthread_cancel(thread: pthread_t) -> c_int {
        activity::refuse("it cancels a thread (pthread_cancel)");
        next(thread)
    }

    // Those of <threads.h> are the same ones by other names, and call each other past our hooks.

    fn thrd_create(thread: *mut pthread_t, start: Start, argument: *mut c_void) -> c_int {
        c11(pthread_create(thread, std::ptr::null(), start, argument))
    }

    fn thrd_join(thread: pthread_t, result: *mut c_int) -> c_int {
        let mut own = std::ptr::null_mut();
        let error = pthread_join(thread, &raw mut own);
        if !result.is_null() {
            *result = own as isize as c_int;
        }
        c11(error)
    }

    fn thrd_exit(result: c_int) -> () {
        pthread_exit(result as isize as *mut c_void);
    }

    fn mtx_lock(mutex: *mut c_void) -> c_int {
        c11(pthread_mutex_lock(mutex))
    }

    fn mtx_trylock(mutex: *mut c_void) -> c_int {
        c11(pthread_mutex_trylock(mutex))
    }

    fn mtx_timedlock(mutex: *mut c_void, time: *const timespec) -> c_int {
        c11(pthread_mutex_timedlock(mutex, time))
    }

    fn cnd_wait(it: *mut c_void, mutex: *mut c_void) -> c_int {
        c11(pthread_cond_wait(it, mutex))
    }

    fn cnd_timedwait(it: *mut c_void, mutex: *mut c_void, time: *const timespec) -> c_int {
        c11(pthread_cond_timedwait(it, mutex, time))
    }

    fn cnd_signal(it: *mut c_void) -> c_int {
        c11(pthread_cond_signal(it))
    }

    fn cnd_broadcast(it: *mut c_void) -> c_int {
        c11(pthread_cond_broadcast(it))
    }
}

/// An error as <threads.h> has it.
fn c11(error: c_int) -> c_int {
    match error {
        0 => 0,
        libc::EBUSY => 1,
        libc::ENOMEM => 3,
        libc::ETIMEDOUT => 4,
        _ => 2,
    }
}
