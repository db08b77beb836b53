//! Hosts as network namespaces on one machine, for tcpr's demo, benchmarks and tests.
//!
//! ```no_run
//! use tcpr_lab::{Lab, CaptureOptions, SegFilter};
//! use tcpr_lab::client::{EchoClients, EchoOptions, End};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let lab = Lab::new("example")?;
//! let server = lab.host("a", "192.0.2.1/24")?;
//! let peer = lab.host("c", "192.0.2.9/24")?;
//! let capture = peer.capture(CaptureOptions::port(5555))?;
//! let mut command = std::process::Command::new("target/examples/echo_server");
//! command.arg("5555");
//! let _echo = server.spawn("echo", command)?;
//! tcpr_lab::wait_listening(&server, 5555, std::time::Duration::from_secs(5))?;
//! let clients = EchoClients::start(&peer, (server.ip(), 5555).into(), &EchoOptions::new(10, 1))?;
//! server.cut_silent()?;
//! server.heal()?;
//! clients.stop_and_verify(std::time::Duration::from_secs(10), End::Keep)?;
//! capture.no_fin_rst(&SegFilter::port(5555))?;
//! # Ok(()) }
//! ```

mod capture;
pub mod client;
mod firewall;
mod host;
pub mod member;
mod netlink;
mod netns;
mod process;
mod raw_peer;
mod rng;
mod router;
mod shim;
mod sys;
mod wire;

pub use capture::{flags, Capture, CaptureOptions, Seg, SegFilter};
pub use firewall::Firewall;
pub use host::{check_privileges, Host, Lab};
pub use process::Process;
pub use raw_peer::{RawPeer, Said, SynFlood};
pub use rng::{seed_from_env, Rng};
pub use router::Router;
pub use shim::{Impairment, Shim};
pub use sys::{allow_descriptors, set_number};
pub use wire::Wire;

use std::io;
use std::time::{Duration, Instant};

/// Waits until a condition holds; false after the timeout.
pub fn wait_for(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until a condition holds.
///
/// # Panics
/// After the timeout, saying for what it waited in vain.
#[track_caller]
pub fn wait_until(timeout: Duration, what: &str, condition: impl FnMut() -> bool) {
    assert!(wait_for(timeout, condition), "waited {timeout:?} in vain until {what}");
}

/// Waits until something listens on a TCP port of a host (on any of its addresses). No connection is made:
/// the server notices nothing.
pub fn wait_listening(host: &Host, port: u16, timeout: Duration) -> io::Result<()> {
    let listens = || {
        // The namespace of the thread that opens them.
        ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"].iter().any(|file| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let at = format!(":{port:04X}");
            text.lines().skip(1).any(|l| {
                let mut f = l.split_whitespace().skip(1);
                f.next().is_some_and(|local| local.ends_with(&at)) && f.nth(1) == Some("0A")
            })
        })
    };
    if host.enter(|| wait_for(timeout, listens)) {
        return Ok(());
    }
    let text = format!("nothing listens on port {port} of host {} after {timeout:?}", host.name());
    Err(io::Error::new(io::ErrorKind::TimedOut, text))
}
