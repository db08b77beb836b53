//! The filter: packets, hook events and replica acknowledgements in; verdicts and log records out.
//!
//! It holds the release rule (DESIGN section 4): no segment leaves for a peer before the replica has stored
//! every input byte that its ACK covers and every output byte that it carries (I1), and no output before its
//! turn is committed (I2). One filter serves a member through all its roles; [`Mode`] says which rules are on.
//!
//! - `input`: segments from peers, judged as TCP will judge them
//! - `output`: segments of the local TCP, held until they may leave
//! - `app`: what the hooks tell; turns; processes that die
//! - `recovery`: takeover: probes, restore, barrier, injection

mod app;
mod input;
mod output;
mod recovery;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use crate::record::{self, EndReason, Sync};
use crate::segment::Options;
use crate::seq::Seq;
use crate::store::{Store, StoreError};
use crate::tuple::{FourTuple, SessionId};
use crate::turn::{Commit, PortPolicy, TurnPolicy};
use crate::Now;

pub use app::Origin;
pub use recovery::RestoreSpec;

/// Most connections whose SYN was seen and whose SYN-ACK was not.
const MAX_SYNS: usize = 4096;
/// Longest that a half-open session is kept: the kernel gives up after about 63 s.
const EMBRYONIC: Duration = Duration::from_secs(75);
/// A session that moved is told to the replica at the latest after this long.
const SYNC_DELAY: Duration = Duration::from_millis(10);

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
    /// Connections closed behind the hooks' back.
    pub unhooked_closes: u64,
    /// FIN and RST of dead processes that were kept from leaving.
    pub endings_withheld: u64,
    /// Segments whose ACK covers input that is not in the store; must stay 0.
    pub ack_beyond_store: u64,
    /// Sessions opened.
    pub opened: u64,
    /// Sessions ended.
    pub ended: u64,
    /// Sessions restored after a takeover.
    pub restored: u64,
    /// Sessions that were torn when a takeover needed them, and were reset.
    pub torn: u64,
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
    /// Longest turn before its output is released all the same.
    pub max_turn: Duration,
}

/// An outbound packet in hand.
#[derive(Debug)]
struct Held {
    id: u32,
    /// First offset of its payload, and the offset behind it (a FIN counts one).
    start: u64,
    end: u64,
    /// Input offset that it acknowledges.
    ack: u64,
    fin: bool,
    rst: bool,
    /// Kept where the packet may have to be changed, or its bytes adopted.
    bytes: Option<Vec<u8>>,
    since: Now,
}

/// An outbound packet that only waits for the replica.
#[derive(Debug)]
struct Waiting {
    need: u64,
    serial: u64,
    session: SessionId,
    held: Held,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Waiting) -> bool {
        (self.need, self.serial) == (other.need, other.serial)
    }
}
impl Eq for Waiting {}
impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Waiting) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Waiting {
    fn cmp(&self, other: &Waiting) -> std::cmp::Ordering {
        (self.need, self.serial).cmp(&(other.need, other.serial))
    }
}

/// An inbound packet: in the queue under a number, or in our hands.
#[derive(Debug)]
struct HeldIn {
    id: Option<u32>,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Syn {
    isn: Seq,
    options: Options,
    window: u16,
    at: Now,
}

/// How far a recovered session has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// The peer was probed; nothing is restored.
    Probing,
    /// A socket exists; input stays behind the barrier.
    Restored,
    /// Through the barrier; the kept input is being injected up to `until`.
    Feeding { until: u64, next: Now, tries: u32 },
    /// Nothing special any more.
    Live,
}

