//! libtcpr_hot.so: the program's state survives.
//!
//! It is preloaded before libtcpr.so. On the master it records, in one ordered trace, all that the program gets from outside
//! itself. On the backup the same program follows: it gets the same results from the trace, and so comes into the same state.
//! A promotion gives it the sockets.
//!
//! From the top down; each part calls only what stands below it:
//!
//! - `start`: what this process does: record, follow, or nothing
//! - `hooks`, `signals`, `threads`: what the program calls. A hook is written once, for both
//! - `promotion`: from the trace to the world
//! - `snapshot`: a process that begins in the middle of the trace
//! - `forms`: the few forms that calls have
//! - `engine`: the trace: append, or take what comes next
//! - `partner`: what libtcpr does for this library
//! - `descriptors`: what the program's descriptors are; `thread`: whose call it is
//! - `memory`, `raw`, `next`, `errno`: the trace's memory, the kernel, the next library
//!
//! Nothing here allocates memory, and nothing writes but to the trace's memory (offline also to standard error): the
//! program's own memory shall be alike in both members.

mod conditions;
mod descriptors;
mod engine;
mod errno;
mod forms;
mod hooks;
mod memory;
mod next;
mod partner;
mod promotion;
mod raw;
mod setup;
mod signals;
mod snapshot;
mod start;
mod tails;
mod thread;
mod threads;
