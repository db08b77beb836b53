//! Whatever peers, strangers, applications and kernels say, in whatever order: nothing of it may reach an assertion. The
//! callers of the filter keep its contracts here; all that comes from outside is made up, most of it near the truth.
//!
//! `TCPR_HOSTILE_SEED=n` replays one case, `TCPR_HOSTILE_CASES=n` and `TCPR_HOSTILE_BASE=n` say which are tried.

#[path = "world/rng.rs"]
mod rng;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rng::Rng;
use tcpr_session::filter::{Action, Engine, Filter, FilterConfig, Mode, PROGRAM};
use tcpr_session::framing::Framing;
use tcpr_session::hook::{HookEvent, Origin};
use tcpr_session::record::{self, Adopted, Committed, EndReason, Open, Sync};
use tcpr_session::segment::{flags, Build, Segment};
use tcpr_session::seq::{self, Seq};
use tcpr_session::store::Store;
use tcpr_session::tuple::{FourTuple, SessionId};
use tcpr_session::turn::{PortPolicy, Unanswered};

/// No case is begun after this long.
const ENOUGH: Duration = Duration::from_secs(20);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn cases(what: &str, default: u64, run: impl Fn(u64)) {
    if let Some(seed) = number("TCPR_HOSTILE_SEED") {
        return run(seed);
    }
    let (base, cases) = (number("TCPR_HOSTILE_BASE").unwrap_or(1), number("TCPR_HOSTILE_CASES"));
    let began = Instant::now();
    let mut seed = base;
    while seed < base + cases.unwrap_or(default) && (cases.is_some() || began.elapsed() < ENOUGH) {
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed))) {
            eprintln!("failed: TCPR_HOSTILE_SEED={seed} ({what})");
            std::panic::resume_unwind(panic);
        }
        seed += 1;
    }
    println!("{what}: seeds {base} to {}", seed - 1);
}

#[test]
fn nothing_that_comes_from_outside_reaches_an_assertion_of_the_filter() {
    cases("filter", 3000, |seed| Case::new(seed).run());
}

struct Case {
    rng: Rng,
    config: FilterConfig,
    f: Filter,
    replica: Filter,
    now: Duration,
    id: u32,
    /// Packets without a verdict.
    held_in: BTreeMap<u32, Vec<u8>>,
    held_out: BTreeSet<u32>,
    probed: Vec<SessionId>,
    isns: Vec<(Seq, Seq)>,
}

const TUPLES: u64 = 6;

fn tuple(i: u64) -> FourTuple {
    match i {
        // The application's own connections.
        0 => FourTuple { local: "192.0.2.200:40000".parse().unwrap(), peer: "198.51.100.9:179".parse().unwrap() },
        1 => FourTuple { local: "192.0.2.200:40001".parse().unwrap(), peer: "198.51.100.9:179".parse().unwrap() },
        2 => FourTuple { local: "[2001:db8::200]:5556".parse().unwrap(), peer: "[2001:db8::9]:1000".parse().unwrap() },
        _ => FourTuple { local: "192.0.2.200:5555".parse().unwrap(), peer: SocketAddr::from(([192, 0, 2, 9], 1000 + i as u16)) },
    }
}

