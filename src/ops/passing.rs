//! Descriptors that are passed from one process to another in messages (SCM_RIGHTS): whoever receives one holds the
//! connection, and the sender's close ends nothing.

use std::net::SocketAddr;

use libc::{c_int, cmsghdr, msghdr};
use tcpr_node::channel::client::Client;
use tcpr_node::channel::Origin;

use super::sockets::protect_listener;
use super::sockets::{is_tcp, local_name, peer_name, tuple};
use super::{descriptors, inside};
use crate::ffi::Checked;
use crate::table::{self, Entry};
use crate::{ffi, process};

/// Calls `each` with every descriptor that comes with a message.
///
/// # Safety
/// `message` names control data as for `sendmsg`, or as `recvmsg` leaves it.
unsafe fn descriptors_of(message: &msghdr, each: impl Fn(c_int)) {
    if message.msg_control.is_null() || message.msg_controllen < size_of::<cmsghdr>() {
        return;
    }
    // SAFETY: the caller vouches for the control data.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: null, or a header within the control data.
    while let Some(header) = unsafe { next.as_ref() } {
        // SAFETY: computes a length.
        let before = unsafe { libc::CMSG_LEN(0) } as usize;
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: the data of this header.
            let data = unsafe { libc::CMSG_DATA(next) }.cast::<c_int>();
            let end = message.msg_control as usize + message.msg_controllen;
            let room = end.saturating_sub(data as usize).min(header.cmsg_len.saturating_sub(before));
            for i in 0..room / size_of::<c_int>() {
                // SAFETY: within the data, and within the control data.
                each(unsafe { data.add(i).read_unaligned() });
            }
        }
        // SAFETY: a header of this message.
        next = unsafe { libc::CMSG_NXTHDR(message, next) };
    }
}

/// A message is about to be sent. `None`: the C library is to say what is wrong with it.
///
/// # Safety
/// What can be read at `message` is the caller's to send.
pub unsafe fn sending<'a>(message: *const msghdr, checked: &mut Checked) -> Option<&'a msghdr> {
    if message.is_null() || !checked.is_readable(message, size_of::<msghdr>()) {
        return None;
    }
    // SAFETY: it can be read, and is the caller's.
    let message = unsafe { &*message };
    let passes = |fd| {
        descriptors::arrive(fd);
        if let Some(Entry::Connection { handle }) = table::get(fd) {
            inside((), || process::passed(handle));
        }
    };
    if message.msg_controllen > 0 && descriptors::is_for_us() {
        if !Checked::default().is_readable(message.msg_control, message.msg_controllen) {
            return None;
        }
        // SAFETY: the caller's message.
        unsafe { descriptors_of(message, passes) };
    }
    Some(message)
}

/// A message was received.
///
/// # Safety
/// As `recvmsg` leaves it.
pub unsafe fn received(message: &msghdr) {
    if message.msg_controllen > 0 && !process_is_plain() {
        // SAFETY: the caller's message.
        unsafe { descriptors_of(message, |fd| inside((), || arrived(fd))) };
    }
}

/// A descriptor that nobody has seen become a listener is about to be used as one: it was inherited over exec, or made by
/// system calls that no hook sees. Asked once; what is none of ours is known from then on.
pub fn unseen_listener(fd: c_int) {
    if !process_is_plain() {
        inside((), || {
            if process::may_protect(local_name(fd)) {
                arrived(fd);
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

fn process_is_plain() -> bool {
    tcpr_node::channel::client::Bypass::active() || process::joined().is_none() && !process::is_configured()
}

/// What a descriptor is that came from another process, the kernel and the manager know.
fn arrived(fd: c_int) {
    // Its number was somebody else's, and was closed behind our back.
    process::forget(fd);
    if !is_tcp(fd) {
        return;
    }
    let Some(local) = local_name(fd) else { return };
    let client = process::client().or_else(|| process::join().ok());
    let Some(client) = client.filter(|_| process::is_ours()) else { return };
    match peer_name(fd) {
        Some(peer) if process::is_virtual(client, local.ip()) => connection(client, fd, local, peer),
        None if listens(fd) && process::protects(client, local) => {
            protect_listener(client, fd, local.port());
        }
        _ => {}
    }
}

fn listens(fd: c_int) -> bool {
    ffi::option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN) == Some(1)
}

fn connection(client: &Client, fd: c_int, local: SocketAddr, peer: SocketAddr) {
    let tuple = tuple(local, peer);
    if let Some(handle) = process::holds(&tuple) {
        return process::duplicated(Entry::Connection { handle }, fd);
    }
    let recovered = match client.session(tuple) {
        Ok(facts) => facts.recovered,
        // Over already, or none of ours.
        Err(e) if e.errno == libc::ENOTCONN => return,
        Err(e) => {
            log::error!("the manager does not say what {tuple} is: {e}");
            None
        }
    };
    // What its former holder has not written again.
    let (absorb, greeted) = recovered.map_or((0, false), |r| (r.absorb, r.greeted));
    process::attach(client, fd, tuple, Origin::Inherited, absorb, greeted);
}
