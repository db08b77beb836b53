//! A pair of tcpr members on two hosts of a lab, as tests, demo and benchmarks start it.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::rng::Rng;
use crate::sys::{ctx, other};
use crate::{Host, Process};

/// The directory that holds `tcpr` and `libtcpr.so`: that of `TCPR_BIN`, else the nearest one above the
/// running executable that holds a `tcpr` (tests run in `target/release/deps`).
pub fn bin_dir() -> io::Result<PathBuf> {
    let bin = tcpr_bin()?;
    bin.parent().map(Path::to_path_buf).ok_or_else(|| other("TCPR_BIN has no directory"))
}

/// The `tcpr` command: `TCPR_BIN`, or found from the running executable.
pub fn tcpr_bin() -> io::Result<PathBuf> {
    if let Some(p) = std::env::var_os("TCPR_BIN") {
        let p = PathBuf::from(p);
        return p.canonicalize().map_err(ctx(format!("TCPR_BIN {}", p.display())));
    }
    let exe = std::env::current_exe()?;
    let found = exe.ancestors().skip(1).take(3).map(|d| d.join("tcpr")).find(|p| p.is_file());
    found.ok_or_else(|| other(format!("no tcpr command near {}; build it (`make`) or set TCPR_BIN", exe.display())))
}

/// An example built by make: `target/examples/NAME`.
pub fn example(name: &str) -> io::Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let found = exe.ancestors().skip(1).take(4).map(|d| d.join("examples").join(name)).find(|p| {
        // target/release/examples is cargo's own directory of that name.
        p.is_file() && !p.parent().is_some_and(|d| d.ends_with("release/examples"))
    });
    found.ok_or_else(|| other(format!("no target/examples/{name}; run `make build`")))
}

/// What a pair protects, and how. Values of keys are in TOML (`"\"lines\""` has quotes).
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    virtual_ip: String,
    ports: Vec<(u16, BTreeMap<String, String>)>,
    sections: BTreeMap<String, BTreeMap<String, String>>,
    extra: String,
}

impl Service {
    /// A service with one protected port, the virtual address 192.0.2.200/24, and defaults otherwise.
    pub fn new(name: &str, port: u16) -> Service {
        Service {
            name: name.to_owned(),
            virtual_ip: "192.0.2.200/24".to_owned(),
            ports: vec![(port, BTreeMap::new())],
            sections: BTreeMap::new(),
            extra: String::new(),
        }
    }

    /// Another virtual address, `ADDRESS/PREFIX`.
    #[must_use]
    pub fn virtual_ip(mut self, address: &str) -> Service {
        self.virtual_ip = address.to_owned();
        self
    }

    /// One more protected port; the calls that follow are about it.
    #[must_use]
    pub fn and_port(mut self, port: u16) -> Service {
        self.ports.push((port, BTreeMap::new()));
        self
    }

    /// No protected port: the service only makes connections. There is no [`Service::addr`] then.
    #[must_use]
    pub fn without_ports(mut self) -> Service {
        self.ports.clear();
        self
    }

    /// A key of the port named last, value in TOML.
    #[must_use]
    pub fn port_key(mut self, key: &str, value: &str) -> Service {
        if let Some((_, keys)) = self.ports.last_mut() {
            keys.insert(key.to_owned(), value.to_owned());
        }
        self
    }

    /// `framing = "lines"` for the port named last.
    #[must_use]
    pub fn lines(self) -> Service {
        self.port_key("framing", "\"lines\"")
    }

    /// `unanswered` of the port named last: `redeliver` or `discard`.
    #[must_use]
    pub fn unanswered(self, what: &str) -> Service {
        self.port_key("unanswered", &format!("\"{what}\""))
    }

    /// `recovery.engine`: `repair` or `splice`.
    #[must_use]
    pub fn engine(self, engine: &str) -> Service {
        self.set("recovery", "engine", &format!("\"{engine}\""))
    }

    /// For machines that pause: a small or busy virtual machine may stand still for half a second, and with the
    /// defaults that is a failover that nobody caused, or a turn that outlasts its limit.
    #[must_use]
    pub fn patient(self) -> Service {
        self.set("failover", "heartbeat_ms", "100").set("failover", "misses", "15").set("failover", "solo_after_ms", "4000").set(
            "recovery",
            "max_turn_ms",
            "5000",
        )
    }

