//! Waits for several descriptors.

use std::ffi::c_int;

use libc::{epoll_event, fd_set, nfds_t, pollfd, sigset_t, size_t, timespec, timeval};
use tcpr_session::trace::Call;

use crate::engine::{append, follows, take};
use crate::forms::{hooks, live, slice};
use crate::{errno, next, raw, signals};

/// # Safety
/// As for `epoll_wait`.
unsafe fn wait_epoll(
    epoll: c_int,
    events: *mut epoll_event,
    max: c_int,
    mask: *const sigset_t,
    live: impl FnOnce(Option<&sigset_t>) -> i64,
) -> i64 {
    const EACH: usize = size_of::<epoll_event>();
    if follows() {
        if let Some(taken) = take(Call::EpollWait, epoll) {
            let result = taken.result();
            taken.check_room(EACH * max.max(0) as usize);
            // SAFETY: as the caller says; they fit.
            unsafe { std::ptr::copy_nonoverlapping(taken.data().as_ptr(), events.cast(), taken.data().len()) };
            taken.done();
            return result;
        }
    }
    let set = signals::mask_of_wait(mask).map(signals::set_of);
    let result = live(set.as_ref());
    signals::deliver_in(mask);
    // SAFETY: so many events were filled.
    let bytes = unsafe { slice(events.cast(), EACH * result.max(0) as usize) };
    append(Call::EpollWait, epoll, result, if bytes.is_empty() { &[] } else { std::slice::from_ref(&bytes) });
    result
}

/// # Safety
/// As for `poll`.
unsafe fn wait_poll(fds: *mut pollfd, n: nfds_t, mask: *const sigset_t, live: impl FnOnce(Option<&sigset_t>) -> i64) -> i64 {
    // SAFETY: as the caller says.
    let list: &mut [pollfd] = if fds.is_null() { &mut [] } else { unsafe { std::slice::from_raw_parts_mut(fds, n as usize) } };
    if follows() {
        if let Some(taken) = take(Call::Poll, n as i32) {
            let result = taken.result();
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
    }
    let set = signals::mask_of_wait(mask).map(signals::set_of);
    let result = live(set.as_ref());
    signals::deliver_in(mask);
    if result <= 0 {
        append(Call::Poll, n as i32, result, &[]);
        return result;
    }
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
/// As for `select`; `left` is live.
unsafe fn wait_select(
    n: c_int,
    sets: [*mut fd_set; 3],
    left: &mut timespec,
    mask: *const sigset_t,
    live: impl FnOnce(Option<&sigset_t>, &mut timespec) -> i64,
) -> i64 {
    let each = (n.max(0) as usize).div_ceil(64) * 8;
    let left_at: *mut timespec = left;
    if follows() {
        if let Some(taken) = take(Call::Select, n) {
            let result = taken.result();
            let (bytes, time) = taken.data().split_at(taken.data().len().saturating_sub(size_of::<timespec>()));
            // SAFETY: as the caller says: sets have room for `n` descriptors.
            unsafe {
                let given = sets.iter().filter(|set| !set.is_null()).zip(bytes.chunks_exact(each.max(1)));
                for (set, bytes) in given {
                    std::ptr::copy_nonoverlapping(bytes.as_ptr(), set.cast::<u8>(), bytes.len());
                }
                if time.len() == size_of::<timespec>() {
                    std::ptr::copy_nonoverlapping(time.as_ptr(), left_at.cast::<u8>(), time.len());
                }
            }
            taken.done();
            return result;
        }
    }
    let set = signals::mask_of_wait(mask).map(signals::set_of);
    let result = live(set.as_ref(), left);
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

fn of_ms(ms: c_int) -> timespec {
    timespec { tv_sec: (ms / 1000).into(), tv_nsec: (ms % 1000 * 1_000_000).into() }
}

/// # Safety
/// As for `poll`.
unsafe fn poll_ms(fds: *mut pollfd, n: nfds_t, timeout: c_int, next: impl FnOnce() -> c_int) -> i64 {
    // SAFETY: as the caller says.
    unsafe {
        wait_poll(fds, n, std::ptr::null(), |set| match set {
            None => live!(next()),
            Some(set) => {
                let time = of_ms(timeout.max(0));
                let time = if timeout < 0 { std::ptr::null() } else { &raw const time };
                live!(next::ppoll(fds, n, time, set))
            }
        })
    }
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
    // SAFETY: as the caller says.
    unsafe {
        wait_select(n, sets, left, mask, |set, left| {
            let set = set.map_or(mask, std::ptr::from_ref);
            let [read, write, except] = sets;
            let Some(time) = timeout else {
                return live!(next::pselect(n, read, write, except, std::ptr::null(), set));
            };
            let begun = raw::clock_ns(libc::CLOCK_MONOTONIC);
            let result = live!(next::pselect(n, read, write, except, &raw const time, set));
            let rest = time.tv_sec * 1_000_000_000 + time.tv_nsec - (raw::clock_ns(libc::CLOCK_MONOTONIC) - begun);
            let rest = if result == 0 { 0 } else { rest.max(0) };
            *left = timespec { tv_sec: rest / 1_000_000_000, tv_nsec: rest % 1_000_000_000 };
            result
        })
    }
}

hooks! {
    fn epoll_wait(epoll: c_int, events: *mut epoll_event, max: c_int, timeout: c_int) -> c_int {
        errno::c(wait_epoll(epoll, events, max, std::ptr::null(), |set| match set {
            None => live!(next(epoll, events, max, timeout)),
            Some(set) => live!(next::epoll_pwait(epoll, events, max, timeout, set)),
        })) as c_int
    }

    fn epoll_pwait(epoll: c_int, events: *mut epoll_event, max: c_int, timeout: c_int, mask: *const sigset_t) -> c_int {
        errno::c(wait_epoll(epoll, events, max, mask, |set| {
            live!(next(epoll, events, max, timeout, set.map_or(mask, std::ptr::from_ref)))
        })) as c_int
    }

    fn epoll_pwait2(epoll: c_int, events: *mut epoll_event, max: c_int, timeout: *const timespec, mask: *const sigset_t) -> c_int {
        errno::c(wait_epoll(epoll, events, max, mask, |set| {
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
        errno::c(wait_poll(fds, n, mask, |set| live!(next(fds, n, timeout, set.map_or(mask, std::ptr::from_ref))))) as c_int
    }

    fn __ppoll_chk(fds: *mut pollfd, n: nfds_t, timeout: *const timespec, mask: *const sigset_t, size: size_t) -> c_int {
        errno::c(wait_poll(fds, n, mask, |set| live!(next(fds, n, timeout, set.map_or(mask, std::ptr::from_ref), size)))) as c_int
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
