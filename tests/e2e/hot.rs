//! Hot standby: the program's state survives. Every client here checks state, and not only bytes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use serde_json::Value;
use tcpr_lab::member::Service;
use tcpr_lab::{wait_for, wait_until};

use crate::requests::connect;
use crate::world::{built, Dir, Fault, Stop, World, PATIENCE, PORT};

/// So little room for a trace that whoever rejoins begins with a snapshot.
pub const SHORT: &str = "1048576";

/// How long a client waits for an answer. A restarted kernel timer alone takes seconds on a machine that stands still.
const ANSWER: Duration = Duration::from_secs(60);

pub fn hot(name: &str) -> Service {
    Service::new(name, PORT).set("service", "standby", "\"hot\"").set("recovery", "engine", "\"repair\"")
}

pub fn standby(w: &World, member: usize) -> Value {
    w.pair.status(member).map_or(Value::Null, |status| status["standby"].clone())
}

/// Waits until the backup's program follows the master's.
pub fn follows(w: &World) -> usize {
    let mut last = Value::Null;
    let follows = wait_for(PATIENCE, || {
        let master = w.protected();
        last = standby(w, master);
        last["state"] == "following"
    });
    assert!(follows, "nobody follows: {last}\n{}", w.pair.describe());
    w.protected()
}

/// A client of a server that answers lines.
pub struct Talker {
    pub to: TcpStream,
    from: BufReader<TcpStream>,
}

impl Talker {
    pub fn new(w: &World) -> Talker {
        Talker::to(w, w.pair.addr())
    }

    pub fn to(w: &World, address: SocketAddr) -> Talker {
        let to = w.peer.enter(|| connect(address)).expect("connected");
        to.set_read_timeout(Some(ANSWER)).expect("a timeout");
        to.set_nodelay(true).expect("no delay");
        let from = BufReader::new(to.try_clone().expect("cloned"));
        Talker { to, from }
    }

    pub fn say(&mut self, line: &str) {
        self.to.write_all(format!("{line}\r\n").as_bytes()).expect("sent");
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        let n = self.from.read_line(&mut line).unwrap_or_else(|e| panic!("no line from the server: {e}"));
        assert!(n > 0, "the server has closed the connection");
        line.trim_end().to_owned()
    }
}

/// The line client of the rooms server speaks plain newlines.
fn rooms_ask(t: &mut Talker, line: &str) -> String {
    t.to.write_all(format!("{line}\n").as_bytes()).expect("sent");
    t.line()
}

/// Somebody in a room, who knows what the server must know of them.
pub struct Member {
    talker: Talker,
    name: String,
    token: String,
    lines: u64,
    time: u64,
}

impl Member {
    pub fn new(w: &World, n: usize) -> Member {
        let mut talker = Talker::new(w);
        let name = format!("member{n}");
        assert_eq!(rooms_ask(&mut talker, &format!("name {name}")), format!("ok {name}"));
        assert!(rooms_ask(&mut talker, &format!("join room{n}")).starts_with(&format!("ok room{n} ")));
        let token = rooms_ask(&mut talker, "token");
        Member { talker, name, token, lines: 3, time: 0 }
    }

    /// Says something and looks at everything.
    pub fn check(&mut self) {
        let room = self.name.replace("member", "room");
        self.lines += 5;
        assert_eq!(rooms_ask(&mut self.talker, "who"), self.name);
        let said = format!("line {}", self.lines);
        assert_eq!(rooms_ask(&mut self.talker, &format!("say {said}")), format!("{room} {}: {said}", self.name));
        assert_eq!(rooms_ask(&mut self.talker, "token"), self.token);
        let time = rooms_ask(&mut self.talker, "time").parse().expect("a time");
        assert!(time >= self.time, "time went back from {} to {time}", self.time);
        self.time = time;
        let count = rooms_ask(&mut self.talker, "count");
        assert_eq!(count.split(' ').next(), Some(&*self.lines.to_string()), "{count}");
    }
}

fn rooms(how: &str, clients: usize, failovers: usize) {
    let mut w = World::new(how, hot("rooms"), &[&built("rooms_server"), "5555", how]);
    follows(&w);
    let mut members: Vec<Member> = (0..clients).map(|n| Member::new(&w, n)).collect();
    let faults = w.faults(failovers);
    let (stop, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|threads| {
        let _stop = Stop(&stop);
        for member in &mut members {
            let (stop, rounds) = (&stop, &rounds);
            threads.spawn(move || {
                while !stop.load(Relaxed) {
                    member.check();
                    rounds.fetch_add(1, Relaxed);
                    std::thread::sleep(Duration::from_millis(3));
                }
            });
        }
        for (round, fault) in faults.into_iter().enumerate() {
            follows(&w);
            w.fail_over(fault);
            let before = rounds.load(Relaxed);
            wait_until(2 * PATIENCE, "all go on", || rounds.load(Relaxed) >= before + 3 * clients);
            let promoted = (0..2).any(|i| standby(&w, i)["promotions"].as_u64().is_some_and(|n| n > 0));
            assert!(promoted, "round {round}, {fault:?}: nobody was promoted\n{}", w.pair.describe());
            eprintln!("round {round}: {fault:?}");
        }
    });
    for member in &mut members {
        member.check();
    }
    w.no_reset();
}

#[test]
fn names_and_rooms_survive_ten_failovers() {
    rooms("epoll", 6, 10);
}

