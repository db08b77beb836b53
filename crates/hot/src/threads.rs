//! The threads that the program makes, by their numbers in the trace.
//!
//! Threads that the allocator makes are left out: what it does differs from run to run, and the program does not see it.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use tcpr_session::trace::{Call, Program};

use crate::activity::{diverge, follows, is_on, is_threaded, set_threaded};
use crate::engine::{self, append, take};
use crate::thread::MOST;
use crate::{handlers, next, raw, thread};

const FREE: u32 = 0;
const MADE: u32 = 1;
const STARTED: u32 = 2;

struct Slot {
    state: AtomicU32,
    start: AtomicPtr<c_void>,
    argument: AtomicPtr<c_void>,
}

static SLOTS: [Slot; MOST] = [const {
    Slot {
        state: AtomicU32::new(FREE),
        start: AtomicPtr::new(std::ptr::null_mut()),
        argument: AtomicPtr::new(std::ptr::null_mut()),
    }
}; MOST];

/// Where the code of the allocator lies, if it is a library of its own.
static ALLOCATOR: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// Before anything is recorded.
pub fn begin() {
    SLOTS[0].state.store(STARTED, Ordering::Relaxed);
    let malloc = next::find_anywhere(c"malloc") as usize;
    let mut search = Search { malloc, libc: libc::getauxval as *const () as usize, first: true };
    // SAFETY: the callback fits its argument, which lives.
    unsafe { libc::dl_iterate_phdr(Some(look_at), (&raw mut search).cast()) };
}

struct Search {
    malloc: usize,
    libc: usize,
    first: bool,
}

unsafe extern "C" fn look_at(info: *mut libc::dl_phdr_info, _: usize, search: *mut c_void) -> c_int {
    // SAFETY: the loader's list, and our own structure.
    let (info, search) = unsafe { (&*info, &mut *search.cast::<Search>()) };
    // SAFETY: the loader's list.
    let parts = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let is_program = std::mem::replace(&mut search.first, false);
    for part in parts.iter().filter(|p| p.p_type == libc::PT_LOAD && p.p_flags & libc::PF_X != 0) {
        let code = (info.dlpi_addr + part.p_vaddr) as usize..(info.dlpi_addr + part.p_vaddr + part.p_memsz) as usize;
        if code.contains(&search.malloc) && !code.contains(&search.libc) && !is_program {
            ALLOCATOR[0].store(code.start, Ordering::Relaxed);
            ALLOCATOR[1].store(code.end, Ordering::Relaxed);
        }
    }
    0
}

/// Whether code of the allocator makes the call.
pub fn is_allocator(caller: usize) -> bool {
    caller >= ALLOCATOR[0].load(Ordering::Relaxed) && caller < ALLOCATOR[1].load(Ordering::Relaxed)
}

// ---- Making and ending

extern "C-unwind" fn run(slot: *mut c_void) -> *mut c_void {
    let id = slot as usize;
    let Some(slot) = SLOTS.get(id) else { return std::ptr::null_mut() };
    while slot.state.load(Ordering::Acquire) == MADE {
        raw::futex_wait(slot.state.as_ptr(), MADE, 100_000_000);
    }
    let (start, argument) = (slot.start.load(Ordering::Relaxed), slot.argument.load(Ordering::Relaxed));
    thread::set_id(id as i32);
    // SAFETY: the program's own function, with its argument.
    let result = unsafe { std::mem::transmute::<*mut c_void, extern "C-unwind" fn(*mut c_void) -> *mut c_void>(start)(argument) };
    end();
    result
}

/// This thread makes no more records.
pub fn end() {
    let id = thread::id();
    if !is_on() || thread::is_left_out() || !is_threaded() {
        return;
    }
    let free = || {
        if let Some(slot) = SLOTS.get(id as usize).filter(|_| id > 0) {
            slot.state.store(FREE, Ordering::Release);
        }
    };
    if follows() {
        if let Some(taken) = take(Call::ThreadEnd, 0) {
            free();
            taken.done();
            engine::leave();
            thread::set_id(thread::FOREIGN);
            return;
        }
    }
    append(Call::ThreadEnd, 0, 0, &[]);
    free();
    thread::set_id(thread::FOREIGN);
}

fn new_slot() -> Option<usize> {
    let is_new = |slot: &Slot| slot.state.compare_exchange(FREE, MADE, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    SLOTS.iter().position(is_new)
}

/// The program's function of a thread.
pub type Start = *mut c_void;

/// Makes a thread.
///
/// # Safety
/// As for `pthread_create`.
pub unsafe fn create(
    start: Start,
    argument: *mut c_void,
    next: impl FnOnce(extern "C-unwind" fn(*mut c_void) -> *mut c_void, *mut c_void) -> c_int,
) -> c_int {
    set_threaded();
    let mut taken = if follows() { take(Call::Thread, 0) } else { None };
    if let Some(failed) = taken.take_if(|taken| taken.result() < 0) {
        let error = -failed.result() as c_int;
        failed.done();
        return error;
    }
    let id = match &taken {
        Some(taken) => taken.result() as usize,
        None => match new_slot() {
            Some(id) => id,
            None => return libc::EAGAIN,
        },
    };
    let Some(slot) = SLOTS.get(id) else { diverge(format_args!("the trace has a thread {id}")) };
    slot.state.store(MADE, Ordering::Relaxed);
    slot.start.store(start, Ordering::Relaxed);
    slot.argument.store(argument, Ordering::Relaxed);
    let mask = handlers::block_all();
    let error = thread::outside(|| next(run, id as *mut c_void));
    handlers::unblock(mask);
    match taken {
        Some(taken) if error != 0 => taken.diverges(Program::Gets((-error).into())),
        Some(taken) => taken.done(),
        None => {
            append(Call::Thread, 0, if error == 0 { id as i64 } else { -i64::from(error) }, &[]);
        }
    }
    slot.state.store(if error == 0 { STARTED } else { FREE }, Ordering::Release);
    raw::futex_wake(slot.state.as_ptr());
    error
}

/// Numbers of the threads that there are; `None`: one is just beginning.
pub fn started() -> impl Iterator<Item = Option<usize>> {
    let all = SLOTS.iter().enumerate().map(|(n, slot)| (n, slot.state.load(Ordering::Acquire)));
    all.filter(|(_, state)| *state != FREE).map(|(n, state)| (state == STARTED).then_some(n))
}
