//! The validated configuration, and what the rest of the code asks of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
pub use tcpr_session::filter::Engine;
use tcpr_session::turn::PortPolicy;

/// Bytes of unanswered input that are kept for a session before it is torn.
pub const DEFAULT_MAX_UNANSWERED_BYTES: u64 = 4 << 20;

/// Room for the data that the program gives to tcpr.
pub const DEFAULT_DATA_BYTES: u64 = 16 << 20;

/// Memory for the trace of a hot standby.
pub const DEFAULT_STANDBY_TRACE_BYTES: u64 = 256 << 20;

/// The validated configuration as this member sees it.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which of `members` this machine is; also the member's number in an epoch.
    pub member_index: u8,
    /// One or two members, in the order of the file.
    pub members: Vec<Member>,
    /// What is protected.
    pub service: Service,
    /// How state reaches the partner.
    pub replication: Replication,
    /// When roles change.
    pub failover: Failover,
    /// What happens at a takeover.
    pub recovery: Recovery,
}

/// One of the two machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Where it is reached for replication and heartbeats.
    pub address: IpAddr,
    /// Further addresses on which it hears heartbeats.
    pub heartbeat_paths: Vec<IpAddr>,
}

impl Member {
    /// Every address of this member: `address` first, then `heartbeat_paths`.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        std::iter::once(self.address).chain(self.heartbeat_paths.iter().copied())
    }
}

/// An address that moves with the role of master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtualIp {
    /// The address.
    pub addr: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
}

/// What a restored session shows of what the server says before it has read anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Greeting {
    /// The peer sees it.
    Pass,
    /// It is dropped: the peer was greeted when it connected.
    Absorb,
}

/// What becomes of a port's sessions at a takeover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnTakeover {
    /// They go on.
    Keep,
    /// Their peers are told that they are over, and connect anew.
    Reset,
}

/// A protected port.
#[derive(Debug, Clone)]
pub struct Port {
    /// The TCP port on every virtual IP.
    pub port: u16,
    /// When input counts as done.
    pub policy: PortPolicy,
    /// What happens to a second greeting.
    pub greeting: Greeting,
    /// What becomes of its sessions at a takeover, if the file says it; they go on if not.
    pub on_takeover: Option<OnTakeover>,
}

/// A destination of connections that the service makes itself.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Address and port of the peer.
    pub address: SocketAddr,
    /// When input counts as done.
    pub policy: PortPolicy,
    /// What happens to what the service says first on a connection that it has back.
    pub greeting: Greeting,
}

/// What the backup's program knows when it takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standby {
    /// Nothing but the connections: it starts from nothing.
    Warm,
    /// What the master's program knew: it lives behind it.
    Hot,
    /// Nothing: it is not started before its member is master.
    Cold,
}

/// What becomes of the program of a member that is master no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDemote {
    /// It is killed, and started again as the backup's.
    Restart,
    /// Its connections end, and it goes on as the backup's.
    Disconnect,
}

/// When the program would take sessions over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// One of its processes has joined; without the library, it listens on a protected port.
    Joined,
    /// It listens on every protected port.
    Listen,
    /// It has said so, as `sd_notify` does.
    Notify,
}

/// How the program is started, stopped and started again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// What becomes of it when its member is master no longer, if the file says it; under `tcpr run` it is started again if not.
    pub on_demote: Option<OnDemote>,
    /// When it would take sessions over.
    pub ready: Readiness,
    /// How long it has to end when it is told to.
    pub stop_timeout: Duration,
    /// How long it is waited before one is started again that crashes soon after its start; doubled with each crash.
    pub back_off: Duration,
    /// The longest such time.
    pub back_off_max: Duration,
}

impl Life {
    /// Whether the program of a former master goes on, without its connections.
    pub fn disconnects(&self) -> bool {
        self.on_demote == Some(OnDemote::Disconnect)
    }
}

/// The protected service.
#[derive(Debug, Clone)]
pub struct Service {
    /// Names the state directory, the control socket and the packet-rule chains.
    pub name: String,
    /// The addresses that peers connect to.
    pub virtual_ips: Vec<VirtualIp>,
    /// The interface that carries them.
    pub interface: String,
    /// NFQUEUE numbers: (in, out).
    pub queues: (u16, u16),
    /// State that survives a restart.
    pub state_dir: PathBuf,
    /// Control socket and lock.
    pub run_dir: PathBuf,
    /// What the backup's program knows when it takes over.
    pub standby: Standby,
    /// How the program is started and stopped.
    pub life: Life,
    /// Most memory for the trace of a hot standby.
    pub standby_trace_bytes: u64,
    /// Files that must be alike on both members of a hot standby.
    pub standby_files: Vec<PathBuf>,
    /// Room for the program's data.
    pub data_bytes: u64,
    /// Ports on which peers connect to the service.
    pub ports: Vec<Port>,
    /// Destinations that the service connects to.
    pub outgoing: Vec<Outgoing>,
}

impl Service {
    /// The virtual IPs that are IPv4: with them goes ARP, by which reach is judged.
    pub fn virtual_ipv4(&self) -> impl Iterator<Item = (Ipv4Addr, u8)> + '_ {
        self.virtual_ips.iter().filter_map(|v| match v.addr {
            IpAddr::V4(a) => Some((a, v.prefix)),
            IpAddr::V6(_) => None,
        })
    }

    /// The settings of a protected port.
    pub fn port(&self, port: u16) -> Option<&Port> {
        self.ports.iter().find(|p| p.port == port)
    }
}

