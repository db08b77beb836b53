//! Which thread has read what since when, and what came of it: that says whom it may connect for.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::doubts::Doubts;
use super::{Caller, Owner};
use crate::filter::processes::channel_of;
use crate::tuple::SessionId;
use crate::turn::Thread;

/// Most threads that are watched: an application that makes up thread numbers must not eat the manager's memory.
const MAX_WORKERS: usize = 1 << 16;
/// Up to so many threads, those that have nothing any more are not looked for.
const FEW_WORKERS: usize = 1024;

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

impl Worker {
    /// When it has read that session.
    fn since(&self, id: SessionId) -> u64 {
        self.ins.get(&id).or_else(|| self.outs.get(&id)).copied().unwrap_or(0)
    }
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

/// The sessions that what a thread does now may come from: peers', and outgoing ones.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub ins: Vec<SessionId>,
    pub outs: Vec<SessionId>,
}

/// See the module's description. `owner` says of a session whose it is.
#[derive(Debug, Default)]
pub(super) struct Readers {
    clock: u64,
    served: HashMap<SessionId, Served>,
    workers: HashMap<Thread, Worker>,
    /// Past so many, those of threads that have nothing any more are forgotten.
    crowd: usize,
    processes: HashMap<u32, Process>,
}

impl Readers {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    pub fn forget_sessions(&mut self) {
        self.served.clear();
        self.workers.clear();
        self.processes.values_mut().for_each(|p| p.fresh.clear());
    }

    /// A session is over. A process that has it unread may not know that, and connect for it, until it closes it.
    pub fn forget(&mut self, id: SessionId) {
        self.served.remove(&id);
    }

    pub fn processes_gone(&mut self, gone: impl Fn(&u32) -> bool) {
        self.processes.retain(|channel, _| !gone(channel));
        self.workers.retain(|t, _| !gone(&channel_of(*t)));
    }

    // ---- what the hooks tell ---------------------------------------------------------------------------

    /// The thread's process has come to hold a peer's session. `inherited`: from another process, and not by this thread.
    pub fn holds(&mut self, thread: Thread, session: SessionId, inherited: bool, owner: &impl Fn(SessionId) -> Owner) {
        let process = self.processes.entry(channel_of(thread)).or_default();
        process.served = true;
        process.fresh.insert(session);
        process.accepts |= !inherited;
        self.served.entry(session).or_default();
        if !inherited {
            self.note(thread, session, owner);
        }
    }

    /// The thread has read from a session.
    pub fn reads(&mut self, thread: Thread, session: SessionId, owner: &impl Fn(SessionId) -> Owner) {
        if owner(session) == Owner::Peer {
            self.touched(session);
            self.served.entry(session).or_default().read = true;
        }
        self.note(thread, session, owner);
    }

    /// What the thread does from now on may come from this session.
    fn note(&mut self, thread: Thread, session: SessionId, owner: &impl Fn(SessionId) -> Owner) {
        let since = self.tick();
        self.forget_idle(owner);
        if self.workers.len() >= MAX_WORKERS && !self.workers.contains_key(&thread) {
            return;
        }
        let mut worker = self.workers.remove(&thread).unwrap_or_default();
        if std::mem::take(&mut worker.ended) {
            // What was read in earlier turns and went nowhere may have its consequences now.
            worker.ins.retain(|id, since| !self.is_settled(Some(*id), *since));
            worker.outs.retain(|id, since| !self.is_settled(owner(*id).root(*id), *since));
            worker.called_for = None;
            worker.gone.clear();
        }
        let owner = owner(session);
        if owner == Owner::Peer { &mut worker.ins } else { &mut worker.outs }.insert(session, since);
        worker.life = match (worker.life, owner.root(session)) {
            (life, None) => life,
            (Life::None, Some(root)) => Life::One(root),
            (Life::One(one), Some(root)) if one == root => Life::One(one),
            _ => Life::Many,
        };
        self.workers.insert(thread, worker);
    }

