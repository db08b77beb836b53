//! A trace from the partner: whatever stands in it, a follower ends or waits, what it reads can be told in words, and what it
//! reads can be written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcpr_session::trace::{longest, Cursor, Step};

/// The trace from where the cursor is.
fn rest<'a>(cursor: &Cursor, trace: &'a [u8]) -> &'a [u8] {
    &trace[cursor.position() as usize..]
}

fuzz_target!(|trace: &[u8]| {
    let (mut cursor, mut writer) = (Cursor::default(), Cursor::default());
    let mut again = Vec::new();
    while let Ok(Some(record)) = cursor.peek(rest(&cursor, trace)) {
        assert!(record.to_string().starts_with("thread "));
        let (thread, call, fd) = (record.thread, record.call, record.fd);
        let at = again.len();
        again.resize(at + longest(record.data.len()), 0);
        let len = writer.append(&record, &[record.data], &mut again[at..]).expect("there is room");
        again.truncate(at + len);
        match cursor.step(rest(&cursor, trace), thread, call, fd) {
            Step::Result(same) | Step::Before(same) => assert_eq!(same, record),
            other => panic!("{other:?}"),
        }
        // What another program would do.
        if let Step::Diverged(divergence) = cursor.step(rest(&cursor, trace), thread, call, fd ^ 1) {
            assert!(divergence.to_string().starts_with("record "));
        }
        let _ = cursor.check_output(record, [trace].into_iter()).map_err(|divergence| divergence.to_string());
        let before = cursor.position();
        cursor.executed();
        assert!(before < cursor.position() && cursor.position() <= trace.len() as u64);
    }
    // Markers are not written again; all others are, and not in more bytes.
    assert!(again.len() <= trace.len());
    let (mut first, mut second) = (Cursor::default(), Cursor::default());
    loop {
        let records = (first.peek(rest(&first, trace)), second.peek(rest(&second, &again)));
        match records {
            (Ok(Some(one)), Ok(Some(other))) => assert_eq!(one, other),
            (_, end) => {
                assert_eq!(end, Ok(None));
                break;
            }
        }
        first.executed();
        second.executed();
    }
});
