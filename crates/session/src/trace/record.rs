//! What a record says.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::tuple::FourTuple;

/// One call of a thread of the program, and what it got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// The thread, in the order of making; 0 is the first.
    pub thread: u16,
    /// Which call.
    pub call: Call,
    /// Its descriptor, or what [`Call`] says.
    pub fd: i32,
    /// What it returned, or minus the error's number.
    pub result: i64,
    /// What else it gave.
    pub data: &'a [u8],
}

/// Makes the enumeration and the list of its members from one list.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident $words:literal,)*) => {
        /// Kinds of calls. Numbers in data have the machine's own byte order. Data that a kind does not name is empty.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum Call { $($(#[$doc])* $name,)* }

        impl Call {
            /// All kinds, in the order of their numbers. New ones go to the end.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Whether it is made with a connection that is there.
            #[must_use]
            pub const fn is_of_connections(self) -> bool {
                use Call::{GetSockOpt, Ioctl, Name, Read, RecvMsg, SendFile, SocketCall, Write};
                matches!(self, Read | Write | SocketCall | Ioctl | Name | GetSockOpt | SendFile | RecvMsg)
            }

            /// The kind in plain words.
            #[must_use]
            pub const fn words(self) -> &'static str {
                match self { $(Self::$name => $words,)* }
            }
        }
    };
}

calls! {
    /// `read`, `recv` and the like. Data: the bytes.
    Read "read",
    /// `write`, `send` and the like. Data: a hash of the bytes that were taken, u64, where any were.
    Write "write",
    /// The result is the new descriptor. Data: [`Accepted`].
    Accept "accept",
    /// Data: the [`SESSION`] of a protected connection.
    Connect "connect",
    /// The result is the new descriptor.
    Socket "socket",
    /// `bind`, `listen`, `shutdown`, `setsockopt`.
    SocketCall "socket call",
    /// Data: the events, as the kernel gives them.
    EpollWait "epoll_wait",
    /// The descriptor is the length of the list. Data: place in the list and what happened there, u16 each, for each place
    /// where something happened.
    Poll "poll",
    /// The descriptor is the number of descriptors asked for. Data: the sets that were given, then the time that is left.
    Select "select",
    /// The descriptor is the clock's number, also those of [`clock`]. The result is in nanoseconds, but for
    /// [`clock::CPU`] and [`clock::TIMES`]. Data: what `times` gives.
    Clock "clock",
    /// Data: the random bytes.
    Random "random bytes",
    /// The descriptor says whose, see [`id`].
    Id "id",
    /// A signal that is handled here; the result is its number. Data: its `siginfo_t`.
    Signal "signal",
    /// A mutex, read-write lock, spin lock or semaphore was got.
    Lock "lock",
    /// The same, tried or with a time limit.
    TryLock "try lock",
    /// A wait for a condition variable is over.
    CondWait "wait for a condition",
    /// A thread is made; the result is its number.
    Thread "start of a thread",
    /// A thread has ended, and another one has waited for that.
    Join "join",
    /// A thread ends.
    ThreadEnd "end of a thread",
    /// The result is the child's process id.
    Fork "fork",
    /// `waitpid` and the like. Data: the status, i32.
    Wait "wait for a child",
    /// Data: what it gave.
    Ioctl "ioctl",
    /// `getsockname`, `getpeername`. Data: length that the kernel says, u32, then the address.
    Name "name of a socket",
    /// Data: length that the kernel says, u32, then the value.
    GetSockOpt "getsockopt",
    /// `eventfd`, `epoll_create`, `timerfd_create`, `dup`, `pipe` and others; the result is the new descriptor. Data: both
    /// descriptors, i32 each, of calls that make two.
    NewFd "new descriptor",
    /// `sendfile`. Data: a hash of the bytes that were taken, u64.
    SendFile "sendfile",
    /// Data: the time that was left, where it was asked for.
    Sleep "sleep",
    /// Another call, by its number. Data: what it gave.
    Misc "call",
    /// The processor's time stamp counter; the result is its value.
    Tsc "time stamp counter",
    /// `sigsuspend`, and changes of the signal mask where signals may be handled.
    SigWait "wait for a signal",
    /// Data: the structure.
    Stat "stat",
    /// `recvmsg`. Data: lengths of address and control data and the flags, u32 each, then address, control data and bytes.
    RecvMsg "recvmsg",
    /// `close`.
    Close "close",
    /// The result is the new descriptor.
    Open "open",
    /// The process ends; the result is its exit status.
    Exit "exit",
    /// Not a call: the result is a [`Marker`].
    Marker "marker",
    /// Not a call: a connection that was under way has been made, before the thread's next call. Data: its [`SESSION`].
    Connected "connection",
    /// Not a call: what the program starts from, see [`super::setup`]. Data: the list.
    Setup "start",
}

