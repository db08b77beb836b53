//! The `repair` engine: a TCP connection made from its description, in the middle of its life (TCP_REPAIR).
//!
//! The kernel sends nothing for all of this. What the caller must see to:
//! - Segments of the peer that arrive before [`restore`] returns meet no socket and would be answered by a
//!   RST: hold them (NFQUEUE), they are delivered well to the socket that exists by the time they are released.
//!   Unless they came while an *old* socket of the same addresses lived on this machine: the kernel looked
//!   that one up before the queue (early demux) and delivers to it, dead or not. Drop those, and inject a
//!   copy with [`crate::rawsock`].
//! - Everything that the peer has acknowledged must lie before `snd_una_seq`, or in the queues: a socket that
//!   lacks it discards every segment of that peer, because it acknowledges the future.
//! - Timers start anew, and a fresh socket has no RTT: after 1 s it sends the *last* segment of its queue again
//!   (tail loss probe), and 3 s after that the first. Whoever wants the peer served sooner sends the first
//!   segment himself; its acknowledgement sets the timers right.
//! - A TIME_WAIT socket of the same addresses is replaced if it had timestamps; without, `restore` fails, and
//!   [`crate::sockdiag`] can remove it in silence.
//! - Our own FIN, where it was already sent: [`SocketSpec::fin_sent`]. The peer's FIN cannot be restored, only
//!   received: inject it again as a segment ([`crate::rawsock`]), like all input that is to be read again.

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const TCP_RECV_QUEUE: libc::c_int = 1;
const TCP_SEND_QUEUE: libc::c_int = 2;
const REPAIR_ON: libc::c_int = 1;
/// Off without a window probe. 0 would send one, and it would tell the peer of us before we are ready.
const REPAIR_OFF_NO_PROBE: libc::c_int = -1;

/// What TCP_MAXSEG takes. TCP_REPAIR_OPTIONS, which gets the true value, knows no limits.
const MAXSEG_RANGE: (libc::c_int, libc::c_int) = (88, 32767);

const TCPOPT_MSS: u32 = 2;
const TCPOPT_WINDOW: u32 = 3;
const TCPOPT_SACK_PERMITTED: u32 = 4;
const TCPOPT_TIMESTAMP: u32 = 8;

const SIOCOUTQNSD: libc::c_ulong = 0x894b;
const SO_BUF_LOCK: libc::c_int = 72;

/// All that makes up a connection in the state ESTABLISHED.
#[derive(Debug, Clone, Copy)]
pub struct SocketSpec<'a> {
    /// Our end. The address need not be on this machine yet.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// Sequence number of the first byte of `snd_queue`, or of `unsent` if that is empty, or of the next byte
    /// that the application writes.
    pub snd_una_seq: u32,
    /// Bytes that may have been sent and are not acknowledged (two slices, for a ring). They are not sent
    /// now, but when the peer misses them or a retransmission timer runs out.
    pub snd_queue: [&'a [u8]; 2],
    /// Bytes that were never sent. They are sent at once, as far as windows allow.
    pub unsent: [&'a [u8]; 2],
    /// The next sequence number that the application has not yet received.
    pub rcv_nxt_seq: u32,
    /// What the peer announced in its SYN: the length of our segments, timestamps included.
    pub mss: u16,
    /// Shift of the windows that the peer announces; `None` if the connection does not scale windows.
    pub snd_wscale: Option<u8>,
    /// Shift of the windows that we announce; `None` if the connection does not scale windows.
    pub rcv_wscale: Option<u8>,
    /// Both sides know selective acknowledgements.
    pub sack: bool,
    /// The next timestamp to send, if the connection has timestamps: not less than any that the peer saw. An
    /// even value counts milliseconds, an odd one microseconds (bit 0 is the kernel's switch, not sent).
    pub timestamps: Option<u32>,
    /// The peer's window, scaled, as of its last segment; counts from `snd_una_seq`.
    pub snd_wnd: u32,
    /// The largest window that the peer ever announced.
    pub max_window: u32,
    /// The window that we announced, scaled; counts from `rcv_wup`. Its right edge must not lie left of what
    /// the peer was told.
    pub rcv_wnd: u32,
    /// The sequence number of the peer that we last acknowledged; at most `rcv_nxt_seq`.
    pub rcv_wup: u32,
    /// Our FIN, directly behind `snd_queue`, may have been sent and is not acknowledged. `unsent` must be
    /// empty then.
    pub fin_sent: bool,
}

/// What the kernel knows of a connection, in the terms of [`SocketSpec`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketState {
    /// The kernel's number of the TCP state; 1 is ESTABLISHED.
    pub state: u8,
    /// First sequence number that the peer has not acknowledged.
    pub snd_una_seq: u32,
    /// Sequence number behind the last byte that the application wrote.
    pub write_seq: u32,
    /// Bytes sent and not acknowledged.
    pub unacked: u32,
    /// Bytes written and not yet sent.
    pub unsent: u32,
    /// Next sequence number that the kernel expects of the peer.
    pub rcv_nxt_seq: u32,
    /// Bytes received and not yet read by the application.
    pub unread: u32,
    /// The peer's MSS, as in [`SocketSpec::mss`].
    pub mss: u16,
    /// Bytes that we now put into a segment.
    pub snd_mss: u32,
    /// See [`SocketSpec::snd_wscale`].
    pub snd_wscale: Option<u8>,
    /// See [`SocketSpec::rcv_wscale`].
    pub rcv_wscale: Option<u8>,
    /// See [`SocketSpec::sack`].
    pub sack: bool,
    /// See [`SocketSpec::timestamps`]; the present value.
    pub timestamps: Option<u32>,
    /// See [`SocketSpec::snd_wnd`].
    pub snd_wnd: u32,
    /// See [`SocketSpec::max_window`].
    pub max_window: u32,
    /// See [`SocketSpec::rcv_wnd`].
    pub rcv_wnd: u32,
    /// See [`SocketSpec::rcv_wup`].
    pub rcv_wup: u32,
    /// Segments sent again, in the life of the socket.
    pub retransmitted: u32,
}

