//! Connections that the application makes: the upstream sees one connection each, whatever becomes of the members.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tcpr_lab::flags::SYN;
use tcpr_lab::member::{Hosted, Pair, Service};
use tcpr_lab::{wait_for, CaptureOptions, Host, Rng, SegFilter};

use crate::local::Alone;
use crate::servers::answered_through;
use crate::world::{built, Fault, World, FOUR, PATIENCE, PORT, SIX};

const UPSTREAM: u16 = 7000;
const COUNT: usize = 4;

/// Who is connected to: says lines and hears each of them once, in order.
struct Upstream {
    stop: Arc<AtomicBool>,
    /// Connections ever made to it, and lines that came back.
    accepted: Arc<AtomicUsize>,
    answered: Arc<Vec<AtomicUsize>>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Upstream {
    /// Listens on this host, and says lines of so many bytes at most. `greeted`: whoever connects says hello first.
    fn new(on: &Host, at: SocketAddr, greeted: bool, most: u64) -> Upstream {
        let at = |i: usize| SocketAddr::new(at.ip(), at.port() + i as u16);
        let listen = |i| on.enter(|| TcpListener::bind(at(i))).expect("the upstream listens");
        let listeners: Vec<TcpListener> = (0..COUNT).map(listen).collect();
        listeners.iter().for_each(|l| l.set_nonblocking(true).expect("non-blocking"));
        let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let answered: Arc<Vec<AtomicUsize>> = Arc::new((0..COUNT).map(|_| AtomicUsize::new(0)).collect());
        let (s, a, n) = (stop.clone(), accepted.clone(), answered.clone());
        let thread = std::thread::spawn(move || {
            let mut talks = Vec::new();
            while !s.load(Ordering::Relaxed) {
                match listeners.iter().find_map(|l| l.accept().ok()) {
                    Some((stream, _)) => {
                        let i = a.fetch_add(1, Ordering::Relaxed);
                        if i < COUNT {
                            let (s, n) = (s.clone(), n.clone());
                            talks.push(std::thread::spawn(move || talk(i, stream, (greeted, most), &s, &n[i])));
                        }
                    }
                    None => std::thread::sleep(Duration::from_millis(5)),
                }
            }
            talks.into_iter().filter_map(|t| t.join().expect("no panic").err()).collect()
        });
        Upstream { stop, accepted, answered, thread: Some(thread) }
    }

    fn is_called(&self, pair: &Pair) {
        let called = || self.accepted.load(Ordering::Relaxed) == COUNT;
        assert!(wait_for(PATIENCE, called), "nobody calls\n{}", pair.describe());
    }

    /// Every connection has had so many more lines answered.
    fn goes_on(&self, lines: usize, what: &str, pair: &Pair) {
        let before: Vec<usize> = self.answered.iter().map(|n| n.load(Ordering::Relaxed)).collect();
        let now = || self.answered.iter().map(|n| n.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let moved = || now().iter().zip(&before).all(|(now, before)| *now >= before + lines);
        assert!(wait_for(PATIENCE, moved), "{what}: from {before:?} to {:?} lines\n{}", now(), pair.describe());
        assert_eq!(self.accepted.load(Ordering::Relaxed), COUNT, "{what}: a connection was made anew");
    }

    /// Ends it; what went wrong.
    fn end(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(|t| t.join().expect("no panic")).unwrap_or_default()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn talk(
    i: usize,
    mut stream: TcpStream,
    (greeted, most): (bool, u64),
    stop: &AtomicBool,
    answered: &AtomicUsize,
) -> Result<(), String> {
    let mut rng = Rng::new(i as u64 + 1);
    stream.set_read_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
    let mut reader = BufReader::new(stream.try_clone().map_err(|e| e.to_string())?);
    if greeted {
        let mut got = String::new();
        reader.read_line(&mut got).map_err(|e| format!("connection {i}: {e}"))?;
        if got != "hello\n" {
            return Err(format!("connection {i}: no greeting, but {got:?}"));
        }
    }
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        let line = format!("{i} {n} {}\n", "x".repeat(rng.range(1, most) as usize));
        stream.write_all(line.as_bytes()).map_err(|e| format!("connection {i}, line {n}: {e}"))?;
        let mut got = String::new();
        reader.read_line(&mut got).map_err(|e| format!("connection {i}, line {n}: {e}"))?;
        if got != line {
            return Err(format!("connection {i}, line {n}: {:?} came for {:?}", &got[..got.len().min(40)], &line[..20]));
        }
        answered.fetch_add(1, Ordering::Relaxed);
        n += 1;
        std::thread::sleep(rng.duration(Duration::ZERO, Duration::from_millis(4)));
    }
    Ok(())
}

fn service(to: SocketAddr, mode: &str) -> Service {
    let greeting = if mode == "greet" { "absorb" } else { "pass" };
    let keys = format!("framing = \"lines\"\ngreeting = \"{greeting}\"");
    Service::new("calls", PORT).lines().extra(&outgoing(to, &keys))
}

/// Every port of the upstream.
fn outgoing(to: SocketAddr, keys: &str) -> String {
    let one =
        |i: usize| format!("[[service.outgoing]]\naddress = \"{}\"\n{keys}\n", SocketAddr::new(to.ip(), to.port() + i as u16));
    (0..COUNT).map(one).collect()
}

/// Of a program that no library enters more is promised where a connection's input is done by its answer alone.
fn unhooked_service(to: SocketAddr) -> Service {
    Service::new("calls", PORT).extra(&outgoing(to, ""))
}

fn command<'a>(program: &'a str, upstream: &'a str, mode: &'a str) -> Vec<&'a str> {
    vec![program, "5555", upstream, "7000", "4", mode]
}

/// One that hosts its manager dies with it.
fn faults(w: &mut World, by: Hosted, n: usize) -> Vec<Fault> {
    let whole =
        |fault| if by == Hosted::ByLinked && matches!(fault, Fault::KillServer | Fault::Freeze) { Fault::KillAll } else { fault };
    w.faults(n).into_iter().map(whole).collect()
}

/// Ten failovers; the clients of the listening port go on, too.
fn called(label: &str, program: &str, mode: &str, by: Hosted, addresses: [&str; 3]) {
    let upstream = addresses[2].split('/').next().expect("an address");
    let vip = if addresses == SIX { "2001:db8::200" } else { "192.0.2.200" };
    let to: SocketAddr = SocketAddr::new(upstream.parse().expect("an address"), UPSTREAM);
    let prefix = if addresses == SIX { 64 } else { 24 };
    let unhooked = by == Hosted::ByRunUnhooked;
    let service = if unhooked { unhooked_service(to) } else { service(to, mode) };
    let service = service.virtual_ip(&format!("{vip}/{prefix}"));
    let program = built(program);
    let mut command = command(&program, upstream, mode);
    if unhooked {
        // Nobody else does it.
        command.push(vip);
    }
    let mut w = World::with(label, service, &command, by, addresses);
    // And for requests and answers of one segment.
    let u = Upstream::new(&w.peer, to, mode == "greet", if unhooked { 1000 } else { 3000 });
    u.is_called(&w.pair);
    // Only now: before it listened, the upstream refused.
    let captured = |i: usize| w.peer.capture(CaptureOptions::port(UPSTREAM + i as u16)).expect("capture");
    let captures: Vec<_> = (0..COUNT).map(captured).collect();
    u.goes_on(20, "before", &w.pair);
    for fault in faults(&mut w, by, 10) {
        w.fail_over(fault);
        u.goes_on(20, &format!("{fault:?}"), &w.pair);
        eprintln!("{label}: {fault:?}");
    }
    let faults = faults(&mut w, by, 2);
    answered_through(&mut w, &faults, 2, 20, 1000);
    u.goes_on(20, "at last", &w.pair);
    for capture in captures {
        capture.complete().expect("a whole capture");
        capture.no_fin_rst(&SegFilter::any()).expect("no FIN and no RST on the wire");
    }
    assert_eq!(u.end(), Vec::<String>::new());
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

#[test]
fn connections_of_threads_go_on() {
    called("call", "caller", "blocking", Hosted::ByRun, FOUR);
}

#[test]
fn connections_that_are_polled_go_on() {
    called("callpoll", "caller", "poll", Hosted::ByRun, FOUR);
}

/// Who says hello says it once, whatever became of the process that said it.
#[test]
fn connections_over_ipv6_that_greet_go_on() {
    called("call6", "caller", "greet", Hosted::ByRun, SIX);
}

#[test]
fn connections_of_a_linked_program_go_on() {
    called("calllink", "linked_caller", "poll", Hosted::ByRun, FOUR);
}

#[test]
fn connections_of_a_static_program_go_on() {
    called("callstat", "static_caller", "ports", Hosted::ByRunUnhooked, FOUR);
}

#[test]
fn connections_of_fast_open_callers_go_on() {
    plain_connections_go_on("fastopen");
}

#[test]
fn connections_of_multipath_callers_go_on() {
    plain_connections_go_on("mptcp");
}

/// What such a program asks for beyond plain TCP nobody hears of.
fn plain_connections_go_on(kind: &str) {
    let to: SocketAddr = "192.0.2.9:7000".parse().expect("an address");
    let program = ["python3", &crate::handshakes::kinds(), "back", kind, "192.0.2.9", "7000", "5555"];
    let mut w = World::new(&format!("call{kind}"), service(to, "poll"), &program);
    for host in [w.pair.host(0), w.pair.host(1), &w.peer] {
        host.sysctl("net.ipv4.tcp_fastopen", "1543").expect("a setting");
        host.sysctl("net.ipv4.tcp_ecn", "1").expect("a setting");
    }
    let captured = |i: usize| w.peer.capture(CaptureOptions::port(UPSTREAM + i as u16)).expect("capture");
    let captures: Vec<_> = (0..COUNT).map(captured).collect();
    let u = Upstream::new(&w.peer, to, false, 3000);
    u.is_called(&w.pair);
    u.goes_on(20, kind, &w.pair);
    for fault in [Fault::Switchover, Fault::Cut, Fault::KillServer, Fault::KillAll] {
        w.fail_over(fault);
        u.goes_on(20, &format!("{kind}: {fault:?}"), &w.pair);
    }
    assert_eq!(u.end(), Vec::<String>::new());
    for capture in captures {
        capture.complete().expect("a whole capture");
        for s in capture.tcp(&SegFilter::any()).iter().filter(|s| s.has(SYN)) {
            assert!(s.flags & 0xc0 == 0 && s.payload_len == 0, "{kind}: more than plain TCP is asked for: {s}");
        }
    }
}

/// The manager is in the program, and dies with it.
#[test]
fn connections_of_a_program_with_its_own_manager_go_on() {
    called("callown", "linked_caller", "blocking", Hosted::ByLinked, FOUR);
}

/// No partner at all, and nobody connects to it: killed and replaced in turn.
#[test]
fn a_program_without_a_partner_comes_back_to_its_connections() {
    let to: SocketAddr = "192.0.2.9:7000".parse().expect("an address");
    let program = built("caller");
    let a = Alone::hosted(
        "callone",
        service(to, "poll").without_ports(),
        &command(&program, "192.0.2.9", "poll"),
        false,
        Hosted::ByRun,
    );
    let u = Upstream::new(&a.peer, to, false, 3000);
    u.is_called(&a.pair);
    for round in 0..10 {
        if round % 2 == 0 {
            a.pair.kill_program(0).expect("killed");
        } else {
            let out = a.pair.tcpr(0, &["restart"]).expect("runs");
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
        u.goes_on(20, &format!("round {round}"), &a.pair);
    }
    assert_eq!(u.end(), Vec::<String>::new());
    let gone = || a.pair.status(0).is_ok_and(|s| s["sessions"] == 0);
    assert!(wait_for(PATIENCE, gone), "records are left\n{}", a.pair.describe());
}
