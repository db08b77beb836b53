use super::*;

#[test]
fn a_syn_ack_waits_for_its_record() {
    let mut r = Rig::new();
    let syn = r.syn(false);
    let actions = r.inp(&syn);
    assert!(r.passes(&actions));
    let syn_ack = r.syn_ack(false);
    assert_eq!(r.out(&syn_ack), []);
    assert!(!r.session().established);
    let actions = r.stored();
    assert!(r.passes(&actions));
    let s = r.session();
    assert_eq!((s.open.mss, s.open.shifts, s.open.sack, s.open.timestamps), (1460, Some((2, 2)), true, false));
    // Its third segment makes it whole, at the latest after the sync delay.
    r.peer(say(ACK, 0, 0, b""));
    r.pass(ms(10));
    r.stored();
    assert!(r.replica.store().iter().all(|s| s.established));
}

#[test]
fn retransmitted_syn_and_syn_ack_make_no_second_session() {
    let mut r = Rig::new();
    let (syn, syn_ack) = (r.syn(false), r.syn_ack(false));
    r.inp(&syn);
    r.out(&syn_ack);
    let first = r.id;
    r.inp(&syn);
    assert_eq!(r.out(&syn_ack), []);
    let actions = r.stored();
    assert!(actions.contains(&Action::AcceptOut(first)) && r.passes(&actions));
    r.inp(&syn);
    let actions = r.out(&syn_ack);
    assert!(r.passes(&actions));
    assert_eq!((r.f.store().len(), r.f.counters().opened), (1, 1));
}

#[test]
fn an_old_tuple_comes_round_again() {
    let mut r = Rig::open();
    let t = tuple(r.port);
    let old = r.f.store().find(&t).unwrap();
    let mut packet = Vec::new();
    let syn = Build {
        source: t.peer,
        destination: t.local,
        seq: Seq(5),
        ack: Seq(0),
        flags: SYN,
        window: 1,
        timestamps: None,
        payload: &[],
    };
    syn.write(&mut packet);
    r.inp(&packet);
    Build { source: t.local, destination: t.peer, seq: Seq(9), ack: Seq(6), flags: SYN | ACK, ..syn }.write(&mut packet);
    let actions = r.out(&packet);
    assert!(actions.contains(&Action::Ended(old, t, EndReason::Closed)));
    assert_ne!(r.f.store().find(&t), Some(old));
    r.stored();
    assert_eq!(r.f.store().len(), 1);
}

#[test]
fn a_half_open_session_expires() {
    let mut r = Rig::new();
    let (syn, syn_ack) = (r.syn(false), r.syn_ack(false));
    r.inp(&syn);
    r.out(&syn_ack);
    r.stored();
    r.pass(ms(74_000));
    assert_eq!(r.f.store().len(), 1);
    let actions = r.pass(ms(2_000));
    assert!(matches!(actions[..], [Action::Ended(_, _, EndReason::Expired)]), "{actions:?}");
    assert!(r.f.store().is_empty() && r.f.poll_timeout().is_none());
    r.stored();
    // One that was completed does not.
    let mut r = Rig::open();
    r.pass(ms(200_000));
    assert_eq!(r.f.store().len(), 1);
    assert_eq!(r.f.poll_timeout(), None);
}

#[test]
fn a_flood_of_syns_is_bounded_and_an_honest_peer_gets_through() {
    let mut r = Rig::new();
    for port in 0..6000 {
        r.port = port;
        let (syn, syn_ack) = (r.syn(true), r.syn_ack(true));
        r.inp(&syn);
        r.out(&syn_ack);
    }
    assert_eq!(r.f.store().len(), 4096);
    // The bound was passed: the SYN-ACK left at once, and the record is told at the third segment.
    assert!(r.passes(&r.actions.clone()));
    r.actions.clear();
    let actions = r.peer(Say { ts: Some((102, 200)), ..say(ACK, 0, 0, b"") });
    assert!(r.passes(&actions));
    let s = r.session();
    assert!(s.established && s.open.timestamps && s.open.shifts == Some((2, 2)));
    assert_eq!(r.f.store().len(), 4097);
    r.port = 5998;
    r.peer(Say { ts: Some((102, 200)), ..say(ACK, 0, 0, b"hello") });
    assert_eq!(input_of(r.session()), b"hello");
    // A guess opens nothing.
    r.port = 5997;
    r.peer(Say { ts: Some((102, 200)), ..say(ACK, 0, 1, b"hello") });
    assert_eq!(r.f.store().len(), 4098);
    r.stored();
    r.pass(ms(80_000));
    assert_eq!(r.f.store().len(), 2);
    r.stored();
}

