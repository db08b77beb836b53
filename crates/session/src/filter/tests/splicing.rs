//! Sockets made by the local listener: what it is told, what the peer sees of it (nothing), and what is corrected.
//!
//! The paper's verdicts (its figures 4 and 5), in our words: *deliver*, *drop* and *reset* are packet verdicts as always;
//! *recover* is the handshake; *acknowledge* is what a half is told that nobody else would tell.

use super::*;

/// Initial number and clock of the local half.
const ISN_HALF: Seq = Seq(7_000_000);
const HALF_CLOCK: u32 = 50_000;

fn splicing(hooked: bool) -> Filter {
    let mut f = Filter::new(FilterConfig { engine: Engine::Splice, hooked, ..config() });
    f.activate();
    f
}

impl Rig {
    /// The replica has taken over with engine `splice`; its peer has acknowledged `acked` of the output.
    fn spliced_over(self, hooked: bool, acked: u64) -> Rig {
        let mut r = self.taken_over(hooked);
        let ts = r.session().open.timestamps.then_some((500, 200));
        r.peer(Say { ts, ..say(ACK, r.session().in_ackable(), acked, b"") });
        r.splice();
        r
    }

    pub(super) fn splice(&mut self) -> Vec<Action> {
        let id = self.session().open.session;
        self.f.splice(self.now, id);
        self.drain()
    }

    /// The replica has taken over with engine `splice`.
    pub(super) fn taken_over(mut self, hooked: bool) -> Rig {
        self.stored();
        let mut f = splicing(hooked);
        f.demote();
        let mut snapshot = Vec::new();
        self.f.snapshot(&mut snapshot);
        f.replica_apply(&snapshot).unwrap();
        f.take_over(self.now);
        f.probes();
        self.f = f;
        self.drain();
        self
    }

    /// The listener's SYN-ACK.
    fn half_syn_ack(&mut self) -> Vec<Action> {
        let t = tuple(self.port);
        let mut packet = Vec::new();
        Build {
            source: t.local,
            destination: t.peer,
            seq: ISN_HALF,
            ack: self.session().in_seq(self.session().in_done),
            flags: SYN | ACK,
            window: 60_000,
            timestamps: self.session().open.timestamps.then_some((HALF_CLOCK, 500)),
            payload: &[],
        }
        .write_with(&Rig::syn_options(true), &mut packet);
        self.out(&packet)
    }

    /// A segment of the local half, in offsets of its own.
    fn half(&mut self, flags: u8, at: u64, ack: u64, bytes: &[u8], clock: u32) -> Vec<Action> {
        let t = tuple(self.port);
        let mut packet = Vec::new();
        Build {
            source: t.local,
            destination: t.peer,
            seq: ISN_HALF.add(1 + at),
            ack: self.session().in_seq(ack),
            flags,
            window: 1000,
            timestamps: self.session().open.timestamps.then_some((clock, 500)),
            payload: bytes,
        }
        .write(&mut packet);
        self.out(&packet)
    }
}

/// The packets that are injected, and those that leave.
fn injected(actions: &[Action]) -> Vec<&[u8]> {
    actions.iter().filter_map(|a| if let Action::Inject(p) = a { Some(&p[..]) } else { None }).collect()
}

fn left(actions: &[Action]) -> Vec<&[u8]> {
    let of = |a| match a {
        &Action::SendPeer(ref p) | &Action::ModifyOut(_, ref p) => Some(&p[..]),
        _ => None,
    };
    actions.iter().filter_map(of).collect()
}

/// One request answered, another one asked.
fn busy(ts: bool) -> Rig {
    let mut r = if ts { Rig::with_timestamps() } else { Rig::open() };
    let stamp = |value| ts.then_some((value, 200));
    r.peer(Say { ts: stamp(110), ..say(ACK, 0, 0, b"ping") });
    r.read(4);
    r.write(b"pong");
    r.wait();
    r.stored();
    r.kernel(Say { ts: ts.then_some((210, 110)), ..say(ACK, 0, 4, b"pong") });
    r.peer(Say { ts: stamp(120), ..say(ACK, 4, 0, b"again") });
    r
}

