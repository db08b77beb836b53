//! The manager's end of the channel, for its event loop: nothing here blocks.

use std::io;
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::ring::{self, Consumer, Corrupt, Mapping, SLOTS};
use super::wire::{self, Hello, Numbered, OutgoingInfo, PortInfo, Reply, Request, Welcome};
use super::{sys, Event};

/// The role of this member, as applications see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ChannelRole {
    /// Not decided yet.
    Starting = 0,
    /// Standing by.
    Backup = 1,
    /// Serving.
    Master = 2,
    /// Releasing nothing, until it knows that it may.
    Fenced = 3,
}

/// What every process of a service is told when it joins.
#[derive(Clone, Debug)]
pub struct Greeting {
    /// The name of the service.
    pub service: String,
    /// What `tcpr run` put into `TCPR_TOKEN`.
    pub token: String,
    /// Its virtual addresses.
    pub vips: Vec<IpAddr>,
    /// Its protected ports; at most [`SLOTS`].
    pub ports: Vec<PortInfo>,
    /// See [`wire::Welcome::spliced`].
    pub spliced: bool,
    /// Destinations to which connections are protected.
    pub outgoing: Vec<OutgoingInfo>,
}

/// Why a channel must be closed.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The process closed its end, most likely by dying.
    #[error("the process closed its channel")]
    Gone,
    /// It broke the protocol: a wrong token, an unknown message, nonsense in the ring.
    #[error("the process broke the channel's protocol: {0}")]
    Misbehaved(String),
    /// The kernel refused something.
    #[error("channel: {0}")]
    Io(io::Error),
}

impl From<Corrupt> for ChannelError {
    fn from(corrupt: Corrupt) -> Self {
        ChannelError::Misbehaved(corrupt.to_string())
    }
}

impl From<io::Error> for ChannelError {
    fn from(e: io::Error) -> Self {
        ChannelError::Io(e)
    }
}

/// The socket on which processes join.
pub struct ChannelListener {
    socket: OwnedFd,
    greeting: Arc<Greeting>,
    next: u32,
}

impl ChannelListener {
    /// Listens for the processes of a service. `AddrInUse`: another manager of the service runs in this network
    /// namespace.
    pub fn bind(greeting: Greeting) -> io::Result<Self> {
        if greeting.ports.len() > SLOTS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many protected ports"));
        }
        let socket = sys::seqpacket_listen(&wire::socket_name(&greeting.service))?;
        Ok(Self { socket, greeting: Arc::new(greeting), next: 1 })
    }

    /// Takes one process that wants to join, if there is one. It has no ring until its hello was received.
    pub fn accept(&mut self) -> Result<Option<Channel>, ChannelError> {
        let Some(socket) = sys::accept(self.socket.as_fd())? else {
            return Ok(None);
        };
        let (pid, uid) = sys::peer(socket.as_fd())?;
        let id = self.next;
        self.next += 1;
        Ok(Some(Channel { id, pid, uid, socket, greeting: self.greeting.clone(), joined: None }))
    }
}

impl AsFd for ChannelListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What [`Channel::receive`] found on the socket.
#[derive(Debug)]
pub enum Incoming {
    /// The process was admitted and has its ring now: watch [`Channel::kick_fd`].
    Joined(Hello),
    /// The process has joined before, and has lost its end of that channel; see [`Channel::resume`].
    Resumes {
        /// The number of its message.
        number: u32,
        /// The channel.
        channel: u32,
    },
    /// A request; give its number to [`Channel::reply`]. With the descriptor that belongs to a [`Request::Call`] or a
    /// [`Request::GiveBack`].
    Request(u32, Request, Option<OwnedFd>),
}

/// One process of the application.
pub struct Channel {
    id: u32,
    pid: u32,
    uid: u32,
    socket: OwnedFd,
    greeting: Arc<Greeting>,
    joined: Option<Joined>,
}

struct Joined {
    mapping: Arc<Mapping>,
    consumer: Consumer,
    kick: OwnedFd,
    process: OwnedFd,
}

