//! What the hooks tell: descriptors, reads, writes, turns, and processes that end.

use super::{Filter, Mode, Stage};
use crate::record::{self, Committed, MAX_OPEN};
use crate::tuple::{FourTuple, SessionId};
use crate::turn::Thread;
use crate::Now;

/// How a process came to hold a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// By accept.
    Accepted,
    /// By connect.
    Connected,
    /// By accept, restored after a takeover.
    Recovered,
    /// From its parent.
    Inherited,
}

fn thread_key(channel: u32, thread: u32) -> Thread {
    Thread::from(channel) << 32 | Thread::from(thread)
}

impl Filter {
    /// A process holds a connection under a handle. Connections that are no session of ours (local ones) are
    /// passed over, and so is everything said of them.
    pub fn attach(&mut self, now: Now, channel: u32, handle: u32, origin: Origin, tuple: &FourTuple) {
        let Some(session) = self.store.find(tuple) else { return };
        if self.mode == Mode::Passive {
            return;
        }
        self.handles.insert((channel, handle), session);
        let policy = self.policy(tuple.local.port());
        let s = self.store.get(session).expect("found");
        let live = self.live.get_mut(&session).expect("a master's session is live");
        if !live.owners.contains(&channel) {
            live.owners.push(channel);
        }
        live.orphan = false;
        if !live.attached {
            live.attached = true;
            self.turns.open(session, policy, s.in_done, s.out_done, s.out_base);
            let (a, b) = s.input.as_slices();
            for (offset, bytes) in [(s.in_done, a), (s.in_done + a.len() as u64, b)] {
                if !bytes.is_empty() {
                    self.turns.input(session, offset, bytes);
                }
            }
        }
        if origin == Origin::Recovered && live.stage == Stage::Restored {
            self.handed_over(now, session);
        }
    }

    fn session_of(&self, channel: u32, handle: u32) -> Option<SessionId> {
        let id = *self.handles.get(&(channel, handle))?;
        self.live.get(&id)?.attached.then_some(id)
    }

    /// Bytes that the kernel took from the application; `short`: fewer than it offered.
    pub fn write_out(&mut self, now: Now, channel: u32, thread: u32, handle: u32, bytes: &[u8], short: bool) {
        let Some(session) = self.session_of(channel, handle) else { return };
        self.live.get_mut(&session).expect("live").pending.extend(bytes);
        self.turns.write(now, thread_key(channel, thread), session, bytes.len() as u64, short);
    }

    /// Bytes that the application wrote again after a failover, and that the hook swallowed.
    pub fn absorbed(&mut self, now: Now, channel: u32, thread: u32, handle: u32, n: u64) {
        if let Some(session) = self.session_of(channel, handle) {
            self.turns.write(now, thread_key(channel, thread), session, n, false);
        }
    }

    /// Bytes that the application has taken from the socket.
    pub fn read(&mut self, now: Now, channel: u32, thread: u32, handle: u32, n: u64) {
        if let Some(session) = self.session_of(channel, handle) {
            self.turns.read(now, thread_key(channel, thread), session, n);
        }
    }

    /// `tcpr_consume`.
    pub fn consume(&mut self, channel: u32, thread: u32, handle: u32, n: u64) {
        if let Some(session) = self.session_of(channel, handle) {
            self.turns.consume(thread_key(channel, thread), session, n);
        }
    }

    /// A thread waits, or said commit: its turn is over.
    pub fn turn_end(&mut self, now: Now, channel: u32, thread: u32) {
        if self.mode != Mode::Passive {
            self.turns.turn_end(now, thread_key(channel, thread));
        }
    }

    /// The application ends its output.
    pub fn shutdown(&mut self, now: Now, channel: u32, thread: u32, handle: u32) {
        if let Some(session) = self.session_of(channel, handle) {
            self.live.get_mut(&session).expect("live").fin_asked = true;
            self.turns.shutdown(now, thread_key(channel, thread), session);
        }
    }

    /// A process closes its last descriptor of a connection. `abort`: the kernel will reset it.
    pub fn close(&mut self, now: Now, channel: u32, thread: u32, handle: u32, abort: bool) {
        let Some(session) = self.session_of(channel, handle) else { return };
        self.handles.remove(&(channel, handle));
        let live = self.live.get_mut(&session).expect("live");
        live.owners.retain(|&c| c != channel);
        if live.owners.is_empty() {
            live.fin_asked = true;
            live.closed = true;
            live.abort |= abort;
            self.turns.shutdown(now, thread_key(channel, thread), session);
        }
    }

    /// A process exits in order: what it holds is closed by the kernel, as it asked for.
    pub fn exit(&mut self, now: Now, channel: u32) {
        let held: Vec<u32> = self.handles.keys().filter(|(c, _)| *c == channel).map(|(_, h)| *h).collect();
        for handle in held {
            self.close(now, channel, u32::MAX, handle, false);
        }
        self.turn_end(now, channel, u32::MAX);
    }

