use super::nft::Nft;
use super::*;
use crate::vip::testnet::{in_netns, ip, Pair};

fn rules(service: &str) -> Rules {
    Rules {
        service: service.into(),
        virtual_ips: vec!["192.0.2.200".parse().unwrap()],
        ports: vec![5555, 5556],
        outgoing: vec!["198.51.100.9:179".parse().unwrap()],
        queues: (200, 201),
    }
}

/// Runs a command of iptables and returns what it prints.
fn iptables(line: &str) -> String {
    let mut words = line.split_whitespace();
    let out = std::process::Command::new(format!("/usr/sbin/{}", words.next().unwrap())).args(words).output().unwrap();
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn installed_once_changed_and_removed() {
    in_netns(|| {
        let chat = rules("chat");
        assert_eq!(chat.installed().unwrap(), RulesState::Absent);
        assert!(!chat.remove().unwrap());
        iptables("iptables -A INPUT -p tcp --dport 22 -j ACCEPT");
        iptables("iptables -t security -A INPUT -p tcp -j ACCEPT");
        let before = iptables("iptables -S") + &iptables("iptables -t security -S");
        let first = chat.install_iptables().unwrap();
        assert_eq!(first.table, "security");
        let once = iptables("iptables -t security -S");
        assert_eq!(chat.install_iptables().unwrap(), first);
        assert_eq!(iptables("iptables -t security -S"), once);
        assert_eq!(chat.installed().unwrap(), RulesState::Installed(first.clone()));
        for line in [
            "-A INPUT -p tcp -j TCPR-CHAT-I\n-A INPUT -p tcp -j ACCEPT",
            "-A OUTPUT -p tcp -j TCPR-CHAT-O",
            "-A TCPR-CHAT-I -i lo -j RETURN\n-A TCPR-CHAT-I -m mark --mark 0x54435052 -j RETURN",
            "-A TCPR-CHAT-O -o lo -j RETURN\n-A TCPR-CHAT-O -m mark --mark 0x5443504c -j DROP\n-A TCPR-CHAT-O -m mark --mark 0x54435052 -j RETURN",
            "-A TCPR-CHAT-I -d 192.0.2.200/32 -p tcp -m tcp --dport 5556 -j NFQUEUE --queue-num 200\n",
            "-A TCPR-CHAT-O -s 192.0.2.200/32 -p tcp -m tcp --sport 5556 -j NFQUEUE --queue-num 201\n",
            "-A TCPR-CHAT-I -s 198.51.100.9/32 -d 192.0.2.200/32 -p tcp -m tcp --sport 179 -j NFQUEUE --queue-num 200\n",
            "-A TCPR-CHAT-O -s 192.0.2.200/32 -d 198.51.100.9/32 -p tcp -m tcp --dport 179 -j NFQUEUE --queue-num 201\n",
        ] {
            assert!(once.contains(line), "{line}\nis not in\n{once}");
        }
        // A second service, whose name begins like the first.
        let other = rules("chat-2");
        other.install_iptables().unwrap();
        assert_eq!(chat.installed().unwrap(), RulesState::Installed(first.clone()));
        let names: Vec<_> = leftovers().unwrap().into_iter().map(|l| (l.service, l.table)).collect();
        let in_security = |n: &str| (n.to_string(), "security".to_string());
        assert_eq!(names, [in_security("chat"), in_security("chat-2")]);
        // Other ports: refilled, not doubled.
        let mut fewer = chat.clone();
        fewer.ports = vec![7777];
        assert!(matches!(fewer.installed().unwrap(), RulesState::Wrong(_)));
        fewer.install_iptables().unwrap();
        assert!(!iptables("iptables -t security -S").contains("--dport 5555 -j NFQUEUE --queue-num 200\n-A TCPR-CHAT-I"));
        assert!(matches!(fewer.installed().unwrap(), RulesState::Installed(_)));
        assert!(fewer.remove().unwrap());
        assert_eq!(fewer.installed().unwrap(), RulesState::Absent);
        assert!(matches!(other.installed().unwrap(), RulesState::Installed(_)));
        assert!(remove("chat-2").unwrap());
        let after = iptables("iptables -S") + &iptables("iptables -t security -S");
        assert_eq!(after, before, "other people's rules are as they were");
        assert!(leftovers().unwrap().is_empty());
    });
}

#[test]
fn both_families_come_and_go_together() {
    in_netns(|| {
        let mut both = rules("chat");
        both.virtual_ips.push("2001:db8::200".parse().unwrap());
        both.install_iptables().unwrap();
        assert!(matches!(both.installed().unwrap(), RulesState::Installed(_)));
        let six = iptables("ip6tables -t security -S");
        for line in [
            "-A INPUT -p tcp -j TCPR-CHAT-I\n",
            "-A TCPR-CHAT-I -d 2001:db8::200/128 -p tcp -m tcp --dport 5556 -j NFQUEUE --queue-num 200\n",
            "-A TCPR-CHAT-O -s 2001:db8::200/128 -p tcp -m tcp --sport 5556 -j NFQUEUE --queue-num 201\n",
        ] {
            assert!(six.contains(line), "{line}\nis not in\n{six}");
        }
        assert!(!six.contains("192.0.2"), "{six}");
        iptables("ip6tables -t security -F TCPR-CHAT-O");
        assert!(matches!(both.installed().unwrap(), RulesState::Wrong(_)));
        // No longer asked for: gone.
        rules("chat").install_iptables().unwrap();
        assert!(!iptables("ip6tables -t security -S").contains("TCPR"));
        both.install_iptables().unwrap();
        assert!(both.remove().unwrap());
        assert!(leftovers().unwrap().is_empty());
    });
}

#[test]
fn damage_is_seen_and_repaired() {
    in_netns(|| {
        let chat = rules("chat");
        let wrong = |part: &str| match chat.installed().unwrap() {
            RulesState::Wrong(text) => assert!(text.contains(part), "{text}"),
            other => panic!("{other:?}"),
        };
        let repaired = || {
            chat.install_iptables().unwrap();
            assert!(matches!(chat.installed().unwrap(), RulesState::Installed(_)));
        };
        repaired();
        iptables("iptables -t security -D OUTPUT -p tcp -j TCPR-CHAT-O");
        wrong("OUTPUT in table security does not lead to TCPR-CHAT-O");
        repaired();
        iptables("iptables -t security -I INPUT -p tcp -j ACCEPT");
        wrong("INPUT in table security has a rule before TCPR-CHAT-I");
        repaired();
        iptables("iptables -t security -D TCPR-CHAT-I 4");
        wrong("the rules of TCPR-CHAT-I");
        repaired();
        // Entered twice, and from elsewhere.
        iptables("iptables -t security -A INPUT -j TCPR-CHAT-I");
        iptables("iptables -t security -A FORWARD -g TCPR-CHAT-I");
        repaired();
        let all = iptables("iptables -t security -S");
        assert_eq!(all.matches("-j TCPR-CHAT-I").count(), 1, "{all}");
        // Of an older version, or by the other iptables of this machine.
        iptables("iptables -N TCPR-CHAT-I");
        iptables("iptables -I INPUT -p tcp -j TCPR-CHAT-I");
        if std::path::Path::new("/usr/sbin/iptables-legacy").exists() {
            iptables("iptables-legacy -N TCPR-CHAT-O");
            iptables("iptables-legacy -I OUTPUT -j TCPR-CHAT-O");
        }
        wrong("in several tables");
        repaired();
        assert_eq!(leftovers().unwrap().len(), 1);
        assert!(chat.remove().unwrap());
        assert!(leftovers().unwrap().is_empty());
    });
}

#[test]
fn closed_without_a_manager_and_open_on_loopback_and_for_others() {
    in_netns(|| {
        let pair = Pair::new();
        ip("addr add 192.0.2.200/24 dev v0");
        pair.there(|| ip("addr add 192.0.2.7/24 dev v1"));
        let listen = |port| std::net::TcpListener::bind(("192.0.2.200", port)).unwrap();
        let (_protected, _other) = (listen(5555), listen(80));
        let connect = |port: u16| {
            let to = ([192, 0, 2, 200], port).into();
            std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_millis(1500)).is_ok()
        };
        let chat = rules("chat");
        assert!(pair.there(|| connect(5555)));
        chat.install().unwrap();
        assert!(!pair.there(|| connect(5555)), "fails closed");
        assert!(pair.there(|| connect(80)));
        assert!(connect(5555), "loopback is exempt");
        chat.remove().unwrap();
        assert!(pair.there(|| connect(5555)));
    });
}

