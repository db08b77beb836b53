//! The manager of this process: how it is found and joined, and how it is lost.
//!
//! Nothing here calls what stands above it. What the rest of the library does when the process joins is handed in
//! ([`hand_in`]).

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};
use std::sync::{Mutex, Once, OnceLock};
use std::time::{Duration, Instant};

use tcpr_node::channel::client::{Bypass, Client, ClientError};

use crate::locks::{lock, Locked};
use crate::{embedded, environment, sys, table};

/// How long to wait for a manager that is still starting.
const PATIENCE: Duration = Duration::from_secs(5);

/// There may be a configuration that sockets match: `tcpr run` started us, we are preloaded, or `tcpr_init` was called.
static CONFIGURED: AtomicBool = AtomicBool::new(false);
/// The process that hosts the embedded manager; 0: none does.
static EMBEDDER: AtomicU32 = AtomicU32::new(0);
static CLIENT: AtomicPtr<Client> = AtomicPtr::new(std::ptr::null_mut());
/// The process whose client that is. Another process that sees it was made by vfork or by a raw clone.
static OWNER: AtomicU32 = AtomicU32::new(0);
/// The client was lost in a fork: the next use of a protected descriptor joins anew.
static ORPHANED: AtomicBool = AtomicBool::new(false);
/// How to join. The process joins under this lock.
static JOINING: Mutex<Option<Address>> = Mutex::new(None);
static STEPS: OnceLock<Steps> = OnceLock::new();

/// What the rest of the library does when this process joins.
pub struct Steps {
    /// Before the first attempt.
    pub prepare: fn(),
    /// After each success. The flag: a fork made this process, and what it holds is its parent's.
    pub joined: fn(&Client, bool),
}

/// The manager that we join.
struct Address {
    service: String,
    token: String,
    /// The manager is a thread of this process, or of the one that forked us; with its configuration file, if one was named.
    embedded: Option<Option<PathBuf>>,
}

/// Hands in what is done when this process joins. Called once, by the constructor: nothing can be joined before.
pub fn hand_in(steps: Steps) {
    let _ = STEPS.set(steps);
}

/// Binds and connects of this program may concern us from now on.
pub fn note_configured() {
    CONFIGURED.store(true, Ordering::Release);
}

/// Whether a bind or listen might concern us at all.
pub fn is_configured() -> bool {
    CONFIGURED.load(Ordering::Relaxed)
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

/// False in the child of a vfork, which runs in its parent's memory but with descriptors of its own.
pub fn is_ours() -> bool {
    OWNER.load(Ordering::Relaxed) == std::process::id()
}

/// Whether hooks of the calling thread act at all: the thread is not inside the library, and the process has joined, or was
/// forked by one that had.
pub fn acts() -> bool {
    !Bypass::active() && is_ours()
}

/// Whether a descriptor that turns up may be ours: the thread is not inside the library, and the process has joined or may
/// yet join.
pub fn concerns() -> bool {
    !Bypass::active() && (joined().is_some() || is_configured())
}

/// Whether a manager is a thread of this process.
pub fn is_here() -> bool {
    EMBEDDER.load(Ordering::Relaxed) == std::process::id()
}

/// How to join for a socket that the program did not make by `tcpr_socket`; `None`: such a socket is none of our business.
pub fn join_for(to: SocketAddr) -> Option<Result<&'static Client, ClientError>> {
    let environment = environment::get()?;
    if let (true, None) = (environment.may_embed, joined()) {
        let config = environment.config.as_deref();
        return match embedded::protects(config, to) {
            Ok(true) => Some(join_or_embed(config)),
            Ok(false) => None,
            Err(text) => Some(Err(ClientError { errno: libc::ENOTCONN, text })),
        };
    }
    Some(join())
}

/// Joins the manager: that of `tcpr run`, or an embedded one. Does nothing if the process has joined.
pub fn join_or_embed(config: Option<&Path>) -> Result<&'static Client, ClientError> {
    {
        let mut address = lock(&JOINING);
        if address.is_none() && environment::get().is_none_or(|e| e.service.is_none()) {
            prepare()?;
            *address = Some(embed(config)?);
            note_configured();
        }
    }
    join()
}

/// Joins the manager that the environment or `join_or_embed` named.
pub fn join() -> Result<&'static Client, ClientError> {
    let mut address = lock(&JOINING);
    if let Some(client) = joined() {
        return Ok(client);
    }
    if address.is_none() {
        let named = environment::get().and_then(|e| e.service.clone());
        *address = named.map(|(service, token)| Address { service, token, embedded: None });
    }
    let Some(address) = address.as_mut() else {
        return Err(not_connected("the program was not started by tcpr run"));
    };
    let steps = prepare()?;
    let orphaned = ORPHANED.load(Ordering::Acquire);
    let client = match address.embedded {
        Some(_) if orphaned => connect_or_embed(address)?,
        // That of the parent is there, or out of reach: in another network namespace.
        None if orphaned => connect(address, Duration::ZERO)?,
        _ => connect(address, PATIENCE)?,
    };
    let client: &'static Client = Box::leak(Box::new(client));
    table::claim();
    OWNER.store(std::process::id(), Ordering::Release);
    CLIENT.store(std::ptr::from_ref(client).cast_mut(), Ordering::Release);
    ORPHANED.store(false, Ordering::Release);
    (steps.joined)(client, orphaned);
    if orphaned && address.embedded.is_some() && !is_here() {
        outlive(client);
    }
    let welcome = client.welcome();
    log::info!("joined service \"{}\" as channel {}", welcome.service, welcome.channel);
    Ok(client)
}

