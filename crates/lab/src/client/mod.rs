//! Clients that check every byte they receive: what a peer of a protected service would notice.
//!
//! All of them run their connections on one thread with epoll, are deterministic for a given seed (sizes,
//! contents and pauses, as far as time lets them), never reconnect, and share the controls and statistics
//! of [`Clients`].

mod chat;
mod echo;
mod engine;
mod memcached;
mod stream;

pub use chat::{ChatClients, ChatOptions, Heard};
pub use echo::{EchoClients, EchoOptions};
#[doc(hidden)]
pub use engine::Protocol;
pub use engine::{ClientError, Clients, End, Failure, Stall, Stats};
pub use memcached::{MemcachedClients, MemcachedOptions};
pub use stream::{StreamClient, StreamOptions};

use std::time::Duration;

/// How much and how often a client sends: both ranges include their ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bytes of a write (of a line's payload in a chat).
    pub bytes: (u32, u32),
    /// Pause after it.
    pub pause: (Duration, Duration),
}

impl Rate {
    /// Writes of `bytes` bytes with pauses of `pause_ms` milliseconds between them.
    pub const fn new(bytes: (u32, u32), pause_ms: (u64, u64)) -> Rate {
        Rate {
            bytes,
            pause: (Duration::from_millis(pause_ms.0), Duration::from_millis(pause_ms.1)),
        }
    }

    /// Mostly silent: a small write every second or so.
    pub const fn idle() -> Rate {
        Rate::new((1, 64), (500, 1500))
    }

    /// Small to middling writes every few milliseconds.
    pub const fn normal() -> Rate {
        Rate::new((1, 3000), (0, 30))
    }

    /// Writes of up to 16 KiB nearly without pause.
    pub const fn busy() -> Rate {
        Rate::new((1, 16_384), (0, 2))
    }
}
