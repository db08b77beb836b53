//! Where this library's memory comes from.
//!
//! With a hot standby the program's memory must lie at the same addresses in both members, for a program may give its addresses
//! to the kernel and get them back (`epoll_event.data`), and order things by them. This library does something else in each
//! member, so its memory is elsewhere then: in an area of its own. Otherwise it is the C library's, as everybody's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, UnsafeCell};
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU8, Ordering};

use dlmalloc::{Allocator, Dlmalloc};
use tcpr_node::place;

use crate::{errno, sys};

#[global_allocator]
static HEAP: Heap = Heap;

/// Away from what the kernel gives a program that asks for no address, and from the trace, which may take 2 TiB of addresses.
const AREA: usize = 0x5400_0000_0000;
const END: usize = AREA + (1 << 39);
/// Behind it lies what this library maps otherwise.
const MAPPINGS: usize = END;

const UNKNOWN: u8 = 0;
const C_LIBRARY: u8 = 1;
const OWN: u8 = 2;

static WHOSE: AtomicU8 = AtomicU8::new(UNKNOWN);

struct Heap;

/// Pages of the area. They are taken one after another; what was given back is taken again when the end is reached.
struct Pages {
    next: Cell<usize>,
}

// SAFETY: memory is given once, and as much as is said.
unsafe impl Allocator for Pages {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        for tries in 0..1000_usize {
            if self.next.get() + size > END {
                self.next.set(AREA);
            }
            let at = self.next.get();
            // What is taken is stepped over ever faster.
            self.next.set(at + size.max(tries << 16));
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
            // SAFETY: replaces nothing.
            let got = unsafe { libc::mmap(at as *mut _, size, protection, flags, -1, 0) };
            if got as usize == at {
                return (got.cast(), size, 0);
            }
            if got != libc::MAP_FAILED {
                // A kernel that takes the address for a wish (before Linux 4.17).
                // SAFETY: nobody knows of this mapping.
                unsafe { libc::munmap(got, size) };
                break;
            }
        }
        (ptr::null_mut(), 0, 0)
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        ptr::null_mut()
    }

    fn free_part(&self, at: *mut u8, from: usize, to: usize) -> bool {
        // SAFETY: the allocator has this memory, and needs the end of it no more.
        unsafe { libc::munmap(at.add(to).cast(), from - to) == 0 }
    }

    fn free(&self, at: *mut u8, size: usize) -> bool {
        // SAFETY: the allocator has this memory, and needs it no more.
        unsafe { libc::munmap(at.cast(), size) == 0 }
    }

    fn can_release_part(&self, _: u32) -> bool {
        true
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        // The largest of the machines that Linux runs on: a multiple of all others.
        65536
    }
}

/// The allocator, and its lock: 0 free, 1 held, 2 held and waited for. A lock of the C library or of another crate may allocate.
struct Own {
    lock: AtomicU32,
    inner: UnsafeCell<Dlmalloc<Pages>>,
}

// SAFETY: `inner` is reached by `Own::with` alone, which holds the lock.
unsafe impl Sync for Own {}

static OWN_HEAP: Own =
    Own { lock: AtomicU32::new(0), inner: UnsafeCell::new(Dlmalloc::new_with_allocator(Pages { next: Cell::new(AREA) })) };

thread_local! {
    /// This thread holds the lock over a fork.
    static HOLDS: Cell<bool> = const { Cell::new(false) };
}

impl Own {
    fn acquire(&self) {
        let mut seen = self.lock.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).unwrap_or_else(|seen| seen);
        if seen == 0 {
            return;
        }
        let saved = errno::get();
        if seen != 2 {
            seen = self.lock.swap(2, Ordering::Acquire);
        }
        while seen != 0 {
            sys::futex_wait(&self.lock, 2);
            seen = self.lock.swap(2, Ordering::Acquire);
        }
        errno::set(saved);
    }

    fn release(&self) {
        if self.lock.swap(0, Ordering::Release) == 2 {
            sys::futex_wake_one(&self.lock);
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Dlmalloc<Pages>) -> T) -> T {
        self.acquire();
        // SAFETY: we hold the lock, and `f` does not come back here.
        let result = f(unsafe { &mut *self.inner.get() });
        self.release();
        result
    }
}

/// Before a fork: the child is to find the memory whole and its lock free. Nothing is allocated until the fork is over.
pub fn hold() {
    OWN_HEAP.acquire();
    HOLDS.set(true);
}

/// After a fork, in both processes.
pub fn release() {
    if HOLDS.replace(false) {
        OWN_HEAP.release();
    }
}

/// Has what this library maps lie apart from the program's memory, where that matters.
pub fn place_mappings() {
    if is_own() {
        place::begin_at(MAPPINGS);
    }
}

fn is_own() -> bool {
    match WHOSE.load(Ordering::Relaxed) {
        UNKNOWN => {
            // SAFETY: a C string; the result is not kept.
            let hot = unsafe { !libc::getenv(c"TCPR_STANDBY".as_ptr()).is_null() };
            WHOSE.store(if hot { OWN } else { C_LIBRARY }, Ordering::Relaxed);
            hot
        }
        whose => whose == OWN,
    }
}

fn is_in_area(at: *mut u8) -> bool {
    (AREA..END).contains(&(at as usize))
}

// SAFETY: both allocators keep this contract, and each gets back what it has given.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_own() {
            // SAFETY: the caller's layout.
            let at = OWN_HEAP.with(|heap| unsafe { heap.malloc(layout.size(), layout.align()) });
            if !at.is_null() {
                return at;
            }
        }
        // Where the area cannot be had: the memory of the two members may differ, but the program lives.
        // SAFETY: the caller's layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_own() {
            // SAFETY: the caller's layout.
            let at = OWN_HEAP.with(|heap| unsafe { heap.calloc(layout.size(), layout.align()) });
            if !at.is_null() {
                return at;
            }
        }
        // SAFETY: the caller's layout.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        match is_in_area(at) {
            // SAFETY: it was given for this layout.
            true => OWN_HEAP.with(|heap| unsafe { heap.free(at, layout.size(), layout.align()) }),
            // SAFETY: as above.
            false => unsafe { System.dealloc(at, layout) },
        }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !is_in_area(at) {
            // SAFETY: it was given for this layout.
            return unsafe { System.realloc(at, layout, size) };
        }
        // SAFETY: as above.
        let to = OWN_HEAP.with(|heap| unsafe { heap.realloc(at, layout.size(), layout.align(), size) });
        if !to.is_null() {
            return to;
        }
        // SAFETY: the caller keeps `GlobalAlloc`'s contract: this layout is valid.
        let to = unsafe { System.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !to.is_null() {
            // SAFETY: both have so many bytes, and are apart; the old one was given for this layout.
            unsafe {
                ptr::copy_nonoverlapping(at, to, layout.size().min(size));
                self.dealloc(at, layout);
            }
        }
        to
    }
}
