//! How sockets come under protection, up to `listen`; and the end of output.

use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use libc::{c_int, sockaddr, sockaddr_storage, socklen_t};
use tcpr_node::channel::client::{Bypass, Client};
use tcpr_node::channel::wire::Request;
use tcpr_node::channel::Event;
use tcpr_session::tuple::FourTuple;

use super::options::accept_at_once;
use super::passing::unseen_listener;
use super::{connection, inside};
use crate::ffi::{Checked, Failure};
use crate::table::{self, Entry};
use crate::{ffi, process, real, turn};

/// An internet address that the application names; `None`: the C library is to say what is wrong with it.
pub(super) fn named(at: *const sockaddr, length: socklen_t) -> Option<SocketAddr> {
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
pub(super) unsafe fn address(address: *const sockaddr, length: socklen_t) -> Option<SocketAddr> {
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
pub(super) fn local_name(fd: c_int) -> Option<SocketAddr> {
    name(fd, libc::getsockname)
}

/// The address of the other side.
pub(super) fn peer_name(fd: c_int) -> Option<SocketAddr> {
    name(fd, libc::getpeername)
}

/// What the channel calls a connection.
pub(super) fn tuple(local: SocketAddr, peer: SocketAddr) -> FourTuple {
    let plain = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
    FourTuple { local: plain(local), peer: plain(peer) }
}

/// Whether it is a TCP socket, or one of Multipath TCP: such a one is plain TCP in the end, for the filter lets nothing more
/// be negotiated.
pub(super) fn is_tcp(fd: c_int) -> bool {
    matches!(ffi::option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL), Some(libc::IPPROTO_TCP | libc::IPPROTO_MPTCP))
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    // SAFETY: takes no pointers.
    let fd = unsafe { real::socket(domain, kind, protocol) };
    // A number that we still know was closed behind our back.
    if !table::is_plain(fd) && !Bypass::active() && process::is_ours() {
        inside((), || process::forget(fd));
    }
    fd
}

/// `tcpr_socket`: the program itself says that this one is for us.
pub fn protected_socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    // SAFETY: takes no pointers.
    let fd = unsafe { socket(domain, kind, protocol) };
    let internet = matches!(domain, libc::AF_INET | libc::AF_INET6);
    if fd >= 0 && internet && !Bypass::active() {
        process::is_linked();
        inside((), || {
            if is_tcp(fd) {
                table::set(fd, Some(Entry::Candidate));
            }
        });
    }
    fd
}

