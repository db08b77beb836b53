//! Channels to the applications' hooks.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use tcpr_session::filter::{Filter, PROGRAM};
use tcpr_session::hook::{HookEvent, Origin};
use tcpr_session::role::{Epoch, Role, RoleInput};
use tcpr_session::tuple::SessionId;
use tcpr_session::Now;

use super::program::Program;
use super::replication::Replication;
use super::standby::Standby;
use super::stop::Stop;
use super::threads;
use super::{Manager, Token};
use crate::channel::ring;
use crate::channel::server::{Channel, ChannelError, ChannelListener, ChannelRole, Greeting, Incoming};
use crate::channel::wire::{Recovered, Reply, Request, SessionFacts};
use crate::outgoing;
use crate::sockdiag::state;

/// Most that have connected and not said who they are: any local user can connect, and each costs a descriptor.
const STRANGERS: usize = 64;
/// How many are accepted, and how many requests of one process answered, before others have their turn.
const STRANGERS_AT_ONCE: usize = 32;
const REQUESTS_AT_ONCE: usize = 32;
/// How long they have to say it: the library says it at once.
const HELLO_WAIT: Duration = Duration::from_secs(2);
/// Of so many connections it is asked whether a program that was executed has them.
const SOCKETS_ASKED: usize = 256;
/// What is refused is written to the log no more often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// Processes that have connected and not joined, oldest first.
#[derive(Default)]
struct Strangers {
    waiting: VecDeque<(Now, Channel)>,
    turned_away: u64,
    complain_at: Now,
}

impl Strangers {
    fn poll_timeout(&self) -> Option<Now> {
        self.waiting.front().map(|(since, _)| *since + HELLO_WAIT)
    }

    fn take(&mut self, id: u32) -> Option<(Now, Channel)> {
        let at = self.waiting.iter().position(|(_, channel)| channel.id() == id)?;
        self.waiting.remove(at)
    }
}

/// Who hears what hooks tell, and who knows what it means.
pub(super) struct Told<'a> {
    pub(super) filter: &'a mut Filter,
    /// Where the trace of the program goes into the log.
    pub(super) standby: &'a mut Standby,
    /// Whether it does now.
    pub(super) ships: bool,
    pub(super) replication: &'a mut Replication,
    pub(super) program: Option<&'a Program>,
    pub(super) stop: &'a Stop,
}

/// A process whose hooks are joined.
pub(super) struct App {
    channel: Channel,
    /// Its ring is broken or it said what cannot be: cut off at the next round.
    broken: bool,
    /// It was cut off, and lives: what matters of it is when it dies.
    deaf: bool,
    /// It said that it would tell nothing more.
    left: bool,
    /// Its end of the channel is closed, and it lives.
    closed: Option<Closed>,
}

/// The processes of the program that have joined, and those that may.
pub(super) struct Apps {
    channels: ChannelListener,
    /// What admits a process.
    token: String,
    joined: HashMap<u32, App>,
    strangers: Strangers,
    /// Processes that were found dead, until all that has happened at the same time was heard.
    dead: Vec<u32>,
}

impl Apps {
    pub(super) fn listen(greeting: Greeting) -> io::Result<Apps> {
        let token = greeting.token.clone();
        let channels = ChannelListener::bind(greeting)?;
        Ok(Apps { channels, token, joined: HashMap::new(), strangers: Strangers::default(), dead: Vec::new() })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.channels.as_fd().as_raw_fd()
    }

    /// The token that admits a process.
    pub(super) fn token(&self) -> &str {
        &self.token
    }

    pub(super) fn poll_timeout(&self) -> Option<Now> {
        self.strangers.poll_timeout()
    }

    /// Takes what the hooks have told since the last time into the filter. Those who write are held back before they can tell
    /// much more.
    pub(super) fn drain(&mut self, told: Told<'_>, now: Now) {
        let Told { filter, standby, ships, replication, program, stop } = told;
        drain(&mut self.joined, filter, (standby, ships), program, stop, now);
        self.press(filter, replication, now);
    }

