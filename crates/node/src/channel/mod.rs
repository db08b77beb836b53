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

pub use tcpr_session::hook::{HookEvent as Event, Origin};
