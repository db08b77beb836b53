//! A pair is protected only if a failover would find a program that has joined: where the library did nothing in it, that is said
//! within seconds, with the process, the reason and the remedy.

use std::os::unix::fs::{chown, PermissionsExt};
use std::process::Command;
use std::time::Duration;

use tcpr_lab::member::{Hosted, Pair, Service};
use tcpr_lab::{wait_for, Host, Lab};

use crate::world::{built, PATIENCE, PORT};

/// Within so much it has to be said. (5 s where the machine does nothing else.)
const SAID: Duration = Duration::from_secs(15);

struct Members {
    a: Host,
    b: Host,
    _lab: Lab,
}

impl Members {
    fn new(label: &str) -> Members {
        let lab = Lab::new(label).expect("a lab");
        let host = |name: &str, address: &str| lab.host(name, address).expect("a host");
        Members { a: host("a", "192.0.2.1/24"), b: host("b", "192.0.2.2/24"), _lab: lab }
    }

    /// Both run this program, and have found each other.
    fn pair(&self, service: Service, program: &[&str], by: Hosted) -> Pair {
        let mut pair = Pair::new(&self.a, &self.b, service.patient()).expect("a pair");
        pair.hosted(by);
        pair.start_both(program).expect("both members start");
        let paired = || pair.master().is_ok_and(|i| pair.status(i).is_ok_and(|s| s["partner"]["connected"] == true));
        assert!(wait_for(PATIENCE, paired), "no pair:\n{}", pair.describe());
        pair
    }

    /// The same, and neither is protected; status and log say why.
    fn unprotected(&self, service: Service, program: &[&str], by: Hosted, words: &[&str]) {
        let pair = self.pair(service, program, by);
        for i in 0..2 {
            let mut said = String::new();
            let is_said = wait_for(SAID, || {
                let status = pair.status(i).expect("a status");
                said = status["program_trouble"].as_str().unwrap_or_default().to_owned();
                let log = pair.process(i).expect("running").tail(200);
                words.iter().all(|w| said.contains(w)) && log.contains(&said)
            });
            assert!(is_said, "{program:?}: {words:?} are not in {said:?}, or that is not in the log\n{}", pair.describe());
            let out = pair.tcpr(i, &["status"]).expect("status");
            let text = String::from_utf8_lossy(&out.stdout);
            let no = text.contains("protected  no") && words.iter().all(|w| text.contains(w));
            assert!(out.status.code() == Some(1) && no, "{program:?}: {}: {text}", out.status);
        }
    }
}

fn lines() -> Service {
    Service::new("joined", PORT)
}

/// Each on hosts of its own, all at once.
fn all_unprotected(cases: &[(&str, &[&str], &[&str])]) {
    std::thread::scope(|threads| {
        for (label, program, words) in cases {
            threads.spawn(move || Members::new(label).unprotected(lines(), program, Hosted::ByRun, words));
        }
    });
}

/// It binds and listens by system calls that no library sees: what else goes around the library nobody knows.
#[test]
fn a_listener_that_was_made_around_the_library_is_named() {
    let words = ["listeners 5555 raw", "has not seen it listen", "--no-preload"];
    Members::new("jraw").unprotected(lines(), &[&built("listeners"), "5555", "raw"], Hosted::ByRun, &words);
}

