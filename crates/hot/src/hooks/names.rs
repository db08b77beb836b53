//! Random numbers, ids and names of this machine.

use std::ffi::{c_char, c_int, c_long, c_uint, c_void};

use libc::{pid_t, rlimit, size_t, ssize_t, sysinfo as SysInfo, utsname};
use tcpr_session::trace::{id, Call};

use super::exported::hooks;
use crate::activity::{follows, was_promoted};
use crate::engine::{append, take};
use crate::forms::{filled, live, structure, told};
use crate::{errno, next, processes, thread};

/// Numbers of calls that are none of the kernel's.
const GETHOSTNAME: i32 = 1001;
const GETDOMAINNAME: i32 = 1002;
const SYSCONF: i32 = 1003;
const GETLOADAVG: i32 = 1004;
const NPROCS: i32 = 1005;

fn process_id(live: impl FnOnce() -> i64) -> pid_t {
    let known = processes::known();
    let result = told(Call::Id, id::PROCESS, || if was_promoted() && known != 0 { i64::from(known) } else { live() });
    processes::set_known(result as pid_t);
    result as pid_t
}

/// Random bytes for a buffer of the program's.
///
/// # Safety
/// `n` bytes are writable.
unsafe fn random(buffer: *mut c_void, n: size_t, flags: c_uint) -> i64 {
    // SAFETY: as the caller says.
    unsafe { filled(Call::Random, 0, buffer.cast(), n, || live!(next::getrandom(buffer, n, flags)), |result| result as usize) }
}

/// Fills the buffer, piece by piece.
///
/// # Safety
/// `n` bytes are writable.
unsafe fn fill(buffer: *mut c_void, n: size_t) -> bool {
    let mut done = 0;
    while done < n {
        // SAFETY: as the caller says.
        let result = unsafe { random(buffer.byte_add(done), (n - done).min(256), 0) };
        if result <= 0 {
            return false;
        }
        done += result as usize;
    }
    true
}

fn random_word() -> u32 {
    let mut word = 0u32;
    // SAFETY: live.
    unsafe { fill((&raw mut word).cast(), 4) };
    word
}

/// A name of this machine, with its terminating zero.
///
/// # Safety
/// As for `gethostname`.
unsafe fn name(number: i32, buffer: *mut c_char, n: size_t, live: impl FnOnce() -> i64) -> i64 {
    // SAFETY: as the caller says; strnlen stays within the buffer.
    unsafe { filled(Call::Misc, number, buffer.cast(), n, live, |_| (libc::strnlen(buffer, n) + 1).min(n)) }
}

hooks! {
    fn getrandom(buffer: *mut c_void, n: size_t, flags: c_uint) -> ssize_t {
        errno::c(random(buffer, n, flags)) as ssize_t
    }

    fn getentropy(buffer: *mut c_void, n: size_t) -> c_int {
        if n > 256 {
            errno::set(libc::EIO);
            return -1;
        }
        if fill(buffer, n) { 0 } else { -1 }
    }

    fn arc4random_buf(buffer: *mut c_void, n: size_t) -> () {
        fill(buffer, n);
    }

    fn arc4random() -> u32 {
        random_word()
    }

    fn arc4random_uniform(bound: u32) -> u32 {
        if bound < 2 {
            return 0;
        }
        let least = bound.wrapping_neg() % bound;
        loop {
            let word = random_word();
            if word >= least {
                return word % bound;
            }
        }
    }

    fn getpid() -> pid_t {
        process_id(|| live!(next()))
    }

    fn getppid() -> pid_t {
        told(Call::Id, id::PARENT, || live!(next())) as pid_t
    }

    fn gettid() -> pid_t {
        told(Call::Id, id::THREAD, || live!(next())) as pid_t
    }

    fn sched_getcpu() -> c_int {
        told(Call::Id, id::PROCESSOR, || live!(next())) as c_int
    }

    fn gethostname(buffer: *mut c_char, n: size_t) -> c_int {
        errno::c(name(GETHOSTNAME, buffer, n, || live!(next(buffer, n)))) as c_int
    }

    fn getdomainname(buffer: *mut c_char, n: size_t) -> c_int {
        errno::c(name(GETDOMAINNAME, buffer, n, || live!(next(buffer, n)))) as c_int
    }

    fn uname(to: *mut utsname) -> c_int {
        errno::c(structure(Call::Misc, libc::SYS_uname as i32, to, || live!(next(to)))) as c_int
    }

    fn sysinfo(to: *mut SysInfo) -> c_int {
        errno::c(structure(Call::Misc, libc::SYS_sysinfo as i32, to, || live!(next(to)))) as c_int
    }

    fn getrlimit(resource: c_uint, to: *mut rlimit) -> c_int {
        errno::c(structure(Call::Misc, libc::SYS_getrlimit as i32, to, || live!(next(resource, to)))) as c_int
    }

    fn getrlimit64(resource: c_uint, to: *mut rlimit) -> c_int {
        errno::c(structure(Call::Misc, libc::SYS_getrlimit as i32, to, || live!(next(resource, to)))) as c_int
    }

    fn sched_getaffinity(pid: pid_t, n: size_t, to: *mut c_void) -> c_int {
        errno::c(filled(Call::Misc, libc::SYS_sched_getaffinity as i32, to.cast(), n, || live!(next(pid, n, to)), |_| n)) as c_int
    }

    fn pthread_getaffinity_np(thread: libc::pthread_t, n: size_t, to: *mut c_void) -> c_int {
        // Returns an error's number.
        let live = || -i64::from(crate::thread::outside(|| next(thread, n, to)));
        -filled(Call::Misc, libc::SYS_sched_getaffinity as i32, to.cast(), n, live, |_| n) as c_int
    }

    fn getloadavg(to: *mut f64, n: c_int) -> c_int {
        let room = 8 * n.max(0) as usize;
        errno::c(filled(Call::Misc, GETLOADAVG, to.cast(), room, || live!(next(to, n)), |got| 8 * got as usize)) as c_int
    }

    fn get_nprocs() -> c_int {
        told(Call::Misc, NPROCS, || live!(next())) as c_int
    }

    fn get_nprocs_conf() -> c_int {
        told(Call::Misc, NPROCS, || live!(next())) as c_int
    }

    fn sysconf(name: c_int) -> c_long {
        let differs = [libc::_SC_NPROCESSORS_CONF, libc::_SC_NPROCESSORS_ONLN, libc::_SC_PHYS_PAGES, libc::_SC_AVPHYS_PAGES, libc::_SC_OPEN_MAX];
        if !differs.contains(&name) {
            return next(name);
        }
        // -1 is no error but "no limit".
        if follows() {
            if let Some(taken) = take(Call::Misc, SYSCONF) {
                let result = taken.result();
                taken.done();
                return result;
            }
        }
        let result = thread::outside(|| next(name));
        append(Call::Misc, SYSCONF, result, &[]);
        result
    }
}

/// `std::random_device` of libstdc++, which asks the processor, past the C library.
///
/// # Safety
/// As in libstdc++.
#[no_mangle]
pub unsafe extern "C-unwind" fn _ZNSt13random_device9_M_getvalEv(_: *mut c_void) -> c_uint {
    let mut value = 0;
    // SAFETY: live, of this size.
    unsafe { getrandom((&raw mut value).cast(), size_of::<c_uint>(), 0) };
    value
}
