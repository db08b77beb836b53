//! Programs that take from themselves what the hooks need: system calls, by seccomp, and the network in which the manager is.

use std::sync::atomic::{AtomicBool, Ordering};

use libc::{c_int, c_long};
use tcpr_node::channel::client::Bypass;
use tcpr_node::channel::KICK;

use super::life;
use crate::guard::inside;
use crate::memory::Checked;
use crate::{manager, real};

const SECCOMP_SET_MODE_STRICT: c_long = 0;
const SECCOMP_SET_MODE_FILTER: c_long = 1;

/// This process has a filter that it has made itself.
static LOCKED_IN: AtomicBool = AtomicBool::new(false);

/// Whether this process forbids itself system calls.
pub fn is_locked_in() -> bool {
    LOCKED_IN.load(Ordering::Relaxed)
}

/// Before a filter is installed. If the filter forbids something that the library does beside the program's own calls, the
/// manager is told, and the library does nothing of that any more: the kernel might kill the program for it.
pub fn before_seccomp(operation: c_long, flags: c_long, argument: c_long) {
    let is_one = match operation {
        SECCOMP_SET_MODE_STRICT => flags == 0 && argument == 0,
        // Without a filter the program only asks whether the kernel has them.
        SECCOMP_SET_MODE_FILTER => argument != 0,
        _ => false,
    };
    LOCKED_IN.fetch_or(is_one, Ordering::Relaxed);
    let locks = is_one && (operation == SECCOMP_SET_MODE_STRICT || !lets_us(argument as *const libc::sock_fprog));
    if locks && !Bypass::active() {
        inside((), life::leave);
    }
}

