//! What tcpr has put on this host, and what follows when somebody takes it away: packet rules, virtual IP, control socket.
//!
//! Without the rules packets go around the queues: what the local TCP takes nobody stores. So the virtual IP goes, too, until
//! they are back; a takeover waits for them; and then the kernel is asked how far each session has come without us.

use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use serde_json::json;
use tcpr_session::filter::{Engine, Filter, Mode};
use tcpr_session::role::Role;
use tcpr_session::segment::{flags, Segment};
use tcpr_session::tuple::{FourTuple, SessionId};
use tcpr_session::Now;

use super::Manager;
use crate::conntrack::{self, Conntrack};
use crate::guard::{Event, Guard};
use crate::rules::Rules;
use crate::sockdiag::{state, Listing, SockDiag, TcpSocket};

/// Most sessions asked about at once.
const AT_ONCE: usize = 64;
/// How often it is seen whether the host tracks connections by now.
const TRACKED_AGAIN: Duration = Duration::from_millis(100);
/// Connections that began while there were no rules are looked for again after these: a handshake may have been under way.
const STRANGERS_AGAIN: [Duration; 3] = [Duration::ZERO, Duration::from_millis(200), Duration::from_secs(2)];

pub(super) struct Host {
    rules: Rules,
    /// None: the manager leaves.
    guard: Option<Guard>,
    /// Why packets may go around the queues.
    missing: Option<String>,
    rules_restored: u64,
    strangers: u64,
    /// The takeover waits for the rules.
    takeover_waits: bool,
    /// Sessions of which the kernel is to be asked how far they have come.
    unsettled: Vec<SessionId>,
    strangers_due: Vec<Now>,
    /// They are being looked for.
    listing: Option<Listing>,
    conntrack: Option<Conntrack>,
    /// When to see whether connections are tracked by now: a firewall may be loaded at any time.
    conntrack_at: Option<Now>,
    /// Recovered connections of which a handshake was seen: it made connection tracking look at numbers again.
    handshakes: Vec<FourTuple>,
}

impl Host {
    pub(super) fn new(guard: Guard, rules: Rules) -> Host {
        Host {
            rules,
            guard: Some(guard),
            missing: None,
            rules_restored: 0,
            strangers: 0,
            takeover_waits: false,
            unsettled: Vec::new(),
            strangers_due: Vec::new(),
            listing: None,
            conntrack: None,
            conntrack_at: None,
            handshakes: Vec::new(),
        }
    }

    pub(super) fn fd(&self) -> Option<RawFd> {
        self.guard.as_ref().map(Guard::as_raw_fd)
    }

    /// Removes the packet rules. The guard goes first: it would put them back.
    pub(super) fn remove_rules(&mut self) {
        self.guard = None;
        if let Err(error) = self.rules.remove() {
            log::error!(error:%; "cannot remove the packet rules");
        }
    }

    /// No packet goes around the queues.
    pub(super) fn is_guarded(&self) -> bool {
        self.missing.is_none()
    }

    /// Packets may go around the queues; or sessions are not known as they are.
    fn trouble(&self, filter: &Filter, address: Option<String>) -> Option<String> {
        let around = filter.around();
        let settling = || match around {
            _ if !self.unsettled.is_empty() => Some("sessions are compared with the kernel's".to_owned()),
            0 => None,
            n => Some(format!("{n} sessions have input that went around the queues, and is not answered yet")),
        };
        self.missing.clone().or(address).or_else(settling)
    }

    /// Of rules that have changed in this very moment it is heard before anything is sent to us.
    pub(super) fn look_before_takeover(&mut self) {
        if self.missing.is_none() && self.guard.as_mut().is_some_and(|guard| !guard.unchanged()) {
            self.missing = Some("the packet rules have just changed, and are looked at".to_owned());
        }
    }

    /// The takeover begins when the rules are in force again.
    pub(super) fn postpone_takeover(&mut self) {
        self.takeover_waits = true;
    }

    pub(super) fn takeover_is_postponed(&self) -> bool {
        self.takeover_waits
    }

    /// The sessions are not this member's to take over any more.
    pub(super) fn forget_takeover(&mut self) {
        self.takeover_waits = false;
    }

    pub(super) fn poll_timeout(&self, now: Now) -> Option<Now> {
        let busy = !self.unsettled.is_empty() || self.listing.is_some();
        let unsettled = (busy && self.missing.is_none()).then_some(now);
        let due = [unsettled, self.strangers_due.first().copied(), self.conntrack_at];
        due.into_iter().flatten().min()
    }

