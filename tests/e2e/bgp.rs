//! The example that speaks BGP and keeps its state with the data calls: with speakers of three other makes that know nothing of it,
//! and with somebody who says everything wrong.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use tcpr_lab::member::{Hosted, Service};
use tcpr_lab::{wait_for, wait_listening, wait_until, Host, Process};

use crate::routing::Speakers;
use crate::world::{built, Dir, Fault, World, FOUR, PATIENCE, PORT};

/// It waits for the speaker.
const BIRD: &str = "log stderr all;
debug protocols { states };
router id 192.0.2.11;
protocol device { scan time 10; }
protocol static { ipv4; route 198.51.100.32/27 blackhole; }
protocol bgp speaker {
    local 192.0.2.11 port 1791 as 65003; neighbor 192.0.2.200 port 5555 as 65000; multihop; passive; hold time 9;
    ipv4 { import all; export where source = RTS_STATIC; };
}
";

struct Bird {
    place: Dir,
    process: Process,
}

impl Bird {
    fn start(w: &World) -> Bird {
        w.peer.ip_cmd("addr add 192.0.2.11/24 dev eth0").expect("an address");
        let place = Dir::new("birdpeer");
        let mut bird = Command::new("bird");
        bird.args(["-f", "-c", &place.file("conf", BIRD), "-s", &place.0.join("ctl").display().to_string()]);
        let process = w.peer.spawn("bird", bird).expect("bird (apt-get install bird2)");
        Bird { place, process }
    }

    fn ask(&self, w: &World, words: &[&str]) -> String {
        let mut birdc = Command::new("birdc");
        birdc.args(["-s", &self.place.0.join("ctl").display().to_string()]).args(words);
        let out = w.peer.run(birdc, Duration::from_secs(20)).expect("birdc");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Whether the session is up; how often its state has changed, and how many withdrawals came.
    fn session(&self, w: &World) -> (bool, usize, String) {
        let all = self.ask(w, &["show", "protocols", "all", "speaker"]);
        let withdrawals = all.lines().find(|line| line.contains("Import withdraws:")).unwrap_or_default().to_owned();
        let changes = self.process.err().lines().filter(|line| line.contains("speaker: State changed")).count();
        (all.contains("Established"), changes, withdrawals)
    }
}

/// The speaker's member dies in each way. The neighbours' own counters say that nothing has happened: gobgpd and bird, which the
/// speaker calls, and FRR, which calls the speaker.
#[test]
fn neighbours_of_a_speaker_that_dies_notice_nothing() {
    let outgoing = |to: &str| format!("[[service.outgoing]]\naddress = \"{to}\"\n");
    let service = Service::new("bgp", PORT).extra(&outgoing("192.0.2.9:1790")).extra(&outgoing("192.0.2.11:1791"));
    let neighbours = ["192.0.2.9:1790=65001", "192.0.2.10=65002", "192.0.2.11:1791=65003"];
    let mut program = vec![built("bgp_speaker")];
    program.extend(["192.0.2.200", "5555", "65000", "192.0.2.200", "hold=9", "announce=203.0.113.0/24"].map(str::to_owned));
    program.extend(neighbours.map(str::to_owned));
    let program: Vec<&str> = program.iter().map(String::as_str).collect();
    let mut w = World::started("bgp", service, &program, Hosted::ByRun, FOUR, |_| ());
    w.protected();
    let speakers = Speakers::start(&w);
    let bird = Bird::start(&w);
    let up = [(true, 0, 0); 2];
    let all_up = wait_for(PATIENCE, || speakers.sessions() == up && bird.session(&w).0);
    assert!(all_up, "{:?} {:?}\n{}", speakers.sessions(), bird.session(&w), w.pair.describe());
    let vtysh = |words: &[&str]| {
        let mut all = vec!["vtysh", "--vty_socket", speakers.place(), "-d", "bgpd"];
        words.iter().for_each(|word| all.extend(["-c", word]));
        speakers.run(&all);
    };
    let everybody_has = |w: &World, prefix: &str| {
        let there = wait_for(PATIENCE, || speakers.both_have(prefix) && bird.ask(w, &["show", "route", prefix]).contains(prefix));
        assert!(there, "{prefix} is missing: {:?}\n{}", speakers.sessions(), w.pair.describe());
    };
    // What the speaker announces itself, and what it has from bird.
    everybody_has(&w, "203.0.113.0/24");
    everybody_has(&w, "198.51.100.32/27");
    let bird_before = bird.session(&w);
    let mut prefixes = vec!["203.0.113.0/24".to_owned()];
    for (round, fault) in w.faults(5).into_iter().enumerate() {
        w.fail_over(fault);
        // One route from each side after each failover, and all that there was before.
        let (by_gobgp, by_frr) = (format!("198.51.100.{}/32", 64 + round), format!("198.51.100.{}/32", 128 + round));
        speakers.run(&["gobgp", "global", "rib", "add", &by_gobgp]);
        vtysh(&["conf t", "router bgp 65002", "address-family ipv4 unicast", &format!("network {by_frr}")]);
        prefixes.extend([by_gobgp, by_frr]);
        prefixes.iter().for_each(|prefix| everybody_has(&w, prefix));
        assert_eq!(speakers.sessions(), up, "round {round}, {fault:?}\n{}", w.pair.describe());
        assert_eq!(bird.session(&w), bird_before, "round {round}, {fault:?}\n{}", w.pair.describe());
        eprintln!("round {round}: {fault:?}");
    }
    // Not because nobody would hear of it.
    speakers.run(&["gobgp", "global", "rib", "del", &prefixes[1]]);
    wait_until(PATIENCE, "the route is withdrawn", || !bird.ask(&w, &["show", "route", &prefixes[1]]).contains(&prefixes[1]));
    w.no_reset();
}

/// A message with its header.
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xff; 16];
    bytes.extend((19 + body.len() as u16).to_be_bytes());
    bytes.push(kind);
    bytes.extend(body);
    bytes
}

