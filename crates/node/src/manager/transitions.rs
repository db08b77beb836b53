//! What a change of role does, step by step: becoming master and backup, yielding, going on alone, fencing, handing over.

use tcpr_session::filter::Mode;
use tcpr_session::role::{Epoch, Role};
use tcpr_session::Now;

use super::virtual_ip::Mandate;
use super::Manager;
use crate::link::{Goodbye, Message};

/// Memory of more sessions than this is freed by a thread of its own.
const MANY: usize = 1000;

impl Manager {
    pub(super) fn become_master(&mut self, now: Now, epoch: Epoch, old: Epoch, take_over: bool) {
        log::info!(epoch:%, after:% = old; "became master");
        self.replication.unfollow();
        self.replication.forget_alone();
        self.beat();
        self.stop_shipping();
        if self.handover.take_heard() {
            self.link.send(&Message::HandoverAck { epoch });
            self.link.flush();
        }
        self.standby.forget_partner();
        self.clear_away_all();
        if take_over {
            self.promote_program();
        } else {
            self.lead_without_state();
        }
        if self.standby.is_promoting() {
            self.host.postpone_takeover();
        } else {
            self.take_office(now, take_over);
        }
    }

    /// A new master whose program is ready.
    pub(super) fn take_office(&mut self, now: Now, take_over: bool) {
        // A peer that came in around the rules would be reset.
        self.host.look_before_takeover();
        self.take_address(now);
        if take_over && !self.may_take_address() {
            self.host.postpone_takeover();
        } else if take_over {
            self.begin_takeover(now);
        } else {
            if !self.filter.store().is_empty() {
                self.filter.replica_reset();
                self.record.clear();
            }
            self.filter.activate();
        }
    }

    pub(super) fn become_backup(&mut self, epoch: Epoch) {
        log::info!(epoch:%; "became backup");
        // The snapshot of this very epoch may have overtaken the heartbeat that names it.
        self.replication.unfollow_before(epoch);
        self.beat();
    }

    /// A master yields to another one.
    pub(super) fn yield_to(&mut self, now: Now, epoch: Epoch) {
        log::info!(epoch:%; "no longer master");
        self.replication.yielded(epoch, self.filter.named_alone());
        self.step_down(now);
        self.beat();
    }

    /// From master to backup: every session dies here silently, for it lives on at the partner.
    fn step_down(&mut self, now: Now) {
        let handed_over = self.handover.end();
        self.standby.forget_partner();
        self.standby.forget_promotion();
        self.stop_shipping();
        self.host.forget_takeover();
        if handed_over && self.link.is_some() {
            // What still comes to us goes on to the new master: peers learn its place in a moment.
            let until = self.handover.forward_from(now, self.filter.take_deferred_resets());
            self.virtual_ip.give_up_at(until);
        } else {
            self.virtual_ip.give_up();
        }
        self.drop_sessions(now);
        self.replication.unfollow();
    }

    pub(super) fn pair_when_possible(&mut self) {
        // A takeover begins a log of its own: nobody can follow the one before it.
        if self.host.takeover_is_postponed() {
            self.replication.postpone();
        } else {
            self.start_pairing();
        }
    }

    /// The takeover that the pairing has waited for has begun.
    pub(super) fn pair_if_postponed(&mut self) {
        if !self.host.takeover_is_postponed() && self.replication.was_postponed() {
            self.start_pairing();
        }
    }

    pub(super) fn hold_for_replica(&mut self) {
        self.filter.hold_for_replica(self.replication.stored());
    }

    pub(super) fn say_paired(&mut self, epoch: Epoch) {
        self.ship();
        self.link.send(&Message::Paired { epoch });
    }

    /// The partner had gone on by itself, and cannot say for which connections.
    pub(super) fn tear_shared(&mut self, now: Now) {
        let ends = self.filter.tear_shared(now);
        log::error!(reset = ends.len(); "the partner had gone on by itself, and cannot say for which connections: all are reset");
        self.cleanup.doom(ends);
    }

