//! The partner: heartbeats, the replication connection, and what the role machine says is to be done.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tcpr_session::filter::Mode;
use tcpr_session::record;
use tcpr_session::role::{Epoch, PartnerView, Role, RoleInput};
use tcpr_session::tuple::{FourTuple, SessionId};
use tcpr_session::Now;

use super::poller::{Poller, Token};
use super::Manager;
use crate::channel::ring;
use crate::config::Config;
use crate::heartbeat::{Codec, HeartbeatBody, HeartbeatSocket};
use crate::key::{self, Key};
use crate::link::{CloseReason, Fault, Hello, Link, LinkConfig, Listener, Message, CAUSES, OPTIONS, PROTOCOL};
use crate::reach::Reach;

/// So much of what the partner says of its program is kept.
const MOST_SAID: usize = 1000;
/// How often the dialing member tries.
pub(super) const DIAL_EVERY: Duration = Duration::from_millis(100);
/// A partner whose manager runs is heard to be of another version this often, or more.
const ESTRANGED_FOR: Duration = Duration::from_secs(3);
/// What is refused is written to the log no more often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);
/// So many heartbeats of ours may be echoed.
const BEATS: usize = 256;
/// Where heartbeats do not get through, a connected partner is told over the connection what we are, this often.
const GREET_EVERY: Duration = Duration::from_millis(500);
/// A connection without heartbeats for so long is trouble.
const DEAF_AFTER: Duration = Duration::from_secs(1);
/// Names of sessions in one message: what they cost to hear keeps nobody waiting for long.
const NAMES: usize = 12 * 2048;
/// So many sockets of connections that were torn are removed in one round.
const DOOMED: usize = 256;
/// Longest piece of a batch in one message.
const PIECE: usize = 256 << 10;
/// Output waits for the replica from when no more of the log than this is under way to it.
const CAUGHT_UP: u64 = 256 << 10;
/// It waits all the same this long after the snapshot: the log is written faster than the replica stores it.
const CATCH_UP: Duration = Duration::from_secs(10);

/// The protocol version since which a snapshot may come in steps.
const SNAPSHOT_IN_STEPS: u16 = 2;
/// So much may wait on the link before the log waits here, and a snapshot for the log.
const OUTBOX: usize = 1 << 20;
/// A snapshot goes in steps of so many sessions, or bytes: packets and heartbeats do not wait for it.
const STEP: usize = 256;
/// The log is late if it was written so long ago, and more than this of it is not stored; it is far ahead in any case if more
/// than that is not. Four times, or twice as much, stops everybody who writes.
const LATE: Duration = Duration::from_millis(300);
const LATE_BYTES: u64 = 1 << 20;
const FAR: u64 = 16 << 20;
/// When each so much of the log was written is noted.
const MARK: u64 = 64 << 10;

/// Everything about the other member.
pub(super) struct Partner {
    me: u8,
    partner: Option<(u8, String, SocketAddr)>,
    local: SocketAddr,
    link_config: Arc<LinkConfig>,
    listener: Option<Listener>,
    pub(super) link: Option<Link>,
    pub(super) link_up: bool,
    interest: (bool, bool),
    /// As the former master after a switchover: until then inbound packets go to the new one.
    pub(super) forward_until: Option<Now>,
    pub(super) dial_at: Now,
    heartbeat: Option<HeartbeatSocket>,
    heartbeat_due: Now,
    /// Packets may go around the partner's queues, as it says.
    pub(super) unguarded: bool,
    /// The counters with which our last heartbeats began, and when those were sent.
    beats: VecDeque<(u64, Now)>,
    heartbeat_every: Duration,
    boot: u64,
    digest: u64,
    reach: Reach,
    /// When nobody counts as in reach, if nobody answers; how long they have.
    reach_until: Option<Now>,
    reach_patience: Duration,
    carrier: bool,
    carrier_due: Now,
    complain_at: [Now; 4],

    /// As master: the log is shipped over the link from this position on.
    shipping: bool,
    /// The role machine has asked for a snapshot, and the takeover has yet to begin.
    pub(super) pairing_waits: bool,
    snapshot: Option<Snapshot>,
    /// What was taken from the filter, for its memory.
    fresh: Vec<u8>,
    /// Log that was taken and not given to the link, from `batch_at` on, behind the first `batch_sent` bytes.
    batch: Vec<u8>,
    batch_sent: usize,
    batch_at: u64,
    /// Log positions, and when they were reached.
    marks: VecDeque<(u64, Now)>,
    /// What applications have been told of how far the log is ahead of the replica.
    pub(super) pressure: u32,
    /// As backup: the snapshot is being received, and how far the log is stored.
    receiving: bool,
    pub(super) followed: Option<Epoch>,
    /// The master says that we are paired; we say so when its epoch is on our disk.
    paired_in: Option<Epoch>,
    pub(super) stored: u64,
    pub(super) frozen_sent: bool,
    pub(super) heard_handover: bool,
    /// The partner said that it closes this link: its end is no sign of a death.
    heard_bye: bool,
    last_close: Option<String>,
    /// When the partner last said that we have no protocol version in common, and the words for it.
    estranged: Option<(Now, String)>,
    /// Why its program would not take the sessions over, as it has said.
    pub program_trouble: Option<String>,
    /// What we have said of ours.
    program_told: Option<String>,
    greet_at: Now,
    /// When heartbeats got through in both directions last.
    contact_at: Now,

