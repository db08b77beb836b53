//! What this process does: it records, or follows, or neither; and how that ends.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use tcpr_session::trace::memory::state;

use crate::handlers;
use crate::memory::{self, header, Text};
use crate::raw::{self, raw};

/// The first hooked call decides.
const UNKNOWN: u8 = 0;
/// Every hook is a tail call.
const OFF: u8 = 1;
const RECORD: u8 = 2;
const FOLLOW: u8 = 3;

static MODE: AtomicU8 = AtomicU8::new(UNKNOWN);
/// The trace is in a file, and nobody takes over.
static OFFLINE: AtomicBool = AtomicBool::new(false);
/// This was a follower.
static PROMOTED: AtomicBool = AtomicBool::new(false);
/// The program has made threads.
static THREADED: AtomicBool = AtomicBool::new(false);

/// Whether this process records or follows.
pub fn is_on() -> bool {
    matches!(MODE.load(Ordering::Relaxed), RECORD | FOLLOW)
}

/// Whether results come from the trace.
#[inline]
pub fn follows() -> bool {
    MODE.load(Ordering::Acquire) == FOLLOW
}

/// Whether results go to the trace.
#[inline]
pub fn records() -> bool {
    MODE.load(Ordering::Relaxed) == RECORD
}

/// Where the trace is: how much is recorded, or executed.
pub fn position() -> u64 {
    match follows() {
        true => header().executed.load(Ordering::Relaxed),
        false => header().head.load(Ordering::Relaxed),
    }
}

/// Whether the trace is in a file, and nobody takes over.
pub fn is_offline() -> bool {
    OFFLINE.load(Ordering::Relaxed)
}

/// Whether this was a follower.
pub fn was_promoted() -> bool {
    PROMOTED.load(Ordering::Relaxed)
}

/// Whether the program has made threads.
pub fn is_threaded() -> bool {
    THREADED.load(Ordering::Relaxed)
}

/// The program makes a thread.
pub fn set_threaded() {
    THREADED.store(true, Ordering::Relaxed);
}

/// Whether nothing is decided yet.
#[inline]
pub fn is_undecided() -> bool {
    MODE.load(Ordering::Relaxed) == UNKNOWN
}

/// Whether it does neither, for good.
#[inline]
pub fn is_off() -> bool {
    MODE.load(Ordering::Relaxed) == OFF
}

/// Begins; the memory is mapped.
pub fn begin_recording() {
    header().state.store(state::RECORDING, Ordering::Release);
    MODE.store(RECORD, Ordering::Release);
}

/// A follower goes on as the leader.
pub fn begin_leading() {
    PROMOTED.store(true, Ordering::Release);
    MODE.store(RECORD, Ordering::Release);
}

/// Begins; the memory is mapped.
pub fn begin_following() {
    PROMOTED.store(false, Ordering::Relaxed);
    header().state.store(state::FOLLOWING, Ordering::Release);
    MODE.store(FOLLOW, Ordering::Release);
}

/// The trace is in a file.
pub fn set_offline() {
    OFFLINE.store(true, Ordering::Relaxed);
}

/// Nothing is recorded or followed any more, or it never was.
pub fn turn_off() {
    MODE.store(OFF, Ordering::Release);
}

/// This program cannot be recorded or followed any more.
pub fn refuse(reason: &str) {
    if follows() {
        diverge(format_args!("{reason}"));
    }
    give_up(Some(state::REFUSED), reason);
}

/// Stops recording: the program goes on as if nothing was.
pub fn give_up(why: Option<u32>, reason: &str) {
    // Told before anything is done that is not recorded.
    if let Some(why) = why {
        memory::set_reason(reason.as_bytes());
        header().state.store(why, Ordering::Release);
    }
    turn_off();
    handlers::give_back();
}

/// The program does something else than the trace says: it is of no use any more.
pub fn diverge(why: std::fmt::Arguments<'_>) -> ! {
    let text = Text::of(why);
    memory::set_reason(text.bytes());
    header().state.store(state::DIVERGED, Ordering::Release);
    if is_offline() {
        say(format_args!("diverged: {why}"));
    }
    raw::exit_group(97)
}

/// Offline only: a line on standard error.
pub fn say(words: std::fmt::Arguments<'_>) {
    let text = Text::of(format_args!("tcpr hot standby: {words}\n"));
    raw!(SYS_write, 2, text.bytes().as_ptr(), text.bytes().len());
}
