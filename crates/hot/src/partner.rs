//! What libtcpr does for this library. Without it, offline, nothing.

use std::ffi::{c_void, CStr};
use std::sync::atomic::{AtomicPtr, Ordering};

use tcpr_session::trace::SESSION;
use tcpr_session::tuple::FourTuple;

use crate::{engine, next, thread};

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
        if engine::is_offline() {
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
