//! A member: its kernel, its application, its hooks' ring, and its filter with what the manager does around it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use tcpr_session::filter::{Action, Engine, Filter, FilterConfig, Mode, Refused, Waits};
use tcpr_session::hook::{HookEvent, Origin};
use tcpr_session::segment::{flags, Segment};
use tcpr_session::seq::Seq;
use tcpr_session::tuple::{FourTuple, SessionId};
use tcpr_session::turn::PortPolicy;
use tcpr_session::Now;

use crate::rng::Rng;
use crate::tcp::{refusal, Event, Setup, State, Tcp};

#[path = "caller.rs"]
mod caller;

/// The byte, or the end of a line, after which the application closes.
pub const CLOSE_MARK: u8 = 0xff;

/// What the application says first on a connection that it makes, if it says anything.
pub const LOGIN: &[u8] = b"it is me";

/// So many connections wait to be accepted; what completes another handshake is dropped.
const BACKLOG: usize = 2;

/// What the hooks tell, in order.
#[derive(Clone, Debug)]
pub enum Hook {
    Attach {
        handle: u32,
        origin: Origin,
        tuple: FourTuple,
    },
    /// `taken` None: the intent is open.
    Write {
        handle: u32,
        bytes: Vec<u8>,
        taken: Option<usize>,
    },
    Read {
        handle: u32,
        n: u64,
    },
    Absorbed {
        handle: u32,
        n: u64,
    },
    Close {
        handle: u32,
    },
    Checkpoint {
        handle: u32,
        data: Vec<u8>,
    },
    Put {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Wait,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Service {
    /// One session a turn; answers may be short and go on later.
    Echo,
    /// Each line goes to all.
    Lines,
}

#[derive(Debug, Default)]
struct Descriptor {
    tuple: Option<FourTuple>,
    /// What the application has to write and the kernel did not take.
    backlog: VecDeque<u8>,
    line: Vec<u8>,
    absorb: u64,
    closing: bool,
    /// The application made the connection.
    called: bool,
    /// Where it keeps what it has not answered yet: how much it has read, and the last bytes of that.
    total: u64,
    kept: Vec<u8>,
    /// It is a recovered one, of which it has yet to ask for that; it has changed in this turn.
    asks: bool,
    checkpoint: bool,
}

/// A single-threaded server over hooked calls. One micro-step at a time, so that it can die in between.
#[derive(Debug)]
pub struct App {
    pub channel: u32,
    next_handle: u32,
    open: BTreeMap<u32, Descriptor>,
    /// Recovered sessions that accept will give first.
    pub recovered: VecDeque<(FourTuple, u64)>,
    /// The write under way.
    writing: Option<(u32, Vec<u8>)>,
    /// What is to be written before the turn ends.
    todo: VecDeque<(u32, Vec<u8>)>,
    in_turn: bool,
    pub accepted: usize,
    /// Connects that have not come to their end.
    calling: Vec<FourTuple>,
}

impl App {
    fn new(channel: u32) -> App {
        App {
            channel,
            next_handle: 1,
            open: BTreeMap::new(),
            recovered: VecDeque::new(),
            writing: None,
            todo: VecDeque::new(),
            in_turn: false,
            accepted: 0,
            calling: Vec::new(),
        }
    }

    /// Connections that others made.
    pub fn holds(&self) -> usize {
        self.open.values().filter(|d| !d.called).count()
    }
}

pub struct Node {
    pub filter: Filter,
    pub service: Service,
    setup: Setup,
    sockets: BTreeMap<FourTuple, Tcp>,
    accept_queue: VecDeque<FourTuple>,
    pub app: Option<App>,
    /// Recovered sessions that no application has yet been given.
    ready: VecDeque<(FourTuple, u64)>,
    next_channel: u32,
    pub ring: VecDeque<Hook>,
    in_queue: VecDeque<Vec<u8>>,
    out_queue: VecDeque<Vec<u8>>,
    held_in: BTreeMap<u32, Vec<u8>>,
    held_out: BTreeMap<u32, Vec<u8>>,
    next_id: u32,
    /// What left, for the wire.
    pub wire: Vec<Vec<u8>>,
    /// What goes to the next master.
    pub forwarded: Vec<Vec<u8>>,
    pub probed: Vec<SessionId>,
    pub torn: BTreeSet<FourTuple>,
    /// Outgoing sessions that no connect could have back, as far as was known when they were reset.
    pub unpaired: BTreeSet<FourTuple>,
    /// Those of which that is so by now.
    lonely: BTreeSet<FourTuple>,
    /// Connections that its application gave up before they were made.
    given_up: BTreeSet<FourTuple>,
    isn: u32,
    /// To whom the application connects, and whether it says something first.
    callees: Vec<SocketAddr>,
    login: bool,
    /// An echo holds some of what it has read back, and keeps it by checkpoints. Where lines are passed on, how many of each
    /// sender were is under a key.
    keeps: bool,
    /// SYNs that have left, by port and number.
    called: BTreeSet<(u16, u32)>,
    /// Records without a socket, at the last sweep.
    missing: Vec<SessionId>,
    /// Sessions that the application had back by calling.
    pub had_back: u64,
    /// Sessions of which it had back what it kept.
    pub kept: u64,
    pub trace: bool,
}

fn config(service: Service, engine: Engine, callees: &[SocketAddr]) -> FilterConfig {
    use tcpr_session::framing::Framing;
    let framing = if service == Service::Lines { Framing::Lines } else { Framing::None };
    FilterConfig {
        ports: vec![(5555, PortPolicy::framed(framing))],
        outgoing: callees.iter().map(|to| (*to, PortPolicy::default())).collect(),
        max_turn: std::time::Duration::from_millis(50),
        engine,
        hooked: true,
        asynchronous: false,
        data_bytes: 1 << 20,
    }
}

impl Node {
    pub fn new(
        service: Service,
        engine: Engine,
        setup: Setup,
        isn: u32,
        callees: Vec<SocketAddr>,
        login: bool,
        keeps: bool,
    ) -> Node {
        Node {
            filter: Filter::new(config(service, engine, &callees)),
            service,
            setup,
            sockets: BTreeMap::new(),
            accept_queue: VecDeque::new(),
            app: Some(App::new(1)),
            ready: VecDeque::new(),
            next_channel: 2,
            ring: VecDeque::new(),
            in_queue: VecDeque::new(),
            out_queue: VecDeque::new(),
            held_in: BTreeMap::new(),
            held_out: BTreeMap::new(),
            next_id: 0,
            wire: Vec::new(),
            forwarded: Vec::new(),
            probed: Vec::new(),
            torn: BTreeSet::new(),
            unpaired: BTreeSet::new(),
            lonely: BTreeSet::new(),
            given_up: BTreeSet::new(),
            isn,
            callees,
            login,
            keeps,
            called: BTreeSet::new(),
            missing: Vec::new(),
            had_back: 0,
            kept: 0,
            trace: false,
        }
    }

    // ---- kernel -------------------------------------------------------------------------------------

    pub fn arrived_from_wire(&mut self, packet: Vec<u8>) {
        self.in_queue.push_back(packet);
    }

    fn collect(&mut self, tuple: &FourTuple) {
        let Some(s) = self.sockets.get_mut(tuple) else { return };
        self.out_queue.extend(s.out.drain(..));
        if s.state == State::Gone {
            self.sockets.remove(tuple);
        }
    }

    fn kernel_receive(&mut self, now: Now, packet: &[u8]) {
        let p = Segment::parse(packet).expect("a segment");
        assert!(p.checksum_ok(), "the kernel is given a wrong checksum");
        let tuple = FourTuple { local: p.destination(), peer: p.source() };
        if p.has(flags::SYN) && !p.has(flags::ACK) {
            if self.sockets.get(&tuple).is_some_and(|s| s.may_be_replaced_by(&p)) {
                self.sockets.remove(&tuple);
            }
            if !self.sockets.contains_key(&tuple) {
                if self.app.is_none() && self.filter.mode() == Mode::Restoring {
                    // Nobody listens.
                    return self.out_queue.push_back(refusal(&p));
                }
                let isn = self.next_isn();
                let s = Tcp::answer(now, &p, Seq(isn), self.setup, isn >> 3);
                self.sockets.insert(tuple, s);
                return self.collect(&tuple);
            }
        }
        let Some(s) = self.sockets.get_mut(&tuple) else {
            if !p.has(flags::RST) && p.has(flags::ACK) {
                self.out_queue.push_back(tcpr_session::segment::reset_for(&p));
            }
            return;
        };
        if s.state == State::SynReceived && !p.has(flags::SYN | flags::RST) && self.accept_queue.len() >= BACKLOG {
            return;
        }
        let (before, called) = (s.received.len(), s.state == State::SynSent);
        let event = s.receive(now, &p);
        let shown = s.received.len() > before;
        assert!(event != Some(Event::FutureAck), "the kernel is shown an ACK of the future");
        if event == Some(Event::Established) && !called {
            self.accept_queue.push_back(tuple);
        }
        let behind = self.filter.mode() == Mode::Restoring && !self.callees.contains(&tuple.peer);
        assert!(!(shown && behind), "input before the barrier fell");
        self.collect(&tuple);
    }

    fn next_isn(&mut self) -> u32 {
        self.isn = self.isn.wrapping_mul(1_103_515_245).wrapping_add(12_345);
        self.isn
    }

    fn timers(&mut self, now: Now) {
        let due: Vec<FourTuple> =
            self.sockets.iter().filter(|(_, s)| s.timer().is_some_and(|t| now >= t)).map(|(t, _)| *t).collect();
        for tuple in due {
            self.sockets.get_mut(&tuple).expect("listed").handle_timer(now);
            self.collect(&tuple);
        }
    }

    pub fn next_timer(&self) -> Option<Now> {
        let kernel = self.sockets.values().filter_map(Tcp::timer).min();
        [kernel, self.filter.poll_timeout()].into_iter().flatten().min()
    }

    /// The process is gone: the kernel closes what it held, which nobody asked for.
    pub fn crash_app(&mut self, now: Now) {
        let Some(app) = self.app.take() else { return };
        let held: Vec<FourTuple> =
            app.open.values().filter_map(|d| d.tuple).chain(self.accept_queue.drain(..)).chain(app.calling).collect();
        for tuple in held {
            if let Some(s) = self.sockets.get_mut(&tuple) {
                s.close(now);
                self.collect(&tuple);
            }
        }
    }

    /// The manager hears of it: reads the last words, and gives the filter the news.
    pub fn app_gone(&mut self, now: Now, channel: u32) {
        self.drain_ring(now, usize::MAX);
        self.ring.clear();
        self.filter.process_gone(now, channel);
        self.perform(now);
    }

    /// The manager of a member that is no longer master ends the application.
    pub fn end_app(&mut self, now: Now) {
        self.app = None;
        self.ring.clear();
        self.filter.process_gone(now, self.next_channel - 1);
        self.perform(now);
    }

    pub fn start_app(&mut self) {
        assert!(self.app.is_none());
        let mut app = App::new(self.next_channel);
        self.next_channel += 1;
        app.recovered = std::mem::take(&mut self.ready);
        self.app = Some(app);
    }

    /// The kernel's sockets vanish without a word.
    pub fn destroy_sockets(&mut self) {
        self.sockets.clear();
        self.accept_queue.clear();
        self.out_queue.clear();
        self.ready.clear();
    }

    // ---- the application, one micro-step ----------------------------------------------------------------

    /// Returns whether there was anything to do. `stingy`: percent of writes that the kernel takes in part.
    pub fn app_step(&mut self, now: Now, rng: &mut Rng) -> bool {
        let Some(mut app) = self.app.take() else { return false };
        let did = self.step(now, rng, &mut app);
        self.app = Some(app);
        did
    }

    fn step(&mut self, now: Now, rng: &mut Rng, app: &mut App) -> bool {
        // The kernel's part of a write whose intent is open; then the ring is told.
        if let Some((handle, bytes)) = app.writing.take() {
            let d = app.open.get_mut(&handle).expect("open");
            let tuple = d.tuple.expect("attached");
            let taken = self.sockets.get_mut(&tuple).map_or(0, |s| s.write(now, &bytes));
            self.collect(&tuple);
            if let Some(Hook::Write { taken: told, .. }) = self.ring.back_mut() {
                *told = Some(taken);
            } else {
                panic!("an open intent is the ring's last entry");
            }
            let d = app.open.get_mut(&handle).expect("open");
            for b in bytes[taken..].iter().rev() {
                d.backlog.push_front(*b);
            }
            return true;
        }
        if let Some((handle, bytes)) = app.todo.pop_front() {
            self.offer(app, handle, bytes);
            return true;
        }
        if let Some((handle, d)) = app.open.iter_mut().find(|(_, d)| d.asks) {
            self.ask(now, app.channel, *handle, d);
            return true;
        }
        if let Some((handle, d)) = app.open.iter_mut().find(|(_, d)| d.checkpoint) {
            d.checkpoint = false;
            let data = [&d.total.to_le_bytes()[..], &d.kept].concat();
            self.ring.push_back(Hook::Checkpoint { handle: *handle, data });
            return true;
        }
        if app.in_turn {
            // Close what is to be closed in this turn, then wait.
            let done = |d: &Descriptor| d.closing && d.backlog.is_empty();
            if let Some(handle) = app.open.iter().find(|(_, d)| done(d)).map(|(h, _)| *h) {
                self.ring.push_back(Hook::Close { handle });
                let d = app.open.remove(&handle).expect("open");
                if let Some(s) = d.tuple.and_then(|t| self.sockets.get_mut(&t)) {
                    s.close(now);
                }
                if let Some(t) = d.tuple {
                    self.collect(&t);
                }
                return true;
            }
            self.ring.push_back(Hook::Wait);
            app.in_turn = false;
            return true;
        }
        self.begin_turn(now, rng, app)
    }

    /// Each line is passed on in the turn in which it is counted, by whichever process: it is the next one of its sender.
    fn count(&mut self, now: Now, channel: u32, line: &[u8]) {
        let mut parts = std::str::from_utf8(line).expect("a line").split(':');
        let (sender, number) = (parts.next().expect("a sender"), parts.next().expect("a number"));
        self.drain_ring(now, usize::MAX);
        let counted = self.filter.get(channel, 0, sender.as_bytes()).map_or(0, |n| n.len());
        assert_eq!(number, counted.to_string(), "the lines of sender {sender} that were passed on");
        self.kept += u64::from(counted > 0);
        self.ring.push_back(Hook::Put { key: sender.into(), value: vec![0; counted + 1] });
    }

    /// What a former process kept of a recovered session, which is asked for with all told that there is. It belongs to exactly
    /// the place where the session goes on.
    fn ask(&mut self, now: Now, channel: u32, handle: u32, d: &mut Descriptor) {
        d.asks = false;
        self.drain_ring(now, usize::MAX);
        let Ok(data) = self.filter.restore_data(channel, handle) else { return };
        if let Some((total, kept)) = data.and_then(|data| data.split_first_chunk()) {
            (d.total, d.kept) = (u64::from_le_bytes(*total), kept.to_vec());
            self.kept += 1;
        }
        let id = self.filter.store().find(&d.tuple.expect("attached")).expect("a session");
        let s = self.filter.store().get(id).expect("a session");
        assert_eq!(d.total, s.in_done, "what is kept is of another place of the input");
        assert_eq!(d.total - d.kept.len() as u64, s.out_base, "what is kept is of another place of the output");
    }

    fn offer(&mut self, app: &mut App, handle: u32, mut bytes: Vec<u8>) {
        let Some(d) = app.open.get_mut(&handle) else { return };
        if !d.backlog.is_empty() {
            // Behind what waits.
            d.backlog.extend(&bytes);
            bytes = d.backlog.drain(..).collect();
        }
        let absorbed = d.absorb.min(bytes.len() as u64);
        if absorbed > 0 {
            d.absorb -= absorbed;
            bytes.drain(..absorbed as usize);
            self.ring.push_back(Hook::Absorbed { handle, n: absorbed });
        }
        if !bytes.is_empty() {
            self.ring.push_back(Hook::Write { handle, bytes: bytes.clone(), taken: None });
            app.writing = Some((handle, bytes));
        }
    }

    fn begin_turn(&mut self, now: Now, rng: &mut Rng, app: &mut App) -> bool {
        if let Some((tuple, absorb)) = app.recovered.pop_front() {
            return self.accept(app, tuple, absorb, Origin::Recovered);
        }
        if let Some(tuple) = self.accept_queue.pop_front() {
            app.accepted += 1;
            // What the hook asks the manager for.
            if let Some((absorb, _, finished)) = self.filter.recovered_info(&tuple) {
                if finished {
                    self.sockets.get_mut(&tuple).expect("accepted").shutdown(now);
                    self.collect(&tuple);
                }
                return self.accept(app, tuple, absorb, Origin::Recovered);
            }
            return self.accept(app, tuple, 0, Origin::Accepted);
        }
        if self.connected(now, app) {
            return true;
        }
        // Any order that poll might give.
        let handles: Vec<u32> = app.open.keys().copied().collect();
        if handles.is_empty() {
            return false;
        }
        let first = rng.below(handles.len() as u64) as usize;
        for i in 0..handles.len() {
            let handle = handles[(first + i) % handles.len()];
            let d = app.open.get_mut(&handle).expect("listed");
            let tuple = d.tuple.expect("attached");
            let Some(s) = self.sockets.get_mut(&tuple) else {
                // It was reset: the application sees an error, and closes.
                self.ring.push_back(Hook::Close { handle });
                app.open.remove(&handle);
                app.in_turn = true;
                return true;
            };
            if !d.backlog.is_empty() {
                if s.writable() {
                    let bytes = d.backlog.drain(..).collect();
                    app.in_turn = true;
                    self.offer(app, handle, bytes);
                    return true;
                }
                continue;
            }
            if d.closing {
                app.in_turn = true;
                return true;
            }
            if s.received.is_empty() && !s.at_end() {
                if !d.kept.is_empty() && s.room() >= d.kept.len() {
                    // It answers what it has held back, after a while, and reads nothing.
                    if rng.percent(30) {
                        app.in_turn = true;
                        d.checkpoint = true;
                        app.todo.push_back((handle, std::mem::take(&mut d.kept)));
                    }
                    return true;
                }
                continue;
            }
            app.in_turn = true;
            let most = rng.range(1, 400) as usize;
            let bytes = s.read(now, most);
            self.ring.push_back(Hook::Read { handle, n: bytes.len() as u64 });
            self.collect(&tuple);
            self.serve(now, app, handle, &bytes);
            return true;
        }
        false
    }

    fn accept(&mut self, app: &mut App, tuple: FourTuple, absorb: u64, origin: Origin) -> bool {
        let handle = app.next_handle;
        app.next_handle += 1;
        self.ring.push_back(Hook::Attach { handle, origin, tuple });
        let asks = self.keeps && self.service == Service::Echo && origin == Origin::Recovered;
        app.open.insert(handle, Descriptor { tuple: Some(tuple), absorb, asks, ..Descriptor::default() });
        true
    }

    fn serve(&mut self, now: Now, app: &mut App, handle: u32, bytes: &[u8]) {
        let keeps = self.keeps;
        let d = app.open.get_mut(&handle).expect("open");
        if bytes.is_empty() {
            d.closing = true;
            if !d.kept.is_empty() {
                app.todo.push_back((handle, std::mem::take(&mut d.kept)));
            }
            return;
        }
        match if d.called { Service::Echo } else { self.service } {
            Service::Echo => {
                d.closing |= bytes.contains(&CLOSE_MARK);
                if !keeps || d.called {
                    return app.todo.push_back((handle, bytes.to_vec()));
                }
                d.total += bytes.len() as u64;
                d.kept.extend(bytes);
                d.checkpoint = true;
                let held = if d.closing { 0 } else { d.kept.len().min(d.total as usize % 7) };
                let answer: Vec<u8> = d.kept.drain(..d.kept.len() - held).collect();
                if !answer.is_empty() {
                    app.todo.push_back((handle, answer));
                }
            }
            Service::Lines => {
                let mut lines = Vec::new();
                for b in bytes {
                    d.line.push(*b);
                    if *b == b'\n' {
                        lines.push(std::mem::take(&mut d.line));
                    }
                }
                for line in lines {
                    if keeps {
                        self.count(now, app.channel, &line);
                    }
                    for (to, _) in app.open.iter().filter(|(_, d)| !d.called) {
                        app.todo.push_back((*to, line.clone()));
                    }
                }
            }
        }
    }

    // ---- the manager -----------------------------------------------------------------------------------

    /// Takes up to `most` entries of the ring; stops at an open intent.
    fn drain_ring(&mut self, now: Now, most: usize) {
        let channel = self.app.as_ref().map_or(self.next_channel - 1, |a| a.channel);
        let mut intent = None;
        for _ in 0..most {
            match self.ring.front() {
                None => break,
                Some(Hook::Write { taken: None, handle, .. }) => {
                    intent = Some((channel, *handle));
                    break;
                }
                Some(_) => {}
            }
            let thread = 0;
            match self.ring.pop_front().expect("front") {
                // The thread is not told: all connects in this world are for the program itself, and for no client.
                Hook::Attach { handle, origin, tuple } => self.filter.attach(now, channel, handle, origin, &tuple),
                Hook::Write { handle, bytes, taken } => {
                    let taken = taken.expect("closed");
                    let (bytes, asked) = (&bytes[..taken], taken as u64 + u64::from(taken < bytes.len()));
                    let write = HookEvent::Write { thread, handle, taken: taken as u32, asked, bytes };
                    self.filter.handle(now, channel, write);
                }
                Hook::Read { handle, n } => self.filter.handle(now, channel, HookEvent::Read { thread, handle, n }),
                Hook::Absorbed { handle, n } => self.filter.handle(now, channel, HookEvent::Absorbed { thread, handle, n }),
                Hook::Close { handle } => {
                    self.filter.handle(now, channel, HookEvent::Close { thread, handle, shared: false });
                }
                Hook::Checkpoint { handle, data } => match self.filter.checkpoint(channel, thread, handle, &data) {
                    Ok(()) | Err(Refused::NoSession) => {}
                    Err(why) => panic!("a checkpoint is refused: {why:?}"),
                },
                Hook::Put { key, value } => {
                    self.filter.put(channel, thread, &key, Some(&value)).expect("room");
                }
                Hook::Wait => {
                    self.filter.handle(now, channel, HookEvent::Wait { thread, zero_timeout: false });
                }
            }
        }
        self.filter.set_intents(intent);
        self.filter.run_commits(now);
    }

    /// One round of the manager's loop, in some order, with some of the work.
    pub fn work(&mut self, now: Now, rng: &mut Rng) {
        self.note_lonely();
        self.timers(now);
        let ring = if rng.percent(20) { rng.below(4) as usize } else { usize::MAX };
        self.drain_ring(now, ring);
        self.perform(now);
        self.settle_around(now);
        let both = rng.below(2);
        for turn in 0..2 {
            if turn == both {
                let n = rng.below(8).min(self.in_queue.len() as u64);
                for packet in self.in_queue.drain(..n as usize).collect::<Vec<_>>() {
                    self.next_id += 1;
                    self.held_in.insert(self.next_id, packet);
                    self.filter.packet_in(now, self.next_id, &self.held_in[&self.next_id], false);
                    self.perform(now);
                }
            } else {
                let n = rng.below(8).min(self.out_queue.len() as u64);
                for packet in self.out_queue.drain(..n as usize).collect::<Vec<_>>() {
                    // What a packet carries was announced before it was sent.
                    self.drain_ring(now, usize::MAX);
                    self.next_id += 1;
                    self.held_out.insert(self.next_id, packet);
                    self.filter.packet_out(now, self.next_id, &self.held_out[&self.next_id]);
                    self.perform(now);
                }
            }
        }
        if self.filter.poll_timeout().is_some_and(|t| now >= t) {
            self.filter.handle_timeout(now);
            self.perform(now);
        }
    }

    /// What is said to have gone around the queues: the kernel knows.
    fn settle_around(&mut self, now: Now) {
        while let Some(id) = self.filter.poll_around() {
            let tuple = self.filter.store().get(id).map(|s| self.filter.local_tuple(&s.open.tuple));
            if let Some(s) = tuple.and_then(|t| self.sockets.get(&t)) {
                self.filter.went_around(now, id, s.taken(), s.has_ended());
            }
            self.perform(now);
        }
    }

    pub fn idle(&self) -> bool {
        self.in_queue.is_empty() && self.out_queue.is_empty() && self.ring.is_empty()
    }

    /// Does what the filter wants.
    pub fn perform(&mut self, now: Now) {
        loop {
            let mut actions = Vec::new();
            self.filter.drain_actions(&mut actions);
            if actions.is_empty() {
                return;
            }
            for action in actions {
                if self.trace {
                    eprintln!("    {now:?} {}", show(&action));
                }
                match action {
                    Action::AcceptIn(id) => {
                        let packet = self.held_in.remove(&id).expect("one verdict a packet");
                        let p = Segment::parse(&packet).expect("parses");
                        if p.checksum_ok() {
                            self.kernel_receive(now, &packet);
                        }
                    }
                    Action::DropIn(id) => {
                        self.held_in.remove(&id).expect("one verdict a packet");
                    }
                    Action::ModifyIn(id, bytes) => {
                        let came = self.held_in.remove(&id).expect("one verdict a packet");
                        let port = |packet| Segment::parse(packet).expect("parses").destination();
                        assert_eq!(
                            port(&bytes),
                            port(&came),
                            "the kernel has found the socket of this one already (early demux)"
                        );
                        self.kernel_receive(now, &bytes);
                    }
                    Action::AcceptOut(id) => {
                        let packet = self.held_out.remove(&id).expect("one verdict a packet");
                        self.leaves(packet);
                    }
                    Action::DropOut(id) => {
                        self.held_out.remove(&id).expect("one verdict a packet");
                    }
                    Action::ModifyOut(id, bytes) => {
                        self.held_out.remove(&id).expect("one verdict a packet");
                        self.leaves(bytes);
                    }
                    Action::Inject(bytes) => self.kernel_receive(now, &bytes),
                    Action::SendPeer(bytes) => self.leaves(bytes),
                    Action::Forward(bytes) => self.forwarded.push(bytes),
                    Action::Probed(id) => self.probed.push(id),
                    Action::AskAlive(channel) => {
                        if self.app.as_ref().is_some_and(|a| a.channel == channel) {
                            self.filter.process_alive(now, channel);
                        } else {
                            self.filter.process_gone(now, channel);
                        }
                    }
                    Action::AskUnread(session) => {
                        let tuple = self.filter.store().get(session).map(|s| self.filter.local_tuple(&s.open.tuple));
                        let socket = tuple.and_then(|t| self.sockets.get(&t));
                        let (received, unread) = socket.map_or((0, 0), |s| (s.taken(), s.received.len() as u64));
                        self.filter.unread(now, session, received, unread);
                    }
                    Action::Destroy(tuple) => {
                        self.sockets.remove(&tuple);
                    }
                    // Of some it never becomes known, which is as if they were edge-triggered.
                    Action::AskListener(tuple) if tuple.peer.port() % 2 == 0 => {
                        self.filter.listener_waits(now, tuple.local.port(), Waits::Level)
                    }
                    Action::AskListener(_) => {}
                    Action::AskClosed(session) => {
                        let tuple = self.filter.store().get(session).map(|s| self.filter.local_tuple(&s.open.tuple));
                        if tuple.and_then(|t| self.sockets.get(&t)).is_some_and(|s| s.state == State::Open && !s.is_closed()) {
                            self.filter.still_open(now, session);
                        }
                    }
                    // What this application does between two waits it does at once.
                    Action::AskAsleep(..) => {}
                    Action::Ended(_, tuple, reason) => {
                        if reason == tcpr_session::record::EndReason::Torn {
                            let lonely = self.lonely.remove(&tuple);
                            let among = if lonely { &mut self.unpaired } else { &mut self.torn };
                            among.insert(tuple);
                        }
                        let ready = self.app.as_mut().map_or(&mut self.ready, |a| &mut a.recovered);
                        ready.retain(|(t, _)| *t != tuple);
                    }
                }
            }
        }
    }

    pub fn restore(&mut self, now: Now, id: SessionId, answered: bool) {
        self.make_socket(now, id, answered);
        // All that were there before the last one may have been accepted by then.
        if self.filter.unprobed() == 0 && self.filter.not_handed_over() == 0 {
            self.filter.lift_barrier(now);
            self.perform(now);
        }
    }

    fn make_socket(&mut self, now: Now, id: SessionId, answered: bool) {
        if self.filter.splices(id) {
            self.filter.splice(now, id);
            return self.perform(now);
        }
        let Some(mut spec) = self.filter.restore_spec(id, answered, 0) else { return };
        while let Some(there) = self.sockets.get(&spec.tuple) {
            // The application is calling from there, of which its manager has yet to hear.
            assert_eq!(there.state, State::SynSent, "EADDRNOTAVAIL {}", spec.tuple);
            assert!(self.filter.take_other_name(id), "EADDRNOTAVAIL {}", spec.tuple);
            spec = self.filter.restore_spec(id, answered, 0).expect("as before");
        }
        let socket = Tcp::restore(now, &spec, self.setup);
        self.sockets.insert(spec.tuple, socket);
        self.collect(&spec.tuple);
        self.filter.restored(now, id, spec.sent.len());
        if !spec.closed {
            let ready = self.app.as_mut().map_or(&mut self.ready, |a| &mut a.recovered);
            ready.push_back((spec.tuple, spec.absorb));
        }
        self.perform(now);
    }

    pub fn open_sockets(&self) -> usize {
        self.sockets.values().filter(|s| s.state == State::Open).count()
    }

    pub fn held_packets(&self) -> usize {
        self.held_in.len() + self.held_out.len()
    }

    pub fn describe(&self) -> String {
        format!(
            "mode {:?} replica {} log {}..{} unprobed {} awaited {} in {} out {} ring {:?} app {:?}\nsockets {:#?}\nstore {:?}\n{:?}",
            self.filter.mode(), self.filter.log().needs_replica(), self.filter.log().acknowledged(), self.filter.log().written(),
            self.filter.unprobed(), self.filter.not_handed_over(),
            self.held_in.len(), self.held_out.len(), self.ring, self.app, self.sockets, self.filter.store(), self.filter.counters()
        )
    }
}

/// One packet in a line.
pub fn line(packet: &[u8]) -> String {
    let p = Segment::parse(packet).expect("a segment");
    let mut f = String::new();
    for (bit, name) in [(flags::SYN, 'S'), (flags::FIN, 'F'), (flags::RST, 'R'), (flags::ACK, '.')] {
        if p.has(bit) {
            f.push(name);
        }
    }
    format!(
        "{}>{} {f} seq {} len {} ack {} win {} ts {:?}",
        p.source().port(),
        p.destination().port(),
        p.seq().0,
        p.payload().len(),
        p.ack().0,
        p.window(),
        p.options().timestamps
    )
}

fn show(a: &Action) -> String {
    match a {
        Action::ModifyIn(id, b) => format!("ModifyIn {id} {}", line(b)),
        Action::ModifyOut(id, b) => format!("ModifyOut {id} {}", line(b)),
        Action::Inject(b) => format!("Inject {}", line(b)),
        Action::SendPeer(b) => format!("SendPeer {}", line(b)),
        Action::Forward(b) => format!("Forward {}", line(b)),
        other => format!("{other:?}"),
    }
}
