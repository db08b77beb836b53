//! Waits for several descriptors.

use std::ffi::c_int;

use libc::{epoll_event, fd_set, nfds_t, pollfd, sigset_t, size_t, timespec, timeval};
use tcpr_session::trace::Call;

use super::exported::hooks;
use crate::activity::{self, follows};
use crate::engine::{append, take};
use crate::forms::{live, slice};
use crate::snapshot::{self, park};
use crate::{descriptors, errno, handlers, next, partner, raw, signals, thread};

/// A long wait of the first thread's goes in pieces: between them it looks whether a snapshot is asked for.
struct Pieces {
    is_long: bool,
    /// When it is over, by the kernel's clock; `None`: never.
    until: Option<i64>,
}

impl Pieces {
    /// Of a wait that takes so many nanoseconds; `None`: without an end.
    fn of(timeout: Option<i64>) -> Pieces {
        let is_long = thread::id() == 0 && timeout.is_none_or(|ns| ns > snapshot::LOOK_NS);
        let end = |ns: i64| raw::clock_ns(libc::CLOCK_MONOTONIC).saturating_add(ns);
        Pieces { is_long, until: timeout.filter(|_| is_long).map(end) }
    }

    /// How long the next piece is; `None`: the wait is made as the program says.
    fn next(&self) -> Option<i64> {
        if !self.is_long || !activity::records() || partner::is_locked_in() {
            return None;
        }
        let left = self.until.map_or(snapshot::LOOK_NS, |until| until - raw::clock_ns(libc::CLOCK_MONOTONIC));
        Some(left.clamp(1_000_000, snapshot::LOOK_NS))
    }

    /// Whether a piece that found nothing was the last one.
    fn is_over(&self) -> bool {
        self.until.is_some_and(|until| raw::clock_ns(libc::CLOCK_MONOTONIC) >= until)
    }
}

/// A wait until something is there, or it is over. `live` waits for a piece, or as the program says. `None`: the trace tells what
/// it gives.
fn wait(timeout: Option<i64>, mut live: impl FnMut(Option<i64>) -> i64) -> Option<i64> {
    let pieces = Pieces::of(timeout);
    loop {
        snapshot::at_wait();
        if follows() {
            return None;
        }
        let piece = pieces.next();
        let result = park::wait(park::For::Kernel, || live(piece))?;
        if piece.is_none() || result != 0 || pieces.is_over() {
            return Some(result);
        }
    }
}

fn ns_of(time: *const timespec) -> Option<i64> {
    // SAFETY: null, or the program's, which the kernel is about to read.
    unsafe { time.as_ref() }.map(|time| time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec))
}

fn ns_of_ms(ms: c_int) -> Option<i64> {
    (ms >= 0).then_some(i64::from(ms) * 1_000_000)
}

fn of_ns(ns: i64) -> timespec {
    timespec { tv_sec: ns / 1_000_000_000, tv_nsec: ns % 1_000_000_000 }
}

const EACH: usize = size_of::<epoll_event>();

/// What the program has given with the watches of these events.
fn datas(events: &[u8]) -> impl Iterator<Item = u64> + '_ {
    const AT: usize = std::mem::offset_of!(epoll_event, u64);
    events.chunks_exact(EACH).filter_map(|event| event.get(AT..AT + 8)?.try_into().ok().map(u64::from_ne_bytes))
}