#[test]
fn rules_as_other_versions_write_them() {
    let a = "-s 10.0.0.1/32 -d 10.0.0.2/32 -p tcp -m tcp --dport 5 -m mark --mark 0x54435052/0xffffffff -j X";
    let b = "-d 10.0.0.2 -s 10.0.0.1 -p tcp --dport 5 -m mark --mark 0x54435052 -j X";
    assert_eq!(canonical(a), canonical(b));
    assert_ne!(canonical(a), canonical(&b.replace("--dport 5", "--dport 6")));
    assert_ne!(canonical(a), canonical(&format!("{a} --queue-bypass")));
    assert_eq!(target("-p tcp -g TCPR-A-I"), Some("TCPR-A-I"));
    assert_eq!(target("-p tcp"), None);
}

fn nft() -> Nft {
    Nft::find().expect("apt install nftables")
}

/// What the table looks like, and the same with queues that nobody reads: this kernel may know no other.
fn native(rules: &Rules) -> (String, String) {
    let script = nft::script(rules);
    let closed = script.replace("queue num 200", "drop").replace("queue num 201", "drop");
    assert!(!closed.contains("queue"), "{closed}");
    (script, closed)
}

#[test]
fn nftables_own_rules() {
    let mut both = rules("chat");
    both.ports = vec![5555];
    both.virtual_ips.push("2001:db8::200".parse().unwrap());
    let text = "\
add table inet tcpr-chat
delete table inet tcpr-chat
table inet tcpr-chat {
chain input {
type filter hook input priority 50; policy accept;
iifname \"lo\" accept
meta mark 0x54435052 accept
ip daddr 192.0.2.200 tcp dport 5555 queue num 200
ip saddr 198.51.100.9 ip daddr 192.0.2.200 tcp sport 179 queue num 200
ip6 daddr 2001:db8::200 tcp dport 5555 queue num 200
}
chain output {
type filter hook output priority 50; policy accept;
oifname \"lo\" accept
meta mark 0x5443504c drop
meta mark 0x54435052 accept
ip saddr 192.0.2.200 tcp sport 5555 queue num 201
ip saddr 192.0.2.200 ip daddr 198.51.100.9 tcp dport 179 queue num 201
ip6 saddr 2001:db8::200 tcp sport 5555 queue num 201
}
}
";
    assert_eq!(native(&both).0, text);
    in_netns(|| {
        let (_, closed) = native(&both);
        nft().apply(&closed).unwrap();
        nft().apply(&closed).unwrap();
        let listing = |table: &str| tool::run(&tool::find("nft").unwrap(), &["-n", "list", "table", "inet", table], "").unwrap();
        let wanted = closed.split_once("table inet tcpr-chat\ntable").unwrap().1;
        assert_eq!(nft::canonical(&listing("tcpr-chat")), nft::canonical(&format!("table{wanted}")));
        // Some versions call the same by another name.
        assert_eq!(nft::canonical(" tcp dport 5  queue to 7"), ["tcp dport 5 queue num 7"]);
        // Others' tables are nobody's business.
        nft().apply("add table inet other").unwrap();
        nft().apply(&native(&rules("chat-2")).1).unwrap();
        assert_eq!(nft().services(), ["chat", "chat-2"]);
        assert!(matches!(both.installed().unwrap(), RulesState::Wrong(_)), "they do not queue");
        let names: Vec<_> = leftovers().unwrap().into_iter().map(|l| (l.service, l.by)).collect();
        assert_eq!(names, ["chat", "chat-2"].map(|n| (n.to_owned(), Backend::Nft)));
        assert!(remove("chat").unwrap());
        assert!(!remove("chat").unwrap());
        assert_eq!(nft().services(), ["chat-2"]);
        assert!(remove("chat-2").unwrap());
        listing("other");
    });
}

