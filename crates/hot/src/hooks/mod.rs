//! The hooks, by subject.

mod clocks;
mod data;
mod descriptors;
mod files;
mod names;
mod processes;
mod sockets;
mod streams;
mod waits;

pub use clocks::{note_clocks, shift_clocks, to_kernel};
pub use names::children_stay_behind;
