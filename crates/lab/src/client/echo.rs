//! Clients of an echo server.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::engine::{connect, Clients, Failure, Protocol, Received};
use super::Rate;
use crate::rng::{mix, stream_byte, stream_fill, stream_mismatch, Rng};
use crate::Host;

/// What [`EchoClients`] do.
#[derive(Clone, Debug)]
pub struct EchoOptions {
    /// How many connections.
    pub connections: usize,
    /// The seed.
    pub seed: u64,
    /// How much they send.
    pub rate: Rate,
    /// A connection sends no more while so many bytes are not back.
    pub max_outstanding: u64,
    /// Time for all of them to connect.
    pub connect_timeout: Duration,
}

impl EchoOptions {
    /// Connections at the normal rate.
    pub fn new(connections: usize, seed: u64) -> Self {
        EchoOptions {
            connections,
            seed,
            rate: Rate::normal(),
            max_outstanding: 256 << 10,
            connect_timeout: Duration::from_secs(20),
        }
    }

    /// With another rate.
    #[must_use]
    pub fn rate(mut self, rate: Rate) -> Self {
        self.rate = rate;
        self
    }
}

/// Connections to an echo server, each with a pseudo-random stream of its own in random writes at random
/// moments; every byte that comes back is checked against its place in the stream.
pub type EchoClients = Clients<Echo>;

#[doc(hidden)]
pub struct Echo {
    key: u64,
    rng: Rng,
    produced: u64,
    sent: u64,
    received: u64,
    writes: u64,
}

impl EchoClients {
    /// Connects all, then starts to send.
    pub fn start(host: &Host, server: SocketAddr, options: &EchoOptions) -> io::Result<EchoClients> {
        let streams = connect(host, server, options.connections, options.connect_timeout)?;
        let echo = |i| Echo {
            key: mix(options.seed ^ mix(i)),
            rng: Rng::fork(options.seed, i),
            produced: 0,
            sent: 0,
            received: 0,
            writes: 0,
        };
        let protocols = (0..options.connections as u64).map(echo).collect();
        Clients::launch(streams, protocols, (), options.rate, options.max_outstanding, options.seed)
    }
}

impl Protocol for Echo {
    type Shared = ();

    fn produce(&mut self, _: &mut (), rate: Rate, out: &mut Vec<u8>) -> Duration {
        let n = self.rng.range(rate.bytes.0.max(1).into(), rate.bytes.1.into());
        stream_fill(self.key, self.produced, n as usize, out);
        self.produced += n;
        self.writes += 1;
        self.rng.duration(rate.pause.0, rate.pause.1)
    }

    fn written(&mut self, _: &mut (), n: usize, _: Instant) {
        self.sent += n as u64;
    }

    fn received(&mut self, _: &mut (), bytes: &[u8], _: Instant) -> Received {
        let at = self.received;
        if let Some(k) = stream_mismatch(self.key, at, bytes) {
            let offset = at + k as u64;
            let shift = find_shift(self.key, offset, self.sent, &bytes[k..]);
            return Received {
                right: k as u64,
                lost: shift.map_or(0, |s| s.max(0) as u64),
                doubled: shift.map_or(0, |s| (-s).max(0) as u64),
                failure: Some(Failure::Mismatch { offset, shift }),
                fatal: true,
            };
        }
        let end = at + bytes.len() as u64;
        if end > self.sent {
            let bytes = end - self.sent;
            let failure = Some(Failure::Unexpected { bytes });
            return Received { right: self.sent - at, doubled: bytes, failure, fatal: true, lost: 0 };
        }
        self.received = end;
        Received { right: bytes.len() as u64, ..Received::default() }
    }

    fn outstanding(&self, _: &()) -> u64 {
        self.sent - self.received
    }

    fn outstanding_bytes(&self, _: &()) -> u64 {
        self.sent - self.received
    }

    fn counts(&self) -> (u64, u64, u64) {
        (self.writes, 0, 0)
    }
}

/// Where in the stream wrong bytes belong: tells loss from doubling from rubbish.
fn find_shift(key: u64, offset: u64, sent: u64, bytes: &[u8]) -> Option<i64> {
    let sample = &bytes[..bytes.len().min(64)];
    // A few bytes match anywhere.
    if sample.len() < 4 {
        return None;
    }
    let is_at = |o: u64| stream_byte(key, o) == sample[0] && stream_mismatch(key, o, sample).is_none();
    let back = offset.saturating_sub(1 << 20)..offset;
    let on = offset + 1..sent.min(offset + (1 << 20));
    back.rev().chain(on).find(|&o| is_at(o)).map(|o| o as i64 - offset as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo() -> Echo {
        Echo { key: 5, rng: Rng::new(5), produced: 0, sent: 0, received: 0, writes: 0 }
    }

    #[test]
    fn finds_lost_doubled_and_unexpected_bytes() {
        let sent = |cut: &dyn Fn(&mut Vec<u8>)| {
            let mut e = echo();
            let mut b = Vec::new();
            e.produce(&mut (), Rate::new((1000, 1000), (0, 0)), &mut b);
            e.written(&mut (), 1000, Instant::now());
            cut(&mut b);
            e.received(&mut (), &b, Instant::now())
        };
        let r = sent(&|_| ());
        assert!(r.failure.is_none() && r.right == 1000);
        let r = sent(&|b| drop(b.drain(500..537)));
        assert_eq!(r.failure, Some(Failure::Mismatch { offset: 500, shift: Some(37) }));
        assert_eq!((r.lost, r.doubled), (37, 0));
        let r = sent(&|b| {
            let twice = b[480..500].to_vec();
            drop(b.splice(500..500, twice));
        });
        assert_eq!(r.failure, Some(Failure::Mismatch { offset: 500, shift: Some(-20) }));
        assert_eq!((r.lost, r.doubled), (0, 20));
        let r = sent(&|b| b[777] ^= 4);
        assert_eq!(r.failure, Some(Failure::Mismatch { offset: 777, shift: None }));
        let r = sent(&|b| stream_fill(5, 1000, 3, b));
        assert_eq!(r.failure, Some(Failure::Unexpected { bytes: 3 }));
    }
}
