//! What there is without tcpr: keepalived moves the virtual IP, and every connection is lost.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tcpr_lab::member::example;
use tcpr_lab::{wait_for, wait_listening, Host, Lab, Process};

use super::failover::SILENCE;
use super::report::{Group, Report};
use super::stand::{connect, echo, PATIENCE, PORT};
use super::Options;
use crate::failure::Failure;

const PROGRAM: &str = "/usr/sbin/keepalived";
const ADDRESS: &str = "192.0.2.200";
/// Connections that are there when the host is cut off.
const CONNECTIONS: u64 = 64;
/// How long a connection that is lost may take to say so.
const SAY_SO: Duration = Duration::from_secs(2);

const LOST: Group = Group { bench: "failover", name: "connections lost", unit: "%", axis: "sessions" };

pub fn measure(options: &Options, report: &mut Report) {
    if !Path::new(PROGRAM).exists() {
        return report.remark("failover", "no row of keepalived: install the package keepalived".to_owned());
    }
    for run in 1..=options.runs {
        report.progress(&format!("failover: keepalived, host cut off, run {run}"));
        match one(options) {
            Ok((silence, lost)) => {
                let (at, series) = (Some(CONNECTIONS), "keepalived: host cut off, until a new connection answers");
                report.note(SILENCE, series, at, silence);
                report.note(LOST, "keepalived: host cut off", at, lost);
            }
            Err(error) => return report.remark("failover", format!("keepalived failed: {error}")),
        }
    }
}

/// Milliseconds until a new connection answers, and the percentage of the old ones that are lost.
fn one(options: &Options) -> Result<(f64, f64), Failure> {
    let lab = Lab::new("keepalived")?;
    let members = [lab.host("a", "192.0.2.1/24")?, lab.host("b", "192.0.2.2/24")?];
    let peer = lab.host("peer", "192.0.2.9/24")?;
    let mut processes = Vec::new();
    for (host, priority) in members.iter().zip([200, 100]) {
        let mut server = Command::new(example("traffic_server")?);
        server.arg(PORT.to_string());
        processes.push(host.spawn("server", server)?);
        wait_listening(host, PORT, PATIENCE)?;
        processes.push(start(options, host, priority)?);
        if priority == 200 {
            wait_address(host)?;
        }
    }
    let to = SocketAddr::new(ADDRESS.parse::<IpAddr>().expect("an address"), PORT);
    let mut all: Vec<TcpStream> = (0..CONNECTIONS).map(|_| connect(&peer, to)).collect::<Result<_, _>>()?;
    for stream in &mut all {
        echo(stream, b"hello").map_err(|e| format!("before: {e}"))?;
    }
    // The backup has heard the master for a while.
    std::thread::sleep(Duration::from_millis(500));
    members[0].cut_silent()?;
    let start = Instant::now();
    let wait = Duration::from_millis(u64::from(options.heartbeat).max(5));
    let anew = || {
        let stream = peer.enter(|| TcpStream::connect_timeout(&to, wait));
        stream.and_then(|mut s| s.set_read_timeout(Some(SAY_SO)).and_then(|()| echo(&mut s, b"hello again"))).is_ok()
    };
    if !wait_for(PATIENCE, anew) {
        return Err("the virtual IP has not moved".into());
    }
    let silence = start.elapsed().as_secs_f64() * 1e3;
    let question = b"are you there?";
    let asked: Vec<bool> = all.iter_mut().map(|s| s.write_all(question).is_ok()).collect();
    let lost = all.iter_mut().zip(asked).filter_map(|(s, asked)| {
        let mut back = [0; 14];
        let answers = asked && s.set_read_timeout(Some(SAY_SO)).is_ok() && s.read_exact(&mut back).is_ok();
        (!answers).then_some(())
    });
    let lost = lost.count() as f64 * 100.0 / all.len() as f64;
    drop(processes);
    Ok((silence, lost))
}

/// keepalived with an advertisement as often as tcpr's heartbeat; it gives up after three of them, and a little.
fn start(options: &Options, host: &Host, priority: u32) -> Result<Process, Failure> {
    let file = |name: &str| host.dir().join(name).display().to_string();
    // It counts in hundredths of a second.
    let interval = f64::from(options.heartbeat.next_multiple_of(10)) / 1000.0;
    let config = format!(
        "global_defs {{\n  vrrp_version 3\n  vrrp_garp_master_delay 0\n}}\nvrrp_instance v {{\n  state BACKUP\n  interface eth0\n  \
         virtual_router_id 51\n  priority {priority}\n  advert_int {interval}\n  virtual_ipaddress {{\n    {ADDRESS}/24\n  }}\n}}\n"
    );
    fs::write(file("keepalived.conf"), config)?;
    let mut command = Command::new(PROGRAM);
    command.args(["--dont-fork", "--log-console", "--vrrp", "--use-file", &file("keepalived.conf")]);
    command.args(["--pid", &file("keepalived.pid"), "--vrrp_pid", &file("vrrp.pid")]);
    host.spawn("keepalived", command).map_err(Failure::from)
}

fn wait_address(host: &Host) -> Result<(), Failure> {
    let there = || host.ip_cmd("-brief address show dev eth0").is_ok_and(|t| t.contains(ADDRESS));
    if wait_for(PATIENCE, there) {
        Ok(())
    } else {
        Err("keepalived has not taken the virtual IP".into())
    }
}
