//! Engine `splice` (docs/design.md, "Takeover"): the socket of a recovered session is made by the local listener itself, with a
//! handshake in the peer's name of which the peer sees nothing. From then on the numbers of the two halves differ by
//! what [`Splice`] says, and every segment is corrected on its way: the rest of the filter knows only the peer's numbers.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use super::live::Live;
use super::local::feed_from;
use super::segments::peers_syn;
use super::stage::{LocalHandshake, Stage};
use super::timestamps::TIMESTAMP_MARGIN_MS;
use super::{Action, Filter, HandOut, Mode};
use crate::segment::{flags, Segment};
use crate::seq::Seq;
use crate::splice::{Shift, Splice};
use crate::store::Session;
use crate::tuple::{FourTuple, SessionId};
use crate::Now;

/// Most handshakes with one local listener that wait for their answer: fewer than a small accept queue takes.
const MOST: usize = 64;
/// When one is tried again; until the listener has answered once it is asked for one at a time, each in its turn.
const AGAIN: Duration = Duration::from_millis(20);
/// A listener with a full queue does not answer. The wait doubles with each retry, up to this many times.
const SLOWEST: u32 = 4;
/// A listener whose program hears of the first of several connections only gets the next one when it has accepted the one
/// before, or has not for so long.
const UNHEARD: Duration = Duration::from_secs(5);
/// How long the numbers of a session that is over are still corrected: the kernel answers for it from TIME_WAIT (60 s).
const REMEMBERED: Duration = Duration::from_secs(120);

/// How the socket of a restored session is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Engine {
    /// By TCP_REPAIR, and handed to the application by the hooks.
    #[default]
    Repair,
    /// By the local listener, numbers corrected in flight ever after.
    Splice,
}

/// All sessions' splices, and the handshakes that make them.
#[derive(Debug, Default)]
pub(super) struct Splices {
    by_tuple: HashMap<FourTuple, Splice>,
    /// By the local TCP's name for them, those that have another port there.
    peer_tuples: HashMap<FourTuple, FourTuple>,
    /// Sessions that are over, and since when.
    over: VecDeque<(Now, FourTuple, Seq)>,
    /// By the address that their peers connect to: one that nobody listens to keeps no other waiting.
    listeners: BTreeMap<SocketAddr, Listener>,
    /// Sessions that hooks are to accept, and have not.
    pub unaccepted: usize,
    /// Ports whose sessions are spliced whatever the engine.
    ports: BTreeSet<u16>,
    /// How programs wait on the listeners of these ports.
    waits: BTreeMap<u16, Waits>,
}

/// How a program that the hooks are in waits on a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waits {
    /// Edge-triggered (EPOLLET): of several connections that come at once it may hear once, and accept one.
    Edge,
    /// As long as any connection is there.
    Level,
}

/// What is asked of one listener.
#[derive(Debug, Default)]
struct Listener {
    /// Those whose turn will come.
    queue: VecDeque<SessionId>,
    /// Those that were asked for, and not answered; or not accepted, where the next one waits for that. Since when.
    under_way: BTreeMap<SessionId, Now>,
    /// It has answered.
    listening: bool,
}

impl Splices {
    pub fn get(&self, tuple: &FourTuple) -> Option<&Splice> {
        // Where nothing was spliced this costs no look-up.
        if self.by_tuple.is_empty() {
            return None;
        }
        self.by_tuple.get(tuple)
    }

    pub fn insert(&mut self, tuple: FourTuple, splice: Splice) {
        self.remove(&tuple);
        let inner = FourTuple { local: (tuple.local.ip(), splice.ports.0).into(), ..tuple };
        self.take_name(&inner);
        if inner != tuple {
            self.peer_tuples.insert(inner, tuple);
        }
        self.by_tuple.insert(tuple, splice);
    }

    /// Something else has this name at the local TCP from now on.
    pub fn take_name(&mut self, inner: &FourTuple) {
        if let Some(former) = self.peer_tuples.remove(inner) {
            self.by_tuple.remove(&former);
        }
    }

    pub fn remove(&mut self, tuple: &FourTuple) {
        if self.by_tuple.remove(tuple).is_some() && !self.peer_tuples.is_empty() {
            self.peer_tuples.retain(|_, outer| outer != tuple);
        }
    }

    /// The local TCP has another connection, or is about to, by this name of a session.
    pub fn gave_name(&self, tuple: &FourTuple) -> bool {
        self.peer_tuples.contains_key(tuple)
    }

