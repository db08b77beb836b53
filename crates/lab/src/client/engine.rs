//! The engine below all clients: many connections on one thread, timers, controls, statistics.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicU8, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Rate;
use crate::host::lock;
use crate::sys::{ctx, Epoll, Waker};
use crate::Host;

/// What went wrong on a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Failure {
    /// The connection was reset.
    Reset,
    /// The server ended it without being asked to.
    Eof,
    /// A wrong byte.
    Mismatch {
        /// Where in the stream.
        offset: u64,
        /// If the bytes are the stream's at `offset + shift`: how many were lost (> 0) or doubled (< 0).
        shift: Option<i64>,
    },
    /// More came back than was sent.
    Unexpected {
        /// How many bytes more.
        bytes: u64,
    },
    /// A message that breaks the client's protocol.
    Message {
        /// What is wrong with it.
        text: String,
    },
    /// Any other error of the socket.
    Socket {
        /// What the kernel says.
        text: String,
    },
}

/// A failure and its place.
#[derive(Clone, Debug, Serialize)]
pub struct ClientError {
    /// Number of the connection.
    pub connection: usize,
    /// Its local end, to find it in a capture.
    pub local: SocketAddr,
    /// Milliseconds since the clients' start.
    pub at_ms: f64,
    /// Bytes it had sent.
    pub sent: u64,
    /// Bytes it had received and found right.
    pub verified: u64,
    /// What happened.
    pub failure: Failure,
}

/// A time during which a connection waited for something and received nothing.
#[derive(Clone, Copy, Debug)]
pub struct Stall {
    /// Number of the connection.
    pub connection: usize,
    /// When it began.
    pub from: Instant,
    /// How long it was.
    pub length: Duration,
}

/// Statistics of a group of clients.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Stats {
    /// The seed that makes this run again.
    pub seed: u64,
    /// Connections opened.
    pub connections: usize,
    /// Connections without an error.
    pub alive: usize,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes received and found right.
    pub verified: u64,
    /// Whole messages sent (lines, records, commands; writes of an echo client).
    pub messages_sent: u64,
    /// Whole messages received and found right.
    pub messages_verified: u64,
    /// What is still to come: bytes of an echo, messages otherwise.
    pub outstanding: u64,
    /// The longest time between two receptions while something was outstanding, since the last reset.
    pub max_stall_ms: f64,
    /// Always 0: these clients never reconnect.
    pub reconnects: u64,
    /// Bytes known to be lost.
    pub bytes_lost: u64,
    /// Bytes known to have come twice.
    pub bytes_doubled: u64,
    /// Answers that are right but say that the server forgot (memcached after a failover).
    pub misses: u64,
    /// The first hundred errors.
    pub errors: Vec<ClientError>,
}

/// How [`Clients::stop_and_verify`] leaves the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Open; [`Clients::resume`] goes on.
    Keep,
    /// Half-closed by us, then closed by the server: its end of file is waited for.
    HalfClose,
}

/// A protocol over one connection. Public only because [`Clients`] names it.
#[doc(hidden)]
pub trait Protocol: Send + 'static {
    /// What the connections of one group share.
    type Shared: Send + 'static;
    /// Whether what one connection sends is awaited by others.
    const BROADCAST: bool = false;
    /// Appends what is to be sent now; returns the pause before the next call.
    fn produce(&mut self, shared: &mut Self::Shared, rate: Rate, out: &mut Vec<u8>) -> Duration;
    /// Appends the rest of a message that is only half sent.
    fn finish(&mut self, _out: &mut Vec<u8>) {}
    /// So many more bytes are in the kernel's hands.
    fn written(&mut self, shared: &mut Self::Shared, n: usize, now: Instant);
    /// Checks what was received.
    fn received(&mut self, shared: &mut Self::Shared, bytes: &[u8], now: Instant) -> Received;
    /// What is still to come.
    fn outstanding(&self, shared: &Self::Shared) -> u64;
    /// Bytes of what is still to come.
    fn outstanding_bytes(&self, shared: &Self::Shared) -> u64;
    /// (messages sent, messages received, misses).
    fn counts(&self) -> (u64, u64, u64);
}

