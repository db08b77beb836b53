//! Members that come and go, and what is none of tcpr's business.

use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use tcpr_lab::client::{ChatClients, ChatOptions, EchoClients, EchoOptions, Rate};
use tcpr_lab::flags::{ACK, PSH};
use tcpr_lab::member::{bin_dir, Pair, Service};
use tcpr_lab::{wait_listening, wait_until, Lab, RawPeer, Said};

use crate::ipv6::{Over, V4, V6};
use crate::world::{built, engine, script, Fault, World, PATIENCE, PORT};

fn chat(over: &Over, label: &str) -> (World, ChatClients) {
    let mut w = (over.new)(label, Service::new("chat", PORT).lines(), &[&built("plain_chat_server"), "5555"]);
    let clients = ChatClients::start(&w.peer, w.pair.addr(), &ChatOptions::new(4, w.rng.next_u64())).expect("clients");
    (w, clients)
}

#[test]
fn the_backup_dies_and_comes_back() {
    let (mut w, clients) = chat(&V4, "backup");
    for _ in 0..3 {
        let master = w.protected();
        w.pair.kill_all(1 - master);
        // What it held can be read without it.
        let left = w.pair.tcpr(1 - master, &["sessions", "--json"]).expect("sessions");
        let left: Value = serde_json::from_slice(&left.stdout).expect("JSON");
        assert_eq!((&left["manager"], left["sessions"].as_array().map(Vec::len)), (&Value::Bool(false), Some(4)));
        wait_until(PATIENCE, "the master says that it is not protected", || {
            w.pair.status(master).is_ok_and(|s| s["role"] == "master" && s["protected"] == false)
        });
        let status = w.pair.tcpr(master, &["status"]).expect("status");
        assert_eq!(status.status.code(), Some(1), "for monitoring");
        if let Err(e) = clients.wait_progress(PATIENCE).and_then(|()| clients.check()) {
            panic!("the master goes on alone: {e}\n{}", w.pair.describe());
        }
        w.pair.restart(1 - master).expect("restart");
        assert_eq!(w.protected(), master);
        let status = w.pair.tcpr(master, &["status"]).expect("status");
        assert_eq!(status.status.code(), Some(0));
    }
    // And the new backup is as good as the first.
    w.survive(&clients, &[Fault::KillAll]);
    w.end(clients);
}

#[test]
fn a_master_that_is_told_to_stop_hands_over() {
    let (mut w, clients) = chat(&V6, "term");
    for round in 0..6 {
        let master = w.protected();
        let manager = [w.pair.process(master).expect("runs").pid()];
        // As systemd's KillMode=control-group does it: the program is told as well, a little before or after.
        let program = w.pair.programs(master);
        let told = match round % 3 {
            0 => manager.to_vec(),
            1 => [&manager[..], &program].concat(),
            _ => [&program[..], &manager].concat(),
        };
        let pids: Vec<String> = told.iter().map(i32::to_string).collect();
        // What the manager had started for a moment may be gone by now.
        Command::new("kill").arg("-TERM").args(pids).output().expect("kill");
        w.pair.wait_master_is(1 - master, PATIENCE).unwrap_or_else(|e| panic!("{e}"));
        let ended = w.pair.process(master).expect("ran").wait(PATIENCE);
        assert!(ended.is_some(), "tcpr run ends\n{}", w.pair.describe());
        clients.wait_progress(PATIENCE).and_then(|()| clients.check()).unwrap_or_else(|e| panic!("{e}\n{}", w.pair.describe()));
        w.pair.restart(master).expect("restart");
    }
    w.end(clients);
}

fn limit_descriptors(pid: i32, soft: u32) {
    let limit = format!("--nofile={soft}:");
    let limited = Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).status();
    assert!(limited.expect("prlimit (package util-linux)").success());
}

/// More connections than a manager may have descriptors for: it makes sockets as the server takes them.
#[test]
fn more_connections_than_descriptors_are_recovered() {
    let program = ["prlimit", "--nofile=4096:", &built("echo_server"), "5555"];
    let mut w = World::new("files", Service::new("echo", PORT), &program);
    let options = EchoOptions::new(256, w.rng.next_u64()).rate(Rate::new((1, 100), (20, 100)));
    let clients = EchoClients::start(&w.peer, w.pair.addr(), &options).expect("clients");
    let mut said = 0;
    for fault in w.faults(7) {
        let master = w.protected();
        for i in 0..2 {
            limit_descriptors(w.pair.process(i).expect("runs").pid(), 80);
        }
        w.survive(&clients, &[fault]);
        let log = w.pair.process(1 - master).expect("runs").err();
        said += usize::from(log.contains("as the application takes them"));
    }
    // A hook takes connections that were injected from the listener, as any others.
    assert_eq!(said, if engine() == "repair" { 7 } else { 0 });
    w.end(clients);
}