    /// A SYN or SYN-ACK of the local TCP on a connection that was taken over.
    pub(super) fn note_handshake(&mut self, filter: &Filter, packet: &[u8]) {
        if self.conntrack.is_none() || filter.engine() != Engine::Splice {
            return;
        }
        let Ok(segment) = Segment::parse(packet) else { return };
        if !segment.has(flags::SYN) {
            return;
        }
        let tuple = filter.peer_tuple(&FourTuple { local: segment.source(), peer: segment.destination() });
        let taken_over =
            |tuple: &FourTuple| filter.store().find(tuple).and_then(|id| filter.store().get(id)).is_some_and(|s| s.established);
        self.handshakes.extend(tuple.filter(taken_over));
    }
}

impl Manager {
    fn host_trouble(&self) -> Option<String> {
        self.host.trouble(&self.filter, self.virtual_ip.trouble())
    }

    /// Everything is where it should be, and every session is known as it is.
    pub(super) fn host_is_whole(&self) -> bool {
        self.host_trouble().is_none()
    }

    pub(super) fn host_status(&self) -> serde_json::Value {
        json!({
            "missing": self.host_trouble(),
            "rules_restored": self.host.rules_restored,
            "addresses_restored": self.virtual_ip.restored(),
            "strangers_reset": self.host.strangers,
        })
    }

    pub(super) fn host_told(&mut self) {
        let now = self.now();
        let events = self.host.guard.as_mut().map(Guard::take).unwrap_or_default();
        for event in events {
            match event {
                Event::Missing(why) => {
                    log::error!(why:%; "packets may go around the queues");
                    self.host.missing = Some(why);
                    self.beat();
                    // Sockets are not restored on an address that is not here.
                    if self.virtual_ip.is_here() && self.filter.mode() != Mode::Restoring {
                        self.host.forget_takeover();
                        self.virtual_ip.give_up();
                        self.virtual_ip.wait_for_rules();
                    }
                }
                Event::InForce { restored } => {
                    if restored {
                        self.host.rules_restored += 1;
                        log::warn!("the packet rules are in force again");
                        self.settle_sessions(now);
                    }
                    if self.host.missing.take().is_some() {
                        self.beat();
                    }
                    self.go_on(now);
                }
                Event::Address => self.virtual_ip.check_soon(now),
                Event::NoControl => self.control_again(),
            }
        }
    }

    /// What has waited for the rules.
    pub(super) fn go_on(&mut self, now: Now) {
        if self.role.role() != Role::Master {
            return;
        }
        let takeover = std::mem::take(&mut self.host.takeover_waits);
        if self.virtual_ip.waited_for_rules() {
            self.take_address(now);
        }
        if takeover {
            self.begin_takeover(now);
            if self.replication.was_postponed() {
                self.start_pairing();
            }
        } else if self.takeover.has_died() {
            self.recover_here(now);
        }
    }

    fn control_again(&mut self) {
        self.poller.remove(self.control.fd());
        let named = self.control.name_again().and_then(|()| self.poller.add(self.control.fd(), super::Token::Control));
        match named {
            Ok(()) => log::warn!("the control socket was removed by somebody; it is there again"),
            Err(error) => log::error!(error:%; "the control socket was removed by somebody"),
        }
    }

    /// Packets may have gone around the queues: all sessions are compared with what the kernel has.
    fn settle_sessions(&mut self, now: Now) {
        if self.role.role() == Role::Master && self.filter.mode() != Mode::Passive {
            self.host.unsettled = self.filter.with_sockets().map(|(id, _)| id).collect();
            self.host.strangers_due = STRANGERS_AGAIN.iter().map(|after| now + *after).collect();
        }
    }

    pub(super) fn host_timers(&mut self, now: Now) {
        if self.filter.mode() == Mode::Passive {
            self.host.unsettled.clear();
            self.host.strangers_due.clear();
            self.host.listing = None;
            self.host.conntrack_at = None;
            return;
        }
        if self.host.conntrack.is_some() {
            self.host.conntrack_at = None;
        } else if now >= *self.host.conntrack_at.get_or_insert(now + TRACKED_AGAIN) {
            self.host.conntrack_at = Some(now + TRACKED_AGAIN);
            self.track_sessions();
        }
        while let Some(session) = self.filter.poll_around() {
            self.settle_session(now, session);
        }
        if self.host.missing.is_some() || !matches!(self.filter.mode(), Mode::Active | Mode::Restoring) {
            return;
        }
        if !self.host.unsettled.is_empty() {
            // What hooks announced of output that has left is told first.
            self.drain_apps();
            let from = self.host.unsettled.len().saturating_sub(AT_ONCE);
            for session in self.host.unsettled.split_off(from) {
                self.settle_session(now, session);
            }
        } else if let Some(listing) = self.host.listing.take() {
            self.reset_strangers(listing);
        } else if self.host.strangers_due.first().is_some_and(|t| now >= *t) {
            self.host.strangers_due.remove(0);
            match Listing::begin() {
                Ok(listing) => self.host.listing = Some(listing),
                Err(error) => log::warn!(error:%; "cannot list the kernel's connections"),
            }
        }
    }

