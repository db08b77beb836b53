//! The outage that a peer sees which sends and receives every millisecond.

use std::time::Duration;

use tcpr_lab::client::{EchoClients, EchoOptions, Rate};
use tcpr_lab::wait_for;

use super::{echo, Bench, Stand, PATIENCE};

#[derive(Clone, Copy)]
enum Loss {
    Switchover,
    Kill,
    Cut,
}

pub fn measure(b: &mut Bench<'_>) -> Result<(), String> {
    let text = |e: std::io::Error| e.to_string();
    for &n in &b.options.sessions {
        let mut stand = Stand::new(b.options)?;
        let mut others = stand.connections(n.saturating_sub(1))?;
        let rate = Rate { bytes: (32, 32), pause: (Duration::from_millis(1), Duration::from_millis(1)) };
        let client = EchoClients::start(&stand.peer, stand.pair.addr(), &EchoOptions::new(1, 1).rate(rate)).map_err(text)?;
        for run in 0..b.options.runs {
            for (loss, name) in
                [(Loss::Switchover, "planned switchover"), (Loss::Kill, "server and manager killed"), (Loss::Cut, "host cut off")]
            {
                b.progress(&format!("{name} with {n} sessions, run {}", run + 1));
                let master = stand.pair.wait_protected(PATIENCE)?;
                // What came before is over.
                progress(&client)?;
                client.reset_stalls();
                match loss {
                    Loss::Switchover => stand.pair.switchover().map_err(text)?,
                    Loss::Kill => stand.pair.kill_all(master),
                    Loss::Cut => stand.pair.host(master).cut_silent().map_err(text)?,
                }
                stand.pair.wait_master_is(1 - master, PATIENCE)?;
                progress(&client)?;
                b.note("failover", &format!("{n} sessions: {name}, longest silence"), "ms", client.stats().max_stall_ms);
                match loss {
                    Loss::Switchover => {}
                    Loss::Kill => stand.pair.restart(master).map_err(text)?,
                    Loss::Cut => stand.pair.host(master).heal().map_err(text)?,
                }
                for stream in &mut others {
                    echo(stream, b"are you there?").map_err(|e| format!("after {name}: {e}"))?;
                }
            }
        }
        client.check()?;
    }
    Ok(())
}

/// Waits until the client has heard something new.
fn progress(client: &EchoClients) -> Result<(), String> {
    let before = client.stats().verified;
    match wait_for(PATIENCE, || client.stats().verified > before + 1000) {
        true => Ok(()),
        false => Err("the echo does not go on".to_owned()),
    }
}
