use super::*;

#[test]
fn an_ack_waits_until_the_input_is_stored() {
    let mut r = Rig::open();
    let actions = r.peer(say(ACK, 0, 0, b"hello"));
    assert!(r.passes(&actions), "input is delivered at once");
    assert_eq!(r.kernel(say(ACK, 0, 5, b"")), []);
    let actions = r.stored();
    assert!(r.passes(&actions));
    // An ACK of what is stored already goes at once, whatever comes after.
    r.peer(say(ACK, 5, 0, b"more"));
    let actions = r.kernel(say(ACK, 0, 5, b""));
    assert!(r.f.log().written() > r.f.log().acknowledged(), "what came after is not stored");
    assert!(r.passes(&actions));
}

#[test]
fn input_out_of_order_is_put_in_order() {
    let mut r = Rig::open();
    r.peer(say(ACK, 3, 0, b"d"));
    r.peer(say(ACK, 5, 0, b"fg"));
    r.peer(say(ACK | FIN, 8, 0, b"i"));
    assert_eq!(input_of(r.session()), b"");
    // The same start, longer: a retransmission of two segments at once.
    r.peer(say(ACK, 3, 0, b"de"));
    r.peer(say(ACK, 1, 0, b"bc"));
    r.peer(say(ACK, 0, 0, b"ab"));
    assert_eq!(input_of(r.session()), b"abcdefg");
    assert!(!r.session().in_fin);
    r.peer(say(ACK, 2, 0, b"cdefgh"));
    assert_eq!(input_of(r.session()), b"abcdefghi");
    assert!(r.session().in_fin);
    assert_eq!(r.session().in_ackable(), 10);
    r.stored();
}

#[test]
fn a_fin_alone_out_of_order_and_twice() {
    let mut r = Rig::open();
    r.peer(say(ACK | FIN, 3, 0, b""));
    r.peer(say(ACK | FIN, 3, 0, b""));
    r.peer(say(ACK, 0, 0, b"abc"));
    assert!(r.session().in_fin);
    let records = r.f.counters().records;
    r.peer(say(ACK | FIN, 2, 0, b"c"));
    r.peer(say(ACK, 4, 0, b"behind the end"));
    assert_eq!(r.f.counters().records, records);
    assert_eq!(input_of(r.session()), b"abc");
    assert_eq!(r.kernel(say(ACK, 0, 4, b"")), []);
    let actions = r.stored();
    assert!(r.passes(&actions));
}

#[test]
fn what_tcp_does_not_believe_changes_nothing() {
    let mut r = Rig::with_timestamps();
    let ts = |v| Some((v, 201));
    r.peer(Say { ts: ts(500), ..say(ACK, 0, 0, b"0123456789") });
    r.read(10);
    r.write(b"answer");
    r.wait();
    r.kernel(Say { ts: Some((202, 500)), ..say(ACK, 0, 10, b"answer") });
    r.stored();
    r.peer(Say { ts: ts(501), ..say(ACK, 10, 6, b"") });
    r.stored();
    let before = r.f.store().clone();
    let disbelieved = r.f.counters().disbelieved;

    let mut bad = r.packet(Say { ts: ts(502), ..say(ACK, 10, 6, b"x") }, true);
    *bad.last_mut().unwrap() ^= 1;
    r.inp(&bad);
    // An ACK of what was never sent.
    r.peer(Say { ts: ts(502), ..say(ACK, 10, 7, b"x") });
    // PAWS.
    r.peer(Say { ts: ts(300), ..say(ACK, 10, 6, b"x") });
    // Beyond the window, and long past.
    r.peer(Say { ts: ts(502), ..say(ACK, 10 + (60_000 << 2) + 1, 6, b"x") });
    r.peer(Say { ts: ts(502), ..say(ACK, 2, 6, b"x") });
    // RSTs beside the exact number (RFC 5961), also where the kernel's last ACK was.
    for seq in [0, 9, 11, 1000, 100_000] {
        r.peer(Say { ts: ts(502), ..say(RST, seq, 0, b"") });
    }
    // No ACK at all.
    r.peer(Say { ts: ts(502), ..say(0, 10, 0, b"x") });
    // Not even a segment.
    r.inp(&bad[..30]);
    r.pass(ms(100));
    r.stored();
    assert!(*r.f.store() == before);
    assert_eq!(r.f.counters().disbelieved, disbelieved + 12);

    r.peer(Say { ts: ts(502), ..say(RST, 10, 0, b"") });
    assert!(r.f.store().is_empty());
    r.stored();
}

