//! The application messages of a replication connection and their encoding.
//!
//! Messages follow one another in the decrypted byte stream, each behind its length (LEB128). Those of the hot
//! path have a fixed little-endian layout; the others are MessagePack maps behind their kind byte, so that a
//! later version may add fields. A `Records` that goes on where the one before it ended, in the same epoch, is
//! sent without epoch and position: with a small batch they would be half of what goes over the wire.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use tcpr_session::role::Epoch;

/// Longest message, its header included.
pub const MAX_MESSAGE: usize = 1 << 20;
/// Longest `bytes` of a `Records` or `Forward`, and `names` of an `Alone`.
pub const MAX_BYTES: usize = MAX_MESSAGE - POINT_LEN;
/// Longest length prefix: three groups of seven bits hold `MAX_MESSAGE`.
pub(crate) const MAX_PREFIX: usize = 3;

/// Kind byte, epoch (number, member), position.
const POINT_LEN: usize = 1 + 8 + 1 + 8;

mod kind {
    pub const RECORDS: u8 = 1;
    pub const RECORDS_NEXT: u8 = 2;
    pub const ACK: u8 = 3;
    pub const FORWARD: u8 = 4;
    pub const ALONE: u8 = 5;
    pub const PROGRAM_SNAPSHOT: u8 = 6;
    pub const HELLO: u8 = 16;
    pub const SNAPSHOT_BEGIN: u8 = 17;
    pub const SNAPSHOT_END: u8 = 18;
    pub const PAIRED: u8 = 19;
    pub const PAIRED_ACK: u8 = 20;
    pub const HANDOVER: u8 = 21;
    pub const HANDOVER_ACK: u8 = 22;
    pub const BYE: u8 = 23;
    pub const PROGRAM: u8 = 24;
    pub const STANDBY: u8 = 25;
    pub const PROGRAM_SNAPSHOT_BEGIN: u8 = 26;
    pub const PROGRAM_SNAPSHOT_END: u8 = 27;
    pub const PROGRAM_SNAPSHOT_STORED: u8 = 28;
}

/// What the members say to each other; borrowed bytes live until the next call on the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// The first message of either side.
    Hello(Hello),
    /// What follows is a snapshot of the store as of this log position.
    SnapshotBegin {
        /// The sender's epoch.
        epoch: Epoch,
        /// Log position that the snapshot stands for.
        position: u64,
    },
    /// The snapshot is complete.
    SnapshotEnd {
        /// The sender's epoch.
        epoch: Epoch,
        /// Log position that the snapshot stands for.
        position: u64,
    },
    /// A piece of the log.
    Records {
        /// The sender's epoch.
        epoch: Epoch,
        /// Log position of the first byte.
        position: u64,
        /// The records.
        bytes: &'a [u8],
    },
    /// Everything before this log position is stored.
    Ack {
        /// The epoch of the records.
        epoch: Epoch,
        /// First log position that is not stored.
        position: u64,
    },
    /// The replica is full: from now on it may promote.
    Paired {
        /// The master's epoch.
        epoch: Epoch,
    },
    /// Answer to `Paired`.
    PairedAck {
        /// The master's epoch.
        epoch: Epoch,
    },
    /// Switchover: the log ends at this position, the replica is to become master.
    Handover {
        /// The epoch that ends.
        epoch: Epoch,
        /// Where its log ends.
        position: u64,
    },
    /// Answer to `Handover`.
    HandoverAck {
        /// The epoch that the partner has claimed.
        epoch: Epoch,
    },
    /// A raw packet that the partner is to have.
    Forward {
        /// The packet from its IP header on.
        bytes: &'a [u8],
    },
    /// A master that yielded names the sessions for which it had released anything alone. Since protocol version 2.
    Alone {
        /// Whose history goes on.
        epoch: Epoch,
        /// How many bytes of names follow in further messages.
        more: u64,
        /// The names, as the filter makes them.
        names: &'a [u8],
    },
    /// Whether the sender's program would take the sessions over. Since protocol version 3.
    Program {
        /// Why not; empty: it would.
        trouble: Cow<'a, str>,
    },
    /// A backup says how far its program has followed the master's. Since protocol version 4.
    Standby {
        /// Which life of the master's program.
        life: u64,
        /// How much of its trace is here.
        head: u64,
        /// How much of that its program has executed.
        executed: u64,
        /// The same in records.
        records: u64,
        /// As of [`tcpr_session::trace::memory::state`].
        state: u32,
        /// Why it does not follow, where it does not.
        reason: Cow<'a, str>,
    },
    /// What follows is a snapshot of the master's program. Since protocol version 6, as all of it.
    ProgramSnapshotBegin {
        /// Which life of the program.
        life: u64,
        /// Where its trace was then.
        at: u64,
    },
    /// A piece of it.
    ProgramSnapshot {
        /// The bytes.
        bytes: &'a [u8],
    },
    /// It is whole, or there will be none.
    ProgramSnapshotEnd {
        /// Which life of the program.
        life: u64,
        /// How many bytes it has.
        bytes: u64,
        /// Why there is none; empty: it is whole.
        trouble: Cow<'a, str>,
    },
    /// So much of it is stored.
    ProgramSnapshotStored {
        /// Which life of the program.
        life: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// The sender closes the connection on purpose.
    Bye {
        /// Why.
        reason: Goodbye<'a>,
    },
}

