//! The control socket: one JSON object a line in, one out. `tcpr status`, `switchover` and `restart` speak it. What is asked
//! for costs the same whatever the number of sessions: `tcpr sessions` reads the session table.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tcpr_session::filter::{Engine, Mode};
use tcpr_session::role::{Role, RoleInput};

use super::{Manager, Token};
use crate::config::Standby;

/// Most connections at once; an older one gives way.
const MAX_ASKERS: usize = 32;
/// Longest request.
const MAX_REQUEST: usize = 4096;

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum ControlRequest {
    /// What this member is and does.
    Status,
    /// Hand the service over to the partner.
    Switchover,
    /// Kill the program and start it again.
    Restart,
}

/// How far the backup's program is, as `tcpr status` says it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StandbyStatus {
    /// As configured.
    pub mode: Standby,
    /// How far the follower is.
    pub state: StandbyState,
    /// Records that the leader has written and the follower has not executed; `None`: there is no follower.
    pub lag_records: Option<u64>,
    /// Age of the oldest of them in milliseconds.
    pub lag_ms: Option<f64>,
    /// Why a takeover would not keep the program's state.
    pub reason: Option<String>,
    /// Bytes of trace that this member has.
    pub trace_bytes: u64,
    /// How often this member's program took over with its state since its manager started.
    pub promotions: u64,
}

/// How far a follower is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StandbyState {
    /// There is none, or the program cannot be recorded.
    None,
    /// It executes the trace from the beginning, and is not near its end yet.
    Joining,
    /// It is near the end: a takeover keeps the program's state.
    Following,
    /// It did something else than the leader, and was dropped.
    Diverged,
    /// The trace has reached its limit; nothing is recorded any more.
    Full,
}

pub(super) struct Control {
    listener: UnixListener,
    path: PathBuf,
    askers: HashMap<u32, Asker>,
    next: u32,
}

/// One who asks.
struct Asker {
    stream: UnixStream,
    /// What was asked and not answered yet.
    asked: Vec<u8>,
    answer: Vec<u8>,
    /// How much of the answer was taken.
    told: usize,
    /// It is watched for room for more.
    writes: bool,
}

