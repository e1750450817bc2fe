//! What the generators cost per operation, all told: the closed loop over a file in memory, through the engine and the
//! kernel, with its offsets, its clock and its histograms. `engine` of blockdev is the part of it that is not ours here.
#![allow(missing_docs, reason = "criterion's macros make items without them")]

use std::fs::File;
use std::time::Duration;

use bench::load::{self, Pattern, Work};
use blockdev::engine::{Choice, Config, Engine, Target};
use blockdev::{ByteRange, ByteSize, Cancel};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nix::sys::memfd::{MFdFlags, memfd_create};

const BLOCKS: u64 = 16384;

fn closed_loop(criterion: &mut Criterion) {
    let file = File::from(memfd_create("bench", MFdFlags::MFD_CLOEXEC).expect("memory files exist since Linux 3.17"));
    let region = ByteRange::from_start(ByteSize::kib(4 * BLOCKS));
    file.set_len(region.len.bytes()).expect("64 MiB of memory");
    let mut group = criterion.benchmark_group("closed_loop");
    group.throughput(Throughput::Elements(BLOCKS)).sample_size(10);
    for depth in [1u32, 32] {
        let work = Work {
            once: true,
            warmup: Duration::ZERO,
            runtime: Duration::from_secs(60),
            ..Work::new(Pattern::RandWrite, ByteSize::kib(4), depth, region)
        };
        let open = || {
            let target = Target::new(file.try_clone().expect("a file can be open twice"), "memory");
            Engine::open(Choice::Auto, &Config::new(depth, depth, 4096), vec![target])
        };
        group.bench_function(BenchmarkId::new("randwrite", depth), |bencher| {
            bencher.iter(|| load::run(&work, open, &Cancel::new(), |_| {}).expect("memory can be written").ios());
        });
    }
    group.finish();
}

criterion_group!(benches, closed_loop);
criterion_main!(benches);