/// What a master knows of a session beside its store: all of it can be lost.
#[derive(Debug)]
struct Live {
    stage: Stage,
    opened: Now,
    owners: Vec<u32>,
    /// The processes that held it are dead.
    orphan: bool,
    /// Attached once: the turn policy knows it.
    attached: bool,
    /// Announced by hooks, not yet committed.
    pending: VecDeque<u8>,
    closed: bool,
    abort: bool,
    fin_asked: bool,
    /// Offset behind the last byte (or FIN) that the local TCP has sent.
    kernel_nxt: u64,
    /// Highest input offset that the local TCP has acknowledged.
    kernel_ack: u64,
    /// Highest offset that was let go to the peer.
    released: u64,
    /// Highest input acknowledgement that was let go.
    released_ack: u64,
    /// Log positions behind the session's last input and commit, and what is known stored.
    open_pos: u64,
    in_pos: u64,
    in_known: u64,
    out_pos: u64,
    out_known: u64,
    held: VecDeque<Held>,
    held_in: Vec<HeldIn>,
    /// Input that arrived out of order, by offset.
    early: BTreeMap<u64, Vec<u8>>,
    early_bytes: usize,
    early_fin: Option<u64>,
    /// The peer's true acknowledgement.
    acked: u64,
    edge: u64,
    window: u16,
    ts_recent: u32,
    ts_value: u32,
    dirty: bool,
    /// Until the local TCP has passed this offset it may not see acknowledgements of the future.
    clamp: Option<u64>,
    /// When to send the first unacknowledged segment again after a takeover, and how often it was.
    resend: Option<(Now, u32, u64)>,
}

/// See the module's description.
#[derive(Debug)]
pub struct Filter {
    config: FilterConfig,
    mode: Mode,
    store: Store,
    live: HashMap<SessionId, Live>,
    turns: TurnPolicy,
    commit: Commit,
    handles: HashMap<(u32, u32), SessionId>,
    syns: HashMap<FourTuple, Syn>,
    held_syns: Vec<HeldIn>,
    next_id: SessionId,
    batch: Vec<u8>,
    end: u64,
    acked: u64,
    needs_replica: bool,
    fenced: bool,
    waiting: BinaryHeap<Reverse<Waiting>>,
    serial: u64,
    dirty: Vec<SessionId>,
    sync_due: Option<Now>,
    /// Packets that no hook announced and whose process may be dying.
    suspicious: VecDeque<(Now, SessionId)>,
    /// Sessions after a takeover that still want the timer.
    recovering: Vec<SessionId>,
    sweep_due: Now,
    /// The process holds a write whose outcome it has not told yet.
    intent: Option<(u32, u32)>,
    actions: Vec<Action>,
    counters: Counters,
}