    fn settle_session(&mut self, now: Now, session: SessionId) {
        let Some(tuple) = self.filter.store().get(session).map(|s| self.filter.local_tuple(&s.open.tuple)) else { return };
        match self.sockdiag.find(tuple.local, tuple.peer) {
            Ok(Some(socket)) => {
                let ended = matches!(socket.state, state::CLOSE_WAIT | state::LAST_ACK | state::CLOSING | state::TIME_WAIT);
                if let Some(received) = socket.received {
                    self.filter.went_around(now, session, received, ended);
                }
            }
            // The sweep finds out.
            Ok(None) => {}
            Err(error) => log::warn!(session, error:%; "the kernel does not say how far a session has come"),
        }
    }

    /// Connections that began around the queues: no store knows them, and nothing that they say would leave. Looks at a few
    /// hundred of the kernel's.
    fn reset_strangers(&mut self, mut listing: Listing) {
        let mut strangers = Vec::new();
        let known = |s: &TcpSocket| {
            let tuple = self.filter.peer_tuple(&FourTuple { local: s.local, peer: s.peer });
            tuple.is_some_and(|tuple| self.filter.store().find(&tuple).is_some())
        };
        let opens = |s: &TcpSocket| matches!(s.state, state::SYN_RECV | state::SYN_SENT | state::TIME_WAIT);
        let told = listing.step(self.takeover.ours(), |s| strangers.extend(Some(s).filter(|s| !opens(s) && !known(s))));
        match told {
            Ok(true) => self.host.listing = Some(listing),
            Ok(false) => {}
            Err(error) => log::warn!(error:%; "cannot list the kernel's connections"),
        }
        for s in strangers {
            // Local ones meet no rules.
            if self.virtual_ip.is_local(s.peer.ip()) != Some(false) {
                continue;
            }
            self.host.strangers += 1;
            log::warn!(local:% = s.local, peer:% = s.peer; "a connection began while there were no packet rules, and is reset");
            destroy(&mut self.sockdiag, s.local, s.peer);
        }
    }

    /// Connection tracking has not seen the sessions begin that were taken over, nor those that are older than the firewall
    /// which makes it look.
    pub(super) fn track_sessions(&mut self) {
        if !conntrack::in_use() {
            self.host.conntrack = None;
            return;
        }
        let mut conntrack = match Conntrack::open() {
            Ok(conntrack) => conntrack,
            Err(error) => return log::warn!(error:%; "cannot tell the host's firewall of connections"),
        };
        let mut tuples = Vec::with_capacity(self.filter.store().len());
        tuples.extend(self.filter.store().iter().filter(|s| s.established).map(|s| s.open.tuple));
        for (i, tuple) in tuples.iter().enumerate() {
            let ours = self.is_outgoing(tuple);
            if self.filter.engine() == Engine::Splice && !ours {
                // An entry that took its beginning from an answer would call the SYN in the peer's name INVALID.
                conntrack.forget(tuple);
            }
            conntrack.established(tuple, ours);
            if i % AT_ONCE == AT_ONCE - 1 {
                self.stay_alive();
            }
        }
        conntrack.flush();
        self.host.conntrack = Some(conntrack);
    }

    fn is_outgoing(&self, tuple: &FourTuple) -> bool {
        !self.config.service.ports.iter().any(|p| p.port == tuple.local.port())
    }

    /// The handshake of a local half makes connection tracking judge by its numbers, which are not the peer's.
    pub(super) fn track_handshakes(&mut self) {
        if self.host.handshakes.is_empty() {
            return;
        }
        for tuple in std::mem::take(&mut self.host.handshakes) {
            let ours = self.is_outgoing(&tuple);
            if let Some(conntrack) = &mut self.host.conntrack {
                conntrack.established(&tuple, ours);
            }
        }
        if let Some(conntrack) = &mut self.host.conntrack {
            conntrack.flush();
        }
    }
}

fn destroy(sockdiag: &mut SockDiag, local: std::net::SocketAddr, peer: std::net::SocketAddr) {
    if let Err(error) = sockdiag.destroy(local, peer) {
        log::warn!(local:%, peer:%, error:%; "cannot remove a socket of the kernel's");
    }
}
