//! Hot standby: the trace of the program on its way from the leader to the follower, and the promotion of the follower.
//!
//! The program's library writes the trace into a memory of ours where the program leads. The trace goes to the partner in the log,
//! always before the commits of the turns that made it. The partner's manager writes it into its own memory, where the program of
//! that member follows it. See docs/hot-standby.md.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use tcpr_session::filter::Filter;
use tcpr_session::record::TracePart;
use tcpr_session::role::Role;
use tcpr_session::standing::Standing;
use tcpr_session::trace::memory::{mode, state};
use tcpr_session::tuple::{BySession, SessionId};
use tcpr_session::Now;

use super::control::{StandbyState, StandbyStatus};
use super::link::PartnerLink;
use super::program::Program;
use super::Manager;
use crate::link::{Message, PROGRAM_SNAPSHOT, TRACE};
use crate::trace_memory::TraceMemory;

mod program_snapshot;
#[cfg(test)]
mod tests;

use program_snapshot::ProgramSnapshots;

/// So much of the trace goes into the log at once where the partner has yet to catch up.
const PIECE: u64 = 256 << 10;
/// It waits where so much of the log is not stored.
const AHEAD: u64 = 1 << 20;
/// A follower that is no further behind has caught up.
const NEAR: u64 = 4 << 10;
/// No program records more between two looks at what it tells.
const MOST: u64 = 64 << 20;
/// How often the partner is told how far the follower has come, and the trace of a program that tells nothing else is sent.
const EVERY: Duration = Duration::from_millis(20);
/// How long a follower that takes over has to come to the end of the trace.
const CATCH_UP: Duration = Duration::from_secs(5);
const NAP: Duration = Duration::from_micros(100);
/// For so long nothing else is done meanwhile; after that it is looked so often.
const AT_ONCE: Duration = Duration::from_millis(5);
const LOOK: Duration = Duration::from_millis(1);

/// What is known of the partner's follower.
struct Report {
    life: u64,
    head: u64,
    executed: u64,
    records: u64,
    state: u32,
    reason: String,
    lag: Lag,
}

/// Since when a follower is behind, as far as its reports tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lag {
    /// It has yet to come near the end of the trace for the first time.
    Joining,
    None,
    /// It has yet to execute what was there at that time: the trace up to this byte.
    Since(Now, u64),
}

impl Lag {
    /// It has executed so much of a trace that ends at `head`.
    fn hears(self, now: Now, executed: u64, head: u64) -> Lag {
        match self {
            _ if executed >= head => Lag::None,
            Lag::Joining if executed.saturating_add(NEAR) < head => Lag::Joining,
            Lag::Since(since, mark) if executed < mark => Lag::Since(since, mark),
            _ => Lag::Since(now, head),
        }
    }

    fn time(self, now: Now) -> Duration {
        match self {
            Lag::Since(since, _) => now.saturating_sub(since),
            Lag::Joining | Lag::None => Duration::ZERO,
        }
    }

    /// Whether a takeover would find it at the end of the trace in time.
    fn is_close(self, now: Now) -> bool {
        self != Lag::Joining && self.time(now) < CATCH_UP
    }
}

/// Of that what the leader was told last: life, end of the trace, how far it is executed, state.
type Told = (u64, u64, u64, u32);

/// Why a life of the program cannot be followed: [`state::DIVERGED`] or [`state::FULL`], and in words.
#[derive(Clone, Debug)]
struct Broken {
    state: u32,
    why: String,
}

impl Broken {
    fn diverged(why: impl Into<String>) -> Broken {
        Broken { state: state::DIVERGED, why: why.into() }
    }

    fn full(why: impl Into<String>) -> Broken {
        Broken { state: state::FULL, why: why.into() }
    }

    /// What the log says of it: the state, and the words. Partners of older versions sent the words alone.
    fn encode(&self) -> Vec<u8> {
        [&[self.state as u8], self.why.as_bytes()].concat()
    }

