//! Handshakes: who may become a session, and what becomes of one that is half open.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::gate::LogPosition;
use super::live::{seconds, Live, Stage};
use super::packets::Held;
use super::recovery::LEAST_WINDOW;
use super::{Action, Filter, EMBRYONIC};
use crate::record::{EndReason, Open};
use crate::segment::{flags, Build, Options, Segment};
use crate::seq::Seq;
use crate::tuple::{FourTuple, SessionId};
use crate::Now;

/// Most four-tuples whose handshakes are remembered; the oldest make room. A peer whose third segment takes longer than
/// so many SYNs is reset (see [`Filter::poll_stranger`]).
const MAX_HANDSHAKES: usize = 1 << 15;
/// Most handshakes of one four-tuple: the local TCP may answer another SYN than the newest.
const MAX_OF_ONE: usize = 4;
/// Most half-open sessions in the log. Past it, a session is told at its third segment: then a flood of SYNs
/// costs the replica nothing.
const MAX_EMBRYOS: usize = 4096;
/// When a half-open session's SYN-ACK is first sent again after a takeover; then twice as long each time.
const SYN_ACK_AGAIN: Duration = Duration::from_millis(500);
/// How often it is.
const SYN_ACK_TRIES: u32 = 6;
/// For so long a SYN for which nobody listens is not refused: a server that has just died, or moved to another member,
/// is on its way back, and the peer's TCP asks again.
const REFUSED_AFTER: Duration = Duration::from_secs(10);

/// A handshake that began.
#[derive(Clone, Copy, Debug)]
struct Handshake {
    /// When its SYN was first seen.
    since: Now,
    isn: Seq,
    options: Options,
    window: u16,
    /// The SYN was ours.
    by_us: bool,
    /// The SYN was signed.
    signed: bool,
    /// The SYN has come, or come again, and was not answered since.
    unanswered: bool,
    /// The SYN-ACK.
    answer: Option<Answer>,
}

/// A SYN-ACK of the local TCP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Answer {
    isn: Seq,
    options: Options,
    window: u16,
    signed: bool,
}

/// Handshakes that began, in their order: a flood costs no more than forgetting the oldest.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    by_tuple: HashMap<FourTuple, (u64, Vec<Handshake>)>,
    /// Some are over; those in front are not.
    order: VecDeque<(u64, FourTuple)>,
    serial: u64,
}

impl Handshakes {
    fn note(&mut self, tuple: FourTuple, handshake: Handshake) {
        if let Some((_, known)) = self.by_tuple.get_mut(&tuple) {
            let isn_out = handshake.answer.map(|a| a.isn);
            let same = |h: &Handshake| {
                (h.isn, h.by_us) == (handshake.isn, handshake.by_us) && h.answer.is_none_or(|a| Some(a.isn) == isn_out)
            };
            match known.iter_mut().find(|h| same(h)) {
                Some(h) => *h = handshake,
                None => {
                    if known.len() == MAX_OF_ONE {
                        // The first one is what the local TCP goes by, if it has it.
                        known.remove(1);
                    }
                    known.push(handshake);
                }
            }
            return;
        }
        self.serial += 1;
        self.by_tuple.insert(tuple, (self.serial, vec![handshake]));
        self.order.push_back((self.serial, tuple));
        while let Some((serial, tuple)) = self.order.front() {
            let over = self.by_tuple.get(tuple).is_none_or(|(known, _)| known != serial);
            if !over && self.order.len() <= MAX_HANDSHAKES {
                return;
            }
            if !over {
                self.by_tuple.remove(tuple);
            }
            self.order.pop_front();
        }
    }

    fn find(&self, tuple: &FourTuple, which: impl Fn(&Handshake) -> bool) -> Option<Handshake> {
        self.by_tuple.get(tuple)?.1.iter().rev().find(|h| which(h)).copied()
    }

    pub fn remove(&mut self, tuple: &FourTuple) {
        self.by_tuple.remove(tuple);
    }

    pub fn forget_ours(&mut self) {
        self.by_tuple.retain(|_, (_, all)| {
            all.retain(|handshake| !handshake.by_us);
            !all.is_empty()
        });
    }
}

/// That this segment is the third one of such a handshake.
fn completes<'a>(segment: &Segment<'a>) -> impl Fn(&Handshake) -> bool + use<'a> {
    let segment = *segment;
    move |h| !h.by_us && h.answer.is_some_and(|answer| segment.ack() == answer.isn.add(1)) && !segment.seq().before(h.isn.add(1))
}

