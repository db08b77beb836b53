use super::*;
use crate::turn::Rest;

impl Rig {
    /// Its process says that it has read so much. The kernel, if it is asked, says that it never gave that.
    fn lie(&mut self, n: u64) {
        self.read(n);
        let received = self.session().in_end();
        if let Some(id) = self.f.poll_around() {
            self.f.went_around(self.now, id, received, false);
        }
        self.drain();
    }
}

/// A hostile (or confused) process says that it has read more than ever came: nobody knows what it has made of it.
#[test]
fn a_process_that_reads_more_than_there_is_tears_its_session_and_no_more() {
    for n in [5, 1000, 1 << 40, u64::MAX] {
        let mut r = Rig::open();
        r.peer(say(ACK, 0, 0, b"ping"));
        r.stored();
        r.lie(n);
        r.read(u64::MAX);
        r.write(b"x");
        r.wait();
        r.stored();
        assert!(r.session().torn);
        assert_eq!(r.f.counters().lost_track, 1);
        // The connection goes on all the same, by its packets.
        r.kernel(say(ACK, 0, 4, b"x"));
        let told = r.stored();
        assert!(r.passes(&told), "{told:?}");
        r.peer(say(ACK, 4, 1, b"more"));
        r.kernel(say(ACK, 1, 8, b"y"));
        let told = r.stored();
        assert!(r.passes(&told), "{told:?}");
        assert!(r.session().torn && r.session().input.is_empty());
        // Its end as well: the process lives, and closes.
        r.close();
        r.wait();
        r.kernel(say(ACK | FIN, 2, 8, b""));
        let told = r.stored();
        assert!(r.passes(&told), "{told:?}");
    }
}

/// The same of a process that dies: nobody asked for its FIN.
#[test]
fn the_end_of_a_session_that_we_lost_track_of_is_withheld_if_its_process_dies() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"ping"));
    r.lie(100);
    r.stored();
    r.kernel(say(ACK | FIN, 0, 4, b""));
    assert!(r.pass(ms(60)).contains(&Action::AskAlive(CHANNEL)));
    r.f.process_gone(r.now, CHANNEL);
    assert!(r.drain().contains(&Action::DropOut(r.id)));
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"ping"));
    r.lie(100);
    r.stored();
    r.kernel(say(ACK | FIN, 0, 4, b""));
    assert!(r.pass(ms(60)).contains(&Action::AskAlive(CHANNEL)));
    r.f.process_alive(r.now, CHANNEL);
    let told = r.stored();
    assert!(r.passes(&told), "{told:?}");
}

/// Whoever spoils its channel is heard no more.
#[test]
fn a_process_that_is_cut_off_keeps_its_connections_and_they_are_torn() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"ping"));
    r.read(4);
    // Announced, and the kernel has sent a part.
    r.write(b"pong, and what was never sent");
    r.kernel(say(ACK, 0, 4, b"pong"));
    r.f.cut_off(r.now, CHANNEL);
    r.drain();
    let told = r.stored();
    assert!(r.passes(&told), "{told:?}");
    assert_eq!((r.session().torn, r.session().out_done), (true, 4));
    // Whatever it said.
    r.write(b"nothing");
    r.read(1000);
    r.attach();
    r.wait();
    assert_eq!(r.f.counters().lost_track, 1);
    r.peer(say(ACK, 4, 4, b"again"));
    r.kernel(say(ACK, 4, 9, b"other"));
    let told = r.stored();
    assert!(r.passes(&told), "{told:?}");
    assert_eq!(r.session().out_done, 9);
    r.f.process_gone(r.now, CHANNEL);
    let actions = r.kernel(say(ACK | FIN, 9, 9, b""));
    assert!(actions.contains(&Action::DropOut(r.id)), "{actions:?}");
}

/// It reads with hooks and answers around them (dprintf). The kernel is asked between its read(2) and the event that tells.
#[test]
fn a_read_that_is_told_after_the_kernel_was_asked_counts_once() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"one.two."));
    r.stored();
    r.read(4);
    r.unread = 0;
    r.kernel(say(ACK, 0, 8, b"ONE."));
    r.read(4);
    let id = r.session().open.session;
    assert_eq!(r.f.turns().in_read(id), Some(8), "bytes read, of 8 that ever came");
    // The answer to the second, through the hooks this time.
    r.write(b"TWO.");
    r.wait();
    r.kernel(say(ACK, 4, 8, b"TWO."));
    r.stored();
    assert_eq!((r.session().in_done, r.session().out_done, r.session().torn), (8, 8, false));
    assert_eq!(r.f.counters().lost_track, 0);
    // And once more with one that nobody tells: the kernel says it when it is asked again.
    r.peer(say(ACK, 8, 8, b"3333444455556666"));
    r.unread = 8;
    r.kernel(say(ACK, 8, 24, b"3"));
    assert_eq!(r.f.turns().in_read(id), Some(16));
    r.read(4);
    r.unread = 4;
    r.drain();
    assert_eq!(r.f.turns().in_read(id), Some(20));
}

/// The rules were flushed while a request and its answer went by. What is known when they are back is not enough to go on
/// elsewhere; the connection goes on here.
#[test]
fn a_session_whose_packets_went_around_the_queue_is_torn_and_goes_on() {
    let mut r = Rig::with_timestamps();
    // Input 0..100 and output 0..50 went by. Then the kernel goes on.
    let mut all = r.kernel(Say { ts: Some((300, 300)), ..say(ACK, 50, 100, b"next") });
    for _ in 0..50 {
        all.extend(r.stored());
        all.extend(r.pass(ms(100)));
    }
    assert!(r.passes(&all), "{all:?}");
    assert!(r.session().torn);
    assert_eq!(r.f.counters().lost_track, 1);
    let actions = r.peer(Say { ts: Some((301, 300)), ..say(ACK, 100, 54, b"again") });
    assert!(r.passes(&actions));
    assert_eq!(r.session().out_acked, 50);
    r.pass(ms(20));
    assert_eq!(r.session().out_acked, 54);
    r.kernel(Say { ts: Some((302, 301)), ..say(ACK, 54, 105, b"answer") });
    let actions = r.stored();
    assert!(r.passes(&actions));
}

