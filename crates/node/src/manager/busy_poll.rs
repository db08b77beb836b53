//! When the loop looks for what comes next instead of sleeping.

use std::time::Duration;

/// How long a lone exchange is waited for without sleeping: about what waking takes.
const SPAN: Duration = Duration::from_micros(30);

/// Where one exchange is under way and no other, what it needs next (the application's answer, the replica's word) comes about
/// as soon as a sleeper would wake. Where more is under way it comes by itself.
pub(super) struct BusyPoll {
    span: Duration,
    /// Packets of the passes before.
    seen: u64,
}

impl BusyPoll {
    /// As configured, or as the machine suggests: on a single processor the application would wait for us.
    pub(super) fn new(configured: Option<Duration>) -> BusyPoll {
        let several = std::thread::available_parallelism().is_ok_and(|n| n.get() > 1);
        BusyPoll { span: configured.unwrap_or(if several { SPAN } else { Duration::ZERO }), seen: 0 }
    }

    /// How long to look, if at all. `packets` is how many there have ever been, `waiting` how many wait for something now.
    pub(super) fn span(&mut self, packets: u64, waiting: usize) -> Option<Duration> {
        let came = packets - std::mem::replace(&mut self.seen, packets);
        let lone = match waiting {
            0 => came == 1,
            n => n == 1,
        };
        (lone && !self.span.is_zero()).then_some(self.span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lone_exchange_is_waited_for_awake() {
        let us = Duration::from_micros;
        let mut busy_poll = BusyPoll::new(Some(us(50)));
        assert_eq!(busy_poll.span(1, 0), Some(us(50)), "a packet came, and nothing waits");
        assert_eq!(busy_poll.span(1, 0), None, "nothing came");
        assert_eq!(busy_poll.span(1, 1), Some(us(50)), "one waits");
        assert_eq!(busy_poll.span(9, 0), None, "many came");
        assert_eq!(busy_poll.span(10, 2), None, "two wait");
        assert_eq!(BusyPoll::new(Some(us(0))).span(1, 0), None, "it is switched off");
    }
}
