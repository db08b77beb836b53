//! What made the application connect. A proxy has a connection of its own for each client; after a takeover each connect has
//! to get the one that belongs to the same client, or nobody's data is safe from anybody. So each connection that the
//! application makes has a [`Cause`], which is in the log, and a connect is answered with the session of the same cause, and of
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

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use super::live::Live;
use super::processes::{channel_of, thread_key};
use super::stage::{LocalHandshake, Stage};
use super::{Action, Filter, Mode};
use crate::hook::Origin;
use crate::record::Cause;
use crate::segment::{flags, Segment};
use crate::tuple::{FourTuple, SessionId};
use crate::turn::Thread;
use crate::Now;

/// Most calls remembered that have made no session yet; of the oldest nothing is known any more.
const MAX_CALLS: usize = 4096;
/// Most threads that are watched: an application that makes up thread numbers must not eat the manager's memory.
const MAX_WORKERS: usize = 1 << 16;
/// Most threads remembered that connect to one destination for no client: more than one is too many.
const MAX_OWN: usize = 64;
/// How long the next recovered session waits for the connect that the one before makes when the program has it.
const GATE: Duration = Duration::from_millis(200);
/// How long it waits for a program that does not accept.
const UNACCEPTED: Duration = Duration::from_secs(2);
/// How long it waits for a client that is new to say something: until then a connect may be for that one.
const NEWCOMER: Duration = Duration::from_millis(100);

/// How a recovered session is handed to the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HandOut {
    /// With others.
    Freely,
    /// It makes the program connect: alone, so that the connect is known for its.
    Alone,
    /// It will, once its peer says something: not before.
    NotYet,
}

/// A session that was handed out alone, and has yet to make its connects: until then the next one waits.
#[derive(Clone, Copy, Debug)]
struct Gate {
    session: SessionId,
    since: Now,
    until: Now,
    /// Its input is before the barrier no more.
    shown: bool,
}

/// Who connects, as far as is known when it does.
#[derive(Clone, Debug)]
enum Caller {
    Own,
    /// `sure`: by more than that another thread has accepted it, and nobody has touched it since.
    Of {
        session: SessionId,
        read: bool,
        sure: bool,
    },
    Bound,
    /// One of these (and whether it was read from); None: of all.
    Unclear(Option<BTreeMap<SessionId, bool>>),
}

/// A connect that has made no session yet.
#[derive(Clone, Debug)]
struct Call {
    /// In the order in which they were made.
    number: u64,
    thread: Thread,
    /// The thread has never had to do with any peer's session.
    aloof: bool,
    caller: Caller,
    /// The place of its session among those of its cause is free, and others of them wait: it makes a new one.
    gap: Option<u32>,
}

impl Call {
    const UNKNOWN: Call = Call { number: 0, thread: 0, aloof: false, caller: Caller::Unclear(None), gap: None };
}

/// Sessions of one cause (a client; None: the program itself) to one destination.
type Family = (Option<SessionId>, SocketAddr);

fn family(caller: &Caller, to: SocketAddr) -> Family {
    match caller {
        Caller::Of { session, .. } => (Some(*session), to),
        _ => (None, to),
    }
}

/// The peers' sessions that a thread has had to do with.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Life {
    #[default]
    None,
    One(SessionId),
    Many,
}

#[derive(Debug, Default)]
struct Worker {
    /// Peers' sessions that it has accepted or read from, and outgoing ones that it has read from; and when.
    ins: BTreeMap<SessionId, u64>,
    outs: BTreeMap<SessionId, u64>,
    /// What it has read in this turn and passed on, whole, to the other side; and when.
    gone: BTreeMap<SessionId, u64>,
    /// It has waited since.
    ended: bool,
    /// Whose connect it made last in this turn.
    called_for: Option<SessionId>,
    life: Life,
}

#[derive(Debug, Default)]
struct Process {
    /// Peers' sessions that nobody has touched since the process had them.
    fresh: BTreeSet<SessionId>,
    /// It has had any; it has accepted some itself.
    served: bool,
    accepts: bool,
}

/// What is known of a peer's session beside.
#[derive(Clone, Copy, Debug, Default)]
struct Served {
    /// When all that was read of it had gone somewhere.
    settled: u64,
    read: bool,
    /// When the application connected for it last.
    called: u64,
}

/// An outgoing session of which it is not known whose it is.
#[derive(Debug)]
struct Unclear {
    /// Whose it may be; None: anybody's.
    among: Option<BTreeMap<SessionId, bool>>,
    /// It was used for more than one.
    shared: bool,
}

#[derive(Debug, Default)]
pub(super) struct Causes {
    clock: u64,
    served: HashMap<SessionId, Served>,
    workers: HashMap<Thread, Worker>,
    /// Past so many, those of threads that have nothing any more are forgotten.
    crowd: usize,
    processes: HashMap<u32, Process>,
    /// By the socket, and by the four-tuple once that is known.
    lent: VecDeque<(u64, Call)>,
    calls: VecDeque<(FourTuple, Call)>,
    /// Those that made outgoing sessions.
    numbers: HashMap<SessionId, u64>,
    unclear: HashMap<SessionId, Unclear>,
    /// Threads that connect before their process has any peer's session, and whether that is still under way.
    own: HashMap<SocketAddr, BTreeMap<Thread, bool>>,
    gate: Option<Gate>,
    /// The last one was not accepted in time: the next one waits no longer for that.
    unaccepted: bool,
    newcomer_until: Now,
    /// Ports whose clients make the program connect when it accepts them.
    at_accept: BTreeSet<u16>,
    /// How many sessions are not to be handed out yet; and whether another one may be.
    pub later: usize,
    next_may: bool,
    /// Places without a session for which the program has called since the takeover, and was refused.
    refused: HashMap<Family, BTreeSet<u32>>,
    /// What came to be known while the log did not grow.
    late: Vec<(SessionId, Option<Cause>)>,
}

