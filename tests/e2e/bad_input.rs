//! Mistakes of whoever sets it up are told and leave nothing behind; what strangers send to a member's ports is refused
//! and harms nobody.

use std::io::Write;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use tcpr_lab::client::{ChatClients, ChatOptions};
use tcpr_lab::member::{tcpr_bin, Hosted, Pair, Service};
use tcpr_lab::{wait_until, Host, Lab};

use crate::world::{built, Fault, World, FOUR, PATIENCE, PORT};

fn said(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// The packet rules of tcpr on a host, whatever made them.
pub fn rules_of(host: &Host) -> Vec<String> {
    let mut native = Command::new("nft");
    native.args(["list", "tables", "inet"]);
    let mut all = Vec::new();
    for c in [Command::new("iptables-save"), Command::new("ip6tables-save"), native] {
        let listing = said(&host.run(c, PATIENCE).expect("it runs"));
        let ours = listing.lines().filter(|l| l.to_lowercase().contains("tcpr-"));
        all.extend(ours.map(|l| l.split('[').next().unwrap_or(l).to_owned()));
    }
    all
}

/// `tcpr run` with a mistake on a host: it ends at once with status 1 and these words, and no rule is left.
fn refused(pair: &Pair, words: &[&str]) {
    let out = pair.tcpr(0, &["run", "--", "/bin/sleep", "1000"]).expect("tcpr run");
    let text = said(&out);
    assert_eq!(out.status.code(), Some(1), "{words:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{word:?} in {text}");
    }
}

#[test]
fn mistakes_are_told() {
    let lab = Lab::new("wrong").expect("a lab");
    let a = lab.host("a", "192.0.2.1/24").expect("host");
    let b = lab.host("b", "192.0.2.2/24").expect("host");
    let pair = |service: Service| Pair::new(&a, &b, service.patient()).expect("a pair");
    let service = |name: &str| Service::new(name, PORT);
    let cases: [(&str, &str, &str, &[&str]); 6] = [
        ("service", "interface", "\"eth9\"", &["eth9"]),
        ("service", "virtual_ip", "\"192.0.2.300\"", &["virtual_ip"]),
        ("service", "state_dir", "\"/proc/tcpr\"", &["/proc/tcpr"]),
        ("service", "run_dir", "\"/proc/tcpr\"", &["/proc/tcpr"]),
        ("replication", "key_file", "\"/nonexistent/key\"", &["/nonexistent/key"]),
        ("replication", "key_fiel", "\"/nonexistent/key\"", &["key_fiel"]),
    ];
    for (section, key, value, words) in cases {
        refused(&pair(service("wrong").set(section, key, value)), words);
        assert_eq!(rules_of(&a), [""; 0], "{key}");
    }
    // Without privileges.
    let mut c = Command::new("setpriv");
    c.args(["--bounding-set=-net_admin,-net_raw", "--inh-caps=-net_admin,-net_raw"]).arg(tcpr_bin().expect("tcpr"));
    c.arg("run").arg("--config").arg(pair(service("right")).config(0)).args(["--", "/bin/sleep", "1000"]);
    let out = a.run(c, PATIENCE).expect("runs");
    assert!(out.status.code() == Some(1) && said(&out).contains("CAP_NET_"), "{}", said(&out));
    assert_eq!(rules_of(&a), [""; 0]);

    // Beside one that runs.
    let mut running = pair(service("first"));
    running.start(0, &["/bin/sleep", "1000"]).expect("started");
    running.wait_master_is(0, PATIENCE).expect("alone");
    refused(&running, &["another manager"]);
    let first = rules_of(&a);
    refused(&pair(service("second")), &["192.0.2.200"]);
    let elsewhere = || service("second").virtual_ip("192.0.2.201/24");
    refused(&pair(elsewhere()), &["NFQUEUE 200"]);
    refused(&pair(elsewhere().set("service", "queues", "[300, 301]")), &["7400"]);
    assert_eq!(rules_of(&a), first, "no rules of the second are left");
    let other_ports = |s: Service| {
        s.set("service", "queues", "[300, 301]").set("replication", "port", "7500").set("failover", "heartbeat_port", "7500")
    };
    let mut second = pair(other_ports(service("second")).virtual_ip("192.0.2.201/24"));
    second.start(0, &["/bin/sleep", "1000"]).expect("started");
    second.wait_master_is(0, PATIENCE).expect("two services on a host");
}

