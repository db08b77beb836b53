//! What the application has done with one session, and what of it a commit may claim.

use super::commits::CommitEntry;
use super::port::{PortPolicy, Unanswered};
use super::Thread;
use crate::framing::Scanner;
use crate::tuple::SessionId;

/// No open turn has touched the session.
pub(super) const NO_GROUP: u32 = u32::MAX;
/// Offsets travel as their low 32 bits: what is kept of a stream must stay below 2^31.
const MOST_UNANSWERED: u64 = 1 << 30;

#[derive(Debug)]
pub(super) struct Progress {
    unanswered: Unanswered,
    max_unanswered: u64,
    pub independent: bool,
    /// Where the port has a framing.
    pub scanner: Option<Box<Scanner>>,
    /// Input offset up to which the application has read.
    pub in_read: u64,
    /// The same, as the hooks tell it. What the kernel says is a floor of `in_read`, and not added to this: a read that it
    /// counted may be told afterwards.
    pub told: u64,
    /// The thread that read last, and the serial number of that read.
    pub last_read: (Thread, u64),
    /// How much was read before this turn.
    before: u64,
    /// Input offset up to which what was read was answered.
    answered: u64,
    /// Where `tcpr_consume` has come to, once it was used.
    consumed: Option<u64>,
    /// What the application keeps of the session; no commit says so yet. As a rule there is none: then it takes one word.
    pub checkpoint: Option<Box<Box<[u8]>>>,
    /// A commit has said before what it keeps: nothing is inferred, whichever process goes on.
    pub explicit: bool,
    /// Output offset up to which the application has written, absorbed bytes included.
    written: u64,
    fin_asked: bool,
    /// It has written nothing yet but what a former process had written of an open response.
    again: bool,
    /// The last write was short: what it left over is in the application's memory only.
    short: bool,
    /// How much that was, less what was written of it since; 0 where it is not known.
    pub left: u32,
    /// The application made the connection: it asks there, and what it reads are replies.
    pub called: bool,
    /// What is written in this turn answers its own input.
    pub own: bool,
    /// What a process that died had done with it; `None` if nobody goes on with that.
    dead: Option<Box<Dead>>,
    /// Torn for good.
    lost: bool,
    /// Torn until a turn ends with which all that was read is done: more was unanswered than is kept.
    over: bool,
    /// As last committed.
    pub done: CommitEntry,
    /// The group of open turns that has touched this session.
    pub group: u32,
    /// The process that touched it last.
    pub channel: Option<u32>,
}

/// What a process that died had done with a session, and no commit says.
#[derive(Debug)]
struct Dead {
    in_read: u64,
    written: u64,
    consumes: bool,
    pending: bool,
}

/// What a commit found to say about a session.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Settled {
    pub changed: bool,
    /// The turn counts, with all that it was: what the application keeps since then is what it has said last.
    pub whole: bool,
    pub open: bool,
    pub newly_torn: bool,
}

impl Progress {
    pub fn new(session: SessionId, policy: PortPolicy, in_done: u64, out_done: u64, out_base: u64) -> Self {
        let out_base = out_base.min(out_done);
        Progress {
            unanswered: policy.unanswered,
            max_unanswered: policy.max_unanswered_bytes.min(MOST_UNANSWERED),
            independent: policy.independent,
            scanner: policy.framing.is_set().then(|| Box::new(Scanner::new(policy.framing, in_done))),
            in_read: in_done,
            told: in_done,
            last_read: (0, 0),
            before: in_done,
            answered: in_done,
            consumed: None,
            checkpoint: None,
            explicit: false,
            written: out_base,
            fin_asked: false,
            again: out_base < out_done,
            short: false,
            left: 0,
            called: false,
            own: false,
            dead: None,
            lost: false,
            over: false,
            done: CommitEntry { session, in_done, out_done, out_base, fin: false, torn: false },
            group: NO_GROUP,
            channel: None,
        }
    }

    /// A thread of this process has touched the session.
    pub fn touched_by(&mut self, channel: u32) {
        let another = self.channel.replace(channel) != Some(channel);
        self.resume(another);
    }

    /// The session becomes part of an open turn.
    pub fn join(&mut self, group: u32) {
        self.group = group;
        self.own = false;
        self.before = self.in_read;
    }

    pub fn read(&mut self, n: u64) {
        self.told = self.told.saturating_add(n);
        self.in_read = self.in_read.max(self.told);
    }

    pub fn read_around(&mut self, upto: u64) {
        self.in_read = self.in_read.max(upto);
    }

    /// More is read but not committed than a session may keep.
    pub fn oversized(&self) -> bool {
        self.in_read - self.done.in_done > self.max_unanswered
    }

    /// More was read than is told, and more than a session may keep.
    pub fn reads_around(&self) -> bool {
        self.in_read - self.told > self.max_unanswered
    }

    pub fn answer(&mut self, upto: u64) {
        self.answered = self.answered.max(upto.min(self.in_read));
    }

    /// Whether a write of so much can follow from what was read: not if it only goes on with what an earlier one left over.
    pub fn follows(&self, asked: u64) -> bool {
        asked > u64::from(self.left)
    }

