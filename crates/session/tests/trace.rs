//! Hot standby with made-up programs in a made-up world: a leader is recorded, its trace is cut where it dies, a follower
//! executes what is left, is promoted, and goes on. Its memory and its streams must be those of a run that never failed.
//!
//! `TCPR_TRACE_SEED=n` replays one case, `TCPR_TRACE_CASES=n` and `TCPR_TRACE_BASE=n` say which are tried.

#[path = "world/rng.rs"]
mod rng;

#[path = "trace/machine.rs"]
mod machine;
#[path = "trace/program.rs"]
mod program;

use std::rc::Rc;

use machine::{follow, rest, Ended, Leader, World};
use program::{Process, Program, Tricks};
use rng::Rng;
use tcpr_session::trace::{Call, Cursor, Record};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn cases(what: &str, default: u64, run: impl Fn(u64)) {
    if let Some(seed) = number("TCPR_TRACE_SEED") {
        return run(seed);
    }
    let (base, cases) = (number("TCPR_TRACE_BASE").unwrap_or(1), number("TCPR_TRACE_CASES").unwrap_or(default));
    for seed in base..base + cases {
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed))) {
            eprintln!("failed: TCPR_TRACE_SEED={seed} ({what})");
            std::panic::resume_unwind(panic);
        }
    }
}

/// A leader at its start.
fn leader(seed: u64, interleaved: bool) -> Leader {
    let program = Rc::new(Program::random(&mut Rng(seed)));
    Leader::new(Process::new(program), World::new(seed ^ 0x5eed), interleaved)
}

/// Executes a trace that ends somewhere.
fn follower(program: &Rc<Program>, trace: &[u8], rng: &mut Rng) -> (Process, Cursor) {
    let (process, cursor, ended) = follow(Process::new(program.clone()), Cursor::default(), trace, rng);
    assert_eq!(ended, Ended::AtEnd);
    (process, cursor)
}

/// Wherever the trace is cut, also within a record, and whether the call that was under way has had its effect on the world:
/// the rest of the run is the rest of the run that never failed.
#[test]
fn a_promoted_program_goes_on_as_if_nothing_had_failed() {
    cases("exact", 250, |seed| {
        let mut whole = leader(seed, false);
        whole.run();
        let rng = &mut Rng(seed ^ 0xc07);
        let records = whole.cursor.records();
        // Of short runs each boundary.
        let cuts: Vec<u64> =
            if records < 25 { (0..=records).collect() } else { (0..6).map(|_| rng.below(records + 1)).collect() };
        for cut in cuts {
            let mut dying = leader(seed, false);
            dying.run_until(cut);
            let boundary = dying.trace.len();
            let mut world = dying.world.clone();
            if rng.percent(50) {
                // The last call had its effect, and no record.
                dying.perform_one();
                world.after_the_death_of(dying.world);
            }
            // Of the next record a piece may have arrived.
            let mut next = dying.cursor.clone();
            let torn = match next.peek(rest(&next, &whole.trace)) {
                Ok(Some(_)) => {
                    next.executed();
                    rng.below(next.position() - boundary as u64) as usize
                }
                other => {
                    assert_eq!(other, Ok(None));
                    0
                }
            };
            let (process, cursor) = follower(&dying.process.program, &whole.trace[..boundary + torn], rng);
            assert_eq!((cursor.position(), cursor.records()), (boundary as u64, cut));
            let mut promoted = Leader::promoted(process, world, cursor, whole.trace[..boundary].to_vec(), false);
            promoted.run();
            assert!(promoted.process == whole.process, "cut at {cut} of {records}: another memory");
            assert!(promoted.world.sent == whole.world.sent, "cut at {cut} of {records}: other streams");
            promoted.world.check_streams(&promoted.process);
            let (third, _) = follower(&promoted.process.program, &promoted.trace, rng);
            assert!(third == whole.process, "cut at {cut} of {records}: the next follower has another memory");
        }
    });
}