    fn decode(bytes: &[u8]) -> Broken {
        const FULL: u8 = state::FULL as u8;
        let words = |bytes| String::from_utf8_lossy(bytes);
        match bytes {
            [FULL, why @ ..] => Broken::full(words(why)),
            [0..32, why @ ..] => Broken::diverged(words(why)),
            why => Broken::diverged(words(why)),
        }
    }

    /// In the words of the program's library.
    fn by(memory: &TraceMemory) -> Broken {
        match memory.state() {
            state::FULL => Broken::full(memory.reason()),
            _ => Broken::diverged(memory.reason()),
        }
    }
}

/// Whether a program does not follow any more, or does not record.
fn is_ill(state: u32) -> bool {
    matches!(state, state::DIVERGED | state::FULL | state::REFUSED)
}

/// So much of the trace is kept for a follower that begins with it, as long as it is all that there is: the rest of the memory is
/// for what a follower has yet to execute.
fn most_kept(memory: &TraceMemory) -> u64 {
    memory.limit() / 4 * 3
}

/// The hot standby of one member.
pub(super) struct Standby {
    hot: bool,
    limit: u64,
    memory: Option<TraceMemory>,
    /// Which life of the program the memory has the trace of: of ours, or the one that the partner's log names.
    life: u64,
    /// A process of ours has the memory.
    taken: bool,
    /// It was refused to a program that has asked, and will not ask again.
    left_out: bool,
    /// As leader: how much of it is in the log, and whether that is all of it.
    shipped: u64,
    complete: bool,
    said_complete: bool,
    /// Its log has named this life, and has said that nobody can follow.
    named: bool,
    said_end: bool,
    /// Something was done that cannot be in the trace; and how much output had gone around the library before.
    unrecorded: Option<&'static str>,
    adopted: Option<u64>,
    partner: Option<Report>,
    /// As follower: the leader's trace was complete at some point of the log that we have.
    exact: bool,
    /// Where the trace ended when a session began, of those that began behind the snapshot.
    opened: BySession<u64>,
    /// Why it cannot be followed any more, and the leader's life of which that is so.
    broken: Option<Broken>,
    given_up: u64,
    /// The leader's life that was given up for want of a snapshot.
    snapshotless: u64,
    due: Now,
    told: Option<Told>,
    /// Since when the follower comes to the end of the trace, to take over.
    promoting: Option<Now>,
    /// The program stands with these connections: what the takeover begins with.
    standing: Option<Vec<Standing>>,
    promotions: u64,
    /// Snapshots of the program, and whether the partner knows of such.
    snapshots: ProgramSnapshots,
    snapshots_are_spoken: bool,
}

impl Standby {
    pub(super) fn new(hot: bool, limit: u64) -> Standby {
        Standby {
            hot,
            limit,
            memory: None,
            life: 0,
            taken: false,
            left_out: false,
            shipped: 0,
            complete: false,
            said_complete: false,
            named: false,
            said_end: false,
            unrecorded: None,
            adopted: None,
            partner: None,
            exact: false,
            opened: BySession::default(),
            broken: None,
            given_up: 0,
            snapshotless: 0,
            due: Duration::ZERO,
            told: None,
            promoting: None,
            standing: None,
            promotions: 0,
            snapshots: ProgramSnapshots::default(),
            snapshots_are_spoken: true,
        }
    }

    pub(super) fn is_hot(&self) -> bool {
        self.hot
    }

    pub(super) fn poll_timeout(&self, now: Now) -> Option<Now> {
        let due = self.memory.is_some().then_some(self.due);
        due.into_iter().chain(self.snapshots.due(now)).chain(self.promoting.map(|_| now + LOOK)).min()
    }

    /// The takeover waits for the follower.
    pub(super) fn is_promoting(&self) -> bool {
        self.promoting.is_some()
    }

    /// This member takes nothing over any more.
    pub(super) fn forget_promotion(&mut self) {
        self.promoting = None;
    }

