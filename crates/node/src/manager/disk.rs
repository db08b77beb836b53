//! What a member keeps on disk: its lock, and the highest epoch it may have named.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use tcpr_session::role::Epoch;

/// The epoch file: it survives a reboot, so that a member never names an epoch twice.
pub struct EpochFile {
    path: PathBuf,
    named: u64,
}

impl EpochFile {
    /// Reads it; a member without one starts at 0.
    ///
    /// # Errors
    /// The state directory cannot be made or read, or the file is not ours.
    pub fn open(state_dir: &Path) -> io::Result<EpochFile> {
        let context = |e: io::Error, what: &str, p: &Path| io::Error::new(e.kind(), format!("{what} {}: {e}", p.display()));
        fs::create_dir_all(state_dir).map_err(|e| context(e, "cannot make the state directory", state_dir))?;
        let path = state_dir.join("epoch");
        let named = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{} does not hold a number; write the highest epoch of either member into it", path.display()),
                )
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
            Err(e) => return Err(context(e, "cannot read", &path)),
        };
        Ok(EpochFile { path, named })
    }

    /// The highest epoch that this member may have named in an earlier life.
    pub fn last(&self, me: u8) -> Epoch {
        Epoch { number: self.named, member: me }
    }

    /// Writes that this member names `number`, before it does. Never more than that: a member that came back
    /// with a number ahead of the truth would make the living master yield to it.
    ///
    /// `sync`: wait for the disk. A takeover does not (its partner does, when it follows), so that the epoch of
    /// a pair survives the reboot of either.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn record(&mut self, number: u64, sync: bool) -> io::Result<()> {
        if number <= self.named {
            return Ok(());
        }
        let next = self.path.with_extension("new");
        let mut file = File::create(&next)?;
        writeln!(file, "{number}")?;
        if sync {
            file.sync_data()?;
        }
        fs::rename(&next, &self.path)?;
        self.named = number;
        Ok(())
    }
}

/// Held as long as a manager of this service runs on this member.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock in the state directory.
    ///
    /// # Errors
    /// Another manager holds it.
    pub fn take(state_dir: &Path) -> io::Result<Lock> {
        fs::create_dir_all(state_dir)?;
        let path = state_dir.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
        // SAFETY: no pointers; the descriptor is that of `file`.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::WouldBlock {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    format!("another manager of this service runs on this member (it holds {})", path.display()),
                ));
            }
            return Err(error);
        }
        Ok(Lock { _file: file })
    }
}
