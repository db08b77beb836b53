//! Copies out of byte queues, by whole slices.

use std::collections::VecDeque;
use std::ops::Range;

/// The bytes of a range of places in the queue.
#[must_use]
pub fn copy(queue: &VecDeque<u8>, range: Range<usize>) -> Vec<u8> {
    let (a, b) = queue.as_slices();
    let mut out = Vec::with_capacity(range.len());
    if range.start < a.len() {
        out.extend_from_slice(&a[range.start..range.end.min(a.len())]);
    }
    if range.end > a.len() {
        out.extend_from_slice(&b[range.start.saturating_sub(a.len())..range.end - a.len()]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_may_lie_across_the_seam() {
        let mut queue: VecDeque<u8> = (0..100).collect();
        queue.drain(..60);
        queue.extend(100..150);
        let plain: Vec<u8> = queue.iter().copied().collect();
        for start in 0..=plain.len() {
            for end in start..=plain.len() {
                assert_eq!(copy(&queue, start..end), plain[start..end]);
            }
        }
    }
}
