//! The copy of the leader: it writes the snapshot, and ends. Nothing of it is the leader's but what both share.

use std::ops::Range;
use std::sync::atomic::Ordering;

use tcpr_session::trace::memory::snapshot as told;

use super::format::{
    bytes_at, hash_of_file, kernel_and_processor, thread_pointer, Head, Places, Rights, Scratch, Words, MAGIC, PAGE,
};
use super::mappings::{read_mappings, Region, NAME};
use super::park;
use super::process::{line, number, number_in, read_file};
use super::state::{changed_surroundings, swap, ROBUST, THREADS};
use crate::memory::{self, header};
use crate::partner;
use crate::raw::{self, raw};

/// How long is waited between two looks whether there is room again.
const NAP_NS: i64 = 200_000;

/// This program cannot be snapshotted.
pub fn refuse(why: std::fmt::Arguments<'_>) -> ! {
    memory::say_why(why);
    stop(told::REFUSED)
}

/// It can be tried again at another wait.
pub fn try_again(why: std::fmt::Arguments<'_>) -> ! {
    memory::say_why(why);
    stop(told::ASKED)
}

fn stop(state: u32) -> ! {
    swap(told::WRITING, state);
    raw::exit_group(0)
}

/// Writes to where the manager reads. Ends where nobody wants the snapshot any more.
fn put(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        if header().snapshot.load(Ordering::Relaxed) != told::WRITING {
            raw::exit_group(0);
        }
        // SAFETY: this process has one thread, and nobody else writes a snapshot.
        match unsafe { memory::append_to_snapshot(bytes) } {
            None => refuse(format_args!("the memory of the snapshot makes no sense")),
            Some(0) if raw!(SYS_getppid) != LEADER.load(Ordering::Relaxed) => raw::exit_group(0),
            Some(0) => raw::sleep_ns(NAP_NS),
            Some(n) => bytes = &bytes[n..],
        }
    }
}

static LEADER: std::sync::atomic::AtomicI64 = std::sync::atomic::AtomicI64::new(0);

