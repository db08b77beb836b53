//! Listeners on protected ports.

use libc::c_int;
use tcpr_node::channel::client::Client;
use tcpr_node::channel::wire::Request;

use super::address::local_name;
use super::kept_options::{set_send_buffer, SO_BUF_LOCK};
use crate::sys;
use crate::table::{self, Entry};

/// Whether a socket listens.
pub fn listens(fd: c_int) -> bool {
    sys::option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN) == Some(1)
}

/// A descriptor listens on a protected port.
pub fn protect_listener(client: &Client, fd: c_int, port: u16) {
    table::set(fd, Some(Entry::Listener { port }));
    give_room(fd);
    if client.welcome().spliced {
        stop_deferring(fd);
    }
    tell_listener(client, fd, port);
}

/// Gives the sockets that a listener accepts at once the largest send buffer that the kernel may give them in time
/// (`tcp_wmem`), unless the program has set a size. Output that does not fit into the buffer is in the program's memory alone,
/// and dies with it.
fn give_room(listener: c_int) {
    let locked = sys::option::<c_int>(listener, libc::SOL_SOCKET, SO_BUF_LOCK).unwrap_or(1);
    let sizes = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_wmem").unwrap_or_default();
    let most = sizes.split_whitespace().nth(2).and_then(|most| most.parse::<c_int>().ok());
    if let Some(most) = most.filter(|_| locked & 1 == 0) {
        // The kernel doubles what it is given.
        set_send_buffer(listener, most / 2, locked);
    }
}

/// Sessions are taken back by connecting to this listener in their peers' names. Some peers say nothing for long, and the
/// listener is to accept them all the same.
fn stop_deferring(fd: c_int) {
    sys::set_option::<c_int>(fd, libc::SOL_TCP, libc::TCP_DEFER_ACCEPT, 0);
}

/// Tells the manager that this process listens.
pub fn tell_listener(client: &Client, fd: c_int, port: u16) {
    let Some(at) = local_name(fd) else { return };
    if let Err(e) = client.tell(Request::Listen { addr: at.ip().to_canonical(), port }) {
        log::error!("the manager did not take note of port {port}: {e}");
    }
}
