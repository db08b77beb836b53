//! A model TCP, for peers and for the servers' kernels alike: what RFC 9293 and Linux do, as far as a filter in
//! between can notice it.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use tcpr_session::filter::RestoreSpec;
use tcpr_session::segment::{flags, reset_for, Build, Segment};
use tcpr_session::seq::{self, Seq};
use tcpr_session::Now;

const DELAYED_ACK: Duration = Duration::from_millis(40);
const MIN_RTO: Duration = Duration::from_millis(200);
const MAX_RTO: Duration = Duration::from_secs(3);
const TIME_WAIT: Duration = Duration::from_secs(2);
/// Linux answers empty segments that it does not take at most this often.
const OOW_RATE: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    SynSent,
    SynReceived,
    Open,
    TimeWait(Now),
    Gone,
}

/// What came of a segment that the owner should know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    Established,
    Reset,
    /// It acknowledged what was never sent.
    FutureAck,
}

#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub mss: u16,
    pub shift: Option<u8>,
    pub timestamps: bool,
    pub receive_buffer: usize,
    pub send_buffer: usize,
}

#[derive(Debug)]
pub struct Tcp {
    pub me: SocketAddr,
    pub other: SocketAddr,
    pub state: State,
    setup: Setup,
    iss: Seq,
    irs: Seq,
    /// Offset of the first byte in `buf`; acknowledged up to `una`, sent up to `nxt` (a FIN counts one).
    base: u64,
    una: u64,
    nxt: u64,
    buf: VecDeque<u8>,
    fin_out: bool,
    window: u64,
    /// Number of the segment that told the window.
    wl1: i64,
    max_window: u64,
    mss: usize,
    shift_in: u8,
    shift_out: u8,
    pub received: VecDeque<u8>,
    rcv: u64,
    early: BTreeMap<u64, Vec<u8>>,
    fin_at: Option<u64>,
    edge: u64,
    /// What the last ACK said (rcv_wup).
    told: u64,
    closed: bool,
    ts: Option<u32>,
    ts_recent: Option<u32>,
    rto: Duration,
    rto_at: Option<Now>,
    recover: u64,
    ack_at: Option<Now>,
    unacked_segments: u32,
    last_oow: Option<Now>,
    pub out: Vec<Vec<u8>>,
}

impl Tcp {
    fn new(me: SocketAddr, other: SocketAddr, iss: Seq, setup: Setup, ts: u32) -> Tcp {
        Tcp {
            me,
            other,
            state: State::SynSent,
            setup,
            iss,
            irs: Seq(0),
            base: 0,
            una: 0,
            nxt: 0,
            buf: VecDeque::new(),
            fin_out: false,
            window: 0,
            wl1: -1,
            max_window: 0,
            mss: usize::from(setup.mss),
            shift_in: 0,
            shift_out: 0,
            received: VecDeque::new(),
            rcv: 0,
            early: BTreeMap::new(),
            fin_at: None,
            edge: 0,
            told: 0,
            closed: false,
            ts: setup.timestamps.then_some(ts),
            ts_recent: None,
            rto: MIN_RTO,
            rto_at: None,
            recover: 0,
            ack_at: None,
            unacked_segments: 0,
            last_oow: None,
            out: Vec::new(),
        }
    }

    pub fn connect(now: Now, me: SocketAddr, other: SocketAddr, iss: Seq, setup: Setup, ts: u32) -> Tcp {
        let mut t = Tcp::new(me, other, iss, setup, ts);
        t.rto = Duration::from_secs(1);
        t.send_syn(now);
        t.rto_at = Some(now + t.rto);
        t
    }

    /// No connection yet, or none any more.
    pub fn none(me: SocketAddr) -> Tcp {
        let setup = Setup { mss: 0, shift: None, timestamps: false, receive_buffer: 0, send_buffer: 0 };
        let mut t = Tcp::new(me, me, Seq(0), setup, 0);
        t.state = State::Gone;
        t
    }

    /// A listener's child for this SYN.
    pub fn answer(now: Now, syn: &Segment<'_>, iss: Seq, setup: Setup, ts: u32) -> Tcp {
        let mut t = Tcp::new(syn.destination(), syn.source(), iss, setup, ts);
        t.state = State::SynReceived;
        t.irs = syn.seq();
        t.take_options(syn);
        t.rto = Duration::from_secs(1);
        t.send_syn(now);
        t.rto_at = Some(now + t.rto);
        t
    }

