//! A trace in a file: each call, its arguments and every byte of output must be what they were.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::program::{
    connect, example, free_port, installed, library, ngircd, redis, signal, start, start_with, u64_at, wait_for, words, Place,
    MOST_BYTES,
};

/// Records the program while the client works, ends it, and has it follow. Returns what the follower said on standard error.
fn record_and_follow(name: &str, command: &[String], port: u16, client: impl FnOnce(u16)) {
    let place = Place::new(name);
    let trace = place.file("trace");
    let mut leader = start("record", &trace, &place, command);
    // Not before it listens: its own connection would be in the trace, which does no harm.
    drop(connect(port));
    client(port);
    signal(&leader, "TERM");
    wait_for(&mut leader, "the leader");
    let recorded = fs::read(&trace).expect("the trace");
    let (bytes, records) = (u64_at(&recorded, 8), u64_at(&recorded, 32));
    assert!(records > 40, "{name}: only {records} records");
    assert!(bytes < MOST_BYTES, "{name}: {bytes} bytes for {records} records");

    let mut follower = start("follow", &trace, &place, command);
    let status = wait_for(&mut follower, "the follower");
    let said = fs::read_to_string(place.file("follow.err")).unwrap_or_default();
    let followed = fs::read(&trace).expect("the trace");
    assert_eq!(u64_at(&followed, 24), bytes, "{name}: the follower has not executed all: {said}");
    assert!(!said.contains("diverged"), "{name}: {said}");
    // By the exit of the program, or where the trace of a program that was killed ends.
    let recorded_exit = !said.contains("the trace ends here");
    assert!(status.success() || recorded_exit && status.code() != Some(97), "{name}: {status}: {said}");
}

/// Clients that send lines and read what comes, which is something for each.
fn talk(port: u16, clients: usize, lines: usize) {
    let mut streams: Vec<TcpStream> = (0..clients).map(|_| connect(port)).collect();
    let mut buffer = [0; 65536];
    for k in 0..lines {
        for (i, stream) in streams.iter_mut().enumerate() {
            stream.write_all(format!("hello {k} from {i}\n").as_bytes()).expect("a line is sent");
        }
        for stream in &mut streams {
            assert!(stream.read(&mut buffer).expect("an answer") > 0);
        }
    }
}

#[test]
fn a_chat_server_with_epoll() {
    let port = free_port();
    let command = [example("plain_chat_server"), port.to_string()];
    record_and_follow("chat", &command, port, |port| talk(port, 5, 40));
}

#[test]
fn an_event_loop_with_a_timer() {
    let port = free_port();
    let command = [example("event_loop"), port.to_string(), "parts".to_owned()];
    record_and_follow("event-loop", &command, port, |port| {
        let mut stream = connect(port);
        stream.write_all(b"7\n3\n").expect("lines are sent");
        assert!(stream.read(&mut [0; 4096]).expect("an answer") > 0);
        std::thread::sleep(Duration::from_millis(200));
    });
}

#[test]
fn threads_with_a_queue_and_threads_for_each_connection() {
    for way in ["pool", "spawn"] {
        let port = free_port();
        let command = [example("line_server"), port.to_string(), way.to_owned()];
        record_and_follow(&format!("line-server-{way}"), &command, port, |port| talk(port, 4, 60));
    }
}

const ASYNCIO: &str = r#"
import asyncio, random, sys, time
clients = {}
async def serve(reader, writer):
    name = random.randrange(10**9)
    clients[name] = writer
    while line := await reader.readline():
        await asyncio.sleep(random.random() / 500)
        for other in list(clients.values()):
            other.write(b"%d %f: " % (name, time.time()) + line)
    del clients[name]
    writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    async with server:
        await server.serve_forever()
asyncio.run(main())
"#;

#[test]
fn coroutines_with_timers_and_random_numbers() {
    let port = free_port();
    let command = [installed("python3"), "-c".to_owned(), ASYNCIO.to_owned(), port.to_string()];
    record_and_follow("asyncio", &command, port, |port| talk(port, 4, 30));
}

