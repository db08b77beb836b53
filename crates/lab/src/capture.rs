//! A packet capture kept in memory, and what tests ask of it.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use etherparse::{Ethernet2Header, LaxNetSlice, LaxSlicedPacket, TcpOptionElement, TransportSlice};

use crate::host::lock;
use crate::sys::{self, ctx, cvt, Waker};
use crate::Host;

/// What a capture keeps.
#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// Only TCP with this port at either end, and ARP; `None`: every packet.
    pub tcp_port: Option<u16>,
    /// Bytes kept of each packet; 128 hold all headers.
    pub snaplen: usize,
    /// Bytes kept of all packets; then the oldest go (counted by [`Capture::lost`]).
    pub max_bytes: usize,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        CaptureOptions { tcp_port: None, snaplen: 128, max_bytes: 64 << 20 }
    }
}

impl CaptureOptions {
    /// Headers of TCP with this port at either end, and ARP.
    pub fn port(port: u16) -> Self {
        CaptureOptions { tcp_port: Some(port), ..Self::default() }
    }
}

struct Packet {
    /// Nanoseconds since 1970, stamped by the kernel.
    t: u64,
    outgoing: bool,
    data: Box<[u8]>,
}

struct Inner {
    socket: OwnedFd,
    waker: Waker,
    snaplen: usize,
    max_bytes: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    packets: VecDeque<Packet>,
    bytes: usize,
    lost: u64,
    stop: bool,
}

/// A capture on a host's `eth0`, as the wire sees it: outgoing packets after the packet filter, incoming
/// ones before it. With segmentation offload one entry may be many segments on a real wire.
pub struct Capture {
    inner: Arc<Inner>,
    started: Instant,
    started_ns: u64,
    thread: Option<JoinHandle<()>>,
}

/// TCP flags of [`Seg::flags`].
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Opening.
    pub const SYN: u8 = 2;
    /// Reset.
    pub const RST: u8 = 4;
    /// Push.
    pub const PSH: u8 = 8;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 16;
}

/// One captured TCP segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seg {
    /// Time since the capture's start.
    pub t: Duration,
    /// Sent by the host itself.
    pub outgoing: bool,
    /// Source.
    pub src: SocketAddr,
    /// Destination.
    pub dst: SocketAddr,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flags, see [`flags`].
    pub flags: u8,
    /// Window as on the wire, not scaled.
    pub window: u16,
    /// Bytes of payload.
    pub payload_len: u32,
    /// Timestamp value.
    pub tsval: Option<u32>,
    /// Timestamp echo.
    pub tsecr: Option<u32>,
    /// Maximum segment size offered.
    pub mss: Option<u16>,
    /// Selective acknowledgement blocks.
    pub sack: Vec<(u32, u32)>,
}

impl Seg {
    /// Whether all the given flags are set.
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }
}

impl std::fmt::Display for Seg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = [(flags::SYN, 'S'), (flags::FIN, 'F'), (flags::RST, 'R'), (flags::PSH, 'P'), (flags::ACK, '.')];
        let set: String = names.iter().filter(|(b, _)| self.has(*b)).map(|(_, c)| c).collect();
        let (t, len) = (self.t.as_secs_f64(), self.payload_len);
        write!(f, "{t:.6} {} > {} [{set}] seq {} ack {} len {len}", self.src, self.dst, self.seq, self.ack)
    }
}

/// Which segments: all that the fields which are set agree with.
#[derive(Clone, Debug, Default)]
pub struct SegFilter {
    /// Either end has this address.
    pub addr: Option<IpAddr>,
    /// Either end has this port.
    pub port: Option<u16>,
    /// Sent by this end.
    pub src: Option<SocketAddr>,
    /// Sent to this end.
    pub dst: Option<SocketAddr>,
    /// Sent by the host itself, or not.
    pub outgoing: Option<bool>,
    /// Not before this time (since the capture's start).
    pub since: Option<Duration>,
    /// Before this time.
    pub until: Option<Duration>,
    /// At least one of these flags.
    pub any_flag: Option<u8>,
}

