//! `durability = "async"`: a takeover with a store that is behind the peer.

use super::*;

/// A request stored and answered; then the master dies, and the log behind `stored` with it: what the peer has seen since
/// is in the scripts' hands.
fn lost() -> Rig {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"ping"));
    r.read(4);
    r.write(b"pong");
    r.wait();
    r.kernel(say(ACK, 0, 4, b"pong"));
    r.stored();
    r.peer(say(ACK, 4, 4, b"again"));
    r.stored();
    let mut f = Filter::new(FilterConfig { asynchronous: true, ..config() });
    let mut snapshot = Vec::new();
    r.f.snapshot(&mut snapshot);
    f.replica_apply(&snapshot).unwrap();
    f.take_over(r.now);
    f.probes();
    r.f = f;
    r.drain();
    r
}

impl Rig {
    /// The peer acknowledges, and tells of six bytes from `from` on.
    fn sack(&self, at: u64, ack: u64, from: u64) -> Vec<u8> {
        let mut packet = Vec::new();
        let t = tuple(self.port);
        let mut options = vec![1, 1, 5, 10];
        for at in [from, from + 6] {
            options.extend_from_slice(&seq::at(ISN_OUT, at).0.to_be_bytes());
        }
        let (seq, ack) = (seq::at(ISN_IN, at), seq::at(ISN_OUT, ack));
        Build { source: t.peer, destination: t.local, seq, ack, flags: ACK, window: 1000, timestamps: None, payload: &[] }
            .write_with(&options, &mut packet);
        packet
    }
}

fn id(r: &Rig) -> SessionId {
    r.session().open.session
}

#[test]
fn a_peer_that_is_where_the_store_is_goes_on_at_once() {
    let mut r = lost();
    let session = id(&r);
    assert!(r.f.restore_spec(session, false, 0).is_none(), "what it has to show may show more");
    assert!(r.peer(say(ACK, 9, 4, b"")).contains(&Action::Probed(session)));
    let spec = r.f.restore_spec(session, true, 0).unwrap();
    assert_eq!((spec.snd_una, spec.rcv_nxt), (seq::at(ISN_OUT, 4).0, seq::at(ISN_IN, 4).0));
    assert_eq!(r.f.counters().adopted_sessions, 0);
}

/// Its answer was sent, and the record of that was lost: the request is here, so it is answered again and what is out is
/// swallowed.
#[test]
fn an_acknowledged_answer_is_an_open_response() {
    let mut r = lost();
    let session = id(&r);
    r.peer(say(ACK, 9, 8, b""));
    let s = r.session();
    assert_eq!((s.in_done, s.out_acked, s.out_done, s.out_base), (4, 8, 8, 4));
    let spec = r.f.restore_spec(session, true, 0).unwrap();
    assert_eq!((spec.snd_una, spec.absorb), (seq::at(ISN_OUT, 8).0, 4));
    // The replica that joins later computes the same.
    let mut snapshot = Vec::new();
    r.f.snapshot(&mut snapshot);
    let mut replica = crate::store::Store::new();
    replica.apply_batch(&snapshot).unwrap();
    assert!(replica == *r.f.store());
}

/// Input that the old master acknowledged is lost: a peer does not send it again. What it sends is the lowest.
#[test]
fn lost_input_is_passed_over_with_its_exchange() {
    let mut r = lost();
    let session = id(&r);
    assert!(!r.peer(say(ACK, 30, 12, b"")).contains(&Action::Probed(session)), "it may send from 9 on");
    // Its last segment first (a tail loss probe), then the lowest.
    assert!(!r.peer(say(ACK, 25, 12, b"fffff")).contains(&Action::Probed(session)));
    assert!(!r.peer(say(ACK, 20, 12, b"eeeee")).contains(&Action::Probed(session)));
    assert!(r.pass(ms(1000)).contains(&Action::Probed(session)));
    let s = r.session();
    assert_eq!((s.in_done, s.in_end(), s.out_done, s.out_base), (20, 20, 12, 12));
    let spec = r.f.restore_spec(session, true, 0).unwrap();
    assert_eq!((spec.snd_una, spec.rcv_nxt, spec.absorb), (seq::at(ISN_OUT, 12).0, seq::at(ISN_IN, 20).0, 0));
    r.f.restored(r.now, session, 0);
    r.attach();
    // What it sends again is heard.
    r.f.lift_barrier(r.now);
    r.drain();
    r.peer(say(ACK, 20, 12, b"eeeeefffff"));
    assert_eq!(r.session().in_end(), 30);
    assert_eq!(r.f.counters().adopted_sessions, 1);
}

