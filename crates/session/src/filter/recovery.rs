//! Takeover (DESIGN section 6): probe the peers, restore sockets, keep input behind the barrier, then inject
//! what the application has yet to read.

use std::collections::HashMap;
use std::time::Duration;

use super::{Action, Filter, HeldIn, Live, Mode, Stage};
use crate::record::EndReason;
use crate::segment::{flags, Build, Segment};
use crate::tuple::{FourTuple, SessionId};
use crate::Now;

/// Largest injected segment: the local TCP takes any size over lo.
const INJECT: usize = 32 << 10;
/// How long the local TCP has to acknowledge injected input before it is injected again.
const INJECT_AGAIN: Duration = Duration::from_millis(20);
/// How often it is; then the peer's own retransmission is left to do it.
const INJECT_TRIES: u32 = 100;
/// When the first unacknowledged segment is sent again: a fresh socket's own timer starts at a second.
const RESEND: [Duration; 3] = [Duration::from_millis(20), Duration::from_millis(40), Duration::from_millis(80)];
/// A restored socket's clock runs ahead of the old one's by this much, so that the peer never sees it go back.
const TIMESTAMP_MARGIN_MS: u32 = 1000;
/// Least window that a restored socket has: more than was advertised does no harm.
const MIN_WINDOW: u64 = 65_535;

/// What it takes to make the socket of a session.
#[derive(Clone, Debug)]
pub struct RestoreSpec {
    /// Number of the session.
    pub session: SessionId,
    /// Its ends.
    pub tuple: FourTuple,
    /// Sequence number of the first byte of the send queue.
    pub snd_una: u32,
    /// Output that the peer may have and has not acknowledged: queued as sent.
    pub sent: Vec<u8>,
    /// Output that the peer does not have: written afterwards, as new.
    pub unsent: Vec<u8>,
    /// Sequence number of the next input byte that the application has to read.
    pub rcv_nxt: u32,
    /// Bytes of window from `rcv_nxt`.
    pub rcv_wnd: u32,
    /// The peer's maximum segment size.
    pub mss: u16,
    /// The peer's window shift and ours.
    pub shifts: Option<(u8, u8)>,
    /// SACK was negotiated.
    pub sack: bool,
    /// Timestamp value to go on from, where timestamps were negotiated.
    pub timestamp: Option<u32>,
    /// The peer's window in bytes.
    pub snd_wnd: u32,
    /// The application ended its output: FIN after the bytes.
    pub fin: bool,
    /// The application closed it: nobody is to get the socket.
    pub closed: bool,
    /// Output bytes that the application will write again and that are swallowed.
    pub absorb: u64,
    /// Input waits to be read.
    pub input_pending: bool,
}

impl Filter {
    /// Becomes master with the replica's store: every session starts as probed. `ticks_ms`: a clock in ms that
    /// ran on since the records came; see [`RestoreSpec::timestamp`].
    pub fn take_over(&mut self, now: Now) {
        assert!(self.mode == Mode::Passive, "only a backup takes over");
        self.mode = Mode::Restoring;
        self.needs_replica = false;
        self.fenced = false;
        self.end = 0;
        self.acked = 0;
        self.batch.clear();
        self.store.drop_uncommitted();
        self.next_id = self.store.iter().map(|s| s.open.session).max().unwrap_or(0).wrapping_add(1);
        let torn: Vec<SessionId> = self.store.iter().filter(|s| s.torn).map(|s| s.open.session).collect();
        for id in torn {
            self.counters.torn += 1;
            let reset = self.segment_to_peer(id, flags::RST | flags::ACK, None, &[]);
            self.actions.push(Action::SendPeer(reset));
            self.end_session(now, id, EndReason::Torn);
        }
        self.live = self
            .store
            .iter()
            .map(|s| {
                let mut live = Live::new(now, s);
                live.stage = Stage::Probing;
                live.clamp = Some(s.out_sendable());
                live.released_ack = s.in_ackable();
                (s.open.session, live)
            })
            .collect::<HashMap<_, _>>();
        self.recovering = self.live.keys().copied().collect();
    }

    /// Appends, for each session, a raw keepalive probe: its answer is the peer's true ACK.
    pub fn probes(&mut self) {
        let ids: Vec<SessionId> =
            self.live.iter().filter(|(_, l)| l.stage == Stage::Probing).map(|(id, _)| *id).collect();
        for id in ids {
            let s = self.store.get(id).expect("live");
            // One before what is acknowledged: never acceptable, always answered (RFC 9293, section 3.8.4).
            let seq = s.out_seq(s.out_acked).add(u64::from(u32::MAX));
            let packet = self.segment_to_peer(id, flags::ACK, Some(seq.0), &[]);
            self.actions.push(Action::SendPeer(packet));
        }
    }

