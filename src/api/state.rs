//! Data of the program that survives it.

use libc::{c_int, c_void, size_t, ssize_t};
use tcpr_node::channel::wire::{Bytes, Request};
use tcpr_session::data::{MAX_KEY, MAX_VALUE};

use super::control::{client, connection};
use crate::guard::{boundary, Failure};
use crate::memory::Checked;
use crate::{environment, manager, sys, turn};

/// The most bytes of a value that tcpr keeps for the program.
pub const TCPR_MAX_VALUE: size_t = 32768;

/// The most bytes of a key.
pub const TCPR_MAX_KEY: size_t = 255;

const _: () = assert!(TCPR_MAX_VALUE == MAX_VALUE && TCPR_MAX_KEY == MAX_KEY);

/// Of an open descriptor; one that is not open is told apart.
fn handle(fd: c_int) -> Result<u32, Failure> {
    if !sys::is_open(fd) {
        return Err(Failure::new(libc::EBADF, "the descriptor is not open"));
    }
    connection(fd).map(|(handle, ..)| handle)
}

/// A value of the program's.
///
/// # Safety
/// As of the call that it is for.
unsafe fn value(data: *const c_void, len: size_t) -> Result<Bytes, Failure> {
    if len > MAX_VALUE {
        return Err(Failure::new(libc::EMSGSIZE, format!("a value has at most {MAX_VALUE} bytes")));
    }
    // SAFETY: the caller says that it is readable.
    unsafe { copied(data, len) }
}

/// A key of the program's.
///
/// # Safety
/// As of the call that it is for.
unsafe fn key(key: *const c_void, len: size_t) -> Result<Bytes, Failure> {
    if len == 0 {
        return Err(Failure::new(libc::EINVAL, "a key has one byte at least"));
    }
    if len > MAX_KEY {
        return Err(Failure::new(libc::EMSGSIZE, format!("a key has at most {MAX_KEY} bytes")));
    }
    // SAFETY: the caller says that it is readable.
    unsafe { copied(key, len) }
}

/// # Safety
/// As of [`value`].
unsafe fn copied(data: *const c_void, len: size_t) -> Result<Bytes, Failure> {
    if len == 0 {
        return Ok(Bytes::default());
    }
    if data.is_null() || !Checked::default().is_readable(data, len) {
        return Err(Failure::new(libc::EFAULT, "the data is not readable memory"));
    }
    // SAFETY: found readable, and the caller says that it stays so.
    Ok(Bytes(unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len) }.to_vec()))
}

/// Puts as much of a value into the program's buffer as that has room for. Returns how long the value is.
///
/// # Safety
/// As of the call that it is for.
unsafe fn give(value: &[u8], buffer: *mut c_void, len: size_t) -> Result<c_int, Failure> {
    let n = value.len().min(len);
    if n > 0 {
        if buffer.is_null() || !Checked::is_writable(buffer, n) {
            return Err(Failure::new(libc::EFAULT, "the buffer is not writable memory"));
        }
        // SAFETY: found writable, and the caller says that it stays so; it cannot overlap our own value.
        unsafe { std::ptr::copy_nonoverlapping(value.as_ptr(), buffer.cast::<u8>(), n) };
    }
    Ok(value.len() as c_int)
}

/// The follower of a hot standby has no sessions yet, and would be told something else than its leader.
fn refuse_if_hot() -> Result<(), Failure> {
    if environment::get().is_some_and(|e| e.hot) {
        return Err(Failure::new(
            libc::ENOTSUP,
            "with standby = \"hot\" the program's own memory survives, and nothing is kept beside",
        ));
    }
    Ok(())
}

/// Before the program gives us data: it waits where the log is too far ahead of the replica, as a write does.
fn before_giving() {
    if let Some(client) = manager::joined().filter(|_| refuse_if_hot().is_ok()) {
        turn::before_write(client);
    }
}

