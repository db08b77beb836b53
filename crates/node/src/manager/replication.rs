//! The log on its way from the master to the backup: shipping it, the snapshot that comes before it, and following it.

use std::collections::VecDeque;
use std::time::Duration;

use tcpr_session::filter::Filter;
use tcpr_session::record;
use tcpr_session::role::Epoch;
use tcpr_session::tuple::SessionId;
use tcpr_session::Now;

use super::link::{PartnerLink, OUTBOX};
use super::local_record::LocalRecord;
use crate::channel::ring;
use crate::link::Message;

/// Longest piece of the log, or of a snapshot, in one message.
const PIECE: usize = 256 << 10;
/// Output waits for the replica from when no more of the log than this is under way to it.
const CAUGHT_UP: u64 = 256 << 10;
/// It waits all the same this long after the snapshot: the log is written faster than the replica stores it.
const CATCH_UP: Duration = Duration::from_secs(10);
/// The protocol version since which a snapshot may come in steps.
const SNAPSHOT_IN_STEPS: u16 = 2;
/// The protocol version since which a member that yielded says for which sessions it had released anything alone.
const ALONE: u16 = 2;
/// A snapshot goes in steps of so many sessions, or bytes: packets and heartbeats do not wait for it.
const STEP: usize = 256;
/// Names of sessions in one message: what they cost to hear keeps nobody waiting for long.
const NAMES: usize = 12 * 2048;

/// The log is late if it was written so long ago, and more than [`LATE_BYTES`] of it is not stored. It is far ahead in any
/// case if more than [`FAR`] is not, together with what was announced and will be in it. Four times or twice as much,
/// respectively, stops everybody who writes: what is kept for the replica beyond that is what the rings of the processes hold.
const LATE: Duration = Duration::from_millis(300);
const LATE_BYTES: u64 = 1 << 20;
const FAR: u64 = 16 << 20;
/// A buffer that a burst has made larger than this gives its memory back once it is empty.
const KEEP: usize = 4 << 20;
/// When each so much of the log was written is noted.
const MARK: u64 = 64 << 10;

/// What the log goes through: it comes from the filter, is noted in the local record, and goes to the link.
pub(super) struct Way<'a> {
    pub(super) epoch: Epoch,
    pub(super) filter: &'a mut Filter,
    pub(super) record: &'a mut LocalRecord,
    pub(super) link: &'a mut PartnerLink,
}

/// How much those who write the log are held back. Pure.
#[derive(Default)]
struct Pressure {
    /// Log positions, and when they were reached.
    marks: VecDeque<(u64, Now)>,
    value: u32,
}

impl Pressure {
    /// The log ends at `end`, and `to_come` more bytes will be in it soon. The replica has stored it up to `stored` (`None`: the
    /// log is not shipped).
    fn update(&mut self, now: Now, end: u64, to_come: u64, stored: Option<u64>) {
        let Some(stored) = stored else {
            *self = Pressure::default();
            return;
        };
        while self.marks.front().is_some_and(|mark| mark.0 <= stored) {
            self.marks.pop_front();
        }
        while self.marks.back().is_some_and(|mark| mark.0 > end) {
            self.marks.pop_back();
        }
        if end > self.marks.back().map_or(stored, |mark| mark.0) + MARK {
            self.marks.push_back((end, now));
        }
        let late = self.marks.front().is_some_and(|(_, at)| now > *at + LATE);
        let behind = end.saturating_sub(stored);
        let far = behind + to_come;
        self.value = if far > 2 * FAR || late && behind > 4 * LATE_BYTES {
            ring::STOP
        } else if far > FAR || late && behind > LATE_BYTES {
            ring::EASE
        } else {
            0
        };
    }
}

/// A snapshot on its way to the partner.
struct Snapshot {
    begun: Now,
    /// Log position that it stands for, once all of it was sent.
    position: Option<u64>,
    /// The sessions that are yet to be sent, as they are when their turn comes: the log that was written until then goes
    /// before them, and the replica passes over what it says of sessions that it does not have.
    left: Vec<SessionId>,
    /// The keys of the program's values, likewise. They come first.
    values: Vec<Box<[u8]>>,
    /// When the log behind it may be under way no more.
    catch_up_until: Option<Now>,
}