impl Filter {
    /// A passive filter with an empty store.
    #[must_use]
    pub fn new(config: FilterConfig) -> Filter {
        Filter {
            turns: TurnPolicy::new(config.max_turn),
            config,
            mode: Mode::Passive,
            store: Store::new(),
            live: HashMap::new(),
            commit: Commit::default(),
            handles: HashMap::new(),
            syns: HashMap::new(),
            held_syns: Vec::new(),
            next_id: 1,
            batch: Vec::new(),
            end: 0,
            acked: 0,
            needs_replica: false,
            fenced: false,
            waiting: BinaryHeap::new(),
            serial: 0,
            dirty: Vec::new(),
            sync_due: None,
            suspicious: VecDeque::new(),
            recovering: Vec::new(),
            sweep_due: Duration::ZERO,
            intent: None,
            actions: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// The mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The store: the master's own, or the replica's.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The turn policy's counters and state.
    #[must_use]
    pub fn turns(&self) -> &TurnPolicy {
        &self.turns
    }

    /// Takes what is to be done; `out` is appended to.
    pub fn drain_actions(&mut self, out: &mut Vec<Action>) {
        out.append(&mut self.actions);
    }

    // ---- the log -------------------------------------------------------------------------------------

    /// Log position behind everything written so far.
    #[must_use]
    pub fn log_end(&self) -> u64 {
        self.end
    }

    /// Moves the unsent part of the log into `out`, after the records of the sessions that moved. Returns the
    /// position of its first byte.
    pub fn take_batch(&mut self, out: &mut Vec<u8>) -> u64 {
        self.write_syncs();
        let start = self.end - self.batch.len() as u64;
        out.append(&mut self.batch);
        start
    }

    /// Whether a batch is worth sending now: idle moves wait for the timer.
    #[must_use]
    pub fn has_batch(&self, now: Now) -> bool {
        !self.batch.is_empty() || self.sync_due.is_some_and(|due| now >= due)
    }

    fn write_syncs(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for id in dirty.drain(..) {
            let Some(live) = self.live.get_mut(&id) else { continue };
            live.dirty = false;
            let Some(s) = self.store.get(id) else { continue };
            let sync = Sync {
                session: id,
                established: true,
                out_acked: live.acked.min(s.out_sendable()) as u32,
                in_edge: live.edge as u32,
                window: live.window,
                ts_recent: live.ts_recent,
                ts_value: live.ts_value,
            };
            self.write(0, |out| sync.encode(out));
        }
        self.dirty = dirty;
        self.sync_due = None;
    }

    /// Appends records to the log and applies them: master and replica compute the same store.
    fn write(&mut self, payload: usize, encode: impl FnOnce(&mut Vec<u8>)) -> u64 {
        let from = self.batch.len();
        encode(&mut self.batch);
        let written = (self.batch.len() - from) as u64;
        let applied = self.store.apply_batch(&self.batch[from..]);
        assert!(applied.is_ok(), "I5: a record that we wrote does not fit our own store: {applied:?}");
        self.counters.records += 1;
        self.counters.log_bytes += written;
        self.counters.payload_bytes += payload as u64;
        self.end += written;
        self.end
    }

    fn mark_dirty(&mut self, now: Now, id: SessionId) {
        let live = self.live.get_mut(&id).expect("a live session");
        if !live.dirty {
            live.dirty = true;
            self.dirty.push(id);
        }
        self.sync_due.get_or_insert(now + SYNC_DELAY);
    }

    /// The replica has stored the log up to `position`.
    pub fn replica_stored(&mut self, now: Now, position: u64) {
        assert!(position <= self.end, "I1: the replica acknowledges log that was never written");
        self.acked = self.acked.max(position);
        self.release_stored(now);
    }

    /// Log position that the replica is known to have.
    #[must_use]
    pub fn replica_position(&self) -> u64 {
        self.acked
    }

    /// From now on nothing leaves without the replica's acknowledgement, which so far reaches `position`.
    pub fn hold_for_replica(&mut self, position: u64) {
        self.needs_replica = true;
        self.acked = position;
        for live in self.live.values_mut() {
            live.in_known = 0;
            live.out_known = 0;
        }
    }

    /// No replica any more, and leave to go on alone.
    pub fn go_solo(&mut self, now: Now) {
        self.needs_replica = false;
        self.release_stored(now);
    }

    /// Whether releases wait for a replica.
    #[must_use]
    pub fn needs_replica(&self) -> bool {
        self.needs_replica
    }

    /// A fenced master releases nothing at all.
    pub fn set_fenced(&mut self, now: Now, fenced: bool) {
        self.fenced = fenced;
        self.release_stored(now);
    }

    // ---- replica -------------------------------------------------------------------------------------

    /// As a backup: forget the store, a snapshot begins.
    pub fn replica_reset(&mut self) {
        assert!(self.mode == Mode::Passive, "only a backup takes a snapshot");
        self.store.clear();
    }

    /// As a backup: applies a batch of the master's log.
    ///
    /// # Errors
    /// The log does not fit the store; it needs a new snapshot.
    pub fn replica_apply(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        assert!(self.mode == Mode::Passive, "I3: a master follows no log");
        self.store.apply_batch(bytes)
    }

    /// As a master: the records from which an empty store computes this one, up to [`Self::log_end`].
    pub fn snapshot(&mut self, out: &mut Vec<u8>) {
        self.write_syncs();
        for s in self.store.iter() {
            self.store.snapshot(s.open.session, out);
        }
    }

    // ---- roles ---------------------------------------------------------------------------------------

    /// Becomes master of an empty or own store, nothing to take over.
    pub fn activate(&mut self) {
        self.mode = Mode::Active;
        self.needs_replica = false;
        self.fenced = false;
    }

    /// Hands over: from now on the log does not grow, nothing leaves, and input is forwarded.
    pub fn freeze(&mut self) {
        assert!(matches!(self.mode, Mode::Active | Mode::Restoring), "only a master hands over");
        self.mode = Mode::Frozen;
    }

    /// A handover that came to nothing: master again. What was forwarded meanwhile the peers send again.
    pub fn thaw(&mut self, now: Now) {
        self.mode = Mode::Active;
        self.release_stored(now);
    }

    /// No longer master: everything in hand is dropped, silently; the store is no longer ours to use.
    pub fn demote(&mut self) {
        self.mode = Mode::Passive;
        for Reverse(w) in self.waiting.drain() {
            self.actions.push(Action::DropOut(w.held.id));
        }
        let mut inbound = std::mem::take(&mut self.held_syns);
        for (_, mut live) in self.live.drain() {
            for h in live.held.drain(..) {
                self.actions.push(Action::DropOut(h.id));
            }
            inbound.append(&mut live.held_in);
        }
        for h in inbound {
            if let Some(id) = h.id {
                self.actions.push(Action::DropIn(id));
            }
        }
        self.store.clear();
        self.turns = TurnPolicy::new(self.config.max_turn);
        self.handles.clear();
        self.syns.clear();
        self.dirty.clear();
        self.suspicious.clear();
        self.recovering.clear();
        self.batch.clear();
        self.end = 0;
        self.acked = 0;
        self.sync_due = None;
        self.intent = None;
        self.needs_replica = false;
        self.fenced = false;
    }

    // ---- time ----------------------------------------------------------------------------------------

    /// When [`Self::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Now> {
        if self.mode == Mode::Passive {
            return None;
        }
        let recovering = self
            .recovering
            .iter()
            .filter_map(|id| self.live.get(id))
            .filter_map(|l| {
                let feed = match l.stage {
                    Stage::Feeding { next, .. } => Some(next),
                    _ => None,
                };
                [feed, l.resend.map(|r| r.0)].into_iter().flatten().min()
            })
            .min();
        let embryos = (!self.syns.is_empty() || !self.live.is_empty()).then_some(self.sweep_due);
        [self.turns.poll_timeout(), self.sync_due, self.suspicious.front().map(|s| s.0), recovering, embryos]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what time asks for.
    pub fn handle_timeout(&mut self, now: Now) {
        if matches!(self.mode, Mode::Passive | Mode::Frozen) {
            return;
        }
        self.turns.handle_timeout(now);
        self.run_commits(now);
        self.check_suspicious(now);
        self.handle_recovery_timeout(now);
        if now >= self.sweep_due {
            self.sweep_due = now + Duration::from_secs(5);
            self.syns.retain(|_, syn| now < syn.at + EMBRYONIC);
            let expired: Vec<SessionId> = self
                .store
                .iter()
                .filter(|s| !s.established)
                .map(|s| s.open.session)
                .filter(|id| self.live.get(id).is_some_and(|l| now >= l.opened + EMBRYONIC))
                .collect();
            for id in expired {
                self.end_session(now, id, EndReason::Expired);
            }
        }
    }

    /// Deletes a session everywhere. What waits for the replica may still leave; what waits for more is dropped.
    fn end_session(&mut self, now: Now, id: SessionId, reason: EndReason) {
        let Some(tuple) = self.store.get(id).map(|s| s.open.tuple) else { return };
        self.write(0, |out| record::encode_end(id, reason, out));
        self.turns.close(id);
        if let Some(live) = self.live.remove(&id) {
            for h in live.held {
                self.actions.push(Action::DropOut(h.id));
            }
            for h in live.held_in {
                if let Some(id) = h.id {
                    self.actions.push(Action::AcceptIn(id));
                }
            }
        }
        self.counters.ended += 1;
        self.actions.push(Action::Ended(id, tuple, reason));
        self.run_commits(now);
    }

    /// The kernel has no such socket any more: the sweep removes the record.
    pub fn swept(&mut self, now: Now, tuple: &FourTuple) {
        if let Some(id) = self.store.find(tuple) {
            self.end_session(now, id, EndReason::Swept);
        }
    }

    fn policy(&self, port: u16) -> PortPolicy {
        self.config.ports.iter().find(|(p, _)| *p == port).map(|(_, policy)| policy.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
