//! Threads that wait: where each of them goes on in a fresh process.
//!
//! A thread that waits for descriptors, a condition or a semaphore, or sleeps, saves its registers on its stack first. A snapshot is made when all do
//! so. What a wait gives is in the trace behind the snapshot, whether the thread was about to wake up or not. The allocator's
//! threads are not in the trace: theirs ends without a reason, as waits for a condition may.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::switch::{self, Begin};
use crate::raw::raw;
use crate::{activity, conditions, handlers, memory, next, partner, thread, threads};

/// Where a thread waits.
struct Place {
    /// Of a thread that has no number in the trace: whether it is taken.
    taken: AtomicU32,
    /// Where its registers are saved; 0: it does not wait.
    stack: AtomicU64,
    /// Its C library's structure, which is also its FS register.
    fs: AtomicU64,
    /// What it waits for, and the mutex of that; 0: descriptors.
    condition: AtomicU64,
    mutex: AtomicU64,
    semaphore: AtomicU64,
}

/// What a thread waits for.
#[derive(Clone, Copy)]
pub enum For {
    /// Descriptors, or a time.
    Kernel,
    /// A condition, with its mutex.
    Condition(*mut c_void, *mut c_void),
    /// A semaphore.
    Semaphore(*mut c_void),
}

impl Place {
    const fn new() -> Place {
        Place {
            taken: AtomicU32::new(0),
            stack: AtomicU64::new(0),
            fs: AtomicU64::new(0),
            condition: AtomicU64::new(0),
            mutex: AtomicU64::new(0),
            semaphore: AtomicU64::new(0),
        }
    }
}

const MOST: usize = 512;
/// Those of the threads of the trace.
static PLACES: [Place; MOST] = [const { Place::new() }; MOST];
/// Those of other threads.
static OTHERS: [Place; 64] = [const { Place::new() }; 64];

/// A wait of a thread. `None`: the thread goes on in a fresh process, which follows. It has not got what it waited for, and a
/// mutex of it is not locked.
pub fn wait<T>(what: For, live: impl FnOnce() -> T) -> Option<T> {
    let place = PLACES.get(thread::id() as usize).filter(|_| activity::records() && thread::id() > 0);
    match place {
        Some(place) => wait_at(place, what, live),
        None => Some(live()),
    }
}

/// A wait for a condition of a thread that is left out of the trace.
///
/// # Safety
/// The mutex is the caller's, which has locked it.
pub unsafe fn wait_left_out(condition: *mut c_void, mutex: *mut c_void, live: impl FnOnce() -> c_int) -> c_int {
    let take = |place: &&Place| place.taken.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    let is_other = activity::is_on() && thread::id() == thread::FOREIGN;
    let Some(place) = is_other.then(|| OTHERS.iter().find(take)).flatten() else { return live() };
    let result = wait_at(place, For::Condition(condition, mutex), live);
    if result.is_none() {
        // SAFETY: the caller's; nobody has locked it here.
        thread::outside(|| unsafe { next::pthread_mutex_lock(mutex) });
    }
    place.taken.store(0, Ordering::Release);
    result.unwrap_or(0)
}

fn wait_at<T>(place: &'static Place, what: For, live: impl FnOnce() -> T) -> Option<T> {
    let [condition, mutex, semaphore] = match what {
        For::Kernel => [0; 3],
        For::Condition(condition, mutex) => [condition as u64, mutex as u64, 0],
        For::Semaphore(semaphore) => [0, 0, semaphore as u64],
    };
    place.condition.store(condition, Ordering::Relaxed);
    place.mutex.store(mutex, Ordering::Relaxed);
    place.semaphore.store(semaphore, Ordering::Relaxed);
    // SAFETY: takes nothing.
    place.fs.store(unsafe { libc::pthread_self() } as u64, Ordering::Relaxed);
    let mut wait = Wait { live: Some(live), result: None, place };
    if wait.freeze() != 0 {
        place.stack.store(0, Ordering::Release);
        thread::came_back();
        partner::thread_begins();
        return None;
    }
    wait.result
}

struct Wait<F, T> {
    live: Option<F>,
    result: Option<T>,
    place: &'static Place,
}

impl<F: FnOnce() -> T, T> Wait<F, T> {
    fn freeze(&mut self) -> i64 {
        if !switch::IS_KNOWN {
            self.result = self.live.take().map(|live| live());
            return 0;
        }
        // SAFETY: the function fits its argument, which lives.
        unsafe { switch::tcpr_hot_freeze(Self::run, std::ptr::from_mut(self) as i64) }
    }

