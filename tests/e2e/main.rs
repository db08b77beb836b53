//! The whole way, end to end, on the lab: two members, checking clients, and a master that dies, is cut off, or
//! hands over. Every random case is driven from a printed seed (`TCPR_SEED=` replays it).

mod embedded;
mod ipv6;
mod life;
mod network;
mod responses;
mod slow;
mod soak;
mod streams;
mod world;
