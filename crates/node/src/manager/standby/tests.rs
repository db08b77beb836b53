use super::*;
use tcpr_session::filter::{Engine, FilterConfig};
use tcpr_session::record::{self, Record};
use tcpr_session::tuple::FourTuple;

use crate::trace_memory::Place;

const LIMIT: u64 = 1 << 20;
const NOW: Now = Duration::ZERO;

fn filter() -> Filter {
    let (ports, outgoing, engine) = (Vec::new(), Vec::new(), Engine::Repair);
    let mut filter =
        Filter::new(FilterConfig { ports, outgoing, max_turn: EVERY, engine, hooked: true, asynchronous: false, data_bytes: 0 });
    filter.activate();
    filter
}

fn leader() -> Standby {
    let mut leader = Standby::new(true, LIMIT);
    leader.program_starts(Role::Starting);
    assert!(leader.take_memory(Role::Master).is_some());
    begins(&leader);
    leader
}

/// Its library records.
fn begins(leader: &Standby) {
    leader.memory.as_ref().unwrap().set_state(state::RECORDING);
}

fn follower() -> Standby {
    let mut follower = Standby::new(true, LIMIT);
    follower.program_starts(Role::Backup);
    assert!(follower.take_memory(Role::Backup).is_some());
    follower
}

fn records(standby: &Standby, bytes: &[u8]) {
    let memory = standby.memory.as_ref().unwrap();
    assert!(memory.append(memory.head(), bytes));
}

fn trace(standby: &Standby) -> Vec<u8> {
    let mut bytes = Vec::new();
    let memory = standby.memory.as_ref().unwrap();
    memory.copy(0, memory.head(), &mut bytes);
    bytes
}

fn catches_up(leader: &mut Standby, filter: &mut Filter) {
    (0..8).for_each(|_| leader.catch_up(NOW, filter, 0));
    assert!(leader.complete);
}

/// What the log has goes to the follower. Returns whether its program is to be started anew.
fn deliver(filter: &mut Filter, to: &mut Standby) -> bool {
    let mut log = Vec::new();
    filter.take_batch(&mut log);
    let (mut rest, mut again) = (&log[..], false);
    while let Some(record) = record::decode(&mut rest).unwrap() {
        if let Record::Trace { life, at, bytes, part } = record {
            again |= to.follow(life, at, bytes, part);
        }
    }
    again
}

#[test]
fn a_follower_that_comes_late_gets_the_whole_trace_in_pieces() {
    let (mut leader, mut follower, mut filter) = (leader(), follower(), filter());
    let bytes: Vec<u8> = (0..PIECE * 2 + 5).map(|i| ((i * 7) >> 3) as u8).collect();
    records(&leader, &bytes);
    leader.begin_shipping();
    leader.ship(NOW, &mut filter);
    assert!(!deliver(&mut filter, &mut follower) && trace(&follower).is_empty(), "it waits for its turn");
    // The life is named at once; the rest waits for room.
    for piece in 0..3 {
        assert!(!leader.complete && !follower.exact, "{piece}");
        leader.catch_up(NOW, &mut filter, AHEAD + 1);
        assert_eq!(leader.shipped, PIECE * piece);
        assert!(!deliver(&mut filter, &mut follower) && follower.life == leader.life);
        leader.catch_up(NOW, &mut filter, 0);
        assert!(!deliver(&mut filter, &mut follower));
    }
    assert!(leader.complete && follower.exact);
    assert!(trace(&follower) == bytes);
    // From now on with each look at what the program has told.
    records(&leader, b"more");
    leader.ship(NOW, &mut filter);
    deliver(&mut filter, &mut follower);
    assert!(trace(&follower).ends_with(b"more"));
}

#[test]
fn an_empty_trace_is_complete() {
    let (mut leader, mut follower, mut filter) = (leader(), follower(), filter());
    leader.begin_shipping();
    catches_up(&mut leader, &mut filter);
    deliver(&mut filter, &mut follower);
    assert!(follower.exact && follower.life == leader.life);
}

#[test]
fn after_a_lost_link_only_what_is_missing_is_sent() {
    let (mut leader, mut follower, mut filter) = (leader(), follower(), filter());
    records(&leader, b"before");
    leader.begin_shipping();
    catches_up(&mut leader, &mut filter);
    deliver(&mut filter, &mut follower);
    records(&leader, b" and after");
    let hear = |leader: &mut Standby, follower: &Standby| {
        let head = follower.memory.as_ref().unwrap().head();
        let (executed, records, state, reason) = (0, 0, state::FOLLOWING, "".into());
        leader.hear(NOW, &Message::Standby { life: follower.life, head, executed, records, state, reason });
    };
    // Told before the log begins, and after.
    for before in [true, false] {
        leader.forget_partner();
        if before {
            hear(&mut leader, &follower);
        }
        leader.begin_shipping();
        hear(&mut leader, &follower);
        assert_eq!(leader.shipped, 6);
    }
    // Or not at all: it is sent again, and taken once.
    leader.forget_partner();
    leader.begin_shipping();
    catches_up(&mut leader, &mut filter);
    assert!(!deliver(&mut filter, &mut follower));
    assert_eq!(trace(&follower), b"before and after");
}

