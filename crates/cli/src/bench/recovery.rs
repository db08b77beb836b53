//! The paper's benchmark: how long it takes to restore a session, by number of sessions.

use std::net::SocketAddr;
use std::time::Instant;

use tcpr_node::repair::{self, RestoreSpec};

use super::{connect, echo, Bench, Stand, PATIENCE};

pub fn measure(b: &mut Bench<'_>) -> Result<(), String> {
    for &n in &b.options.sessions {
        let stand = Stand::new(b.options)?;
        let mut connections = stand.connections(n)?;
        for run in 0..b.options.runs {
            b.progress(&format!("recovery of {n} sessions, run {}", run + 1));
            let master = stand.pair.wait_protected(PATIENCE)?;
            stand.pair.switchover().map_err(|e| e.to_string())?;
            stand.pair.wait_master_is(1 - master, PATIENCE)?;
            for stream in &mut connections {
                echo(stream, b"are you there?").map_err(|e| format!("after the takeover: {e}"))?;
            }
            let status = stand.pair.status(1 - master).map_err(|e| e.to_string())?;
            let takeover = |key: &str| status["takeover"][key].as_f64().unwrap_or(f64::NAN);
            if takeover("sessions") != f64::from(n) {
                return Err(format!("the takeover was of {} sessions", takeover("sessions")));
            }
            let what = |what: &str| format!("{n} sessions: {what}");
            b.note("recovery", &what("socket made, each"), "us", takeover("restore_us_per_session"));
            let all = takeover("done_us") / f64::from(n);
            b.note("recovery", &what("in the application's hands, each"), "us", all);
            b.note("recovery", &what("bare TCP_REPAIR loop, each"), "us", bare(&stand, n)?);
            let start = Instant::now();
            for _ in 0..n.min(256) {
                let mut stream = connect(&stand.peer, stand.pair.addr())?;
                echo(&mut stream, b"hello again").map_err(|e| e.to_string())?;
            }
            let each = start.elapsed().as_secs_f64() * 1e6 / f64::from(n.min(256));
            b.note("recovery", &what("peer connects anew instead, each"), "us", each);
            stand.pair.wait_sessions(u64::from(n), PATIENCE)?;
        }
    }
    Ok(())
}

/// The floor: what the kernel needs to make such sockets, with nothing around it.
fn bare(stand: &Stand, n: u32) -> Result<f64, String> {
    stand.peer.enter(|| {
        let spec = |i: u32| RestoreSpec {
            local: SocketAddr::new(stand.peer.ip(), 10_000 + i as u16),
            peer: SocketAddr::new(stand.pair.host(0).ip(), 9),
            snd_una_seq: 1000,
            snd_queue: [&[], &[]],
            unsent: [&[], &[]],
            rcv_nxt_seq: 2000,
            mss: 1460,
            snd_wscale: Some(7),
            rcv_wscale: Some(7),
            sack: true,
            timestamps: Some(1),
            snd_wnd: 65_535,
            max_window: 65_535,
            rcv_wnd: 65_535,
            rcv_wup: 2000,
            fin_sent: false,
        };
        let start = Instant::now();
        let made: Result<Vec<_>, _> = (0..n).map(|i| repair::restore(&spec(i))).collect();
        let each = start.elapsed().as_secs_f64() * 1e6 / f64::from(n);
        for socket in made.map_err(|e| format!("TCP_REPAIR: {e}"))? {
            repair::close_silently(socket).map_err(|(_, e)| e.to_string())?;
        }
        Ok(each)
    })
}