#[test]
fn a_program_that_no_library_has_entered_is_not_called_protected() {
    let (server, static_server) = (built("line_server"), built("static_line_server"));
    let served = "port 5555 is served by process";
    let without = "--no-preload";
    // Whatever starts it.
    let child = format!("{static_server} 5555 keep & wait");
    let replaced = format!("LD_PRELOAD=/usr/lib/other.so {server} 5555 keep");
    let dir = std::env::temp_dir().join(format!("tcpr-setgid-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let setgid = dir.join("line_server");
    std::fs::copy(&server, &setgid).expect("copied");
    chown(&setgid, None, Some(65534)).expect("given to a group");
    std::fs::set_permissions(&setgid, PermissionsExt::from_mode(0o2755)).expect("set-gid");
    all_unprotected(&[
        ("nstatic", &[&static_server, "5555", "keep"], &[served, "static_line_server", "linked statically", without]),
        ("nchild", &["/bin/sh", "-c", &child], &[served, "static_line_server", "linked statically", without]),
        ("nempty", &["/usr/bin/env", "-i", &server, "5555", "keep"], &[served, "line_server", "no LD_PRELOAD", without]),
        ("nother", &["/bin/sh", "-c", &replaced], &[served, "\"/usr/lib/other.so\"", without]),
        ("nsetgid", &[&setgid.display().to_string(), "5555", "keep"], &[served, "set-gid", without]),
        ("nowhere", &["/nowhere/server"], &["cannot start the program /nowhere/server", "No such file"]),
        ("nends", &["/bin/sh", "-c", "sleep 0.1; exit 3"], &["the program ended", "3"]),
        // It runs, and that is all.
        ("nidle", &["/bin/sleep", "1000"], &["no process of the program has joined"]),
    ]);
    std::fs::remove_dir_all(&dir).expect("removed");
}

#[test]
fn a_program_with_address_sanitizer_is_told_what_ends_it() {
    let dir = std::env::temp_dir().join(format!("tcpr-asan-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let program = dir.join("server").display().to_string();
    let source = format!("{}/tests/c/line_server.c", env!("CARGO_MANIFEST_DIR"));
    let cc = Command::new("cc").args(["-fsanitize=address", "-pthread", "-o", &program, &source]).status().expect("cc");
    assert!(cc.success(), "cc -fsanitize=address: {cc}; install libasan (it comes with gcc)");
    Members::new("asan").unprotected(
        lines(),
        &[&program, "5555", "keep"],
        Hosted::ByRun,
        &["the program ended", "AddressSanitizer", "--no-preload"],
    );
    std::fs::remove_dir_all(&dir).expect("removed");
}

/// One of two ports is that of a process without the library, whoever else has joined.
#[test]
fn a_port_that_is_served_by_a_stranger() {
    let m = Members::new("stranger");
    let (server, static_server) = (built("line_server"), built("static_line_server"));
    let both = format!("{static_server} 5556 keep & exec {server} 5555 keep");
    let service = || lines().and_port(5556);
    m.unprotected(service(), &["/bin/sh", "-c", &both], Hosted::ByRun, &["port 5556 is served by process", "static_line_server"]);
    let joined = format!("{server} 5556 keep & {server} 5555 keep");
    let pair = m.pair(service(), &["/bin/sh", "-c", &joined], Hosted::ByRun);
    pair.wait_protected(PATIENCE).expect("protected: both have joined");
}

/// A failover would find nobody: the master says so of its partner.
#[test]
fn the_partners_program_counts() {
    let m = Members::new("partner");
    let mut pair = m.pair(lines(), &[&built("line_server"), "5555", "keep"], Hosted::ByRun);
    let master = pair.wait_protected(PATIENCE).expect("protected");
    pair.start(1 - master, &[&built("static_line_server"), "5555", "keep"]).expect("started");
    let said = wait_for(PATIENCE, || {
        let status = pair.status(master).expect("a status");
        let trouble = status["partner"]["trouble"].as_str().unwrap_or_default();
        status["protected"] == false && trouble.contains("linked statically") && trouble.contains("--no-preload")
    });
    assert!(said, "{}", pair.describe());
    assert_eq!(pair.tcpr(master, &["status"]).expect("status").status.code(), Some(1));
    pair.start(1 - master, &[&built("line_server"), "5555", "keep"]).expect("started");
    pair.wait_protected(PATIENCE).expect("protected again");
}

#[test]
fn a_program_without_the_library_has_to_listen() {
    let m = Members::new("idle");
    m.unprotected(lines(), &["/bin/sleep", "1000"], Hosted::ByRunUnhooked, &["listens on no protected port"]);
    m.unprotected(lines(), &["/nowhere/server"], Hosted::ByRunUnhooked, &["cannot start the program /nowhere/server"]);
    let pair = m.pair(lines(), &[&built("static_line_server"), "5555", "keep"], Hosted::ByRunUnhooked);
    pair.wait_protected(PATIENCE).expect("protected: it listens");
}

/// The library swallows it; without it, the peer would be greeted again in the middle of its connection.
#[test]
fn a_greeting_is_not_absorbed_without_the_library() {
    let m = Members::new("greeting");
    let pair = Pair::new(&m.a, &m.b, lines().port_key("greeting", "\"absorb\"")).expect("a pair");
    for (args, code) in
        [(&["run", "--no-preload", "--", "/bin/sleep", "1000"][..], 1), (&["check", "--no-preload"], 1), (&["check"], 0)]
    {
        let out = pair.tcpr(0, args).expect("runs");
        let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert_eq!(out.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains("greeting = \"absorb\" of port 5555") && said.contains("--no-preload"), "{args:?}: {said}");
    }
}