/// What both SYNs settle. `theirs` and `ours`: options of the peer's SYN and of ours.
#[allow(clippy::too_many_arguments)] // the parts of two SYNs
fn settled(
    session: SessionId,
    tuple: FourTuple,
    isn_in: Seq,
    isn_out: Seq,
    theirs: Options,
    ours: Options,
    window: u16,
    established: bool,
) -> Open {
    let shifts = theirs.window_scale.zip(ours.window_scale);
    Open {
        session,
        tuple,
        internal_port: tuple.local.port(),
        isn_in,
        isn_out,
        // What we ask for is what we send, too, where the application has set it (TCP_MAXSEG).
        mss: theirs.mss.unwrap_or(536).min(ours.mss.unwrap_or(u16::MAX)),
        shifts,
        sack: theirs.sack_permitted && ours.sack_permitted,
        timestamps: theirs.timestamps.is_some() && ours.timestamps.is_some(),
        established,
        // The window of a SYN is not scaled; the record's is.
        window: shifts.map_or(window, |(theirs, _)| window >> theirs),
        ts_recent: theirs.timestamps.map_or(0, |t| t.0),
        ts_value: ours.timestamps.map_or(0, |t| t.0),
        in_done: 0,
        out_acked: 0,
    }
}

impl Filter {
    pub(super) fn note_syn(&mut self, tuple: FourTuple, segment: &Segment<'_>, by_us: bool) {
        let again = self.handshakes.find(&tuple, |h| h.isn == segment.seq() && h.by_us == by_us);
        let handshake = Handshake {
            since: again.map_or(self.clock, |h| h.since),
            isn: segment.seq(),
            options: segment.options(),
            window: segment.window(),
            by_us,
            signed: segment.is_signed(),
            unanswered: true,
            answer: again.and_then(|h| h.answer),
        };
        self.handshakes.note(tuple, handshake);
    }

    /// Whether this SYN of ours has left before.
    pub(super) fn has_called(&self, tuple: &FourTuple, isn: Seq) -> bool {
        self.handshakes.find(tuple, |h| h.by_us && h.isn == isn).is_some()
    }

    /// Whether a SYN of ours has left from there, and made no session yet.
    pub(super) fn calls_from(&self, tuple: &FourTuple) -> bool {
        self.handshakes.find(tuple, |h| h.by_us).is_some()
    }

    /// Whether an RST of the local TCP refuses a connection that it may yet accept.
    pub(super) fn refused_too_soon(&self, now: Now, tuple: &FourTuple) -> bool {
        self.handshakes.find(tuple, |h| !h.by_us && h.unanswered && now < h.since + REFUSED_AFTER).is_some()
    }

    /// A segment of no session. Returns whether it made one: the answer to our SYN, or the third segment of a
    /// handshake whose SYN-ACK left without a record.
    pub(super) fn opened_by(&mut self, now: Now, tuple: FourTuple, segment: &Segment<'_>) -> Option<SessionId> {
        if !segment.has(flags::ACK) || segment.has(flags::RST) {
            return None;
        }
        if segment.has(flags::SYN) {
            let h = self.handshakes.find(&tuple, |h| h.by_us && segment.ack() == h.isn.add(1))?;
            let theirs = segment.options();
            let (isn_in, window) = (segment.seq(), segment.window());
            let id = self.next_session_id();
            let open = settled(id, tuple, isn_in, h.isn, theirs, h.options, window, true);
            let internal_port = self.inner(&tuple).local.port();
            self.open_session(now, Open { internal_port, ..open }, u64::from(h.window), h.signed);
            self.record_cause(id);
            self.live.get_mut(&id).expect("just opened").base_pos = self.gate.end();
            return Some(id);
        }
        let h = self.handshakes.find(&tuple, completes(segment))?;
        let answer = h.answer?;
        let id = self.next_session_id();
        let open = settled(id, tuple, h.isn, answer.isn, h.options, answer.options, h.window, true);
        self.open_session(now, open, u64::from(answer.window), answer.signed);
        Some(id)
    }

    /// The session of this segment. A listener that answers with cookies knows none of the SYNs that it has answered: where
    /// there were several of one four-tuple, the third segment says which of them is the peer's.
    pub(super) fn session_of_segment(&mut self, now: Now, tuple: FourTuple, segment: &Segment<'_>) -> Option<SessionId> {
        let Some(id) = self.store.find(&tuple) else { return self.opened_by(now, tuple, segment) };
        let (s, live) = (self.store.get(id).expect("found"), &self.live[&id]);
        let whole = live.established || live.stage != Stage::Live || segment.ack() == s.open.isn_out.add(1);
        let third = segment.flags() & (flags::SYN | flags::ACK | flags::RST) == flags::ACK;
        if whole || !third || self.handshakes.find(&tuple, completes(segment)).is_none() {
            return Some(id);
        }
        self.replace_session(now, id, tuple);
        self.opened_by(now, tuple, segment)
    }