#[test]
fn a_listener_that_resets_what_came_too_early_does_not_end_the_connection() {
    let mut r = Rig::new();
    r.handshake(false);
    // Its accept queue is full: the first segment was dropped, and the next one has no valid cookie.
    r.peer(say(ACK, 1000, 0, b"later"));
    assert_eq!(r.kernel(say(RST, 0, 0, b"")), []);
    let reset = r.id;
    r.pass(ms(100));
    r.peer(say(ACK, 0, 0, &[7; 1000]));
    let actions = r.kernel(say(ACK, 0, 1000, b""));
    assert!(actions.contains(&Action::DropOut(reset)), "{actions:?}");
    r.stored();
    r.attach();
    assert_eq!(r.pass(ms(100)), [], "nobody is asked for the end of a connection that goes on");
    r.f.process_alive(r.now, CHANNEL);
    assert!(!r.session().closed && !r.session().out_fin);
}

#[test]
fn a_reset_ends_a_half_open_session() {
    let mut r = Rig::new();
    let (syn, syn_ack) = (r.syn(false), r.syn_ack(false));
    r.inp(&syn);
    r.out(&syn_ack);
    r.stored();
    let actions = r.peer(say(RST, 0, 0, b""));
    assert!(matches!(actions[..], [Action::Ended(_, _, EndReason::ResetByPeer), Action::AcceptIn(_)]));
}

#[test]
fn a_session_that_the_application_opens() {
    let mut r = Rig::new();
    let t = tuple(r.port);
    let syn = Build {
        source: t.local,
        destination: t.peer,
        seq: ISN_OUT,
        ack: Seq(0),
        flags: SYN,
        window: 64_000,
        timestamps: None,
        payload: &[],
    };
    let mut packet = Vec::new();
    syn.write_with(&Rig::syn_options(false), &mut packet);
    let actions = r.out(&packet);
    assert!(r.passes(&actions) && r.f.store().is_empty());
    // An answer to something else opens nothing.
    let answer = Build {
        source: t.peer,
        destination: t.local,
        seq: ISN_IN,
        ack: ISN_OUT.add(2),
        flags: SYN | ACK,
        window: 60_000,
        ..syn
    };
    answer.write_with(&Rig::syn_options(false), &mut packet);
    r.inp(&packet);
    assert!(r.f.store().is_empty());
    Build { ack: ISN_OUT.add(1), ..answer }.write_with(&Rig::syn_options(false), &mut packet);
    let actions = r.inp(&packet);
    assert!(r.passes(&actions));
    assert!(r.session().established);
    // The third segment waits for the record: with it the peer knows of the session.
    assert_eq!(r.kernel(say(ACK, 0, 0, b"")), []);
    r.f.attach(r.now, CHANNEL, HANDLE, Origin::Connected, &t);
    r.write(b"hello");
    r.wait();
    assert_eq!(r.kernel(say(ACK, 0, 0, b"hello")), []);
    assert_eq!(r.stored().len(), 2);
    r.peer(say(ACK, 0, 5, b"world"));
    assert_eq!(r.session().out_acked, 0);
    assert_eq!(input_of(r.session()), b"world");
}

#[test]
fn a_connection_is_refused_only_when_nobody_listens_for_long() {
    let mut r = Rig::new();
    let syn = r.syn(false);
    let refusal = r.packet(say(RST | ACK, 0, 0, b""), false);
    for _ in 0..4 {
        let actions = r.inp(&syn);
        assert!(r.passes(&actions));
        let actions = r.out(&refusal);
        assert_eq!(actions, [Action::DropOut(r.id)]);
        r.pass(ms(2400));
    }
    assert_eq!(r.f.counters().refusals_withheld, 4);
    r.pass(ms(400));
    r.inp(&syn);
    r.out(&refusal);
    let actions = r.stored();
    assert!(r.passes(&actions));
    // One that somebody accepts is as always.
    r.port = 1001;
    let syn = r.syn(false);
    r.inp(&syn);
    let syn_ack = r.syn_ack(false);
    r.out(&syn_ack);
    let actions = r.stored();
    assert!(r.passes(&actions));
}
