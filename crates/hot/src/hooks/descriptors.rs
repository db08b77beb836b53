//! Making, copying and closing descriptors.

use std::ffi::{c_int, c_long, c_uint, c_void};

use libc::{epoll_event, sigset_t, size_t};
use tcpr_session::trace::{Call, Program};

use super::exported::hooks;
use crate::activity::{follows, is_threaded};
use crate::descriptors::{self, Kind, BLOCKING};
use crate::engine::{append, take};
use crate::forms::live;
use crate::{errno, raw};

/// One new descriptor. The follower makes one as well, whose number becomes the leader's.
pub fn new_one(call: Call, fd: i32, kind: Kind, blocking: bool, live: impl FnOnce() -> i64) -> i64 {
    if follows() {
        if let Some(taken) = take(call, fd) {
            let theirs = taken.result();
            if theirs >= 0 {
                let ours = live();
                if ours < 0 {
                    taken.diverges(Program::Gets(ours));
                }
                raw::move_to(ours as i32, theirs as i32);
                descriptors::set(theirs as i32, kind, blocking);
            }
            taken.done();
            return theirs;
        }
    }
    let result = live();
    if result >= 0 {
        descriptors::set(result as i32, kind, blocking);
    }
    append(call, fd, result, &[]);
    result
}

/// Two new descriptors.
///
/// # Safety
/// `to` is writable.
unsafe fn new_two(to: *mut [c_int; 2], blocking: bool, live: impl FnOnce() -> i64) -> i64 {
    let mut result;
    'done: {
        if follows() {
            if let Some(taken) = take(Call::NewFd, 0) {
                result = taken.result();
                if result >= 0 {
                    let ours = live();
                    let words = |at: usize| Some(i32::from_ne_bytes(*taken.data().get(at..)?.first_chunk()?));
                    let (Some(a), Some(b), true) = (words(0), words(4), ours >= 0) else {
                        taken.diverges(Program::Gets(ours));
                    };
                    // SAFETY: as the caller says.
                    unsafe {
                        if *to != [a, b] {
                            let high = (*to).map(|fd| raw::fcntl(fd, libc::F_DUPFD_CLOEXEC, 4096) as i32);
                            let cloexec = raw::fcntl((*to)[0], libc::F_GETFD, 0);
                            for fd in *to {
                                raw::raw!(SYS_close, fd);
                            }
                            for (from, to) in high.into_iter().zip([a, b]) {
                                raw::move_to(from, to);
                                raw::fcntl(to, libc::F_SETFD, cloexec);
                            }
                            *to = [a, b];
                        }
                    }
                }
                taken.done();
                break 'done;
            }
        }
        result = live();
        // SAFETY: as the caller says.
        let ends = unsafe { *to };
        let bytes = ends.map(i32::to_ne_bytes);
        append(Call::NewFd, 0, result, &[bytes.as_flattened()]);
    }
    if result >= 0 {
        // SAFETY: as the caller says.
        for fd in unsafe { *to } {
            descriptors::set(fd, Kind::Pipe, blocking);
        }
        // SAFETY: as the caller says.
        descriptors::set_pair(unsafe { *to });
    } else {
        result = result.max(-4095);
    }
    result
}

/// A copy of a descriptor; both members make it. Threads get numbers in the order of the trace.
fn copied(from: c_int, live: impl FnOnce() -> i64) -> c_int {
    let result = if is_threaded() { copied_in_order(from, live) } else { live() };
    if result >= 0 && result != i64::from(from) {
        descriptors::copy(from, result as c_int);
    }
    errno::c(result) as c_int
}

fn copied_in_order(from: c_int, live: impl FnOnce() -> i64) -> i64 {
    if follows() {
        if let Some(taken) = take(Call::NewFd, from) {
            let theirs = taken.result();
            if theirs >= 0 {
                let ours = live();
                if ours < 0 {
                    taken.diverges(Program::Gets(ours));
                }
                raw::move_to(ours as i32, theirs as i32);
            }
            taken.done();
            return theirs;
        }
    }
    let result = live();
    append(Call::NewFd, from, result, &[]);
    result
}

/// Closes, in the order of the trace if there are threads.
pub fn closed(fd: c_int, live: impl FnOnce() -> c_int) -> c_int {
    if is_threaded() {
        if follows() {
            if let Some(taken) = take(Call::Close, fd) {
                descriptors::forget(fd);
                let result = crate::thread::outside(live);
                taken.done();
                return result;
            }
        }
        append(Call::Close, fd, 0, &[]);
    }
    descriptors::forget(fd);
    crate::thread::outside(live)
}

fn close_range_here(first: c_uint, last: c_uint) {
    for fd in first.min(descriptors::MOST as c_uint)..last.saturating_add(1).min(descriptors::MOST as c_uint) {
        descriptors::forget(fd as c_int);
    }
}

/// `fcntl`.
///
/// # Safety
/// As for `fcntl`.
unsafe fn control(fd: c_int, command: c_int, argument: c_long, next: impl FnOnce(c_long) -> c_int) -> c_int {
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => copied(fd, || errno::kernel(next(argument).into())),
        libc::F_SETOWN => next(crate::processes::to_kernel_pid(argument as libc::pid_t).into()),
        libc::F_SETFL => {
            descriptors::set_flag(fd, BLOCKING, argument as c_int & libc::O_NONBLOCK == 0);
            next(argument)
        }
        _ => next(argument),
    }
}

