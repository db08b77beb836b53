//! Sockets, but for their data.

use std::ffi::{c_int, c_void};
use std::sync::atomic::Ordering;

use libc::{sockaddr, sockaddr_storage, socklen_t};
use tcpr_session::trace::{Accepted, Call, Program, ACCEPTED_MAX};

use super::exported::hooks;
use crate::activity::{diverge, follows};
use crate::descriptors::{self, Kind, BIND_FAILED, CONNECTING, UNDER_WAY};
use crate::engine::{append, take};
use crate::forms::{live, slice, told};
use crate::partner::Session;
use crate::raw::raw;
use crate::{errno, next, partner, raw, signals};

const KIND_OF_SOCKET: c_int = 0xf;

/// Puts an address where the program wants it.
///
/// # Safety
/// As for `accept`.
unsafe fn give_address(from: &[u8], address: *mut sockaddr, length: *mut socklen_t) {
    if address.is_null() || length.is_null() {
        return;
    }
    // SAFETY: as the caller says.
    unsafe {
        let room = (*length as usize).min(from.len());
        std::ptr::copy_nonoverlapping(from.as_ptr(), address.cast::<u8>(), room);
        *length = from.len() as socklen_t;
    }
}

/// A socket that stands for a connection, under the number of the leader's.
pub fn stand_in(number: i32, family: c_int, flags: c_int) {
    let family = if family == libc::AF_UNSPEC { libc::AF_INET } else { family };
    let made = raw!(SYS_socket, family, libc::SOCK_STREAM | flags, 0);
    if made < 0 {
        diverge(format_args!("no socket can be made: error {}", -made));
    }
    raw::move_to(made as i32, number);
}

/// # Safety
/// As for `accept4`.
unsafe fn accept_any(fd: c_int, address: *mut sockaddr, length: *mut socklen_t, flags: c_int) -> i64 {
    let blocking = flags & libc::SOCK_NONBLOCK == 0;
    if follows() {
        if let Some(taken) = take(Call::Accept, fd) {
            let result = taken.result();
            if result >= 0 {
                let Some(accepted) = Accepted::decode(taken.data()) else {
                    taken.diverges_in(format_args!("cannot read the address"));
                };
                let family = accepted.address.first_chunk().map_or(0, |&family| u16::from_ne_bytes(family));
                stand_in(result as i32, family.into(), flags);
                descriptors::set(result as i32, Kind::Connection, blocking);
                descriptors::set_connection(result as i32, accepted.session);
                // SAFETY: as the caller says.
                unsafe { give_address(accepted.address, address, length) };
            }
            taken.done();
            return result;
        }
    }
    if signals::window(fd, libc::POLLIN) {
        append(Call::Accept, fd, -i64::from(libc::EINTR), &[]);
        return -i64::from(libc::EINTR);
    }
    // SAFETY: all zeroes is a valid address.
    let mut own: sockaddr_storage = unsafe { std::mem::zeroed() };
    let mut own_length = size_of::<sockaddr_storage>() as socklen_t;
    // SAFETY: live and of this length.
    let result = live!(unsafe { next::accept4(fd, (&raw mut own).cast(), &raw mut own_length, flags) });
    if result < 0 {
        append(Call::Accept, fd, result, &[]);
        return result;
    }
    // SAFETY: live, and so much was written at most.
    let bytes = unsafe { slice((&raw const own).cast(), (own_length as usize).min(size_of::<sockaddr_storage>())) };
    let session = partner::session(result as i32).there();
    descriptors::set(result as i32, Kind::Connection, blocking);
    descriptors::set_connection(result as i32, session);
    // SAFETY: as the caller says.
    unsafe { give_address(bytes, address, length) };
    let mut data = [0; ACCEPTED_MAX];
    let n = Accepted { address: bytes, session }.encode(&mut data);
    append(Call::Accept, fd, result, &[&data[..n]]);
    result
}

/// # Safety
/// As for `connect`.
unsafe fn connect_to(fd: c_int, address: *const sockaddr, length: socklen_t, mut connect: impl FnMut() -> i64) -> i64 {
    let is_stream = matches!(descriptors::kind(fd), Kind::Stream | Kind::Connection);
    let began = |result: i64| result == 0 || result == -i64::from(libc::EINPROGRESS);
    if follows() {
        if let Some(taken) = take(Call::Connect, fd) {
            let result = taken.result();
            if is_stream && began(result) {
                descriptors::set_connection(fd, taken.data().try_into().ok());
            } else if !is_stream {
                raw!(SYS_connect, fd, address, length);
            }
            descriptors::set_flag(fd, UNDER_WAY, is_stream && result == -i64::from(libc::EINPROGRESS));
            taken.done();
            return result;
        }
    }
    let result = connect();
    let (mut session, mut connecting) = (None, false);
    if is_stream && began(result) {
        let found = partner::session(fd);
        connecting = matches!(found, Session::Coming);
        session = found.there();
        descriptors::set_connection(fd, session);
    }
    descriptors::set_flag(fd, UNDER_WAY, is_stream && result == -i64::from(libc::EINPROGRESS));
    match &session {
        Some(session) => append(Call::Connect, fd, result, &[session]),
        None => append(Call::Connect, fd, result, &[]),
    };
    // Asked again while it is under way, or when it is made: nothing has changed.
    if !matches!(-result as c_int, libc::EALREADY | libc::EISCONN) {
        descriptors::set_flag(fd, CONNECTING, connecting);
    }
    result
}

