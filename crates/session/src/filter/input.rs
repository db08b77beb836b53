//! Segments from peers. A segment is believed only if the local TCP will believe it: it reaches INPUT before
//! TCP has judged it (RFC 9293, section 3.10.7.4; tcp_validate_incoming, tcp_ack in the kernel).
//!
//! Storing more than the kernel takes is harmless, since an honest peer sends the same bytes again; storing less
//! would hold its ACKs. So every test here is the kernel's or laxer, new bytes that are not stored are kept from
//! the kernel, and so is an ACK of what never left, which the kernel has sent as far as it knows. An RST that the
//! kernel might refuse ends nothing here (the sweep will find out).

use super::live::{HeldIn, Live, Stage};
use super::opening::EmbryoIn;
use super::{Action, Filter, Mode};
use crate::record::{self, EndReason};
use crate::segment::{self, flags, Segment};
use crate::seldom::Blank;
use crate::seq::{self, Seq};
use crate::store::Session;
use crate::tuple::{FourTuple, SessionId};
use crate::Now;

/// Most SYNs held while a barrier stands; later ones are dropped and come again.
const MAX_HELD_SYNS: usize = 1024;
/// Most packets held of one session while it is restored; later ones are dropped and come again.
const MAX_HELD_IN: usize = 4096;

/// What a segment does to a session that believes it.
struct Believed {
    /// New acknowledgement, if it moved.
    ack: Option<u64>,
    /// Acknowledgement as the segment has it, FIN counted.
    raw_ack: Option<u64>,
    /// Offset of the first payload byte, as near as it can be known.
    offset: i64,
}

enum Judgement {
    Believed(Believed),
    /// The local TCP will not take it.
    Ignored,
    /// It acknowledges what never left.
    Forged,
    /// The peer ends the connection.
    Reset,
}

impl Filter {
    /// A packet from the INPUT queue. `vouched`: the kernel or its hardware has checked the checksum, or there
    /// is none because the packet never left the host.
    pub fn packet_in(&mut self, now: Now, id: u32, bytes: &[u8], vouched: bool) {
        self.clock = now;
        self.counters.packets_in += 1;
        self.take_in(now, Some(id), bytes, vouched);
    }

    /// An inbound packet that the former master forwarded, its checksum full and right.
    pub fn forwarded_in(&mut self, now: Now, bytes: &[u8]) {
        self.clock = now;
        self.take_in(now, None, bytes, true);
    }

    fn take_in(&mut self, now: Now, id: Option<u32>, bytes: &[u8], vouched: bool) {
        match self.mode {
            Mode::Passive => return self.drop_in(id),
            Mode::Frozen => {
                if let Some(packet) = segment::completed(bytes, vouched) {
                    self.actions.push(Action::Forward(packet));
                }
                return self.drop_in(id);
            }
            Mode::Restoring | Mode::Active => {}
        }
        let Ok(segment) = Segment::parse(bytes) else {
            // What we cannot judge TCP may not see, or it would acknowledge what no store holds.
            self.counters.disbelieved += 1;
            return self.drop_in(id);
        };
        if !vouched && !segment.checksum_ok() {
            self.counters.disbelieved += 1;
            // Corrected it would be right.
            let tuple = FourTuple { local: segment.destination(), peer: segment.source() };
            return if self.splices.get(&tuple).is_some() { self.drop_in(id) } else { self.deliver(id, bytes) };
        }
        let tuple = FourTuple { local: segment.destination(), peer: segment.source() };
        match self.store.find(&tuple).or_else(|| self.opened_by(now, tuple, &segment)) {
            Some(session) => self.known_in(now, id, session, &segment, bytes),
            None => self.unknown_in(id, tuple, &segment, bytes),
        }
    }

