use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::tuple::FourTuple;

/// A record that owns its data.
#[derive(Clone, Debug)]
struct Owned {
    thread: u16,
    call: Call,
    fd: i32,
    result: i64,
    data: Vec<u8>,
}

impl Owned {
    fn record(&self) -> Record<'_> {
        Record { thread: self.thread, call: self.call, fd: self.fd, result: self.result, data: &self.data }
    }
}

fn one(call: Call, fd: i32, result: i64, data: &[u8]) -> Owned {
    Owned { thread: 0, call, fd, result, data: data.to_vec() }
}

/// Records that look like those of programs, and any others.
fn any_record() -> impl Strategy<Value = Owned> {
    let call = proptest::sample::select(Call::ALL);
    let thread = prop_oneof![6 => Just(0u16), 2 => 0u16..4, 1 => any::<u16>()];
    let fd = prop_oneof![6 => 0i32..20, 1 => any::<i32>()];
    let result = prop_oneof![2 => -4095i64..0, 4 => 0i64..3000, 2 => 1_700_000_000_000_000_000i64..1_700_000_001_000_000_000,
        1 => any::<i64>()];
    (thread, call, fd, result, any::<bool>(), vec(any::<u8>(), 0..60)).prop_map(|(thread, call, fd, result, length, data)| {
        let result = if length { data.len() as i64 } else { result };
        Owned { thread, call, fd, result, data }
    })
}

fn encode_all(records: &[Owned]) -> (Vec<u8>, Deltas) {
    let (mut bytes, mut deltas) = (Vec::new(), Deltas::default());
    for record in records {
        let at = bytes.len();
        bytes.resize(at + longest(record.data.len()), 0);
        let len = encode(&record.record(), &mut deltas, &mut bytes[at..]).expect("there is room");
        bytes.truncate(at + len);
    }
    (bytes, deltas)
}

proptest! {
    #[test]
    fn what_was_written_is_read(records in vec(any_record(), 0..40)) {
        let (bytes, after) = encode_all(&records);
        let (mut at, mut deltas) = (0, Deltas::default());
        for record in &records {
            let (read, len) = decode(&bytes[at..], &mut deltas).expect("a record").expect("a whole one");
            prop_assert_eq!(read, record.record());
            at += len;
            let _ = read.to_string();
        }
        prop_assert_eq!(at, bytes.len());
        prop_assert_eq!(deltas, after);
    }

    #[test]
    fn a_record_that_is_cut_is_no_record_yet(records in vec(any_record(), 0..5), last in any_record()) {
        let (before, deltas) = encode_all(&records);
        let (all, _) = encode_all(&[records, vec![last]].concat());
        for end in before.len()..all.len() {
            let mut state = deltas.clone();
            prop_assert_eq!(decode(&all[before.len()..end], &mut state), Ok(None));
            prop_assert_eq!(&state, &deltas);
        }
    }

    #[test]
    fn a_record_without_room_changes_nothing(records in vec(any_record(), 0..5), last in any_record()) {
        let (before, deltas) = encode_all(&records);
        let (all, _) = encode_all(&[records, vec![last.clone()]].concat());
        let len = all.len() - before.len();
        for room in 0..=len {
            let (mut state, mut out) = (deltas.clone(), vec![0xaa; room]);
            let written = encode(&last.record(), &mut state, &mut out);
            prop_assert_eq!(written, (room == len).then_some(len));
            if written.is_none() {
                prop_assert_eq!(&state, &deltas);
                prop_assert!(out.iter().all(|&byte| byte == 0xaa));
            }
        }
    }

    #[test]
    fn garbage_is_refused_or_read(bytes in vec(any::<u8>(), 0..200)) {
        let (mut at, mut deltas) = (0, Deltas::default());
        loop {
            let before = deltas.clone();
            match decode(&bytes[at..], &mut deltas) {
                Ok(Some((record, len))) => {
                    prop_assert!(len > 0 && len <= bytes.len() - at);
                    let _ = record.to_string();
                    // Written again it is not longer, and means the same.
                    let (mut state, mut out) = (before.clone(), vec![0; longest(record.data.len())]);
                    let again = encode(&record, &mut state, &mut out).expect("there is room");
                    prop_assert!(again <= len);
                    prop_assert_eq!(&state, &deltas);
                    let mut state = before;
                    prop_assert_eq!(decode(&out[..again], &mut state), Ok(Some((record, again))));
                    at += len;
                }
                Ok(None) => { prop_assert_eq!(deltas, before); break }
                Err(_) => { prop_assert_eq!(deltas, before); break }
            }
        }
    }
}

