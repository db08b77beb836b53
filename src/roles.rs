//! Callbacks for changes of role (`tcpr_on_role_change`), and the thread that makes the calls.
//!
//! There is such a thread as long as something is registered. It sleeps on the word of the shared memory in which the manager puts
//! the role. While a callback runs the thread holds no lock, and nothing of it would have to be undone: a callback may register
//! and remove callbacks, fork, or end the thread.

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use libc::c_int;
use tcpr_node::channel::client::{Bypass, Client};

use crate::guard::{inside, Failure};
use crate::locks::{lock, Locked};
use crate::{environment, manager, sys, turn};

/// What a program registers.
pub type Callback = unsafe extern "C-unwind" fn(role: c_int, arg: *mut c_void);

/// What is told of a manager that is gone: what `tcpr_get_role` returns then.
const GONE: c_int = -1;
/// How often it is looked whether this process has joined again.
const NAP: Duration = Duration::from_millis(200);

/// A callback as it was registered.
#[derive(Clone, Copy)]
struct Registered {
    callback: Callback,
    arg: usize,
    /// The role that it was told last.
    told: Option<c_int>,
}

impl Registered {
    fn is(&self, callback: Callback, arg: usize) -> bool {
        std::ptr::fn_addr_eq(self.callback, callback) && self.arg == arg
    }
}

struct Roles {
    /// In the order in which they were registered.
    callbacks: Vec<Registered>,
    has_thread: bool,
    /// The thread is in the middle of this call.
    calling: Option<Registered>,
    /// The process forbids itself system calls, and the thread makes none any more: it rests.
    retired: bool,
    rests: bool,
    /// The process, told from the one that forked it. A thread that has another number here returned from a callback that has
    /// forked, as the child.
    process: usize,
}

impl Roles {
    const fn of_process(process: usize) -> Roles {
        Roles { callbacks: Vec::new(), has_thread: false, calling: None, retired: false, rests: false, process }
    }
}

static ROLES: Mutex<Roles> = Mutex::new(Roles::of_process(1));
/// A call is over.
static OVER: Condvar = Condvar::new();

/// In the thread that makes the calls: the number of its process. What follows when the thread ends, whatever ends it.
struct Caller(Cell<usize>);

impl Drop for Caller {
    fn drop(&mut self) {
        let mut roles = lock(&ROLES);
        if self.0.get() == roles.process {
            roles.has_thread = false;
            roles.calling = None;
            OVER.notify_all();
        }
    }
}

thread_local! {
    static CALLER: Caller = const { Caller(Cell::new(0)) };
}

/// Registers a callback, which is told the role of this moment, and then each other one.
pub fn register(client: &Client, callback: Callback, arg: *mut c_void) -> Result<(), Failure> {
    if environment::get().is_some_and(|e| e.hot) {
        return Err(Failure::new(libc::ENOTSUP, "with standby = \"hot\" a program is not told of its role"));
    }
    let arg = arg.expose_provenance();
    let mut roles = lock(&ROLES);
    if roles.callbacks.iter().any(|registered| registered.is(callback, arg)) {
        return Err(Failure::new(libc::EEXIST, "this callback is registered already, with the same argument"));
    }
    if !roles.has_thread {
        start(roles.process)?;
        roles.has_thread = true;
    }
    roles.callbacks.push(Registered { callback, arg, told: None });
    drop(roles);
    client.wake_for_role();
    Ok(())
}

/// Removes a callback. When this returns the callback does not run any more, unless it is itself the caller.
pub fn remove(callback: Callback, arg: *mut c_void) -> Result<(), Failure> {
    let arg = arg.expose_provenance();
    let _inside = Bypass::enter();
    let mut roles = ROLES.lock().unwrap_or_else(PoisonError::into_inner);
    let before = roles.callbacks.len();
    roles.callbacks.retain(|registered| !registered.is(callback, arg));
    if roles.callbacks.len() == before {
        return Err(Failure::nothing(libc::ENOENT, "no such callback is registered"));
    }
    let process = roles.process;
    if CALLER.try_with(|caller| caller.0.get() == process).unwrap_or(true) {
        return Ok(());
    }
    while roles.calling.is_some_and(|calling| calling.is(callback, arg)) {
        roles = OVER.wait(roles).unwrap_or_else(PoisonError::into_inner);
    }
    Ok(())
}