#[test]
fn a_server_that_polls_goes_on_with_its_state() {
    rooms("poll", 4, 5);
}

#[test]
fn a_server_that_selects_goes_on_with_its_state() {
    rooms("select", 4, 5);
}

/// The trace goes through a memory that is much smaller, between one takeover and the next: who comes begins with a snapshot. Ten
/// times in a row.
#[test]
fn ten_takeovers_with_a_trace_longer_than_its_memory() {
    const ROOM: u64 = 1 << 20;
    let service = hot("long").set("service", "standby_trace_bytes", SHORT);
    let mut w = World::new("long-trace", service, &[&built("rooms_server"), "5555"]);
    follows(&w);
    let mut members: Vec<Member> = (0..3).map(|n| Member::new(&w, n)).collect();
    let text = "x".repeat(3900);
    for (round, fault) in w.faults(10).into_iter().enumerate() {
        let master = follows(&w);
        for n in 0..900 {
            let member = &mut members[n % 3];
            member.lines += 1;
            let said = rooms_ask(&mut member.talker, &format!("say {text}"));
            assert!(said.ends_with(&text) && said.contains(&member.name), "{said}");
            if n % 50 == 49 {
                // A follower that is too slow begins anew, and a busy machine may make it so.
                wait_until(PATIENCE, "the follower keeps up", || {
                    standby(&w, w.protected())["lag_records"].as_u64().is_some_and(|lag| lag < 20)
                });
            }
        }
        assert_eq!(follows(&w), master);
        let told = standby(&w, master);
        assert!(told["trace_bytes"].as_u64().is_some_and(|n| (ROOM / 2..=ROOM).contains(&n)), "{told}");
        w.fail_over(fault);
        members.iter_mut().for_each(Member::check);
        let master = w.protected();
        assert!(standby(&w, master)["promotions"].as_u64().is_some_and(|n| n > 0), "round {round}, {fault:?}");
        // It is found by its command line as before.
        let [program] = w.pair.programs(master)[..] else { panic!("one process") };
        let line = std::fs::read_to_string(format!("/proc/{program}/cmdline")).expect("it runs");
        assert_eq!(line.trim_end_matches('\0').split('\0').collect::<Vec<_>>(), [&*built("rooms_server"), "5555"]);
        eprintln!("round {round}: {fault:?}");
    }
    w.no_reset();
}

/// Much more at once than the memory for the trace takes: the program waits for room, and its state is not given up.
#[test]
fn a_burst_longer_than_the_memory_for_the_trace() {
    const LINES: u64 = 2000;
    let service = hot("burst").set("service", "standby_trace_bytes", SHORT);
    let mut w = World::new("burst", service, &[&built("rooms_server"), "5555"]);
    follows(&w);
    let mut members: Vec<Member> = (0..3).map(|n| Member::new(&w, n)).collect();
    let text = "x".repeat(3900);
    for fault in w.faults(3) {
        follows(&w);
        std::thread::scope(|threads| {
            for member in &mut members {
                let (mut to, text) = (member.talker.to.try_clone().expect("cloned"), &text);
                threads.spawn(move || (0..LINES).for_each(|_| to.write_all(format!("say {text}\n").as_bytes()).expect("sent")));
                threads.spawn(move || {
                    (0..LINES).for_each(|_| assert!(member.talker.line().ends_with(text)));
                    member.lines += LINES;
                });
            }
        });
        follows(&w);
        w.fail_over(fault);
        members.iter_mut().for_each(Member::check);
        assert!(standby(&w, w.protected())["promotions"].as_u64().is_some_and(|n| n > 0), "{fault:?}");
    }
    w.no_reset();
}

/// A program that does something else on either member: that is noticed and said, and nobody's connection is lost.
#[test]
fn a_program_that_differs_is_dropped_and_named() {
    let program = "import os, socket, selectors\n\
        listener = socket.create_server(('', 5555))\n\
        me = os.environ['TCPR_MEMBER']\n\
        selector = selectors.DefaultSelector()\n\
        selector.register(listener, selectors.EVENT_READ)\n\
        while True:\n\
        \x20   for key, _ in selector.select():\n\
        \x20       if key.fileobj is listener:\n\
        \x20           selector.register(listener.accept()[0], selectors.EVENT_READ)\n\
        \x20       else:\n\
        \x20           line = key.fileobj.recv(1000)\n\
        \x20           if line.startswith(b'who'): key.fileobj.sendall(me.encode() + b'\\n')\n\
        \x20           else: key.fileobj.sendall(line)\n";
    let mut w = World::new("differs", hot("differs").lines(), &["/usr/bin/python3", "-c", program]);
    let master = follows(&w);
    let mut talker = Talker::new(&w);
    assert_eq!(rooms_ask(&mut talker, "hello"), "hello");
    assert_eq!(rooms_ask(&mut talker, "who"), ["a", "b"][master]);
    let mut last = Value::Null;
    let said = wait_for(PATIENCE, || {
        last = standby(&w, master);
        last["state"] == "diverged"
    });
    assert!(said, "{last}");
    let reason = last["reason"].as_str().expect("a reason");
    assert!(reason.contains("record") && reason.contains("write"), "{reason}");
    let required = w.pair.tcpr(master, &["status", "--require", "hot"]).expect("status");
    assert_ne!(required.status.code(), Some(0), "for monitoring");
    // It goes on by the warm rules.
    w.fail_over(Fault::KillAll);
    assert_eq!(rooms_ask(&mut talker, "still here"), "still here");
    w.no_reset();
}

