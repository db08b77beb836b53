//! The members together, the wire between them and the peers, and what goes wrong.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tcpr_session::filter::{Engine, Mode};
use tcpr_session::record;
use tcpr_session::segment::{flags, Segment};
use tcpr_session::seq;
use tcpr_session::store::Store;
use tcpr_session::tuple::FourTuple;
use tcpr_session::Now;

use crate::callee::Callee;
use crate::node::{line, Node, Service};
use crate::peer::{Ending, Peer};
use crate::rng::Rng;
use crate::tcp::{Setup, Tcp};
use tcpr_session::seq::Seq;

#[path = "calls.rs"]
mod calls;

/// How often a member compares its records with its kernel's sockets.
const SWEEP_US: u64 = 5_000_000;
const US: Duration = Duration::from_micros(1);
const MS: Duration = Duration::from_millis(1);

/// What happened, over all cases.
#[derive(Clone, Copy, Default, Debug)]
pub struct Sums {
    pub packets: u64,
    pub takeovers: u64,
    pub recoveries: u64,
    pub switchovers: u64,
    pub zombies: u64,
    pub restored: u64,
    pub had_back: u64,
    pub kept: u64,
    pub surplus: u64,
    pub unpaired: u64,
    pub open_commits: u64,
    pub held: u64,
    pub virtual_ms: u64,
}

impl Sums {
    pub fn add(&mut self, o: &Sums) {
        self.packets += o.packets;
        self.takeovers += o.takeovers;
        self.recoveries += o.recoveries;
        self.switchovers += o.switchovers;
        self.zombies += o.zombies;
        self.restored += o.restored;
        self.had_back += o.had_back;
        self.kept += o.kept;
        self.surplus += o.surplus;
        self.unpaired += o.unpaired;
        self.open_commits += o.open_commits;
        self.held += o.held;
        self.virtual_ms += o.virtual_ms;
    }
}

enum Message {
    /// Records, and the store that they are to compute.
    Log {
        position: u64,
        bytes: Vec<u8>,
        store: Option<Rc<Store>>,
    },
    Snapshot {
        position: u64,
        bytes: Vec<u8>,
        store: Rc<Store>,
    },
    Handover {
        position: u64,
    },
    Forward(Vec<u8>),
    Ack(u64),
}

enum Event {
    ToPeer(usize, Vec<u8>),
    ToCallee(usize, Vec<u8>),
    CalleeTimer(usize),
    Call(usize),
    Sweep(usize),
    ToVip(Vec<u8>),
    PeerStep(usize),
    PeerTimer(usize),
    Work(usize),
    App(usize),
    Link { from: usize, to: usize, link: u64, message: Message },
    Fault,
    TakeOver { node: usize, epoch: u64 },
    ProbesDone { node: usize, restore: u64 },
    Join(usize),
    Solo(usize),
    AppGone { node: usize, channel: u32 },
    Recover { node: usize, epoch: u64 },
    StartApp(usize),
    EndZombie(usize),
}

struct Due(Now, u64, Event);
impl PartialEq for Due {
    fn eq(&self, o: &Due) -> bool {
        (self.0, self.1) == (o.0, o.1)
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, o: &Due) -> Option<std::cmp::Ordering> {
        Some(self.cmp(o))
    }
}
impl Ord for Due {
    fn cmp(&self, o: &Due) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(o.0, o.1))
    }
}

/// What a member's output is measured against.
enum Guard {
    Nobody,
    Replica(usize),
    /// It was overtaken: the store that the new master began with.
    Overtaken(Rc<Store>),
}