    /// No longer master: whose history goes on, and the names of the sessions for which we had released anything alone; until
    /// that member has a new replica in us.
    pub(super) to_tell: Option<(Epoch, Vec<u8>)>,
    /// The kernel's sockets of connections that were torn.
    pub(super) doomed: Vec<FourTuple>,
}

/// A snapshot on its way to the partner.
struct Snapshot {
    begun: Now,
    /// Log position that it stands for, once all of it was sent.
    position: Option<u64>,
    /// The sessions that are yet to be sent, as they are when their turn comes: the log that was written until then goes
    /// before them, and the replica passes over what it says of sessions that it does not have.
    left: Vec<SessionId>,
    /// When the log behind it may be under way no more.
    catch_up_until: Option<Now>,
}

impl Partner {
    pub(super) fn new(config: &Config, now: Now) -> io::Result<Partner> {
        let key = match &config.replication.key_file {
            Some(path) => key::load(path).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e.to_string()))?,
            None => Key::LOOPBACK,
        };
        let me = config.member_index;
        let local = SocketAddr::new(config.me().address, config.replication.port);
        let link_config = Arc::new(LinkConfig::new(&config.service.name, key.clone()));
        let partner = config.partner().map(|p| (1 - me, p.name.clone(), SocketAddr::new(p.address, config.replication.port)));
        let (listener, heartbeat) = if partner.is_some() {
            let mut listener = Listener::listen(local, link_config.clone()).map_err(|e| {
                io::Error::new(
                    e.kind(),
                    format!("replication cannot listen on {local}: {e}; is the address on this machine, and the port free?"),
                )
            })?;
            partner.iter().for_each(|(_, _, at)| listener.expect(at.ip()));
            (Some(listener), Some(heartbeat_socket(config, key)?))
        } else {
            (None, None)
        };
        let failover = &config.failover;
        let suspicion = failover.heartbeat * failover.misses;
        let random: [u8; 8] = key::random()?;
        let mut hasher = DefaultHasher::new();
        config.service.ports.iter().for_each(|p| format!("{p:?}").hash(&mut hasher));
        config.service.virtual_ips.iter().for_each(|v| format!("{v:?}").hash(&mut hasher));
        // Only a member that expects it asks the peers where they are.
        format!("{:?}", config.replication.durability).hash(&mut hasher);
        Ok(Partner {
            me,
            partner,
            local,
            link_config,
            listener,
            link: None,
            link_up: false,
            interest: (true, false),
            forward_until: None,
            dial_at: now,
            heartbeat,
            heartbeat_due: now,
            unguarded: false,
            beats: VecDeque::with_capacity(BEATS),
            heartbeat_every: failover.heartbeat,
            boot: u64::from_le_bytes(random),
            digest: hasher.finish(),
            reach: Reach::of(config)?,
            reach_until: None,
            // One answer may be late, as one heartbeat may; but whoever is cut off must know it before the master
            // goes on alone. Not longer than suspicion takes: what was asked before is over when it is asked anew.
            reach_patience: (failover.solo_after.saturating_sub(suspicion) / 2).min(suspicion).max(failover.heartbeat),
            carrier: true,
            carrier_due: now,
            complain_at: [now; 4],
            shipping: false,
            pairing_waits: false,
            snapshot: None,
            fresh: Vec::new(),
            batch: Vec::new(),
            batch_sent: 0,
            batch_at: 0,
            marks: VecDeque::new(),
            pressure: 0,
            receiving: false,
            followed: None,
            paired_in: None,
            stored: 0,
            frozen_sent: false,
            heard_handover: false,
            heard_bye: false,
            last_close: None,
            estranged: None,
            program_trouble: None,
            program_told: None,
            greet_at: now,
            contact_at: now,
            to_tell: None,
            doomed: Vec::new(),
        })
    }

    pub(super) fn watch(&self, p: &Poller) -> io::Result<()> {
        if let Some(listener) = &self.listener {
            p.add(listener.fd(), Token::LinkListener)?;
        }
        if let Some(heartbeat) = &self.heartbeat {
            for fd in heartbeat.fds() {
                p.add(fd, Token::Heartbeat)?;
            }
        }
        for fd in self.reach.fds() {
            p.add(fd, Token::Reach)?;
        }
        Ok(())
    }

    pub(super) fn poll_timeout(&self) -> Option<Now> {
        let dial = (self.link.is_none() && self.dials()).then_some(self.dial_at);
        let link = self.link.as_ref().and_then(Link::poll_timeout);
        let listener = self.listener.as_ref().and_then(Listener::poll_timeout);
        let beat = self.partner.is_some().then_some(self.heartbeat_due);
        let doomed = (!self.doomed.is_empty()).then_some(Duration::ZERO);
        [dial, link, listener, self.forward_until, beat, self.reach_until, doomed].into_iter().flatten().min()
    }

    fn dials(&self) -> bool {
        self.me == 1 && self.partner.is_some()
    }

    /// Sends all that was said in this round.
    pub(super) fn flush(&mut self) {
        if let Some(link) = &mut self.link {
            if link.buffered() > 0 {
                link.flush();
            }
        }
    }

    /// Whether the link has room for what waits here: nothing else wakes the loop for it.
    pub(super) fn has_more_to_send(&self) -> bool {
        let waits = self.batch_sent < self.batch.len() || self.snapshot.as_ref().is_some_and(|s| s.position.is_none());
        waits && self.link.as_ref().is_some_and(|link| link.established() && link.buffered() < OUTBOX)
    }

    /// Whether inbound packets go on to a new master.
    pub(super) fn forwards(&self) -> bool {
        (self.frozen_sent || self.forward_until.is_some()) && self.link.is_some()
    }

    /// Forwards an inbound packet, its checksum whole and right, to the new master, if there is one.
    pub(super) fn forward(&mut self, packet: &[u8]) {
        if self.forwards() {
            if let Some(link) = &mut self.link {
                // One that does not go comes again.
                let _ = link.send(&Message::Forward { bytes: packet });
            }
        }
    }

    /// Notes it if this is why a connection with the partner was not made.
    fn note_version(&mut self, now: Now, reason: &CloseReason) {
        if let CloseReason::Handshake(fault @ Fault::Version { .. }) = reason {
            self.estranged = Some((now, fault.to_string()));
        }
    }

    /// Why we cannot talk to the partner's manager, if it is of another version and runs.
    fn estrangement(&self, now: Now) -> Option<&str> {
        let (at, text) = self.estranged.as_ref()?;
        (now.saturating_sub(*at) < ESTRANGED_FOR).then_some(text)
    }

    /// Tells the partner that we end on purpose.
    pub(super) fn say_bye(&mut self, reason: &str) {
        if let Some(link) = &mut self.link {
            if link.send(&Message::Bye { reason: reason.into() }).is_ok() {
                link.flush();
            }
        }
    }

    pub(super) fn send(&mut self, message: &Message<'_>) {
        let Some(link) = &mut self.link else { return };
        if let Err(error) = link.send(message) {
            log::warn!("replication: {error:?}");
            link.close("the partner does not keep up");
        }
    }
}

