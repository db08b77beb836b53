//! What the kernel tells of an application's threads: a thread that sleeps has ended its turn, whatever put it to sleep.

use std::fs;

use tcpr_session::turn::Rest;

/// How a thread of a process rests; `thread` is its number as it knows it itself. `None`: there is no such thread.
pub(super) fn rest(pid: u32, thread: u32) -> Option<Rest> {
    let own = format!("/proc/{pid}/task/{thread}");
    let (task, status) = match fs::read_to_string(format!("{own}/status")) {
        Ok(status) if knows_itself_as(&status, thread) => (own, status),
        // It lives in a namespace of process numbers of its own.
        _ => fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten().find_map(|entry| {
            let task = format!("/proc/{pid}/task/{}", entry.file_name().to_str()?);
            let status = fs::read_to_string(format!("{task}/status")).ok()?;
            knows_itself_as(&status, thread).then_some((task, status))
        })?,
    };
    if !field(&status, "State:").is_some_and(|state| state.starts_with('S')) {
        return Some(Rest::Awake);
    }
    let Some(times) = field(&status, "voluntary_ctxt_switches:").and_then(|n| n.parse().ok()) else {
        return Some(Rest::Awake);
    };
    match fs::read_to_string(format!("{task}/syscall")) {
        // It has woken up meanwhile.
        Ok(call) if call.starts_with("running") => Some(Rest::Awake),
        Ok(call) => Some(Rest::Asleep { times, lock: waits_for_lock(&call) }),
        Err(_) => Some(Rest::Asleep { times, lock: true }),
    }
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn knows_itself_as(status: &str, thread: u32) -> bool {
    let numbers = field(status, "NSpid:").or_else(|| field(status, "Pid:"));
    numbers.and_then(|n| n.split_whitespace().last()).is_some_and(|n| n.parse() == Ok(thread))
}

/// Whether a call, as `/proc/PID/task/TID/syscall` shows it, waits for a lock that another thread holds.
fn waits_for_lock(call: &str) -> bool {
    let mut words = call.split_whitespace();
    let number: i64 = words.next().and_then(|n| n.parse().ok()).unwrap_or(-1);
    let mut argument = || words.next().and_then(|w| u64::from_str_radix(w.trim_start_matches("0x"), 16).ok()).unwrap_or(0);
    let (_, second, third) = (argument(), argument(), argument());
    match number {
        libc::SYS_flock => true,
        libc::SYS_fcntl => matches!(second as i32, libc::F_SETLKW | libc::F_OFD_SETLKW),
        libc::SYS_futex => {
            let command = second as i32 & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
            let value = third as u32;
            match command {
                // A mutex of the C library or of Rust has the value 2 while others wait for it; a lock for reading and
                // writing has that bit, too; a robust one the highest.
                libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => matches!(value, 2 | 3) || value & libc::FUTEX_WAITERS != 0,
                libc::FUTEX_LOCK_PI | libc::FUTEX_LOCK_PI2 => true,
                _ => false,
            }
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{mpsc, Barrier, Mutex};
    use std::time::Duration;

    /// How a thread rests that does this, in the end.
    fn resting(f: impl FnOnce() + Send) -> Rest {
        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // SAFETY: takes nothing.
                tell.send(unsafe { libc::gettid() } as u32).expect("heard");
                f();
            });
            let thread = told.recv().expect("its number");
            std::thread::sleep(Duration::from_millis(50));
            rest(std::process::id(), thread).expect("it lives")
        })
    }

    #[test]
    fn a_thread_that_sleeps_is_told_from_one_that_runs_and_one_that_waits_for_a_lock() {
        let nap = || std::thread::sleep(Duration::from_millis(150));
        assert!(matches!(resting(nap), Rest::Asleep { lock: false, .. }));
        let run = || {
            let start = std::time::Instant::now();
            while start.elapsed() < Duration::from_millis(150) {}
        };
        assert_eq!(resting(run), Rest::Awake);
        let (mutex, barrier) = (Mutex::new(()), Barrier::new(2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _held = mutex.lock();
                barrier.wait();
                std::thread::sleep(Duration::from_millis(200));
            });
            barrier.wait();
            assert!(matches!(resting(|| drop(mutex.lock())), Rest::Asleep { lock: true, .. }));
        });
        assert_eq!(rest(std::process::id(), u32::MAX), None);
    }

    #[test]
    fn locks_are_known_by_their_calls() {
        let futex = |args: &str| waits_for_lock(&format!("{} {args} 0x0 0x0 0x0 0x7ffe 0x7f00", libc::SYS_futex));
        assert!(futex("0x5581 0x80 0x2") && futex("0x5581 0x189 0x3") && futex("0x5581 0x86 0x0"));
        assert!(!futex("0x5581 0x189 0x0") && !futex("0x5581 0x80 0x1"));
        assert!(!waits_for_lock("0 0x3 0x7f54b5183000 0x2 0x7f54b5216b60 0xffffffff 0x0 0x7fff503a1268 0x7f54b52ff2ad"));
        assert!(!waits_for_lock("-1 0x0 0x0"));
    }
}