const OPEN: u8 = 1;
const UPDATE: u8 = 2;
const KEEPALIVE: u8 = 4;

/// Version, AS, hold time, identifier, and parameters.
fn open(version: u8, autonomous_system: u16, hold: u16, identifier: u32, parameters: &[u8]) -> Vec<u8> {
    let mut body = vec![version];
    body.extend(autonomous_system.to_be_bytes());
    body.extend(hold.to_be_bytes());
    body.extend(identifier.to_be_bytes());
    body.push(parameters.len() as u8);
    body.extend(parameters);
    message(OPEN, &body)
}

fn good_open() -> Vec<u8> {
    open(4, 65001, 90, 0xc000_0209, &[2, 6, 65, 4, 0, 0, 0xfd, 0xe9])
}

fn update(withdrawn: &[u8], attributes: &[&[u8]], announced: &[u8]) -> Vec<u8> {
    let attributes = attributes.concat();
    let mut body = (withdrawn.len() as u16).to_be_bytes().to_vec();
    body.extend(withdrawn);
    body.extend((attributes.len() as u16).to_be_bytes());
    body.extend(attributes);
    body.extend(announced);
    message(UPDATE, &body)
}

/// Somebody at the neighbour's place.
struct Neighbour(TcpStream);

impl Neighbour {
    fn new(w: &World) -> Neighbour {
        Neighbour::on(&w.peer, w)
    }

    fn on(host: &Host, w: &World) -> Neighbour {
        let to = w.pair.addr();
        Neighbour::of(host.enter(|| TcpStream::connect_timeout(&to, PATIENCE)).expect("connected"))
    }

    fn of(stream: TcpStream) -> Neighbour {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("no delay");
        Neighbour(stream)
    }

    fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("sent");
    }

    /// Type and body of the next message.
    fn hear(&mut self) -> (u8, Vec<u8>) {
        let mut header = [0; 19];
        self.0.read_exact(&mut header).expect("a message");
        assert_eq!(header[..16], [0xff; 16]);
        let mut body = vec![0; usize::from(u16::from_be_bytes([header[16], header[17]])) - 19];
        self.0.read_exact(&mut body).expect("its body");
        (header[18], body)
    }

    fn hear_a(&mut self, kind: u8) -> Vec<u8> {
        loop {
            match self.hear() {
                (found, body) if found == kind => return body,
                (3, body) => panic!("NOTIFICATION {body:?}"),
                _ => {}
            }
        }
    }

    fn establish(w: &World) -> Neighbour {
        let mut neighbour = Neighbour::new(w);
        neighbour.hear_a(OPEN);
        neighbour.say(&good_open());
        neighbour.hear_a(KEEPALIVE);
        neighbour.say(&message(KEEPALIVE, &[]));
        neighbour.hear_a(UPDATE);
        neighbour
    }

    /// The NOTIFICATION that ends the session, and nothing after it.
    fn ends_with(mut self, code: u8, subcode: u8, data: &[u8], why: &str) {
        loop {
            let (kind, body) = self.hear();
            if kind == 3 {
                assert_eq!((body[0], body[1], &body[2..]), (code, subcode, data), "{why}");
                break;
            }
        }
        assert_eq!(self.0.read(&mut [0]).expect("the end"), 0, "{why}");
    }
}

const ORIGIN: &[u8] = &[0x40, 1, 1, 0];
const PATH: &[u8] = &[0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe9];
const NEXT_HOP: &[u8] = &[0x40, 3, 4, 192, 0, 2, 9];
const PREFIX: &[u8] = &[24, 198, 51, 100];

/// What is said, code, subcode and data of the answer, and what is wrong.
type Case<'a> = (Vec<u8>, u8, u8, &'a [u8], &'a str);