/// Each host has a routing table of its own: it stands for a file of the program that the members have in two versions.
#[test]
fn members_that_are_not_alike_say_so_at_once() {
    const FILE: &str = "/proc/self/net/fib_trie";
    let service = hot("alike").set("service", "standby_files", &format!("[{FILE:?}]"));
    let mut w = World::new("alike", service, &[&built("rooms_server"), "5555"]);
    let mut last = Value::Null;
    let said = wait_for(PATIENCE, || {
        last = standby(&w, w.protected());
        last["state"] == "diverged"
    });
    let reason = last["reason"].as_str().unwrap_or_default();
    assert!(said && reason.contains("the members are not alike") && reason.contains(FILE), "{last}");
    // Connections survive as with a warm standby.
    let mut talker = Talker::new(&w);
    assert_eq!(rooms_ask(&mut talker, "name someone"), "ok someone");
    w.fail_over(Fault::KillAll);
    assert_eq!(rooms_ask(&mut talker, "name someone"), "ok someone");
    w.no_reset();
}

/// A follower whose manager is gone would wait for ever, and hold the port.
#[test]
fn a_follower_ends_with_its_manager() {
    let w = World::new("orphan", hot("rooms"), &[&built("rooms_server"), "5555"]);
    let master = follows(&w);
    let [program] = w.pair.programs(1 - master)[..] else { panic!("one process") };
    let manager = w.pair.process(1 - master).expect("it runs").pid();
    let killed = Command::new("kill").args(["-KILL", &manager.to_string()]).status().expect("kill");
    assert!(killed.success());
    let stat = format!("/proc/{program}/stat");
    wait_until(PATIENCE, "the follower ends", || std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z ")));
}

pub const REDIS: [&str; 12] =
    ["redis-server", "--port", "5555", "--bind", "*", "-::*", "--protected-mode", "no", "--save", "", "--appendonly", "no"];

/// Many counters in a redis server that keeps nothing on disk.
#[test]
fn redis_goes_on_with_its_counters_transactions_and_subscribers() {
    let mut w = World::new("redis", hot("redis").set("service", "standby_trace_bytes", SHORT), &REDIS);
    follows(&w);
    let reply = |t: &mut Talker| -> String {
        let line = t.line();
        match line.split_at(1) {
            ("$", "-1") => "nil".to_owned(),
            ("$", _) => t.line(),
            _ => line,
        }
    };
    let ask = |t: &mut Talker, command: &str| {
        t.say(command);
        reply(t)
    };
    let mut counters: Vec<(Talker, u64)> = (0..4).map(|_| (Talker::new(&w), 0)).collect();
    for (n, (t, _)) in counters.iter_mut().enumerate() {
        assert_eq!(ask(t, &format!("client setname counter{n}")), "+OK");
    }
    let mut subscriber = Talker::new(&w);
    subscriber.say("subscribe news");
    let heard: Vec<String> = (0..6).map(|_| subscriber.line()).collect();
    assert_eq!(heard[4], "news");
    let mut blocked = Talker::new(&w);
    let mut transaction = Talker::new(&w);
    let mut other = Talker::new(&w);
    for (round, fault) in w.faults(5).into_iter().enumerate() {
        follows(&w);
        assert_eq!(ask(&mut transaction, "multi"), "+OK");
        assert_eq!(ask(&mut transaction, &format!("incrby sum {round}")), "+QUEUED");
        blocked.say("blpop list 0");
        assert_eq!(ask(&mut other, "set short lived px 100000"), "+OK");
        let stop = AtomicBool::new(false);
        std::thread::scope(|threads| {
            let _stop = Stop(&stop);
            for (n, (t, count)) in counters.iter_mut().enumerate() {
                let stop = &stop;
                threads.spawn(move || {
                    while !stop.load(Relaxed) {
                        *count += 1;
                        t.say(&format!("incr counter{n}"));
                        assert_eq!(t.line(), format!(":{count}"), "counter {n}");
                    }
                });
            }
            w.fail_over(fault);
        });
        assert!(ask(&mut transaction, "exec").starts_with("*1"));
        transaction.line();
        assert_eq!(ask(&mut other, &format!("rpush list item{round}")), ":1");
        let popped: Vec<String> = (0..5).map(|_| blocked.line()).collect();
        assert_eq!(popped[4], format!("item{round}"));
        assert_eq!(ask(&mut other, &format!("publish news round{round}")), ":1");
        let news: Vec<String> = (0..7).map(|_| subscriber.line()).collect();
        assert_eq!(news[6], format!("round{round}"));
        let left: i64 = ask(&mut other, "pttl short")[1..].parse().expect("a time");
        assert!((1..=100_000).contains(&left), "{left}");
        for (n, (t, count)) in counters.iter_mut().enumerate() {
            assert_eq!(ask(t, "client getname"), format!("counter{n}"));
            assert_eq!(ask(t, &format!("get counter{n}")), count.to_string());
        }
    }
    w.no_reset();
}

/// A server that forks to save what it has: the child has its connections, too, and does nothing with them.
#[test]
fn a_child_that_only_saves_ends_nothing() {
    let place = Dir::new("redis");
    let path = place.0.display().to_string();
    let program =
        ["redis-server", "--port", "5555", "--bind", "*", "-::*", "--protected-mode", "no", "--save", "", "--dir", &path];
    let mut w = World::new("saves", hot("saves"), &program);
    let master = follows(&w);
    let mut talker = Talker::new(&w);
    let mut ask = |command: &str| {
        talker.say(command);
        talker.line()
    };
    assert_eq!(ask("incr counter"), ":1");
    assert_eq!(ask("bgsave"), "+Background saving started");
    let saved = place.0.join("dump.rdb");
    wait_until(PATIENCE, "the child has saved", || saved.exists());
    assert_eq!(ask("incr counter"), ":2");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!((follows(&w), standby(&w, master)["reason"].clone()), (master, Value::Null));
    // A member that starts reads what is there.
    std::fs::remove_file(saved).expect("removed");
    w.fail_over(Fault::KillServer);
    assert_eq!(ask("incr counter"), ":3");
    follows(&w);
    w.no_reset();
}

/// Everybody is still in the channel, with their names and rights.
#[test]
fn ngircd_goes_on_with_its_channels() {
    let place = Dir::new("ngircd");
    let text = "[Global]\nName = irc.example.net\nPorts = 5555\nMotdPhrase = hello\nServerUID = nobody\nServerGID = nogroup\n\
        [Limits]\nMaxConnectionsIP = 0\nMaxPenaltyTime = 0\nPingTimeout = 3600\n[Options]\nDNS = no\nIdent = no\nPAM = no\n";
    let mut w = World::new("ngircd", hot("irc"), &["ngircd", "-n", "-f", &place.file("config", text)]);
    follows(&w);
    let until = |t: &mut Talker, what: &str| loop {
        let line = t.line();
        if let Some(token) = line.strip_prefix("PING ") {
            t.say(&format!("PONG {token}"));
        }
        if line.contains(what) {
            return line;
        }
    };
    let mut people: Vec<Talker> = (0..4).map(|_| Talker::new(&w)).collect();
    for (n, t) in people.iter_mut().enumerate() {
        t.say(&format!("NICK user{n}"));
        t.say(&format!("USER user{n} 0 * :User {n}"));
        until(t, " 001 ");
        t.say("JOIN #room");
        until(t, " 366 ");
    }
    for (round, fault) in w.faults(5).into_iter().enumerate() {
        follows(&w);
        w.fail_over(fault);
        let said = format!("round {round}");
        people[1].say(&format!("PRIVMSG #room :{said}"));
        for n in [0, 2, 3] {
            let heard = until(&mut people[n], &said);
            assert!(heard.starts_with(":user1!") && heard.contains("PRIVMSG #room"), "{heard}");
        }
        people[0].say("NAMES #room");
        let names = until(&mut people[0], " 353 ");
        for name in ["@user0", "user1", "user2", "user3"] {
            assert!(names.contains(name), "round {round}, {fault:?}: {names}");
        }
        until(&mut people[0], " 366 ");
    }
    w.no_reset();
}

/// A server with four threads: every value that was stored is there.
#[test]
fn memcached_goes_on_with_its_values() {
    let service = hot("memcached").set("service", "standby_trace_bytes", SHORT);
    let mut w = World::new("memcached", service, &["memcached", "-u", "nobody", "-p", "5555", "-t", "4"]);
    follows(&w);
    let mut talkers: Vec<Talker> = (0..6).map(|_| Talker::new(&w)).collect();
    let value = |n: usize, round: usize| format!("value {n} of round {round}");
    for (now, fault) in w.faults(5).into_iter().enumerate() {
        follows(&w);
        let stop = AtomicBool::new(false);
        std::thread::scope(|threads| {
            let _stop = Stop(&stop);
            for (n, t) in talkers.iter_mut().enumerate() {
                let stop = &stop;
                threads.spawn(move || {
                    let mut counter = 0;
                    let said = value(n, now);
                    t.say(&format!("set key{n}.{now} 7 0 {}", said.len()));
                    t.say(&said);
                    assert_eq!(t.line(), "STORED");
                    t.say(&format!("set counter{n}.{now} 0 0 1"));
                    t.say("0");
                    assert_eq!(t.line(), "STORED");
                    while !stop.load(Relaxed) {
                        counter += 1;
                        t.say(&format!("incr counter{n}.{now} 1"));
                        assert_eq!(t.line(), counter.to_string());
                        // A follower of threads takes turns as the leader's did, and is slower than they.
                        std::thread::sleep(Duration::from_millis(5));
                    }
                });
            }
            w.fail_over(fault);
        });
        for (n, t) in talkers.iter_mut().enumerate() {
            for round in 0..=now {
                t.say(&format!("get key{n}.{round}"));
                let lines: Vec<String> = (0..3).map(|_| t.line()).collect();
                let said = value(n, round);
                assert_eq!(lines, [format!("VALUE key{n}.{round} 7 {}", said.len()), said, "END".to_owned()], "{fault:?}");
            }
        }
    }
    w.no_reset();
}

pub const COROUTINES: &str = "
import asyncio
async def serve(reader, writer):
    n = 0
    while line := await reader.readline():
        n += 1
        if line.startswith(b'wait'): await asyncio.sleep(0.2)
        writer.write(b'%d %s' % (n, line.strip()) + b'\\n')
        await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(serve, '', 5555)
    await server.serve_forever()
asyncio.run(main())
";

/// Coroutines of Python, each in the middle of something.
#[test]
fn coroutines_of_python_go_on() {
    let mut w = World::new(
        "asyncio",
        hot("asyncio").set("service", "standby_trace_bytes", SHORT),
        &["/usr/bin/python3", "-c", COROUTINES],
    );
    follows(&w);
    let mut talkers: Vec<Talker> = (0..4).map(|_| Talker::new(&w)).collect();
    let mut n = 0;
    for fault in w.faults(5) {
        follows(&w);
        n += 1;
        for t in &mut talkers {
            assert_eq!(rooms_ask(t, "hello"), format!("{n} hello"));
        }
        n += 1;
        for t in &mut talkers {
            t.to.write_all(b"wait\n").expect("sent");
        }
        w.fail_over(fault);
        for t in &mut talkers {
            assert_eq!(t.line(), format!("{n} wait"), "{fault:?}");
        }
    }
    w.no_reset();
}

/// A server that is no member: it answers each line with the number of its connection, and the line. `http`: each line is that of
/// a request, whose headers follow.
fn serve_numbered_lines(w: &World, http: bool) {
    let listener = w.peer.enter(|| TcpListener::bind("192.0.2.9:7000")).expect("a listener");
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().flatten().enumerate() {
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().expect("cloned")).lines();
                while let Some(Ok(line)) = lines.next() {
                    let answer = if http {
                        lines.by_ref().map_while(Result::ok).take_while(|header| !header.is_empty()).for_each(drop);
                        let said = format!("{n} {}\n", line.split(' ').nth(1).unwrap_or_default());
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{said}", said.len())
                    } else {
                        format!("{n} {line}\n")
                    };
                    (&stream).write_all(answer.as_bytes()).expect("answered");
                }
            });
        }
    });
}