/// What the hooks call, as they call it, where a filter may look at that.
const CALLS: &[(c_long, [u64; 6])] = &[
    (libc::SYS_sendto, [3, 0, 1, (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u64, 0, 0]),
    (libc::SYS_sendmsg, [3, 0, (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u64, 0, 0, 0]),
    (libc::SYS_recvfrom, [3, 0, 1, libc::MSG_DONTWAIT as u64, 0, 0]),
    (libc::SYS_recvmsg, [3, 0, libc::MSG_DONTWAIT as u64, 0, 0, 0]),
    (libc::SYS_ppoll, [0, 1, 0, 0, 8, 0]),
    (libc::SYS_accept4, [3, 0, 0, 0, 0, 0]),
    (libc::SYS_shutdown, [3, libc::SHUT_WR as u64, 0, 0, 0, 0]),
    (libc::SYS_close, [3, 0, 0, 0, 0, 0]),
    (libc::SYS_read, [3, 0, 8, 0, 0, 0]),
    (libc::SYS_write, [2, 0, 1, 0, 0, 0]),
    (libc::SYS_fstat, [3, 0, 0, 0, 0, 0]),
    (libc::SYS_fcntl, [3, libc::F_GETFL as u64, 0, 0, 0, 0]),
    (libc::SYS_fcntl, [3, libc::F_SETFL as u64, 0, 0, 0, 0]),
    (libc::SYS_fcntl, [3, libc::F_GETFD as u64, 0, 0, 0, 0]),
    (libc::SYS_fcntl, [3, libc::F_SETFD as u64, 0, 0, 0, 0]),
    (libc::SYS_fcntl, [3, libc::F_DUPFD_CLOEXEC as u64, 0, 0, 0, 0]),
    (libc::SYS_fcntl, [3, libc::F_SETLK as u64, 0, 0, 0, 0]),
    (libc::SYS_getsockopt, [3, libc::SOL_SOCKET as u64, libc::SO_RCVTIMEO as u64, 0, 0, 0]),
    (libc::SYS_setsockopt, [3, libc::SOL_SOCKET as u64, libc::SO_RCVTIMEO as u64, 0, 0, 0]),
    (libc::SYS_getsockname, [3, 0, 0, 0, 0, 0]),
    (libc::SYS_getpeername, [3, 0, 0, 0, 0, 0]),
    (libc::SYS_ioctl, [3, KICK, 0, 0, 0, 0]),
    (libc::SYS_ioctl, [3, libc::FIONREAD, 0, 0, 0, 0]),
    (libc::SYS_timerfd_gettime, [3, 0, 0, 0, 0, 0]),
    (libc::SYS_timerfd_settime, [3, libc::TFD_TIMER_ABSTIME as u64, 0, 0, 0, 0]),
    (libc::SYS_socket, [libc::AF_UNIX as u64, (libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC) as u64, 0, 0, 0, 0]),
    (libc::SYS_connect, [3, 0, 0, 0, 0, 0]),
    (libc::SYS_futex, [0, libc::FUTEX_WAIT as u64, 0, 0, 0, 0]),
    (libc::SYS_futex, [0, (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as u64, 1, 0, 0, 0]),
    (libc::SYS_madvise, [0, 0, 22, 0, 0, 0]),
    (libc::SYS_madvise, [0, 0, 23, 0, 0, 0]),
    (libc::SYS_mmap, [0, 4096, (libc::PROT_READ | libc::PROT_WRITE) as u64, libc::MAP_SHARED as u64, 3, 0]),
    (libc::SYS_munmap, [0, 4096, 0, 0, 0, 0]),
    (libc::SYS_brk, [0; 6]),
    (libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as u64, 0, 0, 8, 0, 0]),
    (libc::SYS_rt_sigaction, [libc::SIGUSR1 as u64, 0, 0, 8, 0, 0]),
    (libc::SYS_rt_tgsigqueueinfo, [1, 1, libc::SIGUSR1 as u64, 0, 0, 0]),
    (libc::SYS_tgkill, [1, 1, libc::SIGPIPE as u64, 0, 0, 0]),
    (libc::SYS_getpid, [0; 6]),
    (libc::SYS_gettid, [0; 6]),
    (libc::SYS_sched_yield, [0; 6]),
    (libc::SYS_clock_nanosleep, [0; 6]),
    (libc::SYS_exit_group, [0; 6]),
];

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Whether a filter of the application's lets everything through that the hooks call.
fn lets_us(program: *const libc::sock_fprog) -> bool {
    let mut checked = Checked::default();
    if !checked.is_readable(program, size_of::<libc::sock_fprog>()) {
        return false;
    }
    // SAFETY: it can be read, and is not null.
    let libc::sock_fprog { len, filter } = unsafe { program.read() };
    if len == 0 || !checked.is_readable(filter, usize::from(len) * size_of::<libc::sock_filter>()) {
        return false;
    }
    // SAFETY: so much can be read there, and stays: the caller has it given to the kernel.
    let filter = unsafe { std::slice::from_raw_parts(filter, usize::from(len)) };
    CALLS.iter().all(|(number, arguments)| {
        let mut data = [0; 16];
        (data[0], data[1]) = (*number as u32, ARCHITECTURE);
        for (i, argument) in arguments.iter().enumerate() {
            // Two halves in the byte order of the machine: both architectures have the lower half first.
            (data[4 + 2 * i], data[5 + 2 * i]) = (*argument as u32, (*argument >> 32) as u32);
        }
        let action = verdict(filter, &data).map(|verdict| verdict & libc::SECCOMP_RET_ACTION_FULL);
        matches!(action, Some(libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG))
    })
}

/// What a filter (classic BPF, as far as seccomp has it) says of a call. `None`: nothing that the kernel would take.
fn verdict(filter: &[libc::sock_filter], data: &[u32; 16]) -> Option<u32> {
    let (mut a, mut x, mut memory, mut at) = (0u32, 0u32, [0u32; 16], 0usize);
    loop {
        let instruction = filter.get(at)?;
        let (code, k) = (u32::from(instruction.code), instruction.k);
        at += 1;
        // BPF_X, else BPF_K.
        let operand = if code & 0x08 != 0 { x } else { k };
        match code & 0x07 {
            // BPF_LD, BPF_LDX: BPF_IMM, BPF_ABS, BPF_MEM, BPF_LEN
            class @ (0 | 1) => {
                let value = match code & 0xe0 {
                    0x00 => k,
                    0x20 if class == 0 => *data.get(k as usize / 4).filter(|_| k % 4 == 0)?,
                    0x60 => *memory.get(k as usize)?,
                    0x80 => 64,
                    _ => return None,
                };
                *(if class == 0 { &mut a } else { &mut x }) = value;
            }
            // BPF_ST, BPF_STX
            2 => *memory.get_mut(k as usize)? = a,
            3 => *memory.get_mut(k as usize)? = x,
            4 => {
                a = match code & 0xf0 {
                    0x00 => a.wrapping_add(operand),
                    0x10 => a.wrapping_sub(operand),
                    0x20 => a.wrapping_mul(operand),
                    0x30 => a.checked_div(operand)?,
                    0x40 => a | operand,
                    0x50 => a & operand,
                    0x60 => a.checked_shl(operand)?,
                    0x70 => a.checked_shr(operand)?,
                    0x80 => a.wrapping_neg(),
                    0xa0 => a ^ operand,
                    _ => return None,
                }
            }
            5 => {
                let jump = match code & 0xf0 {
                    0x00 => k as usize,
                    test => {
                        let holds = match test {
                            0x10 => a == operand,
                            0x20 => a > operand,
                            0x30 => a >= operand,
                            0x40 => a & operand != 0,
                            _ => return None,
                        };
                        usize::from(if holds { instruction.jt } else { instruction.jf })
                    }
                };
                at = at.checked_add(jump)?;
            }
            // BPF_RET: BPF_A, else BPF_K
            6 => return Some(if code & 0x18 == 0x10 { a } else { k }),
            // BPF_MISC: BPF_TXA, BPF_TAX
            _ if code & 0x80 != 0 => a = x,
            _ => x = a,
        }
    }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn prctl(option: c_int, a: c_long, b: c_long, c: c_long, d: c_long) -> c_int {
    if option == libc::PR_SET_SECCOMP {
        match a as u32 {
            libc::SECCOMP_MODE_STRICT => before_seccomp(SECCOMP_SET_MODE_STRICT, 0, 0),
            libc::SECCOMP_MODE_FILTER => before_seccomp(SECCOMP_SET_MODE_FILTER, 0, b),
            _ => {}
        }
    }
    // SAFETY: the caller's arguments.
    unsafe { real::prctl(option, a, b, c, d) }
}

/// Before the process goes to a network namespace where the manager is not: a forked process joins while it can.
pub fn before_namespace() {
    if !Bypass::active() {
        inside(None, || manager::client().map(|_| ()));
    }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn unshare(flags: c_int) -> c_int {
    if flags & libc::CLONE_NEWNET != 0 {
        before_namespace();
    }
    // SAFETY: takes no pointers.
    unsafe { real::unshare(flags) }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn setns(fd: c_int, kind: c_int) -> c_int {
    if kind == 0 || kind & libc::CLONE_NEWNET != 0 {
        before_namespace();
    }
    // SAFETY: takes no pointers.
    unsafe { real::setns(fd, kind) }
}
