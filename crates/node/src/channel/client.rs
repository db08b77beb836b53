//! The application's end of the channel, used by the hooks of libtcpr.
//!
//! Nothing here may unwind out of a system call of the application's thread (a pthread_cancel would), so calls
//! that are cancellation points are made by number. All of it runs under [`Bypass`]: inside libtcpr the
//! plain names are hooks, and they must let us through.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::ring::{Full, Mapping, Producer, Sent};
use super::server::ChannelRole;
use super::sys::{self, Own};
use super::wire::{self, Hello, Numbered, RecoveredInfo, Reply, Request, Welcome};
use super::Event;

struct Inside {
    depth: Cell<u32>,
    afterwards: Cell<Option<fn()>>,
}

thread_local! {
    static BYPASS: Inside = const { Inside { depth: Cell::new(0), afterwards: Cell::new(None) } };
}

/// While it lives, the hooks of this thread are plain libc: the thread is inside tcpr. The application's signal handlers wait
/// until it is not (see `signals` of libtcpr).
#[derive(Debug)]
pub struct Bypass(());

impl Bypass {
    /// Enters, whether the thread is inside or not.
    pub fn enter() -> Self {
        BYPASS.with(|inside| inside.depth.set(inside.depth.get() + 1));
        Self(())
    }

    /// Enters, unless the thread is inside already: then the caller is us, or a signal handler.
    #[inline]
    pub fn enter_first() -> Option<Self> {
        BYPASS.with(|inside| {
            if inside.depth.get() != 0 {
                return None;
            }
            inside.depth.set(1);
            Some(Self(()))
        })
    }

    /// Whether this thread is inside tcpr.
    #[inline]
    pub fn active() -> bool {
        BYPASS.with(|inside| inside.depth.get() != 0)
    }

    /// Has something done as soon as this thread is not inside any more.
    pub fn afterwards(f: fn()) {
        BYPASS.with(|inside| inside.afterwards.set(Some(f)));
    }

    /// The thread goes on as another one, out of the middle of whatever it was in: it is not inside.
    pub fn reset() {
        BYPASS.with(|inside| {
            inside.depth.set(0);
            inside.afterwards.set(None);
        });
    }

    /// For a thread of our own, as the embedded manager: inside for ever.
    pub fn this_thread() {
        std::mem::forget(Self::enter());
    }
}

impl Drop for Bypass {
    fn drop(&mut self) {
        let afterwards = BYPASS.with(|inside| {
            let depth = inside.depth.get() - 1;
            inside.depth.set(depth);
            if depth == 0 {
                inside.afterwards.take()
            } else {
                None
            }
        });
        if let Some(f) = afterwards {
            f();
        }
    }
}

/// Why the manager does not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientError {
    /// The nearest errno.
    pub errno: i32,
    /// What happened, for people.
    pub text: String,
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for ClientError {}

impl From<io::Error> for ClientError {
    fn from(e: io::Error) -> Self {
        Self { errno: e.raw_os_error().unwrap_or(libc::EIO), text: format!("channel: {e}") }
    }
}

/// Told of numbers that have become descriptors of ours (true), and of those that are none any more.
pub type Note = fn(RawFd, bool);

/// A process's connection to its manager.
pub struct Client {
    welcome: Welcome,
    token: String,
    note: Note,
    mapping: Arc<Mapping>,
    producing: Mutex<Producing>,
    requesting: Mutex<Requesting>,
    /// The manager was found dead: nothing is told any more.
    gone: AtomicBool,
    /// The application has closed descriptors that it does not know.
    lost: AtomicBool,
}

struct Producing {
    producer: Producer,
    kick: Own,
}

impl Producing {
    /// Wakes the manager if it sleeps. False: what does it is lost.
    fn kick(&mut self) -> bool {
        !self.producer.wants_kick() || self.kick.kick()
    }
}

struct Requesting {
    socket: Own,
    number: u32,
    /// Sessions that came when nobody waited for them any more. We alone have them: closed, they would end.
    late: Vec<(RecoveredInfo, Own)>,
}

/// How long a request may take. The manager answers within its loop; it is slow only when it is in trouble.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a manager that is there may take to admit us.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a watched manager is looked at.
const WATCH_NAP: Duration = Duration::from_millis(20);
/// How long a role is waited for: a dead manager wakes nobody.
const ROLE_NAP: Duration = Duration::from_millis(200);
/// How long a producer naps between looks at a full ring.
const FULL_NAP: Duration = Duration::from_micros(100);

