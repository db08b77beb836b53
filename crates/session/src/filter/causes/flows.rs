//! What is read and written: it shows whose an outgoing session is.

use super::doubts::Shown;
use super::readers::Sources;
use super::{Among, Known};
use crate::filter::processes::thread_key;
use crate::filter::Filter;
use crate::hook::Origin;
use crate::record::Cause;
use crate::tuple::SessionId;
use crate::turn::Thread;
use crate::Now;

impl Filter {
    /// Whether what the application does is watched for whose connections it makes.
    #[must_use]
    pub fn follows(&self) -> bool {
        self.config.hooked && !self.config.outgoing.is_empty()
    }

    /// By which thread a process came to hold a connection; told after [`Self::attach`].
    pub(in crate::filter) fn taken(&mut self, channel: u32, thread: u32, handle: u32, origin: Origin) {
        let Some(session) = self.processes.session(channel, handle).filter(|_| self.follows()) else { return };
        if self.live.get(&session).is_none_or(|live| live.outgoing) {
            return;
        }
        let owner = Known::new(&self.store, &self.live).owners();
        self.causes.readers.holds(thread_key(channel, thread), session, origin == Origin::Inherited, &owner);
        let now = self.clock;
        if origin == Origin::Accepted && self.is_anybody_uncalled(now) {
            if let Some(until) = self.causes.one_by_one.newcomer(now) {
                self.timers.set(until, session);
            }
        }
    }

    pub(in crate::filter) fn note_read(&mut self, thread: Thread, session: SessionId) {
        if self.follows() {
            self.causes.calls.used(session);
            let owner = Known::new(&self.store, &self.live).owners();
            self.causes.readers.reads(thread, session, &owner);
        }
    }

    /// Bytes are written: they show whose an outgoing session is. `whole`: all that the application offered.
    pub(in crate::filter) fn note_write(&mut self, now: Now, thread: Thread, session: SessionId, whole: bool) {
        if !self.follows() || !self.gate.serves() {
            return;
        }
        self.causes.calls.used(session);
        let sources = self.causes.readers.sources(thread, &self.known().owners());
        let outgoing = self.live[&session].outgoing;
        if outgoing {
            self.flows_out(now, session, &sources);
        } else {
            self.causes.readers.touched(session);
            let unknown = self.processes.turns.read_unclear(thread);
            self.flows_in(now, session, &sources, &unknown);
        }
        if whole {
            let owner = Known::new(&self.store, &self.live).owners();
            self.causes.readers.passed_on(thread, session, outgoing, sources, &owner);
        }
    }

    fn flows_out(&mut self, now: Now, to: SessionId, Sources { ins, outs }: &Sources) {
        let of_itself = ins.is_empty() && outs.iter().all(|out| *out == to);
        let ins: Vec<SessionId> = ins.iter().copied().filter(|id| self.causes.readers.was_read(*id)).collect();
        match self.known().cause(to) {
            Some(Cause::Of { session, .. }) => {
                if self.new_instead(now, to, session) {
                    return;
                }
                if ins.contains(&session) {
                    self.causes.calls.guessed_right(to);
                } else if !ins.is_empty() && !outs.iter().any(|out| self.known().root(*out) == Some(session)) {
                    self.contradict_all(now, to, &ins);
                    self.share_or_end(now, to, session, ins.iter().copied().chain([session]));
                }
            }
            Some(Cause::Unclear { .. }) if !of_itself => self.narrow(now, to, &ins, true),
            // The program itself talks there.
            Some(Cause::Unclear { .. }) if self.causes.doubts.is_anybodys(to) => self.unclear(to, Some(Among::new()), false),
            _ => {}
        }
    }

