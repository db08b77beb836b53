//! The replica gate: what is written to the log, what the replica has stored of it, and what waits for that.
//!
//! This is the one place where I1 is enforced: whatever leaves for a peer names the log position that it needs, and asks
//! [`ReplicaGate::may_leave`]. What may not leave yet waits here until the replica has stored so much.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

use super::packets::Held;
use super::solo::Solo;
use super::Mode;
use crate::data::Change;
use crate::record::{self, Cause, Committed, Record};
use crate::segment::Segment;
use crate::store::{Session, Store};
use crate::tuple::SessionId;
use crate::Now;

/// A session that moved is told to the replica at the latest after this long.
const SYNC_DELAY: Duration = Duration::from_millis(10);
/// So much of the log goes to the replica at once: the replica has work meanwhile.
const LARGE: usize = 32 << 10;
/// How much input is taken in so long although the log is too far ahead, once of each session. A peer whose segments are all
/// dropped sends ever more seldom, and would miss the moments in which there is room.
const TRICKLE_EVERY: Duration = Duration::from_millis(250);
const TRICKLE: usize = 256 << 10;
/// A segment that counts as little: one of Ethernet's jumbo frames.
const LITTLE: usize = 9000;

/// A place in the log: the number of bytes before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(super) struct LogPosition(pub u64);

impl LogPosition {
    /// Where the log begins: whoever needs this needs nothing.
    pub const START: LogPosition = LogPosition(0);
}

/// An outbound packet that only waits for the replica.
#[derive(Debug)]
pub(super) struct Waiting {
    need: LogPosition,
    /// Packets that need the same leave in the order in which they came.
    serial: u64,
    /// The session that it belongs to; None: a stranger's.
    pub session: Option<SessionId>,
    pub held: Held,
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

/// What may leave now.
#[derive(Debug)]
pub(super) enum Released {
    /// A reset of a session that is over.
    Reset(Vec<u8>),
    /// A packet of the local TCP.
    Packet(Waiting),
}

/// What the gate counts: see [`super::Counters`].
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct GateCounters {
    pub held: u64,
    pub records: u64,
    pub log_bytes: u64,
    pub payload_bytes: u64,
}

/// Input that is taken in although the log is too far ahead, and since when.
#[derive(Debug, Default)]
struct Trickle {
    since: Now,
    taken: usize,
    from: BTreeSet<SessionId>,
}

/// Records that a replica of an earlier version does not know: it is not told those.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ReplicaLacks {
    /// What the application's connections were made for.
    pub causes: bool,
    /// Options of sockets.
    pub options: bool,
    /// The application's data.
    pub data: bool,
}

/// The log as its writer sees it: what is written, what the replica has stored of it, and what waits for that.
#[derive(Debug)]
pub struct ReplicaGate {
    mode: Mode,
    /// The mode that a handover interrupted.
    thaw_to: Mode,
    /// `durability = "async"`: nothing waits for the replica while it is in contact.
    asynchronous: bool,
    /// The part of the log that was not taken yet, and the position behind it.
    batch: Vec<u8>,
    end: LogPosition,
    /// What the replica has stored.
    acked: LogPosition,
    needs_replica: bool,
    /// With `durability = "async"`: until then the replica is in contact, and cannot have taken over.
    contact_until: Now,
    fenced: bool,
    waiting: BinaryHeap<Reverse<Waiting>>,
    serial: u64,
    /// Resets of sessions that are over, deferred until the replica stores the end: before that their peers may be somebody
    /// else's.
    deferred_resets: VecDeque<(LogPosition, Vec<u8>)>,
    /// Sessions that moved and are to be told by a sync record, and when at the latest.
    dirty: Vec<SessionId>,
    sync_due: Option<Now>,
    /// When what is in the batch goes to the replica at the latest; that was before now.
    batch_due: Option<Now>,
    batch_late: bool,
    lacks: ReplicaLacks,
    /// The log is too far ahead of the replica to grow: see [`super::Filter::set_overloaded`].
    overloaded: bool,
    trickle: Trickle,
    /// Sessions whose output was not adopted for that reason.
    deferred: Vec<SessionId>,
    /// What was released since this member went on by itself.
    pub(super) solo: Solo,
    counters: GateCounters,
}