impl Client {
    /// Joins the manager of a service, which may still be starting: tries until `patience` is over.
    pub fn connect(service: &str, token: &str, patience: Duration, note: Note) -> Result<Self, ClientError> {
        let _inside = Bypass::enter();
        let (requesting, reply, fds) = introduce(service, token, None, patience)?;
        let welcome = match reply {
            Reply::Welcome(welcome) => welcome,
            Reply::Error { errno, text } => return Err(ClientError { errno, text }),
            _ => return Err(protocol("an answer to a hello that is no welcome")),
        };
        let [memory, kick]: [OwnedFd; 2] = fds.try_into().map_err(|_| protocol("a welcome without shared memory"))?;
        let mapping = Arc::new(Mapping::new(memory.as_fd())?);
        let producer = Producer::new(mapping.clone())?;
        let kick = Own::timer(sys::move_high(kick))?;
        note(requesting.socket.number(), true);
        note(kick.number(), true);
        Ok(Self {
            welcome,
            token: token.to_owned(),
            note,
            mapping,
            producing: Mutex::new(Producing { producer, kick }),
            requesting: Mutex::new(requesting),
            gone: AtomicBool::new(false),
            lost: AtomicBool::new(false),
        })
    }

    /// What the manager told when it admitted us.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Whether the manager was found dead. Protected descriptors go on as plain ones then; their packets are
    /// held by the rules, which fail closed.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Whether the application is known to close descriptors that it does not know.
    pub fn has_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Tells an event (not [`Event::Write`]). False: nobody is there to hear it.
    pub fn push(&self, event: &Event<'_>) -> bool {
        let kicks = matches!(
            event,
            Event::Wait { .. }
                | Event::ReadAfterWrite { .. }
                | Event::Blocked { over: false, .. }
                | Event::Commit { .. }
                | Event::Exit
                | Event::Close { .. }
                | Event::Shutdown { .. }
                | Event::Option { .. }
        );
        self.produce(kicks, |producer| producer.push(event)).is_some()
    }

    /// Wakes the manager, if it sleeps, for what was told and does not wake it by itself.
    pub fn kick(&self) {
        let _inside = Bypass::enter();
        let kicked = lock(&self.producing).kick();
        if !kicked {
            self.resume();
        }
    }

    /// Announces a write, performs it and tells how it went, as one step (see [`Producer::write`]). `None`:
    /// nobody is there to hear it, and nothing was sent.
    pub fn write(
        &self,
        thread: u32,
        handle: u32,
        asked: u64,
        len: usize,
        mut fill: impl FnMut(&mut [u8]),
        mut send: impl FnMut(&[u8]) -> Sent,
    ) -> Option<Sent> {
        self.produce(false, |producer| producer.write(thread, handle, asked, len, &mut fill, &mut send))
    }

    fn produce<T>(&self, kicks: bool, mut entry: impl FnMut(&mut Producer) -> Result<T, Full>) -> Option<T> {
        let _inside = Bypass::enter();
        while !self.is_gone() {
            let mut producing = lock(&self.producing);
            let result = entry(&mut producing.producer);
            let urgent = kicks || result.is_err() || producing.producer.is_half_full();
            let kicked = !urgent || producing.kick();
            drop(producing);
            if !kicked {
                self.resume();
            }
            if let Ok(value) = result {
                return Some(value);
            }
            self.look_for_manager();
            nap(FULL_NAP);
        }
        None
    }

    fn look_for_manager(&self) {
        // Held by another thread: that one waits for a reply, and will find out itself.
        let Ok(requesting) = self.requesting.try_lock() else { return };
        if !requesting.socket.is_ours() {
            drop(requesting);
            self.resume();
        } else if requesting.hung_up() {
            self.gone.store(true, Ordering::Relaxed);
        }
    }

