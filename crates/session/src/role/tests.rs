//! One machine, step by step, against a partner that the test plays.

use super::*;

const A: u8 = 0;
const B: u8 = 1;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn ep(number: u64, member: u8) -> Epoch {
    Epoch { number, member }
}

fn says(role: Role, epoch: Epoch) -> PartnerView {
    PartnerView { role, epoch, paired: false, full_replica: false }
}

fn config(me: u8) -> RoleConfig {
    RoleConfig {
        me,
        has_partner: true,
        preferred: A,
        heartbeat: ms(20),
        misses: 3,
        solo_after: ms(100),
        start_wait: ms(500),
        asynchronous: false,
    }
}

struct Lone {
    machine: RoleMachine,
    now: Now,
    /// What the partner says every heartbeat, and how old what it echoes is.
    partner: Option<PartnerView>,
    echo: Option<Duration>,
    next_beat: Now,
    /// How probes are answered; none: not at all.
    reach: Option<bool>,
    log: Vec<RoleAction>,
}

impl Lone {
    fn start(me: u8, last: Epoch) -> Self {
        let machine = RoleMachine::new(config(me), last, ms(1000));
        Lone {
            machine,
            now: ms(1000),
            partner: None,
            echo: Some(ms(10)),
            next_beat: ms(1000),
            reach: Some(true),
            log: Vec::new(),
        }
    }

    /// A backup (member b) of `1.0`, its replica full.
    fn full_backup() -> Self {
        let mut t = Lone::start(B, Epoch::default());
        t.partner = Some(says(Role::Master, ep(1, A)));
        t.run(20);
        t.put(RoleInput::LinkUp);
        t.put(RoleInput::PairedIn(ep(1, A)));
        t.run(100);
        assert!(t.machine.protected());
        t.log.clear();
        t
    }

    /// A paired master (member a) of `1.0`.
    fn paired_master() -> Self {
        let mut t = Lone::start(A, Epoch::default());
        t.partner = Some(says(Role::Starting, Epoch::default()));
        t.run(1);
        t.partner = Some(says(Role::Backup, ep(1, A)));
        t.run(20);
        t.put(RoleInput::LinkUp);
        t.put(RoleInput::ReplicaFull);
        assert!(!t.machine.protected());
        t.put(RoleInput::PairedAcked);
        t.run(100);
        assert!(t.machine.protected());
        assert_eq!(
            t.take(),
            [
                RoleAction::BecomeMaster { epoch: ep(1, A), take_over: false, old: ep(0, 0) },
                RoleAction::StartPairing,
                RoleAction::HoldForReplica { epoch: ep(1, A) },
                RoleAction::SendPaired { epoch: ep(1, A) },
            ]
        );
        t
    }

    fn hear(&mut self, view: PartnerView) {
        self.put(RoleInput::Heartbeat(view));
        if let Some(age) = self.echo {
            self.put(RoleInput::Echo(self.now - age));
        }
    }

    fn put(&mut self, input: RoleInput) {
        self.machine.handle(self.now, input);
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            self.log.push(action);
            if action == RoleAction::ProbeReach {
                if let Some(answer) = self.reach {
                    self.machine.handle(self.now, RoleInput::Reach(answer));
                }
            }
        }
    }

    fn run(&mut self, millis: u64) {
        let end = self.now + ms(millis);
        loop {
            let timer = self.machine.poll_timeout().expect("has a partner");
            let beat = if self.partner.is_some() { self.next_beat } else { Duration::MAX };
            let next = timer.min(beat);
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            if beat <= timer {
                self.next_beat = self.now + ms(20);
                self.hear(self.partner.unwrap());
            } else {
                self.machine.handle_timeout(self.now);
                self.settle();
            }
        }
        self.now = end;
    }

    /// The machine is not run for so long.
    fn pause(&mut self, millis: u64) {
        self.now += ms(millis);
        self.next_beat = self.next_beat.max(self.now + ms(15));
    }

    /// What happened, without the probes and what concerns the network only.
    fn take(&mut self) -> Vec<RoleAction> {
        let log = std::mem::take(&mut self.log);
        log.into_iter().filter(|a| !matches!(a, RoleAction::ProbeReach | RoleAction::DefendVip)).collect()
    }
}

const TAKE_OVER: RoleAction =
    RoleAction::BecomeMaster { epoch: Epoch { number: 3, member: B }, take_over: true, old: Epoch { number: 1, member: A } };

fn solo(number: u64, doubtful: bool) -> RoleAction {
    RoleAction::GoSolo { epoch: ep(number, A), doubtful }
}

#[test]
fn a_member_without_partner_is_master_at_once() {
    let mut cfg = config(A);
    cfg.has_partner = false;
    let mut m = RoleMachine::new(cfg, ep(4, A), ms(0));
    assert_eq!(m.poll_action(), Some(RoleAction::BecomeMaster { epoch: ep(5, A), take_over: false, old: ep(4, A) }));
    assert_eq!((m.role(), m.release(), m.poll_timeout()), (Role::Master, Release::Freely, None));
    m.handle(ms(1), RoleInput::Carrier(false));
    assert_eq!((m.poll_action(), m.release()), (Some(RoleAction::Fence), Release::Nothing));
    m.handle(ms(2), RoleInput::Carrier(true));
    assert_eq!((m.poll_action(), m.release()), (Some(RoleAction::Unfence), Release::Freely));
}

