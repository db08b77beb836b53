//! Handlers and masks of signals.

use std::ffi::c_int;

use libc::{sigaction as SigAction, sighandler_t, siginfo_t, sigset_t};
use tcpr_session::trace::Call;

use super::exported::hooks;
use crate::activity::follows;
use crate::engine::{append, take};
use crate::forms::{live, structure, told};
use crate::handlers::{self, first_word, is_handled, is_ours, let_through, mask, set_of, wanted, Wanted};
use crate::signals::{deliver, deliver_unless};
use crate::{errno, next, thread};

fn change(signal: c_int, wants: Wanted) -> sighandler_t {
    if is_handled(signal) && thread::id() == 0 {
        // What has come is for the handler as it was.
        handle_here(4);
    }
    let before = wanted(signal).handler;
    // What came to the follower itself is not the program's.
    handlers::set(signal, wants, follows());
    before
}

fn simple(signal: c_int, handler: sighandler_t, flags: c_int) -> sighandler_t {
    change(signal, Wanted { handler, flags, mask: 0 })
}

/// A change of the mask of the first thread.
fn change_mask(how: c_int, new: *const sigset_t, old: *mut sigset_t) {
    let before = mask();
    if !old.is_null() {
        // SAFETY: the program's, writable.
        unsafe { *old = set_of(before) };
    }
    if new.is_null() {
        return;
    }
    let asked = first_word(new);
    let lets_through = handlers::set_mask(match how {
        libc::SIG_BLOCK => before | asked,
        libc::SIG_UNBLOCK => before & !asked,
        _ => asked,
    });
    // Those are handled here.
    if lets_through {
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
    let_through(mask());
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
    let result = unsafe { structure(Call::SigWait, 2, own, || live(own)) };
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
            let (handler, flags) = (new.sa_sigaction, new.sa_flags);
            change(signal, Wanted { handler, flags, mask: first_word(&raw const new.sa_mask) });
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
        errno::c(suspend(mask())) as c_int
    }

    fn sigwaitinfo(set: *const sigset_t, info: *mut siginfo_t) -> c_int {
        errno::c(fetch(info, |info| live!(next(set, info)))) as c_int
    }

    fn sigtimedwait(set: *const sigset_t, info: *mut siginfo_t, timeout: *const libc::timespec) -> c_int {
        errno::c(fetch(info, |info| live!(next(set, info, timeout)))) as c_int
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
        let result = errno::c(told(Call::Misc, libc::SYS_tgkill as i32, || live!(next(signal)))) as c_int;
        if is_handled(signal) && thread::id() == 0 {
            handle_here(3);
        }
        result
    }
}
