//! The replication connection between two members: TCP, encrypted and authenticated by Noise with the
//! pre-shared key, carrying [`Message`]s.
//!
//! A [`Link`] owns its socket and nothing else; the manager's event loop drives it and lends it the clock. The
//! member with the higher index dials ([`Link::connect`]), the other one accepts ([`Listener`]). Then, for
//! either end:
//! ```text
//! on readiness    link.on_ready(now, readable, writable)
//!                 while let Some(message) = link.poll_message() { ... link.send(&answer) ... }
//!                 link.flush()            all that was sent in this round, with one system call
//!                 link.close_reason()     Some: drop it
//! before waiting  link.interest(), link.poll_timeout()
//! ```
//! A wake costs one `recv`, a flush one `send`, and neither allocates in the steady state.

mod buffer;
mod handshake;
mod listener;
mod message;
mod socket;
#[cfg(test)]
mod tests;

pub use handshake::{Fault, LinkConfig, CAUSES, DATA, OPTIONS, PROGRAM_SNAPSHOT, PROTOCOL, TRACE};
pub use listener::{Listener, Rejections, MAX_HALF_OPEN};
pub use message::{decode, encode, Continuation, Goodbye, Hello, Malformed, Message, MAX_BYTES, MAX_MESSAGE};

use buffer::{Inbox, Outbox};
use handshake::{Agreed, ANSWER_LEN, OFFER_LEN, TAG_LEN};
use snow::HandshakeState;
use std::fmt;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;
use tcpr_session::Now;

/// A connection and its handshake must be made within this time.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(1);
/// What a link reads from whoever has not proved to know the key.
const UNTRUSTED_READ: usize = 512;
/// The dialer's confirmation: an empty frame.
const CONFIRM_LEN: usize = 2 + TAG_LEN;

/// One end of a replication connection.
pub struct Link {
    stream: TcpStream,
    partner: SocketAddr,
    config: Arc<LinkConfig>,
    state: State,
    inbox: Inbox,
    outbox: Outbox,
    /// Writing failed with this; what the partner sent before may still be read.
    write_failed: Option<CloseReason>,
    closed: Option<CloseReason>,
}

// One link a manager: its size does not matter.
#[allow(clippy::large_enum_variant)]
enum State {
    /// Dialer: the kernel is connecting.
    Connecting {
        deadline: Now,
    },
    /// Dialer: the offer is out.
    Offered {
        deadline: Now,
        noise: Option<HandshakeState>,
    },
    /// Listener: waits for the offer.
    Accepted {
        deadline: Now,
    },
    /// Listener: has answered and waits for proof that the dialer is not a recording.
    Answered {
        deadline: Now,
        agreed: Agreed,
    },
    Open(Agreed),
    /// Failed before it was open.
    Dead,
}

impl Link {
    /// Dials `to`, from `local` if given. It is made in the background: wait for the descriptor to be writable.
    pub fn connect(now: Now, to: SocketAddr, local: Option<SocketAddr>, config: Arc<LinkConfig>) -> io::Result<Link> {
        let stream = socket::start_connect(to, local, config.user_timeout)?;
        let deadline = now + HANDSHAKE_TIMEOUT;
        Ok(Link::new(stream, to, config, State::Connecting { deadline }))
    }

    fn accepted(now: Now, stream: TcpStream, from: SocketAddr, config: Arc<LinkConfig>) -> io::Result<Link> {
        socket::tune(&stream, config.user_timeout)?;
        let deadline = now + HANDSHAKE_TIMEOUT;
        Ok(Link::new(stream, from, config, State::Accepted { deadline }))
    }

    fn new(stream: TcpStream, partner: SocketAddr, config: Arc<LinkConfig>, state: State) -> Link {
        Link {
            stream,
            partner,
            config,
            state,
            inbox: Inbox::new(UNTRUSTED_READ),
            outbox: Outbox::new(),
            write_failed: None,
            closed: None,
        }
    }

    /// The descriptor to watch, level-triggered. It stays the same for the life of the link.
    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// The other end's address.
    pub fn partner(&self) -> SocketAddr {
        self.partner
    }

    /// Whether to watch for readable and for writable.
    pub fn interest(&self) -> (bool, bool) {
        if self.closed.is_some() {
            return (false, false);
        }
        match self.state {
            State::Connecting { .. } => (false, true),
            State::Open(_) => (self.inbox.has_room(), self.outbox.waiting() > 0),
            _ => (true, self.outbox.wire_waiting()),
        }
    }

    /// The descriptor is ready. An error or hang-up of the descriptor counts as both.
    pub fn on_ready(&mut self, now: Now, readable: bool, writable: bool) {
        if self.closed.is_some() {
            return;
        }
        if matches!(self.state, State::Connecting { .. }) {
            if writable {
                self.connected();
            }
        } else {
            if readable && self.inbox.has_room() {
                self.read();
            }
            if writable {
                self.flush();
            }
        }
        self.handle_timeout(now);
    }

