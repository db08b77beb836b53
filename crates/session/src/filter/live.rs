//! What a filter knows of packets and sessions beside the store: all of it can be lost.

use std::collections::VecDeque;

use super::announced::{AllAnnounced, Announced};
use super::astray::Astray;
use super::evidence::Evidence;
use super::gate::LogPosition;
use super::local::Local;
use super::log_positions::LogPositions;
use super::old_output::OldOutput;
use super::ownership::Ownership;
use super::packets::{Held, HeldIn};
use super::peer::Peer;
use super::reassembly::Reassembly;
use super::stage::{LocalHandshake, Stage};
use crate::pooled::{Blank, Pool, Pooled};
use crate::store::Session;
use crate::Now;

/// The memory of what idle sessions do without.
#[derive(Debug, Default)]
pub(super) struct Pools {
    pub announced: AllAnnounced,
    pub held: Pool<VecDeque<Held>>,
    pub positions: Pool<VecDeque<(u64, LogPosition)>>,
}

/// What is known of a session only while it recovers.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// What came from the peer before the barrier fell.
    pub held_in: Vec<HeldIn>,
    /// When to send the first unacknowledged segment again after a takeover, and how often it was.
    pub resend: Option<(Now, u32, u64)>,
    /// What its peer has shown since the takeover, until that is enough.
    pub evidence: Option<Evidence>,
    /// Its socket is being made by the local listener, or by the application's connect.
    pub handshake: Option<LocalHandshake>,
    /// An outgoing one is the application's again, and its input waits until then at the longest.
    pub barrier_until: Option<Now>,
    /// Output that the local TCP does not have and the peer has not acknowledged.
    pub old_output: Option<OldOutput>,
    /// One of its ends says what cannot be, unless packets went around the queue.
    pub astray: Option<Astray>,
}

impl Blank for Recovery {
    const BLANK: &'static Recovery = &Recovery {
        held_in: Vec::new(),
        resend: None,
        evidence: None,
        handshake: None,
        barrier_until: None,
        old_output: None,
        astray: None,
    };

    fn is_blank(&self) -> bool {
        let Recovery { held_in, resend, evidence, handshake, barrier_until, old_output, astray } = self;
        held_in.is_empty()
            && (astray.is_none()
                && resend.is_none()
                && evidence.is_none()
                && handshake.is_none()
                && barrier_until.is_none()
                && old_output.is_none())
    }
}

/// What a master knows of a session beside its store.
#[derive(Debug)]
pub(super) struct Live {
    pub stage: Stage,
    /// The peer completed the handshake; the store may hear of it later.
    pub established: bool,
    pub ownership: Ownership,
    /// Announced by hooks, not yet committed.
    pub announced: Announced,
    pub local: Local,
    pub peer: Peer,
    /// Log position behind what every packet needs: the opening, and the last leap of our timestamps.
    pub base_pos: LogPosition,
    /// What input needs to be acknowledged, and output to leave.
    pub in_positions: LogPositions,
    pub out_positions: LogPositions,
    pub held: Pooled<VecDeque<Held>>,
    /// One of them waits for input that it acknowledges and that is not in the store.
    pub ack_ahead: bool,
    /// One of them is a FIN or RST that nobody announced, and the timer runs.
    pub suspected: bool,
    /// Input that arrived out of order.
    pub reassembly: Pooled<Reassembly>,
    pub dirty: bool,
    /// Its segments are signed: none of them may be changed.
    pub signed: bool,
    /// The application had made the connection, and makes it again to have it back.
    pub outgoing: bool,
    /// It is not handed out before its peer says something: see [`super::HandOut`].
    pub later: bool,
    pub recovery: Pooled<Recovery>,
    /// Something was released for it since this member went on by itself.
    pub alone: bool,
}

impl Live {
    /// Whether the kernel should have a socket of it. What a dead process has left may be gone, and waits for a failover.
    pub(super) fn has_socket(&self) -> bool {
        self.established && !self.ownership.is_orphan() && !matches!(self.stage, Stage::Embryo { .. } | Stage::Probing)
    }

