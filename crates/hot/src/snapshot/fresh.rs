//! The fresh process: before its own program begins it becomes what the snapshot is.

use std::sync::atomic::Ordering;

use super::copy::CAPABILITIES;
use super::format::{
    bytes_at, hash_of_file, kernel_and_processor, thread_pointer, Places, Rights, Scratch, Words, MAGIC, MOST_DESCRIPTORS,
    MOST_MAPPINGS,
};
use super::mappings::read_mappings;
use super::mappings::Region;
use super::park::{self, Offsets, RSEQ_SIGNATURE};
use super::state::{note_surroundings, FAULTS, TIMERS, TRIED, TRIES, WRITER};
use super::{remake, switch};
use crate::memory::{self, header};
use crate::raw::{self, raw};
use crate::{activity, descriptors, engine, environment, next, partner, processes, tails, thread};
use tcpr_session::trace::memory::{snapshot as told, state};

/// Becomes what the snapshot is that can be read from there. Returns only if that cannot be; why has been said.
pub fn become_snapshot(fd: i32) {
    if !switch::IS_KNOWN {
        return memory::say_why(format_args!("no snapshots are made on this processor"));
    }
    if let Some(s) = prepare(fd) {
        let top = s.stack.as_ptr_range().end as u64;
        // SAFETY: nobody comes back.
        unsafe { switch::tcpr_hot_call_on(top, replace) }
    }
}

/// After the memory has begun to change.
fn fail(why: std::fmt::Arguments<'_>) -> ! {
    memory::say_why(why);
    header().state.store(state::FULL, Ordering::Release);
    raw::exit_group(97)
}

fn get(fd: i32, to: &mut [u8]) -> bool {
    let mut n = 0;
    while n < to.len() {
        let got = raw!(SYS_read, fd, to[n..].as_mut_ptr(), (to.len() - n).min(1 << 30));
        if got <= 0 {
            return false;
        }
        n += got as usize;
    }
    true
}

fn bytes_in<T>(value: &mut T) -> &mut [u8] {
    // SAFETY: plain data that the same version of this library has written.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(value).cast(), size_of::<T>()) }
}

/// Reads what is known before anything changes, and looks whether it fits.
fn prepare(fd: i32) -> Option<&'static mut Scratch> {
    let no = |why: std::fmt::Arguments<'_>| {
        memory::say_why(why);
        None
    };
    let Some(s) = Scratch::map() else { return no(format_args!("there is no memory for the snapshot")) };
    if !get(fd, bytes_in(&mut s.head)) || s.head.magic != MAGIC {
        return no(format_args!("what came is no snapshot of this version"));
    }
    let (regions, fds) = (s.head.regions as usize, s.head.descriptors as usize);
    if regions > MOST_MAPPINGS || fds > MOST_DESCRIPTORS {
        return no(format_args!("what came is no snapshot"));
    }
    let whole = s.regions[..regions].iter_mut().all(|region| get(fd, bytes_in(region)))
        && s.descriptors[..fds].iter_mut().all(|one| get(fd, bytes_in(one)));
    if !whole {
        return no(format_args!("the snapshot ends early"));
    }
    partner::prepare_for_copy();
    let partner = partner::range();
    let Some(count) = read_mappings(&partner, &mut s.text, &mut s.now) else {
        return no(format_args!("there are too many mappings"));
    };
    s.count = count;
    let (vdso, processor) = kernel_and_processor(&s.now[..count], &mut s.buffer);
    if vdso != s.head.vdso {
        return no(format_args!("the members have different kernels: a snapshot of the program is of no use here"));
    }
    if processor != s.head.processor {
        return no(format_args!("the members have different processors: a snapshot of the program is of no use here"));
    }
    let fs = thread_pointer();
    if fs != s.head.fs {
        return no(format_args!("the program begins in another way: its thread is at {fs:x}, and not at {:x}", s.head.fs));
    }
    for region in s.regions[..regions].iter().filter(|r| r.is_file()) {
        if hash_of_file(region, &mut s.buffer) != region.hash {
            return no(format_args!("the members have different files: {}", Words(region.name())));
        }
    }
    // This code and what it calls must stay in its place, and what is this member's own must not be in the way.
    let code = [prepare as *const () as u64, libc::getauxval as *const () as u64];
    let stays = |code: &u64| {
        let here = s.now[..count].iter().find(|r| (r.start..r.end).contains(code));
        here.is_some_and(|here| s.regions[..regions].iter().any(|r| r.is_same_as(here)))
    };
    let in_the_way = s.regions[..regions].iter().any(|r| r.is_ours(&partner) || r.overlaps(&partner));
    if !code.iter().all(stays) || in_the_way || [partner.start, partner.end] != s.head.partner {
        return no(format_args!("the libraries lie in other places"));
    }
    if let Some(one) = s.descriptors[..fds].iter().find(|one| partner::owns(one.fd)) {
        return no(format_args!("tcpr itself has the program's descriptor {}", one.fd));
    }
    s.manager = environment::manager();
    let is_free = |n: i32| !partner::owns(n) && s.descriptors[..fds].iter().all(|one| one.fd != n);
    let free = (512..descriptors::MOST as i32).chain(3..512).find(|n| *n != fd && is_free(*n));
    let moved = free.map_or(-1, |n| raw!(SYS_dup3, fd, n, libc::O_CLOEXEC));
    if moved < 0 {
        return no(format_args!("there is no descriptor for the snapshot"));
    }
    s.fd = moved as i32;
    for fd in (0..descriptors::MOST as i32).filter(|fd| *fd != s.fd && !partner::owns(*fd)) {
        if fd > 2 || s.descriptors[..fds].iter().all(|one| one.fd != fd) {
            raw!(SYS_close, fd);
        }
    }
    s.rseq = end_rseq(fs);
    Some(s)
}

