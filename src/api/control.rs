//! What goes beyond the calls of the C library.

use std::cell::Cell;
use std::ffi::{c_char, CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use libc::{c_int, size_t};
use tcpr_node::channel::client::{Bypass, Client};
use tcpr_node::channel::server::ChannelRole;
use tcpr_node::channel::wire::Request;
use tcpr_node::channel::{Event, Origin};

use crate::ffi::{boundary, Failure};
use crate::process::{self, Connection};
use crate::{ops, real, turn};

/// The role of this member.
#[allow(non_camel_case_types)] // C's names
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum tcpr_role {
    /// Not decided yet.
    TCPR_ROLE_STARTING = 0,
    /// Standing by.
    TCPR_ROLE_BACKUP = 1,
    /// Serving.
    TCPR_ROLE_MASTER = 2,
    /// Silent, until it knows whether it may serve.
    TCPR_ROLE_FENCED = 3,
}

/// How a connection came to this process.
#[allow(non_camel_case_types)] // C's names
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum tcpr_origin {
    /// A peer connected.
    TCPR_ORIGIN_NEW = 0,
    /// It was taken over from the partner, or from an earlier process.
    TCPR_ORIGIN_RECOVERED = 1,
    /// This process connected.
    TCPR_ORIGIN_CONNECTED = 2,
    /// It came from the parent process.
    TCPR_ORIGIN_INHERITED = 3,
}

/// What is known of a protected connection. Offsets count bytes of a direction since the connection was opened.
#[allow(non_camel_case_types)] // C's names
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tcpr_session_info {
    /// Number of the session; the same on both members.
    pub session: u32,
    /// How it came to this process.
    pub origin: tcpr_origin,
    /// Input before this offset is done: it will not be read again after a failover.
    pub in_done: u64,
    /// Input before this offset is stored by the partner.
    pub in_stored: u64,
    /// Output before this offset may be seen by the peer.
    pub out_done: u64,
    /// Output before this offset is stored by the partner.
    pub out_stored: u64,
    /// Not zero: its state could not be known after a crash, and it will be reset.
    pub torn: c_int,
}

thread_local! {
    static FAILURE: Cell<[u8; 256]> = const { Cell::new([0; 256]) };
}

/// Keeps the text that `tcpr_strerror` returns in this thread.
pub fn remember_failure(text: &str) {
    let mut buffer = [0; 256];
    let mut end = text.len().min(buffer.len() - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    buffer[..end].copy_from_slice(&text.as_bytes()[..end]);
    FAILURE.with(|f| f.set(buffer));
}

fn client() -> Result<&'static Client, Failure> {
    process::client().ok_or_else(|| Failure::new(libc::ENOTCONN, "no manager: call tcpr_init first, or use tcpr run"))
}

fn connection(fd: c_int) -> Result<(u32, Connection), Failure> {
    let handle = match ops::connection(fd) {
        Some((_, handle)) => handle,
        None => return Err(Failure::new(libc::EINVAL, "the descriptor is no protected connection")),
    };
    process::connection(handle)
        .map(|connection| (handle, connection))
        .ok_or_else(|| Failure::new(libc::EINVAL, "the descriptor was closed meanwhile"))
}

/// Joins the manager. Under `tcpr run` that is its manager, and `config` is ignored; otherwise one is started
/// as a thread of this process, for which the process needs its privileges now.
///
/// `config` is the path of the configuration; NULL: what TCPR_CONFIG names, else /etc/tcpr/tcpr.toml. Calling it
/// again does nothing. Not needed if sockets are made by `tcpr_socket`: the first `tcpr_bind` does the same.
///
/// Returns 0, or -1 with errno ENOTCONN (no manager answers, or none could be started), EACCES (not started by
/// this manager), ENOTSUP (libtcpr was loaded by dlopen, so that its hooks are not reached). `tcpr_strerror` says
/// more.
///
/// # Safety
/// `config` is NULL or a NUL-terminated string.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_init(config: *const c_char) -> c_int {
    let config = match config.is_null() {
        true => None,
        // SAFETY: not null, and NUL-terminated by contract.
        false => Some(unsafe { CStr::from_ptr(config) }),
    };
    boundary(|| {
        let _inside = Bypass::enter();
        if !real::interposes() {
            let text = "libtcpr was loaded by dlopen: link the program with it, or use tcpr run";
            return Err(Failure::new(libc::ENOTSUP, text));
        }
        process::is_linked();
        process::join_or_embed(config.map(|c| Path::new(OsStr::from_bytes(c.to_bytes()))))?;
        Ok(0)
    })
}

