//! What libtcpr does for this library. Without it, offline, nothing.

use std::ffi::{c_void, CStr};
use std::ops::Range;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use tcpr_session::trace::SESSION;
use tcpr_session::tuple::FourTuple;

use crate::{activity, next, thread};

/// libtcpr's constructor has not run.
pub const NOT_YET: i32 = -2;

/// A connection that stands for a session, at a promotion.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct HotConnection {
    /// -1: it is closed.
    pub fd: i32,
    /// Asked: 1 if the program has ended its output. Answered: 1 if the descriptor is the session's socket now.
    pub state: u32,
    pub read: u64,
    pub written: u64,
    /// Where the trace was when the program got it.
    pub since: u64,
    /// The end of its output, so much of it.
    pub tail: *const u8,
    pub tail_len: u64,
    pub tuple: [u8; FourTuple::BYTES],
}

struct Function {
    name: &'static CStr,
    found: AtomicPtr<c_void>,
}

impl Function {
    const fn new(name: &'static CStr) -> Self {
        Self { name, found: AtomicPtr::new(std::ptr::null_mut()) }
    }

    fn get(&self) -> Option<*mut c_void> {
        if activity::is_offline() {
            return None;
        }
        let mut found = self.found.load(Ordering::Relaxed);
        if found.is_null() {
            found = next::find_anywhere(self.name);
            self.found.store(found, Ordering::Relaxed);
        }
        (!found.is_null()).then_some(found)
    }
}

/// Calls a function of libtcpr, if it is there. What it calls is not the program's.
macro_rules! ask {
    ($name:literal, fn($($type:ty),*) $(-> $ret:ty)?, $($argument:expr),*) => {{
        static FUNCTION: Function = Function::new($name);
        FUNCTION.get().map(|found| {
            // SAFETY: libtcpr's function of this name has this signature.
            let function = unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($type),*) $(-> $ret)?>(found) };
            // SAFETY: pointers lead to live memory of the right size.
            thread::outside(|| unsafe { function($($argument),*) })
        })
    }};
}

/// The descriptor of the trace's memory, which becomes ours; or -1: not in this process, or [`NOT_YET`].
pub fn memory() -> i32 {
    ask!(c"tcpr_hot_memory", fn() -> i32,).unwrap_or(-1)
}

/// Whether a descriptor is one of libtcpr's own.
pub fn owns(fd: i32) -> bool {
    ask!(c"tcpr_hot_owns", fn(i32) -> i32, fd).is_some_and(|owns| owns == 1)
}

/// Whether the program has forbidden itself system calls.
pub fn is_locked_in() -> bool {
    ask!(c"tcpr_hot_is_locked_in", fn() -> i32,).is_some_and(|locked| locked == 1)
}

/// What libtcpr knows of the calling thread is of another process: it begins anew.
pub fn thread_begins() {
    ask!(c"tcpr_hot_thread_begins", fn(),);
}

/// Where libtcpr's code and variables lie: in each process they are its own.
static RANGE: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// The same, as it was found; before that, and offline, nothing.
pub fn range() -> Range<u64> {
    RANGE[0].load(Ordering::Relaxed)..RANGE[1].load(Ordering::Relaxed)
}

/// Finds all that is needed of libtcpr where nothing may be searched.
pub fn prepare_for_copy() {
    owns(-1);
    let of_it = match activity::is_offline() {
        true => std::ptr::null_mut(),
        false => next::find_anywhere(c"tcpr_hot_memory"),
    };
    // SAFETY: the callback fits its argument, an address.
    unsafe { libc::dl_iterate_phdr(Some(look_at), of_it) };
}

unsafe extern "C" fn look_at(info: *mut libc::dl_phdr_info, _: usize, of_it: *mut c_void) -> i32 {
    // SAFETY: the loader's list.
    let info = unsafe { &*info };
    // SAFETY: the loader's list.
    let parts = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let ends = |p: &libc::Elf64_Phdr| [info.dlpi_addr + p.p_vaddr, info.dlpi_addr + p.p_vaddr + p.p_memsz];
    let loaded = || parts.iter().filter(|p| p.p_type == libc::PT_LOAD).map(ends);
    const PAGE: u64 = 4096;
    if let (Some(start), Some(end)) = (loaded().map(|[start, _]| start).min(), loaded().map(|[_, end]| end).max()) {
        if (start..end).contains(&(of_it as u64)) {
            RANGE[0].store(start & !(PAGE - 1), Ordering::Relaxed);
            RANGE[1].store(end.next_multiple_of(PAGE), Ordering::Relaxed);
        }
    }
    0
}

/// Which session a descriptor is.
pub enum Session {
    /// No protected connection.
    None,
    /// This one, with what there had been of it before.
    Is([u8; SESSION]),
    /// It is connecting to a protected destination.
    Coming,
}

impl Session {
    /// The session, if it is there.
    pub fn there(self) -> Option<[u8; SESSION]> {
        match self {
            Session::Is(session) => Some(session),
            Session::None | Session::Coming => None,
        }
    }
}

/// Which session a descriptor is.
pub fn session(fd: i32) -> Session {
    let mut session = [0; SESSION];
    match ask!(c"tcpr_hot_session", fn(i32, *mut [u8; SESSION]) -> i32, fd, &raw mut session) {
        Some(1) => Session::Is(session),
        Some(2) => Session::Coming,
        _ => Session::None,
    }
}

/// Puts the sessions' sockets in the places of their stand-ins. False: the manager does not give them.
pub fn stand(list: &mut [HotConnection]) -> bool {
    ask!(c"tcpr_hot_stand", fn(*mut HotConnection, usize) -> i32, list.as_mut_ptr(), list.len()).is_some_and(|n| n >= 0)
}
