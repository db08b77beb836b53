//! The calling thread's errno, and the two ways to tell an error: the C library's and the kernel's.

/// Its value.
pub fn get() -> i32 {
    // SAFETY: the C library returns a pointer to this thread's own errno.
    unsafe { *libc::__errno_location() }
}

/// Sets it.
pub fn set(value: i32) {
    // SAFETY: as in `get`.
    unsafe { *libc::__errno_location() = value }
}

/// What the C library returned, as the kernel says it: minus the error's number on failure.
pub fn kernel(result: i64) -> i64 {
    if result == -1 {
        -i64::from(get())
    } else {
        result
    }
}

/// The reverse: sets errno and returns -1 on failure.
pub fn c(result: i64) -> i64 {
    if (-4095..0).contains(&result) {
        set(-result as i32);
        -1
    } else {
        result
    }
}