pub struct World {
    now: Now,
    rng: Rng,
    queue: BinaryHeap<Reverse<Due>>,
    serial: u64,
    peers: Vec<Peer>,
    peer_of: HashMap<SocketAddr, usize>,
    peer_timer: Vec<Option<Now>>,
    /// Whom the application connects to; none in most worlds.
    callees: Vec<Callee>,
    /// How many peers connect by themselves; those behind them are called.
    clients: usize,
    login: bool,
    /// Longest time (in us) between two looks of an application for connections that it lacks, and between two steps of
    /// those that it calls.
    call_pause: u64,
    give_up: u64,
    /// An application has connected without knowing whether there is anything to connect to.
    guessed: bool,
    next_port: u16,
    nodes: Vec<Node>,
    alive: Vec<bool>,
    guard: Vec<Guard>,
    work_at: Vec<Option<Now>>,
    app_waits: Vec<bool>,
    master: usize,
    replica: Option<usize>,
    vip: Option<usize>,
    /// Number of the replication connection; messages of older ones are lost.
    link: u64,
    last_sent: BTreeMap<(usize, usize), Now>,
    /// The replica has a snapshot under way since here.
    snapshot_at: Option<u64>,
    /// What left while nothing waited for the replica is in the log up to here: it promotes only once it has that.
    paired_at: Option<u64>,
    position: Vec<u64>,
    epoch: u64,
    /// Number of the takeover, own ones counted.
    restore: u64,
    /// A fault is being dealt with.
    busy: bool,
    faults: u64,
    calm_at: Now,
    loss: u64,
    twice: u64,
    late: u64,
    link_delay: u64,
    stalls: bool,
    service: Service,
    /// The application keeps what it has not answered.
    keeps: bool,
    engine: Engine,
    setup: Setup,
    speaking: bool,
    sums: Sums,
    trace: bool,
}

impl World {
    pub fn new(seed: u64, trace: bool) -> World {
        let mut rng = Rng(seed);
        rng.next();
        let service = if rng.percent(65) { Service::Echo } else { Service::Lines };
        let engine = if seed.is_multiple_of(2) { Engine::Splice } else { Engine::Repair };
        let setup = Setup {
            mss: rng.range(100, 1460) as u16,
            shift: rng.percent(70).then(|| rng.below(4) as u8),
            timestamps: rng.percent(60),
            receive_buffer: rng.range(1000, 20_000) as usize,
            send_buffer: if service == Service::Lines { 1 << 24 } else { rng.range(300, 8000) as usize },
        };
        let count = rng.range(1, 4) as usize;
        let lines_each: Vec<u64> = (0..count).map(|_| rng.below(25)).collect();
        let mut w = World {
            now: MS * 1000,
            queue: BinaryHeap::new(),
            serial: 0,
            peers: Vec::new(),
            peer_of: HashMap::new(),
            peer_timer: vec![None; count],
            callees: Vec::new(),
            clients: count,
            login: false,
            call_pause: 0,
            give_up: 0,
            guessed: false,
            next_port: 33_000,
            nodes: Vec::new(),
            alive: Vec::new(),
            guard: Vec::new(),
            work_at: Vec::new(),
            app_waits: Vec::new(),
            master: 0,
            replica: Some(1),
            vip: Some(0),
            link: 1,
            last_sent: BTreeMap::new(),
            snapshot_at: None,
            paired_at: None,
            position: Vec::new(),
            epoch: 1,
            restore: 0,
            busy: false,
            faults: rng.below(5),
            calm_at: MS * 8000,
            loss: if rng.percent(50) { rng.below(15) } else { 0 },
            twice: rng.below(5),
            late: rng.below(20),
            link_delay: rng.range(50, 5000),
            stalls: rng.percent(30),
            service,
            keeps: matches!(seed % 5, 2 | 3),
            engine,
            setup,
            speaking: service == Service::Echo,
            sums: Sums::default(),
            trace,
            rng,
        };
        if seed.is_multiple_of(3) {
            w.add_callees();
        }
        for _ in 0..2 {
            w.add_node();
        }
        w.nodes[0].filter.activate();
        w.nodes[0].filter.hold_for_replica(0);
        w.guard[0] = Guard::Replica(1);
        let vip: SocketAddr = "192.0.2.200:5555".parse().unwrap();
        for index in 0..count {
            let me: SocketAddr = ([192, 0, 2, 10 + index as u8], 40_000 + index as u16).into();
            let peer_setup = w.peer_setup();
            let ending = match (service, w.rng.below(10)) {
                (Service::Lines, _) | (_, 0..=1) => Ending::Stays,
                (_, 2..=4) => Ending::PeerFirst,
                (_, 5..=8) => Ending::ServerFirst,
                _ => Ending::Aborts,
            };
            // More than all buffers hold, at times.
            let most = if w.rng.percent(20) { 100_000 } else { 6000 };
            let bytes = if w.rng.percent(10) { 0 } else { w.rng.below(most) as usize };
            let start = w.now + US * w.rng.below(if service == Service::Echo { 2_000_000 } else { 20_000 }) as u32;
            let (iss, ts) = (Seq(w.rng.next() as u32), w.rng.next() as u32);
            // Its SYN is sent when its first timer runs.
            let mut tcp = Tcp::connect(start, me, vip, iss, peer_setup, ts);
            let syn = tcp.out.pop().expect("a SYN");
            let slow = w.rng.percent(25);
            w.peers.push(Peer::new(index, tcp, ending, service, bytes, slow, lines_each.clone()));
            w.peer_of.insert(me, index);
            w.at(start, Event::ToVip(syn));
            w.at(start + MS, Event::PeerStep(index));
            w.plan_peer(index);
        }
        w.plan_calls();
        for _ in 0..w.faults {
            let t = w.now + US * w.rng.below(4_000_000) as u32;
            w.at(t, Event::Fault);
        }
        w
    }

