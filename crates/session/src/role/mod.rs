//! Who is master: the role machine of one of two members.
//!
//! Heartbeats, evidence and the operator's wishes go in ([`RoleInput`]); what the member must do comes out
//! ([`RoleAction`]). Nothing here reads a clock or sends a byte.
//!
//! ```text
//!   state       event                                          next        actions
//!   ---------   --------------------------------------------   ---------   -----------------------------------
//!   Starting    no partner configured                          Master      BecomeMaster{n+1}
//!               partner is master, epoch not below ours        Backup      BecomeBackup
//!               partner is starting, we are preferred          Master      BecomeMaster{n+1}
//!               nobody heard for start_wait (or no master for
//!                 twice that), then reach                      Master      ProbeReach.., BecomeMaster{n+1}
//!   Backup      master shows a higher epoch                    Backup      BecomeBackup (replica stale)
//!    full       suspects the master, then reach                Master      ProbeReach.., [CloseLink],
//!                                                                          BecomeMaster{n+2, take_over}
//!    full       suspects the master, was away itself for so
//!                 long that the master may be alone since       Backup      [CloseLink] (replica stale)
//!    full       Handover in this epoch                         Master      BecomeMaster{n+2, take_over}
//!    not full   partner starting, or backup too                Starting
//!    not full   no serving master for 5*start_wait (2 if its
//!                 manager's end was seen), then reach          Master      ProbeReach.., BecomeMaster{n+1}
//!   Master      any partner with a higher epoch                Backup      [CloseLink], Demote
//!    solo       link up, partner backup in our epoch           snapshot    StartPairing
//!    snapshot   ReplicaFull                                    holding     HoldForReplica, SendPaired
//!    snapshot   LinkDown                                       solo
//!    holding    PairedAcked                                    paired
//!    held*      link lost, or partner suspected                stalled     Stall, ProbeReach..
//!    stalled    partner back, same link                        held
//!    held*      link lost, partner starting (replica gone)     solo        [CloseLink], GoSolo{n+1}
//!    stalled    link lost, partner still backup in our epoch,
//!                 and link up again or solo_after passed       announced   Announce{n+1}
//!    announced  partner is backup in the announced epoch       solo        [CloseLink], GoSolo
//!    stalled,   partner silent for solo_after: reach           solo        [CloseLink], GoSolo{n+1}
//!                         (in reach again: as long again as a suspicion takes)
//!    announced                                 no reach        Fenced      Fence
//!    paired     SwitchoverRequested                            handing     StartHandover
//!    handing    HandoverAcked, or higher epoch heard           Backup      Demote
//!    handing    neither in solo_after + misses*heartbeat       stalled     (as if the link were lost)
//!    any        carrier lost                                   Fenced      Fence
//!   Fenced      partner heard, with carrier                    as before   Unfence
//!               reach for solo_after, partner still silent     solo        Unfence, [CloseLink], GoSolo{n+1}
//!
//!   * held = holding or paired: the backup may believe itself full, so it may promote.
//! ```
//!
//! # Why two members cannot both write
//!
//! From `HoldForReplica` on, a master releases only what the backup acknowledged in this epoch, and a backup
//! that promotes never acknowledges that epoch again (the runtime's duty). So a promotion silences the old
//! master, and an epoch whose pair broke is never resumed without a new claim. The claims are numbered so
//! that the outcome does not depend on a member's name: **going solo takes n+1, taking over takes n+2**. A
//! takeover that crossed with an announced solo therefore wins, and the announcing master has released
//! nothing yet: while both are in contact it first hears the backup follow its new epoch, which is the
//! backup's word that it gave its replica up. Only without contact does time decide, and there (arbiter
//! `none`) a partition with both members in reach of peers can make two masters; on contact the lower epoch
//! yields.
//!
//! # Whose silence is it?
//!
//! A member that was paused, or cut off, hears nobody either. So timeouts count time *awake*: a gap between
//! two calls counts as one and a half heartbeats at most, and after a pause or a cut-off no silence proves
//! anything until the partner had time for two heartbeats or more.
//!
//! How long was it away for the partner? Heartbeats do not say so: those that queued during a pause are no news, and a
//! fresh one may come from a partner that has not heard us yet. But each heartbeat echoes the newest one of ours that
//! its sender had heard ([`RoleInput::Echo`]), and a master goes solo no sooner than `solo_after` behind that. So time
//! away, paused or cut off or both in a row, counts from the newest heartbeat of ours that was echoed to the first
//! answer after it. A full backup that was away asks at once whether anybody is in reach, and goes on asking until it is
//! echoed again. If it was away for less than `solo_after` it promotes like any other, one suspicion after the answer;
//! for longer, and it finds the master silent, its replica is stale. A master in the same position marks its claim
//! `doubtful`.
//!
//! What remains is a master that was cut off for less than it takes to notice, while its backup took over and stopped again
//! at once (paused, cut off, crashed): it goes on alone beside a takeover of which it knows nothing. On contact it loses, and
//! names the sessions for which it released anything alone; the winner tears those. If it cannot say so any more, because its
//! process ended, the winner tears all that it took over ([`RoleAction::TearShared`]).

