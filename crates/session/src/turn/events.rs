//! What the hooks tell of a session, and what is known without them.

use super::{channel_of, SessionId, Thread, TurnPolicy, NO_GROUP};
use crate::Now;

impl TurnPolicy {
    /// In-order input as it is stored (also that which is stored when a session is opened). Needed for
    /// framed sessions only.
    pub fn input(&mut self, s: SessionId, offset: u64, bytes: &[u8]) {
        if let Some(p) = self.sessions.get_mut(&s) {
            if let Some(scanner) = &mut p.scanner {
                scanner.feed(offset, bytes);
            }
        }
    }

    /// The thread took `n` bytes of input from the socket (0: it looked for some, and there was none).
    pub fn read(&mut self, now: Now, t: Thread, s: SessionId, n: u64) {
        self.reads_next(t, s);
        if n == 0 || !self.touch(t, s) {
            return;
        }
        self.groups.hear(now, t);
        let Some(p) = self.sessions.get_mut(&s) else {
            return;
        };
        self.reads += 1;
        p.read(n);
        p.last_read = (t, self.reads);
        self.groups.set_last_read(t, Some((s, p.in_read)));
        if p.oversized() {
            // A thread that reads a stream without ever waiting must not make the store keep it all.
            self.start_clock(now, t);
        }
        self.bound(t);
    }

    /// The thread has something else from which its next output may follow: what it read from a descriptor that is no
    /// session's, or a connection that it accepted.
    pub fn reads_other(&mut self, t: Thread) {
        self.groups.set_last_read(t, None);
    }

    /// The thread wrote: the kernel took `taken` bytes (or they were absorbed), and not all if `short`.
    pub fn write(&mut self, now: Now, t: Thread, s: SessionId, taken: u64, short: bool) {
        self.write_of(now, t, s, taken, taken.saturating_add(u64::from(short)));
        if let Some(p) = self.sessions.get_mut(&s) {
            p.left = 0;
        }
    }

    /// The same, where it is known how many bytes the application had `asked` for.
    pub fn write_of(&mut self, now: Now, t: Thread, s: SessionId, taken: u64, asked: u64) {
        if asked == 0 {
            return;
        }
        self.writes_on(t, s);
        if !self.touch(t, s) {
            return;
        }
        let follows = self.sessions.get(&s).is_some_and(|p| p.follows(asked));
        let passed = match follows {
            true => self.pass_on(t, s),
            // It goes on with what was passed on before.
            false => (!self.pairs.of(s).is_empty()).then_some(0),
        };
        if let Some(p) = self.sessions.get_mut(&s) {
            p.write(t, taken, asked, passed);
        }
        if follows && passed.is_none() {
            self.answer(t, s);
        }
        self.start_clock(now, t);
        self.bound(t);
    }

    /// The thread ends the output of the session. That answers what was read of this one, and of no other: it says
    /// nothing.
    pub fn shutdown(&mut self, now: Now, t: Thread, s: SessionId) {
        if !self.touch(t, s) {
            return;
        }
        if let Some(p) = self.sessions.get_mut(&s) {
            p.shutdown();
        }
        self.start_clock(now, t);
        self.bound(t);
    }

    /// The application says that `n` more bytes of input are done. From its first call on (`n` may be 0)
    /// nothing is inferred for this session.
    pub fn consume(&mut self, t: Thread, s: SessionId, n: u64) {
        if !self.touch(t, s) {
            return;
        }
        self.groups.hear_now(t);
        if let Some(p) = self.sessions.get_mut(&s) {
            p.consume(n);
        }
        self.bound(t);
    }

    /// The session is not closed after all: another process holds it.
    pub fn reopen(&mut self, s: SessionId) {
        if let Some(p) = self.sessions.get_mut(&s) {
            p.reopen();
        }
    }

    // ---- without hooks -------------------------------------------------------------------------------