    /// The kernel took `taken` of the `asked` bytes of a write. `passed`: they are passed on from what was read elsewhere, and
    /// when that was (see `TurnPolicy::pass_on`).
    pub fn write(&mut self, t: Thread, taken: u64, asked: u64, passed: Option<u64>) {
        let left = u64::from(self.left);
        self.left = u32::try_from(if self.follows(asked) { asked } else { left }.saturating_sub(taken)).unwrap_or(u32::MAX);
        self.own |= !self.called && passed.is_none() && self.outstanding();
        self.written = self.written.saturating_add(taken);
        self.short = taken < asked;
        match passed {
            // A reply that waits to be passed on itself.
            Some(_) if self.called && self.last_read.0 == t => self.answer(self.before),
            Some(_) if self.called => {}
            // A request that came after this reply had been read has yet to be passed on.
            Some(at) if self.last_read.1 > at => {}
            Some(_) | None => self.answered = self.in_read,
        }
    }

    /// Something that was read has gone nowhere yet.
    pub fn waits(&self) -> bool {
        self.in_read > self.answered.max(self.done.in_done)
    }

    /// A request of its own was read and not answered.
    fn outstanding(&self) -> bool {
        let done = self.done.in_done;
        match (&self.scanner, self.consumed) {
            // It answers nothing, or something else than it is asked.
            _ if self.unanswered == Unanswered::Discard => false,
            (_, Some(consumed)) => self.in_read > consumed.max(done),
            (Some(scanner), None) => scanner.last_end(self.in_read).is_some_and(|end| end > self.answered.max(done)),
            (None, None) => self.in_read > self.answered.max(done),
        }
    }

    /// Something that was read was not answered, and nobody will.
    pub fn unanswered(&self) -> bool {
        self.group != NO_GROUP || self.waits()
    }

    /// What is out that the application has yet to write again.
    pub fn unwritten(&self) -> u64 {
        self.done.out_done.saturating_sub(self.written)
    }

    pub fn adopt(&mut self, n: u64) {
        if self.written < self.done.out_done {
            // The hook should have absorbed these bytes and did not: the peer got them twice, or they
            // are not the answer that we took them for.
            self.tear();
            self.written = self.done.out_done;
        }
        self.written = self.written.saturating_add(n);
        self.answered = self.in_read;
    }

    pub fn consume(&mut self, n: u64) {
        let from = self.consumed.unwrap_or(self.done.in_done);
        self.consumed = Some(from.saturating_add(n).min(self.in_read));
    }

    /// The application says what it keeps of the session: with that, all that it has read is done. Returns what it had said
    /// before, if no commit has.
    pub fn checkpoint(&mut self, data: &[u8]) -> Option<Box<[u8]>> {
        self.consumed = Some(self.told.min(self.in_read).max(self.done.in_done));
        self.checkpoint.replace(Box::new(data.into())).map(|before| *before)
    }

    /// What the application keeps is known already: as after [`Self::checkpoint`].
    pub fn says_itself(&mut self) {
        self.explicit = true;
        self.consumed.get_or_insert(self.done.in_done);
    }

    pub fn shutdown(&mut self) {
        self.fin_asked = true;
        // Whatever was left over will never be written: what is out is the whole answer.
        self.short = false;
        self.answered = self.in_read;
    }

    /// Nobody can know any more what the application made of this session.
    pub fn tear(&mut self) {
        self.lost = true;
    }

    /// Output, or its end, that no commit covers yet.
    pub fn pending(&self) -> bool {
        self.written > self.done.out_done || self.fin_asked != self.done.fin
    }

    /// The end of the turn would answer something: there is output that is not committed, or whose response is open.
    pub fn keeps_answer(&self) -> bool {
        let open = self.done.out_base != self.written || self.done.torn && !self.lost && self.finished() >= self.in_read;
        self.pending() || open || self.answered > self.done.in_done
    }

    /// The end of the turn would say anything at all.
    pub fn keeps(&self) -> bool {
        self.keeps_answer() || self.target() > self.done.in_done || self.checkpoint.is_some()
    }

    pub fn quiescent(&self) -> bool {
        self.group == NO_GROUP && !self.pending() && self.in_read == self.done.in_done
    }

    /// The process died: its successor starts from what is committed. Another one that holds the connection does not.
    pub fn roll_back(&mut self) {
        let (in_read, written, pending) = (self.in_read, self.written, self.pending());
        if self.dead.is_none() && (pending || in_read > self.done.in_done) {
            let consumes = self.consumed.is_some();
            self.dead = Some(Box::new(Dead { in_read, written, consumes, pending }));
        }
        self.in_read = self.done.in_done;
        self.told = self.done.in_done;
        self.answered = self.done.in_done;
        self.consumed = self.explicit.then_some(self.done.in_done);
        self.written = self.done.out_base;
        self.again = self.done.out_base < self.done.out_done;
        self.fin_asked = self.done.fin;
        self.short = false;
        self.left = 0;
        self.group = NO_GROUP;
    }