#[test]
fn of_two_that_start_the_preferred_is_master() {
    let mut a = Lone::start(A, ep(3, A));
    a.partner = Some(says(Role::Starting, ep(7, B)));
    a.run(1);
    assert_eq!(a.take(), [RoleAction::BecomeMaster { epoch: ep(8, A), take_over: false, old: ep(7, B) }]);
    let mut b = Lone::start(B, ep(7, B));
    b.partner = Some(says(Role::Starting, ep(3, A)));
    b.run(100);
    assert_eq!(b.machine.role(), Role::Starting);
    b.partner = Some(says(Role::Master, ep(8, A)));
    b.run(20);
    assert_eq!(b.take(), [RoleAction::BecomeBackup { epoch: ep(8, A) }]);
}

#[test]
fn a_preferred_member_without_carrier_does_not_start_as_master() {
    let mut a = Lone::start(A, ep(0, 0));
    a.put(RoleInput::Carrier(false));
    a.partner = Some(says(Role::Starting, ep(0, 0)));
    a.run(3000);
    assert_eq!(a.machine.role(), Role::Starting);
    // The other one waits longer, because it hears somebody.
    let mut b = Lone::start(B, ep(0, 0));
    b.partner = Some(says(Role::Starting, ep(0, 0)));
    b.run(990);
    assert_eq!(b.machine.role(), Role::Starting);
    b.run(60);
    assert_eq!(b.machine.role(), Role::Master);
}

#[test]
fn a_lonely_start_needs_reach() {
    let mut t = Lone::start(B, ep(2, B));
    t.reach = Some(false);
    t.run(5000);
    assert_eq!(t.machine.role(), Role::Starting);
    t.put(RoleInput::Carrier(false));
    t.reach = Some(true);
    t.run(5000);
    assert_eq!(t.machine.role(), Role::Starting);
    t.put(RoleInput::Carrier(true));
    t.run(40);
    assert_eq!(t.machine.role(), Role::Starting, "the partner gets its chance to be heard first");
    t.run(60);
    assert_eq!(t.take(), [RoleAction::BecomeMaster { epoch: ep(3, B), take_over: false, old: ep(2, B) }]);
}

#[test]
fn a_full_backup_takes_over_after_misses() {
    let mut t = Lone::full_backup();
    t.partner = None;
    t.run(40);
    assert_eq!(t.take(), []);
    t.run(41);
    assert_eq!(t.take(), [RoleAction::CloseLink, TAKE_OVER]);
    assert_eq!(t.machine.release(), Release::Freely);
}

#[test]
fn a_reset_or_a_goodbye_is_suspected_at_once() {
    for input in [RoleInput::LinkDown { reset: true }, RoleInput::PartnerBye] {
        let mut t = Lone::full_backup();
        t.put(input);
        assert!(t.take().contains(&TAKE_OVER), "{input:?}");
    }
    let mut t = Lone::full_backup();
    t.put(RoleInput::LinkDown { reset: false });
    t.run(500);
    assert_eq!(t.take(), [], "heartbeats go on");
    t.put(RoleInput::LinkDown { reset: true });
    assert_eq!(t.take(), [], "a refused connection between heartbeats proves nothing");
}

#[test]
fn heartbeats_that_come_back_cancel_the_takeover() {
    let mut t = Lone::full_backup();
    let partner = t.partner.take();
    t.reach = None;
    t.run(75);
    assert!(t.log.contains(&RoleAction::ProbeReach));
    t.partner = partner;
    t.run(20);
    t.put(RoleInput::Reach(true));
    assert_eq!(t.take(), []);
    assert!(t.machine.protected());
}

#[test]
fn probes_are_repeated_until_answered() {
    let mut t = Lone::full_backup();
    t.partner = None;
    t.reach = None;
    t.run(61);
    t.log.clear();
    t.run(100);
    assert_eq!(t.log, [RoleAction::ProbeReach; 5]);
    t.put(RoleInput::Reach(true));
    assert_eq!(t.take(), [RoleAction::CloseLink, TAKE_OVER]);
}

#[test]
fn a_backup_that_was_cut_off_never_takes_over() {
    for carrier in [false, true] {
        let mut t = Lone::full_backup();
        t.partner = None;
        t.reach = Some(false);
        if carrier {
            t.put(RoleInput::Carrier(false));
        }
        t.run(3000);
        assert_eq!(t.machine.role(), Role::Backup);
        t.reach = Some(true);
        t.put(RoleInput::Carrier(true));
        t.run(200);
        // The master may have gone solo: with an empty store at most.
        assert!(!t.take().contains(&TAKE_OVER));
        assert!(!t.machine.protected());
        assert_eq!(t.machine.role(), Role::Master);
    }
}

