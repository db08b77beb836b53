//! The application's data: what it says that it keeps of a session, and values of the service as a whole.

use super::{Filter, Mode};
use crate::data;
use crate::tuple::SessionId;
use crate::Now;

/// Why data is not taken, or not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The process has no such session (any more).
    NoSession,
    /// This member is not the master.
    NotMaster,
    /// Longer than [`data::MAX_VALUE`], or a key that is empty or longer than [`data::MAX_KEY`].
    TooLong,
    /// There is no such value.
    NoValue,
    /// There is no room for it among the data of the service.
    Full,
    /// The turn has more than [`data::MAX_TURN`].
    TurnFull,
}

impl Filter {
    /// `tcpr_checkpoint`: what the application keeps of a session. With the thread's turn it is in the log, and with it all input
    /// is done that the process had read of this session when it said so. To be called when all that the process told before was
    /// handled.
    ///
    /// # Errors
    /// Nothing has changed.
    pub fn checkpoint(&mut self, channel: u32, thread: u32, handle: u32, data: &[u8]) -> Result<(), Refused> {
        if self.gate.mode() == Mode::Passive {
            return Err(Refused::NotMaster);
        }
        if data.len() > data::MAX_VALUE {
            return Err(Refused::TooLong);
        }
        let session = self.session_of(channel, handle).ok_or(Refused::NoSession)?;
        // What it takes the place of is there until the turn ends, but is not in its way.
        let before = self.kept(session).map_or(0, |before| data::cost(before.len()));
        self.has_room(data::cost(data.len()), before)?;
        let thread = self.turn_of(channel, thread);
        match self.processes.turns.checkpoint(thread, session, data) {
            true => Ok(()),
            false => Err(Refused::TurnFull),
        }
    }

    /// `tcpr_restore`: what the application has said last that it keeps of a session.
    ///
    /// # Errors
    /// The process has no such session.
    pub fn restore_data(&self, channel: u32, handle: u32) -> Result<Option<&[u8]>, Refused> {
        let session = self.session_of(channel, handle).ok_or(Refused::NoSession)?;
        Ok(self.kept(session))
    }

    /// `tcpr_put` and `tcpr_delete` (None): with the thread's turn it is in the log. As for [`Self::checkpoint`].
    ///
    /// # Errors
    /// Nothing has changed.
    pub fn put(&mut self, channel: u32, thread: u32, key: &[u8], value: Option<&[u8]>) -> Result<(), Refused> {
        if self.gate.mode() == Mode::Passive {
            return Err(Refused::NotMaster);
        }
        if key.is_empty() || key.len() > data::MAX_KEY || value.is_some_and(|value| value.len() > data::MAX_VALUE) {
            return Err(Refused::TooLong);
        }
        let cost = |value: &[u8]| data::cost(key.len() + value.len());
        let before = self.get(channel, thread, key).map(cost);
        match value {
            Some(value) => self.has_room(cost(value), before.unwrap_or(0))?,
            // It gives room when the turn ends.
            None => before.map(|_| ()).ok_or(Refused::NoValue)?,
        }
        let thread = self.turn_of(channel, thread);
        match self.processes.turns.put(thread, key, value) {
            true => Ok(()),
            false => Err(Refused::TurnFull),
        }
    }

    /// `tcpr_get`: the value under a key, as the last turn that is over has left it, or as the process itself has put it since.
    pub fn get(&mut self, channel: u32, thread: u32, key: &[u8]) -> Option<&[u8]> {
        if self.processes.turns.has_put(channel, key) {
            // Whatever follows from it counts no sooner than it does.
            let thread = self.turn_of(channel, thread);
            return self.processes.turns.find_put(thread, key).flatten();
        }
        match self.processes.turns.queued_value(key) {
            // The commits of a member that hands over wait.
            Some(queued) => queued,
            None => self.store.value(key),
        }
    }

    /// `tcpr_iterate`: the next key behind this one that [`Self::get`] finds.
    #[must_use]
    pub fn next_key(&self, channel: u32, after: &[u8]) -> Option<Vec<u8>> {
        let mut after = after;
        loop {
            let stored = self.store.keys_after(after).next();
            let put = self.processes.turns.next_put(channel, after);
            match (stored, put) {
                (Some(stored), Some((put, _))) if stored < put => return Some(stored.to_vec()),
                (_, Some((put, true))) => after = put,
                (_, Some((put, false))) => return Some(put.to_vec()),
                (stored, None) => return stored.map(<[u8]>::to_vec),
            }
        }
    }

    /// It is this time: the application's data may be all that is heard of it.
    pub fn at(&mut self, now: Now) {
        self.processes.turns.at(now);
    }

    /// Whether data of this cost has room where it takes the place of what costs so much.
    fn has_room(&self, cost: u64, before: u64) -> Result<(), Refused> {
        let uncommitted = self.processes.turns.uncommitted_data();
        // What takes no more room than before is taken, though the room was made smaller. What is not committed has a bound, too.
        if cost <= before && uncommitted + cost <= self.config.data_bytes.max(data::MAX_TURN) {
            return Ok(());
        }
        let all = self.store.data_cost() + uncommitted;
        match all + cost - before <= self.config.data_bytes {
            true => Ok(()),
            false => Err(Refused::Full),
        }
    }

    fn kept(&self, session: SessionId) -> Option<&[u8]> {
        let turns = &self.processes.turns;
        turns.uncommitted_checkpoint(session).or_else(|| turns.queued_checkpoint(session)).or_else(|| self.store.data(session))
    }
}
