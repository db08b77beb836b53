//! The `[service]` section: what is protected, and how its input is judged.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use tcpr_session::framing::Framing;
use tcpr_session::turn::{PortPolicy, Unanswered};

use super::mistakes::{no_machine, Mistakes};
use super::raw;
use super::types::{Greeting, Life, OnDemote, OnTakeover, Outgoing, Port, Readiness, Service, Standby, VirtualIp};
use super::types::{DEFAULT_DATA_BYTES, DEFAULT_MAX_UNANSWERED_BYTES, DEFAULT_STANDBY_TRACE_BYTES};
use crate::channel::ring::SLOTS;

/// Most files that members compare.
const MAX_STANDBY_FILES: usize = 64;

pub(super) fn service(m: &mut Mistakes, r: &raw::Service) -> Service {
    let name = r.name.clone().unwrap_or_else(|| "default".into());
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 15 || !name.chars().all(plain) {
        m.add(format!("service.name = \"{name}\" is not usable; use 1 to 15 characters of a-z, 0-9 and -"));
    }
    let interface = r.interface.clone().unwrap_or_default();
    let odd = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if r.interface.is_none() {
        m.add("service.interface is missing; name the network interface that carries the virtual IP, such as \"eth0\"");
    } else if interface.is_empty() || interface.len() > 15 || interface.contains(odd) {
        m.add(format!(
            "service.interface = \"{interface}\" is not an interface name; use at most 15 characters, as `ip link` shows it"
        ));
    } else if interface == "lo" {
        m.add("service.interface = \"lo\" cannot work: loopback is not protected; name the interface on which peers arrive");
    }
    let queues = match r.queues.as_deref() {
        None => (200, 201),
        Some([i, o]) => {
            let i = m.number("service.queues", *i, 0, 65535) as u16;
            let o = m.number("service.queues", *o, 0, 65535) as u16;
            (i, o)
        }
        Some(list) => {
            m.add(format!("service.queues has {} numbers; give two, for packets in and out, such as [200, 201]", list.len()));
            (200, 201)
        }
    };
    if queues.0 == queues.1 {
        m.add(format!("service.queues has {} twice; give two different numbers", queues.0));
    }
    let mut dir = |key: &str, value: &Option<String>, base: &str| match value {
        None => PathBuf::from(base).join(&name),
        Some(d) => {
            if !d.starts_with('/') {
                m.add(format!("{key} = \"{d}\" is not an absolute path; start it with /"));
            }
            PathBuf::from(d)
        }
    };
    let state_dir = dir("service.state_dir", &r.state_dir, "/var/lib/tcpr");
    let run_dir = dir("service.run_dir", &r.run_dir, "/run/tcpr");
    let standby = m.word(
        "service.standby",
        r.standby.as_deref(),
        &[("warm", Standby::Warm), ("hot", Standby::Hot), ("cold", Standby::Cold)],
    );
    let life = life(m, r, standby);
    let standby_trace_bytes = match r.standby_trace_bytes {
        None => DEFAULT_STANDBY_TRACE_BYTES,
        Some(n) => m.number("service.standby_trace_bytes", n, 1 << 20, 1 << 40) as u64,
    };
    let standby_files = standby_files(m, r.standby_files.as_deref().unwrap_or_default(), standby);
    let data_bytes = match r.data_bytes {
        None => DEFAULT_DATA_BYTES,
        Some(n) => m.number("service.data_bytes", n, 0, 1 << 30) as u64,
    };
    let mut seen = BTreeSet::new();
    let ports: Vec<Port> = r.ports.iter().map(|p| port(m, p)).collect();
    for p in &ports {
        if !seen.insert(p.port) {
            m.add(format!("service.ports: port {} appears twice; keep one section for it", p.port));
        }
    }
    if ports.len() > SLOTS {
        m.add(format!(
            "[[service.ports]] appears {} times; one service protects at most {SLOTS} ports: make a second service, with a name, queues and a virtual IP of its own, for the others",
            ports.len()
        ));
    }
    let outgoing = outgoing(m, &r.outgoing);
    if r.ports.is_empty() && r.outgoing.is_empty() {
        m.add("[service] protects nothing; add a [[service.ports]] with port = N, or a [[service.outgoing]] with address = \"IP:PORT\"");
    }
    Service {
        virtual_ips: virtual_ips(m, r.virtual_ip.as_ref()),
        name,
        interface,
        queues,
        state_dir,
        run_dir,
        standby,
        standby_trace_bytes,
        standby_files,
        data_bytes,
        life,
        ports,
        outgoing,
    }
}

