use std::path::{Path, PathBuf};
use std::time::Duration;

use tcpr_session::framing::Framing;
use tcpr_session::turn::Unanswered;

use super::*;

const GOOD: &str = r#"
member = "a"
[[members]]
name = "a"
address = "192.0.2.1"
[[members]]
name = "b"
address = "192.0.2.2"
[service]
virtual_ip = "192.0.2.200/24"
interface = "eth0"
[[service.ports]]
port = 5555
[replication]
key_file = "/etc/tcpr/key"
"#;

/// The message of the one mistake that `text` has.
fn mistake(text: &str) -> String {
    match Config::parse(text, None) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(e) => {
            assert_eq!(e.mistakes.len(), 1, "{e}");
            e.to_string()
        }
    }
}

/// `GOOD` with one piece of text replaced; the piece must be there.
fn with(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    GOOD.replacen(from, to, 1)
}

/// `GOOD` with lines added to its last section, or new sections.
fn and(more: &str) -> String {
    format!("{GOOD}\n{more}\n")
}

#[track_caller]
fn says(text: &str, parts: &[&str]) {
    let m = mistake(text);
    for p in parts {
        assert!(m.contains(p), "{p:?} is not in {m:?}");
    }
}

#[test]
fn defaults() {
    let c = Config::parse(GOOD, None).unwrap();
    assert_eq!((c.member_index, c.me().name.as_str()), (0, "a"));
    assert_eq!(c.partner().unwrap().name, "b");
    assert!(c.is_preferred());
    assert_eq!(c.service.name, "default");
    assert_eq!(c.service.queues, (200, 201));
    assert_eq!(c.service.state_dir, Path::new("/var/lib/tcpr/default"));
    assert_eq!(c.service.run_dir, Path::new("/run/tcpr/default"));
    assert_eq!(c.service.virtual_ipv4().collect::<Vec<_>>(), [([192, 0, 2, 200].into(), 24)]);
    let p = c.service.port(5555).unwrap();
    assert!(matches!(p.policy.framing, Framing::None));
    assert!(matches!(p.policy.unanswered, Unanswered::Redeliver));
    assert_eq!(p.policy.max_unanswered_bytes, 4194304);
    assert_eq!(p.greeting, Greeting::Pass);
    assert!(c.service.outgoing.is_empty());
    assert_eq!((c.service.standby, c.service.standby_trace_bytes), (Standby::Warm, 268435456));
    assert_eq!(c.service.data_bytes, 16777216);
    let life = &c.service.life;
    assert_eq!((life.on_demote, life.ready, life.disconnects()), (None, Readiness::Joined, false));
    assert_eq!([life.stop_timeout, life.back_off, life.back_off_max].map(|t| t.as_millis()), [5000, 100, 10_000]);
    assert_eq!((c.replication.port, c.replication.durability, c.replication.busy_poll), (7400, Durability::Sync, None));
    let f = &c.failover;
    assert_eq!((f.heartbeat_port, f.misses), (7400, 3));
    assert_eq!((f.heartbeat.as_millis(), f.solo_after.as_millis()), (20, 100));
    assert_eq!(f.arbiter, Arbiter::None);
    assert!(f.reachability.is_empty());
    assert_eq!((c.recovery.engine, c.recovery.max_turn.as_millis()), (Engine::Repair, 50));
    assert!(c.unsupported().is_empty());
}

