//! A peer that says what it likes: a TCP connection whose segments a test makes by hand.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use tcpr_node::rawsock::{RawSender, MARK};
use tcpr_session::segment::{flags, Build, Segment};
use tcpr_session::seq::{self, Seq};

use crate::shim::iptables;
use crate::sys::{self, ctx, cvt, other};
use crate::Host;

/// One connection from a port that no socket of the host has. No options beyond the MSS: no window scale, no SACK, no
/// timestamps.
pub struct RawPeer {
    sender: RawSender,
    socket: OwnedFd,
    local: SocketAddr,
    remote: SocketAddr,
    isn_in: Seq,
    isn_out: Seq,
    /// What came, in order.
    pub got: Vec<u8>,
    /// How far the other side has acknowledged, as an offset of our stream.
    pub acked: u64,
    /// The other side has ended its stream.
    pub fin: bool,
    /// A mistake of the other side: an RST, or other bytes than before for the same place.
    pub wrong: Option<String>,
}

/// Sends SYNs and answers no SYN-ACK.
pub struct SynFlood {
    sender: RawSender,
    local: IpAddr,
    remote: SocketAddr,
}

impl SynFlood {
    /// Towards this address; [`RawPeer::prepare`] first.
    pub fn new(host: &Host, remote: SocketAddr) -> io::Result<SynFlood> {
        Ok(SynFlood { sender: host.enter(RawSender::open)?, local: host.ip(), remote })
    }

    /// A SYN from this port, or none if the network is full.
    pub fn syn(&mut self, from: u16, isn: u32) -> io::Result<()> {
        let mut syn = Vec::new();
        let build = Build {
            source: SocketAddr::new(self.local, from),
            destination: self.remote,
            seq: Seq(isn),
            ack: Seq(0),
            flags: flags::SYN,
            window: 60_000,
            timestamps: None,
            payload: &[],
        };
        build.write_with(&[2, 4, 5, 0xb4], &mut syn);
        match self.sender.send(&syn) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }
}

/// A segment in stream offsets.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    /// [`flags`] of the segment.
    pub flags: u8,
    /// Offset of its first byte, from the first byte of our stream.
    pub at: i64,
    /// Offset that it acknowledges.
    pub ack: i64,
    /// Payload.
    pub bytes: &'a [u8],
}

impl RawPeer {
    /// Keeps the host's own TCP from resetting the connections of raw peers; once for each host and port.
    pub fn prepare(host: &Host, port: u16) -> io::Result<()> {
        let rule = format!("OUTPUT -p tcp --dport {port} --tcp-flags RST RST -m mark ! --mark {MARK} -j DROP");
        iptables(host, "-I", &rule)
    }

    /// Connects from this port of the host.
    pub fn connect(host: &Host, from: u16, remote: SocketAddr, isn: u32, timeout: Duration) -> io::Result<RawPeer> {
        let mut peer = RawPeer::half_open(host, from, remote, isn, timeout)?;
        peer.say(Said { flags: flags::ACK, at: 0, ack: 0, bytes: &[] })?;
        Ok(peer)
    }

    /// Has its SYN answered, and says nothing to that.
    pub fn half_open(host: &Host, from: u16, remote: SocketAddr, isn: u32, timeout: Duration) -> io::Result<RawPeer> {
        let packets = if remote.is_ipv4() { libc::ETH_P_IP } else { libc::ETH_P_IPV6 };
        // Of a protocol in network byte order.
        let protocol = libc::c_int::from((packets as u16).to_be());
        let (sender, socket) =
            host.enter(|| Ok::<_, io::Error>((RawSender::open()?, sys::socket(libc::AF_PACKET, libc::SOCK_DGRAM, protocol)?)))?;
        // Every packet that the host receives comes here.
        sys::setsockopt(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(8 << 20))?;
        let local = SocketAddr::new(host.ip(), from);
        let mut peer = RawPeer {
            sender,
            socket,
            local,
            remote,
            isn_in: Seq(0),
            isn_out: Seq(isn),
            got: Vec::new(),
            acked: 0,
            fin: false,
            wrong: None,
        };
        let end = Instant::now() + timeout;
        while Instant::now() < end {
            let mut syn = Vec::new();
            let build = peer.build(flags::SYN, Seq(isn), Seq(0), &[]);
            build.write_with(&[2, 4, 5, 0xb4], &mut syn);
            peer.sender.send(&syn)?;
            let answer_until = Instant::now() + Duration::from_secs(1);
            while let Some(packet) = peer.receive(answer_until)? {
                let s = Segment::parse(&packet).map_err(|e| other(format!("{e:?}")))?;
                if s.has(flags::SYN | flags::ACK) && s.ack() == Seq(isn).add(1) {
                    peer.isn_in = s.seq();
                    return Ok(peer);
                }
            }
        }
        Err(other(format!("no answer from {remote}")))
    }

