//! The program that `tcpr run` starts, and starts again.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{
    getpid, kill_process, pidfd_open, pidfd_send_signal, set_child_subreaper, waitid, waitpid, Pid, PidfdFlags, Signal, WaitId,
    WaitIdOptions, WaitIdStatus, WaitOptions,
};
use tcpr_session::Now;

/// How often it is looked whether a process that was killed has ended.
const NAP: Duration = Duration::from_millis(1);
/// Longest that the end of a process is waited for that has lost its memory.
/// The event loop stands still meanwhile, and the partner waits for heartbeats.
const ENDING: Duration = Duration::from_millis(20);
/// How long the end of processes that were killed is waited for. The kernel does not end one that hangs in it (in a file system
/// that does not answer, say), nor reap one that a debugger holds. Neither does anything any more.
const KILLED: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(5) };
/// How deep a tree of processes is killed.
const GENERATIONS: usize = 100;
/// A program that ran this long has recovered.
const STEADY: Duration = Duration::from_secs(10);

/// What to start.
#[derive(Clone, Debug)]
pub struct ProgramSpec {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// The library that is preloaded; None: the program runs as it is, and packets alone tell what it does.
    pub library: Option<PathBuf>,
    /// The library of the hot standby, if there is to be one.
    pub hot_library: Option<PathBuf>,
}

/// How long it is waited before a program that crashes again and again is started again. The first time it is not waited for: its
/// connections wait, too.
#[derive(Clone, Copy, Debug)]
pub struct BackOff {
    /// The second time.
    pub first: Duration,
    /// Doubled each time, up to this.
    pub longest: Duration,
    next: Duration,
}

impl BackOff {
    /// Nothing has crashed yet.
    pub fn new(first: Duration, longest: Duration) -> BackOff {
        BackOff { first, longest, next: Duration::ZERO }
    }

    fn next(&mut self) -> Duration {
        let next = self.next;
        self.next = (next * 2).clamp(self.first, self.longest);
        next
    }
}

/// A program under supervision.
pub struct Program {
    spec: ProgramSpec,
    environment: Vec<(String, String)>,
    child: Option<(Child, OwnedFd)>,
    /// The process that was started last, whatever became of it.
    main: u32,
    /// When it was started last.
    since: Now,
    back_off: BackOff,
    /// How often in a row it crashed soon.
    crashes: u32,
    /// It ended otherwise than in order, and was not started again.
    crashed: bool,
    /// `statm` of the process in /proc: the sizes of its memory.
    memory: Option<File>,
    /// Its first thread has ended, and the program goes on.
    leaderless: Cell<bool>,
    /// It was killed to be started again.
    replaced: bool,
    start_at: Option<Now>,
    /// Children that this process had before: whoever became `tcpr run` by exec had started them.
    not_ours: Vec<Pid>,
    /// How often it was started.
    pub starts: u64,
    /// What became of it last, until one of its processes joins.
    pub trouble: Option<String>,
}

impl Program {
    /// Nothing runs yet; it is to be started at once. From now on this process is the parent of what the program's
    /// processes leave behind when they end.
    pub fn new(spec: ProgramSpec, environment: Vec<(String, String)>, back_off: BackOff, now: Now) -> Program {
        if let Err(error) = set_child_subreaper(Some(getpid())) {
            log::warn!(error:%; "the program's own children may outlive it");
        }
        let (child, not_ours) = (None, children());
        let start_at = Some(now);
        Program {
            spec,
            environment,
            child,
            main: 0,
            since: now,
            back_off,
            crashes: 0,
            crashed: false,
            memory: None,
            leaderless: Cell::new(false),
            replaced: false,
            start_at,
            not_ours,
            starts: 0,
            trouble: None,
        }
    }

    /// What is started.
    pub fn name(&self) -> &OsStr {
        &self.spec.command[0]
    }

    /// The library is put into it.
    pub fn is_hooked(&self) -> bool {
        self.spec.library.is_some()
    }

    /// When it is to be started.
    pub fn poll_timeout(&self) -> Option<Now> {
        self.start_at
    }

    /// Whether it is to be started now.
    pub fn is_due(&self, now: Now) -> bool {
        self.start_at.is_some_and(|at| now >= at) && self.child.is_none()
    }

