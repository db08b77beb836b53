//! Connections that the application makes: opened, and after a takeover made again by its connect.

use super::*;
use crate::record::Cause;

const MADE: u16 = 40_000;
const AGAIN: u16 = 50_000;
/// Initial number and clock of the TCP that makes it again.
const ISN_AGAIN: Seq = Seq(9_000_000);
const CLOCK_AGAIN: u32 = 77_000;

fn calling(engine: Engine, hooked: bool) -> Filter {
    let outgoing = vec![(upstream(), PortPolicy::default())];
    Filter::new(FilterConfig { outgoing, engine, hooked, ..config() })
}

fn upstream() -> SocketAddr {
    "198.51.100.9:179".parse().unwrap()
}

fn from(port: u16) -> FourTuple {
    FourTuple { local: ([192, 0, 2, 200], port).into(), peer: upstream() }
}

/// One segment, numbers as they are on the wire.
struct Packet<'a> {
    port: u16,
    out: bool,
    flags: u8,
    seq: Seq,
    ack: Seq,
    ts: (u32, u32),
    bytes: &'a [u8],
}

impl Packet<'_> {
    fn build(&self) -> Vec<u8> {
        let t = from(self.port);
        let (source, destination) = if self.out { (t.local, t.peer) } else { (t.peer, t.local) };
        let mut packet = Vec::new();
        let options = if self.flags & SYN != 0 { vec![2, 4, 5, 0xb4, 1, 3, 3, 2, 1, 1, 4, 2] } else { Vec::new() };
        Build {
            source,
            destination,
            seq: self.seq,
            ack: self.ack,
            flags: self.flags,
            window: 60_000,
            timestamps: Some(self.ts),
            payload: self.bytes,
        }
        .write_with(&options, &mut packet);
        packet
    }
}

fn syn(port: u16, isn: Seq, clock: u32) -> Vec<u8> {
    Packet { port, out: true, flags: SYN, seq: isn, ack: Seq(0), ts: (clock, 0), bytes: b"" }.build()
}

fn wire(out: bool, flags: u8, seq: u64, ack: u64, ts: (u32, u32), bytes: &[u8]) -> Vec<u8> {
    let (mine, other) = if out { (ISN_OUT, ISN_IN) } else { (ISN_IN, ISN_OUT) };
    Packet { port: MADE, out, flags, seq: seq::at(mine, seq), ack: seq::at(other, ack), ts, bytes }.build()
}

/// What the TCP that made it again says, in offsets of its own.
fn half(flags: u8, at: u64, ack: Seq, clock: u32, bytes: &[u8]) -> Vec<u8> {
    Packet { port: AGAIN, out: true, flags, seq: ISN_AGAIN.add(1 + at), ack, ts: (clock, 500), bytes }.build()
}

/// A connection to the upstream, which has said "hello", and heard "hi".
fn made(hooked: bool) -> Rig {
    let mut r = Rig::new();
    r.f = calling(Engine::Repair, hooked);
    r.f.activate();
    r.f.hold_for_replica(0);
    let first = r.out(&syn(MADE, ISN_OUT, 200));
    assert!(r.passes(&first));
    let answer =
        Packet { port: MADE, out: false, flags: SYN | ACK, seq: ISN_IN, ack: ISN_OUT.add(1), ts: (100, 200), bytes: b"" }.build();
    let answered = r.inp(&answer);
    assert!(r.passes(&answered));
    // The upstream may not know of it before the replica does.
    assert_eq!(r.out(&wire(true, ACK, 0, 0, (201, 100), b"")), []);
    let told = r.stored();
    assert!(r.passes(&told));
    // Its SYN once more is no other connection.
    assert!(!r.out(&syn(MADE, ISN_OUT, 202)).contains(&Action::AcceptOut(r.id)));
    assert_eq!((r.f.store().len(), r.f.counters().opened), (1, 1));
    r.f.attach(r.now, CHANNEL, HANDLE, Origin::Connected, &from(MADE));
    r.inp(&wire(false, ACK, 0, 0, (110, 201), b"hello"));
    if hooked {
        r.read(5);
        r.write(b"hi");
        r.wait();
    }
    r.stored();
    r.out(&wire(true, ACK, 0, 5, (210, 110), b"hi"));
    r.stored();
    r
}

