//! The world outside a process, and the two ways to run one: as a leader in the world, and as a follower of a trace.

use std::collections::BTreeMap;

use tcpr_session::trace::{longest, Call, Cursor, Hash, Marker, Program as Side, Record, Step};

use crate::program::{mix, mix_bytes, Ask, Process, CONNECTIONS};
use crate::rng::Rng;

const EAGAIN: i64 = -11;
const EBUSY: i64 = -16;
const SIGNAL: i64 = 15;

#[derive(Clone, Debug)]
pub struct World {
    /// Decides what happens next: whose turn it is, and what calls give.
    rng: Rng,
    clock: i64,
    processes: i64,
    /// Bytes that were taken from each peer's stream.
    consumed: [u64; CONNECTIONS],
    /// What each peer has got.
    pub sent: [Vec<u8>; CONNECTIONS],
    /// At the end of what was sent: bytes that the program is still to write.
    ahead: [usize; CONNECTIONS],
}

impl Clone for Rng {
    fn clone(&self) -> Self {
        Self(self.0)
    }
}

impl std::fmt::Debug for Rng {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// What the peers say.
fn input(connection: usize, at: u64) -> u8 {
    mix(connection as u64 + 77, at) as u8
}

impl World {
    pub fn new(seed: u64) -> Self {
        let (rng, clock, processes) = (Rng(seed), 1_700_000_000_000_000_000, 4000);
        Self { rng, clock, processes, consumed: [0; CONNECTIONS], sent: Default::default(), ahead: [0; CONNECTIONS] }
    }

    /// The leader is dead. What it has sent and received after this moment of the world is sent and received.
    pub fn after_the_death_of(&mut self, later: World) {
        (self.consumed, self.sent, self.ahead) = (later.consumed, later.sent, later.ahead);
    }

    /// The sessions stand where the follower is: input behind that is given again, surplus output is not sent again.
    fn restore(&mut self, process: &Process) {
        for connection in 0..CONNECTIONS {
            assert!(process.read[connection] <= self.consumed[connection], "it has read what never came");
            self.consumed[connection] = process.read[connection];
            let sent = self.sent[connection].len() as u64;
            let ahead = sent.checked_sub(process.written[connection]).expect("what was written was sent");
            self.ahead[connection] = ahead as usize;
        }
    }

    /// All that was written was sent, and all that was read is what came, in order.
    pub fn check_streams(&self, process: &Process) {
        for connection in 0..CONNECTIONS {
            assert_eq!(self.sent[connection].len() as u64, process.written[connection]);
            let came: Vec<u8> = (0..process.read[connection]).map(|at| input(connection, at)).collect();
            assert_eq!(process.input[connection], mix_bytes(0, &came));
        }
    }

    fn perform(&mut self, ask: &Ask) -> (i64, Vec<u8>) {
        match ask {
            Ask::Read { connection, most } => {
                let n = self.rng.below(*most as u64 + 1);
                if n == 0 {
                    return (EAGAIN, Vec::new());
                }
                let at = self.consumed[*connection];
                self.consumed[*connection] += n;
                (n as i64, (at..at + n).map(|at| input(*connection, at)).collect())
            }
            Ask::Write { connection, bytes } => {
                let n = self.rng.below(bytes.len() as u64 + 1) as usize;
                if n == 0 {
                    return (EAGAIN, Vec::new());
                }
                let (sent, ahead) = (&mut self.sent[*connection], &mut self.ahead[*connection]);
                let again = n.min(*ahead);
                let from = sent.len() - *ahead;
                assert_eq!(sent[from..from + again], bytes[..again], "the peer has other bytes at this position");
                *ahead -= again;
                sent.extend_from_slice(&bytes[again..n]);
                let mut hash = Hash::new();
                hash.add(&bytes[..n]);
                (n as i64, hash.finish().to_ne_bytes().to_vec())
            }
            Ask::Clock(_) => {
                self.clock += self.rng.below(1_000_000) as i64;
                (self.clock, Vec::new())
            }
            Ask::Random => (8, self.rng.next().to_ne_bytes().to_vec()),
            Ask::Id => (4000, Vec::new()),
            Ask::Wait => {
                let events = self.rng.below(3);
                (events as i64, (0..events * 12).map(|_| self.rng.next() as u8).collect())
            }
            Ask::Fork => {
                self.processes += 1;
                (self.processes, Vec::new())
            }
            Ask::Spawn(thread) => (*thread as i64, Vec::new()),
            Ask::Lock(_) | Ask::TryLock(_) | Ask::Join(_) | Ask::End => (0, Vec::new()),
        }
    }
}

/// A process that is recorded.
pub struct Leader {
    pub process: Process,
    pub world: World,
    pub cursor: Cursor,
    pub trace: Vec<u8>,
    /// Threads run between a call's effect and its record, and before they compute.
    interleaved: bool,
    /// Calls that had their effect, and are not in the trace.
    under_way: BTreeMap<usize, (i64, Vec<u8>)>,
    /// Threads that are not at their next call yet.
    computing: Vec<usize>,
}

impl Leader {
    pub fn new(process: Process, world: World, interleaved: bool) -> Self {
        let mut new = Self::of(process, world, Cursor::default(), Vec::new(), interleaved);
        new.process.compute(0);
        new
    }

