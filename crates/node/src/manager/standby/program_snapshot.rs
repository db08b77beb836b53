//! The snapshot of the leader's program on its way: for a partner that cannot follow the trace from where it begins.
//!
//! A copy of the program writes it into the memory of the trace, as fast as it is read there. It goes over the link in pieces, of
//! which few are under way at a time: the log and heartbeats do not wait for it. The partner keeps it in a memory file, and starts
//! the program with that.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::time::Duration;

use tcpr_session::role::Role;
use tcpr_session::trace::memory::{mode, snapshot, state};
use tcpr_session::Now;

use super::super::program::Program;
use super::super::Manager;
use super::{is_ill, Broken, Standby};
use crate::link::{Message, PROGRAM_SNAPSHOT};
use crate::trace_memory::TraceMemory;

/// Longest piece in one message.
const PIECE: usize = 32 << 10;
/// So much may be under way and not stored. The log waits behind it: at 1 Gbit/s for a millisecond.
const UNDER_WAY: u64 = 128 << 10;
/// It waits where so much of the log is not stored.
const BEHIND: u64 = 256 << 10;
/// How long nothing may come of it.
const PATIENCE: Duration = Duration::from_secs(30);
const SHORT_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether the copy has written more.
const NAP: Duration = Duration::from_millis(1);
/// Where a follower would have more of the trace to execute than this part of what there is room for, a snapshot is the shorter
/// way.
const LONG_WAY: u64 = 16;
/// After one snapshot it is so long until the next; doubled with each, a hundred times at most.
pub(super) const APART: Duration = Duration::from_secs(1);
/// A follower that has stayed for so long needed none in vain.
const STEADY: Duration = Duration::from_secs(60);
/// Memory is looked at whenever so much of a snapshot has come.
const LOOK_EVERY: u64 = 16 << 20;
/// Whether the program's library makes snapshots on this processor.
const IS_KNOWN: bool = cfg!(target_arch = "x86_64");

/// A snapshot that goes to the partner.
pub(super) struct Outgoing {
    /// When something came of it last.
    moved: Now,
    begun: Now,
    /// Where the trace was, once it is made.
    position: Option<u64>,
    sent: u64,
    stored: u64,
}

/// What is known of snapshots of this life of the program.
#[derive(Default)]
pub(super) struct ProgramSnapshots {
    pub(super) outgoing: Option<Outgoing>,
    pub(super) incoming: Option<Incoming>,
    /// Why the last try came to nothing.
    pub(super) refused: Option<String>,
    /// The partner was told so over this link: it does without, until there is one after all.
    said_refused: bool,
    tries: u32,
    next: Now,
    /// As follower: nothing of the trace behind the snapshot is here yet.
    awaits_trace: bool,
}

/// A snapshot that comes from the partner.
pub(super) struct Incoming {
    life: u64,
    file: File,
    bytes: u64,
    /// When it has so many, it is looked whether there is memory enough.
    look_at: u64,
    /// All of it is here.
    whole: bool,
    /// A program was started with it.
    used: bool,
}

impl ProgramSnapshots {
    /// When something is to be done, if a snapshot is under way.
    pub(super) fn due(&self, now: Now) -> Option<Now> {
        self.outgoing.is_some().then_some(now + NAP)
    }

    /// From where on the trace is needed for a snapshot that is under way.
    pub(super) fn need_the_trace(&self, memory: &TraceMemory, shipped: u64) -> Option<u64> {
        let is_made = || matches!(memory.snapshot_state(), snapshot::WRITING | snapshot::DONE);
        self.outgoing.as_ref().map(|one| match one.position {
            Some(_) => shipped,
            None if is_made() => memory.snapshot_position(),
            None => u64::MAX,
        })
    }

    /// Whether a partner that cannot begin with the trace may get a snapshot. One that can gets the trace where none was made.
    pub(super) fn may_come(&self, memory: &TraceMemory) -> bool {
        IS_KNOWN && (self.refused.is_none() || memory.kept() > 0)
    }