    /// A process goes on with a connection that a dead one had held; `another`: it is not the one that touched it last. What the
    /// dead one had read nobody reads again before a failover: it is done when it is answered. What it had written in a turn
    /// that had not ended is in the socket, and can neither be taken back nor told apart.
    pub fn resume(&mut self, another: bool) {
        let Some(dead) = self.dead.take().filter(|_| another) else { return };
        self.in_read = self.in_read.max(dead.in_read);
        self.told = self.in_read;
        self.written = self.written.max(dead.written);
        if dead.consumes {
            self.consumed.get_or_insert(self.done.in_done);
        }
        if dead.pending {
            self.tear();
        }
    }

    /// It is not closed: another process holds it.
    pub fn reopen(&mut self) {
        self.fin_asked = false;
        self.done.fin = false;
    }

    /// Whether the response is open at the end of a turn, too: what is written follows from what was read, and there may be
    /// more of it at any time, until the application reads on.
    pub fn stays_open(&self) -> bool {
        let inferred = self.unanswered == Unanswered::Redeliver && self.consumed.is_none();
        self.independent && inferred && !self.oversized() && self.target() > self.done.in_done
    }

    /// A response in parts is written again, and nothing beyond what was out of it. What was read may be more than what that
    /// answered: its peer, who has it all, may have asked for more meanwhile. So nothing says yet what is done.
    fn catches_up(&self) -> bool {
        self.independent && self.again && self.consumed.is_none() && !self.fin_asked
    }

    /// How far the input would be done if the turn was whole.
    fn target(&self) -> u64 {
        self.finished().max(self.done.in_done)
    }

    /// The same, by what the application did alone.
    fn finished(&self) -> u64 {
        let discard = self.unanswered == Unanswered::Discard;
        let reached = if discard { self.in_read } else { self.answered };
        if let Some(consumed) = self.consumed {
            consumed
        } else if let Some(scanner) = &self.scanner {
            scanner.last_end(reached).unwrap_or(0)
        } else {
            reached
        }
    }

    /// Whether what the turn answers comes again if nothing is committed, and the answer with it.
    fn comes_again(&self) -> bool {
        let input = match self.consumed {
            Some(_) => self.in_read > self.done.in_done,
            None => self.target() > self.done.in_done,
        };
        input || (self.done.in_done == 0 && self.done.out_base == 0)
    }

    /// It has written what nothing makes come again, and what the application keeps is of another place of the stream until the turn
    /// ends: to let the output go before that is to tear the session.
    pub fn is_ahead_of_what_it_keeps(&self) -> bool {
        (self.explicit || self.checkpoint.is_some())
            && !self.fin_asked
            && self.written > self.done.out_done
            && !self.comes_again()
    }

    /// Commits: `alone` if the turn touched no other session, `timeout` if it is not over yet.
    pub fn settle(&mut self, alone: bool, timeout: bool) -> Settled {
        let before = self.done;
        self.again &= self.written <= before.out_done;
        let target = self.target();
        if !timeout && !self.short && self.finished() >= self.in_read && self.unwritten() == 0 {
            // It has answered all, and keeps nothing that nobody else knows. (While what is out is being written again, the rest of
            // that would be taken from another answer after a failover.)
            self.over = false;
        }
        let unfinished = self.short || (timeout && alone && !self.fin_asked);
        // An open response counts on being written again, because its input is read again, or because
        // the application greets whoever connects.
        let open = (unfinished && alone && self.comes_again() || self.catches_up()) && !before.torn && !self.lost;

        if timeout && alone && !open && !self.fin_asked && (self.explicit || self.checkpoint.is_some()) {
            // See `is_ahead_of_what_it_keeps`.
            return self.settle_part();
        }
        let done = &mut self.done;
        done.out_done = done.out_done.max(self.written);
        done.fin = self.fin_asked;
        if !open {
            done.in_done = target;
            done.out_base = self.written;
            done.torn = self.short;
        }
        Settled { whole: !open, ..self.settled(before, open) }
    }

    /// Lets the output of a turn over several sessions go before the turn is over. What a crash leaves of the
    /// turn cannot be known until then: no input is done, and what was written to is torn.
    pub fn settle_part(&mut self) -> Settled {
        let before = self.done;
        if self.written > before.out_done {
            self.done.out_done = self.written;
            self.done.out_base = self.written;
            self.done.torn = true;
        }
        self.settled(before, false)
    }

    fn settled(&mut self, before: CommitEntry, open: bool) -> Settled {
        if self.in_read - self.done.in_done > self.max_unanswered {
            self.over = true;
        }
        if self.lost || self.over {
            // Reset at a takeover, whatever it held: so hold nothing.
            let done = &mut self.done;
            done.in_done = self.in_read;
            done.out_base = done.out_done;
            done.torn = true;
        }
        if let Some(scanner) = &mut self.scanner {
            scanner.forget(self.done.in_done);
        }
        Settled {
            changed: self.done != before,
            whole: false,
            open: open && !self.lost && !self.over,
            newly_torn: self.done.torn && !before.torn,
        }
    }
}
