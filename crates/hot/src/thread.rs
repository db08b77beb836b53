//! What the library knows of the calling thread.

use std::cell::Cell;

/// Most threads at a time.
pub const MOST: usize = 8192;

/// A thread of which nothing is recorded: it is not the program's own, or is about to end.
pub const FOREIGN: i32 = -1;

struct Me {
    id: Cell<i32>,
    inside: Cell<bool>,
}

thread_local! {
    static ME: Me = const { Me { id: Cell::new(FOREIGN), inside: Cell::new(false) } };
}

/// The thread's number in the trace, or [`FOREIGN`].
pub fn id() -> i32 {
    ME.with(|me| me.id.get())
}

/// Gives the thread its number.
pub fn set_id(id: i32) {
    ME.with(|me| me.id.set(id));
}

/// Whether calls of this thread are none of the program's: those of other threads, and what libtcpr and the C library do
/// on behalf of a call.
pub fn is_left_out() -> bool {
    ME.with(|me| me.inside.get() || me.id.get() < 0)
}

/// Runs code of the program, in the middle of a call.
pub fn in_program<T>(f: impl FnOnce() -> T) -> T {
    with_inside(false, f)
}

/// The thread goes on in another process, out of the middle of a call of the next library.
pub fn came_back() {
    ME.with(|me| me.inside.set(false));
}

/// Makes a call of the next library. Hooks that it reaches are not the program's.
pub fn outside<T>(f: impl FnOnce() -> T) -> T {
    with_inside(true, f)
}

fn with_inside<T>(inside: bool, f: impl FnOnce() -> T) -> T {
    ME.with(|me| {
        let before = me.inside.replace(inside);
        let result = f();
        me.inside.set(before);
        result
    })
}