/// Every address of ours to every one of the partner's, of the same family.
fn heartbeat_socket(config: &Config, key: Key) -> io::Result<HeartbeatSocket> {
    let port = config.failover.heartbeat_port;
    let mut paths = Vec::new();
    for theirs in config.partner().into_iter().flat_map(crate::config::Member::addresses) {
        for ours in config.me().addresses().filter(|a| a.is_ipv4() == theirs.is_ipv4()) {
            paths.push((SocketAddr::new(ours, port), SocketAddr::new(theirs, port)));
        }
    }
    let codec = Codec::new(key, &config.service.name, config.member_index)?;
    HeartbeatSocket::bind(&paths, codec)
        .map_err(|e| io::Error::new(e.kind(), format!("heartbeats cannot bind port {port} (UDP): {e}")))
}

fn view_role(role: u8) -> Role {
    match role {
        1 => Role::Backup,
        2 => Role::Master,
        3 => Role::Fenced,
        _ => Role::Starting,
    }
}

/// Cuts a run of records into pieces that fit a message, between records.
fn pieces(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let mut rest = bytes;
        while !rest.is_empty() && bytes.len() - rest.len() < PIECE {
            let next = record::decode(&mut rest);
            assert!(next.is_ok(), "our own log is well-formed");
        }
        let piece = &bytes[..bytes.len() - rest.len()];
        bytes = rest;
        Some(piece)
    })
}

impl Manager {
    // ---- heartbeats ----------------------------------------------------------------------------------

    pub(super) fn beat(&mut self) {
        let view = self.role.view();
        let body = HeartbeatBody {
            epoch: view.epoch,
            role: view.role as u8,
            paired: view.paired,
            full_replica: view.full_replica,
            unguarded: !self.host.is_guarded(),
            position: self.filter.log_end().max(self.partner.stored),
            partner_boot: 0,
            partner_counter: 0,
        };
        let now = self.now();
        if let Err(error) = self.epochs.record(view.epoch) {
            // A master that fell silent would be taken for dead, and its sessions lost: worse than an epoch that a
            // reboot forgets.
            self.complain(now, 2, format_args!("cannot write the epoch file; a reboot would forget it: {error}"));
        }
        self.partner.heartbeat_due = now + self.partner.heartbeat_every;
        if let Some(heartbeat) = &mut self.partner.heartbeat {
            self.partner.beats.truncate(BEATS - 1);
            self.partner.beats.push_front((heartbeat.next_counter(), now));
            heartbeat.send(&body);
        }
    }

