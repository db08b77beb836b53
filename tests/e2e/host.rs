//! The host around the members: its firewall, its reload, addresses that come and go, a router that translates them.

use std::time::{Duration, Instant};

use tcpr_lab::client::{ChatClients, ChatOptions};
use tcpr_lab::member::{Hosted, Pair, Service};
use tcpr_lab::{wait_for, Firewall, Host};

use crate::world::{built, Dir, Fault, World, FOUR, PATIENCE, PORT, SIX};

fn chat(label: &str, by: Hosted, prepare: impl FnOnce(&Pair)) -> World {
    World::prepared(label, Service::new("chat", PORT).lines(), &[&built("plain_chat_server"), "5555"], by, FOUR, prepare)
}

fn clients(w: &mut World) -> ChatClients {
    ChatClients::start(&w.peer, w.pair.addr(), &ChatOptions::new(6, w.rng.next_u64())).expect("clients")
}

/// A count of the host's that a member's status shows.
fn count(w: &World, member: usize, what: &str) -> u64 {
    w.pair.status(member).expect("status")["host"][what].as_u64().expect("a count")
}

/// Something happens to what tcpr has put on a member. It is noticed and put right; the member is not protected until then.
/// The clients have lost nothing, and do not by the failover that follows.
fn survives(w: &mut World, clients: &ChatClients, what: &str, master: bool, mends: &str, harm: &dyn Fn(&Host), fault: Fault) {
    let i = if master { w.protected() } else { 1 - w.protected() };
    clients.wait_progress(PATIENCE).expect("progress");
    let before = count(w, i, mends);
    harm(w.pair.host(i));
    let mended = tcpr_lab::wait_for(PATIENCE, || count(w, i, mends) > before);
    assert!(mended, "{what}: not noticed\n{}", w.pair.describe());
    let whole =
        tcpr_lab::wait_for(PATIENCE, || w.pair.status(i).is_ok_and(|s| s["host"]["missing"].is_null() && s["protected"] == true));
    assert!(whole, "{what}: not protected again\n{}", w.pair.describe());
    clients
        .wait_progress(PATIENCE)
        .and_then(|()| clients.check())
        .unwrap_or_else(|e| panic!("{what}: {e}\n{}", w.pair.describe()));
    w.survive(clients, &[fault]);
    clients
        .wait_progress(PATIENCE)
        .and_then(|()| clients.check())
        .unwrap_or_else(|e| panic!("{what}, {fault:?}: {e}\n{}", w.pair.describe()));
}

/// The backend of iptables that has the rules, as doctor says.
fn iptables(w: &World) -> String {
    let out = w.pair.tcpr(0, &["doctor"]).expect("doctor");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let legacy = text.lines().any(|l| l.contains(" rules:") && l.contains("legacy"));
    if legacy {
        "iptables-legacy".to_owned()
    } else {
        "iptables".to_owned()
    }
}

/// Something that happens to a host, and what it is called.
type Reload = (String, Box<dyn Fn(&Host)>);

/// What a firewall does to the rules of others when it is reloaded.
fn reloads(iptables: &str) -> Vec<Reload> {
    let run =
        |line: String| -> Reload { (line.clone(), Box::new(move |host: &Host| drop(host.tool(&line).expect("the reload")))) };
    let restore: Box<dyn Fn(&Host)> = {
        let program = format!("{iptables}-restore");
        Box::new(move |host: &Host| {
            let tables = "*security\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n";
            drop(host.script(&program, tables).expect("the reload"));
        })
    };
    let t = format!("{iptables} -t security");
    let mut all = vec![
        run(format!("{t} -F")),
        run(format!("{t} -F && {t} -X")),
        ("iptables-restore".to_owned(), restore),
        run(format!("{t} -D INPUT -p tcp -j TCPR-CHAT-I")),
        run(format!("{t} -I OUTPUT -j ACCEPT")),
    ];
    if iptables == "iptables" {
        all.push(run("nft flush ruleset".to_owned()));
        all.push(run("nft delete table ip security".to_owned()));
    }
    all
}

#[test]
fn a_firewall_is_reloaded_on_the_master() {
    firewall_reloads("fwm", true, Hosted::ByRun);
}

#[test]
fn a_firewall_is_reloaded_on_the_backup() {
    firewall_reloads("fwb", false, Hosted::ByRun);
}

#[test]
fn a_firewall_is_reloaded_beside_an_embedded_manager() {
    firewall_reloads("fwe", true, Hosted::ByPreloaded);
}

