//! Connections that the application makes itself (`[[service.outgoing]]`). After a takeover it connects to the same
//! destination again, as it would after a restart; its TCP's SYN is answered here, in the peer's name, and the old session
//! goes on behind it with the numbers corrected (see `splicing`), and the port: the peer knows the old one, and the local
//! TCP chose a new one. The paper calls them the external and the internal port.
//!
//! A backup's application calls, too. Its SYN is kept, and answered when the member takes over.

use std::collections::VecDeque;
use std::time::Duration;

use super::segments::peers_syn;
use super::stage::{LocalHandshake, Stage};
use super::{Action, Filter, Mode};
use crate::record::EndReason;
use crate::segment::{self, flags, Segment};
use crate::splice::{Shift, Splice};
use crate::tuple::{FourTuple, SessionId};
use crate::Now;

/// Most calls kept of a backup's application; the oldest makes room.
const MAX_CALLS: usize = 1024;
/// How long they are kept: a TCP that still calls says so at least once in 64 s (tcp_syn_retries is 6).
const KEPT: Duration = Duration::from_secs(70);
/// How long a session waits for the application to connect again before its peer is told that it is over.
const UNCALLED: Duration = Duration::from_secs(60);
/// How long it waits at the least, if it has something to say and the client that it belongs to has nothing.
const STUCK: Duration = Duration::from_secs(5);
/// How long the input of a session that was called for stays behind the barrier: an application that listens only after
/// it has heard from this peer would wait for itself.
const BARRIER: Duration = Duration::from_secs(1);

/// What the applications of a backup have asked for.
#[derive(Debug, Default)]
pub(super) struct Calls {
    kept: Kept,
    /// No session waits to be called for after this.
    until: Now,
}

type Kept = VecDeque<(Now, FourTuple, Vec<u8>)>;

impl Calls {
    /// What was kept waits until [`Self::keep_again`].
    pub fn take_kept(&mut self) -> Kept {
        std::mem::take(&mut self.kept)
    }

    pub fn keep_again(&mut self, kept: Kept) {
        self.kept = kept;
    }
}

impl Filter {
    /// Whether the application makes such connections.
    pub(super) fn is_outgoing(&self, tuple: &FourTuple) -> bool {
        self.config.outgoing.iter().any(|(to, _)| *to == tuple.peer)
            && !self.config.ports.iter().any(|(port, _)| *port == tuple.local.port())
    }

    /// The session's name for what the local TCP calls so; None: it is no session's.
    #[must_use]
    pub fn peer_tuple(&self, tuple: &FourTuple) -> Option<FourTuple> {
        self.splices.peer_tuple(tuple)
    }

    /// The local TCP's name for a session.
    #[must_use]
    pub fn local_tuple(&self, tuple: &FourTuple) -> FourTuple {
        self.splices.get(tuple).map_or(*tuple, |splice| local_tuple(tuple, splice))
    }

    /// A SYN of a backup's application, which nobody answers yet.
    pub(super) fn keep_call(&mut self, now: Now, bytes: &[u8]) {
        self.clock = now;
        let Ok(syn) = Segment::parse(bytes) else { return };
        let tuple = FourTuple { local: syn.source(), peer: syn.destination() };
        if syn.flags() & (flags::SYN | flags::ACK | flags::RST) != flags::SYN || !self.is_outgoing(&tuple) {
            return;
        }
        self.note_unhooked_call(tuple);
        self.calls.kept.retain(|(since, t, _)| *t != tuple && now < *since + KEPT);
        if self.calls.kept.len() == MAX_CALLS {
            self.calls.kept.pop_front();
        }
        self.calls.kept.push_back((now, tuple, bytes.to_vec()));
    }

    /// What was kept is looked at again: there is a session more that waits to be called for, or one less that will.
    pub(super) fn answer_kept(&mut self, now: Now) {
        if self.calls.kept.is_empty() || self.gate.fenced() || !self.gate.serves() {
            return;
        }
        let kept = std::mem::take(&mut self.calls.kept);
        for (since, tuple, bytes) in kept.into_iter().filter(|(since, ..)| now < *since + KEPT) {
            let syn = Segment::parse(&bytes).expect("parsed before");
            self.calling(now, None, tuple, &syn, &bytes);
            // Kept again, it is as old as it was.
            self.calls.kept.iter_mut().filter(|(_, t, _)| *t == tuple).for_each(|kept| kept.0 = since);
        }
    }

