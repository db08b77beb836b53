//! Two role machines, their runtimes in miniature, and a hostile world, all driven by one virtual clock.
//!
//! The miniature runtime keeps the contract of `role`: it replicates a growing list of items over an ordered
//! link, releases them by the actions it was given, and stores the epoch before a heartbeat names it. A ghost
//! outside remembers every item that was ever released, and in which epoch.
//!
//! Two kinds of world. In the *strict* one a cut takes a member off the network altogether (a pulled cable),
//! and no message is lost otherwise: here a takeover must hold everything that was ever released. The *lossy*
//! one adds loss, long delays, and partitions of the members from each other while both reach the world:
//! there two masters are possible (arbiter `none`), and the promises are those that remain.
//!
//! Beside seeds that are always the same, fresh ones from the clock are run for a while, and said before, so that a failure
//! can be repeated: `ROLE_SEED=n ROLE_TRACE=1 cargo test --release --test role_cluster -- --nocapture` repeats one run.
//! `ROLE_RUNS=n` sets how many there are of those that are always the same, and `ROLE_FRESH=s` for how many seconds there
//! are fresh ones in each kind of world (without it: none if `ROLE_RUNS` is set).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashSet, VecDeque};
use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tcpr_session::role::{Epoch, PartnerView, Release, Role, RoleAction, RoleConfig, RoleInput, RoleMachine};

type Micros = u64;
const MS: Micros = 1000;
const START_WAIT: Micros = 400 * MS;
const FAULTS_UNTIL: Micros = 6_000 * MS;
const QUIET: Micros = 3_000 * MS;

struct Rng(u64);

impl Rng {
    /// splitmix64
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

#[derive(Clone, Debug)]
enum Message {
    Snapshot(Epoch, Vec<u64>),
    Record(Epoch, u64),
    Ack(Epoch, usize),
    Paired(Epoch),
    PairedAck(Epoch),
    Handover(Epoch),
    HandoverAck(Epoch),
    /// The sessions for which the sender released anything alone.
    Alone(HashSet<u64>),
}

#[derive(Clone, Debug)]
enum Datagram {
    /// What the sender says, when it said it, and when that was said which it had heard of its receiver.
    Heartbeat(PartnerView, Micros, Micros),
    Bye,
}

/// What reaches a member's event loop.
#[derive(Clone, Debug)]
enum Incoming {
    Role(RoleInput),
    Datagram(Datagram),
    Link(u64, Message),
}

#[derive(Debug)]
enum Event {
    /// A datagram from the partner.
    Datagram(usize, Datagram),
    /// Something local to one life of a member.
    Local(usize, u64, Incoming),
    Beat(usize),
    Item(usize),
    Probe(usize, u64),
    Pump(usize, u64),
    Connect,
    Break(u64, bool),
    Thaw(usize),
    Start(usize),
    Plug(usize),
    Heal,
    Fault,
}

#[derive(Default)]
struct Node {
    machine: Option<RoleMachine>,
    life: u64,
    frozen: bool,
    woke: Micros,
    inbox: VecDeque<Incoming>,
    disk: Epoch,
    said: Option<(Role, Epoch)>,
    born: Micros,
    /// When the newest heartbeat was sent that was heard.
    heard: Micros,