    /// Which write has an open intent, told after each drain of the hooks' rings.
    pub fn set_intent(&mut self, intent: Option<(u32, u32)>) {
        self.intent = intent;
    }

    /// To be called after a round of hook events: applies the commits that they led to.
    pub fn run_commits(&mut self, now: Now) {
        if matches!(self.mode, Mode::Passive | Mode::Frozen) {
            return;
        }
        let mut commit = std::mem::take(&mut self.commit);
        let mut entries = Vec::new();
        while self.turns.poll_commit(&mut commit) {
            entries.clear();
            for e in &commit.entries {
                let (Some(s), Some(live)) = (self.store.get(e.session), self.live.get_mut(&e.session)) else {
                    continue;
                };
                let fresh = (e.out_done.saturating_sub(s.out_done)) as usize;
                assert!(fresh <= live.pending.len(), "a commit of output that was never written");
                let open = e.out_done.max(s.out_done) - e.out_base;
                // Longer than a record can say: what it began cannot be told any more.
                let torn = e.torn || open > MAX_OPEN;
                let entry = Committed {
                    session: e.session,
                    in_done: e.in_done as u32,
                    out_done: e.out_done.max(s.out_done) as u32,
                    open: open.min(MAX_OPEN) as u32,
                    fin: e.fin,
                    closed: live.closed,
                    torn,
                };
                let bytes: Vec<u8> = live.pending.drain(..fresh).collect();
                let from = s.out_done;
                if !bytes.is_empty() {
                    self.write(bytes.len(), |out| record::encode_output(e.session, from, &bytes, out));
                }
                entries.push(entry);
            }
            // A record has room for 65,535 sessions; a turn over more of them is beyond any server.
            assert!(entries.len() <= usize::from(u16::MAX), "a turn over too many sessions");
            if entries.is_empty() {
                continue;
            }
            let position = self.write(0, |out| record::encode_commit(&entries, out));
            for e in &entries {
                if let Some(live) = self.live.get_mut(&e.session) {
                    live.out_pos = position;
                }
            }
            for e in &entries {
                self.judge_held(now, e.session);
            }
        }
        self.commit = commit;
    }

    /// Output of a session that no hook knows: each segment is its own turn, and its input is done at once.
    pub(super) fn commit_unattached(&mut self, now: Now, session: SessionId, fin: bool) {
        let s = self.store.get(session).expect("known");
        let live = self.live.get_mut(&session).expect("live");
        let bytes: Vec<u8> = live.pending.drain(..).collect();
        let (in_done, from) = (s.in_end(), s.out_done);
        let entry = Committed {
            session,
            in_done: in_done as u32,
            out_done: (from + bytes.len() as u64) as u32,
            open: 0,
            fin,
            closed: fin,
            torn: false,
        };
        if !bytes.is_empty() {
            self.write(bytes.len(), |out| record::encode_output(session, from, &bytes, out));
        }
        let position = self.write(0, |out| record::encode_commit(&[entry], out));
        self.live.get_mut(&session).expect("live").out_pos = position;
        self.judge_held(now, session);
    }

    /// The process of this channel is dead: its open turns never happened, and its endings are withheld.
    pub fn process_gone(&mut self, now: Now, channel: u32) {
        self.turns.process_gone(channel);
        self.handles.retain(|(c, _), _| *c != channel);
        let mut orphans = Vec::new();
        for (&id, live) in &mut self.live {
            if !live.owners.contains(&channel) {
                continue;
            }
            live.owners.retain(|&c| c != channel);
            if live.owners.is_empty() {
                live.orphan = true;
                live.pending.clear();
                orphans.push(id);
            }
        }
        for id in orphans {
            let live = self.live.get_mut(&id).expect("listed");
            if live.closed || live.fin_asked {
                continue;
            }
            let dropped: Vec<u32> =
                live.held.iter().filter(|h| h.fin || h.rst).map(|h| h.id).collect();
            live.held.retain(|h| !h.fin && !h.rst);
            self.counters.endings_withheld += dropped.len() as u64;
            self.actions.extend(dropped.into_iter().map(super::Action::DropOut));
        }
        self.run_commits(now);
    }

    /// The process of this channel lives: what it ended, it ended behind our back, and on purpose.
    pub fn process_alive(&mut self, now: Now, channel: u32) {
        let silent: Vec<SessionId> = self
            .live
            .iter()
            .filter(|(_, l)| l.owners.contains(&channel) && !l.fin_asked && !l.closed)
            .filter(|(_, l)| l.held.iter().any(|h| h.fin || h.rst))
            .map(|(id, _)| *id)
            .collect();
        for session in silent {
            self.counters.unhooked_closes += 1;
            let live = self.live.get_mut(&session).expect("listed");
            live.fin_asked = true;
            live.closed = true;
            live.abort |= live.held.iter().any(|h| h.rst);
            self.turns.shutdown(now, thread_key(channel, u32::MAX), session);
            self.turns.turn_end(now, thread_key(channel, u32::MAX));
            self.run_commits(now);
            self.judge_held(now, session);
        }
    }
}