impl Causes {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// No session is known any more. What connects is as it was.
    pub fn forget_sessions(&mut self) {
        self.served.clear();
        self.numbers.clear();
        self.unclear.clear();
        self.gate = None;
        self.refused.clear();
        self.unaccepted = false;
        self.at_accept.clear();
        self.newcomer_until = Duration::ZERO;
        self.later = 0;
        self.late.clear();
        self.workers.clear();
        self.processes.values_mut().for_each(|p| p.fresh.clear());
    }

    /// The processes of these channels are dead.
    pub fn processes_gone(&mut self, gone: impl Fn(&u32) -> bool) {
        self.processes.retain(|channel, _| !gone(channel));
        self.refused.clear();
        let of_it = |t: &Thread| gone(&channel_of(*t));
        self.workers.retain(|t, _| !of_it(t));
        self.lent.retain(|(_, call)| !of_it(&call.thread));
        for threads in self.own.values_mut() {
            threads.retain(|t, _| !of_it(t));
        }
        self.own.retain(|_, threads| !threads.is_empty());
    }

    fn call(&self, tuple: &FourTuple) -> Call {
        self.calls.iter().rev().find(|(t, _)| t == tuple).map_or(Call::UNKNOWN, |(_, call)| call.clone())
    }

    /// What was read at `since` has gone somewhere.
    fn settled(&self, session: Option<SessionId>, since: u64) -> bool {
        session.is_none_or(|s| self.served.get(&s).is_none_or(|s| s.settled > since))
    }
}

impl Filter {
    /// Whether what the application does is watched for whose connections it makes.
    #[must_use]
    pub fn follows(&self) -> bool {
        self.config.hooked && !self.config.outgoing.is_empty()
    }

    /// The peer's session behind a session: itself, or its cause.
    pub(super) fn root(&self, id: SessionId) -> Option<SessionId> {
        if !self.live.get(&id)?.outgoing {
            return Some(id);
        }
        match self.store.get(id)?.cause {
            Some(Cause::Of { session, .. }) => Some(session),
            _ => None,
        }
    }

    // ---- what the hooks tell ---------------------------------------------------------------------------

    /// By which thread a process came to hold a connection; told after [`Self::attach`].
    pub(super) fn taken(&mut self, channel: u32, thread: u32, handle: u32, origin: Origin) {
        let Some(session) = self.processes.session(channel, handle).filter(|_| self.follows()) else { return };
        if self.live.get(&session).is_none_or(|live| live.outgoing) {
            return;
        }
        let process = self.causes.processes.entry(channel).or_default();
        process.served = true;
        process.fresh.insert(session);
        self.causes.served.entry(session).or_default();
        if origin != Origin::Inherited {
            process.accepts = true;
            self.touch(thread_key(channel, thread), session);
        }
        let now = self.clock;
        if origin == Origin::Accepted && self.is_anybody_uncalled(now) && now >= self.causes.newcomer_until + NEWCOMER {
            self.causes.newcomer_until = now + NEWCOMER;
            self.timers.push(Reverse((now + NEWCOMER, session)));
        }
    }

    fn touch(&mut self, thread: Thread, session: SessionId) {
        let since = self.causes.tick();
        self.forget_idle_workers();
        if self.causes.workers.len() >= MAX_WORKERS && !self.causes.workers.contains_key(&thread) {
            return;
        }
        let (root, outgoing) = (self.root(session), self.live[&session].outgoing);
        let mut worker = self.causes.workers.remove(&thread).unwrap_or_default();
        if std::mem::take(&mut worker.ended) {
            // What was read in earlier turns and went nowhere may have its consequences now.
            worker.ins.retain(|id, since| !self.causes.settled(Some(*id), *since));
            worker.outs.retain(|id, since| !self.causes.settled(self.root(*id), *since));
            worker.called_for = None;
            worker.gone.clear();
        }
        if outgoing { &mut worker.outs } else { &mut worker.ins }.insert(session, since);
        worker.life = match (worker.life, root) {
            (life, None) => life,
            (Life::None, Some(root)) => Life::One(root),
            (Life::One(one), Some(root)) if one == root => Life::One(one),
            _ => Life::Many,
        };
        self.causes.workers.insert(thread, worker);
    }

    /// A server with a thread for each connection has had very many.
    fn forget_idle_workers(&mut self) {
        if self.causes.workers.len() < self.causes.crowd.max(1024) {
            return;
        }
        let mut workers = std::mem::take(&mut self.causes.workers);
        let lives = |id: &SessionId| self.live.contains_key(id);
        workers.retain(|_, w| match w.life {
            Life::Many => true,
            Life::One(session) if lives(&session) => true,
            _ => w.ins.keys().chain(w.outs.keys()).any(lives),
        });
        self.causes.crowd = workers.len() * 2;
        self.causes.workers = workers;
    }

    fn not_fresh(&mut self, session: SessionId) {
        self.causes.processes.values_mut().for_each(|p| {
            p.fresh.remove(&session);
        });
    }

    /// The sessions that what a thread does now may come from: peers', and outgoing ones.
    fn sources(&self, thread: Thread) -> (Vec<SessionId>, Vec<SessionId>) {
        let Some(worker) = self.causes.workers.get(&thread) else { return Default::default() };
        let counts = |id: &SessionId, since: u64| {
            self.live.contains_key(id) && (!worker.ended || !self.causes.settled(self.root(*id), since))
        };
        let of =
            |map: &BTreeMap<SessionId, u64>| map.iter().filter(|(id, since)| counts(id, **since)).map(|(id, _)| *id).collect();
        (of(&worker.ins), of(&worker.outs))
    }

    pub(super) fn note_read(&mut self, channel: u32, thread: u32, session: SessionId) {
        if !self.follows() {
            return;
        }
        if !self.live[&session].outgoing {
            self.not_fresh(session);
            self.causes.served.entry(session).or_default().read = true;
        }
        self.touch(thread_key(channel, thread), session);
    }