#[test]
fn what_repeats_costs_a_byte() {
    let now = 1_700_000_000_123_456_789;
    let seconds = 1_700_000_000_000_000_000;
    let mut records =
        vec![one(Call::Clock, clock::TIME, seconds, b""), one(Call::Clock, 1, now, b""), one(Call::Clock, 0, now, b"")];
    let (first, _) = encode_all(&records);
    for _ in 0..10 {
        records.push(one(Call::Clock, clock::TIME, seconds, b""));
        records.push(one(Call::Clock, 1, now, b""));
    }
    assert_eq!(encode_all(&records).0.len() - first.len(), 20);
    // 50 microseconds later
    let (before, _) = encode_all(&records);
    records.push(one(Call::Clock, 1, now + 50_000, b""));
    assert_eq!(encode_all(&records).0.len() - before.len(), 4);
    let locks = vec![one(Call::Lock, 0, 0, b""); 10];
    assert_eq!(encode_all(&locks).0.len(), 10);
    // The result of a read is the length of its data: form, flags, descriptor, length.
    assert_eq!(encode_all(&[one(Call::Read, 7, 43, &[b'x'; 43])]).0.len(), 4 + 43);
}

#[test]
fn the_longest_record_fits_in_what_is_said() {
    let record = Owned { thread: u16::MAX, call: Call::Ioctl, fd: i32::MIN, result: i64::MIN, data: vec![1; 1 << 21] };
    let mut out = vec![0; longest(record.data.len())];
    assert!(encode(&record.record(), &mut Deltas::default(), &mut out).is_some());
}

#[test]
fn slots_of_calls_and_clocks_do_not_meet() {
    assert!(Call::ALL.len() <= 64 - clock::COUNT as usize);
    for (number, &call) in Call::ALL.iter().enumerate() {
        assert_eq!(call as usize, number);
    }
}

#[test]
fn bytes_that_no_encoder_writes_are_refused() {
    let refused = |bytes: &[u8]| decode(bytes, &mut Deltas::default()).is_err();
    let clock_0 = 64 - clock::COUNT as u8;
    assert!(refused(&[0xc0]), "unknown form");
    assert!(refused(&[Call::ALL.len() as u8]), "unknown call");
    assert!(refused(&[0x80, 0x20]), "unknown flag");
    assert!(refused(&[0x80, 8]), "the length of no data");
    assert!(refused(&[0x80, 28, 4, 1, b'x']), "two results");
    assert!(refused(&[0x80, 1, 0xff, 0xff, 0x7f]), "thread");
    assert!(refused(&[0x80, 2, 0xff, 0xff, 0xff, 0xff, 0x7f]), "descriptor");
    assert!(refused(&[0x80, 16, 0xff, 0xff, 0xff, 0xff, 0x7f]), "length");
    assert!(refused(&[[0x40].as_slice(), &[0xff; 10]].concat()), "number");
    assert!(refused(&[0x80 | clock_0, 2, 2]), "clock 1 in the slot of clock 0");
}

fn session_of(tuple: FourTuple) -> [u8; SESSION] {
    let mut session = [7; SESSION];
    session[..FourTuple::BYTES].copy_from_slice(&tuple.to_bytes());
    session
}