fn id(r: &Rig) -> u32 {
    r.f.store().find(&from(MADE)).expect("the session")
}

/// The replica takes over; the upstream has acknowledged what it heard, and said "more".
fn taken_over(mut r: Rig, hooked: bool, call_first: bool) -> Rig {
    r.stored();
    let mut snapshot = Vec::new();
    r.f.snapshot(&mut snapshot);
    let mut f = calling(Engine::Repair, hooked);
    f.replica_apply(&snapshot).unwrap();
    r.f = f;
    if call_first {
        assert!(matches!(r.out(&syn(AGAIN, ISN_AGAIN, CLOCK_AGAIN))[..], [Action::DropOut(_)]), "a backup is silent");
    }
    r.f.take_over(r.now);
    r.f.probes();
    r.drain();
    let others = r.f.not_handed_over();
    assert_eq!(r.f.unprobed(), others + 1, "no barrier waits for it");
    r.inp(&wire(false, ACK, 5, 2, (500, 210), b""));
    let session = id(&r);
    assert!(r.f.splices(session), "whatever the engine");
    r.actions.clear();
    r.f.splice(r.now, session);
    r.drain();
    assert_eq!(r.f.unprobed(), others);
    assert!(!r.f.unrestored().contains(&session));
    if others == 0 {
        r.f.lift_barrier(r.now);
    }
    r
}

fn injected(actions: &[Action]) -> Vec<Vec<u8>> {
    actions.iter().filter_map(|a| if let Action::Inject(p) = a { Some(p.clone()) } else { None }).collect()
}

/// The answer to the application's SYN.
fn answer(actions: &[Action]) -> Vec<u8> {
    let [packet] = &injected(actions)[..] else { panic!("{actions:?}") };
    packet.clone()
}

fn left(actions: &[Action]) -> Vec<Vec<u8>> {
    let of = |a: &Action| match a {
        Action::SendPeer(p) | Action::ModifyOut(_, p) => Some(p.clone()),
        _ => None,
    };
    actions.iter().filter_map(of).collect()
}

#[test]
fn the_application_has_it_back_by_calling_again() {
    for hooked in [true, false] {
        let mut r = taken_over(made(hooked), hooked, false);
        let done = r.f.store().get(id(&r)).unwrap().in_done;
        let called = r.out(&syn(AGAIN, ISN_AGAIN, CLOCK_AGAIN));
        assert!(left(&called).is_empty() && called.contains(&Action::DropOut(r.id)), "the upstream hears nothing of it");
        let packet = answer(&called);
        let answered = Segment::parse(&packet).unwrap();
        assert_eq!((answered.source(), answered.destination()), (upstream(), from(AGAIN).local));
        assert_eq!(
            (answered.flags(), answered.seq().add(1), answered.ack()),
            (SYN | ACK, seq::at(ISN_IN, done), ISN_AGAIN.add(1))
        );
        let options = answered.options();
        assert_eq!(
            (options.mss, options.window_scale, options.sack_permitted, options.timestamps),
            (Some(1460), Some(2), true, Some((110, CLOCK_AGAIN)))
        );
        assert!(answered.checksum_ok());
        // It did not hear that, or says it again.
        assert_eq!(answer(&r.pass(ms(20))), packet);
        assert_eq!(answer(&r.out(&syn(AGAIN, ISN_AGAIN, CLOCK_AGAIN))), packet);
        // It did. What hooks say of it, they say in its own words.
        let at = seq::at(ISN_IN, done);
        assert_eq!(left(&r.out(&half(ACK, 0, at, CLOCK_AGAIN + 1, b""))).len(), 1);
        if hooked {
            assert_eq!(r.f.recovered_info(&from(AGAIN)), Some((0, true, false)));
            r.f.attach(r.now, CHANNEL, HANDLE, Origin::Recovered, &from(AGAIN));
        }
        assert_eq!(r.f.local_tuple(&from(MADE)), from(AGAIN));
        r.actions.clear();
        // Input, as the local TCP is to see it.
        let told = r.inp(&wire(false, ACK, 5, 2, (510, 210), b"more"));
        // The kernel has found a socket for it by its own port, which may be another one's: it comes anew.
        let [Action::DropIn(_), Action::Inject(packet)] = &told[..] else { panic!("{told:?}") };
        let told = Segment::parse(packet).unwrap();
        assert_eq!((told.destination(), told.seq(), told.ack()), (from(AGAIN).local, seq::at(ISN_IN, 5), ISN_AGAIN.add(1)));
        // And output, as the upstream is.
        if hooked {
            r.read(4);
            r.write(b"yes");
            r.wait();
        }
        let said = r.out(&half(ACK, 0, seq::at(ISN_IN, 9), CLOCK_AGAIN + 9, b"yes"));
        let [packet] = &left(&said)[..] else { panic!("{said:?}") };
        let (at, ack, said) = offsets(packet, false);
        assert_eq!((said.source(), at, ack, said.payload()), (from(MADE).local, 2, 9, &b"yes"[..]));
        assert!(said.checksum_ok() && said.options().timestamps.unwrap().0 > 210);
        assert_eq!((r.f.counters().restored, r.f.counters().opened, r.f.counters().torn), (1, 0, 0));
    }
}

