//! The processes of the application: which handles name which sessions, what their threads are in the middle of, whose
//! sudden endings are to be explained, and how often a session's input was there when one died. It holds the turn policy,
//! which says what is committed.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use crate::tuple::SessionId;
use crate::turn::{Thread, TurnPolicy};
use crate::Now;

/// Most handles of one process, and most threads whose open turns are remembered: what it makes up must not eat the
/// manager's memory. (A process may have no more descriptors, fs.nr_open.)
const MOST_HANDLES: usize = 1 << 20;
const MOST_THREADS: usize = 1 << 16;
/// How long a FIN or RST that nobody announced waits before we ask whether its process lives.
pub(super) const SUSPICIOUS: Duration = Duration::from_millis(50);
/// Without hooks: most connections that are asked about when another one writes.
const MAX_READERS: usize = 64;

/// A thread of the process with this channel.
pub(super) fn thread_key(channel: u32, thread: u32) -> Thread {
    Thread::from(channel) << 32 | Thread::from(thread)
}

/// The channel of a thread's process.
pub(super) fn channel_of(thread: Thread) -> u32 {
    (thread >> 32) as u32
}

/// Input that was read and not answered when a process died.
#[derive(Clone, Copy, Debug)]
struct Deaths {
    /// Where it begins.
    from: u64,
    times: u32,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Processes {
    pub turns: TurnPolicy,
    /// By channel and handle.
    handles: HashMap<u32, HashMap<u32, SessionId>>,
    /// How many there are.
    held: usize,
    /// Channels of processes that have ended in order and that nobody has found dead yet; and of those whose handles are
    /// forgotten, for they are not believed.
    ended: BTreeSet<u32>,
    cut_off: BTreeSet<u32>,
    /// Writes whose outcome the process has not told yet, by channel and handle.
    intents: Vec<(u32, u32)>,
    /// Threads whose turn is open, for the end of a process ends them all.
    in_turn: BTreeSet<Thread>,
    /// Sessions closed in turns that are not over, and in turns that just ended.
    closing: Vec<(Thread, SessionId)>,
    closed: Vec<SessionId>,
    /// FINs and RSTs that no hook announced and whose process may be dying, and those that were asked about.
    suspicious: VecDeque<(Now, SessionId)>,
    suspects: BTreeSet<SessionId>,
    deaths: HashMap<SessionId, Deaths>,
    /// When a process died last.
    last_death: Option<Now>,
    /// Without hooks: sessions with input of which it is not known that it was read.
    readers: BTreeSet<SessionId>,
    /// Those that were asked about before the output that is judged now.
    asked: Vec<SessionId>,
    /// How much input was read of the session whose output is judged now, where the kernel has just told it.
    read_known: Option<(SessionId, u64)>,
}

impl Processes {
    pub fn new(max_turn: Duration) -> Processes {
        Processes {
            turns: TurnPolicy::new(max_turn),
            handles: HashMap::new(),
            held: 0,
            ended: BTreeSet::new(),
            cut_off: BTreeSet::new(),
            intents: Vec::new(),
            in_turn: BTreeSet::new(),
            closing: Vec::new(),
            closed: Vec::new(),
            suspicious: VecDeque::new(),
            suspects: BTreeSet::new(),
            deaths: HashMap::new(),
            last_death: None,
            readers: BTreeSet::new(),
            asked: Vec::new(),
            read_known: None,
        }
    }

    /// Forgets all sessions, with what is under way in them. The deaths stay known: what kills the server comes back.
    pub fn forget_sessions(&mut self, max_turn: Duration) {
        let deaths = std::mem::take(&mut self.deaths);
        *self = Processes { deaths, last_death: self.last_death, ..Processes::new(max_turn) };
    }

    /// Forgets a session that is over. `lives`: whether another one is not.
    pub fn forget_session(&mut self, id: SessionId, lives: impl Fn(SessionId) -> bool) {
        self.readers.remove(&id);
        while self.suspicious.front().is_some_and(|(_, id)| !lives(*id)) {
            self.suspicious.pop_front();
        }
        self.suspects.remove(&id);
        self.deaths.remove(&id);
    }

