//! Writing volumes from many threads, and many times at once from one.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use blockdev::buffer::Memory;
use blockdev::engine::{Choice, Lent};
use common::clean;
use common::script::pattern;
use pfs::format::{Bda, Stamp};
use pfs::volume::writer::{Handle, Options, Position, Writer};
use pfs::volume::{Device, Volume, VolumePath, Witness};

fn path(text: &str) -> VolumePath {
    VolumePath::new(text)
}

#[test]
fn what_waits_at_once_is_written_at_once() {
    const THREADS: usize = 16;
    const EACH: usize = 625;
    let (image, _directory) = common::large::of_chunks(6);
    let writer = Writer::open(&image, Options::default()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let writer = &writer;
            scope.spawn(move || {
                writer.mkdir(&path(&format!("/d{thread}"))).unwrap();
                for file in 0..EACH {
                    writer.create(&path(&format!("/d{thread}/f{file}")), true).unwrap();
                }
            });
        }
    });
    let statistics = writer.statistics();
    writer.close().unwrap();
    clean(&image);
    assert_eq!(statistics.transactions, (THREADS * (EACH + 1)) as u64);
    assert!(statistics.commits * 5 <= statistics.transactions, "{statistics:?}");
    let volume = Volume::open(&image).unwrap();
    for thread in 0..THREADS {
        let directory = volume.metadata().lookup(&path(&format!("/d{thread}"))).unwrap();
        assert_eq!(volume.metadata().entries(directory.number).unwrap().len(), EACH);
    }
}

/// A file of so many bytes, all written.
fn filled(writer: &Writer, name: &str, len: usize) -> Handle {
    let file = writer.create(&path(name), true).unwrap();
    writer.content().unwrap().write(file, Position::At(0), &vec![0xff; len]).unwrap();
    file
}

#[test]
fn writers_of_one_sector_do_not_lose_each_other() {
    const LEN: usize = 20_000;
    let (image, _directory) = common::copy("fresh-10g");
    let writer = Writer::open(&image, Options::default()).unwrap();
    let file = filled(&writer, "/f", LEN);
    // Stripes of 100 bytes, each thread's its own, so that nearly every sector is everybody's.
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let writer = &writer;
            scope.spawn(move || {
                let mut content = writer.content().unwrap();
                for round in 0..5 {
                    for stripe in (usize::from(thread)..LEN / 100).step_by(4) {
                        let bytes = [thread * 10 + round; 100];
                        content.write(file, Position::At(stripe as u64 * 100), &bytes).unwrap();
                    }
                }
            });
        }
    });
    let mut bytes = vec![0; LEN];
    assert_eq!(writer.content().unwrap().read(file, 0, &mut bytes).unwrap(), LEN);
    for (at, byte) in bytes.iter().enumerate() {
        assert_eq!(usize::from(*byte), at / 100 % 4 * 10 + 4, "byte {at}");
    }
    // None of that changed the file but in its place: one transaction made it, two filled it.
    assert_eq!(writer.statistics().transactions, 3);
}

#[test]
fn appends_of_many_threads_are_all_there() {
    let (image, _directory) = common::copy("fresh-10g");
    let writer = Writer::open(&image, Options::default()).unwrap();
    let file = writer.create(&path("/f"), true).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let writer = &writer;
            scope.spawn(move || {
                let mut content = writer.content().unwrap();
                for _ in 0..50 {
                    content.write(file, Position::End, &[thread; 777]).unwrap();
                }
            });
        }
    });
    let mut bytes = vec![9; 4 * 50 * 777 + 1];
    assert_eq!(writer.content().unwrap().read(file, 0, &mut bytes).unwrap(), 4 * 50 * 777);
    let mut counts = [0; 4];
    for chunk in bytes[..4 * 50 * 777].chunks(777) {
        assert!(chunk.iter().all(|byte| *byte == chunk[0]));
        counts[usize::from(chunk[0])] += 1;
    }
    assert_eq!(counts, [50; 4]);
}

/// Counts flushes.
#[derive(Debug, Default)]
struct Flushes(AtomicUsize);

impl Witness for Flushes {
    fn write(&self, _: Bda, _: &[u8]) {}

