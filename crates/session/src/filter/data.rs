//! The application's data: what it says that it keeps of a session.

use super::{Filter, Mode};
use crate::data;
use crate::tuple::SessionId;

/// Why data is not taken, or not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The process has no such session (any more).
    NoSession,
    /// This member is not the master.
    NotMaster,
    /// Longer than [`data::MAX_VALUE`].
    TooLong,
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
        let others = self.store.data_cost() + self.processes.turns.uncommitted_data() - before;
        if others + data::cost(data.len()) > self.config.data_bytes {
            return Err(Refused::Full);
        }
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

    fn kept(&self, session: SessionId) -> Option<&[u8]> {
        self.processes.turns.uncommitted_checkpoint(session).or_else(|| self.store.data(session))
    }
}
