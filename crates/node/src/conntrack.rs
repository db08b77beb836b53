//! Tells the host's connection tracking of connections that were taken over. It has not seen them begin: a firewall that lets
//! ESTABLISHED pass would drop their packets, as NEW ones with no SYN, or as INVALID ones (`nf_conntrack_tcp_loose = 0`); and
//! with engine `splice`, where the local half has numbers of its own, it would call the peer's INVALID.
//!
//! So each gets an entry as if it had been seen from its beginning, and whose windows are not judged: that is TCP's business,
//! and the filter's. Nothing is written where connection tracking is not in use.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use tcpr_session::tuple::FourTuple;

use crate::nfqueue::{netlink_send, netlink_socket, Messages, NLMSG_ERROR};

// From linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_tcp.h.
const NEW: u16 = 1 << 8;
const DELETE: u16 = 1 << 8 | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
/// Seen in both directions, and not to be dropped early when the table is full; confirmed.
const STATUS: u32 = 1 << 1 | 1 << 2 | 1 << 3;
/// TCP_CONNTRACK_ESTABLISHED
const ESTABLISHED: u8 = 3;
/// IP_CT_TCP_FLAG_SACK_PERM and IP_CT_TCP_FLAG_BE_LIBERAL.
const LIBERAL: u8 = 0x02 | 0x08;
const NESTED: u16 = 0x8000;
/// What an idle connection lives where nobody has set it: five days, as the kernel has it.
const DEFAULT_TIMEOUT: u32 = 432_000;
/// Told with one system call.
const BATCH: usize = 64;

/// The way to the kernel's table of connections.
pub struct Conntrack {
    socket: OwnedFd,
    timeout: u32,
    batch: Vec<u8>,
    held: usize,
}

fn setting(name: &str) -> Option<u32> {
    // Of this thread's network namespace.
    std::fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).ok()?.trim().parse().ok()
}

/// Whether connections are tracked in this network namespace: there always are some where they are, heartbeats for instance.
#[must_use]
pub fn in_use() -> bool {
    setting("nf_conntrack_count").is_some_and(|n| n > 0)
}

impl Conntrack {
    /// # Errors
    /// No netlink socket.
    pub fn open() -> io::Result<Conntrack> {
        let socket = netlink_socket(libc::NETLINK_NETFILTER)?;
        let timeout = setting("nf_conntrack_tcp_timeout_established").unwrap_or(DEFAULT_TIMEOUT);
        Ok(Conntrack { socket, timeout, batch: Vec::new(), held: 0 })
    }

    /// The connection is established, whatever was known of it. `ours`: this end has made it. Told with the next
    /// [`Conntrack::flush`].
    pub fn established(&mut self, tuple: &FourTuple, ours: bool) {
        let (from, to) = if ours { (tuple.local, tuple.peer) } else { (tuple.peer, tuple.local) };
        let mut body = header(from);
        let tuples = addresses(from, to);
        nest(&mut body, CTA_TUPLE_ORIG, &tuples);
        let tuples = addresses(to, from);
        nest(&mut body, CTA_TUPLE_REPLY, &tuples);
        attribute(&mut body, CTA_STATUS, &STATUS.to_be_bytes());
        attribute(&mut body, CTA_TIMEOUT, &self.timeout.to_be_bytes());
        // CTA_PROTOINFO_TCP: CTA_PROTOINFO_TCP_STATE, _FLAGS_ORIGINAL, _FLAGS_REPLY; the flags with their mask.
        let mut tcp = Vec::new();
        attribute(&mut tcp, 1, &[ESTABLISHED]);
        attribute(&mut tcp, 4, &[LIBERAL, LIBERAL]);
        attribute(&mut tcp, 5, &[LIBERAL, LIBERAL]);
        let mut info = Vec::new();
        nest(&mut info, 1, &tcp);
        nest(&mut body, CTA_PROTOINFO, &info);
        self.push(NEW, libc::NLM_F_CREATE, &body);
    }

    fn push(&mut self, kind: u16, flags: i32, body: &[u8]) {
        message(&mut self.batch, kind, flags, body);
        self.held += 1;
        if self.held >= BATCH {
            self.flush();
        }
    }

    /// Tells what is held.
    pub fn flush(&mut self) {
        if self.held == 0 {
            return;
        }
        self.held = 0;
        if let Err(error) = netlink_send(&self.socket, &self.batch) {
            log::debug!(error:%; "cannot tell connection tracking");
        }
        self.batch.clear();
        // Only refusals are answered. One whose entry is that of a translated address has it already.
        self.answers(|errno| {
            // What was to be forgotten was not known.
            if errno != libc::ENOENT {
                log::debug!(error:% = io::Error::from_raw_os_error(errno); "connection tracking refuses");
            }
        });
    }