/// # Safety
/// As for `epoll_wait`.
unsafe fn wait_epoll(
    epoll: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout: Option<i64>,
    mask: *const sigset_t,
    live: impl Fn(Option<&sigset_t>) -> i64,
) -> i64 {
    let live = |piece: Option<i64>| {
        let set = handlers::mask_of_wait(mask).map(handlers::set_of);
        let Some(ns) = piece else { return live(set.as_ref()) };
        let set = set.as_ref().map_or(mask, std::ptr::from_ref);
        // SAFETY: as the caller says.
        live!(unsafe { next::epoll_pwait(epoll, events, max, (ns as u64).div_ceil(1_000_000) as c_int, set) })
    };
    let result = loop {
        if let Some(result) = wait(timeout, &live) {
            break result;
        }
        // After a promotion it waits anew.
        if let Some(taken) = take(Call::EpollWait, epoll) {
            let result = taken.result();
            taken.check_room(EACH * max.max(0) as usize);
            // SAFETY: as the caller says; they fit.
            unsafe { std::ptr::copy_nonoverlapping(taken.data().as_ptr(), events.cast(), taken.data().len()) };
            descriptors::delivered(epoll, datas(taken.data()));
            taken.done();
            return result;
        }
    };
    // SAFETY: so many events were filled.
    let bytes = unsafe { slice(events.cast(), EACH * result.max(0) as usize) };
    // A handler may renew a watch.
    descriptors::delivered(epoll, datas(bytes));
    signals::deliver_in(mask);
    append(Call::EpollWait, epoll, result, if bytes.is_empty() { &[] } else { std::slice::from_ref(&bytes) });
    result
}

/// # Safety
/// As for `poll`.
unsafe fn wait_poll(
    fds: *mut pollfd,
    n: nfds_t,
    timeout: Option<i64>,
    mask: *const sigset_t,
    live: impl Fn(Option<&sigset_t>) -> i64,
) -> i64 {
    let live = |piece: Option<i64>| {
        let set = handlers::mask_of_wait(mask).map(handlers::set_of);
        let Some(ns) = piece else { return live(set.as_ref()) };
        let set = set.as_ref().map_or(mask, std::ptr::from_ref);
        let time = of_ns(ns);
        // SAFETY: as the caller says.
        live!(unsafe { next::ppoll(fds, n, &raw const time, set) })
    };
    let list = || -> &mut [pollfd] {
        if fds.is_null() {
            return &mut [];
        }
        // SAFETY: as the caller says.
        unsafe { std::slice::from_raw_parts_mut(fds, n as usize) }
    };
    let result = loop {
        if let Some(result) = wait(timeout, &live) {
            break result;
        }
        // After a promotion it waits anew.
        if let Some(taken) = take(Call::Poll, n as i32) {
            let result = taken.result();
            let list = list();
            if result >= 0 {
                list.iter_mut().for_each(|one| one.revents = 0);
            }
            for pair in taken.data().chunks_exact(4) {
                let (place, what) = (u16::from_ne_bytes([pair[0], pair[1]]), i16::from_ne_bytes([pair[2], pair[3]]));
                if let Some(one) = list.get_mut(usize::from(place)) {
                    one.revents = what;
                }
            }
            taken.done();
            return result;
        }
    };
    signals::deliver_in(mask);
    if result <= 0 {
        append(Call::Poll, n as i32, result, &[]);
        return result;
    }
    let list = list();
    // In groups, without memory of our own.
    let mut pairs = [[0u8; 4]; 256];
    let mut count = 0;
    for (place, one) in list.iter().enumerate().filter(|(_, one)| one.revents != 0) {
        if let Some(pair) = pairs.get_mut(count) {
            let [a, b] = (place as u16).to_ne_bytes();
            let [c, d] = one.revents.to_ne_bytes();
            *pair = [a, b, c, d];
            count += 1;
        } else {
            break;
        }
    }
    if count == pairs.len() {
        return append_many_places(list, n as i32, result);
    }
    append(Call::Poll, n as i32, result, &[pairs[..count].as_flattened()]);
    result
}

/// More places than usual: room for as many as numbers go.
#[cold]
#[inline(never)]
fn append_many_places(list: &[pollfd], n: i32, result: i64) -> i64 {
    let mut pairs = [[0u8; 4]; 65536];
    let mut count = 0;
    for (place, one) in list.iter().enumerate().filter(|(_, one)| one.revents != 0).take(pairs.len()) {
        let [a, b] = (place as u16).to_ne_bytes();
        let [c, d] = one.revents.to_ne_bytes();
        pairs[count] = [a, b, c, d];
        count += 1;
    }
    append(Call::Poll, n, result, &[pairs[..count].as_flattened()]);
    result
}

