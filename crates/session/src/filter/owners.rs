//! The processes that hold a session: nearly always one.

/// Channels of processes.
#[derive(Debug, Default)]
pub(super) struct Owners {
    first: Option<u32>,
    // Boxed: an empty one is a word less.
    #[allow(clippy::box_collection)]
    others: Option<Box<Vec<u32>>>,
}

impl Owners {
    pub fn of(channel: u32) -> Owners {
        Owners { first: Some(channel), others: None }
    }

    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub fn iter(&self) -> impl Iterator<Item = &u32> {
        self.first.iter().chain(self.others.iter().flat_map(|others| others.iter()))
    }

    pub fn contains(&self, channel: &u32) -> bool {
        self.iter().any(|c| c == channel)
    }

    pub fn push(&mut self, channel: u32) {
        match self.first {
            None => self.first = Some(channel),
            Some(_) => self.others.get_or_insert_default().push(channel),
        }
    }

    pub fn retain(&mut self, keep: impl Fn(&u32) -> bool) {
        let mut rest = self.others.take().unwrap_or_default();
        rest.retain(&keep);
        self.first = self.first.filter(keep).or_else(|| rest.pop());
        self.others = Some(rest).filter(|rest| !rest.is_empty());
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
