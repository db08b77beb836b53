//! What can be said without a manager: check, doctor, cleanup.

use serde_json::json;
use tcpr_node::nfqueue::Queue;
use tcpr_node::rawsock::RawSender;
use tcpr_node::rules::{self, Rules, RulesState};
use tcpr_node::sockdiag::SockDiag;
use tcpr_node::vip::Vip;

use crate::{load, Common};

/// `tcpr check`.
pub fn check(common: &Common) -> Result<u8, String> {
    let config = load(common.config.as_ref())?;
    let unsupported = config.unsupported();
    if common.json {
        println!("{}", json!({ "ok": unsupported.is_empty(), "member": config.me().name, "unsupported": unsupported }));
    } else {
        for u in &unsupported {
            println!("not built yet: {u}");
        }
        println!(
            "member {} of service {}: {}",
            config.me().name,
            config.service.name,
            if unsupported.is_empty() { "the configuration is good" } else { "tcpr run will refuse it" }
        );
    }
    Ok(u8::from(!unsupported.is_empty()))
}

/// `tcpr doctor`.
pub fn doctor(common: &Common) -> Result<u8, String> {
    let mut findings: Vec<(&str, Result<String, String>)> = Vec::new();
    findings.push(("raw sockets", RawSender::open().map(|_| String::new()).map_err(|e| format!("{e}; run as root, or give CAP_NET_RAW and CAP_NET_ADMIN"))));
    findings.push(("sock_diag", SockDiag::open().map(|_| String::new()).map_err(|e| format!("{e}; the kernel needs CONFIG_INET_DIAG"))));
    let free = (60000..60100).find_map(|n| match Queue::open(n) {
        Ok(_) => Some(Ok(String::new())),
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => None,
        Err(e) => Some(Err(format!("{e}; the kernel needs CONFIG_NETFILTER_NETLINK_QUEUE, and root"))),
    });
    findings.push(("NFQUEUE", free.unwrap_or_else(|| Err("no free queue number".to_owned()))));
    let backend = rules::backend().map(|(backend, why)| format!("{backend}: {why}"));
    findings.push(("packet rules", backend.map_err(|e| e.to_string())));
    if let Ok(config) = load(common.config.as_ref()) {
        for v in &config.service.virtual_ips {
            let there = Vip::new(&config.service.interface, v.addr, v.prefix).map(|_| String::new());
            findings.push(("interface", there.map_err(|e| e.to_string())));
        }
        let installed = Rules::of(&config).installed().map(|state| match state {
            RulesState::Absent => "none of the service; tcpr run installs them".to_owned(),
            RulesState::Wrong(text) => format!("{text}; tcpr run installs them anew"),
            RulesState::Installed(at) => format!("{}, table {}", at.by, at.table),
        });
        findings.push(("rules", installed.map_err(|e| e.to_string())));
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

/// `tcpr cleanup`.
pub fn cleanup(common: &Common) -> Result<u8, String> {
    let mut done = Vec::new();
    if let Ok(config) = load(common.config.as_ref()) {
        if rules::remove(&config.service.name).map_err(|e| e.to_string())? {
            done.push(format!("packet rules of service {}", config.service.name));
        }
        for v in &config.service.virtual_ips {
            let addr = v.addr;
            let removed = Vip::new(&config.service.interface, addr, v.prefix).and_then(|mut v| v.remove());
            if removed.map_err(|e| e.to_string())? {
                done.push(format!("virtual IP {addr}"));
            }
        }
    }
    done.extend(tcpr_lab::Lab::sweep().into_iter().map(|lab| format!("laboratory {lab} of a dead process")));
    if common.json {
        println!("{}", json!({ "removed": done }));
    } else if done.is_empty() {
        println!("nothing was left behind");
    } else {
        done.iter().for_each(|d| println!("removed {d}"));
    }
    Ok(0)
}
