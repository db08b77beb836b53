//! The lab, its switch and its hosts.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::netlink::Netlink;
use crate::process::{self, Process};
use crate::sys::{self, ctx, other};
use crate::{netns, Capture, CaptureOptions};

const ROOT: &str = "/tmp/tcpr-lab";
const BRIDGE: u32 = 10;
const FIRST_PORT: u32 = 100;
/// The interface number of `eth0` in a host: the same in every one, and clear of fallback tunnels.
const ETH0: u32 = 100;

pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says what is missing if this process cannot make a lab.
pub fn check_privileges() -> io::Result<()> {
    let need = "the lab makes network namespaces and needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_RAW)";
    let denied = |why: String| io::Error::new(io::ErrorKind::PermissionDenied, why);
    let euid = sys::geteuid();
    if euid != 0 {
        return Err(denied(format!("{need}; this process runs as uid {euid}: start it with sudo")));
    }
    let probe = std::thread::spawn(sys::unshare_net).join();
    match probe.unwrap_or_else(|_| Err(other("the probing thread panicked"))) {
        Ok(()) => Ok(()),
        Err(e) => Err(denied(format!("{need}; unshare(CLONE_NEWNET) says: {e}. In a container, start it with --privileged"))),
    }
}

struct Switch {
    nl: Mutex<Netlink>,
    _ns: OwnedFd,
}

/// A set of hosts on one switch. Everything is removed when it is dropped, also by a panic.
pub struct Lab {
    id: String,
    dir: PathBuf,
    switch: Arc<Switch>,
    hosts: Mutex<Vec<Host>>,
    ports: AtomicU32,
    keep: AtomicBool,
    // Held as long as the lab lives: `sweep` of another process takes it for the sign of life.
    _lock: File,
}

impl Lab {
    /// Makes a lab with an empty switch. `label` only makes its work directory easier to recognise.
    pub fn new(label: &str) -> io::Result<Lab> {
        check_privileges()?;
        sys::raise_nofile();
        Lab::sweep();
        let (id, dir, lock) = claim(label)?;
        let name = format!("{id}-switch");
        let switch = (|| {
            let ns = netns::create(&name)?;
            let mut nl = netns::within(ns.as_fd(), Netlink::open)??;
            nl.add_bridge("br0", BRIDGE).map_err(ctx("a bridge"))?;
            Ok::<_, io::Error>(Switch { nl: Mutex::new(nl), _ns: ns })
        })();
        let switch = match switch {
            Ok(s) => Arc::new(s),
            Err(e) => {
                netns::remove(&name);
                let _ = fs::remove_dir_all(&dir);
                return Err(ctx("cannot make the lab's switch")(e));
            }
        };
        Ok(Lab {
            id,
            dir,
            switch,
            hosts: Mutex::default(),
            ports: AtomicU32::new(FIRST_PORT),
            keep: AtomicBool::new(std::env::var_os("TCPR_LAB_KEEP").is_some()),
            _lock: lock,
        })
    }

    /// Adds a host with interface `eth0`; `address` is `ADDRESS/PREFIX`.
    pub fn host(&self, name: &str, address: &str) -> io::Result<Host> {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || name == "switch" || !name.chars().all(fits) {
            return Err(other(format!("{name:?} is no good name for a host")));
        }
        if self.hosts().iter().any(|h| h.name() == name) {
            return Err(other(format!("there is a host {name} already")));
        }
        let (ip, prefix) = parse_address(address)?;
        let port = self.ports.fetch_add(1, Ordering::Relaxed);
        let ns_name = format!("{}-{name}", self.id);
        let dir = self.dir.join(name);
        fs::create_dir(&dir).map_err(ctx(dir.display()))?;
        let ns = netns::create(&ns_name).map_err(ctx(&ns_name))?;
        let built = (|| {
            let mut nl = netns::within(ns.as_fd(), Netlink::open)??;
            let peer = (ETH0, ns.as_fd());
            lock(&self.switch.nl)
                .add_veth(&format!("p-{name}"), port, BRIDGE, "eth0", peer.0, peer.1)
                .map_err(ctx("a veth pair"))?;
            nl.set_up(1, true)?;
            nl.add_addr(ETH0, ip, prefix).map_err(ctx(address))?;
            nl.set_up(ETH0, true)
        })();
        if let Err(e) = built {
            netns::remove(&ns_name);
            return Err(ctx(format!("host {name}"))(e));
        }
        let host = Host(Arc::new(HostInner {
            name: name.to_owned(),
            ns_name,
            ip,
            prefix,
            ns,
            switch: self.switch.clone(),
            port,
            isolated: AtomicBool::new(false),
            dir,
            files: AtomicU32::new(0),
        }));
        lock(&self.hosts).push(host.clone());
        Ok(host)
    }

