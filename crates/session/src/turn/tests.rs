use super::*;

const MS: Duration = Duration::from_millis(1);
const T: Thread = 1;
const T2: Thread = 2;
/// A thread of another process.
const U: Thread = 1 << 32;

fn policy() -> TurnPolicy {
    TurnPolicy::new(50 * MS)
}

fn with(port: PortPolicy, sessions: &[SessionId]) -> TurnPolicy {
    let mut p = policy();
    for s in sessions {
        p.open(*s, port, 0, 0, 0);
    }
    p
}

fn commits(p: &mut TurnPolicy) -> Vec<Vec<CommitEntry>> {
    let mut out = Commit::default();
    let mut all = Vec::new();
    while p.poll_commit(&mut out) {
        let mut entries = out.entries.clone();
        entries.sort_by_key(|e| e.session);
        all.push(entries);
    }
    all
}

fn one(p: &mut TurnPolicy) -> Vec<CommitEntry> {
    let mut all = commits(p);
    assert_eq!(all.len(), 1, "{all:?}");
    all.pop().unwrap()
}

fn entry(session: SessionId, in_done: u64, out_done: u64, out_base: u64) -> CommitEntry {
    CommitEntry { session, in_done, out_done, out_base, fin: false, torn: false }
}

fn torn(e: CommitEntry) -> CommitEntry {
    CommitEntry { torn: true, ..e }
}

fn fin(e: CommitEntry) -> CommitEntry {
    CommitEntry { fin: true, ..e }
}

fn lines() -> PortPolicy {
    PortPolicy::framed(Framing::Lines)
}

fn discard() -> PortPolicy {
    PortPolicy { unanswered: Unanswered::Discard, ..PortPolicy::default() }
}

#[test]
fn a_turn_commits_when_it_ends() {
    let mut p = with(PortPolicy::default(), &[7]);
    p.read(MS, T, 7, 10);
    p.write(MS, T, 7, 4, false);
    assert!(p.pending(7) && p.has_uncommitted() && !p.quiescent(7));
    assert_eq!(commits(&mut p), vec![] as Vec<Vec<CommitEntry>>);
    p.turn_end(MS, T);
    assert!(p.has_uncommitted() && !p.pending(7));
    assert_eq!(one(&mut p), vec![entry(7, 10, 4, 4)]);
    assert!(!p.has_uncommitted() && p.quiescent(7));
    p.turn_end(MS, T);
    assert!(commits(&mut p).is_empty());
}

#[test]
fn unanswered_input_is_not_done() {
    let mut p = with(PortPolicy::default(), &[1, 2, 3]);
    p.read(MS, T, 1, 5);
    p.turn_end(MS, T);
    assert!(commits(&mut p).is_empty());
    assert_eq!(p.in_read(1), Some(5));
    // The wait ended the turn: output to another session is no answer any more.
    p.write(MS, T, 2, 3, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(2, 0, 3, 3)]);
    // Reading another session ends it as well; a write answers the newest.
    p.read(MS, T, 1, 5);
    p.read(MS, T, 2, 6);
    p.write(MS, T, 3, 1, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(2, 6, 3, 3), entry(3, 0, 1, 1)]);
    // Anybody's later output to the same session answers all of it.
    p.write(MS, T2, 1, 2, false);
    p.turn_end(MS, T2);
    assert_eq!(one(&mut p), vec![entry(1, 10, 2, 2)]);
}

#[test]
fn the_end_of_a_session_answers_no_other() {
    // A thread hands what it read to another one, which will answer; and closes a session whose peer has left.
    let mut p = with(PortPolicy::default(), &[1, 2]);
    p.read(MS, T, 1, 5);
    p.shutdown(MS, T, 2);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![fin(entry(2, 0, 0, 0))]);
    p.write(MS, T2, 1, 3, false);
    p.turn_end(MS, T2);
    assert_eq!(one(&mut p), vec![entry(1, 5, 3, 3)]);
}

#[test]
fn discarded_input_is_done_at_the_end_of_the_turn() {
    let mut p = with(discard(), &[1]);
    p.read(MS, T, 1, 5);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 5, 0, 0)]);
}

#[test]
fn framed_input_is_done_by_messages() {
    let mut p = with(PortPolicy::framed(Framing::Lines), &[1]);
    p.input(1, 0, b"one\ntwo\nthr");
    p.read(MS, T, 1, 6);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 4, 0, 0)]);
    p.read(MS, T, 1, 5);
    p.write(MS, T, 1, 3, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 8, 3, 3)]);

    let port = PortPolicy { unanswered: Unanswered::Redeliver, ..PortPolicy::framed(Framing::Lines) };
    let mut p = with(port, &[1]);
    p.input(1, 0, b"one\ntwo\nthr");
    p.read(MS, T, 1, 11);
    p.turn_end(MS, T);
    assert!(commits(&mut p).is_empty());
    p.write(MS, T, 1, 1, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 8, 1, 1)]);
}

#[test]
fn consumed_input_is_done_and_nothing_is_inferred() {
    let mut p = with(PortPolicy::default(), &[1]);
    p.consume(T, 1, 0);
    p.read(MS, T, 1, 10);
    p.write(MS, T, 1, 2, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 0, 2, 2)]);
    p.consume(T, 1, 4);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 4, 2, 2)]);
    p.consume(T, 1, u64::MAX);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 10, 2, 2)]);
}

#[test]
fn turns_over_the_same_session_commit_as_one() {
    let mut p = with(PortPolicy::default(), &[1, 2, 3, 4]);
    p.read(MS, T, 1, 1);
    p.write(MS, T, 2, 1, false);
    p.read(MS, T2, 3, 1);
    p.write(MS, T2, 4, 1, false);
    p.write(MS, T2, 2, 1, false);
    p.turn_end(MS, T2);
    assert!(commits(&mut p).is_empty() && p.pending(4));
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 1, 0, 0), entry(2, 0, 2, 2), entry(3, 1, 0, 0), entry(4, 0, 1, 1)]);
    // Nothing in common: one commit each.
    p.write(MS, T, 1, 1, false);
    p.write(MS, T2, 2, 1, false);
    p.turn_end(MS, T2);
    assert_eq!(one(&mut p), vec![entry(2, 0, 3, 3)]);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 1, 1, 1)]);
}

#[test]
fn a_short_answer_is_open_until_a_write_is_whole() {
    let mut p = with(PortPolicy::default(), &[1]);
    p.read(MS, T, 1, 10);
    p.write(MS, T, 1, 100, false);
    p.write(MS, T, 1, 50, true);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 0, 150, 0)]);
    p.write(MS, T, 1, 0, true);
    p.turn_end(MS, T);
    assert!(commits(&mut p).is_empty());
    // More input, read while the answer is open, waits with it.
    p.read(MS, T, 1, 5);
    p.turn_end(MS, T);
    p.write(MS, T, 1, 30, true);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 0, 180, 0)]);
    p.write(MS, T, 1, 20, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 15, 200, 200)]);
    assert_eq!(p.counters().open_commits, 2);
    assert_eq!(p.counters().torn, 0);
}

#[test]
fn consumption_waits_for_an_open_answer() {
    let mut p = with(PortPolicy::default(), &[1]);
    p.read(MS, T, 1, 10);
    p.consume(T, 1, 8);
    p.write(MS, T, 1, 50, true);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 0, 50, 0)]);
    p.write(MS, T, 1, 1, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 8, 51, 51)]);
    // Consumed after the answer is out, as a careful program does it: it was open all the same.
    p.read(MS, T, 1, 2);
    p.write(MS, T, 1, 5, true);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 8, 56, 51)]);
}

