//! Diagnostics: nothing, unless `TCPR_LOG` asks for them; then to standard error.

use std::fmt::Write;

use log::{LevelFilter, Log, Metadata, Record};

use crate::ffi;

struct ToStderr;

impl Log for ToStderr {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mut line = String::with_capacity(128);
        let level = record.level().as_str().to_ascii_lowercase();
        // Writing to a String does not fail.
        let _ = writeln!(line, "tcpr[{}] {level}: {}", std::process::id(), record.args());
        ffi::raw_write(libc::STDERR_FILENO, line.as_bytes());
    }

    fn flush(&self) {}
}

/// Starts logging at the level that `TCPR_LOG` names; without it also silences panics.
pub fn start(level: Option<&str>) {
    let Some(level) = level else {
        // A bug of ours must not show up in the output of somebody else's program.
        std::panic::set_hook(Box::new(|_| {}));
        return;
    };
    let level = match level {
        "error" => LevelFilter::Error,
        "info" => LevelFilter::Info,
        "debug" => LevelFilter::Debug,
        "trace" => LevelFilter::Trace,
        _ => LevelFilter::Warn,
    };
    std::panic::set_hook(Box::new(|info| log::error!("bug in libtcpr: {info}")));
    // A logger that is there already is as good.
    if log::set_logger(&ToStderr).is_ok() {
        log::set_max_level(level);
    }
}
