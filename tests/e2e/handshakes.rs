//! What a handshake may ask for beyond plain TCP: Fast Open, Multipath TCP, ECN, signatures, extension headers of IPv6.
//! What can go on at the partner goes on, and the rest is not agreed on, or is reset and counted.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tcpr_lab::client::{EchoClients, EchoOptions, End};
use tcpr_lab::flags::{ACK, SYN};
use tcpr_lab::member::{Hosted, Service};
use tcpr_lab::{wait_for, Host, RawPeer, Rng, Said, SegFilter, SynFlood};

use crate::requests::through;
use crate::world::{built, Fault, World, FOUR, PATIENCE, PORT, SIX};

const FAULTS: [Fault; 4] = [Fault::Switchover, Fault::Cut, Fault::KillServer, Fault::KillAll];

pub fn kinds() -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/kinds.py").display().to_string()
}

/// One connection of a kind, from whichever host this thread is on.
struct Caller {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Caller {
    fn new(kind: &str, to: SocketAddr) -> Caller {
        let mut child = Command::new("python3")
            .args([kinds(), "call".into(), kind.into(), to.ip().to_string(), to.port().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("python3");
        let (to, from) = (child.stdin.take().expect("piped"), BufReader::new(child.stdout.take().expect("piped")));
        Caller { child, to, from }
    }

    fn ask(&mut self, line: &str) -> Result<(), String> {
        let sent = self.to.write_all(line.as_bytes());
        let mut answer = String::new();
        let got = self.from.read_line(&mut answer);
        if sent.is_err() || got.is_err() || answer != line {
            let mut why = String::new();
            if answer.is_empty() {
                let _ = self.child.stderr.take().map(|mut e| e.read_to_string(&mut why));
            }
            return Err(format!("{answer:?} for {line:?}: {why}"));
        }
        Ok(())
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connections of each of these kinds go on through all faults.
fn go_on(w: &mut World, kinds: &[&str]) {
    let to = w.pair.addr();
    let next = std::sync::atomic::AtomicUsize::new(0);
    through(w, 2 * kinds.len(), &FAULTS, |clients, mut rng| {
        let kind = kinds[next.fetch_add(1, Relaxed) % kinds.len()];
        let mut caller = Caller::new(kind, to);
        let mut n = 0;
        while !clients.stop.load(Relaxed) {
            let line = format!("{kind} {n} {}\n", "x".repeat(rng.range(1, 900) as usize));
            caller.ask(&line).map_err(|e| format!("{kind}, line {n}: {e}"))?;
            clients.done.fetch_add(1, Relaxed);
            n += 1;
            crate::requests::pause(&mut rng, 10);
        }
        Ok(())
    });
}

/// All of them settings of the three hosts.
fn sysctls(hosts: [&Host; 3], name: &str, peer: &str, member: &str) {
    for (host, value) in hosts.into_iter().zip([member, member, peer]) {
        host.sysctl(name, value).unwrap_or_else(|e| panic!("{name} = {value}: {e}"));
    }
}

fn served(label: &str, kind: &str, by: Hosted) -> World {
    let (any, addresses) = if kind == "options" { ("2001:db8::200/64", SIX) } else { ("192.0.2.200/24", FOUR) };
    let service = Service::new("kinds", PORT).virtual_ip(any);
    let w = World::with(label, service, &["python3", &kinds(), "serve", kind, "5555", "192.0.2.9"], by, addresses);
    let hosts = [w.pair.host(0), w.pair.host(1), &w.peer];
    // Clients that send data with the SYN, with or without a cookie, and servers that take it.
    sysctls(hosts, "net.ipv4.tcp_fastopen", "5", "1539");
    // Who asks for ECN, and who agrees if it is asked.
    sysctls(hosts, "net.ipv4.tcp_ecn", "1", "1");
    w
}

/// SYNs of the peer with something beyond were seen, and nothing of it was agreed on.
fn nothing_was_agreed_on(w: &World) {
    w.capture.complete().expect("a whole capture");
    let all = w.capture.tcp(&SegFilter::port(PORT));
    let asked = all.iter().filter(|s| s.outgoing && s.has(SYN) && s.flags & 0xc0 == 0xc0).count();
    assert!(asked > 0, "nobody has asked for ECN");
    for s in all.iter().filter(|s| !s.outgoing && s.has(SYN | ACK)) {
        assert_eq!(s.flags & 0xc0, 0, "ECN is agreed on: {s}");
        let syn = all.iter().find(|syn| syn.outgoing && syn.has(SYN) && syn.src == s.dst && syn.seq.wrapping_add(1) == s.ack);
        assert!(syn.is_some(), "more than a SYN is acknowledged: {s}");
    }
}

#[test]
fn fast_open_and_multipath_clients_get_plain_tcp_and_keep_it() {
    let mut w = served("kinds", "fastopen", Hosted::ByRun);
    go_on(&mut w, &["fastopen", "mptcp", "plain"]);
    let with_data =
        w.capture.tcp(&SegFilter::port(PORT).outgoing(true)).iter().filter(|s| s.has(SYN) && s.payload_len > 0).count();
    assert!(with_data > 0, "no SYN has carried data");
    nothing_was_agreed_on(&w);
}

#[test]
fn a_multipath_listener_serves_plain_tcp_and_keeps_it() {
    let mut w = served("mptcp", "mptcp", Hosted::ByRun);
    go_on(&mut w, &["mptcp", "plain"]);
    nothing_was_agreed_on(&w);
}

#[test]
fn a_multipath_listener_that_no_library_enters_does_the_same() {
    let mut w = served("mptcpun", "mptcp", Hosted::ByRunUnhooked);
    go_on(&mut w, &["mptcp", "plain"]);
    nothing_was_agreed_on(&w);
}

#[test]
fn segments_with_extension_headers_are_segments() {
    let mut w = served("options", "options", Hosted::ByRun);
    go_on(&mut w, &["options", "plain"]);
}

/// It works; and after a failover its peer is told, by the one who has the key.
#[test]
fn a_signed_connection_is_counted_and_reset_at_a_failover() {
    for fault in [Fault::Switchover, Fault::KillAll] {
        let mut w = served("signed", "md5", Hosted::ByRun);
        let to = w.pair.addr();
        let mut caller = w.peer.enter(|| Caller::new("md5", to));
        for n in 0..100 {
            caller.ask(&format!("{n}\n")).unwrap_or_else(|e| panic!("{e}\n{}", w.pair.describe()));
        }
        let master = w.protected();
        let status = w.pair.status(master).expect("status");
        assert_eq!(status["counters"]["signed"], 1, "{status}");
        w.fail_over(fault);
        let now = w.pair.status(1 - master).expect("status");
        assert_eq!(now["counters"]["torn"], 1, "{now}");
        let refused = caller.ask("more\n").expect_err("no answer");
        assert!(refused.contains("ConnectionResetError"), "{refused}\n{}", w.pair.describe());
        // Who connects again is served.
        let mut again = w.peer.enter(|| Caller::new("md5", to));
        again.ask("again\n").unwrap_or_else(|e| panic!("{e}\n{}", w.pair.describe()));
    }
}

/// While a flood of SYNs goes on, and after it, whoever connects is served, or told that it is over: nobody waits for ever.
#[test]
fn in_a_flood_of_syns_nobody_is_left_without_a_word() {
    let mut w = World::new("silent", Service::new("echo", PORT), &[&built("echo_server"), "5555"]);
    RawPeer::prepare(&w.peer, PORT).expect("prepared");
    let to = w.pair.addr();
    let mut flood = SynFlood::new(&w.peer, to).expect("a flood");
    let mut rng = Rng::new(w.rng.next_u64());
    let mut burst = |n: u32| {
        for i in 0..n {
            flood.syn(rng.range(6_000, 65_500) as u16, rng.next_u64() as u32).expect("sent");
            if i % 200 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    };
    burst(30_000);
    // These have their SYN answered past the bound, and the flood goes on before they say anything.
    let mut half: Vec<RawPeer> =
        (0..20).map(|i| RawPeer::half_open(&w.peer, 5000 + i, to, 77 + u32::from(i), PATIENCE).expect("answered")).collect();
    burst(100_000);
    let mut told = [0; 2];
    for peer in &mut half {
        let said = Said { flags: ACK, at: 0, ack: 0, bytes: b"hello" };
        let done = wait_for(PATIENCE, || {
            peer.say(said).expect("sent");
            peer.listen(Duration::from_millis(200)).expect("listened");
            peer.wrong.is_some() || peer.got == b"hello"
        });
        assert!(done, "{} bytes are acknowledged, and nothing comes\n{}", peer.acked, w.pair.describe());
        told[usize::from(peer.wrong.is_some())] += 1;
    }
    eprintln!("{} served, {} reset", told[0], told[1]);
    // And they are kept.
    for fault in [Fault::Switchover, Fault::KillAll] {
        w.fail_over(fault);
        for (i, peer) in half.iter_mut().filter(|p| p.wrong.is_none()).enumerate() {
            let at = peer.got.len() as i64;
            let done = wait_for(PATIENCE, || {
                peer.say(Said { flags: ACK, at, ack: at, bytes: b"again" }).expect("sent");
                peer.listen(Duration::from_millis(200)).expect("listened");
                peer.got.len() as i64 == at + 5
            });
            assert!(done, "peer {i} after {fault:?}: {:?}\n{}", peer.wrong, w.pair.describe());
        }
    }
    let clients = EchoClients::start(&w.peer, to, &EchoOptions::new(4, w.rng.next_u64())).expect("clients");
    clients.wait_progress(PATIENCE).expect("progress");
    clients.stop_and_verify(PATIENCE, End::HalfClose).unwrap_or_else(|e| panic!("{e}"));
}
