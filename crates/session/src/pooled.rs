//! What a session is without most of the time: while it is empty, a word stands for it. So a session that is idle is
//! small, and one that is busy asks for no memory, for it takes what another one has given back.

use std::collections::VecDeque;
use std::ops::Deref;

/// Most bytes that a spare value may have room for: who takes it next may keep it for long with a byte in it.
const LARGEST: usize = 4 << 10;
/// The same where nobody keeps it.
const LARGEST_PASSING: usize = 512 << 10;
/// All that are spare together: bursts give their memory back.
const MOST: usize = 1 << 20;

/// What can be empty.
pub trait Blank: Default + 'static {
    /// Stands for every one that is empty.
    const BLANK: &'static Self;

    /// Whether it is empty.
    fn is_blank(&self) -> bool;

    /// Bytes that it keeps.
    fn kept(&self) -> usize {
        size_of::<Self>()
    }
}

impl<T: 'static> Blank for VecDeque<T> {
    const BLANK: &'static VecDeque<T> = &VecDeque::new();

    fn is_blank(&self) -> bool {
        self.is_empty()
    }

    fn kept(&self) -> usize {
        size_of::<Self>() + self.capacity() * size_of::<T>()
    }
}

/// A `T`, which needs memory only while it is not empty. Reading needs no call. Each method that
/// changes the value says in its name whether it may allocate.
#[derive(Debug)]
pub struct Pooled<T>(Option<Box<T>>);

/// Values that nobody needs now, kept for their memory.
#[derive(Debug)]
pub(crate) struct Pool<T> {
    values: Vec<Box<T>>,
    bytes: usize,
    largest: usize,
}

impl<T: Blank> Pooled<T> {
    /// To change it, with spare memory if there is any.
    pub(crate) fn get_or_take(&mut self, pool: &mut Pool<T>) -> &mut T {
        self.0.get_or_insert_with(|| pool.take().unwrap_or_default())
    }

    /// To change it, with memory of its own.
    pub(crate) fn get_or_make(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }

    /// To change it, unless it was given back.
    pub(crate) fn get_mut_if_any(&mut self) -> Option<&mut T> {
        self.0.as_deref_mut()
    }

    /// Gives its memory back if it is empty.
    pub(crate) fn give_back_if_empty(&mut self, pool: &mut Pool<T>) {
        if let Some(value) = self.0.take_if(|value| value.is_blank()) {
            pool.give(value);
        }
    }

    /// The same, where that happens too seldom to keep the memory.
    pub(crate) fn drop_if_empty(&mut self) {
        self.0.take_if(|value| value.is_blank());
    }

    /// Takes it out: it is empty afterwards.
    pub(crate) fn take(&mut self) -> T {
        self.0.take().map_or_else(T::default, |value| *value)
    }
}

impl<T: 'static> Pooled<VecDeque<T>> {
    /// Drops the first `n`.
    pub(crate) fn drop_first(&mut self, n: usize, pool: &mut Pool<VecDeque<T>>) {
        if let (Some(queue), true) = (self.get_mut_if_any(), n > 0) {
            queue.drain(..n);
            self.give_back_if_empty(pool);
        }
    }
}

impl<T: Blank> Pool<T> {
    /// For what is empty again in a moment: a burst that follows another needs no memory.
    pub(crate) fn passing() -> Pool<T> {
        Pool { largest: LARGEST_PASSING, ..Pool::default() }
    }

    fn take(&mut self) -> Option<Box<T>> {
        let value = self.values.pop()?;
        self.bytes -= value.kept();
        Some(value)
    }

    fn give(&mut self, value: Box<T>) {
        let kept = value.kept();
        if kept <= self.largest && self.bytes + kept <= MOST {
            self.bytes += kept;
            self.values.push(value);
        }
    }
}

impl<T> Default for Pooled<T> {
    fn default() -> Pooled<T> {
        Pooled(None)
    }
}

impl<T: Blank> Deref for Pooled<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or(T::BLANK)
    }
}

impl<T: Blank + Clone> Clone for Pooled<T> {
    fn clone(&self) -> Pooled<T> {
        Pooled((!self.is_blank()).then(|| Box::new(T::clone(self))))
    }
}

impl<T: Blank + PartialEq> PartialEq for Pooled<T> {
    fn eq(&self, other: &Pooled<T>) -> bool {
        **self == **other
    }
}

impl<T: Blank + Eq> Eq for Pooled<T> {}

impl<T> Default for Pool<T> {
    fn default() -> Pool<T> {
        Pool { values: Vec::new(), bytes: 0, largest: LARGEST }
    }
}

// It is nothing but memory: to be compared and copied with what uses it.
impl<T> PartialEq for Pool<T> {
    fn eq(&self, _: &Pool<T>) -> bool {
        true
    }
}

impl<T> Eq for Pool<T> {}

impl<T> Clone for Pool<T> {
    fn clone(&self) -> Pool<T> {
        Pool { largest: self.largest, ..Pool::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_from_the_idle_to_the_busy() {
        let (mut a, mut b, mut pool) = (Pooled::<VecDeque<u8>>::default(), Pooled::default(), Pool::default());
        assert!(a.is_empty() && a == b);
        a.get_or_take(&mut pool).extend([7; 100]);
        assert!(a != b && a.clone() == a);
        let room = a.capacity();
        a.give_back_if_empty(&mut pool);
        assert_eq!((a.len(), pool.values.len()), (100, 0), "it is in use");
        a.drop_first(99, &mut pool);
        assert_eq!((a.len(), pool.values.len()), (1, 0), "it is in use");
        a.drop_first(1, &mut pool);
        assert_eq!((a.len(), a.capacity(), pool.values.len()), (0, 0, 1));
        assert_eq!((b.get_or_take(&mut pool).capacity(), pool.values.len()), (room, 0));
        b.get_or_make().extend([7; LARGEST + 1]);
        assert_eq!(b.take().len(), LARGEST + 1);
        b.get_or_make().extend([7; LARGEST + 1]);
        b.drop_first(LARGEST + 1, &mut pool);
        assert_eq!((b.capacity(), pool.values.len(), pool.bytes), (0, 0, 0), "of a burst nothing is kept");
    }
}