    fn of(process: Process, world: World, cursor: Cursor, trace: Vec<u8>, interleaved: bool) -> Self {
        Self { process, world, cursor, trace, interleaved, under_way: BTreeMap::new(), computing: Vec::new() }
    }

    pub fn promoted(process: Process, mut world: World, cursor: Cursor, trace: Vec<u8>, interleaved: bool) -> Self {
        world.restore(&process);
        let mut new = Self::of(process, world, cursor, trace, interleaved);
        let marker = Record { thread: 0, call: Call::Marker, fd: 0, result: Marker::Promoted as i64, data: &[] };
        new.append(&marker);
        new
    }

    pub fn run(&mut self) {
        while self.step(true) {}
    }

    pub fn run_steps(&mut self, steps: u64) {
        for _ in 0..steps {
            self.step(true);
        }
    }

    pub fn run_until(&mut self, records: u64) {
        while self.cursor.records() < records {
            assert!(self.step(true), "it ends before that");
        }
    }

    /// One call that is not recorded.
    pub fn perform_one(&mut self) {
        self.step(false);
    }

    fn may_go_on(&self, thread: usize) -> bool {
        self.process.is_running(thread)
            && !self.computing.contains(&thread)
            && match self.process.ask(thread) {
                _ if self.under_way.contains_key(&thread) => true,
                Ask::Lock(lock) => !self.process.is_locked(lock),
                Ask::Join(other) => self.process.has_ended(other),
                _ => true,
            }
    }

    /// Lets one thread go on. False: all have ended.
    fn step(&mut self, recorded: bool) -> bool {
        let threads: Vec<usize> = (0..self.process.threads()).filter(|&thread| self.may_go_on(thread)).collect();
        if !self.computing.is_empty() && (threads.is_empty() || self.world.rng.percent(40)) {
            let thread = self.computing.swap_remove(self.world.rng.below(self.computing.len() as u64) as usize);
            self.process.compute(thread);
            return true;
        }
        if threads.is_empty() {
            assert!((0..self.process.threads()).all(|thread| !self.process.is_running(thread)), "all threads wait");
            return false;
        }
        let thread = threads[self.world.rng.below(threads.len() as u64) as usize];
        let ask = self.process.ask(thread);
        let (result, data) = match self.under_way.remove(&thread) {
            Some(done) => done,
            None => {
                if ask == Ask::Wait && self.world.rng.percent(30) {
                    if recorded {
                        let data = [1; 128];
                        self.append(&Record { thread: thread as u16, call: Call::Signal, fd: -1, result: SIGNAL, data: &data });
                        self.process.handle(thread, SIGNAL);
                    }
                    return true;
                }
                let done = self.perform(&ask);
                if !recorded {
                    return true;
                }
                if self.interleaved && self.world.rng.percent(50) {
                    self.under_way.insert(thread, done);
                    return true;
                }
                done
            }
        };
        let (call, fd) = ask.in_trace();
        self.append(&Record { thread: thread as u16, call, fd, result, data: &data });
        self.process.give(thread, result, &data);
        self.computes(thread);
        if let Ask::Spawn(other) = ask {
            self.computes(other);
        }
        true
    }

    fn computes(&mut self, thread: usize) {
        if self.interleaved {
            self.computing.push(thread);
        } else {
            self.process.compute(thread);
        }
    }

