//! What clients see: each byte once, in order, over connections that never end.

use tcpr_lab::client::{ChatClients, ChatOptions, EchoClients, EchoOptions, MemcachedClients, MemcachedOptions, Rate};
use tcpr_lab::member::Service;

use crate::ipv6::{Over, V4, V6};
use crate::world::{built, script, Fault, World, PORT};

fn chat(over: &Over, label: &str, service: Service, program: &[&str]) {
    let mut w = (over.new)(label, service, program);
    let clients = ChatClients::start(&w.peer, w.pair.addr(), &ChatOptions::new(6, w.rng.next_u64())).expect("clients");
    let faults = w.faults(over.failovers);
    w.survive(&clients, &faults);
    w.end(clients);
}

/// Lines, split and pipelined at random, to an unmodified server.
#[test]
fn a_chat_goes_on_through_ten_failovers() {
    chat(&V4, "chat", Service::new("chat", PORT).lines(), &[&built("plain_chat_server"), "5555"]);
}

/// The same with a linked server that says itself how much input is done.
#[test]
fn a_linked_chat_goes_on_through_ten_failovers() {
    chat(&V4, "lchat", Service::new("chat", PORT), &[&built("chat_server"), "5555"]);
}

#[test]
fn a_linked_chat_over_ipv6_goes_on() {
    chat(&V6, "lchat6", Service::new("chat", PORT), &[&built("chat_server"), "5555", V6.any]);
}

fn echo(over: &Over, label: &str, program: &[&str]) {
    let mut w = (over.new)(label, Service::new("echo", PORT), program);
    let mut options = EchoOptions::new(4, w.rng.next_u64()).rate(Rate::new((1, 4000), (1, 20)));
    // A server whose send buffer is full in a turn over several connections may lose one of them with a crash.
    options.max_outstanding = 24 << 10;
    let clients = EchoClients::start(&w.peer, w.pair.addr(), &options).expect("clients");
    let faults = w.faults(over.failovers);
    w.survive(&clients, &faults);
    w.end(clients);
}

/// A raw byte stream through an unmodified Python asyncio server.
#[test]
fn an_asyncio_echo_goes_on_through_ten_failovers() {
    echo(&V4, "echo", &["python3", &script("asyncio_echo.py"), "5555"]);
}

#[test]
fn an_asyncio_echo_over_ipv6_goes_on() {
    echo(&V6, "echo6", &["python3", &script("asyncio_echo.py"), "5555", V6.any]);
}

/// Through pipes, by splice(2).
#[test]
fn an_echo_by_splice_goes_on() {
    echo(&Over { failovers: 4, ..V4 }, "spliced", &[&built("splice_server"), "5555", "::", "echo"]);
}

/// A raw byte stream through a linked server.
#[test]
fn a_linked_echo_goes_on_through_ten_failovers() {
    echo(&V4, "lecho", &[&built("echo_server"), "5555"]);
}

#[test]
fn a_linked_echo_over_ipv6_goes_on() {
    echo(&V6, "lecho6", &[&built("echo_server"), "5555", V6.any]);
}

/// The peer's own capture of them.
#[test]
fn what_a_peer_sees_is_one_unbroken_stream() {
    let mut w = World::new("unbroken", Service::new("echo", PORT), &[&built("echo_server"), "5555"]);
    let options = EchoOptions::new(8, w.rng.next_u64()).rate(Rate::new((1, 8000), (1, 10)));
    let clients = EchoClients::start(&w.peer, w.pair.addr(), &options).expect("clients");
    let faults = [Fault::Switchover, Fault::KillServer, Fault::KillAll, Fault::Switchover, Fault::KillAll, Fault::KillServer];
    w.survive(&clients, &faults);
    w.unbroken();
    w.end(clients);
}

/// Idle and busy connections side by side; each rejoining member gets a snapshot of them all under their load.
fn many_sessions_go_on(over: &Over, label: &str, idle: usize, busy: usize) {
    let mut w = (over.new)(label, Service::new("echo", PORT), &[&built("echo_server"), "5555", over.any]);
    let idle = EchoOptions::new(idle, w.rng.next_u64()).rate(Rate::idle());
    let idle = EchoClients::start(&w.peer, w.pair.addr(), &idle).expect("idle clients");
    let busy = EchoOptions::new(busy, w.rng.next_u64()).rate(Rate::new((1, 4000), (5, 50)));
    let busy = EchoClients::start(&w.peer, w.pair.addr(), &busy).expect("busy clients");
    w.survive(&busy, &[Fault::KillAll, Fault::Cut, Fault::Switchover, Fault::KillServer]);
    w.end_all(&[&busy, &idle]);
}

#[test]
fn two_hundred_and_fifty_six_sessions_go_on() {
    many_sessions_go_on(&V4, "many", 224, 32);
}

#[test]
fn two_hundred_and_fifty_six_sessions_over_ipv6_go_on() {
    many_sessions_go_on(&V6, "many6", 224, 32);
}

#[test]
fn five_hundred_and_twelve_sessions_go_on() {
    many_sessions_go_on(&V4, "512", 448, 64);
}

#[test]
fn two_thousand_sessions_go_on() {
    many_sessions_go_on(&V4, "2000", 1968, 32);
}

/// A program from Debian, unmodified, as it runs in production: it drops its privileges.
#[test]
fn memcached_keeps_its_connections() {
    memcached(&V4, "memc");
}

#[test]
fn memcached_keeps_its_connections_over_ipv6() {
    memcached(&V6, "memc6");
}

fn memcached(over: &Over, label: &str) {
    let command = ["memcached", "-u", "nobody", "-p", "5555", "-U", "0", "-l", over.any];
    let mut w = (over.new)(label, Service::new("memcached", PORT), &command);
    let clients = MemcachedClients::start(&w.peer, w.pair.addr(), &MemcachedOptions::new(8, w.rng.next_u64())).expect("clients");
    w.survive(&clients, &[Fault::KillServer, Fault::Cut, Fault::Switchover, Fault::KillAll]);
    let verified = clients.stop_and_verify(crate::world::PATIENCE, tcpr_lab::client::End::Keep);
    let stats = verified.unwrap_or_else(|e| panic!("{e}\n{}", w.pair.describe()));
    assert_eq!((stats.alive, stats.reconnects), (8, 0));
    w.capture.no_fin_rst(&tcpr_lab::SegFilter::port(PORT)).expect("no FIN and no RST on the wire");
}
