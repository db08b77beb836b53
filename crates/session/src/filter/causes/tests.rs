//! The parts, each by itself. What they do together is tested with whole packets in `filter/tests/causes.rs`.

use std::collections::HashMap;
use std::time::Duration;

use super::calls::Calls;
use super::doubts::{Doubts, Shown};
use super::one_by_one::OneByOne;
use super::readers::Readers;
use super::*;
use crate::filter::processes::thread_key;
use crate::tuple::FourTuple;
use crate::Now;

const ALICE: SessionId = 1;
const BOB: SessionId = 2;
const TO_ALICES: SessionId = 11;
const TO_WHOSE: SessionId = 12;

/// Alice and Bob are peers, the application has made one connection for Alice and one for nobody knows whom.
fn owner(id: SessionId) -> Owner {
    match id {
        ALICE | BOB => Owner::Peer,
        TO_ALICES => Owner::Of(ALICE),
        TO_WHOSE => Owner::Nobody,
        _ => Owner::Gone,
    }
}

fn thread(n: u32) -> Thread {
    thread_key(7, n)
}

fn of(session: SessionId, read: bool, sure: bool) -> Caller {
    Caller::Of { session, read, sure }
}

fn upstream() -> SocketAddr {
    "198.51.100.9:7777".parse().unwrap()
}

fn tuple(port: u16) -> FourTuple {
    FourTuple { local: ([192, 0, 2, 200], port).into(), peer: upstream() }
}

fn ms(n: u64) -> Now {
    Duration::from_millis(n)
}

// ---- readers -------------------------------------------------------------------------------------------

#[test]
fn a_thread_connects_for_the_client_that_it_has_read_and_a_process_without_clients_for_itself() {
    let (mut r, doubts) = (Readers::default(), Doubts::default());
    assert_eq!(r.caller(thread(1), &owner, &doubts), Caller::Own);
    r.holds(thread(1), ALICE, false, &owner);
    r.holds(thread(2), BOB, false, &owner);
    // Neither has read: each may have handed its client on.
    assert_eq!(r.caller(thread(1), &owner, &doubts), Caller::Unclear(Some([(ALICE, false), (BOB, false)].into())));
    r.reads(thread(1), ALICE, &owner);
    r.reads(thread(2), BOB, &owner);
    assert_eq!(r.caller(thread(1), &owner, &doubts), of(ALICE, true, true));
    assert!(r.is_aloof(thread(3)) && !r.is_aloof(thread(1)));
}

#[test]
fn one_that_another_thread_has_accepted_is_a_guess() {
    let (mut r, doubts) = (Readers::default(), Doubts::default());
    r.holds(thread(1), ALICE, false, &owner);
    assert_eq!(r.caller(thread(2), &owner, &doubts), of(ALICE, false, false));
    assert!(r.any_fresh(|id| id == ALICE));
    r.touched(ALICE);
    assert_eq!(r.caller(thread(2), &owner, &doubts), Caller::Unclear(None));
    assert!(!r.any_fresh(|_| true));
}

#[test]
fn what_has_gone_somewhere_is_no_source_after_a_wait() {
    let mut r = Readers::default();
    r.holds(thread(1), ALICE, false, &owner);
    r.reads(thread(1), ALICE, &owner);
    let sources = r.sources(thread(1), &owner);
    assert_eq!((&sources.ins[..], &sources.outs[..]), (&[ALICE][..], &[][..]));
    r.waits(thread(1));
    assert_eq!(r.sources(thread(1), &owner).ins, [ALICE], "it went nowhere");
    r.passed_on(thread(1), TO_ALICES, true, sources, &owner);
    assert_eq!(r.sources(thread(1), &owner).ins, []);
}

#[test]
fn a_closed_session_and_one_that_is_over_are_no_sources() {
    let mut r = Readers::default();
    for id in [ALICE, BOB] {
        r.holds(thread(1), id, false, &owner);
    }
    r.closed(7, ALICE);
    assert_eq!(r.sources(thread(1), &owner).ins, [BOB]);
    assert_eq!(r.sources(thread(1), &|_| Owner::Gone).ins, []);
    r.processes_gone(|channel| *channel == 7);
    assert_eq!(r.caller(thread(1), &owner, &Doubts::default()), Caller::Own);
}

// ---- doubts --------------------------------------------------------------------------------------------

