//! The plain names: what LD_PRELOAD puts before the C library. A thin layer made from one list; what the calls do
//! is in `ops`.

use std::ffi::{c_char, c_void};

use libc::{
    c_int, c_long, c_uint, clockid_t, epoll_event, fd_set, gid_t, id_t, idtype_t, iovec, mmsghdr, msghdr, nfds_t, off64_t, off_t,
    pid_t, pollfd, pthread_cond_t, pthread_mutex_t, pthread_t, rusage, sem_t, sembuf, sigaction as SigAction, sighandler_t,
    siginfo_t, sigset_t, size_t, sockaddr, socklen_t, ssize_t, timespec, timeval, uid_t, FILE,
};

use crate::hook_list::for_each_hook;
use crate::memory::Checked;
use crate::{ops, real, sys, table, turn};

macro_rules! exports {
    (
        reads { $(fn $r_name:ident($r_fd:ident: c_int $(, $r_arg:ident: $r_type:ty)*) -> $r_ret:ty, polls $r_polls:expr;)* }
        by_descriptor { $(fn $d_name:ident($d_fd:ident: c_int $(, $d_arg:ident: $d_type:ty)*) -> $d_ret:ty;)* }
        waits { $(fn $w_name:ident($($w_arg:ident: $w_type:ty),*) -> $w_ret:ty, polls $polls:expr;)* }
        always { $(fn $a_name:ident($($a_arg:ident: $a_type:ty),*) -> $a_ret:ty;)* }
    ) => {
        $(
            /// As in the C library.
            ///
            /// # Safety
            /// As in the C library.
            #[no_mangle]
            pub unsafe extern "C-unwind" fn $r_name($r_fd: c_int $(, $r_arg: $r_type)*) -> $r_ret {
                if table::is_plain($r_fd) {
                    // SAFETY: the caller's arguments, as they came.
                    return turn::foreign_read($r_fd, || $r_polls, || unsafe { real::$r_name($r_fd $(, $r_arg)*) });
                }
                // SAFETY: the caller's arguments, as they came.
                unsafe { ops::$r_name($r_fd $(, $r_arg)*) }
            }
        )*
        $(
            /// As in the C library.
            ///
            /// # Safety
            /// As in the C library.
            #[no_mangle]
            pub unsafe extern "C-unwind" fn $d_name($d_fd: c_int $(, $d_arg: $d_type)*) -> $d_ret {
                if table::is_plain($d_fd) {
                    // SAFETY: the caller's arguments, as they came.
                    return unsafe { real::$d_name($d_fd $(, $d_arg)*) };
                }
                // SAFETY: the caller's arguments, as they came.
                unsafe { ops::$d_name($d_fd $(, $d_arg)*) }
            }
        )*
        $(
            /// As in the C library.
            ///
            /// # Safety
            /// As in the C library.
            #[no_mangle]
            pub unsafe extern "C-unwind" fn $w_name($($w_arg: $w_type),*) -> $w_ret {
                turn::before_wait(|| $polls);
                // SAFETY: the caller's arguments, as they came.
                unsafe { real::$w_name($($w_arg),*) }
            }
        )*
        $(
            /// As in the C library.
            ///
            /// # Safety
            /// As in the C library.
            #[allow(non_snake_case)] // C's names
            #[no_mangle]
            pub unsafe extern "C-unwind" fn $a_name($($a_arg: $a_type),*) -> $a_ret {
                // SAFETY: the caller's arguments, as they came.
                unsafe { ops::$a_name($($a_arg),*) }
            }
        )*
    };
}
for_each_hook!(exports);

/// As in the C library.
#[no_mangle]
pub extern "C-unwind" fn _exit(status: c_int) -> ! {
    ops::exiting();
    sys::exit_group(status)
}

/// As in the C library.
#[no_mangle]
pub extern "C-unwind" fn _Exit(status: c_int) -> ! {
    _exit(status)
}

fn is_zero_timespec(time: *const timespec) -> bool {
    // SAFETY: null, or the application's timeout, which the C library is about to read too.
    unsafe { time.as_ref() }.is_some_and(|t| t.tv_sec == 0 && t.tv_nsec == 0)
}

/// The same, of a timeout that the C library does not read: a bad address is the kernel's to refuse.
fn is_zero_unless_bad(time: *const timespec) -> bool {
    Checked::default().is_readable(time, size_of::<timespec>()) && is_zero_timespec(time)
}

fn is_zero_timeval(time: *const timeval) -> bool {
    // SAFETY: null, or the application's timeout, which the C library is about to read too.
    unsafe { time.as_ref() }.is_some_and(|t| t.tv_sec == 0 && t.tv_usec == 0)
}
