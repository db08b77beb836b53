//! Handshakes: who may become a session, and what becomes of one that is half open.

use std::time::Duration;

use super::handshakes::{is_third, Syn};
use super::live::Live;
use super::packets::Held;
use super::segments;
use super::stage::Stage;
use super::timestamps::TIMESTAMP_LEAD_MS;
use super::{Action, Filter};
use crate::record::{EndReason, Open};
use crate::segment::{flags, Segment};
use crate::tuple::{FourTuple, SessionId};
use crate::Now;

/// When a half-open session's SYN-ACK is first sent again after a takeover; then twice as long each time.
const SYN_ACK_AGAIN: Duration = Duration::from_millis(500);
/// How often it is.
const SYN_ACK_TRIES: u32 = 6;
impl Filter {
    /// A segment of no session. Returns whether it made one: the answer to our SYN, or the third segment of a
    /// handshake whose SYN-ACK left without a record.
    pub(super) fn opened_by(&mut self, now: Now, tuple: FourTuple, segment: &Segment<'_>) -> Option<SessionId> {
        if !segment.has(flags::ACK) || segment.has(flags::RST) {
            return None;
        }
        if segment.has(flags::SYN) {
            let ours = self.handshakes.called_by(&tuple, segment)?;
            let id = self.handshakes.next_id(&self.store);
            let open = Syn::settle(Syn::of(segment), ours, id, tuple, true);
            let internal_port = self.local_tuple(&tuple).local.port();
            self.open_session(now, Open { internal_port, ..open }, ours);
            self.record_cause(id);
            self.live.get_mut(&id).expect("just opened").base_pos = self.gate.end();
            return Some(id);
        }
        let (theirs, ours) = self.handshakes.completed_by(&tuple, segment)?;
        let id = self.handshakes.next_id(&self.store);
        self.open_session(now, Syn::settle(theirs, ours, id, tuple, true), ours);
        Some(id)
    }

    /// The session of this segment. A listener that answers with cookies knows none of the SYNs that it has answered: where
    /// there were several of one four-tuple, the third segment says which of them is the peer's.
    pub(super) fn session_of_segment(&mut self, now: Now, tuple: FourTuple, segment: &Segment<'_>) -> Option<SessionId> {
        let Some(id) = self.store.find(&tuple) else { return self.opened_by(now, tuple, segment) };
        let (s, live) = (self.store.get(id).expect("found"), &self.live[&id]);
        let whole = live.established || live.stage != Stage::Live || segment.ack() == s.open.isn_out.add(1);
        if whole || !is_third(segment) || self.handshakes.completed_by(&tuple, segment).is_none() {
            return Some(id);
        }
        self.replace_session(now, id, tuple);
        self.opened_by(now, tuple, segment)
    }

    /// A session makes room for another one with its four-tuple, whose handshake stays known.
    fn replace_session(&mut self, now: Now, id: SessionId, tuple: FourTuple) {
        let kept = self.handshakes.take(&tuple);
        self.end_session(now, id, EndReason::Closed);
        self.handshakes.put_back(tuple, kept);
    }

    /// `ours`: the local TCP's SYN, or its SYN-ACK. Where that is signed no other TCP can go on with the session, for the key is
    /// the local one's secret.
    fn open_session(&mut self, now: Now, open: Open, ours: Syn) {
        let (id, established, signed) = (open.session, open.established, ours.signed);
        if established {
            self.handshakes.remove(&open.tuple);
        }
        self.splices.remove_former(&open.tuple, open.isn_out);
        let position = self.write(0, |out| open.encode(out));
        self.counters.opened += 1;
        let mut live = Live::new(self.store.get(id).expect("just opened"));
        live.base_pos = position;
        live.peer.was_shown_window(u64::from(ours.window));
        live.peer.answers();
        live.peer.time.begin(now);
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
            let live = &self.live;
            self.handshakes.opens(now, id, |id| live.get(&id).is_some_and(|l| !l.established));
        }
    }

    /// A SYN-ACK: the session's record goes to the replica before the peer can know of the session. It acknowledges nothing
    /// but a SYN that we have seen (I1): more would be data of which no store has heard.
    pub(super) fn opening(&mut self, now: Now, id: u32, tuple: FourTuple, segment: &Segment<'_>) {
        let old = self.store.find(&tuple);
        if let Some(old) = old {
            let s = self.store.get(old).expect("found");
            if s.open.isn_out == segment.seq() && s.in_seq(0) == segment.ack() {
                let live = self.live.get_mut(&old).expect("a master's session is live");
                let mut ts = None;
                if let Some((value, _)) = segment.options().timestamps.filter(|_| s.open.timestamps) {
                    // Sent again it shows a later time than the record has, and what a next master sends must not look
                    // older than that (PAWS, RFC 7323, section 5).
                    let round = live.peer.time.says(now, value);
                    if round || (value.wrapping_sub(s.ts_value) as i32) > TIMESTAMP_LEAD_MS as i32 {
                        let position = self.write_sync(old);
                        self.live.get_mut(&old).expect("live").base_pos = position;
                    }
                    ts = Some(value);
                }
                let need = self.live[&old].base_pos;
                return self.wait_or_release(now, Some(old), need, Held { ts, ..Held::bare(id, now) });
            }
        }
        // We never saw its SYN (dropped past the bound): the peer sends it again.
        let Some(theirs) = self.handshakes.answered_by(&tuple, segment) else {
            self.counters.unknown_dropped += 1;
            return self.actions.push(Action::DropOut(id));
        };
        if self.gate.fenced() && self.handshakes.is_full() {
            return self.actions.push(Action::DropOut(id));
        }
        if let Some(old) = old {
            // The peer's port came round again and TCP has accepted it: the old session is history. One that is half open
            // may yet turn out to be the one that its peer goes on with.
            self.replace_session(now, old, tuple);
        }
        self.handshakes.note_answer(tuple, segment);
        if self.handshakes.is_full() {
            return self.actions.push(Action::AcceptOut(id));
        }
        let (session, ours) = (self.handshakes.next_id(&self.store), Syn::of(segment));
        self.open_session(now, Syn::settle(theirs, ours, session, tuple, false), ours);
        let need = self.live[&session].base_pos;
        self.wait_or_release(now, Some(session), need, Held::bare(id, now));
    }

    /// The peer has completed the handshake.
    pub(super) fn established(&mut self, id: SessionId) {
        let live = self.live.get_mut(&id).expect("live");
        if !live.established {
            live.established = true;
            self.handshakes.opened(&self.store.get(id).expect("known").open.tuple);
            self.forget_expiries();
            self.accepted_unhooked(id);
        }
    }

    /// A server whose connections are all made wants no timer.
    pub(super) fn forget_expiries(&mut self) {
        let live = &self.live;
        self.handshakes.forget_expiries(|id| live.get(&id).is_some_and(|l| !l.established));
    }

    /// Half-open sessions whose time is over. Those of a takeover have a timer of their own.
    pub(super) fn expire(&mut self, now: Now) {
        while let Some(id) = self.handshakes.next_expired(now) {
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
        let packet = segments::syn_ack(s, live);
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