#[test]
fn bytes_narrow_a_doubt_down() {
    let mut d = Doubts::default();
    let both: Among = [(ALICE, true), (BOB, false)].into();
    assert_eq!(d.set(TO_WHOSE, Some(both.clone()), false), []);
    let lives: Option<&fn(SessionId) -> bool> = None;
    assert_eq!(d.narrowed(TO_WHOSE, &[], lives), Shown::Nothing);
    assert_eq!(d.narrowed(TO_WHOSE, &[BOB], lives), Shown::Whose(BOB));
    assert_eq!(d.narrowed(TO_WHOSE, &[ALICE, BOB, 3], lives), Shown::OneOf(both.clone()));
    assert_eq!(d.narrowed(TO_WHOSE, &[3], lives), Shown::Shared);
    // Alice has ended: the program may still pass on what she said.
    assert_eq!(d.narrowed(TO_WHOSE, &[BOB], Some(&|id| id == ALICE)), Shown::OneOf(both.clone()));
    let both_and_3: Among = [(ALICE, true), (BOB, false), (3, true)].into();
    assert_eq!(d.narrowed(TO_WHOSE, &[3], Some(&|id| id != 3)), Shown::OneOf(both_and_3), "they all have ended");
    assert!(!d.narrows(TO_WHOSE, &both) && d.narrows(TO_WHOSE, &[(BOB, false)].into()));
    assert!(d.was_read(TO_WHOSE, ALICE) && !d.was_read(TO_WHOSE, BOB));
}

#[test]
fn whoever_no_session_in_doubt_may_belong_to_is_cleared() {
    let mut d = Doubts::default();
    assert_eq!(d.set(TO_WHOSE, Some([(ALICE, true), (BOB, true)].into()), false), []);
    assert_eq!(d.set(13, Some([(BOB, true)].into()), false), []);
    assert_eq!(d.forget(TO_WHOSE), [ALICE]);
    let shared = d.shared_by(13, [ALICE].into_iter());
    assert_eq!(shared, [(ALICE, true), (BOB, true)].into());
    assert_eq!(d.set(13, Some(shared), true), []);
    assert!(d.is_shared(13) && !d.is_anybodys(13));
    assert_eq!(d.forget(13), [ALICE, BOB]);
}

#[test]
fn what_is_anybodys_comes_from_anybody() {
    let mut d = Doubts::default();
    let outs = [TO_ALICES, TO_WHOSE];
    assert_eq!(d.clients_of(&[BOB], &outs, &owner), Some([ALICE, BOB].into()));
    assert_eq!(d.set(TO_WHOSE, None, false), []);
    assert!(d.is_anybodys(TO_WHOSE));
    let lives = Some(&|_| false);
    assert_eq!(d.narrowed(TO_WHOSE, &[BOB], lives), Shown::Whose(BOB));
    d.client_ended();
    assert_eq!(d.narrowed(TO_WHOSE, &[BOB], lives), Shown::Nothing, "what that one had said may be what is passed on");
    assert_eq!(d.narrowed(TO_WHOSE, &[BOB], lives.filter(|_| false)), Shown::Whose(BOB));
    assert_eq!(d.clients_of(&[BOB], &outs, &owner), None);
}

// ---- calls ---------------------------------------------------------------------------------------------

#[test]
fn a_call_is_known_by_its_socket_and_then_by_its_name_until_it_has_made_a_session() {
    let mut c = Calls::default();
    c.lend(5, thread(1), true, of(ALICE, true, true));
    assert!(c.is_lent(5) && !c.is_known(&tuple(1)));
    c.called_by(tuple(1), Some(5));
    assert!(c.is_known(&tuple(1)) && *c.find(&tuple(1)).caller() == of(ALICE, true, true));
    let call = c.opened(&tuple(1), TO_ALICES);
    assert!(call.is_aloof() && call.thread() == thread(1));
    assert!(!c.is_lent(5) && !c.is_known(&tuple(1)));
    assert_eq!(*c.find(&tuple(1)).caller(), Caller::Unclear(None), "nothing is known of a call that nobody made");
    c.lend(6, thread(1), true, Caller::Own);
    c.called_by(tuple(1), Some(6));
    c.called_by(tuple(1), None);
    assert!(!c.is_known(&tuple(1)));
}

