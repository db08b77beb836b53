//! Evidence that somebody other than the partner is in reach.
//!
//! A master that has lost its partner may only go on alone if it is not the one that is cut off. So it
//! asks others: the machines that `reachability` names, by ICMP echo; without any, the default gateway
//! and a few recent peers on its own network, by ARP. Only an answer counts, because only an answer
//! proves both directions; and never one of the partner's, whose absence is the question.

mod icmp;
mod local;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, RawFd};

use crate::arp::{Arp, Mac};
use crate::config::Config;
use icmp::Icmp;
pub(crate) use local::neighbours;

/// At most so many peers are probed beside the gateway.
pub const MAX_PEERS: usize = 4;

/// What `Reach` has to know of the configuration.
#[derive(Debug, Clone, Default)]
pub struct ReachOptions {
    /// The interface that carries the virtual IP.
    pub interface: String,
    /// The virtual IPs with their prefixes.
    pub virtual_ips: Vec<(Ipv4Addr, u8)>,
    /// Machines to ask by ICMP echo; empty: choose automatically and ask by ARP.
    pub targets: Vec<Ipv4Addr>,
    /// The partner's addresses: never evidence.
    pub partner: Vec<Ipv4Addr>,
}

#[derive(Debug)]
enum Way {
    Echo(Icmp),
    Ask(Arp),
}

/// Asks, and says whether somebody answered.
#[derive(Debug)]
pub struct Reach {
    options: ReachOptions,
    way: Way,
    peers: Vec<Ipv4Addr>,
    /// Whom the next probe asks.
    candidates: Vec<Ipv4Addr>,
    /// In whose name ARP asks.
    sender: Ipv4Addr,
    /// The partner may answer for other addresses than its own, a container's or an alias, so it is
    /// told by its Ethernet address too.
    partner_macs: Vec<Mac>,
}

impl Reach {
    /// For the service of a configuration.
    pub fn of(config: &Config) -> io::Result<Reach> {
        let v4 = |a: IpAddr| match a {
            IpAddr::V4(a) => Some(a),
            IpAddr::V6(_) => None,
        };
        Reach::new(ReachOptions {
            interface: config.service.interface.clone(),
            virtual_ips: config.service.virtual_ipv4().collect(),
            targets: config.failover.reachability.iter().copied().filter_map(v4).collect(),
            partner: config.partner().map(|p| p.addresses().filter_map(v4).collect()).unwrap_or_default(),
        })
    }

    /// Opens its socket; nothing is sent.
    pub fn new(options: ReachOptions) -> io::Result<Reach> {
        let way = match options.targets.is_empty() {
            true => Way::Ask(Arp::new(&options.interface)?),
            false => Way::Echo(Icmp::new()?),
        };
        let mut reach = Reach {
            options,
            way,
            peers: Vec::new(),
            candidates: Vec::new(),
            sender: Ipv4Addr::UNSPECIFIED,
            partner_macs: Vec::new(),
        };
        reach.refresh();
        Ok(reach)
    }

    /// The peers that were heard last, the most recent first. Those on the interface's own network are
    /// asked when there are no configured targets.
    pub fn set_peers(&mut self, peers: &[Ipv4Addr]) {
        self.peers = peers.to_vec();
        self.refresh();
    }

    /// Begins a new question: answers that are waiting or still on their way prove nothing any more.
    /// For the moment when the partner is first suspected, and after a pause.
    pub fn restart(&mut self) {
        match &mut self.way {
            Way::Echo(icmp) => icmp.restart(),
            Way::Ask(_) => {
                self.on_readable();
            }
        }
        self.refresh();
    }

    /// Asks everybody once; how many questions left. That none did is no error but a sign.
    pub fn probe(&mut self) -> usize {
        let mut sent = 0;
        for &ip in &self.candidates {
            let result = match &mut self.way {
                Way::Echo(icmp) => icmp.send(ip),
                Way::Ask(arp) => arp.probe(ip, self.sender),
            };
            match result {
                Ok(()) => sent += 1,
                Err(e) => log::debug!(to:% = ip, error:% = e; "cannot ask whether anybody is in reach"),
            }
        }
        if let Way::Echo(icmp) = &mut self.way {
            icmp.next_round();
        }
        sent
    }