impl SegFilter {
    /// Every segment.
    pub fn any() -> Self {
        Self::default()
    }

    /// Either end has this port.
    pub fn port(port: u16) -> Self {
        SegFilter { port: Some(port), ..Self::default() }
    }

    /// Either end has this address.
    #[must_use]
    pub fn addr(mut self, addr: IpAddr) -> Self {
        self.addr = Some(addr);
        self
    }

    /// Not before this time.
    #[must_use]
    pub fn since(mut self, t: Duration) -> Self {
        self.since = Some(t);
        self
    }

    /// Before this time.
    #[must_use]
    pub fn until(mut self, t: Duration) -> Self {
        self.until = Some(t);
        self
    }

    /// Sent by this end.
    #[must_use]
    pub fn src(mut self, src: SocketAddr) -> Self {
        self.src = Some(src);
        self
    }

    /// Only what the host itself sent (true) or received (false).
    #[must_use]
    pub fn outgoing(mut self, outgoing: bool) -> Self {
        self.outgoing = Some(outgoing);
        self
    }

    /// Has at least one of these flags.
    #[must_use]
    pub fn any_flag(mut self, flags: u8) -> Self {
        self.any_flag = Some(flags);
        self
    }

    fn fits(&self, s: &Seg) -> bool {
        self.addr.is_none_or(|a| s.src.ip() == a || s.dst.ip() == a)
            && self.port.is_none_or(|p| s.src.port() == p || s.dst.port() == p)
            && self.src.is_none_or(|a| s.src == a)
            && self.dst.is_none_or(|a| s.dst == a)
            && self.outgoing.is_none_or(|o| s.outgoing == o)
            && self.since.is_none_or(|t| s.t >= t)
            && self.until.is_none_or(|t| s.t < t)
            && self.any_flag.is_none_or(|f| s.flags & f != 0)
    }
}

impl Capture {
    pub(crate) fn start(host: &Host, options: CaptureOptions) -> io::Result<Capture> {
        let snaplen = options.snaplen.clamp(64, 65_536);
        let socket = host.enter(|| open(options.tcp_port, snaplen)).map_err(ctx("capture"))?;
        let inner =
            Arc::new(Inner { socket, waker: Waker::new()?, snaplen, max_bytes: options.max_bytes, state: Mutex::default() });
        let started = Instant::now();
        let started_ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let for_thread = inner.clone();
        let thread = std::thread::Builder::new().name("lab-capture".into()).spawn(move || run(&for_thread))?;
        Ok(Capture { inner, started, started_ns, thread: Some(thread) })
    }

    /// When it began: time zero of all [`Seg::t`].
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The time since its start: a mark for [`SegFilter::since`].
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The segments seen until now that fit, oldest first.
    pub fn tcp(&self, filter: &SegFilter) -> Vec<Seg> {
        let mut state = lock(&self.inner.state);
        drain(&self.inner, &mut state);
        let parsed = state.packets.iter().filter_map(|p| self.parse(p));
        parsed.filter(|s| filter.fits(s)).collect()
    }

    /// An error that lists every FIN and RST that fits, if there is one.
    pub fn no_fin_rst(&self, filter: &SegFilter) -> Result<(), String> {
        let mut f = filter.clone();
        f.any_flag = Some(flags::FIN | flags::RST);
        let found = self.tcp(&f);
        if found.is_empty() {
            return self.complete();
        }
        let mut text = format!("{} segments with FIN or RST:", found.len());
        for s in found.iter().take(20) {
            text.push_str(&format!("\n  {s}"));
        }
        Err(text)
    }

    /// An error if packets were lost to the capture, and a check of it would prove nothing.
    pub fn complete(&self) -> Result<(), String> {
        match self.lost() {
            0 => Ok(()),
            n => Err(format!("the capture has lost {n} packets")),
        }
    }