    /// Whether the partner follows nothing for that reason alone.
    pub(super) fn are_awaited(&self) -> bool {
        self.said_refused
    }

    /// Whether the trace waits: for a snapshot that is being made, and determines where it begins.
    pub(super) fn hold_the_trace(&self) -> bool {
        self.outgoing.as_ref().is_some_and(|one| one.position.is_none())
    }

    /// The partner is not there any more.
    pub(super) fn forget_partner(&mut self, memory: Option<&TraceMemory>) {
        if self.outgoing.take().is_some() {
            memory.into_iter().for_each(TraceMemory::end_snapshot);
        }
        self.incoming.take_if(|one| !one.whole);
        (self.refused, self.said_refused) = (None, false);
    }

    /// Whether what the log had of the trace before the snapshot began may still come.
    pub(super) fn await_the_trace(&self) -> bool {
        self.awaits_trace
    }

    /// The trace goes on where the snapshot is.
    pub(super) fn note_trace(&mut self) {
        self.awaits_trace = false;
    }

    /// The partner's follower has caught up.
    pub(super) fn note_follower(&mut self, now: Now) {
        if now > self.next + STEADY {
            self.tries = 0;
        }
    }
}

fn is_long(memory: &TraceMemory) -> bool {
    memory.head() - memory.kept() > memory.limit() / LONG_WAY
}

/// As leader.
impl Standby {
    /// Whether the partner's program cannot begin with what is kept of the trace, or had better not.
    fn needs_program_snapshot(&self) -> bool {
        let (Some(memory), Some(partner)) = (self.memory.as_ref().filter(|_| self.leads()), &self.partner) else { return false };
        let mine = partner.life == self.life;
        let there = if mine { partner.head } else { 0 };
        let records = matches!(memory.state(), state::RECORDING | state::LIVE);
        let is_long = there == 0 && !self.complete && is_long(memory);
        let is_lost = mine && is_ill(partner.state) && !self.snapshots.are_awaited();
        records && self.broken.is_none() && !is_lost && (there < memory.kept() || is_long)
    }

    /// Whether the trace is not to be shipped from its beginning, for a snapshot may come first.
    pub(super) fn waits_for_program_snapshot(&self) -> bool {
        let Some(memory) = self.memory.as_ref().filter(|m| self.snapshots_are_spoken && self.snapshots.may_come(m)) else {
            return false;
        };
        let unknown = self.partner.is_none() && (memory.kept() > 0 || is_long(memory)) && !self.complete;
        self.snapshots.hold_the_trace() || self.snapshots.outgoing.is_none() && (unknown || self.needs_program_snapshot())
    }

