//! The standard profile: what everybody wants to know of a disk, in a minute.

use std::time::Duration;

use blockdev::{ByteSize, Result};

use super::plan::{Common, Spec, Sweep, cells};
use super::target::Target;
use crate::load::Pattern;
use crate::report::vocabulary as v;
use crate::report::{Highlight, Run};

/// How thorough it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Sequential I/O, random I/O in three block sizes and at four queue depths, durable writes: about a minute.
    Standard,
    /// Random I/O in one block size and at three queue depths: about fifteen seconds.
    Quick,
}

impl Profile {
    /// How often every cell is run, where nothing else is said.
    #[must_use]
    pub fn rounds(self) -> u32 {
        match self {
            Self::Standard => 2,
            Self::Quick => 1,
        }
    }

    /// How long all of it takes.
    fn budget(self) -> Duration {
        Duration::from_secs(match self {
            Self::Standard => 55,
            Self::Quick => 14,
        })
    }

    fn sweeps(self) -> [Sweep; 3] {
        let (blocks, depths) = match self {
            Self::Standard => (vec![4, 8, 16], vec![1, 4, 16, 64]),
            Self::Quick => (vec![8], vec![1, 16, 64]),
        };
        let sequential = Sweep {
            patterns: vec![Pattern::Read, Pattern::Write],
            blocks: vec![ByteSize::mib(1)],
            // With blocks of 1 MiB, what an ordinary user may register as buffers (8 MiB, less the ring).
            depths: vec![4],
            ..Sweep::default()
        };
        let random = Sweep {
            patterns: vec![Pattern::RandRead, Pattern::RandWrite],
            blocks: blocks.into_iter().map(ByteSize::kib).collect(),
            depths,
            ..Sweep::default()
        };
        let durable = Sweep {
            patterns: vec![Pattern::RandWrite],
            blocks: vec![ByteSize::kib(8)],
            depths: vec![1],
            fdatasync: vec![1],
            ..Sweep::default()
        };
        [sequential, random, durable]
    }

    /// Its cells on `targets`, to be run in so many rounds. What `common` says of time is left aside: the profile has its own.
    ///
    /// # Errors
    /// When a target is too small, or cannot do blocks of 4 KiB.
    pub fn cells(self, common: &Common, rounds: u32, targets: &[Target]) -> Result<Vec<Spec>> {
        let mut specs = Vec::new();
        for sweep in self.sweeps() {
            specs.extend(cells(&sweep, common, targets)?);
        }
        let runs = u32::try_from(specs.len()).unwrap_or(u32::MAX).saturating_mul(rounds).max(1);
        let each = self.budget() / runs;
        for spec in &mut specs {
            spec.work.warmup = each / 5;
            spec.work.runtime = each - spec.work.warmup;
        }
        Ok(specs)
    }
}

/// Puts what says most at the top of the page: of the last target, which is the one nearest to a database.
pub(super) fn highlight(run: &mut Run, specs: &[Spec]) {
    let Some(target) = specs.iter().map(|spec| spec.target).max() else { return };
    let chosen = [
        ("sequential reads", Pattern::Read, 0, &v::BANDWIDTH),
        ("sequential writes", Pattern::Write, 0, &v::BANDWIDTH),
        ("random 8 KiB reads", Pattern::RandRead, 0, &v::IOPS),
        ("random 8 KiB writes", Pattern::RandWrite, 0, &v::IOPS),
        ("fdatasync, median", Pattern::RandWrite, 1, &v::SYNC_P50),
    ];
    for (label, pattern, fdatasync, measure) in chosen {
        let fits = |spec: &&Spec| {
            spec.target == target
                && spec.work.pattern == pattern
                && spec.work.fdatasync == fdatasync
                && (!pattern.is_random() || spec.work.block == ByteSize::kib(8))
        };
        let measured = |spec: &&Spec| {
            run.cells.iter().any(|cell| {
                cell.name == spec.name && cell.figures.contains_key(&*measure.name) && cell.not_disk.is_none()
            })
        };
        let Some(spec) = specs.iter().filter(fits).filter(measured).max_by_key(|spec| spec.work.depth) else {
            continue;
        };
        let depth = if pattern.is_random() && fdatasync == 0 {
            format!(", queue depth {}", spec.work.depth)
        } else {
            String::new()
        };
        run.highlights.push(Highlight {
            label: format!("{label}{depth}"),
            cell: spec.name.clone(),
            measure: measure.name.to_string(),
        });
    }
}
