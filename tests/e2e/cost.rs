//! What protection costs, counted and not timed: system calls, records and bytes. The bounds are what it costs at present;
//! who makes it dearer learns of it here, and who makes it cheaper lowers them. For times there is `tcpr bench`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tcpr_lab::member::Service;
use tcpr_lab::wait_until;

use crate::requests::connect;
use crate::world::{built, World, PATIENCE, PORT};

/// Traces a process.
pub struct Strace(Child);

impl Strace {
    pub fn attach(pid: i32, args: &[&str]) -> Strace {
        let mut command = Command::new("strace");
        command.args(args).args(["-p", &pid.to_string()]).stderr(Stdio::null());
        let child = command.spawn().unwrap_or_else(|e| panic!("strace: {e}; this test needs it: apt-get install strace"));
        let traced = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|l| l.strip_prefix("TracerPid:").is_some_and(|t| t.trim() != "0"))
        };
        wait_until(PATIENCE, "strace has attached itself (kernel.yama.ptrace_scope, CAP_SYS_PTRACE)", traced);
        Strace(child)
    }

    /// The process goes on untraced.
    pub fn detach(mut self) {
        let pid = self.0.id().to_string();
        let killed = Command::new("kill").args(["-INT", &pid]).status().expect("kill");
        assert!(killed.success());
        self.0.wait().expect("strace ends");
    }
}

/// Counts the system calls of a process while it lives.
struct Counted {
    strace: Strace,
    file: PathBuf,
}

impl Counted {
    fn attach(pid: i32, file: PathBuf) -> Counted {
        let strace = Strace::attach(pid, &["-c", "-f", "-o", &file.display().to_string()]);
        Counted { strace, file }
    }

    /// How often each system call was made.
    fn counts(self) -> BTreeMap<String, u64> {
        self.strace.detach();
        let table = fs::read_to_string(&self.file).expect("strace's table");
        let row = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, _, _, calls, .., name] = fields[..] else { return None };
            Some((name.to_owned(), calls.parse().ok()?))
        };
        table.lines().filter_map(row).filter(|(name, _)| name != "total").collect()
    }
}

/// What something cost the members: the master, and the backup.
struct Cost {
    calls: [BTreeMap<String, u64>; 2],
    counters: BTreeMap<&'static str, f64>,
}

impl Cost {
    fn of(w: &World, what: impl FnOnce()) -> Cost {
        const COUNTERS: [&str; 5] = ["packets_in", "packets_out", "records", "log_bytes", "payload_bytes"];
        let master = w.protected();
        let read = || {
            let status = w.pair.status(master).expect("status");
            COUNTERS.map(|name| status["counters"][name].as_f64().expect("a counter"))
        };
        let before = read();
        let traces = [master, 1 - master].map(|i| {
            let pid = w.pair.process(i).expect("it runs").pid();
            Counted::attach(pid, w.pair.host(i).dir().join("calls"))
        });
        what();
        let calls = traces.map(Counted::counts);
        let after = read();
        let counters = (0..COUNTERS.len()).map(|i| (COUNTERS[i], after[i] - before[i])).collect();
        Cost { calls, counters }
    }

    fn packets(&self) -> f64 {
        self.counters["packets_in"] + self.counters["packets_out"]
    }

    fn calls(&self, member: usize) -> f64 {
        self.calls[member].values().sum::<u64>() as f64
    }

    /// Each turn of a manager's loop waits once.
    fn turns(&self, member: usize) -> f64 {
        self.calls[member]["epoll_wait"] as f64
    }

    /// Fails if something is dearer than it was.
    fn bound(&self, bounds: &[(&str, f64, f64)]) {
        self.within(bounds).unwrap_or_else(|dearer| panic!("{dearer}"));
    }

    fn within(&self, bounds: &[(&str, f64, f64)]) -> Result<(), String> {
        let mut dearer = Vec::new();
        for (what, now, most) in bounds {
            eprintln!("{what}: {now:.2}, at most {most}");
            if now > most {
                dearer.push(format!("{what}: {now:.2}, more than {most}"));
            }
        }
        if dearer.is_empty() {
            return Ok(());
        }
        Err(format!("{}\nmaster: {:?}\nbackup: {:?}", dearer.join("\n"), self.calls[0], self.calls[1]))
    }
}

/// Fails if it is dearer than it was each time. What takes longer, on a machine that is busy, has more heartbeats beside it.
fn at_best(mut once: impl FnMut() -> Result<(), String>) {
    const TIMES: usize = 5;
    let mut dearer = String::new();
    for _ in 0..TIMES {
        match once() {
            Ok(()) => return,
            Err(what) => dearer = what,
        }
    }
    panic!("{dearer}");
}

