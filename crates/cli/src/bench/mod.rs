//! `tcpr bench`: what protection costs and what a failover takes, on this machine, in network namespaces. Each figure
//! is a median over runs, beside what it is to be compared with in the same runs.

mod criu;
mod failover;
mod keepalived;
mod latency;
mod plot;
mod programs;
mod recovered;
mod recovery;
mod report;
mod scale;
mod stand;
mod throughput;
mod usage;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tcpr_lab::member::Service;
use tcpr_lab::Lab;

use crate::failure::Failure;
use report::Report;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// Time to restore a session, by number of sessions
    Recovery,
    /// Round trip and throughput of a connection that was recovered, with each engine
    Recovered,
    /// Outage that a peer sees, by way of losing the master
    Failover,
    /// Round trip of a message
    Latency,
    /// Bytes and connections per second, and the processor's part in it
    Throughput,
    /// What many sessions need; what a snapshot costs
    Scale,
    /// Requests per second of redis, memcached and nginx
    Programs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Engine {
    Repair,
    Splice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Durability {
    Sync,
    Async,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Standby {
    Warm,
    Hot,
}

/// How tcpr is configured.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    engine: Engine,
    durability: Durability,
    standby: Standby,
}

impl Variant {
    fn name(self) -> &'static str {
        match (self.engine, self.durability, self.standby) {
            (Engine::Repair, Durability::Sync, Standby::Warm) => "repair",
            (Engine::Repair, Durability::Async, Standby::Warm) => "repair, async",
            (Engine::Repair, Durability::Sync, Standby::Hot) => "repair, hot",
            (Engine::Repair, Durability::Async, Standby::Hot) => "repair, async, hot",
            (Engine::Splice, Durability::Sync, _) => "splice",
            (Engine::Splice, Durability::Async, _) => "splice, async",
        }
    }

    /// Each combination of these that there is: hot standbys are made with engine `repair` alone.
    fn all(options: &Options) -> Vec<Variant> {
        let mut all = Vec::new();
        for &engine in &options.engines {
            for &durability in &options.durability {
                let standbys = options.standby.iter().filter(|s| **s == Standby::Warm || engine == Engine::Repair);
                all.extend(standbys.map(|&standby| Variant { engine, durability, standby }));
            }
        }
        all
    }

    fn apply(self, service: Service) -> Service {
        let service = match self.engine {
            Engine::Repair => service,
            Engine::Splice => service.set("recovery", "engine", "\"splice\""),
        };
        let service = match self.durability {
            Durability::Sync => service,
            Durability::Async => service.set("replication", "durability", "\"async\""),
        };
        match self.standby {
            Standby::Warm => service,
            Standby::Hot => service.set("service", "standby", "\"hot\""),
        }
    }
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
    /// Draw each group of figures into this directory, as SVG and PNG
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
    /// Runs of each measurement
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Sessions of `recovery`, `failover` and `scale` [default: up to 10,000; of `scale` 100,000]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=500_000))]
    sessions: Vec<u32>,
    /// Sizes of the messages of `latency` and of the writes of `throughput`, in bytes
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 1024, 16_384, 65_536, 1_048_576], value_parser = clap::value_parser!(u32).range(1..=16 << 20))]
    sizes: Vec<u32>,
    /// How many streams at once, in `latency` and `throughput`
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16], value_parser = clap::value_parser!(u32).range(1..=256))]
    streams: Vec<u32>,
    /// Seconds that a run of one measurement of `latency` or `throughput` goes on
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// The ways to recover that are compared, in `recovery`, `recovered` and `failover`
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Engine::Repair, Engine::Splice])]
    engines: Vec<Engine>,
    /// When output may leave: what is compared
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Durability::Sync])]
    durability: Vec<Durability>,
    /// What the backup's program does meanwhile: what is compared (`hot` with engine `repair` alone)
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Standby::Warm])]
    standby: Vec<Standby>,
    /// heartbeat_ms of both members (a machine that stands still now and then fails over without need at the default)
    #[arg(long, default_value_t = 20, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    heartbeat: u32,
    /// misses of both members
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    misses: u32,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok().filter(|s| (0.05..=3600.0).contains(s));
    seconds.ok_or_else(|| "a number of seconds, 0.05 to 3600".to_owned())
}

impl Options {
    fn sessions(&self, default: &[u32]) -> Vec<u32> {
        if self.sessions.is_empty() {
            default.to_vec()
        } else {
            self.sessions.clone()
        }
    }

    fn span(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

type Measure = fn(&Options, Variant, &mut Report) -> Result<(), Failure>;

/// Runs it.
pub fn bench(options: &Options) -> Result<u8, Failure> {
    Lab::sweep();
    let mut report = Report::new();
    let mut failed = Vec::new();
    let variants = Variant::all(options);
    if variants.is_empty() {
        return Err("hot standbys are made with engine repair alone: --engines repair".into());
    }
    for (what, name, run) in [
        (What::Recovery, "recovery", recovery::measure as Measure),
        (What::Recovered, "recovered", recovered::measure),
        (What::Failover, "failover", failover::measure),
        (What::Latency, "latency", latency::measure),
        (What::Throughput, "throughput", throughput::measure),
        (What::Scale, "scale", scale::measure),
        (What::Programs, "programs", programs::measure),
    ] {
        if !options.what.is_empty() && !options.what.contains(&what) {
            continue;
        }
        // The engines differ in what they do at a recovery, and to what was recovered.
        let differ = matches!(what, What::Recovery | What::Recovered | What::Failover);
        for &variant in variants.iter().filter(|v| differ || v.engine == variants[0].engine) {
            // What else is measured is worth printing all the same.
            if let Err(error) = run(options, variant, &mut report) {
                report.remark(name, format!("{} failed: {error}", variant.name()));
                failed.push(format!("{name}, {}", variant.name()));
            }
        }
        if what == What::Failover {
            keepalived::measure(options, &mut report);
            criu::look(&mut report);
        }
    }
    report.finish();
    print(options, &report);
    if let Some(dir) = &options.plot {
        plot::draw(&report, dir)?;
    }
    if failed.is_empty() {
        Ok(0)
    } else {
        Err(format!("failed: {}", failed.join("; ")).into())
    }
}

fn print(options: &Options, report: &Report) {
    let (machine, heartbeat, misses) = (machine(), options.heartbeat, options.misses);
    if options.json {
        let (figures, remarks) = report.json();
        println!(
            "{}",
            json!({ "machine": machine, "heartbeat_ms": heartbeat, "misses": misses, "figures": figures, "remarks": remarks })
        );
        return;
    }
    println!("{machine}; heartbeats of {heartbeat} ms, {misses} misses; median (lowest .. highest of the runs)");
    report.print();
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|l| l.strip_prefix("model name")).and_then(|l| l.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{cores} x {}, Linux {}", model.unwrap_or("unknown processor"), read("/proc/sys/kernel/osrelease").trim())
}
