//! A manager inside the server's own process: no `tcpr run`.

use tcpr_lab::client::{ChatClients, ChatOptions, EchoClients, EchoOptions, Rate};
use tcpr_lab::member::{Hosted, Service};
use tcpr_lab::wait_until;

use crate::bad_input::rules_of;
use crate::servers::answered_through;
use crate::world::{built, script, Fault, World, PATIENCE, PORT, SIX};

/// What can happen to it: its server and its manager die together.
fn faults(w: &mut World, n: usize) -> Vec<Fault> {
    let all = [Fault::Switchover, Fault::Cut, Fault::KillAll];
    (0..n).map(|i| if i < all.len() { all[i] } else { all[w.rng.range(0, 2) as usize] }).collect()
}

/// A linked server that outlives each switchover as the new backup.
#[test]
fn an_embedded_manager_keeps_a_linked_chat() {
    let service = Service::new("chat", PORT);
    linked_chat(World::hosted("embed", service, &[&built("chat_server"), "5555"], Hosted::ByLinked), 10);
}

#[test]
fn an_embedded_manager_keeps_a_linked_chat_over_ipv6() {
    let service = Service::new("chat", PORT).virtual_ip("2001:db8::200/64");
    linked_chat(World::with("embed6", service, &[&built("chat_server"), "5555", "::"], Hosted::ByLinked, SIX), 5);
}

fn linked_chat(mut w: World, failovers: usize) {
    let clients = ChatClients::start(&w.peer, w.pair.addr(), &ChatOptions::new(6, w.rng.next_u64())).expect("clients");
    let faults = faults(&mut w, failovers);
    w.survive(&clients, &faults);
    w.end(clients);
}

fn echo(label: &str, program: &[&str]) -> (World, EchoClients) {
    let mut w = World::hosted(label, Service::new("echo", PORT), program, Hosted::ByPreloaded);
    let mut options = EchoOptions::new(4, w.rng.next_u64()).rate(Rate::new((1, 4000), (1, 20)));
    options.max_outstanding = 24 << 10;
    let clients = EchoClients::start(&w.peer, w.pair.addr(), &options).expect("clients");
    (w, clients)
}

/// Runs a script that exits in order when it is told to end.
const EXITS: &str = "
import runpy, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
";

/// An unmodified program, preloaded by hand. Told to end, it closes its connections in order, and leaves nothing.
#[test]
fn an_embedded_manager_leaves_with_its_program() {
    let (mut w, clients) = echo("exit", &["python3", "-c", EXITS, &script("asyncio_echo.py"), "5555"]);
    let all = [Fault::Cut, Fault::KillAll, Fault::Switchover];
    w.survive(&clients, &all);
    leaves(&w);
    wait_until(PATIENCE, "the clients' connections were closed in order", || clients.stats().alive == 0);
}

/// The server gives its privileges up between bind and listen; the manager's thread keeps them, and still removes what it
/// installed.
#[test]
fn an_embedded_manager_keeps_its_privileges() {
    let program = [&built("line_server"), "5555", "setuid"];
    let mut w = World::hosted("nobody", Service::new("lines", PORT), &program, Hosted::ByPreloaded);
    let faults = faults(&mut w, 5);
    answered_through(&mut w, &faults, 4, 200, 60_000);
    leaves(&w);
}

/// Told to end, the master's program exits, the other one takes over, and no packet rule is left.
fn leaves(w: &World) {
    let master = w.protected();
    w.pair.process(master).expect("runs").signal(15).expect("SIGTERM");
    let ended = w.pair.process(master).expect("ran").wait(PATIENCE);
    assert!(ended.is_some(), "the program ends\n{}", w.pair.describe());
    w.pair.wait_master_is(1 - master, PATIENCE).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(rules_of(w.pair.host(master)), [""; 0], "{}", w.pair.describe());
}

/// `daemon()` leaves the manager's thread behind in a parent that ends: another is started in the child.
#[test]
fn an_embedded_manager_follows_a_daemon() {
    let path = format!("{}/tests/daemon_echo.py", env!("CARGO_MANIFEST_DIR"));
    let (mut w, clients) = echo("daemon", &["python3", &path, "5555"]);
    w.survive(&clients, &[Fault::Cut, Fault::KillAll, Fault::Switchover, Fault::KillAll]);
    w.end(clients);
}