/// A server that may have no more descriptors leaves its connections where they are, until it may.
#[test]
fn a_server_without_descriptors_takes_its_connections_later() {
    let mut w = World::new("full", Service::new("echo", PORT), &[&built("traffic_server"), "5555"]);
    let options = EchoOptions::new(256, w.rng.next_u64()).rate(Rate::new((1, 100), (20, 100)));
    let clients = EchoClients::start(&w.peer, w.pair.addr(), &options).expect("clients");
    for fault in w.faults(4) {
        let next = 1 - w.protected();
        let program = |w: &World| *w.pair.programs(next).first().expect("a program");
        limit_descriptors(program(&w), 100);
        clients.reset_stalls();
        w.fail_over(fault);
        std::thread::sleep(Duration::from_millis(500));
        clients.check().expect("nobody has lost anything");
        limit_descriptors(program(&w), 4096);
        clients
            .wait_progress(PATIENCE)
            .and_then(|()| clients.check())
            .unwrap_or_else(|e| panic!("{fault:?}: {e}\n{}", w.pair.describe()));
    }
    w.end(clients);
}

/// The same lines, one by one, for a message that can be read.
fn same(plain: &Output, other: &Output, how: &str) {
    let text = |o: &Output| {
        assert!(o.status.success(), "{how}: {}: {}", o.status, String::from_utf8_lossy(&o.stderr));
        String::from_utf8(o.stdout.clone()).expect("text")
    };
    let (plain, other) = (text(plain), text(other));
    for (p, q) in plain.lines().zip(other.lines()) {
        assert_eq!(p, q, "{how} on the right");
    }
    assert_eq!(plain.lines().count(), other.lines().count());
}

/// Connects to another host, as a server does to its database, and prints what came back.
const OUTGOING: &str = "
import hashlib, socket
s = socket.create_connection(('192.0.2.9', 7000))
got = hashlib.sha256()
for i in range(50):
    sent = bytes([i]) * 20000
    s.sendall(sent)
    while sent:
        part = s.recv(65536)
        got.update(part)
        sent = sent[len(part):]
s.shutdown(socket.SHUT_WR)
print(got.hexdigest(), s.getsockname()[0], s.recv(1))
";

/// What calls return on descriptors that are not protected: without the library, with it, and under `tcpr run`.
#[test]
fn what_is_not_protected_is_as_without_tcpr() {
    let lab = Lab::new("plain").expect("a lab");
    let a = lab.host("a", "192.0.2.1/24").expect("host");
    let b = lab.host("b", "192.0.2.2/24").expect("host");
    let peer = lab.host("peer", "192.0.2.9/24").expect("host");
    let mut echo = Command::new("python3");
    echo.args([&script("asyncio_echo.py"), "7000"]);
    let _echo = peer.spawn("echo", echo).expect("echo");
    wait_listening(&peer, 7000, PATIENCE).expect("the peer listens");
    let pair = Pair::new(&a, &b, Service::new("plain", PORT).patient()).expect("a pair");
    let library = bin_dir().expect("bin").join("libtcpr.so");
    let conformance = built("conformance");
    for program in [[&conformance, "192.0.2.1", "7777"], ["python3", "-c", OUTGOING]] {
        let run = |preload: bool| {
            let mut c = Command::new(program[0]);
            c.args(&program[1..]);
            if preload {
                c.env("LD_PRELOAD", &library);
            }
            let out = a.run(c, 4 * PATIENCE).expect("the program runs");
            assert!(out.stderr.is_empty(), "no output unless asked: {}", String::from_utf8_lossy(&out.stderr));
            out
        };
        let plain = run(false);
        assert!(!plain.stdout.is_empty());
        same(&plain, &run(true), "with the library");
        let mut args = vec!["run", "--"];
        args.extend(program);
        same(&plain, &pair.tcpr(0, &args).expect("tcpr run"), "under tcpr run");
    }
}

