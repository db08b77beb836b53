//! The shared memory of a channel, written by a process that is not ours: the consumer takes what is an event, and refuses the
//! rest.
//!
//! The first eight bytes say how much was produced; the others are the beginning of the ring.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|memory: &[u8]| {
    if let Some((tail, ring)) = memory.split_first_chunk() {
        let tail = u64::from_le_bytes(*tail);
        // There only in a build for fuzzing (fuzz/run.sh).
        #[cfg(fuzzing)]
        tcpr_node::channel::ring::consume_foreign(tail, ring);
        #[cfg(not(fuzzing))]
        unreachable!("not built by fuzz/run.sh: {tail}, {ring:?}");
    }
});
