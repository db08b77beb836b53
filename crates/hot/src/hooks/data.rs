//! Input and output.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::Ordering;

use libc::{iovec, mmsghdr, msghdr, off64_t, off_t, size_t, sockaddr, socklen_t, ssize_t, timespec};
use tcpr_session::trace::{Call, Hash};

use super::exported::hooks;
use crate::activity::follows;
use crate::descriptors::UNDER_WAY;
use crate::engine::{append, take};
use crate::forms::{append_pieces, buffers, live, pieces, room, scatter, slice};
use crate::raw::raw;
use crate::{between, descriptors, errno, signals, tails, thread};

// ---- Input

/// A connection that has carried bytes.
fn is_made(fd: c_int) {
    if descriptors::has(fd, UNDER_WAY) {
        descriptors::set_flag(fd, UNDER_WAY, false);
    }
}

fn note_read(fd: c_int, n: i64, flags: c_int) {
    if let Some(connection) = descriptors::connection(fd).filter(|_| n > 0 && flags & libc::MSG_PEEK == 0) {
        connection.read.fetch_add(n as u64, Ordering::Relaxed);
        is_made(fd);
    }
}

/// # Safety
/// As for `readv`.
unsafe fn input(fd: c_int, list: &[iovec], flags: c_int, live: impl FnOnce() -> i64) -> i64 {
    if follows() {
        if let Some(taken) = take(Call::Read, fd) {
            let result = taken.result();
            taken.check_room(room(list));
            // SAFETY: as the caller says.
            unsafe { scatter(taken.data(), list) };
            note_read(fd, result, flags);
            if result > 0 && flags & libc::MSG_PEEK == 0 {
                between::has_read(fd, taken.data());
            }
            taken.done();
            return result;
        }
    }
    let interrupted = flags & libc::MSG_DONTWAIT == 0 && signals::window(fd, libc::POLLIN);
    let result = if interrupted { -i64::from(libc::EINTR) } else { live() };
    note_read(fd, result, flags);
    // SAFETY: so much was read.
    unsafe { append_pieces(Call::Read, fd, result, &[], list, result.max(0) as usize) };
    result
}

/// # Safety
/// As for `recvmsg`.
unsafe fn input_message(fd: c_int, message: &mut msghdr, flags: c_int, live: impl FnOnce(*mut msghdr) -> i64) -> i64 {
    // SAFETY: as the caller says.
    let list = unsafe { buffers(message.msg_iov, message.msg_iovlen as i64) };
    if follows() {
        if let Some(taken) = take(Call::RecvMsg, fd) {
            let result = taken.result();
            // SAFETY: as the caller says.
            if result >= 0 && !unsafe { replay_message(message, list, taken.data()) } {
                taken.diverges_in(format_args!("has less room"));
            }
            note_read(fd, result, flags);
            let data = taken.data();
            // The bytes are at its end.
            if let Some(bytes) = data.len().checked_sub(result.max(0) as usize).map(|at| &data[at..]) {
                if result > 0 && flags & libc::MSG_PEEK == 0 {
                    between::has_read(fd, bytes);
                }
            }
            taken.done();
            return result;
        }
    }
    let interrupted = flags & libc::MSG_DONTWAIT == 0 && signals::window(fd, libc::POLLIN);
    let result = if interrupted { -i64::from(libc::EINTR) } else { live(message) };
    note_read(fd, result, flags);
    if result < 0 {
        append(Call::RecvMsg, fd, result, &[]);
        return result;
    }
    let name = if message.msg_name.is_null() { 0 } else { message.msg_namelen as usize };
    let control = if message.msg_control.is_null() { 0 } else { message.msg_controllen };
    let mut lengths = [0; 12];
    for (to, n) in lengths.chunks_exact_mut(4).zip([name as u32, control as u32, message.msg_flags as u32]) {
        to.copy_from_slice(&n.to_ne_bytes());
    }
    // SAFETY: so much was filled.
    unsafe {
        let (name, control) = (slice(message.msg_name.cast(), name), slice(message.msg_control.cast(), control));
        append_pieces(Call::RecvMsg, fd, result, &[&lengths, name, control], list, result as usize);
    }
    result
}