    /// When `handle_timeout` wants to be called.
    pub fn poll_timeout(&self) -> Option<Now> {
        if self.closed.is_some() {
            return None;
        }
        match self.state {
            State::Connecting { deadline }
            | State::Offered { deadline, .. }
            | State::Accepted { deadline }
            | State::Answered { deadline, .. } => Some(deadline),
            State::Open(_) | State::Dead => None,
        }
    }

    /// Gives up a handshake that takes too long.
    pub fn handle_timeout(&mut self, now: Now) {
        if self.poll_timeout().is_some_and(|deadline| now >= deadline) {
            self.fail(CloseReason::HandshakeTimeout);
        }
    }

    /// The next message that has arrived. Ask until there is none, also after the partner has closed: what it
    /// said before is still valid.
    pub fn poll_message(&mut self) -> Option<Message<'_>> {
        if matches!(self.closed, Some(CloseReason::Malformed(_))) {
            return None;
        }
        match self.inbox.next() {
            Ok(message) => message,
            Err(malformed) => {
                self.closed = Some(CloseReason::Malformed(malformed));
                None
            }
        }
    }

    /// Queues a message; `flush` sends it. Before the link is established messages wait.
    pub fn send(&mut self, message: &Message<'_>) -> Result<(), SendError> {
        if self.closed.is_some() {
            return Err(SendError::Closed);
        }
        if self.write_failed.is_some() {
            // The reader will find out; until then the partner's last words must not be lost.
            return Ok(());
        }
        // The log is bounded by whoever writes it: a partner that is slow is a partner.
        if self.outbox.waiting() >= self.config.send_limit && !matches!(message, Message::Records { .. }) {
            return Err(SendError::Full);
        }
        let noise = match &mut self.state {
            State::Open(agreed) => Some(&mut agreed.transport),
            _ => None,
        };
        self.outbox.push(message, noise).map_err(SendError::Malformed)
    }

    /// Sends what is queued, as far as the kernel takes it, and not more than a piece that leaves the caller time
    /// for other things; the rest goes when the descriptor is writable.
    pub fn flush(&mut self) {
        if self.closed.is_some() || self.write_failed.is_some() {
            return;
        }
        let noise = match &mut self.state {
            State::Open(agreed) => Some(&mut agreed.transport),
            State::Connecting { .. } => return,
            _ => None,
        };
        if let Err(error) = self.outbox.flush(&mut &self.stream, noise) {
            let reason = CloseReason::of(&error);
            self.outbox.clear();
            if self.established() {
                self.write_failed = Some(reason);
            } else {
                self.fail(reason);
            }
        }
    }

    /// Bytes that wait to be sent.
    pub fn buffered(&self) -> usize {
        self.outbox.waiting()
    }

    /// Whether the partner has proved who it is and messages can flow.
    pub fn established(&self) -> bool {
        matches!(self.state, State::Open(_)) && self.closed.is_none()
    }

    /// The protocol version agreed on, once established.
    pub fn version(&self) -> Option<u16> {
        match &self.state {
            State::Open(agreed) => Some(agreed.version),
            _ => None,
        }
    }

    /// Why this link is over, if it is.
    pub fn close_reason(&self) -> Option<&CloseReason> {
        self.closed.as_ref()
    }

    /// Says `Bye` and closes. What the kernel has taken is still delivered, what waits here is not.
    pub fn close(&mut self, reason: Goodbye<'_>) {
        if self.closed.is_some() {
            return;
        }
        if self.established() && self.send(&Message::Bye { reason }).is_ok() {
            self.flush();
        }
        // An error only means that the partner was faster.
        let _ = self.stream.shutdown(Shutdown::Write);
        self.inbox.clear();
        self.outbox.clear();
        self.closed = Some(CloseReason::Local);
    }

    /// What went through this link.
    pub fn traffic(&self) -> Traffic {
        Traffic { received: self.inbox.taken, sent: self.outbox.written, writes: self.outbox.writes }
    }

    fn connected(&mut self) {
        let State::Connecting { deadline } = self.state else { return };
        match self.stream.take_error() {
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => return self.fail(CloseReason::of(&error)),
        }
        match handshake::offer(&self.config) {
            Ok((noise, offer)) => {
                self.outbox.push_raw(&offer);
                self.state = State::Offered { deadline, noise: Some(noise) };
                self.flush();
            }
            Err(fault) => self.fail(CloseReason::Handshake(fault)),
        }
    }

    fn read(&mut self) {
        match self.inbox.fill(&mut &self.stream) {
            Ok(0) => self.ended(CloseReason::Eof),
            Ok(_) => {
                if let Err(reason) = self.advance() {
                    self.fail(reason);
                }
            }
            Err(error) if is_temporary(&error) => {}
            Err(error) => self.ended(CloseReason::of(&error)),
        }
    }

    /// Goes as far as the bytes that arrived allow.
    fn advance(&mut self) -> Result<(), CloseReason> {
        loop {
            match &mut self.state {
                State::Open(agreed) => {
                    return self.inbox.decrypt(&mut agreed.transport).map_err(|_| CloseReason::Corrupt);
                }
                State::Offered { noise, .. } => {
                    let agreed = handshake::finish(&self.config, noise, self.inbox.raw());
                    let Some(mut agreed) = agreed.map_err(CloseReason::Handshake)? else { return Ok(()) };
                    self.inbox.skip(ANSWER_LEN);
                    let confirm = self.outbox.push_empty_frame(&mut agreed.transport);
                    confirm.map_err(|_| CloseReason::Handshake(Fault::Internal))?;
                    self.open(agreed);
                    // With it goes what was queued meanwhile.
                    self.flush();
                }
                State::Accepted { deadline } => {
                    if !handshake::may_be_tcpr(self.inbox.raw()) {
                        return Err(CloseReason::Handshake(Fault::NotTcpr));
                    }
                    let deadline = *deadline;
                    let Some(offer) = self.inbox.raw().first_chunk::<OFFER_LEN>() else { return Ok(()) };
                    match handshake::answer(&self.config, offer) {
                        Ok((agreed, answer)) => {
                            self.outbox.push_raw(&answer);
                            self.state = State::Answered { deadline, agreed };
                        }
                        Err((fault, clear)) => {
                            self.outbox.push_raw(clear.as_ref().map_or(&[], |clear| &clear[..]));
                            self.flush();
                            return Err(CloseReason::Handshake(fault));
                        }
                    }
                    self.inbox.skip(OFFER_LEN);
                    self.flush();
                }
                State::Answered { agreed, .. } => {
                    let Some(confirm) = self.inbox.raw().first_chunk::<CONFIRM_LEN>() else { return Ok(()) };
                    let proved = confirm[..2] == (TAG_LEN as u16).to_le_bytes()
                        && agreed.transport.read_message(&confirm[2..], &mut [0; TAG_LEN]).is_ok();
                    if !proved {
                        return Err(CloseReason::Handshake(Fault::Key));
                    }
                    self.inbox.skip(CONFIRM_LEN);
                    let State::Answered { agreed, .. } = std::mem::replace(&mut self.state, State::Dead) else {
                        return Err(CloseReason::Handshake(Fault::Internal));
                    };
                    self.open(agreed);
                }
                State::Connecting { .. } | State::Dead => return Ok(()),
            }
        }
    }

    fn open(&mut self, agreed: Agreed) {
        self.inbox.open_up();
        self.state = State::Open(agreed);
    }

    /// The partner's stream is over; an earlier failure to write is the better reason.
    fn ended(&mut self, reason: CloseReason) {
        let reason = self.write_failed.take().unwrap_or(reason);
        self.fail(reason);
    }

    fn fail(&mut self, reason: CloseReason) {
        if !matches!(self.state, State::Open(_)) {
            self.state = State::Dead;
        }
        self.outbox.clear();
        self.closed.get_or_insert(reason);
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("partner", &self.partner)
            .field("established", &self.established())
            .field("buffered", &self.buffered())
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Bytes and system calls of a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that came in.
    pub received: u64,
    /// Bytes that went out.
    pub sent: u64,
    /// System calls that sent them.
    pub writes: u64,
}

