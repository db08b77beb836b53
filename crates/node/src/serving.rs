//! Who serves the protected ports: processes that listen there, and why one of them has not joined the manager. A preloaded
//! library that did nothing (a static program, an emptied environment, a set-uid program) is found out by this alone: such a
//! program works, and would be lost at the next failover.
//!
//! It is a thread of its own, for to look into every process of a host may take a while.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{mpsc, Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::channel::client::Bypass;
use crate::rules::TOOL_MARK;
use crate::sockdiag::{Ours, SockDiag};

/// A listener whose process is not found is looked for again after this: all of the host is searched for it.
const SEARCH_AGAIN: Duration = Duration::from_secs(30);
/// After a look so many times as long passes until the next one, up to some time.
const SHARE: u32 = 20;
const LONGEST: Duration = Duration::from_secs(2);
/// Most bytes of a program's names of libraries, and of its dynamic section, that are looked at.
const LOOKED_AT: u64 = 1 << 20;
/// How many processes at the most stand between the program's first one and another.
const GENERATIONS: usize = 64;
/// What to do where no library can enter, or none did.
const WITHOUT: &str = "start it by `tcpr run --no-preload`";

/// What is to be looked at.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Processes that have joined.
    pub joined: Vec<u32>,
    /// Ports on which a process has said that it listens, one that has joined or one that has ended or executed another program since.
    pub told: Vec<u16>,
    /// The program runs without the library: nobody joins, and its listeners are asked for in the peers' names.
    pub unhooked: bool,
    /// A program that is not to run here now, and whether the library is to be put into it: could it be started?
    pub program: Option<(OsString, bool)>,
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Protected ports on which somebody listens. None: it cannot be seen.
    pub listening: Option<BTreeSet<u16>>,
    /// Processes that serve a protected port and have not joined, or the program's where none has and the reason is known:
    /// which, why, and what to do about it.
    pub strangers: Vec<String>,
    /// A process has the library, and a listener of which another one has told: it joins when it is used (the worker of a
    /// server that has put itself into the background, for instance).
    pub dormant: bool,
    /// Why the program that was asked about could not be started.
    pub cannot_start: Option<String>,
}

impl Seen {
    /// Somebody listens on a protected port, as far as it can be seen.
    #[must_use]
    pub fn has_listener(&self) -> bool {
        self.listening.as_ref().is_none_or(|ports| !ports.is_empty())
    }
}

/// The thread that looks; it ends with this.
pub struct Watch {
    ask: mpsc::Sender<Question>,
    seen: Arc<Mutex<Option<Seen>>>,
    asked: bool,
}

impl Watch {
    /// Looks at the ports of a service when asked.
    ///
    /// # Errors
    /// No thread, or no sock_diag.
    pub fn new(ours: Ours) -> io::Result<Watch> {
        let (ask, asked) = mpsc::channel();
        let seen = Arc::new(Mutex::new(None));
        let mut look = Look { ours, sockdiag: SockDiag::open()?, holders: HashMap::new(), in_vain: HashMap::new() };
        let told = seen.clone();
        std::thread::Builder::new().name("tcpr-serving".to_owned()).spawn(move || {
            Bypass::this_thread();
            while let Ok(question) = asked.recv() {
                let before = Instant::now();
                let mut seen = look.at(&question).unwrap_or_else(|error| {
                    log::debug!(error:%; "cannot see who serves the protected ports");
                    Seen::default()
                });
                seen.cannot_start = question.program.and_then(|(program, hooked)| why_not_started(&program, hooked));
                *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
                // On a host of many processes and descriptors most of the time is for others.
                std::thread::sleep((before.elapsed() * SHARE).min(LONGEST));
            }
        })?;
        Ok(Watch { ask, seen, asked: false })
    }

    /// What was seen since it was asked last, once.
    pub fn take(&mut self) -> Option<Seen> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.asked &= seen.is_none();
        seen
    }

    /// Asks, unless it still looks. Returns whether it did.
    pub fn ask(&mut self, question: Question) -> bool {
        let idle = !self.asked;
        if idle {
            self.asked = self.ask.send(question).is_ok();
        }
        idle
    }
}

struct Look {
    ours: Ours,
    sockdiag: SockDiag,
    /// Where a listener was seen last: process and descriptor, by inode.
    holders: HashMap<u32, (u32, u32)>,
    /// Listeners whose process was searched for in all of the host, and when.
    in_vain: HashMap<u32, Instant>,
}