    /// The lab's id, with which the names of its namespaces begin.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The lab's work directory; each host has one below it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The hosts made so far.
    pub fn hosts(&self) -> Vec<Host> {
        lock(&self.hosts).clone()
    }

    /// Keeps the work directory (logs, captures) after the end; a panic and `TCPR_LAB_KEEP=1` do the same.
    pub fn keep_dir(&self) {
        self.keep.store(true, Ordering::Relaxed);
    }

    /// Removes what labs have left behind whose process is dead: processes, namespaces, directories.
    /// Returns the ids of those labs. Never touches a lab that lives.
    pub fn sweep() -> Vec<String> {
        let mut swept = Vec::new();
        for ns in netns::names() {
            let Some(id) = lab_id(&ns).filter(|id| is_dead(id)) else { continue };
            netns::kill_all(&ns);
            netns::remove(&ns);
            if !swept.iter().any(|s| s == id) {
                swept.push(id.to_owned());
            }
        }
        for e in fs::read_dir(ROOT).into_iter().flatten().flatten() {
            let Ok(name) = e.file_name().into_string() else { continue };
            let Some(id) = lab_id(&name).filter(|id| is_dead(id)) else { continue };
            // What a failed test has left on purpose is there to be read, for a day.
            let day = Duration::from_secs(24 * 3600);
            let old = |m: fs::Metadata| m.modified().ok()?.elapsed().ok();
            if fs::metadata(e.path().join(KEPT)).ok().and_then(old).is_some_and(|age| age < day) {
                continue;
            }
            let _ = fs::remove_dir_all(e.path());
            if !swept.iter().any(|s| s == id) {
                swept.push(id.to_owned());
            }
        }
        swept
    }
}

const LOCK: &str = ".lock";
const KEPT: &str = ".kept";

/// Takes a fresh id and its directory.
fn claim(label: &str) -> io::Result<(String, PathBuf, File)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut builder = DirBuilder::new();
    // Servers that drop their privileges must still reach their own files below.
    builder.mode(0o755);
    match builder.create(ROOT) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(ctx(ROOT)(e)),
        _ => {}
    }
    let meta = fs::symlink_metadata(ROOT).map_err(ctx(ROOT))?;
    if !meta.is_dir() || meta.uid() != sys::geteuid() || meta.mode() & 0o022 != 0 {
        return Err(other(format!("{ROOT} is not a directory of ours; remove it")));
    }
    let label: String = label.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("tcpr{}x{n}", std::process::id());
        // A dead process may have had our number and left a directory to be read.
        let taken = |n: &String| lab_id(n) == Some(id.as_str());
        let mut there = fs::read_dir(ROOT)?.flatten().filter_map(|e| e.file_name().into_string().ok());
        if there.any(|n| taken(&n)) || netns::names().iter().any(taken) {
            continue;
        }
        let dir = Path::new(ROOT).join(format!("{id}-{label}"));
        builder.create(&dir).map_err(ctx(dir.display()))?;
        let file = File::create(dir.join(LOCK))?;
        sys::flock(file.as_fd(), false)?;
        return Ok((id, dir, file));
    }
}

