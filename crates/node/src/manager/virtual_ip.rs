//! The virtual IP: taking it, keeping it, giving it up, and telling the network where it is.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tcpr_session::Now;

use crate::arp::{self, Arp};
use crate::config::Config;
use crate::guard::Claim;
use crate::reach;
use crate::vip::Vip;

/// Lifetime of the virtual IP. The master renews it; it vanishes by itself with its manager.
const LIFETIME_S: u32 = 2;
/// How often it is renewed.
const RENEW_EVERY: Duration = Duration::from_millis(500);

/// What the role of this member allows with the virtual IP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mandate {
    /// This member is not master.
    None,
    /// A master keeps the address, but must not tell the network: the partner may have it.
    Keep,
    /// A master keeps the address, puts it back where it vanished, and tells the network.
    Announce,
}

/// What is to be done now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    GiveUp,
    Renew,
    /// Tell everybody (gratuitous ARP, unsolicited neighbour advertisement).
    Announce,
    /// Tell the known neighbours one by one.
    Tell,
}

/// When which step is due. Pure: the caller does the steps.
#[derive(Debug)]
struct Schedule {
    /// This member should have the address.
    here: bool,
    renew_at: Now,
    give_up_at: Option<Now>,
    announce_at: VecDeque<Now>,
    tell_at: VecDeque<Now>,
    /// How often the address is looked at while it must not be announced.
    heartbeat: Duration,
}

impl Schedule {
    fn new(heartbeat: Duration) -> Schedule {
        Schedule {
            here: false,
            renew_at: Duration::ZERO,
            give_up_at: None,
            announce_at: VecDeque::new(),
            tell_at: VecDeque::new(),
            heartbeat,
        }
    }

    fn taken(&mut self, now: Now) {
        self.here = true;
        self.give_up_at = None;
        self.renew_at = now + RENEW_EVERY;
        self.announce(now);
    }

    /// The network is told at once and a few times more.
    fn announce(&mut self, now: Now) {
        self.announce_at = std::iter::once(now).chain(arp::ANNOUNCE_AGAIN.iter().map(|after| now + *after)).collect();
        self.tell_at = arp::TELL_AGAIN.iter().map(|after| now + *after).collect();
    }

    /// The address is not kept any more. It is removed now, or at the given time.
    fn left(&mut self, give_up_at: Option<Now>) {
        self.here = false;
        self.give_up_at = give_up_at;
        self.announce_at.clear();
        self.tell_at.clear();
    }

    /// The next step that is due. It counts as done.
    fn next(&mut self, now: Now, mandate: Mandate) -> Option<Step> {
        if self.give_up_at.is_some_and(|at| now >= at) {
            self.left(None);
            return Some(Step::GiveUp);
        }
        if !self.here || mandate == Mandate::None {
            return None;
        }
        let announces = mandate == Mandate::Announce;
        if now >= self.renew_at {
            self.renew_at = now + if announces { RENEW_EVERY } else { self.heartbeat };
            return Some(Step::Renew);
        }
        let due = |times: &mut VecDeque<Now>| {
            let is_due = announces && times.front().is_some_and(|at| now >= *at);
            is_due.then(|| times.pop_front()).is_some()
        };
        if due(&mut self.announce_at) {
            return Some(Step::Announce);
        }
        due(&mut self.tell_at).then_some(Step::Tell)
    }

    fn poll_timeout(&self, mandate: Mandate) -> Option<Now> {
        let kept = self.here && mandate != Mandate::None;
        // While the network must not be told, the renewal wakes the loop.
        let announces = kept && mandate == Mandate::Announce;
        let told = [self.announce_at.front(), self.tell_at.front()].map(|at| at.copied().filter(|_| announces));
        [kept.then_some(self.renew_at), self.give_up_at].into_iter().chain(told).flatten().min()
    }
}

/// The addresses of the service on this member.
pub(super) struct VirtualIp {
    addresses: Vec<Vip>,
    arp: Arp,
    interface: String,
    schedule: Schedule,
    /// Addresses that should be here and are not, and why.
    missing: BTreeMap<IpAddr, String>,
    /// How often somebody removed an address and it was put back.
    restored: u64,
    /// The addresses are taken when the packet rules are in force again.
    waits_for_rules: bool,
    _claims: Vec<Claim>,
}

impl VirtualIp {
    /// Claims the addresses for this manager. None of them is on the interface because of that.
    pub(super) fn claim(config: &Config) -> io::Result<VirtualIp> {
        let service = &config.service;
        let (mut addresses, mut claims) = (Vec::new(), Vec::new());
        for v in &service.virtual_ips {
            claims.push(Claim::take(v.addr)?);
            addresses.push(Vip::new(&service.interface, v.addr, v.prefix)?);
        }
        Ok(VirtualIp {
            addresses,
            arp: Arp::new(&service.interface)?,
            interface: service.interface.clone(),
            schedule: Schedule::new(config.failover.heartbeat),
            missing: BTreeMap::new(),
            restored: 0,
            waits_for_rules: false,
            _claims: claims,
        })
    }

