use super::*;

impl Rig {
    /// The kernel says that it has taken so much input.
    fn asked(&mut self, received: u64, ended: bool) -> Vec<Action> {
        let id = self.f.store().find(&tuple(self.port)).expect("a session");
        self.f.went_around(self.now, id, received, ended);
        self.drain()
    }

    fn torn(&self) -> bool {
        self.session().torn
    }
}

/// A request and its answer went around the queues; the next ones do not.
#[test]
fn a_session_goes_on_behind_an_exchange_that_went_around() {
    let mut r = Rig::open();
    // "ping" and "pong" on the wire, and no packet for us; the hooks tell all the same.
    r.read(4);
    r.write(b"pong");
    r.wait();
    assert!(r.torn(), "what was read is in no store");
    assert_eq!(r.f.poll_around(), Some(r.session().open.session), "the kernel is to be asked");
    r.asked(4, false);
    assert!(!r.torn(), "it is all done with");
    assert_eq!((r.session().in_done, r.session().in_end(), r.session().out_done), (4, 4, 4));
    r.stored();
    // The peer has the answer, as its next segment says.
    let actions = r.peer(say(ACK, 4, 4, b"again"));
    assert!(r.passes(&actions));
    assert_eq!((r.session().in_end(), input_of(r.session())), (9, b"again".to_vec()));
    r.read(5);
    r.write(b"and again");
    r.wait();
    r.stored();
    let actions = r.kernel(say(ACK, 4, 9, b"and again"));
    assert!(r.passes(&actions));
    r.stored();
    assert_eq!(r.f.counters().around, 1);
}

/// What the application has not read may be lost, and nobody can give it again: until it is read and answered the session
/// is torn, and a takeover resets it.
#[test]
fn input_that_went_around_tears_until_it_is_answered() {
    for dies in [false, true] {
        let mut r = Rig::open();
        r.asked(4, false);
        assert!(r.torn());
        r.stored();
        assert!(r.replica.store().iter().all(|s| s.torn));
        r.read(4);
        assert!(r.torn(), "read is not answered");
        if dies {
            r.f.process_gone(r.now, CHANNEL);
            r.drain();
            assert!(r.torn());
            r.stored();
            continue;
        }
        r.write(b"pong");
        r.wait();
        assert!(!r.torn());
        r.stored();
        assert!(r.replica.store().iter().all(|s| !s.torn));
    }
}

/// What comes through the queue behind a hole that only the local TCP has not: both are joined where they meet.
#[test]
fn what_came_early_stands_behind_what_went_around() {
    let mut r = Rig::open();
    let actions = r.peer(say(ACK, 4, 0, b"early"));
    assert!(r.passes(&actions), "the kernel takes it in its place");
    r.asked(9, false);
    assert_eq!((r.session().in_end(), &input_of(r.session())[4..]), (9, &b"early"[..]));
    r.read(9);
    r.write(b"x");
    r.wait();
    assert!(!r.torn());
    r.stored();
}

/// An acknowledgement that the kernel sends now covers what went around; it is let go when there is a place for it.
#[test]
fn acknowledgements_wait_for_the_place() {
    let mut r = Rig::open();
    r.read(4);
    r.write(b"pong");
    r.wait();
    r.stored();
    let actions = r.kernel(say(ACK, 0, 4, b"pong"));
    assert!(!r.passes(&actions));
    assert!(r.f.poll_around().is_some());
    r.asked(4, false);
    let actions = r.stored();
    assert!(r.passes(&actions), "{actions:?}");
}

/// An open turn whose output may have left cannot be done again.
#[test]
fn output_of_an_open_turn_tears_until_its_end() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"ping"));
    r.read(4);
    r.write(b"half");
    r.asked(4, false);
    assert!(r.torn());
    assert_eq!(r.f.counters().around, 0, "its input is whole");
    // The peer has it.
    let actions = r.peer(say(ACK, 4, 4, b""));
    assert!(r.passes(&actions));
    r.write(b" and half");
    r.wait();
    assert!(!r.torn());
    r.stored();
}

#[test]
fn the_end_of_input_may_go_around() {
    let mut r = Rig::open();
    r.asked(5, true);
    assert!(r.session().in_fin);
    assert_eq!(r.session().in_end(), 4);
    r.read(4);
    r.write(b"bye");
    r.wait();
    r.close();
    r.wait();
    r.stored();
    let actions = r.kernel(say(ACK | FIN, 0, 5, b"bye"));
    assert!(r.passes(&actions));
    r.peer(say(ACK, 5, 4, b""));
    r.kernel(say(ACK, 4, 5, b""));
    r.stored();
}

/// Nothing that a kernel, a peer or an application may say of it reaches an assertion.
#[test]
fn whatever_is_said_when_packets_went_around_is_survived() {
    for received in [0, 1, 4, 1 << 20, (64 << 20) + 5, u64::from(u32::MAX), 1 << 40] {
        for ended in [false, true] {
            for read in [0, 4, 1 << 20] {
                let mut r = Rig::open();
                r.peer(say(ACK, 0, 0, b"ping"));
                if read > 0 {
                    r.read(read);
                    r.write(b"x");
                    r.wait();
                }
                for _ in 0..2 {
                    if r.f.store().find(&tuple(r.port)).is_some() {
                        r.asked(received, ended);
                    }
                }
                r.kernel(say(ACK, 0, received & 0xffff, b"x"));
                if r.f.store().find(&tuple(r.port)).is_some() {
                    r.peer(say(ACK, received & 0xffff, 1, b"more"));
                    r.read(4);
                    r.write(b"y");
                    r.wait();
                    r.stored();
                    r.f.process_gone(r.now, CHANNEL);
                }
                r.drain();
                r.pass(ms(200));
            }
        }
    }
}

/// A program without hooks: what it sent meanwhile only the peer knows, and the kernel, which goes on behind it.
#[test]
fn without_hooks_output_goes_on_behind_what_went_around() {
    let mut r = Rig::new();
    r.f = Filter::new(FilterConfig { hooked: false, engine: Engine::Splice, ..config() });
    r.replica = Filter::new(FilterConfig { hooked: false, engine: Engine::Splice, ..config() });
    r.f.activate();
    r.f.hold_for_replica(0);
    r.handshake(false);
    // "ping" and "pong" went around.
    r.asked(4, false);
    r.stored();
    let actions = r.peer(say(ACK, 4, 4, b"ping"));
    // The local TCP gets it with an acknowledgement of what it is known to have sent.
    assert!(
        matches!(actions[..], [Action::ModifyIn(..)]),
        "the acknowledgement of what nobody saw leave is no forgery: {actions:?}"
    );
    let mut actions = r.kernel(say(ACK, 4, 8, b"pong"));
    actions.extend(r.stored());
    assert!(r.passes(&actions), "{actions:?}");
    assert_eq!(r.session().out_done, 8);
    assert!(!r.torn());
}