    /// Announces that we sleep. False: there is something to read first.
    pub(super) fn may_sleep(&mut self) -> bool {
        let mut may = true;
        for app in self.joined.values_mut() {
            match app.channel.prepare_sleep() {
                Ok(true) => {}
                Ok(false) => may = false,
                Err(_) => app.broken = true,
            }
        }
        may
    }

    /// Whether there is something to drain.
    pub(super) fn have_told(&self) -> bool {
        self.joined.values().any(|app| app.channel.told())
    }

    /// We have slept.
    pub(super) fn wake(&mut self) {
        self.joined.values_mut().for_each(|app| app.channel.wake());
    }

    /// Processes whose channel there is.
    pub(super) fn processes(&self) -> impl Iterator<Item = u32> + '_ {
        self.joined.values().map(|app| app.channel.pid())
    }

    /// Processes that have joined, and are the same programs as then.
    pub(super) fn telling(&self) -> impl Iterator<Item = u32> + '_ {
        self.joined.values().filter(|app| app.has_joined()).map(|app| app.channel.pid())
    }

    /// Those who write are held back where the log is far ahead of the replica, or no longer.
    pub(super) fn press(&self, filter: &mut Filter, replication: &mut Replication, now: Now) {
        if let Some(pressure) = replication.press(now, filter) {
            self.joined.values().for_each(|app| app.channel.set_pressure(pressure));
            filter.set_overloaded(now, pressure == ring::STOP);
        }
    }

    /// How many recovered sessions a port has for those who accept on it.
    pub(super) fn set_pending(&self, port: u16, sessions: u32) {
        for app in self.joined.values() {
            app.channel.set_pending(port, sessions);
        }
    }

    /// From now on each session of this port takes a doorbell off the queue.
    pub(super) fn set_each_rings(&self, port: u16) {
        for app in self.joined.values() {
            app.channel.set_each_rings(port, true);
        }
    }

    fn show(&self, role: Role, epoch: Epoch) {
        let role = match role {
            Role::Starting => ChannelRole::Starting,
            Role::Backup => ChannelRole::Backup,
            Role::Master => ChannelRole::Master,
            Role::Fenced => ChannelRole::Fenced,
        };
        for app in self.joined.values() {
            app.channel.set_role(role);
            app.channel.set_epoch(epoch.number, u32::from(epoch.member));
        }
    }

    /// Answers a request with descriptors. `None`: the process is gone.
    pub(super) fn answer(&self, id: u32, number: u32, reply: Reply, fds: &[BorrowedFd<'_>]) -> Option<Result<(), ChannelError>> {
        self.joined.get(&id).map(|app| app.channel.reply(number, reply, fds))
    }

    /// Answers a request.
    pub(super) fn reply(&self, id: u32, number: u32, reply: Reply) {
        if let Some(app) = self.joined.get(&id) {
            if let Err(error) = app.channel.reply(number, reply, &[]) {
                log::warn!(pid = app.channel.pid(), why = describe(&error).as_str(); "cannot answer an application");
            }
        }
    }
}

impl App {
    /// It tells what it does.
    fn has_joined(&self) -> bool {
        !self.deaf && !self.left && self.closed.is_none()
    }
}

/// How a process lost its end of the channel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Closed {
    /// It executes another program, which has some of its connections, or none.
    Exec { has_some: bool },
    /// It closed what it did not know, behind its library, which may make it anew.
    Behind,
}

