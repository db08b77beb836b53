//! Packets that went around the queues, because the rules were gone for a while. The local TCP received input meanwhile that is
//! in no store, and sent output that the gate never released. When the rules are back, the kernel is asked how far each session
//! has come.
//!
//! No member can give input again that only the local TCP has seen. Their place in the store is taken (the stream
//! must go on behind them), and the session is torn until the application has done with them, and until its output that may
//! have left is committed. After that it is as good as any other: nothing of it would be needed by the next master.

use std::collections::BTreeSet;

use super::stage::Stage;
use super::{Action, Filter};
use crate::framing::Framing;
use crate::pooled::Blank;
use crate::record::{self, Adopted, Committed, EndReason, MAX_OPEN};
use crate::segment::flags;
use crate::store::Session;
use crate::tuple::{BySession, SessionId};
use crate::Now;

/// So much of a session's input is given a place; one that took more without us is reset.
pub(super) const MOST: u64 = 64 << 20;
/// A place is taken in pieces of this size.
const PIECE: usize = 60 << 10;
/// A program without hooks may have sent this much meanwhile that nobody knows of.
const SENT: u64 = 1 << 30;

/// What must be committed of a session until its state is known again.
#[derive(Clone, Copy, Debug)]
struct Around {
    input: u64,
    output: u64,
}

impl Around {
    /// With this committed it is.
    fn over(self, in_done: u64, out_done: u64) -> bool {
        in_done >= self.input && out_done >= self.output
    }
}

/// Sessions of which packets went around the queues, until that matters no more, and those to ask the kernel about.
#[derive(Debug, Default)]
pub(super) struct Arounds {
    sessions: BySession<Around>,
    asked: BTreeSet<SessionId>,
}

impl Arounds {
    pub fn clear(&mut self) {
        self.sessions.clear();
        self.asked.clear();
    }

    /// A session is over.
    pub fn forget(&mut self, id: SessionId) {
        self.sessions.remove(&id);
        self.asked.remove(&id);
    }

    /// The kernel is to be asked about a session.
    pub fn ask(&mut self, id: SessionId) {
        self.asked.insert(id);
    }

    /// An application says that it has taken so much input, which is more than is in the store.
    pub fn claims(&mut self, id: SessionId, input: u64) {
        let around = self.sessions.entry(id).or_insert(Around { input: 0, output: 0 });
        around.input = around.input.max(input);
        self.ask(id);
    }

    /// Whether a commit of so much leaves the session's state unknown.
    pub fn outlasts(&mut self, id: SessionId, in_done: u64, out_done: u64) -> bool {
        let Some(around) = self.sessions.get(&id) else { return false };
        let over = around.over(in_done, out_done);
        if over {
            self.sessions.remove(&id);
        }
        !over
    }
}

impl Filter {
    /// Something was said of a session that can only be true if packets went around the queues: the kernel is to be asked, and
    /// [`Filter::went_around`] called.
    pub fn poll_around(&mut self) -> Option<SessionId> {
        self.around.asked.pop_first()
    }

    /// How many sessions would be lost with this member, because packets of theirs went around the queues.
    #[must_use]
    pub fn around(&self) -> usize {
        self.around.sessions.len()
    }