    /// A new connection has this four-tuple, with this number of the local TCP's.
    pub fn remove_former(&mut self, tuple: &FourTuple, isn: Seq) {
        if self.get(tuple).is_some_and(|splice| splice.isn != isn) {
            self.remove(tuple);
        }
    }

    /// The peer's name for what the local TCP calls so; None: what has this name there is another connection's.
    pub fn peer_tuple(&self, tuple: &FourTuple) -> Option<FourTuple> {
        if self.peer_tuples.is_empty() {
            return Some(*tuple);
        }
        let others = || self.get(tuple).is_some_and(|splice| splice.ports.0 != tuple.local.port());
        self.peer_tuples.get(tuple).copied().or_else(|| (!others()).then_some(*tuple))
    }

    /// The peer has acknowledged this much: some of what is the half's own, perhaps. What is held from before, and would
    /// make a half that is not whole yet refuse the connection, was given to it by then.
    pub fn acknowledged(&mut self, tuple: &FourTuple, ack: Seq) {
        if self.by_tuple.is_empty() {
            return;
        }
        let Some(splice) = self.by_tuple.get_mut(tuple) else { return };
        if splice.floor.is_some_and(|floor| ack.after(floor.add(u64::from(splice.output.seq)))) {
            splice.floor = None;
        }
    }
}

impl Filter {
    /// The session is over; its numbers are corrected for a while.
    pub(super) fn splice_over(&mut self, now: Now, tuple: &FourTuple) {
        let splices = &mut self.splices;
        if let Some(splice) = splices.get(tuple) {
            splices.over.push_back((now, *tuple, splice.isn));
        }
        while splices.over.front().is_some_and(|(since, ..)| *since + REMEMBERED < now) {
            let (_, tuple, isn) = splices.over.pop_front().expect("in front");
            let same = splices.by_tuple.get(&tuple).is_some_and(|splice| splice.isn == isn);
            // A connection with a port of our choice was remembered before it was known whether it would be one.
            if same && self.store.find(&tuple).is_none() {
                splices.remove(&tuple);
            }
        }
    }

    /// Whether the socket of this session is made by the local listener, or by the application's connect. One that the
    /// application has closed is nobody's to accept: the kernel sees it to its end.
    #[must_use]
    pub fn splices(&self, id: SessionId) -> bool {
        let outgoing = || self.live.get(&id).is_some_and(|l| l.outgoing);
        let of_port = |s: &Session| self.splices.ports.contains(&s.open.tuple.local.port());
        let spliced = |s: &Session| self.config.engine == Engine::Splice || of_port(s);
        self.store.get(id).is_some_and(|s| !s.closed && !self.stands(id) && (spliced(s) || outgoing()))
    }

    /// Who accepts on this port does so around the hooks: until the next takeover its sessions are the listener's own.
    pub fn splice_port(&mut self, port: u16) {
        self.splices.ports.insert(port);
    }

    /// It is not known who accepts.
    pub(super) fn forget_spliced_ports(&mut self) {
        self.splices.ports.clear();
        self.splices.waits.clear();
    }

    /// The answer to [`Action::AskListener`].
    pub fn listener_waits(&mut self, now: Now, port: u16, waits: Waits) {
        self.splices.waits.insert(port, waits);
        self.open_halves(now);
    }

    /// Whether a listener gets a connection only when the one before was accepted: until it is known how its program waits,
    /// too. Without hooks nothing tells that one was.
    fn one_by_one(&self, port: u16) -> bool {
        self.config.hooked && self.splices.waits.get(&port) != Some(&Waits::Level)
    }

    /// Its restored socket was closed silently, before anybody had it.
    pub fn unmade(&mut self, id: SessionId) {
        let Some(live) = self.live.get_mut(&id) else { return };
        if live.stage != Stage::Restored || live.ownership.is_attached() || live.recovery.handshake.is_some() {
            return;
        }
        if let Some(recovery) = live.recovery.get_mut_if_any() {
            recovery.resend = None;
        }
        live.local.unmade();
        self.counters.restored -= 1;
        self.recount(id, |live| live.stage = Stage::Probing);
    }

    /// What waited on the listeners was accepted, and by no hook: of such ports the program has the sessions whose sockets are there.
    pub fn accepted_around(&mut self, now: Now, is_there: impl Fn(&FourTuple) -> bool) {
        let waits = |l: &Live| matches!(l.stage, Stage::Restored | Stage::Feeding { .. } | Stage::Live) && l.unaccepted();
        let waiting: Vec<SessionId> = self.live.iter().filter(|(_, l)| waits(l)).map(|(id, _)| *id).collect();
        for id in waiting {
            let tuple = self.store.get(id).expect("live").open.tuple;
            if self.splices.ports.contains(&tuple.local.port()) && is_there(&self.local_tuple(&tuple)) {
                self.recount(id, |live| live.ownership.accept_unhooked());
                self.splices.unaccepted = self.splices.unaccepted.saturating_sub(1);
            }
        }
        self.open_halves(now);
        self.barrier_met(now);
    }

