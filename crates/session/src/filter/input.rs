//! Segments from peers. A segment is believed only if the local TCP will believe it: it reaches INPUT before
//! TCP has judged it (RFC 9293, section 3.10.7.4; tcp_validate_incoming, tcp_ack in the kernel).
//!
//! Storing more than the kernel takes is harmless, since an honest peer sends the same bytes again; storing less
//! would hold its ACKs for ever. So every test here is the kernel's or laxer.

use super::{Action, Filter, HeldIn, Live, Mode, Stage, Syn, MAX_SYNS};
use crate::record::{self, EndReason};
use crate::segment::{flags, Segment};
use crate::seq;
use crate::store::Session;
use crate::tuple::{FourTuple, SessionId};
use crate::Now;

/// Most out-of-order bytes kept of one session.
const MAX_EARLY: usize = 16 << 20;
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
    reset: bool,
}

impl Filter {
    /// A packet from the INPUT queue. `vouched`: the kernel or its hardware has checked the checksum, or there
    /// is none because the packet never left the host.
    pub fn packet_in(&mut self, now: Now, id: u32, bytes: &[u8], vouched: bool) {
        self.counters.packets_in += 1;
        self.take_in(now, Some(id), bytes, vouched);
    }

    /// An inbound packet that the former master forwarded.
    pub fn forwarded_in(&mut self, now: Now, bytes: &[u8]) {
        self.take_in(now, None, bytes, true);
    }

    fn take_in(&mut self, now: Now, id: Option<u32>, bytes: &[u8], vouched: bool) {
        match self.mode {
            Mode::Passive => return self.drop_in(id),
            Mode::Frozen => {
                self.actions.push(Action::Forward(bytes.to_vec()));
                return self.drop_in(id);
            }
            Mode::Restoring | Mode::Active => {}
        }
        let Ok(segment) = Segment::parse(bytes) else {
            return self.deliver(id, bytes);
        };
        if !vouched && !segment.checksum_ok() {
            self.counters.disbelieved += 1;
            return self.deliver(id, bytes);
        }
        let tuple = FourTuple { local: segment.destination(), peer: segment.source() };
        match self.store.find(&tuple) {
            Some(session) => self.known_in(now, id, session, &segment, bytes),
            None => self.unknown_in(now, id, tuple, &segment, bytes),
        }
    }

    fn deliver(&mut self, id: Option<u32>, bytes: &[u8]) {
        self.actions.push(match id {
            Some(id) => Action::AcceptIn(id),
            None => Action::Inject(bytes.to_vec()),
        });
    }

    fn drop_in(&mut self, id: Option<u32>) {
        if let Some(id) = id {
            self.actions.push(Action::DropIn(id));
        }
    }

    fn unknown_in(&mut self, now: Now, id: Option<u32>, tuple: FourTuple, segment: &Segment<'_>, bytes: &[u8]) {
        let opens = segment.has(flags::SYN) && !segment.has(flags::ACK);
        if self.mode == Mode::Restoring {
            // No new connection before the recovered ones are in the application's hands, and no RST at a
            // stranger that may yet be one of ours.
            if opens && self.held_syns.len() < MAX_HELD_SYNS {
                self.held_syns.push(HeldIn { id, bytes: bytes.to_vec() });
            } else {
                self.drop_in(id);
            }
            return;
        }
        if opens {
            self.note_syn(now, tuple, segment);
        }
        self.deliver(id, bytes);
    }

    pub(super) fn note_syn(&mut self, now: Now, tuple: FourTuple, segment: &Segment<'_>) {
        if self.syns.len() >= MAX_SYNS && !self.syns.contains_key(&tuple) {
            // Past the bound a flood pushes out the oldest: its SYN will come again.
            if let Some(oldest) = self.syns.iter().min_by_key(|(_, s)| s.at).map(|(t, _)| *t) {
                self.syns.remove(&oldest);
            }
        }
        let syn = Syn { isn: segment.seq(), options: segment.options(), window: segment.window(), at: now };
        self.syns.insert(tuple, syn);
    }

