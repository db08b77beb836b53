//! Peers that say what no TCP says, or what belongs to no connection of theirs: what the application reads is what the
//! store has, and nobody is harmed.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::Value;
use tcpr_lab::client::{EchoClients, EchoOptions, End};
use tcpr_lab::flags::{ACK, FIN, PSH, RST, SYN};
use tcpr_lab::member::Service;
use tcpr_lab::{Host, RawPeer, Rng, Said, SynFlood};

use crate::ipv6::{Over, V4, V6};
use crate::world::{built, Stop, World, PATIENCE, PORT};

const URG: u8 = 32;
/// Bytes of one burst.
const BURST: usize = 3000;

/// What the stream says at this offset.
fn honest(offset: usize) -> u8 {
    (offset ^ (offset >> 8) ^ (offset >> 13)) as u8
}

/// A peer and what it has said.
struct Hostile {
    peer: RawPeer,
    rng: Rng,
    /// All bytes before are echoed.
    base: usize,
    /// Bursts whose packets have overtaken each other.
    doubts: u32,
}

impl Hostile {
    fn say(&mut self, flags: u8, at: i64, bytes: &[u8]) {
        let ack = self.peer.received();
        self.peer.say(Said { flags, at, ack, bytes }).expect("sent");
    }

    /// A piece of the burst, honest or a lie. Its bytes count from `truth`, where none of its places has others.
    fn piece(&mut self, truth: &mut [Option<u8>]) {
        // Never the first byte: it would end the burst.
        let from = self.rng.range(1, BURST as u64 - 1) as usize;
        let to = (from + self.rng.range(1, 400) as usize).min(BURST);
        let lie = if self.rng.chance(30) { 0xff } else { 0 };
        let bytes: Vec<u8> = (from..to).map(|i| honest(self.base + i) ^ lie).collect();
        if truth[from..to].iter().zip(&bytes).all(|(known, b)| known.is_none_or(|known| known == *b)) {
            truth[from..to].iter_mut().zip(&bytes).for_each(|(known, b)| *known = Some(*b));
        }
        let urgent = if self.rng.chance(10) { URG } else { 0 };
        self.say(ACK | urgent, (self.base + from) as i64, &bytes);
    }

    /// Something that nobody may believe. `sure`: nothing of the burst was lost.
    fn nonsense(&mut self, truth: &[Option<u8>], sure: bool) {
        let next = self.base as i64;
        let lies: Vec<u8> = (self.base + 1..self.base + 200).map(|o| !honest(o)).collect();
        match self.rng.range(0, 8) {
            0 => {
                let said = Said { flags: ACK | PSH, at: next, ack: self.peer.received(), bytes: &lies };
                let mut packet = self.peer.packet(said);
                *packet.last_mut().expect("bytes") ^= 1;
                self.peer.send(&packet).expect("sent");
            }
            1 => {
                let beside = self.rng.range(1, 30_000) as i64;
                let at = if self.rng.chance(50) { next + beside } else { next - beside };
                self.say(RST, at, &[]);
            }
            2 => self.say(SYN, next, &[]),
            3 => self.say(ACK, next + 200_000, &lies),
            4 => self.say(0, next, &lies),
            5 => {
                let future = self.peer.received() + 100_000;
                self.peer.say(Said { flags: ACK, at: next, ack: future, bytes: &lies }).expect("sent");
            }
            6 => {
                // What is long acknowledged, said otherwise.
                let from = self.base.saturating_sub(300);
                let old: Vec<u8> = (from..self.base).map(|o| !honest(o)).collect();
                self.say(ACK, from as i64, &old);
            }
            7 if sure => {
                // The end, before what is known to stand behind it.
                if let Some(last) = truth.iter().rposition(Option::is_some).filter(|last| *last > 1) {
                    let at = self.rng.range(1, last as u64) as i64;
                    self.say(ACK | FIN, next + at, &[]);
                }
            }
            _ => {
                let at = next - self.rng.range(0, 20) as i64;
                self.say(ACK, at, &[]);
            }
        }
    }

