//! The virtual IP: taking it, keeping it, giving it up, and telling the network.

use std::time::Duration;

use tcpr_session::role::Role;
use tcpr_session::Now;

use super::Manager;
use crate::{arp, reach};

/// Lifetime of the virtual IP; renewed while master, it vanishes by itself with its manager.
const VIP_LIFETIME_S: u32 = 2;
/// How often it is renewed.
const VIP_RENEW: Duration = Duration::from_millis(500);

impl Manager {
    pub(super) fn vip_add(&mut self, now: Now) {
        self.vip_remove = None;
        if !self.host.may_take_address() {
            return;
        }
        for vip in &mut self.vips {
            self.host.address(vip.add(VIP_LIFETIME_S), vip.addr());
        }
        self.vip_up = true;
        self.vip_renew = now + VIP_RENEW;
        self.vip_announce(now);
    }

    /// Tells the network where the virtual IP is, now and a few times more.
    pub(super) fn vip_announce(&mut self, now: Now) {
        self.garp_due = std::iter::once(now).chain(arp::ANNOUNCE_AGAIN.iter().map(|after| now + *after)).collect();
        self.tell_due = arp::TELL_AGAIN.iter().map(|after| now + *after).collect();
        self.vip_timers(now);
    }

    pub(super) fn vip_drop(&mut self) {
        self.vip_up = false;
        self.vip_remove = None;
        self.host.no_address();
        self.garp_due.clear();
        self.tell_due.clear();
        for vip in &mut self.vips {
            if let Err(error) = vip.remove() {
                log::error!("{error}");
            }
        }
    }

    pub(super) fn vip_timers(&mut self, now: Now) {
        if self.vip_remove.is_some_and(|t| now >= t) {
            self.vip_drop();
        }
        if !self.vip_up || self.role.role() != Role::Master {
            return;
        }
        let announces = self.role.announces();
        if now >= self.vip_renew {
            self.vip_renew = now + if announces { VIP_RENEW } else { self.config.failover.heartbeat };
            let mut back = false;
            for vip in &mut self.vips {
                match vip.renew(VIP_LIFETIME_S) {
                    // It vanished: we were paused, and are master all the same, or about to hear that we are not. Or somebody
                    // removed it.
                    Ok(false) if announces => {
                        log::warn!("{} was not on {} any more", vip.addr(), self.config.service.interface);
                        back |= self.host.address_again(vip.add(VIP_LIFETIME_S), vip.addr());
                    }
                    // The route that makes it ours is gone, or another leads elsewhere.
                    Ok(true) if announces && vip.running().unwrap_or(false) && !vip.is_local().unwrap_or(true) => {
                        log::warn!("what is sent to {} did not come here any more", vip.addr());
                        let again = vip.remove().and_then(|_| vip.add(VIP_LIFETIME_S));
                        back |= self.host.address_again(again, vip.addr());
                    }
                    Ok(_) => self.host.address(Ok(()), vip.addr()),
                    Err(error) => self.host.address(Err(error), vip.addr()),
                }
            }
            if back {
                return self.vip_announce(now);
            }
        }
        if !announces {
            return;
        }
        while self.garp_due.first().is_some_and(|t| now >= *t) {
            self.garp_due.remove(0);
            for vip in &self.vips {
                if let Err(error) = self.arp.send_gratuitous(vip.addr()) {
                    log::warn!("gratuitous ARP for {}: {error}", vip.addr());
                }
            }
        }
        while self.tell_due.first().is_some_and(|t| now >= *t) {
            self.tell_due.remove(0);
            self.tell_neighbours();
        }
    }

    /// Those that this machine knows. The others the kernel asks when it first has something for them, in the name of the
    /// virtual IP, and thereby tells.
    fn tell_neighbours(&self) {
        let neighbours = reach::neighbours(&self.config.service.interface);
        for (vip, _) in self.config.service.virtual_ipv4() {
            for (neighbour, _) in &neighbours {
                if let Err(error) = self.arp.tell(*neighbour, vip) {
                    return log::debug!("ARP to {neighbour} for {vip}: {error}");
                }
            }
        }
    }
}