    /// The program is about to be started: what the one before it has left is of no use to it, unless it follows.
    pub(super) fn program_starts(&mut self, role: Role) {
        if !self.hot {
            return;
        }
        (self.taken, self.left_out) = (false, false);
        if role == Role::Backup && self.awaits_program_snapshot() {
            // It is replaced when that is whole.
            return;
        }
        if role != Role::Backup {
            self.broken = None;
        }
        // Whoever begins to follow begins with the first record, or with a snapshot.
        let lacks = self.memory.as_ref().is_some_and(|m| m.mode() == mode::FOLLOW && m.kept() > 0)
            && !self.begins_with_program_snapshot();
        if lacks && self.broken.is_none() && self.memory.as_ref().is_some_and(|m| !is_ill(m.state())) {
            if role == Role::Backup && self.snapshots_are_spoken {
                // It waits for one.
                return self.begin_life();
            }
            self.broken = Some(Broken::full("the program was started again, and the trace is not kept from its beginning"));
        }
        self.note_divergence();
        let follows = self.memory.as_ref().is_some_and(|m| m.mode() == mode::FOLLOW) && self.broken.is_none();
        if role == Role::Backup && follows {
            self.memory.iter().for_each(TraceMemory::begin_again);
        } else {
            self.begin_life();
        }
    }

    /// The program here could not follow the leader's.
    fn note_divergence(&mut self) {
        let Some(memory) = self.memory.as_ref().filter(|m| m.mode() == mode::FOLLOW) else { return };
        if self.broken.is_none() && is_ill(memory.state()) {
            self.broken = Some(Broken::by(memory));
        }
        if self.broken.is_some() {
            self.given_up = self.life;
        }
    }

    /// A life of the program begins, with an empty trace.
    fn begin_life(&mut self) {
        let made = crate::key::random().and_then(|life| Ok((life, TraceMemory::create(self.limit)?)));
        match made {
            Ok((life, memory)) => (self.life, self.memory) = (u64::from_ne_bytes(life).max(1), Some(memory)),
            Err(error) => {
                log::error!(error:%; "no memory for the trace of the program: the standby is not hot");
                self.memory = None;
            }
        }
        (self.shipped, self.complete, self.exact, self.taken) = (0, false, false, false);
        (self.said_complete, self.named, self.said_end) = (false, false, false);
        (self.unrecorded, self.adopted) = (None, None);
        self.standing = None;
        self.snapshots = ProgramSnapshots::default();
    }

    /// The program's first process asks for the memory.
    pub(super) fn take_memory(&mut self, role: Role) -> Option<BorrowedFd<'_>> {
        if !self.hot || self.taken {
            return None;
        }
        self.decide(role);
        // One that was started before a snapshot came cannot begin in the middle of the trace. It is replaced when that is whole.
        if self.follows() && self.program_snapshot().is_none() && self.memory.as_ref().is_some_and(|m| m.kept() > 0) {
            self.left_out = true;
            return None;
        }
        self.taken = true;
        self.memory.as_ref().and_then(TraceMemory::descriptor)
    }

    /// What the program does follows from the role, once that is known.
    pub(super) fn decide(&mut self, role: Role) {
        let Some(memory) = self.memory.as_ref().filter(|m| m.mode() == mode::WAIT) else { return };
        match role {
            Role::Master => memory.set_mode(mode::RECORD),
            // It goes on as one that nobody leads where it cannot follow.
            Role::Backup if self.broken.is_some() => memory.set_mode(mode::RECORD),
            Role::Backup => {
                // The life is the leader's, whose trace has yet to come.
                self.life = 0;
                memory.set_mode(mode::FOLLOW);
            }
            Role::Starting | Role::Fenced => {}
        }
    }

    fn leads(&self) -> bool {
        self.memory.as_ref().is_some_and(|m| m.mode() == mode::RECORD)
    }

    fn follows(&self) -> bool {
        self.memory.as_ref().is_some_and(|m| m.mode() == mode::FOLLOW)
    }
}

/// As leader.
impl Standby {
    /// The log is shipped to a new replica.
    pub(super) fn begin_shipping(&mut self) {
        // It may have some of it from before.
        let there = self.partner.as_ref().filter(|p| p.life == self.life).map_or(0, |p| p.head);
        (self.shipped, self.complete) = (self.memory.as_ref().map_or(0, |m| m.head().min(there).max(m.kept())), false);
        (self.said_complete, self.named, self.said_end) = (false, false, false);
    }

