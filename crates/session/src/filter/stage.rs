//! How far a session has come since the takeover.

use crate::Now;

/// How far a recovered session has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// The peer had not completed the handshake as far as we know: its SYN-ACK is sent again.
    Embryo { next: Now, tries: u32 },
    /// The peer was probed; nothing is restored.
    Probing,
    /// A socket exists; input stays behind the barrier.
    Restored,
    /// Through the barrier; the kept input up to `until` is being injected, and was up to `fed`.
    Feeding { until: u64, fed: u64, next: Now, tries: u32 },
    /// Nothing special any more.
    Live,
}

/// The handshake that makes the local half of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LocalHandshake {
    /// Its turn will come.
    Queued,
    /// The application made it, and has yet to connect again.
    Uncalled { until: Now },
    /// Sent so often; sent again at this time.
    Sent { next: Now, tries: u32 },
    /// The listener has answered, and was told the rest; again at this time, for it drops that if its queue is full. Or
    /// the application's SYN was answered.
    Answered { next: Now, tries: u32 },
}