    fn build<'a>(&self, flag_bits: u8, seq: Seq, ack: Seq, payload: &'a [u8]) -> Build<'a> {
        Build {
            source: self.local,
            destination: self.remote,
            seq,
            ack,
            flags: flag_bits,
            window: 60_000,
            timestamps: None,
            payload,
        }
    }

    /// The packet that says this.
    pub fn packet(&self, said: Said<'_>) -> Vec<u8> {
        let mut packet = Vec::new();
        let (seq, ack) = (seq::at(self.isn_out, said.at as u64), seq::at(self.isn_in, said.ack as u64));
        self.build(said.flags, seq, ack, said.bytes).write(&mut packet);
        packet
    }

    /// Sends a segment, whatever it says.
    pub fn say(&mut self, said: Said<'_>) -> io::Result<()> {
        let packet = self.packet(said);
        self.send(&packet)
    }

    /// Sends a packet as it is, from its IP header on.
    pub fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        match self.sender.send(packet) {
            // The network is full: lost, as on any network.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }

    /// The next packet of this connection; `None` at that time.
    fn receive(&mut self, until: Instant) -> io::Result<Option<Vec<u8>>> {
        let mut packet = vec![0; 70_000];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if !sys::wait_readable(self.socket.as_fd(), left)? {
                if left.is_zero() {
                    return Ok(None);
                }
                continue;
            }
            // SAFETY: pointer and length describe the buffer, which lives through the call.
            let n = unsafe { libc::recv(self.socket.as_raw_fd(), packet.as_mut_ptr().cast(), packet.len(), 0) };
            let n = cvt(n as libc::c_int).map_err(ctx("recv"))? as usize;
            let ours = Segment::parse(&packet[..n]).is_ok_and(|s| s.source() == self.remote && s.destination() == self.local);
            if ours {
                packet.truncate(n);
                return Ok(Some(packet));
            }
        }
    }

    /// Takes what comes for so long, and acknowledges it.
    pub fn listen(&mut self, time: Duration) -> io::Result<()> {
        let until = Instant::now() + time;
        while let Some(packet) = self.receive(until)? {
            let s = Segment::parse(&packet).map_err(|e| other(format!("{e:?}")))?;
            if s.has(flags::RST) {
                self.wrong.get_or_insert(format!("an RST with {:?} after {} bytes", s.seq(), self.got.len()));
                return Ok(());
            }
            if let Some(acked) = seq::offset(self.isn_out, s.ack(), self.acked) {
                self.acked = self.acked.max(acked);
            }
            let Some(at) = seq::offset(self.isn_in, s.seq(), self.got.len() as u64) else {
                self.acknowledge()?;
                continue;
            };
            let known = self.got.len().saturating_sub(at as usize).min(s.payload().len());
            // A keepalive may carry one byte of anything, in the place before what comes next.
            let probe = s.payload().len() == 1 && known == 1;
            if !probe && at as usize <= self.got.len() && self.got[at as usize..at as usize + known] != s.payload()[..known] {
                self.wrong.get_or_insert(format!("other bytes than before from {at} on"));
            }
            if at as usize <= self.got.len() {
                self.got.extend_from_slice(&s.payload()[known..]);
                self.fin |= s.has(flags::FIN);
            }
            // A number long past asks for one, too.
            if s.sequence_length() > 0 || (at as usize) < self.got.len() {
                self.acknowledge()?;
            }
        }
        Ok(())
    }

    /// How far what came reaches, its end counted.
    pub fn received(&self) -> i64 {
        self.got.len() as i64 + i64::from(self.fin)
    }

    fn acknowledge(&mut self) -> io::Result<()> {
        self.say(Said { flags: flags::ACK, at: self.acked as i64, ack: self.received(), bytes: &[] })
    }
}
