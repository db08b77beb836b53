//! Users of the members without rights, who hold and flood all that a manager listens on: the service stays, whoever belongs to
//! it still joins, and what they cost is bounded.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use tcpr_lab::client::{EchoClients, EchoOptions};
use tcpr_lab::member::Service;

use crate::world::{built, World, PATIENCE, PORT};

/// Descriptors of the `tcpr run` of a member.
fn descriptors(w: &World, member: usize) -> usize {
    let pid = w.pair.process(member).expect("it runs").pid();
    fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").count()
}

fn control(w: &World, member: usize) -> PathBuf {
    w.pair.host(member).dir().join("echo-run").join("control")
}

#[test]
fn strangers_on_a_member_cost_little_and_keep_nobody_out() {
    const SECONDS: u64 = 15;
    let mut w = World::new("strangers", Service::new("echo", PORT), &[&built("echo_server"), "5555"]);
    let clients = EchoClients::start(&w.peer, w.pair.addr(), &EchoOptions::new(4, w.rng.next_u64())).expect("clients");
    clients.wait_progress(PATIENCE).expect("progress");
    let (master, epoch) = w.epoch();
    let before = [0, 1].map(|i| descriptors(&w, i));
    let script = format!("{}/tests/strangers.py", env!("CARGO_MANIFEST_DIR"));
    let said: Vec<String> = std::thread::scope(|threads| {
        let strangers: Vec<_> = (0..2)
            .map(|i| {
                let (host, script) = (w.pair.host(i).clone(), &script);
                let mut c = Command::new("python3");
                c.args([script, "echo", &host.ip().to_string(), "7400", &SECONDS.to_string()]);
                threads.spawn(move || host.run(c, 2 * PATIENCE).expect("the strangers end"))
            })
            .collect();
        let start = Instant::now();
        let mut most = [0, 0];
        let mut restarts = 0;
        while start.elapsed() < Duration::from_secs(SECONDS - 2) {
            // A new process joins each time.
            if start.elapsed() > Duration::from_secs(2 + 3 * restarts) {
                restarts += 1;
                let out = w.pair.tcpr(master, &["restart"]).expect("runs");
                assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
                clients.wait_progress(PATIENCE).and_then(|()| clients.check()).unwrap_or_else(|e| panic!("{e}"));
            }
            for i in 0..2 {
                most[i] = most[i].max(descriptors(&w, i));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(restarts >= 3, "{restarts}");
        // 64 that say nothing, 8 half-open dials, and what a restart needs.
        for i in 0..2 {
            assert!(most[i] < before[i] + 120, "member {i} had {} descriptors, {} before", most[i], before[i]);
        }
        let said = strangers.into_iter().map(|s| s.join().expect("no panic"));
        said.map(|out| String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()).collect()
    });
    for (i, said) in said.iter().enumerate() {
        eprintln!("strangers of member {i}: {}", said.trim());
        for what in ["silent", "half", "guesses", "dials", "offers", "datagrams"] {
            let n = said.split_whitespace().find_map(|w| w.strip_prefix(&format!("{what}="))).and_then(|n| n.parse().ok());
            assert!(n.is_some_and(|n: u64| n > 500), "{what}: {said}");
        }
    }
    assert_eq!(w.epoch(), (master, epoch), "who is master has not changed\n{}", w.pair.describe());
    w.end(clients);
}

/// The control socket is for root alone; and whoever holds connections to it, half a request in each, or asks and never
/// reads, keeps neither the loop nor another asker waiting.
#[test]
fn a_slow_asker_keeps_nobody_waiting() {
    let mut w = World::new("askers", Service::new("echo", PORT), &[&built("echo_server"), "5555"]);
    let clients = EchoClients::start(&w.peer, w.pair.addr(), &EchoOptions::new(4, w.rng.next_u64())).expect("clients");
    let (master, epoch) = w.epoch();
    let path = control(&w, master);
    assert_eq!(fs::metadata(&path).expect("a socket").permissions().mode() & 0o777, 0o600);
    let before = descriptors(&w, master);
    let mut held = Vec::new();
    for i in 0..300 {
        let mut asker = UnixStream::connect(&path).expect("connected");
        match i % 3 {
            0 => {}
            1 => asker.write_all(b"{\"command\":").expect("sent"),
            // Thousands of answers, which nobody reads.
            _ => {
                asker.set_nonblocking(true).expect("a mode");
                let _full = asker.write_all("{\"command\":\"status\"}\n".repeat(2000).as_bytes());
            }
        }
        held.push(asker);
        if i % 50 == 0 {
            let status = w.pair.status(master).expect("an answer");
            assert_eq!(status["role"], "master");
        }
    }
    assert!(descriptors(&w, master) < before + 60);
    // Those that wait for answers have them, until they were pushed out.
    let last = held.last_mut().expect("one");
    last.set_nonblocking(false).expect("a mode");
    last.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut got = vec![0; 100];
    last.read_exact(&mut got).expect("an answer");
    assert!(got.starts_with(b"{"));
    clients.wait_progress(PATIENCE).and_then(|()| clients.check()).unwrap_or_else(|e| panic!("{e}"));
    let log = w.pair.process(master).expect("it runs").tail(1000);
    assert!(!log.contains("was held up"), "{log}");
    drop(held);
    assert_eq!(w.epoch(), (master, epoch));
    w.end(clients);
}