    pub(super) fn beat_if_due(&mut self, now: Now) {
        if self.partner.partner.is_some() && now >= self.partner.heartbeat_due {
            self.beat();
        }
    }

    pub(super) fn receive_heartbeats(&mut self) {
        let now = self.now();
        let Some(heartbeat) = &mut self.partner.heartbeat else { return };
        let mut heard_until = None;
        while let Some(received) = heartbeat.recv() {
            // What is over, because a newer one overtook it, was something else: a start, another epoch's pair.
            if !received.heard.alive || !received.heard.newest {
                continue;
            }
            let b = received.heard.body;
            self.partner.unguarded = b.unguarded;
            let view = PartnerView { role: view_role(b.role), epoch: b.epoch, paired: b.paired, full_replica: b.full_replica };
            self.role.handle(now, RoleInput::Heartbeat(view));
            // It had heard this one. What it said may be old by now.
            let echo = heartbeat.echo(&received.heard);
            let sent = self.partner.beats.iter().find(|(counter, _)| echo.is_some_and(|echo| *counter <= echo));
            let Some(&(_, sent)) = sent else { continue };
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
        if let Some((from, why)) = self.partner.heartbeat.as_mut().and_then(HeartbeatSocket::take_last_rejection) {
            self.complain(now, 0, format_args!("a datagram from {from} was dropped: {why}"));
        }
    }

    /// What comes again and again: one line for as many of a kind as come in a while.
    fn complain(&mut self, now: Now, kind: usize, what: std::fmt::Arguments<'_>) {
        if now >= self.partner.complain_at[kind] {
            self.partner.complain_at[kind] = now + COMPLAIN_EVERY;
            log::warn!("{what}");
        }
    }

    // ---- reach ---------------------------------------------------------------------------------------

    /// A partner that starts while a master of a version that it does not speak serves must not take its place: it would
    /// end every session.
    fn held_back(&mut self, now: Now) -> bool {
        let held = self.role.role() == Role::Starting && self.partner.estrangement(now).is_some();
        if held {
            self.complain(now, 3, format_args!("not starting to serve while the partner's manager is of another version"));
        }
        held
    }

    pub(super) fn reach_ready(&mut self) {
        if self.partner.reach.on_readable() && !self.held_back(self.now()) {
            self.partner.reach_until = None;
            self.role.handle(self.start.elapsed(), RoleInput::Reach(true));
        }
    }

    pub(super) fn probe_reach(&mut self, now: Now) {
        if self.held_back(now) {
            return;
        }
        let mut peers: Vec<std::net::Ipv4Addr> = Vec::new();
        for s in self.filter.store().iter() {
            if let std::net::IpAddr::V4(ip) = s.open.tuple.peer.ip() {
                if !peers.contains(&ip) {
                    peers.push(ip);
                }
            }
            if peers.len() == 4 {
                break;
            }
        }
        self.partner.reach.set_peers(&peers);
        if self.partner.reach.nothing_to_probe() {
            self.role.handle(now, RoleInput::Reach(true));
            return;
        }
        let p = &mut self.partner;
        p.reach.probe();
        // Never put off by asking again: a member that stutters while it is cut off must know it in time, too.
        p.reach_until.get_or_insert(now + p.reach_patience);
    }

    // ---- the link ------------------------------------------------------------------------------------

    pub(super) fn accept_link(&mut self) {
        let now = self.now();
        while let Some(link) = self.partner.listener.as_mut().and_then(|l| l.on_ready(now)) {
            if self.partner.link.is_some() {
                // The partner knows better whether the old one works.
                self.drop_link(now, "replaced by a newer one", false);
            }
            self.take_link(link);
            self.link_ready(true, false);
        }
        if let Some((from, reason)) = self.partner.listener.as_mut().and_then(Listener::take_last_rejection) {
            self.complain(now, 1, format_args!("a replication connection from {from} was turned away: {reason}"));
            if self.partner.partner.as_ref().is_some_and(|p| p.2.ip() == from.ip()) {
                self.partner.note_version(now, &reason);
            }
        }
    }

    fn take_link(&mut self, link: Link) {
        self.partner.interest = link.interest();
        let (read, write) = self.partner.interest;
        let added = self.poller.add(link.fd(), Token::Link).and_then(|()| self.poller.set(link.fd(), Token::Link, read, write));
        match added {
            Ok(()) => {
                self.partner.heard_bye = false;
                self.partner.link = Some(link);
            }
            Err(error) => log::error!("cannot watch the replication connection: {error}"),
        }
    }

    pub(super) fn partner_interest(&mut self) {
        if let Some(link) = &self.partner.link {
            let interest = link.interest();
            if interest != self.partner.interest {
                self.partner.interest = interest;
                if let Err(error) = self.poller.set(link.fd(), Token::Link, interest.0, interest.1) {
                    log::error!("cannot watch the replication connection: {error}");
                }
            }
        }
    }

    pub(super) fn link_ready(&mut self, readable: bool, writable: bool) {
        let now = self.now();
        let Some(link) = &mut self.partner.link else { return };
        link.on_ready(now, readable, writable);
        if link.established() && !self.partner.link_up {
            self.partner.link_up = true;
            self.greet();
        }
        self.read_link(now);
        self.check_link(now);
    }

    fn greet(&mut self) {
        let view = self.role.view();
        let protocol = self.partner.link.as_ref().and_then(Link::version).unwrap_or(PROTOCOL);
        self.filter.set_plain_log(protocol < CAUSES);
        self.filter.set_log_without_options(protocol < OPTIONS);
        let hello = Hello {
            protocol,
            service: self.config.service.name.clone(),
            member: self.partner.me,
            boot: self.partner.boot,
            epoch: view.epoch,
            role: view.role as u8,
            config_digest: self.partner.digest,
        };
        self.partner.greet_at = self.now() + GREET_EVERY;
        self.partner.send(&Message::Hello(hello));
        self.partner.program_told = None;
        self.tell_alone();
        self.partner.flush();
    }

    /// Over the connection where heartbeats do not get through: what we are, from time to time and when it changes. They are no
    /// pair then, but one master and one backup.
    pub(super) fn greet_again(&mut self, now: Now, changed: bool) {
        if self.partner.link_up && !self.role.in_contact() && (changed || now >= self.partner.greet_at) {
            self.greet();
        }
    }

    /// Says why our program would not take the sessions over, if that has changed.
    pub(super) fn tell_program(&mut self, trouble: Option<&str>) {
        let speaks = self.partner.link.as_ref().and_then(Link::version).is_some_and(|version| version >= OPTIONS);
        let trouble = trouble.unwrap_or_default();
        // It takes us for well until we say otherwise.
        if self.partner.link_up && speaks && self.partner.program_told.as_deref().unwrap_or_default() != trouble {
            self.partner.program_told = Some(trouble.to_owned());
            self.partner.send(&Message::Program { trouble: trouble.into() });
            self.partner.flush();
        }
    }

    /// A master that yielded: the sessions for which it had released anything alone.
    fn tell_alone(&mut self) {
        let speaks = self.partner.link.as_ref().and_then(Link::version).is_some_and(|version| version >= 2);
        let Some((epoch, names)) = self.partner.to_tell.take_if(|_| speaks) else { return };
        let mut rest = &names[..];
        loop {
            let (piece, more) = rest.split_at(rest.len().min(NAMES));
            self.partner.send(&Message::Alone { epoch, more: more.len() as u64, names: piece });
            rest = more;
            if rest.is_empty() {
                break;
            }
        }
        // Again with the next connection, if this one ends too soon.
        self.partner.to_tell = Some((epoch, names));
    }

    /// The partner released something for these sessions alone, while we had them.
    fn hear_alone(&mut self, now: Now, names: &[u8], last: bool) {
        let ends = self.filter.tear_named(now, names);
        if !ends.is_empty() {
            log::error!("the partner had gone on by itself: {} connections are reset on which it had said something", ends.len());
            self.partner.doomed.extend(ends);
        }
        if last {
            self.role.handle(now, RoleInput::ToldAlone);
        }
        self.stay_alive();
    }

    /// Removes sockets of connections that were torn; the filter knows them no more.
    fn remove_doomed(&mut self) {
        let rest = self.partner.doomed.len().saturating_sub(DOOMED);
        for end in self.partner.doomed.split_off(rest) {
            if let Err(error) = self.sockdiag.destroy(end.local, end.peer) {
                log::warn!("cannot remove the kernel's socket {} <- {}: {error}", end.local, end.peer);
            }
        }
    }

    fn read_link(&mut self, now: Now) {
        let mut acked = None;
        loop {
            // Out of its place while its message borrows from it.
            let Some(mut link) = self.partner.link.take() else { break };
            let went_on = match link.poll_message().map(|message| self.hear(now, message, &mut acked)) {
                None => false,
                Some(Ok(())) => true,
                Some(Err(why)) => {
                    log::error!("replication: {why}");
                    // Said, so that it is not taken for our death.
                    if link.send(&Message::Bye { reason: why.as_str().into() }).is_ok() {
                        link.flush();
                    }
                    link.close(&why);
                    false
                }
            };
            self.partner.link = Some(link);
            // What a message led to is done before the next is read: roles change between messages.
            self.role_actions();
            self.partner.heard_handover = false;
            if !went_on {
                break;
            }
        }
        if let Some((epoch, position)) = acked {
            if self.partner.followed == Some(epoch) {
                self.partner.send(&Message::Ack { epoch, position });
            }
        }
    }

    /// One message of the partner. An error closes the link.
    fn hear(&mut self, now: Now, message: Message<'_>, acked: &mut Option<(Epoch, u64)>) -> Result<(), String> {
        match message {
            Message::Hello(hello) => {
                if !self.partner.link_config.versions.contains(&hello.protocol) {
                    return Err(format!("the partner goes on in protocol version {}, which we do not speak", hello.protocol));
                }
                self.partner.estranged = None;
                self.partner.program_trouble = None;
                if hello.config_digest != self.partner.digest {
                    log::warn!("the partner's configuration of ports, virtual IP or durability differs from ours");
                }
                let view = PartnerView { role: view_role(hello.role), epoch: hello.epoch, paired: false, full_replica: false };
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
                    // This very message told us that we are no master any more. It is sent again.
                    return Err("a snapshot came before we had stepped down".to_owned());
                }
                self.role.handle(now, RoleInput::StoreStale);
                self.filter.replica_reset();
                self.note_empty();
                self.partner.receiving = true;
                self.partner.followed = Some(epoch);
                self.partner.stored = position;
            }
            Message::SnapshotEnd { epoch, position } => {
                if self.partner.followed == Some(epoch) && self.role.role() == Role::Backup {
                    self.partner.receiving = false;
                    self.partner.stored = position;
                    *acked = Some((epoch, position));
                }
            }
            Message::Records { epoch, position, bytes } => {
                // A backup that promotes stops acknowledging: its old master stays silent from then on.
                if self.partner.followed != Some(epoch) || self.role.role() != Role::Backup {
                    return Ok(());
                }
                if !self.partner.receiving {
                    if position != self.partner.stored {
                        return Err(format!("a gap in the log: {} stored, {position} came", self.partner.stored));
                    }
                    self.partner.stored = self.partner.stored.wrapping_add(bytes.len() as u64);
                    *acked = Some((epoch, self.partner.stored));
                }
                self.filter.replica_apply(bytes).map_err(|e| e.to_string())?;
                self.note_records(bytes);
            }
            Message::Ack { epoch, position } => {
                if epoch == self.role.epoch() && self.partner.shipping {
                    if position > self.filter.log_end() {
                        return Err("it acknowledges log that was never written".to_owned());
                    }
                    if self.filter.needs_replica() {
                        self.filter.replica_stored(now, position);
                    } else {
                        self.partner.stored = position;
                        self.catch_up(now);
                    }
                }
            }
            Message::Paired { epoch } => {
                self.partner.paired_in = Some(epoch);
            }
            Message::PairedAck { epoch } => {
                if epoch == self.role.epoch() {
                    self.role.handle(now, RoleInput::PairedAcked);
                }
            }
            Message::Handover { epoch, position } => {
                if position != self.partner.stored {
                    return Err("a handover of a log that is not here".to_owned());
                }
                self.partner.heard_handover = true;
                self.role.handle(now, RoleInput::Handover(epoch));
            }
            Message::HandoverAck { epoch } => {
                // It has the log to its end. A heartbeat may have told before.
                if self.partner.frozen_sent {
                    self.filter.replica_stored(now, self.filter.log_end());
                    self.filter_actions();
                }
                for packet in std::mem::take(&mut self.takeover.farewells) {
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
            Message::Program { trouble } => {
                let trouble = Some(trouble.chars().take(MOST_SAID).collect::<String>()).filter(|text| !text.is_empty());
                if let Some(text) = &trouble {
                    log::error!("not protected: the partner's program would not take over: {text}");
                }
                self.partner.program_trouble = trouble;
            }
            Message::Bye { reason } => {
                log::info!("the partner says good-bye: {reason}");
                self.partner.heard_bye = true;
                if reason == "the service ended" {
                    self.role.handle(now, RoleInput::PartnerBye);
                }
            }
        }
        Ok(())
    }

    /// A pair's epoch survives the reboot of either.
    fn pair(&mut self, now: Now) {
        let Some(epoch) = self.partner.paired_in.take_if(|_| self.epochs.settled()) else { return };
        if self.partner.followed == Some(epoch) && self.role.role() == Role::Backup {
            self.role.handle(now, RoleInput::PairedIn(epoch));
            // Whoever says so has heard all that went before our acknowledgement.
            self.partner.to_tell = None;
            self.partner.send(&Message::PairedAck { epoch });
            self.partner.flush();
        }
    }

    fn check_link(&mut self, now: Now) {
        let Some(link) = &self.partner.link else { return };
        let Some(&reason) = link.close_reason() else { return };
        self.partner.note_version(now, &reason);
        let text = reason.to_string();
        let gone = reason.partner_gone() && self.partner.link_up && !self.partner.heard_bye;
        self.drop_link(now, &text, gone);
    }

    fn drop_link(&mut self, now: Now, why: &str, gone: bool) {
        let Some(link) = self.partner.link.take() else { return };
        self.poller.remove(link.fd());
        if self.partner.link_up {
            log::info!("replication connection lost: {why}");
        } else if self.partner.last_close.as_deref() != Some(why) {
            log::info!("no replication connection: {why}");
        }
        self.partner.last_close = Some(why.to_owned());
        self.stop_shipping();
        self.partner.dial_at = now + if self.partner.link_up { Duration::ZERO } else { DIAL_EVERY };
        if std::mem::take(&mut self.partner.link_up) {
            self.role.handle(now, RoleInput::LinkDown { reset: gone });
        }
    }

    // ---- the log -------------------------------------------------------------------------------------

    /// Sends the log that was written, if it is time and the link takes it.
    pub(super) fn ship_if_due(&mut self) {
        if self.filter.has_batch(self.now()) {
            self.collect();
        }
        self.send_log(OUTBOX);
        self.press();
    }

    /// The same, whether anybody waits for it or not.
    pub(super) fn ship(&mut self) {
        self.collect();
        self.send_log(usize::MAX);
    }

    /// Takes the log that was written.
    fn collect(&mut self) {
        let mut fresh = std::mem::take(&mut self.partner.fresh);
        fresh.clear();
        let position = self.filter.take_batch(&mut fresh);
        self.note_records(&fresh);
        let p = &mut self.partner;
        if p.shipping {
            if p.batch_sent == p.batch.len() {
                (p.batch_at, p.batch_sent) = (position, 0);
                std::mem::swap(&mut p.batch, &mut fresh);
            } else {
                p.batch.extend_from_slice(&fresh);
            }
        }
        p.fresh = fresh;
    }

    /// Gives the log to the link as long as no more than this waits there.
    fn send_log(&mut self, most: usize) {
        let p = &mut self.partner;
        if p.batch_sent == p.batch.len() {
            return;
        }
        let batch = std::mem::take(&mut p.batch);
        for piece in pieces(&batch[p.batch_sent..]) {
            if p.link.as_ref().is_none_or(|link| link.buffered() >= most) {
                break;
            }
            let position = p.batch_at + p.batch_sent as u64;
            p.send(&Message::Records { epoch: self.role.epoch(), position, bytes: piece });
            p.batch_sent += piece.len();
        }
        p.batch = batch;
        if p.batch_sent > FAR as usize / 4 {
            p.batch.drain(..p.batch_sent);
            p.batch_at += std::mem::take(&mut p.batch_sent) as u64;
        }
    }

    /// Those who write the log wait where it is far ahead of the replica: the link is as fast as it is.
    fn press(&mut self) {
        let now = self.now();
        let p = &mut self.partner;
        let end = self.filter.log_end();
        let pressure = if p.shipping {
            // While the replica is not complete nothing waits for it, but what the link does not take stays here.
            let sent = p.batch_at + p.batch_sent as u64;
            let waiting = if p.batch_sent < p.batch.len() { sent } else { end };
            let stored = if self.filter.needs_replica() { self.filter.replica_position() } else { waiting };
            p.marks.retain(|(position, _)| *position > stored && *position <= end);
            if end > p.marks.back().map_or(stored, |mark| mark.0) + MARK {
                p.marks.push_back((end, now));
            }
            let late = p.marks.front().is_some_and(|(_, at)| now > *at + LATE);
            match end.saturating_sub(stored) {
                behind if behind > 2 * FAR || late && behind > 4 * LATE_BYTES => ring::STOP,
                behind if behind > FAR || late && behind > LATE_BYTES => ring::EASE,
                _ => 0,
            }
        } else {
            p.marks.clear();
            0
        };
        if std::mem::replace(&mut p.pressure, pressure) != pressure {
            self.apps.values().for_each(|app| app.channel.set_pressure(pressure));
            self.filter.set_overloaded(now, pressure == ring::STOP);
        }
    }

    pub(super) fn start_pairing(&mut self) {
        self.ship();
        self.stop_shipping();
        let epoch = self.role.epoch();
        let position = self.filter.log_end();
        let left = self.filter.sessions();
        log::info!("sending a snapshot of {} sessions", left.len());
        self.partner.send(&Message::SnapshotBegin { epoch, position });
        self.partner.shipping = true;
        self.partner.snapshot = Some(Snapshot { begun: self.now(), position: None, left, catch_up_until: None });
        if self.partner.link.as_ref().and_then(Link::version).is_none_or(|version| version < SNAPSHOT_IN_STEPS) {
            // To this partner it stands for the log position of its beginning: all of it at once.
            while self.snapshot_step(0) {}
        }
    }

    /// Sends the next part of a snapshot, if one is under way, of so many bytes at least. Returns whether there is more.
    fn snapshot_step(&mut self, least: usize) -> bool {
        if self.partner.snapshot.as_ref().is_none_or(|snapshot| snapshot.position.is_some()) {
            return false;
        }
        self.ship();
        let (epoch, position) = (self.role.epoch(), self.filter.log_end());
        let Some(snapshot) = &mut self.partner.snapshot else { return false };
        let mut bytes = Vec::new();
        for _ in 0..STEP {
            if bytes.len() >= least.max(PIECE) {
                break;
            }
            let Some(session) = snapshot.left.pop() else { break };
            self.filter.snapshot_session(session, &mut bytes);
        }
        let more = !snapshot.left.is_empty();
        if !more {
            snapshot.position = Some(position);
        }
        for piece in pieces(&bytes) {
            self.partner.send(&Message::Records { epoch, position, bytes: piece });
        }
        if !more {
            self.partner.send(&Message::SnapshotEnd { epoch, position });
        }
        more
    }

    /// Goes on with a snapshot where the link has room for it.
    pub(super) fn go_on_with_snapshot(&mut self) {
        // The log that was written goes before it. Where more is written than the link takes there is always some, and the
        // snapshot has as much of the link as the log.
        let log = self.partner.batch.len() - self.partner.batch_sent;
        if self.partner.has_more_to_send() && log as u64 <= 8 * LATE_BYTES {
            self.snapshot_step(log);
        }
    }

    /// The replica holds the snapshot; nothing may wait for it before it has most of what was written since.
    fn catch_up(&mut self, now: Now) {
        let Some(snapshot) = &mut self.partner.snapshot else { return };
        if snapshot.position.is_none_or(|position| self.partner.stored < position) {
            return;
        }
        let behind = self.filter.log_end().saturating_sub(self.partner.stored);
        if behind > CAUGHT_UP && now < *snapshot.catch_up_until.get_or_insert(now + CATCH_UP) {
            return;
        }
        log::info!("the replica is complete after {} ms, {behind} bytes behind", (now - snapshot.begun).as_millis());
        self.partner.snapshot = None;
        self.role.handle(now, RoleInput::ReplicaFull);
    }

    /// The log of an epoch that is over goes nowhere.
    pub(super) fn stop_shipping(&mut self) {
        self.partner.shipping = false;
        self.partner.pairing_waits = false;
        self.partner.snapshot = None;
        self.partner.batch.clear();
        self.partner.batch_sent = 0;
        self.partner.receiving = false;
        self.partner.frozen_sent = false;
        self.partner.paired_in = None;
    }

    // ---- timers --------------------------------------------------------------------------------------

    pub(super) fn partner_timers(&mut self, now: Now) {
        self.note_peers();
        self.pair(now);
        self.beat_if_due(now);
        self.greet_again(now, false);
        if !self.partner.link_up || self.role.in_contact() {
            self.partner.contact_at = now;
        }
        self.remove_doomed();
        if now >= self.partner.carrier_due {
            self.partner.carrier_due = now + self.partner.heartbeat_every;
            let carrier = self.vips.first().is_none_or(|v| v.running().unwrap_or(true));
            if carrier != self.partner.carrier {
                self.partner.carrier = carrier;
                self.role.handle(now, RoleInput::Carrier(carrier));
            }
        }
        if self.partner.reach_until.is_some_and(|t| now >= t) {
            self.partner.reach_until = None;
            self.role.handle(now, RoleInput::Reach(false));
        }
        if let Some(listener) = &mut self.partner.listener {
            listener.handle_timeout(now);
        }
        if let Some(link) = &mut self.partner.link {
            link.handle_timeout(now);
            self.check_link(now);
        }
        if self.partner.forward_until.is_some_and(|until| now >= until) {
            self.partner.forward_until = None;
        }
        if self.partner.link.is_none() && self.partner.dials() && now >= self.partner.dial_at {
            self.partner.dial_at = now + DIAL_EVERY;
            let to = self.partner.partner.as_ref().map(|p| p.2);
            let from = SocketAddr::new(self.partner.local.ip(), 0);
            match to.map(|to| Link::connect(now, to, Some(from), self.partner.link_config.clone())) {
                Some(Ok(link)) => self.take_link(link),
                Some(Err(error)) => log::debug!("cannot reach the partner: {error}"),
                None => {}
            }
        }
    }

    // ---- status --------------------------------------------------------------------------------------

    pub(super) fn partner_status(&self) -> serde_json::Value {
        let Some((_, name, address)) = &self.partner.partner else { return serde_json::Value::Null };
        let view = self.role.partner();
        let deaf = self.now().saturating_sub(self.partner.contact_at) > DEAF_AFTER;
        let deaf = deaf.then(|| {
            let port = self.config.failover.heartbeat_port;
            format!("connected, but heartbeats do not get through in both directions, so this is no pair: is UDP port {port} open between the members?")
        });
        let program = self.partner.program_trouble.as_ref().map(|text| format!("its program would not take over: {text}"));
        json!({
            "member": name,
            "address": address.ip().to_string(),
            "connected": self.partner.link_up,
            "heard": !self.role.partner_suspected(),
            "role": view.map(|v| match v.role {
                Role::Starting => "starting",
                Role::Backup => "backup",
                Role::Master => "master",
                Role::Fenced => "fenced",
            }),
            "epoch": view.map(|v| v.epoch.number),
            "heartbeats_refused": self.partner.heartbeat.as_ref().map_or(0, |h| h.rejected().total()),
            "trouble": match self.partner.link_up {
                true if self.partner.unguarded => Some("its packet rules are missing"),
                true => deaf.as_deref().or(program.as_deref()),
                false => self.partner.estrangement(self.now()).or(self.partner.last_close.as_deref()),
            },
        })
    }
}