/// Numbers of clocks beside the kernel's own, which are below 12 (and dynamic ones, which are negative).
pub mod clock {
    /// `gettimeofday`.
    pub const GETTIMEOFDAY: i32 = 12;
    /// `time`.
    pub const TIME: i32 = 13;
    /// `clock`; the result is as it is.
    pub const CPU: i32 = 14;
    /// `times`; the result is as it is.
    pub const TIMES: i32 = 15;
    /// Clocks that have a slot of their own in the encoding.
    pub const COUNT: i32 = 16;
}

/// Whose id a [`Call::Id`] is.
pub mod id {
    /// `getpid`.
    pub const PROCESS: i32 = 0;
    /// `getppid`.
    pub const PARENT: i32 = 1;
    /// `gettid`.
    pub const THREAD: i32 = 2;
    /// `sched_getcpu`.
    pub const PROCESSOR: i32 = 3;
}

/// Places in a trace that mean something for the two members.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Marker {
    /// The follower went live here, and appends.
    Promoted = 2,
}

impl Marker {
    /// The marker of a result.
    #[must_use]
    pub const fn of(result: i64) -> Option<Self> {
        Some(match result {
            2 => Self::Promoted,
            _ => return None,
        })
    }
}

/// Longest data of an [`Accepted`].
pub const ACCEPTED_MAX: usize = 1 + 128 + SESSION;
/// A protected connection in a record: its four-tuple ([`FourTuple::to_bytes`]), and how much of its input and output there had
/// been before the program got it, u64 each. That is more than nothing where the program has it from one that died.
pub const SESSION: usize = FourTuple::BYTES + 16;

/// The data of a successful [`Call::Accept`]: length of the address u8, the address as the kernel gives it, and the
/// session if the connection is protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Accepted<'a> {
    /// The peer's `sockaddr`.
    pub address: &'a [u8],
    /// Which session it is: see [`SESSION`].
    pub session: Option<[u8; SESSION]>,
}

impl<'a> Accepted<'a> {
    /// Writes the data, and says how long it is. An address longer than 128 bytes is cut.
    pub fn encode(&self, out: &mut [u8; ACCEPTED_MAX]) -> usize {
        let address = &self.address[..self.address.len().min(128)];
        out[0] = address.len() as u8;
        let mut len = 1 + address.len();
        out[1..len].copy_from_slice(address);
        if let Some(session) = &self.session {
            out[len..len + SESSION].copy_from_slice(session);
            len += SESSION;
        }
        len
    }

    /// What [`Accepted::encode`] wrote; `None` for anything else.
    #[must_use]
    pub fn decode(data: &'a [u8]) -> Option<Self> {
        let (&len, rest) = data.split_first()?;
        let (address, rest) = rest.split_at_checked(len.into())?;
        let session = if rest.is_empty() { None } else { Some(rest.try_into().ok()?) };
        Some(Self { address, session })
    }
}

/// The address in a `sockaddr_in` or `sockaddr_in6`.
#[must_use]
pub fn address(sockaddr: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*sockaddr.first_chunk()?);
    let port = u16::from_be_bytes(*sockaddr.get(2..)?.first_chunk()?);
    match family {
        2 => Some(SocketAddr::new(Ipv4Addr::from(*sockaddr.get(4..)?.first_chunk::<4>()?).into(), port)),
        10 => Some(SocketAddr::new(Ipv6Addr::from(*sockaddr.get(8..)?.first_chunk::<16>()?).into(), port)),
        _ => None,
    }
}

const EINPROGRESS: i64 = 115;

/// Most bytes of data that are shown.
const SHOWN: usize = 32;

impl fmt::Display for Record<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread {}, {}", self.thread, Told(self))
    }
}

/// A record without its thread.
struct Told<'a, 'b>(&'a Record<'b>);