    /// Sends what is still missing until all of it is echoed. `sure`: nothing was lost on the way, so that `truth` is
    /// what the store has; otherwise either word may be.
    fn finish(&mut self, truth: &[Option<u8>], mut sure: bool) -> Result<(), String> {
        let end = self.base + BURST;
        let word = |i: usize| truth[i].unwrap_or(honest(self.base + i));
        let said: Vec<u8> = (0..BURST).map(word).collect();
        let deadline = Instant::now() + PATIENCE;
        let mut tries = 0;
        while self.peer.got.len() < end {
            if Instant::now() > deadline {
                return Err(format!("{} of {end} bytes came, {} acknowledged", self.peer.got.len(), self.peer.acked));
            }
            let from = (self.peer.acked as usize).clamp(self.base, end);
            if sure || tries % 3 < 2 {
                for at in (from..end).step_by(1000) {
                    self.say(ACK, at as i64, &said[at - self.base..(at + 1000).min(end) - self.base]);
                }
            } else {
                // It may have kept one word here and the other there.
                for at in from..(from + 100).min(end) {
                    self.say(ACK, at as i64, &[honest(at)]);
                    self.say(ACK, at as i64, &[!honest(at)]);
                }
            }
            tries += 1;
            if sure && tries == 50 {
                self.doubts += 1;
                sure = false;
            }
            let before = self.peer.got.len();
            self.peer.listen(Duration::from_millis(100)).expect("received");
            if let Some(wrong) = self.peer.wrong.take() {
                return Err(wrong);
            }
            if self.peer.got.len() > before {
                tries = 0;
            }
        }
        let right = |i: &usize| {
            let got = self.peer.got[self.base + i];
            if sure {
                got == said[*i]
            } else {
                got == said[*i] || got == !said[*i]
            }
        };
        match (0..BURST).find(|i| !right(i)) {
            Some(i) => Err(format!("byte {} is wrong", self.base + i)),
            None => Ok(()),
        }
    }

    fn burst(&mut self, sure: bool) -> Result<(), String> {
        let mut truth = vec![None; BURST];
        for _ in 0..40 {
            if self.rng.chance(70) {
                self.piece(&mut truth);
            } else {
                self.nonsense(&truth, sure);
            }
        }
        self.finish(&truth, sure)?;
        self.base += BURST;
        Ok(())
    }

    /// Ends the connection as a TCP does.
    fn end(mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while !self.peer.fin || self.peer.acked <= self.base as u64 {
            if Instant::now() > deadline {
                return Err("the connection does not end".to_owned());
            }
            self.say(ACK | FIN, self.base as i64, &[]);
            self.peer.listen(Duration::from_millis(100)).expect("received");
        }
        Ok(())
    }
}

#[test]
fn hostile_segments_harm_nobody() {
    hostile_segments(&V4);
}

#[test]
fn hostile_segments_over_ipv6_harm_nobody() {
    hostile_segments(&V6);
}

