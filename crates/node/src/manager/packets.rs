//! The two queues, and what the filter decided.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use tcpr_session::filter::{Action, Mode};
use tcpr_session::role::{Role, RoleInput};
use tcpr_session::segment;
use tcpr_session::tuple::FourTuple;

use super::apps::Told;
use super::poller::Poller;
use super::{context, Manager, Token};
use crate::nfqueue::Queue;
use crate::pathmtu::PathMtu;
use crate::rawsock::RawSender;
use crate::sockdiag::{state, TcpSocket};
use crate::{nfqueue, outgoing};

/// Most batches taken from one queue before the other has its turn.
const BATCHES: usize = 8;
/// After so many actions in a row the partner is shown that we live: a takeover of very many sessions asks all peers at once.
const MANY: usize = 64;
/// Most messages of routers taken before something else has its turn.
const MESSAGES: usize = 64;
/// How long a manager that leaves still serves what is under way.
const LINGER: Duration = Duration::from_millis(50);

/// The queues, and the sockets by which packets leave without one.
pub(super) struct Packets {
    queue_in: Queue,
    queue_out: Queue,
    /// To peers.
    raw: RawSender,
    /// To the local TCP.
    raw_local: RawSender,
    path_mtu: PathMtu,
    /// A peer was heard: evidence that we are not cut off.
    heard_peer: bool,
    /// What the filter decides; kept for its memory.
    actions: Vec<Action>,
}

impl Packets {
    pub(super) fn open(queues: (u16, u16)) -> io::Result<Packets> {
        Ok(Packets {
            queue_in: Queue::open(queues.0)?,
            queue_out: Queue::open(queues.1)?,
            raw: RawSender::open().map_err(context("cannot open a raw socket (CAP_NET_RAW)"))?,
            raw_local: RawSender::open_local().map_err(context("cannot open a raw socket (CAP_NET_RAW)"))?,
            path_mtu: PathMtu::open(),
            heard_peer: false,
            actions: Vec::new(),
        })
    }

    pub(super) fn watch(&self, p: &Poller) -> io::Result<()> {
        p.add(self.queue_in.as_raw_fd(), Token::QueueIn)?;
        p.add(self.queue_out.as_raw_fd(), Token::QueueOut)?;
        self.path_mtu.fds().try_for_each(|fd| p.add(fd, Token::PathMtu))
    }

    /// How often each queue ran out of room.
    pub(super) fn overruns(&self) -> [u64; 2] {
        [self.queue_in.overruns(), self.queue_out.overruns()]
    }

    /// Gives the kernel what was decided.
    pub(super) fn flush(&mut self) {
        for queue in [&mut self.queue_in, &mut self.queue_out] {
            if let Err(error) = queue.flush() {
                log::error!(error:%; "verdicts");
            }
        }
    }
}