    fn add_node(&mut self) -> usize {
        let isn = self.rng.next() as u32;
        let callees = self.callees.iter().map(|c| c.me).collect();
        let mut node = Node::new(self.service, self.engine, self.setup, isn, callees, self.login, self.keeps);
        node.trace = self.trace;
        self.nodes.push(node);
        if !self.callees.is_empty() {
            self.after(0, 200_000, Event::Call(self.nodes.len() - 1));
            self.after(0, SWEEP_US, Event::Sweep(self.nodes.len() - 1));
        }
        self.alive.push(true);
        self.guard.push(Guard::Nobody);
        self.work_at.push(None);
        self.app_waits.push(true);
        self.position.push(0);
        self.nodes.len() - 1
    }

    fn at(&mut self, when: Now, event: Event) {
        self.serial += 1;
        self.queue.push(Reverse(Due(when, self.serial, event)));
    }

    fn after(&mut self, from_us: u64, to_us: u64, event: Event) {
        let when = self.now + US * self.rng.range(from_us, to_us) as u32;
        self.at(when, event);
    }

    fn plan_peer(&mut self, i: usize) {
        if let Some(t) = self.peers[i].tcp.timer() {
            if self.peer_timer[i].is_none_or(|known| t < known) {
                self.peer_timer[i] = Some(t);
                self.at(t, Event::PeerTimer(i));
            }
        }
    }

    fn plan_work(&mut self, n: usize, when: Now) {
        if self.alive[n] && self.work_at[n].is_none_or(|known| when < known) {
            self.work_at[n] = Some(when);
            self.at(when, Event::Work(n));
        }
    }

    fn soon(&mut self, n: usize) {
        let when = self.now + US * self.rng.range(5, 300) as u32;
        self.plan_work(n, when);
    }

    fn calm(&self) -> bool {
        self.now >= self.calm_at
    }

    // ---- the wire ---------------------------------------------------------------------------------------

    fn carry(&mut self, make: impl Fn(Vec<u8>) -> Event, packet: Vec<u8>) {
        self.sums.packets += 1;
        if !self.calm() && self.rng.percent(self.loss) {
            return;
        }
        let copies = if !self.calm() && self.rng.percent(self.twice) { 2 } else { 1 };
        for _ in 0..copies {
            let late = if !self.calm() && self.rng.percent(self.late) { 20_000 } else { 300 };
            self.after(50, 50 + late, make(packet.clone()));
        }
    }

    fn arrived_from_peer(&mut self, i: usize) {
        for packet in std::mem::take(&mut self.peers[i].tcp.out) {
            if self.trace {
                eprintln!("{:?} peer {}", self.now, line(&packet));
            }
            self.carry(Event::ToVip, packet);
        }
        self.plan_peer(i);
    }

    /// What left a member: checked, and carried.
    fn arrived_from_node(&mut self, n: usize) {
        for packet in std::mem::take(&mut self.nodes[n].wire) {
            if self.trace {
                eprintln!("{:?} node {n} {}", self.now, line(&packet));
            }
            self.check_out(n, &packet);
            let p = Segment::parse(&packet).expect("a segment");
            match self.peer_of.get(&p.destination()).copied() {
                Some(peer) => self.carry(|packet| Event::ToPeer(peer, packet), packet),
                None => {
                    let callee = self.callees.iter().position(|c| c.me == p.destination()).expect("a host");
                    self.carry(|packet| Event::ToCallee(callee, packet), packet);
                }
            }
        }
        let from = n;
        for packet in std::mem::take(&mut self.nodes[n].forwarded) {
            let to = self.replica_of(n).unwrap_or(self.master);
            if to != n {
                self.send(from, to, Message::Forward(packet));
            }
        }
    }

