//! What the two members know of each other, and what they say to each other.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::json;
use tcpr_session::filter::{Mode, ReplicaLacks};
use tcpr_session::record::{self, Record};
use tcpr_session::role::{Epoch, PartnerView, Role, RoleInput};
use tcpr_session::store::StoreError;
use tcpr_session::Now;

use super::heartbeats;
use super::replication::{Gap, Way};
use super::throttle::Recurring;
use super::Manager;
use crate::config::{Config, Standby};
use crate::heartbeat::HeartbeatBody;
use crate::key;
use crate::link::{Goodbye, Hello, Message, CAUSES, DATA, OPTIONS, PROTOCOL};

/// So much of what the partner says of its program is kept.
const MOST_SAID: usize = 1000;
/// Where heartbeats do not get through, a connected partner is told over the connection what we are, this often.
const GREET_EVERY: Duration = Duration::from_millis(500);
/// A connection without heartbeats for so long is trouble.
const DEAF_AFTER: Duration = Duration::from_secs(1);

/// What the partner said makes no sense. The connection is closed with these words.
#[derive(Debug, thiserror::Error)]
enum Nonsense {
    #[error("the partner goes on in protocol version {0}, which we do not speak")]
    Version(u16),
    /// This very snapshot told us that we are no master any more. It is sent again.
    #[error("a snapshot came before we had stepped down")]
    SnapshotOfMaster,
    #[error(transparent)]
    Gap(#[from] Gap),
    #[error(transparent)]
    Records(#[from] StoreError),
    #[error("it acknowledges log that was never written")]
    Acknowledged,
    #[error("a handover of a log that is not here")]
    Handover,
}

/// What the members know of each other.
pub(super) struct Partner {
    me: u8,
    service: String,
    /// The other member's name and address; `None`: this member is alone.
    other: Option<(String, IpAddr)>,
    /// Random number of this manager's life.
    boot: u64,
    /// Of what must be configured alike.
    digest: u64,
    greet_at: Now,
    /// When heartbeats got through in both directions last.
    contact_at: Now,
    /// Why its program would not take the sessions over, as it has said.
    program_trouble: Option<String>,
    /// What we have said of ours.
    program_told: Option<String>,
}

impl Partner {
    pub(super) fn new(config: &Config, now: Now) -> io::Result<Partner> {
        let random: [u8; 8] = key::random()?;
        let mut hasher = DefaultHasher::new();
        config.service.ports.iter().for_each(|p| format!("{p:?}").hash(&mut hasher));
        config.service.virtual_ips.iter().for_each(|v| format!("{v:?}").hash(&mut hasher));
        // Only a member that expects it asks the peers where they are.
        format!("{:?}", config.replication.durability).hash(&mut hasher);
        // The digest of a warm standby is the one of versions that know no other.
        if config.service.standby == Standby::Hot {
            format!("hot, {}", config.service.standby_trace_bytes).hash(&mut hasher);
        }
        Ok(Partner {
            me: config.member_index,
            service: config.service.name.clone(),
            other: config.partner().map(|p| (p.name.clone(), p.address)),
            boot: u64::from_le_bytes(random),
            digest: hasher.finish(),
            greet_at: now,
            contact_at: now,
            program_trouble: None,
            program_told: None,
        })
    }

    /// How this member introduces itself. It is to do that again after a while, if heartbeats do not get through.
    fn hello(&mut self, now: Now, protocol: u16, view: PartnerView) -> Hello {
        self.greet_at = now + GREET_EVERY;
        // A partner that has just connected assumes that our program is healthy.
        self.program_told = None;
        Hello {
            protocol,
            service: self.service.clone(),
            member: self.me,
            boot: self.boot,
            epoch: view.epoch,
            role: view.role as u8,
            config_digest: self.digest,
        }
    }

    /// The partner introduced itself. Whether it is configured alike.
    fn met(&mut self, hello: &Hello) -> bool {
        self.program_trouble = None;
        hello.config_digest == self.digest
    }

    /// What the partner says of its program; empty: nothing is wrong with it.
    fn hear_of_program(&mut self, trouble: &str) {
        self.program_trouble = Some(trouble.chars().take(MOST_SAID).collect::<String>()).filter(|text| !text.is_empty());
        if let Some(text) = &self.program_trouble {
            log::error!("not protected: the partner's program would not take over: {text}");
        }
    }

    /// Whether the partner is to be told this of our program; if so, it counts as told. The partner assumes that our program is
    /// healthy until we say otherwise.
    fn tells_program(&mut self, trouble: &str) -> bool {
        let news = self.program_told.as_deref().unwrap_or_default() != trouble;
        if news {
            self.program_told = Some(trouble.to_owned());
        }
        news
    }

    /// The partner's program would take the sessions over.
    pub(super) fn program_is_well(&self) -> bool {
        self.program_trouble.is_none()
    }

    fn is_deaf(&self, now: Now) -> bool {
        now.saturating_sub(self.contact_at) > DEAF_AFTER
    }
}

/// Heartbeats.
impl Manager {
    pub(super) fn beat(&mut self) {
        let view = self.role.view();
        let body = HeartbeatBody {
            epoch: view.epoch,
            role: view.role as u8,
            paired: view.paired,
            full_replica: view.full_replica,
            unguarded: !self.host.is_guarded(),
            position: self.filter.log().written().max(self.replication.stored()),
            partner_boot: 0,
            partner_counter: 0,
        };
        let now = self.now();
        if let Err(error) = self.epochs.record(view.epoch) {
            // A master that fell silent would be taken for dead, and its sessions lost: worse than an epoch that a
            // reboot forgets.
            if self.throttle.admits(now, Recurring::EpochNotWritten) {
                log::warn!(error:%; "cannot write the epoch file; a reboot would forget it");
            }
        }
        self.heartbeats.send(now, &body);
    }

    pub(super) fn beat_if_due(&mut self, now: Now) {
        if self.heartbeats.is_due(now) {
            self.beat();
        }
    }

    pub(super) fn receive_heartbeats(&mut self) {
        let now = self.now();
        let mut heard_until = None;
        while let Some(heard) = self.heartbeats.receive() {
            let view = heard.view;
            self.role.handle(now, RoleInput::Heartbeat(view));
            // The partner had heard this one of ours. What it said may be old by now.
            let Some(sent) = heard.had_heard else { continue };
            self.role.handle(now, RoleInput::Echo(sent));
            if view.role == Role::Backup && view.epoch <= self.role.epoch() {
                // And takes over no sooner than it suspects us.
                let failover = &self.config.failover;
                heard_until = heard_until.max(Some(sent + failover.heartbeat * failover.misses));
            }
        }
        if let Some(until) = heard_until {
            self.filter.replica_heard(now, until);
        }
        let refused = self.heartbeats.take_last_rejection();
        if let Some((from, why)) = refused.filter(|_| self.throttle.admits(now, Recurring::HeartbeatRefused)) {
            log::warn!(from:%, why:%; "a datagram on the heartbeat port was dropped");
        }
    }
}

/// Reach.
impl Manager {
    /// A partner that starts while a master of a version that it does not speak serves must not take its place: it would
    /// end every session.
    fn held_back(&mut self, now: Now) -> bool {
        let held = self.role.role() == Role::Starting && self.link.estrangement(now).is_some();
        if held && self.throttle.admits(now, Recurring::HeldBack) {
            log::warn!("not starting to serve while the partner's manager is of another version");
        }
        held
    }

    pub(super) fn reach_ready(&mut self) {
        if self.reachability.on_readable() && !self.held_back(self.now()) {
            self.reachability.answered();
            self.role.handle(self.now(), RoleInput::Reach(true));
        }
    }

    pub(super) fn probe_reach(&mut self, now: Now) {
        if self.held_back(now) {
            return;
        }
        let peers = self.filter.store().iter().map(|s| s.open.tuple.peer.ip());
        if !self.reachability.ask(now, peers) {
            self.role.handle(now, RoleInput::Reach(true));
        }
    }

    fn reach_timers(&mut self, now: Now) {
        if let Some(carrier) = self.reachability.carrier_change(now, || self.virtual_ip.carrier()) {
            self.role.handle(now, RoleInput::Carrier(carrier));
        }
        if self.reachability.is_silent(now) {
            self.role.handle(now, RoleInput::Reach(false));
        }
    }
}

/// The connection.
impl Manager {
    pub(super) fn accept_link(&mut self) {
        let now = self.now();
        while let Some(link) = self.link.next_accepted(now) {
            // The partner knows better whether the old one works.
            self.drop_link(now, "replaced by a newer one", false);
            self.link.adopt(&self.poller, link);
            self.link_ready(true, false);
        }
        let refused = self.link.take_last_rejection(now);
        if let Some((from, why)) = refused.filter(|_| self.throttle.admits(now, Recurring::LinkRefused)) {
            log::warn!(from:%, why:%; "a replication connection was turned away");
        }
    }

    pub(super) fn link_ready(&mut self, readable: bool, writable: bool) {
        let now = self.now();
        match self.link.on_ready(now, readable, writable) {
            None => return,
            Some(true) => self.greet(),
            Some(false) => {}
        }
        self.read_link(now);
        self.check_link(now);
    }

    fn greet(&mut self) {
        let protocol = self.link.version().unwrap_or(PROTOCOL);
        self.filter.set_replica_lacks(ReplicaLacks {
            causes: protocol < CAUSES,
            options: protocol < OPTIONS,
            data: protocol < DATA,
        });
        let hello = self.partner.hello(self.now(), protocol, self.role.view());
        self.link.send(&Message::Hello(hello));
        self.replication.tell_alone(&mut self.link);
        self.link.flush();
    }

    /// Over the connection where heartbeats do not get through: what we are, from time to time and when it changes. They are no
    /// pair then, but one master and one backup.
    pub(super) fn greet_again(&mut self, now: Now, changed: bool) {
        if self.link.is_up() && !self.role.in_contact() && (changed || now >= self.partner.greet_at) {
            self.greet();
        }
    }

    /// Says why our program would not take the sessions over, if that has changed.
    pub(super) fn tell_program(&mut self, trouble: Option<&str>) {
        let trouble = trouble.unwrap_or_default();
        if self.link.is_up() && self.link.speaks(OPTIONS) && self.partner.tells_program(trouble) {
            self.link.send(&Message::Program { trouble: trouble.into() });
            self.link.flush();
        }
    }

    /// The partner released something for these sessions alone, while we had them.
    fn hear_alone(&mut self, now: Now, names: &[u8], last: bool) {
        let ends = self.filter.tear_named(now, names);
        if !ends.is_empty() {
            log::error!(reset = ends.len(); "the partner had gone on by itself: the connections on which it had said something are reset");
            self.cleanup.doom(ends);
        }
        if last {
            self.role.handle(now, RoleInput::ToldAlone);
        }
        self.stay_alive();
    }

    fn read_link(&mut self, now: Now) {
        let mut acked = None;
        loop {
            // Out of its place while its message borrows from it.
            let Some(mut link) = self.link.lend() else { break };
            let went_on = match link.poll_message().map(|message| self.hear(now, message, &mut acked)) {
                None => false,
                Some(Ok(())) => true,
                Some(Err(why)) => {
                    log::error!(why:%; "what the partner says makes no sense");
                    // The partner is told, so that it does not take this for our death.
                    link.close(Goodbye::Other(why.to_string().into()));
                    false
                }
            };
            self.link.give_back(link);
            // What a message led to is done before the next is read: roles change between messages.
            self.role_actions();
            self.handover.take_heard();
            if !went_on {
                break;
            }
        }
        if let Some((epoch, position)) = acked {
            if self.replication.follows(epoch) {
                self.link.send(&Message::Ack { epoch, position });
            }
        }
    }

    /// One message of the partner. An error closes the link.
    fn hear(&mut self, now: Now, message: Message<'_>, acked: &mut Option<(Epoch, u64)>) -> Result<(), Nonsense> {
        match message {
            Message::Hello(hello) => {
                if !self.link.accepts_version(hello.protocol) {
                    return Err(Nonsense::Version(hello.protocol));
                }
                self.link.understood();
                if !self.partner.met(&hello) {
                    log::warn!("the partner's configuration of ports, virtual IP, durability or standby differs from ours");
                }
                let role = heartbeats::role(hello.role);
                let view = PartnerView { role, epoch: hello.epoch, paired: false, full_replica: false };
                self.role.handle(now, RoleInput::LinkUp);
                self.role.handle(now, RoleInput::Heartbeat(view));
            }
            Message::SnapshotBegin { epoch, position } => {
                let view = PartnerView { role: Role::Master, epoch, paired: false, full_replica: false };
                self.role.handle(now, RoleInput::Heartbeat(view));
                if self.role.role() != Role::Backup {
                    return Ok(());
                }
                if self.filter.mode() != Mode::Passive {
                    return Err(Nonsense::SnapshotOfMaster);
                }
                self.role.handle(now, RoleInput::StoreStale);
                self.filter.replica_reset();
                self.record.clear();
                self.standby.snapshot_begins();
                self.replication.follow(epoch, position);
            }
            Message::SnapshotEnd { epoch, position } => {
                if self.replication.follows(epoch) && self.role.role() == Role::Backup {
                    self.replication.snapshot_received(position);
                    *acked = Some((epoch, position));
                }
            }
            Message::Records { epoch, position, bytes } => {
                // A backup that promotes stops acknowledging: its old master stays silent from then on.
                if !self.replication.follows(epoch) || self.role.role() != Role::Backup {
                    return Ok(());
                }
                if let Some(stored) = self.replication.received(position, bytes.len())? {
                    *acked = Some((epoch, stored));
                }
                self.filter.replica_apply(bytes)?;
                if self.standby.is_hot() {
                    self.follow_log(bytes);
                }
                self.record.note(self.filter.store(), bytes);
            }
            Message::Ack { epoch, position } => {
                if epoch == self.role.epoch() && self.replication.ships() {
                    self.acknowledged(now, position)?;
                }
            }
            Message::Paired { epoch } => self.replication.paired(epoch),
            Message::PairedAck { epoch } => {
                if epoch == self.role.epoch() {
                    self.role.handle(now, RoleInput::PairedAcked);
                }
            }
            Message::Handover { epoch, position } => {
                if position != self.replication.stored() {
                    return Err(Nonsense::Handover);
                }
                self.handover.note_heard();
                self.role.handle(now, RoleInput::Handover(epoch));
            }
            Message::HandoverAck { epoch } => {
                // It has the log to its end. A heartbeat may have told before.
                if self.handover.is_sent() {
                    self.filter.replica_stored(now, self.filter.log().written());
                    self.filter_actions();
                }
                for packet in self.handover.take_resets() {
                    self.send_raw(&packet);
                }
                self.role.handle(now, RoleInput::HandoverAcked(epoch));
            }
            Message::Forward { bytes } => self.filter.forwarded_in(now, bytes),
            Message::Alone { epoch, more, names } => {
                if epoch <= self.role.epoch() && matches!(self.role.role(), Role::Master | Role::Fenced) {
                    self.hear_alone(now, names, more == 0);
                }
            }
            message @ Message::Standby { .. } => self.standby.hear(now, &message),
            message @ (Message::ProgramSnapshotBegin { .. }
            | Message::ProgramSnapshot { .. }
            | Message::ProgramSnapshotEnd { .. }
            | Message::ProgramSnapshotStored { .. }) => self.hear_of_program_snapshot(&message),
            Message::Program { trouble } => self.partner.hear_of_program(&trouble),
            Message::Bye { reason } => {
                log::info!(reason:%; "the partner says good-bye");
                self.link.note_goodbye();
                if reason == Goodbye::ServiceEnded {
                    self.role.handle(now, RoleInput::PartnerBye);
                }
            }
        }
        Ok(())
    }

    /// Takes the trace out of a piece of the log.
    fn follow_log(&mut self, mut records: &[u8]) {
        // Whoever applied them has complained of what is wrong with them.
        while let Ok(Some(record)) = record::decode(&mut records) {
            match record {
                Record::Trace { life, at, bytes, part } => self.follow_trace(life, at, bytes, part),
                // Those of a snapshot may have been accepted before.
                Record::Open(open) if !self.replication.is_receiving() => self.standby.opened(open.session),
                Record::End { session, .. } => self.standby.ended(session),
                _ => {}
            }
        }
    }

    /// The replica has stored the log up to this position.
    fn acknowledged(&mut self, now: Now, position: u64) -> Result<(), Nonsense> {
        let end = self.filter.log().written();
        if position > end {
            return Err(Nonsense::Acknowledged);
        }
        if self.filter.log().needs_replica() {
            self.filter.replica_stored(now, position);
        } else if self.replication.caught_up(now, position, end) {
            self.role.handle(now, RoleInput::ReplicaFull);
        }
        Ok(())
    }

    /// A pair's epoch survives the reboot of either.
    fn pair(&mut self, now: Now) {
        let Some(epoch) = self.replication.take_paired(|| self.epochs.settled()) else { return };
        if self.replication.follows(epoch) && self.role.role() == Role::Backup {
            self.role.handle(now, RoleInput::PairedIn(epoch));
            // Whoever says so has heard all that went before our acknowledgement.
            self.replication.forget_alone();
            self.link.send(&Message::PairedAck { epoch });
            self.link.flush();
        }
    }

    fn check_link(&mut self, now: Now) {
        if let Some(ended) = self.link.ended(now) {
            self.drop_link(now, &ended.why, ended.partner_gone);
        }
    }

    fn drop_link(&mut self, now: Now, why: &str, gone: bool) {
        self.standby.forget_partner();
        let Some(was_up) = self.link.drop(now, why, &self.poller) else { return };
        self.stop_shipping();
        if was_up {
            self.role.handle(now, RoleInput::LinkDown { reset: gone });
        }
    }
}

/// The log.
impl Manager {
    fn replicate(&mut self) -> (&mut super::replication::Replication, Way<'_>) {
        let Manager { replication, filter, record, link, role, .. } = self;
        (replication, Way { epoch: role.epoch(), filter, record, link })
    }

    /// Sends the log that was written, if it is time and the link takes it.
    pub(super) fn ship_if_due(&mut self) {
        let now = self.now();
        let (replication, mut way) = self.replicate();
        replication.ship_if_due(now, &mut way);
        let now = self.now();
        let Manager { apps, filter, replication, .. } = self;
        apps.press(filter, replication, now);
    }

    /// The same, whether anybody waits for it or not.
    pub(super) fn ship(&mut self) {
        let (replication, mut way) = self.replicate();
        replication.ship(&mut way);
    }

    pub(super) fn start_pairing(&mut self) {
        self.ship();
        self.stop_shipping();
        let now = self.now();
        self.standby.begin_shipping();
        let (replication, mut way) = self.replicate();
        replication.begin(now, &mut way);
    }

    /// Goes on with a snapshot where the link has room for it.
    pub(super) fn go_on_with_snapshot(&mut self) {
        let (replication, mut way) = self.replicate();
        replication.go_on_with_snapshot(&mut way);
    }

    /// The log of an epoch that is over goes nowhere.
    pub(super) fn stop_shipping(&mut self) {
        self.replication.stop();
        self.handover.not_sent();
    }
}

/// Timers and status.
impl Manager {
    pub(super) fn partner_poll_timeout(&self) -> Option<Now> {
        let timers = [self.link.poll_timeout(), self.handover.poll_timeout(), self.heartbeats.poll_timeout()];
        timers.into_iter().chain([self.reachability.poll_timeout(), self.cleanup.poll_timeout()]).flatten().min()
    }

    pub(super) fn partner_timers(&mut self, now: Now) {
        self.note_peers();
        self.pair(now);
        self.beat_if_due(now);
        self.greet_again(now, false);
        if !self.link.is_up() || self.role.in_contact() {
            self.partner.contact_at = now;
        }
        self.cleanup.remove_doomed(&mut self.sockdiag);
        self.reach_timers(now);
        self.link.handle_timeout(now);
        self.check_link(now);
        self.handover.handle_timeout(now);
        self.link.dial_if_due(now, &self.poller);
    }

    pub(super) fn partner_status(&self) -> serde_json::Value {
        let Some((name, address)) = &self.partner.other else { return serde_json::Value::Null };
        let now = self.now();
        let view = self.role.partner();
        let deaf = self.partner.is_deaf(now).then(|| {
            let port = self.config.failover.heartbeat_port;
            format!("connected, but heartbeats do not get through in both directions, so this is no pair: is UDP port {port} open between the members?")
        });
        let program = self.partner.program_trouble.as_ref().map(|text| format!("its program would not take over: {text}"));
        json!({
            "member": name,
            "address": address.to_string(),
            "connected": self.link.is_up(),
            "heard": !self.role.partner_suspected(),
            "role": view.map(|v| match v.role {
                Role::Starting => "starting",
                Role::Backup => "backup",
                Role::Master => "master",
                Role::Fenced => "fenced",
            }),
            "epoch": view.map(|v| v.epoch.number),
            "heartbeats_refused": self.heartbeats.refused(),
            "trouble": match self.link.is_up() {
                true if self.heartbeats.partner_is_unguarded() => Some("its packet rules are missing"),
                true => deaf.as_deref().or(program.as_deref()),
                false => self.link.trouble(now),
            },
        })
    }
}