#[test]
fn a_call_on_the_backup_is_answered_when_it_takes_over() {
    let r = taken_over(made(true), true, true);
    assert_eq!(Segment::parse(&answer(&r.actions)).unwrap().destination(), from(AGAIN).local);
    // And where there is nothing to have back, it is made now.
    let mut r = Rig::new();
    r.f = calling(Engine::Repair, true);
    r.out(&syn(MADE, ISN_OUT, 200));
    r.f.take_over(r.now);
    let sent = left(&r.drain());
    assert_eq!(sent, [syn(MADE, ISN_OUT, 200)]);
    // Unless whoever called has given up since.
    let mut r = Rig::new();
    r.f = calling(Engine::Repair, true);
    r.out(&syn(MADE, ISN_OUT, 200));
    r.f.take_over(r.now + ms(70_000));
    assert!(left(&r.drain()).is_empty());
}

#[test]
fn a_socket_that_is_no_more_does_not_take_it_along() {
    let mut r = taken_over(made(false), false, true);
    let gone = Packet { port: AGAIN, out: true, flags: RST, seq: ISN_AGAIN.add(1), ack: Seq(0), ts: (0, 0), bytes: b"" }.build();
    let reset = r.out(&gone);
    assert!(matches!(reset[..], [Action::DropOut(_)]), "{reset:?}");
    // The next one has it, though it has given up in between without a word.
    r.out(&syn(AGAIN + 1, Seq(4), 1));
    let called = r.out(&syn(AGAIN + 1, Seq(77), 2));
    assert_eq!(Segment::parse(&answer(&called)).unwrap().ack(), Seq(78));
    assert_eq!(r.f.store().len(), 1);
}

#[test]
fn a_call_for_a_session_that_is_over_makes_a_new_one() {
    let mut r = made(true);
    r.stored();
    let mut snapshot = Vec::new();
    r.f.snapshot(&mut snapshot);
    r.f = calling(Engine::Repair, true);
    r.f.replica_apply(&snapshot).unwrap();
    r.f.take_over(r.now);
    r.f.set_fenced(r.now, true);
    let first = r.out(&syn(AGAIN, ISN_AGAIN, CLOCK_AGAIN));
    assert!(left(&first).is_empty());
    r.f.set_fenced(r.now, false);
    assert!(left(&r.drain()).is_empty(), "its peer may yet answer the probe");
    // The upstream knows nothing of it.
    let over = r.inp(&wire(false, RST, 5, 0, (500, 210), b""));
    assert_eq!(left(&over), [syn(AGAIN, ISN_AGAIN, CLOCK_AGAIN)]);
}

#[test]
fn whom_nobody_calls_again_is_told() {
    let mut r = taken_over(made(true), true, false);
    assert!(left(&r.pass(ms(59_000))).is_empty());
    let told = r.pass(ms(1_000));
    let resets = left(&told);
    assert!(!resets.is_empty() && resets.iter().all(|p| Segment::parse(p).unwrap().has(RST)), "{told:?}");
    assert_eq!((r.f.store().len(), r.f.counters().torn), (0, 1));
}

