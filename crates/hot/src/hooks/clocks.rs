//! Clocks and sleep.

use std::ffi::{c_int, c_long, c_uint};

use libc::{clockid_t, rusage, timespec, timeval};
use tcpr_session::trace::{clock, Call};

use super::exported::{hooks, with_caller};
use crate::activity::follows;
use crate::clocks::{self, ns, shift_of, spec, to_kernel};
use crate::engine::{append, take};
use crate::forms::{live, structure};
use crate::handlers::{mask_of_wait, set_of};
use crate::snapshot::{self, park};
use crate::{errno, next, raw, signals, thread};

/// A clock's number in the trace. The kernel's numbers of the processor time of threads and processes have their ids in them
/// (`CPUCLOCK_WHICH` and `CPUCLOCK_PERTHREAD_MASK` of the kernel are the rest), which differ between the members.
fn traced(clock: i32) -> i32 {
    const WHICH: i32 = 7;
    const OF_DESCRIPTOR: i32 = 3;
    if clock < 0 && clock & WHICH != OF_DESCRIPTOR {
        !WHICH | clock & WHICH
    } else {
        clock
    }
}

/// A clock that gives one number. `None`: it failed, and the result is the error's.
fn number(clock: i32, live: impl FnOnce() -> i64) -> i64 {
    let clock = traced(clock);
    if follows() {
        if let Some(taken) = take(Call::Clock, clock) {
            let result = taken.result();
            clocks::told(clock, result);
            taken.done();
            return result;
        }
    }
    let mut result = live();
    if !(-4095..0).contains(&result) {
        result += shift_of(clock);
    }
    append(Call::Clock, clock, result, &[]);
    result
}

/// A sleep of the program's. The result is as `nanosleep` has it, and `left` what was left.
fn doze(time: timespec, left: &mut timespec) -> i64 {
    let left: *mut timespec = left;
    // SAFETY: live.
    unsafe {
        interrupted(left, || match mask_of_wait(std::ptr::null()) {
            None => live!(next::nanosleep(&raw const time, left)),
            Some(mask) => {
                let (set, begun) = (set_of(mask), raw::clock_ns(libc::CLOCK_MONOTONIC));
                let result = live!(next::ppoll(std::ptr::null_mut(), 0, &raw const time, &raw const set));
                *left = spec((ns(time) - (raw::clock_ns(libc::CLOCK_MONOTONIC) - begun)).max(0));
                result
            }
        })
    }
}

/// # Safety
/// `left` is live.
unsafe fn interrupted(left: *mut timespec, live: impl Fn() -> i64) -> i64 {
    let result = loop {
        snapshot::at_wait();
        if !follows() {
            if let Some(result) = park::wait(park::For::Kernel, &live) {
                break result;
            }
        }
        if let Some(taken) = take(Call::Sleep, 0) {
            let result = taken.result();
            if let Ok(bytes) = <&[u8; size_of::<timespec>()]>::try_from(taken.data()) {
                // SAFETY: live and of this length.
                unsafe { left.cast::<[u8; size_of::<timespec>()]>().write_unaligned(*bytes) };
            }
            taken.done();
            return result;
        }
    };
    signals::deliver();
    // SAFETY: live.
    let bytes = unsafe { crate::forms::slice(left.cast(), size_of::<timespec>()) };
    append(Call::Sleep, 0, result, if result < 0 { std::slice::from_ref(&bytes) } else { &[] });
    result
}

with_caller! {
    "rdx" "x2" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int; by clock_told {
        let result = number(clock, || {
            let result = live!(next(clock, time));
            if result < 0 { result } else { ns(*time) }
        });
        if (-4095..0).contains(&result) {
            return errno::c(result) as c_int;
        }
        *time = spec(result);
        0
    }
}

hooks! {
    fn gettimeofday(time: *mut timeval, zone: *mut libc::timezone) -> c_int {
        let result = number(clock::GETTIMEOFDAY, || {
            let mut own = timeval { tv_sec: 0, tv_usec: 0 };
            thread::outside(|| next(&raw mut own, zone));
            own.tv_sec * 1_000_000_000 + own.tv_usec * 1000
        });
        if let Some(time) = time.as_mut() {
            *time = timeval { tv_sec: result / 1_000_000_000, tv_usec: result % 1_000_000_000 / 1000 };
        }
        0
    }

    fn time(to: *mut libc::time_t) -> libc::time_t {
        let result = number(clock::TIME, || thread::outside(|| next(std::ptr::null_mut())) * 1_000_000_000) / 1_000_000_000;
        if let Some(to) = to.as_mut() {
            *to = result;
        }
        result
    }

    fn timespec_get(time: *mut timespec, base: c_int) -> c_int {
        if clock_gettime(libc::CLOCK_REALTIME, time) == 0 { base } else { 0 }
    }

    fn clock() -> c_long {
        number(clock::CPU, || thread::outside(|| next()))
    }

    fn times(to: *mut libc::tms) -> c_long {
        let mut own: libc::tms = std::mem::zeroed();
        let own = &raw mut own;
        let result = structure(Call::Clock, clock::TIMES, own, || {
            thread::outside(|| next(own)) + shift_of(clock::TIMES)
        });
        clocks::told(clock::TIMES, result);
        if let Some(to) = to.as_mut() {
            *to = *own;
        }
        result
    }

    fn getrusage(who: c_int, to: *mut rusage) -> c_int {
        errno::c(structure(Call::Misc, libc::SYS_getrusage as i32, to, || live!(next(who, to)))) as c_int
    }

    fn nanosleep(time: *const timespec, left: *mut timespec) -> c_int {
        let mut rest = timespec { tv_sec: 0, tv_nsec: 0 };
        let result = doze(*time, &mut rest);
        if result < 0 && !left.is_null() {
            *left = rest;
        }
        errno::c(result) as c_int
    }

    fn clock_nanosleep(clock: clockid_t, flags: c_int, time: *const timespec, left: *mut timespec) -> c_int {
        let mut rest = timespec { tv_sec: 0, tv_nsec: 0 };
        let length = if flags & libc::TIMER_ABSTIME == 0 {
            *time
        } else {
            // The program's own clock is asked only by whoever sleeps in fact.
            spec((ns(to_kernel(clock, *time)) - raw::clock_ns(clock)).max(0))
        };
        let result = doze(length, &mut rest);
        if result < 0 && flags & libc::TIMER_ABSTIME == 0 && !left.is_null() {
            *left = rest;
        }
        -result as c_int
    }

    fn usleep(microseconds: c_uint) -> c_int {
        let mut rest = timespec { tv_sec: 0, tv_nsec: 0 };
        errno::c(doze(spec(i64::from(microseconds) * 1000), &mut rest)) as c_int
    }

    fn sleep(seconds: c_uint) -> c_uint {
        let mut rest = timespec { tv_sec: 0, tv_nsec: 0 };
        if doze(spec(i64::from(seconds) * 1_000_000_000), &mut rest) < 0 { rest.tv_sec as c_uint + u32::from(rest.tv_nsec >= 500_000_000) } else { 0 }
    }

    fn thrd_sleep(time: *const timespec, left: *mut timespec) -> c_int {
        // -1: a signal came; less: another error.
        match nanosleep(time, left) {
            0 => 0,
            _ if errno::get() == libc::EINTR => -1,
            _ => -2,
        }
    }
}
