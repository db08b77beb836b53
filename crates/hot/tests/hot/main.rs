//! Real programs with real clients, recorded and followed. Needs no root. `make build` builds the library and our own programs.

mod offline;
mod program;
mod promotion;
mod snapshot;