    /// What TCP_REPAIR makes of a spec.
    pub fn restore(now: Now, spec: &RestoreSpec, setup: Setup) -> Tcp {
        // The smallest buffer of Linux offers this much; a window is told in steps of its scale.
        let room = setup.receive_buffer.max(1152) + (1 << spec.shifts.map_or(0, |(_, ours)| ours));
        assert!(spec.rcv_wnd as usize <= room, "a window of {}, a buffer of {}", spec.rcv_wnd, setup.receive_buffer);
        let mut t = Tcp::new(spec.tuple.local, spec.tuple.peer, Seq(spec.snd_una).add(u64::MAX), setup, 0);
        t.state = State::Open;
        t.irs = Seq(spec.rcv_nxt).add(u64::MAX);
        t.buf.extend(&spec.sent);
        t.nxt = spec.sent.len() as u64;
        t.buf.extend(&spec.unsent);
        t.fin_out = spec.fin;
        t.window = u64::from(spec.snd_wnd);
        t.max_window = t.window.max(65_535);
        t.mss = usize::from(spec.mss).min(t.mss);
        (t.shift_in, t.shift_out) = spec.shifts.unwrap_or((0, 0));
        t.edge = u64::from(spec.rcv_wnd);
        t.closed = spec.closed;
        t.ts = spec.timestamp.map(|v| v.wrapping_sub(now.as_millis() as u32));
        t.rto = Duration::from_secs(1);
        t.pump(now);
        t
    }

    fn take_options(&mut self, syn: &Segment<'_>) {
        let o = syn.options();
        self.mss = usize::from(o.mss.unwrap_or(536)).min(usize::from(self.setup.mss));
        if let (Some(theirs), Some(ours)) = (o.window_scale, self.setup.shift) {
            (self.shift_in, self.shift_out) = (theirs, ours);
        }
        match o.timestamps {
            Some((v, _)) if self.ts.is_some() => self.ts_recent = Some(v),
            _ => self.ts = None,
        }
        self.window = u64::from(syn.window());
        self.max_window = self.window;
    }

    // ---- the application's side --------------------------------------------------------------------

    pub fn write(&mut self, now: Now, bytes: &[u8]) -> usize {
        if self.fin_out || self.state == State::Gone {
            return 0;
        }
        let n = bytes.len().min(self.setup.send_buffer.saturating_sub(self.buf.len()));
        self.buf.extend(&bytes[..n]);
        self.pump(now);
        n
    }

    pub fn writable(&self) -> bool {
        self.room() > 0
    }

    /// How much a write would take.
    pub fn room(&self) -> usize {
        self.setup.send_buffer.saturating_sub(self.buf.len())
    }

    pub fn read(&mut self, now: Now, most: usize) -> Vec<u8> {
        let n = most.min(self.received.len());
        let bytes = self.received.drain(..n).collect();
        // A window that opened is told when it opened by much.
        let edge = self.rcv + self.space();
        if matches!(self.state, State::Open) && edge > self.edge + (self.setup.receive_buffer as u64) / 2 {
            self.send_ack(now);
        }
        bytes
    }

    /// The peer has ended its stream and all of it was read.
    pub fn at_end(&self) -> bool {
        self.received.is_empty() && self.fin_at.is_some_and(|at| self.rcv > at)
    }

    pub fn shutdown(&mut self, now: Now) {
        self.fin_out = true;
        self.pump(now);
    }

    /// Closes; with unread input it resets, as Linux does.
    pub fn close(&mut self, now: Now) {
        if matches!(self.state, State::Gone | State::SynSent) {
            // Of one that has only called nobody is told.
            self.state = State::Gone;
            return;
        }
        if self.state != State::Open || !self.received.is_empty() {
            return self.abort(now);
        }
        self.closed = true;
        self.shutdown(now);
        self.finish(now);
    }

    /// An RST, and it is gone.
    pub fn abort(&mut self, now: Now) {
        self.send(now, flags::RST | flags::ACK, self.nxt, &[]);
        self.state = State::Gone;
    }

    /// The application has closed it.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// TIME_WAIT, and a SYN that is no old duplicate (RFC 6191).
    pub fn may_be_replaced_by(&self, syn: &Segment<'_>) -> bool {
        matches!(self.state, State::TimeWait(_)) && syn.seq().after(seq::at(self.irs, self.rcv))
    }

    /// Input taken since it was made; the end counts one.
    pub fn taken(&self) -> u64 {
        self.rcv
    }

    /// The end of the input is among it.
    pub fn has_ended(&self) -> bool {
        self.fin_at.is_some_and(|at| self.rcv > at)
    }

