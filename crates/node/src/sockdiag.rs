//! What TCP connections the kernel has on the virtual IP, and a way to be rid of one.
//!
//! [`SockDiag::destroy`] works on orphans too (`inode` 0; FIN_WAIT1 with its queue, FIN_WAIT2, TIME_WAIT). It
//! sends a RST with ACK to the peer, through OUTPUT like any segment, so the rules must hold it and the filter
//! drop it. Only TIME_WAIT and an orphan in FIN_WAIT2 go in silence.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::config::Config;
use crate::nfqueue::{netlink_send, netlink_socket, u16_ne, u32_ne, Messages, NLMSG_ERROR, NLMSG_HEADER};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;
/// struct inet_diag_sockid, and where its cookie is.
const ID: usize = 48;
const COOKIE: usize = 40;
/// And that of an interface.
const INTERFACE: usize = 36;
/// struct inet_diag_msg
const ANSWER: usize = 4 + ID + 20;
/// INET_DIAG_INFO, an attribute that holds a struct tcp_info, and the bit that asks for it.
const INFO: u16 = 2;
const WANT_INFO: u8 = 1 << (INFO - 1);
/// Where tcpi_bytes_received is.
const BYTES_RECEIVED: usize = 128;
/// All states but LISTEN (10) and CLOSE (7).
const CONNECTIONS: u32 = 0xfff & !(1 << 10) & !(1 << 7) & !1;

/// TCP states as the kernel numbers them.
pub mod state {
    #![allow(missing_docs)]
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_SENT: u8 = 2;
    pub const SYN_RECV: u8 = 3;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const TIME_WAIT: u8 = 6;
    pub const CLOSE: u8 = 7;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const LISTEN: u8 = 10;
    pub const CLOSING: u8 = 11;
}

/// One TCP connection of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpSocket {
    /// Our end; an IPv4 address also where the socket is an IPv6 one that carries IPv4.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// See [`state`].
    pub state: u8,
    /// Bytes received and not read by the application.
    pub rqueue: u32,
    /// Bytes written and not acknowledged by the peer.
    pub wqueue: u32,
    /// Bytes received since it was made, and one for the end; only [`SockDiag::find`] asks.
    pub received: Option<u64>,
    /// Inode of the socket, as in /proc/PID/fd; 0 if no process has it (orphan, TIME_WAIT, not yet accepted).
    pub inode: u32,
    /// Its number as in SO_COOKIE, never used again.
    pub cookie: u64,
}

/// Which connections are the service's.
#[derive(Debug, Clone, Default)]
pub struct Ours {
    /// Where peers connect to.
    locals: Vec<SocketAddr>,
    /// Where its own connections come from, and where they go.
    vips: Vec<IpAddr>,
    outgoing: Vec<SocketAddr>,
}

impl Ours {
    /// As a configuration says.
    #[must_use]
    pub fn of(config: &Config) -> Ours {
        let service = &config.service;
        let vips: Vec<IpAddr> = service.virtual_ips.iter().map(|v| v.addr).collect();
        let at = |vip: &IpAddr| service.ports.iter().map(|p| SocketAddr::new(*vip, p.port)).collect::<Vec<_>>();
        Ours { locals: vips.iter().flat_map(at).collect(), vips, outgoing: service.outgoing.iter().map(|o| o.address).collect() }
    }

    /// Those to these addresses.
    #[must_use]
    pub fn at(locals: &[SocketAddr]) -> Ours {
        Ours { locals: locals.to_vec(), ..Ours::default() }
    }

    /// Whether a connection is among them.
    #[must_use]
    pub fn has(&self, local: SocketAddr, peer: SocketAddr) -> bool {
        self.locals.contains(&local) || self.outgoing.contains(&peer) && self.vips.contains(&local.ip())
    }
}

/// A NETLINK_SOCK_DIAG socket.
pub struct SockDiag {
    socket: OwnedFd,
    buffer: Vec<u8>,
    /// Index of the interface on which peers come, or 0: the kernel finds a socket that is bound to a device (SO_BINDTODEVICE) for
    /// whoever names that, and one that is not for everybody.
    interface: u32,
}

impl SockDiag {
    /// Opens the socket in the network namespace of the calling thread.
    pub fn open() -> io::Result<SockDiag> {
        Ok(SockDiag { socket: netlink_socket(libc::NETLINK_SOCK_DIAG)?, buffer: vec![0; 32 << 10], interface: 0 })
    }