    /// A server with a thread for each connection has had very many.
    fn forget_idle(&mut self, owner: &impl Fn(SessionId) -> Owner) {
        if self.workers.len() < self.crowd.max(FEW_WORKERS) {
            return;
        }
        let lives = |id: &SessionId| owner(*id) != Owner::Gone;
        self.workers.retain(|_, w| match w.life {
            Life::Many => true,
            Life::One(session) if lives(&session) => true,
            _ => w.ins.keys().chain(w.outs.keys()).any(lives),
        });
        self.crowd = self.workers.len() * 2;
    }

    pub fn waits(&mut self, thread: Thread) {
        if let Some(worker) = self.workers.get_mut(&thread) {
            worker.ended = true;
        }
    }

    pub fn closed(&mut self, channel: u32, session: SessionId) {
        let Some(process) = self.processes.get_mut(&channel) else { return };
        process.fresh.remove(&session);
        for (_, worker) in self.workers.iter_mut().filter(|(t, _)| channel_of(**t) == channel) {
            worker.ins.remove(&session);
            worker.outs.remove(&session);
        }
    }

    /// Somebody has had to do with a peer's session: no other thread has it from the one that accepted it.
    pub fn touched(&mut self, session: SessionId) {
        self.processes.values_mut().for_each(|p| {
            p.fresh.remove(&session);
        });
    }

    /// The thread has written all that it has to a session, which `outgoing` is the application's own: `sources` have gone there.
    pub fn passed_on(
        &mut self,
        thread: Thread,
        to: SessionId,
        outgoing: bool,
        sources: Sources,
        owner: &impl Fn(SessionId) -> Owner,
    ) {
        let Sources { ins, outs } = sources;
        let root = owner(to).root(to).or_else(|| (ins.len() == 1).then(|| ins[0]));
        let now = self.tick();
        if let Some(served) = root.and_then(|root| self.served.get_mut(&root)) {
            served.settled = now;
        }
        if let Some(worker) = self.workers.get_mut(&thread) {
            let gone = if outgoing { ins } else { outs }.into_iter();
            worker.gone.extend(gone.filter(|id| *id != to && owner(*id).root(*id) == root).map(|id| (id, now)));
        }
    }

    /// The thread is about to connect for a peer's session.
    pub fn connects_for(&mut self, thread: Thread, session: SessionId) {
        self.touched(session);
        let called = self.tick();
        if let Some(served) = self.served.get_mut(&session) {
            served.called = called;
        }
        if let Some(worker) = self.workers.get_mut(&thread) {
            worker.called_for = Some(session);
        }
    }

    /// The connect of that thread for a peer's session is refused: there may be another one for it.
    pub fn refused(&mut self, thread: Thread, session: SessionId) {
        let Some(served) = self.served.get_mut(&session) else { return };
        served.called = 0;
        // Whoever has read it, has it still; of one that is handed on without that, nothing else would tell.
        if let Some(process) = self.processes.get_mut(&channel_of(thread)).filter(|_| !served.read) {
            process.fresh.insert(session);
        }
    }

    // ---- what that says --------------------------------------------------------------------------------

    /// Whether a peer's session was read from; one that was only accepted has said nothing yet.
    pub fn was_read(&self, session: SessionId) -> bool {
        self.served.get(&session).is_some_and(|s| s.read)
    }

    /// Whether the thread has never had to do with any peer's session.
    pub fn is_aloof(&self, thread: Thread) -> bool {
        self.workers.get(&thread).is_none_or(|w| w.life == Life::None)
    }

    /// Whether a process has a peer's session that nobody has touched, and that is such a one.
    pub fn any_fresh(&self, such: impl Fn(SessionId) -> bool) -> bool {
        self.processes.values().any(|p| p.fresh.iter().any(|id| such(*id)))
    }

    /// What was read at `since` has gone somewhere.
    fn is_settled(&self, session: Option<SessionId>, since: u64) -> bool {
        session.is_none_or(|s| self.served.get(&s).is_none_or(|s| s.settled > since))
    }

