//! Watches what tcpr has put on this host, and puts it back: a firewall that is reloaded takes the packet rules with it, a
//! network daemon the virtual IP, a cleaner of `/run` the control socket.
//!
//! It is a thread of its own, for it starts programs (`iptables`, `nft`), and these may wait for seconds for a lock, which the
//! manager may not. nftables tells of every change, and numbers them; the older tables tell nothing and are looked at often:
//! two system calls, a comparison, and no program unless something has changed.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::channel::client::Bypass;
use crate::nfqueue::{netlink_send, netlink_socket, u16_ne, u32_ne, Messages};
use crate::rules::{Backend, Family, Rules, RulesState};

/// How often the older tables are looked at.
const LOOK: Duration = Duration::from_millis(25);
/// How often what changes seldom is looked at: files, and rules that cannot be looked at without a program.
const SELDOM: Duration = Duration::from_secs(1);
/// Rules that could not be put back are tried again after this.
const AGAIN: Duration = Duration::from_millis(100);

/// What a guard has to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Packets may go around the queues; why.
    Missing(String),
    /// The rules are in force.
    InForce {
        /// They were not before.
        restored: bool,
    },
    /// An address of this host went: the virtual IP, perhaps.
    Address,
    /// The control socket has no name any more.
    NoControl,
}

/// What one look at the rules sees, as cheap as it is: equal, and nothing has changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Look {
    /// nftables' count of changes.
    generation: Option<u32>,
    /// The table of iptables (legacy) for each family, without its counters.
    tables: [Option<u64>; 2],
}

/// What can be looked at without waiting.
struct Eye {
    nft: Option<OwnedFd>,
    families: [Option<OwnedFd>; 2],
}

#[derive(Default)]
struct Shared {
    events: VecDeque<Event>,
    /// What a whole check found in order, and the table of iptables (legacy) that it is in.
    known: Option<(Look, Option<String>)>,
    asked: bool,
    stop: bool,
}

/// The watching thread; it ends with this.
pub struct Guard {
    shared: Arc<Mutex<Shared>>,
    /// One byte for each of its events; what is written wakes it.
    line: UnixStream,
    thread: Option<JoinHandle<()>>,
    eye: Eye,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Guard {
    /// Watches the rules of a service, which are installed, the addresses of this host, and the control socket.
    ///
    /// # Errors
    /// No sockets, or no thread.
    pub fn new(rules: Rules, control: PathBuf) -> io::Result<Guard> {
        let (line, theirs) = UnixStream::pair()?;
        line.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        let shared = Arc::new(Mutex::new(Shared::default()));
        let addresses = addresses_socket()?;
        let changes = netlink_socket(libc::NETLINK_NETFILTER)?;
        // Where there is no nftables there is no such group either, and nothing to hear of.
        if let Err(error) = join(&changes, libc::NFNLGRP_NFTABLES as libc::c_int) {
            log::debug!(error:%; "no word of nftables' changes");
        }
        let watch = Watch { shared: shared.clone(), line: theirs, rules, control, addresses, changes, eye: Eye::open() };
        let thread = std::thread::Builder::new().name("tcpr-guard".to_owned()).spawn(move || {
            Bypass::this_thread();
            watch.run();
        })?;
        Ok(Guard { shared, line, thread: Some(thread), eye: Eye::open() })
    }

    /// Takes what it has to tell.
    pub fn take(&mut self) -> VecDeque<Event> {
        let mut bytes = [0; 64];
        while matches!(self.line.read(&mut bytes), Ok(n) if n > 0) {}
        std::mem::take(&mut lock(&self.shared).events)
    }

    /// Whether nothing has changed since the rules were last seen to be in force. If something has, what becomes of it is told
    /// soon, be it that all is well.
    pub fn unchanged(&mut self) -> bool {
        let known = lock(&self.shared).known.clone();
        if known.is_some_and(|(look, table)| self.eye.look(table.as_deref()) == look) {
            return true;
        }
        lock(&self.shared).asked = true;
        self.wake();
        false
    }

    fn wake(&mut self) {
        // Full: it will wake.
        let _full = self.line.write(&[1]);
    }
}

impl AsRawFd for Guard {
    fn as_raw_fd(&self) -> RawFd {
        self.line.as_raw_fd()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        lock(&self.shared).stop = true;
        self.wake();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread that watches the packet rules has panicked");
        }
    }
}

/// What the thread has.
struct Watch {
    shared: Arc<Mutex<Shared>>,
    line: UnixStream,
    rules: Rules,
    control: PathBuf,
    addresses: OwnedFd,
    changes: OwnedFd,
    eye: Eye,
}

