//! A packet from anywhere: what is read of it, and what is made of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcpr_session::segment::{completed, reset_for, Segment};
use tcpr_session::seq::Seq;

fuzz_target!(|packet: &[u8]| {
    let Ok(segment) = Segment::parse(packet) else {
        assert!(completed(packet, true).is_none(), "made of bytes that are no segment");
        return;
    };
    let (options, sacks) = (segment.options(), segment.sacks().count());
    assert!(options.window_scale.is_none_or(|shift| shift <= 14) && sacks <= 4);

    // A copy with other numbers is a whole packet, and says the same otherwise.
    let mut copy = Vec::new();
    segment.rewrite(Seq(7), Seq(9), &mut copy);
    let changed = Segment::parse(&copy).expect("a copy of a segment is a segment");
    assert!(changed.checksum_ok());
    assert_eq!((changed.seq(), changed.ack()), (Seq(7), Seq(9)));
    assert_eq!((changed.source(), changed.destination()), (segment.source(), segment.destination()));
    assert_eq!((changed.flags(), changed.window(), changed.payload()), (segment.flags(), segment.window(), segment.payload()));
    assert_eq!(changed.options(), options);

    segment.rewrite_inline(Seq(3), &mut copy);
    let inline = Segment::parse(&copy).expect("a copy of a segment is a segment");
    assert!(inline.checksum_ok() && !inline.has_unknown_options());
    assert_eq!((inline.ack(), inline.payload()), (Seq(3), segment.payload()));

    for header in [segment.plain_syn(), segment.bare()].into_iter().flatten() {
        let header = Segment::parse(&header).expect("the header of a segment is a segment");
        assert!(header.checksum_ok() && header.payload().is_empty() && !header.has_unknown_options());
        assert_eq!((header.seq(), header.ack(), header.options()), (segment.seq(), segment.ack(), options));
    }

    let reset = reset_for(&segment);
    let reset = Segment::parse(&reset).expect("a reset is a segment");
    assert!(reset.checksum_ok());
    assert_eq!((reset.source(), reset.destination(), reset.seq()), (segment.destination(), segment.source(), segment.ack()));

    assert_eq!(completed(packet, false).is_some(), segment.checksum_ok());
    let complete = completed(packet, true).expect("a segment");
    assert!(Segment::parse(&complete).expect("a segment").checksum_ok());
});
