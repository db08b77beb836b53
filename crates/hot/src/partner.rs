//! What libtcpr does for this library. Without it, offline, nothing.

use std::ffi::{c_void, CStr};
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use tcpr_session::trace::Marker;
use tcpr_session::tuple::FourTuple;

use crate::memory::header;
use crate::{engine, next, thread};

/// libtcpr's constructor has not run.
pub const NOT_YET: i32 = -2;

/// A connection that stands for a session, at a promotion.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct HotConnection {
    pub fd: i32,
    pub adopted: u32,
    pub read: u64,
    pub written: u64,
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
pub fn tuple(fd: i32) -> Option<[u8; FourTuple::BYTES]> {
    let mut tuple = [0; FourTuple::BYTES];
    let found = ask!(c"tcpr_hot_tuple", fn(i32, *mut [u8; FourTuple::BYTES]) -> i32, fd, &raw mut tuple);
    (found == Some(1)).then_some(tuple)
}

/// Whether the partner follows, as far as the trace says so.
static TOLD: AtomicU32 = AtomicU32::new(0);

/// Before each call: whether the partner has begun to follow, or ceased to.
#[inline]
pub fn look() {
    let follows = header().partner_follows.load(Ordering::Relaxed);
    if follows != TOLD.load(Ordering::Relaxed) && engine::records() {
        changed(follows);
    }
}

#[cold]
fn changed(follows: u32) {
    if TOLD.swap(follows, Ordering::AcqRel) == follows {
        return;
    }
    if follows == 0 {
        return engine::mark(Marker::Unsynced);
    }
    ask!(c"tcpr_hot_synced", fn(),);
    engine::mark(Marker::Synced);
}

/// The record of a read is appended; the trace ends at `head`.
pub fn was_read(fd: i32, n: usize, head: u64) {
    if TOLD.load(Ordering::Relaxed) != 0 {
        ask!(c"tcpr_hot_read", fn(i32, usize, u64), fd, n, head);
    }
}

/// Something was written, and is not in the trace yet.
pub fn was_written(fd: i32) {
    if TOLD.load(Ordering::Relaxed) != 0 {
        ask!(c"tcpr_hot_written", fn(i32), fd);
    }
}

/// Puts the sessions' sockets in the places of their stand-ins.
pub fn stand(list: &mut [HotConnection]) {
    ask!(c"tcpr_hot_stand", fn(*mut HotConnection, usize) -> i32, list.as_mut_ptr(), list.len());
}
