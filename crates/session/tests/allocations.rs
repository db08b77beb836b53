//! How often the filter asks for memory in steady state: the manager's loop does everything for each packet on one thread,
//! and an allocation is what it would wait for. Never, neither as a master nor as a replica. And how much it keeps of a
//! session that is idle.

#[path = "allocations/counting.rs"]
mod counting;

use std::ops::Range;
use std::time::Duration;

use tcpr_session::filter::{Action, Engine, Filter, FilterConfig};
use tcpr_session::hook::{HookEvent, Origin};
use tcpr_session::segment::{flags, Build};
use tcpr_session::seq::{self, Seq};
use tcpr_session::tuple::FourTuple;
use tcpr_session::turn::PortPolicy;
use tcpr_session::Now;

#[global_allocator]
static COUNTING: counting::Counting = counting::Counting;

const SESSIONS: u16 = 32;
const WARM_UP: u64 = 400;
const TRIPS: u64 = 400;
const CHANNEL: u32 = 1;
const THREAD: u32 = 1;
const PEERS_FIRST: Seq = Seq(1000);
const OURS_FIRST: Seq = Seq(5000);

fn config() -> FilterConfig {
    FilterConfig {
        ports: vec![(5555, PortPolicy::default())],
        outgoing: Vec::new(),
        max_turn: Duration::from_millis(50),
        engine: Engine::Repair,
        hooked: true,
        asynchronous: false,
        data_bytes: 1 << 20,
    }
}

fn tuple(session: u16) -> FourTuple {
    FourTuple { local: "192.0.2.200:5555".parse().expect("an address"), peer: ([192, 0, 2, 9], 10_000 + session).into() }
}

/// A segment at these offsets of the two streams.
fn packet(session: u16, from_peer: bool, bits: u8, seq: u64, ack: u64, payload: &[u8]) -> Vec<u8> {
    let t = tuple(session);
    let (source, destination) = if from_peer { (t.peer, t.local) } else { (t.local, t.peer) };
    let (mine, other) = if from_peer { (PEERS_FIRST, OURS_FIRST) } else { (OURS_FIRST, PEERS_FIRST) };
    let syn = bits & flags::SYN != 0;
    let ts = (100 + seq as u32 / 64, 200);
    let build = Build {
        source,
        destination,
        seq: if syn { mine } else { seq::at(mine, seq) },
        ack: if bits & flags::ACK == 0 { Seq(0) } else { seq::at(other, ack) },
        flags: bits,
        window: 60_000,
        timestamps: Some(if from_peer { ts } else { (ts.1, ts.0) }),
        payload,
    };
    let mut packet = Vec::new();
    let options: &[u8] = if syn { &[2, 4, 5, 0xb4, 1, 3, 3, 2, 1, 1, 4, 2] } else { &[] };
    build.write_with(options, &mut packet);
    packet
}

/// A master, its replica, and what is in the manager's hands between them.
struct Rig {
    master: Filter,
    replica: Filter,
    now: Now,
    id: u32,
    actions: Vec<Action>,
    batch: Vec<u8>,
    /// Allocations since the counting began, of the master and of the replica.
    spent: [u64; 2],
    /// Bytes that they keep.
    kept: [isize; 2],
}

impl Rig {
    fn new(sessions: u16) -> Rig {
        let mut master = Filter::new(config());
        master.activate();
        master.hold_for_replica(0);
        let (now, replica) = (Duration::from_secs(1), Filter::new(config()));
        let (actions, batch) = (Vec::new(), Vec::with_capacity(1 << 16));
        let mut rig = Rig { master, replica, now, id: 0, actions, batch, spent: [0; 2], kept: [0; 2] };
        for session in 0..sessions {
            rig.count(0, |rig| {
                rig.inbound(&packet(session, true, flags::SYN, 0, 0, b""));
                rig.outbound(&packet(session, false, flags::SYN | flags::ACK, 0, 0, b""))
            });
            rig.stored();
            rig.count(0, |rig| rig.inbound(&packet(session, true, flags::ACK, 0, 0, b"")));
            rig.stored();
            let attach = |rig: &mut Rig| {
                let (handle, tuple) = (u32::from(session), tuple(session));
                let attach = HookEvent::Attach { thread: THREAD, handle, origin: Origin::Accepted, tuple };
                rig.master.handle(rig.now, CHANNEL, attach);
            };
            rig.count(0, attach);
        }
        rig
    }

    fn count<R>(&mut self, member: usize, f: impl FnOnce(&mut Rig) -> R) -> R {
        let before = (counting::allocations(), counting::in_use());
        let result = f(self);
        self.spent[member] += counting::allocations() - before.0;
        self.kept[member] += counting::in_use() - before.1;
        result
    }