impl Look {
    fn at(&mut self, question: &Question) -> io::Result<Seen> {
        let listeners = self.sockdiag.listeners(&self.ours)?;
        let listening = Some(listeners.iter().map(|l| l.local.port()).collect());
        let inodes: HashSet<u32> = listeners.iter().map(|l| l.inode).collect();
        self.holders.retain(|inode, _| inodes.contains(inode));
        self.in_vain.retain(|inode, since| inodes.contains(inode) && since.elapsed() < SEARCH_AGAIN);
        let joined: HashSet<u32> = question.joined.iter().copied().collect();
        if question.unhooked {
            self.accept_at_once(listeners.iter().map(|l| l.inode));
            return Ok(Seen { listening, ..Seen::default() });
        }
        let mut program = Vec::new();
        let mut seen = Seen { listening, ..Seen::default() };
        let mut named = HashSet::new();
        for listener in &listeners {
            let port = listener.local.port();
            if self.holder(listener.inode, question.joined.iter().copied()).is_some() {
                continue;
            }
            if program.is_empty() {
                program = descendants(std::process::id());
            }
            let holder = self.holder(listener.inode, program.iter().copied()).or_else(|| self.search(listener.inode));
            match holder {
                Some(pid) if question.told.contains(&port) && has_library(pid) => seen.dormant = true,
                Some(pid) if named.insert((port, pid)) => {
                    let (why, remedy) = not_joined(pid).unwrap_or_else(|| {
                        let why = "the library is in it and has not seen it listen: it makes its system calls itself, or has inherited the socket";
                        (why.to_owned(), WITHOUT.to_owned())
                    });
                    let text = format!("port {port} is served by {}, which has not joined: {why}; {remedy}", name(pid));
                    seen.strangers.push(text);
                }
                None if !question.told.contains(&port) => {
                    seen.strangers
                        .push(format!("port {port} is served by a process that has not joined, and cannot be looked at"));
                }
                _ => {}
            }
        }
        if joined.is_empty() && seen.strangers.is_empty() && !seen.dormant {
            // Those of a wrapper come before what it has started.
            for pid in descendants(std::process::id()).into_iter().rev().filter(|pid| !is_of_the_manager(*pid)) {
                if let Some((why, remedy)) = not_joined(pid) {
                    seen.strangers.push(format!("{} has not joined: {why}; {remedy}", name(pid)));
                    break;
                }
            }
        }
        Ok(seen)
    }

    /// A listener that waits for data (TCP_DEFER_ACCEPT) would not accept the connections of peers that say nothing, when they are
    /// taken back. With the library in the program, that sees to it.
    fn accept_at_once(&mut self, listeners: impl Iterator<Item = u32>) {
        let program = descendants(std::process::id());
        for inode in listeners {
            let Some(pid) = self.holder(inode, program.iter().copied()).or_else(|| self.search(inode)) else { continue };
            let Some((_, fd)) = self.holders.get(&inode) else { continue };
            match no_longer_defers(pid, *fd) {
                Ok(false) => {}
                Ok(true) => log::info!(of:% = name(pid); "a listener accepts at once from now on (TCP_DEFER_ACCEPT is off)"),
                Err(error) => log::debug!(of:% = name(pid), error:%; "cannot look at TCP_DEFER_ACCEPT"),
            }
        }
    }

    /// Which of these processes has the socket.
    fn holder(&mut self, inode: u32, mut among: impl Iterator<Item = u32> + Clone) -> Option<u32> {
        if let Some((pid, fd)) = self.holders.get(&inode).copied() {
            if among.clone().any(|p| p == pid) && socket_of(pid, fd) == Some(inode) {
                return Some(pid);
            }
        }
        among.find_map(|pid| {
            let fd = descriptors(pid).find(|fd| socket_of(pid, *fd) == Some(inode))?;
            self.holders.insert(inode, (pid, fd));
            Some(pid)
        })
    }

    /// The same of all processes of this host.
    fn search(&mut self, inode: u32) -> Option<u32> {
        if self.in_vain.contains_key(&inode) {
            return None;
        }
        let all: Vec<u32> = numbers("/proc").collect();
        let found = self.holder(inode, all.into_iter());
        if found.is_none() {
            self.in_vain.insert(inode, Instant::now());
        }
        found
    }
}

