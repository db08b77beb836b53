//! What the program gives us to keep: its answers are errno and words.

use tcpr_session::data::{MAX_KEY, MAX_TURN, MAX_VALUE};
use tcpr_session::filter::Refused;

use super::Manager;
use crate::channel::wire::{Bytes, Reply, Request};

impl Manager {
    /// A request that is about data.
    pub(super) fn answer_data(&mut self, id: u32, number: u32, request: Request) {
        // It counts with what the process did before.
        self.drain_apps();
        self.filter.at(self.now());
        let reply = if self.standby.is_hot() {
            let text = "a program with standby = \"hot\" keeps its memory: tcpr takes no data from it";
            Reply::Error { errno: libc::ENOTSUP, text: text.to_owned() }
        } else {
            self.handle_data(id, request).unwrap_or_else(|why| self.refusal(why))
        };
        self.apps.reply(id, number, reply);
    }

    fn handle_data(&mut self, id: u32, request: Request) -> Result<Reply, Refused> {
        Ok(match request {
            Request::Checkpoint { thread, handle, data } => {
                self.filter.checkpoint(id, thread, handle, &data.0)?;
                Reply::Ok
            }
            Request::Restore { handle } => Reply::Data(self.filter.restore_data(id, handle)?.map(|data| Bytes(data.to_vec()))),
            Request::Put { thread, key, value } => {
                self.filter.put(id, thread, &key.0, value.as_ref().map(|value| &value.0[..]))?;
                Reply::Ok
            }
            Request::Get { thread, key } => Reply::Data(self.filter.get(id, thread, &key.0).map(|value| Bytes(value.to_vec()))),
            Request::NextKey { after } => Reply::Data(self.filter.next_key(id, &after.0).map(Bytes)),
            _ => unreachable!("no other request is about data"),
        })
    }

    fn refusal(&self, why: Refused) -> Reply {
        let (errno, text) = match why {
            Refused::NoSession => (libc::ENOTCONN, "the session is over, or torn for good".to_owned()),
            Refused::NotMaster => (libc::EROFS, "this member is not the master".to_owned()),
            Refused::TooLong => (libc::EMSGSIZE, format!("a key has 1 to {MAX_KEY} bytes, a value at most {MAX_VALUE}")),
            Refused::NoValue => (libc::ENOENT, "there is no such key".to_owned()),
            Refused::Full => {
                let room = self.config.service.data_bytes;
                (libc::ENOSPC, format!("the data of the service has no room for this (data_bytes = {room})"))
            }
            Refused::TurnFull => (libc::ENOBUFS, format!("a turn has at most {MAX_TURN} bytes of data: call tcpr_commit")),
        };
        Reply::Error { errno, text }
    }
}
