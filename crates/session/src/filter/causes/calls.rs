//! The connects that are under way, and which of them made which session.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;

use super::{Caller, Family};
use crate::tuple::{FourTuple, SessionId};
use crate::turn::Thread;

/// Most calls remembered that have made no session yet; of the oldest nothing is known any more.
const MAX_CALLS: usize = 4096;
/// Most threads remembered that connect to one destination for no client: more than one is too many.
const MAX_OWN: usize = 64;

/// A connect that has made no session yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Call {
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

    pub fn thread(&self) -> Thread {
        self.thread
    }

    pub fn is_aloof(&self) -> bool {
        self.aloof
    }

    pub fn caller(&self) -> &Caller {
        &self.caller
    }
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Calls {
    made: u64,
    /// By the socket, and by the four-tuple once that is known.
    lent: VecDeque<(u64, Call)>,
    under_way: VecDeque<(FourTuple, Call)>,
    /// Those that made outgoing sessions.
    numbers: HashMap<SessionId, u64>,
    /// Those that were had back after a takeover, and over which no byte has flowed since.
    unused: BTreeSet<SessionId>,
    /// Those that were had back by a guess, and over which no byte of their client has flowed since.
    guessed: BTreeSet<SessionId>,
    /// Threads that connect before their process has any peer's session, and whether that is still under way.
    own: HashMap<SocketAddr, BTreeMap<Thread, bool>>,
    /// Places without a session for which the program has called since the takeover, and was refused.
    refused: HashMap<Family, BTreeSet<u32>>,
}

impl Calls {
    /// What connects is as it was.
    pub fn forget_sessions(&mut self) {
        self.numbers.clear();
        self.unused.clear();
        self.guessed.clear();
        self.refused.clear();
    }

    /// A session is over.
    pub fn forget(&mut self, id: SessionId) {
        self.numbers.remove(&id);
        self.unused.remove(&id);
        self.guessed.remove(&id);
    }

    pub fn threads_gone(&mut self, gone: impl Fn(&Thread) -> bool) {
        self.refused.clear();
        self.lent.retain(|(_, call)| !gone(&call.thread));
        self.own.values_mut().for_each(|threads| threads.retain(|t, _| !gone(t)));
        self.own.retain(|_, threads| !threads.is_empty());
    }

    // ---- under way -------------------------------------------------------------------------------------

    fn new_call(&mut self, thread: Thread, aloof: bool, caller: Caller) -> Call {
        self.made += 1;
        Call { number: self.made, thread, aloof, caller, gap: None }
    }

    /// The thread is about to connect this socket.
    pub fn lend(&mut self, socket: u64, thread: Thread, aloof: bool, caller: Caller) {
        let call = self.new_call(thread, aloof, caller);
        replace(&mut self.lent, socket, call);
    }

    /// See [`super::super::Filter::is_lent`].
    pub fn is_lent(&self, socket: u64) -> bool {
        self.lent.iter().any(|(other, _)| *other == socket)
    }

    /// See [`super::super::Filter::called_by`].
    pub fn called_by(&mut self, tuple: FourTuple, socket: Option<u64>) {
        match socket.and_then(|socket| self.lent.iter().find(|(other, _)| *other == socket)) {
            Some((_, call)) => {
                let call = call.clone();
                replace(&mut self.under_way, tuple, call);
            }
            // A socket that is gone, or one that was not lent.
            None => self.under_way.retain(|(t, _)| *t != tuple),
        }
    }

    /// A call of which no hook has told.
    pub fn note_unhooked(&mut self, tuple: FourTuple, caller: Caller) {
        let mut call = self.new_call(0, true, caller);
        // Each may be another thread's.
        call.thread = call.number;
        replace(&mut self.under_way, tuple, call);
    }

    pub fn is_known(&self, tuple: &FourTuple) -> bool {
        self.under_way.iter().any(|(t, _)| t == tuple)
    }

    pub fn find(&self, tuple: &FourTuple) -> Call {
        self.under_way.iter().rev().find(|(t, _)| t == tuple).map_or(Call::UNKNOWN, |(_, call)| call.clone())
    }

    /// The call has made this session.
    pub fn opened(&mut self, tuple: &FourTuple, id: SessionId) -> Call {
        let call = self.find(tuple);
        self.lent.retain(|(_, other)| other.number != call.number);
        self.over(tuple, &call, id);
        call
    }