    /// A session makes room for another one with its four-tuple, whose handshake stays known.
    fn replace_session(&mut self, now: Now, id: SessionId, tuple: FourTuple) {
        let kept = self.handshakes.by_tuple.remove(&tuple);
        self.end_session(now, id, EndReason::Closed);
        // With its place among them.
        self.handshakes.by_tuple.extend(kept.map(|kept| (tuple, kept)));
    }

    /// `signed`: no other TCP can go on with it, for the key is the local one's secret.
    fn open_session(&mut self, now: Now, open: Open, edge: u64, signed: bool) {
        let (id, established) = (open.session, open.established);
        if established {
            self.handshakes.remove(&open.tuple);
        }
        self.splices.remove_former(&open.tuple, open.isn_out);
        let position = self.write(0, |out| open.encode(out));
        self.counters.opened += 1;
        let mut live = Live::new(self.store.get(id).expect("just opened"));
        live.base_pos = position;
        live.edge = edge;
        live.probed = true;
        (live.ts_recent_at, live.ts_value_at) = (seconds(now), seconds(now));
        live.outgoing = self.is_outgoing(&open.tuple);
        live.signed = signed;
        self.live.insert(id, Box::new(live));
        if signed {
            self.counters.signed += 1;
            self.tear(now, id);
        }
        if established {
            self.accepted_unhooked(id);
        } else {
            self.embryos += 1;
            self.expiries.push_back((now + EMBRYONIC, id));
            if self.expiries.len() > 2 * MAX_EMBRYOS && self.expiries.len() > 2 * self.embryos {
                let live = &self.live;
                self.expiries.retain(|(_, id)| live.get(id).is_some_and(|l| !l.established));
            }
        }
    }

    /// A SYN-ACK: the session's record goes to the replica before the peer can know of the session. It acknowledges nothing
    /// but a SYN that we have seen (I1): more would be data of which no store has heard.
    pub(super) fn opening(&mut self, now: Now, id: u32, tuple: FourTuple, segment: &Segment<'_>) {
        let old = self.store.find(&tuple);
        if let Some(old) = old {
            let s = self.store.get(old).expect("found");
            if s.open.isn_out == segment.seq() && s.in_seq(0) == segment.ack() {
                let need = self.live.get(&old).map_or(LogPosition::START, |l| l.base_pos);
                return self.wait_or_release(now, Some(old), need, Held::bare(id, now));
            }
        }
        let answer =
            Answer { isn: segment.seq(), options: segment.options(), window: segment.window(), signed: segment.is_signed() };
        let of_it = |h: &Handshake| !h.by_us && segment.ack() == h.isn.add(1);
        // We never saw its SYN (dropped past the bound): the peer sends it again. Or the peer signs, and will not hear what
        // is not signed.
        let Some(h) = self.handshakes.find(&tuple, of_it).filter(|h| h.signed <= answer.signed) else {
            self.counters.unknown_dropped += 1;
            return self.actions.push(Action::DropOut(id));
        };
        if self.gate.fenced() && self.embryos >= MAX_EMBRYOS {
            return self.actions.push(Action::DropOut(id));
        }
        if let Some(old) = old {
            // The peer's port came round again and TCP has accepted it: the old session is history. One that is half open
            // may yet turn out to be the one that its peer goes on with.
            self.replace_session(now, old, tuple);
        }
        self.handshakes.note(tuple, Handshake { unanswered: false, answer: Some(answer), ..h });
        if self.embryos >= MAX_EMBRYOS {
            return self.actions.push(Action::AcceptOut(id));
        }
        let session = self.next_session_id();
        let open = settled(session, tuple, h.isn, answer.isn, h.options, answer.options, h.window, false);
        self.open_session(now, open, u64::from(answer.window), answer.signed);
        let need = self.live[&session].base_pos;
        self.wait_or_release(now, Some(session), need, Held::bare(id, now));
    }

    fn next_session_id(&mut self) -> SessionId {
        loop {
            let id = self.next_id;
            self.next_id = self.next_id.wrapping_add(1);
            if id != 0 && self.store.get(id).is_none() {
                return id;
            }
        }
    }

    /// The peer has completed the handshake.
    pub(super) fn established(&mut self, id: SessionId) {
        let live = self.live.get_mut(&id).expect("live");
        if !live.established {
            live.established = true;
            self.embryos -= 1;
            let tuple = self.store.get(id).expect("known").open.tuple;
            self.handshakes.remove(&tuple);
            self.forget_expiries();
            self.accepted_unhooked(id);
        }
    }