    /// Puts what the program has recorded into the log, before the commits that follow from it. The events that lead to these were
    /// taken from the ring before.
    pub(super) fn ship(&mut self, now: Now, filter: &mut Filter) {
        if self.say_end(now, filter) {
            return;
        }
        if !self.leads() {
            return;
        }
        self.note_output_around(filter.counters().adopted_bytes);
        if let Some(why) = self.unrecorded {
            return self.end(now, filter, Broken::diverged(why));
        }
        if self.complete {
            self.ship_to(now, filter, u64::MAX);
            self.note_end(now, filter);
        }
    }

    /// The program's library records no more.
    fn note_end(&mut self, now: Now, filter: &mut Filter) {
        let Some(memory) = &self.memory else { return };
        if matches!(memory.state(), state::FULL | state::REFUSED) {
            let why = Broken::by(memory);
            self.end(now, filter, why);
        }
    }

    /// The same for a partner that has yet to catch up, as fast as the link takes it.
    fn catch_up(&mut self, now: Now, filter: &mut Filter, waiting: u64) {
        if self.say_end(now, filter)
            || self.complete
            || !self.leads()
            || waiting > AHEAD && self.named
            || self.waits_for_program_snapshot()
        {
            return;
        }
        // The replica knows of another life before anything that follows from it.
        let to = if self.named { self.shipped + PIECE } else { self.shipped };
        // A program that has not begun to record has nothing that could be complete.
        let records = |m: &TraceMemory| matches!(m.state(), state::RECORDING | state::LIVE);
        self.complete = self.named && self.memory.as_ref().is_some_and(|m| records(m) && m.head() <= to);
        self.ship_to(now, filter, to);
        self.note_end(now, filter);
        if self.complete {
            log::info!(bytes = self.shipped; "the partner has the whole trace of the program");
        }
    }

    fn ship_to(&mut self, now: Now, filter: &mut Filter, to: u64) {
        let Some(memory) = &self.memory else { return };
        let to = memory.head().min(to);
        if to < self.shipped {
            // Its program has written over what it must not touch.
            let why = format!("the trace became shorter: {to} bytes after {}", self.shipped);
            return self.end(now, filter, Broken::diverged(why));
        }
        if self.complete && to - self.shipped > MOST {
            let why = format!("the trace grew by {} bytes at once", to - self.shipped);
            return self.end(now, filter, Broken::diverged(why));
        }
        if to == self.shipped && self.said_complete == self.complete && self.named {
            return;
        }
        self.named = true;
        let mut bytes = Vec::new();
        memory.copy(self.shipped, to, &mut bytes);
        let part = if self.complete { TracePart::Complete } else { TracePart::Piece };
        filter.write_trace(now, self.life, self.shipped, &bytes, part);
        (self.shipped, self.said_complete) = (to, self.complete);
    }

    /// Nothing more is recorded in this life of the program, and nobody can follow it.
    fn end(&mut self, now: Now, filter: &mut Filter, broken: Broken) {
        if self.broken.is_some() {
            return;
        }
        log::error!(why = broken.why.as_str(); "the program's state does not survive any more, its connections do");
        self.memory.iter().for_each(|m| m.set_mode(mode::OFF));
        self.broken = Some(broken);
        self.say_end(now, filter);
    }

    /// Tells a partner that nobody can follow, once in each log. Returns whether that is so.
    fn say_end(&mut self, now: Now, filter: &mut Filter) -> bool {
        let Some(broken) = self.broken.as_ref() else { return false };
        if !std::mem::replace(&mut self.said_end, true) {
            filter.write_trace(now, self.life, self.shipped, &broken.encode(), TracePart::End);
        }
        true
    }