    /// What to watch for reading.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> {
        std::iter::once(match &self.way {
            Way::Echo(icmp) => icmp.as_raw_fd(),
            Way::Ask(arp) => arp.as_raw_fd(),
        })
    }

    /// Reads all that has come. True: somebody who counts has answered a question.
    pub fn on_readable(&mut self) -> bool {
        let mut answered = false;
        match &self.way {
            Way::Echo(icmp) => {
                while let Some(ip) = icmp.recv() {
                    answered |= self.candidates.contains(&ip);
                }
            }
            Way::Ask(arp) => loop {
                let heard = match arp.recv() {
                    Ok(Some(heard)) => heard,
                    Ok(None) => break,
                    Err(e) => {
                        log::debug!(error:% = e; "reachability");
                        break;
                    }
                };
                let partner = self.options.partner.contains(&heard.ip);
                if partner {
                    learn(&mut self.partner_macs, heard.mac);
                }
                answered |= heard.answer && self.candidates.contains(&heard.ip) && !self.partner_macs.contains(&heard.mac);
            },
        }
        answered
    }

    /// Nobody can be asked: the carrier alone has to decide.
    pub fn nothing_to_probe(&self) -> bool {
        self.candidates.is_empty()
    }

    /// Whom a probe asks, for `tcpr check` and the log.
    pub fn candidates(&self) -> &[Ipv4Addr] {
        &self.candidates
    }

    /// Chooses whom to ask from what the machine's addresses, routes and neighbours are now.
    fn refresh(&mut self) {
        let addresses = local::addresses();
        let vip = |a: &Ipv4Addr| self.options.virtual_ips.iter().any(|(v, _)| v == a);
        let usable = |a: &Ipv4Addr| {
            !vip(a)
                && !self.options.partner.contains(a)
                && !addresses.iter().any(|l| l.addr == *a)
                && !a.is_loopback()
                && !a.is_unspecified()
        };
        if !self.options.targets.is_empty() {
            let (good, bad): (Vec<_>, Vec<_>) = self.options.targets.iter().copied().partition(|a| usable(a));
            if good != self.candidates {
                for a in bad {
                    log::warn!(
                        "failover.reachability: {a} is this machine or its partner, so its answer proves nothing; it is not asked"
                    );
                }
            }
            self.candidates = good;
            return;
        }
        let here: Vec<_> = addresses.iter().filter(|l| l.interface == self.options.interface).collect();
        // Not the virtual IP: a backup that asked in its name would draw its traffic.
        self.sender = here.iter().map(|l| l.addr).find(|a| !vip(a)).unwrap_or(Ipv4Addr::UNSPECIFIED);
        let networks: Vec<(Ipv4Addr, u32)> = here
            .iter()
            .map(|l| (l.addr, l.mask))
            .chain(self.options.virtual_ips.iter().map(|&(a, p)| (a, local::mask(p))))
            .collect();
        let on_link = |a: &Ipv4Addr| networks.iter().any(|(n, mask)| (n.to_bits() ^ a.to_bits()) & mask == 0);
        let mut list: Vec<Ipv4Addr> = Vec::new();
        let gateway = local::gateway(&self.options.interface).filter(usable);
        let peers = self.peers.iter().copied().filter(|a| usable(a) && on_link(a));
        for a in peers.take(MAX_PEERS).chain(gateway) {
            if !list.contains(&a) {
                list.push(a);
            }
        }
        self.candidates = list;
        for (ip, mac) in local::neighbours(&self.options.interface) {
            if self.options.partner.contains(&ip) {
                learn(&mut self.partner_macs, mac);
            }
        }
    }
}

