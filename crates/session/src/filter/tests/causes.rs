//! Proxies: whose an outgoing connection is, and who has it back after a takeover.

use super::*;
use crate::record::Cause;

fn upstream() -> SocketAddr {
    "198.51.100.9:7777".parse().unwrap()
}

fn out_tuple(port: u16) -> FourTuple {
    FourTuple { local: ([192, 0, 2, 200], port).into(), peer: upstream() }
}

fn proxying(hooked: bool) -> Filter {
    let outgoing = vec![(upstream(), PortPolicy::default())];
    let engine = if hooked { Engine::Repair } else { Engine::Splice };
    Filter::new(FilterConfig { outgoing, engine, hooked, ..config() })
}

/// A proxy's master, and what the tests do in its name. Handles are the ports of the connections.
struct Proxy {
    r: Rig,
    socket: u64,
    channel: u32,
}

impl Proxy {
    fn new() -> Proxy {
        let mut r = Rig::new();
        r.f = proxying(true);
        r.replica = proxying(true);
        r.f.activate();
        r.f.hold_for_replica(0);
        Proxy { r, socket: 0, channel: CHANNEL }
    }

    fn id(&self, port: u16) -> u32 {
        let at = if port >= 30_000 { out_tuple(port) } else { tuple(port) };
        self.r.f.store().find(&at).expect("a session")
    }

    fn cause(&self, port: u16) -> Option<Cause> {
        self.r.f.store().get(self.id(port)).unwrap().cause
    }

    /// A client connects, and this thread accepts it.
    fn accepts(&mut self, port: u16, thread: u32) {
        self.r.port = port;
        self.r.handshake(false);
        self.holds(port, thread, Origin::Accepted);
    }

    fn holds(&mut self, port: u16, thread: u32, origin: Origin) {
        self.r.f.attach(self.r.now, self.channel, u32::from(port), origin, &tuple(port));
        self.r.f.taken(self.channel, thread, u32::from(port), origin);
    }

    /// A client says something.
    fn says(&mut self, port: u16) {
        self.r.port = port;
        let at = self.r.f.store().get(self.id(port)).unwrap().in_end();
        let from = self.r.f.store().get(self.id(port)).unwrap().out_acked;
        self.r.peer(say(ACK, at, from, b"word\n"));
    }

    /// The same, and this thread reads it.
    fn reads(&mut self, port: u16, thread: u32) {
        self.says(port);
        self.r.f.read(self.r.now, self.channel, thread, u32::from(port), 5);
    }

    /// The backend says something.
    fn hears(&mut self, port: u16, thread: u32) {
        let s = self.r.f.store().get(self.id(port)).unwrap();
        let packet = packet(port, false, ACK, s.in_seq(s.in_end()), s.out_seq(s.out_acked), b"echo\n");
        self.r.inp(&packet);
        self.r.f.read(self.r.now, self.channel, thread, u32::from(port), 5);
    }

    fn writes(&mut self, port: u16, thread: u32) {
        self.r.writes(self.channel, thread, u32::from(port), b"word\n");
    }

    fn waits(&mut self, thread: u32) {
        self.r.f.turn_end(self.r.now, self.channel, thread);
        self.r.f.run_commits(self.r.now);
        self.r.drain();
    }

    /// This thread connects from that port. What came of its SYN.
    fn calls(&mut self, port: u16, thread: u32) -> Vec<Action> {
        self.socket += 1;
        self.r.f.lend(self.channel, thread, self.socket, upstream(), false);
        self.r.f.called_by(out_tuple(port), Some(self.socket));
        let syn = packet(port, true, SYN, isn(port), Seq(0), b"");
        self.r.id += 1;
        self.r.f.packet_out(self.r.now, self.r.id, &syn);
        self.r.drain()
    }

    /// The same, and the backend accepts it.
    fn connects(&mut self, port: u16, thread: u32) {
        self.calls(port, thread);
        self.answered(port);
    }

    fn answered(&mut self, port: u16) {
        self.r.inp(&packet(port, false, SYN | ACK, Seq(u32::from(port) + 7), isn(port).add(1), b""));
        self.r.stored();
        self.r.f.attach(self.r.now, self.channel, u32::from(port), Origin::Connected, &out_tuple(port));
    }

    /// The replica takes over; its program is another process.
    fn taken_over(&mut self) {
        self.overtakes();
        for id in self.r.f.unrestored() {
            self.restored(id);
        }
        self.r.drain();
        self.r.actions.clear();
    }

    fn overtakes(&mut self) {
        self.r.stored();
        let mut snapshot = Vec::new();
        self.r.f.snapshot(&mut snapshot);
        let mut f = proxying(true);
        f.replica_apply(&snapshot).unwrap();
        assert!(f.store() == self.r.replica.store(), "I5");
        self.r.f = f;
        self.channel += 1;
        self.r.f.take_over(self.r.now);
        self.r.drain();
    }

    fn restored(&mut self, id: u32) {
        if self.r.f.splices(id) {
            self.r.f.splice(self.r.now, id);
        } else {
            let spec = self.r.f.restore_spec(id, true, 0).expect("a socket");
            self.r.f.restored(self.r.now, id, spec.sent.len());
        }
    }

    /// The new program calls from a port of its own, and has this one back; None: it makes a new one.
    fn has_back(&mut self, port: u16, thread: u32) -> Option<u16> {
        let came = self.calls(port, thread);
        let injected = came.iter().any(|a| matches!(a, Action::Inject(p) if Segment::parse(p).unwrap().flags() == SYN | ACK));
        injected.then(|| self.r.f.peer_tuple(&out_tuple(port)).expect("known").local.port())
    }

    fn is_there(&self, port: u16) -> bool {
        let at = if port >= 30_000 { out_tuple(port) } else { tuple(port) };
        self.r.f.store().find(&at).is_some()
    }

    /// The peer of that connection resets it.
    fn is_reset(&mut self, port: u16) -> Vec<Action> {
        let s = self.r.f.store().get(self.id(port)).unwrap();
        if port >= 30_000 {
            let gone = packet(port, false, RST, s.in_seq(s.in_end()), Seq(0), b"");
            return self.r.inp(&gone);
        }
        let gone = say(RST, s.in_end(), 0, b"");
        self.r.port = port;
        self.r.peer(gone)
    }

    fn sessions(&self) -> usize {
        self.r.f.store().len()
    }
}

fn isn(port: u16) -> Seq {
    Seq(u32::from(port) * 1000)
}

fn packet(port: u16, out: bool, flags: u8, seq: Seq, ack: Seq, payload: &[u8]) -> Vec<u8> {
    let t = out_tuple(port);
    let (source, destination) = if out { (t.local, t.peer) } else { (t.peer, t.local) };
    let mut packet = Vec::new();
    Build { source, destination, seq, ack, flags, window: 60_000, timestamps: None, payload }.write(&mut packet);
    packet
}

const ALICE: u16 = 1001;
const BOB: u16 = 1002;
const TO_ALICES: u16 = 40_001;
const TO_BOBS: u16 = 40_002;
const CAROL: u16 = 1003;
const TO_CAROLS: u16 = 40_003;