/// As `closed_without_a_manager_and_open_on_loopback_and_for_others`, and marked packets pass.
#[test]
fn nftables_rules_stand_where_packets_pass() {
    in_netns(|| {
        let pair = Pair::new();
        ip("addr add 192.0.2.200/24 dev v0");
        pair.there(|| ip("addr add 192.0.2.7/24 dev v1"));
        let _protected = std::net::TcpListener::bind(("192.0.2.200", 5555)).unwrap();
        let connect = || {
            let to = ([192, 0, 2, 200], 5555).into();
            std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_millis(1500)).is_ok()
        };
        let (script, closed) = native(&rules("chat"));
        nft().apply(&closed).unwrap();
        assert!(!pair.there(connect), "closed");
        assert!(connect(), "loopback is exempt");
        for hook in ["prerouting", "output"] {
            let mark = format!(
                "table inet marks {{ chain {hook} {{ type filter hook {hook} priority -200; meta mark set {MARK}; }}\n}}\n"
            );
            nft().apply(&mark).unwrap();
        }
        assert!(pair.there(connect), "marked packets are exempt");
        nft().apply("delete table inet marks").unwrap();
        // All or nothing: without queues in the kernel the old table stays.
        match nft().probe() {
            Ok(()) => nft().apply(&script).unwrap(),
            Err(_) => drop(nft().apply(&script).unwrap_err()),
        }
        assert!(!pair.there(connect), "still closed");
        assert!(remove("chat").unwrap());
        assert!(pair.there(connect));
    });
}