fn not_connected(text: &str) -> ClientError {
    ClientError { errno: libc::ENOTCONN, text: text.to_owned() }
}

/// The steps, of which the first is done now if this is the first attempt to join.
fn prepare() -> Result<&'static Steps, ClientError> {
    static ONCE: Once = Once::new();
    let steps = STEPS.get().ok_or_else(|| not_connected("the constructor of libtcpr has not run yet"))?;
    ONCE.call_once(steps.prepare);
    Ok(steps)
}

fn connect(address: &Address, patience: Duration) -> Result<Client, ClientError> {
    Client::connect(&address.service, &address.token, patience, table::note)
}

fn embed(config: Option<&Path>) -> Result<Address, ClientError> {
    let config = config.or_else(|| environment::get().and_then(|e| e.config.as_deref()));
    let (service, token) = embedded::start(config).map_err(|text| ClientError { errno: libc::ENOTCONN, text })?;
    EMBEDDER.store(std::process::id(), Ordering::Relaxed);
    // A daemon changes its directory before it reads the file again.
    let config = config.map(|path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    Ok(Address { service, token, embedded: Some(config) })
}

/// In a forked process: joins the parent's manager, or starts one here if it is gone with the parent. While the parent
/// is dying neither works: its manager is silent, and holds lock, queues and ports.
fn connect_or_embed(address: &mut Address) -> Result<Client, ClientError> {
    let deadline = Instant::now() + PATIENCE;
    let config = address.embedded.clone().flatten();
    loop {
        if let Ok(client) = connect(address, Duration::ZERO) {
            return Ok(client);
        }
        match embed(config.as_deref()) {
            Ok(own) => *address = own,
            Err(e) if Instant::now() < deadline => log::debug!("not yet: {e}"),
            Err(e) => return Err(e),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The manager is a thread of the process that forked us, which may end at once (daemon) or later: then one is
/// started here, whatever this process waits for just now.
fn outlive(client: &'static Client) {
    let watch = move || {
        Bypass::this_thread();
        sys::block_signals();
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

/// The manager hears that this process is one without the library from now on.
pub fn leave(client: &Client) {
    if let Err(e) = client.leave() {
        log::error!("the manager does not know that this process locks itself in: {e}");
    }
    CONFIGURED.store(false, Ordering::Relaxed);
    CLIENT.store(std::ptr::null_mut(), Ordering::Release);
    OWNER.store(0, Ordering::Release);
}

/// The lock under which the process joins, for a fork to hold.
pub struct JoiningGuard {
    _address: Locked<'static, Option<Address>>,
}

/// Keeps other threads from joining.
pub fn hold() -> JoiningGuard {
    JoiningGuard { _address: lock(&JOINING) }
}

/// What the child of a fork has of its parent's.
pub struct Inherited {
    /// Closed with it: the parent's channel is not this process's.
    _channel: Option<Box<Client>>,
    /// A manager may have stayed behind in the parent.
    pub embedded: bool,
}

/// In the child of a fork, whose only thread this is: takes the parent's channel away. `None`: the parent had not joined.
pub fn orphan() -> Option<Inherited> {
    let channel = CLIENT.swap(std::ptr::null_mut(), Ordering::AcqRel);
    // The parent may be a forked process itself, and have done nothing yet.
    if channel.is_null() && !ORPHANED.load(Ordering::Acquire) {
        return None;
    }
    // SAFETY: a client that is not null was leaked by `join`. This thread is the only one, and is inside fork, not using it.
    let channel = (!channel.is_null()).then(|| unsafe { Box::from_raw(channel) });
    OWNER.store(std::process::id(), Ordering::Release);
    ORPHANED.store(true, Ordering::Release);
    Some(Inherited { _channel: channel, embedded: EMBEDDER.load(Ordering::Relaxed) != 0 })
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

/// Whether a listener at this address might be a protected one, whether we have joined or not; joins if it takes a manager of
/// our own.
pub fn may_protect(at: Option<SocketAddr>) -> bool {
    let (Some(at), Some(environment)) = (at, environment::get()) else { return false };
    match joined() {
        Some(client) => protects(client, at),
        None if environment.service.is_some() => environment.ports.contains(&at.port()),
        None => environment.may_embed && join_for(at).is_some_and(|joined| joined.is_ok()),
    }
}

/// Whether a connect might concern us at all.
pub fn may_protect_connects() -> bool {
    is_configured()
        && match joined() {
            Some(client) => !client.welcome().outgoing.is_empty(),
            None => environment::get().is_some_and(|e| e.may_embed || !e.outgoing.is_empty()),
        }
}

/// Whether the configuration protects connections to this address. `made`: of sockets made by `tcpr_socket`.
pub fn protects_destination(to: SocketAddr, made: bool) -> bool {
    if let Some(client) = joined() {
        return is_ours() && client.welcome().outgoing.iter().any(|o| o.address == to);
    }
    let Some(environment) = environment::get() else { return false };
    match environment.service.is_none() && (environment.may_embed || made) {
        true => embedded::protects_destination(environment.config.as_deref(), to),
        false => environment.outgoing.contains(&to),
    }
}