/// A proxy keeps each client with the connection that it has made for it, to a server that is no member.
#[test]
fn haproxy_goes_on_with_its_pairs_of_connections() {
    haproxy("tcp", 1);
}

#[test]
fn haproxy_goes_on_with_requests_of_its_clients() {
    haproxy("http", 1);
}

#[test]
fn haproxy_goes_on_with_several_threads() {
    haproxy("http", 4);
}

fn haproxy(mode: &str, threads: usize) {
    let place = Dir::new(&format!("hot-haproxy-{mode}-{threads}"));
    let http = mode == "http";
    let text = format!(
        "global\n nbthread {threads}\n maxconn 200\ndefaults\n mode {mode}\n timeout connect 60s\n timeout client 600s\n \
        timeout server 600s\n timeout http-keep-alive 600s\n{}listen proxy\n bind *:5555\n server one 192.0.2.9:7000\n",
        if http { " http-reuse never\n" } else { "" }
    );
    let ask = |t: &mut Talker, line: &str| {
        if !http {
            return rooms_ask(t, line);
        }
        t.say(&format!("GET {line} HTTP/1.1\r\nHost: example.net\r\n"));
        assert_eq!(t.line(), "HTTP/1.1 200 OK");
        while !t.line().is_empty() {}
        t.line()
    };
    let service = hot("proxy").extra("[[service.outgoing]]\naddress = \"192.0.2.9:7000\"\n");
    let label = format!("hap{mode}{threads}");
    let mut w = World::new(&label, service, &["haproxy", "-db", "-f", &place.file("haproxy", &text)]);
    serve_numbered_lines(&w, http);
    follows(&w);
    let mut talkers: Vec<(Talker, String)> = (0..6).map(|_| (Talker::new(&w), String::new())).collect();
    for (t, who) in &mut talkers {
        ask(t, "/hello").split(' ').next().unwrap_or_default().clone_into(who);
    }
    for (round, fault) in w.faults(5).into_iter().enumerate() {
        follows(&w);
        let stop = AtomicBool::new(false);
        std::thread::scope(|threads| {
            let _stop = Stop(&stop);
            for (t, who) in &mut talkers {
                let stop = &stop;
                threads.spawn(move || {
                    for n in 0.. {
                        assert_eq!(ask(t, &format!("/{round}/{n}")), format!("{who} /{round}/{n}"), "{fault:?}");
                        if stop.load(Relaxed) {
                            break;
                        }
                    }
                });
            }
            w.fail_over(fault);
        });
    }
    w.no_reset();
}

