//! The application's own data, which goes into the log with the turn in which it was given: what a server keeps of a session,
//! and values under keys of the service as a whole.
//!
//! A change is a record of its own before the commit of its turn, and counts with that commit. So a replica has all of a turn
//! or nothing of it, wherever its log ends.

use crate::tuple::SessionId;

/// Longest value. One record and one message of the channel hold it, and to copy it keeps no packet waiting.
pub const MAX_VALUE: usize = 32 << 10;
/// Longest key; the shortest has one byte.
pub const MAX_KEY: usize = 255;
/// Most data of one turn: its commit goes into the log as a whole.
pub const MAX_TURN: u64 = 1 << 20;
/// What a value costs of the room for all data beside its bytes.
const OVERHEAD: u64 = 64;

/// What a value of so many bytes, with its key, costs of the room for all data.
#[must_use]
pub fn cost(bytes: usize) -> u64 {
    bytes as u64 + OVERHEAD
}

/// A change of the application's data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change<B> {
    /// What the application keeps of a session from now on.
    Checkpoint {
        /// Number of the session.
        session: SessionId,
        /// Anything.
        data: B,
    },
    /// A value of the service from now on.
    Put {
        /// Of 1 to [`MAX_KEY`] bytes.
        key: B,
        /// Anything.
        value: B,
    },
    /// There is no such value any more.
    Delete {
        /// As above.
        key: B,
    },
}

impl Change<&[u8]> {
    /// The same with bytes of its own.
    #[must_use]
    pub fn to_owned(self) -> Change<Box<[u8]>> {
        match self {
            Change::Checkpoint { session, data } => Change::Checkpoint { session, data: data.into() },
            Change::Put { key, value } => Change::Put { key: key.into(), value: value.into() },
            Change::Delete { key } => Change::Delete { key: key.into() },
        }
    }
}

impl Change<Box<[u8]>> {
    /// The same with borrowed bytes.
    #[must_use]
    pub fn borrow(&self) -> Change<&[u8]> {
        match self {
            Change::Checkpoint { session, data } => Change::Checkpoint { session: *session, data },
            Change::Put { key, value } => Change::Put { key, value },
            Change::Delete { key } => Change::Delete { key },
        }
    }

    /// What it costs until it counts.
    #[must_use]
    pub fn cost(&self) -> u64 {
        match self {
            Change::Checkpoint { data, .. } => cost(data.len()),
            Change::Put { key, value } => cost(key.len() + value.len()),
            Change::Delete { key } => cost(key.len()),
        }
    }
}