#[test]
fn every_key() {
    let c = Config::parse(
        r#"
member = "a"
[[members]]
name = "a"
address = "192.0.2.1"
heartbeat_paths = ["10.0.0.1", "10.0.1.1"]
[[members]]
name = "b"
address = "192.0.2.2"
heartbeat_paths = ["10.0.0.2"]
[service]
name = "chat"
virtual_ip = ["192.0.2.200/24", "2001:db8::200/64"]
interface = "eth0"
queues = [300, 301]
state_dir = "/srv/state"
run_dir = "/srv/run"
standby = "warm"
on_demote = "disconnect"
ready = "notify"
stop_timeout_ms = 100
back_off_ms = 20000
back_off_max_ms = 30000
standby_trace_bytes = 2097152
data_bytes = 1000
[[service.ports]]
port = 5555
framing = "lines"
unanswered = "redeliver"
max_unanswered_bytes = 1000
independent = true
greeting = "absorb"
[[service.ports]]
port = 179
framing = { length_at = 16, length_bytes = 2, byte_order = "big", counts = "message" }
[[service.ports]]
port = 11
framing = { length_at = 0, length_bytes = 4, byte_order = "little", counts = "rest" }
[[service.outgoing]]
address = "198.51.100.9:179"
[replication]
port = 7401
durability = "async"
busy_poll_us = 100
key_file = "/etc/tcpr/key"
[failover]
heartbeat_port = 7402
heartbeat_ms = 10
misses = 5
solo_after_ms = 50
reachability = ["192.0.2.254"]
preferred = "b"
arbiter = "etcd"
[recovery]
engine = "splice"
max_turn_ms = 7
[etcd]
endpoints = ["http://192.0.2.10:2379"]
"#,
        Some("b"),
    )
    .unwrap();
    assert_eq!((c.member_index, c.me().name.as_str()), (1, "b"));
    assert_eq!(c.partner().unwrap().addresses().count(), 3);
    assert!(c.is_preferred());
    assert_eq!(c.service.state_dir, Path::new("/srv/state"));
    assert_eq!(c.service.run_dir, Path::new("/srv/run"));
    assert_eq!(c.service.queues, (300, 301));
    assert_eq!((c.service.standby, c.service.standby_trace_bytes), (Standby::Warm, 2 << 20));
    assert_eq!(c.service.data_bytes, 1000);
    let life = &c.service.life;
    assert_eq!((life.on_demote, life.ready), (Some(OnDemote::Disconnect), Readiness::Notify));
    assert_eq!([life.stop_timeout, life.back_off, life.back_off_max].map(|t| t.as_millis()), [100, 20_000, 30_000]);
    assert_eq!(c.service.virtual_ips.len(), 2);
    let [to] = &c.service.outgoing[..] else { panic!("{:?}", c.service.outgoing) };
    assert_eq!(to.address, "198.51.100.9:179".parse().unwrap());
    let lines = &c.service.ports[0];
    assert!(matches!(lines.policy.framing, Framing::Lines));
    assert!(matches!(lines.policy.unanswered, Unanswered::Redeliver));
    assert_eq!((lines.policy.max_unanswered_bytes, lines.greeting), (1000, Greeting::Absorb));
    assert!(lines.policy.independent && !c.service.ports[1].policy.independent);
    let bgp = &c.service.ports[1].policy;
    assert!(matches!(bgp.framing, Framing::Length { at: 16, bytes: 2, big_endian: true, counts_whole_message: true }));
    assert!(matches!(bgp.unanswered, Unanswered::Discard));
    assert!(matches!(
        c.service.ports[2].policy.framing,
        Framing::Length { at: 0, bytes: 4, big_endian: false, counts_whole_message: false }
    ));
    let u = c.unsupported();
    assert_eq!(u.len(), 1, "{u:?}");
    assert!(u[0].contains("etcd") && u[0].contains("not built yet"), "{u:?}");
}

#[test]
fn the_environment_overrides_the_member() {
    assert_eq!(Config::parse(GOOD, Some("b")).unwrap().member_index, 1);
    assert_eq!(Config::parse(GOOD, Some("")).unwrap().member_index, 0);
    let without = with("member = \"a\"", "");
    assert_eq!(Config::parse(&without, Some("b")).unwrap().member_index, 1);
    says(&without, &["member is missing", "TCPR_MEMBER", "\"a\" and \"b\""]);
    let e = Config::parse(GOOD, Some("c")).unwrap_err();
    assert!(e.to_string().contains("TCPR_MEMBER = \"c\" is not one of the members"), "{e}");
    says(&with("member = \"a\"", "member = \"z\""), &["member = \"z\"", "\"a\" and \"b\""]);
}

