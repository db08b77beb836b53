//! Packet scripts: one connection, each packet by hand. `tests/world.rs` does it by the million.

mod around;
mod causes;
mod data;
mod evidence;
mod input;
mod opening;
mod outgoing;
mod output;
mod splicing;
mod standing;
mod takeover;
mod unseen;

use super::*;
use crate::hook::Origin;
use crate::record::EndReason;
use crate::segment::{flags, Build, Segment};
use crate::seq::{self, Seq};
use crate::store::Session;
use crate::turn::PortPolicy;
use flags::{ACK, FIN, RST, SYN};

const ISN_IN: Seq = Seq(u32::MAX - 5);
const ISN_OUT: Seq = Seq(u32::MAX - 20);
const CHANNEL: u32 = 3;
const HANDLE: u32 = 7;
const THREAD: u32 = 1;

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

fn ms(n: u64) -> Now {
    Duration::from_millis(n)
}

fn tuple(port: u16) -> FourTuple {
    FourTuple { local: "192.0.2.200:5555".parse().unwrap(), peer: ([192, 0, 2, 9], port).into() }
}

/// What a segment says, in stream offsets.
#[derive(Clone, Copy)]
struct Say<'a> {
    flags: u8,
    seq: u64,
    ack: u64,
    window: u16,
    ts: Option<(u32, u32)>,
    bytes: &'a [u8],
}

fn say(flags: u8, seq: u64, ack: u64, bytes: &[u8]) -> Say<'_> {
    Say { flags, seq, ack, window: 60_000, ts: None, bytes }
}

/// A master, its replica's store, and one connection in the tests' hands.
struct Rig {
    f: Filter,
    replica: Filter,
    now: Now,
    id: u32,
    port: u16,
    /// What the kernel has of input that the application has not read.
    unread: u64,
    /// How much input the kernel has taken; None: as much as was delivered.
    taken: Option<u64>,
    actions: Vec<Action>,
}

impl Rig {
    /// A master that needs its replica.
    fn new() -> Rig {
        let mut f = Filter::new(config());
        f.activate();
        f.hold_for_replica(0);
        Rig { f, replica: Filter::new(config()), now: ms(1000), id: 0, port: 1000, unread: 0, taken: None, actions: Vec::new() }
    }

    /// The same with an established connection, attached unless said otherwise.
    fn open() -> Rig {
        let mut r = Rig::new();
        r.handshake(false);
        r.attach();
        r
    }

    fn with_timestamps() -> Rig {
        let mut r = Rig::new();
        r.handshake(true);
        r.attach();
        r
    }

    fn handshake(&mut self, ts: bool) {
        let (syn, syn_ack) = (self.syn(ts), self.syn_ack(ts));
        self.inp(&syn);
        self.out(&syn_ack);
        self.stored();
        self.peer(Say { ts: ts.then_some((101, 201)), ..say(ACK, 0, 0, b"") });
        self.stored();
        self.actions.clear();
    }

    fn attach(&mut self) {
        let tuple = tuple(self.port);
        self.f.attach(self.now, CHANNEL, HANDLE, Origin::Accepted, &tuple);
    }

    fn packet(&self, s: Say<'_>, from_peer: bool) -> Vec<u8> {
        let t = tuple(self.port);
        let (source, destination) = if from_peer { (t.peer, t.local) } else { (t.local, t.peer) };
        let (mine, other) = if from_peer { (ISN_IN, ISN_OUT) } else { (ISN_OUT, ISN_IN) };
        let mut packet = Vec::new();
        Build {
            source,
            destination,
            seq: seq::at(mine, s.seq),
            ack: seq::at(other, s.ack),
            flags: s.flags,
            window: s.window,
            timestamps: s.ts,
            payload: s.bytes,
        }
        .write(&mut packet);
        packet
    }

    fn syn_options(ts: bool) -> Vec<u8> {
        let _ = ts;
        vec![2, 4, 5, 0xb4, 1, 3, 3, 2, 1, 1, 4, 2]
    }

    fn syn(&self, ts: bool) -> Vec<u8> {
        let t = tuple(self.port);
        let mut packet = Vec::new();
        Build {
            source: t.peer,
            destination: t.local,
            seq: ISN_IN,
            ack: Seq(0),
            flags: SYN,
            window: 60_000,
            timestamps: ts.then_some((100, 0)),
            payload: &[],
        }
        .write_with(&Rig::syn_options(ts), &mut packet);
        packet
    }

