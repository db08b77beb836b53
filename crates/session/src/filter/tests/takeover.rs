use super::*;

impl Rig {
    /// The master dies; the replica takes over.
    pub(super) fn fail_over(&mut self) -> Vec<Action> {
        self.f = std::mem::replace(&mut self.replica, Filter::new(config()));
        self.f.take_over(self.now);
        self.drain()
    }

    fn id(&self) -> SessionId {
        self.f.store().find(&tuple(self.port)).expect("a session")
    }

    fn probe_all(&mut self) -> Vec<Action> {
        self.f.probes();
        self.drain()
    }

    pub(super) fn restore(&mut self, answered: bool) -> RestoreSpec {
        let id = self.id();
        let spec = self.f.restore_spec(id, answered, 0).unwrap();
        self.f.restored(self.now, id, spec.sent.len());
        spec
    }

    pub(super) fn recovered(&mut self) -> Vec<Action> {
        self.f.attach(self.now, CHANNEL, HANDLE, Origin::Recovered, &tuple(self.port));
        self.drain()
    }
}

/// A request answered with ten bytes of which four are acknowledged, and a second one not read.
pub(super) fn half_way() -> Rig {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"ping"));
    r.read(4);
    r.write(b"0123456789");
    r.wait();
    r.kernel(say(ACK, 0, 4, b"0123456789"));
    r.stored();
    r.peer(say(ACK, 4, 4, b"again"));
    r.kernel(say(ACK, 10, 9, b""));
    r.stored();
    r
}

#[test]
fn a_session_moves_and_goes_on() {
    let mut r = half_way();
    r.fail_over();
    assert_eq!((r.f.unprobed(), r.f.not_handed_over(), r.f.unrestored().len()), (1, 1, 1));
    let actions = r.probe_all();
    let [Action::SendPeer(probe)] = &actions[..] else { panic!("{actions:?}") };
    let (seq, ack, segment) = offsets(probe, false);
    assert_eq!((seq, ack, segment.payload().len()), (3, 9, 1));
    // New connections and strangers wait.
    r.port += 1;
    let syn = r.syn(false);
    assert_eq!(r.inp(&syn), []);
    let actions = r.peer(say(ACK, 0, 0, b"who"));
    assert_eq!(actions, [Action::DropIn(r.id)]);
    r.port -= 1;
    // The peer's answer: it has seven bytes. Its new input waits.
    let id = r.id();
    let actions = r.peer(say(ACK, 9, 7, b""));
    assert_eq!(actions, [Action::Probed(id), Action::DropIn(r.id)]);
    assert_eq!(r.peer(say(ACK, 9, 7, b"third")), []);
    let spec = r.restore(true);
    assert_eq!((spec.snd_una, spec.rcv_nxt), (r.session().out_seq(7).0, r.session().in_seq(4).0));
    assert_eq!((&spec.sent[..], &spec.unsent[..]), (&b""[..], &b"789"[..]));
    assert_eq!((spec.absorb, spec.input_pending, spec.fin, spec.closed), (0, true, false, false));
    // The application takes it: input is injected, what was held goes on, the new connection too.
    let actions = r.recovered();
    assert_eq!(r.f.mode(), Mode::Active);
    let [Action::Inject(kept), Action::AcceptIn(_), Action::AcceptIn(_)] = &actions[..] else { panic!("{actions:?}") };
    let (seq, ack, segment) = offsets(kept, true);
    assert_eq!((seq, ack, segment.payload()), (4, 7, &b"again"[..]));
    assert_eq!(input_of(r.session()), b"againthird");
    r.kernel(say(ACK, 7, 4, b"789"));
    r.kernel(say(ACK, 10, 14, b""));
    r.peer(say(ACK, 14, 10, b""));
    assert!(r.pass(ms(1000)).is_empty());
    r.read(10);
    r.write(b"both");
    r.wait();
    let actions = r.kernel(say(ACK, 10, 14, b"both"));
    assert!(r.passes(&actions));
}

#[test]
fn acks_of_the_future_are_lowered_until_the_kernel_has_caught_up() {
    let mut r = half_way();
    r.fail_over();
    r.peer(say(ACK, 9, 4, b""));
    r.restore(true);
    r.recovered();
    // What the former master sent is acknowledged; this kernel has not sent it yet.
    let actions = r.peer(say(ACK, 9, 10, b"x"));
    let [Action::ModifyIn(_, packet)] = &actions[..] else { panic!("{actions:?}") };
    let (seq, ack, segment) = offsets(packet, true);
    assert_eq!((seq, ack, segment.payload(), segment.checksum_ok()), (9, 4, &b"x"[..], true));
    // An ACK of what no master ever had is nobody's.
    let actions = r.peer(say(ACK, 10, 11, b""));
    assert_eq!(actions, [Action::DropIn(r.id)]);
    r.kernel(say(ACK, 4, 9, b"456789"));
    let actions = r.peer(say(ACK, 10, 10, b""));
    assert!(r.passes(&actions));
    r.pass(ms(20));
    assert_eq!(r.session().out_acked, 10);
}

#[test]
fn without_an_answer_everything_counts_as_sent() {
    let mut r = half_way();
    r.fail_over();
    r.probe_all();
    let spec = r.restore(false);
    // The last ACK told to the log was the one before.
    assert_eq!((spec.sent.len(), spec.unsent.len()), (6, 0));
    r.recovered();
    let actions = r.peer(say(ACK, 9, 10, b""));
    assert_eq!(shown(&actions), (4, 10));
}