    fn flush(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn what_is_durable_shares_flushes() {
    const WRITES: usize = 200;
    let (image, _directory) = common::copy("fresh-10g");
    let flushes = Arc::<Flushes>::default();
    let device = Device::open_writable(&image, Choice::Auto).unwrap().witnessed(flushes.clone());
    let writer = Writer::on(device, Options { durable: true, ..Options::default() }).unwrap();
    let file = filled(&writer, "/f", WRITES * 4096);
    let memory = Memory::new(4096).unwrap();
    // SAFETY: nobody writes the memory, and everything on it is waited for.
    let bytes = unsafe { Lent::new(memory.as_ptr(), 4096) };
    let mut content = writer.content().unwrap();
    let before = flushes.0.load(Ordering::Relaxed);
    // More than can be in flight; none of them changes anything but data.
    for number in 0..WRITES as u64 {
        content.start_write(number, file, Position::At(number * 4096), bytes);
    }
    let mut finished = Vec::new();
    content.complete(WRITES, None, &mut finished).unwrap();
    assert!(finished.drain(..).all(|finished| finished.result.is_ok()));
    let shared = flushes.0.load(Ordering::Relaxed) - before;
    assert!((1..WRITES).contains(&shared), "{shared} flushes");
    // Who is alone has its own.
    content.write(file, Position::At(0), &[1; 4096]).unwrap();
    assert_eq!(flushes.0.load(Ordering::Relaxed) - before, shared + 1);
}

#[test]
fn many_reads_and_writes_at_once_on_one_thread() {
    const LEN: u32 = 6 << 20;
    let (image, _directory) = common::copy("fresh-10g");
    let writer = Writer::open(&image, Options::default()).unwrap();
    let file = filled(&writer, "/f", 1 << 20);
    let memory = Memory::new(2 * LEN as usize).unwrap();
    // SAFETY: nobody else has the memory, and everything on it is waited for.
    let (from, into) = unsafe {
        let start = memory.as_ptr();
        (Lent::new(start, LEN), Lent::new(start.add(LEN as usize), LEN))
    };
    // SAFETY: as above; nothing is in flight when these are used.
    let bytes = |lent: Lent| unsafe { std::slice::from_raw_parts_mut(lent.start().as_ptr(), LEN as usize) };
    bytes(from).copy_from_slice(&pattern(3, 0, LEN as usize));
    let mut content = writer.content().unwrap();
    let mut finished = Vec::new();
    for seed in 0..4 {
        bytes(into).fill(0xaa);
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut at, mut tag, mut parts) = (0, 0, Vec::new());
        while at < LEN {
            // What is aligned, what is not, and what is partly.
            let len = [1, 4095, 4096, 5000, 65_536, 262_144, 1_000_000][random.usize(..7)].min(LEN - at);
            content.start_write(tag, file, Position::At(at.into()), from.part(at, len));
            parts.push((at, len));
            (at, tag) = (at + len, tag + 1);
        }
        assert_eq!(content.unfinished(), parts.len());
        content.complete(usize::MAX, None, &mut finished).unwrap();
        let mut tags: Vec<u64> = finished
            .drain(..)
            .map(|finished| {
                #[allow(clippy::cast_possible_truncation, reason = "a number of parts")]
                let (at, _) = parts[finished.tag as usize];
                assert_eq!(finished.result.unwrap(), u64::from(at));
                finished.tag
            })
            .collect();
        tags.sort_unstable();
        assert_eq!(tags, (0..tag).collect::<Vec<_>>());
        assert_eq!(writer.stat(file).unwrap().size, u64::from(LEN));
        for (tag, (at, len)) in (0..).zip(&parts) {
            content.start_read(tag, file, (*at).into(), into.part(*at, *len));
        }
        content.complete(parts.len(), None, &mut finished).unwrap();
        for finished in finished.drain(..) {
            #[allow(clippy::cast_possible_truncation, reason = "a number of parts")]
            let (_, len) = parts[finished.tag as usize];
            assert_eq!(finished.result.unwrap(), u64::from(len));
        }
        assert!(bytes(into) == bytes(from), "seed {seed}");
        // The next time it is all new again.
        writer.truncate(file, 1000).unwrap();
    }
    content.start_read(7, Handle { btime: Stamp(1), ..file }, 0, into);
    content.complete(1, None, &mut finished).unwrap();
    let error = finished.pop().unwrap().result.unwrap_err();
    assert_eq!(error.errno(), Some(libc::ENOENT));
    drop(content);
    writer.close().unwrap();
    clean(&image);
}
