//! What the program wants of its signals, and what the kernel is told instead.
//!
//! The kernel sees a handler of ours, which notes the signal, and has the signal blocked except while the program waits. Only
//! the first thread gets signals. Signals that tell a fault of the thread itself go to the program's handler at once.

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use libc::{sighandler_t, siginfo_t, sigset_t};

use crate::raw::raw;
use crate::thread;

/// What the program has asked for.
#[derive(Clone, Copy)]
pub struct Wanted {
    pub handler: sighandler_t,
    pub flags: c_int,
    pub mask: u64,
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

/// What it wants of a signal.
pub fn wanted(signal: c_int) -> &'static mut Wanted {
    // SAFETY: see Table; the number was checked.
    unsafe { &mut (&mut *TABLE.wanted.get())[signal.clamp(0, 64) as usize] }
}

fn raw_mask(how: c_int, set: Option<u64>) -> u64 {
    let mut old = 0u64;
    let set = set.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    raw!(SYS_rt_sigprocmask, how, set, &raw mut old, 8);
    old
}

/// The part of a set that counts.
pub fn first_word(set: *const sigset_t) -> u64 {
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

/// A wait that finds something at once lets no signal in: a program that is always busy would never get any.
pub fn fetch_overdue(blocked: u64) {
    static WAITS: AtomicU64 = AtomicU64::new(0);
    let handled = HANDLED.load(Ordering::Relaxed);
    if handled == 0 || thread::id() != 0 || !WAITS.fetch_add(1, Ordering::Relaxed).is_multiple_of(16) {
        return;
    }
    let mut waiting = 0u64;
    raw!(SYS_rt_sigpending, &raw mut waiting, 8);
    if waiting & handled & !blocked != 0 {
        let_through(blocked);
    }
}

/// Runs the program's handler.
pub fn run(signal: c_int, info: &mut siginfo_t) {
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

/// Whether the program has a handler of this signal.
pub fn is_handled(signal: c_int) -> bool {
    HANDLED.load(Ordering::Relaxed) & bit(signal) != 0
}

/// What the program blocks in the first thread.
pub fn mask() -> u64 {
    MASK.load(Ordering::Relaxed)
}

/// The program blocks these in the first thread. Returns whether signals with handlers are let through that were not before.
pub fn set_mask(mask: u64) -> bool {
    let before = MASK.swap(mask, Ordering::Relaxed);
    apply();
    before & !mask & HANDLED.load(Ordering::Relaxed) != 0
}

/// The kernel delivers to the first thread what has come and is not blocked by this mask.
pub fn let_through(mask: u64) {
    raw_mask(libc::SIG_SETMASK, Some(mask));
    apply();
}

/// Whether a signal has come.
pub fn any_came() -> bool {
    PENDING.load(Ordering::Relaxed) != 0
}

/// One that has come and is not blocked: it counts as handled.
pub fn take_one(blocked: u64) -> Option<(c_int, siginfo_t)> {
    let ready = PENDING.load(Ordering::Acquire) & !blocked;
    if ready == 0 {
        return None;
    }
    let signal = ready.trailing_zeros() as c_int + 1;
    forget(signal);
    // SAFETY: see Table; zeroed or written by `note`.
    Some((signal, unsafe { (&*TABLE.info.get())[signal as usize].assume_init() }))
}

/// It has not come.
pub fn forget(signal: c_int) {
    PENDING.fetch_and(!bit(signal), Ordering::AcqRel);
}

/// The program wants this of a signal from now on. `ours`: what comes to this process itself is none of the program's.
pub fn set(signal: c_int, wants: Wanted, ours: bool) {
    *wanted(signal) = wants;
    let Wanted { handler, flags, mask } = wants;
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        if ours {
            // It must not meet the default.
            act(signal, libc::SIG_IGN, 0, 0);
        }
        act(signal, handler, flags, mask);
        HANDLED.fetch_and(!bit(signal), Ordering::AcqRel);
        forget(signal);
    } else {
        let kept = flags & (libc::SA_NOCLDSTOP | libc::SA_NOCLDWAIT);
        act(signal, note as *const () as usize, libc::SA_SIGINFO | kept, !0);
        HANDLED.fetch_or(bit(signal), Ordering::AcqRel);
    }
    if thread::id() == 0 {
        apply();
    }
}

/// Whether it is a signal whose handlers run at waits.
pub fn is_ours(signal: c_int) -> bool {
    (1..=64).contains(&signal) && FAULTS & bit(signal) == 0 && signal != libc::SIGKILL && signal != libc::SIGSTOP
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
