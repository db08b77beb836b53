//! Running iptables, in as few processes as possible.
//!
//! There may be two of it on a machine, one for nftables and one for the older tables of the kernel.
//! Their rules are in force side by side, and neither sees the other's.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A daemon's PATH often lacks the directories in which iptables is.
const DIRECTORIES: [&str; 5] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin"];

/// `PATH` with the directories of such tools: that of a plain user lacks some.
#[must_use]
pub fn tools_path() -> String {
    DIRECTORIES.join(":")
}

const SECONDS_FOR_LOCK: &str = "5";

/// A family of addresses: each has tools and tables of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// iptables
    V4,
    /// ip6tables
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// Whether an address is of this family.
    pub fn has(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == (self == Family::V4)
    }

    /// The length of an address.
    pub fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    fn programs(self) -> [&'static str; 3] {
        match self {
            Family::V4 => ["iptables", "iptables-nft", "iptables-legacy"],
            Family::V6 => ["ip6tables", "ip6tables-nft", "ip6tables-legacy"],
        }
    }
}

/// One of the iptables on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    save: PathBuf,
    restore: PathBuf,
    legacy: bool,
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.restore.file_name().unwrap_or_default().to_string_lossy();
        let kind = if self.legacy { "legacy" } else { "nf_tables" };
        write!(f, "{} ({kind})", name.trim_end_matches("-restore"))
    }
}

/// What a tool showed of the rules that are there.
#[derive(Debug)]
pub(super) struct View {
    pub(super) tool: Tool,
    listing: String,
}

impl View {
    /// (table, chain) of every chain.
    pub(super) fn chains(&self) -> impl Iterator<Item = (&str, &str)> {
        self.lines().filter_map(|(table, line)| {
            let name = line.strip_prefix(':')?.split_whitespace().next()?;
            Some((table, name))
        })
    }

    /// (chain, rule) of every rule in a table.
    pub(super) fn table<'a>(&'a self, table: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.lines().filter(move |(t, _)| *t == table).filter_map(|(_, line)| line.strip_prefix("-A ")?.split_once(' '))
    }

    /// The rules of one chain.
    pub(super) fn rules<'a>(&'a self, table: &'a str, chain: &'a str) -> impl Iterator<Item = &'a str> {
        self.table(table).filter(move |(c, _)| *c == chain).map(|(_, r)| r)
    }

    fn lines(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut table = "";
        self.listing.lines().filter_map(move |line| {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
                return None;
            }
            Some((table, line))
        })
    }
}

/// What is there, as each tool sees it: the machine's own choice first.
pub(super) fn views(family: Family) -> io::Result<Vec<View>> {
    let tools = tools(family, &DIRECTORIES.map(Path::new));
    if tools.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "{name} is not installed (looked for {name}-save and {name}-restore in {}); `apt install iptables`",
                DIRECTORIES.join(", "),
                name = family.programs()[0],
            ),
        ));
    }
    let mut views = Vec::new();
    let mut refusals = Vec::new();
    for tool in tools {
        // To list a legacy table makes the kernel load it, which slows every packet, and where none is
        // loaded there is nothing to list.
        let skip = tool.legacy && !legacy_in_use(family);
        let listing = match skip {
            true => Ok(String::new()),
            false => run(&tool.save, &[], ""),
        };
        match listing {
            Ok(listing) => views.push(View { tool, listing }),
            Err(e) => refusals.push(format!("{tool}: {e}")),
        }
    }
    if views.is_empty() {
        return Err(io::Error::other(format!(
            "cannot list the packet rules; run as root (CAP_NET_ADMIN)\n{}",
            refusals.join("\n")
        )));
    }
    Ok(views)
}

impl Tool {
    /// Of the kernel's older tables, not of nftables.
    pub fn legacy(&self) -> bool {
        self.legacy
    }

    /// Applies a script; each table in it is one transaction. Other rules stay.
    pub(super) fn restore(&self, script: &str) -> io::Result<()> {
        run(&self.restore, &["-w", SECONDS_FOR_LOCK, "--noflush"], script).map(|_| ())
    }
}

fn legacy_in_use(family: Family) -> bool {
    let file = match family {
        Family::V4 => "ip_tables_names",
        Family::V6 => "ip6_tables_names",
    };
    // Of this thread's network namespace, which the process that we start inherits.
    std::fs::read(Path::new("/proc/thread-self/net").join(file)).is_ok_and(|names| !names.is_empty())
}

/// A program of the system's.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    DIRECTORIES.iter().map(|d| Path::new(d).join(name)).find(|p| p.exists())
}

fn tools(family: Family, directories: &[&Path]) -> Vec<Tool> {
    let mut list = Vec::new();
    let mut seen = BTreeSet::new();
    for name in family.programs() {
        let find = |what: &str| {
            let file = format!("{name}-{what}");
            directories.iter().map(|d| d.join(&file)).find(|p| p.exists())
        };
        let (Some(save), Some(restore)) = (find("save"), find("restore")) else {
            continue;
        };
        // Each family is one program under many names.
        let program = restore.canonicalize().unwrap_or_else(|_| restore.clone());
        let legacy = !program.to_string_lossy().contains("nft");
        if seen.insert(program) {
            list.push(Tool { save, restore, legacy });
        }
    }
    list
}

/// In the environment of what the manager itself runs, so that nobody takes it for a process of the program.
pub const TOOL_MARK: &str = "TCPR_TOOL";

/// Runs a program with this input; what it prints, or what it complains of.
pub(super) fn run(program: &Path, args: &[&str], input: &str) -> io::Result<String> {
    let mut child = Command::new(program)
        .args(args)
        // Ours may say LD_PRELOAD=libtcpr.so; and what is parsed shall not be translated.
        .env_clear()
        .env("PATH", tools_path())
        .env("LC_ALL", "C")
        .env(TOOL_MARK, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", program.display())))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that fails early does not read on; its own message says more than our EPIPE. The
        // restores print nothing before they have read everything, so this cannot lock up.
        let _ = stdin.write_all(input.as_bytes());
    }
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_end(&mut output)?;
    }
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_end(&mut errors)?;
    }
    let errors = String::from_utf8_lossy(&errors);
    let failed = match child.wait() {
        Ok(status) => !status.success(),
        // In a foreign process that ignores SIGCHLD, or waits for any child, the status is lost, as it is where the manager's
        // own thread does. iptables complains of nothing when all is well, but may warn (of tables of the other kind).
        Err(e) if e.raw_os_error() == Some(libc::ECHILD) => errors.lines().any(|l| !l.trim().is_empty() && !l.starts_with('#')),
        Err(e) => return Err(e),
    };
    if failed {
        let said: Vec<&str> = errors.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        return Err(io::Error::other(said.join("; ")));
    }
    Ok(String::from_utf8_lossy(&output).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_iptables_no_tool() {
        assert!(tools(Family::V4, &[Path::new("/nonexistent")]).is_empty());
    }

    #[test]
    fn each_program_once() {
        let all = tools(Family::V6, &DIRECTORIES.map(Path::new));
        let kinds: BTreeSet<bool> = all.iter().map(|t| t.legacy).collect();
        assert_eq!(kinds.len(), all.len(), "{all:?}");
    }

    #[test]
    fn a_refusal_says_why() {
        let tool = &tools(Family::V4, &DIRECTORIES.map(Path::new))[0];
        let e = tool.restore("*nonsense\nCOMMIT\n").unwrap_err().to_string();
        assert!(!e.is_empty());
    }
}
