//! Made-up programs: threads that read, write, ask for times and random bytes, lock, fork, handle signals, and mix all that they
//! get into what they do next.

use std::rc::Rc;

use tcpr_session::trace::Call;

use crate::rng::Rng;

pub const CONNECTIONS: usize = 4;
pub const LOCKS: usize = 3;
/// Descriptors of connections begin here.
pub const FIRST: i32 = 10;

/// A step of a thread. Those marked "inside" make no call.
#[derive(Clone, Debug)]
pub enum Op {
    Read {
        connection: usize,
        most: usize,
    },
    Write {
        connection: usize,
        bytes: usize,
    },
    Clock(i32),
    Random,
    Id,
    Wait,
    Fork,
    Lock(usize),
    /// Skips so many steps if it is not got.
    TryLock(usize, usize),
    /// Inside. Only of what is locked.
    Unlock(usize),
    /// Inside: exchanges memory with other threads. Only under this lock.
    Share(usize),
    /// Inside: skips so many steps, as the thread's memory has it.
    Branch(u32, usize),
    /// Starts this thread.
    Spawn(usize),
    Join(usize),
    End,
}

#[derive(Debug)]
pub struct Program {
    threads: Vec<Vec<Op>>,
}

impl Program {
    pub fn random(rng: &mut Rng) -> Self {
        let count = rng.range(1, 4) as usize;
        let threads = (0..count)
            .map(|thread| {
                let mut ops = Vec::new();
                // The first thread starts the others, some of them late.
                let mut to_start = if thread == 0 { 1..count } else { 0..0 };
                for _ in 0..rng.range(1, 14) {
                    if rng.percent(50) {
                        ops.extend(to_start.next().map(Op::Spawn));
                    }
                    Self::statement(rng, thread, count, &mut ops);
                }
                if thread == 0 {
                    ops.extend(to_start.map(Op::Spawn));
                    ops.extend((1..count).map(Op::Join));
                }
                ops.push(Op::End);
                ops
            })
            .collect();
        Self { threads }
    }

    fn statement(rng: &mut Rng, thread: usize, count: usize, ops: &mut Vec<Op>) {
        match rng.below(10) {
            0..=4 => ops.push(Self::call(rng, thread, count)),
            5 => {
                let body: Vec<Op> = (0..rng.range(1, 3)).map(|_| Self::call(rng, thread, count)).collect();
                ops.push(Op::Branch(rng.below(20) as u32, body.len()));
                ops.extend(body);
            }
            6 => {
                let lock = rng.below(LOCKS as u64) as usize;
                ops.extend([Op::TryLock(lock, 2), Op::Share(lock), Op::Unlock(lock)]);
            }
            _ => {
                // Locks are got in one order: no two threads wait for each other.
                let first = rng.below(LOCKS as u64) as usize;
                let locks: Vec<usize> = (first..LOCKS).take(rng.range(1, 2) as usize).collect();
                for &lock in &locks {
                    ops.push(Op::Lock(lock));
                    ops.push(Op::Share(lock));
                    if rng.percent(40) {
                        ops.push(Self::call(rng, thread, count));
                        ops.push(Op::Share(lock));
                    }
                }
                ops.extend(locks.iter().rev().map(|&lock| Op::Unlock(lock)));
            }
        }
    }

    fn call(rng: &mut Rng, thread: usize, count: usize) -> Op {
        // Each connection is one thread's.
        let own: Vec<usize> = (0..CONNECTIONS).filter(|connection| connection % count == thread).collect();
        let connection = own[rng.below(own.len() as u64) as usize];
        match rng.below(12) {
            0..=3 => Op::Read { connection, most: rng.range(1, 40) as usize },
            4..=7 => Op::Write { connection, bytes: rng.range(1, 60) as usize },
            8 => Op::Clock(rng.below(2) as i32),
            9 => Op::Random,
            10 => Op::Wait,
            _ if rng.percent(50) => Op::Fork,
            _ => Op::Id,
        }
    }
}

/// Faults that tests plant.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Tricks {
    /// The program writes other bytes.
    pub other_output: bool,
    /// Locks lock nothing, and are not in the trace.
    pub no_locks: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Thread {
    started: bool,
    ended: bool,
    at: usize,
    memory: u64,
    /// Of the write that is under way: what was not taken yet.
    rest: Option<Vec<u8>>,
}

/// A process that runs such a program.
#[derive(Clone, Debug)]
pub struct Process {
    pub program: Rc<Program>,
    threads: Vec<Thread>,
    shared: [u64; LOCKS],
    locked: [bool; LOCKS],
    /// Bytes of each connection that were read and written.
    pub read: [u64; CONNECTIONS],
    pub written: [u64; CONNECTIONS],
    /// All input of each connection, mixed.
    pub input: [u64; CONNECTIONS],
    tricks: Tricks,
}

impl PartialEq for Process {
    fn eq(&self, other: &Self) -> bool {
        self.threads == other.threads
            && (self.shared, self.locked) == (other.shared, other.locked)
            && (self.read, self.written, self.input) == (other.read, other.written, other.input)
    }
}

/// What a thread asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ask {
    Read { connection: usize, most: usize },
    Write { connection: usize, bytes: Vec<u8> },
    Clock(i32),
    Random,
    Id,
    Wait,
    Fork,
    Lock(usize),
    TryLock(usize),
    Spawn(usize),
    Join(usize),
    End,
}