/// `bind` and `listen`, which the follower does in fact.
fn done_by_both(fd: c_int, what: &str, live: impl FnOnce() -> i64) -> i64 {
    if follows() {
        if let Some(taken) = take(Call::SocketCall, fd) {
            let theirs = taken.result();
            if theirs >= 0 {
                let ours = live();
                let lacks_bind = descriptors::has(fd, BIND_FAILED);
                if what == "bind" {
                    descriptors::set_flag(fd, BIND_FAILED, ours < 0);
                } else if ours < 0 || lacks_bind {
                    let cause = if lacks_bind { ", for its address or port cannot be had" } else { "" };
                    taken.diverges_in(format_args!("cannot {what}{cause} (error {})", -ours));
                }
            }
            taken.done();
            return theirs;
        }
    }
    let result = live();
    append(Call::SocketCall, fd, result, &[]);
    result
}

/// A call that gives a value with its length.
///
/// # Safety
/// As for `getsockopt`.
unsafe fn value(call: Call, fd: c_int, to: *mut c_void, length: *mut socklen_t, live: impl FnOnce() -> i64) -> i64 {
    // SAFETY: as the caller says.
    let room = unsafe { length.as_ref() }.map_or(0, |n| *n as usize);
    if follows() {
        if let Some(taken) = take(call, fd) {
            let result = taken.result();
            if let Some((size, bytes)) = taken.data().split_first_chunk() {
                if bytes.len() > room {
                    taken.diverges(Program::HasRoom(room));
                }
                // SAFETY: as the caller says; it fits.
                unsafe {
                    std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast::<u8>(), bytes.len());
                    *length = u32::from_ne_bytes(*size);
                }
            }
            taken.done();
            return result;
        }
    }
    let result = live();
    if result < 0 || length.is_null() {
        append(call, fd, result, &[]);
        return result;
    }
    // SAFETY: as the caller says.
    let size = unsafe { *length };
    // SAFETY: as the caller says: so much was filled.
    let bytes = unsafe { slice(to.cast(), (size as usize).min(room)) };
    append(call, fd, result, &[&size.to_ne_bytes(), bytes]);
    result
}

hooks! {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
        let is_stream = kind & KIND_OF_SOCKET == libc::SOCK_STREAM && matches!(domain, libc::AF_INET | libc::AF_INET6 | libc::AF_UNIX);
        let what = if is_stream { Kind::Stream } else { Kind::OtherSocket };
        let blocking = kind & libc::SOCK_NONBLOCK == 0;
        errno::c(super::descriptors::new_one(Call::Socket, domain, what, blocking, || {
            let result = live!(next(domain, kind, protocol));
            if result < 0 && follows() {
                // What this member lacks is lacking when it is promoted: until then any socket will do.
                return raw!(SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM | kind & !KIND_OF_SOCKET, 0);
            }
            result
        })) as c_int
    }

    fn accept(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int {
        errno::c(accept_any(fd, address, length, 0)) as c_int
    }

    fn accept4(fd: c_int, address: *mut sockaddr, length: *mut socklen_t, flags: c_int) -> c_int {
        errno::c(accept_any(fd, address, length, flags)) as c_int
    }

    fn connect(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int {
        errno::c(connect_to(fd, address, length, || live!(next(fd, address, length)))) as c_int
    }

    fn bind(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int {
        errno::c(done_by_both(fd, "bind", || live!(next(fd, address, length)))) as c_int
    }

    fn listen(fd: c_int, backlog: c_int) -> c_int {
        errno::c(done_by_both(fd, "listen", || live!(next(fd, backlog)))) as c_int
    }

    fn shutdown(fd: c_int, how: c_int) -> c_int {
        if descriptors::kind(fd) == Kind::Pipe {
            return crate::thread::outside(|| next(fd, how));
        }
        if follows() && descriptors::kind(fd) == Kind::Stream {
            crate::thread::outside(|| next(fd, how));
        }
        let result = told(Call::SocketCall, fd, || live!(next(fd, how)));
        if result >= 0 && how != libc::SHUT_RD {
            descriptors::connection(fd).iter().for_each(|c| c.shut.store(1, Ordering::Relaxed));
        }
        errno::c(result) as c_int
    }

    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, length: socklen_t) -> c_int {
        if follows() && descriptors::kind(fd) != Kind::Connection {
            crate::thread::outside(|| next(fd, level, name, value, length));
        }
        errno::c(told(Call::SocketCall, fd, || live!(next(fd, level, name, value, length)))) as c_int
    }

    fn getsockopt(fd: c_int, level: c_int, name: c_int, to: *mut c_void, length: *mut socklen_t) -> c_int {
        let result = value(Call::GetSockOpt, fd, to, length, || live!(next(fd, level, name, to, length)));
        if level == libc::SOL_SOCKET && name == libc::SO_ERROR {
            descriptors::set_flag(fd, UNDER_WAY, false);
        }
        errno::c(result) as c_int
    }

    fn getsockname(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int {
        errno::c(value(Call::Name, fd, address.cast(), length, || live!(next(fd, address, length)))) as c_int
    }

    fn getpeername(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int {
        errno::c(value(Call::Name, fd, address.cast(), length, || live!(next(fd, address, length)))) as c_int
    }
}
