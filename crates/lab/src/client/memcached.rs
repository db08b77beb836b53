//! Clients of memcached's text protocol.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::engine::{connect, Clients, Failure, Protocol, Received};
use super::Rate;
use crate::rng::{mix, Rng};
use crate::Host;

/// What [`MemcachedClients`] do.
#[derive(Clone, Debug)]
pub struct MemcachedOptions {
    /// How many connections.
    pub connections: usize,
    /// The seed.
    pub seed: u64,
    /// Bytes of a value, and the pause between two commands.
    pub rate: Rate,
    /// Commands on their way at once on a connection.
    pub pipeline: u64,
    /// Time for all of them to connect.
    pub connect_timeout: Duration,
}

impl MemcachedOptions {
    /// Connections with one command at a time.
    pub fn new(connections: usize, seed: u64) -> Self {
        MemcachedOptions {
            connections,
            seed,
            rate: Rate::new((1, 2000), (0, 20)),
            pipeline: 1,
            connect_timeout: Duration::from_secs(20),
        }
    }
}

/// Connections to memcached, each with a key of its own that it sets to ever new values and gets again.
/// Every answer must be the one due: `STORED` to a set; to a get the value set last, or a miss, which is
/// counted ([`super::Stats::misses`]): the values are lost with their server, the connections are not.
/// After a miss a get misses until the next set.
pub type MemcachedClients = Clients<Memcached>;

enum Due {
    Stored(u64),
    Value,
}

#[doc(hidden)]
pub struct Memcached {
    key: String,
    rng: Rng,
    pipeline: u64,
    next: u64,
    sizes: (u32, u32),
    due: VecDeque<Due>,
    /// Ends of the commands in the output stream that are not wholly written.
    ends: VecDeque<u32>,
    written_of_first: u32,
    sent: u64,
    answered: u64,
    misses: u64,
    /// The value stored last, as far as its answer has come; `None` after a miss, or before the first.
    stored: Option<u64>,
    input: Vec<u8>,
}

impl MemcachedClients {
    /// Connects all, then starts to send.
    pub fn start(host: &Host, server: SocketAddr, options: &MemcachedOptions) -> io::Result<Self> {
        let streams = connect(host, server, options.connections, options.connect_timeout)?;
        let make = |i| Memcached {
            key: format!("tcpr-{:x}-{i}", options.seed),
            rng: Rng::fork(options.seed, i),
            pipeline: options.pipeline.max(1),
            next: 0,
            sizes: options.rate.bytes,
            due: VecDeque::new(),
            ends: VecDeque::new(),
            written_of_first: 0,
            sent: 0,
            answered: 0,
            misses: 0,
            stored: None,
            input: Vec::new(),
        };
        let protocols = (0..options.connections as u64).map(make).collect();
        Clients::launch(streams, protocols, (), options.rate, u64::MAX, options.seed)
    }
}

impl Memcached {
    /// The value number `n`: only from the key and the number, so that it can be made again for the check.
    fn value(&self, n: u64) -> Vec<u8> {
        let mut rng = Rng::new(mix(n) ^ self.key.bytes().fold(0, |h, b| mix(h ^ u64::from(b))));
        let len = rng.range(self.sizes.0.max(1).into(), self.sizes.1.into());
        let mut v = format!("{n}:").into_bytes();
        v.extend((0..len).map(|_| b'!' + rng.range(0, 90) as u8));
        v
    }

    /// Takes one whole answer off `input`; `Ok(None)`: it is not all there.
    fn answer(&mut self, input: &[u8]) -> Result<Option<usize>, String> {
        let shown = || String::from_utf8_lossy(&input[..input.len().min(60)]).into_owned();
        let Some(due) = self.due.front().filter(|_| self.answered < self.sent) else {
            return Err(format!("an answer that nobody asked for: {:?}", shown()));
        };
        // Answers are compared as they come in, so that a wrong one is found at its first wrong byte.
        let starts = |whole: &[u8]| -> Option<Option<usize>> {
            let n = whole.len().min(input.len());
            (input[..n] == whole[..n]).then(|| (n == whole.len()).then_some(n))
        };
        let done = match due {
            Due::Stored(n) => {
                let n = *n;
                let got = starts(b"STORED\r\n").ok_or_else(|| format!("no STORED: {:?}", shown()))?;
                if got.is_some() {
                    self.stored = Some(n);
                }
                got
            }
            Due::Value => {
                let hit = self.stored.and_then(|n| {
                    let value = self.value(n);
                    let mut whole = format!("VALUE {} 0 {}\r\n", self.key, value.len()).into_bytes();
                    whole.extend_from_slice(&value);
                    whole.extend_from_slice(b"\r\nEND\r\n");
                    starts(&whole)
                });
                match (hit, starts(b"END\r\n")) {
                    (Some(got), _) => got,
                    (None, Some(got)) => {
                        if got.is_some() && self.stored.take().is_some() {
                            self.misses += 1;
                        }
                        got
                    }
                    (None, None) => return Err(format!("neither value {:?} nor a miss: {:?}", self.stored, shown())),
                }
            }
        };
        if done.is_some() {
            self.due.pop_front();
            self.answered += 1;
        }
        Ok(done)
    }
}

impl Protocol for Memcached {
    type Shared = ();

    fn produce(&mut self, _: &mut (), rate: Rate, out: &mut Vec<u8>) -> Duration {
        if self.due.len() as u64 >= self.pipeline {
            return Duration::from_millis(1);
        }
        let at = out.len();
        if self.next == 0 || self.rng.chance(50) {
            self.next += 1;
            let value = self.value(self.next);
            out.extend_from_slice(format!("set {} 0 0 {}\r\n", self.key, value.len()).as_bytes());
            out.extend_from_slice(&value);
            out.extend_from_slice(b"\r\n");
            self.due.push_back(Due::Stored(self.next));
        } else {
            out.extend_from_slice(format!("get {}\r\n", self.key).as_bytes());
            self.due.push_back(Due::Value);
        }
        self.ends.push_back((out.len() - at) as u32);
        self.rng.duration(rate.pause.0, rate.pause.1)
    }

    fn written(&mut self, _: &mut (), n: usize, _: Instant) {
        self.written_of_first += n as u32;
        while let Some(&len) = self.ends.front().filter(|&&len| len <= self.written_of_first) {
            self.ends.pop_front();
            self.written_of_first -= len;
            self.sent += 1;
        }
    }

    fn received(&mut self, _: &mut (), bytes: &[u8], _: Instant) -> Received {
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(bytes);
        let mut r = Received::default();
        let mut at = 0;
        while at < input.len() {
            match self.answer(&input[at..]) {
                Ok(Some(n)) => at += n,
                Ok(None) => break,
                Err(text) => {
                    r.failure = Some(Failure::Message { text });
                    r.fatal = true;
                    break;
                }
            }
        }
        r.right = at as u64;
        input.drain(..at);
        self.input = input;
        r
    }

    fn outstanding(&self, _: &()) -> u64 {
        self.sent - self.answered
    }

    fn outstanding_bytes(&self, _: &()) -> u64 {
        // Answers' lengths are not known before they come; a command counts as one.
        self.sent - self.answered
    }

    fn counts(&self) -> (u64, u64, u64) {
        (self.sent, self.answered, self.misses)
    }
}