/// What calls return on descriptors that are protected. The peer is on the same machine, which the packet rules leave
/// alone: only the hooks are at work.
#[test]
fn what_is_protected_returns_what_it_does_without_tcpr() {
    let lab = Lab::new("calls").expect("a lab");
    let a = lab.host("a", "192.0.2.1/24").expect("host");
    let b = lab.host("b", "192.0.2.2/24").expect("host");
    let pair = Pair::new(&a, &b, Service::new("calls", PORT).patient()).expect("a pair");
    let vip = pair.addr().ip().to_string();
    let address = |what: &str| {
        let mut c = Command::new("ip");
        c.args(["address", what, &format!("{vip}/32"), "dev", "lo"]);
        assert!(a.run(c, PATIENCE).expect("ip runs").status.success());
    };
    let program = format!("{} {vip} {PORT}", built("conformance"));
    address("add");
    let mut c = Command::new("sh");
    c.args(["-c", &format!("exec {program}")]);
    let plain = a.run(c, 4 * PATIENCE).expect("the program runs");
    address("delete");
    assert!(!plain.stdout.is_empty());
    // Until the member is master there is no such address.
    let script = format!("until ip address show | grep -q {vip}/; do sleep 0.05; done; exec {program}");
    same(&plain, &pair.tcpr(0, &["run", "--", "sh", "-c", &script]).expect("tcpr run"), "protected");
}

/// A client that has more of the output than the backup heard of (its ACKs are lost when the master dies), or less
/// (the output itself is lost); and one that the takeover's probe reaches too late.
#[test]
fn a_peer_has_more_or_less_than_the_backup_knows() {
    let (mut w, clients) = chat(&V4, "probe");
    for round in 0..12 {
        let (chain, port_is) = [("OUTPUT", "--sport"), ("INPUT", "--dport")][round % 2];
        let late = round / 2 % 2 == 1;
        let master = w.protected();
        let sessions = w.pair.tcpr(master, &["sessions", "--json"]).expect("sessions");
        let sessions: Value = serde_json::from_slice(&sessions.stdout).expect("JSON");
        let one = &sessions["sessions"][w.rng.range(0, 3) as usize]["peer"];
        let port = one.as_str().and_then(|p| p.rsplit(':').next()).expect("a peer").to_owned();
        let rule = |w: &World, what: &str| {
            let mut c = Command::new("iptables");
            c.args(["-w", what, chain, "-p", "tcp", port_is, &port, "-j", "DROP"]);
            let out = w.peer.run(c, PATIENCE).expect("iptables runs");
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        };
        rule(&w, "-I");
        let while_deaf = w.rng.duration(Duration::from_millis(20), Duration::from_millis(400));
        std::thread::sleep(while_deaf);
        w.pair.kill_all(master);
        if !late {
            rule(&w, "-D");
        }
        w.pair.wait_master_is(1 - master, PATIENCE).unwrap_or_else(|e| panic!("{e}"));
        if late {
            let later = w.rng.duration(Duration::ZERO, Duration::from_millis(300));
            std::thread::sleep(later);
            rule(&w, "-D");
        }
        w.pair.restart(master).expect("restart");
        if let Err(e) = clients.wait_progress(PATIENCE).and_then(|()| clients.check()) {
            panic!("round {round}, {chain}, late {late}: {e}\n{}", w.pair.describe());
        }
        eprintln!("round {round}: {chain} of {port}, late {late}");
    }
    w.end(clients);
}

/// A client whose handshake is not complete when the master is lost completes it when the takeover is long over: it is
/// accepted and served.
#[test]
fn a_handshake_that_outlasts_a_takeover_is_served() {
    for over in [V4, V6] {
        let mut w = (over.new)("half", Service::new("echo", PORT), &[&built("echo_server"), "5555", over.any]);
        RawPeer::prepare(&w.peer, PORT).expect("prepared");
        for (port, fault) in (10_000..).zip([Fault::KillAll, Fault::Switchover, Fault::KillServer]) {
            let isn = w.rng.next_u64() as u32;
            let mut peer = RawPeer::half_open(&w.peer, port, w.pair.addr(), isn, PATIENCE).expect("a SYN-ACK");
            let master = 1 - w.protected();
            w.fail_over(fault);
            wait_until(PATIENCE, "the takeover is done", || {
                let done = |s: Value| s["takeover"]["done_us"].as_u64() > Some(0) && s["restoring"] == false;
                w.pair.status(master).is_ok_and(done)
            });
            let served = tcpr_lab::wait_for(PATIENCE, || {
                peer.say(Said { flags: ACK | PSH, at: 0, ack: peer.received(), bytes: b"hello" }).expect("sent");
                peer.listen(Duration::from_millis(200)).expect("received");
                peer.got == b"hello"
            });
            assert!(served && peer.wrong.is_none(), "{fault:?}: {:?} {:?}\n{}", peer.got, peer.wrong, w.pair.describe());
        }
    }
}