#[test]
fn a_backup_that_was_cut_off_and_hears_its_master_again_is_still_full() {
    let mut t = Lone::full_backup();
    let partner = t.partner.take();
    t.reach = Some(false);
    t.run(90);
    t.partner = partner;
    t.reach = Some(true);
    t.run(100);
    assert!(t.machine.protected());
    t.partner = None;
    t.run(81);
    assert!(t.take().contains(&TAKE_OVER));
}

#[test]
fn a_paused_backup_listens_before_it_acts() {
    let mut t = Lone::full_backup();
    t.pause(5000);
    t.machine.handle_timeout(t.now);
    t.settle();
    t.run(100);
    assert_eq!(t.take(), []);
    assert!(t.machine.protected());
    // And if the master is silent then, it may have gone solo meanwhile.
    t.partner = None;
    t.pause(5000);
    t.run(200);
    assert_eq!(t.take(), [RoleAction::CloseLink]);
    assert!(!t.machine.protected());
}

#[test]
fn heartbeats_that_queued_during_a_pause_are_no_news() {
    // Paused, then cut off: neither alone for so long that the master may have gone solo, but both in a row.
    for (paused, carrier) in [(60, false), (60, true), (90, false), (50, false)] {
        let mut t = Lone::full_backup();
        t.machine.cfg.solo_after = ms(200);
        t.echo = None;
        t.pause(paused);
        for _ in 0..paused / 20 {
            t.put(RoleInput::Heartbeat(says(Role::Master, ep(1, A))));
            t.put(RoleInput::Echo(t.now - ms(paused) - ms(10)));
        }
        t.partner = None;
        t.reach = Some(false);
        if carrier {
            t.put(RoleInput::Carrier(false));
        }
        t.run(150);
        t.reach = Some(true);
        t.put(RoleInput::Carrier(true));
        t.run(500);
        assert!(!t.log.contains(&TAKE_OVER), "paused for {paused} ms");
        assert!(!t.machine.protected());
    }
}

#[test]
fn a_backup_that_was_cut_off_unnoticed_after_a_pause_does_not_take_over() {
    let mut t = Lone::full_backup();
    let away = t.now;
    t.pause(55);
    // Nobody answers, nor does anybody say so.
    t.partner = None;
    t.reach = None;
    t.put(RoleInput::Heartbeat(says(Role::Master, ep(1, A))));
    t.put(RoleInput::Echo(away - ms(10)));
    t.run(65);
    t.reach = Some(true);
    t.run(200);
    assert!(!t.take().contains(&TAKE_OVER));
}

#[test]
fn a_backup_that_was_away_for_a_moment_takes_over_one_suspicion_after_evidence() {
    let mut t = Lone::full_backup();
    t.partner = None;
    t.pause(40);
    t.put(RoleInput::Reach(true));
    t.machine.handle_timeout(t.now);
    t.settle();
    assert!(t.log.contains(&RoleAction::ProbeReach), "it asks at once where it is");
    t.run(55);
    assert_eq!(t.take(), []);
    t.run(30);
    assert_eq!(t.take(), [RoleAction::CloseLink, TAKE_OVER]);
    // Neither is news what a master says that has not heard us yet; nor does it make us ask for ever.
    let mut t = Lone::full_backup();
    t.pause(40);
    t.run(100);
    t.log.clear();
    t.run(200);
    assert_eq!(t.log, []);
    t.partner = None;
    t.run(90);
    assert_eq!(t.take(), [RoleAction::CloseLink, TAKE_OVER]);
}

#[test]
fn a_backup_that_its_master_has_not_heard_for_long_refuses_an_old_handover() {
    let mut t = Lone::full_backup();
    t.echo = None;
    t.run(80);
    t.put(RoleInput::Handover(ep(1, A)));
    assert!(t.take().contains(&TAKE_OVER));
    let mut t = Lone::full_backup();
    t.echo = None;
    t.run(110);
    t.put(RoleInput::Handover(ep(1, A)));
    assert_eq!(t.take(), []);
}

#[test]
fn a_replica_of_an_older_epoch_is_stale() {
    let mut t = Lone::full_backup();
    t.partner = Some(says(Role::Master, ep(2, A)));
    t.run(20);
    assert_eq!(t.take(), [RoleAction::BecomeBackup { epoch: ep(2, A) }]);
    assert!(!t.machine.protected());
    t.put(RoleInput::PairedIn(ep(1, A)));
    assert!(!t.machine.protected(), "late");
    t.partner = None;
    t.run(2400);
    assert_eq!(t.machine.role(), Role::Backup);
    t.run(200);
    let empty = RoleAction::BecomeMaster { epoch: ep(3, B), take_over: false, old: ep(2, A) };
    assert_eq!(t.take(), [RoleAction::CloseLink, empty]);
}

#[test]
fn a_stale_store_does_not_promote() {
    let mut t = Lone::full_backup();
    t.put(RoleInput::StoreStale);
    t.partner = None;
    t.run(500);
    assert_eq!(t.machine.role(), Role::Backup);
}

