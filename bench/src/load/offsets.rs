//! What a job does next, and where: a stream of operations that costs a few nanoseconds each.

use blockdev::{ByteRange, ByteSize};
use fastrand::Rng;

use super::{Pattern, Work};

/// What an operation is to the one who asked for it, and to the histograms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Sync,
}

impl Kind {
    /// How many there are.
    pub(super) const COUNT: usize = 3;
}

/// The operations of one job, in order.
#[derive(Debug, Clone)]
pub(crate) struct Ops {
    pattern: Pattern,
    read_percent: u8,
    block: u64,
    start: u64,
    blocks: u64,
    next: u64,
    rng: Rng,
    /// How many operations there are still to come; as good as endless unless each block is touched once.
    left: u64,
    /// The order of the blocks where it is random and each is touched once.
    order: Vec<u64>,
}

impl Ops {
    /// The stream of job `index`. Random jobs share the whole region; a sequential one has its own part of it, which it
    /// walks again and again, unless it is to touch each block once.
    pub(crate) fn new(work: &Work, index: u32) -> Self {
        let part = if work.shares_region() { work.region } else { part_of(work, index) };
        let block = work.block.bytes();
        let blocks = part.len.bytes() / block;
        let mut rng = Rng::with_seed(seed_of(work.seed, index));
        let mut order = Vec::new();
        if work.once && work.pattern.is_random() {
            order.extend(0..blocks);
            rng.shuffle(&mut order);
        }
        Self {
            pattern: work.pattern,
            read_percent: work.read_percent,
            block,
            start: part.start.bytes(),
            blocks,
            next: 0,
            rng,
            left: if work.once { blocks } else { u64::MAX },
            order,
        }
    }

    /// Whether there is a next operation.
    #[inline]
    pub(crate) fn has_next(&self) -> bool {
        self.left > 0
    }

    /// The next operation, which there must be, and its offset.
    #[inline]
    pub(crate) fn next(&mut self) -> (Kind, u64) {
        let kind = match self.pattern {
            Pattern::Read | Pattern::RandRead => Kind::Read,
            Pattern::Write | Pattern::RandWrite => Kind::Write,
            Pattern::RandRw if self.rng.u8(0..100) < self.read_percent => Kind::Read,
            Pattern::RandRw => Kind::Write,
        };
        self.left -= 1;
        let block = if let Some(block) = self.order.pop() {
            block
        } else if self.pattern.is_random() {
            self.rng.u64(0..self.blocks)
        } else {
            let block = self.next;
            self.next = if block + 1 == self.blocks { 0 } else { block + 1 };
            block
        };
        (kind, self.start + block * self.block)
    }
}

/// A seed for each job, so that two jobs do not walk in step.
pub(crate) fn seed_of(seed: u64, index: u32) -> u64 {
    Rng::with_seed(seed).u64(..) ^ Rng::with_seed(u64::from(index)).u64(..)
}

/// The part of the region that sequential job `index` has for itself.
fn part_of(work: &Work, index: u32) -> ByteRange {
    let blocks = work.region.len.bytes() / work.block.bytes() / u64::from(work.jobs);
    let len = blocks * work.block.bytes();
    ByteRange { start: work.region.start + ByteSize::new(len * u64::from(index)), len: ByteSize::new(len) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockdev::ByteOffset;
    use proptest::prelude::*;

    fn work(pattern: Pattern, start: u64, blocks: u64, jobs: u32) -> Work {
        let region = ByteRange::new(ByteOffset::new(start), ByteSize::kib(4 * blocks)).unwrap();
        Work { jobs, ..Work::new(pattern, ByteSize::kib(4), 1, region) }
    }

    #[test]
    fn sequential_jobs_cover_the_region_between_them_and_start_again() {
        let work = work(Pattern::Read, 8192, 7, 2);
        let mut first = Ops::new(&work, 0);
        let mut second = Ops::new(&work, 1);
        let walk = |ops: &mut Ops| (0..4).map(|_| (ops.next().1 - 8192) / 4096).collect::<Vec<_>>();
        assert_eq!(walk(&mut first), [0, 1, 2, 0]);
        assert_eq!(walk(&mut second), [3, 4, 5, 3]);
    }

    #[test]
    fn the_same_seed_gives_the_same_run_and_jobs_differ() {
        let work = work(Pattern::RandRw, 0, 1000, 2);
        let run = |index| {
            let mut ops = Ops::new(&work, index);
            (0..100).map(|_| ops.next()).collect::<Vec<_>>()
        };
        assert_eq!(run(0), run(0));
        assert_ne!(run(0), run(1));
    }

    #[test]
    fn each_block_is_touched_once_and_then_it_is_over() {
        for pattern in Pattern::ALL {
            let work = Work { once: true, ..work(pattern, 8192, 20, 2) };
            let mut touched = Vec::new();
            for index in 0..2 {
                let mut ops = Ops::new(&work, index);
                while ops.has_next() {
                    touched.push(ops.next().1);
                }
            }
            assert_eq!(touched.is_sorted(), !pattern.is_random(), "{pattern}");
            touched.sort_unstable();
            assert!(touched.into_iter().eq((0..20).map(|block| 8192 + block * 4096)), "{pattern}");
        }
    }

    #[test]
    fn random_offsets_are_uniform() {
        let mut ops = Ops::new(&work(Pattern::RandRead, 0, 64, 1), 0);
        let mut counts = [0u32; 64];
        for _ in 0..64_000 {
            counts[usize::try_from(ops.next().1 / 4096).unwrap()] += 1;
        }
        // 1000 expected each, standard deviation 31: six of them never happen with this seed or nearly any other.
        assert!(counts.iter().all(|count| (810..1190).contains(count)), "{counts:?}");
    }

    proptest! {
        #[test]
        fn operations_stay_inside_the_region_and_on_its_blocks(
            pattern in prop::sample::select(Pattern::ALL.to_vec()),
            start_block in 0u64..1000,
            blocks in 8u64..5000,
            jobs in 1u32..8,
            seed: u64,
        ) {
            let work = Work { seed, ..work(pattern, start_block * 4096, blocks, jobs) };
            for index in 0..jobs {
                let mut ops = Ops::new(&work, index);
                for _ in 0..200 {
                    let (kind, offset) = ops.next();
                    prop_assert!(offset.is_multiple_of(4096));
                    prop_assert!(offset >= work.region.start.bytes());
                    prop_assert!(offset + 4096 <= work.region.end().bytes());
                    prop_assert!(kind != Kind::Read || pattern.reads());
                    prop_assert!(kind != Kind::Write || pattern.writes());
                }
            }
        }

        #[test]
        fn a_mix_has_the_share_of_reads_it_was_given(percent in 0u8..=100, seed: u64) {
            let work = Work { seed, read_percent: percent, ..work(Pattern::RandRw, 0, 100, 1) };
            let mut ops = Ops::new(&work, 0);
            let reads = (0..10_000).filter(|_| ops.next().0 == Kind::Read).count();
            // Six standard deviations of a fair coin.
            prop_assert!(reads.abs_diff(usize::from(percent) * 100) <= 300, "{reads} reads at {percent} %");
        }
    }
}