#[test]
fn a_peer_that_speaks_from_before_the_window_is_heard_once_and_the_kernel_told() {
    let mut r = half_way();
    r.read(5);
    r.write(b"more");
    r.wait();
    r.stored();
    r.fail_over();
    r.probe_all();
    r.restore(false);
    r.recovered();
    // It says nothing beyond the window that it was told last, and of that this kernel would hear nothing.
    let actions = r.peer(say(ACK, 4, 10, b""));
    let told = actions.iter().find_map(|a| if let Action::Inject(p) = a { Some(offsets(p, true)) } else { None });
    assert_eq!(told.map(|(seq, ack, _)| (seq, ack)), Some((9, 10)));
    let actions = r.peer(say(ACK, 4, 12, b""));
    assert!(injected(&actions).is_empty(), "an old duplicate");
    r.pass(ms(20));
    assert_eq!(r.session().out_acked, 10);
}

#[test]
fn a_kernel_that_takes_input_once_more_acknowledges_all_that_was() {
    let mut r = half_way();
    r.fail_over();
    r.peer(say(ACK, 9, 4, b""));
    r.restore(true);
    r.recovered();
    let actions = r.kernel(say(ACK, 4, 6, b"456789"));
    let [Action::ModifyOut(_, packet)] = &actions[..] else { panic!("{actions:?}") };
    let (seq, ack, segment) = offsets(packet, false);
    assert_eq!((seq, ack, segment.payload(), segment.window()), (4, 9, &b"456789"[..], 60_000 - 1));
    assert!(segment.checksum_ok());
    let actions = r.kernel(say(ACK, 10, 9, b""));
    assert!(r.passes(&actions));
}

#[test]
fn the_first_unacknowledged_segment_is_sent_again_by_ourselves() {
    let mut r = half_way();
    r.fail_over();
    r.restore(false);
    r.recovered();
    let mut at = Vec::new();
    for _ in 0..300 {
        for a in r.pass(ms(1)) {
            if let Action::SendPeer(packet) = a {
                let (seq, ack, s) = offsets(&packet, false);
                assert_eq!((seq, ack, s.payload()), (4, 9, &b"456789"[..]));
                at.push((r.now - ms(1000)).as_millis());
            }
        }
    }
    assert_eq!(at, [20, 60, 140]);
}

#[test]
fn an_ack_that_comes_while_the_socket_is_made_reaches_it() {
    let mut r = half_way();
    r.fail_over();
    let id = r.id();
    let spec = r.f.restore_spec(id, false, 0).unwrap();
    r.peer(say(ACK, 9, 8, b""));
    r.f.restored(r.now, id, spec.sent.len());
    let actions = r.drain();
    let [Action::Inject(packet)] = &actions[..] else { panic!("{actions:?}") };
    let (seq, ack, _) = offsets(packet, true);
    assert_eq!((seq, ack), (4, 8));
    // Behind the barrier ACKs go on, input does not.
    let actions = r.peer(say(ACK, 9, 10, b""));
    assert_eq!(shown(&actions), (4, 10));
    assert_eq!(r.peer(say(ACK, 9, 10, b"x")), []);
    r.pass(ms(20));
    assert_eq!(r.session().out_acked, 10);
}

#[test]
fn the_barrier_falls_when_the_last_awaited_session_ends() {
    let mut r = half_way();
    r.port += 1;
    r.handshake(false);
    r.stored();
    r.fail_over();
    r.restore(false);
    r.recovered();
    assert_eq!(r.f.mode(), Mode::Restoring);
    r.port -= 1;
    r.peer(say(RST, 9, 0, b""));
    assert_eq!((r.f.mode(), r.f.not_handed_over()), (Mode::Active, 0));
}

#[test]
fn nothing_to_take_over_is_no_barrier() {
    let mut r = Rig::new();
    r.fail_over();
    assert_eq!(r.f.mode(), Mode::Active);
}

#[test]
fn a_barrier_that_takes_too_long_is_lifted() {
    let mut r = half_way();
    r.fail_over();
    r.restore(false);
    assert_eq!(r.f.mode(), Mode::Restoring);
    r.f.lift_barrier(r.now);
    assert_eq!(r.f.mode(), Mode::Active);
    assert!(matches!(r.drain()[..], [Action::Inject(_)]));
    r.recovered();
    assert_eq!(r.f.not_handed_over(), 0);
}

#[test]
fn a_session_whose_socket_is_made_after_the_barrier_goes_on() {
    let mut r = half_way();
    r.fail_over();
    r.f.barrier_met(r.now);
    assert_eq!(r.f.mode(), Mode::Restoring);
    r.f.lift_barrier(r.now);
    assert_eq!(r.f.mode(), Mode::Active);
    // What its peer says waits for it, and nobody answers in its place.
    let kept = r.packet(say(ACK, 9, 4, b"more"), true);
    assert_eq!(r.inp(&kept), [Action::Probed(r.id())]);
    assert_eq!(r.f.unrestored(), [r.id()]);
    r.restore(true);
    let actions = r.drain();
    assert!(matches!(actions[..], [Action::Inject(_), Action::AcceptIn(_)]), "{actions:?}");
    r.recovered();
    assert_eq!((r.f.unrestored().len(), r.f.not_handed_over()), (0, 0));
}

