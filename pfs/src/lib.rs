//! PolarFS, the file system that several hosts share on one disk.
//!
//! One host writes, the others read; there is no server between them, only the disk. Metadata lie in fixed places at
//! the start of every 10 GiB *chunk*; every change of them is a transaction in a journal, which a record that all hosts
//! know, the *leader record*, delimits. Who reads takes the metadata sectors and replays the journal over them.
//!
//! [`mod@format`] is the bytes and nothing else, [`volume`] a volume open for reading;
//! [`mod@check`] says what is wrong with one, [`diff`] how two differ, [`copy`] copies out of one.
//!
//! The facts come from PolarFS for PolarDB, release `pfsd4pg-release-1.2.42-20220419`: its source, and volumes that its own
//! tools made, of which the tests carry some.

pub mod check;
pub mod copy;
pub mod diff;
pub mod format;
pub mod volume;