#[test]
fn another_life_of_the_leader_has_the_program_started_anew() {
    let (mut leader, mut follower, mut filter) = (leader(), follower(), filter());
    records(&leader, b"first");
    leader.begin_shipping();
    catches_up(&mut leader, &mut filter);
    assert!(!deliver(&mut filter, &mut follower));
    leader.program_starts(Role::Master);
    assert!(leader.take_memory(Role::Master).is_some());
    begins(&leader);
    records(&leader, b"second");
    leader.begin_shipping();
    catches_up(&mut leader, &mut filter);
    assert!(deliver(&mut filter, &mut follower));
    assert_eq!(trace(&follower), b"second");
    // It begins with the trace that is there.
    follower.program_starts(Role::Backup);
    assert!(follower.take_memory(Role::Backup).is_some() && follower.follows());
    assert_eq!(trace(&follower), b"second");
}

#[test]
fn what_a_leader_cannot_record_nobody_follows() {
    let (mut leader, mut follower, mut filter) = (leader(), follower(), filter());
    leader.begin_shipping();
    catches_up(&mut leader, &mut filter);
    deliver(&mut filter, &mut follower);
    leader.held_elsewhere();
    leader.ship(NOW, &mut filter);
    deliver(&mut filter, &mut follower);
    assert!(follower.cannot_promote().unwrap().contains("another process"));
    assert!(!leader.leads());
    // A program that was started anew for that reason does not follow the same life again, but another one.
    (follower.given_up, follower.broken) = (follower.life, Some(Broken::diverged("why")));
    follower.program_starts(Role::Backup);
    assert!(follower.take_memory(Role::Backup).is_some() && follower.leads());
    assert!(!follower.follow(follower.given_up, 0, b"", TracePart::Complete) && follower.leads());
    assert!(follower.follow(5, 0, b"", TracePart::Complete) && follower.follows());
    // A program that is started again leads a new life.
    leader.program_starts(Role::Master);
    assert!(leader.take_memory(Role::Master).is_some() && leader.leads());
}

#[test]
fn that_nobody_can_follow_is_said_again_over_the_next_link() {
    let (mut leader, mut follower, mut filter) = (leader(), follower(), filter());
    leader.begin_shipping();
    catches_up(&mut leader, &mut filter);
    deliver(&mut filter, &mut follower);
    assert!(follower.exact);
    // Another process came while there was no partner; what says so is lost with the link, too.
    leader.forget_partner();
    leader.held_elsewhere();
    leader.ship(NOW, &mut filter);
    filter.take_batch(&mut Vec::new());
    leader.begin_shipping();
    follower.snapshot_begins();
    leader.catch_up(NOW, &mut filter, 0);
    deliver(&mut filter, &mut follower);
    assert!(follower.cannot_promote().unwrap().contains("another process") && !follower.exact);
}

#[test]
fn a_program_that_could_not_follow_can_be_followed_when_it_leads() {
    let (mut other, mut follower, mut filter) = (follower(), follower(), filter());
    let _ = other.follow(7, 0, b"why", TracePart::End);
    other.note_divergence();
    other.program_starts(Role::Backup);
    assert!(other.take_memory(Role::Backup).is_some() && other.leads());
    begins(&other);
    other.leads_from_here();
    other.begin_shipping();
    catches_up(&mut other, &mut filter);
    deliver(&mut filter, &mut follower);
    assert!(follower.exact && follower.broken.is_none() && follower.life == other.life);
}

#[test]
fn a_program_that_does_not_record_is_not_followed() {
    let (mut leader, mut filter) = (Standby::new(true, LIMIT), filter());
    leader.program_starts(Role::Starting);
    assert!(leader.take_memory(Role::Master).is_some());
    leader.begin_shipping();
    (0..5).for_each(|_| leader.catch_up(NOW, &mut filter, 0));
    assert!(!leader.complete);
    begins(&leader);
    leader.catch_up(NOW, &mut filter, 0);
    assert!(leader.complete);
}

#[test]
fn a_gap_and_a_memory_that_is_full_are_said() {
    let mut follower = follower();
    let _ = follower.follow(7, 0, b"abc", TracePart::Piece);
    let _ = follower.follow(7, 5, b"x", TracePart::Complete);
    assert!(follower.cannot_promote().unwrap().contains("gap"));
    let mut follower = self::follower();
    let _ = follower.follow(7, 0, &vec![0; LIMIT as usize + 1], TracePart::Complete);
    assert!(follower.cannot_promote().unwrap().contains("full"));
}

/// What the follower has executed, and what its manager tells the leader.
fn executes(follower: &Standby, leader: &mut Standby) {
    let memory = follower.memory.as_ref().unwrap();
    memory.set_executed(memory.head());
    memory.set_state(state::FOLLOWING);
    let (state, reason) = follower.state();
    let (head, executed, records) = (memory.head(), memory.executed(), 0);
    leader.hear(NOW, &Message::Standby { life: follower.life, head, executed, records, state, reason: reason.into() });
}

