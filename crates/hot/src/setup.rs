//! What the program starts from, gathered before it does anything: the first record of a leader, and what a follower compares it
//! with. Members that are not alike would diverge later, at a place that tells nothing.
//!
//! No memory of the program's heap is used: it must lie alike in leader and follower.

use std::ffi::CStr;

use tcpr_session::trace::setup::{difference, is_compared, Item, Kind};
use tcpr_session::trace::{Call, Hash};

use crate::environment::variable;
use crate::memory::Text;
use crate::raw::raw;
use crate::{activity, engine};

/// Room for the list and for a file of `/proc`. What does not fit is not compared, on both members alike.
const ROOM: usize = 512 << 10;

/// Longer files are not compared.
const LONGEST: u64 = 1 << 30;

/// Limits that decide where memory lies and what calls do.
const LIMITS: [(&str, libc::__rlimit_resource_t); 6] = [
    ("stack", libc::RLIMIT_STACK),
    ("nofile", libc::RLIMIT_NOFILE),
    ("as", libc::RLIMIT_AS),
    ("data", libc::RLIMIT_DATA),
    ("fsize", libc::RLIMIT_FSIZE),
    ("memlock", libc::RLIMIT_MEMLOCK),
];

/// Tells in the trace what this program starts from, or compares it with what the leader's has started from.
pub fn compare() {
    let at = raw!(SYS_mmap, 0, 2 * ROOM, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
    if at < 0 {
        return activity::refuse("there is no memory to compare what the program starts from");
    }
    // SAFETY: just mapped, so many bytes of zeros, and nobody else's.
    let (list, scratch) = unsafe { std::slice::from_raw_parts_mut(at as *mut u8, 2 * ROOM) }.split_at_mut(ROOM);
    let mut list = List { bytes: list, len: 0 };
    list.gather(scratch);
    tell(&list.bytes[..list.len]);
    raw!(SYS_munmap, at, 2 * ROOM);
}

fn tell(here: &[u8]) {
    if activity::follows() {
        if let Some(taken) = engine::take(Call::Setup, -1) {
            if let Some(difference) = difference(taken.data(), here) {
                activity::diverge(format_args!("the members are not alike: {difference}"));
            }
            return taken.done();
        }
    }
    engine::append(Call::Setup, -1, 0, &[here]);
}

struct List<'a> {
    bytes: &'a mut [u8],
    len: usize,
}

impl List<'_> {
    fn push(&mut self, kind: Kind, name: &[u8], hash: u64, shown: &[u8]) {
        let item = Item { kind, name, hash, shown };
        self.len += item.encode(&mut self.bytes[self.len..]).unwrap_or(0);
    }

    fn push_text(&mut self, kind: Kind, name: &[u8], text: &[u8]) {
        self.push(kind, name, hash(text), text);
    }

    fn gather(&mut self, scratch: &mut [u8]) {
        let program = link(c"/proc/self/exe", scratch);
        let (program, rest) = scratch.split_at_mut(program);
        self.push_file(Kind::Program, program);
        for line in lines(read(c"/proc/self/maps", rest), b'\n') {
            if let Some(path) = code(line).filter(|path| *path != program) {
                if !self.has(Kind::Library, path) {
                    self.push_file(Kind::Library, path);
                }
            }
        }
        for (place, argument) in lines(read(c"/proc/self/cmdline", rest), 0).enumerate() {
            self.push_text(Kind::Argument, Text::of(format_args!("{place}")).bytes(), argument);
        }
        for variable in lines(read(c"/proc/self/environ", rest), 0) {
            let name = variable.split(|byte| *byte == b'=').next().unwrap_or_default();
            if is_compared(name) {
                // The value may be a secret.
                self.push(Kind::Variable, name, hash(variable), b"");
            }
        }
        let directory = link(c"/proc/self/cwd", rest);
        self.push_text(Kind::Directory, b"", &rest[..directory]);
        for (name, limit) in LIMITS {
            let mut both = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            raw!(SYS_prlimit64, 0, limit, 0, &raw mut both);
            let text = Text::of(format_args!("{} and {}", Limit(both.rlim_cur), Limit(both.rlim_max)));
            self.push_text(Kind::Limit, name.as_bytes(), text.bytes());
        }
        for path in variable(c"TCPR_STANDBY_FILES").map(CStr::to_bytes).into_iter().flat_map(|all| lines(all, b'\n')) {
            self.push_file(Kind::File, path);
        }
    }

    fn has(&self, kind: Kind, name: &[u8]) -> bool {
        tcpr_session::trace::setup::items(&self.bytes[..self.len]).any(|item| (item.kind, item.name) == (kind, name))
    }

    /// A file with all that is in it.
    fn push_file(&mut self, kind: Kind, path: &[u8]) {
        let mut name = [0u8; libc::PATH_MAX as usize];
        let known = name.get_mut(..path.len()).filter(|_| path.len() < libc::PATH_MAX as usize);
        let fd = match known {
            Some(room) => {
                room.copy_from_slice(path);
                raw!(SYS_openat, libc::AT_FDCWD, name.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK, 0)
            }
            None => i64::from(-libc::ENAMETOOLONG),
        };
        if fd < 0 {
            return self.push(kind, path, 0, Text::of(format_args!("cannot be read: error {}", -fd)).bytes());
        }
        let (mut bytes, mut hash, mut length) = ([0u8; 16384], Hash::new(), 0u64);
        let failed = loop {
            match raw!(SYS_read, fd, bytes.as_mut_ptr(), bytes.len()) {
                0 => break None,
                n if n < 0 => break Some(-n),
                n => {
                    hash.add(&bytes[..n as usize]);
                    length += n as u64;
                }
            }
            if length > LONGEST {
                break Some(libc::EFBIG.into());
            }
        };
        raw!(SYS_close, fd);
        match failed {
            None => self.push(kind, path, hash.finish(), Text::of(format_args!("{length} bytes")).bytes()),
            Some(error) => self.push(kind, path, 0, Text::of(format_args!("cannot be read: error {error}")).bytes()),
        }
    }
}

/// A limit in words.
struct Limit(libc::rlim_t);

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            libc::RLIM_INFINITY => f.write_str("unlimited"),
            limit => write!(f, "{limit}"),
        }
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hash = Hash::new();
    hash.add(bytes);
    hash.finish()
}

/// The pieces of a text, each ended by this byte.
fn lines(text: &[u8], end: u8) -> impl Iterator<Item = &[u8]> {
    text.split(move |byte| *byte == end).filter(|line| !line.is_empty())
}

/// The file of a line of `/proc/self/maps`, if the processor may execute it: proc(5).
fn code(line: &[u8]) -> Option<&[u8]> {
    let path = &line[line.iter().position(|byte| *byte == b'/')?..];
    let rights = line.split(|byte| *byte == b' ').nth(1)?;
    rights.contains(&b'x').then_some(path)
}

/// Reads a file, as far as there is room.
fn read<'a>(path: &CStr, room: &'a mut [u8]) -> &'a [u8] {
    let fd = raw!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC, 0);
    let mut len = 0;
    while fd >= 0 && len < room.len() {
        match raw!(SYS_read, fd, room[len..].as_mut_ptr(), room.len() - len) {
            n if n <= 0 => break,
            n => len += n as usize,
        }
    }
    if fd >= 0 {
        raw!(SYS_close, fd);
    }
    &room[..len]
}

/// Where a symbolic link leads to; its length.
fn link(path: &CStr, room: &mut [u8]) -> usize {
    raw!(SYS_readlinkat, libc::AT_FDCWD, path.as_ptr(), room.as_mut_ptr(), room.len()).max(0) as usize
}
