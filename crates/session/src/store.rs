//! The session store: what a prefix of the log computes.
//!
//! Master and replica hold the same type and call the same [`Store::apply`]; the master applies each record as
//! it appends it. That is guarantee I5 by construction.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use crate::data::{self, Change};
use crate::options;
use crate::pooled::{Pool, Pooled};
use crate::record::{self, Adopted, Cause, Committed, Malformed, Open, Record, Sync, MAX_OPEN};
use crate::seq::{self, Seq};
use crate::standing::Standing;
use crate::tuple::{BySession, ByTuple, FourTuple, SessionId};

/// Everything a new master needs to go on with a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Session {
    /// What the handshake settled; its moving fields are zero.
    pub open: Open,
    /// The peer completed the handshake.
    pub established: bool,
    /// Input before this offset is done.
    pub in_done: u64,
    /// Input from `in_done`, in order.
    pub input: Pooled<VecDeque<u8>>,
    /// The peer's FIN stands behind the input.
    pub in_fin: bool,
    /// Input offset up to which window was advertised to the peer.
    pub in_edge: u64,
    /// Output before this offset was acknowledged (one more once our FIN was).
    pub out_acked: u64,
    /// Output before this offset may leave.
    pub out_done: u64,
    /// The output offset that belongs to `in_done`; less than `out_done` in an open response.
    pub out_base: u64,
    /// Output from `out_acked`; what lies past `out_done` awaits its commit.
    pub output: Pooled<VecDeque<u8>>,
    /// The application ended its output at `out_done`.
    pub out_fin: bool,
    /// The application closed the connection.
    pub closed: bool,
    /// The state cannot be known after a crash.
    pub torn: bool,
    /// The peer's last window, unscaled.
    pub window: u16,
    /// The peer's newest timestamp value.
    pub ts_recent: u32,
    /// Our newest timestamp value.
    pub ts_value: u32,
    /// What it is tied to, where it is the application's own; of a peer's: `Unclear`, or nothing.
    pub cause: Option<Cause>,
}

impl Session {
    fn new(open: Open) -> Session {
        Session {
            established: open.established,
            in_done: open.in_done,
            input: Pooled::default(),
            in_fin: false,
            in_edge: open.in_done,
            out_acked: open.out_acked,
            out_done: open.out_acked,
            out_base: open.out_acked,
            output: Pooled::default(),
            out_fin: false,
            closed: false,
            torn: false,
            window: open.window,
            ts_recent: open.ts_recent,
            ts_value: open.ts_value,
            cause: None,
            // What moves lives above; the opening record's copy would only make equal sessions differ.
            open: Open { established: false, window: 0, ts_recent: 0, ts_value: 0, in_done: 0, out_acked: 0, ..open },
        }
    }

    /// Offset behind the last input byte.
    #[must_use]
    pub fn in_end(&self) -> u64 {
        self.in_done + self.input.len() as u64
    }

    /// Highest input offset that an acknowledgement may cover: the FIN counts one.
    #[must_use]
    pub fn in_ackable(&self) -> u64 {
        self.in_end() + u64::from(self.in_fin)
    }

    /// Highest output offset that may leave: the FIN counts one.
    #[must_use]
    pub fn out_sendable(&self) -> u64 {
        self.out_done + u64::from(self.out_fin)
    }

    /// Offset behind the last output byte that is here, committed or not.
    #[must_use]
    pub fn out_end(&self) -> u64 {
        self.out_acked.min(self.out_done) + self.output.len() as u64
    }

    /// The sequence number of an input offset.
    #[must_use]
    pub fn in_seq(&self, offset: u64) -> Seq {
        seq::at(self.open.isn_in, offset)
    }

    /// The sequence number of an output offset.
    #[must_use]
    pub fn out_seq(&self, offset: u64) -> Seq {
        seq::at(self.open.isn_out, offset)
    }

    /// Appends the records from which an empty store computes this session: its part of a snapshot.
    pub(crate) fn snapshot(&self, out: &mut Vec<u8>) {
        self.snapshot_as(true, out);
    }

