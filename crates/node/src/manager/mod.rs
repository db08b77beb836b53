//! The manager: one thread, one event loop, joining the pure core to the kernel, the applications and the
//! partner. It decides nothing itself: packets and hook events go to the filter, heartbeats and evidence to the
//! role machine, and what those two say is done, in that order, before the loop waits again.
//!
//! - `packets`: the two queues, and the filter's actions
//! - `apps`: channels to the applications' hooks
//! - `program`: the server that `tcpr run` starts; `life`: what follows when it ends or is replaced; `notify`: it says that it is
//!   ready; `stop`: the manager's own end
//! - `roles`: which verb does what the role machine decides
//! - `transitions`: what a change of role does, step by step
//! - `partner`: what the members say to each other
//! - `heartbeats`, `reachability`, `link`, `replication`, `handover`: what a pair consists of
//! - `standby`: the trace of a hot standby, and its promotion
//! - `takeover`: restoring sessions and handing them over
//! - `doorbells`, `acceptors`: waking whoever accepts; who that is
//! - `sharing`: which of several processes gets the next one
//! - `host`: what tcpr has put on the host, and what follows when it was taken away
//! - `serving`: whether a failover would find somebody to serve
//! - `virtual_ip`: holding it, and telling the network
//! - `cleanup`: sockets of the kernel's that are to go
//! - `local_record`: the session table, for `tcpr sessions`
//! - `clock`, `busy_poll`: time, and when the loop looks for what comes next instead of sleeping
//! - `throttle`: what comes again and again has a line in the log now and then
//! - `sweep`: connections that the kernel has given up
//! - `control`: `tcpr status` and its like
//! - `data`: what the program gives us to keep
//! - `disk`: epoch and lock

mod acceptors;
mod apps;
mod busy_poll;
mod cleanup;
mod clock;
pub mod control;
mod data;
mod descriptors;
mod disk;
mod doorbells;
mod embedded;
mod handed;
mod handover;
mod heartbeats;
mod host;
mod life;
mod link;
mod local_record;
mod notify;
mod packets;
mod partner;
mod poller;
mod program;
mod reachability;
mod ready;
mod replication;
mod roles;
mod serving;
mod sharing;
mod signals;
mod standby;
mod stop;
mod sweep;
mod takeover;
mod threads;
mod throttle;
mod transitions;
mod virtual_ip;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tcpr_session::filter::{Engine, Filter, FilterConfig, Mode};
use tcpr_session::role::{RoleConfig, RoleMachine};
use tcpr_session::Now;

use crate::channel::server::Greeting;
use crate::channel::wire::{OutgoingInfo, PortInfo};
use crate::config::{self, Config, Durability};
use crate::guard::Guard;
use crate::key::{self, Key};
use crate::nat;
use crate::rules::Rules;
use crate::sockdiag::{Ours, SockDiag};

pub use embedded::{start_embedded, EmbedError, EmbeddedHandle};
pub use program::ProgramSpec;
pub use signals::Signals;

use poller::{Poller, Ready, Token};

/// How a manager is hosted.
#[derive(Clone, Debug, Default)]
pub struct Hosting {
    /// `tcpr run`: the program to keep running.
    pub program: Option<ProgramSpec>,
    /// The configuration file, for programs that read it again.
    pub config_path: Option<PathBuf>,
    /// Whether SIGTERM and SIGINT are ours to take.
    pub signals: bool,
}

/// The manager of one service on one member.
pub struct Manager {
    config: Config,
    clock: clock::Clock,
    busy_poll: busy_poll::BusyPoll,
    poller: Poller,
    filter: Filter,
    role: RoleMachine,

    packets: packets::Packets,
    sockdiag: SockDiag,
    virtual_ip: virtual_ip::VirtualIp,
    host: host::Host,

    apps: apps::Apps,
    program: Option<program::Program>,
    /// Where it says that it is ready, if it is to.
    notify: Option<notify::Notify>,