/// Why a connection was not restored.
#[derive(Debug, thiserror::Error)]
#[error("restoring a connection: {step}: {cause}")]
pub struct RestoreError {
    step: &'static str,
    #[source]
    cause: io::Error,
}

impl RestoreError {
    /// What the kernel said, if it was the kernel.
    pub fn errno(&self) -> Option<i32> {
        self.cause.raw_os_error()
    }
}

/// Makes the socket: connected, non-blocking, close-on-exec, with SO_REUSEADDR. Nothing is sent but `unsent`.
///
/// # Errors
/// Of the step that failed, named in the text. EADDRNOTAVAIL or EADDRINUSE: this machine already has a connection
/// with these addresses.
pub fn restore(spec: &SocketSpec<'_>) -> Result<OwnedFd, RestoreError> {
    let socket = step("socket", tcp_socket(&spec.local))?;
    let fd = socket.as_raw_fd();
    step("TCP_REPAIR (needs CAP_NET_ADMIN)", set_tcp(fd, libc::TCP_REPAIR, &REPAIR_ON))?;

    // The kernel takes sequence numbers only before connect. The send queue comes second because it is
    // the one that must stay selected.
    step("TCP_REPAIR_QUEUE", set_tcp(fd, libc::TCP_REPAIR_QUEUE, &TCP_RECV_QUEUE))?;
    step("TCP_QUEUE_SEQ", set_tcp(fd, libc::TCP_QUEUE_SEQ, &spec.rcv_nxt_seq))?;
    step("TCP_REPAIR_QUEUE", set_tcp(fd, libc::TCP_REPAIR_QUEUE, &TCP_SEND_QUEUE))?;
    step("TCP_QUEUE_SEQ", set_tcp(fd, libc::TCP_QUEUE_SEQ, &spec.snd_una_seq))?;

    step("IP_FREEBIND", set_freebind(fd, &spec.local))?;
    step(
        "bind",
        with_sockaddr(&spec.local, |address, length| {
            // SAFETY: with_sockaddr hands out a pointer to a socket address and its length.
            check(unsafe { libc::bind(fd, address, length) })
        }),
    )?;
    // Sizes segments from the start. TCP_REPAIR_OPTIONS sets the same limit later, but does not tell the
    // code that cuts segments, which would stay at 524 bytes.
    let mss = libc::c_int::from(spec.mss).clamp(MAXSEG_RANGE.0, MAXSEG_RANGE.1);
    step("TCP_MAXSEG", set_tcp(fd, libc::TCP_MAXSEG, &mss))?;
    step(
        "connect",
        with_sockaddr(&spec.peer, |address, length| {
            // SAFETY: with_sockaddr hands out a pointer to a socket address and its length.
            check(unsafe { libc::connect(fd, address, length) })
        }),
    )?;

    let (options, n) = options(spec);
    step("TCP_REPAIR_OPTIONS", set_tcp(fd, libc::TCP_REPAIR_OPTIONS, &options[..n]))?;
    if let Some(value) = spec.timestamps {
        step("TCP_TIMESTAMP", set_tcp(fd, libc::TCP_TIMESTAMP, &value))?;
    }

    // In repair, with the send queue selected, what is sent goes onto the queue as if it had left.
    let mut raised = false;
    step("send queue", push(fd, spec, &spec.snd_queue, &mut raised))?;
    if spec.fin_sent {
        // SAFETY: no pointer is passed.
        step("shutdown", check(unsafe { libc::shutdown(fd, libc::SHUT_WR) }))?;
    }

    let window = RepairWindow {
        // One before the next segment, so that this segment may correct the window downwards too.
        snd_wl1: spec.rcv_nxt_seq.wrapping_sub(1),
        snd_wnd: spec.snd_wnd,
        max_window: spec.max_window,
        rcv_wnd: spec.rcv_wnd,
        rcv_wup: spec.rcv_wup,
    };
    step("TCP_REPAIR_WINDOW", set_tcp(fd, libc::TCP_REPAIR_WINDOW, &window))?;
    step("TCP_REPAIR off", set_tcp(fd, libc::TCP_REPAIR, &REPAIR_OFF_NO_PROBE))?;

    // Repair forbids the reuse of the port when it ends. Whoever binds to it or listens on it before this call gets EADDRINUSE; the
    // library tries again then.
    step("SO_REUSEADDR", set(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, &1))?;

    step("unsent bytes", push(fd, spec, &spec.unsent, &mut raised))?;
    if raised {
        step("TCP_NOTSENT_LOWAT", set_tcp(fd, libc::TCP_NOTSENT_LOWAT, &0))?;
    }
    Ok(socket)
}

