//! Which sessions may not go on after a takeover: those of which it is not known what belongs to them.

use std::collections::BTreeSet;

use crate::filter::stage::Stage;
use crate::filter::{Action, Filter};
use crate::record::Cause;
use crate::store::Session;
use crate::tuple::SessionId;
use crate::Now;

/// What is lost of the outgoing sessions of a store.
#[derive(Default)]
struct Lost {
    sessions: Vec<SessionId>,
    /// Some of them may be anybody's.
    all: bool,
    /// Those that can only be the program's own.
    own: Vec<SessionId>,
}

impl Filter {
    /// What the session has to say waits for a peer who is waiting for that: a program that connects when its client has said
    /// something will not do so, for it has heard all that there was.
    pub(in crate::filter) fn stuck(&self, id: SessionId) -> bool {
        let Some(s) = self.store.get(id) else { return false };
        let Some(Cause::Of { session, .. }) = s.cause else { return false };
        let asks = self.store.get(session).is_none_or(|s| !s.input.is_empty());
        self.has_said(s)
            && !asks
            && self.live.get(&session).is_some_and(|l| l.later || l.ownership.is_attached() && l.stage == Stage::Live)
    }

    /// Whether there is something of the peer for the program to read.
    pub(super) fn has_said(&self, s: &Session) -> bool {
        !s.input.is_empty() || s.in_fin || self.said_meanwhile(s.open.session)
    }

    /// What is known of the sessions of this store: which of them may not go on.
    pub(in crate::filter) fn unpaired(&mut self) -> Vec<SessionId> {
        if self.config.outgoing.is_empty() {
            return Vec::new();
        }
        let Lost { sessions: mut lost, all, own } = self.lost_calls();
        own.into_iter().for_each(|id| {
            self.write_cause(id, Some(Cause::Own { nth: 1 }));
        });
        let clients = self.lost_clients(&lost, all);
        lost.extend(clients);
        lost.sort_unstable();
        lost
    }

    /// Those that the application had made.
    fn lost_calls(&self) -> Lost {
        let made = |s: &&Session| s.established && self.is_outgoing(&s.open.tuple) && !self.is_unwanted(s);
        let outgoing: Vec<&Session> = self.store.iter().filter(made).collect();
        let gone = |client: SessionId| {
            let unclear = |s: &Session| matches!(s.cause, Some(Cause::Unclear { .. }));
            self.store.get(client).is_none_or(|s| s.closed || s.torn || unclear(s))
        };
        let mut lost = Lost::default();
        // The kernel sees one that is closed to its end; nobody is to have it back.
        for s in outgoing.iter().filter(|s| !s.closed) {
            let alone = || outgoing.iter().filter(|other| other.open.tuple.peer == s.open.tuple.peer).count() == 1;
            match s.cause {
                Some(Cause::Own { .. } | Cause::Bound) => continue,
                Some(Cause::Of { session, .. }) if !gone(session) => continue,
                Some(Cause::Of { .. }) => {}
                Some(Cause::Unclear { all }) => lost.all |= all,
                // A master of an earlier version said nothing of it.
                None if alone() => {
                    lost.own.push(s.open.session);
                    continue;
                }
                None => lost.all = true,
            }
            lost.sessions.push(s.open.session);
        }
        lost
    }

    /// The peers' sessions that belong to one of these, or may. `all`: each may, that has no other.
    fn lost_clients(&self, lost: &[SessionId], all: bool) -> Vec<SessionId> {
        let torn = self.store.iter().filter(|s| s.torn && self.is_outgoing(&s.open.tuple)).map(|s| s.open.session);
        let client = |id: SessionId| match self.known().cause(id)? {
            Cause::Of { session, .. } => Some(session),
            _ => None,
        };
        let of_lost: BTreeSet<SessionId> = torn.chain(lost.iter().copied()).filter_map(client).collect();
        let peers =
            |s: &&Session| s.established && !s.closed && !s.torn && !self.is_outgoing(&s.open.tuple) && !self.is_unwanted(s);
        let is_lost = |s: &&Session| {
            matches!(s.cause, Some(Cause::Unclear { .. }))
                || all && self.store.caused_by(s.open.session).is_empty()
                || of_lost.contains(&s.open.session)
        };
        self.store.iter().filter(peers).filter(is_lost).map(|s| s.open.session).collect()
    }

    /// Reset and counted: it is not known, or no longer so, what this one belongs to.
    pub(in crate::filter) fn unpair(&mut self, now: Now, id: SessionId) {
        let Some(tuple) = self.store.get(id).map(|s| s.open.tuple) else { return };
        let attached = self.live.get(&id).is_some_and(|l| l.ownership.is_attached());
        let inner = self.local_tuple(&tuple);
        self.counters.unpaired += 1;
        self.restore_failed(now, id);
        if attached {
            self.actions.push(Action::Destroy(inner));
        }
    }

    /// A session is over.
    pub(in crate::filter) fn forget_cause(&mut self, id: SessionId) {
        self.causes.calls.forget(id);
        if self.causes.readers.was_read(id) {
            self.causes.doubts.client_ended();
        }
        self.causes.readers.forget(id);
        let cleared = self.causes.doubts.forget(id);
        self.unmark(cleared);
        self.causes.one_by_one.open(id);
    }
}