#[test]
fn an_idle_peer_has_nothing_to_send_again() {
    let mut r = lost();
    let session = id(&r);
    r.peer(say(ACK, 15, 4, b""));
    assert!(r.pass(ms(1000)).contains(&Action::Probed(session)));
    assert_eq!((r.session().in_done, r.session().in_end()), (15, 15));
}

#[test]
fn a_peer_that_sends_again_what_the_store_has_loses_nothing() {
    let mut r = lost();
    let session = id(&r);
    r.peer(say(ACK, 30, 4, b""));
    assert!(r.peer(say(ACK, 9, 4, b"0123456789")).contains(&Action::Probed(session)));
    assert_eq!((r.session().in_done, r.session().in_end()), (4, 9));
}

/// One byte may be all of it; or a keepalive's, and old.
#[test]
fn a_single_byte_counts_if_it_is_pushed() {
    let mut r = lost();
    r.peer(say(ACK, 10, 4, b""));
    assert!(!r.peer(say(ACK, 9, 4, b"x")).contains(&Action::Probed(id(&r))));
    assert!(r.peer(say(ACK | flags::PSH, 9, 4, b"x")).contains(&Action::Probed(id(&r))));
    assert_eq!((r.session().in_done, r.session().in_end()), (4, 9));
}

/// Our probe's byte came twice, says the answer (D-SACK): no hole.
#[test]
fn a_probe_that_came_twice_is_no_hole() {
    let mut r = lost();
    let packet = r.sack(9, 8, 3);
    assert!(r.inp(&packet).contains(&Action::Probed(id(&r))));
    assert_eq!(r.f.counters().torn, 0);
}

/// What lies beyond a hole in what it has of ours would be mixed with other bytes.
#[test]
fn a_hole_that_nobody_can_fill_is_told_by_a_reset() {
    let mut r = lost();
    let packet = r.sack(9, 12, 14);
    let actions = r.inp(&packet);
    assert!(actions.iter().any(|a| matches!(a, Action::SendPeer(p) if Segment::parse(p).unwrap().has(RST))), "{actions:?}");
    assert_eq!((r.f.store().len(), r.f.counters().torn), (0, 1));
}

/// Nothing waits while the replica is in contact; out of contact everything does, for a partner may be master by then.
#[test]
fn nothing_waits_for_a_replica_in_contact() {
    let mut r = Rig::new();
    r.f = Filter::new(FilterConfig { asynchronous: true, ..config() });
    r.f.activate();
    r.f.hold_for_replica(0);
    r.f.replica_heard(r.now, r.now + ms(60));
    r.handshake(false);
    r.attach();
    r.peer(say(ACK, 0, 0, b"ping"));
    r.read(4);
    r.write(b"pong");
    r.wait();
    let out = r.kernel(say(ACK, 0, 4, b"pong"));
    assert!(r.passes(&out));
    // Or it was paused.
    r.now += ms(60);
    r.write(b"more");
    r.wait();
    let out = r.kernel(say(ACK, 4, 4, b"more"));
    assert!(!r.passes(&out));
    let told = r.stored();
    assert!(r.passes(&told));
}

