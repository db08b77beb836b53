//! Processes. The follower has no children: what they were and how they ended comes from the trace.

use std::ffi::{c_char, c_int, c_long, c_void};

use libc::{id_t, idtype_t, pid_t, rusage, siginfo_t, sigval};
use tcpr_session::trace::Call;

use crate::engine::{append, follows, take};
use crate::forms::{hooks, live, structure, told};
use crate::{engine, errno, next, raw, signals, start, thread};

const SYSTEM: i32 = 1006;

fn fork_any() -> pid_t {
    if follows() {
        if let Some(taken) = take(Call::Fork, 0) {
            let result = taken.result();
            super::names::note_child(result as pid_t);
            taken.done();
            return errno::c(result) as pid_t;
        }
    }
    // SAFETY: takes nothing.
    let result = live!(unsafe { next::fork() });
    if result == 0 {
        engine::reset_in_child();
        signals::give_back();
        signals::restore_mask();
        return 0;
    }
    super::names::note_own_child(result as pid_t);
    append(Call::Fork, 0, result, &[]);
    errno::c(result) as pid_t
}

/// # Safety
/// As for `wait4`.
unsafe fn wait_any(status: *mut c_int, usage: *mut rusage, live: impl FnOnce(*mut c_int, *mut rusage) -> i64) -> pid_t {
    let mut own = (0 as c_int, std::mem::MaybeUninit::<rusage>::zeroed());
    let at = &raw mut own;
    // SAFETY: live.
    let result = unsafe { structure(Call::Wait, 0, &raw mut (*at).0, || live(&raw mut (*at).0, (*at).1.as_mut_ptr())) };
    // SAFETY: the program's, writable; the usage is zeroes in the follower.
    unsafe {
        if result >= 0 && !status.is_null() {
            *status = own.0;
        }
        if result >= 0 && !usage.is_null() {
            // Not in the trace: it is zero in both members.
            *usage = std::mem::zeroed();
        }
    }
    errno::c(result) as pid_t
}

/// What comes then has another memory, which nobody records or follows.
fn before_exec() {
    engine::refuse("the program replaces itself by another one (exec): have tcpr run start that one itself");
}

/// # Safety
/// As for `posix_spawn`.
unsafe fn spawn(pid: *mut pid_t, live: impl FnOnce(*mut pid_t) -> c_int) -> c_int {
    let mut child: pid_t = 0;
    let follower = follows();
    let result = told(Call::Fork, 0, || {
        let error = signals::with_the_programs_mask(|| thread::outside(|| live(&raw mut child)));
        if error == 0 {
            super::names::note_own_child(child);
            i64::from(child)
        } else {
            -i64::from(error)
        }
    });
    if result < 0 {
        return -result as c_int;
    }
    if follower && child == 0 {
        super::names::note_child(result as pid_t);
    }
    if !pid.is_null() {
        // SAFETY: the program's, writable.
        unsafe { *pid = result as pid_t };
    }
    0
}

hooks! {
    fn fork() -> pid_t {
        fork_any()
    }

    // Its child may do nothing but exec: a fork serves, too.
    fn vfork() -> pid_t {
        fork_any()
    }

    fn _Fork() -> pid_t {
        fork_any()
    }

    fn waitpid(pid: pid_t, status: *mut c_int, options: c_int) -> pid_t {
        wait_any(status, std::ptr::null_mut(), |status, _| live!(next(pid, status, options)))
    }

    fn wait(status: *mut c_int) -> pid_t {
        wait_any(status, std::ptr::null_mut(), |status, _| live!(next(status)))
    }

    fn wait3(status: *mut c_int, options: c_int, usage: *mut rusage) -> pid_t {
        wait_any(status, usage, |status, usage| live!(next(status, options, usage)))
    }

    fn wait4(pid: pid_t, status: *mut c_int, options: c_int, usage: *mut rusage) -> pid_t {
        wait_any(status, usage, |status, usage| live!(next(pid, status, options, usage)))
    }

    fn waitid(kind: idtype_t, id: id_t, info: *mut siginfo_t, options: c_int) -> c_int {
        errno::c(structure(Call::Wait, 1, info, || live!(next(kind, id, info, options)))) as c_int
    }

    fn kill(pid: pid_t, signal: c_int) -> c_int {
        let to = super::names::to_kernel_pid(pid);
        errno::c(told(Call::Misc, libc::SYS_kill as i32, || live!(next(to, signal)))) as c_int
    }

    fn killpg(group: pid_t, signal: c_int) -> c_int {
        let to = super::names::to_kernel_pid(group);
        errno::c(told(Call::Misc, libc::SYS_kill as i32, || live!(next(to, signal)))) as c_int
    }

    fn sigqueue(pid: pid_t, signal: c_int, value: sigval) -> c_int {
        let to = super::names::to_kernel_pid(pid);
        errno::c(told(Call::Misc, libc::SYS_rt_sigqueueinfo as i32, || live!(next(to, signal, value)))) as c_int
    }

    fn system(command: *const c_char) -> c_int {
        // The result is a status.
        if follows() {
            if let Some(taken) = take(Call::Wait, SYSTEM) {
                let result = taken.result();
                taken.done();
                return result as c_int;
            }
        }
        let result = signals::with_the_programs_mask(|| thread::outside(|| next(command)));
        append(Call::Wait, SYSTEM, result.into(), &[]);
        result
    }

    fn posix_spawn(pid: *mut pid_t, path: *const c_char, actions: *const c_void, attributes: *const c_void, arguments: *const *mut c_char, environment: *const *mut c_char) -> c_int {
        spawn(pid, |pid| next(pid, path, actions, attributes, arguments, environment))
    }

    fn posix_spawnp(pid: *mut pid_t, path: *const c_char, actions: *const c_void, attributes: *const c_void, arguments: *const *mut c_char, environment: *const *mut c_char) -> c_int {
        spawn(pid, |pid| next(pid, path, actions, attributes, arguments, environment))
    }

    fn execve(path: *const c_char, arguments: *const *const c_char, environment: *const *const c_char) -> c_int {
        before_exec();
        next(path, arguments, environment)
    }

    fn execv(path: *const c_char, arguments: *const *const c_char) -> c_int {
        before_exec();
        next(path, arguments)
    }

    fn execvp(path: *const c_char, arguments: *const *const c_char) -> c_int {
        before_exec();
        next(path, arguments)
    }

    fn execvpe(path: *const c_char, arguments: *const *const c_char, environment: *const *const c_char) -> c_int {
        before_exec();
        next(path, arguments, environment)
    }

    fn _exit(status: c_int) -> () {
        start::exit(status);
        thread::outside(|| next(status));
        raw::exit_group(status)
    }

    fn _Exit(status: c_int) -> () {
        start::exit(status);
        thread::outside(|| next(status));
        raw::exit_group(status)
    }

    fn syscall(number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long {
        // What has a hook goes by it.
        match number {
            libc::SYS_getrandom => super::names::getrandom(a as *mut c_void, b as usize, c as u32) as c_long,
            libc::SYS_gettid => super::names::gettid().into(),
            libc::SYS_getpid => super::names::getpid().into(),
            libc::SYS_clock_gettime => super::clocks::clock_gettime(a as c_int, b as *mut libc::timespec).into(),
            libc::SYS_accept4 => super::sockets::accept4(a as c_int, b as *mut libc::sockaddr, c as *mut libc::socklen_t, d as c_int).into(),
            // Nobody could see what goes through its rings.
            libc::SYS_io_uring_setup => errno::c(-i64::from(libc::ENOSYS)),
            _ => thread::outside(|| next(number, a, b, c, d, e, f)),
        }
    }
}
