//! Peers whose TCP is not Linux's: smoltcp, with its own retransmissions, windows and answers to what it does not expect.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Address};
use tcpr_lab::member::Service;
use tcpr_lab::{Rng, Wire};

use crate::requests::Clients;
use crate::world::{built, Stop, World, PATIENCE, PORT};

/// An address that the peer's kernel does not have.
const ADDRESS: Ipv4Address = Ipv4Address::new(192, 0, 2, 77);
const CONNECTIONS: usize = 6;

struct Frames {
    wire: Wire,
    /// One that has come.
    frame: Vec<u8>,
    come: bool,
}

impl Frames {
    fn wait(&mut self, time: Duration) {
        if !self.come {
            self.come = self.wire.receive(&mut self.frame, time).expect("frames come");
        }
    }
}

struct Come(Vec<u8>);
struct Go<'a>(&'a Wire);

impl RxToken for Come {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Go<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.send(&frame).expect("frames go");
        result
    }
}

impl Device for Frames {
    type RxToken<'a> = Come;
    type TxToken<'a> = Go<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Come, Go<'_>)> {
        self.wait(Duration::ZERO);
        std::mem::take(&mut self.come).then(|| (Come(std::mem::take(&mut self.frame)), Go(&self.wire)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Go<'_>> {
        Some(Go(&self.wire))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut c = DeviceCapabilities::default();
        c.medium = Medium::Ethernet;
        c.max_transmission_unit = 1514;
        // What never left the machine has no checksums yet.
        c.checksum.tcp = Checksum::Tx;
        c
    }
}

/// One connection: it sends a line, waits for the same line, and sends the next.
struct Line {
    handle: SocketHandle,
    said: Vec<u8>,
    sent: usize,
    heard: Vec<u8>,
    number: u64,
    next_at: Instant,
    last_progress: Instant,
}

impl Line {
    fn go_on(&mut self, socket: &mut tcp::Socket, clients: &Clients, rng: &mut Rng) -> Result<(), String> {
        let state = socket.state();
        let (handle, number) = (self.handle, self.number);
        let at = |what: String| format!("connection {handle}, line {number}, {state}: {what}");
        if !matches!(state, tcp::State::SynSent | tcp::State::Established) {
            return Err(at("it has ended".to_owned()));
        }
        if self.said.is_empty() && Instant::now() >= self.next_at {
            let length = if rng.chance(5) { rng.range(1, 40_000) } else { rng.range(1, 100) } as usize;
            self.said = format!("{} {}\n", self.number, "x".repeat(length)).into_bytes();
            (self.sent, self.last_progress) = (0, Instant::now());
        }
        if self.sent < self.said.len() && socket.can_send() {
            self.sent += socket.send_slice(&self.said[self.sent..]).map_err(|e| at(e.to_string()))?;
        }
        while socket.can_recv() {
            let mut part = [0; 4096];
            let n = socket.recv_slice(&mut part).map_err(|e| at(e.to_string()))?;
            self.heard.extend_from_slice(&part[..n]);
            self.last_progress = Instant::now();
        }
        if !self.said.starts_with(&self.heard) {
            return Err(at(format!("other {} bytes than were said", self.heard.len())));
        }
        if !self.said.is_empty() && self.heard.len() == self.said.len() {
            self.said.clear();
            self.heard.clear();
            self.number += 1;
            self.next_at = Instant::now() + rng.duration(Duration::ZERO, Duration::from_millis(10));
            clients.done.fetch_add(1, Relaxed);
        }
        if !self.said.is_empty() && self.last_progress.elapsed() > PATIENCE {
            let (heard, said) = (self.heard.len(), self.said.len());
            return Err(at(format!("{heard} of {said} bytes have come back, {} were sent", self.sent)));
        }
        Ok(())
    }
}

fn talk(wire: Wire, server: (Ipv4Address, u16), clients: &Clients, mut rng: Rng) -> Result<(), String> {
    let mac = EthernetAddress(wire.mac);
    let mut frames = Frames { wire, frame: Vec::new(), come: false };
    let start = Instant::now();
    let now = || smoltcp::time::Instant::from_micros(start.elapsed().as_micros() as i64);
    let mut config = Config::new(mac.into());
    config.random_seed = rng.next_u64();
    let mut interface = Interface::new(config, &mut frames, now());
    interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(ADDRESS.into(), 24)).expect("room for one"));
    let mut sockets = SocketSet::new(Vec::new());
    let mut lines = Vec::new();
    for i in 0..CONNECTIONS {
        // Of different sizes: the windows do not all need scaling.
        let buffer = || tcp::SocketBuffer::new(vec![0; 8192 << (2 * (i % 3))]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.connect(interface.context(), server, 40_000 + i as u16).map_err(|e| e.to_string())?;
        let (handle, last_progress) = (sockets.add(socket), Instant::now());
        let (said, heard) = (Vec::new(), Vec::new());
        lines.push(Line { handle, said, sent: 0, heard, number: 0, next_at: last_progress, last_progress });
    }
    while !clients.stop.load(Relaxed) {
        interface.poll(now(), &mut frames, &mut sockets);
        for line in &mut lines {
            line.go_on(sockets.get_mut(line.handle), clients, &mut rng)?;
        }
        frames.wait(Duration::from_millis(1));
    }
    for line in &lines {
        sockets.get_mut::<tcp::Socket>(line.handle).close();
    }
    // A last ACK may be lost: it is there until nobody asks for it any more.
    let (mut over_since, deadline) = (None, Instant::now() + PATIENCE);
    while over_since.is_none_or(|since: Instant| since.elapsed() < Duration::from_secs(3)) {
        interface.poll(now(), &mut frames, &mut sockets);
        let mut over = true;
        for line in &lines {
            let socket = sockets.get_mut::<tcp::Socket>(line.handle);
            // An answer may be under way.
            while socket.can_recv() {
                socket.recv(|bytes| (bytes.len(), ())).map_err(|e| e.to_string())?;
            }
            over &= matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait);
        }
        if over {
            over_since = over_since.or(Some(Instant::now()));
        } else if Instant::now() > deadline {
            let states: Vec<_> = lines.iter().map(|l| sockets.get::<tcp::Socket>(l.handle).state()).collect();
            return Err(format!("the connections do not end: {states:?}"));
        }
        frames.wait(Duration::from_millis(1));
    }
    Ok(())
}