    /// The beginning of the trace is given up when the memory fills: what the partner has, if its program follows. Without a
    /// follower whoever comes gets a snapshot; where none can be made, the trace ends there: nobody could use the rest of it.
    fn give_up_the_beginning(&self) {
        let Some(memory) = self.memory.as_ref().filter(|_| self.leads()) else { return };
        let end = memory.head().saturating_sub(most_kept(memory));
        let partner = self.partner.as_ref().filter(|p| p.life == self.life);
        let follower = partner.filter(|p| !is_ill(p.state) && p.head >= memory.kept());
        match (follower, self.snapshots.need_the_trace(memory, self.shipped)) {
            (_, Some(needed)) => memory.give_up(end.min(needed)),
            (Some(follower), None) => memory.give_up(end.min(follower.head).min(self.shipped)),
            (None, None) if partner.is_some_and(|p| is_ill(p.state)) && !self.snapshots.are_awaited() => {}
            (None, None) if self.snapshots_are_spoken && self.snapshots.may_come(memory) => memory.give_up(end),
            (None, None) => {}
        }
    }

    /// A connection is held by another process than the one that records.
    pub(super) fn held_elsewhere(&mut self) {
        self.unrecorded = Some("another process of the program has connections, too");
    }

    /// So much output was on the wire, in all, that no call of the program's has announced.
    fn note_output_around(&mut self, adopted: u64) {
        if *self.adopted.get_or_insert(adopted) != adopted {
            self.unrecorded =
                Some("the program has written to a connection by a call that has no hook (dprintf, or a system call of its own)");
        }
    }

    /// What the partner says of its follower.
    pub(super) fn hear(&mut self, now: Now, message: &Message<'_>) {
        let Message::Standby { life, head, executed, records, state, reason } = message else { return };
        let before = self.partner.as_ref().map_or(state::STARTING, |p| p.state);
        if *life == self.life && is_ill(*state) && !is_ill(before) {
            log::error!(why = reason.as_ref(); "the program on the partner does not follow ours any more: connections survive, its state does not");
        }
        if *life != self.life && self.partner.as_ref().is_some_and(|p| p.life == self.life) {
            self.partner_begins_anew();
        }
        if *life == self.life && !self.complete && self.shipped < *head {
            // It has this much from before.
            self.shipped = self.memory.as_ref().map_or(0, |m| m.head().min(*head));
        }
        // Of the same process: one that was started again begins with the first record.
        let same = |p: &&Report| p.life == *life && p.executed <= *executed;
        let before = self.partner.as_ref().filter(same).map_or(Lag::Joining, |p| p.lag);
        let lag = if self.complete { before.hears(now, *executed, *head) } else { before };
        if lag.is_close(now) {
            self.snapshots.note_follower(now);
        }
        self.partner = Some(Report {
            lag,
            executed: *executed,
            life: *life,
            head: *head,
            records: *records,
            state: *state,
            reason: reason.clone().into_owned(),
        });
    }

    /// The partner is not there any more.
    pub(super) fn forget_partner(&mut self) {
        self.partner = None;
        self.told = None;
        self.snapshots.forget_partner(self.memory.as_ref());
    }
}

/// As follower.
impl Standby {
    /// The next part of the leader's trace. Returns whether the program is to be started anew: it follows another life.
    #[must_use]
    pub(super) fn follow(&mut self, life: u64, at: u64, bytes: &[u8], part: TracePart) -> bool {
        if !self.hot || self.given_up == life {
            return false;
        }
        let mut again = false;
        if self.life != life || !self.follows() {
            again = self.taken && !(self.follows() && self.life == 0);
            if again || self.memory.is_none() || !self.follows() {
                self.begin_life();
                self.memory.iter().for_each(|m| m.set_mode(mode::FOLLOW));
            }
            (self.life, self.broken, self.exact) = (life, None, false);
        }
        if part == TracePart::End {
            self.broken.get_or_insert_with(|| Broken::decode(bytes));
            return again;
        }
        let Some(memory) = &self.memory else { return again };
        let head = memory.head();
        let end = at.saturating_add(bytes.len() as u64);
        // The link was lost, and it begins again.
        let fresh = &bytes[(head.saturating_sub(at) as usize).min(bytes.len())..];
        if at > head && self.snapshots_are_spoken && (head == 0 || self.snapshots.await_the_trace()) {
            // A snapshot comes first, or the trace behind it again from its position on.
            return again;
        }
        self.snapshots.note_trace();
        memory.give_up(memory.executed().min(end.saturating_sub(most_kept(memory))));
        let is_full = self.broken.is_none() && at <= head && !fresh.is_empty() && !memory.append(head, fresh);
        if is_full && self.snapshots_are_spoken {
            log::warn!(behind = head.saturating_sub(memory.executed()); "the program here is too slow for the trace of the partner's: it begins anew, with a snapshot");
            self.begin_life();
            return true;
        }
        if is_full || self.broken.is_none() && at > head {
            let behind = head.saturating_sub(memory.executed());
            let broken = match at > head {
                true if head == 0 => Broken::full(format!(
                    "the trace is not kept from its beginning any more, but from byte {at} on: nobody can begin to follow this program"
                )),
                true => Broken::diverged(format!("a gap in the trace: {head} bytes are here, byte {at} came")),
                false => Broken::full(format!(
                    "the memory for the trace is full: {behind} bytes of it are not executed; see standby_trace_bytes"
                )),
            };
            log::error!(why = broken.why.as_str(); "the program cannot be followed any more");
            self.broken = Some(broken);
        }
        self.exact |= part == TracePart::Complete && end <= memory.head();
        again
    }

