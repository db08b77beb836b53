//! The filter: packets, hook events and replica acknowledgements in; verdicts and log records out.
//!
//! It holds the release rule (docs/design.md, "Packets"): no segment leaves for a peer before the replica has stored
//! every input byte that its ACK covers and every output byte that it carries (I1), and no output before its
//! turn is committed (I2). One filter serves a member through all its roles; [`Mode`] says which rules are on.
//!
//! - `gate`: what is written, what the replica has stored, and what waits for that (I1)
//! - `opening`: handshakes, half-open sessions
//! - `input`: segments from peers, judged as TCP will judge them
//! - `output`: segments of the local TCP, held until they may leave
//! - `app`: what the hooks tell; turns; processes that die
//! - `recovery`: takeover: probes, restore, barrier, injection
//! - `around`: packets that nobody showed us
//! - `outgoing`: connections that the application makes, and makes again after a takeover
//! - `causes`: what made it connect: after a takeover the same cause has the same connection back
//! - `splicing`, `old_output`: sockets made by the local listener; numbers corrected; old output sent by ourselves
//! - `evidence`: what peers prove after a takeover where nothing waited for the replica
//! - `unhooked`: programs that tell nothing
//! - `unseen`: input that was read, and nobody tells
//! - `astray`: sessions of which the store does not know what the kernel knows

mod announced;
mod app;
mod around;
mod astray;
mod barrier;
mod causes;
mod data;
mod evidence;
mod gate;
mod handshakes;
mod input;
mod live;
mod local;
mod log;
mod log_positions;
mod old_output;
mod opening;
mod outgoing;
mod output;
mod ownership;
mod packets;
mod peer;
mod processes;
mod reassembly;
mod recovery;
mod segments;
mod solo;
mod splicing;
mod stage;
mod standing;
mod timers;
mod timestamps;
mod unhooked;
mod unseen;

use std::net::SocketAddr;
use std::time::Duration;

use crate::record::{self, Committed, EndReason};
use crate::store::Store;
use crate::tuple::{BySession, FourTuple, SessionId};
use crate::turn::{Commit, PortPolicy, TurnPolicy};
use crate::Now;
use around::Arounds;
use barrier::Barrier;
use causes::Causes;
use handshakes::Handshakes;
use live::{Live, Pools};
use outgoing::Calls;
use processes::Processes;
use reassembly::Reassemblies;
use splicing::Splices;
use timers::Timers;
use unseen::Unseen;

pub use causes::HandOut;
pub use data::Refused;
pub use gate::{ReplicaGate, ReplicaLacks};
pub use recovery::RestoreSpec;
pub use splicing::{Engine, Waits};
pub use unhooked::PROGRAM;

/// What the filter is for at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// A backup: nothing of the service enters or leaves.
    Passive,
    /// A master that has taken over and whose sessions are being restored.
    Restoring,
    /// A master.
    Active,
    /// A master that hands over: what still comes in is forwarded to the next master.
    Frozen,
}

/// What the caller does next, in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Verdict on an inbound packet: deliver.
    AcceptIn(u32),
    /// Verdict on an inbound packet: drop.
    DropIn(u32),
    /// Verdict on an inbound packet: deliver these bytes instead.
    ModifyIn(u32, Vec<u8>),
    /// Verdict on an outbound packet: let it leave.
    AcceptOut(u32),
    /// Verdict on an outbound packet: drop.
    DropOut(u32),
    /// Verdict on an outbound packet: these bytes leave instead.
    ModifyOut(u32, Vec<u8>),
    /// Give this packet to the local TCP as if it came from the wire.
    Inject(Vec<u8>),
    /// Send this packet to the peer, around the filter.
    SendPeer(Vec<u8>),
    /// Send this inbound packet to the partner, who is master now.
    Forward(Vec<u8>),
    /// The peer's answer to a probe is known: the session can be restored.
    Probed(SessionId),
    /// Ask whether the process on this channel is alive, then call [`Filter::process_alive`] or
    /// [`Filter::process_gone`].
    AskAlive(u32),
    /// Ask the kernel how much input it has taken and how much of it the application has not read, then call
    /// [`Filter::unread`], or [`Filter::unread_gone`].
    AskUnread(SessionId),
    /// Remove the local TCP's connection of this name, which a process holds: its session is over.
    Destroy(FourTuple),
    /// As soon as a process has accepted this connection, recovered by its listener, see how the program waits on that
    /// listener, and call [`Filter::listener_waits`]. Nothing is to be done if the connection ends before.
    AskListener(FourTuple),
    /// Ask the kernel whether the connection, which hooks said was closed, is open all the same; then call
    /// [`Filter::still_open`].
    AskClosed(SessionId),
    /// Ask the kernel whether this thread (its channel, and its name there) sleeps, take all that hooks have told since, and
    /// then call [`Filter::rest`].
    AskAsleep(u32, u32),
    /// A session ended; its record is deleted.
    Ended(SessionId, FourTuple, EndReason),
}