    /// Forgets what the processes of these channels were in the middle of.
    fn forget_processes(&mut self, channels: &BTreeSet<u32>) {
        for channel in channels {
            self.held -= self.handles.remove(channel).map_or(0, |handles| handles.len());
        }
        self.closing.retain(|(t, _)| !channels.contains(&channel_of(*t)));
        self.intents.retain(|(c, _)| !channels.contains(c));
        self.in_turn.retain(|t| !channels.contains(&channel_of(*t)));
    }

    /// What the process of this channel says is not believed any more.
    pub fn cut_off(&mut self, channel: u32) {
        self.forget_processes(&[channel].into());
        self.cut_off.insert(channel);
    }

    /// Whether it is so.
    pub fn is_cut_off(&self, channel: u32) -> bool {
        self.cut_off.contains(&channel)
    }

    /// The process of this channel has ended in order. It is not found dead yet.
    pub fn ended(&mut self, channel: u32) {
        self.ended.insert(channel);
    }

    /// Whether it has.
    pub fn has_ended(&self, channel: u32) -> bool {
        self.ended.contains(&channel)
    }

    /// The processes of these channels are dead.
    pub fn gone(&mut self, channels: &BTreeSet<u32>) {
        self.forget_processes(channels);
        self.ended.retain(|channel| !channels.contains(channel));
        self.cut_off.retain(|channel| !channels.contains(channel));
    }

    // ---- handles -------------------------------------------------------------------------------------

    /// Whether a process may have one more handle.
    pub fn has_room(&self, channel: u32) -> bool {
        self.held < MOST_HANDLES || self.handles.get(&channel).is_none_or(|handles| handles.len() < MOST_HANDLES)
    }

    pub fn attach(&mut self, channel: u32, handle: u32, session: SessionId) {
        let before = self.handles.entry(channel).or_default().insert(handle, session);
        self.held += usize::from(before.is_none());
    }

    /// What a process names so.
    pub fn session(&self, channel: u32, handle: u32) -> Option<SessionId> {
        self.handles.get(&channel)?.get(&handle).copied()
    }

    pub fn detach(&mut self, channel: u32, handle: u32) -> Option<SessionId> {
        let session = self.handles.get_mut(&channel)?.remove(&handle)?;
        self.held -= 1;
        Some(session)
    }

    /// All handles of a process, in order.
    pub fn handles_of(&self, channel: u32) -> Vec<u32> {
        let mut handles: Vec<u32> = self.handles.get(&channel).into_iter().flat_map(HashMap::keys).copied().collect();
        handles.sort_unstable();
        handles
    }

    /// The writes that are under way now. Returns the sessions of which some was before and is not any more.
    pub fn set_intents(&mut self, intents: impl IntoIterator<Item = (u32, u32)>) -> Vec<SessionId> {
        let before = std::mem::take(&mut self.intents);
        self.intents.extend(intents);
        let over = before.into_iter().filter(|key| !self.intents.contains(key));
        over.filter_map(|(channel, handle)| self.session(channel, handle)).collect()
    }

    /// Whether a write to this session is under way.
    pub fn is_written(&self, session: SessionId) -> bool {
        self.intents.iter().any(|(channel, handle)| self.session(*channel, *handle) == Some(session))
    }

    // ---- turns ---------------------------------------------------------------------------------------

    /// The thread does something: its turn is open.
    pub fn in_turn(&mut self, channel: u32, thread: u32) -> Thread {
        let thread = thread_key(channel, thread);
        if self.in_turn.len() < MOST_THREADS {
            self.in_turn.insert(thread);
        }
        thread
    }

    /// The threads of a process whose turn is open.
    pub fn threads_of(&self, channel: u32) -> Vec<u32> {
        let first = thread_key(channel, 0);
        self.in_turn.range(first..=first | u64::from(u32::MAX)).map(|thread| *thread as u32).collect()
    }

    /// The thread's turn is over, and what it closed in that is closed.
    pub fn end_turn(&mut self, now: Now, thread: Thread) {
        self.in_turn.remove(&thread);
        self.turns.turn_end(now, thread);
        let closed = &mut self.closed;
        self.closing.retain(|&(t, session)| {
            if t == thread {
                closed.push(session);
            }
            t != thread
        });
    }

    /// The thread closes a session in its turn.
    pub fn closes(&mut self, thread: Thread, session: SessionId) {
        self.closing.push((thread, session));
    }