/// Everything that RFC 4271 has a code for. The speaker says that code, and goes on with its other neighbours.
#[test]
fn each_malformed_message_has_its_notification() {
    let program = [&built("bgp_speaker"), "192.0.2.200", "5555", "65000", "192.0.2.200", "announce=203.0.113.0/24"];
    let program: Vec<&str> = program.into_iter().chain(["192.0.2.9=65001", "192.0.2.10=65002"]).collect();
    let mut w = World::started("bgpwrong", Service::new("bgp", PORT), &program, Hosted::ByRun, FOUR, |_| ());
    let master = w.protected();
    wait_listening(w.pair.host(master), PORT, PATIENCE).expect("the speaker listens");

    // While it waits for an OPEN.
    let long = open(4, 65001, 90, 1, &[2, 20, 65, 4, 0, 0, 0xfd, 0xe9]);
    let cases: Vec<Case<'_>> = vec![
        (vec![0xff, 0xff, 0], 1, 1, &[], "a marker that is none"),
        (message(OPEN, &[0; 5]), 1, 2, &[0, 24], "an OPEN that is too short"),
        ([&[0xff; 16][..], &[0, 18, 4]].concat(), 1, 2, &[0, 18], "less than a header"),
        ([&[0xff; 16][..], &[0x10, 1, 2]].concat(), 1, 2, &[0x10, 1], "a message that is too long"),
        (message(KEEPALIVE, &[0]), 1, 2, &[0, 20], "a KEEPALIVE with a body"),
        (message(9, &[]), 1, 3, &[9], "no such type"),
        (open(3, 65001, 90, 1, &[]), 2, 1, &[0, 4], "another version"),
        (open(4, 65009, 90, 1, &[]), 2, 2, &[], "another AS"),
        (open(4, 65001, 90, 0, &[]), 2, 3, &[], "no identifier"),
        (open(4, 65001, 90, 1, &[1, 0]), 2, 4, &[], "an unknown parameter"),
        (open(4, 65001, 2, 1, &[]), 2, 6, &[], "a hold time of two seconds"),
        (open(4, 65001, 90, 1, &[2, 6, 1, 4, 0, 2, 0, 1]), 2, 7, &[1, 4, 0, 1, 0, 1], "IPv6 only"),
        (long, 2, 0, &[], "a parameter that is longer than the message"),
        (message(KEEPALIVE, &[]), 5, 1, &[4], "a KEEPALIVE before the OPEN"),
        ([good_open(), update(&[], &[], &[])].concat(), 5, 2, &[2], "an UPDATE before the KEEPALIVE"),
    ];
    for (bytes, code, subcode, data, why) in cases {
        let mut neighbour = Neighbour::new(&w);
        neighbour.hear_a(OPEN);
        neighbour.say(&bytes);
        neighbour.ends_with(code, subcode, data, why);
    }

    // In a session.
    let cases: Vec<Case<'_>> = vec![
        (message(UPDATE, &[0, 9, 0, 0]), 3, 1, &[], "withdrawn routes that are longer than the message"),
        (message(UPDATE, &[0, 0, 0, 9]), 3, 1, &[], "attributes that are longer than the message"),
        (update(&[], &[ORIGIN, ORIGIN], &[]), 3, 1, &[], "an attribute twice"),
        (update(&[], &[&[0x40, 99, 1, 7]], &[]), 3, 2, &[0x40, 99, 1, 7], "an unknown attribute that is well-known"),
        (update(&[], &[ORIGIN, PATH], PREFIX), 3, 3, &[3], "no next hop"),
        (update(&[], &[PATH, NEXT_HOP], PREFIX), 3, 3, &[1], "no origin"),
        (update(&[], &[&[0xc0, 1, 1, 0]], &[]), 3, 4, &[0xc0, 1, 1, 0], "an optional origin"),
        (update(&[], &[&[0x40, 1, 2, 0, 0]], &[]), 3, 5, &[0x40, 1, 2, 0, 0], "a long origin"),
        (update(&[], &[&[0x40, 1, 1, 3]], &[]), 3, 6, &[0x40, 1, 1, 3], "an origin that is none"),
        (
            update(&[], &[ORIGIN, PATH, &[0x40, 3, 4, 224, 0, 0, 1]], PREFIX),
            3,
            8,
            &[0x40, 3, 4, 224, 0, 0, 1],
            "a multicast next hop",
        ),
        (update(&[], &[ORIGIN, PATH, NEXT_HOP], &[33, 1, 2, 3, 4, 5]), 3, 10, &[], "a prefix of 33 bits"),
        (update(&[], &[ORIGIN, PATH, NEXT_HOP], &[24, 1, 2]), 3, 10, &[], "half a prefix"),
        (update(&[], &[ORIGIN, &[0x40, 2, 3, 2, 1, 0], NEXT_HOP], PREFIX), 3, 11, &[], "half an AS in the path"),
        (
            update(&[], &[ORIGIN, &[0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xea], NEXT_HOP], PREFIX),
            3,
            11,
            &[],
            "a path that begins with another AS",
        ),
        (good_open(), 5, 3, &[1], "an OPEN in a session"),
    ];
    for (bytes, code, subcode, data, why) in cases {
        let mut neighbour = Neighbour::establish(&w);
        neighbour.say(&bytes);
        neighbour.ends_with(code, subcode, data, why);
    }

    // A hold time that is over. (Of three seconds, which both sides agree on.)
    let mut silent = Neighbour::new(&w);
    silent.say(&open(4, 65001, 3, 1, &[]));
    silent.hear_a(KEEPALIVE);
    silent.say(&message(KEEPALIVE, &[]));
    silent.ends_with(4, 0, &[], "silence");

    // A message that comes in parts, with a failover in its middle; a route that is announced and withdrawn; and half of a message
    // when the speaker dies again.
    let mut neighbour = Neighbour::establish(&w);
    let whole = update(&[], &[ORIGIN, PATH, NEXT_HOP], PREFIX);
    let (first, rest) = whole.split_at(30);
    neighbour.say(first);
    w.fail_over(Fault::KillAll);
    neighbour.say(rest);
    neighbour.say(&whole[..5]);
    w.fail_over(Fault::KillServer);
    neighbour.say(&whole[5..]);
    let host = w.lab().host("other", "192.0.2.10/24").expect("another host");
    let mut other = Neighbour::on(&host, &w);
    other.say(&open(4, 65002, 90, 2, &[]));
    other.hear_a(KEEPALIVE);
    other.say(&message(KEEPALIVE, &[]));
    // 2-octet numbers for a neighbour that knows no others.
    let path: &[u8] = &[0x40, 2, 6, 2, 2, 0xfd, 0xe8, 0xfd, 0xe9];
    let passed_on = loop {
        let body = other.hear_a(UPDATE);
        if body.ends_with(PREFIX) {
            break body;
        }
    };
    assert!(passed_on.windows(path.len()).any(|part| part == path), "{passed_on:?}");
    neighbour.say(&update(PREFIX, &[], &[]));
    let mut withdrawal = vec![0, PREFIX.len() as u8];
    withdrawal.extend(PREFIX);
    withdrawal.extend([0, 0]);
    while other.hear_a(UPDATE) != withdrawal {}
}