#[test]
fn an_ack_of_what_did_not_leave_is_kept_from_the_kernel() {
    let mut r = Rig::open();
    r.write(b"secret");
    // The kernel has sent it; the turn is not over.
    assert_eq!(r.kernel(say(ACK, 0, 0, b"secret")), []);
    let actions = r.peer(say(ACK, 0, 6, b""));
    assert_eq!(actions, [Action::DropIn(r.id)]);
    r.wait();
    r.stored();
    let actions = r.peer(say(ACK, 0, 6, b""));
    assert!(r.passes(&actions));
}

#[test]
fn a_window_probe_is_taken_as_far_as_it_is_a_byte() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"0123456789"));
    r.kernel(Say { window: 0, ..say(ACK, 0, 10, b"") });
    // BSD probes with the next byte; Linux with an old number and nothing.
    r.peer(say(ACK, 10, 0, b"x"));
    assert_eq!(r.session().in_end(), 11);
    let actions = r.peer(say(ACK, 9, 0, b""));
    assert!(r.passes(&actions));
    let actions = r.kernel(Say { window: 0, ..say(ACK, 0, 10, b"") });
    let ack = r.id;
    assert_eq!(actions, [], "the replica has yet to store what it acknowledges");
    // The kernel did not take the byte; the peer sends it again.
    r.peer(say(ACK, 10, 0, b"xyz"));
    assert_eq!(input_of(r.session()), b"0123456789xyz");
    assert!(r.stored().contains(&Action::AcceptOut(ack)));
}

/// What is held of a session goes nowhere once its peer has reset it: a socket that has gone would answer with an RST.
#[test]
fn what_is_held_of_a_session_that_its_peer_has_reset_is_dropped() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"abc"));
    r.stored();
    // It contradicts what is stored, and waits until the kernel says what it has taken.
    let (held, reset) = (r.packet(say(ACK, 1, 0, b"X"), true), r.packet(say(RST, 3, 0, b""), true));
    r.f.packet_in(r.now, 100, &held, false);
    r.f.packet_in(r.now, 101, &reset, false);
    let mut actions = Vec::new();
    r.f.drain_actions(&mut actions);
    assert!(actions.contains(&Action::DropIn(100)) && !actions.contains(&Action::AcceptIn(100)), "{actions:?}");
    assert!(actions.contains(&Action::AcceptIn(101)), "the kernel ends the connection: {actions:?}");
    assert!(actions.iter().any(|action| matches!(action, Action::Ended(_, _, EndReason::ResetByPeer))));
}