mod absence;
mod messages;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use crate::Now;
use absence::Absence;

pub use messages::{Epoch, PartnerView, Release, Role, RoleAction, RoleConfig, RoleInput};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pairing {
    Solo,
    Snapshot,
    Holding,
    Paired,
}

#[derive(Clone, Copy, Debug)]
struct Master {
    pairing: Pairing,
    /// Since when this epoch's pair is beyond repair: the link was lost, or a handover got no answer.
    broken: Option<Duration>,
    /// The link was lost since `held`; one that is up now is new.
    link_lost: bool,
    stalled: Option<Duration>,
    /// Our epoch is a claim that the backup has not yet been heard to follow.
    announced: bool,
    handover: Option<Duration>,
    handed_over: bool,
    fenced: bool,
    /// The last epoch of the pair, as long as the partner may have gone on from it by itself, as we did.
    shared: Option<Epoch>,
    /// It was heard to have done so, and has not told for which sessions.
    forked: bool,
}

impl Master {
    const SOLO: Master = Master {
        pairing: Pairing::Solo,
        broken: None,
        link_lost: false,
        stalled: None,
        announced: false,
        handover: None,
        handed_over: false,
        fenced: false,
        shared: None,
        forked: false,
    };

    fn held(&self) -> bool {
        matches!(self.pairing, Pairing::Holding | Pairing::Paired)
    }
}

#[derive(Clone, Copy, Debug)]
enum State {
    Starting { since: Duration },
    Backup { paired_in: Option<Epoch> },
    Master(Master),
}

/// The role machine of one member. Every `Duration` inside is time awake (see `absence`).
#[derive(Clone, Debug)]
pub struct RoleMachine {
    cfg: RoleConfig,
    epoch: Epoch,
    state: State,
    actions: VecDeque<RoleAction>,

    absence: Absence,

    partner: Option<PartnerView>,
    /// The highest epoch the partner named. Members never name a lower one later, so less is out of date.
    partner_epoch: Epoch,
    heard: Duration,
    /// Suspected whatever the heartbeats' timing says.
    accused: bool,
    bye: bool,
    /// Its process ended while it was in contact: it did not take over before, and will not.
    ended: bool,
    fenced_since: Option<Duration>,

    link_up: bool,
    carrier: bool,
    /// Since when somebody is in reach, and whether that was confirmed since the last pause.
    evidence: Option<Duration>,
    confirmed: bool,
    /// When to ask next; none while there is nothing to find out.
    probe_at: Option<Duration>,
    /// Since when we have been asking without a pause.
    asking: Option<Duration>,
}

impl RoleMachine {
    /// A machine that has just started. `last_epoch` is the highest epoch this member had on disk.
    pub fn new(cfg: RoleConfig, last_epoch: Epoch, now: Now) -> Self {
        let mut machine = RoleMachine {
            epoch: last_epoch,
            state: State::Starting { since: Duration::ZERO },
            actions: VecDeque::new(),
            absence: Absence::new(now),
            partner: None,
            partner_epoch: Epoch::default(),
            heard: Duration::ZERO,
            accused: false,
            bye: false,
            ended: false,
            fenced_since: None,
            link_up: false,
            carrier: true,
            evidence: None,
            confirmed: false,
            probe_at: None,
            asking: None,
            cfg,
        };
        if !machine.cfg.has_partner {
            machine.promote(1, false);
        }
        machine
    }

