//! Sockets with which the application is about to connect to a protected destination (`[[service.outgoing]]`).

use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use crate::repair::with_sockaddr;

/// Gives a socket the virtual IP as its address, and lets it connect from there although the machine may not have it: on a
/// backup it calls all the same, and is answered when the member takes over. Its port is chosen when it connects. One that
/// is bound to the virtual IP stays as it is. Needs CAP_NET_ADMIN.
///
/// # Errors
/// It is no TCP socket; it is bound to another address, or to a port of all addresses.
pub fn prepare(socket: &OwnedFd, vip: IpAddr) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    let refused = |text: String| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    if get(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL)? != libc::IPPROTO_TCP {
        return refused("it is no TCP socket".into());
    }
    let v6 = match get(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)? {
        libc::AF_INET => false,
        libc::AF_INET6 => true,
        _ => return refused("it is no socket of the internet".into()),
    };
    match v6 {
        false => set(fd, libc::IPPROTO_IP, libc::IP_TRANSPARENT)?,
        true => set(fd, libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT)?,
    }
    let at = TcpStream::from(socket.try_clone()?).local_addr()?;
    let ip = at.ip().to_canonical();
    if ip == vip {
        return Ok(());
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
    with_sockaddr(&SocketAddr::new(ip, 0), |address, length| check(unsafe { libc::bind(fd, address, length) }))
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set(fd: i32, level: i32, option: i32) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = mem::size_of_val(&on) as libc::socklen_t;
    // SAFETY: the pointer and length describe `on`, which the kernel only reads.
    check(unsafe { libc::setsockopt(fd, level, option, (&raw const on).cast(), length) })
}

fn get(fd: i32, level: i32, option: i32) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = mem::size_of_val(&value) as libc::socklen_t;
    // SAFETY: the pointer and length describe `value`, and any int is a valid one.
    check(unsafe { libc::getsockopt(fd, level, option, (&raw mut value).cast(), &raw mut length) })?;
    Ok(value)
}