    extern "C-unwind" fn run(argument: i64, stack: u64) -> i64 {
        // SAFETY: `freeze` gives it.
        let wait = unsafe { &mut *(argument as *mut Self) };
        wait.place.stack.store(stack, Ordering::Release);
        wait.result = wait.live.take().map(|live| live());
        wait.place.stack.store(0, Ordering::Release);
        0
    }
}

/// The places of the threads that wait, but for the first thread's.
fn waiting() -> impl Iterator<Item = &'static Place> {
    PLACES.iter().chain(&OTHERS).filter(|place| place.stack.load(Ordering::Acquire) != 0)
}

/// How many threads there are, of which all but the first one wait. `None`: one does not; which has been said.
pub fn all_wait() -> Option<u64> {
    for number in threads::started() {
        let waits = |n: usize| PLACES.get(n).is_some_and(|place| place.stack.load(Ordering::Acquire) != 0);
        match number {
            None => memory::say_why(format_args!("a thread of it is about to begin")),
            Some(n) if n == 0 || waits(n) => continue,
            Some(n) => memory::say_why(format_args!(
                "its thread {n} waits where no snapshot can be made: neither for descriptors, a condition or a semaphore, nor for a time"
            )),
        }
        return None;
    }
    if !is_layout_known() && waiting().any(|place| place.condition.load(Ordering::Relaxed) != 0) {
        memory::say_why(format_args!("a thread of it waits for a condition, and how this C library keeps those is not known"));
        return None;
    }
    Some(1 + waiting().count() as u64)
}

/// In the copy, where nothing moves any more: whether a thread that waits has woken up, and has its mutex again, or has got the
/// semaphore.
pub fn has_woken(tid_at: u64) -> bool {
    has_its_mutex(tid_at) || has_its_semaphore() || is_signalled()
}

/// Condition variables in the layout of glibc 2.25 to 2.40.
#[repr(C)]
struct Condition {
    sequences: [u64; 2],
    /// Of each of the two groups of waiters: twice how many there are, and a flag.
    references: [u32; 2],
    sizes: [u32; 2],
    size_before: u32,
    /// Eight times how many wait; below that, the attributes.
    waiters: u32,
    /// Of each group: twice how many signals there are that nobody has taken; 1 more: all are to wake up.
    signals: [u32; 2],
}

const _: () = assert!(size_of::<Condition>() == 48);

/// Whether they have this layout here.
fn is_layout_known() -> bool {
    // SAFETY: takes nothing; the result is a constant string.
    let version = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) }.to_bytes();
    let minor = version.strip_prefix(b"2.").map(|mut rest| super::process::number(&mut rest, 10));
    minor.is_some_and(|minor| (25..=40).contains(&minor))
}

/// Whether somebody was told to wake up and has not done so: a fresh process would not know.
fn is_signalled() -> bool {
    waiting().map(|place| place.condition.load(Ordering::Relaxed)).filter(|at| *at != 0).any(|at| {
        // SAFETY: a condition variable of the program's, and nobody uses it now.
        let condition = unsafe { &*(at as *const Condition) };
        let groups = condition.signals.iter().zip(condition.references);
        groups.into_iter().any(|(signals, references)| signals >> 1 != 0 || signals & 1 != 0 && references >> 1 != 0)
    })
}

fn has_its_semaphore() -> bool {
    let semaphores = || waiting().map(|place| place.semaphore.load(Ordering::Relaxed)).filter(|at| *at != 0);
    semaphores().any(|at| {
        // SAFETY: a semaphore of the program's, in the layout of glibc since 2.21: the number of those who wait is in its upper half.
        let waiters = unsafe { word_at(at + 4) };
        waiters as usize != semaphores().filter(|other| *other == at).count()
    })
}

fn has_its_mutex(tid_at: u64) -> bool {
    const OWNER_AT: u64 = 8;
    waiting().any(|place| {
        let (fs, mutex) = (place.fs.load(Ordering::Relaxed), place.mutex.load(Ordering::Relaxed));
        // SAFETY: a mutex of the program's, and the C library's structure of a thread that lives.
        mutex != 0 && unsafe { word_at(mutex + OWNER_AT) == word_at(fs + tid_at) }
    })
}