/// The same, and the peer speaks first: it acknowledges what never came by here.
#[test]
fn a_peer_that_acknowledges_what_went_around_the_queue_is_heard_in_the_end() {
    // Through the hooks all that was written is known; else it is not.
    for (hooks, exact) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut r = if exact { Rig::open() } else { Rig::with_timestamps() };
        let ts = |a, b| if exact { None } else { Some((a, b)) };
        let at = if exact { 0 } else { 100 };
        if hooks {
            r.write(&[1; 50]);
            r.wait();
            r.stored();
        }
        let ask = |r: &mut Rig| r.peer(Say { ts: ts(301, 200), ..say(ACK, at, 50, b"more") });
        let first = ask(&mut r);
        assert!(!r.passes(&first), "nobody knows yet that it ever left");
        r.pass(ms(1000));
        ask(&mut r);
        r.pass(ms(3000));
        let then = ask(&mut r);
        assert!(r.passes(&then), "{hooks} {exact}: {then:?}");
        assert_eq!(r.session().torn, !hooks, "{hooks} {exact}");
        r.pass(ms(20));
        r.stored();
        assert_eq!(r.session().out_acked, 50);
    }
    // A stranger that guesses a number in the window tears nothing.
    let mut r = Rig::with_timestamps();
    for _ in 0..10 {
        r.peer(Say { ts: Some((301, 1 << 30)), ..say(ACK, 100, 50, b"evil") });
        r.peer(say(ACK, 100, 50, b"evil"));
        r.pass(ms(1000));
    }
    assert!(!r.session().torn);
}

/// The peer sends what the local TCP acknowledges too early once more: that was explained.
#[test]
fn an_acknowledgement_that_is_explained_in_time_tears_nothing() {
    let mut r = Rig::open();
    r.kernel(say(ACK, 0, 5, b""));
    r.pass(ms(1000));
    r.peer(say(ACK, 0, 0, b"hello"));
    r.pass(ms(5000));
    assert_eq!((r.session().torn, r.f.counters().lost_track), (false, 0));
}

/// More sessions than a record has room for: a chat with everybody in it.
#[test]
fn a_turn_over_very_many_sessions_is_committed() {
    let mut r = Rig::new();
    let sessions = 70_000u32;
    let t = |i: u32| FourTuple {
        local: "192.0.2.200:5555".parse().unwrap(),
        peer: (std::net::Ipv4Addr::from(0x0a00_0000 | i >> 8), (1024 + (i & 255)) as u16).into(),
    };
    for i in 0..sessions {
        for (from_peer, flags, ack) in [(true, SYN, 0), (false, SYN | ACK, 1), (true, ACK, 1)] {
            let (t, mut packet) = (t(i), Vec::new());
            let (source, destination) = if from_peer { (t.peer, t.local) } else { (t.local, t.peer) };
            let seq = Seq(if flags == ACK { 1 } else { 0 });
            Build { source, destination, seq, ack: Seq(ack), flags, window: 60_000, timestamps: None, payload: &[] }
                .write(&mut packet);
            if from_peer {
                r.f.packet_in(r.now, i, &packet, true)
            } else {
                r.f.packet_out(r.now, i, &packet)
            }
        }
        r.f.attach(r.now, CHANNEL, i, Origin::Accepted, &t(i));
    }
    assert_eq!(r.f.store().len(), sessions as usize);
    r.stored();
    for i in 0..sessions {
        r.writes(CHANNEL, THREAD, i, b"hi all");
    }
    r.f.turn_end(r.now, CHANNEL, THREAD);
    r.f.run_commits(r.now);
    r.stored();
    assert!(r.f.store().iter().all(|s| s.out_done == 6 && !s.torn));
}

/// What a process makes up is bounded, or costs it its session.
#[test]
fn what_a_process_makes_up_costs_the_manager_no_memory() {
    let mut r = Rig::open();
    for thread in 0..200_000 {
        r.writes(CHANNEL, thread, HANDLE, b"x");
    }
    assert!(r.f.processes.threads_of(CHANNEL).len() <= 1 << 16);
    for _ in 0..100_000 {
        r.close();
        r.attach();
    }
    assert!(r.f.processes.closings() < 10);
    let mut r = Rig::open();
    let large = vec![1; 256 << 10];
    for _ in 0..2000 {
        r.write(&large);
        r.wait();
    }
    assert!(r.session().torn && r.session().output.len() <= 256 << 20);
}

/// Reads that go around the hooks, and no answer: the store would keep it all for ever.
#[test]
fn input_that_is_read_around_the_hooks_is_not_kept_for_ever() {
    for attached in [true, false] {
        let mut r = Rig::new();
        r.handshake(false);
        if attached {
            r.attach();
        }
        r.unread = 0;
        let piece = [1; 60_000];
        for i in 0..400u64 {
            r.peer(say(ACK, i * 60_000, 0, &piece));
            r.kernel(say(ACK, 0, (i + 1) * 60_000, b""));
            r.stored();
        }
        assert!(r.session().input.len() < 12 << 20 && r.session().torn, "{}", r.session().input.len());
        assert_eq!(r.session().in_end(), 400 * 60_000);
    }
    // A program that does not read has all of it in its socket.
    let mut r = Rig::open();
    r.unread = 24_000_000;
    let piece = [1; 60_000];
    for i in 0..400u64 {
        r.unread = (i + 1) * 60_000;
        r.peer(say(ACK, i * 60_000, 0, &piece));
        r.kernel(say(ACK, 0, (i + 1) * 60_000, b""));
        r.stored();
    }
    assert_eq!((r.session().input.len(), r.session().torn), (24_000_000, false));
}

#[test]
fn output_waits_for_its_turn_and_the_replica() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"ping"));
    r.stored();
    r.read(4);
    r.write(b"pong");
    assert_eq!(r.kernel(say(ACK, 0, 4, b"pong")), []);
    assert_eq!(r.stored(), [], "the turn is not over");
    assert_eq!(r.wait(), []);
    assert!(r.f.log().has_batch(r.now));
    let actions = r.stored();
    assert!(r.passes(&actions));
    let s = r.session();
    assert_eq!((s.in_done, s.out_done, s.output.len()), (4, 4, 4));
    // A retransmission obeys the same rule, and passes.
    let actions = r.kernel(say(ACK, 0, 4, b"pong"));
    assert!(r.passes(&actions));
    r.peer(say(ACK, 4, 4, b""));
    r.stored();
    assert_eq!((r.session().out_acked, r.session().output.len()), (4, 0));
}

#[test]
fn a_stranger_is_refused_on_the_replicas_word_only() {
    let mut r = Rig::open();
    r.stored();
    r.port += 1;
    // All that was written before is stored; that the replica still follows it is not known.
    assert_eq!(r.kernel(say(RST, 7, 0, b"")), []);
    let actions = r.stored();
    assert!(r.passes(&actions));
    r.f.go_solo(r.now);
    let actions = r.kernel(say(RST, 7, 0, b""));
    assert!(r.passes(&actions));
}

#[test]
fn a_segment_waits_for_its_own_records_only() {
    let mut r = Rig::open();
    r.write(b"one");
    r.wait();
    let one = r.f.log().written();
    r.write(b"two");
    r.wait();
    assert_eq!(r.kernel(say(ACK, 0, 0, b"one")), []);
    r.f.replica_stored(r.now, one);
    let actions = r.drain();
    assert!(r.passes(&actions));
    assert_eq!(r.kernel(say(ACK, 3, 0, b"two")), []);
    // Acknowledgements of input likewise.
    r.peer(say(ACK, 0, 3, b"ping"));
    let ping = r.f.log().written();
    r.peer(say(ACK, 4, 3, b"pong"));
    assert_eq!(r.kernel(say(ACK, 3, 4, b"")), []);
    r.f.replica_stored(r.now, ping);
    let actions = r.drain();
    assert!(actions.len() == 2 && r.passes(&actions), "two, and the ACK of ping: {actions:?}");
    assert_eq!(r.kernel(say(ACK, 6, 8, b"")), []);
    let actions = r.stored();
    assert!(r.passes(&actions));
}