    /// The application has closed what is ours, by calls that no hook sees: makes it anew. False: that cannot be, and nothing is
    /// told any more.
    fn resume(&self) -> bool {
        let mut requesting = lock(&self.requesting);
        let mut producing = lock(&self.producing);
        if self.is_gone() || requesting.socket.is_ours() && producing.kick.is_ours() {
            return !self.is_gone();
        }
        let anew = || {
            let (service, channel) = (&self.welcome.service, self.welcome.channel);
            let (requesting, reply, fds) = introduce(service, &self.token, Some(channel), Duration::ZERO)?;
            match (reply, <[OwnedFd; 1]>::try_from(fds)) {
                (Reply::Ok, Ok([kick])) => Ok((requesting, Own::timer(sys::move_high(kick))?)),
                (Reply::Error { errno, text }, _) => Err(ClientError { errno, text }),
                _ => Err(protocol("a channel without its kick")),
            }
        };
        self.lost.store(true, Ordering::Relaxed);
        (self.note)(requesting.socket.number(), false);
        (self.note)(producing.kick.number(), false);
        match anew() {
            Ok((mut anew, kick)) => {
                anew.late = std::mem::take(&mut requesting.late);
                (*requesting, producing.kick) = (anew, kick);
                (self.note)(requesting.socket.number(), true);
                (self.note)(producing.kick.number(), true);
                log::warn!("the program closed descriptors of tcpr's; they were made anew");
            }
            Err(e) => {
                log::error!(error:% = e; "the program closed descriptors of tcpr's, and is not protected any more");
                self.gone.store(true, Ordering::Relaxed);
            }
        }
        !self.is_gone()
    }

