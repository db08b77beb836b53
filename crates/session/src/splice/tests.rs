//! Against a model that keeps 64-bit offsets: each half numbers the same two streams, from initial numbers and clocks
//! of its own.

use std::net::SocketAddr;

use super::*;
use crate::segment::Build;
use crate::seq;
use proptest::prelude::*;

/// One half of a session: what offset 0 of each stream, and time 0 of each clock, is called.
#[derive(Clone, Copy, Debug)]
struct Half {
    /// Number of the first byte of the output, and of the input.
    out: Seq,
    input: Seq,
    clock_out: u32,
    clock_in: u32,
    port: u16,
}

impl Half {
    /// A segment of output at this offset, or of input.
    fn packet(&self, of_output: bool, v6: bool, s: &Said, window: u16) -> Vec<u8> {
        let (server, peer) = if v6 { ("2001:db8::c8", "[2001:db8::9]:4000") } else { ("192.0.2.200", "192.0.2.9:4000") };
        let (server, peer) = (SocketAddr::new(server.parse().unwrap(), self.port), peer.parse().unwrap());
        let (own, other, own_clock, other_clock) = match of_output {
            true => (self.out, self.input, self.clock_out, self.clock_in),
            false => (self.input, self.out, self.clock_in, self.clock_out),
        };
        let (source, destination) = if of_output { (server, peer) } else { (peer, server) };
        let mut further = Vec::new();
        if !s.sacks.is_empty() {
            further.extend_from_slice(&[NOP, NOP, SACK, 2 + 8 * s.sacks.len() as u8]);
            for (from, to) in &s.sacks {
                further.extend_from_slice(&other.add(*from).0.to_be_bytes());
                further.extend_from_slice(&other.add(*to).0.to_be_bytes());
            }
        }
        let mut packet = Vec::new();
        Build {
            source,
            destination,
            seq: own.add(s.at),
            ack: s.ack.map_or(Seq(0), |ack| other.add(ack)),
            flags: s.flags | if s.ack.is_some() { flags::ACK } else { 0 },
            window,
            timestamps: s.times.map(|(value, echo)| {
                (own_clock.wrapping_add(value), if s.ack.is_some() { other_clock.wrapping_add(echo) } else { echo })
            }),
            payload: &s.bytes,
        }
        .write_with(&further, &mut packet);
        packet
    }
}

/// What a segment says, in offsets and times of the model.
#[derive(Clone, Debug)]
struct Said {
    at: u64,
    ack: Option<u64>,
    sacks: Vec<(u64, u64)>,
    times: Option<(u32, u32)>,
    flags: u8,
    bytes: Vec<u8>,
}

fn said() -> impl Strategy<Value = Said> {
    let place = 0u64..1 << 40;
    (
        (place.clone(), prop::option::of(place.clone()), prop::collection::vec((place.clone(), place), 0..3)),
        (prop::option::of(any::<(u32, u32)>()), prop::sample::select(vec![0, flags::PSH, flags::FIN, flags::RST])),
        prop_oneof![prop::collection::vec(any::<u8>(), 0..100), Just(vec![7; 60_000])],
    )
        .prop_map(|((at, ack, sacks), (times, flags), bytes)| Said { at, ack, sacks, times, flags, bytes })
}

fn half() -> impl Strategy<Value = Half> {
    (any::<[u32; 4]>(), any::<u16>()).prop_map(|([out, input, clock_out, clock_in], port)| Half {
        out: Seq(out),
        input: Seq(input),
        clock_out,
        clock_in,
        port,
    })
}

fn splice(local: &Half, wire: &Half, shifts: (u8, u8)) -> Splice {
    let shift = |wire: Seq, local: Seq, wire_clock: u32, local_clock: u32| Shift {
        seq: wire.0.wrapping_sub(local.0),
        timestamp: wire_clock.wrapping_sub(local_clock),
    };
    Splice {
        isn: local.out.add(u64::MAX),
        ports: (local.port, wire.port),
        output: shift(wire.out, local.out, wire.clock_out, local.clock_out),
        input: shift(wire.input, local.input, wire.clock_in, local.clock_in),
        shifts,
        peer_shifts: (3, 3),
        floor: None,
        clock: 0,
    }
}

