//! Lines of a pipe as they come in, without a thread that waits for them: who reads them may have to fork.

use std::os::fd::AsFd;

use blockdev::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::read;

/// The longest line: who sends more is not who we think.
const LINE_MAX: usize = 64 << 20;

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// A line, without its end.
    Line(Vec<u8>),
    /// The end: nobody is there any more.
    End,
    /// Nothing in the time.
    Nothing,
}

/// Lines of a pipe.
#[derive(Debug)]
pub(super) struct Lines<F> {
    from: F,
    buffer: Vec<u8>,
    ended: bool,
}

impl<F: AsFd> Lines<F> {
    pub(super) fn new(from: F) -> Self {
        Self { from, buffer: Vec::new(), ended: false }
    }

    /// Waits for a line, for no longer than `timeout`.
    ///
    /// # Errors
    /// When the pipe cannot be read.
    pub(super) fn next(&mut self, timeout: PollTimeout) -> Result<Came> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
                line.pop();
                return Ok(Came::Line(line));
            }
            if self.ended || self.buffer.len() > LINE_MAX {
                return Ok(Came::End);
            }
            if !self.fill(timeout)? {
                return Ok(Came::Nothing);
            }
        }
    }

    /// Whether nobody is there any more. What comes besides is kept.
    pub(super) fn has_ended(&mut self) -> Result<bool> {
        while !self.ended && self.fill(PollTimeout::ZERO)? {}
        Ok(self.ended)
    }

    /// Reads once what is there. Returns whether there was something, or the end.
    fn fill(&mut self, timeout: PollTimeout) -> Result<bool> {
        let what = || "cannot read from a pipe";
        match poll(&mut [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(Errno::EINTR) => return Ok(false),
            outcome => outcome.context(what)?,
        };
        let mut chunk = [0; 4096];
        match read(&self.from, &mut chunk).context(what)? {
            0 => self.ended = true,
            got => self.buffer.extend_from_slice(&chunk[..got]),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn lines_come_whole_and_the_end_is_seen() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut lines = Lines::new(reader);
        assert_eq!(lines.next(PollTimeout::ZERO).unwrap(), Came::Nothing);
        writer.write_all(b"one\ntw").unwrap();
        assert_eq!(lines.next(PollTimeout::ZERO).unwrap(), Came::Line(b"one".to_vec()));
        assert_eq!(lines.next(PollTimeout::ZERO).unwrap(), Came::Nothing);
        assert!(!lines.has_ended().unwrap());
        writer.write_all(b"o\n").unwrap();
        drop(writer);
        assert!(lines.has_ended().unwrap());
        assert_eq!(lines.next(PollTimeout::ZERO).unwrap(), Came::Line(b"two".to_vec()));
        assert_eq!(lines.next(PollTimeout::NONE).unwrap(), Came::End);
    }
}