    /// Takes an input.
    pub fn handle(&mut self, now: Now, input: RoleInput) {
        self.advance(now);
        match input {
            RoleInput::Heartbeat(view) => self.heartbeat(view),
            RoleInput::Echo(sent) => self.absence.echo(sent),
            RoleInput::LinkUp => self.link_up = true,
            RoleInput::LinkDown { reset } => self.link_down(reset),
            RoleInput::PartnerBye => {
                self.accused = true;
                self.bye = true;
            }
            RoleInput::Reach(somebody) => self.reach(somebody),
            RoleInput::Carrier(up) => self.carrier(up),
            RoleInput::ReplicaFull => {
                let epoch = self.epoch;
                if let State::Master(m) = &mut self.state {
                    if m.pairing == Pairing::Snapshot {
                        m.pairing = Pairing::Holding;
                        m.shared = None;
                        if std::mem::take(&mut m.forked) {
                            // Of a version that does not tell.
                            self.actions.push_back(RoleAction::TearShared);
                        }
                        self.actions.push_back(RoleAction::HoldForReplica { epoch });
                        self.actions.push_back(RoleAction::SendPaired { epoch });
                    }
                }
            }
            RoleInput::PairedAcked => {
                if let State::Master(m) = &mut self.state {
                    if m.pairing == Pairing::Holding && m.broken.is_none() {
                        m.pairing = Pairing::Paired;
                    }
                }
            }
            RoleInput::PairedIn(epoch) => {
                if let State::Backup { paired_in } = &mut self.state {
                    if epoch == self.epoch {
                        *paired_in = Some(epoch);
                    }
                }
            }
            RoleInput::StoreStale => {
                if let State::Backup { paired_in } = &mut self.state {
                    *paired_in = None;
                }
            }
            RoleInput::Handover(epoch) => {
                // This may be an old message, and the master alone since.
                let fresh = self.absence.unheard().is_some_and(|time| time < self.cfg.solo_after);
                if self.full() && epoch == self.epoch && self.carrier && fresh {
                    self.promote(2, true);
                }
            }
            RoleInput::SwitchoverRequested => {
                if self.can_switch_over().is_ok() {
                    let (epoch, awake) = (self.epoch, self.absence.awake());
                    if let State::Master(m) = &mut self.state {
                        m.handover = Some(awake);
                        m.handed_over = true;
                        self.actions.push_back(RoleAction::StartHandover { epoch });
                    }
                }
            }
            RoleInput::HandoverAcked(epoch) => {
                if matches!(self.state, State::Master(_)) && epoch > self.epoch {
                    self.partner_epoch = self.partner_epoch.max(epoch);
                    self.demote(epoch);
                }
            }
            RoleInput::ToldAlone => {
                if let State::Master(m) = &mut self.state {
                    m.shared = None;
                    m.forked = false;
                }
            }
        }
        self.decide();
    }

    /// To be called at [`RoleMachine::poll_timeout`], after the inputs that were waiting.
    pub fn handle_timeout(&mut self, now: Now) {
        self.advance(now);
        self.decide();
    }