impl Snapshot {
    /// Whether a replica that has stored the log up to here is complete, and so near the end of the log that output may wait
    /// for it.
    fn is_complete(&mut self, now: Now, stored: u64, end: u64) -> bool {
        if self.position.is_none_or(|position| stored < position) {
            return false;
        }
        let behind = end.saturating_sub(stored);
        behind <= CAUGHT_UP || now >= *self.catch_up_until.get_or_insert(now + CATCH_UP)
    }
}

/// The replication of one member: it ships the log as master, and follows it as backup.
#[derive(Default)]
pub(super) struct Replication {
    /// As master: the log is shipped over the link.
    shipping: bool,
    /// The role machine has asked for a snapshot, and the takeover has yet to begin.
    postponed: bool,
    snapshot: Option<Snapshot>,
    /// Empty; kept for its memory.
    fresh: Vec<u8>,
    /// Log that was taken and not given to the link, from `batch_at` on, behind the first `batch_sent` bytes.
    batch: Vec<u8>,
    batch_sent: usize,
    batch_at: u64,
    pressure: Pressure,

    /// As backup: the snapshot is being received.
    receiving: bool,
    /// The epoch whose log is followed.
    followed: Option<Epoch>,
    /// The master says that we are paired; we say so when its epoch is on our disk.
    paired_in: Option<Epoch>,
    /// How far the log is stored: here as a backup; as a master, by the replica that is being made.
    stored: u64,

    /// No longer master: whose history goes on, and the names of the sessions for which we had released anything alone; until
    /// that member has a new replica in us.
    alone: Option<(Epoch, Vec<u8>)>,
}

/// The log that came does not go on where the last of it ended.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a gap in the log: {stored} stored, {came} came")]
pub(super) struct Gap {
    stored: u64,
    came: u64,
}

/// As master.
impl Replication {
    /// Takes the log that was written.
    fn collect(&mut self, way: &mut Way<'_>) {
        let position = way.filter.take_batch(&mut self.fresh);
        way.record.note(way.filter.store(), &self.fresh);
        if self.shipping {
            if self.batch.is_empty() {
                self.batch_at = position;
                std::mem::swap(&mut self.batch, &mut self.fresh);
            } else {
                self.batch.extend_from_slice(&self.fresh);
            }
        }
        empty(&mut self.fresh);
    }

    /// Gives the log to the link as long as no more than this waits there.
    fn send_log(&mut self, way: &mut Way<'_>, most: usize) {
        for piece in pieces(&self.batch[self.batch_sent..]) {
            if way.link.waiting().is_none_or(|waiting| waiting >= most) {
                break;
            }
            let position = self.batch_at + self.batch_sent as u64;
            way.link.send(&Message::Records { epoch: way.epoch, position, bytes: piece });
            self.batch_sent += piece.len();
        }
        if self.batch_sent == self.batch.len() {
            self.batch_sent = 0;
            empty(&mut self.batch);
        } else if self.batch_sent > FAR as usize / 4 {
            self.batch.drain(..self.batch_sent);
            self.batch_at += std::mem::take(&mut self.batch_sent) as u64;
        }
    }

    /// Sends the log that was written, if it is time and the link takes it.
    pub(super) fn ship_if_due(&mut self, now: Now, way: &mut Way<'_>) {
        if way.filter.log().has_batch(now) {
            self.collect(way);
        }
        self.send_log(way, OUTBOX);
    }

    /// The same, whether anybody waits for it or not.
    pub(super) fn ship(&mut self, way: &mut Way<'_>) {
        self.collect(way);
        self.send_log(way, usize::MAX);
    }

    /// Whether the link has room for what waits here: nothing else wakes the loop for it.
    pub(super) fn has_more_to_send(&self, link: &PartnerLink) -> bool {
        let snapshot = self.snapshot.as_ref().is_some_and(|s| s.position.is_none());
        (self.unsent() > 0 || snapshot) && link.has_room()
    }

    /// Bytes of the log that were taken and not given to the link.
    fn unsent(&self) -> usize {
        self.batch.len() - self.batch_sent
    }

    /// Those who write the log wait where it is far ahead of the replica: the link is as fast as it is. Returns how much they
    /// are to be held back if that has changed.
    pub(super) fn press(&mut self, now: Now, filter: &Filter) -> Option<u32> {
        let end = filter.log().written();
        // While the replica is not complete nothing waits for it, but what the link does not take stays here.
        let taken = if self.unsent() > 0 { self.batch_at + self.batch_sent as u64 } else { end };
        let stored = if filter.log().needs_replica() { filter.log().acknowledged() } else { taken };
        let before = self.pressure.value;
        self.pressure.update(now, end, filter.announced(), self.shipping.then_some(stored));
        Some(self.pressure.value).filter(|value| *value != before)
    }

