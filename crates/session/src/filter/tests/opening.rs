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

/// The same SYN-ACK, sent again later.
fn syn_ack_at(first: &[u8], value: u32) -> Vec<u8> {
    let mut again = Vec::new();
    let segment = Segment::parse(first).unwrap();
    segment.copy_to(&mut again);
    segment.put_timestamp(value, &mut again);
    segment.finish(&mut again);
    again
}

/// A SYN-ACK that is sent again carries a later timestamp. The peer refuses what looks older (PAWS).
#[test]
fn a_syn_ack_sent_again_shows_no_time_that_the_replica_does_not_know() {
    let mut r = Rig::new();
    let (syn, syn_ack) = (r.syn(true), r.syn_ack(true));
    r.inp(&syn);
    r.out(&syn_ack);
    r.stored();
    assert_eq!(r.session().ts_value, 200);
    // As far ahead as a next master allows for, it leaves at once.
    let again = syn_ack_at(&syn_ack, 700);
    let actions = r.out(&again);
    assert!(r.passes(&actions), "{actions:?}");
    // Later it waits until the replica knows.
    let again = syn_ack_at(&syn_ack, 1_219);
    assert_eq!(r.out(&again), []);
    let actions = r.stored();
    assert!(r.passes(&actions), "{actions:?}");
    assert_eq!(r.replica.store().iter().next().unwrap().ts_value, 1_219);
    // The peer goes by what it has seen. The next master's probe is not older, and the restored clock goes on from there.
    r.peer(Say { ts: Some((1_120, 1_219)), ..say(ACK, 0, 0, b"") });
    r.pass(ms(10));
    r.stored();
    r.fail_over();
    r.f.probes();
    let actions = r.drain();
    let [Action::SendPeer(probe)] = &actions[..] else { panic!("{actions:?}") };
    let value = Segment::parse(probe).unwrap().options().timestamps.unwrap().0;
    assert!(value >= 1_219, "{value}");
    assert!(r.restore(false).timestamp.unwrap() >= 1_219);
}

