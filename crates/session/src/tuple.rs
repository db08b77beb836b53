//! Names of sessions: the four-tuple that keys one, and the number that stands for it.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Number of a session, given by the master that saw it open; unique among the living sessions of a store.
pub type SessionId = u32;

/// A connection as the server sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct FourTuple {
    /// The virtual IP and the server's port.
    pub local: SocketAddr,
    /// The remote end.
    pub peer: SocketAddr,
}

impl fmt::Display for FourTuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} <- {}", self.local, self.peer)
    }
}

/// Sessions by their ends. Most of what such a map keeps are its keys: they are packed.
#[derive(Default, Clone, PartialEq, Eq, Debug)]
pub(crate) struct ByTuple {
    v4: HashMap<[u8; 12], SessionId>,
    v6: HashMap<[u8; 36], SessionId>,
}

impl ByTuple {
    pub fn get(&self, tuple: &FourTuple) -> Option<SessionId> {
        match packed_v4(tuple) {
            Some(key) => self.v4.get(&key),
            None => self.v6.get(&packed_v6(tuple)),
        }
        .copied()
    }

    pub fn insert(&mut self, tuple: &FourTuple, session: SessionId) {
        match packed_v4(tuple) {
            Some(key) => self.v4.insert(key, session),
            None => self.v6.insert(packed_v6(tuple), session),
        };
    }

    pub fn remove(&mut self, tuple: &FourTuple) {
        match packed_v4(tuple) {
            Some(key) => self.v4.remove(&key),
            None => self.v6.remove(&packed_v6(tuple)),
        };
    }

    pub fn clear(&mut self) {
        self.v4.clear();
        self.v6.clear();
    }
}

fn packed_v4(tuple: &FourTuple) -> Option<[u8; 12]> {
    let (SocketAddr::V4(local), SocketAddr::V4(peer)) = (tuple.local, tuple.peer) else { return None };
    let mut key = [0; 12];
    key[..4].copy_from_slice(&local.ip().octets());
    key[4..8].copy_from_slice(&peer.ip().octets());
    key[8..10].copy_from_slice(&local.port().to_le_bytes());
    key[10..].copy_from_slice(&peer.port().to_le_bytes());
    Some(key)
}

fn packed_v6(tuple: &FourTuple) -> [u8; 36] {
    let octets = |end: SocketAddr| match end.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    let mut key = [0; 36];
    key[..16].copy_from_slice(&octets(tuple.local));
    key[16..32].copy_from_slice(&octets(tuple.peer));
    key[32..34].copy_from_slice(&tuple.local.port().to_le_bytes());
    key[34..].copy_from_slice(&tuple.peer.port().to_le_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_counts() {
        for (local, peer) in [("192.0.2.1:80", "192.0.2.9:1024"), ("[2001:db8::1]:80", "[2001:db8::9]:1024")] {
            let (local, peer): (SocketAddr, SocketAddr) = (local.parse().expect("an end"), peer.parse().expect("an end"));
            let other = |end: SocketAddr| SocketAddr::new(end.ip(), end.port() + 256);
            let ends = [(local, peer), (peer, local), (other(local), peer), (local, other(peer)), (local, local)];
            let mut map = ByTuple::default();
            for (id, (local, peer)) in (1..).zip(ends) {
                assert_eq!(map.get(&FourTuple { local, peer }), None);
                map.insert(&FourTuple { local, peer }, id);
            }
            for (id, (local, peer)) in (1..).zip(ends) {
                assert_eq!(map.get(&FourTuple { local, peer }), Some(id));
                map.remove(&FourTuple { local, peer });
            }
            assert_eq!(map, ByTuple::default());
        }
    }
}