    /// A thread waits: what it does next may have other reasons.
    pub(super) fn note_wait(&mut self, channel: u32, thread: u32) {
        if let Some(worker) = self.causes.workers.get_mut(&thread_key(channel, thread)) {
            worker.ended = true;
        }
    }

    /// A process does not hold it any more.
    pub(super) fn note_close(&mut self, channel: u32, session: SessionId) {
        if let Some(process) = self.causes.processes.get_mut(&channel) {
            process.fresh.remove(&session);
            let of_it = |t: &Thread| (*t >> 32) as u32 == channel;
            for (_, worker) in self.causes.workers.iter_mut().filter(|(t, _)| of_it(t)) {
                worker.ins.remove(&session);
                worker.outs.remove(&session);
            }
        }
    }

    /// Bytes are written: they show whose an outgoing session is. `whole`: all that the application offered.
    pub(super) fn note_write(&mut self, now: Now, channel: u32, thread: u32, session: SessionId, whole: bool) {
        if !self.follows() || !self.gate.serves() {
            return;
        }
        let (ins, outs) = self.sources(thread_key(channel, thread));
        let outgoing = self.live[&session].outgoing;
        if outgoing {
            self.flows_out(now, session, &ins, &outs);
        } else {
            self.not_fresh(session);
            let unknown = self.processes.turns.read_unclear(thread_key(channel, thread));
            self.flows_in(now, session, &ins, &outs, &unknown);
        }
        if whole {
            let root = self.root(session).or_else(|| (ins.len() == 1).then(|| ins[0]));
            let settled = self.causes.tick();
            if let Some(served) = root.and_then(|root| self.causes.served.get_mut(&root)) {
                served.settled = settled;
            }
            let other = |id: &SessionId| *id != session && self.root(*id) == root;
            let gone: Vec<SessionId> = if outgoing { ins } else { outs }.into_iter().filter(other).collect();
            if let Some(worker) = self.causes.workers.get_mut(&thread_key(channel, thread)) {
                worker.gone.extend(gone.into_iter().map(|id| (id, settled)));
            }
        }
    }

    fn flows_out(&mut self, now: Now, to: SessionId, ins: &[SessionId], outs: &[SessionId]) {
        let of_itself = ins.is_empty() && outs.iter().all(|out| *out == to);
        // What was only accepted has said nothing yet.
        let ins: Vec<SessionId> = ins.iter().copied().filter(|id| self.causes.served.get(id).is_some_and(|s| s.read)).collect();
        match self.store.get(to).and_then(|s| s.cause) {
            Some(Cause::Of { session, .. }) => {
                let from_it = ins.contains(&session) || outs.iter().any(|out| self.root(*out) == Some(session));
                if !ins.is_empty() && !from_it {
                    self.share(to, ins.iter().copied().chain([session]));
                }
            }
            Some(Cause::Unclear { .. }) if of_itself => self.of_nobody(to),
            Some(Cause::Unclear { .. }) => self.narrow(now, to, &ins, true),
            _ => {}
        }
    }

    /// `unknown`: what the thread has read, perhaps before it waited, of those of which it is not known whose they are.
    fn flows_in(&mut self, now: Now, to: SessionId, ins: &[SessionId], outs: &[SessionId], unknown: &[SessionId]) {
        if outs.iter().any(|out| self.root(*out) == Some(to)) {
            return;
        }
        if outs.iter().chain(unknown).any(|out| self.contradict(now, *out, to)) {
            return;
        }
        let read = |id: &SessionId| self.causes.served.get(id).is_some_and(|s| s.read);
        if ins.contains(&to) && read(&to) {
            return;
        }
        match outs {
            [out] if matches!(self.store.get(*out).and_then(|s| s.cause), Some(Cause::Unclear { .. })) => {
                self.narrow(now, *out, &[to], false)
            }
            _ => {
                // One of which it is not known whose it is may be this one's: then it says nothing of the others.
                let known = outs.iter().all(|out| self.root(*out).is_some());
                for out in outs {
                    match self.root(*out) {
                        Some(owner) if known => self.share(*out, [owner, to].into_iter()),
                        Some(_) => {}
                        None => {
                            self.contradict(now, *out, to);
                        }
                    }
                }
            }
        }
    }

    // ---- whose it is -----------------------------------------------------------------------------------

    fn set_cause(&mut self, id: SessionId, cause: Option<Cause>) {
        let Some(s) = self.store.get(id).filter(|s| s.cause != cause) else { return };
        if !self.gate.serves() {
            return self.causes.late.push((id, cause));
        }
        let (before, to) = (s.cause, s.open.tuple.peer);
        self.write_cause(id, cause);
        match (before, cause) {
            (Some(Cause::Of { session, .. }), Some(Cause::Of { session: same, .. })) if session == same => {}
            (Some(Cause::Of { session, nth, read }), _) => self.close_up(&Caller::Of { session, read, sure: true }, to, nth),
            _ => {}
        }
    }

    /// What was taken for one of these is somebody else's. A place that was never theirs would be made anew at a takeover, and
    /// those behind it not be called for.
    fn close_up(&mut self, caller: &Caller, to: SocketAddr, from: u32) {
        for (id, nth) in self.alike(caller, to).into_iter().filter(|(_, nth)| *nth > from) {
            if let Some(Cause::Of { session, read, .. }) = self.store.get(id).and_then(|s| s.cause) {
                self.set_cause(id, Some(Cause::Of { session, nth: nth - 1, read }));
            }
        }
    }

    pub(super) fn late_causes(&mut self) {
        for (id, cause) in std::mem::take(&mut self.causes.late) {
            self.set_cause(id, cause);
        }
    }

