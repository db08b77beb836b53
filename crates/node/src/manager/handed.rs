//! Sessions that processes were handed, and that have yet to be accepted there.

use tcpr_session::tuple::SessionId;
use tcpr_session::Now;

use super::doorbells::STUCK;
use crate::channel::wire::RecoveredInfo;

struct Out {
    info: RecoveredInfo,
    channel: u32,
    /// It came with others, and may wait there for an accept: the process has not asked for more since.
    stashed: bool,
    /// Since when the process is about to accept it.
    since: Now,
}

impl Out {
    /// When somebody is rung for it; `None`: as long as it waits. What was fetched alone is about to be accepted, and nobody else
    /// can have it. But its process may wait with it for what a doorbell ends.
    fn rings(&self) -> Option<Now> {
        (!self.stashed).then(|| self.since + STUCK)
    }

    fn is_of(&self, port: u16) -> bool {
        self.info.tuple.local.port() == port
    }
}

/// See the module's description.
#[derive(Default)]
pub(super) struct Handed {
    out: Vec<Out>,
}

impl Handed {
    /// The process has these now.
    pub(super) fn add(&mut self, now: Now, channel: u32, sessions: Vec<RecoveredInfo>) {
        let stashed = sessions.len() > 1;
        self.out.extend(sessions.into_iter().map(|info| Out { info, channel, stashed, since: now }));
    }

    /// A process asks for more of a port: it has accepted what it was handed, or is about to.
    pub(super) fn asks_again(&mut self, now: Now, channel: u32, port: u16) {
        let stashed = self.out.iter_mut().filter(|out| out.stashed && out.channel == channel && out.is_of(port));
        stashed.for_each(|out| (out.stashed, out.since) = (false, now));
    }

    /// The process gives one back.
    pub(super) fn take_back(&mut self, channel: u32, session: SessionId) -> Option<RecoveredInfo> {
        let at = self.out.iter().position(|out| out.channel == channel && out.info.session == session)?;
        Some(self.out.swap_remove(at).info)
    }

    /// Those stay that still wait.
    pub(super) fn retain(&mut self, waits: impl Fn(SessionId) -> bool) {
        self.out.retain(|out| waits(out.info.session));
    }

    pub(super) fn clear(&mut self) {
        self.out.clear();
    }

    /// For how many of a port somebody is rung now.
    pub(super) fn to_ring_for(&self, now: Now, port: u16) -> usize {
        self.out.iter().filter(|out| out.is_of(port) && out.rings().is_none_or(|at| now >= at)).count()
    }

    /// When somebody is rung for the next one of a port.
    pub(super) fn next_ring(&self, port: u16) -> Option<Now> {
        self.out.iter().filter(|out| out.is_of(port)).filter_map(Out::rings).min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tcpr_session::tuple::FourTuple;

    use super::*;

    const WORKER: u32 = 7;

    fn info(session: SessionId, port: u16) -> RecoveredInfo {
        let tuple = FourTuple { local: ([192, 0, 2, 1], port).into(), peer: ([198, 51, 100, 1], 1000).into() };
        let (absorb, in_done, out_base) = (0, 0, 0);
        RecoveredInfo { tuple, session, absorb, greeted: false, in_done, out_base, options: Vec::new() }
    }

    #[test]
    fn a_stashed_session_rings_until_its_process_asks_and_one_that_came_alone_when_it_is_stuck() {
        let now = Duration::from_secs(1);
        let mut handed = Handed::default();
        handed.add(now, WORKER, vec![info(1, 80), info(2, 80)]);
        handed.add(now, WORKER, vec![info(3, 81)]);
        assert_eq!((handed.to_ring_for(now, 80), handed.next_ring(80)), (2, None));
        assert_eq!((handed.to_ring_for(now, 81), handed.next_ring(81)), (0, Some(now + STUCK)));
        assert_eq!(handed.to_ring_for(now + STUCK, 81), 1);
        handed.asks_again(now + STUCK, WORKER, 80);
        assert_eq!((handed.to_ring_for(now + STUCK, 80), handed.next_ring(80)), (0, Some(now + STUCK + STUCK)));
    }

    #[test]
    fn a_session_is_given_back_by_the_process_that_has_it_alone() {
        let now = Duration::from_secs(1);
        let mut handed = Handed::default();
        handed.add(now, WORKER, vec![info(1, 80), info(2, 80)]);
        assert!(handed.take_back(WORKER + 1, 1).is_none());
        assert!(handed.take_back(WORKER, 1).is_some_and(|info| info.session == 1) && handed.take_back(WORKER, 1).is_none());
        handed.retain(|session| session != 2);
        assert_eq!(handed.to_ring_for(now, 80), 0);
    }
}
