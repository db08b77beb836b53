//! Whole frames of a host's `eth0`, for a peer with a TCP of its own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use crate::capture::packet_socket;
use crate::sys::{self, cvt, other};
use crate::Host;

const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

/// Sends and receives frames beside the host's own network stack, which sees the same.
pub struct Wire {
    socket: OwnedFd,
    /// The interface's hardware address.
    pub mac: [u8; 6],
}

impl Wire {
    /// Opens the host's interface.
    pub fn open(host: &Host) -> io::Result<Wire> {
        host.enter(|| {
            let whole = libc::sock_filter { code: 6, jt: 0, jf: 0, k: 1 << 18 };
            let socket = packet_socket(vec![whole])?;
            sys::setsockopt(socket.as_fd(), libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1)?;
            let mac = sys::hardware_address(socket.as_fd(), c"eth0")?;
            Ok(Wire { socket, mac })
        })
    }

    /// The next frame, into the buffer; `false` if none has come within the time.
    pub fn receive(&self, frame: &mut Vec<u8>, wait: Duration) -> io::Result<bool> {
        if !sys::wait_readable(self.socket.as_fd(), wait)? {
            return Ok(false);
        }
        frame.resize(70_000, 0);
        // SAFETY: pointer and length describe the buffer, which lives through the call.
        let n = unsafe { libc::recv(self.socket.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
        match cvt(n as libc::c_int) {
            Ok(n) => {
                frame.truncate(n as usize);
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Sends a frame; it is lost where the network is full.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: pointer and length describe the frame, which lives through the call.
        let n = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        match cvt(n as libc::c_int) {
            Ok(n) if n as usize == frame.len() => Ok(()),
            Ok(_) => Err(other("a frame was cut")),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => Ok(()),
            Err(e) => Err(e),
        }
    }
}