    /// The log begins anew, with a snapshot: the trace may be behind it until it is complete again.
    pub(super) fn snapshot_begins(&mut self) {
        self.exact = false;
        self.opened.clear();
    }

    /// A session is in the log, and was not accepted before this moment of the trace.
    pub(super) fn opened(&mut self, session: SessionId) {
        if let Some(memory) = self.memory.as_ref().filter(|_| self.follows()) {
            self.opened.insert(session, memory.head());
        }
    }

    /// It is over.
    pub(super) fn ended(&mut self, session: SessionId) {
        self.opened.remove(&session);
    }

    /// What the program tells of a connection that had the addresses of a session before that began is not of that session.
    fn drop_old_names(&self, filter: &Filter, standing: &mut Vec<Standing>) {
        let opened = |s: &Standing| filter.store().find(&s.tuple).and_then(|id| self.opened.get(&id));
        standing.retain(|s| opened(s).is_none_or(|at| s.since >= *at));
    }

    /// The program has ended in order. Returns whether it followed: then it ended because the leader's did.
    #[must_use]
    pub(super) fn note_follower_ended(&mut self) -> bool {
        if !self.follows() && !self.is_promoting() {
            return false;
        }
        self.broken.get_or_insert_with(|| Broken::diverged("the master's program has ended"));
        self.given_up = self.life;
        true
    }

    /// Why the follower could not take over now; None: it could.
    fn cannot_promote(&self) -> Option<String> {
        let Some(memory) = self.memory.as_ref().filter(|_| self.follows()) else { return Some("nobody follows".to_owned()) };
        match memory.state() {
            _ if self.broken.is_some() => self.broken.as_ref().map(|broken| broken.why.clone()),
            state if is_ill(state) => Some(memory.reason()),
            state::FOLLOWING if self.exact && self.taken => None,
            _ => Some("the program has yet to catch up".to_owned()),
        }
    }

    fn state(&self) -> (u32, String) {
        match (&self.memory, &self.broken) {
            (Some(_), Some(broken)) => (broken.state, broken.why.clone()),
            (Some(memory), None) => {
                let state = memory.state();
                (state, if is_ill(state) { memory.reason() } else { String::new() })
            }
            (None, _) => (state::STARTING, String::new()),
        }
    }

    /// This member leads: why it could not follow is of no account any more.
    fn leads_from_here(&mut self) {
        self.broken = None;
    }

    /// Tells the leader how far the follower has come, if that has changed.
    fn report(&mut self, link: &mut PartnerLink) {
        // A leader that makes snapshots is told, too, that nothing is here.
        if !link.is_up() || !link.speaks(TRACE) || !self.follows() && self.given_up == 0 && !link.speaks(PROGRAM_SNAPSHOT) {
            return;
        }
        let Some(memory) = &self.memory else { return };
        let (state, reason) = if self.follows() || self.given_up != 0 { self.state() } else { (state::STARTING, String::new()) };
        let life = if self.follows() { self.life } else { self.given_up };
        let (head, records) = if self.follows() { (memory.head(), memory.records()) } else { (0, 0) };
        let executed = if self.follows() { memory.executed() } else { 0 };
        let now = (life, head, executed, state);
        if self.told.replace(now) == Some(now) {
            return;
        }
        link.send(&Message::Standby { life, head, executed, records, state, reason: reason.into() });
    }
}

