//! Hot standby: the program that takes over has lived behind the master's, and has its connections already. Each session goes on
//! where that program stands, and not where turns ended.

use super::{Filter, Mode};
use crate::standing::Standing;
use crate::store::Session;
use crate::tuple::{BySession, SessionId};

impl Filter {
    /// Before [`Self::take_over`]: a program takes over that has followed another one. These sessions go on where it stands with
    /// them. A session that cannot go on from there is torn. Returns how many go on.
    ///
    /// # Panics
    /// This member is master already.
    pub fn stand(&mut self, connections: &[Standing]) -> usize {
        assert!(self.gate.mode() == Mode::Passive, "only a backup takes over");
        self.store.drop_uncommitted();
        let mut all = BySession::default();
        for standing in connections {
            let Some(id) = self.store.find(&standing.tuple) else { continue };
            let before = self.store.get(id).map(|s| (s.in_done, s.out_base));
            if self.store.stand(id, standing) {
                // In the middle of a turn: what it has read nobody else has, if it dies before it has answered.
                all.insert(id, before != Some((standing.read, standing.written)));
            } else {
                self.store.tear(id);
            }
        }
        let going_on = all.len();
        self.standing = Some(all);
        going_on
    }

    /// Until its next turn ends nobody but the program knows the state of such a session.
    pub(super) fn tear_mid_turn(&mut self) {
        for (id, _) in self.standing.iter().flatten().filter(|(_, mid_turn)| **mid_turn) {
            self.store.tear(*id);
        }
    }

    /// Whether the program that takes over has this session already.
    #[must_use]
    pub fn stands(&self, id: SessionId) -> bool {
        self.standing.as_ref().is_some_and(|all| all.contains_key(&id))
    }

    /// A program takes over that has followed another one, and that lacks this session, which is in the middle of something. Given
    /// to it as a new connection the session would go on wrongly. One that nobody has used yet is new to it in fact.
    pub(super) fn is_lacking(&self, s: &Session) -> bool {
        let used = s.in_done > 0 || s.out_done > 0 || self.is_outgoing(&s.open.tuple);
        self.standing.is_some() && s.established && !s.closed && used && !self.stands(s.open.session)
    }
}
