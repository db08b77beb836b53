//! What the environment says when the program begins. The constructor reads it: some servers wipe their environment later.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::OnceLock;

/// What was read.
pub struct Environment {
    /// Service and token, if `tcpr run` started this process.
    pub service: Option<(String, String)>,
    /// `TCPR_LOG`.
    pub log: Option<String>,
    /// Destinations of protected connections, as `tcpr run` says.
    pub outgoing: Vec<SocketAddr>,
    /// Protected ports, as `tcpr run` says.
    pub ports: Vec<u16>,
    /// The library is preloaded, and not by `tcpr run`.
    pub may_embed: bool,
    /// The program has a hot standby.
    pub hot: bool,
    /// `TCPR_CONFIG`.
    pub config: Option<PathBuf>,
}

static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();

/// Reads it. Called once, by the constructor.
pub fn read() -> &'static Environment {
    ENVIRONMENT.get_or_init(|| {
        let variable = |name| std::env::var(name).ok();
        let list = |name| variable(name).unwrap_or_default();
        let service = variable("TCPR_SERVICE").zip(variable("TCPR_TOKEN"));
        let preloaded = variable("LD_PRELOAD").is_some_and(|list| list.contains("libtcpr"));
        Environment {
            may_embed: service.is_none() && preloaded,
            service,
            log: variable("TCPR_LOG"),
            hot: variable("TCPR_STANDBY").is_some(),
            outgoing: list("TCPR_OUTGOING").split(',').filter_map(|o| o.parse().ok()).collect(),
            ports: list("TCPR_PORTS").split(',').filter_map(|p| p.parse().ok()).collect(),
            config: std::env::var_os("TCPR_CONFIG").map(PathBuf::from),
        }
    })
}

/// What was read; `None` before the constructor has run.
pub fn get() -> Option<&'static Environment> {
    ENVIRONMENT.get()
}