    /// The outgoing session may belong to one of these.
    fn unclear(&mut self, id: SessionId, among: Option<BTreeMap<SessionId, bool>>, shared: bool) {
        let all = among.is_none();
        let marked: Vec<SessionId> = among.iter().flatten().map(|(id, _)| *id).filter(|id| self.live.contains_key(id)).collect();
        let before = self.causes.unclear.insert(id, Unclear { among, shared });
        self.set_cause(id, Some(Cause::Unclear { all }));
        marked.iter().for_each(|id| self.set_cause(*id, Some(Cause::Unclear { all: false })));
        self.unmark(before);
    }

    /// Those that it may have belonged to, and no other may.
    fn unmark(&mut self, of: Option<Unclear>) {
        for (id, _) in of.and_then(|u| u.among).unwrap_or_default() {
            let still = self.causes.unclear.values().any(|u| u.among.as_ref().is_some_and(|among| among.contains_key(&id)));
            if !still {
                self.set_cause(id, None);
            }
        }
    }

    /// It serves more than one of them.
    fn share(&mut self, id: SessionId, among: impl Iterator<Item = SessionId>) {
        let mut all: BTreeMap<SessionId, bool> = among.map(|id| (id, true)).collect();
        if let Some(Unclear { among: Some(before), .. }) = self.causes.unclear.get(&id) {
            all.extend(before);
        }
        self.unclear(id, Some(all), true);
    }

    /// The program itself talks there.
    fn of_nobody(&mut self, id: SessionId) {
        if self.causes.unclear.get(&id).is_some_and(|u| u.among.is_none()) {
            self.unclear(id, Some(BTreeMap::new()), false);
        }
    }

    /// It is one of these: of them, those that it may have been before. `or_gone`: or one of those that have ended since, whose
    /// bytes the program may still pass on.
    fn narrow(&mut self, now: Now, id: SessionId, to: &[SessionId], or_gone: bool) {
        let before = self.causes.unclear.get(&id).filter(|u| !u.shared).and_then(|u| u.among.as_ref());
        let read = |id: &SessionId| before.is_none_or(|among| among.get(id).copied().unwrap_or(true));
        let known = |id: &SessionId| before.is_none_or(|among| among.is_empty() || among.contains_key(id));
        let mut left: BTreeMap<SessionId, bool> = to.iter().filter(|id| known(id)).map(|id| (*id, read(id))).collect();
        if or_gone && !left.is_empty() {
            left.extend(before.into_iter().flatten().filter(|(id, _)| !self.live.contains_key(id)));
        }
        match (to, left.len()) {
            ([], _) => {}
            (_, 0) => self.share(id, to.iter().copied()),
            (_, 1) => self.tie(now, id, *left.keys().next().expect("one")),
            _ => {
                for session in left.keys() {
                    self.contradict(now, id, *session);
                }
                if self.causes.unclear.get(&id).is_some_and(|u| !u.shared && u.among.as_ref() != Some(&left)) {
                    self.unclear(id, Some(left), false);
                }
            }
        }
    }

    /// Bytes have shown that it is this peer's.
    fn tie(&mut self, now: Now, id: SessionId, to: SessionId) {
        if self.causes.unclear.get(&id).is_some_and(|u| u.shared) {
            return self.share(id, [to].into_iter());
        }
        if self.contradict(now, id, to) {
            return;
        }
        let before = self.causes.unclear.remove(&id);
        let read = before.as_ref().and_then(|u| u.among.as_ref()?.get(&to).copied()).unwrap_or(true);
        self.set_of(id, to, read);
        self.unmark(before);
    }

    /// The peer's session has one of its own, which waits to be called for: this one is not it. Who goes on with another
    /// one than before is not to go on.
    fn contradict(&mut self, now: Now, id: SessionId, to: SessionId) -> bool {
        let destination = self.store.get(id).map(|s| s.open.tuple.peer);
        let waits =
            self.waiting_of(to).any(|other| other != id && self.store.get(other).map(|s| s.open.tuple.peer) == destination);
        if waits {
            self.unpair(now, to);
        }
        waits
    }

    fn set_of(&mut self, id: SessionId, session: SessionId, read: bool) {
        let cause = Caller::Of { session, read, sure: true };
        let nth = self.place(&cause, id);
        self.set_cause(id, Some(Cause::Of { session, nth, read }));
    }

    /// Others of the same cause to the same destination, and their places.
    fn alike(&self, caller: &Caller, to: SocketAddr) -> Vec<(SessionId, u32)> {
        let place = |id: SessionId| {
            let s = self.store.get(id).filter(|s| s.open.tuple.peer == to)?;
            match (s.cause, caller) {
                (Some(Cause::Own { nth }), Caller::Own) => Some((id, nth)),
                (Some(Cause::Of { session, nth, .. }), Caller::Of { session: of, .. }) if session == *of => Some((id, nth)),
                _ => None,
            }
        };
        match caller {
            Caller::Of { session, .. } => self.store.caused_by(*session).iter().filter_map(|id| place(*id)).collect(),
            _ => self.live.iter().filter(|(_, live)| live.outgoing).filter_map(|(id, _)| place(*id)).collect(),
        }
    }

    fn place(&self, caller: &Caller, id: SessionId) -> u32 {
        let to = self.store.get(id).expect("known").open.tuple.peer;
        first_free(self.alike(caller, to).iter().filter(|(other, _)| *other != id).map(|(_, nth)| *nth))
    }

    // ---- calls -----------------------------------------------------------------------------------------