/// A key and a certificate for it, in one file.
fn certificate(place: &Dir) -> String {
    let path = place.file("certificate", "");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=example.net", "-keyout", &path, "-out"])
        .arg(format!("{path}.crt"))
        .output()
        .expect("openssl (apt-get install openssl)");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let whole = [&path, &format!("{path}.crt")].map(|file| std::fs::read_to_string(file).expect("read")).concat();
    std::fs::write(&path, whole).expect("written");
    path
}

/// A client of TLS that says lines on one connection, as many as it is asked for, and checks the answers.
const TLS_CLIENT: &str = "
import socket, ssl, sys
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, sys.argv[2])
stream = context.wrap_socket(socket.create_connection((sys.argv[1], 5555)))
stream.settimeout(60)
answers = stream.makefile('rb')
print(stream.version(), flush=True)
for line in sys.stdin:
    stream.sendall(eval(sys.argv[3]) % line.strip().encode())
    print(eval(sys.argv[4])(answers).decode().strip(), flush=True)
";

/// A running TLS client.
struct TlsTalker {
    process: std::process::Child,
    from: BufReader<std::process::ChildStdout>,
}

impl TlsTalker {
    /// `request` makes a request of a line, `answer` reads an answer: both are Python.
    fn new(w: &World, version: &str, request: &str, answer: &str) -> TlsTalker {
        let mut command = Command::new("/usr/bin/python3");
        let address = w.pair.addr().ip().to_string();
        command.args(["-c", TLS_CLIENT, &address, version, request, answer]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = w.peer.enter(|| command.spawn()).expect("python3");
        let from = BufReader::new(process.stdout.take().expect("piped"));
        let mut talker = TlsTalker { process, from };
        assert_eq!(talker.line().replace('.', "_"), version, "the version of TLS");
        talker
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let n = self.from.read_line(&mut line).expect("a line");
        assert!(n > 0, "the client has failed");
        line.trim_end().to_owned()
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.process.stdin.as_mut().expect("piped"), "{line}").expect("told");
        self.line()
    }
}

