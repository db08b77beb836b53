//! What the program says by `sd_notify`: that it is ready (`ready = "notify"`).

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::net::{recvmsg, sockopt, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::key;
use crate::serving;

/// Where a program finds the name of the socket.
pub(super) const VARIABLE: &str = "NOTIFY_SOCKET";
/// Most messages that are heard at once: anybody on this machine may send some.
const AT_ONCE: usize = 16;

/// The socket for the program's words, and what it has said.
pub(super) struct Notify {
    socket: UnixDatagram,
    name: String,
    ready: bool,
    /// Who started `tcpr run` wants to know the same of it.
    above: Option<SocketAddr>,
}

impl Notify {
    /// Makes the socket, with a name that is nobody else's.
    pub(super) fn open() -> io::Result<Notify> {
        let random: [u8; 8] = key::random()?;
        let name = format!("tcpr-notify-{:016x}", u64::from_le_bytes(random));
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        socket.set_nonblocking(true)?;
        sockopt::set_socket_passcred(&socket, true)?;
        let above = std::env::var_os(VARIABLE).and_then(|name| match name.as_encoded_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
            _ => SocketAddr::from_pathname(name).ok(),
        });
        Ok(Notify { socket, name: format!("@{name}"), ready: false, above })
    }

    /// What the program finds in [`VARIABLE`].
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// The program of this moment has said that it is ready.
    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    /// A program is about to be started, which has said nothing yet.
    pub(super) fn begin(&mut self) {
        // What the one before it has said last.
        // No more than fit into a socket's queue as Linux has it: senders that go on are not believed later either.
        for _ in 0..1024 {
            if self.next().is_none() {
                break;
            }
        }
        self.ready = false;
    }

    /// Hears what is said. True: that the program is ready, which is news.
    pub(super) fn hear(&mut self) -> bool {
        let before = self.ready;
        for _ in 0..AT_ONCE {
            let Some((says_ready, sender)) = self.next() else { break };
            let is_ours = || sender.is_some_and(|pid| serving::is_descendant(pid, std::process::id()));
            self.ready = self.ready || says_ready && is_ours();
        }
        self.ready && !before
    }

    /// The next message: whether it says READY=1, and who has sent it.
    fn next(&self) -> Option<(bool, Option<u32>)> {
        let mut text = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let n = recvmsg(&self.socket, &mut [IoSliceMut::new(&mut text)], &mut ancillary, flags).ok()?.bytes;
        let sender = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials.pid.as_raw_nonzero().get() as u32),
            _ => None,
        });
        Some((text[..n].split(|b| *b == b'\n').any(|line| line == b"READY=1"), sender))
    }

    /// This member would take sessions over: whoever started `tcpr run` may go on, if that is what they wait for. Said once.
    pub(super) fn tell_above(&mut self) {
        let Some(above) = self.above.take() else { return };
        if let Err(error) = self.socket.send_to_addr(b"READY=1\n", &above) {
            log::warn!(error:%; "cannot tell {VARIABLE} that the program is ready");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn say(notify: &Notify, text: &str) {
        let to = SocketAddr::from_abstract_name(notify.name().strip_prefix('@').unwrap()).unwrap();
        UnixDatagram::unbound().unwrap().send_to_addr(text.as_bytes(), &to).unwrap();
    }

    #[test]
    fn a_line_of_its_own_says_that_the_program_is_ready() {
        let mut notify = Notify::open().unwrap();
        assert!(!notify.hear() && !notify.is_ready());
        for other in ["STATUS=READY=1", "READY=0", "READY=11", "", "\n\n"] {
            say(&notify, other);
            assert!(!notify.hear() && !notify.is_ready(), "{other}");
        }
        say(&notify, "STATUS=loaded\nREADY=1\nMAINPID=1");
        assert!(notify.hear() && notify.is_ready());
        say(&notify, "READY=1");
        assert!(!notify.hear() && notify.is_ready(), "no news");
        // What the one before has said does not count for the next.
        say(&notify, "READY=1");
        notify.begin();
        assert!(!notify.hear() && !notify.is_ready());
    }

    /// This process is none of its own descendants' descendants; a child of init's is not the program's.
    #[test]
    fn only_processes_of_the_program_are_believed() {
        let me = std::process::id();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(serving::is_descendant(child.id(), me) && serving::is_descendant(me, me));
        assert!(!serving::is_descendant(me, child.id()) && !serving::is_descendant(1, me) && !serving::is_descendant(0, me));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!serving::is_descendant(child.id(), me), "it is over");
    }
}
