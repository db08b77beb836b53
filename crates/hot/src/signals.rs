//! Signals: a handler of the program runs at waits and at changes of the signal mask, where both members agree on the place.
//!
//! The kernel sees a handler of ours, which notes the signal, and has the signal blocked except while the program waits. Only
//! the first thread gets signals. Signals that tell a fault of the thread itself go to the program's handler at once.

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicU8, Ordering};

use libc::{sigaction as SigAction, sighandler_t, siginfo_t, sigset_t};
use tcpr_session::trace::Call;

use crate::engine::{append, follows, take, Taken};
use crate::forms::{hooks, told};
use crate::raw::{self, raw};
use crate::{descriptors, errno, next, thread};

/// What the program has asked for.
#[derive(Clone, Copy)]
struct Wanted {
    handler: sighandler_t,
    flags: c_int,
    mask: u64,
}

struct Table {
    wanted: UnsafeCell<[Wanted; 65]>,
    info: UnsafeCell<[std::mem::MaybeUninit<siginfo_t>; 65]>,
}

// SAFETY: `wanted` is changed by the program's calls, which it orders itself, as it does with the kernel's table; `info` by
// the handler, while the signal is blocked everywhere else.
unsafe impl Sync for Table {}

static TABLE: Table = Table {
    wanted: UnsafeCell::new([Wanted { handler: libc::SIG_DFL, flags: 0, mask: 0 }; 65]),
    info: UnsafeCell::new([const { std::mem::MaybeUninit::zeroed() }; 65]),
};

/// Blocked by the program, in the first thread.
static MASK: AtomicU64 = AtomicU64::new(0);
/// Those with handlers of the program.
static HANDLED: AtomicU64 = AtomicU64::new(0);
/// Those that came and were not handled.
static PENDING: AtomicU64 = AtomicU64::new(0);

const fn bit(signal: c_int) -> u64 {
    1 << (signal - 1)
}

/// Signals of a fault of the thread itself.
const FAULTS: u64 = bit(libc::SIGSEGV)
    | bit(libc::SIGBUS)
    | bit(libc::SIGFPE)
    | bit(libc::SIGILL)
    | bit(libc::SIGTRAP)
    | bit(libc::SIGABRT)
    | bit(libc::SIGSYS);

/// Whether it is one of those.
pub fn is_fault(signal: c_int) -> bool {
    (1..=64).contains(&signal) && FAULTS & bit(signal) != 0
}

fn wanted(signal: c_int) -> &'static mut Wanted {
    // SAFETY: see Table; the number was checked.
    unsafe { &mut (&mut *TABLE.wanted.get())[signal.clamp(0, 64) as usize] }
}

fn raw_mask(how: c_int, set: Option<u64>) -> u64 {
    let mut old = 0u64;
    let set = set.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    raw!(SYS_rt_sigprocmask, how, set, &raw mut old, 8);
    old
}

fn first_word(set: *const sigset_t) -> u64 {
    // SAFETY: a signal set is at least so long; the caller's is readable.
    unsafe { set.cast::<u64>().read_unaligned() }
}

/// Before anything is recorded.
pub fn begin() {
    MASK.store(raw_mask(libc::SIG_BLOCK, None), Ordering::Relaxed);
}

/// Sets the kernel's mask of the first thread.
fn apply() {
    raw_mask(libc::SIG_SETMASK, Some((MASK.load(Ordering::Relaxed) | HANDLED.load(Ordering::Relaxed)) & !FAULTS));
}

/// The mask for a wait of the first thread, if handlers may run in it.
pub fn mask_of_wait(asked: *const sigset_t) -> Option<u64> {
    if thread::id() != 0 || HANDLED.load(Ordering::Relaxed) == 0 {
        return None;
    }
    Some(if asked.is_null() { MASK.load(Ordering::Relaxed) } else { first_word(asked) })
}

/// A set of the C library's.
pub fn set_of(mask: u64) -> sigset_t {
    // SAFETY: a signal set is plain data of which the first word counts.
    unsafe {
        let mut set: sigset_t = std::mem::zeroed();
        (&raw mut set).cast::<u64>().write_unaligned(mask);
        set
    }
}

extern "C" fn note(signal: c_int, info: *mut siginfo_t, _: *mut c_void) {
    let process = raw!(SYS_getpid);
    if raw!(SYS_gettid) != process {
        // It met a thread that was making a process: it is for the first one, which has the process's number.
        raw!(SYS_rt_tgsigqueueinfo, process, process, signal, info);
        return;
    }
    // SAFETY: see Table.
    unsafe { (&mut *TABLE.info.get())[signal.clamp(0, 64) as usize].as_mut_ptr().write(*info) };
    PENDING.fetch_or(bit(signal), Ordering::AcqRel);
}

