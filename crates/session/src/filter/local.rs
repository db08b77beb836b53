//! What the local TCP has of a session, in stream offsets: how far it has sent, what it knows to be acknowledged, how far it
//! has received, and where its window ends. Its segments move all that ([`Local::on_segment`]). Two other sources
//! update it: the socket that is made for it, and the kernel's answers to queries.

use crate::store::Session;

/// What a segment of the local TCP says.
#[derive(Clone, Copy)]
pub(super) struct Says {
    /// Offset behind its last byte (or FIN).
    pub end: u64,
    /// Input offset that it acknowledges, and where its window ends.
    pub ack: u64,
    pub edge: u64,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Local {
    /// Highest output offset whose acknowledgement it was given.
    snd_una: u64,
    /// Offset behind the last byte (or FIN) that it has sent.
    snd_nxt: u64,
    /// Highest input offset that it has acknowledged, as far as that is stored.
    rcv_nxt: u64,
    /// Where its window ends now; what lies beyond is refused.
    edge: u64,
    /// Where its input begins.
    base: u64,
    /// Until it has sent this (0: it has) it may not see acknowledgements of the future.
    clamp: u64,
    /// The session's output had ended before this half was made: nobody hears what it says.
    silenced: bool,
    /// It is not the one that the peer met.
    new_half: bool,
    /// What it was told under `rcv_nxt` may have come too late: injected input was under way.
    tell_again: bool,
}

impl Local {
    /// The TCP with which the session began, or (its socket has yet to be made) what is known of the former one.
    pub fn new(s: &Session) -> Local {
        Local {
            snd_una: 0,
            snd_nxt: s.out_acked,
            rcv_nxt: s.in_done,
            edge: s.in_edge,
            base: s.in_done,
            clamp: 0,
            new_half: false,
            silenced: false,
            tell_again: false,
        }
    }

    pub fn snd_una(&self) -> u64 {
        self.snd_una
    }

    pub fn snd_nxt(&self) -> u64 {
        self.snd_nxt
    }

    pub fn rcv_nxt(&self) -> u64 {
        self.rcv_nxt
    }

    pub fn edge(&self) -> u64 {
        self.edge
    }

    pub fn base(&self) -> u64 {
        self.base
    }

    pub fn clamp(&self) -> u64 {
        self.clamp
    }

    /// Whether it is not the one that the peer met.
    pub fn is_new_half(&self) -> bool {
        self.new_half
    }

    pub fn is_silenced(&self) -> bool {
        self.silenced
    }

    /// What of the peer's acknowledgement it may see: nothing of what it has not sent. One that is silenced has sent what
    /// nobody hears, and is told that all of it came.
    pub fn ackable(&self, ack: u64) -> u64 {
        if self.silenced {
            self.snd_nxt
        } else {
            ack.min(self.snd_nxt)
        }
    }

    // ---- its segments --------------------------------------------------------------------------------

    /// A segment of it. `stored`: input before this is in the store; what it acknowledges beyond that counts when it is.
    pub fn on_segment(&mut self, says: Says, stored: u64) {
        self.snd_nxt = self.snd_nxt.max(says.end);
        self.rcv_nxt = self.rcv_nxt.max(says.ack.min(stored));
        if says.ack >= self.rcv_nxt {
            self.edge = says.edge;
        }
    }

    /// It has sent so much, though not through here, or nobody is to hear it.
    pub fn has_sent(&mut self, end: u64) {
        self.snd_nxt = self.snd_nxt.max(end);
    }

    /// The kernel says that this is what it has taken, whatever it has acknowledged.
    pub fn has_taken(&mut self, end: u64) {
        self.rcv_nxt = end;
    }

    // ---- what it is told -----------------------------------------------------------------------------

    /// It was given an acknowledgement of its output.
    pub fn acknowledged(&mut self, ack: u64) {
        self.snd_una = self.snd_una.max(ack);
    }

    /// What it is told now may come too late for it, if so, and is to be told again.
    pub fn set_tell_again(&mut self, again: bool) {
        self.tell_again = again;
    }

    pub fn take_tell_again(&mut self) -> bool {
        std::mem::take(&mut self.tell_again)
    }

    /// Acknowledgements beyond what it has sent are to be expected up to this offset.
    pub fn clamp_to(&mut self, clamp: u64) {
        self.clamp = clamp;
    }

    /// It has sent all that may be acknowledged, if it has.
    pub fn settle_clamp(&mut self) {
        if self.snd_nxt >= self.clamp {
            self.clamp = 0;
        }
    }

    // ---- another socket ------------------------------------------------------------------------------

    /// Its socket is to be made: the send queue begins at `una`, the window ends at `edge`.
    pub fn plan(&mut self, una: u64) {
        self.snd_una = una;
    }

    pub fn plan_window(&mut self, edge: u64) {
        self.edge = edge;
    }

    /// Its socket was made as planned, with so much output as sent, to read from `base` on.
    pub fn restored(&mut self, sent: u64, base: u64) {
        self.snd_nxt = self.snd_una + sent;
        self.new_half = true;
        self.base = base;
        self.rcv_nxt = base;
    }

    /// Its socket was closed again, before anybody had it.
    pub fn unmade(&mut self) {
        self.new_half = false;
    }

    /// Its socket was made by a handshake: its output begins at `output`, its input at `base`. `silenced`: the session's
    /// output had ended before.
    pub fn connected(&mut self, output: u64, base: u64, window: u64, silenced: bool) {
        self.snd_una = output;
        self.snd_nxt = output;
        self.silenced = silenced;
        self.new_half = true;
        self.base = base;
        self.rcv_nxt = base;
        self.edge = base + window;
    }
}

/// Where a restored socket begins to read. Nobody reads a closed one any more: what it would find unread would
/// make the kernel reset it.
pub(super) fn feed_from(s: &Session) -> u64 {
    if s.closed {
        s.in_end()
    } else {
        s.in_done
    }
}
