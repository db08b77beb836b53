//! Correcting numbers in flight (the paper, section 3.3; TCPR, Surton et al., DSN 2013): the local TCP's half of a
//! session is new, and counts from another initial number, with another clock and another window shift than the peer
//! was told. What differs is fixed when the half opens; each segment is corrected by it.

use crate::segment::{flags, Segment};
use crate::seq::Seq;

/// Kinds of TCP options (RFC 9293, section 3.1; RFC 2018; RFC 7323).
const NOP: u8 = 1;
const SACK: u8 = 5;
const TIMESTAMPS: u8 = 8;

/// By how much the numbers of one direction differ; added modulo 2^32 on the way from the local TCP's half to the
/// peer's, subtracted on the way back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shift {
    /// Of sequence numbers, and of what acknowledges them.
    pub seq: u32,
    /// Of timestamp values, and of what echoes them.
    pub timestamp: u32,
}

/// How the two halves of a session differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Splice {
    /// The local TCP's own initial number.
    pub isn: Seq,
    /// The local TCP's port, and the one that the peer knows (the paper's internal and external port).
    pub ports: (u16, u16),
    /// What the local TCP sends.
    pub output: Shift,
    /// What the peer sends. (We choose the number with which we open the local half, so that it need not move.)
    pub input: Shift,
    /// Window shift of the local TCP, and the one that the peer was told.
    pub shifts: (u8, u8),
    /// Window shift of the peer, and the one that the local TCP took note of: none, if it answered with a SYN cookie.
    pub peer_shifts: (u8, u8),
    /// Output before this number of the local TCP's is not its own, but sent by us: no acknowledgement below it is shown.
    pub floor: Option<Seq>,
    /// What the local TCP's clock was when it answered: as long as there is a floor no echo of what it never said is shown.
    pub clock: u32,
}

impl Splice {
    /// A segment of the local TCP as the peer is to see it, with a full checksum.
    pub fn to_peer(&self, segment: &Segment<'_>, out: &mut Vec<u8>) {
        correct(segment, self.output, self.input, out);
        segment.put_ports(self.ports.1, segment.destination().port(), out);
        // That of a SYN is not scaled.
        if !segment.has(flags::SYN) {
            segment.put_window(rescaled(segment.window(), self.shifts), out);
        }
        segment.finish(out);
    }

    /// A segment of the peer as the local TCP is to see it, with a full checksum.
    pub fn to_kernel(&self, segment: &Segment<'_>, out: &mut Vec<u8>) {
        let back = |shift: Shift| Shift { seq: shift.seq.wrapping_neg(), timestamp: shift.timestamp.wrapping_neg() };
        correct(segment, back(self.input), back(self.output), out);
        segment.put_ports(segment.source().port(), self.ports.0, out);
        if !segment.has(flags::SYN) {
            segment.put_window(rescaled(segment.window(), self.peer_shifts), out);
        }
        if let Some(floor) = self.floor.filter(|_| segment.has(flags::ACK)) {
            if Seq(segment.ack().0.wrapping_sub(self.output.seq)).before(floor) {
                segment.put_ack(floor, out);
                // What is missing before it is none of its business.
                segment.each_option(|kind, at| {
                    if kind == SACK {
                        out[at.start..at.end].fill(NOP);
                    }
                });
            }
            // What has yet to become a connection refuses segments for that (Linux 6.15).
            segment.each_option(|kind, at| {
                if (kind, at.len()) == (TIMESTAMPS, 10) {
                    let echo: &mut [u8; 4] = (&mut out[at.start + 6..at.end]).try_into().expect("four bytes");
                    if (u32::from_be_bytes(*echo).wrapping_sub(self.clock) as i32) < 0 {
                        *echo = self.clock.to_be_bytes();
                    }
                }
            });
        }
        segment.finish(out);
    }
}

fn rescaled(window: u16, (from, to): (u8, u8)) -> u16 {
    (u32::from(window) << from >> to).min(u32::from(u16::MAX)) as u16
}

/// `own`: of the stream that the segment belongs to; `other`: of the one that it acknowledges.
fn correct(segment: &Segment<'_>, own: Shift, other: Shift, out: &mut Vec<u8>) {
    segment.copy_to(out);
    segment.put_seq(segment.seq().add(u64::from(own.seq)), out);
    let acknowledges = segment.has(flags::ACK);
    if acknowledges {
        segment.put_ack(segment.ack().add(u64::from(other.seq)), out);
    }
    segment.each_option(|kind, at| {
        let mut add = |at: usize, n: u32| {
            let field: &mut [u8; 4] = (&mut out[at..at + 4]).try_into().expect("four bytes");
            *field = u32::from_be_bytes(*field).wrapping_add(n).to_be_bytes();
        };
        match (kind, at.len()) {
            (TIMESTAMPS, 10) => {
                add(at.start + 2, own.timestamp);
                // RFC 7323, section 3.2: the echo counts only with ACK.
                if acknowledges {
                    add(at.start + 6, other.timestamp);
                }
            }
            (SACK, n) => (at.start + 2..at.start + n).step_by(4).for_each(|edge| {
                if edge + 4 <= at.end {
                    add(edge, other.seq);
                }
            }),
            _ => {}
        }
    });
}

#[cfg(test)]
mod tests;
