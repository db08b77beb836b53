//! Handshakes that are under way, and half-open sessions: how many there are and when they expire, and which numbers new
//! sessions get. What becomes of one is decided in `opening`.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::packets::HeldIn;
use crate::record::Open;
use crate::segment::{flags, Options, Segment};
use crate::seq::Seq;
use crate::store::Store;
use crate::tuple::{FourTuple, SessionId};
use crate::Now;

/// Most four-tuples whose handshakes are remembered; the oldest make room. A peer whose third segment takes longer than
/// so many SYNs is reset (see [`super::Filter::poll_stranger`]).
const MAX_HANDSHAKES: usize = 1 << 15;
/// Most handshakes of one four-tuple: the local TCP may answer another SYN than the newest.
const MAX_OF_ONE: usize = 4;
/// Most half-open sessions in the log. Past it, a session is told at its third segment: then a flood of SYNs
/// costs the replica nothing.
const MAX_HALF_OPEN: usize = 4096;
/// Longest that a half-open session is kept: the kernel gives up after about 63 s.
const HALF_OPEN: Duration = Duration::from_secs(75);
/// For so long a SYN for which nobody listens is not refused: a server that has just died, or moved to another member,
/// is on its way back, and the peer's TCP asks again.
const REFUSED_AFTER: Duration = Duration::from_secs(10);
/// Most SYNs held while a barrier stands; later ones are dropped and come again.
const MAX_HELD_SYNS: usize = 1024;
/// The kernel is asked about strangers no more often: a flood of ACKs would cost more than it is worth. Whoever is one sends
/// again.
const STRANGERS_EVERY: Duration = Duration::from_millis(1);
const MAX_STRANGERS: usize = 64;

/// What a SYN or SYN-ACK says of its sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Syn {
    pub isn: Seq,
    options: Options,
    pub window: u16,
    /// TCP-MD5 or TCP-AO.
    pub signed: bool,
}

impl Syn {
    pub fn of(segment: &Segment<'_>) -> Syn {
        Syn { isn: segment.seq(), options: segment.options(), window: segment.window(), signed: segment.is_signed() }
    }

    /// The session that the two SYNs of a handshake settle, the peer's and the local TCP's.
    pub fn settle(theirs: Syn, ours: Syn, session: SessionId, tuple: FourTuple, established: bool) -> Open {
        let shifts = theirs.options.window_scale.zip(ours.options.window_scale);
        Open {
            session,
            tuple,
            internal_port: tuple.local.port(),
            isn_in: theirs.isn,
            isn_out: ours.isn,
            // What we ask for is what we send, too, where the application has set it (TCP_MAXSEG).
            mss: theirs.options.mss.unwrap_or(536).min(ours.options.mss.unwrap_or(u16::MAX)),
            shifts,
            sack: theirs.options.sack_permitted && ours.options.sack_permitted,
            timestamps: theirs.options.timestamps.is_some() && ours.options.timestamps.is_some(),
            established,
            // The window of a SYN is not scaled; the record's is.
            window: shifts.map_or(theirs.window, |(shift, _)| theirs.window >> shift),
            ts_recent: theirs.options.timestamps.map_or(0, |t| t.0),
            ts_value: ours.options.timestamps.map_or(0, |t| t.0),
            in_done: 0,
            out_acked: 0,
        }
    }
}

/// A handshake that began.
#[derive(Clone, Copy, Debug)]
struct Handshake {
    /// When its SYN was first seen.
    since: Now,
    syn: Syn,
    /// The SYN was ours.
    by_us: bool,
    /// The SYN has come, or come again, and was not answered since.
    unanswered: bool,
    /// The local TCP's SYN-ACK.
    answer: Option<Syn>,
}

/// The handshakes of one four-tuple, and their place among all.
#[derive(Debug)]
struct OfTuple {
    serial: u64,
    handshakes: Vec<Handshake>,
}

/// Handshakes of a four-tuple that were taken out, to be put back in their place.
pub(super) struct Kept(Option<OfTuple>);

/// See the module's description.
#[derive(Debug)]
pub(super) struct Handshakes {
    by_tuple: HashMap<FourTuple, OfTuple>,
    /// In the order in which they began: a flood costs no more than forgetting the oldest. Some are over; those in front are
    /// not.
    order: VecDeque<(u64, FourTuple)>,
    serial: u64,
    /// How many sessions are half open, and when they expire. Entries may be stale.
    half_open: usize,
    expiries: VecDeque<(Now, SessionId)>,
    /// The number of the next session.
    next_id: SessionId,
    /// SYNs that wait for the barrier.
    held_syns: Vec<HeldIn>,
    /// Connections that no session knows and the kernel may; not one more before this time.
    strangers: Vec<FourTuple>,
    next_stranger: Now,
}

