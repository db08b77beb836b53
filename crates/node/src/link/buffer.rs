//! The two directions of an established link: messages to encrypted frames and back, without an allocation per
//! message.
//!
//! On the wire a frame is a u16 length and a Noise message. What the frames of one direction decrypt to is one
//! byte stream that holds the messages (see `message`); so several small messages share a frame, and a long one
//! spreads over several, with nothing said about it.

use super::handshake::TAG_LEN;
use super::message::{self, Continuation, Malformed, Message, MAX_MESSAGE};
use snow::TransportState;
use std::io::{self, Read, Write};

/// Largest Noise message.
const MAX_FRAME: usize = 65535;
/// Largest piece of the message stream that goes into one frame.
pub(crate) const MAX_PAYLOAD: usize = MAX_FRAME - TAG_LEN;
const FRAME_PREFIX: usize = 2;

/// How much is encrypted before it is given to the kernel: what waits behind it can still be combined.
const SEAL_AHEAD: usize = 256 << 10;
/// From this length on records are worth frames of their own: they are encrypted from where they lie, while no more than
/// [`KEEP`] waits for the kernel.
const LONG: usize = 16 << 10;
/// How much one flush gives to the kernel at most: whoever drives the link has packets to look at meanwhile.
const FLUSH_MOST: u64 = 1 << 20;
/// How much one read takes.
const READ_SIZE: usize = 256 << 10;
/// An outbox that grew past this in a burst gives its memory back when it is empty.
const KEEP: usize = 4 << 20;
/// Decrypted bytes that may wait for `poll_message` before reading stops; a whole message always fits.
const MAX_UNREAD: usize = 2 * MAX_MESSAGE;

/// A window begins this far into its buffer. Large buffers begin at the same place of a page, and copies from one place of a
/// page to nearly the same of another are up to three times slower on some processors (glibc bug 30994).
const LEAD: usize = 2 << 10;

/// Bytes `start..end` of a buffer whose whole length is ready to be written to: growing it is the only time it
/// is cleared.
struct Window {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Window {
    fn new(size: usize) -> Self {
        Window { bytes: vec![0; LEAD + size], start: LEAD, end: LEAD }
    }

    fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn len(&self) -> usize {
        self.end - self.start
    }

    /// `size` bytes of room behind what is filled.
    fn room(&mut self, size: usize) -> &mut [u8] {
        if self.bytes.len() - self.end < size {
            self.move_to_front();
            if self.bytes.len() - self.end < size {
                self.bytes.resize((self.end + size).next_power_of_two(), 0);
            }
        }
        &mut self.bytes[self.end..self.end + size]
    }

    fn move_to_front(&mut self) {
        if self.start > LEAD {
            self.bytes.copy_within(self.start..self.end, LEAD);
            self.end -= self.start - LEAD;
            self.start = LEAD;
        }
    }

    fn consume(&mut self, size: usize) {
        self.start += size;
        if self.start == self.end {
            self.start = LEAD;
            self.end = LEAD;
        }
    }

    fn clear(&mut self) {
        self.consume(self.len());
    }
}

/// What is to be sent.
pub(crate) struct Outbox {
    /// Encoded messages from `plain_start` on; not yet encrypted.
    plain: Vec<u8>,
    plain_start: usize,
    wire: Window,
    continuation: Continuation,
    /// Sealing has failed: told by the next flush.
    failed: Option<snow::Error>,
    /// Bytes given to the kernel.
    pub written: u64,
    /// System calls that took them.
    pub writes: u64,
}

impl Outbox {
    pub fn new() -> Self {
        Outbox {
            plain: Vec::new(),
            plain_start: 0,
            wire: Window::new(0),
            continuation: Continuation::default(),
            failed: None,
            written: 0,
            writes: 0,
        }
    }

    /// Queues a message. With `noise` a long one is sealed at once, from where it lies, unless too much waits already.
    pub fn push(&mut self, message: &Message<'_>, noise: Option<&mut TransportState>) -> Result<(), Malformed> {
        let rest = message::encode_head(message, &mut self.continuation, &mut self.plain)?;
        if let (Some(noise), true) = (noise, rest.len() >= LONG) {
            let mut sealed = self.seal(noise, KEEP);
            let at_once = sealed.is_ok() && self.plain.is_empty() && self.wire.len() < KEEP;
            if at_once {
                sealed = rest.chunks(MAX_PAYLOAD).try_for_each(|piece| seal(piece, noise, &mut self.wire));
            }
            if let Err(error) = sealed {
                self.failed.get_or_insert(error);
            }
            if at_once {
                return Ok(());
            }
        }
        self.plain.extend_from_slice(rest);
        Ok(())
    }

