//! What stands between peers and members, or is done to a member, in real life: host firewalls, their reload, translation of
//! addresses.

use std::io;
use std::process::Command;
use std::time::Duration;

use crate::host::{Host, Lab};
use crate::sys::other;

/// A host firewall, as distributions and guides have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firewall {
    /// INVALID is dropped first of all.
    InvalidFirst,
    /// The same, after everything on `lo` was accepted.
    InvalidAfterLo,
    /// What belongs to a known connection passes, and SYNs to the protected port, and nothing else.
    OnlyEstablished,
}

impl Host {
    /// Runs a command of iptables, or of another tool, in the host; an error has what it printed.
    pub fn tool(&self, line: &str) -> io::Result<String> {
        self.script(line, "")
    }

    /// The same with text to read.
    pub fn script(&self, line: &str, input: &str) -> io::Result<String> {
        let mut shell = Command::new("/bin/sh");
        // `run` gives no input.
        shell.arg("-c").arg(format!("printf %s \"$INPUT\" | {line}")).env("INPUT", input);
        shell.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
        let out = self.run(shell, Duration::from_secs(20))?;
        if !out.status.success() {
            return Err(other(format!("{line}: {}", String::from_utf8_lossy(&out.stderr).trim())));
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Puts a firewall up, by `iptables` or `iptables-legacy` (and in IPv4 only).
    pub fn firewall(&self, iptables: &str, firewall: Firewall, port: u16) -> io::Result<()> {
        let invalid = "-A INPUT -m conntrack --ctstate INVALID -j DROP";
        let lo = "-A INPUT -i lo -j ACCEPT";
        let known = "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
        let new = format!("-A INPUT -p tcp --dport {port} -m conntrack --ctstate NEW --syn -j ACCEPT");
        let rules = match firewall {
            Firewall::InvalidFirst => vec![invalid.to_owned(), lo.to_owned()],
            Firewall::InvalidAfterLo => vec![lo.to_owned(), invalid.to_owned()],
            // Heartbeats, replication, and who looks for this host.
            Firewall::OnlyEstablished => {
                let others = ["-A INPUT -p icmp -j ACCEPT", "-A INPUT -p udp -j ACCEPT"].map(str::to_owned);
                let link = format!("-A INPUT -p tcp ! --dport {port} -m conntrack --ctstate NEW -j ACCEPT");
                [lo.to_owned(), known.to_owned(), new, link]
                    .into_iter()
                    .chain(others)
                    .chain(["-P INPUT DROP".to_owned()])
                    .collect()
            }
        };
        for rule in rules {
            self.tool(&format!("{iptables} {rule}"))?;
        }
        Ok(())
    }
}

impl Lab {
    /// A peer in a network of its own (198.51.100.0/24), behind a router at `address` that translates its addresses.
    pub fn peer_behind_nat(&self, name: &str, address: &str) -> io::Result<Host> {
        let router = self.host("nat", address)?;
        router.ip_cmd("addr add 198.51.100.1/24 dev eth0")?;
        router.sysctl("net.ipv4.ip_forward", "1")?;
        router.sysctl("net.ipv4.conf.eth0.send_redirects", "0")?;
        router.sysctl("net.ipv4.conf.all.send_redirects", "0")?;
        router.tool("iptables -t nat -A POSTROUTING -s 198.51.100.0/24 -j MASQUERADE")?;
        let peer = self.host(name, "198.51.100.9/24")?;
        peer.ip_cmd("route add default via 198.51.100.1")?;
        Ok(peer)
    }
}
