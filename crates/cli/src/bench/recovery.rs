//! The paper's benchmark: how long it takes to restore a session, by number of sessions.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tcpr_node::repair::{self, SocketSpec};

use super::report::{Group, Report};
use super::stand::{ask_all, connect, echo, Stand, PATIENCE};
use super::{Engine, Options, Variant};
use crate::failure::Failure;

const SESSIONS: [u32; 6] = [64, 128, 256, 512, 1000, 10_000];
/// What the paper measured, in microseconds for each session, on three boards of 2017.
const PAPER: [(u32, f64); 4] = [(64, 512.0), (128, 628.0), (256, 705.0), (512, 758.0)];
/// Peers that connect anew, to see how long one takes.
const ANEW: u32 = 256;
/// Sockets that the bare loop has at a time: the sessions may use up all the descriptors but a few.
const AT_ONCE: u32 = 256;

const EACH: Group = Group { bench: "recovery", name: "time for each session", unit: "us", axis: "sessions" };
const ALL: Group = Group { bench: "recovery", name: "time for all sessions", unit: "ms", axis: "sessions" };

pub fn measure(options: &Options, variant: Variant, report: &mut Report) -> Result<(), Failure> {
    for n in options.sessions(&SESSIONS) {
        report.progress(&format!("recovery: {n} sessions connect"));
        let stand = Stand::new(options, variant, n)?;
        let mut connections = stand.connections(n)?;
        let (at, share) = (Some(n.into()), f64::from(n));
        for run in 0..options.runs {
            report.progress(&format!("recovery of {n} sessions, {}, run {}", variant.name(), run + 1));
            let master = stand.ready()?;
            stand.pair.switchover()?;
            // Whoever asks meanwhile, a peer or us, makes it longer.
            std::thread::sleep(Duration::from_micros(150 * u64::from(n)));
            stand.pair.wait_master_is(1 - master, PATIENCE)?;
            ask_all(&mut connections).map_err(|e| format!("after the takeover: {e}"))?;
            let status = stand.pair.status(1 - master)?;
            let takeover = |key: &str| status["takeover"][key].as_f64().unwrap_or(f64::NAN);
            if takeover("sessions") != f64::from(n) {
                return Err(format!("the takeover was of {} sessions", takeover("sessions")).into());
            }

            stand.ready()?;
            let start = Instant::now();
            stand.pair.switchover()?;
            ask_all(&mut connections).map_err(|e| format!("after the takeover back: {e}"))?;
            let answered = start.elapsed().as_secs_f64() * 1e6;

            let mut own = |group, what: &str, value| report.note(group, &format!("{}: {what}", variant.name()), at, value);
            // With the other engine the server's own listener makes them.
            if variant.engine == Engine::Repair {
                own(EACH, "socket made", takeover("restore_us_per_session"));
            }
            own(EACH, "in the application's hands", takeover("done_us") / share);
            own(EACH, "from the command until all peers that ask have an answer", answered / share);
            own(ALL, "in the application's hands", takeover("done_us") / 1e3);
            own(ALL, "from the command until all peers that ask have an answer", answered / 1e3);
            report.note(EACH, "bare TCP_REPAIR loop", at, bare(&stand, n)?);
            let anew = n.min(ANEW);
            let start = Instant::now();
            for _ in 0..anew {
                let mut stream = connect(&stand.peer, stand.pair.addr())?;
                echo(&mut stream, b"hello again")?;
            }
            report.note(EACH, "peer connects anew instead", at, start.elapsed().as_secs_f64() * 1e6 / f64::from(anew));
            stand.pair.wait_sessions(n.into(), PATIENCE)?;
        }
        if let Some((_, us)) = PAPER.iter().find(|(sessions, _)| *sessions == n) {
            report.note(EACH, "the paper, on its boards", at, *us);
        }
    }
    Ok(())
}

/// The floor: what the kernel needs to make such sockets, with nothing around it.
fn bare(stand: &Stand, n: u32) -> Result<f64, Failure> {
    stand.peer.enter(|| {
        let spec = |i: u32| SocketSpec {
            local: SocketAddr::new(stand.peer.ip(), (10_000 + i) as u16),
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
        let mut spent = Duration::ZERO;
        for from in (0..n).step_by(AT_ONCE as usize) {
            let start = Instant::now();
            let made: Result<Vec<_>, _> = (0..AT_ONCE.min(n - from)).map(|i| repair::restore(&spec(i))).collect();
            spent += start.elapsed();
            for socket in made.map_err(|e| format!("TCP_REPAIR: {e}"))? {
                repair::close_silently(socket).map_err(|(_, e)| e.to_string())?;
            }
        }
        Ok(spent.as_secs_f64() * 1e6 / f64::from(n))
    })
}