/// The kernel writes to the thread's memory whenever it moves the thread to another processor. That memory is about to go.
fn end_rseq(fs: u64) -> [u64; 2] {
    const UNREGISTER: i32 = 1;
    let offset = next::find_anywhere(c"__rseq_offset").cast::<i64>();
    // SAFETY: a constant of the C library's, if it is there.
    let Some(offset) = (unsafe { offset.as_ref() }) else { return [0; 2] };
    let at = fs.wrapping_add_signed(*offset);
    let length = (20..=256).find(|length| raw!(SYS_rseq, at, *length, UNREGISTER, RSEQ_SIGNATURE) == 0);
    [at, length.unwrap_or(0)]
}

/// On a stack of its own, with nothing but system calls.
extern "C" fn replace() -> ! {
    // SAFETY: `prepare` has mapped and filled it; nobody else runs.
    let s = unsafe { Scratch::again() };
    let (regions, now) = (&s.regions[..s.head.regions as usize], &s.now[..s.count]);
    let partner = s.head.partner[0]..s.head.partner[1];
    for here in now.iter().filter(|r| !r.is_ours(&partner) && !r.is_kernels()) {
        // The heap grows or shrinks with its end.
        if !here.is_heap() && !regions.iter().any(|r| r.is_same_as(here)) {
            raw!(SYS_munmap, here.start, here.length());
        }
    }
    if raw!(SYS_brk, s.head.brk) != s.head.brk as i64 {
        fail(format_args!("the heap of the snapshot cannot be made"));
    }
    for region in regions {
        let is_writable = region.may(libc::PROT_WRITE);
        if region.is_heap() || now.iter().any(|here| here.is_same_as(region)) {
            if is_writable && region.shared == 0 {
                raw!(SYS_madvise, region.start, region.length(), libc::MADV_DONTNEED);
            }
        } else {
            map_again(region);
        }
        if !is_writable && region.shared == 0 {
            raw!(SYS_mprotect, region.start, region.length(), region.protection as i32 | libc::PROT_READ | libc::PROT_WRITE);
        }
        get_pages(s.fd, region);
        if !is_writable && region.shared == 0 {
            raw!(SYS_mprotect, region.start, region.length(), region.protection);
        }
    }
    raw!(SYS_close, s.fd);
    let me = raw!(SYS_set_tid_address, s.head.tid) as u32;
    // SAFETY: within the C library's structure of this thread.
    unsafe { bytes_at(s.head.tid, 4) }.copy_from_slice(&me.to_ne_bytes());
    raw!(SYS_set_robust_list, s.head.robust, 24);
    park::begin_rseq(s.rseq[0], s.rseq[1]);
    // SAFETY: all is as it was there.
    unsafe { switch::tcpr_hot_thaw(s.head.stack) }
}