#[test]
fn places_are_given_in_the_order_of_calls() {
    let mut c = Calls::default();
    for (socket, port) in [(1, 1), (2, 2), (3, 3)] {
        c.lend(socket, thread(1), false, of(ALICE, true, true));
        c.called_by(tuple(port), Some(socket));
    }
    let third = c.opened(&tuple(3), 13);
    assert_eq!(c.in_order(&third, 13, 1, &[]), []);
    assert!(!c.is_unused(13));
    let first = c.opened(&tuple(1), 11);
    let places: HashMap<SessionId, u32> = c.in_order(&first, 11, 2, &[(13, 1)]).into_iter().collect();
    assert_eq!(places, [(11, 1), (13, 2)].into());
    let second = c.opened(&tuple(2), 12);
    let places: HashMap<SessionId, u32> = c.in_order(&second, 12, 3, &[(11, 1), (13, 2)]).into_iter().collect();
    assert_eq!(places, [(12, 2), (13, 3)].into());
}

#[test]
fn more_than_one_thread_of_the_program_itself_are_too_many() {
    let mut c = Calls::default();
    c.connects_itself(thread(1), upstream(), || true);
    c.connects_itself(thread(2), upstream(), || true);
    assert!(c.several(upstream()));
    c.has_connected(thread(1), upstream());
    c.has_connected(thread(2), upstream());
    // None of those is there any more: whoever connects now is the first.
    c.connects_itself(thread(1), upstream(), || true);
    assert!(!c.several(upstream()));
    c.connects_itself(thread(2), upstream(), || false);
    assert!(c.several(upstream()));
    c.threads_gone(|t| *t == thread(2));
    assert!(!c.several(upstream()));
}

#[test]
fn a_refused_call_has_its_place_until_a_process_dies() {
    let mut c = Calls::default();
    let places = |c: &Calls| c.refused(&(Some(ALICE), upstream())).collect::<Vec<_>>();
    c.lend(1, thread(1), false, of(ALICE, true, true));
    c.called_by(tuple(1), Some(1));
    c.refuse(&tuple(1), upstream());
    assert_eq!(places(&c), [], "others of them wait for nothing");
    c.set_gap(&tuple(1), Some(2));
    c.refuse(&tuple(1), upstream());
    assert_eq!(places(&c), [2]);
    c.threads_gone(|_| false);
    assert_eq!(places(&c), []);
}

// ---- one by one ----------------------------------------------------------------------------------------

#[test]
fn the_next_one_waits_for_the_one_before() {
    let mut o = OneByOne::default();
    let until = o.handed_out(ms(0), ALICE);
    assert_eq!(o.next(ms(0), |_| true, || false), Some(until));
    assert_eq!(o.next(ms(0), |_| false, || false), None, "it has no connects to make");
    assert!(o.may_be_accepted(until) && !o.may_be_accepted(ms(2000)));
    let later = o.wait_on(until);
    assert_eq!((o.until(ALICE), o.until(BOB)), (Some(later), None));
    assert!(!o.taken(later, BOB) && o.taken(later, ALICE));
    assert!(o.show(ALICE) && !o.show(ALICE), "once");
    o.open(BOB);
    assert!(!o.next_may());
    o.open(ALICE);
    assert!(o.next_may() && !o.next_may() && o.until(ALICE).is_none());
}

#[test]
fn a_program_that_accepts_nothing_is_waited_for_once() {
    let mut o = OneByOne::default();
    o.handed_out(ms(0), ALICE);
    o.give_up(ALICE, true);
    o.handed_out(ms(3000), BOB);
    assert!(!o.may_be_accepted(ms(3001)));
    assert!(o.taken(ms(3002), BOB) && o.may_be_accepted(ms(3003)));
}

#[test]
fn a_newcomer_that_is_silent_holds_the_next_one_up() {
    let mut o = OneByOne::default();
    let until = o.newcomer(ms(500)).expect("it was not known");
    assert_eq!(o.newcomer(ms(510)), None);
    assert_eq!(o.next(ms(510), |_| true, || true), Some(until));
    assert_eq!(o.next(ms(510), |_| true, || false), None);
    assert_eq!(o.next(until, |_| true, || true), None);
}

#[test]
fn a_takeover_begins_with_what_was_known_to_be_next() {
    let mut o = OneByOne::default();
    o.begin([5555].into());
    o.set_later(2);
    assert!(o.connects_at_accept(5555) && !o.connects_at_accept(80) && o.any_later());
    o.later_one_may();
    o.later_one_ended();
    assert!(!o.any_later());
    o.forget_sessions();
    assert!(!o.connects_at_accept(5555) && o.next_may());
}