impl Watch {
    fn run(mut self) {
        let mut missing = false;
        let mut seldom = Instant::now();
        loop {
            let known = lock(&self.shared).known.clone();
            let asked = std::mem::take(&mut lock(&self.shared).asked);
            let (look, table) = known.unwrap_or_default();
            let now = self.eye.look(table.as_deref());
            let unseen = now == Look::default() && seldom.elapsed() >= SELDOM;
            if now != look || missing || asked || unseen {
                missing = !self.check(missing, asked);
            }
            if seldom.elapsed() >= SELDOM {
                seldom = Instant::now();
                if !self.control.exists() {
                    self.tell(Event::NoControl);
                }
            }
            let nap = match (missing, table) {
                (true, _) => AGAIN,
                (false, Some(_)) => LOOK,
                (false, None) => SELDOM,
            };
            self.wait(nap);
            if lock(&self.shared).stop {
                return;
            }
        }
    }

    /// Looks at all of the rules, and puts them right. Returns whether they are.
    fn check(&mut self, before: bool, asked: bool) -> bool {
        let mut missing = before;
        // A second one shows that the first was right.
        for _ in 0..2 {
            let found = self.rules.installed();
            let why = match found {
                Ok(RulesState::Installed(at)) => {
                    let table = match &at.by {
                        Backend::Iptables(tool) if tool.legacy() => Some(at.table),
                        _ => None,
                    };
                    let look = self.eye.look(table.as_deref());
                    lock(&self.shared).known = Some((look, table));
                    // What changed while it was looked at is seen the next time, or now.
                    match self.rules.installed() {
                        Ok(RulesState::Installed(_)) => {
                            if missing || asked {
                                self.tell(Event::InForce { restored: missing });
                            }
                            return true;
                        }
                        Ok(other) => describe(&other),
                        Err(error) => error.to_string(),
                    }
                }
                Ok(other) => describe(&other),
                Err(error) => error.to_string(),
            };
            lock(&self.shared).known = None;
            if !missing {
                missing = true;
                self.tell(Event::Missing(why));
            }
            if let Err(error) = self.rules.install() {
                log::error!(error:%; "cannot put the packet rules right");
                return false;
            }
        }
        false
    }

    fn tell(&mut self, event: Event) {
        lock(&self.shared).events.push_back(event);
        let _full = self.line.write(&[1]);
    }

    /// Until something happens, or for so long.
    fn wait(&mut self, nap: Duration) {
        let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds = [self.line.as_raw_fd(), self.addresses.as_raw_fd(), self.changes.as_raw_fd()].map(entry);
        // SAFETY: the pointer and the count are those of `fds`, which lives through the call.
        unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, nap.as_millis() as libc::c_int) };
        let mut bytes = [0; 64];
        while matches!(self.line.read(&mut bytes), Ok(n) if n > 0) {}
        // The number of the change tells whether there was one; what it was does not matter.
        drain(&self.changes, |_| {});
        let mut gone = false;
        drain(&self.addresses, |message| gone |= matches!(message, None | Some(libc::RTM_DELADDR | libc::RTM_DELLINK)));
        if gone {
            self.tell(Event::Address);
        }
    }
}

fn describe(state: &RulesState) -> String {
    match state {
        RulesState::Absent => "the packet rules were removed".to_owned(),
        RulesState::Wrong(text) => text.clone(),
        RulesState::Installed(_) => String::new(),
    }
}

/// The kinds of the messages that wait; `None`: some were lost.
fn drain(socket: &OwnedFd, mut f: impl FnMut(Option<u16>)) {
    let mut buffer = [0u8; 8 << 10];
    loop {
        // SAFETY: the pointer and length describe the buffer.
        let n = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
        match usize::try_from(n) {
            Ok(n) => Messages(&buffer[..n]).for_each(|m| f(Some(m.kind))),
            Err(_) => match io::Error::last_os_error().raw_os_error() {
                Some(libc::ENOBUFS) => f(None),
                Some(libc::EINTR) => {}
                _ => return,
            },
        }
    }
}

/// Hears when an address or an interface goes.
fn addresses_socket() -> io::Result<OwnedFd> {
    let socket = netlink_socket(libc::NETLINK_ROUTE)?;
    // From linux/rtnetlink.h: RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR.
    for group in [1, 5, 9] {
        join(&socket, group)?;
    }
    Ok(socket)
}

fn join(socket: &OwnedFd, group: libc::c_int) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of `group`, which outlives the call.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            (&raw const group).cast(),
            size_of_val(&group) as libc::socklen_t,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

