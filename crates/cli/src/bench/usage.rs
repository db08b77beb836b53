//! What processes use, as /proc tells it.

use std::fs;

/// Processor time of a process and all its threads so far, in seconds.
pub fn cpu(pid: i32) -> f64 {
    // Nanoseconds; `stat` counts in hundredths of a second. A thread that ended is in neither.
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let ns = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    });
    ns.sum::<f64>() / 1e9
}

/// The memory of a process that is in use (`VmRSS`), in bytes.
pub fn resident(pid: i32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = text.lines().find_map(|l| l.strip_prefix("VmRSS:")).and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) * 1024.0
}

/// Bytes that have left by `eth0` of the calling thread's network namespace.
pub fn sent() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let line = text.lines().find_map(|l| l.trim().strip_prefix("eth0:"));
    line.and_then(|l| l.split_whitespace().nth(8)?.parse().ok()).unwrap_or(f64::NAN)
}

/// Memory of this machine that nobody uses, in bytes.
pub fn available() -> f64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib =
        text.lines().find_map(|l| l.strip_prefix("MemAvailable:")).and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) * 1024.0
}
