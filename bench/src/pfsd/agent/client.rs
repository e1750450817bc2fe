//! One client of a pfsd: what it does next, and doing it.

use blockdev::{ByteRange, Error, ErrorKind, Result};
use fastrand::Rng;
use pfs::client::{Client, File};
use pfs::proto::OpenFlags;

use super::DATA;
use crate::load::{Kind, Ops, seed_of};
use crate::pfsd::work::{Rw, Work};

/// A client, ready to begin.
pub(super) struct Worker<'a> {
    client: &'a Client,
    task: Task,
    buffer: Vec<u8>,
}

/// What it is at.
enum Task {
    /// Reads and writes the file that all have.
    Data { file: File, ops: Ops },
    /// Writes at the end of its own, and empties that when it is as long as it may be.
    Append { file: File, len: u64, len_max: u64 },
    /// Makes, looks at, renames and removes a file: the next of these steps.
    Meta { directory: String, round: u64, step: usize },
}

impl<'a> Worker<'a> {
    /// Client number `index` of `work`, whose files are below `directory`.
    ///
    /// # Errors
    /// When what it needs cannot be opened or made.
    pub(super) fn new(client: &'a Client, directory: &str, work: &Work, index: u32) -> Result<Self> {
        let mut buffer = vec![0; work.block.to_usize()?];
        Rng::with_seed(seed_of(work.seed, index)).fill(&mut buffer);
        let task = match work.on_disk(ByteRange::from_start(work.size)) {
            Some(disk) => {
                // Each of a disk's jobs is one of our clients: the operations in flight are theirs.
                let disk = crate::load::Work { depth: 1, jobs: work.clients, ..disk };
                let file = client.open(format!("{directory}/{DATA}"), OpenFlags(libc::O_RDWR), 0)?;
                Task::Data { file, ops: Ops::new(&disk, index) }
            }
            None if work.rw == Rw::Append => {
                let flags = OpenFlags(libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND);
                let file = client.open(format!("{directory}/append-{index}"), flags, 0o644)?;
                Task::Append { file, len: 0, len_max: work.share().bytes() }
            }
            None => {
                let directory = format!("{directory}/meta-{index}");
                match client.mkdir(&directory) {
                    // From the load before this one.
                    Err(error) if error.errno() == Some(libc::EEXIST) => {}
                    outcome => outcome?,
                }
                Task::Meta { directory, round: 0, step: 0 }
            }
        };
        Ok(Self { client, task, buffer })
    }

    /// What has to be done before the next step, and is no part of it.
    ///
    /// # Errors
    /// When it fails.
    pub(super) fn prepare(&mut self) -> Result<()> {
        if let Task::Append { file, len, len_max } = &mut self.task
            && *len + self.buffer.len() as u64 > *len_max
        {
            self.client.ftruncate(file, 0)?;
            *len = 0;
        }
        Ok(())
    }

    /// Does the next step. Returns which kind of operation it was, of those in [`Rw::kinds`].
    ///
    /// # Errors
    /// When it fails, or moved less than a block.
    pub(super) fn step(&mut self) -> Result<usize> {
        let (client, buffer) = (self.client, &mut self.buffer);
        let whole = |file: &File, done: usize, of: usize| {
            if done == of {
                Ok(())
            } else {
                Err(Error::new(ErrorKind::Io, format!("{done} of {of} bytes of {}", file.path())))
            }
        };
        match &mut self.task {
            Task::Data { file, ops } => {
                let (kind, offset) = ops.next();
                let len = buffer.len();
                let done = match kind {
                    Kind::Read => client.pread(file, offset, buffer)?,
                    Kind::Write | Kind::Sync => client.pwrite(file, offset, buffer)?,
                };
                whole(file, done, len)?;
                Ok(kind as usize)
            }
            Task::Append { file, len, .. } => {
                client.append(file, buffer)?;
                *len += buffer.len() as u64;
                Ok(0)
            }
            Task::Meta { directory, round, step } => {
                let (name, other) = (format!("{directory}/file-{round}"), format!("{directory}/other-{round}"));
                match *step {
                    0 => drop(client.open(&name, OpenFlags(libc::O_CREAT | libc::O_EXCL | libc::O_RDWR), 0o644)?),
                    1 => drop(client.stat(&name)?),
                    2 => client.rename(&name, &other)?,
                    _ => client.unlink(&other)?,
                }
                let done = *step;
                *step = (done + 1) % Rw::Meta.kinds().len();
                *round += u64::from(*step == 0);
                Ok(done)
            }
        }
    }

    /// Removes what is its own. What cannot be removed goes with the directory, or stays for who looks why.
    pub(super) fn tidy(self) {
        match self.task {
            Task::Data { .. } => {}
            Task::Append { file, .. } => drop(self.client.unlink(&*file.path())),
            Task::Meta { directory, round, .. } => {
                for name in ["file", "other"] {
                    let _ = self.client.unlink(format!("{directory}/{name}-{round}"));
                }
                let _ = self.client.rmdir(&directory);
            }
        }
    }
}