impl Eye {
    fn open() -> Eye {
        let raw = |family: Family| {
            let domain = match family {
                Family::V4 => libc::AF_INET,
                Family::V6 => libc::AF_INET6,
            };
            // SAFETY: no pointers; the result is checked.
            let fd = unsafe { libc::socket(domain, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) };
            // SAFETY: a descriptor just made, owned by nobody else.
            (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
        };
        Eye { nft: netlink_socket(libc::NETLINK_NETFILTER).ok(), families: Family::ALL.map(raw) }
    }

    fn look(&mut self, table: Option<&str>) -> Look {
        let generation = self.nft.as_ref().and_then(generation);
        let tables = Family::ALL.map(|family| {
            let socket = self.families[usize::from(family == Family::V6)].as_ref()?;
            legacy_table(socket, family, table?)
        });
        Look { generation, tables }
    }
}

/// The number of nftables' last change, in this network namespace.
fn generation(socket: &OwnedFd) -> Option<u32> {
    // From linux/netfilter/nf_tables.h: NFT_MSG_GETGEN of NFNL_SUBSYS_NFTABLES; the answer has NFTA_GEN_ID.
    const GET: u16 = 10 << 8 | 16;
    const ANSWER: u16 = 10 << 8 | 15;
    const ID: u16 = 1;
    let mut message = Vec::with_capacity(20);
    message.extend(20u32.to_ne_bytes());
    message.extend(GET.to_ne_bytes());
    message.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message.extend([0; 12]);
    netlink_send(socket, &message).ok()?;
    let mut buffer = [0u8; 1024];
    // SAFETY: the pointer and length describe the buffer. The kernel answers within the request.
    let n = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
    let answer = Messages(buffer.get(..usize::try_from(n).ok()?)?).next().filter(|m| m.kind == ANSWER)?;
    let mut attributes = answer.body.get(4..)?;
    loop {
        let head = attributes.get(..4)?;
        let (length, kind) = (usize::from(u16_ne(head)), u16_ne(&head[2..]));
        let value = attributes.get(4..length)?;
        if kind & 0x3fff == ID {
            return Some(u32_ne(value.get(..4)?));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// A table of iptables (legacy), as one number that does not depend on its counters; `None` if there is no such table.
fn legacy_table(socket: &OwnedFd, family: Family, table: &str) -> Option<u64> {
    // From linux/netfilter_ipv4/ip_tables.h and its IPv6 sister: IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES; struct ipt_getinfo is
    // the name, 11 numbers about the hooks, how many entries, their size; struct ipt_get_entries the name, the size, and from
    // a multiple of eight on the entries.
    const GET_INFO: libc::c_int = 64;
    const GET_ENTRIES: libc::c_int = 65;
    const NAME: usize = 32;
    const INFO: usize = NAME + 13 * 4;
    const ENTRIES: usize = 40;
    // In an entry: where it says how far the next one is; from there on `comefrom` and the counters.
    let (level, next, counters) = match family {
        Family::V4 => (libc::IPPROTO_IP, 90, 92..112),
        Family::V6 => (libc::IPPROTO_IPV6, 142, 144..168),
    };
    let ask = |option, buffer: &mut [u8]| {
        let mut length = buffer.len() as libc::socklen_t;
        // SAFETY: the pointers are those of `buffer` and of `length`, which is the buffer's.
        let rc = unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, buffer.as_mut_ptr().cast(), &raw mut length) };
        rc == 0
    };
    let mut info = [0u8; INFO];
    info[..table.len().min(NAME - 1)].copy_from_slice(&table.as_bytes()[..table.len().min(NAME - 1)]);
    let mut head = [0u8; ENTRIES];
    head[..NAME].copy_from_slice(&info[..NAME]);
    // To ask for a table that is not there would make the kernel load it.
    let file = if family == Family::V4 { "ip_tables_names" } else { "ip6_tables_names" };
    let names = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok()?;
    if !names.lines().any(|name| name == table) || !ask(GET_INFO, &mut info) {
        return None;
    }
    let size = u32_ne(&info[INFO - 4..]) as usize;
    let mut entries = head.to_vec();
    entries[NAME..NAME + 4].copy_from_slice(&(size as u32).to_ne_bytes());
    entries.resize(ENTRIES + size, 0);
    if !ask(GET_ENTRIES, &mut entries) {
        return None;
    }
    let mut hasher = DefaultHasher::new();
    hasher.write(&info[NAME..]);
    let mut rest = &mut entries[ENTRIES..];
    while rest.len() >= counters.end {
        rest[counters.clone()].fill(0);
        let length = usize::from(u16_ne(&rest[next..])).clamp(counters.end, rest.len());
        let (entry, others) = rest.split_at_mut(length);
        hasher.write(entry);
        rest = others;
    }
    Some(hasher.finish())
}

/// Holds a virtual IP for one service of this host (of this network namespace): a second one would take its packets away with
/// it when it moves, and be silent when the other does.
#[derive(Debug)]
pub struct Claim {
    _socket: OwnedFd,
}

impl Claim {
    /// Takes it.
    ///
    /// # Errors
    /// Another service has it.
    pub fn take(address: IpAddr) -> io::Result<Claim> {
        let name = format!("tcpr/vip/{}", address.to_canonical());
        match crate::channel::hold_name(&name) {
            Ok(_socket) => Ok(Claim { _socket }),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!(
                    "another service on this host has the virtual IP {address}: a virtual IP moves with one service, and would \
                     leave the other one silent. Give each service an address of its own, or make them one service with several \
                     [[service.ports]]"
                ),
            )),
            Err(e) => Err(e),
        }
    }
}