/// # Safety
/// The message is the program's, to be filled.
unsafe fn replay_message(message: &mut msghdr, list: &[iovec], data: &[u8]) -> bool {
    let Some((lengths, rest)) = data.split_first_chunk::<12>() else { return false };
    let word = |at: usize| lengths.get(at..at + 4).and_then(|w| w.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let Some((name, rest)) = rest.split_at_checked(word(0) as usize) else { return false };
    let Some((control, bytes)) = rest.split_at_checked(word(4) as usize) else { return false };
    let has_room = |to: *mut c_void, room: usize, n: usize| n == 0 || !to.is_null() && n <= room;
    if !has_room(message.msg_name, message.msg_namelen as usize, name.len())
        || !has_room(message.msg_control, message.msg_controllen, control.len())
        || bytes.len() > room(list)
    {
        return false;
    }
    // SAFETY: as the caller says; it fits.
    unsafe {
        std::ptr::copy_nonoverlapping(name.as_ptr(), message.msg_name.cast(), name.len());
        std::ptr::copy_nonoverlapping(control.as_ptr(), message.msg_control.cast(), control.len());
        scatter(bytes, list);
    }
    message.msg_namelen = name.len() as socklen_t;
    message.msg_controllen = control.len() as _;
    message.msg_flags = word(8) as c_int;
    true
}

// ---- Output

fn note_written(fd: c_int, n: i64) {
    if let Some(connection) = descriptors::connection(fd).filter(|_| n > 0) {
        connection.written.fetch_add(n as u64, Ordering::Relaxed);
        is_made(fd);
    }
}

/// # Safety
/// As for `writev`.
unsafe fn hash_of(list: &[iovec], n: usize) -> u64 {
    let mut hash = Hash::new();
    // SAFETY: as the caller says.
    unsafe { pieces(list, n) }.for_each(|piece| hash.add(piece));
    hash.finish()
}

/// # Safety
/// As for `writev`.
unsafe fn output(fd: c_int, list: &[iovec], live: impl FnOnce() -> i64) -> i64 {
    if follows() {
        if let Some(taken) = take(Call::Write, fd) {
            let result = taken.result();
            if result > 0 {
                // SAFETY: as the caller says.
                taken.check_output(unsafe { pieces(list, room(list)) });
                note_written(fd, result);
                // SAFETY: as the caller says.
                unsafe { pieces(list, result as usize) }.for_each(|piece| keep(fd, piece));
                // SAFETY: as the caller says.
                between::has_written(fd, unsafe { pieces(list, result as usize) });
            }
            taken.done();
            return result;
        }
    }
    let result = live();
    if result <= 0 {
        append(Call::Write, fd, result, &[]);
        return result;
    }
    note_written(fd, result);
    // SAFETY: so much was written.
    let hash = unsafe { hash_of(list, result as usize) };
    append(Call::Write, fd, result, &[&hash.to_ne_bytes()]);
    result
}

/// The follower keeps what its program has written to a protected connection.
fn keep(fd: c_int, bytes: &[u8]) {
    if let Some(serial) = descriptors::serial(fd) {
        tails::keep(serial, bytes);
    }
}

fn hash_of_file(fd: c_int, mut at: i64, n: i64, mut seen: impl FnMut(&[u8])) -> u64 {
    let mut hash = Hash::new();
    let mut bytes = [0u8; 16384];
    let mut left = n.max(0) as usize;
    while left > 0 {
        let got = raw!(SYS_pread64, fd, bytes.as_mut_ptr(), left.min(bytes.len()), at);
        let Some(got) = usize::try_from(got).ok().filter(|&got| got > 0) else { break };
        hash.add(&bytes[..got]);
        seen(&bytes[..got]);
        at += got as i64;
        left -= got;
    }
    hash.finish()
}

/// # Safety
/// As for `sendfile`.
unsafe fn output_file(fd: c_int, from: c_int, offset: *mut off64_t, live: impl FnOnce() -> i64) -> i64 {
    // SAFETY: as the caller says.
    let at = unsafe { offset.as_ref() }.copied().unwrap_or_else(|| raw!(SYS_lseek, from, 0, libc::SEEK_CUR));
    if follows() {
        if let Some(taken) = take(Call::SendFile, fd) {
            let result = taken.result();
            if result > 0 {
                if taken.data() != hash_of_file(from, at, result, |bytes| keep(fd, bytes)).to_ne_bytes() {
                    taken.diverges_in(format_args!("sends from a file with other bytes"));
                }
                note_written(fd, result);
                // SAFETY: as the caller says.
                match unsafe { offset.as_mut() } {
                    Some(offset) => *offset += result,
                    None => {
                        raw!(SYS_lseek, from, result, libc::SEEK_CUR);
                    }
                }
            }
            taken.done();
            return result;
        }
    }
    let result = live();
    if result <= 0 {
        append(Call::SendFile, fd, result, &[]);
        return result;
    }
    note_written(fd, result);
    append(Call::SendFile, fd, result, &[&hash_of_file(from, at, result, |_| ()).to_ne_bytes()]);
    result
}

fn one(buffer: *const c_void, n: size_t) -> [iovec; 1] {
    [iovec { iov_base: buffer.cast_mut(), iov_len: n }]
}

/// One message of several.
///
/// # Safety
/// As for `recvmsg`.
unsafe fn receive_one(fd: c_int, message: &mut msghdr, flags: c_int) -> ssize_t {
    // SAFETY: as the caller says.
    unsafe { recvmsg(fd, message, flags) }
}

hooks! {
    fn read(fd: c_int, buffer: *mut c_void, n: size_t) -> ssize_t {
        if !descriptors::is_traced(fd) {
            return thread::outside(|| next(fd, buffer, n));
        }
        errno::c(input(fd, &one(buffer, n), 0, || live!(next(fd, buffer, n)))) as ssize_t
    }

    fn eventfd_read(fd: c_int, value: *mut u64) -> c_int {
        // The C library's would go past our hook.
        if read(fd, value.cast(), size_of::<u64>()) == 8 { 0 } else { -1 }
    }

    fn eventfd_write(fd: c_int, value: u64) -> c_int {
        if write(fd, (&raw const value).cast(), size_of::<u64>()) == 8 { 0 } else { -1 }
    }

    fn __read_chk(fd: c_int, buffer: *mut c_void, n: size_t, size: size_t) -> ssize_t {
        if !descriptors::is_traced(fd) {
            return thread::outside(|| next(fd, buffer, n, size));
        }
        errno::c(input(fd, &one(buffer, n), 0, || live!(next(fd, buffer, n, size)))) as ssize_t
    }

    fn readv(fd: c_int, list: *const iovec, count: c_int) -> ssize_t {
        if !descriptors::is_traced(fd) {
            return thread::outside(|| next(fd, list, count));
        }
        errno::c(input(fd, buffers(list, count.into()), 0, || live!(next(fd, list, count)))) as ssize_t
    }

    fn recv(fd: c_int, buffer: *mut c_void, n: size_t, flags: c_int) -> ssize_t {
        if !descriptors::is_traced(fd) {
            return thread::outside(|| next(fd, buffer, n, flags));
        }
        errno::c(input(fd, &one(buffer, n), flags, || live!(next(fd, buffer, n, flags)))) as ssize_t
    }

    fn __recv_chk(fd: c_int, buffer: *mut c_void, n: size_t, size: size_t, flags: c_int) -> ssize_t {
        if !descriptors::is_traced(fd) {
            return thread::outside(|| next(fd, buffer, n, size, flags));
        }
        errno::c(input(fd, &one(buffer, n), flags, || live!(next(fd, buffer, n, size, flags)))) as ssize_t
    }

    fn recvfrom(fd: c_int, buffer: *mut c_void, n: size_t, flags: c_int, address: *mut sockaddr, length: *mut socklen_t) -> ssize_t {
        if !descriptors::is_traced(fd) {
            return thread::outside(|| next(fd, buffer, n, flags, address, length));
        }
        let mut list = one(buffer, n);
        if address.is_null() || length.is_null() {
            return errno::c(input(fd, &list, flags, || live!(next(fd, buffer, n, flags, address, length)))) as ssize_t;
        }
        let mut message: msghdr = std::mem::zeroed();
        message.msg_name = address.cast();
        message.msg_namelen = *length;
        message.msg_iov = list.as_mut_ptr();
        message.msg_iovlen = 1;
        let room = *length;
        let result = input_message(fd, &mut message, flags, |message| {
            let result = live!(next(fd, buffer, n, flags, address, length));
            if result >= 0 {
                (*message).msg_namelen = (*length).min(room);
            }
            result
        });
        if result >= 0 {
            *length = message.msg_namelen;
        }
        errno::c(result) as ssize_t
    }

    fn __recvfrom_chk(fd: c_int, buffer: *mut c_void, n: size_t, size: size_t, flags: c_int, address: *mut sockaddr, length: *mut socklen_t) -> ssize_t {
        if n > size {
            return next(fd, buffer, n, size, flags, address, length);
        }
        recvfrom(fd, buffer, n, flags, address, length)
    }

    fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
        let traced = descriptors::is_traced(fd);
        let Some(message) = message.as_mut().filter(|_| traced) else {
            return thread::outside(|| next(fd, message, flags));
        };
        errno::c(input_message(fd, message, flags, |message| live!(next(fd, message, flags)))) as ssize_t
    }

    fn recvmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int, timeout: *mut timespec) -> c_int {
        if !descriptors::is_traced(fd) || messages.is_null() {
            return thread::outside(|| next(fd, messages, count, flags, timeout));
        }
        // As if no more had come: the call may return fewer than asked for.
        let flags = flags & !libc::MSG_WAITFORONE;
        let mut done = 0;
        for message in std::slice::from_raw_parts_mut(messages, count as usize) {
            let n = receive_one(fd, &mut message.msg_hdr, if done == 0 { flags } else { flags | libc::MSG_DONTWAIT });
            if n < 0 {
                break;
            }
            message.msg_len = n as c_uint;
            done += 1;
        }
        if done == 0 && count > 0 { -1 } else { done }
    }

    fn write(fd: c_int, buffer: *const c_void, n: size_t) -> ssize_t {
        if !descriptors::is_traced(fd) {
            return thread::outside(|| next(fd, buffer, n));
        }
        errno::c(output(fd, &one(buffer, n), || live!(next(fd, buffer, n)))) as ssize_t
    }

    fn writev(fd: c_int, list: *const iovec, count: c_int) -> ssize_t {
        if !descriptors::is_traced(fd) {
            return thread::outside(|| next(fd, list, count));
        }
        errno::c(output(fd, buffers(list, count.into()), || live!(next(fd, list, count)))) as ssize_t
    }

    fn send(fd: c_int, buffer: *const c_void, n: size_t, flags: c_int) -> ssize_t {
        if !descriptors::is_traced(fd) {
            return thread::outside(|| next(fd, buffer, n, flags));
        }
        errno::c(output(fd, &one(buffer, n), || live!(next(fd, buffer, n, flags)))) as ssize_t
    }

    fn sendto(fd: c_int, buffer: *const c_void, n: size_t, flags: c_int, address: *const sockaddr, length: socklen_t) -> ssize_t {
        if !descriptors::is_traced(fd) {
            return thread::outside(|| next(fd, buffer, n, flags, address, length));
        }
        errno::c(output(fd, &one(buffer, n), || live!(next(fd, buffer, n, flags, address, length)))) as ssize_t
    }

    fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
        let traced = descriptors::is_traced(fd);
        let Some(parts) = message.as_ref().filter(|_| traced) else {
            return thread::outside(|| next(fd, message, flags));
        };
        errno::c(output(fd, buffers(parts.msg_iov, parts.msg_iovlen as i64), || live!(next(fd, message, flags)))) as ssize_t
    }

    fn sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int {
        if !descriptors::is_traced(fd) || messages.is_null() {
            return thread::outside(|| next(fd, messages, count, flags));
        }
        let mut done = 0;
        for message in std::slice::from_raw_parts_mut(messages, count as usize) {
            let n = sendmsg(fd, &raw const message.msg_hdr, flags);
            if n < 0 {
                break;
            }
            message.msg_len = n as c_uint;
            done += 1;
        }
        if done == 0 && count > 0 { -1 } else { done }
    }

    fn sendfile(fd: c_int, from: c_int, offset: *mut off_t, n: size_t) -> ssize_t {
        if !descriptors::is_traced(fd) {
            return thread::outside(|| next(fd, from, offset, n));
        }
        errno::c(output_file(fd, from, offset, || live!(next(fd, from, offset, n)))) as ssize_t
    }

    fn sendfile64(fd: c_int, from: c_int, offset: *mut off64_t, n: size_t) -> ssize_t {
        if !descriptors::is_traced(fd) {
            return thread::outside(|| next(fd, from, offset, n));
        }
        errno::c(output_file(fd, from, offset, || live!(next(fd, from, offset, n)))) as ssize_t
    }

    fn splice(from: c_int, from_at: *mut off64_t, to: c_int, to_at: *mut off64_t, n: size_t, flags: c_uint) -> ssize_t {
        if !descriptors::is_traced(from) && !descriptors::is_traced(to) {
            return thread::outside(|| next(from, from_at, to, to_at, n, flags));
        }
        // Its bytes are seen by nobody: programs that get this copy them.
        errno::set(libc::EINVAL);
        -1
    }
}