    // master
    items: Vec<u64>,
    released: usize,
    acked: usize,
    hold: Option<Epoch>,
    serving: Epoch,
    fenced: bool,
    paused_for_handover: bool,
    streaming: bool,
    /// The epoch in which it went on by itself, and the sessions for which it released anything since.
    by_itself: Option<Epoch>,
    alone: HashSet<u64>,
    /// What it has to tell of that, no longer master.
    to_tell: Option<HashSet<u64>>,
    // backup
    store: Option<(Epoch, Vec<u64>)>,
}

#[derive(Default)]
struct Claim {
    parent: Option<Epoch>,
    released: Vec<u64>,
    doubtful: bool,
    take_over: bool,
    at: Micros,
    first_release: Micros,
    /// Sessions that were torn because the other side of a fork had released something for them, too.
    torn: HashSet<u64>,
}

/// An item is said on the session of this number.
fn session(item: u64) -> u64 {
    item % 16
}

#[derive(Default, Debug)]
struct Seen {
    forks: u64,
    told: u64,
    torn_all: u64,
    takeovers: u64,
    handovers: u64,
    solos: u64,
    doubtful: u64,
    announced: u64,
    fences: u64,
    empty: u64,
    demotions: u64,
    pairings: u64,
    released: u64,
}

impl Seen {
    fn add(&mut self, other: &Seen) {
        let Seen { forks, told, torn_all, takeovers, handovers, solos, doubtful, announced, fences, empty, demotions, .. } =
            other;
        self.forks += forks;
        self.told += told;
        self.torn_all += torn_all;
        self.takeovers += takeovers;
        self.handovers += handovers;
        self.solos += solos;
        self.doubtful += doubtful;
        self.announced += announced;
        self.fences += fences;
        self.empty += empty;
        self.demotions += demotions;
        self.pairings += other.pairings;
        self.released += other.released;
    }
}

struct World {
    seed: u64,
    strict: bool,
    trace: bool,
    rng: Rng,
    now: Micros,
    order: u64,
    events: BinaryHeap<Reverse<(Micros, u64)>>,
    bodies: BTreeMap<u64, Event>,
    nodes: [Node; 2],
    solo_after: Micros,
    /// Since when a member's cable is out.
    pulled: [Option<Micros>; 2],
    split: bool,
    loss: u64,
    link: Option<u64>,
    links: u64,
    /// A lost connection is reported before a new one stands.
    connect_from: Micros,
    wire: [VecDeque<(Micros, Message)>; 2],
    next_item: u64,
    ghost: BTreeMap<Epoch, Claim>,
    seen: Seen,
}

impl World {
    fn new(seed: u64, strict: bool, faults: bool) -> Self {
        let mut rng = Rng(seed);
        let solo_after = if rng.chance(50) { 100 * MS } else { 300 * MS };
        let mut world = World {
            seed,
            strict,
            trace: std::env::var_os("ROLE_TRACE").is_some(),
            rng,
            now: 10_000 * MS,
            order: 0,
            events: BinaryHeap::new(),
            bodies: BTreeMap::new(),
            nodes: [Node::default(), Node::default()],
            solo_after,
            pulled: [None; 2],
            split: false,
            loss: 0,
            link: None,
            links: 0,
            connect_from: 0,
            wire: [VecDeque::new(), VecDeque::new()],
            next_item: 0,
            ghost: BTreeMap::new(),
            seen: Seen::default(),
        };
        for m in 0..2 {
            let at = world.rng.range(0, 600 * MS);
            world.after(at, Event::Start(m));
            world.after(1, Event::Beat(m));
            world.after(1, Event::Item(m));
        }
        world.after(1, Event::Connect);
        if faults {
            world.after(800 * MS, Event::Fault);
        }
        world
    }

    fn after(&mut self, delay: Micros, event: Event) {
        self.order += 1;
        self.events.push(Reverse((self.now + delay, self.order)));
        self.bodies.insert(self.order, event);
    }

    fn say(&self, text: std::fmt::Arguments) {
        if self.trace {
            println!("{:>10.3} {text}", self.now as f64 / 1000.0 - 10_000.0);
        }
    }

    fn blocked(&self) -> bool {
        self.split || self.pulled.iter().any(Option::is_some)
    }

    fn run(&mut self, until: Micros) {
        loop {
            let event = self.events.peek().map_or(Micros::MAX, |Reverse((at, _))| *at);
            let timer = (0..2)
                .filter(|m| !self.nodes[*m].frozen)
                .filter_map(|m| Some((self.nodes[m].machine.as_ref()?.poll_timeout()?, m)))
                .min()
                .map(|(at, m)| ((at.as_nanos() as u64).div_ceil(1000).max(self.now), m));
            let next = event.min(timer.map_or(Micros::MAX, |t| t.0));
            if next > until {
                break;
            }
            self.now = next;
            match timer {
                Some((at, m)) if at < event => {
                    let now = self.clock();
                    self.nodes[m].machine.as_mut().unwrap().handle_timeout(now);
                    self.settle(m);
                }
                _ => {
                    let Reverse((_, id)) = self.events.pop().unwrap();
                    let body = self.bodies.remove(&id).unwrap();
                    self.event(body);
                }
            }
        }
        self.now = until;
    }