    pub fn all_bytes_acknowledged(&self) -> bool {
        self.buf.is_empty()
    }

    fn end(&self) -> u64 {
        self.base + self.buf.len() as u64 + u64::from(self.fin_out && self.una <= self.base + self.buf.len() as u64)
    }

    // ---- segments out -------------------------------------------------------------------------------

    fn space(&self) -> u64 {
        self.setup.receive_buffer.saturating_sub(self.received.len()) as u64
    }

    fn stamp(&self, now: Now) -> Option<(u32, u32)> {
        let ts = self.ts?;
        Some((ts.wrapping_add(now.as_millis() as u32), self.ts_recent.unwrap_or(0)))
    }

    fn send(&mut self, now: Now, bits: u8, at: u64, payload: &[u8]) {
        // Rounded up: an edge that was told is never taken back.
        let room = self.edge.max(self.rcv + self.space()).saturating_sub(self.rcv);
        let window = ((room + (1 << self.shift_out) - 1) >> self.shift_out).min(u64::from(u16::MAX));
        self.edge = self.edge.max(self.rcv + (window << self.shift_out));
        let mut packet = Vec::new();
        Build {
            source: self.me,
            destination: self.other,
            seq: seq::at(self.iss, at),
            ack: seq::at(self.irs, self.rcv),
            flags: bits,
            window: window as u16,
            timestamps: self.stamp(now),
            payload,
        }
        .write(&mut packet);
        self.out.push(packet);
        self.told = self.rcv;
        self.ack_at = None;
        self.unacked_segments = 0;
    }

    fn send_syn(&mut self, now: Now) {
        let mut options = vec![2, 4];
        options.extend_from_slice(&self.setup.mss.to_be_bytes());
        let answer = self.state == State::SynReceived;
        let scaled = if answer { self.shift_out != 0 || self.shift_in != 0 } else { true };
        if let (Some(shift), true) = (self.setup.shift, scaled) {
            options.extend_from_slice(&[1, 3, 3, shift]);
        }
        let window = self.space().min(u64::from(u16::MAX));
        self.edge = window;
        let mut packet = Vec::new();
        Build {
            source: self.me,
            destination: self.other,
            seq: self.iss,
            ack: if answer { seq::at(self.irs, 0) } else { Seq(0) },
            flags: if answer { flags::SYN | flags::ACK } else { flags::SYN },
            window: window as u16,
            timestamps: self.stamp(now),
            payload: &[],
        }
        .write_with(&options, &mut packet);
        self.out.push(packet);
    }

    pub fn send_ack(&mut self, now: Now) {
        // Of a peer whose window shrank, the number at its end is the highest that it takes.
        let end = self.una + self.window;
        let within = end >= self.nxt || self.nxt - end < 1 << self.shift_out;
        self.send(now, flags::ACK, if within { self.nxt } else { end }, &[]);
    }

    /// The first segment again, no longer than the window.
    fn send_first(&mut self, now: Now) {
        let n = self.send_at(now, self.una, self.mss.min(self.window.max(1) as usize));
        self.nxt = self.nxt.max(self.una + n);
    }

    fn bytes(&self, from: u64, most: usize) -> Vec<u8> {
        let from = (from - self.base) as usize;
        let n = most.min(self.buf.len().saturating_sub(from));
        self.buf.range(from..from + n).copied().collect()
    }

    fn send_at(&mut self, now: Now, at: u64, most: usize) -> u64 {
        let bytes = self.bytes(at, most);
        let n = bytes.len() as u64;
        let last = self.fin_out && at + n == self.base + self.buf.len() as u64;
        self.send(now, flags::ACK | if last { flags::FIN } else { flags::PSH }, at, &bytes);
        n + u64::from(last)
    }

    /// Sends what window and congestion allow.
    pub fn pump(&mut self, now: Now) {
        if self.state != State::Open {
            return;
        }
        let limit = self.una + self.window.min(10 * self.mss as u64);
        while self.nxt < self.end() && (self.nxt < limit || self.window > 0 && self.nxt == self.una) {
            let room = (limit.max(self.nxt + 1) - self.nxt) as usize;
            let n = self.send_at(now, self.nxt, room.min(self.mss));
            self.nxt += n;
        }
        if self.una < self.end() && self.rto_at.is_none() {
            self.rto_at = Some(now + self.rto);
        }
    }

    // ---- time ---------------------------------------------------------------------------------------

    pub fn timer(&self) -> Option<Now> {
        if let State::TimeWait(until) = self.state {
            return Some(until);
        }
        [self.rto_at, self.ack_at].into_iter().flatten().min()
    }