    fn deliver(&mut self, id: Option<u32>, bytes: &[u8]) {
        match (id, self.corrected_in(bytes)) {
            (Some(id), None) => self.actions.push(Action::AcceptIn(id)),
            (None, None) => self.actions.push(Action::Inject(bytes.to_vec())),
            (id, Some(corrected)) => {
                let segment = Segment::parse(bytes).expect("parsed before");
                self.deliver_changed(id, &segment, corrected);
            }
        }
    }

    /// Delivers what has become of a segment. One that goes to another port than it came to is injected: Linux has found a
    /// socket for it before we saw it (early demux), by the port that the peer knows, and looks for no other; that may be
    /// the socket of another session, which the peer knows by another port.
    fn deliver_changed(&mut self, id: Option<u32>, segment: &Segment<'_>, changed: Vec<u8>) {
        let moved = Segment::parse(&changed).is_ok_and(|now| now.destination() != segment.destination());
        if let (Some(id), false) = (id, moved) {
            return self.actions.push(Action::ModifyIn(id, changed));
        }
        self.drop_in(id);
        self.actions.push(Action::Inject(changed));
    }

    /// Delivers the segment with this acknowledgement. An urgent byte stays in its place (RFC 6093, section 3.2):
    /// Linux would take it out of the stream, and what the application has read could not be counted.
    fn deliver_with(&mut self, id: Option<u32>, segment: &Segment<'_>, ack: Seq, bytes: &[u8]) {
        if ack == segment.ack() && !segment.has(flags::URG) {
            return self.deliver(id, bytes);
        }
        let mut changed = Vec::new();
        segment.rewrite_inline(ack, &mut changed);
        let changed = self.corrected_in(&changed).unwrap_or(changed);
        self.deliver_changed(id, segment, changed);
    }

    fn drop_in(&mut self, id: Option<u32>) {
        if let Some(id) = id {
            self.actions.push(Action::DropIn(id));
        }
    }

    fn unknown_in(&mut self, id: Option<u32>, tuple: FourTuple, segment: &Segment<'_>, bytes: &[u8]) {
        let opens = segment.has(flags::SYN) && !segment.has(flags::ACK);
        if self.mode == Mode::Restoring {
            // No new connection before the recovered ones are in the application's hands, and no RST from a
            // kernel that has not yet all its sockets.
            if opens && self.held_syns.len() < MAX_HELD_SYNS {
                self.held_syns.push(HeldIn { id, bytes: bytes.to_vec() });
                return;
            }
            if !opens && self.calls_from(&tuple) {
                // Whoever was called refuses. The program may want to know that before it accepts anything.
                return self.deliver(id, bytes);
            }
            if self.resets.contains(&tuple) && segment.has(flags::ACK) && !segment.has(flags::RST) {
                // The challenge to our RST (RFC 5961, section 3): the next one has the right number.
                let reset = segment::reset_for(segment);
                self.actions.push(Action::SendPeer(reset));
            }
            return self.drop_in(id);
        }
        if opens {
            self.note_syn(tuple, segment, false);
        }
        self.deliver(id, bytes);
    }