    /// How many connections `client` tried to open: its SYNs, retransmissions not counted.
    pub fn syn_count(&self, client: IpAddr) -> usize {
        let syns = self.tcp(&SegFilter::any().any_flag(flags::SYN));
        let opened = syns.iter().filter(|s| s.src.ip() == client && !s.has(flags::ACK));
        opened.map(|s| (s.src, s.dst, s.seq)).collect::<HashSet<_>>().len()
    }

    /// Packets seen by the capture and kept.
    pub fn len(&self) -> usize {
        let mut state = lock(&self.inner.state);
        drain(&self.inner, &mut state);
        state.packets.len()
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Packets that are not there: dropped by the kernel, or the oldest past the limit.
    pub fn lost(&self) -> u64 {
        let mut state = lock(&self.inner.state);
        drain(&self.inner, &mut state);
        state.lost
    }

    /// Forgets what was seen so far.
    pub fn clear(&self) {
        let mut state = lock(&self.inner.state);
        drain(&self.inner, &mut state);
        state.packets.clear();
        (state.bytes, state.lost) = (0, 0);
    }

    /// Writes a pcap file.
    pub fn save(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let mut state = lock(&self.inner.state);
        drain(&self.inner, &mut state);
        let mut w = BufWriter::new(File::create(path)?);
        w.write_all(&0xa1b2_3c4du32.to_ne_bytes())?; // nanoseconds
        w.write_all(&[2u16.to_ne_bytes(), 4u16.to_ne_bytes()].concat())?;
        w.write_all(&[0; 8])?;
        w.write_all(&(self.inner.snaplen as u32).to_ne_bytes())?;
        w.write_all(&1u32.to_ne_bytes())?; // Ethernet
        for p in &state.packets {
            let wire = ip_len(&p.data).map_or(p.data.len(), |l| (l + 14).max(p.data.len()));
            for v in [p.t / 1_000_000_000, p.t % 1_000_000_000, p.data.len() as u64, wire as u64] {
                w.write_all(&(v as u32).to_ne_bytes())?;
            }
            w.write_all(&p.data)?;
        }
        w.flush()
    }

    fn parse(&self, p: &Packet) -> Option<Seg> {
        parse(&p.data, Duration::from_nanos(p.t.saturating_sub(self.started_ns)), p.outgoing)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        lock(&self.inner.state).stop = true;
        self.inner.waker.wake();
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}

fn open(tcp_port: Option<u16>, snaplen: usize) -> io::Result<OwnedFd> {
    let fd = packet_socket(filter(tcp_port, snaplen as u32))?;
    sys::setsockopt(fd.as_fd(), libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &1i32)?;
    Ok(fd)
}

/// A packet socket on the namespace's `eth0`; what it sees and how much of it says the program.
pub(crate) fn packet_socket(program: Vec<libc::sock_filter>) -> io::Result<OwnedFd> {
    // Protocol 0: nothing arrives before the filter is there and the interface is chosen.
    let fd = sys::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, 0)?;
    let prog = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    let s = fd.as_fd();
    sys::setsockopt(s, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &prog)?;
    sys::setsockopt(s, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(64i32 << 20))?;
    // SAFETY: a string that ends in NUL.
    let index = unsafe { libc::if_nametoindex(c"eth0".as_ptr()) };
    // SAFETY: all zeroes is a valid sockaddr_ll.
    let mut addr: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    addr.sll_family = libc::AF_PACKET as u16;
    addr.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    addr.sll_ifindex = index as i32;
    // SAFETY: pointer and length describe `addr`, which lives through the call.
    cvt(unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(&addr).cast(), size_of::<libc::sockaddr_ll>() as u32) })?;
    Ok(fd)
}