#[test]
fn one_member_has_no_partner() {
    let c = Config::parse(
        "member = \"a\"\n[[members]]\nname = \"a\"\naddress = \"192.0.2.1\"\n[service]\nvirtual_ip = \"192.0.2.9/24\"\ninterface = \"eth0\"\n[[service.outgoing]]\naddress = \"192.0.2.7:80\"\n",
        None,
    )
    .unwrap();
    assert!(c.partner().is_none());
    assert!(c.replication.key_file.is_none());
}

#[test]
fn unknown_keys_and_wrong_shapes() {
    says(&and("[recovery]\nfoo = 1"), &["unknown field `foo`", "max_turn_ms", "line"]);
    says(&and("[recover]"), &["unknown field `recover`"]);
    says(&with("port = 5555", "port = \"x\""), &["port = \"x\"", "invalid type"]);
    says("member = ", &["line 1"]);
}

#[test]
fn wrong_members() {
    let third = "[[members]]\nname = \"c\"\naddress = \"192.0.2.3\"";
    says(&and(third), &["[[members]] appears 3 times", "two members"]);
    says(&with("name = \"b\"", "name = \"a\""), &["members.name = \"a\" appears twice"]);
    says(&with("name = \"b\"", "name = \"\""), &["members.name is empty"]);
    says(&with("192.0.2.2\"", "host\""), &["members.address of \"b\"", "not an IP address", "write"]);
    says(&with("192.0.2.2\"", "0.0.0.0\""), &["members.address of \"b\"", "unspecified"]);
    says(&with("192.0.2.2\"", "224.0.0.1\""), &["multicast"]);
    says(&with("192.0.2.2\"", "192.0.2.1\""), &["192.0.2.1 appears twice"]);
    says(&with("192.0.2.2\"", "2001:db8::2\""), &["different families"]);
    let path = "address = \"192.0.2.2\"\nheartbeat_paths = [\"192.0.2.1\"]";
    says(&with("address = \"192.0.2.2\"", path), &["192.0.2.1 appears twice"]);
    let path = "address = \"192.0.2.2\"\nheartbeat_paths = [\"x\"]";
    says(&with("address = \"192.0.2.2\"", path), &["members.heartbeat_paths of \"b\""]);
    let e = Config::parse("", None).unwrap_err().to_string();
    assert!(e.contains("[[members]] is missing") && e.contains("[service] is missing"), "{e}");
}

#[test]
fn wrong_virtual_ip() {
    let vip = |v: &str| with("\"192.0.2.200/24\"", v);
    says(&with("virtual_ip = \"192.0.2.200/24\"", ""), &["service.virtual_ip is missing"]);
    says(&vip("\"192.0.2.200\""), &["lacks its prefix", "192.0.2.200/24"]);
    says(&vip("\"192.0.2.200/33\""), &["wrong prefix", "/32"]);
    says(&vip("\"192.0.2.200/0\""), &["wrong prefix"]);
    says(&vip("\"x/24\""), &["not an IP address"]);
    says(&vip("7"), &["neither a string nor a list"]);
    says(&vip("[]"), &["has no address"]);
    assert!(Config::parse(&vip("\"2001:db8::1/64\""), None).unwrap().unsupported().is_empty());
    says(&vip("[\"192.0.2.200/24\", \"192.0.2.200/24\"]"), &["192.0.2.200 twice"]);
    says(&vip("\"127.0.0.5/8\""), &["loopback"]);
    says(&vip("\"192.0.2.2/24\""), &["also an address of member \"b\""]);
}

