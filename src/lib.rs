//! libtcpr.so: the application's side of tcpr.
//!
//! It is used in two ways. Preloaded, it exports the plain names of the C library (`hooks`) and protects the
//! sockets that match the configuration. Linked, it offers the same calls under `tcpr_` (`api`).
//!
//! From the top down; each part calls only what stands below it:
//!
//! - `hook_list`: the one list of which `hooks` and `real` are made
//! - `standby`: what the library of the hot standby calls
//! - `api`, `hooks`: what the application calls. Any descriptor that is none of ours goes straight to the C library
//! - `ops`: what a call does to a protected descriptor
//! - `connections`: the protected connections of this process
//! - `roles`: whom the program has told of changes of role
//! - `turn`: what the threads tell the manager
//! - `manager`: the connection to the manager, and `embedded`, a manager of our own; `environment`
//! - `table`: which descriptors are protected; `diag`: the library's own log
//! - `guard`, `locks`: the border between the application and our bookkeeping
//! - `memory`, `sys`: the application's memory, system calls by number
//! - `heap`: where this library's memory is
//! - `real`: the C library's own functions; `errno`

mod api;
mod connections;
mod diag;
mod embedded;
mod environment;
mod errno;
mod guard;
mod heap;
mod hook_list;
mod hooks;
mod locks;
mod manager;
mod memory;
mod ops;
mod real;
mod roles;
mod standby;
mod sys;
mod table;
mod turn;

#[ctor::ctor(unsafe)]
fn begin() {
    ops::begin();
}

/// Runs after the program's own exit handlers.
extern "C" fn at_exit() {
    ops::at_exit();
}

#[used]
#[link_section = ".fini_array"]
static AT_EXIT: extern "C" fn() = at_exit;
