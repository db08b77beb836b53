//! The ways in which servers are built: threads and processes that share their connections, stdio, commands.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use tcpr_lab::client::connect_from;
use tcpr_lab::member::Service;

use crate::cost::Strace;
use crate::requests::{connect, pause, through};
use crate::world::{built, Fault, World, PATIENCE, PORT};

fn lines_are_answered(way: &str, new: New) {
    lines_of_clients_are_answered(way, new, 4, 200);
}

fn lines_of_clients_are_answered(way: &str, new: New, clients: usize, most_lines: u64) {
    let mut w = new(way, Service::new("lines", PORT), &[&built("line_server"), "5555", way]);
    let faults = w.faults(10);
    answered_through(&mut w, &faults, clients, most_lines, 60_000);
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

/// Over IPv4 or IPv6.
pub type New = fn(&str, Service, &[&str]) -> World;

/// Each client sends a line, waits for the same line, and sends the next; after at most so many it ends its connection
/// and makes another.
/// Now and then a line is as long as `longest`.
pub fn answered_through(w: &mut World, faults: &[Fault], clients: usize, most_lines: u64, longest: u64) {
    let to = w.pair.addr();
    through(w, clients, faults, |clients, mut rng| {
        while !clients.stop.load(Relaxed) {
            let mut stream = connect(to)?;
            let port = stream.local_addr().map_or(0, |a| a.port());
            let mut answers = BufReader::new(stream.try_clone().expect("cloned"));
            for i in 0..rng.range(1, most_lines) {
                if clients.stop.load(Relaxed) {
                    break;
                }
                let length = if rng.chance(5) { rng.range(1, longest) } else { rng.range(1, 100) } as usize;
                let line = format!("{port} {i} {}\n", "x".repeat(length));
                let at = |what: &str, e: &dyn std::fmt::Display| format!("{what} of line {i}, port {port}: {e}");
                stream.write_all(line.as_bytes()).map_err(|e| at("sending", &e))?;
                let mut answer = String::new();
                answers.read_line(&mut answer).map_err(|e| at("the answer", &e))?;
                if answer != line {
                    return Err(at("the answer", &format!("{} bytes for {}: {answer:.30}", answer.len(), line.len())));
                }
                clients.done.fetch_add(1, Relaxed);
                pause(&mut rng, 10);
            }
            stream.shutdown(Shutdown::Write).map_err(|e| format!("shutdown of port {port}: {e}"))?;
            let mut rest = String::new();
            match answers.read_line(&mut rest) {
                Ok(0) => {}
                other => return Err(format!("the end of port {port}: {other:?}, {rest:.30}")),
            }
        }
        Ok(())
    });
}

#[test]
fn a_thread_pool_answers() {
    lines_are_answered("pool", World::new);
}

#[test]
fn two_threads_share_a_connection() {
    lines_are_answered("pair", World::six);
}

#[test]
fn stdio_answers() {
    lines_are_answered("stdio", World::new);
}

#[test]
fn a_server_that_runs_commands_answers() {
    lines_are_answered("spawn", World::six);
}

#[test]
fn a_process_for_each_connection_answers() {
    lines_are_answered("fork", World::new);
}

#[test]
fn processes_that_share_a_listener_answer() {
    lines_are_answered("prefork", World::six);
}

/// A server that gives its privileges up between bind and listen.
#[test]
fn a_server_that_becomes_nobody_answers() {
    lines_are_answered("setuid", World::six);
}

/// Connections that are made and that nobody has accepted yet; more than may wait for it.
#[test]
fn a_full_accept_queue_loses_nobody() {
    lines_of_clients_are_answered("lazy", World::new, 8, 3);
}

/// A listener that keeps connections to itself until their clients say something. One that has nothing to say when its server
/// moves keeps no other waiting.
#[test]
fn a_listener_that_waits_for_data_keeps_nobody_waiting() {
    let mut w = World::new("defer", Service::new("lines", PORT), &[&built("line_server"), "5555", "defer"]);
    let to = w.pair.addr();
    let mut streams: Vec<_> = (0..6).map(|_| w.peer.enter(|| connect(to)).expect("connected")).collect();
    for (round, fault) in [Fault::Switchover, Fault::KillAll, Fault::KillServer, Fault::Cut].into_iter().enumerate() {
        // One of them never said anything before.
        let talk = 2 + round;
        for (i, stream) in streams.iter_mut().enumerate().take(talk).skip(1) {
            let line = format!("{round} {i}\n");
            stream.write_all(line.as_bytes()).expect("sent");
            let asked = std::time::Instant::now();
            let mut answer = String::new();
            BufReader::new(&*stream).read_line(&mut answer).expect("an answer");
            assert_eq!(answer, line);
            let took = asked.elapsed();
            // The barrier falls by itself after three seconds; a peer's retransmission may come a second late.
            assert!(took < std::time::Duration::from_millis(2500), "round {round}: client {i} had its answer after {took:?}");
        }
        w.fail_over(fault);
    }
    for (i, stream) in streams.iter_mut().enumerate() {
        stream.write_all(b"at last\n").expect("sent");
        let mut answer = String::new();
        BufReader::new(&*stream).read_line(&mut answer).expect("an answer");
        assert_eq!(answer, "at last\n", "client {i}");
    }
    drop(streams);
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

/// Connections that one process accepts, and passes to others as messages (SCM_RIGHTS).
fn passed(way: &str, new: New) {
    let mut w = new(way, Service::new("passer", PORT), &[&built("passer"), "5555", way]);
    let faults = w.faults(5);
    answered_through(&mut w, &faults, 4, 50, 1000);
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

#[test]
fn passed_connections_are_answered() {
    passed("plain", World::new);
}

#[test]
fn passed_connections_are_answered_whose_sender_keeps_a_copy() {
    passed("keep", World::new);
}

#[test]
fn passed_connections_are_answered_that_were_copied_before() {
    passed("dup", World::six);
}

#[test]
fn passed_connections_are_answered_that_are_passed_twice() {
    passed("twice", World::new);
}

#[test]
fn passed_connections_are_answered_that_are_passed_by_sendmmsg() {
    passed("many", World::six);
}

#[test]
fn passed_connections_are_answered_whose_receiver_takes_them_late() {
    passed("late", World::new);
}

#[test]
fn passed_connections_are_answered_whose_receiver_forks() {
    passed("fork", World::new);
}

#[test]
fn passed_connections_are_answered_that_are_passed_on() {
    passed("pass", World::new);
}

#[test]
fn passed_connections_are_answered_that_were_read_from_before() {
    passed("half", World::new);
}

/// A connection in a message that nobody reads ends with it; the others go on.
#[test]
fn a_connection_that_nobody_receives_ends() {
    let w = World::new("drop", Service::new("passer", PORT), &[&built("passer"), "5555", "drop"]);
    for i in 0..6 {
        let mut stream = w.peer.enter(|| connect(w.pair.addr())).expect("connected");
        let line = format!("line {i}\n");
        let mut answer = String::new();
        if i % 2 == 0 {
            stream.write_all(line.as_bytes()).expect("sent");
            BufReader::new(stream.try_clone().expect("cloned")).read_line(&mut answer).expect("answered");
            assert_eq!(answer, line);
        } else {
            assert_eq!(stream.read_to_string(&mut answer).expect("ended in order"), 0);
        }
    }
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

/// No hook sees the message go, and the receivers' do not know what they write to: the kernel does.
#[test]
fn a_connection_that_was_passed_around_the_hooks_goes_on() {
    passed("raw", World::new);
}

/// An event loop whose upstream is no session: one wait returns requests of some clients and replies for others.
#[test]
fn an_event_loop_with_an_upstream_answers() {
    let mut w = World::new("proxy", Service::new("proxy", PORT), &[&built("event_loop"), "5555", "proxy"]);
    let faults = w.faults(10);
    answered_through(&mut w, &faults, 8, 200, 1000);
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

/// An event loop whose listener blocks: an `accept` that waits for nobody would stop all its connections. The manager is slow
/// between what it knows of accepted connections and what it does about those that are left.
#[test]
fn an_accept_after_a_wait_never_waits_for_nobody() {
    let mut w = World::new("trusts", Service::new("proxy", PORT), &[&built("event_loop"), "5555", "proxy"]);
    let to = w.pair.addr();
    let mut streams: Vec<_> = (0..4).map(|_| w.peer.enter(|| connect(to)).expect("connected")).collect();
    for round in 0..4 {
        for (i, stream) in streams.iter_mut().enumerate() {
            let line = format!("{round} {i}\n");
            stream.write_all(line.as_bytes()).expect("sent");
            let mut answer = String::new();
            let heard = BufReader::new(&*stream).read_line(&mut answer);
            heard.unwrap_or_else(|e| panic!("round {round}, client {i}: {e}\n{}", w.pair.describe()));
            assert_eq!(answer, line, "client {i}");
        }
        let manager = w.pair.process(1 - w.protected()).expect("it runs").pid();
        // It looks for the other end of a doorbell only.
        let slow = Strace::attach(manager, &["-qq", "-o", "/dev/null", "-e", "inject=getpeername:delay_enter=20000"]);
        w.fail_over(Fault::Switchover);
        w.protected();
        slow.detach();
    }
    drop(streams);
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

/// The same, and replies come in parts.
#[test]
fn an_independent_event_loop_relays_replies_in_parts() {
    let service = Service::new("relay", PORT).port_key("independent", "true");
    let mut w = World::new("relay", service, &[&built("event_loop"), "5555", "relay"]);
    let faults = w.faults(10);
    answered_through(&mut w, &faults, 8, 200, 1000);
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

/// Answers that come in parts, by a timer.
#[test]
fn an_independent_server_goes_on_with_answers_in_parts() {
    let service = Service::new("parts", PORT).port_key("independent", "true");
    let mut w = World::six("parts", service, &[&built("event_loop"), "5555", "parts"]);
    let faults = w.faults(10);
    let to = w.pair.addr();
    through(&mut w, 6, &faults, |clients, mut rng| {
        let mut stream = connect(to)?;
        let mut answers = BufReader::new(stream.try_clone().expect("cloned"));
        while !clients.stop.load(Relaxed) {
            let n = rng.range(1, 100);
            stream.write_all(format!("{n}\n").as_bytes()).map_err(|e| format!("request: {e}"))?;
            for i in 1..=n {
                let mut line = String::new();
                answers.read_line(&mut line).map_err(|e| format!("part {i} of {n}: {e}"))?;
                if line != format!("{i}\n") {
                    return Err(format!("part {i} of {n}: {line:?}"));
                }
            }
            clients.done.fetch_add(1, Relaxed);
            pause(&mut rng, 100);
        }
        Ok(())
    });
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

/// The port is in use when the server binds, and another one when it listens, as while a connection is restored there.
#[test]
fn a_port_that_is_in_use_for_a_moment_is_waited_for() {
    const SERVER: &str = "
import socket, threading, time
def in_use_for_a_moment(taken):
    threading.Timer(0.03, taken.close).start()
taken = socket.socket()
taken.bind(('', 5555))
in_use_for_a_moment(taken)
listener = socket.socket()
listener.bind(('', 5555))
listener.close()
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(('', 5555))
taken = socket.socket()
taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
taken.bind(('', 5555))
taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
in_use_for_a_moment(taken)
listener.listen()
while True:
    client = listener.accept()[0]
    client.sendall(client.recv(100))
";
    let w = World::new("inuse", Service::new("lines", PORT).lines(), &["python3", "-c", SERVER]);
    let master = w.protected();
    let mut talker = crate::hot::Talker::new(&w);
    talker.say("hello");
    assert_eq!(talker.line(), "hello");
    assert_eq!(w.pair.status(master).map(|s| s["program_starts"].to_string()).ok().as_deref(), Some("1"));
}

/// The server closes first and keeps the connection in TIME_WAIT, while its client comes back from the same port.
#[test]
fn a_port_that_was_in_use_a_moment_ago_is_served() {
    let mut w = World::new("once", Service::new("lines", PORT), &[&built("line_server"), "5555", "once"]);
    let faults = w.faults(10);
    let SocketAddr::V4(to) = w.pair.addr() else { panic!("an IPv4 address") };
    let next_port = AtomicU16::new(20_000);
    through(&mut w, 4, &faults, |clients, mut rng| {
        let port = next_port.fetch_add(1, Relaxed);
        for i in 0.. {
            if clients.stop.load(Relaxed) {
                break;
            }
            let at = |what: &str, e: &dyn std::fmt::Display| format!("{what} {i} of port {port}: {e}");
            let mut stream = loop {
                match connect_from(port, to, PATIENCE) {
                    // The last word of the connection before has yet to come.
                    Err(e) if e.kind() == ErrorKind::AddrNotAvailable => pause(&mut rng, 20),
                    other => break other.map_err(|e| at("connection", &e))?,
                }
            };
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            let line = format!("{port} {i} {}\n", "x".repeat(rng.range(1, 2000) as usize));
            stream.write_all(line.as_bytes()).map_err(|e| at("line", &e))?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map_err(|e| at("answer", &e))?;
            if answer != line {
                return Err(at("answer", &format!("{} bytes for {}", answer.len(), line.len())));
            }
            clients.done.fetch_add(1, Relaxed);
            drop(stream);
            pause(&mut rng, 20);
        }
        Ok(())
    });
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}