    /// What is decided is done elsewhere; the buffer is used again.
    fn act(&mut self) -> usize {
        self.actions.clear();
        self.master.drain_actions(&mut self.actions);
        self.actions.iter().filter(|a| matches!(a, Action::AcceptIn(_) | Action::AcceptOut(_))).count()
    }

    fn inbound(&mut self, packet: &[u8]) -> usize {
        self.id += 1;
        self.master.packet_in(self.now, self.id, packet, true);
        self.act()
    }

    fn outbound(&mut self, packet: &[u8]) -> usize {
        self.id += 1;
        self.master.packet_out(self.now, self.id, packet);
        self.act()
    }

    /// The log goes to the replica, which stores it and says so. Returns how many packets may leave now.
    fn stored(&mut self) -> usize {
        self.count(0, |rig| {
            rig.batch.clear();
            rig.master.take_batch(&mut rig.batch)
        });
        self.count(1, |rig| rig.replica.replica_apply(&rig.batch).expect("the log fits"));
        self.count(0, |rig| {
            rig.master.replica_stored(rig.now, rig.master.log().written());
            rig.act()
        })
    }

    /// A message of each of these sessions, and its echo.
    fn trip(&mut self, sessions: Range<u16>, trip: u64, payload: &[u8]) {
        let at = trip * payload.len() as u64;
        let end = at + payload.len() as u64;
        self.now += Duration::from_millis(1);
        for session in sessions {
            let handle = u32::from(session);
            let n = payload.len() as u64;
            let asks = packet(session, true, flags::ACK | flags::PSH, at, at, payload);
            let answers = packet(session, false, flags::ACK | flags::PSH, at, end, payload);
            assert_eq!(self.count(0, |rig| rig.inbound(&asks)), 1, "the message is delivered");
            self.count(0, |rig| {
                rig.master.handle(rig.now, CHANNEL, HookEvent::Read { thread: THREAD, handle, n });
                let (taken, asked) = (payload.len() as u32, payload.len() as u64);
                let write = HookEvent::Write { thread: THREAD, handle, taken, asked, bytes: payload };
                rig.master.handle(rig.now, CHANNEL, write);
                rig.master.handle(rig.now, CHANNEL, HookEvent::Wait { thread: THREAD, zero_timeout: false });
                rig.master.run_commits(rig.now);
            });
            assert_eq!(self.count(0, |rig| rig.outbound(&answers)), 0, "the answer waits for the replica");
            assert_eq!(self.stored(), 1, "the answer leaves");
        }
    }
}

/// Allocations for each packet, of the master and of the replica.
fn allocations(payload: &[u8]) -> [f64; 2] {
    let mut rig = Rig::new(SESSIONS);
    for trip in 0..WARM_UP {
        rig.trip(0..SESSIONS, trip, payload);
    }
    rig.spent = [0; 2];
    for trip in WARM_UP..WARM_UP + TRIPS {
        rig.trip(0..SESSIONS, trip, payload);
    }
    assert!(rig.master.store() == rig.replica.store(), "I5");
    let packets = 2 * TRIPS * u64::from(SESSIONS);
    rig.spent.map(|n| n as f64 / packets as f64)
}

#[test]
fn packets_need_no_more_allocations_than_they_did() {
    for (payload, bounds) in [(vec![1; 64], [0.0, 0.0]), (vec![2; 1400], [0.0, 0.0])] {
        let each = allocations(&payload);
        eprintln!("{} bytes: allocations for each packet: master {:.3}, replica {:.3}", payload.len(), each[0], each[1]);
        for i in 0..2 {
            assert!(each[i] <= bounds[i], "{} bytes: {each:?}, more than {bounds:?}", payload.len());
        }
    }
}

/// Bytes that master and replica keep of each session: after so many messages, their echoes, and the acknowledgement.
fn kept(sessions: u16, trips: u64, payload: &[u8]) -> [isize; 2] {
    let mut rig = Rig::new(sessions);
    let end = trips * payload.len() as u64;
    for session in 0..sessions {
        (0..trips).for_each(|trip| rig.trip(session..session + 1, trip, payload));
        rig.count(0, |rig| rig.inbound(&packet(session, true, flags::ACK, end, end, b"")));
        rig.stored();
    }
    rig.kept.map(|bytes| bytes / isize::from(sessions as i16))
}

#[test]
fn an_idle_session_keeps_little() {
    // Their maps have room for less than twice as many.
    const MANY: u16 = 4800;
    let bounds = [810, 260];
    for (trips, payload) in [(0, &[][..]), (3, &[3; 64]), (3, &[4; 1400])] {
        let each = kept(MANY, trips, payload);
        eprintln!(
            "{trips} messages of {} bytes: bytes kept of each session: master {}, replica {}",
            payload.len(),
            each[0],
            each[1]
        );
        for i in 0..2 {
            assert!(each[i] <= bounds[i], "{trips} messages of {} bytes: {each:?}, more than {bounds:?}", payload.len());
        }
    }
}