/// Closes a connection without telling the peer. Silent only if no other descriptor, in any process, refers to the socket.
///
/// # Errors
/// If the kernel refuses repair; the descriptor is then given back, for an ordinary close would be heard.
pub fn close_silently(socket: OwnedFd) -> Result<(), (OwnedFd, io::Error)> {
    match set_tcp(socket.as_raw_fd(), libc::TCP_REPAIR, &REPAIR_ON) {
        Ok(()) => Ok(()),
        Err(error) => Err((socket, error)),
    }
}

/// Reads the state of a live connection. The socket is under repair meanwhile, for some microseconds; a
/// socket that already was stays so.
pub fn read_state(socket: BorrowedFd<'_>) -> io::Result<SocketState> {
    let fd = socket.as_raw_fd();
    let in_repair: libc::c_int = get_tcp(fd, libc::TCP_REPAIR)?;
    if in_repair != 0 {
        return read_state_in_repair(fd);
    }
    let reuse: libc::c_int = get(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    set_tcp(fd, libc::TCP_REPAIR, &REPAIR_ON)?;
    let state = read_state_in_repair(fd);
    set_tcp(fd, libc::TCP_REPAIR, &REPAIR_OFF_NO_PROBE)?;
    // The end of repair has reset it.
    set(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, &reuse)?;
    state
}

fn read_state_in_repair(fd: i32) -> io::Result<SocketState> {
    set_tcp(fd, libc::TCP_REPAIR_QUEUE, &TCP_RECV_QUEUE)?;
    let rcv_nxt_seq: u32 = get_tcp(fd, libc::TCP_QUEUE_SEQ)?;
    set_tcp(fd, libc::TCP_REPAIR_QUEUE, &TCP_SEND_QUEUE)?;
    let write_seq: u32 = get_tcp(fd, libc::TCP_QUEUE_SEQ)?;
    let window: RepairWindow = get_tcp(fd, libc::TCP_REPAIR_WINDOW)?;
    let timestamp: u32 = get_tcp(fd, libc::TCP_TIMESTAMP)?;
    let mss: libc::c_int = get_tcp(fd, libc::TCP_MAXSEG)?;
    let info: libc::tcp_info = get_tcp(fd, libc::TCP_INFO)?;
    let queued = queue_length(fd, libc::TIOCOUTQ)?;
    let unsent = queue_length(fd, SIOCOUTQNSD)?;
    let scaled = info.tcpi_options & TCPI_OPT_WSCALE != 0;
    Ok(SocketState {
        state: info.tcpi_state,
        snd_una_seq: write_seq.wrapping_sub(queued),
        write_seq,
        unacked: queued.saturating_sub(unsent),
        unsent,
        rcv_nxt_seq,
        unread: queue_length(fd, libc::FIONREAD)?,
        mss: mss as u16,
        snd_mss: info.tcpi_snd_mss,
        snd_wscale: scaled.then_some(info.tcpi_snd_rcv_wscale & 0xf),
        rcv_wscale: scaled.then_some(info.tcpi_snd_rcv_wscale >> 4),
        sack: info.tcpi_options & TCPI_OPT_SACK != 0,
        timestamps: (info.tcpi_options & TCPI_OPT_TIMESTAMPS != 0).then_some(timestamp),
        snd_wnd: window.snd_wnd,
        max_window: window.max_window,
        rcv_wnd: window.rcv_wnd,
        rcv_wup: window.rcv_wup,
        retransmitted: info.tcpi_total_retrans,
    })
}

const TCPI_OPT_TIMESTAMPS: u8 = 1;
const TCPI_OPT_SACK: u8 = 2;
const TCPI_OPT_WSCALE: u8 = 4;

/// struct tcp_repair_opt
#[repr(C)]
#[derive(Clone, Copy)]
struct RepairOption {
    code: u32,
    value: u32,
}

/// struct tcp_repair_window
#[repr(C)]
#[derive(Clone, Copy)]
struct RepairWindow {
    snd_wl1: u32,
    snd_wnd: u32,
    max_window: u32,
    rcv_wnd: u32,
    rcv_wup: u32,
}

/// The options, and how many there are.
fn options(spec: &SocketSpec<'_>) -> ([RepairOption; 4], usize) {
    // Always with a window scale: without it the kernel would go on with the shift that it chose for itself in
    // connect. A shift of 0 both ways is the same as no scaling.
    let (snd_wscale, rcv_wscale) = match (spec.snd_wscale, spec.rcv_wscale) {
        (Some(snd), Some(rcv)) => (snd, rcv),
        _ => (0, 0),
    };
    let scales = u32::from(snd_wscale) | u32::from(rcv_wscale) << 16;
    let mut options = [RepairOption { code: 0, value: 0 }; 4];
    options[0] = RepairOption { code: TCPOPT_MSS, value: u32::from(spec.mss) };
    options[1] = RepairOption { code: TCPOPT_WINDOW, value: scales };
    let mut n = 2;
    for (present, code) in [(spec.sack, TCPOPT_SACK_PERMITTED), (spec.timestamps.is_some(), TCPOPT_TIMESTAMP)] {
        if present {
            options[n].code = code;
            n += 1;
        }
    }
    (options, n)
}

/// Sends all of `slices`, making room where the send buffer of a new socket is too small.
fn push(fd: i32, spec: &SocketSpec<'_>, slices: &[&[u8]; 2], raised: &mut bool) -> io::Result<()> {
    let mut done = 0;
    let total = slices[0].len() + slices[1].len();
    while done < total {
        let first = &slices[0][done.min(slices[0].len())..];
        let second = &slices[1][done.saturating_sub(slices[0].len())..];
        match send(fd, first, second) {
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !*raised => {
                make_room(fd, spec)?;
                *raised = true;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Lifts what limits the bytes that wait in the socket. Only done when needed: most sessions have less in
/// flight than a new socket takes.
fn make_room(fd: i32, spec: &SocketSpec<'_>) -> io::Result<()> {
    let bytes: usize = spec.snd_queue.iter().chain(&spec.unsent).map(|slice| slice.len()).sum();
    // The kernel doubles the value and charges its own overhead to it, which is less than the other half.
    let size = libc::c_int::try_from(bytes.saturating_mul(2) + (256 << 10)).unwrap_or(libc::c_int::MAX / 2);
    set(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &size)?;
    unlock_buffers(fd)?;
    // A low sysctl tcp_notsent_lowat would stop us as well.
    set_tcp(fd, libc::TCP_NOTSENT_LOWAT, &u32::MAX)
}

/// A size that was set by hand is never tuned again, unless it is unlocked, which Linux before 5.14 cannot do.
fn unlock_buffers(fd: i32) -> io::Result<()> {
    match set(fd, libc::SOL_SOCKET, SO_BUF_LOCK, &0) {
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(()),
        done => done,
    }
}

fn send(fd: i32, first: &[u8], second: &[u8]) -> io::Result<usize> {
    let mut slices =
        [first, second].map(|slice| libc::iovec { iov_base: slice.as_ptr().cast_mut().cast(), iov_len: slice.len() });
    // SAFETY: msghdr is plain data of C for which all zeroes is a valid value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = slices.as_mut_ptr();
    message.msg_iovlen = slices.len() as _;
    // SAFETY: the message describes two slices that outlive the call; sendmsg only reads them.
    let n = unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

fn tcp_socket(local: &SocketAddr) -> io::Result<OwnedFd> {
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::socket(family, kind, 0) };
    check(fd)?;
    // SAFETY: the descriptor was just made and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Allows an address that this machine does not have (yet).
fn set_freebind(fd: i32, local: &SocketAddr) -> io::Result<()> {
    if local.is_ipv4() {
        set(fd, libc::IPPROTO_IP, libc::IP_FREEBIND, &1)
    } else {
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_FREEBIND, &1)
    }
}

/// Calls `f` with an address as the kernel takes it: pointer and length are good for the call.
pub(crate) fn with_sockaddr<T>(address: &SocketAddr, f: impl FnOnce(*const libc::sockaddr, libc::socklen_t) -> T) -> T {
    match address {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            f((&raw const raw).cast(), mem::size_of_val(&raw) as libc::socklen_t)
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            f((&raw const raw).cast(), mem::size_of_val(&raw) as libc::socklen_t)
        }
    }
}

pub(crate) fn step<T>(step: &'static str, result: io::Result<T>) -> Result<T, RestoreError> {
    result.map_err(|cause| RestoreError { step, cause })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn set<T: Plain + ?Sized>(fd: i32, level: i32, option: i32, value: &T) -> io::Result<()> {
    let length = mem::size_of_val(value) as libc::socklen_t;
    // SAFETY: the pointer and length describe `value`, which the kernel only reads.
    check(unsafe { libc::setsockopt(fd, level, option, (&raw const *value).cast(), length) })
}

fn set_tcp<T: Plain + ?Sized>(fd: i32, option: i32, value: &T) -> io::Result<()> {
    set(fd, libc::IPPROTO_TCP, option, value)
}

fn get<T: Plain>(fd: i32, level: i32, option: i32) -> io::Result<T> {
    // SAFETY: `Plain` types are plain data for which all zeroes is a valid value.
    let mut value: T = unsafe { mem::zeroed() };
    let mut length = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: pointer and length describe `value`; the kernel writes at most that much, and any bytes are
    // a valid `Plain` value.
    check(unsafe { libc::getsockopt(fd, level, option, (&raw mut value).cast(), &raw mut length) })?;
    Ok(value)
}

fn get_tcp<T: Plain>(fd: i32, option: i32) -> io::Result<T> {
    get(fd, libc::IPPROTO_TCP, option)
}

fn queue_length(fd: i32, request: libc::c_ulong) -> io::Result<u32> {
    let mut length: libc::c_int = 0;
    // SAFETY: these requests write one int, which the pointer names.
    check(unsafe { libc::ioctl(fd, request, &raw mut length) })?;
    Ok(length.max(0) as u32)
}

/// Types that a socket option can carry: plain data without padding that matters, every bit pattern valid.
trait Plain {}
impl Plain for u32 {}
impl Plain for libc::c_int {}
impl Plain for RepairWindow {}
impl Plain for [RepairOption] {}
impl Plain for libc::tcp_info {}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: SocketSpec<'_> = SocketSpec {
        local: SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::new(192, 0, 2, 1), 1)),
        peer: SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::new(192, 0, 2, 2), 2)),
        snd_una_seq: 0,
        snd_queue: [&[]; 2],
        unsent: [&[]; 2],
        rcv_nxt_seq: 0,
        mss: 1460,
        snd_wscale: Some(7),
        rcv_wscale: Some(9),
        sack: true,
        timestamps: Some(2),
        snd_wnd: 1,
        max_window: 1,
        rcv_wnd: 1,
        rcv_wup: 0,
        fin_sent: false,
    };

    fn codes(spec: &SocketSpec<'_>) -> Vec<(u32, u32)> {
        let (options, n) = options(spec);
        options[..n].iter().map(|option| (option.code, option.value)).collect()
    }

    #[test]
    fn options_name_what_was_negotiated() {
        assert_eq!(codes(&SPEC), [(2, 1460), (3, 9 << 16 | 7), (4, 0), (8, 0)]);
    }

    #[test]
    fn no_window_scaling_is_a_scale_of_nought() {
        let spec = SocketSpec { rcv_wscale: None, timestamps: None, ..SPEC };
        assert_eq!(codes(&spec), [(2, 1460), (3, 0), (4, 0)]);
        let spec = SocketSpec { sack: false, ..SPEC };
        assert_eq!(codes(&spec), [(2, 1460), (3, 9 << 16 | 7), (8, 0)]);
    }
}
