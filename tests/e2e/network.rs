//! Networks and peers that are not at their best: loss, small segments, TCP without its options.

use std::process::Command;

use tcpr_lab::client::{ChatClients, ChatOptions, EchoClients, EchoOptions, Rate};
use tcpr_lab::member::Service;
use tcpr_lab::Host;

use crate::world::{built, Fault, World, PATIENCE, PORT};

/// Loses packets of the service at random, in both directions.
fn lose(peer: &Host, probability: &str) {
    for (chain, port) in [("INPUT", "--sport"), ("OUTPUT", "--dport")] {
        let mut c = Command::new("iptables");
        c.args(["-w", "-I", chain, "-p", "tcp", port, "5555"]);
        c.args(["-m", "statistic", "--mode", "random", "--probability", probability, "-j", "DROP"]);
        let out = peer.run(c, PATIENCE).expect("iptables runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
}

#[test]
fn a_chat_goes_on_though_packets_are_lost() {
    let mut w = World::new("loss", Service::new("chat", PORT).lines(), &[&built("plain_chat_server"), "5555"]);
    lose(&w.peer, "0.01");
    let clients = ChatClients::start(&w.peer, w.pair.addr(), &ChatOptions::new(6, w.rng.next_u64())).expect("clients");
    let faults = w.faults(10);
    w.survive(&clients, &faults);
    w.end(clients);
}

/// A name, what its TCP is set to, and how long a packet may be on its way.
type Peer = (&'static str, &'static [(&'static str, &'static str)], u32);

/// What a peer's TCP may lack, and what its way may be like.
#[test]
fn peers_without_options_and_with_small_segments_go_on() {
    let peers: [Peer; 4] = [
        ("nots", &[("net.ipv4.tcp_timestamps", "0")], 1500),
        ("nosack", &[("net.ipv4.tcp_sack", "0"), ("net.ipv4.tcp_timestamps", "0")], 1500),
        ("nows", &[("net.ipv4.tcp_window_scaling", "0")], 600),
        ("bare", &[("net.ipv4.tcp_window_scaling", "0"), ("net.ipv4.tcp_sack", "0"), ("net.ipv4.tcp_timestamps", "0")], 296),
    ];
    for (label, settings, mtu) in peers {
        let mut w = World::new(label, Service::new("echo", PORT), &[&built("echo_server"), "5555"]);
        for (name, value) in settings {
            w.peer.sysctl(name, value).expect("sysctl");
        }
        w.peer.ip_cmd(&format!("link set eth0 mtu {mtu}")).expect("mtu");
        lose(&w.peer, "0.003");
        let mut options = EchoOptions::new(3, w.rng.next_u64()).rate(Rate::new((1, 4000), (1, 20)));
        options.max_outstanding = 24 << 10;
        let clients = EchoClients::start(&w.peer, w.pair.addr(), &options).expect("clients");
        let random = w.faults(6)[5];
        w.survive(&clients, &[Fault::KillAll, Fault::Cut, random]);
        w.end(clients);
    }
}