    /// A thread is about to connect this socket (which has that number, never used again). `bound`: to a port of its choice.
    pub fn lend(&mut self, channel: u32, thread: u32, socket: u64, to: SocketAddr, bound: bool) {
        let key = thread_key(channel, thread);
        let caller = if bound { Caller::Bound } else { self.caller(channel, key) };
        match &caller {
            Caller::Own => {
                let idle =
                    self.causes.own.get(&to).is_some_and(|threads| threads.iter().all(|(t, under_way)| *t == key || !under_way));
                if idle && self.alike(&caller, to).is_empty() {
                    self.causes.own.remove(&to);
                }
                let threads = self.causes.own.entry(to).or_default();
                if threads.len() < MAX_OWN {
                    threads.insert(key, true);
                }
            }
            Caller::Of { session, .. } => {
                self.not_fresh(*session);
                let called = self.causes.tick();
                self.causes.served.entry(*session).or_default().called = called;
                if let Some(worker) = self.causes.workers.get_mut(&key) {
                    worker.called_for = Some(*session);
                }
            }
            _ => {}
        }
        let number = self.causes.tick();
        let aloof = self.causes.workers.get(&key).is_none_or(|w| w.life == Life::None);
        self.causes.lent.retain(|(other, _)| *other != socket);
        self.causes.lent.push_back((socket, Call { number, thread: key, aloof, caller, gap: None }));
        if self.causes.lent.len() > MAX_CALLS {
            self.causes.lent.pop_front();
        }
    }

    fn caller(&self, channel: u32, thread: Thread) -> Caller {
        let read = |id: &SessionId| self.causes.served.get(id).is_some_and(|s| s.read);
        let of = |session: SessionId, sure: bool| Caller::Of { session, read: read(&session), sure };
        let process = self.causes.processes.get(&channel);
        if self.causes.workers.len() >= MAX_WORKERS {
            return Caller::Unclear(None);
        }
        let worker = self.causes.workers.get(&thread);
        let life = worker.map_or(Life::None, |w| w.life);
        let (ins, outs) = self.sources(thread);
        // What it connected for has had its consequence; and so has what it passed on before it read something else.
        let since = |id: &SessionId| worker.and_then(|w| w.ins.get(id).or_else(|| w.outs.get(id))).copied().unwrap_or(0);
        let last = ins.iter().chain(&outs).map(since).max().unwrap_or(0);
        let gone = |id: &SessionId| worker.and_then(|w| w.gone.get(id)).is_some_and(|at| (since(id)..last).contains(at));
        let due = |id: &SessionId| self.causes.served.get(id).is_none_or(|s| s.called < since(id)) && !gone(id);
        let ins: Vec<SessionId> = ins.into_iter().filter(due).collect();
        let mut among: BTreeSet<SessionId> = ins.iter().copied().collect();
        for out in outs.into_iter().filter(|id| !gone(id)) {
            match (self.root(out), self.causes.unclear.get(&out).map(|u| &u.among)) {
                (Some(root), _) => among.extend([root]),
                (None, Some(Some(others))) => among.extend(others.keys()),
                (None, Some(None)) => return Caller::Unclear(None),
                (None, None) => {}
            }
        }
        if let ([one], Life::One(only)) = (&ins[..], life) {
            // A thread of its own: what others have accepted meanwhile is for other threads.
            let first = self.causes.served.get(one).is_some_and(|s| s.read && s.called == 0);
            if *one == only && among.len() == 1 && first {
                return of(only, true);
            }
        }
        let sure = !among.is_empty() || process.is_some_and(|p| !p.accepts);
        if let (false, Some(_), life) = (sure, process.filter(|p| !p.fresh.is_empty()), life) {
            // Another thread may have handed one on; or this one connects once more for one that it has.
            match life {
                Life::None => {}
                Life::One(session) => among.extend([session]),
                Life::Many => return Caller::Unclear(None),
            }
        }
        among.extend(process.iter().flat_map(|p| &p.fresh));
        among.retain(|id| self.live.contains_key(id));
        // The program may not know yet that one which it has read from in this turn has ended.
        let gone = worker.filter(|w| !w.ended).into_iter().flat_map(|w| w.ins.keys()).filter(|id| !self.live.contains_key(id));
        among.extend(gone);
        let alive = |id: &SessionId| self.live.contains_key(id);
        let again = match (worker.and_then(|w| w.called_for.filter(|_| !w.ended)), life) {
            (Some(session), _) | (None, Life::One(session)) => Some(session).filter(alive),
            _ => None,
        };
        match (among.len(), again) {
            (1, _) => of(among.into_iter().next().expect("one"), sure),
            (0, Some(session)) => of(session, true),
            (0, None) if process.is_none_or(|p| !p.served) => Caller::Own,
            (0, None) => Caller::Unclear(None),
            _ => Caller::Unclear(Some(among.into_iter().map(|id| (id, read(&id))).collect())),
        }
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
        self.causes.lent.iter().any(|(other, _)| *other == socket)
    }

    /// The local TCP's connection of this name is that socket; None: the kernel does not say.
    pub fn called_by(&mut self, tuple: FourTuple, socket: Option<u64>) {
        let Some(at) = socket.and_then(|socket| self.causes.lent.iter().position(|(other, _)| *other == socket)) else {
            // A socket that is gone, or one that was not lent.
            return self.causes.calls.retain(|(t, _)| *t != tuple);
        };
        let (_, call) = self.causes.lent[at].clone();
        self.note_call(tuple, call);
    }

    fn note_call(&mut self, tuple: FourTuple, call: Call) {
        self.causes.calls.retain(|(t, _)| *t != tuple);
        self.causes.calls.push_back((tuple, call));
        if self.causes.calls.len() > MAX_CALLS {
            self.causes.calls.pop_front();
        }
    }

    /// Without hooks all that is known is who could be the cause.
    pub(super) fn note_unhooked_call(&mut self, tuple: FourTuple) {
        if self.config.hooked || self.causes.calls.iter().any(|(t, _)| *t == tuple) {
            return;
        }
        let mut peers = self
            .live
            .iter()
            .filter(|(_, l)| !l.outgoing && l.established && !matches!(l.stage, Stage::Probing | Stage::Embryo { .. }));
        let caller = match (peers.next(), peers.next()) {
            (None, _) => Caller::Own,
            (Some((session, _)), None) => Caller::Of { session: *session, read: false, sure: true },
            _ => Caller::Unclear(None),
        };
        let number = self.causes.tick();
        // Each may be another thread's.
        self.note_call(tuple, Call { number, thread: number, aloof: true, caller, gap: None });
    }

