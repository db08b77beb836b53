//! Hot standby: the program's state survives. Every client here checks state, and not only bytes.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use serde_json::Value;
use tcpr_lab::member::Service;
use tcpr_lab::{wait_for, wait_until};

use crate::requests::connect;
use crate::world::{built, Fault, Stop, World, PATIENCE, PORT};

/// How long a client waits for an answer. A restarted kernel timer alone takes seconds on a machine that stands still.
const ANSWER: Duration = Duration::from_secs(60);

fn hot(name: &str) -> Service {
    Service::new(name, PORT).set("service", "standby", "\"hot\"").set("recovery", "engine", "\"repair\"")
}

fn standby(w: &World, member: usize) -> Value {
    w.pair.status(member).map_or(Value::Null, |status| status["standby"].clone())
}

/// Waits until the backup's program follows the master's.
fn follows(w: &World) -> usize {
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
struct Talker {
    to: TcpStream,
    from: BufReader<TcpStream>,
}

impl Talker {
    fn new(w: &World) -> Talker {
        let to = w.peer.enter(|| connect(w.pair.addr())).expect("connected");
        to.set_read_timeout(Some(ANSWER)).expect("a timeout");
        to.set_nodelay(true).expect("no delay");
        let from = BufReader::new(to.try_clone().expect("cloned"));
        Talker { to, from }
    }

    fn say(&mut self, line: &str) {
        self.to.write_all(format!("{line}\r\n").as_bytes()).expect("sent");
    }

    fn line(&mut self) -> String {
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
struct Member {
    talker: Talker,
    name: String,
    token: String,
    lines: u64,
    time: u64,
}

impl Member {
    fn new(w: &World, n: usize) -> Member {
        let mut talker = Talker::new(w);
        let name = format!("member{n}");
        assert_eq!(rooms_ask(&mut talker, &format!("name {name}")), format!("ok {name}"));
        assert!(rooms_ask(&mut talker, &format!("join room{n}")).starts_with(&format!("ok room{n} ")));
        let token = rooms_ask(&mut talker, "token");
        Member { talker, name, token, lines: 3, time: 0 }
    }

    /// Says something and looks at everything.
    fn check(&mut self) {
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

/// The trace goes through a memory that is much smaller. Who is behind it all the time takes over; who comes later cannot begin.
#[test]
fn a_trace_longer_than_its_memory_is_followed_to_its_end() {
    const ROOM: u64 = 1 << 20;
    let service = hot("long").set("service", "standby_trace_bytes", &ROOM.to_string());
    let mut w = World::new("long-trace", service, &[&built("rooms_server"), "5555"]);
    follows(&w);
    let mut member = Member::new(&w, 0);
    let text = "x".repeat(3900);
    for _ in 0..1000 {
        member.lines += 1;
        assert_eq!(rooms_ask(&mut member.talker, &format!("say {text}")), format!("room0 member0: {text}"));
    }
    let told = standby(&w, follows(&w));
    assert!(told["trace_bytes"].as_u64().is_some_and(|n| (ROOM / 2..=ROOM).contains(&n)), "{told}");
    w.fail_over(Fault::KillAll);
    member.check();
    let mut last = Value::Null;
    let full = wait_for(PATIENCE, || {
        last = standby(&w, w.protected());
        last["state"] == "full"
    });
    assert!(full && last["promotions"] == 1, "{last}");
    assert!(last["reason"].as_str().is_some_and(|why| why.contains("not kept from its beginning")), "{last}");
    member.check();
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

/// Many counters in a redis server that keeps nothing on disk.
#[test]
fn redis_goes_on_with_its_counters_transactions_and_subscribers() {
    let program =
        ["redis-server", "--port", "5555", "--bind", "*", "-::*", "--protected-mode", "no", "--save", "", "--appendonly", "no"];
    let mut w = World::new("redis", hot("redis"), &program);
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
    let place = std::env::temp_dir().join(format!("tcpr-redis-{}", std::process::id()));
    std::fs::create_dir_all(&place).expect("a directory");
    let path = place.display().to_string();
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
    let saved = place.join("dump.rdb");
    wait_until(PATIENCE, "the child has saved", || saved.exists());
    assert_eq!(ask("incr counter"), ":2");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!((follows(&w), standby(&w, master)["reason"].clone()), (master, Value::Null));
    // A member that starts reads what is there.
    std::fs::remove_file(saved).expect("removed");
    w.fail_over(Fault::KillServer);
    assert_eq!(ask("incr counter"), ":3");
    follows(&w);
    let _ = std::fs::remove_dir_all(place);
    w.no_reset();
}

/// Everybody is still in the channel, with their names and rights.
#[test]
fn ngircd_goes_on_with_its_channels() {
    let config = std::env::temp_dir().join(format!("tcpr-ngircd-{}", std::process::id()));
    let text = "[Global]\nName = irc.example.net\nPorts = 5555\nMotdPhrase = hello\nServerUID = nobody\nServerGID = nogroup\n\
        [Limits]\nMaxConnectionsIP = 0\nMaxPenaltyTime = 0\nPingTimeout = 3600\n[Options]\nDNS = no\nIdent = no\nPAM = no\n";
    std::fs::write(&config, text).expect("a configuration");
    let path = config.display().to_string();
    let mut w = World::new("ngircd", hot("irc"), &["ngircd", "-n", "-f", &path]);
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
    let _ = std::fs::remove_file(config);
    w.no_reset();
}

/// A server with four threads: every value that was stored is there.
#[test]
fn memcached_goes_on_with_its_values() {
    let mut w = World::new("memcached", hot("memcached"), &["memcached", "-u", "nobody", "-p", "5555", "-t", "4"]);
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

/// Coroutines of Python, each in the middle of something.
#[test]
fn coroutines_of_python_go_on() {
    let program = "import asyncio\n\
        async def serve(reader, writer):\n\
        \x20   n = 0\n\
        \x20   while line := await reader.readline():\n\
        \x20       n += 1\n\
        \x20       if line.startswith(b'wait'): await asyncio.sleep(0.2)\n\
        \x20       writer.write(b'%d %s' % (n, line.strip()) + b'\\n')\n\
        \x20       await writer.drain()\n\
        \x20   writer.close()\n\
        async def main():\n\
        \x20   server = await asyncio.start_server(serve, '', 5555)\n\
        \x20   await server.serve_forever()\n\
        asyncio.run(main())\n";
    let mut w = World::new("asyncio", hot("asyncio"), &["/usr/bin/python3", "-c", program]);
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
