//! An NFQUEUE socket: whole packets in by the batch, verdicts out by the batch.
//!
//! This is our own netlink client and not the `nfq` crate because the manager needs the descriptor for its
//! event loop, must know when the kernel ran out of room ([`Queue::overruns`]), and cannot afford a system
//! call for each packet. Nothing here decides: the packet filter does.
//!
//! What a user of this module must know of the kernel:
//! - A packet stays in the kernel until its verdict, for as long as it takes. When the [`Queue`] is dropped
//!   the kernel drops every packet that is still held, and from then on every new one: the rules have no
//!   bypass, so we fail closed.
//! - After an overrun the kernel delivers nothing until the reader has emptied the socket: call
//!   [`Queue::recv_batch`] until it returns 0.
//! - The kernel searches for the packet of a verdict: 0.3 us when little is held, up to 7 us with 50,000.
//! - A packet in INPUT may already be tied to the socket that it came for (early demux). If that one is closed
//!   while the packet is held, and another made in its place, accepting the packet delivers it to the dead:
//!   drop it and inject a copy instead.
//! - A payload that was replaced loses its checksum offload: its TCP checksum must be whole.

use std::fs;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The most packets that one call of [`Queue::recv_batch`] delivers.
pub const BATCH: usize = 32;

/// The longest payload that a netlink attribute can carry (its length field counts 16 bits, header included).
/// The kernel cuts longer packets; see [`QueuedPacket::wire_len`].
pub const MAX_PAYLOAD: usize = 0xffff - ATTR_HEADER;

/// Packets that the kernel holds for us at most. Past it, new ones are dropped, and TCP sends them again.
const QUEUE_MAX_LEN: u32 = 65536;
/// The default buffer loses packets at 0.6 Gb/s.
const RECEIVE_BUFFER: libc::c_int = 64 << 20;
const SEND_BUFFER: libc::c_int = 1 << 20;
/// Verdicts sent in one call, in bytes: well below [`SEND_BUFFER`], and small enough for the kernel to find
/// the memory cheaply.
const FLUSH_CHUNK: usize = 128 << 10;
/// One received message: a packet of 64 KiB, the netlink headers, and the other attributes.
const SLOT: usize = 65536 + 4096;

pub(crate) const NLMSG_HEADER: usize = 16;
const NFGEN_HEADER: usize = 4;
const ATTR_HEADER: usize = 4;
const SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_QUEUE as u16) << 8;
/// The two topmost bits of an attribute's type are flags.
const ATTR_TYPE_MASK: u16 = 0x3fff;

/// A bound NFQUEUE: receives packets, sends verdicts.
pub struct Queue {
    socket: OwnedFd,
    /// [`BATCH`] slots of [`SLOT`] bytes. Allocated once; pages that no packet ever needed are never touched.
    arena: Box<[u8]>,
    verdicts: Verdicts,
    overruns: u64,
    refused: u64,
    last_refusal: i32,
}

/// One packet that waits for its verdict. The payload is valid until the next [`Queue::recv_batch`].
#[derive(Debug, Clone, Copy)]
pub struct QueuedPacket<'a> {
    /// What the verdict must name. Ids of one queue count up from 1.
    pub id: u32,
    /// The packet from its IP header on.
    pub payload: &'a [u8],
    /// Length of the packet in the kernel. Larger than `payload` only for the few packets between
    /// [`MAX_PAYLOAD`] and 65535 bytes, or for IPv6 jumbograms; such a packet can be judged as it is, but not
    /// stored, and not replaced.
    pub wire_len: usize,
    /// The netfilter hook where the packet waits (`libc::NF_INET_LOCAL_IN`, `NF_INET_LOCAL_OUT`).
    pub hook: u8,
    /// The checksum is left to the network card, or came over a local path that never made one: the payload
    /// holds only the sum over the pseudo header, and the kernel vouches for the bytes.
    pub csum_not_ready: bool,
    /// The kernel has verified the checksum (or the packet is our own output). If neither this nor
    /// `csum_not_ready` is set, the reader must compute it before it believes the packet.
    pub csum_verified: bool,
    /// A batch of segments that share this header: longer than the MSS and the MTU.
    pub gso: bool,
    /// The packet's fwmark, 0 if none.
    pub mark: u32,
    /// Interface index on which the packet came in, 0 if none.
    pub indev: u32,
    /// Interface index on which the packet is going out, 0 if none.
    pub outdev: u32,
}