    /// Removes what a killed manager of this member left behind.
    pub(super) fn remove_leftovers(&mut self) -> io::Result<()> {
        self.addresses.iter_mut().try_for_each(|vip| vip.remove().map(drop))
    }

    /// Number of the interface that carries the addresses.
    pub(super) fn interface(&self) -> u32 {
        self.addresses.first().map_or(0, Vip::interface)
    }

    pub(super) fn addrs(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().map(Vip::addr)
    }

    fn ipv4(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.addrs().filter_map(|addr| match addr {
            IpAddr::V4(addr) => Some(addr),
            IpAddr::V6(_) => None,
        })
    }

    /// This member should have the addresses.
    pub(super) fn is_here(&self) -> bool {
        self.schedule.here
    }

    /// The interface carries frames, as far as the kernel says so.
    pub(super) fn carrier(&self) -> bool {
        self.addresses.first().is_none_or(|vip| vip.running().unwrap_or(true))
    }

    /// Whether what is sent to this address, of whomever, stays on this machine; `None`: the kernel does not say.
    pub(super) fn is_local(&mut self, address: IpAddr) -> Option<bool> {
        self.addresses.first_mut()?.is_here(address).ok()
    }

    /// Why an address is not where it should be.
    pub(super) fn trouble(&self) -> Option<String> {
        self.missing.values().next().cloned()
    }

    pub(super) fn restored(&self) -> u64 {
        self.restored
    }

    pub(super) fn poll_timeout(&self, mandate: Mandate) -> Option<Now> {
        self.schedule.poll_timeout(mandate)
    }

    /// Adds the addresses and tells the network. Without the packet rules they have to wait: packets would go around the
    /// queues.
    pub(super) fn take(&mut self, now: Now, guarded: bool, mandate: Mandate) {
        self.schedule.give_up_at = None;
        if !guarded {
            self.waits_for_rules = true;
            return;
        }
        for vip in &mut self.addresses {
            note(&mut self.missing, vip.addr(), vip.add(LIFETIME_S));
        }
        self.schedule.taken(now);
        self.do_steps(now, mandate);
    }

    /// The addresses are to be taken when the rules are in force again.
    pub(super) fn wait_for_rules(&mut self) {
        self.waits_for_rules = true;
    }

    /// Whether the addresses waited for the rules. They do no longer.
    pub(super) fn waited_for_rules(&mut self) -> bool {
        std::mem::take(&mut self.waits_for_rules)
    }

    /// The addresses are removed at once.
    pub(super) fn give_up(&mut self) {
        self.stop_keeping(None);
        self.remove();
    }

    /// The addresses are kept up no longer, and removed a little later: what still comes here is forwarded until then.
    pub(super) fn give_up_at(&mut self, at: Now) {
        self.stop_keeping(Some(at));
    }

    fn stop_keeping(&mut self, give_up_at: Option<Now>) {
        self.schedule.left(give_up_at);
        self.missing.clear();
        self.waits_for_rules = false;
    }

    fn remove(&mut self) {
        for vip in &mut self.addresses {
            if let Err(error) = vip.remove() {
                log::error!(address:% = vip.addr(), error:%; "cannot remove the virtual IP");
            }
        }
    }

    /// The partner may have told the network that the addresses are there. An announcement that is under way will do.
    pub(super) fn defend(&mut self, now: Now, mandate: Mandate) {
        if self.schedule.announce_at.len() <= 2 {
            self.schedule.announce(now);
            self.do_steps(now, mandate);
        }
    }

    /// Somebody has changed an address of the interface: whether ours is still there is to be seen at the next round.
    pub(super) fn check_soon(&mut self, now: Now) {
        self.schedule.renew_at = now;
    }

    /// Does what is due.
    pub(super) fn do_steps(&mut self, now: Now, mandate: Mandate) {
        while let Some(step) = self.schedule.next(now, mandate) {
            match step {
                Step::GiveUp => {
                    self.stop_keeping(None);
                    self.remove();
                }
                Step::Renew => {
                    if self.renew(mandate == Mandate::Announce) {
                        self.schedule.announce(now);
                    }
                }
                Step::Announce => self.announce(),
                Step::Tell => self.tell_neighbours(),
            }
        }
    }