    /// Goes on with a snapshot, or begins one where it is needed. `room`: pieces of it delay nobody now.
    pub(super) fn go_on_with_program_snapshot(&mut self, now: Now, room: bool, send: &mut impl FnMut(&Message<'_>)) {
        if self.snapshots.outgoing.is_none() && self.needs_program_snapshot() {
            self.begin_program_snapshot(now, send);
        }
        let Some(memory) = &self.memory else { return };
        let Some(one) = &mut self.snapshots.outgoing else { return };
        let (told, made) = (memory.snapshot_state(), memory.snapshot_made());
        // Where there is another way, that is taken soon.
        let patience = if one.position.is_none() && memory.kept() == 0 { SHORT_PATIENCE } else { PATIENCE };
        if one.position.is_none() {
            match made.filter(|_| matches!(told, snapshot::WRITING | snapshot::DONE)) {
                Some((at, _)) if at < memory.kept() || at > memory.head() => {
                    return self.fail_program_snapshot(send, "the program says nonsense of its snapshot".to_owned());
                }
                Some((at, pause)) => {
                    log::info!(position = at, pause_us = pause / 1000; "a snapshot of the program goes to the partner");
                    (one.position, one.moved) = (Some(at), now);
                    send(&Message::ProgramSnapshotBegin { life: self.life, at });
                    // The trace goes on from there.
                    (self.shipped, self.complete, self.said_complete, self.named) = (at, false, false, false);
                }
                None => {}
            }
        }
        if told == snapshot::REFUSED {
            let why = memory.reason();
            return self.fail_program_snapshot(send, format!("no snapshot of the program can be made: {why}"));
        }
        while one.position.is_some() && one.sent - one.stored < UNDER_WAY && room {
            let Some(bytes) = memory.read_snapshot(PIECE) else {
                return self.fail_program_snapshot(send, "the program says nonsense of its snapshot".to_owned());
            };
            if bytes.is_empty() {
                break;
            }
            send(&Message::ProgramSnapshot { bytes: &bytes });
            (one.sent, one.moved) = (one.sent + bytes.len() as u64, now);
        }
        // The state was read before the bytes were.
        if told == snapshot::DONE && one.position.is_some() && memory.snapshot_is_read() {
            let (bytes, ms) = (one.sent, (now - one.begun).as_millis() as u64);
            log::info!(bytes, ms; "the partner has a snapshot of the program");
            send(&Message::ProgramSnapshotEnd { life: self.life, bytes, trouble: "".into() });
            memory.end_snapshot();
            self.snapshots.outgoing = None;
            (self.snapshots.refused, self.snapshots.said_refused) = (None, false);
        } else if now > one.moved + patience {
            let reason = memory.reason();
            let why = match (one.position, reason.is_empty()) {
                (Some(_), _) => "the snapshot of the program does not go on".to_owned(),
                (None, true) => "the program has made no snapshot: its first thread does not wait for descriptors".to_owned(),
                (None, false) => format!("the program has made no snapshot: {reason}"),
            };
            self.fail_program_snapshot(send, why);
        }
    }

    fn begin_program_snapshot(&mut self, now: Now, send: &mut impl FnMut(&Message<'_>)) {
        let Some(memory) = &self.memory else { return };
        if let Some(why) = &self.snapshots.refused {
            if memory.kept() == 0 {
                // The trace is there from its beginning.
                return;
            }
            if !std::mem::replace(&mut self.snapshots.said_refused, true) {
                send(&Message::ProgramSnapshotEnd { life: self.life, bytes: 0, trouble: why.into() });
            }
        }
        if now < self.snapshots.next || !IS_KNOWN && (memory.kept() == 0 || self.snapshots.refused.is_some()) {
            return;
        }
        self.snapshots.tries += 1;
        self.snapshots.next = now + APART * (1 << self.snapshots.tries.min(7)).min(100);
        if !IS_KNOWN {
            return self.fail_program_snapshot(send, "no snapshots of programs are made on this processor".to_owned());
        }
        memory.ask_for_snapshot();
        self.snapshots.outgoing = Some(Outgoing { moved: now, begun: now, position: None, sent: 0, stored: 0 });
    }

    /// There is no snapshot this time. The leader goes on; if its trace is there from the beginning, the partner can follow that.
    /// Else it is tried again later, for what was in the way may go.
    fn fail_program_snapshot(&mut self, send: &mut impl FnMut(&Message<'_>), why: String) {
        log::warn!(why = why.as_str(); "the partner gets no snapshot of the program");
        let Some(memory) = &self.memory else { return };
        memory.end_snapshot();
        let began = self.snapshots.outgoing.take().is_some_and(|one| one.position.is_some());
        self.snapshots.refused = Some(why.clone());
        if began || memory.kept() > 0 {
            self.snapshots.said_refused = true;
            // Nobody there has any use for the trace now.
            self.complete = false;
            send(&Message::ProgramSnapshotEnd { life: self.life, bytes: 0, trouble: why.into() });
        }
    }

    /// The partner's program follows us no more, and nothing of a snapshot that is on its way is of use there.
    pub(super) fn partner_begins_anew(&mut self) {
        if self.snapshots.outgoing.take_if(|one| one.position.is_some()).is_some() {
            self.memory.iter().for_each(TraceMemory::end_snapshot);
        }
    }

    /// The partner has stored so much of the snapshot.
    pub(super) fn program_snapshot_stored(&mut self, life: u64, bytes: u64) {
        if let Some(one) = self.snapshots.outgoing.as_mut().filter(|_| life == self.life) {
            one.stored = bytes.clamp(one.stored, one.sent);
        }
    }
}

/// As follower.
impl Standby {
    /// A snapshot of the leader's program comes.
    pub(super) fn program_snapshot_begins(&mut self, life: u64, at: u64) -> io::Result<()> {
        self.snapshots.incoming = None;
        if !self.hot || self.given_up == life && self.snapshotless != life {
            return Ok(());
        }
        if at > u64::MAX / 2 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it has an impossible position in the trace"));
        }
        self.begin_life();
        let Some(memory) = &self.memory else { return Ok(()) };
        memory.set_mode(mode::FOLLOW);
        memory.begin_at(at);
        (self.life, self.broken, self.given_up, self.snapshotless) = (life, None, 0, 0);
        // SAFETY: the name is a C string; the call takes nothing else.
        let fd = unsafe { libc::memfd_create(c"tcpr-program".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor; nobody else knows it.
        let file = unsafe { File::from_raw_fd(fd) };
        self.snapshots.incoming = Some(Incoming { life, file, bytes: 0, look_at: LOOK_EVERY, whole: false, used: false });
        self.snapshots.awaits_trace = true;
        Ok(())
    }

    /// A piece of it. Returns life and length of what is here.
    pub(super) fn program_snapshot_goes_on(&mut self, bytes: &[u8]) -> io::Result<Option<(u64, u64)>> {
        let Some(one) = self.snapshots.incoming.as_mut().filter(|one| !one.whole && one.life == self.life) else {
            return Ok(None);
        };
        one.file.write_all(bytes)?;
        one.bytes += bytes.len() as u64;
        if one.bytes >= one.look_at {
            one.look_at += LOOK_EVERY;
            // The program needs as much again.
            if available_memory().is_some_and(|free| free < one.bytes) {
                let text = format!("{} bytes of it are here, and no more than that is free", one.bytes);
                return Err(io::Error::new(io::ErrorKind::OutOfMemory, text));
            }
        }
        Ok(Some((one.life, one.bytes)))
    }

    /// Whether a part of a snapshot of this life is here, and the rest comes.
    pub(super) fn awaits_program_snapshot(&self) -> bool {
        self.snapshots.incoming.as_ref().is_some_and(|one| !one.whole && one.life == self.life)
    }

    /// It is whole. Returns whether the program is to be started with it.
    pub(super) fn program_snapshot_ends(&mut self, life: u64, bytes: u64) -> bool {
        let Some(one) = self.snapshots.incoming.as_mut().filter(|one| one.life == life && life == self.life) else {
            return false;
        };
        one.whole = one.bytes == bytes && bytes > 0;
        if !one.whole {
            self.snapshots.incoming = None;
            self.no_program_snapshot(life, "the snapshot of the program has come only in part".to_owned());
            return false;
        }
        true
    }

    /// There is none: this life cannot be followed, unless one comes later.
    pub(super) fn no_program_snapshot(&mut self, life: u64, why: String) {
        self.snapshots.incoming = None;
        if !self.hot || self.given_up == life {
            return;
        }
        log::error!(why = why.as_str(); "the program here cannot follow the master's");
        self.snapshotless = life;
        if self.follows() {
            // Whatever program there is waits for a trace that does not come: it is to be replaced.
            (self.life, self.exact, self.taken) = (life, false, true);
        } else {
            self.given_up = life;
        }
        self.broken = Some(Broken::full(why));
    }

    /// The program is about to be started: whether it begins with a snapshot.
    pub(super) fn begins_with_program_snapshot(&mut self) -> bool {
        let one = self.snapshots.incoming.as_mut().filter(|one| one.whole && one.life == self.life && !one.used);
        one.is_some_and(|one| {
            one.used = true;
            true
        })
    }

    /// The snapshot that the program which is about to start begins with.
    pub(in super::super) fn program_snapshot(&self) -> Option<RawFd> {
        self.snapshots.incoming.as_ref().filter(|one| one.used && self.follows()).map(|one| one.file.as_raw_fd())
    }

    /// A snapshot that was lost with the link: this member waits for another one. Returns whether the program is to be started
    /// anew: it was told that it cannot follow.
    #[must_use]
    pub(super) fn forget_half_program_snapshot(&mut self) -> bool {
        let is_empty = self.memory.as_ref().is_some_and(|m| m.kept() > 0) && !self.taken;
        if !self.follows() || !is_empty || self.snapshots.incoming.is_some() || self.broken.is_some() {
            return false;
        }
        self.begin_life();
        std::mem::take(&mut self.left_out)
    }

    /// The program that was started with it has read it.
    pub(super) fn forget_read_program_snapshot(&mut self) {
        let follows = self.taken && self.memory.as_ref().is_some_and(|m| m.state() == state::FOLLOWING);
        self.snapshots.incoming.take_if(|one| one.used && follows);
    }
}

/// What this machine has left, as far as the kernel says.
fn available_memory() -> Option<u64> {
    let told = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = told.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

impl Manager {
    /// What the partner says of a snapshot.
    pub(in super::super) fn hear_of_program_snapshot(&mut self, message: &Message<'_>) {
        let is_backup = self.role.role() == Role::Backup;
        let failed = match *message {
            Message::ProgramSnapshotStored { life, bytes } => return self.standby.program_snapshot_stored(life, bytes),
            _ if !is_backup => return,
            Message::ProgramSnapshotBegin { life, at } => self.standby.program_snapshot_begins(life, at),
            Message::ProgramSnapshot { bytes } => self.standby.program_snapshot_goes_on(bytes).map(|stored| {
                if let Some((life, bytes)) = stored {
                    self.program_snapshot_stored = Some((life, bytes));
                }
            }),
            Message::ProgramSnapshotEnd { life, ref trouble, .. } if !trouble.is_empty() => {
                self.standby.no_program_snapshot(life, trouble.clone().into_owned());
                Ok(())
            }
            Message::ProgramSnapshotEnd { life, bytes, .. } => {
                if self.standby.program_snapshot_ends(life, bytes) {
                    log::info!(bytes; "a snapshot of the partner's program is here: ours is started anew with it");
                    self.program.iter_mut().for_each(Program::replace);
                }
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(error) = failed {
            let life = self.standby.life;
            self.standby.no_program_snapshot(life, format!("the snapshot of the program cannot be taken: {error}"));
        }
    }

    /// What is due with snapshots.
    pub(super) fn program_snapshot_timers(&mut self, now: Now) {
        if self.link.is_up() {
            self.standby.snapshots_are_spoken = self.link.speaks(PROGRAM_SNAPSHOT);
        }
        if let Some((life, bytes)) = self.program_snapshot_stored.take() {
            self.link.send(&Message::ProgramSnapshotStored { life, bytes });
        }
        self.standby.forget_read_program_snapshot();
        if self.role.role() == Role::Backup && self.standby.forget_half_program_snapshot() {
            self.program.iter_mut().for_each(Program::replace);
        }
        if self.ships_trace() && self.link.speaks(PROGRAM_SNAPSHOT) {
            let acknowledged = self.filter.log().needs_replica().then(|| self.filter.log().acknowledged());
            let behind = self.replication.behind(self.filter.log().written(), acknowledged);
            let room = behind <= BEHIND && self.link.has_room();
            let Manager { standby, link, .. } = self;
            standby.go_on_with_program_snapshot(now, room, &mut |message| link.send(message));
        }
    }
}
