//! PolarFS, the file system that several hosts share on one disk.
//!
//! One host writes, the others read; there is no server between them, only the disk. Metadata lie in fixed places at
//! the start of every 10 GiB *chunk*; every change of them is a transaction in a journal, which a record that all hosts
//! know, the *leader record*, delimits. Who reads takes the metadata sectors and replays the journal over them.
//!
//! - [`mod@format`]: the bytes and nothing else;
//! - [`volume`]: a volume open for reading, while somebody may be writing it; and open for [writing](volume::writer);
//! - [`mod@mkfs`] makes a volume, [`mod@growfs`] grows it;
//! - [`mod@check`]: what is wrong with a volume; [`diff`]: how two differ; [`copy`]: out of one and into one;
//! - [`proto`]: what a process of the database and `pfsd` say to each other; [`client`]: the process's side; [`daemon`]: the
//!   other;
//! - [`mod@mount`]: one as a directory of the host, read-only.
//!
//! ```no_run
//! use pfs::volume::{Volume, VolumePath};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut volume = Volume::open("VirtualDisk.img".as_ref())?;
//! let inode = volume.metadata().lookup(&VolumePath::new("/shared_data/global/pg_control"))?;
//! let file = volume.metadata().file_map(inode.number)?;
//! let mut bytes = vec![0; 8192];
//! let count = volume.read(&file, 0, &mut bytes)?;
//! # Ok(()) }
//! ```
//!
//! The facts come from PolarFS for PolarDB, release `pfsd4pg-release-1.2.42-20220419`: its source, and volumes that its own
//! tools made, of which the tests carry some.

pub mod check;
pub mod client;
pub mod copy;
pub mod daemon;
pub mod diff;
pub mod format;
pub mod growfs;
pub mod mkfs;
pub mod mount;
pub mod proto;
pub mod volume;
