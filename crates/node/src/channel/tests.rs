use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tcpr_session::tuple::FourTuple;

use super::client::{Bypass, Client};
use super::ring::{self, Consumer, Mapping, Producer, Sent, MAX_PAYLOAD, MEMORY_BYTES, RING_BYTES};
use super::server::{Channel, ChannelError, ChannelListener, ChannelRole, Greeting, Incoming};
use super::wire::{self, PortInfo, RecoveredInfo, Reply, Request, SessionFacts};
use super::{sys, Event, Origin};

const PORT: u16 = 5555;
const PATIENCE: Duration = Duration::from_secs(20);

fn tuple(peer_port: u16) -> FourTuple {
    FourTuple {
        local: SocketAddr::new(Ipv4Addr::new(192, 0, 2, 200).into(), PORT),
        peer: SocketAddr::new(Ipv4Addr::new(198, 51, 100, 7).into(), peer_port),
    }
}

fn greeting() -> Greeting {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Greeting {
        service: format!("test-{}-{number}", std::process::id()),
        token: "secret".into(),
        vips: vec![IpAddr::from([192, 0, 2, 200])],
        ports: vec![PortInfo { port: PORT, absorb_greeting: false }],
        spliced: false,
        outgoing: vec![],
    }
}

/// The next thing that a process says.
fn incoming(channel: &mut Channel) -> Result<Incoming, ChannelError> {
    loop {
        if let Some(incoming) = channel.receive()? {
            return Ok(incoming);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn accept(listener: &mut ChannelListener) -> Channel {
    loop {
        if let Some(channel) = listener.accept().unwrap() {
            return channel;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn pair() -> (Client, Channel) {
    let greeting = greeting();
    let mut listener = ChannelListener::bind(greeting.clone()).unwrap();
    let joining = thread::spawn(move || Client::connect(&greeting.service, &greeting.token, PATIENCE, |_, _| ()));
    let mut channel = accept(&mut listener);
    assert!(matches!(incoming(&mut channel), Ok(Incoming::Joined(_))));
    (joining.join().unwrap().unwrap(), channel)
}

/// An event that can be kept.
fn owned(event: Event<'_>) -> String {
    format!("{event:?}")
}

fn drained(channel: &mut Channel) -> Vec<String> {
    let mut events = vec![];
    channel.drain(|e| events.push(owned(e))).unwrap();
    events
}

#[test]
fn a_process_is_admitted_with_the_right_token_only() {
    let (client, channel) = pair();
    assert_eq!(client.welcome().channel, channel.id());
    assert_eq!(client.welcome().ports, [PortInfo { port: PORT, absorb_greeting: false }]);
    assert_eq!(channel.pid(), std::process::id());

    let greeting = greeting();
    let mut listener = ChannelListener::bind(greeting.clone()).unwrap();
    let joining = thread::spawn(move || Client::connect(&greeting.service, "guess", PATIENCE, |_, _| ()));
    let mut channel = accept(&mut listener);
    assert!(matches!(incoming(&mut channel), Err(ChannelError::Misbehaved(_))));
    assert_eq!(joining.join().unwrap().err().unwrap().errno, libc::EACCES);
}

#[test]
fn without_a_manager_joining_fails_in_time() {
    let error = Client::connect("nobody", "", Duration::from_millis(50), |_, _| ()).err().unwrap();
    assert_eq!(error.errno, libc::ENOTCONN);
}

#[test]
fn a_service_has_one_manager() {
    let greeting = greeting();
    let _first = ChannelListener::bind(greeting.clone()).unwrap();
    let second = ChannelListener::bind(greeting).err().unwrap();
    assert_eq!(second.kind(), std::io::ErrorKind::AddrInUse);
}

#[test]
fn events_arrive_in_order_and_whole() {
    let (client, mut channel) = pair();
    let v6 = FourTuple { local: "[2001:db8::1]:5555".parse().unwrap(), peer: "[2001:db8::2]:40000".parse().unwrap() };
    let events = [
        Event::Attach { thread: 3, handle: 1, origin: Origin::Accepted, tuple: tuple(40_000) },
        Event::Attach { thread: 3, handle: 2, origin: Origin::Recovered, tuple: v6 },
        Event::Read { thread: 1, handle: 1, n: u64::MAX },
        Event::Absorbed { thread: 1, handle: 2, n: 12 },
        Event::Consume { thread: 1, handle: 1, n: 7 },
        Event::Commit { thread: 1 },
        Event::Wait { thread: 1, zero_timeout: true },
        Event::Wait { thread: 2, zero_timeout: false },
        Event::ReadAfterWrite { thread: 3 },
        Event::ReadElsewhere { thread: 3 },
        Event::Option { handle: 7, level: 0, name: 2, value: &[255, 0, 0, 0] },
        Event::Blocked { thread: 3, over: false },
        Event::Blocked { thread: 3, over: true },
        Event::Shutdown { thread: 1, handle: 1 },
        Event::Close { thread: 1, handle: 1, shared: true },
        Event::Exit,
    ];
    for event in &events {
        assert!(client.push(event));
    }
    assert_eq!(drained(&mut channel), events.map(owned));
    assert_eq!(drained(&mut channel), Vec::<String>::new());
}

#[test]
fn a_write_tells_what_the_kernel_took() {
    let (client, mut channel) = pair();
    let fill = |to: &mut [u8]| to.copy_from_slice(b"hello");
    let result = client.write(1, 9, 10, 5, fill, |bytes| {
        assert_eq!(bytes, b"hello");
        // The kernel is at it: the manager stands still here.
        assert_eq!(drained(&mut channel), Vec::<String>::new());
        assert_eq!(channel.open_intent(), Some(9));
        Sent::Taken(3)
    });
    assert_eq!(result, Some(Sent::Taken(3)));
    let expected = Event::Write { thread: 1, handle: 9, taken: 3, asked: 10, bytes: b"hel" };
    assert_eq!(drained(&mut channel), [owned(expected)]);
    assert_eq!(channel.open_intent(), None);

    client.write(1, 9, 5, 5, fill, |_| Sent::Taken(5));
    client.write(1, 9, 5, 5, fill, |_| Sent::Failed(libc::EPIPE));
    client.write(1, 9, 5, 5, fill, |_| Sent::Taken(0));
    let whole = Event::Write { thread: 1, handle: 9, taken: 5, asked: 5, bytes: b"hello" };
    let full = Event::Write { thread: 1, handle: 9, taken: 0, asked: 5, bytes: b"" };
    // Of a send that failed for good nothing is told.
    assert_eq!(drained(&mut channel), [owned(whole), owned(full)]);
}

#[test]
fn a_sleeping_manager_is_kicked_when_a_turn_ends() {
    let (client, mut channel) = pair();
    let kicked = |channel: &Channel| {
        let found = sys::poll(channel.kick_fd().unwrap(), libc::POLLIN, Duration::ZERO).unwrap();
        channel.clear_kick();
        found != 0
    };
    client.push(&Event::Wait { thread: 1, zero_timeout: false });
    assert!(!kicked(&channel), "nobody sleeps");
    assert!(!channel.prepare_sleep().unwrap(), "there is something to drain");
    drained(&mut channel);

    assert!(channel.prepare_sleep().unwrap());
    client.push(&Event::Read { thread: 1, handle: 1, n: 1 });
    assert!(!kicked(&channel), "a read is not urgent");
    client.push(&Event::Wait { thread: 1, zero_timeout: false });
    assert!(kicked(&channel));
    client.push(&Event::Wait { thread: 1, zero_timeout: false });
    assert!(!kicked(&channel), "once is enough");
    channel.wake();
}

#[test]
fn many_threads_write_through_a_full_ring() {
    const THREADS: u32 = 4;
    const WRITES: u32 = 400;
    let (client, mut channel) = pair();
    let client = Arc::new(client);
    let done = Arc::new(AtomicBool::new(false));
    let consumer = {
        let done = done.clone();
        thread::spawn(move || {
            let mut next = [0u32; THREADS as usize];
            let mut pause = 1u32;
            loop {
                let last = done.load(Ordering::Acquire);
                channel
                    .drain(|event| {
                        let Event::Write { thread, handle, taken, bytes, .. } = event else { panic!("{event:?}") };
                        // Handles count a thread's writes, and every byte tells whose it is.
                        assert_eq!(handle, next[thread as usize]);
                        next[thread as usize] += 1;
                        assert_eq!(taken as usize, bytes.len());
                        assert!(bytes.iter().all(|&b| b == (thread * 31 + handle) as u8));
                    })
                    .unwrap();
                if last {
                    return next;
                }
                pause = pause.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                thread::sleep(Duration::from_micros(u64::from(pause >> 22)));
            }
        })
    };
    let producers: Vec<_> = (0..THREADS)
        .map(|thread| {
            let client = client.clone();
            thread::spawn(move || {
                let mut size = thread + 1;
                for handle in 0..WRITES {
                    size = size.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let len = (size >> 8) as usize % (MAX_PAYLOAD / 4) + 1;
                    let sent = client.write(
                        thread,
                        handle,
                        len as u64,
                        len,
                        |to| to.fill((thread * 31 + handle) as u8),
                        |bytes| Sent::Taken(bytes.len()),
                    );
                    assert_eq!(sent, Some(Sent::Taken(len)));
                }
            })
        })
        .collect();
    for producer in producers {
        producer.join().unwrap();
    }
    done.store(true, Ordering::Release);
    assert_eq!(consumer.join().unwrap(), [WRITES; THREADS as usize]);
}

#[test]
fn when_the_manager_is_gone_nobody_waits_for_it() {
    let (client, channel) = pair();
    drop(channel);
    let start = Instant::now();
    let fill = |to: &mut [u8]| to.fill(0);
    let mut rounds = 0;
    while client.write(1, 1, 1, MAX_PAYLOAD, fill, |b| Sent::Taken(b.len())).is_some() {
        rounds += 1;
        assert!(rounds <= RING_BYTES / MAX_PAYLOAD);
    }
    assert!(client.is_gone());
    assert!(!client.push(&Event::Exit));
    assert!(client.tell(Request::Switchover).is_err());
    assert!(client.wait_role(ChannelRole::Master, None).is_err());
    assert!(start.elapsed() < PATIENCE);
}

#[test]
fn requests_are_answered_with_descriptors() {
    let (client, mut channel) = pair();
    let manager = thread::spawn(move || {
        let Ok(Incoming::Request(number, request, None)) = incoming(&mut channel) else { panic!() };
        assert_eq!(request, Request::GetRecovered { port: PORT, max: 200 });
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.write_all(b"x").unwrap();
        let session = |peer| RecoveredInfo {
            tuple: tuple(peer),
            session: 3,
            absorb: 1 << 40,
            greeted: true,
            in_done: 1,
            out_base: 2,
            options: vec![0xff; 40],
        };
        let sessions: Vec<_> = (0..super::wire::MAX_RECOVERED as u16).map(session).collect();
        let fds = vec![theirs.as_fd(); sessions.len()];
        channel.reply(number, Reply::Recovered { sessions, more: true }, &fds).unwrap();

        let Ok(Incoming::Request(number, Request::SessionInfo { tuple: asked }, None)) = incoming(&mut channel) else { panic!() };
        assert_eq!(asked, tuple(7));
        let refused = Reply::Error { errno: libc::ENOENT, text: "unknown".into() };
        channel.reply(number, refused, &[]).unwrap();

        let Ok(Incoming::Request(number, _, None)) = incoming(&mut channel) else { panic!() };
        // A reply to somebody who gave up comes first.
        channel.reply(number.wrapping_sub(1), Reply::Ok, &[]).unwrap();
        let facts = SessionFacts { session: 8, ..SessionFacts::default() };
        channel.reply(number, Reply::Session(facts), &[]).unwrap();
    });
    let (sessions, more) = client.recovered(PORT, 200).unwrap();
    assert!(more);
    assert_eq!(sessions.len(), 200);
    assert_eq!((sessions[7].0.tuple, sessions[7].0.absorb), (tuple(7), 1 << 40));
    let stream = std::os::unix::net::UnixStream::from(sessions.into_iter().next().unwrap().1.release().unwrap());
    assert_eq!(std::io::Read::bytes(stream).next().unwrap().unwrap(), b'x');
    assert_eq!(client.session(tuple(7)).unwrap_err().errno, libc::ENOENT);
    assert_eq!(client.session(tuple(7)).unwrap().session, 8);
    manager.join().unwrap();
}

#[test]
fn header_tells_role_and_pending() {
    let (client, channel) = pair();
    assert_eq!(client.role(), ChannelRole::Starting);
    assert!(channel.set_pending(PORT, 5));
    assert!(!channel.set_pending(1, 5));
    channel.set_each_rings(PORT, true);
    channel.set_each_rings(1, true);
    channel.set_epoch(7, 1);
    assert_eq!((client.pending(PORT), client.pending(1), client.epoch()), (5, 0, 7));
    assert!(client.each_rings(PORT) && !client.each_rings(1));
    assert!(!client.wait_role(ChannelRole::Master, Some(Duration::from_millis(10))).unwrap());
    let promoting = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        channel.set_role(ChannelRole::Master);
        channel
    });
    assert!(client.wait_role(ChannelRole::Master, None).unwrap());
    drop(promoting.join().unwrap());
}

#[test]
fn our_descriptors_are_high_and_give_way() {
    let (client, mut channel) = pair();
    let descriptors = client.descriptors();
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: limit is live and writable.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    let floor = limit.rlim_cur.min(4096).saturating_sub(64) as i32;
    assert!(descriptors.iter().all(|&fd| fd >= floor), "{descriptors:?}");
    descriptors.iter().for_each(|fd| client.vacate(*fd));
    client.vacate(0);
    let moved = client.descriptors();
    assert!((0..2).all(|i| moved[i] != descriptors[i] && moved[i] >= floor), "{descriptors:?}, {moved:?}");
    // The channel works as before.
    assert!(channel.prepare_sleep().unwrap());
    client.push(&Event::Commit { thread: 1 });
    assert_ne!(sys::poll(channel.kick_fd().unwrap(), libc::POLLIN, Duration::ZERO).unwrap(), 0);
    let answering = thread::spawn(move || {
        let Ok(Incoming::Request(number, _, None)) = incoming(&mut channel) else { panic!() };
        channel.reply(number, Reply::Ok, &[]).unwrap();
    });
    client.tell(Request::Switchover).unwrap();
    answering.join().unwrap();
}

#[test]
fn death_and_departure_are_told_apart() {
    let (client, mut channel) = pair();
    client.push(&Event::Commit { thread: 1 });
    drop(client);
    assert!(matches!(incoming(&mut channel), Err(ChannelError::Gone)));
    // What was told before is still there, and the process lives.
    assert_eq!(drained(&mut channel).len(), 1);
    assert_eq!(sys::poll(channel.process_fd().unwrap(), libc::POLLIN, Duration::ZERO).unwrap(), 0);
    assert!(channel.socket_fd().as_raw_fd() >= 0);
}

#[test]
fn bypass_nests_and_ends() {
    assert!(!Bypass::active());
    let first = Bypass::enter_first().unwrap();
    assert!(Bypass::enter_first().is_none());
    let second = Bypass::enter();
    drop(first);
    assert!(Bypass::active());
    drop(second);
    assert!(!Bypass::active());
}

/// Shared memory with both ends in this process, and the file under it to spoil it.
fn shared() -> (File, Producer, Consumer) {
    let memory = sys::memory(MEMORY_BYTES).unwrap();
    let mapping = Arc::new(Mapping::new(memory.as_fd()).unwrap());
    ring::initialise(&mapping);
    let producer = Producer::new(mapping.clone()).unwrap();
    (File::from(memory), producer, Consumer::new(mapping))
}

#[test]
fn foreign_memory_is_refused() {
    let memory = sys::memory(4096).unwrap();
    assert!(Mapping::new(memory.as_fd()).is_err());
    let memory = sys::memory(MEMORY_BYTES).unwrap();
    let mapping = Arc::new(Mapping::new(memory.as_fd()).unwrap());
    assert!(Producer::new(mapping).is_err());
    // It cannot be cut off under the manager's feet.
    assert!(File::from(memory).set_len(0).is_err());
}

const RING_OFFSET: u64 = (MEMORY_BYTES - RING_BYTES) as u64;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_spoiled_ring_is_an_error_and_no_disaster(
        events in 1usize..40,
        spoils in prop::collection::vec((0u64..4096, any::<u64>(), 0usize..9), 1..20),
        tail in prop::option::of(prop_oneof![any::<u64>(), 0u64..1 << 23, (0u64..1 << 20).prop_map(|t| t * 8)]),
    ) {
        let (file, mut producer, mut consumer) = shared();
        for i in 0..events as u32 {
            let _ = match i % 4 {
                0 => producer.push(&Event::Attach { thread: 3, handle: i, origin: Origin::Accepted, tuple: tuple(1) }),
                1 => producer.push(&Event::Read { thread: 1, handle: i, n: 5 }),
                2 => producer
                    .write(1, i, 50, 50, |to| to.fill(1), |b| Sent::Taken(b.len()))
                    .map(drop),
                _ => producer.push(&Event::Wait { thread: 1, zero_timeout: false }),
            };
        }
        for (at, value, bytes) in spoils {
            file.write_all_at(&value.to_le_bytes()[..bytes.min(8)], RING_OFFSET + at).unwrap();
        }
        if let Some(tail) = tail {
            // Its place in the header: third cache line.
            file.write_all_at(&tail.to_le_bytes(), 128).unwrap();
        }
        for _ in 0..3 {
            let mut bytes = 0;
            let drained = consumer.drain(|e| if let Event::Write { bytes: b, .. } = e { bytes += b.len() });
            prop_assert!(bytes <= RING_BYTES);
            if drained.is_err() {
                break;
            }
            if consumer.prepare_sleep().is_err() {
                break;
            }
        }
    }

    #[test]
    fn entries_of_all_sizes_survive_the_end_of_the_ring(
        sizes in prop::collection::vec(0usize..=MAX_PAYLOAD, 1..60),
    ) {
        let (_file, mut producer, mut consumer) = shared();
        let mut expected = std::collections::VecDeque::new();
        for (i, &size) in sizes.iter().enumerate() {
            let value = i as u8;
            let attempt = |producer: &mut Producer| {
                producer.write(1, i as u32, size as u64, size, |to| to.fill(value), |b| Sent::Taken(b.len()))
            };
            if attempt(&mut producer).is_err() {
                let mut wrong = 0;
                consumer.drain(|e| {
                    let Event::Write { handle, bytes, .. } = e else { panic!() };
                    let (index, len) = expected.pop_front().unwrap();
                    let same = bytes.iter().all(|&b| b == index as u8);
                    wrong += usize::from(handle as usize != index || bytes.len() != len || !same);
                }).unwrap();
                prop_assert_eq!(wrong, 0);
                prop_assert!(expected.is_empty());
                prop_assert!(attempt(&mut producer).is_ok());
            }
            expected.push_back((i, size));
        }
    }
}

/// A process that writes into its shared memory at any moment, while the manager reads it.
#[test]
fn a_ring_that_changes_while_it_is_read_is_an_error_and_no_disaster() {
    let (file, mut producer, _) = shared();
    for i in 0..40 {
        producer.push(&Event::Read { thread: 1, handle: i, n: 5 }).unwrap();
        producer.write(1, i, 9, 9, |room| room.fill(b'x'), |_| Sent::Taken(4)).unwrap();
    }
    // As it should be: the header, and the entries.
    let mut good = vec![0; RING_OFFSET as usize + 8192];
    file.read_exact_at(&mut good, 0).unwrap();
    let file = Arc::new(file);
    let over = Arc::new(AtomicBool::new(false));
    let scribbler = thread::spawn({
        let (file, over) = (file.clone(), over.clone());
        move || {
            let mut n = 0x9e37_79b9_7f4a_7c15_u64;
            while !over.load(Ordering::Relaxed) {
                n ^= n << 13;
                n ^= n >> 7;
                n ^= n << 17;
                // Near the entries, or in the header: numbers that could be, and others.
                let at = if n & 7 == 0 { (n >> 8) % 256 } else { RING_OFFSET + (n >> 8) % 2048 };
                let value = if n & 8 == 0 { n } else { (n >> 16) % 300 };
                let _ = file.write_at(&value.to_le_bytes()[..1 + (n >> 60) as usize % 8], at);
            }
        }
    });
    let until = Instant::now() + Duration::from_secs(1);
    let (mut errors, mut told) = (0, 0);
    while Instant::now() < until {
        let mut consumer = Consumer::new(Arc::new(Mapping::new(file.as_fd()).unwrap()));
        for _ in 0..20 {
            file.write_all_at(&good, 0).unwrap();
            match consumer.drain(|event| assert!(!owned(event).is_empty())) {
                Ok(n) => told += n,
                Err(_) => errors += 1,
            }
            let _ = (consumer.told(), consumer.prepare_sleep(), consumer.open_intent());
        }
    }
    over.store(true, Ordering::Relaxed);
    scribbler.join().unwrap();
    assert!(errors > 0, "{told} events were believed");
}

proptest! {
    #[test]
    fn garbage_on_the_channel_is_an_error_and_no_disaster(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = super::wire::decode::<super::wire::Numbered<Request>>(&bytes);
        let _ = super::wire::decode::<super::wire::Numbered<super::wire::Hello>>(&bytes);
    }
}

/// Whoever is cut off finds out, even one that waits for room in its ring, and lives on.
#[test]
fn a_process_that_is_cut_off_goes_on_without_its_channel() {
    let (client, mut channel) = pair();
    channel.cut_off();
    assert!(!channel.has_joined() && channel.kick_fd().is_none());
    assert_eq!(drained(&mut channel), Vec::<String>::new());
    assert!(client.session(tuple(1)).is_err());
}

/// Puts another file under a number, as an application does that closes what it does not know.
fn put_over(fd: i32, other: &impl AsRawFd) {
    // SAFETY: what was there is lost to whoever had it, which is what is tried here.
    assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), fd) }, fd);
}

