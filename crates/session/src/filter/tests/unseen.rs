//! Input that is read, and nobody tells.

use super::*;
use crate::turn::Unanswered;

const PIECE: u64 = 60_000;

/// What was read of its port is done at the end of a turn, without an answer.
fn discards() -> Rig {
    let mut r = Rig::new();
    let policy = PortPolicy { unanswered: Unanswered::Discard, ..PortPolicy::default() };
    r.f = Filter::new(FilterConfig { ports: vec![(5555, policy)], ..config() });
    r.f.activate();
    r.f.hold_for_replica(0);
    r.handshake(false);
    r.attach();
    r
}

/// The peer sends this many pieces more. `reads`: the program reads each of them around the hooks.
fn uploads(r: &mut Rig, pieces: u64, reads: bool) {
    for _ in 0..pieces {
        let at = r.session().in_end();
        r.unread += if reads { 0 } else { PIECE };
        r.peer(say(ACK, at, 0, &[1; PIECE as usize]));
        r.kernel(say(ACK, 0, at + PIECE, b""));
        r.stored();
    }
}

#[test]
fn what_is_read_when_no_more_comes_is_found_by_the_clock() {
    let mut r = discards();
    uploads(&mut r, 100, false);
    let (id, all) = (r.session().open.session, 100 * PIECE);
    r.pass(ms(1000));
    assert_eq!((r.f.turns().in_read(id), r.session().in_done), (Some(0), 0));
    r.unread = 0;
    r.pass(ms(200));
    assert_eq!((r.f.turns().in_read(id), r.session().in_done, r.session().torn), (Some(all), all, false));
    r.pass(ms(1000));
    assert_eq!(r.f.poll_timeout(), None, "there is nothing to ask any more");
}

#[test]
fn the_kernel_is_asked_often_while_a_program_reads_and_seldom_while_it_does_not() {
    let mut r = discards();
    uploads(&mut r, 200, false);
    let (id, all) = (r.session().open.session, 200 * PIECE);
    let asked_in = |r: &mut Rig, time: Now, reads: u64| {
        let (until, mut asked) = (r.now + time, 0);
        while let Some(due) = r.f.poll_timeout().filter(|due| *due <= until) {
            r.now = r.now.max(due);
            r.f.handle_timeout(r.now);
            let mut actions = Vec::new();
            r.f.drain_actions(&mut actions);
            for _ in actions.iter().filter(|action| **action == Action::AskUnread(id)) {
                asked += 1;
                r.unread -= reads;
                r.f.unread(r.now, id, all, r.unread);
            }
        }
        r.now = until;
        asked
    };
    asked_in(&mut r, ms(1000), 0);
    let (idle, busy) = (asked_in(&mut r, ms(1280), 0), asked_in(&mut r, ms(228), PIECE));
    assert!((9..=11).contains(&idle) && (50..=114).contains(&busy), "{idle} {busy}");
}

#[test]
fn what_is_read_around_the_hooks_is_done_before_a_handover() {
    let mut r = discards();
    uploads(&mut r, 100, true);
    let done = r.session().in_done;
    assert!(done > 0 && done < 100 * PIECE, "less than a session may keep is not done before: {done}");
    r.f.before_handover();
    r.drain();
    assert_eq!((r.session().in_done, r.session().torn), (100 * PIECE, false));
}

#[test]
fn what_hooks_are_about_to_tell_is_not_done_before_a_handover() {
    let mut r = discards();
    uploads(&mut r, 50, false);
    r.read(PIECE);
    // Three more pieces were read, and that is told in a moment.
    r.unread -= 4 * PIECE;
    r.f.before_handover();
    r.drain();
    let id = r.session().open.session;
    assert_eq!((r.f.turns().in_read(id), r.session().in_done), (Some(4 * PIECE), 0));
}

#[test]
fn nothing_was_read_of_a_socket_that_is_gone() {
    let mut r = discards();
    uploads(&mut r, 100, false);
    let id = r.session().open.session;
    r.f.before_handover();
    let mut actions = Vec::new();
    r.f.drain_actions(&mut actions);
    assert_eq!(actions, [Action::AskUnread(id)]);
    // Its process has just died, and nobody has heard of that.
    r.f.unread_gone(r.now, id);
    assert_eq!((r.f.turns().in_read(id), r.session().in_done), (Some(0), 0));
    r.f.process_gone(r.now, CHANNEL);
    r.stored();
    assert_eq!((r.session().in_done, r.session().input.len() as u64), (0, 100 * PIECE));
}
