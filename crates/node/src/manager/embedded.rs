//! A manager as a thread of the application's own process, with a private descriptor table.

use std::io;
use std::path::Path;
use std::sync::mpsc;

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

/// Keeps the privileges of the calling thread over a later setuid of the process: without it the kernel takes
/// NFQUEUE away. Linux, securebits.h: SECBIT_NO_SETUID_FIXUP.
const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;

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
    // SAFETY: no pointers; it concerns this thread only.
    let kept = match unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) } {
        0 => pass_on_capabilities(),
        _ => Err(io::Error::last_os_error()),
    };
    if let Err(error) = kept {
        log::warn!(error:%; "cannot keep privileges over setuid");
    }
    Ok(())
}

/// What the programs need that change packet rules, as capability.h numbers them: DAC_OVERRIDE (a lock file), NET_ADMIN,
/// NET_RAW.
const FOR_RULES: [u32; 3] = [1, 12, 13];

/// Of a process that is not root a program inherits no privileges, but for those that are ambient.
fn pass_on_capabilities() -> io::Result<()> {
    // linux/capability.h: version and thread; effective, permitted, inheritable, the lower half and the upper half.
    let header: [u32; 2] = [0x2008_0522, 0];
    let mut sets = [0u32; 6];
    // SAFETY: header and sets are as this version of the call has them, and live through it.
    if unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let [_, permitted, inheritable, ..] = &mut sets;
    let mine: Vec<u32> = FOR_RULES.into_iter().filter(|c| *permitted & (1 << c) != 0).collect();
    mine.iter().for_each(|c| *inheritable |= 1 << c);
    // SAFETY: as above.
    if unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    for capability in mine {
        // SAFETY: no pointers; it concerns this thread only.
        if unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, capability, 0, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
