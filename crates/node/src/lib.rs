//! The Linux runtime of tcpr: the manager, and everything that touches the kernel. `docs/architecture.md` is
//! the map.

pub mod arp;
pub mod channel;
pub mod config;
pub mod conntrack;
pub mod doorbell;
pub mod guard;
pub mod heartbeat;
pub mod key;
pub mod link;
pub mod logging;
pub mod manager;
pub mod nat;
pub mod nfqueue;
pub mod outgoing;
pub mod pathmtu;
pub mod place;
pub mod rawsock;
pub mod reach;
pub mod repair;
pub mod rules;
pub mod serving;
pub mod sockdiag;
pub mod table;
pub mod trace_memory;
pub mod vip;