    /// When to call [`RoleMachine::handle_timeout`]; at most a heartbeat interval away, because long gaps
    /// are how the machine knows that it was paused.
    pub fn poll_timeout(&self) -> Option<Now> {
        if !self.cfg.has_partner {
            return None;
        }
        let cfg = &self.cfg;
        let mut next = self.absence.awake() + cfg.heartbeat;
        let mut at = |t: Duration| {
            if t > self.absence.awake() {
                next = next.min(t);
            }
        };
        at(self.heard + self.suspicion());
        at(self.heard + cfg.solo_after);
        at(self.absence.listens_until());
        self.probe_at.into_iter().for_each(&mut at);
        self.evidence.into_iter().for_each(|t| at(t + cfg.solo_after));
        self.fenced_since.into_iter().for_each(|t| at(t + self.suspicion()));
        if let State::Master(m) = &self.state {
            m.broken.into_iter().for_each(|t| at(t + cfg.solo_after));
            m.handover.into_iter().for_each(|t| at(t + cfg.solo_after + self.suspicion()));
        }
        Some(self.absence.when(next))
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<RoleAction> {
        self.actions.pop_front()
    }

    /// What this member is.
    pub fn role(&self) -> Role {
        match &self.state {
            State::Starting { .. } => Role::Starting,
            State::Backup { .. } => Role::Backup,
            State::Master(m) if m.fenced => Role::Fenced,
            State::Master(_) => Role::Master,
        }
    }

    /// The epoch claimed (master), followed (backup) or known. It never falls, and must be on disk before
    /// a heartbeat names it.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether the network may be told that the virtual IP is ours: not by a master whose partner may have it by now,
    /// because it was away for so long, or has not heard its backup lately.
    pub fn announces(&self) -> bool {
        let State::Master(m) = &self.state else { return false };
        let in_contact = m.stalled.is_none() && self.since_heard() * 2 < self.suspicion();
        !m.fenced && (!self.cfg.has_partner || self.absence.would_know_of_a_takeover() && (!m.held() || in_contact))
    }

    /// What our heartbeats and hellos say: the partner's [`PartnerView`] of us.
    pub fn view(&self) -> PartnerView {
        let paired = matches!(&self.state, State::Master(m) if m.pairing == Pairing::Paired && m.broken.is_none());
        PartnerView { role: self.role(), epoch: self.epoch, paired, full_replica: self.full() }
    }

    /// A failure of the master would be survived: as master, the backup is paired and in contact; as backup,
    /// the replica is full.
    pub fn protected(&self) -> bool {
        match &self.state {
            State::Master(m) => m.pairing == Pairing::Paired && m.broken.is_none() && !m.fenced && !self.suspected(),
            _ => self.full(),
        }
    }

    /// What may leave for a peer now. The actions say the same, one change at a time.
    pub fn release(&self) -> Release {
        match &self.state {
            State::Master(m) if m.fenced => Release::Nothing,
            State::Master(m) if m.held() => Release::Acknowledged,
            State::Master(_) => Release::Freely,
            _ => Release::Nothing,
        }
    }

    /// What the partner said last, however long ago.
    pub fn partner(&self) -> Option<PartnerView> {
        self.partner
    }

    /// The partner is not heard, or said that it ended.
    pub fn partner_suspected(&self) -> bool {
        self.suspected()
    }

    /// Heartbeats get through in both directions.
    pub fn in_contact(&self) -> bool {
        !self.suspected() && self.absence.unheard().is_some_and(|time| time <= self.suspicion())
    }

    /// A paired master waits for its backup: nothing leaves that is not acknowledged.
    pub fn stalled(&self) -> bool {
        matches!(&self.state, State::Master(m) if m.stalled.is_some())
    }

    /// Whether [`RoleInput::SwitchoverRequested`] would be followed, or why not.
    pub fn can_switch_over(&self) -> Result<(), &'static str> {
        let State::Master(m) = &self.state else { return Err("this member is not the master") };
        if m.handover.is_some() {
            return Err("a switchover is under way");
        }
        if !self.cfg.has_partner {
            return Err("there is no partner");
        }
        if !self.protected() || !self.link_up {
            return Err("the partner is not paired");
        }
        Ok(())
    }

    fn suspicion(&self) -> Duration {
        self.cfg.suspicion()
    }

    fn since_heard(&self) -> Duration {
        self.absence.awake() - self.heard
    }

    fn full(&self) -> bool {
        matches!(self.state, State::Backup { paired_in } if paired_in == Some(self.epoch))
    }

    fn suspected(&self) -> bool {
        let fenced = self.fenced_since.is_some_and(|t| self.absence.awake() - t >= self.suspicion());
        self.absence.has_listened() && (self.accused || self.since_heard() >= self.suspicion() || fenced)
    }

    fn partner_is(&self, role: Role) -> bool {
        self.partner.is_some_and(|p| p.role == role)
    }

    /// Tells the time to a machine whose actions nobody can heed now: whoever is busy for long must not announce what
    /// somebody else may have by now.
    pub fn note_time(&mut self, now: Now) {
        self.advance(now);
    }

