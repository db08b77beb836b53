//! Connections that the application of a member makes.

use std::net::SocketAddr;

use tcpr_session::filter::Mode;
use tcpr_session::hook::Origin;
use tcpr_session::record::Cause;
use tcpr_session::segment::{flags, Segment};
use tcpr_session::seq::Seq;
use tcpr_session::store::{Session, Store};
use tcpr_session::tuple::{FourTuple, SessionId};
use tcpr_session::Now;

use super::{App, Descriptor, Hook, Node, LOGIN};
use crate::tcp::{State, Tcp};

impl Node {
    /// How many connections to this destination the application has, or is making.
    pub fn calls(&self, to: &SocketAddr) -> usize {
        let Some(app) = &self.app else { return 0 };
        let held = app.open.values().filter(|d| d.called).filter_map(|d| d.tuple);
        held.chain(app.calling.iter().copied()).filter(|t| t.peer == *to).count()
    }

    /// The application connects, unless it is in the middle of something.
    pub fn call(&mut self, now: Now, tuple: FourTuple) {
        let Some(app) = &mut self.app else { return };
        if app.in_turn || app.writing.is_some() || !app.todo.is_empty() || self.sockets.contains_key(&tuple) {
            return;
        }
        app.calling.push(tuple);
        let channel = app.channel;
        let isn = self.next_isn();
        // By a thread that does nothing else.
        self.filter.lend(channel, 1, u64::from(isn), tuple.peer, false);
        self.filter.called_by(tuple, Some(u64::from(isn)));
        self.sockets.insert(tuple, Tcp::connect(now, tuple.local, tuple.peer, Seq(isn), self.setup, isn >> 3));
        self.collect(&tuple);
    }

    /// The application has waited for long enough.
    pub fn give_up_call(&mut self, now: Now) {
        let Some(app) = &mut self.app else { return };
        let waits = |t: &FourTuple| self.sockets.get(t).is_some_and(|s| s.state == State::SynSent);
        let Some(at) = app.calling.iter().position(waits) else { return };
        let tuple = app.calling.remove(at);
        self.given_up.insert(tuple);
        self.sockets.get_mut(&tuple).expect("waits").close(now);
        self.collect(&tuple);
    }

    /// Whether a fault comes while it has yet to be known of a connection that its application gave it up: it is accepted by
    /// its callee, if that hears of it again.
    pub fn gives_up(&self, store: &Store) -> bool {
        store.iter().any(|s| !s.closed && self.given_up.contains(&s.open.tuple))
    }

    /// One of the connects has come to its end. Returns whether one had.
    pub(super) fn connected(&mut self, now: Now, app: &mut App) -> bool {
        // Those that were refused.
        app.calling.retain(|t| self.sockets.contains_key(t));
        let Some(at) = app.calling.iter().position(|t| self.sockets[t].state != State::SynSent) else { return false };
        let tuple = app.calling.remove(at);
        let handle = app.next_handle;
        app.next_handle += 1;
        app.open.insert(handle, Descriptor { tuple: Some(tuple), called: true, ..Descriptor::default() });
        // What the hook asks the manager for.
        if self.filter.peer_tuple(&tuple).and_then(|t| self.filter.store().find(&t)).is_none() {
            // Over already: no session's.
            return true;
        }
        let recovered = self.filter.recovered_info(&tuple);
        let (absorb, greeted, finished) = recovered.unwrap_or((0, false, false));
        let origin = if recovered.is_some() { Origin::Recovered } else { Origin::Connected };
        self.had_back += u64::from(recovered.is_some());
        if finished {
            self.sockets.get_mut(&tuple).expect("connected").shutdown(now);
            self.collect(&tuple);
        }
        self.ring.push_back(Hook::Attach { handle, origin, tuple });
        app.open.get_mut(&handle).expect("just made").absorb = absorb;
        if self.login && !greeted && !finished {
            app.todo.push_back((handle, LOGIN.to_vec()));
            app.in_turn = true;
        }
        true
    }

    /// Records whose sockets the kernel has not, and had not when it was asked before.
    pub fn sweep(&mut self, now: Now) {
        let before = std::mem::take(&mut self.missing);
        if self.filter.mode() != Mode::Active {
            return;
        }
        let missing = |t: &FourTuple| !self.sockets.contains_key(&self.filter.local_tuple(t));
        let gone: Vec<(SessionId, FourTuple)> = self.filter.with_sockets().filter(|(_, t)| missing(t)).collect();
        for (id, tuple) in gone {
            if before.contains(&id) {
                self.filter.swept(now, &tuple);
            } else {
                self.missing.push(id);
            }
        }
        self.perform(now);
    }

    /// Notes which of the application's connections no connect may have back: those of which it is not known what caused them,
    /// and those that come after one that has ended, for the first connect is for that.
    pub fn note_lonely(&mut self) {
        if self.callees.is_empty() {
            return;
        }
        let store = self.filter.store();
        let all = |to: SocketAddr| store.iter().filter(move |s| s.open.tuple.peer == to);
        let lonely = |s: &Session| match s.cause {
            Some(Cause::Own { nth }) => {
                all(s.open.tuple.peer).count() > 1 && (1..nth).any(|n| !all(s.open.tuple.peer).any(|s| place(s) == n))
            }
            cause => matches!(cause, Some(Cause::Unclear { .. })),
        };
        let there: Vec<FourTuple> = self.filter.with_sockets().map(|(_, tuple)| tuple).collect();
        let of_app = store.iter().filter(|s| self.callees.contains(&s.open.tuple.peer));
        // One that has waited behind such a place may come to be the only one when nobody has time to connect any more.
        let before = |s: &Session| self.lonely.contains(&s.open.tuple) && !there.contains(&s.open.tuple);
        self.lonely = of_app.filter(|s| lonely(s) || before(s)).map(|s| s.open.tuple).collect();
    }

    /// A packet for the wire. Nothing asks a callee for another connection while an old one waits to be called for, unless it
    /// is made in place of one that came before that.
    pub(super) fn leaves(&mut self, packet: Vec<u8>) {
        let p = Segment::parse(&packet).expect("a segment");
        if p.has(flags::SYN) && !p.has(flags::ACK) && self.called.insert((p.source().port(), p.seq().0)) && self.app.is_some() {
            let there: Vec<SessionId> = self.filter.with_sockets().map(|(id, _)| id).collect();
            let all = || self.filter.store().iter().filter(|s| s.open.tuple.peer == p.destination());
            let (waits, taken): (Vec<&Session>, Vec<&Session>) =
                all().partition(|s| !s.closed && !there.contains(&s.open.session));
            let next = (1..).find(|n| !taken.iter().any(|s| place(s) == *n)).expect("a place");
            let waits = waits.iter().find(|s| place(s) == next || all().count() == 1);
            assert!(waits.is_none(), "a new connection, and {waits:?} waits to be called for");
        }
        self.wire.push(packet);
    }
}

/// Its place among those to one destination.
fn place(s: &Session) -> u32 {
    match s.cause {
        Some(Cause::Own { nth }) => nth,
        _ => 0,
    }
}