#[test]
fn a_new_connection_from_a_port_that_the_upstream_knows_shows_another() {
    let mut r = taken_over(made(true), true, false);
    r.out(&syn(AGAIN, ISN_AGAIN, CLOCK_AGAIN));
    r.out(&half(ACK, 0, seq::at(ISN_IN, 5), CLOCK_AGAIN, b""));
    r.f.attach(r.now, CHANNEL, HANDLE, Origin::Recovered, &from(AGAIN));
    // The local TCP has no socket at the old one's port, and takes it for another connection.
    let isn = Seq(55);
    let called = r.out(&syn(MADE, isn, 300));
    let [packet] = &left(&called)[..] else { panic!("{called:?}") };
    let shown = Segment::parse(packet).unwrap();
    let outer = from(shown.source().port());
    assert!(outer != from(MADE) && shown.seq() == isn && shown.window() == 60_000 && shown.checksum_ok());
    let answer = Packet {
        port: outer.local.port(),
        out: false,
        flags: SYN | ACK,
        seq: Seq(900),
        ack: isn.add(1),
        ts: (1, 300),
        bytes: b"",
    };
    let answered = r.inp(&answer.build());
    let [Action::DropIn(_), Action::Inject(packet)] = &answered[..] else { panic!("{answered:?}") };
    assert_eq!(Segment::parse(packet).unwrap().destination(), from(MADE).local);
    assert_eq!(r.f.recovered_info(&from(MADE)), None, "it is new");
    r.f.attach(r.now, CHANNEL, HANDLE + 1, Origin::Connected, &from(MADE));
    let third = Packet { port: MADE, out: true, flags: ACK, seq: isn.add(1), ack: Seq(901), ts: (301, 1), bytes: b"" }.build();
    let third = r.out(&third);
    assert_eq!(Segment::parse(&left(&third)[0]).unwrap().source(), outer.local);
    let s = r.f.store().get(r.f.store().find(&outer).unwrap()).unwrap();
    assert_eq!((r.f.store().len(), s.open.internal_port), (2, MADE));
    // Long after.
    r.pass(ms(300_000));
    assert_eq!(r.f.peer_tuple(&from(MADE)), Some(outer));
    // What the local TCP still says of a port that it does not have is nobody's.
    let stray =
        Packet { port: outer.local.port(), out: true, flags: RST, seq: Seq(1), ack: Seq(0), ts: (0, 0), bytes: b"" }.build();
    assert!(matches!(r.out(&stray)[..], [Action::DropOut(_)]));
}

#[test]
fn its_input_waits_for_the_barrier_but_not_for_long() {
    let mut r = made(true);
    // Another session, which somebody connected to.
    r.handshake(false);
    r.inp(&wire(false, ACK, 5, 2, (120, 210), b"more"));
    let mut r = taken_over(r, true, false);
    assert_eq!(r.f.mode(), Mode::Restoring, "the other one is awaited");
    r.out(&syn(AGAIN, ISN_AGAIN, CLOCK_AGAIN));
    r.out(&half(ACK, 0, seq::at(ISN_IN, 5), CLOCK_AGAIN, b""));
    r.f.attach(r.now, CHANNEL, HANDLE, Origin::Recovered, &from(AGAIN));
    let data = |actions: &[Action]| injected(actions).iter().any(|p| Segment::parse(p).unwrap().payload() == b"more");
    assert!(!data(&r.pass(ms(900))));
    assert!(data(&r.pass(ms(200))));
}

#[test]
fn what_was_half_made_when_the_application_died_is_no_session() {
    let mut r = Rig::new();
    r.f = calling(Engine::Repair, true);
    r.f.activate();
    r.out(&syn(MADE, ISN_OUT, 200));
    r.f.process_gone(r.now, CHANNEL);
    r.f.recover(r.now);
    r.drain();
    // Nobody would have the connection that this makes.
    let late =
        Packet { port: MADE, out: false, flags: SYN | ACK, seq: ISN_IN, ack: ISN_OUT.add(1), ts: (100, 200), bytes: b"" }.build();
    let late = r.inp(&late);
    assert!(r.passes(&late), "for the kernel to refuse");
    assert_eq!(r.f.store().len(), 0);
}