#[test]
fn a_half_open_session_gets_its_syn_ack_again() {
    let mut r = Rig::new();
    let (syn, syn_ack) = (r.syn(true), r.syn_ack(true));
    r.inp(&syn);
    r.out(&syn_ack);
    r.stored();
    r.fail_over();
    assert_eq!((r.f.mode(), r.f.unprobed(), r.f.unrestored().len()), (Mode::Active, 0, 0));
    let id = r.id();
    assert!(r.f.restore_spec(id, false, 0).is_none());
    let actions = r.probe_all();
    let [Action::SendPeer(packet)] = &actions[..] else { panic!("{actions:?}") };
    let s = Segment::parse(packet).unwrap();
    assert_eq!((s.seq(), s.ack(), s.flags()), (ISN_OUT, ISN_IN.add(1), SYN | ACK));
    let mut options = Segment::parse(&syn_ack).unwrap().options();
    options.timestamps = Some((700, 100));
    assert_eq!(s.options(), options, "the same, and a clock that has not gone back");
    // The peer did not hear it: it asks again, and is told again.
    let actions = r.inp(&syn);
    assert!(matches!(actions[..], [Action::SendPeer(_), Action::DropIn(_)]));
    // It answers, and has something to say.
    let actions = r.peer(Say { ts: Some((102, 200)), ..say(ACK, 0, 0, b"hello") });
    assert_eq!(actions, [Action::Probed(id)]);
    let spec = r.restore(true);
    assert_eq!((spec.rcv_nxt, spec.snd_una), (ISN_IN.add(1).0, ISN_OUT.add(1).0));
    let actions = r.drain();
    assert!(matches!(actions[..], [Action::AcceptIn(_)]), "{actions:?}");
    r.recovered();
    r.read(5);
    r.write(b"world");
    r.wait();
    let actions = r.kernel(Say { ts: Some((1201, 102)), ..say(ACK, 0, 5, b"world") });
    assert!(r.passes(&actions));
    // One that never answers goes by itself.
    let mut r = Rig::new();
    r.inp(&syn);
    r.out(&syn_ack);
    r.stored();
    r.fail_over();
    let sent = r.pass(ms(100_000));
    assert_eq!(sent.iter().filter(|a| matches!(a, Action::SendPeer(_))).count(), 6);
    assert!(r.f.store().is_empty());
    // One that starts anew gets a new one.
    let mut r = Rig::new();
    r.inp(&syn);
    r.out(&syn_ack);
    r.stored();
    r.fail_over();
    let mut other = Vec::new();
    Segment::parse(&syn).unwrap().rewrite(Seq(77), Seq(0), &mut other);
    let actions = r.inp(&other);
    assert!(matches!(actions[..], [Action::Ended(_, _, EndReason::Expired), Action::AcceptIn(_)]));
}

#[test]
fn the_kernel_alone_sees_a_closed_session_to_its_end() {
    let mut r = half_way();
    r.close();
    r.wait();
    r.stored();
    r.fail_over();
    assert_eq!((r.f.unprobed(), r.f.not_handed_over()), (1, 0));
    assert_eq!(r.f.mode(), Mode::Restoring, "it has no socket yet");
    let spec = r.restore(false);
    assert!(spec.closed && spec.fin);
    assert_eq!(spec.rcv_nxt, r.session().in_seq(9).0, "what nobody will read is not there to reset it");
    assert_eq!(r.f.mode(), Mode::Active);
    let actions = r.kernel(say(ACK | FIN, 4, 9, b"456789"));
    assert!(r.passes(&actions));
    r.peer(say(ACK | FIN, 9, 11, b""));
    r.kernel(say(ACK, 11, 10, b""));
    assert!(r.f.store().is_empty());
}

#[test]
fn a_fin_that_the_former_master_sent_is_acknowledged_to_this_kernel_too() {
    let mut r = half_way();
    r.close();
    r.wait();
    r.kernel(say(ACK | FIN, 10, 9, b""));
    r.stored();
    r.fail_over();
    // Both directions are over, as the peer sees it; this kernel has to hear it.
    r.peer(say(ACK, 9, 11, b""));
    r.restore(true);
    let actions = r.peer(say(ACK | FIN, 9, 11, b""));
    let [Action::ModifyIn(_, packet)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(offsets(packet, true).1, 10);
    assert_eq!(r.f.store().len(), 1);
    r.kernel(say(ACK | FIN, 10, 10, b""));
    assert_eq!(r.f.store().len(), 1, "its FIN is not acknowledged");
    let actions = r.peer(say(ACK, 10, 11, b""));
    assert!(r.passes(&actions));
    assert!(r.f.store().is_empty());
}

#[test]
fn a_slow_reader_gets_its_kept_input_however_long_it_takes() {
    let mut r = Rig::open();
    let big = vec![b'x'; 200_000];
    for (i, part) in big.chunks(1400).enumerate() {
        r.peer(say(ACK, i as u64 * 1400, 0, part));
    }
    r.kernel(say(ACK, 0, 200_000, b""));
    r.stored();
    r.fail_over();
    r.restore(false);
    let mut got = 0;
    let mut actions = r.recovered();
    let mut rounds = 0;
    while got < 200_000 {
        rounds += 1;
        assert!(rounds < 1000);
        let mut most = 0;
        for a in &actions {
            let Action::Inject(p) = a else { continue };
            let (seq, _, s) = offsets(p, true);
            let seq = if seq < got.min(1000) { seq } else { seq::offset(ISN_IN, s.seq(), got).unwrap() };
            most = most.max(seq + s.payload().len() as u64);
        }
        assert!(most <= got + (64 << 10));
        // The kernel had room for some of it, now and then.
        r.pass(ms(3000));
        if rounds % 3 == 0 && most > got {
            got = most.min(got + 10_000);
            actions = r.kernel(say(ACK, 0, got, b""));
            actions.extend(r.pass(ms(700)));
        } else {
            actions = r.pass(ms(700));
        }
    }
    assert!(r.pass(ms(10_000)).is_empty());
}

#[test]
fn a_torn_session_is_reset_and_counted() {
    let mut r = half_way();
    // A turn over two sessions with a short write on one.
    r.port += 1;
    r.handshake(false);
    r.f.attach(r.now, CHANNEL, 8, Origin::Accepted, &tuple(r.port));
    r.writes(CHANNEL, THREAD, 8, b"to all");
    r.f.write_of(r.now, CHANNEL, THREAD, HANDLE, b"to", 3);
    r.wait();
    r.stored();
    r.port -= 1;
    assert!(r.session().torn);
    let actions = r.fail_over();
    assert_eq!(r.f.counters().torn, 1);
    let [Action::SendPeer(a), Action::SendPeer(b), Action::Ended(_, _, EndReason::Torn)] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert!(offsets(a, false).0 <= 4 && offsets(b, false).0 == 12);
    // The peer challenges a reset that is not exact, and gets one that is.
    let actions = r.peer(say(ACK, 9, 7, b""));
    let [Action::SendPeer(reset), Action::DropIn(_)] = &actions[..] else { panic!("{actions:?}") };
    let s = Segment::parse(reset).unwrap();
    assert_eq!((s.seq(), s.flags(), s.checksum_ok()), (seq::at(ISN_OUT, 7), RST, true));
    assert_eq!(r.f.store().len(), 1);
}

#[test]
fn a_socket_that_cannot_be_made() {
    let mut r = half_way();
    r.fail_over();
    let id = r.id();
    r.f.restore_failed(r.now, id);
    let actions = r.drain();
    assert!(actions.iter().any(|a| matches!(a, Action::SendPeer(_))));
    assert_eq!((r.f.counters().torn, r.f.mode(), r.f.store().len()), (1, Mode::Active, 0));
    r.f.restored(r.now, id, 0);
    r.f.restore_failed(r.now, id);
}

#[test]
fn an_open_response_is_absorbed_by_offset() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"GET"));
    r.read(3);
    r.f.write_of(r.now, CHANNEL, THREAD, HANDLE, b"first part,", 12);
    r.wait();
    r.kernel(say(ACK, 0, 3, b"first part,"));
    r.stored();
    r.fail_over();
    r.peer(say(ACK, 3, 5, b""));
    let spec = r.restore(true);
    assert_eq!((spec.absorb, &spec.unsent[..]), (11, &b" part,"[..]));
    r.recovered();
    r.read(3);
    r.f.absorbed(r.now, CHANNEL, THREAD, HANDLE, 11);
    r.write(b" second");
    r.wait();
    let s = r.session();
    assert_eq!((s.in_done, s.out_base, s.out_done), (3, 18, 18));
    r.kernel(say(ACK, 5, 3, b" part,"));
    let actions = r.kernel(say(ACK, 11, 3, b" second"));
    assert!(r.passes(&actions));
}

