//! The whole way, end to end, on the lab: two members, checking clients, and a master that dies, is cut off, or
//! hands over. Every random case is driven from a printed seed (`TCPR_SEED=` replays it).

mod bad_input;
mod calling;
mod cost;
mod durability;
mod embedded;
mod endings;
mod handshakes;
mod host;
mod hostile;
mod hot;
mod ipv6;
mod joined;
mod life;
mod listeners;
mod local;
mod network;
mod options;
mod other_tcp;
mod processes;
mod proxies;
mod requests;
mod resets;
mod responses;
mod routing;
mod servers;
mod slow;
mod slow_link;
mod soak;
mod strangers;
mod streams;
mod unanswered;
mod unhooked;
mod versions;
mod workers;
mod world;
