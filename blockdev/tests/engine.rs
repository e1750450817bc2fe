//! One suite, both engines, real files.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use blockdev::buffer::Memory;
use blockdev::engine::{
    Choice, Completion, Config, Engine, Interest, Kind, Lent, Op, Reserve, Span, Target, Watched, uring_works,
};
use blockdev::loopdev;
use proptest::prelude::*;

/// A file to play with, in a directory that goes with it. It lies below the build directory, which is on a real disk;
/// /tmp may be a tmpfs, which has no O_DIRECT.
struct Disk {
    path: PathBuf,
    direct: bool,
    _dir: tempfile::TempDir,
}

impl Disk {
    fn new(size: u64) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(size).unwrap();
        let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path).is_ok();
        Self { path, direct, _dir: dir }
    }

    fn target(&self) -> Target {
        let flags = if self.direct { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&self.path).unwrap();
        Target::new(file, &self.path)
    }

    fn engine(&self, choice: Choice, depth: u32, buffers: u32, size: usize) -> Engine {
        Engine::open(choice, &Config::new(depth, buffers, size), vec![self.target()]).unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        File::open(&self.path).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }
}

fn both(test: impl Fn(Choice)) {
    for choice in [Choice::Uring, Choice::UringSqpoll, Choice::Aio, Choice::Threads] {
        test(choice);
    }
}

fn drained(engine: &mut Engine) -> Vec<Completion> {
    let mut done = Vec::new();
    engine.drain(&mut done).unwrap();
    done
}

#[test]
fn written_blocks_are_read_back() {
    both(|choice| {
        let disk = Disk::new(1 << 20);
        let mut engine = disk.engine(choice, 8, 8, 4096);
        for index in 0..8u32 {
            engine.buffer_mut(index).fill(u8::try_from(index + 1).unwrap());
            let offset = u64::from(index) * 8192;
            engine.submit(u64::from(index), Op::Write { file: 0, offset, span: Span::whole(index, 4096) }).unwrap();
        }
        let mut tags: Vec<u64> = drained(&mut engine)
            .into_iter()
            .map(|completion| {
                completion.result.unwrap();
                completion.tag
            })
            .collect();
        tags.sort_unstable();
        assert_eq!(tags, (0..8).collect::<Vec<_>>());
        let bytes = disk.bytes();
        for index in 0..8usize {
            assert!(bytes[index * 8192..][..4096].iter().all(|byte| usize::from(*byte) == index + 1));
            assert!(bytes[index * 8192 + 4096..][..4096].iter().all(|byte| *byte == 0));
        }
        engine.buffer_mut(0).fill(0);
        engine.submit(9, Op::Read { file: 0, offset: 7 * 8192, span: Span::whole(0, 4096) }).unwrap();
        drained(&mut engine).pop().unwrap().result.unwrap();
        assert!(engine.buffer(0).iter().all(|byte| *byte == 8));
    });
}

#[test]
fn memory_of_others_is_written_and_read_where_it_is() {
    both(|choice| {
        let disk = Disk::new(1 << 20);
        let mut engine = disk.engine(choice, 4, 1, 4096);
        let memory = Memory::new(1 << 20).unwrap();
        // SAFETY: nobody else uses the memory, which outlives the engine's operations on it: they are waited for.
        let lent = unsafe { Lent::new(memory.as_ptr(), 1 << 20) };
        // SAFETY: as above.
        let bytes = || unsafe { std::slice::from_raw_parts_mut(memory.as_ptr().as_ptr(), 1 << 20) };
        bytes().iter_mut().enumerate().for_each(|(index, byte)| *byte = (index % 251) as u8);
        let written = bytes().to_vec();
        engine.submit(1, Op::WriteLent { file: 0, offset: 4096, memory: lent.part(8192, 512 << 10) }).unwrap();
        drained(&mut engine).pop().unwrap().result.unwrap();
        assert_eq!(disk.bytes()[4096..][..512 << 10], written[8192..][..512 << 10]);
        bytes().fill(0);
        engine.submit(2, Op::ReadLent { file: 0, offset: 4096, memory: lent.part(0, 512 << 10) }).unwrap();
        drained(&mut engine).pop().unwrap().result.unwrap();
        assert_eq!(bytes()[..512 << 10], written[8192..][..512 << 10]);
        assert!(bytes()[512 << 10..].iter().all(|byte| *byte == 0));
        let beyond = Op::ReadLent { file: 0, offset: (1 << 20) - 4096, memory: lent.part(0, 8192) };
        engine.submit(3, beyond).unwrap();
        let error = drained(&mut engine).pop().unwrap().result.unwrap_err();
        let path = disk.path.display();
        assert_eq!(error.to_string(), format!("{path}: read of 4096 bytes at offset 1048576 failed"));
        assert!(engine.submit(4, Op::ReadLent { file: 0, offset: 0, memory: lent.part(0, 0) }).is_err());
    });
}

