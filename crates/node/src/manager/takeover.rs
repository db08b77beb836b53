//! Restoring sessions and handing them over (docs/design.md, "Takeover").

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tcpr_session::filter::{HandOut, Mode};
use tcpr_session::filter::RestoreSpec;
use tcpr_session::role::Role;
use tcpr_session::tuple::{FourTuple, SessionId};
use tcpr_session::Now;

use super::doorbell::{self, Doorbell};
use super::Manager;
use crate::channel::ring::SLOTS;
use crate::channel::wire::{RecoveredInfo, Reply, MAX_RECOVERED};
use crate::sockdiag::{state, Ours};
use crate::{channel, repair};

/// How long the peers have to answer the probe. One on the same network needs a fraction of it.
const PROBE_WAIT: Duration = Duration::from_millis(10);
/// How long new connections and input wait for an application that does not accept.
const BARRIER: Duration = Duration::from_secs(3);
/// The same for one that has still to start and listen.
const BARRIER_UNTIL_LISTENING: Duration = Duration::from_secs(30);
/// How long a doorbell may go unheard.
const RING_AGAIN: Duration = Duration::from_millis(100);
/// How often a listener is asked what has yet to be accepted.
const ACCEPTED_AGAIN: Duration = Duration::from_millis(1);
/// How often an application without a listener is looked at again.
const DOORBELL_AGAIN: Duration = Duration::from_millis(20);
/// So many bytes of options are handed over at once: a message has room for twice as much beside the sessions.
const OPTIONS_AT_ONCE: usize = 8 << 10;
/// How many names are tried for the socket of a session whose own is another connection's here.
const NAMES: usize = 8;
/// How long sessions wait for descriptors before it is tried again, if the application took none meanwhile.
const FILES_AGAIN: Duration = Duration::from_millis(20);

/// How the last takeover went; microseconds since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Sessions in the store.
    pub sessions: usize,
    /// Sessions whose peer answered the probe in time.
    pub probed: usize,
    /// All peers answered, or waited for long enough.
    pub probed_us: u64,
    /// All sockets made.
    pub restored_us: u64,
    /// Time spent making sockets, per session.
    pub restore_us_per_session: f64,
    /// The application holds all of them; input flows.
    pub done_us: u64,
}

struct Ready {
    info: RecoveredInfo,
    socket: OwnedFd,
}

/// State of the takeover under way, if one is.
pub(super) struct Takeover {
    ours: Ours,
    /// Hooks say what was accepted; else the listener's queue does.
    hooked: bool,
    accepted_at: Option<Now>,
    started: Option<Now>,
    probe_until: Option<Now>,
    barrier_until: Option<Now>,
    doorbell_at: Option<Now>,
    listeners: HashMap<u16, HashSet<u32>>,
    ready: HashMap<u16, VecDeque<Ready>>,
    /// Sessions whose sockets are made when the application has taken others: a process may have only so many. Whether
    /// their peers answered.
    waiting: BTreeMap<SessionId, bool>,
    /// No socket is made before this.
    files_at: Option<Now>,
    /// A socket with this number is the last: the process has other things to open.
    most_files: u64,
    /// How many sockets there were when no more could be made.
    most_ready: usize,
    doorbells: HashMap<u16, TcpStream>,
    /// The next session waits for the connect that the last one makes, until then at the longest.
    gate_until: Option<Now>,
    /// Sessions of which it was said that they were reset for want of their other half.
    unpaired_said: u64,
    /// Local ports of the doorbells, newest first.
    rung: Vec<u16>,
    spent: Duration,
    pub report: Report,
    /// As the old master: a handover was started and is not over.
    pub handing_over: bool,
    /// As the old master: resets of sessions that ended just before, for when the new one is known to know it.
    pub farewells: Vec<Vec<u8>>,
    /// The program has died, and its sessions wait for somebody to serve them.
    pub died: bool,
}