    fn clock(&self) -> Duration {
        Duration::from_micros(self.now)
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Datagram(m, datagram) => {
                if self.pulled[m].is_none() && !self.split {
                    self.arrive(m, Incoming::Datagram(datagram));
                }
            }
            Event::Local(m, life, incoming) => {
                if self.nodes[m].life == life {
                    self.arrive(m, incoming);
                }
            }
            Event::Beat(m) => {
                self.beat(m);
                self.after(20 * MS, Event::Beat(m));
            }
            Event::Item(m) => {
                self.item(m);
                let next = self.rng.range(MS, 4 * MS);
                self.after(next, Event::Item(m));
            }
            Event::Probe(m, life) => {
                let answer = self.pulled[m].is_none();
                self.event(Event::Local(m, life, Incoming::Role(RoleInput::Reach(answer))));
            }
            Event::Pump(to, link) => self.pump(to, link),
            Event::Connect => {
                let awake = self.nodes.iter().all(|n| n.machine.is_some() && !n.frozen);
                if self.link.is_none() && self.now >= self.connect_from && awake && !self.blocked() {
                    self.links += 1;
                    self.link = Some(self.links);
                    for m in 0..2 {
                        self.wire[m].clear();
                        self.nodes[m].streaming = false;
                        let hello = self.nodes[1 - m].machine.as_ref().unwrap().view();
                        self.local(m, 300, Incoming::Role(RoleInput::LinkUp));
                        self.local(m, 300, Incoming::Role(RoleInput::Heartbeat(hello)));
                    }
                }
                self.after(30 * MS, Event::Connect);
            }
            Event::Break(link, reset) => {
                if self.link == Some(link) {
                    self.link = None;
                    self.connect_from = self.now + MS;
                    for m in 0..2 {
                        self.local(m, 500, Incoming::Role(RoleInput::LinkDown { reset }));
                    }
                }
            }
            Event::Thaw(m) => {
                if std::mem::take(&mut self.nodes[m].frozen) && self.nodes[m].machine.is_some() {
                    self.say(format_args!("{m} thaws"));
                    self.nodes[m].woke = self.now;
                    // The worst order: timers before what waited.
                    if self.rng.chance(50) {
                        let now = self.clock();
                        self.nodes[m].machine.as_mut().unwrap().handle_timeout(now);
                        self.settle(m);
                    }
                    for incoming in std::mem::take(&mut self.nodes[m].inbox) {
                        self.arrive(m, incoming);
                    }
                }
            }
            Event::Start(m) => {
                if self.nodes[m].machine.is_none() {
                    self.say(format_args!("{m} starts"));
                    let cfg = RoleConfig {
                        me: m as u8,
                        has_partner: true,
                        preferred: 0,
                        heartbeat: Duration::from_millis(20),
                        misses: 3,
                        solo_after: Duration::from_micros(self.solo_after),
                        start_wait: Duration::from_micros(START_WAIT),
                        asynchronous: false,
                    };
                    let (life, disk) = (self.nodes[m].life + 1, self.nodes[m].disk);
                    let mut machine = RoleMachine::new(cfg, disk, self.clock());
                    machine.handle(self.clock(), RoleInput::Carrier(true));
                    let (woke, born) = (self.now, self.now);
                    self.nodes[m] = Node { machine: Some(machine), life, disk, woke, born, ..Node::default() };
                    self.settle(m);
                }
            }
            Event::Plug(m) => {
                self.say(format_args!("{m} plugged in"));
                self.pulled[m] = None;
                self.local(m, 100, Incoming::Role(RoleInput::Carrier(true)));
            }
            Event::Heal => {
                self.say(format_args!("network whole"));
                self.split = false;
                self.loss = 0;
            }
            Event::Fault => self.fault(),
        }
    }

    fn local(&mut self, m: usize, delay: Micros, incoming: Incoming) {
        let life = self.nodes[m].life;
        self.after(delay, Event::Local(m, life, incoming));
    }

    fn beat(&mut self, m: usize) {
        let node = &self.nodes[m];
        let Some(machine) = node.machine.as_ref().filter(|_| !node.frozen) else { return };
        let heartbeat = Datagram::Heartbeat(machine.view(), self.now, node.heard);
        self.datagram(1 - m, heartbeat);
    }

    fn datagram(&mut self, to: usize, datagram: Datagram) {
        let lost = self.loss > 0 && self.rng.chance(self.loss);
        if self.pulled[1 - to].is_some() || self.split || lost {
            return;
        }
        let late = !self.strict && self.rng.chance(5);
        let delay = if late { self.rng.range(MS, 60 * MS) } else { self.rng.range(50, 500) };
        self.after(delay, Event::Datagram(to, datagram));
    }

