//! TCP sequence numbers: arithmetic modulo 2^32 (RFC 9293, section 3.4) and the way back to u64 offsets.

use std::fmt;

/// A TCP sequence number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Seq(pub u32);

impl fmt::Debug for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seq({})", self.0)
    }
}

impl Seq {
    /// This number moved forward by `n`, modulo 2^32.
    #[must_use]
    #[allow(clippy::should_implement_trait)] // the operand is an offset, not a sequence number
    pub fn add(self, n: u64) -> Seq {
        Seq(self.0.wrapping_add(n as u32))
    }

    /// Signed distance from `other` to this number; the nearer way round.
    #[must_use]
    pub fn since(self, other: Seq) -> i32 {
        self.0.wrapping_sub(other.0) as i32
    }

    /// Whether this number comes after `other`.
    #[must_use]
    pub fn after(self, other: Seq) -> bool {
        self.since(other) > 0
    }

    /// Whether this number comes before `other`.
    #[must_use]
    pub fn before(self, other: Seq) -> bool {
        self.since(other) < 0
    }
}

/// Sequence number of the byte at `offset` of a stream whose SYN had number `initial`.
#[must_use]
pub fn at(initial: Seq, offset: u64) -> Seq {
    initial.add(offset.wrapping_add(1))
}

/// Stream offset of `seq`, as the one nearest to the known offset `near`. None if it lies before the stream's
/// first byte (the SYN itself, or a keepalive probe of an untouched connection).
#[must_use]
pub fn offset(initial: Seq, seq: Seq, near: u64) -> Option<u64> {
    let distance = i64::from(seq.since(at(initial, near)));
    u64::try_from(near as i64 + distance).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_offset_survives_the_way_through_32_bits(
            initial in any::<u32>(), near in 0u64..1 << 40, d in -(1i64 << 30)..(1i64 << 30)
        ) {
            let offset_in = near as i64 + d;
            let seq = at(Seq(initial), offset_in as u64);
            let back = offset(Seq(initial), seq, near);
            prop_assert_eq!(back, u64::try_from(offset_in).ok());
        }
    }

    #[test]
    fn comparison_wraps() {
        assert!(Seq(1).after(Seq(u32::MAX)));
        assert!(Seq(u32::MAX).before(Seq(1)));
        assert_eq!(Seq(5).since(Seq(u32::MAX)), 6);
    }

    #[test]
    fn the_syn_has_no_offset() {
        assert_eq!(offset(Seq(100), Seq(100), 0), None);
        assert_eq!(offset(Seq(100), Seq(101), 0), Some(0));
    }
}
