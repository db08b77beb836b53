//! libtcpr.so: the application's side of tcpr.
//!
//! It is used in two ways. Preloaded, it exports the plain names of the C library (`preload`) and protects the
//! sockets that match the configuration. Linked, it offers the same calls under `tcpr_` (`api`).
//! Both are thin: what a call does to a protected descriptor is in `ops`; any other descriptor goes
//! straight to the C library (`real`).
//!
//! - `table`: which descriptors are protected
//! - `process`: the connection to the manager, and what this process holds
//! - `turn`: what the threads tell the manager
//! - `ffi`: where Rust ends: panics, errno, raw system calls

mod api;
mod diag;
mod embedded;
mod ffi;
mod ops;
mod preload;
mod process;
mod real;
mod table;
mod turn;

#[ctor::ctor(unsafe)]
fn read_environment() {
    // Some servers wipe their environment once they run. Nothing else is done this early, but for a program that has
    // inherited a protected listener: whoever only waits on it would be woken by nobody.
    process::remember_environment();
}

/// Runs after the program's own exit handlers.
extern "C" fn at_exit() {
    ops::flush_streams();
    process::exiting();
}

#[used]
#[link_section = ".fini_array"]
static AT_EXIT: extern "C" fn() = at_exit;
