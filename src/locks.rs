//! Locks of the library: while a thread holds one, no hook of that thread acts and no signal handler of the application
//! interrupts the thread.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use tcpr_node::channel::client::Bypass;

/// A lock that is held.
pub struct Locked<'a, T> {
    guard: MutexGuard<'a, T>,
    // After the guard: fields are dropped in this order.
    _inside: Bypass,
}

impl<T> Deref for Locked<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for Locked<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

/// Waits for the lock. A panic poisons nothing of ours: what a lock guards is consistent at every point.
pub fn lock<T>(mutex: &Mutex<T>) -> Locked<'_, T> {
    let _inside = Bypass::enter();
    Locked { guard: mutex.lock().unwrap_or_else(PoisonError::into_inner), _inside }
}

/// The same without waiting. `None`: this thread holds the lock, or another one does.
pub fn try_lock<T>(mutex: &Mutex<T>) -> Option<Locked<'_, T>> {
    let _inside = Bypass::enter();
    let guard = match mutex.try_lock() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return None,
    };
    Some(Locked { guard, _inside })
}