    /// A key of a section (`failover`, `recovery`, `replication`, `service`), value in TOML. Replaces what
    /// the pair would write.
    #[must_use]
    pub fn set(mut self, section: &str, key: &str, value: &str) -> Service {
        self.sections.entry(section.to_owned()).or_default().insert(key.to_owned(), value.to_owned());
        self
    }

    /// Text at the end of the file, for tables that nothing above writes.
    #[must_use]
    pub fn extra(mut self, toml: &str) -> Service {
        self.extra.push_str(toml);
        self.extra.push('\n');
        self
    }

    /// The virtual address.
    ///
    /// # Panics
    /// When it was given as something else than ADDRESS/PREFIX.
    pub fn vip(&self) -> IpAddr {
        let ip = self.virtual_ip.split('/').next().unwrap_or_default();
        ip.parse().unwrap_or_else(|_| panic!("{:?} is no virtual address", self.virtual_ip))
    }

    /// Virtual address and first port: what clients connect to.
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::new(self.vip(), self.ports[0].0)
    }

    /// The configuration file of one of the members.
    fn toml(&self, member: usize, hosts: &[Host; 2], key_file: &Path) -> String {
        let quoted = |s: &str| format!("\"{}\"", s.replace('\\', "\\\\").replace('"', "\\\""));
        let path = |p: &Path| quoted(&p.display().to_string());
        let me = &hosts[member];
        let mut sections = self.sections.clone();
        let mut default = |section: &str, key: &str, value: String| {
            sections.entry(section.to_owned()).or_default().entry(key.to_owned()).or_insert(value);
        };
        default("service", "name", quoted(&self.name));
        default("service", "virtual_ip", quoted(&self.virtual_ip));
        default("service", "interface", quoted("eth0"));
        default("service", "state_dir", path(&me.dir().join(format!("{}-state", self.name))));
        default("service", "run_dir", path(&me.dir().join(format!("{}-run", self.name))));
        default("replication", "key_file", path(key_file));

        let mut t = format!("member = {}\n", quoted(me.name()));
        for h in hosts {
            t.push_str(&format!("\n[[members]]\nname = {}\naddress = {}\n", quoted(h.name()), quoted(&h.ip().to_string())));
        }
        for (name, keys) in &sections {
            t.push_str(&format!("\n[{name}]\n"));
            for (k, v) in keys {
                t.push_str(&format!("{k} = {v}\n"));
            }
        }
        for (port, keys) in &self.ports {
            t.push_str(&format!("\n[[service.ports]]\nport = {port}\n"));
            for (k, v) in keys {
                t.push_str(&format!("{k} = {v}\n"));
            }
        }
        if !self.extra.is_empty() {
            t.push_str(&format!("\n{}", self.extra));
        }
        t
    }
}

/// Who hosts the manager of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hosted {
    /// `tcpr run`, which starts the program.
    ByRun,
    /// `tcpr run --no-preload`, which starts the program with no library in it.
    ByRunUnhooked,
    /// The program itself, linked with libtcpr.
    ByLinked,
    /// The program itself, with libtcpr preloaded.
    ByPreloaded,
}

/// Two members, numbered 0 and 1, each with its configuration and, once started, `tcpr run` and its program.
pub struct Pair {
    service: Service,
    hosts: [Host; 2],
    configs: [PathBuf; 2],
    processes: [Option<Process>; 2],
    programs: [Vec<String>; 2],
    env: Vec<(String, String)>,
    hosted: Hosted,
}