    /// `unknown`: what the thread has read, perhaps before it waited, of those of which it is not known whose they are.
    fn flows_in(&mut self, now: Now, to: SessionId, Sources { ins, outs }: &Sources, unknown: &[SessionId]) {
        let own: Vec<SessionId> = outs.iter().copied().filter(|out| self.known().root(*out) == Some(to)).collect();
        if !own.is_empty() {
            for out in own {
                self.causes.calls.guessed_right(out);
                self.new_instead(now, out, to);
            }
            return;
        }
        if outs.iter().chain(unknown).any(|out| self.contradict(now, *out, to)) {
            return;
        }
        if ins.contains(&to) && self.causes.readers.was_read(to) {
            return;
        }
        if let [out] = outs[..] {
            if self.known().is_unclear(out) {
                return self.narrow(now, out, &[to], false);
            }
        }
        // One of which it is not known whose it is may be this one's: then it says nothing of the others.
        let known = outs.iter().all(|out| self.known().root(*out).is_some());
        for out in outs {
            match self.known().root(*out) {
                Some(owner) if known => self.share_or_end(now, *out, owner, [owner, to].into_iter()),
                Some(_) => {}
                None => {
                    self.contradict(now, *out, to);
                }
            }
        }
    }

    /// The session is this client's, and serves others, too. One that was had back by a guess is not shared: the guess was wrong.
    fn share_or_end(&mut self, now: Now, id: SessionId, client: SessionId, among: impl Iterator<Item = SessionId>) {
        if self.causes.calls.is_guessed(id) {
            self.unpair(now, id);
            self.unpair(now, client);
        } else {
            self.share(id, among);
        }
    }

    /// The session is one of these: see [`super::doubts::Doubts::narrowed`].
    fn narrow(&mut self, now: Now, id: SessionId, to: &[SessionId], or_ended: bool) {
        let ended = |id| !self.live.contains_key(&id);
        match self.causes.doubts.narrowed(id, to, or_ended.then_some(&ended)) {
            Shown::Nothing => self.contradict_all(now, id, to),
            Shown::Shared => {
                self.contradict_all(now, id, to);
                self.share(id, to.iter().copied());
            }
            Shown::Whose(client) => self.tie(now, id, client),
            Shown::OneOf(left) => {
                let clients: Vec<SessionId> = left.keys().copied().collect();
                self.contradict_all(now, id, &clients);
                if self.causes.doubts.narrows(id, &left) {
                    self.unclear(id, Some(left), false);
                }
            }
        }
    }

    /// Bytes have shown that the session is this peer's.
    fn tie(&mut self, now: Now, id: SessionId, to: SessionId) {
        if self.causes.doubts.is_shared(id) {
            return self.share(id, [to].into_iter());
        }
        if self.contradict(now, id, to) {
            return;
        }
        let read = self.causes.doubts.was_read(id, to);
        let cleared = self.causes.doubts.forget(id);
        let destination = self.known().destination(id).expect("known");
        let nth = self.known().place((Some(to), destination), id);
        self.set_cause(id, Some(Cause::Of { session: to, nth, read }));
        self.unmark(cleared);
    }

    /// Bytes flow between a peer's session and one that was made for it. If that one is new since the takeover, they are lost to
    /// the one that waits: however it came to be made, nobody is to go on like that.
    fn new_instead(&mut self, now: Now, id: SessionId, client: SessionId) -> bool {
        self.live.get(&id).is_some_and(|live| !live.local.is_new_half()) && self.contradict(now, id, client)
    }

    fn contradict_all(&mut self, now: Now, id: SessionId, to: &[SessionId]) {
        for client in to {
            self.contradict(now, id, *client);
        }
    }

    /// The peer's session has one of its own, which waits to be called for: this one is not it. Who goes on with another
    /// one than before is not to go on.
    fn contradict(&mut self, now: Now, id: SessionId, to: SessionId) -> bool {
        let known = self.known();
        let destination = known.destination(id);
        let another = |other: &SessionId| *other != id && known.destination(*other) == destination;
        let waits = known.waiting_of(to).any(|other| another(&other));
        // One that was had back by a guess was had back for somebody else.
        let guessed = |other: &SessionId| self.causes.calls.is_guessed(*other) && another(other);
        let guessed: Vec<SessionId> = self.store.caused_by(to).iter().copied().filter(guessed).collect();
        if !waits && guessed.is_empty() {
            return false;
        }
        self.unpair(now, to);
        guessed.into_iter().for_each(|other| self.unpair(now, other));
        true
    }
}