    /// A master goes on without a partner.
    pub(super) fn go_solo(&mut self, now: Now, epoch: Epoch, doubtful: bool) {
        log::warn!(epoch:%; "going on alone");
        self.handover.cancel();
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
            if self.takeover.has_died() {
                self.recover_here(now);
            }
        }
        if !self.virtual_ip.is_here() {
            self.take_address(now);
        }
    }

    pub(super) fn fence(&mut self, now: Now) {
        log::warn!("cut off: releasing nothing");
        self.filter.set_fenced(now, true);
    }

    pub(super) fn unfence(&mut self, now: Now) {
        log::info!("in reach again");
        self.filter.set_fenced(now, false);
        self.take_address(now);
        // What had to wait for the rules, and may have had to wait for this, too.
        if self.host.is_guarded() {
            self.go_on(now);
        }
    }

    /// Sends the log to its end, and has the partner take over.
    pub(super) fn hand_over_service(&mut self, epoch: Epoch) {
        if !self.serves() {
            // A takeover that waits for the packet rules has nothing to hand over yet. Nobody acknowledges, and we go on.
            return log::warn!("no handover: this member does not serve yet");
        }
        self.drain_apps();
        self.filter.before_handover();
        self.filter_actions();
        self.filter.freeze();
        self.ship();
        let position = self.filter.log().written();
        self.handover.begin();
        self.link.send(&Message::Handover { epoch, position });
        self.link.flush();
    }

    /// The role machine takes the partner's connection for dead.
    pub(super) fn close_link(&mut self, now: Now) {
        self.standby.forget_partner();
        if self.link.close(now, Goodbye::PartnerSuspected, &self.poller) {
            self.stop_shipping();
        }
    }

    /// What the role of this member allows with the virtual IP.
    pub(super) fn mandate(&self) -> Mandate {
        match self.role.role() {
            Role::Master if self.role.announces() => Mandate::Announce,
            Role::Master => Mandate::Keep,
            _ => Mandate::None,
        }
    }

    pub(super) fn take_address(&mut self, now: Now) {
        self.virtual_ip.take(now, self.host.is_guarded(), self.mandate());
    }

    pub(super) fn defend_address(&mut self, now: Now) {
        self.virtual_ip.defend(now, self.mandate());
    }

    /// Does what is due with the virtual IP.
    pub(super) fn keep_address(&mut self, now: Now) {
        self.virtual_ip.do_steps(now, self.mandate());
    }

    /// Whether packets to the virtual IP would meet the rules. If not, the address is taken when they do.
    pub(super) fn may_take_address(&mut self) -> bool {
        let guarded = self.host.is_guarded();
        if !guarded {
            self.virtual_ip.wait_for_rules();
        }
        guarded
    }

    pub(super) fn drop_sessions(&mut self, now: Now) {
        self.drain_apps();
        let (many, remains) = (self.filter.store().len() > MANY, self.filter.demote());
        // Where there is no thread, it is freed here.
        let free = move || drop(remains);
        if many {
            let thread = std::thread::Builder::new().name("tcpr-free".to_owned()).spawn(free);
            thread.map_or_else(|error| log::warn!(error:%; "no thread to free memory with"), drop);
        } else {
            free();
        }
        self.record.clear();
        self.filter_actions();
        self.takeover.abandon();
        self.takeover.set_died(false);
        if !self.stop.is_under_way() && !self.config.service.life.disconnects() {
            if let Some(mut program) = self.program.take() {
                // One that has crashed is waited for as long as before.
                let runs = program.pid().is_some();
                // Before its sockets go: none of its processes is to see a connection end.
                program.kill(|| self.stay_alive());
                if runs {
                    program.restart(now);
                }
                self.program = Some(program);
            }
        }
        self.cleanup.begin();
        self.apps_of_dead_program();
    }

    pub(super) fn serves(&self) -> bool {
        matches!(self.filter.mode(), Mode::Active | Mode::Restoring)
    }

    /// Whether a switchover may be asked for, or why not.
    pub(super) fn can_switch_over(&self) -> Result<(), &'static str> {
        self.role.can_switch_over()?;
        match (self.serves(), self.heartbeats.partner_is_unguarded()) {
            (false, _) => Err("this member does not serve yet: see host in tcpr status"),
            (true, true) => Err("the packet rules of the partner are missing"),
            (true, false) => Ok(()),
        }
    }
}
