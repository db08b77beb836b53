//! A program behind another one takes over its connections, with all its state. `partner.c` stands for libtcpr and the
//! manager; sockets come from the leader's process, which is stopped.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use tcpr_session::trace::memory::VERSION;

use crate::program::{
    connect, example, free_port, installed, library, ngircd, redis, signal, start_with, take_snapshot, words, Place, PATIENCE,
    TRACE,
};

// As in `tcpr_session::trace::memory`.
const HEAD: u64 = 8;
const MODE: u64 = 16;
const EXECUTED: u64 = 24;
const STATE: u64 = 40;
const LIMIT: u64 = 48;
const KEPT: u64 = 1024;
const LIMIT_BYTES: u64 = 16 << 20;

const RECORD: u32 = 1;
const FOLLOW: u32 = 2;
const PROMOTE: u32 = 3;
const RECORDING: u32 = 1;
const FOLLOWING: u32 = 2;
const LIVE: u32 = 4;

/// A leader, and a follower behind it.
struct Standby {
    place: Place,
    command: Vec<String>,
    memory: File,
    leader: Child,
    follower: Option<Child>,
    snapshot: Option<PathBuf>,
    started: usize,
}

impl Standby {
    fn begin(name: &str, command: Vec<String>) -> Self {
        Self::begin_with(name, command, LIMIT_BYTES)
    }

