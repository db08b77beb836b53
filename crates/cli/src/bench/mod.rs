//! `tcpr bench`: what protection costs and what a failover takes, on this machine, in network namespaces. Each figure
//! is a median over runs, beside what it is to be compared with in the same runs.

mod failover;
mod recovery;
mod traffic;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;
use tcpr_lab::member::{example, Pair, Service};
use tcpr_lab::{wait_listening, Host, Lab};

const PORT: u16 = 5555;
const PATIENCE: Duration = Duration::from_secs(60);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// Time to restore a session, by number of sessions
    Recovery,
    /// Outage that a peer sees, by way of losing the master
    Failover,
    /// Round trip of a small message
    Latency,
    /// Bytes per second through an echo
    Throughput,
}

/// How it is measured.
#[derive(clap::Args)]
pub struct Options {
    /// What to measure [default: all]
    #[arg(value_enum)]
    what: Vec<What>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Runs of each measurement
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Sessions of `recovery` and `failover`
    #[arg(long, value_delimiter = ',', default_values_t = [64, 256, 512], value_parser = clap::value_parser!(u32).range(1..=20_000))]
    sessions: Vec<u32>,
    /// heartbeat_ms of both members (a machine that stands still now and then fails over without need at the default)
    #[arg(long, default_value_t = 20, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    heartbeat: u32,
    /// misses of both members
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    misses: u32,
}

/// A figure: the median of some runs.
struct Figure {
    bench: &'static str,
    what: String,
    unit: &'static str,
    runs: Vec<f64>,
}

impl Figure {
    fn at(&self, part: f64) -> f64 {
        quantile(&self.runs, part)
    }
}

/// The value below which `part` of the values lie.
fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * part).round() as usize]
}

/// Measures, and tells how far it is on stderr.
struct Bench<'a> {
    options: &'a Options,
    figures: Vec<Figure>,
}

impl Bench<'_> {
    fn note(&mut self, bench: &'static str, what: &str, unit: &'static str, value: f64) {
        match self.figures.iter_mut().find(|f| f.bench == bench && f.what == what) {
            Some(figure) => figure.runs.push(value),
            None => self.figures.push(Figure { bench, what: what.to_owned(), unit, runs: vec![value] }),
        }
    }

    fn progress(&self, text: &str) {
        eprintln!("tcpr bench: {text}");
    }
}