impl Drop for TlsTalker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The keys of TLS 1.2 and 1.3 are kept, and nginx knows which connection it is, and its how manieth request this is.
#[test]
fn nginx_goes_on_with_its_tls_sessions() {
    let place = Dir::new("hot-nginx");
    let certificate = certificate(&place);
    let text = format!(
        "daemon off;\nmaster_process off;\nerror_log stderr;\npid /dev/null;\nevents {{}}\nhttp {{\n access_log off;\n \
         keepalive_requests 1000000;\n keepalive_timeout 600;\n server {{\n listen 5555 ssl;\n ssl_certificate {certificate};\n \
         ssl_certificate_key {certificate};\n ssl_protocols TLSv1.2 TLSv1.3;\n location / {{ return 200 \"$connection $connection_requests $uri\\n\"; }}\n }}\n}}\n"
    );
    let mut w = World::new("hotnginx", hot("tls"), &["nginx", "-c", &place.file("nginx", &text)]);
    follows(&w);
    let answer =
        "lambda f: f.read([int(l.split()[1]) for l in iter(f.readline, b'\\r\\n') if l.startswith(b'Content-Length')][0])";
    let request = "b'GET /%s HTTP/1.1\\r\\nHost: example.net\\r\\n\\r\\n'";
    let mut talkers: Vec<(TlsTalker, String)> =
        ["TLSv1_2", "TLSv1_3", "TLSv1_3"].map(|version| (TlsTalker::new(&w, version, request, answer), String::new())).into();
    let mut requests = 1;
    for (t, who) in &mut talkers {
        let first = t.ask("first");
        assert!(first.ends_with(" 1 /first"), "{first}");
        first.split(' ').next().unwrap_or_default().clone_into(who);
    }
    for (round, fault) in w.faults(5).into_iter().enumerate() {
        follows(&w);
        w.fail_over(fault);
        requests += 1;
        for (t, who) in &mut talkers {
            assert_eq!(t.ask(&format!("round{round}")), format!("{who} {requests} /round{round}"), "{fault:?}");
        }
    }
    w.no_reset();
}

/// stunnel has a thread for each connection, and a connection of its own to the server behind it.
#[test]
fn stunnel_goes_on_with_its_tls_sessions() {
    let place = Dir::new("hot-stunnel");
    let text = format!(
        "foreground = yes\npid =\n[lines]\naccept = 5555\nconnect = 192.0.2.9:7000\ncert = {}\nTIMEOUTclose = 0\n",
        certificate(&place)
    );
    let service = hot("stunnel").extra("[[service.outgoing]]\naddress = \"192.0.2.9:7000\"\n");
    let mut w = World::new("stunnel", service, &["stunnel4", &place.file("stunnel", &text)]);
    serve_numbered_lines(&w, false);
    follows(&w);
    let mut talkers: Vec<TlsTalker> =
        (0..4).map(|_| TlsTalker::new(&w, "TLSv1_3", "b'%s\\n'", "lambda f: f.readline()")).collect();
    for (n, t) in talkers.iter_mut().enumerate() {
        assert_eq!(t.ask("hello"), format!("{n} hello"));
    }
    for (round, fault) in w.faults(5).into_iter().enumerate() {
        follows(&w);
        w.fail_over(fault);
        for (n, t) in talkers.iter_mut().enumerate() {
            assert_eq!(t.ask(&format!("round{round}")), format!("{n} round{round}"), "{fault:?}");
        }
    }
    w.no_reset();
}

/// Reserved jobs stay reserved, and the tubes that were chosen stay chosen.
#[test]
fn beanstalkd_goes_on_with_its_reservations() {
    let mut w = World::new("beanstalkd", hot("jobs"), &["beanstalkd", "-p", "5555"]);
    follows(&w);
    let ask = |t: &mut Talker, command: &str| {
        t.say(command);
        t.line()
    };
    // Of each pair, one has a job, and the other one waits for one.
    let mut pairs: Vec<[Talker; 2]> = (0..3).map(|_| [Talker::new(&w), Talker::new(&w)]).collect();
    for (n, pair) in pairs.iter_mut().enumerate() {
        for t in pair {
            assert_eq!(ask(t, &format!("use tube{n}")), format!("USING tube{n}"));
            assert_eq!(ask(t, &format!("watch tube{n}")), "WATCHING 2");
            assert_eq!(ask(t, "ignore default"), "WATCHING 1");
        }
    }
    let put = |t: &mut Talker, body: &str| {
        let answer = ask(t, &format!("put 0 0 600 {}\r\n{body}", body.len()));
        answer.strip_prefix("INSERTED ").unwrap_or_else(|| panic!("{answer}")).to_owned()
    };
    for (round, fault) in w.faults(5).into_iter().enumerate() {
        follows(&w);
        let body = format!("job of round {round}");
        let mut jobs = Vec::new();
        for [holder, waiter] in &mut pairs {
            let id = put(holder, &body);
            assert_eq!(ask(holder, "reserve"), format!("RESERVED {id} {}", body.len()));
            assert_eq!(holder.line(), body);
            waiter.say("reserve");
            jobs.push(id);
        }
        w.fail_over(fault);
        for ([holder, waiter], first) in pairs.iter_mut().zip(&jobs) {
            let second = put(holder, "again");
            assert_eq!(waiter.line(), format!("RESERVED {second} 5"), "{fault:?}");
            assert_eq!(waiter.line(), "again");
            assert_eq!(ask(holder, &format!("delete {first}")), "DELETED", "{fault:?}");
            assert_eq!(ask(waiter, &format!("delete {second}")), "DELETED", "{fault:?}");
        }
    }
    w.no_reset();
}

