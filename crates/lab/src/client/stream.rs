//! A client that measures outages.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::engine::{connect, Clients, End, Failure, Protocol, Received, Stall, Stats};
use super::Rate;
use crate::host::lock;
use crate::rng::{mix, stream_fill, stream_mismatch, Rng};
use crate::Host;

/// What a [`StreamClient`] does.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// How many connections.
    pub connections: usize,
    /// The seed.
    pub seed: u64,
    /// Time between two records.
    pub interval: Duration,
    /// Bytes of a record, 8 to 64.
    pub bytes: (u32, u32),
}

impl StreamOptions {
    /// One connection that sends a record of 8 to 64 bytes every millisecond.
    pub fn new(seed: u64) -> Self {
        StreamOptions { connections: 1, seed, interval: Duration::from_millis(1), bytes: (8, 64) }
    }
}

/// An outage meter: streams numbered records to an echo server every millisecond and measures the longest
/// time in which none came back, and each record's round trip.
pub struct StreamClient {
    clients: Clients<Stream>,
    round_trips: Arc<Mutex<Vec<u32>>>,
}

#[doc(hidden)]
pub struct Stream {
    key: u64,
    rng: Rng,
    next: u32,
    /// (length, bytes of it that are in the kernel's hands, when the last of them was) of records on their way.
    flying: VecDeque<(u8, u8, Instant)>,
    /// Index into `flying` of the record that is being written.
    writing: usize,
    input: Vec<u8>,
    expected: u32,
    sent_records: u64,
    round_trips: Arc<Mutex<Vec<u32>>>,
}

/// A record: length, sequence number, three bytes of checksum, filler.
const HEADER: usize = 8;

impl StreamClient {
    /// Connects to an echo server and starts to stream.
    pub fn start(host: &Host, server: SocketAddr, options: &StreamOptions) -> io::Result<StreamClient> {
        let streams = connect(host, server, options.connections, Duration::from_secs(10))?;
        let round_trips = Arc::new(Mutex::new(Vec::new()));
        let make = |i| Stream {
            key: mix(options.seed ^ mix(i)),
            rng: Rng::fork(options.seed, i),
            next: 0,
            flying: VecDeque::new(),
            writing: 0,
            input: Vec::new(),
            expected: 0,
            sent_records: 0,
            round_trips: round_trips.clone(),
        };
        let protocols = (0..options.connections as u64).map(make).collect();
        let bytes = (options.bytes.0.clamp(8, 64), options.bytes.1.clamp(8, 64));
        let rate = Rate { bytes, pause: (options.interval, options.interval) };
        let clients = Clients::launch(streams, protocols, (), rate, 1 << 20, options.seed)?;
        Ok(StreamClient { clients, round_trips })
    }

    /// The longest time without a record while some were on their way, since the last call. Call it once
    /// the service is back; one that lasts still is included.
    pub fn take_longest_gap(&self) -> Duration {
        let longest = self.clients.max_stalls().into_iter().max().unwrap_or_default();
        self.clients.reset_stalls();
        longest
    }

    /// Each connection's longest gap since the last [`StreamClient::take_longest_gap`].
    pub fn gaps_by_connection(&self) -> Vec<Duration> {
        self.clients.max_stalls()
    }

    /// All gaps of at least 5 ms since then.
    pub fn gaps(&self) -> Vec<Stall> {
        self.clients.stalls()
    }

    /// Round trips in microseconds, in order of arrival, since the last call.
    pub fn take_round_trips(&self) -> Vec<u32> {
        std::mem::take(&mut lock(&self.round_trips))
    }

    /// The statistics of this moment.
    pub fn stats(&self) -> Stats {
        self.clients.stats()
    }

    /// The clients below: controls and checks.
    pub fn clients(&self) -> &Clients<Stream> {
        &self.clients
    }

