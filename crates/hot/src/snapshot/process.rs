//! What the kernel tells of a process.

use std::ffi::CStr;

use crate::memory::Text;
use crate::raw::raw;

/// A number at the beginning of a text, which is shortened by it.
pub fn number(text: &mut &[u8], radix: u32) -> u64 {
    let mut value = 0u64;
    while let Some((digit, rest)) = text.split_first().and_then(|(b, rest)| Some((char::from(*b).to_digit(radix)?, rest))) {
        value = value.wrapping_mul(radix.into()).wrapping_add(digit.into());
        *text = rest;
    }
    value
}

/// Drops the first bytes of a text.
pub fn skip(text: &mut &[u8], n: usize) {
    *text = text.get(n..).unwrap_or_default();
}

/// What stands behind a word at the beginning of a line.
pub fn line<'a>(text: &'a [u8], word: &[u8]) -> Option<&'a [u8]> {
    text.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(word)).map(<[u8]>::trim_ascii_start)
}

/// The number that stands there; 0 if there is none.
pub fn number_in(text: &[u8], word: &[u8], radix: u32) -> u64 {
    line(text, word).map_or(0, |mut rest| number(&mut rest, radix))
}

/// Reads a file as far as there is room. Returns how much that was.
pub fn read_file(path: std::fmt::Arguments<'_>, to: &mut [u8]) -> usize {
    let path = Text::of(format_args!("{path}\0"));
    let Ok(path) = CStr::from_bytes_until_nul(path.bytes()) else { return 0 };
    let fd = raw!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC, 0);
    let mut n = 0;
    while fd >= 0 && n < to.len() {
        let got = raw!(SYS_read, fd, to[n..].as_mut_ptr(), to.len() - n);
        if got <= 0 {
            break;
        }
        n += got as usize;
    }
    raw!(SYS_close, fd);
    n
}

/// Reads where a link leads. Returns how long that is.
pub fn read_link(path: std::fmt::Arguments<'_>, to: &mut [u8]) -> usize {
    let path = Text::of(format_args!("{path}\0"));
    raw!(SYS_readlinkat, libc::AT_FDCWD, path.bytes().as_ptr(), to.as_mut_ptr(), to.len()).max(0) as usize
}