#[test]
fn the_listener_is_asked_in_the_peers_name_and_again_until_it_listens() {
    let mut r = busy(false).spliced_over(true, 4);
    let asked = r.actions.clone();
    let syn = injected(&asked).into_iter().map(|p| Segment::parse(p).unwrap()).find(|p| p.has(SYN)).expect("a SYN");
    assert_eq!((syn.source(), syn.destination()), (tuple(1000).peer, tuple(1000).local));
    // The first byte that the application will read is the one that is not done.
    assert_eq!(syn.seq().add(1), seq::at(ISN_IN, 4));
    assert_eq!(syn.options(), Segment::parse(&r.syn(false)).unwrap().options());
    // Nobody listens: nobody hears of it, and it is asked again.
    let refused = r.half(RST | ACK, 0, 0, b"", 0);
    assert!(matches!(refused[..], [Action::DropOut(_)]));
    let again = r.pass(ms(20));
    assert!(injected(&again).iter().any(|p| Segment::parse(p).unwrap().has(SYN)) && left(&again).is_empty());
    assert_eq!(r.f.unprobed(), 1);
    // It answers; the peer sees nothing of it, the half is told the rest.
    let answered = r.half_syn_ack();
    assert!(left(&answered).is_empty());
    let [ack] = injected(&answered)[..] else { panic!("{answered:?}") };
    let ack = Segment::parse(ack).unwrap();
    assert_eq!((ack.flags(), ack.seq(), ack.ack()), (ACK, seq::at(ISN_IN, 4), ISN_HALF.add(1)));
    assert_eq!((r.f.unprobed(), r.f.not_handed_over(), r.f.unaccepted()), (0, 1, 1));
    // It did not hear that.
    let once_more = r.half_syn_ack();
    assert_eq!(injected(&once_more).len(), 1);
    assert!(left(&once_more).is_empty());
    // Accepted: the hook asks what it is, the barrier falls, and the kept input comes.
    assert_eq!(r.f.recovered_info(&tuple(1000)), Some((0, true, false)));
    r.attach();
    assert_eq!((r.f.mode(), r.f.unaccepted(), r.f.recovered_info(&tuple(1000))), (Mode::Active, 0, None));
    let fed = r.drain();
    let fed = injected(&fed).into_iter().map(|p| Segment::parse(p).unwrap().payload());
    assert_eq!(fed.filter(|p| !p.is_empty()).collect::<Vec<_>>(), [b"again"]);
}

#[test]
fn numbers_and_clocks_are_corrected_both_ways() {
    let mut r = busy(true).spliced_over(true, 4);
    let shown = left(&r.actions).iter().filter_map(|p| Segment::parse(p).unwrap().options().timestamps).map(|t| t.0).max();
    r.half_syn_ack();
    r.attach();
    r.read(5);
    r.write(b"pong2");
    r.wait();
    let out = r.half(ACK, 0, 9, b"pong2", HALF_CLOCK + 7);
    let [packet] = left(&out)[..] else { panic!("{out:?}") };
    let (at, ack, segment) = offsets(packet, false);
    assert_eq!((at, ack, segment.payload()), (4, 9, &b"pong2"[..]));
    assert!(segment.checksum_ok());
    let (value, echo) = segment.options().timestamps.unwrap();
    assert!(value > shown.unwrap() && echo == 500, "{value} after {shown:?}");
    // Told in its own numbers; its own clock comes back to it.
    let told = r.peer(Say { ts: Some((510, value)), ..say(ACK, 9, 9, b"") });
    let [Action::ModifyIn(_, packet)] = &told[..] else { panic!("{told:?}") };
    let told = Segment::parse(packet).unwrap();
    assert_eq!((told.seq(), told.ack()), (seq::at(ISN_IN, 9), ISN_HALF.add(6)));
    assert_eq!(told.options().timestamps, Some((510, HALF_CLOCK + 7)));
    assert!(told.checksum_ok());
    // A wrong checksum would be made right.
    let mut packet = r.packet(Say { ts: Some((511, value)), ..say(ACK, 9, 9, b"x") }, true);
    *packet.last_mut().unwrap() ^= 1;
    assert!(matches!(r.inp(&packet)[..], [Action::DropIn(_)]));
}