/// Rules that cannot be put back, for somebody takes them away again at once: the master says so of its backup, too.
#[test]
fn a_backup_without_rules_protects_nobody() {
    let mut w = chat("fwn", Hosted::ByRun, |_| {});
    let clients = clients(&mut w);
    let master = w.protected();
    let backup = w.pair.host(1 - master);
    std::thread::scope(|s| {
        // For as long as this is there.
        let lasts = Dir::new("flushing");
        let flush = format!("while [ -d {} ]; do {} -t security -F; done", lasts.0.display(), iptables(&w));
        let flushing = s.spawn(move || backup.tool(&flush).expect("the loop"));
        let told = wait_for(PATIENCE, || {
            let said = w.pair.status(master).ok();
            said.is_some_and(|s| s["protected"] == false && s["partner"]["trouble"] == "its packet rules are missing")
        });
        let refused = wait_for(PATIENCE, || {
            let asked = w.pair.tcpr(master, &["switchover"]).expect("switchover");
            String::from_utf8_lossy(&asked.stderr).contains("packet rules of the partner are missing") || flushing.is_finished()
        });
        assert!(told && refused && !flushing.is_finished(), "{}", w.pair.describe());
    });
    assert_eq!(w.protected(), master, "all is well again");
    w.survive(&clients, &[Fault::KillAll]);
    w.end(clients);
}

fn firewall_reloads(label: &str, master: bool, by: Hosted) {
    let mut w = chat(label, by, |_| {});
    let clients = clients(&mut w);
    let faults = [Fault::KillAll, Fault::Cut, Fault::Switchover];
    let program = iptables(&w);
    for (round, (what, harm)) in reloads(&program).into_iter().enumerate() {
        survives(&mut w, &clients, &what, master, "rules_restored", &harm, faults[round % 3]);
    }
    w.no_reset();
    w.end(clients);
}

/// The rules of the kernel's older tables, where a host has both: nobody tells of their changes.
#[test]
fn a_firewall_of_the_older_tables_is_reloaded() {
    // What has no nftables in it has the rules in the older tables.
    let mut w = chat("fwl", Hosted::ByRun, |_| {});
    let clients = clients(&mut w);
    let tables = "*security\n:INPUT ACCEPT [0:0]\n:TCPR-CHAT-I - [0:0]\n-A INPUT -p tcp -j TCPR-CHAT-I\nCOMMIT\n";
    for (master, fault) in [(true, Fault::KillAll), (false, Fault::Switchover), (true, Fault::Cut)] {
        // Half of them in one, half in the other: they are put where they belong.
        let harm = |host: &Host| drop(host.script("iptables-legacy-restore --noflush", tables).expect("the older tables"));
        let flush = |host: &Host| {
            harm(host);
            drop(host.tool("iptables -t security -F").expect("a flush"));
        };
        survives(&mut w, &clients, "both kinds of tables", master, "rules_restored", &flush, fault);
    }
    w.no_reset();
    w.end(clients);
}

/// An operator, or a network daemon, removes the virtual IP, the routes, or switches the interface off for a moment.
#[test]
fn the_virtual_ip_is_put_back() {
    let mut w = chat("vip", Hosted::ByRun, |_| {});
    let clients = clients(&mut w);
    let harms = [
        "addr del 192.0.2.200/32 dev eth0",
        "route del table local local 192.0.2.200 dev eth0",
        "addr flush dev eth0 to 192.0.2.200",
    ];
    for (what, fault) in harms.into_iter().zip([Fault::KillAll, Fault::Switchover, Fault::Cut]) {
        survives(&mut w, &clients, what, true, "addresses_restored", &|host| drop(host.ip_cmd(what).expect("ip")), fault);
    }
    w.no_reset();
    w.end(clients);
}

/// The member's own address goes and comes back (a lease that is renewed, a configuration that is applied): the virtual IP
/// was there before it then. Neither takes the other away.
#[test]
fn the_members_own_address_goes_and_comes_back() {
    let mut w = chat("own", Hosted::ByRun, |_| {});
    let clients = clients(&mut w);
    for fault in [Fault::Switchover, Fault::KillAll, Fault::Cut] {
        let master = w.protected();
        let host = w.pair.host(master).clone();
        let own = format!("{}/{} dev eth0", host.ip(), host.prefix());
        host.ip_cmd(&format!("addr del {own}")).expect("removed");
        host.ip_cmd(&format!("addr add {own}")).expect("put back");
        w.survive(&clients, &[fault]);
        let addresses = host.ip_cmd("addr show dev eth0").expect("addresses");
        assert!(addresses.contains(&format!("{}/", host.ip())), "{fault:?}: its own address is gone\n{addresses}");
        w.protected();
        let epoch = w.epoch();
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(w.epoch(), epoch, "one master, and no other");
    }
    w.no_reset();
    w.end(clients);
}