/// A thread for each client, which connects when its client has said something: bob's is first.
fn of_threads() -> Proxy {
    let mut p = Proxy::new();
    p.accepts(ALICE, 1);
    p.accepts(BOB, 1);
    p.waits(1);
    for (client, to, thread) in [(BOB, TO_BOBS, 3), (ALICE, TO_ALICES, 2)] {
        p.reads(client, thread);
        p.connects(to, thread);
        p.writes(to, thread);
        p.waits(thread);
    }
    p
}

#[test]
fn each_client_has_its_own_connection_back() {
    let mut p = of_threads();
    p.taken_over();
    for client in [ALICE, BOB] {
        p.holds(client, 1, Origin::Recovered);
    }
    p.r.f.lift_barrier(p.r.now);
    // Alice is first this time.
    p.reads(ALICE, 5);
    assert_eq!(p.has_back(50_001, 5), Some(TO_ALICES));
    p.reads(BOB, 6);
    assert_eq!(p.has_back(50_002, 6), Some(TO_BOBS));
    assert_eq!((p.sessions(), p.r.f.counters().unpaired), (4, 0));
}

#[test]
fn what_a_client_caused_nobody_else_gets() {
    let mut p = of_threads();
    p.taken_over();
    p.holds(ALICE, 1, Origin::Recovered);
    p.holds(BOB, 1, Origin::Recovered);
    p.r.f.lift_barrier(p.r.now);
    p.reads(ALICE, 5);
    assert_eq!(p.has_back(50_001, 5), Some(TO_ALICES));
    assert_eq!(p.has_back(50_002, 5), None, "it may be bob's, and may not");
    assert!(p.r.f.store().find(&tuple(BOB)).is_some());
    // Bob says nothing for a minute. Then neither he nor his connection is there any more.
    p.r.pass(ms(61_000));
    assert!(p.r.f.store().find(&tuple(BOB)).is_none() && p.r.f.store().find(&out_tuple(TO_BOBS)).is_none());
    assert_eq!(p.r.f.counters().unpaired, 2);
    assert!(p.r.f.store().find(&tuple(ALICE)).is_some());
}

#[test]
fn a_program_that_connects_when_it_accepts_is_given_one_client_at_a_time() {
    let mut p = Proxy::new();
    for (client, to) in [(ALICE, TO_ALICES), (BOB, TO_BOBS)] {
        p.accepts(client, 1);
        p.connects(to, 1);
    }
    let of = |p: &Proxy, client| Some(Cause::Of { session: p.id(client), nth: 1, read: false });
    assert_eq!((p.cause(TO_ALICES), p.cause(TO_BOBS)), (of(&p, ALICE), of(&p, BOB)));
    p.taken_over();
    let (alice, bob) = (p.id(ALICE), p.id(BOB));
    assert!([alice, bob].iter().all(|id| p.r.f.hand_out(*id) == HandOut::Alone) && p.r.f.gate(p.r.now).is_none());
    p.r.f.handed_out(p.r.now, bob);
    p.r.pass(ms(1000));
    assert!(p.r.f.gate(p.r.now).is_some() && !p.r.f.next_may(), "it has not been accepted");
    p.holds(BOB, 1, Origin::Recovered);
    assert_eq!(p.has_back(50_002, 1), Some(TO_BOBS));
    assert!(p.r.f.gate(p.r.now).is_none());
    p.r.f.handed_out(p.r.now, alice);
    p.holds(ALICE, 1, Origin::Recovered);
    assert!(p.r.f.gate(p.r.now).is_some());
    p.r.pass(ms(1000));
    assert!(p.r.f.gate(p.r.now).is_none() && p.r.f.next_may(), "not for ever");
    assert_eq!(p.has_back(50_001, 1), Some(TO_ALICES));
    assert_eq!(p.r.f.counters().unpaired, 0);
}

/// One thread for all; it connects when a client has said something.
fn lazily() -> Proxy {
    let mut p = Proxy::new();
    for (client, to) in [(ALICE, TO_ALICES), (BOB, TO_BOBS), (CAROL, TO_CAROLS)] {
        p.accepts(client, 1);
        if client != BOB {
            p.waits(1);
        }
        p.reads(client, 1);
        p.connects(to, 1);
        p.writes(to, 1);
        p.waits(1);
    }
    p
}

#[test]
fn a_program_that_connects_when_it_has_read_is_given_each_client_when_that_says_something() {
    for hands in [false, true] {
        let mut p = lazily();
        let of = |p: &Proxy, client| Some(Cause::Of { session: p.id(client), nth: 1, read: true });
        assert_eq!((p.cause(TO_ALICES), p.cause(TO_BOBS)), (of(&p, ALICE), of(&p, BOB)));
        if hands {
            // What carol says next was read, and went nowhere.
            p.reads(CAROL, 1);
        }
        p.taken_over();
        let [alice, bob, carol] = [ALICE, BOB, CAROL].map(|port| p.id(port));
        assert_eq!([alice, bob].map(|id| p.r.f.hand_out(id)), [HandOut::NotYet; 2]);
        if hands {
            assert_eq!((p.r.f.hand_out(carol), p.r.f.not_handed_over()), (HandOut::Alone, 1));
            p.r.f.barrier_met(p.r.now);
            assert!(p.r.f.mode() == Mode::Restoring);
            p.r.f.handed_out(p.r.now, carol);
            p.holds(CAROL, 1, Origin::Recovered);
            let came = p.r.drain();
            let shown = came.iter().any(|a| matches!(a, Action::Inject(p) if Segment::parse(p).unwrap().payload() == b"word\n"));
            assert!(shown, "its input comes with it: {came:?}");
            p.r.f.read(p.r.now, p.channel, 1, u32::from(CAROL), 5);
            assert_eq!(p.has_back(50_003, 1), Some(TO_CAROLS));
        }
        // Nobody waits for those who say nothing.
        p.r.f.barrier_met(p.r.now);
        assert!(p.r.f.mode() == Mode::Active && p.r.f.gate(p.r.now).is_none());
        p.accepts(1004, 1);
        p.reads(1004, 1);
        p.connects(40_004, 1);
        p.writes(40_004, 1);
        p.waits(1);
        assert!(!p.r.f.next_may() && p.r.f.any_later());
        for (client, port, has) in [(BOB, 50_002, TO_BOBS), (ALICE, 50_001, TO_ALICES)] {
            p.says(client);
            let id = p.id(client);
            assert!(p.r.f.next_may() && p.r.f.hand_out(id) == HandOut::Alone);
            p.r.f.handed_out(p.r.now, id);
            assert!(p.r.f.gate(p.r.now).is_some());
            p.holds(client, 1, Origin::Recovered);
            p.r.f.read(p.r.now, p.channel, 1, u32::from(client), 5);
            assert_eq!(p.has_back(port, 1), Some(has));
            assert!(p.r.f.gate(p.r.now).is_none());
            p.waits(1);
        }
        assert_eq!((p.r.f.any_later(), p.r.f.counters().unpaired), (!hands, 0));
    }
}

