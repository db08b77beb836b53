//! What a recovered connection costs from then on, with each engine: a repaired one is the kernel's own again, a spliced one
//! has its numbers corrected in every packet.

use super::report::{Group, Report};
use super::stand::{connect, echo, Stand, PATIENCE};
use super::{latency, throughput, Options, Variant};
use crate::failure::Failure;

const TRIP: Group = Group { bench: "recovered", name: "round trip of 64 bytes, p50", unit: "us", axis: "" };
const ECHO: Group = Group { bench: "recovered", name: "echo, one stream", unit: "MB/s", axis: "" };
const SIZE: u32 = 64;

pub fn measure(options: &Options, variant: Variant, report: &mut Report) -> Result<(), Failure> {
    let stand = Stand::new(options, variant, 0)?;
    for run in 1..=options.runs {
        for recovered in [false, true] {
            let when = if recovered { "recovered" } else { "as it was opened" };
            report.progress(&format!("recovered: {}, {when}, run {run}", variant.name()));
            let mut stream = connect(&stand.peer, stand.pair.addr())?;
            echo(&mut stream, b"before")?;
            if recovered {
                let master = stand.ready()?;
                stand.pair.switchover()?;
                stand.pair.wait_master_is(1 - master, PATIENCE)?;
            }
            stand.ready()?;
            let mut streams = [stream];
            let trips = latency::round_trips(options, &mut streams, SIZE)?;
            report.note(TRIP, &format!("{}, {when}", variant.name()), None, trips.value_at_quantile(0.5) as f64 / 1e3);
            let rate = throughput::echo_over(options, &stand, variant, &streams[0])?;
            report.note(ECHO, &format!("{}, {when}", variant.name()), None, rate / 1e6);
        }
    }
    Ok(())
}
