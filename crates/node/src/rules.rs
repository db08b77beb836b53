//! The packet rules of a service: what goes through the queues.
//!
//! Each service has two chains of its own, `TCPR-<NAME>-I` and `-O`, entered from INPUT and OUTPUT for
//! TCP. Both hooks see whole packets: INPUT after reassembly, OUTPUT before fragmentation.
//!
//! **Which table.** A packet that comes back from a queue goes on with the next table: the rules that
//! follow in the same table are skipped. In `filter` the queue would therefore switch the host's own
//! firewall off for the protected ports, unless it came after it, and there a rule that accepts
//! established connections would switch *us* off. In a table before `filter` the core would see (and
//! the log would store) what the firewall then drops. So the table is `security`, the one behind
//! `filter`: the firewall has judged, and whatever passes it must pass us. Only on a kernel without it
//! `filter` is used, with the jump in the first place.
//!
//! **nft or iptables.** Where the kernel has `queue` for nftables, and `nft` is installed, the rules are a table of
//! nftables' own (`nft`); else they are iptables', whose NFQUEUE every distribution's kernel has.
//!
//! **Fail closed.** No queue-bypass: with no manager listening nothing leaves. A change is one
//! transaction of `nft` or `iptables-restore`, so that there is no moment in which a packet slips by.

mod nft;
mod tool;

pub use tool::tools_path;
pub(crate) use tool::TOOL_MARK;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::config::Config;
use crate::rawsock::{MARK, MARK_LOCAL};
use nft::Nft;
pub use tool::{Family, Tool};

const TABLES: [&str; 2] = ["security", "filter"];
const PREFIX: &str = "TCPR-";

/// The rules of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The service's name.
    pub service: String,
    /// The virtual IPs.
    pub virtual_ips: Vec<IpAddr>,
    /// The ports that peers connect to.
    pub ports: Vec<u16>,
    /// The destinations that the service connects to.
    pub outgoing: Vec<SocketAddr>,
    /// The queues for packets (in, out).
    pub queues: (u16, u16),
}

/// What manages packet rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// nftables' own rules.
    Nft,
    /// iptables' rules, by this program.
    Iptables(Tool),
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backend::Nft => f.write_str("nft"),
            Backend::Iptables(tool) => tool.fmt(f),
        }
    }
}

/// Where rules were installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// What did it.
    pub by: Backend,
    /// Of iptables `security`, or `filter` where the kernel lacks it: then the host's firewall does not see the
    /// protected ports.
    pub table: String,
}

/// Whether the rules are as they should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RulesState {
    /// Not one of them is there.
    Absent,
    /// Something is missing or different; the text says what.
    Wrong(String),
    /// All are there, and in force.
    Installed(Installed),
}

/// Rules that a service has in one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The service that they are named after.
    pub service: String,
    /// What manages them.
    pub by: Backend,
    /// The table.
    pub table: String,
}

impl Rules {
    /// The rules that a configuration asks for.
    pub fn of(config: &Config) -> Rules {
        let s = &config.service;
        Rules {
            service: s.name.clone(),
            virtual_ips: s.virtual_ips.iter().map(|v| v.addr).collect(),
            ports: s.ports.iter().map(|p| p.port).collect(),
            outgoing: s.outgoing.iter().map(|o| o.address).collect(),
            queues: s.queues,
        }
    }

    /// Installs the rules, or puts them right, and removes those of the other backend. With iptables two processes are
    /// started for each family of addresses where all is well: one to see what is there, one to change it.
    pub fn install(&self) -> io::Result<Installed> {
        let nft = Nft::find();
        if let Some(nft) = nft.as_ref().filter(|nft| nft.probe().is_ok()) {
            nft.install(self)?;
            // Only now, so that there is no moment without rules.
            for family in Family::ALL {
                remove_for(family, &self.service)?;
            }
            return Ok(Installed { by: Backend::Nft, table: nft::table(&self.service) });
        }
        let installed = self.install_iptables()?;
        if let Some(nft) = nft {
            nft.remove(&self.service)?;
        }
        Ok(installed)
    }