/// Turns TCP_DEFER_ACCEPT off on another process's listener. Returns whether it was on.
fn no_longer_defers(pid: u32, fd: u32) -> io::Result<bool> {
    let own = |fd: libc::c_long| match libc::c_int::try_from(fd) {
        // SAFETY: a descriptor just made, owned by nobody else.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: no pointers.
    let process = own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: no pointers.
    let socket = own(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })?;
    let mut seconds: libc::c_int = 0;
    let mut length = size_of_val(&seconds) as libc::socklen_t;
    let (tcp, defer) = (libc::SOL_TCP, libc::TCP_DEFER_ACCEPT);
    // SAFETY: value and length are live, and the length is that of the value.
    if unsafe { libc::getsockopt(socket.as_raw_fd(), tcp, defer, (&raw mut seconds).cast(), &raw mut length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    if seconds == 0 {
        return Ok(false);
    }
    let off: libc::c_int = 0;
    // SAFETY: the pointer and the length are those of `off`, which lives through the call.
    if unsafe { libc::setsockopt(socket.as_raw_fd(), tcp, defer, (&raw const off).cast(), length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(true)
}

/// The names in a directory that are numbers.
fn numbers(directory: impl AsRef<Path>) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn descriptors(pid: u32) -> impl Iterator<Item = u32> {
    numbers(format!("/proc/{pid}/fd"))
}

/// The inode of the socket that this descriptor is.
fn socket_of(pid: u32, fd: u32) -> Option<u32> {
    let target = fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Parents first. Processes that are over are not among them.
fn descendants(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = numbers("/proc").filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let of = found[at];
        found.extend(parents.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid));
        at += 1;
    }
    found.remove(0);
    found
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may hold anything; the fields follow its last parenthesis.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(parent)
}

/// Whether a process is this one, or was started by it or by one of its descendants.
pub fn is_descendant(pid: u32, of: u32) -> bool {
    std::iter::successors(Some(pid), |pid| parent(*pid)).take(GENERATIONS).any(|pid| pid == of)
}

/// The manager has started it for itself.
fn is_of_the_manager(pid: u32) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|b| *b == 0).any(|v| v.strip_prefix(TOOL_MARK.as_bytes()).is_some_and(|v| v.starts_with(b"=")))
}

fn name(pid: u32) -> String {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command: Vec<String> = command.split(|b| *b == 0).take(3).map(|a| String::from_utf8_lossy(a).into_owned()).collect();
    let short: String = command.join(" ").trim().chars().filter(|c| !c.is_control()).take(80).collect();
    format!("process {pid} ({short})")
}

/// Why the library is not in this process, and what to do; None: it is, or nothing speaks against it.
fn not_joined(pid: u32) -> Option<(String, String)> {
    let exe = PathBuf::from(format!("/proc/{pid}/exe"));
    if let Some(why) = why_no_library(&exe) {
        return Some((why, WITHOUT.to_owned()));
    }
    if is_secure(pid) {
        let why = "it is set-uid or set-gid, or has capabilities of its file, and the loader preloads nothing for it";
        return Some((why.to_owned(), WITHOUT.to_owned()));
    }
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = |name: &str| {
        let found = environment.split(|b| *b == 0).find_map(|v| v.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        found.map(|v| String::from_utf8_lossy(v).into_owned())
    };
    let or = |what: &str| format!("{what}, or {WITHOUT}");
    let preload = value("LD_PRELOAD").unwrap_or_default();
    if preload.is_empty() {
        let why = "its environment has no LD_PRELOAD: what started it (env -i, sudo, su, a wrapper) has emptied it";
        return Some((why.to_owned(), or("have LD_PRELOAD and TCPR_* passed on")));
    }
    if !preload.contains("libtcpr") {
        let why = format!("its LD_PRELOAD is \"{preload:.100}\": what started it has replaced that of tcpr run");
        return Some((why, or("have the wrapper add to LD_PRELOAD")));
    }
    if !has_library(pid) {
        let why = format!("the loader has not taken \"{preload:.100}\": it cannot be read there");
        return Some((why, or("make the file readable for it (chroot, user, mounts)")));
    }
    if value("TCPR_TOKEN").is_none() || value("TCPR_SERVICE").is_none() {
        let why = "its environment has LD_PRELOAD and no TCPR_TOKEN: what started it has emptied it";
        return Some((why.to_owned(), or("have TCPR_* passed on")));
    }
    None
}

/// Also where that cannot be known.
fn has_library(pid: u32) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.is_empty() || maps.contains("libtcpr")
}

/// The kernel has told the process's loader to take nothing from its environment (AT_SECURE).
fn is_secure(pid: u32) -> bool {
    const AT_SECURE: usize = 23;
    let words = fs::read(format!("/proc/{pid}/auxv")).unwrap_or_default();
    let word = |bytes: &[u8]| usize::from_ne_bytes(bytes.try_into().unwrap_or_default());
    let size = size_of::<usize>();
    words.chunks_exact(2 * size).any(|pair| word(&pair[..size]) == AT_SECURE && word(&pair[size..]) == 1)
}

/// Why the library of tcpr cannot be preloaded into this program; None: nothing is known that speaks against it. `program`: as it is
/// started, looked for in PATH.
#[must_use]
pub fn why_not(program: &OsStr) -> Option<String> {
    why_no_library(&found(program)?)
}

/// The file of a program that is given as it is started: looked for in PATH.
#[must_use]
pub fn found(program: &OsStr) -> Option<PathBuf> {
    let path = PathBuf::from(program);
    if path.components().count() > 1 {
        return Some(path).filter(|path| can_run(path));
    }
    let places = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&places).map(|dir| dir.join(&path)).find(|path| can_run(path))
}