#[test]
fn a_master_that_restarted_is_replaced() {
    let mut t = Lone::full_backup();
    t.put(RoleInput::Heartbeat(says(Role::Starting, ep(1, A))));
    assert!(t.take().contains(&TAKE_OVER));
    // Unless it had gone on without us before it ended.
    let mut t = Lone::full_backup();
    t.put(RoleInput::Heartbeat(says(Role::Starting, ep(2, A))));
    assert_eq!((t.take(), t.machine.role()), (vec![], Role::Starting));
    assert_eq!(t.machine.epoch(), ep(2, A));
}

#[test]
fn a_fenced_master_is_replaced_after_misses() {
    let mut t = Lone::full_backup();
    t.partner = Some(says(Role::Fenced, ep(1, A)));
    t.run(40);
    assert_eq!(t.take(), []);
    t.run(60);
    assert!(t.take().contains(&TAKE_OVER));
}

#[test]
fn heartbeats_of_older_epochs_are_out_of_date() {
    let mut t = Lone::full_backup();
    t.put(RoleInput::Heartbeat(says(Role::Starting, ep(0, 0))));
    assert_eq!(t.take(), []);
    assert!(t.machine.protected());
}

#[test]
fn a_paired_master_goes_solo_after_solo_after_with_evidence() {
    let mut t = Lone::paired_master();
    t.partner = None;
    t.run(81);
    assert_eq!(t.take(), [RoleAction::Stall]);
    assert_eq!(t.machine.release(), Release::Acknowledged);
    assert!(t.machine.stalled() && !t.machine.protected());
    t.run(40);
    assert_eq!(t.take(), [RoleAction::CloseLink, solo(2, false)]);
    assert_eq!(t.machine.release(), Release::Freely);
}

#[test]
fn evidence_from_before_the_suspicion_does_not_count() {
    let mut t = Lone::paired_master();
    t.put(RoleInput::Reach(true));
    t.partner = None;
    t.reach = None;
    t.run(125);
    assert_eq!(t.take(), [RoleAction::Stall, RoleAction::Fence]);
}

#[test]
fn a_master_whose_partner_returns_in_time_goes_on() {
    let mut t = Lone::paired_master();
    let partner = t.partner.take();
    t.run(85);
    t.partner = partner;
    t.run(20);
    assert_eq!(t.take(), [RoleAction::Stall]);
    assert!(t.machine.protected());
}

#[test]
fn a_goodbye_of_the_backup_spares_the_wait() {
    let mut t = Lone::paired_master();
    t.partner = None;
    t.reach = None;
    t.put(RoleInput::PartnerBye);
    t.run(30);
    assert_eq!(t.take(), [RoleAction::Stall], "without evidence it waits");
    t.put(RoleInput::Reach(true));
    assert_eq!(t.take(), [RoleAction::CloseLink, solo(2, false)]);
}

#[test]
fn a_master_that_was_away_does_not_take_old_heartbeats_for_news() {
    // Paused, and cut off for the last part of it: its backup took over when it heard nothing more.
    let mut t = Lone::paired_master();
    let away = t.now;
    t.pause(240);
    t.put(RoleInput::Heartbeat(says(Role::Backup, ep(1, A))));
    t.put(RoleInput::Echo(away - ms(10)));
    t.partner = None;
    t.reach = Some(false);
    t.run(70);
    t.reach = Some(true);
    t.run(300);
    assert!(matches!(t.take()[..], [RoleAction::Stall, .., RoleAction::GoSolo { doubtful: true, .. }]));
}

#[test]
fn a_pair_that_hears_no_heartbeats_is_none() {
    let mut t = Lone::start(A, ep(0, 0));
    t.run(600);
    t.log.clear();
    t.put(RoleInput::LinkUp);
    // Over the link, as often as it likes; and datagrams that get through in one direction only.
    t.echo = None;
    t.partner = Some(says(Role::Backup, ep(1, A)));
    t.run(1000);
    assert_eq!(t.take(), []);
    assert_eq!(t.machine.release(), Release::Freely);
    t.echo = Some(ms(500));
    t.run(1000);
    assert_eq!(t.take(), []);
    t.echo = Some(ms(10));
    t.run(40);
    assert_eq!(t.take(), [RoleAction::StartPairing]);
}

#[test]
fn without_waiting_a_broken_connection_is_no_death() {
    let mut t = Lone::full_backup();
    t.machine.cfg.asynchronous = true;
    t.put(RoleInput::LinkDown { reset: true });
    t.run(200);
    assert_eq!(t.take(), [], "heartbeats go on");
    // Nor is one when they stop: the master may release for as long as a suspicion takes since it was heard.
    t.partner = None;
    t.next_beat = t.now;
    t.run(1);
    t.put(RoleInput::LinkUp);
    t.put(RoleInput::LinkDown { reset: true });
    t.put(RoleInput::LinkDown { reset: true });
    t.run(35);
    assert_eq!(t.take(), []);
    t.run(60);
    assert_eq!(t.take(), [TAKE_OVER]);
    // A goodbye is one, for whoever says it releases nothing more.
    let mut t = Lone::full_backup();
    t.machine.cfg.asynchronous = true;
    t.put(RoleInput::PartnerBye);
    assert!(t.take().contains(&TAKE_OVER));
}