/// Runs the handlers of signals that came, if they are not blocked.
pub fn deliver() {
    deliver_unless(MASK.load(Ordering::Relaxed));
}

/// The same at the end of a wait with a mask of its own.
pub fn deliver_in(mask: *const sigset_t) {
    let blocked = if mask.is_null() { MASK.load(Ordering::Relaxed) } else { first_word(mask) };
    fetch_overdue(blocked);
    deliver_unless(blocked);
}

/// A wait that finds something at once lets no signal in: a program that is always busy would never get any.
fn fetch_overdue(blocked: u64) {
    static WAITS: AtomicU64 = AtomicU64::new(0);
    let handled = HANDLED.load(Ordering::Relaxed);
    if handled == 0 || thread::id() != 0 || !WAITS.fetch_add(1, Ordering::Relaxed).is_multiple_of(16) {
        return;
    }
    let mut waiting = 0u64;
    raw!(SYS_rt_sigpending, &raw mut waiting, 8);
    if waiting & handled & !blocked != 0 {
        raw_mask(libc::SIG_SETMASK, Some(blocked));
        apply();
    }
}

/// Before a call that may wait for one descriptor: lets signals in meanwhile. True: the call is interrupted.
pub fn window(fd: c_int, events: i16) -> bool {
    let Some(mask) = mask_of_wait(std::ptr::null()) else { return false };
    if !descriptors::has(fd, descriptors::BLOCKING) {
        return false;
    }
    let set = set_of(mask);
    let mut one = libc::pollfd { fd, events, revents: 0 };
    let mut limit = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let mut length = size_of::<libc::timeval>() as libc::socklen_t;
    raw!(SYS_getsockopt, fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &raw mut limit, &raw mut length);
    let time = libc::timespec { tv_sec: limit.tv_sec, tv_nsec: limit.tv_usec * 1000 };
    let time = if time.tv_sec == 0 && time.tv_nsec == 0 { std::ptr::null() } else { &raw const time };
    loop {
        // SAFETY: live.
        let result = thread::outside(|| unsafe { next::ppoll(&raw mut one, 1, time, &raw const set) });
        let is_over = result >= 0 || errno::get() != libc::EINTR;
        fetch_overdue(mask);
        if deliver_unless(mask) {
            return true;
        }
        if is_over {
            return false;
        }
    }
}

/// How long the first thread waits for other threads until it lets signals in: no call does both.
const SLICE_NS: i64 = 50_000_000;

/// Whether waits of this thread for other threads are made in slices, for it has handlers to run. So it is in both members.
pub fn waits_in_slices() -> bool {
    mask_of_wait(std::ptr::null()).is_some() && can_slice()
}

/// Whether the C library has all calls that slices need.
pub fn can_slice() -> bool {
    static ABLE: AtomicU8 = AtomicU8::new(0);
    if ABLE.load(Ordering::Relaxed) == 0 {
        // The newest of the calls that are made so (glibc 2.31).
        let able = !next::find("pthread_clockjoin_np\0").is_null();
        ABLE.store(1 + u8::from(able), Ordering::Relaxed);
    }
    ABLE.load(Ordering::Relaxed) == 2
}

/// When a slice of a wait ends that ends at `until` by this clock of the kernel's, or never. `None`: the wait is made in one.
pub fn slice(clock: c_int, until: Option<libc::timespec>) -> Option<libc::timespec> {
    if follows() || !waits_in_slices() {
        return None;
    }
    slice_of(clock, until, SLICE_NS)
}

/// The same of a slice of this length.
pub fn slice_of(clock: c_int, until: Option<libc::timespec>, ns: i64) -> Option<libc::timespec> {
    let end = raw::clock_ns(clock) + ns;
    if until.is_some_and(|until| until.tv_sec.saturating_mul(1_000_000_000).saturating_add(until.tv_nsec) <= end) {
        return None;
    }
    Some(libc::timespec { tv_sec: end / 1_000_000_000, tv_nsec: end % 1_000_000_000 })
}

/// Between two waits for other threads: handlers of signals that have come run. True: one ran that interrupts calls.
pub fn let_in() -> bool {
    let Some(mask) = mask_of_wait(std::ptr::null()).filter(|_| !follows()) else { return false };
    raw_mask(libc::SIG_SETMASK, Some(mask));
    apply();
    thread::in_program(|| deliver_unless(mask))
}

