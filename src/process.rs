//! What this process is to tcpr: its connection to the manager, the connections that it holds, and what a fork
//! makes of both.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use libc::c_int;
use tcpr_node::channel::client::{Bypass, Client, ClientError};
use tcpr_node::channel::{Event, Origin, Own};
use tcpr_session::tuple::FourTuple;

use crate::table::{self, Entry};
use crate::{diag, ffi, ops, real, turn};

/// How long to wait for a manager that is still starting.
const PATIENCE: Duration = Duration::from_secs(5);

struct Environment {
    /// Service and token, if `tcpr run` started us.
    service: Option<(String, String)>,
    log: Option<String>,
    /// Destinations of protected connections, as `tcpr run` says.
    outgoing: Vec<SocketAddr>,
    /// Protected ports, as `tcpr run` says.
    ports: Vec<u16>,
    /// Preloaded, and not by `tcpr run`.
    may_embed: bool,
    /// `TCPR_CONFIG`; servers that wipe their environment do so later.
    config: Option<PathBuf>,
}

static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();

/// Called by the constructor.
pub fn remember_environment() {
    let variable = |name| std::env::var(name).ok();
    let service = variable("TCPR_SERVICE").zip(variable("TCPR_TOKEN"));
    let preloaded = variable("LD_PRELOAD").is_some_and(|list| list.contains("libtcpr"));
    let may_embed = service.is_none() && preloaded;
    CONFIGURED.store(service.is_some() || may_embed, Ordering::Relaxed);
    let config = std::env::var_os("TCPR_CONFIG").map(PathBuf::from);
    let outgoing = variable("TCPR_OUTGOING").unwrap_or_default();
    let outgoing = outgoing.split(',').filter_map(|o| o.parse().ok()).collect();
    let ports = variable("TCPR_PORTS").unwrap_or_default().split(',').filter_map(|p| p.parse().ok()).collect();
    let runs = service.is_some();
    let log = variable("TCPR_LOG");
    if log.is_some() {
        let _inside = Bypass::enter();
        diag::open();
    }
    let _ = ENVIRONMENT.set(Environment { service, log, outgoing, ports, may_embed, config });
    if runs {
        ops::look_for_listeners();
    }
}

/// There may be a configuration that sockets match: `tcpr run` started us, we are preloaded, or `tcpr_init` was
/// called.
static CONFIGURED: AtomicBool = AtomicBool::new(false);
/// The process that hosts the embedded manager.
static EMBEDDER: AtomicU32 = AtomicU32::new(0);
static CLIENT: AtomicPtr<Client> = AtomicPtr::new(std::ptr::null_mut());
/// The process whose client that is. Another one that sees it was made by vfork or by a raw clone.
static OWNER: AtomicU32 = AtomicU32::new(0);
/// The client was lost in a fork: the next use of a protected descriptor joins anew.
static ORPHANED: AtomicBool = AtomicBool::new(false);
/// The program calls `tcpr_*` itself.
static LINKED: AtomicBool = AtomicBool::new(false);

/// How to join; under its lock the process joins.
static JOINING: Mutex<Option<Manager>> = Mutex::new(None);
static CONNECTIONS: Mutex<Option<HashMap<u32, Connection>>> = Mutex::new(None);
static NEXT_HANDLE: AtomicU32 = AtomicU32::new(1);
/// Connections with `swallow` or `muted`: when there are none, writes need not look.
static SWALLOWING: AtomicUsize = AtomicUsize::new(0);

/// The manager that we join.
struct Manager {
    service: String,
    token: String,
    /// It is a thread of this process, or of the one that forked us; with its configuration file, if one was named.
    embedded: Option<Option<PathBuf>>,
}

/// A protected connection of this process.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Its addresses, IPv4-mapped ones as IPv4.
    pub tuple: FourTuple,
    /// How we came by it.
    pub origin: Origin,
    /// Number of descriptors.
    descriptors: u32,
    /// How many of the bytes that are written next were sent before the failover.
    swallow: u64,
    /// `greeting = "absorb"`, and nothing has been read yet.
    muted: bool,
    /// A process that we forked, or to which we passed it, may hold it, too.
    shared: bool,
}