    fn known_in(&mut self, now: Now, id: Option<u32>, session: SessionId, segment: &Segment<'_>, bytes: &[u8]) {
        let stage = self.live[&session].stage;
        let feeding = matches!(stage, Stage::Feeding { .. });
        match stage {
            Stage::Embryo { .. } => return match self.embryo_in(now, session, segment) {
                EmbryoIn::Answered => self.drop_in(id),
                EmbryoIn::Stranger => {
                    let tuple = FourTuple { local: segment.destination(), peer: segment.source() };
                    self.unknown_in(id, tuple, segment, bytes);
                }
                EmbryoIn::Established => self.held_back_in(now, id, session, segment, bytes),
            },
            Stage::Probing | Stage::Restored => return self.held_back_in(now, id, session, segment, bytes),
            Stage::Feeding { .. } | Stage::Live => {}
        }
        if segment.has(flags::SYN) {
            // A retransmitted SYN, or a new one on an old tuple: TCP answers it, and its SYN-ACK tells. The
            // answer to our own SYN once more: TCP acknowledges it.
            if !segment.has(flags::ACK) {
                let tuple = FourTuple { local: segment.destination(), peer: segment.source() };
                self.note_syn(tuple, segment, false);
            }
            return self.deliver(id, bytes);
        }
        let (s, live) = (self.store.get(session).expect("found"), &self.live[&session]);
        match judge(s, live, segment) {
            Judgement::Ignored => {
                let behind = offset_in(s, segment) + i64::from(segment.sequence_length());
                let fresh = segment.sequence_length() > 0 && behind > s.in_ackable() as i64;
                self.counters.disbelieved += 1;
                if fresh {
                    // TCP might take it all the same, and acknowledge what no store holds. It comes again.
                    self.drop_in(id);
                } else {
                    self.deliver(id, bytes);
                }
            }
            Judgement::Forged => {
                self.counters.disbelieved += 1;
                self.drop_in(id);
            }
            Judgement::Reset => self.reset_in(now, id, session, bytes),
            Judgement::Believed(b) if !agrees(s, live, b.offset, segment) => {
                // Nobody knows which of the two the local TCP would keep.
                self.counters.disbelieved += 1;
                self.drop_in(id);
            }
            Judgement::Believed(b) => {
                let ack = self.apply_in(now, session, segment, &b);
                let stored = self.store_input(now, session, b.offset, segment);
                if stored && (!feeding || self.takes_itself(session, &b, segment)) {
                    self.deliver_with(id, segment, ack, bytes);
                } else {
                    self.drop_in(id);
                }
                if feeding {
                    self.feed_on(now, session, 0);
                }
                self.end_if_finished(now, session);
            }
        }
    }

    /// The peer ends the connection. A TCP that is behind believes it only under the number that it expects.
    fn reset_in(&mut self, now: Now, id: Option<u32>, session: SessionId, bytes: &[u8]) {
        let live = &self.live[&session];
        let mut expected = Vec::new();
        if live.behind() {
            expected.push(live.kernel_ack);
        }
        if let Stage::Feeding { fed, .. } = live.stage {
            expected.extend(Some(fed).filter(|fed| *fed > live.kernel_ack));
        }
        let reset = |at: u64| Action::Inject(self.segment_to_kernel(session, at, flags::RST | flags::ACK, &[]));
        let resets: Vec<Action> = expected.into_iter().map(reset).collect();
        self.end_session(now, session, EndReason::ResetByPeer);
        if resets.is_empty() {
            return self.deliver(id, bytes);
        }
        self.actions.extend(resets);
        self.drop_in(id);
    }

    /// A restored TCP is behind the peer until it is fed. It refuses what reaches beyond its window as a whole, and the
    /// peer sends again ever more slowly: such input comes to it from the store, in order and as it has room. What is
    /// said beside is told under the number that it expects: a higher one is refused, or makes it deaf to the window
    /// of lower ones. Returns whether this segment, which is stored, may go to it as it is.
    fn takes_itself(&mut self, session: SessionId, believed: &Believed, segment: &Segment<'_>) -> bool {
        let (Some(s), Some(live)) = (self.store.get(session), self.live.get_mut(&session)) else { return true };
        let end = believed.offset + i64::from(segment.sequence_length());
        if !live.behind() || end <= live.kernel_ack as i64 {
            return true;
        }
        let (kernel_ack, edge) = (live.kernel_ack, live.kernel_edge);
        if let (Stage::Feeding { until, fed, .. }, true) = (&mut live.stage, segment.sequence_length() > 0) {
            let next = believed.offset <= *fed as i64 && end <= edge as i64;
            if next {
                *fed = (*fed).max(end as u64);
            }
            if s.in_ackable() > *fed {
                *until = s.in_ackable();
            }
            if next {
                return true;
            }
            if believed.ack.is_none() {
                return false;
            }
        }
        live.tell_again = matches!(live.stage, Stage::Feeding { fed, .. } if fed > kernel_ack);
        self.inject(session, kernel_ack, flags::ACK, &[]);
        false
    }