/// # Safety
/// As for `pselect`.
unsafe fn select_for(
    n: c_int,
    sets: [*mut fd_set; 3],
    timeout: Option<timespec>,
    left: &mut timespec,
    mask: *const sigset_t,
) -> i64 {
    let each = (n.max(0) as usize).div_ceil(64) * 8;
    let left_at: *mut timespec = left;
    let mut saved = [[0u8; SETS]; 3];
    let there = || sets.iter().filter(|set| !set.is_null()).map(|set| set.cast::<u8>());
    let mut live = |piece: Option<i64>| {
        let set = handlers::mask_of_wait(mask).map(handlers::set_of);
        let set = set.as_ref().map_or(mask, std::ptr::from_ref);
        let [read, write, except] = sets;
        let time = piece.map(of_ns).or(timeout);
        let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        if piece.is_some() {
            // SAFETY: as the caller says: sets have room for `n` descriptors.
            there().zip(&mut saved).for_each(|(set, to)| unsafe { set.copy_to_nonoverlapping(to.as_mut_ptr(), each) });
        }
        // SAFETY: as the caller says.
        let result = live!(unsafe { next::pselect(n, read, write, except, time, set) });
        if piece.is_some() && result == 0 {
            // The next piece waits for the same.
            // SAFETY: as above.
            there().zip(&saved).for_each(|(set, from)| unsafe { set.copy_from_nonoverlapping(from.as_ptr(), each) });
        }
        result
    };
    let ns = timeout.as_ref().and_then(|time| ns_of(time));
    let result = loop {
        let begun = raw::clock_ns(libc::CLOCK_MONOTONIC);
        // Where the sets are larger than usual, the wait is made in one piece.
        let length = if each <= SETS { ns } else { Some(0) };
        if let Some(result) = wait(length, &mut live) {
            let rest = ns.map_or(0, |ns| ns - (raw::clock_ns(libc::CLOCK_MONOTONIC) - begun));
            if timeout.is_some() {
                *left = of_ns(if result == 0 { 0 } else { rest.max(0) });
            }
            break result;
        }
        // After a promotion it waits anew.
        if let Some(taken) = take(Call::Select, n) {
            let result = taken.result();
            let (bytes, time) = taken.data().split_at(taken.data().len().saturating_sub(size_of::<timespec>()));
            // SAFETY: as the caller says: sets have room for `n` descriptors.
            unsafe {
                for (set, bytes) in there().zip(bytes.chunks_exact(each.max(1))) {
                    std::ptr::copy_nonoverlapping(bytes.as_ptr(), set, bytes.len());
                }
                if time.len() == size_of::<timespec>() {
                    std::ptr::copy_nonoverlapping(time.as_ptr(), left_at.cast::<u8>(), time.len());
                }
            }
            taken.done();
            return result;
        }
    };
    if result == 0 {
        // SAFETY: as above.
        there().for_each(|set| unsafe { set.write_bytes(0, each) });
    }
    signals::deliver_in(mask);
    let mut parts: [&[u8]; 4] = [&[]; 4];
    if result >= 0 {
        for (part, set) in parts.iter_mut().zip(sets) {
            // SAFETY: as the caller says.
            *part = unsafe { slice(set.cast(), each) };
        }
    }
    // SAFETY: live.
    parts[3] = unsafe { slice(left_at.cast(), size_of::<timespec>()) };
    append(Call::Select, n, result, &parts);
    result
}

/// Bytes of a set of as many descriptors as programs have that call `select`, and more.
const SETS: usize = 1024;