    fn request(&self, request: Request) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        self.request_with(request, &[])
    }

    fn request_with(&self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        let _inside = Bypass::enter();
        if self.is_gone() {
            return Err(gone());
        }
        let mut requesting = lock(&self.requesting);
        if !requesting.socket.is_ours() {
            drop(requesting);
            if !self.resume() {
                return Err(gone());
            }
            requesting = lock(&self.requesting);
        }
        let result = requesting.ask(request, fds, Instant::now() + REPLY_TIMEOUT);
        drop(requesting);
        match result {
            Ok((Reply::Error { errno, text }, _)) => Err(ClientError { errno, text }),
            Err(e) if e.errno == libc::ENOTCONN => {
                self.gone.store(true, Ordering::Relaxed);
                Err(e)
            }
            other => other,
        }
    }

    /// Fetches restored sessions of a listening port, with their descriptors; and whether there are more.
    pub fn recovered(&self, port: u16, max: u32) -> Result<(Vec<(RecoveredInfo, Own)>, bool), ClientError> {
        let (reply, fds) = self.request(Request::GetRecovered { port, max })?;
        match reply {
            Reply::Recovered { sessions, more } if sessions.len() == fds.len() => {
                let fds: Vec<Own> = fds.into_iter().map(Own::new).collect::<io::Result<_>>()?;
                let late = |(info, _): &mut (RecoveredInfo, Own)| info.tuple.local.port() == port;
                let mut all: Vec<_> = lock(&self.requesting).late.extract_if(.., late).collect();
                all.extend(sessions.into_iter().zip(fds));
                Ok((all, more))
            }
            _ => Err(protocol("recovered sessions without their descriptors")),
        }
    }

    /// The memory of the trace, if this is a hot standby's process.
    pub fn trace(&self) -> Result<OwnedFd, ClientError> {
        match self.request(Request::Trace)? {
            (Reply::Ok, mut fds) if fds.len() == 1 => Ok(fds.remove(0)),
            _ => Err(protocol("no memory for the trace")),
        }
    }

    /// Fetches restored sessions that this process, which takes over, has already; and whether there are more. None may be there
    /// yet.
    pub fn standing(&self) -> Result<(Vec<(RecoveredInfo, OwnedFd)>, bool), ClientError> {
        let (reply, fds) = self.request(Request::GetStanding)?;
        match reply {
            Reply::Recovered { sessions, more } if sessions.len() == fds.len() => {
                Ok((sessions.into_iter().zip(fds).collect(), more))
            }
            _ => Err(protocol("sessions without their descriptors")),
        }
    }

    /// Has an embedded manager leave in order, and waits until it has.
    pub fn dismiss(&self) {
        // Answered by its end.
        let _ = self.request(Request::Dismiss);
        self.gone.store(true, Ordering::Relaxed);
    }

    /// Waits until the manager is gone.
    pub fn wait_gone(&self) {
        let _inside = Bypass::enter();
        while !self.is_gone() {
            // Not for long under the lock that requests need.
            self.look_for_manager();
            nap(WATCH_NAP);
        }
    }

    /// Makes a request that is answered by [`Reply::Ok`].
    pub fn tell(&self, request: Request) -> Result<(), ClientError> {
        match self.request(request)?.0 {
            Reply::Ok => Ok(()),
            _ => Err(protocol("an unexpected reply")),
        }
    }

    /// Prepares a socket for its connection to a protected destination; see [`Request::Call`].
    pub fn call(&self, to: SocketAddr, thread: u32, socket: BorrowedFd<'_>) -> Result<(), ClientError> {
        match self.request_with(Request::Call { to, thread }, &[socket])?.0 {
            Reply::Ok => Ok(()),
            _ => Err(protocol("an unexpected reply")),
        }
    }

    /// Makes a request that is answered by [`Reply::Data`].
    pub fn data(&self, request: Request) -> Result<Option<wire::Bytes>, ClientError> {
        match self.request(request)?.0 {
            Reply::Data(data) => Ok(data),
            _ => Err(protocol("an unexpected reply")),
        }
    }

    /// What the manager knows of a session.
    pub fn session(&self, tuple: tcpr_session::tuple::FourTuple) -> Result<wire::SessionFacts, ClientError> {
        match self.request(Request::SessionInfo { tuple })?.0 {
            Reply::Session(facts) => Ok(facts),
            _ => Err(protocol("an unexpected reply")),
        }
    }

    /// The role of this member.
    pub fn role(&self) -> ChannelRole {
        match self.mapping.header().role.load(Ordering::Acquire) {
            1 => ChannelRole::Backup,
            2 => ChannelRole::Master,
            3 => ChannelRole::Fenced,
            _ => ChannelRole::Starting,
        }
    }

    /// Whether the log is so far ahead of the replica that a write waits, as for a full buffer. See [`super::ring::EASE`].
    #[inline]
    pub fn is_pressed(&self, least: u32) -> bool {
        self.mapping.header().pressure.load(Ordering::Acquire) >= least
    }

    /// Waits for a moment, or until that is over. False: nobody is there who could say so.
    pub fn await_replica(&self, least: u32) -> bool {
        let _inside = Bypass::enter();
        let word = &self.mapping.header().pressure;
        let value = word.load(Ordering::Acquire);
        if value >= least {
            sys::futex_wait(word, value, Some(WATCH_NAP));
        }
        self.look_for_manager();
        !self.is_gone()
    }

    /// The number of the epoch.
    pub fn epoch(&self) -> u64 {
        self.mapping.header().epoch.load(Ordering::Acquire)
    }

    /// Waits for a role; `None` waits without end. An error when the manager is gone.
    pub fn wait_role(&self, role: ChannelRole, timeout: Option<Duration>) -> Result<bool, ClientError> {
        let _inside = Bypass::enter();
        let deadline = timeout.map(|t| Instant::now() + t);
        let word = &self.mapping.header().role;
        loop {
            let value = word.load(Ordering::Acquire);
            if value == role as u32 {
                return Ok(true);
            }
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(false);
            }
            self.look_for_manager();
            if self.is_gone() {
                return Err(gone());
            }
            sys::futex_wait(word, value, Some(left.map_or(ROLE_NAP, |l| l.min(ROLE_NAP))));
        }
    }

    /// Waits for a moment, or until the role is another one.
    pub fn await_another_role(&self, role: ChannelRole) {
        let _inside = Bypass::enter();
        sys::futex_wait(&self.mapping.header().role, role as u32, Some(ROLE_NAP));
        self.look_for_manager();
    }

    /// Has whoever waits for a role in this process look at it again.
    pub fn wake_for_role(&self) {
        let _inside = Bypass::enter();
        sys::futex_wake(&self.mapping.header().role);
    }

    /// How many recovered sessions of a listening port wait to be accepted.
    #[inline]
    pub fn pending(&self, port: u16) -> u32 {
        match self.welcome.ports.iter().position(|p| p.port == port) {
            Some(i) => self.mapping.header().recovered.get(i).map_or(0, |s| s.pending.load(Ordering::Acquire)),
            None => 0,
        }
    }

    /// Whether each session of a port that is accepted takes a doorbell off the queue, and not only the last one.
    pub fn each_rings(&self, port: u16) -> bool {
        let slot = self.welcome.ports.iter().position(|p| p.port == port);
        slot.and_then(|i| self.mapping.header().recovered.get(i)).is_some_and(|s| s.each_rings.load(Ordering::Acquire) != 0)
    }

    /// Gives a session back that this process was handed and cannot accept now.
    pub fn give_back(&self, session: u32, socket: BorrowedFd<'_>) -> Result<(), ClientError> {
        match self.request_with(Request::GiveBack { session }, &[socket])?.0 {
            Reply::Ok => Ok(()),
            _ => Err(protocol("an unexpected reply")),
        }
    }

    #[cfg(test)]
    pub(super) fn descriptors(&self) -> [RawFd; 2] {
        [lock(&self.requesting).socket.number(), lock(&self.producing).kick.number()]
    }

    /// Gives up one number that the application wants for itself.
    pub fn vacate(&self, fd: RawFd) {
        let _inside = Bypass::enter();
        let mut requesting = lock(&self.requesting);
        let mut producing = lock(&self.producing);
        for ours in [&mut requesting.socket, &mut producing.kick] {
            if ours.number() == fd && ours.make_way() {
                (self.note)(ours.number(), true);
            }
        }
    }

    /// Nothing more is told: the process is about to forbid itself what it takes.
    pub fn leave(&self) -> Result<(), ClientError> {
        let told = self.tell(Request::Leave);
        self.gone.store(true, Ordering::Relaxed);
        told
    }
}