    /// Starts it if it is due, with a snapshot of itself if there is one. Returns its pidfd to watch.
    ///
    /// # Errors
    /// The program cannot be started; it is tried again later.
    pub fn start_if_due(&mut self, now: Now, snapshot: Option<RawFd>) -> io::Result<Option<RawFd>> {
        if !self.is_due(now) {
            return Ok(None);
        }
        let mut command = Command::new(&self.spec.command[0]);
        command.args(&self.spec.command[1..]);
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        if let Some(library) = &self.spec.library {
            let mut preload = OsString::new();
            if let Some(hot) = &self.spec.hot_library {
                preload.push(hot);
                preload.push(":");
                // For our own child, and not for what that starts.
                command.env("TCPR_STANDBY", format!("hot:{}", std::process::id()));
            }
            preload.push(library);
            if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|v| !v.is_empty()) {
                preload.push(":");
                preload.push(others);
            }
            command.env("LD_PRELOAD", preload);
        }
        if let Some(fd) = snapshot {
            command.env("TCPR_HOT_SNAPSHOT", format!("/proc/self/fd/{fd}"));
        }
        let hot = self.spec.hot_library.is_some();
        // SAFETY: between fork and exec only async-signal-safe calls are made: sigemptyset, sigprocmask, personality, fcntl.
        unsafe {
            command.pre_exec(move || {
                if hot {
                    // Leader and follower have everything at the same addresses.
                    libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong);
                }
                if let Some(fd) = snapshot {
                    // The program inherits it.
                    libc::fcntl(fd, libc::F_SETFD, 0);
                }
                let mut none: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&raw mut none);
                libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
                Ok(())
            });
        }
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                self.start_after_a_while(now);
                return Err(error);
            }
        };
        // The number is still that of our child, for nobody has reaped it.
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        let raw = pidfd.as_raw_fd();
        self.child = Some((child, pidfd));
        self.main = self.pid().unwrap_or_default();
        self.crashed = false;
        self.memory = File::open(format!("/proc/{}/statm", self.main)).ok();
        self.leaderless.set(false);
        self.since = now;
        self.start_at = None;
        self.starts += 1;
        Ok(Some(raw))
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(|(c, _)| c.id())
    }

    /// Takes its exit status if it has ended.
    pub fn reap(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.0.try_wait().ok().flatten()?;
        self.child = None;
        self.crashed = status.code() != Some(0);
        Some(status)
    }

    /// Whether the process that was started runs.
    pub fn lives(&self) -> bool {
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let has_ended = |child| waitid(WaitId::Pid(Pid::from_child(child)), ended).ok().flatten().is_some();
        self.child.as_ref().is_some_and(|(child, _)| !has_ended(child))
    }

    /// Whether this is the process that was started, and not one of those that it has made.
    pub fn is_main(&self, pid: u32) -> bool {
        self.main == pid
    }

    /// It has ended otherwise than in order, whether that was noticed or not. What its other processes end from then on, they
    /// end because of that.
    pub fn has_crashed(&self) -> bool {
        let Some((child, _)) = &self.child else { return self.crashed };
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = || waitid(WaitId::Pid(Pid::from_child(child)), ended).ok().flatten();
        let crashed = |status: WaitIdStatus| status.exit_status() != Some(0);
        if let Some(status) = status() {
            return crashed(status);
        }
        if self.leaderless.get() || !self.has_no_memory() {
            return false;
        }
        // It is about to end: its memory goes before its descriptors, whose end the others see.
        for _ in 0..ENDING.as_millis() {
            std::thread::sleep(NAP);
            if let Some(status) = status() {
                return crashed(status);
            }
        }
        self.leaderless.set(true);
        false
    }

    /// The program's first thread has ended, and the last one with it, unless that is all that ended.
    fn has_no_memory(&self) -> bool {
        let mut sizes = [0; 2];
        let read = self.memory.as_ref().is_some_and(|file| file.read_exact_at(&mut sizes, 0).is_ok());
        read && &sizes == b"0 "
    }

    /// Starts it again at once.
    pub fn restart(&mut self, now: Now) {
        self.start_at = Some(now);
    }

    /// Starts it again, at once or after a while, which is longer with each crash that follows soon. Returns how many
    /// such crashes there were in a row, none of them by SIGKILL.
    pub fn crashed(&mut self, now: Now, status: ExitStatus) -> u32 {
        if now > self.since + STEADY {
            self.back_off.next = Duration::ZERO;
            self.crashes = 0;
        }
        self.crashes = if status.signal() == Some(libc::SIGKILL) { 0 } else { self.crashes + 1 };
        self.start_after_a_while(now);
        self.crashes
    }

    fn start_after_a_while(&mut self, now: Now) {
        self.start_at = Some(now + self.back_off.next());
    }

    /// Kills it, to be started again when it has ended.
    pub fn replace(&mut self) {
        self.replaced = self.child.is_some();
        self.signal(Signal::KILL);
    }

    /// Whether it was killed to be started again.
    pub fn is_replaced(&self) -> bool {
        self.replaced
    }

    /// Whether its end was that of [`Program::replace`]; asked once.
    pub fn was_replaced(&mut self) -> bool {
        std::mem::take(&mut self.replaced)
    }

    /// Sends it a signal; if it has ended, nothing happens.
    pub fn signal(&self, signal: Signal) {
        if let Some((_, pidfd)) = &self.child {
            let _ended = pidfd_send_signal(pidfd, signal).is_err();
        }
    }

    /// Kills it with all its processes and waits for their end, which may take a while with many connections, but for no longer than
    /// [`KILLED`] for it, and as long for the rest.
    pub fn kill(&mut self, mut meanwhile: impl FnMut()) {
        self.replaced = false;
        self.signal(Signal::KILL);
        if let Some((mut child, _)) = self.child.take() {
            let until = Instant::now() + KILLED;
            let status = loop {
                match child.try_wait() {
                    Ok(None) if Instant::now() < until => nap(&mut meanwhile),
                    other => break other,
                }
            };
            match status {
                Ok(Some(_)) => {}
                Ok(None) => self.give_up(Pid::from_child(&child)),
                Err(error) => log::warn!(error:%; "waiting for the program's end"),
            }
        }
        self.kill_the_rest(meanwhile);
    }

    /// Kills what the program, which has ended, left behind: it would hold the port that the next one listens on.
    pub fn kill_the_rest(&mut self, mut meanwhile: impl FnMut()) {
        let until = Instant::now() + KILLED;
        // Those of one that is killed become ours.
        for _ in 0..GENERATIONS {
            let mut children = children();
            children.retain(|pid| !self.not_ours.contains(pid));
            if children.is_empty() {
                return;
            }
            log::info!(processes = children.len(); "killing what the program left behind");
            for pid in &children {
                // A child of ours that nobody has reaped: the number is still its own.
                let _ended = kill_process(*pid, Signal::KILL).is_err();
            }
            for pid in children {
                while matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None)) {
                    if Instant::now() >= until {
                        self.give_up(pid);
                        break;
                    }
                    nap(&mut meanwhile);
                }
            }
        }
    }

    /// A process that was killed does not end: it is waited for no more. Who had it is served by somebody else meanwhile.
    fn give_up(&mut self, pid: Pid) {
        log::error!(pid = pid.as_raw_nonzero().get(); "a process of the program was killed and does not end; going on without");
        self.not_ours.push(pid);
    }

    /// SIGCHLD: takes the exit status of whatever became ours and has ended. The program's own is [`Program::reap`]'s.
    pub fn reap_others(&mut self) {
        loop {
            // SAFETY: all zeroes is a valid value of this plain C structure.
            let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
            let look = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            // SAFETY: the pointer is that of `info`, which lives through the call; si_pid is what waitid fills in.
            let pid = unsafe {
                if libc::waitid(libc::P_ALL, 0, &raw mut info, look) < 0 {
                    return;
                }
                info.si_pid()
            };
            let Some(pid) = Pid::from_raw(pid) else { return };
            if self.child.as_ref().is_some_and(|(child, _)| Pid::from_child(child) == pid) {
                return;
            }
            self.not_ours.retain(|other| *other != pid);
            let _gone = waitpid(Some(pid), WaitOptions::NOHANG).is_err();
        }
    }
}

