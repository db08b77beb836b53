//! `make soak MINUTES=n`: the tests of what servers are like, in random order, with each engine, over and over with fresh
//! seeds, on a machine that is busy otherwise.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tcpr_lab::client::{ChatClients, ChatOptions};
use tcpr_lab::member::Service;
use tcpr_lab::{seed_from_env, Rng};

use crate::world::{built, Stop, World, PORT};

/// All tests of these modules take part, but for those that are ignored as known faults.
const MODULES: [&str; 9] =
    ["ipv6", "listeners", "processes", "proxies", "responses", "servers", "streams", "unhooked", "workers"];
/// Tests that fail with engine splice: see "Known fault" in docs/guarantees.md.
const NOT_BY_SPLICE: [&str; 2] = ["an_edge_triggered", "io_uring_accepts"];
/// These are ignored because nothing but the soak runs them.
const OWN: [&str; 2] = ["soak::a_chat_with_pauses", "soak::a_linked_chat_with_pauses"];

/// The names of tests in this binary.
fn listed(args: &[&str]) -> Vec<String> {
    let this = std::env::current_exe().expect("a path");
    let out = Command::new(this).arg("--list").args(args).output().expect("runs");
    let text = String::from_utf8(out.stdout).expect("names");
    text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

/// What is run: a test, and the engine that it runs with.
fn cases() -> Vec<(String, &'static str)> {
    let (all, ignored) = (listed(&[]), listed(&["--ignored"]));
    let of_module = |name: &String| MODULES.iter().any(|m| name.starts_with(&format!("{m}::")));
    let names = all.iter().filter(|name| OWN.contains(&name.as_str()) || (of_module(name) && !ignored.contains(name)));
    let mut cases = Vec::new();
    for name in names {
        cases.push((name.clone(), "repair"));
        // Programs without the library have engine splice in both runs.
        if !name.starts_with("unhooked::") && !NOT_BY_SPLICE.iter().any(|known| name.contains(known)) {
            cases.push((name.clone(), "splice"));
        }
    }
    for part in MODULES.into_iter().chain(OWN) {
        assert!(cases.iter().any(|(name, _)| name.starts_with(part)), "there is no test {part}");
    }
    cases
}

#[test]
#[ignore = "make soak MINUTES=n"]
fn soak() {
    let minutes: u64 = std::env::var("MINUTES").ok().and_then(|m| m.parse().ok()).expect("MINUTES=n");
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let this = std::env::current_exe().expect("a path");
    let (mut rng, mut left, mut failed, mut done) = (Rng::new(seed_from_env()), Vec::new(), Vec::new(), 0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let _stop = Stop(&stop);
        for _ in 0..2 {
            threads.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        while Instant::now() < end {
            if left.is_empty() {
                left = cases();
            }
            let (name, engine) = left.swap_remove(rng.range(0, left.len() as u64 - 1) as usize);
            let seed = (rng.next_u64() >> 16).to_string();
            let repeat = format!("TCPR_SEED={seed} TCPR_ENGINE={engine} {} --include-ignored --exact {name}", this.display());
            eprintln!("soak: {repeat}");
            // A process for each: the engine and the seed are its environment's.
            let mut case = Command::new(&this);
            case.args(["--include-ignored", "--nocapture", "--exact", &name]);
            let status = case.env("TCPR_SEED", seed).env("TCPR_ENGINE", engine).status().expect("runs");
            done += 1;
            if !status.success() {
                eprintln!("soak: FAILED: {repeat}");
                failed.push(repeat);
            }
            let to_go = end.saturating_duration_since(Instant::now()).as_secs();
            eprintln!("soak: {done} done, {} failed; {to_go} s to go", failed.len());
        }
    });
    assert!(failed.is_empty(), "{} of {done} failed:\n{}", failed.len(), failed.join("\n"));
}

/// Failovers with pauses in which there is none.
fn chat_with_pauses(label: &str, service: Service, server: &str) {
    let mut w = World::new(label, service, &[&built(server), "5555"]);
    let clients = ChatClients::start(&w.peer, w.pair.addr(), &ChatOptions::new(6, w.rng.next_u64())).expect("clients");
    for fault in w.faults(10) {
        w.survive(&clients, &[fault]);
        let before = w.epoch();
        std::thread::sleep(w.rng.duration(Duration::ZERO, Duration::from_secs(5)));
        assert_eq!(before, w.epoch(), "a failover that nobody caused");
    }
    w.end(clients);
}

#[test]
#[ignore = "part of make soak"]
fn a_chat_with_pauses() {
    chat_with_pauses("soak", Service::new("chat", PORT).lines(), "plain_chat_server");
}

#[test]
#[ignore = "part of make soak"]
fn a_linked_chat_with_pauses() {
    chat_with_pauses("lsoak", Service::new("chat", PORT), "chat_server");
}
