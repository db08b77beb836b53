//! Processes. The follower has no children: what they were and how they ended comes from the trace.

use std::ffi::{c_char, c_int, c_long, c_void, CStr};
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

use libc::{id_t, idtype_t, pid_t, rusage, siginfo_t, sigval, FILE};
use tcpr_session::trace::Call;

use super::exported::hooks;
use crate::activity::{self, follows};
use crate::engine::{append, take};
use crate::forms::{live, structure, told};
use crate::{engine, errno, handlers, next, processes, raw, start, thread};

const SYSTEM: i32 = 1006;

fn fork_any() -> pid_t {
    if follows() {
        if let Some(taken) = take(Call::Fork, 0) {
            let result = taken.result();
            processes::note_child(result as pid_t);
            taken.done();
            return errno::c(result) as pid_t;
        }
    }
    // SAFETY: takes nothing.
    let result = live!(unsafe { next::fork() });
    if result == 0 {
        engine::reset_in_child();
        handlers::give_back();
        handlers::restore_mask();
        return 0;
    }
    processes::note_own_child(result as pid_t);
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
    activity::refuse("the program replaces itself by another one (exec): have tcpr run start that one itself");
}

/// # Safety
/// As for `posix_spawn`.
unsafe fn spawn(pid: *mut pid_t, live: impl FnOnce(*mut pid_t) -> c_int) -> c_int {
    let mut child: pid_t = 0;
    let follower = follows();
    let result = told(Call::Fork, 0, || {
        let error = handlers::with_the_programs_mask(|| thread::outside(|| live(&raw mut child)));
        if error == 0 {
            processes::note_own_child(child);
            i64::from(child)
        } else {
            -i64::from(error)
        }
    });
    if result < 0 {
        return -result as c_int;
    }
    if follower && child == 0 {
        processes::note_child(result as pid_t);
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
        let to = processes::to_kernel_pid(pid);
        errno::c(told(Call::Misc, libc::SYS_kill as i32, || live!(next(to, signal)))) as c_int
    }

    fn killpg(group: pid_t, signal: c_int) -> c_int {
        let to = processes::to_kernel_pid(group);
        errno::c(told(Call::Misc, libc::SYS_kill as i32, || live!(next(to, signal)))) as c_int
    }

    fn sigqueue(pid: pid_t, signal: c_int, value: sigval) -> c_int {
        let to = processes::to_kernel_pid(pid);
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
        let result = handlers::with_the_programs_mask(|| thread::outside(|| next(command)));
        append(Call::Wait, SYSTEM, result.into(), &[]);
        result
    }

    fn popen(command: *const c_char, mode: *const c_char) -> *mut FILE {
        open_command(command, mode)
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
            libc::SYS_accept => super::sockets::accept(a as c_int, b as *mut libc::sockaddr, c as *mut libc::socklen_t).into(),
            libc::SYS_accept4 => super::sockets::accept4(a as c_int, b as *mut libc::sockaddr, c as *mut libc::socklen_t, d as c_int).into(),
            // Nobody could see what goes through its rings.
            libc::SYS_io_uring_setup => errno::c(-i64::from(libc::ENOSYS)),
            _ => thread::outside(|| next(number, a, b, c, d, e, f)),
        }
    }
}

/// Streams of commands, and their processes.
static COMMANDS: [(AtomicPtr<FILE>, AtomicI32); 64] = [const { (AtomicPtr::new(std::ptr::null_mut()), AtomicI32::new(0)) }; 64];

/// `popen` out of calls that have hooks; the C library's would make its own.
///
/// # Safety
/// As for `popen`.
unsafe fn open_command(command: *const c_char, mode: *const c_char) -> *mut FILE {
    // SAFETY: NUL-terminated, says the caller.
    let how = unsafe { CStr::from_ptr(mode) }.to_bytes();
    let null = std::ptr::null_mut();
    let reads = how.contains(&b'r');
    if reads == how.contains(&b'w') {
        errno::set(libc::EINVAL);
        return null;
    }
    let mut ends = [-1; 2];
    // SAFETY: live.
    if unsafe { super::descriptors::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return null;
    }
    let (ours, theirs) = if reads { (ends[0], ends[1]) } else { (ends[1], ends[0]) };
    let mut child = 0;
    // SAFETY: the lists are live and end with null; actions are initialized before their use, and destroyed after.
    let error = unsafe {
        let mut actions: libc::posix_spawn_file_actions_t = std::mem::zeroed();
        libc::posix_spawn_file_actions_init(&raw mut actions);
        libc::posix_spawn_file_actions_adddup2(&raw mut actions, theirs, i32::from(reads));
        let arguments = [c"sh".as_ptr(), c"-c".as_ptr(), c"--".as_ptr(), command, std::ptr::null()];
        let at = (&raw const actions).cast();
        let error = posix_spawn(&raw mut child, c"/bin/sh".as_ptr(), at, std::ptr::null(), arguments.as_ptr().cast(), environ);
        libc::posix_spawn_file_actions_destroy(&raw mut actions);
        super::descriptors::close(theirs);
        error
    };
    let mode = if reads { c"r" } else { c"w" };
    let file = match error {
        // SAFETY: an open descriptor and a string.
        0 => unsafe { super::streams::stream_on(ours, mode.as_ptr()) },
        _ => null,
    };
    if file.is_null() {
        // SAFETY: ours.
        unsafe { super::descriptors::close(ours) };
        errno::set(if error == 0 { libc::ENOMEM } else { error });
        return null;
    }
    if !how.contains(&b'e') {
        raw::fcntl(ours, libc::F_SETFD, 0);
    }
    let free =
        |(at, _): &&(AtomicPtr<FILE>, AtomicI32)| at.compare_exchange(null, file, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    if let Some((_, pid)) = COMMANDS.iter().find(free) {
        pid.store(child, Ordering::Release);
    }
    file
}

extern "C" {
    static environ: *const *mut c_char;
}

/// As in the C library. Streams stay ours when nothing is recorded any more.
///
/// # Safety
/// As in the C library.
#[no_mangle]
pub unsafe extern "C-unwind" fn pclose(file: *mut FILE) -> c_int {
    let Some((at, child)) = COMMANDS.iter().find(|(at, _)| at.load(Ordering::Acquire) == file) else {
        return next::call_next!(pclose(file: *mut FILE) -> c_int);
    };
    let child = child.load(Ordering::Acquire);
    at.store(std::ptr::null_mut(), Ordering::Release);
    let mut status = -1;
    // SAFETY: the stream is open, says the caller; the status is live.
    unsafe {
        super::streams::fclose(file);
        while waitpid(child, &raw mut status, 0) < 0 {
            if errno::get() != libc::EINTR {
                return -1;
            }
        }
    }
    status
}