impl Ask {
    /// How it is in the trace.
    pub fn in_trace(&self) -> (Call, i32) {
        match *self {
            Self::Read { connection, .. } => (Call::Read, FIRST + connection as i32),
            Self::Write { connection, .. } => (Call::Write, FIRST + connection as i32),
            Self::Clock(clock) => (Call::Clock, clock),
            Self::Random => (Call::Random, 0),
            Self::Id => (Call::Id, 0),
            Self::Wait => (Call::EpollWait, 4),
            Self::Fork => (Call::Fork, 0),
            Self::Lock(_) => (Call::Lock, 0),
            Self::TryLock(_) => (Call::TryLock, 0),
            Self::Spawn(_) => (Call::Thread, 0),
            Self::Join(_) => (Call::Join, 0),
            Self::End => (Call::ThreadEnd, 0),
        }
    }
}

pub fn mix(memory: u64, with: u64) -> u64 {
    let mixed = (memory ^ with).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 31
}

pub fn mix_bytes(memory: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(memory, |memory, byte| mix(memory, u64::from(*byte) + 1))
}

impl Process {
    pub fn new(program: Rc<Program>) -> Self {
        let threads = (0..program.threads.len())
            .map(|thread| Thread { started: thread == 0, ended: false, at: 0, memory: thread as u64, rest: None })
            .collect();
        let (shared, locked) = ([0; LOCKS], [false; LOCKS]);
        let (read, written, input) = ([0; CONNECTIONS], [0; CONNECTIONS], [0; CONNECTIONS]);
        Self { program, threads, shared, locked, read, written, input, tricks: Tricks::default() }
    }

    pub fn with(mut self, tricks: Tricks) -> Self {
        self.tricks = tricks;
        self
    }

    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    pub fn is_running(&self, thread: usize) -> bool {
        self.threads[thread].started && !self.threads[thread].ended
    }

    pub fn has_ended(&self, thread: usize) -> bool {
        self.threads[thread].ended
    }

    pub fn is_locked(&self, lock: usize) -> bool {
        self.locked[lock]
    }

    pub fn lock(&mut self, lock: usize) {
        assert!(!self.locked[lock], "a lock that is taken is taken again");
        self.locked[lock] = true;
    }

    /// Goes on up to the next call.
    pub fn compute(&mut self, thread: usize) {
        let program = self.program.clone();
        while self.is_running(thread) {
            let me = &mut self.threads[thread];
            match program.threads[thread][me.at] {
                Op::Unlock(lock) => self.locked[lock] = false,
                Op::Share(lock) => {
                    self.shared[lock] = mix(self.shared[lock], me.memory);
                    me.memory = mix(me.memory, self.shared[lock]);
                }
                Op::Branch(bit, skipped) => {
                    if me.memory >> bit & 1 == 1 {
                        me.at += skipped;
                    }
                }
                Op::Lock(_) if self.tricks.no_locks => {}
                Op::TryLock(..) if self.tricks.no_locks => {}
                Op::Write { bytes, .. } => {
                    // The bytes are made before the call, from the memory of then.
                    let (memory, odd) = (me.memory, u8::from(self.tricks.other_output));
                    me.rest.get_or_insert_with(|| (0..bytes).map(|i| mix(memory, i as u64) as u8 ^ odd).collect());
                    break;
                }
                _ => break,
            }
            self.threads[thread].at += 1;
        }
    }

    /// The call before which a thread stands. It has computed.
    pub fn ask(&self, thread: usize) -> Ask {
        let me = &self.threads[thread];
        match self.program.threads[thread][me.at] {
            Op::Read { connection, most } => Ask::Read { connection, most },
            Op::Write { connection, .. } => Ask::Write { connection, bytes: me.rest.clone().expect("it has computed") },
            Op::Clock(clock) => Ask::Clock(clock),
            Op::Random => Ask::Random,
            Op::Id => Ask::Id,
            Op::Wait => Ask::Wait,
            Op::Fork => Ask::Fork,
            Op::Lock(lock) => Ask::Lock(lock),
            Op::TryLock(lock, _) => Ask::TryLock(lock),
            Op::Spawn(other) => Ask::Spawn(other),
            Op::Join(other) => Ask::Join(other),
            Op::End => Ask::End,
            ref inside => unreachable!("{inside:?} makes no call"),
        }
    }

    /// The call has this result. What it does to locks is done already.
    pub fn give(&mut self, thread: usize, result: i64, data: &[u8]) {
        let op = self.program.threads[thread][self.threads[thread].at].clone();
        let me = &mut self.threads[thread];
        me.memory = mix(me.memory, result as u64);
        let mut done = true;
        match op {
            Op::Read { connection, .. } => {
                me.memory = mix_bytes(me.memory, data);
                self.read[connection] += data.len() as u64;
                self.input[connection] = mix_bytes(self.input[connection], data);
                // Nothing there: it tries again.
                done = result >= 0;
            }
            Op::Write { connection, .. } => {
                let taken = result.max(0) as usize;
                self.written[connection] += taken as u64;
                let rest = me.rest.as_mut().expect("it was writing");
                rest.drain(..taken.min(rest.len()));
                done = rest.is_empty();
                if done {
                    me.rest = None;
                }
            }
            Op::TryLock(_, skipped) if result != 0 => me.at += skipped,
            Op::Spawn(other) => self.threads[other].started = true,
            Op::End => me.ended = true,
            _ => me.memory = mix_bytes(me.memory, data),
        }
        if done {
            self.threads[thread].at += 1;
        }
    }

    /// A signal is handled.
    pub fn handle(&mut self, thread: usize, signal: i64) {
        let me = &mut self.threads[thread];
        me.memory = mix(me.memory, signal as u64 + 1000);
    }
}