impl Takeover {
    pub(super) fn new(ours: Ours, hooked: bool) -> Takeover {
        Takeover {
            ours,
            hooked,
            accepted_at: None,
            started: None,
            probe_until: None,
            barrier_until: None,
            doorbell_at: None,
            listeners: HashMap::new(),
            ready: HashMap::new(),
            waiting: BTreeMap::new(),
            files_at: None,
            most_files: 0,
            most_ready: 0,
            doorbells: HashMap::new(),
            gate_until: None,
            unpaired_said: 0,
            rung: Vec::new(),
            spent: Duration::ZERO,
            report: Report::default(),
            handing_over: false,
            farewells: Vec::new(),
            died: false,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Now> {
        [self.probe_until, self.barrier_until, self.doorbell_at, self.accepted_at, self.files_at, self.gate_until].into_iter().flatten().min()
    }

    pub(super) fn handover_under_way(&self) -> bool {
        self.handing_over
    }

    pub(super) fn ours(&self) -> &Ours {
        &self.ours
    }

    /// Sockets that the application has yet to take.
    fn made(&self) -> usize {
        self.ready.values().map(VecDeque::len).sum()
    }

    pub(super) fn has_listener(&self, port: u16) -> bool {
        self.listeners.get(&port).is_some_and(|l| !l.is_empty())
    }

    pub(super) fn app_gone(&mut self, channel: u32) {
        for channels in self.listeners.values_mut() {
            channels.remove(&channel);
        }
    }

    /// A session ended before the application had it.
    pub(super) fn forget(&mut self, session: SessionId) {
        self.waiting.remove(&session);
        for queue in self.ready.values_mut() {
            queue.retain(|r| r.info.session != session);
        }
    }

    /// No takeover any more; sockets not handed over vanish silently.
    pub(super) fn abandon(&mut self) {
        for ready in self.ready.drain().flat_map(|(_, queue)| queue) {
            if let Err((_, error)) = repair::close_silently(ready.socket) {
                log::warn!("cannot close a restored socket silently: {error}");
            }
        }
        self.waiting.clear();
        self.files_at = None;
        self.doorbells.clear();
        self.gate_until = None;
        self.probe_until = None;
        self.barrier_until = None;
        self.doorbell_at = None;
        self.accepted_at = None;
        self.started = None;
    }
}

impl Manager {
    /// The store is ours: probe every peer, and restore each session as its answer comes.
    pub(super) fn begin_takeover(&mut self, now: Now) {
        self.filter.take_over(now);
        self.takeover.farewells.clear();
        self.begin_restoring(now);
    }

    /// The program is dead, and nobody takes over: its sessions wait here for the next one. Where that cannot be judged
    /// yet (a handover is under way, or this member is cut off) it is done when it can.
    pub(super) fn recover_here(&mut self, now: Now) {
        let serves = matches!(self.filter.mode(), Mode::Active | Mode::Restoring);
        let held_up = self.role.role() != Role::Master || !self.host.may_take_address();
        self.takeover.died = self.filter.mode() != Mode::Passive && (!serves || held_up);
        if !serves || self.takeover.died {
            return;
        }
        log::info!("{} sessions wait for the program to come back", self.filter.store().len());
        // What the kernel has of the dead program's sockets may say nothing any more, be it asked for or not: what is
        // still to be said will be said by the restored ones. Packets that are queued belong to the old sockets.
        self.filter.set_fenced(now, true);
        self.receive_in();
        self.destroy_sockets();
        for _ in 0..100 {
            if self.receive_out() {
                break;
            }
        }
        self.takeover.abandon();
        self.filter.recover(now);
        self.filter_actions();
        self.begin_restoring(now);
    }

    fn begin_restoring(&mut self, now: Now) {
        let t = &mut self.takeover;
        t.started = Some(now);
        t.most_files = channel::descriptor_limit() / 4 * 3;
        t.spent = Duration::ZERO;
        t.report = Report { sessions: self.filter.store().len(), ..Report::default() };
        t.probe_until = Some(now + PROBE_WAIT);
        let listening = self.config.service.ports.iter().all(|p| t.has_listener(p.port));
        t.barrier_until = Some(now + if listening { BARRIER } else { BARRIER_UNTIL_LISTENING });
        t.accepted_at = (!t.hooked).then_some(now);
        self.track_sessions();
        self.filter.probes();
        self.filter_actions();
        // The last of many has as long to answer as the first.
        let asked = self.now();
        self.takeover.probe_until = self.takeover.probe_until.map(|_| asked + PROBE_WAIT);
        if self.filter.unprobed() == 0 {
            self.probes_done(asked);
        }
    }

    /// The peer told its true ACK; it may have come too late to matter.
    pub(super) fn restore_probed(&mut self, session: SessionId) {
        self.takeover.report.probed += 1;
        self.restore(session, true);
        let now = self.now();
        if self.takeover.probe_until.is_none() {
            // A half-open one whose peer completes the handshake when all others are there: nobody looks for it any more.
            self.publish_pending();
            self.ring_doorbells(now);
        } else if self.filter.unprobed() == 0 {
            self.probes_done(now);
        }
    }

    fn probes_done(&mut self, now: Now) {
        if self.takeover.probe_until.take().is_none() {
            return;
        }
        let started = self.takeover.started.unwrap_or(now);
        self.takeover.report.probed_us = (now - started).as_micros() as u64;
        for session in self.filter.unrestored() {
            self.restore(session, false);
        }
        let now = self.now();
        self.note_restored(now);
        self.filter.barrier_met(now);
        self.publish_pending();
        self.ring_doorbells(now);
        self.note_done(now);
    }

    /// Every session has its socket, perhaps.
    fn note_restored(&mut self, now: Now) {
        let t = &mut self.takeover;
        let (Some(started), None) = (t.started, t.probe_until) else { return };
        if t.report.restored_us > 0 || self.filter.unprobed() > 0 {
            return;
        }
        t.report.restored_us = (now - started).as_micros() as u64;
        if t.report.sessions > 0 {
            t.report.restore_us_per_session = t.spent.as_nanos() as f64 / 1000.0 / t.report.sessions as f64;
        }
    }

    fn restore(&mut self, session: SessionId, answered: bool) {
        self.stay_alive();
        let before = self.now();
        if self.filter.splices(session) {
            self.filter.splice(before, session);
            // Known before it can be accepted.
            return self.publish_pending();
        }
        if self.takeover.files_at.is_some() {
            *self.takeover.waiting.entry(session).or_default() |= answered;
            return;
        }
        let Some(mut spec) = self.filter.restore_spec(session, answered, 0) else { return };
        let mut made = make_socket(&spec);
        for _ in 0..NAMES {
            if !made.as_ref().is_err_and(|e| e.errno() == Some(libc::EADDRNOTAVAIL)) {
                break;
            }
            if !self.remove_orphan(session, &spec.tuple) {
                // Somebody's, who may be calling from there: the session's socket gets another port, where that can be.
                if !self.filter.take_other_name(session) {
                    break;
                }
                let Some(again) = self.filter.restore_spec(session, answered, 0) else { return };
                spec = again;
            }
            made = make_socket(&spec);
        }
        if made.as_ref().is_err_and(|e| e.errno() == Some(libc::ENETUNREACH)) {
            // A machine that stood still for so long that the virtual IP ran out.
            self.stay_alive();
            self.vip_add(before);
            made = make_socket(&spec);
        }
        let now = self.now();
        self.takeover.spent += now - before;
        match made {
            Err(error) if matches!(error.errno(), Some(libc::EMFILE | libc::ENFILE)) => {
                self.await_files(now);
                self.takeover.waiting.insert(session, answered);
            }
            Ok(socket) => {
                if socket.as_raw_fd() as u64 >= self.takeover.most_files {
                    self.await_files(now);
                }
                self.filter.restored(now, session, spec.sent.len());
                if spec.closed {
                    // The kernel alone sees it to its end: bytes, FIN, and the peer's.
                    drop(socket);
                    return;
                }
                let info = RecoveredInfo {
                    tuple: spec.tuple,
                    session,
                    absorb: spec.absorb,
                    greeted: spec.greeted,
                    input_pending: u64::from(spec.input_pending),
                    options: spec.options,
                };
                self.takeover.ready.entry(spec.tuple.local.port()).or_default().push_back(Ready { info, socket });
            }
            Err(error) => {
                log::error!("cannot restore session {session} {}: {error}", spec.tuple);
                self.filter.restore_failed(now, session);
            }
        }
    }

    /// There are no descriptors for more sockets, or only those that other things may need: until the application has taken
    /// some, or it is time to try again.
    fn await_files(&mut self, now: Now) {
        let t = &mut self.takeover;
        let made = t.made();
        if t.waiting.is_empty() {
            log::info!("sockets are made as the application takes them: {made} and no more fit into this process (RLIMIT_NOFILE)");
        }
        t.most_ready = made.max(1);
        t.files_at = Some(now + FILES_AGAIN);
    }

    /// Goes on with the sessions that wait for descriptors.
    fn restore_waiting(&mut self, now: Now) {
        if self.takeover.files_at.take().is_none() {
            return;
        }
        loop {
            let t = &mut self.takeover;
            let full = t.files_at.is_some() || t.made() >= t.most_ready;
            match t.waiting.first_entry() {
                None => return self.note_restored(now),
                Some(_) if full => {
                    t.files_at.get_or_insert(now + FILES_AGAIN);
                    return;
                }
                Some(next) => {
                    let (session, answered) = next.remove_entry();
                    self.restore(session, answered);
                }
            }
        }
    }

    /// What does not wait until all sessions are asked for and restored: our heartbeat, and the virtual IP's lifetime.
    pub(super) fn stay_alive(&mut self) {
        let now = self.now();
        self.note_pause();
        // The machine may have stood still, and somebody else be master.
        self.role.note_time(now);
        self.beat_if_due(now);
        self.vip_timers(now);
    }

    /// Removes what an earlier life of this member left in the kernel under a name that a session needs. False: there is
    /// nothing, or it is not known to be that.
    fn remove_orphan(&mut self, session: SessionId, tuple: &FourTuple) -> bool {
        let Ok(Some(there)) = self.sockdiag.find(tuple.local, tuple.peer) else { return false };
        // Peers reach the service's ports through us alone, and a session that we are about to restore is not there. Any
        // other port a program may have chosen for itself; what no process has is no program's.
        let of_service = self.config.service.ports.iter().any(|p| p.port == tuple.local.port());
        if there.state == state::SYN_SENT || there.inode != 0 && !of_service {
            log::info!("session {session}: {tuple} is another connection's here, in state {}", there.state);
            return false;
        }
        let removed = self.sockdiag.destroy_this(&there);
        log::info!("session {session}: removed a socket in state {}: {removed:?}", there.state);
        removed.is_ok_and(|removed| removed)
    }

    fn to_hand_out(&self, queue: &VecDeque<Ready>) -> usize {
        match self.filter.any_later() {
            true => queue.iter().filter(|r| !self.filter.is_later(r.info.session)).count(),
            false => queue.len(),
        }
    }

    /// How many recovered sessions each port has for its application.
    pub(super) fn publish_pending(&self) {
        for port in &self.config.service.ports {
            let waiting = self.takeover.ready.get(&port.port).map_or(0, |queue| self.to_hand_out(queue));
            let restoring = self.filter.mode() == Mode::Restoring;
            // Handed out is not yet accepted: until the barrier falls the hook keeps asking.
            let waiting = waiting.max(self.filter.unaccepted());
            let pending = if restoring { self.filter.not_handed_over().max(waiting) } else { waiting };
            for app in self.apps.values() {
                app.channel.set_pending(port.port, pending as u32);
            }
        }
    }

    /// Wakes whoever waits on a listener that has recovered sessions: one local connection, one byte long.
    pub(super) fn ring_doorbells(&mut self, now: Now) {
        // One that woke nobody is rung again, for as long as sessions wait.
        if self.takeover.doorbell_at.is_some_and(|t| now >= t) {
            let doorbells = &mut self.takeover.doorbells;
            // One that is still in the queue keeps the listener readable. A second one would be there when all sessions
            // are taken, and a program that trusts its epoll would wait in accept for nobody.
            doorbells.retain(|_, bell| doorbell::waits(bell));
            self.takeover.doorbell_at = (!doorbells.is_empty()).then_some(now + RING_AGAIN);
        }
        let ports: Vec<u16> =
            self.takeover.ready.iter().filter(|(_, q)| self.to_hand_out(q) > 0).map(|(port, _)| *port).collect();
        for port in ports {
            if self.takeover.doorbells.contains_key(&port) {
                continue;
            }
            let rung = self.takeover.has_listener(port).then(|| self.ring(port));
            match rung {
                Some(Ok(stream)) => {
                    log::debug!("rang the doorbell of port {port}");
                    self.takeover.doorbells.insert(port, stream);
                    self.takeover.doorbell_at.get_or_insert(now + RING_AGAIN);
                }
                Some(Err(error)) => {
                    log::debug!("doorbell of port {port}: {error}");
                    self.takeover.doorbell_at = Some(now + DOORBELL_AGAIN);
                }
                // Its Listen rings.
                None => {}
            }
        }
    }

    fn ring(&mut self, port: u16) -> io::Result<TcpStream> {
        // The listener may take one family only.
        let mut result = Err(io::ErrorKind::AddrNotAvailable.into());
        for vip in &self.vips {
            let bell = Doorbell::new(vip.addr())?;
            // Those rung before may still be in the queue of a listener.
            self.takeover.rung.insert(0, bell.port);
            self.takeover.rung.truncate(SLOTS);
            for app in self.apps.values() {
                app.channel.set_doorbells(&self.takeover.rung);
            }
            result = bell.ring(port);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// `Listen`: this application accepts on this port from now on.
    pub(super) fn listening(&mut self, channel: u32, port: u16) {
        let now = self.now();
        let t = &mut self.takeover;
        t.listeners.entry(port).or_default().insert(channel);
        if self.config.service.ports.iter().all(|p| t.has_listener(p.port)) {
            t.barrier_until = t.barrier_until.map(|until| until.min(now + BARRIER));
        }
        self.ring_doorbells(now);
        self.filter.listening(now);
    }

    /// `GetRecovered`: descriptors go over as messages, and our copies are closed, or the application's close
    /// would send no FIN.
    pub(super) fn hand_over(&mut self, channel: u32, number: u32, port: u16, max: u32) {
        let now = self.now();
        let queue = self.takeover.ready.entry(port).or_default();
        // One of several processes may have enough, and leave to the others what it has not fetched.
        let alone = self.takeover.listeners.get(&port).is_none_or(|l| l.len() == 1);
        let mut n = queue.len().min(if alone { max as usize } else { 1 }).min(MAX_RECOVERED);
        // One that makes the application connect comes alone, before the others: the connect is known for its.
        self.takeover.gate_until = self.filter.gate(now);
        let mut out: Vec<Ready> = Vec::new();
        if self.takeover.gate_until.is_some() {
            n = 0;
        } else if let Some(next) = queue.iter().position(|r| self.filter.hand_out(r.info.session) == HandOut::Alone).filter(|_| n > 0) {
            n = 1;
            out.extend(queue.remove(next));
        }
        let mut room = OPTIONS_AT_ONCE;
        while out.len() < n {
            let Some(next) = queue.iter().position(|r| !self.filter.is_later(r.info.session)) else { break };
            let size = queue[next].info.options.len();
            // One at least, whatever it has.
            if !out.is_empty() && size > room {
                break;
            }
            room = room.saturating_sub(size);
            out.extend(queue.remove(next));
        }
        let n = out.len();
        let of_port = |id: &SessionId| self.filter.store().get(*id).is_some_and(|s| s.open.tuple.local.port() == port);
        let more = queue.iter().any(|r| !self.filter.is_later(r.info.session)) || self.takeover.waiting.keys().any(of_port);
        let Some(app) = self.apps.get(&channel) else {
            self.takeover.ready.entry(port).or_default().extend(out);
            return;
        };
        let sessions = out.iter().map(|r| r.info.clone()).collect();
        let descriptors: Vec<_> = out.iter().map(|r| r.socket.as_fd()).collect();
        if let Err(error) = app.channel.reply(number, Reply::Recovered { sessions, more }, &descriptors) {
            log::error!("cannot hand sessions over: {error:?}");
            self.takeover.ready.entry(port).or_default().extend(out);
        } else if n > 0 {
            out.iter().for_each(|r| self.filter.handed_out(now, r.info.session));
            drop(out);
            let most = self.takeover.started.map_or(now, |started| started + BARRIER_UNTIL_LISTENING);
            self.takeover.barrier_until = self.takeover.barrier_until.map(|until| until.max((now + BARRIER).min(most)));
            self.restore_waiting(now);
        }
        self.publish_pending();
    }

    /// The session that was handed out last has made its connects: the next one may come.
    pub(super) fn next_pair(&mut self) {
        let now = self.now();
        let unpaired = self.filter.counters().unpaired;
        if unpaired != self.takeover.unpaired_said {
            let more = unpaired - std::mem::replace(&mut self.takeover.unpaired_said, unpaired);
            log::warn!(
                "reset {more} sessions: it is not known which connection of the program belongs to which client, or that \
                 was not made again; see \"Connections that the program makes\" in docs/guarantees.md"
            );
        }
        let refused = self.takeover.gate_until.is_some();
        self.takeover.gate_until = self.takeover.gate_until.and(self.filter.gate(now));
        let opened = refused && self.takeover.gate_until.is_none();
        if !self.filter.next_may() && !opened {
            return;
        }
        self.publish_pending();
        // Whoever found nothing has taken the doorbell off.
        self.takeover.doorbells.retain(|_, bell| doorbell::waits(bell));
        self.ring_doorbells(now);
    }

    /// After hook events: has the application got everything?
    pub(super) fn note_done(&mut self, now: Now) {
        let Some(started) = self.takeover.started else { return };
        self.note_restored(now);
        if self.filter.mode() != Mode::Active {
            if self.filter.mode() == Mode::Restoring {
                self.publish_pending();
            }
            return;
        }
        self.takeover.started = None;
        self.takeover.barrier_until = None;
        self.takeover.accepted_at = None;
        if self.takeover.ready.values().all(VecDeque::is_empty) {
            self.takeover.doorbells.clear();
        }
        self.takeover.report.done_us = (now - started).as_micros() as u64;
        self.publish_pending();
        log::info!("takeover done: {:?}", self.takeover.report);
    }

    /// Without hooks: once nothing waits on the listeners, what is there was accepted.
    fn look_accepted(&mut self, now: Now) -> io::Result<()> {
        if self.sockdiag.backlog(&self.takeover.ours)? > 0 {
            return Ok(());
        }
        let sockets = self.sockdiag.list(&self.takeover.ours)?;
        let made = sockets.iter().filter(|s| s.state != state::SYN_RECV);
        let there: HashSet<(SocketAddr, SocketAddr)> = made.map(|s| (s.local, s.peer)).collect();
        self.filter.all_accepted(now, |tuple| there.contains(&(tuple.local, tuple.peer)));
        Ok(())
    }

    pub(super) fn takeover_timers(&mut self, now: Now) {
        if self.takeover.probe_until.is_some_and(|t| now >= t) {
            self.probes_done(now);
        }
        if self.takeover.doorbell_at.is_some_and(|t| now >= t) {
            self.ring_doorbells(now);
        }
        if self.takeover.gate_until.is_some_and(|t| now >= t) {
            self.next_pair();
        }
        if self.takeover.files_at.is_some_and(|t| now >= t) {
            self.restore_waiting(now);
            self.publish_pending();
            self.ring_doorbells(now);
        }
        if self.takeover.accepted_at.is_some_and(|t| now >= t) {
            self.takeover.accepted_at = Some(now + ACCEPTED_AGAIN);
            if self.filter.mode() == Mode::Restoring && self.filter.unprobed() == 0 {
                if let Err(error) = self.look_accepted(now) {
                    log::warn!("cannot see what waits to be accepted: {error}");
                }
            }
        }
        if self.takeover.barrier_until.is_some_and(|t| now >= t) {
            self.takeover.barrier_until = None;
            let left = self.filter.not_handed_over();
            if left > 0 {
                log::warn!("the application has not accepted {left} recovered sessions; going on without");
            }
            self.filter.lift_barrier(now);
        }
    }
}

fn make_socket(spec: &RestoreSpec) -> Result<OwnedFd, repair::RestoreError> {
    repair::restore(&repair::RestoreSpec {
        local: spec.tuple.local,
        peer: spec.tuple.peer,
        snd_una_seq: spec.snd_una,
        snd_queue: [&spec.sent, &[]],
        unsent: [&spec.unsent, &[]],
        rcv_nxt_seq: spec.rcv_nxt,
        mss: spec.mss,
        snd_wscale: spec.shifts.map(|s| s.0),
        rcv_wscale: spec.shifts.map(|s| s.1),
        sack: spec.sack,
        timestamps: spec.timestamp,
        snd_wnd: spec.snd_wnd,
        max_window: spec.snd_wnd.max(65_535),
        rcv_wnd: spec.rcv_wnd,
        rcv_wup: spec.rcv_nxt,
        fin_sent: false,
    })
    .and_then(|socket| {
        let stream = TcpStream::from(socket);
        if spec.fin {
            repair::step("shutdown", stream.shutdown(Shutdown::Write))?;
        }
        Ok(stream.into())
    })
}