    /// Bytes of the application were seen on the wire that no hook had announced. What was read of `others` without a hook
    /// is settled with them.
    pub fn adopted(&mut self, now: Now, s: SessionId, n: u64, others: &[SessionId]) {
        let Some(p) = self.sessions.get_mut(&s) else {
            return;
        };
        if n == 0 {
            return;
        }
        p.resume(true);
        let announced = p.pending();
        p.adopt(n);
        // Nor may its input be done before the rest of a turn over several sessions.
        let g = p.group;
        if g != NO_GROUP && (announced || self.groups.get(g).is_several()) {
            return self.groups.set_deadline(g, now.saturating_add(self.max_turn));
        }
        let mut all = vec![s];
        all.extend_from_slice(others);
        self.commit(&all, |p| p.settle(true, false));
    }

    /// Nobody tells when its turns end: what was read so far counts as one.
    pub fn idle(&mut self, s: SessionId) {
        self.commit(&[s], |p| p.settle(true, false));
    }

    /// The peer, which has all that is out, sends more: an open response was whole.
    pub fn asked_anew(&mut self, s: SessionId) {
        if self.sessions.get(&s).is_some_and(|p| p.independent && p.group == NO_GROUP) {
            self.commit(&[s], |p| p.settle(true, false));
        }
    }

    /// The application has read up to this offset at least, be it with or without a hook: the kernel says so. Reads that a
    /// hook tells later may be among them.
    pub fn read_around(&mut self, s: SessionId, upto: u64) {
        if let Some(p) = self.sessions.get_mut(&s) {
            p.read_around(upto);
        }
    }

    /// More was read of a session than it may keep, and nobody tells: that is done, or the session is torn.
    pub fn overflow(&mut self, s: SessionId) {
        let Some(p) = self.sessions.get(&s).filter(|p| p.oversized()) else {
            return;
        };
        let in_turn = p.group != NO_GROUP;
        self.commit(&[s], |p| if in_turn { p.settle_part() } else { p.settle(true, false) });
    }

    /// The program is about to lose the session in order. What it has read is done, as at the end of a turn, if it reads around the
    /// hooks: the kernel counts so much more than hooks tell that they cannot just be late.
    pub fn leave(&mut self, s: SessionId) {
        if self.sessions.get(&s).is_some_and(|p| p.group == NO_GROUP && p.reads_around()) {
            self.commit(&[s], |p| p.settle(true, false));
        }
    }

    /// Input from `in_done` on is not what [`Self::input`] was told: its messages are looked for anew.
    pub fn rescan(&mut self, s: SessionId) {
        if let Some(p) = self.sessions.get_mut(&s) {
            let done = p.done.in_done;
            if let Some(scanner) = &mut p.scanner {
                scanner.restart(done);
            }
        }
    }

    // ---- the turn that it belongs to -----------------------------------------------------------------

    /// The session becomes part of the thread's turn. `false` if it is unknown.
    pub(super) fn touch(&mut self, t: Thread, s: SessionId) -> bool {
        let Some(p) = self.sessions.get_mut(&s) else {
            return false;
        };
        p.touched_by(channel_of(t));
        let of_session = p.group;
        match self.groups.of(t) {
            Some(g) if g == of_session => {}
            Some(g) if of_session == NO_GROUP => self.groups.add_session(g, s, p),
            Some(g) => self.merge(g, of_session),
            None if of_session == NO_GROUP => {
                let g = self.groups.open(t);
                self.groups.add_session(g, s, p);
            }
            None => self.groups.add_thread(of_session, t, None),
        }
        true
    }

    pub(super) fn merge(&mut self, a: u32, b: u32) {
        let (into, from, puts) = self.groups.merge(a, b, &mut self.sessions);
        if puts {
            self.puts.merge(into, from);
        }
    }

    /// The thread has something to let go: its turn may not last for ever.
    pub(super) fn start_clock(&mut self, now: Now, t: Thread) {
        self.groups.hear(now, t);
        if let Some(g) = self.groups.of(t) {
            self.groups.set_deadline(g, now.saturating_add(self.max_turn));
        }
    }

    pub(super) fn bound(&mut self, t: Thread) {
        if self.groups.is_overfull() {
            self.thread_gone(t);
        }
    }
}
