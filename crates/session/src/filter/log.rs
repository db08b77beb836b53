//! The filter's side of the log: records out of a master, records into a replica.

use super::gate::LogPosition;
use super::{Filter, Mode};
use crate::data::Change;
use crate::options;
use crate::record::{self, Cause, EndReason, Sync};
use crate::store::StoreError;
use crate::tuple::SessionId;
use crate::Now;

/// The largest window (RFC 7323, section 2.3).
const MOST_WINDOW: u64 = 1 << 30;

impl Filter {
    /// Log position behind everything written so far.
    #[must_use]
    pub fn log_end(&self) -> u64 {
        self.gate.end().0
    }

    /// Bytes of output that hooks announced and no commit covers: they will be in the log.
    #[must_use]
    pub fn announced(&self) -> u64 {
        self.pools.announced.bytes()
    }

    /// Moves the unsent part of the log behind `out`, after the records of the sessions that moved. Returns the
    /// position of its first byte. To be called also where nobody follows: the log would grow for ever.
    pub fn take_batch(&mut self, out: &mut Vec<u8>) -> u64 {
        self.write_syncs();
        self.gate.take_batch(out).0
    }

    /// Whether the log is worth sending now: what nothing waits for may go with what comes after it, or by the timer. Input
    /// that was not acknowledged to its peer is lost to nobody.
    #[must_use]
    pub fn has_batch(&self, now: Now) -> bool {
        self.gate.has_batch(now)
    }

    pub(super) fn write_syncs(&mut self) {
        let Some(dirty) = self.gate.take_dirty() else { return };
        for id in &dirty {
            if self.live.get(id).is_some_and(|l| l.dirty) {
                self.write_sync(*id);
            }
        }
        self.gate.keep_list(dirty);
    }

