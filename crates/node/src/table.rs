//! The local record: a memory-mapped table of the sessions, updated in place without a system call. `tcpr sessions`
//! reads it: it costs a manager nothing, and tells what a dead one held.
//!
//! The file has a header of 64 bytes (magic, process id, generation) and slots of 128, native byte order (it never leaves
//! the machine). A slot begins with a counter that is odd while the slot is written; what is of another generation than
//! the header's is no session any more.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{fence, Ordering};

use memmap2::MmapMut;
use serde::Serialize;
use tcpr_session::record::{self, Record};
use tcpr_session::store::{Session, Store};
use tcpr_session::tuple::{BySession, SessionId};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

const MAGIC: [u8; 8] = *b"TCPRTBL1";
const HEADER: usize = 64;
const SLOT: usize = 128;
/// Slots of a new table.
const FIRST: usize = 256;
/// Most slots that a reader believes in.
const MOST: usize = 1 << 24;
/// How much of it is read at a time.
const CHUNK: usize = 512 * SLOT;
/// How often a slot is read again that changes all the time.
const AGAIN: usize = 10_000;

const USED: u8 = 1;
const ESTABLISHED: u8 = 2;
const IN_FIN: u8 = 4;
const OUT_FIN: u8 = 8;
const TORN: u8 = 16;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct Slot {
    sequence: u32,
    session: u32,
    local: [u8; 16],
    peer: [u8; 16],
    local_port: u16,
    peer_port: u16,
    flags: u8,
    family: u8,
    reserved: [u8; 2],
    in_done: u64,
    in_stored: u64,
    out_acked: u64,
    out_done: u64,
    generation: u32,
    unused: [u8; SLOT - 84],
}

/// What is shown of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SessionRow {
    /// Its number, the same on both members.
    pub session: SessionId,
    /// Virtual IP and port.
    pub local: SocketAddr,
    /// The remote end.
    pub peer: SocketAddr,
    /// The handshake is complete.
    pub established: bool,
    /// Input before this offset is done.
    pub in_done: u64,
    /// Input before this offset is in the store.
    pub in_stored: u64,
    /// Output before this offset was acknowledged by the peer.
    pub out_acked: u64,
    /// Output before this offset may leave.
    pub out_done: u64,
    /// The peer has ended its stream.
    pub peer_finished: bool,
    /// The application has ended its stream.
    pub finished: bool,
    /// Its state could not be known after a crash.
    pub torn: bool,
}

impl SessionRow {
    /// What is shown of this one.
    #[must_use]
    pub fn of(s: &Session) -> SessionRow {
        SessionRow {
            session: s.open.session,
            local: s.open.tuple.local,
            peer: s.open.tuple.peer,
            established: s.established,
            in_done: s.in_done,
            in_stored: s.in_end(),
            out_acked: s.out_acked,
            out_done: s.out_done,
            peer_finished: s.in_fin,
            finished: s.out_fin,
            torn: s.torn,
        }
    }
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn address(octets: [u8; 16], family: u8) -> IpAddr {
    let ip = Ipv6Addr::from(octets);
    match (family, ip.to_ipv4_mapped()) {
        (4, Some(ip)) => IpAddr::V4(ip),
        (4, None) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(ip),
    }
}

impl Slot {
    fn of(row: &SessionRow, generation: u32, sequence: u32) -> Slot {
        let flags = [(row.established, ESTABLISHED), (row.peer_finished, IN_FIN), (row.finished, OUT_FIN), (row.torn, TORN)];
        Slot {
            sequence,
            session: row.session,
            local: octets(row.local.ip()),
            peer: octets(row.peer.ip()),
            local_port: row.local.port(),
            peer_port: row.peer.port(),
            flags: flags.iter().filter(|(on, _)| *on).fold(USED, |all, (_, flag)| all | flag),
            family: if row.local.is_ipv4() { 4 } else { 6 },
            reserved: [0; 2],
            in_done: row.in_done,
            in_stored: row.in_stored,
            out_acked: row.out_acked,
            out_done: row.out_done,
            generation,
            unused: [0; SLOT - 84],
        }
    }

    fn row(&self) -> Option<SessionRow> {
        let has = |flag| self.flags & flag != 0;
        has(USED).then(|| SessionRow {
            session: self.session,
            local: SocketAddr::new(address(self.local, self.family), self.local_port),
            peer: SocketAddr::new(address(self.peer, self.family), self.peer_port),
            established: has(ESTABLISHED),
            in_done: self.in_done,
            in_stored: self.in_stored,
            out_acked: self.out_acked,
            out_done: self.out_done,
            peer_finished: has(IN_FIN),
            finished: has(OUT_FIN),
            torn: has(TORN),
        })
    }
}

/// Where the table of a service is.
#[must_use]
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("sessions")
}

