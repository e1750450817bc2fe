//! What a request goes through on its way to the image, each a layer that can be had alone, or be left out:
//!
//! 1. [queue depth](depth): it waits for a place, and gives it back when it is answered;
//! 2. [rate](rate): it waits until there is enough of what it takes;
//! 3. [faults](fault): it fails, is stuck, or does something else than it says;
//! 4. [latency](latency): its answer waits until its time is up;
//! 5. [record](record): what it does is written down;
//! 6. [volatile cache](cache): what it writes stays in memory until a flush.

mod cache;
mod depth;
mod fault;
mod latency;
mod rate;
mod record;
mod spec;

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use crate::error::{Error, Result};
use crate::units::ByteSize;

pub(super) use cache::{Cache, Content, Durable, Patch};
pub use cache::{Keep, Loss};
pub(super) use depth::Depth;
pub use fault::{Fault, Kind as FaultKind};
pub(super) use fault::{Faults, Verdict};
pub use latency::{Distribution, Histogram, Latency};
pub use rate::Limit;
pub(super) use rate::Rate;
pub(super) use record::Recorder;
pub use record::{Entry as RecordEntry, Recording};

/// Which layers a disk has, and how they are set.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Layers {
    /// How many requests are served at once.
    pub queue_depth: Option<u32>,
    /// How much is done in a second at the most; all of these hold.
    pub rate: Vec<Limit>,
    /// What goes wrong; the first that hits a request decides.
    pub faults: Vec<Fault>,
    /// How long it takes at the least.
    pub latency: Option<Latency>,
    /// Where everything is written down that changes the disk. The file must not be there yet.
    pub record: Option<PathBuf>,
    /// How much the volatile cache holds.
    pub cache: Option<ByteSize>,
}

/// Layers at work.
#[derive(Debug, Default)]
pub(super) struct Stack {
    pub(super) layers: Layers,
    pub(super) depth: Option<Arc<Depth>>,
    pub(super) rate: Option<Arc<Rate>>,
    pub(super) faults: Option<Arc<Faults>>,
    pub(super) record: Option<Arc<Recorder>>,
    pub(super) cache: Option<Arc<Cache>>,
}

impl Stack {
    /// Whether a request goes straight to the image.
    pub(super) fn is_empty(&self) -> bool {
        self.layers == Layers::default()
    }

    /// Puts `layers` to work on `disk`, taking over from `before` what stays as it is.
    pub(super) fn build(layers: Layers, before: &Self, disk: &Disk) -> Result<Self> {
        if layers.queue_depth == Some(0) {
            return Err(Error::invalid("a disk with a queue depth of 0 would never answer"));
        }
        let least = disk.options().sector_size;
        if layers.cache.is_some_and(|size| size < least) {
            return Err(Error::invalid(format!("a cache holds at least one sector, {least}")));
        }
        let old = &before.layers;
        let depth = match layers.queue_depth {
            depth if depth == old.queue_depth => before.depth.clone(),
            depth => depth.map(|places| Arc::new(Depth::new(places))),
        };
        let rate = match &layers.rate {
            rate if *rate == old.rate => before.rate.clone(),
            rate => (!rate.is_empty()).then(|| Arc::new(Rate::new(rate))),
        };
        let faults = match &layers.faults {
            faults if *faults == old.faults => before.faults.clone(),
            faults => (!faults.is_empty()).then(|| Arc::new(Faults::new(faults, least, disk.size()))),
        };
        let record = match &layers.record {
            record if *record == old.record => before.record.clone(),
            record => record.as_ref().map(|path| Recorder::create(path, disk.size())).transpose()?.map(Arc::new),
        };
        let cache = match layers.cache {
            cache if cache == old.cache => before.cache.clone(),
            None => None,
            Some(size) => Some(Arc::new(Cache::new(size, least, disk.options().engine, disk.target()?)?)),
        };
        Ok(Self { layers, depth, rate, faults, record, cache })
    }
}