/// Other bytes for the same places: what the kernel has taken stands, and what came early stays until it comes in order.
#[test]
fn of_what_contradicts_itself_the_first_stands_that_the_kernel_has_taken() {
    let mut r = Rig::open();
    let passes = |r: &mut Rig, s: Say<'_>| {
        let actions = r.peer(s);
        r.passes(&actions)
    };
    assert!(passes(&mut r, say(ACK, 0, 0, b"abc")));
    assert!(passes(&mut r, say(ACK, 6, 0, b"ghi")));
    // In the gap.
    assert!(!passes(&mut r, say(ACK, 5, 0, b"fX")));
    assert!(!passes(&mut r, say(ACK | FIN, 6, 0, b"g")));
    // Beside the kernel's queue: it has these bytes and has not acknowledged them, as it says when it is asked. It passes
    // over what is said of them.
    assert!(passes(&mut r, say(ACK, 1, 0, b"Xc")));
    assert!(passes(&mut r, say(ACK | FIN, 1, 0, b"b")));
    assert!(passes(&mut r, say(ACK | FIN, 0, 0, b"")));
    assert_eq!(r.f.counters().disbelieved, 4);
    assert_eq!(input_of(r.session()), b"abc");
    assert!(passes(&mut r, say(ACK, 1, 0, b"bc")));
    assert!(passes(&mut r, say(ACK, 2, 0, b"cdefgh")));
    assert_eq!(input_of(r.session()), b"abcdefghi");
    // What the kernel has acknowledged it passes over: an old TCP's keepalive.
    r.kernel(say(ACK, 0, 9, b""));
    assert!(passes(&mut r, say(ACK, 8, 0, b"X")));
    assert_eq!(input_of(r.session()), b"abcdefghi");
    assert!(passes(&mut r, say(ACK | FIN, 9, 0, b"")));
    assert!(!passes(&mut r, say(ACK, 10, 0, b"behind the end")));
    r.kernel(say(ACK, 0, 10, b""));
    assert!(passes(&mut r, say(ACK, 9, 0, b"X")), "a keepalive in the place of the FIN");
    assert!(!passes(&mut r, say(ACK, 10, 0, b"X")));
    assert_eq!((r.session().in_end(), r.session().in_fin), (9, true));
    r.stored();
}

#[test]
fn an_urgent_byte_stays_in_its_place() {
    let mut r = Rig::open();
    let actions = r.peer(say(ACK | flags::URG, 0, 0, b"ab"));
    let [Action::ModifyIn(_, packet)] = &actions[..] else { panic!("{actions:?}") };
    let segment = Segment::parse(packet).unwrap();
    assert!(segment.checksum_ok() && !segment.has(flags::URG) && segment.payload() == b"ab");
    assert_eq!(input_of(r.session()), b"ab");
}

#[test]
fn moves_are_told_once_a_batch() {
    let mut r = Rig::with_timestamps();
    r.stored();
    let records = r.f.counters().records;
    for i in 0..100 {
        r.peer(Say { ts: Some((200 + i, 200)), ..say(ACK, 0, 0, b"") });
    }
    assert!(!r.f.log().has_batch(r.now));
    r.pass(ms(11));
    assert!(r.f.log().has_batch(r.now));
    r.stored();
    assert_eq!(r.f.counters().records, records + 1);
    assert_eq!(r.session().ts_recent, 299);
    assert_eq!(r.f.poll_timeout(), None);
}

#[test]
fn new_bytes_that_are_not_stored_are_kept_from_the_kernel() {
    let mut r = Rig::with_timestamps();
    r.peer(Say { ts: Some((500, 201)), ..say(ACK, 0, 0, b"0123456789") });
    r.kernel(Say { ts: Some((202, 500)), ..say(ACK, 0, 10, b"") });
    // Beyond the window, and PAWS: the kernel's own window or clock may be another after a restore.
    for s in [say(ACK, 10 + (60_000 << 2) + 1, 0, b"x"), Say { ts: Some((300, 201)), ..say(ACK, 8, 0, b"89x") }] {
        let actions = r.peer(s);
        assert_eq!(actions, [Action::DropIn(r.id)]);
    }
    // Old bytes are the kernel's to answer.
    let actions = r.peer(Say { ts: Some((300, 201)), ..say(ACK, 5, 0, b"56789") });
    assert!(r.passes(&actions));
}

#[test]
fn an_empty_segment_acknowledges_no_more_than_the_store_has() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"hello"));
    r.stored();
    // Where the kernel got the rest from nobody knows.
    let actions = r.kernel(say(ACK, 0, 8, b""));
    let [Action::ModifyOut(_, changed)] = &actions[..] else { panic!("{actions:?}") };
    let segment = Segment::parse(changed).unwrap();
    assert_eq!(segment.ack(), seq::at(ISN_IN, 5));
    assert!(segment.checksum_ok());
    // Output waits until the peer has sent it again.
    r.write(b"answer");
    r.wait();
    assert_eq!(r.kernel(say(ACK, 0, 8, b"answer")), []);
    assert!(r.stored().is_empty());
    r.peer(say(ACK, 5, 0, b"abc"));
    let actions = r.stored();
    assert!(actions.iter().any(|a| matches!(a, Action::AcceptOut(_))), "{actions:?}");
    assert_eq!(r.f.counters().ack_beyond_store, 2);
}