/// Blind, a stranger can say anything; it moves nothing, and the peer's own proof counts.
#[test]
fn what_a_stranger_makes_up_proves_nothing() {
    let far = [(9 + (1 << 29), 4), (9, 4 + (1 << 29)), (9 + (1 << 25), 4 + (1 << 25)), (9 + (1 << 25), 4), (9, 4 + (1 << 25))];
    for (at, ack) in far {
        let mut r = lost();
        let actions = r.peer(say(ACK, at, ack, b"evil"));
        assert!(!actions.contains(&Action::Probed(id(&r))), "{at} {ack}");
        let all = r.pass(ms(3000));
        assert!(!all.contains(&Action::Probed(id(&r))), "{at} {ack}");
        assert!(r.peer(say(ACK, 9, 4, b"")).contains(&Action::Probed(id(&r))));
        let s = r.session();
        assert_eq!((s.in_done, s.in_end(), s.out_done, r.f.counters().adopted_sessions), (4, 9, 4, 0));
    }
    // Old numbers: as if all was there.
    let mut r = lost();
    r.peer(say(ACK, 30, 4, b""));
    let actions = r.peer(Say { ..say(ACK, 9u64.wrapping_sub(1 << 29), 4, b"evil") });
    assert!(!actions.contains(&Action::Probed(id(&r))));
}

/// A peer that echoes a timestamp of ours may be far ahead: what was lost may be much. Its clock counts only then.
#[test]
fn whoever_echoes_our_timestamp_may_be_far_ahead() {
    let ahead = 100_000_000u64;
    for (echo, believed) in [(201, true), (201 + 5000, true), (201 + (1 << 20), false), (201u32.wrapping_sub(1 << 30), false)] {
        let mut r = Rig::with_timestamps();
        r.peer(Say { ts: Some((102, 201)), ..say(ACK, 0, 0, b"ping") });
        r.stored();
        let mut f = Filter::new(FilterConfig { asynchronous: true, ..config() });
        let mut snapshot = Vec::new();
        r.f.snapshot(&mut snapshot);
        f.replica_apply(&snapshot).unwrap();
        f.take_over(r.now);
        r.f = f;
        let session = id(&r);
        r.peer(Say { ts: Some((150, echo)), ..say(ACK, ahead, ahead, b"") });
        let all = r.pass(ms(1000));
        assert_eq!(all.contains(&Action::Probed(session)), believed, "{echo}");
        assert_eq!(r.session().in_done, if believed { ahead } else { 0 });
        r.pass(ms(20));
        r.f.take_batch(&mut Vec::new());
        assert_eq!(r.session().ts_recent, if believed { 150 } else { 102 });
    }
}

/// Behind an end there is nothing, whatever is acknowledged or sent: such a record would not fit the store.
#[test]
fn nothing_is_adopted_behind_an_end() {
    let mut r = Rig::open();
    r.peer(say(ACK | FIN, 0, 0, b"ping"));
    r.read(4);
    r.write(b"pong");
    r.f.shutdown(r.now, CHANNEL, THREAD, HANDLE);
    r.wait();
    r.kernel(say(ACK | FIN, 0, 5, b"pong"));
    r.stored();
    let mut f = Filter::new(FilterConfig { asynchronous: true, ..config() });
    let mut snapshot = Vec::new();
    r.f.snapshot(&mut snapshot);
    f.replica_apply(&snapshot).unwrap();
    f.take_over(r.now);
    r.f = f;
    r.peer(say(ACK, 20, 5, b"more"));
    r.peer(say(ACK, 5, 9, b""));
    assert!(!r.pass(ms(1000)).contains(&Action::Probed(id(&r))));
    assert!(r.peer(say(ACK, 5, 5, b"")).contains(&Action::Probed(id(&r))));
    let s = r.session();
    assert_eq!((s.in_end(), s.in_fin, s.out_done, s.out_fin), (4, true, 4, true));
}