/// Waits a moment for the end of a process.
fn nap(meanwhile: &mut impl FnMut()) {
    std::thread::sleep(NAP);
    meanwhile();
}

/// The processes whose parent we are.
fn children() -> Vec<Pid> {
    let me = std::process::id();
    let of = |entry: std::fs::DirEntry| {
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // PID (NAME) STATE PARENT; the name may hold anything.
        let parent: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        (parent == me).then_some(pid)
    };
    std::fs::read_dir("/proc").map(|all| all.flatten().filter_map(of).collect()).unwrap_or_default()
}

/// The exit code that `tcpr run` passes on.
#[must_use]
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::*;

    /// One kills what another one has started: both are children of the same process.
    fn alone() -> MutexGuard<'static, ()> {
        static ONE: Mutex<()> = Mutex::new(());
        ONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn started(command: &[&str]) -> Program {
        let command = command.iter().map(OsString::from).collect();
        let mut program = Program::new(
            ProgramSpec { command, library: None, hot_library: None },
            Vec::new(),
            BackOff::new(Duration::ZERO, Duration::ZERO),
            Duration::ZERO,
        );
        program.start_if_due(Duration::ZERO, None).unwrap().unwrap();
        program
    }

    fn wait(program: &Program) {
        let pid = Pid::from_child(&program.child.as_ref().unwrap().0);
        waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
    }

    #[test]
    fn a_crash_is_known_before_and_after_it_is_reaped() {
        let _alone = alone();
        let mut program = started(&["sleep", "60"]);
        assert!(!program.has_crashed());
        program.signal(Signal::KILL);
        wait(&program);
        assert!(program.has_crashed());
        program.reap().unwrap();
        assert!(program.has_crashed());
        program.restart(Duration::ZERO);
        program.start_if_due(Duration::ZERO, None).unwrap().unwrap();
        assert!(!program.has_crashed());
        program.kill(|| ());
    }

    #[test]
    fn an_end_in_order_is_no_crash() {
        let _alone = alone();
        let mut program = started(&["true"]);
        wait(&program);
        assert!(!program.has_crashed());
        program.reap().unwrap();
        assert!(!program.has_crashed());
    }

    #[test]
    fn what_crashes_again_and_again_waits_longer_each_time() {
        let mut back_off = BackOff::new(Duration::from_millis(30), Duration::from_millis(100));
        let waits: Vec<u128> = (0..6).map(|_| back_off.next().as_millis()).collect();
        assert_eq!(waits, [0, 30, 60, 100, 100, 100]);
    }

    /// Who holds processes as a debugger does: the kernel does not let their parent reap them.
    struct Debugger(Pid);

    impl Debugger {
        fn of(pid: Pid) -> Debugger {
            let target = pid.as_raw_nonzero().get();
            // SAFETY: the child makes system calls alone, and never returns.
            let child = unsafe { libc::fork() };
            if child == 0 {
                // SAFETY: no pointers.
                unsafe {
                    libc::ptrace(libc::PTRACE_SEIZE, target, 0usize, 0usize);
                    loop {
                        libc::pause();
                    }
                }
            }
            let status = format!("/proc/{target}/status");
            let held = format!("TracerPid:\t{child}\n");
            let debugger = Debugger(Pid::from_raw(child).unwrap());
            let is_held = || std::fs::read_to_string(&status).unwrap().contains(&held);
            let until = Instant::now() + Duration::from_secs(30);
            while !is_held() {
                assert!(Instant::now() < until, "this test needs ptrace: see /proc/sys/kernel/yama/ptrace_scope");
                std::thread::sleep(NAP);
            }
            debugger
        }
    }

    impl Drop for Debugger {
        fn drop(&mut self) {
            let _ended = kill_process(self.0, Signal::KILL).is_err();
            let _reaped = waitpid(Some(self.0), WaitOptions::empty()).is_err();
        }
    }

    #[test]
    fn a_process_that_does_not_end_is_not_waited_for_for_ever() {
        let _alone = alone();
        let mut program = started(&["sleep", "60"]);
        let main = Pid::from_child(&program.child.as_ref().unwrap().0);
        let debugger = Debugger::of(main);
        // Those of other tests, and the debugger.
        program.not_ours = children();
        program.not_ours.retain(|pid| *pid != main);
        let mut naps = 0;
        program.kill(|| naps += 1);
        assert!(naps > 0 && program.child.is_none() && program.not_ours.contains(&main));
        // It ends when it can.
        drop(debugger);
        assert!(waitpid(Some(main), WaitOptions::empty()).is_ok());
    }
}