#[test]
fn records_are_told_in_plain_words() {
    let tuple = FourTuple { local: "192.0.2.200:6667".parse().unwrap(), peer: "192.0.2.9:1000".parse().unwrap() };
    let mut sockaddr = [0; 16];
    sockaddr[..2].copy_from_slice(&2u16.to_ne_bytes());
    sockaddr[2..8].copy_from_slice(&[0x03, 0xe8, 192, 0, 2, 9]);
    let mut accepted = [0; ACCEPTED_MAX];
    let session = session_of(tuple);
    let len = Accepted { address: &sockaddr, session: Some(session) }.encode(&mut accepted);
    let name = [&16u32.to_ne_bytes()[..], &sockaddr].concat();
    let pair = [3i32.to_ne_bytes(), 4i32.to_ne_bytes()].concat();
    for (record, words) in [
        (one(Call::Read, 7, 10, b"NICK bob\r\n"), r#"read of descriptor 7 gave 10 bytes: "NICK bob\r\n""#),
        (one(Call::Read, 7, 40, &[b'a'; 40]), r#"read of descriptor 7 gave 40 bytes: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...""#),
        (one(Call::Read, 7, -11, b""), "read of descriptor 7 failed: EAGAIN"),
        (one(Call::Read, 7, 0, b""), "read of descriptor 7 gave 0 bytes"),
        (one(Call::Write, 7, 1, &[0; 8]), "write of descriptor 7 took 1 byte"),
        (
            one(Call::Accept, 4, 7, &accepted[..len]),
            "accept of descriptor 4 gave descriptor 7 from 192.0.2.9:1000, protected, to 192.0.2.200:6667",
        ),
        (
            one(Call::Connect, 8, -115, &session),
            "connect of descriptor 8 is under way, protected: 192.0.2.200:6667 -> 192.0.2.9:1000",
        ),
        (
            one(Call::Connected, 8, 0, &session),
            "the connection of descriptor 8 has been made, protected: 192.0.2.200:6667 -> 192.0.2.9:1000",
        ),
        (one(Call::Name, 7, 0, &name), "name of descriptor 7 is 192.0.2.9:1000"),
        (one(Call::Clock, 0, 1_709_251_199_000_000_001, b""), "clock realtime was 2024-02-29T23:59:59.000000001Z"),
        (one(Call::Clock, clock::TIME, 951_868_800_000_000_000, b""), "time was 2000-03-01T00:00:00.000000000Z"),
        (one(Call::Clock, 1, 12_000_000_003, b""), "clock monotonic was 12.000000003 s"),
        (one(Call::Clock, 1, -22, b""), "clock monotonic failed: EINVAL"),
        (one(Call::Poll, 3, 1, &[0; 4]), "poll of 3 descriptors gave 1 event"),
        (one(Call::Lock, 0, 0, b""), "lock"),
        (one(Call::NewFd, 0, 0, &pair), "new descriptor gave descriptors 3 and 4"),
        (one(Call::NewFd, 0, 5, b""), "new descriptor gave descriptor 5"),
        (one(Call::Signal, -1, 17, &[0; 128]), "signal SIGCHLD"),
        (one(Call::Signal, -1, 40, &[0; 128]), "signal number 40"),
        (one(Call::Fork, 0, 812, b""), "fork made process 812"),
        (one(Call::Marker, 0, 2, b""), "marker: the follower went live"),
    ] {
        assert_eq!(record.record().to_string(), format!("thread 0, {words}"));
    }
}

#[test]
fn accepted_data_comes_back() {
    let tuple = FourTuple { local: "[2001:db8::1]:80".parse().unwrap(), peer: "[2001:db8::2]:90".parse().unwrap() };
    for session in [None, Some(session_of(tuple))] {
        for address in [&[][..], &[9; 28]] {
            let (accepted, mut out) = (Accepted { address, session }, [0; ACCEPTED_MAX]);
            let len = accepted.encode(&mut out);
            assert_eq!(Accepted::decode(&out[..len]), Some(accepted));
        }
    }
    assert_eq!(Accepted::decode(&[3, 1]), None);
    assert_eq!(Accepted::decode(&[0, 1]), None);
}

/// A leader's trace of these records.
fn trace_of(records: &[Owned]) -> (Vec<u8>, Cursor) {
    let (mut trace, mut cursor) = (Vec::new(), Cursor::default());
    for record in records {
        append(&mut cursor, &record.record(), &[&record.data], &mut trace);
    }
    (trace, cursor)
}

fn append(cursor: &mut Cursor, record: &Record<'_>, parts: &[&[u8]], trace: &mut Vec<u8>) {
    let at = trace.len();
    trace.resize(at + longest(parts.iter().map(|part| part.len()).sum()), 0);
    let len = cursor.append(record, parts, &mut trace[at..]).expect("there is room");
    trace.truncate(at + len);
    assert_eq!(cursor.position(), trace.len() as u64);
}

/// What comes next, of a trace that is here from its beginning on.
fn step<'a>(cursor: &mut Cursor, trace: &'a [u8], thread: u16, call: Call, fd: i32) -> Step<'a> {
    let at = cursor.position() as usize;
    cursor.step(&trace[at..], thread, call, fd)
}