    fn advance(&mut self, now: Now) {
        if self.absence.advance(now, &self.cfg) {
            // What was asked before the pause is no evidence after it.
            self.probe_at = None;
            self.asking = None;
            self.confirmed = false;
        }
    }

    /// As backup: the master may have gone solo meanwhile.
    fn overtaken(&self) -> bool {
        self.absence.is_longer_than(self.cfg.solo_after)
    }

    fn heartbeat(&mut self, view: PartnerView) {
        if view.epoch < self.partner_epoch {
            return;
        }
        self.partner_epoch = view.epoch;
        let is_master = matches!(view.role, Role::Master | Role::Fenced);
        let was_master = self.partner_is(Role::Master) || self.partner_is(Role::Fenced);
        self.partner = Some(view);
        self.heard = self.absence.awake();
        self.accused = false;
        self.bye = false;
        self.ended = false;
        self.fenced_since = match view.role {
            Role::Fenced => self.fenced_since.or(Some(self.absence.awake())),
            _ => None,
        };
        match self.state {
            State::Starting { .. } => self.heard_while_starting(view),
            State::Backup { .. } => {
                if is_master {
                    if view.epoch > self.epoch {
                        self.follow(view.epoch);
                    }
                    return;
                }
                // The partner's mastership is over, whatever became of it. A higher epoch says that it went
                // on without us before it ended.
                self.epoch = self.epoch.max(view.epoch);
                if self.full() {
                    self.accused = true;
                } else {
                    self.state = State::Starting { since: self.absence.awake() };
                    self.heard_while_starting(view);
                }
            }
            State::Master(m) => {
                if view.epoch > self.epoch {
                    // Even if the partner is no longer master: it was, after us, and knows of more than we do.
                    self.demote(view.epoch);
                    return;
                }
                if is_master || was_master {
                    self.actions.push_back(RoleAction::DefendVip);
                }
                self.note_fork(view);
                if m.fenced && self.carrier {
                    self.unfence();
                }
                let fenced = self.role() == Role::Fenced;
                // Over the connection of a life that has a replica nobody starts: that was said before.
                let anew = !self.link_up || m.link_lost;
                let gone = view.role == Role::Starting && m.held() && anew;
                let follows = view.role == Role::Backup && m.announced && view.epoch == self.epoch;
                if !fenced && (gone || follows) {
                    self.go_solo(false);
                }
            }
        }
    }

    /// As master: did the partner go on by itself from where we did, and can it still say for which sessions?
    fn note_fork(&mut self, view: PartnerView) {
        let State::Master(m) = &mut self.state else { return };
        let alone = m.shared.is_some_and(|old| view.epoch > old && view.epoch.member != self.cfg.me);
        m.forked |= alone && view.epoch < self.epoch;
        if m.forked && view.role == Role::Starting {
            m.forked = false;
            m.shared = None;
            self.actions.push_back(RoleAction::TearShared);
        }
    }

    fn heard_while_starting(&mut self, view: PartnerView) {
        match view.role {
            // A master below what we know yields when it hears us; until then there is none to follow.
            Role::Master | Role::Fenced if view.epoch >= self.epoch => self.follow(view.epoch),
            Role::Master | Role::Fenced => {}
            Role::Starting | Role::Backup => {
                self.epoch = self.epoch.max(view.epoch);
                let both = view.role == Role::Starting;
                if both && self.cfg.preferred == self.cfg.me && self.carrier {
                    self.promote(1, false);
                }
            }
        }
    }

    fn link_down(&mut self, reset: bool) {
        // A refusal between punctual heartbeats says something of the listener, nothing of the process.
        let telling = self.link_up || self.since_heard() > self.cfg.heartbeat * 3 / 2;
        self.accused |= reset && telling && !self.cfg.asynchronous;
        self.ended |= reset && self.link_up && !self.absence.is_away() && self.since_heard() < self.suspicion();
        self.link_up = false;
        let awake = self.absence.awake();
        if let State::Master(m) = &mut self.state {
            if m.held() {
                m.broken = m.broken.or(Some(awake));
                m.link_lost = true;
            } else {
                m.pairing = Pairing::Solo;
            }
        }
    }