/// A master (member b) of `3.1`, which it took over from `1.0`; the old master went on alone as `2.0`.
fn forked() -> Lone {
    let mut t = Lone::full_backup();
    t.partner = None;
    t.run(100);
    assert_eq!(t.take().last(), Some(&TAKE_OVER));
    t.hear(says(Role::Master, ep(2, A)));
    assert_eq!(t.take(), []);
    t
}

#[test]
fn what_a_partner_released_alone_and_cannot_name_any_more_is_torn_with_the_rest() {
    // It tells.
    let mut t = forked();
    t.hear(says(Role::Backup, ep(3, B)));
    t.put(RoleInput::LinkUp);
    t.put(RoleInput::ToldAlone);
    t.put(RoleInput::ReplicaFull);
    assert!(!t.take().contains(&RoleAction::TearShared));
    // Its process ended before, whether it followed us already or not.
    for epoch in [ep(2, A), ep(3, B)] {
        let mut t = forked();
        t.hear(says(Role::Starting, epoch));
        t.hear(says(Role::Starting, epoch));
        assert_eq!(t.take(), [RoleAction::TearShared], "once");
    }
    // It is of a version that does not tell.
    let mut t = forked();
    t.put(RoleInput::LinkUp);
    t.hear(says(Role::Backup, ep(3, B)));
    t.put(RoleInput::ReplicaFull);
    assert_eq!(t.take()[..2], [RoleAction::StartPairing, RoleAction::TearShared]);
    // It did not go on alone.
    let mut t = Lone::full_backup();
    t.partner = None;
    t.run(100);
    t.log.clear();
    t.hear(says(Role::Master, ep(1, A)));
    t.hear(says(Role::Starting, ep(1, A)));
    assert_eq!(t.take(), []);
}

#[test]
fn a_takeover_that_loses_to_a_master_alone_is_a_fork_too() {
    let mut t = Lone::paired_master();
    t.partner = None;
    t.run(150);
    // Cut off twice, it claims twice more.
    for _ in 0..2 {
        t.put(RoleInput::Carrier(false));
        t.run(50);
        t.put(RoleInput::Carrier(true));
        t.run(300);
    }
    assert_eq!(t.machine.epoch(), ep(4, A));
    t.log.clear();
    t.hear(says(Role::Master, ep(3, B)));
    t.hear(says(Role::Starting, ep(3, B)));
    assert_eq!(t.take(), [RoleAction::TearShared]);
}

#[test]
fn a_backup_that_restarted_has_no_replica() {
    let mut t = Lone::paired_master();
    t.put(RoleInput::LinkDown { reset: true });
    t.put(RoleInput::Heartbeat(says(Role::Starting, ep(1, A))));
    assert_eq!(t.take(), [RoleAction::Stall, solo(2, false)]);
}

#[test]
fn a_cut_off_master_fences() {
    let mut t = Lone::paired_master();
    t.partner = None;
    t.reach = Some(false);
    t.run(5000);
    assert_eq!(t.take(), [RoleAction::Stall, RoleAction::Fence]);
    assert_eq!((t.machine.role(), t.machine.release()), (Role::Fenced, Release::Nothing));
    // Somebody else is in reach for solo_after, the partner is not.
    t.reach = Some(true);
    t.run(90);
    assert_eq!(t.take(), []);
    t.run(50);
    assert_eq!(t.take(), [RoleAction::Unfence, RoleAction::CloseLink, solo(2, true)]);
}

#[test]
fn a_master_that_comes_back_into_reach_listens_for_its_partner_first() {
    // Cut off for a while, but not for so long that it fenced: at solo_after somebody answers.
    let mut t = Lone::paired_master();
    t.partner = None;
    t.reach = Some(false);
    t.run(65);
    t.reach = Some(true);
    t.run(50);
    assert_eq!(t.take(), [RoleAction::Stall]);
    // The partner took over meanwhile, and is heard a moment later.
    t.partner = Some(says(Role::Master, ep(3, B)));
    t.run(25);
    assert_eq!(t.take(), [RoleAction::CloseLink, RoleAction::Demote { epoch: ep(3, B) }]);
    // And if there is none to be heard, it goes on alone.
    let mut t = Lone::paired_master();
    t.partner = None;
    t.reach = Some(false);
    t.run(65);
    t.reach = Some(true);
    t.run(120);
    assert_eq!(t.take(), [RoleAction::Stall, RoleAction::CloseLink, solo(2, true)]);
}

#[test]
fn a_fenced_master_that_hears_its_backup_goes_on() {
    let mut t = Lone::paired_master();
    let partner = t.partner.take();
    t.reach = Some(false);
    t.run(300);
    t.log.clear();
    t.partner = partner;
    t.run(20);
    assert_eq!(t.take(), [RoleAction::Unfence]);
    assert!(t.machine.protected());
}

