//! What is wrong with a file: every mistake is collected, and the user sees all of them at once.

use std::net::IpAddr;
use std::time::Duration;

/// One hour. A longer time in one of these keys is a slip of the unit; with this limit arithmetic on times cannot overflow.
const MAX_MS: i64 = 3_600_000;

/// The mistakes that were found so far. A check that fails adds its message and returns a value with which validation can go
/// on.
#[derive(Default)]
pub(super) struct Mistakes(Vec<String>);

impl Mistakes {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn into_messages(self) -> Vec<String> {
        self.0
    }

    pub(super) fn add(&mut self, message: impl Into<String>) {
        self.0.push(message.into());
    }

    /// A number within bounds, else a mistake and `low`, with which validation can go on.
    pub(super) fn number(&mut self, key: &str, value: i64, low: i64, high: i64) -> i64 {
        if (low..=high).contains(&value) {
            return value;
        }
        self.add(format!("{key} = {value} is out of range; use {low} to {high}"));
        low
    }

    /// A time in milliseconds.
    pub(super) fn ms(&mut self, key: &str, value: Option<i64>, default: i64) -> Duration {
        Duration::from_millis(self.number(key, value.unwrap_or(default), 1, MAX_MS) as u64)
    }

    pub(super) fn port(&mut self, key: &str, value: i64) -> u16 {
        self.number(key, value, 1, 65535) as u16
    }

    /// One of a few words; a mistake and the default (the first) if it is none of them.
    pub(super) fn word<T: Clone>(&mut self, key: &str, value: Option<&str>, choices: &[(&str, T)]) -> T {
        let Some(value) = value else {
            return choices[0].1.clone();
        };
        if let Some((_, t)) = choices.iter().find(|(w, _)| *w == value) {
            return t.clone();
        }
        let words: Vec<String> = choices.iter().map(|(w, _)| format!("\"{w}\"")).collect();
        self.add(format!("{key} = \"{value}\" is not known; use {}", words.join(" or ")));
        choices[0].1.clone()
    }

    /// The address of a machine.
    pub(super) fn address(&mut self, key: &str, text: &str) -> Option<IpAddr> {
        let Ok(a) = text.parse::<IpAddr>() else {
            self.add(format!("{key} = \"{text}\" is not an IP address; write one like 192.0.2.1 (no host name, port or prefix)"));
            return None;
        };
        if let Some(what) = no_machine(&a) {
            self.add(format!("{key} = \"{text}\" is {what}; use the address of one machine"));
            return None;
        }
        Some(a)
    }
}

pub(super) fn no_machine(a: &IpAddr) -> Option<&'static str> {
    if a.is_unspecified() {
        Some("the unspecified address")
    } else if a.is_multicast() {
        Some("a multicast address")
    } else if matches!(a, IpAddr::V4(v4) if v4.is_broadcast()) {
        Some("the broadcast address")
    } else {
        None
    }
}