#[test]
fn a_window_that_was_advertised_is_not_taken_back() {
    let mut r = Rig::open();
    // The last word of the window did not reach the log; the peer's segment shows it.
    r.stored();
    r.fail_over();
    let edge = r.session().in_edge;
    r.peer(say(ACK, edge + 10_000, 0, b"far"));
    let id = r.id();
    let spec = r.f.restore_spec(id, true, 0).unwrap();
    assert!(u64::from(spec.rcv_wnd) >= edge + 10_003);
    // What the kernel advertises is told when it leads by much.
    let mut r = Rig::open();
    r.kernel(Say { window: 65_000, ..say(ACK, 0, 0, b"") });
    r.pass(ms(10));
    r.stored();
    assert_eq!(r.replica.store().iter().next().unwrap().in_edge, 260_000);
}

#[test]
fn a_torn_session_is_reset_when_its_own_master_recovers() {
    let mut r = half_way();
    r.f.write_of(r.now, CHANNEL, THREAD, HANDLE, b"to", 3);
    r.port += 1;
    r.handshake(false);
    r.f.attach(r.now, CHANNEL, 8, Origin::Accepted, &tuple(r.port));
    r.writes(CHANNEL, THREAD, 8, b"to all");
    r.wait();
    r.stored();
    r.port -= 1;
    assert!(r.session().torn);
    r.f.process_gone(r.now, CHANNEL);
    r.f.set_fenced(r.now, true);
    r.f.recover(r.now);
    let resets = |a: &Action| matches!(a, Action::SendPeer(p) if Segment::parse(p).unwrap().has(RST));
    // Who has heard of its end nowhere else may have been taken over meanwhile.
    assert!(!r.drain().iter().any(resets));
    assert!(r.stored().iter().any(resets));
    assert_eq!((r.f.counters().torn, r.f.store().len()), (1, 1));
}

#[test]
fn what_the_peer_may_have_is_acknowledged_whatever_the_replica_has() {
    let mut r = half_way();
    r.fail_over();
    // A new replica joins while the sockets are made.
    r.f.hold_for_replica(r.f.log_end());
    let spec = r.restore(false);
    assert_eq!(spec.sent.len(), 6);
    r.recovered();
    // It had all of it, and goes on.
    r.peer(say(ACK, 9, 10, b""));
    r.peer(say(ACK, 9, 10, b"more"));
    assert_eq!((r.session().in_end(), r.f.counters().disbelieved), (13, 0));
}

#[test]
fn a_session_whose_input_was_read_at_each_of_several_deaths_is_given_up() {
    let mut r = half_way();
    for death in 1..=3 {
        assert_eq!(r.f.give_up_deadly(r.now, 3), 0, "{death}");
        let unread = r.session().in_end() - r.session().in_done;
        assert!(unread > 0);
        r.f.read(r.now, CHANNEL, THREAD, HANDLE, unread);
        r.f.process_gone(r.now, CHANNEL);
        if death < 3 {
            r.f.recover(r.now);
            r.drain();
            r.restore(false);
            r.recovered();
        }
    }
    assert_eq!(r.f.give_up_deadly(r.now, 3), 1);
    assert!(r.f.store().is_empty());
    r.f.forget_deaths();
}

