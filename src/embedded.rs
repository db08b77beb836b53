//! The manager inside this process, for programs that are linked with libtcpr or preloaded, and run without
//! `tcpr run`.

use std::net::SocketAddr;
use std::path::Path;

use tcpr_node::config::Config;

/// Starts it and returns the service and the token with which to join its channel.
pub fn start(config: Option<&Path>) -> Result<(String, String), String> {
    let handle = tcpr_node::manager::start_embedded(config)?;
    Ok((handle.service, handle.token))
}

/// Whether a listener at this address is to be protected, as the configuration says. No file, no protection.
pub fn protects(config: Option<&Path>, to: SocketAddr) -> Result<bool, String> {
    if config.is_none() && !Config::path(None).exists() {
        return Ok(false);
    }
    let service = Config::load(config).map_err(|e| e.to_string())?.service;
    let ip = to.ip().to_canonical();
    let here = ip.is_unspecified() || service.virtual_ips.iter().any(|v| v.addr == ip);
    Ok(here && service.port(to.port()).is_some())
}