/// Members whose keys differ do not know each other, and say so.
#[test]
fn a_partner_with_another_key_is_refused() {
    let lab = Lab::new("keys").expect("a lab");
    let a = lab.host("a", "192.0.2.1/24").expect("host");
    let b = lab.host("b", "192.0.2.2/24").expect("host");
    let mut pair = Pair::new(&a, &b, Service::new("keys", PORT).patient()).expect("a pair");
    let key = b.dir().join("keys.key");
    std::fs::write(&key, format!("{}\n", "0123456789abcdef".repeat(4))).expect("another key");
    pair.start_both(&[&built("plain_chat_server"), "5555"]).expect("both start");
    for i in 0..2 {
        wait_until(PATIENCE, "heartbeats are refused", || {
            pair.status(i).is_ok_and(|s| s["protected"] == false && s["partner"]["heartbeats_refused"].as_u64() > Some(3))
        });
        let process = pair.process(i).expect("runs");
        wait_until(PATIENCE, "the log says why", || process.tail(100).contains("compare key and service name"));
    }
}

/// Garbage to the heartbeat port, garbage and half-open connections to the replication port, through failovers.
#[test]
fn strangers_harm_nobody() {
    let mut w = World::new("garbage", Service::new("chat", PORT).lines(), &[&built("plain_chat_server"), "5555"]);
    let clients = ChatClients::start(&w.peer, w.pair.addr(), &ChatOptions::new(4, w.rng.next_u64())).expect("clients");
    for fault in [Fault::KillAll, Fault::Switchover, Fault::KillServer, Fault::Cut] {
        let members = [0, 1].map(|i| SocketAddr::new(w.pair.host(i).ip(), 7400));
        let peer = w.peer.clone();
        let mut held: Vec<TcpStream> = Vec::new();
        let udp = peer.enter(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
        for round in 0..300 {
            for member in members {
                let mut bytes: Vec<u8> = (0..w.rng.range(0, 400)).map(|_| w.rng.next_u64() as u8).collect();
                if w.rng.chance(50) {
                    // What begins well.
                    bytes.splice(0..0, *b"tcph\x01\x00");
                }
                // Its machine may have gone.
                let _ = udp.send_to(&bytes, member);
                if round % 10 == 0 {
                    let connected = peer.enter(|| TcpStream::connect_timeout(&member, Duration::from_millis(200)));
                    if let Ok(mut stream) = connected {
                        let _ = stream.write_all(&bytes);
                        held.push(stream);
                    }
                }
            }
        }
        // Some are still there when the master fails.
        w.survive(&clients, &[fault]);
        let refused = w.pair.status(w.protected()).expect("status")["partner"]["heartbeats_refused"].as_u64();
        assert!(refused > Some(0), "{fault:?}: {refused:?}");
    }
    w.end(clients);
}

/// A file system of its own for a directory, with room for next to nothing.
struct Full(PathBuf);

impl Full {
    fn mount(dir: PathBuf) -> Full {
        std::fs::create_dir_all(&dir).expect("a directory");
        let mut c = Command::new("mount");
        c.args(["-t", "tmpfs", "-o", "size=4k,nr_inodes=20", "tcpr-test"]).arg(&dir);
        assert!(c.status().expect("mount runs").success());
        std::fs::write(dir.join("others"), [0; 4096]).expect("filled");
        Full(dir)
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        // A process may yet be about to end in it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Members that cannot write their epochs go on, and say so.
#[test]
fn a_full_disk_stops_nobody() {
    let mut disks = Vec::new();
    let program = [&built("plain_chat_server"), "5555"];
    let mut w = World::prepared("full", Service::new("chat", PORT).lines(), &program, Hosted::ByRun, FOUR, |pair| {
        disks.extend((0..2).map(|i| Full::mount(pair.host(i).dir().join("chat-state"))));
    });
    let clients = ChatClients::start(&w.peer, w.pair.addr(), &ChatOptions::new(4, w.rng.next_u64())).expect("clients");
    w.survive(&clients, &[Fault::KillServer, Fault::Cut, Fault::KillAll, Fault::Switchover, Fault::Freeze]);
    let process = w.pair.process(w.protected()).expect("runs");
    assert!(process.tail(1000).contains("cannot write the epoch file"), "{}", process.tail(1000));
    w.end(clients);
}

/// Loaded by dlopen the library is behind the C library: its hooks would see nothing.
#[test]
fn a_library_that_comes_too_late_says_so() {
    let library = tcpr_lab::member::bin_dir().expect("bin").join("libtcpr.so");
    let script = "
import ctypes, errno, sys
tcpr = ctypes.CDLL(sys.argv[1], use_errno=True)
tcpr.tcpr_strerror.restype = ctypes.c_char_p
print(tcpr.tcpr_init(None), errno.errorcode[ctypes.get_errno()], tcpr.tcpr_strerror().decode())
";
    let out = Command::new("python3").args(["-c", script]).arg(library).output().expect("python3 runs");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.starts_with("-1 ENOTSUP") || text.starts_with("-1 EOPNOTSUPP"), "{text}{}", said(&out));
    assert!(text.contains("dlopen") && text.contains("tcpr run"), "{text}");
}