/// The table of a running manager.
pub struct Table {
    path: PathBuf,
    file: File,
    map: MmapMut,
    slots: BySession<u32>,
    free: Vec<u32>,
    generation: u32,
    touched: Vec<SessionId>,
}

impl Table {
    /// A new table, in place of the one that a dead manager left. The caller holds the service's lock.
    ///
    /// # Errors
    /// The file cannot be made, or its disk is full.
    pub fn new(state_dir: &Path) -> io::Result<Table> {
        let path = path(state_dir);
        let context = |e: io::Error| io::Error::new(e.kind(), format!("session table {}: {e}", path.display()));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).map_err(context)?;
        let mut map = reserve(&file, FIRST).map_err(context)?;
        map[8..12].copy_from_slice(&std::process::id().to_ne_bytes());
        map[..8].copy_from_slice(&MAGIC);
        let free = (0..FIRST as u32).rev().collect();
        Ok(Table { path, file, map, slots: BySession::default(), free, generation: 0, touched: Vec::new() })
    }

    /// Records were applied to the store: writes what they changed.
    pub fn note(&mut self, store: &Store, mut records: &[u8]) -> io::Result<()> {
        let mut touched = std::mem::take(&mut self.touched);
        // Whoever applied them has complained of what is wrong with them.
        while let Ok(Some(record)) = record::decode(&mut records) {
            let mut note = |session| {
                if touched.last() != Some(&session) {
                    touched.push(session);
                }
            };
            match record {
                Record::Open(open) => note(open.session),
                Record::Sync(sync) => note(sync.session),
                Record::Adopted(adopted) => note(adopted.session),
                Record::Input { session, .. } | Record::Output { session, .. } | Record::End { session, .. } => {
                    note(session);
                }
                Record::Commit { entries, .. } => entries.iter().for_each(|e| note(e.get().session)),
                // They have no place in the table.
                Record::Cause { .. } | Record::Options { .. } | Record::Data(_) | Record::Trace { .. } => {}
            }
        }
        touched.sort_unstable();
        touched.dedup();
        let written = touched.drain(..).try_for_each(|id| match store.get(id) {
            Some(session) => self.write(&SessionRow::of(session)),
            None => {
                self.remove(id);
                Ok(())
            }
        });
        self.touched = touched;
        written
    }

    /// The store was emptied: whatever its size, a word is written.
    pub fn clear(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.map[12..16].copy_from_slice(&self.generation.to_ne_bytes());
        self.slots = BySession::default();
        self.free = (0..((self.map.len() - HEADER) / SLOT) as u32).rev().collect();
    }

    /// An orderly end: nothing is left to tell.
    pub fn delete(self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }

    fn write(&mut self, row: &SessionRow) -> io::Result<()> {
        let slot = match self.slots.get(&row.session) {
            Some(slot) => *slot,
            None => {
                if self.free.is_empty() {
                    self.grow()?;
                }
                let slot = self.free.pop().expect("grown");
                self.slots.insert(row.session, slot);
                slot
            }
        };
        let generation = self.generation;
        self.put(slot, |sequence| Slot::of(row, generation, sequence));
        Ok(())
    }

    fn remove(&mut self, id: SessionId) {
        if let Some(slot) = self.slots.remove(&id) {
            self.put(slot, |sequence| Slot { sequence, ..Slot::new_zeroed() });
            self.free.push(slot);
        }
    }

    fn put(&mut self, slot: u32, content: impl FnOnce(u32) -> Slot) {
        let at = HEADER + slot as usize * SLOT;
        let bytes = &mut self.map[at..at + SLOT];
        let before = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) & !1;
        bytes[..4].copy_from_slice(&(before.wrapping_add(1)).to_ne_bytes());
        fence(Ordering::Release);
        let content = content(before.wrapping_add(2));
        bytes[4..].copy_from_slice(&content.as_bytes()[4..]);
        fence(Ordering::Release);
        bytes[..4].copy_from_slice(&content.as_bytes()[..4]);
    }

    fn grow(&mut self) -> io::Result<()> {
        let before = (self.map.len() - HEADER) / SLOT;
        self.map = reserve(&self.file, before * 2)?;
        self.free.extend((before as u32..before as u32 * 2).rev());
        Ok(())
    }
}

/// Room for so many slots on the disk, or a full one would be a SIGBUS later.
fn reserve(file: &File, slots: usize) -> io::Result<MmapMut> {
    let length = (HEADER + slots * SLOT) as libc::off_t;
    // SAFETY: no pointers; the descriptor is that of `file`.
    let error = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    // SAFETY: the file is as long as the mapping, and whoever holds the service's lock is the only one to write
    // it or to make it shorter.
    unsafe { MmapMut::map_mut(file) }
}

