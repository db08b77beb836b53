//! The hooks, by subject.

mod clocks;
mod data;
mod descriptors;
mod exported;
mod files;
mod names;
mod processes;
mod signals;
mod sockets;
mod streams;
mod threads;
mod waits;