#[test]
fn what_the_application_gave_up_before_it_was_answered_is_over_at_once() {
    for dies in [false, true] {
        let mut r = Rig::new();
        r.f = calling(Engine::Repair, true);
        r.f.activate();
        r.f.hold_for_replica(0);
        r.out(&syn(MADE, ISN_OUT, 200));
        let late =
            Packet { port: MADE, out: false, flags: SYN | ACK, seq: ISN_IN, ack: ISN_OUT.add(1), ts: (100, 200), bytes: b"" }
                .build();
        let late = r.inp(&late);
        assert!(r.passes(&late));
        r.stored();
        // The kernel has no such socket any more.
        let refusal =
            Packet { port: MADE, out: true, flags: RST, seq: ISN_OUT.add(1), ack: Seq(0), ts: (0, 0), bytes: b"" }.build();
        assert_eq!(r.out(&refusal), [], "its hooks may be about to say why");
        if dies {
            r.f.process_gone(r.now, CHANNEL);
        }
        r.now += Duration::from_millis(50);
        r.f.handle_timeout(r.now);
        let mut actions = r.drain();
        actions.extend(r.stored());
        assert_eq!(r.passes(&actions), !dies, "{actions:?}");
        assert_eq!(r.f.store().len(), usize::from(dies), "whoever died connects again when it is started");
    }
}

#[test]
fn what_the_replica_may_not_know_is_not_probed() {
    let mut r = Rig::new();
    r.f = calling(Engine::Repair, true);
    r.f.activate();
    r.f.hold_for_replica(0);
    r.out(&syn(MADE, ISN_OUT, 200));
    let answer =
        Packet { port: MADE, out: false, flags: SYN | ACK, seq: ISN_IN, ack: ISN_OUT.add(1), ts: (100, 200), bytes: b"" }.build();
    r.inp(&answer);
    r.f.process_gone(r.now, CHANNEL);
    r.f.recover(r.now);
    r.f.probes();
    // It would end the upstream's handshake.
    assert!(left(&r.drain()).is_empty());
    r.stored();
    r.f.probes();
    assert_eq!(left(&r.drain()).len(), 1);
}

/// Another call of that port, and the port that the upstream is shown.
fn shown(actions: &[Action]) -> FourTuple {
    let [packet] = &left(actions)[..] else { panic!("{actions:?}") };
    let shown = Segment::parse(packet).unwrap();
    assert!(shown.flags() == SYN && injected(actions).is_empty());
    from(shown.source().port())
}

#[test]
fn a_call_that_has_left_is_a_new_connection_whatever_waits_by_then() {
    let mut r = taken_over(made(false), false, false);
    r.out(&syn(AGAIN, ISN_AGAIN, CLOCK_AGAIN));
    // None is left: this one is new, and nobody answers it yet.
    let (isn, other) = (Seq(55), Seq(77));
    let outer = shown(&r.out(&syn(MADE, isn, 300)));
    // Who had the old one gives up, so that it waits again.
    r.out(&Packet { port: AGAIN, out: true, flags: RST, seq: ISN_AGAIN.add(1), ack: Seq(0), ts: (0, 0), bytes: b"" }.build());
    // The upstream may have heard of the new one: it goes on as that.
    assert_eq!(shown(&r.out(&syn(MADE, isn, 301))), outer);
    // Refused, it calls once more; that is the old one's, and has its port.
    r.inp(
        &Packet { port: outer.local.port(), out: false, flags: RST | ACK, seq: Seq(0), ack: isn.add(1), ts: (0, 0), bytes: b"" }
            .build(),
    );
    let called = r.out(&syn(MADE, other, 302));
    assert!(left(&called).is_empty());
    assert_eq!(Segment::parse(&answer(&called)).unwrap().ack(), other.add(1));
    assert_eq!(r.f.peer_tuple(&from(MADE)), Some(from(MADE)));
    let taken =
        Packet { port: MADE, out: true, flags: ACK, seq: other.add(1), ack: seq::at(ISN_IN, 5), ts: (303, 500), bytes: b"" };
    let taken = left(&r.out(&taken.build()));
    let [packet] = &taken[..] else { panic!("{} packets", taken.len()) };
    let (at, ack, packet) = offsets(packet, false);
    assert_eq!((packet.source(), at, ack), (from(MADE).local, 2, 5));
}

