//! Network namespaces for unit tests. A namespace belongs to the thread that made it, and everything in
//! it goes when that thread and its descriptors end, so tests leave nothing behind and do not meet.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

/// Runs `test` in a thread with a network namespace of its own.
pub(crate) fn in_netns(test: impl FnOnce() + Send) {
    // SAFETY: geteuid takes no pointers and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    assert!(root, "this test makes a network namespace: run it as root");
    std::thread::scope(|s| {
        let thread = s.spawn(|| {
            unshare();
            test()
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Runs lines of `ip` in the namespace of this thread.
pub(crate) fn ip(script: &str) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("these tests need iproute2");
    child.stdin.take().unwrap().write_all(format!("{script}\n").as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ip: {script}");
}

/// The namespace of this thread and another one, joined by the pair `v0` (here) and `v1` (there).
pub(crate) struct Pair {
    here: File,
    there: File,
}

impl Pair {
    pub(crate) fn new() -> Pair {
        let here = current();
        unshare();
        let pair = Pair { here, there: current() };
        enter(&pair.here);
        let fd = format!("/proc/{}/fd/{}", std::process::id(), pair.there.as_raw_fd());
        ip(&format!("link add v0 type veth peer name v1 netns {fd}\nlink set lo up\nlink set v0 up"));
        pair.there(|| ip("link set lo up\nlink set v1 up"));
        pair
    }

    /// Runs `f` in the other namespace.
    pub(crate) fn there<T>(&self, f: impl FnOnce() -> T) -> T {
        enter(&self.there);
        let result = f();
        enter(&self.here);
        result
    }
}

fn current() -> File {
    File::open("/proc/thread-self/ns/net").unwrap()
}

fn unshare() {
    // SAFETY: takes no pointers; it changes the network namespace of this thread only.
    let rc = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
}

fn enter(namespace: &File) {
    // SAFETY: takes no pointers; the descriptor is open, and only this thread changes its namespace.
    let rc = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
}

/// Waits until `ready` holds; fails the test when it does not within ten seconds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut ready: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if ready() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{what} did not happen");
}
