//! The calling thread's errno.

use libc::c_int;

/// Its value.
pub fn get() -> c_int {
    // SAFETY: the C library returns a pointer to this thread's own errno.
    unsafe { *libc::__errno_location() }
}

/// Sets it.
pub fn set(value: c_int) {
    // SAFETY: as in `get`.
    unsafe { *libc::__errno_location() = value }
}

/// Runs `f` and leaves errno as it was before.
pub fn kept<T>(f: impl FnOnce() -> T) -> T {
    let saved = get();
    let result = f();
    set(saved);
    result
}