    /// Makes the socket of a session that was probed, or whose peer has not answered in time.
    pub fn splice(&mut self, now: Now, id: SessionId) {
        let Some(live) = self
            .live
            .get_mut(&id)
            .filter(|l| l.stage == Stage::Probing && l.recovery.handshake.is_none() && l.recovery.evidence.is_none())
        else {
            return;
        };
        if live.outgoing {
            return self.await_call(now, id);
        }
        live.recovery.get_or_make().handshake = Some(LocalHandshake::Queued);
        let later = live.later;
        self.splices.unaccepted += usize::from(self.config.hooked);
        if !later {
            self.queue_half(id);
        }
        self.start_old_output(now, id);
        self.open_halves(now);
    }

    /// Its turn to be asked for comes after those that wait already.
    pub(super) fn queue_half(&mut self, id: SessionId) {
        self.open_gate(id);
        let local = self.store.get(id).expect("known").open.tuple.local;
        let listener = self.splices.listeners.entry(local).or_default();
        listener.under_way.remove(&id);
        listener.queue.push_back(id);
    }

    /// Sessions that the application will accept and has not, whatever became of the barrier.
    #[must_use]
    pub fn unaccepted(&self) -> usize {
        self.splices.unaccepted
    }

    /// What the application has to know of a session that it has just accepted: output that it will write again and that
    /// is to be dropped; whether there was any beside; whether it had ended its output. None: it is new.
    #[must_use]
    pub fn recovered_info(&self, tuple: &FourTuple) -> Option<(u64, bool, bool)> {
        let s = self.store.get(self.store.find(&self.peer_tuple(tuple)?)?)?;
        let live = self.live.get(&s.open.session)?;
        // One that was never elsewhere may have another port all the same.
        let waits = !live.ownership.is_attached() && live.local.is_new_half() && self.splices.get(&s.open.tuple).is_some();
        waits.then_some((s.out_done - s.out_base, s.out_base > 0, s.out_fin))
    }

    /// Somebody listens: what waits for it is tried at once.
    pub fn listening(&mut self, now: Now) {
        let mut sent = Vec::new();
        for (id, live) in &mut self.live {
            if let Some(LocalHandshake::Sent { next, tries }) = live.recovery.get_mut_if_any().and_then(|r| r.handshake.as_mut())
            {
                (*next, *tries) = (now + AGAIN, 0);
                sent.push(*id);
            }
        }
        sent.sort_unstable();
        sent.into_iter().for_each(|id| self.send_local_syn(id));
    }

    /// Asks for as many sessions as may be asked for at once. To be called whenever one has come to the end of that, whatever
    /// the end: its answer, its session's end, or that it was in somebody's hands before.
    pub(super) fn open_halves(&mut self, now: Now) {
        let waiting = self.splices.listeners.iter().filter(|(_, listener)| !listener.queue.is_empty());
        let waiting: Vec<SocketAddr> = waiting.map(|(local, _)| *local).collect();
        for local in waiting {
            while let Some(id) = self.next_half(now, local) {
                let Some(live) = self.live.get_mut(&id).filter(|l| l.recovery.handshake == Some(LocalHandshake::Queued)) else {
                    continue;
                };
                live.recovery.get_or_make().handshake = Some(LocalHandshake::Sent { next: now + AGAIN, tries: 0 });
                self.splices.listeners.entry(local).or_default().under_way.insert(id, now);
                self.handed_out(now, id);
                self.timers.set(now + AGAIN, id);
                self.send_local_syn(id);
            }
        }
    }