    pub fn new(s: &Session) -> Live {
        Live {
            stage: Stage::Live,
            established: s.established,
            ownership: Ownership::new(s),
            announced: Announced::default(),
            local: Local::new(s),
            peer: Peer::new(s),
            base_pos: LogPosition::START,
            in_positions: LogPositions::new(s.in_ackable(), LogPosition::START),
            out_positions: LogPositions::new(s.out_sendable(), LogPosition::START),
            held: Pooled::default(),
            ack_ahead: false,
            suspected: false,
            reassembly: Pooled::default(),
            dirty: false,
            signed: false,
            outgoing: false,
            later: false,
            recovery: Pooled::default(),
            alone: false,
        }
    }

    /// We lost track of it: whatever its hooks say, only its packets tell.
    pub fn loose(&self) -> bool {
        self.ownership.is_lost() && !self.ownership.is_attached() && !self.signed
    }

    /// The application has its socket.
    pub fn handed_over(&mut self) {
        self.ownership.attach();
        // One that has yet to be made is made, whatever a process says.
        if let Some(recovery) =
            self.recovery.get_mut_if_any().filter(|r| matches!(r.handshake, Some(LocalHandshake::Answered { .. })))
        {
            recovery.handshake = None;
        }
    }

    /// It has no socket yet, and it is not the application's turn to make one.
    pub fn probing(&self) -> bool {
        self.stage == Stage::Probing && !self.uncalled()
    }

    /// It waits for the application to connect.
    pub fn uncalled(&self) -> bool {
        matches!(self.recovery.handshake, Some(LocalHandshake::Uncalled { .. }))
    }

    /// Its socket is restored, and has yet to get all input that the store has.
    pub fn behind(&self) -> bool {
        matches!(self.stage, Stage::Restored | Stage::Feeding { .. })
    }

    /// What the peer has acknowledged is not known, or not what the local TCP says to it is near enough to be heard.
    pub fn sought(&self) -> bool {
        !self.peer.has_answered() || self.recovery.old_output.is_some() || matches!(self.stage, Stage::Probing | Stage::Restored)
    }

    /// The barrier waits for the application to take it.
    pub fn awaited(&self) -> bool {
        matches!(self.stage, Stage::Probing | Stage::Restored)
            && !self.ownership.is_attached()
            && !self.ownership.is_unhooked()
            && !self.ownership.is_closed()
            && !self.outgoing
            && !self.later
    }

    /// It was recovered, and nobody has accepted it yet.
    pub fn unaccepted(&self) -> bool {
        let made = self.local.is_new_half() || self.stage == Stage::Probing && self.recovery.evidence.is_none();
        made && !self.ownership.is_attached()
            && !self.ownership.is_unhooked()
            && !self.ownership.is_closed()
            && !self.outgoing
            && !self.later
            && !self.ownership.is_lost()
    }

    /// A FIN or RST that nobody asked for.
    pub fn unasked(&self, h: &Held) -> bool {
        h.fin && !self.ownership.fin_asked() || h.rst && !self.ownership.is_closed()
    }

    /// The hooks said that it was closed, and no FIN or RST of the kernel has.
    pub fn only_told_closed(&self, s: &Session) -> bool {
        let silent = !self.ownership.is_held()
            && !self.ownership.is_orphan()
            && !self.local.is_silenced()
            && self.local.snd_nxt() <= s.out_done;
        self.ownership.is_closed()
            && silent
            && self.peer.released() <= s.out_done
            && self.peer.una() <= s.out_done
            && !self.held.iter().any(|h| h.fin || h.rst)
    }

    /// Offset behind what was announced of its output.
    pub fn announced_end(&self, s: &Session) -> u64 {
        s.out_done + self.announced.len() as u64
    }

    /// Log position behind all that was written of this session.
    pub fn all_pos(&self) -> LogPosition {
        self.base_pos.max(self.in_positions.last()).max(self.out_positions.last())
    }
}
