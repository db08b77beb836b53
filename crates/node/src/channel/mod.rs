//! The channel between an application and the manager: a Unix seqpacket socket for requests and descriptors,
//! and shared memory in which the application's hooks tell the manager what they did.
//!
//! The application side is trusted with its own sessions and nothing else: whatever it puts into the shared
//! memory, the worst that it can do to the manager is to lose its channel.
//!
//! - [`ring`]: layout of the shared memory, its producer and its consumer
//! - [`wire`]: what is said on the socket
//! - [`client`]: the application's end
//! - [`server`]: the manager's end

pub mod client;
pub mod ring;
pub mod server;
mod sys;
pub mod wire;

pub(crate) use sys::hold_name;
pub use sys::{descriptor_limit, move_high, Own, KICK};

#[cfg(test)]
mod tests;

use tcpr_session::tuple::FourTuple;

/// How an application came to hold a protected connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A peer connected, and `accept` returned it.
    Accepted,
    /// The application connected to a configured outgoing address.
    Connected,
    /// The session existed before this process; the manager restored it and handed it over.
    Recovered,
    /// The process was forked by one that held it.
    Inherited,
}

impl Origin {
    fn code(self) -> u8 {
        match self {
            Origin::Accepted => 0,
            Origin::Connected => 1,
            Origin::Recovered => 2,
            Origin::Inherited => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Origin::Accepted,
            1 => Origin::Connected,
            2 => Origin::Recovered,
            3 => Origin::Inherited,
            _ => return None,
        })
    }
}

/// What the hooks of one process did, in the order in which they did it.
///
/// `handle` names a protected connection within its process, and is never reused by it; `thread` is the number that a thread
/// has for the kernel, as it sees it itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The process holds a protected connection.
    Attach {
        /// Who came by it.
        thread: u32,
        /// The connection.
        handle: u32,
        /// How the process came by it.
        origin: Origin,
        /// Its addresses, IPv4-mapped ones as IPv4.
        tuple: FourTuple,
    },
    /// The kernel took bytes from the application.
    Write {
        /// Who wrote.
        thread: u32,
        /// The connection.
        handle: u32,
        /// How many bytes the kernel took.
        taken: u32,
        /// How many the application had asked it to take.
        asked: u64,
        /// Exactly the bytes that were taken.
        bytes: &'a [u8],
    },
    /// The application took bytes from the kernel; 0: it was about to, and there were none.
    Read {
        /// Who read.
        thread: u32,
        /// The connection.
        handle: u32,
        /// How many bytes.
        n: u64,
    },
    /// The thread is about to wait: its turn ends.
    Wait {
        /// Who waits.
        thread: u32,
        /// Whether it only looks, with a timeout of zero.
        zero_timeout: bool,
    },
    /// The thread has written, and is about to read.
    ReadsOn {
        /// Who reads.
        thread: u32,
    },
    /// The thread, which had read from a connection, has read something else, or accepted a connection.
    ReadsOther {
        /// Who read.
        thread: u32,
    },
    /// The thread is about to wait until the kernel takes more of a write that is not whole.
    Blocked {
        /// Who waits.
        thread: u32,
        /// It waits no more, and the write ends as it is.
        over: bool,
    },
    /// `tcpr_consume`: the application says how much of the input is done.
    Consume {
        /// Who says so.
        thread: u32,
        /// The connection.
        handle: u32,
        /// How many further bytes are done.
        n: u64,
    },
    /// `tcpr_commit`: the application ends its turn.
    Commit {
        /// Whose turn ends.
        thread: u32,
    },
    /// The application has set an option of a connection, which is to have it after a failover.
    Option {
        /// The connection.
        handle: u32,
        /// As of setsockopt.
        level: u8,
        /// As of setsockopt.
        name: u8,
        /// Its value, of at most [`tcpr_session::options::LONGEST`] bytes.
        value: &'a [u8],
    },
    /// The application is about to end its output.
    Shutdown {
        /// Who asked.
        thread: u32,
        /// The connection.
        handle: u32,
    },
    /// The last descriptor of this process is about to be closed.
    Close {
        /// Who closes.
        thread: u32,
        /// The connection.
        handle: u32,
        /// A process that was forked meanwhile may hold it, too, and may not have joined yet.
        shared: bool,
    },
    /// The process is about to exit in the normal way.
    Exit,
    /// After a recovery, bytes that the application wrote again were swallowed.
    Absorbed {
        /// Who wrote them.
        thread: u32,
        /// The connection.
        handle: u32,
        /// How many bytes.
        n: u64,
    },
}