fn get_pages(fd: i32, region: &Region) {
    loop {
        let mut run = [0u64; 2];
        if !get(fd, bytes_in(&mut run)) {
            fail(format_args!("the snapshot ends early"));
        }
        let [at, length] = run;
        if length == 0 {
            return;
        }
        let is_within = at >= region.start && at <= region.end && length <= region.end - at;
        // SAFETY: mapped a moment ago, writable, and nobody else runs.
        if !is_within || !get(fd, unsafe { bytes_at(at, length) }) {
            fail(format_args!("the memory at {at:x} cannot be read from the snapshot"));
        }
    }
}

fn map_again(region: &Region) {
    let private = libc::MAP_PRIVATE | libc::MAP_FIXED;
    let (mut fd, mut offset, mut flags) = (-1, 0, private | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    if region.is_file() {
        fd = raw!(SYS_openat, libc::AT_FDCWD, region.name.as_ptr(), libc::O_RDONLY, 0);
        flags = if region.shared != 0 { libc::MAP_SHARED | libc::MAP_FIXED } else { private };
        offset = region.offset;
    } else if region.name() == b"[stack]" {
        flags |= libc::MAP_GROWSDOWN;
    }
    let at = raw!(SYS_mmap, region.start, region.length(), region.protection, flags, fd, offset);
    raw!(SYS_close, fd);
    if at != region.start as i64 {
        fail(format_args!("the memory at {:x} cannot be mapped: error {}", region.start, -at));
    }
}

/// In the fresh process, with the memory of the other one: what the kernel knew of it, and libtcpr.
pub fn thaw() {
    // SAFETY: it is mapped, and filled by `prepare`; the threads that the memory knows are yet to be made.
    let s = unsafe { Scratch::again() };
    let head = &s.head;
    WRITER.store(0, Ordering::Relaxed);
    // By the clock of another machine.
    TRIES.store(0, Ordering::Relaxed);
    TRIED.store(0, Ordering::Relaxed);
    note_surroundings();
    environment::set_manager(s.manager);
    partner::thread_begins();
    if raw!(SYS_chdir, head.directory.as_ptr()) < 0 {
        fail(format_args!("its working directory is not here"));
    }
    raw!(SYS_prctl, libc::PR_SET_NAME, head.command.as_ptr());
    // For `ps`. A kernel that cannot does without.
    raw!(SYS_prctl, libc::PR_SET_MM, libc::PR_SET_MM_MAP, &raw const head.places, size_of::<Places>());
    restore_signals(s);
    let all = &s.descriptors[..head.descriptors as usize];
    // The program may have raised its own limit. What it is in the end, it becomes with its rights.
    let mut most = [0u64; 2];
    raw!(SYS_prlimit64, 0, libc::RLIMIT_NOFILE, 0, most.as_mut_ptr());
    let enough = [head.rights.limits[libc::RLIMIT_NOFILE as usize][0].max(most[1]); 2];
    if raw!(SYS_prlimit64, 0, libc::RLIMIT_NOFILE, enough.as_ptr(), 0) < 0 {
        raw!(SYS_prlimit64, 0, libc::RLIMIT_NOFILE, [most[1]; 2].as_ptr(), 0);
    }
    if let Err((fd, error)) = remake::all(all) {
        fail(format_args!("its descriptor {fd} cannot be made: error {error}"));
    }
    if let Err((what, error)) = take_rights(&head.rights) {
        fail(format_args!("its {what} cannot be had: error {error}"));
    }
    processes::children_stay_behind();
    let fs = head.fs;
    let offsets =
        Offsets { tid: head.tid - fs, robust: head.robust - fs, rseq: s.rseq[0].wrapping_sub(fs), rseq_length: s.rseq[1] };
    Scratch::unmap();
    header().snapshot.store(told::NONE, Ordering::Relaxed);
    if !activity::is_offline() && !tails::begin() {
        fail(format_args!("the place in memory for the newest output is taken"));
    }
    engine::go_on_following();
    park::make_threads(&offsets);
}

fn restore_signals(s: &Scratch) {
    let head = &s.head;
    for (signal, action) in head.actions.iter().enumerate().skip(1) {
        raw!(SYS_rt_sigaction, signal, action.as_ptr(), 0, 8);
    }
    // SAFETY: see Faults.
    let faults = unsafe { &*FAULTS.0.get() };
    for (signal, action) in faults.iter().enumerate() {
        // libtcpr, which has them, has its own memory.
        if let Some(action) = action {
            // SAFETY: an action that the program had.
            thread::outside(|| unsafe { next::sigaction(signal as i32, action, std::ptr::null_mut()) });
        }
    }
    raw!(SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const head.mask, 0, 8);
    raw!(SYS_sigaltstack, head.alternate.as_ptr(), 0);
    for (which, timer) in TIMERS.iter().enumerate() {
        let values = std::array::from_fn::<i64, 4, _>(|i| timer[i].load(Ordering::Relaxed));
        raw!(SYS_setitimer, which, values.as_ptr(), 0);
    }
}

/// What the program may do, and no more. Past the C library, which would tell threads that are not made yet.
fn take_rights(rights: &Rights) -> Result<(), (&'static str, i64)> {
    let done = |what: &'static str, result: i64| if result < 0 { Err((what, -result)) } else { Ok(()) };
    raw!(SYS_umask, rights.umask);
    if rights.leads_session != 0 {
        // It may lead one already.
        raw!(SYS_setsid);
    }
    for (which, limit) in rights.limits.iter().enumerate() {
        let mut now = [0u64; 2];
        raw!(SYS_prlimit64, 0, which, 0, now.as_mut_ptr());
        if now != *limit {
            done("limits", raw!(SYS_prlimit64, 0, which, limit.as_ptr(), 0))?;
        }
    }
    if raw!(SYS_getpriority, libc::PRIO_PROCESS, 0) != rights.nice {
        done("priority", raw!(SYS_setpriority, libc::PRIO_PROCESS, 0, 20 - rights.nice))?;
    }
    let ([user, effective_user, saved_user], [group, effective_group, saved_group]) = (rights.users, rights.groups);
    let (mut users, mut groups) = ([0u32; 3], [0u32; 3]);
    let [a, b, c] = &mut users;
    raw!(SYS_getresuid, &raw mut *a, &raw mut *b, &raw mut *c);
    let [a, b, c] = &mut groups;
    raw!(SYS_getresgid, &raw mut *a, &raw mut *b, &raw mut *c);
    raw!(SYS_prctl, libc::PR_SET_KEEPCAPS, 1);
    if groups != rights.groups || users != rights.users {
        done("groups", raw!(SYS_setgroups, rights.more_groups_count, rights.more_groups.as_ptr()))?;
    }
    if groups != rights.groups {
        done("group", raw!(SYS_setresgid, group, effective_group, saved_group))?;
    }
    if users != rights.users {
        done("user", raw!(SYS_setresuid, user, effective_user, saved_user))?;
    }
    done("capabilities", raw!(SYS_capset, CAPABILITIES.as_ptr(), rights.capabilities.as_ptr()))?;
    raw!(SYS_prctl, libc::PR_SET_KEEPCAPS, 0);
    if rights.no_new_privileges == 1 {
        raw!(SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    }
    raw!(SYS_prctl, libc::PR_SET_DUMPABLE, rights.is_dumpable);
    Ok(())
}
