//! Threads, in the order in which they get locks.
//!
//! Threads that the allocator makes, and locks that it takes, are left out: what it does differs from run to run, and the
//! program does not see it.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use libc::{pthread_attr_t, pthread_t, timespec};
use tcpr_session::trace::{Call, Program};

use crate::engine::{append, follows, is_threaded, passes, set_threaded, take};
use crate::forms::{hooks, with_caller};
use crate::hooks::to_kernel;
use crate::snapshot::park;
use crate::{conditions, engine, errno, next, raw, signals, thread};

/// Most threads at a time.
pub const MOST: usize = 8192;

const FREE: u32 = 0;
const MADE: u32 = 1;
const STARTED: u32 = 2;

struct Slot {
    state: AtomicU32,
    start: AtomicPtr<c_void>,
    argument: AtomicPtr<c_void>,
}

static SLOTS: [Slot; MOST] = [const {
    Slot {
        state: AtomicU32::new(FREE),
        start: AtomicPtr::new(std::ptr::null_mut()),
        argument: AtomicPtr::new(std::ptr::null_mut()),
    }
}; MOST];

/// Where the code of the allocator lies, if it is a library of its own.
static ALLOCATOR: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// Before anything is recorded.
pub fn begin() {
    SLOTS[0].state.store(STARTED, Ordering::Relaxed);
    let malloc = next::find_anywhere(c"malloc") as usize;
    let mut search = Search { malloc, libc: libc::getauxval as *const () as usize, first: true };
    // SAFETY: the callback fits its argument, which lives.
    unsafe { libc::dl_iterate_phdr(Some(look_at), (&raw mut search).cast()) };
}

struct Search {
    malloc: usize,
    libc: usize,
    first: bool,
}

unsafe extern "C" fn look_at(info: *mut libc::dl_phdr_info, _: usize, search: *mut c_void) -> c_int {
    // SAFETY: the loader's list, and our own structure.
    let (info, search) = unsafe { (&*info, &mut *search.cast::<Search>()) };
    // SAFETY: the loader's list.
    let parts = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let is_program = std::mem::replace(&mut search.first, false);
    for part in parts.iter().filter(|p| p.p_type == libc::PT_LOAD && p.p_flags & libc::PF_X != 0) {
        let code = (info.dlpi_addr + part.p_vaddr) as usize..(info.dlpi_addr + part.p_vaddr + part.p_memsz) as usize;
        if code.contains(&search.malloc) && !code.contains(&search.libc) && !is_program {
            ALLOCATOR[0].store(code.start, Ordering::Relaxed);
            ALLOCATOR[1].store(code.end, Ordering::Relaxed);
        }
    }
    0
}

/// Whether code of the allocator makes the call.
pub fn is_allocator(caller: usize) -> bool {
    caller >= ALLOCATOR[0].load(Ordering::Relaxed) && caller < ALLOCATOR[1].load(Ordering::Relaxed)
}

// ---- Making and ending

extern "C-unwind" fn run(slot: *mut c_void) -> *mut c_void {
    let id = slot as usize;
    let Some(slot) = SLOTS.get(id) else { return std::ptr::null_mut() };
    while slot.state.load(Ordering::Acquire) == MADE {
        raw::futex_wait(slot.state.as_ptr(), MADE, 100_000_000);
    }
    let (start, argument) = (slot.start.load(Ordering::Relaxed), slot.argument.load(Ordering::Relaxed));
    thread::set_id(id as i32);
    // SAFETY: the program's own function, with its argument.
    let result = unsafe { std::mem::transmute::<*mut c_void, extern "C-unwind" fn(*mut c_void) -> *mut c_void>(start)(argument) };
    end();
    result
}

/// This thread makes no more records.
fn end() {
    let id = thread::id();
    if passes() || !is_threaded() {
        return;
    }
    let free = || {
        if let Some(slot) = SLOTS.get(id as usize).filter(|_| id > 0) {
            slot.state.store(FREE, Ordering::Release);
        }
    };
    if follows() {
        if let Some(taken) = take(Call::ThreadEnd, 0) {
            free();
            taken.done();
            engine::leave();
            thread::set_id(thread::FOREIGN);
            return;
        }
    }
    append(Call::ThreadEnd, 0, 0, &[]);
    free();
    thread::set_id(thread::FOREIGN);
}

fn new_slot() -> Option<usize> {
    let is_new = |slot: &Slot| slot.state.compare_exchange(FREE, MADE, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    SLOTS.iter().position(is_new)
}

type Start = *mut c_void;

/// # Safety
/// As for `pthread_create`.
unsafe fn create(
    start: Start,
    argument: *mut c_void,
    next: impl FnOnce(extern "C-unwind" fn(*mut c_void) -> *mut c_void, *mut c_void) -> c_int,
) -> c_int {
    set_threaded();
    let mut taken = if follows() { take(Call::Thread, 0) } else { None };
    if let Some(failed) = taken.take_if(|taken| taken.result() < 0) {
        let error = -failed.result() as c_int;
        failed.done();
        return error;
    }
    let id = match &taken {
        Some(taken) => taken.result() as usize,
        None => match new_slot() {
            Some(id) => id,
            None => return libc::EAGAIN,
        },
    };
    let Some(slot) = SLOTS.get(id) else { engine::diverge(format_args!("the trace has a thread {id}")) };
    slot.state.store(MADE, Ordering::Relaxed);
    slot.start.store(start, Ordering::Relaxed);
    slot.argument.store(argument, Ordering::Relaxed);
    let mask = signals::block_all();
    let error = thread::outside(|| next(run, id as *mut c_void));
    signals::unblock(mask);
    match taken {
        Some(taken) if error != 0 => taken.diverges(Program::Gets((-error).into())),
        Some(taken) => taken.done(),
        None => {
            append(Call::Thread, 0, if error == 0 { id as i64 } else { -i64::from(error) }, &[]);
        }
    }
    slot.state.store(if error == 0 { STARTED } else { FREE }, Ordering::Release);
    raw::futex_wake(slot.state.as_ptr());
    error
}

/// Numbers of the threads that there are; `None`: one is just beginning.
pub fn started() -> impl Iterator<Item = Option<usize>> {
    let all = SLOTS.iter().enumerate().map(|(n, slot)| (n, slot.state.load(Ordering::Acquire)));
    all.filter(|(_, state)| *state != FREE).map(|(n, state)| (state == STARTED).then_some(n))
}

// ---- Locks

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
}
