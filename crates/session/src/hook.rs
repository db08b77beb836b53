//! What the hooks of one process tell: the one vocabulary between the library, the channel and the filter.

use crate::tuple::FourTuple;

/// How a process came to hold a protected connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A peer connected, and `accept` returned it.
    Accepted,
    /// The application connected to a configured outgoing address.
    Connected,
    /// The session existed before this process; it was restored and handed over.
    Recovered,
    /// The process was forked by one that held it.
    Inherited,
}

/// What the hooks of one process did, in the order in which they did it.
///
/// `handle` names a protected connection within its process, and is never reused by it; `thread` is the number that a thread
/// has for the kernel, as it sees it itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookEvent<'a> {
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
        /// Whether it only asks what is ready, with a timeout of zero.
        zero_timeout: bool,
    },
    /// The thread has written, and is about to read.
    ReadAfterWrite {
        /// Who reads.
        thread: u32,
    },
    /// The thread, which had read from a connection, has read something else, or accepted a connection.
    ReadElsewhere {
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
        /// Its value, of at most [`crate::options::LONGEST`] bytes.
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
    /// After a recovery, bytes that the application wrote again were absorbed.
    Absorbed {
        /// Who wrote them.
        thread: u32,
        /// The connection.
        handle: u32,
        /// How many bytes.
        n: u64,
    },
}
