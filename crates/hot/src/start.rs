//! How it begins: before `main`, or at the first hooked call if that comes earlier.

use std::ffi::{c_int, c_void, CStr};
use std::sync::atomic::{AtomicBool, Ordering};

use tcpr_session::trace::memory::{mode, snapshot as memory_snapshot, state, LIMIT_AT, MAGIC, TRACE_AT, VERSION};
use tcpr_session::trace::Call;

use crate::activity::{self, say};
use crate::environment::{manager_lives, set_manager, variable};
use crate::memory::header;
use crate::raw::raw;
use crate::{descriptors, engine, handlers, memory, partner, raw, setup, snapshot, tails, thread, threads};

/// Bytes for a trace in a file, if nothing else is said.
const OFFLINE_LIMIT: u64 = 1 << 30;

#[used]
#[link_section = ".init_array"]
static CONSTRUCTOR: extern "C" fn() = constructor;

extern "C" fn constructor() {
    CONSTRUCTED.store(true, Ordering::Relaxed);
    begin();
}

/// The constructors of the libraries behind this one have run.
static CONSTRUCTED: AtomicBool = AtomicBool::new(false);

/// Decides what this process does.
#[cold]
pub fn begin() {
    static BEGUN: AtomicBool = AtomicBool::new(false);
    if BEGUN.swap(true, Ordering::AcqRel) {
        return;
    }
    thread::outside(|| {
        if !offline() && !online() {
            BEGUN.store(false, Ordering::Release);
        }
    });
}

/// Whether a hooked call goes straight to the next library.
#[inline]
pub fn passes() -> bool {
    if activity::is_off() {
        handlers::settle();
        return true;
    }
    if activity::is_undecided() {
        begin();
        if !activity::is_on() {
            return true;
        }
    }
    thread::is_left_out()
}

/// With a file; false if none is named.
fn offline() -> bool {
    let Some(path) = variable(c"TCPR_HOT_FILE") else { return false };
    let records = match variable(c"TCPR_HOT_MODE").map(CStr::to_bytes) {
        Some(b"record") => true,
        Some(b"follow") => false,
        _ => {
            activity::turn_off();
            return true;
        }
    };
    activity::set_offline();
    let flags = libc::O_RDWR | libc::O_CLOEXEC | if records { libc::O_CREAT } else { 0 };
    let fd = raw!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o600) as i32;
    if fd < 0 {
        say(format_args!("cannot open TCPR_HOT_FILE: error {}", -fd));
        activity::turn_off();
        return true;
    }
    let asked = variable(c"TCPR_HOT_LIMIT").and_then(|text| text.to_str().ok()?.parse().ok());
    let limit = if records { asked.unwrap_or(OFFLINE_LIMIT) } else { limit_of(fd) };
    if records && raw!(SYS_ftruncate, fd, TRACE_AT as u64 + limit) < 0 || !memory::map(fd, limit, false) {
        say(format_args!("cannot map TCPR_HOT_FILE"));
        activity::turn_off();
        return true;
    }
    raw!(SYS_close, fd);
    let (me, owner) = (raw!(SYS_getpid), header().owner.load(Ordering::Relaxed));
    // A program that the recorded one starts has its environment.
    if owner != 0 && i64::from(owner) != me && raw!(SYS_kill, owner, 0) != i64::from(-libc::ESRCH) {
        activity::turn_off();
        return true;
    }
    header().owner.store(me as u32, Ordering::Relaxed);
    if records {
        header().magic.store(MAGIC, Ordering::Relaxed);
        header().version.store(VERSION, Ordering::Relaxed);
        header().limit.store(limit, Ordering::Relaxed);
        header().head.store(0, Ordering::Release);
        header().snapshot.store(memory_snapshot::NONE, Ordering::Relaxed);
        header().mode.store(mode::RECORD, Ordering::Release);
    } else if !memory::is_known() {
        say(format_args!("TCPR_HOT_FILE is no trace of this version"));
        activity::turn_off();
        return true;
    } else if !begin_with_snapshot() {
        let why = memory::reason();
        say(format_args!("the snapshot is of no use: {}", std::str::from_utf8(why.bytes()).unwrap_or_default()));
        raw::exit_group(96);
    }
    go(records);
    true
}

