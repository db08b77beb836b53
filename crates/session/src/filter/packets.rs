//! Packets in hand: those that wait in a queue for their verdict, and those that we keep copies of.

use super::Action;
use crate::Now;

/// An outbound packet in hand.
#[derive(Debug)]
pub(super) struct Held {
    /// Its number in the queue.
    pub id: u32,
    /// First offset of its payload, and the offset behind it (a FIN counts one).
    pub start: u64,
    pub end: u64,
    /// Input offset that it acknowledges.
    pub ack: u64,
    /// `ack` is less than the packet itself says.
    pub lowered: bool,
    /// Empty, and at a number that was not released when it came.
    pub ahead: bool,
    /// Timestamp value, where the session uses them.
    pub ts: Option<u32>,
    pub fin: bool,
    pub rst: bool,
    /// `bytes` leave instead: the local TCP's numbers are not the peer's.
    pub corrected: bool,
    /// Kept where the packet may have to be changed, or its bytes adopted.
    pub bytes: Option<Vec<u8>>,
    /// When it came.
    pub since: Now,
}

impl Held {
    /// A packet that shows nothing of a stream: of a handshake, or a stranger's.
    pub fn bare(id: u32, since: Now) -> Held {
        Held {
            id,
            start: 0,
            end: 0,
            ack: 0,
            lowered: false,
            ahead: false,
            ts: None,
            fin: false,
            rst: false,
            corrected: false,
            bytes: None,
            since,
        }
    }

    /// The verdict that lets it leave.
    pub fn verdict(self) -> Action {
        match self.bytes {
            Some(bytes) if self.corrected => Action::ModifyOut(self.id, bytes),
            _ => Action::AcceptOut(self.id),
        }
    }
}

/// An inbound packet: in the queue under a number, or in our hands.
#[derive(Debug)]
pub(super) struct HeldIn {
    pub id: Option<u32>,
    pub bytes: Vec<u8>,
}