/// A neighbour that is called, and calls: of two connections the one stays that was made by whoever has the higher identifier. After
/// a failover the speaker calls for a session on a connection that it has made, and waits for any other.
#[test]
fn of_two_connections_one_stays() {
    let service = Service::new("bgp", PORT).extra("[[service.outgoing]]\naddress = \"192.0.2.9:1790\"\n");
    let program = [&built("bgp_speaker"), "192.0.2.200", "5555", "65000", "192.0.2.200", "announce=203.0.113.0/24"];
    let program: Vec<&str> = program.into_iter().chain(["192.0.2.9:1790=65001"]).collect();
    let mut w = World::started("bgptwo", service, &program, Hosted::ByRun, FOUR, |_| ());
    let master = w.protected();
    wait_listening(w.pair.host(master), PORT, PATIENCE).expect("the speaker listens");
    let listener = w.peer.enter(|| TcpListener::bind("192.0.2.9:1790")).expect("a listener");

    // The speaker's identifier is the higher one.
    let good_open = |identifier| open(4, 65001, 90, identifier, &[2, 6, 65, 4, 0, 0, 0xfd, 0xe9]);
    let confirmed = |mut neighbour: Neighbour, identifier| {
        neighbour.hear_a(OPEN);
        neighbour.say(&good_open(identifier));
        neighbour.hear_a(KEEPALIVE);
        neighbour
    };
    let called = || Neighbour::of(listener.accept().expect("a call").0);
    let low = 0xc000_0209;
    let mut ours = confirmed(called(), low);
    for established in [false, true] {
        if established {
            ours.say(&message(KEEPALIVE, &[]));
            ours.hear_a(UPDATE);
        }
        let mut theirs = Neighbour::new(&w);
        theirs.hear_a(OPEN);
        theirs.say(&good_open(low));
        theirs.ends_with(6, 7, &[], "the speaker's own connection stays");
    }
    w.fail_over(Fault::Switchover);
    ours.hear_a(KEEPALIVE);
    ours.say(&update(&[], &[ORIGIN], PREFIX));
    ours.ends_with(3, 3, &[2], "it is the same session");

    // The neighbour's is.
    let high = 0xc000_02ff;
    let ours = confirmed(called(), high);
    let mut theirs = confirmed(Neighbour::new(&w), high);
    ours.ends_with(6, 7, &[], "the neighbour's connection stays");
    theirs.say(&message(KEEPALIVE, &[]));
    theirs.hear_a(UPDATE);
    w.fail_over(Fault::KillAll);
    theirs.hear_a(KEEPALIVE);
    std::thread::sleep(Duration::from_secs(3));
    listener.set_nonblocking(true).expect("not blocking");
    assert!(listener.accept().is_err(), "the neighbour is not called");
    theirs.say(&message(KEEPALIVE, &[0]));
    theirs.ends_with(1, 2, &[0, 20], "it is the same session");
}
