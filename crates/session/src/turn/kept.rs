//! The application's own data, until a commit has it.

use super::{channel_of, SessionId, Thread, TurnPolicy};
use crate::data;

impl TurnPolicy {
    /// The application says what it keeps of the session. That counts with the thread's turn; with it, the input that was read of
    /// this session until now is done, and from now on nothing is inferred for this session. False: it has given more in this turn
    /// than one may have.
    #[must_use]
    pub fn checkpoint(&mut self, t: Thread, s: SessionId, data: &[u8]) -> bool {
        if !self.touch(t, s) {
            return true;
        }
        self.groups.hear_now(t);
        let cost = data::cost(data.len());
        if !self.groups.of(t).is_some_and(|g| self.groups.give_data(g, cost)) {
            return false;
        }
        if let Some(p) = self.sessions.get_mut(&s) {
            let before = p.checkpoint(data);
            self.data = self.data + cost - before.map_or(0, |c| data::cost(c.len()));
        }
        self.bound(t);
        true
    }

    /// A commit has said before what the application keeps of the session: nothing is inferred.
    pub fn says_itself(&mut self, s: SessionId) {
        if let Some(p) = self.sessions.get_mut(&s) {
            p.says_itself();
        }
    }

    /// What the application has said that it keeps of a session, if no commit says so yet.
    #[must_use]
    pub fn uncommitted_checkpoint(&self, s: SessionId) -> Option<&[u8]> {
        self.sessions.get(&s)?.checkpoint.as_deref().map(Box::as_ref)
    }

    /// The application puts a value of the service, or deletes one (None). That counts with the thread's turn. False: it has given
    /// more in this turn than one may have.
    #[must_use]
    pub fn put(&mut self, t: Thread, key: &[u8], value: Option<&[u8]>) -> bool {
        if self.groups.of(t).is_none() {
            self.groups.open(t);
        }
        self.join_put(t, key);
        self.start_clock(self.groups.heard(), t);
        let cost = data::cost(key.len() + value.map_or(0, <[u8]>::len));
        let Some(g) = self.groups.of(t).filter(|g| self.groups.give_data(*g, cost)) else { return false };
        self.groups.set_puts(g);
        self.data = self.data + cost - self.puts.put(channel_of(t), g, key, value);
        self.bound(t);
        true
    }

    /// Whether a process has put or deleted a key in a turn that is not over.
    #[must_use]
    pub fn has_put(&self, channel: u32, key: &[u8]) -> bool {
        self.puts.find(channel, key).is_some()
    }

    /// What the thread's process has put under a key in a turn that is not over (None: it has deleted that). The thread's turn
    /// then depends on that one, and they commit as one.
    pub fn find_put(&mut self, t: Thread, key: &[u8]) -> Option<Option<&[u8]>> {
        if self.groups.has_room() && self.has_put(channel_of(t), key) && self.groups.of(t).is_none() {
            self.groups.open(t);
        }
        self.join_put(t, key);
        self.puts.find(channel_of(t), key).map(|put| put.value.as_deref())
    }

    /// The next key behind this one that a process has put in a turn that is not over, and whether it has deleted that.
    #[must_use]
    pub fn next_put(&self, channel: u32, after: &[u8]) -> Option<(&[u8], bool)> {
        self.puts.next(channel, after)
    }

    /// Turns of threads of one process that touch the same key commit as one.
    fn join_put(&mut self, t: Thread, key: &[u8]) {
        let own = self.groups.of(t);
        let other = self.puts.find(channel_of(t), key).map(|put| put.group);
        if let Some((own, other)) = own.zip(other).filter(|(own, other)| own != other) {
            self.merge(own, other);
        }
    }

    /// What a turn that is over has put under a key (None: it has deleted that), if its commit was not taken yet.
    #[must_use]
    pub fn queued_value(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        self.commits.value(key)
    }

    /// What a turn that is over keeps of a session, if its commit was not taken yet.
    #[must_use]
    pub fn queued_checkpoint(&self, s: SessionId) -> Option<&[u8]> {
        self.commits.checkpoint(s)
    }

    /// What the application's data costs of which no commit was polled yet.
    #[must_use]
    pub fn uncommitted_data(&self) -> u64 {
        self.data
    }
}