/// A lock that is held, by a thread that is inside: no signal handler runs before it is given up.
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

/// Nothing of ours is poisoned by a panic: what a lock guards is consistent at every point.
pub fn lock<T>(mutex: &Mutex<T>) -> Locked<'_, T> {
    let _inside = Bypass::enter();
    Locked { guard: mutex.lock().unwrap_or_else(PoisonError::into_inner), _inside }
}

/// Whether a bind or listen might concern us at all.
pub fn is_configured() -> bool {
    CONFIGURED.load(Ordering::Relaxed)
}

/// Notes that the program calls `tcpr_*` itself.
pub fn is_linked() {
    LINKED.store(true, Ordering::Relaxed);
}

/// The connection to the manager, if there is one already and its manager lives.
pub fn joined() -> Option<&'static Client> {
    if table::is_foreign() {
        return None;
    }
    let client = CLIENT.load(Ordering::Acquire);
    // SAFETY: a client is leaked when it is stored here. Only the child of a fork frees it, while it has one
    // thread, which is then inside fork and holds no reference.
    let client = unsafe { client.as_ref() }?;
    (!client.is_gone()).then_some(client)
}

/// How to join for a socket that the program did not make by `tcpr_socket`; `None`: it is none of our business.
pub fn join_for(to: SocketAddr) -> Option<Result<&'static Client, ClientError>> {
    let environment = ENVIRONMENT.get()?;
    if let (true, None) = (environment.may_embed, joined()) {
        let config = environment.config.as_deref();
        return match crate::embedded::protects(config, to) {
            Ok(true) => Some(join_or_embed(config)),
            Ok(false) => None,
            Err(text) => Some(Err(ClientError { errno: libc::ENOTCONN, text })),
        };
    }
    Some(join())
}

/// Whether a listener at this address might be a protected one, whether we have joined or not; joins if it takes a manager of
/// our own.
pub fn may_protect(at: Option<SocketAddr>) -> bool {
    let (Some(at), Some(environment)) = (at, ENVIRONMENT.get()) else { return false };
    match joined() {
        Some(client) => protects(client, at),
        None if environment.service.is_some() => environment.ports.contains(&at.port()),
        None => environment.may_embed && join_for(at).is_some_and(|joined| joined.is_ok()),
    }
}

/// Whether a connect might concern us at all.
pub fn may_call() -> bool {
    is_configured()
        && match joined() {
            Some(client) => !client.welcome().outgoing.is_empty(),
            None => ENVIRONMENT.get().is_some_and(|e| e.may_embed || !e.outgoing.is_empty()),
        }
}

/// Whether the configuration protects connections to this address. `made`: of sockets made by `tcpr_socket`.
pub fn calls(to: SocketAddr, made: bool) -> bool {
    if let Some(client) = joined() {
        return is_ours() && client.welcome().outgoing.iter().any(|o| o.address == to);
    }
    let Some(environment) = ENVIRONMENT.get() else { return false };
    match environment.service.is_none() && (environment.may_embed || made) {
        true => crate::embedded::calls(environment.config.as_deref(), to),
        false => environment.outgoing.contains(&to),
    }
}

/// The connection to the manager for an act on a protected descriptor; after a fork it is made here.
pub fn client() -> Option<&'static Client> {
    if ORPHANED.load(Ordering::Acquire) && is_ours() {
        if let Err(e) = join() {
            log::error!("the child of a fork cannot join the manager: {e}");
            ORPHANED.store(false, Ordering::Release);
        }
    }
    joined()
}

/// The process is about to forbid itself most system calls: from now on it is one without this library. What it has goes on;
/// only packets and the kernel say how.
pub fn leave() {
    let Some(client) = client().filter(|_| is_ours()) else { return };
    turn::commit(client);
    if let Err(e) = client.leave() {
        log::error!("the manager does not know that this process locks itself in: {e}");
    }
    CONFIGURED.store(false, Ordering::Relaxed);
    CLIENT.store(std::ptr::null_mut(), Ordering::Release);
    OWNER.store(0, Ordering::Release);
    for (fd, _) in table::range(0, u32::MAX) {
        table::set(fd, None);
    }
    turn::forget(false);
    ops::leave_handlers();
    log::set_max_level(log::LevelFilter::Off);
}

