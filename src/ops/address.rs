//! Addresses of sockets, in the C interface and in ours.

use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use libc::{c_int, sockaddr, sockaddr_storage, socklen_t};
use tcpr_session::tuple::FourTuple;

use crate::memory::Checked;
use crate::{errno, sys};

/// An internet address that the application gave. `None`: none of the internet, or one that the C library is to refuse.
pub fn named(at: *const sockaddr, length: socklen_t) -> Option<SocketAddr> {
    let bytes = (length as usize).min(mem::size_of::<sockaddr_storage>());
    if Checked::default().is_readable(at, bytes) {
        // SAFETY: what is looked at was found readable.
        unsafe { address(at, length) }
    } else {
        None
    }
}

/// An internet address of the C interface.
///
/// # Safety
/// `address` is null or points to `length` readable bytes.
pub unsafe fn address(address: *const sockaddr, length: socklen_t) -> Option<SocketAddr> {
    if address.is_null() || (length as usize) < mem::size_of::<libc::sa_family_t>() {
        return None;
    }
    // SAFETY: the family is within the length; nothing is known of the alignment.
    let family = unsafe { (&raw const (*address).sa_family).read_unaligned() };
    match c_int::from(family) {
        libc::AF_INET if length as usize >= mem::size_of::<libc::sockaddr_in>() => {
            // SAFETY: the length says that all of it is there.
            let v4 = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddr::new(ip.into(), u16::from_be(v4.sin_port)))
        }
        libc::AF_INET6 if length as usize >= mem::size_of::<libc::sockaddr_in6>() => {
            // SAFETY: the length says that all of it is there.
            let v6 = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddr::new(ip.into(), u16::from_be(v6.sin6_port)))
        }
        _ => None,
    }
}

/// One of the two names of a socket.
type NameCall = unsafe extern "C" fn(c_int, *mut sockaddr, *mut socklen_t) -> c_int;

fn name(fd: c_int, call: NameCall) -> Option<SocketAddr> {
    // SAFETY: all-zero is a valid sockaddr_storage.
    let mut storage: sockaddr_storage = unsafe { mem::zeroed() };
    let mut length = mem::size_of_val(&storage) as socklen_t;
    let pointer = (&raw mut storage).cast::<sockaddr>();
    // SAFETY: the storage is live, writable and of the given length; then filled to it.
    unsafe {
        if call(fd, pointer, &mut length) != 0 {
            return None;
        }
        address(pointer, length)
    }
}

/// The socket's own address.
pub fn local_name(fd: c_int) -> Option<SocketAddr> {
    name(fd, libc::getsockname)
}

/// The address of the other side.
pub fn peer_name(fd: c_int) -> Option<SocketAddr> {
    name(fd, libc::getpeername)
}

/// What the channel calls a connection.
pub fn tuple(local: SocketAddr, peer: SocketAddr) -> FourTuple {
    let plain = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
    FourTuple { local: plain(local), peer: plain(peer) }
}

/// Whether a socket is one of TCP, or of Multipath TCP, which is plain TCP in the end: the filter lets nothing more be
/// negotiated.
pub fn is_tcp(fd: c_int) -> bool {
    matches!(sys::option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL), Some(libc::IPPROTO_TCP | libc::IPPROTO_MPTCP))
}

/// A socket's address in the C interface.
pub struct Name {
    storage: sockaddr_storage,
    size: socklen_t,
}

impl Default for Name {
    fn default() -> Self {
        // SAFETY: all-zero is a valid sockaddr_storage.
        let storage: sockaddr_storage = unsafe { mem::zeroed() };
        Self { storage, size: mem::size_of::<sockaddr_storage>() as socklen_t }
    }
}

impl Name {
    /// Where the kernel writes it, and its length.
    pub fn parts(&mut self) -> (*mut sockaddr, &mut socklen_t) {
        ((&raw mut self.storage).cast(), &mut self.size)
    }

    /// How long it is.
    pub fn size(&self) -> socklen_t {
        self.size
    }

    /// Asks the kernel for the peer of a connection.
    pub fn ask(&mut self, fd: c_int) {
        *self = Self::default();
        let (name, size) = self.parts();
        // SAFETY: the storage is live, writable and of the given size.
        if errno::kept(|| unsafe { libc::getpeername(fd, name, size) }) != 0 {
            self.size = 0;
        }
    }

    /// The address; `None`: it is unknown, or none of the internet.
    pub fn address(&self) -> Option<SocketAddr> {
        // SAFETY: the storage is live, and the kernel wrote `size` bytes of it (0 of an unknown name).
        unsafe { address((&raw const self.storage).cast(), self.size) }
    }

    /// Tells the application as accept does: as much as it has room for, and the whole length.
    ///
    /// # Safety
    /// `to` has `room` writable bytes, and `length` is writable.
    pub unsafe fn tell(&mut self, listener: c_int, to: *mut sockaddr, length: *mut socklen_t, room: socklen_t) {
        if let Some(SocketAddr::V4(v4)) = self.address() {
            let domain = sys::option::<c_int>(listener, libc::SOL_SOCKET, libc::SO_DOMAIN);
            if domain == Some(libc::AF_INET6) {
                // The manager restored an IPv4 socket; who listens with IPv6 sees mapped addresses.
                // SAFETY: all-zero is a valid sockaddr_in6.
                let mut v6: libc::sockaddr_in6 = unsafe { mem::zeroed() };
                v6.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                v6.sin6_port = v4.port().to_be();
                v6.sin6_addr.s6_addr = v4.ip().to_ipv6_mapped().octets();
                // SAFETY: the storage has room and alignment for every kind of address.
                unsafe { (&raw mut self.storage).cast::<libc::sockaddr_in6>().write(v6) };
                self.size = mem::size_of_val(&v6) as socklen_t;
            }
        }
        let n = self.size.min(room) as usize;
        // SAFETY: n is at most the storage's size and at most the caller's room.
        unsafe {
            std::ptr::copy_nonoverlapping((&raw const self.storage).cast::<u8>(), to.cast::<u8>(), n);
            *length = self.size;
        }
    }
}