#[test]
fn old_output_is_sent_by_ourselves_and_new_output_waits_for_it() {
    let mut r = busy(false).spliced_over(true, 0);
    // At once, before anybody listens.
    let sent =
        left(&r.actions).into_iter().map(|p| offsets(p, false)).rfind(|(_, _, p)| p.payload().len() > 1).expect("old output");
    assert_eq!((sent.0, sent.2.payload()), (0, &b"pong"[..]));
    r.half_syn_ack();
    r.attach();
    r.read(5);
    r.write(b"more");
    r.wait();
    assert!(left(&r.half(ACK, 0, 9, b"more", 0)).is_empty(), "it would leave a hole");
    // What is missing the half never had: it is shown no acknowledgement below its own beginning.
    let told = r.peer(say(ACK, 9, 2, b""));
    let [.., Action::ModifyIn(_, packet)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(Segment::parse(packet).unwrap().ack(), ISN_HALF.add(1));
    // Lost: sent again, what is left of it.
    let again = r.pass(ms(200));
    assert!(left(&again).iter().any(|p| offsets(p, false).0 == 2 && offsets(p, false).2.payload() == b"ng"));
    let done = r.peer(say(ACK, 9, 4, b""));
    let [packet] = left(&done)[..] else { panic!("{done:?}") };
    assert_eq!((offsets(packet, false).0, offsets(packet, false).2.payload()), (4, &b"more"[..]));
    assert!(left(&r.pass(ms(10_000))).is_empty(), "nothing is sent again");
}

#[test]
fn a_half_whose_output_had_ended_is_heard_by_nobody() {
    let mut r = busy(false);
    r.f.shutdown(r.now, CHANNEL, THREAD, HANDLE);
    r.wait();
    let mut r = r.spliced_over(true, 4);
    let fin = left(&r.actions).into_iter().map(|p| offsets(p, false)).rfind(|(_, _, p)| p.has(FIN)).expect("its FIN");
    assert_eq!(fin.0, 4);
    r.half_syn_ack();
    assert_eq!(r.f.recovered_info(&tuple(1000)), Some((0, true, true)));
    r.attach();
    r.drain();
    let said = r.half(ACK, 0, 4, b"oh", 0);
    assert!(left(&said).is_empty());
    assert_eq!(injected(&said).iter().map(|p| Segment::parse(p).unwrap().ack()).collect::<Vec<_>>(), [ISN_HALF.add(3)]);
    let ended = r.half(ACK | FIN, 2, 4, b"", 0);
    assert_eq!(injected(&ended).iter().map(|p| Segment::parse(p).unwrap().ack()).collect::<Vec<_>>(), [ISN_HALF.add(4)]);
}

#[test]
fn a_half_whose_output_had_ended_hears_that_with_all_that_it_may_have_by_then() {
    let mut r = busy(false);
    r.f.shutdown(r.now, CHANNEL, THREAD, HANDLE);
    r.wait();
    let mut r = r.spliced_over(true, 4);
    r.half_syn_ack();
    r.attach();
    r.half(ACK, 0, 9, b"", 0);
    r.peer(say(ACK | FIN, 9, 5, b""));
    // This was said before, and comes after; the half has the peer's end by now, and looks at nothing from before it.
    let ended = r.half(ACK | FIN, 0, 9, b"", 0);
    let [packet] = injected(&ended)[..] else { panic!("{ended:?}") };
    let packet = Segment::parse(packet).unwrap();
    assert_eq!((packet.seq(), packet.ack()), (seq::at(ISN_IN, 10), ISN_HALF.add(2)));
    r.half(ACK, 1, 10, b"", 0);
    assert_eq!(r.f.store().len(), 0);
}

#[test]
fn what_a_half_says_after_the_end_is_corrected_still() {
    let mut r = busy(false).spliced_over(true, 4);
    r.half_syn_ack();
    r.attach();
    r.half(ACK, 0, 9, b"", 0);
    r.read(5);
    r.peer(say(ACK | FIN, 9, 4, b""));
    r.read(0);
    r.close();
    r.wait();
    r.half(ACK | FIN, 0, 10, b"", 0);
    r.peer(say(ACK, 10, 5, b""));
    assert_eq!(r.f.store().len(), 0, "both ends are acknowledged");
    // The last ACK was lost: the peer repeats its FIN, and the kernel answers from TIME_WAIT.
    let told = r.peer(say(ACK | FIN, 9, 5, b""));
    let [Action::ModifyIn(_, packet)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(Segment::parse(packet).unwrap().ack(), ISN_HALF.add(2));
    let t = tuple(r.port);
    let mut packet = Vec::new();
    let (seq, ack) = (ISN_HALF.add(2), seq::at(ISN_IN, 10));
    Build { source: t.local, destination: t.peer, seq, ack, flags: ACK, window: 1000, timestamps: None, payload: &[] }
        .write(&mut packet);
    let said = r.out(&packet);
    let [packet] = left(&said)[..] else { panic!("{said:?}") };
    assert_eq!(Segment::parse(packet).unwrap().seq(), seq::at(ISN_OUT, 5));
}

#[test]
fn without_hooks_what_was_read_is_done_when_something_is_answered() {
    let mut r = busy(false).spliced_over(false, 4);
    r.half_syn_ack();
    assert_eq!(r.f.mode(), Mode::Restoring, "the listener's queue has yet to be empty");
    r.f.all_accepted(r.now, |_| false);
    assert_eq!(r.f.mode(), Mode::Restoring, "its socket is not there");
    r.f.all_accepted(r.now, |t| *t == tuple(1000));
    assert_eq!(r.f.mode(), Mode::Active);
    r.drain();
    // Of "again" three bytes were read, says the kernel; its socket began with the first of them.
    r.f.packet_out(r.now, 900, &half_packet(b"ok", 9));
    let mut actions = Vec::new();
    r.f.drain_actions(&mut actions);
    let [Action::AskUnread(id)] = actions[..] else { panic!("{actions:?}") };
    r.f.unread(r.now, id, 5, 2);
    r.drain();
    let s = r.session();
    assert_eq!((s.in_done, s.out_done, s.input.len()), (7, 6, 2));
    // A FIN of a program that lives is meant; of one that is on its way out it is not.
    r.f.packet_out(r.now, 901, &fin_packet(2, 9));
    r.f.handle_timeout(r.now);
    assert!(r.drain().contains(&Action::AskAlive(PROGRAM)));
    r.f.process_gone(r.now, PROGRAM);
    assert_eq!(r.drain(), [Action::DropOut(901)]);
    assert!(!r.session().out_fin);
}

fn half_packet(bytes: &[u8], ack: u64) -> Vec<u8> {
    let t = tuple(1000);
    let (seq, ack) = (ISN_HALF.add(1), seq::at(ISN_IN, ack));
    let mut packet = Vec::new();
    Build { source: t.local, destination: t.peer, seq, ack, flags: ACK, window: 1000, timestamps: None, payload: bytes }
        .write(&mut packet);
    packet
}

fn fin_packet(at: u64, ack: u64) -> Vec<u8> {
    let t = tuple(1000);
    let (seq, ack) = (ISN_HALF.add(1 + at), seq::at(ISN_IN, ack));
    let mut packet = Vec::new();
    Build { source: t.local, destination: t.peer, seq, ack, flags: ACK | FIN, window: 1000, timestamps: None, payload: &[] }
        .write(&mut packet);
    packet
}

/// All that was asked is answered and done, and of that the peer has heard nothing beyond the first answer.
fn unheard() -> Rig {
    let mut r = busy(false);
    r.read(5);
    r.write(b"more");
    r.wait();
    r.taken_over(true)
}

#[test]
fn a_peer_that_speaks_from_before_the_input_that_is_done_is_heard() {
    let mut r = unheard();
    assert_eq!((r.session().in_done, r.session().out_done), (9, 8));
    // The window that it was told last ends here: it says nothing beyond (tcp_acceptable_seq).
    let heard = r.peer(say(ACK, 4, 4, b""));
    assert!(matches!(heard[..], [Action::Probed(_), Action::DropIn(_)]), "{heard:?}");
    let sent = r.splice();
    let sent: Vec<_> = left(&sent).into_iter().map(|p| offsets(p, false)).collect();
    // What it lacks, and no old bytes, with which it would not hear the acknowledgement.
    let [(at, ack, segment)] = &sent[..] else { panic!("{} segments", sent.len()) };
    assert_eq!((*at, *ack, segment.payload()), (4, 9, &b"more"[..]));
    // So it is as long as there is something to be sent; what lies further back is of no such connection.
    r.half_syn_ack();
    r.attach();
    r.drain();
    r.peer(say(ACK, 4, 6, b""));
    assert!(left(&r.pass(ms(200))).iter().any(|p| offsets(p, false).0 == 6));
    r.peer(say(ACK, 9, 8, b""));
    let ignored = r.f.counters().disbelieved;
    r.peer(say(ACK, 4, 8, b""));
    assert_eq!(r.f.counters().disbelieved, ignored + 1);
}

#[test]
fn what_a_half_acknowledges_is_said_within_the_peers_window() {
    let mut r = unheard();
    r.peer(Say { window: 0, ..say(ACK, 9, 0, b"") });
    r.splice();
    r.half_syn_ack();
    r.attach();
    r.drain();
    // It has no room for old output, and would not look at what lies beyond that.
    let said = r.half(ACK, 0, 9, b"", 0);
    let [packet] = left(&said)[..] else { panic!("{said:?}") };
    assert_eq!((offsets(packet, false).0, offsets(packet, false).1), (0, 9));
    // We grant no more room than the half has.
    let asked = r.pass(ms(200));
    let last = Segment::parse(left(&asked).last().expect("the window is asked for")).unwrap();
    assert_eq!((last.ack(), last.window()), (seq::at(ISN_IN, 9), 1000));
    r.peer(Say { window: 1, ..say(ACK, 9, 0, b"") });
    let said = r.half(ACK, 0, 9, b"", 0);
    let [packet] = left(&said)[..] else { panic!("{said:?}") };
    assert_eq!(offsets(packet, false).0, 4);
}

#[test]
fn what_was_acknowledged_before_is_not_acknowledged_anew() {
    let mut r = busy(false).spliced_over(true, 4);
    r.half_syn_ack();
    r.attach();
    r.drain();
    r.read(5);
    r.write(b"more");
    r.wait();
    // The half takes once more what the peer was told that we have: its window ends where it ends.
    for bytes in [&b""[..], b"more"] {
        let said = r.half(ACK, 0, 6, bytes, 0);
        let [packet] = left(&said)[..] else { panic!("{said:?}") };
        let (at, ack, segment) = offsets(packet, false);
        assert_eq!((at, ack, segment.payload(), segment.window()), (4, 9, bytes, ((4000 + 6 - 9) / 4) as u16));
        assert!(segment.checksum_ok());
    }
    let said = r.half(ACK, 4, 9, b"", 0);
    let [packet] = left(&said)[..] else { panic!("{said:?}") };
    assert_eq!((offsets(packet, false).1, Segment::parse(packet).unwrap().window()), (9, 1000));
}

#[test]
fn what_was_held_from_before_acknowledges_nothing_before_the_half() {
    let mut r = busy(false).spliced_over(true, 4);
    r.half_syn_ack();
    // It came while the listener had answered and not heard the rest, and the kernel remembers that: it would be reset.
    assert_eq!(r.peer(say(ACK, 9, 2, b"late")), []);
    r.attach();
    let told = r.drain();
    let told: Vec<_> = told
        .iter()
        .filter_map(|a| if let Action::ModifyIn(_, p) = a { Some(Segment::parse(p).unwrap()) } else { None })
        .collect();
    let [late] = &told[..] else { panic!("{} segments", told.len()) };
    assert_eq!((late.payload(), late.ack()), (&b"late"[..], ISN_HALF.add(1)));
    // From its first acknowledgement on it is its own.
    r.half(ACK, 0, 13, b"", 0);
    r.read(9);
    r.write(b"more");
    r.wait();
    r.half(ACK, 0, 13, b"more", 0);
    for (ack, shown) in [(8, ISN_HALF.add(5)), (6, ISN_HALF.add(3)), (2, ISN_HALF.add(u64::from(u32::MAX)))] {
        let told = r.peer(say(ACK, 13, ack, b""));
        let [Action::ModifyIn(_, packet)] = &told[..] else { panic!("{told:?}") };
        assert_eq!(Segment::parse(packet).unwrap().ack(), shown);
    }
}

/// A listener that keeps a connection to itself until its client says something (TCP_DEFER_ACCEPT) takes it by that, and looks
/// at what it echoes.
#[test]
fn what_was_held_from_before_echoes_no_clock_before_that_of_the_half() {
    let mut r = busy(true).spliced_over(true, 4);
    r.half_syn_ack();
    let echoes = |actions: &[Action]| -> Vec<u32> {
        let changed = actions.iter().filter_map(|a| if let Action::ModifyIn(_, p) = a { Some(p) } else { None });
        changed.map(|p| Segment::parse(p).unwrap().options().timestamps.unwrap().1).collect()
    };
    r.peer(Say { ts: Some((510, 200)), ..say(ACK, 9, 4, b"late") });
    r.attach();
    let told = r.drain();
    assert_eq!(echoes(&told), [HALF_CLOCK]);
    // From its first acknowledgement on the peer's echoes are what they are.
    r.half(ACK, 0, 13, b"", HALF_CLOCK + 3);
    r.read(9);
    r.write(b"more");
    r.wait();
    r.half(ACK, 0, 13, b"more", HALF_CLOCK + 5);
    let shown = r.f.store().get(r.session().open.session).unwrap().ts_value;
    r.peer(Say { ts: Some((520, shown)), ..say(ACK, 13, 8, b"") });
    let told = r.peer(Say { ts: Some((520, 200)), ..say(ACK, 13, 8, b"") });
    assert!((echoes(&told)[0].wrapping_sub(HALF_CLOCK) as i32) < 0, "{told:?}");
}

/// Two sessions wait for the listener, and the first one is asked for.
fn two_wait() -> Rig {
    let mut r = busy(false);
    r.port += 1;
    r.handshake(false);
    r.stored();
    let mut r = r.taken_over(true);
    r.port -= 1;
    r.peer(say(ACK, 9, 4, b""));
    let asked = r.splice();
    assert!(asks_for(&asked, 1000));
    r.port += 1;
    r.peer(say(ACK, 0, 0, b""));
    let asked = r.splice();
    assert!(!asks_for(&asked, 1001), "only one is asked for until the listener has answered");
    r.port -= 1;
    r.actions.clear();
    r
}

fn asks_for(actions: &[Action], port: u16) -> bool {
    injected(actions).into_iter().map(|p| Segment::parse(p).unwrap()).any(|p| p.has(SYN) && p.source().port() == port)
}

#[test]
fn the_end_of_the_session_that_is_asked_for_keeps_no_other_waiting() {
    // Its peer resets it.
    let mut r = two_wait();
    let ended = r.peer(say(RST, 9, 0, b""));
    assert!(ended.iter().any(|a| matches!(a, Action::Ended(..))) && asks_for(&ended, 1001), "{ended:?}");
    // It is torn.
    let mut r = two_wait();
    let id = r.session().open.session;
    r.f.restore_failed(r.now, id);
    let ended = r.drain();
    assert!(ended.iter().any(|a| matches!(a, Action::Ended(..))) && asks_for(&ended, 1001), "{ended:?}");
    // The program listens only after that, and so the other one goes on being asked for.
    assert!(asks_for(&r.pass(ms(100)), 1001));
    r.f.listening(r.now);
    assert!(asks_for(&r.drain(), 1001));
    r.port += 1;
    r.half_syn_ack();
    assert_eq!(r.f.unprobed(), 0);
}

#[test]
fn a_session_that_is_not_answered_keeps_no_other_waiting() {
    let mut r = two_wait();
    // There is something in its way: the other one is asked for in its turn, and then this one again.
    assert!(asks_for(&r.pass(ms(20)), 1001));
    assert!(asks_for(&r.pass(ms(20)), 1000));
    // A process says that it has it, which cannot be.
    r.attach();
    r.drain();
    assert!(asks_for(&r.pass(ms(20)), 1001));
    r.port += 1;
    r.half_syn_ack();
    r.f.listener_waits(r.now, 5555, Waits::Level);
    assert!(asks_for(&r.drain(), 1000), "the listener answers: everything is asked for");
    assert!(!asks_for(&r.pass(ms(5000)), 1001));
}

#[test]
fn a_listener_that_waits_for_edges_gets_one_connection_after_another() {
    for waits in [None, Some(Waits::Edge)] {
        let mut r = two_wait();
        let answered = r.half_syn_ack();
        assert!(answered.contains(&Action::AskListener(tuple(1000))) && !asks_for(&answered, 1001), "{answered:?}");
        if let Some(waits) = waits {
            r.f.listener_waits(r.now, 5555, waits);
        }
        assert!(!asks_for(&r.pass(ms(4900)), 1001), "it would hear once of two");
        r.attach();
        assert!(asks_for(&r.drain(), 1001));
        assert_eq!(r.f.unprobed(), 1);
        r.port += 1;
        // It is asked once how it waits.
        let asks = r.half_syn_ack().contains(&Action::AskListener(tuple(1001)));
        assert_eq!((asks, r.f.unprobed()), (waits.is_none(), 0));
    }
    // What is not accepted, or by no hook, keeps no other waiting for long; nor what ends before.
    let mut r = two_wait();
    r.half_syn_ack();
    assert!(asks_for(&r.pass(ms(5000)), 1001));
    let mut r = two_wait();
    r.half_syn_ack();
    assert!(asks_for(&r.peer(say(RST, 9, 0, b"")), 1001));
    // Whoever waits for all that is there gets all.
    let mut r = two_wait();
    r.half_syn_ack();
    r.f.listener_waits(r.now, 5555, Waits::Level);
    assert!(asks_for(&r.drain(), 1001));
}

/// A listener from which io_uring accepts, whichever the engine.
#[test]
fn what_no_hook_accepts_is_seen_by_its_socket() {
    let mut r = two_wait();
    r.half_syn_ack();
    r.f.accepted_around(r.now, |_| true);
    assert_eq!(r.f.not_handed_over(), 2, "hooks tell of what is accepted on this port");
    r.f.splice_port(5555);
    r.f.accepted_around(r.now, |t| *t == tuple(1000));
    assert!(asks_for(&r.drain(), 1001));
    r.port += 1;
    r.half_syn_ack();
    r.f.accepted_around(r.now, |_| true);
    assert_eq!((r.f.mode(), r.f.unaccepted()), (Mode::Active, 0));
}

#[test]
fn a_port_without_a_listener_keeps_no_other_waiting() {
    use crate::record::Open;
    let mut f = splicing(true);
    f.demote();
    let locals: [SocketAddr; 4] =
        ["192.0.2.200:5555", "192.0.2.200:5556", "[2001:db8::200]:5555", "192.0.2.201:5555"].map(|a| a.parse().unwrap());
    let mut log = Vec::new();
    for (i, local) in locals.into_iter().enumerate() {
        let peer = if local.is_ipv4() { ([192, 0, 2, 9], 1000).into() } else { "[2001:db8::9]:1000".parse().unwrap() };
        let open = Open {
            session: 1 + i as u32,
            tuple: FourTuple { local, peer },
            internal_port: local.port(),
            isn_in: ISN_IN,
            isn_out: ISN_OUT,
            mss: 1460,
            shifts: None,
            sack: false,
            timestamps: false,
            established: true,
            window: 500,
            ts_recent: 0,
            ts_value: 0,
            in_done: 0,
            out_acked: 0,
        };
        open.encode(&mut log);
    }
    f.replica_apply(&log).unwrap();
    f.take_over(ms(1000));
    f.drain_actions(&mut Vec::new());
    (1..=4).for_each(|id| f.splice(ms(1000), id));
    let mut asked = Vec::new();
    f.drain_actions(&mut asked);
    let asked: Vec<SocketAddr> = injected(&asked)
        .into_iter()
        .map(|p| Segment::parse(p).unwrap())
        .filter(|p| p.has(SYN))
        .map(|p| p.destination())
        .collect();
    assert_eq!(asked.into_iter().collect::<BTreeSet<_>>(), locals.into_iter().collect());
}

/// A download of 5,000 bytes of which the peer has acknowledged none; what it takes of timestamps is 12 bytes a segment.
fn download(ts: bool) -> Rig {
    let mut r = if ts { Rig::with_timestamps() } else { Rig::open() };
    let stamp = |value| ts.then_some((value, 200));
    r.peer(Say { ts: stamp(110), ..say(ACK, 0, 0, b"get") });
    r.read(3);
    r.write(&[7; 5000]);
    r.wait();
    r.stored();
    r.kernel(Say { ts: ts.then_some((210, 110)), ..say(ACK, 0, 3, &[7; 1448]) });
    r.peer(Say { ts: stamp(120), ..say(ACK, 3, 0, b"") });
    r
}

/// The lengths of what was sent from this output offset on.
fn lengths_at(actions: &[Action], at: u64) -> Vec<usize> {
    let sent = left(actions).into_iter().filter(|p| Segment::parse(p).unwrap().seq() == seq::at(ISN_OUT, at));
    sent.map(<[u8]>::len).filter(|n| *n > 100).collect()
}

#[test]
fn old_output_gets_through_a_narrow_path() {
    // It takes packets of 1400 bytes, and no router says so.
    let mut r = download(false).spliced_over(true, 0);
    assert_eq!(lengths_at(&r.actions, 0), [1500]);
    let all = r.pass(ms(2000));
    let lengths = lengths_at(&all, 0);
    assert!(lengths.iter().position(|n| *n <= 1400).is_some_and(|i| i < 2), "{lengths:?}");
    assert!(lengths.is_sorted_by(|a, b| a >= b) && lengths.iter().all(|n| *n >= 552), "{lengths:?}");
    // Even of a peer with timestamps, and however long it is lost.
    let mut r = download(true).spliced_over(true, 0);
    let all = r.pass(ms(120_000));
    assert_eq!((lengths_at(&all, 0).first(), lengths_at(&all, 0).last()), (Some(&1500), Some(&552)));
    // A peer whose window is shut is asked, and loses nothing.
    let mut r = download(false).taken_over(true);
    r.peer(Say { window: 0, ..say(ACK, 3, 0, b"") });
    r.splice();
    r.pass(ms(5000));
    r.actions.clear();
    r.peer(say(ACK, 3, 0, b""));
    r.pass(ms(4000));
    assert_eq!(lengths_at(&r.actions, 0)[0], 1500);
}

#[test]
fn what_has_got_through_is_not_made_shorter_again() {
    let mut r = download(false).spliced_over(true, 0);
    r.pass(ms(100));
    r.actions.clear();
    // 1280 it is, and one more of them was lost, once.
    r.peer(say(ACK, 3, 1240, b""));
    let all = r.pass(ms(200));
    assert!(!lengths_at(&all, 1240).is_empty());
    assert!(lengths_at(&all, 1240).iter().all(|n| *n == 1280), "{:?}", lengths_at(&all, 1240));
}

/// A router's words on a packet.
fn routers(packet: &[u8], mtu: u32) -> (Vec<u8>, u32) {
    (packet[..28].to_vec(), mtu)
}

#[test]
fn a_router_is_heard_about_what_we_send_ourselves() {
    let mut r = download(false).spliced_over(true, 0);
    let actions = r.actions.clone();
    let sent: Vec<Vec<u8>> = left(&actions).into_iter().filter(|p| p.len() > 1000).map(<[u8]>::to_vec).collect();
    assert_eq!(sent.len(), 3);
    let (quoted, mtu) = routers(&sent[0], 1400);
    r.f.too_long(r.now, &quoted, mtu);
    let again = r.drain();
    // All of it, at once, in packets that fit.
    assert_eq!(left(&again).iter().map(|p| p.len()).collect::<Vec<_>>(), [1400, 1400, 1400, 5000 - 3 * 1360 + 40]);
    assert_eq!(offsets(left(&again)[0], false).0, 0);
    // About the others of that flight it says the same.
    r.f.too_long(r.now, &routers(&sent[1], 1400).0, 1400);
    assert_eq!(r.drain(), []);
    // The half is told that no more fits.
    r.f.listening(r.now);
    let asked = r.drain();
    let syn = injected(&asked).into_iter().map(|p| Segment::parse(p).unwrap()).find(|p| p.has(SYN)).unwrap();
    assert_eq!(syn.options().mss, Some(1360));
    // One of old, which does not say what fits.
    r.f.too_long(r.now, &quoted, 0);
    assert_eq!(left(&r.drain()).first().map(|p| p.len()), Some(1280));
}

#[test]
fn a_router_is_heard_by_the_half_whose_packet_it_was() {
    let mut r = busy(true).spliced_over(true, 4);
    r.half_syn_ack();
    r.attach();
    r.read(5);
    r.write(&[9; 3000]);
    r.wait();
    let out = r.half(ACK, 0, 9, &[9; 1448], HALF_CLOCK + 7);
    let [packet] = left(&out)[..] else { panic!("{out:?}") };
    let (quoted, mtu) = routers(packet, 1400);
    r.f.too_long(r.now, &quoted, mtu);
    let told = r.drain();
    let [message] = injected(&told)[..] else { panic!("{told:?}") };
    // From the peer's side to here: ICMP, fragmentation needed, 1400; about a packet in the half's own numbers.
    assert_eq!((message[9], &message[12..16], &message[16..20]), (1, &[192, 0, 2, 9][..], &[192, 0, 2, 200][..]));
    assert_eq!((&message[20..22], &message[26..28]), (&[3, 4][..], &1400u16.to_be_bytes()[..]));
    let inner = crate::icmp::Quoted::parse(&message[28..]).unwrap();
    assert_eq!((inner.tuple, inner.seq, inner.length), (tuple(r.port), ISN_HALF.add(1), packet.len() as u32));
    // A stranger who guesses the connection has to guess what is on its way, too (RFC 5927, section 4.1).
    for seq in [-1i64, 1448, 1 << 30, -(1 << 30)] {
        let mut forged = quoted.clone();
        let number = Segment::parse(packet).unwrap().seq().add(seq as u64);
        forged[24..28].copy_from_slice(&number.0.to_be_bytes());
        r.f.too_long(r.now, &forged, mtu);
        assert_eq!(r.drain(), [], "{seq}");
    }
    // It gains little: nothing is made shorter than any path takes.
    r.f.too_long(r.now, &quoted, 68);
    let told = r.drain();
    assert_eq!(&injected(&told)[0][26..28], &552u16.to_be_bytes());
    // What says nothing says nothing.
    for (quoted, mtu) in [(&quoted[..], 1500), (&quoted[..27], 1400), (&[][..], 1400)] {
        r.f.too_long(r.now, quoted, mtu);
        assert_eq!(r.drain(), []);
    }
    // Nor what has been acknowledged meanwhile.
    r.peer(Say { ts: Some((510, 207)), ..say(ACK, 9, 4 + 1448, b"") });
    r.f.too_long(r.now, &quoted, mtu);
    assert!(injected(&r.drain()).is_empty());
    // A member that is none any more says nothing.
    r.f.demote();
    r.drain();
    r.f.too_long(r.now, &quoted, mtu);
    assert_eq!(r.drain(), []);
}
