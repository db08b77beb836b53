//! Record or follow: what each hook asks.
//!
//! A hook that is not left out (`start::passes`) either makes its call and then appends a record of it, or takes the next record
//! and does what that says. One lock keeps the trace in one total order.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tcpr_session::trace::memory::{mode, state};
use tcpr_session::trace::{Call, Cursor, Divergence, Marker, Program, Record, Step};

use crate::activity::{self, diverge, follows, give_up, is_offline, is_threaded, records};
use crate::descriptors::{self, CONNECTING};
use crate::memory::{self, header, Text};
use crate::partner::{self, Session};
use crate::{environment, handlers, promotion, raw, thread};

/// Nobody appends meanwhile. `f` makes no call of this module.
pub fn alone<T>(f: impl FnOnce() -> T) -> T {
    with_log(|_| f())
}

/// The memory of a leader goes on in this process, at the trace position where that was.
pub fn go_on_following() {
    GOES_LIVE.store(false, Ordering::Relaxed);
    with_log(|log| {
        log.running = None;
        log.tell();
    });
    activity::begin_following();
}

/// The trace, and where we stand in it.
struct Log {
    lock: AtomicU32,
    inner: UnsafeCell<Option<Inner>>,
}

// SAFETY: `inner` is reached by `with_log` alone, which holds the lock.
unsafe impl Sync for Log {}

struct Inner {
    cursor: Cursor,
    /// In the follower: the thread that has executed the last record and has not come to its next one.
    running: Option<i32>,
}

/// Programs tell threads things without a lock, too: a clock's hand, a flag. So each thread of the follower runs alone, from
/// one record of its own to the next. The thread whose turn is next waits for it, but no longer than this.
const ALONE_NS: i64 = 1_000_000;
/// How long the last running thread is waited for at the end of the trace. Sockets take their places when all threads wait.
const LAST_NS: i64 = 100_000_000;
/// After this time, a thread whose turn was not yet looks again though nobody has woken it.
const AGAIN_NS: i64 = 10_000_000;
/// How long a thread waits for room in the trace. The manager makes some every 20 ms; a partner that is gone delays that until it
/// is missed.
const ROOM_NS: i64 = 500_000_000;
const NAP_NS: i64 = 200_000;
/// A turn is short as a rule: so often a thread looks for its own before it sleeps. It does not yield meanwhile: on a busy machine
/// that may take milliseconds, and a thread that is woken runs sooner.
const SPINS: u32 = 10;

static LOG: Log = Log { lock: AtomicU32::new(0), inner: UnsafeCell::new(None) };
/// Some thread waits for the trace to grow; it wakes the one whose turn is next.
static WATCHED: AtomicBool = AtomicBool::new(false);

/// Where a thread sleeps until it is its turn. Nobody else is woken: with each record, all threads would be.
struct Bed {
    called: AtomicU32,
    sleeping: AtomicU32,
}

/// One for each of the most threads that there are at a time.
const BEDS: usize = 8192;
static ALL_BEDS: [Bed; BEDS] = [const { Bed { called: AtomicU32::new(0), sleeping: AtomicU32::new(0) } }; BEDS];

impl Bed {
    /// Threads whose numbers are far apart share one.
    fn of(thread: u16) -> &'static Bed {
        &ALL_BEDS[usize::from(thread) % BEDS]
    }

    /// What [`Bed::sleep`] is given. Between this and that, the thread looks whether it is its turn.
    fn calls(&self) -> u32 {
        self.called.load(Ordering::SeqCst)
    }

    fn sleep(&self, calls: u32, ns: i64) {
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        raw::futex_wait(self.called.as_ptr(), calls, ns);
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake(&self) {
        self.called.fetch_add(1, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) != 0 {
            raw::futex_wake(self.called.as_ptr());
        }
    }
}

fn with_log<T>(f: impl FnOnce(&mut Inner) -> T) -> T {
    while LOG.lock.swap(1, Ordering::Acquire) != 0 {
        raw::yield_now();
    }
    // SAFETY: we hold the lock; `f` does not come back here: it makes no hooked call.
    let inner = unsafe { &mut *LOG.inner.get() };
    let result = f(inner.get_or_insert_with(|| Inner { cursor: Cursor::default(), running: None }));
    LOG.lock.store(0, Ordering::Release);
    result
}

/// The lock is free in a forked child, whoever held it in the parent.
pub fn reset_in_child() {
    activity::turn_off();
    LOG.lock.store(0, Ordering::Relaxed);
}

// ---- Recording

/// Appends a record, if this process records. Returns where the trace ends now.
pub fn append(call: Call, fd: i32, result: i64, parts: &[&[u8]]) -> u64 {
    if !records() {
        return 0;
    }
    if descriptors::has(fd, CONNECTING) && call.is_of_connections() {
        look_for_connection(fd);
    }
    append_one(call, fd, result, parts)
}