fn bytes_of<T>(value: &T) -> &[u8] {
    // SAFETY: plain data; what holes there are is copied as it is.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// Writes all. `stack`: where the registers of the first thread are.
pub fn write(stack: u64) -> ! {
    let leader = raw!(SYS_getppid);
    LEADER.store(leader, Ordering::Relaxed);
    let is_dumpable = raw!(SYS_prctl, libc::PR_GET_DUMPABLE) == 1;
    // A program that has given up its privileges may not look at itself otherwise. This is the copy's alone.
    raw!(SYS_prctl, libc::PR_SET_DUMPABLE, 1);
    // SAFETY: the leader has mapped it for this; the copy has its own.
    let s = unsafe { Scratch::again() };
    let descriptors = s.head.descriptors as usize;
    // The table of descriptors is the leader's until here. Nothing of it is ever the copy's.
    let apart = raw!(SYS_close_range, 0, u32::MAX, libc::CLOSE_RANGE_UNSHARE);
    if apart < 0 {
        refuse(format_args!("the kernel is too old to make a snapshot of a program (5.11 can): error {}", -apart));
    }
    // If memory runs out, the copy is to go, and not the program.
    let score = raw!(SYS_openat, libc::AT_FDCWD, c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY, 0);
    if score >= 0 {
        raw!(SYS_write, score, c"1000".as_ptr(), 4);
        raw!(SYS_close, score);
    }
    let partner = partner::range();
    let Some(count) = read_mappings(&partner, &mut s.text, &mut s.now) else {
        refuse(format_args!("it has too many mappings, or one with too long a name"))
    };
    check_threads(leader, &mut s.buffer);
    let kept = keep_mappings(s, count, &partner);
    s.head = head(s, count, (leader, stack), is_dumpable);
    s.head.regions = kept as u64;
    s.head.descriptors = descriptors as u64;
    s.head.partner = [partner.start, partner.end];
    let pages = raw!(SYS_openat, libc::AT_FDCWD, c"/proc/self/pagemap".as_ptr(), libc::O_RDONLY, 0);
    if pages < 0 {
        refuse(format_args!("the kernel does not tell which pages there are: error {}", -pages));
    }
    // What follows needs it no more, and lasts long.
    raw!(SYS_prctl, libc::PR_SET_DUMPABLE, i32::from(is_dumpable));
    put(bytes_of(&s.head));
    s.regions[..kept].iter().for_each(|region| put(bytes_of(region)));
    s.descriptors[..descriptors].iter().for_each(|one| put(bytes_of(one)));
    for region in &s.regions[..kept] {
        write_pages(pages as i32, region, &mut s.buffer);
    }
    swap(told::WRITING, told::DONE);
    raw::exit_group(0)
}

/// All threads are known and wait, and nothing is there that would be missing.
fn check_threads(leader: i64, buffer: &mut [u8]) {
    let tid = tid_at(leader);
    if park::has_woken(tid) {
        try_again(format_args!("a thread of it is just waking up"));
    }
    let Some(known) = park::all_wait() else { stop(told::ASKED) };
    let n = read_file(format_args!("/proc/{leader}/status"), &mut buffer[..8192]);
    let status = &buffer[..n];
    // Both before the copy was made and after it: one that was just ending may have held a lock of the C library's.
    let now = number_in(status, b"Threads:", 10);
    let threads = now.max(THREADS.load(Ordering::Relaxed));
    if threads != known {
        try_again(format_args!("it has {threads} threads, of which {known} wait where a snapshot can be made"));
    }
    if let Some(why) = changed_surroundings() {
        refuse(format_args!("{why}"));
    }
    if read_file(format_args!("/proc/{leader}/timers"), &mut buffer[..64]) > 0 {
        refuse(format_args!("it has timers of timer_create"));
    }
}

/// Where in its structure of a thread the C library keeps the thread's number: here that of the leader, whose copy this is.
fn tid_at(leader: i64) -> u64 {
    let fs = thread_pointer();
    // SAFETY: within the C library's structure, which is larger.
    let is_there = |at: &u64| unsafe { bytes_at(fs + at, 4) } == (leader as u32).to_ne_bytes();
    let tid = (0x2c0..0x320).step_by(4).find(is_there);
    tid.unwrap_or_else(|| refuse(format_args!("this C library is not known")))
}

/// Which mappings go into the snapshot.
fn keep_mappings(s: &mut Scratch, count: usize, partner: &Range<u64>) -> usize {
    let mut kept = 0;
    for region in s.now[..count].iter().filter(|r| !r.is_ours(partner) && !r.is_kernels()) {
        let mut region = *region;
        if region.shared != 0 && (region.may(libc::PROT_WRITE) || !region.is_file()) {
            refuse(format_args!("it shares memory: {}", Words(region.name())));
        }
        if region.is_file() {
            region.hash = hash_of_file(&region, &mut s.buffer);
            if region.hash == 0 {
                refuse(format_args!("a file that it has mapped is not there any more: {}", Words(region.name())));
            }
        }
        s.regions[kept] = region;
        kept += 1;
    }
    kept
}

fn head(s: &mut Scratch, count: usize, (leader, stack): (i64, u64), is_dumpable: bool) -> Head {
    let (vdso, processor) = kernel_and_processor(&s.now[..count], &mut s.buffer);
    let fs = thread_pointer();
    let (mut mask, mut alternate) = (0u64, [0u64; 3]);
    raw!(SYS_rt_sigprocmask, libc::SIG_BLOCK, 0, &raw mut mask, 8);
    raw!(SYS_sigaltstack, 0, alternate.as_mut_ptr());
    let mut actions = [[0u64; 4]; 65];
    for (signal, action) in actions.iter_mut().enumerate().skip(1) {
        raw!(SYS_rt_sigaction, signal, 0, action.as_mut_ptr(), 8);
    }
    let mut command = [0u8; 16];
    raw!(SYS_prctl, libc::PR_GET_NAME, command.as_mut_ptr());
    let mut directory = [0; NAME];
    if raw!(SYS_getcwd, directory.as_mut_ptr(), NAME - 1) <= 0 || directory[0] != b'/' {
        refuse(format_args!("its working directory is gone, or has too long a name"));
    }
    Head {
        magic: MAGIC,
        regions: 0,
        descriptors: 0,
        brk: raw!(SYS_brk, 0) as u64,
        fs,
        stack,
        tid: fs + tid_at(leader),
        robust: ROBUST.load(Ordering::Relaxed),
        vdso,
        processor,
        partner: [0; 2],
        mask,
        alternate,
        actions,
        rights: rights(leader, is_dumpable, &mut s.buffer),
        places: places(&mut s.buffer),
        command,
        directory,
    }
}

/// The copy's own, which are the leader's.
fn places(buffer: &mut [u8]) -> Places {
    let n = read_file(format_args!("/proc/self/stat"), &mut buffer[..4096]);
    // Behind the name, which may have anything in it: fields from the third one on (proc_pid_stat(5)).
    let behind = buffer[..n].iter().rposition(|b| *b == b')').map_or(n, |at| n.min(at + 2));
    let text = &buffer[behind..n];
    let field = |n: usize| text.split(|b| *b == b' ').nth(n - 3).map_or(0, |mut word| number(&mut word, 10));
    Places {
        code: [field(26), field(27)],
        data: [field(45), field(46)],
        heap: [field(47), raw!(SYS_brk, 0) as u64],
        stack: field(28),
        arguments: [field(48), field(49)],
        environment: [field(50), field(51)],
        auxiliary: 0,
        auxiliary_length: 0,
        file: -1,
    }
}

fn rights(leader: i64, is_dumpable: bool, buffer: &mut [u8]) -> Rights {
    let mut rights = Rights {
        users: [0; 3],
        groups: [0; 3],
        more_groups: [0; 64],
        more_groups_count: 0,
        capabilities: [[0; 3]; 2],
        no_new_privileges: raw!(SYS_prctl, libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) as u64,
        is_dumpable: u64::from(is_dumpable),
        umask: raw!(SYS_umask, 0o77) as u64,
        limits: [[0; 2]; 16],
        // As the kernel gives it: 20 less what it is.
        nice: raw!(SYS_getpriority, libc::PRIO_PROCESS, 0),
        leads_session: u64::from(raw!(SYS_getsid, leader) == leader),
    };
    let [user, effective, saved] = &mut rights.users;
    raw!(SYS_getresuid, &raw mut *user, &raw mut *effective, &raw mut *saved);
    let [group, effective, saved] = &mut rights.groups;
    raw!(SYS_getresgid, &raw mut *group, &raw mut *effective, &raw mut *saved);
    let groups = raw!(SYS_getgroups, rights.more_groups.len(), rights.more_groups.as_mut_ptr());
    if groups < 0 {
        refuse(format_args!("it is in too many groups"));
    }
    rights.more_groups_count = groups as u64;
    raw!(SYS_capget, CAPABILITIES.as_ptr(), rights.capabilities.as_mut_ptr());
    for (which, limit) in rights.limits.iter_mut().enumerate() {
        raw!(SYS_prlimit64, 0, which, 0, limit.as_mut_ptr());
    }
    let n = read_file(format_args!("/proc/{leader}/status"), &mut buffer[..8192]);
    if line(&buffer[..n], b"CapAmb:").is_some_and(|ambient| ambient.iter().any(|b| *b != b'0')) {
        refuse(format_args!("it has ambient capabilities"));
    }
    rights
}

/// Version 3, of the caller.
pub const CAPABILITIES: [u32; 2] = [0x2008_0522, 0];

/// Pages that are the process's own, and not zero: runs of them, each with its place and length before it.
fn write_pages(pagemap: i32, region: &Region, buffer: &mut [u8]) {
    const THERE: u64 = 3 << 62;
    const OF_A_FILE: u64 = 1 << 61;
    let mut at = region.start;
    let mut run: Option<u64> = None;
    let mut is_readable = region.may(libc::PROT_READ);
    let end_run = |run: &mut Option<u64>, at: u64| {
        if let Some(start) = run.take() {
            put(bytes_of(&[start, at - start]));
            // SAFETY: the copy's own memory, readable, and nobody changes it.
            put(unsafe { bytes_at(start, at - start) });
        }
    };
    while at < region.end && region.shared == 0 {
        let now = (((region.end - at) / PAGE) as usize).min(buffer.len() / 8);
        let got = raw!(SYS_pread64, pagemap, buffer.as_mut_ptr(), now * 8, at / PAGE * 8);
        if got <= 0 {
            refuse(format_args!("the kernel does not tell which pages there are: error {}", -got));
        }
        for entry in buffer[..got as usize].chunks_exact(8) {
            let entry = u64::from_ne_bytes(entry.try_into().unwrap_or_default());
            let is_own = entry & THERE != 0 && entry & OF_A_FILE == 0;
            if is_own && !std::mem::replace(&mut is_readable, true) {
                raw!(SYS_mprotect, region.start, region.length(), libc::PROT_READ);
            }
            // SAFETY: as above.
            let is_zero = || !region.is_file() && unsafe { bytes_at(at, PAGE) }.iter().all(|b| *b == 0);
            if is_own && !is_zero() {
                run.get_or_insert(at);
            } else {
                end_run(&mut run, at);
            }
            at += PAGE;
        }
    }
    end_run(&mut run, region.end);
    put(bytes_of(&[0u64, 0]));
}
