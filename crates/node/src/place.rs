//! Where this process maps memory of ours, if that matters.
//!
//! In a program with a hot standby, what tcpr maps is to lie apart from what the program maps: the program's memory goes to another
//! process, and tcpr's does not.

use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Where the next mapping goes; 0: wherever the kernel likes.
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// Larger than all pages: mappings lie apart.
const APART: usize = 2 << 20;

/// From now on mappings go there, one after another.
pub fn begin_at(address: usize) {
    NEXT.store(address, Ordering::Relaxed);
}

/// The wish that `mmap` is told for so many bytes.
#[must_use]
pub fn wish(bytes: usize) -> *mut c_void {
    let next = |at: usize| (at != 0).then(|| at + bytes.next_multiple_of(APART) + APART);
    match NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
        Ok(at) => std::ptr::without_provenance_mut(at),
        Err(_) => std::ptr::null_mut(),
    }
}