#[test]
fn redis_with_its_threads() {
    let port = free_port();
    let command = redis(port);
    record_and_follow("redis", &command, port, |port| {
        let mut stream = connect(port);
        let mut answers = BufReader::new(stream.try_clone().expect("a second handle"));
        let mut ask = |line: &str| {
            stream.write_all(format!("{line}\r\n").as_bytes()).expect("a command is sent");
            let mut answer = String::new();
            answers.read_line(&mut answer).expect("an answer");
            if let Some(n) = answer.strip_prefix('$').and_then(|n| n.trim().parse::<usize>().ok()) {
                answers.read_exact(&mut vec![0; n + 2]).expect("the rest of the answer");
            }
            assert!(!answer.is_empty() && !answer.starts_with('-'), "{line}: {answer}");
        };
        for k in 0..300 {
            ask(&format!("SET key{k} {k} EX 100"));
            ask(&format!("SADD set {k}"));
            ask(&format!("GET key{}", k / 2));
            ask("INFO");
        }
        for _ in 0..100 {
            ask("SPOP set");
            ask("RANDOMKEY");
            ask("ACL GENPASS");
        }
        ask("UNLINK set");
        ask("FLUSHALL ASYNC");
    });
}

#[test]
fn memcached_with_its_threads() {
    let port = free_port();
    let mut command = words(&format!("{} -p {port} -l 127.0.0.1 -U 0", installed("memcached")));
    command.extend(words("-u nobody"));
    record_and_follow("memcached", &command, port, |port| {
        let mut streams: Vec<TcpStream> = (0..8).map(|_| connect(port)).collect();
        for k in 0..100 {
            for stream in &mut streams {
                stream
                    .write_all(format!("set k{k} 0 0 5\r\nhello\r\nget k{k}\r\nincr n 1\r\nversion\r\n").as_bytes())
                    .expect("sent");
            }
            for stream in &streams {
                let mut lines = BufReader::new(stream).lines();
                while !lines.next().expect("an answer").expect("an answer").starts_with("VERSION") {}
            }
        }
    });
}

#[test]
fn an_irc_server() {
    let port = free_port();
    let place = Place::new("ngircd-configuration");
    record_and_follow("ngircd", &ngircd(port, &place), port, |port| {
        let mut streams: Vec<TcpStream> = (0..3).map(|_| connect(port)).collect();
        let until = |stream: &TcpStream, what: &str| {
            let mut lines = BufReader::new(stream).lines();
            while !lines.next().expect("a line").expect("a line").contains(what) {}
        };
        // It answers each client's commands slowly, against floods.
        let mut round = |line: &dyn Fn(usize) -> String, what: &str| {
            for (i, stream) in streams.iter_mut().enumerate() {
                stream.write_all(line(i).as_bytes()).expect("sent");
            }
            streams.iter().for_each(|stream| until(stream, what));
        };
        round(&|i| format!("NICK u{i}\r\nUSER u{i} 0 * :x\r\n"), "MOTD");
        round(&|_| "JOIN #x\r\n".to_owned(), "End of NAMES");
        round(&|i| format!("PRIVMSG #x :hello from {i}\r\nPING {i}\r\n"), "PONG");
    });
}

#[test]
fn what_the_program_does_otherwise_is_found() {
    let place = Place::new("diverges");
    let trace = place.file("trace");
    let script = place.file("script.py");
    let text = |word: &str| {
        format!("import socket\na, b = socket.socketpair()\na.send(b'{word}')\nprint(b.recv(99))\nprint(open('/dev/urandom', 'rb').read(4))\n")
    };
    let command = [installed("python3"), script.to_str().expect("UTF-8").to_owned()];
    fs::write(&script, text("one")).expect("a script");
    let mut leader = start("record", &trace, &place, &command);
    assert!(wait_for(&mut leader, "the leader").success());
    // The same, and the output is the same.
    let mut follower = start("follow", &trace, &place, &command);
    assert!(wait_for(&mut follower, "the follower").success());
    let output = |mode| fs::read(place.file(&format!("{mode}.out"))).expect("the output");
    assert_eq!(output("record"), output("follow"));
    // Another word of the same length.
    fs::write(&script, text("two")).expect("a script");
    let mut follower = start("follow", &trace, &place, &command);
    assert_eq!(wait_for(&mut follower, "the follower").code(), Some(97));
    let said = fs::read_to_string(place.file("follow.err")).expect("what it said");
    assert!(said.contains("the program writes other bytes: \"two\""), "{said}");
}

