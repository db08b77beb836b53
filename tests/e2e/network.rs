//! Networks and peers that are not at their best: loss, small segments, TCP without its options.

use tcpr_lab::client::{ChatClients, ChatOptions, EchoClients, EchoOptions, Rate};
use tcpr_lab::member::Service;
use tcpr_lab::{Impairment, Router, Shim};

use crate::ipv6::{Over, V4, V6};
use crate::world::{built, Fault, World, PORT};

/// One packet in a hundred is lost, another is late, another comes twice, in both directions.
#[test]
fn a_chat_goes_on_over_a_bad_network() {
    chat_over_a_bad_network(&V4);
}

#[test]
fn a_chat_goes_on_over_a_bad_network_of_ipv6() {
    chat_over_a_bad_network(&V6);
}

fn chat_over_a_bad_network(over: &Over) {
    let mut w = (over.new)("bad", Service::new("chat", PORT).lines(), &[&built("plain_chat_server"), "5555"]);
    let bad = Impairment { loss: 10, reorder: 10, duplicate: 10, rate: 0 };
    let _shim = Shim::start(&w.peer, PORT, bad, w.rng.next_u64()).expect("a shim");
    let clients = ChatClients::start(&w.peer, w.pair.addr(), &ChatOptions::new(6, w.rng.next_u64())).expect("clients");
    let faults = w.faults(over.failovers);
    w.survive(&clients, &faults);
    w.end(clients);
}

/// Much in both directions over many connections, and a network that loses and reorders it.
#[test]
fn bulk_transfers_go_on_over_a_bad_network() {
    let service = Service::new("echo", PORT).port_key("independent", "true");
    let mut w = World::new("bulk", service, &[&built("echo_server"), "5555"]);
    let bad = Impairment { loss: 10, reorder: 10, duplicate: 0, rate: 0 };
    let _shim = Shim::start(&w.peer, PORT, bad, w.rng.next_u64()).expect("a shim");
    let mut options = EchoOptions::new(256, w.rng.next_u64()).rate(Rate::new((1, 16_384), (0, 100)));
    options.max_outstanding = 64 << 10;
    let clients = EchoClients::start(&w.peer, w.pair.addr(), &options).expect("clients");
    w.survive(&clients, &[Fault::KillAll, Fault::Switchover, Fault::Cut]);
    w.end(clients);
}

/// A name, what its TCP is set to, how long a packet may be on its way, and over what.
type Peer = (&'static str, &'static [(&'static str, &'static str)], u32, Over);

const BARE: &[(&str, &str)] =
    &[("net.ipv4.tcp_window_scaling", "0"), ("net.ipv4.tcp_sack", "0"), ("net.ipv4.tcp_timestamps", "0")];

/// What a peer's TCP may lack, and what its way may be like.
#[test]
fn peers_without_options_and_with_small_segments_go_on() {
    let peers: [Peer; 6] = [
        ("nots", &[("net.ipv4.tcp_timestamps", "0")], 1500, V4),
        ("nots6", &[("net.ipv4.tcp_timestamps", "0")], 1500, V6),
        ("nosack", &[("net.ipv4.tcp_sack", "0"), ("net.ipv4.tcp_timestamps", "0")], 1500, V4),
        ("nows", &[("net.ipv4.tcp_window_scaling", "0")], 600, V4),
        ("bare", BARE, 296, V4),
        // The least that IPv6 has.
        ("bare6", BARE, 1280, V6),
    ];
    for (label, settings, mtu, over) in peers {
        let mut w = (over.new)(label, Service::new("echo", PORT), &[&built("echo_server"), "5555", over.any]);
        for (name, value) in settings {
            w.peer.sysctl(name, value).expect("sysctl");
        }
        w.peer.ip_cmd(&format!("link set eth0 mtu {mtu}")).expect("mtu");
        let bad = Impairment { loss: 3, reorder: 20, duplicate: 10, rate: 0 };
        let _shim = Shim::start(&w.peer, PORT, bad, w.rng.next_u64()).expect("a shim");
        let mut options = EchoOptions::new(3, w.rng.next_u64()).rate(Rate::new((1, 4000), (1, 20)));
        options.max_outstanding = 24 << 10;
        let clients = EchoClients::start(&w.peer, w.pair.addr(), &options).expect("clients");
        let random = w.faults(6)[5];
        w.survive(&clients, &[Fault::KillAll, Fault::Cut, random]);
        w.end(clients);
    }
}

/// Downloads to a peer behind a router whose way takes less than either end knows. `heard`: what the router says of that
/// is; else the members' TCP has to find out by itself.
fn behind_a_router(over: &Over, label: &str, mtu: u32, heard: bool) {
    let mut w = (over.new)(label, Service::new("echo", PORT), &[&built("echo_server"), "5555", over.any]);
    let router = Router::new(w.lab(), over.any == V6.any, mtu, &[w.pair.host(0), w.pair.host(1)]).expect("a router");
    if !heard {
        router.mute().expect("a rule");
        for i in 0..2 {
            w.pair.host(i).sysctl("net.ipv4.tcp_mtu_probing", "1").expect("sysctl");
        }
    }
    // Enough that there is always old output, and in full segments.
    let mut options = EchoOptions::new(4, w.rng.next_u64()).rate(Rate::new((4000, 16_000), (0, 10)));
    options.max_outstanding = 48 << 10;
    let clients = EchoClients::start(router.peer(), w.pair.addr(), &options).expect("clients");
    w.survive(&clients, &[Fault::KillAll, Fault::Switchover, Fault::Cut]);
    w.end(clients);
}

#[test]
fn downloads_go_on_behind_a_router_with_a_small_mtu() {
    behind_a_router(&V4, "mtu1400", 1400, true);
    behind_a_router(&V4, "mtu1280", 1280, true);
}

#[test]
fn downloads_go_on_behind_a_router_with_a_small_mtu_of_ipv6() {
    behind_a_router(&V6, "mtu1400six", 1400, true);
    behind_a_router(&V6, "mtu1280six", 1280, true);
}

#[test]
fn downloads_go_on_behind_a_router_that_is_not_heard() {
    behind_a_router(&V4, "mute1400", 1400, false);
    behind_a_router(&V6, "mute1280six", 1280, false);
}