/// Takes what the hooks have told since the last time into the filter. Where the program has crashed, the processes that it has
/// left may notice and leave, each in order. No peer is to hear of that: what they end is ended by the crash. What the program's
/// first process has ended, it did before.
fn drain(
    apps: &mut HashMap<u32, App>,
    filter: &mut Filter,
    (standby, ships): (&mut Standby, bool),
    program: Option<&Program>,
    stop: &Stop,
    now: Now,
) {
    let mut any = false;
    let mut crashed = None;
    let mut elsewhere = false;
    for (&id, app) in apps.iter_mut() {
        let may_follow = program.is_some_and(|program| !program.is_main(app.channel.pid()));
        let drained = app.channel.drain(|event| {
            elsewhere |= may_follow && uses(&event);
            if ships && matches!(event, HookEvent::Attach { origin: Origin::Inherited, .. }) {
                // The filter may commit before that what was told before it: the trace of that goes first, if there is one.
                if elsewhere {
                    standby.held_elsewhere();
                }
                standby.ship(now, filter);
            }
            let ends = matches!(event, HookEvent::Close { .. } | HookEvent::Shutdown { .. } | HookEvent::Exit);
            if !ends || !may_follow || !*crashed.get_or_insert_with(|| has_crashed(program, stop)) {
                filter.handle(now, id, event);
            }
        });
        match drained {
            Ok(n) => any |= n > 0,
            Err(error) => {
                log::warn!(pid = app.channel.pid(), why = describe(&error).as_str(); "an application tells what cannot be");
                app.broken = true;
            }
        }
    }
    if elsewhere {
        standby.held_elsewhere();
    }
    if ships {
        // What the program did before it told these events is in the trace by now, and goes before what follows from them.
        standby.ship(now, filter);
    }
    filter.set_intents(apps.iter().filter_map(|(id, app)| Some((*id, app.channel.open_intent()?))));
    if any {
        filter.run_commits(now);
    }
}

/// Whether a process has a connection for itself. One that has just been forked has those of its parent, too, and many do nothing
/// with them.
fn uses(event: &HookEvent<'_>) -> bool {
    match event {
        HookEvent::Attach { origin, .. } => *origin != Origin::Inherited,
        HookEvent::Read { .. } | HookEvent::Write { .. } | HookEvent::Shutdown { .. } => true,
        _ => false,
    }
}

/// Not if it was told to stop: then its processes end what they have as their program wants it.
fn has_crashed(program: Option<&Program>, stop: &Stop) -> bool {
    !stop.is_under_way() && program.is_some_and(Program::has_crashed)
}

fn describe(error: &ChannelError) -> String {
    match error {
        ChannelError::Gone => "it has left".to_owned(),
        ChannelError::Misbehaved(what) => what.clone(),
        ChannelError::Io(e) => e.to_string(),
    }
}

impl Manager {
    fn apps_and_told(&mut self) -> (&mut Apps, Told<'_>) {
        let ships = self.ships_trace();
        let Manager { apps, filter, standby, replication, program, stop, .. } = self;
        (apps, Told { filter, standby, ships, replication, program: program.as_ref(), stop })
    }

    pub(super) fn drain_apps(&mut self) {
        let now = self.now();
        let (apps, told) = self.apps_and_told();
        apps.drain(told, now);
        let broken: Vec<u32> = self.apps.joined.iter().filter(|(_, a)| a.broken).map(|(id, _)| *id).collect();
        for id in broken {
            self.cut_off(id);
        }
    }

    /// What a process says is not to be believed. It lives on as one without hooks, and its connections with it; whatever
    /// state they are in, nobody can know it, so they are reset at a failover.
    fn cut_off(&mut self, id: u32) {
        let now = self.now();
        let Some(app) = self.apps.joined.get_mut(&id) else { return };
        if app.deaf || !app.channel.has_joined() || !process_lives(app.channel.pid()) {
            return self.drop_app(id);
        }
        log::error!(pid = app.channel.pid(); "an application is cut off: its connections are not protected any more");
        self.poller.remove(app.channel.socket_fd().as_raw_fd());
        if let Some(kick) = app.channel.kick_fd() {
            self.poller.remove(kick.as_raw_fd());
        }
        app.channel.cut_off();
        (app.broken, app.deaf) = (false, true);
        self.filter.cut_off(now, id);
        self.takeover.app_gone(id);
    }

