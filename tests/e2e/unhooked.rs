//! Programs that no library can enter: static, with system calls of their own, written in Go. Nothing tells what they do
//! but their packets (docs/guarantees.md says what can be promised then).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering::Relaxed;

use tcpr_lab::member::{Hosted, Service};
use tcpr_lab::SegFilter;

use crate::local::Alone;
use crate::requests::{connect, pause, through};
use crate::servers::answered_through;
use crate::world::{built, Fault, World, FOUR, PATIENCE, PORT};

fn unhooked(label: &str, program: &[&str]) -> World {
    World::with(label, Service::new("lines", PORT), program, Hosted::ByRunUnhooked, FOUR)
}

fn short_lines_are_answered(mut w: World) {
    let faults = w.faults(10);
    answered_through(&mut w, &faults, 4, 200, 1000);
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

/// A request is one segment, and so is its answer: nothing is lost or doubled, whatever fails.
#[test]
fn a_static_server_answers() {
    short_lines_are_answered(unhooked("static", &[&built("static_line_server"), "5555", "keep"]));
}

#[test]
fn a_server_with_its_own_system_calls_answers() {
    short_lines_are_answered(unhooked("raw", &[&built("raw_server"), "5555"]));
}

/// Connections that rest while their server moves lose nothing, whatever they have said before.
#[test]
fn idle_connections_are_handed_over_whole() {
    let mut w = unhooked("idle", &[&built("static_line_server"), "5555", "keep"]);
    let to = w.pair.addr();
    let mut streams: Vec<TcpStream> = (0..8).map(|_| w.peer.enter(|| connect(to)).expect("connected")).collect();
    for round in 0..10 {
        for (i, stream) in streams.iter_mut().enumerate() {
            let line = format!("{round} {i} {}\n", "x".repeat(w.rng.range(1, 50_000) as usize));
            stream.write_all(line.as_bytes()).expect("sent");
            let mut answer = String::new();
            BufReader::new(&*stream).read_line(&mut answer).expect("an answer");
            assert!(answer == line, "round {round}: {} bytes for {}", answer.len(), line.len());
        }
        w.fail_over(Fault::Switchover);
    }
    w.capture.complete().expect("a whole capture");
    w.capture.no_fin_rst(&SegFilter::port(PORT)).expect("no FIN and no RST on the wire");
}

/// No partner at all: killed, and replaced by `tcpr restart`, while requests are under way.
#[test]
fn a_server_with_its_own_system_calls_comes_back_to_its_connections() {
    let program = [&built("raw_server")[..], "5555"];
    let mut a = Alone::hosted("salone", Service::new("lines", PORT), &program, false, Hosted::ByRunUnhooked);
    let to = a.pair.addr();
    let mut streams: Vec<TcpStream> = (0..4).map(|_| a.peer.enter(|| connect(to)).expect("connected")).collect();
    for round in 0..10 {
        let lines: Vec<String> =
            (0..streams.len()).map(|i| format!("{round} {i} {}\n", "x".repeat(a.rng.range(1, 1000) as usize))).collect();
        for (stream, line) in streams.iter_mut().zip(&lines) {
            pause(&mut a.rng, 3);
            stream.write_all(line.as_bytes()).expect("sent");
        }
        if round % 2 == 0 {
            a.pair.kill_program(0).expect("killed");
        } else {
            let out = a.pair.tcpr(0, &["restart"]).expect("runs");
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
        for (stream, line) in streams.iter().zip(&lines) {
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer).expect("an answer");
            assert!(answer == *line, "round {round}: {answer:.20} for {line:.20}\n{}", a.pair.describe());
        }
    }
    drop(streams);
    tcpr_lab::wait_until(PATIENCE, "no record is left", || a.pair.status(0).is_ok_and(|s| s["sessions"] == 0));
}

/// A web server from Debian that is written in Go: connections that are kept serve the next request. (Its answers are one
/// segment each; it writes files in several, and a crash between two would cut one.)
#[test]
fn a_server_in_go_goes_on() {
    let dir = std::env::temp_dir().join(format!("tcpr-caddy-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let body: String = (0..200).map(|i| format!("{i:04}")).collect();
    let config = dir.join("Caddyfile");
    let text = format!("{{\n admin off\n auto_https off\n}}\nhttp://:5555 {{\n respond \"{body}\"\n}}\n");
    std::fs::write(&config, text).expect("written");
    let config = config.display().to_string();
    let mut w = unhooked("go", &["caddy", "run", "--adapter", "caddyfile", "--config", &config]);
    let faults = w.faults(10);
    let to = w.pair.addr();
    through(&mut w, 4, &faults, |clients, mut rng| {
        let stream = connect(to)?;
        let mut answers = BufReader::new(stream.try_clone().expect("cloned"));
        while !clients.stop.load(Relaxed) {
            (&stream).write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").map_err(|e| format!("request: {e}"))?;
            let mut length = None;
            loop {
                let mut line = String::new();
                answers.read_line(&mut line).map_err(|e| format!("answer: {e}"))?;
                match line.trim_end() {
                    "" if line.is_empty() => return Err("the connection has ended".to_owned()),
                    "" => break,
                    other => {
                        if let Some(n) = other.to_ascii_lowercase().strip_prefix("content-length: ") {
                            length = n.parse().ok();
                        }
                    }
                }
            }
            let mut got = vec![0; length.ok_or("no length")?];
            answers.read_exact(&mut got).map_err(|e| format!("body: {e}"))?;
            if got != body.as_bytes() {
                return Err(format!("another body, of {} bytes", got.len()));
            }
            clients.done.fetch_add(1, Relaxed);
            pause(&mut rng, 20);
        }
        Ok(())
    });
    std::fs::remove_dir_all(&dir).expect("removed");
}
