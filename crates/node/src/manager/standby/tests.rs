use super::*;
use tcpr_session::filter::{Engine, FilterConfig};
use tcpr_session::record::{self, Record};
use tcpr_session::tuple::FourTuple;

use super::program_snapshot::APART;
use crate::trace_memory::Place;
use tcpr_session::trace::memory::snapshot;

const LIMIT: u64 = 1 << 20;
const NOW: Now = Duration::ZERO;

fn filter() -> Filter {
    let (ports, outgoing, engine) = (Vec::new(), Vec::new(), Engine::Repair);
    let mut filter =
        Filter::new(FilterConfig { ports, outgoing, max_turn: EVERY, engine, hooked: true, asynchronous: false, data_bytes: 0 });
    filter.activate();
    filter
}

/// The partner's version knows no snapshots, if nothing else is said.
fn leader() -> Standby {
    let mut leader = Standby::new(true, LIMIT);
    leader.snapshots_are_spoken = false;
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
    follower.snapshots_are_spoken = false;
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

/// The follower has not written that, and would be behind.
#[test]
fn output_that_goes_around_the_library_ends_it() {
    let (mut leader, mut follower, mut filter) = (leader(), follower(), filter());
    leader.begin_shipping();
    catches_up(&mut leader, &mut filter);
    // What an earlier program has written does not count.
    leader.note_output_around(7);
    leader.note_output_around(7);
    assert!(leader.unrecorded.is_none());
    leader.note_output_around(8);
    assert!(leader.unrecorded.is_some());
    leader.ship(NOW, &mut filter);
    deliver(&mut filter, &mut follower);
    assert!(follower.cannot_promote().unwrap().contains("dprintf"));
    // A program that is started again leads a new life.
    leader.program_starts(Role::Master);
    assert!(leader.take_memory(Role::Master).is_some() && leader.unrecorded.is_none());
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
    // Where there are snapshots, it begins with one.
    let mut follower = self::follower();
    follower.snapshots_are_spoken = true;
    assert!(follower.follow(7, 0, &vec![0; LIMIT as usize + 1], TracePart::Complete), "the program is started anew");
    follower.program_starts(Role::Backup);
    assert!(follower.take_memory(Role::Backup).is_some() && follower.follows() && follower.life == 0);
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
    leader.snapshots_are_spoken = true;
    leader.catch_up(NOW, &mut filter, 0);
    assert!(!leader.named, "it may be that the partner needs a snapshot");
    executes(&follower, &mut leader);
    catches_up(&mut leader, &mut filter);
    assert!(!deliver(&mut filter, &mut follower) && follower.exact && follower.broken.is_none());
    assert_eq!(follower.memory.as_ref().unwrap().head(), leader.memory.as_ref().unwrap().head());
}

#[test]
fn without_snapshots_nobody_begins_to_follow_a_trace_without_its_beginning() {
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

/// What the leader's manager says to the follower's, of a snapshot. Returns whether the program is to be started with one.
fn program_snapshot(leader: &mut Standby, follower: &mut Standby, now: Now) -> bool {
    let (mut start, mut stored) = (false, None);
    leader.go_on_with_program_snapshot(now, true, &mut |message| match message {
        Message::ProgramSnapshotBegin { life, at } => follower.program_snapshot_begins(*life, *at).unwrap(),
        Message::ProgramSnapshot { bytes } => stored = follower.program_snapshot_goes_on(bytes).unwrap(),
        Message::ProgramSnapshotEnd { life, trouble, .. } if !trouble.is_empty() => {
            follower.no_program_snapshot(*life, trouble.to_string())
        }
        Message::ProgramSnapshotEnd { life, bytes, .. } => start |= follower.program_snapshot_ends(*life, *bytes),
        other => panic!("{other:?}"),
    });
    stored.into_iter().for_each(|(life, bytes)| leader.program_snapshot_stored(life, bytes));
    start
}

/// The partner, whose version knows snapshots, has nothing.
fn has_nothing(leader: &mut Standby) {
    leader.snapshots_are_spoken = true;
    let (state, reason) = (state::STARTING, "".into());
    leader.hear(NOW, &Message::Standby { life: 0, head: 0, executed: 0, records: 0, state, reason });
}

#[test]
fn who_cannot_begin_with_the_trace_begins_with_a_snapshot() {
    let (mut leader, _, mut filter) = long_trace();
    let mut late = self::follower();
    late.snapshots_are_spoken = true;
    leader.forget_partner();
    leader.begin_shipping();
    has_nothing(&mut leader);
    // A program that leads on has recorded more when the snapshot begins, and what the log has of that comes first.
    let before = leader.memory.as_ref().unwrap().head();
    assert!(!program_snapshot(&mut leader, &mut late, NOW));
    assert_eq!(leader.memory.as_ref().unwrap().snapshot_state(), snapshot::ASKED);
    leader.catch_up(NOW, &mut filter, 0);
    assert!(!deliver(&mut filter, &mut late) && late.life == 0, "the trace waits for the snapshot");
    records(&leader, b"behind it");
    let bytes: Vec<u8> = (0..300_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
    leader.memory.as_ref().unwrap().write_snapshot(snapshot::WRITING, before, &bytes[..200_000]);
    let starts = (0..20).any(|n| {
        if n == 10 {
            leader.memory.as_ref().unwrap().write_snapshot(snapshot::DONE, before, &bytes[200_000..]);
        }
        leader.catch_up(NOW, &mut filter, 0);
        let again = deliver(&mut filter, &mut late);
        assert!(!again && late.broken.is_none(), "{:?}", late.broken);
        program_snapshot(&mut leader, &mut late, NOW)
    });
    assert!(starts && leader.complete && late.exact && late.life == leader.life);
    let theirs = late.memory.as_ref().unwrap();
    assert_eq!((theirs.kept(), theirs.head(), theirs.executed()), (before, before + 9, before));
    // The program is started with it.
    late.program_starts(Role::Backup);
    let fd = late.program_snapshot().expect("a snapshot");
    assert!(late.take_memory(Role::Backup).is_some() && late.follows());
    let mut there = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::open(format!("/proc/self/fd/{fd}")).unwrap(), &mut there).unwrap();
    assert!(there == bytes);
    assert!(late.cannot_promote().is_some(), "not before it follows");
    executes(&late, &mut leader);
    assert!(late.cannot_promote().is_none());
    late.forget_read_program_snapshot();
    assert!(late.program_snapshot().is_none());
    // One that is started again waits for another snapshot, and what the log says means nothing to it meanwhile.
    late.program_starts(Role::Backup);
    assert!(late.take_memory(Role::Backup).is_some() && late.follows() && late.life == 0);
    records(&leader, b", and more");
    leader.ship(NOW, &mut filter);
    assert!(!deliver(&mut filter, &mut late) && late.broken.is_none());
    has_nothing(&mut leader);
    assert!(!program_snapshot(&mut leader, &mut late, NOW));
    assert_eq!(leader.memory.as_ref().unwrap().snapshot_state(), snapshot::NONE, "not so soon");
    assert!(!program_snapshot(&mut leader, &mut late, NOW + 5 * APART));
    assert_eq!(leader.memory.as_ref().unwrap().snapshot_state(), snapshot::ASKED);
}

#[test]
fn a_program_of_which_no_snapshot_can_be_made_is_followed_from_its_beginning_or_not_at_all() {
    for beginning_is_there in [true, false] {
        let (mut leader, mut late, mut filter) = match beginning_is_there {
            true => (self::leader(), follower(), filter()),
            false => {
                let (leader, _, filter) = long_trace();
                (leader, follower(), filter)
            }
        };
        if beginning_is_there {
            // A longer way than that of a snapshot.
            records(&leader, &vec![1; LIMIT as usize / 8]);
        }
        leader.forget_partner();
        leader.begin_shipping();
        has_nothing(&mut leader);
        program_snapshot(&mut leader, &mut late, NOW);
        let memory = leader.memory.as_ref().unwrap();
        assert_eq!(memory.snapshot_state(), snapshot::ASKED);
        memory.ask_for_snapshot();
        memory.write_snapshot(snapshot::REFUSED, 0, b"");
        program_snapshot(&mut leader, &mut late, NOW);
        assert!(leader.snapshots.outgoing.is_none() && leader.leads() && leader.broken.is_none());
        for _ in 0..100 {
            leader.catch_up(NOW, &mut filter, 0);
            deliver(&mut filter, &mut late);
        }
        match beginning_is_there {
            true => assert!(leader.complete && late.exact && late.broken.is_none()),
            false => {
                assert_eq!(late.state().0, state::FULL);
                assert!(late.state().1.contains("no snapshot"), "{}", late.state().1);
                late.note_divergence();
                late.program_starts(Role::Backup);
                assert!(late.take_memory(Role::Backup).is_some() && late.leads());
                later_there_is_one(leader, late, filter);
            }
        }
    }
}

/// What was in the way of a snapshot is gone.
fn later_there_is_one(mut leader: Standby, mut late: Standby, mut filter: Filter) {
    let (state, reason) = late.state();
    let report = Message::Standby { life: leader.life, head: 0, executed: 0, records: 0, state, reason: reason.into() };
    leader.hear(NOW, &report);
    // The trace does not fill meanwhile, and goes to nobody.
    let written = filter.log().written();
    for _ in 0..100 {
        records(&leader, &vec![1; LIMIT as usize / 20]);
        leader.ship(NOW, &mut filter);
        leader.catch_up(NOW, &mut filter, 0);
        leader.give_up_the_beginning();
    }
    assert_eq!(filter.log().written(), written);
    assert!(!program_snapshot(&mut leader, &mut late, NOW + APART));
    let memory = leader.memory.as_ref().unwrap();
    assert_ne!(memory.snapshot_state(), snapshot::ASKED, "not so soon");
    assert!(!program_snapshot(&mut leader, &mut late, NOW + 5 * APART));
    let memory = leader.memory.as_ref().unwrap();
    assert_eq!(memory.snapshot_state(), snapshot::ASKED);
    memory.write_snapshot(snapshot::DONE, memory.head(), b"the program");
    let starts = (0..9).any(|_| program_snapshot(&mut leader, &mut late, NOW + 5 * APART));
    assert!(starts && late.life == leader.life && late.broken.is_none());
    late.program_starts(Role::Backup);
    assert!(late.program_snapshot().is_some() && late.take_memory(Role::Backup).is_some());
    let head = late.memory.as_ref().unwrap().head();
    let (executed, state, reason) = (head, state::FOLLOWING, "".into());
    leader.hear(NOW, &Message::Standby { life: leader.life, head, executed, records: 0, state, reason });
    catches_up(&mut leader, &mut filter);
    assert!(!deliver(&mut filter, &mut late) && late.exact && late.follows());
    // One that diverges is lost as before.
    let (life, head) = (leader.life, leader.memory.as_ref().unwrap().kept());
    let report = Message::Standby { life, head: head - 1, executed: 0, records: 0, state: state::DIVERGED, reason: "x".into() };
    leader.hear(NOW, &report);
    assert!(!program_snapshot(&mut leader, &mut late, NOW + 500 * APART) && leader.snapshots.outgoing.is_none());
}

#[test]
fn a_follower_that_stands_still_is_not_close() {
    let (far, second) = (NEAR + 1, Duration::from_secs(1));
    let joining = Lag::Joining.hears(NOW, 0, far);
    assert!(joining == Lag::Joining && !joining.is_close(NOW));
    // Close is good enough at first, and as long as it goes on.
    let mut lag = joining.hears(NOW, 1, far);
    for n in 0..20 {
        lag = lag.hears(NOW + second * n, u64::from(n) * far, u64::from(n + 1) * far);
        assert!(lag.is_close(NOW + second * n), "{lag:?}");
    }
    assert!(lag.time(NOW + 20 * second) <= 2 * second, "{lag:?}");
    for n in 20..30 {
        lag = lag.hears(NOW + second * n, 19 * far, u64::from(n + 1) * far);
    }
    assert!(!lag.is_close(NOW + 30 * second), "{lag:?}");
    // Who has executed all is close for as long as nothing more comes.
    let again = lag.hears(NOW + 30 * second, 31 * far, 31 * far);
    assert!(again == Lag::None && again.is_close(NOW + 3000 * second));
}

/// A leader, and a follower that has the beginning of a snapshot; and where the trace was.
fn half_a_snapshot() -> (Standby, Standby, u64) {
    let (mut leader, _, _) = long_trace();
    let mut late = self::follower();
    late.snapshots_are_spoken = true;
    leader.forget_partner();
    leader.begin_shipping();
    has_nothing(&mut leader);
    program_snapshot(&mut leader, &mut late, NOW);
    let at = leader.memory.as_ref().unwrap().head();
    leader.memory.as_ref().unwrap().write_snapshot(snapshot::WRITING, at, &[1; 1000]);
    program_snapshot(&mut leader, &mut late, NOW);
    (leader, late, at)
}

#[test]
fn a_snapshot_that_ends_with_the_link_leaves_the_leader_as_it_was() {
    let (mut leader, mut late, _) = half_a_snapshot();
    assert!(late.snapshots.incoming.is_some() && late.life == leader.life);
    leader.forget_partner();
    late.forget_partner();
    assert_eq!(leader.memory.as_ref().unwrap().snapshot_state(), snapshot::NONE);
    assert!(leader.leads() && leader.broken.is_none() && late.snapshots.incoming.is_none());
    // It begins anew over the next link.
    assert!(!late.forget_half_program_snapshot(), "no program was left out");
    late.decide(Role::Backup);
    assert!(late.life == 0 && late.follows());
    leader.begin_shipping();
    has_nothing(&mut leader);
    program_snapshot(&mut leader, &mut late, NOW + 5 * APART);
    assert_eq!(leader.memory.as_ref().unwrap().snapshot_state(), snapshot::ASKED);
}

/// What was there before is still being killed when the snapshot begins to come.
#[test]
fn a_program_that_starts_while_a_snapshot_comes_does_not_lose_it() {
    let (mut leader, mut late, at) = half_a_snapshot();
    late.program_starts(Role::Backup);
    assert!(late.snapshots.incoming.is_some() && late.life == leader.life && !late.taken);
    // Nobody begins in the middle of the trace. Who was told so is started anew if the snapshot is lost, too.
    assert!(late.take_memory(Role::Backup).is_none());
    assert!(!late.forget_half_program_snapshot(), "the rest of it comes");
    let mut cut = self::follower();
    cut.snapshots_are_spoken = true;
    cut.program_snapshot_begins(leader.life, at).unwrap();
    assert!(cut.take_memory(Role::Backup).is_none());
    cut.forget_partner();
    assert!(cut.forget_half_program_snapshot() && !cut.forget_half_program_snapshot());
    assert!(cut.take_memory(Role::Backup).is_some(), "the next program can follow");
    // It was too slow once more: another snapshot may follow, for this one is of no use.
    let report = |life| Message::Standby { life, head: at, executed: at, records: 0, state: state::FOLLOWING, reason: "".into() };
    leader.hear(NOW, &report(leader.life));
    assert!(leader.snapshots.outgoing.is_some());
    leader.hear(NOW, &report(0));
    assert!(leader.snapshots.outgoing.is_none() && leader.snapshots.refused.is_none());
}

#[test]
fn a_snapshot_at_an_impossible_position_is_refused() {
    let mut late = self::follower();
    assert!(late.program_snapshot_begins(7, u64::MAX).is_err() && late.snapshots.incoming.is_none());
    assert!(late.program_snapshot_begins(7, u64::MAX / 2).is_ok());
    assert_eq!(late.memory.as_ref().unwrap().head(), u64::MAX / 2);
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
