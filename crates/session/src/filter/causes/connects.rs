//! The application connects: for whom, and which session it gets.

use std::net::SocketAddr;

use super::calls::Call;
use super::{first_free, Among, Caller, Causes, Known};
use crate::filter::live::Live;
use crate::filter::processes::thread_key;
use crate::filter::Filter;
use crate::record::Cause;
use crate::segment::{flags, Segment};
use crate::tuple::{FourTuple, SessionId};
use crate::turn::Thread;

impl Causes {
    fn lend(&mut self, known: Known<'_>, thread: Thread, socket: u64, to: SocketAddr, bound: bool) {
        let caller = if bound { Caller::Bound } else { self.readers.caller(thread, &known.owners(), &self.doubts) };
        match caller {
            Caller::Own => self.calls.connects_itself(thread, to, || known.alike((None, to)).is_empty()),
            Caller::Of { session, .. } => self.readers.connects_for(thread, session),
            Caller::Bound | Caller::Unclear(_) => {}
        }
        self.calls.lend(socket, thread, self.readers.is_aloof(thread), caller);
    }

    /// The session that has the place of this call; and the place, if it is free and others wait. `hooked`: hooks tell whose
    /// call it is.
    fn same_place(&self, known: Known<'_>, tuple: &FourTuple, caller: &Caller, hooked: bool) -> (Option<SessionId>, Option<u32>) {
        match caller {
            Caller::Bound => (known.bound(tuple), None),
            Caller::Unclear(_) => (None, None),
            Caller::Own | Caller::Of { .. } => {
                let family = caller.family(tuple.peer);
                let alike = known.alike(family);
                let taken = alike.iter().filter(|(id, _)| !known.is_had_back(*id)).map(|(_, nth)| *nth);
                let nth = first_free(taken.chain(self.calls.refused(&family)));
                let found = alike.iter().find(|(_, n)| *n == nth).map(|(id, _)| *id);
                let gap = found.is_none() && alike.iter().any(|(id, _)| known.is_had_back(*id));
                let several = *caller == Caller::Own && hooked && self.calls.several(tuple.peer);
                (found.filter(|_| !several), gap.then_some(nth))
            }
        }
    }
}

impl Filter {
    /// A thread is about to connect this socket (which has that number, never used again). `bound`: to a port of its choice.
    pub fn lend(&mut self, channel: u32, thread: u32, socket: u64, to: SocketAddr, bound: bool) {
        let known = Known::new(&self.store, &self.live);
        self.causes.lend(known, thread_key(channel, thread), socket, to, bound);
    }

    /// A SYN of the local TCP, of which it must be known which socket it comes from: see [`Self::called_by`].
    #[must_use]
    pub fn asks_caller(&self, packet: &[u8]) -> Option<FourTuple> {
        if !self.follows() {
            return None;
        }
        let syn = Segment::parse(packet).ok()?;
        let tuple = FourTuple { local: syn.source(), peer: syn.destination() };
        let first = syn.flags() & (flags::SYN | flags::ACK | flags::RST) == flags::SYN;
        (first && self.is_outgoing(&tuple)).then_some(tuple)
    }

    /// Whether a socket of this number was lent, and its call has made no session yet.
    #[must_use]
    pub fn is_lent(&self, socket: u64) -> bool {
        self.causes.calls.is_lent(socket)
    }

    /// The local TCP's connection of this name is that socket; None: the kernel does not say.
    pub fn called_by(&mut self, tuple: FourTuple, socket: Option<u64>) {
        self.causes.calls.called_by(tuple, socket);
    }

    /// Without hooks all that is known is who could be the cause.
    pub(in crate::filter) fn note_unhooked_call(&mut self, tuple: FourTuple) {
        if !self.config.hooked && !self.causes.calls.is_known(&tuple) {
            let caller = self.known().only_candidate();
            self.causes.calls.note_unhooked(tuple, caller);
        }
    }

    /// The application has made this connection.
    pub(in crate::filter) fn record_cause(&mut self, id: SessionId) {
        let tuple = self.local_tuple(&self.store.get(id).expect("just opened").open.tuple);
        let call = self.causes.calls.opened(&tuple, id);
        match call.caller() {
            Caller::Bound => self.set_cause(id, Some(Cause::Bound)),
            Caller::Unclear(among) => self.unclear(id, among.clone(), false),
            Caller::Of { session, read, sure } if !sure || !self.live.contains_key(session) => {
                self.unclear(id, Some([(*session, *read)].into()), false);
            }
            Caller::Of { session, read, .. } => {
                self.give_place(id, &call, tuple.peer, |nth| Cause::Of { session: *session, nth, read: *read });
            }
            Caller::Own if self.one_of_several(&call, tuple.peer) => {
                let others = self.known().alike((None, tuple.peer));
                for other in others.into_iter().map(|(other, _)| other).chain([id]) {
                    self.unclear(other, Some(Among::new()), true);
                }
            }
            Caller::Own => self.give_place(id, &call, tuple.peer, |nth| Cause::Own { nth }),
        }
    }

    /// Whether another thread of the program connects there for no peer's sake.
    fn one_of_several(&mut self, call: &Call, to: SocketAddr) -> bool {
        if !self.config.hooked {
            return !self.known().alike((None, to)).is_empty();
        }
        self.causes.calls.has_connected(call.thread(), to);
        self.causes.calls.several(to)
    }

    /// The session gets its place among its like, in the order of their calls.
    fn give_place(&mut self, id: SessionId, call: &Call, to: SocketAddr, cause: impl Fn(u32) -> Cause) {
        let family = call.caller().family(to);
        let (others, nth) = (self.known().alike(family), self.known().place(family, id));
        self.set_cause(id, Some(cause(nth)));
        for (id, nth) in self.causes.calls.in_order(call, id, nth, &others) {
            self.move_to(id, nth);
        }
    }

    /// The session that a connect is to have back; None: it makes a new one.
    pub(in crate::filter) fn had_before(&mut self, tuple: &FourTuple) -> Option<SessionId> {
        let call = self.causes.calls.find(tuple);
        let (found, gap) = self.causes.same_place(self.known(), tuple, call.caller(), self.config.hooked);
        self.causes.calls.set_gap(tuple, gap);
        let found = found.or_else(|| self.known().only_own(tuple.peer).filter(|_| call.is_aloof()));
        let found = found.filter(|id| self.live.get(id).is_some_and(|l| l.uncalled()))?;
        self.causes.calls.has_back(tuple, &call, found);
        Some(found)
    }

    /// Whether the program has the session back, and has neither read nor written anything: hooks would have told.
    pub(in crate::filter) fn is_unused(&self, id: SessionId) -> bool {
        let told = |live: &Live| self.follows() && !live.ownership.is_unhooked() && !live.ownership.is_lost();
        self.causes.calls.is_unused(id) && self.live.get(&id).is_some_and(|live| told(live))
    }

    /// Whoever was called refuses: the next connect is for the next place, or those behind a place that is free, and stays so,
    /// would never be called for. Or it is for the same client again.
    pub(in crate::filter) fn note_refusal(&mut self, tuple: &FourTuple, reset: &Segment<'_>) {
        if reset.has(flags::ACK) && self.handshakes.has_called(tuple, reset.ack().add(u32::MAX.into())) {
            let inner = self.local_tuple(tuple);
            let call = self.causes.calls.find(&inner);
            if let Caller::Of { session, .. } = call.caller() {
                self.causes.readers.refused(call.thread(), *session);
            }
            self.causes.calls.refuse(&inner, tuple.peer);
        }
    }
}