#[test]
fn an_ack_from_beyond_a_window_that_was_taken_back_is_heard() {
    let mut r = Rig::open();
    r.write(b"hi");
    r.wait();
    r.stored();
    r.kernel(say(ACK, 0, 0, b"hi"));
    r.peer(say(ACK, 0, 0, b"0123456789"));
    // Of the window that the peer was told first nothing is left, and it has filled that.
    r.kernel(Say { window: 0, ..say(ACK, 2, 10, b"") });
    let told = r.peer(say(ACK, 15, 2, b""));
    let [Action::Inject(packet), Action::AcceptIn(_)] = &told[..] else { panic!("{told:?}") };
    let (at, ack, _) = offsets(packet, true);
    assert_eq!((at, ack), (10, 2));
    // Once is enough; and what lies within its window it hears by itself.
    assert_eq!(r.peer(say(ACK, 15, 2, b"")).len(), 1);
    assert_eq!(r.peer(say(ACK, 10, 2, b"")).len(), 1);
}

/// A segment whose numbers a stranger has guessed, timestamps left out.
fn forged(r: &Rig, at: u64, ack: Seq, payload: &[u8]) -> Vec<u8> {
    let t = tuple(r.port);
    let mut packet = Vec::new();
    let bits = ACK | flags::PSH;
    Build {
        source: t.peer,
        destination: t.local,
        seq: seq::at(ISN_IN, at),
        ack,
        flags: bits,
        window: 60_000,
        timestamps: None,
        payload,
    }
    .write(&mut packet);
    packet
}

/// One exchange of four bytes each is over.
fn after_an_exchange() -> Rig {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"ping"));
    r.read(4);
    r.write(b"pong");
    r.wait();
    r.kernel(say(ACK, 0, 4, b"pong"));
    r.stored();
    r.peer(say(ACK, 4, 4, b""));
    r.stored();
    r
}

/// RFC 5961, section 5.2: the ACK must lie within [SND.UNA - MAX.SND.WND, SND.NXT].
#[test]
fn what_is_injected_with_an_ack_that_tcp_refuses_is_not_stored() {
    let most = 60_000u64 << 2;
    for (back, taken) in [(1 << 30, false), (most + 1, false), (most - 4, false), (5, false), (4, true), (0, true)] {
        let mut r = after_an_exchange();
        let packet = forged(&r, 4, Seq(seq::at(ISN_OUT, 4).0.wrapping_sub(back as u32)), b"EVIL!");
        let actions = r.inp(&packet);
        r.stored();
        // Before our first byte there is nothing to acknowledge, however large the window is.
        assert_eq!(input_of(r.session()), if taken { &b"EVIL!"[..] } else { b"" }, "{back} before");
        assert_eq!(r.passes(&actions), taken, "what is not stored is kept from the kernel");
    }
    // Later in the stream the window counts.
    let mut r = after_an_exchange();
    for i in 0..300u64 {
        let at = 4 + i * 1000;
        r.write(&[7; 1000]);
        r.wait();
        r.kernel(say(ACK, at, 4, &[7; 1000]));
        r.stored();
        r.peer(say(ACK, 4, at + 1000, b""));
    }
    let acked = 4 + 300_000u64;
    for (back, taken) in [(most, true), (most + 1, false)] {
        let packet = forged(&r, 1000, seq::at(ISN_OUT, acked - back), b"E");
        let actions = r.inp(&packet);
        assert_eq!(r.passes(&actions), taken, "{back} before");
    }
}

