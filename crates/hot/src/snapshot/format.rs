//! What goes from the copy to the fresh process: a head, the mappings, the descriptors, and what is in the mappings. Both are the
//! same program with the same library: it is plain data.

use tcpr_session::trace::Hash;

use super::mappings::{Region, NAME};
use super::process;
use crate::raw::raw;

/// Behind the newest output of `tails`, and before the memory of libtcpr.
const SCRATCH: usize = 0x5380_0000_0000;
pub const MAGIC: u64 = u64::from_ne_bytes(*b"TCPRSNP2");
pub const MOST_MAPPINGS: usize = 65536;
pub const MOST_DESCRIPTORS: usize = 65536;
pub const PAGE: u64 = 4096;
/// What a descriptor is made of again.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// A path that is opened.
    File = 1,
    Pipe,
    SocketPair,
    Event,
    Timer,
    Epoll,
    /// A socket that stands for a connection.
    StandIn,
    Socket,
}

/// Options of sockets that have a number for a value.
pub const OPTIONS: [(i32, i32); 20] = [
    (libc::SOL_SOCKET, libc::SO_REUSEADDR),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_BROADCAST),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE),
    (libc::SOL_SOCKET, libc::SO_PRIORITY),
    (libc::SOL_SOCKET, libc::SO_PASSCRED),
    (libc::IPPROTO_IP, libc::IP_TOS),
    (libc::IPPROTO_IP, libc::IP_FREEBIND),
    (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
    (libc::IPPROTO_IP, libc::IP_PKTINFO),
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT),
];

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Descriptor {
    pub fd: i32,
    pub make: Make,
    pub flags: u32,
    pub cloexec: u32,
    /// Of a file.
    pub offset: u64,
    /// Which pipe or pair it is an end of.
    pub inode: u64,
    /// What else there is to know, kind by kind.
    pub numbers: [i64; 6],
    /// Those of a socket that it has; others are less than 0.
    pub options: [i32; OPTIONS.len()],
    pub length: u32,
    /// A path, or an address.
    pub name: [u8; NAME],
}

/// Who may do what.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Rights {
    pub users: [u32; 3],
    pub groups: [u32; 3],
    pub more_groups: [u32; 64],
    pub more_groups_count: u64,
    /// As `capget` tells them.
    pub capabilities: [[u32; 3]; 2],
    pub no_new_privileges: u64,
    pub is_dumpable: u64,
    pub umask: u64,
    pub limits: [[u64; 2]; 16],
    pub nice: i64,
    /// It leads a session of its own.
    pub leads_session: u64,
}

/// Where the kernel takes the parts of a program to be: it reads the command line there, for one (struct prctl_mm_map in
/// linux/prctl.h).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Places {
    pub code: [u64; 2],
    pub data: [u64; 2],
    pub heap: [u64; 2],
    pub stack: u64,
    pub arguments: [u64; 2],
    pub environment: [u64; 2],
    /// Neither the auxiliary vector nor the file is changed.
    pub auxiliary: u64,
    pub auxiliary_length: u32,
    pub file: i32,
}

/// What is known before anything is changed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Head {
    pub magic: u64,
    pub regions: u64,
    pub descriptors: u64,
    pub brk: u64,
    pub fs: u64,
    pub stack: u64,
    pub tid: u64,
    pub robust: u64,
    pub vdso: [u64; 3],
    pub processor: u64,
    pub partner: [u64; 2],
    pub mask: u64,
    pub alternate: [u64; 3],
    pub actions: [[u64; 4]; 65],
    pub rights: Rights,
    pub places: Places,
    pub command: [u8; 16],
    pub directory: [u8; NAME],
}

/// Memory that either side has while it is at work.
#[repr(C)]
pub struct Scratch {
    pub head: Head,
    pub fd: i32,
    pub manager: i32,
    pub count: usize,
    pub rseq: [u64; 2],
    pub buffer: [u8; 1 << 20],
    pub text: [u8; 16 << 20],
    pub stack: [u8; 1 << 17],
    pub regions: [Region; MOST_MAPPINGS],
    pub now: [Region; MOST_MAPPINGS],
    pub descriptors: [Descriptor; MOST_DESCRIPTORS],
}

impl Scratch {
    /// Takes the memory, of which nothing is used before it is written. `None`: there is none.
    pub fn map() -> Option<&'static mut Scratch> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let flags = flags | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;
        let at = raw!(SYS_mmap, SCRATCH, size_of::<Scratch>(), protection, flags, -1, 0);
        // SAFETY: fresh memory of this size, aligned; all zeroes is valid but for `make`, which is not read before it is written.
        (at == SCRATCH as i64).then(|| unsafe { &mut *(SCRATCH as *mut Scratch) })
    }

    /// The same memory, later.
    ///
    /// # Safety
    /// It is mapped, and nobody else has it.
    pub unsafe fn again() -> &'static mut Scratch {
        // SAFETY: as the caller says.
        unsafe { &mut *(SCRATCH as *mut Scratch) }
    }

    pub fn unmap() {
        raw!(SYS_munmap, SCRATCH, size_of::<Scratch>());
    }
}

/// Words for a message.
pub struct Words<'a>(pub &'a [u8]);

impl std::fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(std::str::from_utf8(self.0).unwrap_or("?"))
    }
}

/// Memory at an address that a list of mappings has named.
///
/// # Safety
/// It is mapped, and nobody else changes it.
pub unsafe fn bytes_at(at: u64, length: u64) -> &'static mut [u8] {
    // SAFETY: as the caller says.
    unsafe { std::slice::from_raw_parts_mut(at as *mut u8, length as usize) }
}

/// Of the file behind a mapping. 0: it cannot be read.
pub fn hash_of_file(region: &Region, buffer: &mut [u8]) -> u64 {
    let fd = raw!(SYS_openat, libc::AT_FDCWD, region.name.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC, 0);
    if fd < 0 {
        return 0;
    }
    let (mut hash, mut at, end) = (Hash::new(), region.offset, region.offset + region.length());
    while at < end {
        let now = buffer.len().min((end - at) as usize);
        let got = raw!(SYS_pread64, fd, buffer.as_mut_ptr(), now, at);
        if got <= 0 {
            break;
        }
        hash.add(&buffer[..got as usize]);
        at += got as u64;
    }
    raw!(SYS_close, fd);
    hash.finish().max(1)
}

/// The kernel's code that programs call, and what the processor can do: both are in the program's memory.
pub fn kernel_and_processor(regions: &[Region], buffer: &mut [u8]) -> ([u64; 3], u64) {
    let vdso = regions.iter().find(|r| r.name() == b"[vdso]").map_or([0; 3], |r| {
        let mut hash = Hash::new();
        // SAFETY: the kernel has mapped it for good.
        hash.add(unsafe { bytes_at(r.start, r.length()) });
        [r.start, r.end, hash.finish()]
    });
    let n = process::read_file(format_args!("/proc/cpuinfo"), &mut buffer[..64 << 10]);
    let flags = [&b"flags"[..], b"Features"].iter().find_map(|word| process::line(&buffer[..n], word));
    let mut hash = Hash::new();
    hash.add(flags.unwrap_or_default());
    (vdso, hash.finish())
}

/// Where the C library's structure of this thread is.
pub fn thread_pointer() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        const ARCH_GET_FS: i32 = 0x1003;
        let mut fs = 0u64;
        raw!(SYS_arch_prctl, ARCH_GET_FS, &raw mut fs);
        fs
    }
    // SAFETY: takes nothing.
    #[cfg(not(target_arch = "x86_64"))]
    unsafe {
        libc::pthread_self() as u64
    }
}
