//! The few forms that calls have. Each hook is one of them, written once for both: recording and following.

use libc::iovec;
use tcpr_session::trace::Call;

use crate::activity::follows;
use crate::engine::{append, take};

/// Makes a call of the next library; the result is as the kernel says it.
macro_rules! live {
    ($call:expr) => {
        $crate::errno::kernel($crate::thread::outside(|| $call) as i64)
    };
}
pub(crate) use live;

/// The result is all that the program gets; the follower does not make the call.
pub fn told(call: Call, fd: i32, live: impl FnOnce() -> i64) -> i64 {
    if follows() {
        if let Some(taken) = take(call, fd) {
            let result = taken.result();
            taken.done();
            return result;
        }
    }
    let result = live();
    append(call, fd, result, &[]);
    result
}

/// The call fills a buffer as well. `given`: the part of it that counts, after the call.
///
/// # Safety
/// `buffer` has room for `room` bytes, and `given` says no more.
pub unsafe fn filled(
    call: Call,
    fd: i32,
    buffer: *mut u8,
    room: usize,
    live: impl FnOnce() -> i64,
    given: impl FnOnce(i64) -> usize,
) -> i64 {
    if follows() {
        if let Some(taken) = take(call, fd) {
            let result = taken.result();
            taken.check_room(room);
            // SAFETY: as the caller says.
            unsafe { std::ptr::copy_nonoverlapping(taken.data().as_ptr(), buffer, taken.data().len()) };
            taken.done();
            return result;
        }
    }
    let result = live();
    let given = if result < 0 || buffer.is_null() { 0 } else { given(result).min(room) };
    // SAFETY: the call has filled so much of the buffer.
    let bytes = unsafe { slice(buffer, given) };
    append(call, fd, result, if given == 0 { &[] } else { std::slice::from_ref(&bytes) });
    result
}

/// The call gives a structure where its result is no error.
///
/// # Safety
/// `to` is null or as for the call.
pub unsafe fn structure<T>(call: Call, fd: i32, to: *mut T, live: impl FnOnce() -> i64) -> i64 {
    let room = if to.is_null() { 0 } else { size_of::<T>() };
    // SAFETY: as the caller says.
    unsafe { filled(call, fd, to.cast(), room, live, |_| room) }
}

/// A slice of the program's, which may be null.
///
/// # Safety
/// `n` bytes at `at` are readable, if it is not null.
pub unsafe fn slice<'a>(at: *const u8, n: usize) -> &'a [u8] {
    if at.is_null() || n == 0 {
        return &[];
    }
    // SAFETY: as the caller says.
    unsafe { std::slice::from_raw_parts(at, n) }
}

/// The program's list of buffers.
///
/// # Safety
/// As for `readv`.
pub unsafe fn buffers<'a>(list: *const iovec, count: i64) -> &'a [iovec] {
    if list.is_null() || !(1..=1024).contains(&count) {
        return &[];
    }
    // SAFETY: as the caller says.
    unsafe { std::slice::from_raw_parts(list, count as usize) }
}

/// Room of all buffers together.
pub fn room(list: &[iovec]) -> usize {
    list.iter().fold(0, |sum: usize, one| sum.saturating_add(one.iov_len))
}

/// The pieces of the first `n` bytes in a list of buffers.
///
/// # Safety
/// So many bytes are there.
pub unsafe fn pieces(list: &[iovec], n: usize) -> impl Iterator<Item = &[u8]> {
    let mut left = n;
    list.iter().map_while(move |one| {
        let now = one.iov_len.min(left);
        left -= now;
        // SAFETY: as the caller says.
        (now > 0 || left > 0).then(|| unsafe { slice(one.iov_base.cast(), now) })
    })
}

/// Puts bytes into a list of buffers.
///
/// # Safety
/// The buffers are writable.
pub unsafe fn scatter(mut bytes: &[u8], list: &[iovec]) {
    for one in list {
        let (now, rest) = bytes.split_at(one.iov_len.min(bytes.len()));
        // SAFETY: as the caller says.
        unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), one.iov_base.cast(), now.len()) };
        bytes = rest;
    }
}

/// Appends a record of the first `n` bytes in a list of buffers, behind `before`.
///
/// # Safety
/// So many bytes are there.
pub unsafe fn append_pieces(call: Call, fd: i32, result: i64, before: &[&[u8]], list: &[iovec], n: usize) -> u64 {
    // SAFETY: as the caller says.
    let pieces = unsafe { pieces(list, n) };
    if let ([], [one]) = (before, list) {
        // SAFETY: as the caller says.
        let bytes = unsafe { slice(one.iov_base.cast(), n.min(one.iov_len)) };
        return append(call, fd, result, if bytes.is_empty() { &[] } else { std::slice::from_ref(&bytes) });
    }
    append_many(call, fd, result, before, pieces)
}

/// Where the list of slices needs its room on the stack.
#[inline(never)]
fn append_many<'a>(call: Call, fd: i32, result: i64, before: &[&'a [u8]], pieces: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut all: [&[u8]; 1032] = [&[]; 1032];
    let mut count = 0;
    for (to, from) in all.iter_mut().zip(before.iter().copied().chain(pieces)) {
        *to = from;
        count += 1;
    }
    append(call, fd, result, &all[..count])
}
