//! `durability = "async"`: nothing waits for the replica. What is planned loses nothing; a crash may lose what was said last,
//! and never the connection.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tcpr_lab::client::{ChatClients, ChatOptions};
use tcpr_lab::member::Service;

use crate::requests::{connect, pause, through};
use crate::world::{built, Fault, World, PORT};

fn unwaited(name: &str) -> Service {
    Service::new(name, PORT).set("replication", "durability", "\"async\"")
}

#[test]
fn planned_moves_lose_nothing() {
    let mut w = World::new("async", unwaited("chat").lines(), &[&built("plain_chat_server"), "5555"]);
    let clients = ChatClients::start(&w.peer, w.pair.addr(), &ChatOptions::new(6, w.rng.next_u64())).expect("clients");
    let faults: Vec<Fault> = (0..10).map(|i| if i % 2 == 0 { Fault::Switchover } else { Fault::KillServer }).collect();
    w.survive(&clients, &faults);
    w.end(clients);
}

/// Clients with one line each under way. A lost line is never answered, or its answer is lost; what comes is a line that
/// was said, whole, and no later line is missed for it.
#[test]
fn a_crash_loses_the_last_words_and_no_connection() {
    let mut w = World::new("lossy", unwaited("lines"), &[&built("line_server"), "5555", "keep"]);
    let faults: Vec<Fault> = (0..10).map(|i| [Fault::KillAll, Fault::Cut, Fault::Freeze][i % 3]).collect();
    let to = w.pair.addr();
    let lost = AtomicU64::new(0);
    through(&mut w, 4, &faults, |clients, mut rng| {
        let stream = connect(to)?;
        stream.set_read_timeout(Some(Duration::from_secs(8))).expect("a timeout");
        let port = stream.local_addr().map_or(0, |a| a.port());
        let mut answers = BufReader::new(stream.try_clone().expect("cloned"));
        let mut said = HashSet::new();
        for i in 0.. {
            if clients.stop.load(Relaxed) {
                return Ok(());
            }
            let line = format!("{port} {i} {}\n", "x".repeat(rng.range(1, 1000) as usize));
            (&stream).write_all(line.as_bytes()).map_err(|e| format!("line {i} of port {port}: {e}"))?;
            said.insert(line.clone());
            loop {
                let mut answer = String::new();
                match answers.read_line(&mut answer) {
                    Ok(0) => return Err(format!("port {port}: the connection has ended after line {i}")),
                    Ok(_) if answer == line => break,
                    // Of a line before, given up: late, or twice.
                    Ok(_) if said.contains(&answer) => {}
                    Ok(n) => return Err(format!("port {port}: {n} bytes that nobody has said after line {i}: {answer:.40}")),
                    Err(e) if answer.is_empty() && matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                        lost.fetch_add(1, Relaxed);
                        eprintln!("line {i} of port {port} has no answer");
                        break;
                    }
                    Err(e) => return Err(format!("port {port}: {} bytes of an answer to line {i}, then {e}", answer.len())),
                }
            }
            clients.done.fetch_add(1, Relaxed);
            pause(&mut rng, 5);
        }
        Ok(())
    });
    eprintln!("{} lines were lost", lost.load(Relaxed));
}
