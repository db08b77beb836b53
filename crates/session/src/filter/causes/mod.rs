//! What made the application connect. A proxy has a connection of its own for each client; after a takeover each connect has
//! to get the one that belongs to the same client. Otherwise one client could see another client's data. So each connection
//! that the application makes has a [`Cause`], which is in the log, and a connect is answered with the session of the same cause, and of
//! the same place among those of that cause to that destination, or not at all.
//!
//! A cause is known where there is but one candidate: a session that the connecting thread has read from or accepted in this
//! turn, or before and without any consequence yet; one that its process has accepted or inherited and that nobody has
//! touched since, for another thread may have handed it on. What is not known when the application connects shows, perhaps,
//! when bytes flow: a turn that read one client and nothing else, and then wrote to the connection, or the other way round.
//! What flows between a connection and another client than its own takes the cause away.
//!
//! What is still not known at a takeover is reset there, and so are the clients that it may belong to: they would go on with
//! another connection, whose other end knows nothing of what was said before (I7).
//!
//! The parts own what they know, and the filter, which has the store and the sessions, asks them:
//!
//! - `readers`: which thread has read what, and so whom it may connect for
//! - `calls`: the connects that are under way, and which of them made which session
//! - `doubts`: outgoing sessions of which it is not known whose they are
//! - `one_by_one`: recovered sessions that make the program connect, handed out one after another
//! - `known`: what the store says of sessions and their causes, to be read only
//!
//! The filter joins them, in a file for each of its steps: `flows` (what is read and written), `whose` (whose a session is),
//! `connects` (a connect gets its session), `hand_outs`, and `takeover`.

mod calls;
mod connects;
mod doubts;
mod flows;
mod hand_outs;
mod known;
mod one_by_one;
mod readers;
mod takeover;
#[cfg(test)]
mod tests;
mod whose;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::processes::channel_of;
use crate::record::Cause;
use crate::tuple::SessionId;
use crate::turn::Thread;
use calls::Calls;
use doubts::Doubts;
use one_by_one::OneByOne;
use readers::Readers;

pub use hand_outs::HandOut;
pub(super) use known::Known;

/// Who connects, as far as is known when it does.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Caller {
    Own,
    /// `sure`: the evidence is stronger than that another thread has accepted the client, and nobody has touched it since.
    Of {
        session: SessionId,
        read: bool,
        sure: bool,
    },
    Bound,
    /// One of these; None: of all.
    Unclear(Option<Among>),
}

/// Peers' sessions, and whether they were read from.
type Among = BTreeMap<SessionId, bool>;

/// Sessions of one cause (a client; None: the program itself) to one destination.
type Family = (Option<SessionId>, SocketAddr);

impl Caller {
    fn family(&self, to: SocketAddr) -> Family {
        match self {
            Caller::Of { session, .. } => (Some(*session), to),
            _ => (None, to),
        }
    }
}

/// Whose a session is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owner {
    /// It is over.
    Gone,
    /// It is a peer's.
    Peer,
    /// The application has made it for this peer's session.
    Of(SessionId),
    /// The application has made it for itself, or it is not known for whom.
    Nobody,
}

impl Owner {
    /// The peer's session behind the session that has this owner: itself, or its cause.
    fn root(self, id: SessionId) -> Option<SessionId> {
        match self {
            Owner::Peer => Some(id),
            Owner::Of(session) => Some(session),
            Owner::Gone | Owner::Nobody => None,
        }
    }
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Causes {
    readers: Readers,
    calls: Calls,
    doubts: Doubts,
    one_by_one: OneByOne,
}

impl Causes {
    /// No session is known any more. What connects is as it was.
    pub fn forget_sessions(&mut self) {
        self.readers.forget_sessions();
        self.calls.forget_sessions();
        self.doubts = Doubts::default();
        self.one_by_one.forget_sessions();
    }

    /// The processes of these channels are dead.
    pub fn processes_gone(&mut self, gone: impl Fn(&u32) -> bool) {
        self.readers.processes_gone(&gone);
        self.calls.threads_gone(|t| gone(&channel_of(*t)));
    }

    /// A thread waits: what it does next may have other reasons.
    pub fn waits(&mut self, thread: Thread) {
        self.readers.waits(thread);
    }

    /// A process does not hold the session any more.
    pub fn closed(&mut self, channel: u32, session: SessionId) {
        self.readers.closed(channel, session);
    }

    /// A session that was not to be handed out yet is over.
    pub fn later_one_ended(&mut self) {
        self.one_by_one.later_one_ended();
    }
}

/// The same cause at another place among its like.
fn at_place(cause: Cause, nth: u32) -> Option<Cause> {
    match cause {
        Cause::Own { .. } => Some(Cause::Own { nth }),
        Cause::Of { session, read, .. } => Some(Cause::Of { session, nth, read }),
        Cause::Bound | Cause::Unclear { .. } => None,
    }
}

fn first_free(taken: impl Iterator<Item = u32>) -> u32 {
    let taken: BTreeSet<u32> = taken.collect();
    (1..).find(|n| !taken.contains(n)).expect("a number")
}