/// The outcome of a check.
#[doc(hidden)]
#[derive(Default)]
pub struct Received {
    pub right: u64,
    pub lost: u64,
    pub doubled: u64,
    pub failure: Option<Failure>,
    /// The stream makes no more sense after the failure.
    pub fatal: bool,
}

#[derive(Default)]
struct Counters {
    sent: AtomicU64,
    verified: AtomicU64,
    outstanding: AtomicU64,
    messages_sent: AtomicU64,
    messages_verified: AtomicU64,
    misses: AtomicU64,
    max_stall_us: AtomicU64,
    /// Microseconds since the start, plus one, at which the present wait began; 0: none.
    waiting_us: AtomicU64,
    lost: AtomicU64,
    doubled: AtomicU64,
    dead: AtomicBool,
}

const RUN: u8 = 0;
const PAUSE: u8 = 1;
const DRAIN: u8 = 2;
const CLOSE: u8 = 3;
const QUIT: u8 = 4;

struct Control {
    mode: AtomicU8,
    generation: AtomicU64,
    seen: AtomicU64,
    /// Connections that a drain or close still waits for; valid once `seen` has reached `generation`.
    pending: AtomicU64,
    rate: Mutex<Rate>,
    waker: Waker,
    counters: Vec<Counters>,
    errors: Mutex<Vec<ClientError>>,
    error_count: AtomicU64,
    stalls: Mutex<Vec<Stall>>,
    start: Instant,
}

/// A group of connections of one kind; see its `start`. Dropping it closes them.
pub struct Clients<P: Protocol> {
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
    locals: Vec<SocketAddr>,
    seed: u64,
    kind: std::marker::PhantomData<fn() -> P>,
}

/// Waits shorter than this are not listed by [`Clients::stalls`].
const STALL_LISTED: Duration = Duration::from_millis(5);
const MAX_LISTED: usize = 100_000;

/// Opens `n` connections from a host, one after the other.
pub(crate) fn connect(host: &Host, server: SocketAddr, n: usize, timeout: Duration) -> io::Result<Vec<TcpStream>> {
    let deadline = Instant::now() + timeout;
    host.enter(|| {
        (0..n)
            .map(|i| {
                let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
                let what = || format!("connection {i} of {n} to {server}");
                let s = TcpStream::connect_timeout(&server, left).map_err(|e| ctx(what())(e))?;
                // Each write is to be a segment of its own, or the splitting of messages would mean nothing.
                s.set_nodelay(true)?;
                Ok(s)
            })
            .collect()
    })
}

impl<P: Protocol> Clients<P> {
    /// Takes over open connections; starts to send at once.
    pub(crate) fn launch(
        streams: Vec<TcpStream>,
        protocols: Vec<P>,
        shared: P::Shared,
        rate: Rate,
        max_outstanding: u64,
        seed: u64,
    ) -> io::Result<Self> {
        let locals = streams.iter().map(TcpStream::local_addr).collect::<io::Result<Vec<_>>>()?;
        let control = Arc::new(Control {
            mode: AtomicU8::new(RUN),
            generation: AtomicU64::new(1),
            seen: AtomicU64::new(0),
            pending: AtomicU64::new(0),
            rate: Mutex::new(rate),
            waker: Waker::new()?,
            counters: streams.iter().map(|_| Counters::default()).collect(),
            errors: Mutex::default(),
            error_count: AtomicU64::new(0),
            stalls: Mutex::default(),
            start: Instant::now(),
        });
        let epoll = Epoll::new()?;
        epoll.add(control.waker.fd(), libc::EPOLLIN, u64::MAX)?;
        let mut conns = Vec::with_capacity(streams.len());
        for (i, (stream, protocol)) in streams.into_iter().zip(protocols).enumerate() {
            stream.set_nonblocking(true)?;
            epoll.add(stream.as_raw_fd(), libc::EPOLLIN, i as u64)?;
            conns.push(Conn {
                stream,
                local: locals[i],
                protocol,
                out: Vec::new(),
                out_at: 0,
                pause: Duration::ZERO,
                armed: false,
                due: control.start,
                blocked: false,
                dead: false,
                half_closed: false,
                waiting: None,
            });
        }
        let mut worker = Worker {
            control: control.clone(),
            epoll,
            conns,
            shared,
            timers: BinaryHeap::new(),
            rate,
            mode: RUN,
            max_outstanding,
            buf: vec![0; 256 << 10],
        };
        let thread = std::thread::Builder::new().name("lab-clients".into()).spawn(move || worker.run())?;
        let kind = std::marker::PhantomData;
        Ok(Clients { control, thread: Some(thread), locals, seed, kind })
    }

