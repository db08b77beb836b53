//! IPv6 alone, and beside IPv4. Tests of the other modules run over both, or over IPv6 where what they are about does not
//! depend on the family.

use tcpr_lab::client::{ChatClients, ChatOptions, EchoClients, EchoOptions, Rate};
use tcpr_lab::member::Service;

use crate::world::{built, script, World, PORT};

/// Over which family a test runs.
pub struct Over {
    /// Makes the world.
    pub new: fn(&str, Service, &[&str]) -> World,
    /// What a server listens on.
    pub any: &'static str,
    /// How many failovers there are: a second run is shorter.
    pub failovers: usize,
}

pub const V4: Over = Over { new: World::new, any: "0.0.0.0", failovers: 10 };
pub const V6: Over = Over { new: World::six, any: "::", failovers: 5 };

#[test]
fn a_chat_over_ipv6_goes_on_through_ten_failovers() {
    let program = [&built("plain_chat_server"), "5555"];
    let mut w = World::six("six", Service::new("chat", PORT).lines(), &program);
    let clients = ChatClients::start(&w.peer, w.pair.addr(), &ChatOptions::new(6, w.rng.next_u64())).expect("clients");
    let faults = w.faults(10);
    w.survive(&clients, &faults);
    w.end(clients);
}

/// Two virtual IPs; the server has a listener for each family.
#[test]
fn both_families_go_on_side_by_side() {
    let service = Service::new("echo", PORT).set("service", "virtual_ip", "[\"192.0.2.200/24\", \"2001:db8::200/64\"]");
    let mut w = World::new("dual", service, &["python3", &script("asyncio_echo.py"), "5555", ""]);
    for (host, ip) in [(w.pair.host(0), 1), (w.pair.host(1), 2), (&w.peer, 9)] {
        host.ip_cmd(&format!("-6 addr add 2001:db8::{ip}/64 dev eth0 nodad")).expect("an address");
    }
    let mut options = EchoOptions::new(3, w.rng.next_u64()).rate(Rate::new((1, 4000), (1, 20)));
    options.max_outstanding = 24 << 10;
    let four = EchoClients::start(&w.peer, w.pair.addr(), &options).expect("clients");
    let six = "[2001:db8::200]:5555".parse().expect("an address");
    let six = EchoClients::start(&w.peer, six, &options).expect("clients");
    for fault in w.faults(6) {
        w.survive(&six, &[fault]);
        four.wait_progress(crate::world::PATIENCE).and_then(|()| four.check()).unwrap_or_else(|e| panic!("{e}"));
    }
    w.end_all(&[&four, &six]);
}