impl Handshakes {
    pub fn new() -> Handshakes {
        Handshakes {
            by_tuple: HashMap::new(),
            order: VecDeque::new(),
            serial: 0,
            half_open: 0,
            expiries: VecDeque::new(),
            next_id: 1,
            held_syns: Vec::new(),
            strangers: Vec::new(),
            next_stranger: Duration::ZERO,
        }
    }

    // ---- handshakes ----------------------------------------------------------------------------------

    /// A SYN has come, or leaves (`by_us`).
    pub fn note_syn(&mut self, now: Now, tuple: FourTuple, segment: &Segment<'_>, by_us: bool) {
        let again = self.find(&tuple, |h| h.syn.isn == segment.seq() && h.by_us == by_us);
        let handshake = Handshake {
            since: again.map_or(now, |h| h.since),
            syn: Syn::of(segment),
            by_us,
            unanswered: true,
            answer: again.and_then(|h| h.answer),
        };
        self.note(tuple, handshake);
    }

    /// The peer's SYN that this SYN-ACK of the local TCP answers, unless it is one that the peer will not hear: a peer that
    /// signs hears only what is signed.
    pub fn answered_by(&self, tuple: &FourTuple, answer: &Segment<'_>) -> Option<Syn> {
        let of_it = |h: &Handshake| !h.by_us && answer.ack() == h.syn.isn.add(1);
        let h = self.find(tuple, of_it)?;
        (h.syn.signed <= answer.is_signed()).then_some(h.syn)
    }

    /// The SYN-ACK leaves.
    pub fn note_answer(&mut self, tuple: FourTuple, answer: &Segment<'_>) {
        let of_it = |h: &Handshake| !h.by_us && answer.ack() == h.syn.isn.add(1);
        if let Some(h) = self.find(&tuple, of_it) {
            self.note(tuple, Handshake { unanswered: false, answer: Some(Syn::of(answer)), ..h });
        }
    }