fn hostile_segments(over: &Over) {
    let mut w = (over.new)("hostile", Service::new("echo", PORT), &[&built("echo_server"), "5555", over.any]);
    RawPeer::prepare(&w.peer, PORT).expect("prepared");
    let options = EchoOptions::new(3, w.rng.next_u64());
    let clients = EchoClients::start(&w.peer, w.pair.addr(), &options).expect("clients");
    let mut hostile: Vec<Hostile> = (0..4)
        .map(|i| {
            let rng = Rng::new(w.rng.next_u64());
            // The numbers of two wrap soon.
            let isn = if i < 2 { u32::MAX - 40_000 } else { w.rng.next_u64() as u32 };
            let peer = RawPeer::connect(&w.peer, 10_000 + i, w.pair.addr(), isn, PATIENCE).expect("connect");
            Hostile { peer, rng, base: 0, doubts: 0 }
        })
        .collect();
    // While nothing fails, each byte is known.
    for (i, h) in hostile.iter_mut().enumerate() {
        for burst in 0..10 {
            h.burst(true).unwrap_or_else(|e| panic!("peer {i}, burst {burst}: {e}\n{}", w.pair.describe()));
        }
    }
    let doubts: u32 = hostile.iter().map(|h| h.doubts).sum();
    assert!(doubts < 3, "{doubts} of 40 bursts were not understood as they were sent");
    let (stop, bursts) = (AtomicBool::new(false), AtomicU64::new(0));
    let faults = w.faults(over.failovers);
    let hostile: Vec<Hostile> = std::thread::scope(|threads| {
        let _stop = Stop(&stop);
        let running: Vec<_> = hostile
            .into_iter()
            .map(|mut h| {
                let (stop, bursts) = (&stop, &bursts);
                threads.spawn(move || {
                    while !stop.load(Relaxed) {
                        if let Err(e) = h.burst(false) {
                            stop.store(true, Relaxed);
                            return Err(e);
                        }
                        bursts.fetch_add(1, Relaxed);
                    }
                    Ok(h)
                })
            })
            .collect();
        for (round, fault) in faults.iter().enumerate() {
            if stop.load(Relaxed) {
                break;
            }
            let before = bursts.load(Relaxed);
            w.survive(&clients, &[*fault]);
            let went_on = tcpr_lab::wait_for(PATIENCE, || stop.load(Relaxed) || bursts.load(Relaxed) >= before + 8);
            assert!(went_on, "round {round}, {fault:?}: no progress\n{}", w.pair.describe());
            eprintln!("round {round}, {fault:?}: {} bursts", bursts.load(Relaxed));
        }
        stop.store(true, Relaxed);
        let ended = running.into_iter().enumerate().map(|(i, h)| {
            let ended = h.join().expect("no panic");
            ended.unwrap_or_else(|e| panic!("peer {i}: {e}\n{}", w.pair.describe()))
        });
        ended.collect()
    });
    for h in hostile {
        h.end().expect("an orderly end");
    }
    let stats = clients.stop_and_verify(PATIENCE, End::HalfClose).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((stats.bytes_lost, stats.bytes_doubled, stats.reconnects), (0, 0, 0));
    w.no_reset();
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

/// What a member's store says of the session with this port of the peer.
fn stored(w: &World, member: usize, port: u16) -> Value {
    let out = w.pair.tcpr(member, &["sessions", "--json"]).expect("tcpr sessions");
    let all: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"));
    let ours = |s: &&Value| s["peer"].as_str().is_some_and(|p| p.ends_with(&format!(":{port}")));
    all["sessions"].as_array().and_then(|s| s.iter().find(ours)).cloned().unwrap_or(Value::Null)
}

/// What the kernel of a member says of the connection with this port of the peer: bytes that came in since its socket was
/// made, bytes that nobody has read. `None`: it has none.
fn kernel(w: &World, member: usize, port: u16) -> Option<(u64, u64)> {
    let mut c = Command::new("ss");
    c.args(["-H", "-O", "-tin", "sport", "=", &format!(":{PORT}"), "and", "dport", "=", &format!(":{port}")]);
    let out = w.pair.host(member).run(c, PATIENCE).expect("ss runs");
    let text = String::from_utf8_lossy(&out.stdout);
    let line = text.lines().find(|l| l.starts_with("ESTAB"))?;
    let received = line.split_whitespace().find_map(|word| word.strip_prefix("bytes_received:"));
    let unread = line.split_whitespace().nth(1)?.parse().ok()?;
    Some((received.map_or(0, |n| n.parse().expect("a number")), unread))
}

/// After each burst the application has read what the store of either member has, and no more or less has gone through
/// the kernel.
#[test]
fn the_store_has_what_the_kernel_has() {
    for over in [V4, V6] {
        let mut w = (over.new)("agree", Service::new("echo", PORT), &[&built("echo_server"), "5555", over.any]);
        RawPeer::prepare(&w.peer, PORT).expect("prepared");
        let ports = 10_000..10_003;
        let mut hostile: Vec<Hostile> = ports
            .clone()
            .map(|port| {
                let isn = if port == 10_000 { u32::MAX - 10_000 } else { w.rng.next_u64() as u32 };
                let peer = RawPeer::connect(&w.peer, port, w.pair.addr(), isn, PATIENCE).expect("connect");
                Hostile { peer, rng: Rng::new(w.rng.next_u64()), base: 0, doubts: 0 }
            })
            .collect();
        let mut faults = w.faults(5).into_iter();
        let mut checked = 0;
        for round in 0..10 {
            let master = w.protected();
            // A restored socket counts anew: nothing is under way just now.
            let begun: Vec<(u64, u64)> = hostile
                .iter()
                .zip(ports.clone())
                .map(|(h, port)| {
                    let mut now = None;
                    let there = tcpr_lab::wait_for(PATIENCE, || {
                        now = kernel(&w, master, port);
                        now.is_some_and(|(_, unread)| unread == 0)
                    });
                    assert!(there, "round {round}, port {port}: {now:?}\n{}", w.pair.describe());
                    (now.expect("there").0, h.base as u64)
                })
                .collect();
            for ((h, port), (received, base)) in hostile.iter_mut().zip(ports.clone()).zip(begun) {
                h.burst(true).unwrap_or_else(|e| panic!("round {round}, port {port}: {e}\n{}", w.pair.describe()));
                let end = h.base as u64;
                // Its echo has come: that was only let go because both had stored what it answers.
                for member in 0..2 {
                    let row = stored(&w, member, port);
                    let has = (row["in_done"].as_u64(), row["in_stored"].as_u64(), row["out_done"].as_u64());
                    assert_eq!(has, (Some(end), Some(end), Some(end)), "round {round}, member {member}, port {port}: {row}");
                }
                assert_eq!(kernel(&w, master, port), Some((received + end - base, 0)), "round {round}, port {port}");
                checked += 1;
            }
            if round % 2 == 1 {
                let fault = faults.next().expect("five faults");
                w.fail_over(fault);
                eprintln!("round {round}: {fault:?}");
            }
        }
        assert_eq!(checked, 30);
        for h in hostile {
            h.end().expect("an orderly end");
        }
        w.no_reset();
        w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
    }
}

/// Resident memory of all processes of a host, in KiB.
pub fn resident(host: &Host) -> u64 {
    let of = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?.trim().strip_suffix("kB")?.trim().parse().ok();
        line as Option<u64>
    };
    host.pids().into_iter().filter_map(of).sum()
}