impl Channel {
    /// Its number, never used again by this manager.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The process, by the kernel's word.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The socket: readable when [`Channel::receive`] has something. Its end of file says that the process gave
    /// the channel up (it died or called exec), unless a forked child still has a copy.
    pub fn socket_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Its user when it connected, by the kernel's word.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// A pidfd: readable when the process is dead, whoever has copies of its descriptors. Drain once more then. Present
    /// once it has joined.
    pub fn process_fd(&self) -> Option<BorrowedFd<'_>> {
        self.joined.as_ref().map(|j| j.process.as_fd())
    }

    /// Readable when the process kicked; present once it has joined.
    pub fn kick_fd(&self) -> Option<BorrowedFd<'_>> {
        self.joined.as_ref().map(|j| j.kick.as_fd())
    }

    /// Whether the process was admitted.
    pub fn has_joined(&self) -> bool {
        self.joined.is_some()
    }

    /// Takes one message from the socket. A hello is answered here.
    pub fn receive(&mut self) -> Result<Option<Incoming>, ChannelError> {
        let mut buffer = [0u8; wire::MAX_REQUEST];
        let (n, mut fds) = match sys::receive(self.socket.as_fd(), &mut buffer) {
            Ok(received) => received,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) if e.raw_os_error() == Some(libc::ECONNRESET) => return Err(ChannelError::Gone),
            Err(e) => return Err(ChannelError::Misbehaved(e.to_string())),
        };
        if n == 0 {
            return Err(ChannelError::Gone);
        }
        let socket = fds.pop();
        if !fds.is_empty() || socket.is_some() && self.joined.is_none() {
            return Err(ChannelError::Misbehaved("it sent descriptors".into()));
        }
        let misbehaved = |e: io::Error| ChannelError::Misbehaved(e.to_string());
        if self.joined.is_some() {
            let request: Numbered<Request> = wire::decode(&buffer[..n]).map_err(misbehaved)?;
            if socket.is_some() != matches!(request.body, Request::Call { .. } | Request::GiveBack { .. }) {
                return Err(ChannelError::Misbehaved("a descriptor too many, or too few".into()));
            }
            return Ok(Some(Incoming::Request(request.number, request.body, socket)));
        }
        let hello: Numbered<Hello> = wire::decode(&buffer[..n]).map_err(misbehaved)?;
        self.check(&hello)?;
        if let Some(channel) = hello.body.resume {
            return Ok(Some(Incoming::Resumes { number: hello.number, channel }));
        }
        self.admit(hello.number).map(|()| Some(Incoming::Joined(hello.body)))
    }

    /// Turns away who does not belong here.
    fn check(&self, hello: &Numbered<Hello>) -> Result<(), ChannelError> {
        let (number, hello) = (hello.number, &hello.body);
        if hello.version != wire::PROTOCOL_VERSION {
            let (theirs, ours) = (hello.version, wire::PROTOCOL_VERSION);
            let text = format!("libtcpr speaks channel version {theirs}, the manager {ours}");
            return Err(self.refuse(number, libc::EPROTO, text));
        }
        if !same(hello.token.as_bytes(), self.greeting.token.as_bytes()) {
            let text = "wrong token: the program was not started by this manager";
            return Err(self.refuse(number, libc::EACCES, text.into()));
        }
        Ok(())
    }

    /// Answers a hello with no.
    pub fn refuse(&self, number: u32, errno: i32, text: String) -> ChannelError {
        // It is being turned away: whether it hears why is its own affair.
        let _ = send(self.socket.as_fd(), number, Reply::Error { errno, text: text.clone() }, &[]);
        ChannelError::Misbehaved(text)
    }

    /// Goes on with the socket of another channel, which its process has opened for having lost this one's. The memory is what
    /// it was, and with it all that was told; there is another kick.
    pub fn resume(&mut self, by: Channel, number: u32) -> Result<(), ChannelError> {
        let Some(joined) = &mut self.joined else { return Err(by.refuse(number, libc::ENOTCONN, "no such channel".into())) };
        let kick = sys::kick_timer(self.id)?;
        send(by.socket.as_fd(), number, Reply::Ok, &[kick.as_fd()])?;
        (joined.kick, self.socket) = (kick, by.socket);
        Ok(())
    }

    fn admit(&mut self, number: u32) -> Result<(), ChannelError> {
        let process = sys::pidfd(self.socket.as_fd(), self.pid)?;
        let memory = sys::memory(ring::MEMORY_BYTES)?;
        let mapping = Arc::new(Mapping::new(memory.as_fd())?);
        ring::initialise(&mapping);
        let kick = sys::kick_timer(self.id)?;
        let greeting = &self.greeting;
        for (slot, port) in mapping.header().recovered.iter().zip(&greeting.ports) {
            slot.port.store(port.port.into(), Ordering::Relaxed);
        }
        let welcome = Welcome {
            service: greeting.service.clone(),
            vips: greeting.vips.clone(),
            ports: greeting.ports.clone(),
            spliced: greeting.spliced,
            outgoing: greeting.outgoing.clone(),
            channel: self.id,
        };
        send(self.socket.as_fd(), number, Reply::Welcome(welcome), &[memory.as_fd(), kick.as_fd()])?;
        let consumer = Consumer::new(mapping.clone());
        self.joined = Some(Joined { mapping, consumer, kick, process });
        Ok(())
    }

    /// Answers a request. Descriptors are duplicated into the process: close yours afterwards, or its close
    /// sends no FIN.
    pub fn reply(&self, number: u32, reply: Reply, fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        send(self.socket.as_fd(), number, reply, fds)
    }

    /// Ends the channel, whoever still holds its other end: nothing more is said or heard. The process goes on without.
    pub fn cut_off(&mut self) {
        self.joined = None;
        if let Ok(socket) = self.socket.try_clone() {
            // A producer that waits for room in its ring finds out by this.
            let _gone = UnixStream::from(socket).shutdown(Shutdown::Both);
        }
    }

    /// Consumes what the process has told since, up to an open intent. Clears the kick. Returns how many
    /// events there were.
    pub fn drain(&mut self, f: impl FnMut(Event<'_>)) -> Result<usize, ChannelError> {
        match &mut self.joined {
            Some(joined) => Ok(joined.consumer.drain(f)?),
            None => Ok(0),
        }
    }

    /// Clears the kick; call it when [`Channel::kick_fd`] is readable.
    pub fn clear_kick(&self) {
        if let Some(joined) = &self.joined {
            sys::unkick(joined.kick.as_fd());
        }
    }

    /// The connection of the write at which the last `drain` stopped. While there is one, bytes that no event
    /// announced may belong to it; if the process has died, it will never be known how many were taken.
    pub fn open_intent(&self) -> Option<u32> {
        self.joined.as_ref().and_then(|j| j.consumer.open_intent())
    }

    /// Whether there is something to drain, or something wrong, which [`Channel::drain`] tells.
    pub fn told(&self) -> bool {
        self.joined.as_ref().is_some_and(|j| j.consumer.told().unwrap_or(true))
    }

    /// Before the loop sleeps: asks for kicks. False: there is something to drain, do not sleep.
    pub fn prepare_sleep(&mut self) -> Result<bool, ChannelError> {
        match &mut self.joined {
            Some(joined) => Ok(joined.consumer.prepare_sleep()?),
            None => Ok(true),
        }
    }

    /// After the loop woke: no more kicks are needed.
    pub fn wake(&mut self) {
        if let Some(joined) = &mut self.joined {
            joined.consumer.wake();
        }
    }

    /// Publishes the role and wakes those who wait for it.
    pub fn set_role(&self, role: ChannelRole) {
        if let Some(joined) = &self.joined {
            let word = &joined.mapping.header().role;
            word.store(role as u32, Ordering::Release);
            sys::futex_wake(word);
        }
    }

    /// Publishes how far the log is ahead of the replica ([`ring::EASE`], [`ring::STOP`], 0) and wakes those who wait.
    pub fn set_pressure(&self, pressure: u32) {
        if let Some(joined) = &self.joined {
            let word = &joined.mapping.header().pressure;
            if word.swap(pressure, Ordering::Release) > pressure {
                sys::futex_wake(word);
            }
        }
    }

    /// Publishes the epoch (its number) and the index of its member.
    pub fn set_epoch(&self, number: u64, member: u32) {
        if let Some(joined) = &self.joined {
            let header = joined.mapping.header();
            header.epoch.store(number, Ordering::Release);
            header.role_member.store(member, Ordering::Release);
        }
    }

    /// Publishes how many recovered sessions of a listening port no process has attached yet (those that lie
    /// in a process's stash still count). False: the port is not one of the greeting's.
    pub fn set_pending(&self, port: u16, pending: u32) -> bool {
        let Some(joined) = &self.joined else { return false };
        let slots = &joined.mapping.header().recovered;
        // By the greeting's order: the application could have written over the port in the header.
        match self.greeting.ports.iter().position(|p| p.port == port) {
            Some(i) => {
                slots[i].pending.store(pending, Ordering::Release);
                true
            }
            None => false,
        }
    }

    /// Publishes whether each session of a listening port that is accepted takes a doorbell off the queue.
    pub fn set_each_rings(&self, port: u16, each: bool) {
        let slot = self.greeting.ports.iter().position(|p| p.port == port);
        if let (Some(joined), Some(i)) = (&self.joined, slot) {
            joined.mapping.header().recovered[i].each_rings.store(each.into(), Ordering::Release);
        }
    }
}

fn send(socket: BorrowedFd<'_>, number: u32, body: Reply, fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
    let bytes = wire::encode(&Numbered { number, body })?;
    match sys::send(socket, &bytes, fds) {
        Ok(()) => Ok(()),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) => Err(ChannelError::Gone),
        // It asks and never listens.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(ChannelError::Misbehaved("it does not read its replies".into())),
        Err(e) => Err(ChannelError::Io(e)),
    }
}

/// Compares secrets in a time that does not depend on where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (x, y)| diff | (x ^ y)) == 0
}