#[test]
fn an_overlong_turn_is_let_go() {
    let mut r = Rig::open();
    r.write(b"slow");
    r.kernel(say(ACK, 0, 0, b"slow"));
    assert_eq!(r.pass(ms(49)), []);
    r.pass(ms(2));
    let actions = r.stored();
    assert!(r.passes(&actions));
}

#[test]
fn an_empty_segment_shows_no_number_that_was_not_released() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"ping"));
    r.stored();
    r.write(b"0123456789");
    assert_eq!(r.kernel(say(ACK, 0, 0, b"0123456789")), []);
    let actions = r.kernel(say(ACK, 10, 4, b""));
    let [Action::ModifyOut(id, packet)] = &actions[..] else { panic!("{actions:?}") };
    let (seq, ack, segment) = offsets(packet, false);
    assert_eq!((*id, seq, ack, segment.checksum_ok()), (r.id, 0, 4, true));
    // Lowered to what is released when it leaves, not when it came.
    r.peer(say(ACK, 4, 0, b"ping"));
    assert_eq!(r.kernel(say(ACK, 10, 8, b"")), []);
    r.wait();
    let actions = r.stored();
    assert_eq!(actions.len(), 2);
    assert!(actions.iter().any(|a| *a == Action::AcceptOut(r.id) || matches!(a, Action::ModifyOut(..))));
}

#[test]
fn a_keepalive_of_an_untouched_connection_obeys_the_ack_rule() {
    let mut r = Rig::open();
    let probe = |ack| Say { seq: u64::MAX, ..say(ACK, 0, ack, b"") };
    let actions = r.kernel(probe(0));
    assert!(r.passes(&actions));
    r.peer(say(ACK, 0, 0, b"x"));
    assert_eq!(r.kernel(probe(1)), []);
    let actions = r.stored();
    assert!(r.passes(&actions));
    // Bytes before the first one are nobody's.
    let actions = r.kernel(Say { bytes: b"x", ..probe(1) });
    assert_eq!(actions, [Action::DropOut(r.id)]);
}

#[test]
fn an_announced_fin_leaves_when_it_is_stored() {
    let mut r = Rig::open();
    r.write(b"bye");
    r.f.shutdown(r.now, CHANNEL, THREAD, HANDLE);
    assert_eq!(r.kernel(say(ACK | FIN, 0, 0, b"bye")), []);
    r.stored();
    r.wait();
    let actions = r.stored();
    assert!(r.passes(&actions));
    assert!(r.session().out_fin && !r.session().closed);
}

#[test]
fn a_close_after_a_shutdown_is_told() {
    let mut r = Rig::open();
    r.f.shutdown(r.now, CHANNEL, THREAD, HANDLE);
    r.wait();
    assert!(r.session().out_fin && !r.session().closed);
    r.close();
    r.stored();
    assert!(!r.session().closed, "its turn is not over");
    r.wait();
    r.stored();
    assert!(r.session().closed);
}

#[test]
fn an_unannounced_fin_of_a_living_process_leaves_after_a_question() {
    for rst in [false, true] {
        let mut r = Rig::open();
        let flags = if rst { RST | ACK } else { FIN | ACK };
        assert_eq!(r.kernel(say(flags, 0, 0, b"")), []);
        r.stored();
        assert_eq!(r.pass(ms(49)), []);
        assert_eq!(r.pass(ms(2)), [Action::AskAlive(CHANNEL)]);
        r.f.process_alive(r.now, CHANNEL);
        let actions = r.stored();
        assert!(r.passes(&actions), "{actions:?}");
        assert_eq!(r.f.counters().unhooked_closes, 1);
        assert_eq!(r.f.store().is_empty(), rst);
        r.stored();
    }
}

#[test]
fn the_endings_of_a_dead_process_never_leave() {
    for rst in [false, true] {
        let mut r = Rig::open();
        let flags = if rst { RST | ACK } else { FIN | ACK };
        r.kernel(say(flags, 0, 0, b""));
        r.stored();
        let actions = {
            r.f.process_gone(r.now, CHANNEL);
            r.drain()
        };
        assert_eq!(actions, [Action::DropOut(r.id)]);
        // And again, when TCP sends it again.
        let actions = r.kernel(say(flags, 0, 0, b""));
        assert_eq!(actions, [Action::DropOut(r.id)]);
        assert_eq!(r.f.counters().endings_withheld, 2);
        assert!(!r.session().out_fin && !r.session().closed);
        r.pass(ms(1000));
        assert!(r.stored().is_empty());
    }
}

#[test]
fn a_close_in_a_turn_that_died_never_happened() {
    for rst in [false, true] {
        let mut r = Rig::open();
        r.write(b"half an ans");
        r.close();
        let flags = if rst { RST | ACK } else { FIN | ACK };
        assert_eq!(r.kernel(say(flags, 0, 0, b"half an ans")), []);
        r.f.process_gone(r.now, CHANNEL);
        assert_eq!(r.drain(), [Action::DropOut(r.id)]);
        r.stored();
        let s = r.session();
        assert_eq!((s.out_done, s.out_fin, s.closed), (0, false, false));
    }
}

#[test]
fn committed_output_of_a_dead_process_still_leaves() {
    let mut r = Rig::open();
    r.write(b"done");
    r.wait();
    r.write(b"not");
    r.f.process_gone(r.now, CHANNEL);
    r.kernel(say(ACK, 0, 0, b"done"));
    let actions = r.stored();
    assert!(r.passes(&actions));
    let actions = r.kernel(say(ACK, 4, 0, b"not"));
    assert_eq!(actions, [Action::DropOut(r.id)]);
}

#[test]
fn a_process_that_exits_in_order_ends_what_it_holds() {
    let mut r = Rig::open();
    r.write(b"bye");
    r.f.exit(r.now, CHANNEL);
    r.f.run_commits(r.now);
    r.kernel(say(ACK | FIN, 0, 0, b"bye"));
    r.f.process_gone(r.now, CHANNEL);
    let actions = r.stored();
    assert!(r.passes(&actions));
    assert!(r.session().closed);
}

