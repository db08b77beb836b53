//! Round trips: unprotected, protected, and the bare way to the partner and back.

use std::io;
use std::net::TcpStream;
use std::time::Instant;

use hdrhistogram::Histogram;

use super::report::{Group, Report};
use super::stand::{connect, echo, Stand};
use super::{Options, Variant};
use crate::failure::Failure;

/// Round trips before those that count.
const WARM_UP: usize = 100;
/// Longest round trip that is told from a longer one, in ns.
const LONGEST: u64 = 60_000_000_000;
/// Size of the messages whose log is looked at.
const LOGGED: u32 = 64;

const PARTS: [(f64, Group); 3] =
    [(0.5, trip("round trip, p50")), (0.99, trip("round trip, p99")), (0.999, trip("round trip, p99.9"))];
const LOG: Group = Group { bench: "latency", name: "log", unit: "", axis: "bytes" };

const fn trip(name: &'static str) -> Group {
    Group { bench: "latency", name, unit: "us", axis: "bytes" }
}

pub fn measure(options: &Options, variant: Variant, report: &mut Report) -> Result<(), Failure> {
    let stand = Stand::new(options, variant, 0)?;
    let master = stand.ready()?;
    let partner = stand.unprotected(1 - master);
    let own = stand.pair.addr();
    for run in 0..options.runs {
        for &streams in &options.streams {
            let many = if streams == 1 { String::new() } else { format!(", {streams} at once") };
            let ways = [
                ("unprotected".to_owned(), &stand.peer, stand.unprotected(master)),
                (variant.name().to_owned(), &stand.peer, own),
                ("from master to partner".to_owned(), stand.pair.host(master), partner),
            ];
            for (name, from, to) in ways {
                let mut all: Vec<TcpStream> = (0..streams).map(|_| connect(from, to)).collect::<Result<_, _>>()?;
                for &size in &options.sizes {
                    report.progress(&format!("latency: {size} bytes{many}, {name}, run {}", run + 1));
                    let logged = (to == own && streams == 1 && size == LOGGED).then(|| Log::of(&stand, master)).transpose()?;
                    let trips = round_trips(options, &mut all, size).map_err(|e| format!("{name}: {e}"))?;
                    if let Some(before) = logged {
                        Log::of(&stand, master)?.note(&before, trips.len() + WARM_UP as u64, report);
                    }
                    for (part, group) in PARTS {
                        let us = trips.value_at_quantile(part) as f64 / 1e3;
                        report.note(group, &format!("{name}{many}"), Some(size.into()), us);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Each stream sends, waits for the echo, and sends again; the times are in ns.
pub(super) fn round_trips(options: &Options, streams: &mut [TcpStream], size: u32) -> Result<Histogram<u64>, Failure> {
    let make = || Histogram::<u64>::new_with_bounds(1, LONGEST, 3).map_err(|e| e.to_string());
    let one = |stream: &mut TcpStream| -> Result<Histogram<u64>, Failure> {
        let mut trips = make()?;
        let message: Vec<u8> = (0..size).map(|i| i as u8).collect();
        // Large ones are warm sooner.
        let warm_up = if size <= 1024 { WARM_UP } else { 3 };
        for _ in 0..warm_up {
            echo(stream, &message)?;
        }
        let start = Instant::now();
        while start.elapsed() < options.span() {
            let took = echo(stream, &message)?;
            trips.saturating_record(took.as_nanos() as u64);
        }
        Ok(trips)
    };
    let mut sum = make()?;
    std::thread::scope(|threads| {
        let all: Vec<_> = streams.iter_mut().map(|s| threads.spawn(|| one(s))).collect();
        for thread in all {
            sum.add(thread.join().expect("no panic")?).map_err(|e| e.to_string())?;
        }
        Ok::<_, Failure>(())
    })?;
    Ok(sum)
}

/// What a member has written to its log.
struct Log {
    records: f64,
    /// Bytes that are not payload.
    beside: f64,
}

impl Log {
    fn of(stand: &Stand, member: usize) -> Result<Log, Failure> {
        let status = stand.pair.status(member)?;
        let counter =
            |name: &str| status["counters"][name].as_f64().ok_or_else(|| io::Error::other(format!("no counter {name}")));
        let all = (counter("records"), counter("log_bytes"), counter("payload_bytes"));
        Ok(Log { records: all.0?, beside: all.1? - all.2? })
    }

    fn note(&self, before: &Log, trips: u64, report: &mut Report) {
        let (records, beside) = (self.records - before.records, self.beside - before.beside);
        let at = Some(LOGGED.into());
        report.note(LOG, "records, each round trip", at, records / trips as f64);
        report.note(LOG, "bytes beside the payload, each record", at, beside / records);
        report.note(LOG, "bytes beside the payload, each round trip", at, beside / trips as f64);
    }
}