    fn answers(&mut self, mut refused: impl FnMut(i32)) {
        let mut buffer = [0u8; 16 << 10];
        loop {
            // SAFETY: the pointer and length describe the buffer. The kernel answers within the request.
            let n = unsafe { libc::recv(self.socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
            let Ok(n) = usize::try_from(n) else { return };
            for message in Messages(&buffer[..n]).filter(|m| m.kind == NLMSG_ERROR && m.error() != 0) {
                refused(message.error());
            }
        }
    }

    /// Makes an entry and removes it again.
    ///
    /// # Errors
    /// The kernel takes none: `nf_conntrack_netlink` is missing, or a privilege.
    pub fn probe(&mut self) -> io::Result<()> {
        // Of a network that is for documentation.
        let tuple = FourTuple { local: ([203, 0, 113, 1], 1).into(), peer: ([203, 0, 113, 2], 1).into() };
        self.established(&tuple, false);
        self.held = 0;
        let sent = netlink_send(&self.socket, &std::mem::take(&mut self.batch));
        let mut result = sent;
        self.answers(|errno| result = Err(io::Error::from_raw_os_error(errno)));
        result?;
        self.forget(&tuple);
        self.flush();
        Ok(())
    }

    /// What is known of a connection that its peer has made is not true. Told with the next [`Conntrack::flush`].
    pub fn forget(&mut self, tuple: &FourTuple) {
        let mut body = header(tuple.peer);
        let tuples = addresses(tuple.peer, tuple.local);
        nest(&mut body, CTA_TUPLE_ORIG, &tuples);
        self.push(DELETE, 0, &body);
    }
}

/// struct nfgenmsg.
fn header(end: SocketAddr) -> Vec<u8> {
    let family = if end.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    vec![family as u8, libc::NFNETLINK_V0 as u8, 0, 0]
}

fn message(to: &mut Vec<u8>, kind: u16, flags: i32, body: &[u8]) {
    to.extend(((16 + body.len()) as u32).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
    to.extend([0; 8]);
    to.extend(body);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// CTA_TUPLE_IP and CTA_TUPLE_PROTO of packets in this direction.
fn addresses(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut ip = Vec::new();
    for (v4, v6, end) in [(1, 3, from), (2, 4, to)] {
        match end.ip() {
            IpAddr::V4(a) => attribute(&mut ip, v4, &a.octets()),
            IpAddr::V6(a) => attribute(&mut ip, v6, &a.octets()),
        }
    }
    let mut proto = Vec::new();
    attribute(&mut proto, 1, &[libc::IPPROTO_TCP as u8]);
    attribute(&mut proto, 2, &from.port().to_be_bytes());
    attribute(&mut proto, 3, &to.port().to_be_bytes());
    let mut both = Vec::new();
    nest(&mut both, 1, &ip);
    nest(&mut both, 2, &proto);
    both
}

fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    to.extend(((4 + value.len()) as u16).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

fn nest(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    attribute(to, kind | NESTED, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vip::testnet::{in_netns, ip};

    #[test]
    fn entries_as_if_connections_had_been_seen_from_their_beginning() {
        in_netns(|| {
            ip("link set lo up");
            let iptables = |line: &str| {
                let done = std::process::Command::new("/usr/sbin/iptables").args(line.split(' ')).status().unwrap();
                assert!(done.success(), "{line}");
            };
            // Somebody who asks for states makes the kernel track.
            iptables("-A INPUT -m conntrack --ctstate INVALID -j DROP");
            let table = || std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
            let mut conntrack = Conntrack::open().unwrap();
            conntrack.probe().unwrap();
            assert_eq!(table(), "", "the probe leaves nothing");
            for (peer, local) in [("192.0.2.9:1234", "192.0.2.200:5555"), ("[2001:db8::9]:1234", "[2001:db8::200]:5555")] {
                let tuple = FourTuple { local: local.parse().unwrap(), peer: peer.parse().unwrap() };
                // Once more is no harm.
                for _ in 0..2 {
                    conntrack.established(&tuple, false);
                    conntrack.flush();
                }
            }
            let found = table();
            assert_eq!(found.lines().count(), 2, "{found}");
            assert!(
                found
                    .lines()
                    .all(|l| l.contains("ESTABLISHED") && l.contains("[ASSURED]") && l.contains("sport=1234 dport=5555")),
                "{found}"
            );
            assert!(in_use());
            // Those that this end has made begin here.
            let tuple = FourTuple { local: "192.0.2.200:40000".parse().unwrap(), peer: "192.0.2.7:80".parse().unwrap() };
            conntrack.established(&tuple, true);
            conntrack.flush();
            // One that was taken up from an answer is turned round.
            let tuple = FourTuple { local: "192.0.2.200:5555".parse().unwrap(), peer: "192.0.2.8:1234".parse().unwrap() };
            conntrack.established(&tuple, true);
            conntrack.forget(&tuple);
            conntrack.established(&tuple, false);
            conntrack.flush();
            let turned = "src=192.0.2.8 dst=192.0.2.200 sport=1234 dport=5555 src=192.0.2.200";
            assert!(table().contains(turned), "{}", table());
            assert!(table().contains("src=192.0.2.200 dst=192.0.2.7 sport=40000 dport=80 src=192.0.2.7"), "{}", table());
        });
    }
}
