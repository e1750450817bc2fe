//! One shared disk on one laptop.
//!
//! `blockdev` knows one disk: how its image is made, what the kernel and the file system say of it, how it becomes a
//! block device, and how to move bytes to and from it as fast as the hardware goes. It has never heard of a file
//! system *on* that disk, nor of a database or a benchmark.
//!
//! Everything that touches many blocks goes through [`engine`].

pub mod buffer;
pub mod cancel;
pub mod emulate;
pub mod engine;
pub mod error;
pub mod extents;
pub mod file_id;
pub mod image;
pub mod lock;
pub mod loopdev;
pub mod mark;
mod mounts;
pub mod signature;
pub mod stamp;
mod sysfs;
pub mod topology;
pub mod ui;
pub mod units;
pub mod usage;
pub mod zero;

pub use cancel::Cancel;
pub use error::{Context, Error, ErrorKind, Result};
pub use file_id::FileId;
pub use units::{ByteOffset, ByteRange, ByteSize};
