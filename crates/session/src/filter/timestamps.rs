//! The timestamps of a session (RFC 7323): the newest of both clocks, when they were told, and what the peer was shown.

use crate::store::Session;
use crate::Now;

/// Our timestamps may be this much ahead (in ms) of what the replica has stored.
pub(super) const TIMESTAMP_LEAD_MS: u32 = 500;
/// A restored socket's clock starts this much ahead (in ms) of what we say ourselves after a takeover.
pub(super) const TIMESTAMP_MARGIN_MS: u32 = 500;
/// A timestamp that is so old (in seconds) says nothing: a clock that counts microseconds goes half its way round meanwhile.
/// Linux takes this much for every clock, where RFC 7323 (section 5.5) has 24 days, half the way of one that counts
/// milliseconds.
const TIME_FORGOTTEN: u32 = (i32::MAX / 1_000_000) as u32;

/// A peer does not echo a timestamp that differs more from our newest: two minutes of milliseconds, or what a log is
/// behind in microseconds.
const TIME_NEAR: u32 = 1 << 17;

/// A time in seconds, as it is noted here: never 0.
fn seconds(now: Now) -> u32 {
    u32::try_from(now.as_secs()).unwrap_or(u32::MAX).max(1)
}

/// Whether a timestamp is newer than another one.
fn is_newer(value: u32, than: u32) -> bool {
    (value.wrapping_sub(than) as i32) > 0
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Timestamps {
    /// The peer's newest value (TS.Recent), and ours.
    recent: u32,
    value: u32,
    /// When these two were last told, in seconds; 0: nobody knows.
    recent_at: u32,
    value_at: u32,
    /// Our newest value that was released: what leaves later must not look older (PAWS, RFC 7323, section 5).
    shown: u32,
}

impl Timestamps {
    pub fn new(s: &Session) -> Timestamps {
        Timestamps { recent: s.ts_recent, value: s.ts_value, recent_at: 0, value_at: 0, shown: s.ts_value }
    }

    /// The session begins: both ends have told theirs.
    pub fn begin(&mut self, now: Now) {
        (self.recent_at, self.value_at) = (seconds(now), seconds(now));
    }

    /// What was known before the session was restored here.
    pub fn carry_over(&mut self, before: &Timestamps) {
        (self.value, self.shown) = (before.value, before.shown);
        (self.recent_at, self.value_at) = (before.recent_at, before.value_at);
    }

    /// The peer's newest value.
    pub fn recent(&self) -> u32 {
        self.recent
    }

    /// Our newest value.
    pub fn value(&self) -> u32 {
        self.value
    }

    /// Our newest value that was released.
    pub fn shown(&self) -> u32 {
        self.shown
    }

    /// The former master may have shown the peer this much more of our clock, which must not go back.
    pub fn lead(&mut self, now: Now, by: u32) {
        self.value = self.value.wrapping_add(by);
        self.shown = self.value;
        self.value_at = seconds(now);
    }

    /// Our clock goes on so much ahead.
    pub fn advance(&mut self, by: u32) {
        self.value = self.value.wrapping_add(by);
    }

    /// Nothing that the peer says now can be too old (RFC 7323, section 5.5), as its clock may have come round.
    pub fn forgets(&self, now: Now) -> bool {
        self.recent == 0 || self.recent_at == 0 || seconds(now).saturating_sub(self.recent_at) >= TIME_FORGOTTEN
    }

    /// Whether a value of the peer's is so old that its segment is a late duplicate.
    pub fn is_stale(&self, now: Now, value: u32) -> bool {
        (self.recent.wrapping_sub(value) as i32) > 1 && !self.forgets(now)
    }

    /// A value of the peer's, if it is not older than the newest. Returns whether that changed.
    pub fn hears(&mut self, now: Now, value: u32) -> bool {
        let newer = value.wrapping_sub(self.recent) as i32;
        if newer >= 0 || self.forgets(now) {
            self.recent = value;
            self.recent_at = seconds(now);
            return newer != 0;
        }
        false
    }

    /// A value of the peer's clock, if that has come round since it was last told.
    pub fn hears_round(&mut self, now: Now, value: u32) {
        if self.forgets(now) && (value.wrapping_sub(self.recent) as i32) < 0 {
            (self.recent, self.recent_at) = (value, seconds(now));
        }
    }

    /// A segment of a peer that has heard of our clock what the store may not know.
    pub fn hears_evidence(&mut self, now: Now, value: u32, echo: u32) {
        if self.forgets(now) {
            self.recent = value;
        }
        for (known, told) in [(&mut self.value, echo), (&mut self.shown, echo), (&mut self.recent, value)] {
            if is_newer(told, *known) {
                *known = told;
            }
        }
        self.recent_at = seconds(now);
    }

    /// Whether the peer can have this value from us, or from the master before us.
    pub fn sent(&self, echo: u32) -> bool {
        echo.wrapping_sub(self.value).wrapping_add(TIME_NEAR) <= 2 * TIME_NEAR
    }

    /// A value of the local TCP's clock. Returns whether that has come round since it was last told.
    pub fn says(&mut self, now: Now, value: u32) -> bool {
        let at = std::mem::replace(&mut self.value_at, seconds(now));
        let ahead = value.wrapping_sub(self.value) as i32;
        let round = ahead < 0 && at != 0 && self.value_at.saturating_sub(at) >= TIME_FORGOTTEN;
        if round {
            self.shown = value;
        }
        if ahead > 0 || round {
            self.value = value;
        }
        round
    }

    /// A packet with this value of ours is released.
    pub fn shows(&mut self, value: Option<u32>) {
        self.shown = value.filter(|value| is_newer(*value, self.shown)).unwrap_or(self.shown);
    }

    /// Whether a value of ours looks older than what the peer was shown.
    pub fn looks_old(&self, value: u32) -> bool {
        is_newer(self.shown, value)
    }
}