    /// Opens the socket to find, too, what is bound to this interface.
    pub fn of_interface(index: u32) -> io::Result<SockDiag> {
        Ok(SockDiag { interface: index, ..SockDiag::open()? })
    }

    fn id_of(&self, local: SocketAddr, peer: SocketAddr) -> [u8; ID] {
        let mut id = socket_id(local, peer);
        id[INTERFACE..COOKIE].copy_from_slice(&self.interface.to_ne_bytes());
        id
    }

    /// All connections of the service's, listeners excluded. The kernel walks all its connections for this: not for the
    /// hot path.
    pub fn list(&mut self, ours: &Ours) -> io::Result<Vec<TcpSocket>> {
        let mut found = Vec::new();
        self.each(ours, |socket| found.push(socket))?;
        Ok(found)
    }

    /// The same, one by one: of many a list would be long.
    pub fn each(&mut self, ours: &Ours, mut f: impl FnMut(TcpSocket)) -> io::Result<()> {
        self.dump(ours, CONNECTIONS, |socket| {
            if ours.has(socket.local, socket.peer) {
                f(socket);
            }
        })
    }

    /// How many connections wait on the listeners of the service's ports, whatever their addresses, to be accepted.
    pub fn backlog(&mut self, ours: &Ours) -> io::Result<u64> {
        let mut waiting = 0;
        self.dump(ours, 1 << state::LISTEN, |listener| {
            if ours.locals.iter().any(|local| local.port() == listener.local.port()) {
                waiting += u64::from(listener.rqueue);
            }
        })?;
        Ok(waiting)
    }

    /// Whether anybody listens on the service's ports, whatever the address.
    pub fn listens(&mut self, ours: &Ours) -> io::Result<bool> {
        let mut listens = false;
        self.dump(ours, 1 << state::LISTEN, |listener| {
            listens |= ours.locals.iter().any(|local| local.port() == listener.local.port());
        })?;
        Ok(listens)
    }

    /// The listeners on a port, by their inodes as in /proc/PID/fd.
    pub fn listener_inodes(&mut self, port: u16) -> io::Result<Vec<u32>> {
        let at = Ours::at(&[SocketAddr::new(IpAddr::from([0; 4]), port)]);
        let mut inodes = Vec::new();
        self.dump(&at, 1 << state::LISTEN, |listener| {
            if listener.local.port() == port {
                inodes.push(listener.inode);
            }
        })?;
        Ok(inodes)
    }

    /// The listeners of the service's ports that peers reach on its addresses.
    pub fn listeners(&mut self, ours: &Ours) -> io::Result<Vec<TcpSocket>> {
        let mut found = Vec::new();
        self.dump(ours, 1 << state::LISTEN, |listener| {
            let at = listener.local;
            let reached = |local: &SocketAddr| local.port() == at.port() && (at.ip().is_unspecified() || local.ip() == at.ip());
            if ours.locals.iter().any(reached) {
                found.push(listener);
            }
        })?;
        Ok(found)
    }

    /// All sockets in these states, of the port if the service has but one.
    fn dump(&mut self, ours: &Ours, states: u32, mut f: impl FnMut(TcpSocket)) -> io::Result<()> {
        for family in [libc::AF_INET, libc::AF_INET6] {
            netlink_send(&self.socket, &dump_request(ours, states, family))?;
            self.receive(&mut f)?;
        }
        Ok(())
    }

