//! What the threads of the application tell the manager, and when a turn ends.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use libc::{c_int, c_void, ssize_t};
use tcpr_node::channel::client::{Client, ClientError};
use tcpr_node::channel::ring::{Sent, EASE, STOP};
use tcpr_node::channel::{Event, Origin};
use tcpr_session::tuple::FourTuple;

use crate::guard::{first_inside, guarded, inside};
use crate::{manager, real, sys};

/// What a thread did since it last waited.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Dirty {
    /// Nothing that the manager does not know to be over.
    No,
    /// The thread has polled (waited with a timeout of zero) since it read or wrote, and has told so.
    Polled,
    /// The thread read.
    Read,
    /// The thread wrote.
    Wrote,
    /// The thread is the first of a forked process whose manager may have stayed behind in the parent.
    Orphaned,
}

thread_local! {
    static DIRTY: Cell<Dirty> = const { Cell::new(Dirty::No) };
    static THREAD: Cell<u32> = const { Cell::new(0) };
    /// The thread has read from a connection since its turn began, and from nothing else since that.
    static HAS_READ: Cell<bool> = const { Cell::new(false) };
}

/// pthread key whose destructor ends the last turn of a thread, plus one.
static EXIT_KEY: AtomicU32 = AtomicU32::new(0);

/// Threads of this program wait on condition variables for their interpreter's lock.
static INTERPRETED: AtomicBool = AtomicBool::new(false);

/// This thread's name on the channel: the kernel's number of it, by which the manager can see whether it sleeps.
pub fn thread() -> u32 {
    THREAD.with(|cell| {
        if cell.get() == 0 {
            cell.set(sys::thread_id());
            watch_thread_exit();
        }
        cell.get()
    })
}

/// Whether there is anything that a wait would end.
#[inline]
pub fn is_dirty() -> bool {
    DIRTY.with(Cell::get) != Dirty::No
}

/// Before a call that may wait: ends the turn. `polls`: the call has a timeout of zero.
#[inline]
pub fn before_wait(polls: impl FnOnce() -> bool) {
    if is_dirty() {
        wait(polls());
    }
}

/// Before a wait on a condition variable: ends the turn. Not in CPython, where that is how a thread waits for the interpreter's
/// lock: it does so after each system call that may block, in the middle of its work. (Python's own locks, queues and
/// conditions are semaphores.)
#[inline]
pub fn before_condition() {
    if is_dirty() && !INTERPRETED.load(Ordering::Relaxed) {
        wait(false);
    }
}

/// Before a read or an accept: ends a turn that has written. True: it had.
#[inline]
pub fn before_read() -> bool {
    let wrote = DIRTY.with(Cell::get) == Dirty::Wrote;
    if wrote {
        tell_read_after_write();
    }
    wrote
}

/// After a read of anything but a connection of ours, or an accept: what is written next may follow from that.
#[inline]
pub fn read_other() {
    if HAS_READ.with(Cell::get) {
        tell_other();
    }
}

#[cold]
fn tell_other() {
    first_inside(|| {
        HAS_READ.with(|has| has.set(false));
        if let Some(client) = manager::joined() {
            client.push(&Event::ReadElsewhere { thread: thread() });
        }
    });
}

/// Before a read of a descriptor that is none of our connections, or an accept: a turn that has written ends if it waits for
/// others. `polls`: the call does not wait.
#[inline]
pub fn before_foreign_read(fd: c_int, polls: impl FnOnce() -> bool) {
    if matches!(DIRTY.with(Cell::get), Dirty::Wrote | Dirty::Polled) && !polls() && sys::would_wait(fd) {
        wait(false);
    }
}

/// A read of a descriptor that is none of our connections, with what the turn is told before and after.
#[inline]
pub fn foreign_read(fd: c_int, polls: impl FnOnce() -> bool, read: impl FnOnce() -> ssize_t) -> ssize_t {
    before_foreign_read(fd, polls);
    let n = read();
    if n > 0 {
        read_other();
    }
    n
}

#[cold]
fn tell_read_after_write() {
    first_inside(|| {
        // The turn may go on all the same: the manager knows.
        DIRTY.with(|d| d.set(Dirty::Read));
        HAS_READ.with(|has| has.set(false));
        if let Some(client) = manager::joined() {
            client.push(&Event::ReadAfterWrite { thread: thread() });
        }
    });
}

#[cold]
fn wait(polls: bool) {
    if polls && DIRTY.with(Cell::get) == Dirty::Polled {
        return;
    }
    first_inside(|| {
        let before = DIRTY.with(|d| d.replace(if polls { Dirty::Polled } else { Dirty::No }));
        // The turn may stay open after a poll.
        HAS_READ.with(|has| has.set(has.get() && polls));
        let client = if before == Dirty::Orphaned { manager::client() } else { manager::joined() };
        if let Some(client) = client {
            client.push(&Event::Wait { thread: thread(), zero_timeout: polls });
        }
    });
}