/// One turn of an event loop: a reply for alice, and bob's first word.
#[test]
fn what_was_passed_on_before_another_client_was_read_is_not_what_makes_the_program_connect() {
    for bob_first in [false, true] {
        let mut p = lazily();
        p.taken_over();
        p.r.f.barrier_met(p.r.now);
        for client in [ALICE, BOB] {
            p.says(client);
            let id = p.id(client);
            p.r.f.handed_out(p.r.now, id);
            p.holds(client, 1, Origin::Recovered);
            if client == ALICE {
                p.r.f.read(p.r.now, p.channel, 1, u32::from(ALICE), 5);
                assert_eq!(p.has_back(50_001, 1), Some(TO_ALICES));
                p.r.f.attach(p.r.now, p.channel, u32::from(TO_ALICES), Origin::Connected, &out_tuple(50_001));
                p.writes(TO_ALICES, 1);
                p.waits(1);
            }
        }
        if bob_first {
            p.r.f.read(p.r.now, p.channel, 1, u32::from(BOB), 5);
        }
        p.hears(TO_ALICES, 1);
        p.writes(ALICE, 1);
        if bob_first {
            assert_eq!(p.has_back(50_002, 1), None, "it may be alice's second one");
        } else {
            p.r.f.read(p.r.now, p.channel, 1, u32::from(BOB), 5);
            assert_eq!(p.has_back(50_002, 1), Some(TO_BOBS));
        }
    }
}

/// A program that looks for a reply and finds none has heard nothing that it could connect for.
#[test]
fn what_was_not_there_to_be_read_makes_no_program_connect() {
    let mut p = Proxy::new();
    p.accepts(ALICE, 1);
    p.connects(TO_ALICES, 1);
    p.r.f.read(p.r.now, p.channel, 1, u32::from(TO_ALICES), 0);
    p.waits(1);
    p.accepts(BOB, 1);
    p.connects(TO_BOBS, 1);
    let of = |p: &Proxy, client| Some(Cause::Of { session: p.id(client), nth: 1, read: false });
    assert_eq!((p.cause(TO_ALICES), p.cause(TO_BOBS)), (of(&p, ALICE), of(&p, BOB)));
}

/// A client that comes while another's connect is waited for would be one more that it may be for.
#[test]
fn new_clients_wait_for_the_connect_of_one_that_is_handed_out() {
    let mut p = lazily();
    p.taken_over();
    p.r.f.barrier_met(p.r.now);
    p.accepts(1004, 1);
    assert!(p.r.f.gate(p.r.now).is_some(), "it may connect for this one, without a word of it");
    p.says(ALICE);
    p.reads(1004, 1);
    assert!(p.r.f.gate(p.r.now).is_none());
    p.connects(40_004, 1);
    p.writes(40_004, 1);
    p.waits(1);
    let alice = p.id(ALICE);
    p.r.f.handed_out(p.r.now, alice);
    p.holds(ALICE, 1, Origin::Recovered);
    p.r.port = 1005;
    let syn = p.r.syn(false);
    let came = p.r.inp(&syn);
    assert_eq!(came, []);
    p.r.f.read(p.r.now, p.channel, 1, u32::from(ALICE), 5);
    let came = p.calls(50_001, 1);
    assert!(came.iter().any(|a| matches!(a, Action::AcceptIn(_))), "{came:?}");
    // Not for ever.
    p.says(BOB);
    let bob = p.id(BOB);
    p.r.f.handed_out(p.r.now, bob);
    p.holds(BOB, 1, Origin::Recovered);
    p.r.port = 1006;
    let syn = p.r.syn(false);
    assert_eq!(p.r.inp(&syn), []);
    let came = p.r.pass(ms(1000));
    assert!(came.iter().any(|a| matches!(a, Action::AcceptIn(_))), "{came:?}");
}

/// A reply waits, and the program will not fetch it: handed out, the client would be one that each other's connect may be for.
#[test]
fn a_client_that_waits_for_a_reply_is_reset_and_spoils_nobody_elses_connect() {
    let mut p = lazily();
    p.taken_over();
    let bob = p.id(BOB);
    let s = p.r.f.store().get(p.id(TO_BOBS)).unwrap();
    let reply = packet(TO_BOBS, false, ACK, s.in_seq(s.in_end()), s.out_seq(s.out_done), b"echo\n");
    p.r.inp(&reply);
    assert!(p.r.f.hand_out(bob) == HandOut::NotYet && !p.r.f.next_may());
    p.r.pass(Duration::from_secs(2));
    p.says(ALICE);
    let id = p.id(ALICE);
    p.r.f.handed_out(p.r.now, id);
    p.holds(ALICE, 1, Origin::Recovered);
    p.r.f.read(p.r.now, p.channel, 1, u32::from(ALICE), 5);
    assert_eq!(p.has_back(50_001, 1), Some(TO_ALICES));
    p.r.pass(Duration::from_secs(10));
    assert!(p.r.f.store().find(&tuple(BOB)).is_none() && p.r.f.store().find(&out_tuple(TO_BOBS)).is_none());
    assert_eq!((p.sessions(), p.r.f.counters().unpaired), (4, 2));
}

/// A program that is slow to connect when it has a client, and has to read it first after all.
#[test]
fn a_client_that_is_handed_out_shows_its_input_when_nothing_comes_of_it() {
    let mut p = Proxy::new();
    p.accepts(ALICE, 1);
    p.connects(TO_ALICES, 1);
    p.accepts(BOB, 1);
    p.waits(1);
    p.reads(ALICE, 1);
    p.taken_over();
    let alice = p.id(ALICE);
    p.r.f.handed_out(p.r.now, alice);
    p.holds(ALICE, 1, Origin::Recovered);
    assert_eq!(p.r.drain(), []);
    let came = p.r.pass(ms(250));
    assert!(came.iter().any(|a| matches!(a, Action::Inject(_))), "{came:?}");
    assert!(p.r.f.mode() == Mode::Restoring && p.r.f.gate(p.r.now).is_some());
    p.r.f.read(p.r.now, p.channel, 1, u32::from(ALICE), 5);
    assert_eq!(p.has_back(50_001, 1), Some(TO_ALICES));
}

/// Two clients are accepted in one turn, then the program connects twice.
fn accepted_together() -> Proxy {
    let mut p = Proxy::new();
    p.accepts(ALICE, 1);
    p.accepts(BOB, 1);
    p.connects(TO_BOBS, 1);
    p.connects(TO_ALICES, 1);
    p
}

#[test]
fn whose_it_is_not_is_known_is_reset_and_so_is_whoever_it_may_belong_to() {
    let mut p = accepted_together();
    p.accepts(1003, 9);
    p.reads(1003, 9);
    for port in [ALICE, BOB, TO_ALICES, TO_BOBS] {
        assert_eq!(p.cause(port), Some(Cause::Unclear { all: false }), "{port}");
    }
    p.taken_over();
    assert_eq!((p.sessions(), p.r.f.counters().torn, p.r.f.counters().unpaired), (1, 4, 4));
    assert!(p.r.f.store().find(&tuple(1003)).is_some(), "it has nothing to do with them");
}