/// Why a member closes the replication connection on purpose. On the wire it is a text, as protocol version 1 has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goodbye<'a> {
    /// The sender's service has ended: the partner may take over at once.
    ServiceEnded,
    /// The sender's role machine takes the partner for dead.
    PartnerSuspected,
    /// The partner does not read what it is sent.
    PartnerTooSlow,
    /// In words: what the partner said makes no sense. Also what a partner of another version says.
    Other(Cow<'a, str>),
}

impl Goodbye<'_> {
    fn text(&self) -> &str {
        match self {
            Goodbye::ServiceEnded => "the service ended",
            Goodbye::PartnerSuspected => "partner suspected",
            Goodbye::PartnerTooSlow => "the partner does not keep up",
            Goodbye::Other(text) => text,
        }
    }
}

impl<'a> From<Cow<'a, str>> for Goodbye<'a> {
    fn from(text: Cow<'a, str>) -> Goodbye<'a> {
        let known = [Goodbye::ServiceEnded, Goodbye::PartnerSuspected, Goodbye::PartnerTooSlow];
        known.into_iter().find(|known| known.text() == text).unwrap_or(Goodbye::Other(text))
    }
}

impl fmt::Display for Goodbye<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The protocol version that this connection is to speak.
    pub protocol: u16,
    /// Name of the service.
    pub service: String,
    /// Index of the sending member.
    pub member: u8,
    /// Random number of the sending manager's life.
    pub boot: u64,
    /// The sender's epoch.
    pub epoch: Epoch,
    /// The sender's role, as a number of the role machine.
    pub role: u8,
    /// Digest of what must be configured alike.
    pub config_digest: u64,
}

#[derive(Serialize, Deserialize)]
struct Point {
    epoch: Epoch,
    position: u64,
}

#[derive(Serialize, Deserialize)]
struct Only {
    epoch: Epoch,
}

#[derive(Serialize, Deserialize)]
struct Reason<'a> {
    // Not borrowed when decoded: serde takes a string of MessagePack by copy or by loan as it likes.
    reason: Cow<'a, str>,
}

#[derive(Serialize, Deserialize)]
struct Standby<'a> {
    life: u64,
    head: u64,
    executed: u64,
    records: u64,
    state: u32,
    #[serde(borrow)]
    reason: Cow<'a, str>,
}

#[derive(Serialize, Deserialize)]
struct ProgramSnapshotBegin {
    life: u64,
    at: u64,
}

#[derive(Serialize, Deserialize)]
struct ProgramSnapshotEnd<'a> {
    life: u64,
    bytes: u64,
    #[serde(borrow)]
    trouble: Cow<'a, str>,
}

#[derive(Serialize, Deserialize)]
struct ProgramSnapshotStored {
    life: u64,
    bytes: u64,
}

/// Why bytes are not a message, or a message cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Longer than [`MAX_MESSAGE`].
    #[error("message longer than {MAX_MESSAGE} bytes")]
    TooLong,
    /// Shorter than its kind needs.
    #[error("message shorter than its header")]
    Truncated,
    /// A kind of message that this version does not know.
    #[error("unknown kind of message {0}")]
    Kind(u8),
    /// The MessagePack of this kind is broken.
    #[error("broken message of kind {0}")]
    Body(u8),
    /// A continuation with nothing before it.
    #[error("records go on but did not begin")]
    NoRecordsBefore,
}

