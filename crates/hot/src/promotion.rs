//! Promotion: the follower's program gets the sockets.

use std::sync::atomic::Ordering;

use crate::descriptors;
use crate::hooks::shift_clocks;
use crate::partner::{self, HotConnection};
use crate::raw::{self, raw};

/// All at once: called when the trace is executed, before any call of the program goes on.
pub fn stand() {
    shift_clocks();
    let count = descriptors::connections().count();
    let each = size_of::<HotConnection>() + size_of::<Modes>();
    let bytes = (count * each).max(1);
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let at = raw!(SYS_mmap, 0, bytes, protection, flags, -1, 0);
    if at < 0 {
        crate::engine::diverge(format_args!("no memory for the list of {count} connections"));
    }
    // SAFETY: fresh memory of this size, and aligned; all zeroes is valid for both lists.
    let (list, modes) = unsafe {
        let list = at as *mut HotConnection;
        (std::slice::from_raw_parts_mut(list, count), std::slice::from_raw_parts_mut(list.add(count).cast::<Modes>(), count))
    };
    let n = collect(list);
    let list = &mut list[..n];
    for (to, one) in modes.iter_mut().zip(&*list) {
        *to = Modes::of(one.fd);
    }
    partner::stand(list);
    for (one, modes) in list.iter().zip(&*modes).filter(|(one, _)| one.adopted != 0) {
        modes.set(one.fd);
    }
    for (fd, connection) in descriptors::connections() {
        let first = descriptors::connections().find(|(_, other)| std::ptr::eq(*other, connection)).map_or(fd, |(fd, _)| fd);
        if first != fd {
            duplicate(first, fd);
        } else if !list.iter().any(|one| one.fd == fd && one.adopted != 0) {
            hang_up(fd);
        }
        watch_again(fd);
    }
    raw!(SYS_munmap, at, bytes);
}

/// What a descriptor is set to.
#[derive(Clone, Copy)]
struct Modes {
    cloexec: bool,
    nonblocking: bool,
}

impl Modes {
    fn of(fd: i32) -> Self {
        let has = |command, flag| raw::fcntl(fd, command, 0) & i64::from(flag) != 0;
        Self { cloexec: has(libc::F_GETFD, libc::FD_CLOEXEC), nonblocking: has(libc::F_GETFL, libc::O_NONBLOCK) }
    }

    fn set(self, fd: i32) {
        raw::fcntl(fd, libc::F_SETFD, if self.cloexec { libc::FD_CLOEXEC.into() } else { 0 });
        let (flags, nonblock) = (raw::fcntl(fd, libc::F_GETFL, 0), i64::from(libc::O_NONBLOCK));
        raw::fcntl(fd, libc::F_SETFL, if self.nonblocking { flags | nonblock } else { flags & !nonblock });
    }
}

/// The protected ones, each once; says how many.
fn collect(list: &mut [HotConnection]) -> usize {
    let mut n = 0;
    for (fd, connection) in descriptors::connections() {
        let Some(tuple) = connection.tuple() else { continue };
        if list[..n].iter().any(|one| one.tuple == tuple) {
            continue;
        }
        let (read, written) = (connection.read.load(Ordering::Relaxed), connection.written.load(Ordering::Relaxed));
        if let Some(to) = list.get_mut(n) {
            *to = HotConnection { fd, adopted: 0, read, written, tuple };
            n += 1;
        }
    }
    n
}

/// Another number of a connection that has its socket.
fn duplicate(from: i32, to: i32) {
    let Modes { cloexec, .. } = Modes::of(to);
    // libtcpr knows by its hook that both are one.
    // SAFETY: no pointers.
    unsafe { crate::next::dup3(from, to, if cloexec { libc::O_CLOEXEC } else { 0 }) };
}

/// A connection whose peer has gone.
fn hang_up(fd: i32) {
    let Modes { cloexec, nonblocking } = Modes::of(fd);
    let kind = libc::SOCK_STREAM | if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
    let mut ends = [-1i32; 2];
    if raw!(SYS_socketpair, libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) < 0 {
        return;
    }
    raw!(SYS_close, ends[1]);
    raw!(SYS_dup3, ends[0], fd, if cloexec { libc::O_CLOEXEC } else { 0 });
    raw!(SYS_close, ends[0]);
}

/// Registrations of the stand-in ended with it.
fn watch_again(fd: i32) {
    const ADD: i32 = libc::EPOLL_CTL_ADD;
    for (epoll, events, data) in descriptors::watchers(fd) {
        let event = libc::epoll_event { events, u64: data };
        raw!(SYS_epoll_ctl, epoll, ADD, fd, &raw const event);
    }
}