    partner: partner::Partner,
    heartbeats: heartbeats::Heartbeats,
    reachability: reachability::Reachability,
    link: link::PartnerLink,
    replication: replication::Replication,
    handover: handover::Handover,
    throttle: throttle::Throttle,
    takeover: takeover::Takeover,
    /// Of what a demotion has left; the program starts after it.
    cleanup: cleanup::Cleanup,
    control: control::Control,
    record: local_record::LocalRecord,
    sweep: sweep::Sweep,
    serving: serving::Serving,
    standby: standby::Standby,
    /// So much of a snapshot of the partner's program is here, which it has yet to be told.
    program_snapshot_stored: Option<(u64, u64)>,
    epochs: disk::EpochFile,
    _lock: disk::Lock,

    signals: Option<signals::Signals>,
    stop: stop::Stop,
}

/// A manager that does not start leaves no rules behind: they would send packets to a queue that is somebody else's.
/// Its virtual IP is not there any more.
struct RemoveRules(Option<Rules>);

impl Drop for RemoveRules {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(|rules| rules.remove()) {
            log::error!(error:%; "cannot remove the packet rules");
        }
    }
}

/// What can go wrong at the start, said so that the user can mend it.
fn context(what: &str) -> impl Fn(io::Error) -> io::Error + '_ {
    move |e| io::Error::new(e.kind(), format!("{what}: {e}"))
}

