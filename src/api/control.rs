//! What goes beyond the calls of the C library.

use std::ffi::{c_char, c_void, CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use libc::{c_int, size_t};
use tcpr_node::channel::client::{Bypass, Client};
use tcpr_node::channel::server::ChannelRole;
use tcpr_node::channel::wire::Request;
use tcpr_node::channel::{Event, Origin};
use tcpr_session::tuple::FourTuple;

use crate::guard::{self, boundary, Failure};
use crate::{connections, manager, ops, real, roles, turn};

/// The role of this member (this machine within the pair).
#[allow(non_camel_case_types)] // C's names
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum tcpr_role {
    /// The manager has not decided yet.
    TCPR_ROLE_STARTING = 0,
    /// The partner serves; this member stands by.
    TCPR_ROLE_BACKUP = 1,
    /// This member serves.
    TCPR_ROLE_MASTER = 2,
    /// This member sends nothing, because it does not know whether the partner serves.
    TCPR_ROLE_FENCED = 3,
}

/// How a session came to this process.
#[allow(non_camel_case_types)] // C's names
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum tcpr_origin {
    /// A peer connected, and this process accepted.
    TCPR_ORIGIN_NEW = 0,
    /// The session was taken over from the partner, or from an earlier process on this machine.
    TCPR_ORIGIN_RECOVERED = 1,
    /// This process connected.
    TCPR_ORIGIN_CONNECTED = 2,
    /// Another process of this program held the session: the parent of this one, or one that passed the descriptor.
    TCPR_ORIGIN_INHERITED = 3,
}

/// What the manager of this member knows of a session. Offsets count the bytes of one direction since the connection was
/// opened, from 0; a FIN counts nothing.
#[allow(non_camel_case_types)] // C's names
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tcpr_session_info {
    /// Number of the session, the same on both members. The number of a session that has ended may be used again.
    pub session: u32,
    /// How the session came to this process.
    pub origin: tcpr_origin,
    /// Input before this offset is done: it will not be read again after a failover. At most in_stored.
    pub in_done: u64,
    /// Input before this offset is in the log of this member. This field does not say whether the partner has it. (The peer
    /// gets its acknowledgement when the partner has it, unless `durability` is "async".)
    pub in_stored: u64,
    /// Output before this offset belongs to turns that have ended: it may leave as soon as the partner has it, too.
    pub out_done: u64,
    /// Output before this offset is in the log of this member, with the end of its turn: the same number as out_done. This field
    /// does not say whether the partner has it.
    pub out_stored: u64,
    /// 1: what has become of this session could not be known after a crash, and a failover resets it. Else 0.
    pub torn: c_int,
}

pub(super) fn client() -> Result<&'static Client, Failure> {
    manager::client().ok_or_else(|| Failure::new(libc::ENOTCONN, "no manager: call tcpr_init first, or use tcpr run"))
}

/// Handle, addresses and origin of a protected connection.
pub(super) fn connection(fd: c_int) -> Result<(u32, FourTuple, Origin), Failure> {
    let handle = match ops::connection(fd) {
        Some((_, handle)) => handle,
        None => return Err(Failure::new(libc::EINVAL, "the descriptor is no protected connection")),
    };
    connections::facts(handle)
        .map(|(tuple, origin)| (handle, tuple, origin))
        .ok_or_else(|| Failure::new(libc::EINVAL, "the descriptor was closed meanwhile"))
}

/// Joins the manager. Under `tcpr run` that is the one which started this program, and `config` is ignored. Otherwise a
/// manager is started as a thread of this process, which needs its privileges at this moment (those that `tcpr run` needs).
///
/// `config` is the path of the configuration file, NUL-terminated. NULL: the file that the environment variable TCPR_CONFIG
/// names, else /etc/tcpr/tcpr.toml. Once the process has joined the call does nothing and returns 0. A program that makes its
/// sockets by `tcpr_socket` need not call it: its first `tcpr_bind` to a port does the same.
///
/// Waits up to 5 seconds for a manager that is starting.
///
/// Returns 0, or -1 with errno ENOTCONN (no manager answers, or none could be started: the configuration is missing or wrong,
/// a privilege is missing), EACCES (this program was not started by the manager that it found), ENOTSUP (libtcpr was loaded by
/// dlopen, so that the program's calls do not reach it).
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
        manager::join_or_embed(config.map(|c| Path::new(OsStr::from_bytes(c.to_bytes()))))?;
        Ok(0)
    })
}

