//! The parts, each by itself. What they do together is tested in `tests.rs`.

use super::commits::Commits;
use super::groups::Groups;
use super::pairs::Pairs;
use super::sleep::{Asleep, Look, Rest};
use super::*;
use crate::data::{Change, MAX_TURN};

const MS: Duration = Duration::from_millis(1);

fn sessions(ids: &[SessionId]) -> Sessions {
    let new = |id: &SessionId| (*id, Box::new(Progress::new(*id, PortPolicy::default(), 0, 0, 0)));
    ids.iter().map(new).collect()
}

/// This thread's turn touches that session, which no other turn has.
fn touch(g: &mut Groups, all: &mut Sessions, t: Thread, s: SessionId) -> u32 {
    let of = g.of(t).unwrap_or_else(|| g.open(t));
    g.add_session(of, s, all.get_mut(&s).unwrap());
    of
}

#[test]
fn merged_groups_are_one_until_the_last_thread_is_gone() {
    let (mut g, mut all) = (Groups::default(), sessions(&[7, 8]));
    let (a, b) = (touch(&mut g, &mut all, 1, 7), touch(&mut g, &mut all, 1 << 32, 8));
    assert!(!g.get(a).is_tied() && !g.get(a).is_shared());
    g.set_puts(b);
    let (into, from, puts) = g.merge(a, b, &mut all);
    assert_eq!((into, from, puts), (a, b, true));
    let one = g.get(a);
    assert!(one.is_tied() && one.is_shared() && one.has_puts() && one.sessions() == [7, 8] && one.threads() == [1, 1 << 32]);
    assert_eq!((g.of(1 << 32), all[&8].group), (Some(a), a));
    assert_eq!(g.remove_thread(1), Some((a, false)));
    assert_eq!(g.remove_thread(1 << 32), Some((a, true)));
    g.dissolve(a, &mut all);
    assert!(g.are_free() && g.open_turns() == 0 && all.values().all(|p| p.group == NO_GROUP));
}

#[test]
fn a_split_group_leaves_each_thread_its_turn_and_what_it_read() {
    let (mut g, mut all) = (Groups::default(), sessions(&[7, 8]));
    let a = touch(&mut g, &mut all, 1, 7);
    g.add_thread(a, 2, None);
    g.set_last_read(2, Some((7, 5)));
    g.split(a, &mut all);
    assert!(g.of(1) == Some(a) && g.of(2).is_some_and(|b| b != a));
    assert_eq!((g.last_read(2), all[&7].group), (Some((7, 5)), NO_GROUP));
    g.forget_session(NO_GROUP, 7);
    assert_eq!(g.last_read(2), None);
}

#[test]
fn a_deadline_is_told_once_and_the_second_one_is_late() {
    let mut g = Groups::default();
    let a = g.open(1);
    g.set_deadline(a, 5 * MS);
    g.set_deadline(a, 9 * MS);
    assert_eq!((g.poll_timeout(), g.take_deadline(a, 4 * MS)), (Some(5 * MS), None));
    assert_eq!((g.take_deadline(a, 5 * MS), g.take_deadline(a, 5 * MS)), (Some(false), None));
    g.set_deadline(a, 9 * MS);
    assert_eq!(g.take_deadline(a, 9 * MS), Some(true));
}

#[test]
fn a_turn_has_no_more_data_than_one_may_have() {
    let mut g = Groups::default();
    let a = g.open(1);
    assert!(g.give_data(a, MAX_TURN) && !g.give_data(a, 1));
    g.commit_data(a, 2);
    assert!(g.give_data(a, 2) && !g.give_data(a, 1));
    g.commit_data(NO_GROUP, 5);
}

#[test]
fn whoever_keeps_something_back_is_asked_about_ever_more_seldom_until_it_is_heard() {
    let mut g = Groups::default();
    g.open(1);
    g.hear(MS, 1);
    let asks = |g: &mut Groups, now, keeps| {
        g.ask_sleepers(now, |_| keeps);
        g.poll_asked().collect::<Vec<_>>()
    };
    assert_eq!(asks(&mut g, MS, true), []);
    assert_eq!((asks(&mut g, 2 * MS, true), g.poll_timeout()), (vec![1], Some(3 * MS)));
    assert_eq!((asks(&mut g, 3 * MS, true), g.poll_timeout()), (vec![1], Some(5 * MS)));
    let asleep = Rest::Asleep { times: 4, lock: false };
    assert!(!g.rests(3 * MS, 1, asleep, |_| true) && g.rests(4 * MS, 1, asleep, |_| true));
    g.hear(4 * MS, 1);
    assert!(!g.rests(5 * MS, 1, asleep, |_| true), "it was awake");
    g.set_blocked(1);
    assert!(!g.rests(900 * MS, 1, asleep, |_| true) && asks(&mut g, 900 * MS, true).is_empty());
    assert_eq!((asks(&mut g, 999 * MS, false), g.poll_timeout()), (vec![], None));
}

#[test]
fn one_that_only_reads_or_waits_for_a_lock_has_to_sleep_for_longer() {
    let asleep = Asleep::seen(MS, 4, None);
    assert_eq!(Asleep::seen(9 * MS, 4, Some(asleep)), asleep);
    assert_ne!(Asleep::seen(9 * MS, 5, Some(asleep)), asleep);
    assert!(asleep.is_long(2 * MS, true, false));
    for (answers, lock) in [(true, true), (false, false)] {
        assert!(!asleep.is_long(500 * MS, answers, lock) && asleep.is_long(501 * MS, answers, lock));
    }
    let (first, later) = (Look::first(MS), Look::first(9 * MS).again(10 * MS));
    assert_eq!(later.sooner(first), first);
}

#[test]
fn whoever_is_parted_is_on_nobodys_other_side() {
    let mut p = Pairs::default();
    p.pair(11, 1);
    p.pair(12, 1);
    p.set_unclear(13);
    assert_eq!((p.of(1), p.of(12)), (&[11, 12][..], &[1][..]));
    assert!(p.is_unclear(13) && p.unclear().eq([13]));
    p.part(11);
    assert_eq!((p.of(1), p.of(11)), (&[12][..], &[][..]));
    p.part(12);
    p.part(13);
    assert!(p.is_empty());
}

#[test]
fn a_commit_has_what_was_added_since_the_one_before() {
    let mut c = Commits::default();
    assert!(!c.finish() && c.is_empty());
    let entry = |session| CommitEntry { session, in_done: 1, out_done: 2, out_base: 2, fin: false, torn: false };
    let put = || Change::Put { key: Box::from(&b"k"[..]), value: Box::from(&b"v"[..]) };
    c.add(entry(1));
    assert!(c.finish());
    c.add(entry(2));
    c.add_change(put());
    c.add_change(Change::Checkpoint { session: 2, data: Box::from(&b"two"[..]) });
    assert!(c.finish() && c.are_whole());
    assert_eq!((c.value(b"k"), c.value(b"l"), c.checkpoint(2)), (Some(Some(&b"v"[..])), None, Some(&b"two"[..])));
    let mut out = Commit::default();
    assert!(c.poll(&mut out) && out.entries == [entry(1)] && out.changes.is_empty());
    assert!(c.poll(&mut out) && out.entries == [entry(2)] && out.changes.len() == 2);
    assert!(!c.poll(&mut out) && out == Commit::default());
}