#[test]
fn bytes_that_flow_show_whose_it_is() {
    let mut p = accepted_together();
    p.waits(1);
    p.reads(BOB, 1);
    p.writes(TO_BOBS, 1);
    p.waits(1);
    assert_eq!(p.cause(TO_BOBS), Some(Cause::Of { session: p.id(BOB), nth: 1, read: false }));
    // The other way round. Both were known to be one of these two's.
    p.hears(TO_ALICES, 1);
    p.writes(ALICE, 1);
    p.waits(1);
    assert_eq!(p.cause(TO_ALICES), Some(Cause::Of { session: p.id(ALICE), nth: 1, read: false }));
    assert_eq!((p.cause(ALICE), p.cause(BOB)), (None, None));
    p.taken_over();
    assert_eq!((p.sessions(), p.r.f.counters().unpaired), (4, 0));
}

/// What one client has said is passed on while another one's connect is under way: the other one's request has gone nowhere.
#[test]
fn a_request_that_waits_for_its_connection_is_not_done_by_what_others_are_told() {
    let done = |p: &Proxy, port| p.r.f.store().get(p.id(port)).unwrap().in_done;
    // It shows in the same moment whose the connection is.
    let mut p = accepted_together();
    p.waits(1);
    p.reads(BOB, 1);
    p.waits(1);
    p.accepts(CAROL, 1);
    p.waits(1);
    p.reads(CAROL, 1);
    p.writes(TO_BOBS, 1);
    p.waits(1);
    assert_eq!(p.cause(TO_BOBS), Some(Cause::Of { session: p.id(BOB), nth: 1, read: false }));
    assert_eq!((done(&p, BOB), done(&p, CAROL)), (5, 0));
    p.hears(TO_BOBS, 1);
    p.reads(CAROL, 1);
    p.writes(BOB, 1);
    p.waits(1);
    assert_eq!((done(&p, TO_BOBS), done(&p, CAROL)), (5, 0));
    // It does not.
    let mut p = accepted_together();
    p.waits(1);
    p.reads(BOB, 1);
    p.reads(ALICE, 1);
    p.waits(1);
    p.accepts(CAROL, 1);
    p.waits(1);
    p.reads(CAROL, 1);
    p.writes(TO_BOBS, 1);
    p.writes(TO_ALICES, 1);
    p.waits(1);
    for to in [TO_ALICES, TO_BOBS] {
        assert_eq!(p.cause(to), Some(Cause::Unclear { all: false }), "{to}");
    }
    p.hears(TO_BOBS, 1);
    p.hears(TO_ALICES, 1);
    p.reads(CAROL, 1);
    p.writes(ALICE, 1);
    p.writes(BOB, 1);
    p.waits(1);
    assert_eq!((done(&p, ALICE), done(&p, BOB), done(&p, CAROL)), (5, 5, 0));
    // Nor when the client has had its answer, and is told more.
    p.hears(TO_BOBS, 1);
    p.hears(TO_ALICES, 1);
    p.reads(CAROL, 1);
    p.writes(BOB, 1);
    p.waits(1);
    assert_eq!(done(&p, CAROL), 0);
    p.connects(TO_CAROLS, 1);
    p.writes(TO_CAROLS, 1);
    p.waits(1);
    assert_eq!(done(&p, CAROL), 15);
}

/// As HTTP proxies do with connections that they keep.
#[test]
fn what_serves_more_than_one_client_is_nobodys() {
    for answer in [false, true] {
        let mut p = of_threads();
        if answer {
            p.hears(TO_BOBS, 8);
            p.writes(ALICE, 8);
        } else {
            p.waits(3);
            p.reads(ALICE, 3);
            p.writes(TO_BOBS, 3);
        }
        assert_eq!(p.cause(TO_BOBS), Some(Cause::Unclear { all: false }));
        p.taken_over();
        // Alice's other connection goes with her.
        assert_eq!((p.sessions(), p.r.f.counters().unpaired), (0, 4), "{answer}");
    }
}

#[test]
fn what_outlives_its_client_is_reset() {
    let mut p = of_threads();
    p.r.port = BOB;
    let at = p.r.f.store().get(p.id(BOB)).unwrap().in_end();
    p.r.peer(say(RST, at, 0, b""));
    assert_eq!(p.cause(TO_BOBS), Some(Cause::Unclear { all: false }));
    p.taken_over();
    assert_eq!((p.sessions(), p.r.f.counters().unpaired), (2, 1));
}

#[test]
fn a_client_that_goes_takes_along_what_waits_for_it() {
    let mut p = of_threads();
    p.taken_over();
    p.r.port = BOB;
    let at = p.r.f.store().get(p.id(BOB)).unwrap().in_end();
    p.r.peer(say(RST, at, 0, b""));
    assert!(p.r.f.store().find(&out_tuple(TO_BOBS)).is_none());
    assert_eq!(p.sessions(), 2);
}

#[test]
fn a_backend_that_goes_before_it_is_called_again_takes_its_client_along() {
    let mut p = of_threads();
    p.taken_over();
    p.holds(BOB, 1, Origin::Recovered);
    let s = p.r.f.store().get(p.id(TO_BOBS)).unwrap();
    let gone = packet(TO_BOBS, false, RST, s.in_seq(s.in_end()), Seq(0), b"");
    let came = p.r.inp(&gone);
    assert!(p.r.f.store().find(&tuple(BOB)).is_none(), "it would talk to another one");
    assert!(came.contains(&Action::Destroy(tuple(BOB))), "and its program is told: {came:?}");
    assert_eq!(p.sessions(), 2);
}

/// The program has called for it, and has neither read nor written anything: it would try again.
#[test]
fn a_backend_that_goes_before_a_byte_has_flowed_takes_its_client_along() {
    for flows in [false, true] {
        let mut p = of_threads();
        p.taken_over();
        p.holds(BOB, 1, Origin::Recovered);
        p.r.f.lift_barrier(p.r.now);
        p.reads(BOB, 6);
        assert_eq!(p.has_back(50_002, 6), Some(TO_BOBS));
        if flows {
            p.r.f.attach(p.r.now, p.channel, u32::from(TO_BOBS), Origin::Connected, &out_tuple(50_002));
            p.writes(TO_BOBS, 6);
        }
        p.is_reset(TO_BOBS);
        assert_eq!((p.is_there(TO_BOBS), p.is_there(BOB)), (false, flows), "{flows}");
    }
}

