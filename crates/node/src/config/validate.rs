//! Makes the typed configuration of the raw file, and collects every mistake on the way.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::mistakes::Mistakes;
use super::raw;
use super::service::service;
use super::types::{Arbiter, Config, Durability, Engine, Failover, Member, Recovery, Replication, Service, Standby};

pub(super) fn validate(f: raw::File, env_member: Option<&str>) -> Result<Config, Vec<String>> {
    let mut m = Mistakes::default();
    let members = members(&mut m, &f.members);
    let member_index = which_member(&mut m, &f, env_member);
    let service = match &f.service {
        Some(s) => Some(service(&mut m, s)),
        None => {
            m.add("[service] is missing; it needs at least virtual_ip, interface and a [[service.ports]]");
            None
        }
    };
    let replication = replication(&mut m, &f.replication, &members);
    let failover = failover(&mut m, &f);
    let recovery = Recovery {
        engine: m.word(
            "recovery.engine",
            f.recovery.engine.as_deref(),
            &[("repair", Engine::Repair), ("splice", Engine::Splice)],
        ),
        max_turn: m.ms("recovery.max_turn_ms", f.recovery.max_turn_ms, 50),
    };
    if let Some(s) = &service {
        across(&mut m, &members, s, &replication, &failover);
        if s.standby == Standby::Hot {
            hot(&mut m, &members, &replication, &recovery);
        }
    }
    match service {
        Some(service) if m.is_empty() => Ok(Config { member_index, members, service, replication, failover, recovery }),
        _ => Err(m.into_messages()),
    }
}

fn members(m: &mut Mistakes, raw: &[raw::Member]) -> Vec<Member> {
    match raw.len() {
        0 => m.add("[[members]] is missing; write one section with name and address for each of the two machines"),
        1 | 2 => {}
        n => m.add(format!("[[members]] appears {n} times; tcpr works with two members (or one, without protection)")),
    }
    let mut names = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    let mut members = Vec::new();
    for r in raw {
        if r.name.is_empty() {
            m.add("members.name is empty; give each member a name");
        } else if !names.insert(r.name.as_str()) {
            m.add(format!("members.name = \"{}\" appears twice; give each member its own name", r.name));
        }
        let address = m.address(&format!("members.address of \"{}\"", r.name), &r.address);
        let key = format!("members.heartbeat_paths of \"{}\"", r.name);
        let paths: Vec<IpAddr> = r.heartbeat_paths.iter().filter_map(|p| m.address(&key, p)).collect();
        for a in address.iter().chain(&paths) {
            if !addresses.insert(*a) {
                m.add(format!("members: the address {a} appears twice; every address belongs to one member, once"));
            }
        }
        // A member whose address is wrong stays in the list, or every index after it would be wrong too.
        members.push(Member {
            name: r.name.clone(),
            address: address.unwrap_or(IpAddr::from([0, 0, 0, 0])),
            heartbeat_paths: paths,
        });
    }
    if let [a, b] = &members[..] {
        let known = !a.address.is_unspecified() && !b.address.is_unspecified();
        if known && a.address.is_ipv4() != b.address.is_ipv4() {
            m.add(format!(
                "members.address: {} and {} are of different families; use IPv4 for both or IPv6 for both",
                a.address, b.address
            ));
        }
    }
    members
}

fn which_member(m: &mut Mistakes, f: &raw::File, env_member: Option<&str>) -> u8 {
    let names: Vec<String> = f.members.iter().map(|r| format!("\"{}\"", r.name)).collect();
    let names = names.join(" and ");
    let (source, name) = match (env_member, &f.member) {
        (Some(e), _) => ("TCPR_MEMBER", e),
        (None, Some(n)) => ("member", n.as_str()),
        (None, None) => {
            m.add(format!("member is missing; set it, or TCPR_MEMBER, to the name of this machine (members: {names})"));
            return 0;
        }
    };
    match f.members.iter().position(|r| r.name == name) {
        Some(i) => i.min(1) as u8,
        None => {
            m.add(format!(
                "{source} = \"{name}\" is not one of the members; use {}",
                if names.is_empty() { "the name of a [[members]] section" } else { &names }
            ));
            0
        }
    }
}

fn replication(m: &mut Mistakes, r: &raw::Replication, members: &[Member]) -> Replication {
    let key_file = match r.key_file.as_deref() {
        Some("") => {
            m.add("replication.key_file is empty; name the file that `tcpr keygen > FILE` wrote");
            None
        }
        Some(f) => Some(PathBuf::from(f)),
        None => None,
    };
    let local = members.iter().flat_map(Member::addresses).all(|a| a.is_loopback());
    if r.key_file.is_none() && members.len() > 1 && !local {
        m.add("replication.key_file is missing; make a key with `tcpr keygen > FILE`, copy it to both members and name it here");
    }
    Replication {
        port: m.port("replication.port", r.port.unwrap_or(7400)),
        durability: m.word(
            "replication.durability",
            r.durability.as_deref(),
            &[("sync", Durability::Sync), ("async", Durability::Async)],
        ),
        busy_poll: r.busy_poll_us.map(|us| Duration::from_micros(m.number("replication.busy_poll_us", us, 0, 1000) as u64)),
        key_file,
    }
}