#[test]
fn a_master_whose_application_died_takes_over_from_itself() {
    let mut r = half_way();
    r.write(b"not committed");
    r.kernel(say(ACK, 10, 9, b"not committed"));
    r.f.process_gone(r.now, CHANNEL);
    // Input that the replica does not have yet.
    r.peer(say(ACK, 9, 4, b"late"));
    r.f.recover(r.now);
    r.drain();
    let actions = r.probe_all();
    let [Action::SendPeer(probe)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(offsets(probe, false).1, 9, "I1 holds for probes, too");
    r.peer(say(ACK, 13, 10, b""));
    let spec = r.restore(true);
    assert_eq!((spec.unsent.len(), spec.rcv_nxt), (0, r.session().in_seq(4).0));
    r.recovered();
    r.kernel(say(ACK, 10, 13, b""));
    let actions = r.stored();
    assert!(r.passes(&actions));
    r.read(9);
    r.write(b"answer");
    r.wait();
    assert_eq!(r.kernel(say(ACK, 10, 13, b"answer")), []);
    let actions = r.stored();
    assert!(r.passes(&actions));
}

#[test]
fn forwarded_packets_are_injected() {
    let mut r = half_way();
    r.fail_over();
    let packet = r.packet(say(ACK, 9, 10, b"late"), true);
    r.f.forwarded_in(r.now, &packet);
    let id = r.id();
    assert_eq!(r.drain(), [Action::Probed(id)]);
    r.restore(true);
    let actions = r.recovered();
    let [Action::Inject(_), Action::Inject(late)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(*late, packet);
}

/// The numbers under which the kernel is told what a segment without bytes says.
fn shown(actions: &[Action]) -> (u64, u64) {
    let [Action::Inject(packet), Action::DropIn(_)] = actions else { panic!("{actions:?}") };
    let (seq, ack, segment) = offsets(packet, true);
    assert!(segment.checksum_ok() && segment.payload().is_empty());
    (seq, ack)
}

/// What was injected, as offset and bytes.
fn injected(actions: &[Action]) -> Vec<(u64, Vec<u8>)> {
    let inject = |a: &Action| match a {
        Action::Inject(packet) => {
            let (seq, _, segment) = offsets(packet, true);
            Some((seq, segment.payload().to_vec()))
        }
        _ => None,
    };
    actions.iter().filter_map(inject).collect()
}

#[test]
fn input_is_fed_as_far_as_the_kernel_has_room() {
    let mut r = half_way();
    r.fail_over();
    r.peer(say(ACK, 9, 4, b""));
    r.restore(true);
    assert_eq!(injected(&r.recovered()), [(4, b"again".to_vec())]);
    // It had no memory for it, and shuts its window: one byte asks again.
    r.kernel(Say { window: 0, ..say(ACK, 4, 4, b"") });
    assert_eq!(injected(&r.pass(ms(20))), [(4, b"a".to_vec())]);
    // Then as much as it says, and no more: a segment that reaches beyond is refused as a whole.
    assert_eq!(injected(&r.kernel(Say { window: 0, ..say(ACK, 4, 5, b"") })), []);
    assert_eq!(injected(&r.kernel(Say { window: 1, ..say(ACK, 4, 5, b"") })), [(5, b"gain".to_vec())]);
}

#[test]
fn a_kernel_that_is_behind_the_peer_hears_its_acknowledgements() {
    let mut r = half_way();
    r.fail_over();
    r.peer(say(ACK, 9, 4, b""));
    r.restore(true);
    r.recovered();
    r.kernel(Say { window: 0, ..say(ACK, 4, 4, b"456789") });
    // The peer's number is beyond this kernel's window.
    let actions = r.peer(say(ACK, 9, 7, b""));
    assert_eq!(shown(&actions), (4, 7));
    // So are the bytes that come with the next: they wait in the store until it has room.
    let actions = r.peer(say(ACK, 9, 8, b"more"));
    assert_eq!(shown(&actions), (4, 8));
    let actions = r.kernel(Say { window: 2, ..say(ACK, 10, 4, b"") });
    assert_eq!(injected(&actions), [(9, b"mor".to_vec())]);
    assert_eq!(injected(&r.kernel(Say { window: 60_000, ..say(ACK, 10, 12, b"") })), [(12, b"e".to_vec())]);
    // What comes next, in order and with room, goes by itself.
    let actions = r.peer(say(ACK, 13, 8, b"!"));
    assert!(r.passes(&actions) && actions.len() == 1);
    r.kernel(say(ACK, 10, 14, b""));
    // Once it is fed, nothing is changed any more.
    let actions = r.peer(say(ACK, 14, 10, b""));
    assert!(r.passes(&actions));
    let actions = r.peer(say(ACK, 15, 10, b"early"));
    assert!(r.passes(&actions));
}

#[test]
fn what_was_held_is_not_old_because_later_segments_were_seen() {
    let mut r = Rig::with_timestamps();
    r.stored();
    r.fail_over();
    let at = |ts, seq, bytes| Say { ts: Some((ts, 201)), ..say(ACK, seq, 0, bytes) };
    r.peer(at(200, 0, b""));
    r.restore(true);
    assert_eq!(r.peer(at(300, 0, b"one")), []);
    assert_eq!(r.peer(at(400, 6, b"three")), []);
    assert_eq!(r.peer(at(500, 3, b"two")), []);
    // One of them again.
    assert_eq!(r.peer(at(550, 0, b"one")), []);
    r.peer(at(600, 11, b""));
    r.recovered();
    assert_eq!(input_of(r.session()), b"onetwothree");
    assert_eq!(r.f.counters().disbelieved, 0);
}

#[test]
fn what_the_kernel_has_yet_to_take_is_not_acknowledged_by_ourselves() {
    let mut r = half_way();
    r.fail_over();
    r.peer(say(ACK, 9, 4, b""));
    r.restore(true);
    r.recovered();
    // Reassembly, and kept from the kernel.
    let actions = r.peer(say(ACK, 12, 4, b"zz"));
    assert_eq!(actions, [Action::DropIn(r.id)]);
    r.kernel(say(ACK, 4, 9, b"456789"));
    // The kernel gets what was missing; the store has both.
    let actions = r.peer(say(ACK, 9, 4, b"abc"));
    assert!(r.passes(&actions));
    assert_eq!(input_of(r.session()), b"againabczz");
    let actions = r.pass(ms(20));
    let [Action::SendPeer(again), ..] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((offsets(again, false).1, offsets(again, false).2.payload()), (9, &b"456789"[..]));
    // It comes again.
    let actions = r.peer(say(ACK, 12, 4, b"zz"));
    assert!(r.passes(&actions));
}

#[test]
fn what_was_told_while_input_was_under_way_is_told_again() {
    let mut r = half_way();
    r.fail_over();
    r.peer(say(ACK, 9, 4, b""));
    r.restore(true);
    r.recovered();
    r.kernel(say(ACK, 4, 4, b"456789"));
    let actions = r.peer(say(ACK, 9, 7, b""));
    assert_eq!(shown(&actions), (4, 7));
    let actions = r.kernel(say(ACK, 10, 9, b""));
    assert_eq!(injected(&actions), [(9, Vec::new())]);
    assert_eq!(injected(&r.kernel(say(ACK, 10, 9, b""))), []);
}

#[test]
fn a_reset_reaches_a_kernel_that_is_behind() {
    for fed in [false, true] {
        let mut r = half_way();
        r.fail_over();
        r.peer(say(ACK, 9, 4, b""));
        r.restore(true);
        if fed {
            r.recovered();
        }
        let actions = r.peer(say(RST, 9, 0, b""));
        let resets: Vec<u64> = actions
            .iter()
            .filter_map(|a| match a {
                Action::Inject(packet) => Some(offsets(packet, true)),
                _ => None,
            })
            .map(|(seq, _, segment)| (segment.flags() & RST != 0).then_some(seq).expect("a reset"))
            .collect();
        assert_eq!(resets, if fed { vec![4, 9] } else { vec![4] });
        assert!(r.f.store().is_empty());
    }
}

#[test]
fn our_timestamps_never_go_back() {
    let mut r = Rig::with_timestamps();
    r.write(b"answer");
    r.wait();
    r.stored();
    let stored = r.replica.store().iter().next().unwrap().ts_value;
    // As far ahead as the peer may see them.
    let actions = r.kernel(Say { ts: Some((stored + 500, 101)), ..say(ACK, 0, 0, b"answer") });
    assert!(r.passes(&actions));
    assert_eq!(r.kernel(Say { ts: Some((stored + 501, 101)), ..say(ACK, 0, 0, b"answer") }), []);
    r.fail_over();
    let actions = r.probe_all();
    let [Action::SendPeer(probe)] = &actions[..] else { panic!("{actions:?}") };
    let said = Segment::parse(probe).unwrap().options().timestamps.unwrap().0;
    assert_eq!(said, stored + 500);
    r.peer(Say { ts: Some((102, stored + 500)), ..say(ACK, 0, 0, b"") });
    assert!(r.restore(true).timestamp.unwrap() > said);
}

/// World seed 5028: what an earlier turn had done was committed together with the close of one that its process did not
/// live to end, and nobody got the session any more.
#[test]
fn a_close_counts_only_with_its_own_turn() {
    let mut r = Rig::open();
    r.peer(say(ACK | FIN, 0, 0, b"ping"));
    r.read(4);
    r.write(b"pong");
    r.f.turn_end(r.now, CHANNEL, THREAD);
    r.read(0);
    r.close();
    r.f.process_gone(r.now, CHANNEL);
    r.stored();
    let s = r.session();
    assert_eq!((s.in_done, s.out_done, s.out_fin, s.closed), (4, 4, false, false));
}

#[test]
fn a_restored_socket_is_granted_no_more_than_a_buffer_takes() {
    // Its receive buffer is small: it never offered more than this, and this is used up.
    let mut r = Rig::new();
    let (syn, mut syn_ack) = (r.syn(false), r.syn_ack(false));
    syn_ack[34..36].copy_from_slice(&1500u16.to_be_bytes());
    let checked = {
        let segment = Segment::parse(&syn_ack).unwrap();
        let mut out = Vec::new();
        segment.copy_to(&mut out);
        segment.finish(&mut out);
        out
    };
    r.inp(&syn);
    r.out(&checked);
    r.stored();
    r.peer(say(ACK, 0, 0, &[7; 1400]));
    r.attach();
    r.read(1400);
    r.stored();
    r.fail_over();
    for probe in
        r.probe_all().iter().filter_map(|a| if let Action::SendPeer(p) = a { Some(Segment::parse(p).unwrap()) } else { None })
    {
        assert!(u64::from(probe.window()) << 2 <= 1500, "the peer is told of {} bytes", u64::from(probe.window()) << 2);
    }
    r.peer(say(ACK, 1400, 0, b""));
    // What was not answered is read again.
    let spec = r.restore(true);
    assert_eq!(spec.rcv_nxt, r.session().in_seq(0).0);
    assert!(spec.rcv_wnd <= 1500, "{} bytes are granted", spec.rcv_wnd);
    // Nothing is known of a half-open one but that it has some.
    let mut r = Rig::new();
    let (syn, syn_ack) = (r.syn(false), r.syn_ack(false));
    r.inp(&syn);
    r.out(&syn_ack);
    r.stored();
    r.fail_over();
    let again = r.probe_all();
    let [Action::SendPeer(packet)] = &again[..] else { panic!("{again:?}") };
    assert!((1..=1152).contains(&Segment::parse(packet).unwrap().window()));
}

#[test]
fn a_window_without_a_scale_is_no_larger_than_it_can_be_told() {
    let mut r = half_way();
    let id = r.id();
    let opened = r.f.store().get(id).unwrap().open;
    let mut log = Vec::new();
    crate::record::Open { shifts: None, established: true, tuple: tuple(77), ..opened }.encode(&mut log);
    r.f = Filter::new(config());
    r.f.replica_apply(&log).unwrap();
    r.f.take_over(r.now);
    r.port = 77;
    // A peer that takes more than it was ever given.
    for at in [60_000, 120_000] {
        r.peer(say(ACK, at, 0, b"far"));
    }
    assert!(r.restore(true).rcv_wnd <= 65_535);
}

#[test]
fn a_peer_beyond_the_window_is_heard_when_it_opens_its_own() {
    let mut r = half_way();
    r.fail_over();
    r.peer(say(ACK, 9, 4, b""));
    r.restore(true);
    r.recovered();
    // The application reads nothing: it waits to write, for the peer's window is shut.
    r.kernel(say(ACK, 4, 9, b"456789"));
    r.peer(Say { window: 0, ..say(ACK, 9, 10, b"") });
    r.kernel(Say { window: 2, ..say(ACK, 10, 9, b"") });
    // What the peer has sent before it heard of this window lies beyond it, and so does all that it says.
    r.peer(Say { window: 0, ..say(ACK, 100, 10, b"far") });
    let actions = r.peer(Say { window: 500, ..say(ACK, 103, 10, b"") });
    let told = injected_acks(&actions);
    assert_eq!(told, [(9, 10, 500)], "{actions:?}");
    // Once is enough.
    let actions = r.peer(Say { window: 500, ..say(ACK, 103, 10, b"") });
    assert_eq!(injected_acks(&actions), []);
}

fn injected_acks(actions: &[Action]) -> Vec<(u64, u64, u16)> {
    let packets = actions.iter().filter_map(|a| if let Action::Inject(p) = a { Some(offsets(p, true)) } else { None });
    packets.map(|(seq, ack, p)| (seq, ack, p.window())).collect()
}

/// A master that goes on alone, and answers once more; what it would name.
fn answered_alone() -> (Rig, Vec<u8>) {
    let mut r = half_way();
    r.f.go_solo(r.now);
    r.kernel(say(ACK, 10, 9, b""));
    assert_eq!(r.f.named_alone(), [], "an old duplicate");
    r.read(5);
    r.write(b"more");
    r.wait();
    assert_eq!(r.f.named_alone(), [], "nothing is out");
    let actions = r.kernel(say(ACK, 10, 9, b"more"));
    assert!(r.passes(&actions));
    let names = r.f.named_alone();
    assert_eq!(names.len(), 12);
    (r, names)
}

#[test]
fn of_two_that_went_on_by_themselves_the_winner_tears_what_the_loser_names() {
    let (mut r, names) = answered_alone();
    r.fail_over();
    // Another session under the same number.
    for at in [0, 4, 8] {
        let mut other = names.clone();
        other[at] ^= 1;
        assert_eq!(r.f.tear_named(r.now, &other), []);
    }
    assert_eq!(r.f.tear_named(r.now, &names[..11]), []);
    assert_eq!(r.drain(), []);
    assert_eq!(r.f.tear_named(r.now, &names), [tuple(r.port)]);
    let actions = r.drain();
    let resets = actions.iter().filter(|a| matches!(a, Action::SendPeer(p) if Segment::parse(p).unwrap().has(RST)));
    assert!(resets.count() > 0, "{actions:?}");
    assert!(matches!(actions.last(), Some(Action::Ended(_, _, EndReason::Torn))), "{actions:?}");
    assert_eq!((r.f.counters().torn, r.f.store().len()), (1, 0));
    assert_eq!(r.f.tear_named(r.now, &names), []);
    assert_eq!(r.f.mode(), Mode::Active, "nothing is left to wait for");
}

#[test]
fn a_session_that_its_application_has_again_is_torn_too() {
    let (mut r, names) = answered_alone();
    r.fail_over();
    r.probe_all();
    r.peer(say(ACK, 9, 10, b""));
    r.restore(true);
    r.recovered();
    assert_eq!(r.f.mode(), Mode::Active);
    assert_eq!(r.f.tear_shared(r.now), [tuple(r.port)]);
    assert!(r.drain().iter().any(|a| matches!(a, Action::SendPeer(p) if Segment::parse(p).unwrap().has(RST))));
    assert_eq!(r.f.tear_named(r.now, &names), []);
    // A connection that was made since is nobody else's.
    r.port += 1;
    r.handshake(false);
    r.stored();
    assert_eq!(r.f.tear_shared(r.now), []);
    assert_eq!(r.f.store().len(), 1);
}

#[test]
fn what_a_master_said_alone_it_names_even_when_the_session_is_over_or_its_program_died() {
    let (mut r, names) = answered_alone();
    r.f.recover(r.now);
    r.drain();
    assert_eq!(r.f.named_alone(), names);
    // Over.
    let (mut r, names) = answered_alone();
    r.peer(say(RST, 9, 0, b""));
    assert_eq!((r.f.store().len(), r.f.named_alone()), (0, names));
    // A new replica has it all: the partner follows.
    let (mut r, names) = answered_alone();
    r.f.hold_for_replica(r.f.log_end());
    assert_eq!(r.f.named_alone(), []);
    assert_eq!(r.f.tear_named(r.now, &names), []);
    // What only this master has the partner cannot mix up.
    r.f.go_solo(r.now);
    r.port += 1;
    r.handshake(false);
    r.kernel(say(ACK, 0, 0, b""));
    assert_eq!(r.f.named_alone(), []);
}

#[test]
fn the_first_unacknowledged_segment_gets_through_a_narrow_path() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"get"));
    r.read(3);
    r.write(&[7; 5000]);
    r.wait();
    r.stored();
    r.kernel(say(ACK, 0, 3, &[7; 4000]));
    r.peer(say(ACK, 3, 0, b""));
    r.fail_over();
    r.restore(false);
    r.recovered();
    let sent = r.pass(ms(300));
    let lengths: Vec<usize> =
        sent.iter().filter_map(|a| if let Action::SendPeer(p) = a { Some(p.len()) } else { None }).collect();
    assert_eq!(lengths, [1488, 1268, 564]);
    // What routers say of it the restored socket hears itself.
    let Some(Action::SendPeer(packet)) = sent.first() else { panic!("{sent:?}") };
    r.f.too_long(r.now, &packet[..28], 1400);
    assert_eq!(r.drain(), []);
}