/// False in the child of a vfork, which runs in its parent's memory but with descriptors of its own.
pub fn is_ours() -> bool {
    OWNER.load(Ordering::Relaxed) == std::process::id()
}

/// Whether a manager is a thread of this process.
pub fn hosts_manager() -> bool {
    EMBEDDER.load(Ordering::Relaxed) == std::process::id()
}

/// Joins the manager: that of `tcpr run`, or an embedded one. Does nothing if the process has joined.
pub fn join_or_embed(config: Option<&Path>) -> Result<&'static Client, ClientError> {
    {
        let _inside = Bypass::enter();
        let mut manager = lock(&JOINING);
        if manager.is_none() && ENVIRONMENT.get().is_none_or(|e| e.service.is_none()) {
            prepare_once();
            *manager = Some(embed(config)?);
            CONFIGURED.store(true, Ordering::Release);
        }
    }
    join()
}

fn embed(config: Option<&Path>) -> Result<Manager, ClientError> {
    let config = config.or_else(|| ENVIRONMENT.get().and_then(|e| e.config.as_deref()));
    let (service, token) = crate::embedded::start(config).map_err(|text| ClientError { errno: libc::ENOTCONN, text })?;
    EMBEDDER.store(std::process::id(), Ordering::Relaxed);
    // A daemon changes its directory before it reads the file again.
    let config = config.map(|path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    Ok(Manager { service, token, embedded: Some(config) })
}

/// In a forked process: joins the parent's manager, or starts one here if it is gone with the parent. While the parent
/// is dying neither works: its manager is silent, and holds lock, queues and ports.
fn connect_or_embed(manager: &mut Manager) -> Result<Client, ClientError> {
    let deadline = Instant::now() + PATIENCE;
    let config = manager.embedded.clone().flatten();
    loop {
        if let Ok(client) = connect(manager, Duration::ZERO) {
            return Ok(client);
        }
        match embed(config.as_deref()) {
            Ok(own) => *manager = own,
            Err(e) if Instant::now() < deadline => log::debug!("not yet: {e}"),
            Err(e) => return Err(e),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Joins the manager that the environment or `join_or_embed` named.
pub fn join() -> Result<&'static Client, ClientError> {
    let _inside = Bypass::enter();
    let mut manager = lock(&JOINING);
    if let Some(client) = joined() {
        return Ok(client);
    }
    if manager.is_none() {
        let named = ENVIRONMENT.get().and_then(|e| e.service.clone());
        *manager = named.map(|(service, token)| Manager { service, token, embedded: None });
    }
    let Some(manager) = manager.as_mut() else {
        let text = "the program was not started by tcpr run".into();
        return Err(ClientError { errno: libc::ENOTCONN, text });
    };
    prepare_once();
    let orphaned = ORPHANED.load(Ordering::Acquire);
    let client = match manager.embedded {
        Some(_) if orphaned => connect_or_embed(manager)?,
        // That of the parent is there, or out of reach: in another network namespace.
        None if orphaned => connect(manager, Duration::ZERO)?,
        _ => connect(manager, PATIENCE)?,
    };
    let client: &'static Client = Box::leak(Box::new(client));
    table::claim();
    OWNER.store(std::process::id(), Ordering::Release);
    CLIENT.store(std::ptr::from_ref(client).cast_mut(), Ordering::Release);
    ORPHANED.store(false, Ordering::Release);
    ops::watch_handlers();
    if orphaned {
        attach_inherited(client);
        if manager.embedded.is_some() && !hosts_manager() {
            outlive(client);
        }
    }
    let welcome = client.welcome();
    log::info!("joined service \"{}\" as channel {}", welcome.service, welcome.channel);
    Ok(client)
}

fn connect(manager: &Manager, patience: Duration) -> Result<Client, ClientError> {
    Client::connect(&manager.service, &manager.token, LINKED.load(Ordering::Relaxed), patience, note)
}

/// A number is a descriptor of our own from now on, or none any more.
pub fn note(fd: c_int, ours: bool) {
    match ours {
        true => drop(table::set(fd, Some(Entry::Internal))),
        false => drop(table::replace(fd, Entry::Internal, None)),
    }
}

/// The application wants a number for itself that is one of ours.
pub fn vacate(fd: c_int) {
    note(fd, false);
    if let Some(client) = joined() {
        client.vacate(fd);
    }
    ops::vacate_stash(fd);
    diag::vacate(fd);
}

fn attach_inherited(client: &Client) {
    for (&handle, connection) in lock(&CONNECTIONS).iter().flatten() {
        let tuple = connection.tuple;
        client.push(&Event::Attach { thread: turn::thread(), handle, origin: Origin::Inherited, tuple });
    }
    for (fd, entry) in table::range(0, u32::MAX) {
        if let Entry::Listener { port } = entry {
            ops::tell_listener(client, fd, port);
        }
    }
}

/// The manager is a thread of the process that forked us, which may end at once (daemon) or later: then one is
/// started here, whatever this process waits for just now.
fn outlive(client: &'static Client) {
    let watch = move || {
        Bypass::this_thread();
        ffi::block_signals();
        client.wait_gone();
        ORPHANED.store(true, Ordering::Release);
        if let Err(e) = join() {
            log::error!("the manager is gone with the parent process, and no other can be started: {e}");
        }
    };
    if let Err(e) = std::thread::Builder::new().name("tcpr-watch".to_owned()).spawn(watch) {
        log::error!("cannot watch the parent's manager: {e}");
    }
}

fn prepare_once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        diag::start(ENVIRONMENT.get().and_then(|e| e.log.as_deref()));
        turn::prepare();
        real::at_fork(before_fork, after_fork_in_parent, after_fork_in_child);
    });
}