#[test]
fn wrong_service() {
    let named = |n: &str| with("[service]", &format!("[service]\nname = \"{n}\""));
    for n in ["", "Chat", "a b", "a/b", "abcdefghijklmnop", ".."] {
        says(&named(n), &["service.name", "1 to 15 characters"]);
    }
    assert!(Config::parse(&named("abcdefghij-0123"), None).is_ok());
    for i in ["", "abcdefghijklmnop", "a/b", "a b"] {
        says(&with("eth0", i), &["service.interface", "at most 15"]);
    }
    says(&with("eth0", "lo"), &["loopback is not protected"]);
    says(&with("interface = \"eth0\"", ""), &["service.interface is missing"]);
    let queues = |q: &str| with("[service]", &format!("[service]\nqueues = {q}"));
    says(&queues("[1]"), &["service.queues has 1 numbers", "two"]);
    says(&queues("[5, 5]"), &["has 5 twice"]);
    says(&queues("[5, 65536]"), &["service.queues = 65536", "0 to 65535"]);
    let dir = |d: &str| with("[service]", &format!("[service]\n{d} = \"x\""));
    says(&dir("state_dir"), &["service.state_dir", "absolute"]);
    says(&dir("run_dir"), &["service.run_dir", "absolute"]);
}

#[test]
fn wrong_ports() {
    let port = |p: &str| with("port = 5555", p);
    says(&with("[[service.ports]]\nport = 5555", ""), &["protects nothing", "[[service.ports]]"]);
    says(&port("port = 0"), &["service.ports.port = 0", "1 to 65535"]);
    says(&port("port = 65536"), &["service.ports.port = 65536"]);
    says(&port("port = 80\n[[service.ports]]\nport = 80"), &["port 80 appears twice"]);
    says(&port("port = 7400"), &["replication.port = 7400", "also a protected port"]);
    let key = |k: &str| port(&format!("port = 80\n{k}"));
    says(&key("unanswered = \"keep\""), &["unanswered of port 80", "\"redeliver\" or \"discard\""]);
    says(&key("max_unanswered_bytes = 0"), &["max_unanswered_bytes of port 80"]);
    says(&key("on_takeover = \"x\""), &["on_takeover of port 80", "\"keep\" or \"reset\""]);
    says(&key("greeting = \"x\""), &["greeting of port 80", "\"pass\" or \"absorb\""]);
    let to = |a: &str| and(&format!("[[service.outgoing]]\naddress = \"{a}\""));
    says(&to("198.51.100.9"), &["service.outgoing.address", "write it like"]);
    says(&to("198.51.100.9:0"), &["port 0"]);
    says(&to("0.0.0.0:5"), &["unspecified"]);
    says(&to("127.0.0.1:5"), &["loopback"]);
    says(&to("192.0.2.200:5"), &["on the virtual IP"]);
    let twice = format!("{}\n[[service.outgoing]]\naddress = \"1.2.3.4:5\"", to("1.2.3.4:5"));
    says(&twice, &["appears twice"]);
    says(&to("[2001:db8::1]:5"), &["another family"]);
    let framed = format!("{}\nframing = \"lines\"\ngreeting = \"absorb\"", to("1.2.3.4:5"));
    let c = Config::parse(&framed, None).unwrap();
    let [o] = &c.service.outgoing[..] else { panic!("{:?}", c.service.outgoing) };
    assert!(matches!(
        (o.policy.framing, o.policy.unanswered, o.greeting),
        (Framing::Lines, Unanswered::Discard, Greeting::Absorb)
    ));
    says(&format!("{}\nunanswered = \"x\"", to("1.2.3.4:5")), &["service.outgoing.unanswered of 1.2.3.4:5"]);
}

#[test]
fn there_may_be_as_many_ports_as_there_is_room_for() {
    let ports = |n: u16| {
        with(
            "port = 5555",
            &format!("port = 1{}", (2..=n).map(|p| format!("\n[[service.ports]]\nport = {p}")).collect::<String>()),
        )
    };
    assert_eq!(Config::parse(&ports(16), None).unwrap().service.ports.len(), 16);
    says(&ports(17), &["[[service.ports]] appears 17 times", "at most 16 ports"]);
}

