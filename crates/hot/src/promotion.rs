//! Promotion: the follower's program gets the sockets.

use crate::activity::diverge;
use crate::partner::{self, HotConnection};
use crate::raw::{self, raw};
use crate::{between, clocks, descriptors, tails};

/// Slots for connections, more than twice as many as there can be.
const SLOTS: usize = 2 * (descriptors::MOST + descriptors::CLOSED) + 1;
/// Most output that is handed over.
const OUTPUT: usize = 64 << 20;

/// Memory of ours, away from the program's; the kernel fills it with zeroes.
struct Scratch {
    at: usize,
    bytes: usize,
}

impl Scratch {
    fn new(bytes: usize) -> Self {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
        let at = raw!(SYS_mmap, 0, bytes.max(1), protection, flags, -1, 0);
        if at < 0 {
            diverge(format_args!("no memory for a list of {bytes} bytes"));
        }
        Self { at: at as usize, bytes: bytes.max(1) }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: fresh memory of this size, which lives as long as self.
        unsafe { std::slice::from_raw_parts_mut(self.at as *mut u8, self.bytes) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        raw!(SYS_munmap, self.at, self.bytes);
    }
}

/// All at once: called when the trace is executed, before any call of the program goes on.
pub fn stand() {
    clocks::shift();
    let count = descriptors::open().count() + descriptors::closed().count();
    let memory = Scratch::new(count * size_of::<HotConnection>());
    // SAFETY: fresh memory of this size, and aligned; all zeroes is a valid list. It lives until the end of this function.
    let list = unsafe { std::slice::from_raw_parts_mut(memory.at as *mut HotConnection, count) };
    let mut serials = Scratch::new(count * size_of::<u32>());
    for ((to, serial), from) in
        list.iter_mut().zip(serials.bytes().chunks_exact_mut(4)).zip(descriptors::open().chain(descriptors::closed()))
    {
        let (state, tail) = (u32::from(from.shut), std::ptr::null());
        let descriptors::Place { fd, tuple, read, written, since, .. } = from;
        *to = HotConnection { fd, state, read, written, since, tail, tail_len: 0, tuple };
        serial.copy_from_slice(&from.serial.to_ne_bytes());
    }
    let mut output = Scratch::new(OUTPUT);
    gather(list, serials.bytes(), output.bytes());
    tails::end();
    if !partner::stand(list) {
        diverge(format_args!("the manager does not give the sockets of the sessions"));
    }
    // Both are in the order of the descriptors.
    let mut told = list.iter().filter(|one| one.fd >= 0).peekable();
    for (fd, connection) in descriptors::connections() {
        if let Some(one) = told.next_if(|one| one.fd == fd) {
            if one.state == 0 {
                hang_up(fd);
            }
        } else {
            let same = |(_, other): &(i32, &descriptors::Connection)| std::ptr::eq(*other, connection);
            let before = || descriptors::connections().take_while(|(other, _)| *other < fd).find(same);
            match Some(connection).filter(|c| c.is_shared()).and_then(|_| before()) {
                Some((first, _)) => duplicate(first, fd),
                None => hang_up(fd),
            }
        }
        watch_again(fd);
    }
    // Those of connections are registered so.
    for (fd, epoll, events, data) in descriptors::spent() {
        let event = libc::epoll_event { events, u64: data };
        raw!(SYS_epoll_ctl, epoll, libc::EPOLL_CTL_MOD, fd, &raw const event);
    }
    between::end();
}

/// Puts the pieces of output that were kept together, connection by connection.
fn gather(list: &mut [HotConnection], serials: &[u8], output: &mut [u8]) {
    const NONE: u32 = u32::MAX;
    // Where in the list a serial number is. Those of connections that are there at the same time hardly meet.
    let mut table = Scratch::new(4 * SLOTS);
    let table = table.bytes();
    table.fill(0xff);
    let serial_of = |n: usize| serials.chunks_exact(4).nth(n).map(|s| u32::from_ne_bytes([s[0], s[1], s[2], s[3]]));
    let get = |table: &[u8], slot: usize| {
        u32::from_ne_bytes([table[4 * slot], table[4 * slot + 1], table[4 * slot + 2], table[4 * slot + 3]])
    };
    for n in 0..list.len() {
        let mut slot = serial_of(n).unwrap_or(0) as usize % SLOTS;
        while get(table, slot) != NONE {
            slot = (slot + 1) % SLOTS;
        }
        table[4 * slot..4 * slot + 4].copy_from_slice(&(n as u32).to_ne_bytes());
    }
    let table = &*table;
    let find = |serial: u32| {
        let mut slot = serial as usize % SLOTS;
        loop {
            match get(table, slot) {
                NONE => return None,
                n if serial_of(n as usize) == Some(serial) => return Some(n as usize),
                _ => slot = (slot + 1) % SLOTS,
            }
        }
    };
    tails::each(|serial, bytes| {
        if let Some(one) = find(serial).and_then(|n| list.get_mut(n)) {
            one.tail_len += bytes.len() as u64;
        }
    });
    let mut at = 0;
    for one in list.iter_mut() {
        let length = one.tail_len as usize;
        if let Some(room) = output.get(at..at + length) {
            one.tail = room.as_ptr();
            at += length;
        }
        // Counts anew, below.
        one.tail_len = 0;
    }
    let start = output.as_ptr();
    tails::each(|serial, bytes| {
        let Some(one) = find(serial).and_then(|n| list.get_mut(n)).filter(|one| !one.tail.is_null()) else { return };
        // SAFETY: both point into `output`.
        let at = unsafe { one.tail.offset_from(start) } as usize + one.tail_len as usize;
        if let Some(to) = output.get_mut(at..at + bytes.len()) {
            to.copy_from_slice(bytes);
            one.tail_len += bytes.len() as u64;
        }
    });
}

/// Another number of a connection that has its socket.
fn duplicate(from: i32, to: i32) {
    let cloexec = raw::fcntl(to, libc::F_GETFD, 0) & i64::from(libc::FD_CLOEXEC) != 0;
    // libtcpr knows by its hook that both are one.
    // SAFETY: no pointers.
    unsafe { crate::next::dup3(from, to, if cloexec { libc::O_CLOEXEC } else { 0 }) };
}

/// A connection whose peer has gone, or one that was under way and is refused.
fn hang_up(fd: i32) {
    let cloexec = raw::fcntl(fd, libc::F_GETFD, 0) & i64::from(libc::FD_CLOEXEC) != 0;
    let nonblocking = raw::fcntl(fd, libc::F_GETFL, 0) & i64::from(libc::O_NONBLOCK) != 0;
    let refused = || descriptors::has(fd, descriptors::UNDER_WAY).then(refused).flatten();
    let Some(made) = refused().or_else(ended) else { return };
    raw::fcntl(made, libc::F_SETFL, if nonblocking { libc::O_NONBLOCK.into() } else { 0 });
    raw!(SYS_dup3, made, fd, if cloexec { libc::O_CLOEXEC } else { 0 });
    raw!(SYS_close, made);
}

fn ended() -> Option<i32> {
    let mut ends = [-1i32; 2];
    if raw!(SYS_socketpair, libc::AF_UNIX, libc::SOCK_STREAM, 0, ends.as_mut_ptr()) < 0 {
        return None;
    }
    raw!(SYS_close, ends[1]);
    Some(ends[0])
}

/// A socket with the news, for `poll` and `SO_ERROR`, that it was refused.
fn refused() -> Option<i32> {
    let make = || raw!(SYS_socket, libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0) as i32;
    let (here, made) = (make(), make());
    // SAFETY: all zeroes is an address of this kind.
    let mut at: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    at.sin_family = libc::AF_INET as libc::sa_family_t;
    at.sin_addr.s_addr = u32::from_be(0x7f00_0001);
    let mut length = size_of::<libc::sockaddr_in>() as u32;
    // Nobody listens where somebody is bound.
    let done = raw!(SYS_bind, here, &raw const at, length) == 0
        && raw!(SYS_getsockname, here, &raw mut at, &raw mut length) == 0
        && raw!(SYS_connect, made, &raw const at, length) == -i64::from(libc::EINPROGRESS);
    raw!(SYS_close, here);
    if !done {
        raw!(SYS_close, made);
    }
    done.then_some(made)
}

/// Registrations of the stand-in ended with it.
fn watch_again(fd: i32) {
    const ADD: i32 = libc::EPOLL_CTL_ADD;
    for (epoll, events, data) in descriptors::watchers(fd) {
        let event = libc::epoll_event { events, u64: data };
        raw!(SYS_epoll_ctl, epoll, ADD, fd, &raw const event);
    }
}
