//! Rules of this host that translate the destination of what peers send: such a connection is known to the kernel that has
//! translated its first packet, and to no other. The partner answers from the port behind the translation, and the peer, which has
//! never spoken with that, resets the connection.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::process::Command;

use crate::config::Config;
use crate::rules::{tools_path, TOOL_MARK};

/// What the tools for packet rules print, whatever has made the rules. Needs the privilege to see them.
#[must_use]
pub fn rulesets() -> Vec<String> {
    let tools: [(&str, &[&str]); 5] = [
        ("iptables-save", &[]),
        ("iptables-legacy-save", &[]),
        ("ip6tables-save", &[]),
        ("ip6tables-legacy-save", &[]),
        ("nft", &["list", "ruleset"]),
    ];
    let said = |(program, arguments): &(&str, &[&str])| {
        let output = Command::new(program).args(*arguments).env(TOOL_MARK, "1").env("PATH", tools_path()).output().ok()?;
        String::from_utf8(output.stdout).ok()
    };
    tools.iter().filter_map(said).collect()
}

/// What is to be said of a rule that translates connections to the service's ports, if there is one.
#[must_use]
pub fn trouble(config: &Config, rulesets: &[String]) -> Option<String> {
    let service = &config.service;
    let ports: Vec<u16> = service.ports.iter().map(|p| p.port).collect();
    let virtual_ips: Vec<IpAddr> = service.virtual_ips.iter().map(|v| v.addr).collect();
    let members: Vec<IpAddr> = config.members.iter().flat_map(|m| m.addresses()).collect();
    let rule = rulesets
        .iter()
        .flat_map(|text| text.lines())
        .map(str::trim)
        .find(|line| translates(line, &ports, &virtual_ips, &members))?;
    Some(format!(
        "\"{rule}\" translates what peers connect to: after a takeover the partner's kernel does not know of it, and these connections \
         are reset; have the server listen where the peers connect to, and name that port in [[service.ports]]"
    ))
}

/// Whether a rule, of iptables or nftables, sends packets for somewhere else to one of the ports. (What is matched is not
/// looked at: other rules may have to do with it.)
fn translates(rule: &str, ports: &[u16], virtual_ips: &[IpAddr], members: &[IpAddr]) -> bool {
    let lower = rule.to_ascii_lowercase();
    // What this host itself connects to is no peer's.
    if lower.starts_with("-a output") || lower.starts_with(':') || lower.starts_with("chain ") {
        return false;
    }
    let word = |name: &str| lower.split_whitespace().position(|w| w == name);
    let Some(at) = word("dnat").or_else(|| word("redirect")) else { return false };
    let split = |c: char| c.is_whitespace() || matches!(c, '{' | '}' | ',' | ';');
    let targets: Vec<(Option<IpAddr>, Option<RangeInclusive<u16>>)> =
        lower.split_whitespace().skip(at + 1).flat_map(|w| w.split(split)).filter_map(target).collect();
    let addresses = || targets.iter().filter_map(|(ip, _)| *ip);
    let mut numbers = targets.iter().filter_map(|(_, ports)| ports.clone()).peekable();
    if addresses().next().is_some() && !addresses().any(|ip| virtual_ips.contains(&ip) || members.contains(&ip)) {
        return false;
    }
    if numbers.peek().is_none() {
        // The port stays: that of another address, or one that goes to another address.
        return addresses().any(|ip| virtual_ips.contains(&ip)) || ports.iter().any(|p| lower.contains(&format!("dport {p} ")));
    }
    numbers.any(|range| ports.iter().any(|port| range.contains(port)))
}

/// An address, a port or several, or both, as the tools write them.
fn target(word: &str) -> Option<(Option<IpAddr>, Option<RangeInclusive<u16>>)> {
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    if let Ok(both) = word.parse::<SocketAddr>() {
        return Some((Some(both.ip()), Some(both.port()..=both.port())));
    }
    if let Ok(ip) = word.trim_matches(['[', ']']).parse() {
        return Some((Some(ip), None));
    }
    if let Some(ports) = range(word) {
        return Some((None, Some(ports)));
    }
    let (ip, ports) = word.rsplit_once(':')?;
    let ip = ip.trim_matches(['[', ']']);
    Some((if ip.is_empty() { None } else { Some(ip.parse().ok()?) }, Some(range(ports)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_translate_to_the_service() {
        let (vip, member): (IpAddr, IpAddr) = ("192.0.2.200".parse().unwrap(), "192.0.2.1".parse().unwrap());
        let six: IpAddr = "2001:db8::200".parse().unwrap();
        let is = |rule: &str| translates(rule, &[5555, 443], &[vip, six], &[member]);
        for rule in [
            "-A PREROUTING -d 192.0.2.200/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 192.0.2.200:5555",
            "-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination :5555",
            "-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 192.0.2.1:5550-5560",
            "-A PREROUTING -d 198.51.100.7/32 -p tcp -j DNAT --to-destination 192.0.2.200",
            "-A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 5555",
            "-A PREROUTING -p tcp -m tcp --dport 443 -j REDIRECT",
            "-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination [2001:db8::200]:5555",
            "tcp dport 80 dnat to 192.0.2.200:5555",
            "tcp dport 80 counter packets 1 bytes 60 redirect to :443",
            "ip daddr 192.0.2.200 tcp dport 80 dnat ip to 192.0.2.1:5555",
            "dnat ip to tcp dport map { 80 : 192.0.2.200 . 5555, 81 : 192.0.2.3 . 82 }",
        ] {
            assert!(is(rule), "{rule}");
        }
        for rule in [
            "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 5555 -j DNAT --to-destination 172.17.0.2:5555",
            "-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 192.0.2.200:8080",
            "-A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080",
            "-A OUTPUT -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 5555",
            "-A INPUT -p tcp -m tcp --dport 5555 -j ACCEPT",
            ":DNAT - [5555:5555]",
            "chain dnat { # 5555",
            "tcp dport 5555 accept",
            "",
        ] {
            assert!(!is(rule), "{rule}");
        }
    }
}