/// Ties `len` bytes of data to the session behind descriptor `fd`: whatever this program has to know in order to go on with the
/// session. They take the place of what the last checkpoint of this session has said. `len` is at most TCPR_MAX_VALUE; with
/// `len` = 0, `data` may be NULL. The bytes are copied.
///
/// The data counts when the calling thread's turn ends, together with the output of that turn: after a failure there is all of
/// both, or nothing. (To end the turn at once, call `tcpr_commit`. A read or accept that follows ends it, too, as after a write.) The checkpoint says that all input is done which this process
/// had read from this session when it made the call, and no other input. From the first checkpoint on tcpr no longer
/// infers for this session which input is done, and the process that takes over reads what came after the last checkpoint. So
/// call it in each turn in which you have read from a session with checkpoints, when you have dealt with what you read. What a
/// short write has left over is not covered: until it is written, a failover repeats the exchange, or resets the session.
///
/// A session of an ended connection has no data any more.
///
/// Returns 0, or -1 with errno EBADF (`fd` is not open), EINVAL (`fd` is no protected connection), EFAULT (`data` is not
/// readable), EMSGSIZE (`len` is more than TCPR_MAX_VALUE), ENOSPC (no room: `data_bytes` in the configuration), ENOBUFS (this
/// turn has given more than a MiB of data), EROFS (this member is not the master), ENOTCONN (the manager does not know the
/// session any more, this process has not joined a manager, or the manager is gone), ENOTSUP (`standby = "hot"`). Nothing has
/// changed then, except after ETIMEDOUT, where that is not known.
///
/// # Safety
/// `data` points to `len` readable bytes.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_checkpoint(fd: c_int, data: *const c_void, len: size_t) -> c_int {
    before_giving();
    boundary(|| {
        refuse_if_hot()?;
        let handle = handle(fd)?;
        // SAFETY: the caller's arguments.
        let data = unsafe { value(data, len) }?;
        let client = client()?;
        turn::gave(|thread| client.tell(Request::Checkpoint { thread, handle, data }))?;
        Ok(0)
    })
}

/// Gives the data of the last checkpoint of the session behind descriptor `fd`, by whichever process: at most `len` bytes of it are
/// put into `buffer`, which is the caller's. With `len` = 0, `buffer` may be NULL: to ask for the size.
///
/// To be called for a session that `tcpr_accept` or `tcpr_connect` has returned, before anything is read from it. A new session
/// has no data, and a recovered one has what the last checkpoint said that counted.
///
/// Returns the size of the data in bytes, which may be more than `len` (then the rest was not copied) and may be 0. Or -1 with
/// errno ENODATA (this session has never had a checkpoint), EBADF (`fd` is not open), EINVAL (`fd` is no protected connection),
/// EFAULT (`buffer` is not writable), ENOTCONN (the manager does not know the session any more, this process has not joined a
/// manager, or the manager is gone), ENOTSUP (`standby = "hot"`). `buffer` is as before then.
///
/// # Safety
/// `buffer` points to `len` writable bytes.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_restore(fd: c_int, buffer: *mut c_void, len: size_t) -> ssize_t {
    let size = boundary(|| {
        refuse_if_hot()?;
        let handle = handle(fd)?;
        match client()?.data(Request::Restore { handle })? {
            // SAFETY: the caller's arguments.
            Some(data) => unsafe { give(&data.0, buffer, len) },
            None => Err(Failure::nothing(libc::ENODATA, "the session has no data")),
        }
    });
    size as ssize_t
}

/// Puts a value of `len` bytes under a key of `keylen` bytes, for the service as a whole: any process of the program gets it, on
/// whichever member is the master. It takes the place of the value that is there. Key and value may be any bytes; `keylen` is 1
/// to TCPR_MAX_KEY, `len` at most TCPR_MAX_VALUE. With `len` = 0, `value` may be NULL. The bytes are copied.
///
/// The value counts when the calling thread's turn ends, together with the output of that turn, its checkpoints, and all else that
/// it puts and deletes: after a failure there is all of it, or nothing. (To end the turn at once, call `tcpr_commit`.) Until
/// then `tcpr_get` gives it to this process only. Turns of threads that use the same key end together. If two processes put
/// the same key, the one whose turn ends last wins.
///
/// Returns 0, or -1 with errno EINVAL (`keylen` is 0), EFAULT (`key` or `value` is not readable), EMSGSIZE (one of them is too long),
/// ENOSPC (no room: `data_bytes` in the configuration), ENOBUFS (this turn has given more than a MiB of data), EROFS (this
/// member is not the master), ENOTCONN (this process has not joined a manager, or the manager is gone), ENOTSUP (`standby =
/// "hot"`). Nothing has changed then, except after ETIMEDOUT, where that is not known.
///
/// # Safety
/// `key` points to `keylen` readable bytes, `value` to `len`.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_put(key: *const c_void, keylen: size_t, value: *const c_void, len: size_t) -> c_int {
    before_giving();
    boundary(|| {
        refuse_if_hot()?;
        // SAFETY: the caller's arguments.
        let (key, value) = unsafe { (self::key(key, keylen)?, self::value(value, len)?) };
        let client = client()?;
        turn::gave(|thread| client.tell(Request::Put { thread, key, value: Some(value) }))?;
        Ok(0)
    })
}

