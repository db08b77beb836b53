//! The log of `tcpr run`: one line for an event, to stderr, as much of it as `TCPR_LOG` says (without it: info). Under systemd
//! the priority goes in front, as journald takes it (sd-daemon(3)).
//!
//! A thread of its own writes them: whoever reads the other end of stderr, or does not, keeps no manager waiting.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tcpr_node::logging::{target, Levels, Line};
use tcpr_node::manager::Signals;

/// Most lines that wait to be written; more are lost, and counted.
const LINES: usize = 4096;
/// How long the end of the program waits for the last of them.
const LAST_WORDS: Duration = Duration::from_millis(200);

struct Stderr {
    levels: Levels,
    journal: bool,
    lines: SyncSender<String>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    waiting: AtomicUsize,
    lost: AtomicUsize,
}

fn write(lines: &Receiver<String>, counts: &Counts) {
    Signals::block_all();
    while let Ok(mut line) = lines.recv() {
        let lost = counts.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            line.push_str(&format!("tcpr: {lost} lines of the log were lost: nobody read them\n"));
        }
        // A log that cannot be written has nowhere to say so.
        drop(std::io::stderr().write_all(line.as_bytes()));
        counts.waiting.fetch_sub(1, Ordering::Release);
    }
}

impl log::Log for Stderr {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.levels.admit(record) {
            return;
        }
        let (target, said) = (target(record), Line(record));
        let line = if self.journal {
            let priority = match record.level() {
                log::Level::Error => 3,
                log::Level::Warn => 4,
                log::Level::Info => 6,
                log::Level::Debug | log::Level::Trace => 7,
            };
            format!("<{priority}>{target}: {said}\n")
        } else {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let (s, ms) = (now.as_secs() % 86400, now.subsec_millis());
            let level = record.level().as_str().to_lowercase();
            format!("{:02}:{:02}:{:02}.{ms:03} tcpr {level} {target}: {said}\n", s / 3600, s / 60 % 60, s % 60)
        };
        self.counts.waiting.fetch_add(1, Ordering::Relaxed);
        if self.lines.try_send(line).is_err() {
            self.counts.waiting.fetch_sub(1, Ordering::Relaxed);
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {
        let until = Instant::now() + LAST_WORDS;
        while self.counts.waiting.load(Ordering::Acquire) > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Turns logging on.
pub fn start() {
    let levels = Levels::parse(&std::env::var("TCPR_LOG").unwrap_or_default(), log::LevelFilter::Info);
    let most = levels.most();
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let (lines, waiting) = sync_channel(LINES);
    let counts = Arc::new(Counts::default());
    let of_thread = counts.clone();
    let writer = std::thread::Builder::new().name("tcpr-log".to_owned()).spawn(move || write(&waiting, &of_thread));
    if let Err(error) = writer {
        eprintln!("tcpr: no log: {error}");
    }
    if log::set_boxed_logger(Box::new(Stderr { levels, journal, lines, counts })).is_ok() {
        log::set_max_level(most);
    }
}

/// Writes what is left, unless that takes too long.
pub fn finish() {
    log::logger().flush();
}