#[test]
fn a_flood_of_syns_harms_nobody() {
    let mut w = World::new("flood", Service::new("echo", PORT), &[&built("echo_server"), "5555"]);
    RawPeer::prepare(&w.peer, PORT).expect("prepared");
    let clients = EchoClients::start(&w.peer, w.pair.addr(), &EchoOptions::new(4, w.rng.next_u64())).expect("clients");
    let before: Vec<u64> = (0..2).map(|i| resident(w.pair.host(i))).collect();
    let faults = w.faults(10);
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut flood = SynFlood::new(&w.peer, w.pair.addr()).expect("a flood");
    let mut rng = Rng::new(w.rng.next_u64());
    std::thread::scope(|threads| {
        let _stop = Stop(&stop);
        threads.spawn(|| {
            while !stop.load(Relaxed) {
                for _ in 0..10 {
                    flood.syn(rng.range(10_000, 30_000) as u16, rng.next_u64() as u32).expect("sent");
                    sent.fetch_add(1, Relaxed);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        w.survive(&clients, &faults);
    });
    eprintln!("{} SYNs", sent.load(Relaxed));
    for (i, before) in before.into_iter().enumerate() {
        let now = resident(w.pair.host(i));
        assert!(now < before + (64 << 10), "member {i} has {now} KiB, {before} before the flood");
    }
    // Who is honest gets through while its remains are there.
    let more = EchoClients::start(&w.peer, w.pair.addr(), &EchoOptions::new(4, w.rng.next_u64())).expect("clients");
    more.wait_progress(PATIENCE).expect("progress");
    let stats = more.stop_and_verify(PATIENCE, End::HalfClose).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((stats.bytes_lost, stats.bytes_doubled, stats.reconnects), (0, 0, 0));
    let stats = clients.stop_and_verify(PATIENCE, End::HalfClose).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((stats.bytes_lost, stats.bytes_doubled, stats.reconnects), (0, 0, 0));
    // Half-open connections are given up after 75 s.
    w.pair.wait_sessions(0, 2 * PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}
