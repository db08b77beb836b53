//! What the role machine decides, done: becoming master and backup, handing over, fencing, and what becomes of a program
//! that dies.

use std::time::Duration;

use tcpr_session::filter::Mode;
use tcpr_session::role::{Role, RoleAction, RoleInput};
use tcpr_session::Now;

use super::partner::DIAL_EVERY;
use super::{packets, Manager};
use crate::link::Message;

/// Memory of more sessions than this is freed elsewhere.
const MANY: usize = 1000;
/// How long after a switchover the former master still forwards what reaches it.
const FORWARD_FOR: Duration = Duration::from_millis(30);

impl Manager {
    /// Does what the role machine decided. Returns whether there was anything.
    pub(super) fn role_actions(&mut self) -> bool {
        let mut any = false;
        let before = (self.role.role(), self.role.epoch());
        while let Some(action) = self.role.poll_action() {
            any = true;
            let now = self.now();
            log::debug!("role: {action:?}");
            self.role_action(now, action);
            self.publish_role();
        }
        if before != (self.role.role(), self.role.epoch()) {
            self.greet_again(self.now(), true);
        }
        any
    }

    fn role_action(&mut self, now: Now, action: RoleAction) {
        match action {
            RoleAction::BecomeMaster { epoch, take_over, old } => {
                log::info!("master in epoch {epoch}, after {old}");
                self.partner.followed = None;
                self.partner.to_tell = None;
                self.beat();
                self.stop_shipping();
                if std::mem::take(&mut self.partner.heard_handover) {
                    self.partner.send(&Message::HandoverAck { epoch });
                    self.partner.flush();
                }
                self.clear_away_all();
                // A peer that came in around the rules would be reset.
                self.host.look_before_takeover();
                self.vip_add(now);
                if take_over && !self.host.may_take_address() {
                    self.host.takeover_waits = true;
                } else if take_over {
                    self.begin_takeover(now);
                } else {
                    if !self.filter.store().is_empty() {
                        self.filter.replica_reset();
                        self.note_empty();
                    }
                    self.filter.activate();
                }
            }
            RoleAction::BecomeBackup { epoch } => {
                log::info!("backup in epoch {epoch}");
                // The snapshot of this very epoch may have overtaken the heartbeat that names it.
                if self.partner.followed.is_some_and(|f| f < epoch) {
                    self.partner.followed = None;
                }
                self.beat();
            }
            RoleAction::Demote { epoch } => {
                log::info!("no longer master; backup in epoch {epoch}");
                self.partner.to_tell = Some((epoch, self.filter.named_alone()));
                self.step_down(now);
                self.beat();
            }
            // A takeover begins a log of its own: nobody can follow the one before it.
            RoleAction::StartPairing if self.host.takeover_waits => self.partner.pairing_waits = true,
            RoleAction::StartPairing => self.start_pairing(),
            RoleAction::HoldForReplica { .. } => {
                let position = self.partner.stored;
                self.filter.hold_for_replica(position);
            }
            RoleAction::SendPaired { epoch } => {
                self.ship();
                self.partner.send(&Message::Paired { epoch });
            }
            RoleAction::Stall => log::warn!("the replica is out of contact; nothing leaves that it has not stored"),
            RoleAction::Announce { .. } => self.beat(),
            // One that is under way will do.
            RoleAction::DefendVip if self.garp_due.len() > 2 => {}
            RoleAction::DefendVip => self.vip_announce(now),
            RoleAction::TearShared => {
                let ends = self.filter.tear_shared(now);
                log::error!("the partner had gone on by itself, and cannot say for which connections: {} are reset", ends.len());
                self.partner.doomed.extend(ends);
            }
            RoleAction::GoSolo { epoch, doubtful } => {
                log::warn!("going on alone in epoch {epoch}");
                self.takeover.handing_over = false;
                self.stop_shipping();
                self.beat();
                if doubtful {
                    self.drop_sessions(now);
                    self.clear_away_all();
                    self.filter.activate();
                } else {
                    if self.filter.mode() == Mode::Frozen {
                        self.filter.thaw(now);
                    }
                    self.filter.go_solo(now);
                    // A handover to nobody, perhaps of a program that had died.
                    if self.takeover.died {
                        self.recover_here(now);
                    }
                }
                if !self.vip_up {
                    self.vip_add(now);
                }
            }
            RoleAction::Fence => {
                log::warn!("cut off: releasing nothing");
                self.filter.set_fenced(now, true);
            }
            RoleAction::Unfence => {
                log::info!("in reach again");
                self.filter.set_fenced(now, false);
                self.vip_add(now);
                // What had to wait for the rules, and may have had to wait for this, too.
                if self.host.is_guarded() {
                    self.go_on(now);
                }
            }
            RoleAction::ProbeReach => self.probe_reach(now),
            // A takeover that waits for the packet rules has nothing to hand over yet. Nobody acknowledges, and we go on.
            RoleAction::StartHandover { .. } if !self.serves() => log::warn!("no handover: this member does not serve yet"),
            RoleAction::StartHandover { epoch } => {
                self.drain_apps();
                self.filter_actions();
                self.filter.freeze();
                self.ship();
                let position = self.filter.log_end();
                self.takeover.handing_over = true;
                self.partner.frozen_sent = true;
                self.partner.send(&Message::Handover { epoch, position });
                self.partner.flush();
            }
            RoleAction::CloseLink => {
                if let Some(mut link) = self.partner.link.take() {
                    if link.send(&Message::Bye { reason: "closed by the role machine".into() }).is_ok() {
                        link.flush();
                    }
                    link.close("partner suspected");
                    self.poller.remove(link.fd());
                    self.partner.link_up = false;
                    self.stop_shipping();
                    self.partner.dial_at = now + DIAL_EVERY;
                }
            }
        }
    }