/// Where the next `Records` starts if it goes on; kept alike by both ends of one direction.
#[derive(Debug, Default)]
pub struct Continuation(Option<(Epoch, u64)>);

impl Continuation {
    fn advance(&mut self, epoch: Epoch, position: u64, length: usize) {
        self.0 = Some((epoch, position.wrapping_add(length as u64)));
    }
}

/// Appends a message with its length prefix; `out` is as before if that fails.
pub fn encode(message: &Message<'_>, state: &mut Continuation, out: &mut Vec<u8>) -> Result<(), Malformed> {
    let rest = encode_head(message, state, out)?;
    out.extend_from_slice(rest);
    Ok(())
}

/// The same but for the records, names or packet that it ends with, which are returned: they may be long.
pub fn encode_head<'a>(message: &Message<'a>, state: &mut Continuation, out: &mut Vec<u8>) -> Result<&'a [u8], Malformed> {
    match *message {
        Message::Records { epoch, position, bytes } => {
            let goes_on = state.0 == Some((epoch, position));
            let header = if goes_on { 1 } else { POINT_LEN };
            put_length(header + bytes.len(), out)?;
            if goes_on {
                out.push(kind::RECORDS_NEXT);
            } else {
                put_point(kind::RECORDS, epoch, position, out);
            }
            state.advance(epoch, position, bytes.len());
            return Ok(bytes);
        }
        Message::Ack { epoch, position } => {
            put_length(POINT_LEN, out)?;
            put_point(kind::ACK, epoch, position, out);
        }
        Message::Forward { bytes } => {
            put_length(1 + bytes.len(), out)?;
            out.push(kind::FORWARD);
            return Ok(bytes);
        }
        Message::Alone { epoch, more, names } => {
            put_length(POINT_LEN + names.len(), out)?;
            put_point(kind::ALONE, epoch, more, out);
            return Ok(names);
        }
        Message::Hello(ref hello) => put_control(kind::HELLO, hello, out)?,
        Message::SnapshotBegin { epoch, position } => {
            put_control(kind::SNAPSHOT_BEGIN, &Point { epoch, position }, out)?;
        }
        Message::SnapshotEnd { epoch, position } => {
            put_control(kind::SNAPSHOT_END, &Point { epoch, position }, out)?;
        }
        Message::Paired { epoch } => put_control(kind::PAIRED, &Only { epoch }, out)?,
        Message::PairedAck { epoch } => put_control(kind::PAIRED_ACK, &Only { epoch }, out)?,
        Message::Handover { epoch, position } => put_control(kind::HANDOVER, &Point { epoch, position }, out)?,
        Message::HandoverAck { epoch } => put_control(kind::HANDOVER_ACK, &Only { epoch }, out)?,
        Message::Program { ref trouble } => {
            put_control(kind::PROGRAM, &Reason { reason: Cow::Borrowed(trouble.as_ref()) }, out)?;
        }
        Message::Standby { life, head, executed, records, state, ref reason } => {
            let reason = Cow::Borrowed(reason.as_ref());
            put_control(kind::STANDBY, &Standby { life, head, executed, records, state, reason }, out)?;
        }
        Message::ProgramSnapshotBegin { life, at } => {
            put_control(kind::PROGRAM_SNAPSHOT_BEGIN, &ProgramSnapshotBegin { life, at }, out)?
        }
        Message::ProgramSnapshot { bytes } => {
            put_length(1 + bytes.len(), out)?;
            out.push(kind::PROGRAM_SNAPSHOT);
            return Ok(bytes);
        }
        Message::ProgramSnapshotEnd { life, bytes, ref trouble } => {
            put_control(
                kind::PROGRAM_SNAPSHOT_END,
                &ProgramSnapshotEnd { life, bytes, trouble: Cow::Borrowed(trouble.as_ref()) },
                out,
            )?;
        }
        Message::ProgramSnapshotStored { life, bytes } => {
            put_control(kind::PROGRAM_SNAPSHOT_STORED, &ProgramSnapshotStored { life, bytes }, out)?
        }
        Message::Bye { ref reason } => {
            put_control(kind::BYE, &Reason { reason: Cow::Borrowed(reason.text()) }, out)?;
        }
    }
    Ok(&[])
}

