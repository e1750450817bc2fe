//! What it costs to stamp a block, to check it, and to see that it is zero.
#![allow(missing_docs, reason = "criterion's macros make items without them")]

use std::hint::black_box;

use blockdev::stamp::{self, Stamp};
use blockdev::{ByteOffset, zero};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn blocks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("block");
    for size in [4096usize, 8192, 1 << 20] {
        group.throughput(Throughput::Bytes(size as u64));
        let stamp = Stamp { seed: 1, offset: ByteOffset::new(1 << 30), generation: 7 };
        let mut block = vec![0; size];
        group.bench_function(BenchmarkId::new("is_zero", size), |bencher| {
            bencher.iter(|| zero::is_zero(black_box(&block)))
        });
        group.bench_function(BenchmarkId::new("stamp", size), |bencher| {
            bencher.iter(|| stamp::write(black_box(&mut block), black_box(stamp)));
        });
        group.bench_function(BenchmarkId::new("check", size), |bencher| {
            bencher.iter(|| stamp::check(black_box(&block), &stamp.into()));
        });
    }
    group.finish();
}

criterion_group!(benches, blocks);
criterion_main!(benches);