    /// As [`Clients::stop_and_verify`].
    pub fn stop_and_verify(&self, timeout: Duration, end: End) -> Result<Stats, String> {
        self.clients.stop_and_verify(timeout, end)
    }
}

fn checksum(key: u64, len: u8, seq: u32) -> [u8; 3] {
    let h = mix(key ^ (u64::from(len) << 32) ^ u64::from(seq)).to_le_bytes();
    [h[0], h[1], h[2]]
}

impl Protocol for Stream {
    type Shared = ();

    fn produce(&mut self, _: &mut (), rate: Rate, out: &mut Vec<u8>) -> Duration {
        let len = self.rng.range(rate.bytes.0.into(), rate.bytes.1.into()) as u8;
        out.push(len);
        out.extend_from_slice(&self.next.to_le_bytes());
        out.extend_from_slice(&checksum(self.key, len, self.next));
        stream_fill(self.key, u64::from(self.next) * 64, usize::from(len) - HEADER, out);
        self.next += 1;
        self.flying.push_back((len, 0, Instant::now()));
        self.rng.duration(rate.pause.0, rate.pause.1)
    }

    fn written(&mut self, _: &mut (), mut n: usize, now: Instant) {
        while let Some(r) = self.flying.get_mut(self.writing) {
            let part = n.min(usize::from(r.0 - r.1));
            (r.1, r.2) = (r.1 + part as u8, now);
            n -= part;
            if r.1 < r.0 {
                break;
            }
            self.writing += 1;
            self.sent_records += 1;
        }
    }

    fn received(&mut self, _: &mut (), bytes: &[u8], now: Instant) -> Received {
        self.input.extend_from_slice(bytes);
        let mut r = Received::default();
        let mut at = 0;
        while let Some(&len) = self.input.get(at) {
            let n = usize::from(len);
            let rest = &self.input[at..];
            let wrong = |text: String| Some(Failure::Message { text });
            let writing = self.writing;
            // Of a record that is only half written, that half may be back already.
            let out = |r: &&(u8, u8, Instant)| writing > 0 || rest.len() <= usize::from(r.1);
            let Some(&(flying, _, when)) = self.flying.front().filter(out) else {
                r.doubled = rest.len() as u64;
                r.failure = Some(Failure::Unexpected { bytes: r.doubled });
                break;
            };
            if !(HEADER..=64).contains(&n) {
                r.failure = wrong(format!("a record of {n} bytes where {} was expected", self.expected));
                break;
            }
            if rest.len() < n {
                break;
            }
            let seq = u32::from_le_bytes([rest[1], rest[2], rest[3], rest[4]]);
            if rest[5..8] != checksum(self.key, len, seq) {
                r.failure = wrong(format!("record with a bad checksum where {} was expected", self.expected));
                break;
            }
            if seq != self.expected || len != flying {
                r.failure = wrong(format!("record {seq} where {} was expected", self.expected));
                break;
            }
            if stream_mismatch(self.key, u64::from(seq) * 64, &rest[HEADER..n]).is_some() {
                r.failure = wrong(format!("record {seq} has wrong contents"));
                break;
            }
            let mut trips = lock(&self.round_trips);
            if trips.len() < 10_000_000 {
                trips.push(now.saturating_duration_since(when).as_micros() as u32);
            }
            self.flying.pop_front();
            self.writing -= 1;
            self.expected += 1;
            at += n;
        }
        r.fatal = r.failure.is_some();
        r.right = at as u64;
        self.input.drain(..at);
        r
    }

    fn outstanding(&self, _: &()) -> u64 {
        self.writing as u64
    }

    fn outstanding_bytes(&self, _: &()) -> u64 {
        // The true number is at most this, and only a limit and a report of loss need it.
        self.flying.iter().take(self.writing).map(|r| u64::from(r.0)).sum()
    }

    fn counts(&self) -> (u64, u64, u64) {
        (self.sent_records, u64::from(self.expected), 0)
    }
}