    /// The application has made this connection.
    pub(super) fn record_cause(&mut self, id: SessionId) {
        let tuple = self.local_tuple(&self.store.get(id).expect("just opened").open.tuple);
        let call = self.causes.call(&tuple);
        self.causes.calls.retain(|(t, _)| *t != tuple);
        self.causes.lent.retain(|(_, other)| other.number != call.number);
        self.causes.numbers.insert(id, call.number);
        match call.caller {
            Caller::Bound => self.set_cause(id, Some(Cause::Bound)),
            Caller::Unclear(among) => self.unclear(id, among, false),
            Caller::Of { session, read, .. } if !self.live.contains_key(&session) => {
                self.unclear(id, Some([(session, read)].into()), false)
            }
            Caller::Of { session, read, sure: false } => self.unclear(id, Some([(session, read)].into()), false),
            ref caller @ (Caller::Of { .. } | Caller::Own) => {
                let others = self.alike(caller, tuple.peer);
                if matches!(caller, Caller::Own) && self.several(tuple.peer, call.thread) {
                    for other in others.into_iter().map(|(other, _)| other).chain([id]) {
                        self.unclear(other, Some(BTreeMap::new()), true);
                    }
                    return;
                }
                let nth = self.place(caller, id);
                match *caller {
                    Caller::Of { session, read, .. } => self.set_cause(id, Some(Cause::Of { session, nth, read })),
                    _ => self.set_cause(id, Some(Cause::Own { nth })),
                }
                self.in_order_of_calls(id, call.number, nth, others);
            }
        }
    }

    /// The answers to connects may come in another order than they were made in: the places of those that were made later
    /// come behind this one's.
    fn in_order_of_calls(&mut self, id: SessionId, number: u64, nth: u32, others: Vec<(SessionId, u32)>) {
        let number_of = |id: SessionId| self.causes.numbers.get(&id).copied().filter(|n| *n > number);
        let mut later: Vec<(u64, SessionId, u32)> =
            others.into_iter().filter_map(|(id, nth)| Some((number_of(id)?, id, nth))).collect();
        if later.is_empty() {
            return;
        }
        later.push((number, id, nth));
        let mut places: Vec<u32> = later.iter().map(|(.., nth)| *nth).collect();
        places.sort_unstable();
        later.sort_unstable();
        for ((_, id, _), place) in later.into_iter().zip(places) {
            let cause = match self.store.get(id).and_then(|s| s.cause) {
                Some(Cause::Own { .. }) => Cause::Own { nth: place },
                Some(Cause::Of { session, read, .. }) => Cause::Of { session, nth: place, read },
                _ => continue,
            };
            self.set_cause(id, Some(cause));
        }
    }

    /// Whether more than one thread connects there for no peer's sake: nobody knows who would be the first the next time.
    fn several(&mut self, to: SocketAddr, thread: Thread) -> bool {
        if !self.config.hooked {
            return !self.alike(&Caller::Own, to).is_empty();
        }
        let Some(threads) = self.causes.own.get_mut(&to) else { return false };
        // One whose process is dead by now is none of those that will connect the next time.
        if let Some(under_way) = threads.get_mut(&thread) {
            *under_way = false;
        }
        threads.len() > 1
    }

    /// The session that a connect is to have back; None: it makes a new one.
    pub(super) fn had_before(&mut self, tuple: &FourTuple) -> Option<SessionId> {
        let call = self.causes.call(tuple);
        let mut gap = None;
        let found = match call.caller {
            Caller::Bound => {
                self.store.find(tuple).filter(|id| self.store.get(*id).is_some_and(|s| s.cause == Some(Cause::Bound)))
            }
            Caller::Unclear(_) => None,
            ref caller => {
                let alike = self.alike(caller, tuple.peer);
                // One that the application had closed has its place, though it has no socket yet: nobody has it back.
                let waits =
                    |id: &SessionId| self.live.get(id).is_some_and(|l| !l.ownership.is_closed() && (l.uncalled() || l.probing()));
                let refused = self.causes.refused.get(&family(caller, tuple.peer)).into_iter().flatten().copied();
                let nth = first_free(alike.iter().filter(|(id, _)| !waits(id)).map(|(_, nth)| *nth).chain(refused));
                gap = (alike.iter().all(|(_, n)| *n != nth) && alike.iter().any(|(id, _)| waits(id))).then_some(nth);
                let several = matches!(caller, Caller::Own)
                    && self.causes.own.get(&tuple.peer).is_some_and(|t| t.len() > 1)
                    && self.config.hooked;
                alike.into_iter().find(|(_, n)| *n == nth).filter(|_| !several).map(|(id, _)| id)
            }
        };
        let found = found.or_else(|| self.only_own(tuple).filter(|_| call.aloof));
        if let Some((_, call)) = self.causes.calls.iter_mut().rev().find(|(t, _)| t == tuple) {
            call.gap = gap;
        }
        let found = found.filter(|id| self.live.get(id).is_some_and(|l| l.uncalled()))?;
        self.causes.calls.retain(|(t, _)| t != tuple);
        self.causes.numbers.insert(found, call.number);
        Some(found)
    }

    /// Whoever was called refuses: the next connect is for the next place, or those behind a place that is free, and stays so,
    /// would never be called for.
    pub(super) fn note_refusal(&mut self, tuple: &FourTuple, reset: &Segment<'_>) {
        if !reset.has(flags::ACK) || !self.handshakes.has_called(tuple, reset.ack().add(u32::MAX.into())) {
            return;
        }
        let inner = self.local_tuple(tuple);
        let call = self.causes.call(&inner);
        if let Some(place) = call.gap {
            self.causes.refused.entry(family(&call.caller, tuple.peer)).or_default().insert(place);
        }
    }