    fn replica_of(&self, n: usize) -> Option<usize> {
        match self.guard[n] {
            Guard::Replica(r) => Some(r),
            _ => None,
        }
    }

    /// I1, I2, I3.
    fn check_out(&self, n: usize, packet: &[u8]) {
        let store = match &self.guard[n] {
            Guard::Nobody => return,
            Guard::Replica(_) if !self.nodes[n].filter.log().needs_replica() => return,
            Guard::Replica(r) => self.nodes[*r].filter.store(),
            Guard::Overtaken(store) => store,
        };
        let p = Segment::parse(packet).expect("a segment");
        let tuple = FourTuple { local: p.source(), peer: p.destination() };
        let Some(s) = store.find(&tuple).and_then(|id| store.get(id)) else {
            assert!(!p.has(flags::SYN) || !p.has(flags::ACK), "I1: a SYN-ACK of an unknown session");
            assert!(p.payload().is_empty() && !p.has(flags::FIN) || self.ended(n, &tuple), "I1: bytes of an unknown session");
            return;
        };
        if p.has(flags::SYN) || p.has(flags::RST) {
            return;
        }
        let ack = seq::offset(s.open.isn_in, p.ack(), s.in_end()).unwrap_or(0);
        assert!(ack <= s.in_ackable(), "I1: an ACK of {ack}, {} stored: {}", s.in_ackable(), line(packet));
        if p.sequence_length() == 0 {
            let at = seq::offset(s.open.isn_out, p.seq(), s.out_done).unwrap_or(0);
            assert!(
                at <= s.out_sendable() || self.paired_at.is_some(),
                "I2: an empty segment shows {at}, {} committed",
                s.out_sendable()
            );
            return;
        }
        let end = seq::offset(s.open.isn_out, p.seq().add(u64::from(p.sequence_length())), s.out_done).unwrap_or(0);
        assert!(end <= s.out_sendable(), "I1, I2: output to {end}, {} committed and stored: {}", s.out_sendable(), line(packet));
    }

    /// The session is over, also for the master: its last packets may be old duplicates.
    fn ended(&self, n: usize, tuple: &FourTuple) -> bool {
        self.nodes[n].filter.store().find(tuple).is_none()
    }

    // ---- the link -----------------------------------------------------------------------------------------

    fn send(&mut self, from: usize, to: usize, message: Message) {
        let least = self.last_sent.get(&(from, to)).copied().unwrap_or_default();
        let when = (self.now + US * self.rng.range(self.link_delay / 2, self.link_delay) as u32).max(least);
        self.last_sent.insert((from, to), when);
        let link = self.link;
        self.at(when, Event::Link { from, to, link, message });
    }

    fn ship(&mut self, n: usize) {
        if !self.nodes[n].filter.log().has_batch(self.now) || self.rng.percent(30) {
            return;
        }
        self.ship_all(n);
    }

    fn ship_all(&mut self, n: usize) {
        let mut bytes = Vec::new();
        let mut position = self.nodes[n].filter.take_batch(&mut bytes);
        let Some(to) = self.replica_of(n) else { return };
        if bytes.is_empty() || n != self.master {
            return;
        }
        // In two messages at times: the link may break in between.
        if self.rng.percent(20) {
            let mut rest = &bytes[..];
            let stop = self.rng.below(6);
            for _ in 0..stop {
                let _ = record::decode(&mut rest).expect("records");
            }
            let cut = bytes.len() - rest.len();
            if cut > 0 && cut < bytes.len() {
                let part: Vec<u8> = bytes.drain(..cut).collect();
                self.send(n, to, Message::Log { position, bytes: part, store: None });
                position += cut as u64;
            }
        }
        let store = Some(Rc::new(self.nodes[n].filter.store().clone()));
        self.send(n, to, Message::Log { position, bytes, store });
    }