/// True: a handler ran that interrupts calls.
fn deliver_unless(blocked: u64) -> bool {
    if PENDING.load(Ordering::Relaxed) == 0 || follows() || thread::id() != 0 {
        return false;
    }
    let mut interrupts = false;
    let saved = errno::get();
    loop {
        let ready = PENDING.load(Ordering::Acquire) & !blocked;
        if ready == 0 {
            break;
        }
        let signal = ready.trailing_zeros() as c_int + 1;
        PENDING.fetch_and(!bit(signal), Ordering::AcqRel);
        // SAFETY: see Table; zeroed or written by `note`.
        let mut info = unsafe { (&*TABLE.info.get())[signal as usize].assume_init() };
        // SAFETY: plain data.
        let bytes = unsafe { crate::forms::slice((&raw const info).cast(), size_of::<siginfo_t>()) };
        append(Call::Signal, -1, i64::from(signal), &[bytes]);
        interrupts |= wanted(signal).flags & libc::SA_RESTART == 0;
        run(signal, &mut info);
    }
    errno::set(saved);
    interrupts
}

/// A signal in the trace.
pub fn replay(taken: Taken) {
    let (signal, data) = (taken.result() as c_int, taken.data());
    // SAFETY: all zeroes is a valid siginfo_t; no more is written than it holds.
    let mut info = unsafe {
        let mut info: siginfo_t = std::mem::zeroed();
        let n = data.len().min(size_of::<siginfo_t>());
        std::ptr::copy_nonoverlapping(data.as_ptr(), (&raw mut info).cast::<u8>(), n);
        info
    };
    if !(1..=64).contains(&signal) {
        taken.diverges_in(format_args!("knows no such signal"));
    }
    PENDING.fetch_and(!bit(signal), Ordering::AcqRel);
    taken.done();
    run(signal, &mut info);
}

fn run(signal: c_int, info: &mut siginfo_t) {
    let Wanted { handler, flags, mask } = *wanted(signal);
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        return;
    }
    if flags & libc::SA_RESETHAND != 0 {
        wanted(signal).handler = libc::SIG_DFL;
    }
    let before = MASK.fetch_or(mask | if flags & libc::SA_NODEFER == 0 { bit(signal) } else { 0 }, Ordering::AcqRel);
    // SAFETY: all zeroes is a valid context; the program's handler takes these arguments, or the first of them.
    unsafe {
        let mut context: libc::ucontext_t = std::mem::zeroed();
        let handler: extern "C-unwind" fn(c_int, *mut siginfo_t, *mut c_void) = std::mem::transmute(handler);
        handler(signal, info, (&raw mut context).cast());
    }
    MASK.store(before, Ordering::Release);
}

#[repr(C)]
struct KernelAction {
    handler: usize,
    flags: u64,
    #[cfg(target_arch = "x86_64")]
    restorer: usize,
    mask: u64,
}

#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(".hidden tcpr_hot_restore", ".globl tcpr_hot_restore", "tcpr_hot_restore:", "mov eax, 15", "syscall");

#[cfg(target_arch = "x86_64")]
extern "C" {
    fn tcpr_hot_restore();
}

/// Tells the kernel, past the C library, which would tell libtcpr's hooks.
fn act(signal: c_int, handler: usize, flags: c_int, mask: u64) -> i64 {
    #[cfg(target_arch = "x86_64")]
    let action = KernelAction {
        handler,
        flags: flags as u32 as u64 | 0x0400_0000,
        restorer: tcpr_hot_restore as *const () as usize,
        mask,
    };
    #[cfg(not(target_arch = "x86_64"))]
    let action = KernelAction { handler, flags: flags as u32 as u64, mask };
    raw!(SYS_rt_sigaction, signal, &raw const action, 0, 8)
}

/// The program gets its signals from the kernel again: in a child, or when nothing is recorded any more.
pub fn give_back() {
    let handled = HANDLED.swap(0, Ordering::AcqRel);
    for signal in (1..=64).filter(|&s| handled & bit(s) != 0) {
        let Wanted { handler, flags, mask } = *wanted(signal);
        act(signal, handler, flags, mask);
    }
    if handled != 0 {
        OWED.store(true, Ordering::Release);
        settle();
    }
    let pending = PENDING.swap(0, Ordering::AcqRel);
    for signal in (1..=64).filter(|&s| pending & bit(s) != 0) {
        raw!(SYS_kill, raw!(SYS_getpid), signal);
    }
}