/// Nothing is wrong with them, but what the user would get is not what he wants.
#[test]
fn ports_of_protocols_that_keep_state() {
    let warnings = |text: &str| Config::parse(text, None).unwrap().warnings();
    assert_eq!(warnings(GOOD), [""; 0]);
    let known = [22, 443, 465, 587, 636, 853, 989, 990, 993, 995, 5432, 3306, 6379, 1883, 8883, 6667, 6697];
    for port in known {
        let port = with("port = 5555", &format!("port = {port}"));
        let [warning] = &warnings(&port)[..] else { panic!("{port}") };
        assert!(warning.contains("on_takeover = \"reset\"") && warning.contains("docs/supported-programs.md"), "{warning}");
        for said in ["keep", "reset"] {
            let key = format!("[[service.ports]]\non_takeover = \"{said}\"");
            assert_eq!(warnings(&port.replace("[[service.ports]]", &key)), [""; 0]);
        }
    }
    let c = Config::parse(&with("port = 5555", "port = 22\non_takeover = \"reset\""), None).unwrap();
    assert!(c.service.ports[0].policy.reset);
}

/// What the library does cannot be had without it.
#[test]
fn a_greeting_that_only_the_library_can_absorb() {
    let without = |text: &str| Config::parse(text, None).unwrap().unsupported_unhooked();
    assert_eq!(without(GOOD), [""; 0]);
    let [port] = &without(&with("port = 5555", "port = 25\ngreeting = \"absorb\""))[..] else { panic!("one") };
    assert!(port.contains("greeting = \"absorb\" of port 25") && port.contains("--no-preload"), "{port}");
    let [to] = &without(&and("[[service.outgoing]]\naddress = \"1.2.3.4:5\"\ngreeting = \"absorb\""))[..] else { panic!("one") };
    assert!(to.contains("of 1.2.3.4:5"), "{to}");
}

#[test]
fn how_the_program_lives() {
    let key = |k: &str| with("[service]", &format!("[service]\n{k}"));
    let good = |k: &str| Config::parse(&key(k), None).unwrap();
    let cold = good("standby = \"cold\"\non_demote = \"restart\"\nready = \"listen\"");
    assert_eq!((cold.service.standby, cold.service.life.on_demote), (Standby::Cold, Some(OnDemote::Restart)));
    assert_eq!(cold.service.life.ready, Readiness::Listen);
    // Who hosts the manager itself has nobody who would start it, or hear it.
    let embedded = cold.unsupported_embedded();
    assert!(embedded[0].contains("standby = \"cold\"") && embedded[1].contains("on_demote = \"restart\""), "{embedded:?}");
    let [notify] = &good("ready = \"notify\"").unsupported_embedded()[..] else { panic!("one") };
    assert!(notify.contains("ready = \"notify\"") && notify.contains("tcpr run"), "{notify}");
    let disconnect = good("on_demote = \"disconnect\"");
    assert!(disconnect.service.life.disconnects() && disconnect.unsupported_embedded().is_empty());
    for standby in ["hot", "cold"] {
        let both = key(&format!("standby = \"{standby}\"\non_demote = \"disconnect\""));
        says(&both, &["on_demote = \"disconnect\"", "standby = \"warm\""]);
    }
    says(&key("on_demote = \"stop\""), &["service.on_demote", "\"restart\" or \"disconnect\""]);
    says(&key("ready = \"yes\""), &["service.ready", "\"joined\" or \"listen\" or \"notify\""]);
    let ports = "[[service.ports]]\nport = 5555\n";
    let outgoing = "[[service.outgoing]]\naddress = \"1.2.3.4:5\"\n";
    says(&key("ready = \"listen\"").replace(ports, outgoing), &["ready = \"listen\"", "[[service.ports]]"]);
    says(&key("ready = \"notify\"\nstandby = \"hot\""), &["ready = \"notify\"", "standby = \"hot\"", "follower"]);
    says(&key("stop_timeout_ms = 0"), &["service.stop_timeout_ms = 0", "1 to 3600000"]);
    says(&key("back_off_ms = 50\nback_off_max_ms = 40"), &["service.back_off_max_ms = 40", "at least"]);
    let longer = good("back_off_ms = 20000").service.life;
    assert_eq!((longer.back_off, longer.back_off_max), (Duration::from_secs(20), Duration::from_secs(20)));
}

