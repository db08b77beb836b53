//! What protection costs while nothing fails.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::{connect, echo, quantile, Bench, Stand, PATIENCE};

/// Round trips of a run, and those before it that do not count.
const TRIPS: usize = 2000;
const WARM_UP: usize = 100;
/// How long a run of `throughput` goes on.
const SPAN: Duration = Duration::from_secs(3);

/// Round trips of 64 bytes: unprotected, protected, and the bare way to the partner and back.
pub fn latency(b: &mut Bench<'_>) -> Result<(), String> {
    let stand = Stand::new(b.options)?;
    let master = stand.pair.wait_protected(PATIENCE)?;
    let plain = stand.unprotected(master)?;
    let partner = stand.unprotected(1 - master)?;
    let mut ways = [
        ("64 bytes, unprotected", connect(&stand.peer, plain)?),
        ("64 bytes, protected", connect(&stand.peer, stand.pair.addr())?),
        ("64 bytes, from master to partner", connect(stand.pair.host(master), partner)?),
    ];
    for run in 0..b.options.runs {
        b.progress(&format!("latency, run {}", run + 1));
        for (what, stream) in &mut ways {
            let before = Log::of(&stand, master)?;
            let trips = round_trips(stream).map_err(|e| format!("{what}: {e}"))?;
            let log = Log::of(&stand, master)?;
            if log.records > before.records + TRIPS as f64 {
                let trips = (WARM_UP + TRIPS) as f64;
                let (records, beside) = (log.records - before.records, log.beside - before.beside);
                b.note("latency", "records of the log, each round trip", "", records / trips);
                b.note("latency", "their bytes beside the payload, each record", "B", beside / records);
            }
            for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
                b.note("latency", &format!("{what}, {name}"), "us", quantile(&trips, part));
            }
        }
    }
    Ok(())
}

/// What a member has written to its log.
struct Log {
    records: f64,
    /// Bytes that are not payload.
    beside: f64,
}

impl Log {
    fn of(stand: &Stand, member: usize) -> Result<Log, String> {
        let status = stand.pair.status(member).map_err(|e| e.to_string())?;
        let counter = |name: &str| status["counters"][name].as_f64().ok_or(format!("no counter {name}"));
        Ok(Log { records: counter("records")?, beside: counter("log_bytes")? - counter("payload_bytes")? })
    }
}

fn round_trips(stream: &mut TcpStream) -> io::Result<Vec<f64>> {
    let mut trips = Vec::with_capacity(TRIPS);
    for i in 0..WARM_UP + TRIPS {
        let took = echo(stream, &[i as u8; 64])?;
        if i >= WARM_UP {
            trips.push(took.as_secs_f64() * 1e6);
        }
    }
    Ok(trips)
}

/// One stream through an echo server, as fast as it goes.
pub fn throughput(b: &mut Bench<'_>) -> Result<(), String> {
    let stand = Stand::new(b.options)?;
    let master = stand.pair.wait_protected(PATIENCE)?;
    let plain = stand.unprotected(master)?;
    for run in 0..b.options.runs {
        b.progress(&format!("throughput, run {}", run + 1));
        let mut both = [0.0; 2];
        let ways = [("one stream, unprotected", plain), ("one stream, protected", stand.pair.addr())];
        for (i, (what, to)) in ways.into_iter().enumerate() {
            let stream = connect(&stand.peer, to)?;
            both[i] = stream_through(&stream).map_err(|e| format!("{what}: {e}\n{}", stand.pair.describe()))?;
            b.note("throughput", what, "MB/s", both[i]);
        }
        b.note("throughput", "protected / unprotected", "", both[1] / both[0]);
    }
    Ok(())
}

/// Megabytes per second that come back.
fn stream_through(stream: &TcpStream) -> io::Result<f64> {
    let start = Instant::now();
    std::thread::scope(|threads| {
        let writer = threads.spawn(move || {
            let mut stream = stream;
            let block = vec![0x5a; 64 << 10];
            while start.elapsed() < SPAN {
                stream.write_all(&block)?;
            }
            stream.shutdown(Shutdown::Write)
        });
        let mut stream = stream;
        let mut block = vec![0; 256 << 10];
        let mut bytes = 0u64;
        loop {
            match stream.read(&mut block)? {
                0 => break,
                n => bytes += n as u64,
            }
        }
        let took = start.elapsed();
        writer.join().expect("no panic")?;
        Ok(bytes as f64 / 1e6 / took.as_secs_f64())
    })
}