    /// A SYN of the local TCP: the application connects. `id`: None if it comes from our hands.
    pub(super) fn calling(&mut self, now: Now, id: Option<u32>, tuple: FourTuple, syn: &Segment<'_>, bytes: &[u8]) {
        if self.gate.fenced() {
            self.keep_call(now, bytes);
            return self.drop_out(id);
        }
        self.calls.kept.retain(|(_, t, _)| *t != tuple);
        let known = self.peer_tuple(&tuple).and_then(|outer| self.store.get(self.store.find(&outer)?));
        if let Some(s) = known {
            let (session, live) = (s.open.session, &self.live[&s.open.session]);
            let isn = self.splices.get(&s.open.tuple).map_or(s.open.isn_out, |splice| splice.isn);
            match (live.recovery.handshake, isn == syn.seq()) {
                (Some(LocalHandshake::Answered { .. }), true) if live.outgoing => {
                    self.answer_call(session);
                    return self.drop_out(id);
                }
                // It has given up the socket that was answered.
                (Some(LocalHandshake::Answered { .. }), false) if live.outgoing => self.uncall(now, session),
                (None, false) if live.stage == Stage::Live => self.end_session(now, session, EndReason::Closed),
                (Some(LocalHandshake::Uncalled { .. }), _) => {}
                (None, _) if live.probing() && live.outgoing => {}
                // Sent again, or another incarnation of what is being restored: not now.
                _ => return self.drop_out(id),
            }
        } else if let Some(outer) = self.peer_tuple(&tuple).filter(|outer| self.handshakes.has_called(outer, syn.seq())) {
            // Whoever it has called may have heard it: what waits to be called for by now is for the next one.
            return self.call_out(id, tuple, outer, syn, bytes);
        }
        if !self.is_outgoing(&tuple) {
            // Some other connection of the host.
            return self.call_out(id, tuple, tuple, syn, bytes);
        }
        let of_it = |f: &Filter, session: SessionId| {
            f.store.get(session).is_some_and(|s| s.open.tuple.peer == tuple.peer && s.open.tuple.local.ip() == tuple.local.ip())
        };
        self.note_unhooked_call(tuple);
        if now < self.calls.until {
            if let Some(session) = self.had_before(&tuple) {
                self.drop_out(id);
                self.spliced(now, session, syn);
                self.open_halves(now);
                return self.behind_gate(now);
            }
        }
        let probed = self.barrier.unprobed() == 0;
        if !probed
            && self
                .live
                .iter()
                .any(|(id, live)| live.outgoing && live.probing() && !live.ownership.is_closed() && of_it(self, *id))
        {
            // As soon as its peer has answered the probe.
            self.keep_call(now, bytes);
            return self.drop_out(id);
        }
        match self.free_tuple(tuple) {
            Some(outer) => self.call_out(id, tuple, outer, syn, bytes),
            None => self.drop_out(id),
        }
    }

    /// A new connection.
    fn call_out(&mut self, id: Option<u32>, tuple: FourTuple, outer: FourTuple, syn: &Segment<'_>, bytes: &[u8]) {
        if outer != tuple {
            let isn = syn.seq();
            let ports = (tuple.local.port(), outer.local.port());
            let same = Splice {
                isn,
                ports,
                output: Shift::default(),
                input: Shift::default(),
                shifts: (0, 0),
                peer_shifts: (0, 0),
                floor: None,
                clock: 0,
            };
            self.splices.insert(outer, same);
            // Should nothing come of it.
            self.splice_over(self.clock, &outer);
        } else {
            self.splices.take_name(&tuple);
        }
        self.splices.remove_former(&outer, syn.seq());
        self.handshakes.note_syn(self.clock, outer, syn, true);
        // What is negotiated is what a session can go on with; and bytes leave only when they are stored (Fast Open).
        let plain = syn.plain_syn();
        let syn = plain.as_deref().map_or(*syn, |plain| Segment::parse(plain).expect("a segment as before"));
        let corrected = self.corrected_out(&outer, &syn).or(plain);
        self.actions.push(match (id, corrected) {
            (Some(id), None) => Action::AcceptOut(id),
            (Some(id), Some(bytes)) => Action::ModifyOut(id, bytes),
            (None, Some(bytes)) => Action::SendPeer(bytes),
            (None, None) => match segment::completed(bytes, true) {
                Some(bytes) => Action::SendPeer(bytes),
                None => return,
            },
        });
    }

    /// The port that the peer is to see: the local TCP's own, unless another session has it.
    fn free_tuple(&self, tuple: FourTuple) -> Option<FourTuple> {
        let taken = |t: &FourTuple| match self.splices.get(t) {
            Some(splice) => local_tuple(t, splice) != tuple,
            None => *t != tuple && self.handshakes.calls_from(t),
        };
        let free = |t: &FourTuple| self.store.find(t).is_none() && self.is_outgoing(t) && !taken(t);
        let first = tuple.local.port();
        let others = (first..=u16::MAX).chain(1024..first);
        others.map(|port| FourTuple { local: (tuple.local.ip(), port).into(), ..tuple }).find(free)
    }

    /// Whether the local TCP has given the session's name to another connection: the application has called from this port
    /// since, and it may be the half of another session by now.
    pub(super) fn name_is_taken(&self, tuple: &FourTuple) -> bool {
        self.splices.get(tuple).is_none()
            && (self.splices.gave_name(tuple) || self.calls.kept.iter().any(|(_, called, _)| called == tuple))
    }

