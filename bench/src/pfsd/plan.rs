//! From options to cells: what is run on each pfsd, with each number of workers.

use std::time::Duration;

use blockdev::{ByteSize, Error, Result};

use super::work::{Rw, Work};

/// The numbers of workers that the original takes.
pub const WORKERS: std::ops::RangeInclusive<u32> = 1..=128;

/// Lists of parameters: their product is what is run.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    /// What is done.
    pub rw: Vec<Rw>,
    /// Bytes per operation; none where [each has its own](Rw::default_block).
    pub blocks: Vec<ByteSize>,
    /// How many clients do it.
    pub clients: Vec<u32>,
    /// Operations per second of an open loop, none being a closed one.
    pub rates: Vec<Option<f64>>,
}

/// What all cells share.
#[derive(Debug, Clone, PartialEq)]
pub struct Common {
    /// How many of 100 operations of [`Rw::RandRw`] are reads.
    pub read_percent: u8,
    /// How large the file is.
    pub size: ByteSize,
    /// Whether clients are processes.
    pub processes: bool,
    /// Of all that is random.
    pub seed: u64,
    /// How long a cell runs before it is measured.
    pub warmup: Duration,
    /// How long a cell is measured.
    pub runtime: Duration,
}

/// One thing to run.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Spec {
    /// The section of the report that it belongs to.
    pub group: String,
    /// Its name, unique in the plan.
    pub name: String,
    /// What.
    pub work: Work,
}

/// The cells of `sweep`.
///
/// # Errors
/// When a parameter is out of range, or two contradict each other.
pub(super) fn cells(sweep: &Sweep, common: &Common) -> Result<Vec<Spec>> {
    let Common { read_percent, size, processes, seed, warmup, runtime } = common.clone();
    let mut specs: Vec<Spec> = Vec::new();
    for rw in &sweep.rw {
        // Names have no blocks.
        let own = [rw.default_block()];
        let blocks = if sweep.blocks.is_empty() || *rw == Rw::Meta { &own[..] } else { &sweep.blocks };
        for block in blocks {
            for rate in &sweep.rates {
                for clients in &sweep.clients {
                    let (rw, block, clients, rate) = (*rw, *block, *clients, *rate);
                    let work = Work { rw, read_percent, block, size, clients, processes, rate, seed, warmup, runtime };
                    work.check()?;
                    let group = group(&work);
                    let name = format!("{group}, {}", count(clients, "client"));
                    if specs.iter().all(|known| known.name != name) {
                        specs.push(Spec { group, name, work });
                    }
                }
            }
        }
    }
    if specs.is_empty() {
        return Err(Error::invalid("there is nothing to measure"));
    }
    Ok(specs)
}

/// What a load is called, whoever does it: `randread 8 KiB`.
fn group(work: &Work) -> String {
    let mut name = match work.rw {
        Rw::Meta => format!("{} ({})", work.rw, work.rw.kinds().join(", ")),
        rw => format!("{rw} {}", work.block),
    };
    if work.rw == Rw::RandRw {
        name += &format!(", {} % reads", work.read_percent);
    }
    if let Some(rate) = work.rate {
        name += &format!(", {rate} arrivals/s");
    }
    name
}

/// A number of things: `1 client`, `4 clients`.
pub(super) fn count(number: u32, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// Whether so many workers can be had, each number once.
///
/// # Errors
/// Says which cannot.
pub(super) fn check_workers(workers: &[u32]) -> Result<Vec<u32>> {
    if let Some(bad) = workers.iter().find(|workers| !WORKERS.contains(workers)) {
        return Err(Error::invalid(format!("{bad} workers are not in {} to {}", WORKERS.start(), WORKERS.end())));
    }
    let mut sorted = workers.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    if sorted.is_empty() { Err(Error::invalid("there is no number of workers to measure")) } else { Ok(sorted) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common() -> Common {
        Common {
            read_percent: 70,
            size: ByteSize::gib(1),
            processes: false,
            seed: 1,
            warmup: Duration::ZERO,
            runtime: Duration::from_secs(1),
        }
    }

    fn names(sweep: &Sweep) -> Vec<String> {
        cells(sweep, &common()).unwrap().into_iter().map(|spec| spec.name).collect()
    }

    #[test]
    fn every_combination_is_run_once_and_each_pattern_has_its_block() {
        let sweep = Sweep {
            rw: vec![Rw::RandRead, Rw::Write, Rw::Meta],
            blocks: Vec::new(),
            clients: vec![1, 16, 16],
            rates: vec![None],
        };
        assert_eq!(
            names(&sweep),
            [
                "randread 8 KiB, 1 client",
                "randread 8 KiB, 16 clients",
                "write 4 MiB, 1 client",
                "write 4 MiB, 16 clients",
                "meta (create, stat, rename, unlink), 1 client",
                "meta (create, stat, rename, unlink), 16 clients",
            ]
        );
        let sweep = Sweep {
            rw: vec![Rw::RandRw, Rw::Meta],
            blocks: vec![ByteSize::kib(4), ByteSize::kib(16)],
            clients: vec![4],
            rates: vec![Some(500.0)],
        };
        assert_eq!(
            names(&sweep),
            [
                "randrw 4 KiB, 70 % reads, 500 arrivals/s, 4 clients",
                "randrw 16 KiB, 70 % reads, 500 arrivals/s, 4 clients",
                "meta (create, stat, rename, unlink), 500 arrivals/s, 4 clients",
            ]
        );
    }

    #[test]
    fn numbers_of_workers_are_in_range_and_in_order() {
        assert_eq!(check_workers(&[4, 1, 4]).unwrap(), [1, 4]);
        assert_eq!(check_workers(&[1, 0]).unwrap_err().to_string(), "0 workers are not in 1 to 128");
        assert_eq!(check_workers(&[129]).unwrap_err().to_string(), "129 workers are not in 1 to 128");
        assert!(check_workers(&[]).is_err());
    }
}