#[test]
fn a_short_write_among_several_sessions_tears_it() {
    let mut p = with(PortPolicy::default(), &[1, 2]);
    p.read(MS, T, 1, 10);
    p.write(MS, T, 1, 5, false);
    p.write(MS, T, 2, 3, true);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 10, 5, 5), torn(entry(2, 0, 3, 3))]);
    // Still short, now alone: what was lost stays lost.
    p.read(MS, T, 2, 4);
    p.write(MS, T, 2, 1, true);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![torn(entry(2, 4, 4, 4))]);
    p.write(MS, T, 2, 1, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(2, 4, 5, 5)]);
    assert_eq!(p.counters().torn, 1);
}

#[test]
fn a_short_push_that_nothing_would_repeat_is_torn() {
    let mut p = with(PortPolicy::default(), &[1]);
    // A greeting comes again: whoever connects gets it.
    p.write(MS, T, 1, 5, true);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 0, 5, 0)]);
    p.write(MS, T, 1, 5, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 0, 10, 10)]);
    // A push in mid-stream does not.
    p.write(MS, T, 1, 5, true);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![torn(entry(1, 0, 15, 15))]);
}

#[test]
fn too_much_unanswered_input_tears() {
    let port = PortPolicy { max_unanswered_bytes: 100, ..PortPolicy::default() };
    let mut p = with(port, &[1]);
    p.read(MS, T, 1, 100);
    p.turn_end(MS, T);
    assert!(commits(&mut p).is_empty());
    p.read(MS, T, 1, 1);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![torn(entry(1, 101, 0, 0))]);
    p.write(MS, T, 1, 5, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 101, 5, 5)]);
    assert_eq!(p.counters().torn, 1);

    // A message that is answered in the same turn may be larger.
    let mut p = with(port, &[1]);
    p.read(MS, T, 1, 1000);
    p.write(MS, T, 1, 1, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 1000, 1, 1)]);
    // A thread that reads without ever waiting is stopped by the clock.
    let mut p = with(PortPolicy { unanswered: Unanswered::Discard, ..port }, &[1]);
    p.read(MS, T, 1, 1000);
    p.handle_timeout(51 * MS);
    assert_eq!(one(&mut p)[0].in_done, 1000);
}

#[test]
fn a_session_at_rest_is_protected_again_whatever_it_exceeded() {
    let port = PortPolicy { max_unanswered_bytes: 100, ..PortPolicy::default() };
    let mut p = with(port, &[1]);
    p.read(MS, T, 1, 150);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![torn(entry(1, 150, 0, 0))]);
    // Half a message more is no answer; nor is an answer that may not be whole.
    p.read(MS, T, 1, 10);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![torn(entry(1, 160, 0, 0))]);
    p.write(MS, T, 1, 4, true);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![torn(entry(1, 160, 4, 4))]);
    p.write(MS, T, 1, 4, false);
    p.handle_timeout(100 * MS);
    assert_eq!(one(&mut p), vec![torn(entry(1, 160, 8, 8))]);
    p.write(MS, T, 1, 4, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 160, 12, 12)]);
    // From then on it is as any other.
    p.read(MS, T, 1, 20);
    p.turn_end(MS, T);
    assert!(commits(&mut p).is_empty());
    p.write(MS, T, 1, 5, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 180, 17, 17)]);
    p.read(MS, T, 1, 101);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![torn(entry(1, 281, 17, 17))]);
    assert_eq!(p.counters().torn, 2);
}

/// Whole again in the middle of that, the rest would be taken from another answer after a failover.
#[test]
fn what_had_too_much_is_not_whole_while_what_is_out_is_written_again() {
    let mut p = with(PortPolicy { max_unanswered_bytes: 100, ..PortPolicy::default() }, &[]);
    p.open(1, PortPolicy { max_unanswered_bytes: 100, ..PortPolicy::default() }, 0, 25, 0);
    p.read(MS, T, 1, 150);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![torn(entry(1, 150, 25, 25))]);
    p.write(MS, T, 1, 10, false);
    p.turn_end(MS, T);
    assert!(commits(&mut p).is_empty() && p.done(1).is_some_and(|done| done.torn));
    p.write(MS, T, 1, 20, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 150, 30, 30)]);
}

#[test]
fn a_line_that_was_too_long_tears_until_it_has_ended() {
    let mut p = with(PortPolicy { max_unanswered_bytes: 100, ..lines() }, &[1]);
    p.input(1, 0, &[b'x'; 150]);
    p.read(MS, T, 1, 150);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![torn(entry(1, 150, 0, 0))]);
    // The end of it, and the beginning of another.
    p.input(1, 150, b"x\nab");
    p.read(MS, T, 1, 4);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![torn(entry(1, 154, 0, 0))]);
    p.input(1, 154, b"c\n");
    p.read(MS, T, 1, 2);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 156, 0, 0)]);
    p.input(1, 156, b"def");
    p.read(MS, T, 1, 3);
    p.turn_end(MS, T);
    assert!(commits(&mut p).is_empty() && p.done(1).is_some_and(|done| done.in_done == 156));
}

#[test]
fn input_that_nobody_answered_is_not_consumed_by_being_too_much() {
    let mut p = with(PortPolicy { max_unanswered_bytes: 100, ..PortPolicy::default() }, &[1]);
    p.consume(T, 1, 0);
    p.read(MS, T, 1, 150);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![torn(entry(1, 150, 0, 0))]);
    p.consume(T, 1, 140);
    p.turn_end(MS, T);
    assert!(commits(&mut p).is_empty());
    p.consume(T, 1, 10);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 150, 0, 0)]);
}

const AWAKE: Rest = Rest::Awake;

fn asleep(times: u64) -> Rest {
    Rest::Asleep { times, lock: false }
}

fn asked(p: &mut TurnPolicy) -> Vec<Thread> {
    p.poll_asked().collect()
}

#[test]
fn a_thread_that_sleeps_has_ended_its_turn() {
    let mut p = with(PortPolicy::default(), &[1]);
    p.read(MS, T, 1, 10);
    p.write(MS, T, 1, 5, false);
    p.handle_timeout(2 * MS);
    assert_eq!(asked(&mut p), [T]);
    assert!(!p.rest(2 * MS, T, asleep(7)));
    assert_eq!(p.poll_timeout(), Some(3 * MS));
    p.handle_timeout(3 * MS);
    assert_eq!(asked(&mut p), [T]);
    // It has slept and woken up meanwhile; it runs; and it is heard of.
    assert!(!p.rest(3 * MS, T, asleep(8)));
    assert!(!p.rest(4 * MS, T, AWAKE) && !p.rest(5 * MS, T, asleep(8)));
    p.write(6 * MS, T, 1, 5, false);
    assert!(!p.rest(6 * MS, T, asleep(8)));
    assert!(commits(&mut p).is_empty());
    assert!(p.rest(7 * MS, T, asleep(8)));
    p.turn_end(7 * MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 10, 10, 10)]);
    assert!(!p.rest(8 * MS, T, asleep(8)) && p.poll_timeout().is_none());
}

#[test]
fn who_has_handed_its_work_on_and_sleeps_holds_up_no_answer() {
    let mut p = with(PortPolicy::default(), &[1]);
    p.read(MS, T, 1, 10);
    p.handle_timeout(2 * MS);
    // It has nothing to say when its turn ends.
    assert!(asked(&mut p).is_empty() && p.poll_timeout().is_none());
    p.write(3 * MS, T2, 1, 5, false);
    p.turn_end(3 * MS, T2);
    assert!(commits(&mut p).is_empty());
    p.handle_timeout(4 * MS);
    assert_eq!(asked(&mut p), [T]);
    assert!(!p.rest(4 * MS, T, asleep(1)) && p.rest(5 * MS, T, asleep(1)));
    p.turn_end(5 * MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 10, 5, 5)]);
}

