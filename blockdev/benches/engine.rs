//! What it costs to submit an operation and take its completion, on memory that answers at once: our part and the
//! kernel's way in and out, without a disk.
#![allow(missing_docs, reason = "criterion's macros make items without them")]

use std::fs::File;
use std::io::Write;

use blockdev::engine::{Choice, Config, Engine, Op, Span, Target};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nix::sys::memfd::{MFdFlags, memfd_create};

const BLOCK: u32 = 4096;
const BLOCKS: u64 = 256;

/// A file in memory, all of it written.
fn memory() -> Target {
    let mut file =
        File::from(memfd_create("bench", MFdFlags::MFD_CLOEXEC).expect("memory files exist since Linux 3.17"));
    file.write_all(&vec![1; BLOCK as usize * BLOCKS as usize]).expect("a mebibyte of memory");
    Target::new(file, "memory")
}

fn submit_and_complete(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("submit_complete");
    for choice in [Choice::Uring, Choice::Threads] {
        for depth in [1u32, 32] {
            let Ok(mut engine) = Engine::open(choice, &Config::new(depth, depth, BLOCK as usize), vec![memory()])
            else {
                // Containers forbid io_uring.
                continue;
            };
            group.throughput(Throughput::Elements(depth.into()));
            let mut done = Vec::new();
            group.bench_function(BenchmarkId::new(choice.to_string(), depth), |bencher| {
                bencher.iter(|| {
                    for buffer in 0..depth {
                        let offset = u64::from(buffer) % BLOCKS * u64::from(BLOCK);
                        let op = Op::Read { file: 0, offset, span: Span::whole(buffer, BLOCK) };
                        engine.submit(u64::from(buffer), op).expect("there is room for `depth` operations");
                    }
                    engine.drain(&mut done).expect("memory can be read");
                    done.clear();
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, submit_and_complete);
criterion_main!(benches);