    fn note(&mut self, tuple: FourTuple, handshake: Handshake) {
        if let Some(OfTuple { handshakes: known, .. }) = self.by_tuple.get_mut(&tuple) {
            let answer = handshake.answer.map(|a| a.isn);
            let same = |h: &Handshake| {
                (h.syn.isn, h.by_us) == (handshake.syn.isn, handshake.by_us) && h.answer.is_none_or(|a| Some(a.isn) == answer)
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
        self.by_tuple.insert(tuple, OfTuple { serial: self.serial, handshakes: vec![handshake] });
        self.order.push_back((self.serial, tuple));
        while let Some((serial, tuple)) = self.order.front() {
            let over = self.by_tuple.get(tuple).is_none_or(|known| known.serial != *serial);
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
        self.by_tuple.get(tuple)?.handshakes.iter().rev().find(|h| which(h)).copied()
    }

    /// Whether this SYN of ours has left before.
    pub fn has_called(&self, tuple: &FourTuple, isn: Seq) -> bool {
        self.find(tuple, |h| h.by_us && h.syn.isn == isn).is_some()
    }

    /// Whether a SYN of ours has left from there, and made no session yet.
    pub fn calls_from(&self, tuple: &FourTuple) -> bool {
        self.find(tuple, |h| h.by_us).is_some()
    }

    /// Whether an RST of the local TCP refuses a connection that it may yet accept.
    pub fn refused_too_soon(&self, now: Now, tuple: &FourTuple) -> bool {
        self.find(tuple, |h| !h.by_us && h.unanswered && now < h.since + REFUSED_AFTER).is_some()
    }

    /// Our SYN that this SYN-ACK of a peer answers.
    pub fn called_by(&self, tuple: &FourTuple, answer: &Segment<'_>) -> Option<Syn> {
        self.find(tuple, |h| h.by_us && answer.ack() == h.syn.isn.add(1)).map(|h| h.syn)
    }

    /// The peer's SYN and the local TCP's SYN-ACK of the handshake of which this segment is the third.
    pub fn completed_by(&self, tuple: &FourTuple, segment: &Segment<'_>) -> Option<(Syn, Syn)> {
        let completes = |h: &Handshake| {
            !h.by_us
                && h.answer.is_some_and(|answer| segment.ack() == answer.isn.add(1))
                && !segment.seq().before(h.syn.isn.add(1))
        };
        let h = self.find(tuple, completes)?;
        Some((h.syn, h.answer?))
    }

    /// Handshakes of this four-tuple are over.
    pub fn remove(&mut self, tuple: &FourTuple) {
        self.by_tuple.remove(tuple);
    }

    /// Takes out what is known of a four-tuple, for [`Self::put_back`].
    pub fn take(&mut self, tuple: &FourTuple) -> Kept {
        Kept(self.by_tuple.remove(tuple))
    }

    /// Puts that back in its place among the others.
    pub fn put_back(&mut self, tuple: FourTuple, kept: Kept) {
        self.by_tuple.extend(kept.0.map(|kept| (tuple, kept)));
    }

    /// What the local TCP has called for has no socket any more.
    pub fn forget_ours(&mut self) {
        self.by_tuple.retain(|_, known| {
            known.handshakes.retain(|handshake| !handshake.by_us);
            !known.handshakes.is_empty()
        });
    }

    /// Forgets all that is under way.
    pub fn clear(&mut self) {
        self.by_tuple.clear();
        self.order.clear();
        self.serial = 0;
    }

    // ---- half-open sessions --------------------------------------------------------------------------

    /// Whether there are so many that no more are told to the replica before their third segment.
    pub fn is_full(&self) -> bool {
        self.half_open >= MAX_HALF_OPEN
    }

    /// A session is half open, and expires. `lives`: whether such a session still is.
    pub fn opens(&mut self, now: Now, id: SessionId, lives: impl Fn(SessionId) -> bool) {
        self.half_open += 1;
        self.expiries.push_back((now + HALF_OPEN, id));
        if self.expiries.len() > 2 * MAX_HALF_OPEN && self.expiries.len() > 2 * self.half_open {
            self.expiries.retain(|(_, id)| lives(*id));
        }
    }

    /// A session is half open, and has a timer of its own.
    pub fn opens_again(&mut self) {
        self.half_open += 1;
    }

    /// A session is half open no more.
    pub fn opened(&mut self, tuple: &FourTuple) {
        self.half_open -= 1;
        self.remove(tuple);
    }

    /// A server whose connections are all made wants no timer.
    pub fn forget_expiries(&mut self, lives: impl Fn(SessionId) -> bool) {
        while self.expiries.front().is_some_and(|(_, id)| !lives(*id)) {
            self.expiries.pop_front();
        }
    }

    /// When the first of them expires.
    pub fn poll_timeout(&self) -> Option<Now> {
        self.expiries.front().map(|(due, _)| *due)
    }

    /// A session that expires by now, if it is half open: to be asked until there is none.
    pub fn next_expired(&mut self, now: Now) -> Option<SessionId> {
        self.expiries.front().filter(|(due, _)| *due <= now)?;
        self.expiries.pop_front().map(|(_, id)| id)
    }

    /// No session is known any more.
    pub fn forget_sessions(&mut self) {
        self.half_open = 0;
        self.expiries.clear();
    }

    /// Of a new session; none in the store has it.
    pub fn next_id(&mut self, store: &Store) -> SessionId {
        loop {
            let id = self.next_id;
            self.next_id = self.next_id.wrapping_add(1);
            if id != 0 && store.get(id).is_none() {
                return id;
            }
        }
    }

    /// The number that comes next, if it is free.
    pub fn first_unused(&self) -> SessionId {
        self.next_id
    }

    /// Numbers go on behind those of the store.
    pub fn number_behind(&mut self, store: &Store) {
        self.next_id = store.iter().map(|s| s.open.session).max().unwrap_or(0).wrapping_add(1);
    }

    // ---- SYNs that wait, and strangers ---------------------------------------------------------------

    /// Whether one more SYN may wait.
    pub fn may_hold(&self) -> bool {
        self.held_syns.len() < MAX_HELD_SYNS
    }

    pub fn hold(&mut self, syn: HeldIn) {
        self.held_syns.push(syn);
    }

    pub fn holds_any(&self) -> bool {
        !self.held_syns.is_empty()
    }

    pub fn take_held(&mut self) -> Vec<HeldIn> {
        std::mem::take(&mut self.held_syns)
    }

    /// A segment of no session came, of a connection that the kernel may know: it is to be asked.
    pub fn note_stranger(&mut self, now: Now, tuple: FourTuple) {
        if now >= self.next_stranger && self.strangers.len() < MAX_STRANGERS {
            self.next_stranger = now + STRANGERS_EVERY;
            self.strangers.push(tuple);
        }
    }

    pub fn pop_stranger(&mut self) -> Option<FourTuple> {
        self.strangers.pop()
    }
}

/// Whether this is the third segment of a handshake, as its flags say.
pub(super) fn is_third(segment: &Segment<'_>) -> bool {
    segment.flags() & (flags::SYN | flags::ACK | flags::RST) == flags::ACK
}