fn failover(m: &mut Mistakes, f: &raw::File) -> Failover {
    let r = &f.failover;
    let heartbeat = m.ms("failover.heartbeat_ms", r.heartbeat_ms, 20);
    let misses = m.number("failover.misses", r.misses.unwrap_or(3), 1, 1000) as u32;
    let solo_after = m.ms("failover.solo_after_ms", r.solo_after_ms, 100);
    let suspect = heartbeat * misses;
    if solo_after < suspect {
        m.add(format!(
            "failover.solo_after_ms = {} is less than heartbeat_ms * misses = {}; a partner cannot be given up before it is suspected: use at least {}",
            solo_after.as_millis(), suspect.as_millis(), suspect.as_millis()
        ));
    }
    let mut reachability = Vec::new();
    for text in &r.reachability {
        if let Some(a) = m.address("failover.reachability", text) {
            if a.is_loopback() {
                m.add(format!("failover.reachability: {a} always answers; name machines that only a working network reaches"));
            } else if !reachability.contains(&a) {
                reachability.push(a);
            }
        }
    }
    let preferred = match &r.preferred {
        None => 0,
        Some(name) => match f.members.iter().position(|x| &x.name == name) {
            Some(i) => i.min(1) as u8,
            None => {
                m.add(format!("failover.preferred = \"{name}\" is not one of the members; use the name of one, or leave it out"));
                0
            }
        },
    };
    let endpoints = f.etcd.as_ref().map(|e| e.endpoints.clone());
    let arbiter = m.word(
        "failover.arbiter",
        r.arbiter.as_deref(),
        &[
            ("none", Arbiter::None),
            ("etcd", Arbiter::Etcd { endpoints: endpoints.clone().unwrap_or_default() }),
            ("keepalived", Arbiter::Keepalived),
        ],
    );
    match (&arbiter, endpoints) {
        (Arbiter::Etcd { .. }, Some(e)) if !e.is_empty() => {
            for url in e.iter().filter(|u| !u.starts_with("http://") && !u.starts_with("https://")) {
                m.add(format!("etcd.endpoints: \"{url}\" is not a URL; write it like http://192.0.2.10:2379"));
            }
        }
        (Arbiter::Etcd { .. }, _) => {
            m.add("failover.arbiter = \"etcd\" needs [etcd] with endpoints = [\"http://HOST:2379\", ...]");
        }
        (_, Some(_)) => m.add("[etcd] has no effect unless failover.arbiter = \"etcd\"; set that, or remove [etcd]"),
        (_, None) => {}
    }
    Failover {
        heartbeat_port: m.port("failover.heartbeat_port", r.heartbeat_port.unwrap_or(7400)),
        heartbeat,
        misses,
        solo_after,
        reachability,
        preferred,
        arbiter,
    }
}

/// What can only be judged with several sections in view.
fn across(m: &mut Mistakes, members: &[Member], service: &Service, replication: &Replication, failover: &Failover) {
    let vip = |a: &IpAddr| service.virtual_ips.iter().any(|v| v.addr == *a);
    for member in members {
        for a in member.addresses().filter(vip) {
            m.add(format!(
                "service.virtual_ip: {a} is also an address of member \"{}\"; the virtual IP moves between the members, give it an address of its own",
                member.name
            ));
        }
        for a in member.addresses().filter(|a| failover.reachability.contains(a)) {
            m.add(format!(
                "failover.reachability: {a} is an address of member \"{}\"; name somebody else, such as the gateway",
                member.name
            ));
        }
    }
    for a in failover.reachability.iter().filter(|a| vip(a)) {
        m.add(format!("failover.reachability: {a} is the virtual IP; name somebody else, such as the gateway"));
    }
    for o in service.outgoing.iter().map(|o| o.address).filter(|o| vip(&o.ip())) {
        m.add(format!(
            "service.outgoing.address = \"{o}\" is on the virtual IP, so it would not leave this machine; name another machine"
        ));
    }
    let family = |o: &std::net::SocketAddr| service.virtual_ips.iter().any(|v| v.addr.is_ipv4() == o.is_ipv4());
    for o in service.outgoing.iter().map(|o| o.address).filter(|o| !family(o)) {
        m.add(format!(
            "service.outgoing.address = \"{o}\" is of another family than the virtual IP, from which the service would connect; add a virtual IP of its family"
        ));
    }
    // A server that binds the wildcard address would meet the manager's own listener.
    if service.ports.iter().any(|p| p.port == replication.port) {
        m.add(format!("replication.port = {} is also a protected port; choose another one for replication", replication.port));
    }
}

/// What `standby = "hot"` cannot be combined with.
fn hot(m: &mut Mistakes, members: &[Member], replication: &Replication, recovery: &Recovery) {
    const KEY: &str = "service.standby = \"hot\"";
    if recovery.engine == Engine::Splice {
        m.add(format!(
            "{KEY} needs recovery.engine = \"repair\": engine \"splice\" makes sockets through accept, and the follower has accepted already"
        ));
    }
    if replication.durability == Durability::Async {
        m.add(format!(
            "{KEY} needs replication.durability = \"sync\": with \"async\" peers may have seen what the follower has not executed"
        ));
    }
    if members.len() == 1 {
        m.add(format!("{KEY} needs a second [[members]]: the follower lives there"));
    }
}