/// A client of MQTT, as far as it is needed here.
struct Mqtt(Talker);

impl Mqtt {
    fn new(w: &World, name: &str) -> Mqtt {
        let mut client = Mqtt(Talker::new(w));
        let mut body = b"\0\x04MQTT\x04\x02\0\0".to_vec();
        body.extend(Mqtt::text(name));
        client.send(0x10, &body);
        assert_eq!(client.packet(), (0x20, vec![0, 0]));
        client
    }

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u16).to_be_bytes()[..], text.as_bytes()].concat()
    }

    fn send(&mut self, kind: u8, body: &[u8]) {
        self.0.to.write_all(&[&[kind, body.len() as u8], body].concat()).expect("sent");
    }

    fn packet(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 2];
        self.0.from.read_exact(&mut head).expect("a packet");
        let mut body = vec![0; head[1].into()];
        self.0.from.read_exact(&mut body).expect("a packet");
        (head[0], body)
    }

    fn publish(&mut self, kind: u8, topic: &str, id: u16, payload: &str) {
        self.send(kind, &[&Mqtt::text(topic)[..], &id.to_be_bytes(), payload.as_bytes()].concat());
    }
}

/// Subscriptions, retained messages, and messages of quality 1 and 2 that are under way.
#[test]
fn mosquitto_goes_on_with_its_sessions() {
    let place = Dir::new("hot-mosquitto");
    let config = place.file("mosquitto", "listener 5555\nallow_anonymous true\npersistence false\n");
    let mut w = World::new("mosquitto", hot("mqtt"), &["mosquitto", "-c", &config]);
    follows(&w);
    let (mut publisher, mut subscriber) = (Mqtt::new(&w, "publisher"), Mqtt::new(&w, "subscriber"));
    subscriber.send(0x82, &[&[0, 1][..], &Mqtt::text("news"), &[2]].concat());
    assert_eq!(subscriber.packet(), (0x90, vec![0, 1, 2]));
    let mut received = 0u16;
    for (round, fault) in w.faults(5).into_iter().enumerate() {
        follows(&w);
        let id = 100 + round as u16;
        let said = format!("round {round}");
        publisher.publish(0x34, "news", id, &said);
        assert_eq!(publisher.packet(), (0x50, id.to_be_bytes().to_vec()), "PUBREC");
        publisher.publish(0x33, "kept", 200, &said);
        assert_eq!(publisher.packet(), (0x40, vec![0, 200]), "PUBACK");
        w.fail_over(fault);
        publisher.send(0x62, &id.to_be_bytes());
        assert_eq!(publisher.packet(), (0x70, id.to_be_bytes().to_vec()), "PUBCOMP, {fault:?}");
        received += 1;
        let number = received.to_be_bytes();
        assert_eq!(subscriber.packet(), (0x34, [&Mqtt::text("news")[..], &number, said.as_bytes()].concat()), "{fault:?}");
        subscriber.send(0x50, &number);
        assert_eq!(subscriber.packet(), (0x62, number.to_vec()), "PUBREL");
        subscriber.send(0x70, &number);
        let mut late = Mqtt::new(&w, &format!("late{round}"));
        late.send(0x82, &[&[0, 1][..], &Mqtt::text("kept"), &[0]].concat());
        assert_eq!(late.packet(), (0x90, vec![0, 1, 0]));
        assert_eq!(late.packet(), (0x31, [&Mqtt::text("kept")[..], said.as_bytes()].concat()), "the retained message");
    }
    w.no_reset();
}

/// Output that goes past all hooks is not in the trace: the standby ends, and says so. The connection goes on.
#[test]
fn output_past_the_hooks_ends_the_standby() {
    const PRINTS: &str = "
import ctypes, signal, socket
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
library = ctypes.CDLL(None)
listener = socket.create_server(('', 5555))
n = 0
while True:
    client = listener.accept()[0]
    while line := client.recv(100):
        n += 1
        if line.startswith(b'past'):
            library.dprintf(client.fileno(), b'%d past\\n', n)
        else:
            client.sendall(b'%d %s' % (n, line))
";
    let mut w = World::new("past", hot("past").lines(), &["/usr/bin/python3", "-c", PRINTS]);
    let master = follows(&w);
    let mut talker = Talker::new(&w);
    talker.say("one");
    assert_eq!(talker.line(), "1 one");
    w.fail_over(Fault::Switchover);
    follows(&w);
    talker.say("two");
    assert_eq!(talker.line(), "2 two");
    talker.say("past");
    assert_eq!(talker.line(), "3 past");
    wait_until(PATIENCE, "the standby ends", || standby(&w, master)["reason"].to_string().contains("dprintf"));
    w.fail_over(Fault::KillAll);
    talker.say("four");
    assert_eq!(talker.line(), "1 four");
    w.no_reset();
}