    fn fault(&mut self) {
        if self.now - 10_000 * MS > FAULTS_UNTIL {
            return;
        }
        let m = self.rng.range(0, 2) as usize;
        let length = if self.rng.chance(30) { self.rng.range(300, 2500) } else { self.rng.range(5, 300) } * MS;
        let kinds = if self.strict { 7 } else { 9 };
        match self.rng.range(0, kinds) {
            0 => {
                if self.pulled[m].is_none() {
                    self.say(format_args!("{m} pulled for {}", length / MS));
                    self.pulled[m] = Some(self.now);
                    if self.rng.chance(50) {
                        self.local(m, 100, Incoming::Role(RoleInput::Carrier(false)));
                    }
                    self.after(length, Event::Plug(m));
                    self.timeout_link();
                }
            }
            1 | 2 => {
                self.say(format_args!("{m} freezes for {}", length / MS));
                self.nodes[m].frozen = true;
                self.after(length, Event::Thaw(m));
            }
            3 => {
                self.crash(m, true, length);
            }
            4 => self.crash(m, false, length),
            5 => {
                self.say(format_args!("switchover asked of {m}"));
                self.local(m, 1, Incoming::Role(RoleInput::SwitchoverRequested));
            }
            6 => {
                self.say(format_args!("link breaks"));
                if let Some(link) = self.link {
                    self.event(Event::Break(link, false));
                }
            }
            7 => {
                self.say(format_args!("partition for {}", length / MS));
                self.split = true;
                self.after(length, Event::Heal);
                self.timeout_link();
            }
            _ => {
                self.loss = self.rng.range(10, 70);
                self.say(format_args!("loss {} for {}", self.loss, length / MS));
                self.after(length, Event::Heal);
            }
        }
        let next = self.rng.range(5, 700) * MS;
        self.after(next, Event::Fault);
    }

    fn timeout_link(&mut self) {
        if let Some(link) = self.link {
            let after = self.rng.range(30, 300) * MS;
            self.after(after, Event::Break(link, false));
        }
    }

    fn crash(&mut self, m: usize, process: bool, length: Micros) {
        if self.nodes[m].machine.take().is_none() {
            return;
        }
        self.say(format_args!("{m} crashes (process: {process}) for {}", length / MS));
        let node = &mut self.nodes[m];
        node.life += 1;
        node.frozen = false;
        node.inbox.clear();
        if process && !self.blocked() {
            if let Some(link) = self.link {
                self.event(Event::Break(link, true));
            }
            if self.rng.chance(30) {
                self.datagram(1 - m, Datagram::Bye);
            }
        } else {
            self.timeout_link();
        }
        self.after(length, Event::Start(m));
    }

    fn arrive(&mut self, m: usize, incoming: Incoming) {
        let now = self.clock();
        let node = &mut self.nodes[m];
        let Some(machine) = node.machine.as_mut() else { return };
        if node.frozen {
            node.inbox.push_back(incoming);
            return;
        }
        match incoming {
            // Overtaken ones say nothing.
            Incoming::Datagram(Datagram::Heartbeat(_, at, _)) if at < node.heard => {}
            Incoming::Datagram(Datagram::Heartbeat(view, at, echo)) => {
                node.heard = at;
                machine.handle(now, RoleInput::Heartbeat(view));
                if echo >= node.born {
                    machine.handle(now, RoleInput::Echo(Duration::from_micros(echo)));
                }
            }
            Incoming::Datagram(Datagram::Bye) => machine.handle(now, RoleInput::PartnerBye),
            Incoming::Role(input) => {
                if self.trace && !matches!(input, RoleInput::Heartbeat(_)) {
                    println!("{:>10.3} {m} <- {input:?}", self.now as f64 / 1000.0 - 10_000.0);
                }
                self.nodes[m].machine.as_mut().unwrap().handle(now, input);
                if let (RoleInput::LinkUp, Some(alone)) = (input, self.nodes[m].to_tell.clone()) {
                    self.send(m, Message::Alone(alone));
                }
            }
            Incoming::Link(link, message) => {
                if self.link != Some(link) {
                    return;
                }
                let (role, epoch) = (machine.role(), machine.epoch());
                let backup = role == Role::Backup;
                match message {
                    Message::Snapshot(e, items) if backup && e == epoch => {
                        machine.handle(now, RoleInput::StoreStale);
                        let n = items.len();
                        node.store = Some((e, items));
                        self.send(m, Message::Ack(e, n));
                    }
                    Message::Record(e, item) if backup && e == epoch => {
                        if let Some((_, items)) = node.store.as_mut().filter(|s| s.0 == e) {
                            items.push(item);
                            let n = items.len();
                            self.send(m, Message::Ack(e, n));
                        }
                    }
                    Message::Paired(e) if backup && e == epoch && node.store.is_some() => {
                        machine.handle(now, RoleInput::PairedIn(e));
                        node.to_tell = None;
                        self.send(m, Message::PairedAck(e));
                    }
                    Message::Ack(e, n) if node.streaming && e == node.serving => {
                        node.acked = node.acked.max(n);
                        if node.acked >= node.items.len() {
                            machine.handle(now, RoleInput::ReplicaFull);
                        }
                    }
                    Message::PairedAck(e) if e == node.serving && e == epoch => {
                        self.seen.pairings += 1;
                        machine.handle(now, RoleInput::PairedAcked);
                    }
                    Message::Handover(e) => {
                        machine.handle(now, RoleInput::Handover(e));
                        self.settle(m);
                        let machine = self.nodes[m].machine.as_ref().unwrap();
                        if machine.role() == Role::Master {
                            let epoch = machine.epoch();
                            self.seen.handovers += 1;
                            self.send(m, Message::HandoverAck(epoch));
                        }
                        return;
                    }
                    Message::HandoverAck(e) => machine.handle(now, RoleInput::HandoverAcked(e)),
                    Message::Alone(sessions) if matches!(role, Role::Master | Role::Fenced) => {
                        machine.handle(now, RoleInput::ToldAlone);
                        self.seen.told += u64::from(!sessions.is_empty());
                        if let Some(e) = node.by_itself {
                            self.ghost.get_mut(&e).unwrap().torn.extend(sessions);
                        }
                    }
                    _ => {}
                }
            }
        }
        self.settle(m);
    }