#[test]
fn an_answer_that_outlasted_its_time_is_whole_when_its_thread_sleeps() {
    let mut p = with(PortPolicy::default(), &[1]);
    p.read(MS, T, 1, 10);
    p.write(MS, T, 1, 5, false);
    p.handle_timeout(60 * MS);
    assert_eq!((one(&mut p), asked(&mut p)), (vec![entry(1, 0, 5, 0)], vec![T]));
    let at = p.poll_timeout().expect("it is asked again");
    p.handle_timeout(at);
    assert_eq!(asked(&mut p), [T]);
    assert!(!p.rest(at, T, asleep(1)) && p.rest(at + MS, T, asleep(1)));
    p.turn_end(at + MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 10, 5, 5)]);
}

#[test]
fn who_waits_in_the_middle_of_its_work_has_not_ended_it() {
    let mut p = with(PortPolicy::default(), &[1, 2]);
    // For room in a socket.
    p.read(MS, T, 1, 10);
    p.write(MS, T, 2, 5, true);
    p.blocked(T);
    p.handle_timeout(2 * MS);
    assert!(asked(&mut p).is_empty());
    assert!(!p.rest(2 * MS, T, asleep(1)) && !p.rest(600 * MS, T, asleep(1)));
    p.turn_end(600 * MS, T);
    commits(&mut p);
    // For a lock, unless that takes very long.
    let lock = Rest::Asleep { times: 1, lock: true };
    p.read(601 * MS, T, 1, 10);
    p.write(601 * MS, T, 2, 5, false);
    assert!(!p.rest(602 * MS, T, lock) && !p.rest(1000 * MS, T, lock) && p.rest(1102 * MS, T, lock));
    p.turn_end(1102 * MS, T);
    // For something that it needs to answer what it has read.
    let mut p = with(lines(), &[1]);
    p.input(1, 0, b"do it\n");
    p.read(MS, T, 1, 6);
    p.handle_timeout(2 * MS);
    assert_eq!(asked(&mut p), [T]);
    assert!(!p.rest(2 * MS, T, asleep(1)) && !p.rest(400 * MS, T, asleep(1)) && p.rest(502 * MS, T, asleep(1)));
}

#[test]
fn a_recovered_application_catches_up_with_what_is_out() {
    let mut p = policy();
    p.open(1, PortPolicy::default(), 20, 300, 100);
    assert!(p.quiescent(1));
    p.read(MS, T, 1, 10);
    p.write(MS, T, 1, 50, true);
    p.turn_end(MS, T);
    assert!(commits(&mut p).is_empty());
    p.write(MS, T, 1, 50, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 30, 300, 200)]);
    p.read(MS, T, 1, 1);
    p.write(MS, T, 1, 150, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 31, 350, 350)]);
}

#[test]
fn the_end_of_output_is_output() {
    let mut p = with(PortPolicy::default(), &[1, 2]);
    p.shutdown(MS, T, 1);
    assert!(p.pending(1));
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![fin(entry(1, 0, 0, 0))]);
    // It ends an answer that was cut short.
    p.read(MS, T, 2, 5);
    p.write(MS, T, 2, 5, true);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(2, 0, 5, 0)]);
    p.shutdown(MS, T, 2);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![fin(entry(2, 5, 5, 5))]);
}

#[test]
fn adopted_bytes_commit_at_once_or_with_their_turn() {
    let mut p = with(PortPolicy::default(), &[1, 2]);
    p.adopted(MS, 1, 5, &[]);
    assert_eq!(one(&mut p), vec![entry(1, 0, 5, 5)]);
    p.read(MS, T, 1, 3);
    p.adopted(MS, 1, 5, &[]);
    assert_eq!(one(&mut p), vec![entry(1, 3, 10, 10)]);
    p.write(MS, T, 1, 1, false);
    p.adopted(MS, 1, 5, &[]);
    assert!(commits(&mut p).is_empty());
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 3, 16, 16)]);
    // Input whose other output is not committed yet must not be done before it.
    p.read(MS, T, 1, 1);
    p.write(MS, T, 2, 1, false);
    p.adopted(MS, 1, 1, &[]);
    assert!(commits(&mut p).is_empty());
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 4, 17, 17), entry(2, 0, 1, 1)]);
    // Bytes that should have been absorbed.
    p.open(2, PortPolicy::default(), 5, 9, 6);
    p.adopted(MS, 2, 1, &[]);
    assert_eq!(one(&mut p), vec![torn(entry(2, 5, 10, 10))]);
}

#[test]
fn an_overlong_turn_is_committed_in_parts() {
    let mut p = with(PortPolicy::default(), &[1, 2]);
    p.read(10 * MS, T, 1, 5);
    p.write(20 * MS, T, 1, 5, false);
    p.write(60 * MS, T, 1, 5, false);
    p.handle_timeout(69 * MS);
    assert!(commits(&mut p).is_empty());
    p.handle_timeout(70 * MS);
    assert_eq!(one(&mut p), vec![entry(1, 0, 10, 0)]);
    p.turn_end(80 * MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 5, 10, 10)]);

    p.read(MS, T, 1, 5);
    p.write(MS, T, 2, 5, false);
    // Over several sessions: what others are still to get of it must not be lost with a crash now.
    p.handle_timeout(51 * MS);
    assert_eq!(one(&mut p), vec![torn(entry(2, 0, 5, 5))]);
    p.read(MS, T, 1, 5);
    p.write(60 * MS, T, 2, 5, false);
    p.turn_end(60 * MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 15, 10, 10), entry(2, 0, 10, 10)]);
    assert_eq!(p.counters().timeouts, 2);
}

#[test]
fn threads_part_after_an_overlong_turn() {
    let mut p = with(PortPolicy::default(), &[1, 2]);
    p.read(MS, T, 1, 5);
    p.write(MS, T, 2, 5, false);
    p.write(MS, T2, 2, 5, false);
    p.handle_timeout(60 * MS);
    assert_eq!(one(&mut p), vec![entry(1, 5, 0, 0), entry(2, 0, 10, 10)]);
    p.write(MS, T2, 2, 5, false);
    p.turn_end(MS, T2);
    assert_eq!(one(&mut p), vec![entry(2, 0, 15, 15)]);
    p.write(MS, T, 2, 5, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(2, 0, 20, 20)]);
}

#[test]
fn a_dead_process_leaves_what_was_committed() {
    let mut p = with(PortPolicy::default(), &[1, 2]);
    p.read(MS, T, 1, 5);
    p.turn_end(MS, T);
    p.read(MS, T, 2, 5);
    p.write(MS, T, 2, 5, false);
    p.shutdown(MS, T, 2);
    p.process_gone(0);
    assert!(commits(&mut p).is_empty() && !p.has_uncommitted());
    assert_eq!((p.in_read(1), p.in_read(2)), (Some(0), Some(0)));
    assert!(p.quiescent(1) && p.quiescent(2) && p.poll_timeout().is_none());

    // Another process lives on with the same session.
    p.write(MS, T, 1, 5, false);
    p.write(MS, U, 1, 5, false);
    p.process_gone(0);
    assert!(commits(&mut p).is_empty());
    p.turn_end(MS, U);
    assert_eq!(one(&mut p), vec![torn(entry(1, 0, 10, 10))]);
}

#[test]
fn sessions_may_come_and_go_in_mid_turn() {
    let mut p = with(PortPolicy::default(), &[1, 2]);
    p.read(MS, T, 9, 5);
    p.write(MS, T, 9, 5, true);
    p.adopted(MS, 9, 5, &[]);
    p.consume(T, 9, 5);
    p.shutdown(MS, T, 9);
    p.close(9);
    p.input(9, 0, b"x");
    assert!(p.threads.is_empty() && !p.pending(9) && p.in_read(9).is_none());

    p.read(MS, T, 1, 5);
    p.write(MS, T, 2, 5, true);
    p.close(1);
    p.open(1, PortPolicy::default(), 0, 0, 0);
    p.write(MS, T, 2, 1, true);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![torn(entry(2, 0, 6, 6))]);
    assert!(p.quiescent(1));
}

