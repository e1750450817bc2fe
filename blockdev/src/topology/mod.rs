//! What a file or a block device is, and what it can do.

mod direct;
mod file_system;
mod statx;

pub use direct::{DirectIo, direct_io};
pub use file_system::{FileSystem, file_system};