    /// The same, or of a session that the application has not ended, whatever was said of it.
    fn snapshot_as(&self, ended: bool, out: &mut Vec<u8>) {
        let (s, id) = (self, self.open.session);
        let start = s.out_acked.min(s.out_done);
        Open {
            established: s.established,
            window: s.window,
            ts_recent: s.ts_recent,
            ts_value: s.ts_value,
            in_done: s.in_done,
            out_acked: start,
            ..s.open
        }
        .encode(out);
        if s.established {
            let (a, b) = s.input.as_slices();
            if !a.is_empty() || s.in_fin {
                record::encode_input(id, s.in_done, a, s.in_fin && b.is_empty(), out);
            }
            if !b.is_empty() {
                record::encode_input(id, s.in_done + a.len() as u64, b, s.in_fin, out);
            }
            let (a, b) = s.output.as_slices();
            for (at, part) in [(start, a), (start + a.len() as u64, b)] {
                if !part.is_empty() {
                    record::encode_output(id, at, part, out);
                }
            }
            record::encode_commit(
                &[Committed {
                    session: id,
                    in_done: s.in_done as u32,
                    out_done: s.out_done as u32,
                    // An open response may have begun before what the peer has acknowledged.
                    open: s.out_done - s.out_base,
                    fin: s.out_fin && ended,
                    closed: s.closed && ended,
                    torn: s.torn,
                }],
                false,
                out,
            );
        } else if s.in_edge == s.in_done {
            return;
        }
        Sync {
            session: id,
            established: s.established,
            out_acked: s.out_acked as u32,
            in_edge: s.in_edge as u32,
            window: s.window,
            ts_recent: s.ts_recent,
            ts_value: s.ts_value,
        }
        .encode(out);
    }

    /// The commit that changes nothing.
    pub(crate) fn committed(&self) -> Committed {
        Committed {
            session: self.open.session,
            in_done: self.in_done as u32,
            out_done: self.out_done as u32,
            open: self.out_done - self.out_base,
            fin: self.out_fin,
            closed: self.closed,
            torn: self.torn,
        }
    }

    /// Forgets input from an offset on.
    pub(crate) fn shorten(&mut self, in_end: u64) {
        if let Some(input) = self.input.get_mut_if_any() {
            input.truncate(in_end.saturating_sub(self.in_done) as usize);
        }
        self.input.drop_if_empty();
        self.in_fin = false;
    }
}

/// Why a record does not fit the store: the log is broken and the replica needs a new snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreError {
    /// Not a record at all.
    Malformed,
    /// A session with this number or four-tuple is already here.
    Duplicate(SessionId),
    /// Bytes that do not continue the stream.
    Gap(SessionId),
    /// A commit beyond what is stored, or one that goes back.
    Impossible(SessionId),
}

impl From<Malformed> for StoreError {
    fn from(_: Malformed) -> StoreError {
        StoreError::Malformed
    }
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StoreError::Malformed => f.write_str("a malformed log record"),
            StoreError::Duplicate(s) => write!(f, "session {s} opened twice"),
            StoreError::Gap(s) => write!(f, "bytes of session {s} that do not continue its stream"),
            StoreError::Impossible(s) => write!(f, "a commit of session {s} that cannot be"),
        }
    }
}

impl std::error::Error for StoreError {}

/// The sessions of a service, by number and by four-tuple.
#[derive(Default, Clone, PartialEq, Eq, Debug)]
pub struct Store {
    // Boxed: a map has room for up to twice as many as it holds.
    sessions: BySession<Box<Session>>,
    by_tuple: ByTuple,
    /// The application's own connections that a session has caused.
    caused: BySession<Vec<SessionId>>,
    /// Options that the application has set: most sessions have none.
    options: BySession<Vec<u8>>,
    /// What the application keeps of a session: see [`crate::data`]. Most have nothing.
    data: BySession<Box<[u8]>>,
    /// Values of the service as a whole.
    values: BTreeMap<Box<[u8]>, Box<[u8]>>,
    /// What all of that costs.
    data_cost: u64,
    /// Data that no commit covers yet.
    staged: Vec<Change<Box<[u8]>>>,
    pool: Pool<VecDeque<u8>>,
}

/// Widens the low half of an offset that is less than 2^31 away from `near`.
fn widen(low: u32, near: u64) -> Option<u64> {
    u64::try_from(near as i64 + i64::from(low.wrapping_sub(near as u32) as i32)).ok()
}

