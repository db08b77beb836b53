//! System calls that go to the kernel directly, past all hooks, and leave errno alone.

/// A system call by its number; returns what the kernel returns: minus the error's number on failure.
macro_rules! raw {
    ($number:ident $(, $argument:expr)* $(,)?) => {{
        let given: &[i64] = &[$($argument as i64),*];
        let at = |i: usize| given.get(i).copied().unwrap_or(0);
        #[allow(unused_unsafe)]
        // SAFETY: pointers are those that the program gave to the C library, or lead to live memory of ours.
        unsafe { $crate::raw::system_call(libc::$number, [at(0), at(1), at(2), at(3), at(4), at(5)]) }
    }};
}
pub(crate) use raw;

/// The call itself.
///
/// # Safety
/// As for the system call.
#[cfg(target_arch = "x86_64")]
#[inline]
pub unsafe fn system_call(number: i64, a: [i64; 6]) -> i64 {
    let result;
    // SAFETY: the kernel changes no other registers; what the call does to memory is the caller's matter.
    unsafe {
        std::arch::asm!("syscall", inlateout("rax") number => result, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
            in("r10") a[3], in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// The call itself.
///
/// # Safety
/// As for the system call.
#[cfg(target_arch = "aarch64")]
#[inline]
pub unsafe fn system_call(number: i64, a: [i64; 6]) -> i64 {
    let result;
    // SAFETY: the kernel changes no other registers; what the call does to memory is the caller's matter.
    unsafe {
        std::arch::asm!("svc 0", in("x8") number, inlateout("x0") a[0] => result, in("x1") a[1], in("x2") a[2],
            in("x3") a[3], in("x4") a[4], in("x5") a[5], options(nostack));
    }
    result
}

/// Ends the process.
pub fn exit_group(status: i32) -> ! {
    loop {
        raw!(SYS_exit_group, status);
    }
}

/// Lets others run.
pub fn yield_now() {
    raw!(SYS_sched_yield);
}

/// Sleeps.
pub fn sleep_ns(ns: i64) {
    let time = libc::timespec { tv_sec: ns / 1_000_000_000, tv_nsec: ns % 1_000_000_000 };
    raw!(SYS_nanosleep, &raw const time, 0);
}

/// Waits until the word is not `seen` any more and somebody says so, at most this long.
pub fn futex_wait(word: *const u32, seen: u32, ns: i64) {
    let time = libc::timespec { tv_sec: ns / 1_000_000_000, tv_nsec: ns % 1_000_000_000 };
    raw!(SYS_futex, word, libc::FUTEX_WAIT, seen, &raw const time);
}

/// Wakes all who wait for the word.
pub fn futex_wake(word: *const u32) {
    raw!(SYS_futex, word, libc::FUTEX_WAKE, i32::MAX);
}

/// What can be done with a descriptor now, of `events`.
pub fn poll_now(fd: i32, events: i16) -> i16 {
    let mut one = libc::pollfd { fd, events, revents: 0 };
    let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    if raw!(SYS_ppoll, &raw mut one, 1, &raw const none, 0, 8) > 0 {
        one.revents
    } else {
        0
    }
}

/// A clock of the kernel in nanoseconds, as it is.
pub fn clock_ns(clock: i32) -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    raw!(SYS_clock_gettime, clock, &raw mut time);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// `fcntl` without pointers.
pub fn fcntl(fd: i32, command: i32, argument: i64) -> i64 {
    raw!(SYS_fcntl, fd, command, argument)
}

/// Puts what `from` is under the number `to`, and closes `from`.
pub fn move_to(from: i32, to: i32) {
    if from != to {
        let cloexec = fcntl(from, libc::F_GETFD, 0) & i64::from(libc::FD_CLOEXEC) != 0;
        raw!(SYS_dup3, from, to, if cloexec { libc::O_CLOEXEC } else { 0 });
        raw!(SYS_close, from);
    }
}
