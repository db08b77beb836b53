//! The life of the program that `tcpr run` starts, and the end of the manager.

use rustix::process::Signal;
use tcpr_session::filter::{Mode, PROGRAM};
use tcpr_session::role::{Role, RoleInput};
use tcpr_session::Now;

use super::notify::Notify;
use super::program::{self, Program};
use super::signals::Signals;
use super::stop::Step;
use super::{Manager, Token};
use crate::config::Standby;
use crate::link::Goodbye;

/// A program that crashes so often in a row is killed by what it is asked.
const POISONED: u32 = 4;

impl Manager {
    pub(super) fn program_timers(&mut self, now: Now) {
        if self.stop.is_under_way() || !self.cleanup.is_done() || !self.may_start_program() {
            return;
        }
        let Some(program) = &mut self.program else { return };
        if program.is_due(now) {
            self.notify.iter_mut().for_each(Notify::begin);
            self.serving.program_starts();
            self.standby.program_starts(self.role.role());
        }
        match program.start_if_due(now, self.standby.program_snapshot()) {
            Ok(Some(pidfd)) => {
                log::info!(pid = program.pid().unwrap_or(0); "started the program");
                if let Err(error) = self.poller.add(pidfd, Token::Program) {
                    log::error!(error:%; "cannot watch the program");
                }
            }
            Ok(None) => {}
            Err(error) => {
                let what = format!("cannot start the program {}: {error}", program.name().display());
                log::error!("{what}");
                self.note_program_trouble(what);
            }
        }
    }

    /// Whether this member's program is to run: with a cold standby only the master's does.
    pub(super) fn may_start_program(&self) -> bool {
        self.config.service.standby != Standby::Cold || matches!(self.role.role(), Role::Master | Role::Fenced)
    }

    /// By `sd_notify`.
    pub(super) fn program_says(&mut self) {
        if self.notify.as_mut().is_some_and(Notify::hear) {
            log::info!("the program says that it is ready");
        }
    }

    pub(super) fn program_ended(&mut self) {
        let now = self.now();
        let Some(status) = self.program.as_mut().and_then(Program::reap) else { return };
        self.drain_apps();
        if self.stop.is_under_way() && self.hands_over() {
            // Its connections are the partner's in a moment; the timers go on when they are.
            if status.code() != Some(0) {
                self.kill_the_rest();
            }
            return;
        }
        // A program that follows ends in order where the leader's did, also when it has been given up a moment ago. The service
        // goes on, here and there.
        let ended = status.code() == Some(0);
        let followed = ended && self.standby.is_hot() && !self.stop.is_under_way() && {
            // Whoever has replaced it has told the standby what that means.
            self.program.as_ref().is_some_and(Program::is_replaced) || self.standby.note_follower_ended()
        };
        let in_order = ended && !followed;
        // Its descriptors are closed by now; what it left unsaid, it meant only if it ended in order.
        if in_order || self.stop.is_under_way() {
            // Without hooks nobody has told what it closed.
            self.receive_out();
            self.filter.program_exited(now);
        }
        if in_order {
            self.leave(program::exit_code(status));
            return;
        }
        log::warn!(status:%; "the program ended");
        self.note_program_trouble(format!("the program ended: {status}"));
        self.kill_the_rest();
        self.drain_apps();
        self.apps_of_dead_program();
        self.filter.process_gone(now, PROGRAM);
        if self.stop.is_under_way() {
            self.leave(program::exit_code(status));
            return;
        }
        let Some(program) = &mut self.program else { return };
        if program.was_replaced() {
            program.restart(now);
            self.recover_here(now);
            return;
        }
        let crashes = program.crashed(now, status);
        if crashes >= POISONED {
            // What it is fed after each start may be what kills it.
            let given_up = self.filter.give_up_deadly(now, POISONED - 1);
            log::error!(crashes, reset = given_up; "the program crashes again and again: connections are reset whose input it had read each time");
            self.filter_actions();
        } else if crashes <= 1 {
            self.filter.forget_deaths();
        }
        self.service_died(now);
    }

    pub(super) fn kill_the_rest(&mut self) {
        if let Some(mut program) = self.program.take() {
            program.kill_the_rest(|| self.stay_alive());
            self.program = Some(program);
        }
    }

    pub(super) fn signalled(&mut self) {
        while let Some(signal) = self.signals.as_mut().and_then(Signals::read) {
            if signal == libc::SIGCHLD as u32 {
                self.program.iter_mut().for_each(Program::reap_others);
                continue;
            }
            if self.stop.is_under_way() {
                self.stop.hurry();
                continue;
            }
            log::info!(signal; "stopping");
            let now = self.now();
            self.stop.begin(now);
            // Also to a partner whose packet rules are missing: it takes over when they are back.
            if self.serves() && self.role.can_switch_over().is_ok() {
                self.role.handle(now, RoleInput::SwitchoverRequested);
                // At once: the program is not to end its connections before they are the partner's.
                self.role_actions();
            }
        }
    }

    pub(super) fn hands_over(&self) -> bool {
        matches!(self.role.role(), Role::Master | Role::Fenced) && self.handover.is_under_way()
    }

    /// Stopping: hand over if a partner can take it; else the program closes its connections in order.
    pub(super) fn stop_timers(&mut self, now: Now) {
        let running = self.program.as_ref().filter(|program| program.pid().is_some());
        match (self.stop.next(now, self.hands_over(), running.is_some()), running) {
            (Step::Wait, _) => {}
            (Step::Terminate, Some(program)) => program.signal(Signal::TERM),
            (Step::Kill, Some(program)) => {
                log::warn!("the program does not end; killing it");
                program.signal(Signal::KILL);
            }
            (Step::Leave | Step::Terminate | Step::Kill, _) => self.leave(0),
        }
    }

    pub(super) fn leave(&mut self, code: i32) {
        // What its end has to say (FINs that it asked for) goes out first.
        self.settle();
        self.stop.leave(code);
    }

    pub(super) fn clean_up(&mut self) {
        // While the rules stand: they keep what is left from the peers.
        self.clear_away_all();
        if let Some(mut program) = self.program.take() {
            if program.pid().is_some() {
                program.kill(|| self.stay_alive());
            }
            self.program = Some(program);
        }
        self.linger();
        // A handover may have come to its end only now; and if nobody knows how it ends, the partner may have it all.
        if self.hands_over() {
            self.cleanup.begin();
        }
        self.clear_away_all();
        self.link.say_goodbye(Goodbye::ServiceEnded);
        self.virtual_ip.give_up();
        self.host.remove_rules();
        self.control.remove();
        self.record.delete();
    }

    /// The program crashed. A partner that can takes the service over; else its sessions go on here with the next one.
    pub(super) fn service_died(&mut self, now: Now) {
        // A partner whose program could not serve is no place to go to.
        if self.role.role() == Role::Master && self.can_switch_over().is_ok() && self.partner.program_is_well() {
            self.takeover.set_died(true);
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
        if self.filter.mode() == Mode::Frozen || self.stop.is_under_way() {
            return Err("a switchover or a stop is under way");
        }
        let Some(program) = &mut self.program else {
            return Err("the manager is part of the program: only `tcpr run` can start it again");
        };
        if program.pid().is_none() && self.config.service.standby == Standby::Cold && self.role.role() != Role::Master {
            return Err("with standby = \"cold\" the program runs on the master only");
        }
        program.replace();
        Ok(program.starts)
    }
}