impl Store {
    /// An empty store.
    #[must_use]
    pub fn new() -> Store {
        Store::default()
    }

    /// How many sessions it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// A session by number.
    #[must_use]
    pub fn get(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(&id).map(|s| &**s)
    }

    /// Number of the session with these ends.
    #[must_use]
    pub fn find(&self, tuple: &FourTuple) -> Option<SessionId> {
        self.by_tuple.get(tuple)
    }

    /// All sessions, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values().map(|s| &**s)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.sessions.clear();
        self.by_tuple.clear();
        self.caused.clear();
        self.options.clear();
        self.data.clear();
        self.values.clear();
        self.data_cost = 0;
        self.staged.clear();
    }

    /// What the application said last that it keeps of a session.
    #[must_use]
    pub fn data(&self, id: SessionId) -> Option<&[u8]> {
        self.data.get(&id).map(|data| &**data)
    }

    /// A value of the service as a whole.
    #[must_use]
    pub fn value(&self, key: &[u8]) -> Option<&[u8]> {
        self.values.get(key).map(|value| &**value)
    }

    /// Keys behind this one, in the order of their bytes.
    pub fn keys_after(&self, key: &[u8]) -> impl Iterator<Item = &[u8]> {
        self.values.range::<[u8], _>((Bound::Excluded(key), Bound::Unbounded)).map(|(key, _)| &**key)
    }

    /// What the application's data costs: see [`data::cost`].
    #[must_use]
    pub fn data_cost(&self) -> u64 {
        self.data_cost
    }

    /// The options that the application has set on a session's connection: see [`crate::options`].
    #[must_use]
    pub fn options(&self, id: SessionId) -> &[u8] {
        self.options.get(&id).map_or(&[], |run| run)
    }

    /// The application's own connections that this one has caused.
    #[must_use]
    pub fn caused_by(&self, id: SessionId) -> &[SessionId] {
        self.caused.get(&id).map_or(&[], |list| list)
    }

    /// Applies a batch of records.
    ///
    /// # Errors
    /// A record that does not fit; the store then holds what came before it.
    pub fn apply_batch(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        while let Some(record) = record::decode(&mut bytes)? {
            self.apply(record)?;
        }
        Ok(())
    }

    /// Applies one record. Records of unknown sessions other than an opening are passed over: a session may
    /// end on the wire while its last words are still in the log.
    ///
    /// # Errors
    /// The record does not fit.
    pub fn apply(&mut self, record: Record<'_>) -> Result<(), StoreError> {
        match record {
            Record::Open(open) => self.open(open),
            Record::Sync(sync) => self.sync(sync),
            Record::Input { session, offset, bytes, fin } => {
                let Some(s) = self.sessions.get_mut(&session) else { return Ok(()) };
                if s.in_end() as u32 != offset || s.in_fin && !(bytes.is_empty() && fin) {
                    return Err(StoreError::Gap(session));
                }
                if !bytes.is_empty() {
                    s.input.get_or_take(&mut self.pool).extend(bytes);
                }
                s.in_fin |= fin;
                // Nobody sends before the handshake is over; the record that says so may come later.
                s.established = true;
                Ok(())
            }
            Record::Output { session, offset, bytes } => {
                let Some(s) = self.sessions.get_mut(&session) else { return Ok(()) };
                if s.out_end() as u32 != offset || s.out_fin {
                    return Err(StoreError::Gap(session));
                }
                s.output.get_or_take(&mut self.pool).extend(bytes);
                Ok(())
            }
            Record::Data(change) => {
                self.staged.push(change.to_owned());
                Ok(())
            }
            Record::Commit { entries, with_data } => {
                // All or nothing: checked before any is applied.
                for entry in entries {
                    self.check_commit(entry.get())?;
                }
                for entry in entries {
                    self.commit(entry.get());
                }
                if with_data {
                    std::mem::take(&mut self.staged).into_iter().for_each(|change| self.change(change));
                }
                Ok(())
            }
            Record::Adopted(adopted) => self.adopt(adopted),
            Record::Trace { .. } => Ok(()),
            Record::Cause { session, cause } => {
                self.set_cause(session, cause);
                Ok(())
            }
            Record::Options { session, run } => {
                if self.sessions.contains_key(&session) && !run.is_empty() {
                    let all = self.options.entry(session).or_default();
                    options::each(run).for_each(|(level, name, value)| options::set(all, level, name, value));
                }
                Ok(())
            }
            Record::End { session, .. } => {
                self.set_cause(session, None);
                self.options.remove(&session);
                self.forget_data(session);
                if let Some(s) = self.sessions.remove(&session) {
                    self.by_tuple.remove(&s.open.tuple);
                }
                // Another session may have this number one day: what it had caused is nobody's.
                for id in self.caused.remove(&session).unwrap_or_default() {
                    if let Some(s) = self.sessions.get_mut(&id) {
                        s.cause = Some(Cause::Unclear { all: false });
                    }
                }
                Ok(())
            }
        }
    }

    fn change(&mut self, change: Change<Box<[u8]>>) {
        match change {
            Change::Checkpoint { session, data } => {
                self.forget_data(session);
                if self.sessions.contains_key(&session) {
                    self.data_cost += data::cost(data.len());
                    self.data.insert(session, data);
                }
            }
            Change::Put { key, value } => {
                self.forget_value(&key);
                self.data_cost += data::cost(key.len() + value.len());
                self.values.insert(key, value);
            }
            Change::Delete { key } => self.forget_value(&key),
        }
    }

    fn forget_value(&mut self, key: &[u8]) {
        if let Some(value) = self.values.remove(key) {
            self.data_cost -= data::cost(key.len() + value.len());
        }
    }

    fn forget_data(&mut self, id: SessionId) {
        if let Some(data) = self.data.remove(&id) {
            self.data_cost -= data::cost(data.len());
        }
    }

    fn set_cause(&mut self, id: SessionId, cause: Option<Cause>) {
        let Some(s) = self.sessions.get_mut(&id) else { return };
        let before = std::mem::replace(&mut s.cause, cause);
        if let Some(Cause::Of { session, .. }) = before {
            if let Some(list) = self.caused.get_mut(&session) {
                list.retain(|other| *other != id);
                if list.is_empty() {
                    self.caused.remove(&session);
                }
            }
        }
        if let Some(Cause::Of { session, .. }) = cause {
            let list = self.caused.entry(session).or_default();
            list.insert(list.partition_point(|other| *other < id), id);
        }
    }

    fn open(&mut self, open: Open) -> Result<(), StoreError> {
        if open.session == 0 {
            // The number of none.
            return Err(StoreError::Impossible(0));
        }
        if self.sessions.contains_key(&open.session) || self.by_tuple.get(&open.tuple).is_some() {
            return Err(StoreError::Duplicate(open.session));
        }
        self.by_tuple.insert(&open.tuple, open.session);
        self.sessions.insert(open.session, Box::new(Session::new(open)));
        Ok(())
    }

    fn sync(&mut self, sync: Sync) -> Result<(), StoreError> {
        let Some(s) = self.sessions.get_mut(&sync.session) else { return Ok(()) };
        let acked = widen(sync.out_acked, s.out_acked).ok_or(StoreError::Impossible(sync.session))?;
        let edge = widen(sync.in_edge, s.in_end()).ok_or(StoreError::Impossible(sync.session))?;
        if acked > s.out_sendable() {
            return Err(StoreError::Impossible(sync.session));
        }
        if acked > s.out_acked {
            let from = s.out_acked.min(s.out_done);
            s.output.drop_first((acked.min(s.out_done) - from) as usize, &mut self.pool);
            s.out_acked = acked;
        }
        s.in_edge = s.in_edge.max(edge);
        s.established |= sync.established;
        s.window = sync.window;
        s.ts_recent = sync.ts_recent;
        s.ts_value = sync.ts_value;
        Ok(())
    }

    fn check_commit(&self, c: Committed) -> Result<(), StoreError> {
        let Some(s) = self.sessions.get(&c.session) else { return Ok(()) };
        let fits = widen(c.in_done, s.in_done).is_some_and(|n| n >= s.in_done && n <= s.in_end())
            && widen(c.out_done, s.out_done).is_some_and(|n| n >= s.out_done && n <= s.out_end() && n >= c.open);
        if fits {
            Ok(())
        } else {
            Err(StoreError::Impossible(c.session))
        }
    }

    fn commit(&mut self, c: Committed) {
        let Some(s) = self.sessions.get_mut(&c.session) else { return };
        // Checked; but a record may name a session twice.
        let in_done = widen(c.in_done, s.in_done).unwrap_or(0).clamp(s.in_done, s.in_end());
        s.input.drop_first((in_done - s.in_done) as usize, &mut self.pool);
        s.in_done = in_done;
        s.out_done = widen(c.out_done, s.out_done).unwrap_or(0).clamp(s.out_done, s.out_end());
        s.out_base = s.out_done.saturating_sub(c.open);
        s.out_fin |= c.fin;
        s.closed |= c.closed;
        s.torn = c.torn;
        s.established = true;
        // What was read was within the window, whatever the last sync said of it.
        s.in_edge = s.in_edge.max(in_done);
    }

    fn adopt(&mut self, a: Adopted) -> Result<(), StoreError> {
        let Some(s) = self.sessions.get_mut(&a.session) else { return Ok(()) };
        let beyond_end = s.in_fin && a.in_done > s.in_end() || s.out_fin && a.out_done > s.out_end();
        let back = a.in_done < s.in_done || a.out_done < s.out_done || a.out_base > a.out_done;
        let far = a.in_done >> 62 != 0 || a.out_done >> 62 != 0 || a.out_done.saturating_sub(a.out_base) > MAX_OPEN;
        if back || far || beyond_end {
            return Err(StoreError::Impossible(a.session));
        }
        s.input.drop_first((a.in_done - s.in_done).min(s.input.len() as u64) as usize, &mut self.pool);
        s.in_done = a.in_done;
        s.in_edge = s.in_edge.max(a.in_done);
        if a.out_done > s.out_end() {
            s.output = Pooled::default();
            s.out_acked = a.out_done;
        }
        s.out_done = a.out_done;
        s.out_base = a.out_base;
        s.established = true;
        Ok(())
    }

    /// Drops output and data that no commit covers: what a crashed master's last turn left in the log.
    pub fn drop_uncommitted(&mut self) {
        self.staged.clear();
        for s in self.sessions.values_mut() {
            let committed = (s.out_done - s.out_acked.min(s.out_done)) as usize;
            if let Some(output) = s.output.get_mut_if_any() {
                output.truncate(committed);
            }
            s.output.give_back_if_empty(&mut self.pool);
        }
    }

    /// A session goes on where its program stands. False: that cannot be, or more of the output is missing here; then nothing
    /// changes.
    #[must_use]
    pub fn stand(&mut self, id: SessionId, standing: &Standing) -> bool {
        let Standing { read, written, ref tail, shut, closed, .. } = *standing;
        let Some(s) = self.sessions.get_mut(&id) else { return false };
        let missing = written.saturating_sub(s.out_done);
        let has_all = missing <= tail.len() as u64 && (missing == 0 || !s.out_fin && s.out_end() == s.out_done);
        if !(s.in_done..=s.in_end()).contains(&read) || !has_all || s.out_done.saturating_sub(written) > MAX_OPEN {
            return false;
        }
        s.input.drop_first((read - s.in_done) as usize, &mut self.pool);
        s.in_done = read;
        s.in_edge = s.in_edge.max(read);
        if missing > 0 {
            s.output.get_or_take(&mut self.pool).extend(&tail[tail.len() - missing as usize..]);
            s.out_done = written;
        }
        s.out_base = written;
        // Who has accepted it knows that it is open.
        s.established = true;
        s.out_fin |= (shut || closed) && written == s.out_done;
        s.closed |= closed && s.out_fin;
        s.torn = false;
        true
    }

    /// Nobody can know the state of this session.
    pub fn tear(&mut self, id: SessionId) {
        if let Some(s) = self.sessions.get_mut(&id) {
            s.torn = true;
        }
    }

    /// Appends a session's part of a snapshot.
    pub fn snapshot(&self, id: SessionId, out: &mut Vec<u8>) {
        if let Some(s) = self.sessions.get(&id) {
            s.snapshot(out);
        }
    }

    /// The same of a session that the application has not ended, whatever was said of it.
    pub fn snapshot_open(&self, id: SessionId, out: &mut Vec<u8>) {
        if let Some(s) = self.sessions.get(&id) {
            s.snapshot_as(false, out);
        }
    }
}
