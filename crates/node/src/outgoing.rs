//! Sockets with which the application is about to connect to a protected destination (`[[service.outgoing]]`).

use std::fs::File;
use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use crate::repair::with_sockaddr;

/// A socket that was made ready.
#[derive(Clone, Copy, Debug)]
pub struct Lent {
    /// Its number: see [`number`].
    pub number: u64,
    /// The application has bound it to a port of its choice.
    pub bound: bool,
}

/// The number of a socket as the kernel tells it of a connection: that of SO_COOKIE, which is never used again. The connection of
/// a multipath socket is a socket of its own, which has that one's inode.
#[must_use]
pub fn number(cookie: u64, inode: u64, multipath: bool) -> u64 {
    if multipath {
        inode | 1 << 63
    } else {
        cookie
    }
}

/// Gives a socket the virtual IP as its address, and lets it connect from there although the machine may not have it: on a
/// backup it calls all the same, and is answered when the member takes over. Its port is chosen when it connects. One that
/// is bound to the virtual IP stays as it is. Needs CAP_NET_ADMIN.
///
/// # Errors
/// It is no TCP socket; it is bound to another address, or to a port of all addresses.
pub fn prepare(socket: &OwnedFd, vip: IpAddr) -> io::Result<Lent> {
    let fd = socket.as_raw_fd();
    let refused = |text: String| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    // Multipath TCP is plain TCP in the end: nothing more is negotiated.
    let protocol: libc::c_int = get(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL)?;
    if !matches!(protocol, libc::IPPROTO_TCP | libc::IPPROTO_MPTCP) {
        return refused("it is no TCP socket".into());
    }
    let v6 = match get(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)? {
        libc::AF_INET => false,
        libc::AF_INET6 => true,
        _ => return refused("it is no socket of the internet".into()),
    };
    // With Fast Open the call would return before there is a connection, or an answer of ours.
    if get::<libc::c_int>(fd, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT).is_ok_and(|on| on != 0) {
        set_to(fd, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 0)?;
    }
    match v6 {
        false => set(fd, libc::IPPROTO_IP, libc::IP_TRANSPARENT)?,
        true => set(fd, libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT)?,
    }
    let at = TcpStream::from(socket.try_clone()?).local_addr()?;
    let ip = at.ip().to_canonical();
    let inode = File::from(socket.try_clone()?).metadata()?.ino();
    let number = number(get(fd, libc::SOL_SOCKET, libc::SO_COOKIE)?, inode, protocol == libc::IPPROTO_MPTCP);
    if ip == vip {
        return Ok(Lent { number, bound: at.port() != 0 && !is_ephemeral(at.port()) });
    }
    if !ip.is_unspecified() || at.port() != 0 {
        return refused(format!("it is bound to {at}: bind it to {vip}, or leave it unbound"));
    }
    // The option is IPv4's, and the one for IPv6, too.
    set(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT)?;
    let ip = match vip {
        IpAddr::V4(v4) if v6 => v4.to_ipv6_mapped().into(),
        other => other,
    };
    // SAFETY: the pointer and the length are those of an address, good for the call, which only reads it.
    with_sockaddr(&SocketAddr::new(ip, 0), |address, length| check(unsafe { libc::bind(fd, address, length) }))?;
    Ok(Lent { number, bound: false })
}

/// Whether the kernel gives such ports to whoever asks for any.
fn is_ephemeral(port: u16) -> bool {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = range.split_whitespace().map(str::parse::<u16>);
    matches!((ends.next(), ends.next()), (Some(Ok(low)), Some(Ok(high))) if (low..=high).contains(&port))
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set(fd: i32, level: i32, option: i32) -> io::Result<()> {
    set_to(fd, level, option, 1)
}

fn set_to(fd: i32, level: i32, option: i32, value: libc::c_int) -> io::Result<()> {
    let length = mem::size_of_val(&value) as libc::socklen_t;
    // SAFETY: the pointer and length describe `value`, which the kernel only reads.
    check(unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), length) })
}

fn get<T: Number>(fd: i32, level: i32, option: i32) -> io::Result<T> {
    let mut value = T::default();
    let mut length = mem::size_of_val(&value) as libc::socklen_t;
    // SAFETY: the pointer and length describe `value`, and any bits are a valid number.
    check(unsafe { libc::getsockopt(fd, level, option, (&raw mut value).cast(), &raw mut length) })?;
    Ok(value)
}

