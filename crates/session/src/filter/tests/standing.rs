//! Hot standby: sessions go on where the program stands that takes over.

use super::takeover::half_way;
use super::*;
use crate::hook::HookEvent;
use crate::standing::Standing;

/// The replica takes over with a program that stands there.
fn promote(r: &mut Rig, read: u64, written: u64, tail: &[u8]) -> (usize, Vec<Action>) {
    r.f = std::mem::replace(&mut r.replica, Filter::new(config()));
    let standing = Standing { tuple: tuple(r.port), read, written, tail: tail.to_vec(), since: 0, shut: false, closed: false };
    let standing = r.f.stand(&[standing]);
    r.f.take_over(r.now);
    (standing, r.drain())
}

#[test]
fn what_the_program_has_read_is_not_given_to_it_again() {
    let mut r = half_way();
    assert_eq!(promote(&mut r, 7, 10, b"").0, 1);
    r.peer(say(ACK, 9, 7, b""));
    let spec = r.restore(true);
    assert_eq!((spec.rcv_nxt, &spec.unsent[..], spec.absorb), (r.session().in_seq(7).0, &b"789"[..], 0));
    let actions = r.recovered();
    let [Action::Inject(kept)] = &actions[..] else { panic!("{actions:?}") };
    let (seq, _, segment) = offsets(kept, true);
    assert_eq!((seq, segment.payload()), (7, &b"in"[..]));
}

#[test]
fn output_that_the_log_does_not_have_comes_from_the_program() {
    let mut r = half_way();
    assert_eq!(promote(&mut r, 9, 13, b"89abc").0, 1);
    r.peer(say(ACK, 9, 7, b""));
    let spec = r.restore(true);
    assert_eq!((spec.rcv_nxt, &spec.unsent[..], spec.absorb), (r.session().in_seq(9).0, &b"789abc"[..], 0));
}

#[test]
fn output_that_the_program_has_yet_to_make_is_absorbed() {
    let mut r = half_way();
    assert_eq!(promote(&mut r, 4, 6, b"45").0, 1);
    r.peer(say(ACK, 9, 7, b""));
    let spec = r.restore(true);
    assert_eq!((&spec.unsent[..], spec.absorb), (&b"789"[..], 4));
}

#[test]
fn a_session_that_cannot_go_on_from_there_is_reset() {
    // Output is missing; input is gone; input that never came.
    for (read, written, tail) in [(9, 20, &b"abc"[..]), (3, 10, b""), (10, 10, b"")] {
        let mut r = half_way();
        let (standing, actions) = promote(&mut r, read, written, tail);
        assert_eq!(standing, 0);
        let reset = |a: &Action| matches!(a, Action::SendPeer(p) if offsets(p, false).2.has(RST));
        assert!(actions.iter().any(reset) && r.f.store().is_empty(), "{actions:?}");
    }
}

#[test]
fn a_turn_that_was_not_over_tears_nothing_where_the_program_goes_on() {
    let torn = || {
        let mut r = half_way();
        // The kernel takes less than the program has to say, and nobody but the program knows the rest.
        r.f.handle(r.now, CHANNEL, HookEvent::Write { thread: 1, handle: HANDLE, taken: 2, asked: 9, bytes: b"xy" });
        r.read(5);
        r.wait();
        r.kernel(say(ACK, 10, 9, b"xy"));
        r.stored();
        assert!(r.session().torn);
        r
    };
    let mut r = torn();
    let (standing, actions) = promote(&mut r, 9, 12, b"xy");
    assert_eq!((standing, actions.len()), (1, 0));
    r.peer(say(ACK, 9, 12, b""));
    assert_eq!(r.restore(true).absorb, 0);
    // By the warm rules nobody can go on with it.
    let mut r = torn();
    r.fail_over();
    assert!(r.f.store().is_empty());
}

#[test]
fn what_the_program_has_ended_is_ended() {
    for (shut, closed) in [(true, false), (false, true)] {
        let mut r = half_way();
        r.f = std::mem::replace(&mut r.replica, Filter::new(config()));
        let standing = Standing { tuple: tuple(r.port), read: 4, written: 12, tail: b"ab".to_vec(), since: 0, shut, closed };
        assert_eq!(r.f.stand(&[standing]), 1);
        r.f.take_over(r.now);
        r.peer(say(ACK, 9, 7, b""));
        let spec = r.restore(true);
        assert_eq!((spec.fin, spec.closed, &spec.unsent[..]), (true, closed, &b"789ab"[..]));
    }
}

#[test]
fn a_program_that_dies_in_the_turn_that_it_took_over_leaves_no_client_without_an_answer() {
    let mut r = half_way();
    promote(&mut r, 9, 10, b"");
    r.peer(say(ACK, 9, 7, b""));
    r.restore(true);
    r.recovered();
    // Nobody has the second request any more: its client is not to wait for ever.
    r.f.recover(r.now);
    assert!(r.f.store().is_empty());
    // When it is answered the session is as good as any.
    let mut r = half_way();
    promote(&mut r, 9, 10, b"");
    r.peer(say(ACK, 9, 7, b""));
    r.restore(true);
    r.recovered();
    r.write(b"abc");
    r.wait();
    assert!(!r.session().torn);
    r.f.recover(r.now);
    assert!(!r.f.store().is_empty());
}

#[test]
fn what_the_program_lacks_is_not_given_to_it_as_new() {
    let without = |mut r: Rig| {
        r.f = std::mem::replace(&mut r.replica, Filter::new(config()));
        assert_eq!(r.f.stand(&[]), 0);
        r.f.take_over(r.now);
        r.drain();
        r
    };
    // In the middle of something.
    assert!(without(half_way()).f.store().is_empty());
    // Its first request is stored, and nobody has read it: the program may not have accepted it yet.
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"hello"));
    r.stored();
    let mut r = without(r);
    r.peer(say(ACK, 5, 0, b""));
    let spec = r.restore(true);
    assert_eq!((spec.rcv_nxt, spec.input_pending), (r.session().in_seq(0).0, true));
}
