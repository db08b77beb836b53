//! The descriptors of the leader. The leader lists them itself: a copy that had them, too, would keep connections open that the
//! program closes meanwhile, and files in epoll instances.

use super::format::{Descriptor, Make, Scratch, Words, OPTIONS};
use super::mappings::NAME;
use super::process::{line, number, number_in, read_file, read_link, skip};
use super::state::THREADS;
use crate::descriptors::{self, Kind};
use crate::raw::{self, raw};
use crate::{memory, partner};
use std::sync::atomic::Ordering;

/// There is no list; why has been said.
pub enum Failed {
    /// At another wait there may be one.
    Now,
    /// Something cannot be kept.
    Ever,
}

fn ever(why: std::fmt::Arguments<'_>) -> Failed {
    memory::say_why(why);
    Failed::Ever
}

/// Lists them. Returns how many there are.
pub fn list(s: &mut Scratch) -> Result<usize, Failed> {
    let n = read_file(format_args!("/proc/self/status"), &mut s.buffer[..8192]);
    // So many has the kernel room for.
    let most = number_in(&s.buffer[..n], b"FDSize:", 10).max(64);
    THREADS.store(number_in(&s.buffer[..n], b"Threads:", 10), Ordering::Relaxed);
    let mut count = 0;
    for fd in 0..most as i32 {
        let flags = raw::fcntl(fd, libc::F_GETFL, 0);
        if flags < 0 || partner::owns(fd) {
            continue;
        }
        let to = s.descriptors.get_mut(count).filter(|_| fd < descriptors::MOST as i32);
        *to.ok_or_else(|| ever(format_args!("it has too many descriptors")))? = describe(fd, flags as u32)?;
        count += 1;
    }
    Ok(count)
}

fn describe(fd: i32, flags: u32) -> Result<Descriptor, Failed> {
    let mut one = Descriptor {
        fd,
        make: Make::File,
        flags,
        cloexec: raw::fcntl(fd, libc::F_GETFD, 0) as u32,
        offset: 0,
        inode: 0,
        numbers: [0; 6],
        options: [-1; OPTIONS.len()],
        length: 0,
        name: [0; NAME],
    };
    if fd <= 2 {
        // The member's own.
        one.inode = pipe(fd).unwrap_or(0);
        return Ok(one);
    }
    if descriptors::kind(fd) == Kind::Connection {
        one.make = Make::StandIn;
        one.numbers[0] = option(fd, libc::SOL_SOCKET, libc::SO_DOMAIN);
        return Ok(one);
    }
    let mut name = [0; NAME];
    let n = read_link(format_args!("/proc/self/fd/{fd}"), &mut name[..NAME - 1]);
    let named = &name[..n];
    let mut info = [0; 2048];
    let n = read_file(format_args!("/proc/self/fdinfo/{fd}"), &mut info);
    let info = &info[..n];
    match descriptors::kind(fd) {
        Kind::Stream | Kind::OtherSocket => describe_socket(&mut one)?,
        Kind::Epoll => one.make = Make::Epoll,
        Kind::Timer if named.ends_with(b"[timerfd]") => describe_timer(&mut one, info),
        _ if named.starts_with(b"pipe:[") => {
            one.make = Make::Pipe;
            one.inode = pipe(fd).unwrap_or(0);
            check_empty(fd, "a pipe")?;
        }
        _ if descriptors::pair(fd) != 0 && named.starts_with(b"socket:[") => {
            one.make = Make::SocketPair;
            one.inode = descriptors::pair(fd).into();
            one.numbers[0] = option(fd, libc::SOL_SOCKET, libc::SO_TYPE);
            check_empty(fd, "a pair of sockets")?;
        }
        _ if named.ends_with(b"[eventfd]") => {
            one.make = Make::Event;
            one.numbers[0] = number_in(info, b"eventfd-count:", 16) as i64;
            one.numbers[1] = number_in(info, b"eventfd-semaphore:", 10) as i64;
        }
        _ if named.starts_with(b"/") && !named.ends_with(b" (deleted)") && named.len() < NAME - 1 => {
            one.name = name;
            one.offset = number_in(info, b"pos:", 10);
        }
        _ => return Err(ever(format_args!("its descriptor {fd} cannot be made again: {}", Words(named)))),
    }
    Ok(one)
}

/// Which pipe a descriptor is, if it is one.
fn pipe(fd: i32) -> Option<u64> {
    let mut name = [0; NAME];
    let n = read_link(format_args!("/proc/self/fd/{fd}"), &mut name);
    let mut rest = name[..n].strip_prefix(b"pipe:[")?;
    Some(number(&mut rest, 10))
}

/// What is under way between two parts of the program is in neither's memory. As a rule that is so for a moment.
fn check_empty(fd: i32, what: &str) -> Result<(), Failed> {
    if raw::poll_now(fd, libc::POLLIN) & libc::POLLIN != 0 {
        memory::say_why(format_args!("{what} of it is not empty: descriptor {fd}"));
        return Err(Failed::Now);
    }
    Ok(())
}

fn describe_socket(one: &mut Descriptor) -> Result<(), Failed> {
    one.make = Make::Socket;
    let mut length = NAME as u32;
    one.numbers[..4].copy_from_slice(
        &[libc::SO_DOMAIN, libc::SO_TYPE, libc::SO_PROTOCOL, libc::SO_ACCEPTCONN]
            .map(|name| option(one.fd, libc::SOL_SOCKET, name)),
    );
    if !matches!(one.numbers[0] as i32, libc::AF_INET | libc::AF_INET6 | libc::AF_UNIX) {
        return Err(ever(format_args!("its descriptor {} is a socket of family {}", one.fd, one.numbers[0])));
    }
    for (to, (level, name)) in one.options.iter_mut().zip(OPTIONS) {
        *to = option(one.fd, level, name).max(-1) as i32;
    }
    raw!(SYS_getsockname, one.fd, one.name.as_mut_ptr(), &raw mut length);
    one.length = length.min(NAME as u32);
    Ok(())
}

fn describe_timer(one: &mut Descriptor, info: &[u8]) {
    one.make = Make::Timer;
    one.numbers[0] = number_in(info, b"clockid:", 10) as i64;
    for (to, word) in [(1, &b"it_value:"[..]), (3, b"it_interval:")] {
        let mut rest = line(info, word).unwrap_or_default();
        skip(&mut rest, 1);
        one.numbers[to] = number(&mut rest, 10) as i64;
        skip(&mut rest, 2);
        one.numbers[to + 1] = number(&mut rest, 10) as i64;
    }
    one.numbers[5] = number_in(info, b"ticks:", 10) as i64;
}

fn option(fd: i32, level: i32, name: i32) -> i64 {
    let (mut value, mut length) = (0i32, 4u32);
    match raw!(SYS_getsockopt, fd, level, name, &raw mut value, &raw mut length) {
        0 => value.into(),
        error => error,
    }
}