#[test]
fn after_an_injection_that_tcp_refuses_the_true_bytes_get_through() {
    let mut r = after_an_exchange();
    let packet = forged(&r, 1000, Seq(seq::at(ISN_OUT, 4).0.wrapping_sub(1 << 30)), b"E");
    r.inp(&packet);
    let actions = r.peer(say(ACK, 4, 4, &[0; 1400]));
    assert!(r.passes(&actions), "{actions:?}");
    assert_eq!(input_of(r.session()), [0; 1400]);
}

/// It has guessed everything; the local TCP has it, too, out of order. What comes in order takes its place in both.
#[test]
fn what_comes_in_order_takes_the_place_of_what_was_injected_ahead_of_it() {
    for end in [false, true] {
        let mut r = after_an_exchange();
        let bits = if end { ACK | FIN } else { ACK };
        r.peer(say(bits, 1000, 4, b"E"));
        // While there is a hole nobody knows which of them is true.
        let early = r.peer(say(ACK, 500, 4, &[0; 1000]));
        assert!(!r.passes(&early));
        let actions = r.peer(say(ACK, 4, 4, &[0; 1400]));
        assert!(r.passes(&actions), "{actions:?}");
        let actions = r.peer(say(ACK, 1404, 4, &[1; 100]));
        assert!(r.passes(&actions), "{actions:?}");
        let all: Vec<u8> = std::iter::repeat_n(0, 1400).chain(std::iter::repeat_n(1, 100)).collect();
        assert!(input_of(r.session()) == all && !r.session().in_fin);
        r.stored();
        assert_eq!(r.f.out_of_order_bytes(), 0);
    }
}

/// It is stored in order, and the local TCP refused it: what that has not taken is forgotten, for the true bytes.
#[test]
fn what_the_kernel_has_not_taken_gives_way_to_what_the_peer_says() {
    for (bits, bytes) in [(ACK, &b"EVIL!"[..]), (ACK | FIN, b""), (ACK | FIN, b"EV"), (ACK, b"hEVIL AND MORE OF IT")] {
        let mut r = after_an_exchange();
        r.peer(say(bits, 4, 4, bytes));
        r.stored();
        r.taken = Some(4);
        let actions = r.peer(say(ACK, 4, 4, b"hello"));
        assert!(r.passes(&actions), "{actions:?}");
        assert_eq!((input_of(r.session()), r.session().in_fin), (b"hello".to_vec(), false));
        // The replica knows it; and the ACK of the true bytes waits for that.
        let held = r.kernel(say(ACK, 4, 9, b""));
        assert!(!r.passes(&held));
        let told = r.stored();
        assert!(r.passes(&told));
        r.taken = None;
        r.read(5);
        r.write(b"world");
        r.wait();
        r.stored();
        assert_eq!((r.session().in_done, r.session().out_done, r.session().torn), (9, 9, false));
    }
}

/// The other way round: the stranger comes second, before the kernel's ACK.
#[test]
fn what_the_kernel_has_taken_stands() {
    let mut r = after_an_exchange();
    r.peer(say(ACK, 4, 4, b"hello"));
    let packet = forged(&r, 4, seq::at(ISN_OUT, 4), b"EVIL!");
    r.inp(&packet);
    assert_eq!(input_of(r.session()), b"hello");
    r.stored();
    let actions = r.kernel(say(ACK, 4, 9, b""));
    assert!(r.passes(&actions));
    // And where it had taken a part of it: the rest comes again.
    let mut r = after_an_exchange();
    r.peer(say(ACK, 4, 4, b"hello"));
    r.taken = Some(6);
    r.inp(&packet);
    assert_eq!(input_of(r.session()), b"heIL!");
}

#[test]
fn messages_are_looked_for_anew_in_what_takes_the_place_of_a_forgery() {
    let mut r = Rig::new();
    let lines = PortPolicy::framed(crate::framing::Framing::Lines);
    r.f = Filter::new(FilterConfig { ports: vec![(5555, lines)], ..config() });
    r.f.activate();
    r.f.hold_for_replica(0);
    r.handshake(false);
    r.attach();
    r.peer(say(ACK, 0, 0, b"a\nb"));
    r.taken = Some(0);
    r.peer(say(ACK, 0, 0, b"abc\nd"));
    assert_eq!(input_of(r.session()), b"abc\nd");
    r.taken = None;
    r.read(5);
    r.write(b"x");
    r.wait();
    r.stored();
    assert_eq!(r.session().in_done, 4);
}