    fn set_mode(&self, mode: u8) {
        self.control.mode.store(mode, SeqCst);
        self.kick();
    }

    /// Waits until the worker acts by what was set, so that a caller may rely on it.
    fn kick(&self) {
        let generation = self.control.generation.fetch_add(1, SeqCst) + 1;
        self.control.waker.wake();
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.control.seen.load(SeqCst) < generation && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Stops sending where it is, be it within a message; receives and checks on.
    pub fn pause(&self) {
        self.set_mode(PAUSE);
    }

    /// Sends again.
    pub fn resume(&self) {
        self.set_mode(RUN);
    }

    /// Sends differently from now on.
    pub fn set_rate(&self, rate: Rate) {
        *lock(&self.control.rate) = rate;
        self.kick();
    }

    /// Stops sending at a message's end, waits until everything that is due has come back, and ends the
    /// connections as told. The error lists what is wrong, and the seed.
    pub fn stop_and_verify(&self, timeout: Duration, end: End) -> Result<Stats, String> {
        let deadline = Instant::now() + timeout;
        self.set_mode(DRAIN);
        let drained = self.wait_pending(deadline);
        let mut what = "wait for an answer";
        let mut done = drained;
        if drained && end == End::HalfClose && self.error_count() == 0 {
            what = "wait for the server to close";
            self.set_mode(CLOSE);
            done = self.wait_pending(deadline);
        }
        let stats = self.stats();
        if done && stats.errors.is_empty() {
            return Ok(stats);
        }
        let mut text = format!("clients with seed {}:", self.seed);
        if !done {
            let n = self.control.pending.load(SeqCst);
            text.push_str(&format!(
                "\n  {n} of {} connections still {what} after {timeout:?} ({} outstanding)",
                stats.connections, stats.outstanding
            ));
            for (i, c) in self.control.counters.iter().enumerate() {
                let out = c.outstanding.load(Relaxed);
                if out > 0 && text.len() < 4000 {
                    let (s, v) = (c.sent.load(Relaxed), c.verified.load(Relaxed));
                    let local = self.locals[i];
                    text.push_str(&format!("\n  connection {i} ({local}): sent {s}, verified {v}, outstanding {out}"));
                }
            }
        }
        text.push_str(&self.error_text());
        Err(text)
    }

    fn wait_pending(&self, deadline: Instant) -> bool {
        while self.control.pending.load(SeqCst) > 0 {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// An error with all errors so far, if there are any.
    pub fn check(&self) -> Result<(), String> {
        if self.error_count() == 0 {
            return Ok(());
        }
        Err(format!("clients with seed {}:{}", self.seed, self.error_text()))
    }

    fn error_count(&self) -> u64 {
        self.control.error_count.load(SeqCst)
    }

    fn error_text(&self) -> String {
        let mut text = String::new();
        for e in lock(&self.control.errors).iter().take(10) {
            text.push_str(&format!("\n  {e:?}"));
        }
        if self.error_count() > 10 {
            text.push_str(&format!("\n  and {} more errors", self.error_count() - 10));
        }
        text
    }

    /// Waits until every connection has received something that was not there when this was called:
    /// all of them live. Needs clients that send.
    pub fn wait_progress(&self, timeout: Duration) -> Result<(), String> {
        let before: Vec<u64> = self.verified();
        let deadline = Instant::now() + timeout;
        loop {
            self.check()?;
            let stuck: Vec<usize> =
                self.verified().iter().zip(&before).enumerate().filter(|(_, (now, then))| now <= then).map(|(i, _)| i).collect();
            if stuck.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let first: Vec<_> = stuck.iter().take(5).map(|&i| (i, self.locals[i])).collect();
                return Err(format!(
                    "clients with seed {}: {} of {} connections received nothing for {timeout:?}, e.g. {first:?}",
                    self.seed,
                    stuck.len(),
                    before.len()
                ));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn verified(&self) -> Vec<u64> {
        self.control.counters.iter().map(|c| c.verified.load(Relaxed)).collect()
    }

    /// The statistics of this moment.
    pub fn stats(&self) -> Stats {
        let mut s = Stats { seed: self.seed, connections: self.locals.len(), ..Stats::default() };
        for c in &self.control.counters {
            s.alive += usize::from(!c.dead.load(Relaxed));
            s.sent += c.sent.load(Relaxed);
            s.verified += c.verified.load(Relaxed);
            s.outstanding += c.outstanding.load(Relaxed);
            s.messages_sent += c.messages_sent.load(Relaxed);
            s.messages_verified += c.messages_verified.load(Relaxed);
            s.misses += c.misses.load(Relaxed);
            s.bytes_lost += c.lost.load(Relaxed);
            s.bytes_doubled += c.doubled.load(Relaxed);
        }
        let longest = self.max_stalls().into_iter().max().unwrap_or_default();
        s.max_stall_ms = longest.as_secs_f64() * 1e3;
        s.errors = lock(&self.control.errors).clone();
        s
    }

    /// Each connection's longest stall since the last reset, one that lasts still included.
    pub fn max_stalls(&self) -> Vec<Duration> {
        let now = self.control.start.elapsed().as_micros() as u64;
        let of = |c: &Counters| {
            let since = match c.waiting_us.load(Relaxed) {
                0 => 0,
                w => (now + 1).saturating_sub(w),
            };
            Duration::from_micros(since.max(c.max_stall_us.load(Relaxed)))
        };
        self.control.counters.iter().map(of).collect()
    }

    /// The stalls of at least 5 ms that are over, since the last reset.
    pub fn stalls(&self) -> Vec<Stall> {
        lock(&self.control.stalls).clone()
    }

    /// Starts to measure stalls anew; one that lasts now counts in full.
    pub fn reset_stalls(&self) {
        for c in &self.control.counters {
            c.max_stall_us.store(0, Relaxed);
        }
        lock(&self.control.stalls).clear();
    }

    /// The local ends, by number of the connection.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.locals
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }
}

impl<P: Protocol> Drop for Clients<P> {
    fn drop(&mut self) {
        self.control.mode.store(QUIT, SeqCst);
        self.control.generation.fetch_add(1, SeqCst);
        self.control.waker.wake();
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}

struct Conn<P> {
    stream: TcpStream,
    local: SocketAddr,
    protocol: P,
    out: Vec<u8>,
    out_at: usize,
    /// The pause that follows what is in `out`.
    pause: Duration,
    armed: bool,
    due: Instant,
    /// The kernel took no more: wait for EPOLLOUT.
    blocked: bool,
    dead: bool,
    half_closed: bool,
    /// Since when something is awaited, or when the last part of it came.
    waiting: Option<Instant>,
}

struct Worker<P: Protocol> {
    control: Arc<Control>,
    epoll: Epoll,
    conns: Vec<Conn<P>>,
    shared: P::Shared,
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    rate: Rate,
    mode: u8,
    max_outstanding: u64,
    buf: Vec<u8>,
}

impl<P: Protocol> Worker<P> {
    fn run(&mut self) {
        let mut events = Vec::with_capacity(256);
        loop {
            let generation = self.control.generation.load(SeqCst);
            if self.control.seen.load(SeqCst) != generation {
                self.control.waker.clear();
                self.obey();
                if self.mode == QUIT {
                    return;
                }
                self.publish_pending();
                self.control.seen.store(generation, SeqCst);
            }
            self.fire_timers();
            let timeout = self.timers.peek().map(|t| t.0 .0.saturating_duration_since(Instant::now()));
            if self.epoll.wait(&mut events, timeout).is_err() {
                return;
            }
            for ev in &events {
                let (token, what) = (ev.u64, ev.events as i32);
                if token == u64::MAX {
                    continue;
                }
                let i = token as usize;
                if what & (libc::EPOLLIN | libc::EPOLLHUP | libc::EPOLLERR) != 0 {
                    self.receive(i);
                }
                if what & libc::EPOLLOUT != 0 {
                    self.flush(i);
                }
            }
            if self.mode == DRAIN || self.mode == CLOSE {
                self.publish_pending();
            }
        }
    }

    /// Takes over the mode and rate that were set.
    fn obey(&mut self) {
        self.rate = *lock(&self.control.rate);
        let mode = self.control.mode.load(SeqCst);
        let entered = self.mode != mode;
        self.mode = mode;
        let now = Instant::now();
        for i in 0..self.conns.len() {
            if self.conns[i].dead {
                continue;
            }
            match mode {
                // At the very start and after a pause: spread over one pause's length, not all at once.
                RUN if !self.conns[i].armed => {
                    let spread = self.rate.pause.1.as_micros() as u64;
                    let n = self.conns.len() as u64;
                    self.arm(i, now + Duration::from_micros(spread * i as u64 / n));
                }
                DRAIN if entered => {
                    let c = &mut self.conns[i];
                    c.protocol.finish(&mut c.out);
                    self.flush(i);
                }
                CLOSE if entered => {
                    let c = &mut self.conns[i];
                    c.half_closed = true;
                    if let Err(e) = c.stream.shutdown(Shutdown::Write) {
                        self.fail(i, socket_failure(&e), true);
                    }
                }
                _ => {}
            }
        }
    }

    fn publish_pending(&self) {
        let pending = self.conns.iter().filter(|c| {
            !c.dead
                && match self.mode {
                    DRAIN => c.out_at < c.out.len() || c.protocol.outstanding(&self.shared) > 0,
                    CLOSE => true,
                    _ => false,
                }
        });
        self.control.pending.store(pending.count() as u64, SeqCst);
    }

    fn arm(&mut self, i: usize, at: Instant) {
        self.conns[i].armed = true;
        self.conns[i].due = at;
        self.timers.push(Reverse((at, i)));
    }

    fn fire_timers(&mut self) {
        let now = Instant::now();
        while let Some(&Reverse((at, i))) = self.timers.peek() {
            if at > now {
                break;
            }
            self.timers.pop();
            // A timer that was replaced.
            if !self.conns[i].armed || self.conns[i].due != at {
                continue;
            }
            self.conns[i].armed = false;
            if self.mode != RUN || self.conns[i].dead {
                continue;
            }
            let c = &mut self.conns[i];
            if c.out_at < c.out.len() {
                // The next timer is set when this has gone out.
                continue;
            }
            if c.protocol.outstanding_bytes(&self.shared) >= self.max_outstanding {
                self.arm(i, now + Duration::from_millis(2));
                continue;
            }
            c.pause = c.protocol.produce(&mut self.shared, self.rate, &mut c.out);
            self.flush(i);
        }
    }

    fn flush(&mut self, i: usize) {
        let now = Instant::now();
        let c = &mut self.conns[i];
        if c.dead {
            return;
        }
        let mut sent = 0;
        let mut error = None;
        while c.out_at < c.out.len() {
            match c.stream.write(&c.out[c.out_at..]) {
                Ok(n) => {
                    c.out_at += n;
                    sent += n;
                    c.protocol.written(&mut self.shared, n, now);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    error = Some(e);
                    break;
                }
            }
        }
        let blocked = c.out_at < c.out.len();
        if !blocked {
            c.out.clear();
            c.out_at = 0;
        }
        let change = blocked != c.blocked;
        c.blocked = blocked;
        let fd = c.stream.as_raw_fd();
        self.control.counters[i].sent.fetch_add(sent as u64, Relaxed);
        if let Some(e) = error {
            return self.fail(i, socket_failure(&e), true);
        }
        if change {
            let events = if blocked { libc::EPOLLIN | libc::EPOLLOUT } else { libc::EPOLLIN };
            let _ = self.epoll.modify(fd, events, i as u64);
        }
        if !blocked && self.mode == RUN && !self.conns[i].armed {
            // From when it was due, not from now, so that a steady sender keeps its pace; but no burst of
            // everything missed after a long wait.
            let c = &self.conns[i];
            let base = c.due.max(now.checked_sub(Duration::from_millis(20)).unwrap_or(now));
            let at = base + c.pause;
            self.arm(i, at);
        }
        if sent > 0 && P::BROADCAST {
            for j in 0..self.conns.len() {
                self.note_waiting(j, now);
            }
        }
        self.note_waiting(i, now);
        self.publish(i);
    }

    fn receive(&mut self, i: usize) {
        // Bounded, so that one fast connection does not starve two thousand.
        for _ in 0..4 {
            if self.conns[i].dead {
                return;
            }
            let n = match self.conns[i].stream.read(&mut self.buf) {
                Ok(0) => {
                    let c = &mut self.conns[i];
                    if c.half_closed {
                        // The end that was asked for. What comes with it was checked before.
                        c.dead = true;
                        self.epoll.remove(c.stream.as_raw_fd());
                        self.clear_waiting(i);
                    } else {
                        self.fail(i, Failure::Eof, true);
                    }
                    return;
                }
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return self.fail(i, socket_failure(&e), true),
            };
            let now = Instant::now();
            let c = &mut self.conns[i];
            if let Some(since) = c.waiting {
                let length = now.saturating_duration_since(since);
                let counters = &self.control.counters[i];
                counters.max_stall_us.fetch_max(length.as_micros() as u64, Relaxed);
                if length >= STALL_LISTED {
                    let mut list = lock(&self.control.stalls);
                    if list.len() < MAX_LISTED {
                        list.push(Stall { connection: i, from: since, length });
                    }
                }
            }
            let r = c.protocol.received(&mut self.shared, &self.buf[..n], now);
            c.waiting = None;
            let counters = &self.control.counters[i];
            counters.verified.fetch_add(r.right, Relaxed);
            counters.lost.fetch_add(r.lost, Relaxed);
            counters.doubled.fetch_add(r.doubled, Relaxed);
            self.note_waiting(i, now);
            if let Some(f) = r.failure {
                self.fail(i, f, r.fatal);
            }
            self.publish(i);
            if n < self.buf.len() {
                return;
            }
        }
    }

    fn note_waiting(&mut self, i: usize, now: Instant) {
        let c = &mut self.conns[i];
        if c.dead || c.protocol.outstanding(&self.shared) == 0 {
            return self.clear_waiting(i);
        }
        let since = *c.waiting.get_or_insert(now);
        let us = since.saturating_duration_since(self.control.start).as_micros() as u64 + 1;
        self.control.counters[i].waiting_us.store(us, Relaxed);
        if P::BROADCAST {
            let out = self.conns[i].protocol.outstanding(&self.shared);
            self.control.counters[i].outstanding.store(out, Relaxed);
        }
    }

    fn clear_waiting(&mut self, i: usize) {
        self.conns[i].waiting = None;
        self.control.counters[i].waiting_us.store(0, Relaxed);
    }

    fn publish(&self, i: usize) {
        let (c, k) = (&self.conns[i], &self.control.counters[i]);
        let (sent, received, misses) = c.protocol.counts();
        k.messages_sent.store(sent, Relaxed);
        k.messages_verified.store(received, Relaxed);
        k.misses.store(misses, Relaxed);
        k.outstanding.store(c.protocol.outstanding(&self.shared), Relaxed);
    }

    /// Records a failure. A connection that is given up stays open, silent, as evidence.
    fn fail(&mut self, i: usize, failure: Failure, fatal: bool) {
        let k = &self.control.counters[i];
        if fatal {
            let c = &mut self.conns[i];
            c.dead = true;
            self.epoll.remove(c.stream.as_raw_fd());
            k.dead.store(true, Relaxed);
            if !matches!(failure, Failure::Mismatch { shift: Some(_), .. }) {
                k.lost.fetch_add(c.protocol.outstanding_bytes(&self.shared), Relaxed);
            }
            self.clear_waiting(i);
        }
        let k = &self.control.counters[i];
        self.control.error_count.fetch_add(1, SeqCst);
        let mut errors = lock(&self.control.errors);
        if errors.len() < 100 {
            errors.push(ClientError {
                connection: i,
                local: self.conns[i].local,
                at_ms: self.control.start.elapsed().as_secs_f64() * 1e3,
                sent: k.sent.load(Relaxed),
                verified: k.verified.load(Relaxed),
                failure,
            });
        }
    }
}

fn socket_failure(e: &io::Error) -> Failure {
    match e.kind() {
        io::ErrorKind::ConnectionReset => Failure::Reset,
        _ => Failure::Socket { text: e.to_string() },
    }
}
