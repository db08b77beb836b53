//! Two members, a peer, and the ways in which a master is lost.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tcpr_lab::client::{Clients, End, Protocol};
use tcpr_lab::flags::{FIN, RST, SYN};
use tcpr_lab::member::{example, Hosted, Pair, Service};
use tcpr_lab::{seed_from_env, wait_listening, Capture, CaptureOptions, Host, Lab, Rng, SegFilter};

/// The protected port.
pub const PORT: u16 = 5555;
/// How long anything may take on a machine that stands still now and then.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Addresses of the members and the peer.
pub const FOUR: [&str; 3] = ["192.0.2.1/24", "192.0.2.2/24", "192.0.2.9/24"];
pub const SIX: [&str; 3] = ["2001:db8::1/64", "2001:db8::2/64", "2001:db8::9/64"];

/// Ends what runs beside a test with it, passed or failed.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Files that a server reads or writes. They go with the test.
pub struct Dir(pub PathBuf);

impl Dir {
    pub fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("tcpr-{name}-{}-{}", std::process::id(), seed_from_env()));
        std::fs::create_dir_all(&dir).expect("a directory");
        Dir(dir)
    }

    /// Its path.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How the master is lost.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// SIGKILL to the server alone.
    KillServer,
    /// SIGKILL to the server and its manager.
    KillAll,
    /// Its cable is pulled; plugged in again later.
    Cut,
    /// `tcpr switchover`.
    Switchover,
    /// Everything on it stands still (SIGSTOP), is taken for dead, and goes on later.
    Freeze,
}

use Fault::{Cut, Freeze, KillAll, KillServer, Switchover};

/// A running pair, and a peer whose traffic is captured.
pub struct World {
    // Dropped in this order: processes first, then the hosts.
    pub pair: Pair,
    pub capture: Capture,
    pub peer: Host,
    pub rng: Rng,
    lab: Lab,
}

/// The engine that all tests restore with: `make test` runs them with each.
pub fn engine() -> String {
    std::env::var("TCPR_ENGINE").unwrap_or_else(|_| "repair".to_owned())
}

/// An example program, built by make.
pub fn built(name: &str) -> String {
    example(name).expect("make examples").display().to_string()
}

/// A script among the examples.
pub fn script(name: &str) -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples").join(name).display().to_string()
}

impl World {
    /// Both members run `program` by `tcpr run`, protected, and the server listens.
    pub fn new(label: &str, service: Service, program: &[&str]) -> World {
        World::hosted(label, service, program, Hosted::ByRun)
    }

    /// The same where members, virtual IP and peer have IPv6 only.
    pub fn six(label: &str, service: Service, program: &[&str]) -> World {
        World::with(label, service.virtual_ip("2001:db8::200/64"), program, Hosted::ByRun, SIX)
    }

    /// The same with another host of the managers.
    pub fn hosted(label: &str, service: Service, program: &[&str], by: Hosted) -> World {
        World::with(label, service, program, by, FOUR)
    }

    /// The same with other addresses of members and peer.
    pub fn with(label: &str, service: Service, program: &[&str], by: Hosted, addresses: [&str; 3]) -> World {
        World::prepared(label, service, program, by, addresses, |_| {})
    }

    /// The same, with something done to the pair before it starts.
    pub fn prepared(
        label: &str,
        service: Service,
        program: &[&str],
        by: Hosted,
        addresses: [&str; 3],
        prepare: impl FnOnce(&Pair),
    ) -> World {
        let w = World::started(label, service, program, by, addresses, prepare);
        w.protected();
        for i in 0..2 {
            wait_listening(w.pair.host(i), PORT, PATIENCE).expect("the server listens");
        }
        w
    }

    /// The same as soon as both members are started: they have no roles yet, and it is not said that a server listens.
    pub fn started(
        label: &str,
        service: Service,
        program: &[&str],
        by: Hosted,
        addresses: [&str; 3],
        prepare: impl FnOnce(&Pair),
    ) -> World {
        let seed = seed_from_env();
        eprintln!("{label}: TCPR_SEED={seed} TCPR_ENGINE={}", engine());
        let lab = Lab::new(label).expect("a lab");
        let a = lab.host("a", addresses[0]).expect("host a");
        let b = lab.host("b", addresses[1]).expect("host b");
        let peer = lab.host("peer", addresses[2]).expect("host peer");
        // A failover that nobody caused is another test.
        let mut pair = Pair::new(&a, &b, service.patient().engine(&engine())).expect("a pair");
        pair.hosted(by);
        prepare(&pair);
        pair.start_both(program).expect("both members start");
        let capture = peer.capture(CaptureOptions::port(PORT)).expect("capture");
        World { pair, capture, peer, rng: Rng::new(seed), lab }
    }