impl ReplicaGate {
    /// The gate of a backup.
    pub(super) fn new(asynchronous: bool) -> ReplicaGate {
        ReplicaGate {
            mode: Mode::Passive,
            thaw_to: Mode::Active,
            asynchronous,
            batch: Vec::new(),
            end: LogPosition::START,
            acked: LogPosition::START,
            needs_replica: false,
            contact_until: Duration::ZERO,
            fenced: false,
            waiting: BinaryHeap::new(),
            serial: 0,
            deferred_resets: VecDeque::new(),
            dirty: Vec::new(),
            sync_due: None,
            batch_due: None,
            batch_late: false,
            lacks: ReplicaLacks::default(),
            overloaded: false,
            trickle: Trickle::default(),
            deferred: Vec::new(),
            solo: Solo::default(),
            counters: GateCounters::default(),
        }
    }

    pub(super) fn counters(&self) -> GateCounters {
        self.counters
    }

    // ---- roles ---------------------------------------------------------------------------------------

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether packets of sessions come and go.
    pub(super) fn serves(&self) -> bool {
        matches!(self.mode, Mode::Restoring | Mode::Active)
    }

    /// A master without a replica, with the log that there is.
    pub(super) fn activate(&mut self) {
        self.mode = Mode::Active;
        self.needs_replica = false;
        self.fenced = false;
        self.solo = Solo::default();
    }

    /// A master that takes over: its log begins anew. `first`: the number of the first session that the other side does not
    /// have.
    pub(super) fn take_over(&mut self, first: SessionId) {
        self.activate();
        self.mode = Mode::Restoring;
        self.end = LogPosition::START;
        self.acked = LogPosition::START;
        self.batch.clear();
        self.solo.begin(first);
    }

    /// A master whose sessions are restored once more: log and replica go on.
    pub(super) fn recover(&mut self) {
        self.mode = Mode::Restoring;
        self.fenced = false;
    }

    /// All sessions are restored.
    pub(super) fn restored(&mut self) {
        self.mode = Mode::Active;
    }

    /// From now on the log does not grow and nothing leaves.
    pub(super) fn freeze(&mut self) {
        self.thaw_to = self.mode;
        self.mode = Mode::Frozen;
    }

    /// Master again, as before [`Self::freeze`]. Returns whether it was frozen.
    pub(super) fn thaw(&mut self) -> bool {
        let frozen = self.mode == Mode::Frozen;
        if frozen {
            self.mode = self.thaw_to;
        }
        frozen
    }

    /// No master any more: the log is nobody's.
    pub(super) fn demote(&mut self) {
        self.mode = Mode::Passive;
        self.solo = Solo::default();
        self.deferred_resets.clear();
        self.batch.clear();
        self.batch_due = None;
        self.batch_late = false;
        self.end = LogPosition::START;
        self.acked = LogPosition::START;
        self.needs_replica = false;
        self.fenced = false;
    }

    /// Forgets what it knows of sessions. Returns the numbers of the packets that waited.
    pub(super) fn drop_sessions(&mut self) -> Vec<u32> {
        self.dirty.clear();
        self.sync_due = None;
        self.deferred.clear();
        self.waiting.drain().map(|Reverse(w)| w.held.id).collect()
    }

    // ---- the log -------------------------------------------------------------------------------------

