//! The descriptors of the leader, in the fresh process.

use std::ffi::c_void;

use super::format::{Descriptor, Make, OPTIONS};
use crate::descriptors;
use crate::forms::live;
use crate::next;
use crate::raw::{self, raw};

/// Which descriptor could not be made, and the error.
type Failed = (i32, i64);

/// Makes them all, and has the epoll instances watch them again.
pub fn all(all: &[Descriptor]) -> Result<(), Failed> {
    for (n, one) in all.iter().enumerate().filter(|(_, one)| one.fd > 2) {
        let (before, rest) = all.split_at(n);
        let done = match one.make {
            Make::Pipe | Make::SocketPair => both_ends(one, before, rest),
            _ => alone(one),
        };
        done.map_err(|error| (one.fd, error))?;
    }
    for one in all {
        for (epoll, events, data) in descriptors::watchers(one.fd) {
            let event = libc::epoll_event { events, u64: data };
            raw!(SYS_epoll_ctl, epoll, libc::EPOLL_CTL_ADD, one.fd, &raw const event);
        }
    }
    Ok(())
}

fn checked(result: i64) -> Result<i32, i64> {
    if result < 0 {
        Err(-result)
    } else {
        Ok(result as i32)
    }
}

fn alone(one: &Descriptor) -> Result<(), i64> {
    let flags = one.flags as i32;
    let nonblocking = flags & libc::O_NONBLOCK;
    let made = match one.make {
        Make::File => {
            let how = flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC);
            // The other end of a named pipe may not be there.
            let early = libc::O_NONBLOCK | libc::O_NOCTTY;
            let fd = checked(raw!(SYS_openat, libc::AT_FDCWD, one.name.as_ptr(), how | early, 0))?;
            raw::fcntl(fd, libc::F_SETFL, how.into());
            raw!(SYS_lseek, fd, one.offset, libc::SEEK_SET);
            fd
        }
        Make::Event => {
            let semaphore = if one.numbers[1] != 0 { libc::EFD_SEMAPHORE } else { 0 };
            checked(raw!(SYS_eventfd2, one.numbers[0], nonblocking | semaphore))?
        }
        Make::Timer => {
            let fd = checked(raw!(SYS_timerfd_create, one.numbers[0], nonblocking))?;
            let [_, s, ns, every_s, every_ns, ticks] = one.numbers;
            let first = if ticks > 0 { [0, 1] } else { [s, ns] };
            let time = [every_s, every_ns, first[0], first[1]];
            raw!(SYS_timerfd_settime, fd, 0, time.as_ptr(), 0);
            fd
        }
        Make::Epoll => checked(raw!(SYS_epoll_create1, 0))?,
        Make::StandIn => checked(raw!(SYS_socket, one.numbers[0], libc::SOCK_STREAM | nonblocking, 0))?,
        // It takes its number first: libtcpr knows it by that.
        Make::Socket => return socket(one),
        Make::Pipe | Make::SocketPair => return Ok(()),
    };
    if made != one.fd {
        checked(raw!(SYS_dup3, made, one.fd, 0))?;
        raw!(SYS_close, made);
    }
    raw::fcntl(one.fd, libc::F_SETFD, one.cloexec.into());
    Ok(())
}