    /// With room for so many bytes of trace.
    fn begin_with(name: &str, command: Vec<String>, limit: u64) -> Self {
        let place = Place::new(name);
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hot/partner.c");
        let built = Command::new("cc")
            .args(["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
            .arg(place.file("partner.so"))
            .arg(source)
            .status();
        assert!(built.expect("cc is there").success(), "partner.c cannot be built");
        let memory = OpenOptions::new().read(true).write(true).create_new(true).open(place.file("memory")).expect("memory");
        memory.set_len(TRACE + limit).expect("room");
        memory.write_all_at(b"TCPT", 0).expect("written");
        memory.write_all_at(&VERSION.to_ne_bytes(), 4).expect("written");
        memory.write_all_at(&limit.to_ne_bytes(), LIMIT).expect("written");
        let mut started = 0;
        set(&memory, MODE, RECORD);
        let leader = start(&place, &command, None, &mut started);
        let standby = Self { place, command, memory, leader, follower: None, snapshot: None, started };
        standby.until("the leader records", |s| s.word(STATE) == RECORDING);
        standby
    }

    fn word(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.memory.read_exact_at(&mut bytes, at).expect("read");
        u32::from_ne_bytes(bytes)
    }

    fn long(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read_exact_at(&mut bytes, at).expect("read");
        u64::from_ne_bytes(bytes)
    }

    fn until(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !is(self) {
            let mut reason = [0; 960];
            self.memory.read_exact_at(&mut reason, 64).expect("read");
            let text = String::from_utf8_lossy(&reason);
            assert!(begun.elapsed() < PATIENCE, "{what}: not so; state {}: {}", self.word(STATE), text.trim_end_matches('\0'));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn caught_up(&self) {
        self.until("the follower has executed all", |s| s.long(EXECUTED) == s.long(HEAD));
    }

    /// A snapshot of the leader, with which the next follower begins. The trace before it is given up.
    fn snapshot(&mut self) {
        let before = self.long(HEAD);
        let path = self.place.file("snapshot");
        take_snapshot(&self.memory, &path, || ()).expect("a snapshot");
        self.memory.write_all_at(&vec![0xff; before as usize], TRACE).expect("written");
        self.snapshot = Some(path);
        fs::write(self.place.file("memory.snapshots"), "").expect("written");
    }

    /// What the follower has executed is given up.
    fn give_up(&self) {
        let executed = self.long(EXECUTED);
        self.memory.write_all_at(&executed.to_ne_bytes(), KEPT).expect("written");
    }

    /// The same program, behind the leader.
    fn follow(&mut self) {
        set(&self.memory, MODE, FOLLOW);
        let snapshot = self.snapshot.take();
        self.follower = Some(start(&self.place, &self.command, snapshot, &mut self.started));
        self.until("the follower follows", |s| s.word(STATE) == FOLLOWING);
        self.caught_up();
    }

    fn promote(&mut self) {
        // What the leader has sent is in the trace a moment later.
        std::thread::sleep(Duration::from_millis(50));
        signal(&self.leader, "STOP");
        self.caught_up();
        let pid = self.place.file("leader");
        fs::write(pid, self.leader.id().to_string()).expect("written");
        set(&self.memory, MODE, PROMOTE);
        self.until("the follower is live", |s| s.word(STATE) == LIVE);
        let follower = self.follower.take().expect("a follower");
        let mut dead = std::mem::replace(&mut self.leader, follower);
        signal(&dead, "KILL");
        dead.wait().expect("a child of ours");
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        for child in [Some(&mut self.leader), self.follower.as_mut()].into_iter().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn set(memory: &File, at: u64, word: u32) {
    memory.write_all_at(&word.to_ne_bytes(), at).expect("written");
}

fn start(place: &Place, command: &[String], snapshot: Option<PathBuf>, started: &mut usize) -> Child {
    *started += 1;
    let path = |file: PathBuf| file.display().to_string();
    let mut environment = vec![
        format!("LD_PRELOAD={}:{}", path(library()), path(place.file("partner.so"))),
        format!("TCPR_STANDBY=hot:{}", std::process::id()),
        format!("PARTNER_MEMORY={}", path(place.file("memory"))),
        format!("PARTNER_LEADER={}", path(place.file("leader"))),
    ];
    environment.extend(snapshot.map(|file| format!("TCPR_HOT_SNAPSHOT={}", path(file))));
    start_with(&environment, &format!("program{started}"), place, command)
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn new(port: u16) -> Self {
        Self(BufReader::new(connect(port)))
    }

    fn send(&mut self, line: &str) {
        self.0.get_mut().write_all(format!("{line}\r\n").as_bytes()).expect("sent");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    fn until(&mut self, what: &str) -> String {
        loop {
            let line = self.line();
            assert!(!line.is_empty(), "the connection ended before {what}");
            if line.contains(what) {
                return line;
            }
        }
    }

    fn lines(&mut self, n: usize) -> Vec<String> {
        (0..n).map(|_| self.line()).collect()
    }

    fn ask(&mut self, line: &str) -> String {
        self.send(line);
        self.line()
    }
}

#[test]
fn redis_goes_on_with_transactions_subscriptions_and_blocked_clients_twice() {
    let port = free_port();
    let mut hot = Standby::begin("redis-promotion", redis(port));
    let [mut plain, mut transaction, mut subscriber, mut blocked] = [(); 4].map(|()| Client::new(port));
    assert_eq!(plain.ask("SET key before"), "+OK");
    assert_eq!(plain.ask("EXPIRE key 1000"), ":1");
    assert_eq!(transaction.ask("SELECT 3"), "+OK");
    assert_eq!(transaction.ask("MULTI"), "+OK");
    assert_eq!(transaction.ask("SET inside 7"), "+QUEUED");
    subscriber.send("SUBSCRIBE news");
    assert_eq!(subscriber.lines(6)[4], "news");
    blocked.send("BLPOP list 0");
    hot.follow();
    // From here on the follower is right behind.
    assert_eq!(transaction.ask("INCR inside"), "+QUEUED");
    for k in 0..200 {
        assert_eq!(plain.ask(&format!("SADD set {k}")), ":1");
    }
    hot.promote();
    assert_eq!(plain.ask("GET key"), "$6");
    assert_eq!(plain.line(), "before");
    let left: i32 = plain.ask("TTL key")[1..].parse().expect("a number");
    assert!((900..=1000).contains(&left), "{left} seconds are left of 1000");
    transaction.send("EXEC");
    assert_eq!(transaction.lines(3), ["*2", "+OK", ":8"]);
    assert_eq!(plain.ask("PUBLISH news now"), ":1");
    assert_eq!(subscriber.lines(7)[6], "now");
    assert_eq!(plain.ask("RPUSH list one"), ":1");
    assert_eq!(blocked.lines(5)[4], "one");
    assert_eq!(plain.ask("SCARD set"), ":200");

    // The same once more: a follower of the follower begins where the first leader began.
    transaction.send("MULTI");
    blocked.send("BLPOP list 0");
    assert_eq!(transaction.line(), "+OK");
    hot.follow();
    assert_eq!(transaction.ask("INCR inside"), "+QUEUED");
    hot.promote();
    transaction.send("EXEC");
    assert_eq!(transaction.lines(2), ["*1", ":9"]);
    assert_eq!(plain.ask("RPUSH list two"), ":1");
    assert_eq!(blocked.lines(5)[4], "two");
    assert_eq!(plain.ask("PUBLISH news again"), ":1");
    assert_eq!(subscriber.lines(7)[6], "again");
    // Timers run: the clock of the program goes on.
    assert_eq!(plain.ask("SET brief x PX 50"), "+OK");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(plain.ask("EXISTS brief"), ":0");
}

const COROUTINES: &str = r#"
import asyncio, sys
total = 0
async def serve(reader, writer):
    global total
    said = []
    while line := await reader.readline():
        total += 1
        said.append(line.strip().decode())
        await asyncio.sleep(0.01)
        writer.write(f"{total} {' '.join(said)}\n".encode())
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    async with server:
        await server.serve_forever()
asyncio.run(main())
"#;

#[test]
fn coroutines_go_on_where_they_were() {
    let port = free_port();
    let command = vec![installed("python3"), "-c".to_owned(), COROUTINES.to_owned(), port.to_string()];
    let mut hot = Standby::begin("asyncio-promotion", command);
    let [mut a, mut b] = [(); 2].map(|()| Client::new(port));
    assert_eq!(a.ask("one"), "1 one");
    assert_eq!(b.ask("two"), "2 two");
    hot.follow();
    assert_eq!(a.ask("three"), "3 one three");
    hot.promote();
    assert_eq!(b.ask("four"), "4 two four");
    assert_eq!(a.ask("five"), "5 one three five");
    // A new one, by the follower's own listener.
    let mut c = Client::new(port);
    assert_eq!(c.ask("six"), "6 six");
}

#[test]
fn threads_go_on_with_what_they_share() {
    let port = free_port();
    let command = words(&format!("{} -u nobody -p {port} -l 127.0.0.1 -U 0", installed("memcached")));
    let mut hot = Standby::begin("memcached-promotion", command);
    let mut clients: Vec<Client> = (0..6).map(|_| Client::new(port)).collect();
    let set = |clients: &mut Vec<Client>, word: &str| {
        for (i, client) in clients.iter_mut().enumerate() {
            client.send(&format!("set {word}{i} 0 0 5"));
            assert_eq!(client.ask("hello"), "STORED");
        }
    };
    set(&mut clients, "a");
    hot.follow();
    set(&mut clients, "b");
    hot.promote();
    set(&mut clients, "c");
    for (i, client) in clients.iter_mut().enumerate() {
        for word in ["a", "b", "c"] {
            client.send(&format!("get {word}{}", (i + 1) % 6));
            assert_eq!(client.lines(3)[1], "hello");
        }
    }
}

#[test]
fn members_of_a_channel_stay_in_it() {
    let port = free_port();
    let configuration = Place::new("ngircd-promotion-configuration");
    let mut hot = Standby::begin("ngircd-promotion", ngircd(port, &configuration));
    let [mut a, mut b] = ["ann", "bob"].map(|name| {
        let mut client = Client::new(port);
        client.send(&format!("NICK {name}\r\nUSER {name} 0 * :x\r\nJOIN #x"));
        client.until("End of NAMES");
        client
    });
    hot.follow();
    a.send("PRIVMSG #x :before");
    b.until("PRIVMSG #x :before");
    hot.promote();
    b.send("PRIVMSG #x :after");
    assert!(a.until("PRIVMSG #x").ends_with(":after"));
    a.send("NAMES #x");
    let names = a.until("353");
    assert!(names.contains("ann") && names.contains("bob"), "{names}");
}

/// The room for the trace is used many times over: records go on at its beginning, some of them in the middle.
#[test]
fn a_follower_stays_behind_a_trace_that_is_longer_than_its_memory() {
    const ROOM: u64 = 256 << 10;
    let port = free_port();
    let mut hot = Standby::begin_with("long-trace", redis(port), ROOM);
    let mut client = Client::new(port);
    hot.follow();
    let value = |k: usize| format!("{k}{}", "x".repeat(7 * (k % 300)));
    for k in 0..1500 {
        assert_eq!(client.ask(&format!("SET key{} {}", k % 100, value(k))), "+OK");
        if k % 20 == 0 {
            hot.caught_up();
            hot.give_up();
        }
    }
    assert!(hot.long(HEAD) > 5 * ROOM, "{} bytes of trace", hot.long(HEAD));
    hot.promote();
    for k in 1400..1500 {
        client.send(&format!("GET key{}", k % 100));
        assert_eq!(client.lines(2)[1], value(k));
    }
}

/// Each follower begins with a snapshot of a leader that has begun with one itself.
#[test]
fn redis_goes_on_from_snapshots_three_times() {
    let port = free_port();
    let mut hot = Standby::begin("snapshot-promotion", redis(port));
    let [mut plain, mut transaction, mut subscriber, mut blocked] = [(); 4].map(|()| Client::new(port));
    assert_eq!(transaction.ask("SELECT 3"), "+OK");
    subscriber.send("SUBSCRIBE news");
    assert_eq!(subscriber.lines(6)[4], "news");
    for round in 0..3 {
        assert_eq!(transaction.ask("MULTI"), "+OK");
        assert_eq!(transaction.ask("INCR inside"), "+QUEUED");
        blocked.send("BLPOP list 0");
        assert_eq!(plain.ask(&format!("SET key {round}")), "+OK");
        hot.snapshot();
        assert_eq!(transaction.ask("INCR inside"), "+QUEUED");
        assert_eq!(plain.ask("INCR counter"), format!(":{}", 3 * round + 1));
        hot.follow();
        assert_eq!(plain.ask("INCR counter"), format!(":{}", 3 * round + 2));
        hot.promote();
        assert_eq!(plain.ask("INCR counter"), format!(":{}", 3 * round + 3));
        transaction.send("EXEC");
        assert_eq!(transaction.lines(3), ["*2".to_owned(), format!(":{}", 2 * round + 1), format!(":{}", 2 * round + 2)]);
        assert_eq!(plain.ask("PUBLISH news now"), ":1");
        assert_eq!(subscriber.lines(7)[6], "now");
        assert_eq!(plain.ask("RPUSH list one"), ":1");
        assert_eq!(blocked.lines(5)[4], "one");
        assert_eq!(plain.ask("GET key"), "$1");
        assert_eq!(plain.line(), round.to_string());
        let mut new = Client::new(port);
        assert_eq!(new.ask("PING"), "+PONG");
    }
}

/// Nobody is woken by a promotion, and nobody who was woken before it is forgotten.
#[test]
fn threads_wait_on_for_their_conditions() {
    let port = free_port();
    let mut hot = Standby::begin("wakers", vec![example("wakers"), port.to_string()]);
    let mut client = Client::new(port);
    // So it stays: who was woken for no reason would have counted that soon.
    let counts = |client: &mut Client, expected: &str| {
        let begun = Instant::now();
        while client.ask("count") != expected && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(client.ask("count"), expected);
    };
    let (mut first, mut second) = (0, 0);
    for round in 0..8 {
        // Nor by a snapshot.
        if round >= 4 {
            hot.snapshot();
        }
        hot.follow();
        counts(&mut client, &format!("{first} {second}"));
        for command in ["one", "all", "late"] {
            client.ask(command);
            match command {
                "one" => first += 1,
                "all" => first += 2,
                _ => second += 1,
            }
            counts(&mut client, &format!("{first} {second}"));
        }
        if round % 2 == 1 {
            // Woken a moment before.
            client.ask("all");
            client.ask("late");
            (first, second) = (first + 2, second + 1);
        }
        hot.promote();
    }
    counts(&mut client, &format!("{first} {second}"));
}

/// What goes between parts of the program is there after a promotion, once: bytes in a pipe, a count of events, watches for one event,
/// and the news of a connect that was under way.
#[test]
fn what_is_between_threads_stays_there() {
    let port = free_port();
    let mut hot = Standby::begin("between", vec![example("between"), port.to_string()]);
    let (mut client, mut watched) = (Client::new(port), Client::new(port));
    let tells = |client: &mut Client, expected: &str| {
        let begun = Instant::now();
        while client.ask("told") != expected && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        // So it stays.
        std::thread::sleep(Duration::from_millis(150));
        assert_eq!(client.ask("told"), expected);
    };
    watched.send("not read");
    let marks = hot.place.file("marks");
    client.ask(&format!("run echo x >> {}; date +%N", marks.display()));
    let told = client.ask("told");
    let time = told.split(' ').nth(4).expect("a time").to_owned();
    assert!(time.parse::<u32>().is_ok(), "{told}");
    tells(&mut client, &format!("0 0 1 1 {time}"));
    let mut seen = 0;
    for round in 1..=2 {
        hot.follow();
        assert_eq!(client.ask("connect"), "under way");
        client.ask("jobs");
        client.ask("events");
        hot.promote();
        seen += 5;
        tells(&mut client, &format!("{seen} {seen} {round} 1 {time}"));
        assert_eq!(client.ask("error"), libc::ECONNREFUSED.to_string());
        client.ask("arm");
        tells(&mut client, &format!("{seen} {seen} {} 1 {time}", round + 1));
    }
    // The command ran once.
    assert_eq!(fs::read_to_string(marks).expect("written"), "x\n");
}
