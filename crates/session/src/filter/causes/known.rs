//! What the store and the live sessions say of causes, to be read only.

use std::net::SocketAddr;

use super::{first_free, Caller, Family, Owner};
use crate::filter::live::Live;
use crate::filter::stage::Stage;
use crate::filter::Filter;
use crate::record::Cause;
use crate::store::Store;
use crate::tuple::{BySession, FourTuple, SessionId};

/// See the module's description.
#[derive(Clone, Copy)]
pub(in crate::filter) struct Known<'a> {
    store: &'a Store,
    live: &'a BySession<Box<Live>>,
}

impl<'a> Known<'a> {
    pub fn new(store: &'a Store, live: &'a BySession<Box<Live>>) -> Known<'a> {
        Known { store, live }
    }

    /// The peer's session behind a session: itself, or its cause.
    pub fn root(self, id: SessionId) -> Option<SessionId> {
        self.owner(id).root(id)
    }

    pub(super) fn owner(self, id: SessionId) -> Owner {
        match self.live.get(&id) {
            None => Owner::Gone,
            Some(live) if !live.outgoing => Owner::Peer,
            Some(_) => match self.cause(id) {
                Some(Cause::Of { session, .. }) => Owner::Of(session),
                _ => Owner::Nobody,
            },
        }
    }

    pub(super) fn owners(self) -> impl Fn(SessionId) -> Owner + 'a {
        move |id| self.owner(id)
    }

    pub(super) fn cause(self, id: SessionId) -> Option<Cause> {
        self.store.get(id).and_then(|s| s.cause)
    }

    pub(super) fn is_unclear(self, id: SessionId) -> bool {
        matches!(self.cause(id), Some(Cause::Unclear { .. }))
    }

    pub(super) fn destination(self, id: SessionId) -> Option<SocketAddr> {
        self.store.get(id).map(|s| s.open.tuple.peer)
    }

    fn outgoing(self) -> impl Iterator<Item = SessionId> + 'a {
        self.live.iter().filter(|(_, live)| live.outgoing).map(|(id, _)| *id)
    }

    // ---- places ----------------------------------------------------------------------------------------

    /// The sessions of one cause to one destination, and their places.
    pub(super) fn alike(self, (client, to): Family) -> Vec<(SessionId, u32)> {
        let place = |id: SessionId| {
            let s = self.store.get(id).filter(|s| s.open.tuple.peer == to)?;
            match (s.cause, client) {
                (Some(Cause::Own { nth }), None) => Some((id, nth)),
                (Some(Cause::Of { session, nth, .. }), Some(of)) if session == of => Some((id, nth)),
                _ => None,
            }
        };
        match client {
            Some(client) => self.store.caused_by(client).iter().filter_map(|id| place(*id)).collect(),
            None => self.outgoing().filter_map(place).collect(),
        }
    }

    /// The first place that this session may have.
    pub(super) fn place(self, family: Family, id: SessionId) -> u32 {
        first_free(self.alike(family).iter().filter(|(other, _)| *other != id).map(|(_, nth)| *nth))
    }

    /// The session that the application had bound to this port.
    pub(super) fn bound(self, tuple: &FourTuple) -> Option<SessionId> {
        self.store.find(tuple).filter(|id| self.cause(*id) == Some(Cause::Bound))
    }

    /// The one session to this destination, if it is the program's own.
    pub(super) fn only_own(self, to: SocketAddr) -> Option<SessionId> {
        let mut all = self.outgoing().filter(|id| self.destination(*id) == Some(to));
        match (all.next(), all.next()) {
            (Some(id), None) => Some(id).filter(|id| matches!(self.cause(*id), Some(Cause::Own { .. }))),
            _ => None,
        }
    }

    /// Who could be the cause of a connect of which no hook has told.
    pub(super) fn only_candidate(self) -> Caller {
        let open = |live: &Live| live.established && !matches!(live.stage, Stage::Probing | Stage::Embryo { .. });
        let mut peers = self.live.iter().filter(|(_, live)| !live.outgoing && open(live));
        match (peers.next(), peers.next()) {
            (None, _) => Caller::Own,
            (Some((session, _)), None) => Caller::Of { session: *session, read: false, sure: true },
            _ => Caller::Unclear(None),
        }
    }

    // ---- after a takeover ------------------------------------------------------------------------------

    /// Whether a session waits for the application to connect, or will.
    fn waits(self, id: SessionId) -> bool {
        self.live.get(&id).is_some_and(|live| live.uncalled() || live.probing())
    }

    /// The same, for the application to have it back: one that it had closed has its place, though it has no socket yet.
    pub(super) fn is_had_back(self, id: SessionId) -> bool {
        self.waits(id) && !self.live[&id].ownership.is_closed()
    }

    /// Outgoing sessions that this one has caused and that wait for it to connect again.
    pub(super) fn waiting_of(self, id: SessionId) -> impl Iterator<Item = SessionId> + 'a {
        self.store.caused_by(id).iter().copied().filter(move |id| self.waits(*id))
    }

    pub(super) fn has_waiting(self, id: SessionId) -> bool {
        self.waiting_of(id).next().is_some()
    }

    /// The session has connections to have back, and one of them was made when it was accepted.
    pub(super) fn connects_first(self, id: SessionId) -> bool {
        self.waiting_of(id).any(|other| matches!(self.cause(other), Some(Cause::Of { read: false, .. })))
    }

    /// What ends with this session, if it ends now: connections that nobody will call for, or the peer that had it. `unused`: it
    /// was called for, and the program has neither read nor written anything. It may try again, and would get another one.
    pub fn partners(self, id: SessionId, unused: bool) -> Vec<SessionId> {
        let called_for = |live: &Live| live.outgoing && (self.waits(id) || unused) && !live.ownership.is_closed();
        match self.cause(id) {
            Some(Cause::Of { session, .. }) if self.live.get(&id).is_some_and(|live| called_for(live)) => vec![session],
            _ => self.waiting_of(id).collect(),
        }
    }

    /// The ports whose clients had made the application connect when it accepted them.
    pub(super) fn ports_that_connect_first(self) -> impl Iterator<Item = u16> + 'a {
        self.outgoing().filter_map(move |id| match self.cause(id)? {
            Cause::Of { session, read: false, .. } => Some(self.store.get(session)?.open.tuple.local.port()),
            _ => None,
        })
    }
}

impl Filter {
    pub(in crate::filter) fn known(&self) -> Known<'_> {
        Known::new(&self.store, &self.live)
    }
}
