//! Signals: a handler of the program runs at waits and at changes of the signal mask, where both members agree on the place.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU8, Ordering};

use libc::{siginfo_t, sigset_t};
use tcpr_session::trace::Call;

use crate::activity::follows;
use crate::engine::append;
use crate::handlers::{any_came, fetch_overdue, first_word, let_through, mask, mask_of_wait, run, set_of, take_one, wanted};
use crate::raw::{self, raw};
use crate::{descriptors, errno, next, thread};

/// Runs the handlers of signals that came, if they are not blocked.
pub fn deliver() {
    deliver_unless(mask());
}

/// The same at the end of a wait with a mask of its own.
pub fn deliver_in(asked: *const sigset_t) {
    let blocked = if asked.is_null() { mask() } else { first_word(asked) };
    fetch_overdue(blocked);
    deliver_unless(blocked);
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
    let_through(mask);
    thread::in_program(|| deliver_unless(mask))
}

/// True: a handler ran that interrupts calls.
pub fn deliver_unless(blocked: u64) -> bool {
    if !any_came() || follows() || thread::id() != 0 {
        return false;
    }
    let mut interrupts = false;
    let saved = errno::get();
    while let Some((signal, mut info)) = take_one(blocked) {
        // SAFETY: plain data.
        let bytes = unsafe { crate::forms::slice((&raw const info).cast(), size_of::<siginfo_t>()) };
        append(Call::Signal, -1, i64::from(signal), &[bytes]);
        interrupts |= wanted(signal).flags & libc::SA_RESTART == 0;
        run(signal, &mut info);
    }
    errno::set(saved);
    interrupts
}