fn resetting() -> FilterConfig {
    FilterConfig { ports: vec![(5555, PortPolicy { reset: true, ..PortPolicy::default() })], ..config() }
}

/// Its program would know nothing of it: the peer is told at once, with the number that it expects, and nobody gets the session.
#[test]
fn sessions_of_a_port_are_reset_at_a_takeover_if_it_says_so() {
    let mut r = half_way();
    (r.f.config, r.replica.config) = (resetting(), resetting());
    // As well one that is half open: nothing of it could be lost.
    r.port += 1;
    let (syn, syn_ack) = (r.syn(false), r.syn_ack(false));
    r.inp(&syn);
    r.out(&syn_ack);
    r.stored();
    r.port -= 1;
    let actions = r.fail_over();
    let [Action::SendPeer(a), Action::SendPeer(b), Action::Ended(_, ended, EndReason::Torn)] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!((offsets(a, false).0, offsets(b, false).0, *ended), (4, 10, tuple(r.port)));
    assert!([a, b].iter().all(|packet| Segment::parse(packet).unwrap().has(RST)));
    let counters = r.f.counters();
    assert_eq!((counters.reset_on_takeover, counters.torn, counters.unpaired), (1, 0, 0));
    assert_eq!((r.f.store().len(), r.f.not_handed_over()), (1, 0));
    r.port += 1;
    assert!(!r.session().established);
}

