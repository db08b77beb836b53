//! What the program's descriptors are, as far as it matters here.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicU8, Ordering};

use tcpr_session::trace::SESSION;
use tcpr_session::tuple::FourTuple;

use crate::activity;

/// Descriptors above are not looked after: their calls pass.
pub const MOST: usize = 65536;

/// Kinds of descriptors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A file of the member's own, or nothing. It is not in the trace.
    Own = 0,
    /// A socket of streams that is not connected: real in the follower.
    Stream,
    /// A connection: a socket without a peer in the follower.
    Connection,
    /// Any other socket. It is real, and what it gives comes from the trace.
    OtherSocket,
    /// Between parts of the program: real, and its input is in the trace as well.
    Pipe,
    /// Input from outside: /dev/urandom, /proc.
    Outside,
    /// An epoll instance.
    Epoll,
    /// A timer or inotify descriptor: real, and what it gives comes from the trace.
    Timer,
    /// A counter of events: as a pipe.
    Event,
}

const KINDS: [Kind; 9] = [
    Kind::Own,
    Kind::Stream,
    Kind::Connection,
    Kind::OtherSocket,
    Kind::Pipe,
    Kind::Outside,
    Kind::Epoll,
    Kind::Timer,
    Kind::Event,
];

/// It was bound in the leader and could not be here.
pub const BIND_FAILED: u8 = 1;
/// Calls wait. What the program sets, as far as hooks see it.
pub const BLOCKING: u8 = 2;

/// It is connecting to a protected destination.
pub const CONNECTING: u8 = 4;
/// It is connecting, and the program does not know yet what became of that.
pub const UNDER_WAY: u8 = 8;

struct Entry {
    kind: AtomicU8,
    flags: AtomicU8,
    /// Which of [`CONNECTIONS`], plus one.
    connection: AtomicU32,
    /// Of a pipe, a pair of sockets or a counter: which one. Copies of a descriptor are of the same.
    pair: AtomicU32,
}

static ENTRIES: [Entry; MOST] =
    [const { Entry { kind: AtomicU8::new(0), flags: AtomicU8::new(0), connection: AtomicU32::new(0), pair: AtomicU32::new(0) } };
        MOST];

/// A connection, which duplicates of a descriptor share.
pub struct Connection {
    descriptors: AtomicU32,
    /// Bytes that the program has read, by the trace.
    pub read: AtomicU64,
    /// Bytes that the program has written, by the trace.
    pub written: AtomicU64,
    /// Where the trace was when the program got it.
    since: AtomicU64,
    /// The program has ended its output.
    pub shut: AtomicU8,
    /// Which of all connections it is: never used again.
    serial: AtomicU32,
    /// Whether there is a tuple.
    protected: AtomicU8,
    tuple: UnsafeCell<[u8; FourTuple::BYTES]>,
}

// SAFETY: the tuple is written by the thread that gets the descriptor, before others know its number, or by the first that does
// something with a connection that was under way; nobody reads it before `protected` is set, and nobody writes it after.
unsafe impl Sync for Connection {}

static CONNECTIONS: [Connection; MOST] = [const {
    Connection {
        descriptors: AtomicU32::new(0),
        read: AtomicU64::new(0),
        written: AtomicU64::new(0),
        since: AtomicU64::new(0),
        shut: AtomicU8::new(0),
        serial: AtomicU32::new(0),
        protected: AtomicU8::new(0),
        tuple: UnsafeCell::new([0; FourTuple::BYTES]),
    }
}; MOST];

impl Connection {
    /// Whether there are several descriptors of it.
    pub fn is_shared(&self) -> bool {
        self.descriptors.load(Ordering::Relaxed) > 1
    }

    /// Which session of the manager's it is, if it is protected.
    pub fn tuple(&self) -> Option<[u8; FourTuple::BYTES]> {
        // SAFETY: not written while the connection lives.
        (self.protected.load(Ordering::Acquire) != 0).then(|| unsafe { *self.tuple.get() })
    }
}