proptest! {
    /// What the local TCP says is, corrected, what a TCP with the peer's numbers would have said, to the bit; and back.
    #[test]
    fn both_ways_as_the_model_says(local in half(), wire in half(), v6 in any::<bool>(), s in said(), window in any::<u16>()) {
        let splice = splice(&local, &wire, (7, 7));
        for of_output in [true, false] {
            let (here, there) = (local.packet(of_output, v6, &s, window), wire.packet(of_output, v6, &s, window));
            let mut corrected = Vec::new();
            if of_output {
                splice.to_peer(&Segment::parse(&here).unwrap(), &mut corrected);
                prop_assert_eq!(&corrected, &there);
            } else {
                splice.to_kernel(&Segment::parse(&there).unwrap(), &mut corrected);
                prop_assert_eq!(&corrected, &here);
            }
            prop_assert!(Segment::parse(&corrected).unwrap().checksum_ok());
        }
    }

    /// The window that the peer is told is what the local TCP has, rounded down to what can be told.
    #[test]
    fn a_window_never_grows(window in any::<u16>(), local in 0u8..15, wire in 0u8..15) {
        let half = Half { out: Seq(1), input: Seq(2), clock_out: 3, clock_in: 4, port: 5 };
        let s = Said { at: 0, ack: Some(0), sacks: vec![], times: None, flags: 0, bytes: vec![] };
        let packet = half.packet(true, false, &s, window);
        let mut corrected = Vec::new();
        splice(&half, &half, (local, wire)).to_peer(&Segment::parse(&packet).unwrap(), &mut corrected);
        let (has, told) = (u64::from(window) << local, u64::from(Segment::parse(&corrected).unwrap().window()) << wire);
        prop_assert!(told <= has);
        prop_assert!(has - told < 1 << wire || told == u64::from(u16::MAX) << wire);
    }

    /// Below the floor the local TCP has sent nothing: it is shown no acknowledgement of it, and no holes.
    #[test]
    fn nothing_below_the_floor_is_acknowledged(local in half(), wire in half(), s in said(), floor in 0u64..1 << 40) {
        let floored = Splice { floor: Some(local.out.add(floor)), ..splice(&local, &wire, (7, 7)) };
        // Comparison is the nearer way round.
        let near = s.ack.is_none_or(|ack| ack.abs_diff(floor) < 1 << 31);
        prop_assume!(near);
        let mut corrected = Vec::new();
        let there = wire.packet(false, false, &s, 9);
        floored.to_kernel(&Segment::parse(&there).unwrap(), &mut corrected);
        let got = Segment::parse(&corrected).unwrap();
        prop_assert!(got.checksum_ok());
        prop_assert_eq!(got.payload(), &s.bytes[..]);
        if let Some(ack) = s.ack {
            prop_assert_eq!(got.ack(), local.out.add(ack.max(floor)));
            let mut sacks = 0;
            got.each_option(|kind, _| sacks += usize::from(kind == SACK));
            prop_assert_eq!(sacks, usize::from(!s.sacks.is_empty() && ack >= floor));
        }
    }

    #[test]
    fn options_that_are_no_options_do_no_harm(mut options in prop::collection::vec(any::<u8>(), 40), shift in any::<u32>()) {
        options[0] = SACK;
        let half = Half { out: Seq(1), input: Seq(2), clock_out: 3, clock_in: 4, port: 5 };
        let s = Said { at: 0, ack: Some(0), sacks: vec![(1, 2), (3, 4)], times: None, flags: 0, bytes: vec![1; 100] };
        let mut packet = half.packet(true, false, &s, 1);
        let n = packet.len() - 100 - 40;
        packet[n..n + options.len().min(20)].copy_from_slice(&options[..options.len().min(20)]);
        let mut splice = splice(&half, &half, (0, 0));
        splice.output.seq = shift;
        if let Ok(segment) = Segment::parse(&packet) {
            let mut corrected = Vec::new();
            splice.to_peer(&segment, &mut corrected);
            prop_assert_eq!(corrected.len(), packet.len());
            prop_assert!(Segment::parse(&corrected).unwrap().checksum_ok());
        }
    }
}

/// The end of the sequence space lies in the middle of what is sent.
#[test]
fn numbers_wrap() {
    let local = Half { out: Seq(10), input: Seq(u32::MAX - 2), clock_out: 5, clock_in: 6, port: 7 };
    let wire = Half { out: Seq(u32::MAX - 4), input: Seq(u32::MAX - 2), clock_out: u32::MAX, clock_in: 6, port: 7 };
    let splice = splice(&local, &wire, (0, 0));
    let s = Said { at: 3, ack: Some(9), sacks: vec![], times: Some((2, 1)), flags: 0, bytes: b"across".to_vec() };
    let mut corrected = Vec::new();
    splice.to_peer(&Segment::parse(&local.packet(true, false, &s, 1)).unwrap(), &mut corrected);
    let got = Segment::parse(&corrected).unwrap();
    assert_eq!((got.seq(), got.ack()), (Seq(u32::MAX - 1), Seq(6)));
    assert_eq!(got.options().timestamps, Some((1, 7)));
    assert_eq!(seq::at(wire.out.add(u64::MAX), 3), got.seq());
}
