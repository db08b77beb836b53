use super::*;

impl Rig {
    fn checkpoint(&mut self, data: &[u8]) -> Result<(), Refused> {
        self.f.checkpoint(CHANNEL, THREAD, HANDLE, data)
    }

    fn kept(&self) -> Option<Vec<u8>> {
        self.f.restore_data(CHANNEL, HANDLE).expect("a session").map(<[u8]>::to_vec)
    }

    fn number(&self) -> SessionId {
        self.session().open.session
    }
}

/// What a replica has that stored the log up to each place in it, one after another.
fn at_each_place(log: &[u8], store: &Store, id: SessionId) -> Vec<(u64, u64, Option<Vec<u8>>)> {
    let (mut rest, mut seen) = (log, Vec::new());
    loop {
        let mut store = store.clone();
        store.apply_batch(&log[..log.len() - rest.len()]).expect("the log fits");
        store.drop_uncommitted();
        let s = store.get(id).expect("a session");
        seen.push((s.in_done, s.out_done, store.data(id).map(<[u8]>::to_vec)));
        if record::decode(&mut rest).expect("records").is_none() {
            return seen;
        }
    }
}

#[test]
fn a_checkpoint_and_its_turn_are_there_as_a_whole_wherever_the_log_ends() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"first"));
    r.read(5);
    r.write(b"one");
    r.checkpoint(b"state 1").expect("taken");
    r.wait();
    r.stored();
    let (before, id) = (r.replica.store().clone(), r.number());
    r.peer(say(ACK, 5, 0, b"second"));
    r.read(6);
    r.write(b"two.");
    r.checkpoint(b"no").expect("taken");
    r.checkpoint(b"state 2").expect("taken");
    r.write(b".");
    let mut log = Vec::new();
    r.f.take_batch(&mut log);
    assert_eq!(r.kept(), Some(b"state 2".to_vec()));
    r.wait();
    r.f.take_batch(&mut log);
    let mut seen = at_each_place(&log, &before, id);
    assert!(seen.len() > 4, "input, output, data and commit: {seen:?}");
    seen.dedup();
    assert_eq!(seen, [(5, 3, Some(b"state 1".to_vec())), (11, 8, Some(b"state 2".to_vec()))]);
}

#[test]
fn a_checkpoint_is_as_safe_as_what_leaves_with_it() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"ping"));
    r.stored();
    r.read(4);
    r.write(b"pong");
    r.checkpoint(b"served").expect("taken");
    r.wait();
    let held = r.kernel(say(ACK, 0, 4, b"pong"));
    assert!(!r.passes(&held), "I2: {held:?}");
    let told = r.stored();
    assert!(r.passes(&told), "{told:?}");
    assert_eq!(r.replica.store().data(r.number()), Some(&b"served"[..]));
}

#[test]
fn the_process_that_takes_over_has_the_checkpoint_and_the_input_behind_it() {
    for here in [false, true] {
        let mut r = Rig::open();
        r.peer(say(ACK, 0, 0, b"half a"));
        r.read(6);
        r.checkpoint(b"half a").expect("taken");
        r.wait();
        r.peer(say(ACK, 6, 0, b" line\n"));
        r.read(6);
        r.checkpoint(b"").expect("taken");
        r.write(b"heard\n");
        r.stored();
        // It dies before its turn is over.
        r.f.process_gone(r.now, CHANNEL);
        if here {
            r.f.recover(r.now);
        } else {
            std::mem::swap(&mut r.f, &mut r.replica);
            r.f.take_over(r.now);
        }
        r.f.probes();
        r.drain();
        let id = r.number();
        let spec = r.f.restore_spec(id, false, 0).expect("to be restored");
        assert_eq!((spec.in_done, spec.absorb), (6, 0));
        r.f.restored(r.now, id, 0);
        r.f.attach(r.now, CHANNEL + 1, 1, Origin::Recovered, &tuple(1000));
        r.drain();
        assert_eq!(r.f.restore_data(CHANNEL + 1, 1), Ok(Some(&b"half a"[..])));
        // Whatever it writes, what it has read is done when it says so.
        r.f.read(r.now, CHANNEL + 1, THREAD, 1, 6);
        r.writes(CHANNEL + 1, THREAD, 1, b"heard\n");
        r.f.turn_end(r.now, CHANNEL + 1, THREAD);
        r.f.run_commits(r.now);
        assert_eq!((r.session().in_done, r.session().out_done), (6, 6));
        r.f.checkpoint(CHANNEL + 1, THREAD, 1, b"none").expect("taken");
        r.f.turn_end(r.now, CHANNEL + 1, THREAD);
        r.f.run_commits(r.now);
        assert_eq!((r.session().in_done, r.f.store().data(id)), (12, Some(&b"none"[..])));
    }
}

