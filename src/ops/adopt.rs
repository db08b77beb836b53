//! Descriptors that came from another process, or were made without a hook that could see it. The kernel and the manager know
//! what they are.

use std::net::SocketAddr;

use libc::c_int;
use tcpr_node::channel::client::Client;
use tcpr_node::channel::Origin;

use super::address::{is_tcp, local_name, peer_name, tuple};
use super::attach::{session, Session};
use super::listening::{listens, protect_listener};
use crate::guard::inside;
use crate::table::{self, Entry};
use crate::{connections, manager};

/// A descriptor is about to be used as a listener that no hook has seen become one: it was inherited over exec, or made by
/// system calls that no hook sees. The kernel is asked once; a listener that is none of ours is known from then on.
pub fn unseen_listener(fd: c_int) {
    if manager::concerns() {
        inside((), || {
            if manager::may_protect(local_name(fd)) {
                adopt(fd);
            }
            if table::get(fd).is_none() && listens(fd) {
                table::set(fd, Some(Entry::Foreign));
            }
        });
    }
}

/// The program begins, and may have inherited listeners.
pub fn look_for_listeners() {
    let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") else { return };
    let numbers = descriptors.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let listeners: Vec<c_int> = numbers.filter(|fd| listens(*fd)).collect();
    listeners.into_iter().for_each(unseen_listener);
}

/// Finds out what a descriptor is that came from another process.
pub fn adopt(fd: c_int) {
    // What had this number before was closed without a hook that could see it.
    connections::forget(fd);
    if !is_tcp(fd) {
        return;
    }
    let Some(local) = local_name(fd) else { return };
    let client = manager::client().or_else(|| manager::join().ok());
    let Some(client) = client.filter(|_| manager::is_ours()) else { return };
    match peer_name(fd) {
        Some(peer) if manager::is_virtual(client, local.ip()) => connection(client, fd, local, peer),
        None if listens(fd) && manager::protects(client, local) => {
            protect_listener(client, fd, local.port());
        }
        _ => {}
    }
}

fn connection(client: &Client, fd: c_int, local: SocketAddr, peer: SocketAddr) {
    let tuple = tuple(local, peer);
    if let Some(handle) = connections::holds(&tuple) {
        return connections::duplicated(Entry::Connection { handle }, fd);
    }
    let (absorb, greeted) = match session(client, tuple) {
        Session::Unknown => return,
        Session::New => (0, false),
        // What the former holder of the connection has not written again.
        Session::Recovered(recovered, _) => (recovered.absorb, recovered.greeted),
    };
    connections::attach(client, fd, tuple, Origin::Inherited, absorb, greeted);
}
