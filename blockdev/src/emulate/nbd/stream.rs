//! The bytes to and from one client, through TLS where it was agreed on. Nothing here waits, but for who says until when.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::{ServerConfig, ServerConnection};

/// How much TLS takes at once before it is on its way, in bytes.
const TLS_BUFFER: usize = 256 << 10;

/// A connected socket.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Ends one direction or both, for all who have the socket.
    pub(super) fn shutdown(&self, how: std::net::Shutdown) {
        let how = match how {
            std::net::Shutdown::Read => libc::SHUT_RD,
            std::net::Shutdown::Write => libc::SHUT_WR,
            std::net::Shutdown::Both => libc::SHUT_RDWR,
        };
        // SAFETY: takes no pointer. An error means that the other side was quicker.
        unsafe { libc::shutdown(self.0.as_raw_fd(), how) };
    }

    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        // SAFETY: all of it zeroes is a message of nothing, to nobody.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = parts.as_ptr().cast_mut().cast();
        message.msg_iovlen = parts.len() as _;
        // SAFETY: an IoSlice is an iovec, and the parts outlive the call, which only reads them.
        let sent =
            unsafe { libc::sendmsg(self.0.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the buffer is there and as long as said.
        let got =
            unsafe { libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A socket as TLS reads and writes it.
struct Raw<'a>(&'a Socket);

impl Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.receive(buffer)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.send(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A client's bytes.
#[derive(Debug)]
pub(super) struct Stream {
    socket: Arc<Socket>,
    tls: Option<Box<ServerConnection>>,
}

impl Stream {
    pub(super) fn new(socket: Arc<Socket>) -> Self {
        Self { socket, tls: None }
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// From here on everything is encrypted; the client speaks first.
    pub(super) fn start_tls(&mut self, config: Arc<ServerConfig>, deadline: Instant) -> io::Result<()> {
        let mut tls = ServerConnection::new(config).map_err(io::Error::other)?;
        tls.set_buffer_limit(Some(TLS_BUFFER));
        self.tls = Some(Box::new(tls));
        while self.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
            match self.receive(&mut []) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.until_ready(deadline)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes what has come. `WouldBlock` where nothing has, no bytes at the end.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return retried(|| self.socket.receive(buffer)) };
        loop {
            if !buffer.is_empty() {
                match tls.reader().read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    // Without a goodbye, which many leave out.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                    outcome => return outcome,
                }
            }
            let got = retried(|| tls.read_tls(&mut Raw(&self.socket)));
            if matches!(got, Ok(0)) && tls.is_handshaking() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            got?;
            let processed = tls.process_new_packets();
            // Also what tells the client why it was refused.
            while tls.wants_write() && tls.write_tls(&mut Raw(&self.socket)).is_ok() {}
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if buffer.is_empty() {
                return Ok(0);
            }
        }
    }

    /// Sends some of it. `WouldBlock` where there is no room.
    pub(super) fn send(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return retried(|| self.socket.send(parts)) };
        let taken = tls.writer().write_vectored(parts)?;
        let flushed = Self::flush_tls(tls, &self.socket);
        match flushed {
            // It has taken them, and they go when there is room.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && taken > 0 => Ok(taken),
            Err(error) => Err(error),
            Ok(()) if taken == 0 => Err(io::ErrorKind::WouldBlock.into()),
            Ok(()) => Ok(taken),
        }
    }

    fn flush_tls(tls: &mut ServerConnection, socket: &Socket) -> io::Result<()> {
        while tls.wants_write() {
            retried(|| tls.write_tls(&mut Raw(socket)))?;
        }
        Ok(())
    }

    /// Sends what was taken before and is not on its way. Returns whether all of it is now.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else { return Ok(true) };
        match Self::flush_tls(tls, &self.socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            outcome => outcome.map(|()| true),
        }
    }

    /// Fills `buffer`, waiting until `deadline`.
    pub(super) fn read_exact(&mut self, mut buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.receive(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => buffer = &mut buffer[got..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.until_ready(deadline)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends all of `bytes`, waiting until `deadline`.
    pub(super) fn write_all(&mut self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() || !self.flush()? {
            match if bytes.is_empty() {
                Err(io::ErrorKind::WouldBlock.into())
            } else {
                self.send(&[IoSlice::new(bytes)])
            } {
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(&self.socket, PollFlags::POLLOUT, deadline)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn until_ready(&self, deadline: Instant) -> io::Result<()> {
        let writing = self.tls.as_ref().is_some_and(|tls| tls.wants_write());
        wait(&self.socket, if writing { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN }, deadline)
    }
}

fn retried<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

fn wait(socket: &Socket, flags: PollFlags, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let timeout = PollTimeout::try_from(left.max(Duration::from_millis(1))).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(socket.as_fd(), flags)], timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