#[test]
fn sessions_of_such_a_port_are_reset_when_its_program_dies() {
    let mut r = half_way();
    (r.f.config, r.replica.config) = (resetting(), resetting());
    r.f.process_gone(r.now, CHANNEL);
    r.f.recover(r.now);
    r.drain();
    // Not before the partner knows of it: else it might go on with the session.
    assert!(!r.actions.iter().any(|a| matches!(a, Action::SendPeer(_))));
    let actions = r.stored();
    assert!(actions.iter().any(|a| matches!(a, Action::SendPeer(p) if Segment::parse(p).unwrap().has(RST))), "{actions:?}");
    assert_eq!((r.f.counters().reset_on_takeover, r.f.store().len(), r.f.mode()), (1, 0, Mode::Active));
}

/// What the program has closed needs no program: the peer gets all that it was sent, and an orderly end.
#[test]
fn a_closed_session_of_such_a_port_is_seen_to_its_end() {
    let mut r = half_way();
    (r.f.config, r.replica.config) = (resetting(), resetting());
    r.read(5);
    r.close();
    r.wait();
    r.stored();
    assert!(r.session().closed);
    r.fail_over();
    assert_eq!((r.f.counters().reset_on_takeover, r.f.store().len()), (0, 1));
    r.probe_all();
    assert!(r.restore(false).closed);
}

