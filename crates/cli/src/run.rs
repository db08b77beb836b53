//! `tcpr run`.

use std::ffi::OsString;
use std::path::PathBuf;

use tcpr_node::config::Config;
use tcpr_node::manager::{Hosting, Manager, ProgramSpec};

use crate::failure::Failure;
use crate::logger;

/// Where libtcpr.so is: `TCPR_LIBRARY`, beside this program, or in its prefix's lib.
fn library() -> Result<PathBuf, Failure> {
    let mut places: Vec<PathBuf> = std::env::var_os("TCPR_LIBRARY").map(PathBuf::from).into_iter().collect();
    if let Some(dir) = std::env::current_exe().ok().and_then(|e| e.parent().map(PathBuf::from)) {
        places.push(dir.join("libtcpr.so"));
        places.push(dir.join("../lib/libtcpr.so"));
    }
    places.push("/usr/local/lib/libtcpr.so".into());
    places.push("/usr/lib/libtcpr.so".into());
    places.iter().find(|p| p.is_file()).and_then(|p| p.canonicalize().ok()).ok_or_else(|| {
        let tried: Vec<_> = places.iter().map(|p| p.display().to_string()).collect();
        Failure::NoLibrary { tried }
    })
}

/// Serves until the program or a signal ends it.
pub fn run(config: Option<PathBuf>, no_preload: bool, program: Vec<OsString>) -> Result<u8, Failure> {
    logger::start();
    let path = Config::path(config.as_deref());
    let config = Config::load(config.as_deref())?;
    let hosting = Hosting {
        program: Some(ProgramSpec {
            command: program,
            library: if no_preload { None } else { Some(library()?) },
            hot_library: None,
        }),
        config_path: Some(path.canonicalize().unwrap_or(path)),
        signals: true,
    };
    let ended = Manager::new(config, hosting).and_then(Manager::run);
    logger::finish();
    Ok(ended? as u8)
}
