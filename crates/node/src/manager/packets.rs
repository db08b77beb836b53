//! The two queues, and what the filter decided.

use std::time::Duration;

use tcpr_session::filter::{Action, Mode};
use tcpr_session::role::{Role, RoleInput};
use tcpr_session::segment;
use tcpr_session::tuple::FourTuple;

use super::{apps, Manager, Token};
use crate::sockdiag::{state, Listing, Ours, SockDiag, TcpSocket};
use crate::{nfqueue, outgoing};

/// Most batches taken from one queue before the other has its turn.
const BATCHES: usize = 8;
/// After so many actions in a row the partner is shown that we live: a takeover of very many sessions asks all peers at once.
const MANY: usize = 64;
/// So many sockets are removed in one step.
const REMOVED: usize = 256;
/// Most messages of routers taken before something else has its turn.
const MESSAGES: usize = 64;
/// How long a manager that leaves still serves what is under way.
const LINGER: Duration = Duration::from_millis(50);

/// The removal of what the kernel still holds of the service's connections, in steps: of very many it takes long. Their RSTs
/// meet the rules: the filter lets none of them leave. What has yet to become a connection is a program's that lives: its SYN
/// is looked at like any other.
#[derive(Default)]
pub(super) enum Removal {
    #[default]
    Done,
    /// The kernel tells what it has.
    Listing { listing: Listing, found: Vec<TcpSocket> },
    /// These are left.
    Destroying(Vec<TcpSocket>),
}

impl Removal {
    pub(super) fn begin() -> Removal {
        let listing = Listing::begin().map_err(|error| log::error!("cannot list the kernel's sockets: {error}"));
        listing.map_or(Removal::Done, |listing| Removal::Listing { listing, found: Vec::new() })
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self, Removal::Done)
    }

    /// Does a few hundred of them at the most.
    pub(super) fn step(self, sockdiag: &mut SockDiag, ours: &Ours) -> Removal {
        match self {
            Removal::Done => Removal::Done,
            Removal::Listing { mut listing, mut found } => {
                let lives = |s: &TcpSocket| matches!(s.state, state::LISTEN | state::SYN_SENT);
                let told = listing.step(ours, |s| found.extend(Some(s).filter(|s| !lives(s))));
                let more = told.unwrap_or_else(|error| {
                    log::error!("cannot list the kernel's sockets: {error}");
                    false
                });
                if more {
                    Removal::Listing { listing, found }
                } else {
                    Removal::Destroying(found)
                }
            }
            Removal::Destroying(mut left) => {
                for s in left.split_off(left.len().saturating_sub(REMOVED)) {
                    if let Err(error) = sockdiag.destroy_this(&s) {
                        log::warn!("cannot remove the kernel's socket {} <- {}: {error}", s.local, s.peer);
                    }
                }
                if left.is_empty() {
                    Removal::Done
                } else {
                    Removal::Destroying(left)
                }
            }
        }
    }
}

impl Manager {
    /// All of that at once; but the partner is shown that we live.
    pub(super) fn destroy_sockets(&mut self) {
        let mut removal = Removal::begin();
        while !removal.is_done() {
            removal = removal.step(&mut self.sockdiag, self.takeover.ours());
            self.stay_alive();
        }
    }

    pub(super) fn receive_in(&mut self) {
        for _ in 0..BATCHES {
            let now = self.start.elapsed();
            let Manager { queue_in, filter, partner, heard_peer, .. } = self;
            let received = queue_in.recv_batch_with(|packet, verdicts| {
                *heard_peer = true;
                if filter.mode() == Mode::Passive && partner.forwards() {
                    // Whole and right, for nobody looks again.
                    if let Some(whole) = segment::completed(packet.payload, packet.checksum_ok()) {
                        partner.forward(&whole);
                    }
                    verdicts.drop_packet(packet.id);
                    return;
                }
                filter.packet_in(now, packet.id, packet.payload, packet.checksum_ok());
            });
            match received {
                Ok(0) => break,
                Ok(n) => {
                    self.filter_actions();
                    self.flush_verdicts();
                    // What has come since wakes the loop again.
                    if n < nfqueue::BATCH {
                        break;
                    }
                }
                Err(error) => return log::error!("inbound queue: {error}"),
            }
        }
    }

    /// Takes what the local TCP sends. False: there may be more.
    pub(super) fn receive_out(&mut self) -> bool {
        for _ in 0..BATCHES {
            let now = self.start.elapsed();
            let Manager { queue_out, filter, apps, sockdiag, host, .. } = self;
            let received = queue_out.recv_batch(|packet| {
                host.note_handshake(filter, packet.payload);
                // What a packet carries was announced before it was sent: the announcement is read first.
                apps::drain(apps, filter, now);
                if let Some(tuple) = filter.asks_caller(packet.payload) {
                    let socket = sockdiag.find(tuple.local, tuple.peer).unwrap_or_else(|error| {
                        log::warn!("the kernel does not say whose the connection {tuple} is: {error}");
                        None
                    });
                    let number = |s: TcpSocket| outgoing::number(s.cookie, s.inode.into(), !filter.is_lent(s.cookie));
                    let socket = socket.map(number);
                    filter.called_by(tuple, socket);
                }
                filter.packet_out(now, packet.id, packet.payload);
            });
            match received {
                Ok(0) => return true,
                Ok(n) => {
                    self.filter_actions();
                    self.track_handshakes();
                    self.flush_verdicts();
                    if n < nfqueue::BATCH {
                        return true;
                    }
                }
                Err(error) => {
                    log::error!("outbound queue: {error}");
                    return true;
                }
            }
        }
        false
    }

