//! Restoring sessions and handing them over (docs/design.md, "Takeover").

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tcpr_session::filter::{Filter, HandOut, Mode, RestoreSpec};
use tcpr_session::role::Role;
use tcpr_session::tuple::{FourTuple, SessionId};
use tcpr_session::Now;

use super::acceptors::{self, Accepts};
use super::descriptors::{Descriptors, Next};
use super::doorbells::{Decision, Doorbells, RING_AGAIN};
use super::handed::Handed;
use super::program::Program;
use super::ready::{Queue, Ready};
use super::sharing::{Askers, Asking};
use super::Manager;
use crate::channel::wire::{RecoveredInfo, Reply, MAX_RECOVERED};
use crate::sockdiag::{state, Ours, TcpSocket};
use crate::{channel, doorbell, repair};

/// How long the peers have to answer the probe. One on the same network needs a fraction of it.
const PROBE_WAIT: Duration = Duration::from_millis(10);
/// How long new connections and input wait for an application that does not accept.
const BARRIER: Duration = Duration::from_secs(3);
/// The same for one that has still to start and listen.
const BARRIER_UNTIL_LISTENING: Duration = Duration::from_secs(30);
/// The barrier goes on as long as the application accepts, up to this.
const MOST_BARRIER: Duration = Duration::from_secs(10);
/// A recovered session is reset if the program has accepted no session at all for this long. The second value holds while
/// nothing listens.
const ACCEPT_WAIT: Duration = Duration::from_secs(10);
const LISTEN_WAIT: Duration = Duration::from_secs(60);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How often a listener is asked what has yet to be accepted.
const ACCEPTED_AGAIN: Duration = Duration::from_millis(1);
/// How often an application without a listener is looked at again.
const DOORBELL_AGAIN: Duration = Duration::from_millis(20);
/// So many bytes of options are handed over at once: a message has room for twice as much beside the sessions.
const OPTIONS_AT_ONCE: usize = 8 << 10;
/// How many names are tried for the socket of a session whose own is another connection's here.
const NAMES: usize = 8;

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
    ready: HashMap<u16, Queue>,
    descriptors: Descriptors,
    /// Those of a program that takes over and has them already.
    standing: Queue,
    doorbells: Doorbells,
    handed: Handed,
    /// How many sessions the filter awaited when doorbells were looked at.
    awaited: usize,
    askers: Askers,
    /// Ports that somebody listens on, and nobody has told of it.
    untold: Vec<u16>,
    /// Ports of which the filter wants to know how their programs wait, and the connection that is accepted by then; when to
    /// look.
    asked_how: BTreeMap<u16, FourTuple>,
    ask_how_at: Option<Now>,
    /// When to look at what is not accepted; how much that was, and since when there was no less.
    look_at: Option<Now>,
    unaccepted: Option<(usize, Now)>,
    /// The next session waits for the connect that the last one makes, until then at the longest.
    gate_until: Option<Now>,
    /// Sessions of which it was said that they were reset for want of their other half.
    unpaired_said: u64,
    spent: Duration,
    report: Report,
    /// The program has died, and its sessions wait for somebody to serve them.
    died: bool,
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
            descriptors: Descriptors::default(),
            standing: Queue::default(),
            doorbells: Doorbells::default(),
            handed: Handed::default(),
            awaited: 0,
            askers: Askers::default(),
            untold: Vec::new(),
            asked_how: BTreeMap::new(),
            ask_how_at: None,
            look_at: None,
            unaccepted: None,
            gate_until: None,
            unpaired_said: 0,
            spent: Duration::ZERO,
            report: Report::default(),
            died: false,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Now> {
        let (probing, bells) = ([self.probe_until, self.barrier_until], [self.doorbell_at, self.askers.poll_timeout()]);
        let rest = [self.accepted_at, self.ask_how_at, self.descriptors.poll_timeout(), self.gate_until, self.look_at];
        probing.into_iter().chain(bells).chain(rest).flatten().min()
    }

    pub(super) fn report(&self) -> Report {
        self.report
    }

    /// The program has died, and its sessions wait for somebody to serve them.
    pub(super) fn has_died(&self) -> bool {
        self.died
    }

    pub(super) fn set_died(&mut self, died: bool) {
        self.died = died;
    }

    pub(super) fn ours(&self) -> &Ours {
        &self.ours
    }

    /// Sockets that the application has yet to take.
    fn made(&self) -> usize {
        self.ready.values().map(Queue::len).sum::<usize>() + self.standing.len()
    }

    /// The filter wants to know how the program waits that accepts this connection.
    pub(super) fn ask_listener(&mut self, now: Now, tuple: FourTuple) {
        self.asked_how.insert(tuple.local.port(), tuple);
        self.ask_how_at = Some(now + ACCEPTED_AGAIN);
    }

    pub(super) fn has_listener(&self, port: u16) -> bool {
        self.listeners.get(&port).is_some_and(|l| !l.is_empty())
    }

    pub(super) fn app_gone(&mut self, channel: u32) {
        for channels in self.listeners.values_mut() {
            channels.remove(&channel);
        }
        self.askers.gone(channel);
    }

    /// How many sessions wait to be accepted, and have for longer than a takeover takes.
    pub(super) fn unaccepted(&self, now: Now) -> usize {
        self.unaccepted.filter(|(_, since)| now >= *since + BARRIER).map_or(0, |(n, _)| n)
    }

    /// Whether one process alone accepts on a port, as far as it is known.
    fn is_alone(&self, port: u16) -> bool {
        self.listeners.get(&port).is_none_or(|l| l.len() == 1)
    }

    /// A session ended before the application had it.
    pub(super) fn forget(&mut self, session: SessionId) {
        self.descriptors.forget(session);
        for queue in self.ready.values_mut().chain([&mut self.standing]) {
            queue.take(session);
        }
        self.handed.retain(|other| other != session);
    }

    /// No takeover any more; sockets not handed over vanish silently.
    pub(super) fn abandon(&mut self) {
        let standing = std::mem::take(&mut self.standing);
        for ready in self.ready.drain().flat_map(|(_, queue)| queue).chain(standing) {
            if let Err((_, error)) = repair::close_silently(ready.socket) {
                log::warn!(error:%; "cannot close a restored socket silently");
            }
        }
        self.descriptors.abandon();
        self.doorbells.clear();
        self.handed.clear();
        self.askers.abandon();
        self.asked_how.clear();
        self.ask_how_at = None;
        self.look_at = None;
        self.unaccepted = None;
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
        if let Some(standing) = self.take_standing() {
            let going_on = self.filter.stand(&standing);
            if going_on < standing.len() {
                log::info!(connections = standing.len(), going_on; "connections have ended that the program still has");
            }
        }
        self.filter.take_over(now);
        self.handover.forget_resets();
        self.begin_restoring(now);
    }

    /// The program is dead, and nobody takes over: its sessions wait here for the next one. Where that cannot be judged
    /// yet (a handover is under way, or this member is cut off) it is done when it can.
    pub(super) fn recover_here(&mut self, now: Now) {
        let serves = matches!(self.filter.mode(), Mode::Active | Mode::Restoring);
        let held_up = self.role.role() != Role::Master || !self.may_take_address();
        self.takeover.died = self.filter.mode() != Mode::Passive && (!serves || held_up);
        if !serves || self.takeover.died {
            return;
        }
        log::info!(sessions = self.filter.store().len(); "sessions wait for the program to come back");
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
        t.descriptors.set_limit(channel::descriptor_limit());
        t.spent = Duration::ZERO;
        t.report = Report { sessions: self.filter.store().len(), ..Report::default() };
        t.probe_until = Some(now + PROBE_WAIT);
        t.look_at = (t.report.sessions > 0).then_some(now + LOOK);
        t.unaccepted = None;
        let listening = self.somebody_listens();
        let t = &mut self.takeover;
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
        if self.takeover.descriptors.are_short() {
            return self.takeover.descriptors.wait(session, answered);
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
            self.take_address(before);
            made = make_socket(&spec);
        }
        let now = self.now();
        self.takeover.spent += now - before;
        match made {
            Err(error) if matches!(error.errno(), Some(libc::EMFILE | libc::ENFILE)) => {
                self.await_files(now);
                self.takeover.descriptors.wait(session, answered);
            }
            Ok(socket) => {
                if self.takeover.descriptors.is_last(socket.as_raw_fd() as u64) {
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
                    in_done: spec.in_done,
                    out_base: spec.out_base,
                    options: spec.options,
                };
                let t = &mut self.takeover;
                let queue = match self.filter.stands(session) {
                    true => &mut t.standing,
                    false => t.ready.entry(spec.tuple.local.port()).or_default(),
                };
                queue.push_back(Ready { info, socket });
                self.takeover.look_at.get_or_insert(now + LOOK);
            }
            Err(error) => {
                log::error!(session, tuple:% = spec.tuple, error:%; "cannot restore a session");
                self.filter.restore_failed(now, session);
            }
        }
    }

    /// There are no descriptors for more sockets, or only those that other things may need: until the application has taken
    /// some, or it is time to try again.
    fn await_files(&mut self, now: Now) {
        let made = self.takeover.made();
        if self.takeover.descriptors.ran_short(now, made) {
            log::info!(made; "sockets are made as the application takes them: no more fit into this process (RLIMIT_NOFILE)");
        }
    }

    /// Goes on with the sessions that wait for descriptors.
    fn restore_waiting(&mut self, now: Now) {
        if !self.takeover.descriptors.try_again() {
            return;
        }
        loop {
            let made = self.takeover.made();
            match self.takeover.descriptors.next(now, made) {
                Next::Done => return self.note_restored(now),
                Next::Wait => return,
                Next::Make(session, answered) => self.restore(session, answered),
            }
        }
    }

    /// What does not wait until all sessions are asked for and restored: our heartbeat, and the virtual IP's lifetime.
    pub(super) fn stay_alive(&mut self) {
        let now = self.now();
        self.clock.note_pause();
        // The machine may have stood still, and somebody else be master.
        self.role.note_time(now);
        self.beat_if_due(now);
        self.keep_address(now);
    }

    /// Removes what an earlier life of this member left in the kernel under a name that a session needs. False: there is
    /// nothing, or it is not known to be that.
    fn remove_orphan(&mut self, session: SessionId, tuple: &FourTuple) -> bool {
        let Ok(Some(there)) = self.sockdiag.find(tuple.local, tuple.peer) else { return false };
        // Peers reach the service's ports through us alone, and a session that we are about to restore is not there. Any
        // other port a program may have chosen for itself; what no process has is no program's.
        let of_service = self.config.service.ports.iter().any(|p| p.port == tuple.local.port());
        if there.state == state::SYN_SENT || there.inode != 0 && !of_service {
            log::info!(session, tuple:%, state = there.state; "a session's addresses are another connection's here");
            return false;
        }
        let removed = self.sockdiag.destroy_this(&there);
        log::info!(session, state = there.state, removed:?; "removed a socket that had a session's addresses");
        removed.is_ok_and(|removed| removed)
    }

    /// How many recovered sessions each port has for its application.
    pub(super) fn publish_pending(&self) {
        for port in &self.config.service.ports {
            let waiting = self.takeover.ready.get(&port.port).map_or(0, |queue| to_hand_out(&self.filter, queue));
            let restoring = self.filter.mode() == Mode::Restoring;
            // Handed out is not yet accepted: until the barrier falls the hook keeps asking.
            let waiting = waiting.max(self.filter.unaccepted());
            let pending = if restoring { self.filter.not_handed_over().max(waiting) } else { waiting };
            self.apps.set_pending(port.port, pending as u32);
        }
    }

    /// Wakes whoever waits on a listener that has recovered sessions. As long as one can be had, a doorbell waits; and never
    /// more than there are sessions, or a program that trusts its epoll would wait in accept for nobody.
    pub(super) fn ring_doorbells(&mut self, now: Now) {
        self.takeover.doorbell_at = None;
        self.takeover.awaited = self.filter.not_handed_over();
        self.takeover.handed.retain(|session| self.filter.awaits_accept(session));
        for i in 0..self.config.service.ports.len() {
            let port = self.config.service.ports[i].port;
            if let Some(again) = self.ring_port(now, port, false) {
                self.takeover.doorbell_at = Some(self.takeover.doorbell_at.map_or(again, |at| at.min(again)));
            }
        }
    }

    /// The same for one port; `more`: for somebody beside those whom the last one woke. Returns when to look again.
    fn ring_port(&mut self, now: Now, port: u16, more: bool) -> Option<Now> {
        let mut ready = self.takeover.ready.get(&port).map_or(0, |queue| to_hand_out(&self.filter, queue));
        if let Some(until) = self.filter.gate(now).filter(|_| ready > 0) {
            // None of them can be had. `next_pair` rings when that is over.
            self.takeover.gate_until = Some(until);
            ready = 0;
        }
        let t = &mut self.takeover;
        let alone = t.is_alone(port);
        let left = ready + t.handed.to_ring_for(now, port);
        if !t.has_listener(port) {
            // A Listen rings.
            return None;
        }
        if left == 0 {
            return t.handed.next_ring(port);
        }
        if t.doorbells.listeners(port).is_none() && self.splice_if_needed(now, port) {
            return None;
        }
        match self.takeover.doorbells.decide(now, port, left, alone, more) {
            Decision::Later(at) => return Some(at),
            Decision::Ring { each: true } => self.apps.set_each_rings(port),
            Decision::Ring { each: false } => {}
        }
        match self.ring(port) {
            Ok(bell) => {
                log::debug!(port; "rang the doorbell");
                self.takeover.doorbells.rung(port, bell);
                Some(now + RING_AGAIN)
            }
            Err(error) => {
                log::debug!(port, error:%; "cannot ring the doorbell");
                Some(now + DOORBELL_AGAIN)
            }
        }
    }

    fn ring(&mut self, port: u16) -> io::Result<TcpStream> {
        // The listener may take one family only.
        let mut result = Err(io::ErrorKind::AddrNotAvailable.into());
        for addr in self.virtual_ip.addrs() {
            result = doorbell::ring(addr, port);
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
        t.barrier_until = t.barrier_until.map(|until| until.min(now + BARRIER));
        self.serving.note_listening(port);
        self.ring_doorbells(now);
        self.filter.listening(now);
    }

    /// `GetRecovered`: one of several processes may have enough, and leave to the others what it has not fetched. With `max` 0
    /// it only says that it has accepted what it was handed, or is about to.
    pub(super) fn hand_over(&mut self, channel: u32, number: u32, port: u16, max: u32) {
        let now = self.now();
        let (t, asking) = (&mut self.takeover, Asking { channel, number, port });
        // A process asks when its stash is empty.
        t.handed.asks_again(now, channel, port);
        if t.doorbells.listeners(port).is_none() && t.ready.get(&port).is_some_and(|queue| !queue.is_empty()) {
            self.splice_if_needed(now, port);
        }
        let t = &mut self.takeover;
        if max == 0 || max > 1 && t.is_alone(port) {
            return self.hand_out(now, &asking, max as usize);
        }
        t.askers.asks(now, asking);
        self.share(now);
    }

    /// Serves those that need not wait for others.
    fn share(&mut self, now: Now) {
        loop {
            let t = &mut self.takeover;
            let none_left = |port| t.ready.get(&port).is_none_or(|queue| to_hand_out(&self.filter, queue) == 0);
            let Some(asking) = t.askers.next(none_left) else { break };
            self.hand_out(now, &asking, 1);
        }
        let ports = self.takeover.askers.wait(now);
        for port in ports {
            // Which of several listeners one reaches, the kernel chooses.
            let listeners = self.takeover.doorbells.listeners(port).unwrap_or(1);
            for _ in 0..if listeners > 1 { 2 * listeners } else { 1 } {
                self.ring_port(now, port, true);
            }
        }
    }

    /// Descriptors go over as messages, and our copies are closed, or the application's close would send no FIN.
    fn hand_out(&mut self, now: Now, asking: &Asking, max: usize) {
        let Asking { channel, number, port } = *asking;
        let queue = self.takeover.ready.entry(port).or_default();
        let mut n = queue.len().min(max).min(MAX_RECOVERED);
        // One that makes the application connect comes alone, before the others: the connect is known for its.
        self.takeover.gate_until = self.filter.gate(now);
        let mut out: Vec<Ready> = Vec::new();
        let mut alone = self.takeover.gate_until.is_some();
        if alone {
            n = 0;
        } else if n > 0 && self.filter.follows() {
            let next = queue.iter().map(|r| r.info.session).find(|id| self.filter.hand_out(*id) == HandOut::Alone);
            if let Some(ready) = next.and_then(|next| queue.take(next)) {
                alone = true;
                n = 1;
                out.push(ready);
            }
        }
        let mut room = OPTIONS_AT_ONCE;
        while out.len() < n {
            let Some(next) = queue.iter().find(|r| !self.filter.is_later(r.info.session)) else { break };
            let (session, size) = (next.info.session, next.info.options.len());
            // One at least, whatever it has.
            if !out.is_empty() && size > room {
                break;
            }
            room = room.saturating_sub(size);
            out.extend(queue.take(session));
        }
        let n = out.len();
        let of_port = |id: SessionId| self.filter.store().get(id).is_some_and(|s| s.open.tuple.local.port() == port);
        // Behind one that comes alone there is none for now.
        let more = !alone
            && (queue.iter().any(|r| !self.filter.is_later(r.info.session)) || self.takeover.descriptors.waiting().any(of_port));
        let sessions = out.iter().map(|r| r.info.clone()).collect();
        let descriptors: Vec<_> = out.iter().map(|r| r.socket.as_fd()).collect();
        let Some(told) = self.apps.answer(channel, number, Reply::Recovered { sessions, more }, &descriptors) else {
            self.takeover.ready.entry(port).or_default().extend(out);
            return;
        };
        if let Err(error) = told {
            log::error!(error:%; "cannot hand sessions over");
            self.takeover.ready.entry(port).or_default().extend(out);
        } else if n > 0 {
            out.iter().for_each(|r| self.filter.handed_out(now, r.info.session));
            let t = &mut self.takeover;
            t.askers.took(channel, port, n);
            t.handed.add(now, channel, out.into_iter().map(|Ready { info, .. }| info).collect());
            let most = t.started.map_or(now, |started| started + MOST_BARRIER);
            t.barrier_until = t.barrier_until.map(|until| until.max((now + BARRIER).min(most)));
            self.restore_waiting(now);
        }
        self.publish_pending();
        self.ring_doorbells(now);
    }

    /// `GetStanding`: the program that takes over gets the sockets of the connections that it has.
    pub(super) fn hand_standing(&mut self, channel: u32, number: u32) {
        if !self.is_main(channel) {
            let text = "only the program's first process takes over".to_owned();
            return self.apps.reply(channel, number, Reply::Error { errno: libc::EPERM, text });
        }
        let n = self.takeover.standing.len().min(MAX_RECOVERED);
        let out: Vec<Ready> = (0..n).filter_map(|_| self.takeover.standing.pop_front()).collect();
        let t = &self.takeover;
        let begins = self.host.takeover_is_postponed() || t.probe_until.is_some();
        let more = begins || t.descriptors.waiting().next().is_some() || !t.standing.is_empty();
        let sessions = out.iter().map(|r| r.info.clone()).collect();
        let descriptors: Vec<_> = out.iter().map(|r| r.socket.as_fd()).collect();
        let told = self.apps.answer(channel, number, Reply::Recovered { sessions, more }, &descriptors);
        if !matches!(told, Some(Ok(()))) {
            log::error!(sessions = n; "cannot hand sessions to the program that takes over");
            self.takeover.standing.extend(out);
        } else if n > 0 {
            let now = self.now();
            self.restore_waiting(now);
        }
    }

    /// `GiveBack`: whoever was handed this session has something else to accept first.
    pub(super) fn taken_back(&mut self, channel: u32, session: SessionId, socket: OwnedFd) -> bool {
        let now = self.now();
        let t = &mut self.takeover;
        let Some(info) = t.handed.take_back(channel, session) else { return false };
        t.ready.entry(info.tuple.local.port()).or_default().push_front(Ready { info, socket });
        self.filter.open_gate(session);
        self.publish_pending();
        self.share(now);
        self.ring_doorbells(now);
        true
    }

    /// The session that was handed out last has made its connects: the next one may come.
    pub(super) fn next_pair(&mut self) {
        let now = self.now();
        let unpaired = self.filter.counters().unpaired;
        if unpaired != self.takeover.unpaired_said {
            let more = unpaired - std::mem::replace(&mut self.takeover.unpaired_said, unpaired);
            log::warn!(
                reset = more;
                "sessions are reset: it is not known which connection of the program belongs to which client, or that was not \
                 made again; see \"Connections that the program makes\" in docs/guarantees.md"
            );
        }
        let refused = self.takeover.gate_until.is_some();
        self.takeover.gate_until = self.takeover.gate_until.and(self.filter.gate(now));
        let opened = refused && self.takeover.gate_until.is_none();
        if !self.filter.next_may() && !opened {
            return;
        }
        self.publish_pending();
        self.ring_doorbells(now);
    }

    /// After hook events: has the application got everything?
    pub(super) fn note_done(&mut self, now: Now) {
        let Some(started) = self.takeover.started else { return };
        self.note_restored(now);
        if self.filter.mode() != Mode::Active {
            if self.filter.mode() == Mode::Restoring {
                self.publish_pending();
                if self.filter.not_handed_over() != self.takeover.awaited {
                    self.ring_doorbells(now);
                }
            }
            return;
        }
        self.takeover.started = None;
        self.takeover.barrier_until = None;
        self.takeover.accepted_at = None;
        self.takeover.askers.forget_shares();
        self.takeover.report.done_us = (now - started).as_micros() as u64;
        self.publish_pending();
        log::info!(report:? = self.takeover.report; "takeover done");
    }

    /// Looks who accepts from a port, and leaves its sessions to its listeners if nobody else can hand them out. Returns whether
    /// it does so.
    fn splice_if_needed(&mut self, now: Now, port: u16) -> bool {
        if self.who_accepts(port).around_hooks {
            log::info!(port; "a port is accepted by system calls that no hook sees: its sessions come out of its listener");
        } else if self.listens_by_address(port) {
            log::info!(port; "a port has a listener for one of several virtual IPs: its sessions come out of their listeners");
        } else {
            return false;
        }
        self.splice_port(now, port);
        true
    }

    /// Whether it matters from which listener a session comes.
    fn listens_by_address(&mut self, port: u16) -> bool {
        let of_one = |l: &TcpSocket| l.local.port() == port && !l.local.ip().is_unspecified();
        self.virtual_ip.addrs().count() > 1
            && self.sockdiag.listeners(&self.takeover.ours).is_ok_and(|all| all.iter().any(of_one))
    }

    /// How a port is accepted from.
    fn who_accepts(&mut self, port: u16) -> Accepts {
        let listeners = self.sockdiag.listener_inodes(port).unwrap_or_default();
        self.takeover.doorbells.note_listeners(port, listeners.len());
        let joined: Vec<u32> = self.apps.processes().collect();
        acceptors::look(&listeners, &joined, self.program.as_ref().and_then(Program::pid))
    }

    /// Once somebody has accepted from a listener it is known who does, and has set up what he waits with.
    fn look_how(&mut self, now: Now) {
        let asked = std::mem::take(&mut self.takeover.asked_how);
        for (port, tuple) in asked {
            match self.sockdiag.find(tuple.local, tuple.peer) {
                Ok(Some(socket)) if socket.inode == 0 => {
                    self.takeover.asked_how.insert(port, tuple);
                }
                Ok(Some(_)) => {
                    let Accepts { around_hooks, waits } = self.who_accepts(port);
                    log::debug!(port, around_hooks, waits:?; "it is known how a port is accepted from");
                    if around_hooks {
                        self.splice_port(now, port);
                    }
                    self.filter.listener_waits(now, port, waits);
                }
                // The next one that the listener makes is asked for.
                Ok(None) => {}
                Err(error) => log::warn!(tuple:%, error:%; "cannot see whether a connection was accepted"),
            }
        }
        self.takeover.ask_how_at = (!self.takeover.asked_how.is_empty()).then_some(now + ACCEPTED_AGAIN);
        self.filter_actions();
    }

    /// The listener of this port makes the sessions, for no hook would take them.
    fn splice_port(&mut self, now: Now, port: u16) {
        self.filter.splice_port(port);
        for ready in self.takeover.ready.remove(&port).unwrap_or_default() {
            let session = ready.info.session;
            if let Err((_, error)) = repair::close_silently(ready.socket) {
                log::warn!(error:%; "cannot close a restored socket silently");
            }
            self.filter.unmade(session);
            self.filter.splice(now, session);
        }
        self.takeover.accepted_at = Some(now + ACCEPTED_AGAIN);
        self.filter_actions();
        self.publish_pending();
    }

    /// Whether there is a listener, be it one of which no hook has told.
    fn somebody_listens(&mut self) -> bool {
        let told = self.config.service.ports.iter().any(|p| self.takeover.has_listener(p.port));
        told || self.sockdiag.listens(&self.takeover.ours).unwrap_or_else(|error| {
            log::warn!(error:%; "cannot see who listens");
            false
        })
    }

    /// A listener of which no hook has told will be accepted by none that would know a doorbell.
    fn look_for_untold(&mut self, now: Now) {
        let waits =
            |port: &u16| self.takeover.ready.get(port).is_some_and(|q| !q.is_empty()) && !self.takeover.has_listener(*port);
        let mut ports: Vec<u16> = self.config.service.ports.iter().map(|p| p.port).filter(waits).collect();
        ports.retain(|port| self.sockdiag.listener_inodes(*port).is_ok_and(|listeners| !listeners.is_empty()));
        // It may be about to be told.
        let before = std::mem::take(&mut self.takeover.untold);
        for &port in ports.iter().filter(|port| before.contains(port)) {
            log::info!(port; "no library has told who listens on a port: its sessions come out of its listener");
            self.splice_port(now, port);
        }
        self.takeover.untold = ports;
    }

    /// Sessions that nobody accepts keep neither their peers nor new connections waiting for ever.
    fn look_unaccepted(&mut self, now: Now) {
        let left = self.filter.never_accepted();
        let listens = self.somebody_listens();
        self.look_for_untold(now);
        let t = &mut self.takeover;
        t.look_at = (left > 0).then_some(now + LOOK);
        if listens {
            t.barrier_until = t.barrier_until.map(|until| until.min(now + BARRIER));
        }
        let since = t.unaccepted.filter(|(before, _)| left >= *before).map_or(now, |(_, since)| since);
        t.unaccepted = (left > 0).then_some((left, since));
        if left == 0 || now < since + if listens { ACCEPT_WAIT } else { LISTEN_WAIT } {
            return;
        }
        for ready in std::mem::take(&mut t.ready).into_values().flatten() {
            if let Err((_, error)) = repair::close_silently(ready.socket) {
                log::warn!(error:%; "cannot close a restored socket silently");
            }
        }
        t.descriptors.forget_waiting();
        let in_use = |socket: Option<TcpSocket>| socket.is_some_and(|socket| socket.inode != 0);
        let sockdiag = &mut self.sockdiag;
        for end in self.filter.give_up_unaccepted(now, |end| sockdiag.find(end.local, end.peer).is_ok_and(in_use)) {
            // In the hands of a process, or of the listener.
            if let Err(error) = self.sockdiag.destroy(end.local, end.peer) {
                log::debug!(tuple:% = end, error:%; "cannot remove a socket of the kernel's");
            }
        }
        let reset = left - self.filter.never_accepted();
        log::error!(reset; "nobody has accepted recovered sessions: they are reset");
        self.filter.lift_barrier(now);
        self.filter_actions();
        self.publish_pending();
    }

    /// Without hooks: once nothing waits on the listeners, what is there was accepted.
    fn look_accepted(&mut self, now: Now) -> io::Result<()> {
        if self.sockdiag.backlog(&self.takeover.ours)? > 0 {
            return Ok(());
        }
        let sockets = self.sockdiag.list(&self.takeover.ours)?;
        let made = sockets.iter().filter(|s| s.state != state::SYN_RECV && (s.inode != 0 || !self.takeover.hooked));
        let there: HashSet<(SocketAddr, SocketAddr)> = made.map(|s| (s.local, s.peer)).collect();
        let is_there = |tuple: &FourTuple| there.contains(&(tuple.local, tuple.peer));
        match self.takeover.hooked {
            true => self.filter.accepted_around(now, is_there),
            false => self.filter.all_accepted(now, is_there),
        }
        Ok(())
    }

    pub(super) fn takeover_timers(&mut self, now: Now) {
        if self.takeover.probe_until.is_some_and(|t| now >= t) {
            self.probes_done(now);
        }
        if self.takeover.doorbell_at.is_some_and(|t| now >= t) {
            self.ring_doorbells(now);
        }
        if self.takeover.askers.poll_timeout().is_some_and(|t| now >= t) {
            self.takeover.askers.waited_in_vain();
            self.share(now);
        }
        if self.takeover.gate_until.is_some_and(|t| now >= t) {
            self.next_pair();
        }
        if self.takeover.look_at.is_some_and(|t| now >= t) {
            self.look_unaccepted(now);
        }
        if self.takeover.descriptors.poll_timeout().is_some_and(|t| now >= t) {
            self.restore_waiting(now);
            self.publish_pending();
            self.ring_doorbells(now);
        }
        if self.takeover.ask_how_at.is_some_and(|t| now >= t) {
            self.look_how(now);
        }
        if self.takeover.accepted_at.is_some_and(|t| now >= t) {
            self.takeover.accepted_at = Some(now + ACCEPTED_AGAIN);
            if self.filter.mode() == Mode::Restoring && self.filter.unprobed() == 0 {
                if let Err(error) = self.look_accepted(now) {
                    log::warn!(error:%; "cannot see what waits to be accepted");
                }
            }
        }
        if self.takeover.barrier_until.is_some_and(|t| now >= t) {
            self.takeover.barrier_until = None;
            let left = self.filter.not_handed_over();
            if left > 0 {
                log::warn!(left; "the application has not accepted all recovered sessions; going on without");
            }
            self.filter.lift_barrier(now);
        }
    }
}

/// How many sessions of a queue may be handed out now.
fn to_hand_out(filter: &Filter, queue: &Queue) -> usize {
    match filter.any_later() {
        true => queue.iter().filter(|r| !filter.is_later(r.info.session)).count(),
        false => queue.len(),
    }
}

fn make_socket(spec: &RestoreSpec) -> Result<OwnedFd, repair::RestoreError> {
    repair::restore(&repair::SocketSpec {
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