/// The value of an option.
trait Number: Default {}
impl Number for libc::c_int {}
impl Number for u64 {}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::FromRawFd;

    use super::*;
    use crate::vip::testnet::{in_netns, ip, Pair};

    fn socket(family: libc::c_int) -> OwnedFd {
        // SAFETY: no pointer is passed, and nobody else knows the new descriptor.
        unsafe { OwnedFd::from_raw_fd(libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0)) }
    }

    fn bind(socket: &OwnedFd, at: &str) {
        let at: SocketAddr = at.parse().unwrap();
        // SAFETY: the pointer and the length are those of an address, good for the call, which only reads it.
        with_sockaddr(&at, |address, length| check(unsafe { libc::bind(socket.as_raw_fd(), address, length) })).unwrap();
    }

    fn local(socket: &OwnedFd) -> SocketAddr {
        TcpStream::from(socket.try_clone().unwrap()).local_addr().unwrap()
    }

    /// Connects, and returns where the other end sees it come from.
    fn connect(socket: &OwnedFd, listener: &TcpListener, to: &str) -> SocketAddr {
        let to: SocketAddr = to.parse().unwrap();
        // SAFETY: the pointer and the length are those of an address, good for the call, which only reads it.
        with_sockaddr(&to, |address, length| check(unsafe { libc::connect(socket.as_raw_fd(), address, length) })).unwrap();
        listener.accept().unwrap().1
    }

    #[test]
    fn a_socket_gets_the_virtual_ip_whether_or_not_it_is_here() {
        in_netns(|| {
            let pair = Pair::new();
            ip("addr add 192.0.2.1/24 dev v0\naddr add 2001:db8::1/64 dev v0 nodad");
            pair.there(|| ip("addr add 192.0.2.9/24 dev v1\naddr add 2001:db8::9/64 dev v1 nodad"));
            let (four, six): (IpAddr, IpAddr) = ("192.0.2.200".parse().unwrap(), "2001:db8::200".parse().unwrap());
            for (family, vip, shown) in [
                (libc::AF_INET, four, "192.0.2.200"),
                (libc::AF_INET6, six, "2001:db8::200"),
                (libc::AF_INET6, four, "::ffff:192.0.2.200"),
            ] {
                let s = socket(family);
                prepare(&s, vip).unwrap();
                assert_eq!((local(&s).ip(), local(&s).port()), (shown.parse().unwrap(), 0), "no port yet");
                prepare(&s, vip).unwrap();
            }
            // Without it here, its SYN leaves all the same: nothing answers.
            let listener = pair.there(|| TcpListener::bind("192.0.2.9:179").unwrap());
            let away = socket(libc::AF_INET);
            prepare(&away, four).unwrap();
            TcpStream::from(away.try_clone().unwrap()).set_nonblocking(true).unwrap();
            let refused = with_sockaddr(&"192.0.2.9:179".parse().unwrap(), |address, length| {
                // SAFETY: as above.
                check(unsafe { libc::connect(away.as_raw_fd(), address, length) })
            });
            assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EINPROGRESS));
            drop(away);
            // Fast Open and Multipath TCP are taken from it, or make no difference.
            // SAFETY: no pointer is passed, and nobody else knows the new descriptor.
            let multipath = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_MPTCP) };
            if multipath >= 0 {
                // SAFETY: as above.
                let multipath = unsafe { OwnedFd::from_raw_fd(multipath) };
                prepare(&multipath, four).unwrap();
                assert_eq!(local(&multipath).ip(), four);
            }
            let fast = socket(libc::AF_INET);
            set(fast.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT).unwrap();
            prepare(&fast, four).unwrap();
            assert_eq!(get::<libc::c_int>(fast.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT).unwrap(), 0);
            ip("addr add 192.0.2.200/24 dev v0");
            let here = socket(libc::AF_INET);
            prepare(&here, four).unwrap();
            assert_eq!(connect(&here, &listener, "192.0.2.9:179").ip(), four);
            let fixed = socket(libc::AF_INET);
            bind(&fixed, "192.0.2.200:4000");
            prepare(&fixed, four).unwrap();
            assert_eq!(connect(&fixed, &listener, "192.0.2.9:179"), "192.0.2.200:4000".parse().unwrap());
        });
    }

    #[test]
    fn what_could_not_be_taken_over_is_refused() {
        in_netns(|| {
            ip("link set lo up\naddr add 192.0.2.1/32 dev lo");
            let vip = "192.0.2.200".parse().unwrap();
            let says = |socket: &OwnedFd, words: &str| {
                let e = prepare(socket, vip).unwrap_err().to_string();
                assert!(e.contains(words), "{e}");
            };
            for at in ["192.0.2.1:0", "0.0.0.0:4000"] {
                let s = socket(libc::AF_INET);
                bind(&s, at);
                says(&s, "leave it unbound");
            }
            says(&UdpSocket::bind("192.0.2.1:0").unwrap().into(), "no TCP socket");
        });
    }
}
