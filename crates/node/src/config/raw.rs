//! The file as TOML gives it: every key of the format, nothing checked but names and shapes.

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub member: Option<String>,
    #[serde(default)]
    pub members: Vec<Member>,
    pub service: Option<Service>,
    #[serde(default)]
    pub replication: Replication,
    #[serde(default)]
    pub failover: Failover,
    #[serde(default)]
    pub recovery: Recovery,
    pub etcd: Option<Etcd>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Member {
    pub name: String,
    pub address: String,
    #[serde(default)]
    pub heartbeat_paths: Vec<String>,
}

// Where a key takes more than one shape it is kept as a value: serde's message for an untagged enum
// ("data did not match any variant") would not tell anybody what to write.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Service {
    pub name: Option<String>,
    pub virtual_ip: Option<toml::Value>,
    pub interface: Option<String>,
    pub queues: Option<Vec<i64>>,
    pub state_dir: Option<String>,
    pub run_dir: Option<String>,
    pub standby: Option<String>,
    pub on_demote: Option<String>,
    pub ready: Option<String>,
    pub stop_timeout_ms: Option<i64>,
    pub back_off_ms: Option<i64>,
    pub back_off_max_ms: Option<i64>,
    pub standby_trace_bytes: Option<i64>,
    pub standby_files: Option<Vec<String>>,
    pub data_bytes: Option<i64>,
    #[serde(default)]
    pub ports: Vec<Port>,
    #[serde(default)]
    pub outgoing: Vec<Outgoing>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Port {
    pub port: i64,
    pub framing: Option<toml::Value>,
    pub unanswered: Option<String>,
    pub max_unanswered_bytes: Option<i64>,
    pub independent: Option<bool>,
    pub greeting: Option<String>,
    pub on_takeover: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Outgoing {
    pub address: String,
    pub framing: Option<toml::Value>,
    pub unanswered: Option<String>,
    pub max_unanswered_bytes: Option<i64>,
    pub independent: Option<bool>,
    pub greeting: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Replication {
    pub port: Option<i64>,
    pub durability: Option<String>,
    pub busy_poll_us: Option<i64>,
    pub key_file: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Failover {
    pub heartbeat_port: Option<i64>,
    pub heartbeat_ms: Option<i64>,
    pub misses: Option<i64>,
    pub solo_after_ms: Option<i64>,
    #[serde(default)]
    pub reachability: Vec<String>,
    pub preferred: Option<String>,
    pub arbiter: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Recovery {
    pub engine: Option<String>,
    pub max_turn_ms: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Etcd {
    #[serde(default)]
    pub endpoints: Vec<String>,
}
