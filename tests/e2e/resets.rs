//! `on_takeover = "reset"`: peers of a port whose program would know nothing of their connections are told so at once, and those of
//! the other ports see nothing.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use tcpr_lab::member::{Hosted, Service};

use crate::requests::connect;
use crate::world::{built, Fault, World, FOUR, PORT};

const KEPT: u16 = 5556;

fn ask(stream: &TcpStream, line: &str) {
    let mut to = stream;
    to.write_all(format!("{line}\n").as_bytes()).expect("sent");
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).expect("an answer");
    assert_eq!(answer.trim_end(), line);
}

fn peers_are_reset(label: &str, server: &str, by: Hosted, faults: &[Fault]) {
    let service = Service::new("resets", PORT).lines().port_key("on_takeover", "\"reset\"").and_port(KEPT).lines();
    let server = built(server);
    let both = format!("{server} {KEPT} keep & exec {server} {PORT} keep");
    let mut w = World::with(label, service, &["/bin/sh", "-c", &both], by, FOUR);
    let to = w.pair.addr();
    let peer = w.peer.clone();
    let client = |port| peer.enter(|| connect(SocketAddr::new(to.ip(), port))).expect("connected");
    let kept = client(KEPT);
    ask(&kept, "first");
    for (round, fault) in faults.iter().enumerate() {
        let mut lost: Vec<TcpStream> = (0..4).map(|_| client(PORT)).collect();
        // One of them has never said anything, and of one the last line is never answered: it is no whole one.
        lost.iter().skip(1).for_each(|stream| ask(stream, "hello"));
        lost[2].write_all(b"half a li").expect("sent");
        ask(&kept, "before");
        w.fail_over(*fault);
        for (i, stream) in lost.iter_mut().enumerate() {
            stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            let end = stream.read(&mut [0]).expect_err("no byte and no end").kind();
            assert_eq!(end, ErrorKind::ConnectionReset, "{fault:?}, client {i}\n{}", w.pair.describe());
        }
        ask(&kept, "after");
        ask(&client(PORT), "again");
        let status = w.pair.status(w.protected()).expect("a status");
        let counters = &status["counters"];
        // Those that were over before are none.
        assert!(counters["reset_on_takeover"].as_u64() >= Some(4) && counters["torn"] == 0, "round {round}: {status}");
    }
    ask(&kept, "last");
}

#[test]
fn peers_of_a_port_are_reset_at_a_takeover() {
    peers_are_reset("resets", "line_server", Hosted::ByRun, &[Fault::Switchover, Fault::KillServer, Fault::Cut, Fault::KillAll]);
}

#[test]
fn peers_of_a_port_without_the_library_are_reset_at_a_takeover() {
    peers_are_reset(
        "sresets",
        "static_line_server",
        Hosted::ByRunUnhooked,
        &[Fault::Switchover, Fault::KillServer, Fault::KillAll],
    );
}