#[test]
fn bookkeeping_does_not_grow() {
    let mut p = with(PortPolicy::default(), &[1, 2, 3]);
    let mut out = Commit::default();
    for i in 0..10_000u64 {
        let (a, b) = (i % 7, i % 5 + 10);
        p.read(MS, a, (i % 3) as u32 + 1, 1);
        p.write(MS, b, (i % 2) as u32 + 1, 1, i % 11 == 0);
        if i % 13 == 0 {
            p.handle_timeout(MS * i as u32);
        }
        if i % 4 == 0 {
            p.turn_end(MS, a);
            p.turn_end(MS, b);
        }
        while p.poll_commit(&mut out) {}
    }
    assert!(p.groups.len() <= 16 && p.threads.len() <= 12);
    for t in 0..20 {
        p.turn_end(MS, t);
    }
    assert!(p.threads.is_empty() && p.free_groups.len() == p.groups.len());
    assert!(p.entries.len() == p.commits.iter().map(|(entries, _)| entries).sum::<usize>());

    for t in 0..2 * MAX_OPEN_TURNS as u64 {
        p.write(MS, t, 1, 1, false);
    }
    assert!(p.threads.len() <= MAX_OPEN_TURNS);
}

#[test]
fn a_look_with_nothing_written_goes_on_with_the_turn() {
    // As asyncio does it: one round reads a line, the next one passes it on.
    let mut p = with(PortPolicy::framed(Framing::Lines), &[1, 2]);
    p.input(1, 0, b"hello\n");
    p.read(MS, T, 1, 6);
    assert!(!p.polls(T));
    assert!(commits(&mut p).is_empty());
    p.write(MS, T, 2, 6, false);
    assert!(p.polls(T), "a turn over sessions that depend on each other ends");
    assert_eq!(one(&mut p), vec![entry(1, 6, 0, 0), entry(2, 0, 6, 6)]);
}

#[test]
fn a_wait_that_does_not_block_leaves_the_response_open_until_the_thread_waits_or_reads_again() {
    let mut p = with(PortPolicy::default(), &[1, 2]);
    p.read(MS, T, 1, 10);
    p.write(MS, T, 1, 100, false);
    assert!(!p.polls(T));
    assert_eq!(one(&mut p), vec![entry(1, 0, 100, 0)]);
    assert!(!p.polls(T));
    assert!(commits(&mut p).is_empty());
    p.write(MS, T, 1, 100, false);
    assert!(!p.polls(T));
    assert_eq!(one(&mut p), vec![entry(1, 0, 200, 0)]);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 10, 200, 200)]);
    // Reading on is as good as waiting.
    p.read(MS, T, 1, 5);
    p.write(MS, T, 1, 50, false);
    assert!(!p.polls(T));
    assert_eq!(one(&mut p), vec![entry(1, 10, 250, 200)]);
    p.read(MS, T, 2, 5);
    assert_eq!(one(&mut p), vec![entry(1, 15, 250, 250)]);
    p.turn_end(MS, T);
    // A dead process answers again.
    p.read(MS, T, 1, 5);
    p.write(MS, T, 1, 50, false);
    assert!(!p.polls(T));
    assert_eq!(one(&mut p), vec![entry(1, 15, 300, 250)]);
    p.process_gone(0);
    assert!(commits(&mut p).is_empty());
}

#[test]
fn independent_sessions_are_judged_one_by_one() {
    let port = PortPolicy { independent: true, ..PortPolicy::default() };
    let mut p = with(port, &[1, 2]);
    // One download is stuck, the other one done, in the same turn.
    p.read(MS, T, 1, 10);
    p.write(MS, T, 1, 100, true);
    p.read(MS, T, 2, 10);
    p.write(MS, T, 2, 50, false);
    p.turn_end(MS, T);
    // That one may have more to come, too, until its next request is read.
    assert_eq!(one(&mut p), vec![entry(1, 0, 100, 0), entry(2, 0, 50, 0)]);
    p.read(MS, T, 2, 10);
    assert_eq!(one(&mut p), vec![entry(2, 10, 50, 50)]);
    // Looking between two, and reading from the other one, leaves it open.
    p.write(MS, T, 2, 50, false);
    assert!(!p.polls(T));
    assert_eq!(one(&mut p), vec![entry(2, 10, 100, 50)]);
    p.write(MS, T, 1, 100, true);
    assert!(!p.polls(T));
    assert_eq!(one(&mut p), vec![entry(1, 0, 200, 0)]);
    p.read(MS, T, 2, 5);
    assert_eq!(one(&mut p), vec![entry(2, 20, 100, 100)]);
    p.write(MS, T, 1, 7, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 0, 207, 0)]);
    // The write to 1 was no answer to what was read from 2.
    p.write(MS, T, 2, 1, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(2, 20, 101, 100)]);
    assert_eq!(p.counters().torn, 0);
}

#[test]
fn a_write_that_waits_lets_its_beginning_go() {
    let mut p = with(PortPolicy::default(), &[1, 2]);
    p.read(MS, T, 1, 10);
    p.write(MS, T, 1, 100, true);
    p.blocked(T);
    assert_eq!(one(&mut p), vec![entry(1, 0, 100, 0)]);
    p.write(MS, T, 1, 50, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 10, 150, 150)]);
    // A broadcast is all or nothing for as long as a turn may last.
    p.read(MS, T, 1, 10);
    p.write(MS, T, 2, 100, true);
    p.blocked(T);
    assert!(commits(&mut p).is_empty());
    assert!(p.poll_timeout().is_some());
}

#[test]
fn reading_from_another_session_ends_no_independent_response() {
    let port = PortPolicy { independent: true, ..PortPolicy::default() };
    let mut p = with(port, &[1, 2]);
    // A server that writes in pieces, each taken whole, and serves others between them.
    p.read(MS, T, 1, 10);
    p.write(MS, T, 1, 100, false);
    assert!(!p.reads_after_write(T));
    p.read(MS, T, 2, 10);
    assert!(!p.polls(T));
    assert_eq!(one(&mut p), vec![entry(1, 0, 100, 0)]);
    assert!(!p.reads_after_write(T));
    p.read(MS, T, 1, 10);
    assert_eq!(one(&mut p), vec![entry(1, 10, 100, 100)], "its next request says that it was whole");
    // Sessions that may depend on each other: what was written was the answer.
    let mut p = with(PortPolicy::default(), &[1, 2]);
    p.read(MS, T, 1, 10);
    p.write(MS, T, 1, 100, false);
    assert!(p.reads_after_write(T));
    assert_eq!(one(&mut p), vec![entry(1, 10, 100, 100)]);
}

/// An event loop with clients and an upstream that is no session of ours: one epoll_wait returns client 2's request and
/// the upstream's reply for client 1.
#[test]
fn a_reply_for_one_client_does_not_finish_the_request_of_another() {
    let mut p = with(PortPolicy::default(), &[1, 2]);
    p.read(MS, T, 1, 4);
    p.turn_end(MS, T);
    assert!(commits(&mut p).is_empty(), "forwarded, and not answered yet");
    p.read(MS, T, 2, 4);
    // The reply in two parts, as a head and a body.
    p.write(MS, T, 1, 5, false);
    p.write(MS, T, 1, 5, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 4, 10, 10)], "client 2 was not answered; its request would be lost");
    p.write(MS, T, 2, 3, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(2, 4, 3, 3)]);
}