/// The first thread has yet to get its mask back, which another thread cannot give it.
static OWED: AtomicBool = AtomicBool::new(false);

/// The first thread gets its mask back.
#[inline]
pub fn settle() {
    if OWED.load(Ordering::Relaxed) && thread::id() == 0 && OWED.swap(false, Ordering::AcqRel) {
        restore_mask();
    }
}

/// This thread gets the mask that the program's first thread has.
pub fn restore_mask() {
    raw_mask(libc::SIG_SETMASK, Some(MASK.load(Ordering::Relaxed)));
}

/// Makes a call that makes a process, with the mask of the program's: the process has the same.
pub fn with_the_programs_mask<T>(f: impl FnOnce() -> T) -> T {
    let before = raw_mask(libc::SIG_SETMASK, Some(MASK.load(Ordering::Relaxed)));
    let result = f();
    raw_mask(libc::SIG_SETMASK, Some(before));
    result
}

/// For new threads of the program: all signals go to the first one.
pub fn block_all() -> u64 {
    raw_mask(libc::SIG_SETMASK, Some(!FAULTS))
}

/// Ends [`block_all`].
pub fn unblock(mask: u64) {
    raw_mask(libc::SIG_SETMASK, Some(mask));
}

fn change(signal: c_int, handler: sighandler_t, flags: c_int, mask: u64) -> sighandler_t {
    if HANDLED.load(Ordering::Relaxed) & bit(signal) != 0 && thread::id() == 0 {
        // What has come is for the handler as it was.
        handle_here(4);
    }
    let before = wanted(signal).handler;
    *wanted(signal) = Wanted { handler, flags, mask };
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        if follows() {
            // What came to the follower itself is not the program's: it must not meet the default.
            act(signal, libc::SIG_IGN, 0, 0);
        }
        act(signal, handler, flags, mask);
        HANDLED.fetch_and(!bit(signal), Ordering::AcqRel);
        PENDING.fetch_and(!bit(signal), Ordering::AcqRel);
    } else {
        let kept = flags & (libc::SA_NOCLDSTOP | libc::SA_NOCLDWAIT);
        act(signal, note as *const () as usize, libc::SA_SIGINFO | kept, !0);
        HANDLED.fetch_or(bit(signal), Ordering::AcqRel);
    }
    if thread::id() == 0 {
        apply();
    }
    before
}

fn is_ours(signal: c_int) -> bool {
    (1..=64).contains(&signal) && FAULTS & bit(signal) == 0 && signal != libc::SIGKILL && signal != libc::SIGSTOP
}

fn simple(signal: c_int, handler: sighandler_t, flags: c_int) -> sighandler_t {
    change(signal, handler, flags, 0)
}

/// A change of the mask of the first thread.
fn change_mask(how: c_int, new: *const sigset_t, old: *mut sigset_t) {
    let before = MASK.load(Ordering::Relaxed);
    if !old.is_null() {
        // SAFETY: the program's, writable.
        unsafe { *old = set_of(before) };
    }
    if new.is_null() {
        return;
    }
    let asked = first_word(new);
    let mask = match how {
        libc::SIG_BLOCK => before | asked,
        libc::SIG_UNBLOCK => before & !asked,
        _ => asked,
    };
    MASK.store(mask, Ordering::Relaxed);
    apply();
    // Signals that are let through now are handled here.
    if before & !mask & HANDLED.load(Ordering::Relaxed) != 0 {
        handle_here(1);
    }
}

/// Handlers of signals that are not blocked run here, in both members.
fn handle_here(place: i32) {
    if follows() {
        if let Some(taken) = take(Call::SigWait, place) {
            taken.done();
            return;
        }
    }
    raw_mask(libc::SIG_SETMASK, Some(MASK.load(Ordering::Relaxed)));
    apply();
    deliver();
    append(Call::SigWait, place, 0, &[]);
}

fn suspend(mask: u64) -> i64 {
    if follows() {
        if let Some(taken) = take(Call::SigWait, 0) {
            taken.done();
            return -i64::from(libc::EINTR);
        }
    }
    let set = set_of(mask);
    // SAFETY: a live set.
    thread::outside(|| unsafe { next::sigsuspend(&raw const set) });
    deliver_unless(mask);
    append(Call::SigWait, 0, 0, &[]);
    -i64::from(libc::EINTR)
}