    /// Applies what the segment says beside its bytes. Returns the ACK that the local TCP may see.
    fn apply_in(&mut self, now: Now, session: SessionId, segment: &Segment<'_>, believed: &Believed) -> Seq {
        self.established(session);
        let s = self.store.get(session).expect("known");
        let live = self.live.get_mut(&session).expect("live");
        let mut moved = !s.established;
        live.probed = true;
        let fresh = believed.ack.map(|ack| ack - std::mem::replace(&mut live.acked, ack));
        moved |= fresh.is_some();
        let duplicate = live.recovery.tail.is_some() && segment.sequence_length() == 0 && believed.raw_ack == Some(live.acked);
        if live.window != segment.window() {
            live.window = segment.window();
            moved = true;
        }
        if let Some((value, _)) = segment.options().timestamps {
            // RFC 7323, section 4.3: only segments that the last ACK sent reaches to.
            let expected = if live.behind() { s.in_ackable() } else { live.kernel_ack };
            // What is held is judged again, in its order.
            let held = live.stage == Stage::Restored && segment.sequence_length() > 0;
            if !held && believed.offset <= expected as i64 && (value.wrapping_sub(live.ts_recent) as i32) > 0 {
                live.ts_recent = value;
                moved = true;
            }
        }
        let ack = believed.raw_ack.map(|ack| if live.mute { live.kernel_nxt } else { ack.min(live.kernel_nxt) });
        // What lies before its window, or beyond one that it has taken back, it does not look at.
        let end = believed.offset + i64::from(segment.sequence_length());
        let unseen = end < live.kernel_ack as i64 || !live.behind() && end > live.kernel_edge as i64;
        let news = ack.unwrap_or(0) > live.kernel_una;
        if !unseen {
            live.kernel_una = live.kernel_una.max(ack.unwrap_or(0));
        }
        if live.kernel_nxt >= live.clamp {
            live.clamp = 0;
        }
        let ack = ack.map_or(segment.ack(), |ack| s.out_seq(ack));
        if fresh.is_some() {
            self.splices.acknowledged(&s.open.tuple, ack);
        }
        if unseen && news {
            self.inject(session, self.live[&session].kernel_ack, flags::ACK, &[]);
        }
        if moved {
            self.mark_dirty(now, session);
        }
        if fresh.is_some() || duplicate {
            self.tail_acked(now, session, fresh.unwrap_or(0));
        }
        ack
    }

    /// Appends the segment's new bytes to the log, and what had arrived early behind them. False: there is
    /// no room for bytes this early, and the local TCP may not have them either.
    fn store_input(&mut self, now: Now, session: SessionId, offset: i64, segment: &Segment<'_>) -> bool {
        let fin = segment.has(flags::FIN);
        let payload = segment.payload();
        if payload.is_empty() && !fin {
            return true;
        }
        let s = self.store.get(session).expect("known");
        let live = self.live.get_mut(&session).expect("live");
        let in_end = s.in_end();
        let end = offset + payload.len() as i64;
        if s.in_fin || end < in_end as i64 || (end == in_end as i64 && !fin) {
            return true;
        }
        if offset > in_end as i64 {
            return live.early.make().keep(offset as u64, payload, fin);
        }
        let fresh = &payload[(in_end as i64 - offset) as usize..];
        if live.early.is_blank() {
            self.append_input(now, session, in_end, fresh, fin);
            return true;
        }
        let mut joined = fresh.to_vec();
        let fin = live.early.make().join(end as u64, &mut joined) || fin;
        live.early.tidy();
        self.append_input(now, session, in_end, &joined, fin);
        true
    }

