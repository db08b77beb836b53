//! Messages of the replication link, after decryption: what is understood says the same when it is sent on.
//!
//! The input is a stream of messages, each behind its length (two bytes, little-endian): state goes from one to the next.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcpr_node::link::{decode, encode, Continuation};

/// Without the length prefix (LEB128).
fn body(message: &[u8]) -> &[u8] {
    let last = message.iter().position(|byte| byte & 0x80 == 0).expect("a length ends");
    &message[last + 1..]
}

fuzz_target!(|stream: &[u8]| {
    let (mut heard, mut sent, mut heard_again) = (Continuation::default(), Continuation::default(), Continuation::default());
    let mut rest = stream;
    while let Some((length, tail)) = rest.split_first_chunk() {
        let (message, tail) = tail.split_at(tail.len().min(u16::from_le_bytes(*length).into()));
        rest = tail;
        let Ok(message) = decode(message, &mut heard) else { continue };
        let mut bytes = Vec::new();
        encode(&message, &mut sent, &mut bytes).expect("what fits into a message fits again");
        let again = decode(body(&bytes), &mut heard_again).expect("what we send is a message");
        assert_eq!(again, message);
    }
});
