//! The pre-shared key of a service: what authenticates and encrypts replication and heartbeats.
//!
//! A key file holds 32 random bytes as 64 hexadecimal digits and a newline, so that it survives copy and paste
//! and every secret store. It must be readable by its owner only: whoever reads it can take over connections.

use ring::rand::{SecureRandom, SystemRandom};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Length of the key in bytes.
pub const KEY_LEN: usize = 32;

/// Longest file that is looked at: a key with some white space, not a disk image given by mistake.
const MAX_FILE: u64 = 4096;

/// The pre-shared key. Its `Debug` form does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; KEY_LEN]);

impl Key {
    /// The well-known key, used when every member is on loopback and no key file is configured. It protects
    /// nothing; it lets the rest of the code have one path.
    pub const LOOPBACK: Key = Key([0; KEY_LEN]);

    /// A key of these bytes.
    pub const fn new(bytes: [u8; KEY_LEN]) -> Self {
        Key(bytes)
    }

    /// The bytes, for the ciphers.
    pub fn bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Reads the text form: 64 hexadecimal digits, white space around them ignored.
    pub fn parse(text: &str) -> Result<Self, KeyFault> {
        let text = text.trim();
        let digits = text.chars().count();
        if let Some(at) = text.chars().position(|c| !c.is_ascii_hexdigit()) {
            return Err(KeyFault::NotHex { at });
        }
        if digits != 2 * KEY_LEN {
            return Err(KeyFault::Length { digits });
        }
        let mut key = [0; KEY_LEN];
        for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = nibble(pair[0]) << 4 | nibble(pair[1]);
        }
        Ok(Key(key))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

fn nibble(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit.to_ascii_lowercase() - b'a' + 10,
    }
}

/// A new random key in its text form, with the newline: what `tcpr keygen` prints.
///
/// # Panics
/// When the kernel has no random numbers to give, which a key must not survive.
pub fn generate() -> String {
    let key: [u8; KEY_LEN] = random().expect("the kernel gives random numbers");
    let mut text = String::with_capacity(2 * KEY_LEN + 1);
    for byte in key {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
    text.push('\n');
    text
}

/// Reads a key file.
pub fn load(path: impl AsRef<Path>) -> Result<Key, KeyError> {
    let path = path.as_ref();
    load_from(path).map_err(|fault| KeyError { path: path.to_owned(), fault })
}

fn load_from(path: &Path) -> Result<Key, KeyFault> {
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => KeyFault::Absent,
        _ => KeyFault::Io(error),
    })?;
    // Of the open file, not of the path: nobody can swap it between the check and the read.
    let metadata = file.metadata().map_err(KeyFault::Io)?;
    if !metadata.is_file() {
        return Err(KeyFault::NotAFile);
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFault::Permissive { mode });
    }
    if metadata.size() > MAX_FILE {
        return Err(KeyFault::Length { digits: usize::try_from(metadata.size()).unwrap_or(usize::MAX) });
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(KeyFault::Io)?;
    Key::parse(&String::from_utf8_lossy(&bytes))
}

/// Random bytes from the kernel.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("the kernel has no random numbers to give"))?;
    Ok(bytes)
}

/// Why a key file cannot be used, with its path.
#[derive(Debug, thiserror::Error)]
#[error("key file {}", self.said())]
pub struct KeyError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: KeyFault,
}

/// What is wrong with a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFault {
    /// There is no such file.
    #[error("does not exist")]
    Absent,
    /// It is a directory, a pipe or a device.
    #[error("is not a regular file")]
    NotAFile,
    /// Others than the owner may read it.
    #[error("can be read by others (mode {mode:04o})")]
    Permissive {
        /// Its permission bits.
        mode: u32,
    },
    /// It does not hold 64 digits.
    #[error("a key is {} hexadecimal digits, this is {digits}", 2 * KEY_LEN)]
    Length {
        /// How many it holds.
        digits: usize,
    },
    /// It holds something that is not a hexadecimal digit.
    #[error("character {} is not a hexadecimal digit", .at + 1)]
    NotHex {
        /// Where, counted from 0.
        at: usize,
    },
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Io(io::Error),
}

impl KeyError {
    /// The file, what is wrong with it, and what to do.
    fn said(&self) -> String {
        let path = self.path.display();
        match &self.fault {
            fault @ KeyFault::Absent => format!("{path} {fault}; make it with: (umask 077; tcpr keygen > {path})"),
            fault @ KeyFault::Permissive { .. } => format!("{path} {fault}; run: chmod 600 {path}"),
            fault => format!("{path}: {fault}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Scratch(PathBuf);

    impl Scratch {
        fn file(name: &str, content: &str, mode: u32) -> Scratch {
            let path = std::env::temp_dir().join(format!("tcpr-key-{}-{name}", std::process::id()));
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            Scratch(path)
        }

        fn error(&self) -> String {
            load(&self.0).unwrap_err().to_string()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn generated_keys_load_and_differ() {
        let (one, two) = (generate(), generate());
        assert_ne!(one, two);
        assert_eq!(one.len(), 65);
        let file = Scratch::file("good", &one, 0o600);
        assert_eq!(load(&file.0).unwrap(), Key::parse(&one).unwrap());
        assert_eq!(Key::parse(&one.to_uppercase()).unwrap(), Key::parse(&one).unwrap());
    }

    #[test]
    fn errors_say_what_to_do() {
        let absent = load("/nonexistent/key").unwrap_err().to_string();
        assert!(absent.contains("does not exist") && absent.contains("tcpr keygen"), "{absent}");
        let text = generate();
        for mode in [0o640, 0o604, 0o660] {
            let error = Scratch::file("open", &text, mode).error();
            assert!(error.contains("chmod 600"), "{error}");
        }
        let short = Scratch::file("short", &text[..62], 0o600).error();
        assert!(short.contains("64 hexadecimal digits, this is 62"), "{short}");
        let long = Scratch::file("long", &"a".repeat(5000), 0o600).error();
        assert!(long.contains("this is 5000"), "{long}");
        let bad = Scratch::file("bad", "not a key", 0o600).error();
        assert!(bad.contains("character 1 is not"), "{bad}");
        let umlaut = Scratch::file("umlaut", &"\u{e4}".repeat(32), 0o600).error();
        assert!(umlaut.contains("not a hexadecimal digit"), "{umlaut}");
        assert!(load("/").unwrap_err().to_string().contains("not a regular file"));
    }

    #[test]
    fn debug_hides_the_key() {
        assert_eq!(format!("{:?}", Key::new([0xab; KEY_LEN])), "Key(..)");
    }
}
