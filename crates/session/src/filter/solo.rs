//! What a master released since it went on by itself, until its replica holds all of that: the partner may have gone on by
//! itself, too, and then nobody knows what the peers of these sessions have heard (I7).

use crate::record::Open;
use crate::tuple::SessionId;

/// How a session is named to the partner: its number, which is the same on both sides of a fork, and its initial sequence
/// numbers, for either side may have given a number to a new session.
const NAME: usize = 12;

fn name(open: &Open) -> [u8; NAME] {
    let mut name = [0; NAME];
    name[..4].copy_from_slice(&open.session.to_le_bytes());
    name[4..8].copy_from_slice(&open.isn_in.0.to_le_bytes());
    name[8..].copy_from_slice(&open.isn_out.0.to_le_bytes());
    name
}

/// The numbers of the sessions that are named, and the names.
pub(super) fn named(names: &[u8]) -> impl Iterator<Item = (SessionId, &[u8])> {
    names.chunks_exact(NAME).map(|name| (SessionId::from_le_bytes([name[0], name[1], name[2], name[3]]), name))
}

/// Whether this is the session's name.
pub(super) fn is_name(open: &Open, given: &[u8]) -> bool {
    name(open)[..] == *given
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Solo {
    /// The number of the first session that the other side does not have; None: the replica holds all that was released.
    since: Option<SessionId>,
    /// Names of sessions that ended meanwhile, after something was released for them.
    ended: Vec<u8>,
}

impl Solo {
    /// A member that was by itself before has been so since then.
    pub fn begin(&mut self, first: SessionId) {
        self.since.get_or_insert(first);
    }

    pub fn is_on(&self) -> bool {
        self.since.is_some()
    }

    /// Whether the other side has this session, too.
    pub fn shares(&self, id: SessionId) -> bool {
        // Numbers may have begun anew.
        self.since.is_some_and(|since| (id.wrapping_sub(since) as i32) < 0)
    }

    /// A session ended for which something was released.
    pub fn ended(&mut self, open: &Open) {
        if self.shares(open.session) {
            self.ended.extend_from_slice(&name(open));
        }
    }

    /// The names of those that ended and of these, which have not, as far as the other side has them.
    pub fn names<'a>(&self, open: impl Iterator<Item = &'a Open>) -> Vec<u8> {
        let mut names = self.ended.clone();
        open.filter(|open| self.shares(open.session)).for_each(|open| names.extend_from_slice(&name(open)));
        names
    }
}
