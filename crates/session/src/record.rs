//! Log records: how a master's state reaches a replica (docs/design.md, "Packets").
//!
//! Fixed little-endian layouts, no padding. Offsets of streams travel as their low 32 bits and are widened
//! against the store's own offsets: both sides of a record are always less than 2^31 apart. Only an opening
//! (or snapshot) record carries whole u64 offsets.
//!
//! | record | bytes | when |
//! |---|---|---|
//! | open, IPv4 (`tcp_recovery_full` of the paper) | 57 | a session is established, or enters a snapshot |
//! | open, IPv6 | 81 | the same |
//! | sync (`tcp_recovery_sync`) | 24 | at most once a batch for a session that moved |
//! | input, output | 12 + payload | bytes of a stream |
//! | commit | 4 + 18 a session | the end of a turn |
//! | data | 12 + key and value | data of the application, which counts with the commit behind it (see [`crate::data`]) |
//! | end | 8 | the session is over |
//! | options | 8 + 3 and a value for each | the application sets options of a connection's socket |
//! | cause | 16 | it is known what made the application connect, or that nobody can know |
//! | trace | 20 + bytes | hot standby: what the program got from outside (see [`crate::trace`]) |
//! | adopted | 32 | a takeover has learnt from the peer what the log did not tell (`durability = "async"`) |

use std::net::{IpAddr, SocketAddr};

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::data::{Change, MAX_KEY, MAX_VALUE};
use crate::options;
use crate::seq::Seq;
use crate::tuple::{FourTuple, SessionId};

/// Most payload bytes of one input or output record; longer ones are split.
pub const MAX_PAYLOAD: usize = 0xffff;