#[test]
fn a_fenced_master_that_was_replaced_yields() {
    let mut t = Lone::paired_master();
    t.partner = None;
    t.reach = Some(false);
    t.run(300);
    t.log.clear();
    t.reach = Some(true);
    t.run(50);
    t.partner = Some(says(Role::Master, ep(3, B)));
    t.run(20);
    assert_eq!(t.take(), [RoleAction::CloseLink, RoleAction::Demote { epoch: ep(3, B) }]);
    assert_eq!((t.machine.role(), t.machine.epoch()), (Role::Backup, ep(3, B)));
}

#[test]
fn a_solo_master_fences_with_its_carrier() {
    let mut t = Lone::start(A, ep(0, 0));
    t.run(600);
    assert_eq!(t.machine.release(), Release::Freely);
    t.log.clear();
    t.put(RoleInput::Carrier(false));
    t.run(5000);
    assert_eq!(t.take(), [RoleAction::Fence]);
    t.put(RoleInput::Reach(true));
    t.put(RoleInput::Carrier(true));
    t.run(80);
    assert_eq!(t.take(), []);
    t.run(100);
    assert_eq!(t.take(), [RoleAction::Unfence, solo(2, false)]);
    // Or it talks to its partner.
    t.put(RoleInput::Carrier(false));
    t.partner = Some(says(Role::Backup, ep(2, A)));
    t.run(100);
    assert_eq!(t.take(), [RoleAction::Fence]);
    t.put(RoleInput::Carrier(true));
    t.run(20);
    assert_eq!(t.take(), [RoleAction::Unfence]);
}

#[test]
fn a_solo_master_without_evidence_goes_on() {
    let mut t = Lone::start(A, ep(0, 0));
    t.run(600);
    t.reach = Some(false);
    t.log.clear();
    t.run(5000);
    assert_eq!((t.take(), t.machine.release()), (vec![], Release::Freely));
}

#[test]
fn of_two_masters_the_lower_yields() {
    let mut t = Lone::start(A, ep(4, A));
    t.run(600);
    t.log.clear();
    t.put(RoleInput::Heartbeat(says(Role::Master, ep(4, B))));
    assert_eq!(t.take(), []);
    t.put(RoleInput::Heartbeat(says(Role::Master, ep(5, B))));
    assert_eq!(t.take(), [RoleAction::Demote { epoch: ep(5, B) }]);
}

#[test]
fn a_master_yields_to_a_partner_that_was_master_after_it() {
    let mut t = Lone::paired_master();
    t.put(RoleInput::Heartbeat(says(Role::Starting, ep(3, B))));
    assert_eq!(t.take(), [RoleAction::CloseLink, RoleAction::Demote { epoch: ep(3, B) }]);
    t.put(RoleInput::Heartbeat(says(Role::Starting, ep(3, B))));
    assert_eq!(t.take(), [RoleAction::BecomeMaster { epoch: ep(4, A), take_over: false, old: ep(3, B) }]);
}

#[test]
fn pairing_is_undone_by_the_link() {
    let mut t = Lone::start(A, ep(0, 0));
    t.run(600);
    t.partner = Some(says(Role::Backup, ep(1, A)));
    t.run(20);
    t.log.clear();
    t.put(RoleInput::LinkUp);
    t.put(RoleInput::LinkDown { reset: false });
    t.put(RoleInput::ReplicaFull);
    assert_eq!((t.take(), t.machine.release()), (vec![RoleAction::StartPairing], Release::Freely));
    t.put(RoleInput::LinkUp);
    t.put(RoleInput::ReplicaFull);
    // The backup may have been told already: a new epoch from here on.
    t.put(RoleInput::LinkDown { reset: false });
    t.put(RoleInput::PairedAcked);
    assert!(!t.machine.protected());
    assert_eq!(t.machine.release(), Release::Acknowledged);
}

#[test]
fn no_pairing_before_the_backup_follows_our_epoch() {
    let mut t = Lone::start(A, ep(0, 0));
    t.run(600);
    t.log.clear();
    t.put(RoleInput::LinkUp);
    t.put(RoleInput::Heartbeat(says(Role::Starting, ep(0, 0))));
    assert_eq!(t.take(), []);
    t.hear(says(Role::Backup, ep(1, A)));
    assert_eq!(t.take(), [RoleAction::StartPairing]);
}

#[test]
fn a_broken_link_alone_costs_an_epoch() {
    for relinked in [false, true] {
        let mut t = Lone::paired_master();
        t.put(RoleInput::LinkDown { reset: false });
        t.run(50);
        if relinked {
            t.put(RoleInput::LinkUp);
        } else {
            assert_eq!(t.machine.release(), Release::Acknowledged);
            t.run(60);
        }
        assert_eq!(t.take(), [RoleAction::Stall, RoleAction::Announce { epoch: ep(2, A) }]);
        assert_eq!(t.machine.view(), says(Role::Master, ep(2, A)));
        t.run(20);
        assert_eq!(t.machine.release(), Release::Acknowledged, "the backup may still take over");
        t.partner = Some(says(Role::Backup, ep(2, A)));
        t.run(20);
        let mut expected = vec![solo(2, false)];
        if relinked {
            expected.push(RoleAction::StartPairing);
        }
        assert_eq!(t.take(), expected);
    }
}