    fn send(&mut self, from: usize, message: Message) {
        let Some(link) = self.link else { return };
        let delay = self.rng.range(30, 300);
        let to = 1 - from;
        let due = self.wire[to].back().map_or(0, |w| w.0).max(self.now + delay);
        self.wire[to].push_back((due, message));
        self.after(due - self.now, Event::Pump(to, link));
    }

    fn pump(&mut self, to: usize, link: u64) {
        if self.link != Some(link) {
            return;
        }
        if self.blocked() {
            self.after(5 * MS, Event::Pump(to, link));
            return;
        }
        while self.wire[to].front().is_some_and(|w| w.0 <= self.now) {
            let (_, message) = self.wire[to].pop_front().unwrap();
            self.arrive(to, Incoming::Link(link, message));
        }
    }

    /// The application of a master produces.
    fn item(&mut self, m: usize) {
        let node = &mut self.nodes[m];
        let Some(machine) = &node.machine else { return };
        let serving = matches!(machine.role(), Role::Master | Role::Fenced);
        if !serving || node.frozen || node.paused_for_handover {
            return;
        }
        node.items.push(self.next_item);
        let record = Message::Record(node.serving, self.next_item);
        let streaming = node.streaming;
        self.next_item += 1;
        if streaming {
            self.send(m, record);
        }
        self.release(m);
    }

    fn release(&mut self, m: usize) {
        let node = &mut self.nodes[m];
        let rule = node.machine.as_ref().unwrap().release();
        let by_actions = match (node.machine.as_ref().unwrap().role(), node.fenced, node.hold) {
            (Role::Starting | Role::Backup, ..) | (_, true, _) => Release::Nothing,
            (_, _, Some(_)) => Release::Acknowledged,
            _ => Release::Freely,
        };
        assert_eq!(rule, by_actions, "seed {}", self.seed);
        let limit = match rule {
            Release::Nothing => return,
            Release::Acknowledged => node.acked,
            Release::Freely => node.items.len(),
        };
        let claim = self.ghost.get_mut(&node.serving).unwrap();
        while node.released < limit {
            let item = node.items[node.released];
            if node.by_itself.is_some() {
                node.alone.insert(session(item));
            }
            // What leaves by a cable that is out reaches nobody.
            if self.pulled[m].is_none() {
                if claim.released.is_empty() {
                    claim.first_release = self.now;
                }
                claim.released.push(item);
                self.seen.released += 1;
            }
            node.released += 1;
        }
    }

    fn settle(&mut self, m: usize) {
        loop {
            let node = &mut self.nodes[m];
            let machine = node.machine.as_mut().unwrap();
            assert!(machine.epoch() >= node.disk, "seed {}: the epoch fell", self.seed);
            node.disk = machine.epoch();
            let Some(action) = machine.poll_action() else { break };
            if action != RoleAction::ProbeReach {
                self.say(format_args!("{m} -> {action:?}"));
            }
            self.act(m, action);
        }
        let machine = self.nodes[m].machine.as_ref().unwrap();
        let said = Some((machine.role(), machine.epoch()));
        if self.nodes[m].said != said {
            self.nodes[m].said = said;
            self.beat(m);
        }
        self.release(m);
    }

