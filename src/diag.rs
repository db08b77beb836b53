//! The library's log. Without `TCPR_LOG` nothing is written; with it, lines go to what standard error was when the program
//! began.
//!
//! They do not go to descriptor 2, which may become a connection, as in servers that are run by inetd.

use std::fmt::Write;
use std::os::fd::BorrowedFd;
use std::sync::Mutex;

use libc::c_int;
use log::{LevelFilter, Log, Metadata, Record};
use tcpr_node::channel::client::Bypass;
use tcpr_node::channel::{move_high, Own};
use tcpr_node::logging::{target, Levels, Line};

use crate::locks::{self, Locked};
use crate::{sys, table};

/// Our own copy of standard error.
static TO: Mutex<Option<Own>> = Mutex::new(None);

/// Locks the copy of standard error, for a fork to hold.
pub fn hold() -> Locked<'static, Option<Own>> {
    locks::lock(&TO)
}

/// Copies standard error, unless that was done. Called by the constructor, before the program can make something else of
/// descriptor 2, and again when the process joins: the program may have closed all descriptors that it did not know.
pub fn open() {
    let mut to = hold();
    if to.as_ref().is_some_and(Own::is_ours) || sys::is_internet_socket(libc::STDERR_FILENO) {
        return;
    }
    // SAFETY: borrowed for as long as it is copied.
    let copy = unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) }.try_clone_to_owned();
    // Where there is no standard error nobody listens.
    *to = copy.ok().and_then(|copy| Own::new(move_high(copy)).ok());
}

/// Notes in the table that the copy is ours.
pub fn keep() {
    if let Some(own) = hold().as_ref().filter(|own| own.is_ours()) {
        table::note(own.number(), true);
    }
}

/// The application wants a number for itself that may be the copy's.
pub fn vacate(fd: c_int) {
    if let Some(own) = hold().as_mut().filter(|own| own.number() == fd) {
        if own.make_way() {
            table::note(own.number(), true);
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
        let Some(to) = locks::try_lock(&TO) else { return };
        if let Some(own) = to.as_ref().filter(|own| own.is_ours()) {
            sys::write(own.number(), line.as_bytes());
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
