//! What the peer of a session has shown, and what it was shown, in stream offsets.

use super::timestamps::Timestamps;
use crate::store::Session;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Peer {
    /// The output that it has acknowledged.
    una: u64,
    /// Highest output offset that was released to it, and highest input acknowledgement.
    released: u64,
    released_ack: u64,
    /// Where the window ends that it was shown, as far as that is known.
    rcv_adv: u64,
    /// Its last window, unscaled, and the largest that it has ever had, in bytes.
    window: u16,
    most_window: u32,
    /// It has answered since the takeover.
    answered: bool,
    /// The timestamps that both ends know.
    pub time: Timestamps,
}

impl Peer {
    pub fn new(s: &Session) -> Peer {
        Peer {
            una: s.out_acked,
            released: s.out_acked,
            released_ack: 0,
            rcv_adv: s.in_edge,
            window: s.window,
            most_window: u32::from(s.window) << peer_shift(s),
            answered: false,
            time: Timestamps::new(s),
        }
    }

    /// What was released to it before its session was restored here counts, as far as the store has it.
    pub fn carry_over(&mut self, before: &Peer, s: &Session) {
        self.released = before.released.min(s.out_sendable());
        self.released_ack = before.released_ack;
        self.una = before.una;
        self.rcv_adv = self.rcv_adv.max(before.rcv_adv);
        self.time.carry_over(&before.time);
    }

    pub fn una(&self) -> u64 {
        self.una
    }

    pub fn released(&self) -> u64 {
        self.released
    }

    pub fn released_ack(&self) -> u64 {
        self.released_ack
    }

    pub fn rcv_adv(&self) -> u64 {
        self.rcv_adv
    }

    pub fn window(&self) -> u16 {
        self.window
    }

    /// Its last window in bytes.
    pub fn window_bytes(&self, s: &Session) -> u32 {
        u32::from(self.window) << peer_shift(s)
    }

    pub fn most_window(&self) -> u32 {
        self.most_window
    }

    pub fn has_answered(&self) -> bool {
        self.answered
    }

    /// It has said something that is believed. Returns whether it had before.
    pub fn answers(&mut self) -> bool {
        std::mem::replace(&mut self.answered, true)
    }

    /// It has acknowledged output up to here. Returns how much of that is new.
    pub fn acknowledges(&mut self, ack: u64) -> u64 {
        let before = self.una;
        self.una = before.max(ack);
        self.una - before
    }

    /// Its window.
    pub fn shows_window(&mut self, s: &Session, window: u16) {
        self.window = window;
        self.most_window = self.most_window.max(self.window_bytes(s));
    }

    /// Its window, as it is known after a takeover.
    pub fn resumes_window(&mut self, window: u16) {
        self.window = window;
    }

    /// This was released to it.
    pub fn was_released(&mut self, end: u64) {
        self.released = self.released.max(end);
    }

    pub fn was_released_ack(&mut self, ack: u64) {
        self.released_ack = self.released_ack.max(ack);
    }

    /// It acknowledges what was never released here: so far has it left all the same.
    pub fn has_got(&mut self, end: u64) {
        self.released = end;
    }

    /// It was shown a window that ends here.
    pub fn was_shown_window(&mut self, edge: u64) {
        self.rcv_adv = self.rcv_adv.max(edge);
    }
}

/// How far the windows in the peer's segments are shifted.
pub(super) fn peer_shift(s: &Session) -> u8 {
    s.open.shifts.map_or(0, |(theirs, _)| theirs)
}

/// The same of the local TCP's.
pub(super) fn local_shift(s: &Session) -> u8 {
    s.open.shifts.map_or(0, |(_, ours)| ours)
}
