//! The manager inside this process, for programs that are linked with libtcpr and run without `tcpr run`.

use std::path::Path;

/// Starts it and returns the service and the token with which to join its channel.
pub fn start(config: Option<&Path>) -> Result<(String, String), String> {
    let handle = tcpr_node::manager::start_embedded(config)?;
    Ok((handle.service, handle.token))
}