/// Reads one message, given without its length prefix.
pub fn decode<'a>(message: &'a [u8], state: &mut Continuation) -> Result<Message<'a>, Malformed> {
    let (&kind, body) = message.split_first().ok_or(Malformed::Truncated)?;
    Ok(match kind {
        kind::RECORDS => {
            let (epoch, position, bytes) = take_point(body)?;
            state.advance(epoch, position, bytes.len());
            Message::Records { epoch, position, bytes }
        }
        kind::RECORDS_NEXT => {
            let (epoch, position) = state.0.ok_or(Malformed::NoRecordsBefore)?;
            state.advance(epoch, position, body.len());
            Message::Records { epoch, position, bytes: body }
        }
        kind::ACK => {
            let (epoch, position, _) = take_point(body)?;
            Message::Ack { epoch, position }
        }
        kind::FORWARD => Message::Forward { bytes: body },
        kind::ALONE => {
            let (epoch, more, names) = take_point(body)?;
            Message::Alone { epoch, more, names }
        }
        kind::HELLO => Message::Hello(take_control(kind, body)?),
        kind::SNAPSHOT_BEGIN => {
            let Point { epoch, position } = take_control(kind, body)?;
            Message::SnapshotBegin { epoch, position }
        }
        kind::SNAPSHOT_END => {
            let Point { epoch, position } = take_control(kind, body)?;
            Message::SnapshotEnd { epoch, position }
        }
        kind::PAIRED => Message::Paired { epoch: take_control::<Only>(kind, body)?.epoch },
        kind::PAIRED_ACK => Message::PairedAck { epoch: take_control::<Only>(kind, body)?.epoch },
        kind::HANDOVER => {
            let Point { epoch, position } = take_control(kind, body)?;
            Message::Handover { epoch, position }
        }
        kind::HANDOVER_ACK => Message::HandoverAck { epoch: take_control::<Only>(kind, body)?.epoch },
        kind::PROGRAM => Message::Program { trouble: take_control::<Reason<'_>>(kind, body)?.reason },
        kind::STANDBY => {
            let Standby { life, head, executed, records, state, reason } = take_control(kind, body)?;
            Message::Standby { life, head, executed, records, state, reason }
        }
        kind::PROGRAM_SNAPSHOT_BEGIN => {
            let ProgramSnapshotBegin { life, at } = take_control(kind, body)?;
            Message::ProgramSnapshotBegin { life, at }
        }
        kind::PROGRAM_SNAPSHOT => Message::ProgramSnapshot { bytes: body },
        kind::PROGRAM_SNAPSHOT_END => {
            let ProgramSnapshotEnd { life, bytes, trouble } = take_control(kind, body)?;
            Message::ProgramSnapshotEnd { life, bytes, trouble }
        }
        kind::PROGRAM_SNAPSHOT_STORED => {
            let ProgramSnapshotStored { life, bytes } = take_control(kind, body)?;
            Message::ProgramSnapshotStored { life, bytes }
        }
        kind::BYE => Message::Bye { reason: take_control::<Reason<'_>>(kind, body)?.reason.into() },
        other => return Err(Malformed::Kind(other)),
    })
}

/// The length prefix at the start of `stream`: (length, size of the prefix), `None` if it is not whole yet.
pub(crate) fn take_length(stream: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let mut length = 0;
    for (at, &byte) in stream.iter().take(MAX_PREFIX).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return if length > MAX_MESSAGE { Err(Malformed::TooLong) } else { Ok(Some((length, at + 1))) };
        }
    }
    if stream.len() >= MAX_PREFIX {
        Err(Malformed::TooLong)
    } else {
        Ok(None)
    }
}

fn put_length(length: usize, out: &mut Vec<u8>) -> Result<(), Malformed> {
    if length > MAX_MESSAGE {
        return Err(Malformed::TooLong);
    }
    let mut rest = length;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
    Ok(())
}

fn put_point(kind: u8, epoch: Epoch, position: u64, out: &mut Vec<u8>) {
    let mut header = [0; POINT_LEN];
    header[0] = kind;
    header[1..9].copy_from_slice(&epoch.number.to_le_bytes());
    header[9] = epoch.member;
    header[10..].copy_from_slice(&position.to_le_bytes());
    out.extend_from_slice(&header);
}

