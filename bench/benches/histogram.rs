//! What it costs to record a latency, to merge what threads recorded, and to read a percentile.
#![allow(missing_docs, reason = "criterion's macros make items without them")]

use std::hint::black_box;

use bench::report::Histogram;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Latencies as a disk has them: around 100 µs, some much longer.
fn latencies() -> Vec<u64> {
    let mut rng = fastrand::Rng::with_seed(1);
    (0..1024).map(|_| 60_000 + rng.u64(..80_000) + if rng.u8(..) < 3 { rng.u64(..20_000_000) } else { 0 }).collect()
}

fn histogram(criterion: &mut Criterion) {
    let latencies = latencies();
    let mut group = criterion.benchmark_group("histogram");
    group.throughput(Throughput::Elements(latencies.len() as u64));
    let mut histogram = Histogram::new();
    group.bench_function("record", |bencher| {
        bencher.iter(|| latencies.iter().for_each(|ns| histogram.record(black_box(*ns))));
    });
    group.throughput(Throughput::Elements(1));
    let other = histogram.clone();
    group.bench_function("merge", |bencher| bencher.iter(|| histogram.merge(black_box(&other))));
    group.bench_function("percentile", |bencher| bencher.iter(|| black_box(&other).percentile(99.9)));
    group.finish();
}

criterion_group!(benches, histogram);
criterion_main!(benches);