impl Manager {
    /// Takes everything that the service needs; nothing of the service is served before [`Manager::run`].
    ///
    /// # Errors
    /// Says what is missing: a privilege, a tool, a port or queue in use, an interface.
    pub fn new(config: Config, hosting: Hosting) -> io::Result<Manager> {
        // Only a program that runs without the library tells nothing, and only its own listener can take sessions back.
        let hooked = hosting.program.as_ref().is_none_or(|spec| spec.library.is_some());
        let mut unsupported = config.unsupported();
        if !hooked {
            unsupported.extend(config.unsupported_unhooked());
        }
        if hosting.program.is_none() {
            unsupported.extend(config.unsupported_embedded());
        }
        if !unsupported.is_empty() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, unsupported.join("; ")));
        }
        config.warnings().into_iter().chain(nat::trouble(&config, &nat::rulesets())).for_each(|warning| log::warn!("{warning}"));
        let clock = clock::Clock::start();
        let service = &config.service;
        let lock = disk::Lock::take(&service.state_dir)?;
        let epochs = disk::EpochFile::open(&service.state_dir)?;
        let poller = Poller::new()?;

        let mut virtual_ip = virtual_ip::VirtualIp::claim(&config)?;
        let packets = packets::Packets::open(service.queues)?;
        let mut sockdiag = SockDiag::of_interface(virtual_ip.interface()).map_err(context("cannot open a sock_diag socket"))?;
        let ports: Vec<_> = service.ports.iter().map(|p| (p.port, p.policy)).collect();
        let outgoing = service.outgoing.iter().map(|o| (o.address, o.policy)).collect();
        let engine = if hooked { config.recovery.engine } else { Engine::Splice };
        let asynchronous = config.replication.durability == Durability::Async;
        let max_turn = config.recovery.max_turn;
        let data_bytes = service.data_bytes;
        let filter = Filter::new(FilterConfig { ports, outgoing, max_turn, engine, hooked, asynchronous, data_bytes });
        let random: [u8; 16] = crate::key::random()?;
        let token: String = random.iter().map(|b| format!("{b:02x}")).collect();
        let apps = apps::Apps::listen(Greeting {
            service: service.name.clone(),
            token: token.clone(),
            vips: virtual_ip.addrs().collect(),
            ports: service
                .ports
                .iter()
                .map(|p| PortInfo { port: p.port, absorb_greeting: p.greeting == config::Greeting::Absorb })
                .collect(),
            spliced: engine == Engine::Splice,
            outgoing: service
                .outgoing
                .iter()
                .map(|o| OutgoingInfo { address: o.address, absorb_greeting: o.greeting == config::Greeting::Absorb })
                .collect(),
        })?;
        let now = clock.now();
        let failover = &config.failover;
        let role = RoleMachine::new(
            RoleConfig {
                me: config.member_index,
                has_partner: config.partner().is_some(),
                preferred: failover.preferred,
                heartbeat: failover.heartbeat,
                misses: failover.misses,
                solo_after: failover.solo_after,
                start_wait: (failover.heartbeat * 20).max(Duration::from_millis(1000)),
                asynchronous,
            },
            epochs.last(),
            now,
        );
        let hot = config.service.standby == config::Standby::Hot;
        let library = hosting.program.as_ref().and_then(|spec| spec.library.as_ref()).filter(|_| hot);
        let hot_library = library.map(|library| library.with_file_name("libtcpr_hot.so"));
        if let Some(missing) = hot_library.as_ref().filter(|library| !library.is_file()) {
            let text = format!(
                "service.standby = \"hot\" needs {}, which is not there: install it beside libtcpr.so",
                missing.display()
            );
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        let notify = (service.life.ready == config::Readiness::Notify).then(notify::Notify::open).transpose();
        let notify = notify.map_err(context("cannot make a socket for sd_notify"))?;
        let program = hosting.program.map(|mut spec| {
            spec.hot_library = hot_library;
            let mut environment = vec![
                ("TCPR_SERVICE".to_owned(), service.name.clone()),
                ("TCPR_TOKEN".to_owned(), token.clone()),
                ("TCPR_MEMBER".to_owned(), config.me().name.clone()),
            ];
            let ports: Vec<String> = service.ports.iter().map(|p| p.port.to_string()).collect();
            environment.push(("TCPR_PORTS".to_owned(), ports.join(",")));
            if !service.outgoing.is_empty() {
                let list: Vec<String> = service.outgoing.iter().map(|o| o.address.to_string()).collect();
                environment.push(("TCPR_OUTGOING".to_owned(), list.join(",")));
            }
            if let Some(notify) = &notify {
                environment.push((notify::VARIABLE.to_owned(), notify.name().to_owned()));
            }
            if let Some(path) = &hosting.config_path {
                environment.push(("TCPR_CONFIG".to_owned(), path.display().to_string()));
            }
            if !service.standby_files.is_empty() {
                let list: Vec<String> = service.standby_files.iter().map(|path| path.display().to_string()).collect();
                environment.push(("TCPR_STANDBY_FILES".to_owned(), list.join("\n")));
            }
            let life = &service.life;
            program::Program::new(spec, environment, program::BackOff::new(life.back_off, life.back_off_max), now)
        });
        let key = match &config.replication.key_file {
            Some(path) => key::load(path).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e.to_string()))?,
            None => Key::LOOPBACK,
        };
        let link = link::PartnerLink::new(&config, key.clone(), now)?;
        let heartbeats = heartbeats::Heartbeats::new(&config, key, now)?;
        let reachability = reachability::Reachability::new(&config, now)?;
        let partner = partner::Partner::new(&config, now)?;
        let control = control::Control::new(&service.run_dir)?;
        let record = local_record::LocalRecord::new(&service.state_dir);
        let signals = if hosting.signals { Some(signals::Signals::take()?) } else { None };

        // All that can be in somebody else's hands is ours. Now goes what a killed manager of this member left behind.
        virtual_ip.remove_leftovers()?;
        let rules = Rules::of(&config);
        let mut undo = RemoveRules(Some(rules.clone()));
        // Fail closed: the rules stand before the program starts.
        rules.install().map_err(|e| io::Error::other(e.to_string()))?;
        let ours = Ours::of(&config);
        let mut cleanup = cleanup::Cleanup::default();
        cleanup.begin();
        while !cleanup.is_done() {
            cleanup.step(&mut sockdiag, &ours);
        }

        let guard = Guard::new(rules.clone(), control.path().to_owned()).map_err(context("cannot watch the packet rules"))?;

        let manager = Manager {
            clock,
            busy_poll: busy_poll::BusyPoll::new(config.replication.busy_poll),
            host: host::Host::new(guard, rules),
            poller,
            filter,
            role,
            packets,
            sockdiag,
            virtual_ip,
            apps,
            program,
            notify,
            partner,
            heartbeats,
            reachability,
            link,
            replication: replication::Replication::default(),
            handover: handover::Handover::default(),
            throttle: throttle::Throttle::default(),
            serving: serving::Serving::new(ours.clone()),
            standby: standby::Standby::new(hot, config.service.standby_trace_bytes),
            program_snapshot_stored: None,
            takeover: takeover::Takeover::new(ours, hooked),
            cleanup,
            control,
            record,
            sweep: sweep::Sweep::default(),
            epochs,
            _lock: lock,
            signals,
            stop: stop::Stop::new(config.service.life.stop_timeout),
            config,
        };
        manager.watch_all()?;
        undo.0 = None;
        Ok(manager)
    }

    fn watch_all(&self) -> io::Result<()> {
        let p = &self.poller;
        self.packets.watch(p)?;
        p.add(self.apps.fd(), Token::Channels)?;
        p.add(self.control.fd(), Token::Control)?;
        if let Some(guard) = self.host.fd() {
            p.add(guard, Token::Guard)?;
        }
        if let Some(notify) = &self.notify {
            p.add(notify.fd(), Token::Notify)?;
        }
        if let Some(signals) = &self.signals {
            p.add(signals.fd(), Token::Signal)?;
        }
        self.link.watch(p)?;
        self.heartbeats.fds().try_for_each(|fd| p.add(fd, Token::Heartbeat))?;
        self.reachability.fds().try_for_each(|fd| p.add(fd, Token::Reach))
    }

    /// The token that admits a process to the channel.
    #[must_use]
    pub fn token(&self) -> &str {
        self.apps.token()
    }

    /// Name of the service.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.config.service.name
    }

    fn now(&self) -> Now {
        self.clock.now()
    }

    /// Serves until told to stop. Returns the exit code for `tcpr run`.
    ///
    /// # Errors
    /// The event loop itself failed.
    pub fn run(mut self) -> io::Result<i32> {
        raise_priority();
        let mut ready = Vec::new();
        self.clock.woke();
        loop {
            self.watched("settle", Manager::settle);
            if let Some(code) = self.stop.exit() {
                self.clean_up();
                return Ok(code);
            }
            self.clock.note_pause();
            self.stay_awake(&mut ready)?;
            if ready.is_empty() {
                // An application that always has something to tell keeps nobody else waiting: packets, partner, clock.
                let timeout = if self.apps.may_sleep() {
                    self.next_timeout()
                } else {
                    self.watched("hooks", Manager::drain_apps);
                    Duration::ZERO
                };
                self.poller.wait(timeout, &mut ready)?;
                self.clock.woke();
                self.apps.wake();
            }
            for event in ready.drain(..) {
                let token = event.token;
                self.watched(token, |m| m.dispatch(event));
            }
            self.watched("ends of processes", Manager::bury_apps);
            self.watched("timers", Manager::timers);
        }
    }

    /// Looks for what a lone exchange needs next, before the loop sleeps.
    fn stay_awake(&mut self, ready: &mut Vec<Ready>) -> io::Result<()> {
        let counters = self.filter.counters();
        let span = self.busy_poll.span(counters.packets_in + counters.packets_out, self.filter.log().waiting());
        let Some(span) = span.filter(|_| self.filter.mode() == Mode::Active) else { return Ok(()) };
        let until = self.now() + span;
        while ready.is_empty() && !self.apps.have_told() && self.now() < until {
            self.poller.wait(Duration::ZERO, ready)?;
        }
        Ok(())
    }

    /// Does one thing, and tells if it took so long that the partner may take us for dead.
    fn watched(&mut self, what: impl fmt::Debug, f: impl FnOnce(&mut Manager)) {
        let before = self.now();
        f(self);
        let took = self.now() - before;
        let failover = &self.config.failover;
        if took > failover.heartbeat * failover.misses {
            log::warn!(ms = took.as_millis() as u64, by:? = what; "the manager was held up");
        }
    }

    fn next_timeout(&self) -> Duration {
        let now = self.now();
        let due = [
            self.filter.poll_timeout(),
            self.role.poll_timeout(),
            self.partner_poll_timeout(),
            self.takeover.poll_timeout(),
            self.apps.poll_timeout(),
            self.sweep.poll_timeout(),
            self.program.as_ref().filter(|_| self.may_start_program()).and_then(program::Program::poll_timeout),
            self.virtual_ip.poll_timeout(self.mandate()),
            self.host.poll_timeout(now),
            self.stop.poll_timeout(now),
            self.standby.poll_timeout(now),
        ]
        .into_iter()
        .flatten()
        .min();
        if self.replication.has_more_to_send(&self.link) || !self.cleanup.is_done() {
            return Duration::ZERO;
        }
        due.map_or(Duration::from_millis(200), |t| t.saturating_sub(now)).min(Duration::from_millis(200))
    }

    fn dispatch(&mut self, event: Ready) {
        match event.token {
            Token::QueueIn => self.receive_in(),
            Token::QueueOut => drop(self.receive_out()),
            Token::LinkListener => self.accept_link(),
            Token::Link => self.link_ready(event.readable, event.writable),
            Token::Heartbeat => self.receive_heartbeats(),
            Token::Reach => self.reach_ready(),
            Token::Control => self.accept_asker(),
            Token::Asker(id) => self.asker_ready(id),
            Token::Channels => self.accept_apps(),
            Token::Channel(id) => self.app_request(id),
            Token::Kick(id) => self.app_kick(id),
            Token::Process(id) => self.app_died(id),
            Token::Program => self.program_ended(),
            Token::Signal => self.signalled(),
            Token::PathMtu => self.receive_path_mtu(),
            Token::Guard => self.host_told(),
            Token::Notify => self.program_says(),
        }
    }

    fn timers(&mut self) {
        let now = self.now();
        if self.filter.poll_timeout().is_some_and(|t| now >= t) {
            self.filter.handle_timeout(now);
        }
        if self.role.poll_timeout().is_some_and(|t| now >= t) {
            self.role.handle_timeout(now);
        }
        self.partner_timers(now);
        self.takeover_timers(now);
        self.keep_address(now);
        self.program_timers(now);
        self.strangers_timers(now);
        self.stop_timers(now);
        self.host_timers(now);
        self.serving_timers(now);
        self.standby_timers(now);
        self.sweep(now);
        self.clear_away();
    }

    /// Does all that the core has decided; nothing is left over when the loop waits.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let roles = self.role_actions();
            let packets = self.filter_actions();
            self.ship_if_due();
            if !roles && !packets {
                break;
            }
        }
        self.go_on_with_snapshot();
        let now = self.now();
        self.note_done(now);
        self.packets.flush();
        self.link.flush();
        self.link.watch_interest(&self.poller);
    }
}

/// Real time, where it is allowed: a late manager is a suspected one. Children do not inherit it.
fn raise_priority() {
    let parameter = libc::sched_param { sched_priority: 10 };
    // SAFETY: the pointer is that of `parameter`, which lives through the call; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameter) };
    if result < 0 {
        log::debug!(error:% = io::Error::last_os_error(); "no real-time priority");
    }
}