/// A program that connects when its client has said something will not do so: all that the client has said was passed on. What
/// the backend answers after the takeover has no way to the client.
#[test]
fn a_client_that_waits_for_a_reply_that_nobody_will_fetch_is_reset() {
    let mut p = of_threads();
    p.taken_over();
    for client in [ALICE, BOB] {
        p.holds(client, 1, Origin::Recovered);
    }
    p.r.f.lift_barrier(p.r.now);
    p.r.pass(Duration::from_secs(20));
    assert_eq!(p.sessions(), 4, "nobody waits for anything yet");
    let s = p.r.f.store().get(p.id(TO_BOBS)).unwrap();
    let reply = packet(TO_BOBS, false, ACK, s.in_seq(s.in_end()), s.out_seq(s.out_done), b"echo\n");
    p.r.inp(&reply);
    // Whoever does not know the numbers says nothing.
    let s = p.r.f.store().get(p.id(TO_ALICES)).unwrap();
    let forged = packet(TO_ALICES, false, ACK, s.in_seq(s.in_end()).add(2_000_000), s.out_seq(s.out_done), b"echo\n");
    let old = packet(TO_ALICES, false, ACK, s.in_seq(s.in_end()).add(u32::MAX.into()), s.out_seq(s.out_done), b"o");
    p.r.inp(&forged);
    p.r.inp(&old);
    let came = p.r.pass(Duration::from_secs(10));
    assert!(p.r.f.store().find(&tuple(BOB)).is_none() && p.r.f.store().find(&out_tuple(TO_BOBS)).is_none());
    assert!(came.contains(&Action::Destroy(tuple(BOB))), "its program is told: {came:?}");
    assert_eq!(p.sessions(), 2, "the other one goes on");
}

#[test]
fn a_client_that_is_given_another_connection_than_its_own_does_not_go_on() {
    let mut p = of_threads();
    p.taken_over();
    p.holds(ALICE, 1, Origin::Recovered);
    p.holds(BOB, 1, Origin::Recovered);
    p.r.f.lift_barrier(p.r.now);
    // Some other thread connects for bob, and nobody knows.
    p.reads(ALICE, 7);
    p.reads(BOB, 7);
    assert_eq!(p.has_back(50_009, 7), None);
    p.answered(50_009);
    p.waits(7);
    p.waits(8);
    p.hears(50_009, 8);
    p.writes(BOB, 8);
    assert!(p.r.f.store().find(&tuple(BOB)).is_none() && p.r.f.store().find(&out_tuple(TO_BOBS)).is_none());
    assert!(p.r.f.store().find(&tuple(ALICE)).is_some());
}

/// It has said something in the same turn, which might be what it is answered; or the thread has waited for another one
/// between the two.
#[test]
fn a_client_that_is_told_what_another_connection_than_its_own_says_does_not_go_on() {
    for waits in [false, true] {
        let mut p = of_threads();
        p.taken_over();
        p.holds(ALICE, 1, Origin::Recovered);
        p.holds(BOB, 1, Origin::Recovered);
        p.r.f.lift_barrier(p.r.now);
        p.reads(ALICE, 7);
        p.reads(BOB, 7);
        assert_eq!(p.has_back(50_009, 7), None);
        p.answered(50_009);
        p.waits(7);
        if !waits {
            p.reads(BOB, 8);
        }
        p.hears(50_009, 8);
        if waits {
            p.waits(8);
        }
        p.writes(BOB, 8);
        assert!(p.r.f.store().find(&tuple(BOB)).is_none() && p.r.f.store().find(&out_tuple(TO_BOBS)).is_none(), "{waits}");
        assert!(p.r.f.store().find(&tuple(ALICE)).is_some());
    }
}

/// What he says must not reach another one's backend, not even until that answers: a connection that is known for alice's, and
/// one that is one of two other clients'.
#[test]
fn a_client_that_talks_to_another_connection_than_its_own_does_not_go_on() {
    for known in [false, true] {
        let mut p = of_threads();
        p.taken_over();
        p.holds(ALICE, 1, Origin::Recovered);
        p.holds(BOB, 1, Origin::Recovered);
        p.r.f.lift_barrier(p.r.now);
        p.reads(BOB, 8);
        p.reads(ALICE, 7);
        if known {
            assert_eq!(p.has_back(50_009, 7), Some(TO_ALICES));
            p.r.f.attach(p.r.now, p.channel, u32::from(TO_ALICES), Origin::Connected, &out_tuple(50_009));
            p.writes(TO_ALICES, 8);
        } else {
            p.accepts(CAROL, 7);
            p.reads(CAROL, 7);
            p.connects(50_009, 7);
            assert_eq!(p.cause(50_009), Some(Cause::Unclear { all: false }));
            assert_eq!(p.cause(BOB), None);
            p.writes(50_009, 8);
        }
        assert!(!p.is_there(BOB) && !p.is_there(TO_BOBS), "{known}");
        assert!(p.is_there(ALICE), "{known}");
    }
}

/// It was taken for alice's first one. Where one of hers had been, a connect would make a new one.
#[test]
fn what_was_somebody_elses_leaves_no_place_free() {
    let mut p = Proxy::new();
    p.accepts(ALICE, 1);
    p.accepts(BOB, 1);
    p.waits(1);
    p.reads(ALICE, 2);
    p.connects(TO_BOBS, 2);
    p.connects(TO_ALICES, 2);
    p.writes(TO_ALICES, 2);
    p.waits(2);
    let of_alice = |p: &Proxy, nth| Some(Cause::Of { session: p.id(ALICE), nth, read: true });
    assert_eq!((p.cause(TO_BOBS), p.cause(TO_ALICES)), (of_alice(&p, 1), of_alice(&p, 2)));
    p.reads(BOB, 3);
    p.writes(TO_BOBS, 3);
    assert_eq!((p.cause(TO_BOBS), p.cause(TO_ALICES)), (Some(Cause::Unclear { all: false }), of_alice(&p, 1)));
    let s = p.r.f.store().get(p.id(TO_BOBS)).unwrap();
    let gone = packet(TO_BOBS, false, RST, s.in_seq(s.in_end()), Seq(0), b"");
    p.r.inp(&gone);
    p.taken_over();
    p.holds(ALICE, 4, Origin::Recovered);
    p.r.f.lift_barrier(p.r.now);
    p.reads(ALICE, 4);
    assert_eq!(p.has_back(50_001, 4), Some(TO_ALICES));
    assert_eq!(p.r.f.counters().unpaired, 0);
}

/// What a client had said before it was gone is passed on later. It is no other client's first connection, in whose place a
/// new one would be made at a takeover.
#[test]
fn what_was_made_for_a_client_that_is_gone_is_not_taken_for_another_ones() {
    // Gone before both connects, or between them.
    for before in [false, true] {
        let mut p = Proxy::new();
        p.accepts(ALICE, 1);
        p.accepts(BOB, 1);
        p.waits(1);
        p.reads(ALICE, 2);
        p.reads(BOB, 2);
        let bob_goes = |p: &mut Proxy| {
            let at = p.r.f.store().get(p.id(BOB)).unwrap().in_end();
            p.r.port = BOB;
            p.r.peer(say(RST, at, 0, b""));
            assert!(p.r.f.store().find(&tuple(BOB)).is_none());
        };
        if before {
            bob_goes(&mut p);
        }
        p.connects(TO_BOBS, 2);
        if !before {
            bob_goes(&mut p);
        }
        p.connects(TO_ALICES, 2);
        p.waits(2);
        p.writes(TO_BOBS, 2);
        p.waits(2);
        p.writes(TO_ALICES, 2);
        p.waits(2);
        p.hears(TO_ALICES, 2);
        p.writes(ALICE, 2);
        p.waits(2);
        assert_eq!(p.cause(TO_BOBS), Some(Cause::Unclear { all: false }), "{before}");
        assert_eq!(p.cause(TO_ALICES), Some(Cause::Of { session: p.id(ALICE), nth: 1, read: true }), "{before}");
        assert_eq!(p.cause(ALICE), Some(Cause::Unclear { all: false }), "{before}");
        let s = p.r.f.store().get(p.id(TO_BOBS)).unwrap();
        let gone = packet(TO_BOBS, false, RST, s.in_seq(s.in_end()), Seq(0), b"");
        p.r.inp(&gone);
        assert_eq!(p.cause(ALICE), None, "{before}");
        p.reads(ALICE, 2);
        p.taken_over();
        p.holds(ALICE, 4, Origin::Recovered);
        p.r.f.lift_barrier(p.r.now);
        p.r.f.read(p.r.now, p.channel, 4, u32::from(ALICE), 5);
        assert_eq!(p.has_back(50_001, 4), Some(TO_ALICES), "{before}");
        assert_eq!(p.r.f.counters().unpaired, 0, "{before}");
    }
}