    pub fn handle_timer(&mut self, now: Now) {
        if let State::TimeWait(until) = self.state {
            if now >= until {
                self.state = State::Gone;
            }
            return;
        }
        if self.ack_at.is_some_and(|t| now >= t) {
            self.send_ack(now);
        }
        if self.rto_at.is_none_or(|t| now < t) {
            return;
        }
        self.rto = (self.rto * 2).min(MAX_RTO);
        self.rto_at = Some(now + self.rto);
        match self.state {
            State::SynSent | State::SynReceived => self.send_syn(now),
            State::Open if self.una >= self.end() => self.rto_at = None,
            State::Open if self.window == 0 => {
                // A window probe: an old number and nothing.
                let at = self.una.wrapping_sub(1);
                self.send(now, flags::ACK, at, &[]);
            }
            State::Open => {
                self.recover = self.nxt;
                self.send_first(now);
            }
            State::TimeWait(_) | State::Gone => self.rto_at = None,
        }
    }

    // ---- segments in --------------------------------------------------------------------------------

    pub fn receive(&mut self, now: Now, p: &Segment<'_>) -> Option<Event> {
        match self.state {
            State::Gone => None,
            State::SynSent => self.receive_syn_sent(now, p),
            State::SynReceived => {
                if p.has(flags::SYN) {
                    if !p.has(flags::ACK) && p.seq() == self.irs {
                        self.send_syn(now);
                    }
                    return None;
                }
                if p.has(flags::RST) {
                    if p.seq() == seq::at(self.irs, 0) {
                        self.state = State::Gone;
                        return Some(Event::Reset);
                    }
                    return None;
                }
                if !p.has(flags::ACK) {
                    return None;
                }
                if p.ack() != seq::at(self.iss, 0) {
                    // Its listener does not know it, and says so.
                    self.out.push(reset_for(p));
                    return None;
                }
                if p.seq().before(seq::at(self.irs, 0)) {
                    // Before its window, like a probe: answered, but it makes no connection.
                    self.send_ack(now);
                    return None;
                }
                self.state = State::Open;
                self.rto = MIN_RTO;
                self.rto_at = None;
                self.window = u64::from(p.window()) << self.shift_in;
                self.receive_open(now, p);
                Some(Event::Established)
            }
            State::Open | State::TimeWait(_) => self.receive_open(now, p),
        }
    }

    fn receive_syn_sent(&mut self, now: Now, p: &Segment<'_>) -> Option<Event> {
        let ours = p.has(flags::ACK) && p.ack() == seq::at(self.iss, 0);
        if p.has(flags::RST) {
            if ours {
                self.state = State::Gone;
                return Some(Event::Reset);
            }
            return None;
        }
        if !ours && p.has(flags::ACK) {
            self.out.push(reset_for(p));
        }
        if !ours || !p.has(flags::SYN) {
            return None;
        }
        self.irs = p.seq();
        self.take_options(p);
        self.state = State::Open;
        self.rto = MIN_RTO;
        self.rto_at = None;
        self.send_ack(now);
        self.pump(now);
        Some(Event::Established)
    }

    fn refuse(&mut self, now: Now, p: &Segment<'_>) {
        if p.has(flags::RST) {
            return;
        }
        if p.sequence_length() == 0 {
            if self.last_oow.is_some_and(|t| now < t + OOW_RATE) {
                return;
            }
            self.last_oow = Some(now);
        }
        self.send_ack(now);
    }

    fn receive_open(&mut self, now: Now, p: &Segment<'_>) -> Option<Event> {
        if p.has(flags::SYN) {
            self.send_ack(now);
            return None;
        }
        let offset = self.rcv as i64 + i64::from(p.seq().since(seq::at(self.irs, self.rcv)));
        let end = offset + i64::from(p.sequence_length());
        if let (Some((value, _)), Some(recent)) = (p.options().timestamps, self.ts_recent) {
            if (recent.wrapping_sub(value) as i32) > 1 && !p.has(flags::RST) {
                self.refuse(now, p);
                return None;
            }
        }
        // Linux 6.17 takes nothing that reaches beyond its window, not even the ACK, unless all was read.
        let edge = self.edge.max(self.rcv) as i64;
        if end < self.told as i64 || offset > edge || end > edge && !self.received.is_empty() {
            self.refuse(now, p);
            return None;
        }
        if p.has(flags::RST) {
            if offset == self.rcv as i64 {
                self.state = State::Gone;
                return Some(Event::Reset);
            }
            self.send_ack(now);
            return None;
        }
        if !p.has(flags::ACK) {
            return None;
        }
        let ack = seq::offset(self.iss, p.ack(), self.una)?;
        if ack > self.nxt {
            return Some(Event::FutureAck);
        }
        if ack + self.max_window < self.una {
            // Too old (RFC 5961, section 5).
            return None;
        }
        if let Some((value, _)) = p.options().timestamps {
            if offset <= self.told as i64 {
                self.ts_recent = Some(value);
            }
        }
        self.acknowledged(now, ack, offset, p);
        self.take_bytes(now, offset, p);
        self.pump(now);
        self.finish(now);
        None
    }