/// A trace many times as long as the memory, behind which a follower stays.
fn long_trace() -> (Standby, Standby, Filter) {
    let (mut leader, mut follower, mut filter) = (leader(), follower(), filter());
    leader.begin_shipping();
    catches_up(&mut leader, &mut filter);
    let mut all = 0u64;
    for piece in 0..100u64 {
        let bytes: Vec<u8> = (0..50_001).map(|i| (((i + piece) * 7) >> 3) as u8).collect();
        records(&leader, &bytes);
        leader.ship(NOW, &mut filter);
        assert!(!deliver(&mut filter, &mut follower));
        let (mine, theirs) = (leader.memory.as_ref().unwrap(), follower.memory.as_ref().unwrap());
        let (mut here, mut there) = (Vec::new(), Vec::new());
        mine.copy(all, mine.head(), &mut here);
        theirs.copy(all, theirs.head(), &mut there);
        assert!(here == bytes && there == bytes, "piece {piece}");
        all += bytes.len() as u64;
        assert_eq!(theirs.head(), all);
        executes(&follower, &mut leader);
        leader.give_up_the_beginning();
    }
    (leader, follower, filter)
}

#[test]
fn a_trace_goes_on_for_as_long_as_somebody_follows() {
    let (leader, mut follower, _) = long_trace();
    for one in [&leader, &follower] {
        let memory = one.memory.as_ref().unwrap();
        let kept = memory.head() - memory.kept();
        assert!((LIMIT / 2..=LIMIT / 4 * 3 + 50_001).contains(&kept), "{kept} bytes are kept");
    }
    assert!(follower.exact && follower.cannot_promote().is_none());
    // It leads, with what it has.
    let memory = follower.memory.as_ref().unwrap();
    memory.set_mode(mode::RECORD);
    memory.set_state(state::LIVE);
    follower.begin_shipping();
    assert_eq!(follower.shipped, follower.memory.as_ref().unwrap().kept());
}

#[test]
fn after_a_lost_link_a_follower_goes_on_with_a_trace_whose_beginning_is_gone() {
    let (mut leader, mut follower, mut filter) = long_trace();
    leader.forget_partner();
    records(&leader, b"and then");
    leader.begin_shipping();
    follower.snapshot_begins();
    catches_up(&mut leader, &mut filter);
    assert!(!deliver(&mut filter, &mut follower) && follower.exact && follower.broken.is_none());
    assert_eq!(follower.memory.as_ref().unwrap().head(), leader.memory.as_ref().unwrap().head());
}

#[test]
fn nobody_begins_to_follow_a_trace_without_its_beginning() {
    let (mut leader, mut follower, mut filter) = long_trace();
    let mut late = self::follower();
    leader.forget_partner();
    leader.begin_shipping();
    catches_up(&mut leader, &mut filter);
    assert!(!deliver(&mut filter, &mut late));
    assert!(late.cannot_promote().unwrap().contains("beginning"));
    assert_eq!(late.state().0, state::FULL);
    // The program behind the leader dies: another one in its place would begin with the first record, too.
    follower.program_starts(Role::Backup);
    assert_eq!((follower.state().0, follower.given_up), (state::FULL, leader.life));
    assert!(follower.take_memory(Role::Backup).is_some() && follower.leads());
}

#[test]
fn without_a_follower_the_trace_is_kept_until_the_memory_is_full() {
    let mut leader = leader();
    records(&leader, &vec![0; LIMIT as usize]);
    for state in [None, Some(state::DIVERGED)] {
        if let Some(state) = state {
            let (life, head, reason) = (leader.life, LIMIT, "".into());
            leader.shipped = LIMIT;
            leader.hear(NOW, &Message::Standby { life, head, executed: head, records: 1, state, reason });
        }
        leader.give_up_the_beginning();
        let memory = leader.memory.as_ref().unwrap();
        assert!(memory.kept() == 0 && !memory.append(memory.head(), b"x"));
    }
}

#[test]
fn connections_and_their_output_come_through_the_memory() {
    let memory = TraceMemory::create(LIMIT).unwrap();
    let tuple = |port| FourTuple { local: "192.0.2.200:5555".parse().unwrap(), peer: ([192, 0, 2, 9], port).into() };
    let place = |port, read, written, shut| Place { tuple: tuple(port), read, written, since: 3, shut, closed: !shut };
    let told = [(place(1, 5, 9, true), &b"tail"[..]), (place(2, 0, u64::MAX, false), b"")];
    assert!(memory.write_standing(told.into_iter()));
    assert_eq!(memory.state(), state::STANDING);
    let back = memory.read_standing();
    assert_eq!(back.len(), 2);
    assert_eq!((back[0].tuple, back[0].read, back[0].written, &back[0].tail[..]), (tuple(1), 5, 9, &b"tail"[..]));
    assert_eq!((back[1].tuple, back[1].written, back[1].tail.len()), (tuple(2), u64::MAX, 0));
    assert_eq!((back[0].shut, back[0].closed, back[1].shut, back[1].closed), (true, false, false, true));
}
