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
    assert!(r.passes(&actions) || r.f.log_end() > r.f.replica_position());
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
    assert!(r.passes(&actions) || !actions.is_empty() || r.f.needs_replica());
    // The kernel did not take the byte; the peer sends it again.
    r.peer(say(ACK, 10, 0, b"xyz"));
    assert_eq!(input_of(r.session()), b"0123456789xyz");
    r.stored();
}

/// Other bytes for the same places: neither the store nor the kernel takes them, wherever both could.
#[test]
fn a_peer_that_contradicts_itself_is_not_heard() {
    let mut r = Rig::open();
    let passes = |r: &mut Rig, s: Say<'_>| {
        let actions = r.peer(s);
        r.passes(&actions)
    };
    assert!(passes(&mut r, say(ACK, 0, 0, b"abc")));
    assert!(passes(&mut r, say(ACK, 6, 0, b"ghi")));
    // Beside the kernel's queue, in the gap, and over both.
    assert!(!passes(&mut r, say(ACK, 1, 0, b"Xc")));
    assert!(!passes(&mut r, say(ACK, 5, 0, b"fX")));
    assert!(!passes(&mut r, say(ACK, 3, 0, b"defgX")));
    assert!(!passes(&mut r, say(ACK | FIN, 6, 0, b"g")));
    assert!(!passes(&mut r, say(ACK | FIN, 1, 0, b"b")));
    assert!(!passes(&mut r, say(ACK | FIN, 0, 0, b"")));
    assert_eq!(r.f.counters().disbelieved, 6);
    assert!(passes(&mut r, say(ACK, 1, 0, b"bc")));
    assert!(passes(&mut r, say(ACK, 2, 0, b"cdefgh")));
    assert_eq!(input_of(r.session()), b"abcdefghi");
    // What the kernel has acknowledged it passes over: an old TCP's keepalive.
    r.kernel(say(ACK, 0, 9, b""));
    assert!(passes(&mut r, say(ACK, 8, 0, b"X")));
    assert_eq!(input_of(r.session()), b"abcdefghi");
    assert!(passes(&mut r, say(ACK | FIN, 9, 0, b"")));
    assert!(!passes(&mut r, say(ACK, 9, 0, b"behind the end")));
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
    assert!(!r.f.has_batch(r.now));
    r.pass(ms(11));
    assert!(r.f.has_batch(r.now));
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

#[test]
fn new_input_waits_while_the_replica_does_not_keep_up_and_what_it_acknowledges_does_not() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"ask"));
    r.read(3);
    r.write(b"answer");
    r.wait();
    r.stored();
    r.kernel(say(ACK, 0, 3, b"answer"));
    r.f.set_overloaded(r.now, true);
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
    r.f.set_overloaded(r.now, false);
    let actions = r.peer(say(ACK, 3, 6, b"more"));
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
