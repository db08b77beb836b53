//! Diagnostics: nothing, unless `TCPR_LOG` asks for them; then to what standard error was when the program began.
//!
//! Not to descriptor 2: that may become a connection, as in servers that are run by inetd, and our lines would get into it.

use std::fmt::Write;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, TryLockError};

use libc::c_int;
use log::{LevelFilter, Log, Metadata, Record};
use tcpr_node::channel::client::Bypass;
use tcpr_node::channel::{move_high, Own};
use tcpr_node::logging::{target, Levels, Line};

use crate::ffi;
use crate::process::{self, Locked};

/// Our own copy of standard error.
static TO: Mutex<Option<Own>> = Mutex::new(None);

/// Keeps others from it; held over a fork.
pub fn lock() -> Locked<'static, Option<Own>> {
    process::lock(&TO)
}

/// Makes it, unless it is there. Called by the constructor, before the program can make something else of descriptor 2, and
/// again when we join: the program may have closed all that it did not know.
pub fn open() {
    let mut to = lock();
    if to.as_ref().is_some_and(Own::is_ours) || ffi::is_internet_socket(libc::STDERR_FILENO) {
        return;
    }
    // SAFETY: borrowed for as long as it is copied.
    let copy = unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) }.try_clone_to_owned();
    // Where there is no standard error nobody listens.
    *to = copy.ok().and_then(|copy| Own::new(move_high(copy)).ok());
}

/// Notes that its number is ours.
pub fn keep() {
    if let Some(own) = lock().as_ref().filter(|own| own.is_ours()) {
        process::note(own.number(), true);
    }
}

/// The application wants its number.
pub fn vacate(fd: c_int) {
    if let Some(own) = lock().as_mut().filter(|own| own.number() == fd) {
        if own.make_way() {
            process::note(own.number(), true);
        }
    }
}

struct ToStderr(Levels);

impl Log for ToStderr {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if !self.0.admit(record) {
            return;
        }
        let _inside = Bypass::enter();
        let mut line = String::with_capacity(128);
        let level = record.level().as_str().to_ascii_lowercase();
        // Writing to a String does not fail.
        let _ = writeln!(line, "tcpr[{}] {level} {}: {}", std::process::id(), target(record), Line(record));
        // Held by this thread, or by one that is about to fork.
        let to = match TO.try_lock() {
            Ok(to) => to,
            Err(TryLockError::Poisoned(to)) => to.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if let Some(own) = to.as_ref().filter(|own| own.is_ours()) {
            ffi::raw_write(own.number(), line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Starts to log what `TCPR_LOG` asks for; without it also silences panics.
pub fn start(levels: Option<&str>) {
    let Some(levels) = levels else {
        // A bug of ours must not show up in the output of somebody else's program.
        std::panic::set_hook(Box::new(|_| {}));
        return;
    };
    let levels = Levels::parse(levels, LevelFilter::Warn);
    let most = levels.most();
    std::panic::set_hook(Box::new(|info| log::error!("bug in libtcpr: {info}")));
    open();
    keep();
    // A logger that is there already is as good.
    if log::set_boxed_logger(Box::new(ToStderr(levels))).is_ok() {
        log::set_max_level(most);
    }
}
