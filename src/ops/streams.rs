//! stdio streams on protected connections. The C library's streams read and write without calling a name that could be
//! hooked. A stream that `fdopen` makes of a protected connection is made so that it calls ours.

use std::collections::HashMap;
use std::ffi::{c_char, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

use libc::{c_int, off64_t, size_t, ssize_t, FILE};

use super::attach::connection;
use super::{descriptors, input, output};
use crate::guard::inside;
use crate::locks::{lock, Locked};
use crate::real::{self, CookieCalls};
use crate::{connections, errno, manager, table};

/// Descriptors of our streams, by the address of the stream.
type Streams = HashMap<usize, c_int>;

static STREAMS: Mutex<Option<Streams>> = Mutex::new(None);
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Keeps others from the list of streams; held over a fork.
pub struct StreamsGuard {
    _list: Locked<'static, Option<Streams>>,
}

/// See [`StreamsGuard`].
pub fn hold() -> StreamsGuard {
    StreamsGuard { _list: lock(&STREAMS) }
}

/// Changes the list, and the count with it.
fn change(f: impl FnOnce(&mut Streams)) {
    inside((), || {
        let mut guard = lock(&STREAMS);
        let streams = guard.get_or_insert_default();
        f(streams);
        COUNT.store(streams.len(), Ordering::Relaxed);
    });
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn fdopen(fd: c_int, mode: *const c_char) -> *mut FILE {
    if connection(fd).is_none() {
        // SAFETY: the caller's arguments.
        return unsafe { real::fdopen(fd, mode) };
    }
    let calls = CookieCalls { read, write, seek, close };
    // SAFETY: the caller's mode; the cookie is only a number, and the library is never unloaded.
    let file = unsafe { real::fopencookie(std::ptr::without_provenance_mut(fd as usize), mode, calls) };
    if !file.is_null() {
        change(|streams| {
            streams.insert(file.expose_provenance(), fd);
        });
    }
    file
}

fn descriptor(file: *mut FILE) -> Option<c_int> {
    if COUNT.load(Ordering::Relaxed) == 0 {
        return None;
    }
    inside(None, || lock(&STREAMS).as_ref()?.get(&file.addr()).copied())
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn fileno(file: *mut FILE) -> c_int {
    // SAFETY: the caller's argument.
    descriptor(file).unwrap_or_else(|| unsafe { real::fileno(file) })
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn fileno_unlocked(file: *mut FILE) -> c_int {
    // SAFETY: the caller's argument.
    descriptor(file).unwrap_or_else(|| unsafe { real::fileno_unlocked(file) })
}

/// As in the C library.
///
/// # Safety
/// As in the C library.
pub unsafe fn fclose(file: *mut FILE) -> c_int {
    if descriptor(file).is_some() {
        change(|streams| {
            streams.remove(&file.addr());
        });
    } else if !file.is_null() {
        // A stream that is older than the protection of its descriptor closes it without calling a name that we could hook.
        let saved = errno::get();
        // SAFETY: an open stream, or the caller breaks fclose's contract.
        let fd = unsafe { real::fileno(file) };
        errno::set(saved);
        if !table::is_plain(fd) && manager::acts() {
            inside((), || connections::forget(fd));
        }
    }
    // SAFETY: the caller's argument.
    unsafe { real::fclose(file) }
}

/// The program exits: what it left in its streams is written now, while the hooks still act. The C library would write it when
/// they no longer do.
pub fn flush_streams() {
    if COUNT.load(Ordering::Relaxed) == 0 || !manager::acts() {
        return;
    }
    // While we hold the C library's list no stream leaves it, and no stream is freed before it has left our own list.
    real::lock_stream_list();
    let files: Vec<usize> = inside(Vec::new(), || lock(&STREAMS).iter().flatten().map(|(file, _)| *file).collect());
    for file in files {
        // SAFETY: an open stream, see above. One that another thread has locked is left to that thread.
        unsafe { real::flush_unless_locked(std::ptr::with_exposed_provenance_mut(file)) };
    }
    real::unlock_stream_list();
}

unsafe extern "C-unwind" fn read(cookie: *mut c_void, buffer: *mut c_char, n: size_t) -> ssize_t {
    // SAFETY: the C library's buffer of n bytes.
    unsafe { input::read(cookie.addr() as c_int, buffer.cast(), n) }
}

/// All of it, or as much as goes before an error: fewer make the C library note the error.
unsafe extern "C-unwind" fn write(cookie: *mut c_void, buffer: *const c_char, n: size_t) -> ssize_t {
    let mut written = 0;
    while written < n {
        // SAFETY: the rest of the C library's buffer.
        match unsafe { output::write(cookie.addr() as c_int, buffer.add(written).cast(), n - written) } {
            more if more > 0 => written += more as size_t,
            _ => break,
        }
    }
    written as ssize_t
}

unsafe extern "C-unwind" fn seek(_: *mut c_void, _: *mut off64_t, _: c_int) -> c_int {
    errno::set(libc::ESPIPE);
    -1
}

unsafe extern "C-unwind" fn close(cookie: *mut c_void) -> c_int {
    let fd = cookie.addr() as c_int;
    // Called by freopen, too, which makes another stream of it, without fclose.
    change(|streams| streams.retain(|_, other| *other != fd));
    // SAFETY: takes no pointers.
    unsafe { descriptors::close(fd) }
}