/// A pipe or a pair of sockets, with all its descriptors.
fn both_ends(one: &Descriptor, before: &[Descriptor], rest: &[Descriptor]) -> Result<(), i64> {
    let is_pipe = one.make == Make::Pipe;
    // Pairs have two numbers, one after the other.
    let key = |d: &Descriptor| if is_pipe { d.inode } else { d.inode.div_ceil(2) };
    let is_same = |d: &&Descriptor| d.make == one.make && key(d) == key(one) && d.fd > 2;
    if before.iter().any(|d| is_same(&d)) {
        return Ok(());
    }
    let cloexec = |d: &Descriptor| if d.cloexec != 0 { libc::O_CLOEXEC } else { 0 };
    // Standard output, say: it is this member's.
    if let Some(own) = before.iter().find(|d| is_pipe && d.fd <= 2 && d.inode == one.inode) {
        for same in rest.iter().filter(is_same) {
            checked(raw!(SYS_dup3, own.fd, same.fd, cloexec(same)))?;
        }
        return Ok(());
    }
    let mut ends = [-1i32; 2];
    checked(match is_pipe {
        true => raw!(SYS_pipe2, ends.as_mut_ptr(), 0),
        false => raw!(SYS_socketpair, libc::AF_UNIX, one.numbers[0], 0, ends.as_mut_ptr()),
    })?;
    // Away from the numbers that are to be taken.
    let away = before.iter().chain(rest).map(|one| i64::from(one.fd)).max().unwrap_or(0) + 1;
    let [read, write] = ends.map(|fd| checked(raw::fcntl(fd, libc::F_DUPFD, away)));
    let high = [read?, write?];
    ends.iter().for_each(|fd| _ = raw!(SYS_close, *fd));
    for same in rest.iter().filter(is_same) {
        let second = if is_pipe { same.flags as i32 & libc::O_ACCMODE == libc::O_WRONLY } else { same.inode % 2 == 0 };
        checked(raw!(SYS_dup3, high[usize::from(second)], same.fd, cloexec(same)))?;
        raw::fcntl(same.fd, libc::F_SETFL, same.flags.into());
    }
    high.iter().for_each(|fd| _ = raw!(SYS_close, *fd));
    Ok(())
}

/// By the next library's calls: libtcpr is to know it.
fn socket(one: &Descriptor) -> Result<(), i64> {
    let [domain, kind, protocol, listens, ..] = one.numbers.map(|n| n as i32);
    // SAFETY: no pointers.
    let made = checked(live!(unsafe { next::socket(domain, kind, protocol) }))?;
    if made != one.fd {
        // SAFETY: no pointers.
        checked(live!(unsafe { next::dup3(made, one.fd, 0) }))?;
        // SAFETY: no pointers.
        live!(unsafe { next::close(made) });
    }
    for (value, (level, name)) in one.options.iter().zip(OPTIONS).filter(|(value, _)| **value >= 0) {
        let (mut now, mut length) = (0i32, 4u32);
        let got = raw!(SYS_getsockopt, one.fd, level, name, &raw mut now, &raw mut length);
        if got == 0 && now != *value {
            let at: *const c_void = std::ptr::from_ref(value).cast();
            // SAFETY: live, of this length.
            live!(unsafe { next::setsockopt(one.fd, level, name, at, 4) });
        }
    }
    let is_bound = one.name.get(2..one.length as usize).is_some_and(|address| address.iter().any(|b| *b != 0));
    if is_bound {
        unlink_own(one);
        // SAFETY: an address of this length.
        let bound = live!(unsafe { next::bind(one.fd, one.name.as_ptr().cast(), one.length) });
        // As where a program follows from its beginning: what only sends does not need it.
        descriptors::set_flag(one.fd, descriptors::BIND_FAILED, bound < 0);
        if listens > 0 {
            checked(bound)?;
        }
    }
    if listens > 0 {
        // SAFETY: no pointers.
        checked(live!(unsafe { next::listen(one.fd, BACKLOG) }))?;
    }
    raw::fcntl(one.fd, libc::F_SETFL, one.flags.into());
    raw::fcntl(one.fd, libc::F_SETFD, one.cloexec.into());
    Ok(())
}

/// The kernel does not tell what the program has asked for.
const BACKLOG: i32 = 1024;

/// A program makes its Unix socket anew where an old one lies.
fn unlink_own(one: &Descriptor) {
    let is_unix = one.numbers[0] as i32 == libc::AF_UNIX;
    if is_unix && one.name.get(2).is_some_and(|b| *b != 0) && (one.length as usize) < one.name.len() {
        raw!(SYS_unlinkat, libc::AT_FDCWD, one.name[2..].as_ptr(), 0);
    }
}