#[test]
fn a_port_that_another_call_has_left_from_is_not_shown() {
    let mut r = taken_over(made(true), true, false);
    r.out(&syn(AGAIN, ISN_AGAIN, CLOCK_AGAIN));
    // The next port is somebody's, who is calling from it.
    let first = r.out(&syn(MADE + 1, Seq(5), 301));
    assert!(r.passes(&first));
    assert_eq!(shown(&r.out(&syn(MADE, Seq(55), 302))), from(MADE + 2));
    // The session waits to be called for again, and ends; the next call from its port is shown as what it is.
    r.out(&Packet { port: AGAIN, out: true, flags: RST, seq: ISN_AGAIN.add(1), ack: Seq(0), ts: (0, 0), bytes: b"" }.build());
    r.inp(&Packet { port: MADE, out: false, flags: RST, seq: seq::at(ISN_IN, 5), ack: Seq(0), ts: (0, 0), bytes: b"" }.build());
    assert_eq!(r.f.store().len(), 0);
    let again = r.out(&syn(MADE, Seq(99), 304));
    assert!(r.passes(&again), "{again:?}");
    assert_eq!(r.f.peer_tuple(&from(MADE)), Some(from(MADE)));
}

#[test]
fn that_a_call_is_refused_is_heard_before_the_barrier_falls() {
    let mut r = made(true);
    r.handshake(false);
    let mut r = taken_over(r, true, false);
    assert_eq!(r.f.mode(), Mode::Restoring);
    r.out(&syn(AGAIN, ISN_AGAIN, CLOCK_AGAIN));
    let isn = Seq(55);
    r.out(&syn(AGAIN + 1, isn, 300));
    let refusal =
        |port| Packet { port, out: false, flags: RST | ACK, seq: Seq(0), ack: isn.add(1), ts: (0, 0), bytes: b"" }.build();
    let refused = r.inp(&refusal(AGAIN + 1));
    assert!(r.passes(&refused), "{refused:?}");
    assert!(matches!(r.inp(&refusal(AGAIN + 2))[..], [Action::DropIn(_)]), "nobody has called from there");
}

/// The application has closed its connection, whose end the upstream has not acknowledged, when the replica takes over.
fn closing(call_from: &[u16]) -> Rig {
    let mut r = made(true);
    r.close();
    r.wait();
    r.stored();
    let mut snapshot = Vec::new();
    r.f.snapshot(&mut snapshot);
    let mut f = calling(Engine::Repair, true);
    f.replica_apply(&snapshot).unwrap();
    r.f = f;
    for port in call_from {
        r.out(&syn(*port, ISN_AGAIN, CLOCK_AGAIN));
    }
    r.f.take_over(r.now);
    r.f.probes();
    r.drain();
    r.inp(&wire(false, ACK, 5, 2, (500, 210), b""));
    r.actions.clear();
    r
}

fn spec_of(r: &mut Rig) -> RestoreSpec {
    let session = id(r);
    assert!(!r.f.splices(session));
    r.f.restore_spec(session, true, 0).expect("a session without a socket")
}