fn of_ms(ms: c_int) -> timespec {
    timespec { tv_sec: (ms / 1000).into(), tv_nsec: (ms % 1000 * 1_000_000).into() }
}

/// # Safety
/// As for `poll`.
unsafe fn poll_ms(fds: *mut pollfd, n: nfds_t, timeout: c_int, next: impl Fn() -> c_int) -> i64 {
    // SAFETY: as the caller says.
    unsafe {
        wait_poll(fds, n, ns_of_ms(timeout), std::ptr::null(), |set| match set {
            None => live!(next()),
            Some(set) => {
                let time = of_ms(timeout.max(0));
                let time = if timeout < 0 { std::ptr::null() } else { &raw const time };
                live!(next::ppoll(fds, n, time, set))
            }
        })
    }
}

hooks! {
    fn epoll_wait(epoll: c_int, events: *mut epoll_event, max: c_int, timeout: c_int) -> c_int {
        errno::c(wait_epoll(epoll, events, max, ns_of_ms(timeout), std::ptr::null(), |set| match set {
            None => live!(next(epoll, events, max, timeout)),
            Some(set) => live!(next::epoll_pwait(epoll, events, max, timeout, set)),
        })) as c_int
    }

    fn epoll_pwait(epoll: c_int, events: *mut epoll_event, max: c_int, timeout: c_int, mask: *const sigset_t) -> c_int {
        errno::c(wait_epoll(epoll, events, max, ns_of_ms(timeout), mask, |set| {
            live!(next(epoll, events, max, timeout, set.map_or(mask, std::ptr::from_ref)))
        })) as c_int
    }

    fn epoll_pwait2(epoll: c_int, events: *mut epoll_event, max: c_int, timeout: *const timespec, mask: *const sigset_t) -> c_int {
        errno::c(wait_epoll(epoll, events, max, ns_of(timeout), mask, |set| {
            live!(next(epoll, events, max, timeout, set.map_or(mask, std::ptr::from_ref)))
        })) as c_int
    }

    fn poll(fds: *mut pollfd, n: nfds_t, timeout: c_int) -> c_int {
        errno::c(poll_ms(fds, n, timeout, || next(fds, n, timeout))) as c_int
    }

    fn __poll_chk(fds: *mut pollfd, n: nfds_t, timeout: c_int, size: size_t) -> c_int {
        errno::c(poll_ms(fds, n, timeout, || next(fds, n, timeout, size))) as c_int
    }

    fn ppoll(fds: *mut pollfd, n: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int {
        errno::c(wait_poll(fds, n, ns_of(timeout), mask, |set| live!(next(fds, n, timeout, set.map_or(mask, std::ptr::from_ref))))) as c_int
    }

    fn __ppoll_chk(fds: *mut pollfd, n: nfds_t, timeout: *const timespec, mask: *const sigset_t, size: size_t) -> c_int {
        errno::c(wait_poll(fds, n, ns_of(timeout), mask, |set| live!(next(fds, n, timeout, set.map_or(mask, std::ptr::from_ref), size)))) as c_int
    }

    fn select(n: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *mut timeval) -> c_int {
        let time = timeout.as_ref().map(|t| timespec { tv_sec: t.tv_sec, tv_nsec: t.tv_usec * 1000 });
        let mut left = time.unwrap_or(timespec { tv_sec: 0, tv_nsec: 0 });
        let result = select_for(n, [read, write, except], time, &mut left, std::ptr::null());
        if let Some(timeout) = timeout.as_mut() {
            *timeout = timeval { tv_sec: left.tv_sec, tv_usec: left.tv_nsec / 1000 };
        }
        errno::c(result) as c_int
    }

    fn pselect(n: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *const timespec, mask: *const sigset_t) -> c_int {
        let time = timeout.as_ref().copied();
        let mut left = timespec { tv_sec: 0, tv_nsec: 0 };
        errno::c(select_for(n, [read, write, except], time, &mut left, mask)) as c_int
    }
}