/// A protected connection that was under way at the last call is looked at before the next one is recorded: the kernel tells
/// nobody when it is made.
fn look_for_connection(fd: i32) {
    match partner::session(fd) {
        Session::Coming => return,
        Session::Is(session) => {
            descriptors::protect(fd, &session);
            append_one(Call::Connected, fd, 0, &[&session]);
        }
        Session::None => {}
    }
    descriptors::set_flag(fd, CONNECTING, false);
}

fn append_one(call: Call, fd: i32, result: i64, parts: &[&[u8]]) -> u64 {
    let append = || with_log(|log| write_record(log, &Record { thread: me(), call, fd, result, data: &[] }, parts));
    match append().or_else(|| append_when_there_is_room(append)) {
        Some(head) => {
            if header().mode.load(Ordering::Relaxed) == mode::OFF {
                give_up(None, "");
            }
            head
        }
        None => {
            give_up(Some(state::FULL), "the trace has reached its limit");
            0
        }
    }
}

/// A program that records faster than the beginning of the trace is given up waits for that.
#[cold]
fn append_when_there_is_room(append: impl Fn() -> Option<u64>) -> Option<u64> {
    let until = raw::clock_ns(libc::CLOCK_MONOTONIC) + ROOM_NS;
    let waits = || !activity::is_offline() && records() && raw::clock_ns(libc::CLOCK_MONOTONIC) < until;
    while waits() {
        raw::sleep_ns(NAP_NS);
        if let Some(head) = append() {
            return Some(head);
        }
    }
    None
}

fn write_record(log: &mut Inner, record: &Record<'_>, parts: &[&[u8]]) -> Option<u64> {
    // SAFETY: this process records, and we hold the lock.
    let room = unsafe { memory::room() };
    log.cursor.append(record, parts, room)?;
    header().records.store(log.cursor.records(), Ordering::Relaxed);
    header().head.store(log.cursor.position(), Ordering::Release);
    Some(log.cursor.position())
}

/// Appends a marker.
pub fn mark(marker: Marker) {
    append(Call::Marker, 0, marker as i64, &[]);
}

// ---- Following

/// A record that is this thread's, and not executed until [`Taken::done`].
pub struct Taken(pub Record<'static>);

/// How long the thread whose turn is next has waited for the one that still runs: after which record, and since when.
type Patience = Option<(u64, i64)>;

impl Inner {
    /// What comes next for a thread that makes a call, and where the trace ends.
    fn look(&mut self, me: u16, call: Call, fd: i32, patience: &mut Patience) -> (Step<'static>, u64) {
        let head = header().head.load(Ordering::Acquire);
        let step = self.cursor.step(memory::trace(self.cursor.position(), head), me, call, fd);
        self.tell();
        if !matches!(step, Step::Others(_) | Step::End) && self.runs_on(patience, ALONE_NS) {
            return (Step::Others(me), head);
        }
        (step, head)
    }

    /// Whether the last record's thread still runs, and was not waited for so long.
    fn runs_on(&self, patience: &mut Patience, ns: i64) -> bool {
        if self.running.is_none() {
            return false;
        }
        let (after, now) = (self.cursor.records(), raw::clock_ns(libc::CLOCK_MONOTONIC));
        match *patience {
            Some((record, since)) if record == after => now - since < ns,
            _ => {
                *patience = Some((after, now));
                true
            }
        }
    }

    /// Whose turn is next, if it is not this thread's.
    fn others_turn(&mut self, me: u16) -> Option<u16> {
        let head = header().head.load(Ordering::Acquire);
        let next = self.cursor.peek(memory::trace(self.cursor.position(), head)).ok()??.thread;
        (next != me).then_some(next)
    }

    /// Tells the manager where we are.
    fn tell(&self) {
        header().records.store(self.cursor.records(), Ordering::Relaxed);
        header().executed.store(self.cursor.position(), Ordering::Release);
    }
}

impl Taken {
    /// What the call returns.
    pub fn result(&self) -> i64 {
        self.0.result
    }

    /// What else it gives.
    pub fn data(&self) -> &'static [u8] {
        self.0.data
    }

    /// The program does not go on as the trace says.
    pub fn diverges(&self, program: Program<'_>) -> ! {
        let number = header().records.load(Ordering::Relaxed);
        diverge(format_args!("{}", Divergence { number, trace: self.0, program }))
    }

    /// The same, in words that go on from "the program".
    pub fn diverges_in(&self, words: std::fmt::Arguments<'_>) -> ! {
        let text = Text::of(words);
        self.diverges(Program::Does(std::str::from_utf8(text.bytes()).unwrap_or_default()))
    }

    /// The program must have room for the data.
    pub fn check_room(&self, room: usize) {
        if self.data().len() > room {
            self.diverges(Program::HasRoom(room));
        }
    }

    /// The program must write what it has written in the trace.
    pub fn check_output<'a>(&self, pieces: impl Iterator<Item = &'a [u8]>) {
        if let Err(divergence) = with_log(|log| log.cursor.check_output(self.0, pieces)) {
            diverge(format_args!("{divergence}"));
        }
    }

    /// The record is executed: the next one's turn.
    pub fn done(self) {
        let next = with_log(|log| {
            log.cursor.executed();
            log.tell();
            if !is_threaded() {
                return None;
            }
            log.running = Some(thread::id());
            log.others_turn(me())
        });
        wake(next);
    }
}