    /// One connection, if it is there: a look-up in the kernel's table.
    pub fn find(&mut self, local: SocketAddr, peer: SocketAddr) -> io::Result<Option<TcpSocket>> {
        let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        netlink_send(&self.socket, &request(SOCK_DIAG_BY_FAMILY, flags, family, WANT_INFO, u32::MAX, &self.id_of(local, peer)))?;
        let mut found = None;
        match self.receive(|socket| found = Some(socket)) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            // A listener is what the kernel finds where there is no connection.
            _ => Ok(found.filter(|socket| socket.peer == peer)),
        }
    }

    /// Destroys a connection, whoever holds it; a process that does reads ECONNABORTED. `Ok(false)` if there is
    /// none with these addresses. What was received and not read can still be read. **Sends a RST**, see the module. Needs CAP_NET_ADMIN.
    pub fn destroy(&mut self, local: SocketAddr, peer: SocketAddr) -> io::Result<bool> {
        // By its addresses alone the kernel would find the listener where there is no such connection, and destroy that.
        match self.find(local, peer)? {
            Some(socket) => self.destroy_this(&socket),
            None => Ok(false),
        }
    }

    /// The same for this very socket: `Ok(false)` also if another one has its addresses by now.
    pub fn destroy_this(&mut self, socket: &TcpSocket) -> io::Result<bool> {
        let mut id = self.id_of(socket.local, socket.peer);
        for (at, half) in [(COOKIE, socket.cookie as u32), (COOKIE + 4, (socket.cookie >> 32) as u32)] {
            id[at..at + 4].copy_from_slice(&half.to_ne_bytes());
        }
        self.destroy_id(socket.local, &id)
    }

    fn destroy_id(&mut self, local: SocketAddr, id: &[u8; ID]) -> io::Result<bool> {
        let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        netlink_send(&self.socket, &request(SOCK_DESTROY, flags, family, 0, u32::MAX, id))?;
        match self.receive(|_| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Receives the answer to one request up to its end, which is an error, an acknowledgement, or DONE.
    fn receive(&mut self, mut f: impl FnMut(TcpSocket)) -> io::Result<()> {
        while self.receive_some(&mut f)? {}
        Ok(())
    }

    /// Receives once. Returns whether there is more of the answer.
    fn receive_some(&mut self, f: &mut impl FnMut(TcpSocket)) -> io::Result<bool> {
        // SAFETY: the pointer and length describe the buffer.
        let n = unsafe {
            libc::recv(self.socket.as_raw_fd(), self.buffer.as_mut_ptr().cast(), self.buffer.len(), libc::MSG_DONTWAIT)
        };
        let Ok(n) = usize::try_from(n) else {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(true) } else { Err(error) };
        };
        for message in Messages(&self.buffer[..n]) {
            match message.kind {
                NLMSG_DONE => {
                    // The end of a list says whether it is whole.
                    let errno = message.body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                    return if errno < 0 { Err(io::Error::from_raw_os_error(-errno)) } else { Ok(false) };
                }
                NLMSG_ERROR => match message.error() {
                    0 => return Ok(false),
                    errno => return Err(io::Error::from_raw_os_error(errno)),
                },
                SOCK_DIAG_BY_FAMILY => {
                    if let Some(socket) = parse(message.body) {
                        f(socket);
                    }
                }
                _ => {}
            }
        }
        Ok(true)
    }
}

/// The same list as [`SockDiag::list`] makes, taken in steps: of very many connections the whole takes long.
pub struct Listing {
    /// Nothing else may be asked of it until the list is whole.
    dump: SockDiag,
    /// The address families that the kernel has yet to be asked for.
    families: Vec<libc::c_int>,
    asked: bool,
}

impl Listing {
    /// Nothing is asked for yet.
    ///
    /// # Errors
    /// There is no netlink socket to be had.
    pub fn begin() -> io::Result<Listing> {
        Ok(Listing { dump: SockDiag::open()?, families: vec![libc::AF_INET6, libc::AF_INET], asked: false })
    }

    /// Takes a few hundred connections at the most. Returns whether there are more.
    ///
    /// # Errors
    /// The kernel does not tell; the list ends there.
    pub fn step(&mut self, ours: &Ours, mut f: impl FnMut(TcpSocket)) -> io::Result<bool> {
        if !self.asked {
            let Some(family) = self.families.pop() else { return Ok(false) };
            netlink_send(&self.dump.socket, &dump_request(ours, CONNECTIONS, family))?;
        }
        self.asked = self.dump.receive_some(&mut |socket: TcpSocket| {
            if ours.has(socket.local, socket.peer) {
                f(socket);
            }
        })?;
        Ok(self.asked || !self.families.is_empty())
    }
}

