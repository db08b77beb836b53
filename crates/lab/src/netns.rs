//! Named network namespaces, as `ip netns` keeps them (so that `ip netns exec NAME …` works on a lab).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::sys::{self, ctx};

/// Where named namespaces are.
pub(crate) const DIR: &str = "/run/netns";

pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// Runs a closure on a thread of its own inside a namespace; a panic goes on in the caller.
pub(crate) fn within<R: Send>(ns: BorrowedFd<'_>, f: impl FnOnce() -> R + Send) -> io::Result<R> {
    std::thread::scope(|s| {
        let run = move || sys::setns_net(ns).map(|()| f());
        match std::thread::Builder::new().name("lab-host".into()).spawn_scoped(s, run)?.join() {
            Ok(r) => r.map_err(ctx("setns")),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Makes /run/netns what `ip netns add` makes of it: a shared mount, so that a name removed here is gone
/// in every mount namespace. The lock is the one iproute2 takes.
fn prepare_dir() -> io::Result<()> {
    fs::create_dir_all(DIR)?;
    let dir = File::open(DIR)?;
    sys::flock(dir.as_fd(), true)?;
    let (none, target) = (Path::new("none"), Path::new(DIR));
    let shared = libc::MS_SHARED | libc::MS_REC;
    if sys::mount(none, target, shared).is_err() {
        sys::mount(target, target, libc::MS_BIND | libc::MS_REC)?;
        sys::mount(none, target, shared)?;
    }
    Ok(())
}

/// Makes a namespace with a name; the descriptor keeps it alive too.
pub(crate) fn create(name: &str) -> io::Result<OwnedFd> {
    static PREPARED: std::sync::Once = std::sync::Once::new();
    let mut prepared = Ok(());
    PREPARED.call_once(|| prepared = prepare_dir());
    prepared.map_err(ctx(DIR))?;

    let file = path(name);
    OpenOptions::new().write(true).create_new(true).mode(0o444).open(&file)?;
    let made = std::thread::scope(|s| {
        let t = s.spawn(|| -> io::Result<OwnedFd> {
            sys::unshare_net().map_err(ctx("a new network namespace"))?;
            let own = Path::new("/proc/thread-self/ns/net");
            sys::mount(own, &file, libc::MS_BIND)?;
            Ok(File::open(own)?.into())
        });
        t.join().unwrap_or_else(|_| Err(sys::other("the thread that makes a namespace panicked")))
    });
    if made.is_err() {
        remove(name);
    }
    made
}

/// Removes a name; the namespace goes when nobody uses it any more.
pub(crate) fn remove(name: &str) {
    let file = path(name);
    let _ = sys::umount_detach(&file);
    let _ = fs::remove_file(&file);
}

/// All names.
pub(crate) fn names() -> Vec<String> {
    let Ok(dir) = fs::read_dir(DIR) else { return Vec::new() };
    dir.flatten().filter_map(|e| e.file_name().into_string().ok()).collect()
}

/// The living processes whose main thread is in the namespace. A test process is not among them: only its
/// helper threads ever enter one.
pub(crate) fn pids(name: &str) -> Vec<i32> {
    // The inode numbers of namespaces are only unique on their file system, hence the device too. A name
    // that is not mounted (a leftover plain file) has the device of /run and matches no process.
    let Ok(ns) = fs::metadata(path(name)) else { return Vec::new() };
    let Ok(dir) = fs::read_dir("/proc") else { return Vec::new() };
    let own = std::process::id() as i32;
    dir.flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok())
        .filter(|&pid| {
            pid != own && fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|m| m.ino() == ns.ino() && m.dev() == ns.dev())
        })
        .collect()
}

/// Kills everything in a namespace, also what was started meanwhile.
pub(crate) fn kill_all(name: &str) {
    // On a busy machine a look at all processes takes its time, and servers make new ones meanwhile.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let pids = pids(name);
        if pids.is_empty() || Instant::now() > deadline {
            return;
        }
        for pid in pids {
            let _ = sys::kill(pid, libc::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
