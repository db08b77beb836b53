//! Signal handlers of the application.
//!
//! A handler may leave by siglongjmp, and may write to a connection. If it interrupted our bookkeeping, the first would leave a
//! lock held for ever, and the second would contradict what is being announced. So such a handler runs a moment later, when the
//! bookkeeping is over: the kernel calls a function of ours, which sends the signal to the thread again, with all signals
//! blocked until then. Where no signal comes this costs nothing.
//!
//! The kernel gets the application's own handlers back before the application locks itself in (seccomp). Handlers that are
//! installed by a system call by number are not seen.

use std::cell::Cell;
use std::ffi::c_void;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::Mutex;

use libc::{c_int, sigaction as SigAction, sighandler_t, siginfo_t, ucontext_t};
use tcpr_node::channel::client::Bypass;

use crate::locks::lock;
use crate::manager;
use crate::{errno, real, sys, turn};

/// Signals are numbered from 1.
const SIGNALS: usize = 65;

/// What the application has installed for a signal.
struct Handler {
    address: AtomicUsize,
    /// Those flags of the application that the kernel does not have as they were set.
    flags: AtomicI32,
}

/// The flags that the kernel has otherwise than the application set them.
const OURS: c_int = libc::SA_SIGINFO | libc::SA_RESETHAND;

static HANDLERS: [Handler; SIGNALS] = [const { Handler { address: AtomicUsize::new(0), flags: AtomicI32::new(0) } }; SIGNALS];
static WATCHED: AtomicBool = AtomicBool::new(false);
static CHANGING: Mutex<()> = Mutex::new(());

thread_local! {
    /// A handler waits. The mask of signals that were blocked when it was to run.
    static BLOCKED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on handlers do not interrupt our bookkeeping. Called when the process joins.
pub fn watch_handlers() {
    if !WATCHED.swap(true, Ordering::AcqRel) {
        all().for_each(watch);
    }
}

/// Gives the kernel the application's own handlers again.
pub fn leave_handlers() {
    if WATCHED.swap(false, Ordering::AcqRel) {
        let _changing = lock(&CHANGING);
        for signal in all() {
            let Some(mut action) = installed(signal).filter(is_ours) else { continue };
            restore(signal, &mut action);
            install(signal, &action);
        }
    }
}

/// Signals that can have handlers. The C library keeps two for itself.
fn all() -> impl Iterator<Item = c_int> {
    (1..SIGNALS as c_int).filter(|s| !matches!(*s, libc::SIGKILL | libc::SIGSTOP | 32 | 33))
}

fn installed(signal: c_int) -> Option<SigAction> {
    // SAFETY: all-zero is a valid sigaction.
    let mut action: SigAction = unsafe { mem::zeroed() };
    // SAFETY: only asks; action is live and writable.
    (unsafe { real::sigaction(signal, ptr::null(), &mut action) } == 0).then_some(action)
}

fn install(signal: c_int, action: &SigAction) {
    // SAFETY: a function of this library, which is never unloaded, or the application's own.
    unsafe { real::sigaction(signal, action, ptr::null_mut()) };
}

fn is_ours(action: &SigAction) -> bool {
    action.sa_sigaction == interrupted as *const c_void as sighandler_t
}

/// Makes the action that the application installed of the one that the kernel has.
fn restore(signal: c_int, action: &mut SigAction) {
    let handler = &HANDLERS[signal as usize];
    action.sa_sigaction = handler.address.load(Ordering::Acquire);
    action.sa_flags = action.sa_flags & !OURS | handler.flags.load(Ordering::Acquire);
}

/// Puts our function in front of a handler that was installed.
fn watch(signal: c_int) {
    let _changing = lock(&CHANGING);
    let Some(mut action) = installed(signal) else { return };
    if matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN) || is_ours(&action) {
        return;
    }
    let handler = &HANDLERS[signal as usize];
    handler.address.store(action.sa_sigaction, Ordering::Release);
    handler.flags.store(action.sa_flags & OURS, Ordering::Release);
    action.sa_sigaction = interrupted as *const c_void as sighandler_t;
    // SA_RESETHAND: the kernel would remove our function at the first signal, but the signal may come twice.
    action.sa_flags = action.sa_flags & !libc::SA_RESETHAND | libc::SA_SIGINFO;
    install(signal, &action);
}

/// Whether the calls below have anything to do.
fn concerns(signal: c_int) -> bool {
    (1..SIGNALS as c_int).contains(&signal) && WATCHED.load(Ordering::Acquire)
}

