//! The ways in which servers are built: threads and processes that share their connections, stdio, commands.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use tcpr_lab::client::connect_from;
use tcpr_lab::member::Service;

use crate::requests::{connect, pause, through};
use crate::world::{built, Fault, World, PATIENCE, PORT};

pub fn lines_are_answered(way: &str, new: New) {
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
