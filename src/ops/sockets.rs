//! How sockets come under protection, up to `listen`; and the end of output.

use std::net::SocketAddr;

use libc::{c_int, c_uint, sockaddr, socklen_t};
use tcpr_node::channel::client::Bypass;
use tcpr_node::channel::Event;

use super::address::{is_tcp, local_name, named};
use super::adopt::unseen_listener;
use super::attach::connection;
use super::listening::protect_listener;
use crate::guard::{inside, Failure};
use crate::table::{self, Entry};
use crate::{connections, errno, manager, real, sys, turn};

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    // SAFETY: takes no pointers.
    let fd = unsafe { real::socket(domain, kind, protocol) };
    // A number that the table still has was closed without a hook that could see it.
    if !table::is_plain(fd) && manager::acts() {
        inside((), || connections::forget(fd));
    }
    fd
}

/// `tcpr_socket`: the program itself asks for protection.
pub fn protected_socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    // SAFETY: takes no pointers.
    let fd = unsafe { socket(domain, kind, protocol) };
    let internet = matches!(domain, libc::AF_INET | libc::AF_INET6);
    if fd >= 0 && internet && !Bypass::active() {
        inside((), || {
            if is_tcp(fd) {
                table::set(fd, Some(Entry::Candidate));
            }
        });
    }
    fd
}

/// How often, and after how long, a port is tried again that is in use: for 100 ms at least, which a busy machine may need.
const IN_USE_TRIES: u32 = 50;
const IN_USE_NAP_US: c_uint = 2000;

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
    if (candidate || manager::is_configured()) && !Bypass::active() {
        let to = named(at, length);
        if let Some(to) = to.filter(|to| to.port() != 0 || manager::may_protect_connects()) {
            match inside(Binding::Plain, || binding(fd, to, candidate)) {
                Binding::Plain => {}
                Binding::Protected => {
                    // SAFETY: the caller's arguments.
                    let result = patiently(|| unsafe { real::bind(fd, at, length) });
                    if result == 0 {
                        inside(None, || table::set(fd, Some(Entry::Candidate)));
                    }
                    return result;
                }
                Binding::Refused(failure) => {
                    inside((), || failure.tell());
                    errno::set(failure.errno());
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
        true => manager::join_or_embed(None),
        false => match manager::join_for(to) {
            Some(joined) => joined,
            None => return Binding::Plain,
        },
    };
    let client = match joined {
        Ok(client) => client,
        Err(e) => return Binding::Refused(e.into()),
    };
    let calls = !client.welcome().outgoing.is_empty();
    let protected = manager::protects(client, to);
    if manager::is_virtual(client, to.ip()) && (protected || calls) {
        // On a backup the virtual IP is on the partner's interface.
        const IPV6_FREEBIND: c_int = 78;
        match to {
            SocketAddr::V4(_) => sys::set_option::<c_int>(fd, libc::SOL_IP, libc::IP_FREEBIND, 1),
            SocketAddr::V6(_) => sys::set_option::<c_int>(fd, libc::SOL_IPV6, IPV6_FREEBIND, 1),
        };
    }
    match protected {
        true => Binding::Protected,
        false => Binding::Plain,
    }
}

/// Repeats a bind or listen on a protected port that is in use only for a moment: the manager is restoring a connection there, and
/// between two system calls its socket forbids the reuse of the port (`do_tcp_setsockopt`, TCP_REPAIR).
fn patiently(call: impl Fn() -> c_int) -> c_int {
    let before = errno::get();
    for _ in 0..IN_USE_TRIES {
        let result = call();
        if result == 0 || errno::get() != libc::EADDRINUSE {
            return result;
        }
        // Not inside: a handler of the application may run meanwhile.
        // SAFETY: takes no pointers.
        unsafe { real::usleep(IN_USE_NAP_US) };
        errno::set(before);
    }
    call()
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn listen(fd: c_int, backlog: c_int) -> c_int {
    let is_candidate = table::get(fd) == Some(Entry::Candidate) && manager::acts();
    // SAFETY: takes no pointers.
    let call = || unsafe { real::listen(fd, backlog) };
    let result = if is_candidate { patiently(call) } else { call() };
    match table::get(fd) {
        Some(Entry::Candidate) if result == 0 && manager::acts() => inside((), || {
            let Some(client) = manager::client() else { return };
            let Some(at) = local_name(fd).filter(|at| manager::protects(client, *at)) else { return };
            protect_listener(client, fd, at.port());
        }),
        None if result == 0 => unseen_listener(fd),
        _ => {}
    }
    result
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn shutdown(fd: c_int, how: c_int) -> c_int {
    if matches!(how, libc::SHUT_WR | libc::SHUT_RDWR) && manager::is_ours() {
        if let Some((client, handle)) = connection(fd) {
            inside((), || turn::output(client, |thread| Event::Shutdown { thread, handle }));
        }
    }
    // SAFETY: takes no pointers.
    unsafe { real::shutdown(fd, how) }
}