/// What the filter counts; all since it was made.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counters {
    /// Inbound packets.
    pub packets_in: u64,
    /// Outbound packets.
    pub packets_out: u64,
    /// Outbound packets that had to wait.
    pub held: u64,
    /// Packets that were no TCP segment of one of our sessions and were dropped.
    pub unknown_dropped: u64,
    /// Inbound segments that TCP does not believe (checksum, window, future ACK, PAWS).
    pub disbelieved: u64,
    /// Output bytes that no hook announced.
    pub adopted_bytes: u64,
    /// Sessions torn because other bytes were sent than the hooks announced.
    pub contradicted: u64,
    /// Sessions torn because of what cannot be, unless packets went around the queue or a process lies: more was read than
    /// came, or acknowledged than is stored.
    pub lost_track: u64,
    /// Times that a session's input that had come out of order was forgotten, for lack of room: its peer sends it again.
    pub early_forgotten: u64,
    /// Processes that are not believed any more: their connections go on, and are torn.
    pub cut_off: u64,
    /// Connections closed behind the hooks' back.
    pub unhooked_closes: u64,
    /// FIN and RST of dead processes that were kept from leaving.
    pub endings_withheld: u64,
    /// SYNs that were not refused, though nobody listens yet.
    pub refusals_withheld: u64,
    /// Segments of the local TCP whose ACK covers input that is not in the store: held, or the ACK lowered.
    pub ack_beyond_store: u64,
    /// Sessions whose input went around the queues in part (the packet rules were gone), and such that could not go on.
    pub around: u64,
    /// See `around`.
    pub around_reset: u64,
    /// Sessions opened.
    pub opened: u64,
    /// Sessions ended.
    pub ended: u64,
    /// Sessions restored after a takeover.
    pub restored: u64,
    /// Sessions whose peers were ahead of the store at a takeover (`durability = "async"`): bytes may be missing.
    pub adopted_sessions: u64,
    /// Sessions that were reset because they were torn when a takeover needed them, or because two members had said
    /// something on them.
    pub torn: u64,
    /// Sessions that were reset at a takeover because their port is told so; they are not among the torn.
    pub reset_on_takeover: u64,
    /// Connections that are signed (TCP-MD5, TCP-AO): torn from the start, for no other TCP has the key.
    pub signed: u64,
    /// Connections that the kernel had and the log did not, and that were reset.
    pub unrecorded: u64,
    /// Those among the torn that have timestamps where this kernel is told to have none.
    pub unspliceable: u64,
    /// Sessions that were reset at a takeover because it was not known which connection of the application belongs to which
    /// peer's; or that had lost the other one.
    pub unpaired: u64,
    /// Recovered sessions that were reset because nobody accepted them.
    pub unaccepted: u64,
    /// Records written to the log.
    pub records: u64,
    /// Bytes written to the log, payload included.
    pub log_bytes: u64,
    /// Payload bytes among them.
    pub payload_bytes: u64,
}

/// How the filter is set up.
#[derive(Clone, Debug)]
pub struct FilterConfig {
    /// Policies of the protected ports.
    pub ports: Vec<(u16, PortPolicy)>,
    /// Destinations of the application's own connections, and their policies.
    pub outgoing: Vec<(SocketAddr, PortPolicy)>,
    /// Longest turn before its output is released all the same.
    pub max_turn: Duration,
    /// How sockets are restored.
    pub engine: Engine,
    /// Hooks tell what the application does. Else only [`Engine::Splice`] restores, and packets alone tell.
    pub hooked: bool,
    /// `durability = "async"`: nothing waits for the replica while it is in contact.
    pub asynchronous: bool,
    /// Room for the application's data: see [`crate::data::cost`].
    pub data_bytes: u64,
}

/// See the module's description.
#[derive(Debug)]
pub struct Filter {
    config: FilterConfig,
    store: Store,
    gate: ReplicaGate,
    // Boxed: a map has room for up to twice as many as it holds.
    live: BySession<Box<Live>>,
    pools: Pools,
    processes: Processes,
    commit: Commit,
    /// Kept for its memory.
    entries: Vec<Committed>,
    handshakes: Handshakes,
    splices: Splices,
    calls: Calls,
    causes: Causes,
    reassemblies: Reassemblies,
    unseen: Unseen,
    timers: Timers,
    barrier: Barrier,
    /// Where a program takes over that has followed another one: the sessions that it has already, and whether in the middle of a
    /// turn. See [`Filter::stand`].
    standing: Option<BySession<bool>>,
    around: Arounds,
    clock: Now,
    actions: Vec<Action>,
    counters: Counters,
    /// How often the end of a process had all sessions looked at.
    #[cfg(test)]
    walks: usize,
}