impl QueuedPacket<'_> {
    /// The kernel vouches for the checksum.
    pub fn checksum_ok(&self) -> bool {
        self.csum_not_ready || self.csum_verified
    }

    /// The payload lacks the end of the packet.
    pub fn truncated(&self) -> bool {
        self.wire_len > self.payload.len()
    }
}

impl Queue {
    /// Creates the socket in the network namespace of the calling thread and binds it to queue `num`.
    ///
    /// # Errors
    /// `ResourceBusy` if somebody else has the queue, `PermissionDenied` without CAP_NET_ADMIN; the texts say
    /// what to do.
    pub fn open(num: u16) -> io::Result<Queue> {
        let socket = netlink_socket(libc::NETLINK_NETFILTER)?;
        set_option(&socket, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER)
            .and_then(|()| set_option(&socket, libc::SO_SNDBUFFORCE, SEND_BUFFER))
            .and_then(|()| configure(&socket, num))
            .map_err(|error| explain_bind_error(num, error))?;

        Ok(Queue {
            socket,
            arena: vec![0; BATCH * SLOT].into_boxed_slice(),
            verdicts: Verdicts::new(num),
            overruns: 0,
            refused: 0,
            last_refusal: 0,
        })
    }

    /// The number of this queue.
    pub fn num(&self) -> u16 {
        self.verdicts.num
    }