const OPEN_V4: u8 = 1;
const OPEN_V6: u8 = 2;
const SYNC: u8 = 3;
const INPUT: u8 = 4;
const OUTPUT: u8 = 5;
const COMMIT: u8 = 6;
const END: u8 = 7;
const ADOPTED: u8 = 8;
const CAUSE: u8 = 9;
const OPTIONS: u8 = 10;
const TRACE: u8 = 11;
const DATA: u8 = 12;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct OpenTail {
    session: U32,
    isn_in: U32,
    isn_out: U32,
    mss: U16,
    shifts: u8,
    window: U16,
    ts_recent: U32,
    ts_value: U32,
    in_done: U64,
    out_acked: U64,
    internal_port: U16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct SyncWire {
    kind: u8,
    flags: u8,
    window: U16,
    session: U32,
    out_acked: U32,
    in_edge: U32,
    ts_recent: U32,
    ts_value: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct BytesWire {
    kind: u8,
    flags: u8,
    len: U16,
    session: U32,
    offset: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct CommitHead {
    kind: u8,
    flags: u8,
    count: U16,
}

/// One session's part of a commit, as on the wire.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct CommitWire {
    session: U32,
    in_done: U32,
    out_done: U32,
    flags: u8,
    open_high: u8,
    open: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct EndWire {
    kind: u8,
    reason: u8,
    reserved: U16,
    session: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct AdoptedWire {
    kind: u8,
    reserved: [u8; 3],
    session: U32,
    in_done: U64,
    out_done: U64,
    out_base: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct CauseWire {
    kind: u8,
    what: u8,
    flags: u8,
    reserved: u8,
    session: U32,
    of: U32,
    nth: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct OptionsWire {
    kind: u8,
    reserved: u8,
    len: U16,
    session: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct DataWire {
    kind: u8,
    what: u8,
    key: U16,
    session: U32,
    len: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct TraceWire {
    kind: u8,
    part: u8,
    len: U16,
    life: U64,
    at: U64,
}

const FIN: u8 = 1;
const TORN: u8 = 2;
const CLOSED: u8 = 4;
/// Of a commit: the data before it counts from now on.
const WITH_DATA: u8 = 1;
/// Of data: what it is.
const CHECKPOINT: u8 = 1;
const PUT: u8 = 2;
const DELETE: u8 = 3;
/// Most output bytes that an open response may have released: 40 bits, for a download may be long.
pub const MAX_OPEN: u64 = (1 << 40) - 1;

/// What opens a session in a store. Window scale shifts are None where scaling was not negotiated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Open {
    /// Number of the session.
    pub session: SessionId,
    /// Its ends.
    pub tuple: FourTuple,
    /// Port on which the application listens; differs from the tuple's only where ports are corrected.
    pub internal_port: u16,
    /// The peer's initial sequence number.
    pub isn_in: Seq,
    /// Our initial sequence number.
    pub isn_out: Seq,
    /// The peer's maximum segment size.
    pub mss: u16,
    /// The peer's window shift (scales windows that we receive) and ours.
    pub shifts: Option<(u8, u8)>,
    /// SACK was negotiated.
    pub sack: bool,
    /// Timestamps were negotiated.
    pub timestamps: bool,
    /// The peer completed the handshake.
    pub established: bool,
    /// The peer's last window, unscaled.
    pub window: u16,
    /// The peer's newest timestamp value.
    pub ts_recent: u32,
    /// Our newest timestamp value.
    pub ts_value: u32,
    /// Input before this offset is done.
    pub in_done: u64,
    /// Output before this offset was acknowledged by the peer.
    pub out_acked: u64,
}

/// What moves while data flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sync {
    /// Number of the session.
    pub session: SessionId,
    /// The peer completed the handshake.
    pub established: bool,
    /// Low 32 bits of the output offset that the peer acknowledged (its FIN's acknowledgement counts one).
    pub out_acked: u32,
    /// Low 32 bits of the input offset up to which we advertised window.
    pub in_edge: u32,
    /// The peer's last window, unscaled.
    pub window: u16,
    /// The peer's newest timestamp value.
    pub ts_recent: u32,
    /// Our newest timestamp value.
    pub ts_value: u32,
}

/// One session's part of a commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Committed {
    /// Number of the session.
    pub session: SessionId,
    /// Low 32 bits: input before it is done.
    pub in_done: u32,
    /// Low 32 bits: output before it may leave.
    pub out_done: u32,
    /// Output bytes before `out_done` that an open response has released and that come again after a failover.
    pub open: u64,
    /// The application ended its output.
    pub fin: bool,
    /// The application closed the connection: nobody reads it any more.
    pub closed: bool,
    /// The state cannot be known after a crash.
    pub torn: bool,
}

/// Why a session ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum EndReason {
    /// Both directions were closed and acknowledged.
    Closed = 0,
    /// The peer reset it.
    ResetByPeer = 1,
    /// We reset it.
    ResetByUs = 2,
    /// The handshake was never completed.
    Expired = 3,
    /// It was torn when a takeover needed it.
    Torn = 4,
    /// The kernel no longer knows it.
    Swept = 5,
}

/// Where a session goes on whose peer was ahead of the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Adopted {
    /// Number of the session.
    pub session: SessionId,
    /// Input before it counts as done, be it here or lost.
    pub in_done: u64,
    /// Output before it is acknowledged, if it is more than was known.
    pub out_done: u64,
    /// The output offset that belongs to `in_done`.
    pub out_base: u64,
}

/// A decoded record; payloads borrow from the batch.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    /// A session opens, or enters a snapshot.
    Open(Open),
    /// A session moved.
    Sync(Sync),
    /// Input bytes from the peer, in order; `fin` when the peer's FIN follows them.
    Input {
        /// Number of the session.
        session: SessionId,
        /// Low 32 bits of the offset of the first byte.
        offset: u32,
        /// The bytes.
        bytes: &'a [u8],
        /// The peer's FIN stands behind them.
        fin: bool,
    },
    /// Output bytes of a turn; they count only with the commit that follows.
    Output {
        /// Number of the session.
        session: SessionId,
        /// Low 32 bits of the offset of the first byte.
        offset: u32,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// Data that the application gave in a turn; it counts only with the commit that follows.
    Data(Change<&'a [u8]>),
    /// The end of a turn, all or nothing.
    Commit {
        /// One for each session of which there is something new to say.
        entries: &'a [CommitWire],
        /// The data before it is of this turn.
        with_data: bool,
    },
    /// A takeover has learnt from the peer what the log did not tell.
    Adopted(Adopted),
    /// What an outgoing session is tied to; of a peer's session: that it may be tied to one of which that is not known.
    Cause {
        /// Number of the session.
        session: SessionId,
        /// None: no longer.
        cause: Option<Cause>,
    },
    /// The application has set options of the connection's socket.
    Options {
        /// Number of the session.
        session: SessionId,
        /// See [`crate::options`].
        run: &'a [u8],
    },
    /// The next part of the trace of a program that another one follows. The store knows nothing of it.
    Trace {
        /// Which life of the program: a random number.
        life: u64,
        /// Position of the first byte.
        at: u64,
        /// The bytes.
        bytes: &'a [u8],
        /// What it is.
        part: TracePart,
    },
    /// A session is over.
    End {
        /// Number of the session.
        session: SessionId,
        /// Why.
        reason: EndReason,
    },
}

/// What a part of a trace is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum TracePart {
    /// One of several on the way to a replica that has yet to catch up.
    Piece = 0,
    /// With it the trace is complete: from here on it is always ahead of the rest of the log.
    Complete = 1,
    /// There is no more: the bytes say why.
    End = 2,
}

/// What made the application open a connection (see `filter/causes/`). After a takeover the same cause, and nothing else,
/// has it back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// No peer's connection: it was made before the process had any. The how-manyth of those to its destination.
    Own {
        /// From 1.
        nth: u32,
    },
    /// A peer's connection, which was accepted or read from.
    Of {
        /// Number of that session.
        session: SessionId,
        /// The how-manyth that it caused to this destination, from 1.
        nth: u32,
        /// That session had been read from by then; else it was made when that was accepted.
        read: bool,
    },
    /// The program had bound the socket to a port of its choice.
    Bound,
    /// It cannot be told; `all`: any peer's connection may be tied to it. Said of a peer's connection: it may be tied to
    /// one of those.
    Unclear {
        /// Of an outgoing one.
        all: bool,
    },
}

/// Bytes that are no record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a malformed log record")
    }
}

