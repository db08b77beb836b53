//! What whoever started this process has told it, and who that is.

use std::ffi::CStr;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::raw::raw;

/// A variable of the environment that the program was started with.
pub fn variable(name: &CStr) -> Option<&'static CStr> {
    // SAFETY: name is NUL-terminated; what is found is a string of the environment, which the program has not changed yet.
    unsafe {
        let value = libc::getenv(name.as_ptr());
        (!value.is_null()).then(|| CStr::from_ptr(value))
    }
}

/// The process of the manager, which has started this one.
static MANAGER: AtomicI32 = AtomicI32::new(0);

/// Whether the manager that has started this process is there. Without it a follower waits for ever.
pub fn manager_lives() -> bool {
    let manager = MANAGER.load(Ordering::Relaxed);
    manager != 0 && raw!(SYS_getppid) == i64::from(manager)
}

/// The process of the manager of this member.
pub fn manager() -> i32 {
    MANAGER.load(Ordering::Relaxed)
}

/// This process has the memory of one with another manager.
pub fn set_manager(process: i32) {
    MANAGER.store(process, Ordering::Relaxed);
}