    fn known_in(&mut self, now: Now, id: Option<u32>, session: SessionId, segment: &Segment<'_>, bytes: &[u8]) {
        let s = self.store.get(session).expect("found");
        let live = self.live.get_mut(&session).expect("a master's session is live");
        if matches!(live.stage, Stage::Probing | Stage::Restored) {
            self.held_back_in(now, id, session, segment, bytes);
            return;
        }
        if segment.has(flags::SYN) {
            // A retransmitted SYN, or a new one on an old tuple: TCP answers it, and its SYN-ACK tells.
            let tuple = s.open.tuple;
            self.note_syn(now, tuple, segment);
            return self.deliver(id, bytes);
        }
        let Some(believed) = judge(s, live, segment) else {
            self.counters.disbelieved += 1;
            return self.deliver(id, bytes);
        };
        if believed.reset {
            self.end_session(now, session, EndReason::ResetByPeer);
            return self.deliver(id, bytes);
        }
        let clamped = self.apply_in(now, session, segment, &believed);
        match (clamped, id) {
            (Some(ack), Some(id)) => {
                let mut changed = Vec::new();
                segment.rewrite(segment.seq(), ack, &mut changed);
                self.actions.push(Action::ModifyIn(id, changed));
            }
            (Some(ack), None) => {
                let mut changed = Vec::new();
                segment.rewrite(segment.seq(), ack, &mut changed);
                self.actions.push(Action::Inject(changed));
            }
            (None, id) => self.deliver(id, bytes),
        }
        self.end_if_finished(now, session);
    }

    /// Applies what the segment says. Returns the ACK that the local TCP may see instead, if it is another.
    fn apply_in(
        &mut self, now: Now, session: SessionId, segment: &Segment<'_>, believed: &Believed,
    ) -> Option<seq::Seq> {
        let s = self.store.get(session).expect("known");
        let live = self.live.get_mut(&session).expect("live");
        let mut moved = !s.established;
        if let Some(ack) = believed.ack {
            live.acked = ack;
            moved = true;
        }
        if live.window != segment.window() {
            live.window = segment.window();
            moved = true;
        }
        if let Some((value, _)) = segment.options().timestamps {
            // RFC 7323, section 4.3: only segments that the last ACK sent reaches to.
            if believed.offset <= live.kernel_ack as i64 && (value.wrapping_sub(live.ts_recent) as i32) > 0 {
                live.ts_recent = value;
                moved = true;
            }
        }
        let clamped = live.clamp.and_then(|until| {
            if live.kernel_nxt >= until {
                live.clamp = None;
            }
            (believed.raw_ack? > live.kernel_nxt).then(|| s.out_seq(live.kernel_nxt))
        });
        if moved {
            self.mark_dirty(now, session);
        }
        self.store_input(session, believed.offset, segment);
        clamped
    }

    /// Appends the segment's new bytes to the log, and what had arrived early behind them.
    fn store_input(&mut self, session: SessionId, offset: i64, segment: &Segment<'_>) {
        let fin = segment.has(flags::FIN);
        let payload = segment.payload();
        if payload.is_empty() && !fin {
            return;
        }
        let s = self.store.get(session).expect("known");
        let live = self.live.get_mut(&session).expect("live");
        let in_end = s.in_end();
        let end = offset + payload.len() as i64;
        if s.in_fin || end < in_end as i64 || (end == in_end as i64 && !fin) {
            return;
        }
        if offset > in_end as i64 {
            if fin {
                live.early_fin = Some(end as u64);
            }
            if !payload.is_empty() && live.early_bytes + payload.len() <= MAX_EARLY {
                // What came first stays, as in the kernel's own queue.
                live.early.entry(offset as u64).or_insert_with(|| {
                    live.early_bytes += payload.len();
                    payload.to_vec()
                });
            }
            return;
        }
        let fresh = &payload[(in_end as i64 - offset) as usize..];
        if live.early.is_empty() && live.early_fin.is_none() {
            self.append_input(session, in_end, fresh, fin);
            return;
        }
        let mut joined = fresh.to_vec();
        let mut fin = fin;
        if !fin {
            let mut at = end as u64;
            while let Some((&start, _)) = live.early.first_key_value() {
                if start > at {
                    break;
                }
                let (_, bytes) = live.early.pop_first().expect("first");
                live.early_bytes -= bytes.len();
                let known = (at - start) as usize;
                if known < bytes.len() {
                    joined.extend_from_slice(&bytes[known..]);
                    at = start + bytes.len() as u64;
                }
            }
            fin = live.early_fin == Some(at);
        }
        if fin {
            live.early.clear();
            live.early_bytes = 0;
            live.early_fin = None;
        }
        self.append_input(session, in_end, &joined, fin);
    }

