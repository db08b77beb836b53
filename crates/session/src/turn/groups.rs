//! Turns that are open, and which of them commit as one.

use std::collections::HashMap;

use super::progress::{Progress, NO_GROUP};
use super::sleep::{Asleep, Look, Rest};
use super::{channel_of, Sessions, Thread};
use crate::data;
use crate::tuple::SessionId;
use crate::Now;

/// Past this many open turns, further ones end with each event: an application that makes up thread
/// numbers must not eat the manager's memory.
pub(super) const MAX_OPEN_TURNS: usize = 1 << 16;
/// Most threads that are asked about at a time.
const MOST_ASKED: usize = 64;

#[derive(Debug)]
struct OpenTurn {
    group: u32,
    /// The session this thread read last, and how far: a write answers it.
    last_read: Option<(SessionId, u64)>,
    /// It looked for events without waiting, and what it had written until then was let go as open.
    polled: bool,
    /// It waits in the middle of a write.
    blocked: bool,
    asleep: Option<Asleep>,
}

/// Open turns that commit as one.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// Threads whose turn has not ended.
    threads: Vec<Thread>,
    sessions: Vec<SessionId>,
    deadline: Option<Now>,
    /// It was put off.
    late: bool,
    look: Option<Look>,
    /// More than one session was touched (also if one is closed meanwhile).
    several: bool,
    /// A session was touched whose port is not `independent`.
    dependent: bool,
    /// The process of the threads; `shared` if there is more than one.
    channel: u32,
    shared: bool,
    /// What the application's data costs that it has given in this turn.
    data: u64,
    /// There are values of the service among it: the turn is all or nothing, as one over several sessions is.
    puts: bool,
}

impl Group {
    pub fn threads(&self) -> &[Thread] {
        &self.threads
    }

    pub fn sessions(&self) -> &[SessionId] {
        &self.sessions
    }

    pub fn is_several(&self) -> bool {
        self.several
    }

    pub fn is_dependent(&self) -> bool {
        self.dependent
    }

    /// Its sessions depend on each other.
    pub fn is_tied(&self) -> bool {
        self.several && self.dependent
    }

    pub fn is_shared(&self) -> bool {
        self.shared
    }

    pub fn has_puts(&self) -> bool {
        self.puts
    }
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// Only threads with an open turn are in here.
    turns: HashMap<Thread, OpenTurn>,
    groups: Vec<Group>,
    free: Vec<u32>,
    /// Threads to ask about: see `poll_asked`.
    asked: Vec<Thread>,
    /// When something was heard last.
    heard: Now,
}

impl Groups {
    /// How many groups there are, those included that are free.
    pub fn len(&self) -> u32 {
        self.groups.len() as u32
    }

    pub fn get(&self, g: u32) -> &Group {
        &self.groups[g as usize]
    }

    fn get_mut(&mut self, g: u32) -> &mut Group {
        &mut self.groups[g as usize]
    }

    pub fn iter(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter()
    }

    // ---- threads ---------------------------------------------------------------------------------------

    /// The group of a thread whose turn is open.
    pub fn of(&self, t: Thread) -> Option<u32> {
        self.turns.get(&t).map(|turn| turn.group)
    }

    /// Whether there may be one more open turn.
    pub fn has_room(&self) -> bool {
        self.turns.len() < MAX_OPEN_TURNS
    }

    /// Whether there is one more than may be.
    pub fn is_overfull(&self) -> bool {
        self.turns.len() > MAX_OPEN_TURNS
    }

    /// The open turns of the threads of these processes, in order.
    pub fn threads_of(&self, channels: impl Fn(&u32) -> bool) -> Vec<Thread> {
        let mut threads: Vec<Thread> = self.turns.keys().copied().collect();
        threads.retain(|t| channels(&channel_of(*t)));
        threads.sort_unstable();
        threads
    }

    pub fn last_read(&self, t: Thread) -> Option<(SessionId, u64)> {
        self.turns.get(&t)?.last_read
    }

    pub fn set_last_read(&mut self, t: Thread, read: Option<(SessionId, u64)>) {
        if let Some(turn) = self.turns.get_mut(&t) {
            turn.last_read = read;
        }
    }

    /// Whether the thread has looked for events in its turn without waiting.
    pub fn has_polled(&self, t: Thread) -> bool {
        self.turns.get(&t).is_some_and(|turn| turn.polled)
    }

    pub fn set_polled(&mut self, t: Thread) {
        if let Some(turn) = self.turns.get_mut(&t) {
            turn.polled = true;
        }
    }

    /// The thread waits in the middle of a write. Returns the group of its turn, if one is open.
    pub fn set_blocked(&mut self, t: Thread) -> Option<u32> {
        let turn = self.turns.get_mut(&t)?;
        turn.blocked = true;
        Some(turn.group)
    }

