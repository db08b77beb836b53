//! Why a command failed, in words for its user: they say what to do.

use std::io;
use std::path::PathBuf;

use tcpr_node::config::ConfigError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What the kernel refused; most of these errors have been given words of ours.
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("no manager answers at {}: {cause}", .socket.display())]
    NoManager { socket: PathBuf, cause: io::Error },
    #[error("the manager's answer is no JSON: {0}")]
    NoAnswer(serde_json::Error),
    /// What the manager says itself.
    #[error("{0}")]
    Refused(String),
    #[error("the partner did not take over; see tcpr status")]
    NotTakenOver,
    #[error("the server does not listen again; see its own messages and tcpr status")]
    NotRestarted,
    #[error("no session table at {} (see the manager's log): {cause}", .path.display())]
    NoTable { path: PathBuf, cause: io::Error },
    #[error("{manager}; and no record of one: {cause}")]
    NothingLeft { manager: Box<Failure>, cause: io::Error },
    #[error("{} is no trace that can be read: {why}", .path.display())]
    NoTrace { path: PathBuf, why: String },
    #[error("libtcpr.so is in none of {}; set TCPR_LIBRARY to its path", .tried.join(", "))]
    NoLibrary { tried: Vec<String> },
    /// A laboratory of `tcpr demo` or `tcpr bench` did not do what was waited for.
    #[error("{0}")]
    Lab(String),
}

impl From<String> for Failure {
    fn from(text: String) -> Failure {
        Failure::Lab(text)
    }
}

impl From<&str> for Failure {
    fn from(text: &str) -> Failure {
        Failure::Lab(text.to_owned())
    }
}
