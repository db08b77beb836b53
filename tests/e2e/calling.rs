//! Connections that the application makes: the upstream sees one connection each, whatever becomes of the members.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tcpr_lab::member::{Hosted, Service};
use tcpr_lab::{wait_for, CaptureOptions, Rng, SegFilter};

use crate::servers::answered_through;
use crate::world::{built, World, FOUR, PATIENCE, PORT, SIX};

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
    fn new(w: &World, at: SocketAddr) -> Upstream {
        let listener = w.peer.enter(|| TcpListener::bind(at)).expect("the upstream listens");
        listener.set_nonblocking(true).expect("non-blocking");
        let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let answered: Arc<Vec<AtomicUsize>> = Arc::new((0..COUNT).map(|_| AtomicUsize::new(0)).collect());
        let (s, a, n) = (stop.clone(), accepted.clone(), answered.clone());
        let thread = std::thread::spawn(move || {
            let mut talks = Vec::new();
            while !s.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let i = a.fetch_add(1, Ordering::Relaxed);
                        if i < COUNT {
                            let (s, n) = (s.clone(), n.clone());
                            talks.push(std::thread::spawn(move || talk(i, stream, &s, &n[i])));
                        }
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
            talks.into_iter().filter_map(|t| t.join().expect("no panic").err()).collect()
        });
        Upstream { stop, accepted, answered, thread: Some(thread) }
    }

    /// Every connection has had so many more lines answered.
    fn goes_on(&self, lines: usize, what: &str, w: &World) {
        let before: Vec<usize> = self.answered.iter().map(|n| n.load(Ordering::Relaxed)).collect();
        let now = || self.answered.iter().map(|n| n.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let moved = || now().iter().zip(&before).all(|(now, before)| *now >= before + lines);
        assert!(wait_for(PATIENCE, moved), "{what}: from {before:?} to {:?} lines\n{}", now(), w.pair.describe());
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

fn talk(i: usize, mut stream: TcpStream, stop: &AtomicBool, answered: &AtomicUsize) -> Result<(), String> {
    let mut rng = Rng::new(i as u64 + 1);
    stream.set_read_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
    let mut reader = BufReader::new(stream.try_clone().map_err(|e| e.to_string())?);
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        let line = format!("{i} {n} {}\n", "x".repeat(rng.range(1, 3000) as usize));
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

/// Ten failovers; the clients of the listening port go on, too.
fn called(label: &str, program: &str, mode: &str, by: Hosted, addresses: [&str; 3]) {
    let upstream = addresses[2].split('/').next().expect("an address");
    let vip = if addresses == SIX { "2001:db8::200" } else { "192.0.2.200" };
    let to: SocketAddr = SocketAddr::new(upstream.parse().expect("an address"), UPSTREAM);
    let prefix = if addresses == SIX { 64 } else { 24 };
    let service = Service::new("calls", PORT)
        .lines()
        .virtual_ip(&format!("{vip}/{prefix}"))
        .extra(&format!("[[service.outgoing]]\naddress = \"{to}\"\nframing = \"lines\""));
    let (port, count) = (UPSTREAM.to_string(), COUNT.to_string());
    let (program, here) = (built(program), PORT.to_string());
    let mut command = vec![&program[..], &here, upstream, &port, &count, mode];
    if by == Hosted::ByRunUnhooked {
        // Nobody else does it.
        command.push(vip);
    }
    let mut w = World::with(label, service, &command, by, addresses);
    let u = Upstream::new(&w, to);
    assert!(wait_for(PATIENCE, || u.accepted.load(Ordering::Relaxed) == COUNT), "nobody calls\n{}", w.pair.describe());
    // Only now: before it listened, the upstream refused.
    let capture = w.peer.capture(CaptureOptions::port(UPSTREAM)).expect("capture");
    u.goes_on(20, "before", &w);
    for fault in w.faults(10) {
        w.fail_over(fault);
        u.goes_on(20, &format!("{fault:?}"), &w);
        eprintln!("{label}: {fault:?}");
    }
    let faults = w.faults(2);
    answered_through(&mut w, &faults, 2, 20, 1000);
    u.goes_on(20, "at last", &w);
    capture.complete().expect("a whole capture");
    capture.no_fin_rst(&SegFilter::port(UPSTREAM)).expect("no FIN and no RST on the wire");
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

#[test]
fn connections_over_ipv6_go_on() {
    called("call6", "caller", "poll", Hosted::ByRun, SIX);
}

#[test]
fn connections_of_a_linked_program_go_on() {
    called("calllink", "linked_caller", "poll", Hosted::ByRun, FOUR);
}

#[test]
fn connections_of_a_static_program_go_on() {
    called("callstat", "static_caller", "poll", Hosted::ByRunUnhooked, FOUR);
}