/// What a master waits for before a packet leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The replica has stored it.
    Sync,
    /// Nothing.
    Async,
}

/// How state reaches the partner.
#[derive(Debug, Clone)]
pub struct Replication {
    /// TCP port on which members replicate.
    pub port: u16,
    /// What a master waits for.
    pub durability: Durability,
    /// How long a master looks for what a lone exchange needs next before it sleeps; `None`: as the machine suggests.
    pub busy_poll: Option<Duration>,
    /// The pre-shared key; `None` only where nothing leaves the machine.
    pub key_file: Option<PathBuf>,
}

/// Who decides when the pair breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arbiter {
    /// Each member for itself.
    None,
    /// A compare-and-swap in etcd.
    Etcd {
        /// `http://host:port` of the etcd members.
        endpoints: Vec<String>,
    },
    /// Roles follow VRRP.
    Keepalived,
}

/// When roles change.
#[derive(Debug, Clone)]
pub struct Failover {
    /// UDP port of heartbeats.
    pub heartbeat_port: u16,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// Heartbeats missed before the partner is suspected.
    pub misses: u32,
    /// How long a master waits for a lost partner before it goes on alone.
    pub solo_after: Duration,
    /// Addresses whose answer proves that this member is not cut off; empty: chosen automatically.
    pub reachability: Vec<IpAddr>,
    /// Index of the member that starts as master when both start together.
    pub preferred: u8,
    /// Who decides when the pair breaks.
    pub arbiter: Arbiter,
}

/// What happens at a takeover.
#[derive(Debug, Clone)]
pub struct Recovery {
    /// How sessions come back.
    pub engine: Engine,
    /// A turn that lasts longer than this after its first output is committed.
    pub max_turn: Duration,
}

impl Config {
    /// This member.
    pub fn me(&self) -> &Member {
        &self.members[usize::from(self.member_index)]
    }

    /// The other member, unless this one is alone.
    pub fn partner(&self) -> Option<&Member> {
        let me = usize::from(self.member_index);
        self.members.iter().enumerate().find(|(i, _)| *i != me).map(|(_, m)| m)
    }

    /// Whether this member starts as master when both start together.
    pub fn is_preferred(&self) -> bool {
        self.failover.preferred == self.member_index
    }

    /// Why the program cannot be run without the library (`tcpr run --no-preload`).
    pub fn unsupported_unhooked(&self) -> Vec<String> {
        let ports = self.service.ports.iter().map(|p| (p.greeting, format!("port {}", p.port)));
        let outgoing = self.service.outgoing.iter().map(|o| (o.greeting, o.address.to_string()));
        let absorb = ports.chain(outgoing).filter(|(greeting, _)| *greeting == Greeting::Absorb);
        let text = |what| {
            format!(
                "greeting = \"absorb\" of {what} needs the library in the program, and --no-preload leaves it out: a peer would be greeted \
                 again in the middle of its connection; run the program with the library, or use on_takeover = \"reset\""
            )
        };
        let hot = (self.service.standby == Standby::Hot).then(|| {
            "service.standby = \"hot\" needs the library in the program, and --no-preload leaves it out: nobody would record what \
             the program gets from outside; run the program with the library, or use standby = \"warm\""
                .to_owned()
        });
        absorb.map(|(_, what)| text(what)).chain(hot).collect()
    }

    /// Why the program cannot host the manager itself.
    pub fn unsupported_embedded(&self) -> Vec<String> {
        const SELF: &str = "needs `tcpr run`, and this program hosts its manager itself";
        let mut list = Vec::new();
        match self.service.standby {
            Standby::Warm => {}
            Standby::Hot => list.push(format!(
                "service.standby = \"hot\" {SELF}: recording begins before the program's main, and the manager must outlive the \
                 follower; start the program with `tcpr run`, or use standby = \"warm\""
            )),
            Standby::Cold => list.push(format!(
                "service.standby = \"cold\" {SELF}: it runs already; start it with `tcpr run`, or use standby = \"warm\""
            )),
        }
        if self.service.life.on_demote == Some(OnDemote::Restart) {
            list.push(format!(
                "service.on_demote = \"restart\" {SELF}: nobody is there to start it again; start it with `tcpr run`, or use \
                 on_demote = \"disconnect\""
            ));
        }
        if self.service.life.ready == Readiness::Notify {
            list.push(format!(
                "service.ready = \"notify\" {SELF}: nobody is there to hear it; start it with `tcpr run`, or use ready = \"listen\""
            ));
        }
        list
    }

    /// What this file asks for that the format knows but that is not built yet. `run` refuses to
    /// start unless this is empty: to ignore such a key would promise what does not happen.
    pub fn unsupported(&self) -> Vec<String> {
        let mut list = Vec::new();
        let arbiter = match self.failover.arbiter {
            Arbiter::None => None,
            Arbiter::Etcd { .. } => Some("etcd"),
            Arbiter::Keepalived => Some("keepalived"),
        };
        if let Some(name) = arbiter {
            list.push(format!("failover.arbiter = \"{name}\" is not built yet; use \"none\""));
        }
        let ipv6 = |key: &str, what: String| format!("{key}: {what} is IPv6, which is not built yet; use IPv4 there for now");
        for r in self.failover.reachability.iter().filter(|r| r.is_ipv6()) {
            list.push(ipv6("failover.reachability", r.to_string()));
        }
        list
    }
}
