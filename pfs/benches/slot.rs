//! What the way through a slot costs without the disk and without waking anybody: both sides' steps one after the other on one
//! thread, and the copies between a caller's memory and a slot's buffer beside a plain copy of as many bytes.
#![allow(missing_docs, reason = "criterion's macros make items without them")]

use std::hint::black_box;
use std::process;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pfs::proto::request::FileId;
use pfs::proto::response::{self, Reply};
use pfs::proto::{ChannelNo, Header, Memory, MountId, Owner, Places, RegionNo, Request, slot};

/// Shared memory of its own, of which no file is left.
fn memory() -> Memory {
    let directory = tempfile::tempdir_in("/dev/shm").expect("Linux has /dev/shm");
    let places = Places { shm: directory.path().to_owned(), ..Places::default() };
    Memory::serve(&places, "bench").expect("there is memory for a pfsd").0
}

/// A channel whose slots hold so many bytes.
fn channel(bytes: usize) -> ChannelNo {
    ChannelNo::of(RegionNo::for_bytes(bytes).next().expect("no more than 4 MiB"), 0)
}

fn round(criterion: &mut Criterion) {
    let memory = memory();
    let number = channel(8192);
    let channel = memory.channel(number);
    let owner = Owner { connection: 0, pid: process::id().cast_signed() };
    let word = |slot| channel.slot(slot).word();
    let request = Request::Read { file: FileId { inode: 7, btime: 1 }, offset: 8192, len: 8192 };
    let header = Header { mount: MountId(0), file_type: 0 };
    let mut group = criterion.benchmark_group("slot");
    group.bench_function("claim, post, take, finish, release", |bencher| {
        bencher.iter(|| {
            let slot = slot::claim(channel.bitmap(), number.slots(), word, owner).expect("nobody else has one");
            slot::post(word(slot), owner);
            let taken = slot::take(word(slot), channel.slot(slot).state()).expect("nobody else is there");
            slot::finish(word(slot), taken);
            slot::release(word(slot), channel.bitmap(), slot, owner)
        });
    });
    group.bench_function("the same with a request and its answer", |bencher| {
        bencher.iter(|| {
            let number = slot::claim(channel.bitmap(), number.slots(), word, owner).expect("nobody else has one");
            let slot = channel.slot(number);
            request.put(header, slot);
            slot::post(slot.word(), owner);
            let taken = slot::take(slot.word(), slot.state()).expect("nobody else is there");
            let (_, asked) = Request::get(slot);
            let asked = asked.expect("it is one");
            response::put(asked.number(), &Ok(Reply::Read { inode: 7, len: 8192 }), slot);
            slot::finish(slot.word(), taken);
            let reply = response::get(&asked, slot);
            slot::release(slot.word(), channel.bitmap(), number, owner);
            reply
        });
    });
    group.finish();
}

fn copies(criterion: &mut Criterion) {
    let memory = memory();
    let mut group = criterion.benchmark_group("copy");
    for len in [8 << 10, 4 << 20] {
        let number = channel(len);
        let slot = memory.channel(number).slot(number.slots().next().expect("every channel has some"));
        let (mut ours, other) = (vec![1; len], vec![2; len]);
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("into a slot", len), |bencher| {
            bencher.iter(|| slot.copy_to_buffer(0, black_box(&other)));
        });
        group.bench_function(BenchmarkId::new("out of a slot", len), |bencher| {
            bencher.iter(|| slot.copy_from_buffer(0, black_box(&mut ours)));
        });
        group.bench_function(BenchmarkId::new("plain", len), |bencher| {
            bencher.iter(|| black_box(&mut ours).copy_from_slice(black_box(&other)));
        });
    }
    group.finish();
}

criterion_group!(benches, round, copies);
criterion_main!(benches);