/// Why a message cannot be queued. After `Full` or `Closed` the link is to be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The partner does not read: too much waits already.
    #[error("the partner does not keep up: the send buffer is full")]
    Full,
    /// The link is over.
    #[error("the link is closed")]
    Closed,
    /// The message is too long, or cannot be encoded; the link is unharmed.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Why a link is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// We closed it.
    #[error("closed by us")]
    Local,
    /// The partner closed it, or its process ended.
    #[error("closed by the partner")]
    Eof,
    /// The partner's kernel reset it: its process ended with bytes unread, or its machine started anew.
    #[error("reset by the partner")]
    Reset,
    /// Nobody listens there: the machine is up, its manager is not.
    #[error("refused: no manager listens there")]
    Refused,
    /// No acknowledgement for too long.
    #[error("timed out: nothing is acknowledged")]
    TimedOut,
    /// Another error of the socket (its errno).
    #[error("{}", io::Error::from_raw_os_error(*.0))]
    Io(i32),
    /// The handshake was not done in time.
    #[error("connection and handshake took longer than 1 s")]
    HandshakeTimeout,
    /// The two ends do not belong together.
    #[error(transparent)]
    Handshake(Fault),
    /// Bytes that are not what the partner sent.
    #[error("received bytes fail authentication")]
    Corrupt,
    /// The partner sent what is not a message.
    #[error(transparent)]
    Malformed(Malformed),
}

impl CloseReason {
    /// Whether the partner's process (or its whole kernel) let go of the connection: its manager has ended. On
    /// an established link that is evidence, sooner than any heartbeat.
    pub fn partner_gone(&self) -> bool {
        matches!(self, CloseReason::Eof | CloseReason::Reset)
    }

    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => CloseReason::Reset,
            io::ErrorKind::ConnectionRefused => CloseReason::Refused,
            io::ErrorKind::TimedOut => CloseReason::TimedOut,
            _ => CloseReason::Io(error.raw_os_error().unwrap_or(0)),
        }
    }
}
