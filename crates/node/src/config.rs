//! The configuration: one TOML file, the same on both members.
//!
//! The file is read in two steps. Serde reads a raw form whose values are as loose as TOML allows (`raw`). Then `validate`
//! turns the raw form into the typed form that the rest of the code uses (`types`). So every mistake gets a message of our
//! own (the key, what is wrong, what to do), and the user sees all mistakes at once.

mod known;
mod mistakes;
mod raw;
mod service;
mod types;
mod validate;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use types::*;

/// Where the file is when neither `--config` nor `TCPR_CONFIG` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/tcpr/tcpr.toml";

/// What is wrong with a configuration: one message a mistake, each naming the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.lines())]
pub struct ConfigError {
    /// The file, if it came from one.
    pub path: Option<PathBuf>,
    /// The messages; at least one.
    pub mistakes: Vec<String>,
}

impl ConfigError {
    fn one(message: impl Into<String>) -> Self {
        ConfigError { path: None, mistakes: vec![message.into()] }
    }

    /// A line for each mistake, with the file in front.
    fn lines(&self) -> String {
        let file = self.path.as_ref().map(|path| format!("{}: ", path.display())).unwrap_or_default();
        let lines: Vec<String> = self.mistakes.iter().map(|mistake| format!("{file}{mistake}")).collect();
        lines.join("\n")
    }
}

impl Config {
    /// The file that `load` reads: `explicit`, else `TCPR_CONFIG`, else `DEFAULT_PATH`.
    pub fn path(explicit: Option<&Path>) -> PathBuf {
        match explicit {
            Some(p) => p.to_owned(),
            None => match std::env::var_os("TCPR_CONFIG") {
                Some(p) if !p.is_empty() => p.into(),
                _ => DEFAULT_PATH.into(),
            },
        }
    }

    /// Reads and validates the configuration file; `TCPR_MEMBER` overrides its `member`.
    pub fn load(explicit: Option<&Path>) -> Result<Config, ConfigError> {
        let path = Self::path(explicit);
        let fail = |mut e: ConfigError| {
            e.path = Some(path.clone());
            e
        };
        let text = std::fs::read_to_string(&path).map_err(|e| {
            fail(ConfigError::one(match e.kind() {
                std::io::ErrorKind::NotFound => "there is no such file; name it with --config or TCPR_CONFIG".to_string(),
                _ => format!("cannot be read: {e}"),
            }))
        })?;
        let member = std::env::var("TCPR_MEMBER").ok();
        Self::parse(&text, member.as_deref()).map_err(fail)
    }

    /// Validates the text of a configuration; `env_member` overrides its `member` unless empty.
    pub fn parse(text: &str, env_member: Option<&str>) -> Result<Config, ConfigError> {
        let raw: raw::File = toml::from_str(text).map_err(|e| ConfigError::one(e.to_string().trim_end().to_string()))?;
        validate::validate(raw, env_member.filter(|m| !m.is_empty())).map_err(|mistakes| ConfigError { path: None, mistakes })
    }
}