/// Firewalls that ask connection tracking what a packet is, which has not seen the connections begin that are taken over.
#[test]
fn connections_pass_the_firewall_of_their_new_master() {
    for (n, firewall) in [Firewall::InvalidFirst, Firewall::InvalidAfterLo, Firewall::OnlyEstablished].into_iter().enumerate() {
        for loose in ["1", "0"] {
            let iptables = if n % 2 == 0 { "iptables" } else { "iptables-legacy" };
            let mut w = chat("fw", Hosted::ByRun, |pair| {
                for i in 0..2 {
                    pair.host(i).firewall(iptables, firewall, PORT).expect("a firewall");
                    pair.host(i).sysctl("net.netfilter.nf_conntrack_tcp_loose", loose).expect("sysctl");
                }
            });
            eprintln!("{firewall:?}, loose {loose}");
            let clients = clients(&mut w);
            w.survive(&clients, &[Fault::KillAll, Fault::Cut, Fault::Switchover, Fault::KillServer, Fault::KillAll]);
            for i in 0..2 {
                let out = w.pair.tcpr(i, &["doctor"]).expect("doctor");
                let text = String::from_utf8_lossy(&out.stdout).into_owned();
                assert!(text.lines().any(|l| l.starts_with("ok    conntrack")), "{text}");
            }
            w.no_reset();
            w.end(clients);
        }
    }
}

/// The same for firewalls that are loaded when connections were taken over already, and untracked ones.
#[test]
fn connections_pass_a_firewall_that_is_loaded_after_a_takeover() {
    let cases = [
        ("iptables", Firewall::InvalidFirst, "1", FOUR),
        ("iptables-legacy", Firewall::InvalidFirst, "0", FOUR),
        ("iptables", Firewall::InvalidAfterLo, "0", FOUR),
        ("iptables", Firewall::OnlyEstablished, "0", FOUR),
        ("ip6tables", Firewall::InvalidFirst, "0", SIX),
    ];
    for (iptables, firewall, loose, addresses) in cases {
        eprintln!("{iptables}, {firewall:?}, loose {loose}");
        let mut service = Service::new("chat", PORT).lines();
        if addresses == SIX {
            service = service.virtual_ip("2001:db8::200/64");
        }
        let mut w = World::with("fwa", service, &[&built("plain_chat_server"), "5555"], Hosted::ByRun, addresses);
        let clients = clients(&mut w);
        w.survive(&clients, &[Fault::KillAll]);
        for i in 0..2 {
            let host = w.pair.host(i);
            host.sysctl("net.netfilter.nf_conntrack_tcp_loose", loose).expect("sysctl");
            host.firewall(iptables, firewall, PORT).expect("a firewall");
        }
        clients.wait_progress(PATIENCE).and_then(|()| clients.check()).unwrap_or_else(|e| panic!("{e}\n{}", w.pair.describe()));
        w.survive(&clients, &[Fault::KillServer, Fault::Switchover, Fault::KillServer, Fault::KillAll]);
        w.no_reset();
        w.end(clients);
    }
}

