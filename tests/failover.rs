//! The whole way, end to end: two members, checking clients, and a master that dies, is cut off, or hands over.
//! Every random case is driven from a printed seed (`TCPR_SEED=` replays it).

use std::path::PathBuf;
use std::time::Duration;

use tcpr_lab::client::{ChatClients, ChatOptions, EchoClients, EchoOptions, End, Rate};
use tcpr_lab::member::{example, Pair, Service};
use tcpr_lab::{seed_from_env, wait_listening, CaptureOptions, Host, Lab, Rng, SegFilter};

const PORT: u16 = 5555;
const PATIENCE: Duration = Duration::from_secs(40);

struct World {
    // Dropped in this order: processes first, then the hosts.
    pair: Pair,
    peer: Host,
    rng: Rng,
    _lab: Lab,
}

fn world(label: &str, service: Service, program: &[&str]) -> World {
    // Slower than the defaults: machines that run tests pause, and a failover that nobody caused is another test.
    let service = service
        .set("failover", "heartbeat_ms", "50")
        .set("failover", "misses", "4")
        .set("failover", "solo_after_ms", "2000");
    let seed = seed_from_env();
    eprintln!("{label}: TCPR_SEED={seed}");
    let lab = Lab::new(label).expect("a lab");
    let a = lab.host("a", "192.0.2.1/24").expect("host a");
    let b = lab.host("b", "192.0.2.2/24").expect("host b");
    let peer = lab.host("peer", "192.0.2.9/24").expect("host peer");
    let mut pair = Pair::new(&a, &b, service).expect("a pair");
    pair.start_both(program).expect("both members start");
    pair.wait_protected(PATIENCE).unwrap_or_else(|e| panic!("{e}\n{}", pair.describe()));
    for i in 0..2 {
        wait_listening(pair.host(i), PORT, PATIENCE).expect("the server listens");
    }
    World { pair, peer, rng: Rng::new(seed), _lab: lab }
}

fn chat_server() -> String {
    example("plain_chat_server").expect("make examples").display().to_string()
}

fn asyncio_echo() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/asyncio_echo.py")
}

/// How the master is lost.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// SIGKILL to the server alone.
    KillServer,
    /// SIGKILL to the server and its manager.
    KillAll,
    /// Its cable is pulled; plugged in again later.
    Cut,
    /// `tcpr switchover`.
    Switchover,
}

impl World {
    /// One failover: the fault at a random moment, the other member takes over, the first one rejoins.
    fn fail_over(&mut self, fault: Fault) {
        let master = self.pair.wait_protected(PATIENCE).unwrap_or_else(|e| panic!("{e}\n{}", self.pair.describe()));
        std::thread::sleep(self.rng.duration(Duration::ZERO, Duration::from_millis(300)));
        eprintln!("{fault:?} of member {master}");
        match fault {
            Fault::KillServer => self.pair.kill_program(master).expect("kill"),
            Fault::KillAll => self.pair.kill_all(master),
            Fault::Cut => self.pair.host(master).cut_silent().expect("cut"),
            Fault::Switchover => self.pair.switchover().expect("switchover"),
        }
        self.pair
            .wait_master_is(1 - master, PATIENCE)
            .unwrap_or_else(|e| panic!("after {fault:?}: {e}\n{}", self.pair.describe()));
        match fault {
            Fault::KillAll => self.pair.restart(master).expect("restart"),
            Fault::Cut => {
                std::thread::sleep(self.rng.duration(Duration::ZERO, Duration::from_millis(500)));
                self.pair.host(master).heal().expect("heal");
            }
            Fault::KillServer | Fault::Switchover => {}
        }
    }
}

fn go_on(w: &World, went_on: Result<(), String>, what: &str) {
    went_on.unwrap_or_else(|e| panic!("after {what}: {e}\n{}", w.pair.describe()));
}

/// A chat, messages framed by lines, an unmodified server: through every kind of failover, ten in a row.
#[test]
fn a_chat_goes_on_through_ten_failovers() {
    let mut w = world("chat", Service::new("chat", PORT).lines(), &[&chat_server(), "5555"]);
    let capture = w.peer.capture(CaptureOptions::port(PORT)).expect("capture");
    let options = ChatOptions::new(6, w.rng.next_u64());
    let clients: ChatClients = ChatClients::start(&w.peer, w.pair.addr(), &options).expect("clients");
    let faults = [Fault::Switchover, Fault::Cut, Fault::KillServer, Fault::KillAll];
    for round in 0..10 {
        let fault = faults[round % faults.len()];
        clients.reset_stalls();
        w.fail_over(fault);
        let went_on = clients.wait_progress(PATIENCE).and_then(|()| clients.check());
        go_on(&w, went_on, &format!("round {round}, {fault:?}"));
        eprintln!("round {round}: {fault:?}: longest silence {:.1} ms", clients.stats().max_stall_ms);
    }
    w.pair.wait_protected(PATIENCE).expect("protected at the end");
    let stats = clients.stop_and_verify(PATIENCE, End::Keep).unwrap_or_else(|e| panic!("{e}\n{}", w.pair.describe()));
    assert_eq!((stats.bytes_lost, stats.bytes_doubled, stats.reconnects), (0, 0, 0));
    capture.no_fin_rst(&SegFilter::port(PORT)).expect("no FIN and no RST on the wire");
}

/// A raw byte stream through an unmodified Python asyncio server.
#[test]
fn an_echo_goes_on_through_failovers() {
    let script = asyncio_echo();
    let mut w = world("echo", Service::new("echo", PORT), &["python3", script.to_str().expect("text"), "5555"]);
    let capture = w.peer.capture(CaptureOptions::port(PORT)).expect("capture");
    let options = EchoOptions::new(4, w.rng.next_u64())
        .rate(Rate { bytes: (1, 4000), pause: (Duration::from_millis(1), Duration::from_millis(20)) });
    let clients: EchoClients = EchoClients::start(&w.peer, w.pair.addr(), &options).expect("clients");
    for fault in [Fault::Cut, Fault::KillServer, Fault::Switchover, Fault::KillAll] {
        w.fail_over(fault);
        let went_on = clients.wait_progress(PATIENCE).and_then(|()| clients.check());
        go_on(&w, went_on, &format!("{fault:?}"));
    }
    let stats = clients.stop_and_verify(PATIENCE, End::Keep).unwrap_or_else(|e| panic!("{e}\n{}", w.pair.describe()));
    assert_eq!((stats.bytes_lost, stats.bytes_doubled, stats.reconnects), (0, 0, 0));
    capture.no_fin_rst(&SegFilter::port(PORT)).expect("no FIN and no RST on the wire");
}