    /// Tells how far a session has moved. Returns the position behind it.
    pub(super) fn write_sync(&mut self, id: SessionId) -> LogPosition {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get_mut(&id)) else {
            return self.gate.end();
        };
        live.dirty = false;
        let sync = Sync {
            session: id,
            established: live.established,
            out_acked: live.peer.una().min(s.out_sendable()) as u32,
            // No window is larger: whatever its ends say, it is told by its low half.
            in_edge: live.peer.rcv_adv().min(s.in_end() + MOST_WINDOW) as u32,
            window: live.peer.window(),
            ts_recent: live.peer.time.recent(),
            ts_value: live.peer.time.value(),
        };
        self.write(0, |out| sync.encode(out))
    }

    /// Appends records to the log and applies them: master and replica compute the same store.
    pub(super) fn write(&mut self, payload: usize, encode: impl FnOnce(&mut Vec<u8>)) -> LogPosition {
        self.gate.append(self.clock, &mut self.store, payload, encode)
    }

    /// Hot standby: the next part of the trace of the program's life. What is written to the log later leaves no sooner than the
    /// replica has this.
    ///
    /// # Panics
    /// This member writes no log now.
    pub fn write_trace(&mut self, now: Now, life: u64, at: u64, bytes: &[u8], part: record::TracePart) {
        assert!(self.gate.serves(), "only a master that serves writes the log");
        self.clock = now;
        self.write(0, |out| record::encode_trace(life, at, bytes, part, out));
    }

    /// Whether the replica is of the version before, which knows no causes of outgoing sessions.
    pub fn set_plain_log(&mut self, plain: bool) {
        self.gate.set_without_causes(plain);
    }

    pub(super) fn write_cause(&mut self, id: SessionId, cause: Option<Cause>) -> LogPosition {
        let end = self.gate.append_cause(self.clock, &mut self.store, id, cause);
        self.pair_turns(id);
        end
    }

    /// Whether the replica is of a version that knows no options.
    pub fn set_log_without_options(&mut self, without: bool) {
        self.gate.set_without_options(without);
    }

    /// Whether the replica is of a version that knows no data of the application.
    pub fn set_log_without_data(&mut self, without: bool) {
        self.gate.set_without_data(without);
    }

    /// The application has set an option of a connection's socket.
    pub(super) fn option_set(&mut self, channel: u32, handle: u32, level: u8, name: u8, value: &[u8]) {
        let Some(id) = self.session_of(channel, handle).filter(|_| self.gate.serves()) else { return };
        let mut run = Vec::new();
        options::append(&mut run, level, name, value);
        if options::get(self.store.options(id), level, name) != options::get(&run, level, name) {
            self.gate.append_options(self.clock, &mut self.store, id, &run);
        }
    }

    pub(super) fn mark_dirty(&mut self, now: Now, id: SessionId) {
        let live = self.live.get_mut(&id).expect("a live session");
        let listed = std::mem::replace(&mut live.dirty, true);
        self.gate.mark_dirty(now, id, listed);
    }

    /// The replica has stored the log up to `position`.
    pub fn replica_stored(&mut self, now: Now, position: u64) {
        self.gate.stored(LogPosition(position));
        self.release_stored(now);
    }

    /// How many packets wait for the replica.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.gate.waiting()
    }

    /// Log position that the replica is known to have.
    #[must_use]
    pub fn replica_position(&self) -> u64 {
        self.gate.acked().0
    }

    /// From now on nothing leaves without the replica's acknowledgement, which so far reaches `position`.
    pub fn hold_for_replica(&mut self, position: u64) {
        self.gate.hold_for_replica(LogPosition(position));
        for live in self.live.values_mut() {
            live.alone = false;
            live.in_positions.forget();
            live.out_positions.forget();
        }
    }

    /// The replica was heard: with `durability = "async"` nothing waits for it until then. From then on everything does: this
    /// master may have been paused or cut off, and the replica be master now.
    pub fn replica_heard(&mut self, now: Now, until: Now) {
        if self.gate.heard(until) {
            self.release_stored(now);
        }
    }

    /// No replica any more, and leave to go on alone.
    pub fn go_solo(&mut self, now: Now) {
        self.gate.go_solo(self.handshakes.first_unused());
        self.release_stored(now);
    }

    /// Whether releases wait for a replica.
    #[must_use]
    pub fn needs_replica(&self) -> bool {
        self.gate.needs_replica()
    }

    /// A fenced master releases nothing at all.
    pub fn set_fenced(&mut self, now: Now, fenced: bool) {
        self.gate.set_fenced(fenced);
        self.release_stored(now);
        self.answer_kept(now);
    }

    /// The replica does not keep up, and the log may not grow by what can wait: input that comes now is dropped, but for a
    /// little, and its peer sends it again; output that no hook announced stays in its queue. What hooks announce is stopped by them.
    pub fn set_overloaded(&mut self, now: Now, overloaded: bool) {
        let deferred = self.gate.set_overloaded(overloaded);
        if deferred.is_empty() {
            return;
        }
        self.clock = now;
        deferred.into_iter().for_each(|session| self.judge_held(now, session));
    }

    /// The numbers of all sessions, for a snapshot in steps.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionId> {
        self.store.iter().map(|s| s.open.session).collect()
    }

    /// As a backup: forget the store, a snapshot begins.
    pub fn replica_reset(&mut self) {
        assert!(self.gate.mode() == Mode::Passive, "only a backup takes a snapshot");
        self.store.clear();
    }

    /// As a backup: applies a batch of the master's log.
    ///
    /// # Errors
    /// The log does not fit the store; it needs a new snapshot.
    pub fn replica_apply(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        assert!(self.gate.mode() == Mode::Passive, "I3: a master follows no log");
        self.store.apply_batch(bytes)
    }

    /// As a master: the records from which an empty store computes this one, up to [`Self::log_end`].
    pub fn snapshot(&mut self, out: &mut Vec<u8>) {
        self.write_syncs();
        self.values().iter().for_each(|key| self.snapshot_value(key, out));
        self.store.iter().for_each(|s| self.snapshot_session(s.open.session, out));
    }

    /// The keys of all values of the service, for a snapshot in steps.
    #[must_use]
    pub fn values(&self) -> Vec<Box<[u8]>> {
        self.store.keys_after(&[]).map(Box::from).collect()
    }

    /// A value's part of a snapshot, if there still is one.
    pub fn snapshot_value(&self, key: &[u8], out: &mut Vec<u8>) {
        self.gate.snapshot_value(&self.store, key, out);
    }

    /// A session's part of that. What is to be said of it beside is to be in the log before.
    pub fn snapshot_session(&self, id: SessionId, out: &mut Vec<u8>) {
        self.gate.snapshot(&self.store, id, out);
    }

    /// No record takes anything back: a session ends in the log, and begins anew as these records say. What belongs to what is
    /// as it was.
    pub(super) fn tell_anew(&mut self, id: SessionId, records: &[u8]) -> LogPosition {
        let with_causes = [&[id], self.store.caused_by(id)].concat();
        let causes: Vec<_> = with_causes.iter().filter_map(|id| Some((*id, self.store.get(*id)?.cause))).collect();
        let options = self.store.options(id).to_vec();
        let data = self.store.data(id).map(|data| Change::Checkpoint { session: id, data: data.into() });
        self.write(0, |out| {
            record::encode_end(id, EndReason::Swept, out);
            out.extend_from_slice(records);
        });
        if let Some((data, s)) = data.zip(self.store.get(id)) {
            let entry = s.committed();
            self.gate.append_commit(self.clock, &mut self.store, &[entry], &[data]);
        }
        if !options.is_empty() {
            self.gate.append_options(self.clock, &mut self.store, id, &options);
        }
        causes
            .into_iter()
            .filter(|(_, cause)| cause.is_some())
            .fold(self.gate.end(), |_, (id, cause)| self.write_cause(id, cause))
    }
}