/// What is in the way of a snapshot may go: it is made then.
#[test]
fn a_snapshot_that_fails_is_made_later() {
    const HOLDS: &str = "
import os, selectors, socket, tempfile
listener = socket.create_server(('', 5555))
selector = selectors.DefaultSelector()
selector.register(listener, selectors.EVENT_READ)
n, held = 0, None
while True:
    for key, _ in selector.select():
        if key.fileobj is listener:
            selector.register(listener.accept()[0], selectors.EVENT_READ)
            continue
        line = key.fileobj.recv(5000)
        if line.startswith(b'hold'): held = tempfile.TemporaryFile()
        if line.startswith(b'leave'): held = None
        n += 1
        key.fileobj.sendall(b'%d %s' % (n, line))
";
    let service = hot("holds").lines().set("service", "standby_trace_bytes", SHORT);
    let mut w = World::new("holds", service, &["/usr/bin/python3", "-c", HOLDS]);
    let master = follows(&w);
    let mut talker = Talker::new(&w);
    let mut said = 0;
    let mut say = |t: &mut Talker, line: &str| {
        said += 1;
        t.say(line);
        assert_eq!(t.line(), format!("{said} {line}"));
    };
    say(&mut talker, "hold");
    let text = "x".repeat(2000);
    // More than the memory for the trace takes.
    for n in 0..600 {
        say(&mut talker, &text);
        if n % 50 == 49 {
            follows(&w);
        }
    }
    let [program] = w.pair.programs(1 - master)[..] else { panic!("one process") };
    assert!(Command::new("kill").args(["-KILL", &program.to_string()]).status().expect("kill").success());
    let mut last = Value::Null;
    let refused = wait_for(PATIENCE, || {
        last = standby(&w, master);
        last["state"] == "full"
    });
    assert!(refused && last["reason"].to_string().contains("no snapshot"), "{last}");
    // The trace goes on meanwhile.
    (0..600).for_each(|_| say(&mut talker, &text));
    assert_eq!(standby(&w, master)["state"], "full");
    say(&mut talker, "leave");
    follows(&w);
    w.fail_over(Fault::KillAll);
    say(&mut talker, "here");
    w.no_reset();
}

/// A follower that stands still would not be there in time for a takeover: status says so.
#[test]
fn a_follower_that_stands_still_is_no_standby() {
    let mut w = World::new("still", hot("rooms"), &[&built("rooms_server"), "5555"]);
    let master = follows(&w);
    let mut member = Member::new(&w, 0);
    let [program] = w.pair.programs(1 - master)[..] else { panic!("one process") };
    let signal = |signal: &str| {
        assert!(Command::new("kill").args([signal, &program.to_string()]).status().expect("kill").success());
    };
    signal("-STOP");
    member.check();
    let mut last = Value::Null;
    let said = wait_for(PATIENCE, || {
        last = standby(&w, master);
        last["state"] == "joining"
    });
    assert!(said && last["reason"].to_string().contains("keep up"), "{last}");
    assert!(last["lag_ms"].as_f64().is_some_and(|ms| ms > 1000.0), "{last}");
    let required = w.pair.tcpr(master, &["status", "--require", "hot"]).expect("status");
    assert_ne!(required.status.code(), Some(0), "for monitoring");
    member.check();
    signal("-CONT");
    follows(&w);
    w.fail_over(Fault::KillAll);
    member.check();
    w.no_reset();
}

/// What a snapshot costs: `cargo test --release --test e2e hot::cost_of_a_snapshot -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn cost_of_a_snapshot() {
    for mib in [10, 100, 400] {
        let service = hot("cost").set("service", "standby_trace_bytes", SHORT);
        let mut w = World::new("cost", service, &REDIS);
        let master = follows(&w);
        let mut client = Talker::new(&w);
        client.say(&format!("eval \"for i=1,{mib} do redis.call('set',i,string.rep('x',1048576)) end return 'full'\" 0"));
        assert_eq!((client.line().as_str(), client.line().as_str()), ("$4", "full"));
        for round in 0..5 {
            w.pair.kill_all(1 - master);
            // The beginning of the trace goes.
            for _ in 0..20_000 {
                client.say("ping");
                assert_eq!(client.line(), "+PONG");
            }
            w.pair.restart(1 - master).expect("restart");
            follows(&w);
            let err = w.pair.process(master).expect("runs").err();
            let of = |what: &str, key: &str| {
                let line = err.lines().rfind(|line| line.contains(what)).expect("a snapshot").to_owned();
                line.split(&format!("{key}="))
                    .nth(1)
                    .and_then(|rest| rest.split(' ').next().map(str::to_owned))
                    .expect("a figure")
            };
            let (pause, ms) = (of("a snapshot of the program goes", "pause_us"), of("the partner has a snapshot", "ms"));
            eprintln!("{mib} MiB, round {round}: the program stood still for {pause} us; the partner had all after {ms} ms");
        }
    }
}