    /// The thread's turn is open, and its first one in a new group.
    pub fn open(&mut self, t: Thread) -> u32 {
        let g = self.new_group();
        self.add_thread(g, t, None);
        g
    }

    pub fn add_thread(&mut self, g: u32, t: Thread, last_read: Option<(SessionId, u64)>) {
        let group = self.get_mut(g);
        if group.threads.is_empty() {
            group.channel = channel_of(t);
        }
        group.shared |= group.channel != channel_of(t);
        group.threads.push(t);
        self.turns.insert(t, OpenTurn { group: g, last_read, polled: false, blocked: false, asleep: None });
    }

    /// The thread's turn is over. Returns its group, and whether no other turn is open in that.
    pub fn remove_thread(&mut self, t: Thread) -> Option<(u32, bool)> {
        let turn = self.turns.remove(&t)?;
        let group = self.get_mut(turn.group);
        if let Some(i) = group.threads.iter().rposition(|x| *x == t) {
            group.threads.swap_remove(i);
        }
        Some((turn.group, group.threads.is_empty()))
    }

    #[cfg(test)]
    pub fn open_turns(&self) -> usize {
        self.turns.len()
    }

    /// Whether all groups are free.
    #[cfg(test)]
    pub fn are_free(&self) -> bool {
        self.free.len() == self.groups.len()
    }

    // ---- sessions --------------------------------------------------------------------------------------

    pub fn add_session(&mut self, g: u32, s: SessionId, p: &mut Progress) {
        let group = self.get_mut(g);
        group.several |= !group.sessions.is_empty();
        group.sessions.push(s);
        group.dependent |= !p.independent;
        p.join(g);
    }

    /// A session is over: its number may be given to another one while the turn still goes on.
    pub fn forget_session(&mut self, g: u32, s: SessionId) {
        if g != NO_GROUP {
            self.get_mut(g).sessions.retain(|x| *x != s);
        }
        for turn in self.turns.values_mut() {
            turn.last_read.take_if(|(r, _)| *r == s);
        }
    }

    /// Takes the list of sessions, to be given back with [`Self::keep_sessions`].
    pub fn take_sessions(&mut self, g: u32) -> Vec<SessionId> {
        std::mem::take(&mut self.get_mut(g).sessions)
    }

    pub fn keep_sessions(&mut self, g: u32, sessions: Vec<SessionId>) {
        self.get_mut(g).sessions = sessions;
    }

    // ---- groups ----------------------------------------------------------------------------------------

