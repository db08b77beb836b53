//! Channels to the applications' hooks.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use tcpr_session::filter::{Filter, Origin, PROGRAM};
use tcpr_session::role::{Role, RoleInput};
use tcpr_session::tuple::SessionId;
use tcpr_session::Now;

use super::program::Program;
use super::{Manager, Token};
use crate::channel::server::{Channel, ChannelError, ChannelRole, Incoming};
use crate::channel::wire::{Recovered, Reply, Request, SessionFacts};
use crate::channel::{self, Event};
use crate::outgoing;
use crate::sockdiag::state;
use crate::vip::Vip;

/// A process whose hooks are joined.
pub(super) struct App {
    pub channel: Channel,
    /// Its ring is broken or it said what cannot be: dropped at the next round.
    broken: bool,
}

/// Takes what the hooks have told since the last time into the filter.
pub(super) fn drain(apps: &mut HashMap<u32, App>, filter: &mut Filter, now: Now) {
    let mut any = false;
    for (&id, app) in apps.iter_mut() {
        let drained = app.channel.drain(|event| tell(filter, now, id, event));
        match drained {
            Ok(n) => any |= n > 0,
            Err(error) => {
                log::warn!("application {}: {}", app.channel.pid(), describe(&error));
                app.broken = true;
            }
        }
    }
    filter.set_intents(apps.iter().filter_map(|(id, app)| Some((*id, app.channel.open_intent()?))));
    if any {
        filter.run_commits(now);
    }
}

fn describe(error: &ChannelError) -> String {
    match error {
        ChannelError::Gone => "it has left".to_owned(),
        ChannelError::Misbehaved(what) => what.clone(),
        ChannelError::Io(e) => e.to_string(),
    }
}

fn tell(filter: &mut Filter, now: Now, id: u32, event: Event<'_>) {
    match event {
        Event::Attach { handle, origin, tuple } => {
            let origin = match origin {
                channel::Origin::Accepted => Origin::Accepted,
                channel::Origin::Connected => Origin::Connected,
                channel::Origin::Recovered => Origin::Recovered,
                channel::Origin::Inherited => Origin::Inherited,
            };
            filter.attach(now, id, handle, origin, &tuple);
        }
        Event::Write { thread, handle, asked, bytes, .. } => filter.write_of(now, id, thread, handle, bytes, asked),
        Event::Read { thread, handle, n } => filter.read(now, id, thread, handle, n),
        Event::Wait { thread, zero_timeout: true } => filter.look(now, id, thread),
        Event::Wait { thread, .. } | Event::Commit { thread } => filter.turn_end(now, id, thread),
        Event::ReadsOn { thread } => filter.reads_on(now, id, thread),
        Event::ReadsOther { thread } => filter.reads_other(id, thread),
        Event::Blocked { thread } => filter.blocked(id, thread),
        Event::Consume { thread, handle, n } => filter.consume(id, thread, handle, n),
        Event::Shutdown { thread, handle } => filter.shutdown(now, id, thread, handle),
        Event::Close { thread, handle, shared } => filter.close(now, id, thread, handle, shared),
        Event::Exit => filter.exit(now, id),
        Event::Absorbed { thread, handle, n } => filter.absorbed(now, id, thread, handle, n),
    }
}

impl Manager {
    pub(super) fn drain_apps(&mut self) {
        let now = self.now();
        drain(&mut self.apps, &mut self.filter, now);
        let broken: Vec<u32> = self.apps.iter().filter(|(_, a)| a.broken).map(|(id, _)| *id).collect();
        for id in broken {
            self.drop_app(id);
        }
    }

    /// Announces that we sleep. False: there is something to read first.
    pub(super) fn apps_may_sleep(&mut self) -> bool {
        let mut may = true;
        for app in self.apps.values_mut() {
            match app.channel.prepare_sleep() {
                Ok(true) => {}
                Ok(false) => may = false,
                Err(_) => app.broken = true,
            }
        }
        may
    }

    /// Whether there is something to drain.
    pub(super) fn apps_told(&self) -> bool {
        self.apps.values().any(|app| app.channel.told())
    }

    pub(super) fn apps_wake(&mut self) {
        for app in self.apps.values_mut() {
            app.channel.wake();
        }
    }

    pub(super) fn accept_apps(&mut self) {
        loop {
            match self.channels.accept() {
                Ok(Some(channel)) => {
                    let id = channel.id();
                    let watched = self
                        .poller
                        .add(channel.socket_fd().as_raw_fd(), Token::Channel(id))
                        .and_then(|()| self.poller.add(channel.process_fd().as_raw_fd(), Token::Process(id)));
                    match watched {
                        Ok(()) => {
                            self.apps.insert(id, App { channel, broken: false });
                        }
                        Err(error) => log::error!("cannot watch an application: {error}"),
                    }
                }
                Ok(None) => return,
                Err(error) => return log::warn!("an application was turned away: {}", describe(&error)),
            }
        }
    }