static SERIAL: AtomicU32 = AtomicU32::new(1);
static PAIRS: AtomicU32 = AtomicU32::new(1);

/// Closed connections of which a manager may not know yet: the newest ones.
pub const CLOSED: usize = 1024;

/// A protected connection that the program has closed.
struct Closed {
    serial: AtomicU32,
    read: AtomicU64,
    written: AtomicU64,
    since: AtomicU64,
    tuple: UnsafeCell<[u8; FourTuple::BYTES]>,
}

// SAFETY: the tuple is written by the thread that closes, and read at a promotion, when all threads wait.
unsafe impl Sync for Closed {}

static CLOSED_ONES: [Closed; CLOSED] = [const {
    Closed {
        serial: AtomicU32::new(0),
        read: AtomicU64::new(0),
        written: AtomicU64::new(0),
        since: AtomicU64::new(0),
        tuple: UnsafeCell::new([0; FourTuple::BYTES]),
    }
}; CLOSED];

/// A protected connection, open or closed a moment ago.
pub struct Place {
    /// -1: it is closed.
    pub fd: i32,
    pub serial: u32,
    pub tuple: [u8; FourTuple::BYTES],
    pub read: u64,
    pub written: u64,
    pub since: u64,
    pub shut: bool,
}

/// Protected connections that the program has closed a moment ago.
pub fn closed() -> impl Iterator<Item = Place> {
    CLOSED_ONES.iter().filter(|c| c.serial.load(Ordering::Relaxed) != 0).map(|c| Place {
        fd: -1,
        serial: c.serial.load(Ordering::Relaxed),
        // SAFETY: nobody closes meanwhile.
        tuple: unsafe { *c.tuple.get() },
        read: c.read.load(Ordering::Relaxed),
        written: c.written.load(Ordering::Relaxed),
        since: c.since.load(Ordering::Relaxed),
        shut: true,
    })
}

/// The protected connections that the program has, one for each descriptor.
pub fn open() -> impl Iterator<Item = Place> {
    connections().filter_map(|(fd, c)| {
        Some(Place {
            fd,
            serial: c.serial.load(Ordering::Relaxed),
            tuple: c.tuple()?,
            read: c.read.load(Ordering::Relaxed),
            written: c.written.load(Ordering::Relaxed),
            since: c.since.load(Ordering::Relaxed),
            shut: c.shut.load(Ordering::Relaxed) != 0,
        })
    })
}

/// Serial number of a protected connection.
pub fn serial(fd: i32) -> Option<u32> {
    let c = connection(fd)?;
    (c.protected.load(Ordering::Relaxed) != 0).then(|| c.serial.load(Ordering::Relaxed))
}

fn entry(fd: i32) -> Option<&'static Entry> {
    ENTRIES.get(usize::try_from(fd).ok()?)
}

/// What a descriptor is.
pub fn kind(fd: i32) -> Kind {
    entry(fd).and_then(|e| KINDS.get(usize::from(e.kind.load(Ordering::Relaxed)))).copied().unwrap_or(Kind::Own)
}

/// Whether what the descriptor gives is in the trace.
#[inline]
pub fn is_traced(fd: i32) -> bool {
    entry(fd).is_some_and(|e| !matches!(e.kind.load(Ordering::Relaxed), 0 | 6))
}
const _: () = assert!(Kind::Own as u8 == 0 && Kind::Epoll as u8 == 6);

/// Two descriptors that were made as a pair: the second one has the next number.
pub fn set_pair(ends: [i32; 2]) {
    let number = PAIRS.fetch_add(2, Ordering::Relaxed);
    for (fd, n) in ends.into_iter().zip([number, number + 1]) {
        entry(fd).iter().for_each(|e| e.pair.store(n, Ordering::Relaxed));
    }
}

/// A counter of events: it has a number as if it were one end of a pair.
pub fn set_counter(fd: i32) {
    set_pair([fd, -1]);
}