    /// Does what the filter decided. Returns whether there was anything.
    pub(super) fn filter_actions(&mut self) -> bool {
        let mut actions = std::mem::take(&mut self.actions);
        self.filter.drain_actions(&mut actions);
        let any = !actions.is_empty();
        for (i, action) in actions.drain(..).enumerate() {
            self.perform(action);
            if i % MANY == MANY - 1 {
                self.stay_alive();
            }
        }
        self.actions = actions;
        while let Some(tuple) = self.filter.poll_stranger() {
            self.reset_stranger(&tuple);
        }
        self.next_pair();
        any
    }

    /// A connection of no session: if it is established here its socket goes, with an RST that the filter lets leave.
    fn reset_stranger(&mut self, tuple: &FourTuple) {
        let established = |socket: TcpSocket| matches!(socket.state, state::ESTABLISHED | state::CLOSE_WAIT);
        if !self.sockdiag.find(tuple.local, tuple.peer).is_ok_and(|found| found.is_some_and(established)) {
            return;
        }
        log::warn!("{tuple} is established here and not in the log: reset");
        match self.sockdiag.destroy(tuple.local, tuple.peer) {
            Ok(_) => self.filter.stranger_reset(),
            Err(error) => log::warn!("cannot remove the kernel's socket {tuple}: {error}"),
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::AcceptIn(id) => self.queue_in.accept(id),
            Action::DropIn(id) => self.queue_in.drop_packet(id),
            Action::ModifyIn(id, bytes) => {
                if let Err(error) = self.queue_in.accept_modified(id, &bytes) {
                    log::error!("verdict: {error}");
                }
            }
            Action::AcceptOut(id) => self.queue_out.accept(id),
            Action::DropOut(id) => self.queue_out.drop_packet(id),
            Action::ModifyOut(id, bytes) => {
                if let Err(error) = self.queue_out.accept_modified(id, &bytes) {
                    log::error!("verdict: {error}");
                }
            }
            Action::Inject(bytes) => {
                if let Err(error) = self.raw_local.send(&bytes) {
                    log::debug!("injected packet: {error}");
                }
            }
            Action::SendPeer(bytes) => self.send_raw(&bytes),
            Action::Forward(bytes) => {
                self.partner.forward(&bytes);
            }
            Action::Probed(session) => self.restore_probed(session),
            Action::AskAlive(channel) => self.ask_alive(channel),
            Action::AskUnread(session) => self.ask_unread(session),
            Action::Destroy(tuple) => {
                if let Err(error) = self.sockdiag.destroy(tuple.local, tuple.peer) {
                    log::warn!("cannot end {tuple} for the application: {error}");
                }
            }
            Action::AskListener(tuple) => {
                let now = self.now();
                self.takeover.ask_listener(now, tuple);
            }
            Action::AskClosed(session) => self.ask_closed(session),
            Action::AskAsleep(channel, thread) => self.ask_asleep(channel, thread),
            Action::Ended(session, tuple, reason) => {
                log::debug!("session {session} {tuple} ended: {reason:?}");
                self.takeover.forget(session);
            }
        }
    }

    pub(super) fn send_raw(&mut self, packet: &[u8]) {
        if let Err(error) = self.raw.send(packet) {
            log::debug!("raw packet: {error}");
            if error.raw_os_error() == Some(libc::EMSGSIZE) {
                // Longer than our own interface takes.
                let now = self.now();
                self.filter.too_long(now, packet, 0);
            }
        }
    }

    /// What routers say of packets that were too long for them.
    pub(super) fn receive_path_mtu(&mut self) {
        let now = self.now();
        let Manager { path_mtu, filter, .. } = self;
        path_mtu.receive(MESSAGES, |quoted, mtu| filter.too_long(now, quoted, mtu));
    }

    pub(super) fn flush_verdicts(&mut self) {
        for queue in [&mut self.queue_in, &mut self.queue_out] {
            if let Err(error) = queue.flush() {
                log::error!("verdicts: {error}");
            }
        }
    }

    /// Peers that were heard are evidence that we are not cut off; once a round is enough.
    pub(super) fn note_peers(&mut self) {
        if std::mem::take(&mut self.heard_peer) && matches!(self.role.role(), Role::Master | Role::Fenced) {
            self.role.handle(self.start.elapsed(), RoleInput::Reach(true));
        }
    }

    /// Before leaving: what is still queued gets its verdict, and what waits for the replica its answer, so that
    /// FINs that were asked for go out.
    pub(super) fn linger(&mut self) {
        let until = self.now() + LINGER;
        let mut ready = Vec::new();
        while self.now() < until {
            self.settle();
            if let Err(error) = self.poller.wait(Duration::ZERO, &mut ready) {
                return log::error!("{error}");
            }
            for event in ready.drain(..) {
                if matches!(event.token, Token::QueueIn | Token::QueueOut | Token::Link) {
                    self.dispatch(event);
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