impl Asker {
    /// Gives on the answer, or takes what came. Returns the next request, if all is answered and one is there.
    fn turn(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.tell()?;
        if !self.answer.is_empty() {
            return Ok(None);
        }
        if !self.asked.contains(&b'\n') {
            let mut chunk = [0; 1024];
            match self.stream.read(&mut chunk) {
                Ok(n) if n > 0 && self.asked.len() + n <= MAX_REQUEST => self.asked.extend_from_slice(&chunk[..n]),
                Err(e) if is_temporary(&e) => {}
                _ => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        let end = self.asked.iter().position(|c| *c == b'\n');
        Ok(end.map(|end| self.asked.drain(..=end).collect()))
    }

    /// Writes as much of the answer as there is room for.
    fn tell(&mut self) -> io::Result<()> {
        while self.told < self.answer.len() {
            match self.stream.write(&self.answer[self.told..]) {
                Ok(n) => self.told += n,
                Err(e) if is_temporary(&e) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        self.answer = Vec::new();
        Ok(())
    }
}

fn is_temporary(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Where the control socket of a service is.
#[must_use]
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("control")
}

impl Control {
    pub(super) fn new(run_dir: &Path) -> io::Result<Control> {
        let context = |e: io::Error| io::Error::new(e.kind(), format!("control socket in {}: {e}", run_dir.display()));
        fs::create_dir_all(run_dir).map_err(context)?;
        let path = socket_path(run_dir);
        // The lock is ours: a socket that is there belongs to a dead manager.
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(context(e)),
            _ => {}
        }
        // Under its name only when it is for this user alone: whoever can connect can have the service moved.
        let next = path.with_extension("new");
        let _not_there = fs::remove_file(&next);
        let listener = UnixListener::bind(&next)
            .and_then(|listener| fs::set_permissions(&next, Permissions::from_mode(0o600)).map(|()| listener))
            .and_then(|listener| fs::rename(&next, &path).map(|()| listener))
            .map_err(context)?;
        listener.set_nonblocking(true)?;
        Ok(Control { listener, path, askers: HashMap::new(), next: 0 })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name again, which somebody has removed.
    pub(super) fn name_again(&mut self) -> io::Result<()> {
        let run_dir = self.path.parent().unwrap_or(Path::new("/"));
        let again = Control::new(run_dir)?;
        self.listener = again.listener;
        Ok(())
    }

    pub(super) fn fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    pub(super) fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.path) {
            log::debug!(path:% = self.path.display(), error:%; "cannot remove the control socket");
        }
    }
}

impl Manager {
    pub(super) fn accept_asker(&mut self) {
        for _ in 0..MAX_ASKERS {
            let Ok((stream, _)) = self.control.listener.accept() else { return };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.control.askers.len() >= MAX_ASKERS {
                if let Some(oldest) = self.control.askers.keys().min().copied() {
                    self.control.askers.remove(&oldest);
                }
            }
            self.control.next += 1;
            let id = self.control.next;
            if self.poller.add(stream.as_raw_fd(), Token::Asker(id)).is_ok() {
                let asker = Asker { stream, asked: Vec::new(), answer: Vec::new(), told: 0, writes: false };
                self.control.askers.insert(id, asker);
                // Most have asked already: heard at once, they are not pushed out by those who say nothing.
                self.asker_ready(id);
            }
        }
    }

    /// Hears a request, or goes on with an answer: one of them at a time, and never waiting for whoever asked.
    pub(super) fn asker_ready(&mut self, id: u32) {
        let Some(asker) = self.control.askers.get_mut(&id) else { return };
        let request = match asker.turn() {
            Ok(request) => request,
            Err(_) => return drop(self.control.askers.remove(&id)),
        };
        if let Some(line) = request {
            let reply = match serde_json::from_slice(&line) {
                Ok(request) => self.control_reply(&request),
                Err(error) => json!({ "error": format!("not a request: {error}") }),
            };
            let Some(asker) = self.control.askers.get_mut(&id) else { return };
            asker.answer = format!("{reply}\n").into_bytes();
            asker.told = 0;
            if asker.tell().is_err() {
                return drop(self.control.askers.remove(&id));
            }
        }
        let Some(asker) = self.control.askers.get_mut(&id) else { return };
        // The next request is heard when the answer is out, and comes by itself if it is here already.
        let writes = !asker.answer.is_empty() || asker.asked.contains(&b'\n');
        if std::mem::replace(&mut asker.writes, writes) != writes
            && self.poller.set(asker.stream.as_raw_fd(), Token::Asker(id), !writes, writes).is_err()
        {
            self.control.askers.remove(&id);
        }
    }

    fn control_reply(&mut self, request: &ControlRequest) -> serde_json::Value {
        match request {
            ControlRequest::Status => self.status(),
            ControlRequest::Switchover => match self.can_switch_over() {
                Ok(()) => {
                    self.role.handle(self.now(), RoleInput::SwitchoverRequested);
                    json!({ "ok": true, "epoch": self.role.epoch().number })
                }
                Err(why) => json!({ "error": why }),
            },
            ControlRequest::Restart => match self.restart_program() {
                Ok(starts) => json!({ "ok": true, "program_starts": starts }),
                Err(why) => json!({ "error": why }),
            },
        }
    }

    fn status(&self) -> serde_json::Value {
        let role = match self.role.role() {
            Role::Starting => "starting",
            Role::Backup => "backup",
            Role::Master => "master",
            Role::Fenced => "fenced",
        };
        let epoch = self.role.epoch();
        let trouble = self.program_trouble();
        let unaccepted = self.takeover.unaccepted(self.now());
        json!({
            "member": self.config.me().name,
            "service": self.config.service.name,
            "role": role,
            "epoch": epoch.number,
            "epoch_member": self.config.members.get(usize::from(epoch.member)).map(|m| m.name.clone()),
            "protected": self.role.protected()
                && self.host_is_whole()
                && !self.heartbeats.partner_is_unguarded()
                && trouble.is_none()
                && self.partner.program_is_well()
                && unaccepted == 0
                && !self.has_lost_one(),
            "unaccepted": unaccepted,
            "host": self.host_status(),
            "partner": self.partner_status(),
            "standby": self.standby_status(),
            "sessions": self.filter.store().len(),
            "restoring": self.filter.mode() == Mode::Restoring,
            "virtual_ip": self.virtual_ip.addrs().map(|addr| addr.to_string()).collect::<Vec<_>>(),
            "virtual_ip_here": self.virtual_ip.is_here(),
            "applications": self.applications(),
            "program_trouble": trouble,
            "unhooked": self.unhooked(),
            "hooked": self.filter.hooked(),
            "engine": if self.filter.engine() == Engine::Splice { "splice" } else { "repair" },
            "program_starts": self.program.as_ref().map(|p| p.starts),
            "log": { "end": self.filter.log().written(), "stored": self.filter.log().acknowledged() },
            "takeover": self.takeover.report(),
            "standby": self.standby_status(),
            "counters": self.filter.counters(),
            "longest_pause_ms": self.clock.longest_pause().as_micros() as f64 / 1000.0,
            "queue_overruns": self.packets.overruns(),
        })
    }
}