    fn reach(&mut self, somebody: bool) {
        if self.probe_at.is_none() || (somebody && !self.carrier) {
            return;
        }
        if !somebody {
            self.absence.note_cut_off();
            self.evidence = None;
            if !matches!(self.state, State::Master(_)) {
                self.absence.listen(self.suspicion());
            }
            return;
        }
        let back = self.absence.back();
        match self.state {
            State::Starting { .. } => self.promote(1, false),
            State::Backup { .. } if self.full() => {
                // Who comes back into reach may hear others a moment before its master.
                let listened = !self.absence.is_away() || self.absence.awake() - back >= self.suspicion();
                if self.suspected() && listened && !self.overtaken() {
                    self.close_link();
                    self.promote(2, true);
                }
            }
            State::Backup { .. } => {
                self.close_link();
                self.promote(1, false);
            }
            State::Master(_) => {
                self.evidence = self.evidence.or(Some(self.absence.awake()));
                self.confirmed = true;
            }
        }
    }

    fn carrier(&mut self, up: bool) {
        let was = std::mem::replace(&mut self.carrier, up);
        if was == up {
            return;
        }
        self.absence.note_cut_off();
        self.evidence = None;
        let master = matches!(self.state, State::Master(_));
        if !up && master {
            self.fence();
        } else if up && !self.cfg.has_partner {
            self.unfence();
        } else if up && !master {
            self.absence.listen(self.suspicion());
        }
    }

    /// Everything that depends on time.
    fn decide(&mut self) {
        if !self.cfg.has_partner {
            return;
        }
        let probing = match self.state {
            State::Starting { since } => {
                let alone = self.absence.awake() - since.max(self.heard) >= self.cfg.start_wait;
                let leaderless = self.absence.awake() - since >= self.cfg.start_wait * 2;
                (alone || leaderless) && self.absence.has_listened()
            }
            State::Backup { .. } => self.decide_as_backup(),
            State::Master(m) => self.decide_as_master(m),
        };
        if !probing || !self.carrier {
            self.probe_at = None;
            self.asking = None;
            return;
        }
        self.asking = self.asking.or(Some(self.absence.awake()));
        if self.probe_at.is_none_or(|at| self.absence.awake() >= at) {
            self.probe_at = Some(self.absence.awake() + self.cfg.heartbeat);
            self.actions.push_back(RoleAction::ProbeReach);
        }
    }

    fn decide_as_backup(&mut self) -> bool {
        if self.full() {
            if self.suspected() && self.overtaken() {
                self.state = State::Backup { paired_in: None };
                self.close_link();
            } else {
                return self.suspected() || self.absence.is_away();
            }
        }
        let fenced = self.fenced_since.map_or(Duration::ZERO, |t| self.absence.awake() - t);
        let unserved = self.since_heard().max(fenced);
        // A master that is only slow still has sessions, which all end if we claim an epoch without them.
        let patience = self.cfg.start_wait * if self.accused { 2 } else { 5 };
        unserved >= patience && self.absence.has_listened()
    }

    fn decide_as_master(&mut self, mut m: Master) -> bool {
        let cfg = &self.cfg;
        let suspected = self.suspected();
        if m.handover.is_some_and(|t| self.absence.awake() - t >= cfg.solo_after + self.suspicion()) {
            m.handover = None;
            m.broken = m.broken.or(Some(self.absence.awake().saturating_sub(cfg.solo_after)));
        }
        let lost = m.held() && m.handover.is_none() && (suspected || m.broken.is_some());
        if lost && m.stalled.is_none() {
            self.evidence = None;
            self.actions.push_back(RoleAction::Stall);
        }
        m.stalled = lost.then(|| m.stalled.unwrap_or(self.absence.awake()));
        self.state = State::Master(m);

        if m.fenced {
            let settled = self.in_reach().is_some_and(|t| self.absence.awake() - t >= self.cfg.solo_after);
            if self.carrier && suspected && settled {
                self.unfence();
                self.go_solo(true);
                return false;
            }
            return true;
        }
        if lost && suspected {
            if !self.bye && self.since_heard() < self.cfg.solo_after {
                return true;
            }
            if let Some(since) = self.in_reach() {
                // Who comes back into reach may hear others a moment before its partner, which took over.
                if !self.absence.is_away() || self.bye || self.ended || self.absence.awake() - since >= self.suspicion() {
                    self.go_solo(true);
                    return false;
                }
                return true;
            }
            // The probe gets its time, even when the wait was over (goodbye) or spent away (pause).
            let asked = self.asking.is_some_and(|t| self.absence.awake() - t >= self.cfg.heartbeat * 2);
            if asked && self.since_heard() >= self.cfg.solo_after {
                self.fence();
            }
            return true;
        }
        if lost && !m.announced {
            let waited = m.broken.is_some_and(|t| self.absence.awake() - t >= self.cfg.solo_after);
            let follows = self.partner_is(Role::Backup) && self.partner_epoch == self.epoch;
            if follows && (waited || self.link_up) {
                self.epoch = self.claim(1);
                m.announced = true;
                self.state = State::Master(m);
                self.actions.push_back(RoleAction::Announce { epoch: self.epoch });
            }
        }
        let ready = self.link_up && self.partner_is(Role::Backup) && self.partner_epoch == self.epoch;
        // A pair that hears no heartbeats would suspect each other as soon as it is one.
        if m.pairing == Pairing::Solo && ready && self.in_contact() {
            m.pairing = Pairing::Snapshot;
            self.state = State::Master(m);
            self.actions.push_back(RoleAction::StartPairing);
        }
        false
    }