/// Whether the configuration protects a listener at this address.
pub fn protects(client: &Client, address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let welcome = client.welcome();
    (ip.is_unspecified() || welcome.vips.contains(&ip)) && welcome.ports.iter().any(|p| p.port == address.port())
}

/// Whether an address is one of the service's virtual ones.
pub fn is_virtual(client: &Client, ip: IpAddr) -> bool {
    client.welcome().vips.contains(&ip.to_canonical())
}

/// Makes a descriptor a protected connection and tells the manager.
///
/// `swallow`: how much of what it writes first was sent before a failover; `greeted`: and something before that.
pub fn attach(client: &Client, fd: c_int, tuple: FourTuple, origin: Origin, swallow: u64, greeted: bool) {
    let handle = NEXT_HANDLE.fetch_add(1, Ordering::Relaxed);
    if handle > table::MAX_HANDLE {
        log::error!("this process has had too many connections: the next ones are not protected");
        NEXT_HANDLE.store(table::MAX_HANDLE + 1, Ordering::Relaxed);
        return;
    }
    let (port, welcome) = (tuple.local.port(), client.welcome());
    let muted = greeted
        && (welcome.ports.iter().any(|p| p.port == port && p.absorb_greeting)
            || welcome.outgoing.iter().any(|o| o.address == tuple.peer && o.absorb_greeting));
    if muted || swallow > 0 {
        SWALLOWING.fetch_add(1, Ordering::Relaxed);
    }
    let connection = Connection { tuple, origin, descriptors: 1, swallow, muted, shared: false };
    lock(&CONNECTIONS).get_or_insert_default().insert(handle, connection);
    // Told before the descriptor is used: the attachment precedes every other event of it.
    turn::attached(client, handle, origin, tuple);
    let stale = table::set(fd, Some(Entry::Connection { handle }));
    forget_entry(stale);
}

/// A protected connection, for questions about it.
pub fn connection(handle: u32) -> Option<Connection> {
    lock(&CONNECTIONS).as_ref()?.get(&handle).cloned()
}