/// A firewall that swallows what a takeover gives to the local TCP is named, before a takeover, with what helps.
#[test]
fn doctor_tries_a_connection_through_the_firewall() {
    let w = chat("doc", Hosted::ByRun, |_| {});
    let doctor = |i: usize, arguments: &[&str]| {
        let began = Instant::now();
        let out = w.pair.tcpr(i, arguments).expect("doctor");
        eprintln!("{:?}", began.elapsed());
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let said = |i: usize| {
        let text = doctor(i, &["doctor"]);
        text.lines().find(|l| l.contains(" connection: ")).unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    // On the master and on the backup.
    for i in 0..2 {
        let host = w.pair.host(i);
        let connects = said(i);
        assert!(connects.starts_with("ok "), "{connects}");
        host.sysctl("net.netfilter.nf_conntrack_tcp_loose", "0").expect("sysctl");
        host.firewall("iptables", Firewall::InvalidFirst, PORT).expect("a firewall");
        let connects = said(i);
        assert!(connects.starts_with("ok "), "{connects}");
        host.tool("iptables -I INPUT -i lo ! -s 127.0.0.0/8 -j DROP").expect("a rule");
        let refused = said(i);
        assert!(refused.starts_with("FAIL ") && refused.contains("-i lo -j DROP\" swallows"), "{refused}");
        let json: serde_json::Value = serde_json::from_str(&doctor(i, &["doctor", "--json"])).expect("JSON");
        let finding =
            json["findings"].as_array().and_then(|all| all.iter().find(|f| f["what"] == "connection")).expect("a finding");
        assert!(json["ok"] == false && finding["ok"] == false && finding["advice"].is_string(), "{json}");
        let (_, remedy) = refused.rsplit_once(": ").expect("a remedy");
        host.tool(remedy).expect("the remedy");
        let connects = said(i);
        assert!(connects.starts_with("ok "), "{connects}");
        let left = host.tool("iptables-save; iptables-legacy-save").expect("lists");
        assert!(!left.contains("DOCTOR"), "{left}");
        // A segment that was still under way may have made connection tracking note what has just ended.
        let tracked = || host.tool("cat /proc/net/nf_conntrack").expect("a list").contains("sport=9 ");
        tcpr_lab::wait_until(PATIENCE, "connection tracking forgets the trial", || !tracked());
    }
    w.protected();
}

/// Connections that the host does not track.
#[test]
fn untracked_connections_pass_a_firewall() {
    let mut w = chat("fwr", Hosted::ByRun, |pair| {
        for i in 0..2 {
            let host = pair.host(i);
            for rule in ["PREROUTING -p tcp --dport 5555", "OUTPUT -p tcp --sport 5555"] {
                host.tool(&format!("iptables -t raw -A {rule} -j CT --notrack")).expect("a rule");
            }
            host.firewall("iptables", Firewall::InvalidFirst, PORT).expect("a firewall");
            host.sysctl("net.netfilter.nf_conntrack_tcp_loose", "0").expect("sysctl");
        }
    });
    let clients = clients(&mut w);
    w.survive(&clients, &[Fault::KillAll, Fault::KillServer, Fault::Switchover]);
    w.no_reset();
    w.end(clients);
}

/// Peers whose addresses a router translates.
#[test]
fn peers_behind_a_translating_router_go_on() {
    let mut w = chat("nat", Hosted::ByRun, |_| {});
    let inside = w.lab().peer_behind_nat("inside", "192.0.2.8/24").expect("a router");
    let clients = ChatClients::start(&inside, w.pair.addr(), &ChatOptions::new(6, w.rng.next_u64())).expect("clients");
    w.survive(&clients, &[Fault::KillAll, Fault::Cut, Fault::Switchover]);
    let stats = clients.stop_and_verify(PATIENCE, tcpr_lab::client::End::HalfClose).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((stats.bytes_lost, stats.bytes_doubled, stats.reconnects), (0, 0, 0));
    w.pair.wait_sessions(0, PATIENCE).expect("no records");
}

/// What the members themselves translate only one of them knows: whoever sets it up is told.
#[test]
fn rules_that_translate_what_peers_connect_to_are_named() {
    let w = chat("dnat", Hosted::ByRun, |pair| {
        let rule = "-t nat -A PREROUTING -d 192.0.2.200 -p tcp --dport 80 -j DNAT --to-destination 192.0.2.200:5555";
        pair.host(0).tool(&format!("iptables {rule}")).expect("a rule");
    });
    let said = |i: usize, command: &str| {
        let out = w.pair.tcpr(i, &[command]).expect("it runs");
        (out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned())
    };
    let names = |text: &str| text.contains("--dport 80") && text.contains("translates what peers connect to");
    let (code, text) = said(0, "check");
    assert!(code == Some(0) && names(&text), "{code:?}: {text}");
    let (_, text) = said(0, "doctor");
    assert!(text.lines().any(|l| l.starts_with("FAIL  address translation") && names(l)), "{text}");
    assert!(names(&w.pair.process(0).expect("a process").tail(200)));
    for command in ["check", "doctor"] {
        let (_, text) = said(1, command);
        assert!(!names(&text), "{command}: {text}");
    }
}

/// The names that others find the manager by: removed by whoever cleans up.
#[test]
fn the_control_socket_is_put_back() {
    let w = chat("run", Hosted::ByRun, |_| {});
    for i in 0..2 {
        std::fs::remove_dir_all(w.pair.host(i).dir().join("chat-run")).expect("removed");
        let back = tcpr_lab::wait_for(PATIENCE, || w.pair.status(i).is_ok_and(|s| s["service"] == "chat"));
        assert!(back, "no control socket");
    }
}

/// One virtual IP moves with one service.
#[test]
fn a_second_service_on_a_virtual_ip_is_refused() {
    let w = chat("two", Hosted::ByRun, |_| {});
    let (a, b) = (w.pair.host(0), w.pair.host(1));
    let service = Service::new("other", PORT + 1).set("service", "queues", "[300, 301]");
    let mut second = Pair::new(a, b, service).expect("a pair");
    for i in 0..2 {
        second.start(i, &[&built("plain_chat_server"), "5556"]).expect("started");
        let process = second.process(i).expect("a process");
        let ended = tcpr_lab::wait_for(PATIENCE, || process.try_exit().is_some());
        assert!(ended, "it runs");
        let said = process.tail(20);
        assert!(said.contains("another service on this host has the virtual IP 192.0.2.200"), "{said}");
    }
    w.protected();
}