#[test]
fn a_fin_before_the_process_could_say_that_it_accepted() {
    let mut r = Rig::new();
    r.handshake(false);
    r.kernel(say(FIN | ACK, 0, 0, b""));
    r.f.process_gone(r.now, CHANNEL);
    assert_eq!(r.drain(), [Action::DropOut(r.id)]);
    // Its death may be heard of first. (World seed 825274.)
    let mut r = Rig::new();
    r.handshake(false);
    r.f.process_gone(r.now, CHANNEL);
    r.kernel(say(FIN | ACK, 0, 0, b""));
    assert_eq!(r.pass(ms(60)), [Action::DropOut(r.id)]);
    // Where nobody died it was somebody without hooks.
    let mut r = Rig::new();
    r.handshake(false);
    r.kernel(say(FIN | ACK, 0, 0, b""));
    assert_eq!(r.pass(ms(40)), []);
    r.pass(ms(20));
    let actions = r.stored();
    assert!(r.passes(&actions));
}

#[test]
fn bytes_that_went_around_the_hooks_are_adopted() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"ping"));
    r.stored();
    r.read(4);
    r.kernel(say(ACK, 0, 4, b"printf"));
    let actions = r.stored();
    assert!(r.passes(&actions));
    let s = r.session();
    assert_eq!((s.in_done, s.out_done), (4, 6));
    assert_eq!(r.f.counters().adopted_bytes, 6);
    // Half announced, half not.
    r.write(b"hook");
    r.kernel(say(ACK, 6, 4, b"hookstdio"));
    r.wait();
    let actions = r.stored();
    assert!(r.passes(&actions));
    assert_eq!(r.session().out_done, 15);
    assert_eq!(r.session().output.iter().copied().collect::<Vec<_>>(), b"printfhookstdio");
}

#[test]
fn what_stdio_reads_and_answers_is_done() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"ping"));
    r.kernel(say(ACK, 0, 4, b"pong"));
    let actions = r.stored();
    assert!(r.passes(&actions));
    assert_eq!((r.session().in_done, r.session().out_done), (4, 4));
    // Half of what came waits in the kernel.
    r.peer(say(ACK, 4, 4, b"onetwo"));
    r.unread = 3;
    r.kernel(say(ACK, 4, 10, b"1"));
    assert_eq!((r.session().in_done, r.session().out_done), (7, 5));
    r.unread = 0;
    r.kernel(say(ACK, 5, 10, b"2"));
    r.stored();
    assert_eq!((r.session().in_done, r.session().out_done), (10, 6));
}

/// accept, fork, and close in the parent, before the child has used the connection.
#[test]
fn a_forked_process_goes_on_with_the_connection() {
    let child = CHANNEL + 1;
    for child_first in [false, true] {
        let mut r = Rig::open();
        let t = tuple(r.port);
        if child_first {
            r.f.attach(r.now, child, HANDLE, Origin::Inherited, &t);
        }
        r.f.close(r.now, CHANNEL, THREAD, HANDLE, true);
        r.wait();
        assert!(!r.session().closed && !r.session().out_fin);
        if !child_first {
            r.f.attach(r.now, child, HANDLE, Origin::Inherited, &t);
        }
        r.peer(say(ACK, 0, 0, b"ping"));
        r.f.read(r.now, child, THREAD, HANDLE, 4);
        r.writes(child, THREAD, HANDLE, b"pong");
        r.kernel(say(ACK, 0, 4, b"pong"));
        r.f.turn_end(r.now, child, THREAD);
        r.f.run_commits(r.now);
        let actions = r.stored();
        assert!(r.passes(&actions));
        r.f.close(r.now, child, THREAD, HANDLE, false);
        r.f.turn_end(r.now, child, THREAD);
        r.f.run_commits(r.now);
        assert!(r.session().closed && r.session().out_fin);
    }
}

#[test]
fn a_forked_process_that_never_joined_ends_the_connection() {
    let mut r = Rig::open();
    r.f.close(r.now, CHANNEL, THREAD, HANDLE, true);
    r.wait();
    // The kernel closed it with the last descriptor; only if its parent lives was that meant.
    assert_eq!(r.kernel(say(ACK | FIN, 0, 0, b"")), []);
    assert_eq!(r.pass(ms(60)), [Action::AskAlive(CHANNEL)]);
    r.f.process_alive(r.now, CHANNEL);
    let actions = r.stored();
    assert!(r.passes(&actions));
    assert!(r.session().closed && r.session().out_fin);
}

#[test]
fn a_program_that_dies_between_a_fork_and_the_childs_first_word_ends_nothing() {
    let mut r = Rig::open();
    r.f.close(r.now, CHANNEL, THREAD, HANDLE, true);
    r.wait();
    r.kernel(say(ACK | FIN, 0, 0, b""));
    r.pass(ms(60));
    r.f.process_gone(r.now, CHANNEL);
    let actions = r.stored();
    assert!(!r.passes(&actions));
    assert!(!r.session().closed && !r.session().out_fin);
    assert_eq!(r.f.counters().endings_withheld, 1);
}

#[test]
fn a_forked_process_may_outlive_a_parent_that_ended_in_order() {
    let mut r = Rig::open();
    r.f.close(r.now, CHANNEL, THREAD, HANDLE, true);
    r.f.exit(r.now, CHANNEL);
    r.f.process_gone(r.now, CHANNEL);
    r.kernel(say(ACK | FIN, 0, 0, b""));
    r.pass(ms(60));
    let actions = r.stored();
    assert!(r.passes(&actions));
}

#[test]
fn what_a_process_had_closed_before_it_ended_in_order_is_ended_before_it_is_found_dead() {
    let mut r = Rig::open();
    r.f.close(r.now, CHANNEL, THREAD, HANDLE, true);
    r.f.exit(r.now, CHANNEL);
    r.kernel(say(ACK | FIN, 0, 0, b""));
    r.pass(ms(60));
    let actions = r.stored();
    assert!(r.passes(&actions));
    r.f.process_gone(r.now, CHANNEL);
    assert!(r.session().closed);
}

/// Of processes that come to their ends at the same time all sessions are looked at once, and not for each of them.
#[test]
fn many_processes_that_end_at_once_cost_hardly_more_than_one() {
    let mut r = Rig::new();
    let channels: BTreeSet<u32> = (CHANNEL..CHANNEL + 64).collect();
    for channel in &channels {
        r.port += 1;
        r.handshake(false);
        r.f.attach(r.now, *channel, HANDLE, Origin::Accepted, &tuple(r.port));
    }
    for channel in channels.iter().take(32) {
        r.f.exit(r.now, *channel);
    }
    r.f.run_commits(r.now);
    assert_eq!(r.f.walks, 0);
    r.f.processes_gone(r.now, &channels);
    assert_eq!(r.f.walks, 1);
    let closed = r.f.store().iter().filter(|s| s.closed).count();
    assert_eq!(closed, 32, "those of the processes that have ended in order, and no others");
}