/// `sigwait` and the like: a signal that is taken without a handler.
///
/// # Safety
/// `info` is null or writable.
unsafe fn fetch(info: *mut siginfo_t, live: impl FnOnce(*mut siginfo_t) -> i64) -> i64 {
    // SAFETY: all zeroes is a valid siginfo_t.
    let mut own: siginfo_t = unsafe { std::mem::zeroed() };
    let own = &raw mut own;
    // SAFETY: live and of this type.
    let result = unsafe { crate::forms::structure(Call::SigWait, 2, own, || live(own)) };
    if result > 0 && !info.is_null() {
        // SAFETY: the caller's is writable; ours was filled.
        unsafe { *info = *own };
    }
    result
}

hooks! {
    fn sigaction(signal: c_int, new: *const SigAction, old: *mut SigAction) -> c_int {
        if !is_ours(signal) {
            return next(signal, new, old);
        }
        let before = *wanted(signal);
        if let Some(new) = new.as_ref() {
            change(signal, new.sa_sigaction, new.sa_flags, first_word(&raw const new.sa_mask));
        }
        if let Some(old) = old.as_mut() {
            *old = std::mem::zeroed();
            old.sa_sigaction = before.handler;
            old.sa_flags = before.flags;
            old.sa_mask = set_of(before.mask);
        }
        0
    }

    fn signal(signal: c_int, handler: sighandler_t) -> sighandler_t {
        if !is_ours(signal) { next(signal, handler) } else { simple(signal, handler, libc::SA_RESTART) }
    }

    fn bsd_signal(signal: c_int, handler: sighandler_t) -> sighandler_t {
        if !is_ours(signal) { next(signal, handler) } else { simple(signal, handler, libc::SA_RESTART) }
    }

    fn ssignal(signal: c_int, handler: sighandler_t) -> sighandler_t {
        if !is_ours(signal) { next(signal, handler) } else { simple(signal, handler, libc::SA_RESTART) }
    }

    fn sysv_signal(signal: c_int, handler: sighandler_t) -> sighandler_t {
        if !is_ours(signal) { next(signal, handler) } else { simple(signal, handler, libc::SA_RESETHAND | libc::SA_NODEFER) }
    }

    fn __sysv_signal(signal: c_int, handler: sighandler_t) -> sighandler_t {
        if !is_ours(signal) { next(signal, handler) } else { simple(signal, handler, libc::SA_RESETHAND | libc::SA_NODEFER) }
    }

    fn sigprocmask(how: c_int, new: *const sigset_t, old: *mut sigset_t) -> c_int {
        if thread::id() != 0 {
            return next(how, new, old);
        }
        change_mask(how, new, old);
        0
    }

    fn pthread_sigmask(how: c_int, new: *const sigset_t, old: *mut sigset_t) -> c_int {
        if thread::id() != 0 {
            return next(how, new, old);
        }
        change_mask(how, new, old);
        0
    }

    fn sigsuspend(mask: *const sigset_t) -> c_int {
        errno::c(suspend(first_word(mask))) as c_int
    }

    fn pause() -> c_int {
        errno::c(suspend(MASK.load(Ordering::Relaxed))) as c_int
    }

    fn sigwaitinfo(set: *const sigset_t, info: *mut siginfo_t) -> c_int {
        errno::c(fetch(info, |info| crate::forms::live!(next(set, info)))) as c_int
    }

    fn sigtimedwait(set: *const sigset_t, info: *mut siginfo_t, timeout: *const libc::timespec) -> c_int {
        errno::c(fetch(info, |info| crate::forms::live!(next(set, info, timeout)))) as c_int
    }

    fn sigwait(set: *const sigset_t, signal: *mut c_int) -> c_int {
        // Returns an error's number.
        let result = fetch(std::ptr::null_mut(), |_| {
            let mut got = 0;
            let error = thread::outside(|| next(set, &raw mut got));
            if error == 0 { i64::from(got) } else { -i64::from(error) }
        });
        if result < 0 {
            return -result as c_int;
        }
        *signal = result as c_int;
        0
    }

    fn raise(signal: c_int) -> c_int {
        if !is_ours(signal) {
            return next(signal);
        }
        let result = errno::c(told(Call::Misc, libc::SYS_tgkill as i32, || crate::forms::live!(next(signal)))) as c_int;
        if HANDLED.load(Ordering::Relaxed) & bit(signal) != 0 && thread::id() == 0 {
            handle_here(3);
        }
        result
    }
}
