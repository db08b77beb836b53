//! Sessions of which the store does not know what the kernel knows: packets went around the queue while its rules were
//! gone, or a process reported something impossible. They cannot be restored: they continue on this member, and are
//! reset at a failover.

use std::time::Duration;

use super::stage::Stage;
use super::Filter;
use crate::record::{self, Adopted};
use crate::tuple::SessionId;
use crate::Now;

/// What looks as if it had gone around the queue has this long to be explained: a peer that has no acknowledgement of it
/// sends it again meanwhile, and so does the local TCP.
const EXPLAINED: Duration = Duration::from_secs(3);

/// The same for what we have forgotten: its peer may have to find out by a timeout that has backed off.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// What is told of bytes that never came by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Astray {
    due: Now,
    /// Input before this was acknowledged by the local TCP.
    taken: u64,
    /// Output before this was sent by the local TCP.
    sent: u64,
    /// Output before this was acknowledged by the peer.
    pub acked: u64,
}

impl Filter {
    /// Something tells of bytes that never came by: input before `taken`, output before `sent`, or before `acked`.
    pub(super) fn stray(&mut self, now: Now, id: SessionId, taken: u64, sent: u64, acked: u64) {
        let Some(live) = self.live.get_mut(&id) else { return };
        if live.loose() {
            return self.follow(now, id, taken, sent.max(acked));
        }
        let due = now + EXPLAINED;
        let astray = &mut live.recovery.get_or_make().astray;
        if astray.is_none() {
            self.timers.set(due, id);
        }
        let a = astray.get_or_insert(Astray { due, taken: 0, sent: 0, acked: 0 });
        (a.taken, a.sent, a.acked) = (a.taken.max(taken), a.sent.max(sent), a.acked.max(acked));
    }

    /// Input is forgotten that the local TCP may have: its acknowledgement is explained, if its peer takes its time.
    pub(super) fn stray_late(&mut self, now: Now, id: SessionId) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let due = now + FORGOTTEN;
        live.recovery.get_or_make().astray = Some(Astray { due, taken: 0, sent: 0, acked: 0 });
        self.timers.set(due, id);
    }

    pub(super) fn astray_timeout(&mut self, now: Now, id: SessionId) -> Option<Now> {
        let (s, live) = (self.store.get(id)?, self.live.get_mut(&id)?);
        let astray = &mut live.recovery.get_mut_if_any()?.astray;
        let a = astray.as_ref().copied()?;
        if now < a.due {
            return Some(a.due);
        }
        *astray = None;
        let known = s.out_sendable().max(live.announced_end(s));
        if a.taken > s.in_ackable() || a.sent > known || a.acked > known {
            self.lose(now, id);
            self.follow(now, id, a.taken, a.sent.max(a.acked));
        } else if a.acked > live.peer.released() {
            // It left, though not through here.
            live.peer.has_got(a.acked.min(s.out_sendable()));
            live.local.has_sent(live.peer.released());
        }
        None
    }

    /// The state of this session cannot be known any more, and what its process says of it is not to be believed. Its packets
    /// tell, as if no hook knew it.
    pub(super) fn lose(&mut self, now: Now, id: SessionId) {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get_mut(&id)) else { return };
        if !self.gate.serves() || live.loose() {
            return;
        }
        self.counters.lost_track += 1;
        if matches!(live.stage, Stage::Embryo { .. } | Stage::Probing | Stage::Restored) {
            // Its process is not to wait for it, nor others for that.
            return self.restore_failed(now, id);
        }
        live.ownership.lose();
        live.ownership.detach();
        // What the kernel has not sent, it may never get.
        let sent = live.local.snd_nxt().saturating_sub(s.out_done).try_into().unwrap_or(usize::MAX);
        live.announced.truncate(sent, &mut self.pools.announced);
        let fin = live.ownership.fin_asked() && !s.out_fin;
        self.processes.turns.close(id);
        self.processes.has_read(id);
        self.processes.reopen(id);
        self.commit_unattached(now, id, fin);
    }

    /// What the kernel says of a session that we lost track of is so: what never came by is passed over.
    pub(super) fn follow(&mut self, now: Now, id: SessionId, taken: u64, sent: u64) {
        let (Some(s), Some(live)) = (self.store.get(id), self.live.get(&id)) else { return };
        if !self.gate.serves() || !live.loose() {
            return;
        }
        // A FIN cannot be taken back: the session stays ended.
        let in_done = Some(taken).filter(|taken| *taken > s.in_ackable() && !s.in_fin);
        let out_done = Some(sent).filter(|sent| *sent > live.announced_end(s) && !s.out_fin);
        if in_done.is_none() && out_done.is_none() {
            return;
        }
        let out = out_done.unwrap_or(s.out_done);
        let adopted = Adopted { session: id, in_done: in_done.unwrap_or(s.in_done), out_done: out, out_base: out };
        if in_done.is_some() {
            self.forget_out_of_order(id);
        }
        let position = self.write(0, |log| record::encode_adopted(&adopted, log));
        let (s, live) = (self.store.get(id).expect("known"), self.live.get_mut(&id).expect("live"));
        if let Some(out_done) = out_done {
            live.announced.truncate(0, &mut self.pools.announced);
            live.local.has_sent(out_done);
        }
        live.base_pos = position;
        live.in_positions.wrote(s.in_ackable(), position, &mut self.pools.positions);
        live.out_positions.wrote(s.out_sendable(), position, &mut self.pools.positions);
        live.peer.acknowledges(s.out_acked);
        live.peer.was_released(s.out_done);
        self.judge_held(now, id);
    }
}