/// Remembers the last few: a partner has few interfaces, and a forger shall not fill our memory.
fn learn(macs: &mut Vec<Mac>, mac: Mac) {
    if !macs.contains(&mac) {
        if macs.len() == 8 {
            macs.remove(0);
        }
        macs.push(mac);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vip::testnet::{eventually, in_netns, ip, Pair};

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
    const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
    const PARTNER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
    const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);

    fn options(targets: &[Ipv4Addr]) -> ReachOptions {
        ReachOptions { interface: "v0".into(), virtual_ips: vec![(VIP, 24)], targets: targets.to_vec(), partner: vec![PARTNER] }
    }

    /// Long enough for an answer on a veth pair many times over.
    fn silent(reach: &mut Reach) -> bool {
        reach.probe();
        std::thread::sleep(std::time::Duration::from_millis(200));
        !reach.on_readable()
    }

    #[test]
    fn peers_and_gateway_by_arp() {
        in_netns(|| {
            let pair = Pair::new();
            ip("addr add 192.0.2.1/24 dev v0\nroute add default via 192.0.2.254 dev v0");
            let mut reach = Reach::new(options(&[])).unwrap();
            assert_eq!(reach.candidates(), [GATEWAY]);
            assert_eq!(reach.fds().count(), 1);
            assert!(silent(&mut reach), "nobody is there yet");
            pair.there(|| ip("addr add 192.0.2.254/24 dev v1"));
            eventually("the gateway's answer", || {
                assert_eq!(reach.probe(), 1);
                reach.on_readable()
            });
            // Peers that are off the network, the partner, the virtual IP and ourselves are not asked.
            let own = [192, 0, 2, 1].into();
            reach.set_peers(&[[198, 51, 100, 1].into(), PARTNER, VIP, own, PEER]);
            assert_eq!(reach.candidates(), [PEER, GATEWAY]);
            let many: Vec<Ipv4Addr> = (10..20).map(|n| [192, 0, 2, n].into()).collect();
            reach.set_peers(&many);
            assert_eq!(reach.candidates().len(), MAX_PEERS + 1);
            // An answer that was there before the question began again is none.
            reach.set_peers(&[]);
            let witness = Arp::new("v0").unwrap();
            reach.probe();
            eventually("an answer in the socket", || witness.recv().unwrap().is_some());
            reach.restart();
            assert!(!reach.on_readable());
            // Without network: no question leaves, nothing is proved.
            ip("link set v0 down");
            assert_eq!(reach.probe(), 0);
            assert!(!reach.on_readable());
            reach.restart();
            assert!(reach.nothing_to_probe(), "the route went with the link");
        });
    }

    #[test]
    fn the_partner_is_no_evidence() {
        in_netns(|| {
            let pair = Pair::new();
            ip("addr add 192.0.2.1/24 dev v0");
            // The one machine there is the partner, which also has the peer's address.
            pair.there(|| ip("addr add 192.0.2.2/24 dev v1\naddr add 192.0.2.7/24 dev v1"));
            let mut reach = Reach::new(options(&[])).unwrap();
            assert!(reach.nothing_to_probe());
            reach.set_peers(&[PEER]);
            let partner = Arp::new("v0").unwrap();
            partner.probe(PARTNER, Ipv4Addr::UNSPECIFIED).unwrap();
            eventually("hearing the partner", || {
                reach.on_readable();
                !reach.partner_macs.is_empty()
            });
            assert!(silent(&mut reach));
            // Known from the kernel's own table as well.
            let udp = std::net::UdpSocket::bind("192.0.2.1:0").unwrap();
            eventually("a neighbour entry", || {
                let _ = udp.send_to(b"x", (PARTNER, 9));
                let mut reach = Reach::new(options(&[])).unwrap();
                reach.refresh();
                !reach.partner_macs.is_empty()
            });
        });
    }

    #[test]
    fn targets_by_echo() {
        in_netns(|| {
            let pair = Pair::new();
            ip("addr add 192.0.2.1/24 dev v0");
            let other = [192, 0, 2, 8].into();
            let own = [192, 0, 2, 1].into();
            let mut reach = Reach::new(options(&[PEER, other, own, PARTNER])).unwrap();
            assert_eq!(reach.candidates(), [PEER, other]);
            assert!(silent(&mut reach), "nobody is there yet");
            pair.there(|| ip("addr add 192.0.2.7/24 dev v1"));
            eventually("the echo", || {
                reach.probe();
                reach.on_readable()
            });
            // Two programs that ask the same machine do not take each other's answers.
            let mut second = Reach::new(options(&[PEER])).unwrap();
            second.probe();
            eventually("its echo", || second.on_readable());
            eventually("the other's echo", || {
                reach.probe();
                reach.on_readable()
            });
            assert!(!second.on_readable());
            reach.restart();
            reach.probe();
            std::thread::sleep(std::time::Duration::from_millis(200));
            reach.restart();
            assert!(!reach.on_readable(), "an answer to an older question");
            ip("link set v0 down");
            assert_eq!(reach.probe(), 0);
        });
    }
}