/// The same, where the connection had been known for his, or may be anybody's: a thread that has had several clients connects
/// while another one's client is new.
#[test]
fn what_a_client_that_is_gone_has_left_ties_its_connection_to_nobody_else() {
    for anybodys in [false, true] {
        let mut p = Proxy::new();
        if anybodys {
            for (client, to) in [(1004, 40_004), (1005, 40_005)] {
                p.accepts(client, 1);
                p.waits(1);
                p.reads(client, 2);
                p.connects(to, 2);
                p.writes(to, 2);
                p.waits(2);
            }
        }
        p.accepts(ALICE, 1);
        p.accepts(BOB, 1);
        p.waits(1);
        if anybodys {
            p.connects(TO_BOBS, 2);
            p.reads(BOB, 2);
            assert_eq!(p.cause(TO_BOBS), Some(Cause::Unclear { all: true }));
        } else {
            p.reads(BOB, 2);
            p.connects(TO_BOBS, 2);
            assert_eq!(p.cause(TO_BOBS), Some(Cause::Of { session: p.id(BOB), nth: 1, read: true }));
        }
        p.waits(2);
        p.is_reset(BOB);
        p.reads(ALICE, 2);
        p.calls(TO_ALICES, 2);
        // Bob's word, in two parts.
        p.writes(TO_BOBS, 2);
        p.writes(TO_BOBS, 2);
        assert_eq!(p.cause(TO_BOBS), Some(Cause::Unclear { all: anybodys }));
        p.answered(TO_ALICES);
        assert_eq!(p.cause(TO_ALICES), Some(Cause::Of { session: p.id(ALICE), nth: 1, read: true }));
        p.writes(TO_ALICES, 2);
        p.waits(2);
        p.hears(TO_ALICES, 2);
        p.writes(ALICE, 2);
        p.waits(2);
        assert_eq!(p.cause(ALICE), (!anybodys).then_some(Cause::Unclear { all: false }));
        p.is_reset(TO_BOBS);
        assert_eq!(p.cause(ALICE), None);
        p.reads(ALICE, 2);
        p.taken_over();
        p.holds(ALICE, 4, Origin::Recovered);
        p.r.f.lift_barrier(p.r.now);
        p.r.f.read(p.r.now, p.channel, 4, u32::from(ALICE), 5);
        assert_eq!(p.has_back(50_001, 4), Some(TO_ALICES), "{anybodys}");
    }
}

/// As proxies do that keep connections for whoever comes next.
#[test]
fn what_outlives_its_client_is_the_next_ones_when_that_one_is_answered() {
    let mut p = of_threads();
    p.accepts(CAROL, 1);
    p.waits(1);
    p.is_reset(BOB);
    p.waits(3);
    p.reads(CAROL, 3);
    p.writes(TO_BOBS, 3);
    assert_eq!((p.cause(TO_BOBS), p.cause(CAROL)), (Some(Cause::Unclear { all: false }), Some(Cause::Unclear { all: false })));
    p.waits(3);
    p.hears(TO_BOBS, 3);
    p.writes(CAROL, 3);
    assert_eq!((p.cause(TO_BOBS), p.cause(CAROL)), (Some(Cause::Of { session: p.id(CAROL), nth: 1, read: true }), None));
}

#[test]
fn a_thread_that_another_one_hands_a_client_to_is_not_taken_for_its_last_ones() {
    let mut p = of_threads();
    // Accepted by one thread, and served by bob's.
    p.accepts(1003, 1);
    p.connects(40_003, 3);
    assert_eq!((p.cause(40_003), p.cause(BOB)), (Some(Cause::Unclear { all: false }), Some(Cause::Unclear { all: false })));
    p.waits(3);
    p.reads(1003, 3);
    p.writes(40_003, 3);
    assert_eq!(p.cause(40_003), Some(Cause::Of { session: p.id(1003), nth: 1, read: false }));
    assert_eq!(p.cause(BOB), None);
}

#[test]
fn a_forked_process_connects_for_the_client_that_it_inherits() {
    let mut p = Proxy::new();
    p.accepts(ALICE, 1);
    p.channel += 10;
    p.holds(ALICE, 1, Origin::Inherited);
    p.connects(TO_ALICES, 1);
    assert_eq!(p.cause(TO_ALICES), Some(Cause::Of { session: p.id(ALICE), nth: 1, read: false }));
    p.accepts(BOB, 1);
    // Of two it may be either's.
    p.channel += 10;
    p.holds(ALICE, 1, Origin::Inherited);
    p.holds(BOB, 1, Origin::Inherited);
    p.connects(TO_BOBS, 1);
    assert_eq!(p.cause(TO_BOBS), Some(Cause::Unclear { all: false }));
}

#[test]
fn what_a_program_makes_when_it_starts_it_has_back_in_that_order() {
    let mut p = Proxy::new();
    p.connects(40_001, 1);
    p.connects(40_002, 1);
    p.taken_over();
    assert_eq!(p.has_back(50_009, 4), Some(40_001));
    assert_eq!(p.has_back(50_001, 4), Some(40_002));
    assert_eq!(p.has_back(50_002, 4), None);
}

#[test]
fn the_first_connect_has_the_first_connection_back_though_the_second_was_answered_first() {
    for of_alice in [false, true] {
        let mut p = Proxy::new();
        if of_alice {
            p.accepts(ALICE, 1);
            p.reads(ALICE, 1);
        }
        for port in [40_001, 40_002, 40_003] {
            p.calls(port, 1);
        }
        for port in [40_003, 40_001, 40_002] {
            p.answered(port);
        }
        p.taken_over();
        if of_alice {
            p.holds(ALICE, 4, Origin::Recovered);
            p.r.f.lift_barrier(p.r.now);
            p.reads(ALICE, 4);
        }
        for (port, before) in [(50_009, 40_001), (50_001, 40_002), (50_002, 40_003)] {
            assert_eq!(p.has_back(port, 4), Some(before));
        }
        assert_eq!(p.r.f.counters().unpaired, 0);
    }
}