/// The role of this member: a value of `tcpr_role`. Does not wait.
///
/// Returns it, or -1 with errno ENOTCONN (this process has not joined a manager, or the manager is gone).
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

/// Waits until this member has a role (a value of `tcpr_role`), for at most `timeout_ms` milliseconds; 0 does not wait, and
/// a negative number waits without end. The calling thread's turn ends. A signal does not end the wait.
///
/// Returns 0 when the member has the role, or -1 with errno ETIMEDOUT (it does not have it in time), EINVAL (no such role),
/// ENOTCONN (this process has not joined a manager, or the manager is gone).
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

/// Has `callback` called with the role of this member (a value of `tcpr_role`) and `arg`: soon with the role of this moment, and then
/// whenever the member has another one. -1 instead of a role: the manager is gone. A role that the member had for a moment only may
/// be left out.
///
/// The calls are made one after another, in the order of registration, by a thread that the library makes for them. All signals are
/// blocked in it, and what a callback writes is a turn, which ends with the call. A callback may make any call, of this library, too.
/// As long as it runs no other one is called, and the process does not hear of other roles. It should therefore do little: tell the
/// event loop, say. It must not leave by longjmp or an exception. If it ends its thread (pthread_exit), the callbacks are called no
/// more until one is registered again.
///
/// Under `tcpr run` a program never sees its member become a backup if it was the master: it is killed and started again. With
/// `on_demote = "disconnect"`, or without `tcpr run`, it goes on: its connections end (ECONNABORTED), and it is told. This also
/// happens briefly when `tcpr run` hands its connections to the partner, before SIGTERM. A program that goes on must treat
/// ECONNABORTED, and EROFS from the data calls, as loss of the role: a role that returns at once may not be reported.
///
/// A program that forbids itself system calls (seccomp) registers before it does so.
///
/// A pair of callback and argument can be registered once. `tcpr_off_role_change` removes it. The child of a fork has no callbacks.
///
/// Returns 0, or -1 with errno EFAULT (`callback` is NULL), EEXIST (it is registered already, with this `arg`), EAGAIN (there is no thread
/// for the calls), ENOTCONN (this process has not joined a manager, or the manager is gone), ENOTSUP (`standby = "hot"`).
///
/// # Safety
/// `callback` may be called with `arg` by another thread until it is removed.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_on_role_change(
    callback: Option<unsafe extern "C-unwind" fn(role: c_int, arg: *mut c_void)>,
    arg: *mut c_void,
) -> c_int {
    boundary(|| {
        let callback = callback.ok_or_else(|| Failure::new(libc::EFAULT, "callback is NULL"))?;
        roles::register(client()?, callback, arg)?;
        Ok(0)
    })
}

/// Removes what `tcpr_on_role_change` has registered with this `callback` and `arg`. When the call returns the callback does not run any
/// more, and what it uses may be freed, except if the callback itself makes this call. The call waits for a callback that runs, so
/// its caller must not hold a lock that the callback takes. The calling thread's turn ends.
///
/// Returns 0, or -1 with errno EFAULT (`callback` is NULL), ENOENT (it is not registered with this `arg`).
///
/// # Safety
/// As long as the callback runs it may use `arg`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_off_role_change(
    callback: Option<unsafe extern "C-unwind" fn(role: c_int, arg: *mut c_void)>,
    arg: *mut c_void,
) -> c_int {
    turn::before_wait(|| false);
    boundary(|| {
        let callback = callback.ok_or_else(|| Failure::new(libc::EFAULT, "callback is NULL"))?;
        roles::remove(callback, arg)?;
        Ok(0)
    })
}

