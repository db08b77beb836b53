//! What is said on the channel's socket: MessagePack, one message a packet.
//!
//! The application asks and the manager answers; every request carries a number that its reply repeats, so
//! that a reply that comes after its asker has given up is known as such.

use std::net::{IpAddr, SocketAddr};

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tcpr_session::data::MAX_VALUE;
use tcpr_session::tuple::FourTuple;

/// Grows when an older counterpart would misunderstand.
pub const PROTOCOL_VERSION: u32 = 8;

/// No message is longer. It must hold a [`Reply::Recovered`] of [`MAX_RECOVERED`] sessions.
pub const MAX_MESSAGE: usize = 64 << 10;

/// No message of a process is longer. It must hold a [`Request::Checkpoint`].
pub const MAX_REQUEST: usize = MAX_VALUE + 1024;

/// How many sessions, each with a descriptor, one reply may carry (the kernel allows 253 descriptors).
pub const MAX_RECOVERED: usize = 200;

/// The abstract address of a service's channel (without its leading zero byte).
pub fn socket_name(service: &str) -> String {
    format!("tcpr/{service}/channel")
}

/// A request or reply with its number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Numbered<T> {
    /// The same in a request and its reply.
    pub number: u32,
    /// What is said.
    pub body: T,
}

/// The first message of a process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the library.
    pub version: u32,
    /// What `tcpr run` put into `TCPR_TOKEN`.
    pub token: String,
    /// The process has lost the descriptors of this channel of its own, and goes on with it: the shared memory is what it was.
    pub resume: Option<u32>,
}

/// A protected port, as far as the application's side needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PortInfo {
    /// The port.
    pub port: u16,
    /// `greeting = "absorb"`: what is written to a recovered session before it was read from is dropped.
    pub absorb_greeting: bool,
}

/// A destination of protected connections, likewise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutgoingInfo {
    /// Address and port.
    pub address: SocketAddr,
    /// As of [`PortInfo`].
    pub absorb_greeting: bool,
}

/// What the manager tells a process that it admits. The shared memory and the kick come with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// The name of the service.
    pub service: String,
    /// Its virtual addresses.
    pub vips: Vec<IpAddr>,
    /// Its protected ports.
    pub ports: Vec<PortInfo>,
    /// Restored sessions come from the listener itself (engine `splice`): accept asks what each is.
    pub spliced: bool,
    /// Destinations to which connections are protected.
    pub outgoing: Vec<OutgoingInfo>,
    /// The number of this channel.
    pub channel: u32,
}

/// What a process asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// The sessions that were restored for a listener and that nobody holds yet.
    GetRecovered {
        /// The listener's port.
        port: u16,
        /// At most so many.
        max: u32,
    },
    /// The process listens.
    Listen {
        /// Where.
        addr: IpAddr,
        /// On which port.
        port: u16,
    },
    /// The process is about to connect the socket that comes with this: it gets the virtual IP as its address, also where
    /// that is not on this machine.
    Call {
        /// The destination.
        to: SocketAddr,
        /// The thread.
        thread: u32,
    },
    /// A session that was handed out is for another process: its socket comes with this. Answered by [`Reply::Ok`].
    GiveBack {
        /// The session's number.
        session: u32,
    },
    /// Hand the service over to the partner.
    Switchover,
    /// What is known of one session.
    SessionInfo {
        /// Its addresses.
        tuple: FourTuple,
    },
    /// The process that hosts this manager exits, and the manager with it: answered by the end of the channel.
    Dismiss,
    /// The process is about to forbid itself most system calls: from now on nothing more is told.
    Leave,
    /// Hot standby: the memory of the trace, for the program's first process. Answered by [`Reply::Ok`] with one descriptor.
    Trace,
    /// Hot standby: sessions that were restored for the program that takes over and has them already.
    GetStanding,
    /// What the program keeps of a session, from the end of the thread's turn on. Answered by [`Reply::Ok`].
    Checkpoint {
        /// The thread.
        thread: u32,
        /// The connection.
        handle: u32,
        /// At most [`MAX_VALUE`] bytes.
        data: Bytes,
    },
    /// A value of the service as a whole, from the end of the thread's turn on; `None`: there is none any more. Answered by
    /// [`Reply::Ok`].
    Put {
        /// The thread.
        thread: u32,
        /// At most [`tcpr_session::data::MAX_KEY`] bytes.
        key: Bytes,
        /// At most [`MAX_VALUE`] bytes.
        value: Option<Bytes>,
    },
    /// Such a value. Answered by [`Reply::Data`].
    Get {
        /// The thread.
        thread: u32,
        /// As above.
        key: Bytes,
    },
    /// The next key. Answered by [`Reply::Data`].
    NextKey {
        /// The one before it; empty: the first one.
        after: Bytes,
    },
    /// What the program has said last that it keeps of a session. Answered by [`Reply::Data`].
    Restore {
        /// The connection.
        handle: u32,
    },
}

