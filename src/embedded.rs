//! The manager inside this process, for programs that are linked with libtcpr or preloaded, and run without
//! `tcpr run`.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::OnceLock;

use tcpr_node::config::Config;

/// Starts the manager and returns the service and the token with which to join its channel.
pub fn start(config: Option<&Path>) -> Result<(String, String), String> {
    let handle = tcpr_node::manager::start_embedded(config).map_err(|e| e.to_string())?;
    Ok((handle.service, handle.token))
}

/// Whether connections to this address are to be protected, as the configuration says. Without a file that can be read none
/// are: any program that has the library in its environment may connect to anywhere.
pub fn protects_destination(config: Option<&Path>, to: SocketAddr) -> bool {
    static LIST: OnceLock<Vec<SocketAddr>> = OnceLock::new();
    let read = || match Config::load(config) {
        Ok(config) => config.service.outgoing.iter().map(|o| o.address).collect(),
        Err(e) => {
            log::error!("connections of this process are not protected: {e}");
            Vec::new()
        }
    };
    let there = || config.is_some() || Config::path(None).exists();
    LIST.get_or_init(|| if there() { read() } else { Vec::new() }).contains(&to)
}

/// Whether a listener at this address is to be protected, as the configuration says. Without a file none is.
pub fn protects(config: Option<&Path>, to: SocketAddr) -> Result<bool, String> {
    if config.is_none() && !Config::path(None).exists() {
        return Ok(false);
    }
    let service = Config::load(config).map_err(|e| e.to_string())?.service;
    let ip = to.ip().to_canonical();
    let here = ip.is_unspecified() || service.virtual_ips.iter().any(|v| v.addr == ip);
    Ok(here && service.port(to.port()).is_some())
}