#[test]
fn hot_standby_and_what_it_needs() {
    let hot = with("[service]", "[service]\nstandby = \"hot\"\nstandby_trace_bytes = 1048576");
    let c = Config::parse(&hot, None).unwrap();
    assert_eq!((c.service.standby, c.service.standby_trace_bytes), (Standby::Hot, 1 << 20));
    assert!(c.unsupported().is_empty());
    let [library] = &c.unsupported_unhooked()[..] else { panic!("one") };
    assert!(library.contains("standby = \"hot\"") && library.contains("--no-preload"), "{library}");
    let [run] = &c.unsupported_embedded()[..] else { panic!("one") };
    assert!(run.contains("standby = \"hot\"") && run.contains("tcpr run"), "{run}");
    assert!(Config::parse(GOOD, None).unwrap().unsupported_embedded().is_empty());
    says(&format!("{hot}\n[recovery]\nengine = \"splice\"\n"), &["standby = \"hot\"", "engine = \"repair\"", "accept"]);
    says(&format!("{hot}\ndurability = \"async\"\n"), &["standby = \"hot\"", "durability = \"sync\""]);
    let b = "[[members]]\nname = \"b\"\naddress = \"192.0.2.2\"\n";
    says(&hot.replace(b, ""), &["standby = \"hot\"", "a second [[members]]"]);
    let key = |k: &str| with("[service]", &format!("[service]\n{k}"));
    says(&key("standby = \"lukewarm\""), &["service.standby", "\"warm\" or \"hot\" or \"cold\""]);
    says(&key("standby_trace_bytes = 1000"), &["service.standby_trace_bytes = 1000", "1048576 to 1099511627776"]);
    let files = hot.replace("[service]", "[service]\nstandby_files = [\"/etc/a\", \"/etc/b\"]");
    assert_eq!(Config::parse(&files, None).unwrap().service.standby_files, ["/etc/a", "/etc/b"].map(PathBuf::from));
    says(&files.replace("/etc/b", "b"), &["service.standby_files", "\"b\"", "absolute path"]);
    says(&files.replace("/etc/b", "/b\\n"), &["service.standby_files", "line break"]);
    says(&files.replace("\"/etc/b\"", &vec!["\"/b\""; 64].join(",")), &["service.standby_files", "65 files", "at most 64"]);
    says(&key("standby_files = [\"/etc/a\"]"), &["service.standby_files", "standby = \"hot\""]);
    says(&key("data_bytes = -1"), &["service.data_bytes = -1", "0 to 1073741824"]);
    let redis = hot.replace("port = 5555", "port = 6379");
    let [warning] = &Config::parse(&redis, None).unwrap().warnings()[..] else { panic!("one") };
    assert!(warning.contains("without the follower") && warning.contains("on_takeover"), "{warning}");
}

#[test]
fn wrong_framing() {
    let framing = |f: &str| with("port = 5555", &format!("port = 80\nframing = {f}"));
    says(&framing("\"line\""), &["framing of port 80", "\"line\" is not known", "\"lines\""]);
    says(&framing("3"), &["framing of port 80 has the type integer"]);
    let length = |at: &str, bytes: &str, order: &str, counts: &str| {
        framing(&format!("{{ length_at = {at}, length_bytes = {bytes}, byte_order = {order}, counts = {counts} }}"))
    };
    says(&length("0", "3", "\"big\"", "\"rest\""), &["length_bytes = 3", "1, 2, 4 or 8"]);
    says(&length("-1", "2", "\"big\"", "\"rest\""), &["length_at = -1"]);
    says(&length("\"0\"", "2", "\"big\"", "\"rest\""), &["length_at has the type string"]);
    says(&length("0", "2", "\"middle\"", "\"rest\""), &["byte_order", "\"big\" or \"little\""]);
    says(&length("0", "2", "1", "\"rest\""), &["byte_order has the type integer"]);
    says(&length("0", "2", "\"big\"", "\"all\""), &["counts", "\"message\" or \"rest\""]);
    let short = "{ length_at = 0, length_bytes = 2, counts = \"rest\" }";
    says(&framing(short), &["byte_order is missing"]);
    let long = "{ length_at = 0, length_bytes = 2, byte_order = \"big\", counts = \"rest\", x = 1 }";
    says(&framing(long), &["x is not a known key"]);
}