#[test]
fn the_queue_refills_while_it_runs() {
    both(|choice| {
        const BLOCKS: u64 = 2000;
        let disk = Disk::new(BLOCKS * 4096);
        let mut engine = disk.engine(choice, 16, 1, 4096);
        engine.buffer_mut(0).fill(0xa5);
        let (mut next, mut finished) = (0, 0);
        let mut done = Vec::new();
        while finished < BLOCKS {
            while next < BLOCKS && engine.room() > 0 {
                engine.submit(next, Op::Write { file: 0, offset: next * 4096, span: Span::whole(0, 4096) }).unwrap();
                next += 1;
            }
            assert!(engine.in_flight() <= 16);
            done.clear();
            engine.complete(1, None, &mut done).unwrap();
            finished += done.len() as u64;
            assert!(done.iter().all(|completion| completion.result.is_ok()));
        }
        assert!(disk.bytes().iter().all(|byte| *byte == 0xa5));
    });
}

#[test]
fn flush_reserve_and_discard() {
    both(|choice| {
        let disk = Disk::new(0);
        let mut engine = disk.engine(choice, 4, 1, 65536);
        engine.submit(0, Op::Fallocate { file: 0, mode: Reserve::Extend, offset: 0, len: 131_072 }).unwrap();
        drained(&mut engine).pop().unwrap().result.unwrap();
        assert_eq!(disk.bytes().len(), 131_072);
        engine.submit(1, Op::Fallocate { file: 0, mode: Reserve::KeepSize, offset: 131_072, len: 65536 }).unwrap();
        drained(&mut engine).pop().unwrap().result.unwrap();
        assert_eq!(disk.bytes().len(), 131_072);

        engine.buffer_mut(0).fill(9);
        engine.submit(2, Op::Write { file: 0, offset: 0, span: Span::whole(0, 65536) }).unwrap();
        drained(&mut engine).pop().unwrap().result.unwrap();
        engine.submit(3, Op::Fdatasync { file: 0 }).unwrap();
        drained(&mut engine).pop().unwrap().result.unwrap();
        engine.submit(4, Op::Discard { file: 0, offset: 4096, len: 4096 }).unwrap();
        drained(&mut engine).pop().unwrap().result.unwrap();
        let bytes = disk.bytes();
        assert_eq!((bytes[4095], bytes[4096], bytes[8191], bytes[8192]), (9, 0, 0, 9));
    });
}

#[test]
fn a_block_device_is_flushed_and_discarded() {
    tests::needs_root!();
    both(|choice| {
        let disk = Disk::new(1 << 20);
        std::fs::write(&disk.path, vec![5; 1 << 20]).unwrap();
        let attachment = loopdev::attach(&disk.path, &loopdev::Options::default()).unwrap();
        let path = &attachment.device().path;
        let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
        let mut engine = Engine::open(choice, &Config::new(2, 1, 4096), vec![Target::new(device, path)]).unwrap();
        for op in [Op::Discard { file: 0, offset: 65536, len: 131_072 }, Op::Fdatasync { file: 0 }] {
            engine.submit(0, op).unwrap();
            drained(&mut engine).pop().unwrap().result.unwrap();
        }
        for (offset, expected) in [(61440, 5), (65536, 0), (192_512, 0), (196_608, 5)] {
            engine.submit(0, Op::Read { file: 0, offset, span: Span::whole(0, 4096) }).unwrap();
            drained(&mut engine).pop().unwrap().result.unwrap();
            assert!(engine.buffer(0).iter().all(|byte| *byte == expected), "at {offset}");
        }
        drop(engine);
        attachment.detach().unwrap();
        assert_eq!(disk.bytes()[65536], 0, "the hole reached the file");
    });
}

