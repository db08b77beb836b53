//! Sockets of the kernel's that are to go: what a demotion or a killed program has left, and connections that were torn. Of very
//! many this takes long, so it goes in steps.

use tcpr_session::tuple::FourTuple;
use tcpr_session::Now;

use super::Manager;
use crate::sockdiag::{state, Listing, Ours, SockDiag, TcpSocket};

/// So many sockets are removed in one step.
const AT_ONCE: usize = 256;
/// So often is looked for what the local TCP has sent before this member serves anything.
const LAST_LOOKS: usize = 100;

/// The removal of what the kernel still holds of the service's connections, in steps: of very many it takes long. Their RSTs
/// meet the rules: the filter lets none of them leave. What has yet to become a connection is a program's that lives: its SYN
/// is looked at like any other.
#[derive(Default)]
enum Removal {
    #[default]
    Done,
    /// The kernel tells what it has.
    Listing { listing: Listing, found: Vec<TcpSocket> },
    /// These are left.
    Destroying(Vec<TcpSocket>),
}

impl Removal {
    fn begin() -> Removal {
        let listing = Listing::begin().map_err(|error| log::error!(error:%; "cannot list the kernel's sockets"));
        listing.map_or(Removal::Done, |listing| Removal::Listing { listing, found: Vec::new() })
    }

    fn is_done(&self) -> bool {
        matches!(self, Removal::Done)
    }

    /// Does a few hundred of them at the most.
    fn step(self, sockdiag: &mut SockDiag, ours: &Ours) -> Removal {
        match self {
            Removal::Done => Removal::Done,
            Removal::Listing { mut listing, mut found } => {
                let lives = |s: &TcpSocket| matches!(s.state, state::LISTEN | state::SYN_SENT);
                let told = listing.step(ours, |s| found.extend(Some(s).filter(|s| !lives(s))));
                let more = told.unwrap_or_else(|error| {
                    log::error!(error:%; "cannot list the kernel's sockets");
                    false
                });
                if more {
                    Removal::Listing { listing, found }
                } else {
                    Removal::Destroying(found)
                }
            }
            Removal::Destroying(mut left) => {
                for s in left.split_off(left.len().saturating_sub(AT_ONCE)) {
                    if let Err(error) = sockdiag.destroy_this(&s) {
                        log::warn!(local:% = s.local, peer:% = s.peer, error:%; "cannot remove a socket of the kernel's");
                    }
                }
                if left.is_empty() {
                    Removal::Done
                } else {
                    Removal::Destroying(left)
                }
            }
        }
    }
}

/// What is to be removed.
#[derive(Default)]
pub(super) struct Cleanup {
    removal: Removal,
    /// Connections that were torn.
    doomed: Vec<FourTuple>,
}

impl Cleanup {
    /// Everything that the kernel has of the service's connections is to go.
    pub(super) fn begin(&mut self) {
        self.removal = Removal::begin();
    }

    /// Nothing of that is left.
    pub(super) fn is_done(&self) -> bool {
        self.removal.is_done()
    }

    /// Goes on with it.
    pub(super) fn step(&mut self, sockdiag: &mut SockDiag, ours: &Ours) {
        self.removal = std::mem::take(&mut self.removal).step(sockdiag, ours);
    }

    /// These connections were torn: the filter knows them no more.
    pub(super) fn doom(&mut self, ends: Vec<FourTuple>) {
        self.doomed.extend(ends);
    }

    pub(super) fn poll_timeout(&self) -> Option<Now> {
        (!self.doomed.is_empty()).then_some(Now::ZERO)
    }

    /// Removes a few hundred of those that were torn.
    pub(super) fn remove_doomed(&mut self, sockdiag: &mut SockDiag) {
        let rest = self.doomed.len().saturating_sub(AT_ONCE);
        for end in self.doomed.split_off(rest) {
            if let Err(error) = sockdiag.destroy(end.local, end.peer) {
                log::warn!(tuple:% = end, error:%; "cannot remove a socket of the kernel's");
            }
        }
    }
}

impl Manager {
    /// Removes all sockets of the service's connections at once; but the partner is shown that we live.
    pub(super) fn destroy_sockets(&mut self) {
        let mut now = Cleanup::default();
        now.begin();
        while !now.is_done() {
            now.step(&mut self.sockdiag, self.takeover.ours());
            self.stay_alive();
        }
    }

    /// Goes on with the removal of what a demotion has left in the kernel.
    pub(super) fn clear_away(&mut self) {
        if self.cleanup.is_done() {
            return;
        }
        self.cleanup.step(&mut self.sockdiag, self.takeover.ours());
        self.receive_out();
    }

    /// The same to its end, before this member serves anything: the RSTs of what ended here meet a passive filter, and one that
    /// serves would take them for strangers'. The partner is shown that we live.
    pub(super) fn clear_away_all(&mut self) {
        if self.cleanup.is_done() {
            return;
        }
        while !self.cleanup.is_done() {
            self.cleanup.step(&mut self.sockdiag, self.takeover.ours());
            self.receive_out();
            self.stay_alive();
        }
        for _ in 0..LAST_LOOKS {
            if self.receive_out() {
                break;
            }
        }
    }
}
