//! A planned change of master: what the old one sends, forwards and keeps back, and what the new one has heard.

use std::time::Duration;

use tcpr_session::Now;

/// How long after a switchover the former master still forwards what reaches it.
const FORWARD_FOR: Duration = Duration::from_millis(30);

/// A handover that is under way, or was a moment ago.
#[derive(Default)]
pub(super) struct Handover {
    /// As the old master: it was started and is not over.
    under_way: bool,
    /// The log was sent to its end, with the handover behind it, over the connection that there is.
    sent: bool,
    /// As the former master: until then inbound packets go to the new one.
    forward_until: Option<Now>,
    /// As the old master: resets of sessions that ended just before, for when the new one is known to know of it.
    resets: Vec<Vec<u8>>,
    /// As the new master: the partner asked for it just now.
    heard: bool,
}

impl Handover {
    pub(super) fn poll_timeout(&self) -> Option<Now> {
        self.forward_until
    }

    pub(super) fn handle_timeout(&mut self, now: Now) {
        self.forward_until.take_if(|until| now >= *until);
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// The old master has frozen its sessions and sends the end of its log.
    pub(super) fn begin(&mut self) {
        (self.under_way, self.sent) = (true, true);
    }

    /// Whether the partner has been sent the end of the log.
    pub(super) fn is_sent(&self) -> bool {
        self.sent
    }

    /// What was sent over the connection counts no longer.
    pub(super) fn not_sent(&mut self) {
        self.sent = false;
    }

    /// It came to nothing: the old master goes on.
    pub(super) fn cancel(&mut self) {
        self.under_way = false;
    }

    /// The old master steps down. Returns whether a handover was under way.
    pub(super) fn end(&mut self) -> bool {
        std::mem::take(&mut self.under_way)
    }

    /// What still comes here goes on to the new master for a moment: peers learn its place meanwhile. Returns until when.
    pub(super) fn forward_from(&mut self, now: Now, resets: Vec<Vec<u8>>) -> Now {
        self.resets = resets;
        *self.forward_until.insert(now + FORWARD_FOR)
    }

    /// Whether inbound packets go on to a new master, if there is a connection to it.
    pub(super) fn forwards(&self) -> bool {
        self.sent || self.forward_until.is_some()
    }

    /// The new master knows of the sessions that had ended: their peers may be told.
    pub(super) fn take_resets(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.resets)
    }

    /// A takeover of one's own begins: those of an earlier life are out of date.
    pub(super) fn forget_resets(&mut self) {
        self.resets.clear();
    }

    pub(super) fn note_heard(&mut self) {
        self.heard = true;
    }

    /// Whether the partner has just asked for a handover; it is answered once.
    pub(super) fn take_heard(&mut self) -> bool {
        std::mem::take(&mut self.heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_former_master_forwards_for_a_moment_after_the_handover() {
        let ms = Duration::from_millis;
        let mut handover = Handover::default();
        assert!(!handover.forwards() && !handover.end());
        handover.begin();
        assert!(handover.forwards() && handover.is_under_way());
        handover.not_sent();
        assert!(!handover.forwards(), "the connection was lost");
        assert!(handover.end());
        assert_eq!(handover.forward_from(ms(100), vec![vec![1]]), ms(130));
        assert_eq!(handover.poll_timeout(), Some(ms(130)));
        handover.handle_timeout(ms(129));
        assert!(handover.forwards());
        handover.handle_timeout(ms(130));
        assert!(!handover.forwards());
        assert_eq!(handover.take_resets(), [[1]]);
        assert!(handover.take_resets().is_empty());
    }
}