/// A proxy takes a request and connects to its upstream, which is a session as well: the request leaves in another turn, and
/// its reply is passed on to a client that waits for it.
#[test]
fn what_an_upstream_replied_is_done_when_it_is_passed_on() {
    let mut p = with(PortPolicy::default(), &[1, 2, 7]);
    p.called(7);
    p.read(MS, T, 1, 4);
    p.turn_end(MS, T);
    p.write(MS, T, 7, 4, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(7, 0, 4, 4)]);
    // Half of the reply, and another client's request goes the same way.
    p.read(MS, T, 7, 3);
    p.turn_end(MS, T);
    p.read(MS, T, 2, 6);
    p.write(MS, T, 7, 6, false);
    p.turn_end(MS, T);
    let both = one(&mut p);
    assert_eq!((both[0], both[1].out_done), (entry(2, 6, 0, 0), 10), "it is away, and must not be sent again");
    p.read(MS, T, 7, 2);
    p.write(MS, T, 1, 5, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 4, 5, 5), entry(7, 5, 10, 10)]);
}

/// Clients 1 and 2, and the connections 7 and 8 that were made for them.
fn paired() -> TurnPolicy {
    let mut p = with(PortPolicy::default(), &[1, 2, 7, 8]);
    for (client, out) in [(1, 7), (2, 8)] {
        p.called(out);
        p.pair(out, Some(client));
    }
    p
}

/// asyncio reads what several sessions have in one round of its loop, looks for events, and writes in the next.
#[test]
fn a_write_passes_on_what_was_read_on_the_other_side_whatever_was_read_and_written_between() {
    let mut p = paired();
    for (from, to) in [([1, 2], [7, 8]), ([7, 8], [1, 2]), ([1, 8], [7, 2]), ([8, 1], [2, 7]), ([7, 2], [8, 1])] {
        for s in from {
            p.read(MS, T, s, 4);
        }
        assert!(!p.polls(T));
        let mut n = 0;
        for s in to {
            p.write(MS, T, s, 4, false);
            // Its turn may end between the two.
            p.polls(T);
            n += commits(&mut p).len();
        }
        p.turn_end(MS, T);
        n += commits(&mut p).len();
        assert!(n > 0);
        for s in from {
            assert!(p.quiescent(s), "{from:?} to {to:?}: {s}");
        }
    }
    // One that is not passed on is not done.
    p.read(MS, T, 1, 4);
    p.read(MS, T, 8, 4);
    p.write(MS, T, 7, 4, false);
    p.turn_end(MS, T);
    commits(&mut p);
    assert!(p.quiescent(1) && !p.quiescent(8));
    p.write(MS, T, 2, 4, false);
    p.turn_end(MS, T);
    commits(&mut p);
    assert!(p.quiescent(8));
}

/// Threads that wait for each other between a read and the write that passes it on.
#[test]
fn what_a_thread_read_before_it_waited_is_done_when_it_is_passed_on() {
    let mut p = paired();
    p.read(MS, T, 1, 4);
    p.turn_end(MS, T);
    p.write(MS, T, 7, 4, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 4, 0, 0), entry(7, 0, 4, 4)]);
    p.read(MS, T2, 7, 3);
    p.turn_end(MS, T2);
    // The client says more, which its thread has yet to pass on.
    p.read(MS, T, 1, 5);
    p.turn_end(MS, T);
    p.write(MS, T2, 1, 3, false);
    p.turn_end(MS, T2);
    assert_eq!(one(&mut p), vec![entry(1, 4, 3, 3), entry(7, 3, 4, 4)], "the second request would be lost");
    p.write(MS, T, 7, 5, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 9, 3, 3), entry(7, 3, 9, 9)]);
}

#[test]
fn a_request_that_is_passed_on_finishes_no_reply_that_waits_to_be() {
    let mut p = paired();
    p.read(MS, T, 7, 3);
    p.read(MS, T, 1, 4);
    p.write(MS, T, 7, 4, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 4, 0, 0), entry(7, 0, 4, 4)], "the reply would be lost");
    // What nobody has ever passed on is not kept for ever.
    p.read(MS, T, 1, 4);
    p.write(MS, T, 7, 4, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 8, 0, 0), entry(7, 3, 8, 8)]);
}

/// A database greets whoever connects: what is written then answers the greeting, and not the request that it was called for.
#[test]
fn an_answer_to_an_upstreams_greeting_finishes_no_request() {
    let mut p = paired();
    p.read(MS, T, 1, 4);
    p.turn_end(MS, T);
    p.read(MS, T, 7, 9);
    p.write(MS, T, 7, 5, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(7, 9, 5, 5)]);
    p.write(MS, T, 7, 6, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 4, 0, 0), entry(7, 9, 11, 11)], "and the query passes it on");
    // The answer is written by whoever has heard the reply, and not by him who had read the request.
    p.read(MS, T, 1, 4);
    p.turn_end(MS, T);
    p.read(MS, T2, 7, 9);
    p.write(MS, T2, 1, 5, false);
    p.turn_end(MS, T2);
    assert_eq!(one(&mut p), vec![entry(1, 8, 5, 5), entry(7, 18, 11, 11)]);
}

#[test]
fn pairs_come_and_go() {
    let mut p = paired();
    // It is the program's own: what was read last is what is passed on, but not of a client with another upstream.
    p.pair(7, None);
    p.read(MS, T, 2, 4);
    p.write(MS, T, 7, 4, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(7, 0, 4, 4)]);
    p.pair(8, None);
    p.read(MS, T, 2, 4);
    p.write(MS, T, 7, 4, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(2, 8, 0, 0), entry(7, 0, 8, 8)]);
    p.pair(8, Some(2));
    p.close(2);
    p.open(2, PortPolicy::default(), 0, 0, 0);
    p.read(MS, T, 2, 4);
    p.turn_end(MS, T);
    p.write(MS, T, 8, 4, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(8, 0, 4, 4)], "the number is another client's");
    p.pair(8, Some(9));
    p.unclear(7);
    p.unclear(9);
    for s in [1, 2, 7, 8] {
        p.close(s);
    }
    assert!(p.pairs.is_empty() && p.unclear.is_empty());
}

/// Clients 1 and 2, connection 7, which is the first one's, and 8, of which it is not known whose it is.
fn half_known() -> TurnPolicy {
    let mut p = paired();
    p.unclear(8);
    p
}

/// A proxy reads client 1, passes client 2's request on, and connects for client 1: its request leaves in another turn.
#[test]
fn what_is_passed_on_to_nobody_knows_whose_connection_finishes_no_other_request() {
    let mut p = half_known();
    p.read(MS, T, 2, 4);
    p.turn_end(MS, T);
    p.read(MS, T, 1, 4);
    p.write(MS, T, 8, 4, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(8, 0, 4, 4)], "client 1's request would be lost");
    // A client that has no connection yet.
    p.open(3, PortPolicy::default(), 0, 0, 0);
    p.read(MS, T, 3, 4);
    p.write(MS, T, 8, 4, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(8, 0, 8, 8)]);
    // Its answer finishes each.
    for client in [1, 3] {
        p.write(MS, T, client, 5, false);
        p.turn_end(MS, T);
        assert_eq!(one(&mut p), vec![entry(client, 4, 5, 5)]);
    }
}

/// A reply comes on a connection of which it is not known whose it is, then client 3 says something, and the reply is passed on.
#[test]
fn a_reply_that_nobody_knows_the_client_of_finishes_no_other_request() {
    for again in [false, true] {
        let mut p = half_known();
        p.open(3, PortPolicy::default(), 0, 0, 0);
        p.read(MS, T, 8, 6);
        if again {
            // The client had no room for it, and waits.
            p.turn_end(MS, T);
        }
        p.read(MS, T, 3, 4);
        p.write(MS, T, 2, 6, false);
        p.turn_end(MS, T);
        assert_eq!(one(&mut p), vec![entry(2, 0, 6, 6)], "client 3's request would be lost");
        // Now it is known: what was not passed on yet is.
        p.pair(8, Some(2));
        p.write(MS, T, 2, 6, false);
        p.turn_end(MS, T);
        assert_eq!(one(&mut p), vec![entry(2, 0, 12, 12), entry(8, 6, 0, 0)]);
        p.write(MS, T, 3, 5, false);
        p.turn_end(MS, T);
        assert_eq!(one(&mut p), vec![entry(3, 4, 5, 5)]);
    }
}

