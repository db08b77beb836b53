//! Heartbeats over UDP: one unconnected socket for each of our addresses.

use super::{Codec, Heard, HeartbeatBody, Rejected, RejectedCounts, MAX_DATAGRAM};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};

/// Datagrams looked at in one call: a flood must not keep the event loop.
const MAX_TRIES: usize = 64;

/// Sends and receives heartbeats over all paths to the partner.
pub struct HeartbeatSocket {
    codec: Codec,
    sockets: Vec<UdpSocket>,
    /// Index of the socket, where to.
    paths: Vec<(usize, SocketAddr)>,
    /// The socket to look at first, so that a flood on one does not hide the others.
    turn: usize,
    unsent: u64,
    last_rejection: Option<(SocketAddr, Rejected)>,
}

/// A heartbeat and how it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// What was heard.
    pub heard: Heard,
    /// Where it was sent from.
    pub from: SocketAddr,
    /// The descriptor that it came in by: which of our addresses.
    pub fd: RawFd,
}

impl HeartbeatSocket {
    /// Opens the paths, each from one of our addresses to one of the partner's. Unconnected sockets, since a
    /// connected one reports the errors of a partner that is just starting.
    pub fn bind(paths: &[(SocketAddr, SocketAddr)], codec: Codec) -> io::Result<Self> {
        let mut bound: Vec<SocketAddr> = Vec::new();
        let mut sockets = Vec::new();
        let mut indexed = Vec::new();
        for &(ours, theirs) in paths {
            let at = match bound.iter().position(|&address| address == ours) {
                Some(at) => at,
                None => {
                    let socket = UdpSocket::bind(ours)?;
                    socket.set_nonblocking(true)?;
                    bound.push(ours);
                    sockets.push(socket);
                    sockets.len() - 1
                }
            };
            indexed.push((at, theirs));
        }
        Ok(HeartbeatSocket { codec, sockets, paths: indexed, turn: 0, unsent: 0, last_rejection: None })
    }

    /// The descriptors to watch for readable, level-triggered.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.sockets.iter().map(AsRawFd::as_raw_fd)
    }

    /// The addresses that the sockets are bound to, in the order of `fds`.
    pub fn local_addrs(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.sockets.iter().filter_map(|socket| socket.local_addr().ok())
    }

    /// Sends a heartbeat over every path; the fields about the partner's boot are filled in. Gives the number of
    /// paths that took it: 0 means that we are cut off, or that no path is up yet.
    pub fn send(&mut self, body: &HeartbeatBody) -> usize {
        let body = self.codec.start_round(body);
        let mut sent = 0;
        for &(at, to) in &self.paths {
            match self.sockets[at].send_to(&self.codec.seal(&body), to) {
                Ok(_) => sent += 1,
                Err(_) => self.unsent += 1,
            }
        }
        sent
    }

    /// The next heartbeat that is authentic and new, if one waits. After a flood of others it may give none
    /// though one waits; the descriptor stays ready then.
    pub fn recv(&mut self) -> Option<Received> {
        let mut buffer = [0; MAX_DATAGRAM + 1];
        let mut empty = 0;
        for _ in 0..MAX_TRIES {
            if empty == self.sockets.len() {
                return None;
            }
            let socket = &self.sockets[self.turn];
            self.turn = (self.turn + 1) % self.sockets.len();
            match socket.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    empty = 0;
                    match self.codec.open(&buffer[..length]) {
                        Ok(heard) => return Some(Received { heard, from, fd: socket.as_raw_fd() }),
                        Err(why) => self.last_rejection = Some((from, why)),
                    }
                }
                // Errors of earlier datagrams are reported here, too: they are nothing to us.
                Err(_) => empty += 1,
            }
        }
        None
    }

    /// The counter of the next datagram.
    pub fn next_counter(&self) -> u64 {
        self.codec.next
    }

    /// The highest counter of ours that the sender had heard.
    pub fn echo(&self, heard: &Heard) -> Option<u64> {
        (heard.body.partner_boot == self.codec.boot()).then_some(heard.body.partner_counter)
    }

    /// The codec, for boot ids.
    pub fn codec(&self) -> &Codec {
        &self.codec
    }

    /// What was dropped.
    pub fn rejected(&self) -> RejectedCounts {
        self.codec.rejected()
    }

    /// The last one dropped, for the log; it is given once.
    pub fn take_last_rejection(&mut self) -> Option<(SocketAddr, Rejected)> {
        self.last_rejection.take()
    }

    /// Datagrams that could not be sent.
    pub fn unsent(&self) -> u64 {
        self.unsent
    }
}
