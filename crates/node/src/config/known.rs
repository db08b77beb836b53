//! Ports whose usual protocols keep, in the program's memory, what their connections are worth nothing without.

use super::types::{Config, Standby};

/// Who logs in, negotiates keys, subscribes or opens transactions on a connection; by port.
const KNOWN: &[(u16, &str)] = &[
    (21, "FTP"),
    (22, "SSH"),
    (23, "Telnet"),
    (25, "SMTP"),
    (110, "POP3"),
    (119, "NNTP"),
    (139, "SMB"),
    (143, "IMAP"),
    (389, "LDAP"),
    (443, "HTTPS"),
    (445, "SMB"),
    (465, "SMTP over TLS"),
    (513, "rlogin"),
    (514, "rsh"),
    (563, "NNTP over TLS"),
    (587, "SMTP submission"),
    (636, "LDAP over TLS"),
    (853, "DNS over TLS"),
    (873, "rsync"),
    (989, "FTP over TLS"),
    (990, "FTP over TLS"),
    (992, "Telnet over TLS"),
    (993, "IMAP over TLS"),
    (994, "IRC over TLS"),
    (995, "POP3 over TLS"),
    (1433, "Microsoft SQL Server"),
    (1521, "Oracle"),
    (1883, "MQTT"),
    (2376, "Docker over TLS"),
    (3306, "MySQL"),
    (3389, "RDP"),
    (4222, "NATS"),
    (5222, "XMPP"),
    (5223, "XMPP over TLS"),
    (5269, "XMPP"),
    (5432, "PostgreSQL"),
    (5671, "AMQP over TLS"),
    (5672, "AMQP"),
    (5900, "VNC"),
    (6379, "Redis"),
    (6432, "PgBouncer"),
    (6443, "Kubernetes over TLS"),
    (6660, "IRC"),
    (6661, "IRC"),
    (6662, "IRC"),
    (6663, "IRC"),
    (6664, "IRC"),
    (6665, "IRC"),
    (6666, "IRC"),
    (6667, "IRC"),
    (6668, "IRC"),
    (6669, "IRC"),
    (6697, "IRC over TLS"),
    (8443, "HTTPS"),
    (8883, "MQTT over TLS"),
    (11300, "beanstalkd"),
    (27017, "MongoDB"),
    (33060, "MySQL"),
    (61613, "STOMP"),
];

impl Config {
    /// What is not wrong, and seldom meant so.
    pub fn warnings(&self) -> Vec<String> {
        let unsaid = self.service.ports.iter().filter(|p| p.on_takeover.is_none());
        unsaid.filter_map(|p| warning(p.port, self.service.standby)).collect()
    }
}

/// What is to be said of a port whose sessions would go on at a takeover, because nobody says otherwise.
fn warning(port: u16, standby: Standby) -> Option<String> {
    let (_, protocol) = KNOWN.iter().find(|(known, _)| *known == port)?;
    let when = match standby {
        Standby::Warm | Standby::Cold => "after a takeover",
        Standby::Hot => "after a takeover without the follower (it has diverged, or was not there yet)",
    };
    Some(format!(
        "port {port} ({protocol}): {when} the new process knows nothing of what was agreed on a connection (login, keys, \
         subscriptions, transactions), and its peer would hang or read nonsense; set on_takeover = \"reset\", so that it connects \
         anew, or \"keep\" if this program needs none of that (see docs/supported-programs.md)"
    ))
}
