//! The program's own data: it is there after a failover, exactly as it belongs to the connections.

use tcpr_lab::client::{EchoClients, EchoOptions, Rate};
use tcpr_lab::member::Service;

use crate::world::{built, World, PORT};

/// What the server has read and not answered is in its checkpoints alone; the clients check every byte. Values are as large as
/// they may be.
#[test]
fn checkpoints_survive_with_their_sessions() {
    let mut w = World::new("data", Service::new("data", PORT), &[&built("keeper"), "5555", "20000"]);
    let mut options = EchoOptions::new(4, w.rng.next_u64()).rate(Rate::new((1, 4000), (1, 20)));
    options.max_outstanding = 24 << 10;
    let clients = EchoClients::start(&w.peer, w.pair.addr(), &options).expect("clients");
    let faults = w.faults(5);
    w.survive(&clients, &faults);
    w.end(clients);
}