    /// From master to backup: every session dies here silently, for it lives on at the partner.
    fn step_down(&mut self, now: Now) {
        let handed_over = std::mem::take(&mut self.takeover.handing_over);
        self.stop_shipping();
        if handed_over && self.partner.link.is_some() {
            // What still comes to us goes on to the new master: peers learn its place in a moment.
            self.partner.forward_until = Some(now + FORWARD_FOR);
            self.vip_remove = Some(now + FORWARD_FOR);
            self.vip_up = false;
            self.host.no_address();
            self.garp_due.clear();
            self.tell_due.clear();
            self.takeover.farewells = self.filter.take_deferred_resets();
        } else {
            self.vip_drop();
        }
        self.drop_sessions(now);
        self.partner.followed = None;
    }

    pub(super) fn drop_sessions(&mut self, now: Now) {
        self.drain_apps();
        let (many, remains) = (self.filter.store().len() > MANY, self.filter.demote());
        // Where there is no thread, it is freed here.
        let free = move || drop(remains);
        if many {
            let thread = std::thread::Builder::new().name("tcpr-free".to_owned()).spawn(free);
            thread.map_or_else(|error| log::warn!("no thread: {error}"), drop);
        } else {
            free();
        }
        self.note_empty();
        self.filter_actions();
        self.takeover.abandon();
        self.takeover.died = false;
        if self.stopping.is_none() {
            if let Some(mut program) = self.program.take() {
                // Before its sockets go: none of its processes is to see a connection end.
                program.kill(|| self.stay_alive());
                program.restart(now);
                self.program = Some(program);
            }
        }
        self.removal = packets::Removal::begin();
        self.apps_of_dead_program(now);
    }

    /// Goes on with the removal of what a demotion has left in the kernel.
    pub(super) fn clear_away(&mut self) {
        if self.removal.is_done() {
            return;
        }
        self.removal = std::mem::take(&mut self.removal).step(&mut self.sockdiag, self.takeover.ours());
        self.receive_out();
    }

    /// The same to its end, before this member serves anything: the RSTs of what ended here meet a passive filter, and one that
    /// serves would take them for strangers'. The partner is shown that we live.
    pub(super) fn clear_away_all(&mut self) {
        if self.removal.is_done() {
            return;
        }
        while !self.removal.is_done() {
            self.removal = std::mem::take(&mut self.removal).step(&mut self.sockdiag, self.takeover.ours());
            self.receive_out();
            self.stay_alive();
        }
        for _ in 0..100 {
            if self.receive_out() {
                break;
            }
        }
    }

    pub(super) fn serves(&self) -> bool {
        matches!(self.filter.mode(), Mode::Active | Mode::Restoring)
    }

    /// Whether a switchover may be asked for, or why not.
    pub(super) fn can_switch_over(&self) -> Result<(), &'static str> {
        self.role.can_switch_over()?;
        match (self.serves(), self.partner.unguarded) {
            (false, _) => Err("this member does not serve yet: see host in tcpr status"),
            (true, true) => Err("the packet rules of the partner are missing"),
            (true, false) => Ok(()),
        }
    }

    /// The program crashed. A partner that can takes the service over; else its sessions go on here with the next one.
    pub(super) fn service_died(&mut self, now: Now) {
        if self.role.role() == Role::Master && self.can_switch_over().is_ok() {
            self.takeover.died = true;
            self.role.handle(now, RoleInput::SwitchoverRequested);
        } else {
            self.recover_here(now);
        }
    }

    /// Kills the program, to be started again, which the connections of a master do not notice. Returns how often it was
    /// started before.
    ///
    /// # Errors
    /// Why that cannot be.
    pub(super) fn restart_program(&mut self) -> Result<u64, &'static str> {
        if self.filter.mode() == Mode::Frozen || self.stopping.is_some() {
            return Err("a switchover or a stop is under way");
        }
        let Some(program) = &mut self.program else {
            return Err("the manager is part of the program: only `tcpr run` can start it again");
        };
        program.replace();
        Ok(program.starts)
    }
}