impl Pair {
    /// Writes both configurations and a fresh key into the hosts' work directories; starts nothing.
    pub fn new(a: &Host, b: &Host, service: Service) -> io::Result<Pair> {
        let hosts = [a.clone(), b.clone()];
        let mut rng = Rng::new(crate::seed_from_env());
        let key: String = (0..4).map(|_| format!("{:016x}", rng.next_u64())).collect();
        let mut configs = [PathBuf::new(), PathBuf::new()];
        for (i, h) in hosts.iter().enumerate() {
            let key_file = h.dir().join(format!("{}.key", service.name));
            let _ = fs::remove_file(&key_file);
            let mut f = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&key_file)?;
            writeln!(f, "{key}")?;
            configs[i] = h.dir().join(format!("{}.toml", service.name));
            fs::write(&configs[i], service.toml(i, &hosts, &key_file))?;
        }
        Ok(Pair {
            service,
            hosts,
            configs,
            processes: [None, None],
            programs: [Vec::new(), Vec::new()],
            env: Vec::new(),
            hosted: Hosted::ByRun,
        })
    }

    /// Who hosts the managers of what is started from now on.
    pub fn hosted(&mut self, by: Hosted) {
        self.hosted = by;
    }

    /// An environment variable for everything started from now on.
    pub fn env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// What is protected.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// The host of member `i`.
    pub fn host(&self, i: usize) -> &Host {
        &self.hosts[i]
    }

    /// The configuration file of member `i`.
    pub fn config(&self, i: usize) -> &Path {
        &self.configs[i]
    }

    /// Virtual address and port.
    pub fn addr(&self) -> SocketAddr {
        self.service.addr()
    }

    /// Starts `tcpr run --config F -- PROGRAM ARGS` on member `i`, in place of one that ran there before.
    pub fn start(&mut self, i: usize, program: &[&str]) -> io::Result<()> {
        self.programs[i] = program.iter().map(|&s| s.to_owned()).collect();
        self.restart(i)
    }

    /// Starts the program on both members; member 0 first.
    pub fn start_both(&mut self, program: &[&str]) -> io::Result<()> {
        self.start(0, program)?;
        self.start(1, program)
    }

    /// Starts on member `i` again what ran there before (a rejoin).
    pub fn restart(&mut self, i: usize) -> io::Result<()> {
        // The old one first: it would hold the lock.
        self.processes[i] = None;
        let mut c = self.command(&["run"], i)?;
        if self.hosted == Hosted::ByRunUnhooked {
            c.arg("--no-preload");
        }
        c.arg("--").args(&self.programs[i]);
        if matches!(self.hosted, Hosted::ByLinked | Hosted::ByPreloaded) {
            let [program, args @ ..] = &self.programs[i][..] else { return Err(other("no program")) };
            c = Command::new(program);
            c.args(args).envs(self.env.iter().map(|(k, v)| (k, v)));
            c.env("TCPR_CONFIG", &self.configs[i]).env("LD_LIBRARY_PATH", bin_dir()?);
        }
        if self.hosted == Hosted::ByPreloaded {
            c.env("LD_PRELOAD", bin_dir()?.join("libtcpr.so"));
        }
        self.processes[i] = Some(self.hosts[i].spawn("tcpr", c)?);
        Ok(())
    }

    /// `tcpr COMMAND --config F ARGS`; the library directory is in LD_LIBRARY_PATH for programs that are linked.
    fn command(&self, args: &[&str], i: usize) -> io::Result<Command> {
        let mut c = Command::new(tcpr_bin()?);
        let [command, args @ ..] = args else { return Err(other("no command")) };
        c.arg(command).arg("--config").arg(&self.configs[i]).args(args);
        c.env("LD_LIBRARY_PATH", bin_dir()?);
        c.envs(self.env.iter().map(|(k, v)| (k, v)));
        Ok(c)
    }

    /// The `tcpr run` of member `i`, if it was started.
    pub fn process(&self, i: usize) -> Option<&Process> {
        self.processes[i].as_ref()
    }

    /// The process ids of the programs below `tcpr run` of member `i`.
    pub fn programs(&self, i: usize) -> Vec<i32> {
        self.process(i).map(Process::children).unwrap_or_default()
    }

    /// SIGKILL to the program of member `i`; its `tcpr run` lives on.
    pub fn kill_program(&self, i: usize) -> io::Result<()> {
        // After its death it is started again, a little later.
        let mut pids = Vec::new();
        crate::wait_for(Duration::from_secs(10), || {
            pids = self.programs(i);
            !pids.is_empty()
        });
        if pids.is_empty() {
            return Err(other(format!("tcpr run on {} has no program", self.hosts[i].name())));
        }
        pids.iter().try_for_each(|&pid| crate::sys::kill(pid, libc::SIGKILL))
    }

    /// SIGKILL to `tcpr run` of member `i` and to its program at once.
    pub fn kill_all(&mut self, i: usize) {
        // All groups, in one sweep: the program may have one of its own.
        self.hosts[i].kill_all();
        self.processes[i] = None;
    }

    /// Runs a `tcpr` command on member `i` to its end.
    pub fn tcpr(&self, i: usize, args: &[&str]) -> io::Result<Output> {
        self.hosts[i].run(self.command(args, i)?, Duration::from_secs(240))
    }

    /// `tcpr status --json` of member `i`; an error when no manager answers.
    pub fn status(&self, i: usize) -> io::Result<Value> {
        let out = self.tcpr(i, &["status", "--json"])?;
        serde_json::from_slice(&out.stdout).map_err(|e| {
            let err = String::from_utf8_lossy(&out.stderr);
            other(format!("status on {}: {}: {e}; {}", self.hosts[i].name(), out.status, err.trim()))
        })
    }

    /// The member that says it is master; an error if none or both do.
    pub fn master(&self) -> io::Result<usize> {
        let mut all = Vec::new();
        for i in 0..2 {
            if self.processes[i].is_some() && self.status(i).is_ok_and(|s| s["role"] == "master") {
                all.push(i);
            }
        }
        match all[..] {
            [one] => Ok(one),
            _ => Err(other(format!("{} members are master", all.len()))),
        }
    }

    /// Waits until one member is master; tells which.
    pub fn wait_master(&self, timeout: Duration) -> Result<usize, String> {
        self.wait(timeout, "one member is master", || self.master().ok())
    }

    /// Waits until member `i` says it is master.
    pub fn wait_master_is(&self, i: usize, timeout: Duration) -> Result<(), String> {
        let what = format!("{} is master", self.hosts[i].name());
        self.wait(timeout, &what, || self.status(i).ok().filter(|s| s["role"] == "master").map(drop))
    }

    /// Waits until one member is master and protected; tells which.
    pub fn wait_protected(&self, timeout: Duration) -> Result<usize, String> {
        self.wait(timeout, "the pair is protected", || {
            let i = self.master().ok()?;
            self.status(i).ok().filter(|s| s["protected"] == true).map(|_| i)
        })
    }

    /// Waits until the number of sessions at every running member is `n`.
    pub fn wait_sessions(&self, n: u64, timeout: Duration) -> Result<(), String> {
        self.wait(timeout, &format!("all members have {n} sessions"), || {
            let mut running = (0..2).filter(|&i| self.processes[i].is_some());
            running.all(|i| self.status(i).is_ok_and(|s| s["sessions"] == n)).then_some(())
        })
    }

    fn wait<T>(&self, timeout: Duration, what: &str, mut f: impl FnMut() -> Option<T>) -> Result<T, String> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(v) = f() {
                return Ok(v);
            }
            if Instant::now() > deadline {
                return Err(format!("waited {timeout:?} in vain until {what}\n{}", self.describe()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `tcpr switchover`, asked of the member that is master.
    pub fn switchover(&self) -> io::Result<()> {
        let out = self.tcpr(self.master()?, &["switchover"])?;
        if out.status.success() {
            return Ok(());
        }
        let err = String::from_utf8_lossy(&out.stderr);
        Err(other(format!("switchover: {}: {}", out.status, err.trim())))
    }

    /// Status and last words of both members, for messages.
    pub fn describe(&self) -> String {
        let mut t = String::new();
        for i in 0..2 {
            let name = self.hosts[i].name();
            match (&self.processes[i], self.status(i)) {
                (None, _) => t.push_str(&format!("{name}: not running\n")),
                (Some(_), Ok(s)) => {
                    t.push_str(&format!("{name}: {s}\n"));
                    let rows = self.tcpr(i, &["sessions"]).map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
                    rows.unwrap_or_default().lines().take(12).for_each(|row| t.push_str(&format!("{name}: {row}\n")));
                }
                (Some(_), Err(e)) => t.push_str(&format!("{name}: {e}\n")),
            }
            if let Some(p) = &self.processes[i] {
                if let Some(exit) = p.try_exit() {
                    t.push_str(&format!("{name}: tcpr run ended: {exit}\n"));
                }
                t.push_str(&p.tail(15));
            }
        }
        t
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Lab;

    #[test]
    fn writes_the_configuration_of_both_members() {
        let lab = Lab::new("config").expect("lab");
        let a = lab.host("a", "192.0.2.1/24").expect("a");
        let b = lab.host("b", "192.0.2.2/24").expect("b");
        let service = Service::new("chat", 5555).lines().set("failover", "heartbeat_ms", "10");
        let pair = Pair::new(&a, &b, service).expect("pair");
        let text = fs::read_to_string(pair.config(1)).expect("config");
        for part in [
            "member = \"b\"\n",
            "[[members]]\nname = \"a\"\naddress = \"192.0.2.1\"\n",
            "[failover]\nheartbeat_ms = 10\n",
            "virtual_ip = \"192.0.2.200/24\"",
            "[[service.ports]]\nport = 5555\nframing = \"lines\"\n",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let key = |h: &Host| fs::read_to_string(h.dir().join("chat.key")).expect("key");
        assert_eq!(key(&a), key(&b));
        assert_eq!(key(&a).trim().len(), 64);
        assert_eq!(pair.addr().to_string(), "192.0.2.200:5555");
    }
}