    fn install_iptables(&self) -> io::Result<Installed> {
        let mut first = None;
        for family in Family::ALL {
            if self.of_family(family) {
                let installed = self.install_for(family)?;
                first.get_or_insert(installed);
            } else {
                remove_for(family, &self.service)?;
            }
        }
        first.ok_or_else(|| io::Error::other("there is no virtual IP to protect"))
    }

    fn of_family(&self, family: Family) -> bool {
        self.virtual_ips.iter().any(|ip| family.has(*ip))
    }

    fn install_for(&self, family: Family) -> io::Result<Installed> {
        let views = tool::views(family)?;
        let mut refusals = Vec::new();
        for table in TABLES {
            for view in &views {
                let mut script = self.script(family, table, view);
                for (t, chains) in by_table(view, &self.service) {
                    if t != table {
                        script += &removal(&t, &chains, view);
                    }
                }
                if let Err(e) = view.tool.restore(&script) {
                    refusals.push(format!("{}, table {table}: {e}", view.tool));
                    continue;
                }
                // Only now, so that there is no moment without rules.
                for other in views.iter().filter(|v| v.tool != view.tool) {
                    remove_from(other, &self.service)?;
                }
                return Ok(Installed { by: Backend::Iptables(view.tool.clone()), table: table.into() });
            }
        }
        Err(io::Error::other(format!(
            "cannot install the packet rules of service \"{}\": this needs root (CAP_NET_ADMIN) and a kernel with NFQUEUE (try `modprobe xt_NFQUEUE`, or `modprobe nfnetlink_queue nft_compat`)\n{}",
            self.service,
            refusals.join("\n")
        )))
    }

    /// Removes everything that `install` installed, and nothing of other services. False: there was
    /// nothing.
    pub fn remove(&self) -> io::Result<bool> {
        remove(&self.service)
    }

    /// Whether the rules are there as `install` would make them. One process is started for each family, and one or two
    /// for nftables.
    pub fn installed(&self) -> io::Result<RulesState> {
        let native = Nft::find().map_or(Ok(RulesState::Absent), |nft| nft.installed(self))?;
        Ok(match (native, self.installed_iptables()?) {
            (native, RulesState::Absent) => native,
            (RulesState::Absent, iptables) => iptables,
            _ => RulesState::Wrong(format!("the rules of service \"{}\" are nftables' and iptables' at once", self.service)),
        })
    }

    fn installed_iptables(&self) -> io::Result<RulesState> {
        let mut all = None;
        for family in Family::ALL.into_iter().filter(|f| self.of_family(*f)) {
            let state = self.installed_for(family)?;
            all = Some(match all {
                None => state,
                Some(RulesState::Installed(first)) if matches!(state, RulesState::Installed(_)) => RulesState::Installed(first),
                Some(RulesState::Absent) if state == RulesState::Absent => RulesState::Absent,
                Some(wrong @ RulesState::Wrong(_)) => wrong,
                Some(_) => RulesState::Wrong(format!(
                    "the rules of service \"{}\" are there for one family of addresses only",
                    self.service
                )),
            });
        }
        Ok(all.unwrap_or(RulesState::Absent))
    }

    fn installed_for(&self, family: Family) -> io::Result<RulesState> {
        let views = listed(family)?;
        let mut found = Vec::new();
        for view in &views {
            for (table, _) in by_table(view, &self.service) {
                found.push((view, table));
            }
        }
        let [(view, table)] = &found[..] else {
            return Ok(match found.is_empty() {
                true => RulesState::Absent,
                false => RulesState::Wrong(format!("the chains of service \"{}\" are in several tables", self.service)),
            });
        };
        Ok(match self.difference(family, view, table) {
            Some(text) => RulesState::Wrong(text),
            None => RulesState::Installed(Installed { by: Backend::Iptables(view.tool.clone()), table: table.clone() }),
        })
    }

