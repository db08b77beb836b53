//! The life of a process with this library: its beginning, joining a manager, locking itself in, its exit.

use std::sync::atomic::{AtomicU8, Ordering};

use tcpr_node::channel::client::{Bypass, Client};
use tcpr_node::channel::Event;

use super::{adopt, attach, fork, listening, signals, streams};
use crate::guard::first_inside;
use crate::manager::Steps;
use crate::table::{self, Entry};
use crate::{connections, diag, environment, heap, manager, real, roles, sys, turn};

/// Called by the constructor, or by that of the hot standby's library if it runs first. Little is done this early. But inherited listeners are looked for now: if the program only waits
/// on one of them, no later call would tell us, and nobody would wake the program.
///
/// False: it is being done, and a hooked call in the middle of it leads here again.
pub fn begin() -> bool {
    const BEGINS: u8 = 1;
    const DONE: u8 = 2;
    static STATE: AtomicU8 = AtomicU8::new(0);
    match STATE.compare_exchange(0, BEGINS, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {
            begin_once();
            STATE.store(DONE, Ordering::Release);
            true
        }
        Err(state) => state == DONE,
    }
}

fn begin_once() {
    heap::place_mappings();
    manager::hand_in(Steps { prepare, joined });
    let environment = environment::read();
    let runs = environment.service.is_some();
    if runs || environment.may_embed {
        manager::note_configured();
    }
    if environment.log.is_some() {
        let _inside = Bypass::enter();
        diag::open();
    }
    if runs {
        adopt::look_for_listeners();
    }
}

/// Before the first attempt to join.
fn prepare() {
    diag::start(environment::get().and_then(|e| e.log.as_deref()));
    turn::prepare();
    real::at_fork(fork::before, fork::after_in_parent, fork::after_in_child);
}

/// The process has joined.
fn joined(client: &Client, orphaned: bool) {
    signals::watch_handlers();
    if !orphaned {
        return;
    }
    connections::attach_inherited(client);
    for (fd, entry) in table::range(0, u32::MAX) {
        if let Entry::Listener { port } = entry {
            listening::tell_listener(client, fd, port);
        }
    }
}

/// The process is about to forbid itself most system calls: from now on it is a process without this library. Its connections
/// go on; the manager knows them from packets and the kernel.
pub fn leave() {
    let Some(client) = manager::client().filter(|_| manager::is_ours()) else { return };
    turn::commit(client);
    roles::retire(client);
    manager::leave(client);
    for (fd, _) in table::range(0, u32::MAX) {
        table::set(fd, None);
    }
    turn::forget(false);
    signals::leave_handlers();
    log::set_max_level(log::LevelFilter::Off);
}

/// The program has returned from its `main`, or has called `exit`: its own exit handlers have run.
pub fn at_exit() {
    streams::flush_streams();
    exiting();
}

/// The process exits normally.
pub fn exiting() {
    if !manager::is_ours() {
        return;
    }
    first_inside(|| {
        let Some(client) = manager::joined() else { return };
        for handle in connections::shared() {
            client.push(&Event::Close { thread: 0, handle, shared: true });
        }
        // A socket that has connected and was never used is closed in order, too.
        for (fd, _) in table::range(0, u32::MAX).filter(|(_, entry)| *entry == Entry::Connecting) {
            attach::arrived(client, fd);
        }
        client.push(&Event::Exit);
        if manager::is_here() {
            // The manager dies with us: connections are closed while it can still let their FINs pass.
            let connections = table::range(0, u32::MAX).filter(|(_, entry)| matches!(entry, Entry::Connection { .. }));
            sys::close_and_keep(connections.map(|(fd, _)| fd));
            client.dismiss();
        }
    });
}
