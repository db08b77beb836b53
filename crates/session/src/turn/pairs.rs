//! For whom the application has made its connections.

use std::collections::{BTreeSet, HashMap};

use crate::tuple::SessionId;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    /// Whom the application has made a connection for, and the other way round. None of the lists is empty.
    with: HashMap<SessionId, Vec<SessionId>>,
    /// Connections that the application has made for some client, and it is not known for which.
    unclear: BTreeSet<SessionId>,
}

impl Pairs {
    pub fn pair(&mut self, out: SessionId, client: SessionId) {
        self.with.entry(out).or_default().push(client);
        self.with.entry(client).or_default().push(out);
    }

    /// The application has made the connection for a client, and it is not known for which.
    pub fn set_unclear(&mut self, out: SessionId) {
        self.unclear.insert(out);
    }

    /// Nothing is known of the session any more.
    pub fn part(&mut self, s: SessionId) {
        self.unclear.remove(&s);
        for other in self.with.remove(&s).unwrap_or_default() {
            if let Some(others) = self.with.get_mut(&other) {
                others.retain(|x| *x != s);
                if others.is_empty() {
                    self.with.remove(&other);
                }
            }
        }
    }

    /// Those on the other side of a session.
    pub fn of(&self, s: SessionId) -> &[SessionId] {
        self.with.get(&s).map_or(&[], |with| with)
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.with.is_empty() && self.unclear.is_empty()
    }

    pub fn is_unclear(&self, s: SessionId) -> bool {
        self.unclear.contains(&s)
    }

    pub fn unclear(&self) -> impl Iterator<Item = SessionId> + '_ {
        self.unclear.iter().copied()
    }
}