    /// The local TCP is to know this session, of which it has no socket yet, by another port than the peer does: it has
    /// another connection by that name. Only where nobody is to get the socket, and ask it for its port. Returns whether
    /// there is such a port.
    pub fn take_other_name(&mut self, id: SessionId) -> bool {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get(&id)) else { return false };
        if !live.outgoing || !s.closed || live.stage != Stage::Probing {
            return false;
        }
        let tuple = s.open.tuple;
        let free = |t: &FourTuple| {
            self.is_outgoing(t)
                && self.store.find(t).is_none()
                && !self.splices.gave_name(t)
                && !self.handshakes.calls_from(t)
                && !self.name_is_taken(t)
        };
        let before = self.local_tuple(&tuple).local.port();
        let others = (before..=u16::MAX).skip(1).chain(1024..before);
        let Some(port) =
            others.map(|port| FourTuple { local: (tuple.local.ip(), port).into(), ..tuple }).find(free).map(|t| t.local.port())
        else {
            return false;
        };
        let same = |shift| (shift, shift);
        let (theirs, ours) = s.open.shifts.unwrap_or((0, 0));
        let splice = Splice {
            isn: s.open.isn_out,
            ports: (port, tuple.local.port()),
            output: Shift::default(),
            input: Shift::default(),
            shifts: same(ours),
            peer_shifts: same(theirs),
            floor: None,
            clock: 0,
        };
        self.splices.insert(tuple, splice);
        true
    }

    fn drop_out(&mut self, id: Option<u32>) {
        self.actions.extend(id.map(Action::DropOut));
    }

    /// A session that the application had made, and that is probed: it has to be asked for.
    pub(super) fn await_call(&mut self, now: Now, id: SessionId) {
        self.uncalled(now, id);
        self.start_old_output(now, id);
        self.answer_kept(now);
    }

    fn uncalled(&mut self, now: Now, id: SessionId) {
        let until = now + UNCALLED;
        self.recount(id, |live| {
            live.stage = Stage::Probing;
            live.recovery.get_or_make().handshake = Some(LocalHandshake::Uncalled { until });
        });
        self.calls.until = until;
        self.timers.set(now + STUCK, id);
    }

    /// Whether some session may wait to be called for.
    pub(super) fn is_anybody_uncalled(&self, now: Now) -> bool {
        now < self.calls.until
    }

    /// The SYN-ACK to the application's SYN, in the peer's name and numbers; they are corrected like all others.
    pub(super) fn answer_call(&mut self, id: SessionId) {
        let (s, live) = (self.store.get(id).expect("known"), &self.live[&id]);
        let packet = peers_syn(
            s,
            live,
            live.local.base(),
            flags::SYN | flags::ACK,
            (s.out_seq(live.local.snd_una()), live.peer.time.value()),
        );
        let packet = self.corrected_in(&packet).expect("spliced");
        self.actions.push(Action::Inject(packet));
    }

    /// The local TCP has taken the answer: the application has its connection.
    pub(super) fn called(&mut self, now: Now, id: SessionId) {
        let recovery = self.live.get_mut(&id).expect("live").recovery.get_or_make();
        recovery.handshake = None;
        recovery.barrier_until = (self.gate.mode() != Mode::Active).then_some(now + BARRIER);
        self.accepted_unhooked(id);
        if self.gate.mode() == Mode::Active {
            return self.through_barrier(now, id);
        }
        self.timers.set(now + BARRIER, id);
    }

    /// What was answered is no socket of the application's any more: it is waited for again.
    pub(super) fn uncall(&mut self, now: Now, id: SessionId) {
        let tuple = self.store.get(id).expect("known").open.tuple;
        self.splices.remove(&tuple);
        self.uncalled(now, id);
    }

    /// Nobody has called; or whoever did has waited for long enough.
    pub(super) fn called_timeout(&mut self, now: Now, id: SessionId) -> Option<Now> {
        let live = self.live.get_mut(&id)?;
        if let Some(LocalHandshake::Uncalled { until }) = live.recovery.handshake {
            let stuck = now + UNCALLED >= until + STUCK && self.stuck(id);
            if now < until && !stuck {
                return Some(until.min(now + STUCK));
            }
            self.unpair(now, id);
            return None;
        }
        let until = live.recovery.barrier_until?;
        let waits = live.stage == Stage::Restored;
        if waits && now < until {
            return Some(until);
        }
        live.recovery.get_or_make().barrier_until = None;
        if waits {
            self.through_barrier(now, id);
        }
        None
    }
}

fn local_tuple(tuple: &FourTuple, splice: &Splice) -> FourTuple {
    FourTuple { local: (tuple.local.ip(), splice.ports.0).into(), ..*tuple }
}