impl Manager {
    /// What is due with the trace.
    pub(super) fn standby_timers(&mut self, now: Now) {
        if self.standby.memory.is_none() {
            return;
        }
        self.standby.decide(self.role.role());
        self.go_on_promoting(now);
        self.program_snapshot_timers(now);
        if self.ships_trace() {
            let acknowledged = self.filter.log().needs_replica().then(|| self.filter.log().acknowledged());
            let behind = self.replication.behind(self.filter.log().written(), acknowledged);
            self.standby.catch_up(now, &mut self.filter, behind);
        }
        if now < self.standby.due {
            return;
        }
        self.standby.due = now + EVERY;
        if self.role.role() == Role::Backup {
            self.standby.report(&mut self.link);
        } else if self.ships_trace() && self.standby.complete {
            // Of a program that only waits and looks at the clock.
            self.drain_apps();
        }
        self.standby.give_up_the_beginning();
        self.standby_health();
    }

    /// Whether what the program has recorded goes into the log now. A program that was started after the one before it had died
    /// has nothing to say while the partner's may take over with the state of that one.
    pub(super) fn ships_trace(&self) -> bool {
        let leaves = self.takeover.has_died() || self.handover.is_under_way();
        self.replication.ships() && self.link.speaks(TRACE) && self.serves() && !leaves
    }

    /// A follower that has diverged makes room for a program that can take the connections over by the warm rules.
    fn standby_health(&mut self) {
        let standby = &mut self.standby;
        let ill = standby.follows() && standby.taken && { is_ill(standby.state().0) };
        if !ill || self.role.role() != Role::Backup {
            return;
        }
        standby.note_divergence();
        let why = standby.broken.as_ref().map(|broken| broken.why.as_str());
        log::error!(why; "the program here does not follow the master's any more: it is started anew, without its state");
        standby.report(&mut self.link);
        if let Some(program) = &mut self.program {
            program.replace();
        }
    }

    /// The partner's log has a part of the trace.
    pub(super) fn follow_trace(&mut self, life: u64, at: u64, bytes: &[u8], part: TracePart) {
        if self.standby.follow(life, at, bytes, part) {
            log::info!("the partner's program has begun a new life: ours is started anew to follow it");
            if let Some(program) = &mut self.program {
                program.replace();
            }
        }
    }

    /// This member takes over. The program comes to the end of the trace first, if it follows ([`Standby::is_promoting`]); else it
    /// is started anew, and the sessions wait for it.
    pub(super) fn promote_program(&mut self) {
        if !self.standby.hot {
            return;
        }
        if !self.standby.follows() {
            // It waits for its connections, and has recorded from its beginning.
            return self.standby.leads_from_here();
        }
        if let Some(why) = self.standby.cannot_promote() {
            log::warn!(why = why.as_str(); "the program does not take over with its state");
            return self.replace_follower();
        }
        let began = self.now();
        self.standby.memory.iter().for_each(|m| m.set_mode(mode::PROMOTE));
        self.standby.promoting = Some(began);
        // As a rule it is there at once. Else it may be asking us for something, and the event loop goes on.
        while !self.has_promoted() && self.now() < began + AT_ONCE {
            std::thread::sleep(NAP);
        }
    }