    pub(super) fn app_request(&mut self, id: u32) {
        loop {
            let Some(app) = self.apps.get_mut(&id) else { return };
            match app.channel.receive() {
                Ok(Some(Incoming::Joined(hello))) => {
                    log::info!("application {} joined", app.channel.pid());
                    log::debug!("{hello:?}");
                    if let Some(kick) = app.channel.kick_fd() {
                        if let Err(error) = self.poller.add(kick.as_raw_fd(), Token::Kick(id)) {
                            log::error!("cannot watch an application: {error}");
                        }
                    }
                    self.publish_role();
                    self.publish_pending();
                }
                Ok(Some(Incoming::Request(number, request, socket))) => self.answer(id, number, request, socket),
                Ok(None) => return,
                Err(ChannelError::Gone) => {
                    // The channel is closed; the process may live on (exec), and its death is told apart.
                    let now = self.now();
                    drain(&mut self.apps, &mut self.filter, now);
                    if let Some(app) = self.apps.get(&id) {
                        self.poller.remove(app.channel.socket_fd().as_raw_fd());
                    }
                    return;
                }
                Err(error) => {
                    log::warn!("application: {}", describe(&error));
                    return self.drop_app(id);
                }
            }
        }
    }

    pub(super) fn app_kick(&mut self, id: u32) {
        if let Some(app) = self.apps.get(&id) {
            app.channel.clear_kick();
        }
        self.drain_apps();
    }

    /// The process is dead: its last words are in the ring.
    pub(super) fn app_died(&mut self, id: u32) {
        self.drain_apps();
        self.drop_app(id);
    }

    fn drop_app(&mut self, id: u32) {
        let now = self.now();
        let Some(app) = self.apps.remove(&id) else { return };
        self.poller.remove(app.channel.socket_fd().as_raw_fd());
        self.poller.remove(app.channel.process_fd().as_raw_fd());
        if let Some(kick) = app.channel.kick_fd() {
            self.poller.remove(kick.as_raw_fd());
        }
        self.filter.process_gone(now, id);
        self.takeover.app_gone(id);
    }

    /// The program that we started crashed: so did what it told through its channels.
    pub(super) fn apps_of_dead_program(&mut self, now: Now) {
        let _ = now;
        let dead: Vec<u32> =
            self.apps.iter().filter(|(_, a)| !process_lives(a.channel.pid())).map(|(id, _)| *id).collect();
        for id in dead {
            self.drop_app(id);
        }
    }

    /// How much of a session's input waits in its socket.
    pub(super) fn ask_unread(&mut self, session: SessionId) {
        let Some(tuple) = self.filter.store().get(session).map(|s| self.filter.inner(&s.open.tuple)) else { return };
        let found = self.sockdiag.find(tuple.local, tuple.peer).unwrap_or_else(|error| {
            log::warn!("session {session}: the kernel does not say what is unread: {error}");
            None
        });
        // In a socket that is gone nothing waits.
        let (received, unread) = found.and_then(|s| Some((s.received?, s.rqueue))).unwrap_or((u64::MAX >> 1, 0));
        let now = self.now();
        self.filter.unread(now, session, received, u64::from(unread));
    }

    /// Whether some process still has a connection that its holder closed.
    pub(super) fn ask_closed(&mut self, session: SessionId) {
        let Some(tuple) = self.filter.store().get(session).map(|s| self.filter.inner(&s.open.tuple)) else { return };
        match self.sockdiag.find(tuple.local, tuple.peer) {
            Ok(Some(socket)) if matches!(socket.state, state::ESTABLISHED | state::CLOSE_WAIT) => {
                log::debug!("session {session}: closed by one process, and held by another");
                let now = self.now();
                self.filter.still_open(now, session);
            }
            Ok(_) => {}
            Err(error) => log::warn!("session {session}: the kernel does not say whether it is closed: {error}"),
        }
    }

    pub(super) fn ask_alive(&mut self, id: u32) {
        let now = self.now();
        if id == PROGRAM {
            if self.program.as_ref().and_then(Program::pid).is_some_and(process_lives) {
                self.filter.process_alive(now, PROGRAM);
            }
            return;
        }
        match self.apps.get(&id) {
            Some(app) if process_lives(app.channel.pid()) => self.filter.process_alive(now, id),
            Some(_) => {} // Its end is near; then its endings are withheld.
            None => self.filter.process_gone(now, id),
        }
    }

