//! How recovered sessions are handed to a program that connects for them.

use super::Known;
use crate::filter::live::Live;
use crate::filter::stage::{LocalHandshake, Stage};
use crate::filter::{Filter, Mode};
use crate::tuple::SessionId;
use crate::Now;

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

impl Filter {
    /// How this session is handed to the program. A program that connects when it accepts gets one client at a time. One that
    /// connects when it has read gets each when there is something to be read.
    #[must_use]
    pub fn hand_out(&self, id: SessionId) -> HandOut {
        // First of all: it is asked of every session that waits.
        if !self.follows() {
            return HandOut::Freely;
        }
        let Some(s) = self.store.get(id) else { return HandOut::Freely };
        if !self.known().has_waiting(id) {
            HandOut::Freely
        } else if self.causes.one_by_one.connects_at_accept(s.open.tuple.local.port()) || self.has_said(s) {
            HandOut::Alone
        } else {
            HandOut::NotYet
        }
    }

    /// The sessions of the store are known: which of them are not to be handed out yet.
    pub(in crate::filter) fn note_hand_outs(&mut self) {
        if !self.follows() {
            return;
        }
        let at_accept = self.known().ports_that_connect_first().collect();
        self.causes.one_by_one.begin(at_accept);
        let takes = |live: &Live| live.stage == Stage::Probing && !live.outgoing && !live.ownership.is_closed();
        let recovered = self.live.iter().filter(|(_, live)| takes(live)).map(|(id, _)| *id);
        let later: Vec<SessionId> = recovered.filter(|id| self.hand_out(*id) == HandOut::NotYet).collect();
        self.causes.one_by_one.set_later(later.len());
        later.into_iter().for_each(|id| self.recount(id, |live| live.later = true));
    }

    /// Whether some sessions are not to be handed out yet.
    #[must_use]
    pub fn any_later(&self) -> bool {
        self.causes.one_by_one.any_later()
    }

    /// Whether this session is not to be handed out yet.
    #[must_use]
    pub fn is_later(&self, id: SessionId) -> bool {
        self.live.get(&id).is_some_and(|live| live.later)
    }

    /// Its peer may have said something.
    pub(in crate::filter) fn stir(&mut self, now: Now, id: SessionId) {
        if !self.is_later(id) || self.hand_out(id) == HandOut::NotYet {
            return;
        }
        self.recount(id, |live| live.later = false);
        self.causes.one_by_one.later_one_may();
        if self.live[&id].recovery.handshake == Some(LocalHandshake::Queued) {
            self.queue_half(id);
            self.open_halves(now);
        }
    }

    /// It is handed out.
    pub fn handed_out(&mut self, now: Now, id: SessionId) {
        if self.follows() && self.known().has_waiting(id) {
            let until = self.causes.one_by_one.handed_out(now, id);
            self.timers.set(until, id);
        }
    }

    /// The program has it. What it reads first may be what makes it connect.
    pub(in crate::filter) fn note_taken(&mut self, now: Now, id: SessionId) {
        if self.causes.one_by_one.taken(now, id) && !self.known().connects_first(id) {
            self.show(now, id);
        }
    }

    /// The session that the next one waits for goes on, though others are behind the barrier.
    fn show(&mut self, now: Now, id: SessionId) -> bool {
        let live = self.live.get(&id);
        let may = live.is_some_and(|live| live.ownership.is_attached() && live.stage == Stage::Restored);
        let shows = self.causes.one_by_one.show(id) && may;
        if shows {
            self.through_barrier(now, id);
        }
        shows
    }

    pub(in crate::filter) fn gate_timeout(&mut self, now: Now, id: SessionId) -> Option<Now> {
        let until = self.causes.one_by_one.until(id)?;
        if now < until {
            return Some(until);
        }
        let waits = self.known().has_waiting(id);
        let attached = self.live.get(&id).is_some_and(|live| live.ownership.is_attached());
        let goes_on = waits
            && match attached {
                true => self.show(now, id),
                false => self.causes.one_by_one.may_be_accepted(now),
            };
        if goes_on {
            return Some(self.causes.one_by_one.wait_on(now));
        }
        self.causes.one_by_one.give_up(id, waits && !attached);
        None
    }

    /// The next one may come, whatever becomes of this one.
    pub fn open_gate(&mut self, id: SessionId) {
        self.causes.one_by_one.open(id);
    }

    /// Until when the next session that makes the application connect is not to be handed out; None: it may be.
    #[must_use]
    pub fn gate(&self, now: Now) -> Option<Now> {
        if !self.gate.serves() {
            return None;
        }
        let known: Known<'_> = self.known();
        let silent = || self.causes.readers.any_fresh(|id| !known.has_waiting(id));
        self.causes.one_by_one.next(now, |id| known.has_waiting(id), silent)
    }

    /// New connections that have waited for the gate.
    pub(in crate::filter) fn behind_gate(&mut self, now: Now) {
        if self.gate.mode() == Mode::Active && self.handshakes.holds_any() && self.gate(now).is_none() {
            let syns = self.handshakes.take_held();
            self.replay_held(now, syns);
        }
    }

    /// Whether there is more to be handed out since this was asked.
    pub fn next_may(&mut self) -> bool {
        self.causes.one_by_one.next_may()
    }
}