fn life(m: &mut Mistakes, r: &raw::Service, standby: Standby) -> Life {
    let on_demote = r.on_demote.as_deref().map(|what| {
        m.word("service.on_demote", Some(what), &[("restart", OnDemote::Restart), ("disconnect", OnDemote::Disconnect)])
    });
    let contradiction = match standby {
        Standby::Warm => None,
        Standby::Hot => Some("the program of a former master must begin anew to follow the new one"),
        Standby::Cold => Some("it would leave the program running on a backup, where none is to run"),
    };
    if let (Some(OnDemote::Disconnect), Some(why)) = (on_demote, contradiction) {
        m.add(format!(
            "service.on_demote = \"disconnect\" needs service.standby = \"warm\": {why}; leave one of the two keys out"
        ));
    }
    let choices = [("joined", Readiness::Joined), ("listen", Readiness::Listen), ("notify", Readiness::Notify)];
    let ready = m.word("service.ready", r.ready.as_deref(), &choices);
    if ready == Readiness::Listen && r.ports.is_empty() {
        m.add(
            "service.ready = \"listen\" needs a [[service.ports]]: there is no port to listen on; use \"joined\" or \"notify\"",
        );
    }
    if ready == Readiness::Notify && standby == Standby::Hot {
        m.add(
            "service.ready = \"notify\" does not go with service.standby = \"hot\": what a follower says is not sent; use \"joined\" or \"listen\"",
        );
    }
    let stop_timeout = m.ms("service.stop_timeout_ms", r.stop_timeout_ms, 5000);
    let back_off = m.ms("service.back_off_ms", r.back_off_ms, 100);
    let back_off_max = m.ms("service.back_off_max_ms", r.back_off_max_ms, 10_000.max(back_off.as_millis() as i64));
    if back_off_max < back_off {
        m.add(format!(
            "service.back_off_max_ms = {} is less than service.back_off_ms = {}; use at least as much",
            back_off_max.as_millis(),
            back_off.as_millis()
        ));
    }
    Life { on_demote, ready, stop_timeout, back_off, back_off_max }
}

fn standby_files(m: &mut Mistakes, files: &[String], standby: Standby) -> Vec<PathBuf> {
    const KEY: &str = "service.standby_files";
    if standby != Standby::Hot && !files.is_empty() {
        m.add(format!("{KEY} is for standby = \"hot\": a program that starts afresh needs no equal files; leave it out"));
    }
    if files.len() > MAX_STANDBY_FILES {
        m.add(format!("{KEY} names {} files; name at most {MAX_STANDBY_FILES}", files.len()));
    }
    for file in files {
        if !file.starts_with('/') {
            m.add(format!("{KEY}: \"{file}\" is not an absolute path; start it with /"));
        } else if file.contains(['\n', '\0']) {
            m.add(format!("{KEY}: {file:?} has a line break or a NUL byte in it; give the file another name"));
        }
    }
    files.iter().map(PathBuf::from).collect()
}