impl CommitWire {
    /// Decodes the entry.
    #[must_use]
    pub fn get(&self) -> Committed {
        Committed {
            session: self.session.get(),
            in_done: self.in_done.get(),
            out_done: self.out_done.get(),
            open: u64::from(self.open_high) << 32 | u64::from(self.open.get()),
            fin: self.flags & FIN != 0,
            torn: self.flags & TORN != 0,
            closed: self.flags & CLOSED != 0,
        }
    }
}

impl From<Committed> for CommitWire {
    fn from(c: Committed) -> CommitWire {
        assert!(c.open <= MAX_OPEN, "an open response is bounded");
        CommitWire {
            session: c.session.into(),
            in_done: c.in_done.into(),
            out_done: c.out_done.into(),
            flags: flag(c.fin, FIN) | flag(c.torn, TORN) | flag(c.closed, CLOSED),
            open_high: (c.open >> 32) as u8,
            open: (c.open as u32).into(),
        }
    }
}

const F_SACK: u8 = 1;
const F_TIMESTAMPS: u8 = 2;
const F_SCALE: u8 = 4;
const F_ESTABLISHED: u8 = 8;

fn flag(on: bool, bit: u8) -> u8 {
    if on {
        bit
    } else {
        0
    }
}

impl Open {
    /// Appends the record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let flags = flag(self.sack, F_SACK)
            | flag(self.timestamps, F_TIMESTAMPS)
            | flag(self.shifts.is_some(), F_SCALE)
            | flag(self.established, F_ESTABLISHED);
        let (theirs, ours) = self.shifts.unwrap_or((0, 0));
        match (self.tuple.local.ip(), self.tuple.peer.ip()) {
            (IpAddr::V4(l), IpAddr::V4(p)) => {
                out.extend_from_slice(&[OPEN_V4, flags]);
                out.extend_from_slice(&l.octets());
                out.extend_from_slice(&p.octets());
            }
            (IpAddr::V6(l), IpAddr::V6(p)) => {
                out.extend_from_slice(&[OPEN_V6, flags]);
                out.extend_from_slice(&l.octets());
                out.extend_from_slice(&p.octets());
            }
            _ => unreachable!("a session has one address family"),
        }
        out.extend_from_slice(&self.tuple.local.port().to_le_bytes());
        out.extend_from_slice(&self.tuple.peer.port().to_le_bytes());
        out.extend_from_slice(
            OpenTail {
                session: self.session.into(),
                isn_in: self.isn_in.0.into(),
                isn_out: self.isn_out.0.into(),
                mss: self.mss.into(),
                shifts: theirs << 4 | ours,
                window: self.window.into(),
                ts_recent: self.ts_recent.into(),
                ts_value: self.ts_value.into(),
                in_done: self.in_done.into(),
                out_acked: self.out_acked.into(),
                internal_port: self.internal_port.into(),
            }
            .as_bytes(),
        );
    }

    fn decode(kind: u8, flags: u8, bytes: &[u8]) -> Result<(Open, &[u8]), Malformed> {
        let (local, peer, rest): (IpAddr, IpAddr, &[u8]) = if kind == OPEN_V4 {
            let ((l, p), rest) = <([u8; 4], [u8; 4])>::split(bytes)?;
            (l.into(), p.into(), rest)
        } else {
            let ((l, p), rest) = <([u8; 16], [u8; 16])>::split(bytes)?;
            (l.into(), p.into(), rest)
        };
        let (ports, rest) = <[U16; 2]>::ref_from_prefix(rest).map_err(|_| Malformed)?;
        let (t, rest) = OpenTail::ref_from_prefix(rest).map_err(|_| Malformed)?;
        let open = Open {
            session: t.session.get(),
            tuple: FourTuple { local: SocketAddr::new(local, ports[0].get()), peer: SocketAddr::new(peer, ports[1].get()) },
            internal_port: t.internal_port.get(),
            isn_in: Seq(t.isn_in.get()),
            isn_out: Seq(t.isn_out.get()),
            mss: t.mss.get(),
            shifts: (flags & F_SCALE != 0).then_some(((t.shifts >> 4).min(14), (t.shifts & 15).min(14))),
            sack: flags & F_SACK != 0,
            timestamps: flags & F_TIMESTAMPS != 0,
            established: flags & F_ESTABLISHED != 0,
            window: t.window.get(),
            ts_recent: t.ts_recent.get(),
            ts_value: t.ts_value.get(),
            in_done: t.in_done.get(),
            out_acked: t.out_acked.get(),
        };
        // Offsets are widened by signed distance; nothing real is anywhere near 2^62.
        if open.in_done >> 62 != 0 || open.out_acked >> 62 != 0 {
            return Err(Malformed);
        }
        Ok((open, rest))
    }
}