/// A line and its answer.
fn asks(stream: &std::net::TcpStream, line: &str) -> std::io::Result<()> {
    use std::io::{Read, Write};
    let mut stream = stream;
    stream.write_all(line.as_bytes())?;
    let mut answer = vec![0; line.len()];
    stream.read_exact(&mut answer)?;
    assert_eq!(answer, line.as_bytes());
    Ok(())
}

/// Both members reach everybody but each other, so both serve (`arbiter = "none"`). On contact the one that yields names the
/// connections on which it had said anything: those are reset and counted, and no other one.
#[test]
fn what_two_masters_said_something_on_is_reset_and_the_rest_goes_on() {
    let w = World::new("fork", Service::new("lines", PORT).lines(), &[&built("line_server"), "5555", "pool"]);
    let to = w.pair.addr();
    let [idle, busy] = [(), ()].map(|()| w.peer.enter(|| crate::requests::connect(to)).expect("connected"));
    asks(&idle, "before\n").expect("an answer");
    let old = w.protected();
    let torn = |i: usize| w.pair.status(i).ok().and_then(|s| s["counters"]["torn"].as_u64());
    std::thread::scope(|threads| {
        // Whatever the moment, one of its lines has no answer when the partner is out of reach.
        let talk = threads.spawn(|| (0..).find_map(|i| asks(&busy, &format!("line {i}\n")).err()));
        std::thread::sleep(Duration::from_millis(300));
        (0..2).for_each(|i| w.pair.host(i).isolate(true).expect("partition"));
        wait_until(PATIENCE, "both members serve", || {
            (0..2).all(|i| w.pair.status(i).is_ok_and(|s| s["role"] == "master"))
                && w.pair.status(old).is_ok_and(|s| s["epoch"].as_u64() > Some(1))
        });
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(torn(1 - old), Some(0));
        (0..2).for_each(|i| w.pair.host(i).isolate(false).expect("whole"));
        w.pair.wait_master_is(1 - old, PATIENCE).unwrap_or_else(|e| panic!("{e}"));
        let error = talk.join().expect("no panic").expect("an end");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    });
    assert_eq!(w.protected(), 1 - old);
    assert_eq!(torn(1 - old), Some(1), "{}", w.pair.describe());
    asks(&idle, "after\n").expect("it goes on");
    assert_eq!(torn(1 - old), Some(1));
}

/// A firewall that lets the replication connection through and no heartbeats: no pair, but one master and one backup, and both
/// `status` and `doctor` say why.
#[test]
fn without_heartbeats_there_is_one_master_and_it_is_said_why() {
    let (w, clients) = chat(&V4, "deaf");
    let firewall = |what: &str| {
        for i in 0..2 {
            let mut c = Command::new("iptables");
            c.args([what, "INPUT", "-p", "udp", "--dport", "7400", "-j", "DROP"]);
            let out = w.pair.host(i).run(c, PATIENCE).expect("iptables runs");
            assert!(out.status.success(), "{out:?}");
        }
    };
    firewall("-I");
    let alone = || (0..2).filter(|i| w.pair.status(*i).is_ok_and(|s| s["role"] == "master")).count() == 1;
    let said = |i: usize| w.pair.status(i).is_ok_and(|s| s["partner"]["trouble"].to_string().contains("UDP port 7400"));
    wait_until(PATIENCE, "it is said", || (0..2).all(said));
    // The backup suspects the master once, takes over, and that was that.
    std::thread::sleep(Duration::from_secs(3));
    wait_until(PATIENCE, "one master, and it is said", || alone() && (0..2).all(said));
    let epoch = |i: usize| w.pair.status(i).expect("status")["epoch"].as_u64();
    let before = [epoch(0), epoch(1)];
    // Longer than a backup waits for a master that it does not hear.
    for _ in 0..26 {
        std::thread::sleep(Duration::from_millis(500));
        assert!(alone(), "{}", w.pair.describe());
    }
    assert_eq!([epoch(0), epoch(1)], before);
    for i in 0..2 {
        let doctor = w.pair.tcpr(i, &["doctor"]).expect("doctor");
        let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert!(text.lines().any(|l| l.starts_with("FAIL  heartbeats") && l.contains("7400")), "{text}");
    }
    firewall("-D");
    w.protected();
    clients.wait_progress(PATIENCE).and_then(|()| clients.check()).unwrap_or_else(|e| panic!("{e}\n{}", w.pair.describe()));
    w.end(clients);
}