#[test]
fn a_port_that_the_application_calls_from_is_left_to_it() {
    // Nobody calls from there.
    assert_eq!(spec_of(&mut closing(&[])).tuple, from(MADE));
    // The application does, as it happens, and from the next one.
    let mut r = closing(&[MADE, MADE + 1]);
    let spec = spec_of(&mut r);
    let port = spec.tuple.local.port();
    assert!(spec.closed && port != MADE && port != MADE + 1, "{port} is another connection's");
    let session = id(&r);
    r.f.restored(r.now, session, spec.sent.len());
    assert_eq!((r.f.local_tuple(&from(MADE)), r.f.peer_tuple(&from(port))), (from(port), Some(from(MADE))));
    // What its own socket says leaves under the port that the upstream knows, its numbers as they are.
    let fin = Packet {
        port,
        out: true,
        flags: ACK | FIN,
        seq: seq::at(ISN_OUT, 2),
        ack: seq::at(ISN_IN, 5),
        ts: (900, 500),
        bytes: b"",
    };
    let left = r.out(&fin.build());
    let [Action::ModifyOut(_, packet)] = &left[..] else { panic!("{left:?}") };
    let packet = Segment::parse(packet).unwrap();
    assert_eq!((packet.source(), packet.seq(), packet.window()), (from(MADE).local, seq::at(ISN_OUT, 2), 60_000));
    assert!(packet.checksum_ok());
    // And the answer reaches that socket.
    let told = r.inp(&wire(false, ACK | FIN, 5, 3, (501, 900), b""));
    let told: Vec<_> =
        told.iter().filter_map(|a| if let Action::Inject(p) = a { Some(Segment::parse(p).unwrap()) } else { None }).collect();
    assert!(told.iter().all(|p| p.destination() == from(port).local) && told.iter().any(|p| p.has(FIN)));
    // The application's call goes on, by a port that is another one for the upstream.
    r.f.lift_barrier(r.now);
    let called = r.out(&syn(MADE, ISN_AGAIN, CLOCK_AGAIN));
    let called: Vec<_> = called
        .iter()
        .filter_map(|a| if let Action::ModifyOut(_, p) = a { Some(Segment::parse(p).unwrap()) } else { None })
        .collect();
    assert!(
        called.iter().all(|p| p.has(SYN) && p.source() != from(MADE).local) && r.f.peer_tuple(&from(MADE)) != Some(from(MADE))
    );
}

#[test]
fn a_port_that_is_found_taken_is_left_to_whoever_has_it() {
    let mut r = closing(&[]);
    let first = spec_of(&mut r);
    let session = id(&r);
    assert!(r.f.take_other_name(session));
    let second = spec_of(&mut r);
    assert!(r.f.take_other_name(session));
    let third = spec_of(&mut r);
    let ports: BTreeSet<u16> = [&first, &second, &third].map(|spec| spec.tuple.local.port()).into();
    assert_eq!(ports.len(), 3);
    assert_eq!((second.snd_una, second.rcv_nxt), (first.snd_una, first.rcv_nxt));
    r.f.restored(r.now, session, third.sent.len());
    assert!(!r.f.take_other_name(session), "it has its socket");
    // One that the application gets back is known by its own port.
    let mut r = taken_over(made(true), true, false);
    let session = id(&r);
    assert!(!r.f.take_other_name(session));
    r.drain();
}

#[test]
fn a_port_that_is_another_sessions_half_is_left_to_it() {
    // Another connection, which the application makes again, and from the port of the one that it has closed.
    let mut r = made(true);
    r.f.close(r.now, CHANNEL, THREAD, HANDLE, false);
    r.wait();
    r.stored();
    let second = MADE + 9;
    r.out(&syn(second, ISN_OUT, 300));
    let answer =
        Packet { port: second, out: false, flags: SYN | ACK, seq: ISN_IN, ack: ISN_OUT.add(1), ts: (100, 300), bytes: b"" };
    r.inp(&answer.build());
    r.stored();
    let mut snapshot = Vec::new();
    r.f.snapshot(&mut snapshot);
    let mut f = calling(Engine::Splice, true);
    f.replica_apply(&snapshot).unwrap();
    // That one was the first that it made, before it had any peer.
    let mut causes = Vec::new();
    for (port, nth) in [(second, 1), (MADE, 2)] {
        crate::record::encode_cause(f.store().find(&from(port)).unwrap(), Some(Cause::Own { nth }), &mut causes);
    }
    f.replica_apply(&causes).unwrap();
    f.take_over(r.now);
    f.probes();
    r.f = f;
    r.drain();
    let other = r.f.store().find(&from(second)).unwrap();
    r.f.splice(r.now, other);
    r.drain();
    let called = r.out(&syn(MADE, ISN_AGAIN, CLOCK_AGAIN));
    assert!(called.iter().any(|a| matches!(a, Action::Inject(_))), "it has that connection back: {called:?}");
    assert_eq!(r.f.peer_tuple(&from(MADE)), Some(from(second)));
    let spec = spec_of(&mut r);
    assert!(![MADE, second].contains(&spec.tuple.local.port()));
    assert_eq!(r.f.peer_tuple(&from(MADE)), Some(from(second)), "and keeps it");
}