#[test]
fn a_program_goes_on_when_the_trace_is_full() {
    let port = free_port();
    let place = Place::new("full");
    let trace = place.file("trace");
    let command = [example("plain_chat_server"), port.to_string()];
    let environment = [
        format!("LD_PRELOAD={}", library().display()),
        format!("TCPR_HOT_FILE={}", trace.display()),
        "TCPR_HOT_MODE=record".to_owned(),
        "TCPR_HOT_LIMIT=4096".to_owned(),
    ];
    let mut leader = start_with(&environment, "record", &place, &command);
    talk(port, 4, 300);
    signal(&leader, "TERM");
    wait_for(&mut leader, "the leader");
    let recorded = fs::read(&trace).expect("the trace");
    let (head, state) = (u64_at(&recorded, 8), u64_at(&recorded, 40) as u32);
    const FULL: u32 = 6;
    assert_eq!((state, &recorded[64..95]), (FULL, &b"the trace has reached its limit"[..]));
    assert!((3500..=4096).contains(&head), "{head}");
}

/// A handler of a signal sets a flag, and the loop ends: while it waits, while it works, and in a call that blocks.
const SIGNALS: &str = r#"
import os, select, signal, socket, sys
said = []
signal.signal(signal.SIGUSR1, lambda *_: said.append("one"))
signal.signal(signal.SIGALRM, lambda *_: said.append("alarm"))
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while said.count("alarm") < 20:
    select.select([listener], [], [], 0.003)
os.kill(os.getpid(), signal.SIGUSR1)
select.select([], [], [], 0.02)
connection, _ = listener.accept()
while line := connection.recv(100):
    connection.sendall(f"{said}\n".encode())
signal.raise_signal(signal.SIGUSR1)
signal.setitimer(signal.ITIMER_REAL, 0)
connection.close()
print(said)
"#;

#[test]
fn handlers_of_signals_run_where_they_ran() {
    let port = free_port();
    let command = [installed("python3"), "-c".to_owned(), SIGNALS.to_owned(), port.to_string()];
    let place = Place::new("signals");
    let trace = place.file("trace");
    let mut leader = start("record", &trace, &place, &command);
    let mut stream = connect(port);
    for _ in 0..10 {
        stream.write_all(b"x\n").expect("sent");
        assert!(stream.read(&mut [0; 65536]).expect("an answer") > 0);
        std::thread::sleep(Duration::from_millis(15));
    }
    drop(stream);
    assert!(wait_for(&mut leader, "the leader").success());
    let mut follower = start("follow", &trace, &place, &command);
    let status = wait_for(&mut follower, "the follower");
    let output = |name: &str| fs::read_to_string(place.file(name)).expect("the output");
    assert!(status.success(), "{status}: {}", output("follow.err"));
    assert_eq!(output("record.out"), output("follow.out"));
    assert!(output("record.out").matches("alarm").count() > 25, "{}", output("record.out"));
    assert_eq!(output("record.out").matches("one").count(), 2);
}

/// The first thread only waits for another one. Its handler runs all the same, and ends the program.
const JOINING: &str = r#"
import ctypes, os, signal, socket, sys, threading
listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))
libc = ctypes.CDLL(None)
def serve():
    while True:
        stream = listener.accept()[0]
        while line := stream.recv(1000):
            stream.sendall(line)
HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
handler = HANDLER(lambda signal: (os.write(1, b'told to end\n'), os._exit(0)))
libc.signal(signal.SIGTERM, handler)
thread = threading.Thread(target=serve)
thread.start()
libc.pthread_join.argtypes = [ctypes.c_ulong, ctypes.c_void_p]
libc.pthread_join(thread.ident, None)
"#;

