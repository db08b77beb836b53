//! The program's clocks, which go on where they were on the other machine.

use std::sync::atomic::{AtomicI64, Ordering};

use libc::timespec;
use tcpr_session::trace::clock;

use crate::activity::follows;
use crate::raw;

const NONE: i64 = i64::MIN;
/// What each clock said last, by the trace.
static LAST: [AtomicI64; clock::COUNT as usize] = [const { AtomicI64::new(NONE) }; clock::COUNT as usize];
/// What is added to this machine's clock, after a promotion.
static SHIFT: [AtomicI64; clock::COUNT as usize] = [const { AtomicI64::new(0) }; clock::COUNT as usize];

/// Clocks that count from the start of a machine or of a process.
const OWN: [i32; 6] = [
    libc::CLOCK_MONOTONIC,
    libc::CLOCK_PROCESS_CPUTIME_ID,
    libc::CLOCK_THREAD_CPUTIME_ID,
    libc::CLOCK_MONOTONIC_RAW,
    libc::CLOCK_MONOTONIC_COARSE,
    libc::CLOCK_BOOTTIME,
];

/// Where what is known of a clock is kept.
fn place(clock: i32) -> Option<usize> {
    usize::try_from(clock).ok().filter(|&place| place < LAST.len())
}

/// What is added to what this machine's clock says.
pub fn shift_of(clock: i32) -> i64 {
    place(clock).map_or(0, |place| SHIFT[place].load(Ordering::Relaxed))
}

/// The trace says so of a clock.
pub fn told(clock: i32, now: i64) {
    if let Some(place) = place(clock) {
        LAST[place].store(now, Ordering::Relaxed);
    }
}

/// The program's clocks go on where they were on the other machine.
pub fn shift() {
    let mut monotonic = 0;
    for clock in OWN {
        let place = clock as usize;
        let last = LAST[place].load(Ordering::Relaxed);
        let is_cpu = clock == libc::CLOCK_PROCESS_CPUTIME_ID || clock == libc::CLOCK_THREAD_CPUTIME_ID;
        if last != NONE {
            SHIFT[place].store(last - raw::clock_ns(clock), Ordering::Relaxed);
        } else if !is_cpu {
            SHIFT[place].store(monotonic, Ordering::Relaxed);
        }
        if clock == libc::CLOCK_MONOTONIC {
            monotonic = shift_of(clock);
        }
    }
    for (clock, now) in [(clock::CPU, raw::clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID) / 1000), (clock::TIMES, ticks())] {
        let last = LAST[clock as usize].load(Ordering::Relaxed);
        if last != NONE {
            SHIFT[clock as usize].store(last - now, Ordering::Relaxed);
        }
    }
}

/// What the program's clocks would say now is what they said last, for whoever goes on from here.
pub fn note() {
    let note = |clock: i32, now: i64| LAST[clock as usize].store(now + shift_of(clock), Ordering::Relaxed);
    for clock in OWN {
        note(clock, raw::clock_ns(clock));
    }
    note(clock::CPU, raw::clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID) / 1000);
    note(clock::TIMES, ticks());
}

fn ticks() -> i64 {
    raw::raw!(SYS_times, 0)
}

/// A time of the program's clock, as this machine's clock says it. While the member follows, by what the clock said last.
pub fn to_kernel(clock: i32, time: timespec) -> timespec {
    let shift = match place(clock).filter(|_| OWN.contains(&clock)) {
        Some(place) if follows() => match LAST[place].load(Ordering::Relaxed) {
            NONE => 0,
            last => last - raw::clock_ns(clock),
        },
        Some(place) => SHIFT[place].load(Ordering::Relaxed),
        None => 0,
    };
    if shift == 0 {
        time
    } else {
        spec((ns(time) - shift).max(1))
    }
}

/// In nanoseconds.
pub fn ns(time: timespec) -> i64 {
    time.tv_sec.wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec)
}

/// Of nanoseconds.
pub fn spec(ns: i64) -> timespec {
    timespec { tv_sec: ns.div_euclid(1_000_000_000), tv_nsec: ns.rem_euclid(1_000_000_000) }
}