/// A reply that is not known to be anybody's is not done when something is said to somebody else.
#[test]
fn a_reply_that_nobody_knows_the_client_of_waits_to_be_passed_on() {
    let mut p = half_known();
    p.read(MS, T, 8, 6);
    p.write(MS, T, 1, 3, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 0, 3, 3)]);
    p.pair(8, Some(2));
    p.write(MS, T, 2, 6, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(2, 0, 6, 6), entry(8, 6, 0, 0)]);
    // Nor is more kept of it than one reply: what is asked there next was answered by that.
    p.unclear(8);
    p.read(MS, T, 8, 6);
    p.turn_end(MS, T);
    p.write(MS, T, 8, 4, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(8, 12, 4, 4)]);
}

/// A proxy tells an idle client that its time is over, in the turn in which another one's request waits for its connection.
#[test]
fn what_is_said_to_a_client_finishes_nothing_of_one_with_an_upstream_of_its_own() {
    let mut p = paired();
    p.read(MS, T, 1, 4);
    p.write(MS, T, 2, 3, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(2, 0, 3, 3)], "client 1's request would be lost");
    p.write(MS, T, 7, 4, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 4, 0, 0), entry(7, 0, 4, 4)]);
}

#[test]
fn what_a_broadcast_says_to_one_that_waits_for_its_own_answer_is_told_by_the_others() {
    let mut p = with(PortPolicy::default(), &[1, 2, 3]);
    p.read(MS, T, 2, 4);
    p.turn_end(MS, T);
    p.read(MS, T, 1, 5);
    p.write(MS, T, 2, 5, false);
    p.write(MS, T, 3, 5, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 5, 0, 0), entry(2, 4, 5, 5), entry(3, 0, 5, 5)]);
}

#[test]
fn what_was_read_elsewhere_since_is_what_a_write_to_another_session_answers() {
    let mut p = with(PortPolicy::default(), &[1, 2]);
    p.read(MS, T, 1, 4);
    p.write(MS, T, 1, 5, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 4, 5, 5)]);
    // Session 2's request goes to an upstream, which has more for session 1.
    p.read(MS, T, 2, 4);
    p.reads_other(T);
    p.write(MS, T, 1, 5, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 4, 10, 10)]);
    // Read anew, it may be passed on.
    p.read(MS, T, 2, 4);
    p.write(MS, T, 1, 5, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 4, 15, 15), entry(2, 8, 0, 0)]);
}

#[test]
fn the_rest_of_a_short_write_answers_nobody_else() {
    let mut p = with(PortPolicy::default(), &[1, 2]);
    p.read(MS, T, 1, 4);
    p.write_of(MS, T, 1, 60, 100);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 0, 60, 0)]);
    p.read(MS, T, 2, 4);
    p.write_of(MS, T, 1, 30, 40);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![torn(entry(1, 4, 90, 90))]);
    p.read(MS, T, 2, 4);
    p.write_of(MS, T, 1, 10, 10);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 4, 100, 100)]);
    // The rest, and something behind it.
    p.write_of(MS, T, 1, 10, 20);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![torn(entry(1, 4, 110, 110))]);
    p.read(MS, T, 2, 1);
    p.write_of(MS, T, 1, 15, 15);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 4, 125, 125), entry(2, 9, 0, 0)]);
}

#[test]
fn what_a_dead_process_had_read_is_done_when_another_one_answers() {
    let mut p = with(PortPolicy::default(), &[1, 2]);
    for in_one_turn in [false, true] {
        let before = p.in_read(1).unwrap();
        p.read(MS, T, 1, 4);
        if !in_one_turn {
            p.turn_end(MS, T);
        }
        p.process_gone(0);
        assert!(commits(&mut p).is_empty());
        p.write(MS, U, 1, 5, false);
        p.turn_end(MS, U);
        assert_eq!(one(&mut p), vec![entry(1, before + 4, before / 4 * 5 + 5, before / 4 * 5 + 5)]);
    }
    // It had written as well, in a turn that had not ended: that is in the socket.
    p.read(MS, T, 2, 4);
    p.write(MS, T, 2, 3, false);
    p.process_gone(0);
    assert!(commits(&mut p).is_empty(), "whoever takes over reads it again");
    p.read(MS, U, 2, 2);
    p.write(MS, U, 2, 5, false);
    p.turn_end(MS, U);
    assert_eq!(one(&mut p), vec![torn(entry(2, 6, 8, 8))]);
}

#[test]
fn an_independent_response_in_parts_is_open_until_the_application_reads_on() {
    let port = PortPolicy { independent: true, ..PortPolicy::default() };
    let mut p = with(port, &[1]);
    p.read(MS, T, 1, 10);
    p.write(MS, T, 1, 100, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 0, 100, 0)]);
    // A timer has another thread write on.
    p.write(MS, T2, 1, 50, false);
    p.turn_end(MS, T2);
    assert_eq!(one(&mut p), vec![entry(1, 0, 150, 0)]);
    // It looks for the next request, and there is none yet: the response was whole.
    p.read(MS, T2, 1, 0);
    assert_eq!(one(&mut p), vec![entry(1, 10, 150, 150)]);
    assert!(p.quiescent(1));
    p.read(MS, T, 1, 0);
    assert!(commits(&mut p).is_empty());
    // So it is if it closes.
    p.read(MS, T, 1, 10);
    p.write(MS, T, 1, 10, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 10, 160, 150)]);
    assert!(!p.unanswered(1));
    p.shutdown(MS, T, 1);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![fin(entry(1, 20, 160, 160))]);

    // After a failover it writes again what is out, and goes on.
    p.open(1, port, 20, 300, 100);
    p.read(MS, T, 1, 10);
    p.write(MS, T, 1, 150, false);
    assert_eq!(p.unwritten(1), 50);
    p.turn_end(MS, T);
    assert!(commits(&mut p).is_empty());
    p.write(MS, T, 1, 80, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 20, 330, 100)]);
}

/// The peer has the whole answer that its server makes again, and asks for more meanwhile: nothing says which of it was the
/// answer to what.
#[test]
fn what_is_written_again_of_an_independent_response_finishes_nothing() {
    let port = PortPolicy { independent: true, ..PortPolicy::default() };
    for consumes in [false, true] {
        let mut p = policy();
        p.open(1, port, 20, 300, 100);
        if consumes {
            p.consume(T, 1, 0);
        }
        p.read(MS, T, 1, 10);
        p.write(MS, T, 1, 50, false);
        p.turn_end(MS, T);
        p.asked_anew(1);
        p.read(MS, T, 1, 7);
        p.turn_end(MS, T);
        p.read(MS, T, 1, 0);
        p.write(MS, T, 1, 150, false);
        p.turn_end(MS, T);
        // Half of the next request was there before, and the other half comes now.
        p.asked_anew(1);
        p.read(MS, T, 1, 3);
        if consumes {
            p.consume(T, 1, 20);
            p.turn_end(MS, T);
            assert_eq!(commits(&mut p).last().unwrap(), &vec![entry(1, 40, 300, 300)], "it says so itself");
            continue;
        }
        p.turn_end(MS, T);
        assert!(commits(&mut p).is_empty(), "a second failover would lose the rest of the answer, or the request behind it");
        p.write(MS, T, 1, 5, false);
        p.turn_end(MS, T);
        assert_eq!(one(&mut p), vec![entry(1, 20, 305, 100)]);
        p.asked_anew(1);
        assert_eq!(one(&mut p), vec![entry(1, 40, 305, 305)]);
    }
    // A process that dies leaves the same to another one.
    let mut p = with(port, &[1]);
    p.read(MS, T, 1, 10);
    p.write(MS, T, 1, 100, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 0, 100, 0)]);
    p.process_gone(0);
    p.read(MS, T, 1, 10);
    p.write(MS, T, 1, 60, false);
    p.turn_end(MS, T);
    p.read(MS, T, 1, 5);
    assert!(commits(&mut p).is_empty());
    // It ends it: there will be no more.
    p.shutdown(MS, T, 1);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![fin(entry(1, 15, 100, 60))]);
}