/// Asks the manager for what it knows of the session behind descriptor `fd`, and fills `info`, which is the caller's.
/// `info->origin` tells a recovered session from a new one. What this process has done is told to the manager
/// asynchronously: it may not be counted yet.
///
/// Returns 0, or -1 with errno EINVAL (`fd` is no protected connection), EFAULT (`info` is NULL), ENOTCONN (the manager does
/// not know the session any more, this process has not joined a manager, or the manager is gone). `info` is as before then.
///
/// # Safety
/// `info` is NULL or points to writable memory.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_session_info(fd: c_int, info: *mut tcpr_session_info) -> c_int {
    boundary(|| {
        if info.is_null() {
            return Err(Failure::new(libc::EFAULT, "info is NULL"));
        }
        let (_, tuple, origin) = connection(fd)?;
        let facts = client()?.session(tuple)?;
        let filled = tcpr_session_info {
            session: facts.session,
            origin: match origin {
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

/// Says that the next `n` bytes of input of the session behind descriptor `fd` are done: they will not be read again after a
/// failover. The bytes of successive calls follow one another. The call takes effect when the calling thread's turn ends.
///
/// From the first call on tcpr no longer infers for this session which input is done. A server that keeps parts of messages
/// therefore calls with `n` = 0 as soon as it has accepted. Bytes that this program has not read yet do not count: the rest of a
/// larger `n` is ignored.
///
/// Returns 0, or -1 with errno EINVAL (`fd` is no protected connection), ENOTCONN (this process has not joined a manager, or
/// the manager is gone).
#[no_mangle]
pub extern "C-unwind" fn tcpr_consume(fd: c_int, n: size_t) -> c_int {
    boundary(|| {
        let (handle, ..) = connection(fd)?;
        turn::output(client()?, |thread| Event::Consume { thread, handle, n: n as u64 });
        Ok(0)
    })
}

/// Ends the calling thread's turn, as a wait would: the output that it has written may leave, and the input that it has read
/// is done, together. Does not wait for either.
///
/// Returns 0, or -1 with errno ENOTCONN (this process has not joined a manager, or the manager is gone).
#[no_mangle]
pub extern "C-unwind" fn tcpr_commit() -> c_int {
    boundary(|| {
        turn::commit(client()?);
        Ok(0)
    })
}

/// Hands the service over to the partner, without loss of bytes or connections. The calling thread's turn ends.
///
/// The manager decides what becomes of this process: under `tcpr run` it is ended, and started again on the backup that this
/// member then is.
///
/// Returns 0 once the manager has begun the switchover, which may still fail (the role then stays `TCPR_ROLE_MASTER`). Or -1
/// with errno ENOTCONN: this process has not joined a manager, the manager is gone, or the members cannot switch over now
/// (this member is not the master, there is no partner that is ready); `tcpr_strerror` says which.
#[no_mangle]
pub extern "C-unwind" fn tcpr_switchover() -> c_int {
    turn::before_wait(|| false);
    boundary(|| {
        client()?.tell(Request::Switchover)?;
        Ok(0)
    })
}

/// Why the last `tcpr_` call of the calling thread failed, in English. The text is NUL-terminated, has at most 255 bytes, and
/// belongs to the library: it is valid until the next call of this thread fails, or the thread ends. Empty as long as none
/// has failed. Never NULL, and never fails. A call that is named after one of the C library leaves a text only where tcpr
/// itself refused it.
#[no_mangle]
pub extern "C-unwind" fn tcpr_strerror() -> *const c_char {
    guard::last_failure()
}

/// The version of libtcpr, as "0.1.0". The text is NUL-terminated and lives as long as the library. Never NULL.
#[no_mangle]
pub extern "C-unwind" fn tcpr_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}