#[test]
fn a_connection_that_was_closed_has_its_place_though_its_socket_is_yet_to_be_made() {
    let mut p = Proxy::new();
    p.connects(40_001, 1);
    p.connects(40_002, 1);
    p.r.f.close(p.r.now, p.channel, 1, 40_001, false);
    p.waits(1);
    p.overtakes();
    let second = p.id(40_002);
    p.restored(second);
    assert_eq!(p.r.f.unprobed(), 1);
    assert_eq!(p.has_back(50_001, 4), Some(40_002));
}

#[test]
fn an_answer_that_comes_when_its_process_is_dead_makes_its_thread_none_of_the_next_ones() {
    let mut p = Proxy::new();
    p.calls(40_001, 1);
    p.connects(40_002, 1);
    p.r.f.process_gone(p.r.now, p.channel);
    p.answered(40_001);
    p.r.f.recover(p.r.now);
    p.channel += 1;
    for port in [40_001, 40_002] {
        let id = p.id(port);
        p.restored(id);
    }
    p.r.drain();
    assert_eq!(p.has_back(50_001, 1), Some(40_001));
    assert_eq!(p.has_back(50_002, 1), Some(40_002));
}

#[test]
fn a_backups_program_calls_from_the_port_of_a_connection_that_is_reset_at_the_takeover() {
    let mut p = Proxy::new();
    // Nobody knows which is first.
    p.connects(40_001, 1);
    p.connects(40_002, 2);
    p.r.stored();
    let mut snapshot = Vec::new();
    p.r.f.snapshot(&mut snapshot);
    p.r.f = proxying(true);
    p.r.f.replica_apply(&snapshot).unwrap();
    p.channel += 1;
    for port in [40_002, 40_001] {
        assert_eq!(p.calls(port, 4), [Action::DropOut(p.r.id)]);
    }
    p.r.f.take_over(p.r.now);
    let came = p.r.drain();
    assert_eq!((p.sessions(), p.r.f.counters().unpaired), (0, 2));
    let syns = came.iter().filter(|a| matches!(a, Action::SendPeer(p) if Segment::parse(p).unwrap().flags() == SYN));
    assert_eq!(syns.count(), 2, "new connections");
}

#[test]
fn of_threads_that_connect_when_a_program_starts_nobody_knows_which_is_first() {
    let mut p = Proxy::new();
    p.connects(40_001, 1);
    p.connects(40_002, 2);
    p.taken_over();
    assert_eq!((p.sessions(), p.r.f.counters().unpaired), (0, 2));
    // One alone is no matter of order.
    let mut p = Proxy::new();
    p.connects(40_001, 1);
    p.accepts(ALICE, 2);
    p.taken_over();
    p.holds(ALICE, 2, Origin::Recovered);
    assert_eq!(p.has_back(50_001, 7), Some(40_001));
}

#[test]
fn the_second_one_that_a_client_caused_is_not_given_for_the_first() {
    let mut p = of_threads();
    p.connects(40_003, 3);
    assert_eq!(p.cause(40_003), Some(Cause::Of { session: p.id(BOB), nth: 2, read: true }));
    let s = p.r.f.store().get(p.id(TO_BOBS)).unwrap();
    let gone = packet(TO_BOBS, false, RST, s.in_seq(s.in_end()), Seq(0), b"");
    p.r.inp(&gone);
    p.taken_over();
    p.holds(BOB, 1, Origin::Recovered);
    p.r.f.lift_barrier(p.r.now);
    p.reads(BOB, 5);
    assert_eq!(p.has_back(50_001, 5), None);
    p.answered(50_001);
    assert_eq!(p.has_back(50_002, 5), Some(40_003));
}

/// The first one has ended, and its place is taken by a new one. What that one is told or says while the other one still waits
/// to be called for, the other one would never hear.
#[test]
fn a_client_that_talks_to_a_new_connection_while_its_own_waits_does_not_go_on() {
    for reply in [false, true] {
        let mut p = of_threads();
        p.connects(TO_CAROLS, 3);
        p.is_reset(TO_BOBS);
        p.taken_over();
        p.holds(BOB, 1, Origin::Recovered);
        p.r.f.lift_barrier(p.r.now);
        p.reads(BOB, 5);
        assert_eq!(p.has_back(50_001, 5), None);
        p.answered(50_001);
        if reply {
            p.waits(5);
            p.hears(50_001, 6);
            p.writes(BOB, 6);
        } else {
            p.writes(50_001, 5);
        }
        assert!(!p.is_there(BOB) && !p.is_there(TO_CAROLS), "{reply}");
        assert_eq!(p.r.f.counters().unpaired, 2, "{reply}");
    }
    // Both are made before anything is said.
    let mut p = of_threads();
    p.connects(TO_CAROLS, 3);
    p.is_reset(TO_BOBS);
    p.taken_over();
    p.holds(BOB, 1, Origin::Recovered);
    p.r.f.lift_barrier(p.r.now);
    p.reads(BOB, 5);
    assert_eq!(p.has_back(50_001, 5), None);
    p.answered(50_001);
    assert_eq!(p.has_back(50_002, 5), Some(TO_CAROLS));
    p.writes(50_001, 5);
    assert!(p.is_there(BOB) && p.is_there(TO_CAROLS));
}

/// The first one has ended, and who is called for it anew refuses.
#[test]
fn a_place_that_is_refused_keeps_nobody_from_those_behind_it() {
    for of_alice in [false, true] {
        let mut p = Proxy::new();
        if of_alice {
            p.accepts(ALICE, 1);
            p.reads(ALICE, 1);
        }
        for port in [40_001, 40_002, 40_003] {
            p.connects(port, 1);
        }
        let s = p.r.f.store().get(p.id(40_001)).unwrap();
        let gone = packet(40_001, false, RST, s.in_seq(s.in_end()), Seq(0), b"");
        p.r.inp(&gone);
        p.taken_over();
        if of_alice {
            p.holds(ALICE, 4, Origin::Recovered);
            p.r.f.lift_barrier(p.r.now);
            p.reads(ALICE, 4);
        }
        assert_eq!(p.has_back(50_001, 4), None);
        // A stranger does not know the number.
        p.r.inp(&packet(50_001, false, RST | ACK, Seq(0), isn(50_001).add(77), b""));
        assert_eq!(p.has_back(50_002, 4), None);
        p.r.inp(&packet(50_001, false, RST | ACK, Seq(0), isn(50_001).add(1), b""));
        assert_eq!((p.has_back(50_003, 4), p.has_back(50_004, 4)), (Some(40_002), Some(40_003)), "{of_alice}");
    }
}

/// A new client's connect is refused, and the program tries again when it has another client, too: one that another thread has
/// accepted, or that the same thread has read.
#[test]
fn who_is_refused_is_not_given_what_waits_for_another_client() {
    for of_one_thread in [false, true] {
        let mut p = of_threads();
        p.taken_over();
        p.r.f.lift_barrier(p.r.now);
        p.accepts(CAROL, 1);
        let thread = if of_one_thread { 1 } else { 2 };
        if of_one_thread {
            p.reads(CAROL, 1);
        }
        assert_eq!(p.has_back(50_003, thread), None);
        p.r.inp(&packet(50_003, false, RST | ACK, Seq(0), isn(50_003).add(1), b""));
        p.waits(1);
        p.waits(2);
        p.holds(ALICE, 1, Origin::Recovered);
        if of_one_thread {
            p.reads(ALICE, 1);
        }
        assert_eq!(p.has_back(50_004, thread), None, "{of_one_thread}");
        assert!(p.is_there(ALICE) && p.is_there(TO_ALICES));
    }
}

