//! How the sessions of a port are judged.

use crate::framing::Framing;

/// What becomes of input that was read and not answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unanswered {
    /// It is not done: it is read again after a failover.
    #[default]
    Redeliver,
    /// It is done when the turn ends (with framing: as far as its messages are complete).
    Discard,
}

/// How the sessions of a port are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortPolicy {
    /// Message boundaries of the input.
    pub framing: Framing,
    /// What becomes of unanswered input.
    pub unanswered: Unanswered,
    /// A session with more input than this that is read and not done is torn.
    pub max_unanswered_bytes: u64,
    /// What is written to a session follows from that session's input alone, as in a file server: each is judged as
    /// if the turn had touched no other.
    pub independent: bool,
    /// What the application knows of a session dies with it, and the session is worth nothing without: it is reset at a takeover.
    pub reset: bool,
}

impl PortPolicy {
    /// The defaults that go with a framing: `Discard` where it is set, else `Redeliver`.
    pub fn framed(framing: Framing) -> Self {
        PortPolicy {
            framing,
            unanswered: if framing.is_set() { Unanswered::Discard } else { Unanswered::Redeliver },
            max_unanswered_bytes: 4 << 20,
            independent: false,
            reset: false,
        }
    }
}

impl Default for PortPolicy {
    fn default() -> Self {
        PortPolicy::framed(Framing::None)
    }
}
