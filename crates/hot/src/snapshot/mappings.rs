//! The mappings of a process.

use std::ops::Range;

use tcpr_session::trace::memory::LOG_ADDR;

use super::process::{number, read_file, skip};

/// The trace, the newest output, the memory of libtcpr, and what both sides need meanwhile. No mapping of the program lies there.
const OURS: Range<u64> = LOG_ADDR as u64..0x5500_0000_0000;
/// Longest name, with a zero behind it.
pub const NAME: usize = 200;

/// A mapping.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Region {
    pub start: u64,
    pub end: u64,
    pub offset: u64,
    pub protection: u32,
    pub shared: u32,
    /// Of the part of the file, if it is one.
    pub hash: u64,
    pub name: [u8; NAME],
}

impl Region {
    pub fn name(&self) -> &[u8] {
        until_zero(&self.name)
    }

    pub fn is_file(&self) -> bool {
        self.name[0] == b'/'
    }

    /// This member's own: it neither goes into a snapshot nor comes out of one.
    pub fn is_ours(&self, partner: &Range<u64>) -> bool {
        OURS.contains(&self.start) || partner.contains(&self.start)
    }

    /// The kernel's own: the same wherever the kernel is.
    pub fn is_kernels(&self) -> bool {
        self.name().starts_with(b"[v")
    }

    pub fn is_heap(&self) -> bool {
        self.name() == b"[heap]"
    }

    pub fn may(&self, protection: i32) -> bool {
        self.protection & protection as u32 != 0
    }

    pub fn is_same_as(&self, other: &Region) -> bool {
        let file = !self.is_file() || self.offset == other.offset;
        (self.start, self.end, self.protection, self.shared) == (other.start, other.end, other.protection, other.shared)
            && self.name() == other.name()
            && file
    }

    pub fn length(&self) -> u64 {
        self.end - self.start
    }

    pub fn overlaps(&self, range: &Range<u64>) -> bool {
        self.start < range.end && range.start < self.end
    }
}

/// What comes before the first zero.
pub fn until_zero(name: &[u8]) -> &[u8] {
    let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    &name[..end]
}

/// Reads the list of mappings; those that go over an end of `cut` are two. `None`: they are too many, or have too long names.
pub fn read_mappings(cut: &Range<u64>, buffer: &mut [u8], to: &mut [Region]) -> Option<usize> {
    let n = read_file(format_args!("/proc/self/maps"), buffer);
    if n == buffer.len() {
        return None;
    }
    let mut count = 0;
    for line in buffer[..n].split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let mut rest = parse(line)?;
        for end in [cut.start, cut.end, u64::MAX] {
            if rest.start < rest.end && end > rest.start {
                let part = Region { end: end.min(rest.end), ..rest };
                *to.get_mut(count)? = part;
                count += 1;
                rest.offset += if rest.is_file() { part.length() } else { 0 };
                rest.start = part.end;
            }
        }
    }
    Some(count)
}

fn parse(mut line: &[u8]) -> Option<Region> {
    let start = number(&mut line, 16);
    skip(&mut line, 1);
    let end = number(&mut line, 16);
    skip(&mut line, 1);
    let has = |at: usize, what: u8| line.get(at) == Some(&what);
    let flag = |at: usize, what: u8, flag: i32| if has(at, what) { flag as u32 } else { 0 };
    let protection = flag(0, b'r', libc::PROT_READ) | flag(1, b'w', libc::PROT_WRITE) | flag(2, b'x', libc::PROT_EXEC);
    let shared = u32::from(has(3, b's'));
    skip(&mut line, 5);
    let offset = number(&mut line, 16);
    let at = line.iter().position(|b| matches!(b, b'/' | b'[')).unwrap_or(line.len());
    let text = &line[at..];
    let mut name = [0; NAME];
    name.get_mut(..text.len())?.copy_from_slice(text);
    // Behind the name there is always a zero.
    (text.len() < NAME).then_some(Region { start, end, offset, protection, shared, hash: 0, name })
}