    fn new_group(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.groups.push(Group::default());
            (self.groups.len() - 1) as u32
        })
    }

    /// Two groups become one. Returns which one, which other one is gone, and whether that had values of the service.
    pub fn merge(&mut self, a: u32, b: u32, sessions: &mut Sessions) -> (u32, u32, bool) {
        let size = |g: u32| self.get(g).sessions.len() + self.get(g).threads.len();
        let (into, from) = if size(a) >= size(b) { (a, b) } else { (b, a) };
        let mut from_group = std::mem::take(self.get_mut(from));
        for t in &from_group.threads {
            if let Some(turn) = self.turns.get_mut(t) {
                turn.group = into;
            }
        }
        for s in &from_group.sessions {
            if let Some(p) = sessions.get_mut(s) {
                p.group = into;
            }
        }
        let group = self.get_mut(into);
        group.puts |= from_group.puts;
        group.threads.append(&mut from_group.threads);
        group.sessions.append(&mut from_group.sessions);
        group.several |= from_group.several || group.sessions.len() > 1;
        group.dependent |= from_group.dependent;
        group.shared |= from_group.shared || group.channel != from_group.channel;
        group.data += from_group.data;
        group.deadline = either(group.deadline, from_group.deadline, Now::min);
        // Both have one, or have had and nothing to say.
        group.look = either(group.look, from_group.look, Look::sooner);
        self.free.push(from);
        (into, from, from_group.puts)
    }

    /// Lets go of all sessions and threads of the group.
    pub fn dissolve(&mut self, g: u32, sessions: &mut Sessions) {
        self.release_sessions(g, sessions);
        let group = &mut self.groups[g as usize];
        group.threads.drain(..).for_each(|t| {
            self.turns.remove(&t);
        });
        group.shared = false;
        (group.deadline, group.look) = (None, None);
        self.free.push(g);
    }

    fn release_sessions(&mut self, g: u32, sessions: &mut Sessions) {
        let group = self.get_mut(g);
        for s in group.sessions.drain(..) {
            if let Some(p) = sessions.get_mut(&s) {
                p.group = NO_GROUP;
            }
        }
        group.several = false;
        group.dependent = false;
        group.puts = false;
        group.data = 0;
        group.late = false;
    }

    /// The group was just committed in mid-turn: nothing ties its threads together any more. Without
    /// this, threads whose turns always overlap would stay one group for ever.
    pub fn split(&mut self, g: u32, sessions: &mut Sessions) {
        self.release_sessions(g, sessions);
        let threads = std::mem::take(&mut self.get_mut(g).threads);
        self.get_mut(g).shared = false;
        for (i, t) in threads.into_iter().enumerate() {
            let last_read = self.turns.remove(&t).and_then(|turn| turn.last_read);
            let own = if i == 0 { g } else { self.new_group() };
            self.add_thread(own, t, last_read);
        }
    }

    // ---- the application's data ------------------------------------------------------------------------

    /// Data that costs so much is given in the turn of the group. False: that is more than one may have.
    pub fn give_data(&mut self, g: u32, cost: u64) -> bool {
        let group = self.get_mut(g);
        let fits = group.data + cost <= data::MAX_TURN;
        group.data += if fits { cost } else { 0 };
        fits
    }

    /// Data that cost so much is committed before the turn is over, if the session is in one.
    pub fn commit_data(&mut self, g: u32, cost: u64) {
        if let Some(group) = self.groups.get_mut(g as usize) {
            group.data = group.data.saturating_sub(cost);
        }
    }

    /// There are values of the service among the data.
    pub fn set_puts(&mut self, g: u32) {
        let group = self.get_mut(g);
        (group.puts, group.several, group.dependent) = (true, true, true);
    }

    // ---- time ------------------------------------------------------------------------------------------

    /// It is this time, though nothing was heard of any thread.
    pub fn at(&mut self, now: Now) {
        self.heard = self.heard.max(now);
    }

    /// Something was heard of the thread: it is awake, and from now on it may fall asleep.
    pub fn hear(&mut self, now: Now, t: Thread) {
        self.heard = now;
        let Some(turn) = self.turns.get_mut(&t) else { return };
        (turn.blocked, turn.asleep) = (false, None);
        let group = &mut self.groups[turn.group as usize];
        group.look.get_or_insert(Look::first(now));
    }

    /// The same, when something was heard last.
    pub fn hear_now(&mut self, t: Thread) {
        self.hear(self.heard, t);
    }

    /// When something was heard last.
    pub fn heard(&self) -> Now {
        self.heard
    }

    /// The turn is to let its output go at that time, if not sooner.
    pub fn set_deadline(&mut self, g: u32, deadline: Now) {
        self.get_mut(g).deadline.get_or_insert(deadline);
    }

    pub fn clear_deadline(&mut self, g: u32) {
        self.get_mut(g).deadline = None;
    }

    /// Takes the deadline if it is over. Returns whether it was, and whether one was before.
    pub fn take_deadline(&mut self, g: u32, now: Now) -> Option<bool> {
        let group = self.get_mut(g);
        group.deadline.take_if(|deadline| *deadline <= now)?;
        Some(std::mem::replace(&mut group.late, true))
    }

    pub fn poll_timeout(&self) -> Option<Now> {
        self.groups.iter().flat_map(|g| [g.deadline, g.look.map(Look::at)]).flatten().min()
    }

    // ---- threads that sleep ----------------------------------------------------------------------------

    /// Asks about the threads of the groups that have something to say when they end, as `keeps` tells.
    pub fn ask_sleepers(&mut self, now: Now, keeps: impl Fn(&Group) -> bool) {
        for group in &mut self.groups {
            let Some(look) = group.look.filter(|look| look.at() <= now) else { continue };
            group.look = keeps(group).then(|| look.again(now));
            if group.look.is_some() {
                let awake = |t: &Thread| self.turns.get(t).is_some_and(|turn| !turn.blocked);
                let room = MOST_ASKED.saturating_sub(self.asked.len());
                self.asked.extend(group.threads.iter().copied().filter(awake).take(room));
            }
        }
    }

    pub fn poll_asked(&mut self) -> std::vec::Drain<'_, Thread> {
        self.asked.drain(..)
    }

    /// What the kernel says of a thread. Returns whether it sleeps, and not for a moment only. `answers`: whether the end of a turn
    /// over these sessions would answer something.
    pub fn rests(&mut self, now: Now, t: Thread, rest: Rest, answers: impl FnOnce(&[SessionId]) -> bool) -> bool {
        let Some(turn) = self.turns.get_mut(&t) else { return false };
        let Rest::Asleep { times, lock } = rest else {
            turn.asleep = None;
            return false;
        };
        if turn.blocked {
            return false;
        }
        let asleep = Asleep::seen(now, times, turn.asleep);
        turn.asleep = Some(asleep);
        asleep.is_long(now, answers(&self.groups[turn.group as usize].sessions), lock)
    }
}

/// The one that there is, or what both say together.
fn either<T>(a: Option<T>, b: Option<T>, both: impl FnOnce(T, T) -> T) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(both(a, b)),
        (a, b) => a.or(b),
    }
}