trait Split: Sized {
    fn split(bytes: &[u8]) -> Result<(Self, &[u8]), Malformed>;
}

impl<const N: usize> Split for ([u8; N], [u8; N]) {
    fn split(bytes: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let (a, rest) = bytes.split_first_chunk::<N>().ok_or(Malformed)?;
        let (b, rest) = rest.split_first_chunk::<N>().ok_or(Malformed)?;
        Ok(((*a, *b), rest))
    }
}

impl Sync {
    /// Appends the record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(
            SyncWire {
                kind: SYNC,
                flags: flag(self.established, F_ESTABLISHED),
                window: self.window.into(),
                session: self.session.into(),
                out_acked: self.out_acked.into(),
                in_edge: self.in_edge.into(),
                ts_recent: self.ts_recent.into(),
                ts_value: self.ts_value.into(),
            }
            .as_bytes(),
        );
    }
}

fn encode_bytes(kind: u8, session: SessionId, offset: u64, bytes: &[u8], fin: bool, out: &mut Vec<u8>) {
    let mut at = 0;
    loop {
        let part = &bytes[at..bytes.len().min(at + MAX_PAYLOAD)];
        let last = at + part.len() == bytes.len();
        out.extend_from_slice(
            BytesWire {
                kind,
                flags: flag(fin && last, 1),
                len: (part.len() as u16).into(),
                session: session.into(),
                offset: ((offset + at as u64) as u32).into(),
            }
            .as_bytes(),
        );
        out.extend_from_slice(part);
        at += part.len();
        if last {
            return;
        }
    }
}