#[test]
fn smoltcp_does_not_notice() {
    let mut w = World::new("smoltcp", Service::new("lines", PORT), &[&built("line_server"), "5555", "lazy"]);
    let faults = w.faults(10);
    let wire = Wire::open(&w.peer).expect("the peer's interface");
    let std::net::SocketAddr::V4(to) = w.pair.addr() else { panic!("an IPv4 address") };
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let clients = Clients { stop: &stop, done: &done };
    let rng = Rng::new(w.rng.next_u64());
    std::thread::scope(|threads| {
        let _stop = Stop(&stop);
        let talking = threads.spawn(|| {
            let ended = talk(wire, (*to.ip(), to.port()), &clients, rng);
            stop.store(true, Relaxed);
            ended
        });
        for (round, fault) in faults.iter().enumerate() {
            if stop.load(Relaxed) {
                break;
            }
            w.fail_over(*fault);
            let before = done.load(Relaxed);
            let went_on =
                tcpr_lab::wait_for(PATIENCE, || stop.load(Relaxed) || done.load(Relaxed) >= before + 5 * CONNECTIONS as u64);
            assert!(went_on, "round {round}, {fault:?}: no progress\n{}", w.pair.describe());
            eprintln!("round {round}, {fault:?}: {} lines", done.load(Relaxed));
        }
        stop.store(true, Relaxed);
        let ended = talking.join().expect("no panic");
        ended.unwrap_or_else(|e| panic!("{e}\n{}", w.pair.describe()));
    });
    w.protected();
    w.no_reset();
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}