    /// The one session to this destination, if it is the program's own.
    fn only_own(&self, tuple: &FourTuple) -> Option<SessionId> {
        let of_it = |id: &SessionId| self.store.get(*id).filter(|s| s.open.tuple.peer == tuple.peer).map(|s| s.cause);
        let mut all = self.live.iter().filter(|(_, live)| live.outgoing).filter_map(|(id, _)| Some((*id, of_it(id)?)));
        match (all.next(), all.next()) {
            (Some((id, Some(Cause::Own { .. }))), None) => Some(id),
            _ => None,
        }
    }

    // ---- at a takeover ---------------------------------------------------------------------------------

    /// What it has to say waits for a peer who is waiting for that: a program that connects when its client has said something
    /// will not do so, for it has heard all that there was.
    pub(super) fn stuck(&self, id: SessionId) -> bool {
        let Some(s) = self.store.get(id) else { return false };
        let Some(Cause::Of { session, .. }) = s.cause else { return false };
        let asks = self.store.get(session).is_none_or(|s| !s.input.is_empty());
        (!s.input.is_empty() || s.in_fin || self.said_meanwhile(id))
            && !asks
            && self.live.get(&session).is_some_and(|l| l.later || l.ownership.is_attached() && l.stage == Stage::Live)
    }

    /// What is known of the sessions of this store: which of them may not go on.
    pub(super) fn unpaired(&mut self) -> Vec<SessionId> {
        if self.config.outgoing.is_empty() {
            return Vec::new();
        }
        let outgoing: Vec<(SessionId, FourTuple, Option<Cause>, bool)> = self
            .store
            .iter()
            .filter(|s| s.established && self.is_outgoing(&s.open.tuple) && !self.is_unwanted(s))
            .map(|s| (s.open.session, s.open.tuple, s.cause, s.closed))
            .collect();
        let (mut lost, mut all) = (Vec::new(), false);
        for (id, tuple, cause, closed) in &outgoing {
            if *closed {
                // The kernel sees it to its end; nobody is to have it back.
                continue;
            }
            let gone = |s: &SessionId| {
                self.store.get(*s).is_none_or(|s| s.closed || s.torn || matches!(s.cause, Some(Cause::Unclear { .. })))
            };
            match cause {
                Some(Cause::Own { .. } | Cause::Bound) => continue,
                Some(Cause::Of { session, .. }) if !gone(session) => continue,
                Some(Cause::Unclear { all: a }) => all |= a,
                // A master of an earlier version said nothing of it.
                None if outgoing.iter().filter(|(_, t, ..)| t.peer == tuple.peer).count() == 1 => {
                    self.store_cause(*id, Cause::Own { nth: 1 });
                    continue;
                }
                None => all = true,
                _ => {}
            }
            lost.push(*id);
        }
        let torn: Vec<SessionId> =
            self.store.iter().filter(|s| s.torn && self.is_outgoing(&s.open.tuple)).map(|s| s.open.session).collect();
        let of_torn = torn.iter().chain(&lost).filter_map(|id| match self.store.get(*id)?.cause {
            Some(Cause::Of { session, .. }) => Some(session),
            _ => None,
        });
        let of_torn: BTreeSet<SessionId> = of_torn.collect();
        for s in self
            .store
            .iter()
            .filter(|s| s.established && !s.closed && !s.torn && !self.is_outgoing(&s.open.tuple) && !self.is_unwanted(s))
        {
            let alone = self.store.caused_by(s.open.session).is_empty();
            if matches!(s.cause, Some(Cause::Unclear { .. })) || all && alone || of_torn.contains(&s.open.session) {
                lost.push(s.open.session);
            }
        }
        lost.sort_unstable();
        lost
    }

    fn store_cause(&mut self, id: SessionId, cause: Cause) {
        self.write_cause(id, Some(cause));
    }

    /// Reset and counted: it is not known, or no longer so, what this one belongs to.
    pub(super) fn unpair(&mut self, now: Now, id: SessionId) {
        let Some(tuple) = self.store.get(id).map(|s| s.open.tuple) else { return };
        let attached = self.live.get(&id).is_some_and(|l| l.ownership.is_attached());
        let inner = self.local_tuple(&tuple);
        self.counters.unpaired += 1;
        self.restore_failed(now, id);
        if attached {
            self.actions.push(Action::Destroy(inner));
        }
    }