/// Appends input from `offset`, in as many records as it takes.
pub fn encode_input(session: SessionId, offset: u64, bytes: &[u8], fin: bool, out: &mut Vec<u8>) {
    encode_bytes(INPUT, session, offset, bytes, fin, out);
}

/// Appends output from `offset`, in as many records as it takes.
pub fn encode_output(session: SessionId, offset: u64, bytes: &[u8], out: &mut Vec<u8>) {
    encode_bytes(OUTPUT, session, offset, bytes, false, out);
}

/// Appends data that the commit behind it makes count.
pub fn encode_data(change: Change<&[u8]>, out: &mut Vec<u8>) {
    let (what, session, key, value): (_, _, &[u8], &[u8]) = match change {
        Change::Checkpoint { session, data } => (CHECKPOINT, session, &[], data),
        Change::Put { key, value } => (PUT, 0, key, value),
        Change::Delete { key } => (DELETE, 0, key, &[]),
    };
    let len = (value.len() as u32).into();
    let wire = DataWire { kind: DATA, what, key: (key.len() as u16).into(), session: session.into(), len };
    out.extend_from_slice(wire.as_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(value);
}

/// Appends one commit of at most 65,535 sessions. `with_data`: what [`encode_data`] has appended counts from now on.
pub fn encode_commit(entries: &[Committed], with_data: bool, out: &mut Vec<u8>) {
    let count = u16::try_from(entries.len()).expect("a commit has at most 65,535 sessions");
    out.extend_from_slice(CommitHead { kind: COMMIT, flags: flag(with_data, WITH_DATA), count: count.into() }.as_bytes());
    for entry in entries {
        out.extend_from_slice(CommitWire::from(*entry).as_bytes());
    }
}

/// Appends what a takeover has adopted.
pub fn encode_adopted(a: &Adopted, out: &mut Vec<u8>) {
    let wire = AdoptedWire {
        kind: ADOPTED,
        reserved: [0; 3],
        session: a.session.into(),
        in_done: a.in_done.into(),
        out_done: a.out_done.into(),
        out_base: a.out_base.into(),
    };
    out.extend_from_slice(wire.as_bytes());
}

/// Appends what an outgoing session is tied to.
pub fn encode_cause(session: SessionId, cause: Option<Cause>, out: &mut Vec<u8>) {
    let (what, on, of, nth) = match cause {
        None => (0, false, 0, 0),
        Some(Cause::Own { nth }) => (1, false, 0, nth),
        Some(Cause::Of { session, nth, read }) => (2, read, session, nth),
        Some(Cause::Bound) => (3, false, 0, 0),
        Some(Cause::Unclear { all }) => (4, all, 0, 0),
    };
    let wire =
        CauseWire { kind: CAUSE, what, flags: on.into(), reserved: 0, session: session.into(), of: of.into(), nth: nth.into() };
    out.extend_from_slice(wire.as_bytes());
}

/// Appends options that were set; at most [`crate::options::MOST`] bytes.
pub fn encode_options(session: SessionId, run: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(
        OptionsWire { kind: OPTIONS, reserved: 0, len: (run.len() as u16).into(), session: session.into() }.as_bytes(),
    );
    out.extend_from_slice(run);
}

/// Appends a part of a trace, in as many records as it takes.
pub fn encode_trace(life: u64, mut at: u64, mut bytes: &[u8], part: TracePart, out: &mut Vec<u8>) {
    loop {
        let (first, rest) = bytes.split_at(bytes.len().min(MAX_PAYLOAD));
        let part = if rest.is_empty() { part } else { TracePart::Piece } as u8;
        let wire = TraceWire { kind: TRACE, part, len: (first.len() as u16).into(), life: life.into(), at: at.into() };
        out.extend_from_slice(wire.as_bytes());
        out.extend_from_slice(first);
        (at, bytes) = (at + first.len() as u64, rest);
        if bytes.is_empty() {
            return;
        }
    }
}

/// Appends the end of a session.
pub fn encode_end(session: SessionId, reason: EndReason, out: &mut Vec<u8>) {
    out.extend_from_slice(EndWire { kind: END, reason: reason as u8, reserved: 0.into(), session: session.into() }.as_bytes());
}

/// Takes the next record off a batch. None at its end.
///
/// # Errors
/// The batch does not hold what its headers say.
pub fn decode<'a>(bytes: &mut &'a [u8]) -> Result<Option<Record<'a>>, Malformed> {
    let Some((&kind, tail)) = bytes.split_first() else { return Ok(None) };
    let (record, rest) = match kind {
        OPEN_V4 | OPEN_V6 => {
            let (&flags, tail) = tail.split_first().ok_or(Malformed)?;
            let (open, rest) = Open::decode(kind, flags, tail)?;
            (Record::Open(open), rest)
        }
        SYNC => {
            let (w, rest) = SyncWire::ref_from_prefix(bytes).map_err(|_| Malformed)?;
            let sync = Sync {
                session: w.session.get(),
                established: w.flags & F_ESTABLISHED != 0,
                out_acked: w.out_acked.get(),
                in_edge: w.in_edge.get(),
                window: w.window.get(),
                ts_recent: w.ts_recent.get(),
                ts_value: w.ts_value.get(),
            };
            (Record::Sync(sync), rest)
        }
        INPUT | OUTPUT => {
            let (w, rest) = BytesWire::ref_from_prefix(bytes).map_err(|_| Malformed)?;
            let (payload, rest) = rest.split_at_checked(usize::from(w.len.get())).ok_or(Malformed)?;
            let (session, offset) = (w.session.get(), w.offset.get());
            let record = if kind == INPUT {
                Record::Input { session, offset, bytes: payload, fin: w.flags & 1 != 0 }
            } else {
                Record::Output { session, offset, bytes: payload }
            };
            (record, rest)
        }
        ADOPTED => {
            let (w, rest) = AdoptedWire::ref_from_prefix(bytes).map_err(|_| Malformed)?;
            let (in_done, out_done, out_base) = (w.in_done.get(), w.out_done.get(), w.out_base.get());
            // As in an opening.
            if (in_done | out_done | out_base) >> 62 != 0 {
                return Err(Malformed);
            }
            (Record::Adopted(Adopted { session: w.session.get(), in_done, out_done, out_base }), rest)
        }
        CAUSE => {
            let (w, rest) = CauseWire::ref_from_prefix(bytes).map_err(|_| Malformed)?;
            let (on, nth) = (w.flags & 1 != 0, w.nth.get());
            let cause = match w.what {
                0 => None,
                1 => Some(Cause::Own { nth }),
                2 => Some(Cause::Of { session: w.of.get(), nth, read: on }),
                3 => Some(Cause::Bound),
                4 => Some(Cause::Unclear { all: on }),
                _ => return Err(Malformed),
            };
            (Record::Cause { session: w.session.get(), cause }, rest)
        }
        OPTIONS => {
            let (w, rest) = OptionsWire::ref_from_prefix(bytes).map_err(|_| Malformed)?;
            let (run, rest) = rest.split_at_checked(usize::from(w.len.get())).ok_or(Malformed)?;
            if !options::is_whole(run) || run.len() > options::MOST {
                return Err(Malformed);
            }
            (Record::Options { session: w.session.get(), run }, rest)
        }
        TRACE => {
            let (w, rest) = TraceWire::ref_from_prefix(bytes).map_err(|_| Malformed)?;
            let (payload, rest) = rest.split_at_checked(usize::from(w.len.get())).ok_or(Malformed)?;
            let part = match w.part {
                0 => TracePart::Piece,
                1 => TracePart::Complete,
                2 => TracePart::End,
                _ => return Err(Malformed),
            };
            (Record::Trace { life: w.life.get(), at: w.at.get(), bytes: payload, part }, rest)
        }
        COMMIT => {
            let (w, rest) = CommitHead::ref_from_prefix(bytes).map_err(|_| Malformed)?;
            let (entries, rest) =
                <[CommitWire]>::ref_from_prefix_with_elems(rest, usize::from(w.count.get())).map_err(|_| Malformed)?;
            (Record::Commit { entries, with_data: w.flags & WITH_DATA != 0 }, rest)
        }
        DATA => {
            let (w, rest) = DataWire::ref_from_prefix(bytes).map_err(|_| Malformed)?;
            let (key, rest) = rest.split_at_checked(usize::from(w.key.get())).ok_or(Malformed)?;
            let (value, rest) = rest.split_at_checked(w.len.get() as usize).ok_or(Malformed)?;
            let change = match (w.what, key.len(), value.len()) {
                (CHECKPOINT, 0, ..=MAX_VALUE) => Change::Checkpoint { session: w.session.get(), data: value },
                (PUT, 1..=MAX_KEY, ..=MAX_VALUE) => Change::Put { key, value },
                (DELETE, 1..=MAX_KEY, 0) => Change::Delete { key },
                _ => return Err(Malformed),
            };
            (Record::Data(change), rest)
        }
        END => {
            let (w, rest) = EndWire::ref_from_prefix(bytes).map_err(|_| Malformed)?;
            let reason = match w.reason {
                0 => EndReason::Closed,
                1 => EndReason::ResetByPeer,
                2 => EndReason::ResetByUs,
                3 => EndReason::Expired,
                4 => EndReason::Torn,
                5 => EndReason::Swept,
                _ => return Err(Malformed),
            };
            (Record::End { session: w.session.get(), reason }, rest)
        }
        _ => return Err(Malformed),
    };
    *bytes = rest;
    Ok(Some(record))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn open(v6: bool) -> Open {
        let (l, p) = if v6 { ("[2001:db8::1]:5555", "[2001:db8::2]:4") } else { ("192.0.2.200:5555", "192.0.2.9:4") };
        Open {
            session: 7,
            tuple: FourTuple { local: l.parse().unwrap(), peer: p.parse().unwrap() },
            internal_port: 5555,
            isn_in: Seq(1),
            isn_out: Seq(2),
            mss: 1460,
            shifts: Some((7, 14)),
            sack: true,
            timestamps: true,
            established: true,
            window: 500,
            ts_recent: 8,
            ts_value: 9,
            in_done: 1 << 40,
            out_acked: 3,
        }
    }

    #[test]
    fn sizes_are_those_of_the_paper_or_less() {
        for (v6, size) in [(false, 57), (true, 81)] {
            let mut out = Vec::new();
            open(v6).encode(&mut out);
            assert_eq!(out.len(), size);
            let mut rest = &out[..];
            let Ok(Some(Record::Open(back))) = decode(&mut rest) else { panic!() };
            assert_eq!(back, open(v6));
            assert!(rest.is_empty());
        }
        assert_eq!(size_of::<SyncWire>(), 24);
        assert_eq!(size_of::<CommitWire>(), 18);
    }

    #[test]
    fn a_cause_survives() {
        let of = |read| Some(Cause::Of { session: u32::MAX, nth: 7, read });
        let unclear = |all| Some(Cause::Unclear { all });
        for cause in
            [None, Some(Cause::Own { nth: 1 << 20 }), of(true), of(false), Some(Cause::Bound), unclear(true), unclear(false)]
        {
            let mut out = Vec::new();
            encode_cause(9, cause, &mut out);
            assert_eq!(out.len(), 16);
            let Ok(Some(Record::Cause { session: 9, cause: back })) = decode(&mut &out[..]) else { panic!() };
            assert_eq!(back, cause);
        }
    }

    #[test]
    fn options_survive() {
        let mut run = Vec::new();
        options::set(&mut run, 0, 2, &[255, 0, 0, 0]);
        let mut out = Vec::new();
        encode_options(9, &run, &mut out);
        let Ok(Some(Record::Options { session: 9, run: back })) = decode(&mut &out[..]) else { panic!() };
        assert_eq!(back, run);
        assert!(decode(&mut &out[..out.len() - 1]).is_err());
        // A value that ends behind the run.
        out[10] += 1;
        assert!(decode(&mut &out[..]).is_err());
    }

    #[test]
    fn a_trace_survives_in_parts() {
        let bytes: Vec<u8> = (0..MAX_PAYLOAD + 9).map(|i| i as u8).collect();
        for (bytes, part) in [(&bytes[..], TracePart::Complete), (b"why", TracePart::End), (b"", TracePart::Complete)] {
            let mut out = Vec::new();
            encode_trace(u64::MAX, 5, bytes, part, &mut out);
            let (mut rest, mut back, mut last) = (&out[..], Vec::new(), TracePart::Piece);
            while let Some(record) = decode(&mut rest).unwrap() {
                let Record::Trace { life: u64::MAX, at, bytes, part } = record else { panic!("{record:?}") };
                assert_eq!((at, last), (5 + back.len() as u64, TracePart::Piece));
                back.extend_from_slice(bytes);
                last = part;
            }
            assert_eq!((&back[..], last), (bytes, part));
        }
    }

    #[test]
    fn data_survives_and_is_bounded() {
        for length in [0, 1, MAX_VALUE] {
            let bytes = vec![7; length];
            let mut out = Vec::new();
            encode_data(Change::Checkpoint { session: 9, data: &bytes }, &mut out);
            assert!(decode(&mut &out[..out.len() - 1]).is_err());
            let Ok(Some(Record::Data(Change::Checkpoint { session: 9, data }))) = decode(&mut &out[..]) else { panic!() };
            assert_eq!(data, bytes);
        }
        let (long_key, long_value) = (&[7; MAX_KEY + 1][..], &[7; MAX_VALUE + 1][..]);
        for good in [Change::Put { key: &long_key[1..], value: &long_value[1..] }, Change::Delete { key: &long_key[1..] }] {
            let mut out = Vec::new();
            encode_data(good, &mut out);
            let Ok(Some(Record::Data(back))) = decode(&mut &out[..]) else { panic!() };
            assert_eq!(back, good);
        }
        for bad in [
            Change::Checkpoint { session: 9, data: long_value },
            Change::Put { key: b"k", value: long_value },
            Change::Put { key: long_key, value: b"" },
            Change::Put { key: b"", value: b"" },
            Change::Delete { key: long_key },
            Change::Delete { key: b"" },
        ] {
            let mut out = Vec::new();
            encode_data(bad, &mut out);
            assert!(decode(&mut &out[..]).is_err());
        }
    }

    #[test]
    fn long_input_is_split_and_the_fin_stands_last() {
        let bytes = vec![5u8; MAX_PAYLOAD + 10];
        let mut out = Vec::new();
        encode_input(1, u64::from(u32::MAX) - 1, &bytes, true, &mut out);
        let mut rest = &out[..];
        let mut seen = 0;
        while let Some(Record::Input { offset, bytes, fin, .. }) = decode(&mut rest).unwrap() {
            assert_eq!(offset, (u32::MAX - 1).wrapping_add(seen));
            seen += bytes.len() as u32;
            assert_eq!(fin, rest.is_empty());
        }
        assert_eq!(seen as usize, bytes.len());
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u8..13) {
            let mut bytes = bytes;
            if let Some(b) = bytes.first_mut() { *b = kind; }
            let mut rest = &bytes[..];
            while let Ok(Some(_)) = decode(&mut rest) {}
        }

        #[test]
        fn a_commit_survives(entries in proptest::collection::vec(
            (any::<u32>(), any::<u32>(), any::<u32>(), 0..=MAX_OPEN, any::<[bool; 3]>()), 0..20)) {
            let entries: Vec<_> = entries.into_iter().map(|(session, in_done, out_done, open, [fin, torn, closed])|
                Committed { session, in_done, out_done, open, fin, torn, closed }).collect();
            let mut out = Vec::new();
            let with = entries.len() % 2 == 0;
            encode_commit(&entries, with, &mut out);
            let mut rest = &out[..];
            let Some(Record::Commit { entries: back, with_data }) = decode(&mut rest).unwrap() else { panic!() };
            prop_assert_eq!(with_data, with);
            prop_assert_eq!(back.iter().map(CommitWire::get).collect::<Vec<_>>(), entries);
        }
    }
}
