//! Whether CRIU, which moves connections with their process, can run here at all.

use std::process::Command;

use super::report::Report;

/// Says what is in the way of a row of CRIU.
pub fn look(report: &mut Report) {
    let version = Command::new("criu").arg("--version").output();
    let text = match (version, Command::new("criu").arg("check").output()) {
        (Err(_), _) | (_, Err(_)) => "no row of CRIU: install the package criu".to_owned(),
        (Ok(version), Ok(check)) if !check.status.success() => {
            let first = String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or_default().to_owned();
            let said = String::from_utf8_lossy(&check.stderr).into_owned();
            let why = said.lines().find(|l| l.contains("Error")).unwrap_or("it does not say why");
            format!("no row of CRIU: `criu check` fails on this kernel ({first}): {}", why.trim())
        }
        (Ok(_), Ok(_)) => {
            "no row of CRIU: it runs here, but freezes a living process; of one that has died it has nothing to restore"
                .to_owned()
        }
    };
    report.remark("failover", text);
}