    /// The call has this session back.
    pub fn has_back(&mut self, tuple: &FourTuple, call: &Call, id: SessionId) {
        self.over(tuple, call, id);
        self.unused.insert(id);
        if matches!(call.caller, Caller::Of { sure: false, .. }) {
            self.guessed.insert(id);
        } else {
            self.guessed.remove(&id);
        }
    }

    fn over(&mut self, tuple: &FourTuple, call: &Call, id: SessionId) {
        self.under_way.retain(|(t, _)| t != tuple);
        self.numbers.insert(id, call.number);
    }

    /// The program has read from the session, or written to it.
    pub fn used(&mut self, id: SessionId) {
        self.unused.remove(&id);
    }

    /// Bytes have shown that the session is that client's which it was had back for.
    pub fn guessed_right(&mut self, id: SessionId) {
        self.guessed.remove(&id);
    }

    /// Whether it was had back by a guess, and nothing has shown yet that this was right.
    pub fn is_guessed(&self, id: SessionId) -> bool {
        self.guessed.contains(&id)
    }

    /// Whether it was had back, and no byte has flowed since.
    pub fn is_unused(&self, id: SessionId) -> bool {
        self.unused.contains(&id)
    }

    /// The answers to connects may come in another order than they were made in: the places of those that were made later come
    /// behind this one's. Returns what places to give; `others`: the places of its like.
    pub fn in_order(&self, call: &Call, id: SessionId, nth: u32, others: &[(SessionId, u32)]) -> Vec<(SessionId, u32)> {
        let number_of = |id: &SessionId| self.numbers.get(id).copied().filter(|n| *n > call.number);
        let mut later: Vec<_> = others.iter().filter_map(|(id, nth)| Some((number_of(id)?, *id, *nth))).collect();
        if later.is_empty() {
            return Vec::new();
        }
        later.push((call.number, id, nth));
        let mut places: Vec<u32> = later.iter().map(|(.., nth)| *nth).collect();
        places.sort_unstable();
        later.sort_unstable();
        later.into_iter().map(|(_, id, _)| id).zip(places).collect()
    }

    // ---- the program's own -----------------------------------------------------------------------------

    /// The thread is about to connect there for no peer's sake. `none`: there is no such session.
    pub fn connects_itself(&mut self, thread: Thread, to: SocketAddr, none: impl FnOnce() -> bool) {
        let over = |threads: &BTreeMap<Thread, bool>| threads.iter().all(|(t, under_way)| *t == thread || !under_way);
        if self.own.get(&to).is_some_and(over) && none() {
            self.own.remove(&to);
        }
        let threads = self.own.entry(to).or_default();
        if threads.len() < MAX_OWN {
            threads.insert(thread, true);
        }
    }

    /// It has connected.
    pub fn has_connected(&mut self, thread: Thread, to: SocketAddr) {
        if let Some(under_way) = self.own.get_mut(&to).and_then(|threads| threads.get_mut(&thread)) {
            *under_way = false;
        }
    }

    /// Whether more than one thread connects there for no peer's sake: nobody knows who would be the first the next time. One
    /// whose process is dead by now is none of those that will connect then.
    pub fn several(&self, to: SocketAddr) -> bool {
        self.own.get(&to).is_some_and(|threads| threads.len() > 1)
    }

    // ---- places that stay free -------------------------------------------------------------------------

    /// The place of this call's session is free, though others of them wait.
    pub fn set_gap(&mut self, tuple: &FourTuple, gap: Option<u32>) {
        if let Some((_, call)) = self.under_way.iter_mut().rev().find(|(t, _)| t == tuple) {
            call.gap = gap;
        }
    }

    /// Whoever was called refuses.
    pub fn refuse(&mut self, tuple: &FourTuple, to: SocketAddr) {
        let call = self.find(tuple);
        if let Some(place) = call.gap {
            self.refused.entry(call.caller.family(to)).or_default().insert(place);
        }
    }

    /// The places for which the program was refused.
    pub fn refused(&self, family: &Family) -> impl Iterator<Item = u32> + '_ {
        self.refused.get(family).into_iter().flatten().copied()
    }
}

/// Puts a call at the end of such a list, in place of an older one of the same name.
fn replace<K: PartialEq>(list: &mut VecDeque<(K, Call)>, key: K, call: Call) {
    list.retain(|(other, _)| *other != key);
    list.push_back((key, call));
    if list.len() > MAX_CALLS {
        list.pop_front();
    }
}