    fn message(&mut self, from: usize, to: usize, message: Message) {
        let now = self.now;
        match message {
            Message::Log { position, bytes, store } => {
                if self.nodes[to].filter.mode() != Mode::Passive || self.replica != Some(to) {
                    return;
                }
                assert_eq!(position, self.position[to], "a gap in the log");
                self.nodes[to].filter.replica_apply(&bytes).expect("I5: the log fits");
                if let Some(store) = store {
                    assert!(
                        *store == *self.nodes[to].filter.store(),
                        "I5: master\n{store:?}\nreplica\n{:?}",
                        self.nodes[to].filter.store()
                    );
                }
                self.position[to] += bytes.len() as u64;
                self.send(to, from, Message::Ack(self.position[to]));
            }
            Message::Snapshot { position, bytes, store } => {
                if self.nodes[to].filter.mode() != Mode::Passive {
                    return;
                }
                self.nodes[to].filter.replica_reset();
                self.nodes[to].filter.replica_apply(&bytes).expect("I5: the snapshot fits");
                assert!(
                    *store == *self.nodes[to].filter.store(),
                    "I5: master\n{store:?}\nreplica\n{:?}",
                    self.nodes[to].filter.store()
                );
                self.position[to] = position;
                self.send(to, from, Message::Ack(position));
            }
            Message::Ack(position) => {
                if let Some(at) = self.snapshot_at.filter(|at| to == self.master && position >= *at) {
                    let _ = at;
                    self.snapshot_at = None;
                    // What was decided before needs no replica: nobody may take over who has not stored the log up to here.
                    self.nodes[to].perform(now);
                    self.arrived_from_node(to);
                    self.nodes[to].filter.hold_for_replica(position);
                    self.paired_at = Some(self.nodes[to].filter.log().written());
                } else if self.nodes[to].filter.log().needs_replica() && self.nodes[to].filter.mode() != Mode::Passive {
                    self.nodes[to].filter.replica_stored(now, position);
                    self.nodes[to].perform(now);
                }
                if to == self.master && self.paired_at.is_some_and(|at| position >= at) {
                    self.paired_at = None;
                    self.busy = false;
                }
                self.soon(to);
            }
            Message::Handover { position } => {
                assert_eq!(position, self.position[to], "a handover of a log that is not here");
                self.take_over(to);
                // The former master hears of it, and is done.
                let after = self.link_delay + self.rng.below(2000);
                self.after(after, after + 1, Event::EndZombie(from));
            }
            Message::Forward(packet) => {
                self.nodes[to].filter.forwarded_in(now, &packet);
                self.nodes[to].perform(now);
                self.soon(to);
            }
        }
        self.arrived_from_node(to);
    }

    // ---- what goes wrong --------------------------------------------------------------------------------

    fn fault(&mut self) {
        let m = self.master;
        if self.calm() {
            return;
        }
        if self.busy || !self.alive[m] {
            return self.after(5_000, 300_000, Event::Fault);
        }
        let paired = self.nodes[m].filter.log().needs_replica() && self.nodes[m].filter.mode() == Mode::Active;
        let what = if paired { self.rng.below(6) } else { 0 };
        if self.trace {
            eprintln!("{:?} fault {what}, paired {paired}", self.now);
        }
        self.busy = true;
        match what {
            0 | 1 => {
                let Some(channel) = self.nodes[m].app.as_ref().map(|a| a.channel) else { return self.busy = false };
                let now = self.now;
                self.nodes[m].crash_app(now);
                self.soon(m);
                // Sooner than a turn may last: the manager watches the process.
                self.after(0, 40_000, Event::AppGone { node: m, channel });
                if what == 0 {
                    let epoch = self.epoch;
                    self.after(80_000, 120_000, Event::Recover { node: m, epoch });
                } else {
                    // The partner takes over; this one yields when it hears of it.
                    self.overtake(m);
                }
            }
            2 => {
                self.alive[m] = false;
                self.vip = None;
                let (node, epoch) = (self.replica.expect("paired"), self.epoch);
                if self.rng.percent(50) {
                    // What was under way to the replica dies with it.
                    self.link += 1;
                }
                self.after(100, 200_000, Event::TakeOver { node, epoch });
            }
            3 => {
                self.sums.zombies += 1;
                self.overtake(m);
            }
            4 => {
                let r = self.replica.take().expect("paired");
                self.alive[r] = false;
                self.link += 1;
                self.after(100, 150_000, Event::Solo(m));
            }
            _ => {
                self.sums.switchovers += 1;
                let now = self.now;
                let to = self.replica.expect("paired");
                self.nodes[m].filter.freeze();
                self.nodes[m].perform(now);
                self.ship_all(m);
                let position = self.nodes[m].filter.log().written();
                self.send(m, to, Message::Handover { position });
                self.arrived_from_node(m);
            }
        }
    }

