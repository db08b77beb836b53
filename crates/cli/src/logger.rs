//! Logs of `tcpr run`: one line each to stderr, at the level in `TCPR_LOG` (default info). Under systemd the
//! priority goes in front, as journald takes it (sd-daemon(3)).

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

struct Stderr {
    journal: bool,
}

impl log::Log for Stderr {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = if self.journal {
            let priority = match record.level() {
                log::Level::Error => 3,
                log::Level::Warn => 4,
                log::Level::Info => 6,
                log::Level::Debug | log::Level::Trace => 7,
            };
            format!("<{priority}>{}\n", record.args())
        } else {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let (s, ms) = (now.as_secs() % 86400, now.subsec_millis());
            let level = record.level().as_str().to_lowercase();
            format!("{:02}:{:02}:{:02}.{ms:03} tcpr {level}: {}\n", s / 3600, s / 60 % 60, s % 60, record.args())
        };
        // A log that cannot be written has nowhere to say so.
        drop(std::io::stderr().write_all(line.as_bytes()));
    }

    fn flush(&self) {}
}

/// Turns logging on.
pub fn start() {
    let level = std::env::var("TCPR_LOG").ok().and_then(|l| l.parse().ok()).unwrap_or(log::LevelFilter::Info);
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    if log::set_boxed_logger(Box::new(Stderr { journal })).is_ok() {
        log::set_max_level(level);
    }
}
