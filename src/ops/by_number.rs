//! System calls that the application makes by number. What reads and writes a protected descriptor by number is as good as the
//! function of that name.

use libc::{c_int, c_long, c_uint};
use tcpr_node::channel::client::Bypass;

use super::descriptors::{close, close_range, dup2, dup3};
use super::{accept, fork, input, lock_in, output, sockets};
use crate::{real, table, turn};

/// As in the C library. Node closes its sockets by number, and the runtimes of several languages wait by number.
///
/// # Safety
/// As in the C library.
pub unsafe fn syscall(number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long {
    match number {
        _ if table::is_plain(a as c_int) || Bypass::active() => {}
        // SAFETY: the caller's arguments.
        libc::SYS_read => return unsafe { input::read(a as c_int, b as _, c as _) } as c_long,
        // SAFETY: the caller's arguments.
        libc::SYS_readv => return unsafe { input::readv(a as c_int, b as _, c as _) } as c_long,
        // SAFETY: the caller's arguments.
        libc::SYS_recvfrom => return unsafe { input::recvfrom(a as c_int, b as _, c as _, d as _, e as _, f as _) } as c_long,
        // SAFETY: the caller's arguments.
        libc::SYS_recvmsg => return unsafe { input::recvmsg(a as c_int, b as _, c as _) } as c_long,
        // SAFETY: the caller's arguments.
        libc::SYS_write => return unsafe { output::write(a as c_int, b as _, c as _) } as c_long,
        // SAFETY: the caller's arguments.
        libc::SYS_writev => return unsafe { output::writev(a as c_int, b as _, c as _) } as c_long,
        // SAFETY: the caller's arguments.
        libc::SYS_sendto => return unsafe { output::sendto(a as c_int, b as _, c as _, d as _, e as _, f as _) } as c_long,
        // SAFETY: the caller's arguments.
        libc::SYS_sendmsg => return unsafe { output::sendmsg(a as c_int, b as _, c as _) } as c_long,
        // SAFETY: the caller's arguments.
        libc::SYS_sendfile => return unsafe { output::sendfile(a as c_int, b as _, c as _, d as _) } as c_long,
        // SAFETY: the caller's arguments.
        libc::SYS_accept => return c_long::from(unsafe { accept::accept(a as c_int, b as _, c as _) }),
        // SAFETY: the caller's arguments.
        libc::SYS_accept4 => return c_long::from(unsafe { accept::accept4(a as c_int, b as _, c as _, d as c_int) }),
        // SAFETY: the caller's arguments.
        libc::SYS_listen => return c_long::from(unsafe { sockets::listen(a as c_int, b as c_int) }),
        // SAFETY: the caller's arguments.
        libc::SYS_shutdown => return c_long::from(unsafe { sockets::shutdown(a as c_int, b as c_int) }),
        libc::SYS_close => {
            // SAFETY: the caller's argument.
            return c_long::from(unsafe { close(a as c_int) });
        }
        _ => {}
    }
    match number {
        // SAFETY: the caller's arguments.
        libc::SYS_close_range => return c_long::from(unsafe { close_range(a as c_uint, b as c_uint, c as c_int) }),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller's arguments.
        libc::SYS_dup2 => return c_long::from(unsafe { dup2(a as c_int, b as c_int) }),
        // SAFETY: the caller's arguments.
        libc::SYS_dup3 => return c_long::from(unsafe { dup3(a as c_int, b as c_int, c as c_int) }),
        libc::SYS_clone if fork::forks(a as c_int) && b == 0 => {
            // SAFETY: the caller's arguments.
            return fork::forked(|| unsafe { real::syscall(number, a, b, c, d, e, f) });
        }
        // SAFETY: the caller's arguments.
        libc::SYS_clone3 if unsafe { fork::forks_by(a as *const fork::CloneArguments, b as usize) } => {
            // SAFETY: the caller's arguments.
            return fork::forked(|| unsafe { real::syscall(number, a, b, c, d, e, f) });
        }
        // SAFETY: the caller's arguments.
        #[cfg(target_arch = "x86_64")]
        libc::SYS_fork => return fork::forked(|| unsafe { real::syscall(number, a, b, c, d, e, f) }),
        // SAFETY: the caller's arguments.
        libc::SYS_prctl => return c_long::from(unsafe { lock_in::prctl(a as c_int, b, c, d, e) }),
        libc::SYS_seccomp => lock_in::before_seccomp(a, b, c),
        libc::SYS_unshare if a as c_int & libc::CLONE_NEWNET != 0 => lock_in::before_namespace(),
        libc::SYS_setns => lock_in::before_namespace(),
        // The first descriptor may be a protected one, or the second.
        libc::SYS_splice if !Bypass::active() => {
            // SAFETY: the caller's arguments.
            return unsafe { output::splice(a as c_int, b as _, c as c_int, d as _, e as _, f as _) } as c_long;
        }
        libc::SYS_futex_waitv => turn::before_wait(|| false),
        libc::SYS_futex if turn::is_dirty() => {
            const COMMANDS: c_int = !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
            if matches!(b as c_int & COMMANDS, libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET) && !is_lock(c as u32) {
                turn::before_wait(|| false);
            }
        }
        _ => {}
    }
    // SAFETY: the caller's arguments.
    unsafe { real::syscall(number, a, b, c, d, e, f) }
}

/// Whether a futex with this value is a lock that another thread holds: a thread that waits for one is in the middle of its work. A
/// mutex of Rust's standard library has the value 2 then, its `RwLock` one of the two highest bits; a thread that is parked has all
/// bits. A condition of that library counts from 0, and its second wait looks like a mutex: the turn ends half a second later.
fn is_lock(value: u32) -> bool {
    const SOMEBODY_WAITS: u32 = 3 << 30;
    value == 2 || value & SOMEBODY_WAITS != 0 && value != u32::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_known_by_its_value() {
        assert!(is_lock(2) && is_lock(0x7fff_ffff) && is_lock(0xbfff_ffff) && is_lock(1 << 30 | 1));
        assert!(!is_lock(0) && !is_lock(1) && !is_lock(3) && !is_lock(u32::MAX), "a condition, a thread that is parked");
    }
}
