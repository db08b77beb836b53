//! Names of sessions: the four-tuple that keys one, and the number that stands for it.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

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

impl FourTuple {
    /// Length of [`FourTuple::to_bytes`].
    pub const BYTES: usize = 40;

    /// The form in which shared memory holds it: family (4 or 6) u8, zero u8, local port u16, peer port u16, zero u16, local
    /// and peer address, 16 bytes each.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut to = [0; Self::BYTES];
        to[0] = if self.local.is_ipv4() { 4 } else { 6 };
        to[2..4].copy_from_slice(&self.local.port().to_le_bytes());
        to[4..6].copy_from_slice(&self.peer.port().to_le_bytes());
        for (address, at) in [(self.local.ip(), 8), (self.peer.ip(), 24)] {
            match address {
                IpAddr::V4(v4) => to[at..at + 4].copy_from_slice(&v4.octets()),
                IpAddr::V6(v6) => to[at..at + 16].copy_from_slice(&v6.octets()),
            }
        }
        to
    }

    /// What [`FourTuple::to_bytes`] made; `None` for anything else.
    #[must_use]
    pub fn from_bytes(from: &[u8]) -> Option<Self> {
        let from: &[u8; Self::BYTES] = from.try_into().ok()?;
        let port = |at: usize| u16::from_le_bytes([from[at], from[at + 1]]);
        let address = |at: usize| -> Option<IpAddr> {
            let bytes: [u8; 16] = from[at..at + 16].try_into().ok()?;
            match from[0] {
                4 => Some(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()),
                6 => Some(Ipv6Addr::from(bytes).into()),
                _ => None,
            }
        };
        Some(Self { local: SocketAddr::new(address(8)?, port(2)), peer: SocketAddr::new(address(24)?, port(4)) })
    }
}

impl fmt::Display for FourTuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} <- {}", self.local, self.peer)
    }
}

/// Something of each session, by number.
pub type BySession<V> = HashMap<SessionId, V, BuildHasherDefault<Spread>>;

/// Spreads the numbers of sessions over a map. A master gives them, one after another: nobody else can choose them to meet
/// in one place, as peers can choose their ports.
#[derive(Clone, Copy, Default)]
pub struct Spread(u64);

impl Hasher for Spread {
    fn write_u32(&mut self, number: u32) {
        // Fibonacci hashing; the low bits follow all of the number's.
        let product = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ product >> 32;
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(self.0 as u32 ^ u32::from(*byte)));
    }

    fn finish(&self) -> u64 {
        self.0
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
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    #[test]
    fn numbers_spread_whatever_is_between_them() {
        let hash = |number: SessionId| BuildHasherDefault::<Spread>::default().hash_one(number);
        for step in (0..20).map(|shift| 1 << shift) {
            let hashes = || (1..=1024).map(|i| hash(i * step));
            let places: HashSet<u64> = hashes().map(|h| h % 2048).collect();
            let tags: HashSet<u64> = hashes().map(|h| h >> 57).collect();
            assert!(places.len() > 512 && tags.len() > 64, "{step}: {} places, {} tags", places.len(), tags.len());
        }
    }

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