/// What a SYN-ACK has shown is not taken back when only the application dies.
#[test]
fn a_recovered_application_shows_no_older_time_than_a_syn_ack_sent_again() {
    let mut r = Rig::new();
    let (syn, syn_ack) = (r.syn(true), r.syn_ack(true));
    r.inp(&syn);
    r.out(&syn_ack);
    r.stored();
    let again = syn_ack_at(&syn_ack, 650);
    let actions = r.out(&again);
    assert!(r.passes(&actions), "{actions:?}");
    r.peer(Say { ts: Some((550, 650)), ..say(ACK, 0, 0, b"") });
    r.pass(ms(10));
    r.stored();
    r.f.recover(r.now);
    r.drain();
    r.f.probes();
    let actions = r.drain();
    let [Action::SendPeer(probe)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(Segment::parse(probe).unwrap().options().timestamps.unwrap().0, 650);
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
    let answer =
        Build { source: t.peer, destination: t.local, seq: ISN_IN, ack: ISN_OUT.add(2), flags: SYN | ACK, window: 60_000, ..syn };
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

// ---- what is not negotiated ------------------------------------------------------------------------------

/// A Fast Open cookie, padded.
const COOKIE: [u8; 12] = [34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1];
/// A signature of TCP-MD5, padded.
const MD5: [u8; 20] = [19, 18, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1, 1];
/// The same of TCP-AO.
const AO: [u8; 16] = [29, 16, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

/// A SYN, or its answer.
fn opener(r: &Rig, from_peer: bool, bits: u8, further: &[u8], payload: &[u8]) -> Vec<u8> {
    let t = tuple(r.port);
    let (source, destination, seq, ack) =
        if from_peer { (t.peer, t.local, ISN_IN, ISN_OUT) } else { (t.local, t.peer, ISN_OUT, ISN_IN) };
    let ack = if bits & ACK == 0 { Seq(0) } else { ack.add(1) };
    let mut packet = Vec::new();
    let options = [&[2, 4, 5, 0xb4], further].concat();
    Build { source, destination, seq, ack, flags: bits, window: 60_000, timestamps: None, payload }
        .write_with(&options, &mut packet);
    packet
}

/// What becomes of an inbound packet that is let in.
fn let_in(r: &Rig, actions: &[Action], packet: &[u8]) -> Vec<u8> {
    match actions {
        [Action::AcceptIn(id)] if *id == r.id => packet.to_vec(),
        [Action::ModifyIn(id, bytes)] if *id == r.id => bytes.clone(),
        _ => panic!("{actions:?}"),
    }
}

fn left(r: &Rig, actions: &[Action]) -> bool {
    actions.iter().any(|a| matches!(a, Action::AcceptOut(id) | Action::ModifyOut(id, _) if *id == r.id))
}

fn kinds(s: &Segment<'_>) -> Vec<u8> {
    let mut kinds = Vec::new();
    s.each_option(|kind, _| kinds.push(kind));
    kinds
}

#[test]
fn a_syn_is_let_in_without_what_no_session_can_go_on_with() {
    let experimental = [254, 12, 0xf9, 0x89, 1, 2, 3, 4, 5, 6, 7, 8];
    for (further, bits, payload) in [
        (&COOKIE[..], SYN, &b"hello"[..]),
        // Without a cookie: some listeners ask for none.
        (&[][..], SYN, b"hello"),
        (&[34, 2, 1, 1], SYN, b""),
        (&experimental, SYN, b"hello"),
        // MP_CAPABLE, MP_JOIN.
        (&[30, 4, 1, 1], SYN, b""),
        (&[30, 12, 0x10, 1, 1, 2, 3, 4, 5, 6, 7, 8], SYN, b""),
        // ECN.
        (&[], SYN | flags::ECE | flags::CWR, b""),
        (&[], SYN | flags::ECE, b""),
        // Accurate ECN's option, user timeout, TCP-ENO, and one that nobody knows yet.
        (&[172, 2, 28, 4, 0x80, 10, 69, 3, 1, 200, 2, 1], SYN, b""),
        (&COOKIE, SYN | flags::ECE | flags::CWR | flags::PSH | flags::URG, &[7; 1000]),
    ] {
        let mut r = Rig::new();
        let mut syn = opener(&r, true, bits, further, payload);
        let accurate = bits & flags::ECE != 0;
        if accurate {
            syn[32] |= 1;
            let whole = Segment::parse(&syn).unwrap();
            let mut again = Vec::new();
            whole.rewrite(whole.seq(), whole.ack(), &mut again);
            syn = again;
        }
        let actions = r.inp(&syn);
        let let_in = let_in(&r, &actions, &syn);
        assert_ne!(let_in, syn, "{further:?}");
        let s = Segment::parse(&let_in).unwrap();
        assert!(s.checksum_ok() && etherparse::Ipv4Slice::from_slice(&let_in).is_ok());
        assert_eq!((s.payload(), s.flags() & !flags::PSH, s.seq(), s.window()), (&b""[..], SYN, ISN_IN, 60_000));
        assert_eq!((kinds(&s), let_in[32] & 0xf, s.options().mss), (vec![2], 0, Some(1460)));
        let sum: u32 = let_in[..20].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "the header's checksum");
        // What the local TCP would never say of such a SYN is not believed: bytes that nobody has stored (I1).
        let mut early = Vec::new();
        let answer = opener(&r, false, SYN | ACK, &[], b"");
        Segment::parse(&answer).unwrap().rewrite(ISN_OUT, ISN_IN.add(1 + payload.len().max(1) as u64), &mut early);
        assert_eq!(r.out(&early), [Action::DropOut(r.id)]);
        r.stored();
        assert!(r.f.store().is_empty());
        r.out(&answer);
        let actions = r.stored();
        assert!(r.passes(&actions));
        // The peer sends its bytes again, and is served.
        r.peer(say(ACK, 0, 0, payload));
        r.attach();
        r.read(payload.len() as u64);
        r.write(b"answer");
        r.wait();
        r.stored();
        r.kernel(say(ACK, 0, payload.len() as u64, b"answer"));
        let actions = r.stored();
        assert!(r.passes(&actions) || r.passes(&r.actions.clone()));
        r.peer(say(ACK, payload.len() as u64, 6, b""));
        let s = r.session();
        assert_eq!((s.in_end(), s.out_done, s.torn), (payload.len() as u64, 6, false));
    }
}

/// A listener with TCP_MAXSEG asks its peers for short segments, and sends none that are longer.
#[test]
fn segments_are_as_short_as_the_listener_asks_for() {
    let mut r = Rig::new();
    let (syn, mut syn_ack) = (r.syn(false), r.syn_ack(false));
    syn_ack[42..44].copy_from_slice(&1000u16.to_be_bytes());
    let asked = Segment::parse(&syn_ack).unwrap();
    let mut whole = Vec::new();
    asked.rewrite(asked.seq(), asked.ack(), &mut whole);
    r.inp(&syn);
    r.out(&whole);
    r.stored();
    assert_eq!(r.session().open.mss, 1000);
}

#[test]
fn a_syn_that_asks_for_nothing_new_is_let_in_as_it_is() {
    let mut r = Rig::new();
    for ts in [false, true] {
        r.port += 1;
        let syn = r.syn(ts);
        let actions = r.inp(&syn);
        assert!(r.passes(&actions));
    }
}

/// A kernel that answers with cookies believes the third segment.
#[test]
fn what_was_not_negotiated_is_not_believed_later_either() {
    let mut r = Rig::open();
    let t = tuple(r.port);
    for (seq, ack, payload) in [(0, 0, &b""[..]), (0, 0, b"hello"), (5, 0, b"")] {
        let mut packet = Vec::new();
        Build {
            source: t.peer,
            destination: t.local,
            seq: seq::at(ISN_IN, seq),
            ack: seq::at(ISN_OUT, ack),
            flags: ACK,
            window: 60_000,
            timestamps: None,
            payload,
        }
        // MP_CAPABLE of a third segment: both keys.
        .write_with(&[30, 20, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8], &mut packet);
        let actions = r.inp(&packet);
        let let_in = let_in(&r, &actions, &packet);
        let s = Segment::parse(&let_in).unwrap();
        assert!(s.checksum_ok() && kinds(&s).is_empty() && s.payload() == payload, "{let_in:?}");
    }
    assert_eq!(input_of(r.session()), b"hello");
}

#[test]
fn a_connection_of_the_applications_asks_for_nothing_that_cannot_go_on() {
    let mut r = Rig::new();
    let syn = opener(&r, false, SYN | flags::ECE | flags::CWR, &[&COOKIE[..], &[30, 4, 1, 1]].concat(), b"hello");
    let actions = r.out(&syn);
    let [Action::ModifyOut(_, sent)] = &actions[..] else { panic!("{actions:?}") };
    let s = Segment::parse(sent).unwrap();
    assert!(s.checksum_ok());
    assert_eq!((s.payload(), s.flags(), kinds(&s)), (&b""[..], SYN, vec![2]));
    // Nor does whatever the peer answers, asked or not.
    let answer = opener(
        &r,
        true,
        SYN | ACK | flags::ECE | FIN,
        &[&COOKIE[..], &[30, 12, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8]].concat(),
        b"early",
    );
    let actions = r.inp(&answer);
    let let_in = let_in(&r, &actions, &answer);
    let s = Segment::parse(&let_in).unwrap();
    assert!(s.checksum_ok());
    assert_eq!((s.payload(), s.flags(), kinds(&s)), (&b""[..], SYN | ACK, vec![2]));
    assert_eq!(r.session().in_end(), 0);
    // Its bytes come again.
    r.stored();
    r.peer(say(ACK, 0, 0, b"early"));
    assert_eq!(input_of(r.session()), b"early");
}

#[test]
fn a_signed_connection_is_torn_from_the_start() {
    for signature in [&MD5[..], &AO] {
        for by_us in [false, true] {
            let mut r = Rig::new();
            let syn = opener(&r, !by_us, SYN, signature, b"");
            let answer = opener(&r, by_us, SYN | ACK, signature, b"");
            let actions = if by_us { r.out(&syn) } else { r.inp(&syn) };
            assert!(r.passes(&actions), "changed it would be worth nothing");
            if by_us {
                let actions = r.inp(&answer);
                assert!(r.passes(&actions));
                r.stored();
            } else {
                assert_eq!(r.out(&answer), []);
                let actions = r.stored();
                assert!(r.passes(&actions));
                r.peer(say(ACK, 0, 0, b""));
            }
            r.stored();
            assert!(r.session().torn && r.replica.store().iter().all(|s| s.torn));
            assert_eq!(r.f.counters().signed, 1);
            // It works until then: what is signed is passed on as it is, or not at all.
            r.attach();
            let t = tuple(r.port);
            let signed = |from_peer: bool, seq: u64, ack: u64, payload: &[u8]| {
                let (source, destination, mine, other) =
                    if from_peer { (t.peer, t.local, ISN_IN, ISN_OUT) } else { (t.local, t.peer, ISN_OUT, ISN_IN) };
                let mut packet = Vec::new();
                Build {
                    source,
                    destination,
                    seq: seq::at(mine, seq),
                    ack: seq::at(other, ack),
                    flags: ACK,
                    window: 60_000,
                    timestamps: None,
                    payload,
                }
                .write_with(signature, &mut packet);
                packet
            };
            let actions = r.inp(&signed(true, 0, 0, b"ping"));
            assert!(r.passes(&actions));
            r.read(4);
            r.write(b"pong");
            assert_eq!(r.out(&signed(false, 0, 4, b"pong")), []);
            // An acknowledgement that overtakes it.
            r.stored();
            assert_eq!(r.out(&signed(false, 4, 4, b"")), [Action::DropOut(r.id)]);
            r.wait();
            let all = r.stored();
            assert!(
                all.iter().any(|a| matches!(a, Action::AcceptOut(_))) && !all.iter().any(|a| matches!(a, Action::ModifyOut(..))),
                "{all:?}"
            );
            // At a takeover it is reset and counted.
            r.fail_over();
            assert!(r.f.store().is_empty());
            assert_eq!(r.f.counters().torn, 1);
        }
    }
}

/// A peer that signs hears nothing that is not signed: such an answer is an attempt to get round the rules.
#[test]
fn a_signed_syn_gets_no_unsigned_answer() {
    let mut r = Rig::new();
    let syn = opener(&r, true, SYN | flags::ECE | flags::CWR, &[&AO[..], &[30, 4, 1, 1]].concat(), b"");
    let actions = r.inp(&syn);
    assert!(r.passes(&actions));
    let answer = opener(&r, false, SYN | ACK, &[], b"");
    assert_eq!(r.out(&answer), [Action::DropOut(r.id)]);
    assert!(r.f.store().is_empty());
}

// ---- which SYN was answered --------------------------------------------------------------------------------

fn syn_with(r: &Rig, isn: Seq, mss: u16) -> Vec<u8> {
    let t = tuple(r.port);
    let mut packet = Vec::new();
    let [a, b] = mss.to_be_bytes();
    Build {
        source: t.peer,
        destination: t.local,
        seq: isn,
        ack: Seq(0),
        flags: SYN,
        window: 60_000,
        timestamps: None,
        payload: &[],
    }
    .write_with(&[2, 4, a, b], &mut packet);
    packet
}

#[test]
fn the_initial_number_and_the_options_are_those_of_the_syn_that_was_answered() {
    // Before and after it, more than are remembered; and sent again.
    for (before, after) in [(0, 1), (1, 0), (1, 1), (0, 10), (2, 10), (3, 0)] {
        let mut r = Rig::new();
        for i in 0..before {
            r.inp(&syn_with(&r, Seq(12345 + i), 900));
        }
        let syn = r.syn(false);
        r.inp(&syn);
        for i in 0..after {
            r.inp(&syn_with(&r, Seq(54321 + i), 900));
        }
        let syn_ack = r.syn_ack(false);
        if before + after > 4 && before > 1 {
            // It comes again.
            assert_eq!(r.out(&syn_ack), [Action::DropOut(r.id)]);
            r.inp(&syn);
        }
        r.out(&syn_ack);
        let actions = r.stored();
        assert!(left(&r, &actions), "{before} {after}");
        r.inp(&syn_with(&r, Seq(999), 900));
        r.peer(say(ACK, 0, 0, b"hello"));
        r.stored();
        let s = r.session();
        assert_eq!((s.open.isn_in, s.open.mss, s.open.shifts, input_of(s)), (ISN_IN, 1460, Some((2, 2)), b"hello".to_vec()));
    }
}

/// A listener that answers with cookies remembers nothing: each SYN gets an answer, and who completes one has it.
#[test]
fn of_several_answers_the_third_segment_says_which_counts() {
    for flood in [false, true] {
        for first in [false, true] {
            let mut r = Rig::new();
            if flood {
                for port in 2000..2000 + 4096 {
                    r.port = port;
                    let (syn, syn_ack) = (r.syn(false), r.syn_ack(false));
                    r.inp(&syn);
                    r.out(&syn_ack);
                }
            }
            r.port = 1000;
            let (syn, syn_ack) = (r.syn(false), r.syn_ack(false));
            let other = syn_with(&r, Seq(12345), 900);
            let mut other_answer = Vec::new();
            Segment::parse(&syn_ack).unwrap().rewrite(Seq(777), Seq(12346), &mut other_answer);
            let pairs = [(&syn, &syn_ack), (&other, &other_answer)];
            let order = if first { [0, 1] } else { [1, 0] };
            for at in order {
                r.inp(pairs[at].0);
                r.out(pairs[at].1);
                let all = r.stored();
                assert!(left(&r, &all) || left(&r, &r.actions.clone()));
            }
            r.peer(say(ACK, 0, 0, b"hello"));
            r.attach();
            r.read(5);
            r.write(b"answer");
            r.wait();
            r.stored();
            r.kernel(say(ACK, 0, 5, b"answer"));
            let actions = r.stored();
            assert!(left(&r, &actions) || left(&r, &r.actions.clone()));
            let s = r.session();
            assert_eq!((s.open.isn_in, s.open.isn_out, s.in_end(), s.open.mss), (ISN_IN, ISN_OUT, 5, 1460));
        }
    }
}

// ---- connections that are not in the log -------------------------------------------------------------------

#[test]
fn a_connection_whose_handshake_was_forgotten_is_reset_and_not_left_alone() {
    let mut r = Rig::new();
    r.port = 0;
    let (syn, syn_ack) = (r.syn(false), r.syn_ack(false));
    // A flood before, so that its record waits for the third segment, and one after.
    for port in 1..=4200 {
        r.port = port;
        let (syn, syn_ack) = (r.syn(false), r.syn_ack(false));
        r.inp(&syn);
        r.out(&syn_ack);
    }
    r.port = 0;
    r.inp(&syn);
    r.out(&syn_ack);
    let t = tuple(0);
    for n in 0..(1u32 << 15) {
        let mut packet = Vec::new();
        let peer = ([10, 0, (n >> 8) as u8, n as u8], 9).into();
        Build {
            source: peer,
            destination: t.local,
            seq: Seq(n),
            ack: Seq(0),
            flags: SYN,
            window: 1,
            timestamps: None,
            payload: &[],
        }
        .write_with(&[2, 4, 5, 0xb4], &mut packet);
        r.inp(&packet);
    }
    r.stored();
    r.actions.clear();
    assert_eq!(r.f.poll_stranger(), None);
    // Its third segment carries data: the local TCP may have the one, and not the other, which nobody stores (I1).
    let packet = r.packet(say(ACK | flags::PSH, 0, 0, b"hello"), true);
    let actions = r.inp(&packet);
    let bytes = let_in(&r, &actions, &packet);
    let s = Segment::parse(&bytes).unwrap();
    assert!(s.checksum_ok() && s.payload().is_empty() && s.has(ACK));
    assert_eq!(r.f.poll_stranger(), Some(t), "the kernel is asked whether it has it");
    assert_eq!(r.f.poll_stranger(), None);
    // A server that talks first: both ends are told.
    let actions = r.kernel(say(ACK | flags::PSH, 0, 0, b"welcome"));
    let mut all = actions;
    all.extend(r.stored());
    assert!(all.contains(&Action::DropOut(r.id)));
    let told = |local: bool| {
        all.iter().find_map(|a| match a {
            Action::Inject(p) if local => Some(p.clone()),
            Action::SendPeer(p) if !local => Some(p.clone()),
            _ => None,
        })
    };
    let (here, there) = (told(true).expect("an RST for the local TCP"), told(false).expect("an RST for the peer"));
    let (here, there) = (Segment::parse(&here).unwrap(), Segment::parse(&there).unwrap());
    assert!(here.has(RST) && there.has(RST));
    assert_eq!((here.destination(), here.seq()), (t.local, ISN_IN.add(1)));
    assert_eq!((there.destination(), there.seq()), (t.peer, ISN_OUT.add(1)));
    assert_eq!(r.f.counters().unrecorded, 1);
}

/// A SYN that waited for a takeover, or that the former master has passed on; and a call of a backup's application.
#[test]
fn what_has_waited_asks_for_no_more_than_the_rest() {
    let plain = |packet: &[u8]| {
        let s = Segment::parse(packet).unwrap();
        assert!(s.checksum_ok());
        (s.flags(), s.payload().len(), kinds(&s)) == (SYN, 0, vec![2])
    };
    let mut r = Rig::open();
    r.stored();
    r.fail_over();
    assert_eq!(r.f.mode(), Mode::Restoring);
    r.port = 1001;
    let syn = opener(&r, true, SYN | flags::ECE | flags::CWR, &[&COOKIE[..], &[30, 4, 1, 1]].concat(), b"hello");
    assert_eq!(r.inp(&syn), []);
    let id = r.id;
    r.f.lift_barrier(r.now);
    let actions = r.drain();
    assert!(actions.iter().any(|a| matches!(a, Action::ModifyIn(n, packet) if *n == id && plain(packet))), "{actions:?}");
    r.f.forwarded_in(r.now, &syn);
    let actions = r.drain();
    assert!(matches!(&actions[..], [Action::Inject(packet)] if plain(packet)), "{actions:?}");

    let to = "198.51.100.9:179".parse().unwrap();
    let mut f = Filter::new(FilterConfig { outgoing: vec![(to, PortPolicy::default())], ..config() });
    let mut call = Vec::new();
    Build {
        source: "192.0.2.200:4000".parse().unwrap(),
        destination: to,
        seq: Seq(5),
        ack: Seq(0),
        flags: SYN | flags::ECE | flags::CWR,
        window: 60_000,
        timestamps: None,
        payload: b"hello",
    }
    .write_with(&[&[2, 4, 5, 0xb4][..], &COOKIE].concat(), &mut call);
    f.packet_out(ms(1000), 1, &call);
    f.take_over(ms(1001));
    let mut actions = Vec::new();
    f.drain_actions(&mut actions);
    assert!(actions.iter().any(|a| matches!(a, Action::SendPeer(packet) if plain(packet))), "{actions:?}");
}