/// Linux (PAWS, RFC 7323, section 5.5): a timestamp that is old enough says nothing any more.
#[test]
fn after_a_long_silence_a_peer_whose_clock_has_come_round_is_heard() {
    // A clock of milliseconds after 25 days, one of microseconds after 36 minutes.
    for (silence, moved) in [(Duration::from_secs(25 * 86_400), 25 * 86_400_000u64), (Duration::from_secs(2160), 2_160_000_000)] {
        let mut r = Rig::with_timestamps();
        r.peer(Say { ts: Some((500, 201)), ..say(ACK, 0, 0, b"ping") });
        r.kernel(Say { ts: Some((202, 500)), ..say(ACK, 0, 4, b"") });
        r.stored();
        r.pass(Duration::from_secs(2000));
        let actions = r.peer(Say { ts: Some((499 - 10, 202)), ..say(ACK, 4, 0, b"again") });
        assert!(!r.passes(&actions), "not after half an hour");
        r.pass(silence);
        let ts = 500u32.wrapping_add(moved as u32);
        let actions = r.peer(Say { ts: Some((ts, 202)), ..say(ACK, 4, 0, b"again") });
        assert!(r.passes(&actions), "{actions:?}");
        assert_eq!(input_of(r.session()), b"pingagain");
        r.pass(ms(20));
        r.stored();
        assert_eq!(r.session().ts_recent, ts);
        // From now on it counts again.
        r.kernel(Say { ts: Some((202u32.wrapping_add(moved as u32), ts)), ..say(ACK, 0, 9, b"") });
        let actions = r.peer(Say { ts: Some((ts.wrapping_sub(10), 202)), ..say(ACK, 9, 0, b"old") });
        assert!(!r.passes(&actions));
        let actions = r.peer(Say { ts: Some((ts.wrapping_add(10), 202)), ..say(ACK, 9, 0, b"new") });
        assert!(r.passes(&actions));
    }
}

/// Our own clock comes round as well: what the replica knows of it goes on, and so does what the peer is shown.
#[test]
fn after_a_long_silence_our_own_clock_is_followed() {
    for (silence, moved) in [(Duration::from_secs(25 * 86_400), 25 * 86_400_000u64), (Duration::from_secs(2160), 2_160_000_000)] {
        let mut r = Rig::with_timestamps();
        r.write(b"one");
        r.wait();
        r.kernel(Say { ts: Some((1000, 101)), ..say(ACK, 0, 0, b"one") });
        r.stored();
        r.peer(Say { ts: Some((102, 1000)), ..say(ACK, 0, 3, b"") });
        r.stored();
        r.pass(silence);
        r.write(b"two");
        r.wait();
        r.stored();
        let ts = 1000u32.wrapping_add(moved as u32);
        let actions = r.kernel(Say { ts: Some((ts, 102)), ..say(ACK, 3, 0, b"two") });
        assert!(!r.passes(&actions), "the replica has to know it first");
        let actions = r.stored();
        assert!(r.passes(&actions));
        assert_eq!(r.session().ts_value, ts);
        // Not every time that it is lower.
        r.write(b"x");
        r.wait();
        r.kernel(Say { ts: Some((ts.wrapping_sub(5), 102)), ..say(ACK, 6, 0, b"x") });
        r.stored();
        assert_eq!(r.session().ts_value, ts);
    }
}