impl AsRawFd for SockDiag {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for SockDiag {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Asks for all sockets in these states; of the port if the service has but one, for the kernel can select by one.
fn dump_request(ours: &Ours, states: u32, family: libc::c_int) -> Vec<u8> {
    let port = match (&ours.locals[..], &ours.outgoing[..]) {
        ([first, rest @ ..], []) if rest.iter().all(|other| other.port() == first.port()) => first.port(),
        _ => 0,
    };
    let mut id = [0; ID];
    id[..2].copy_from_slice(&port.to_be_bytes());
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    request(SOCK_DIAG_BY_FAMILY, flags, family, 0, states, &id)
}

/// A netlink message with a struct inet_diag_req_v2.
fn request(kind: u16, flags: u16, family: libc::c_int, want: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let length = NLMSG_HEADER + 8 + ID;
    let mut message = Vec::with_capacity(length);
    message.extend_from_slice(&(length as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[family as u8, libc::IPPROTO_TCP as u8, want, 0]);
    message.extend_from_slice(&states.to_ne_bytes());
    message.extend_from_slice(id);
    message
}

/// A struct inet_diag_sockid that names one connection.
fn socket_id(local: SocketAddr, peer: SocketAddr) -> [u8; ID] {
    let mut id = [0; ID];
    for (end, port_at, ip_at) in [(local, 0, 4), (peer, 2, 20)] {
        id[port_at..port_at + 2].copy_from_slice(&end.port().to_be_bytes());
        match end.ip() {
            IpAddr::V4(ip) => id[ip_at..ip_at + 4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => id[ip_at..ip_at + 16].copy_from_slice(&ip.octets()),
        }
    }
    // No interface; the last 8 bytes are a cookie, all ones means that we have none.
    id[COOKIE..].fill(0xff);
    id
}

/// A struct inet_diag_msg, and the attributes behind it.
fn parse(body: &[u8]) -> Option<TcpSocket> {
    let (body, attributes) = body.split_at_checked(ANSWER)?;
    let end = |port_at: usize, ip_at: usize| {
        let port = u16::from_be(u16_ne(&body[port_at..]));
        let mut octets = [0; 16];
        octets.copy_from_slice(&body[ip_at..ip_at + 16]);
        let ip = if i32::from(body[0]) == libc::AF_INET {
            IpAddr::from([octets[0], octets[1], octets[2], octets[3]])
        } else {
            Ipv6Addr::from(octets).to_canonical()
        };
        SocketAddr::new(ip, port)
    };
    Some(TcpSocket {
        local: end(4, 8),
        peer: end(6, 24),
        state: body[1],
        rqueue: u32_ne(&body[56..]),
        wqueue: u32_ne(&body[60..]),
        received: received(attributes),
        inode: u32_ne(&body[68..]),
        cookie: u64::from(u32_ne(&body[4 + COOKIE..])) | u64::from(u32_ne(&body[8 + COOKIE..])) << 32,
    })
}

/// tcpi_bytes_received of a run of attributes (struct nlattr, each padded to four bytes).
fn received(mut attributes: &[u8]) -> Option<u64> {
    loop {
        let head = attributes.get(..4)?;
        let (length, kind) = (usize::from(u16_ne(head)), u16_ne(&head[2..]));
        let value = attributes.get(4..length)?;
        if kind == INFO {
            return value.get(BYTES_RECEIVED..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_laid_out_as_the_kernel_wants_it() {
        let id = socket_id("192.0.2.200:5555".parse().unwrap(), "198.51.100.7:258".parse().unwrap());
        assert_eq!(id[..8], [0x15, 0xb3, 1, 2, 192, 0, 2, 200]);
        assert_eq!(id[20..24], [198, 51, 100, 7]);
        assert_eq!(id[36..40], [0; 4]);
        assert_eq!(id[40..], [0xff; 8]);
    }

    #[test]
    fn a_mapped_address_is_an_ipv4_address() {
        let local: SocketAddr = "192.0.2.200:5555".parse().unwrap();
        let peer: SocketAddr = "198.51.100.7:258".parse().unwrap();
        let mapped = |end: SocketAddr| match end.ip() {
            IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), end.port()),
            IpAddr::V6(_) => end,
        };
        for (family, id) in [(libc::AF_INET, socket_id(local, peer)), (libc::AF_INET6, socket_id(mapped(local), mapped(peer)))] {
            let mut body = vec![family as u8, state::FIN_WAIT1, 0, 0];
            body.extend_from_slice(&id);
            for n in 1..=5u32 {
                body.extend_from_slice(&n.to_ne_bytes());
            }
            let socket = parse(&body).unwrap();
            let expected = TcpSocket {
                local,
                peer,
                state: state::FIN_WAIT1,
                rqueue: 2,
                wqueue: 3,
                received: None,
                inode: 5,
                cookie: u64::MAX,
            };
            assert_eq!(socket, expected);
            assert!(parse(&body[..ANSWER - 1]).is_none());
        }
    }
}
