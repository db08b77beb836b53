//! What a program starts from, which must be alike on both members: the program's file and its libraries, arguments, environment,
//! limits, and files that the operator names. The leader's is the first record of a trace ([`super::Call::Setup`]), and a follower
//! compares it with its own before it executes anything.

use std::fmt;

use super::record::Quoted;

/// Most bytes of a value that are kept as they are.
const SHOWN: usize = 120;

/// Makes the enumeration and the list of its members from one list.
macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident $words:literal,)*) => {
        /// Kinds of things that must be alike.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum Kind { $($(#[$doc])* $name,)* }

        impl Kind {
            const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The kind in plain words.
            const fn words(self) -> &'static str {
                match self { $(Self::$name => $words,)* }
            }
        }
    };
}

kinds! {
    /// The program's own file.
    Program "program",
    /// Another file with code, as it is mapped when the program starts.
    Library "library",
    /// An argument; the name is its place.
    Argument "argument",
    /// A variable of the environment.
    Variable "environment variable",
    /// The working directory; it has no name.
    Directory "working directory",
    /// A limit of `getrlimit`.
    Limit "limit",
    /// A file that the operator names.
    File "file",
}

/// One thing that must be alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Item<'a> {
    /// What it is.
    pub kind: Kind,
    /// Which of its kind.
    pub name: &'a [u8],
    /// A hash of its value.
    pub hash: u64,
    /// The value in words; empty: it is nobody's business. Longer than 120 bytes it is cut.
    pub shown: &'a [u8],
}

impl<'a> Item<'a> {
    /// Writes it to the beginning of `out`, and says how long it is. `None`: it does not fit.
    pub fn encode(&self, out: &mut [u8]) -> Option<usize> {
        let shown = &self.shown[..self.shown.len().min(SHOWN)];
        let name_len = u16::try_from(self.name.len()).ok()?.to_ne_bytes();
        let mut len = 0;
        for part in [&[self.kind as u8, shown.len() as u8], &name_len[..], &self.hash.to_ne_bytes(), self.name, shown] {
            out.get_mut(len..len + part.len())?.copy_from_slice(part);
            len += part.len();
        }
        Some(len)
    }

    fn decode(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (&[kind, shown], rest) = bytes.split_first_chunk()?;
        let (name, rest) = rest.split_first_chunk()?;
        let (hash, rest) = rest.split_first_chunk()?;
        let (name, rest) = rest.split_at_checked(u16::from_ne_bytes(*name).into())?;
        let (shown, rest) = rest.split_at_checked(shown.into())?;
        Some((Self { kind: *Kind::ALL.get(usize::from(kind))?, name, hash: u64::from_ne_bytes(*hash), shown }, rest))
    }

    fn is_called(&self, other: &Item<'_>) -> bool {
        (self.kind, self.name) == (other.kind, other.name)
    }
}

impl fmt::Display for Item<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.words())?;
        match self.name {
            [] => Ok(()),
            name => write!(f, " {}", name.escape_ascii()),
        }
    }
}

/// The things in a list, one [`Item::encode`] after another. What cannot be read ends it.
pub fn items(mut list: &[u8]) -> impl Iterator<Item = Item<'_>> {
    std::iter::from_fn(move || {
        let (item, rest) = Item::decode(list)?;
        list = rest;
        Some(item)
    })
}

/// Whether a variable of the environment must be alike: not those that differ from start to start, or that tell a program who has
/// started it. tcpr's own are none of the program's business, and what `LD_PRELOAD` names is among the libraries.
#[must_use]
pub fn is_compared(variable: &[u8]) -> bool {
    const OF_THE_START: &[&str] = &[
        "_",
        "COLUMNS",
        "DBUS_SESSION_BUS_ADDRESS",
        "HOSTNAME",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "LD_PRELOAD",
        "LINES",
        "LISTEN_FDNAMES",
        "LISTEN_PID",
        "MANAGERPID",
        "MEMORY_PRESSURE_WATCH",
        "MEMORY_PRESSURE_WRITE",
        "NOTIFY_SOCKET",
        "OLDPWD",
        "PWD",
        "SHLVL",
        "SSH_AUTH_SOCK",
        "SSH_CLIENT",
        "SSH_CONNECTION",
        "SSH_TTY",
        "STY",
        "SYSTEMD_EXEC_PID",
        "TERM",
        "TMUX",
        "TMUX_PANE",
        "WATCHDOG_PID",
        "WINDOWID",
        "XDG_RUNTIME_DIR",
        "XDG_SESSION_ID",
    ];
    !variable.starts_with(b"TCPR_") && OF_THE_START.iter().all(|name| name.as_bytes() != variable)
}

/// How two members differ: the first thing that does, and how many more do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Difference<'a> {
    leader: Option<Item<'a>>,
    here: Option<Item<'a>>,
    more: usize,
}

/// How what the leader's program started from differs from what this member's starts from.
#[must_use]
pub fn difference<'a>(leader: &'a [u8], here: &'a [u8]) -> Option<Difference<'a>> {
    let changed = items(leader).filter_map(|theirs| {
        let ours = items(here).find(|ours| ours.is_called(&theirs));
        (ours != Some(theirs)).then_some((Some(theirs), ours))
    });
    let only_here = items(here).filter(|ours| !items(leader).any(|theirs| theirs.is_called(ours)));
    let mut all = changed.chain(only_here.map(|ours| (None, Some(ours))));
    let (leader, here) = all.next()?;
    Some(Difference { leader, here, more: all.count() })
}

