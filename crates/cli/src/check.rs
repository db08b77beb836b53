//! What can be said without a manager: check, cleanup.

use serde_json::json;
use tcpr_node::vip::Vip;
use tcpr_node::{nat, rules};

use crate::failure::Failure;
use crate::{load, Common};

/// `tcpr check`.
pub fn check(common: &Common, no_preload: bool) -> Result<u8, Failure> {
    let config = load(common.config.as_ref())?;
    let mut unsupported = config.unsupported();
    let mut warnings = config.warnings();
    warnings.extend(nat::trouble(&config, &nat::rulesets()));
    let unhooked = config.unsupported_unhooked();
    if no_preload {
        unsupported.extend(unhooked);
    } else {
        warnings.extend(unhooked.into_iter().map(|what| format!("tcpr run --no-preload will refuse it: {what}")));
    }
    if common.json {
        println!(
            "{}",
            json!({ "ok": unsupported.is_empty(), "member": config.me().name, "unsupported": unsupported, "warnings": warnings })
        );
    } else {
        for u in &unsupported {
            println!("not built: {u}");
        }
        for w in &warnings {
            println!("warning: {w}");
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

/// `tcpr cleanup`.
pub fn cleanup(common: &Common) -> Result<u8, Failure> {
    let mut done = Vec::new();
    if let Ok(config) = load(common.config.as_ref()) {
        if rules::remove(&config.service.name)? {
            done.push(format!("packet rules of service {}", config.service.name));
        }
        for v in &config.service.virtual_ips {
            let addr = v.addr;
            let removed = Vip::new(&config.service.interface, addr, v.prefix).and_then(|mut v| v.remove());
            if removed? {
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