    fn append_input(&mut self, session: SessionId, offset: u64, bytes: &[u8], fin: bool) {
        let position = self.write(bytes.len(), |out| record::encode_input(session, offset, bytes, fin, out));
        let live = self.live.get_mut(&session).expect("live");
        live.in_pos = position;
        if live.attached {
            self.turns.input(session, offset, bytes);
        }
    }

    /// While a session is being restored its packets wait; their ACK is the probe's answer.
    fn held_back_in(&mut self, now: Now, id: Option<u32>, session: SessionId, segment: &Segment<'_>, bytes: &[u8]) {
        let s = self.store.get(session).expect("known");
        let live = self.live.get_mut(&session).expect("live");
        if let Some(believed) = judge(s, live, segment) {
            if believed.reset {
                self.end_session(now, session, EndReason::ResetByPeer);
                return self.deliver(id, bytes);
            }
            if live.stage == Stage::Probing && believed.raw_ack.is_some() {
                if let Some(ack) = believed.ack {
                    live.acked = live.acked.max(ack);
                }
                live.window = segment.window();
                self.actions.push(Action::Probed(session));
            }
        }
        let live = self.live.get_mut(&session).expect("live");
        // A bare ACK has said all it has to say.
        if segment.sequence_length() == 0 || live.held_in.len() >= MAX_HELD_IN {
            self.drop_in(id);
        } else {
            live.held_in.push(HeldIn { id, bytes: bytes.to_vec() });
        }
    }

    /// Gives back what was held, in order, now that the session can take it.
    pub(super) fn replay_held(&mut self, now: Now, held: Vec<HeldIn>) {
        for h in held {
            self.take_in(now, h.id, &h.bytes, true);
        }
    }

    pub(super) fn end_if_finished(&mut self, now: Now, session: SessionId) {
        let (Some(s), Some(live)) = (self.store.get(session), self.live.get(&session)) else { return };
        if s.in_fin && s.out_fin && live.acked > s.out_done && live.released_ack >= s.in_ackable() {
            self.end_session(now, session, EndReason::Closed);
        }
    }
}

/// TCP's own acceptance tests. None: the local TCP will not take it.
fn judge(s: &Session, live: &Live, segment: &Segment<'_>) -> Option<Believed> {
    let in_next = s.in_ackable();
    // The kernel may lag behind the store, never lead: what it still expects is acceptable too.
    let offset = i64::from(segment.seq().since(s.in_seq(in_next))) + in_next as i64;
    let end = offset + i64::from(segment.sequence_length());
    if segment.has(flags::RST) {
        // RFC 5961, section 3: only the exact number resets; anything else is answered with a challenge.
        let exact = offset == in_next as i64 || offset == live.kernel_ack as i64;
        return exact.then_some(Believed { ack: None, raw_ack: None, offset, reset: true });
    }
    let oldest = live.kernel_ack.min(in_next) as i64;
    if offset > live.edge.max(in_next) as i64 || (end < oldest && !segment.payload().is_empty()) {
        return None;
    }
    if let Some((value, _)) = segment.options().timestamps {
        let stale = (live.ts_recent.wrapping_sub(value) as i32) > 1;
        if stale && segment.sequence_length() > 0 {
            return None;
        }
    }
    if !segment.has(flags::ACK) {
        return None;
    }
    let raw_ack = seq::offset(s.open.isn_out, segment.ack(), live.acked);
    // What was sent, by us or by the master before us.
    let sent = live.kernel_nxt.max(live.clamp.unwrap_or(0));
    let ack = match raw_ack {
        Some(ack) if ack > sent => return None,
        Some(ack) if ack > live.acked => Some(ack),
        _ => None,
    };
    Some(Believed { ack, raw_ack, offset, reset: false })
}
