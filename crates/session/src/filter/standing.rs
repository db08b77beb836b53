//! Hot standby: the program that takes over has lived behind the master's, and has its connections already. Each session goes on
//! where that program stands, and not where turns ended.

use super::{Filter, Mode};
use crate::tuple::{FourTuple, SessionId};

/// Where a program that followed another one stands with a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// The ends of the connection.
    pub tuple: FourTuple,
    /// It has read the input before this offset.
    pub read: u64,
    /// It has made the output before this offset.
    pub written: u64,
    /// The end of that output. The log may not have what was written in a turn that was not over.
    pub tail: Vec<u8>,
    /// Where the trace was when the program got it.
    pub since: u64,
    /// It has ended its output.
    pub shut: bool,
    /// It has closed the connection.
    pub closed: bool,
}

impl Filter {
    /// Before [`Self::take_over`]: these sessions go on where the program stands with them. A session that cannot go on from there
    /// is torn. Returns how many go on.
    ///
    /// # Panics
    /// This member is master already.
    pub fn stand(&mut self, connections: &[Standing]) -> usize {
        assert!(self.gate.mode() == Mode::Passive, "only a backup takes over");
        self.store.drop_uncommitted();
        self.standing.clear();
        for standing in connections {
            let Some(id) = self.store.find(&standing.tuple) else { continue };
            let before = self.store.get(id).map(|s| (s.in_done, s.out_base));
            if self.store.stand(id, standing) {
                // In the middle of a turn: what it has read nobody else has, if it dies before it has answered.
                self.standing.insert(id, before != Some((standing.read, standing.written)));
            } else {
                self.store.tear(id);
            }
        }
        self.standing.len()
    }

    /// Until its next turn ends nobody but the program knows the state of such a session.
    pub(super) fn tear_mid_turn(&mut self) {
        let mid_turn = self.standing.iter().filter(|(_, mid_turn)| **mid_turn);
        for (id, _) in mid_turn {
            self.store.tear(*id);
        }
    }

    /// Whether the program that takes over has this session already.
    #[must_use]
    pub fn stands(&self, id: SessionId) -> bool {
        self.standing.contains_key(&id)
    }
}
