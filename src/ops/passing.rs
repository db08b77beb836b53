//! Descriptors that are passed from one process to another in messages (SCM_RIGHTS). The receiver then holds the connection,
//! too, and the sender's close does not end it.

use libc::{c_int, cmsghdr, msghdr};

use super::adopt::adopt;
use super::attach::arrive;
use crate::guard::inside;
use crate::memory::Checked;
use crate::table::{self, Entry};
use crate::{connections, manager};

/// Calls `each` with every descriptor that comes with a message.
///
/// # Safety
/// `message` names control data as for `sendmsg`, or as `recvmsg` leaves it.
unsafe fn descriptors_of(message: &msghdr, each: impl Fn(c_int)) {
    if message.msg_control.is_null() || message.msg_controllen < size_of::<cmsghdr>() {
        return;
    }
    // SAFETY: the caller vouches for the control data.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: null, or a header within the control data.
    while let Some(header) = unsafe { next.as_ref() } {
        // SAFETY: computes a length.
        let before = unsafe { libc::CMSG_LEN(0) } as usize;
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: the data of this header.
            let data = unsafe { libc::CMSG_DATA(next) }.cast::<c_int>();
            let end = message.msg_control as usize + message.msg_controllen;
            let room = end.saturating_sub(data as usize).min(header.cmsg_len.saturating_sub(before));
            for i in 0..room / size_of::<c_int>() {
                // SAFETY: within the data, and within the control data.
                each(unsafe { data.add(i).read_unaligned() });
            }
        }
        // SAFETY: a header of this message.
        next = unsafe { libc::CMSG_NXTHDR(message, next) };
    }
}

/// A message is about to be sent. `None`: the C library is to say what is wrong with it.
///
/// # Safety
/// What can be read at `message` is the caller's to send.
pub unsafe fn sending<'a>(message: *const msghdr, checked: &mut Checked) -> Option<&'a msghdr> {
    if message.is_null() || !checked.is_readable(message, size_of::<msghdr>()) {
        return None;
    }
    // SAFETY: it can be read, and is the caller's.
    let message = unsafe { &*message };
    let passes = |fd| {
        arrive(fd);
        if let Some(Entry::Connection { handle }) = table::get(fd) {
            inside((), || connections::passed(handle));
        }
    };
    if message.msg_controllen > 0 && manager::acts() {
        if !Checked::default().is_readable(message.msg_control, message.msg_controllen) {
            return None;
        }
        // SAFETY: the caller's message.
        unsafe { descriptors_of(message, passes) };
    }
    Some(message)
}

/// A message was received.
///
/// # Safety
/// As `recvmsg` leaves it.
pub unsafe fn received(message: &msghdr) {
    if message.msg_controllen > 0 && manager::concerns() {
        // SAFETY: the caller's message.
        unsafe { descriptors_of(message, |fd| inside((), || adopt(fd))) };
    }
}
