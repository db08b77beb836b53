//! What the role machine decides, and the verb that does it.

use tcpr_session::role::RoleAction;
use tcpr_session::Now;

use super::Manager;

impl Manager {
    /// Does what the role machine decided. Returns whether there was anything.
    pub(super) fn role_actions(&mut self) -> bool {
        let mut any = false;
        let before = (self.role.role(), self.role.epoch());
        while let Some(action) = self.role.poll_action() {
            any = true;
            log::debug!(action:?; "the role machine decided");
            self.role_action(self.now(), action);
            self.publish_role();
        }
        if before != (self.role.role(), self.role.epoch()) {
            self.greet_again(self.now(), true);
        }
        any
    }

    fn role_action(&mut self, now: Now, action: RoleAction) {
        match action {
            RoleAction::BecomeMaster { epoch, take_over, old } => self.become_master(now, epoch, old, take_over),
            RoleAction::BecomeBackup { epoch } => self.become_backup(epoch),
            RoleAction::Demote { epoch } => self.yield_to(now, epoch),
            RoleAction::StartPairing => self.pair_when_possible(),
            RoleAction::HoldForReplica { .. } => self.hold_for_replica(),
            RoleAction::SendPaired { epoch } => self.say_paired(epoch),
            RoleAction::Stall => log::warn!("the replica is out of contact; nothing leaves that it has not stored"),
            RoleAction::Announce { .. } => self.beat(),
            RoleAction::DefendVip => self.defend_address(now),
            RoleAction::TearShared => self.tear_shared(now),
            RoleAction::GoSolo { doubtful, epoch } => self.go_solo(now, epoch, doubtful),
            RoleAction::Fence => self.fence(now),
            RoleAction::Unfence => self.unfence(now),
            RoleAction::ProbeReach => self.probe_reach(now),
            RoleAction::StartHandover { epoch } => self.hand_over_service(epoch),
            RoleAction::CloseLink => self.close_link(now),
        }
    }
}
