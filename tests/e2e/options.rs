//! Flags and options that a program gives to its connections: each does what it does without tcpr, or is refused with the
//! errno of a kernel that lacks it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use tcpr_lab::member::{Hosted, Service};
use tcpr_lab::set_number;

use crate::requests::connect;
use crate::world::{built, Fault, World, PATIENCE, PORT};

/// A client of the server.
pub struct Asker(BufReader<TcpStream>);

impl Asker {
    pub fn new(w: &World) -> Asker {
        let stream = w.peer.enter(|| connect(w.pair.addr())).expect("connected");
        stream.set_nodelay(true).expect("no delay");
        Asker(BufReader::new(stream))
    }

    pub fn say(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).expect("sent");
    }

    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("an answer");
        line.trim_end().to_owned()
    }

    #[track_caller]
    fn ask(&mut self, question: &str) -> String {
        self.say(format!("{question}\n").as_bytes());
        self.line()
    }

    /// Asks for numbered bytes; those of places `from..to` are to come, and then the line.
    pub fn numbered(&mut self, question: &str, from: usize, to: usize) {
        self.say(format!("{question}\n").as_bytes());
        let mut got = vec![0; to - from];
        self.0.read_exact(&mut got).expect("all bytes");
        let expected: Vec<u8> = (from..to).step_by(10).flat_map(|at| format!("x{at:08}\n").into_bytes()).collect();
        let wrong = got.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "{question}: the first byte that is wrong");
        assert_eq!(self.line(), question);
    }
}

const REFUSED: &str = "zerocopy -1/92 ulp -1/2 repair -1/1 receive -1/92 oob -1/95 urgent -1/22 fastopen -1/106 \
                       nodelay 0/0";

const INHERITED: &str = "inherited 0 mark 7 timestamp 1 pacing 1000000000 ttl 77 tos 8 keepidle 300 linger2 9";

#[test]
fn flags_and_options_of_a_connection_work_or_are_refused() {
    let mut w = World::new("options", Service::new("options", PORT), &[&built("option_server"), "5555"]);
    let mut asker = Asker::new(&w);
    for fault in [Fault::Switchover, Fault::KillAll, Fault::KillServer, Fault::Cut] {
        assert_eq!(asker.ask("options"), REFUSED, "before {fault:?}");
        assert_eq!(asker.ask("inherited"), INHERITED, "before {fault:?}");
        asker.numbered("zerocopy 3000000", 0, 3_000_000);
        asker.say(b"drop 70000\n");
        asker.say(&[b'd'; 70_000]);
        assert_eq!(asker.line(), "drop 70000");
        asker.say(b"peek 5000\n");
        asker.say(&[b'p'; 5_000]);
        assert_eq!(asker.line(), "peek same");
        asker.say(b"lowat 3000\n");
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(20));
            asker.say(&[b'l'; 1000]);
        }
        assert_eq!(asker.line(), "lowat 3000");
        asker.numbered("parts 301", 0, 3010);
        asker.numbered("file 500000", 500_000, 1_000_000);
        w.fail_over(fault);
    }
    // What is read and thrown away, or only looked at, is known: nothing of it is read again, and nothing is left out.
    assert_eq!(asker.ask("options"), REFUSED);
    assert_eq!(asker.ask("inherited"), INHERITED);
    drop(asker);
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

/// The peer has it all in a moment: a close that waits for that does not wait for the turn's time to be over (5 s here).
#[test]
fn a_close_that_lingers_takes_no_longer_than_the_peer() {
    let w = World::new("linger", Service::new("options", PORT), &[&built("option_server"), "5555"]);
    let mut asker = Asker::new(&w);
    assert_eq!(asker.ask("linger"), "linger 0");
    assert_eq!(asker.0.read(&mut [0]).expect("an orderly end"), 0);
    drop(asker);
    let mut other = Asker::new(&w);
    let mut ms: i64 = -1;
    tcpr_lab::wait_until(PATIENCE, "the close is over", || {
        ms = other.ask("closed").split(' ').nth(1).and_then(|ms| ms.parse().ok()).expect("a number");
        ms >= 0
    });
    assert!(ms < 4_000, "the close took {ms} ms");
}

/// Before it binds nobody knows whose socket it is: then a send is refused as where the kernel can pin no more memory.
#[test]
fn a_socket_told_of_zero_copy_before_it_was_protected_copies() {
    let w = World::new("early", Service::new("options", PORT), &[&built("option_server"), "5555", "early"]);
    let mut asker = Asker::new(&w);
    // The server gives up the bytes, and answers.
    assert_eq!(asker.ask("zerocopy 100000"), "zerocopy 100000");
}

/// Level and name.
const IP_MINTTL: (i32, i32) = (0, 21);
const IPV6_MINHOPCOUNT: (i32, i32) = (41, 73);