impl Case {
    fn new(seed: u64) -> Case {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9));
        let framing = match rng.below(3) {
            0 => Framing::Lines,
            1 => Framing::Length { at: 1, bytes: 2, big_endian: true, counts_whole_message: false },
            _ => Framing::None,
        };
        let framed = PortPolicy { max_unanswered_bytes: 1 << rng.below(24), ..PortPolicy::framed(framing) };
        let raw = PortPolicy { unanswered: Unanswered::Discard, independent: rng.percent(50), ..PortPolicy::default() };
        let engine = if rng.percent(50) { Engine::Repair } else { Engine::Splice };
        let hooked = engine == Engine::Repair || rng.percent(60);
        let config = FilterConfig {
            ports: vec![(5555, framed), (5556, raw)],
            outgoing: vec![("198.51.100.9:179".parse().unwrap(), PortPolicy::default())],
            max_turn: Duration::from_millis(50),
            engine,
            hooked,
            asynchronous: rng.percent(30),
            data_bytes: 1 << 20,
        };
        let mut f = Filter::new(config.clone());
        f.activate();
        if rng.percent(80) {
            f.hold_for_replica(0);
        }
        let isns = (0..TUPLES).map(|_| (Seq(rng.next() as u32), Seq(rng.next() as u32))).collect();
        let replica = Filter::new(config.clone());
        Case {
            rng,
            config,
            f,
            replica,
            now: Duration::from_secs(1000),
            id: 0,
            held_in: BTreeMap::new(),
            held_out: BTreeSet::new(),
            probed: Vec::new(),
            isns,
        }
    }

    fn run(mut self) {
        for i in 0..TUPLES {
            if self.rng.percent(70) {
                self.handshake(i);
            }
        }
        for _ in 0..self.rng.range(50, 600) {
            self.step();
            self.act();
        }
        self.replicate();
        if number("TCPR_TRACE").is_some() {
            println!("{:?} {:?}", self.f.counters(), self.f.turns().counters());
        }
        self.f.demote();
        self.act();
        assert!(self.held_in.is_empty() && self.held_out.is_empty(), "a packet without a verdict");
    }

    /// Does what the filter asks for, with answers from anywhere.
    fn act(&mut self) {
        let mut actions = Vec::new();
        loop {
            self.f.drain_actions(&mut actions);
            if actions.is_empty() {
                return;
            }
            for action in actions.drain(..) {
                match action {
                    Action::AcceptIn(id) | Action::ModifyIn(id, _) => {
                        let packet = self.held_in.remove(&id).expect("one verdict a packet");
                        self.answer(&packet);
                    }
                    Action::DropIn(id) => drop(self.held_in.remove(&id).expect("one verdict a packet")),
                    Action::Inject(packet) => self.answer(&packet),
                    Action::Probed(id) if self.rng.percent(70) => self.restore(id, true),
                    Action::AcceptOut(id) | Action::DropOut(id) | Action::ModifyOut(id, _) => {
                        assert!(self.held_out.remove(&id), "one verdict a packet")
                    }
                    Action::Probed(id) => self.probed.push(id),
                    Action::AskAlive(channel) if self.rng.percent(50) => self.f.process_alive(self.now, channel),
                    Action::AskAlive(channel) => self.f.process_gone(self.now, channel),
                    Action::AskUnread(id) if self.rng.percent(80) => self.unread(id),
                    Action::AskClosed(id) if self.rng.percent(50) => self.f.still_open(self.now, id),
                    _ => {}
                }
            }
        }
    }

    /// What an honest kernel says to a packet, most of the time.
    fn answer(&mut self, packet: &[u8]) {
        let Ok(segment) = Segment::parse(packet) else { return };
        if segment.has(flags::RST) || segment.sequence_length() == 0 || self.rng.percent(40) || self.id > 3000 {
            return;
        }
        let (source, destination) = (segment.destination(), segment.source());
        let opens = segment.has(flags::SYN);
        let timestamps = segment.options().timestamps.map(|(value, _)| (77_000, value));
        let bits = if opens { flags::SYN | flags::ACK } else { flags::ACK };
        let payload = vec![b'k'; if opens || self.rng.percent(70) { 0 } else { self.rng.below(2000) as usize }];
        let ack = segment.seq().add(u64::from(segment.sequence_length()));
        let seq = if opens { Seq(self.rng.next() as u32) } else { segment.ack() };
        let mut answer = Vec::new();
        let build =
            Build { source, destination, seq, ack, flags: bits, window: self.rng.next() as u16, timestamps, payload: &payload };
        build.write_with(if opens { &[2, 4, 5, 0xb4, 1, 3, 3, 7, 1, 1, 4, 2] } else { &[] }, &mut answer);
        self.packet(false, &answer);
    }

    fn unread(&mut self, id: SessionId) {
        let end = self.f.store().get(id).map_or(0, |s| s.in_end());
        let received = match self.rng.below(4) {
            0 => u64::MAX >> 1,
            1 => self.rng.below(end + 2),
            2 => end + self.rng.below(5),
            _ => end,
        };
        let unread = if self.rng.percent(50) { 0 } else { self.rng.below(received.min(1 << 32) + 3) };
        self.f.unread(self.now, id, received, unread);
    }

    fn replicate(&mut self) {
        let mut batch = Vec::new();
        self.f.take_batch(&mut batch);
        self.replica.replica_apply(&batch).expect("the log fits");
        if self.f.store() != self.replica.store() {
            let sessions = |f: &Filter| {
                let mut all: Vec<_> = f.store().iter().map(|s| format!("{s:?}")).collect();
                all.sort();
                all
            };
            panic!("I5: {:#?} is not {:#?}", sessions(&self.f), sessions(&self.replica));
        }
    }

    fn any_tuple(&mut self) -> FourTuple {
        let t = tuple(self.rng.below(TUPLES));
        if self.rng.percent(5) {
            FourTuple { local: t.local, peer: (t.peer.ip(), self.rng.next() as u16).into() }
        } else {
            t
        }
    }

    fn channel(&mut self) -> u32 {
        if self.rng.percent(3) {
            PROGRAM
        } else {
            1 + self.rng.below(3) as u32
        }
    }

    fn session(&mut self) -> SessionId {
        let mut ids: Vec<SessionId> = self.f.store().iter().map(|s| s.open.session).collect();
        ids.sort_unstable();
        let at = self.rng.below(ids.len() as u64) as usize;
        ids.get(at).copied().unwrap_or(self.rng.next() as u32)
    }

    fn amount(&mut self) -> u64 {
        match self.rng.below(10) {
            0 => self.rng.next(),
            1 => u64::MAX,
            2 => self.rng.below(1 << 32),
            3 | 4 => self.rng.below(5000),
            _ => self.rng.below(30),
        }
    }

    fn handshake(&mut self, i: u64) {
        let t = tuple(i);
        let (theirs, ours) = self.isns[i as usize];
        let out = i < 2;
        let ts = self.rng.percent(60);
        let syn = |from_peer: bool, bits: u8, seq: Seq, ack: Seq, ts: Option<(u32, u32)>| {
            let (source, destination) = if from_peer { (t.peer, t.local) } else { (t.local, t.peer) };
            let mut packet = Vec::new();
            Build { source, destination, seq, ack, flags: bits, window: 60_000, timestamps: ts, payload: &[] }
                .write_with(&[2, 4, 5, 0xb4, 1, 3, 3, 7, 1, 1, 4, 2], &mut packet);
            packet
        };
        let (first, second) = if out { (ours, theirs) } else { (theirs, ours) };
        let syn_packet = syn(!out, flags::SYN, first, Seq(0), ts.then_some((1000, 0)));
        let answer = syn(out, flags::SYN | flags::ACK, second, first.add(1), ts.then_some((5000, 1000)));
        if out && self.rng.percent(80) {
            self.lend(t);
        }
        self.packet(!out, &syn_packet);
        self.act();
        self.packet(out, &answer);
        self.act();
        self.stored();
        let mut packet = Vec::new();
        let (source, destination) = if out { (t.local, t.peer) } else { (t.peer, t.local) };
        let timestamps = ts.then_some((1001, 5000));
        Build {
            source,
            destination,
            seq: first.add(1),
            ack: second.add(1),
            flags: flags::ACK,
            window: 500,
            timestamps,
            payload: &[],
        }
        .write(&mut packet);
        self.packet(!out, &packet);
        self.act();
        if self.rng.percent(80) {
            let origin = if out { Origin::Connected } else { Origin::Accepted };
            self.f.handle(self.now, 1, HookEvent::Attach { thread: 0, handle: i as u32, origin, tuple: t });
        }
    }

    /// A process connects, by a socket of its own, or one that was lent before, or by none that it has shown.
    fn lend(&mut self, tuple: FourTuple) {
        let (channel, thread, socket) = (self.channel(), self.rng.below(3) as u32, self.rng.below(20));
        let bound = self.rng.percent(10);
        if self.rng.percent(80) {
            self.f.lend(channel, thread, socket, tuple.peer, bound);
        }
        let other = self.rng.below(20);
        let socket = [Some(socket), Some(socket), Some(socket), Some(other), None][self.rng.below(5) as usize];
        self.f.called_by(tuple, socket);
    }

    fn packet(&mut self, from_peer: bool, packet: &[u8]) {
        self.id += 1;
        if from_peer {
            self.held_in.insert(self.id, packet.to_vec());
            let vouched = self.rng.percent(90);
            self.f.packet_in(self.now, self.id, packet, vouched);
        } else {
            self.held_out.insert(self.id);
            self.f.packet_out(self.now, self.id, packet);
        }
    }

    /// An offset near a known one, or not.
    fn near(&mut self, known: u64) -> u64 {
        match self.rng.below(12) {
            0 => self.rng.next(),
            1 => known.wrapping_add(self.rng.below(1 << 31)),
            2 => known.wrapping_sub(self.rng.below(1 << 31)),
            3 | 4 => known.wrapping_add(self.rng.below(70_000)),
            5 => known.wrapping_sub(self.rng.below(70_000)),
            6 => known.wrapping_add(self.rng.below(20)),
            7 => known.wrapping_sub(self.rng.below(20)),
            _ => known,
        }
    }

    fn any_packet(&mut self) {
        let t = self.any_tuple();
        let from_peer = self.rng.percent(55);
        let at = (0..TUPLES).find(|i| tuple(*i) == t).unwrap_or(0);
        let (theirs, ours) = self.isns[at as usize];
        let s = self.f.store().find(&t).and_then(|id| self.f.store().get(id)).cloned();
        let (input, output) = s.as_ref().map_or((0, 0), |s| (s.in_ackable(), s.out_sendable()));
        let acked = s.as_ref().map_or(0, |s| s.out_acked);
        let (theirs, ours) = s.as_ref().map_or((theirs, ours), |s| (s.open.isn_in, s.open.isn_out));
        let (seq, ack) = if from_peer {
            (
                seq::at(theirs, self.near(input)),
                seq::at(ours, if self.rng.percent(50) { self.near(output) } else { self.near(acked) }),
            )
        } else {
            (seq::at(ours, self.near(output)), seq::at(theirs, self.near(input)))
        };
        const BITS: [u8; 9] = [
            flags::ACK | flags::FIN,
            flags::RST,
            flags::RST | flags::ACK,
            flags::SYN,
            flags::SYN | flags::ACK,
            flags::ACK | flags::URG,
            flags::FIN,
            0,
            flags::ACK | flags::PSH,
        ];
        let mut bits = if self.rng.percent(85) { flags::ACK } else { BITS[self.rng.below(BITS.len() as u64) as usize] };
        if self.rng.percent(3) {
            bits = self.rng.next() as u8;
        }
        let length = match self.rng.below(8) {
            0 => 60_000,
            1 => 1460,
            2 | 3 => self.rng.below(40),
            _ => self.rng.below(3),
        } as usize;
        let fill = self.rng.below(3) as u8 + b'\n';
        let payload = vec![fill; length];
        let mut time = |known: u32| match self.rng.below(6) {
            0 => self.rng.next() as u32,
            1 => known.wrapping_add(1 << 31),
            2 => known.wrapping_sub(self.rng.below(2000) as u32),
            _ => known.wrapping_add(self.rng.below(2000) as u32),
        };
        let (value, recent) = s.as_ref().map_or((5000, 1000), |s| (s.ts_value, s.ts_recent));
        let timestamps = if from_peer { (time(recent), time(value)) } else { (time(value), time(recent)) };
        let with_time = s.as_ref().is_some_and(|s| s.open.timestamps) != self.rng.percent(10);
        let (source, destination) = if from_peer { (t.peer, t.local) } else { (t.local, t.peer) };
        let window = if self.rng.percent(20) { 0 } else { self.rng.next() as u16 };
        let mut packet = Vec::new();
        let build = Build {
            source,
            destination,
            seq,
            ack,
            flags: bits,
            window,
            timestamps: with_time.then_some(timestamps),
            payload: &payload,
        };
        if self.rng.percent(10) {
            let mut options = vec![1, 1, 5, 18];
            for _ in 0..4 {
                options.extend_from_slice(&seq::at(ours, self.near(output)).0.to_be_bytes());
            }
            if with_time {
                build.write(&mut packet)
            } else {
                build.write_with(&options, &mut packet)
            }
        } else {
            build.write(&mut packet);
        }
        if self.rng.percent(8) {
            for _ in 0..self.rng.range(1, 4) {
                let at = self.rng.below(packet.len().min(80) as u64) as usize;
                packet[at] = self.rng.next() as u8;
            }
        }
        if self.rng.percent(2) {
            packet.truncate(self.rng.below(packet.len() as u64) as usize);
        }
        if self.rng.percent(3) && from_peer {
            self.f.forwarded_in(self.now, &packet);
        } else {
            self.packet(from_peer, &packet);
        }
    }

    fn hook(&mut self) {
        let (now, thread, handle) = (self.now, self.rng.below(3) as u32, self.rng.below(TUPLES + 1) as u32);
        let channel = if self.rng.percent(80) { 1 } else { self.channel() };
        let n = self.amount();
        match self.rng.below(24) {
            0 | 1 => {
                const ORIGINS: [Origin; 4] = [Origin::Accepted, Origin::Connected, Origin::Recovered, Origin::Inherited];
                let origin = ORIGINS[self.rng.below(4) as usize];
                let t = if self.rng.percent(85) { tuple(u64::from(handle) % TUPLES) } else { self.any_tuple() };
                self.f.handle(now, channel, HookEvent::Attach { thread, handle, origin, tuple: t });
            }
            2..=5 => {
                let bytes = vec![b'w'; n.min(5000) as usize];
                let (taken, short) = (bytes.len() as u32, u64::from(n.is_multiple_of(5)));
                let write = HookEvent::Write { thread, handle, taken, asked: u64::from(taken) + short, bytes: &bytes };
                self.f.handle(now, channel, write);
            }
            6 => self.f.handle(now, channel, HookEvent::Absorbed { thread, handle, n }),
            7..=9 => {
                // What there is, or what it likes.
                let n = if self.rng.percent(70) { n.min(20) } else { n };
                self.f.handle(now, channel, HookEvent::Read { thread, handle, n });
            }
            10 => self.f.handle(now, channel, HookEvent::Consume { thread, handle, n }),
            11 | 12 => self.f.handle(now, channel, HookEvent::Wait { thread, zero_timeout: false }),
            13 => self.f.handle(now, channel, HookEvent::Wait { thread, zero_timeout: true }),
            14 => self.f.handle(now, channel, HookEvent::ReadAfterWrite { thread }),
            15 => self.f.handle(now, channel, HookEvent::Blocked { thread, over: n.is_multiple_of(2) }),
            16 => self.f.handle(now, channel, HookEvent::Shutdown { thread, handle }),
            17 => self.f.handle(now, channel, HookEvent::Close { thread, handle, shared: n.is_multiple_of(3) }),
            18 if n.is_multiple_of(16) => self.f.handle(now, channel, HookEvent::Exit),
            19 => self.f.set_intents(n.is_multiple_of(2).then_some((channel, handle))),
            20 if n.is_multiple_of(16) => self.f.cut_off(now, channel),
            21 if n.is_multiple_of(16) => self.f.process_gone(now, channel),
            22 => self.f.handle(now, channel, HookEvent::ReadElsewhere { thread }),
            23 => {
                let t = if self.rng.percent(80) { tuple(self.rng.below(2)) } else { self.any_tuple() };
                self.lend(t);
            }
            _ => {}
        }
        if self.rng.percent(60) {
            self.f.run_commits(now);
        }
    }

    fn stored(&mut self) {
        self.replicate();
        let to = if self.rng.percent(70) { self.f.log_end() } else { self.rng.below(self.f.log_end() + 1) };
        self.f.replica_stored(self.now, to);
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..45 => self.any_packet(),
            45..75 => self.hook(),
            75..82 => self.stored(),
            82..88 => self.time(),
            88..93 => self.manager(),
            93..96 => {
                let i = self.rng.below(TUPLES);
                self.handshake(i);
            }
            _ => self.role(),
        }
    }

    fn time(&mut self) {
        let until = self.now
            + match self.rng.below(8) {
                0 => Duration::from_secs(self.rng.below(4_000_000)),
                1 => Duration::from_secs(self.rng.below(100)),
                2 | 3 => Duration::from_millis(self.rng.below(5000)),
                _ => Duration::from_millis(self.rng.below(60)),
            };
        for _ in 0..200 {
            let Some(due) = self.f.poll_timeout().filter(|due| *due <= until) else { break };
            self.now = self.now.max(due);
            self.f.handle_timeout(self.now);
            self.act();
        }
        self.now = until;
        self.f.handle_timeout(self.now);
    }

    /// What the manager says beside.
    fn manager(&mut self) {
        let (now, id, odd) = (self.now, self.session(), self.rng.percent(50));
        match self.rng.below(19) {
            0 => self.unread(id),
            1 => self.f.all_accepted(now, |_| odd),
            2 => self.f.program_exited(now),
            3 => self.f.listening(now),
            4 => self.f.barrier_met(now),
            5 => self.f.lift_barrier(now),
            6 => self.f.probes(),
            7 => self.restore(id, odd),
            8 => {
                let _ = self.f.give_up_deadly(now, 1);
            }
            9 => self.f.forget_deaths(),
            10 => {
                let t = self.any_tuple();
                self.f.swept(now, &t);
            }
            11 => {
                let t = self.any_tuple();
                let _ = (
                    self.f.recovered_info(&t),
                    self.f.local_tuple(&t),
                    self.f.peer_tuple(&t),
                    self.f.unaccepted(),
                    self.f.with_sockets().count(),
                );
            }
            12 => {
                // What the kernel has taken of it, or any number.
                let taken = self.f.store().get(id).map_or(0, |s| s.in_ackable());
                let received = self.near(taken);
                self.f.went_around(now, id, received, odd);
            }
            13 => {
                let Some(id) = self.f.poll_around() else { return };
                let taken = self.f.store().get(id).map_or(0, |s| s.in_ackable());
                let received = if odd { taken } else { self.near(taken) };
                self.f.went_around(now, id, received, false);
            }
            14 => self.f.still_open(now, id),
            15 | 16 => {
                let _ = (self.f.gate(now), self.f.hand_out(id), self.f.is_later(id), self.f.any_later(), self.f.next_may());
                self.f.handed_out(now, id);
            }
            17 => {
                let t = self.any_tuple();
                let _ = (self.f.passed_info(&t), self.f.with_socket(id), self.f.take_other_name(id), self.f.around());
            }
            _ => {
                for id in std::mem::take(&mut self.probed) {
                    self.restore(id, true);
                    self.act();
                }
            }
        }
    }

    fn restore(&mut self, id: SessionId, answered: bool) {
        if self.f.splices(id) {
            return self.f.splice(self.now, id);
        }
        if let Some(spec) = self.f.restore_spec(id, answered, 0) {
            match self.rng.below(10) {
                0 => self.f.restore_failed(self.now, id),
                1 => {}
                _ => self.f.restored(self.now, id, spec.sent.len()),
            }
        }
    }

    fn role(&mut self) {
        if self.f.mode() == Mode::Passive {
            return self.take_over();
        }
        let (now, serves) = (self.now, matches!(self.f.mode(), Mode::Active | Mode::Restoring));
        match self.rng.below(12) {
            0 => self.f.replica_heard(now, now + Duration::from_millis(60)),
            1 => self.f.go_solo(now),
            2 => {
                let fenced = self.rng.percent(10);
                self.f.set_fenced(now, fenced);
            }
            3 if serves => {
                let at = self.rng.below(self.f.log_end() + 1);
                self.f.hold_for_replica(at);
            }
            4 if serves => self.f.freeze(),
            5 | 6 if !serves => self.f.thaw(now),
            7 if serves => {
                self.f.recover(now);
            }
            8 if serves || self.rng.percent(10) => {
                // Some of the log may be lost.
                if self.rng.percent(60) {
                    self.replicate();
                }
                self.take_over();
            }
            10 => drop(self.f.take_deferred_resets()),
            _ => {}
        }
    }

    /// The partner is master from now on, and this one is new.
    fn take_over(&mut self) {
        self.f.demote();
        self.act();
        self.probed.clear();
        std::mem::swap(&mut self.f, &mut self.replica);
        self.replica = Filter::new(self.config.clone());
        self.f.take_over(self.now);
        if self.rng.percent(70) {
            self.f.hold_for_replica(0);
        }
        self.f.probes();
        self.act();
        let mut snapshot = Vec::new();
        self.f.take_batch(&mut snapshot);
        snapshot.clear();
        self.f.snapshot(&mut snapshot);
        // Written with it, and in it.
        self.f.take_batch(&mut Vec::new());
        self.replica.replica_apply(&snapshot).expect("a snapshot fits");
    }
}

