//! The session table on this machine's disk, which `tcpr sessions` reads. Nothing else depends on it: where it cannot be
//! written the manager goes on without it.

use std::path::Path;

use tcpr_session::store::Store;

use crate::table::Table;

pub(super) struct LocalRecord(Option<Table>);

impl LocalRecord {
    pub(super) fn new(state_dir: &Path) -> LocalRecord {
        LocalRecord(Table::new(state_dir).map_err(|error| log::warn!(error:%; "no session table")).ok())
    }

    /// Records were applied to the store.
    pub(super) fn note(&mut self, store: &Store, records: &[u8]) {
        if let Some(Err(error)) = self.0.as_mut().map(|table| table.note(store, records)) {
            log::warn!(error:%; "the session table is given up");
            self.delete();
        }
    }

    /// The store was emptied.
    pub(super) fn clear(&mut self) {
        if let Some(table) = &mut self.0 {
            table.clear();
        }
    }

    /// What it says would be out of date from now on.
    pub(super) fn delete(&mut self) {
        if let Some(Err(error)) = self.0.take().map(Table::delete) {
            log::debug!(error:%; "session table");
        }
    }
}
