//! `make soak MINUTES=n`: the random cases with fresh seeds, over and over, on a machine that is busy otherwise.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tcpr_lab::client::{ChatClients, ChatOptions};
use tcpr_lab::member::Service;

use crate::servers::lines_are_answered;
use crate::world::{built, Stop, World, PORT};

#[test]
#[ignore = "make soak MINUTES=n"]
fn soak() {
    let minutes: u64 = std::env::var("MINUTES").ok().and_then(|m| m.parse().ok()).expect("MINUTES=n");
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let _stop = Stop(&stop);
        for _ in 0..2 {
            threads.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let mut failovers = 0;
        let mut ways = ["pool", "pair", "stdio", "fork", "prefork", "spawn"].iter().cycle();
        while Instant::now() < end {
            if failovers / 10 % 3 == 2 {
                let way = ways.next().expect("for ever");
                lines_are_answered(way, if failovers / 30 % 2 == 0 { World::new } else { World::six });
                failovers += 10;
                continue;
            }
            let (label, service, server) = match failovers / 10 % 3 {
                0 => ("soak", Service::new("chat", PORT).lines(), "plain_chat_server"),
                _ => ("lsoak", Service::new("chat", PORT), "chat_server"),
            };
            let mut w = World::new(label, service, &[&built(server), "5555"]);
            let options = ChatOptions::new(6, w.rng.next_u64());
            let clients = ChatClients::start(&w.peer, w.pair.addr(), &options).expect("clients");
            for fault in w.faults(10) {
                w.survive(&clients, &[fault]);
                let before = w.epoch();
                std::thread::sleep(w.rng.duration(Duration::ZERO, Duration::from_secs(5)));
                assert_eq!(before, w.epoch(), "a failover that nobody caused");
                failovers += 1;
            }
            w.end(clients);
            eprintln!("{failovers} failovers; {} s to go", end.saturating_duration_since(Instant::now()).as_secs());
        }
    });
}