    /// The lab, for more hosts.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Waits until the pair is protected; tells who is master.
    pub fn protected(&self) -> usize {
        self.pair.wait_protected(PATIENCE).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Who is master, and in which epoch.
    pub fn epoch(&self) -> (usize, u64) {
        let master = self.protected();
        let status = self.pair.status(master).expect("status");
        (master, status["epoch"].as_u64().expect("an epoch"))
    }

    /// The faults of one test: each of them in turn, then any.
    pub fn faults(&mut self, n: usize) -> Vec<Fault> {
        let all = [Switchover, Cut, KillServer, KillAll, Freeze];
        (0..n).map(|i| if i < all.len() { all[i] } else { all[self.rng.range(0, 4) as usize] }).collect()
    }

    /// One failover: the fault at a random moment, the other member takes over, the first one rejoins.
    pub fn fail_over(&mut self, fault: Fault) {
        let master = self.protected();
        std::thread::sleep(self.rng.duration(Duration::ZERO, Duration::from_millis(300)));
        match fault {
            KillServer => self.kill_server(master),
            KillAll => self.pair.kill_all(master),
            Cut => self.pair.host(master).cut_silent().expect("cut"),
            Freeze => self.pair.host(master).freeze(),
            Switchover => {
                // Refused while the pair is not paired, which a machine that stood still may not be for a moment.
                let mut refused = String::new();
                let done = tcpr_lab::wait_for(PATIENCE, || {
                    let asked = if self.pair.master().ok() == Some(master) { self.pair.switchover() } else { Ok(()) };
                    asked.map_err(|e| refused = e.to_string()).is_ok()
                });
                assert!(done, "no switchover: {refused}");
            }
        }
        self.pair.wait_master_is(1 - master, PATIENCE).unwrap_or_else(|e| panic!("after {fault:?} of {master}: {e}"));
        match fault {
            KillAll => self.pair.restart(master).expect("restart"),
            Cut => {
                std::thread::sleep(self.rng.duration(Duration::ZERO, Duration::from_millis(500)));
                self.pair.host(master).heal().expect("heal");
            }
            Freeze => {
                // Its packets wait in its queues, and its virtual IP may still be there when it wakes.
                std::thread::sleep(self.rng.duration(Duration::ZERO, Duration::from_millis(1500)));
                self.pair.host(master).thaw();
            }
            KillServer | Switchover => {}
        }
    }

    /// A crash is mended at home where the partner's program is not well, as one that was started a moment ago may turn out to be:
    /// then it is killed once more.
    fn kill_server(&mut self, master: usize) {
        let of = |w: &World, key: &str| w.pair.status(master).map_or(0, |s| s[key].as_u64().unwrap_or(0));
        let is_master = |w: &World, member: usize| w.pair.master().ok() == Some(member);
        loop {
            let starts = of(self, "program_starts");
            self.pair.kill_program(master).expect("kill");
            let at_home = |w: &World| of(w, "program_starts") > starts && of(w, "applications") > 0 && is_master(w, master);
            tcpr_lab::wait_for(PATIENCE, || is_master(self, 1 - master) || at_home(self));
            if !at_home(self) {
                return;
            }
            self.protected();
        }
    }

    /// Faults one after another, while these clients check every byte.
    pub fn survive<P: Protocol>(&mut self, clients: &Clients<P>, faults: &[Fault]) {
        for (round, &fault) in faults.iter().enumerate() {
            clients.reset_stalls();
            self.fail_over(fault);
            if let Err(e) = clients.wait_progress(PATIENCE).and_then(|()| clients.check()) {
                panic!("round {round}, {fault:?}: {e}\n{}", self.pair.describe());
            }
            eprintln!("round {round}: {fault:?}: longest silence {:.1} ms", clients.stats().max_stall_ms);
        }
        self.protected();
    }

    /// The service has reset nobody's connection; one that its client had ended does not count, for an old duplicate may
    /// yet come and be answered.
    pub fn no_reset(&self) {
        self.capture.complete().expect("a whole capture");
        let all = self.capture.tcp(&SegFilter::port(PORT));
        let mut ended = HashSet::new();
        for (i, s) in all.iter().enumerate() {
            if s.outgoing && s.has(SYN) {
                ended.remove(&s.src);
            } else if s.outgoing && (s.has(FIN) || s.has(RST)) {
                ended.insert(s.src);
            } else if !s.outgoing && s.has(RST) && !ended.contains(&s.dst) {
                let of_it = all[..=i].iter().filter(|other| other.src == s.dst || other.dst == s.dst);
                let lines: Vec<String> = of_it.map(|s| format!("  {s}\n")).collect();
                panic!("a connection was reset:\n{}", lines[lines.len().saturating_sub(25)..].concat());
            }
        }
    }

    /// What each peer has been sent is one unbroken stream: no number left out, no timestamp that goes back, no checksum
    /// that is wrong, no handshake but the first, and no ending. (Of a master that was not cut off: what comes late from
    /// one that was is old.)
    pub fn unbroken(&self) {
        self.capture.complete().expect("a whole capture");
        self.capture.no_fin_rst(&SegFilter::port(PORT)).expect("no FIN and no RST on the wire");
        let mut streams: HashMap<_, (u32, Option<u32>)> = HashMap::new();
        for s in self.capture.tcp(&SegFilter::port(PORT).outgoing(false)) {
            let end = s.seq.wrapping_add(s.payload_len + u32::from(s.has(SYN)));
            let Some((next, clock)) = streams.get_mut(&s.dst) else {
                assert!(s.has(SYN), "a stream begins with {s}");
                streams.insert(s.dst, (end, s.tsval));
                continue;
            };
            assert!(!s.has(SYN), "another handshake: {s}");
            assert!(s.seq.wrapping_sub(*next) as i32 <= 0, "{next} is left out: {s}");
            if let (Some(before), Some(value)) = (*clock, s.tsval) {
                if (value.wrapping_sub(before) as i32) < 0 {
                    let all = self.capture.tcp(&SegFilter::port(PORT));
                    let of_it = all.iter().filter(|o| o.t <= s.t && (o.src == s.dst || o.dst == s.dst));
                    let lines: Vec<String> = of_it.map(|o| format!("  {o} {:?}\n", o.tsval)).collect();
                    let last = lines[lines.len().saturating_sub(12)..].concat();
                    panic!("the clock was at {before} and goes back to {value}:\n{last}");
                }
            }
            (*next, *clock) = (if end.wrapping_sub(*next) as i32 > 0 { end } else { *next }, s.tsval);
        }
        assert!(!streams.is_empty());
        let counters = self.peer.enter(|| {
            ["/proc/thread-self/net/snmp", "/proc/thread-self/net/netstat"].map(|path| std::fs::read_to_string(path).expect(path))
        });
        for (file, name) in [(0, "InCsumErrors"), (1, "PAWSEstab")] {
            let lines: Vec<Vec<&str>> = counters[file].lines().map(|l| l.split(' ').collect()).collect();
            let prefix = ["Tcp:", "TcpExt:"][file];
            let [names, values] = &lines.iter().filter(|l| l[0] == prefix).collect::<Vec<_>>()[..] else { panic!("{prefix}") };
            let at = names.iter().position(|n| *n == name).unwrap_or_else(|| panic!("no counter {name}"));
            assert_eq!(values[at], "0", "{name} at the peer");
        }
    }

    /// Every byte has come, once and in order, over the same connections, and the wire shows no ending. Then the
    /// clients close, the server does, and no record is left on either member.
    pub fn end<P: Protocol>(self, clients: Clients<P>) {
        self.end_all(&[&clients]);
    }

    /// The same for several groups of clients.
    pub fn end_all<P: Protocol>(self, groups: &[&Clients<P>]) {
        let verify = |clients: &Clients<P>, end| {
            clients.stop_and_verify(PATIENCE, end).unwrap_or_else(|e| panic!("{e}\n{}", self.pair.describe()))
        };
        for clients in groups {
            let stats = verify(clients, End::Keep);
            assert_eq!((stats.bytes_lost, stats.bytes_doubled, stats.reconnects), (0, 0, 0));
            assert_eq!(stats.alive, stats.connections);
        }
        self.capture.complete().expect("a whole capture");
        self.capture.no_fin_rst(&SegFilter::port(PORT)).expect("no FIN and no RST on the wire");
        for clients in groups {
            verify(clients, End::HalfClose);
        }
        self.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
    }
}