    fn syn_ack(&self, ts: bool) -> Vec<u8> {
        let t = tuple(self.port);
        let mut packet = Vec::new();
        Build {
            source: t.local,
            destination: t.peer,
            seq: ISN_OUT,
            ack: ISN_IN.add(1),
            flags: SYN | ACK,
            window: 60_000,
            timestamps: ts.then_some((200, 100)),
            payload: &[],
        }
        .write_with(&Rig::syn_options(ts), &mut packet);
        packet
    }

    fn drain(&mut self) -> Vec<Action> {
        let mut out = Vec::new();
        loop {
            self.f.drain_actions(&mut out);
            let Some(at) = out.iter().position(|a| matches!(a, Action::AskUnread(_))) else { break };
            let Action::AskUnread(session) = out.remove(at) else { unreachable!() };
            // As many as were delivered.
            let received = self.taken.unwrap_or(self.f.store().get(session).map_or(0, Session::in_end));
            self.f.unread(self.now, session, received, self.unread);
        }
        let announced: usize = self.f.live.values().map(|live| live.announced.len()).sum();
        assert_eq!(self.f.announced(), announced as u64, "what was announced is counted");
        // Its threads never sleep in the middle of what they do.
        out.retain(|a| !matches!(a, Action::AskAsleep(..)));
        self.actions.extend(out.iter().cloned());
        out
    }

    /// An inbound packet. Returns what came of it.
    fn inp(&mut self, packet: &[u8]) -> Vec<Action> {
        self.id += 1;
        self.f.packet_in(self.now, self.id, packet, false);
        self.drain()
    }

    fn out(&mut self, packet: &[u8]) -> Vec<Action> {
        self.id += 1;
        if let Some(tuple) = self.f.asks_caller(packet) {
            // Each SYN is that of a socket of its own, and of one thread.
            let socket = u64::from(self.id) << 32;
            self.f.lend(CHANNEL, THREAD, socket, tuple.peer, false);
            self.f.called_by(tuple, Some(socket));
        }
        self.f.packet_out(self.now, self.id, packet);
        self.drain()
    }

    fn peer(&mut self, s: Say<'_>) -> Vec<Action> {
        let packet = self.packet(s, true);
        self.inp(&packet)
    }

    fn kernel(&mut self, s: Say<'_>) -> Vec<Action> {
        let packet = self.packet(s, false);
        self.out(&packet)
    }

    /// The replica stores all there is, and says so.
    fn stored(&mut self) -> Vec<Action> {
        let mut batch = Vec::new();
        self.f.take_batch(&mut batch);
        self.replica.replica_apply(&batch).expect("the log fits");
        assert!(self.f.store() == self.replica.store(), "I5");
        self.f.replica_stored(self.now, self.f.log_end());
        self.drain()
    }

    /// A thread writes, and the kernel takes all of it.
    fn writes(&mut self, channel: u32, thread: u32, handle: u32, bytes: &[u8]) {
        self.f.write_of(self.now, channel, thread, handle, bytes, bytes.len() as u64);
    }

    fn write(&mut self, bytes: &[u8]) {
        self.writes(CHANNEL, THREAD, HANDLE, bytes);
    }

    fn read(&mut self, n: u64) {
        self.f.read(self.now, CHANNEL, THREAD, HANDLE, n);
    }

    fn wait(&mut self) -> Vec<Action> {
        self.f.turn_end(self.now, CHANNEL, THREAD);
        self.f.run_commits(self.now);
        self.drain()
    }

    fn close(&mut self) {
        self.f.close(self.now, CHANNEL, THREAD, HANDLE, false);
    }

    fn pass(&mut self, by: Now) -> Vec<Action> {
        let until = self.now + by;
        while let Some(due) = self.f.poll_timeout().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.f.handle_timeout(self.now);
        }
        self.now = until;
        self.drain()
    }

    fn session(&self) -> &Session {
        let id = self.f.store().find(&tuple(self.port)).expect("a session");
        self.f.store().get(id).unwrap()
    }

    /// The verdict on the packet sent last is to let it pass.
    fn passes(&self, actions: &[Action]) -> bool {
        actions.iter().any(|a| matches!(a, Action::AcceptOut(id) | Action::AcceptIn(id) if *id == self.id))
    }
}

fn input_of(s: &Session) -> Vec<u8> {
    s.input.iter().copied().collect()
}

fn offsets<'a>(packet: &'a [u8], from_peer: bool) -> (u64, u64, Segment<'a>) {
    let s = Segment::parse(packet).unwrap();
    let (mine, other) = if from_peer { (ISN_IN, ISN_OUT) } else { (ISN_OUT, ISN_IN) };
    (seq::offset(mine, s.seq(), 1000).unwrap(), seq::offset(other, s.ack(), 1000).unwrap(), s)
}