/// Runs it.
pub fn bench(options: &Options) -> Result<u8, String> {
    Lab::sweep();
    let mut b = Bench { options, figures: Vec::new() };
    // What was measured before is worth printing all the same.
    let mut failed = None;
    let wanted = |what| options.what.is_empty() || options.what.contains(&what);
    for (what, run) in [
        (What::Recovery, recovery::measure as fn(&mut Bench<'_>) -> Result<(), String>),
        (What::Failover, failover::measure),
        (What::Latency, traffic::latency),
        (What::Throughput, traffic::throughput),
    ] {
        if wanted(what) && failed.is_none() {
            failed = run(&mut b).err();
        }
    }
    b.print();
    failed.map_or(Ok(0), Err)
}

impl Bench<'_> {
    fn print(&self) {
        let (options, machine) = (self.options, machine());
        if options.json {
            let figures: Vec<_> = self
                .figures
                .iter()
                .map(|f| {
                    json!({ "bench": f.bench, "what": f.what, "unit": f.unit, "median": f.at(0.5),
                            "min": f.at(0.0), "max": f.at(1.0), "runs": f.runs.len() })
                })
                .collect();
            println!(
                "{}",
                json!({ "machine": machine, "heartbeat_ms": options.heartbeat, "misses": options.misses, "figures": figures })
            );
            return;
        }
        let (heartbeat, misses) = (options.heartbeat, options.misses);
        println!("{machine}; heartbeats of {heartbeat} ms, {misses} misses; median (lowest .. highest of the runs)");
        for f in &self.figures {
            let (median, low, high, runs) = (f.at(0.5), f.at(0.0), f.at(1.0), f.runs.len());
            println!("{:<10}  {:<58} {median:>10.2} {:<5} ({low:.2} .. {high:.2} of {runs})", f.bench, f.what, f.unit);
        }
    }
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|l| l.strip_prefix("model name")).and_then(|l| l.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{cores} x {}, Linux {}", model.unwrap_or("unknown processor"), read("/proc/sys/kernel/osrelease").trim())
}

/// Two members with an echo server under protection, and a peer.
struct Stand {
    // Dropped in this order: processes first, then the hosts.
    pair: Pair,
    peer: Host,
    _lab: Lab,
}

impl Stand {
    fn new(options: &Options) -> Result<Stand, String> {
        let text = |e: io::Error| e.to_string();
        let lab = Lab::new("bench").map_err(text)?;
        let a = lab.host("a", "192.0.2.1/24").map_err(text)?;
        let b = lab.host("b", "192.0.2.2/24").map_err(text)?;
        let peer = lab.host("peer", "192.0.2.9/24").map_err(text)?;
        let service = Service::new("echo", PORT)
            .set("failover", "heartbeat_ms", &options.heartbeat.to_string())
            .set("failover", "misses", &options.misses.to_string())
            .set("failover", "solo_after_ms", &(2 * options.heartbeat * options.misses).max(100).to_string());
        let mut pair = Pair::new(&a, &b, service).map_err(text)?;
        pair.start_both(&[&server()?, &PORT.to_string()]).map_err(text)?;
        let stand = Stand { pair, peer, _lab: lab };
        stand.pair.wait_protected(PATIENCE)?;
        for i in 0..2 {
            wait_listening(stand.pair.host(i), PORT, PATIENCE).map_err(text)?;
        }
        Ok(stand)
    }

    /// An echo on a member, on another port, with nothing of tcpr at work; it ends with the process.
    fn unprotected(&self, member: usize) -> Result<SocketAddr, String> {
        let ip = self.pair.host(member).ip();
        let listener = self.pair.host(member).enter(|| TcpListener::bind((ip, 0))).map_err(|e| e.to_string())?;
        let at = listener.local_addr().map_err(|e| e.to_string())?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || echo_back(stream));
            }
        });
        Ok(at)
    }

    /// So many connections of the peer, each of which has echoed a message.
    fn connections(&self, n: u32) -> Result<Vec<TcpStream>, String> {
        let all: Result<Vec<_>, _> = (0..n).map(|_| connect(&self.peer, self.pair.addr())).collect();
        let mut all = all?;
        for stream in &mut all {
            echo(stream, b"0123456789abcdef").map_err(|e| format!("echo: {e}"))?;
        }
        Ok(all)
    }
}

fn server() -> Result<String, String> {
    example("echo_server").map(|path| path.display().to_string()).map_err(|e| e.to_string())
}

fn echo_back(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut data = [0; 32 << 10];
    loop {
        match stream.read(&mut data)? {
            0 => return Ok(()),
            n => stream.write_all(&data[..n])?,
        }
    }
}

fn connect(from: &Host, to: SocketAddr) -> Result<TcpStream, String> {
    let stream = from.enter(|| TcpStream::connect_timeout(&to, PATIENCE)).map_err(|e| format!("connect: {e}"))?;
    stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_nodelay(true)).map_err(|e| e.to_string())?;
    Ok(stream)
}

/// Sends a message, and waits until it has come back; tells how long that took.
fn echo(stream: &mut TcpStream, message: &[u8]) -> io::Result<Duration> {
    let mut back = [0; 256];
    let back = &mut back[..message.len()];
    let start = Instant::now();
    stream.write_all(message)?;
    stream.read_exact(back)?;
    let took = start.elapsed();
    if back != message {
        return Err(io::Error::other("what came back is not what was sent"));
    }
    Ok(took)
}