    /// To be called for every session of [`Filter::with_sockets`] when packets may have gone around the queues, and go through
    /// them again: how many bytes of input the kernel's socket has taken since it was made (with one for the end of it, if it
    /// `ended`).
    pub fn went_around(&mut self, now: Now, id: SessionId, received: u64, ended: bool) {
        self.clock = now;
        let serves = self.gate.serves();
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get_mut(&id)) else { return };
        if !serves || !live.established || matches!(live.stage, Stage::Embryo { .. } | Stage::Probing | Stage::Restored) {
            return;
        }
        if live.loose() {
            return;
        }
        let taken = live.local.base().saturating_add(received).saturating_sub(u64::from(ended));
        if self.around.sessions.get(&id).is_some_and(|around| around.input > taken.max(s.in_end())) {
            // Its process says that it has read what no kernel gave it.
            self.around.sessions.remove(&id);
            return self.lose(now, id);
        }
        let announced = live.announced_end(s);
        if live.recovery.old_output.is_none() && !live.local.is_silenced() {
            // All that was announced may have left, and what acknowledges it is no forgery.
            let sent = announced + u64::from(live.ownership.fin_asked());
            live.peer.was_released(sent);
            live.local.has_sent(sent);
            if !self.config.hooked {
                live.local.clamp_to(live.local.clamp().max(announced + SENT));
            }
        }
        let slipped = taken > s.in_end() || ended && !s.in_fin;
        if slipped && (s.in_fin || taken > s.in_end().saturating_add(MOST)) {
            self.counters.around_reset += 1;
            return self.reset_lost(now, id);
        }
        let around = Around { input: if slipped { taken } else { 0 }, output: announced };
        if !around.over(s.in_done, s.out_done) {
            self.around.sessions.insert(id, around);
            self.tear_for_now(now, id);
        }
        if slipped {
            self.counters.around += 1;
            self.take_place(now, id, taken, ended);
        }
        self.settle_around(now, id);
    }

    fn tear_for_now(&mut self, now: Now, id: SessionId) {
        let Some(s) = self.store.get(id) else { return };
        let entry = Committed { torn: true, ..s.committed() };
        self.write_commit(now, &[entry], &[]);
    }

    /// Takes the place of input up to `taken` that only the local TCP has seen. What arrived out of order is known.
    fn take_place(&mut self, now: Now, id: SessionId, taken: u64, ended: bool) {
        if let Some(Framing::Length { .. }) = self.store.get(id).map(|s| self.policy(&s.open.tuple).framing) {
            // Where its messages begin cannot be known any more.
            self.live.get_mut(&id).expect("live").ownership.lose();
        }
        loop {
            let (Some(s), Some(live)) = (self.store.get(id), self.live.get_mut(&id)) else { return };
            let in_end = s.in_end();
            if s.in_fin || in_end >= taken {
                break;
            }
            let until = live
                .reassembly
                .get_mut_if_any()
                .and_then(|queue| queue.first())
                .map_or(taken, |first| first.clamp(in_end + 1, taken));
            let mut bytes = vec![0; PIECE.min((until - in_end) as usize)];
            let end = in_end + bytes.len() as u64;
            let fin = !live.reassembly.is_blank() && self.join_reassembled(id, end, &mut bytes);
            self.append_input(now, id, in_end, &bytes, fin);
        }
        let at_end = self.store.get(id).filter(|s| ended && !s.in_fin).map(Session::in_end);
        if let Some(in_end) = at_end {
            self.append_input(now, id, in_end, &[], true);
        }
    }

    /// What commits claimed before there was a place for it is committed now.
    fn settle_around(&mut self, now: Now, id: SessionId) {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get(&id)) else { return };
        let Some(around) = self.around.sessions.get(&id).copied() else { return };
        let claimed = self.processes.turns.done(id);
        let in_done = claimed.map_or(s.in_done, |c| c.in_done.clamp(s.in_done, s.in_end()));
        let over = around.over(in_done, s.out_done);
        if in_done == s.in_done && !over {
            return;
        }
        let torn = !over || live.ownership.is_lost() || claimed.is_some_and(|c| c.torn);
        let open = claimed.map_or(0, |c| s.out_done.saturating_sub(c.out_base).min(MAX_OPEN));
        let entry = Committed { in_done: in_done as u32, open, torn, ..s.committed() };
        if over {
            self.around.sessions.remove(&id);
        }
        self.write_commit(now, &[entry], &[]);
    }

    /// The local TCP sends from here on, and nobody knows what it sent before: that has left around the queue.
    pub(super) fn sent_around(&mut self, now: Now, id: SessionId, from: u64) {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get_mut(&id)) else { return };
        let adopted = Adopted { session: id, in_done: s.in_done, out_done: from, out_base: from };
        let n = from - s.out_done;
        live.peer.acknowledges(from);
        live.peer.was_released(from);
        self.counters.adopted_bytes += n;
        self.write(0, |out| record::encode_adopted(&adopted, out));
        self.processes.adopted(now, id, n);
        self.run_commits(now);
    }

    /// Nobody can go on with it.
    fn reset_lost(&mut self, now: Now, id: SessionId) {
        let Some(s) = self.store.get(id) else { return };
        let at = s.out_seq(self.live.get(&id).map_or(s.out_acked, |l| l.peer.una().max(l.peer.released())));
        let reset = self.segment_to_peer(id, flags::RST | flags::ACK, at, &[]);
        self.actions.push(Action::SendPeer(reset));
        self.end_session(now, id, EndReason::ResetByUs);
    }
}
