//! Processes of a host: started into files, signalled and killed by id.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use crate::sys::{self, ctx, cvt, other};

/// A process that was started in a host. Dropping it kills its whole group.
///
/// It is not reaped before that: so its number stays its own, and no signal can meet a stranger.
pub struct Process {
    name: String,
    child: Child,
    pidfd: OwnedFd,
    out: PathBuf,
    err: PathBuf,
}

pub(crate) fn start(name: &str, mut command: Command, stem: &Path) -> io::Result<Process> {
    // Host names and stems may have dots: append, do not replace an extension.
    let with = |ext: &str| PathBuf::from(format!("{}.{ext}", stem.display()));
    let (out, err) = (with("out"), with("err"));
    command
        .stdin(Stdio::null())
        .stdout(File::create(&out).map_err(ctx(out.display()))?)
        .stderr(File::create(&err).map_err(ctx(err.display()))?)
        .process_group(0);
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().map_err(ctx(format!("cannot start {program}")))?;
    match sys::pidfd_open(child.id() as i32) {
        Ok(pidfd) => Ok(Process { name: name.to_owned(), child, pidfd, out, err }),
        Err(e) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(e)
        }
    }
}

pub(crate) fn run(mut command: Command, timeout: Duration) -> io::Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let child = command.spawn().map_err(ctx(format!("cannot start {program}")))?;
    let pid = child.id() as i32;
    let pidfd = sys::pidfd_open(pid)?;
    // A thread reads the pipes, or a program that prints much would never end.
    let reader = std::thread::spawn(move || {
        // The pidfd says that it ended; only then, and after the pipes, wait_with_output reaps it.
        child.wait_with_output()
    });
    if !sys::wait_readable(pidfd.as_fd(), timeout)? {
        let _ = sys::kill(-pid, libc::SIGKILL);
        let said = match reader.join() {
            Ok(Ok(output)) => String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
            _ => String::new(),
        };
        let last = said.lines().last().unwrap_or("nothing");
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{program} did not end within {timeout:?}; its last words: {last}"),
        ));
    }
    reader.join().unwrap_or_else(|_| Err(other("the reading thread panicked")))
}

impl Process {
    /// Its process id, which is its group's too.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The name given at its start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        sys::kill(self.pid(), signal).map_err(ctx(&self.name))
    }

    /// Sends a signal to the process and all of its group.
    pub fn signal_group(&self, signal: i32) -> io::Result<()> {
        sys::kill(-self.pid(), signal).map_err(ctx(&self.name))
    }

    /// Kills the whole group (SIGKILL); does not wait.
    pub fn kill(&self) -> io::Result<()> {
        self.signal_group(libc::SIGKILL)
    }

    /// Stops the whole group (SIGSTOP).
    pub fn stop(&self) -> io::Result<()> {
        self.signal_group(libc::SIGSTOP)
    }

    /// Lets a stopped group go on (SIGCONT).
    pub fn cont(&self) -> io::Result<()> {
        self.signal_group(libc::SIGCONT)
    }

    /// The process ids of its living children.
    pub fn children(&self) -> Vec<i32> {
        children(self.pid())
    }

    /// How it ended, if it has.
    pub fn try_exit(&self) -> Option<ExitStatus> {
        // SAFETY: all zeroes is a valid siginfo_t.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: the pointer is to a live siginfo_t of this frame.
        cvt(unsafe { libc::waitid(libc::P_PID, self.child.id(), &mut info, flags) }).ok()?;
        // SAFETY: waitid has filled in the fields of SIGCHLD, or left all zero.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        if pid == 0 {
            return None;
        }
        Some(ExitStatus::from_raw(match info.si_code {
            libc::CLD_EXITED => (status & 0xff) << 8,
            libc::CLD_DUMPED => status | 0x80,
            _ => status,
        }))
    }

    /// Waits for its end; `None` after the timeout.
    pub fn wait(&self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let ended = sys::wait_readable(self.pidfd.as_fd(), left).unwrap_or(false);
            if let Some(s) = self.try_exit() {
                return Some(s);
            }
            if !ended && left.is_zero() {
                return None;
            }
        }
    }

    /// The file of its standard output.
    pub fn out_path(&self) -> &Path {
        &self.out
    }

    /// The file of its standard error.
    pub fn err_path(&self) -> &Path {
        &self.err
    }

    /// What it has written to standard output so far.
    pub fn out(&self) -> String {
        read(&self.out)
    }

    /// What it has written to standard error so far.
    pub fn err(&self) -> String {
        read(&self.err)
    }

    /// The last lines of both, for messages.
    pub fn tail(&self, lines: usize) -> String {
        let mut s = String::new();
        for (what, text) in [("out", self.out()), ("err", self.err())] {
            let all: Vec<&str> = text.lines().collect();
            for l in &all[all.len().saturating_sub(lines)..] {
                s.push_str(&format!("{}.{what}: {l}\n", self.name));
            }
        }
        s
    }
}

fn read(path: &Path) -> String {
    fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
}

/// The living children of a process (zombies are not among them).
pub(crate) fn children(parent: i32) -> Vec<i32> {
    let Ok(dir) = fs::read_dir("/proc") else { return Vec::new() };
    dir.flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // The command's name, in brackets, may hold anything: count from its end.
            let mut f = stat.rsplit(')').next().unwrap_or("").split_whitespace();
            let state = f.next();
            state.is_some_and(|s| s != "Z" && s != "X") && f.next().and_then(|p| p.parse::<i32>().ok()) == Some(parent)
        })
        .collect()
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = sys::kill(-self.pid(), libc::SIGKILL);
        let _ = self.child.wait();
    }
}