    pub(super) fn append_input(&mut self, now: Now, session: SessionId, offset: u64, bytes: &[u8], fin: bool) {
        let position = self.write(bytes.len(), |out| record::encode_input(session, offset, bytes, fin, out));
        let s = self.store.get(session).expect("known");
        let live = self.live.get_mut(&session).expect("live");
        live.in_marks.wrote(s.in_ackable(), position, &mut self.spares.marks);
        if live.attached {
            self.turns.input(session, offset, bytes);
            self.input_unhooked(session);
        }
        let live = self.live.get_mut(&session).expect("live");
        if std::mem::take(&mut live.ack_ahead) {
            self.judge_held(now, session);
        }
    }

    /// While a session is being restored its packets wait; their ACK is the probe's answer.
    fn held_back_in(&mut self, now: Now, id: Option<u32>, session: SessionId, segment: &Segment<'_>, bytes: &[u8]) {
        if self.live[&session].recovery.proof.is_some() {
            self.note_proof(now, session, segment);
            let live = self.live.get_mut(&session).filter(|l| segment.sequence_length() > 0 && l.recovery.held_in.len() < MAX_HELD_IN);
            return match live {
                Some(live) => live.recovery.make().held_in.push(HeldIn { id, bytes: bytes.to_vec() }),
                None => self.drop_in(id),
            };
        }
        let s = self.store.get(session).expect("known");
        let live = self.live.get_mut(&session).expect("live");
        let bare = segment.sequence_length() == 0;
        let mut ack = None;
        match judge(s, live, segment) {
            Judgement::Reset => return self.reset_in(now, id, session, bytes),
            Judgement::Believed(b) => {
                // The peer sends only where it was given window: this is what was advertised.
                let end = b.offset + i64::from(segment.sequence_length());
                live.edge = live.edge.max(u64::try_from(end).unwrap_or(0));
                if live.stage == Stage::Restored {
                    let shown = self.apply_in(now, session, segment, &b);
                    if bare && !self.takes_itself(session, &b, segment) {
                        return self.drop_in(id);
                    }
                    ack = Some(shown);
                } else if b.raw_ack.is_some() {
                    let acked = live.acked.max(b.ack.unwrap_or(0));
                    let fresh = acked - std::mem::replace(&mut live.acked, acked);
                    live.window = segment.window();
                    if !std::mem::replace(&mut live.probed, true) {
                        self.actions.push(Action::Probed(session));
                    }
                    self.tail_acked(now, session, fresh);
                }
            }
            Judgement::Ignored | Judgement::Forged => self.counters.disbelieved += 1,
        }
        let live = self.live.get_mut(&session).expect("live");
        if let (true, Some(ack)) = (bare, ack) {
            // It shows no input: the barrier does not mind, and the socket may go on sending.
            self.deliver_with(id, segment, ack, bytes);
        } else if bare || live.recovery.held_in.len() >= MAX_HELD_IN {
            self.drop_in(id);
        } else {
            live.recovery.make().held_in.push(HeldIn { id, bytes: bytes.to_vec() });
        }
    }

    /// Gives back what was held, in order, now that the session can take it.
    pub(super) fn replay_held(&mut self, now: Now, held: Vec<HeldIn>) {
        for h in held {
            self.take_in(now, h.id, &h.bytes, true);
        }
    }

    /// Both directions ended, were acknowledged, and the local TCP knows it: nothing of it is to come.
    pub(super) fn end_if_finished(&mut self, now: Now, session: SessionId) {
        let (Some(s), Some(live)) = (self.store.get(session), self.live.get(&session)) else { return };
        let peer_has_all = s.out_fin && live.acked > s.out_done && live.kernel_una > s.out_done;
        let kernel_has_all = live.kernel_ack >= s.in_ackable() && live.released_ack >= s.in_ackable();
        if s.in_fin && peer_has_all && kernel_has_all {
            self.end_session(now, session, EndReason::Closed);
        }
    }
}