/// What the manager that writes this table, or wrote it last, says of its sessions, by number; and its process id. It may
/// go on writing meanwhile: each row is whole.
///
/// # Errors
/// There is no table, or it is none.
pub fn read(path: &Path) -> io::Result<(u32, Vec<SessionRow>)> {
    let file = File::open(path)?;
    let mut header = [0; HEADER];
    let whole = read_at(&file, &mut header, 0)? == HEADER;
    if !whole || header[..8] != MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} is no session table", path.display())));
    }
    let mut rows: Vec<SessionRow> = Vec::new();
    let generation = header[12..16].to_owned();
    let (mut before, mut slots, mut after) = (vec![0; CHUNK], vec![0; CHUNK], vec![0; CHUNK]);
    for chunk in 0..MOST * SLOT / CHUNK {
        let at = HEADER + chunk * CHUNK;
        let mut length = read_stable(&file, at, [&mut before, &mut slots, &mut after])?;
        length -= length % SLOT;
        for from in (0..length).step_by(SLOT) {
            let mut bytes = slots[from..from + SLOT].to_owned();
            let mut sequences = [&before, &slots, &after].map(|read| read[from..from + 4].to_owned());
            // One that is being written now is read again by itself.
            for _ in 0..AGAIN {
                if sequences[0] == sequences[1] && sequences[1] == sequences[2] && sequences[0][0] & 1 == 0 {
                    break;
                }
                let (mut a, mut b) = ([0; SLOT], [0; SLOT]);
                bytes.resize(SLOT, 0);
                read_stable(&file, at + from, [&mut a, &mut bytes, &mut b])?;
                sequences = [&a[..4], &bytes[..4], &b[..4]].map(<[u8]>::to_owned);
            }
            let slot = Slot::read_from_bytes(&bytes).ok().filter(|slot| slot.generation.to_ne_bytes()[..] == generation[..]);
            rows.extend(slot.and_then(|slot| slot.row()));
        }
        if length < CHUNK {
            break;
        }
    }
    rows.sort_unstable_by_key(|row| row.session);
    Ok((u32::from_ne_bytes([header[8], header[9], header[10], header[11]]), rows))
}

/// Reads the same three times, each after the one before is over: a slot whose counter is even and the same in all of them was
/// not written while the second read it. Returns how much there is.
fn read_stable(file: &File, at: usize, buffers: [&mut [u8]; 3]) -> io::Result<usize> {
    let mut least = usize::MAX;
    for buffer in buffers {
        least = least.min(read_at(file, buffer, at)?);
    }
    Ok(least)
}

