//! A small seeded generator: the same seed gives the same run, whatever the version of any crate.

use std::time::Duration;

/// One step of splitmix64: a good hash of a 64-bit number.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Seeded pseudo-random numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator that yields the same numbers for the same seed.
    pub fn new(seed: u64) -> Rng {
        Rng(mix(seed))
    }

    /// A generator of its own for part `n` of a run.
    pub fn fork(seed: u64, n: u64) -> Rng {
        Rng(mix(seed ^ mix(n)))
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        let r = mix(self.0);
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        r
    }

    /// A number from `lo` to `hi`, both included.
    pub fn range(&mut self, lo: u64, hi: u64) -> u64 {
        if hi <= lo {
            return lo;
        }
        lo + self.next_u64() % (hi - lo + 1)
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.next_u64() % 100 < percent
    }

    /// A duration from `lo` to `hi`.
    pub fn duration(&mut self, lo: Duration, hi: Duration) -> Duration {
        Duration::from_nanos(self.range(lo.as_nanos() as u64, hi.as_nanos() as u64))
    }
}

/// The seed of a test: `TCPR_SEED` if it is set, else a fresh one. Print it, so that a failure can be replayed.
pub fn seed_from_env() -> u64 {
    if let Some(s) = std::env::var("TCPR_SEED").ok().and_then(|s| s.trim().parse().ok()) {
        return s;
    }
    let t = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    mix(t.as_nanos() as u64 ^ (u64::from(std::process::id()) << 40)) >> 16
}

/// Byte `offset` of the endless stream `key`: what a checking client sends and expects back.
pub(crate) fn stream_byte(key: u64, offset: u64) -> u8 {
    mix(key.wrapping_add(offset >> 3)).to_le_bytes()[(offset & 7) as usize]
}

/// Appends `n` bytes of stream `key` from `offset` on.
pub(crate) fn stream_fill(key: u64, offset: u64, n: usize, out: &mut Vec<u8>) {
    let end = offset + n as u64;
    let mut o = offset;
    while o < end {
        let w = mix(key.wrapping_add(o >> 3)).to_le_bytes();
        let from = (o & 7) as usize;
        let to = 8.min(from + (end - o) as usize);
        out.extend_from_slice(&w[from..to]);
        o += (to - from) as u64;
    }
}

/// The index of the first byte that is not the stream's.
pub(crate) fn stream_mismatch(key: u64, offset: u64, bytes: &[u8]) -> Option<usize> {
    let mut i = 0;
    while i < bytes.len() {
        let o = offset + i as u64;
        let w = mix(key.wrapping_add(o >> 3)).to_le_bytes();
        let from = (o & 7) as usize;
        let n = (8 - from).min(bytes.len() - i);
        if bytes[i..i + n] != w[from..from + n] {
            return Some(i + (0..n).find(|&k| bytes[i + k] != w[from + k]).unwrap_or(0));
        }
        i += n;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_the_same_however_it_is_cut() {
        let mut whole = Vec::new();
        stream_fill(7, 0, 1000, &mut whole);
        let mut parts = Vec::new();
        let mut rng = Rng::new(1);
        while parts.len() < 1000 {
            let n = (rng.range(1, 30) as usize).min(1000 - parts.len());
            stream_fill(7, parts.len() as u64, n, &mut parts);
        }
        assert_eq!(whole, parts);
        assert_eq!(stream_mismatch(7, 13, &whole[13..]), None);
        assert!(whole.iter().enumerate().all(|(i, &b)| b == stream_byte(7, i as u64)));
        parts[500] ^= 1;
        assert_eq!(stream_mismatch(7, 13, &parts[13..]), Some(487));
    }
}
