//! When input is done: messages by their length, input that is never answered, too much of it, and what a server says
//! before it is asked.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::Ordering::Relaxed;

use tcpr_lab::member::Service;

use crate::ipv6::{Over, V4, V6};
use crate::requests::{connect, pause, through};
use crate::world::{built, Fault, World, PATIENCE, PORT};

/// Messages with their length in front, split and pipelined at random, each answered once.
#[test]
fn messages_by_length_are_answered_once() {
    let framing = r#"{ length_at = 0, length_bytes = 2, byte_order = "big", counts = "rest" }"#;
    let service = Service::new("frames", PORT).port_key("framing", framing);
    let mut w = World::six("frames", service, &[&built("line_server"), "5555", "frames"]);
    let faults = w.faults(10);
    let to = w.pair.addr();
    through(&mut w, 4, &faults, |clients, mut rng| {
        let mut stream = connect(to)?;
        let port = stream.local_addr().map_or(0, |a| a.port());
        let mut count = 0u32;
        while !clients.stop.load(Relaxed) {
            let mut said = Vec::new();
            for _ in 0..rng.range(1, 20) {
                let most = if rng.chance(5) { 5000 } else { 60 };
                let body: Vec<u8> = (0..rng.range(0, most)).map(|i| (i as u32 ^ count) as u8).collect();
                let length = body.len() as u16 + 6;
                said.extend_from_slice(&length.to_be_bytes());
                said.extend_from_slice(&port.to_be_bytes());
                said.extend_from_slice(&count.to_be_bytes());
                said.extend_from_slice(&body);
                count += 1;
            }
            let at = |what: &str, e: &dyn std::fmt::Display| format!("{what} before message {count}, port {port}: {e}");
            for part in said.chunks(rng.range(1, 4000) as usize) {
                stream.write_all(part).map_err(|e| at("sending", &e))?;
                pause(&mut rng, 10);
            }
            let mut got = vec![0; said.len()];
            stream.read_exact(&mut got).map_err(|e| at("the answers", &e))?;
            if let Some(wrong) = got.iter().zip(&said).position(|(a, b)| a != b) {
                return Err(at("the answers", &format!("byte {wrong} of {} is wrong", said.len())));
            }
            clients.done.fetch_add(1, Relaxed);
        }
        Ok(())
    });
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

/// A server that speaks first has said it: the one that takes over says it again, and nobody hears it.
#[test]
fn a_greeting_is_heard_once() {
    let service = Service::new("greet", PORT).port_key("greeting", "\"absorb\"");
    let mut w = World::six("greet", service, &[&built("line_server"), "5555", "greet"]);
    let faults = w.faults(10);
    let to = w.pair.addr();
    through(&mut w, 4, &faults, |clients, mut rng| {
        while !clients.stop.load(Relaxed) {
            let mut stream = connect(to)?;
            let mut answers = BufReader::new(stream.try_clone().expect("cloned"));
            let mut expected = "hello\n".to_owned();
            for i in 0..rng.range(0, 200) {
                let mut got = String::new();
                answers.read_line(&mut got).map_err(|e| format!("line {i}: {e}"))?;
                if got != expected {
                    return Err(format!("{got:?}, not {expected:?}"));
                }
                if clients.stop.load(Relaxed) {
                    break;
                }
                clients.done.fetch_add(1, Relaxed);
                pause(&mut rng, 10);
                expected = format!("line {i}\n");
                stream.write_all(expected.as_bytes()).map_err(|e| format!("line {i}: {e}"))?;
            }
        }
        Ok(())
    });
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

fn client(w: &World) -> TcpStream {
    let to = w.pair.addr();
    w.peer.enter(|| connect(to)).expect("connect")
}

/// Ends the stream and reads how many bytes came, and their hash.
fn told(mut stream: &TcpStream) -> (usize, u64) {
    stream.shutdown(Shutdown::Write).expect("shutdown");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (count, hash) = answer.trim_end().split_once(' ').unwrap_or_else(|| panic!("{answer:?}"));
    (count.parse().expect("a count"), u64::from_str_radix(hash, 16).expect("a hash"))
}

/// By default, what was not answered is read again; past a bound it is too much, and the session is torn.
#[test]
fn unanswered_input_is_read_again_up_to_a_bound() {
    unanswered_is_read_again(&V4);
}

#[test]
fn unanswered_input_over_ipv6_is_read_again() {
    unanswered_is_read_again(&V6);
}

fn unanswered_is_read_again(over: &Over) {
    let service = Service::new("sink", PORT).port_key("max_unanswered_bytes", "65536");
    let mut w = (over.new)("sink", service, &[&built("line_server"), "5555", "sink"]);
    for fault in w.faults(over.failovers) {
        let (mut small, mut large) = (client(&w), client(&w));
        let bytes: Vec<u8> = (0..200_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
        small.write_all(&bytes[..30_000]).expect("sent");
        large.write_all(&bytes).expect("sent");
        tcpr_lab::wait_until(PATIENCE, "the large one is torn", || torn_sessions(&w) == 1);
        w.fail_over(fault);
        small.write_all(&bytes[30_000..60_000]).expect("sent");
        assert_eq!(told(&small), (60_000, fnv1a(&bytes[..60_000])), "{fault:?}");
        let ended = large.read(&mut [0; 10]).expect_err("reset");
        assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset, "{fault:?}");
        eprintln!("{fault:?}");
    }
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

/// How many sessions of the master are torn.
fn torn_sessions(w: &World) -> usize {
    let out = w.pair.tcpr(w.protected(), &["sessions", "--json"]).expect("sessions");
    let sessions: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    sessions["sessions"].as_array().expect("a list").iter().filter(|s| s["torn"] == true).count()
}

/// With `unanswered = "discard"`, what was read before a failover is not read again, and nothing else is missing.
#[test]
fn discarded_input_is_read_once() {
    let service = Service::new("discard", PORT).unanswered("discard").port_key("max_unanswered_bytes", "65536");
    let mut w = World::six("discard", service, &[&built("line_server"), "5555", "sink"]);
    for fault in [Fault::KillServer, Fault::Switchover, Fault::Cut, Fault::KillAll] {
        let mut stream = client(&w);
        let bytes: Vec<u8> = (0..300_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
        stream.write_all(&bytes[..200_000]).expect("sent");
        w.fail_over(fault);
        stream.write_all(&bytes[200_000..]).expect("sent");
        let (count, hash) = told(&stream);
        assert!((100_000..=300_000).contains(&count), "{fault:?}: {count} bytes");
        assert_eq!(hash, fnv1a(&bytes[300_000 - count..]), "{fault:?}");
        eprintln!("{fault:?}: {count} bytes after it");
    }
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

/// A line of more than a session may keep tears it; answered and at rest, it is as good as any.
#[test]
fn a_session_that_had_too_much_is_protected_again_at_rest() {
    let program = "import socket, threading\n\
        listener = socket.create_server(('', 5555))\n\
        def serve(c):\n    for line in c.makefile('rb'): c.sendall(b'%d\\n' % len(line))\n\
        while True: threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()\n";
    let mut w = World::new("torn", Service::new("lines", PORT), &["python3", "-c", program]);
    let (to, peer) = (w.pair.addr(), w.peer.clone());
    let stream = peer.enter(|| connect(to)).expect("connected");
    let mut answers = BufReader::new(stream.try_clone().expect("cloned"));
    let mut answered = |length: usize| {
        (&stream).write_all(b"\n").expect("asked");
        let mut answer = String::new();
        answers.read_line(&mut answer).expect("answered");
        assert_eq!(answer, format!("{}\n", length + 1));
    };
    for (n, fault) in [Fault::KillServer, Fault::Switchover, Fault::Cut].into_iter().enumerate() {
        const LONG: usize = 6 << 20;
        (&stream).write_all(&vec![b'x'; LONG]).expect("sent");
        tcpr_lab::wait_until(PATIENCE, "it is torn", || torn_sessions(&w) == 1);
        answered(LONG);
        tcpr_lab::wait_until(PATIENCE, "it is protected again", || torn_sessions(&w) == 0);
        (&stream).write_all(&vec![b'x'; n]).expect("sent");
        w.fail_over(fault);
        w.protected();
        answered(n);
    }
    w.no_reset();
}

/// What was spliced from a connection is done: an upload is not given again from its beginning.
#[test]
fn an_upload_by_splice_goes_on_where_it_was() {
    upload("upload", &[]);
}

/// By system calls that no library sees: then the kernel is asked how far it was read.
#[test]
fn an_upload_around_the_hooks_goes_on_where_it_was() {
    upload("around", &["raw"]);
}

fn upload(label: &str, how: &[&str]) {
    const ALL: usize = 64 << 20;
    /// What the program may have put away and is given again: what a session may keep (4 MiB), what its socket held when the
    /// log ended (at most [`SOCKET`]), and what it read since the kernel was asked last.
    const AGAIN: usize = 12 << 20;
    /// Room of a socket, for old kernels and new ones (from 32 MiB on) alike.
    const SOCKET: &str = "4096 131072 6291456";
    let directory = std::env::temp_dir().join(format!("tcpr-{label}-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    let path = directory.display().to_string();
    let service = Service::new("upload", PORT).unanswered("discard");
    let program = built("splice_server");
    let mut w = World::new(label, service, &[&[&program[..], "5555", "::", &path], how].concat());
    for member in 0..2 {
        let limited = w.pair.host(member).enter(|| fs::write("/proc/sys/net/ipv4/tcp_rmem", SOCKET));
        limited.expect("the room of sockets is set");
    }
    let (to, peer) = (w.pair.addr(), w.peer.clone());
    for fault in [Fault::Switchover, Fault::KillServer] {
        let mut stream = peer.enter(|| connect(to)).expect("connected");
        let port = stream.local_addr().expect("an address").port();
        let bytes: Vec<u8> = (0..ALL).map(|i| (i / 4096 * 7 + i) as u8).collect();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let bytes = &bytes;
            scope.spawn(move || {
                stream.write_all(&bytes[..ALL / 2]).expect("the first half");
                told.recv_timeout(PATIENCE * 2).expect("it is over");
                stream.write_all(&bytes[ALL / 2..]).expect("the rest");
                stream.shutdown(Shutdown::Write).expect("its end");
                let mut answer = String::new();
                stream.read_to_string(&mut answer).expect("an answer");
                assert!(answer.trim().parse::<usize>().is_ok(), "{answer}");
            });
            // More than may be given again.
            let put = || fs::metadata(directory.join(port.to_string())).map_or(0, |file| file.len());
            tcpr_lab::wait_until(PATIENCE, "the upload is under way", || put() > AGAIN as u64 + (4 << 20));
            w.fail_over(fault);
            w.protected();
            tell.send(()).expect("heard");
        });
        let put = fs::read(directory.join(port.to_string())).expect("what was put away");
        eprintln!("{label}, {fault:?}: {} KiB given again", put.len().saturating_sub(ALL) / 1024);
        assert!(put.len() >= ALL && put.len() <= ALL + AGAIN, "{fault:?}: {} bytes for {ALL}", put.len());
        assert!(
            put[put.len() - ALL / 4..] == bytes[ALL - ALL / 4..] && put[..ALL / 8] == bytes[..ALL / 8],
            "{fault:?}: other bytes"
        );
    }
    let _ = fs::remove_dir_all(&directory);
    w.no_reset();
}

/// What is read around the hooks and not answered has the same bound as all else, and past it the session is torn.
#[test]
fn what_is_read_around_the_hooks_is_bounded() {
    let directory = std::env::temp_dir().join(format!("tcpr-bounded-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    let path = directory.display().to_string();
    let w = World::new("bounded", Service::new("upload", PORT), &[&built("splice_server"), "5555", "::", &path, "raw"]);
    let (to, peer) = (w.pair.addr(), w.peer.clone());
    let mut stream = peer.enter(|| connect(to)).expect("connected");
    stream.write_all(&vec![7; 16 << 20]).expect("sent");
    tcpr_lab::wait_until(PATIENCE, "it is torn", || torn_sessions(&w) == 1);
    stream.shutdown(Shutdown::Write).expect("its end");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert_eq!(answer.trim(), (16 << 20).to_string());
    let _ = fs::remove_dir_all(&directory);
}
