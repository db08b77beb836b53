//! What the calls do to protected descriptors. Functions have the names and the arguments of the calls that they
//! serve; they are reached only when a descriptor has an entry in the table, or when it may get one.
//!
//! The rule for every function here: whatever is not for us (we are inside already, a vfork child, bad
//! arguments) goes to the C library with the caller's own arguments, so that its result is the C library's.
//!
//! - calls: `sockets`, `accept`, `connect`, `input`, `output`, `streams`, `descriptors`, `options`, `signals`, `waits`,
//!   `credentials`, `lock_in`, `fork`, `by_number`
//! - what several of them need: `address`, `attach`, `adopt`, `passing`, `stash`, `listening`, `kept_options`, `lent_timeout`
//! - `life`: the process begins, joins, locks itself in, exits

mod accept;
mod address;
mod adopt;
mod attach;
mod by_number;
mod connect;
mod credentials;
mod descriptors;
mod fork;
mod input;
mod kept_options;
mod lent_timeout;
mod life;
mod listening;
mod lock_in;
mod options;
mod output;
mod passing;
mod signals;
mod sockets;
pub mod standing;
mod stash;
mod streams;
mod waits;

pub use accept::{accept, accept4};
pub use attach::connection;
pub use by_number::syscall;
pub use connect::connect;
pub use credentials::{initgroups, setegid, seteuid, setgid, setgroups, setregid, setresgid, setresuid, setreuid, setuid};
pub use descriptors::{close, close_range, closefrom, dup, dup2, dup3, fcntl, fcntl64};
pub use fork::{_Fork, clone};
pub use input::{__read_chk, __recv_chk, __recvfrom_chk, read, readv, recv, recvfrom, recvmmsg, recvmsg};
pub use life::{at_exit, begin, exiting};
pub use lock_in::{is_locked_in, prctl, setns, unshare};
pub use options::{getsockopt, setsockopt};
pub use output::{send, sendfile, sendfile64, sendmmsg, sendmsg, sendto, splice, write, writev};
pub use signals::{__sysv_signal, bsd_signal, sigaction, signal, sigset, ssignal, sysv_signal};
pub use sockets::{bind, listen, protected_socket, shutdown, socket};
pub use streams::{fclose, fdopen, fileno, fileno_unlocked};
pub use waits::{pthread_cond_clockwait, pthread_cond_timedwait, pthread_cond_wait, semop, semtimedop};