    /// Receives what waits, at most [`BATCH`] packets, without blocking, and shows each to `f`. Returns how
    /// many messages were taken off the socket; 0 means that it is empty, fewer than [`BATCH`] that it was
    /// emptied or that an overrun interrupts.
    ///
    /// An overrun (the receive buffer was full, packets were dropped) is counted and not an error.
    pub fn recv_batch(&mut self, mut f: impl FnMut(QueuedPacket<'_>)) -> io::Result<usize> {
        self.recv_batch_with(|packet, _| f(packet))
    }

    /// As [`Queue::recv_batch`], for a receiver that decides on the spot.
    pub fn recv_batch_with(&mut self, mut f: impl FnMut(QueuedPacket<'_>, &mut Verdicts)) -> io::Result<usize> {
        let mut lengths = [0usize; BATCH];
        let received = self.receive(&mut lengths)?;
        for (slot, &length) in self.arena.chunks_exact(SLOT).zip(&lengths[..received]) {
            for message in Messages(&slot[..length.min(SLOT)]) {
                match message.kind {
                    PACKET => {
                        if let Some(packet) = parse_packet(message.body) {
                            f(packet, &mut self.verdicts);
                        }
                    }
                    NLMSG_ERROR => {
                        let error = message.error();
                        if error != 0 {
                            self.refused += 1;
                            self.last_refusal = error;
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(received)
    }

    /// Lets the packet pass as it is. Takes effect at [`Queue::flush`].
    pub fn accept(&mut self, id: u32) {
        self.verdicts.accept(id);
    }

    /// Lets the packet pass with other contents, from the IP header on, all checksums made. Takes effect at
    /// [`Queue::flush`].
    ///
    /// # Errors
    /// `InvalidInput` if `packet` is longer than [`MAX_PAYLOAD`].
    pub fn accept_modified(&mut self, id: u32, packet: &[u8]) -> io::Result<()> {
        self.verdicts.accept_modified(id, packet)
    }

    /// Drops the packet. Takes effect at [`Queue::flush`].
    pub fn drop_packet(&mut self, id: u32) {
        self.verdicts.drop_packet(id);
    }

    /// The verdicts not yet flushed.
    pub fn verdicts(&mut self) -> &mut Verdicts {
        &mut self.verdicts
    }

    /// Hands all verdicts to the kernel, which carries them out before this returns. After an error the
    /// verdicts not yet taken stay, for the next call.
    ///
    /// A verdict that the kernel refuses (unknown id, privilege lost) is not an error here: the refusal comes
    /// back as a message and [`Queue::refused`] counts it.
    pub fn flush(&mut self) -> io::Result<()> {
        self.verdicts.flush(&self.socket)
    }

    /// How many times the kernel had no room for packets and dropped them.
    pub fn overruns(&self) -> u64 {
        self.overruns
    }

    /// How many verdicts the kernel refused, and the newest reason (errno). ENOENT: no such packet, or judged
    /// twice. EPERM: this process has lost its privilege since it opened the queue.
    pub fn refused(&self) -> (u64, i32) {
        (self.refused, self.last_refusal)
    }

    /// Fills the slots of the arena; returns how many. 0 if nothing waits.
    fn receive(&mut self, lengths: &mut [usize; BATCH]) -> io::Result<usize> {
        let base = self.arena.as_mut_ptr();
        let mut iovecs: [libc::iovec; BATCH] = std::array::from_fn(|i| libc::iovec {
            // SAFETY: the arena is BATCH * SLOT bytes long and i < BATCH.
            iov_base: unsafe { base.add(i * SLOT) }.cast(),
            iov_len: SLOT,
        });
        // SAFETY: mmsghdr is plain data of C for which all zeroes is a valid value.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        for (header, iovec) in headers.iter_mut().zip(&mut iovecs) {
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
        }
        loop {
            // SAFETY: every header points at one iovec, and that at its own slot of the arena, which this
            // function borrows mutably until it returns.
            let n = unsafe {
                libc::recvmmsg(
                    self.socket.as_raw_fd(),
                    headers.as_mut_ptr(),
                    BATCH as libc::c_uint,
                    libc::MSG_DONTWAIT,
                    std::ptr::null_mut(),
                )
            };
            if n >= 0 {
                for (length, header) in lengths.iter_mut().zip(&headers[..n as usize]) {
                    *length = header.msg_len as usize;
                }
                return Ok(n as usize);
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(0),
                Some(libc::EINTR) => {}
                // The kernel reports an overrun once and then goes on with what it had queued.
                Some(libc::ENOBUFS) => self.overruns += 1,
                _ => return Err(error),
            }
        }
    }
}

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Verdicts that wait for [`Queue::flush`]: one netlink message each, in order.
///
/// Never NFQNL_MSG_VERDICT_BATCH, which would decide all lower ids too, those of held packets among them.
pub struct Verdicts {
    num: u16,
    buffer: Vec<u8>,
}

impl Verdicts {
    fn new(num: u16) -> Verdicts {
        Verdicts { num, buffer: Vec::with_capacity(2 * FLUSH_CHUNK) }
    }

    /// Lets the packet pass as it is.
    pub fn accept(&mut self, id: u32) {
        self.push(id, libc::NF_ACCEPT, None);
    }

    /// Lets the packet pass with other contents; see [`Queue::accept_modified`].
    pub fn accept_modified(&mut self, id: u32, packet: &[u8]) -> io::Result<()> {
        if packet.len() > MAX_PAYLOAD {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a packet of {} bytes does not fit a verdict", packet.len()),
            ));
        }
        self.push(id, libc::NF_ACCEPT, Some(packet));
        Ok(())
    }

    /// Drops the packet.
    pub fn drop_packet(&mut self, id: u32) {
        self.push(id, libc::NF_DROP, None);
    }

    /// No verdict waits.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    fn push(&mut self, id: u32, verdict: libc::c_int, packet: Option<&[u8]>) {
        let start = begin_message(&mut self.buffer, libc::NFQNL_MSG_VERDICT, 0, self.num);
        let mut header = [0; 8];
        header[..4].copy_from_slice(&(verdict as u32).to_be_bytes());
        header[4..].copy_from_slice(&id.to_be_bytes());
        put_attr(&mut self.buffer, libc::NFQA_VERDICT_HDR, &header);
        if let Some(packet) = packet {
            put_attr(&mut self.buffer, libc::NFQA_PAYLOAD, packet);
        }
        end_message(&mut self.buffer, start);
    }

    fn flush(&mut self, socket: &OwnedFd) -> io::Result<()> {
        let mut done = 0;
        let mut result = Ok(());
        while done < self.buffer.len() {
            let chunk = &self.buffer[done..done + whole_messages(&self.buffer[done..], FLUSH_CHUNK)];
            match netlink_send(socket, chunk) {
                Ok(()) => done += chunk.len(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        self.buffer.drain(..done);
        result
    }
}

/// Length of the longest run of whole messages within `limit`, at least one message.
fn whole_messages(buffer: &[u8], limit: usize) -> usize {
    if buffer.len() <= limit {
        return buffer.len();
    }
    let mut end = 0;
    for message in Messages(buffer) {
        if end > 0 && end + message.padded > limit {
            break;
        }
        end += message.padded;
    }
    end
}

const PACKET: u16 = SUBSYSTEM | libc::NFQNL_MSG_PACKET as u16;
pub(crate) const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;

/// The netlink messages of one datagram.
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    /// What follows the netlink header.
    pub(crate) body: &'a [u8],
    /// Length in the buffer, header and padding included.
    padded: usize,
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = u32_ne(self.0.get(..4)?) as usize;
        let kind = u16_ne(self.0.get(4..6)?);
        let body = self.0.get(NLMSG_HEADER..length)?;
        let padded = align(length).min(self.0.len());
        self.0 = &self.0[padded..];
        Some(Message { kind, body, padded })
    }
}

impl Message<'_> {
    /// The errno of an NLMSG_ERROR, 0 for an acknowledgement.
    pub(crate) fn error(&self) -> i32 {
        self.body.get(..4).map_or(libc::EBADMSG, |code| (u32_ne(code) as i32).wrapping_neg())
    }
}

fn parse_packet(body: &[u8]) -> Option<QueuedPacket<'_>> {
    let mut rest = body.get(NFGEN_HEADER..)?;
    let mut header = None;
    let mut packet = QueuedPacket {
        id: 0,
        payload: &[],
        wire_len: 0,
        hook: 0,
        csum_not_ready: false,
        csum_verified: true,
        gso: false,
        mark: 0,
        indev: 0,
        outdev: 0,
    };
    while rest.len() >= ATTR_HEADER {
        let length = usize::from(u16_ne(&rest[..2]));
        let kind = u16_ne(&rest[2..4]) & ATTR_TYPE_MASK;
        let value = rest.get(ATTR_HEADER..length)?;
        match libc::c_int::from(kind) {
            libc::NFQA_PACKET_HDR => header = Some((u32_be(value)?, *value.get(6)?)),
            libc::NFQA_PAYLOAD => packet.payload = value,
            libc::NFQA_CAP_LEN => packet.wire_len = u32_be(value)? as usize,
            libc::NFQA_MARK => packet.mark = u32_be(value)?,
            libc::NFQA_IFINDEX_INDEV => packet.indev = u32_be(value)?,
            libc::NFQA_IFINDEX_OUTDEV => packet.outdev = u32_be(value)?,
            libc::NFQA_SKB_INFO => {
                let info = u32_be(value)? as libc::c_int;
                packet.csum_not_ready = info & libc::NFQA_SKB_CSUMNOTREADY != 0;
                // Of a packet whose sum is still to be made, the kernel does not say this; neither do we.
                packet.csum_verified = info & libc::NFQA_SKB_CSUM_NOTVERIFIED == 0 && !packet.csum_not_ready;
                packet.gso = info & libc::NFQA_SKB_GSO != 0;
            }
            _ => {}
        }
        rest = rest.get(align(length)..).unwrap_or(&[]);
    }
    (packet.id, packet.hook) = header?;
    packet.wire_len = packet.wire_len.max(packet.payload.len());
    Some(packet)
}

/// A netlink socket: close-on-exec, non-blocking, in the calling thread's network namespace.
pub(crate) fn netlink_socket(protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_option(socket: &OwnedFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the pointer and length describe `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            mem::size_of_val(&value) as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Binds the queue and sets it up, in one message, so that no packet sees a half-configured queue.
fn configure(socket: &OwnedFd, num: u16) -> io::Result<()> {
    let mut message = Vec::with_capacity(128);
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
    let start = begin_message(&mut message, libc::NFQNL_MSG_CONFIG, flags as u16, num);
    // struct nfqnl_msg_config_cmd { u8 command; u8 pad; be16 family }; the family has no meaning any more.
    put_attr(&mut message, libc::NFQA_CFG_CMD, &[libc::NFQNL_CFG_CMD_BIND as u8, 0, 0, 0]);
    // struct nfqnl_msg_config_params { be32 range; u8 mode }, packed. The kernel lowers the range to what an
    // attribute can carry.
    let mut params = [0; 5];
    params[..4].copy_from_slice(&u32::MAX.to_be_bytes());
    params[4] = libc::NFQNL_COPY_PACKET as u8;
    put_attr(&mut message, libc::NFQA_CFG_PARAMS, &params);
    put_attr(&mut message, libc::NFQA_CFG_QUEUE_MAXLEN, &QUEUE_MAX_LEN.to_be_bytes());
    let gso = (libc::NFQA_CFG_F_GSO as u32).to_be_bytes();
    let known = ((libc::NFQA_CFG_F_GSO | libc::NFQA_CFG_F_FAIL_OPEN) as u32).to_be_bytes();
    put_attr(&mut message, libc::NFQA_CFG_MASK, &known);
    put_attr(&mut message, libc::NFQA_CFG_FLAGS, &gso);
    end_message(&mut message, start);
    netlink_send(socket, &message)?;

    // The kernel has answered before send returned. Packets may already be queued, but behind the answer.
    let mut answer = [0; 256];
    // SAFETY: the pointer and length describe `answer`.
    let n = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), libc::MSG_DONTWAIT) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    match Messages(&answer[..n as usize]).next() {
        Some(message) if message.kind == NLMSG_ERROR => match message.error() {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        },
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "NFQUEUE: the kernel's answer is not one")),
    }
}

/// The kernel says EPERM both for a queue of somebody else and for a lack of privilege.
fn explain_bind_error(num: u16, error: io::Error) -> io::Error {
    let owner = queue_owner(num);
    match (error.raw_os_error(), owner) {
        (Some(libc::EPERM | libc::EBUSY), Some(port)) => io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!(
                "NFQUEUE {num} is in use by netlink port {port} (usually a process id): stop that program, or \
                 choose other numbers with `queues` in [service]"
            ),
        ),
        (Some(libc::EPERM), None) => {
            io::Error::new(io::ErrorKind::PermissionDenied, format!("NFQUEUE {num}: not permitted: CAP_NET_ADMIN is needed"))
        }
        _ => io::Error::new(error.kind(), format!("NFQUEUE {num}: {error}")),
    }
}

/// The netlink port that is bound to queue `num` in the calling thread's network namespace.
fn queue_owner(num: u16) -> Option<u32> {
    let table = fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_queue").ok()?;
    table.lines().find_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        (columns.next()?.parse() == Ok(num)).then(|| columns.next()?.parse().ok())?
    })
}

/// Sends whole netlink messages to the kernel.
pub(crate) fn netlink_send(socket: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer and length describe `bytes`.
    let n = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Appends the headers of a message; [`end_message`] fills in its length.
fn begin_message(buffer: &mut Vec<u8>, kind: libc::c_int, flags: u16, num: u16) -> usize {
    let start = buffer.len();
    let kind = SUBSYSTEM | kind as u16;
    let flags = flags | libc::NLM_F_REQUEST as u16;
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&kind.to_ne_bytes());
    buffer.extend_from_slice(&flags.to_ne_bytes());
    buffer.extend_from_slice(&[0; 8]); // sequence number and port: not needed
    buffer.extend_from_slice(&[libc::AF_UNSPEC as u8, libc::NFNETLINK_V0 as u8]);
    buffer.extend_from_slice(&num.to_be_bytes());
    start
}

fn end_message(buffer: &mut [u8], start: usize) {
    let length = (buffer.len() - start) as u32;
    buffer[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// Appends an attribute, padded. `value` is no longer than [`MAX_PAYLOAD`].
fn put_attr(buffer: &mut Vec<u8>, kind: libc::c_int, value: &[u8]) {
    let length = ATTR_HEADER + value.len();
    buffer.extend_from_slice(&(length as u16).to_ne_bytes());
    buffer.extend_from_slice(&(kind as u16).to_ne_bytes());
    buffer.extend_from_slice(value);
    buffer.resize(buffer.len() + align(length) - length, 0);
}

fn align(length: usize) -> usize {
    (length + 3) & !3
}

pub(crate) fn u16_ne(bytes: &[u8]) -> u16 {
    u16::from_ne_bytes([bytes[0], bytes[1]])
}

pub(crate) fn u32_ne(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn u32_be(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet_message(attrs: &[(libc::c_int, &[u8])]) -> Vec<u8> {
        let mut buffer = Vec::new();
        let start = begin_message(&mut buffer, libc::NFQNL_MSG_PACKET, 0, 7);
        for (kind, value) in attrs {
            put_attr(&mut buffer, *kind, value);
        }
        end_message(&mut buffer, start);
        buffer
    }

    #[test]
    fn a_packet_is_read_with_all_its_attributes() {
        let buffer = packet_message(&[
            (libc::NFQA_PACKET_HDR, &[0, 0, 1, 2, 8, 0, 3]),
            (libc::NFQA_IFINDEX_OUTDEV, &[0, 0, 0, 9]),
            (libc::NFQA_MARK, &[0x54, 0x43, 0x50, 0x52]),
            (libc::NFQA_CAP_LEN, &[0, 0, 0xff, 0xff]),
            (libc::NFQA_SKB_INFO, &[0, 0, 0, 3]),
            (libc::NFQA_PAYLOAD, b"payload"),
        ]);
        let message = Messages(&buffer).next().unwrap();
        assert_eq!(message.kind, PACKET);
        let packet = parse_packet(message.body).unwrap();
        assert_eq!((packet.id, packet.hook), (0x102, 3));
        assert_eq!((packet.indev, packet.outdev, packet.mark), (0, 9, 0x5443_5052));
        assert_eq!(packet.payload, b"payload");
        assert_eq!(packet.wire_len, 0xffff);
        assert!(packet.truncated() && packet.gso && packet.csum_not_ready && !packet.csum_verified);
    }

    #[test]
    fn without_skb_info_the_kernel_has_verified_the_checksum() {
        let buffer = packet_message(&[(libc::NFQA_PACKET_HDR, &[0, 0, 0, 1, 8, 0, 1])]);
        let packet = parse_packet(Messages(&buffer).next().unwrap().body).unwrap();
        assert!(packet.csum_verified && packet.checksum_ok() && !packet.truncated());

        let unverified: &[u8] = &[0, 0, 0, libc::NFQA_SKB_CSUM_NOTVERIFIED as u8];
        let buffer = packet_message(&[(libc::NFQA_PACKET_HDR, &[0, 0, 0, 1, 8, 0, 1]), (libc::NFQA_SKB_INFO, unverified)]);
        assert!(!parse_packet(Messages(&buffer).next().unwrap().body).unwrap().checksum_ok());
    }

    #[test]
    fn cut_messages_are_refused_and_do_not_panic() {
        let buffer = packet_message(&[(libc::NFQA_PACKET_HDR, &[0, 0, 0, 1, 8, 0, 1]), (libc::NFQA_PAYLOAD, b"payload")]);
        for end in 0..buffer.len() - 1 {
            assert!(Messages(&buffer[..end]).next().is_none());
            let _ = parse_packet(&buffer[NLMSG_HEADER..end.max(NLMSG_HEADER)]);
        }
    }

    #[test]
    fn a_flush_is_cut_between_messages() {
        let mut verdicts = Verdicts::new(7);
        verdicts.accept(1);
        assert_eq!(verdicts.buffer.len(), 32);
        verdicts.accept_modified(2, &[1; 9]).unwrap();
        verdicts.drop_packet(3);
        assert_eq!(verdicts.buffer.len(), 32 + 48 + 32);
        assert_eq!(whole_messages(&verdicts.buffer, 1 << 20), 112);
        assert_eq!(whole_messages(&verdicts.buffer, 111), 80);
        assert_eq!(whole_messages(&verdicts.buffer, 79), 32);
        assert_eq!(whole_messages(&verdicts.buffer, 1), 32);
        assert!(verdicts.accept_modified(4, &vec![0; MAX_PAYLOAD + 1]).is_err());
        assert_eq!(verdicts.buffer.len(), 112);
    }
}
