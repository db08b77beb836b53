//! A manager as a thread of the application's own process, with a private descriptor table.

use std::io;
use std::path::Path;
use std::sync::mpsc;

use rustix::io::Errno;
use rustix::thread::{
    capabilities, configure_capability_in_ambient_set, set_capabilities, set_capabilities_secure_bits, CapabilitiesSecureBits,
    CapabilitySet,
};

use super::{Hosting, Manager};
use crate::config::{Config, ConfigError};

/// What the hooks of the same process need to join the channel.
#[derive(Clone, Debug)]
pub struct EmbeddedHandle {
    /// Name of the service.
    pub service: String,
    /// The token that admits them.
    pub token: String,
}

/// Why a manager cannot be a part of this process, in words for its user.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no thread for it.
    #[error("cannot start the manager thread: {0}")]
    Thread(io::Error),
    /// The manager does not start.
    #[error(transparent)]
    Manager(io::Error),
    /// The manager's thread has ended, and did not say why.
    #[error("the manager thread ended at once")]
    Ended,
}

/// Starts a manager thread. The privileges must be there now.
///
/// # Errors
/// The configuration cannot be used, or the manager does not start.
pub fn start_embedded(config: Option<&Path>) -> Result<EmbeddedHandle, EmbedError> {
    let config = Config::load(config)?;
    let (tell, told) = mpsc::channel();
    std::thread::Builder::new()
        .name("tcpr".to_owned())
        .spawn(move || {
            crate::channel::client::Bypass::this_thread();
            let made = seclude().and_then(|()| Manager::new(config, Hosting::default()));
            match made {
                Ok(manager) => {
                    let handle = EmbeddedHandle { service: manager.service().to_owned(), token: manager.token().to_owned() };
                    if tell.send(Ok(handle)).is_err() {
                        return;
                    }
                    if let Err(error) = manager.run() {
                        log::error!(error:%; "the manager ended");
                    }
                }
                // The starter has gone only if the process ends.
                Err(error) => drop(tell.send(Err(error))),
            }
        })
        .map_err(EmbedError::Thread)?;
    told.recv().map_err(|_| EmbedError::Ended)?.map_err(EmbedError::Manager)
}

/// A guest's manners: its own descriptor table, no signals, no part in the process's setuid.
fn seclude() -> io::Result<()> {
    // SAFETY: all zeroes is a valid value of this plain C structure, and sigfillset fills it.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
    }
    // SAFETY: no pointers. After it the descriptors of this thread are its own, and those of the application
    // are no longer among them.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // Over a later setuid of the process, too: without this the kernel would take NFQUEUE away.
    let kept = set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP);
    if let Err(error) = kept.and_then(|()| pass_on_capabilities()) {
        log::warn!(error:%; "cannot keep privileges over setuid");
    }
    Ok(())
}

/// What the programs need that change packet rules: a lock file of root's, the rules.
const FOR_RULES: [CapabilitySet; 3] = [CapabilitySet::DAC_OVERRIDE, CapabilitySet::NET_ADMIN, CapabilitySet::NET_RAW];

/// Of a process that is not root a program inherits no privileges, but for those that are ambient. All of this concerns the
/// calling thread only.
fn pass_on_capabilities() -> Result<(), Errno> {
    let mut sets = capabilities(None)?;
    let mine: Vec<CapabilitySet> = FOR_RULES.into_iter().filter(|c| sets.permitted.contains(*c)).collect();
    mine.iter().for_each(|c| sets.inheritable |= *c);
    set_capabilities(None, sets)?;
    mine.into_iter().try_for_each(|c| configure_capability_in_ambient_set(c, true))
}