/// Which end of which pair it is; 0: of none.
pub fn pair(fd: i32) -> u32 {
    entry(fd).map_or(0, |e| e.pair.load(Ordering::Relaxed))
}

/// The other end of its pair.
pub fn other_end(fd: i32) -> u32 {
    match pair(fd) {
        0 => 0,
        first if first % 2 == 1 => first + 1,
        second => second - 1,
    }
}

/// A new descriptor.
pub fn set(fd: i32, kind: Kind, blocking: bool) {
    if fd >= MOST as i32 && kind != Kind::Own {
        return activity::refuse("it has more descriptors than can be traced");
    }
    if let Some(e) = entry(fd) {
        forget(fd);
        e.flags.store(if blocking { BLOCKING } else { 0 }, Ordering::Relaxed);
        e.kind.store(kind as u8, Ordering::Relaxed);
    }
}

/// Whether a flag is set.
pub fn has(fd: i32, flag: u8) -> bool {
    entry(fd).is_some_and(|e| e.flags.load(Ordering::Relaxed) & flag != 0)
}

/// Sets or clears a flag.
pub fn set_flag(fd: i32, flag: u8, on: bool) {
    if let Some(e) = entry(fd) {
        if on {
            e.flags.fetch_or(flag, Ordering::Relaxed);
        } else {
            e.flags.fetch_and(!flag, Ordering::Relaxed);
        }
    }
}

/// The descriptor is a connection, from its first byte on.
pub fn set_connection(fd: i32, session: Option<[u8; SESSION]>) {
    let (mut tuple, mut before) = ([0; FourTuple::BYTES], [0, 0]);
    if let Some((addresses, numbers)) = session.as_ref().and_then(|session| session.split_first_chunk()) {
        tuple = *addresses;
        for (to, number) in before.iter_mut().zip(numbers.chunks_exact(8)) {
            *to = number.try_into().map_or(0, u64::from_ne_bytes);
        }
    }
    let Some(e) = entry(fd) else { return };
    release(e);
    e.kind.store(Kind::Connection as u8, Ordering::Relaxed);
    // As a rule the place of the same number is free: only duplicates hold a place longer than their number.
    let places = (0..MOST).map(|i| (i + fd as usize) % MOST);
    for place in places {
        let c = &CONNECTIONS[place];
        if c.descriptors.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            c.read.store(before[0], Ordering::Relaxed);
            c.written.store(before[1], Ordering::Relaxed);
            c.since.store(activity::position(), Ordering::Relaxed);
            c.shut.store(0, Ordering::Relaxed);
            c.serial.store(SERIAL.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
            // SAFETY: the place is ours alone.
            unsafe { *c.tuple.get() = tuple };
            c.protected.store(u8::from(session.is_some()), Ordering::Release);
            e.connection.store(place as u32 + 1, Ordering::Release);
            return;
        }
    }
}

/// The connection that was under way is there, and is this session.
pub fn protect(fd: i32, session: &[u8; SESSION]) {
    let (Some(c), Some((addresses, numbers))) = (connection(fd), session.split_first_chunk()) else { return };
    if c.protected.load(Ordering::Acquire) != 0 {
        return;
    }
    let before = |n: usize| numbers[8 * n..8 * n + 8].try_into().map_or(0, u64::from_ne_bytes);
    c.read.fetch_add(before(0), Ordering::Relaxed);
    c.written.fetch_add(before(1), Ordering::Relaxed);
    c.since.store(activity::position(), Ordering::Relaxed);
    // SAFETY: see `Sync`.
    unsafe { *c.tuple.get() = *addresses };
    c.protected.store(1, Ordering::Release);
}

/// The connection behind a descriptor.
pub fn connection(fd: i32) -> Option<&'static Connection> {
    let place = entry(fd)?.connection.load(Ordering::Acquire);
    CONNECTIONS.get((place as usize).checked_sub(1)?)
}