#[test]
fn a_takeover_beats_an_announced_solo() {
    let mut t = Lone::paired_master();
    t.put(RoleInput::LinkDown { reset: false });
    t.put(RoleInput::LinkUp);
    t.log.clear();
    t.put(RoleInput::Heartbeat(says(Role::Master, ep(3, B))));
    assert_eq!(t.take(), [RoleAction::CloseLink, RoleAction::Demote { epoch: ep(3, B) }]);
}

#[test]
fn switchover() {
    let mut a = Lone::paired_master();
    assert_eq!(a.machine.can_switch_over(), Ok(()));
    a.put(RoleInput::SwitchoverRequested);
    a.put(RoleInput::SwitchoverRequested);
    assert_eq!(a.take(), [RoleAction::StartHandover { epoch: ep(1, A) }]);
    let mut b = Lone::full_backup();
    b.put(RoleInput::Handover(ep(0, A)));
    assert_eq!(b.take(), []);
    b.put(RoleInput::Handover(ep(1, A)));
    assert_eq!(b.take(), [TAKE_OVER], "the link stays");
    a.put(RoleInput::HandoverAcked(b.machine.epoch()));
    assert_eq!(a.take(), [RoleAction::Demote { epoch: ep(3, B) }]);
    b.put(RoleInput::Heartbeat(a.machine.view()));
    assert_eq!(b.take(), [RoleAction::StartPairing]);
}

#[test]
fn a_switchover_needs_a_paired_partner() {
    let mut t = Lone::paired_master();
    t.put(RoleInput::LinkDown { reset: false });
    t.log.clear();
    t.put(RoleInput::SwitchoverRequested);
    assert_eq!(t.machine.can_switch_over(), Err("the partner is not paired"));
    assert_eq!(t.take(), []);
    assert!(Lone::full_backup().machine.can_switch_over().is_err());
}

#[test]
fn a_handover_without_answer_resumes_in_a_new_epoch_that_the_backup_follows() {
    let mut t = Lone::paired_master();
    t.put(RoleInput::SwitchoverRequested);
    t.run(150);
    assert_eq!(t.take(), [RoleAction::StartHandover { epoch: ep(1, A) }]);
    t.run(30);
    assert_eq!(t.take(), [RoleAction::Stall, RoleAction::Announce { epoch: ep(2, A) }]);
    t.partner = Some(says(Role::Backup, ep(2, A)));
    t.run(20);
    assert_eq!(t.take(), [RoleAction::CloseLink, solo(2, false)]);
}

#[test]
fn a_handover_into_silence_ends_doubtful() {
    let mut t = Lone::paired_master();
    t.put(RoleInput::SwitchoverRequested);
    t.partner = None;
    t.run(150);
    t.log.clear();
    t.run(30);
    assert_eq!(t.take(), [RoleAction::Stall, RoleAction::CloseLink, solo(2, true)]);
}

#[test]
fn a_backup_that_died_in_contact_leaves_no_doubt() {
    let mut t = Lone::paired_master();
    t.partner = None;
    t.reach = Some(false);
    t.put(RoleInput::LinkDown { reset: true });
    // Whoever was asked did not answer in time.
    t.run(40);
    t.reach = Some(true);
    t.run(200);
    assert_eq!(t.take(), [RoleAction::Stall, solo(2, false)]);
}

#[test]
fn a_backup_that_slept_through_a_handover_refuses_it() {
    let mut t = Lone::full_backup();
    t.pause(1000);
    t.put(RoleInput::Heartbeat(says(Role::Master, ep(1, A))));
    t.put(RoleInput::Handover(ep(1, A)));
    assert_eq!(t.take(), []);
    // Not one that comes over a new link.
    t.put(RoleInput::LinkDown { reset: false });
    t.put(RoleInput::LinkUp);
    t.put(RoleInput::PairedIn(ep(1, A)));
    t.run(40);
    t.put(RoleInput::Handover(ep(1, A)));
    assert!(matches!(t.take()[..], [.., RoleAction::BecomeMaster { take_over: true, .. }]));
}

#[test]
fn a_paused_master_listens_before_it_goes_solo() {
    let mut t = Lone::paired_master();
    t.partner = None;
    t.run(70);
    t.pause(10_000);
    t.run(30);
    assert_eq!(t.machine.release(), Release::Acknowledged);
    t.partner = Some(says(Role::Master, ep(3, B)));
    t.next_beat = t.now;
    t.run(10);
    assert_eq!(t.machine.role(), Role::Backup);
}