    /// Bytes of the handshake, which have a layout of their own.
    pub fn push_raw(&mut self, bytes: &[u8]) {
        self.wire.room(bytes.len()).copy_from_slice(bytes);
        self.wire.end += bytes.len();
    }

    /// A frame with nothing in it.
    pub fn push_empty_frame(&mut self, noise: &mut TransportState) -> Result<(), snow::Error> {
        seal(&[], noise, &mut self.wire)
    }

    pub fn waiting(&self) -> usize {
        self.plain.len() - self.plain_start + self.wire.len()
    }

    pub fn wire_waiting(&self) -> bool {
        self.wire.len() > 0
    }

    pub fn clear(&mut self) {
        self.plain = Vec::new();
        self.plain_start = 0;
        self.wire.clear();
    }

    /// Writes until all is written, or the kernel takes no more, or [`FLUSH_MOST`] is written; without `noise`,
    /// only what is encrypted.
    pub fn flush(&mut self, to: &mut impl Write, mut noise: Option<&mut TransportState>) -> io::Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(io::Error::other(error));
        }
        let most = self.written + FLUSH_MOST;
        while self.written < most {
            if let Some(noise) = noise.as_deref_mut() {
                self.seal(noise, SEAL_AHEAD).map_err(io::Error::other)?;
            }
            if self.wire.len() == 0 {
                if self.wire.bytes.len() > 2 * KEEP {
                    self.wire = Window::new(0);
                }
                return Ok(());
            }
            match to.write(self.wire.filled()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => {
                    self.written += taken as u64;
                    self.writes += 1;
                    let all = taken == self.wire.len();
                    self.wire.consume(taken);
                    if !all {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn seal(&mut self, noise: &mut TransportState, ahead: usize) -> Result<(), snow::Error> {
        while self.plain_start < self.plain.len() && self.wire.len() < ahead {
            let rest = &self.plain[self.plain_start..];
            let piece = &rest[..rest.len().min(MAX_PAYLOAD)];
            seal(piece, noise, &mut self.wire)?;
            self.plain_start += piece.len();
        }
        if self.plain_start == self.plain.len() {
            self.plain.clear();
            self.plain_start = 0;
            if self.plain.capacity() > KEEP {
                self.plain = Vec::new();
            }
        } else if self.plain_start > KEEP && self.plain_start > self.plain.len() / 2 {
            self.plain.drain(..self.plain_start);
            self.plain_start = 0;
        }
        Ok(())
    }
}

fn seal(piece: &[u8], noise: &mut TransportState, wire: &mut Window) -> Result<(), snow::Error> {
    let length = piece.len() + TAG_LEN;
    let room = wire.room(FRAME_PREFIX + length);
    room[..FRAME_PREFIX].copy_from_slice(&(length as u16).to_le_bytes());
    noise.write_message(piece, &mut room[FRAME_PREFIX..])?;
    wire.end += FRAME_PREFIX + length;
    Ok(())
}

/// What has arrived.
pub(crate) struct Inbox {
    wire: Window,
    plain: Window,
    continuation: Continuation,
    /// How much may be read at once: little before the handshake is done.
    read_size: usize,
    /// Bytes taken from the kernel.
    pub taken: u64,
}

impl Inbox {
    /// An inbox that never holds more than `read_size` bytes until it is opened up.
    pub fn new(read_size: usize) -> Self {
        Inbox { wire: Window::new(read_size), plain: Window::new(0), continuation: Continuation::default(), read_size, taken: 0 }
    }

    /// The handshake is done: from now on there is a partner to trust with memory.
    pub fn open_up(&mut self) {
        self.read_size = READ_SIZE;
        self.wire.bytes.resize(LEAD + READ_SIZE, 0);
    }

    /// What arrived and was neither skipped nor decrypted.
    pub fn raw(&self) -> &[u8] {
        self.wire.filled()
    }

    pub fn skip(&mut self, size: usize) {
        self.wire.consume(size);
    }

    /// Whether more may be read before messages are taken out.
    pub fn has_room(&self) -> bool {
        self.wire.len() < self.read_size && self.plain.len() < MAX_UNREAD
    }

    pub fn clear(&mut self) {
        self.wire.clear();
        self.plain.clear();
    }

    /// One read; how much it gave, 0 at the end of the stream.
    pub fn fill(&mut self, from: &mut impl Read) -> io::Result<usize> {
        self.wire.move_to_front();
        let room = self.wire.bytes.len() - self.wire.end;
        debug_assert!(room > 0, "a frame is shorter than the buffer");
        let end = self.wire.end;
        let got = from.read(&mut self.wire.bytes[end..end + room])?;
        self.wire.end += got;
        self.taken += got as u64;
        Ok(got)
    }

    /// Decrypts every whole frame.
    pub fn decrypt(&mut self, noise: &mut TransportState) -> Result<(), snow::Error> {
        while let Some((prefix, rest)) = self.wire.filled().split_first_chunk::<FRAME_PREFIX>() {
            let length = usize::from(u16::from_le_bytes(*prefix));
            let Some(frame) = rest.get(..length) else { break };
            // Room for the tag too: with less the cipher decrypts into a buffer that it allocates.
            let got = noise.read_message(frame, self.plain.room(length))?;
            self.plain.end += got;
            self.wire.consume(FRAME_PREFIX + length);
        }
        Ok(())
    }

    /// The next whole message.
    pub fn next(&mut self) -> Result<Option<Message<'_>>, Malformed> {
        let Some((length, prefix)) = message::take_length(self.plain.filled())? else { return Ok(None) };
        if self.plain.len() < prefix + length {
            return Ok(None);
        }
        let start = self.plain.start + prefix;
        // Consumed bytes stay where they are until the next `decrypt`.
        self.plain.consume(prefix + length);
        message::decode(&self.plain.bytes[start..start + length], &mut self.continuation).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::super::handshake::{answer, finish, offer, LinkConfig};
    use super::super::message::tests::{any_plan, build, Plan};
    use super::*;
    use crate::key::Key;
    use proptest::prelude::*;
    use tcpr_session::role::Epoch;

    fn noise_pair() -> (TransportState, TransportState) {
        let config = LinkConfig::new("chat", Key::LOOPBACK);
        let (noise, offer) = offer(&config).unwrap();
        let Ok((listener, answer)) = answer(&config, &offer) else { panic!() };
        let dialer = finish(&config, &mut Some(noise), &answer).unwrap().unwrap();
        (dialer.transport, listener.transport)
    }

    /// What `plans` become on the wire, flushed after each one.
    fn on_wire(plans: &[Plan], noise: &mut TransportState) -> Vec<u8> {
        let (mut out, mut wire) = (Outbox::new(), Vec::new());
        for plan in plans {
            out.push(&build(plan), Some(noise)).unwrap();
            while out.waiting() > 0 {
                out.flush(&mut wire, Some(noise)).unwrap();
            }
        }
        wire
    }

    /// Feeds `wire` in pieces and checks that exactly `plans` come out.
    fn check<'a>(plans: &[Plan], pieces: impl Iterator<Item = &'a [u8]>, noise: &mut TransportState) {
        let mut inbox = Inbox::new(512);
        inbox.open_up();
        let mut expected = plans.iter();
        for mut piece in pieces {
            while !piece.is_empty() {
                inbox.fill(&mut piece).unwrap();
                inbox.decrypt(noise).unwrap();
                while let Some(message) = inbox.next().unwrap() {
                    assert_eq!(message, build(expected.next().expect("no more than was sent")));
                }
            }
        }
        assert_eq!(expected.count(), 0);
    }

    const EPOCH: Epoch = Epoch { number: 1, member: 0 };

    #[test]
    fn every_split_in_two_gives_the_same_messages() {
        let plans: Vec<Plan> = (0..11).map(|what| (what, EPOCH, 3, vec![what; 20])).collect();
        let (mut tx, mut rx) = noise_pair();
        let wire = on_wire(&plans, &mut tx);
        for at in 0..=wire.len() {
            rx.set_receiving_nonce(0);
            check(&plans, [&wire[..at], &wire[at..]].into_iter(), &mut rx);
        }
        rx.set_receiving_nonce(0);
        check(&plans, wire.chunks(1), &mut rx);
    }

    #[test]
    fn long_messages_cross_frames_at_every_edge() {
        let (mut tx, mut rx) = noise_pair();
        let sizes = [0, 1, MAX_PAYLOAD - 23, MAX_PAYLOAD - 21, MAX_PAYLOAD, 2 * MAX_PAYLOAD, message::MAX_BYTES];
        let plans: Vec<Plan> = sizes.iter().map(|&size| (3, EPOCH, 9, vec![5; size])).collect();
        let wire = on_wire(&plans, &mut tx);
        check(&plans, wire.chunks(100_000), &mut rx);
    }

    #[test]
    fn small_messages_share_a_frame_and_a_write() {
        let (mut tx, mut rx) = noise_pair();
        let plans: Vec<Plan> = (0..100).map(|n| (4, EPOCH, n, Vec::new())).collect();
        let (mut out, mut wire) = (Outbox::new(), Vec::new());
        for plan in &plans {
            out.push(&build(plan), Some(&mut tx)).unwrap();
        }
        out.flush(&mut wire, Some(&mut tx)).unwrap();
        assert_eq!((out.writes, out.waiting()), (1, 0));
        assert_eq!(wire.len(), FRAME_PREFIX + TAG_LEN + 100 * 19);
        check(&plans, [&wire[..]].into_iter(), &mut rx);
    }

    #[test]
    fn a_stuck_writer_keeps_the_order_and_counts() {
        struct Slow(Vec<u8>, usize);
        impl Write for Slow {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                if self.1 == 0 {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                let taken = bytes.len().min(self.1);
                self.1 -= taken;
                self.0.extend_from_slice(&bytes[..taken]);
                Ok(taken)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (mut tx, mut rx) = noise_pair();
        let plans: Vec<Plan> = (0..40).map(|n| (3, EPOCH, n, vec![n as u8; 400_000])).collect();
        let (mut out, mut slow) = (Outbox::new(), Slow(Vec::new(), 0));
        for plan in &plans {
            out.push(&build(plan), Some(&mut tx)).unwrap();
            out.flush(&mut slow, Some(&mut tx)).unwrap();
        }
        assert!(out.waiting() > 40 * 400_000);
        while out.waiting() > 0 {
            slow.1 = 77_777;
            out.flush(&mut slow, Some(&mut tx)).unwrap();
        }
        check(&plans, slow.0.chunks(1_000_000), &mut rx);
    }

    #[test]
    fn an_inbox_bounds_what_it_holds() {
        let (mut tx, mut rx) = noise_pair();
        let plans: Vec<Plan> = (0..8).map(|n| (3, EPOCH, n, vec![0; 1_000_000])).collect();
        let wire = on_wire(&plans, &mut tx);
        let (mut inbox, mut rest) = (Inbox::new(512), &wire[..]);
        assert_eq!(inbox.fill(&mut rest).unwrap(), 512);
        assert!(!inbox.has_room());
        inbox.open_up();
        while inbox.has_room() {
            inbox.fill(&mut rest).unwrap();
            inbox.decrypt(&mut rx).unwrap();
        }
        assert!(inbox.plain.len() < MAX_UNREAD + READ_SIZE + MAX_FRAME && !rest.is_empty());
        while inbox.next().unwrap().is_some() {}
        assert!(inbox.has_room());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn any_messages_in_any_pieces(
            plans in proptest::collection::vec(any_plan(5000), 1..20),
            sizes in proptest::collection::vec(1usize..3000, 1..20),
        ) {
            let (mut tx, mut rx) = noise_pair();
            let wire = on_wire(&plans, &mut tx);
            let mut pieces = Vec::new();
            let (mut rest, mut sizes) = (&wire[..], sizes.iter().cycle());
            while !rest.is_empty() {
                let (piece, tail) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
                pieces.push(piece);
                rest = tail;
            }
            check(&plans, pieces.into_iter(), &mut rx);
        }

        #[test]
        fn a_flipped_bit_is_an_error_or_missing_bytes(
            plans in proptest::collection::vec(any_plan(200), 1..5),
            bit in any::<prop::sample::Index>(),
        ) {
            let (mut tx, mut rx) = noise_pair();
            let mut wire = on_wire(&plans, &mut tx);
            let bit = bit.index(wire.len() * 8);
            wire[bit / 8] ^= 1 << (bit % 8);
            let mut inbox = Inbox::new(512);
            inbox.open_up();
            inbox.fill(&mut &wire[..]).unwrap();
            let broken = inbox.decrypt(&mut rx).is_err();
            let mut got = 0;
            while let Some(message) = inbox.next().unwrap() {
                prop_assert_eq!(message, build(&plans[got]));
                got += 1;
            }
            prop_assert!(got < plans.len());
            prop_assert!(broken || !inbox.raw().is_empty());
        }
    }
}
