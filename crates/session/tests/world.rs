//! A small world that is hostile at every step: peers, a wire that loses, doubles and reorders, members that die
//! in the middle of anything, and the filter in between. Everything is decided by a seed.
//!
//! `TCPR_SEED=n` replays one case (and `TCPR_TRACE=1` tells it), `TCPR_CASES=n` says how many are tried, from `TCPR_BASE`
//! on. Beside those that are always the same, fresh ones from the clock are tried, ten times as many as far as
//! `TCPR_FRESH` seconds allow (120, or none where `TCPR_CASES` or `TCPR_BASE` is set); which ones is said before.
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

use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cluster::World;

/// How many cases are always the same.
const CASES: u64 = 500;

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
    let cases = number("TCPR_CASES");
    let base = number("TCPR_BASE");
    let chosen = cases.is_some() || base.is_some();
    let mut sums = cluster::Sums::default();
    let mut one = |seed| match std::panic::catch_unwind(|| World::new(seed, trace).run()) {
        Ok(sum) => sums.add(&sum),
        Err(panic) => {
            tell(format_args!("failed: TCPR_SEED={seed}"));
            std::panic::resume_unwind(panic);
        }
    };
    let (cases, base) = (cases.unwrap_or(CASES), base.unwrap_or(1));
    (base..base + cases).for_each(&mut one);
    // A hang that was none: a connection whose callee was gone, and nobody said anything more.
    one(77_063_001);
    // An application gave a connection up before its callee answered, and a takeover brought that back.
    one(1_796_075_292_880_578);
    // A chat in which nobody says anything.
    one(40_000_060_875);
    // A SYN-ACK that was sent again had shown the peer a later timestamp than the next master's.
    one(9_300_400_616);
    // Output of a turn that went on was out beside what its application kept of another place.
    one(1_796_046_511_997_927);
    // A packet that was let go before there was a replica, and left behind that moment.
    one(9_200_028_643);
    let time = Duration::from_secs(number("TCPR_FRESH").unwrap_or(if chosen { 0 } else { 120 }));
    if !time.is_zero() {
        let from = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_micros() as u64;
        tell(format_args!("fresh world seeds from {from}"));
        let start = Instant::now();
        let fresh = (from..from + 10 * CASES).take_while(|_| start.elapsed() < time);
        let tried = fresh.map(&mut one).count() as u64;
        tell(format_args!("fresh world seeds from {from} to {}", from + tried.saturating_sub(1)));
    }
    assert!(chosen || sums.kept > 0, "no application had back what it kept");
    println!("{cases} cases from seed {base}: {sums:?}");
}

/// Seen whether the test fails or not: the harness captures what `println` says.
fn tell(text: std::fmt::Arguments) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