#[test]
fn a_paused_master_tells_nobody_of_its_address_before_it_has_listened() {
    let mut t = Lone::paired_master();
    assert!(t.machine.announces());
    t.pause(5);
    t.run(1);
    assert!(t.machine.announces(), "nobody took over so soon");
    t.pause(10_000);
    t.run(1);
    assert!(!t.machine.announces() && t.machine.role() == Role::Master);
    t.run(100);
    assert!(t.machine.announces());
    // One whose partner would have waited longer goes on at once.
    t.machine.cfg.misses = 10;
    t.pause(100);
    t.run(1);
    assert!(t.machine.announces());
    t.machine.cfg.misses = 3;
    // One without partner has nobody to listen to.
    let cfg = RoleConfig { has_partner: false, ..t.machine.cfg.clone() };
    let mut alone = RoleMachine::new(cfg, Epoch::default(), t.now);
    alone.handle_timeout(t.now + ms(10_000));
    alone.handle(t.now + ms(20_000), RoleInput::Reach(true));
    assert!(alone.announces());
    // The partner has taken over meanwhile.
    t.pause(10_000);
    t.partner = Some(says(Role::Master, ep(3, B)));
    t.next_beat = t.now + ms(15);
    for _ in 0..100 {
        t.run(1);
        assert!(!t.machine.announces());
    }
    assert!(t.machine.role() == Role::Backup);
}

#[test]
fn a_master_that_does_not_hear_its_backup_tells_nobody_of_its_address() {
    let mut t = Lone::paired_master();
    t.partner = None;
    t.run(40);
    assert!(!t.machine.announces() && !t.machine.stalled(), "its backup may be about to take over");
    t.run(30);
    assert!(!t.machine.announces() && t.machine.stalled());
    t.partner = Some(says(Role::Backup, ep(1, A)));
    t.next_beat = t.now;
    t.run(1);
    assert!(t.machine.announces());
}

#[test]
fn a_new_master_defends_its_address_against_the_old_one() {
    let mut t = Lone::full_backup();
    t.partner = None;
    t.run(100);
    assert_eq!(t.take().last(), Some(&TAKE_OVER));
    assert!(t.machine.announces());
    let defends = |t: &mut Lone| std::mem::take(&mut t.log).contains(&RoleAction::DefendVip);
    for claims in [Some(Role::Master), Some(Role::Fenced), Some(Role::Master), None] {
        t.partner = claims.map(|role| says(role, ep(1, A))).or(Some(says(Role::Backup, ep(3, B))));
        t.next_beat = t.now;
        t.run(1);
        assert!(defends(&mut t), "{claims:?}");
    }
    t.run(100);
    assert!(!defends(&mut t));
}

#[test]
fn epochs_are_ordered_by_number_then_member() {
    assert!(ep(1, B) < ep(2, A) && ep(2, A) < ep(2, B));
    assert_eq!(ep(7, 1).to_string(), "7.1");
}

/// The replay window admits a heartbeat that was overtaken by up to 63 others (a second and more on one path; a slower
/// second path is always behind). The partner said `Starting` in this epoch before it followed and was paired.
#[test]
fn a_heartbeat_that_was_overtaken_ends_no_pairing() {
    let mut t = Lone::paired_master();
    t.put(RoleInput::Heartbeat(says(Role::Starting, ep(1, A))));
    assert_eq!(t.take(), [], "a paired master lets everything go without its replica");
    assert!(t.machine.protected());
    // Its next life says so over a connection of its own, or when the old one is known to be lost.
    t.put(RoleInput::LinkDown { reset: false });
    t.put(RoleInput::LinkUp);
    t.put(RoleInput::Heartbeat(says(Role::Starting, ep(1, A))));
    assert!(matches!(t.take()[..], [RoleAction::Stall, .., RoleAction::GoSolo { doubtful: false, .. }]));
}

/// The master hears nothing of us from 0 on and goes solo at 300 ms. We are paused
/// from 0 to 245, read at 245 what had come by then, are cut off from 220 to 496, and hear a neighbour before the master.
#[test]
fn a_pause_and_a_cut_off_in_a_row_make_a_replica_stale() {
    let mut t = Lone::full_backup();
    t.machine.cfg.solo_after = ms(300);
    t.partner = None;
    t.reach = None;
    let began = t.now;
    t.pause(245);
    // Sent before the cable was out, read now.
    t.put(RoleInput::Heartbeat(says(Role::Master, ep(1, A))));
    for at in [309, 376, 439] {
        t.run((began + ms(at) - t.now).as_millis() as u64);
        t.put(RoleInput::Reach(false));
    }
    t.run((began + ms(503) - t.now).as_millis() as u64);
    t.log.clear();
    // Plugged in again: this answer comes a moment before the master's next heartbeat (epoch 2.0, solo since 300 ms).
    t.put(RoleInput::Reach(true));
    let took = t.take();
    assert!(
        !took.iter().any(|a| matches!(a, RoleAction::BecomeMaster { take_over: true, .. })),
        "after 503 ms without a word of ours to the master: {took:?}"
    );
}