#[test]
fn what_comes_of_no_request_leaves_nothing_open() {
    // A greeting, and pushes: nobody would write them again.
    let port = PortPolicy { independent: true, ..PortPolicy::default() };
    let mut p = with(port, &[1, 2, 3]);
    p.write(MS, T, 1, 5, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(1, 0, 5, 5)]);
    // A request that is larger than what may be kept: it is not torn for that.
    let large = PortPolicy { max_unanswered_bytes: 100, ..port };
    p.open(2, large, 0, 0, 0);
    p.read(MS, T, 2, 101);
    p.write(MS, T, 2, 5, false);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(2, 101, 5, 5)]);
    // Where the application says itself what is done, or input is discarded, that counts.
    p.consume(T, 3, 0);
    p.read(MS, T, 3, 10);
    p.write(MS, T, 3, 5, false);
    p.consume(T, 3, 10);
    p.turn_end(MS, T);
    assert_eq!(one(&mut p), vec![entry(3, 10, 5, 5)]);
}

fn kept(session: SessionId, data: &[u8]) -> Change<Box<[u8]>> {
    Change::Checkpoint { session, data: data.into() }
}

type WithData = (Vec<CommitEntry>, Vec<Change<Box<[u8]>>>);

/// All commits, each with the data of its turn.
fn commits_with_data(p: &mut TurnPolicy) -> Vec<WithData> {
    let mut out = Commit::default();
    let mut all = Vec::new();
    while p.poll_commit(&mut out) {
        all.push((out.entries.clone(), out.changes.clone()));
    }
    all
}

#[test]
fn the_input_of_a_checkpoint_is_done_with_its_turn_and_only_it() {
    for port in [PortPolicy::default(), lines(), discard(), PortPolicy { independent: true, ..PortPolicy::default() }] {
        let mut p = with(port, &[1, 2]);
        p.read(MS, T, 2, 3);
        p.turn_end(MS, T);
        let _ = commits(&mut p);
        p.read(MS, T, 1, 7);
        assert!(p.checkpoint(T, 1, b"half a message"));
        assert_eq!((commits(&mut p), p.uncommitted_checkpoint(1)), (vec![], Some(&b"half a message"[..])));
        p.turn_end(MS, T);
        assert_eq!(commits_with_data(&mut p), [(vec![entry(1, 7, 0, 0)], vec![kept(1, b"half a message")])]);
        assert_eq!((p.uncommitted_checkpoint(1), p.uncommitted_data()), (None, 0));
        // What is read after it is not done, whatever is written.
        p.read(MS, T, 1, 5);
        p.write(MS, T, 1, 2, false);
        p.turn_end(MS, T);
        assert_eq!(commits_with_data(&mut p), [(vec![entry(1, 7, 2, 2)], vec![])]);
        // The next one covers it.
        assert!(p.checkpoint(T, 1, b""));
        p.turn_end(MS, T);
        assert_eq!(commits_with_data(&mut p), [(vec![entry(1, 12, 2, 2)], vec![kept(1, b"")])]);
    }
}

#[test]
fn a_checkpoint_covers_what_was_read_before_it_and_the_last_of_a_turn_counts() {
    let mut p = with(PortPolicy::default(), &[1]);
    p.read(MS, T, 1, 4);
    assert!(p.checkpoint(T, 1, b"one"));
    p.read(MS, T, 1, 4);
    assert!(p.checkpoint(T, 1, b"two"));
    p.read(MS, T, 1, 4);
    p.turn_end(MS, T);
    assert_eq!(commits_with_data(&mut p), [(vec![entry(1, 8, 0, 0)], vec![kept(1, b"two")])]);
    assert_eq!(p.in_read(1), Some(12));
}

#[test]
fn a_checkpoint_of_a_turn_that_never_ended_was_never_made() {
    let mut p = with(PortPolicy::default(), &[1]);
    p.read(MS, T, 1, 4);
    assert!(p.checkpoint(T, 1, b"one"));
    p.process_gone(0);
    assert!(commits_with_data(&mut p).is_empty() && p.uncommitted_data() == 0 && p.uncommitted_checkpoint(1).is_none());
    // Of whoever goes on it is inferred what is done, unless a commit has told of a checkpoint before.
    p.open(1, PortPolicy::default(), 0, 0, 0);
    p.read(MS, U, 1, 4);
    p.write(MS, U, 1, 4, false);
    p.turn_end(MS, U);
    assert_eq!(one(&mut p), [entry(1, 4, 4, 4)]);
    p.says_itself(1);
    for (thread, written) in [(U, 8), (T, 12)] {
        p.read(MS, thread, 1, 4);
        p.write(MS, thread, 1, 4, false);
        p.turn_end(MS, thread);
        assert_eq!(one(&mut p), [entry(1, 4, written, written)]);
        p.process_gone(1);
    }
}

#[test]
fn a_checkpoint_waits_for_the_rest_of_its_answer() {
    // The request is read again by whoever takes over, with what was kept before it; its answer is absorbed.
    let mut p = with(PortPolicy::default(), &[1]);
    p.read(MS, T, 1, 4);
    p.write(MS, T, 1, 3, true);
    assert!(p.checkpoint(T, 1, b"after"));
    p.turn_end(MS, T);
    assert_eq!(commits_with_data(&mut p), [(vec![entry(1, 0, 3, 0)], vec![])]);
    p.write(MS, T, 1, 5, false);
    p.turn_end(MS, T);
    assert_eq!(commits_with_data(&mut p), [(vec![entry(1, 4, 8, 8)], vec![kept(1, b"after")])]);
}

#[test]
fn what_is_pushed_is_not_let_go_beside_what_is_kept_of_another_place() {
    let mut p = with(PortPolicy::default(), &[1]);
    p.read(MS, T, 1, 4);
    assert!(p.checkpoint(T, 1, b"one"));
    p.turn_end(MS, T);
    let _ = commits(&mut p);
    // No input makes it come again. The program looks for events, and takes long.
    assert!(p.checkpoint(T, 1, b"two"));
    p.write(100 * MS, T, 1, 5, false);
    assert!(!p.polls(T));
    p.handle_timeout(160 * MS);
    assert!(commits_with_data(&mut p).is_empty());
    p.write(160 * MS, T, 1, 2, false);
    p.turn_end(170 * MS, T);
    assert_eq!(commits_with_data(&mut p), [(vec![entry(1, 4, 7, 7)], vec![kept(1, b"two")])]);
    // It takes very long, and the checkpoint comes at its end.
    p.write(200 * MS, T, 1, 3, false);
    p.handle_timeout(260 * MS);
    assert!(commits_with_data(&mut p).is_empty());
    p.handle_timeout(800 * MS);
    assert_eq!(commits_with_data(&mut p), [(vec![torn(entry(1, 4, 10, 10))], vec![])]);
    assert!(p.checkpoint(T, 1, b"three"));
    p.turn_end(MS, T);
    assert_eq!(commits_with_data(&mut p), [(vec![entry(1, 4, 10, 10)], vec![kept(1, b"three")])]);
    // A write that waits for the peer has to let it go.
    assert!(p.checkpoint(T, 1, b"four"));
    p.write(900 * MS, T, 1, 3, false);
    p.blocked(T);
    assert_eq!(commits_with_data(&mut p), [(vec![torn(entry(1, 4, 13, 13))], vec![])]);
}

