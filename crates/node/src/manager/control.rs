//! The control socket: one JSON object a line in, one out. `tcpr status`, `sessions`, `switchover` and
//! `restart` speak it.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tcpr_session::filter::{Engine, Mode};
use tcpr_session::role::{Role, RoleInput};

use super::{Manager, Token};
use crate::table::SessionRow;

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
    /// Its sessions.
    Sessions,
    /// Hand the service over to the partner.
    Switchover,
    /// Kill the program and start it again.
    Restart,
}

pub(super) struct Control {
    listener: UnixListener,
    path: PathBuf,
    askers: HashMap<u32, (UnixStream, Vec<u8>)>,
    next: u32,
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
        let listener = UnixListener::bind(&path).map_err(context)?;
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
            log::debug!("{}: {error}", self.path.display());
        }
    }
}

impl Manager {
    pub(super) fn accept_asker(&mut self) {
        while let Ok((stream, _)) = self.control.listener.accept() {
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
                self.control.askers.insert(id, (stream, Vec::new()));
            }
        }
    }

    pub(super) fn asker_ready(&mut self, id: u32) {
        let Some((stream, buffer)) = self.control.askers.get_mut(&id) else { return };
        let mut chunk = [0; 1024];
        let n = match stream.read(&mut chunk) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => 0,
        };
        buffer.extend_from_slice(&chunk[..n]);
        if n == 0 || buffer.len() > MAX_REQUEST {
            self.control.askers.remove(&id);
            return;
        }
        while let Some((stream, line)) = self.control.askers.get_mut(&id).and_then(|(s, b)| {
            let end = b.iter().position(|c| *c == b'\n')?;
            Some((s.try_clone(), b.drain(..=end).collect::<Vec<u8>>()))
        }) {
            let reply = match serde_json::from_slice(&line) {
                Ok(request) => self.control_reply(&request),
                Err(error) => json!({ "error": format!("not a request: {error}") }),
            };
            let mut text = reply.to_string();
            text.push('\n');
            let sent = stream.and_then(|mut s| {
                s.set_nonblocking(false)?;
                s.set_write_timeout(Some(std::time::Duration::from_millis(200)))?;
                let sent = s.write_all(text.as_bytes());
                s.set_nonblocking(true)?;
                sent
            });
            if sent.is_err() {
                self.control.askers.remove(&id);
            }
        }
    }

    fn control_reply(&mut self, request: &ControlRequest) -> serde_json::Value {
        match request {
            ControlRequest::Status => self.status(),
            ControlRequest::Sessions => self.sessions(),
            ControlRequest::Switchover => match self.role.can_switch_over() {
                Ok(()) => {
                    self.role.handle(self.start.elapsed(), RoleInput::SwitchoverRequested);
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
        json!({
            "member": self.config.me().name,
            "service": self.config.service.name,
            "role": role,
            "epoch": epoch.number,
            "epoch_member": self.config.members.get(usize::from(epoch.member)).map(|m| m.name.clone()),
            "protected": self.role.protected() && self.host.whole(&self.filter),
            "host": self.host.status(&self.filter),
            "partner": self.partner_status(),
            "sessions": self.filter.store().len(),
            "restoring": self.filter.mode() == Mode::Restoring,
            "virtual_ip": self.vips.iter().map(|v| v.addr().to_string()).collect::<Vec<_>>(),
            "virtual_ip_here": self.vip_up,
            "applications": self.apps.len(),
            "hooked": self.filter.hooked(),
            "engine": if self.filter.engine() == Engine::Splice { "splice" } else { "repair" },
            "program_starts": self.program.as_ref().map(|p| p.starts),
            "log": { "end": self.filter.log_end(), "stored": self.filter.replica_position() },
            "takeover": self.takeover.report,
            "counters": self.filter.counters(),
            "queue_overruns": [self.queue_in.overruns(), self.queue_out.overruns()],
        })
    }

    fn sessions(&self) -> serde_json::Value {
        let mut list: Vec<_> = self.filter.store().iter().map(SessionRow::of).collect();
        list.sort_unstable_by_key(|row| row.session);
        json!({ "member": self.config.me().name, "manager": true, "sessions": list })
    }
}