    /// How much applications are held back.
    pub(super) fn pressure(&self) -> u32 {
        self.pressure.value
    }

    /// Begins to ship the log, with a snapshot of the store before it.
    pub(super) fn begin(&mut self, now: Now, way: &mut Way<'_>) {
        let left = way.filter.store().sessions();
        log::info!(sessions = left.len(); "sending a snapshot");
        way.link.send(&Message::SnapshotBegin { epoch: way.epoch, position: way.filter.log().written() });
        self.begin_at(now, way.filter.log().written(), left, way.filter.store().keys_after(&[]).map(Box::from).collect());
        if !way.link.speaks(SNAPSHOT_IN_STEPS) {
            // To this partner it stands for the log position of its beginning: all of it at once.
            while self.snapshot_step(way, 0) {}
        }
    }

    /// The snapshot stands for the log up to here: what was stored of another one says nothing.
    fn begin_at(&mut self, now: Now, position: u64, left: Vec<SessionId>, values: Vec<Box<[u8]>>) {
        self.shipping = true;
        self.stored = position;
        self.snapshot = Some(Snapshot { begun: now, position: None, left, values, catch_up_until: None });
    }

    /// How much of a log that ends here the replica has yet to store. `acknowledged`: how far it has, once output waits for it.
    pub(super) fn behind(&self, end: u64, acknowledged: Option<u64>) -> u64 {
        end.saturating_sub(acknowledged.unwrap_or(self.stored))
    }

    /// Goes on with a snapshot where the link has room for it.
    pub(super) fn go_on_with_snapshot(&mut self, way: &mut Way<'_>) {
        // The log that was written goes before it. Where more is written than the link takes there is always some, and the
        // snapshot has as much of the link as the log.
        let log = self.unsent();
        if self.has_more_to_send(way.link) && log as u64 <= 8 * LATE_BYTES {
            self.snapshot_step(way, log);
        }
    }

    /// Sends the next part of a snapshot, if one is under way, of so many bytes at least. Returns whether there is more.
    fn snapshot_step(&mut self, way: &mut Way<'_>, least: usize) -> bool {
        if self.snapshot.as_ref().is_none_or(|snapshot| snapshot.position.is_some()) {
            return false;
        }
        self.ship(way);
        let (epoch, position) = (way.epoch, way.filter.log().written());
        let Some(snapshot) = &mut self.snapshot else { return false };
        let mut bytes = Vec::new();
        for _ in 0..STEP {
            if bytes.len() >= least.max(PIECE) {
                break;
            }
            if let Some(key) = snapshot.values.pop() {
                way.filter.snapshot_value(&key, &mut bytes);
                continue;
            }
            let Some(session) = snapshot.left.pop() else { break };
            way.filter.snapshot_session(session, &mut bytes);
        }
        let more = !snapshot.left.is_empty() || !snapshot.values.is_empty();
        if !more {
            snapshot.position = Some(position);
        }
        for piece in pieces(&bytes) {
            way.link.send(&Message::Records { epoch, position, bytes: piece });
        }
        if !more {
            way.link.send(&Message::SnapshotEnd { epoch, position });
        }
        more
    }

    /// The log is shipped in this moment, so that acknowledgements of it count.
    pub(super) fn ships(&self) -> bool {
        self.shipping
    }

    /// The replica that is being made has stored this much. Returns whether it is complete now: from then on output may wait
    /// for it.
    pub(super) fn caught_up(&mut self, now: Now, stored: u64, end: u64) -> bool {
        self.stored = stored;
        let Some(snapshot) = self.snapshot.take_if(|snapshot| snapshot.is_complete(now, stored, end)) else { return false };
        let behind = end.saturating_sub(stored);
        let ms = (now - snapshot.begun).as_millis() as u64;
        log::info!(ms, behind; "the replica is complete");
        true
    }

    /// A snapshot is asked for, and has to wait for the takeover.
    pub(super) fn postpone(&mut self) {
        self.postponed = true;
    }

    /// Whether a snapshot was asked for and had to wait.
    pub(super) fn was_postponed(&mut self) -> bool {
        std::mem::take(&mut self.postponed)
    }