/// And it does after a takeover, if nothing was said since.
#[test]
fn after_a_long_silence_our_own_clock_is_followed_on_a_new_master() {
    let mut r = Rig::with_timestamps();
    r.peer(Say { ts: Some((500, 201)), ..say(ACK, 0, 0, b"ping") });
    r.stored();
    r.fail_over();
    r.peer(Say { ts: Some((501, 201)), ..say(ACK, 4, 0, b"") });
    let first = r.restore(true).timestamp.unwrap();
    r.recovered();
    r.f.hold_for_replica(0);
    let ts = first.wrapping_add(25 * 86_400_000);
    r.pass(Duration::from_secs(25 * 86_400));
    let actions = r.kernel(Say { ts: Some((ts, 501)), ..say(ACK, 0, 4, b"") });
    assert!(!r.passes(&actions), "the replica has to know it first: {actions:?}");
    assert_eq!(r.session().ts_value, ts);
}

/// A new master does not know how old the last timestamp is.
#[test]
fn a_new_master_hears_a_peer_whose_clock_has_come_round() {
    let mut r = Rig::with_timestamps();
    r.peer(Say { ts: Some((500, 201)), ..say(ACK, 0, 0, b"ping") });
    r.kernel(Say { ts: Some((202, 500)), ..say(ACK, 0, 4, b"") });
    r.stored();
    let mut r = r.taken_over(true);
    let ts = 500u32.wrapping_add(3 << 30);
    let actions = r.peer(Say { ts: Some((ts, 202)), ..say(ACK, 4, 0, b"") });
    let id = r.session().open.session;
    assert!(actions.contains(&Action::Probed(id)), "{actions:?}");
    // What its new socket begins with.
    let actions = r.splice();
    let [Action::Inject(syn)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(Segment::parse(syn).unwrap().options().timestamps, Some((ts, 0)));
}

/// Of out-of-order input there is a bound over all sessions. Who has left a hole open for the longest makes room.
#[test]
fn out_of_order_input_is_bounded_over_all_sessions() {
    let mut r = Rig::new();
    let piece = [5; 60_000];
    let sessions = 30u16;
    for i in 0..sessions {
        r.port = 1000 + i;
        r.handshake(false);
        r.attach();
        r.kernel(say(ACK, 0, 0, b""));
        // The first byte is missing.
        for k in 0..4u64 {
            let actions = r.peer(say(ACK, 1 + k * 60_000, 0, &piece[..59_999]));
            assert!(r.passes(&actions));
        }
    }
    let all = r.f.out_of_order_bytes();
    assert!(all > 240_000 * usize::from(sessions) && all < 250_000 * usize::from(sessions));
    // A byte each: it counts as what it costs.
    let before = r.f.out_of_order_bytes();
    r.port = 1999;
    r.handshake(false);
    r.kernel(say(ACK, 0, 0, b""));
    for at in 0..1000u64 {
        r.peer(say(ACK, 1 + at * 2, 0, b"x"));
    }
    assert!(r.f.out_of_order_bytes() >= before + 90_000);
    let mut most = 0;
    for i in 0..300u16 {
        r.port = 2000 + i;
        r.handshake(false);
        r.kernel(say(ACK, 0, 0, b""));
        for k in 0..4u64 {
            let actions = r.peer(say(ACK, 1 + k * 60_000, 0, &piece[..59_999]));
            assert!(r.passes(&actions));
        }
        most = most.max(r.f.out_of_order_bytes());
    }
    assert!(most > 63 << 20 && most <= 64 << 20, "{most}");
    assert!(r.f.counters().early_forgotten > 0);
    // The first one is among them: the local TCP has what is forgotten here, and acknowledges it as soon as the hole is
    // filled. Its peer is told no more than is stored, sends it again, and all is well.
    r.port = 1000;
    r.peer(say(ACK, 0, 0, b"y"));
    assert_eq!(r.session().in_end(), 1);
    r.stored();
    let actions = r.kernel(say(ACK, 0, 60_000, b""));
    let [Action::ModifyOut(_, told)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(offsets(told, false).1, 1);
    for _ in 0..20 {
        r.pass(ms(1000));
    }
    assert!(!r.session().torn, "its peer has time");
    r.peer(say(ACK, 1, 0, &piece[..59_999]));
    r.stored();
    let actions = r.kernel(say(ACK, 0, 60_000, b""));
    assert!(r.passes(&actions), "{actions:?}");
    for _ in 0..60 {
        r.pass(ms(1000));
    }
    assert!(!r.session().torn);
    // Every hole is filled, or its session over: nothing is kept.
    for port in (1000..1000 + sessions).chain(1999..2300) {
        r.port = port;
        let at = r.session().in_end();
        r.peer(say(RST, at, 0, b""));
    }
    assert_eq!((r.f.out_of_order_bytes(), r.f.store().len()), (0, 0));
}

/// What continues a piece makes it longer: a hole costs what came behind it, however small that came.
#[test]
fn what_came_early_costs_little_beside_its_bytes() {
    let mut r = Rig::open();
    for at in 0..20_000u64 {
        r.peer(say(ACK, 1 + at, 0, b"x"));
    }
    assert!(r.f.out_of_order_bytes() < 50_000, "{}", r.f.out_of_order_bytes());
    r.peer(say(ACK, 0, 0, b"x"));
    assert_eq!((r.session().in_end(), r.f.out_of_order_bytes()), (20_001, 0));
}

#[test]
fn new_input_waits_while_the_replica_does_not_keep_up_and_what_it_acknowledges_does_not() {
    let mut r = Rig::open();
    r.pass(ms(500));
    r.f.set_overloaded(r.now, true);
    // But for a little of each peer: one whose segments are all dropped sends ever more seldom.
    assert!(!r.peer(say(ACK, 0, 0, &[b'x'; 9001])).is_empty());
    r.peer(say(ACK, 1, 0, b"sk"));
    assert_eq!(r.session().in_end(), 0);
    r.peer(say(ACK, 0, 0, b"ask"));
    r.read(3);
    r.write(b"answer");
    r.wait();
    r.stored();
    r.kernel(say(ACK, 0, 3, b"answer"));
    let records = r.f.counters().records;
    let actions = r.peer(say(ACK, 3, 6, b"more"));
    assert!(actions.contains(&Action::DropIn(r.id)) && !r.passes(&actions));
    assert_eq!((r.f.counters().records, r.session().in_end()), (records, 3));
    let told = actions.iter().find_map(|a| match a {
        Action::Inject(packet) => Some(offsets(packet, true)),
        _ => None,
    });
    // The local TCP sends on.
    assert!(told.is_some_and(|(at, ack, segment)| (at, ack) == (3, 6) && segment.payload().is_empty()));
    // What says nothing new goes on: acknowledgements, what was sent again, the end.
    let actions = r.peer(say(ACK, 0, 6, b"ask"));
    assert!(r.passes(&actions));
    let actions = r.peer(say(ACK, 3, 6, b""));
    assert!(r.passes(&actions));
    // Out of order it would be kept in memory.
    r.peer(say(ACK, 100, 6, b"far"));
    r.pass(ms(250));
    let actions = r.peer(say(ACK, 3, 6, b"mo"));
    assert!(r.passes(&actions));
    let actions = r.peer(say(ACK, 5, 6, b"re"));
    assert!(!r.passes(&actions));
    r.f.set_overloaded(r.now, false);
    let actions = r.peer(say(ACK, 5, 6, b"re"));
    assert!(r.passes(&actions));
    assert_eq!(input_of(r.session()), b"more");
    r.stored();
}

#[test]
fn output_that_no_hook_announced_is_adopted_when_the_replica_keeps_up() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"ask"));
    r.f.set_overloaded(r.now, true);
    let records = r.f.counters().records;
    assert_eq!(r.kernel(say(ACK, 0, 3, b"around")), []);
    r.pass(ms(500));
    assert_eq!((r.f.counters().adopted_bytes, r.session().out_done), (0, 0));
    assert!(r.f.counters().records <= records + 2, "nothing of it is in the log");
    r.f.set_overloaded(r.now, false);
    r.wait();
    let actions = r.stored();
    assert!(r.passes(&actions) || r.actions.contains(&Action::AcceptOut(r.id)));
    assert_eq!(r.f.counters().adopted_bytes, 6);
}