/// Options that the connection has, as the server sees them: level/name=value.
fn values(asker: &mut Asker, question: &str) -> Vec<String> {
    asker.ask(question).split(' ').map(str::to_owned).collect()
}

/// TCP_MAXSEG says what path and peer allow at the moment; IPV6_V6ONLY cannot be set any more.
const OF_THE_MOMENT: [&str; 2] = ["6/2", "41/26"];

fn same(before: &[String], after: &[String], what: &str) {
    let name = |option: &str| option.split('=').next().unwrap_or_default().to_owned();
    let of = |option: &String| after.iter().find(|a| name(a) == name(option));
    let differ: Vec<_> =
        before.iter().filter(|o| !after.contains(o) && !OF_THE_MOMENT.contains(&&name(o)[..])).map(|o| (o, of(o))).collect();
    assert!(differ.is_empty(), "{what}: {differ:?}");
    assert!(before.len() > 60, "{} options", before.len());
}

/// What a bare accepted connection has from its listener a recovered one has, and what the program has set on the connection itself.
fn options_are_those_of_a_bare_connection(mut w: World, min_ttl: (i32, i32)) {
    let (mut silent, mut asker) = (Asker::new(&w), Asker::new(&w));
    // Its peer believes no packet that has come from far: those of a recovered connection must not seem to.
    set_number(asker.0.get_ref(), min_ttl.0, min_ttl.1, 150).expect("set");
    let bare = values(&mut asker, "bare");
    values(&mut silent, "hello");
    let mut set = Vec::new();
    for (round, fault) in [Fault::Switchover, Fault::KillServer, Fault::Cut, Fault::KillAll].into_iter().enumerate() {
        w.fail_over(fault);
        same(&bare, &values(&mut Asker::new(&w), "new"), "a new connection");
        same(&bare, &values(&mut silent, "recovered"), &format!("after {fault:?}"));
        if round == 0 {
            same(&bare, &values(&mut asker, "recovered"), "before it was set");
            set = values(&mut asker, "set");
            assert_ne!(set, bare);
        }
        same(&set, &values(&mut asker, "recovered"), &format!("set, and after {fault:?}"));
    }
}

#[test]
fn a_recovered_connection_has_the_options_of_a_bare_one() {
    let w = World::new("inherit", Service::new("inherit", PORT), &[&built("inherit_server"), "5555", "4", "listener"]);
    options_are_those_of_a_bare_connection(w, IP_MINTTL);
}

#[test]
fn a_recovered_connection_of_ipv6_has_the_options_of_a_bare_one() {
    let w = World::six("inherit6", Service::new("inherit", PORT), &[&built("inherit_server"), "5555", "6", "listener"]);
    options_are_those_of_a_bare_connection(w, IPV6_MINHOPCOUNT);
}

#[test]
fn a_listener_of_one_device_has_its_connections_back() {
    let w = World::new("device", Service::new("inherit", PORT), &[&built("inherit_server"), "5555", "4", "device", "eth0"]);
    options_are_those_of_a_bare_connection(w, IP_MINTTL);
}

/// The server hears of a client when that has said something: clients that have said nothing keep nobody waiting.
fn deferred(label: &str, by: Hosted) {
    let program = [&built("inherit_server")[..], "5555", "4", "deferred"];
    let mut w = World::hosted(label, Service::new("inherit", PORT), &program, by);
    let (mut asker, mut silent) = (Asker::new(&w), Asker::new(&w));
    values(&mut asker, "first");
    for fault in [Fault::Switchover, Fault::KillServer, Fault::KillAll] {
        w.fail_over(fault);
        let before = std::time::Instant::now();
        values(&mut asker, "again");
        values(&mut Asker::new(&w), "new");
        let took = before.elapsed();
        assert!(took < Duration::from_secs(10), "{fault:?}: {took:?}");
    }
    values(&mut silent, "late");
}

#[test]
fn a_listener_that_waits_for_data_has_its_connections_back() {
    deferred("deferred", Hosted::ByRun);
}

#[test]
fn a_listener_that_waits_for_data_without_the_library_has_its_connections_back() {
    deferred("sdeferred", Hosted::ByRunUnhooked);
}

/// The segments of a connection stay as small as its listener wants them.
#[test]
fn segments_stay_as_small_as_the_program_wants_them() {
    let mut w = World::new("small", Service::new("inherit", PORT), &[&built("inherit_server"), "5555", "4", "small"]);
    let mut asker = Asker::new(&w);
    let most = |values: Vec<String>| values.iter().find(|o| o.starts_with("6/2=")).cloned().expect("TCP_MAXSEG");
    let bare = most(values(&mut asker, "bare"));
    assert!(["6/2=e8010000", "6/2=f4010000"].contains(&&bare[..]), "{bare}");
    for fault in [Fault::Switchover, Fault::KillServer] {
        w.fail_over(fault);
        assert_eq!(most(values(&mut asker, "recovered")), bare, "after {fault:?}");
    }
}
