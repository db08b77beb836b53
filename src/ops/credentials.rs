//! Becoming somebody else, in a process that hosts a manager.
//!
//! The C library makes all threads change their ids, and aborts if one of them fails and another does not. The manager's
//! thread keeps its privileges, so it would succeed where the others fail (a server that makes sure that it cannot become root
//! again). So the calling thread tries alone first. It may do what all threads of the application may, and the same change
//! twice is harmless.

use std::ptr;

use libc::{c_char, c_int, c_long, gid_t, size_t, uid_t};

use crate::{manager, real, sys};

macro_rules! as_all_threads {
    ($($name:ident($($arg:ident: $type:ty),*), $number:expr, $raw:expr;)*) => {
        $(
            /// As in the C library.
            ///
            /// # Safety
            /// As in the C library.
            pub unsafe fn $name($($arg: $type),*) -> c_int {
                // SAFETY: the caller's arguments.
                if manager::is_here() && unsafe { sys::set_ids($number, $raw) } < 0 {
                    return -1;
                }
                // SAFETY: the caller's arguments.
                unsafe { real::$name($($arg),*) }
            }
        )*
    };
}

/// An id that stays as it is.
const SAME: c_long = -1;

as_all_threads! {
    setuid(id: uid_t), libc::SYS_setuid, [id.into(), 0, 0];
    setgid(id: gid_t), libc::SYS_setgid, [id.into(), 0, 0];
    seteuid(id: uid_t), libc::SYS_setresuid, [SAME, id.into(), SAME];
    setegid(id: gid_t), libc::SYS_setresgid, [SAME, id.into(), SAME];
    setreuid(real: uid_t, effective: uid_t), libc::SYS_setreuid, [real.into(), effective.into(), 0];
    setregid(real: gid_t, effective: gid_t), libc::SYS_setregid, [real.into(), effective.into(), 0];
    setresuid(real: uid_t, effective: uid_t, saved: uid_t), libc::SYS_setresuid, [real.into(), effective.into(), saved.into()];
    setresgid(real: gid_t, effective: gid_t, saved: gid_t), libc::SYS_setresgid, [real.into(), effective.into(), saved.into()];
    setgroups(n: size_t, groups: *const gid_t), libc::SYS_setgroups, [n as c_long, groups as c_long, 0];
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn initgroups(user: *const c_char, group: gid_t) -> c_int {
    // Which groups they are only the C library knows; whether they may be set does not depend on it.
    if manager::is_here() && !may_set_groups() {
        return -1;
    }
    // SAFETY: the caller's arguments.
    unsafe { real::initgroups(user, group) }
}

/// Sets this thread's groups to what they are.
fn may_set_groups() -> bool {
    // SAFETY: no pointer is followed for a size of 0.
    let n = unsafe { libc::getgroups(0, ptr::null_mut()) };
    let mut groups = vec![0; usize::try_from(n).unwrap_or(0)];
    // SAFETY: pointer and length are those of `groups`, which lives through both calls.
    unsafe {
        let n = libc::getgroups(groups.len() as c_int, groups.as_mut_ptr());
        n >= 0 && sys::set_ids(libc::SYS_setgroups, [n.into(), groups.as_ptr() as c_long, 0]) == 0
    }
}