/// What the kernel calls.
extern "C-unwind" fn interrupted(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's arguments.
    if Bypass::active() && unsafe { !is_fault(signal, info) && wait(signal, info, context.cast()) } {
        return;
    }
    let handler = &HANDLERS[signal as usize];
    let address = handler.address.load(Ordering::Acquire);
    if handler.flags.load(Ordering::Acquire) & libc::SA_RESETHAND != 0 {
        let saved = errno::get();
        if let Some(mut action) = installed(signal).filter(is_ours) {
            restore(signal, &mut action);
            action.sa_sigaction = libc::SIG_DFL;
            install(signal, &action);
        }
        errno::set(saved);
    }
    // SAFETY: the application installed it as a handler; one of a single argument does not look at the others.
    let run = unsafe { mem::transmute::<usize, unsafe extern "C-unwind" fn(c_int, *mut siginfo_t, *mut c_void)>(address) };
    let amid_a_turn = turn::is_dirty();
    // SAFETY: the kernel's arguments.
    unsafe { run(signal, info, context) };
    if !amid_a_turn {
        // What the handler has done is a turn of its own, and the thread may go on waiting without a call that we see.
        turn::before_wait(|| false);
    }
}

/// Whether the thread itself caused the signal, and cannot go on before it is handled.
///
/// # Safety
/// `info` is the kernel's.
unsafe fn is_fault(signal: c_int, info: *const siginfo_t) -> bool {
    // SAFETY: as above.
    FAULTS.contains(&signal) && unsafe { (*info).si_code } > 0
}

const FAULTS: [c_int; 6] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS];

/// Has the signal come again when our bookkeeping is over. False: it cannot.
///
/// # Safety
/// The kernel's arguments.
unsafe fn wait(signal: c_int, info: *mut siginfo_t, context: *mut ucontext_t) -> bool {
    if BLOCKED.with(Cell::get).is_some() {
        return false;
    }
    let saved = errno::get();
    let all_others = FAULTS.iter().fold(u64::MAX, |set, fault| set & !(1 << (fault - 1)));
    // Else the signal would come again at once, if its handler may be interrupted by itself.
    sys::set_signal_mask(all_others | 1 << (signal - 1));
    // SAFETY: the kernel's own description of the signal.
    let waits = unsafe { sys::send_again(signal, info) };
    if waits {
        // SAFETY: the kernel's frame, of whose mask it uses the first 64 signals.
        let mask = unsafe { (&raw mut (*context).uc_sigmask).cast::<u64>() };
        // SAFETY: as above.
        BLOCKED.with(|blocked| blocked.set(Some(unsafe { mask.read() })));
        // SAFETY: as above.
        unsafe { mask.write(all_others | 1 << (signal - 1)) };
        Bypass::afterwards(go_on);
    }
    errno::set(saved);
    waits
}

/// The bookkeeping is over: the signal may come.
fn go_on() {
    if let Some(mask) = BLOCKED.with(Cell::take) {
        sys::set_signal_mask(mask);
    }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn sigaction(signal: c_int, new: *const SigAction, old: *mut SigAction) -> c_int {
    if !concerns(signal) {
        // SAFETY: the caller's arguments.
        return unsafe { real::sigaction(signal, new, old) };
    }
    // SAFETY: all-zero is a valid sigaction.
    let mut before: SigAction = unsafe { mem::zeroed() };
    let handler = &HANDLERS[signal as usize];
    (before.sa_sigaction, before.sa_flags) = (handler.address.load(Ordering::Acquire), handler.flags.load(Ordering::Acquire));
    // SAFETY: the caller's arguments.
    let result = unsafe { real::sigaction(signal, new, old) };
    if result == 0 {
        // SAFETY: null, or what the C library has filled.
        if let Some(old) = unsafe { old.as_mut() }.filter(|old| is_ours(old)) {
            old.sa_sigaction = before.sa_sigaction;
            old.sa_flags = old.sa_flags & !OURS | before.sa_flags;
        }
        if !new.is_null() && manager::is_ours() {
            watch(signal);
        }
    }
    result
}

macro_rules! as_signal {
    ($($name:ident)*) => {
        $(
            /// As in the C library.
            ///
            /// # Safety
            /// As in the C library.
            pub unsafe fn $name(signal: c_int, handler: sighandler_t) -> sighandler_t {
                // SAFETY: the caller's arguments.
                let set = || unsafe { real::$name(signal, handler) };
                if concerns(signal) { replaced(signal, set) } else { set() }
            }
        )*
    };
}

as_signal!(signal bsd_signal ssignal sysv_signal __sysv_signal sigset);

fn replaced(signal: c_int, set: impl FnOnce() -> sighandler_t) -> sighandler_t {
    let before = HANDLERS[signal as usize].address.load(Ordering::Acquire);
    let old = set();
    if old != libc::SIG_ERR && manager::is_ours() {
        let saved = errno::get();
        watch(signal);
        errno::set(saved);
    }
    if old == interrupted as *const c_void as sighandler_t {
        before
    } else {
        old
    }
}