#[test]
fn a_failed_block_names_the_file_and_the_offset() {
    both(|choice| {
        let disk = Disk::new(65536);
        let mut engine = disk.engine(choice, 4, 2, 8192);
        engine.submit(1, Op::Read { file: 0, offset: 61440, span: Span::whole(0, 8192) }).unwrap();
        let error = drained(&mut engine).pop().unwrap().result.unwrap_err();
        assert_eq!(error.to_string(), format!("{}: read of 4096 bytes at offset 65536 failed", disk.path.display()));

        let read_only = Target::new(File::open(&disk.path).unwrap(), &disk.path);
        let mut engine = Engine::open(choice, &Config::new(1, 1, 4096), vec![read_only]).unwrap();
        engine.submit(2, Op::Write { file: 0, offset: 0, span: Span::whole(0, 4096) }).unwrap();
        let error = drained(&mut engine).pop().unwrap().result.unwrap_err();
        assert_eq!(error.errno(), Some(libc::EBADF), "{error:?}");
    });
}

#[test]
fn waiting_ends_when_the_time_is_up() {
    both(|choice| {
        // A pipe that nobody writes to: its read stays in flight.
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut engine =
            Engine::open(choice, &Config::new(2, 1, 4096), vec![Target::new(File::from(reader), "a pipe")]).unwrap();
        engine.submit(1, Op::Read { file: 0, offset: u64::MAX, span: Span::whole(0, 4096) }).unwrap();
        let mut done = Vec::new();
        let plain = matches!(choice, Choice::Threads | Choice::Aio);
        if plain {
            // pread has no place in a pipe; what is tested here needs something slow, which only the ring can read.
            drained(&mut engine);
        }
        let start = Instant::now();
        assert_eq!(engine.complete(1, Some(Duration::from_millis(50)), &mut done).unwrap(), 0);
        if !plain {
            assert!(start.elapsed() >= Duration::from_millis(50));
            assert_eq!(engine.in_flight(), 1);
        }
        drop(writer);
        drained(&mut engine);
    });
}

#[test]
fn an_engine_dropped_in_flight_finishes_first() {
    both(|choice| {
        let disk = Disk::new(4 << 20);
        let mut engine = disk.engine(choice, 64, 1, 65536);
        engine.buffer_mut(0).fill(3);
        for index in 0..64 {
            engine.submit(index, Op::Write { file: 0, offset: index * 65536, span: Span::whole(0, 65536) }).unwrap();
        }
        engine.complete(0, None, &mut Vec::new()).unwrap();
        drop(engine);
        assert!(disk.bytes().iter().all(|byte| *byte == 3));
    });
}

#[test]
fn out_of_range_configurations_are_refused() {
    for config in
        [Config::new(0, 1, 4096), Config::new(4097, 1, 4096), Config::new(1, 0, 4096), Config::new(1, 2, 1 << 30)]
    {
        assert!(Engine::open(Choice::Threads, &config, Vec::new()).is_err(), "{config:?}");
    }
}

#[test]
fn auto_takes_the_ring_where_it_works() {
    let disk = Disk::new(4096);
    let engine = disk.engine(Choice::Auto, 1, 1, 4096);
    match uring_works() {
        Ok(()) => assert_eq!(engine.kind(), Kind::Uring),
        Err(_) => {
            assert!(matches!(engine.kind(), Kind::Aio | Kind::Threads), "{}", engine.kind());
            assert!(engine.notices()[0].contains("io_uring does not work here"));
        }
    }
}

#[test]
fn eight_mebibytes_of_locked_memory_are_enough() {
    // Without CAP_IPC_LOCK the kernel charges registered buffers; beyond the limit the engine says so and still works.
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK).unwrap().0;
    let disk = Disk::new(4 << 20);
    let engine = disk.engine(Choice::Uring, 128, 128, 16384);
    if limit >= 8 << 20 {
        assert!(engine.notices().is_empty(), "{:?}", engine.notices());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_aligned_writes_land_where_they_belong(
        writes in prop::collection::vec((0u64..60, 1u32..5, any::<u8>()), 1..20),
        threads: bool,
    ) {
        let disk = Disk::new(64 * 4096);
        let choice = if threads { Choice::Threads } else { Choice::Uring };
        let mut engine = disk.engine(choice, 4, 4, 4 * 4096);
        let mut model = vec![0u8; 64 * 4096];
        // One at a time: the order of overlapping writes in flight is nobody's promise.
        for (block, blocks, byte) in writes {
            let (offset, len) = (block * 4096, blocks * 4096);
            engine.buffer_mut(2).fill(byte);
            engine.submit(0, Op::Write { file: 0, offset, span: Span::whole(2, len) }).unwrap();
            for completion in drained(&mut engine) {
                completion.result.unwrap();
            }
            model[usize::try_from(offset).unwrap()..][..len as usize].fill(byte);
        }
        let mut bytes = vec![0; model.len()];
        File::open(&disk.path).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        prop_assert!(bytes == model);
    }
}