    /// The log of an epoch that is over, or of a connection that is lost, goes nowhere.
    pub(super) fn stop(&mut self) {
        self.shipping = false;
        self.postponed = false;
        self.snapshot = None;
        empty(&mut self.batch);
        self.batch_sent = 0;
        self.receiving = false;
        self.paired_in = None;
    }
}

/// As backup.
impl Replication {
    /// How far the log is stored.
    pub(super) fn stored(&self) -> u64 {
        self.stored
    }

    /// Whether a snapshot is being received.
    pub(super) fn is_receiving(&self) -> bool {
        self.receiving
    }

    pub(super) fn follows(&self, epoch: Epoch) -> bool {
        self.followed == Some(epoch)
    }

    /// A snapshot begins: what follows it is the log of this epoch.
    pub(super) fn follow(&mut self, epoch: Epoch, position: u64) {
        self.receiving = true;
        self.followed = Some(epoch);
        self.stored = position;
    }

    /// All of the snapshot has come.
    pub(super) fn snapshot_received(&mut self, position: u64) {
        self.receiving = false;
        self.stored = position;
    }

    /// So many bytes of records came, from this position on. Returns up to where the log is stored with them; `None`: they are
    /// of a snapshot that is not complete.
    pub(super) fn received(&mut self, position: u64, length: usize) -> Result<Option<u64>, Gap> {
        if self.receiving {
            return Ok(None);
        }
        if position != self.stored {
            return Err(Gap { stored: self.stored, came: position });
        }
        self.stored = self.stored.wrapping_add(length as u64);
        Ok(Some(self.stored))
    }

    /// The master says that the pair is complete.
    pub(super) fn paired(&mut self, epoch: Epoch) {
        self.paired_in = Some(epoch);
    }

    /// The epoch of a pair, once it is on the disk; it is given once.
    pub(super) fn take_paired(&mut self, on_disk: impl FnOnce() -> bool) -> Option<Epoch> {
        self.paired_in.take_if(|_| on_disk())
    }

    /// No log is followed any more.
    pub(super) fn unfollow(&mut self) {
        self.followed = None;
    }

    /// The log of an older epoch than this is followed no more.
    pub(super) fn unfollow_before(&mut self, epoch: Epoch) {
        self.followed.take_if(|followed| *followed < epoch);
    }
}

/// What a master that yielded has to confess.
impl Replication {
    /// This member yields to an epoch, and had released something alone for the sessions with these names.
    pub(super) fn yielded(&mut self, epoch: Epoch, names: Vec<u8>) {
        self.alone = Some((epoch, names));
    }

    /// Tells the partner of it, if it understands. It is told again over the next connection, until it must know.
    pub(super) fn tell_alone(&self, link: &mut PartnerLink) {
        let Some((epoch, names)) = self.alone.as_ref().filter(|_| link.speaks(ALONE)) else { return };
        let mut rest = &names[..];
        loop {
            let (piece, more) = rest.split_at(rest.len().min(NAMES));
            link.send(&Message::Alone { epoch: *epoch, more: more.len() as u64, names: piece });
            rest = more;
            if rest.is_empty() {
                break;
            }
        }
    }

    /// The partner knows, or it is of no interest any more.
    pub(super) fn forget_alone(&mut self) {
        self.alone = None;
    }
}

/// Empties a buffer, and keeps its memory if that is little.
fn empty(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.shrink_to(KEEP);
}

