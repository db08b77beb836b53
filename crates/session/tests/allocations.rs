//! How often the filter asks for memory in steady state: the manager's loop does everything for each packet on one thread,
//! and an allocation is what it would wait for. Never, neither as a master nor as a replica.

#[path = "allocations/counting.rs"]
mod counting;

use std::time::Duration;

use tcpr_session::filter::{Action, Engine, Filter, FilterConfig, Origin};
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
}

impl Rig {
    fn new() -> Rig {
        let mut master = Filter::new(config());
        master.activate();
        master.hold_for_replica(0);
        let now = Duration::from_secs(1);
        let mut rig =
            Rig { master, replica: Filter::new(config()), now, id: 0, actions: Vec::new(), batch: Vec::new(), spent: [0; 2] };
        for session in 0..SESSIONS {
            rig.inbound(&packet(session, true, flags::SYN, 0, 0, b""));
            rig.outbound(&packet(session, false, flags::SYN | flags::ACK, 0, 0, b""));
            rig.stored();
            rig.inbound(&packet(session, true, flags::ACK, 0, 0, b""));
            rig.stored();
            rig.master.attach(rig.now, CHANNEL, u32::from(session), Origin::Accepted, &tuple(session));
        }
        rig
    }

    fn count<R>(&mut self, member: usize, f: impl FnOnce(&mut Rig) -> R) -> R {
        let before = counting::allocations();
        let result = f(self);
        self.spent[member] += counting::allocations() - before;
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
            rig.master.replica_stored(rig.now, rig.master.log_end());
            rig.act()
        })
    }

    /// A message of each session, and its echo; so many at a time go to the replica together.
    fn trip(&mut self, trip: u64, payload: &[u8]) {
        let at = trip * payload.len() as u64;
        let end = at + payload.len() as u64;
        self.now += Duration::from_millis(1);
        for session in 0..SESSIONS {
            let handle = u32::from(session);
            let n = payload.len() as u64;
            let asks = packet(session, true, flags::ACK | flags::PSH, at, at, payload);
            let answers = packet(session, false, flags::ACK | flags::PSH, at, end, payload);
            assert_eq!(self.count(0, |rig| rig.inbound(&asks)), 1, "the message is delivered");
            self.count(0, |rig| {
                rig.master.read(rig.now, CHANNEL, THREAD, handle, n);
                rig.master.write_out(rig.now, CHANNEL, THREAD, handle, payload, false);
                rig.master.turn_end(rig.now, CHANNEL, THREAD);
                rig.master.run_commits(rig.now);
            });
            assert_eq!(self.count(0, |rig| rig.outbound(&answers)), 0, "the answer waits for the replica");
            assert_eq!(self.stored(), 1, "the answer leaves");
        }
    }
}

/// Allocations for each packet, of the master and of the replica.
fn allocations(payload: &[u8]) -> [f64; 2] {
    let mut rig = Rig::new();
    for trip in 0..WARM_UP {
        rig.trip(trip, payload);
    }
    rig.spent = [0; 2];
    for trip in WARM_UP..WARM_UP + TRIPS {
        rig.trip(trip, payload);
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
