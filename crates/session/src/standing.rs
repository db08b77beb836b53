//! Where a program stands with a connection: what a follower tells when it takes over.

use crate::tuple::FourTuple;

/// Where a program that followed another one stands with a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// The ends of the connection.
    pub tuple: FourTuple,
    /// It has read the input before this offset.
    pub read: u64,
    /// It has made the output before this offset.
    pub written: u64,
    /// The end of that output. The log may not have what was written in a turn that was not over.
    pub tail: Vec<u8>,
    /// Where the trace was when the program got it.
    pub since: u64,
    /// It has ended its output.
    pub shut: bool,
    /// It has closed the connection.
    pub closed: bool,
}