    /// Whom this listener is to be asked for next.
    fn next_half(&mut self, now: Now, local: SocketAddr) -> Option<SessionId> {
        let one_by_one = self.one_by_one(local.port());
        let (live, listener) = (&self.live, self.splices.listeners.get_mut(&local)?);
        let asked = |l: &Live| matches!(l.recovery.handshake, Some(LocalHandshake::Sent { .. }));
        let unheard = |l: &Live, since: Now| one_by_one && l.unaccepted() && now < since + UNHEARD;
        listener.under_way.retain(|id, since| live.get(id).is_some_and(|l| asked(l) || unheard(l, *since)));
        let under_way = listener.under_way.len();
        if listener.queue.is_empty() || under_way >= if listener.listening && !one_by_one { MOST } else { 1 } {
            return None;
        }
        let mut first = 0;
        if self.follows() {
            // One that makes the application connect comes alone: the connect is known for its.
            if self.gate(now).is_some() {
                return None;
            }
            let queue = &self.splices.listeners[&local].queue;
            let alone = queue.iter().position(|id| self.hand_out(*id) == HandOut::Alone);
            if alone.is_some() && under_way > 0 {
                return None;
            }
            first = alone.unwrap_or(0);
        }
        self.splices.listeners.get_mut(&local)?.queue.remove(first)
    }

