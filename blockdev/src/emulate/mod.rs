//! A disk served from user space: shared by several hosts, and as slow, faulty and forgetful as one likes.
//!
//! A loop device shows a shared disk at its best. This is the disk at its worst: it takes its time, loses what was not
//! flushed when the power goes, reports errors, lies, and lets a host write that has long been declared dead. All of it
//! happens in one process that sees every request:
//!
//! ```text
//!   NBD client   NBD client        loop device       exports, each belonging to a host
//!       │            │              /dev/fuse
//!   ┌───▼───┐    ┌───▼───┐          ┌───▼───┐
//!   │ Port  │    │ Port  │          │ Port  │        one per thread: requests in flight, layers, an engine
//!   └───┬───┘    └───┬───┘          └───┬───┘
//!       └────────────┼──────────────────┘
//!                  Disk                              what all share: gates of the hosts, layers, counters
//!                    │
//!                  image                             a file, or a block device
//! ```
//!
//! **Threads.** An export has a thread for each connection (NBD) or each processor (FUSE), which does everything for its
//! requests itself: it reads them, takes them through the layers, does the I/O with an [engine](crate::engine) of its own, and
//! answers. It never waits for one request, but always for whatever comes first: a completion, the client, a point in time,
//! a letter from another thread. So no request costs a change of threads, and many are in flight.
//!
//! **Layers** are steps that a request takes in its port. Which there are, and how they are set, is one value that ports look
//! at; where there is none, a request goes straight to the engine.
//!
//! **Gates.** Before a request has its effect on the image it asks its host's gate for leave, and until it has had it it counts
//! as under way. Who fences a host, cuts the power, or changes what the disk is made of, puts a bar before the gate and waits
//! until nothing is under way: what is acknowledged then is true of every thread.

mod allocation;
pub mod control;
mod disk;
mod fuse;
mod host;
mod layer;
mod mailbox;
mod memory;
pub mod nbd;
mod port;
mod registry;
mod release;
mod request;
mod reservation;
mod served;
mod stats;

/// What the mounts of served disks say they are.
const FILE_SYSTEM: &str = "fuse.onedisk";

pub use disk::{Disk, DiskOptions};
pub use host::{HOST_NAME_MAX, HOSTS_MAX, HostId, HostName};
pub use layer::{
    Distribution, Fault, FaultKind, Histogram, Keep, Latency, Layers, Limit, Loss, RecordEntry, Recording,
};
pub use port::Port;
pub use registry::{clean_up, served};
pub use request::{Answer, Operation, Outcome, Request};
pub use reservation::{Action, Key, Reservation, ReservationKind, Reservations};
pub use served::{Export, ExportKind, Options, Served};
pub use stats::{Activity, Count, Counts, LayerCount, LayerName};
