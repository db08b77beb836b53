//! A server that dies, or is replaced, where nobody can take it over: its connections wait for the next process on the
//! same machine.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;
use tcpr_lab::client::{ChatClients, ChatOptions, Clients, EchoClients, EchoOptions, End, Protocol, Rate};
use tcpr_lab::member::{Hosted, Pair, Service};
use tcpr_lab::{seed_from_env, wait_listening, wait_until, Capture, CaptureOptions, Host, Lab, Rng, SegFilter};

use crate::requests::connect;
use crate::world::{built, engine, script, Fault, World, FOUR, PATIENCE, PORT};

/// One member that runs; the other is not there, or not even configured.
pub struct Alone {
    pub pair: Pair,
    capture: Capture,
    pub peer: Host,
    pub rng: Rng,
    _lab: Lab,
}

impl Alone {
    fn new(label: &str, service: Service, program: &[&str], partner: bool) -> Alone {
        Alone::hosted(label, service, program, partner, Hosted::ByRun)
    }

    pub fn hosted(label: &str, service: Service, program: &[&str], partner: bool, by: Hosted) -> Alone {
        let seed = seed_from_env();
        eprintln!("{label}: TCPR_SEED={seed} TCPR_ENGINE={}", engine());
        let lab = Lab::new(label).expect("a lab");
        let host = |name: &str, address: &str| lab.host(name, address).expect("a host");
        let (a, b, peer) = (host("a", FOUR[0]), host("b", FOUR[1]), host("peer", FOUR[2]));
        let mut pair = Pair::new(&a, &b, service.patient().engine(&engine())).expect("a pair");
        pair.hosted(by);
        if !partner {
            let text = std::fs::read_to_string(pair.config(0)).expect("a configuration");
            let block = text.find("[[members]]\nname = \"b\"").expect("the partner");
            let end = text[block + 1..].find("\n[").map_or(text.len(), |at| block + 1 + at);
            std::fs::write(pair.config(0), format!("{}{}", &text[..block], &text[end..])).expect("written");
        }
        pair.start(0, program).expect("started");
        pair.wait_master_is(0, PATIENCE).expect("alone");
        wait_listening(&a, PORT, PATIENCE).expect("the server listens");
        let capture = peer.capture(CaptureOptions::port(PORT)).expect("capture");
        Alone { pair, capture, peer, rng: Rng::new(seed), _lab: lab }
    }

    /// Kills the server and replaces it, in turn.
    fn survive<P: Protocol>(mut self, clients: Clients<P>) {
        for round in 0..10 {
            clients.reset_stalls();
            std::thread::sleep(self.rng.duration(Duration::ZERO, Duration::from_millis(300)));
            let how = if round % 2 == 0 {
                self.pair.kill_program(0).expect("killed");
                "killed"
            } else {
                let out = self.pair.tcpr(0, &["restart", "--json"]).expect("runs");
                assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
                let status: Value = serde_json::from_slice(&out.stdout).expect("JSON");
                assert!(status["restoring"] == false && status["role"] == "master", "{status}");
                "restarted"
            };
            let went_on = clients.wait_progress(PATIENCE).and_then(|()| clients.check());
            went_on.unwrap_or_else(|e| panic!("round {round}, {how}: {e}\n{}", self.pair.describe()));
            eprintln!("round {round}: {how}: longest silence {:.1} ms", clients.stats().max_stall_ms);
        }
        let verify = |end| clients.stop_and_verify(PATIENCE, end).unwrap_or_else(|e| panic!("{e}\n{}", self.pair.describe()));
        let stats = verify(End::Keep);
        assert_eq!((stats.bytes_lost, stats.bytes_doubled, stats.reconnects), (0, 0, 0));
        assert_eq!(stats.alive, stats.connections);
        self.capture.complete().expect("a whole capture");
        self.capture.no_fin_rst(&SegFilter::port(PORT)).expect("no FIN and no RST on the wire");
        verify(End::HalfClose);
        wait_until(PATIENCE, "no record is left", || self.pair.status(0).is_ok_and(|s| s["sessions"] == 0));
    }
}

#[test]
fn a_server_without_a_partner_comes_back_to_its_connections() {
    let program = [&built("plain_chat_server"), "5555"];
    let mut a = Alone::new("alone", Service::new("chat", PORT).lines(), &program, false);
    let clients = ChatClients::start(&a.peer, a.pair.addr(), &ChatOptions::new(6, a.rng.next_u64())).expect("clients");
    a.survive(clients);
}

#[test]
fn a_server_whose_partner_is_away_comes_back_to_its_connections() {
    let program = ["python3", &script("asyncio_echo.py"), "5555"];
    let mut a = Alone::new("away", Service::new("echo", PORT), &program, true);
    let mut options = EchoOptions::new(4, a.rng.next_u64()).rate(Rate::new((1, 4000), (1, 20)));
    options.max_outstanding = 24 << 10;
    let clients = EchoClients::start(&a.peer, a.pair.addr(), &options).expect("clients");
    a.survive(clients);
}

/// With a partner the master keeps the service all the same; its backup's server can be replaced, too.
#[test]
fn a_protected_server_is_replaced_where_it_is() {
    let mut w = World::new("replace", Service::new("chat", PORT), &[&built("chat_server"), "5555"]);
    let clients = ChatClients::start(&w.peer, w.pair.addr(), &ChatOptions::new(6, w.rng.next_u64())).expect("clients");
    let before = w.epoch();
    for round in 0..10 {
        clients.reset_stalls();
        std::thread::sleep(w.rng.duration(Duration::ZERO, Duration::from_millis(300)));
        let member = if round % 4 == 3 { 1 - before.0 } else { before.0 };
        let out = w.pair.tcpr(member, &["restart"]).expect("runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let went_on = clients.wait_progress(PATIENCE).and_then(|()| clients.check());
        went_on.unwrap_or_else(|e| panic!("round {round}: {e}\n{}", w.pair.describe()));
        assert_eq!(w.epoch(), before);
        eprintln!("round {round}: longest silence {:.1} ms", clients.stats().max_stall_ms);
    }
    // What the replica was told meanwhile is right.
    w.survive(&clients, &[Fault::KillAll, Fault::Cut]);
    w.end(clients);
}

/// A request that kills the server would kill the next one, too: its connection is given up after a few crashes.
#[test]
fn a_request_that_kills_the_server_is_given_up() {
    for partner in [false, true] {
        let program = [&built("line_server"), "5555", "mortal"];
        let mut a = Alone::new("mortal", Service::new("lines", PORT), &program, partner);
        if partner {
            a.pair.start(1, &program).expect("started");
            a.pair.wait_protected(PATIENCE).expect("protected");
        }
        let to = a.pair.addr();
        let mut healthy: Vec<TcpStream> = (0..3).map(|_| a.peer.enter(|| connect(to)).expect("connected")).collect();
        let ask = |stream: &mut TcpStream| {
            let mut answer = [0; 6];
            stream.write_all(b"hello\n").and_then(|()| stream.read_exact(&mut answer)).expect("an answer");
            assert_eq!(&answer, b"hello\n");
        };
        healthy.iter_mut().for_each(ask);
        let mut deadly = a.peer.enter(|| connect(to)).expect("connected");
        deadly.write_all(b"die\n").expect("sent");
        healthy.iter_mut().for_each(ask);
        let ended = deadly.read(&mut [0; 10]);
        assert!(ended.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset), "{ended:?}");
        healthy.iter_mut().for_each(ask);
    }
}
