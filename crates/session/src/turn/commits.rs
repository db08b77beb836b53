//! Commits that were made and not taken yet.

use std::collections::VecDeque;

use crate::data::Change;
use crate::tuple::SessionId;

/// What a commit says about one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitEntry {
    /// The session.
    pub session: SessionId,
    /// Input before this offset is done.
    pub in_done: u64,
    /// Output before this offset may be released.
    pub out_done: u64,
    /// The output offset that belongs to `in_done`: less than `out_done` while a response is open, or
    /// while a recovered application has not yet written again what is already out.
    pub out_base: u64,
    /// The application ended its output: a FIN may leave.
    pub fin: bool,
    /// The state of the session cannot be known after a crash.
    pub torn: bool,
}

/// What is done, for all sessions of a group of turns: all of it or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// One entry for each touched session about which there is something new to say.
    pub entries: Vec<CommitEntry>,
    /// The application's data.
    pub changes: Vec<Change<Box<[u8]>>>,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Commits {
    /// All entries and all changes in a row, and the numbers of them that each commit takes.
    entries: VecDeque<CommitEntry>,
    changes: VecDeque<Change<Box<[u8]>>>,
    commits: VecDeque<(usize, usize)>,
    /// The same of the commit that is being made.
    next: (usize, usize),
}

impl Commits {
    /// The commit that is being made says this of a session.
    pub fn add(&mut self, entry: CommitEntry) {
        self.next.0 += 1;
        self.entries.push_back(entry);
    }

    /// The commit that is being made has this of the application's data.
    pub fn add_change(&mut self, change: Change<Box<[u8]>>) {
        self.next.1 += 1;
        self.changes.push_back(change);
    }

    /// The commit is whole. Returns whether it says anything; if not, there is none.
    pub fn finish(&mut self) -> bool {
        let next = std::mem::take(&mut self.next);
        let any = next != (0, 0);
        if any {
            self.commits.push_back(next);
        }
        any
    }

    /// Takes the oldest commit into `out`; `false` if there is none.
    pub fn poll(&mut self, out: &mut Commit) -> bool {
        out.entries.clear();
        out.changes.clear();
        let Some((entries, changes)) = self.commits.pop_front() else {
            return false;
        };
        out.entries.extend(self.entries.drain(..entries));
        out.changes.extend(self.changes.drain(..changes));
        true
    }

    pub fn is_empty(&self) -> bool {
        self.commits.is_empty()
    }

    /// Whether each entry is one of a commit.
    #[cfg(test)]
    pub fn are_whole(&self) -> bool {
        self.next == (0, 0) && self.entries.len() == self.commits.iter().map(|(entries, _)| entries).sum::<usize>()
    }

    /// What was put under a key last (None: it was deleted).
    pub fn value(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        self.changes.iter().rev().find_map(|change| match change {
            Change::Put { key: of, value } if **of == *key => Some(Some(&**value)),
            Change::Delete { key: of } if **of == *key => Some(None),
            _ => None,
        })
    }

    /// What is kept of a session.
    pub fn checkpoint(&self, s: SessionId) -> Option<&[u8]> {
        self.changes.iter().rev().find_map(|change| match change {
            Change::Checkpoint { session, data } if *session == s => Some(&**data),
            _ => None,
        })
    }
}