    fn act(&mut self, m: usize, action: RoleAction) {
        let node = &mut self.nodes[m];
        match action {
            RoleAction::BecomeMaster { epoch, take_over, old } => {
                node.items = match node.store.take() {
                    Some((e, items)) if take_over => {
                        assert_eq!(e, old, "seed {}: a store of another epoch", self.seed);
                        items
                    }
                    None if take_over => panic!("seed {}: takeover without a store", self.seed),
                    _ => Vec::new(),
                };
                node.released = node.items.len();
                self.solo(m, epoch, take_over.then_some(old), false);
                if take_over {
                    self.seen.takeovers += 1;
                    self.check_takeover(m, old);
                } else {
                    self.seen.empty += 1;
                }
            }
            RoleAction::GoSolo { epoch, doubtful } => {
                let parent = node.serving;
                self.seen.solos += 1;
                self.seen.doubtful += u64::from(doubtful);
                self.solo(m, epoch, Some(parent), doubtful);
            }
            RoleAction::BecomeBackup { .. } | RoleAction::Demote { .. } => {
                if matches!(action, RoleAction::Demote { .. }) {
                    self.seen.demotions += 1;
                    node.to_tell = Some(std::mem::take(&mut node.alone));
                }
                node.by_itself = None;
                node.items.clear();
                node.released = 0;
                node.acked = 0;
                node.hold = None;
                node.fenced = false;
                node.streaming = false;
                node.paused_for_handover = false;
                node.store = None;
            }
            RoleAction::StartPairing => {
                node.streaming = true;
                node.acked = 0;
                let snapshot = Message::Snapshot(node.serving, node.items.clone());
                self.send(m, snapshot);
            }
            RoleAction::HoldForReplica { epoch } => {
                assert_eq!(epoch, node.serving);
                node.hold = Some(epoch);
                node.by_itself = None;
                node.alone.clear();
            }
            RoleAction::SendPaired { epoch } => self.send(m, Message::Paired(epoch)),
            RoleAction::Stall | RoleAction::DefendVip => {}
            RoleAction::TearShared => {
                self.seen.torn_all += 1;
                if let Some(e) = node.by_itself {
                    self.ghost.get_mut(&e).unwrap().torn.extend(0..16);
                }
            }
            RoleAction::Announce { .. } => self.seen.announced += 1,
            RoleAction::Fence => {
                node.fenced = true;
                self.seen.fences += 1;
            }
            RoleAction::Unfence => node.fenced = false,
            RoleAction::ProbeReach => {
                let (life, delay) = (node.life, self.rng.range(1, 8 * MS));
                self.after(delay, Event::Probe(m, life));
            }
            RoleAction::StartHandover { epoch } => {
                node.paused_for_handover = true;
                self.send(m, Message::Handover(epoch));
            }
            RoleAction::CloseLink => {
                if self.link.take().is_some() {
                    self.connect_from = self.now + MS;
                    self.local(1 - m, 300, Incoming::Role(RoleInput::LinkDown { reset: false }));
                }
            }
        }
    }

    /// A claim takes effect.
    fn solo(&mut self, m: usize, epoch: Epoch, parent: Option<Epoch>, doubtful: bool) {
        assert_eq!(usize::from(epoch.member), m, "seed {}", self.seed);
        let take_over = parent.is_some_and(|p| p != self.nodes[m].serving);
        let claim = Claim { parent, doubtful, take_over, at: self.now, ..Claim::default() };
        let again = self.ghost.insert(epoch, claim).is_some();
        assert!(!again, "seed {}: epoch {epoch} was mastered before", self.seed);
        let cut_off = self.pulled[m].is_some_and(|since| self.now - since > 30 * MS);
        let just_woke = self.now - self.nodes[m].woke < 60 * MS;
        assert!(!cut_off || just_woke, "seed {}: {m} became master while cut off", self.seed);
        let node = &mut self.nodes[m];
        node.to_tell = None;
        if parent.is_none() || doubtful {
            node.by_itself = None;
            node.alone.clear();
        } else {
            node.by_itself.get_or_insert(epoch);
        }
        node.serving = epoch;
        node.hold = None;
        node.fenced = false;
        node.streaming = false;
        node.paused_for_handover = false;
    }