    /// Gives the addresses a new lifetime. Returns whether one that had vanished was put back.
    fn renew(&mut self, put_back: bool) -> bool {
        let mut back = false;
        for vip in &mut self.addresses {
            let renewed = match vip.renew(LIFETIME_S) {
                // It vanished: this process was paused, and is master all the same, or is about to hear that it is not. Or
                // somebody removed it.
                Ok(false) if put_back => {
                    log::warn!(address:% = vip.addr(), interface = self.interface.as_str(); "the virtual IP was not there any more");
                    Some(vip.add(LIFETIME_S))
                }
                // The route that makes it ours is gone, or another one leads elsewhere.
                Ok(true) if put_back && vip.running().unwrap_or(false) && !vip.is_local().unwrap_or(true) => {
                    log::warn!(address:% = vip.addr(); "what is sent to the virtual IP did not come here any more");
                    Some(vip.remove().and_then(|_| vip.add(LIFETIME_S)))
                }
                Ok(_) => {
                    note(&mut self.missing, vip.addr(), Ok(()));
                    None
                }
                Err(error) => {
                    note(&mut self.missing, vip.addr(), Err(error));
                    None
                }
            };
            if let Some(again) = renewed {
                self.restored += u64::from(again.is_ok());
                back |= again.is_ok();
                note(&mut self.missing, vip.addr(), again);
            }
        }
        back
    }

    fn announce(&self) {
        for addr in self.addrs() {
            if let Err(error) = self.arp.send_gratuitous(addr) {
                log::warn!(address:% = addr, error:%; "cannot announce the virtual IP");
            }
        }
    }

    /// Tells the neighbours that this machine knows. The others the kernel asks when it first has something for them, in the
    /// name of the virtual IP, and thereby tells them.
    fn tell_neighbours(&self) {
        let neighbours = reach::neighbours(&self.interface);
        for addr in self.ipv4() {
            for (neighbour, _) in &neighbours {
                if let Err(error) = self.arp.tell(*neighbour, addr) {
                    return log::debug!(neighbour:%, address:% = addr, error:%; "cannot tell a neighbour of the virtual IP");
                }
            }
        }
    }
}

/// How it went with an address that should be here.
fn note(missing: &mut BTreeMap<IpAddr, String>, address: IpAddr, result: io::Result<()>) {
    match result {
        Ok(()) => drop(missing.remove(&address)),
        Err(error) => {
            log::error!(address:%, error:%; "the virtual IP is not here");
            missing.insert(address, error.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Duration = Duration::from_millis(20);

    fn ms(n: u64) -> Now {
        Duration::from_millis(n)
    }

    /// All steps until a time, with their times, in the way of an event loop that waits for nothing else.
    fn run(schedule: &mut Schedule, mandate: Mandate, from: Now, until: Now) -> Vec<(u64, Step)> {
        let (mut now, mut steps) = (from, Vec::new());
        loop {
            while let Some(step) = schedule.next(now, mandate) {
                steps.push((now.as_millis() as u64, step));
            }
            match schedule.poll_timeout(mandate) {
                Some(at) if at <= until => now = now.max(at),
                _ => return steps,
            }
        }
    }

    fn of(steps: &[(u64, Step)], which: Step) -> Vec<u64> {
        steps.iter().filter(|(_, step)| *step == which).map(|(at, _)| *at).collect()
    }

    #[test]
    fn a_new_master_announces_at_once_and_a_few_times_more_and_renews_for_ever() {
        let mut schedule = Schedule::new(HEARTBEAT);
        assert_eq!(schedule.poll_timeout(Mandate::Announce), None);
        schedule.taken(ms(1000));
        let steps = run(&mut schedule, Mandate::Announce, ms(1000), ms(6000));
        assert_eq!(of(&steps, Step::Announce), [1000, 1002, 1010, 1050, 1200, 2000, 4000]);
        assert_eq!(of(&steps, Step::Tell), [1005, 2000]);
        assert_eq!(of(&steps, Step::Renew), (3..=12).map(|n| n * 500).collect::<Vec<_>>());
        assert!(of(&steps, Step::GiveUp).is_empty());
    }

    #[test]
    fn a_master_that_must_not_announce_looks_at_its_address_once_a_heartbeat_and_announces_when_it_may() {
        let mut schedule = Schedule::new(HEARTBEAT);
        schedule.taken(ms(0));
        let steps = run(&mut schedule, Mandate::Keep, ms(0), ms(560));
        assert_eq!(steps, [500, 520, 540, 560].map(|at| (at, Step::Renew)));
        let steps = run(&mut schedule, Mandate::Announce, ms(570), ms(579));
        assert_eq!(steps, [(570, Step::Announce); 5].into_iter().chain([(570, Step::Tell)]).collect::<Vec<_>>());
    }

    #[test]
    fn who_is_no_master_does_nothing_but_give_the_address_up_in_time() {
        let mut schedule = Schedule::new(HEARTBEAT);
        schedule.taken(ms(0));
        assert_eq!(run(&mut schedule, Mandate::None, ms(0), ms(9000)), []);
        schedule.left(Some(ms(130)));
        assert_eq!(schedule.poll_timeout(Mandate::None), Some(ms(130)));
        assert_eq!(run(&mut schedule, Mandate::None, ms(100), ms(9000)), [(130, Step::GiveUp)]);
        assert!(!schedule.here);
        // A takeover meanwhile: the address stays.
        schedule.left(Some(ms(200)));
        schedule.taken(ms(150));
        assert!(of(&run(&mut schedule, Mandate::Announce, ms(150), ms(400)), Step::GiveUp).is_empty());
    }
}