/// # Safety
/// A word is there.
unsafe fn word_at(at: u64) -> u32 {
    // SAFETY: as the caller says.
    unsafe { (at as *const u32).read() }
}

/// Where in the C library's structure of a thread something is.
pub struct Offsets {
    pub tid: u64,
    pub robust: u64,
    pub rseq: u64,
    /// How long what the kernel keeps there is; 0: nothing.
    pub rseq_length: u64,
}

/// Makes the threads again, each at its wait.
pub fn make_threads(offsets: &Offsets) {
    for condition in waiting().map(|place| place.condition.load(Ordering::Relaxed)).filter(|at| *at != 0) {
        forget_waiters(condition);
    }
    for (number, place) in PLACES.iter().enumerate().filter(|(_, place)| place.stack.load(Ordering::Acquire) != 0) {
        let condition = place.condition.load(Ordering::Relaxed);
        if condition != 0 {
            conditions::enter_as(number, condition as usize);
        }
    }
    for semaphore in waiting().map(|place| place.semaphore.load(Ordering::Relaxed)).filter(|at| *at != 0) {
        // SAFETY: as in `has_its_semaphore`; nobody uses it now.
        unsafe { ((semaphore + 4) as *mut u32).write(0) };
    }
    // Those that are made begin to run, and end their waits.
    let mut all = [const { None }; MOST + OTHERS.len()];
    all.iter_mut().zip(waiting()).for_each(|(to, place)| *to = Some(place));
    for place in all.into_iter().flatten() {
        make_thread(place, offsets);
    }
}

/// A condition variable knows of waiters that are not there: it begins anew, with its attributes.
fn forget_waiters(condition: u64) {
    const ATTRIBUTES: u32 = 3;
    // SAFETY: a condition variable of the program's, and nobody uses it now.
    let condition = unsafe { &mut *(condition as *mut Condition) };
    *condition = Condition {
        sequences: [0; 2],
        references: [0; 2],
        sizes: [0; 2],
        size_before: 0,
        waiters: condition.waiters & ATTRIBUTES,
        signals: [0; 2],
    };
}

fn make_thread(place: &Place, offsets: &Offsets) {
    let (stack, fs) = (place.stack.load(Ordering::Relaxed), place.fs.load(Ordering::Relaxed));
    let (tid, rseq) = (fs + offsets.tid, fs.wrapping_add(offsets.rseq));
    let begin = Begin { stack, robust: fs + offsets.robust, rseq, rseq_length: offsets.rseq_length };
    // It begins on its own stack, below what it needs: that was deeper when it waited.
    const ROOM: u64 = 256;
    let at = ((stack - ROOM) & !15) as *mut Begin;
    // SAFETY: the unused part of a stack whose thread does not run, aligned.
    unsafe { at.write(begin) };
    let flags = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_SETTLS
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_CLEARTID;
    let mask = handlers::block_all();
    // SAFETY: the new thread runs on its own stack, with what it needs at the top of that.
    let made = unsafe { switch::tcpr_hot_clone(flags.into(), at as u64, tid, tid, fs, begin_thread, at) };
    handlers::unblock(mask);
    if made < 0 {
        activity::diverge(format_args!("a thread of the snapshot cannot be made: error {}", -made));
    }
}

extern "C" fn begin_thread(begin: *const Begin) -> ! {
    // SAFETY: `make_thread` has written it.
    let begin = unsafe { &*begin };
    raw!(SYS_set_robust_list, begin.robust, 24);
    begin_rseq(begin.rseq, begin.rseq_length);
    // SAFETY: the thread's registers are there.
    unsafe { switch::tcpr_hot_thaw(begin.stack) }
}

/// What glibc has the kernel keep up to date of a thread.
pub const RSEQ_SIGNATURE: u32 = 0x5305_3053;

/// The kernel keeps that up to date again.
pub fn begin_rseq(at: u64, length: u64) {
    if length != 0 {
        // SAFETY: the C library's structure has room for it.
        let bytes = unsafe { std::slice::from_raw_parts_mut(at as *mut u8, length as usize) };
        bytes.fill(0);
        // The kernel wants it as if it were new: the second word, the processor, says so.
        bytes.iter_mut().skip(4).take(4).for_each(|b| *b = 0xff);
        raw!(SYS_rseq, at, length, 0, RSEQ_SIGNATURE);
    }
}