/// Records from a partner that writes anything: errors, and never more. What is taken can be taken over.
#[test]
fn a_log_that_a_partner_makes_up_reaches_no_assertion() {
    cases("log", 20_000, |seed| {
        let mut rng = Rng(seed.wrapping_mul(0x5851_f42d));
        let mut log = Vec::new();
        let mut store = Store::new();
        for _ in 0..rng.range(1, 60) {
            let session = rng.below(4) as u32;
            let offset = |rng: &mut Rng| match rng.below(8) {
                0 => rng.next(),
                1 => rng.next() >> 2,
                2 => rng.below(1 << 33),
                _ => rng.below(30),
            };
            let known = store.get(session).cloned();
            let near = |rng: &mut Rng, known: Option<u64>| known.filter(|_| rng.percent(70)).unwrap_or_else(|| offset(rng));
            let before = log.len();
            match rng.below(8) {
                0 | 1 => {
                    let (in_done, out_acked) = (offset(&mut rng), offset(&mut rng));
                    let (isn_in, isn_out, ts) = (Seq(rng.next() as u32), Seq(rng.next() as u32), rng.next() as u32);
                    let open = Open {
                        session,
                        tuple: tuple(rng.below(TUPLES)),
                        internal_port: 1,
                        isn_in,
                        isn_out,
                        mss: rng.next() as u16,
                        shifts: rng.percent(80).then_some((rng.below(16) as u8, rng.below(16) as u8)),
                        sack: true,
                        timestamps: rng.percent(50),
                        established: rng.percent(80),
                        window: rng.next() as u16,
                        ts_recent: ts,
                        ts_value: ts,
                        in_done,
                        out_acked,
                    };
                    open.encode(&mut log);
                }
                2 => Sync {
                    session,
                    established: true,
                    out_acked: near(&mut rng, known.as_ref().map(|s| s.out_sendable())) as u32,
                    in_edge: near(&mut rng, known.as_ref().map(|s| s.in_end())) as u32,
                    window: 1,
                    ts_recent: 1,
                    ts_value: 2,
                }
                .encode(&mut log),
                3 => {
                    let at = near(&mut rng, known.as_ref().map(|s| s.in_end()));
                    let bytes = vec![b'i'; rng.below(50) as usize];
                    record::encode_input(session, at, &bytes, rng.percent(10), &mut log);
                }
                4 => {
                    let at = near(&mut rng, known.as_ref().map(|s| s.out_end()));
                    let bytes = vec![b'o'; rng.below(50) as usize];
                    record::encode_output(session, at, &bytes, &mut log);
                }
                5 => {
                    // The same session twice, perhaps.
                    let entries: Vec<Committed> = (0..rng.range(1, 3))
                        .map(|_| Committed {
                            session: if rng.percent(70) { session } else { rng.below(4) as u32 },
                            in_done: near(&mut rng, known.as_ref().map(|s| s.in_end())) as u32,
                            out_done: near(&mut rng, known.as_ref().map(|s| s.out_end())) as u32,
                            open: rng.below(20) << (rng.below(30)),
                            fin: rng.percent(10),
                            closed: rng.percent(10),
                            torn: rng.percent(10),
                        })
                        .collect();
                    record::encode_commit(&entries, false, &mut log);
                }
                6 => {
                    let out_done = near(&mut rng, known.as_ref().map(|s| s.out_done));
                    let in_done = near(&mut rng, known.as_ref().map(|s| s.in_end()));
                    let out_base = near(&mut rng, Some(out_done));
                    record::encode_adopted(&Adopted { session, in_done, out_done, out_base }, &mut log);
                }
                _ if rng.percent(30) => record::encode_end(session, EndReason::Closed, &mut log),
                _ => {}
            }
            if rng.percent(5) && log.len() > before {
                let at = before + rng.below((log.len() - before) as u64) as usize;
                log[at] = rng.next() as u8;
            }
            let _ = store.apply_batch(&log[before..]);
        }
        // A replica that takes what it can, and takes over.
        let asynchronous = rng.percent(50);
        let engine = if rng.percent(50) { Engine::Repair } else { Engine::Splice };
        let mut case = Case::new(seed);
        case.config = FilterConfig { engine, asynchronous, hooked: true, ..case.config };
        case.f.demote();
        case.act();
        case.replica = Filter::new(case.config.clone());
        let _ = case.replica.replica_apply(&log);
        let mut snapshot = Vec::new();
        let mut ids: Vec<u32> = store.iter().map(|s| s.open.session).collect();
        ids.sort_unstable();
        ids.into_iter().for_each(|id| store.snapshot(id, &mut snapshot));
        if rng.percent(80) {
            case.replica.replica_reset();
            case.replica.replica_apply(&snapshot).expect("what the store took it can tell");
        }
        case.f = Filter::new(case.config.clone());
        case.take_over();
        for _ in 0..40 {
            case.step();
            case.act();
        }
    });
}