    fn check_takeover(&mut self, m: usize, old: Epoch) {
        let held: HashSet<u64> = self.nodes[m].items.iter().copied().collect();
        let mut epoch = Some(old);
        while let Some(e) = epoch {
            let claim = &self.ghost[&e];
            let lost = claim.released.iter().filter(|i| !held.contains(i)).count();
            assert_eq!(lost, 0, "seed {}: {m} took {old} over without {lost} items of {e}", self.seed);
            // Beyond the epoch that was claimed, only the strict world rules out two masters.
            epoch = claim.parent.filter(|_| self.strict && !claim.doubtful);
        }
    }

    /// No history went on in two places, but where a claim said that it might; or where a takeover stopped again at once, before
    /// its master heard of it and went on alone: then what goes on has lost the sessions of which both said something.
    fn check_forks(&mut self, master: usize) {
        let mut children: BTreeMap<Epoch, Vec<Epoch>> = BTreeMap::new();
        for (epoch, claim) in &self.ghost {
            if let Some(parent) = claim.parent.filter(|_| !claim.released.is_empty() && !claim.doubtful) {
                children.entry(parent).or_default().push(*epoch);
            }
        }
        children.retain(|_, forks| forks.len() > 1);
        for (parent, forks) in children {
            self.seen.forks += 1;
            let (taken, alone): (Vec<_>, Vec<_>) = forks.iter().copied().partition(|e| self.ghost[e].take_over);
            let ([taken], [alone]) = (&taken[..], &alone[..]) else {
                panic!("seed {}: {parent} went on as {forks:?}", self.seed);
            };
            let in_order = self.ghost[taken].at < self.ghost[alone].first_release;
            assert!(in_order, "seed {}: {parent} was taken over as {taken} after it had gone on as {alone}", self.seed);
            for (lives, other) in [(taken, alone), (alone, taken)] {
                if self.descends(self.nodes[master].serving, *lives) {
                    let of_other = self.ghost.iter().filter(|(e, _)| self.descends(**e, *other));
                    let said: HashSet<u64> = of_other.flat_map(|(_, c)| c.released.iter().map(|i| session(*i))).collect();
                    let mixed: Vec<_> = said.difference(&self.ghost[lives].torn).collect();
                    assert!(
                        mixed.is_empty(),
                        "seed {}: {lives} goes on with {mixed:?}, of which {other} said something",
                        self.seed
                    );
                }
            }
        }
    }

    /// `epoch` goes on with what `from` had.
    fn descends(&self, epoch: Epoch, from: Epoch) -> bool {
        let parent = |e: &Epoch| self.ghost[e].parent.filter(|_| !self.ghost[e].doubtful);
        std::iter::successors(Some(epoch), parent).any(|e| e == from)
    }

    fn roles(&self) -> [Option<Role>; 2] {
        [0, 1].map(|m: usize| self.nodes[m].machine.as_ref().map(RoleMachine::role))
    }

    fn master(&self) -> usize {
        let roles = self.roles();
        let master = roles.iter().position(|r| *r == Some(Role::Master));
        let backup = roles.iter().position(|r| *r == Some(Role::Backup));
        assert!(master.is_some() && backup.is_some(), "seed {}: roles {roles:?}", self.seed);
        for node in &self.nodes {
            assert!(node.machine.as_ref().unwrap().protected(), "seed {}: not paired", self.seed);
        }
        master.unwrap()
    }

    /// Ends all faults, and sees that the pair recovers.
    fn recover(&mut self) -> usize {
        self.run(10_000 * MS + FAULTS_UNTIL);
        self.run(self.now + QUIET);
        self.master()
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|s| s.parse().ok())
}

/// Seen whether the test fails or not: the harness captures what `println` says.
fn tell(text: std::fmt::Arguments) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn one(seed: u64, strict: bool, total: &mut Seen) {
    let mut world = World::new(seed, strict, true);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let master = world.recover();
        if strict {
            world.check_forks(master);
        }
    }));
    if let Err(panic) = outcome {
        tell(format_args!("failed: ROLE_SEED={seed} (strict: {strict})"));
        std::panic::resume_unwind(panic);
    }
    total.add(&world.seen);
}