/// A session that several processes hold is orphaned when the last of them dies, be it with the others.
#[test]
fn processes_that_hold_a_session_together_and_die_at_once() {
    for at_once in [true, false] {
        let mut r = Rig::open();
        let both = BTreeSet::from([CHANNEL, CHANNEL + 1]);
        r.f.attach(r.now, CHANNEL + 1, HANDLE, Origin::Inherited, &tuple(r.port));
        r.peer(say(ACK, 0, 0, b"ping"));
        r.read(4);
        r.stored();
        match at_once {
            true => r.f.processes_gone(r.now, &both),
            false => both.iter().for_each(|channel| r.f.process_gone(r.now, *channel)),
        }
        let id = r.id;
        assert_eq!(r.kernel(say(ACK | FIN, 0, 4, b"")), [Action::DropOut(id + 1)], "at once: {at_once}");
        assert!(!r.session().closed && r.session().in_done == 0);
    }
}

/// A process reads a request, hands it to another one that holds the connection too, and dies; the other answers.
#[test]
fn a_request_read_by_a_process_that_died_and_answered_by_another_is_not_read_again() {
    // The other one has joined before, or joins when the first is dead.
    for joined in [true, false] {
        let mut r = Rig::open();
        let t = tuple(r.port);
        if joined {
            r.f.attach(r.now, CHANNEL + 1, HANDLE, Origin::Inherited, &t);
        }
        r.peer(say(ACK, 0, 0, b"ping"));
        r.read(4);
        r.wait();
        r.stored();
        r.f.process_gone(r.now, CHANNEL);
        r.f.attach(r.now, CHANNEL + 1, HANDLE, Origin::Inherited, &t);
        r.writes(CHANNEL + 1, THREAD, HANDLE, b"pong");
        r.f.turn_end(r.now, CHANNEL + 1, THREAD);
        r.f.run_commits(r.now);
        r.drain();
        r.kernel(say(ACK, 0, 4, b"pong"));
        let actions = r.stored();
        assert!(r.passes(&actions), "{actions:?}");
        let s = r.session();
        assert_eq!((s.in_done, s.out_done, s.out_base, s.torn), (4, 4, 4, false));
    }
}

/// The dead one had begun to answer: what it wrote is in the socket, and the other one's words come behind it.
#[test]
fn an_answer_begun_by_a_process_that_died_and_ended_by_another_is_torn() {
    let mut r = Rig::open();
    let t = tuple(r.port);
    r.f.attach(r.now, CHANNEL + 1, HANDLE, Origin::Inherited, &t);
    r.peer(say(ACK, 0, 0, b"ping"));
    r.read(4);
    r.write(b"po");
    r.f.process_gone(r.now, CHANNEL);
    r.stored();
    r.kernel(say(ACK, 0, 4, b"po"));
    let s = r.session();
    assert_eq!((s.in_done, s.out_done, s.torn), (0, 0, false), "who takes over now reads and answers it");
    r.writes(CHANNEL + 1, THREAD, HANDLE, b"ng");
    r.f.turn_end(r.now, CHANNEL + 1, THREAD);
    r.f.run_commits(r.now);
    r.kernel(say(ACK, 2, 4, b"ng"));
    let actions = r.stored();
    assert!(r.passes(&actions), "{actions:?}");
    assert_eq!((r.session().out_done, r.session().torn), (4, true));
}

/// A process accepts, gives the connection to another one as a message (SCM_RIGHTS) and closes its own copy. The kernel
/// sends no FIN; the other process, whose hooks know nothing of it, answers.
#[test]
fn a_connection_that_was_passed_as_a_message_goes_on() {
    // The kernel is asked before, or is not.
    for asked in [false, true] {
        let mut r = Rig::open();
        r.close();
        r.wait();
        r.stored();
        assert!(r.session().closed);
        let id = r.session().open.session;
        r.peer(say(ACK, 0, 0, b"ping"));
        if asked {
            assert_eq!(r.pass(ms(60)), [Action::AskClosed(id)]);
            r.f.still_open(r.now, id);
            assert!(!r.session().closed && !r.session().out_fin, "a takeover must not end it");
            r.stored();
        }
        let mut all = r.kernel(say(ACK | flags::PSH, 0, 4, b"pong"));
        all.extend(r.stored());
        assert!(r.passes(&all), "its answer never leaves: {all:?}");
        let s = r.session();
        assert_eq!((s.in_done, s.out_done, s.out_fin, s.closed, s.torn), (4, 4, false, false, false));
        // When that process closes it, the kernel's FIN tells.
        r.kernel(say(ACK | FIN, 4, 4, b""));
        assert!(r.pass(ms(60)).contains(&Action::AskAlive(CHANNEL)));
        r.f.process_alive(r.now, CHANNEL);
        let actions = r.stored();
        assert!(r.passes(&actions), "{actions:?}");
        assert!(r.session().closed && r.session().out_fin);
    }
}

/// The new holder joins when the sender has told that it closes its own, or has ended that turn, or its end is stored.
#[test]
fn whoever_was_passed_a_connection_may_join_after_its_sender_closed() {
    for told in 0..4 {
        let mut r = Rig::open();
        let t = tuple(r.port);
        r.close();
        match told {
            0 => {}
            1 => r.f.turn_end(r.now, CHANNEL, THREAD),
            _ => drop(r.wait()),
        }
        if told == 3 {
            r.stored();
        }
        r.f.attach(r.now, CHANNEL + 1, HANDLE, Origin::Inherited, &t);
        r.wait();
        r.stored();
        r.peer(say(ACK, 0, 0, b"ping"));
        r.f.read(r.now, CHANNEL + 1, THREAD, HANDLE, 4);
        r.writes(CHANNEL + 1, THREAD, HANDLE, b"pong");
        r.f.turn_end(r.now, CHANNEL + 1, THREAD);
        r.f.run_commits(r.now);
        r.kernel(say(ACK, 0, 4, b"pong"));
        let actions = r.stored();
        assert!(r.passes(&actions), "{told}: {actions:?}");
        let s = r.session();
        assert_eq!((s.in_done, s.out_done, s.out_fin, s.closed, s.torn), (4, 4, false, false, false), "{told}");
    }
}

/// What the kernel is asked of a connection that was closed changes nothing where it was.
#[test]
fn a_close_is_not_taken_back_once_the_kernel_has_ended_it() {
    let mut r = Rig::open();
    r.close();
    r.wait();
    r.stored();
    let id = r.session().open.session;
    r.kernel(say(ACK | FIN, 0, 0, b""));
    assert!(!r.pass(ms(60)).contains(&Action::AskClosed(id)));
    r.f.still_open(r.now, id);
    assert!(r.session().closed && r.session().out_fin);
    // Nor of one with output that the kernel has yet to send: it says that it was closed, and nothing is answered.
    let mut r = Rig::open();
    r.write(&[1; 3000]);
    r.close();
    r.wait();
    r.stored();
    let id = r.session().open.session;
    let actions = r.kernel(say(ACK, 0, 0, &[1; 1000]));
    assert!(r.passes(&actions));
    assert_eq!(r.pass(ms(60)), [Action::AskClosed(id)]);
    assert!(r.session().closed && r.session().out_fin);
}