fn release(e: &Entry) {
    let place = e.connection.swap(0, Ordering::AcqRel);
    if let Some(c) = (place as usize).checked_sub(1).and_then(|place| CONNECTIONS.get(place)) {
        let last = activity::follows() && c.descriptors.load(Ordering::Acquire) == 1;
        if let Some(tuple) = c.tuple().filter(|_| last) {
            let serial = c.serial.load(Ordering::Relaxed);
            let closed = &CLOSED_ONES[serial as usize % CLOSED];
            closed.read.store(c.read.load(Ordering::Relaxed), Ordering::Relaxed);
            closed.written.store(c.written.load(Ordering::Relaxed), Ordering::Relaxed);
            closed.since.store(c.since.load(Ordering::Relaxed), Ordering::Relaxed);
            // SAFETY: threads of a follower close one at a time, in the order of the trace.
            unsafe { *closed.tuple.get() = tuple };
            closed.serial.store(serial, Ordering::Release);
        }
        c.descriptors.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A descriptor is closed, or about to be replaced.
pub fn forget(fd: i32) {
    if let Some(e) = entry(fd) {
        release(e);
        e.kind.store(Kind::Own as u8, Ordering::Relaxed);
        e.flags.store(0, Ordering::Relaxed);
        e.pair.store(0, Ordering::Relaxed);
        unwatch_all(fd);
    }
}

/// `to` is the same as `from` now.
pub fn copy(from: i32, to: i32) {
    forget(to);
    let (Some(a), Some(b)) = (entry(from), entry(to)) else { return };
    b.kind.store(a.kind.load(Ordering::Relaxed), Ordering::Relaxed);
    b.flags.store(a.flags.load(Ordering::Relaxed), Ordering::Relaxed);
    b.pair.store(a.pair.load(Ordering::Relaxed), Ordering::Relaxed);
    if let Some(c) = connection(from) {
        c.descriptors.fetch_add(1, Ordering::AcqRel);
        b.connection.store(a.connection.load(Ordering::Acquire), Ordering::Release);
    }
}

/// Descriptors of connections, each with its connection.
pub fn connections() -> impl Iterator<Item = (i32, &'static Connection)> {
    (0..MOST as i32).filter(|&fd| kind(fd) == Kind::Connection).filter_map(|fd| Some((fd, connection(fd)?)))
}

// ---- Epoll instances

/// How many instances that watch one descriptor are known.
const WATCHERS: usize = 4;

/// What an instance was told of a descriptor.
struct Watch {
    /// The instance, plus one; 0: free.
    by: AtomicI32,
    events: AtomicU32,
    data: AtomicU64,
}

static WATCHES: [[Watch; WATCHERS]; MOST] =
    [const { [const { Watch { by: AtomicI32::new(0), events: AtomicU32::new(0), data: AtomicU64::new(0) } }; WATCHERS] }; MOST];

const ONE_SHOT: u32 = libc::EPOLLONESHOT as u32;
/// What is left of a watch for one event when that has been delivered (`EP_PRIVATE_BITS` of the kernel).
const LEFT: u32 = ONE_SHOT | (libc::EPOLLET | libc::EPOLLWAKEUP | libc::EPOLLEXCLUSIVE) as u32;
/// Some watch is for one event.
static ONE_SHOTS: AtomicU8 = AtomicU8::new(0);
/// The descriptor of such a watch, plus one, by its instance and data: in one of some places from there on.
static PLACES: [AtomicI32; 1 << 16] = [const { AtomicI32::new(0) }; 1 << 16];

fn places(epoll: i32, data: u64) -> impl Iterator<Item = &'static AtomicI32> {
    const SOME: usize = 8;
    let mixed = (data ^ (epoll as u64) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
    (0..SOME).map(move |n| &PLACES[(mixed as usize + n) % PLACES.len()])
}

/// The watch for one event that has its place there.
fn one_shot_at(place: &AtomicI32, such: impl Fn(i32, u64) -> bool) -> Option<&'static Watch> {
    let watches = WATCHES.get((place.load(Ordering::Relaxed) as usize).checked_sub(1)?)?;
    watches.iter().find(|w| {
        let by = w.by.load(Ordering::Relaxed);
        by != 0 && w.events.load(Ordering::Relaxed) & ONE_SHOT != 0 && such(by - 1, w.data.load(Ordering::Relaxed))
    })
}

/// A watch for one event has a place. Where too many should be together, one is forgotten: after a promotion its event may come again.
fn give_place(epoll: i32, fd: i32, data: u64) {
    ONE_SHOTS.store(1, Ordering::Relaxed);
    let is_of = |place: &&AtomicI32| place.load(Ordering::Relaxed) == fd + 1;
    // A descriptor that has come again, with other data, has other places.
    let is_free =
        |place: &&AtomicI32| one_shot_at(place, |by, data| places(by, data).any(|its| std::ptr::eq(its, *place))).is_none();
    let all = || places(epoll, data);
    if let Some(place) = all().find(is_of).or_else(|| all().find(is_free)).or_else(|| all().next()) {
        place.store(fd + 1, Ordering::Relaxed);
    }
}

/// The instance has delivered events with such data: watches for one event are over until they are renewed.
pub fn delivered(epoll: i32, data: impl Iterator<Item = u64>) {
    if ONE_SHOTS.load(Ordering::Relaxed) == 0 {
        return;
    }
    for data in data {
        let find = |place| one_shot_at(place, |by, theirs| (by, theirs) == (epoll, data));
        if let Some(w) = places(epoll, data).find_map(find) {
            w.events.fetch_and(LEFT, Ordering::Relaxed);
        }
    }
}

/// Descriptors of watches for one event that was delivered.
pub fn spent() -> impl Iterator<Item = (i32, i32, u32, u64)> {
    let fds = if ONE_SHOTS.load(Ordering::Relaxed) == 0 { 0 } else { MOST as i32 };
    let is_spent = |events: u32| events & ONE_SHOT != 0 && events & !LEFT == 0;
    (0..fds).flat_map(move |fd| {
        watchers(fd).filter(move |(_, events, _)| is_spent(*events)).map(move |(by, events, data)| (fd, by, events, data))
    })
}

/// An instance watches a descriptor, or does so in another way.
pub fn watch(epoll: i32, fd: i32, events: u32, data: u64) {
    if events & ONE_SHOT != 0 {
        give_place(epoll, fd, data);
    }
    let Some(watches) = usize::try_from(fd).ok().and_then(|fd| WATCHES.get(fd)) else { return };
    let by = |number| watches.iter().find(|w| w.by.load(Ordering::Relaxed) == number);
    if let Some(w) = by(epoll + 1).or_else(|| by(0)) {
        w.events.store(events, Ordering::Relaxed);
        w.data.store(data, Ordering::Relaxed);
        w.by.store(epoll + 1, Ordering::Relaxed);
    }
}

/// An instance does not watch a descriptor any more.
pub fn unwatch(epoll: i32, fd: i32) {
    for w in usize::try_from(fd).ok().and_then(|fd| WATCHES.get(fd)).into_iter().flatten() {
        if w.by.load(Ordering::Relaxed) == epoll + 1 {
            w.by.store(0, Ordering::Relaxed);
        }
    }
}

fn unwatch_all(fd: i32) {
    for w in usize::try_from(fd).ok().and_then(|fd| WATCHES.get(fd)).into_iter().flatten() {
        if w.by.load(Ordering::Relaxed) != 0 {
            w.by.store(0, Ordering::Relaxed);
        }
    }
}

/// Who watches a descriptor: instance, events, data.
pub fn watchers(fd: i32) -> impl Iterator<Item = (i32, u32, u64)> {
    usize::try_from(fd).ok().and_then(|fd| WATCHES.get(fd)).into_iter().flatten().filter_map(|w| {
        let by = w.by.load(Ordering::Relaxed);
        (by != 0).then(|| (by - 1, w.events.load(Ordering::Relaxed), w.data.load(Ordering::Relaxed)))
    })
}
