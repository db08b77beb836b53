//! Heartbeats: datagrams of the partner, of its earlier lives, changed, lost, played back, and made up. Nothing that was changed
//! is believed, and nothing counts as a sign of life twice.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use tcpr_node::heartbeat::{Codec, HeartbeatBody};
use tcpr_node::key::Key;
use tcpr_session::role::Epoch;

fn codec(member: u8, boot: u128) -> Codec {
    let key = Key::parse(&"07".repeat(32)).expect("a key");
    Codec::with_boot(key, "chat", member, boot)
}

fn body(u: &mut Unstructured<'_>) -> Result<HeartbeatBody> {
    Ok(HeartbeatBody {
        epoch: Epoch { number: u.arbitrary()?, member: u.arbitrary()? },
        role: u.arbitrary()?,
        paired: u.arbitrary()?,
        full_replica: u.arbitrary()?,
        unguarded: u.arbitrary()?,
        position: u.arbitrary()?,
        partner_boot: u.arbitrary()?,
        partner_counter: u.arbitrary()?,
    })
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let (mut us, mut partner, mut boot) = (codec(0, 1), codec(1, 2), 2);
    let mut sent: Vec<(Vec<u8>, HeartbeatBody)> = Vec::new();
    let mut alive = HashSet::new();
    while !u.is_empty() {
        match u.int_in_range(0..=6)? {
            0 => {
                let said = partner.start_round(&body(u)?);
                sent.push((partner.seal(&said).to_vec(), said));
            }
            1 | 2 => {
                // As it was sent: now, later, or once more.
                let Some((datagram, said)) = sent.get(u.choose_index(sent.len().max(1))?) else { continue };
                let Ok(heard) = us.open(datagram) else { continue };
                assert_eq!((heard.member, heard.body), (1, *said));
                assert!(!heard.alive || alive.insert((heard.boot, heard.counter)), "a sign of life was played back");
            }
            3 => {
                let Some((datagram, _)) = sent.get(u.choose_index(sent.len().max(1))?) else { continue };
                let mut changed = datagram.clone();
                let bit = u.choose_index(changed.len() * 8)?;
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(us.open(&changed).is_err(), "a changed datagram is believed");
            }
            4 => {
                let said = us.start_round(&body(u)?);
                let datagram = us.seal(&said);
                assert!(us.open(&datagram).is_err(), "we are not our own partner");
                let heard = partner.open(&datagram);
                assert!(heard.is_ok_and(|heard| heard.body == said));
            }
            5 => {
                boot += 1;
                partner = codec(1, boot);
            }
            _ => {
                let length = u.int_in_range(0..=600usize)?;
                let made_up = u.bytes(length.min(u.len()))?;
                assert!(us.open(made_up).is_err() || sent.iter().any(|(datagram, _)| datagram == made_up));
            }
        }
    }
    Ok(())
}

fuzz_target!(|input: &[u8]| {
    // An input that ends early ends the run.
    let _ = run(&mut Unstructured::new(input));
});