    /// Whether a session still waits for the probe's answer.
    #[must_use]
    pub fn unprobed(&self) -> usize {
        self.live.values().filter(|l| l.stage == Stage::Probing).count()
    }

    /// Sessions that have no socket yet.
    #[must_use]
    pub fn unrestored(&self) -> Vec<SessionId> {
        let mut ids: Vec<_> =
            self.live.iter().filter(|(_, l)| l.stage == Stage::Probing).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// Sessions whose socket is made and not yet in the application's hands.
    #[must_use]
    pub fn not_handed_over(&self) -> usize {
        self.live
            .iter()
            .filter(|(id, l)| {
                matches!(l.stage, Stage::Probing | Stage::Restored)
                    && !l.attached
                    && self.store.get(**id).is_some_and(|s| !s.closed)
            })
            .count()
    }

    /// What it takes to make the socket of this session. `answered`: the peer told its true ACK; then all that
    /// it has not acknowledged is new to it. `elapsed_ms`: since the session's newest record came.
    #[must_use]
    pub fn restore_spec(&self, id: SessionId, answered: bool, elapsed_ms: u32) -> Option<RestoreSpec> {
        let s = self.store.get(id)?;
        let live = self.live.get(&id)?;
        // The FIN's acknowledgement counts one; it has no byte.
        let una = live.acked.min(s.out_done);
        let start = s.out_acked.min(s.out_done);
        let output: Vec<u8> = s.output.iter().skip((una - start) as usize).copied().collect();
        let (sent, unsent) = if answered { (Vec::new(), output) } else { (output, Vec::new()) };
        let edge = live.edge.max(s.in_end() + MIN_WINDOW);
        Some(RestoreSpec {
            session: id,
            tuple: s.open.tuple,
            snd_una: s.out_seq(una).0,
            sent,
            unsent,
            rcv_nxt: s.in_seq(s.in_done).0,
            rcv_wnd: (edge - s.in_done).min(1 << 30) as u32,
            mss: s.open.mss,
            shifts: s.open.shifts,
            sack: s.open.sack,
            timestamp: s
                .open
                .timestamps
                .then(|| live.ts_value.wrapping_add(elapsed_ms).wrapping_add(TIMESTAMP_MARGIN_MS) & !1),
            snd_wnd: u32::from(live.window) << s.open.shifts.map_or(0, |(theirs, _)| theirs),
            fin: s.out_fin,
            closed: s.closed,
            absorb: s.out_done - s.out_base,
            input_pending: !s.input.is_empty() || s.in_fin,
        })
    }

    /// Its socket exists, with `sent` as in its [`RestoreSpec`].
    pub fn restored(&mut self, now: Now, id: SessionId, sent: usize) {
        let Some(s) = self.store.get(id) else { return };
        let live = self.live.get_mut(&id).expect("live");
        assert!(live.stage == Stage::Probing, "a session is restored once");
        live.stage = Stage::Restored;
        let una = live.acked.min(s.out_done);
        live.kernel_nxt = una + sent as u64;
        live.released = live.kernel_nxt;
        live.kernel_ack = s.in_done;
        if s.out_sendable() > live.acked {
            live.resend = Some((now + RESEND[0], 0, live.acked));
        }
        self.counters.restored += 1;
        if s.closed {
            // Nobody accepts it: the kernel alone sees it to its end.
            live.closed = true;
            live.fin_asked = true;
            self.handed_over(now, id);
        }
        self.mark_dirty(now, id);
    }

    /// A socket could not be made: the session is reset and counted, never left hanging.
    pub fn restore_failed(&mut self, now: Now, id: SessionId) {
        self.counters.torn += 1;
        let reset = self.segment_to_peer(id, flags::RST | flags::ACK, None, &[]);
        self.actions.push(Action::SendPeer(reset));
        self.end_session(now, id, EndReason::Torn);
    }

    /// The application holds it. The barrier falls when it holds all of them.
    pub(super) fn handed_over(&mut self, now: Now, id: SessionId) {
        let _ = id;
        if self.not_handed_over() == 0 {
            self.lift_barrier(now);
        }
    }

    /// Every session that has its socket shows its input, held packets go on, new connections may come.
    /// Called when the application holds all sessions, or when it took too long.
    pub fn lift_barrier(&mut self, now: Now) {
        if self.mode != Mode::Restoring {
            return;
        }
        if self.live.values().any(|l| l.stage == Stage::Probing) {
            return;
        }
        self.mode = Mode::Active;
        let ids: Vec<SessionId> = self.live.keys().copied().collect();
        for id in ids {
            let Some(live) = self.live.get_mut(&id) else { continue };
            if live.stage != Stage::Restored {
                continue;
            }
            let until = self.store.get(id).map_or(0, crate::store::Session::in_ackable);
            live.stage = Stage::Feeding { until, next: now + INJECT_AGAIN, tries: 0 };
            self.inject_input(id);
            let held = std::mem::take(&mut self.live.get_mut(&id).expect("listed").held_in);
            self.replay_held(now, held);
        }
        let syns: Vec<HeldIn> = std::mem::take(&mut self.held_syns);
        self.replay_held(now, syns);
    }

    /// Gives the local TCP the kept input, as the peer's segments.
    fn inject_input(&mut self, id: SessionId) {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get(&id)) else { return };
        let Stage::Feeding { until, .. } = live.stage else { return };
        let from = live.kernel_ack.max(s.in_done);
        let end = until.min(s.in_end());
        let fin = s.in_fin && until > s.in_end();
        if from >= until {
            return;
        }
        let bytes: Vec<u8> =
            s.input.range((from - s.in_done).min(s.input.len() as u64) as usize..(end - s.in_done) as usize).copied().collect();
        let ack = s.out_seq(live.acked.min(live.kernel_nxt));
        let mut at = 0;
        loop {
            let part = &bytes[at..bytes.len().min(at + INJECT)];
            let last = at + part.len() == bytes.len();
            let mut packet = Vec::new();
            Build {
                source: s.open.tuple.peer,
                destination: s.open.tuple.local,
                seq: s.in_seq(from + at as u64),
                ack,
                flags: flags::ACK | flags::PSH | if fin && last { flags::FIN } else { 0 },
                window: live.window,
                timestamps: s.open.timestamps.then_some((live.ts_recent, live.ts_value)),
                payload: part,
            }
            .write(&mut packet);
            self.actions.push(Action::Inject(packet));
            at += part.len();
            if last {
                return;
            }
        }
    }

