//! Whose a session is: what is written of that, and what follows for others.

use super::{at_place, Among, Family};
use crate::filter::Filter;
use crate::record::Cause;
use crate::tuple::SessionId;

impl Filter {
    pub(super) fn set_cause(&mut self, id: SessionId, cause: Option<Cause>) {
        let Some(s) = self.store.get(id).filter(|s| s.cause != cause) else { return };
        if !self.gate.serves() {
            return self.causes.doubts.put_off(id, cause);
        }
        let (before, to) = (s.cause, s.open.tuple.peer);
        self.write_cause(id, cause);
        match (before, cause) {
            (Some(Cause::Of { session, .. }), Some(Cause::Of { session: same, .. })) if session == same => {}
            (Some(Cause::Of { session, nth, .. }), _) => self.close_up((Some(session), to), nth),
            _ => {}
        }
    }

    /// What was taken for one of these is somebody else's. A place that was never theirs would be made anew at a takeover, and
    /// those behind it not be called for.
    fn close_up(&mut self, family: Family, from: u32) {
        for (id, nth) in self.known().alike(family).into_iter().filter(|(_, nth)| *nth > from) {
            self.move_to(id, nth - 1);
        }
    }

    /// The session has another place among its like.
    pub(super) fn move_to(&mut self, id: SessionId, nth: u32) {
        if let Some(cause) = self.known().cause(id).and_then(|cause| at_place(cause, nth)) {
            self.set_cause(id, Some(cause));
        }
    }

    /// What came to be known while the log did not grow.
    pub(in crate::filter) fn late_causes(&mut self) {
        for (id, cause) in self.causes.doubts.take_put_off() {
            self.set_cause(id, cause);
        }
    }

    /// The outgoing session may belong to one of these; None: to any.
    pub(super) fn unclear(&mut self, id: SessionId, among: Option<Among>, shared: bool) {
        let all = among.is_none();
        let marked: Vec<SessionId> = among.iter().flatten().map(|(id, _)| *id).filter(|id| self.live.contains_key(id)).collect();
        let cleared = self.causes.doubts.set(id, among, shared);
        self.set_cause(id, Some(Cause::Unclear { all }));
        marked.into_iter().for_each(|id| self.set_cause(id, Some(Cause::Unclear { all: false })));
        self.unmark(cleared);
    }

    /// A peer's session ends. What it has said may still be passed on: what was made for it is not the next one's that is heard.
    pub(in crate::filter) fn orphan(&mut self, client: SessionId) {
        for id in self.store.caused_by(client).to_vec() {
            if let Some(Cause::Of { read, .. }) = self.known().cause(id) {
                let cleared = self.causes.doubts.set(id, Some([(client, read)].into()), false);
                self.unmark(cleared);
            }
        }
    }

    /// Those that a session may have belonged to, and no other may.
    pub(super) fn unmark(&mut self, cleared: Vec<SessionId>) {
        cleared.into_iter().for_each(|id| self.set_cause(id, None));
    }

    /// The session serves more than one of them.
    pub(super) fn share(&mut self, id: SessionId, among: impl Iterator<Item = SessionId>) {
        let among = self.causes.doubts.shared_by(id, among);
        self.unclear(id, Some(among), true);
    }
}