    fn perform(&mut self, ask: &Ask) -> (i64, Vec<u8>) {
        match *ask {
            Ask::TryLock(lock) if self.process.is_locked(lock) => return (EBUSY, Vec::new()),
            Ask::TryLock(lock) | Ask::Lock(lock) => self.process.lock(lock),
            _ => {}
        }
        self.world.perform(ask)
    }

    fn append(&mut self, record: &Record<'_>) {
        let at = self.trace.len();
        self.trace.resize(at + longest(record.data.len()), 0);
        let len = self.cursor.append(record, &[record.data], &mut self.trace[at..]).expect("there is room");
        self.trace.truncate(at + len);
    }
}

/// How a follower ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It has executed all, and waits for more, or is done.
    AtEnd,
    Diverged(String),
}

/// Executes a trace with threads that run in any order.
pub fn follow(mut process: Process, mut cursor: Cursor, trace: &[u8], rng: &mut Rng) -> (Process, Cursor, Ended) {
    // Threads that are not at their next call yet.
    let mut computing: Vec<usize> = vec![0];
    loop {
        if !computing.is_empty() && rng.percent(40) {
            let thread = computing.swap_remove(rng.below(computing.len() as u64) as usize);
            process.compute(thread);
            continue;
        }
        let calling = |thread: &usize| process.is_running(*thread) && !computing.contains(thread);
        let threads: Vec<usize> = (0..process.threads()).filter(calling).collect();
        if threads.is_empty() {
            if computing.is_empty() {
                // Markers may stand behind the last call.
                let _ = cursor.peek(rest(&cursor, trace));
                return (process, cursor, Ended::AtEnd);
            }
            continue;
        }
        let thread = threads[rng.below(threads.len() as u64) as usize];
        let ask = process.ask(thread);
        let (call, fd) = ask.in_trace();
        let record = match cursor.step(rest(&cursor, trace), thread as u16, call, fd) {
            Step::Result(record) => record,
            Step::Before(record) => {
                cursor.executed();
                process.handle(thread, record.result);
                continue;
            }
            // Whose turn it is may have ended, if the trace was changed: nobody goes on.
            Step::Others(_) if computing.is_empty() && !turn_is_of(&mut cursor, trace, &threads) => {
                return (process, cursor, Ended::Diverged("a thread that is not there".into()));
            }
            Step::Others(_) => continue,
            Step::End => {
                computing.into_iter().for_each(|thread| process.compute(thread));
                return (process, cursor, Ended::AtEnd);
            }
            Step::Diverged(divergence) => return (process, cursor, Ended::Diverged(divergence.to_string())),
            Step::Malformed(malformed) => return (process, cursor, Ended::Diverged(malformed.to_string())),
        };
        let blocks = match ask {
            Ask::Lock(lock) => process.is_locked(lock),
            Ask::TryLock(lock) => record.result == 0 && process.is_locked(lock),
            Ask::Join(other) => !process.has_ended(other),
            _ => false,
        };
        if blocks {
            // The thread that has the lock is on its way: its unlock is no record.
            if computing.is_empty() {
                return (process, cursor, Ended::Diverged("a lock that nobody gives back".into()));
            }
            continue;
        }
        let checked = match &ask {
            Ask::Read { most, .. } => cursor.check_room(record, *most),
            Ask::Write { bytes, .. } => cursor.check_output(record, bytes.chunks(7)),
            Ask::Spawn(other) if record.result != *other as i64 => Err(cursor.diverged(record, Side::Gets(*other as i64))),
            _ => Ok(()),
        };
        if let Err(divergence) = checked {
            return (process, cursor, Ended::Diverged(divergence.to_string()));
        }
        match ask {
            Ask::Lock(lock) => process.lock(lock),
            Ask::TryLock(lock) if record.result == 0 => process.lock(lock),
            Ask::Spawn(other) => computing.push(other),
            _ => {}
        }
        process.give(thread, record.result, record.data);
        cursor.executed();
        computing.push(thread);
    }
}

/// The trace from where it goes on.
pub fn rest<'a>(cursor: &Cursor, trace: &'a [u8]) -> &'a [u8] {
    &trace[cursor.position() as usize..]
}

fn turn_is_of(cursor: &mut Cursor, trace: &[u8], threads: &[usize]) -> bool {
    matches!(cursor.peek(rest(cursor, trace)), Ok(Some(record)) if threads.contains(&usize::from(record.thread)))
}