/// Offset of a segment's first byte, as near to what is expected as it can be.
fn offset_in(s: &Session, segment: &Segment<'_>) -> i64 {
    i64::from(segment.seq().since(s.in_seq(s.in_ackable()))) + s.in_ackable() as i64
}

/// Whether a segment says the same as those before it, wherever the local TCP may not have these yet. What it has it
/// passes over, and a keepalive may carry a byte of anything there.
fn agrees(s: &Session, live: &Live, offset: i64, segment: &Segment<'_>) -> bool {
    let (payload, fin) = (segment.payload(), segment.has(flags::FIN));
    if payload.is_empty() && !fin {
        return true;
    }
    let in_end = s.in_end();
    let end = offset + payload.len() as i64;
    if s.in_fin && end > in_end.max(live.kernel_ack) as i64 {
        return false;
    }
    let from = s.in_done.max(live.kernel_ack);
    if offset < in_end as i64 && end + i64::from(fin) > from as i64 {
        if fin && end < in_end as i64 {
            return false;
        }
        let from = from.max(u64::try_from(offset).unwrap_or(0));
        let to = in_end.min(end as u64);
        if from < to {
            let known = s.input.range((from - s.in_done) as usize..(to - s.in_done) as usize);
            let said = &payload[(from as i64 - offset) as usize..(to as i64 - offset) as usize];
            if !known.eq(said) {
                return false;
            }
        }
    }
    if live.early.is_blank() || (end <= in_end as i64 && !fin) {
        return true;
    }
    let fresh = ((in_end as i64 - offset).max(0) as usize).min(payload.len());
    live.early.agrees((offset + fresh as i64) as u64, &payload[fresh..], fin)
}

/// TCP's own acceptance tests.
fn judge(s: &Session, live: &Live, segment: &Segment<'_>) -> Judgement {
    let in_next = s.in_ackable();
    let offset = offset_in(s, segment);
    let end = offset + i64::from(segment.sequence_length());
    if segment.has(flags::RST) {
        // RFC 5961, section 3: only the exact number resets; anything else is answered with a challenge.
        return if offset == in_next as i64 { Judgement::Reset } else { Judgement::Ignored };
    }
    // One less: a keepalive.
    let mut oldest = live.kernel_ack.min(in_next) as i64 - 1;
    let mut edge = live.edge.max(in_next);
    let widest = u64::from(u16::MAX) << s.open.shifts.map_or(0, |(_, ours)| ours);
    if matches!(live.stage, Stage::Probing | Stage::Restored) {
        // What was advertised last may not have been told any more.
        edge += widest;
    }
    if live.sought() {
        // Nor what was acknowledged last; and a peer whose window was taken back says nothing beyond the end of that.
        oldest -= widest as i64;
    }
    if offset > edge as i64 || end < oldest {
        return Judgement::Ignored;
    }
    if let Some((value, _)) = segment.options().timestamps {
        let stale = (live.ts_recent.wrapping_sub(value) as i32) > 1;
        if stale && segment.sequence_length() > 0 {
            return Judgement::Ignored;
        }
    }
    if !segment.has(flags::ACK) || segment.has(flags::SYN) {
        return Judgement::Ignored;
    }
    let raw_ack = seq::offset(s.open.isn_out, segment.ack(), live.acked);
    // What left, by us or by the master before us.
    let left = live.released.max(live.clamp);
    let ack = match raw_ack {
        // Before our SYN: of another connection with the same four-tuple.
        None if !live.established => return Judgement::Ignored,
        // The kernel refuses what is beyond its own sequence numbers by itself.
        Some(ack) if ack > left => return Judgement::Forged,
        Some(ack) if ack > live.acked => Some(ack),
        _ => None,
    };
    Judgement::Believed(Believed { ack, raw_ack, offset })
}