    fn acknowledged(&mut self, now: Now, ack: u64, offset: i64, p: &Segment<'_>) {
        if ack < self.una {
            return;
        }
        let window = u64::from(p.window()) << self.shift_in;
        if ack > self.una || offset > self.wl1 || offset == self.wl1 && (window > self.window || window == 0) {
            self.window = window;
            self.wl1 = offset;
        }
        self.max_window = self.max_window.max(self.window);
        if ack == self.una {
            return;
        }
        let data = ((ack - self.base) as usize).min(self.buf.len());
        self.buf.drain(..data);
        self.base += data as u64;
        self.una = ack;
        self.rto = MIN_RTO;
        self.rto_at = (self.una < self.end()).then_some(now + self.rto);
        if self.una < self.recover.min(self.nxt) {
            self.send_first(now);
        }
    }

    fn take_bytes(&mut self, now: Now, offset: i64, p: &Segment<'_>) {
        let payload = p.payload();
        if p.sequence_length() == 0 {
            return;
        }
        let end = offset + payload.len() as i64;
        if p.has(flags::FIN) && self.fin_at.is_none() {
            self.fin_at = Some(end as u64);
        }
        if offset > self.rcv as i64 {
            if (offset as u64) < self.rcv + self.space() && !payload.is_empty() {
                let known = self.early.entry(offset as u64).or_default();
                if known.len() < payload.len() {
                    *known = payload.to_vec();
                }
            }
            return self.send_ack(now);
        }
        let before = self.rcv;
        if end > self.rcv as i64 {
            // No memory: it takes its window back.
            if self.received.len() + payload.len() > self.setup.receive_buffer + 2 * usize::from(self.setup.mss) {
                if p.has(flags::FIN) && self.fin_at == Some(end as u64) {
                    self.fin_at = None;
                }
                self.edge = self.rcv;
                // (Linux would not hear the peer's window open under the lower number at its end: nobody can help that.)
                self.wl1 = -1;
                return self.send_ack(now);
            }
            self.received.extend(&payload[(self.rcv as i64 - offset) as usize..]);
            self.rcv = end as u64;
            while let Some((&start, _)) = self.early.first_key_value() {
                if start > self.rcv {
                    break;
                }
                let (_, bytes) = self.early.pop_first().expect("first");
                let known = (self.rcv - start) as usize;
                if known < bytes.len() {
                    self.received.extend(&bytes[known..]);
                    self.rcv = start + bytes.len() as u64;
                }
            }
        }
        if self.closed {
            self.received.clear();
        }
        if self.fin_at == Some(self.rcv) {
            self.rcv += 1;
        }
        if self.rcv == before {
            return self.send_ack(now);
        }
        self.unacked_segments += 1;
        if self.unacked_segments >= 2 || !self.early.is_empty() || self.fin_at.is_some_and(|at| self.rcv > at) {
            self.send_ack(now);
        } else if self.ack_at.is_none() {
            self.ack_at = Some(now + DELAYED_ACK);
        }
    }

    fn finish(&mut self, now: Now) {
        let ended = self.fin_at.is_some_and(|at| self.rcv > at);
        let acked = self.fin_out && self.una > self.base && self.buf.is_empty();
        if ended && acked && self.state == State::Open {
            self.state = State::TimeWait(now + TIME_WAIT);
            self.rto_at = None;
        }
    }
}

/// The answer to a SYN where nobody listens.
pub fn refusal(syn: &Segment<'_>) -> Vec<u8> {
    let mut rst = Vec::new();
    let (source, destination) = (syn.destination(), syn.source());
    let (flags, ack) = (flags::RST | flags::ACK, syn.seq().add(1));
    Build { source, destination, seq: Seq(0), ack, flags, window: 0, timestamps: None, payload: &[] }.write(&mut rst);
    rst
}
