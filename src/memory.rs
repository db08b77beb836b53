//! Memory of the application. An address that it gives us may be a bad one: the C library's calls answer EFAULT then, where we
//! would be killed.

use libc::{c_int, iovec};

use crate::{errno, sys};

/// A range of addresses that was found good. Remembers it, so that neighbours cost no further system call.
#[derive(Clone, Copy, Default)]
pub struct Checked {
    from: usize,
    to: usize,
}

impl Checked {
    /// All addresses: the memory is our own.
    pub const OURS: Checked = Checked { from: 0, to: usize::MAX };

    /// Whether this memory can be read. An application that unmaps it at the same moment is killed by that, as with any race
    /// of its own.
    pub fn is_readable<T>(&mut self, address: *const T, bytes: usize) -> bool {
        const MADV_POPULATE_READ: c_int = 22;
        self.is_good(address.addr(), bytes, MADV_POPULATE_READ)
    }

    /// Whether this memory can be written. A kernel older than 5.14 does not say; then readable memory is taken for writable.
    pub fn is_writable<T>(address: *const T, bytes: usize) -> bool {
        const MADV_POPULATE_WRITE: c_int = 23;
        Checked::default().is_good(address.addr(), bytes, MADV_POPULATE_WRITE)
    }

    /// A vector of buffers that the application gave. `None`: the C library is to refuse it.
    ///
    /// # Safety
    /// What can be read at `iov` stays for as long as `'a`.
    pub unsafe fn vector<'a>(&mut self, iov: *const iovec, count: usize) -> Option<&'a [iovec]> {
        let known = count <= libc::UIO_MAXIOV as usize && self.is_readable(iov, count * size_of::<iovec>());
        // SAFETY: not null; it was found readable, and stays, says the caller.
        (known && !iov.is_null()).then(|| unsafe { std::slice::from_raw_parts(iov, count) })
    }

    fn is_good(&mut self, address: usize, bytes: usize, advice: c_int) -> bool {
        if bytes == 0 || address >= self.from && address.saturating_add(bytes) <= self.to {
            return true;
        }
        // SAFETY: asks for a constant.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let from = address & !(page - 1);
        let Some(to) = address.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(page)) else { return false };
        // The advice makes pages present, as reading or writing would, and changes nothing.
        let good =
            errno::kept(|| sys::advise(from, to - from, advice) || (from..to).step_by(page).all(|page| !sys::faults(page)));
        if good {
            (self.from, self.to) = (from, to);
        }
        good
    }
}