/// A connection is this process's. Where the application connects, too, accepting may be the reason.
pub fn attached(client: &Client, handle: u32, origin: Origin, tuple: FourTuple) {
    client.push(&Event::Attach { thread: thread(), handle, origin, tuple });
    if !client.welcome().outgoing.is_empty() {
        touched(Dirty::Read);
    }
}

/// After a successful read.
pub fn read(client: &Client, handle: u32, n: u64) {
    client.push(&Event::Read { thread: thread(), handle, n });
    touched(Dirty::Read);
    HAS_READ.with(|has| has.set(true));
}

/// A thread that had written looks for more input of a connection, and there is none.
pub fn found_none(client: &Client, handle: u32) {
    client.push(&Event::Read { thread: thread(), handle, n: 0 });
}

/// A round of a write; see [`Client::write`].
pub fn write(
    client: &Client,
    handle: u32,
    asked: u64,
    len: usize,
    fill: impl FnMut(&mut [u8]),
    send: impl FnMut(&[u8]) -> Sent,
) -> Option<Sent> {
    let sent = client.write(thread(), handle, asked, len, fill, send);
    touched(Dirty::Wrote);
    sent
}

/// Before a write: where the log is too far ahead of the replica it waits, as for room in the socket. A turn that has begun to
/// write is stopped later than one that has not. This is a cancellation point.
#[inline]
pub fn before_write(client: &Client) {
    let least = if DIRTY.with(Cell::get) == Dirty::Wrote { STOP } else { EASE };
    if is_dirty() && client.is_pressed(least) && !client.is_gone() {
        // The thread is in the middle of what it does, though it sleeps.
        inside((), || blocked(client));
    }
    while client.is_pressed(least) && !client.is_gone() {
        // SAFETY: takes nothing; nothing of ours is alive if it unwinds.
        unsafe { real::pthread_testcancel() };
        if !guarded(false, || client.await_replica(least)) {
            return;
        }
    }
}

/// Before a write waits in its middle: what is written so far must leave, or nobody makes room.
pub fn blocked(client: &Client) {
    client.push(&Event::Blocked { thread: thread(), over: false });
}

/// After that, if nothing more is written.
pub fn unblocked(client: &Client) {
    client.push(&Event::Blocked { thread: thread(), over: true });
}

/// Any other event about output.
pub fn output(client: &Client, event: impl FnOnce(u32) -> Event<'static>) {
    client.push(&event(thread()));
    touched(Dirty::Wrote);
}

/// Something counts with this thread's turn, and the manager has heard of it.
pub fn gave(gives: impl FnOnce(u32) -> Result<(), ClientError>) -> Result<(), ClientError> {
    let given = gives(thread());
    touched(Dirty::Wrote);
    given
}

/// What this thread does from now on may follow from what it asks for.
pub fn learns<T>(asks: impl FnOnce(u32) -> Result<T, ClientError>) -> Result<T, ClientError> {
    let told = asks(thread());
    touched(Dirty::Read);
    told
}

/// `tcpr_commit`.
pub fn commit(client: &Client) {
    client.push(&Event::Commit { thread: thread() });
    DIRTY.with(|d| d.set(Dirty::No));
    HAS_READ.with(|has| has.set(false));
}

fn touched(how: Dirty) {
    DIRTY.with(|d| d.set(d.get().max(how)));
}

/// In the child of a fork: nothing was told on the new channel yet. `orphaned`: its first wait is to join, for
/// nothing may come to wake it before.
pub fn forget(orphaned: bool) {
    DIRTY.with(|d| d.set(if orphaned { Dirty::Orphaned } else { Dirty::No }));
    HAS_READ.with(|has| has.set(false));
    THREAD.with(|cell| cell.set(0));
}

/// Makes the key by which the end of a thread is noticed, and finds out what runs the threads. Once, when the process joins.
pub fn prepare() {
    extern "C" fn exits(_: *mut c_void) {
        before_wait(|| false);
    }
    INTERPRETED.store(real::has_cpython(), Ordering::Relaxed);
    if EXIT_KEY.load(Ordering::Acquire) == 0 {
        let mut key = 0;
        // SAFETY: key is live and writable; the destructor may be called at any thread's end.
        if unsafe { libc::pthread_key_create(&mut key, Some(exits)) } == 0 {
            EXIT_KEY.store(key + 1, Ordering::Release);
        }
    }
}

fn watch_thread_exit() {
    let key = EXIT_KEY.load(Ordering::Acquire);
    if key != 0 {
        // Any value but null has the destructor called.
        let value = std::ptr::without_provenance::<c_void>(1);
        // SAFETY: the key was made by `prepare`.
        let _: c_int = unsafe { libc::pthread_setspecific(key - 1, value) };
    }
}
