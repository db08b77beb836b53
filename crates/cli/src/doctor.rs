//! `tcpr doctor`: what this kernel, its settings and these privileges allow, and what to do about it.

use std::fs;

use serde_json::json;
use tcpr_node::conntrack::Conntrack;
use tcpr_node::manager::control::ControlRequest;
use tcpr_node::nat;
use tcpr_node::nfqueue::Queue;
use tcpr_node::rawsock::RawSender;
use tcpr_node::rules::{self, Rules, RulesState};
use tcpr_node::sockdiag::SockDiag;
use tcpr_node::vip::Vip;

use crate::ask::ask;
use crate::failure::Failure;
use crate::{load, Common};

/// What is as it should be, with a note or an empty one; or what to do.
type Finding = Result<String, String>;

/// Looks at everything, and says it.
pub fn doctor(common: &Common) -> Result<u8, Failure> {
    let plain = |_| String::new();
    let rules = nat::rulesets();
    let mut findings: Vec<(&str, Finding)> = vec![
        (
            "raw sockets",
            RawSender::open()
                .map(|_| String::new())
                .map_err(|e| format!("{e}; run as root, or give CAP_NET_RAW and CAP_NET_ADMIN")),
        ),
        ("sock_diag", SockDiag::open().map(|_| String::new()).map_err(|e| format!("{e}; the kernel needs CONFIG_INET_DIAG"))),
        ("NFQUEUE", queue()),
        ("changed packets", changed_packets()),
        ("conntrack", conntrack(&rules)),
        ("TCP options", tcp_options()),
    ];
    let backend = rules::backend().map(|(backend, why)| format!("{backend}: {why}"));
    findings.push(("packet rules", backend.map_err(|e| e.to_string())));
    if let Ok(config) = load(common.config.as_ref()) {
        for v in &config.service.virtual_ips {
            let there = Vip::new(&config.service.interface, v.addr, v.prefix).map(drop).map(plain);
            findings.push(("interface", there.map_err(|e| e.to_string())));
        }
        findings.push(("address translation", nat::trouble(&config, &rules).map_or_else(|| Ok(String::new()), Err)));
        let installed = Rules::of(&config).installed().map(|state| match state {
            RulesState::Absent => "none of the service; tcpr run installs them".to_owned(),
            RulesState::Wrong(text) => format!("{text}; tcpr run installs them anew"),
            RulesState::Installed(at) => format!("{}, table {}", at.by, at.table),
        });
        findings.push(("rules", installed.map_err(|e| e.to_string())));
        findings.push(("connection", crate::trial::connect(&config)));
        // Where a manager runs, it knows whether its partner's heartbeats come and its own arrive.
        if let Ok(status) = ask(&config, &ControlRequest::Status) {
            let partner = &status["partner"];
            if partner["connected"] == true {
                let trouble = partner["trouble"].as_str().map(str::to_owned);
                findings.push(("heartbeats", trouble.map_or_else(|| Ok(String::new()), Err)));
            }
        }
    }
    let good = findings.iter().all(|(_, r)| r.is_ok());
    if common.json {
        let list: Vec<_> = findings
            .iter()
            .map(|(what, r)| json!({ "what": what, "ok": r.is_ok(), "advice": r.as_ref().err(), "note": r.as_ref().ok().filter(|n| !n.is_empty()) }))
            .collect();
        println!("{}", json!({ "ok": good, "findings": list }));
    } else {
        for (what, result) in &findings {
            match result {
                Ok(note) if note.is_empty() => println!("ok    {what}"),
                Ok(note) => println!("ok    {what}: {note}"),
                Err(advice) => println!("FAIL  {what}: {advice}"),
            }
        }
    }
    Ok(u8::from(!good))
}

fn queue() -> Finding {
    let free = (60000..60100).find_map(|n| match Queue::open(n) {
        Ok(_) => Some(Ok(String::new())),
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => None,
        Err(e) => Some(Err(format!("{e}; the kernel needs CONFIG_NETFILTER_NETLINK_QUEUE, and root"))),
    });
    free.unwrap_or_else(|| Err("no free queue number".into()))
}

/// Newer kernels take no changed packets back from a queue in a user namespace. Elsewhere they do, and need no help of the
/// network card: a changed packet has its whole checksum.
fn changed_packets() -> Finding {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let fields: Vec<&str> = map.split_whitespace().collect();
    if fields.is_empty() || fields == ["0", "0", "4294967295"] {
        return Ok("with full checksums, whatever the card offloads".to_owned());
    }
    Err("this is a user namespace, from which newer kernels take no changed packets (engine \"splice\", --no-preload, and now and then an acknowledgement); run in the host's own, with CAP_NET_ADMIN".into())
}

/// Rules that ask for a state of connection tracking, which has not seen the connections begin that a new master takes over. It
/// is told of them, where it listens; else these rules decide.
fn conntrack(rules: &[String]) -> Finding {
    let lines = || rules.iter().flat_map(|text| text.lines()).map(str::trim);
    let asks = |line: &&str| ["ctstate", "--state", "ct state"].iter().any(|words| line.contains(words));
    let Some(rule) = lines().find(asks) else { return Ok(String::new()) };
    let untold = match Conntrack::open().and_then(|mut conntrack| conntrack.probe()) {
        Ok(()) => return Ok(format!("taken-over connections are made known to it, and \"{rule}\" takes them for what they are")),
        Err(error) => format!(
            "connection tracking cannot be told of taken-over connections ({error}; try `modprobe nf_conntrack_netlink`), and"
        ),
    };
    let setting =
        |name: &str| fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).unwrap_or_default().trim().to_owned();
    if setting("nf_conntrack_tcp_loose") == "0" {
        return Err(format!("{untold} to \"{rule}\" they are none, with nf_conntrack_tcp_loose = 0; sysctl net.netfilter.nf_conntrack_tcp_loose=1, or exempt the virtual IP"));
    }
    let drops = |line: &&str| {
        let line = line.to_ascii_lowercase();
        line.contains("invalid") && (line.contains("drop") || line.contains("reject"))
    };
    match lines().find(drops) {
        Some(rule) => Err(format!("{untold} \"{rule}\" would drop them; exempt the virtual IP and `-i lo` from it")),
        None => Ok(format!("{untold} it takes them up in their middle")),
    }
}

/// Options that both members must have: a session keeps those that it began with.
fn tcp_options() -> Finding {
    let off = |name: &&str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).is_ok_and(|value| value.trim() == "0");
    let off: Vec<&str> = ["tcp_timestamps", "tcp_sack", "tcp_window_scaling"].into_iter().filter(off).collect();
    if off.is_empty() {
        return Ok(String::new());
    }
    let settings: Vec<String> = off.iter().map(|name| format!("net.ipv4.{name}=1")).collect();
    Err(format!(
        "sessions that use {} elsewhere cannot be spliced here, or go on slowly; sysctl {}",
        off.join(", "),
        settings.join(" ")
    ))
}