    /// Since when somebody is in reach, if that still holds.
    fn in_reach(&self) -> Option<Duration> {
        self.evidence.filter(|_| self.confirmed)
    }

    fn claim(&self, step: u64) -> Epoch {
        Epoch { number: self.epoch.number + step, member: self.cfg.me }
    }

    fn close_link(&mut self) {
        if std::mem::take(&mut self.link_up) {
            self.actions.push_back(RoleAction::CloseLink);
        }
    }

    fn promote(&mut self, step: u64, take_over: bool) {
        let old = self.epoch;
        self.epoch = self.claim(step);
        self.state = State::Master(Master { shared: take_over.then_some(old), ..Master::SOLO });
        self.evidence = None;
        self.probe_at = None;
        self.actions.push_back(RoleAction::BecomeMaster { epoch: self.epoch, take_over, old });
    }

    fn follow(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        self.state = State::Backup { paired_in: None };
        self.actions.push_back(RoleAction::BecomeBackup { epoch });
    }

    fn demote(&mut self, epoch: Epoch) {
        // After a switchover the same link serves in the other direction.
        if !matches!(self.state, State::Master(m) if m.handover.is_some()) {
            self.close_link();
        }
        self.epoch = epoch;
        self.state = State::Backup { paired_in: None };
        self.evidence = None;
        self.actions.push_back(RoleAction::Demote { epoch });
    }

    fn go_solo(&mut self, out_of_contact: bool) {
        let State::Master(m) = self.state else { return };
        // A takeover that began during a pause would have been heard by now, if its member still lives.
        let patience = if self.absence.is_cut_off() { self.suspicion() } else { self.cfg.solo_after };
        let doubtful = out_of_contact && m.held() && (self.absence.is_longer_than(patience) && !self.ended || m.handed_over);
        let mut alone = Master { shared: m.shared, forked: m.forked, ..Master::SOLO };
        if m.held() {
            // Who follows us, or starts anew, has given its replica up.
            let announced = u64::from(m.announced);
            alone.shared = out_of_contact.then(|| Epoch { number: self.epoch.number - announced, ..self.epoch });
        }
        if !m.announced {
            self.epoch = self.claim(1);
        }
        if !m.link_lost {
            self.close_link();
        }
        self.state = State::Master(alone);
        self.evidence = None;
        self.actions.push_back(RoleAction::GoSolo { epoch: self.epoch, doubtful });
    }

    fn fence(&mut self) {
        self.absence.note_cut_off();
        self.evidence = None;
        if let State::Master(m) = &mut self.state {
            if !std::mem::replace(&mut m.fenced, true) {
                self.actions.push_back(RoleAction::Fence);
            }
        }
    }

    fn unfence(&mut self) {
        self.evidence = None;
        if let State::Master(m) = &mut self.state {
            if std::mem::take(&mut m.fenced) {
                self.actions.push_back(RoleAction::Unfence);
            }
        }
    }
}