    /// A server whose connections are all made wants no timer.
    pub(super) fn forget_expiries(&mut self) {
        while let Some((_, id)) = self.expiries.front() {
            if self.live.get(id).is_some_and(|l| !l.established) {
                return;
            }
            self.expiries.pop_front();
        }
    }

    /// Half-open sessions whose time is over. Those of a takeover have a timer of their own.
    pub(super) fn expire(&mut self, now: Now) {
        while let Some(&(due, id)) = self.expiries.front() {
            if due > now {
                return;
            }
            self.expiries.pop_front();
            if self.live.get(&id).is_some_and(|l| !l.established && l.stage == Stage::Live) {
                self.end_session(now, id, EndReason::Expired);
            }
        }
    }

    // ---- half open at a takeover ----------------------------------------------------------------------

    /// A segment for a session that was half open at the takeover. Returns false if it is for nobody here.
    pub(super) fn embryo_in(&mut self, now: Now, session: SessionId, segment: &Segment<'_>) -> EmbryoIn {
        let s = self.store.get(session).expect("known");
        if segment.has(flags::SYN) {
            if !segment.has(flags::ACK) && segment.seq() == s.open.isn_in {
                // It has not got its SYN-ACK.
                self.send_syn_ack(session);
                return EmbryoIn::Answered;
            }
            if !segment.has(flags::ACK) {
                self.end_session(now, session, EndReason::Expired);
                return EmbryoIn::Stranger;
            }
            return EmbryoIn::Answered;
        }
        if segment.has(flags::RST) {
            let exact = segment.seq() == s.in_seq(0);
            if exact {
                self.end_session(now, session, EndReason::ResetByPeer);
            }
            return EmbryoIn::Answered;
        }
        // Anything else acknowledges our SYN, or is not of this connection.
        let ours = segment.has(flags::ACK) && segment.ack() == s.out_seq(0) && !segment.seq().before(s.in_seq(0));
        if !ours {
            self.counters.disbelieved += 1;
            return EmbryoIn::Answered;
        }
        self.established(session);
        self.recount(session, |l| l.stage = Stage::Probing);
        self.mark_dirty(now, session);
        EmbryoIn::Established
    }

    /// Sends the SYN-ACK of a half-open session again, by ourselves.
    pub(super) fn send_syn_ack(&mut self, id: SessionId) {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get(&id)) else { return };
        // Who completes the handshake is known to the replica. It comes again.
        if !self.may_leave(live.base_pos) {
            return;
        }
        // Our own limit is not in the record; what the peer can take, over an ordinary Ethernet, is safe.
        let most = if s.open.tuple.local.is_ipv4() { 1460 } else { 1440 };
        let mut options = vec![2, 4];
        options.extend_from_slice(&s.open.mss.min(most).to_be_bytes());
        if let Some((_, ours)) = s.open.shifts {
            options.extend_from_slice(&[1, 3, 3, ours]);
        }
        if s.open.sack {
            options.extend_from_slice(&[1, 1, 4, 2]);
        }
        let mut packet = Vec::new();
        Build {
            source: s.open.tuple.local,
            destination: s.open.tuple.peer,
            seq: s.open.isn_out,
            ack: s.in_seq(0),
            flags: flags::SYN | flags::ACK,
            // Nor is our window: the least that any socket has. The restored one opens it.
            window: LEAST_WINDOW as u16,
            timestamps: s.open.timestamps.then_some((live.ts_value, live.ts_recent)),
            payload: &[],
        }
        .write_with(&options, &mut packet);
        self.actions.push(Action::SendPeer(packet));
    }

    /// Its SYN-ACK again, or its end. Returns when it wants to be looked at again.
    pub(super) fn embryo_timeout(&mut self, now: Now, id: SessionId) -> Option<Now> {
        let live = self.live.get_mut(&id)?;
        let Stage::Embryo { next, tries } = live.stage else { return None };
        if next > now {
            return Some(next);
        }
        if tries >= SYN_ACK_TRIES {
            self.end_session(now, id, EndReason::Expired);
            return None;
        }
        let next = now + SYN_ACK_AGAIN * 2u32.pow(tries);
        live.stage = Stage::Embryo { next, tries: tries + 1 };
        self.send_syn_ack(id);
        Some(next)
    }
}

/// What became of a segment for a half-open session.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum EmbryoIn {
    /// Done with.
    Answered,
    /// The session is no more; the segment is of no session.
    Stranger,
    /// The session is established, and waits for its socket with this segment.
    Established,
}