    /// Whether the program goes on with its state, or will never do so.
    fn has_promoted(&mut self) -> bool {
        let Some(began) = self.standby.promoting else { return true };
        let now = self.now();
        let state = self.standby.memory.as_ref().map_or(state::REFUSED, TraceMemory::state);
        let lives = || self.program.as_ref().is_some_and(Program::lives);
        if state == state::STANDING {
            self.standby.promoting = None;
            self.leads_with_state(now - began);
        } else if !matches!(state, state::FOLLOWING | state::AT_END) || now > began + CATCH_UP || !lives() {
            self.standby.promoting = None;
            let (head, executed) = self.standby.memory.as_ref().map_or((0, 0), |m| (m.head(), m.executed()));
            log::error!(state, head, executed, why = self.standby.state().1.as_str(); "the program did not come to the end of the trace: it is started anew");
            self.replace_follower();
        }
        self.standby.promoting.is_none()
    }

    /// A takeover that waits for the follower.
    fn go_on_promoting(&mut self, now: Now) {
        // Cut off, it stays postponed until this member is in reach again.
        if self.standby.is_promoting() && self.has_promoted() && self.role.role() == Role::Master {
            self.host.forget_takeover();
            self.take_office(now, true);
            self.pair_if_postponed();
        }
    }

    fn leads_with_state(&mut self, took: Duration) {
        let mut standing = self.standby.memory.as_ref().map(TraceMemory::read_standing).unwrap_or_default();
        self.standby.drop_old_names(&self.filter, &mut standing);
        log::info!(connections = standing.len(), us = took.as_micros() as u64; "the program goes on with its state");
        self.standby.standing = Some(standing);
        self.standby.promotions += 1;
        // It records from here on, behind what it has followed.
        self.standby.memory.iter().for_each(|m| m.set_mode(mode::RECORD));
        self.standby.begin_shipping();
    }

    /// This member is master, and has no sessions to take over: nobody leads the program that follows.
    pub(super) fn lead_without_state(&mut self) {
        if self.standby.follows() {
            self.replace_follower();
        } else {
            self.standby.leads_from_here();
        }
    }

    fn replace_follower(&mut self) {
        self.standby.leads_from_here();
        self.standby.begin_life();
        if let Some(program) = &mut self.program {
            program.replace();
        }
    }

    /// Where the program stands, if one takes over that has followed another.
    pub(super) fn take_standing(&mut self) -> Option<Vec<Standing>> {
        self.standby.standing.take()
    }

    /// The part of `tcpr status` about it.
    pub(super) fn standby_status(&self) -> StandbyStatus {
        let (now, master) = (self.now(), matches!(self.role.role(), Role::Master | Role::Fenced));
        let standby = &self.standby;
        let (own, why) = standby.state();
        let memory = standby.memory.as_ref().filter(|_| standby.hot);
        let records = memory.map_or(0, TraceMemory::records);
        let partner = standby.partner.as_ref().filter(|p| master && p.life == standby.life);
        let word = |state: u32, complete: bool| match state {
            state::FOLLOWING | state::AT_END if complete => StandbyState::Following,
            state::DIVERGED | state::REFUSED => StandbyState::Diverged,
            state::FULL => StandbyState::Full,
            _ => StandbyState::Joining,
        };
        let (state, reason) = match partner {
            _ if memory.is_none() => (StandbyState::None, String::new()),
            _ if !why.is_empty() => (word(own, false), why),
            None if master && standby.partner.is_none() => (StandbyState::None, String::new()),
            Some(p) if !is_ill(p.state) && p.lag.time(now) >= CATCH_UP => {
                (StandbyState::Joining, "the program on the partner does not keep up".to_owned())
            }
            Some(p) => (word(p.state, standby.complete && p.lag.is_close(now)), p.reason.clone()),
            None if standby.follows() => (word(own, standby.exact), String::new()),
            None => (StandbyState::Joining, String::new()),
        };
        let behind = partner.map(|p| records.saturating_sub(p.records));
        let lag = partner.map_or(Duration::ZERO, |p| p.lag.time(now));
        StandbyStatus {
            mode: self.config.service.standby,
            state,
            lag_records: behind,
            lag_ms: behind.map(|n| if n == 0 { 0.0 } else { lag.as_micros() as f64 / 1000.0 }),
            reason: Some(reason).filter(|reason| !reason.is_empty()),
            trace_bytes: memory.map_or(0, |m| m.head().saturating_sub(m.kept())),
            promotions: standby.promotions,
        }
    }
}