impl fmt::Display for Told<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { call, fd, result, data, .. } = *self.0;
        match call {
            Call::Marker => return f.write_str(marker_words(result)),
            Call::Signal => return write!(f, "signal {}", Signal(result)),
            Call::Connected => return write_connected(f, fd, data),
            Call::Setup => return write!(f, "start of {}", super::setup::Summary(data)),
            Call::Exit => return write!(f, "exit with status {result}"),
            Call::Thread => return write!(f, "start of thread {result}"),
            Call::ThreadEnd => return f.write_str("end of the thread"),
            Call::Connect if result == 0 || result == -EINPROGRESS => {
                write!(f, "{} {}", Place { call, fd }, if result == 0 { "is done" } else { "is under way" })?;
                return write_protected(f, data);
            }
            _ => write!(f, "{}", Place { call, fd })?,
        }
        if result < 0 && call != Call::Clock {
            return write!(f, " failed: {}", Errno(-result));
        }
        match call {
            Call::Read | Call::RecvMsg => write!(f, " gave {}", Bytes(result))?,
            Call::Write | Call::SendFile => return write!(f, " took {}", Bytes(result)),
            Call::Accept => return write_accepted(f, result, data),
            Call::Clock => return write_clock(f, fd, result),
            Call::EpollWait | Call::Poll | Call::Select => {
                return write!(f, " gave {result} event{}", if result == 1 { "" } else { "s" })
            }
            Call::Socket | Call::Open => return write!(f, " gave descriptor {result}"),
            Call::NewFd => {
                return match <&[u8; 8]>::try_from(data) {
                    Ok(&[a, b, c, d, e, g, h, i]) => write!(
                        f,
                        " gave descriptors {} and {}",
                        i32::from_ne_bytes([a, b, c, d]),
                        i32::from_ne_bytes([e, g, h, i])
                    ),
                    Err(_) => write!(f, " gave descriptor {result}"),
                }
            }
            Call::Name => match data.get(4..).and_then(address) {
                Some(address) => return write!(f, " is {address}"),
                None => f.write_str(" gave an address that is not of TCP/IP")?,
            },
            Call::Fork => return write!(f, " made process {result}"),
            Call::Random => write!(f, " gave {}", Bytes(data.len() as i64))?,
            Call::Id => return write!(f, " is {result}"),
            Call::Wait if result > 0 => return write!(f, " gave process {result}"),
            Call::Tsc => return write!(f, " was {}", result as u64),
            Call::Lock | Call::Join | Call::CondWait | Call::TryLock | Call::Sleep if result == 0 => {}
            Call::Close | Call::SocketCall | Call::SigWait | Call::Stat | Call::Ioctl if result == 0 => return Ok(()),
            _ => write!(f, " gave {result}")?,
        }
        if data.is_empty() {
            return Ok(());
        }
        write!(f, ": {}", Quoted(data))
    }
}

/// A kind of call and what it is applied to, in plain words.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub call: Call,
    pub fd: i32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (fd, words) = (self.fd, self.call.words());
        match self.call {
            Call::Read
            | Call::Write
            | Call::Accept
            | Call::Connect
            | Call::SocketCall
            | Call::EpollWait
            | Call::Ioctl
            | Call::GetSockOpt
            | Call::SendFile
            | Call::RecvMsg
            | Call::Close => write!(f, "{words} of descriptor {fd}"),
            Call::Name => write!(f, "name of descriptor {fd}"),
            Call::Poll | Call::Select => write!(f, "{words} of {fd} descriptor{}", if fd == 1 { "" } else { "s" }),
            Call::Misc => write!(f, "call number {fd}"),
            Call::Clock => f.write_str(match fd {
                0 => "clock realtime",
                1 => "clock monotonic",
                2 => "processor time of the process",
                3 => "processor time of the thread",
                4 => "clock monotonic raw",
                5 => "clock realtime coarse",
                6 => "clock monotonic coarse",
                7 => "clock boottime",
                11 => "clock TAI",
                clock::GETTIMEOFDAY => "gettimeofday",
                clock::TIME => "time",
                clock::CPU => "clock()",
                clock::TIMES => "times()",
                _ => return write!(f, "clock {fd}"),
            }),
            Call::Id => f.write_str(match fd {
                id::PROCESS => "process id",
                id::PARENT => "parent's process id",
                id::THREAD => "thread id",
                id::PROCESSOR => "processor's number",
                _ => return write!(f, "id {fd}"),
            }),
            _ => f.write_str(words),
        }
    }
}

/// The four-tuple of a [`SESSION`].
fn tuple_of(session: &[u8]) -> Option<FourTuple> {
    FourTuple::from_bytes(session.get(..FourTuple::BYTES)?)
}

fn marker_words(result: i64) -> &'static str {
    match Marker::of(result) {
        Some(Marker::Promoted) => "marker: the follower went live",
        None => "marker of unknown kind",
    }
}