/// Classic BPF: cuts packets to `snaplen`, and with a port drops what is neither ARP nor TCP with that port.
fn filter(tcp_port: Option<u16>, snaplen: u32) -> Vec<libc::sock_filter> {
    let op = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let (ldh, ldb, ldh_x, ldx_ip) = (0x28, 0x30, 0x48, 0xb1);
    let (jeq, jset, ret) = (0x15, 0x45, 0x06);
    let Some(port) = tcp_port else { return vec![op(ret, 0, 0, snaplen)] };
    let port = u32::from(port);
    vec![
        op(ldh, 0, 0, 12),       //  0 Ethernet type
        op(jeq, 18, 0, 0x0806),  //  1 ARP: take
        op(jeq, 10, 0, 0x86dd),  //  2 IPv6: go to 13
        op(jeq, 0, 15, 0x0800),  //  3 not IPv4: drop
        op(ldb, 0, 0, 23),       //  4 protocol
        op(jeq, 0, 13, 6),       //  5
        op(ldh, 0, 0, 20),       //  6 fragment offset
        op(jset, 11, 0, 0x1fff), //  7
        op(ldx_ip, 0, 0, 14),    //  8 X = length of the IP header
        op(ldh_x, 0, 0, 14),     //  9 source port
        op(jeq, 9, 0, port),     // 10
        op(ldh_x, 0, 0, 16),     // 11 destination port
        op(jeq, 7, 6, port),     // 12
        op(ldb, 0, 0, 20),       // 13 IPv6: next header
        op(jeq, 0, 4, 6),        // 14
        op(ldh, 0, 0, 54),       // 15
        op(jeq, 3, 0, port),     // 16
        op(ldh, 0, 0, 56),       // 17
        op(jeq, 1, 0, port),     // 18
        op(ret, 0, 0, 0),        // 19 drop
        op(ret, 0, 0, snaplen),  // 20 take
    ]
}

fn run(inner: &Inner) {
    let mut fds = [
        libc::pollfd { fd: inner.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 },
        libc::pollfd { fd: inner.waker.fd(), events: libc::POLLIN, revents: 0 },
    ];
    loop {
        // SAFETY: two live pollfds of this frame.
        unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
        {
            let mut state = lock(&inner.state);
            drain(inner, &mut state);
            if state.stop {
                return;
            }
        }
        // Batches cost a busy machine far less than a wake-up for every packet, and the buffer is large.
        std::thread::sleep(Duration::from_millis(4));
    }
}

const BATCH: usize = 32;

/// Takes what has arrived off the socket, in batches.
fn drain(inner: &Inner, state: &mut State) {
    const CONTROL: usize = 64;
    let mut data = vec![0u8; BATCH * inner.snaplen];
    let mut control = [[0u64; CONTROL / 8]; BATCH];
    // SAFETY: all zeroes is valid for these plain C structures.
    let mut names: [libc::sockaddr_ll; BATCH] = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let mut iov: [libc::iovec; BATCH] = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let mut msgs: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    loop {
        for i in 0..BATCH {
            iov[i].iov_base = data[i * inner.snaplen..].as_mut_ptr().cast();
            iov[i].iov_len = inner.snaplen;
            let h = &mut msgs[i].msg_hdr;
            h.msg_name = std::ptr::from_mut(&mut names[i]).cast();
            h.msg_namelen = size_of::<libc::sockaddr_ll>() as u32;
            h.msg_iov = &mut iov[i];
            h.msg_iovlen = 1;
            h.msg_control = control[i].as_mut_ptr().cast();
            h.msg_controllen = CONTROL as _;
        }
        // SAFETY: every header points into arrays of this frame with their true sizes.
        let n = unsafe {
            libc::recvmmsg(
                inner.socket.as_raw_fd(),
                msgs.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        if n <= 0 {
            break;
        }
        for i in 0..n as usize {
            let len = (msgs[i].msg_len as usize).min(inner.snaplen);
            let packet = Packet {
                t: timestamp(&msgs[i].msg_hdr),
                outgoing: names[i].sll_pkttype == libc::PACKET_OUTGOING,
                data: data[i * inner.snaplen..i * inner.snaplen + len].into(),
            };
            state.bytes += len;
            state.packets.push_back(packet);
        }
        while state.bytes > inner.max_bytes {
            let Some(p) = state.packets.pop_front() else { break };
            state.bytes -= p.data.len();
            state.lost += 1;
        }
    }
    state.lost += kernel_drops(&inner.socket);
}

/// Packets that found no room since the last question (the kernel's counter starts again each time).
fn kernel_drops(socket: &OwnedFd) -> u64 {
    let mut stats = [0u32; 2];
    let mut len = size_of_val(&stats) as libc::socklen_t;
    // SAFETY: pointer and length describe `stats`.
    let r = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS, stats.as_mut_ptr().cast(), &mut len)
    };
    if r == 0 {
        u64::from(stats[1])
    } else {
        0
    }
}