/// The memory of sessions that are no more.
pub struct Remains {
    _store: Store,
    _live: BySession<Box<Live>>,
}

impl Filter {
    /// A passive filter with an empty store.
    #[must_use]
    pub fn new(config: FilterConfig) -> Filter {
        Filter {
            processes: Processes::new(config.max_turn),
            gate: ReplicaGate::new(config.asynchronous),
            config,
            store: Store::new(),
            live: BySession::default(),
            pools: Pools::default(),
            commit: Commit::default(),
            entries: Vec::new(),
            handshakes: Handshakes::new(),
            splices: Splices::default(),
            calls: Calls::default(),
            causes: Causes::default(),
            reassemblies: Reassemblies::default(),
            unseen: Unseen::default(),
            timers: Timers::default(),
            barrier: Barrier::default(),
            standing: None,
            around: Arounds::default(),
            clock: Duration::ZERO,
            actions: Vec::new(),
            counters: Counters::default(),
            #[cfg(test)]
            walks: 0,
        }
    }

    /// The mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.gate.mode()
    }

    /// How sockets are restored.
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.config.engine
    }

    /// Whether hooks tell what the application does.
    #[must_use]
    pub fn hooked(&self) -> bool {
        self.config.hooked
    }

    /// The store: the master's own, or the replica's.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let gate = self.gate.counters();
        Counters {
            held: gate.held,
            records: gate.records,
            log_bytes: gate.log_bytes,
            payload_bytes: gate.payload_bytes,
            ..self.counters
        }
    }

    /// The turn policy's counters and state.
    #[must_use]
    pub fn turns(&self) -> &TurnPolicy {
        &self.processes.turns
    }

    /// Takes what is to be done; `out` is appended to.
    pub fn drain_actions(&mut self, out: &mut Vec<Action>) {
        out.append(&mut self.actions);
    }

    // ---- roles ---------------------------------------------------------------------------------------

    /// Becomes master of an empty or own store, nothing to take over.
    pub fn activate(&mut self) {
        self.gate.activate();
    }

    /// Hands over: from now on the log does not grow, nothing leaves, and input is forwarded.
    pub fn freeze(&mut self) {
        assert!(matches!(self.gate.mode(), Mode::Active | Mode::Restoring), "only a master hands over");
        // The last words; a frozen log does not grow.
        self.write_syncs();
        self.gate.freeze();
    }

    /// A handover that came to nothing: master again. What was forwarded meanwhile the peers send again.
    pub fn thaw(&mut self, now: Now) {
        if self.gate.thaw() {
            self.late_causes();
        }
        self.run_commits(now);
        self.release_stored(now);
    }

    /// No longer master: everything in hand is dropped, silently; the store is no longer ours to use. Returns what the sessions
    /// have left: to free that of many takes a while.
    pub fn demote(&mut self) -> Remains {
        self.gate.demote();
        self.standing = None;
        let live = self.drop_in_hand();
        for h in self.handshakes.take_held() {
            if let Some(id) = h.id {
                self.actions.push(Action::DropIn(id));
            }
        }
        // The deaths stay known: what kills the server comes back with the next handover.
        let remains = Remains { _store: std::mem::take(&mut self.store), _live: live };
        self.handshakes.clear();
        remains
    }

    /// Drops every packet and all that is known beside the store and the log. Returns the sessions.
    fn drop_in_hand(&mut self) -> BySession<Box<Live>> {
        self.actions.extend(self.gate.drop_sessions().into_iter().map(Action::DropOut));
        let mut lives = std::mem::take(&mut self.live);
        let mut ids: Vec<SessionId> = lives.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let live = lives.get_mut(&id).expect("listed");
            for h in live.held.take() {
                self.actions.push(Action::DropOut(h.id));
            }
            for id in live.recovery.take().held_in.into_iter().filter_map(|h| h.id) {
                self.actions.push(Action::DropIn(id));
            }
        }
        self.processes.forget_sessions(self.config.max_turn);
        self.timers.clear();
        self.handshakes.forget_sessions();
        self.barrier.clear();
        self.splices = Splices::default();
        self.calls = Calls::default();
        self.causes.forget_sessions();
        self.reassemblies = Reassemblies::default();
        self.unseen = Unseen::default();
        self.pools.announced.forget();
        self.around.clear();
        lives
    }

    // ---- time ----------------------------------------------------------------------------------------

    /// When [`Self::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Now> {
        if matches!(self.gate.mode(), Mode::Passive | Mode::Frozen) {
            return None;
        }
        [
            self.processes.turns.poll_timeout(),
            self.gate.poll_timeout(),
            self.processes.poll_timeout(),
            self.timers.poll_timeout(),
            self.handshakes.poll_timeout(),
            self.unseen.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what time asks for.
    pub fn handle_timeout(&mut self, now: Now) {
        self.clock = now;
        if matches!(self.gate.mode(), Mode::Passive | Mode::Frozen) {
            return;
        }
        self.processes.turns.handle_timeout(now);
        self.actions.extend(self.processes.turns.poll_asked().map(|t| Action::AskAsleep((t >> 32) as u32, t as u32)));
        self.run_commits(now);
        self.check_suspicious(now);
        self.ask_unseen_again(now);
        self.handle_recovery_timeout(now);
        self.expire(now);
        if self.gate.handle_timeout(now) {
            self.write_syncs();
        }
    }

    /// Changes what the barrier's counters count of a session.
    fn recount(&mut self, id: SessionId, change: impl FnOnce(&mut Live)) {
        let live = self.live.get_mut(&id).expect("a live session");
        self.barrier.discount(live);
        change(live);
        self.barrier.count(live);
    }

    /// Deletes a session everywhere. What waits for the replica may still leave; what waits for more is dropped.
    fn end_session(&mut self, now: Now, id: SessionId, reason: EndReason) {
        let Some(open) = self.store.get(id).map(|s| s.open) else { return };
        let tuple = open.tuple;
        if self.live.get(&id).is_some_and(|l| l.alone) {
            self.gate.solo.ended(&open);
        }
        let partners = self.known().partners(id, self.is_unused(id));
        self.orphan(id);
        self.write(0, |out| record::encode_end(id, reason, out));
        self.processes.turns.close(id);
        self.forget_out_of_order(id);
        self.unseen.forget(id);
        if let Some(mut live) = self.live.remove(&id) {
            if !live.established {
                self.handshakes.opened(&tuple);
            }
            self.barrier.discount(&live);
            if live.later {
                self.causes.later_one_ended();
            }
            live.announced.truncate(0, &mut self.pools.announced);
            for h in live.held.take() {
                self.actions.push(Action::DropOut(h.id));
            }
            let recovery = live.recovery.take();
            let spliced = recovery.handshake.is_some() || self.splices.get(&tuple).is_some();
            for id in recovery.held_in.into_iter().filter_map(|h| h.id) {
                // To a socket that is gone, or to none: an RST may answer, where strangers get one. A peer that has reset the
                // connection is told nothing.
                let drop = spliced || self.gate.mode() == Mode::Restoring || reason == EndReason::ResetByPeer;
                self.actions.push(if drop { Action::DropIn(id) } else { Action::AcceptIn(id) });
            }
            let unaccepted =
                spliced && self.config.hooked && !live.ownership.is_attached() && !live.outgoing && !live.ownership.is_unhooked();
            self.splices.unaccepted = self.splices.unaccepted.saturating_sub(usize::from(unaccepted));
            self.splice_over(now, &tuple);
        }
        self.around.forget(id);
        self.forget_expiries();
        let live = &self.live;
        self.processes.forget_session(id, |id| live.contains_key(&id));
        self.forget_cause(id);
        self.counters.ended += 1;
        self.actions.push(Action::Ended(id, tuple, reason));
        self.run_commits(now);
        self.barrier_met(now);
        self.answer_kept(now);
        self.open_halves(now);
        for partner in partners {
            self.unpair(now, partner);
        }
        self.behind_gate(now);
    }

    /// The sessions that the kernel should have a socket of.
    pub fn with_sockets(&self) -> impl Iterator<Item = (SessionId, FourTuple)> + '_ {
        let has = |id: &SessionId| self.live.get(id).is_some_and(|live| live.has_socket());
        self.store.iter().map(|s| (s.open.session, s.open.tuple)).filter(move |(id, _)| has(id))
    }

    /// The four-tuple of a session of which the kernel should have a socket.
    #[must_use]
    pub fn with_socket(&self, id: SessionId) -> Option<FourTuple> {
        self.live.get(&id).filter(|live| live.has_socket())?;
        self.store.get(id).map(|s| s.open.tuple)
    }

    /// The kernel has no such socket any more: the sweep removes the record.
    pub fn swept(&mut self, now: Now, tuple: &FourTuple) {
        if matches!(self.gate.mode(), Mode::Passive | Mode::Frozen) {
            return;
        }
        if let Some(id) = self.store.find(tuple) {
            self.end_session(now, id, EndReason::Swept);
        }
    }

    fn policy(&self, tuple: &FourTuple) -> PortPolicy {
        let of_port = self.config.ports.iter().find(|(port, _)| *port == tuple.local.port()).map(|(_, policy)| *policy);
        let of_peer = || self.config.outgoing.iter().find(|(to, _)| *to == tuple.peer).map(|(_, policy)| *policy);
        of_port.or_else(of_peer).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