fn start(process: usize) -> Result<(), Failure> {
    // A callback may unwind through this, by pthread_exit.
    extern "C-unwind" fn begin(process: *mut c_void) -> *mut c_void {
        run(process.addr());
        std::ptr::null_mut()
    }
    let mut thread = 0;
    let error = sys::with_signals_blocked(|| {
        // SAFETY: `begin` is called by the C library, for which both kinds of function are the same. `thread` is live and writable;
        // the argument is a number.
        unsafe {
            type Begin = extern "C-unwind" fn(*mut c_void) -> *mut c_void;
            let begin = std::mem::transmute::<Begin, extern "C" fn(*mut c_void) -> *mut c_void>(begin);
            libc::pthread_create(&raw mut thread, std::ptr::null(), begin, std::ptr::without_provenance_mut(process))
        }
    });
    if error != 0 {
        return Err(Failure::new(error, "there is no thread for the callback"));
    }
    // SAFETY: a thread that was just made; nobody joins it.
    unsafe { libc::pthread_detach(thread) };
    Ok(())
}

/// The thread. It has nothing on its stack that has a destructor: see `begin`.
fn run(process: usize) {
    CALLER.with(|caller| caller.0.set(process));
    while let Some((next, role)) = inside(None, || next(process)) {
        // SAFETY: the program has registered it as a function of this type, for this argument.
        unsafe { (next.callback)(role, std::ptr::with_exposed_provenance_mut(next.arg)) };
        turn::before_wait(|| false);
    }
}

/// Waits for the next call to make. None: this thread is to end.
fn next(process: usize) -> Option<(Registered, c_int)> {
    loop {
        let client = manager::joined();
        let role = client.map(Client::role);
        let number = role.map_or(GONE, |role| role as c_int);
        {
            let mut roles = lock(&ROLES);
            if roles.process != process {
                return None;
            }
            if roles.calling.take().is_some() {
                OVER.notify_all();
            }
            if roles.retired {
                drop(roles);
                rest();
            }
            if roles.callbacks.is_empty() {
                roles.has_thread = false;
                CALLER.with(|caller| caller.0.set(0));
                return None;
            }
            if let Some(next) = roles.callbacks.iter_mut().find(|registered| registered.told != Some(number)) {
                next.told = Some(number);
                let next = *next;
                roles.calling = Some(next);
                return Some((next, number));
            }
        }
        match client.zip(role) {
            Some((client, role)) => client.await_another_role(role),
            None => std::thread::sleep(NAP),
        }
    }
}

/// Waits for ever, which takes no system call but the one that waits for a lock.
fn rest() -> ! {
    let mut roles = ROLES.lock().unwrap_or_else(PoisonError::into_inner);
    roles.rests = true;
    OVER.notify_all();
    loop {
        roles = OVER.wait(roles).unwrap_or_else(PoisonError::into_inner);
    }
}

/// Before the process forbids itself system calls that the thread makes. No callback is called any more.
pub fn retire(client: &Client) {
    lock(&ROLES).retired = true;
    client.wake_for_role();
    let _inside = Bypass::enter();
    let mut roles = ROLES.lock().unwrap_or_else(PoisonError::into_inner);
    // In a callback it is the program's.
    while roles.has_thread && !roles.rests && roles.calling.is_none() {
        roles = OVER.wait(roles).unwrap_or_else(PoisonError::into_inner);
    }
}

/// The lock, for a fork to hold.
pub struct RolesGuard(Locked<'static, Roles>);

/// Keeps other threads from registering.
pub fn hold() -> RolesGuard {
    RolesGuard(lock(&ROLES))
}

impl RolesGuard {
    /// In the child of a fork: the callbacks are its parent's, and so is the thread.
    pub fn forget(&mut self) {
        let process = self.0.process + 1;
        *self.0 = Roles::of_process(process);
    }
}