    fn difference(&self, family: Family, view: &tool::View, table: &str) -> Option<String> {
        for (hook, chain, rules) in self.chains(family) {
            let there: Vec<_> = view.rules(table, &chain).map(canonical).collect();
            let wanted: Vec<_> = rules.iter().map(|r| canonical(r)).collect();
            if there != wanted {
                return Some(format!("the rules of {chain} in table {table} are not those of the configuration"));
            }
            // Behind a rule of somebody else the jump may never be reached.
            let ahead: Vec<&str> = view.rules(table, hook).take_while(|r| target(r) != Some(chain.as_str())).collect();
            if ahead.len() == view.rules(table, hook).count() {
                return Some(format!("{hook} in table {table} does not lead to {chain}"));
            }
            if let Some(r) = ahead.iter().find(|r| !target(r).is_some_and(is_ours)) {
                return Some(format!("{hook} in table {table} has a rule before {chain}: {r}"));
            }
        }
        None
    }

    /// (hook, chain, rules) of both directions.
    fn chains(&self, family: Family) -> [(&'static str, String, Vec<String>); 2] {
        let mark = format!("-m mark --mark {MARK:#x} -j RETURN");
        let (to_in, to_out) =
            (format!("-j NFQUEUE --queue-num {}", self.queues.0), format!("-j NFQUEUE --queue-num {}", self.queues.1));
        let mut input = vec!["-i lo -j RETURN".to_string(), mark.clone()];
        let local = format!("-m mark --mark {MARK_LOCAL:#x} -j DROP");
        let mut output = vec!["-o lo -j RETURN".to_string(), local, mark];
        let bits = family.bits();
        for vip in self.virtual_ips.iter().filter(|ip| family.has(**ip)) {
            for port in &self.ports {
                input.push(format!("-d {vip}/{bits} -p tcp -m tcp --dport {port} {to_in}"));
                output.push(format!("-s {vip}/{bits} -p tcp -m tcp --sport {port} {to_out}"));
            }
            for to in self.outgoing.iter().filter(|to| family.has(to.ip())) {
                let (a, port) = (to.ip(), to.port());
                input.push(format!("-s {a}/{bits} -d {vip}/{bits} -p tcp -m tcp --sport {port} {to_in}"));
                output.push(format!("-s {vip}/{bits} -d {a}/{bits} -p tcp -m tcp --dport {port} {to_out}"));
            }
        }
        let [i, o] = chain_names(&self.service);
        [("INPUT", i, input), ("OUTPUT", o, output)]
    }

    /// One transaction that makes the chains, or refills them, and enters them first.
    fn script(&self, family: Family, table: &str, view: &tool::View) -> String {
        let mut s = format!("*{table}\n");
        let chains = self.chains(family);
        for (_, chain, _) in &chains {
            // To declare a chain that exists empties it.
            let _ = writeln!(s, ":{chain} - [0:0]");
        }
        for (hook, chain, rules) in &chains {
            for rule in rules {
                let _ = writeln!(s, "-A {chain} {rule}");
            }
            s += &unhook(view, table, chain);
            let _ = writeln!(s, "-I {hook} 1 -p tcp -j {chain}");
        }
        s + "COMMIT\n"
    }
}

/// What installs rules on this machine, and why that.
pub fn backend() -> io::Result<(Backend, String)> {
    let why = match Nft::find().map(|nft| nft.probe()) {
        Some(Ok(())) => return Ok((Backend::Nft, "this kernel has its queue".into())),
        Some(Err(e)) => {
            let text = e.to_string();
            let first = text.split(';').next().and_then(|line| line.rsplit("Error: ").next()).unwrap_or_default();
            format!("nft cannot queue here ({first})")
        }
        None => "nft is not installed".into(),
    };
    let first = tool::views(Family::V4)?.into_iter().next();
    let view = first.ok_or_else(|| io::Error::other("no iptables lists its rules"))?;
    Ok((Backend::Iptables(view.tool), why))
}

/// Removes all packet rules of a service by its name, whatever installed them. False: there were none.
pub fn remove(service: &str) -> io::Result<bool> {
    let mut any = Nft::find().map_or(Ok(false), |nft| nft.remove(service))?;
    for family in Family::ALL {
        any |= remove_for(family, service)?;
    }
    Ok(any)
}

fn remove_for(family: Family, service: &str) -> io::Result<bool> {
    let mut any = false;
    for view in listed(family)? {
        any |= remove_from(&view, service)?;
    }
    Ok(any)
}

/// What is there of iptables; nothing on a machine without IPv6, or without the tools.
fn listed(family: Family) -> io::Result<Vec<tool::View>> {
    match tool::views(family) {
        Err(e) if family == Family::V6 || e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        views => views,
    }
}

/// The services that have packet rules here, whether or not anybody runs them.
pub fn leftovers() -> io::Result<Vec<Leftover>> {
    let native = Nft::find().map(|nft| nft.services()).unwrap_or_default();
    let mut list: Vec<Leftover> =
        native.into_iter().map(|service| Leftover { table: nft::table(&service), service, by: Backend::Nft }).collect();
    let mut views = Vec::new();
    for family in Family::ALL {
        views.extend(listed(family)?);
    }
    for view in views {
        let found: BTreeSet<(String, String)> = view
            .chains()
            .filter_map(|(table, chain)| {
                let name = chain.strip_prefix(PREFIX)?;
                let name = name.strip_suffix("-I").or_else(|| name.strip_suffix("-O"))?;
                Some((name.to_ascii_lowercase(), table.to_string()))
            })
            .collect();
        list.extend(found.into_iter().map(|(service, table)| Leftover {
            service,
            by: Backend::Iptables(view.tool.clone()),
            table,
        }));
    }
    Ok(list)
}

fn remove_from(view: &tool::View, service: &str) -> io::Result<bool> {
    let script: String = by_table(view, service).iter().map(|(table, chains)| removal(table, chains, view)).collect();
    if script.is_empty() {
        return Ok(false);
    }
    view.tool
        .restore(&script)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot remove the packet rules of service \"{service}\": {e}")))?;
    Ok(true)
}

