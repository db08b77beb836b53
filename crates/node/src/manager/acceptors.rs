//! Who accepts from a listener, and how, as `/proc` shows it.

use std::fs;

use tcpr_session::filter::Waits;

/// How many processes of the program are looked at, at the most.
const MOST_PROCESSES: usize = 256;

/// How a port is accepted from.
pub(super) struct Accepts {
    /// Somebody accepts without a hook: no library in a process that has the listener, or a queue of system calls (io_uring).
    /// It would take a doorbell for a client.
    pub(super) around_hooks: bool,
    /// How they wait for what comes.
    pub(super) waits: Waits,
}

/// Looks at the processes that have joined, at the program, and at the children of all of them: which of them has one of these
/// listeners, known by their inodes.
pub(super) fn look(listeners: &[u32], joined: &[u32], program: Option<u32>) -> Accepts {
    let mut processes: Vec<u32> = joined.iter().copied().chain(program).collect();
    let mut next = 0;
    while let Some(&pid) = processes.get(next).filter(|_| next < MOST_PROCESSES) {
        next += 1;
        for child in children(pid) {
            if !processes.contains(&child) {
                processes.push(child);
            }
        }
    }
    let mut accepts = Accepts { around_hooks: false, waits: Waits::Level };
    for pid in processes {
        let (mut listens, mut ring) = (false, false);
        for link in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(link.path()) else { continue };
            let target = target.to_string_lossy();
            let inode = target.strip_prefix("socket:[").and_then(|t| t.strip_suffix(']')).and_then(|n| n.parse().ok());
            listens |= inode.is_some_and(|inode: u32| listeners.contains(&inode));
            ring |= target == "anon_inode:[io_uring]";
            if target == "anon_inode:[eventpoll]" && waits_for_edges(pid, &link.file_name().to_string_lossy(), listeners) {
                accepts.waits = Waits::Edge;
            }
        }
        let hooks = || {
            joined.contains(&pid) || fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.contains("/libtcpr"))
        };
        accepts.around_hooks |= listens && (ring || !hooks());
    }
    accepts
}

/// Whether an epoll instance of a process waits edge-triggered for one of these listeners.
fn waits_for_edges(pid: u32, epoll: &str, listeners: &[u32]) -> bool {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{epoll}")).unwrap_or_default();
    info.lines().filter(|line| line.starts_with("tfd:")).any(|line| {
        // tfd: 5 events: 80000019 data: 5 pos:0 ino:1a2b sdev:9
        let words: Vec<&str> = line.split_whitespace().flat_map(|word| word.split_inclusive(':')).collect();
        let of = |name| words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1));
        let hexadecimal = |name| of(name).and_then(|value| u32::from_str_radix(value, 16).ok());
        let edge = hexadecimal("events:").is_some_and(|events| events & libc::EPOLLET as u32 != 0);
        edge && hexadecimal("ino:").is_some_and(|inode| listeners.contains(&inode))
    })
}

/// The children of all threads of a process.
fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}