    /// The master goes on in the dark: cut off, or paused and thawing late. Acknowledgements that are under way
    /// may still reach it.
    fn overtake(&mut self, m: usize) {
        let (node, epoch) = (self.replica.expect("paired"), self.epoch);
        self.after(100, 200_000, Event::TakeOver { node, epoch });
        self.after(1000, 600_000, Event::EndZombie(m));
    }

    fn take_over(&mut self, n: usize) {
        let now = self.now;
        let before = self.master;
        self.sums.takeovers += 1;
        self.epoch += 1;
        self.link += 1;
        self.replica = None;
        self.snapshot_at = None;
        self.paired_at = None;
        let store = Rc::new(self.nodes[n].filter.store().clone());
        self.guessed |= self.nodes[before].gives_up(&store);
        self.guard[before] = Guard::Overtaken(store);
        self.guard[n] = Guard::Nobody;
        self.master = n;
        self.vip = Some(n);
        self.nodes[n].note_lonely();
        self.nodes[n].filter.take_over(now);
        self.begin_restore(n);
        let node = if self.alive[before] { usize::MAX } else { self.add_node() };
        if node != usize::MAX {
            self.after(1000, 300_000, Event::Join(node));
        }
    }

    fn begin_restore(&mut self, n: usize) {
        let now = self.now;
        self.nodes[n].filter.probes();
        self.nodes[n].perform(now);
        self.arrived_from_node(n);
        self.restore += 1;
        let restore = self.restore;
        self.after(2_000, 12_000, Event::ProbesDone { node: n, restore });
        self.soon(n);
    }

    fn join(&mut self, n: usize) {
        let m = self.master;
        if !self.alive[m] || !self.alive[n] || n == m || self.replica.is_some() {
            return;
        }
        if self.nodes[m].filter.mode() == Mode::Frozen {
            return;
        }
        let now = self.now;
        self.replica = Some(n);
        self.guard[m] = Guard::Replica(n);
        self.link += 1;
        // The log so far goes to nobody; the snapshot holds it.
        self.nodes[m].filter.take_batch(&mut Vec::new());
        let mut bytes = Vec::new();
        self.nodes[m].filter.snapshot(&mut bytes);
        self.nodes[m].filter.take_batch(&mut Vec::new());
        self.nodes[m].perform(now);
        let position = self.nodes[m].filter.log().written();
        self.snapshot_at = Some(position);
        let store = Rc::new(self.nodes[m].filter.store().clone());
        self.send(m, n, Message::Snapshot { position, bytes, store });
        self.arrived_from_node(m);
    }

    /// A member that is no longer master starts over as nobody, and joins.
    fn yield_now(&mut self, n: usize) {
        let now = self.now;
        if !self.alive[n] || n == self.master {
            return;
        }
        self.nodes[n].filter.demote();
        self.nodes[n].end_app(now);
        self.arrived_from_node(n);
        self.nodes[n].destroy_sockets();
        self.nodes[n].probed.clear();
        assert_eq!(self.nodes[n].held_packets(), 0, "a demoted master holds nothing");
        self.nodes[n].start_app();
        self.app_waits[n] = true;
        self.guard[n] = Guard::Nobody;
        self.after(1000, 300_000, Event::Join(n));
    }

    // ---- the run ------------------------------------------------------------------------------------------