/// What a bind is to us.
enum Binding {
    Plain,
    /// To a protected port.
    Protected,
    Refused(Failure),
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn bind(fd: c_int, at: *const sockaddr, length: socklen_t) -> c_int {
    let candidate = table::get(fd) == Some(Entry::Candidate);
    if (candidate || process::is_configured()) && !Bypass::active() {
        let to = named(at, length);
        if let Some(to) = to.filter(|to| to.port() != 0 || process::may_call()) {
            match inside(Binding::Plain, || binding(fd, to, candidate)) {
                Binding::Plain => {}
                Binding::Protected => {
                    // SAFETY: the caller's arguments.
                    let result = unsafe { real::bind(fd, at, length) };
                    if result == 0 {
                        inside(None, || table::set(fd, Some(Entry::Candidate)));
                    }
                    return result;
                }
                Binding::Refused(failure) => {
                    inside((), || failure.tell());
                    ffi::set_errno(failure.errno());
                    return -1;
                }
            }
        }
    }
    // SAFETY: the caller's arguments.
    unsafe { real::bind(fd, at, length) }
}

fn binding(fd: c_int, to: SocketAddr, candidate: bool) -> Binding {
    if !is_tcp(fd) {
        return Binding::Plain;
    }
    let joined = match candidate {
        true => process::join_or_embed(None),
        false => match process::join_for(to) {
            Some(joined) => joined,
            None => return Binding::Plain,
        },
    };
    let client = match joined {
        Ok(client) => client,
        Err(e) => return Binding::Refused(e.into()),
    };
    let calls = !client.welcome().outgoing.is_empty();
    let protected = process::protects(client, to);
    if process::is_virtual(client, to.ip()) && (protected || calls) {
        // On a backup the address belongs to the partner's interface.
        const IPV6_FREEBIND: c_int = 78;
        match to {
            SocketAddr::V4(_) => ffi::set_option::<c_int>(fd, libc::SOL_IP, libc::IP_FREEBIND, 1),
            SocketAddr::V6(_) => ffi::set_option::<c_int>(fd, libc::SOL_IPV6, IPV6_FREEBIND, 1),
        };
    }
    match protected {
        true => Binding::Protected,
        false => Binding::Plain,
    }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn listen(fd: c_int, backlog: c_int) -> c_int {
    // SAFETY: takes no pointers.
    let result = unsafe { real::listen(fd, backlog) };
    match table::get(fd) {
        Some(Entry::Candidate) if result == 0 && !Bypass::active() && process::is_ours() => inside((), || {
            let Some(client) = process::client() else { return };
            let Some(at) = local_name(fd).filter(|at| process::protects(client, *at)) else { return };
            protect_listener(client, fd, at.port());
        }),
        None if result == 0 => unseen_listener(fd),
        _ => {}
    }
    result
}

/// A descriptor listens on a protected port.
pub(super) fn protect_listener(client: &Client, fd: c_int, port: u16) {
    table::set(fd, Some(Entry::Listener { port }));
    give_room(fd);
    if client.welcome().spliced {
        accept_at_once(fd);
    }
    tell_listener(client, fd, port);
}

/// Which buffer sizes the kernel does not tune: `SOCK_SNDBUF_LOCK` is 1, `SOCK_RCVBUF_LOCK` 2 (Linux 5.14).
pub(super) const SO_BUF_LOCK: c_int = 72;

/// Lets the send buffers of the sockets that a listener accepts be at once as large as the kernel may make them in time
/// (`tcp_wmem`), unless the program has set a size: what does not fit there is in the program's memory alone, and dies
/// with it.
fn give_room(listener: c_int) {
    let locked = ffi::option::<c_int>(listener, libc::SOL_SOCKET, SO_BUF_LOCK).unwrap_or(1);
    let sizes = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_wmem").unwrap_or_default();
    let most = sizes.split_whitespace().nth(2).and_then(|most| most.parse::<c_int>().ok());
    if let Some(most) = most.filter(|_| locked & 1 == 0) {
        // The kernel doubles what it is given.
        set_send_buffer(listener, most / 2, locked);
    }
}

/// Sets a send buffer's size without the lock that comes with it: the kernel may shrink it when memory runs short.
pub(super) fn set_send_buffer(fd: c_int, size: c_int, locked: c_int) {
    let set = |option| ffi::set_option(fd, libc::SOL_SOCKET, option, size);
    if set(libc::SO_SNDBUFFORCE) || set(libc::SO_SNDBUF) {
        ffi::set_option(fd, libc::SOL_SOCKET, SO_BUF_LOCK, locked);
    }
}

/// Tells the manager that this process listens.
pub fn tell_listener(client: &Client, fd: c_int, port: u16) {
    let Some(at) = local_name(fd) else { return };
    if let Err(e) = client.tell(Request::Listen { addr: at.ip().to_canonical(), port }) {
        log::error!("the manager did not take note of port {port}: {e}");
    }
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn shutdown(fd: c_int, how: c_int) -> c_int {
    if matches!(how, libc::SHUT_WR | libc::SHUT_RDWR) && process::is_ours() {
        if let Some((client, handle)) = connection(fd) {
            inside((), || turn::output(client, |thread| Event::Shutdown { thread, handle }));
        }
    }
    // SAFETY: takes no pointers.
    unsafe { real::shutdown(fd, how) }
}