/// Cuts a run of records into pieces that fit a message, between records.
fn pieces(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let mut rest = bytes;
        while !rest.is_empty() && bytes.len() - rest.len() < PIECE {
            let next = record::decode(&mut rest);
            assert!(next.is_ok(), "our own log is well-formed");
        }
        let piece = &bytes[..bytes.len() - rest.len()];
        bytes = rest;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Now {
        Duration::from_millis(n)
    }

    #[test]
    fn writers_are_held_back_by_a_log_that_is_far_ahead_at_once_and_by_one_that_is_late_after_a_while() {
        let mut pressure = Pressure::default();
        let mut after = |now, end, stored| {
            pressure.update(ms(now), end, 0, stored);
            pressure.value
        };
        assert_eq!(after(0, FAR, Some(0)), 0);
        assert_eq!(after(0, FAR + 1, Some(0)), ring::EASE);
        assert_eq!(after(0, 2 * FAR + 1, Some(0)), ring::STOP);
        assert_eq!(after(1, 2 * FAR + 1, None), 0, "nothing is shipped");
        let late = 2 * LATE_BYTES;
        assert_eq!(after(1000, late, Some(0)), 0);
        assert_eq!(after(1300, late, Some(0)), 0);
        assert_eq!(after(1301, late, Some(0)), ring::EASE);
        assert_eq!(after(1301, 3 * late, Some(0)), ring::STOP);
        // The replica has stored what was late; what is under way now is not.
        assert_eq!(after(1302, 3 * late, Some(late)), 0);
        assert_eq!(after(1602, 3 * late, Some(late)), ring::EASE);
    }

    #[test]
    fn writers_are_held_back_by_what_they_announced_before_it_is_in_the_log() {
        let mut pressure = Pressure::default();
        let mut after = |end, to_come, stored| {
            pressure.update(ms(0), end, to_come, stored);
            pressure.value
        };
        assert_eq!(after(FAR, FAR, Some(0)), ring::EASE);
        assert_eq!(after(FAR, FAR + 1, Some(0)), ring::STOP);
        assert_eq!(after(FAR, FAR + 1, Some(FAR)), ring::EASE);
        assert_eq!(after(FAR, FAR, Some(FAR)), 0);
        assert_eq!(after(FAR, 3 * FAR, None), 0, "nothing is shipped");
    }

    #[test]
    fn a_buffer_gives_the_memory_of_a_burst_back() {
        let mut buffer = vec![0; KEEP];
        empty(&mut buffer);
        assert_eq!((buffer.len(), buffer.capacity()), (0, KEEP));
        buffer.resize(3 * KEEP, 0);
        empty(&mut buffer);
        assert!(buffer.is_empty() && buffer.capacity() <= KEEP);
    }

    #[test]
    fn a_replica_is_complete_when_it_has_the_snapshot_and_nearly_all_that_was_written_since() {
        let mut snapshot = Snapshot { begun: ms(0), position: None, left: Vec::new(), values: Vec::new(), catch_up_until: None };
        assert!(!snapshot.is_complete(ms(0), 5000, 5000), "not all of it was sent");
        snapshot.position = Some(5000);
        assert!(!snapshot.is_complete(ms(10), 4999, 4999));
        assert!(snapshot.is_complete(ms(10), 5000, 5000 + CAUGHT_UP));
        // Whoever writes too fast is not waited for for ever.
        let end = 5001 + CAUGHT_UP;
        assert!(!snapshot.is_complete(ms(20), 5000, end));
        assert!(!snapshot.is_complete(ms(10_019), 5000, end));
        assert!(snapshot.is_complete(ms(10_020), 5000, end));
    }

    #[test]
    fn the_log_goes_on_where_it_ended_and_a_snapshot_stands_for_its_end() {
        let mut replication = Replication::default();
        let epoch = Epoch { number: 3, member: 0 };
        replication.follow(epoch, 100);
        assert_eq!(replication.received(70, 50), Ok(None), "a part of the snapshot");
        replication.snapshot_received(200);
        assert_eq!(replication.received(200, 50), Ok(Some(250)));
        let gap = replication.received(251, 1).expect_err("a gap");
        assert_eq!(gap.to_string(), "a gap in the log: 250 stored, 251 came");
        replication.unfollow_before(epoch);
        assert!(replication.follows(epoch));
        replication.unfollow_before(Epoch { number: 4, member: 1 });
        assert!(!replication.follows(epoch));
    }

    #[test]
    fn a_new_replica_has_stored_nothing_of_what_is_written_behind_its_snapshot() {
        let mut replication = Replication::default();
        // As a backup it had stored more than the log that it writes as a master has.
        replication.follow(Epoch { number: 3, member: 0 }, 9000);
        replication.begin_at(ms(0), 500, Vec::new(), Vec::new());
        assert_eq!(replication.behind(700, None), 200);
        assert!(!replication.caught_up(ms(1), 600, 700), "not all of the snapshot was sent");
        assert_eq!(replication.behind(700, None), 100);
        assert_eq!(replication.behind(700, Some(650)), 50);
    }

    #[test]
    fn a_pair_is_told_once_its_epoch_is_on_the_disk() {
        let mut replication = Replication::default();
        let epoch = Epoch { number: 3, member: 0 };
        replication.paired(epoch);
        assert_eq!(replication.take_paired(|| false), None);
        assert_eq!(replication.take_paired(|| true), Some(epoch));
        assert_eq!(replication.take_paired(|| true), None);
    }
}