/// The role of this member: a `tcpr_role`, or -1 with errno ENOTCONN if there is no manager.
#[no_mangle]
pub extern "C-unwind" fn tcpr_get_role() -> c_int {
    boundary(|| {
        let role = match client()?.role() {
            ChannelRole::Starting => tcpr_role::TCPR_ROLE_STARTING,
            ChannelRole::Backup => tcpr_role::TCPR_ROLE_BACKUP,
            ChannelRole::Master => tcpr_role::TCPR_ROLE_MASTER,
            ChannelRole::Fenced => tcpr_role::TCPR_ROLE_FENCED,
        };
        Ok(role as c_int)
    })
}

/// Waits until this member has a role. `timeout_ms` below zero waits without end.
///
/// Returns 0, or -1 with errno ETIMEDOUT, EINVAL (no such role), ENOTCONN (no manager, or it is gone).
/// The calling thread's turn ends.
#[no_mangle]
pub extern "C-unwind" fn tcpr_wait_role(role: c_int, timeout_ms: c_int) -> c_int {
    turn::before_wait(|| timeout_ms == 0);
    boundary(|| {
        let role = match role {
            0 => ChannelRole::Starting,
            1 => ChannelRole::Backup,
            2 => ChannelRole::Master,
            3 => ChannelRole::Fenced,
            _ => return Err(Failure::new(libc::EINVAL, "no such role")),
        };
        let timeout = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
        match client()?.wait_role(role, timeout)? {
            true => Ok(0),
            false => Err(Failure::new(libc::ETIMEDOUT, "the role did not come in time")),
        }
    })
}

/// What is known of a protected connection; `tcpr_session_info.origin` tells recovered from new ones.
///
/// Returns 0, or -1 with errno EINVAL (no protected connection), EFAULT, ENOTCONN, ENOENT (the manager does not
/// know it).
///
/// # Safety
/// `info` is NULL or points to writable memory.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_session_info(fd: c_int, info: *mut tcpr_session_info) -> c_int {
    boundary(|| {
        if info.is_null() {
            return Err(Failure::new(libc::EFAULT, "info is NULL"));
        }
        let (_, connection) = connection(fd)?;
        let facts = client()?.session(connection.tuple)?;
        let filled = tcpr_session_info {
            session: facts.session,
            origin: match connection.origin {
                Origin::Accepted => tcpr_origin::TCPR_ORIGIN_NEW,
                Origin::Recovered => tcpr_origin::TCPR_ORIGIN_RECOVERED,
                Origin::Connected => tcpr_origin::TCPR_ORIGIN_CONNECTED,
                Origin::Inherited => tcpr_origin::TCPR_ORIGIN_INHERITED,
            },
            in_done: facts.in_done,
            in_stored: facts.in_stored,
            out_done: facts.out_done,
            out_stored: facts.out_stored,
            torn: c_int::from(facts.torn),
        };
        // SAFETY: not null; the caller says that it is writable.
        unsafe { info.write(filled) };
        Ok(0)
    })
}

/// Says that the next `n` bytes of input of a connection are done: they will not be read again after a failover.
/// From the first call on nothing is inferred for this connection: a server that keeps parts of messages calls it
/// with 0 as soon as it has accepted. It takes effect when the turn ends.
///
/// Returns 0, or -1 with errno EINVAL (no protected connection), ENOTCONN.
#[no_mangle]
pub extern "C-unwind" fn tcpr_consume(fd: c_int, n: size_t) -> c_int {
    boundary(|| {
        let (handle, _) = connection(fd)?;
        turn::output(client()?, |thread| Event::Consume { thread, handle, n: n as u64 });
        Ok(0)
    })
}

/// Ends the calling thread's turn: what it has done so far becomes visible together.
///
/// Returns 0, or -1 with errno ENOTCONN.
#[no_mangle]
pub extern "C-unwind" fn tcpr_commit() -> c_int {
    boundary(|| {
        turn::commit(client()?);
        Ok(0)
    })
}

/// Hands the service over to the partner, without loss. What becomes of this process is its manager's affair:
/// under `tcpr run` it is ended and started again as the backup's.
///
/// Returns 0 once the manager has agreed, or -1 with errno ENOTCONN, or what hinders the manager.
#[no_mangle]
pub extern "C-unwind" fn tcpr_switchover() -> c_int {
    turn::before_wait(|| false);
    boundary(|| {
        client()?.tell(Request::Switchover)?;
        Ok(0)
    })
}

/// Why the last `tcpr_` call of this thread failed, for people. Valid until the next one fails; empty at first.
#[no_mangle]
pub extern "C-unwind" fn tcpr_strerror() -> *const c_char {
    FAILURE.with(|f| f.as_ptr().cast_const().cast())
}

/// The version of libtcpr.
#[no_mangle]
pub extern "C-unwind" fn tcpr_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}