#[test]
fn a_handler_runs_while_the_first_thread_waits_for_another() {
    let port = free_port();
    let command = [installed("python3"), "-c".to_owned(), JOINING.to_owned(), port.to_string()];
    let place = Place::new("joining");
    let trace = place.file("trace");
    let mut leader = start("record", &trace, &place, &command);
    let mut stream = connect(port);
    stream.write_all(b"x\n").expect("sent");
    assert_eq!(stream.read(&mut [0; 10]).expect("an answer"), 2);
    // The first thread has had time to wait.
    std::thread::sleep(Duration::from_millis(100));
    signal(&leader, "TERM");
    assert!(wait_for(&mut leader, "the leader").success());
    let status = wait_for(&mut start("follow", &trace, &place, &command), "the follower");
    let output = |name: &str| fs::read_to_string(place.file(name)).expect("the output");
    assert!(status.success(), "{status}: {}", output("follow.err"));
    assert_eq!(output("record.out"), "told to end\n");
    assert_eq!(output("follow.out"), "told to end\n");
}

#[test]
fn members_that_are_not_alike_are_told_so_before_anything_is_executed() {
    let place = Place::new("alike");
    let (trace, server, settings) = (place.file("trace"), place.file("server"), place.file("settings"));
    fs::copy(example("plain_chat_server"), &server).expect("a copy");
    fs::write(&settings, "colour = red\n").expect("a file");
    let program = server.to_str().expect("a name").to_owned();
    let port = free_port().to_string();
    let run = |mode: &str, command: &[&str], more: &[String]| {
        let command: Vec<String> = [&program].into_iter().cloned().chain(command.iter().map(ToString::to_string)).collect();
        let mut environment = vec![
            format!("LD_PRELOAD={}", library().display()),
            format!("TCPR_HOT_FILE={}", trace.display()),
            format!("TCPR_HOT_MODE={mode}"),
            format!("TCPR_HOT_LIMIT={}", 2 * MOST_BYTES),
            format!("TCPR_STANDBY_FILES={}\n/nonexistent", settings.display()),
        ];
        environment.extend_from_slice(more);
        start_with(&environment, mode, &place, &command)
    };
    let says = |command: &[&str], more: &[String], words: &[&str]| {
        let status = wait_for(&mut run("follow", command, more), "the follower");
        let said = fs::read_to_string(place.file("follow.err")).expect("its words");
        match words {
            [] => assert!(!said.contains("diverged"), "{said}"),
            words => {
                assert_eq!(status.code(), Some(97), "{said}");
                let words = words.iter().chain(&["diverged: the members are not alike"]);
                words.for_each(|word| assert!(said.contains(word), "{word}: {said}"));
            }
        }
    };
    let mut leader = run("record", &[&port], &["A=1".to_owned(), "PASSWORD=secret".to_owned()]);
    drop(connect(port.parse().expect("a number")));
    signal(&leader, "TERM");
    wait_for(&mut leader, "the leader");

    let variables = ["PASSWORD=secret", "INVOCATION_ID=5", "A=1"].map(str::to_owned);
    says(&[&port], &variables, &[]);
    says(&[&port, "more"], &variables, &["this member has argument 2, and the leader has not"]);
    says(&["1"], &variables, &["argument 1", &format!("\"{port}\" for the leader, \"1\" here")]);
    says(&[&port], &["A=1".to_owned()], &["the leader has environment variable PASSWORD, and this member has not"]);
    let other = ["PASSWORD=other".to_owned(), "A=2".to_owned()];
    says(&[&port], &other, &["environment variable A is not the same on both; and 1 more"]);
    says(&[&port], &[variables.to_vec(), vec!["B=".to_owned()]].concat(), &["this member has environment variable B"]);
    fs::write(&settings, "colour = blue\n").expect("a file");
    says(&[&port], &variables, &["file", "settings", "\"13 bytes\" for the leader, \"14 bytes\" here"]);
    fs::write(&settings, "colour = red\n").expect("a file");
    let mut bytes = fs::read(&server).expect("the program");
    let copy = place.file("copy");
    bytes.push(0);
    fs::write(&copy, bytes).expect("another program");
    fs::set_permissions(&copy, fs::metadata(&server).expect("a file").permissions()).expect("the same rights");
    fs::rename(&copy, &server).expect("in its place");
    says(&[&port], &variables, &["program", "server is not the same on both"]);
}