fn write_protected(f: &mut fmt::Formatter<'_>, session: &[u8]) -> fmt::Result {
    match tuple_of(session) {
        Some(tuple) => write!(f, ", protected: {} -> {}", tuple.local, tuple.peer),
        None => Ok(()),
    }
}

fn write_connected(f: &mut fmt::Formatter<'_>, fd: i32, session: &[u8]) -> fmt::Result {
    write!(f, "the connection of descriptor {fd} has been made")?;
    write_protected(f, session)
}

fn write_accepted(f: &mut fmt::Formatter<'_>, result: i64, data: &[u8]) -> fmt::Result {
    write!(f, " gave descriptor {result}")?;
    let Some(accepted) = Accepted::decode(data) else { return Ok(()) };
    if let Some(address) = address(accepted.address) {
        write!(f, " from {address}")?;
    }
    if let Some(tuple) = accepted.session.and_then(|session| tuple_of(&session)) {
        write!(f, ", protected, to {}", tuple.local)?;
    }
    Ok(())
}

fn write_clock(f: &mut fmt::Formatter<'_>, clock: i32, result: i64) -> fmt::Result {
    match clock {
        clock::CPU | clock::TIMES => write!(f, " was {result}"),
        // An error's number: no clock is that early.
        _ if (-4095..0).contains(&result) => write!(f, " failed: {}", Errno(-result)),
        0 | 5 | 11 | clock::GETTIMEOFDAY | clock::TIME => write!(f, " was {}", Date(result)),
        _ => {
            let (sign, ns) = (if result < 0 { "-" } else { "" }, result.unsigned_abs());
            write!(f, " was {sign}{}.{:09} s", ns / 1_000_000_000, ns % 1_000_000_000)
        }
    }
}

/// Nanoseconds since 1970, as a date in UTC.
struct Date(i64);

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, ns) = (self.0.div_euclid(1_000_000_000), self.0.rem_euclid(1_000_000_000));
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        // Days of the civil calendar: years begin in March, so that the leap day is the last one, and eras of 400 years have
        // 146097 days.
        let shifted = days + 719_468;
        let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (month, late) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        let year = year + 400 * era + late;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ns:09}Z")
    }
}

/// A number of bytes in words.
pub(super) struct Bytes(pub i64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} byte{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}

/// The beginning of data, as a string in quotation marks.
pub(super) struct Quoted<'a>(pub &'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(SHOWN)];
        write!(f, "\"{}{}\"", shown.escape_ascii(), if shown.len() < self.0.len() { "..." } else { "" })
    }
}

/// An error by its name.
pub(super) struct Errno(pub i64);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            1 => "EPERM",
            2 => "ENOENT",
            3 => "ESRCH",
            4 => "EINTR",
            5 => "EIO",
            9 => "EBADF",
            10 => "ECHILD",
            11 => "EAGAIN",
            12 => "ENOMEM",
            13 => "EACCES",
            14 => "EFAULT",
            16 => "EBUSY",
            17 => "EEXIST",
            20 => "ENOTDIR",
            21 => "EISDIR",
            22 => "EINVAL",
            23 => "ENFILE",
            24 => "EMFILE",
            25 => "ENOTTY",
            28 => "ENOSPC",
            29 => "ESPIPE",
            32 => "EPIPE",
            38 => "ENOSYS",
            88 => "ENOTSOCK",
            90 => "EMSGSIZE",
            92 => "ENOPROTOOPT",
            95 => "EOPNOTSUPP",
            97 => "EAFNOSUPPORT",
            98 => "EADDRINUSE",
            99 => "EADDRNOTAVAIL",
            101 => "ENETUNREACH",
            103 => "ECONNABORTED",
            104 => "ECONNRESET",
            105 => "ENOBUFS",
            106 => "EISCONN",
            107 => "ENOTCONN",
            110 => "ETIMEDOUT",
            111 => "ECONNREFUSED",
            113 => "EHOSTUNREACH",
            114 => "EALREADY",
            115 => "EINPROGRESS",
            other => return write!(f, "error {other}"),
        })
    }
}

/// A signal by its name, as Linux numbers them on all machines that tcpr runs on.
struct Signal(i64);

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 31] = [
            "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
            "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
            "PWR", "SYS",
        ];
        match usize::try_from(self.0).ok().and_then(|number| NAMES.get(number.checked_sub(1)?)) {
            Some(name) => write!(f, "SIG{name}"),
            None => write!(f, "number {}", self.0),
        }
    }
}
