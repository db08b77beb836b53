//! The filter's side of the log: records out of a master, records into a replica.

use std::collections::BTreeSet;
use std::time::Duration;

use super::recovery::Alone;
use super::{Filter, Mode, SYNC_DELAY};
use crate::options;
use crate::record::{self, Cause, EndReason, Record, Sync};
use crate::segment::Segment;
use crate::store::{Session, StoreError};
use crate::tuple::SessionId;
use crate::Now;

/// So much of the log goes to the replica at once: it is work for it meanwhile.
const LARGE: usize = 32 << 10;
/// The largest window (RFC 7323, section 2.3).
const MOST_WINDOW: u64 = 1 << 30;

/// How much input is taken in so long although the log is too far ahead, once of each session. A peer whose segments are all
/// dropped sends ever more seldom, and would miss the moments in which there is room.
const TRICKLE_EVERY: Duration = Duration::from_millis(250);
const TRICKLE: usize = 256 << 10;
/// A segment that counts as little: one of Ethernet's jumbo frames.
const LITTLE: usize = 9000;

/// What was taken so, and since when.
#[derive(Debug, Default)]
pub(super) struct Trickle {
    since: Now,
    taken: usize,
    from: BTreeSet<SessionId>,
}

impl Trickle {
    /// Whether this segment may be taken all the same: one of the next bytes.
    pub(super) fn takes(&mut self, now: Now, s: &Session, offset: i64, segment: &Segment<'_>) -> bool {
        if now >= self.since + TRICKLE_EVERY {
            *self = Trickle { since: now, ..Trickle::default() };
        }
        let length = segment.payload().len();
        let little = length <= LITTLE && self.taken + length <= TRICKLE && offset <= s.in_end() as i64;
        let takes = little && self.from.insert(s.open.session);
        self.taken += if takes { length } else { 0 };
        takes
    }
}

impl Filter {
    /// Log position behind everything written so far.
    #[must_use]
    pub fn log_end(&self) -> u64 {
        self.end
    }

    /// Moves the unsent part of the log behind `out`, after the records of the sessions that moved. Returns the
    /// position of its first byte. To be called also where nobody follows: the log would grow for ever.
    pub fn take_batch(&mut self, out: &mut Vec<u8>) -> u64 {
        self.write_syncs();
        let start = self.end - self.batch.len() as u64;
        if out.is_empty() {
            std::mem::swap(out, &mut self.batch);
        } else {
            out.append(&mut self.batch);
        }
        self.batch_due = None;
        self.batch_late = false;
        start
    }

    /// Whether the log is worth sending now: what nothing waits for may go with what comes after it, or by the timer. Input
    /// that was not acknowledged to its peer is lost to nobody.
    #[must_use]
    pub fn has_batch(&self, now: Now) -> bool {
        let waited_for = self.config.asynchronous || !self.waiting.is_empty() || !self.farewells.is_empty();
        self.sync_due.is_some_and(|due| now >= due)
            || !self.batch.is_empty() && (self.batch_late || waited_for || self.batch.len() >= LARGE)
    }

    pub(super) fn write_syncs(&mut self) {
        if self.mode == Mode::Frozen {
            // The next master already counts the log's bytes.
            return;
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        for id in dirty.drain(..) {
            if self.live.get(&id).is_some_and(|l| l.dirty) {
                self.write_sync(id);
            }
        }
        self.dirty = dirty;
        self.sync_due = None;
    }

    /// Tells how far a session has moved. Returns the position behind it.
    pub(super) fn write_sync(&mut self, id: SessionId) -> u64 {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get_mut(&id)) else { return self.end };
        live.dirty = false;
        let sync = Sync {
            session: id,
            established: live.established,
            out_acked: live.acked.min(s.out_sendable()) as u32,
            // No window is larger: whatever its ends say, it is told by its low half.
            in_edge: live.edge.min(s.in_end() + MOST_WINDOW) as u32,
            window: live.window,
            ts_recent: live.ts_recent,
            ts_value: live.ts_value,
        };
        self.write(0, |out| sync.encode(out))
    }

    /// Appends records to the log and applies them: master and replica compute the same store.
    pub(super) fn write(&mut self, payload: usize, encode: impl FnOnce(&mut Vec<u8>)) -> u64 {
        let from = self.batch.len();
        encode(&mut self.batch);
        let written = (self.batch.len() - from) as u64;
        let applied = self.store.apply_batch(&self.batch[from..]);
        assert!(applied.is_ok(), "I5: a record that we wrote does not fit our own store: {applied:?}");
        self.counters.records += 1;
        self.counters.log_bytes += written;
        self.counters.payload_bytes += payload as u64;
        self.end += written;
        self.batch_due.get_or_insert(self.clock + SYNC_DELAY);
        self.end
    }