/// A server whose answers follow from the request alone sends one in parts. It is whole when its peer, who has all of it,
/// asks for more, or when the server looks for more: nothing tells that there is no further part.
#[test]
fn an_independent_answer_in_parts_is_whole_when_its_peer_asks_on() {
    let mut config = config();
    config.ports[0].1.independent = true;
    let mut r = Rig { f: Filter::new(config), ..Rig::new() };
    r.f.activate();
    r.f.hold_for_replica(0);
    r.handshake(false);
    r.attach();
    r.peer(say(ACK, 0, 0, b"get."));
    r.read(4);
    for (i, part) in [b"one.", b"two."].into_iter().enumerate() {
        r.write(part);
        r.wait();
        r.kernel(say(ACK, 4 * i as u64, 4, part));
        let actions = r.stored();
        assert!(r.passes(&actions), "{actions:?}");
        let s = r.session();
        assert_eq!((s.in_done, s.out_done, s.out_base), (0, 4 * (i as u64 + 1), 0));
    }
    // It has not seen the second part when it sends this.
    r.peer(say(ACK, 4, 4, b"ge"));
    assert_eq!(r.session().out_base, 0);
    r.peer(say(ACK, 6, 8, b""));
    r.peer(say(ACK, 6, 8, b"t."));
    let s = r.session();
    assert_eq!((s.in_done, s.out_done, s.out_base, input_of(s)), (4, 8, 8, b"get.".to_vec()));
    r.stored();
}

/// Told in order: passed on, closed here, and the other process joins.
#[test]
fn a_connection_that_was_passed_and_joined_is_its_new_holders() {
    let mut r = Rig::open();
    let t = tuple(r.port);
    r.f.close(r.now, CHANNEL, THREAD, HANDLE, true);
    r.wait();
    r.stored();
    assert!(!r.session().closed && !r.session().out_fin);
    // Its former holder's death is none of its.
    r.f.attach(r.now, CHANNEL + 1, HANDLE, Origin::Inherited, &t);
    r.f.process_gone(r.now, CHANNEL);
    r.peer(say(ACK, 0, 0, b"ping"));
    r.f.read(r.now, CHANNEL + 1, THREAD, HANDLE, 4);
    r.writes(CHANNEL + 1, THREAD, HANDLE, b"pong");
    r.f.close(r.now, CHANNEL + 1, THREAD, HANDLE, false);
    r.f.turn_end(r.now, CHANNEL + 1, THREAD);
    r.f.run_commits(r.now);
    r.kernel(say(ACK | FIN, 0, 4, b"pong"));
    let actions = r.stored();
    assert!(r.passes(&actions), "{actions:?}");
    assert_eq!((r.session().in_done, r.session().out_done, r.session().closed), (4, 4, true));
}

#[test]
fn writing_behind_the_end_that_another_process_asked_for_tears_the_session() {
    // By shutdown, that is: what is closed may have been passed on.
    let mut r = Rig::open();
    r.f.shutdown(r.now, CHANNEL, THREAD, HANDLE);
    r.close();
    r.wait();
    r.kernel(say(ACK | FIN, 0, 0, b""));
    let t = tuple(r.port);
    r.f.attach(r.now, CHANNEL + 1, HANDLE, Origin::Inherited, &t);
    r.writes(CHANNEL + 1, THREAD, HANDLE, b"late");
    r.f.turn_end(r.now, CHANNEL + 1, THREAD);
    r.f.run_commits(r.now);
    assert!(r.session().torn);
}

#[test]
fn an_open_intent_keeps_bytes_from_being_adopted() {
    let mut r = Rig::open();
    r.f.set_intents(Some((CHANNEL, HANDLE)));
    assert_eq!(r.kernel(say(ACK, 0, 0, b"hello")), []);
    assert_eq!(r.f.counters().adopted_bytes, 0);
    // Another process's intent does not stand in for it.
    r.f.set_intents([(CHANNEL, HANDLE), (CHANNEL + 1, 1)]);
    r.write(b"hello");
    r.f.set_intents(None);
    r.wait();
    let actions = r.stored();
    assert!(r.passes(&actions));
    assert_eq!(r.f.counters().adopted_bytes, 0);
    // The write took nothing: what came meanwhile went around the hooks.
    r.f.set_intents([(CHANNEL, HANDLE)]);
    r.kernel(say(ACK, 5, 0, b"raw"));
    r.f.set_intents([]);
    r.drain();
    let actions = r.stored();
    assert!(r.passes(&actions));
    assert_eq!(r.f.counters().adopted_bytes, 3);
}

#[test]
fn output_of_a_session_without_hooks_is_its_own_turn() {
    let mut r = Rig::new();
    r.handshake(false);
    r.peer(say(ACK, 0, 0, b"GET"));
    // Another request, which nobody has read, is not done with that.
    r.peer(say(ACK, 3, 0, b"GET"));
    r.unread = 3;
    r.kernel(say(ACK, 0, 6, b"200"));
    let actions = r.stored();
    assert!(r.passes(&actions));
    let s = r.session();
    assert_eq!((s.in_done, s.in_end(), s.out_done), (3, 6, 3));
}

#[test]
fn clean_closes_leave_no_record() {
    // We first.
    let mut r = Rig::open();
    r.write(b"bye");
    r.close();
    r.wait();
    r.kernel(say(ACK | FIN, 0, 0, b"bye"));
    r.stored();
    r.peer(say(ACK, 0, 4, b""));
    r.peer(say(ACK | FIN, 0, 4, b""));
    r.kernel(say(ACK, 4, 1, b""));
    assert_eq!(r.f.store().len(), 1, "its last ACK has not left");
    r.stored();
    assert!(r.f.store().is_empty());
    r.stored();
    // The peer did not hear the last ACK: TIME_WAIT answers.
    let actions = r.peer(say(ACK | FIN, 0, 4, b""));
    assert!(r.passes(&actions));
    let actions = r.kernel(say(ACK, 4, 1, b""));
    assert!(r.passes(&actions));

    // The peer first.
    let mut r = Rig::open();
    r.peer(say(ACK | FIN, 0, 0, b"bye"));
    r.kernel(say(ACK, 0, 4, b""));
    r.stored();
    r.read(3);
    r.read(0);
    r.close();
    r.wait();
    r.kernel(say(ACK | FIN, 0, 4, b""));
    r.stored();
    assert_eq!(r.f.store().len(), 1);
    r.peer(say(ACK, 4, 1, b""));
    assert!(r.f.store().is_empty());
    r.stored();

    // Both at once.
    let mut r = Rig::open();
    r.close();
    r.wait();
    r.kernel(say(ACK | FIN, 0, 0, b""));
    r.stored();
    r.peer(say(ACK | FIN, 0, 0, b""));
    r.kernel(say(ACK, 1, 1, b""));
    r.stored();
    r.peer(say(ACK, 1, 1, b""));
    assert!(r.f.store().is_empty());
    r.stored();
    assert_eq!(r.f.poll_timeout(), None);
}