/// What is sent to the local TCP in a peer's name stays here, even where the virtual IP is not.
#[test]
fn injected_packets_do_not_leave() {
    use crate::rawsock::RawSender;
    use tcpr_session::segment::{flags, Build};
    use tcpr_session::seq::Seq;
    in_netns(|| {
        let _pair = Pair::new();
        ip("addr add 192.0.2.1/24 dev v0");
        rules("chat").install_iptables().unwrap();
        let mut packet = Vec::new();
        Build {
            source: "192.0.2.9:40000".parse().unwrap(),
            destination: "192.0.2.200:5555".parse().unwrap(),
            seq: Seq(1),
            ack: Seq(0),
            flags: flags::SYN,
            window: 1000,
            timestamps: None,
            payload: &[],
        }
        .write(&mut packet);
        let (mut local, mut peers) = (RawSender::open_local().unwrap(), RawSender::open().unwrap());
        peers.send(&packet).unwrap();
        assert_eq!(local.send(&packet).unwrap_err().raw_os_error(), Some(libc::EPERM));
        ip("addr add 192.0.2.200/24 dev v0");
        local.send(&packet).unwrap();
    });
}

/// The backend is nft exactly where the kernel has its queue, and what the other one left goes.
#[test]
fn one_backend_at_a_time() {
    in_netns(|| {
        let native_queue = nft().probe().is_ok();
        assert!(nft().services().is_empty(), "the probe leaves nothing");
        let chat = rules("chat");
        assert_eq!(backend().unwrap().0 == Backend::Nft, native_queue);
        for _ in 0..2 {
            chat.install_iptables().unwrap();
            nft().apply(&native(&chat).1).unwrap();
            assert!(matches!(chat.installed().unwrap(), RulesState::Wrong(_)));
            let installed = chat.install().unwrap();
            assert_eq!(installed.by == Backend::Nft, native_queue);
            assert_eq!(chat.installed().unwrap(), RulesState::Installed(installed));
            assert_eq!(nft().services().is_empty(), !native_queue);
            assert_eq!(iptables("iptables -t security -S").contains("TCPR"), !native_queue);
        }
        assert!(chat.remove().unwrap());
        assert!(leftovers().unwrap().is_empty());
    });
}
