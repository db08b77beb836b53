//! Records of connections that the kernel has given up without a packet that would say so: their peers have vanished. Of many
//! thousands the kernel tells, and we look, a few at a time: packets and heartbeats do not wait for it.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use tcpr_session::filter::Mode;
use tcpr_session::role::Role;
use tcpr_session::tuple::{FourTuple, SessionId};
use tcpr_session::Now;

use super::Manager;
use crate::sockdiag::{Listing, TcpSocket};

/// How often the kernel is asked for its connections.
const EVERY: Duration = Duration::from_secs(5);
/// At most one part of so many of the manager's time is spent on that.
const SHARE: u32 = 100;
/// How often in a row the kernel is asked for more, each time for a few hundred at the most.
const PARTS: usize = 4;
/// How many sessions are looked at in a row.
const SESSIONS: usize = 2000;
/// Between two such steps.
const PAUSE: Duration = Duration::from_millis(1);

#[derive(Default)]
pub(super) struct Sweep {
    due: Now,
    /// What the kernel did not have when it was asked last: it may have been about to.
    missing: HashSet<SessionId>,
    stage: Stage,
    spent: Duration,
}

#[derive(Default)]
enum Stage {
    #[default]
    Idle,
    /// The kernel tells what it has.
    Listing { listing: Listing, there: Vec<SessionId> },
    /// What it has, in order; the sessions that are to be looked at; what is missing so far.
    Checking { there: Vec<SessionId>, left: Vec<SessionId>, missing: HashSet<SessionId> },
}

impl Sweep {
    pub(super) fn poll_timeout(&self) -> Option<Now> {
        (!matches!(self.stage, Stage::Idle)).then_some(self.due)
    }
}

impl Manager {
    /// Removes the records of connections that the kernel has not had twice, step by step.
    pub(super) fn sweep(&mut self, now: Now) {
        if self.role.role() != Role::Master || self.filter.mode() != Mode::Active {
            self.sweep = Sweep { due: now + EVERY, ..Sweep::default() };
            return;
        }
        if now < self.sweep.due {
            return;
        }
        let stage = std::mem::take(&mut self.sweep.stage);
        self.sweep.stage = self.sweep_step(now, stage).unwrap_or_else(|error| {
            log::warn!(error:%; "cannot list the kernel's connections");
            Stage::Idle
        });
        self.sweep.spent += self.now() - now;
        let over = matches!(self.sweep.stage, Stage::Idle);
        let wait = if over { EVERY.max(std::mem::take(&mut self.sweep.spent) * SHARE) } else { PAUSE };
        self.sweep.due = self.now() + wait;
    }

    fn sweep_step(&mut self, now: Now, stage: Stage) -> io::Result<Stage> {
        let ours = self.takeover.ours();
        match stage {
            Stage::Idle => Ok(Stage::Listing { listing: Listing::begin()?, there: Vec::new() }),
            Stage::Listing { mut listing, mut there } => {
                let (filter, store) = (&self.filter, self.filter.store());
                let mut note = |socket: TcpSocket| {
                    let outer = filter.peer_tuple(&FourTuple { local: socket.local, peer: socket.peer });
                    there.extend(outer.and_then(|tuple| store.find(&tuple)));
                };
                for _ in 0..PARTS {
                    if !listing.step(ours, &mut note)? {
                        there.sort_unstable();
                        return Ok(Stage::Checking { there, left: filter.sessions(), missing: HashSet::new() });
                    }
                }
                Ok(Stage::Listing { listing, there })
            }
            Stage::Checking { there, mut left, mut missing } => {
                let step = left.split_off(left.len().saturating_sub(SESSIONS));
                for session in step {
                    let Some(tuple) = self.filter.with_socket(session) else { continue };
                    if !self.takeover.ours().has(tuple.local, tuple.peer) || there.binary_search(&session).is_ok() {
                        continue;
                    }
                    if !self.sweep.missing.contains(&session) {
                        missing.insert(session);
                        continue;
                    }
                    let inner = self.filter.local_tuple(&tuple);
                    // A list may lack what changed its place meanwhile.
                    if matches!(self.sockdiag.find(inner.local, inner.peer), Ok(None)) {
                        log::info!(session, tuple:%; "the kernel has given a connection up");
                        self.filter.swept(now, &tuple);
                    }
                }
                if left.is_empty() {
                    self.sweep.missing = missing;
                    return Ok(Stage::Idle);
                }
                Ok(Stage::Checking { there, left, missing })
            }
        }
    }
}