/// Bytes, which MessagePack has as they are (and a list of numbers as up to twice as many).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Raw;
        impl Visitor<'_> for Raw {
            type Value = Bytes;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Raw)
    }
}

/// One restored session; its descriptor travels beside the message, in the same order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecoveredInfo {
    /// Its addresses.
    pub tuple: FourTuple,
    /// The session's number.
    pub session: u32,
    /// How many of the first bytes that the application writes have already been sent.
    pub absorb: u64,
    /// Output beside these was sent: a greeting, where the application begins with one.
    pub greeted: bool,
    /// The application reads from this offset of the input on, and writes from this one of the output on.
    pub in_done: u64,
    /// As above.
    pub out_base: u64,
    /// Options that were set on it: see [`tcpr_session::options`].
    pub options: Vec<u8>,
}

/// What the manager knows of one session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SessionFacts {
    /// The session's number.
    pub session: u32,
    /// Input before this offset is done.
    pub in_done: u64,
    /// Input before this offset is stored.
    pub in_stored: u64,
    /// Output before this offset may be released.
    pub out_done: u64,
    /// Output before this offset is stored.
    pub out_stored: u64,
    /// Whether its state could not be known after a crash.
    pub torn: bool,
    /// It was restored, and nobody has accepted it yet.
    pub recovered: Option<Recovered>,
    /// Options that were set on it: see [`tcpr_session::options`].
    pub options: Vec<u8>,
}

/// What whoever accepts a restored session must know of its former life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovered {
    /// How many of the first bytes that the application writes have already been sent.
    pub absorb: u64,
    /// Output beside these was sent: a greeting, where the application begins with one.
    pub greeted: bool,
    /// The application had ended its output.
    pub finished: bool,
    /// The application reads from this offset of the input on, and writes from this one of the output on.
    pub in_done: u64,
    /// As above.
    pub out_base: u64,
}

/// What the manager answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Hello`].
    Welcome(Welcome),
    /// To [`Request::GetRecovered`] and [`Request::GetStanding`]: as many descriptors come with it.
    Recovered {
        /// The sessions.
        sessions: Vec<RecoveredInfo>,
        /// Whether there are more.
        more: bool,
    },
    /// To [`Request::SessionInfo`].
    Session(SessionFacts),
    /// To [`Request::Restore`], [`Request::Get`] and [`Request::NextKey`]; `None`: there is nothing.
    Data(Option<Bytes>),
    /// Done.
    Ok,
    /// Not done.
    Error {
        /// The nearest errno.
        errno: i32,
        /// What happened, for people.
        text: String,
    },
}

/// Serialises a message.
pub fn encode<T: Serialize>(message: &T) -> std::io::Result<Vec<u8>> {
    let bytes = rmp_serde::to_vec_named(message).map_err(std::io::Error::other)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(std::io::Error::other("message too long for the channel"));
    }
    Ok(bytes)
}

/// Parses a message of the other side.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> std::io::Result<T> {
    rmp_serde::from_slice(bytes).map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e.to_string()))
}