    /// Outgoing sessions that this one has caused and that wait for it to connect again.
    fn waiting_of(&self, id: SessionId) -> impl Iterator<Item = SessionId> + '_ {
        let waits = |id: &SessionId| self.live.get(id).is_some_and(|l| l.uncalled() || l.probing());
        self.store.caused_by(id).iter().copied().filter(waits)
    }

    /// What ends with this session, if it ends now: connections that nobody will call for, or the peer that had it.
    pub(super) fn partners(&self, id: SessionId) -> Vec<SessionId> {
        let waits = self.live.get(&id).is_some_and(|l| l.outgoing && !l.ownership.is_closed() && (l.uncalled() || l.probing()));
        match self.store.get(id).and_then(|s| s.cause) {
            Some(Cause::Of { session, .. }) if waits => vec![session],
            _ => self.waiting_of(id).collect(),
        }
    }

    pub(super) fn forget_cause(&mut self, id: SessionId) {
        self.causes.numbers.remove(&id);
        if self.causes.served.remove(&id).is_some() {
            self.not_fresh(id);
        }
        let before = self.causes.unclear.remove(&id);
        self.unmark(before);
        self.open_gate(id);
    }

    // ---- one after another -----------------------------------------------------------------------------

    /// It has connections to have back, and one of them was made when it was accepted.
    fn connects_first(&self, id: SessionId) -> bool {
        self.waiting_of(id)
            .any(|other| matches!(self.store.get(other).and_then(|s| s.cause), Some(Cause::Of { read: false, .. })))
    }

    /// How this session is handed to the program. A program that connects when it accepts gets one client at a time. One that
    /// connects when it has read gets each when there is something to be read.
    #[must_use]
    pub fn hand_out(&self, id: SessionId) -> HandOut {
        // First of all: it is asked of every session that waits.
        if !self.follows() {
            return HandOut::Freely;
        }
        let Some(s) = self.store.get(id) else { return HandOut::Freely };
        let said = || !s.input.is_empty() || s.in_fin || self.said_meanwhile(id);
        if self.waiting_of(id).next().is_none() {
            HandOut::Freely
        } else if self.causes.at_accept.contains(&s.open.tuple.local.port()) || said() {
            HandOut::Alone
        } else {
            HandOut::NotYet
        }
    }

    /// The sessions of the store are known: which of them are not to be handed out yet.
    pub(super) fn note_hand_outs(&mut self) {
        if !self.follows() {
            return;
        }
        let outgoing = self.live.iter().filter(|(_, live)| live.outgoing);
        let clients = outgoing.filter_map(|(id, _)| match self.store.get(*id)?.cause {
            Some(Cause::Of { session, read: false, .. }) => Some(self.store.get(session)?.open.tuple.local.port()),
            _ => None,
        });
        self.causes.at_accept = clients.collect();
        let takes = |live: &Live| live.stage == Stage::Probing && !live.outgoing && !live.ownership.is_closed();
        let later: Vec<SessionId> = self
            .live
            .iter()
            .filter(|(id, live)| takes(live) && self.hand_out(**id) == HandOut::NotYet)
            .map(|(id, _)| *id)
            .collect();
        self.causes.later = later.len();
        later.into_iter().for_each(|id| self.recount(id, |live| live.later = true));
    }

    /// Whether some sessions are not to be handed out yet.
    #[must_use]
    pub fn any_later(&self) -> bool {
        self.causes.later > 0
    }

    /// Whether this session is not to be handed out yet.
    #[must_use]
    pub fn is_later(&self, id: SessionId) -> bool {
        self.live.get(&id).is_some_and(|live| live.later)
    }

    /// Its peer may have said something.
    pub(super) fn stir(&mut self, now: Now, id: SessionId) {
        if !self.is_later(id) || self.hand_out(id) == HandOut::NotYet {
            return;
        }
        self.recount(id, |live| live.later = false);
        self.causes.later -= 1;
        self.causes.next_may = true;
        if self.live[&id].recovery.handshake == Some(LocalHandshake::Queued) {
            self.queue_half(id);
            self.open_halves(now);
        }
    }

    /// It is handed out.
    pub fn handed_out(&mut self, now: Now, id: SessionId) {
        if self.follows() && self.waiting_of(id).next().is_some() {
            self.causes.gate = Some(Gate { session: id, since: now, until: now + GATE, shown: false });
            self.timers.push(Reverse((now + GATE, id)));
        }
    }

    /// The program has it. What it reads first may be what makes it connect.
    pub(super) fn note_taken(&mut self, now: Now, id: SessionId) {
        let Some(gate) = self.causes.gate.as_mut().filter(|gate| gate.session == id) else { return };
        gate.until = now + GATE;
        self.causes.unaccepted = false;
        if !self.connects_first(id) {
            self.show(now, id);
        }
    }

    /// The session that the gate is for goes on, though others are behind the barrier.
    fn show(&mut self, now: Now, id: SessionId) -> bool {
        let Some(gate) = self.causes.gate.as_mut().filter(|gate| gate.session == id && !gate.shown) else { return false };
        gate.shown = true;
        let shows = self.live.get(&id).is_some_and(|live| live.ownership.is_attached() && live.stage == Stage::Restored);
        if shows {
            self.through_barrier(now, id);
        }
        shows
    }

    pub(super) fn gate_timeout(&mut self, now: Now, id: SessionId) -> Option<Now> {
        let gate = self.causes.gate.filter(|gate| gate.session == id)?;
        if now < gate.until {
            return Some(gate.until);
        }
        let waits = self.waiting_of(id).next().is_some();
        let attached = self.live.get(&id).is_some_and(|live| live.ownership.is_attached());
        let slow = !attached && !self.causes.unaccepted && now < gate.since + UNACCEPTED;
        if waits && (slow || attached && self.show(now, id)) {
            let until = now + GATE;
            self.causes.gate = self.causes.gate.map(|gate| Gate { until, ..gate });
            return Some(until);
        }
        self.causes.unaccepted |= waits && !attached;
        self.open_gate(id);
        None
    }

    /// The next one may come, whatever becomes of this one.
    pub fn open_gate(&mut self, id: SessionId) {
        if self.causes.gate.is_some_and(|gate| gate.session == id) {
            self.causes.gate = None;
            self.causes.next_may = true;
        }
    }

    /// Until when the next session that makes the application connect is not to be handed out; None: it may be.
    #[must_use]
    pub fn gate(&self, now: Now) -> Option<Now> {
        if !self.gate.serves() {
            return None;
        }
        let waits = |gate: &Gate| self.waiting_of(gate.session).next().is_some();
        let newcomer = || {
            let silent = |id: &SessionId| self.waiting_of(*id).next().is_none();
            now < self.causes.newcomer_until && self.causes.processes.values().any(|p| p.fresh.iter().any(silent))
        };
        let gate = self.causes.gate.filter(waits).map(|gate| gate.until);
        gate.or_else(|| newcomer().then_some(self.causes.newcomer_until))
    }

    /// New connections that have waited for the gate.
    pub(super) fn behind_gate(&mut self, now: Now) {
        if self.gate.mode() == Mode::Active && self.handshakes.holds_any() && self.gate(now).is_none() {
            let syns = self.handshakes.take_held();
            self.replay_held(now, syns);
        }
    }

    /// Whether there is more to be handed out since this was asked.
    pub fn next_may(&mut self) -> bool {
        std::mem::take(&mut self.causes.next_may)
    }
}

fn first_free(taken: impl Iterator<Item = u32>) -> u32 {
    let taken: BTreeSet<u32> = taken.collect();
    (1..).find(|n| !taken.contains(n)).expect("a number")
}