impl fmt::Display for Difference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.leader, self.here) {
            (Some(leader), Some(here)) => {
                write!(f, "{leader} is not the same on both")?;
                if !leader.shown.is_empty() || !here.shown.is_empty() {
                    write!(f, ": {} for the leader, {} here", Quoted(leader.shown), Quoted(here.shown))?;
                    if leader.shown == here.shown {
                        f.write_str(", with other contents")?;
                    }
                }
            }
            (Some(leader), None) => write!(f, "the leader has {leader}, and this member has not")?,
            (None, Some(here)) => write!(f, "this member has {here}, and the leader has not")?,
            (None, None) => {}
        }
        match self.more {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// A list in a few words.
pub(super) struct Summary<'a>(pub &'a [u8]);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(program) = items(self.0).find(|item| item.kind == Kind::Program) {
            write!(f, "{program}")?;
        }
        for kind in [Kind::Library, Kind::Argument, Kind::Variable, Kind::Limit, Kind::File] {
            let count = items(self.0).filter(|item| item.kind == kind).count();
            let many = match (kind, count) {
                (_, 1) => kind.words(),
                (Kind::Library, _) => "libraries",
                (Kind::Argument, _) => "arguments",
                (Kind::Variable, _) => "environment variables",
                (Kind::Limit, _) => "limits",
                _ => "files",
            };
            write!(f, ", {count} {many}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(items: &[Item<'_>]) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        let mut len = 0;
        for item in items {
            len += item.encode(&mut bytes[len..]).expect("room");
        }
        bytes.truncate(len);
        bytes
    }

    fn item(kind: Kind, name: &'static str, hash: u64, shown: &'static str) -> Item<'static> {
        Item { kind, name: name.as_bytes(), hash, shown: shown.as_bytes() }
    }

    fn say(leader: &[Item<'_>], here: &[Item<'_>]) -> String {
        difference(&list(leader), &list(here)).map(|d| d.to_string()).unwrap_or_default()
    }

    #[test]
    fn what_differs_is_named() {
        let program = item(Kind::Program, "/usr/sbin/server", 1, "100 bytes");
        let library = item(Kind::Library, "/lib/libc.so.6", 2, "200 bytes");
        let secret = item(Kind::Variable, "PASSWORD", 3, "");
        let directory = item(Kind::Directory, "", 4, "/srv");
        let all = [program, library, secret, directory];
        assert_eq!(difference(&list(&all), &list(&all)), None);
        let other = [Item { hash: 9, ..program }, library, secret, directory];
        assert_eq!(
            say(&all, &other),
            "program /usr/sbin/server is not the same on both: \"100 bytes\" for the leader, \"100 bytes\" here, with other contents"
        );
        let other = [program, Item { hash: 9, shown: b"300 bytes", ..library }, Item { hash: 8, ..secret }, directory];
        assert_eq!(
            say(&all, &other),
            "library /lib/libc.so.6 is not the same on both: \"200 bytes\" for the leader, \"300 bytes\" here; and 1 more"
        );
        assert_eq!(say(&all, &all[..3]), "the leader has working directory, and this member has not");
        assert_eq!(say(&all[1..], &all), "this member has program /usr/sbin/server, and the leader has not");
        assert_eq!(
            say(&[secret], &[Item { hash: 8, ..secret }]),
            "environment variable PASSWORD is not the same on both",
            "a value that may be a secret is not shown"
        );
    }

    #[test]
    fn the_order_does_not_matter() {
        let (a, b) = (item(Kind::Variable, "A", 1, ""), item(Kind::Variable, "B", 2, ""));
        assert_eq!(difference(&list(&[a, b]), &list(&[b, a])), None);
    }

    #[test]
    fn long_values_are_cut_and_what_does_not_fit_is_refused() {
        let shown = vec![b'x'; 500];
        let long = Item { kind: Kind::Argument, name: b"1", hash: 5, shown: &shown };
        let bytes = list(&[long]);
        assert_eq!(items(&bytes).next().expect("one").shown.len(), SHOWN);
        assert_eq!(long.encode(&mut [0; 20]), None);
        assert_eq!(Item { name: &vec![b'x'; 1 << 16], ..long }.encode(&mut vec![0; 1 << 17]), None);
    }

    #[test]
    fn a_list_that_is_cut_anywhere_is_read_as_far_as_it_goes() {
        let all = [item(Kind::File, "/etc/a", 1, "1 byte"), item(Kind::Limit, "stack", 2, "8192 and 8192")];
        let bytes = list(&all);
        for end in 0..bytes.len() {
            assert!(items(&bytes[..end]).count() < 2);
        }
        assert_eq!(items(&bytes).collect::<Vec<_>>(), all);
        assert_eq!(items(&[200; 64]).count(), 0, "of an unknown kind");
    }

    #[test]
    fn variables_of_the_start_are_not_compared() {
        for name in ["TCPR_LOG", "INVOCATION_ID", "LD_PRELOAD", "_"] {
            assert!(!is_compared(name.as_bytes()), "{name}");
        }
        for name in ["PATH", "LANG", "LD_LIBRARY_PATH", "TZ"] {
            assert!(is_compared(name.as_bytes()), "{name}");
        }
    }
}
