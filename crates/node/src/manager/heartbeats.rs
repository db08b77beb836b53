//! Heartbeats to and from the partner.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::time::Duration;

use tcpr_session::role::{PartnerView, Role};
use tcpr_session::Now;

use crate::config::{Config, Member};
use crate::heartbeat::{Codec, HeartbeatBody, HeartbeatSocket, Rejected};
use crate::key::Key;

/// So many of our heartbeats may be echoed by the partner.
const REMEMBERED: usize = 256;

/// A heartbeat of the partner.
pub(super) struct Heard {
    /// What the partner says of itself.
    pub(super) view: PartnerView,
    /// When the newest of our heartbeats was sent that the partner had heard, if that is known.
    pub(super) had_heard: Option<Now>,
}

/// The heartbeats of a member; one without a partner sends none.
pub(super) struct Heartbeats {
    socket: Option<HeartbeatSocket>,
    every: Duration,
    due: Now,
    /// The counters with which our last heartbeats began, and when those were sent; the newest first.
    sent: VecDeque<(u64, Now)>,
    /// The partner says that packets may go around its queues.
    partner_unguarded: bool,
}

impl Heartbeats {
    pub(super) fn new(config: &Config, key: Key, now: Now) -> io::Result<Heartbeats> {
        let socket = config.partner().map(|partner| bind(config, partner, key)).transpose()?;
        let sent = VecDeque::with_capacity(REMEMBERED);
        Ok(Heartbeats { socket, every: config.failover.heartbeat, due: now, sent, partner_unguarded: false })
    }

    pub(super) fn fds(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.socket.iter().flat_map(HeartbeatSocket::fds)
    }

    pub(super) fn poll_timeout(&self) -> Option<Now> {
        self.socket.as_ref().map(|_| self.due)
    }

    pub(super) fn is_due(&self, now: Now) -> bool {
        self.poll_timeout().is_some_and(|due| now >= due)
    }

    /// Sends one, over every path. The next one is due an interval later.
    pub(super) fn send(&mut self, now: Now, body: &HeartbeatBody) {
        self.due = now + self.every;
        if let Some(socket) = &mut self.socket {
            self.sent.truncate(REMEMBERED - 1);
            self.sent.push_front((socket.next_counter(), now));
            socket.send(body);
        }
    }

    /// The next heartbeat that has come and says something.
    pub(super) fn receive(&mut self) -> Option<Heard> {
        let socket = self.socket.as_mut()?;
        loop {
            let heard = socket.recv()?.heard;
            // An older one, which a newer one overtook, tells of what is over: a start, or another epoch's pair.
            if !heard.alive || !heard.newest {
                continue;
            }
            let b = heard.body;
            self.partner_unguarded = b.unguarded;
            let view = PartnerView { role: role(b.role), epoch: b.epoch, paired: b.paired, full_replica: b.full_replica };
            let echo = socket.echo(&heard);
            let had_heard = self.sent.iter().find(|(counter, _)| echo.is_some_and(|echo| *counter <= echo)).map(|(_, at)| *at);
            return Some(Heard { view, had_heard });
        }
    }

    /// Whether the partner says that its packet rules are missing.
    pub(super) fn partner_is_unguarded(&self) -> bool {
        self.partner_unguarded
    }

    /// The last datagram that was refused, and why; it is given once.
    pub(super) fn take_last_rejection(&mut self) -> Option<(SocketAddr, Rejected)> {
        self.socket.as_mut()?.take_last_rejection()
    }

    pub(super) fn refused(&self) -> u64 {
        self.socket.as_ref().map_or(0, |socket| socket.rejected().total())
    }
}

/// Opens a path from every address of ours to every one of the partner's of the same family.
fn bind(config: &Config, partner: &Member, key: Key) -> io::Result<HeartbeatSocket> {
    let port = config.failover.heartbeat_port;
    let mut paths = Vec::new();
    for theirs in partner.addresses() {
        for ours in config.me().addresses().filter(|a| a.is_ipv4() == theirs.is_ipv4()) {
            paths.push((SocketAddr::new(ours, port), SocketAddr::new(theirs, port)));
        }
    }
    let codec = Codec::new(key, &config.service.name, config.member_index)?;
    HeartbeatSocket::bind(&paths, codec)
        .map_err(|e| io::Error::new(e.kind(), format!("heartbeats cannot bind port {port} (UDP): {e}")))
}

/// A role as its number stands for it on the wire.
pub(super) fn role(number: u8) -> Role {
    match number {
        1 => Role::Backup,
        2 => Role::Master,
        3 => Role::Fenced,
        _ => Role::Starting,
    }
}
