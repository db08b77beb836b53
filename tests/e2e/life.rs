//! Members that come and go, and what is none of tcpr's business.

use std::process::Command;
use std::time::Duration;

use tcpr_lab::client::{ChatClients, ChatOptions};
use tcpr_lab::member::{bin_dir, Service};
use tcpr_lab::{wait_until, Lab};

use crate::world::{built, World, PATIENCE, PORT};

fn chat(label: &str) -> (World, ChatClients) {
    let mut w = World::new(label, Service::new("chat", PORT).lines(), &[&built("plain_chat_server"), "5555"]);
    let clients = ChatClients::start(&w.peer, w.pair.addr(), &ChatOptions::new(4, w.rng.next_u64())).expect("clients");
    (w, clients)
}

#[test]
fn the_backup_dies_and_comes_back() {
    let (mut w, clients) = chat("backup");
    for _ in 0..3 {
        let master = w.protected();
        w.pair.kill_all(1 - master);
        wait_until(PATIENCE, "the master says that it is not protected", || {
            w.pair.status(master).is_ok_and(|s| s["role"] == "master" && s["protected"] == false)
        });
        let status = w.pair.tcpr(master, &["status"]).expect("status");
        assert_eq!(status.status.code(), Some(1), "for monitoring");
        if let Err(e) = clients.wait_progress(PATIENCE).and_then(|()| clients.check()) {
            panic!("the master goes on alone: {e}\n{}", w.pair.describe());
        }
        w.pair.restart(1 - master).expect("restart");
        assert_eq!(w.protected(), master);
        let status = w.pair.tcpr(master, &["status"]).expect("status");
        assert_eq!(status.status.code(), Some(0));
    }
    // And the new backup is as good as the first.
    w.survive(&clients, &[crate::world::Fault::KillAll]);
    w.end(clients);
}

#[test]
fn a_master_that_is_told_to_stop_hands_over() {
    let (mut w, clients) = chat("term");
    for _ in 0..4 {
        let master = w.protected();
        w.pair.process(master).expect("runs").signal(libc_sigterm()).expect("SIGTERM");
        w.pair.wait_master_is(1 - master, PATIENCE).unwrap_or_else(|e| panic!("{e}"));
        let ended = w.pair.process(master).expect("ran").wait(PATIENCE);
        assert!(ended.is_some(), "tcpr run ends\n{}", w.pair.describe());
        clients.wait_progress(PATIENCE).and_then(|()| clients.check()).unwrap_or_else(|e| panic!("{e}\n{}", w.pair.describe()));
        w.pair.restart(master).expect("restart");
    }
    w.end(clients);
}

fn libc_sigterm() -> i32 {
    15
}

/// What calls return on descriptors that are not protected, with and without the library.
#[test]
fn without_a_manager_the_library_is_not_there() {
    let lab = Lab::new("plain").expect("a lab");
    let host = lab.host("a", "192.0.2.1/24").expect("host");
    let library = bin_dir().expect("bin").join("libtcpr.so");
    let run = |preload: bool| {
        let mut c = Command::new(built("conformance"));
        c.args(["192.0.2.1", "7777"]);
        if preload {
            c.env("LD_PRELOAD", &library);
        }
        let out = host.run(c, Duration::from_secs(60)).expect("conformance runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert!(out.stderr.is_empty(), "no output unless asked: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).expect("text")
    };
    let (plain, preloaded) = (run(false), run(true));
    assert!(plain.lines().count() > 100, "{plain}");
    for (p, q) in plain.lines().zip(preloaded.lines()) {
        assert_eq!(p, q, "with the library on the right");
    }
    assert_eq!(plain.lines().count(), preloaded.lines().count());
}
