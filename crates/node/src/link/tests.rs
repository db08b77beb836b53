//! Two ends over loopback.

use super::message::tests::{any_plan, build, Plan};
use super::socket::Epoll;
use super::*;
use crate::key::Key;
use proptest::prelude::*;
use std::io::{Read, Write};
use std::time::Instant;
use tcpr_session::role::Epoch;

const EPOCH: Epoch = Epoch { number: 3, member: 1 };

fn config(service: &str, key: u8) -> Arc<LinkConfig> {
    Arc::new(patient(LinkConfig::new(service, Key::new([key; 32]))))
}

/// Both ends are one thread here, which a busy machine may hold up for longer than a partner ever should be.
fn patient(config: LinkConfig) -> LinkConfig {
    LinkConfig { user_timeout: Duration::from_secs(60), ..config }
}

fn listener(config: &Arc<LinkConfig>) -> (Listener, SocketAddr) {
    let listener = Listener::listen("127.0.0.1:0".parse().unwrap(), Arc::clone(config)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn dial(address: SocketAddr, config: &Arc<LinkConfig>) -> Link {
    Link::connect(Now::ZERO, address, Some("127.0.0.1:0".parse().unwrap()), Arc::clone(config)).unwrap()
}

/// Lets a link do what its descriptor is ready for; whether it did something.
fn step(link: &mut Link) -> bool {
    let (read, write) = link.interest();
    let epoll = Epoll::new().unwrap();
    epoll.set(link.fd(), read, write).unwrap();
    let ready: Vec<_> = epoll.wait(1).unwrap().collect();
    for &(_, readable, writable) in &ready {
        link.on_ready(Now::ZERO, readable, writable);
    }
    !ready.is_empty()
}

fn meet(listener: &mut Listener, dialer: &mut Link) -> Link {
    for _ in 0..2000 {
        step(dialer);
        assert_eq!(dialer.close_reason(), None);
        if let Some(link) = listener.on_ready(Now::ZERO) {
            return link;
        }
    }
    panic!("never met");
}

fn pair() -> (Link, Link) {
    let config = config("chat", 1);
    let (mut listener, address) = listener(&config);
    let mut dialer = dial(address, &config);
    let accepted = meet(&mut listener, &mut dialer);
    assert!(dialer.established() && accepted.established());
    assert_eq!((dialer.version(), accepted.version()), (Some(PROTOCOL), Some(PROTOCOL)));
    assert_eq!(listener.rejections().total(), 0);
    (dialer, accepted)
}

/// Until `link` is over; what it said before.
fn until_closed(link: &mut Link) -> (usize, CloseReason) {
    let mut messages = 0;
    for _ in 0..2000 {
        step(link);
        while link.poll_message().is_some() {
            messages += 1;
        }
        if let Some(reason) = link.close_reason() {
            return (messages, *reason);
        }
    }
    panic!("never closed");
}

#[test]
fn messages_queued_while_dialing_arrive() {
    let config = config("chat", 1);
    let (mut listener, address) = listener(&config);
    let mut dialer = dial(address, &config);
    let hello = Message::Hello(Hello {
        protocol: PROTOCOL,
        service: "chat".into(),
        member: 1,
        boot: 77,
        epoch: EPOCH,
        role: 1,
        config_digest: 5,
    });
    dialer.send(&hello).unwrap();
    dialer.flush();
    let mut accepted = meet(&mut listener, &mut dialer);
    // It may have come with the confirmation, with nothing left to read.
    for _ in 0..2000 {
        if let Some(message) = accepted.poll_message() {
            assert_eq!(message, hello);
            return;
        }
        step(&mut accepted);
    }
    panic!("no hello");
}

#[test]
fn both_ends_say_why_they_part() {
    for (theirs, fault) in [(config("chat", 2), Fault::Key), (config("mail", 1), Fault::Service)] {
        let (mut listener, address) = listener(&config("chat", 1));
        let mut dialer = dial(address, &theirs);
        for _ in 0..2000 {
            step(&mut dialer);
            assert!(listener.on_ready(Now::ZERO).is_none());
            if dialer.close_reason().is_some() {
                break;
            }
        }
        assert_eq!(dialer.close_reason(), Some(&CloseReason::Handshake(fault)));
        let (_, reason) = listener.take_last_rejection().unwrap();
        assert_eq!(reason, CloseReason::Handshake(fault));
        assert!(!reason.to_string().is_empty());
        assert_eq!(listener.rejections().total(), 1);
    }
}

#[test]
fn strangers_cannot_keep_the_partner_out() {
    let config = config("chat", 1);
    let (mut listener, address) = listener(&config);
    let mut strangers: Vec<_> = (0..30).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut dialer = dial(address, &config);
    let link = meet(&mut listener, &mut dialer);
    assert!(link.established());
    assert!(listener.rejections().crowded >= 30 - MAX_HALF_OPEN as u64);
    // Those that are left are told nothing and are dropped: garbage at once, silence after the deadline.
    let last = strangers.last_mut().unwrap();
    last.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    while listener.rejections().not_tcpr == 0 {
        assert!(listener.on_ready(Now::ZERO).is_none());
    }
    assert_eq!(last.read(&mut [0; 10]).unwrap_or(0), 0);
    assert_eq!(listener.poll_timeout(), Some(HANDSHAKE_TIMEOUT));
    listener.handle_timeout(HANDSHAKE_TIMEOUT);
    assert_eq!(listener.poll_timeout(), None);
    assert!(listener.rejections().timeout > 0);
}

#[test]
fn a_recorded_handshake_is_not_a_partner() {
    let config = config("chat", 1);
    let (mut listener, address) = listener(&config);
    let (_, offer) = handshake::offer(&config).unwrap();
    let mut replay = TcpStream::connect(address).unwrap();
    replay.write_all(&offer).unwrap();
    let mut answer = [0; ANSWER_LEN];
    replay.set_nonblocking(true).unwrap();
    while replay.peek(&mut answer).is_err() {
        assert!(listener.on_ready(Now::ZERO).is_none());
    }
    // An old confirmation does not fit the keys of the new answer.
    replay.write_all(&[16, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]).unwrap();
    while listener.rejections().total() == 0 {
        assert!(listener.on_ready(Now::ZERO).is_none());
    }
    assert_eq!(listener.rejections().key, 1);
}

#[test]
fn nobody_there_and_nobody_answering() {
    let config = config("chat", 1);
    let (listener, address) = listener(&config);
    drop(listener);
    let mut dialer = dial(address, &config);
    assert_eq!(until_closed(&mut dialer), (0, CloseReason::Refused));
    assert_eq!(dialer.interest(), (false, false));

    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut dialer = dial(silent.local_addr().unwrap(), &config);
    step(&mut dialer);
    assert_eq!(dialer.poll_timeout(), Some(HANDSHAKE_TIMEOUT));
    dialer.handle_timeout(HANDSHAKE_TIMEOUT - Duration::from_nanos(1));
    assert_eq!(dialer.close_reason(), None);
    dialer.handle_timeout(HANDSHAKE_TIMEOUT);
    assert_eq!(dialer.close_reason(), Some(&CloseReason::HandshakeTimeout));
    assert_eq!(dialer.send(&Message::Paired { epoch: EPOCH }), Err(SendError::Closed));
}

#[test]
fn last_words_are_read_before_the_end() {
    let (mut a, mut b) = pair();
    a.send(&Message::Ack { epoch: EPOCH, position: 1 }).unwrap();
    a.close(Goodbye::PartnerSuspected);
    assert_eq!(a.close_reason(), Some(&CloseReason::Local));
    drop(a);
    let (messages, reason) = until_closed(&mut b);
    assert_eq!((messages, reason), (2, CloseReason::Eof));
    assert!(reason.partner_gone());
}

#[test]
fn last_words_are_read_after_a_reset() {
    let (mut a, mut b) = pair();
    // Something unread at `a` makes its kernel send a reset when it dies.
    b.send(&Message::Ack { epoch: EPOCH, position: 1 }).unwrap();
    b.flush();
    for position in 0..10 {
        a.send(&Message::Ack { epoch: EPOCH, position }).unwrap();
    }
    a.flush();
    drop(a);
    // Writing into the reset connection must not hide what was said before.
    for _ in 0..3 {
        b.send(&Message::Ack { epoch: EPOCH, position: 2 }).unwrap();
        b.flush();
    }
    let (messages, reason) = until_closed(&mut b);
    assert_eq!((messages, reason), (10, CloseReason::Reset));
    assert!(reason.partner_gone());
}

#[test]
fn a_partner_that_does_not_read_is_an_error_and_bounded() {
    let mut small = patient(LinkConfig::new("chat", Key::LOOPBACK));
    small.send_limit = 3 << 20;
    let small = Arc::new(small);
    let (mut listener, address) = listener(&small);
    let mut dialer = dial(address, &small);
    let mut accepted = meet(&mut listener, &mut dialer);
    let bytes = vec![1; MAX_BYTES];
    let mut sent = 0;
    let error = loop {
        match dialer.send(&Message::Forward { bytes: &bytes }) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        dialer.flush();
        assert!(sent < 100);
    };
    assert_eq!(error, SendError::Full);
    assert!(dialer.buffered() < (3 << 20) + 2 * MAX_MESSAGE);
    assert_eq!(dialer.interest(), (true, true));
    // It recovers as soon as somebody reads.
    let mut got = 0;
    while got < sent {
        step(&mut dialer);
        step(&mut accepted);
        assert_eq!((dialer.close_reason(), accepted.close_reason()), (None, None));
        while let Some(message) = accepted.poll_message() {
            assert_eq!(message, Message::Forward { bytes: &bytes });
            got += 1;
        }
    }
    assert_eq!(dialer.buffered(), 0);
}

#[test]
fn garbage_after_the_handshake_closes() {
    let (mut a, mut b) = pair();
    a.outbox.push_raw(&[40, 0]);
    a.outbox.push_raw(&[7; 40]);
    a.flush();
    assert_eq!(until_closed(&mut b), (0, CloseReason::Corrupt));
    // One that is shorter than its tag.
    let (mut a, mut b) = pair();
    a.outbox.push_raw(&[3, 0, 1, 2, 3]);
    a.flush();
    assert_eq!(until_closed(&mut b), (0, CloseReason::Corrupt));
}

#[test]
fn a_flush_is_one_system_call() {
    let (mut a, mut b) = pair();
    let before = a.traffic();
    for position in 0..100 {
        a.send(&Message::Records { epoch: EPOCH, position: position * 32, bytes: &[1; 32] }).unwrap();
    }
    a.flush();
    let after = a.traffic();
    assert_eq!(after.writes - before.writes, 1);
    assert_eq!(after.sent - before.sent, 2 + 16 + 17 + 100 * 34);
    let mut got = 0;
    while got < 100 {
        step(&mut b);
        assert_eq!(b.close_reason(), None);
        while let Some(message) = b.poll_message() {
            assert_eq!(message, Message::Records { epoch: EPOCH, position: got * 32, bytes: &[1; 32] });
            got += 1;
        }
    }
    assert_eq!(b.traffic().received - after.sent, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn both_directions_keep_order_and_bytes(
        plans in proptest::collection::vec(any_plan(2000), 1..30),
        large in proptest::collection::vec(0..MAX_BYTES, 1..4),
    ) {
        let large = large.iter().map(|&size| (3, EPOCH, 7, (0..size).map(|n| n as u8).collect()));
        let plans: Vec<Plan> = plans.into_iter().chain(large).collect();
        let (mut a, mut b) = pair();
        for plan in &plans {
            a.send(&build(plan)).unwrap();
            b.send(&build(plan)).unwrap();
        }
        let mut expected = [plans.iter(), plans.iter()];
        while expected.iter().any(|rest| rest.len() > 0) {
            for (link, expected) in [&mut a, &mut b].into_iter().zip(&mut expected) {
                step(link);
                while let Some(message) = link.poll_message() {
                    prop_assert_eq!(message, build(expected.next().unwrap()));
                }
                prop_assert_eq!(link.close_reason(), None);
            }
        }
    }
}

/// The loop of a manager that only has this link.
fn drive(mut link: Link, mut each: impl FnMut(&mut Link) -> bool) -> Link {
    let epoll = Epoll::new().unwrap();
    let mut interest = (true, false);
    epoll.set(link.fd(), true, false).unwrap();
    loop {
        let ready = epoll.wait(-1).unwrap().next();
        if let Some((_, readable, writable)) = ready {
            link.on_ready(Now::ZERO, readable, writable);
        }
        if !each(&mut link) || link.close_reason().is_some() {
            return link;
        }
        if link.interest() != interest {
            interest = link.interest();
            epoll.set(link.fd(), interest.0, interest.1).unwrap();
        }
    }
}

/// The replica: one acknowledgement a wake.
fn acknowledge(link: &mut Link) -> bool {
    let mut stored = None;
    while let Some(message) = link.poll_message() {
        if let Message::Records { epoch, position, bytes } = message {
            stored = Some((epoch, position + bytes.len() as u64));
        }
    }
    if let Some((epoch, position)) = stored {
        // An error shows in the close reason.
        let _ = link.send(&Message::Ack { epoch, position });
        link.flush();
    }
    true
}

fn acknowledged(link: &mut Link) -> Option<u64> {
    let mut last = None;
    while let Some(message) = link.poll_message() {
        if let Message::Ack { position, .. } = message {
            last = Some(position);
        }
    }
    last
}

#[test]
#[ignore = "a measurement: cargo test --release -p tcpr-node link::tests::measure -- --ignored --nocapture"]
fn measure() {
    const ROUNDS: u64 = 20_000;
    let (mut a, b) = pair();
    let replica = std::thread::spawn(|| drive(b, acknowledge));
    let bytes = [7; 100];
    let mut times = Vec::new();
    let mut position = 0;
    let mut started = Instant::now();
    a.send(&Message::Records { epoch: EPOCH, position, bytes: &bytes }).unwrap();
    a.flush();
    let mut a = drive(a, |link| {
        if acknowledged(link) == Some(position + 100) {
            times.push(started.elapsed());
            position += 100;
            started = Instant::now();
            link.send(&Message::Records { epoch: EPOCH, position, bytes: &bytes }).unwrap();
            link.flush();
        }
        (times.len() as u64) < ROUNDS
    });
    times.sort();
    let at = |part: f64| times[(times.len() as f64 * part) as usize];
    println!("round trip of 100 bytes and Ack: p50 {:?} p90 {:?} p99 {:?}", at(0.5), at(0.9), at(0.99));

    for size in [64usize, 1500, 65_536] {
        let total = 400_000_000u64.min(size as u64 * 4_000_000);
        let bytes = vec![3; size];
        let (started, first) = (Instant::now(), position + 100);
        position = first;
        let before = a.traffic();
        let fill = |link: &mut Link, position: &mut u64| {
            while link.buffered() < 1 << 20 && *position < first + total {
                link.send(&Message::Records { epoch: EPOCH, position: *position, bytes: &bytes }).unwrap();
                *position += size as u64;
            }
            link.flush();
        };
        fill(&mut a, &mut position);
        a = drive(a, |link| {
            let done = acknowledged(link).is_some_and(|stored| stored >= first + total);
            fill(link, &mut position);
            !done
        });
        let (seconds, after) = (started.elapsed().as_secs_f64(), a.traffic());
        println!(
            "Records of {size}: {:.2} Gb/s, {:.0} messages/s, {:.1} bytes of overhead each, {} writes",
            total as f64 * 8.0 / seconds / 1e9,
            total as f64 / size as f64 / seconds,
            (after.sent - before.sent - total) as f64 / (total as f64 / size as f64),
            after.writes - before.writes,
        );
    }
    drop(a);
    replica.join().unwrap();
}