    /// It is about to forbid itself the system calls by which it would tell: what it does from now on only packets and the
    /// kernel say.
    fn app_leaves(&mut self, id: u32, number: u32) {
        self.drain_apps();
        let Some(app) = self.apps.joined.get_mut(&id) else { return };
        log::info!(pid = app.channel.pid(); "an application goes on without hooks: it locks itself in (seccomp)");
        app.left = true;
        self.takeover.app_gone(id);
        self.apps.reply(id, number, Reply::Ok);
    }

    /// A process whose channel was closed behind its library goes on with it, over another socket.
    fn app_resumes(&mut self, by: u32, number: u32, id: u32) {
        let Some((_, by)) = self.apps.strangers.take(by) else { return };
        self.poller.remove(by.socket_fd().as_raw_fd());
        let found = self.apps.joined.get_mut(&id).filter(|app| !app.deaf && app.channel.pid() == by.pid());
        let Some(app) = found else {
            let why = describe(&by.refuse(number, libc::ENOTCONN, "there is no such channel".to_owned()));
            return self.turned_away(&why);
        };
        log::warn!(pid = by.pid(); "an application has closed descriptors of the library's, which has made them anew");
        for fd in [Some(app.channel.socket_fd()), app.channel.kick_fd()].into_iter().flatten() {
            self.poller.remove(fd.as_raw_fd());
        }
        if let Err(error) = app.channel.resume(by, number) {
            log::error!(pid = app.channel.pid(), why = describe(&error).as_str(); "an application cannot go on with its channel");
        }
        app.closed = None;
        let watched = [(Some(app.channel.socket_fd()), Token::Channel(id)), (app.channel.kick_fd(), Token::Kick(id))];
        for (fd, token) in watched {
            if let Err(error) = fd.map_or(Ok(()), |fd| self.poller.add(fd.as_raw_fd(), token)) {
                log::error!(error:%; "cannot watch an application");
            }
        }
        self.drain_apps();
    }

    /// How many processes have protected connections, and tell nothing any more of what they do with them.
    pub(super) fn unhooked(&self) -> usize {
        let silent = |app: &App| app.deaf || app.left || !matches!(app.closed, None | Some(Closed::Exec { has_some: false }));
        self.apps.joined.iter().filter(|(id, app)| silent(app) && self.filter.has_connections(**id)).count()
    }

    /// Whether the hooks of some process are off by no will of its own: what it has would not survive.
    pub(super) fn has_lost_one(&self) -> bool {
        let lost = |app: &App| app.deaf || app.closed == Some(Closed::Behind);
        self.apps.joined.iter().any(|(id, app)| lost(app) && self.filter.has_connections(*id))
    }

    /// The other end of a channel is closed, and its process lives.
    fn app_closed(&mut self, id: u32) {
        let Some(app) = self.apps.joined.get(&id) else { return };
        let pid = app.channel.pid();
        let closed = if !maps_channel(pid) {
            let now = self.now();
            self.filter.turns_end(now, id);
            self.filter.run_commits(now);
            Closed::Exec { has_some: self.has_sockets(id, pid) }
        } else {
            log::warn!(pid; "an application has closed the library's descriptors, and is not protected until that has made them anew");
            Closed::Behind
        };
        if let Some(app) = self.apps.joined.get_mut(&id) {
            app.closed = Some(closed);
        }
        if closed != Closed::Behind {
            // What it is now rings no bell, and does not know one.
            self.takeover.app_gone(id);
        }
    }

