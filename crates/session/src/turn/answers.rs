//! What a write answers: what its thread has read last, or what was read on the other side.

use super::{SessionId, Thread, TurnPolicy};

impl TurnPolicy {
    /// What the thread has read on the other side of `s` goes on to `s`. Returns when it read that last (see `reads`); None:
    /// nothing is passed on by this.
    pub(super) fn pass_on(&mut self, t: Thread, s: SessionId) -> Option<u64> {
        let mut last = None;
        for i in 0..self.pairs.of(s).len() {
            let other = self.pairs.of(s)[i];
            let (Some(to), Some(from)) = (self.sessions.get(&s), self.sessions.get(&other)) else { continue };
            let ((reader, at), upto) = (from.last_read, from.in_read);
            // An upstream's greeting comes after the request that it was called for: a write answers the greeting then.
            let greets = to.called && to.waits() && to.last_read.0 == t && to.last_read.1 > at;
            if reader == t && from.waits() && !greets && !from.independent && !to.independent && self.touch(t, other) {
                last = last.max(Some(at));
                if let Some(from) = self.sessions.get_mut(&other) {
                    from.answer(upto);
                }
            }
        }
        last
    }

    /// The thread had output for `s`: that answers what it read last, be it of another session. But what answers `s`
    /// itself answers no other's request; a reply of an upstream may be passed on by it. And what a client with an upstream of its
    /// own has asked for is answered by these two alone.
    pub(super) fn answer(&mut self, t: Thread, s: SessionId) {
        let Some((r, upto)) = self.groups.last_read(t) else {
            return;
        };
        let own = self.sessions.get(&s).is_some_and(|p| p.own);
        let with = self.pairs.of(r);
        let others = !with.is_empty() && !with.contains(&s);
        let apart = self.sessions.get(&r).is_some_and(|p| p.independent || !p.called && (own || others));
        // It may have left the group when an overlong turn was split.
        if r != s && !apart && !self.strangers(r, s) && !self.may_be_passed_on(t, s) && self.touch(t, r) {
            if let Some(p) = self.sessions.get_mut(&r) {
                p.answer(upto);
            }
        }
    }

    /// Whether it is known that the one is for another client than the other, and that what is read of one is not for the other.
    fn strangers(&self, a: SessionId, b: SessionId) -> bool {
        let called = |s: SessionId| self.sessions.get(&s).is_some_and(|p| p.called);
        let client = |s: SessionId| match called(s) {
            true => self.pairs.of(s).first().copied(),
            false => Some(s),
        };
        (called(a) || called(b)) && client(a).zip(client(b)).is_some_and(|(a, b)| a != b)
    }

    /// Whether what the thread has for `s` may come from a connection of which it is not known whose it is.
    fn may_be_passed_on(&self, t: Thread, s: SessionId) -> bool {
        self.pairs.is_unclear(s) || !self.read_unclear(t).is_empty()
    }
}