impl Manager {
    pub(super) fn receive_in(&mut self) {
        for _ in 0..BATCHES {
            let now = self.now();
            let Manager { packets: Packets { queue_in, heard_peer, .. }, filter, handover, link, .. } = self;
            let received = queue_in.recv_batch_with(|packet, verdicts| {
                *heard_peer = true;
                if filter.mode() == Mode::Passive && handover.forwards() && link.is_some() {
                    // Whole and right, for nobody looks again.
                    if let Some(whole) = segment::completed(packet.payload, packet.checksum_ok()) {
                        link.forward(&whole);
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
                    self.packets.flush();
                    // What has come since wakes the loop again.
                    if n < nfqueue::BATCH {
                        break;
                    }
                }
                Err(error) => return log::error!(error:%; "inbound queue"),
            }
        }
    }

    /// Takes what the local TCP sends. False: there may be more.
    pub(super) fn receive_out(&mut self) -> bool {
        for _ in 0..BATCHES {
            let now = self.now();
            let ships = self.ships_trace();
            let Manager { packets, filter, apps, standby, replication, sockdiag, host, program, stop, .. } = self;
            let received = packets.queue_out.recv_batch(|packet| {
                host.note_handshake(filter, packet.payload);
                // What a packet carries was announced before it was sent: the announcement is read first.
                apps.drain(Told { filter, standby, ships, replication, program: program.as_ref(), stop }, now);
                if let Some(tuple) = filter.asks_caller(packet.payload) {
                    let socket = sockdiag.find(tuple.local, tuple.peer).unwrap_or_else(|error| {
                        log::warn!(tuple:%, error:%; "the kernel does not say whose a connection is");
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
                    self.packets.flush();
                    if n < nfqueue::BATCH {
                        return true;
                    }
                }
                Err(error) => {
                    log::error!(error:%; "outbound queue");
                    return true;
                }
            }
        }
        false
    }

    /// Does what the filter decided. Returns whether there was anything.
    pub(super) fn filter_actions(&mut self) -> bool {
        let mut actions = std::mem::take(&mut self.packets.actions);
        self.filter.drain_actions(&mut actions);
        let any = !actions.is_empty();
        for (i, action) in actions.drain(..).enumerate() {
            self.perform(action);
            if i % MANY == MANY - 1 {
                self.stay_alive();
            }
        }
        self.packets.actions = actions;
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
        log::warn!(tuple:%; "a connection that is not in the log is established here: reset");
        match self.sockdiag.destroy(tuple.local, tuple.peer) {
            Ok(_) => self.filter.stranger_reset(),
            Err(error) => log::warn!(tuple:%, error:%; "cannot remove a socket of the kernel's"),
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::AcceptIn(id) => self.packets.queue_in.accept(id),
            Action::DropIn(id) => self.packets.queue_in.drop_packet(id),
            Action::ModifyIn(id, bytes) => {
                if let Err(error) = self.packets.queue_in.accept_modified(id, &bytes) {
                    log::error!(error:%; "verdict");
                }
            }
            Action::AcceptOut(id) => self.packets.queue_out.accept(id),
            Action::DropOut(id) => self.packets.queue_out.drop_packet(id),
            Action::ModifyOut(id, bytes) => {
                if let Err(error) = self.packets.queue_out.accept_modified(id, &bytes) {
                    log::error!(error:%; "verdict");
                }
            }
            Action::Inject(bytes) => {
                if let Err(error) = self.packets.raw_local.send(&bytes) {
                    log::debug!(error:%; "injected packet");
                }
            }
            Action::SendPeer(bytes) => self.send_raw(&bytes),
            Action::Forward(bytes) => {
                if self.handover.forwards() {
                    self.link.forward(&bytes);
                }
            }
            Action::Probed(session) => self.restore_probed(session),
            Action::AskAlive(channel) => self.ask_alive(channel),
            Action::AskUnread(session) => self.ask_unread(session),
            Action::Destroy(tuple) => {
                if let Err(error) = self.sockdiag.destroy(tuple.local, tuple.peer) {
                    log::warn!(tuple:%, error:%; "cannot end a connection for the application");
                }
            }
            Action::AskListener(tuple) => {
                let now = self.now();
                self.takeover.ask_listener(now, tuple);
            }
            Action::AskClosed(session) => self.ask_closed(session),
            Action::AskAsleep(channel, thread) => self.ask_asleep(channel, thread),
            Action::Ended(session, tuple, reason) => {
                log::debug!(session, tuple:%, reason:?; "a session ended");
                self.takeover.forget(session);
            }
        }
    }

    pub(super) fn send_raw(&mut self, packet: &[u8]) {
        if let Err(error) = self.packets.raw.send(packet) {
            log::debug!(error:%; "raw packet");
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
        let Manager { packets, filter, .. } = self;
        packets.path_mtu.receive(MESSAGES, |quoted, mtu| filter.too_long(now, quoted, mtu));
    }

    /// Peers that were heard are evidence that we are not cut off; once a round is enough.
    pub(super) fn note_peers(&mut self) {
        if std::mem::take(&mut self.packets.heard_peer) && matches!(self.role.role(), Role::Master | Role::Fenced) {
            self.role.handle(self.now(), RoleInput::Reach(true));
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
                return log::error!(error:%; "cannot wait for events");
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
