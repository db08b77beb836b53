//! The pure core of tcpr: everything that decides, without I/O, clock, thread or `unsafe`. Bytes and `now` go
//! in, actions come out. `docs/architecture.md` is the map.
#![forbid(unsafe_code)]

pub mod bytes;
pub mod data;
pub mod filter;
pub mod framing;
pub mod hook;
mod icmp;
pub mod options;
pub mod pooled;
pub mod record;
pub mod role;
pub mod segment;
pub mod seq;
pub mod splice;
pub mod standing;
pub mod store;
pub mod trace;
pub mod tuple;
pub mod turn;

/// Time since an arbitrary origin of the host process; never goes back.
pub type Now = std::time::Duration;
