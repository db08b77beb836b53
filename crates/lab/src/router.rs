//! A way that takes less than both of its ends do: a peer that reaches the other hosts of a lab by a router only, and a
//! link between the two that takes shorter packets on the way to the peer. It is Linux that routes, with its ICMP.

use std::io;
use std::process::Command;
use std::time::Duration;

use crate::sys::other;
use crate::{Host, Lab};

/// A peer behind a router.
pub struct Router {
    host: Host,
    peer: Host,
}

impl Router {
    /// Makes the hosts `router` and `far`. `hosts` are those that reach it, of one family of addresses (`v6` or not), which
    /// are those of [`crate::member`]'s examples; `mtu` is the longest packet that gets to the peer. Neither end can tell
    /// by its own interface.
    pub fn new(lab: &Lab, v6: bool, mtu: u32, hosts: &[&Host]) -> io::Result<Router> {
        let (family, here, there, far, net) = if v6 {
            ("-6", "2001:db8::3/64", "2001:db8:1::1", "2001:db8:1::9/64", "2001:db8:1::/64")
        } else {
            ("-4", "192.0.2.3/24", "198.51.100.1", "198.51.100.9/24", "198.51.100.0/24")
        };
        let (host, peer) = (lab.host("router", here)?, lab.host("far", far)?);
        host.sysctl("net.ipv4.ip_forward", "1")?;
        host.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        // A link of their own in place of the switch.
        peer.ip_cmd("addr flush dev eth0")?;
        peer.ip_cmd("link set eth0 down")?;
        host.ip_cmd(&format!("link add far type veth peer name eth1 netns {}", peer.netns()))?;
        let nodad = if v6 { "nodad" } else { "" };
        host.ip_cmd(&format!("{family} addr add {there}/{} dev far {nodad}", if v6 { 128 } else { 32 }))?;
        host.ip_cmd("link set far up")?;
        peer.ip_cmd(&format!("{family} addr add {far} dev eth1 {nodad}"))?;
        peer.ip_cmd("link set eth1 up")?;
        // The interface's own limit would be that of the other direction, too.
        host.ip_cmd(&format!("{family} route add {net} dev far mtu lock {mtu}"))?;
        peer.ip_cmd(&format!("{family} route add default via {there}"))?;
        for member in hosts {
            member.ip_cmd(&format!("{family} route add {net} via {}", host.ip()))?;
        }
        Ok(Router { host, peer })
    }

    /// The peer behind it.
    pub fn peer(&self) -> &Host {
        &self.peer
    }

    /// What it says of packets that are too long is lost from now on (a black hole).
    pub fn mute(&self) -> io::Result<()> {
        let (program, what) = if self.host.ip().is_ipv4() {
            ("iptables", "-p icmp --icmp-type fragmentation-needed")
        } else {
            ("ip6tables", "-p ipv6-icmp --icmpv6-type packet-too-big")
        };
        let mut command = Command::new(program);
        command.args(["-A", "OUTPUT"]).args(what.split(' ')).args(["-j", "DROP"]);
        let done = self.host.run(command, Duration::from_secs(10))?;
        if !done.status.success() {
            return Err(other(format!("{program}: {}", String::from_utf8_lossy(&done.stderr).trim())));
        }
        Ok(())
    }
}