fn chain_names(service: &str) -> [String; 2] {
    let name = service.to_ascii_uppercase();
    [format!("{PREFIX}{name}-I"), format!("{PREFIX}{name}-O")]
}

fn is_ours(chain: &str) -> bool {
    chain.starts_with(PREFIX)
}

/// The tables in which the service has chains, with those chains.
fn by_table(view: &tool::View, service: &str) -> Vec<(String, Vec<String>)> {
    let names = chain_names(service);
    let mut list: Vec<(String, Vec<String>)> = Vec::new();
    for (table, chain) in view.chains().filter(|(_, c)| names.iter().any(|n| n == c)) {
        match list.iter_mut().find(|(t, _)| t == table) {
            Some((_, chains)) => chains.push(chain.to_string()),
            None => list.push((table.to_string(), vec![chain.to_string()])),
        }
    }
    list
}

fn removal(table: &str, chains: &[String], view: &tool::View) -> String {
    let mut s = format!("*{table}\n");
    for chain in chains {
        s += &unhook(view, table, chain);
    }
    for chain in chains {
        let _ = writeln!(s, "-F {chain}\n-X {chain}");
    }
    s + "COMMIT\n"
}

/// Deletes every rule that leads to the chain, as it was listed.
fn unhook(view: &tool::View, table: &str, chain: &str) -> String {
    let mut s = String::new();
    for (from, rule) in view.table(table).filter(|(_, r)| target(r) == Some(chain)) {
        let _ = writeln!(s, "-D {from} {rule}");
    }
    s
}

/// The chain or target that a rule leads to.
fn target(rule: &str) -> Option<&str> {
    let mut words = rule.split_whitespace();
    words.find(|w| matches!(*w, "-j" | "-g"))?;
    words.next()
}

/// A rule with what versions of iptables write differently taken out: the order of its options, the
/// host prefix, the full mask, the name of the match that `-p tcp` implies.
fn canonical(rule: &str) -> BTreeSet<(String, String)> {
    let mut options = BTreeSet::new();
    let mut words = rule.split_whitespace().peekable();
    while let Some(option) = words.next() {
        let value = words.next_if(|w| !w.starts_with('-')).unwrap_or_default();
        if (option, value) == ("-m", "tcp") {
            continue;
        }
        let value = value.strip_suffix("/32").or_else(|| value.strip_suffix("/128")).unwrap_or(value);
        let value = value.strip_suffix("/0xffffffff").unwrap_or(value);
        options.insert((option.to_string(), value.to_string()));
    }
    options
}