#[test]
fn wrong_replication_and_failover() {
    let key = "key_file = \"/etc/tcpr/key\"";
    says(&with(key, ""), &["replication.key_file is missing", "tcpr keygen"]);
    says(&with(key, "key_file = \"\""), &["replication.key_file is empty"]);
    let local = with(key, "").replace("192.0.2.1\"", "127.0.0.1\"").replace("192.0.2.2\"", "127.0.0.2\"");
    assert!(Config::parse(&local, None).unwrap().replication.key_file.is_none());
    says(&and("port = 0"), &["replication.port = 0"]);
    says(&and("durability = \"disk\""), &["replication.durability", "\"sync\" or \"async\""]);
    says(&and("busy_poll_us = 1001"), &["replication.busy_poll_us = 1001", "0 to 1000"]);
    let failover = |k: &str| and(&format!("[failover]\n{k}"));
    says(&failover("heartbeat_port = 70000"), &["failover.heartbeat_port"]);
    says(&failover("heartbeat_ms = 0"), &["failover.heartbeat_ms = 0"]);
    says(&failover("misses = 0"), &["failover.misses = 0"]);
    says(&failover("solo_after_ms = 59"), &["solo_after_ms = 59", "at least 60"]);
    says(&failover("preferred = \"c\""), &["failover.preferred = \"c\""]);
    says(&failover("reachability = [\"gw\"]"), &["failover.reachability", "not an IP address"]);
    says(&failover("reachability = [\"127.0.0.1\"]"), &["always answers"]);
    says(&failover("reachability = [\"192.0.2.2\"]"), &["address of member \"b\""]);
    says(&failover("reachability = [\"192.0.2.200\"]"), &["is the virtual IP"]);
    says(&failover("arbiter = \"zookeeper\""), &["failover.arbiter", "\"none\" or \"etcd\" or \"keepalived\""]);
    says(&failover("arbiter = \"etcd\""), &["needs [etcd]"]);
    says(&failover("arbiter = \"etcd\"\n[etcd]\nendpoints = [\"h:2379\"]"), &["not a URL"]);
    says(&and("[etcd]\nendpoints = [\"http://h:2379\"]"), &["[etcd] has no effect"]);
    says(&and("[recovery]\nengine = \"x\""), &["recovery.engine", "\"repair\" or \"splice\""]);
    says(&and("[recovery]\nmax_turn_ms = 0"), &["recovery.max_turn_ms = 0"]);
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = with("eth0", "lo").replace("port = 5555", "port = 0");
    let e = Config::parse(&text, None).unwrap_err();
    assert_eq!(e.mistakes.len(), 2, "{e}");
}

#[test]
fn a_file_that_is_not_there() {
    let e = Config::load(Some(Path::new("/nonexistent/tcpr.toml"))).unwrap_err().to_string();
    assert!(e.contains("/nonexistent/tcpr.toml") && e.contains("--config"), "{e}");
}

/// `docs/configuration.md` has every key, and its example is one.
#[test]
fn the_documentation_has_every_key() {
    let page = include_str!("../../../../docs/configuration.md");
    let example = page.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let c = Config::parse(example, None).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((c.service.name.as_str(), c.failover.misses), ("default", 3));
    let keys = include_str!("raw.rs").lines().filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(':'));
    for (key, _) in keys {
        let word = |c: char| !(c.is_alphanumeric() || c == '_');
        assert!(page.split(word).any(|w| w == key), "{key} is not in docs/configuration.md");
    }
}
