//! What tcpr has put on this host, and what follows when somebody takes it away: packet rules, virtual IP, control socket.
//!
//! Without the rules packets go around the queues: what the local TCP takes nobody stores. So the virtual IP goes, too, until
//! they are back; a takeover waits for them; and then the kernel is asked how far each session has come without us.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
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
use crate::sockdiag::{state, Listing, SockDiag, TcpSocket};

/// Most sessions asked about at once.
const AT_ONCE: usize = 64;
/// How often it is seen whether the host tracks connections by now.
const TRACKED_AGAIN: Duration = Duration::from_millis(100);
/// Connections that began while there were no rules are looked for again after these: a handshake may have been under way.
const STRANGERS_AGAIN: [Duration; 3] = [Duration::ZERO, Duration::from_millis(200), Duration::from_secs(2)];

pub(super) struct Host {
    /// None: the manager leaves.
    guard: Option<Guard>,
    /// Why packets may go around the queues.
    missing: Option<String>,
    /// Addresses that we should have and have not, and why.
    addresses: BTreeMap<IpAddr, String>,
    rules_restored: u64,
    addresses_restored: u64,
    strangers: u64,
    /// The virtual IP, and the takeover, wait for the rules.
    address_waits: bool,
    pub takeover_waits: bool,
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
    pub(super) fn new(guard: Guard) -> Host {
        Host {
            guard: Some(guard),
            missing: None,
            addresses: BTreeMap::new(),
            rules_restored: 0,
            addresses_restored: 0,
            strangers: 0,
            address_waits: false,
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

    /// From now on nothing is put back.
    pub(super) fn leave(&mut self) {
        self.guard = None;
    }

    /// Everything is where it should be, and every session is known as it is.
    pub(super) fn whole(&self, filter: &Filter) -> bool {
        self.trouble(filter).is_none()
    }

    /// No packet goes around the queues.
    pub(super) fn is_guarded(&self) -> bool {
        self.missing.is_none()
    }

    fn trouble(&self, filter: &Filter) -> Option<String> {
        let addresses = self.addresses.values().next().cloned();
        let around = filter.around();
        let settling = || match around {
            _ if !self.unsettled.is_empty() => Some("sessions are compared with the kernel's".to_owned()),
            0 => None,
            n => Some(format!("{n} sessions have input that went around the queues, and is not answered yet")),
        };
        self.missing.clone().or(addresses).or_else(settling)
    }

    pub(super) fn status(&self, filter: &Filter) -> serde_json::Value {
        json!({
            "missing": self.trouble(filter),
            "rules_restored": self.rules_restored,
            "addresses_restored": self.addresses_restored,
            "strangers_reset": self.strangers,
        })
    }

    /// Whether packets to the virtual IP would meet the rules. If not, it is taken when they do.
    pub(super) fn may_take_address(&mut self) -> bool {
        self.address_waits |= self.missing.is_some();
        self.missing.is_none()
    }

    /// Of rules that have changed in this very moment it is heard before anything is sent to us.
    pub(super) fn look_before_takeover(&mut self) {
        if self.missing.is_none() && self.guard.as_mut().is_some_and(|guard| !guard.unchanged()) {
            self.missing = Some("the packet rules have just changed, and are looked at".to_owned());
        }
    }

    /// The virtual IP is not ours to have.
    pub(super) fn no_address(&mut self) {
        self.addresses.clear();
        self.address_waits = false;
        self.takeover_waits = false;
    }

    /// How it went with an address that we should have.
    pub(super) fn address(&mut self, result: io::Result<()>, address: IpAddr) {
        match result {
            Ok(()) => drop(self.addresses.remove(&address)),
            Err(error) => {
                log::error!("{error}");
                self.addresses.insert(address, error.to_string());
            }
        }
    }

    /// The same of one that was gone. Whether it is back.
    pub(super) fn address_again(&mut self, result: io::Result<()>, address: IpAddr) -> bool {
        let back = result.is_ok();
        self.addresses_restored += u64::from(back);
        self.address(result, address);
        back
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
        let tuple = filter.outer(&FourTuple { local: segment.source(), peer: segment.destination() });
        let taken_over =
            |tuple: &FourTuple| filter.store().find(tuple).and_then(|id| filter.store().get(id)).is_some_and(|s| s.established);
        self.handshakes.extend(tuple.filter(taken_over));
    }
}

impl Manager {
    pub(super) fn host_told(&mut self) {
        let now = self.now();
        let events = self.host.guard.as_mut().map(Guard::take).unwrap_or_default();
        for event in events {
            match event {
                Event::Missing(why) => {
                    log::error!("packets may go around the queues: {why}");
                    self.host.missing = Some(why);
                    self.beat();
                    // Sockets are not restored on an address that is not here.
                    if self.vip_up && self.filter.mode() != Mode::Restoring {
                        self.vip_drop();
                        self.host.address_waits = true;
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
                Event::Address => self.vip_renew = now,
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
        if std::mem::take(&mut self.host.address_waits) {
            self.vip_add(now);
        }
        if takeover {
            self.begin_takeover(now);
            if std::mem::take(&mut self.partner.pairing_waits) {
                self.start_pairing();
            }
        } else if self.takeover.died {
            self.recover_here(now);
        }
    }

    fn control_again(&mut self) {
        self.poller.remove(self.control.fd());
        let named = self.control.name_again().and_then(|()| self.poller.add(self.control.fd(), super::Token::Control));
        match named {
            Ok(()) => log::warn!("the control socket was removed by somebody; it is there again"),
            Err(error) => log::error!("the control socket was removed by somebody: {error}"),
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
                Err(error) => log::warn!("cannot list the kernel's connections: {error}"),
            }
        }
    }

    fn settle_session(&mut self, now: Now, session: SessionId) {
        let Some(tuple) = self.filter.store().get(session).map(|s| self.filter.inner(&s.open.tuple)) else { return };
        match self.sockdiag.find(tuple.local, tuple.peer) {
            Ok(Some(socket)) => {
                let ended = matches!(socket.state, state::CLOSE_WAIT | state::LAST_ACK | state::CLOSING | state::TIME_WAIT);
                if let Some(received) = socket.received {
                    self.filter.went_around(now, session, received, ended);
                }
            }
            // The sweep finds out.
            Ok(None) => {}
            Err(error) => log::warn!("session {session}: the kernel does not say how far it has come: {error}"),
        }
    }

    /// Connections that began around the queues: no store knows them, and nothing that they say would leave. Looks at a few
    /// hundred of the kernel's.
    fn reset_strangers(&mut self, mut listing: Listing) {
        let mut strangers = Vec::new();
        let known = |s: &TcpSocket| {
            let tuple = self.filter.outer(&FourTuple { local: s.local, peer: s.peer });
            tuple.is_some_and(|tuple| self.filter.store().find(&tuple).is_some())
        };
        let opens = |s: &TcpSocket| matches!(s.state, state::SYN_RECV | state::SYN_SENT | state::TIME_WAIT);
        let told = listing.step(self.takeover.ours(), |s| strangers.extend(Some(s).filter(|s| !opens(s) && !known(s))));
        match told {
            Ok(true) => self.host.listing = Some(listing),
            Ok(false) => {}
            Err(error) => log::warn!("cannot list the kernel's connections: {error}"),
        }
        for s in strangers {
            // Local ones meet no rules.
            let local = self.vips.first_mut().map(|vip| vip.is_here(s.peer.ip()));
            if !matches!(local, Some(Ok(false))) {
                continue;
            }
            self.host.strangers += 1;
            log::warn!("{} <- {} began while there were no packet rules, and is reset", s.local, s.peer);
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
            Err(error) => return log::warn!("cannot tell the host's firewall of connections: {error}"),
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
        log::warn!("cannot remove the kernel's socket {local} <- {peer}: {error}");
    }
}