    /// The position behind everything written so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.end.0
    }

    /// The same, for what needs it.
    pub(super) fn end(&self) -> LogPosition {
        self.end
    }

    /// Appends records to the log and applies them: master and replica compute the same store (I5). Returns the position
    /// behind them.
    pub(super) fn append(
        &mut self,
        now: Now,
        store: &mut Store,
        payload: usize,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> LogPosition {
        let from = self.log(now, payload, encode);
        apply(store, &self.batch[from..]);
        self.end
    }

    /// Writes records to the log. Returns where they begin in the batch.
    fn log(&mut self, now: Now, payload: usize, encode: impl FnOnce(&mut Vec<u8>)) -> usize {
        let from = self.batch.len();
        encode(&mut self.batch);
        let written = (self.batch.len() - from) as u64;
        self.counters.records += 1;
        self.counters.log_bytes += written;
        self.counters.payload_bytes += payload as u64;
        self.end.0 += written;
        self.batch_due.get_or_insert(now + SYNC_DELAY);
        from
    }

    /// Appends a commit, and the application's data of its turn. To a replica of a version that knows no data, a session that has
    /// some is torn: without it nobody could go on with the session.
    pub(super) fn append_commit(
        &mut self,
        now: Now,
        store: &mut Store,
        entries: &[Committed],
        changes: &[Change<Box<[u8]>>],
    ) -> LogPosition {
        let encode_data = |out: &mut Vec<u8>| changes.iter().for_each(|change| record::encode_data(change.borrow(), out));
        let with_data = !changes.is_empty();
        let keeps = |store: &Store, e: &Committed| store.data(e.session).is_some();
        if !self.lacks.data || !with_data && !entries.iter().any(|e| keeps(store, e)) {
            return self.append(now, store, 0, |out| {
                encode_data(out);
                record::encode_commit(entries, with_data, out);
            });
        }
        let mut own = Vec::new();
        encode_data(&mut own);
        record::encode_commit(entries, with_data, &mut own);
        apply(store, &own);
        let torn: Vec<_> = entries.iter().map(|e| Committed { torn: e.torn || keeps(store, e), ..*e }).collect();
        self.log(now, 0, |out| record::encode_commit(&torn, false, out));
        self.end
    }

    /// The same of a session's cause, which a replica of an earlier version is not told.
    pub(super) fn append_cause(&mut self, now: Now, store: &mut Store, id: SessionId, cause: Option<Cause>) -> LogPosition {
        if self.lacks.causes {
            store.apply(Record::Cause { session: id, cause }).expect("a cause fits always");
            return self.end;
        }
        self.append(now, store, 0, |out| record::encode_cause(id, cause, out))
    }

    /// The same of a session's options.
    pub(super) fn append_options(&mut self, now: Now, store: &mut Store, id: SessionId, run: &[u8]) -> LogPosition {
        if self.lacks.options {
            store.apply(Record::Options { session: id, run }).expect("options fit always");
            return self.end;
        }
        self.append(now, store, 0, |out| record::encode_options(id, run, out))
    }

    /// Appends a session's part of a snapshot.
    pub(super) fn snapshot(&self, store: &Store, id: SessionId, out: &mut Vec<u8>) {
        store.snapshot(id, out);
        if let Some(cause) = store.get(id).and_then(|s| s.cause).filter(|_| !self.lacks.causes) {
            record::encode_cause(id, Some(cause), out);
        }
        let options = store.options(id);
        if !options.is_empty() && !self.lacks.options {
            record::encode_options(id, options, out);
        }
        if let Some(data) = store.data(id) {
            if self.lacks.data {
                let torn = store.get(id).map(|s| Committed { torn: true, ..s.committed() });
                record::encode_commit(torn.as_slice(), false, out);
            } else {
                record::encode_data(Change::Checkpoint { session: id, data }, out);
                record::encode_commit(&[], true, out);
            }
        }
    }

    /// Appends a value's part of a snapshot.
    pub(super) fn snapshot_value(&self, store: &Store, key: &[u8], out: &mut Vec<u8>) {
        if let Some(value) = store.value(key).filter(|_| !self.lacks.data) {
            record::encode_data(Change::Put { key, value }, out);
            record::encode_commit(&[], true, out);
        }
    }

    pub(super) fn set_replica_lacks(&mut self, lacks: ReplicaLacks) {
        self.lacks = lacks;
    }

    /// A session moved: a sync record is due. `listed`: it was told before, and no record has been written since.
    pub(super) fn mark_dirty(&mut self, now: Now, id: SessionId, listed: bool) {
        if !listed {
            self.dirty.push(id);
        }
        self.sync_due.get_or_insert(now + SYNC_DELAY);
    }

    /// The sessions that moved, to be told now. The list is given back with [`Self::keep_list`]. None: a frozen log does not
    /// grow, for the next master already counts its bytes.
    pub(super) fn take_dirty(&mut self) -> Option<Vec<SessionId>> {
        if self.mode == Mode::Frozen {
            return None;
        }
        self.sync_due = None;
        Some(std::mem::take(&mut self.dirty))
    }

    /// Keeps the list's memory.
    pub(super) fn keep_list(&mut self, mut list: Vec<SessionId>) {
        list.clear();
        self.dirty = list;
    }

    /// Moves the unsent part of the log behind `out`. Returns the position of its first byte.
    pub(super) fn take_batch(&mut self, out: &mut Vec<u8>) -> LogPosition {
        let start = self.end.0 - self.batch.len() as u64;
        if out.is_empty() {
            std::mem::swap(out, &mut self.batch);
        } else {
            out.append(&mut self.batch);
        }
        self.batch_due = None;
        self.batch_late = false;
        LogPosition(start)
    }

    /// Whether the log is worth sending now: what nothing waits for may go with what comes after it, or by the timer. Input
    /// that was not acknowledged to its peer is lost to nobody.
    #[must_use]
    pub fn has_batch(&self, now: Now) -> bool {
        let waited_for = self.asynchronous || !self.waiting.is_empty() || !self.deferred_resets.is_empty();
        self.sync_due.is_some_and(|due| now >= due)
            || !self.batch.is_empty() && (self.batch_late || waited_for || self.batch.len() >= LARGE)
    }

    // ---- what may leave ------------------------------------------------------------------------------

    /// Whether what needs the log up to this position may leave now (I1).
    pub(super) fn may_leave(&self, now: Now, need: LogPosition) -> bool {
        self.serves() && self.is_known(now, need)
    }

    fn is_known(&self, now: Now, need: LogPosition) -> bool {
        let waits = self.needs_replica && now >= self.contact_until;
        !self.fenced && self.mode != Mode::Passive && (!waits || need <= self.acked)
    }

    /// Gives the packet back if it may leave now; else keeps it until it may.
    pub(super) fn wait(&mut self, now: Now, session: Option<SessionId>, need: LogPosition, held: Held) -> Option<Held> {
        if self.may_leave(now, need) {
            return Some(held);
        }
        self.counters.held += 1;
        self.serial += 1;
        self.waiting.push(Reverse(Waiting { need, serial: self.serial, session, held }));
        None
    }

    /// Defers a reset until the log is stored up to this position.
    pub(super) fn defer_reset(&mut self, need: LogPosition, packet: Vec<u8>) {
        self.deferred_resets.push_back((need, packet));
    }

    /// Resets that still wait.
    pub(super) fn take_deferred_resets(&mut self) -> Vec<Vec<u8>> {
        self.deferred_resets.drain(..).map(|(_, packet)| packet).collect()
    }

    /// What may leave and has waited: to be asked until there is nothing more.
    pub(super) fn next_released(&mut self, now: Now) -> Option<Released> {
        // While a handover is under way, too: nobody else knows these sessions.
        if self.deferred_resets.front().is_some_and(|(need, _)| self.is_known(now, *need)) {
            return self.deferred_resets.pop_front().map(|(_, packet)| Released::Reset(packet));
        }
        self.waiting.peek().filter(|Reverse(w)| self.may_leave(now, w.need))?;
        self.waiting.pop().map(|Reverse(w)| Released::Packet(w))
    }

    /// How many packets wait for the replica.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    // ---- the replica ---------------------------------------------------------------------------------

    /// The replica has stored the log up to `position`.
    pub(super) fn stored(&mut self, position: LogPosition) {
        assert!(position <= self.end, "I1: the replica acknowledges log that was never written");
        self.acked = self.acked.max(position);
    }

    /// The position that the replica is known to have.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acked.0
    }

    /// The same, for what needs it.
    pub(super) fn acked(&self) -> LogPosition {
        self.acked
    }

    /// Everything up to here is as safe as it will be: stored by the replica, or written where there is none.
    pub(super) fn settled(&self) -> LogPosition {
        if self.needs_replica {
            self.acked
        } else {
            self.end
        }
    }

    /// Whether releases wait for a replica.
    #[must_use]
    pub fn needs_replica(&self) -> bool {
        self.needs_replica
    }

    /// From now on nothing leaves without the replica's acknowledgement, which so far reaches `position`.
    pub(super) fn hold_for_replica(&mut self, position: LogPosition) {
        self.needs_replica = true;
        self.acked = position;
        self.solo = Solo::default();
    }

    /// The replica was heard: see [`super::Filter::replica_heard`]. Returns whether that changes anything.
    pub(super) fn heard(&mut self, until: Now) -> bool {
        if self.asynchronous {
            self.contact_until = self.contact_until.max(until);
        }
        self.asynchronous
    }

    /// No replica any more, and leave to go on alone. `first`: the number that the next session will have.
    pub(super) fn go_solo(&mut self, first: SessionId) {
        self.needs_replica = false;
        self.solo.begin(first);
    }

    pub(super) fn fenced(&self) -> bool {
        self.fenced
    }

    pub(super) fn set_fenced(&mut self, fenced: bool) {
        self.fenced = fenced;
    }

    // ---- a replica that does not keep up -------------------------------------------------------------

    pub(super) fn overloaded(&self) -> bool {
        self.overloaded
    }

    /// Returns the sessions whose output can be adopted now.
    pub(super) fn set_overloaded(&mut self, overloaded: bool) -> Vec<SessionId> {
        self.overloaded = overloaded;
        if overloaded {
            return Vec::new();
        }
        let mut deferred = std::mem::take(&mut self.deferred);
        deferred.sort_unstable();
        deferred.dedup();
        deferred
    }

    /// The output of this session can be adopted only when there is room in the log.
    pub(super) fn defer(&mut self, id: SessionId) {
        self.deferred.push(id);
    }

    /// Whether this segment, whose input begins at `offset`, is taken in though the log may not grow: a little is, once of
    /// each session, of the next bytes.
    pub(super) fn trickles(&mut self, now: Now, s: &Session, offset: i64, segment: &Segment<'_>) -> bool {
        let trickle = &mut self.trickle;
        if now >= trickle.since + TRICKLE_EVERY {
            *trickle = Trickle { since: now, ..Trickle::default() };
        }
        let length = segment.payload().len();
        let little = length <= LITTLE && trickle.taken + length <= TRICKLE && offset <= s.in_end() as i64;
        let takes = little && trickle.from.insert(s.open.session);
        trickle.taken += if takes { length } else { 0 };
        takes
    }

    // ---- time ----------------------------------------------------------------------------------------

    /// When [`Self::handle_timeout`] wants to be called.
    pub(super) fn poll_timeout(&self) -> Option<Now> {
        self.sync_due.into_iter().chain(self.batch_due).min()
    }

    /// Returns whether sync records are to be written now.
    pub(super) fn handle_timeout(&mut self, now: Now) -> bool {
        if self.batch_due.is_some_and(|due| now >= due) {
            self.batch_due = None;
            self.batch_late = true;
        }
        let sync = self.sync_due.is_some_and(|due| now >= due);
        self.batch_late |= sync;
        sync
    }
}

fn apply(store: &mut Store, records: &[u8]) {
    let applied = store.apply_batch(records);
    assert!(applied.is_ok(), "I5: a record that we wrote does not fit our own store: {applied:?}");
}