fn virtual_ips(m: &mut Mistakes, value: Option<&toml::Value>) -> Vec<VirtualIp> {
    const KEY: &str = "service.virtual_ip";
    let texts: Vec<&str> = match value {
        None => {
            m.add(format!("{KEY} is missing; write the address that peers connect to, such as \"192.0.2.200/24\""));
            return Vec::new();
        }
        Some(toml::Value::String(s)) => vec![s],
        Some(toml::Value::Array(a)) if a.iter().all(toml::Value::is_str) => a.iter().filter_map(toml::Value::as_str).collect(),
        Some(_) => {
            m.add(format!("{KEY} is neither a string nor a list of strings; write \"192.0.2.200/24\""));
            return Vec::new();
        }
    };
    let mut list: Vec<VirtualIp> = Vec::new();
    for text in &texts {
        let Some((addr, prefix)) = text.split_once('/') else {
            m.add(format!("{KEY} = \"{text}\" lacks its prefix; write it like 192.0.2.200/24"));
            continue;
        };
        let Some(addr) = m.address(KEY, addr) else {
            continue;
        };
        let longest = if addr.is_ipv4() { 32 } else { 128 };
        let Some(prefix) = prefix.parse::<u8>().ok().filter(|p| (1..=longest).contains(p)) else {
            m.add(format!("{KEY} = \"{text}\" has a wrong prefix; use /1 to /{longest}"));
            continue;
        };
        if addr.is_loopback() {
            m.add(format!("{KEY} = \"{text}\" is a loopback address, which is not protected; use an address of the network"));
        } else if list.iter().any(|v| v.addr == addr) {
            m.add(format!("{KEY} has {addr} twice; keep one"));
        } else {
            list.push(VirtualIp { addr, prefix });
        }
    }
    if texts.is_empty() {
        m.add(format!("{KEY} has no address; write one like 192.0.2.200/24"));
    }
    list
}

fn port(m: &mut Mistakes, r: &raw::Port) -> Port {
    let number = m.port("service.ports.port", r.port);
    let key = |k: &str| format!("service.ports.{k} of port {}", r.port);
    let (policy, greeting) = handling(m, &key, (&r.framing, &r.unanswered, r.max_unanswered_bytes, r.independent, &r.greeting));
    let choices = [("keep", OnTakeover::Keep), ("reset", OnTakeover::Reset)];
    let on_takeover = r.on_takeover.as_deref().map(|what| m.word(&key("on_takeover"), Some(what), &choices));
    let policy = PortPolicy { reset: on_takeover == Some(OnTakeover::Reset), ..policy };
    Port { port: number, policy, greeting, on_takeover }
}

/// The keys that say how input is judged: framing, unanswered, max_unanswered_bytes, independent, greeting.
type Handling<'a> = (&'a Option<toml::Value>, &'a Option<String>, Option<i64>, Option<bool>, &'a Option<String>);

fn handling(m: &mut Mistakes, key: &dyn Fn(&str) -> String, keys: Handling<'_>) -> (PortPolicy, Greeting) {
    let (framing_key, unanswered, max_unanswered_bytes, independent, greeting) = keys;
    let framing = framing(m, &key("framing"), framing_key.as_ref());
    let by_default = match framing {
        Framing::None => "redeliver",
        _ => "discard",
    };
    let unanswered = m.word(
        &key("unanswered"),
        Some(unanswered.as_deref().unwrap_or(by_default)),
        &[("redeliver", Unanswered::Redeliver), ("discard", Unanswered::Discard)],
    );
    let max_unanswered_bytes = match max_unanswered_bytes {
        None => DEFAULT_MAX_UNANSWERED_BYTES,
        Some(n) => m.number(&key("max_unanswered_bytes"), n, 1, 1 << 40) as u64,
    };
    let greeting = m.word(&key("greeting"), greeting.as_deref(), &[("pass", Greeting::Pass), ("absorb", Greeting::Absorb)]);
    let independent = independent.unwrap_or(false);
    (PortPolicy { framing, unanswered, max_unanswered_bytes, independent, reset: false }, greeting)
}