/// Begins with a snapshot, if one is named. Returns only if there is none, or, false, if it is of no use.
fn begin_with_snapshot() -> bool {
    let Some(path) = variable(c"TCPR_HOT_SNAPSHOT") else { return true };
    let fd = raw!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC, 0) as i32;
    if fd < 0 {
        memory::say_why(format_args!("the snapshot cannot be opened: error {}", -fd));
    } else {
        snapshot::become_snapshot(fd);
    }
    false
}

fn limit_of(fd: i32) -> u64 {
    (raw!(SYS_lseek, fd, 0, libc::SEEK_END) as u64).saturating_sub(TRACE_AT as u64)
}

/// With the manager; false if libtcpr cannot say yet.
fn online() -> bool {
    let manager = variable(c"TCPR_STANDBY").and_then(|value| value.to_str().ok()?.strip_prefix("hot:")?.parse().ok());
    set_manager(manager.unwrap_or(0));
    if !manager_lives() {
        // Nobody has started a hot standby, or a process of one has started this.
        activity::turn_off();
        return true;
    }
    let fd = partner::memory();
    if fd == partner::NOT_YET && !CONSTRUCTED.load(Ordering::Relaxed) {
        return false;
    }
    if fd < 0 {
        activity::turn_off();
        return true;
    }
    // Behind the trace lies what is the manager's alone.
    let mut limit = 0u64;
    let known = raw!(SYS_pread64, fd, &raw mut limit, size_of::<u64>(), LIMIT_AT) == 8 && limit <= limit_of(fd);
    let mapped = known && memory::map(fd, limit, true) && memory::is_known();
    raw!(SYS_close, fd);
    if !mapped {
        activity::turn_off();
        return true;
    }
    loop {
        match header().mode.load(Ordering::Acquire) {
            mode::WAIT if !manager_lives() => activity::diverge(format_args!("the manager is gone")),
            mode::WAIT => raw::futex_wait(header().mode.as_ptr(), mode::WAIT, 1_000_000_000),
            mode::RECORD => break go(true),
            mode::FOLLOW | mode::PROMOTE => {
                if !begin_with_snapshot() {
                    header().state.store(state::FULL, Ordering::Release);
                    raw::exit_group(97);
                }
                break go(false);
            }
            _ => break activity::turn_off(),
        }
    }
    true
}

fn go(records: bool) {
    handlers::begin();
    threads::begin();
    snapshot::note_surroundings();
    // Its input is not the member's own.
    descriptors::set(0, descriptors::Kind::Outside, false);
    thread::set_id(0);
    // SAFETY: the function fits; registered first, it runs after all that the program registers.
    unsafe { on_exit(exiting, std::ptr::null_mut()) };
    if records {
        activity::begin_recording();
    } else {
        header().executed.store(0, Ordering::Relaxed);
        header().records.store(0, Ordering::Relaxed);
        if !activity::is_offline() && !tails::begin() {
            activity::diverge(format_args!("the place in memory for the newest output is taken"));
        }
        activity::begin_following();
    }
    setup::compare();
    seed();
}

/// The 16 random bytes that the kernel has given: some programs make keys of hash tables of them.
fn seed() {
    // SAFETY: the kernel's own pointer to 16 bytes on the stack, which live as long as the process.
    let bytes = unsafe {
        let at = libc::getauxval(libc::AT_RANDOM) as *mut [u8; 16];
        if at.is_null() {
            return;
        }
        &mut *at
    };
    if activity::follows() {
        if let Some(taken) = engine::take(Call::Random, -1) {
            if let Ok(theirs) = taken.data().try_into() {
                *bytes = theirs;
            }
            taken.done();
            return;
        }
    }
    engine::append(Call::Random, -1, 16, &[&bytes[..]]);
}

extern "C" {
    // Not in the libc crate.
    fn on_exit(f: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
}

extern "C" fn exiting(status: c_int, _: *mut c_void) {
    exit(status);
}

/// The program ends of its own accord.
pub fn exit(status: c_int) {
    if !activity::is_on() || thread::is_left_out() {
        return;
    }
    if activity::follows() {
        if let Some(taken) = engine::take(Call::Exit, 0) {
            if taken.result() != i64::from(status) {
                taken.diverges_in(format_args!("exits with {status}"));
            }
            taken.done();
            activity::turn_off();
            return;
        }
    }
    engine::append(Call::Exit, 0, i64::from(status), &[]);
    activity::turn_off();
}