/// This thread's number in the trace.
fn me() -> u16 {
    thread::id().max(0) as u16
}

fn wake(thread: Option<u16>) {
    if let Some(thread) = thread {
        Bed::of(thread).wake();
    }
}

/// This thread has come to its next record, or makes no more.
pub fn leave() {
    wake(with_log(|log| {
        log.running.take_if(|thread| *thread == thread::id())?;
        log.others_turn(me())
    }));
}

/// The next record of this thread, which must be of this call. `None`: the trace has ended, and the program is live.
pub fn take(call: Call, fd: i32) -> Option<Taken> {
    let (me, mut patience, mut spins, mut idle) = (me(), None, 0, 0);
    let bed = Bed::of(me);
    leave();
    loop {
        let calls = bed.calls();
        if !follows() {
            return None;
        }
        let (step, head) = with_log(|log| log.look(me, call, fd, &mut patience));
        match step {
            Step::Result(record) => return Some(Taken(record)),
            Step::Before(record) => {
                match record.call {
                    Call::Signal => signalled(Taken(record)),
                    _ => connected(Taken(record)),
                }
                leave();
            }
            Step::Others(next) => {
                if next != me {
                    wake(Some(next));
                }
                if spins < SPINS {
                    spins += 1;
                    (0..50).for_each(|_| std::hint::spin_loop());
                } else {
                    bed.sleep(calls, if next == me { ALONE_NS } else { AGAIN_NS });
                }
            }
            Step::End => wait_for_more(head, &mut idle, &mut patience, || bed.sleep(calls, AGAIN_NS)),
            Step::Diverged(divergence) => diverge(format_args!("{divergence}")),
            Step::Malformed(malformed) => diverge(format_args!("{malformed}")),
        }
    }
}

/// A handler of the program's runs here.
fn signalled(taken: Taken) {
    let (signal, data) = (taken.result() as i32, taken.data());
    // SAFETY: all zeroes is a valid libc::siginfo_t; no more is written than it holds.
    let mut info = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let n = data.len().min(size_of::<libc::siginfo_t>());
        std::ptr::copy_nonoverlapping(data.as_ptr(), (&raw mut info).cast::<u8>(), n);
        info
    };
    if !(1..=64).contains(&signal) {
        taken.diverges_in(format_args!("knows no such signal"));
    }
    handlers::forget(signal);
    taken.done();
    handlers::run(signal, &mut info);
}

/// The connection of the record has been made.
fn connected(taken: Taken) {
    match taken.data().try_into() {
        Ok(session) => descriptors::protect(taken.0.fd, &session),
        Err(_) => taken.diverges_in(format_args!("cannot read the addresses")),
    }
    taken.done();
}

/// At the end of the trace, as it is now. One thread watches it; the others sleep until it is their turn.
fn wait_for_more(seen: u64, idle: &mut i64, patience: &mut Patience, sleep: impl FnOnce()) {
    // The mode is read before the head is read again: nothing is appended after PROMOTE.
    let told = header().mode.load(Ordering::Acquire);
    if header().head.load(Ordering::Acquire) != seen {
        return;
    }
    match told {
        _ if is_offline() => go_live(),
        mode::PROMOTE if with_log(|log| log.runs_on(patience, LAST_NS)) => raw::sleep_ns(20_000),
        mode::PROMOTE => go_live(),
        mode::OFF => diverge(format_args!("the manager has ended it")),
        _ if !environment::manager_lives() => diverge(format_args!("the manager is gone")),
        _ if WATCHED.swap(true, Ordering::AcqRel) => sleep(),
        _ => {
            *idle = (*idle * 2).clamp(20_000, 5_000_000);
            // The low half, as a futex: whoever appends may wake us.
            raw::futex_wait(header().head.as_ptr().cast(), seen as u32, *idle);
            WATCHED.store(false, Ordering::Release);
        }
    }
}

/// A thread takes the program from the trace to the world. It is done once: a program that is live never follows again, but for
/// one that begins with the memory of such a one.
static GOES_LIVE: AtomicBool = AtomicBool::new(false);

fn go_live() {
    if is_offline() {
        let records = header().records.load(Ordering::Relaxed);
        activity::say(format_args!("the trace ends here, after {records} records"));
        raw::exit_group(0);
    }
    if GOES_LIVE.swap(true, Ordering::AcqRel) {
        // Another thread does it.
        raw::sleep_ns(100_000);
        return;
    }
    header().state.store(state::AT_END, Ordering::Release);
    with_log(|log| {
        // A record of which only the beginning is there never was.
        header().head.store(log.cursor.position(), Ordering::Release);
    });
    thread::outside(promotion::stand);
    activity::begin_leading();
    mark(Marker::Promoted);
    header().state.store(state::LIVE, Ordering::Release);
    ALL_BEDS.iter().for_each(Bed::wake);
}