/// A connection of this process with these addresses.
pub fn holds(tuple: &FourTuple) -> Option<u32> {
    let connections = lock(&CONNECTIONS);
    connections.iter().flatten().find(|(_, connection)| connection.tuple == *tuple).map(|(handle, _)| *handle)
}

/// A descriptor is about to be passed to another process, which may hold the connection, too, from then on.
pub fn passed(handle: u32) {
    if let Some(connection) = lock(&CONNECTIONS).as_mut().and_then(|c| c.get_mut(&handle)) {
        connection.shared = true;
    }
}

/// A further descriptor of the same thing.
pub fn duplicated(entry: Entry, fd: c_int) {
    if let Entry::Connection { handle } = entry {
        if let Some(connection) = lock(&CONNECTIONS).as_mut().and_then(|c| c.get_mut(&handle)) {
            connection.descriptors += 1;
        }
    }
    let stale = table::set(fd, Some(entry));
    forget_entry(stale);
}

/// A descriptor is about to be closed: clears its entry, and tells the manager if it is the connection's last.
pub fn closing(fd: c_int) {
    // Cleared before the close: its number may belong to somebody else the moment it is closed.
    let Some(Entry::Connection { handle }) = table::set(fd, None) else { return };
    tell_released(handle);
}

/// A descriptor turned out to be something else: it was closed behind our back and its number used again.
pub fn forget(fd: c_int) {
    let stale = table::set(fd, None);
    forget_entry(stale);
}

fn forget_entry(stale: Option<Entry>) {
    if let Some(Entry::Connection { handle }) = stale {
        tell_released(handle);
    }
}

/// One descriptor less; the manager hears of the last.
fn tell_released(handle: u32) {
    let Some(last) = released(handle) else { return };
    if let Some(client) = joined() {
        turn::output(client, |thread| Event::Close { thread, handle, shared: last.shared });
    }
}

/// One descriptor less; the connection if it was the last.
fn released(handle: u32) -> Option<Connection> {
    let mut guard = lock(&CONNECTIONS);
    let connections = guard.as_mut()?;
    let connection = connections.get_mut(&handle)?;
    connection.descriptors = connection.descriptors.saturating_sub(1);
    if connection.descriptors > 0 {
        return None;
    }
    if connection.muted || connection.swallow > 0 {
        SWALLOWING.fetch_sub(1, Ordering::Relaxed);
    }
    connections.remove(&handle)
}

/// What a recovered connection does not write again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swallowed {
    /// Write it.
    Nothing,
    /// The first so many bytes were sent before the failover.
    Sent(u64),
    /// A greeting that the peer has already had.
    Greeting,
}

/// How much of a write of `n` bytes is to be swallowed.
pub fn swallow(handle: u32, n: u64) -> Swallowed {
    if SWALLOWING.load(Ordering::Relaxed) == 0 {
        return Swallowed::Nothing;
    }
    let mut guard = lock(&CONNECTIONS);
    let Some(connection) = guard.as_mut().and_then(|c| c.get_mut(&handle)) else {
        return Swallowed::Nothing;
    };
    if connection.muted {
        return Swallowed::Greeting;
    }
    let part = connection.swallow.min(n);
    if part == 0 {
        return Swallowed::Nothing;
    }
    connection.swallow -= part;
    if connection.swallow == 0 {
        SWALLOWING.fetch_sub(1, Ordering::Relaxed);
    }
    Swallowed::Sent(part)
}

