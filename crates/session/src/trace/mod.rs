//! Hot standby: the trace of a process, the ordered record of all that it got from outside itself.
//!
//! The leader's library appends a record for each such call ([`encode`]), the follower's library reads it ([`decode`]) and
//! gives the program the same results: [`Cursor`] is where either stands. [`memory`] says where the trace lies. `docs/hot-standby.md` is about the whole.

mod codec;
mod cursor;
pub mod memory;
mod record;
pub mod setup;

pub use codec::{decode, encode, encode_parts, longest, Deltas, Malformed, MAX_DATA};
pub use cursor::{Cursor, Divergence, Hash, Program, Step};
pub use record::{address, clock, id, Accepted, Call, Marker, Record, ACCEPTED_MAX, SESSION};

#[cfg(test)]
mod tests;