#[test]
fn threads_take_their_records_in_turn() {
    let of = |thread: u16, record: Owned| Owned { thread, ..record };
    let records = [
        of(0, one(Call::Thread, 0, 1, b"")),
        of(0, one(Call::Marker, 0, 2, b"")),
        of(1, one(Call::Read, 5, 2, b"hi")),
        of(0, one(Call::Signal, -1, 15, b"info")),
        of(0, one(Call::Clock, 1, 7, b"")),
    ];
    let (trace, leader) = trace_of(&records);
    let mut cursor = Cursor::default();
    assert_eq!(step(&mut cursor, &trace, 1, Call::Read, 5), Step::Others(0));
    assert_eq!(step(&mut cursor, &trace, 0, Call::Thread, 0), Step::Result(records[0].record()));
    assert_eq!(step(&mut cursor, &trace, 0, Call::Thread, 0), Step::Result(records[0].record()), "not executed yet");
    cursor.executed();
    assert_eq!(step(&mut cursor, &trace, 0, Call::Clock, 1), Step::Others(1));
    assert_eq!(step(&mut cursor, &trace, 1, Call::Read, 5), Step::Result(records[2].record()));
    cursor.executed();
    assert_eq!(step(&mut cursor, &trace, 1, Call::Read, 5), Step::Others(0));
    assert_eq!(step(&mut cursor, &trace, 0, Call::Clock, 1), Step::Before(records[3].record()));
    cursor.executed();
    assert_eq!(step(&mut cursor, &trace, 0, Call::Clock, 1), Step::Result(records[4].record()));
    cursor.executed();
    for thread in 0..3 {
        assert_eq!(step(&mut cursor, &trace, thread, Call::Clock, 1), Step::End);
    }
    assert_eq!((cursor.position(), cursor.records()), (leader.position(), 5));
    // It goes on as a leader: another follower reads on.
    let (mut trace, mut third) = (trace, cursor.clone());
    let data = one(Call::Read, 5, 4, b"more");
    append(&mut cursor, &data.record(), &[b"mo", b"", b"re"], &mut trace);
    assert_eq!(step(&mut third, &trace, 0, Call::Read, 5), Step::Result(data.record()));
}

#[test]
fn both_sides_of_a_divergence_are_told() {
    let (trace, _) = trace_of(&[one(Call::Clock, 1, 5, b""), one(Call::Read, 7, 10, b"NICK bob\r\n")]);
    let mut cursor = Cursor::default();
    assert!(matches!(step(&mut cursor, &trace, 0, Call::Clock, 1), Step::Result(_)));
    cursor.executed();
    let Step::Diverged(divergence) = step(&mut cursor, &trace, 0, Call::Write, 5) else { panic!("it does something else") };
    let side = r#"record 1: the trace says: thread 0, read of descriptor 7 gave 10 bytes: "NICK bob\r\n"; the program "#;
    assert_eq!(divergence.to_string(), format!("{side}does: write of descriptor 5"));
    let Step::Diverged(divergence) = step(&mut cursor, &trace, 0, Call::Read, 8) else { panic!("another descriptor") };
    assert_eq!(divergence.to_string(), format!("{side}does: read of descriptor 8"));
    let Step::Result(record) = step(&mut cursor, &trace, 0, Call::Read, 7) else { panic!("it is the same") };
    assert_eq!(cursor.check_room(record, 10), Ok(()));
    assert_eq!(cursor.check_room(record, 9).unwrap_err().to_string(), format!("{side}has room for 9 bytes"));
    for (program, words) in [
        (Program::Gets(-98), "gets: EADDRINUSE"),
        (Program::Gets(3), "gets: 3"),
        (Program::Does("sends a message without an address"), "sends a message without an address"),
    ] {
        assert_eq!(cursor.diverged(record, program).to_string(), format!("{side}{words}"));
    }
}