hooks! {
    fn pipe(to: *mut c_int) -> c_int {
        errno::c(new_two(to.cast(), true, || live!(next(to)))) as c_int
    }

    fn pipe2(to: *mut c_int, flags: c_int) -> c_int {
        errno::c(new_two(to.cast(), flags & libc::O_NONBLOCK == 0, || live!(next(to, flags)))) as c_int
    }

    fn socketpair(domain: c_int, kind: c_int, protocol: c_int, to: *mut c_int) -> c_int {
        errno::c(new_two(to.cast(), kind & libc::SOCK_NONBLOCK == 0, || live!(next(domain, kind, protocol, to)))) as c_int
    }

    fn eventfd(value: c_uint, flags: c_int) -> c_int {
        let fd = new_one(Call::NewFd, 0, Kind::Event, flags & libc::O_NONBLOCK == 0, || live!(next(value, flags)));
        if fd >= 0 {
            descriptors::set_counter(fd as c_int);
        }
        errno::c(fd) as c_int
    }

    fn timerfd_create(clock: c_int, flags: c_int) -> c_int {
        errno::c(new_one(Call::NewFd, 0, Kind::Timer, flags & libc::O_NONBLOCK == 0, || live!(next(clock, flags)))) as c_int
    }

    fn timerfd_settime(fd: c_int, flags: c_int, new: *const libc::itimerspec, old: *mut libc::itimerspec) -> c_int {
        let mut own = *new;
        if flags & libc::TFD_TIMER_ABSTIME != 0 && (own.it_value.tv_sec != 0 || own.it_value.tv_nsec != 0) {
            // Times that count from a machine's start are shifted; those of the calendar lie far above and are not.
            let monotonic = own.it_value.tv_sec < 1_000_000_000;
            if monotonic {
                own.it_value = crate::clocks::to_kernel(libc::CLOCK_MONOTONIC, own.it_value);
            }
        }
        next(fd, flags, &raw const own, old)
    }

    fn signalfd(fd: c_int, mask: *const sigset_t, flags: c_int) -> c_int {
        if fd >= 0 {
            return next(fd, mask, flags);
        }
        errno::c(new_one(Call::NewFd, 0, Kind::Timer, flags & libc::O_NONBLOCK == 0, || live!(next(fd, mask, flags)))) as c_int
    }

    fn inotify_init() -> c_int {
        errno::c(new_one(Call::NewFd, 0, Kind::Timer, true, || live!(next()))) as c_int
    }

    fn inotify_init1(flags: c_int) -> c_int {
        errno::c(new_one(Call::NewFd, 0, Kind::Timer, flags & libc::O_NONBLOCK == 0, || live!(next(flags)))) as c_int
    }

    fn epoll_create(size: c_int) -> c_int {
        errno::c(new_one(Call::NewFd, 0, Kind::Epoll, false, || live!(next(size)))) as c_int
    }

    fn epoll_create1(flags: c_int) -> c_int {
        errno::c(new_one(Call::NewFd, 0, Kind::Epoll, false, || live!(next(flags)))) as c_int
    }

    fn epoll_ctl(epoll: c_int, operation: c_int, fd: c_int, event: *mut epoll_event) -> c_int {
        let result = crate::thread::outside(|| next(epoll, operation, fd, event));
        if result == 0 {
            match event.as_ref() {
                Some(event) if operation != libc::EPOLL_CTL_DEL => {
                    let event = *event;
                    descriptors::watch(epoll, fd, event.events, event.u64);
                }
                _ => descriptors::unwatch(epoll, fd),
            }
        }
        result
    }

    fn close(fd: c_int) -> c_int {
        closed(fd, || next(fd))
    }

    fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
        if flags as c_uint & libc::CLOSE_RANGE_CLOEXEC == 0 {
            close_range_here(first, last);
        }
        crate::thread::outside(|| next(first, last, flags))
    }

    fn closefrom(first: c_int) -> () {
        close_range_here(first.max(0) as c_uint, c_uint::MAX);
        crate::thread::outside(|| next(first))
    }

    fn dup(fd: c_int) -> c_int {
        copied(fd, || live!(next(fd)))
    }

    fn dup2(from: c_int, to: c_int) -> c_int {
        copied(from, || live!(next(from, to)))
    }

    fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
        copied(from, || live!(next(from, to, flags)))
    }

    fn fcntl(fd: c_int, command: c_int, argument: c_long) -> c_int {
        control(fd, command, argument, |argument| crate::thread::outside(|| next(fd, command, argument)))
    }

    fn fcntl64(fd: c_int, command: c_int, argument: c_long) -> c_int {
        control(fd, command, argument, |argument| crate::thread::outside(|| next(fd, command, argument)))
    }

    fn ioctl(fd: c_int, command: libc::c_ulong, argument: *mut c_void) -> c_int {
        if command == libc::FIONBIO && !argument.is_null() {
            descriptors::set_flag(fd, BLOCKING, *argument.cast::<c_int>() == 0);
        }
        if !descriptors::is_traced(fd) || command == libc::FIONBIO || command == libc::FIOCLEX || command == libc::FIONCLEX {
            return crate::thread::outside(|| next(fd, command, argument));
        }
        const OF_SOCKETS: libc::c_ulong = 0x89;
        let gives: size_t = match command {
            libc::FIONREAD | libc::TIOCOUTQ => 4,
            _ if command >> 8 & 0xff == OF_SOCKETS => 40,
            _ => 0,
        };
        errno::c(crate::forms::filled(Call::Ioctl, fd, argument.cast(), gives, || live!(next(fd, command, argument)), |_| gives)) as c_int
    }
}
