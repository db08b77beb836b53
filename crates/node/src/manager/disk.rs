//! What a member keeps on disk: its lock, and the highest epoch it may have named.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use tcpr_session::role::Epoch;

/// The epoch file: it survives a reboot, so that a member never names an epoch twice.
pub struct EpochFile {
    path: PathBuf,
    named: Epoch,
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
            Ok(text) => parse(text.trim()).ok_or_else(|| {
                let text = format!("{} holds no epoch; write the highest of either member into it, as in 7.0", path.display());
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Epoch::default(),
            Err(e) => return Err(context(e, "cannot read", &path)),
        };
        Ok(EpochFile { path, named })
    }

    /// The highest epoch that this member named in an earlier life, be it the partner's.
    pub fn last(&self) -> Epoch {
        self.named
    }

    /// Writes that this member names `epoch`, before it does. Never more than that: a member that came back
    /// with one ahead of the truth would make the living master yield to it.
    ///
    /// `sync`: wait for the disk. A takeover does not (its partner does, when it follows), so that the epoch of
    /// a pair survives the reboot of either.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn record(&mut self, epoch: Epoch, sync: bool) -> io::Result<()> {
        if epoch <= self.named {
            return Ok(());
        }
        let next = self.path.with_extension("new");
        let mut file = File::create(&next)?;
        writeln!(file, "{epoch}")?;
        if sync {
            file.sync_data()?;
        }
        fs::rename(&next, &self.path)?;
        self.named = epoch;
        Ok(())
    }
}

/// NUMBER.MEMBER, as an epoch is shown.
fn parse(text: &str) -> Option<Epoch> {
    let (number, member) = text.split_once('.')?;
    Some(Epoch { number: number.parse().ok()?, member: member.parse().ok()? })
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
        let path = state_dir.join("lock");
        let open = |()| OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = fs::create_dir_all(state_dir)
            .and_then(open)
            .map_err(|e| io::Error::new(e.kind(), format!("cannot open {}: {e}", path.display())))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_comes_back_with_the_very_epoch_that_it_named() {
        let dir = std::env::temp_dir().join(format!("tcpr-epoch-{}", std::process::id()));
        let mut file = EpochFile::open(&dir).expect("made");
        assert_eq!(file.last(), Epoch::default());
        // The partner's: come back with one's own id it would outrank the living master.
        let partners = Epoch { number: 5, member: 0 };
        file.record(partners, true).expect("written");
        file.record(Epoch { number: 4, member: 1 }, false).expect("lower, and passed over");
        assert_eq!(EpochFile::open(&dir).expect("read").last(), partners);
        fs::write(dir.join("epoch"), "garbage").expect("written");
        assert!(EpochFile::open(&dir).is_err());
        fs::remove_dir_all(&dir).expect("removed");
    }
}
