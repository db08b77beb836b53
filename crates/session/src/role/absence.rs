//! Whose silence is it? How long this member was there, and since when it may have been away, paused or cut off: see the role
//! machine's description.

use std::time::Duration;

use super::RoleConfig;
use crate::Now;

/// See the module's description. Every `Duration` inside is time awake, but for those named `real`.
#[derive(Clone, Debug)]
pub(super) struct Absence {
    real: Now,
    awake: Duration,
    /// Until then silence proves nothing: we were away.
    listen_until: Duration,
    /// Until then the partner may have taken over while we were away, and its word of it has yet to be read.
    overtaken_until: Duration,
    /// The newest heartbeat of ours that the partner is known to have heard (real).
    echoed: Option<Now>,
    /// When we were last away, paused or cut off (real), and since when we are in reach again (real, and awake).
    away_at: Option<Now>,
    back: Option<(Now, Duration)>,
    /// That was, or may have been, no pause alone: what the partner sent meanwhile does not wait for us.
    cut_off: bool,
}

impl Absence {
    pub fn new(now: Now) -> Absence {
        Absence {
            real: now,
            awake: Duration::ZERO,
            listen_until: Duration::ZERO,
            overtaken_until: Duration::ZERO,
            echoed: None,
            away_at: None,
            back: None,
            cut_off: false,
        }
    }

    // ---- time ------------------------------------------------------------------------------------------

    /// For how long this member was awake: a gap between two calls counts as one and a half heartbeats at most.
    pub fn awake(&self) -> Duration {
        self.awake
    }

    /// When this member will have been awake for so long.
    pub fn when(&self, awake: Duration) -> Now {
        self.real + (awake - self.awake)
    }

    /// It is this time. Returns whether we were paused.
    pub fn advance(&mut self, now: Now, cfg: &RoleConfig) -> bool {
        let gap = now.saturating_sub(self.real);
        self.real = self.real.max(now);
        let limit = cfg.heartbeat * 3 / 2;
        self.awake += gap.min(limit);
        let paused = gap > limit;
        if paused {
            self.listen(cfg.heartbeat * 2);
            if gap + cfg.heartbeat * 2 >= cfg.suspicion() {
                self.overtaken_until = self.listen_until;
            }
            self.note_away();
        }
        paused
    }

    /// Silence proves nothing until the partner had so much time to be heard.
    pub fn listen(&mut self, time: Duration) {
        self.listen_until = self.listen_until.max(self.awake + time);
    }

    /// Until when silence proves nothing.
    pub fn listens_until(&self) -> Duration {
        self.listen_until
    }

    pub fn has_listened(&self) -> bool {
        self.awake >= self.listen_until
    }

    /// Whether we would know by now if the partner had taken over while we were away.
    pub fn would_know_of_a_takeover(&self) -> bool {
        self.awake >= self.overtaken_until
    }

    // ---- away ------------------------------------------------------------------------------------------

    fn note_away(&mut self) {
        self.cut_off &= self.is_away();
        self.away_at = Some(self.real);
        self.back = None;
    }

    /// We are cut off, or were.
    pub fn note_cut_off(&mut self) {
        self.note_away();
        self.cut_off = true;
    }

    /// We were paused or cut off, and the partner has not been heard to have heard us since.
    pub fn is_away(&self) -> bool {
        self.away_at.is_some() && self.away_at >= self.echoed
    }

    /// That was, or may have been, no pause alone.
    pub fn is_cut_off(&self) -> bool {
        self.cut_off
    }

    /// For so long that a partner that heard nothing of us may have done before we were back what it does after `patience`.
    pub fn is_longer_than(&self, patience: Duration) -> bool {
        let back = self.back.map_or(self.real, |(real, _)| real);
        self.is_away() && self.echoed.is_none_or(|echoed| back >= echoed + patience)
    }

    /// We are in reach again. Returns since when (awake).
    pub fn back(&mut self) -> Duration {
        self.back.get_or_insert((self.real, self.awake)).1
    }

    // ---- heard by the partner --------------------------------------------------------------------------

    /// The partner had heard the heartbeat that we sent at this time.
    pub fn echo(&mut self, sent: Now) {
        self.echoed = self.echoed.max(Some(sent));
    }

    /// For how long the partner may have heard nothing of us; None: for ever.
    pub fn unheard(&self) -> Option<Duration> {
        self.echoed.map(|echoed| self.real.saturating_sub(echoed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Heartbeats every 20 ms, and the partner is suspected after 60.
    fn config() -> RoleConfig {
        RoleConfig {
            me: 0,
            has_partner: true,
            preferred: 0,
            heartbeat: ms(20),
            misses: 3,
            solo_after: ms(300),
            start_wait: ms(500),
            asynchronous: false,
        }
    }

    #[test]
    fn a_pause_counts_as_one_and_a_half_heartbeats_and_silence_proves_nothing_after_it() {
        let mut a = Absence::new(ms(0));
        assert!(!a.advance(ms(30), &config()) && !a.is_away() && a.has_listened());
        assert!(a.advance(ms(1030), &config()) && a.is_away() && !a.is_cut_off());
        assert_eq!((a.awake(), a.listens_until(), a.when(ms(70))), (ms(60), ms(100), ms(1040)));
        assert!(!a.has_listened() && !a.would_know_of_a_takeover());
        a.advance(ms(1050), &config());
        a.advance(ms(1070), &config());
        assert!(a.has_listened() && a.would_know_of_a_takeover());
    }

    #[test]
    fn a_short_pause_leaves_no_time_for_a_takeover() {
        let mut a = Absence::new(ms(0));
        let patient = RoleConfig { misses: 10, ..config() };
        assert!(a.advance(ms(40), &patient) && a.is_away() && a.would_know_of_a_takeover());
    }

    #[test]
    fn time_away_ends_with_the_first_heartbeat_that_the_partner_has_heard_since() {
        let mut a = Absence::new(ms(0));
        assert_eq!(a.unheard(), None);
        a.echo(ms(0));
        for n in 1..=10 {
            a.advance(ms(20 * n), &config());
        }
        a.note_cut_off();
        assert!(a.is_away() && a.is_cut_off() && a.is_longer_than(ms(200)) && !a.is_longer_than(ms(201)));
        assert_eq!((a.back(), a.unheard()), (ms(200), Some(ms(200))));
        a.advance(ms(220), &config());
        assert!(!a.is_longer_than(ms(201)), "in reach again it is away for no longer");
        a.echo(ms(190));
        assert!(a.is_away(), "that one was sent before");
        a.echo(ms(210));
        assert!(!a.is_away() && !a.is_longer_than(ms(0)));
    }
}
