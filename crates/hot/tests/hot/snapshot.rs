//! A snapshot in a file: a fresh process goes on from it, and follows the rest of the trace.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;

use crate::program::{
    connect, example, free_port, installed, ngircd, redis, signal, start, start_from, take_snapshot, u64_at, wait_for, Place,
    TRACE,
};

/// Records the program, takes a snapshot in the middle, and has a fresh process go on from that.
fn snapshot_and_follow(name: &str, command: &[String], port: u16, mut client: impl FnMut(usize)) {
    let place = Place::new(name);
    let (trace, snapshot) = (place.file("trace"), place.file("snapshot"));
    let mut leader = start("record", &trace, &place, command);
    drop(connect(port));
    client(0);
    let memory = OpenOptions::new().read(true).write(true).open(&trace).expect("the trace");
    let before = u64_at(&fs::read(&trace).expect("the trace"), 8);
    let mut round = 1;
    take_snapshot(&memory, &snapshot, || {
        client(round);
        round += 1;
    })
    .unwrap_or_else(|why| panic!("{name}: {why}"));
    client(round);
    signal(&leader, "TERM");
    wait_for(&mut leader, "the leader");
    let bytes = u64_at(&fs::read(&trace).expect("the trace"), 8);
    // What was before the snapshot is not there any more.
    memory.write_all_at(&vec![0xff; before as usize], TRACE).expect("written");

    let mut follower = start_from("follow", &trace, Some(&snapshot), &place, command);
    let status = wait_for(&mut follower, "the follower");
    let said = fs::read_to_string(place.file("follow.err")).unwrap_or_default();
    let followed = fs::read(&trace).expect("the trace");
    assert_eq!(u64_at(&followed, 24), bytes, "{name}: the follower has not executed all: {status}: {said}");
    assert!(!said.contains("diverged"), "{name}: {said}");
}

#[test]
fn a_chat_server_goes_on_from_a_snapshot() {
    for how in ["epoll", "poll", "select"] {
        let port = free_port();
        let command = [example("rooms_server"), port.to_string(), how.to_owned()];
        let mut streams = Vec::new();
        snapshot_and_follow(&format!("snapshot-{how}"), &command, port, |round| {
            if streams.is_empty() {
                streams = (0..3).map(|_| connect(port)).collect();
            }
            for stream in &mut streams {
                stream.write_all(format!("say hello {round}\n").as_bytes()).expect("sent");
                stream.write_all(b"token\n").expect("sent");
                assert!(stream.read(&mut [0; 65536]).expect("an answer") > 0);
            }
        });
    }
}

#[test]
fn an_irc_server_goes_on_from_a_snapshot() {
    let port = free_port();
    let place = Place::new("snapshot-ngircd-configuration");
    let command = ngircd(port, &place);
    let mut streams = Vec::new();
    snapshot_and_follow("snapshot-ngircd", &command, port, |round| {
        let until = |stream: &mut std::net::TcpStream, what: &str| {
            let mut text = String::new();
            while !text.contains(what) {
                let mut bytes = [0; 4096];
                let n = stream.read(&mut bytes).expect("an answer");
                assert!(n > 0, "{what}");
                text.push_str(&String::from_utf8_lossy(&bytes[..n]));
            }
        };
        if streams.is_empty() {
            streams = (0..2).map(|_| connect(port)).collect();
            for (i, stream) in streams.iter_mut().enumerate() {
                stream.write_all(format!("NICK u{i}\r\nUSER u{i} 0 * :x\r\n").as_bytes()).expect("sent");
                until(stream, "MOTD");
                stream.write_all(b"JOIN #x\r\n").expect("sent");
                until(stream, "End of NAMES");
            }
        }
        for stream in &mut streams {
            stream.write_all(format!("PING {round}\r\n").as_bytes()).expect("sent");
            until(stream, "PONG");
        }
    });
}

