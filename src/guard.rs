//! The border between the application and our bookkeeping: a panic of ours stays on our side, hooks are off while we are
//! inside, and a call of ours that fails says why.

use std::cell::Cell;
use std::ffi::c_char;
use std::panic::{catch_unwind, AssertUnwindSafe};

use libc::c_int;
use tcpr_node::channel::client::{Bypass, ClientError};

use crate::errno;

/// The panic boundary: the caller finds errno as it was. If `f` panics the caller goes on with `fallback`, as if nothing were
/// protected.
pub fn guarded<T>(fallback: T, f: impl FnOnce() -> T) -> T {
    errno::kept(|| catch_unwind(AssertUnwindSafe(f)).unwrap_or(fallback))
}

/// Runs bookkeeping inside the panic boundary and with the hooks of this thread off.
pub fn inside<T>(fallback: T, f: impl FnOnce() -> T) -> T {
    guarded(fallback, || {
        let _inside = Bypass::enter();
        f()
    })
}

/// The same, if the thread is not inside already: then the caller is the library, or a signal handler of the application.
pub fn first_inside(f: impl FnOnce()) {
    guarded((), || {
        let Some(_inside) = Bypass::enter_first() else { return };
        f();
    });
}

/// The panic boundary of a `tcpr_` call: an error becomes errno and -1, a panic EIO.
pub fn boundary(f: impl FnOnce() -> Result<c_int, Failure>) -> c_int {
    let saved = errno::get();
    let bug = || Failure::new(libc::EIO, "bug in libtcpr (set TCPR_LOG to see more)");
    match catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| Err(bug())) {
        Ok(value) => {
            errno::set(saved);
            value
        }
        Err(failure) => {
            failure.tell();
            -1
        }
    }
}

/// Why a call of ours fails.
#[derive(Debug)]
pub struct Failure {
    errno: c_int,
    text: String,
    /// Nothing is wrong.
    expected: bool,
}

impl Failure {
    /// An errno and the text for `tcpr_strerror`.
    pub fn new(errno: c_int, text: impl Into<String>) -> Self {
        Self { errno, text: text.into(), expected: false }
    }

    /// The same of what is no mistake: that something is not there.
    pub fn nothing(errno: c_int, text: impl Into<String>) -> Self {
        Self { expected: true, ..Self::new(errno, text) }
    }

    /// The errno.
    pub fn errno(&self) -> c_int {
        self.errno
    }

    /// Sets the caller's errno, and keeps the text for `tcpr_strerror`.
    pub fn tell(&self) {
        let level = if self.expected { log::Level::Debug } else { log::Level::Warn };
        log::log!(level, "{}", self.text);
        remember(&self.text);
        errno::set(self.errno);
    }
}

impl From<ClientError> for Failure {
    fn from(e: ClientError) -> Self {
        Self { errno: e.errno, text: e.text, expected: false }
    }
}

thread_local! {
    static LAST: Cell<[u8; 256]> = const { Cell::new([0; 256]) };
}

/// The text of the last failure of this thread, NUL-terminated.
pub fn last_failure() -> *const c_char {
    LAST.with(|last| last.as_ptr().cast_const().cast())
}

fn remember(text: &str) {
    let mut buffer = [0; 256];
    let mut end = text.len().min(buffer.len() - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    buffer[..end].copy_from_slice(&text.as_bytes()[..end]);
    LAST.with(|last| last.set(buffer));
}