fn framing(m: &mut Mistakes, key: &str, value: Option<&toml::Value>) -> Framing {
    const SHAPE: &str =
        "use \"none\", \"lines\" or { length_at = 0, length_bytes = 4, byte_order = \"big\", counts = \"message\" }";
    let table = match value {
        None => return Framing::None,
        Some(toml::Value::String(s)) => match s.as_str() {
            "none" => return Framing::None,
            "lines" => return Framing::Lines,
            other => {
                m.add(format!("{key} = \"{other}\" is not known; {SHAPE}"));
                return Framing::None;
            }
        },
        Some(toml::Value::Table(t)) => t,
        Some(other) => {
            m.add(format!("{key} has the type {}; {SHAPE}", other.type_str()));
            return Framing::None;
        }
    };
    const KNOWN: [&str; 4] = ["length_at", "length_bytes", "byte_order", "counts"];
    for k in table.keys().filter(|k| !KNOWN.contains(&k.as_str())) {
        m.add(format!("{key}: {k} is not a known key; {SHAPE}"));
    }
    // All four are asked for: a guessed byte order would cut the stream at the wrong places in silence.
    for k in KNOWN.iter().filter(|k| !table.contains_key(**k)) {
        m.add(format!("{key}: {k} is missing; {SHAPE}"));
    }
    let mut integer = |k: &str, high: i64| match table.get(k) {
        None => 0,
        Some(toml::Value::Integer(n)) => m.number(&format!("{key}: {k}"), *n, 0, high),
        Some(other) => {
            m.add(format!("{key}: {k} has the type {}; it must be a number", other.type_str()));
            0
        }
    };
    let at = integer("length_at", 65535);
    let bytes = integer("length_bytes", i64::MAX);
    if table.get("length_bytes").is_some_and(toml::Value::is_integer) && ![1, 2, 4, 8].contains(&bytes) {
        m.add(format!("{key}: length_bytes = {bytes} is not possible; use 1, 2, 4 or 8"));
    }
    let mut word = |k: &str, choices: &[(&str, bool)]| match table.get(k) {
        None => false,
        Some(toml::Value::String(s)) => m.word(&format!("{key}: {k}"), Some(s), choices),
        Some(other) => {
            m.add(format!("{key}: {k} has the type {}; it must be a string", other.type_str()));
            false
        }
    };
    let big_endian = word("byte_order", &[("big", true), ("little", false)]);
    let counts_whole_message = word("counts", &[("message", true), ("rest", false)]);
    Framing::Length {
        at: at as usize,
        bytes: if [1, 2, 4, 8].contains(&bytes) { bytes as u8 } else { 1 },
        big_endian,
        counts_whole_message,
    }
}

fn outgoing(m: &mut Mistakes, raw: &[raw::Outgoing]) -> Vec<Outgoing> {
    const KEY: &str = "service.outgoing.address";
    let mut list: Vec<Outgoing> = Vec::new();
    for r in raw {
        let text = &r.address;
        let Ok(a) = text.parse::<SocketAddr>() else {
            m.add(format!("{KEY} = \"{text}\" is not an address and port; write it like 198.51.100.9:179"));
            continue;
        };
        if a.port() == 0 {
            m.add(format!("{KEY} = \"{text}\" has port 0; use 1 to 65535"));
        } else if let Some(what) = no_machine(&a.ip()) {
            m.add(format!("{KEY} = \"{text}\" is {what}; use the address of one machine"));
        } else if a.ip().is_loopback() {
            m.add(format!("{KEY} = \"{text}\" is a loopback address, which is not protected; use an address of the network"));
        } else if list.iter().any(|o| o.address == a) {
            m.add(format!("{KEY} = \"{text}\" appears twice; keep one section for it"));
        } else {
            let key = |k: &str| format!("service.outgoing.{k} of {a}");
            let (policy, greeting) =
                handling(m, &key, (&r.framing, &r.unanswered, r.max_unanswered_bytes, r.independent, &r.greeting));
            list.push(Outgoing { address: a, policy, greeting });
        }
    }
    list
}