/// Connects to the manager of a service and says who we are.
fn introduce(
    service: &str,
    token: &str,
    resume: Option<u32>,
    patience: Duration,
) -> Result<(Requesting, Reply, Vec<OwnedFd>), ClientError> {
    let deadline = Instant::now() + patience;
    let name = wire::socket_name(service);
    let hello = Hello { version: wire::PROTOCOL_VERSION, token: token.to_owned(), resume };
    loop {
        let socket = match sys::seqpacket_connect(&name) {
            Ok(socket) => Own::new(sys::move_high(socket))?,
            Err(e) if Instant::now() >= deadline => {
                let text = format!("no manager of service \"{service}\" answers: {e}");
                return Err(ClientError { errno: libc::ENOTCONN, text });
            }
            Err(_) => {
                nap(Duration::from_millis(10));
                continue;
            }
        };
        let mut requesting = Requesting { socket, number: 0, late: Vec::new() };
        match requesting.ask(&hello, &[], deadline.max(Instant::now() + ANSWER_TIMEOUT)) {
            // The manager has died, or strangers have pushed us out before it heard us.
            Err(e) if e.errno == libc::ENOTCONN && Instant::now() < deadline => nap(Duration::from_millis(10)),
            answer => {
                let (reply, fds) = answer?;
                return Ok((requesting, reply, fds));
            }
        }
    }
}

impl Requesting {
    /// Sends a request and waits for its reply.
    fn ask<T: serde::Serialize>(
        &mut self,
        body: T,
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        self.number = self.number.wrapping_add(1);
        let bytes = wire::encode(&Numbered { number: self.number, body })?;
        let mut buffer = vec![0u8; wire::MAX_MESSAGE];
        sys::send(self.socket.as_fd(), &bytes, fds).map_err(hung_up_or)?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let text = "the manager does not answer".into();
                return Err(ClientError { errno: libc::ETIMEDOUT, text });
            }
            match sys::poll(self.socket.as_fd(), libc::POLLIN, left) {
                Ok(0) => continue,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Ok(_) => {}
                Err(e) => return Err(e.into()),
            }
            // Meanwhile its number may have become a connection of the application's, whose input is not ours to take.
            if !self.socket.is_ours() {
                return Err(ClientError { errno: libc::EBADF, text: "the program closed tcpr's channel".into() });
            }
            let (n, fds) = match sys::receive(self.socket.as_fd(), &mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                other => other.map_err(hung_up_or)?,
            };
            if n == 0 {
                return Err(gone());
            }
            let reply: Numbered<Reply> = wire::decode(&buffer[..n])?;
            if reply.number == self.number {
                return Ok((reply.body, fds));
            }
            // An older one answers somebody who gave up.
            if let Reply::Recovered { sessions, .. } = reply.body {
                self.late.extend(sessions.into_iter().zip(fds.into_iter().flat_map(Own::new)));
            }
        }
    }

    fn hung_up(&self) -> bool {
        let gone = libc::POLLHUP | libc::POLLERR | libc::POLLNVAL;
        matches!(sys::poll(self.socket.as_fd(), libc::POLLRDHUP, Duration::ZERO),
            Ok(found) if found & (gone | libc::POLLRDHUP) != 0)
    }
}

/// Our locks guard state that is consistent at every point at which a panic could come.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn nap(duration: Duration) {
    // A futex that nobody wakes, rather than nanosleep, which is a cancellation point.
    sys::futex_wait(&AtomicU32::new(0), 0, Some(duration));
}

fn gone() -> ClientError {
    ClientError { errno: libc::ENOTCONN, text: "the manager is gone".into() }
}

fn hung_up_or(e: io::Error) -> ClientError {
    match e.raw_os_error() {
        Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN) => gone(),
        _ => e.into(),
    }
}

fn protocol(what: &str) -> ClientError {
    ClientError { errno: libc::EPROTO, text: format!("the manager broke the channel's protocol: {what}") }
}