#[test]
fn data_goes_with_its_session_and_comes_with_a_snapshot() {
    let mut r = Rig::open();
    r.peer(say(ACK, 0, 0, b"ping"));
    r.read(4);
    r.checkpoint(b"kept").expect("taken");
    r.wait();
    r.stored();
    let mut snapshot = Vec::new();
    r.f.snapshot(&mut snapshot);
    let mut other = Filter::new(config());
    other.replica_apply(&snapshot).expect("a snapshot");
    assert!(other.store() == r.f.store(), "I5");
    // Written anew, it keeps it.
    r.close();
    r.wait();
    let id = r.number();
    r.f.still_open(r.now, id);
    r.stored();
    assert_eq!(r.f.store().data(id), Some(&b"kept"[..]));
    r.f.swept(r.now, &tuple(1000));
    r.stored();
    assert_eq!((r.f.store().data(id), r.f.store().data_cost()), (None, 0));
    assert_eq!(r.checkpoint(b"x"), Err(Refused::NoSession));
    assert_eq!(r.f.restore_data(CHANNEL, HANDLE), Err(Refused::NoSession));
}

#[test]
fn data_is_bounded() {
    let mut r = Rig::new();
    r.f = Filter::new(FilterConfig { data_bytes: 1000 + crate::data::cost(0), ..config() });
    r.f.activate();
    r.f.hold_for_replica(0);
    r.handshake(false);
    r.attach();
    assert_eq!(r.kept(), None);
    assert_eq!(r.checkpoint(&[1; crate::data::MAX_VALUE + 1]), Err(Refused::TooLong));
    assert_eq!(r.checkpoint(&[1; 1001]), Err(Refused::Full));
    assert_eq!((r.checkpoint(&[1; 1000]), r.checkpoint(&[2; 1000])), (Ok(()), Ok(())));
    assert_eq!(r.checkpoint(&[3; 1001]), Err(Refused::Full));
    r.wait();
    // What is there is not in the way of what takes its place.
    assert_eq!(r.checkpoint(&[4; 1000]), Ok(()));
    r.wait();
    assert_eq!(r.kept(), Some(vec![4; 1000]));
    r.stored();
    assert_eq!(r.replica.checkpoint(CHANNEL, THREAD, HANDLE, b""), Err(Refused::NotMaster));
}

/// A partner of a version that knows no data is told none. It must not go on with a session of which it lacks some.
#[test]
fn a_session_with_data_is_torn_to_whom_does_not_know_it() {
    let mut r = Rig::open();
    r.f.set_replica_lacks(ReplicaLacks { data: true, ..ReplicaLacks::default() });
    r.peer(say(ACK, 0, 0, b"ping"));
    r.read(4);
    r.write(b"pong");
    r.checkpoint(b"kept").expect("taken");
    r.wait();
    let mut log = Vec::new();
    r.f.take_batch(&mut log);
    r.replica.replica_apply(&log).expect("the log fits");
    let id = r.number();
    let its = |f: &Filter| (f.store().get(id).map(|s| (s.in_done, s.torn)), f.store().data(id).is_some());
    assert_eq!((its(&r.f), its(&r.replica)), ((Some((4, false)), true), (Some((4, true)), false)));
    r.f.replica_stored(r.now, r.f.log().written());
    r.drain();
    let told = r.kernel(say(ACK, 0, 4, b"pong"));
    assert!(r.passes(&told), "{told:?}");
    let mut snapshot = Vec::new();
    r.f.snapshot(&mut snapshot);
    let mut other = Filter::new(config());
    other.replica_apply(&snapshot).expect("a snapshot");
    assert_eq!(its(&other), (Some((4, true)), false));
    // Here the next process has it all the same.
    r.f.process_gone(r.now, CHANNEL);
    r.f.recover(r.now);
    assert_eq!(its(&r.f), (Some((4, false)), true));
}

impl Rig {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Refused> {
        self.f.put(CHANNEL, THREAD, key, Some(value))
    }

    fn value(&mut self, channel: u32, key: &[u8]) -> Option<Vec<u8>> {
        self.f.get(channel, THREAD, key).map(<[u8]>::to_vec)
    }

    fn keys(&self, channel: u32) -> Vec<Vec<u8>> {
        std::iter::successors(self.f.next_key(channel, b""), |key| self.f.next_key(channel, key)).collect()
    }
}