#[test]
fn descriptors_are_watched_while_io_is_waited_for() {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    both(|choice| {
        let disk = Disk::new(1 << 20);
        let mut engine = disk.engine(choice, 4, 4, 4096);
        let (mut far, near) = UnixStream::pair().unwrap();
        let (_silent, quiet) = UnixStream::pair().unwrap();
        let mut done = Vec::new();
        let mut wait = |engine: &mut Engine, timeout| {
            let mut watched =
                [Watched::new(near.as_fd(), Interest::Readable), Watched::new(quiet.as_fd(), Interest::Readable)];
            engine.complete_or_ready(&mut watched, Some(timeout), &mut done).unwrap();
            assert!(!watched[1].ready(), "nobody wrote there");
            (std::mem::take(&mut done).len(), watched[0].ready())
        };
        let read = |index| Op::Read { file: 0, offset: 0, span: Span::whole(index, 4096) };

        // With nothing in flight, and nothing to be had.
        assert_eq!(wait(&mut engine, Duration::from_millis(1)), (0, false));
        far.write_all(b"x").unwrap();
        assert_eq!(wait(&mut engine, Duration::from_secs(60)), (0, true));
        // Ready as long as nobody reads it, and I/O completes beside it.
        for index in 0..4 {
            engine.submit(u64::from(index), read(index)).unwrap();
        }
        let (mut completed, mut seen) = (0, false);
        while engine.in_flight() > 0 || !seen {
            let (count, ready) = wait(&mut engine, Duration::from_secs(60));
            (completed, seen) = (completed + count, seen | ready);
        }
        assert_eq!(completed, 4);
        // Read empty, it is not ready any more; what was watched before must not say so.
        near.set_nonblocking(true).unwrap();
        assert_eq!((&near).read(&mut [0; 8]).unwrap(), 1);
        engine.submit(9, read(0)).unwrap();
        let (mut completed, mut rounds) = (0, 0);
        while completed == 0 || rounds < 3 {
            let (count, ready) = wait(&mut engine, Duration::from_millis(10));
            // Once it may still be told what was true before.
            assert!(!ready || rounds == 0, "round {rounds}");
            (completed, rounds) = (completed + count, rounds + 1);
        }
        // The end of the other side is something that happened.
        drop(far.try_clone().unwrap());
        far.shutdown(std::net::Shutdown::Both).unwrap();
        assert!(wait(&mut engine, Duration::from_secs(60)).1);
        drop(engine);
    });
}

#[test]
fn writes_that_are_made_at_once_are_made() {
    both(|choice| {
        let disk = Disk::new(1 << 20);
        let file = OpenOptions::new().read(true).write(true).open(&disk.path).unwrap();
        let target = Target::new(file, &disk.path).with_inline_writes();
        let mut engine = Engine::open(choice, &Config::new(4, 4, 4096), vec![target]).unwrap();
        for index in 0..4u32 {
            engine.buffer_mut(index).fill(7 + u8::try_from(index).unwrap());
            let (offset, span) = (u64::from(index) * 4096, Span::whole(index, 4096));
            engine.submit(u64::from(index), Op::Write { file: 0, offset, span }).unwrap();
        }
        let done = drained(&mut engine);
        assert!(done.len() == 4 && done.iter().all(|completion| completion.result.is_ok()));
        let bytes = disk.bytes();
        assert!((0..4).all(|index| bytes[index * 4096..][..4096].iter().all(|byte| usize::from(*byte) == 7 + index)));
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let target = Target::new(full, "/dev/full").with_inline_writes();
        let mut engine = Engine::open(choice, &Config::new(4, 4, 4096), vec![target]).unwrap();
        engine.submit(0, Op::Write { file: 0, offset: 0, span: Span::whole(0, 4096) }).unwrap();
        let error = drained(&mut engine).pop().unwrap().result.unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOSPC));
    });
}