/// `tcprPIDxN` at the start of a name followed by a dash.
fn lab_id(name: &str) -> Option<&str> {
    let (id, _) = name.split_once('-')?;
    id_pid(id).map(|_| id)
}

fn id_pid(id: &str) -> Option<u32> {
    let (pid, n) = id.strip_prefix("tcpr")?.split_once('x')?;
    n.parse::<u32>().ok()?;
    pid.parse().ok()
}

/// A lab is dead when its process is; or, that number being taken again, when nobody holds its lock.
fn is_dead(id: &str) -> bool {
    let Some(pid) = id_pid(id) else { return false };
    if pid == std::process::id() {
        return false;
    }
    if !Path::new(&format!("/proc/{pid}")).exists() {
        return true;
    }
    let mut entries = fs::read_dir(ROOT).into_iter().flatten().flatten();
    let Some(dir) = entries.find(|e| e.file_name().to_str().and_then(lab_id) == Some(id)) else {
        return false;
    };
    // Between the making of the directory and the lock there is a moment: leave young ones alone.
    let age = dir.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
    age.is_some_and(|a| a > Duration::from_secs(10))
        && File::open(dir.path().join(LOCK)).is_ok_and(|f| sys::flock(f.as_fd(), false).unwrap_or(false))
}

impl Drop for Lab {
    fn drop(&mut self) {
        for h in lock(&self.hosts).drain(..) {
            netns::kill_all(&h.0.ns_name);
            netns::remove(&h.0.ns_name);
        }
        netns::remove(&format!("{}-switch", self.id));
        if std::thread::panicking() || self.keep.load(Ordering::Relaxed) {
            let _ = File::create(self.dir.join(KEPT));
            eprintln!("lab {}: logs are in {}", self.id, self.dir.display());
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn parse_address(address: &str) -> io::Result<(IpAddr, u8)> {
    let parsed = address.split_once('/').and_then(|(ip, prefix)| {
        let ip: IpAddr = ip.parse().ok()?;
        let prefix = prefix.parse().ok().filter(|&p| p <= if ip.is_ipv4() { 32 } else { 128 })?;
        Some((ip, prefix))
    });
    parsed.ok_or_else(|| other(format!("{address:?} is not ADDRESS/PREFIX")))
}

struct HostInner {
    name: String,
    ns_name: String,
    ip: IpAddr,
    prefix: u8,
    ns: OwnedFd,
    switch: Arc<Switch>,
    port: u32,
    isolated: AtomicBool,
    dir: PathBuf,
    files: AtomicU32,
}

/// A host of a [`Lab`]: a network namespace with interface `eth0`. A cheap handle; clones are the same host.
#[derive(Clone)]
pub struct Host(Arc<HostInner>);

impl Host {
    /// The name given to [`Lab::host`].
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The name of its namespace, for `ip netns exec`.
    pub fn netns(&self) -> &str {
        &self.0.ns_name
    }

    /// Its address on `eth0`.
    pub fn ip(&self) -> IpAddr {
        self.0.ip
    }

    /// The prefix length of its address.
    pub fn prefix(&self) -> u8 {
        self.0.prefix
    }

    /// Its work directory.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Cuts the host off, and nothing in it can see so: the switch forwards no more, the carrier stays.
    pub fn cut_silent(&self) -> io::Result<()> {
        lock(&self.0.switch.nl).set_master(self.0.port, 0).map_err(ctx("cut_silent"))
    }

    /// Cuts the host off as a pulled cable does: `eth0` loses its carrier.
    pub fn cut_carrier(&self) -> io::Result<()> {
        lock(&self.0.switch.nl).set_up(self.0.port, false).map_err(ctx("cut_carrier"))
    }

    /// Undoes both cuts.
    pub fn heal(&self) -> io::Result<()> {
        let mut nl = lock(&self.0.switch.nl);
        nl.set_master(self.0.port, BRIDGE).map_err(ctx("heal"))?;
        // A port that comes back is a new one to the bridge.
        if self.0.isolated.load(Ordering::Relaxed) {
            nl.set_isolated(self.0.port, true).map_err(ctx("heal"))?;
        }
        nl.set_up(self.0.port, true).map_err(ctx("heal"))
    }

    /// Partition: isolated hosts do not reach each other, but do reach all hosts that are not isolated.
    pub fn isolate(&self, isolated: bool) -> io::Result<()> {
        self.0.isolated.store(isolated, Ordering::Relaxed);
        lock(&self.0.switch.nl).set_isolated(self.0.port, isolated).map_err(ctx("isolate"))
    }

    /// Starts a program in the host, in a process group of its own, standard input empty. Its output goes to
    /// `NAME.N.out` and `NAME.N.err` in the host's work directory.
    pub fn spawn(&self, name: &str, mut command: Command) -> io::Result<Process> {
        let n = self.0.files.fetch_add(1, Ordering::Relaxed);
        let stem = self.0.dir.join(format!("{name}.{n}"));
        self.enter_on_exec(&mut command);
        process::start(name, command, &stem)
    }

    /// Runs a program in the host to its end and returns what it printed; killed after `timeout`.
    pub fn run(&self, mut command: Command, timeout: Duration) -> io::Result<Output> {
        self.enter_on_exec(&mut command);
        process::run(command, timeout)
    }

    /// Runs `ip ARGS` (separated by blanks) in the host; an error has what it printed.
    pub fn ip_cmd(&self, args: &str) -> io::Result<String> {
        let mut c = Command::new("ip");
        c.args(args.split_whitespace());
        let out = self.run(c, Duration::from_secs(10))?;
        if !out.status.success() {
            return Err(other(format!("ip {args}: {}", String::from_utf8_lossy(&out.stderr).trim())));
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Sets a network sysctl of the host, named with dots (`net.ipv4.tcp_timestamps`).
    pub fn sysctl(&self, name: &str, value: &str) -> io::Result<()> {
        let file = Path::new("/proc/sys").join(name.replace('.', "/"));
        // /proc/sys/net shows the namespace of whoever opens it.
        self.enter(|| fs::write(&file, value)).map_err(ctx(name))
    }

    /// Makes a command start in the host.
    fn enter_on_exec(&self, command: &mut Command) {
        use std::os::unix::process::CommandExt;
        let host = self.clone();
        // SAFETY: between fork and exec only setns is called, which is async-signal-safe; the descriptor
        // lives as long as the closure, which holds the host.
        unsafe {
            command.pre_exec(move || sys::cvt(libc::setns(host.0.ns.as_raw_fd(), libc::CLONE_NEWNET)).map(drop));
        }
    }

    /// Runs a closure on a thread inside the host's network namespace. Sockets made there stay the host's,
    /// whoever uses them afterwards. A panic in the closure goes on in the caller.
    ///
    /// # Panics
    /// When the thread cannot enter the namespace, which only happens without privileges.
    pub fn enter<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match netns::within(self.0.ns.as_fd(), f) {
            Ok(r) => r,
            Err(e) => panic!("cannot enter host {}: {e}", self.0.name),
        }
    }

    /// The process ids of what runs in the host.
    pub fn pids(&self) -> Vec<i32> {
        netns::pids(&self.0.ns_name)
    }

    /// Stops everything in the host (SIGSTOP): with its memory intact, as a paused virtual machine.
    pub fn freeze(&self) {
        self.signal_all(libc::SIGSTOP);
    }

    /// Undoes [`Host::freeze`].
    pub fn thaw(&self) {
        self.signal_all(libc::SIGCONT);
    }

    /// Kills everything in the host at once (SIGKILL) and waits until it is dead.
    pub fn kill_all(&self) {
        netns::kill_all(&self.0.ns_name);
    }

    fn signal_all(&self, signal: i32) {
        for pid in self.pids() {
            let _ = sys::kill(pid, signal);
        }
    }

    /// Starts a capture on `eth0`.
    pub fn capture(&self, options: CaptureOptions) -> io::Result<Capture> {
        Capture::start(self, options)
    }
}