#[test]
fn values_are_there_with_their_turn_wherever_the_log_ends() {
    let mut r = Rig::open();
    r.put(b"b", b"1").expect("taken");
    r.put(b"gone", b"1").expect("taken");
    r.wait();
    r.stored();
    let before = r.replica.store().clone();
    r.peer(say(ACK, 0, 0, b"ping"));
    r.read(4);
    r.write(b"pong");
    r.put(b"a", b"2").expect("taken");
    r.put(b"b", b"2").expect("taken");
    r.f.put(CHANNEL, THREAD, b"gone", None).expect("taken");
    r.checkpoint(b"2").expect("taken");
    r.wait();
    let mut log = Vec::new();
    r.f.take_batch(&mut log);
    let (mut rest, mut seen) = (&log[..], Vec::new());
    loop {
        let mut store = before.clone();
        store.apply_batch(&log[..log.len() - rest.len()]).expect("the log fits");
        store.drop_uncommitted();
        let done = store.get(r.number()).expect("a session").in_done;
        seen.push((done, [b"a", b"b", &b"gone"[..]].map(|key| store.value(key).map(<[u8]>::to_vec))));
        if record::decode(&mut rest).expect("records").is_none() {
            break;
        }
    }
    seen.dedup();
    let (one, two) = (Some(b"1".to_vec()), Some(b"2".to_vec()));
    assert_eq!(seen, [(0, [None, one.clone(), one]), (4, [two.clone(), two, None])]);
}

#[test]
fn a_process_sees_what_it_puts_and_others_see_it_when_the_turn_is_over() {
    let mut r = Rig::open();
    for key in [&b"a"[..], b"b", b"bb", b"c"] {
        r.put(key, key).expect("taken");
    }
    r.wait();
    let (mine, other) = (CHANNEL, CHANNEL + 1);
    assert_eq!((r.keys(mine), r.keys(other)), (r.keys(other), r.keys(mine)));
    assert_eq!(r.keys(other), [&b"a"[..], b"b", b"bb", b"c"]);
    r.put(b"b", b"new").expect("taken");
    r.put(b"ba", b"new").expect("taken");
    r.f.put(mine, THREAD, b"a", None).expect("taken");
    r.f.put(mine, THREAD, b"c", None).expect("taken");
    assert_eq!(r.f.put(mine, THREAD, b"c", None), Err(Refused::NoValue));
    assert_eq!(r.keys(mine), [&b"b"[..], b"ba", b"bb"]);
    assert_eq!(r.keys(other), [&b"a"[..], b"b", b"bb", b"c"]);
    assert_eq!((r.value(mine, b"b"), r.value(other, b"b")), (Some(b"new".to_vec()), Some(b"b".to_vec())));
    assert_eq!((r.value(mine, b"a"), r.value(other, b"a")), (None, Some(b"a".to_vec())));
    r.wait();
    assert_eq!(r.keys(other), [&b"b"[..], b"ba", b"bb"]);
    // A snapshot has them, and so has the process that takes over.
    r.stored();
    let mut snapshot = Vec::new();
    r.f.snapshot(&mut snapshot);
    let mut new = Filter::new(config());
    new.replica_apply(&snapshot).expect("a snapshot");
    assert!(new.store() == r.f.store(), "I5");
    assert_eq!(new.get(9, 1, b"b"), Some(&b"new"[..]));
    assert_eq!(new.next_key(9, b""), Some(b"b".to_vec()));
    assert_eq!(new.put(9, 1, b"b", Some(b"")), Err(Refused::NotMaster));
    r.put(b"b", b"never").expect("taken");
    r.f.process_gone(r.now, CHANNEL);
    r.f.recover(r.now);
    assert_eq!(r.value(other, b"b"), Some(b"new".to_vec()));
}

#[test]
fn values_are_bounded() {
    let mut r = Rig::open();
    r.f = Filter::new(FilterConfig { data_bytes: 3 * crate::data::cost(11), ..config() });
    r.f.activate();
    let mut put = |key: &[u8], n| r.f.put(CHANNEL, THREAD, key, Some(&vec![0; n]));
    assert_eq!(
        (put(b"", 1), put(&[1; 256], 1), put(b"a", 32769)),
        (Err(Refused::TooLong), Err(Refused::TooLong), Err(Refused::TooLong))
    );
    assert_eq!((put(b"a", 10), put(b"b", 10), put(b"c", 10), put(b"d", 0)), (Ok(()), Ok(()), Ok(()), Err(Refused::Full)));
    assert_eq!((put(b"a", 10), put(b"a", 11), put(b"a", 9)), (Ok(()), Err(Refused::Full), Ok(())));
    r.wait();
    assert_eq!(r.f.store().data_cost(), 3 * crate::data::cost(11) - 1);
    r.f.put(CHANNEL, THREAD, b"b", None).expect("always room");
    r.wait();
    r.put(b"d", b"").expect("room");
    r.wait();
    assert_eq!(r.keys(CHANNEL), [b"a", b"c", b"d"]);
    // A turn has so much at most, whatever takes whose place.
    r.f = Filter::new(FilterConfig { data_bytes: 1 << 30, ..config() });
    r.f.activate();
    let fits = (0..100).take_while(|_| r.put(b"a", &[0; 32768]) == Ok(())).count();
    assert_eq!((fits, r.put(b"b", &[0; 32768])), (31, Err(Refused::TurnFull)));
    r.wait();
    r.put(b"b", &[0; 32768]).expect("another turn");
}
