//! Layout of the memory that holds a trace. The manager makes it and the library maps it; offline it is a file.
//!
//! The room for the trace is used again and again: the byte at position `p` of the trace lies at `p % limit` in it. What is
//! before the position at [`KEPT_AT`] may be written over. A file is never written over.
//!
//! All numbers are in the machine's own byte order.

/// First four bytes of the memory: "TCPT".
pub const MAGIC: u32 = u32::from_ne_bytes(*b"TCPT");
/// Version of this layout and of the records' encoding.
pub const VERSION: u32 = 3;
/// Where programs map the memory, so that their own mappings lie alike in leader and follower.
pub const LOG_ADDR: usize = 0x5000_0000_0000;

/// Offset of [`MAGIC`], u32.
pub const MAGIC_AT: usize = 0;
/// Offset of [`VERSION`], u32.
pub const VERSION_AT: usize = 4;
/// Offset of the position where the trace ends, u64. Whoever appends stores it, with release ordering.
pub const HEAD_AT: usize = 8;
/// Offset of the [`mode`], u32, a futex. The manager writes it.
pub const MODE_AT: usize = 16;
/// Offset of the trace position up to which the follower has executed, u64.
pub const EXECUTED_AT: usize = 24;
/// Offset of the number of records recorded or executed, u64.
pub const RECORDS_AT: usize = 32;
/// Offset of the [`state`], u32. The library writes it.
pub const STATE_AT: usize = 40;
/// Offset of the number of bytes that there is room for, u64.
pub const LIMIT_AT: usize = 48;
/// Offset of the length of the reason, u32.
pub const REASON_LEN_AT: usize = 56;
/// Offset of the reason for [`state::DIVERGED`], [`state::FULL`] or [`state::REFUSED`], UTF-8.
pub const REASON_AT: usize = 64;
/// Most bytes of a reason.
pub const REASON_MAX: usize = 960;
/// Offset of the position of the first byte of the trace that is kept, u64. The manager writes it; it never goes back.
pub const KEPT_AT: usize = 1024;
/// Offset of what is to be or was done about a [`snapshot`], u32.
pub const SNAPSHOT_AT: usize = 1032;
/// Offset of the trace position of a snapshot, u64.
pub const SNAPSHOT_POSITION_AT: usize = 1040;
/// Offset of how many bytes of a snapshot were written, u64. While it is 0, nothing else of the snapshot is known.
pub const SNAPSHOT_WRITTEN_AT: usize = 1048;
/// Offset of how many bytes of a snapshot were read, u64. The manager writes it.
pub const SNAPSHOT_READ_AT: usize = 1056;
/// Offset of how long the program was stopped for a snapshot, in nanoseconds, u64.
pub const SNAPSHOT_PAUSE_AT: usize = 1064;
/// Offset of the room through which a snapshot goes: the byte at position `p` of it lies at `p % SNAPSHOT_ROOM`.
pub const SNAPSHOT_BYTES_AT: usize = 64 << 10;
/// So many bytes of a snapshot may be written and not read.
pub const SNAPSHOT_ROOM: usize = 1 << 20;
/// Offset of the trace, a multiple of every page size.
pub const TRACE_AT: usize = SNAPSHOT_BYTES_AT + SNAPSHOT_ROOM;
/// The room for a trace is a multiple of this, so that it can be mapped a second time behind itself: then what goes on at its
/// beginning lies in one piece.
pub const ROOM_UNIT: u64 = 64 << 10;

/// A snapshot of the leader: the process as it is at a wait, at one position of the trace. A copy of the process writes it.
pub mod snapshot {
    /// There is none, and none is asked for. The manager sets it, also when it wants no more of one that is under way.
    pub const NONE: u32 = 0;
    /// The manager asks for one: at the next wait.
    pub const ASKED: u32 = 1;
    /// It is being written.
    pub const WRITING: u32 = 2;
    /// It is written.
    pub const DONE: u32 = 3;
    /// None can be made; the reason says why.
    pub const REFUSED: u32 = 4;
}

/// What the manager tells the library to do.
pub mod mode {
    /// Not decided: wait.
    pub const WAIT: u32 = 0;
    /// Record.
    pub const RECORD: u32 = 1;
    /// Follow the trace, and wait for more where it ends.
    pub const FOLLOW: u32 = 2;
    /// The head does not grow any more: follow up to it, then go live.
    pub const PROMOTE: u32 = 3;
    /// Do nothing.
    pub const OFF: u32 = 4;
}

/// What the library does.
pub mod state {
    /// It has not begun.
    pub const STARTING: u32 = 0;
    /// It records.
    pub const RECORDING: u32 = 1;
    /// It follows.
    pub const FOLLOWING: u32 = 2;
    /// It has reached the end of the trace, and waits for the sockets.
    pub const AT_END: u32 = 3;
    /// It was promoted, and records.
    pub const LIVE: u32 = 4;
    /// The program did something else than the trace says.
    pub const DIVERGED: u32 = 5;
    /// The trace has reached its limit.
    pub const FULL: u32 = 6;
    /// This program cannot be recorded or followed.
    pub const REFUSED: u32 = 7;
    /// It has reached the end of the trace, and has told where it stands with its connections.
    pub const STANDING: u32 = 8;
}
