//! Outgoing sessions of which it is not known whose they are, and whose they may be.

use std::collections::{BTreeSet, HashMap};

use super::{Among, Owner};
use crate::record::Cause;
use crate::tuple::SessionId;

#[derive(Debug)]
struct Doubt {
    /// Whose it may be; None: anybody's.
    among: Option<Among>,
    /// It was used for more than one.
    shared: bool,
    /// How many peers' sessions had ended that were read from.
    ended: u64,
}

/// What bytes that flow between a session in doubt and some peers' sessions show.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Shown {
    Nothing,
    /// The connection belongs to none of its candidates, so several clients share it.
    Shared,
    /// It is this one's.
    Whose(SessionId),
    /// It is one of these.
    OneOf(Among),
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    unclear: HashMap<SessionId, Doubt>,
    /// How many peers' sessions have ended that were read from.
    ended: u64,
    /// What came to be known while the log did not grow.
    late: Vec<(SessionId, Option<Cause>)>,
}

impl Doubts {
    /// Whose the session may be from now on. Returns the peers' sessions that no session in doubt may belong to any more.
    #[must_use]
    pub fn set(&mut self, id: SessionId, among: Option<Among>, shared: bool) -> Vec<SessionId> {
        let before = self.unclear.insert(id, Doubt { among, shared, ended: self.ended });
        self.cleared(before)
    }

    /// There is no doubt any more. Returns the same.
    #[must_use]
    pub fn forget(&mut self, id: SessionId) -> Vec<SessionId> {
        let before = self.unclear.remove(&id);
        self.cleared(before)
    }

    /// A peer's session that was read from has ended.
    pub fn client_ended(&mut self) {
        self.ended += 1;
    }

    fn cleared(&self, before: Option<Doubt>) -> Vec<SessionId> {
        let may_be = |id: &SessionId| self.unclear.values().filter_map(|d| d.among.as_ref()).any(|among| among.contains_key(id));
        before.and_then(|doubt| doubt.among).into_iter().flatten().map(|(id, _)| id).filter(|id| !may_be(id)).collect()
    }

    /// Whether the session was used for more than one.
    pub fn is_shared(&self, id: SessionId) -> bool {
        self.unclear.get(&id).is_some_and(|d| d.shared)
    }

    /// Whether the session may be anybody's.
    pub fn is_anybodys(&self, id: SessionId) -> bool {
        self.unclear.get(&id).is_some_and(|d| d.among.is_none())
    }

    /// Whose it may be, if it is one of some.
    fn among(&self, id: SessionId) -> Option<&Among> {
        self.unclear.get(&id)?.among.as_ref()
    }

    /// Whether the program had read from this client when the session was opened. True if that is not known.
    pub fn was_read(&self, id: SessionId, client: SessionId) -> bool {
        self.among(id).and_then(|among| among.get(&client).copied()).unwrap_or(true)
    }

    /// Whose it is if it serves more than one of these, and those that it may have been before.
    pub fn shared_by(&self, id: SessionId, others: impl Iterator<Item = SessionId>) -> Among {
        let mut all: Among = others.map(|id| (id, true)).collect();
        all.extend(self.among(id).into_iter().flatten());
        all
    }

    /// The session is one of these: of them, those that it may have been before. `ended`: or one of those that have ended since,
    /// whose bytes the program may still pass on; if all have, it may be used for somebody else now.
    pub fn narrowed(&self, id: SessionId, to: &[SessionId], ended: Option<&impl Fn(SessionId) -> bool>) -> Shown {
        let doubt = self.unclear.get(&id).filter(|d| !d.shared);
        if ended.is_some() && doubt.is_some_and(|d| d.among.is_none() && d.ended < self.ended) {
            return Shown::Nothing;
        }
        let before = doubt.and_then(|d| d.among.as_ref());
        let read = |id: &SessionId| before.and_then(|among| among.get(id).copied()).unwrap_or(true);
        let orphan = |among: &Among| ended.is_some_and(|ended| among.keys().all(|id| ended(*id)));
        let known = |id: &SessionId| before.is_none_or(|among| among.contains_key(id) || among.is_empty() || orphan(among));
        let mut left: Among = to.iter().filter(|id| known(id)).map(|id| (*id, read(id))).collect();
        if let Some(ended) = ended.filter(|_| !left.is_empty()) {
            left.extend(before.into_iter().flatten().filter(|(id, _)| ended(**id)));
        }
        match (to, left.len()) {
            ([], _) => Shown::Nothing,
            (_, 0) => Shown::Shared,
            (_, 1) => Shown::Whose(*left.keys().next().expect("one")),
            _ => Shown::OneOf(left),
        }
    }

    /// Whether these are not all that it may have been.
    pub fn narrows(&self, id: SessionId, left: &Among) -> bool {
        self.unclear.get(&id).is_some_and(|d| !d.shared && d.among.as_ref() != Some(left))
    }

    /// The peers' sessions that these come from, peers' sessions and outgoing ones; None: perhaps any. Those that are over are
    /// left out.
    pub fn clients_of(
        &self,
        ins: &[SessionId],
        outs: &[SessionId],
        owner: &impl Fn(SessionId) -> Owner,
    ) -> Option<BTreeSet<SessionId>> {
        let mut clients: BTreeSet<SessionId> = ins.iter().copied().collect();
        for out in outs {
            match (owner(*out).root(*out), self.unclear.get(out)) {
                (Some(root), _) => clients.extend([root]),
                (None, Some(doubt)) => {
                    let lives = |id: &&SessionId| owner(**id) != Owner::Gone;
                    clients.extend(doubt.among.as_ref()?.keys().filter(lives));
                }
                (None, None) => {}
            }
        }
        Some(clients)
    }

    // ---- while the log does not grow -------------------------------------------------------------------

    /// That is to be written when the log grows again.
    pub fn put_off(&mut self, id: SessionId, cause: Option<Cause>) {
        self.late.push((id, cause));
    }

    pub fn take_put_off(&mut self) -> Vec<(SessionId, Option<Cause>)> {
        std::mem::take(&mut self.late)
    }
}
