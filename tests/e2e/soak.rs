//! `make soak MINUTES=n`: the tests of what servers are like, in random order, with each engine, over and over with fresh
//! seeds, on a machine that is busy otherwise.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tcpr_lab::client::{ChatClients, ChatOptions};
use tcpr_lab::member::Service;
use tcpr_lab::{seed_from_env, wait_until, Rng};

use crate::hot::{follows, hot, standby, Member, Talker, COROUTINES, REDIS, SHORT};
use crate::world::{built, Fault, Stop, World, PATIENCE, PORT};

/// All tests of these modules take part, but for those that are ignored as known faults.
const MODULES: [&str; 12] =
    ["bgp", "data", "hot", "ipv6", "listeners", "processes", "proxies", "responses", "servers", "streams", "unhooked", "workers"];
/// Of these one engine is enough: linked programs with data of their own, hot standbys, and programs without the library.
const ONE_ENGINE: [&str; 4] = ["bgp::", "hot::", "soak::hot_", "unhooked::"];
/// Tests that fail with engine splice: see "Known fault" in docs/guarantees.md.
const NOT_BY_SPLICE: [&str; 2] = ["an_edge_triggered", "io_uring_accepts"];
/// These are ignored because nothing but the soak runs them.
const OWN: [&str; 3] = ["soak::a_chat_with_pauses", "soak::a_linked_chat_with_pauses", "soak::hot_"];

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
    let own = |name: &String| OWN.iter().any(|own| name.starts_with(own));
    let names = all.iter().filter(|name| own(name) || (of_module(name) && !ignored.contains(name)));
    let mut cases = Vec::new();
    for name in names {
        cases.push((name.clone(), "repair"));
        if !ONE_ENGINE.iter().any(|part| name.starts_with(part)) && !NOT_BY_SPLICE.iter().any(|known| name.contains(known)) {
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
                while !stop.load(Relaxed) {
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

/// One thing that a client asks, and what it must hear: what was executed and not recorded shows, and what was swallowed.
type Step = Box<dyn FnMut() + Send>;

/// A hot standby takes over at random moments, `TCPR_FAILOVERS` times or 125 times, under load. Its trace has so little room that who
/// rejoins begins with a snapshot as a rule.
fn killed_at_random_moments(label: &str, program: &[&str], client: impl Fn(&World, usize) -> Step) {
    let failovers = std::env::var("TCPR_FAILOVERS").ok().and_then(|n| n.parse().ok()).unwrap_or(125);
    let mut w = World::new(label, hot(label).set("service", "standby_trace_bytes", SHORT), program);
    follows(&w);
    let mut clients: Vec<Step> = (0..6).map(|n| client(&w, n)).collect();
    let (stop, steps) = (AtomicBool::new(false), [const { AtomicUsize::new(0) }; 6]);
    std::thread::scope(|threads| {
        let _stop = Stop(&stop);
        for (n, step) in clients.iter_mut().enumerate() {
            let (stop, steps) = (&stop, &steps);
            threads.spawn(move || {
                while !stop.load(Relaxed) {
                    step();
                    steps[n].fetch_add(1, Relaxed);
                    std::thread::sleep(Duration::from_millis(3));
                }
            });
        }
        for round in 0..failovers {
            let backup = 1 - follows(&w);
            let promotions = |w: &World| standby(w, backup)["promotions"].as_u64().unwrap_or(0);
            let before = (promotions(&w), steps.each_ref().map(|n| n.load(Relaxed)));
            let all = [Fault::Switchover, Fault::Cut, Fault::KillServer, Fault::KillAll, Fault::Freeze];
            let fault = all[w.rng.range(0, 4) as usize];
            w.fail_over(fault);
            let go_on = || steps.iter().zip(before.1).all(|(now, before)| now.load(Relaxed) >= before + 3);
            wait_until(2 * PATIENCE, "all go on", go_on);
            assert_eq!(promotions(&w), before.0 + 1, "round {round}, {fault:?}: not promoted\n{}", w.pair.describe());
            eprintln!("round {round}: {fault:?}");
        }
    });
    // No client comes again: a reset would end it.
}

/// A client of a server that counts, and says how far.
fn counts(mut talker: Talker, asks: String, answer: &'static str) -> Step {
    let mut count = 0;
    Box::new(move || {
        count += 1;
        talker.say(&asks);
        assert_eq!(talker.line(), answer.replace('N', &count.to_string()));
    })
}

#[test]
#[ignore = "part of make soak"]
fn hot_rooms() {
    killed_at_random_moments("hrooms", &[&built("rooms_server"), "5555"], |w, n| {
        let mut member = Member::new(w, n);
        Box::new(move || member.check())
    });
}

#[test]
#[ignore = "part of make soak"]
fn hot_redis() {
    killed_at_random_moments("hredis", &REDIS, |w, n| counts(Talker::new(w), format!("incr counter{n}"), ":N"));
}

#[test]
#[ignore = "part of make soak"]
fn hot_memcached() {
    killed_at_random_moments("hmemc", &["memcached", "-u", "nobody", "-p", "5555", "-t", "4"], |w, n| {
        let mut talker = Talker::new(w);
        talker.say(&format!("set counter{n} 0 0 1"));
        talker.say("0");
        assert_eq!(talker.line(), "STORED");
        counts(talker, format!("incr counter{n} 1"), "N")
    });
}

#[test]
#[ignore = "part of make soak"]
fn hot_coroutines() {
    let program = ["/usr/bin/python3", "-c", COROUTINES];
    killed_at_random_moments("hcoro", &program, |w, _| counts(Talker::new(w), "line".to_owned(), "N line"));
}