    /// Whether the thread has closed some session in its turn.
    pub fn has_closed_in_turn(&self, thread: Thread) -> bool {
        self.closing.iter().any(|(t, _)| *t == thread)
    }

    /// Whether some thread that closes this session has yet to come to the end of its turn.
    pub fn is_closing(&self, session: SessionId) -> bool {
        self.closing.iter().any(|(_, id)| *id == session)
    }

    #[cfg(test)]
    pub fn closings(&self) -> usize {
        self.closing.len()
    }

    /// Nobody closes the session, whatever was told.
    pub fn reopen(&mut self, session: SessionId) {
        self.closing.retain(|(_, id)| *id != session);
    }

    /// Sessions that were closed in turns that are over since this was asked.
    pub fn take_closed(&mut self) -> Vec<SessionId> {
        std::mem::take(&mut self.closed)
    }

    // ---- sudden endings ------------------------------------------------------------------------------

    /// At this time it is to be asked what has become of the session.
    pub fn suspect(&mut self, due: Now, session: SessionId) {
        self.suspicious.push_back((due, session));
    }

    /// The next session of which it is to be asked by now.
    pub fn next_suspicious(&mut self, now: Now) -> Option<SessionId> {
        self.suspicious.front().filter(|(due, _)| *due <= now)?;
        self.suspicious.pop_front().map(|(_, session)| session)
    }

    /// When it is to be asked.
    pub fn poll_timeout(&self) -> Option<Now> {
        self.suspicious.front().map(|(due, _)| *due)
    }

    /// It is asked whether the processes of this session live.
    pub fn ask_about(&mut self, session: SessionId) {
        self.suspects.insert(session);
    }

    /// Takes those of them that the answer is about.
    pub fn take_suspects(&mut self, which: impl Fn(SessionId) -> bool) -> Vec<SessionId> {
        let (taken, others): (BTreeSet<_>, _) = std::mem::take(&mut self.suspects).into_iter().partition(|id| which(*id));
        self.suspects = others;
        taken.into_iter().collect()
    }

    // ---- deaths --------------------------------------------------------------------------------------

    /// A process has died.
    pub fn died(&mut self, now: Now) {
        self.last_death = Some(now);
    }

    pub fn last_death(&self) -> Option<Now> {
        self.last_death
    }

    /// It had read input of this session from that offset on, and not answered.
    pub fn died_of(&mut self, session: SessionId, from: u64) {
        let deaths = self.deaths.entry(session).or_insert(Deaths { from, times: 0 });
        deaths.times = if deaths.from == from { deaths.times + 1 } else { 1 };
        deaths.from = from;
    }

    /// How often that has happened with the same input.
    pub fn deaths_of(&self, session: SessionId) -> u32 {
        self.deaths.get(&session).map_or(0, |deaths| deaths.times)
    }

    pub fn forget_deaths(&mut self) {
        self.deaths.clear();
    }

    // ---- programs without hooks ----------------------------------------------------------------------

    /// Of the session's input it is not known that it was read.
    pub fn may_read(&mut self, session: SessionId) {
        self.readers.insert(session);
    }

    /// It was.
    pub fn has_read(&mut self, session: SessionId) {
        self.readers.remove(&session);
    }

    /// Output of this session is about to be judged: which others it may answer.
    pub fn ask_readers(&mut self, session: SessionId) -> &[SessionId] {
        self.asked = self.readers.iter().copied().filter(|other| *other != session).take(MAX_READERS).collect();
        &self.asked
    }

    /// How much input of this session was read is known for the output that is judged now.
    pub fn set_read_known(&mut self, session: SessionId, read: u64) {
        self.read_known = Some((session, read));
    }

    /// It is known for one packet.
    pub fn take_read_known(&mut self, session: SessionId) -> Option<u64> {
        self.read_known.take_if(|(of, _)| *of == session).map(|(_, read)| read)
    }

    /// That packet is judged.
    pub fn forget_read_known(&mut self) {
        self.read_known = None;
    }

    /// Output that no hook announced was sent on this session: it answers what was read of it and of those that were asked.
    pub fn adopted(&mut self, now: Now, session: SessionId, n: u64) {
        self.turns.adopted(now, session, n, &std::mem::take(&mut self.asked));
    }
}