#[test]
fn a_thread_of_its_own_that_is_refused_tries_again_for_its_client() {
    let mut p = of_threads();
    p.accepts(CAROL, 1);
    p.waits(1);
    p.reads(CAROL, 4);
    p.calls(TO_CAROLS, 4);
    p.r.inp(&packet(TO_CAROLS, false, RST | ACK, Seq(0), isn(TO_CAROLS).add(1), b""));
    p.waits(4);
    p.accepts(1004, 1);
    p.waits(1);
    p.connects(40_004, 4);
    assert_eq!(p.cause(40_004), Some(Cause::Of { session: p.id(CAROL), nth: 1, read: true }));
}

/// One thread has read carol, and another one connects for her. It may connect for alice as well, whom nobody has touched.
#[test]
fn a_connection_that_a_guess_has_handed_to_another_client_is_reset_with_its_own() {
    let guessed = || {
        let mut p = of_threads();
        p.taken_over();
        p.r.f.lift_barrier(p.r.now);
        p.accepts(CAROL, 1);
        p.reads(CAROL, 1);
        p.holds(ALICE, 1, Origin::Recovered);
        assert_eq!(p.has_back(50_003, 2), Some(TO_ALICES));
        p.r.f.attach(p.r.now, p.channel, u32::from(TO_ALICES), Origin::Connected, &out_tuple(50_003));
        p
    };
    // What carol says goes there; or what it says goes to her.
    for reply in [false, true] {
        let mut p = guessed();
        if reply {
            p.hears(TO_ALICES, 2);
            p.writes(CAROL, 2);
        } else {
            p.reads(CAROL, 2);
            p.writes(TO_ALICES, 2);
        }
        assert_eq!((p.is_there(ALICE), p.is_there(TO_ALICES), p.is_there(CAROL)), (false, false, true), "{reply}");
    }
    // Alice gets another one.
    let mut p = guessed();
    p.reads(ALICE, 3);
    assert_eq!(p.has_back(50_001, 3), None);
    p.answered(50_001);
    p.writes(50_001, 3);
    assert_eq!((p.is_there(ALICE), p.is_there(TO_ALICES), p.is_there(CAROL)), (false, false, true));
    // It was alice whom the program connected for.
    let mut p = guessed();
    p.reads(ALICE, 2);
    p.writes(TO_ALICES, 2);
    p.waits(2);
    p.connects(50_001, 2);
    p.writes(50_001, 2);
    assert!(p.is_there(ALICE) && p.is_there(TO_ALICES));
}

/// Its process may not know of that, and connect for it.
#[test]
fn a_client_that_goes_unread_leaves_its_connect_to_nobody_else() {
    let mut p = of_threads();
    p.taken_over();
    p.r.f.lift_barrier(p.r.now);
    p.accepts(CAROL, 1);
    p.is_reset(CAROL);
    p.holds(ALICE, 1, Origin::Recovered);
    assert_eq!(p.has_back(50_003, 2), None);
    // It knows now.
    p.r.f.close(p.r.now, p.channel, 1, u32::from(CAROL), false);
    assert_eq!(p.has_back(50_001, 3), Some(TO_ALICES));
}

/// One that has ended makes no candidate sure.
#[test]
fn what_is_heard_of_a_connection_whose_client_is_gone_says_nothing_of_the_next_one() {
    let mut p = of_threads();
    p.is_reset(BOB);
    p.hears(TO_BOBS, 9);
    p.accepts(CAROL, 1);
    p.waits(1);
    p.connects(TO_CAROLS, 9);
    assert_eq!(p.cause(TO_CAROLS), Some(Cause::Unclear { all: false }));
}

#[test]
fn a_port_of_its_choice_says_which_one_it_is() {
    let mut p = Proxy::new();
    for port in [2001, 2002] {
        p.socket += 1;
        p.r.f.lend(CHANNEL, 1, p.socket, upstream(), true);
        p.r.f.called_by(out_tuple(port), Some(p.socket));
        p.r.f.packet_out(p.r.now, 77, &packet(port, true, SYN, isn(port), Seq(0), b""));
        p.r.drain();
        p.r.inp(&packet(port, false, SYN | ACK, Seq(u32::from(port) + 7), isn(port).add(1), b""));
    }
    p.taken_over();
    for port in [2002, 2001] {
        p.socket += 1;
        p.r.f.lend(p.channel, 1, p.socket, upstream(), true);
        p.r.f.called_by(out_tuple(port), Some(p.socket));
        p.r.f.packet_out(p.r.now, 77, &packet(port, true, SYN, Seq(5), Seq(0), b""));
        let came = p.r.drain();
        assert!(came.iter().any(|a| matches!(a, Action::Inject(_))), "{port}: {came:?}");
        assert_eq!(p.r.f.peer_tuple(&out_tuple(port)), Some(out_tuple(port)));
    }
}

#[test]
fn a_replica_of_the_version_before_hears_of_no_causes() {
    let mut p = Proxy::new();
    p.r.f.set_replica_lacks(ReplicaLacks { causes: true, ..ReplicaLacks::default() });
    p.accepts(ALICE, 1);
    let before = p.r.f.log().written();
    let mut batch = Vec::new();
    p.r.f.take_batch(&mut batch);
    p.calls(TO_ALICES, 1);
    p.r.inp(&packet(TO_ALICES, false, SYN | ACK, Seq(7), isn(TO_ALICES).add(1), b""));
    batch.clear();
    p.r.f.take_batch(&mut batch);
    assert!(p.cause(TO_ALICES).is_some() && p.r.f.log().written() > before);
    let mut rest = &batch[..];
    while let Some(record) = crate::record::decode(&mut rest).unwrap() {
        assert!(!matches!(record, crate::record::Record::Cause { .. }));
    }
    let mut snapshot = Vec::new();
    p.r.f.snapshot(&mut snapshot);
    let mut rest = &snapshot[..];
    while let Some(record) = crate::record::decode(&mut rest).unwrap() {
        assert!(!matches!(record, crate::record::Record::Cause { .. }));
    }
}

/// Clients of a port that is told to be reset, and the connections that were made for them: all of that is known.
#[test]
fn what_was_made_for_clients_that_are_reset_is_reset_with_them() {
    let mut p = of_threads();
    let mut snapshot = Vec::new();
    p.r.stored();
    p.r.f.snapshot(&mut snapshot);
    p.r.f = proxying(true);
    p.r.f.config.ports = vec![(5555, PortPolicy { reset: true, ..PortPolicy::default() })];
    p.r.f.replica_apply(&snapshot).unwrap();
    p.r.f.take_over(p.r.now);
    let counters = p.r.f.counters();
    assert_eq!((counters.reset_on_takeover, counters.unpaired, counters.torn), (4, 0, 0));
    assert_eq!((p.sessions(), p.r.f.mode()), (0, Mode::Active));
}
