//! Segments from peers. A segment is believed only if the local TCP will believe it: it reaches INPUT before
//! TCP has judged it (RFC 9293, section 3.10.7.4; tcp_validate_incoming, tcp_ack in the kernel).
//!
//! Storing more than the kernel takes is harmless, since an honest peer sends the same bytes again; storing less
//! would hold its ACKs. So every test here is the kernel's or laxer, new bytes that are not stored are kept from
//! the kernel, and so is an ACK of what never left, which the kernel has sent as far as it knows. An RST that the
//! kernel might refuse ends nothing here (the sweep will find out).
//!
//! Where a segment contradicts what is stored and the kernel has not acknowledged, the kernel is asked how much it has
//! taken: that stands, and the rest of it may have been injected by a stranger, and is forgotten.

use super::live::Live;
use super::opening::EmbryoIn;
use super::packets::HeldIn;
use super::peer::local_shift;
use super::stage::Stage;
use super::{Action, Filter, Mode};
use crate::pooled::Blank;
use crate::record::{self, EndReason};
use crate::segment::{self, flags, Segment};
use crate::seq::{self, Seq};
use crate::store::Session;
use crate::tuple::{FourTuple, SessionId};
use crate::Now;

/// Most packets held of one session while it is restored; later ones are dropped and come again.
const MAX_HELD_IN: usize = 4096;
/// Most segments that wait for the kernel to say what it has taken.
const MAX_DISPUTED: usize = 16;
/// Whatever the peer has told, the kernel took its window for at least this (that of a SYN is not scaled).
const LEAST_PEER_WINDOW: u32 = 65_535;

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
    /// It acknowledges what never left, up to this offset; here if nobody could have guessed its other numbers.
    Forged(Option<u64>),
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
        match self.gate.mode() {
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
        match self.session_of_segment(now, tuple, &segment) {
            Some(session) => self.known_in(now, id, session, &segment, bytes),
            None => self.unknown_in(now, id, tuple, &segment, bytes),
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
    /// Linux would take it out of the stream, and what the application has read could not be counted. Nor is anything
    /// negotiated behind our back: Linux believes the third segment of a handshake that it answered with a cookie (MPTCP).
    fn deliver_with(&mut self, id: Option<u32>, segment: &Segment<'_>, ack: Seq, bytes: &[u8]) {
        let plain = ack == segment.ack() && !segment.has(flags::URG) && !segment.has_unknown_options();
        let signed = || {
            let session = self.store.find(&FourTuple { local: segment.destination(), peer: segment.source() });
            session.is_some_and(|session| self.live[&session].signed)
        };
        if plain || signed() {
            return self.deliver(id, bytes);
        }
        let mut changed = Vec::new();
        segment.rewrite_inline(ack, &mut changed);
        self.deliver_as(id, segment, Some(changed), bytes);
    }

    /// Delivers what has become of a segment; None: it is as it was.
    fn deliver_as(&mut self, id: Option<u32>, segment: &Segment<'_>, changed: Option<Vec<u8>>, bytes: &[u8]) {
        let Some(changed) = changed else { return self.deliver(id, bytes) };
        let changed = self.corrected_in(&changed).unwrap_or(changed);
        self.deliver_changed(id, segment, changed);
    }

    fn drop_in(&mut self, id: Option<u32>) {
        if let Some(id) = id {
            self.actions.push(Action::DropIn(id));
        }
    }

    fn unknown_in(&mut self, now: Now, id: Option<u32>, tuple: FourTuple, segment: &Segment<'_>, bytes: &[u8]) {
        let opens = segment.has(flags::SYN) && !segment.has(flags::ACK);
        if segment.has(flags::RST) {
            self.note_refusal(&tuple, segment);
        }
        if self.gate.mode() == Mode::Restoring {
            // No new connection before the recovered ones are in the application's hands, and no RST from a
            // kernel that has not yet all its sockets.
            if opens && self.handshakes.may_hold() {
                self.handshakes.hold(HeldIn { id, bytes: bytes.to_vec() });
                return;
            }
            if !opens && self.handshakes.calls_from(&tuple) {
                // Whoever was called refuses. The program may want to know that before it accepts anything.
                return self.deliver_as(id, segment, segment.plain_syn(), bytes);
            }
            if self.barrier.has_reset(&tuple) && segment.has(flags::ACK) && !segment.has(flags::RST) {
                // The challenge to our RST (RFC 5961, section 3): the next one has the right number.
                let reset = segment::reset_for(segment);
                self.actions.push(Action::SendPeer(reset));
            }
            return self.drop_in(id);
        }
        if opens && self.handshakes.may_hold() && self.gate(now).is_some() {
            // The connect that is waited for is to be the last client's that the program has.
            self.handshakes.hold(HeldIn { id, bytes: bytes.to_vec() });
            return;
        }
        if opens {
            self.handshakes.note_syn(self.clock, tuple, segment, false);
        }
        if segment.has(flags::SYN) {
            return self.deliver_as(id, segment, segment.plain_syn(), bytes);
        }
        if segment.has(flags::RST) {
            return self.deliver(id, bytes);
        }
        // Last words of a connection that is over; or of one of which the kernel may know and no store. What it says beside
        // its bytes is answered as ever, and the bytes are acknowledged by nobody (I1).
        if segment.has(flags::ACK) {
            self.handshakes.note_stranger(now, tuple);
        }
        self.deliver_as(id, segment, segment.bare(), bytes);
    }

    /// A connection of which the local TCP may know though there is no such session, for its handshake was forgotten in a
    /// flood of SYNs, or went around the queues. If it is established there its peer is to be told that it is over: nothing
    /// that it says is stored, and nothing leaves for it.
    pub fn poll_stranger(&mut self) -> Option<FourTuple> {
        while let Some(tuple) = self.handshakes.pop_stranger() {
            if self.gate.mode() == Mode::Active && !self.gate.fenced() && self.store.find(&tuple).is_none() {
                return Some(self.local_tuple(&tuple));
            }
        }
        None
    }

    /// One of them was established, and is reset.
    pub fn stranger_reset(&mut self) {
        self.counters.unrecorded += 1;
    }

    fn known_in(&mut self, now: Now, id: Option<u32>, session: SessionId, segment: &Segment<'_>, bytes: &[u8]) {
        let stage = self.live[&session].stage;
        let feeding = matches!(stage, Stage::Feeding { .. });
        match stage {
            Stage::Embryo { .. } => {
                return match self.embryo_in(now, session, segment) {
                    EmbryoIn::Answered => self.drop_in(id),
                    EmbryoIn::Stranger => {
                        let tuple = FourTuple { local: segment.destination(), peer: segment.source() };
                        self.unknown_in(now, id, tuple, segment, bytes);
                    }
                    EmbryoIn::Established => self.held_back_in(now, id, session, segment, bytes),
                }
            }
            Stage::Probing | Stage::Restored => return self.held_back_in(now, id, session, segment, bytes),
            Stage::Feeding { .. } | Stage::Live => {}
        }
        if segment.has(flags::SYN) {
            // A retransmitted SYN, or a new one on an old tuple: TCP answers it, and its SYN-ACK tells. The
            // answer to our own SYN once more: TCP acknowledges it.
            if !segment.has(flags::ACK) {
                let tuple = FourTuple { local: segment.destination(), peer: segment.source() };
                self.handshakes.note_syn(self.clock, tuple, segment, false);
            }
            return self.deliver_as(id, segment, segment.plain_syn(), bytes);
        }
        let (s, live) = (self.store.get(session).expect("found"), &self.live[&session]);
        match judge(now, s, live, segment) {
            Judgement::Ignored => {
                let behind = offset_in(s, segment) + i64::from(segment.sequence_length());
                let fresh = segment.sequence_length() > 0 && behind > s.in_ackable() as i64;
                self.counters.disbelieved += 1;
                if fresh {
                    // TCP might take it all the same, and acknowledge what no store holds. It comes again.
                    self.drop_in(id);
                } else {
                    self.deliver_with(id, segment, segment.ack(), bytes);
                }
            }
            Judgement::Forged(acked) => {
                self.counters.disbelieved += 1;
                self.drop_in(id);
                if let Some(acked) = acked {
                    self.stray(now, session, 0, 0, acked);
                }
            }
            Judgement::Reset => self.reset_in(now, id, session, bytes),
            Judgement::Believed(b) if !agrees(s, live, b.offset, segment) => {
                self.counters.disbelieved += 1;
                if stage == Stage::Live && b.offset < s.in_ackable() as i64 && live.local.rcv_nxt() < s.in_ackable() {
                    return self.disputed_in(id, session, bytes);
                }
                // Nobody knows which of the two the local TCP would keep.
                self.drop_in(id);
            }
            Judgement::Believed(b)
                if self.gate.overloaded()
                    && brings_news(s, b.offset, segment)
                    && !self.gate.trickles(now, s, b.offset, segment) =>
            {
                // What it acknowledges counts all the same.
                self.apply_in(now, session, segment, &b);
                if b.ack.is_some() && self.live.contains_key(&session) {
                    self.inject(session, self.live[&session].local.rcv_nxt(), flags::ACK, &[]);
                }
                self.drop_in(id);
            }
            Judgement::Believed(b) => {
                let ack = self.apply_in(now, session, segment, &b);
                if !self.live.contains_key(&session) {
                    // What it acknowledged let a reset go.
                    return self.drop_in(id);
                }
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
            expected.push(live.local.rcv_nxt());
        }
        if let Stage::Feeding { fed, .. } = live.stage {
            expected.extend(Some(fed).filter(|fed| *fed > live.local.rcv_nxt()));
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
        if !live.behind() || end <= live.local.rcv_nxt() as i64 {
            return true;
        }
        let (kernel_ack, edge) = (live.local.rcv_nxt(), live.local.edge());
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
        live.local.set_tell_again(matches!(live.stage, Stage::Feeding { fed, .. } if fed > kernel_ack));
        self.inject(session, kernel_ack, flags::ACK, &[]);
        false
    }

    /// Applies what the segment says beside its bytes. Returns the ACK that the local TCP may see.
    fn apply_in(&mut self, now: Now, session: SessionId, segment: &Segment<'_>, believed: &Believed) -> Seq {
        self.established(session);
        let s = self.store.get(session).expect("known");
        let live = self.live.get_mut(&session).expect("live");
        let mut moved = !s.established;
        live.peer.answers();
        let fresh = believed.ack.map(|ack| live.peer.acknowledges(ack));
        moved |= fresh.is_some();
        if let Some(astray) = live.recovery.get_mut_if_any().and_then(|r| r.astray.as_mut()) {
            astray.acked = 0;
        }
        let old = believed.raw_ack.is_some_and(|ack| ack < live.peer.una());
        let duplicate =
            live.recovery.old_output.is_some() && segment.sequence_length() == 0 && believed.raw_ack == Some(live.peer.una());
        let opened = live.peer.window() != segment.window() && !old;
        if opened {
            live.peer.shows_window(s, segment.window());
            moved = true;
        }
        if let Some((value, _)) = segment.options().timestamps.filter(|_| !old) {
            // RFC 7323, section 4.3: only segments that the last ACK sent reaches to.
            let expected = if live.behind() { s.in_ackable() } else { live.local.rcv_nxt() };
            // What is held is judged again, in its order.
            let held = live.stage == Stage::Restored && segment.sequence_length() > 0;
            if !held && believed.offset <= expected as i64 {
                moved |= live.peer.time.hears(now, value);
            }
        }
        let ack = believed.raw_ack.map(|ack| live.local.ackable(ack));
        // What lies before its window, or beyond one that it has taken back, it does not look at.
        let end = believed.offset + i64::from(segment.sequence_length());
        let unseen = end < live.local.rcv_nxt() as i64 || !live.behind() && end > live.local.edge() as i64;
        let news = ack.unwrap_or(0) > live.local.snd_una() || opened;
        if !unseen {
            live.local.acknowledged(ack.unwrap_or(0));
        }
        live.local.settle_clamp();
        let ack = ack.map_or(segment.ack(), |ack| s.out_seq(ack));
        if fresh.is_some() {
            self.splices.acknowledged(&s.open.tuple, ack);
        }
        if unseen && news {
            self.inject(session, self.live[&session].local.rcv_nxt(), flags::ACK, &[]);
        }
        if moved {
            self.mark_dirty(now, session);
        }
        if fresh.is_some() || duplicate {
            self.old_output_acked(now, session, fresh.unwrap_or(0));
        }
        ack
    }

    /// Appends the segment's new bytes to the log, and what had arrived out of order behind them. False: there is
    /// no room for bytes this far ahead, and the local TCP may not have them either.
    fn store_input(&mut self, now: Now, session: SessionId, offset: i64, segment: &Segment<'_>) -> bool {
        let fin = segment.has(flags::FIN);
        let payload = segment.payload();
        if payload.is_empty() && !fin {
            return true;
        }
        let s = self.store.get(session).expect("known");
        let in_end = s.in_end();
        let end = offset + payload.len() as i64;
        if s.in_fin || end < in_end as i64 || (end == in_end as i64 && !fin) {
            return true;
        }
        if offset > in_end as i64 {
            return self.keep_out_of_order(now, session, offset as u64, payload, fin);
        }
        let fresh = &payload[(in_end as i64 - offset) as usize..];
        if fin {
            self.forget_out_of_order(session);
        }
        if self.live[&session].reassembly.is_blank() {
            self.append_input(now, session, in_end, fresh, fin);
            return true;
        }
        let mut joined = fresh.to_vec();
        let fin = self.join_reassembled(session, end as u64, &mut joined);
        self.append_input(now, session, in_end, &joined, fin);
        true
    }

    pub(super) fn append_input(&mut self, now: Now, session: SessionId, offset: u64, bytes: &[u8], fin: bool) {
        let live = &self.live[&session];
        if live.ownership.is_attached()
            && !bytes.is_empty()
            && live.peer.una() >= self.store.get(session).expect("known").out_done
        {
            // A peer that has all that was answered asks for more.
            self.processes.turns.asked_anew(session);
            self.run_commits(now);
        }
        let position = self.write(bytes.len(), |out| record::encode_input(session, offset, bytes, fin, out));
        let s = self.store.get(session).expect("known");
        let live = self.live.get_mut(&session).expect("live");
        live.in_positions.wrote(s.in_ackable(), position, &mut self.pools.positions);
        if live.ownership.is_attached() {
            self.processes.turns.input(session, offset, bytes);
            self.input_unhooked(session);
        }
        self.ask_unseen(now, session, bytes.len());
        self.stir(now, session);
        if self.live.get_mut(&session).is_some_and(|live| std::mem::take(&mut live.ack_ahead)) {
            self.judge_held(now, session);
        }
    }

    /// A segment contradicts what is stored and the kernel has not acknowledged: what the kernel has is not known yet.
    fn disputed_in(&mut self, id: Option<u32>, session: SessionId, bytes: &[u8]) {
        let held = &mut self.live.get_mut(&session).expect("live").recovery.get_or_make().held_in;
        if held.len() >= MAX_DISPUTED {
            return self.drop_in(id);
        }
        held.push(HeldIn { id, bytes: bytes.to_vec() });
        if held.len() == 1 {
            self.actions.push(Action::AskUnread(session));
        }
    }

    /// The kernel has taken input up to here, no more of it, and what is disputed is judged by that.
    pub(super) fn settle_dispute(&mut self, now: Now, session: SessionId, taken: u64) {
        let Some(live) = self.live.get_mut(&session).filter(|l| l.stage == Stage::Live) else { return };
        let Some(recovery) = live.recovery.get_mut_if_any() else { return };
        let held = std::mem::take(&mut recovery.held_in);
        live.recovery.drop_if_empty();
        if held.is_empty() {
            return;
        }
        if self.gate.serves() {
            self.believe_kernel(now, session, taken);
        }
        self.replay_held(now, held);
    }

    fn believe_kernel(&mut self, now: Now, session: SessionId, taken: u64) {
        let (Some(s), Some(live)) = (self.store.get(session), self.live.get_mut(&session)) else { return };
        let read = self.processes.turns.in_read(session).unwrap_or(0);
        let stands = live.local.rcv_nxt().max(taken).max(live.peer.released_ack()).max(read).max(s.in_done).min(s.in_ackable());
        live.local.has_taken(stands);
        if stands == s.in_ackable() {
            return;
        }
        let mut short = s.clone();
        short.shorten(stands);
        self.forget_out_of_order(session);
        let mut records = Vec::new();
        short.snapshot(&mut records);
        let position = self.tell_anew(session, &records);
        let live = self.live.get_mut(&session).expect("live");
        live.base_pos = position;
        live.out_positions.wrote(short.out_sendable(), position, &mut self.pools.positions);
        if live.ownership.is_attached() {
            self.processes.turns.rescan(session);
            self.input_again(session);
        }
        self.judge_held(now, session);
    }

    /// While a session is being restored its packets wait; their ACK is the probe's answer.
    fn held_back_in(&mut self, now: Now, id: Option<u32>, session: SessionId, segment: &Segment<'_>, bytes: &[u8]) {
        if self.live[&session].recovery.evidence.is_some() {
            self.note_evidence(now, session, segment);
            let live =
                self.live.get_mut(&session).filter(|l| segment.sequence_length() > 0 && l.recovery.held_in.len() < MAX_HELD_IN);
            return match live {
                Some(live) => live.recovery.get_or_make().held_in.push(HeldIn { id, bytes: bytes.to_vec() }),
                None => self.drop_in(id),
            };
        }
        let s = self.store.get(session).expect("known");
        let live = self.live.get_mut(&session).expect("live");
        let bare = segment.sequence_length() == 0;
        let mut ack = None;
        let widest = u64::from(u16::MAX) << local_shift(s);
        match judge(now, s, live, segment) {
            Judgement::Reset => return self.reset_in(now, id, session, bytes),
            Judgement::Believed(b) => {
                // The peer sends only where it was given window: this is what was advertised.
                let end = b.offset + i64::from(segment.sequence_length());
                live.peer.was_shown_window(u64::try_from(end).unwrap_or(0).min(s.in_ackable() + widest));
                if live.stage == Stage::Restored {
                    let shown = self.apply_in(now, session, segment, &b);
                    if bare && !self.takes_itself(session, &b, segment) {
                        return self.drop_in(id);
                    }
                    ack = Some(shown);
                } else if b.raw_ack.is_some() {
                    let fresh = live.peer.acknowledges(b.ack.unwrap_or(0));
                    live.peer.shows_window(s, segment.window());
                    if let Some((value, _)) = segment.options().timestamps {
                        // Its socket must not begin with a clock that the peer's has left behind.
                        live.peer.time.hears_round(now, value);
                    }
                    if !live.peer.answers() {
                        self.actions.push(Action::Probed(session));
                    }
                    self.old_output_acked(now, session, fresh);
                }
            }
            Judgement::Ignored | Judgement::Forged(_) => self.counters.disbelieved += 1,
        }
        let Some(live) = self.live.get_mut(&session) else { return self.drop_in(id) };
        if let (true, Some(ack)) = (bare, ack) {
            // It shows no input: the barrier does not mind, and the socket may go on sending.
            self.deliver_with(id, segment, ack, bytes);
        } else if bare || live.recovery.held_in.len() >= MAX_HELD_IN {
            self.drop_in(id);
        } else {
            live.recovery.get_or_make().held_in.push(HeldIn { id, bytes: bytes.to_vec() });
            self.stir(now, session);
        }
    }

    /// Whether what was held is what the peer says next.
    pub(super) fn said_meanwhile(&self, session: SessionId) -> bool {
        let (Some(s), Some(live)) = (self.store.get(session), self.live.get(&session)) else { return false };
        let next = s.in_ackable() as i64;
        live.recovery.held_in.iter().any(|held| {
            Segment::parse(&held.bytes).is_ok_and(|segment| match judge(self.clock, s, live, &segment) {
                Judgement::Believed(b) => b.offset <= next && b.offset + i64::from(segment.sequence_length()) > next,
                _ => false,
            })
        })
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
        let peer_has_all = s.out_fin && live.peer.una() > s.out_done && live.local.snd_una() > s.out_done;
        let kernel_has_all = live.local.rcv_nxt() >= s.in_ackable() && live.peer.released_ack() >= s.in_ackable();
        if s.in_fin && peer_has_all && kernel_has_all {
            self.end_session(now, session, EndReason::Closed);
        }
    }
}

/// Offset of a segment's first byte, as near to what is expected as it can be.
fn offset_in(s: &Session, segment: &Segment<'_>) -> i64 {
    i64::from(segment.seq().since(s.in_seq(s.in_ackable()))) + s.in_ackable() as i64
}

/// Whether a segment has bytes that are not in the store.
fn brings_news(s: &Session, offset: i64, segment: &Segment<'_>) -> bool {
    let payload = segment.payload();
    !payload.is_empty() && offset + payload.len() as i64 > s.in_end() as i64
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
    if s.in_fin && end > in_end.max(live.local.rcv_nxt()) as i64 {
        return false;
    }
    let from = s.in_done.max(live.local.rcv_nxt());
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
    // What comes in order takes the place of what came out of order, in the local TCP as well.
    live.reassembly.is_blank() || offset <= in_end as i64 || live.reassembly.agrees(offset as u64, payload, fin)
}

/// TCP's own acceptance tests.
fn judge(now: Now, s: &Session, live: &Live, segment: &Segment<'_>) -> Judgement {
    let in_next = s.in_ackable();
    let offset = offset_in(s, segment);
    let end = offset + i64::from(segment.sequence_length());
    if segment.has(flags::RST) {
        // RFC 5961, section 3: only the exact number resets; anything else is answered with a challenge.
        return if offset == in_next as i64 { Judgement::Reset } else { Judgement::Ignored };
    }
    // One less: a keepalive.
    let mut oldest = live.local.rcv_nxt().min(in_next) as i64 - 1;
    let mut edge = live.peer.rcv_adv().max(in_next);
    let widest = u64::from(u16::MAX) << local_shift(s);
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
    let timestamps = segment.options().timestamps.filter(|_| s.open.timestamps);
    if let Some((value, _)) = timestamps {
        if live.peer.time.is_stale(now, value) && segment.sequence_length() > 0 {
            return Judgement::Ignored;
        }
    }
    if !segment.has(flags::ACK) || segment.has(flags::SYN) {
        return Judgement::Ignored;
    }
    let raw_ack = seq::offset(s.open.isn_out, segment.ack(), live.peer.una());
    // What left, by us or by the master before us.
    let left = live.peer.released().max(live.local.clamp());
    // RFC 5961, section 5.2: a stranger that guesses a sequence number in the window has to guess this one, too.
    let una = if live.stage == Stage::Probing { live.peer.una() } else { live.peer.una().min(live.local.snd_una()) };
    let oldest_ack = una.saturating_sub(u64::from(live.peer.most_window().max(LEAST_PEER_WINDOW)));
    let ack = match raw_ack {
        // Before our SYN: of another connection with the same four-tuple.
        None => return Judgement::Ignored,
        // The kernel refuses what is beyond its own sequence numbers by itself.
        Some(ack) if ack > left => {
            let proved = offset == in_next as i64 || timestamps.is_some_and(|(_, echo)| live.peer.time.sent(echo));
            return Judgement::Forged(proved.then_some(ack));
        }
        Some(ack) if ack < oldest_ack => return Judgement::Ignored,
        Some(ack) if ack > live.peer.una() => Some(ack),
        _ => None,
    };
    Judgement::Believed(Believed { ack, raw_ack, offset })
}