const COROUTINES: &str = r#"
import asyncio, random, sys, time
total = 0
async def serve(reader, writer):
    global total
    while line := await reader.readline():
        total += 1
        await asyncio.sleep(random.random() / 500)
        writer.write(b"%d %f " % (total, time.time()) + line)
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    async with server:
        await server.serve_forever()
asyncio.run(main())
"#;

#[test]
fn coroutines_go_on_from_a_snapshot() {
    let port = free_port();
    let command = [installed("python3"), "-c".to_owned(), COROUTINES.to_owned(), port.to_string()];
    let mut streams = Vec::new();
    snapshot_and_follow("snapshot-asyncio", &command, port, |round| {
        if streams.is_empty() {
            streams = (0..3).map(|_| connect(port)).collect();
        }
        for stream in &mut streams {
            stream.write_all(format!("hello {round}\n").as_bytes()).expect("sent");
            assert!(stream.read(&mut [0; 65536]).expect("an answer") > 0);
        }
    });
}

#[test]
fn redis_with_its_threads_goes_on_from_a_snapshot() {
    let port = free_port();
    let mut streams = Vec::new();
    snapshot_and_follow("snapshot-redis", &redis(port), port, |round| {
        if streams.is_empty() {
            streams = (0..3).map(|_| connect(port)).collect();
        }
        for stream in &mut streams {
            stream
                .write_all(
                    format!("SET key{round} {round}\r\nINCR n\r\nUNLINK key{round}\r\nFLUSHALL ASYNC\r\nTIME\r\n").as_bytes(),
                )
                .expect("sent");
            let mut text = String::new();
            while !text.contains("*2") {
                let mut bytes = [0; 4096];
                let n = stream.read(&mut bytes).expect("an answer");
                text.push_str(&String::from_utf8_lossy(&bytes[..n]));
            }
        }
    });
}

/// A program that serves, and has something of which no snapshot can be made.
fn refused(name: &str, has: &str) -> String {
    let place = Place::new(name);
    let (trace, port) = (place.file("trace"), free_port());
    let program = format!("import os, sys, threading, mmap, time\n{has}\n{COROUTINES}");
    let command = [installed("python3"), "-c".to_owned(), program, port.to_string()];
    let mut leader = start("record", &trace, &place, &command);
    let mut stream = connect(port);
    let mut ask = || {
        stream.write_all(b"hello\n").expect("sent");
        assert!(stream.read(&mut [0; 65536]).expect("an answer") > 0, "{name}");
    };
    ask();
    let memory = OpenOptions::new().read(true).write(true).open(&trace).expect("the trace");
    let why = take_snapshot(&memory, &place.file("snapshot"), &mut ask).expect_err(name);
    // It goes on, and is recorded.
    ask();
    signal(&leader, "TERM");
    wait_for(&mut leader, "the leader");
    let bytes = u64_at(&fs::read(&trace).expect("the trace"), 8);
    let mut follower = start("follow", &trace, &place, &command);
    wait_for(&mut follower, "the follower");
    let said = fs::read_to_string(place.file("follow.err")).unwrap_or_default();
    assert_eq!(u64_at(&fs::read(&trace).expect("the trace"), 24), bytes, "{name}: {said}");
    why
}

#[test]
fn what_cannot_be_kept_is_named_and_the_program_goes_on() {
    let why = refused("snapshot-shared", "memory = mmap.mmap(-1, 4096)");
    assert!(why.contains("shares memory"), "{why}");
    let why = refused("snapshot-deleted", "file = open('deleted', 'w'); os.remove('deleted')");
    assert!(why.contains("descriptor") && why.contains("deleted"), "{why}");
    let why = refused("snapshot-thread", "a, b = os.pipe(); threading.Thread(target=lambda: os.read(a, 1), daemon=True).start()");
    assert!(why.contains("thread 1 waits where no snapshot can be made"), "{why}");
    let why = refused("snapshot-pipe", "a, b = os.pipe(); os.write(b, b'x')");
    assert!(why.contains("pipe") && why.contains("not empty"), "{why}");
}