/// Threads run in any order, and a call's effect comes before its record: whatever is lost with the leader, each follower is
/// promoted to a program that fits its peers, again and again.
#[test]
fn members_that_die_one_after_another_keep_memory_and_streams() {
    cases("chain", 600, |seed| {
        let rng = &mut Rng(seed ^ 0xc4a1);
        let mut leader = leader(seed, true);
        for _ in 0..rng.below(4) {
            leader.run_steps(rng.below(200));
            let program = leader.process.program.clone();
            let (process, cursor) = follower(&program, &leader.trace, rng);
            assert_eq!(cursor.records(), leader.cursor.records());
            let mut world = leader.world.clone();
            world.after_the_death_of(leader.world);
            leader = Leader::promoted(process, world, cursor, leader.trace, true);
        }
        leader.run();
        leader.world.check_streams(&leader.process);
        let (last, cursor) = follower(&leader.process.program, &leader.trace, rng);
        assert_eq!(cursor.position(), leader.trace.len() as u64);
        assert!(last == leader.process, "another memory");
    });
}

/// A program that writes something else is found at the record where it does.
#[test]
fn another_program_diverges() {
    let mut found = 0;
    for seed in 1..200 {
        let mut leader = leader(seed, false);
        leader.run();
        let process = Process::new(leader.process.program.clone()).with(Tricks { other_output: true, ..Tricks::default() });
        let (_, cursor, ended) = follow(process, Cursor::default(), &leader.trace, &mut Rng(seed));
        match ended {
            Ended::Diverged(words) => {
                found += 1;
                assert!(words.starts_with(&format!("record {}: the trace says: thread ", cursor.records())), "{words}");
                assert!(
                    words.contains("write of descriptor ") && words.contains("; the program writes other bytes: "),
                    "{words}"
                );
            }
            Ended::AtEnd => assert!(leader.process.written.iter().all(|written| *written == 0), "it has written something else"),
        }
    }
    assert!(found > 100, "{found}");
}

/// Threads that share memory without a lock are what a trace cannot have: these tests would notice.
#[test]
fn threads_that_race_are_noticed() {
    let (mut diverged, mut different) = (0, 0);
    for seed in 1..300 {
        let tricks = Tricks { no_locks: true, ..Tricks::default() };
        let program = Rc::new(Program::random(&mut Rng(seed)));
        let mut leader = Leader::new(Process::new(program.clone()).with(tricks), World::new(seed), true);
        leader.run();
        let (process, _, ended) = follow(Process::new(program).with(tricks), Cursor::default(), &leader.trace, &mut Rng(seed));
        match ended {
            Ended::Diverged(_) => diverged += 1,
            Ended::AtEnd => different += u32::from(process != leader.process),
        }
    }
    assert!(diverged > 20 && diverged + different > 50, "{diverged} diverged, {different} ended with another memory");
}

/// Whatever stands in the trace, a follower ends, or waits for more.
#[test]
fn a_trace_that_was_changed_is_followed_to_some_end() {
    cases("changed", 400, |seed| {
        let rng = &mut Rng(seed ^ 0xbad);
        let mut leader = leader(seed, true);
        leader.run();
        for _ in 0..4 {
            let mut trace = leader.trace.clone();
            for _ in 0..rng.range(1, 3) {
                let at = rng.below(trace.len() as u64) as usize;
                trace[at] ^= 1 << rng.below(8);
            }
            follow(Process::new(leader.process.program.clone()), Cursor::default(), &trace, rng);
        }
    });
}

/// The trace is as short as the design counts on.
#[test]
fn a_record_costs_a_few_bytes() {
    let mut cursor = Cursor::default();
    let mut room = [0; 4096];
    let mut at = 0;
    // What an event loop does for a request, times as they go on.
    for request in 0..10i64 {
        let mut one = |call, fd, result, data: &[u8]| {
            let record = Record { thread: 0, call, fd, result, data };
            at += cursor.append(&record, &[data], &mut room[at..]).expect("there is room");
        };
        one(Call::EpollWait, 4, 1, &[1; 12]);
        for step in 0..9 {
            one(Call::Clock, 0, 1_700_000_000_000_000_000 + request * 400_000 + step * 900, b"");
            one(Call::Clock, 1, 5_000_000_000_000 + request * 400_000 + step * 900, b"");
        }
        one(Call::Read, 9, 40, &[b'x'; 40]);
        one(Call::Write, 9, 120, &[7; 8]);
        one(Call::Read, 9, -11, b"");
    }
    let payload = 10 * (12 + 40 + 8);
    assert!(at - payload < 10 * 22 * 4, "{at} bytes for {} records", cursor.records());
}