    fn answer(&mut self, id: u32, number: u32, request: Request, socket: Option<OwnedFd>) {
        match request {
            Request::GetRecovered { port, max } => self.hand_over(id, number, port, max),
            Request::Listen { port, .. } => {
                self.reply(id, number, Reply::Ok);
                self.listening(id, port);
            }
            Request::Call { to } => {
                let reply = match socket.map_or(Ok(()), |socket| self.prepare_call(to, &socket)) {
                    Ok(()) => Reply::Ok,
                    Err(error) => {
                        log::warn!("a connection to {to} cannot be protected: {error}");
                        Reply::Error { errno: error.raw_os_error().unwrap_or(libc::EINVAL), text: error.to_string() }
                    }
                };
                self.reply(id, number, reply);
            }
            Request::Switchover => {
                let reply = match self.role.can_switch_over() {
                    Ok(()) => {
                        self.role.handle(self.start.elapsed(), RoleInput::SwitchoverRequested);
                        Reply::Ok
                    }
                    Err(why) => Reply::Error { errno: libc::ENOTCONN, text: why.to_owned() },
                };
                self.reply(id, number, reply);
            }
            Request::Dismiss => {
                let hosted = self.apps.get(&id).is_some_and(|app| app.channel.pid() == std::process::id());
                if hosted && self.program.is_none() {
                    self.drain_apps();
                    self.leave(0);
                } else {
                    let text = "only the process that hosts the manager can dismiss it".to_owned();
                    self.reply(id, number, Reply::Error { errno: libc::EPERM, text });
                }
            }
            Request::SessionInfo { tuple } => {
                let passed = || self.filter.passed_info(&tuple).map(|(absorb, greeted)| (absorb, greeted, false));
                let recovered = self.filter.recovered_info(&tuple).or_else(passed);
                let store = self.filter.store();
                let session = self.filter.outer(&tuple).and_then(|tuple| store.find(&tuple));
                let facts = session.and_then(|s| store.get(s)).map(|s| SessionFacts {
                    session: s.open.session,
                    in_done: s.in_done,
                    in_stored: s.in_end(),
                    out_done: s.out_done,
                    out_stored: s.out_done,
                    torn: s.torn,
                    recovered: recovered.map(|(absorb, greeted, finished)| Recovered { absorb, greeted, finished }),
                });
                let reply = match facts {
                    Some(facts) => Reply::Session(facts),
                    None => Reply::Error { errno: libc::ENOTCONN, text: "not a protected session".to_owned() },
                };
                self.reply(id, number, reply);
            }
        }
    }

    fn prepare_call(&self, to: SocketAddr, socket: &OwnedFd) -> io::Result<()> {
        let refused = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text);
        if !self.config.service.outgoing.iter().any(|o| o.address == to) {
            return Err(refused("it is not among service.outgoing"));
        }
        let vip = self.vips.iter().map(Vip::addr).find(|vip| vip.is_ipv4() == to.is_ipv4());
        outgoing::prepare(socket, vip.ok_or_else(|| refused("there is no virtual IP of its family"))?)
    }

    pub(super) fn reply(&mut self, id: u32, number: u32, reply: Reply) {
        if let Some(app) = self.apps.get(&id) {
            if let Err(error) = app.channel.reply(number, reply, &[]) {
                log::warn!("application {}: {}", app.channel.pid(), describe(&error));
            }
        }
    }

    /// Shows role and epoch to every application.
    pub(super) fn publish_role(&self) {
        let role = match self.role.role() {
            Role::Starting => ChannelRole::Starting,
            Role::Backup => ChannelRole::Backup,
            Role::Master => ChannelRole::Master,
            Role::Fenced => ChannelRole::Fenced,
        };
        let epoch = self.role.epoch();
        for app in self.apps.values() {
            app.channel.set_role(role);
            app.channel.set_epoch(epoch.number, u32::from(epoch.member));
        }
    }
}

/// Whether a process lives and is not on its way out (PF_EXITING): its descriptors are closed on the way, long
/// before it is gone.
fn process_lives(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The command's name may hold anything; the fields follow its last parenthesis.
    let Some((_, fields)) = stat.rsplit_once(") ") else { return false };
    let mut fields = fields.split(' ');
    let state = fields.next();
    let flags: u64 = fields.nth(5).and_then(|f| f.parse().ok()).unwrap_or(0);
    const PF_EXITING: u64 = 0x4;
    !matches!(state, Some("Z" | "X")) && flags & PF_EXITING == 0
}