/// What the application has set on a connection the next one's socket is to have: from the log, and from a snapshot.
#[test]
fn options_move_with_their_session() {
    let mut r = Rig::open();
    r.f.option_set(CHANNEL, HANDLE, 0, 2, &[255, 0, 0, 0]);
    r.f.option_set(CHANNEL, HANDLE, 6, 1, &[1, 0, 0, 0]);
    r.f.option_set(CHANNEL, HANDLE, 0, 2, &[64, 0, 0, 0]);
    r.stored();
    let end = r.f.log_end();
    // Nothing new, and nobody's.
    r.f.option_set(CHANNEL, HANDLE, 6, 1, &[1, 0, 0, 0]);
    r.f.option_set(CHANNEL, HANDLE + 1, 6, 1, &[0, 0, 0, 0]);
    assert_eq!(r.f.log_end(), end);
    let expected = [6, 1, 4, 1, 0, 0, 0, 0, 2, 4, 64, 0, 0, 0];
    let mut snapshot = Vec::new();
    r.f.snapshot(&mut snapshot);
    let mut other = Filter::new(config());
    other.replica_apply(&snapshot).expect("a snapshot");
    assert!(other.store() == r.f.store(), "I5");
    // Written anew, it keeps them.
    r.peer(say(ACK, 0, 0, b"ping"));
    r.read(4);
    r.close();
    r.wait();
    let id = r.id();
    r.f.still_open(r.now, id);
    r.stored();
    assert_eq!(r.f.store().options(id), expected);
    r.fail_over();
    r.probe_all();
    assert_eq!(r.restore(false).options, expected);
}

/// A partner of a version that knows none is told none.
#[test]
fn options_are_not_told_to_whom_does_not_know_them() {
    let mut r = Rig::open();
    r.f.set_log_without_options(true);
    let end = r.f.log_end();
    r.f.option_set(CHANNEL, HANDLE, 6, 1, &[1, 0, 0, 0]);
    assert_eq!((r.f.log_end(), r.f.store().options(r.id()).len()), (end, 7));
    let mut snapshot = Vec::new();
    r.f.snapshot(&mut snapshot);
    let mut other = Filter::new(config());
    other.replica_apply(&snapshot).expect("a snapshot");
    assert!(other.store().options(r.id()).is_empty());
    // Here the next process has them all the same.
    r.f.process_gone(r.now, CHANNEL);
    r.f.recover(r.now);
    r.probe_all();
    assert_eq!(r.restore(false).options.len(), 7);
}