    pub fn sources(&self, thread: Thread, owner: &impl Fn(SessionId) -> Owner) -> Sources {
        let Some(worker) = self.workers.get(&thread) else { return Sources::default() };
        let counts = |(id, since): (&SessionId, &u64)| {
            let owner = owner(*id);
            (owner != Owner::Gone && (!worker.ended || !self.is_settled(owner.root(*id), *since))).then_some(*id)
        };
        Sources { ins: worker.ins.iter().filter_map(counts).collect(), outs: worker.outs.iter().filter_map(counts).collect() }
    }

    /// Of the sources those that have had no consequence yet: no connect, and nothing passed on before something else was read.
    fn unspent(&self, thread: Thread, worker: &Worker, owner: &impl Fn(SessionId) -> Owner) -> Sources {
        let Sources { mut ins, mut outs } = self.sources(thread, owner);
        let last = ins.iter().chain(&outs).map(|id| worker.since(*id)).max().unwrap_or(0);
        let gone = |id: &SessionId| worker.gone.get(id).is_some_and(|at| (worker.since(*id)..last).contains(at));
        let called = |id: &SessionId| self.served.get(id).is_some_and(|s| s.called >= worker.since(*id));
        ins.retain(|id| !called(id) && !gone(id));
        outs.retain(|id| !gone(id));
        Sources { ins, outs }
    }

    /// Whom the thread connects for.
    pub fn caller(&self, thread: Thread, owner: &impl Fn(SessionId) -> Owner, doubts: &Doubts) -> Caller {
        if self.workers.len() >= MAX_WORKERS {
            return Caller::Unclear(None);
        }
        let idle = Worker::default();
        let worker = self.workers.get(&thread).unwrap_or(&idle);
        let Sources { ins, outs } = self.unspent(thread, worker, owner);
        let Some(read) = doubts.clients_of(&ins, &outs, owner) else { return Caller::Unclear(None) };
        if let ([one], Life::One(only)) = (&ins[..], worker.life) {
            // A thread of its own: what others have accepted meanwhile is for other threads.
            let first = self.served.get(one).is_some_and(|s| s.read && s.called == 0);
            if *one == only && read.len() == 1 && first {
                return self.client(only, true);
            }
        }
        self.caller_among(thread, worker, read, owner)
    }

    /// The same, where it may be one that others have accepted. `read`: those that it may be by what the thread has read.
    fn caller_among(
        &self,
        thread: Thread,
        worker: &Worker,
        read: BTreeSet<SessionId>,
        owner: &impl Fn(SessionId) -> Owner,
    ) -> Caller {
        let process = self.processes.get(&channel_of(thread));
        let sure = !read.is_empty() || process.is_some_and(|p| !p.accepts);
        let mut among = read;
        if !sure && process.is_some_and(|p| !p.fresh.is_empty()) {
            // Another thread may have handed one on; or this one connects once more for one that it has.
            match worker.life {
                Life::None => {}
                Life::One(session) => among.extend([session]),
                Life::Many => return Caller::Unclear(None),
            }
        }
        let alive = |id: &SessionId| owner(*id) != Owner::Gone;
        among.retain(alive);
        among.extend(process.iter().flat_map(|p| &p.fresh));
        if !worker.ended {
            // The program may not know yet that one which it has read from in this turn has ended.
            among.extend(worker.ins.keys().filter(|id| !alive(id)));
        }
        let again = match (worker.called_for.filter(|_| !worker.ended), worker.life) {
            (Some(session), _) | (None, Life::One(session)) => Some(session).filter(alive),
            _ => None,
        };
        match (among.len(), again) {
            (1, _) => self.client(among.into_iter().next().expect("one"), sure),
            (0, Some(session)) => self.client(session, true),
            (0, None) if process.is_none_or(|p| !p.served) => Caller::Own,
            (0, None) => Caller::Unclear(None),
            _ => Caller::Unclear(Some(among.into_iter().map(|id| (id, self.was_read(id))).collect())),
        }
    }

    fn client(&self, session: SessionId, sure: bool) -> Caller {
        Caller::Of { session, read: self.was_read(session), sure }
    }
}