#[test]
fn what_was_put_in_a_turn_that_is_over_counts_though_its_process_dies_before_the_turn_that_it_waits_for() {
    for over in [true, false] {
        let mut p = with(PortPolicy::default(), &[1]);
        p.write(MS, T, 1, 4, false);
        p.write(MS, U, 1, 4, false);
        assert!(p.put(T, b"n", Some(b"1")));
        if over {
            p.turn_end(MS, T);
        }
        p.process_gone(0);
        p.turn_end(MS, U);
        let put: Vec<_> = commits_with_data(&mut p).into_iter().flat_map(|(_, changes)| changes).collect();
        let n = Change::Put { key: b"n"[..].into(), value: b"1"[..].into() };
        assert_eq!((put, p.uncommitted_data()), (if over { vec![n] } else { vec![] }, 0));
    }
}

#[test]
fn threads_that_put_the_same_key_for_ever_are_cut() {
    let mut p = with(PortPolicy::default(), &[]);
    p.at(100 * MS);
    assert!(p.put(T, b"n", Some(b"1")) && p.put(T + 1, b"n", Some(b"2")));
    p.handle_timeout(120 * MS);
    assert!(commits_with_data(&mut p).is_empty());
    p.handle_timeout(160 * MS);
    let n = Change::Put { key: b"n"[..].into(), value: b"2"[..].into() };
    assert_eq!(commits_with_data(&mut p), [(vec![], vec![n])]);
}

#[test]
fn checkpoints_of_several_sessions_commit_as_one() {
    let mut p = with(PortPolicy::default(), &[1, 2]);
    p.read(MS, T, 1, 4);
    p.write(MS, T, 2, 4, false);
    assert!(p.checkpoint(T, 1, b"one") && p.checkpoint(T, 2, b"two"));
    // The turn takes too long: its output is let go, and what is kept is as it was.
    p.handle_timeout(60 * MS);
    assert_eq!(commits_with_data(&mut p), [(vec![torn(entry(2, 0, 4, 4))], vec![])]);
    p.turn_end(MS, T);
    let all = commits_with_data(&mut p);
    assert_eq!(all, [(vec![entry(1, 4, 0, 0), entry(2, 0, 4, 4)], vec![kept(1, b"one"), kept(2, b"two")])]);
}

#[test]
fn a_turn_has_room_for_so_much_data() {
    let mut p = with(PortPolicy::default(), &[1]);
    let value = vec![7; data::MAX_VALUE];
    let fits = data::MAX_TURN / data::cost(value.len());
    for _ in 0..fits {
        assert!(p.checkpoint(T, 1, &value));
        assert_eq!(p.uncommitted_data(), data::cost(value.len()));
    }
    assert!(!p.checkpoint(T, 1, &value));
    p.turn_end(MS, T);
    assert_eq!(commits_with_data(&mut p), [(vec![], vec![kept(1, &value)])]);
    assert!(p.checkpoint(T, 1, &value));
    p.close(1);
    assert_eq!(p.uncommitted_data(), 0);
}

fn put(key: &[u8], value: &[u8]) -> Change<Box<[u8]>> {
    Change::Put { key: key.into(), value: value.into() }
}

#[test]
fn what_is_put_commits_with_the_turn() {
    let mut p = with(PortPolicy::default(), &[1]);
    p.read(MS, T, 1, 4);
    assert!(p.put(T, b"b", Some(b"1")) && p.put(T, b"a", Some(b"")) && p.put(T, b"c", None));
    assert!(p.put(T, b"b", Some(b"2")) && p.checkpoint(T, 1, b"kept"));
    p.write(MS, T, 1, 4, false);
    assert_eq!(p.find_put(T, b"b"), Some(Some(&b"2"[..])));
    assert_eq!(p.find_put(T, b"c"), Some(None));
    assert!(p.find_put(T, b"d").is_none() && p.find_put(U, b"b").is_none());
    assert!(commits_with_data(&mut p).is_empty() && p.uncommitted_data() > 0);
    p.turn_end(MS, T);
    let changes = vec![put(b"a", b""), Change::Delete { key: b"c"[..].into() }, put(b"b", b"2"), kept(1, b"kept")];
    assert_eq!(commits_with_data(&mut p), [(vec![entry(1, 4, 4, 4)], changes)]);
    assert_eq!((p.uncommitted_data(), p.find_put(T, b"b")), (0, None));
    // A turn in which nothing else was done.
    assert!(p.put(T, b"b", Some(b"3")));
    p.turn_end(MS, T);
    assert_eq!(commits_with_data(&mut p), [(vec![], vec![put(b"b", b"3")])]);
}

#[test]
fn what_was_put_in_a_turn_that_never_ended_was_never_put() {
    let mut p = with(PortPolicy::default(), &[1]);
    p.read(MS, T, 1, 4);
    assert!(p.put(T, b"a", Some(b"1")) && p.put(U, b"a", Some(b"2")));
    p.process_gone(0);
    assert_eq!(p.find_put(T, b"a"), None);
    assert_eq!(p.find_put(U, b"a"), Some(Some(&b"2"[..])));
    p.turn_end(MS, U);
    assert_eq!(commits_with_data(&mut p), [(vec![], vec![put(b"a", b"2")])]);
    assert!(p.uncommitted_data() == 0 && p.threads.is_empty());
}

#[test]
fn a_turn_that_puts_is_all_or_nothing_whatever_its_port_says() {
    let independent = PortPolicy { independent: true, ..PortPolicy::default() };
    for port in [PortPolicy::default(), independent] {
        let mut p = with(port, &[1]);
        p.read(MS, T, 1, 4);
        assert!(p.put(T, b"a", Some(b"1")));
        p.write(MS, T, 1, 3, true);
        // It takes too long, and then its last write is short: the session is torn meanwhile, and nothing is done twice.
        p.handle_timeout(60 * MS);
        assert_eq!(commits_with_data(&mut p), [(vec![torn(entry(1, 0, 3, 3))], vec![])]);
        p.turn_end(MS, T);
        assert_eq!(commits_with_data(&mut p), [(vec![torn(entry(1, 4, 3, 3))], vec![put(b"a", b"1")])]);
        p.write(MS, T, 1, 2, false);
        p.turn_end(MS, T);
        assert_eq!(commits_with_data(&mut p), [(vec![entry(1, 4, 5, 5)], vec![])]);
    }
}

#[test]
fn turns_of_a_process_that_touch_one_key_commit_as_one() {
    let mut p = with(PortPolicy::default(), &[1, 2]);
    p.write(MS, T, 1, 1, false);
    assert!(p.put(T, b"a", Some(b"1")));
    // What follows from it counts no sooner.
    assert_eq!(p.find_put(T2, b"a"), Some(Some(&b"1"[..])));
    p.write(MS, T2, 2, 1, false);
    p.turn_end(MS, T2);
    assert!(commits_with_data(&mut p).is_empty());
    p.turn_end(MS, T);
    assert_eq!(commits_with_data(&mut p), [(vec![entry(1, 0, 1, 1), entry(2, 0, 1, 1)], vec![put(b"a", b"1")])]);
    assert!(p.put(T, b"a", Some(b"2")) && p.put(T2, b"a", Some(b"3")));
    p.turn_end(MS, T);
    assert!(commits_with_data(&mut p).is_empty());
    p.turn_end(MS, T2);
    assert_eq!(commits_with_data(&mut p), [(vec![], vec![put(b"a", b"3")])]);
}