fn can_run(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// Why a program that is to be started when its member becomes master would not run.
fn why_not_started(program: &OsStr, hooked: bool) -> Option<String> {
    match found(program) {
        None => Some(format!("the program {} is not there, or not executable, and would not be started", program.display())),
        Some(_) if hooked => advice(program).map(|advice| format!("{}: {advice}", program.display())),
        Some(_) => None,
    }
}

/// The same with what can be done about it.
#[must_use]
pub fn advice(program: &OsStr) -> Option<String> {
    why_not(program).map(|why| format!("{why}; {WITHOUT}"))
}

fn why_no_library(program: &Path) -> Option<String> {
    let file = File::open(program).ok()?;
    let elf = Elf::of(&file)?;
    if elf.wide != (size_of::<usize>() == 8) {
        let bits = if elf.wide { 64 } else { 32 };
        return Some(format!("it is a {bits}-bit program, and the library is not"));
    }
    let Some(loader) = &elf.loader else {
        return Some("it is linked statically, and has no loader that preloads libraries".to_owned());
    };
    if loader.contains("ld-musl") {
        return Some(format!("its C library is musl ({loader}), and the library is for glibc"));
    }
    if elf.needs(&file, &["libasan.so", "libclang_rt.asan"]) {
        let why = "it is built with AddressSanitizer, whose library ends a program that has another one preloaded before it";
        return Some(format!("{why} (ASAN_OPTIONS=verify_asan_link_order=0, or -static-libasan, helps, too)"));
    }
    None
}

/// What the loaders see of a program.
struct Elf {
    wide: bool,
    loader: Option<String>,
    /// Where the parts of the file are: in memory, in the file, length.
    parts: Vec<(u64, u64, u64)>,
    /// The dynamic section: place in the file, length.
    dynamic: Option<(u64, u64)>,
}

impl Elf {
    fn of(file: &File) -> Option<Elf> {
        let mut head = [0; 64];
        file.read_exact_at(&mut head, 0).ok()?;
        // In this machine's order of bytes, or it would not run here.
        if !head.starts_with(b"\x7fELF") || !matches!(head[4], 1 | 2) || (head[5] == 1) != cfg!(target_endian = "little") {
            return None;
        }
        let wide = head[4] == 2;
        let (headers, size, count) = if wide {
            (u64_at(&head, 32), u16_at(&head, 54), u16_at(&head, 56))
        } else {
            (u64::from(u32_at(&head, 28)), u16_at(&head, 42), u16_at(&head, 44))
        };
        let mut elf = Elf { wide, loader: None, parts: Vec::new(), dynamic: None };
        for i in 0..u64::from(count) {
            let mut header = [0; 56];
            let used = if wide { 56 } else { 32 };
            file.read_exact_at(&mut header[..used], headers.checked_add(i * u64::from(size))?).ok()?;
            let word = |wide_at, narrow_at| if wide { u64_at(&header, wide_at) } else { u64::from(u32_at(&header, narrow_at)) };
            let (at, memory, length) = (word(8, 4), word(16, 8), word(32, 16));
            const PT_LOAD: u32 = 1;
            const PT_DYNAMIC: u32 = 2;
            const PT_INTERP: u32 = 3;
            match u32_at(&header, 0) {
                PT_LOAD => elf.parts.push((memory, at, length)),
                PT_DYNAMIC => elf.dynamic = Some((at, length)),
                PT_INTERP => {
                    let mut path = vec![0; length.min(4096) as usize];
                    file.read_exact_at(&mut path, at).ok()?;
                    elf.loader = Some(String::from_utf8_lossy(&path).trim_end_matches('\0').to_owned());
                }
                _ => {}
            }
        }
        Some(elf)
    }

    /// Whether the program needs one of these libraries. (Of this machine's width, which the others are told apart by.)
    fn needs(&self, file: &File, libraries: &[&str]) -> bool {
        const DT_NEEDED: u64 = 1;
        const DT_STRTAB: u64 = 5;
        const DT_STRSZ: u64 = 10;
        let read = |at: u64, length: u64| {
            let mut bytes = vec![0; length.min(LOOKED_AT) as usize];
            file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
        };
        let Some(dynamic) = self.dynamic.and_then(|(at, length)| read(at, length)) else { return false };
        let entries = || dynamic.chunks_exact(16).map(|entry| (u64_at(entry, 0), u64_at(entry, 8)));
        let value = |tag| entries().find(|(t, _)| *t == tag).map(|(_, value)| value);
        let (Some(table), Some(length)) = (value(DT_STRTAB), value(DT_STRSZ)) else { return false };
        let part = self.parts.iter().find(|(memory, _, length)| table.checked_sub(*memory).is_some_and(|at| at < *length));
        let Some(names) = part.and_then(|(memory, at, _)| read(at.checked_add(table - memory)?, length)) else { return false };
        entries().filter(|(tag, _)| *tag == DT_NEEDED).any(|(_, at)| {
            let name = usize::try_from(at).ok().and_then(|at| names.get(at..)).unwrap_or_default();
            libraries.iter().any(|library| name.starts_with(library.as_bytes()))
        })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_of_a_listener_is_found_and_told_from_those_that_have_joined() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let mut look =
            Look { ours: Ours::at(&[at]), sockdiag: SockDiag::open().unwrap(), holders: HashMap::new(), in_vain: HashMap::new() };
        let me = std::process::id();
        let question = |joined: &[u32]| Question { joined: joined.to_vec(), ..Question::default() };
        assert_eq!(look.at(&question(&[me])).unwrap(), Seen { listening: Some(BTreeSet::from([at.port()])), ..Seen::default() });
        let seen = look.at(&question(&[1])).unwrap();
        let [stranger] = &seen.strangers[..] else { panic!("{seen:?}") };
        let expected = format!("port {} is served by process {me} (", at.port());
        assert!(stranger.starts_with(&expected) && stranger.contains("--no-preload"), "{stranger}");
        drop(listener);
        assert_eq!(look.at(&question(&[me])).unwrap(), Seen { listening: Some(BTreeSet::new()), ..Seen::default() });
    }

    #[test]
    fn what_the_manager_runs_for_itself_is_known() {
        for marked in [true, false] {
            let mut command = std::process::Command::new("sleep");
            command.arg("60");
            if marked {
                command.env(TOOL_MARK, "1");
            }
            let mut child = command.spawn().unwrap();
            // Its environment is there a moment after it was started.
            while fs::read(format!("/proc/{}/environ", child.id())).unwrap().is_empty() {
                std::thread::yield_now();
            }
            let seen = is_of_the_manager(child.id());
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(seen, marked);
        }
    }

    #[test]
    fn what_is_preloaded_where() {
        use std::os::unix::fs::PermissionsExt;

        assert_eq!(why_not(OsStr::new("sh")), None);
        assert_eq!(why_not(OsStr::new("/nowhere/at/all")), None);
        assert_eq!(why_not(OsStr::new("/proc/self/exe")), None);
        let me = File::open("/proc/self/exe").unwrap();
        let elf = Elf::of(&me).unwrap();
        assert!(elf.needs(&me, &["libasan.so", "libc.so.6"]) && !elf.needs(&me, &["libasan.so"]));
        let dir = std::env::temp_dir().join(format!("tcpr-serving-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("program");
        // A program header of another kind than the loader's: the program has none.
        let mut elf = fs::read("/proc/self/exe").unwrap()[..4096].to_vec();
        elf[56..58].copy_from_slice(&0u16.to_ne_bytes());
        fs::write(&path, &elf).unwrap();
        assert_eq!(found(path.as_os_str()), None, "nobody may execute it");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(why_not(path.as_os_str()).unwrap().contains("statically"));
        elf[4] = 1;
        fs::write(&path, &elf).unwrap();
        assert!(why_not(path.as_os_str()).unwrap().contains("32-bit"));
        for n in [0, 3, 20, 63] {
            fs::write(&path, &elf[..n]).unwrap();
            assert_eq!(why_not(path.as_os_str()), None);
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
