//! The C interface under `tcpr_`. cbindgen makes `include/tcpr.h` of these modules, so their documentation is
//! written for C programmers.

mod control;
mod data;
mod descriptors;
mod sockets;
mod state;
mod waits;
