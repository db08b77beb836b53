//! The rules in nftables' own words, for a kernel that has its `queue`: a table for each service, and in it a chain for
//! each hook. They see what the rules of iptables would: the priority is that of iptables' table `security`, behind the
//! host's own firewall, and what passes here goes on with the chains behind.

use std::fmt::Write;
use std::io;
use std::path::PathBuf;

use super::{tool, Backend, Family, Installed, Rules, RulesState, MARK, MARK_LOCAL};

const PREFIX: &str = "tcpr-";

/// The program `nft` of this machine.
pub(super) struct Nft(PathBuf);

impl Nft {
    /// `None` if it is not installed.
    pub(super) fn find() -> Option<Nft> {
        tool::find("nft").map(Nft)
    }

    /// Whether this kernel takes a rule with `queue`. It is made and removed again in one transaction.
    pub(super) fn probe(&self) -> io::Result<()> {
        let table = format!("inet {PREFIX}probe.{}", std::process::id());
        self.apply(&format!("add table {table}\nadd chain {table} c\nadd rule {table} c queue num 0\ndelete table {table}\n"))
    }

    /// Installs the rules in place of what the service's table held.
    pub(super) fn install(&self, rules: &Rules) -> io::Result<()> {
        self.apply(&script(rules)).map_err(|e| {
            io::Error::new(e.kind(), format!("cannot install the packet rules of service \"{}\": {e}", rules.service))
        })
    }

    /// Removes the service's table. False: there was none.
    pub(super) fn remove(&self, service: &str) -> io::Result<bool> {
        if !self.services().iter().any(|s| s == service) {
            return Ok(false);
        }
        self.apply(&format!("delete table {}\n", table(service))).map(|()| true)
    }

    /// The services that have a table.
    pub(super) fn services(&self) -> Vec<String> {
        // Where it lists nothing there is nothing: no nftables in this kernel. Who lacks privileges hears of it from
        // iptables, or from the change that follows.
        let listing = tool::run(&self.0, &["list", "tables", "inet"], "").unwrap_or_default();
        let names = listing.lines().filter_map(|l| l.strip_prefix("table inet ")?.strip_prefix(PREFIX));
        names.map(|n| n.trim().to_owned()).filter(|n| !n.starts_with("probe.")).collect()
    }

    /// Whether the rules are there as `install` would make them.
    pub(super) fn installed(&self, rules: &Rules) -> io::Result<RulesState> {
        if !self.services().contains(&rules.service) {
            return Ok(RulesState::Absent);
        }
        let table = table(&rules.service);
        let words: Vec<&str> = ["-n", "list", "table"].into_iter().chain(table.split(' ')).collect();
        Ok(match canonical(&tool::run(&self.0, &words, "")?) == canonical(&ruleset(rules)) {
            true => RulesState::Installed(Installed { by: Backend::Nft, table }),
            false => RulesState::Wrong(format!("table {table} is not that of the configuration")),
        })
    }

    /// Applies a script, which is one transaction.
    pub(super) fn apply(&self, script: &str) -> io::Result<()> {
        tool::run(&self.0, &["-f", "-"], script).map(drop)
    }
}

pub(super) fn table(service: &str) -> String {
    format!("inet {PREFIX}{service}")
}

/// One transaction that replaces the table, whether or not it is there.
pub(super) fn script(rules: &Rules) -> String {
    let table = table(&rules.service);
    format!("add table {table}\ndelete table {table}\n{}", ruleset(rules))
}

/// The table.
fn ruleset(rules: &Rules) -> String {
    let (to_in, to_out) = (format!("queue num {}", rules.queues.0), format!("queue num {}", rules.queues.1));
    let mut input = format!("iifname \"lo\" accept\nmeta mark {MARK:#x} accept\n");
    let mut output = format!("oifname \"lo\" accept\nmeta mark {MARK_LOCAL:#x} drop\nmeta mark {MARK:#x} accept\n");
    for (family, ip) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
        for vip in rules.virtual_ips.iter().filter(|vip| family.has(**vip)) {
            for port in &rules.ports {
                let _ = writeln!(input, "{ip} daddr {vip} tcp dport {port} {to_in}");
                let _ = writeln!(output, "{ip} saddr {vip} tcp sport {port} {to_out}");
            }
            for to in rules.outgoing.iter().filter(|to| family.has(to.ip())) {
                let (a, port) = (to.ip(), to.port());
                let _ = writeln!(input, "{ip} saddr {a} {ip} daddr {vip} tcp sport {port} {to_in}");
                let _ = writeln!(output, "{ip} saddr {vip} {ip} daddr {a} tcp dport {port} {to_out}");
            }
        }
    }
    let chain = |hook, rules| format!("chain {hook} {{\ntype filter hook {hook} priority 50; policy accept;\n{rules}}}\n");
    format!("table {} {{\n{}{}}}\n", table(&rules.service), chain("input", input), chain("output", output))
}

/// A table with what versions of nft write differently taken out: white space, and the name of the number of a queue.
pub(super) fn canonical(table: &str) -> Vec<String> {
    let lines = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.filter(|l| !l.is_empty()).map(|l| l.replace("queue to ", "queue num ")).collect()
}
