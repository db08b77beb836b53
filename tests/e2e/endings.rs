//! Connections that do not end as they should: nothing of them is left on either member.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::Duration;

use tcpr_lab::flags::{ACK, PSH};
use tcpr_lab::member::Service;
use tcpr_lab::{RawPeer, Said};

use crate::ipv6::{Over, V4, V6};
use crate::requests::{connect, pause, through, through_resets};
use crate::world::{built, World, PATIENCE, PORT};

fn world(way: &str, over: &Over) -> World {
    (over.new)(way, Service::new("lines", PORT), &[&built("line_server"), "5555", way])
}

/// The server closes with input unread, which TCP turns into a reset. What it has answered arrives before.
#[test]
fn a_server_closes_with_input_unread() {
    let mut w = world("rude", &V4);
    let (faults, to) = (w.faults(10), w.pair.addr());
    through_resets(&mut w, 4, &faults, |clients, mut rng| {
        while !clients.stop.load(Relaxed) {
            let mut stream = connect(to)?;
            let port = stream.local_addr().map_or(0, |a| a.port());
            let said = format!("{port}\n{}", "never read\n".repeat(rng.range(1, 50) as usize));
            stream.write_all(said.as_bytes()).map_err(|e| format!("sending from port {port}: {e}"))?;
            let mut got = String::new();
            let ended = stream.read_to_string(&mut got);
            let reset = ended.is_ok() || ended.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset);
            // The reset may overtake the answer in the client's socket, but nothing else may come.
            if !reset || !format!("{port}\n").starts_with(&got) {
                return Err(format!("port {port}: {ended:?} after {got:?}"));
            }
            clients.done.fetch_add(1, Relaxed);
            pause(&mut rng, 20);
        }
        Ok(())
    });
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

/// Clients that leave without reading their answers, which TCP turns into a reset.
#[test]
fn clients_leave_with_answers_unread() {
    let mut w = world("pair", &V6);
    let (faults, to) = (w.faults(10), w.pair.addr());
    through(&mut w, 4, &faults, |clients, mut rng| {
        while !clients.stop.load(Relaxed) {
            let mut stream = connect(to)?;
            for _ in 0..rng.range(1, 20) {
                stream.write_all(&[b'x'; 500]).map_err(|e| format!("sending: {e}"))?;
                pause(&mut rng, 4);
            }
            clients.done.fetch_add(1, Relaxed);
        }
        Ok(())
    });
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

/// Peers that vanish without a word, in the middle of anything. The server asks by keepalives whether they are there, on
/// whichever member it is; those that the kernel gives up leave no record.
#[test]
fn peers_that_vanish_leave_nothing() {
    let mut w = world("keep", &V4);
    RawPeer::prepare(&w.peer, PORT).expect("prepared");
    for i in 0..2 {
        // How often the kernel sends what a closed connection has left; by default it goes on for minutes.
        let set = || std::fs::write("/proc/sys/net/ipv4/tcp_orphan_retries", "3");
        w.pair.host(i).enter(set).expect("a setting of this host alone");
    }
    let (faults, to, host) = (w.faults(10), w.pair.addr(), w.peer.clone());
    let next_port = AtomicU16::new(10_000);
    through(&mut w, 4, &faults, |clients, mut rng| {
        while !clients.stop.load(Relaxed) {
            let from = next_port.fetch_add(1, Relaxed);
            let failed = |e: std::io::Error| format!("port {from}: {e}");
            let mut peer = RawPeer::connect(&host, from, to, rng.next_u64() as u32, PATIENCE).map_err(failed)?;
            let line = format!("port {from}\n");
            let until = std::time::Instant::now() + PATIENCE;
            while peer.got.len() < line.len() {
                if std::time::Instant::now() > until {
                    return Err(format!("port {from}: no answer"));
                }
                let ack = peer.received();
                peer.say(Said { flags: ACK | PSH, at: 0, ack, bytes: line.as_bytes() }).map_err(failed)?;
                peer.listen(Duration::from_millis(100)).map_err(failed)?;
            }
            if peer.got != line.as_bytes() || peer.wrong.is_some() {
                return Err(format!("port {from}: {:?} {:?}", String::from_utf8_lossy(&peer.got), peer.wrong));
            }
            clients.done.fetch_add(1, Relaxed);
            pause(&mut rng, 100);
        }
        Ok(())
    });
    w.pair.wait_sessions(0, 2 * PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

/// Both sides end their streams at once, again and again.
#[test]
fn both_sides_close_at_once() {
    let mut w = world("once", &V6);
    let (faults, to) = (w.faults(10), w.pair.addr());
    through(&mut w, 4, &faults, |clients, mut rng| {
        while !clients.stop.load(Relaxed) {
            let mut stream = connect(to)?;
            let port = stream.local_addr().map_or(0, |a| a.port());
            let at = |what: &str, e: &dyn std::fmt::Display| format!("{what} of port {port}: {e}");
            stream.write_all(format!("{port}\n").as_bytes()).map_err(|e| at("line", &e))?;
            // The server answers this line and closes, just now.
            stream.shutdown(Shutdown::Write).map_err(|e| at("shutdown", &e))?;
            let mut answer = String::new();
            let mut reader = BufReader::new(stream);
            reader.read_line(&mut answer).map_err(|e| at("answer", &e))?;
            let end = reader.read_line(&mut String::new()).map_err(|e| at("end", &e))?;
            if answer != format!("{port}\n") || end != 0 {
                return Err(at("answer", &format!("{answer:?}, then {end} bytes")));
            }
            clients.done.fetch_add(1, Relaxed);
            pause(&mut rng, 10);
        }
        Ok(())
    });
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

/// What the program itself has closed is closed, whatever becomes of the program afterwards.
#[test]
fn a_connection_that_was_closed_before_a_crash_stays_closed() {
    const SERVER: &str = "import os, socket\n\
        listener = socket.create_server(('', 5555))\n\
        while True:\n\
        \x20   connection, _ = listener.accept()\n\
        \x20   line = connection.recv(100)\n\
        \x20   connection.sendall(line)\n\
        \x20   connection.close()\n\
        \x20   if line == b'crash\\n':\n\
        \x20       os._exit(1)\n";
    let w = World::new("closed", Service::new("lines", PORT), &["python3", "-c", SERVER]);
    for _ in 0..5 {
        w.protected();
        let mut stream = w.peer.enter(|| connect(w.pair.addr())).expect("connected");
        stream.write_all(b"crash\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("its end");
        assert_eq!(answer, "crash\n");
    }
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}
