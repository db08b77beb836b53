//! Records of connections that the kernel has given up without a packet that would say so: their peers have vanished.

use std::collections::HashSet;
use std::time::Duration;

use tcpr_session::filter::Mode;
use tcpr_session::role::Role;
use tcpr_session::tuple::{FourTuple, SessionId};
use tcpr_session::Now;

use super::Manager;
use crate::sockdiag::TcpSocket;

/// How often the kernel is asked for its connections.
const EVERY: Duration = Duration::from_secs(5);
/// At most one part of so many of the manager's time is spent on that.
const SHARE: u32 = 100;

#[derive(Debug, Default)]
pub(super) struct Sweep {
    due: Now,
    /// What the kernel did not have when it was asked last: it may have been about to.
    missing: HashSet<SessionId>,
}

impl Manager {
    /// Removes the records of connections that the kernel has not had twice.
    pub(super) fn sweep(&mut self, now: Now) {
        if self.role.role() != Role::Master || self.filter.mode() != Mode::Active {
            self.sweep.missing.clear();
            self.sweep.due = now + EVERY;
            return;
        }
        if now < self.sweep.due {
            return;
        }
        let (store, mut there) = (self.filter.store(), Vec::new());
        let note = |socket: TcpSocket| {
            let outer = self.filter.outer(&FourTuple { local: socket.local, peer: socket.peer });
            there.extend(outer.and_then(|tuple| store.find(&tuple)));
        };
        match self.sockdiag.each(self.takeover.ours(), note) {
            Ok(()) => {
                there.sort_unstable();
                let before = std::mem::take(&mut self.sweep.missing);
                let ours = self.takeover.ours();
                let missing = self.filter.with_sockets();
                let missing = missing.filter(|(id, t)| ours.has(t.local, t.peer) && there.binary_search(id).is_err());
                let (gone, new): (Vec<_>, Vec<_>) = missing.partition(|(id, _)| before.contains(id));
                self.sweep.missing = new.into_iter().map(|(id, _)| id).collect();
                for (session, tuple) in gone {
                    let inner = self.filter.inner(&tuple);
                    // A list may lack what changed its place meanwhile.
                    if !matches!(self.sockdiag.find(inner.local, inner.peer), Ok(None)) {
                        continue;
                    }
                    log::info!("session {session} {tuple}: the kernel has given it up");
                    self.filter.swept(now, &tuple);
                }
            }
            Err(error) => log::warn!("cannot list the kernel's connections: {error}"),
        }
        let took = self.now() - now;
        self.sweep.due = now + EVERY.max(took * SHARE);
    }
}