    /// Whether the replica is of the version before, which knows no causes of outgoing sessions.
    pub fn set_plain_log(&mut self, plain: bool) {
        self.plain_log = plain;
    }

    pub(super) fn write_cause(&mut self, id: SessionId, cause: Option<Cause>) -> u64 {
        let end = if self.plain_log {
            self.store.apply(Record::Cause { session: id, cause }).expect("a cause fits always");
            self.end
        } else {
            self.write(0, |out| record::encode_cause(id, cause, out))
        };
        self.pair_turns(id);
        end
    }

    /// Whether the replica is of a version that knows no options.
    pub fn set_log_without_options(&mut self, without: bool) {
        self.log_without_options = without;
    }

    /// The application has set an option of a connection's socket.
    pub fn option_set(&mut self, channel: u32, handle: u32, level: u8, name: u8, value: &[u8]) {
        let Some(id) = self.session_of(channel, handle).filter(|_| self.mode.serves()) else { return };
        let mut run = Vec::new();
        options::append(&mut run, level, name, value);
        if options::get(self.store.options(id), level, name) != options::get(&run, level, name) {
            self.write_options(id, &run);
        }
    }

    fn write_options(&mut self, id: SessionId, run: &[u8]) -> u64 {
        if self.log_without_options {
            self.store.apply(Record::Options { session: id, run }).expect("options fit always");
            return self.end;
        }
        self.write(0, |out| record::encode_options(id, run, out))
    }

    pub(super) fn mark_dirty(&mut self, now: Now, id: SessionId) {
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

    /// How many packets wait for the replica.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
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
        self.alone = Alone::default();
        for live in self.live.values_mut() {
            live.alone = false;
            live.in_marks.forget();
            live.out_marks.forget();
        }
    }

    /// The replica was heard: with `durability = "async"` nothing waits for it until then. From then on everything does: this
    /// master may have been paused or cut off, and the replica be master now.
    pub fn replica_heard(&mut self, now: Now, until: Now) {
        if self.config.asynchronous {
            self.contact_until = self.contact_until.max(until);
            self.release_stored(now);
        }
    }

    /// No replica any more, and leave to go on alone.
    pub fn go_solo(&mut self, now: Now) {
        self.needs_replica = false;
        self.alone.begin(self.next_id);
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
        self.answer_kept(now);
    }

    /// The replica does not keep up, and the log may not grow by what can wait: input that comes now is dropped, but for a
    /// little, and its peer sends it again; output that no hook announced stays in its queue. What hooks announce is stopped by them.
    pub fn set_overloaded(&mut self, now: Now, overloaded: bool) {
        self.overloaded = overloaded;
        if overloaded || self.deferred.is_empty() {
            return;
        }
        self.clock = now;
        let mut deferred = std::mem::take(&mut self.deferred);
        deferred.sort_unstable();
        deferred.dedup();
        deferred.into_iter().for_each(|session| self.judge_held(now, session));
    }

    /// The numbers of all sessions, for a snapshot in steps.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionId> {
        self.store.iter().map(|s| s.open.session).collect()
    }

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
        self.store.iter().for_each(|s| self.snapshot_session(s.open.session, out));
    }

    /// A session's part of that. What is to be said of it beside is to be in the log before.
    pub fn snapshot_session(&self, id: SessionId, out: &mut Vec<u8>) {
        self.store.snapshot(id, out);
        if let Some(cause) = self.store.get(id).and_then(|s| s.cause).filter(|_| !self.plain_log) {
            record::encode_cause(id, Some(cause), out);
        }
        let options = self.store.options(id);
        if !options.is_empty() && !self.log_without_options {
            record::encode_options(id, options, out);
        }
    }

    /// No record takes anything back: a session ends in the log, and begins anew as these records say. What belongs to what is
    /// as it was.
    pub(super) fn tell_anew(&mut self, id: SessionId, records: &[u8]) -> u64 {
        let with_causes = [&[id], self.store.caused_by(id)].concat();
        let causes: Vec<_> = with_causes.iter().filter_map(|id| Some((*id, self.store.get(*id)?.cause))).collect();
        let options = self.store.options(id).to_vec();
        self.write(0, |out| {
            record::encode_end(id, EndReason::Swept, out);
            out.extend_from_slice(records);
        });
        if !options.is_empty() {
            self.write_options(id, &options);
        }
        causes.into_iter().filter(|(_, cause)| cause.is_some()).fold(self.end, |_, (id, cause)| self.write_cause(id, cause))
    }
}
