//! The outage that a peer sees which sends and receives every millisecond.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tcpr_lab::client::{StreamClient, StreamOptions};
use tcpr_lab::wait_for;

use super::report::{Group, Report};
use super::stand::{ask_all, Stand, PATIENCE};
use super::{Options, Variant};
use crate::failure::Failure;

const SESSIONS: [u32; 4] = [1, 256, 1000, 10_000];

pub const SILENCE: Group = Group { bench: "failover", name: "longest silence of a peer", unit: "ms", axis: "sessions" };
const PARTS: Group = Group { bench: "failover", name: "parts of the silence", unit: "ms", axis: "sessions" };

#[derive(Clone, Copy)]
enum Loss {
    Switchover,
    Kill,
    Cut,
}

pub fn measure(options: &Options, variant: Variant, report: &mut Report) -> Result<(), Failure> {
    for n in options.sessions(&SESSIONS) {
        report.progress(&format!("failover: {n} sessions connect"));
        let mut stand = Stand::new(options, variant, n)?;
        let mut others = stand.connections(n - 1)?;
        let client = StreamClient::start(&stand.peer, stand.pair.addr(), &StreamOptions::new(1))?;
        for run in 0..options.runs {
            for (loss, name) in
                [(Loss::Switchover, "planned switchover"), (Loss::Kill, "server and manager killed"), (Loss::Cut, "host cut off")]
            {
                report.progress(&format!("failover: {name} with {n} sessions, {}, run {}", variant.name(), run + 1));
                let lost = stand.lose(loss, &client).map_err(|e| format!("{name}: {e}"))?;
                let at = Some(n.into());
                report.note(SILENCE, &format!("{}: {name}", variant.name()), at, lost.silence);
                for (part, ms) in lost.parts {
                    report.note(PARTS, &format!("{}: {name}: {part}", variant.name()), at, ms);
                }
                ask_all(&mut others).map_err(|e| format!("after {name}: {e}"))?;
            }
        }
        client.clients().check()?;
    }
    Ok(())
}

struct Lost {
    silence: f64,
    parts: Vec<(&'static str, f64)>,
}

impl Stand {
    /// Loses the master, and has it back as the backup.
    fn lose(&mut self, loss: Loss, client: &StreamClient) -> Result<Lost, Failure> {
        let master = self.ready()?;
        // What came before is over.
        progress(client)?;
        client.take_longest_gap();
        let when = time_of_day(SystemTime::now());
        match loss {
            Loss::Switchover => self.pair.switchover()?,
            Loss::Kill => self.pair.kill_all(master),
            Loss::Cut => self.pair.host(master).cut_silent()?,
        }
        // Asking the members meanwhile would take the processor away from them.
        progress(client)?;
        let silence = client.take_longest_gap().as_secs_f64() * 1e3;
        self.pair.wait_master_is(1 - master, PATIENCE)?;
        let status = self.pair.status(1 - master)?;
        let takeover = |key: &str| status["takeover"][key].as_f64().unwrap_or(f64::NAN) / 1e3;
        let log = self.pair.process(1 - master).map(|p| p.err()).unwrap_or_default();
        let decided = became_master(&log).ok_or("its log does not say when it became master")?;
        // Midnight may lie between.
        let decided = (decided - when).rem_euclid(86_400_000.0);
        let (probed, restored, done) = (takeover("probed_us"), takeover("restored_us"), takeover("done_us"));
        let promoted = promotion_us(&log).map(|us| us / 1e3);
        match loss {
            Loss::Switchover => {}
            Loss::Kill => self.pair.restart(master)?,
            Loss::Cut => self.pair.host(master).heal()?,
        }
        let mut parts = vec![
            ("2. peers probed", probed),
            ("3. the other sockets made", restored - probed),
            ("4. accepted by the application", done - restored),
        ];
        // A follower is at the end of its trace before anything else.
        if let Some(ms) = promoted {
            parts.insert(0, ("1. the program has come to the end of its trace", ms));
        }
        // Before it hands over, a master goes on.
        if !matches!(loss, Loss::Switchover) {
            parts.insert(0, ("1. detected and decided (from a log in whole ms)", decided));
            parts.push(("5. until the peer hears it", (silence - decided - done).max(0.0)));
        }
        Ok(Lost { silence, parts })
    }
}

fn time_of_day(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs_f64() % 86_400.0 * 1e3
}

/// When a member last became master, in ms of the day, by its log: `12:34:56.789 tcpr info transitions: became master epoch=3.0 ...`.
fn became_master(log: &str) -> Option<f64> {
    let line = log.lines().rfind(|l| l.contains(": became master epoch="))?;
    let mut fields = line.split_whitespace().next()?.split(':').map(|f| f.parse::<f64>().ok());
    let mut next = || fields.next().flatten();
    Some((next()? * 3600.0 + next()? * 60.0 + next()?) * 1e3)
}

/// How long the last promotion of the program took, in us, by the same log.
fn promotion_us(log: &str) -> Option<f64> {
    let line = log.lines().rfind(|l| l.contains(": the program goes on with its state "))?;
    line.rsplit_once("us=")?.1.trim().parse().ok()
}

/// Waits until the client has heard something new for a while.
fn progress(client: &StreamClient) -> Result<(), Failure> {
    let before = client.stats().messages_verified;
    match wait_for(PATIENCE, || {
        std::thread::sleep(Duration::from_millis(8));
        client.stats().messages_verified > before + 30
    }) {
        true => Ok(()),
        false => Err("the echo does not go on".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_says_when() {
        let log = "00:00:01.500 tcpr info transitions: became master epoch=1.0 after=0.0\n\
                   00:01:02.250 tcpr info transitions: became master epoch=3.0 after=2.1\n\
                   00:01:03.000 tcpr info takeover: takeover done";
        assert_eq!(became_master(log), Some(62_250.0));
        assert_eq!(became_master("nothing"), None);
        let log = "00:32:42.574 tcpr info standby: the program goes on with its state connections=3 us=5375";
        assert_eq!((promotion_us(log), promotion_us("nothing")), (Some(5375.0), None));
    }
}