#[test]
fn solo_and_back() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"ping"));
    assert_eq!(r.kernel(say(ACK, 0, 4, b"")), []);
    r.f.go_solo(r.now);
    let actions = r.drain();
    assert!(r.passes(&actions));
    r.read(4);
    r.write(b"pong");
    r.wait();
    let actions = r.kernel(say(ACK, 0, 4, b"pong"));
    assert!(r.passes(&actions));
    // A new replica: the snapshot, and the log behind it.
    r.f.take_batch(&mut Vec::new());
    r.replica = Filter::new(config());
    let mut snapshot = Vec::new();
    r.f.snapshot(&mut snapshot);
    r.f.take_batch(&mut Vec::new());
    r.replica.replica_apply(&snapshot).unwrap();
    r.f.hold_for_replica(r.f.log().written());
    let actions = r.kernel(say(ACK, 0, 4, b"pong"));
    assert!(r.passes(&actions), "it is in the snapshot");
    r.peer(say(ACK, 4, 4, b"ping"));
    assert_eq!(r.kernel(say(ACK, 4, 8, b"")), []);
    let actions = r.stored();
    assert!(r.passes(&actions));
}

#[test]
fn a_fenced_master_says_nothing() {
    let mut r = Rig::open();
    r.f.go_solo(r.now);
    r.f.set_fenced(r.now, true);
    r.peer(say(ACK, 0, 0, b"ping"));
    assert_eq!(r.kernel(say(ACK, 0, 4, b"")), []);
    r.port = 77;
    let actions = r.kernel(say(ACK, 0, 0, b""));
    assert_eq!(actions, [Action::DropOut(r.id)]);
    let actions = r.kernel(say(RST, 0, 0, b""));
    assert_eq!(actions, [Action::DropOut(r.id)]);
    r.f.set_fenced(r.now, false);
    assert_eq!(r.drain().len(), 1);
}

#[test]
fn a_frozen_master_forwards_and_its_log_stands() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"one"));
    r.kernel(say(ACK, 0, 3, b""));
    r.write(b"ans");
    r.f.freeze();
    let end = r.f.log().written();
    let packet = r.packet(say(ACK, 3, 0, b"two"), true);
    assert_eq!(r.inp(&packet), [Action::Forward(packet.clone()), Action::DropIn(r.id)]);
    // What hardware was to complete is complete when it goes on; what is wrong goes nowhere.
    let mut partial = packet.clone();
    partial[36] ^= 0x55;
    assert_eq!(r.inp(&partial), [Action::DropIn(r.id)]);
    r.f.packet_in(r.now, 99, &partial, true);
    assert_eq!(r.drain(), [Action::Forward(packet), Action::DropIn(99)]);
    let actions = r.kernel(say(ACK, 0, 3, b"ans"));
    assert_eq!(actions, [Action::DropOut(r.id)]);
    r.wait();
    r.f.swept(r.now, &tuple(r.port));
    r.pass(ms(1000));
    assert_eq!(r.stored(), []);
    assert_eq!(r.f.log().written(), end);
    assert_eq!(r.f.poll_timeout(), None);
    // It came to nothing.
    r.f.thaw(r.now);
    assert_eq!(r.drain().len(), 1, "the ACK");
    r.kernel(say(ACK, 0, 3, b"ans"));
    let actions = r.stored();
    assert!(r.passes(&actions));
}

#[test]
fn a_demoted_master_drops_all_it_holds() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"one"));
    r.kernel(say(ACK, 0, 3, b""));
    r.write(b"ans");
    r.kernel(say(ACK, 0, 3, b"ans"));
    r.f.demote();
    let actions = r.drain();
    assert_eq!(actions.len(), 2);
    assert!(actions.iter().all(|a| matches!(a, Action::DropOut(_))));
    assert!(r.f.store().is_empty() && r.f.poll_timeout().is_none());
    let actions = r.kernel(say(ACK | FIN, 3, 3, b""));
    assert_eq!(actions, [Action::DropOut(r.id)]);
    let actions = r.peer(say(ACK, 3, 0, b"x"));
    assert_eq!(actions, [Action::DropIn(r.id)]);
    r.attach();
    r.write(b"deaf");
    r.wait();
}

#[test]
fn a_leap_of_our_timestamps_is_stored_before_it_is_seen() {
    let mut r = Rig::with_timestamps();
    let out = |v, seq| Say { ts: Some((v, 100)), ..say(ACK, seq, 0, b"") };
    let actions = r.kernel(out(650, 0));
    assert!(r.passes(&actions), "a small step");
    // An hour later.
    assert_eq!(r.kernel(out(3_600_650, 0)), []);
    let actions = r.stored();
    assert!(r.passes(&actions));
    assert_eq!(r.replica.store().iter().next().unwrap().ts_value, 3_600_650);
}

#[test]
fn processes_that_share_a_turn_and_die_apart() {
    let mut r = Rig::open();
    let (a, b) = (CHANNEL, CHANNEL + 1);
    let shared = tuple(r.port);
    r.f.attach(r.now, b, HANDLE, Origin::Inherited, &shared);
    r.port += 1;
    r.handshake(false);
    r.f.attach(r.now, a, 8, Origin::Accepted, &tuple(r.port));
    // A's turn touches both; B's turn touches the shared one.
    r.writes(a, 1, HANDLE, b"aaa");
    r.writes(a, 1, 8, b"own");
    r.writes(b, 1, HANDLE, b"bbb");
    r.f.process_gone(r.now, a);
    r.stored();
    r.f.turn_end(r.now, b, 1);
    r.f.run_commits(r.now);
    r.stored();
    assert!(r.f.store().iter().all(|s| s.torn), "nobody can tell their bytes apart");
}

#[test]
fn a_snapshot_computes_the_store() {
    let check = |r: &mut Rig| {
        r.stored();
        let mut snapshot = Vec::new();
        r.f.snapshot(&mut snapshot);
        r.stored();
        let mut other = Store::new();
        other.apply_batch(&snapshot).unwrap();
        assert!(other == *r.f.store(), "{other:?}\n{:?}", r.f.store());
    };
    let mut r = Rig::new();
    let (syn, syn_ack) = (r.syn(true), r.syn_ack(true));
    r.inp(&syn);
    r.out(&syn_ack);
    check(&mut r);
    r.peer(Say { ts: Some((102, 201)), ..say(ACK, 0, 0, b"") });
    check(&mut r);
    r.attach();
    r.peer(Say { ts: Some((103, 201)), ..say(ACK, 0, 0, b"GET / and more") });
    r.kernel(Say { ts: Some((203, 103)), ..say(ACK, 0, 14, b"") });
    r.pass(ms(20));
    check(&mut r);
    // An open response of which the peer has acknowledged a part.
    r.read(14);
    r.f.write_of(r.now, CHANNEL, THREAD, HANDLE, b"a part of the file", 19);
    r.wait();
    r.kernel(Say { ts: Some((204, 103)), ..say(ACK, 0, 14, b"a part of the file") });
    check(&mut r);
    r.peer(Say { ts: Some((104, 204)), ..say(ACK, 14, 7, b"") });
    check(&mut r);
    let s = r.session();
    assert_eq!((s.in_done, s.out_base, s.out_acked, s.out_done), (0, 0, 7, 18));
    // Half-closed by the peer, then ended by us, the FIN acknowledged.
    r.peer(Say { ts: Some((105, 204)), ..say(ACK | FIN, 14, 18, b"") });
    check(&mut r);
    r.write(b"rest");
    r.wait();
    r.write(b"!");
    r.close();
    r.wait();
    r.kernel(Say { ts: Some((205, 103)), ..say(ACK | FIN, 18, 14, b"rest!") });
    r.stored();
    r.peer(Say { ts: Some((106, 204)), ..say(ACK, 15, 24, b"") });
    check(&mut r);
    let s = r.session();
    assert!(s.out_fin && s.closed && s.in_fin && s.out_acked == 24 && s.out_done == 23);
}

