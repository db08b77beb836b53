//! A log from a partner: a store takes what fits, and what it took it can tell to another store, which is then the same.
//!
//! `crates/session/tests/hostile.rs` takes made-up logs further, into a filter that takes over.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcpr_session::record;
use tcpr_session::store::Store;

fuzz_target!(|log: &[u8]| {
    let mut store = Store::new();
    let mut rest = log;
    while let Ok(Some(record)) = record::decode(&mut rest) {
        // A record that does not fit breaks the log: a replica asks for a snapshot then. Here the next ones are tried, too.
        let _ = store.apply(record);
    }
    let mut ids: Vec<u32> = store.iter().map(|session| session.open.session).collect();
    ids.sort_unstable();
    let mut snapshot = Vec::new();
    for &id in &ids {
        store.snapshot(id, &mut snapshot);
    }
    let mut replica = Store::new();
    replica.apply_batch(&snapshot).expect("what a store took it can tell");
    assert_eq!(replica.len(), store.len());
    store.drop_uncommitted();
    replica.drop_uncommitted();
    for id in ids {
        let (ours, theirs) = (store.get(id).expect("it is there"), replica.get(id).expect("it was told"));
        assert_eq!((ours.in_done, ours.in_end(), ours.in_fin), (theirs.in_done, theirs.in_end(), theirs.in_fin));
        assert_eq!((ours.out_done, ours.out_end(), ours.out_base), (theirs.out_done, theirs.out_end(), theirs.out_base));
        assert_eq!((ours.out_fin, ours.closed, ours.torn), (theirs.out_fin, theirs.closed, theirs.torn));
    }
});