    /// A SYN as if the peer connected.
    fn send_local_syn(&mut self, id: SessionId) {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get(&id)) else { return };
        let packet = peers_syn(s, live, feed_from(s), flags::SYN, (Seq(0), 0));
        self.actions.push(Action::Inject(packet));
    }

    pub(super) fn handshake_timeout(&mut self, now: Now, id: SessionId) -> Option<Now> {
        let live = self.live.get_mut(&id)?;
        let (next, tries) = match live.recovery.handshake? {
            LocalHandshake::Queued | LocalHandshake::Uncalled { .. } => return None,
            LocalHandshake::Sent { next, tries } | LocalHandshake::Answered { next, tries } => (next, tries),
        };
        if next > now {
            return Some(next);
        }
        if matches!(live.recovery.handshake, Some(LocalHandshake::Answered { .. })) {
            let next = now + AGAIN * 2u32.pow(tries);
            live.recovery.get_or_make().handshake = Some(LocalHandshake::Answered { next, tries: (tries + 1).min(SLOWEST) });
            if live.outgoing {
                self.answer_call(id);
                return Some(next);
            }
            let base = live.local.base();
            self.inject(id, base, flags::ACK, &[]);
            return Some(next);
        }
        let local = self.store.get(id)?.open.tuple.local;
        let listener = self.splices.listeners.get(&local)?;
        if !listener.queue.is_empty() && (!listener.listening || tries == SLOWEST) {
            // It may be this one alone that is not answered: the next one is tried, and then this one again.
            live.recovery.get_or_make().handshake = Some(LocalHandshake::Queued);
            self.queue_half(id);
            self.open_halves(now);
            return None;
        }
        // A server that does not listen yet is asked steadily; one whose queue is full is given time.
        let tries = if listener.listening { (tries + 1).min(SLOWEST) } else { 0 };
        let next = now + AGAIN * 2u32.pow(tries);
        live.recovery.get_or_make().handshake = Some(LocalHandshake::Sent { next, tries });
        self.send_local_syn(id);
        Some(next)
    }

    /// A packet of the local TCP while its half of the session is being made, or a SYN-ACK of one that was. Returns
    /// whether it was that.
    pub(super) fn local_answer(&mut self, now: Now, packet: u32, session: SessionId, segment: &Segment<'_>) -> bool {
        let (Some(s), Some(live)) = (self.store.get(session), self.live.get_mut(&session)) else { return false };
        let tuple = s.open.tuple;
        let answered = matches!(live.recovery.handshake, Some(LocalHandshake::Answered { .. }));
        if live.recovery.handshake.is_none() || answered {
            let again = segment.has(flags::SYN) && self.splices.get(&tuple).is_some_and(|s| s.isn == segment.seq());
            if again {
                // It has not got the last word of the handshake: its accept queue was full.
                let base = live.local.base();
                self.inject(session, base, flags::ACK, &[]);
            } else if answered && segment.has(flags::RST) && live.outgoing {
                self.uncall(now, session);
            } else if answered && segment.has(flags::RST) {
                // It has forgotten what it answered.
                live.recovery.get_or_make().handshake = Some(LocalHandshake::Queued);
                self.splices.remove(&tuple);
                self.queue_half(session);
                self.recount(session, |l| l.stage = Stage::Probing);
                self.open_halves(now);
            } else {
                // It has it.
                if let Some(recovery) = live.recovery.get_mut_if_any() {
                    recovery.handshake = None;
                }
                if answered && live.outgoing {
                    self.called(now, session);
                }
                return false;
            }
            self.actions.push(Action::DropOut(packet));
            return true;
        }
        // An RST says that nobody listens: it is asked again.
        self.actions.push(Action::DropOut(packet));
        if segment.has(flags::SYN | flags::ACK) && matches!(live.recovery.handshake, Some(LocalHandshake::Sent { .. })) {
            self.spliced(now, session, segment);
        }
        true
    }

    /// The local half is there: what it says is corrected from now on. `syn`: the listener's SYN-ACK, or the SYN of the
    /// application's connect.
    pub(super) fn spliced(&mut self, now: Now, id: SessionId, syn: &Segment<'_>) {
        let ours = syn.options();
        let next = now + AGAIN;
        self.recount(id, |live| live.recovery.get_or_make().handshake = Some(LocalHandshake::Answered { next, tries: 1 }));
        self.timers.set(next, id);
        self.handed_out(now, id);
        let (s, live) = (self.store.get(id).expect("known"), self.live.get_mut(&id).expect("live"));
        if !live.outgoing {
            let listener = self.splices.listeners.entry(s.open.tuple.local).or_default();
            listener.listening = true;
            listener.under_way.insert(id, now);
            self.timers.set(now + UNHEARD, id);
        }
        if s.open.timestamps && ours.timestamps.is_none() {
            // net.ipv4.tcp_timestamps is off here; the peer would hear a TCP that has lost its clock.
            self.counters.unspliceable += 1;
            self.restore_failed(now, id);
            return self.open_halves(now);
        }
        let (isn, base) = (syn.seq(), s.out_sendable());
        live.peer.time.advance(TIMESTAMP_MARGIN_MS);
        let clock = ours.timestamps.map_or(0, |(value, _)| value);
        let splice = Splice {
            isn,
            ports: (syn.source().port(), s.open.tuple.local.port()),
            output: Shift {
                seq: s.out_seq(base).0.wrapping_sub(isn.add(1).0),
                timestamp: live.peer.time.value().wrapping_sub(clock),
            },
            input: Shift::default(),
            shifts: s.open.shifts.map_or((0, 0), |(_, told)| (ours.window_scale.unwrap_or(0), told)),
            peer_shifts: s.open.shifts.map_or((0, 0), |(theirs, _)| (theirs, ours.window_scale.map_or(0, |_| theirs))),
            floor: Some(isn.add(1)),
            clock,
        };
        live.local.connected(base, feed_from(s), u64::from(syn.window()), s.out_fin);
        live.peer.was_released(base);
        live.peer.was_shown_window(live.local.edge());
        let outgoing = live.outgoing;
        self.splices.insert(s.open.tuple, splice);
        self.counters.restored += 1;
        self.recount(id, |l| l.stage = Stage::Restored);
        self.mark_dirty(now, id);
        if outgoing {
            return self.answer_call(id);
        }
        self.inject(id, self.live[&id].local.base(), flags::ACK, &[]);
        let tuple = self.store.get(id).expect("known").open.tuple;
        if self.config.hooked && !self.splices.waits.contains_key(&tuple.local.port()) {
            self.actions.push(Action::AskListener(self.local_tuple(&tuple)));
        }
        self.open_halves(now);
        if self.gate.mode() == Mode::Active {
            self.accepted_unhooked(id);
            self.through_barrier(now, id);
        } else {
            self.barrier_met(now);
        }
    }

    /// What a silenced half says: the application had ended its output in its former life. Nobody hears it.
    pub(super) fn drop_silenced(&mut self, packet: u32, id: SessionId, end: u64) {
        let live = self.live.get_mut(&id).expect("live");
        live.local.has_sent(end);
        // It may have more by now than it has acknowledged, and looks at nothing before that.
        let at = live.local.edge().min(self.store.get(id).expect("known").in_ackable()).max(live.local.rcv_nxt());
        self.actions.push(Action::DropOut(packet));
        self.inject(id, at, flags::ACK, &[]);
    }

    // ---- correcting ------------------------------------------------------------------------------------

    /// A packet of the peer's as the local TCP is to see it; None: as it is.
    pub(super) fn corrected_in(&self, packet: &[u8]) -> Option<Vec<u8>> {
        if self.splices.by_tuple.is_empty() {
            return None;
        }
        let segment = Segment::parse(packet).ok()?;
        let splice = self.splices.get(&FourTuple { local: segment.destination(), peer: segment.source() })?;
        let mut out = Vec::with_capacity(packet.len());
        splice.to_kernel(&segment, &mut out);
        Some(out)
    }

    /// A packet of the local TCP as the peer is to see it; None: as it is.
    pub(super) fn corrected_out(&self, tuple: &FourTuple, segment: &Segment<'_>) -> Option<Vec<u8>> {
        let splice = self.splices.get(tuple)?;
        let mut out = Vec::with_capacity(1 << 11);
        splice.to_peer(segment, &mut out);
        Some(out)
    }
}
