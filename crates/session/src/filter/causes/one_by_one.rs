//! Recovered sessions that make the program connect are handed to it one after another: a connect is then known for the
//! session that was handed out last. Here is which one that is, and when the next one may come.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::tuple::SessionId;
use crate::Now;

/// How long the next recovered session waits for the connect that the one before makes when the program has it.
const GATE: Duration = Duration::from_millis(200);
/// How long it waits for a program that does not accept.
const UNACCEPTED: Duration = Duration::from_secs(2);
/// How long it waits for a client that is new to say something: until then a connect may be for that one.
const NEWCOMER: Duration = Duration::from_millis(100);

/// A session that was handed out alone, and has yet to make its connects: until then the next one waits.
#[derive(Clone, Copy, Debug)]
struct Gate {
    session: SessionId,
    since: Now,
    until: Now,
    /// The session's input has been delivered.
    shown: bool,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct OneByOne {
    gate: Option<Gate>,
    /// The last one was not accepted in time: the next one waits no longer for that.
    unaccepted: bool,
    newcomer_until: Now,
    /// Ports whose clients make the program connect when it accepts them.
    at_accept: BTreeSet<u16>,
    /// How many sessions are not to be handed out yet; and whether another one may be.
    later: usize,
    next_may: bool,
}

impl OneByOne {
    pub fn forget_sessions(&mut self) {
        *self = OneByOne { next_may: self.next_may, ..OneByOne::default() };
    }

    /// A takeover begins: the clients of these ports make the program connect when it accepts them.
    pub fn begin(&mut self, at_accept: BTreeSet<u16>) {
        self.at_accept = at_accept;
    }

    /// So many sessions are not to be handed out yet.
    pub fn set_later(&mut self, later: usize) {
        self.later = later;
    }

    pub fn connects_at_accept(&self, port: u16) -> bool {
        self.at_accept.contains(&port)
    }

    // ---- not yet ---------------------------------------------------------------------------------------

    pub fn any_later(&self) -> bool {
        self.later > 0
    }

    /// One that was not to be handed out yet may be now.
    pub fn later_one_may(&mut self) {
        self.later -= 1;
        self.next_may = true;
    }

    /// One that was not to be handed out yet is over.
    pub fn later_one_ended(&mut self) {
        self.later -= 1;
    }

    /// Whether there is more to be handed out since this was asked.
    pub fn next_may(&mut self) -> bool {
        std::mem::take(&mut self.next_may)
    }

    // ---- the one that was handed out -------------------------------------------------------------------

    fn gate_of(&mut self, id: SessionId) -> Option<&mut Gate> {
        self.gate.as_mut().filter(|gate| gate.session == id)
    }

    /// The session is handed out: the next one waits until then.
    pub fn handed_out(&mut self, now: Now, id: SessionId) -> Now {
        let until = now + GATE;
        self.gate = Some(Gate { session: id, since: now, until, shown: false });
        until
    }

    /// The program has it. Returns whether the next one waits for it.
    pub fn taken(&mut self, now: Now, id: SessionId) -> bool {
        let Some(gate) = self.gate_of(id) else { return false };
        gate.until = now + GATE;
        self.unaccepted = false;
        true
    }

    /// It goes on, though others are behind the barrier. Returns whether it has not before.
    pub fn show(&mut self, id: SessionId) -> bool {
        self.gate_of(id).is_some_and(|gate| !std::mem::replace(&mut gate.shown, true))
    }

    /// Until when the next one waits for this one.
    pub fn until(&self, id: SessionId) -> Option<Now> {
        self.gate.filter(|gate| gate.session == id).map(|gate| gate.until)
    }

    /// Whether it is worth waiting longer for the program to accept it.
    pub fn may_be_accepted(&self, now: Now) -> bool {
        !self.unaccepted && self.gate.is_some_and(|gate| now < gate.since + UNACCEPTED)
    }

    pub fn wait_on(&mut self, now: Now) -> Now {
        let until = now + GATE;
        self.gate = self.gate.map(|gate| Gate { until, ..gate });
        until
    }

    /// It was waited for long enough. `unaccepted`: the program has not accepted it.
    pub fn give_up(&mut self, id: SessionId, unaccepted: bool) {
        self.unaccepted |= unaccepted;
        self.open(id);
    }

    /// The next one may come, whatever becomes of this one.
    pub fn open(&mut self, id: SessionId) {
        if self.gate_of(id).is_some() {
            self.gate = None;
            self.next_may = true;
        }
    }

    /// A client has come: until it says something a connect may be for it. Returns when that is over, if it was not known.
    pub fn newcomer(&mut self, now: Now) -> Option<Now> {
        (now >= self.newcomer_until + NEWCOMER).then(|| {
            self.newcomer_until = now + NEWCOMER;
            self.newcomer_until
        })
    }

    /// Until when the next one is not to be handed out. `waits`: whether that session has connects to make; `silent`: whether a
    /// client that is new has said nothing yet.
    pub fn next(&self, now: Now, waits: impl FnOnce(SessionId) -> bool, silent: impl FnOnce() -> bool) -> Option<Now> {
        let gate = self.gate.filter(|gate| waits(gate.session)).map(|gate| gate.until);
        gate.or_else(|| (now < self.newcomer_until && silent()).then_some(self.newcomer_until))
    }
}