fn holds_nothing(stream: &std::net::TcpStream) {
    use std::io::Read;
    stream.set_nonblocking(true).unwrap();
    let read = (&mut &*stream).read(&mut [0]);
    assert_eq!(read.map_err(|e| e.kind()), Err(std::io::ErrorKind::WouldBlock));
}

/// Both ends of a connection.
fn connection() -> [std::net::TcpStream; 2] {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let one = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    [one, listener.accept().unwrap().0]
}

#[test]
fn a_channel_goes_on_whose_descriptors_the_application_has_put_something_else_over() {
    let greeting = greeting();
    let mut listener = ChannelListener::bind(greeting.clone()).unwrap();
    let joining = thread::spawn(move || Client::connect(&greeting.service, "secret", PATIENCE, |_, _| ()));
    let mut channel = accept(&mut listener);
    assert!(matches!(incoming(&mut channel), Ok(Incoming::Joined(_))));
    let client = Arc::new(joining.join().unwrap().unwrap());
    for case in 0..3 {
        let [ours, theirs] = connection();
        // The one, the other, or both.
        let lost = client.descriptors().into_iter().enumerate().filter(|(i, _)| *i != case);
        lost.for_each(|(_, fd)| put_over(fd, &ours));
        assert!(channel.prepare_sleep().unwrap());
        // A kick finds out, or a look at the manager does.
        let telling = client.clone();
        let telling = thread::spawn(move || {
            assert!(telling.push(&Event::Wait { thread: 1, zero_timeout: false }));
            telling.wait_role(ChannelRole::Fenced, Some(Duration::from_millis(1)))
        });
        let mut by = accept(&mut listener);
        let Ok(Incoming::Resumes { number, channel: id }) = incoming(&mut by) else { panic!() };
        assert_eq!(id, channel.id());
        channel.resume(by, number).unwrap();
        assert_eq!(telling.join().unwrap(), Ok(false));
        assert!(!client.is_gone());
        assert_eq!(drained(&mut channel).len(), 1);
        holds_nothing(&theirs);
        // It is theirs, and stays open.
        use std::io::Write;
        (&ours).write_all(b"x").unwrap();
    }
    // Nobody has it who does not know the token.
    let socket = sys::seqpacket_connect(&wire::socket_name(&client.welcome().service)).unwrap();
    let mut by = accept(&mut listener);
    let (version, resume) = (wire::PROTOCOL_VERSION, Some(channel.id()));
    let hello = wire::Hello { version, token: "guess".into(), resume };
    sys::send(socket.as_fd(), &wire::encode(&wire::Numbered { number: 1, body: hello }).unwrap(), &[]).unwrap();
    assert!(matches!(incoming(&mut by), Err(ChannelError::Misbehaved(_))));
}

/// Should a number have become a connection's in the last moment.
#[test]
fn tcp_takes_no_message_of_the_channel() {
    let [ours, theirs] = connection();
    let error = sys::send(ours.as_fd(), b"a message", &[]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
    assert_eq!(sys::send(ours.as_fd(), b"a message", &[ours.as_fd()]).unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
    holds_nothing(&theirs);
}
