//! Bytes and connections per second, and what they cost of the processor, with protection and without.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Instant;

use tcpr_lab::Host;

use super::report::{Group, Report};
use super::stand::{connect, echo, Stand, PATIENCE};
use super::{usage, Options, Variant};
use crate::failure::Failure;

/// What is written at once where the size of writes is not what is measured.
const BLOCK: usize = 64 << 10;
/// What a download asks for at once.
const PORTION: u64 = 8 << 20;
/// Threads that connect and close, one after another.
const VISITORS: usize = 8;

const BY_SIZE: Group = group("echo, one stream, by size of writes", "MB/s", "bytes");
const BY_WAY: Group = group("writes of 64 KiB", "MB/s", "streams");
const RATIO: Group = group("protected / unprotected", "", "streams");
const CPU: Group = group("processor time of both members", "s/Gbit", "streams");
const SENT: Group = group("sent by the master for each byte", "", "streams");
const CONGESTION: Group = group("echo, one stream, by congestion control", "MB/s", "");
const VISITS: Group = group("connections opened, used once and closed", "1/s", "");

const fn group(name: &'static str, unit: &'static str, axis: &'static str) -> Group {
    Group { bench: "throughput", name, unit, axis }
}

#[derive(Clone, Copy)]
enum Way {
    Echo,
    Upload,
    Download,
}

impl Way {
    /// The server's port for it, from the first on.
    fn port(self, first: SocketAddr) -> SocketAddr {
        let further = match self {
            Way::Echo => 0,
            Way::Upload => 1,
            Way::Download => 2,
        };
        SocketAddr::new(first.ip(), first.port() + further)
    }
}

pub fn measure(options: &Options, variant: Variant, report: &mut Report) -> Result<(), Failure> {
    let stand = Stand::new(options, variant, 0)?;
    let bench = Bench { options, stand: &stand, variant, master: stand.ready()? };
    for run in 1..=options.runs {
        for &size in &options.sizes {
            report.progress(&format!("throughput: writes of {size} bytes, run {run}"));
            for (name, protected) in bench.ways() {
                let rate = bench.rate(Way::Echo, protected, 1, size as usize)?;
                report.note(BY_SIZE, name, Some(size.into()), rate.bytes / 1e6);
            }
        }
        for &streams in &options.streams {
            for (way, what) in [(Way::Echo, "echo"), (Way::Upload, "upload"), (Way::Download, "download")] {
                report.progress(&format!("throughput: {what}, {streams} streams, run {run}"));
                let mut both = [0.0; 2];
                let at = Some(streams.into());
                for (name, protected) in bench.ways() {
                    let rate = bench.rate(way, protected, streams as usize, BLOCK)?;
                    both[usize::from(protected)] = rate.bytes;
                    report.note(BY_WAY, &format!("{what}, {name}"), at, rate.bytes / 1e6);
                    report.note(CPU, &format!("{what}, {name}"), at, rate.cpu);
                    report.note(SENT, &format!("{what}, {name}"), at, rate.sent);
                }
                report.note(RATIO, &format!("{what}, {}", variant.name()), at, both[1] / both[0]);
            }
        }
        bench.congestion(report, run)?;
        for (name, protected) in bench.ways() {
            report.progress(&format!("throughput: visits, {name}, run {run}"));
            report.note(VISITS, name, None, bench.visits(protected)?);
        }
    }
    Ok(())
}

/// Bytes each second through an echo over this connection, which ends with it.
pub(super) fn echo_over(options: &Options, stand: &Stand, variant: Variant, stream: &TcpStream) -> Result<f64, Failure> {
    let (bench, start) = (Bench { options, stand, variant, master: 0 }, Instant::now());
    let bytes = bench.stream(Way::Echo, stream, BLOCK).map_err(|e| format!("{e}\n{}", stand.pair.describe()))?;
    Ok(bytes as f64 / start.elapsed().as_secs_f64())
}

struct Rate {
    /// Each second.
    bytes: f64,
    /// Processor seconds for each gigabit.
    cpu: f64,
    /// What left the master, to the peer and to the partner, for each byte of payload.
    sent: f64,
}

struct Bench<'a> {
    options: &'a Options,
    stand: &'a Stand,
    variant: Variant,
    master: usize,
}

