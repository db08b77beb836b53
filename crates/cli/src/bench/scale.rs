//! What many sessions need while they are idle, that all of them are taken over, and what a snapshot of them costs.

use std::time::{Duration, Instant};

use tcpr_lab::client::{StreamClient, StreamOptions};

use super::report::{quantile, Group, Report};
use super::stand::{Stand, PATIENCE};
use super::{usage, Options, Variant};
use crate::failure::Failure;

const SESSIONS: [u32; 1] = [100_000];
/// Memory of this machine that a session may need: two sockets, a third while it is restored, and what the server, the
/// managers and the peer have of it.
const ROOM: f64 = 64e3;
/// How long idle members are watched, and how long a stream is before something is done to it.
const IDLE: Duration = Duration::from_secs(3);

const MEMORY: Group = group("memory of `tcpr run`, each idle session", "B");
const SILENT: Group = group("sent by the idle master, each session", "B/s");
const SENT: Group = group("sent by the idle master in all (heartbeats, replication)", "B/s");
const OVER: Group = group("switchover", "ms");
const JOIN: Group = group("a backup joins: until it is complete", "ms");
const JOIN_SENT: Group = group("a backup joins: sent by the master", "MB");
const JOIN_FELT: Group = group("a backup joins: what a peer feels that streams every millisecond", "ms");

const fn group(name: &'static str, unit: &'static str) -> Group {
    Group { bench: "scale", name, unit, axis: "sessions" }
}

pub fn measure(options: &Options, variant: Variant, report: &mut Report) -> Result<(), Failure> {
    for wanted in options.sessions(&SESSIONS) {
        let most = (usage::available() / ROOM) as u32;
        if most < wanted {
            report.remark("scale", format!("this machine has memory for {most} sessions, not for {wanted}"));
        }
        let n = wanted.min(most);
        one(options, variant, report, n)?;
    }
    Ok(())
}

fn one(options: &Options, variant: Variant, report: &mut Report, n: u32) -> Result<(), Failure> {
    let own = |what: &str| format!("{}: {what}", variant.name());
    let (at, share) = (Some(n.into()), f64::from(n));
    let mut stand = Stand::new(options, variant, n)?;
    let mut master = stand.ready()?;
    let alone = stand.idle(master);
    let before = stand.memory();
    report.progress(&format!("scale: {n} sessions connect, {}", variant.name()));
    let mut peers = stand.holders(n)?;
    stand.pair.wait_sessions(n.into(), PATIENCE)?;
    std::thread::sleep(IDLE);
    let after = stand.memory();
    for (name, i) in [("master", master), ("backup", 1 - master)] {
        report.note(MEMORY, &own(name), at, (after[i] - before[i]) / share);
    }
    let idle = stand.idle(master);
    report.note(SENT, &own("master"), Some(0), alone);
    report.note(SENT, &own("master"), at, idle);
    report.note(SILENT, &own("master"), at, (idle - alone) / share);
    for run in 1..=options.runs {
        report.progress(&format!("scale: {n} sessions switch over, {}, run {run}", variant.name()));
        let start = Instant::now();
        stand.pair.switchover()?;
        peers.ask().map_err(|e| format!("after the switchover: {e}"))?;
        let answered = start.elapsed().as_secs_f64() * 1e3;
        master = 1 - master;
        let status = stand.pair.status(master)?;
        let done = status["takeover"]["done_us"].as_f64().unwrap_or(f64::NAN) / 1e3;
        report.note(OVER, &own("in the application's hands"), at, done);
        report.note(OVER, &own("until all peers have an answer"), at, answered);
        stand.ready()?;

        report.progress(&format!("scale: a backup joins {n} sessions, {}, run {run}", variant.name()));
        let client = StreamClient::start(&stand.peer, stand.pair.addr(), &StreamOptions::new(u64::from(run)))?;
        let (before, _) = felt(&client);
        let sent = stand.sent(master);
        stand.pair.kill_all(1 - master);
        let start = Instant::now();
        stand.pair.restart(1 - master)?;
        stand.ready()?;
        let took = start.elapsed().as_secs_f64() * 1e3;
        report.note(JOIN, &own("from its start"), at, took);
        report.note(JOIN_SENT, &own("from its start"), at, (stand.sent(master) - sent) / 1e6);
        // With the silence after the death of the last one, which the master needs to see it.
        let (during, silence) = felt(&client);
        report.note(JOIN_FELT, &own("round trip before, p99"), at, before);
        report.note(JOIN_FELT, &own("round trip meanwhile, p99"), at, during);
        report.note(JOIN_FELT, &own("longest silence, with the loss of the old backup"), at, silence);
        client.clients().check()?;
        drop(client);
        // The stream's session ends with it.
        stand.pair.wait_sessions(n.into(), PATIENCE)?;
    }
    Ok(())
}

/// The 99th percentile of a stream's round trips, and its longest silence, since the last call, in ms.
fn felt(client: &StreamClient) -> (f64, f64) {
    std::thread::sleep(IDLE);
    let trips: Vec<f64> = client.take_round_trips().into_iter().map(|us| f64::from(us) / 1e3).collect();
    let silence = client.take_longest_gap().as_secs_f64() * 1e3;
    (if trips.is_empty() { f64::NAN } else { quantile(&trips, 0.99) }, silence)
}

impl Stand {
    fn memory(&self) -> [f64; 2] {
        [0, 1].map(|i| self.pair.process(i).map_or(f64::NAN, |p| usage::resident(p.pid())))
    }

    fn sent(&self, member: usize) -> f64 {
        self.pair.host(member).enter(usage::sent)
    }

    /// Bytes each second that a member sends.
    fn idle(&self, member: usize) -> f64 {
        let (before, start) = (self.sent(member), Instant::now());
        std::thread::sleep(IDLE);
        (self.sent(member) - before) / start.elapsed().as_secs_f64()
    }
}
