//! libtcpr_hot.so: the program's state survives.
//!
//! It is preloaded before libtcpr.so. On the master it records, in one ordered trace, all that the program gets from outside
//! itself. On the backup the same program follows: it gets the same results from the trace, and so comes into the same state.
//! A promotion gives it the sockets.
//!
//! From the top down; each part calls only what stands below it:
//!
//! - `hooks`: what the program calls. A hook is written once, for both
//! - `start`: how it begins, before the program does; `setup`: whether both members begin alike
//! - `snapshot`: a process that begins in the middle of the trace
//! - `signals`, `threads`: handlers that run at waits; the program's threads
//! - `forms`: the few forms that calls have
//! - `engine`: the trace: append, or take what comes next
//! - `promotion`: from the trace to the world
//! - `clocks`, `processes`, `descriptors`, `between`, `conditions`, `tails`: what is known of the program's clocks, processes,
//!   descriptors, pipes, waits for conditions, and newest output
//! - `partner`: what libtcpr does for this library
//! - `activity`: whether this process records or follows, and how that ends
//! - `handlers`: what the kernel is told of the program's signals
//! - `environment`, `thread`, `memory`, `raw`, `next`, `errno`: who has started it, whose call it is, the trace's memory, the
//!   kernel, the next library
//!
//! Nothing here allocates memory, and nothing writes but to the trace's memory (offline also to standard error): the
//! program's own memory shall be alike in both members.

mod activity;
mod between;
mod clocks;
mod conditions;
mod descriptors;
mod engine;
mod environment;
mod errno;
mod forms;
mod handlers;
mod hooks;
mod memory;
mod next;
mod partner;
mod processes;
mod promotion;
mod raw;
mod setup;
mod signals;
mod snapshot;
mod start;
mod tails;
mod thread;
mod threads;