    pub(super) fn handle_recovery_timeout(&mut self, now: Now) {
        let mut recovering = std::mem::take(&mut self.recovering);
        recovering.retain(|&id| self.recovery_timeout(now, id));
        self.recovering = recovering;
    }

    /// Returns whether the session still wants the timer.
    fn recovery_timeout(&mut self, now: Now, id: SessionId) -> bool {
        let Some(live) = self.live.get_mut(&id) else { return false };
        if let Stage::Feeding { until, next, tries } = live.stage {
            if live.kernel_ack >= until || tries >= INJECT_TRIES {
                live.stage = Stage::Live;
            } else if now >= next {
                live.stage = Stage::Feeding { until, next: now + INJECT_AGAIN, tries: tries + 1 };
                self.inject_input(id);
            }
        }
        let Some(live) = self.live.get_mut(&id) else { return false };
        if let Some((due, step, una)) = live.resend {
            if live.acked > una {
                live.resend = None;
            } else if now >= due {
                live.resend = RESEND.get(step as usize + 1).map(|wait| (now + *wait, step + 1, una));
                self.resend_first(id);
            }
        }
        self.live.get(&id).is_some_and(|l| l.stage != Stage::Live || l.resend.is_some())
    }

    /// Sends the first unacknowledged output again, by ourselves.
    fn resend_first(&mut self, id: SessionId) {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get(&id)) else { return };
        // Only what the release rule has let go before.
        let end = live.released.min(s.out_done);
        let start = s.out_acked.min(s.out_done);
        if self.fenced || live.acked >= end {
            return;
        }
        let room = (end - live.acked).min(u64::from(s.open.mss.max(64)) - 12) as usize;
        let bytes: Vec<u8> = s.output.iter().skip((live.acked - start) as usize).take(room).copied().collect();
        let packet = self.segment_to_peer(id, flags::ACK | flags::PSH, Some(s.out_seq(live.acked).0), &bytes);
        self.actions.push(Action::SendPeer(packet));
    }

    /// A segment of ours that the local TCP does not know of.
    fn segment_to_peer(&self, id: SessionId, bits: u8, seq: Option<u32>, payload: &[u8]) -> Vec<u8> {
        let s = self.store.get(id).expect("known");
        let (acked, ts_value, ts_recent) =
            self.live.get(&id).map_or((s.out_acked, s.ts_value, s.ts_recent), |l| (l.acked, l.ts_value, l.ts_recent));
        let window = (MIN_WINDOW >> s.open.shifts.map_or(0, |(_, ours)| ours)) as u16;
        let mut packet = Vec::new();
        Build {
            source: s.open.tuple.local,
            destination: s.open.tuple.peer,
            seq: seq.map_or_else(|| s.out_seq(acked), crate::seq::Seq),
            ack: s.in_seq(s.in_ackable()),
            flags: bits,
            window: window.max(1),
            timestamps: s.open.timestamps.then_some((ts_value, ts_recent)),
            payload,
        }
        .write(&mut packet);
        debug_assert!(Segment::parse(&packet).is_ok());
        packet
    }
}
