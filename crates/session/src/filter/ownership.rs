//! Which processes hold a session, what they have asked for, and what the kernel is asked of what they have read.

use crate::store::Session;

/// The channels of the processes that hold a session: nearly always one.
#[derive(Debug, Default)]
struct Owners {
    first: Option<u32>,
    // Boxed: an empty one is a word less.
    #[allow(clippy::box_collection)]
    others: Option<Box<Vec<u32>>>,
}

impl Owners {
    fn of(channel: u32) -> Owners {
        Owners { first: Some(channel), others: None }
    }

    fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    fn iter(&self) -> impl Iterator<Item = &u32> {
        self.first.iter().chain(self.others.iter().flat_map(|others| others.iter()))
    }

    fn contains(&self, channel: &u32) -> bool {
        self.iter().any(|c| c == channel)
    }

    fn push(&mut self, channel: u32) {
        match self.first {
            None => self.first = Some(channel),
            Some(_) => self.others.get_or_insert_default().push(channel),
        }
    }

    fn retain(&mut self, keep: impl Fn(&u32) -> bool) {
        let mut rest = self.others.take().unwrap_or_default();
        rest.retain(&keep);
        self.first = self.first.filter(keep).or_else(|| rest.pop());
        self.others = Some(rest).filter(|rest| !rest.is_empty());
    }
}

/// Who closed a session that others may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Closer {
    /// The process of this channel.
    Process(u32),
    /// One that has ended in order since.
    Ended,
}

/// Why the kernel is asked how much of its input the application has read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WhyAsked {
    /// What was told may be counted in what was answered before.
    Recount,
    /// Output is to be adopted, which answers what was read.
    Output,
    /// Much has come of which nobody says that it was read.
    Room,
    /// Another member is about to go on with what was not.
    Handover,
}

impl WhyAsked {
    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Ownership {
    owners: Owners,
    /// Closed by this process. Others may hold it, its forked children or whoever it was passed to, none of which has joined.
    closed_by: Option<Closer>,
    /// The processes that held it are dead.
    orphan: bool,
    /// Attached once: the turn policy knows it.
    attached: bool,
    /// It was restored, and a process accepted it around the hooks.
    unhooked: bool,
    closed: bool,
    fin_asked: bool,
    /// What hooks announced is not what was sent: its state cannot be known any more.
    lost: bool,
    /// Why it is asked what was read.
    asked: u8,
}

impl Ownership {
    /// Of a session that nobody holds.
    pub fn new(s: &Session) -> Ownership {
        Ownership { closed: s.closed, fin_asked: s.out_fin, ..Ownership::default() }
    }

    // ---- who holds it --------------------------------------------------------------------------------

    pub fn is_held(&self) -> bool {
        !self.owners.is_empty()
    }

    pub fn is_held_by(&self, channel: u32) -> bool {
        self.owners.contains(&channel)
    }

    /// The channels of those that hold it.
    pub fn holders(&self) -> impl Iterator<Item = u32> + '_ {
        self.owners.iter().copied()
    }

    /// A process holds it. `inherited`: it was forked by another one, and says itself when it closes it.
    pub fn held_by(&mut self, channel: u32, inherited: bool) {
        if !self.owners.contains(&channel) {
            self.owners.push(channel);
        }
        self.orphan = false;
        if inherited {
            self.closed_by = None;
        }
    }

    /// It is the one program's.
    pub fn held_only_by(&mut self, channel: u32) {
        self.owners = Owners::of(channel);
        self.orphan = false;
    }

    /// The process holds it no more.
    pub fn left_by(&mut self, channel: u32) {
        self.owners.retain(|c| *c != channel);
    }

    /// These processes hold it no more. Returns whether one of them did.
    pub fn left_by_all(&mut self, gone: impl Fn(&u32) -> bool) -> bool {
        let held = self.owners.iter().any(&gone);
        if held {
            self.owners.retain(|c| !gone(c));
        }
        held
    }

    pub fn is_attached(&self) -> bool {
        self.attached
    }

    /// The turn policy knows it. Returns whether it did before.
    pub fn attach(&mut self) -> bool {
        std::mem::replace(&mut self.attached, true)
    }

    pub fn is_unhooked(&self) -> bool {
        self.unhooked
    }

    /// A process accepted it around the hooks.
    pub fn accept_unhooked(&mut self) {
        self.unhooked = true;
    }

    pub fn is_orphan(&self) -> bool {
        self.orphan
    }

    /// Whoever held it has died.
    pub fn die(&mut self) {
        self.orphan = true;
    }

    /// Requests of a turn that did not end are dropped.
    pub fn roll_back(&mut self, s: &Session) {
        self.orphan = true;
        self.fin_asked = s.out_fin;
        self.closed = s.closed;
    }

    // ---- its end -------------------------------------------------------------------------------------

    pub fn is_closed(&self) -> bool {
        self.closed
    }

    pub fn closed_by(&self) -> Option<Closer> {
        self.closed_by
    }

    /// The last process that was known to hold it has closed it.
    pub fn set_closed_by(&mut self, channel: u32) {
        self.closed_by = Some(Closer::Process(channel));
    }

    /// The process that closed it has ended in order: what it closed, it meant to close.
    pub fn closer_ended(&mut self) {
        self.closed_by = Some(Closer::Ended);
    }

    /// The application ends its output.
    pub fn end_output(&mut self) {
        self.fin_asked = true;
    }

    /// The application closes it. Returns whether it had before.
    pub fn close(&mut self) -> bool {
        self.fin_asked = true;
        std::mem::replace(&mut self.closed, true)
    }

    /// It is not closed, whatever was told.
    pub fn reopen(&mut self) {
        self.closed = false;
        self.fin_asked = false;
    }

    pub fn fin_asked(&self) -> bool {
        self.fin_asked
    }

    // ---- what cannot be known ------------------------------------------------------------------------

    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Its state cannot be known any more.
    pub fn lose(&mut self) {
        self.lost = true;
    }

    /// Nor does it matter what its process says.
    pub fn detach(&mut self) {
        self.attached = false;
    }

    // ---- what was read -------------------------------------------------------------------------------

    /// The kernel is to be asked. Returns whether it has not been yet.
    pub fn ask(&mut self, why: WhyAsked) -> bool {
        let asked = self.asked & why.bit() != 0;
        self.asked |= why.bit();
        !asked
    }

    /// The answer is there. Returns whether it was asked for this reason.
    pub fn answered(&mut self, why: WhyAsked) -> bool {
        let asked = self.asked & why.bit() != 0;
        self.asked &= !why.bit();
        asked
    }

    /// Whether it is asked, for any reason.
    pub fn is_asked(&self) -> bool {
        self.asked != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn come_and_go() {
        let mut o = Owners::default();
        assert!(o.is_empty() && !o.contains(&1));
        (1..=4).for_each(|c| o.push(c));
        assert!((1..=4).all(|c| o.contains(&c)) && !o.contains(&5));
        o.retain(|c| c % 2 == 0);
        assert_eq!(o.iter().sum::<u32>(), 6);
        o.retain(|c| *c == 4);
        assert_eq!(o.iter().collect::<Vec<_>>(), [&4]);
        o.retain(|_| false);
        assert!(o.is_empty());
        assert!(Owners::of(7).contains(&7));
    }
}
