//! Members whose link is slower than what the peers ask for: whoever writes waits for it, and protection stays.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tcpr_lab::member::Service;
use tcpr_lab::{wait_until, Impairment, Shim};

use crate::options::Asker;
use crate::world::{built, Fault, Stop, World, PATIENCE, PORT};

/// At once.
const PEERS: usize = 20;
/// Of each.
const BYTES: usize = 4_000_000;
/// Bytes a second between the members.
const RATE: u64 = 12 << 20;
/// KiB that a manager may need beside what it needs without: what the peers have yet to take, which fits into the servers'
/// sockets, in the store, on its way, and not committed yet.
const MEMORY: u64 = 3 * (PEERS * BYTES) as u64 / 1024;

/// The same where nothing waits for the replica: the log is at most 32 MiB ahead of it, with what was announced and will be in
/// it, and what the ring of the server holds (4 MiB). That is in the log and in the store, in buffers of up to twice its size.
const MEMORY_ASYNC: u64 = 4 * (36 << 10);

/// Resident memory of a manager, in KiB.
fn resident(w: &World, member: usize) -> u64 {
    let pid = w.pair.process(member).expect("it runs").pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches("kB").trim().parse().expect("a number")
}

fn world(label: &str, service: Service) -> (World, Shim) {
    let w = World::new(label, service, &[&built("option_server"), "5555"]);
    let slow = Impairment { rate: RATE, ..Impairment::default() };
    // The second member dials.
    let shim = Shim::start(w.pair.host(1), 7400, slow, 1).expect("a slow link");
    (w, shim)
}

/// All of the peers do it at once, three times; meanwhile the pair is never unprotected, and in the end the master is killed in
/// the middle.
fn keeps_protection(label: &str, service: Service, ask: impl Fn(&mut Asker) + Sync) {
    let (mut w, shim) = world(label, service);
    let (master, epoch) = w.epoch();
    let before = [0, 1].map(|i| resident(&w, i));
    let askers: Vec<Asker> = (0..PEERS).map(|_| Asker::new(&w)).collect();
    let (done, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|threads| {
        let _stop = Stop(&stop);
        let (ask, done, stop) = (&ask, &done, &stop);
        for mut asker in askers {
            threads.spawn(move || {
                while !stop.load(Relaxed) {
                    ask(&mut asker);
                    done.fetch_add(1, Relaxed);
                }
            });
        }
        let mut most = [0, 0];
        let mut watch = |w: &World, until: usize| {
            wait_until(2 * PATIENCE, "all have what they asked for", || {
                let status = w.pair.status(master).expect("status");
                assert!(status["protected"] == true && status["epoch"] == epoch, "{status}\n{}", w.pair.describe());
                for i in 0..2 {
                    most[i] = most[i].max(resident(w, i).saturating_sub(before[i]));
                }
                std::thread::sleep(Duration::from_millis(20));
                done.load(Relaxed) >= until
            });
        };
        watch(&w, PEERS);
        // A link that stands still goes on.
        shim.stall(true);
        std::thread::sleep(Duration::from_millis(1100));
        shim.stall(false);
        watch(&w, 2 * PEERS);
        eprintln!("{label}: {most:?} KiB more than at rest");
        assert!(most.iter().all(|more| *more < MEMORY), "{most:?} KiB more than at rest");
        std::thread::sleep(Duration::from_millis(1500));
        let at = done.load(Relaxed);
        w.fail_over(Fault::KillAll);
        wait_until(2 * PATIENCE, "all go on", || done.load(Relaxed) >= at + 2 * PEERS);
        // The snapshot of the one that comes back goes over the same link. Beside all that traffic it takes a minute or more;
        // when the peers have what they asked for it is there.
        stop.store(true, Relaxed);
        w.protected();
    });
    w.no_reset();
}

#[test]
fn downloads_that_are_faster_than_the_link_keep_protection() {
    keeps_protection("slowdown", Service::new("slow", PORT), |asker| {
        asker.numbered(&format!("file {BYTES}"), BYTES, 2 * BYTES);
    });
}

#[test]
fn uploads_that_are_faster_than_the_link_keep_protection() {
    keeps_protection("slowup", Service::new("slow", PORT).port_key("max_unanswered_bytes", "16777216"), |asker| {
        asker.say(format!("drop {BYTES}\n").as_bytes());
        asker.say(&vec![b'u'; BYTES]);
        assert_eq!(asker.line(), format!("drop {BYTES}"));
    });
}

#[test]
fn downloads_without_waiting_for_the_replica_keep_protection() {
    let service = Service::new("slow", PORT).set("replication", "durability", "\"async\"");
    let (w, _shim) = world("slowasync", service);
    let (master, epoch) = w.epoch();
    let before = [0, 1].map(|i| resident(&w, i));
    let mut askers: Vec<Asker> = (0..PEERS).map(|_| Asker::new(&w)).collect();
    std::thread::scope(|threads| {
        for asker in &mut askers {
            threads.spawn(move || (0..3).for_each(|_| asker.numbered(&format!("file {BYTES}"), BYTES, 2 * BYTES)));
        }
        let mut most = [0, 0];
        for _ in 0..200 {
            let status = w.pair.status(master).expect("status");
            assert!(status["protected"] == true && status["epoch"] == epoch, "{status}\n{}", w.pair.describe());
            for i in 0..2 {
                most[i] = most[i].max(resident(&w, i).saturating_sub(before[i]));
            }
            assert!(most.iter().all(|more| *more < MEMORY_ASYNC), "{most:?} KiB more than at rest");
            std::thread::sleep(Duration::from_millis(50));
        }
        eprintln!("slowasync: {most:?} KiB more than at rest");
    });
    assert_eq!(w.epoch(), (master, epoch));
}