impl Bench<'_> {
    fn ways(&self) -> [(&'static str, bool); 2] {
        [("unprotected", false), (self.variant.name(), true)]
    }

    fn address(&self, protected: bool) -> SocketAddr {
        if protected {
            self.stand.pair.addr()
        } else {
            self.stand.unprotected(self.master)
        }
    }

    fn rate(&self, way: Way, protected: bool, streams: usize, block: usize) -> Result<Rate, Failure> {
        let to = way.port(self.address(protected));
        let all: Vec<TcpStream> = (0..streams).map(|_| connect(&self.stand.peer, to)).collect::<Result<_, _>>()?;
        let master = self.stand.pair.host(self.master);
        let (sent, cpu, start) = (master.enter(usage::sent), self.stand.cpu(protected), Instant::now());
        let mut bytes = 0;
        std::thread::scope(|threads| {
            let all: Vec<_> = all.iter().map(|s| threads.spawn(|| self.stream(way, s, block))).collect();
            for thread in all {
                let moved = thread.join().expect("no panic");
                bytes += moved.map_err(|e| format!("{to}: {e}\n{}", self.stand.pair.describe()))?;
            }
            Ok::<_, String>(())
        })?;
        let bytes = bytes as f64;
        let cpu = (self.stand.cpu(protected) - cpu) / (bytes * 8.0 / 1e9);
        let sent = (master.enter(usage::sent) - sent) / bytes;
        Ok(Rate { bytes: bytes / start.elapsed().as_secs_f64(), cpu, sent })
    }

    /// One stream, as fast as it goes; how many bytes it moved.
    fn stream(&self, way: Way, mut stream: &TcpStream, block: usize) -> io::Result<u64> {
        let start = Instant::now();
        let goes_on = || start.elapsed() < self.options.span();
        let write = |mut to: &TcpStream| {
            let block = vec![0x5a; block];
            let mut bytes = 0;
            // Looking at the clock for every byte would be what is measured.
            let times = BLOCK.div_ceil(block.len()).min(64);
            while goes_on() {
                for _ in 0..times {
                    to.write_all(&block)?;
                    bytes += block.len() as u64;
                }
            }
            to.shutdown(Shutdown::Write)?;
            Ok::<_, io::Error>(bytes)
        };
        match way {
            // The server closes when it has read everything.
            Way::Upload => {
                let bytes = write(stream)?;
                read(stream, u64::MAX)?;
                Ok(bytes)
            }
            Way::Echo => std::thread::scope(|threads| {
                let writer = threads.spawn(|| write(stream));
                let bytes = read(stream, u64::MAX)?;
                match writer.join().expect("no panic")? {
                    sent if sent == bytes => Ok(bytes),
                    sent => Err(io::Error::other(format!("{sent} bytes sent, {bytes} came back"))),
                }
            }),
            Way::Download => {
                let mut bytes = 0;
                while goes_on() {
                    stream.write_all(&PORTION.to_le_bytes())?;
                    bytes += read(stream, PORTION)?;
                }
                Ok(bytes)
            }
        }
    }

    /// Echoes with each congestion control that this kernel has.
    fn congestion(&self, report: &mut Report, run: u32) -> Result<(), Failure> {
        let file = "/proc/sys/net/ipv4/tcp_available_congestion_control";
        let available = std::fs::read_to_string(file).unwrap_or_default();
        let hosts = [self.stand.pair.host(0), self.stand.pair.host(1), &self.stand.peer];
        // By the route: the sysctl of a namespace takes only what the whole machine permits to everybody.
        let set = |by: &str| {
            let route = |h: &Host| h.ip_cmd(&format!("route replace 192.0.2.0/24 dev eth0 src {} {by}", h.ip())).map(drop);
            hosts.into_iter().try_for_each(route).map_err(Failure::from)
        };
        for name in ["cubic", "bbr"] {
            if !available.split_whitespace().any(|a| a == name) {
                report.remark("throughput", format!("this kernel has no congestion control {name} (modprobe tcp_{name})"));
                continue;
            }
            set(&format!("congctl {name}"))?;
            for (way, protected) in self.ways() {
                report.progress(&format!("throughput: {name}, {way}, run {run}"));
                let rate = self.rate(Way::Echo, protected, 1, BLOCK)?;
                report.note(CONGESTION, &format!("{name}, {way}"), None, rate.bytes / 1e6);
            }
        }
        set("")
    }

    /// Connections each second, of some visitors at once, each of which exchanges one message and closes.
    fn visits(&self, protected: bool) -> Result<f64, Failure> {
        let to = self.address(protected);
        let start = Instant::now();
        let one = || -> Result<u64, Failure> {
            let mut n = 0;
            while start.elapsed() < self.options.span() {
                let mut stream = TcpStream::connect(to).map_err(|e| format!("visit {n}: {e}"))?;
                stream.set_read_timeout(Some(PATIENCE))?;
                echo(&mut stream, b"hello, and good-bye")?;
                n += 1;
            }
            Ok(n)
        };
        let n: Result<u64, Failure> = self.stand.peer.enter(|| {
            std::thread::scope(|threads| {
                let all: Vec<_> = (0..VISITORS).map(|_| threads.spawn(one)).collect();
                all.into_iter().map(|t| t.join().expect("no panic")).sum()
            })
        });
        Ok(n? as f64 / start.elapsed().as_secs_f64())
    }
}

/// Reads so many bytes, or as many as there are.
fn read(mut stream: &TcpStream, n: u64) -> io::Result<u64> {
    let mut block = vec![0; 256 << 10];
    let mut bytes = 0;
    while bytes < n {
        let most = block.len().min((n - bytes) as usize);
        match stream.read(&mut block[..most])? {
            0 => break,
            n => bytes += n as u64,
        }
    }
    Ok(bytes)
}