/// A recovered connection was read from: its greeting is over.
pub fn was_read(handle: u32) {
    if SWALLOWING.load(Ordering::Relaxed) == 0 {
        return;
    }
    let mut guard = lock(&CONNECTIONS);
    if let Some(connection) = guard.as_mut().and_then(|c| c.get_mut(&handle)) {
        if std::mem::take(&mut connection.muted) && connection.swallow == 0 {
            SWALLOWING.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The process exits normally.
pub fn exiting() {
    if CLIENT.load(Ordering::Acquire).is_null() || OWNER.load(Ordering::Relaxed) != std::process::id() {
        return;
    }
    ffi::guarded((), || {
        let Some(_inside) = Bypass::enter_first() else { return };
        let Some(client) = joined() else { return };
        let connections = lock(&CONNECTIONS);
        let shared = connections.iter().flatten().filter(|(_, connection)| connection.shared);
        let shared: Vec<u32> = shared.map(|(handle, _)| *handle).collect();
        drop(connections);
        for handle in shared {
            client.push(&Event::Close { thread: 0, handle, shared: true });
        }
        // What has connected and was never used is closed in order, too.
        for (fd, _) in table::range(0, u32::MAX).filter(|(_, entry)| *entry == Entry::Calling) {
            ops::arrived(client, fd);
        }
        client.push(&Event::Exit);
        if EMBEDDER.load(Ordering::Relaxed) == std::process::id() {
            // The manager dies with us: connections are closed while it can still let their FINs pass.
            let connections = table::range(0, u32::MAX).filter(|(_, entry)| matches!(entry, Entry::Connection { .. }));
            ffi::close_and_keep(connections.map(|(fd, _)| fd));
            client.dismiss();
        }
    });
}

/// Our locks, held over a fork so that the child finds them free.
struct Held {
    _joining: Locked<'static, Option<Manager>>,
    stash: ops::StashGuard,
    _streams: ops::StreamsGuard,
    connections: Locked<'static, Option<HashMap<u32, Connection>>>,
    _log: Locked<'static, Option<Own>>,
}

thread_local! {
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

/// Before a fork: what the child is to find free is held.
pub extern "C" fn before_fork() {
    ffi::guarded((), || {
        // A fork inside one of our critical sections can come from a signal handler only.
        if Bypass::active() {
            return;
        }
        let _inside = Bypass::enter();
        real::lock_stream_list();
        let held = Held {
            _joining: lock(&JOINING),
            stash: ops::lock_stash(),
            _streams: ops::lock_streams(),
            connections: lock(&CONNECTIONS),
            _log: diag::lock(),
        };
        HELD.with(|h| *h.borrow_mut() = Some(held));
    });
}

/// After it, and after one that failed.
pub extern "C" fn after_fork_in_parent() {
    ffi::guarded((), || {
        let _inside = Bypass::enter();
        if let Some(mut held) = HELD.with(|h| h.borrow_mut().take()) {
            for connection in held.connections.iter_mut().flat_map(HashMap::values_mut) {
                connection.shared = true;
            }
            ops::note_fork();
            drop(held);
            real::unlock_stream_list();
        }
    });
}

/// In the child: what the parent told is not this process's.
pub extern "C" fn after_fork_in_child() {
    ffi::guarded((), || {
        let _inside = Bypass::enter();
        if let Some(mut held) = HELD.with(|h| h.borrow_mut().take()) {
            // Recovered connections that the parent has not handed out are the parent's.
            held.stash.clear();
            ops::note_fork();
            drop(held);
            real::reset_stream_list();
        }
        let client = CLIENT.swap(std::ptr::null_mut(), Ordering::AcqRel);
        // The parent may be a forked process itself, and have done nothing yet.
        let orphaned = !client.is_null() || ORPHANED.load(Ordering::Acquire);
        turn::forget(orphaned && EMBEDDER.load(Ordering::Relaxed) != 0);
        if !orphaned {
            return;
        }
        for (fd, entry) in table::range(0, u32::MAX) {
            match entry {
                Entry::Internal => table::set(fd, None),
                // Whoever was about to is a thread of the parent's.
                Entry::Arriving => table::set(fd, Some(Entry::Calling)),
                _ => continue,
            };
        }
        table::claim();
        OWNER.store(std::process::id(), Ordering::Release);
        ORPHANED.store(true, Ordering::Release);
        diag::keep();
        if !client.is_null() {
            // Closes the parent's channel here, and unmaps its ring, so that nothing of ours can reach it.
            // SAFETY: it was leaked by `join`; this is the only thread, and it is inside fork, not using it.
            drop(unsafe { Box::from_raw(client) });
        }
    });
}
