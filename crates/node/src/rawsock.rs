//! Raw packets: out to a peer with the virtual IP as source, and into the local TCP stack as if a peer had
//! sent them.
//!
//! Both are the same call, for the kernel routes by destination:
//! - A packet whose destination is a peer leaves by the interface of its route.
//! - A packet whose destination is an address of this machine goes over `lo` and is received there. The
//!   route that it was sent with stays attached, so the kernel looks up no route for its source: rp_filter,
//!   accept_local and the martian checks have no say, whatever their values. The socket that takes it answers
//!   by the ordinary route, on the real interface.
//!
//! Packets carry a mark, and neither kind visits the queue. Where the address is not (or no more) of this machine, what
//! is injected would leave by the interface, in a peer's name: the rules refuse [`MARK_LOCAL`] everywhere but on `lo`.
//! `lo` must be up, or injected packets are lost without an error. The kernel fills in the checksum of the IPv4 header,
//! and only that: TCP's must be whole, an injected segment with a wrong one is dropped like any other.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The fwmark ("TCPR") of packets that the service's rules let pass unseen.
pub const MARK: u32 = 0x5443_5052;
/// The fwmark ("TCPL") of packets for this machine alone.
pub const MARK_LOCAL: u32 = 0x5443_504c;

/// Room for a burst of packets that wait for the network card.
const SEND_BUFFER: libc::c_int = 4 << 20;

/// Sends packets that come with their IP header, IPv4 or IPv6.
pub struct RawSender {
    v4: OwnedFd,
    /// `None` where the kernel has no IPv6.
    v6: Option<OwnedFd>,
}

impl RawSender {
    /// For packets to peers. Opens the sockets in the network namespace of the calling thread. Needs CAP_NET_RAW and
    /// CAP_NET_ADMIN.
    pub fn open() -> io::Result<RawSender> {
        RawSender::marked(MARK)
    }

    /// The same for packets to the local TCP: with the service's rules in force they reach nobody else.
    pub fn open_local() -> io::Result<RawSender> {
        RawSender::marked(MARK_LOCAL)
    }

    fn marked(mark: u32) -> io::Result<RawSender> {
        let v6 = match raw_socket(libc::AF_INET6, mark) {
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            result => Some(result?),
        };
        Ok(RawSender { v4: raw_socket(libc::AF_INET, mark)?, v6 })
    }

    /// Sends one packet, from the IP header on, to the destination that it names.
    ///
    /// # Errors
    /// `InvalidInput` if it is no IP packet; `WouldBlock` if the send buffer is full; EMSGSIZE (`lo` takes
    /// 64 KiB, other interfaces their MTU); EPERM if the rules refused it; the kernel's error if there is no route.
    pub fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        match packet.first().map(|first| first >> 4) {
            Some(4) if packet.len() >= 20 => self.send_v4(packet),
            Some(6) if packet.len() >= 40 => self.send_v6(packet),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not an IP packet")),
        }
    }

    fn send_v4(&self, packet: &[u8]) -> io::Result<()> {
        let to = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([packet[16], packet[17], packet[18], packet[19]]) },
            sin_zero: [0; 8],
        };
        send_to(&self.v4, packet, (&raw const to).cast(), mem::size_of_val(&to))
    }

    fn send_v6(&self, packet: &[u8]) -> io::Result<()> {
        let Some(socket) = &self.v6 else {
            return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
        };
        let mut address = [0; 16];
        address.copy_from_slice(&packet[24..40]);
        let to = libc::sockaddr_in6 {
            sin6_family: libc::AF_INET6 as libc::sa_family_t,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: address },
            sin6_scope_id: 0,
        };
        send_to(socket, packet, (&raw const to).cast(), mem::size_of_val(&to))
    }
}

impl AsRawFd for RawSender {
    /// The IPv4 socket.
    fn as_raw_fd(&self) -> RawFd {
        self.v4.as_raw_fd()
    }
}

impl AsFd for RawSender {
    /// The IPv4 socket.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.v4.as_fd()
    }
}

/// A socket of IPPROTO_RAW: the header is ours, and nothing is ever received.
fn raw_socket(family: libc::c_int, mark: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::socket(family, kind, libc::IPPROTO_RAW) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set_option(&socket, libc::SO_MARK, mark as libc::c_int)?;
    set_option(&socket, libc::SO_SNDBUFFORCE, SEND_BUFFER)?;
    Ok(socket)
}

fn set_option(socket: &OwnedFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = mem::size_of_val(&value) as libc::socklen_t;
    // SAFETY: the pointer and length describe `value`, which outlives the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const value).cast(), length) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `to` points at a socket address of `length` bytes.
fn send_to(socket: &OwnedFd, packet: &[u8], to: *const libc::sockaddr, length: usize) -> io::Result<()> {
    loop {
        // SAFETY: both pointers come with the length of what they point at, and both outlive the call.
        let n = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                libc::MSG_DONTWAIT,
                to,
                length as libc::socklen_t,
            )
        };
        if n >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