    /// Whether a process has sockets of the connections that were this channel's.
    fn has_sockets(&mut self, id: u32, pid: u32) -> bool {
        let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let names: HashSet<_> = links.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
        let tuples = self.filter.tuples_of(id);
        tuples.iter().take(SOCKETS_ASKED).any(|tuple| {
            let found = self.sockdiag.find(tuple.local, tuple.peer);
            found.is_ok_and(|s| s.is_some_and(|s| names.contains(Path::new(&format!("socket:[{}]", s.inode)))))
        })
    }

    /// Takes processes that want to join, a few at a time. What each says first is heard at once if it is there: that of
    /// the library is, and strangers keep nobody out.
    pub(super) fn accept_apps(&mut self) {
        for _ in 0..STRANGERS_AT_ONCE {
            match self.apps.channels.accept() {
                Ok(Some(channel)) => {
                    let id = channel.id();
                    if let Err(error) = self.poller.add(channel.socket_fd().as_raw_fd(), Token::Channel(id)) {
                        log::error!(error:%; "cannot watch an application");
                        continue;
                    }
                    let now = self.now();
                    self.apps.strangers.waiting.push_back((now, channel));
                    self.hear_stranger(id);
                    if self.apps.strangers.waiting.len() > STRANGERS {
                        self.push_out_stranger();
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    // With no descriptor left it would be tried for ever.
                    self.push_out_stranger();
                    return self.turned_away(&describe(&error));
                }
            }
        }
    }

    /// One makes room: the oldest of the user who has most of them.
    fn push_out_stranger(&mut self) {
        let all = &self.apps.strangers.waiting;
        let of = |uid: u32| all.iter().filter(|(_, channel)| channel.uid() == uid).count();
        let Some(oldest) = all.iter().rev().max_by_key(|(_, c)| of(c.uid())).map(|(_, c)| c.id()) else { return };
        self.hear_stranger(oldest);
        if let Some((_, channel)) = self.apps.strangers.take(oldest) {
            self.turned_away(&format!("it is one of many, of user {}, that say nothing", channel.uid()));
        }
    }

    /// Those that have said nothing in time.
    pub(super) fn strangers_timers(&mut self, now: Now) {
        while self.apps.strangers.waiting.front().is_some_and(|(since, _)| now >= *since + HELLO_WAIT) {
            let (_, channel) = self.apps.strangers.waiting.pop_front().expect("in front");
            self.turned_away(&format!("it said nothing (process {} of user {})", channel.pid(), channel.uid()));
        }
    }

    /// One line for as many as come in a while.
    fn turned_away(&mut self, why: &str) {
        let now = self.now();
        self.apps.strangers.turned_away += 1;
        if now >= self.apps.strangers.complain_at {
            self.apps.strangers.complain_at = now + COMPLAIN_EVERY;
            log::warn!(why, so_far = self.apps.strangers.turned_away; "an application was turned away");
        }
    }

    /// What somebody says who has not joined.
    fn hear_stranger(&mut self, id: u32) {
        let Some((_, channel)) = self.apps.strangers.waiting.iter_mut().find(|(_, c)| c.id() == id) else { return };
        match channel.receive() {
            Ok(None) => {}
            Ok(Some(Incoming::Joined(hello))) => {
                let pid = channel.pid();
                if self.apps.joined.values().any(|app| app.deaf && app.channel.pid() == pid) {
                    log::warn!(pid; "an application was cut off, and joins again: it is not heard");
                    return drop(self.apps.strangers.take(id));
                }
                log::info!(pid; "an application joined");
                log::debug!(hello:?; "it says");
                let channel = self.apps.strangers.take(id).expect("found").1;
                let watched = [(channel.kick_fd(), Token::Kick(id)), (channel.process_fd(), Token::Process(id))];
                for (fd, token) in watched {
                    if let Err(error) = fd.map_or(Ok(()), |fd| self.poller.add(fd.as_raw_fd(), token)) {
                        log::error!(error:%; "cannot watch an application");
                    }
                }
                channel.set_pressure(self.replication.pressure());
                self.apps.joined.insert(id, App { channel, broken: false, deaf: false, left: false, closed: None });
                self.program.iter_mut().for_each(|program| program.trouble = None);
                self.publish_role();
                self.publish_pending();
            }
            Ok(Some(Incoming::Resumes { number, channel })) => self.app_resumes(id, number, channel),
            // Nothing else is said by who has not joined.
            Ok(Some(Incoming::Request(..))) | Err(ChannelError::Gone) => drop(self.apps.strangers.take(id)),
            Err(error) => {
                let why = describe(&error);
                drop(self.apps.strangers.take(id));
                self.turned_away(&why);
            }
        }
    }

    pub(super) fn app_request(&mut self, id: u32) {
        if !self.apps.joined.contains_key(&id) {
            self.hear_stranger(id);
        }
        // What has come since wakes the loop again.
        for _ in 0..REQUESTS_AT_ONCE {
            let Some(app) = self.apps.joined.get_mut(&id).filter(|app| !app.deaf) else { return };
            match app.channel.receive() {
                Ok(Some(Incoming::Joined(_) | Incoming::Resumes { .. })) => {}
                Ok(Some(Incoming::Request(number, request, socket))) => self.answer(id, number, request, socket),
                Ok(None) => return,
                Err(ChannelError::Gone) => {
                    // The channel is closed; the process may live on (exec), and its death is told apart.
                    let now = self.now();
                    let (apps, told) = self.apps_and_told();
                    apps.drain(told, now);
                    if let Some(app) = self.apps.joined.get(&id) {
                        self.poller.remove(app.channel.socket_fd().as_raw_fd());
                    }
                    if self.apps.joined.get(&id).is_some_and(|app| process_lives(app.channel.pid())) {
                        self.app_closed(id);
                    }
                    return;
                }
                Err(error) => {
                    log::warn!(why = describe(&error).as_str(); "an application asks what cannot be");
                    return self.cut_off(id);
                }
            }
        }
    }

    pub(super) fn app_kick(&mut self, id: u32) {
        if let Some(app) = self.apps.joined.get(&id) {
            app.channel.clear_kick();
        }
        self.drain_apps();
    }

    /// The process is dead. Others may be, too: to bury many costs hardly more than to bury one.
    pub(super) fn app_died(&mut self, id: u32) {
        self.apps.dead.push(id);
    }

    /// Dead processes are forgotten. Their last words are in their rings.
    pub(super) fn bury_apps(&mut self) {
        if !self.apps.dead.is_empty() {
            self.drain_apps();
            let dead = std::mem::take(&mut self.apps.dead);
            self.drop_apps(dead);
        }
    }

    fn drop_app(&mut self, id: u32) {
        self.drop_apps([id]);
    }

    fn drop_apps(&mut self, ids: impl IntoIterator<Item = u32>) {
        let now = self.now();
        let mut gone = BTreeSet::new();
        for id in ids {
            let Some(app) = self.apps.joined.remove(&id) else { continue };
            if (app.left || matches!(app.closed, Some(Closed::Exec { .. }))) && self.program_lives() {
                // It could not say so: its end is that of one child, and the program's business.
                self.filter.exit(now, id);
            }
            self.poller.remove(app.channel.socket_fd().as_raw_fd());
            for fd in [app.channel.process_fd(), app.channel.kick_fd()].into_iter().flatten() {
                self.poller.remove(fd.as_raw_fd());
            }
            gone.insert(id);
        }
        if gone.is_empty() {
            return;
        }
        self.filter.processes_gone(now, &gone);
        gone.into_iter().for_each(|id| self.takeover.app_gone(id));
    }

    fn program_lives(&self) -> bool {
        self.program.as_ref().map_or(Some(std::process::id()), Program::pid).is_some_and(process_lives)
    }

    /// The program that we started crashed: so did what it told through its channels.
    pub(super) fn apps_of_dead_program(&mut self) {
        let dead: Vec<u32> =
            self.apps.joined.iter().filter(|(_, a)| !process_lives(a.channel.pid())).map(|(id, _)| *id).collect();
        self.drop_apps(dead);
    }

    /// How much of a session's input waits in its socket.
    pub(super) fn ask_unread(&mut self, session: SessionId) {
        let Some(tuple) = self.filter.store().get(session).map(|s| self.filter.local_tuple(&s.open.tuple)) else { return };
        let found = self.sockdiag.find(tuple.local, tuple.peer).unwrap_or_else(|error| {
            log::warn!(session, error:%; "the kernel does not say what is unread");
            None
        });
        let now = self.now();
        match found.and_then(|s| Some((s.received?, s.rqueue))) {
            Some((received, unread)) => self.filter.unread(now, session, received, u64::from(unread)),
            None => self.filter.unread_gone(now, session),
        }
    }

    /// Whether some process still has a connection that its holder closed.
    pub(super) fn ask_closed(&mut self, session: SessionId) {
        let Some(tuple) = self.filter.store().get(session).map(|s| self.filter.local_tuple(&s.open.tuple)) else { return };
        match self.sockdiag.find(tuple.local, tuple.peer) {
            Ok(Some(socket)) if matches!(socket.state, state::ESTABLISHED | state::CLOSE_WAIT) => {
                log::debug!(session; "a connection is closed by one process, and held by another");
                let now = self.now();
                self.filter.still_open(now, session);
            }
            Ok(_) => {}
            Err(error) => log::warn!(session, error:%; "the kernel does not say whether a connection is closed"),
        }
    }

    /// Whether a thread sleeps whose turn is open. What it told before it fell asleep comes first.
    pub(super) fn ask_asleep(&mut self, id: u32, thread: u32) {
        let Some(rest) = self.apps.joined.get(&id).and_then(|app| threads::rest(app.channel.pid(), thread)) else { return };
        self.drain_apps();
        // Behind a write that is under way more may have been told.
        if self.apps.joined.get(&id).is_some_and(|app| app.channel.open_intent().is_none()) {
            let now = self.now();
            self.filter.rest(now, id, thread, rest);
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
        match self.apps.joined.get(&id) {
            Some(app) if process_lives(app.channel.pid()) => self.filter.process_alive(now, id),
            Some(_) => {} // Its end is near; then its endings are withheld.
            None => self.filter.process_gone(now, id),
        }
    }

    fn answer(&mut self, id: u32, number: u32, request: Request, socket: Option<OwnedFd>) {
        match request {
            Request::GetRecovered { port, max } => self.hand_over(id, number, port, max),
            Request::Listen { port, .. } => {
                self.apps.reply(id, number, Reply::Ok);
                self.listening(id, port);
            }
            Request::Call { to, thread } => {
                let reply = match socket.map_or(Ok(()), |socket| self.prepare_call(id, thread, to, &socket)) {
                    Ok(()) => Reply::Ok,
                    Err(error) => {
                        log::warn!(to:%, error:%; "a connection cannot be protected");
                        Reply::Error { errno: error.raw_os_error().unwrap_or(libc::EINVAL), text: error.to_string() }
                    }
                };
                self.apps.reply(id, number, reply);
            }
            Request::GiveBack { session } => {
                let back = socket.is_some_and(|socket| self.taken_back(id, session, socket));
                let text = || "that session was not handed out".to_owned();
                let reply = if back { Reply::Ok } else { Reply::Error { errno: libc::EINVAL, text: text() } };
                self.apps.reply(id, number, reply);
            }
            Request::Switchover => {
                let reply = match self.can_switch_over() {
                    Ok(()) => {
                        self.role.handle(self.now(), RoleInput::SwitchoverRequested);
                        Reply::Ok
                    }
                    Err(why) => Reply::Error { errno: libc::ENOTCONN, text: why.to_owned() },
                };
                self.apps.reply(id, number, reply);
            }
            Request::Dismiss => {
                let hosted = self.apps.joined.get(&id).is_some_and(|app| app.channel.pid() == std::process::id());
                if hosted && self.program.is_none() {
                    self.drain_apps();
                    self.leave(0);
                } else {
                    let text = "only the process that hosts the manager can dismiss it".to_owned();
                    self.apps.reply(id, number, Reply::Error { errno: libc::EPERM, text });
                }
            }
            Request::Leave => self.app_leaves(id, number),
            Request::Checkpoint { .. }
            | Request::Restore { .. }
            | Request::Put { .. }
            | Request::Get { .. }
            | Request::NextKey { .. } => self.answer_data(id, number, request),
            Request::Trace => self.give_trace(id, number),
            Request::GetStanding => self.hand_standing(id, number),
            Request::SessionInfo { tuple } => {
                let passed = || self.filter.passed_info(&tuple).map(|(absorb, greeted)| (absorb, greeted, false));
                let recovered = self.filter.recovered_info(&tuple).or_else(passed);
                let store = self.filter.store();
                let session = self.filter.peer_tuple(&tuple).and_then(|tuple| store.find(&tuple));
                let facts = session.and_then(|s| store.get(s)).map(|s| SessionFacts {
                    session: s.open.session,
                    in_done: s.in_done,
                    in_stored: s.in_end(),
                    out_done: s.out_done,
                    out_stored: s.out_done,
                    torn: s.torn,
                    options: store.options(s.open.session).to_vec(),
                    recovered: recovered.map(|(absorb, greeted, finished)| {
                        let (in_done, out_base) = (s.in_done, s.out_base);
                        Recovered { absorb, greeted, finished, in_done, out_base }
                    }),
                });
                let reply = match facts {
                    Some(facts) => Reply::Session(facts),
                    None => Reply::Error { errno: libc::ENOTCONN, text: "not a protected session".to_owned() },
                };
                self.apps.reply(id, number, reply);
            }
        }
    }

    /// Whether a channel is that of the process that was started.
    pub(super) fn is_main(&self, id: u32) -> bool {
        let pid = self.apps.joined.get(&id).map(|app| app.channel.pid());
        pid.zip(self.program.as_ref()).is_some_and(|(pid, program)| program.is_main(pid))
    }

    /// The memory of the trace is for the process that was started, and for no other.
    fn give_trace(&mut self, id: u32, number: u32) {
        let (main, role) = (self.is_main(id), self.role.role());
        match main.then(|| self.standby.take_memory(role)).flatten() {
            Some(memory) => drop(self.apps.answer(id, number, Reply::Ok, &[memory])),
            None => {
                let text = "only the program's first process leads or follows".to_owned();
                self.apps.reply(id, number, Reply::Error { errno: libc::EPERM, text });
            }
        }
    }

    fn prepare_call(&mut self, channel: u32, thread: u32, to: SocketAddr, socket: &OwnedFd) -> io::Result<()> {
        let refused = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text);
        if !self.config.service.outgoing.iter().any(|o| o.address == to) {
            return Err(refused("it is not among service.outgoing"));
        }
        let vip = self.virtual_ip.addrs().find(|vip| vip.is_ipv4() == to.is_ipv4());
        let lent = outgoing::prepare(socket, vip.ok_or_else(|| refused("there is no virtual IP of its family"))?)?;
        // What the application did before is why it connects.
        self.drain_apps();
        self.filter.lend(channel, thread, lent.number, to, lent.bound);
        Ok(())
    }

    /// Shows role and epoch to every application.
    pub(super) fn publish_role(&self) {
        self.apps.show(self.role.role(), self.role.epoch());
    }
}

/// Whether a process has the shared memory of a channel: an exec takes it away.
fn maps_channel(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.contains("memfd:tcpr-channel"))
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