#[test]
fn output_is_compared() {
    let mut hash = Hash::new();
    hash.add(b"hello, world");
    let data = hash.finish().to_ne_bytes();
    let (cursor, written) = (Cursor::default(), one(Call::Write, 7, 12, &data));
    let check = |pieces: &[&'static [u8]]| {
        cursor.check_output(written.record(), pieces.iter().copied()).map_err(|divergence| divergence.to_string())
    };
    assert_eq!(check(&[b"hello, world"]), Ok(()));
    assert_eq!(check(&[b"hel", b"", b"lo, wo", b"rld"]), Ok(()), "in other pieces");
    assert_eq!(check(&[b"hello, world, and what was not taken", b"then"]), Ok(()));
    let side = "record 0: the trace says: thread 0, write of descriptor 7 took 12 bytes; the program";
    assert_eq!(check(&[b"hello", b" "]), Err(format!("{side} offers 6 bytes")));
    assert_eq!(check(&[b"Hello, ", b"world"]), Err(format!("{side} writes other bytes: \"Hello, \"")));
    let failed = one(Call::Write, 7, -11, b"");
    assert_eq!(cursor.check_output(failed.record(), [b"anything".as_slice()].into_iter()), Ok(()));
}

proptest! {
    #[test]
    fn a_hash_is_of_the_bytes_and_not_of_the_pieces(bytes in vec(any::<u8>(), 0..100), cuts in vec(0usize..100, 0..6), at in 0usize..100) {
        let whole = { let mut hash = Hash::new(); hash.add(&bytes); hash.finish() };
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.sort_unstable();
        let (mut hash, mut from) = (Hash::new(), 0);
        for cut in cuts {
            hash.add(&bytes[from..cut]);
            from = cut;
        }
        hash.add(&bytes[from..]);
        prop_assert_eq!(hash.finish(), whole);
        // Other bytes, fewer and more of them have another hash.
        let of = |bytes: &[u8]| { let mut hash = Hash::new(); hash.add(bytes); hash.finish() };
        if at < bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 1;
            prop_assert_ne!(of(&other), whole);
            prop_assert_ne!(of(&bytes[..at]), whole);
        }
        prop_assert_ne!(of(&[&bytes[..], &[0]].concat()), whole);
    }

    #[test]
    fn a_follower_of_garbage_ends_somewhere(trace in vec(any::<u8>(), 0..300), calls in vec((0u16..3, any::<u8>(), 0i32..4), 0..60)) {
        let mut cursor = Cursor::default();
        for (thread, call, fd) in calls {
            let call = Call::ALL[usize::from(call) % Call::ALL.len()];
            let before = cursor.position();
            match step(&mut cursor, &trace, thread, call, fd) {
                Step::Result(record) => {
                    let _ = cursor.check_output(record, [trace.as_slice()].into_iter()).map_err(|divergence| divergence.to_string());
                    cursor.executed();
                }
                Step::Before(_) => cursor.executed(),
                Step::Diverged(divergence) => prop_assert!(divergence.to_string().starts_with("record ")),
                Step::Others(_) | Step::End | Step::Malformed(_) => {}
            }
            prop_assert!(cursor.position() >= before && cursor.position() <= trace.len() as u64);
        }
    }
}