/// Runs the seeds that are always the same, or the chosen one; then fresh ones, for a while and ten times as many.
fn many(strict: bool, count: u64, known: &[u64]) {
    let mut total = Seen::default();
    if let Some(seed) = number("ROLE_SEED") {
        one(seed, strict, &mut total);
        return println!("seed {seed}: {total:?}");
    }
    let runs = number("ROLE_RUNS").unwrap_or(count);
    let from = if strict { 0 } else { 1_000_000 };
    let fixed = known.iter().copied().filter(|s| !(from..from + runs).contains(s)).chain(from..from + runs);
    fixed.for_each(|seed| one(seed, strict, &mut total));
    println!("{runs} runs: {total:?}");
    if runs > 100 {
        let all = [total.takeovers, total.handovers, total.solos, total.announced, total.fences];
        assert!(all.iter().all(|n| *n > runs / 10), "the worlds are too kind: {total:?}");
    }
    let seconds = number("ROLE_FRESH").unwrap_or(if number("ROLE_RUNS").is_some() { 0 } else { 30 });
    if seconds > 0 {
        let from = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
        tell(format_args!("fresh role seeds (strict: {strict}) from {from}"));
        let (start, mut to) = (Instant::now(), from);
        while start.elapsed() < Duration::from_secs(seconds) || to - from < count * 10 {
            one(to, strict, &mut total);
            to += 1;
        }
        tell(format_args!("fresh role seeds (strict: {strict}) from {from} to {}: {total:?}", to - 1));
    }
}

#[test]
fn nothing_released_is_ever_lost_where_no_partition_leaves_both_in_reach() {
    // Those in which a stale replica promoted, or both wrote and nobody was told.
    many(true, 200, &[2189, 2201, 4752, 4864, 5159, 6579]);
}

#[test]
fn the_pair_recovers_from_loss_and_partitions() {
    many(false, 150, &[]);
}

/// A healthy pair, and which member is master.
fn healthy(seed: u64) -> (World, usize) {
    let mut world = World::new(seed, true, false);
    let master = world.recover();
    (world, master)
}

#[test]
fn a_crashed_master_is_replaced_in_time() {
    for seed in 0..50 {
        let (mut world, master) = healthy(seed);
        world.crash(master, false, 60_000 * MS);
        world.run(world.now + (3 + 2) * 20 * MS);
        assert_eq!(world.roles()[1 - master], Some(Role::Master), "seed {seed}");
        assert_eq!(world.seen.takeovers, 1, "seed {seed}");
    }
}

#[test]
fn a_killed_process_is_replaced_at_once() {
    for seed in 0..50 {
        let (mut world, master) = healthy(seed);
        world.crash(master, true, 60_000 * MS);
        world.run(world.now + 10 * MS);
        assert_eq!(world.roles()[1 - master], Some(Role::Master), "seed {seed}");
    }
}

#[test]
fn a_partition_makes_two_masters_and_contact_one() {
    for seed in 0..20 {
        let (mut world, master) = healthy(seed);
        world.split = true;
        world.run(world.now + 500 * MS);
        assert_eq!(world.roles(), [Some(Role::Master); 2], "seed {seed}");
        world.split = false;
        world.run(world.now + 25 * MS);
        // The backup's takeover outranks going solo.
        assert_eq!(world.roles()[1 - master], Some(Role::Master), "seed {seed}");
        assert_eq!(world.roles()[master], Some(Role::Backup), "seed {seed}");
        world.run(world.now + 500 * MS);
        world.master();
    }
}

#[test]
fn a_thawing_master_has_been_silent() {
    for seed in 0..50 {
        let (mut world, master) = healthy(seed);
        world.nodes[master].frozen = true;
        world.run(world.now + 1000 * MS);
        let serving = world.nodes[master].serving;
        let before = world.ghost[&serving].released.len();
        world.event(Event::Thaw(master));
        world.run(world.now + 500 * MS);
        assert_eq!(world.ghost[&serving].released.len(), before, "seed {seed}");
        assert_eq!(world.master(), 1 - master, "seed {seed}");
        world.check_forks(1 - master);
    }
}

#[test]
fn a_switchover_loses_nothing_and_stays_paired() {
    for seed in 0..50 {
        let (mut world, master) = healthy(seed);
        world.local(master, 1, Incoming::Role(RoleInput::SwitchoverRequested));
        world.run(world.now + 50 * MS);
        assert_eq!(world.master(), 1 - master, "seed {seed}");
        assert_eq!((world.seen.handovers, world.seen.demotions, world.links), (1, 1, 1), "seed {seed}");
    }
}

#[test]
fn views_travel() {
    let (world, master) = healthy(1);
    let view: PartnerView = world.nodes[master].machine.as_ref().unwrap().view();
    assert!(view.paired && !view.full_replica);
    let view = world.nodes[1 - master].machine.as_ref().unwrap().view();
    assert!(view.full_replica && !view.paired);
}