fn world(label: &str) -> World {
    // Looking for something instead of sleeping is no work.
    let service = Service::new("echo", PORT).set("replication", "busy_poll_us", "0");
    World::new(label, service, &[&built("echo_server"), "5555"])
}

fn peer(w: &World) -> TcpStream {
    let stream = w.peer.enter(|| connect(w.pair.addr())).expect("connected");
    stream.set_nodelay(true).expect("no delay");
    stream
}

/// One message, one answer, and the next: nothing can be done for two of them at once.
#[test]
fn a_round_trip_costs_no_more_than_it_did() {
    const TRIPS: u32 = 400;
    let w = world("cost");
    let mut stream = peer(&w);
    let mut trips = |n| {
        for i in 0..n {
            let (message, mut back) = ([i as u8; 64], [0; 64]);
            stream.write_all(&message).expect("sent");
            stream.read_exact(&mut back).expect("answered");
            assert_eq!(message, back);
        }
    };
    trips(100);
    at_best(|| {
        let cost = Cost::of(&w, || trips(TRIPS));
        let each = |n: f64| n / f64::from(TRIPS);
        let beside = cost.counters["log_bytes"] - cost.counters["payload_bytes"];
        cost.within(&[
            ("packets, each round trip", each(cost.packets()), 2.2),
            ("records, each round trip", each(cost.counters["records"]), 4.1),
            ("bytes of the log beside the payload, each round trip", each(beside), 72.0),
            ("system calls of the master, each round trip", each(cost.calls(0)), 11.0),
            ("system calls of the master, each packet", cost.calls(0) / cost.packets(), 5.5),
            ("turns of the master, each round trip", each(cost.turns(0)), 3.6),
            ("system calls of the master, each turn", cost.calls(0) / cost.turns(0), 3.6),
            ("system calls of the backup, each round trip", each(cost.calls(1)), 4.5),
            ("turns of the backup, each round trip", each(cost.turns(1)), 1.6),
        ])
    });
}

/// As much as goes through, where turns, records and packets are as large as they get. (What a turn costs is not bounded
/// here: one that does more is a better one.)
#[test]
fn a_stream_costs_no_more_than_it_did() {
    const BYTES: usize = 32 << 20;
    let w = world("coststream");
    let mut stream = peer(&w);
    at_best(|| {
        let cost = Cost::of(&w, || {
            let mut writing = stream.try_clone().expect("a second handle");
            std::thread::scope(|threads| {
                threads.spawn(move || writing.write_all(&vec![0x5a; BYTES]).expect("sent"));
                let mut back = vec![0; BYTES];
                stream.read_exact(&mut back).expect("all of it");
            });
        });
        let megabytes = (BYTES >> 20) as f64;
        let each = |n: f64| n / megabytes;
        let beside = cost.counters["log_bytes"] - cost.counters["payload_bytes"];
        cost.within(&[
            ("records, each MiB", each(cost.counters["records"]), 115.0),
            ("bytes of the log beside the payload, each MiB", each(beside), 2000.0),
            ("payload in the log, each byte both ways", cost.counters["payload_bytes"] / (2 * BYTES) as f64, 1.01),
            ("packets, each MiB", each(cost.packets()), 75.0),
            ("system calls of the master, each packet", cost.calls(0) / cost.packets(), 2.5),
            ("system calls of the backup, each MiB", each(cost.calls(1)), 75.0),
        ])
    });
}

/// Sessions that say nothing cost nothing, whatever their number.
#[test]
fn idle_sessions_cost_nothing() {
    const WATCHED: Duration = Duration::from_secs(2);
    let w = world("costidle");
    let idle = || Cost::of(&w, || std::thread::sleep(WATCHED));
    let alone = idle();
    let all: Vec<TcpStream> = (0..200u8)
        .map(|i| {
            let (mut stream, mut back) = (peer(&w), [0]);
            stream.write_all(&[i]).expect("sent");
            stream.read_exact(&mut back).expect("answered");
            stream
        })
        .collect();
    w.pair.wait_sessions(all.len() as u64, PATIENCE).expect("sessions");
    std::thread::sleep(Duration::from_millis(200));
    let cost = idle();
    for member in 0..2 {
        // A beat more or less, and one look at the kernel's table of sockets a second.
        let most = alone.calls(member) * 1.3 + 40.0;
        cost.bound(&[
            ("packets", cost.packets(), 0.0),
            ("records", cost.counters["records"], 0.0),
            ("system calls of an idle member with 200 sessions", cost.calls(member), most),
        ]);
    }
}