/// Reads as much as there is.
fn read_at(file: &File, buffer: &mut [u8], at: usize) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read_at(&mut buffer[length..], (at + length) as u64) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tcpr_session::record::{encode_end, EndReason, Open};
    use tcpr_session::seq::Seq;
    use tcpr_session::tuple::FourTuple;

    fn open(session: SessionId) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (a, b) = if session.is_multiple_of(2) { ("192.0.2.200", "192.0.2.9") } else { ("2001:db8::1", "2001:db8::9") };
        Open {
            session,
            tuple: FourTuple {
                local: SocketAddr::new(a.parse().expect("ip"), 5555),
                peer: SocketAddr::new(b.parse().expect("ip"), 1000 + session as u16),
            },
            isn_in: Seq(1),
            isn_out: Seq(2),
            mss: 1460,
            shifts: Some((7, 7)),
            sack: true,
            timestamps: true,
            established: true,
            window: 100,
            ts_recent: 1,
            ts_value: 2,
            in_done: 7,
            out_acked: 9,
            internal_port: 0,
        }
        .encode(&mut bytes);
        bytes
    }

    /// The counter of a slot shows that it changed while it was read: no row is ever half the old and half the new.
    #[test]
    fn rows_are_whole_while_they_are_written() {
        let dir = std::env::temp_dir().join(format!("tcpr-table-busy-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let mut table = Table::new(&dir).expect("a table");
        let (mut store, mut opens) = (Store::new(), Vec::new());
        (1..=100).for_each(|session| opens.extend(open(session)));
        store.apply_batch(&opens).expect("fits");
        table.note(&store, &opens).expect("written");
        let row = |session: SessionId, n: u64| SessionRow {
            in_done: n,
            in_stored: n,
            out_acked: n,
            out_done: n,
            ..SessionRow::of(store.get(session).expect("there"))
        };
        (1..=100).for_each(|session| table.write(&row(session, 0)).expect("written"));
        let (done, at) = (std::sync::atomic::AtomicBool::new(false), path(&dir));
        let reads = std::thread::scope(|threads| {
            let reader = threads.spawn(|| {
                let mut reads = 0;
                while reads < 200 {
                    let (_, rows) = read(&at).expect("read");
                    assert_eq!(rows.len(), 100);
                    for r in rows {
                        assert!([r.in_done, r.in_stored, r.out_acked] == [r.out_done; 3], "{r:?}");
                    }
                    reads += 1;
                }
                done.store(true, Ordering::Relaxed);
                reads
            });
            let mut n = 0;
            while !done.load(Ordering::Relaxed) && !reader.is_finished() {
                n += 1;
                (1..=100).for_each(|session| table.write(&row(session, n)).expect("written"));
            }
            reader.join().expect("no torn row")
        });
        assert_eq!(reads, 200);
        // Emptied: nothing is left to see, and the slots are used again.
        table.clear();
        assert_eq!(read(&path(&dir)).expect("read").1, []);
        table.note(&store, &open(7)).expect("written");
        assert_eq!(read(&path(&dir)).expect("read").1, [SessionRow::of(store.get(7).expect("there"))]);
        std::fs::remove_dir_all(&dir).expect("removed");
    }

    /// To list the sessions costs a manager nothing, and the table costs it what changes, whatever the number of sessions.
    #[test]
    fn the_table_of_a_large_service_costs_what_changes() {
        const SESSIONS: u32 = 100_000;
        let dir = std::env::temp_dir().join(format!("tcpr-table-large-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let mut table = Table::new(&dir).expect("a table");
        let (mut store, mut opens) = (Store::new(), Vec::new());
        for session in 1..=SESSIONS {
            let mut bytes = open(session);
            // A port of its own is not enough for so many: the address in the record tells them apart.
            let peer = SocketAddr::from(([10, (session >> 16) as u8, (session >> 8) as u8, session as u8], 1024));
            let Ok(Some(Record::Open(mut o))) = record::decode(&mut &bytes[..]) else { panic!("an opening") };
            o.tuple = FourTuple { local: ([192, 0, 2, 200], 5555).into(), peer };
            bytes.clear();
            o.encode(&mut bytes);
            opens.extend(bytes);
        }
        store.apply_batch(&opens).expect("fits");
        table.note(&store, &opens).expect("written");
        let differ = |a: &[u8], b: &[u8]| a.chunks(SLOT).zip(b.chunks(SLOT)).filter(|(a, b)| a != b).count();
        let whole = table.map.to_vec();
        let mut more = Vec::new();
        [5, 70_000].into_iter().for_each(|session| encode_end(session, EndReason::Closed, &mut more));
        record::encode_input(99, 7, b"hello", false, &mut more);
        store.apply_batch(&more).expect("fits");
        table.note(&store, &more).expect("written");
        // Slots do not begin where chunks of the same size do: each is in two of them.
        assert!(differ(&whole, &table.map) <= 6);
        let rows = read(&path(&dir)).expect("read").1;
        assert_eq!(rows.len(), SESSIONS as usize - 2);
        assert!(rows.iter().all(|row| *row == SessionRow::of(store.get(row.session).expect("there"))));
        let whole = table.map.to_vec();
        table.clear();
        assert_eq!(whole.iter().zip(table.map.iter()).filter(|(a, b)| a != b).count(), 1);
        assert_eq!(read(&path(&dir)).expect("read").1, []);
        std::fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn tells_what_the_store_held() {
        let dir = std::env::temp_dir().join(format!("tcpr-table-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let mut table = Table::new(&dir).expect("a table");
        let mut store = Store::new();
        let mut all = Vec::new();
        for session in 1..=3 * FIRST as u32 {
            all.extend(open(session));
        }
        store.apply_batch(&all).expect("fits");
        table.note(&store, &all).expect("written");
        let rows = |store: &Store| {
            let mut rows: Vec<_> = store.iter().map(SessionRow::of).collect();
            rows.sort_unstable_by_key(|r| r.session);
            rows
        };
        assert_eq!(read(&path(&dir)).expect("read"), (std::process::id(), rows(&store)));

        let mut ends = Vec::new();
        for session in (1..=3 * FIRST as u32).filter(|s| s % 3 != 0) {
            encode_end(session, EndReason::ResetByPeer, &mut ends);
        }
        store.apply_batch(&ends).expect("fits");
        table.note(&store, &ends).expect("written");
        assert_eq!(read(&path(&dir)).expect("read").1, rows(&store));
        table.clear();
        assert_eq!(read(&path(&dir)).expect("read").1, []);
        table.delete().expect("deleted");
        assert!(read(&path(&dir)).is_err());
        std::fs::write(path(&dir), [0; 40]).expect("written");
        assert!(read(&path(&dir)).is_err());
        std::fs::remove_dir_all(&dir).expect("removed");
    }
}