/// Gives the value under a key: at most `len` bytes of it are put into `buffer`, which is the caller's. With `len` = 0, `buffer` may
/// be NULL: to ask for the size. On a backup, it is the value that this member has stored so far.
///
/// Returns the size of the value in bytes, which may be more than `len` (then the rest was not copied) and may be 0. Or -1 with
/// errno ENOENT (there is no such key), EINVAL (`keylen` is 0), EMSGSIZE (`keylen` is more than TCPR_MAX_KEY), EFAULT (`key` is not
/// readable, or `buffer` not writable), ENOTCONN (this process has not joined a manager, or the manager is gone), ENOTSUP
/// (`standby = "hot"`). `buffer` is as before then.
///
/// # Safety
/// `key` points to `keylen` readable bytes, `buffer` to `len` writable ones.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_get(key: *const c_void, keylen: size_t, buffer: *mut c_void, len: size_t) -> ssize_t {
    let size = boundary(|| {
        refuse_if_hot()?;
        // SAFETY: the caller's arguments.
        let key = unsafe { self::key(key, keylen) }?;
        let client = client()?;
        match turn::learns(|thread| client.data(Request::Get { thread, key }))? {
            // SAFETY: the caller's arguments.
            Some(value) => unsafe { give(&value.0, buffer, len) },
            None => Err(no_key()),
        }
    });
    size as ssize_t
}

/// Deletes the value under a key, and the key. It counts as `tcpr_put` does.
///
/// Returns 0, or -1 with errno ENOENT (there is no such key), or as `tcpr_put`.
///
/// # Safety
/// `key` points to `keylen` readable bytes.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_delete(key: *const c_void, keylen: size_t) -> c_int {
    before_giving();
    boundary(|| {
        refuse_if_hot()?;
        // SAFETY: the caller's arguments.
        let key = unsafe { self::key(key, keylen) }?;
        let client = client()?;
        turn::gave(|thread| client.tell(Request::Put { thread, key, value: None })).map_err(|e| match e.errno {
            libc::ENOENT => no_key(),
            _ => e.into(),
        })?;
        Ok(0)
    })
}

/// Gives the next key, in the order of their bytes, behind the key of `afterlen` bytes at `after`, which need not exist. With
/// `afterlen` = 0, `after` may be NULL: the first one. At most `keylen` bytes of it are put into `key`, which is the caller's, and may be
/// the same memory as `after`; TCPR_MAX_KEY are always enough. To visit all keys, begin with `afterlen` = 0, and go on with the
/// key that was given. Keys that are put or deleted meanwhile may be visited or not, and the others are.
///
/// Returns the length of the key in bytes, which may be more than `keylen` (then the rest was not copied), or 0: there is none. Or -1
/// with errno EMSGSIZE (`afterlen` is more than TCPR_MAX_KEY), EFAULT (`after` is not readable, or `key` not writable), ENOTCONN
/// (this process has not joined a manager, or the manager is gone), ENOTSUP (`standby = "hot"`). `key` is as before then.
///
/// # Safety
/// `after` points to `afterlen` readable bytes, `key` to `keylen` writable ones.
#[no_mangle]
pub unsafe extern "C-unwind" fn tcpr_iterate(
    after: *const c_void,
    afterlen: size_t,
    key: *mut c_void,
    keylen: size_t,
) -> ssize_t {
    let size = boundary(|| {
        refuse_if_hot()?;
        let after = match afterlen {
            0 => Bytes::default(),
            // SAFETY: the caller's arguments.
            _ => unsafe { self::key(after, afterlen) }?,
        };
        match client()?.data(Request::NextKey { after })? {
            // SAFETY: the caller's arguments.
            Some(next) => unsafe { give(&next.0, key, keylen) },
            None => Ok(0),
        }
    });
    size as ssize_t
}

fn no_key() -> Failure {
    Failure::nothing(libc::ENOENT, "there is no such key")
}
