//! The application's own data, which goes into the log with the turn in which it was given: what a server keeps of a
//! session.
//!
//! A change is a record of its own before the commit of its turn, and counts with that commit. So a replica has all of a turn
//! or nothing of it, wherever its log ends.

use crate::tuple::SessionId;

/// Longest value. One record and one message of the channel hold it, and to copy it keeps no packet waiting.
pub const MAX_VALUE: usize = 32 << 10;
/// Most data of one turn: its commit goes into the log as a whole.
pub const MAX_TURN: u64 = 1 << 20;
/// What a value costs of the room for all data beside its bytes.
const OVERHEAD: u64 = 64;

/// What a value of so many bytes costs of the room for all data.
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
}

impl Change<&[u8]> {
    /// The same with bytes of its own.
    #[must_use]
    pub fn to_owned(self) -> Change<Box<[u8]>> {
        match self {
            Change::Checkpoint { session, data } => Change::Checkpoint { session, data: data.into() },
        }
    }
}

impl Change<Box<[u8]>> {
    /// The same with borrowed bytes.
    #[must_use]
    pub fn borrow(&self) -> Change<&[u8]> {
        match self {
            Change::Checkpoint { session, data } => Change::Checkpoint { session: *session, data },
        }
    }
}