    fn handle(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::ToPeer(i, packet) => {
                let World { peers, rng, .. } = self;
                peers[i].receive(now, &packet, rng);
                self.arrived_from_peer(i);
            }
            Event::ToCallee(c, packet) => self.arrived_at_callee(c, &packet),
            Event::Call(n) => self.call(n),
            Event::Sweep(n) => self.sweep(n),
            Event::ToVip(packet) => {
                if let Some(n) = self.vip.filter(|n| self.alive[*n]) {
                    self.nodes[n].arrived_from_wire(packet);
                    self.soon(n);
                }
            }
            Event::PeerStep(i) => {
                if self.speaking || i >= self.clients {
                    let World { peers, rng, .. } = self;
                    peers[i].step(now, rng);
                    self.arrived_from_peer(i);
                }
                if !self.peers[i].over() {
                    let pause = if i < self.clients { 60_000 } else { self.call_pause };
                    self.after(500, pause, Event::PeerStep(i));
                }
            }
            // One that another has come before: they would never become fewer.
            Event::PeerTimer(i) if self.peer_timer[i] != Some(now) => {}
            Event::CalleeTimer(c) if self.callees[c].planned != Some(now) => {}
            Event::Work(n) if self.work_at[n] != Some(now) => {}
            Event::PeerTimer(i) => {
                self.peer_timer[i] = None;
                if self.peers[i].tcp.timer().is_some_and(|t| now >= t) {
                    self.peers[i].tcp.handle_timer(now);
                }
                self.arrived_from_peer(i);
            }
            Event::CalleeTimer(c) => self.callee_timer(c),
            Event::Work(n) => self.work(n),
            Event::App(n) => self.app(n),
            Event::Link { from, to, link, message } => {
                // A new connection forgets the old one, but for what was under way at a takeover:
                // acknowledgements to the former master, and what it forwarded.
                let late = match message {
                    Message::Ack(_) => matches!(self.guard[to], Guard::Overtaken(_)),
                    Message::Forward(_) => to == self.master,
                    _ => false,
                };
                let stale = link != self.link && !(late && link + 1 == self.link);
                if self.alive[to] && !stale {
                    self.message(from, to, message);
                }
            }
            Event::Fault => self.fault(),
            Event::TakeOver { node, epoch } => {
                if epoch == self.epoch {
                    self.take_over(node);
                }
            }
            Event::ProbesDone { node, restore } => {
                if restore == self.restore && self.alive[node] && node == self.master {
                    for id in self.nodes[node].filter.unrestored() {
                        self.nodes[node].restore(now, id, false);
                    }
                    self.arrived_from_node(node);
                    self.soon(node);
                }
            }
            Event::Join(node) => self.join(node),
            Event::Solo(master) => {
                self.guard[master] = Guard::Nobody;
                self.nodes[master].filter.go_solo(now);
                self.nodes[master].perform(now);
                self.arrived_from_node(master);
                let node = self.add_node();
                self.after(1000, 300_000, Event::Join(node));
                self.soon(master);
            }
            Event::AppGone { node, channel } => {
                if self.alive[node] && self.nodes[node].app.is_none() && self.nodes[node].filter.mode() != Mode::Passive {
                    self.nodes[node].app_gone(now, channel);
                    self.arrived_from_node(node);
                    self.soon(node);
                }
            }
            Event::Recover { node, epoch } => {
                if epoch != self.epoch || !self.alive[node] {
                    return;
                }
                self.sums.recoveries += 1;
                self.guessed |= self.nodes[node].gives_up(self.nodes[node].filter.store());
                self.nodes[node].destroy_sockets();
                self.nodes[node].probed.clear();
                self.nodes[node].note_lonely();
                self.nodes[node].filter.recover(now);
                self.nodes[node].perform(now);
                self.arrived_from_node(node);
                self.after(0, 100_000, Event::StartApp(node));
                self.begin_restore(node);
            }
            Event::StartApp(n) => {
                self.nodes[n].start_app();
                self.busy = false;
                self.app_waits[n] = true;
                self.soon(n);
            }
            Event::EndZombie(n) => {
                if n == self.master {
                    // Not overtaken yet.
                    return self.after(10_000, 100_000, Event::EndZombie(n));
                }
                self.yield_now(n);
            }
        }
    }

    fn work(&mut self, n: usize) {
        self.work_at[n] = None;
        if !self.alive[n] {
            return;
        }
        let now = self.now;
        let World { nodes, rng, .. } = self;
        nodes[n].work(now, rng);
        while !self.nodes[n].probed.is_empty() && self.rng.percent(70) {
            let id = self.nodes[n].probed.remove(0);
            self.nodes[n].restore(now, id, true);
        }
        self.arrived_from_node(n);
        self.ship(n);
        if std::mem::take(&mut self.app_waits[n]) {
            self.after(10, 500, Event::App(n));
        }
        let node = &self.nodes[n];
        if !node.idle() || !node.probed.is_empty() || node.filter.log().has_batch(now) {
            self.soon(n);
        } else if let Some(t) = node.next_timer() {
            self.plan_work(n, t.max(now + US));
        }
    }

    fn app(&mut self, n: usize) {
        if !self.alive[n] {
            return;
        }
        let now = self.now;
        let World { nodes, rng, .. } = self;
        let did = nodes[n].app_step(now, rng);
        if did {
            self.soon(n);
            let stall = self.stalls && self.service == Service::Echo && self.rng.percent(2);
            let (from, to) = if stall { (10_000, 150_000) } else { (2, 200) };
            self.after(from, to, Event::App(n));
        } else {
            self.app_waits[n] = true;
        }
    }

    pub fn run(mut self) -> Sums {
        // Who waits to be called is waited for for a minute, and the timer stays.
        let afterwards = if self.callees.is_empty() { MS * 15_000 } else { MS * 75_000 };
        let limit = self.calm_at + MS * 75_000 + afterwards;
        let mut events = 0u64;
        let mut over_at = None;
        while let Some(Reverse(Due(when, _, event))) = self.queue.pop() {
            self.now = when;
            self.handle(event);
            events += 1;
            if self.now > limit || events > 3_000_000 {
                panic!("a hang after {events} events at {:?}:\n{}", self.now, self.describe());
            }
            if !self.speaking {
                self.speaking = self.all_hold();
            }
            // Those that have nothing to say, too, first wait for the others.
            if self.speaking && self.peers.iter().all(Peer::satisfied) {
                self.peers.iter_mut().for_each(|p| p.may_end = true);
            }
            let all_over = self.peers.iter().all(Peer::over) && self.calm();
            if all_over {
                let until = *over_at.get_or_insert(self.now + afterwards);
                if self.now > until {
                    break;
                }
            }
        }
        self.check_end();
        let m = &self.nodes[self.master];
        self.sums.virtual_ms = self.now.as_millis() as u64;
        for n in &self.nodes {
            self.sums.restored += n.filter.counters().restored;
            self.sums.held += n.filter.counters().held;
            self.sums.had_back += n.had_back;
            self.sums.kept += n.kept;
        }
        self.sums.surplus = self.callees.iter().map(|c| c.surplus).sum();
        self.sums.open_commits = m.filter.turns().counters().open_commits;
        self.sums
    }

    /// The application has all connections that others made, and whoever may take over knows it: one that it finds half
    /// open comes a moment later than the others, and what a chat says in that moment it does not hear.
    fn all_hold(&self) -> bool {
        let next = &self.nodes[self.replica.unwrap_or(self.master)].filter;
        let known = next.store().iter().filter(|s| s.established && self.peer_of.contains_key(&s.open.tuple.peer)).count();
        known == self.clients && self.nodes[self.master].app.as_ref().is_some_and(|a| a.holds() == self.clients)
    }

    fn check_end(&self) {
        assert!(self.peers.iter().all(Peer::over), "not served:\n{}", self.describe());
        self.check_callees();
        let m = &self.nodes[self.master];
        let surplus: u64 = self.callees.iter().map(|c| c.surplus).sum();
        let aborted = self.peers.iter().filter(|p| p.aborted).count() + surplus as usize;
        assert!(m.filter.store().len() <= aborted, "records are left:\n{}", self.describe());
        assert!(m.open_sockets() <= aborted, "sockets are left:\n{}", self.describe());
        for n in (0..self.nodes.len()).filter(|n| self.alive[*n]) {
            let node = &self.nodes[n];
            assert!(node.torn.is_empty(), "a session was torn on node {n}");
            assert!(node.held_packets() == 0 || aborted > 0, "packets are left on node {n}:\n{}", self.describe());
            assert_eq!(node.filter.counters().ack_beyond_store, 0);
        }
        if let Some(r) = self.replica.filter(|_| m.filter.log().needs_replica()) {
            assert!(self.nodes[r].filter.store() == m.filter.store(), "I5: the stores differ at the end");
        }
        if aborted == 0 {
            assert_eq!(m.filter.poll_timeout(), None, "a timer is left:\n{}", self.describe());
        }
    }

    fn describe(&self) -> String {
        let mut out = format!("master {} replica {:?} busy {}\n", self.master, self.replica, self.busy);
        for p in &self.peers {
            out += &p.describe();
            out.push('\n');
        }
        out += &self.nodes[self.master].describe();
        out
    }
}
