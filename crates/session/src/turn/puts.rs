//! Values of the service that were put in turns that are not over.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::data::{self, Change};

/// A value that was put; None: it was deleted.
#[derive(Debug)]
pub(super) struct Put {
    pub value: Option<Box<[u8]>>,
    /// The group of the turn.
    pub group: u32,
    /// Its number among all puts.
    serial: u64,
}

/// By process and key: what one process puts, no other sees before it is committed.
#[derive(Debug, Default)]
pub(super) struct Puts {
    by_key: BTreeMap<(u32, Box<[u8]>), Put>,
    serial: u64,
}

fn cost(key: &[u8], put: &Put) -> u64 {
    data::cost(key.len() + put.value.as_ref().map_or(0, |value| value.len()))
}

impl Puts {
    /// Returns what that cost whose place this one takes.
    pub fn put(&mut self, channel: u32, group: u32, key: &[u8], value: Option<&[u8]>) -> u64 {
        self.serial += 1;
        let put = Put { value: value.map(Box::from), group, serial: self.serial };
        self.by_key.insert((channel, key.into()), put).map_or(0, |before| cost(key, &before))
    }

    pub fn find(&self, channel: u32, key: &[u8]) -> Option<&Put> {
        if self.by_key.is_empty() {
            return None;
        }
        self.by_key.get(&(channel, key.into()))
    }

    /// The next key of a process behind this one, and whether that was deleted.
    pub fn next(&self, channel: u32, after: &[u8]) -> Option<(&[u8], bool)> {
        let behind = (Bound::Excluded((channel, Box::from(after))), Bound::Unbounded);
        let ((of, key), put) = self.by_key.range(behind).next()?;
        (*of == channel).then_some((key, put.value.is_none()))
    }

    /// One group becomes part of another.
    pub fn merge(&mut self, into: u32, from: u32) {
        self.by_key.values_mut().filter(|put| put.group == from).for_each(|put| put.group = into);
    }

    /// Takes what was put in the turn of a group, in that order.
    pub fn take(&mut self, group: u32) -> impl Iterator<Item = Change<Box<[u8]>>> {
        let all = std::mem::take(&mut self.by_key).into_iter();
        let (mut taken, others): (Vec<_>, Vec<_>) = all.partition(|(_, put)| put.group == group);
        self.by_key.extend(others);
        taken.sort_unstable_by_key(|(_, put)| put.serial);
        taken.into_iter().map(|((_, key), put)| match put.value {
            Some(value) => Change::Put { key, value },
            None => Change::Delete { key },
        })
    }

    /// What a process has put in the turn of a group was never put, of those for which `never` says so. Returns what it cost.
    pub fn forget(&mut self, never: impl Fn(&u32, u32) -> bool) -> u64 {
        let mut freed = 0;
        self.by_key.retain(|(of, key), put| {
            let never = never(of, put.group);
            freed += if never { cost(key, put) } else { 0 };
            !never
        });
        freed
    }
}
