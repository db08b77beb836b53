//! The replication connection to the partner: who dials, which connection counts, and why the last one ended.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tcpr_session::Now;

use super::poller::{Poller, Token};
use crate::config::Config;
use crate::key::Key;
use crate::link::{CloseReason, Fault, Goodbye, Link, LinkConfig, Listener, Message};

/// How often the dialing member tries.
const DIAL_EVERY: Duration = Duration::from_millis(100);
/// A partner whose manager runs is heard to be of another version this often, or more.
const ESTRANGED_FOR: Duration = Duration::from_secs(3);
/// So much may wait on the link before the log waits in front of it, and a snapshot for the log.
pub(super) const OUTBOX: usize = 1 << 20;

/// How a connection ended.
pub(super) struct Ended {
    pub(super) why: String,
    /// The partner's manager has ended, as far as this connection tells.
    pub(super) partner_gone: bool,
}

/// The connection of a pair. The member with the higher number dials; the other one listens.
pub(super) struct PartnerLink {
    local: SocketAddr,
    partner: Option<SocketAddr>,
    dials: bool,
    dial_at: Now,
    config: Arc<LinkConfig>,
    listener: Option<Listener>,
    link: Option<Link>,
    /// The partner has proved who it is, on this connection.
    up: bool,
    /// What the poller watches the connection for: readable, writable.
    interest: (bool, bool),
    /// The partner said that it closes this connection: its end is no sign of a death.
    heard_goodbye: bool,
    last_close: Option<String>,
    /// When the partner last said that we have no protocol version in common, and the words for it.
    estranged: Option<(Now, String)>,
}

impl PartnerLink {
    pub(super) fn new(config: &Config, key: Key, now: Now) -> io::Result<PartnerLink> {
        let port = config.replication.port;
        let local = SocketAddr::new(config.me().address, port);
        let partner = config.partner().map(|p| SocketAddr::new(p.address, port));
        let link_config = Arc::new(LinkConfig::new(&config.service.name, key));
        let listen = |partner: SocketAddr| {
            let mut listener = Listener::listen(local, link_config.clone()).map_err(|e| {
                let text =
                    format!("replication cannot listen on {local}: {e}; is the address on this machine, and the port free?");
                io::Error::new(e.kind(), text)
            })?;
            listener.expect(partner.ip());
            Ok::<_, io::Error>(listener)
        };
        let listener = partner.map(listen).transpose()?;
        Ok(PartnerLink {
            local,
            partner,
            dials: config.member_index == 1,
            dial_at: now,
            config: link_config,
            listener,
            link: None,
            up: false,
            interest: (true, false),
            heard_goodbye: false,
            last_close: None,
            estranged: None,
        })
    }

    pub(super) fn watch(&self, poller: &Poller) -> io::Result<()> {
        self.listener.as_ref().map_or(Ok(()), |listener| poller.add(listener.fd(), Token::LinkListener))
    }

    fn dials(&self) -> bool {
        self.dials && self.partner.is_some() && self.link.is_none()
    }

    pub(super) fn poll_timeout(&self) -> Option<Now> {
        let dial = self.dials().then_some(self.dial_at);
        let link = self.link.as_ref().and_then(Link::poll_timeout);
        let listener = self.listener.as_ref().and_then(Listener::poll_timeout);
        [dial, link, listener].into_iter().flatten().min()
    }

    /// Gives up handshakes that take too long.
    pub(super) fn handle_timeout(&mut self, now: Now) {
        if let Some(listener) = &mut self.listener {
            listener.handle_timeout(now);
        }
        if let Some(link) = &mut self.link {
            link.handle_timeout(now);
        }
    }

    /// Dials if it is time to.
    pub(super) fn dial_if_due(&mut self, now: Now, poller: &Poller) {
        if !self.dials() || now < self.dial_at {
            return;
        }
        self.dial_at = now + DIAL_EVERY;
        let Some(partner) = self.partner else { return };
        let from = SocketAddr::new(self.local.ip(), 0);
        match Link::connect(now, partner, Some(from), self.config.clone()) {
            Ok(link) => self.adopt(poller, link),
            Err(error) => log::debug!(error:%; "cannot reach the partner"),
        }
    }

    /// The next connection that the partner has made.
    pub(super) fn next_accepted(&mut self, now: Now) -> Option<Link> {
        self.listener.as_mut()?.on_ready(now)
    }

    /// Who was turned away last, and why; it is given once.
    pub(super) fn take_last_rejection(&mut self, now: Now) -> Option<(SocketAddr, CloseReason)> {
        let (from, reason) = self.listener.as_mut()?.take_last_rejection()?;
        if self.partner.is_some_and(|partner| partner.ip() == from.ip()) {
            self.note_version(now, &reason);
        }
        Some((from, reason))
    }

    /// Takes a connection for the one to the partner.
    pub(super) fn adopt(&mut self, poller: &Poller, link: Link) {
        self.interest = link.interest();
        let (read, write) = self.interest;
        let added = poller.add(link.fd(), Token::Link).and_then(|()| poller.set(link.fd(), Token::Link, read, write));
        match added {
            Ok(()) => {
                self.heard_goodbye = false;
                self.link = Some(link);
            }
            Err(error) => log::error!(error:%; "cannot watch the replication connection"),
        }
    }

    /// Whether there is a connection, established or not.
    pub(super) fn is_some(&self) -> bool {
        self.link.is_some()
    }