#[test]
fn a_session_that_ends_while_its_packets_wait() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"one"));
    r.kernel(say(ACK, 0, 3, b""));
    let waiting = r.id;
    r.write(b"never");
    r.kernel(say(ACK, 0, 3, b"never"));
    let held = r.id;
    let actions = r.peer(say(RST, 3, 0, b""));
    assert!(actions.contains(&Action::DropOut(held)));
    // The last word of what was stored may leave; it is an old duplicate.
    assert_eq!(r.stored(), [Action::AcceptOut(waiting)]);
    r.wait();
    r.f.swept(r.now, &tuple(r.port));
    assert!(r.f.store().is_empty());
}

#[test]
fn where_hooks_and_wire_differ_the_wire_is_right() {
    // Written around the hooks, then through them, before the packets come.
    let mut r = Rig::open();
    r.write(b"hook");
    r.kernel(say(ACK, 0, 0, b"rawho"));
    r.kernel(say(ACK, 5, 0, b"ok"));
    r.wait();
    r.stored();
    assert_eq!(r.session().output.iter().copied().collect::<Vec<_>>(), b"rawhook");
    assert!(!r.session().torn);
    assert_eq!((r.session().out_done, r.f.counters().contradicted), (7, 0));
    // Too late: it was committed.
    let mut r = Rig::open();
    r.write(b"hook");
    r.wait();
    r.stored();
    // Not before the replica knows that it is torn.
    assert_eq!(r.kernel(say(ACK, 0, 0, b"rawh")), []);
    let actions = r.stored();
    assert!(r.passes(&actions));
    r.kernel(say(ACK, 4, 0, b"ook"));
    r.stored();
    assert!(r.session().torn && r.replica.store().iter().all(|s| s.torn));
    assert_eq!(r.f.counters().contradicted, 1);
    // It goes on, and stays torn.
    r.write(b"more");
    r.kernel(say(ACK, 7, 0, b"more"));
    r.wait();
    let actions = r.stored();
    assert!(r.passes(&actions) && r.session().torn);
}

/// An acknowledgement that overtakes held output carries an older timestamp than it has itself: its peer would refuse what
/// comes after it (PAWS), and hear it a fifth of a second later.
#[test]
fn what_overtakes_held_output_does_not_make_it_look_old() {
    let mut r = Rig::with_timestamps();
    r.peer(Say { ts: Some((110, 200)), ..say(ACK, 0, 0, b"ping") });
    r.read(4);
    r.write(b"pong");
    let stamped = |ts| Say { ts: Some((ts, 110)), ..say(ACK, 0, 4, b"pong") };
    assert_eq!(r.kernel(stamped(210)), []);
    r.stored();
    r.peer(Say { ts: Some((120, 200)), ..say(ACK, 4, 0, b"more") });
    r.stored();
    r.kernel(Say { ts: Some((215, 120)), ..say(ACK, 4, 8, b"") });
    let acknowledged = r.stored();
    let all: Vec<Action> = acknowledged.into_iter().chain(r.actions.clone()).collect();
    let Some(Action::ModifyOut(_, packet)) = all.iter().find(|a| matches!(a, Action::ModifyOut(..))) else { panic!("{all:?}") };
    let (at, ack, segment) = offsets(packet, false);
    assert_eq!((at, ack), (0, 8));
    let (value, _) = segment.options().timestamps.unwrap();
    assert!(value <= 210, "{value}");
    assert!(segment.checksum_ok());
}

#[test]
fn what_is_sent_in_place_of_an_end_and_contradicts_what_was_announced_is_no_end() {
    let mut r = Rig::open();
    r.write(b"ab");
    r.close();
    r.wait();
    // Another process has it, which no hook saw.
    r.kernel(say(ACK, 0, 0, b"xyz"));
    assert!(!r.session().out_fin && r.session().torn);
    r.stored();
    assert_eq!(r.session().out_done, 3);
}

#[test]
fn a_thread_that_sleeps_lets_its_answer_go() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"ping"));
    r.stored();
    r.read(4);
    r.write(b"pong");
    assert_eq!(r.kernel(say(ACK, 0, 4, b"pong")), []);
    r.pass(ms(1));
    let asleep = Rest::Asleep { times: 1, lock: false };
    r.f.rest(r.now, CHANNEL, THREAD, asleep);
    r.stored();
    assert_eq!(r.session().in_done, 0);
    // Of a thread that has told nothing there is nothing to end.
    r.f.rest(r.now + ms(1), CHANNEL, THREAD + 1, asleep);
    r.f.rest(r.now + ms(1), CHANNEL, THREAD, asleep);
    let actions = r.stored();
    assert!(r.passes(&actions));
    assert_eq!((r.session().in_done, r.session().out_done, r.session().out_base), (4, 4, 4));
}

#[test]
fn what_had_too_much_is_taken_over_when_it_is_at_rest() {
    let mut r = Rig::open();
    let part = [b'x'; 60_000];
    let mut at = 0;
    while at < 5 << 20 {
        r.peer(say(ACK, at, 0, &part));
        r.stored();
        at += part.len() as u64;
        r.read(part.len() as u64);
        r.wait();
    }
    r.stored();
    assert!(r.session().torn && r.session().input.is_empty());
    r.write(b"answer");
    assert_eq!(r.kernel(say(ACK, 0, at, b"answer")), []);
    r.wait();
    let actions = r.stored();
    assert!(r.passes(&actions));
    let s = r.session();
    assert_eq!((s.torn, s.in_done, s.out_done, s.out_base), (false, at, 6, 6));
    // What comes then is kept for the next one.
    r.peer(say(ACK, at, 6, b"more"));
    r.stored();
    r.read(4);
    r.wait();
    r.stored();
    assert_eq!((r.session().torn, input_of(r.session())), (false, b"more".to_vec()));
}