fn timestamp(h: &libc::msghdr) -> u64 {
    // SAFETY: the header was filled in by recvmmsg and its control buffer lives.
    let mut c = unsafe { libc::CMSG_FIRSTHDR(h) };
    while !c.is_null() {
        // SAFETY: a control message inside the buffer, aligned as the kernel laid it out.
        let head = unsafe { &*c };
        if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_TIMESTAMPNS {
            // SAFETY: this type carries one timespec; it may be unaligned.
            let ts = unsafe { std::ptr::read_unaligned(libc::CMSG_DATA(c).cast::<libc::timespec>()) };
            return ts.tv_sec as u64 * 1_000_000_000 + ts.tv_nsec as u64;
        }
        // SAFETY: as CMSG_FIRSTHDR.
        c = unsafe { libc::CMSG_NXTHDR(h, c) };
    }
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

/// The length that the IP header of an Ethernet frame tells.
fn ip_len(frame: &[u8]) -> Option<usize> {
    match LaxSlicedPacket::from_ethernet(frame).ok()?.net? {
        LaxNetSlice::Ipv4(ip) => Some(ip.header().total_len().into()),
        LaxNetSlice::Ipv6(ip) => Some(ip.header().slice().len() + usize::from(ip.header().payload_length())),
        LaxNetSlice::Arp(_) => None,
    }
}

fn parse(frame: &[u8], t: Duration, outgoing: bool) -> Option<Seg> {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { return None };
    let (src, dst): (IpAddr, IpAddr) = match packet.net? {
        LaxNetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        LaxNetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        LaxNetSlice::Arp(_) => return None,
    };
    // What the capture has cut off counts, too.
    let tcp_at = tcp.slice().as_ptr().addr() - frame.as_ptr().addr();
    let end = Ethernet2Header::LEN + ip_len(frame)?;
    let mut seg = Seg {
        t,
        outgoing,
        src: SocketAddr::new(src, tcp.source_port()),
        dst: SocketAddr::new(dst, tcp.destination_port()),
        seq: tcp.sequence_number(),
        ack: tcp.acknowledgment_number(),
        flags: *tcp.header_slice().get(13)?,
        window: tcp.window_size(),
        payload_len: end.saturating_sub(tcp_at + tcp.header_len()) as u32,
        tsval: None,
        tsecr: None,
        mss: None,
        sack: Vec::new(),
    };
    // What follows an option that makes no sense is none.
    for option in tcp.options_iterator().map_while(Result::ok) {
        match option {
            TcpOptionElement::MaximumSegmentSize(mss) => seg.mss = Some(mss),
            TcpOptionElement::Timestamp(value, echo) => (seg.tsval, seg.tsecr) = (Some(value), Some(echo)),
            TcpOptionElement::SelectiveAcknowledgement(first, rest) => {
                seg.sack = std::iter::once(first).chain(rest.into_iter().flatten()).collect();
            }
            _ => {}
        }
    }
    Some(seg)
}