fn take_point(body: &[u8]) -> Result<(Epoch, u64, &[u8]), Malformed> {
    let (number, rest) = body.split_first_chunk::<8>().ok_or(Malformed::Truncated)?;
    let (&member, rest) = rest.split_first().ok_or(Malformed::Truncated)?;
    let (position, rest) = rest.split_first_chunk::<8>().ok_or(Malformed::Truncated)?;
    Ok((Epoch { number: u64::from_le_bytes(*number), member }, u64::from_le_bytes(*position), rest))
}

fn put_control<T: Serialize>(kind: u8, body: &T, out: &mut Vec<u8>) -> Result<(), Malformed> {
    let body = rmp_serde::to_vec_named(body).map_err(|_| Malformed::Body(kind))?;
    put_length(1 + body.len(), out)?;
    out.push(kind);
    out.extend_from_slice(&body);
    Ok(())
}

fn take_control<'a, T: Deserialize<'a>>(kind: u8, body: &'a [u8]) -> Result<T, Malformed> {
    rmp_serde::from_slice(body).map_err(|_| Malformed::Body(kind))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn any_epoch() -> impl Strategy<Value = Epoch> {
        (any::<u64>(), any::<u8>()).prop_map(|(number, member)| Epoch { number, member })
    }

    /// A message without borrowed bytes: (what, epoch, position, bytes), made into a message by `build`.
    pub(crate) type Plan = (u8, Epoch, u64, Vec<u8>);

    pub(crate) fn any_plan(longest: usize) -> impl Strategy<Value = Plan> {
        (0u8..18, any_epoch(), any::<u64>(), proptest::collection::vec(any::<u8>(), 0..=longest))
    }

    pub(crate) fn build((what, epoch, position, bytes): &Plan) -> Message<'_> {
        let (epoch, position) = (*epoch, *position);
        match what {
            0 => Message::Hello(Hello {
                protocol: position as u16,
                service: String::from_utf8_lossy(bytes).into_owned(),
                member: epoch.member,
                boot: position,
                epoch,
                role: 2,
                config_digest: !position,
            }),
            1 => Message::SnapshotBegin { epoch, position },
            2 => Message::SnapshotEnd { epoch, position },
            3 => Message::Records { epoch, position, bytes },
            4 => Message::Ack { epoch, position },
            5 => Message::Paired { epoch },
            6 => Message::PairedAck { epoch },
            7 => Message::Handover { epoch, position },
            8 => Message::HandoverAck { epoch },
            9 => Message::Forward { bytes },
            10 => Message::Alone { epoch, more: position, names: bytes },
            11 => Message::Standby {
                life: position,
                head: epoch.number,
                executed: !position,
                records: 7,
                state: u32::from(epoch.member),
                reason: String::from_utf8_lossy(bytes),
            },
            12 => Message::Program { trouble: String::from_utf8_lossy(bytes) },
            13 => Message::ProgramSnapshotBegin { life: position, at: epoch.number },
            14 => Message::ProgramSnapshot { bytes },
            15 => Message::ProgramSnapshotEnd { life: position, bytes: epoch.number, trouble: String::from_utf8_lossy(bytes) },
            16 => Message::ProgramSnapshotStored { life: position, bytes: epoch.number },
            _ => Message::Bye { reason: String::from_utf8_lossy(bytes).into() },
        }
    }

    /// Decodes a whole stream of prefixed messages.
    fn decode_all<'a>(mut stream: &'a [u8], state: &mut Continuation) -> Vec<Message<'a>> {
        let mut messages = Vec::new();
        while let Some((length, prefix)) = take_length(stream).unwrap() {
            messages.push(decode(&stream[prefix..prefix + length], state).unwrap());
            stream = &stream[prefix + length..];
        }
        assert!(stream.is_empty());
        messages
    }

    const EPOCH: Epoch = Epoch { number: 7, member: 1 };

    #[test]
    fn records_that_go_on_cost_one_byte_of_header() {
        let (mut out, mut state) = (Vec::new(), Continuation::default());
        let bytes = [9; 32];
        let mut sizes = Vec::new();
        for position in [1000, 1032, 1064, 5000] {
            let before = out.len();
            encode(&Message::Records { epoch: EPOCH, position, bytes: &bytes }, &mut state, &mut out).unwrap();
            sizes.push(out.len() - before - bytes.len());
        }
        assert_eq!(sizes, [19, 2, 2, 19]);
        let positions: Vec<u64> = decode_all(&out, &mut Continuation::default())
            .iter()
            .map(|m| match m {
                Message::Records { position, epoch: EPOCH, .. } => *position,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(positions, [1000, 1032, 1064, 5000]);
    }

    #[test]
    fn too_long_is_refused_and_leaves_nothing() {
        let (mut out, mut state) = (Vec::new(), Continuation::default());
        let mut bytes = vec![0; MAX_BYTES + 1];
        let too_long = Message::Records { epoch: EPOCH, position: 0, bytes: &bytes };
        assert_eq!(encode(&too_long, &mut state, &mut out), Err(Malformed::TooLong));
        assert!(out.is_empty() && state.0.is_none());
        bytes.pop();
        encode(&Message::Records { epoch: EPOCH, position: 0, bytes: &bytes }, &mut state, &mut out).unwrap();
        assert_eq!(take_length(&out), Ok(Some((MAX_MESSAGE, MAX_PREFIX))));
        assert_eq!(take_length(&[0xff, 0xff, 0x7f]), Err(Malformed::TooLong));
        assert_eq!(take_length(&[0x80, 0x80, 0x80]), Err(Malformed::TooLong));
        assert_eq!(take_length(&[0x80, 0x80]), Ok(None));
    }

    #[test]
    fn a_later_version_may_add_fields() {
        #[derive(Serialize)]
        struct Longer {
            epoch: Epoch,
            reserved: u32,
        }
        let mut bytes = vec![kind::PAIRED];
        bytes.extend(rmp_serde::to_vec_named(&Longer { epoch: EPOCH, reserved: 3 }).unwrap());
        assert_eq!(decode(&bytes, &mut Continuation::default()), Ok(Message::Paired { epoch: EPOCH }));
    }

    #[test]
    fn a_continuation_needs_a_beginning() {
        let error = decode(&[kind::RECORDS_NEXT, 1, 2], &mut Continuation::default());
        assert_eq!(error, Err(Malformed::NoRecordsBefore));
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes(plans in proptest::collection::vec(any_plan(300), 0..12)) {
            let (mut out, mut state) = (Vec::new(), Continuation::default());
            let messages: Vec<_> = plans.iter().map(build).collect();
            for message in &messages {
                encode(message, &mut state, &mut out).unwrap();
            }
            prop_assert_eq!(decode_all(&out, &mut Continuation::default()), messages);
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u8..32) {
            let mut state = Continuation(Some((EPOCH, u64::MAX)));
            let _ = decode(&bytes, &mut state);
            let _ = take_length(&bytes);
            let mut with_kind = vec![kind];
            with_kind.extend(&bytes);
            let _ = decode(&with_kind, &mut state);
        }

        #[test]
        fn truncated_messages_are_errors_or_shorter(plan in any_plan(100), cut in any::<prop::sample::Index>()) {
            let mut out = Vec::new();
            encode(&build(&plan), &mut Continuation::default(), &mut out).unwrap();
            let (_, prefix) = take_length(&out).unwrap().unwrap();
            let cut = prefix + cut.index(out.len() - prefix);
            if let Ok(message) = decode(&out[prefix..cut], &mut Continuation::default()) {
                let shorter = matches!(
                    message,
                    Message::Records { .. } | Message::Forward { .. } | Message::Alone { .. } | Message::ProgramSnapshot { .. }
                );
                prop_assert!(shorter);
            }
        }
    }

    #[test]
    fn a_goodbye_is_a_text_on_the_wire_as_protocol_version_1_has_it() {
        let mut wire = Vec::new();
        let bye = Message::Bye { reason: Goodbye::ServiceEnded };
        encode(&bye, &mut Continuation::default(), &mut wire).expect("encoded");
        // A map of one entry, "reason", behind length and kind.
        assert_eq!(wire, b"\x1b\x17\x81\xa6reason\xb1the service ended");
        assert_eq!(decode(&wire[1..], &mut Continuation::default()), Ok(bye));
        let older = b"\x17\x81\xa6reason\xa4what";
        let Ok(Message::Bye { reason }) = decode(older, &mut Continuation::default()) else { panic!("no goodbye") };
        assert_eq!(reason, Goodbye::Other("what".into()));
    }
}
