//! What a member keeps on disk: its lock, and the highest epoch it may have named.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{flock, FlockOperation};
use rustix::io::Errno;
use tcpr_session::role::Epoch;

/// The epoch file: it survives a reboot, so that a member never names an epoch twice.
///
/// A power cut must leave one file that is whole: the new one is synced before it takes the old one's place, and the directory
/// after that. The event loop cannot wait for a disk, so it writes a second file beside it, which is enough for a process that is
/// killed; what a power cut leaves of that one counts if it is whole.
pub struct EpochFile {
    path: PathBuf,
    named: Epoch,
    /// What is on the disk for certain; whoever holds it writes.
    synced: Arc<Mutex<Epoch>>,
    /// Writers that have yet to try.
    writers: Arc<AtomicUsize>,
}

impl EpochFile {
    /// Reads it; a member without one starts at 0.
    ///
    /// # Errors
    /// The state directory cannot be made or read, or the file is not ours.
    pub fn open(state_dir: &Path) -> io::Result<EpochFile> {
        let context = |e: io::Error, what: &str, p: &Path| io::Error::new(e.kind(), format!("{what} {}: {e}", p.display()));
        make_dir(state_dir).map_err(|e| context(e, "cannot make the state directory", state_dir))?;
        let path = state_dir.join("epoch");
        let synced = match fs::read_to_string(&path) {
            Ok(text) => parse(text.trim()).ok_or_else(|| {
                let text = format!("{} holds no epoch; write the highest of either member into it, as in 7.0", path.display());
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Epoch::default(),
            Err(e) => return Err(context(e, "cannot read", &path)),
        };
        let unsynced = fs::read_to_string(path.with_extension("named")).ok();
        let named = unsynced.and_then(|text| whole(&text)).map_or(synced, |unsynced| unsynced.max(synced));
        Ok(EpochFile { path, named, synced: Arc::new(Mutex::new(synced)), writers: Arc::default() })
    }

    /// The highest epoch that this member named in an earlier life, be it the partner's.
    pub fn last(&self) -> Epoch {
        self.named
    }

    /// Writes that this member names `epoch`, before it does. Never more than that: a member that came back
    /// with one ahead of the truth would make the living master yield to it.
    ///
    /// Nobody waits for the disk here: a thread of its own sees to that it is there soon. A member that follows says that it is
    /// paired when it is ([`EpochFile::settled`]), so that the epoch of a pair survives the reboot of either.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn record(&mut self, epoch: Epoch) -> io::Result<()> {
        if epoch <= self.named {
            return Ok(());
        }
        fs::write(self.path.with_extension("named"), format!("{epoch}\n"))?;
        let (path, synced, writers) = (self.path.clone(), self.synced.clone(), self.writers.clone());
        self.writers.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::Builder::new().name("tcpr-epoch".into()).spawn(move || {
            if let Err(error) = write_synced(&path, epoch, &synced) {
                log::warn!(error:%; "cannot write the epoch file; a reboot would forget the epoch");
            }
            writers.fetch_sub(1, Ordering::Release);
        });
        if let Err(error) = thread {
            self.writers.fetch_sub(1, Ordering::Relaxed);
            return Err(error);
        }
        self.named = epoch;
        Ok(())
    }

    /// Whether what was recorded is on the disk, or cannot be written there: a member that fell silent would be worse than an
    /// epoch that a reboot forgets.
    pub fn settled(&self) -> bool {
        self.writers.load(Ordering::Acquire) == 0
    }
}

/// Puts an epoch into the file, unless a higher one is there: after a power cut either the old one or this one is there, whole.
fn write_synced(path: &Path, epoch: Epoch, synced: &Mutex<Epoch>) -> io::Result<()> {
    let mut synced = synced.lock().unwrap_or_else(PoisonError::into_inner);
    if epoch <= *synced {
        return Ok(());
    }
    let next = path.with_extension("new");
    let mut file = File::create(&next)?;
    writeln!(file, "{epoch}")?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    path.parent().map_or(Ok(()), sync_dir)?;
    *synced = epoch;
    Ok(())
}

/// Makes a directory that survives a power cut, with those above it.
fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() || dir.as_os_str().is_empty() {
        return Ok(());
    }
    let parent = dir.parent().unwrap_or(Path::new("."));
    make_dir(parent)?;
    match fs::create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => sync_dir(parent),
    }
}

/// What was renamed or made in a directory is there for certain after this.
fn sync_dir(dir: &Path) -> io::Result<()> {
    // A relative path of one part has an empty parent.
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir)?.sync_all()
}

/// An epoch with the end of its line: else a part of a longer number may be missing.
fn whole(text: &str) -> Option<Epoch> {
    parse(text.strip_suffix('\n')?)
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
        let file = make_dir(state_dir)
            .and_then(open)
            .map_err(|e| io::Error::new(e.kind(), format!("cannot open {}: {e}", path.display())))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock { _file: file }),
            Err(Errno::WOULDBLOCK) => {
                let text = format!("another manager of this service runs on this member (it holds {})", path.display());
                Err(io::Error::new(io::ErrorKind::AddrInUse, text))
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(file: &EpochFile) {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !file.settled() {
            assert!(std::time::Instant::now() < until, "{:?}", file.last());
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    #[test]
    fn a_member_comes_back_with_the_very_epoch_that_it_named() {
        let dir = std::env::temp_dir().join(format!("tcpr-epoch-{}", std::process::id()));
        let mut file = EpochFile::open(&dir).expect("made");
        assert_eq!(file.last(), Epoch::default());
        // The partner's: come back with one's own id it would outrank the living master.
        let partners = Epoch { number: 5, member: 0 };
        file.record(partners).expect("written");
        file.record(Epoch { number: 4, member: 1 }).expect("lower, and passed over");
        assert_eq!(EpochFile::open(&dir).expect("read").last(), partners);
        settle(&file);
        fs::write(dir.join("epoch"), "garbage").expect("written");
        assert!(EpochFile::open(&dir).is_err());
        fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn what_a_power_cut_leaves_of_an_epoch_that_nobody_waited_for_spoils_nothing() {
        let dir = std::env::temp_dir().join(format!("tcpr-epoch-cut-{}", std::process::id()));
        let epoch = |number| Epoch { number, member: 1 };
        let mut file = EpochFile::open(&dir).expect("made");
        file.record(epoch(12)).expect("written");
        settle(&file);
        // A takeover: a process that is killed now knows it; on the disk it is a moment later.
        file.record(epoch(14)).expect("written");
        assert_eq!(EpochFile::open(&dir).expect("read").last(), epoch(14));
        let on_disk = || fs::read_to_string(dir.join("epoch")).expect("read");
        settle(&file);
        assert_eq!(on_disk(), "14.1\n");
        // The power is cut before that: the second file is empty, a part of what it was, or not there.
        for left in [Some(""), Some("1"), Some("15."), Some("15.1"), Some("\0\0\0\0\0"), None] {
            match left {
                Some(text) => fs::write(dir.join("epoch.named"), text).expect("written"),
                None => fs::remove_file(dir.join("epoch.named")).expect("removed"),
            }
            assert_eq!(EpochFile::open(&dir).expect("read").last(), epoch(14), "{left:?}");
        }
        // Whoever is slow does not overwrite a newer one.
        file.record(epoch(20)).expect("written");
        settle(&file);
        write_synced(&dir.join("epoch"), epoch(16), &file.synced).expect("passed over");
        assert_eq!(on_disk(), "20.1\n");
        fs::remove_dir_all(&dir).expect("removed");
    }
}
