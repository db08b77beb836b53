//! A snapshot: the program as it is at a wait, from which a fresh process of the same program goes on.
//!
//! A copy of the process, which shares its memory until either side writes, tells what the process is: its memory, the registers
//! of its threads, its descriptors. The program itself is stopped for as long as the kernel takes to make the copy. A fresh process
//! reads that before its own program begins, on a stack of its own, and goes on behind the trace's position at that wait.
//!
//! What belongs to this member stays as it is: the trace, the memory of libtcpr and its descriptors.
//!
//! From the top down:
//!
//! - this file: in the leader
//! - `listing`: the leader's descriptors. `copy`: in the copy
//! - `fresh`: in the fresh process. `remake`: its descriptors
//! - `park`: threads that wait, and threads made again
//! - `format`: what goes from the one to the other; `mappings`,
//!   `process`: what the kernel tells of a process
//! - `state`: what both have in common. `switch`: saved registers

mod copy;
mod format;
mod fresh;
mod listing;
mod mappings;
pub mod park;
mod process;
mod remake;
mod state;
mod switch;

use std::sync::atomic::Ordering;

use tcpr_session::trace::memory::snapshot as told;

use crate::memory::{self, header};
use crate::raw::{self, raw};
use crate::{activity, clocks, engine, handlers, next, partner, thread};

pub use fresh::become_snapshot;
pub use state::note_surroundings;

use format::Scratch;
use state::{swap, FAULTS, ROBUST, TIMERS, TRIED, TRIES, WRITER};

/// So often a snapshot is tried where something is under way that cannot be kept.
const MOST_TRIES: u32 = 32;
/// Between two tries; doubled with each, up to 64 times.
const PAUSE_NS: i64 = 5_000_000;
/// Tries that lie further apart do not belong together.
const APART_NS: i64 = 3_000_000_000;
/// A program that waits for longer is asked so often.
pub const LOOK_NS: i64 = 1_000_000_000;

/// At a wait of the program's, before it waits: here a snapshot is taken, if one is asked for, and here a fresh process goes on.
#[inline]
pub fn at_wait() {
    if is_concerned() && thread::id() == 0 {
        look();
    }
}

fn is_concerned() -> bool {
    activity::is_on() && (header().snapshot.load(Ordering::Relaxed) != told::NONE || WRITER.load(Ordering::Relaxed) != 0)
}

#[cold]
fn look() {
    let writer = WRITER.load(Ordering::Relaxed);
    if writer != 0 {
        let ended = raw!(SYS_wait4, writer, 0, libc::WNOHANG | libc::__WALL) != 0;
        if !ended {
            return;
        }
        WRITER.store(0, Ordering::Relaxed);
        if swap(told::WRITING, told::REFUSED) {
            memory::set_reason(b"the copy of the program that writes the snapshot has ended early");
        }
    }
    if header().snapshot.load(Ordering::Acquire) == told::ASKED && activity::records() {
        take_if_due();
    }
}

/// No snapshot can be made of this program.
fn cannot(why: std::fmt::Arguments<'_>) {
    memory::say_why(why);
    header().snapshot.store(told::REFUSED, Ordering::Release);
}

fn take_if_due() {
    let (now, tried) = (raw::clock_ns(libc::CLOCK_MONOTONIC), TRIED.load(Ordering::Relaxed));
    if now - tried > APART_NS {
        TRIES.store(0, Ordering::Relaxed);
    }
    let tries = TRIES.load(Ordering::Relaxed);
    if tries > 0 && now - tried < PAUSE_NS << tries.min(6) {
        return;
    }
    if tries >= MOST_TRIES {
        // Why is what the last one said.
        header().snapshot.store(told::REFUSED, Ordering::Release);
        return;
    }
    if partner::is_locked_in() {
        // The kernel might end it for what a snapshot calls.
        return cannot(format_args!("it has locked itself in (seccomp)"));
    }
    TRIES.store(tries + 1, Ordering::Relaxed);
    TRIED.store(now, Ordering::Relaxed);
    if !switch::IS_KNOWN {
        return cannot(format_args!("no snapshots are made on this processor"));
    }
    if park::all_wait().is_some() {
        take();
    }
}

fn take() {
    let (mut robust, mut length) = (0u64, 0u64);
    raw!(SYS_get_robust_list, 0, &raw mut robust, &raw mut length);
    ROBUST.store(robust, Ordering::Relaxed);
    for (which, timer) in TIMERS.iter().enumerate() {
        let mut now = [0i64; 4];
        raw!(SYS_getitimer, which, now.as_mut_ptr());
        timer.iter().zip(now).for_each(|(to, n)| to.store(n, Ordering::Relaxed));
    }
    // SAFETY: see Faults.
    let faults = unsafe { &mut *FAULTS.0.get() };
    for (signal, action) in faults.iter_mut().enumerate().filter(|(signal, _)| handlers::is_fault(*signal as i32)) {
        // SAFETY: all zeroes is an action; it is live.
        *action = unsafe {
            let mut now: libc::sigaction = std::mem::zeroed();
            let got = thread::outside(|| next::sigaction(signal as i32, std::ptr::null(), &raw mut now));
            (got == 0).then_some(now)
        };
    }
    clocks::note();
    partner::prepare_for_copy();
    let begun = raw::clock_ns(libc::CLOCK_MONOTONIC);
    let Some(s) = Scratch::map() else { return cannot(format_args!("there is no memory for a snapshot")) };
    let frozen = engine::alone(|| {
        match listing::list(s) {
            Ok(count) => s.head.descriptors = count as u64,
            Err(listing::Failed::Now) => return 0,
            Err(listing::Failed::Ever) => {
                header().snapshot.store(told::REFUSED, Ordering::Release);
                return 0;
            }
        }
        let header = header();
        header.snapshot_position.store(header.head.load(Ordering::Relaxed), Ordering::Relaxed);
        header.snapshot_written.store(0, Ordering::Relaxed);
        header.snapshot_read.store(0, Ordering::Relaxed);
        // The manager may have changed its mind.
        if !swap(told::ASKED, told::WRITING) {
            return 0;
        }
        // SAFETY: `make_copy` takes these arguments. It returns once in each process.
        unsafe { switch::tcpr_hot_freeze(make_copy, 0) }
    });
    if frozen != 0 {
        fresh::thaw();
        return;
    }
    Scratch::unmap();
    header().snapshot_pause.store((raw::clock_ns(libc::CLOCK_MONOTONIC) - begun) as u64, Ordering::Relaxed);
}

extern "C-unwind" fn make_copy(_: i64, stack: u64) -> i64 {
    // No signal tells of its end. The copy takes leave of the descriptors before it makes any.
    let copy = raw!(SYS_clone, libc::CLONE_FILES, 0, 0, 0, 0);
    if copy == 0 {
        copy::write(stack);
    }
    if copy < 0 {
        cannot(format_args!("the process cannot be copied: error {}", -copy));
        return 0;
    }
    WRITER.store(copy as i32, Ordering::Relaxed);
    0
}