    /// Whether the partner has proved who it is, and messages flow.
    pub(super) fn is_up(&self) -> bool {
        self.up
    }

    /// Whether the partner's version of the protocol is this one or a later one.
    pub(super) fn speaks(&self, version: u16) -> bool {
        self.version().is_some_and(|spoken| spoken >= version)
    }

    pub(super) fn version(&self) -> Option<u16> {
        self.link.as_ref().and_then(Link::version)
    }

    pub(super) fn accepts_version(&self, version: u16) -> bool {
        self.config.versions.contains(&version)
    }

    /// The descriptor of the connection is ready. `None`: there is no connection; true: it has just come up.
    pub(super) fn on_ready(&mut self, now: Now, readable: bool, writable: bool) -> Option<bool> {
        let link = self.link.as_mut()?;
        link.on_ready(now, readable, writable);
        let came_up = link.established() && !self.up;
        self.up |= came_up;
        Some(came_up)
    }

    /// The connection itself, whose messages borrow from it. It must come back by [`PartnerLink::give_back`]; nothing is sent
    /// meanwhile.
    pub(super) fn lend(&mut self) -> Option<Link> {
        self.link.take()
    }

    pub(super) fn give_back(&mut self, link: Link) {
        self.link = Some(link);
    }

    pub(super) fn send(&mut self, message: &Message<'_>) {
        let Some(link) = &mut self.link else { return };
        if let Err(error) = link.send(message) {
            log::warn!(error:%; "the replication connection takes no more");
            link.close(Goodbye::PartnerTooSlow);
        }
    }

    /// Sends all that was said in this round.
    pub(super) fn flush(&mut self) {
        if let Some(link) = &mut self.link {
            if link.buffered() > 0 {
                link.flush();
            }
        }
    }

    /// Sends a packet that the partner is to have. One that does not go is sent again by whoever sent it to us.
    pub(super) fn forward(&mut self, packet: &[u8]) {
        if let Some(link) = &mut self.link {
            let _ = link.send(&Message::Forward { bytes: packet });
        }
    }

    /// Bytes that wait to be sent; `None`: there is no connection.
    pub(super) fn waiting(&self) -> Option<usize> {
        self.link.as_ref().map(Link::buffered)
    }

    /// Whether more of the log, or of a snapshot, may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.established() && link.buffered() < OUTBOX)
    }

    /// Has the poller watch for what the connection waits for.
    pub(super) fn watch_interest(&mut self, poller: &Poller) {
        let Some(link) = &self.link else { return };
        let interest = link.interest();
        if std::mem::replace(&mut self.interest, interest) != interest {
            if let Err(error) = poller.set(link.fd(), Token::Link, interest.0, interest.1) {
                log::error!(error:%; "cannot watch the replication connection");
            }
        }
    }

    /// The partner introduced itself: we can talk to it.
    pub(super) fn understood(&mut self) {
        self.estranged = None;
    }

    pub(super) fn note_goodbye(&mut self) {
        self.heard_goodbye = true;
    }

    /// Tells the partner that we end on purpose.
    pub(super) fn say_goodbye(&mut self, reason: Goodbye<'_>) {
        if let Some(link) = &mut self.link {
            if link.send(&Message::Bye { reason }).is_ok() {
                link.flush();
            }
        }
    }

    /// How the connection ended, if it is over.
    pub(super) fn ended(&mut self, now: Now) -> Option<Ended> {
        let reason = *self.link.as_ref()?.close_reason()?;
        self.note_version(now, &reason);
        Some(Ended { why: reason.to_string(), partner_gone: reason.partner_gone() && self.up && !self.heard_goodbye })
    }

    /// Drops the connection. Returns whether it was up; `None`: there was none.
    pub(super) fn drop(&mut self, now: Now, why: &str, poller: &Poller) -> Option<bool> {
        let link = self.link.take()?;
        poller.remove(link.fd());
        let was_up = std::mem::take(&mut self.up);
        if was_up {
            log::info!(why; "replication connection lost");
        } else if self.last_close.as_deref() != Some(why) {
            log::info!(why; "no replication connection");
        }
        self.last_close = Some(why.to_owned());
        self.dial_at = now + if was_up { Duration::ZERO } else { DIAL_EVERY };
        Some(was_up)
    }

    /// Closes the connection, and tells the partner why. Returns whether there was one.
    pub(super) fn close(&mut self, now: Now, reason: Goodbye<'_>, poller: &Poller) -> bool {
        let Some(mut link) = self.link.take() else { return false };
        link.close(reason);
        poller.remove(link.fd());
        self.up = false;
        self.dial_at = now + DIAL_EVERY;
        true
    }

    /// Notes it if this is why a connection with the partner was not made.
    fn note_version(&mut self, now: Now, reason: &CloseReason) {
        if let CloseReason::Handshake(fault @ Fault::Version { .. }) = reason {
            self.estranged = Some((now, fault.to_string()));
        }
    }

    /// Why we cannot talk to the partner's manager, if that runs and is of another version.
    pub(super) fn estrangement(&self, now: Now) -> Option<&str> {
        let (at, text) = self.estranged.as_ref()?;
        (now.saturating_sub(*at) < ESTRANGED_FOR).then_some(text)
    }

    /// Why there is no connection.
    pub(super) fn trouble(&self, now: Now) -> Option<&str> {
        self.estrangement(now).or(self.last_close.as_deref())
    }
}
