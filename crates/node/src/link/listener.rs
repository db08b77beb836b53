//! The accepting side: a listening socket and the connections that have not yet proved who they are.

use super::handshake::{Fault, LinkConfig};
use super::socket::Epoll;
use super::{is_temporary, CloseReason, Link};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use tcpr_session::Now;

/// Connections in their handshake at the same time. One more takes the place of the oldest: strangers that say
/// nothing cannot keep the partner out.
pub const MAX_HALF_OPEN: usize = 8;

/// Accepts links and keeps them until their handshake is done, so that the manager only sees the partner.
pub struct Listener {
    socket: TcpListener,
    /// Watches the listening socket and every half-open link; the manager watches this one.
    epoll: Epoll,
    half_open: Vec<Link>,
    config: Arc<LinkConfig>,
    /// The partner dials from here: strangers give way to it, and never it to them.
    expected: Option<IpAddr>,
    rejections: Rejections,
    last_rejection: Option<(SocketAddr, CloseReason)>,
}

/// Connections that did not become a link, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rejections {
    /// Wrong key.
    pub key: u64,
    /// Another service.
    pub service: u64,
    /// No common protocol version.
    pub version: u64,
    /// Not this protocol.
    pub not_tcpr: u64,
    /// The handshake was not done in time.
    pub timeout: u64,
    /// Closed or broken by the other end before the handshake was done.
    pub broken: u64,
    /// Pushed out by newer ones.
    pub crowded: u64,
}

impl Rejections {
    fn count(&mut self, reason: &CloseReason) {
        let counter = match reason {
            CloseReason::Handshake(Fault::Key) => &mut self.key,
            CloseReason::Handshake(Fault::Service) => &mut self.service,
            CloseReason::Handshake(Fault::Version { .. }) => &mut self.version,
            CloseReason::Handshake(Fault::NotTcpr) => &mut self.not_tcpr,
            CloseReason::HandshakeTimeout => &mut self.timeout,
            _ => &mut self.broken,
        };
        *counter += 1;
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.key + self.service + self.version + self.not_tcpr + self.timeout + self.broken + self.crowded
    }
}

impl Listener {
    /// Listens on `address`.
    pub fn listen(address: SocketAddr, config: Arc<LinkConfig>) -> io::Result<Listener> {
        let socket = TcpListener::bind(address)?;
        socket.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        epoll.set(socket.as_raw_fd(), true, false)?;
        Ok(Listener {
            socket,
            epoll,
            half_open: Vec::with_capacity(MAX_HALF_OPEN),
            config,
            expected: None,
            rejections: Rejections::default(),
            last_rejection: None,
        })
    }

    /// Where the partner dials from.
    pub fn expect(&mut self, partner: IpAddr) {
        self.expected = Some(partner);
    }

    /// The descriptor to watch for readable: it stands for the listening socket and all half-open links.
    pub fn fd(&self) -> RawFd {
        self.epoll.fd()
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The descriptor is ready. Gives a link that is established, which the manager takes in place of the one
    /// it had; messages may already wait in it. Ask until there is none.
    pub fn on_ready(&mut self, now: Now) -> Option<Link> {
        // An interrupted wait is repeated by the manager's own.
        let ready = self.epoll.wait(0).ok()?;
        let mut done = None;
        for (fd, readable, writable) in ready {
            if fd == self.socket.as_raw_fd() {
                self.accept(now);
            } else if let Some(at) = self.half_open.iter().position(|link| link.fd() == fd) {
                self.half_open[at].on_ready(now, readable, writable);
                if done.is_none() {
                    done = self.settle(at);
                }
            }
        }
        self.handle_timeout(now);
        // One that came behind `done` in an earlier call, and may never be readable again.
        done.or_else(|| {
            let at = self.half_open.iter().position(Link::established)?;
            self.settle(at)
        })
    }

    /// When `handle_timeout` wants to be called.
    pub fn poll_timeout(&self) -> Option<Now> {
        self.half_open.iter().filter_map(Link::poll_timeout).min()
    }

    /// Drops the links whose handshake takes too long.
    pub fn handle_timeout(&mut self, now: Now) {
        for at in (0..self.half_open.len()).rev() {
            self.half_open[at].handle_timeout(now);
            if self.half_open[at].close_reason().is_some() {
                self.settle(at);
            }
        }
    }

    /// How many connections were turned away.
    pub fn rejections(&self) -> Rejections {
        self.rejections
    }

    /// The last one turned away, for the log and `tcpr status`; it is given once.
    pub fn take_last_rejection(&mut self) -> Option<(SocketAddr, CloseReason)> {
        self.last_rejection.take()
    }

    fn accept(&mut self, now: Now) {
        // A few at a time, so that a flood of connections cannot keep the event loop here.
        for _ in 0..MAX_HALF_OPEN {
            let (stream, from) = match self.socket.accept() {
                Ok(accepted) => accepted,
                Err(error) => {
                    if !is_temporary(&error) {
                        self.rejections.broken += 1;
                    }
                    return;
                }
            };
            let link = Link::accepted(now, stream, from, Arc::clone(&self.config)).and_then(|link| {
                self.epoll.set(link.fd(), true, false)?;
                Ok(link)
            });
            let Ok(link) = link else {
                self.rejections.broken += 1;
                continue;
            };
            if self.half_open.len() == MAX_HALF_OPEN {
                self.rejections.crowded += 1;
                let stranger = |link: &Link| self.expected.is_some_and(|partner| link.partner().ip() != partner);
                let oldest = self.half_open.iter().position(stranger);
                if oldest.is_none() && stranger(&link) {
                    self.epoll.remove(link.fd());
                    continue;
                }
                let oldest = self.half_open.remove(oldest.unwrap_or(0));
                self.epoll.remove(oldest.fd());
            }
            self.half_open.push(link);
        }
    }

    /// Takes a link out if it is established or over, and gives it if it is established.
    fn settle(&mut self, at: usize) -> Option<Link> {
        let link = &self.half_open[at];
        if !link.established() && link.close_reason().is_none() {
            let (read, write) = link.interest();
            // It was added with success; a failure to modify leaves it to the deadline.
            let _ = self.epoll.set(link.fd(), read, write);
            return None;
        }
        // The order is that of arrival: the oldest is pushed out first.
        let link = self.half_open.remove(at);
        self.epoll.remove(link.fd());
        match link.close_reason() {
            None => Some(link),
            Some(reason) => {
                self.rejections.count(reason);
                self.last_rejection = Some((link.partner(), *reason));
                None
            }
        }
    }
}
