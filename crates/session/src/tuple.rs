//! Names of sessions: the four-tuple that keys one, and the number that stands for it.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Number of a session, given by the master that saw it open; unique among the living sessions of a store.
pub type SessionId = u32;

/// A connection as the server sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct FourTuple {
    /// The virtual IP and the server's port.
    pub local: SocketAddr,
    /// The remote end.
    pub peer: SocketAddr,
}

impl fmt::Display for FourTuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} <- {}", self.local, self.peer)
    }
}
