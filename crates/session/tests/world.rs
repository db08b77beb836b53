//! A small world that is hostile at every step: peers, a wire that loses, doubles and reorders, members that die
//! in the middle of anything, and the filter in between. Everything is decided by a seed.
//!
//! `TCPR_SEED=n` replays one case (and `TCPR_TRACE=1` tells it), `TCPR_CASES=n` says how many are tried.
//!
//! Checked at every step: what leaves is covered by the replica (I1, I2), or for a master that was overtaken by
//! the store of the takeover (I3); no ending that nobody asked for (I4); equal stores at equal positions (I5); each
//! peer hears exactly what it is owed (I6). At the end: everybody was served within bounded time, and no record,
//! packet or timer is left.

#[path = "world/callee.rs"]
mod callee;
#[path = "world/cluster.rs"]
mod cluster;
#[path = "world/node.rs"]
mod node;
#[path = "world/peer.rs"]
mod peer;
#[path = "world/rng.rs"]
mod rng;
#[path = "world/tcp.rs"]
mod tcp;

use cluster::World;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn the_world_is_in_order() {
    let trace = number("TCPR_TRACE").is_some();
    if let Some(seed) = number("TCPR_SEED") {
        let sum = World::new(seed, trace).run();
        println!("seed {seed}: {sum:?}");
        return;
    }
    let cases = number("TCPR_CASES").unwrap_or(500);
    let base = number("TCPR_BASE").unwrap_or(1);
    let mut sums = cluster::Sums::default();
    for seed in base..base + cases {
        let result = std::panic::catch_unwind(|| World::new(seed, trace).run());
        match result {
            Ok(sum) => sums.add(&sum),
            Err(panic) => {
                eprintln!("failed: TCPR_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{cases} cases from seed {base}: {sums:?}");
}
