//! What the engine makes of a backend that cuts I/Os short, interrupts them or fails them: faults that a healthy disk
//! will not show.

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::fs::File;

/// A backend over a vector of bytes whose next results are scripted.
#[derive(Debug)]
struct Faulty {
    disk: Vec<u8>,
    script: VecDeque<Fault>,
    ready: Vec<Done>,
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// Do at most so many bytes.
    Short(u32),
    /// Do nothing and fail.
    Errno(i32),
}

// SAFETY: every call is done inside `push`.
unsafe impl Backend for Faulty {
    fn push(&mut self, slot: u32, call: Call) {
        let limit = match self.script.pop_front() {
            Some(Fault::Errno(errno)) => {
                self.ready.push(Done { slot, result: -errno });
                return;
            }
            Some(Fault::Short(limit)) => limit,
            None => u32::MAX,
        };
        let count =
            |len: u32, offset: u64| (len.min(limit) as usize).min(self.disk.len().saturating_sub(offset as usize));
        let result = match call {
            Call::Read { at, len, offset, .. } => {
                let count = count(len, offset);
                // SAFETY: the engine lends `len` bytes at `at`.
                let memory = unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), count) };
                memory.copy_from_slice(&self.disk[offset as usize..][..count]);
                count
            }
            Call::Write { at, len, offset, .. } => {
                let count = count(len, offset);
                // SAFETY: the engine lends `len` bytes at `at`.
                let memory = unsafe { std::slice::from_raw_parts(at.as_ptr(), count) };
                self.disk[offset as usize..][..count].copy_from_slice(memory);
                count
            }
            _ => 0,
        };
        self.ready.push(Done { slot, result: i32::try_from(result).unwrap() });
    }

    fn wait(&mut self, _min: usize, _timeout: Option<Duration>, done: &mut Vec<Done>) -> io::Result<()> {
        done.append(&mut self.ready);
        Ok(())
    }

    fn wait_or_ready(&mut self, _: &mut [Watched], _: Option<Duration>, done: &mut Vec<Done>) -> io::Result<()> {
        self.wait(1, None, done)
    }
}

fn engine(disk: Vec<u8>, script: &[Fault]) -> Engine {
    let config = Config::new(4, 2, 8192);
    let backend = Faulty { disk, script: script.iter().copied().collect(), ready: Vec::new() };
    let targets = vec![Target::new(File::open("/dev/null").unwrap(), "disk.img")];
    let memory = Memory::new(2 * 8192).unwrap();
    Engine::over(Box::new(backend), Kind::Threads, Vec::new(), &config, 8192, memory, targets)
}

fn run(engine: &mut Engine, op: Op) -> Result<()> {
    let mut done = Vec::new();
    engine.submit(7, op).unwrap();
    engine.complete(1, None, &mut done).unwrap();
    assert_eq!((done.len(), engine.in_flight()), (1, 0));
    assert_eq!(done[0].tag, 7);
    done.pop().unwrap().result
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 31 % 251) as u8).collect()
}

const READ: Op = Op::Read { file: 0, offset: 4096, span: Span::whole(1, 8192) };

#[test]
fn short_reads_are_continued_where_they_stopped() {
    let mut engine = engine(pattern(16384), &[Fault::Short(512), Fault::Errno(libc::EINTR), Fault::Short(4096)]);
    run(&mut engine, READ).unwrap();
    assert_eq!(engine.buffer(1), &pattern(16384)[4096..12288]);
}

#[test]
fn short_writes_are_continued_where_they_stopped() {
    let mut engine = engine(vec![0; 16384], &[Fault::Errno(libc::EAGAIN), Fault::Short(1), Fault::Short(5000)]);
    engine.buffer_mut(0).copy_from_slice(&pattern(8192));
    run(&mut engine, Op::Write { file: 0, offset: 100, span: Span { buffer: 0, start: 10, len: 8000 } }).unwrap();
    run(&mut engine, Op::Read { file: 0, offset: 100, span: Span::whole(1, 8000) }).unwrap();
    assert_eq!(&engine.buffer(1)[..8000], &pattern(8192)[10..8010]);
}

#[test]
fn a_failed_block_is_named_with_the_offset_that_failed() {
    let mut engine = engine(pattern(16384), &[Fault::Short(512), Fault::Errno(libc::EIO)]);
    let error = run(&mut engine, READ).unwrap_err();
    assert_eq!(error.to_string(), "disk.img: read of 7680 bytes at offset 4608 failed");
    assert_eq!(error.errno(), Some(libc::EIO));
    run(&mut engine, READ).unwrap();
}

#[test]
fn the_end_of_the_file_is_an_error_with_its_offset() {
    let mut engine = engine(pattern(6000), &[]);
    let error = run(&mut engine, READ).unwrap_err();
    assert_eq!(error.to_string(), "disk.img: read of 6288 bytes at offset 6000 failed");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "the file ends there");
}

#[test]
fn an_operation_that_never_progresses_fails_at_last() {
    let mut engine = engine(pattern(16384), &[Fault::Errno(libc::EAGAIN); RETRIES_MAX as usize + 1]);
    assert_eq!(run(&mut engine, READ).unwrap_err().errno(), Some(libc::EAGAIN));
}

#[test]
fn what_does_not_fit_is_refused_and_takes_nothing() {
    let mut engine = engine(pattern(16384), &[]);
    for (op, why) in [
        (Op::Read { file: 1, offset: 0, span: Span::whole(0, 1) }, "file 1 of 1"),
        (Op::Read { file: 0, offset: 0, span: Span::whole(2, 1) }, "not inside 2 buffers"),
        (Op::Read { file: 0, offset: 0, span: Span::whole(0, 0) }, "not inside"),
        (Op::Read { file: 0, offset: 0, span: Span::whole(0, 8193) }, "not inside"),
        (Op::Write { file: 0, offset: 0, span: Span { buffer: 0, start: u32::MAX, len: u32::MAX } }, "not inside"),
    ] {
        let error = engine.submit(0, op).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    assert_eq!((engine.in_flight(), engine.room()), (0, 4));
}

#[test]
fn writes_share_a_buffer_and_a_read_does_not() {
    let mut engine = engine(vec![0; 16384], &[]);
    let write = |offset| Op::Write { file: 0, offset, span: Span::whole(0, 4096) };
    let read = |buffer| Op::Read { file: 0, offset: 0, span: Span::whole(buffer, 4096) };
    engine.submit(0, write(0)).unwrap();
    engine.submit(1, write(4096)).unwrap();
    assert!(engine.submit(2, read(0)).is_err());
    engine.submit(2, read(1)).unwrap();
    assert!(engine.submit(3, read(1)).is_err());
    assert!(engine.submit(3, Op::Write { file: 0, offset: 0, span: Span::whole(1, 1) }).is_err());
    engine.submit(3, write(8192)).unwrap();
    assert!(engine.submit(4, write(0)).unwrap_err().to_string().contains("queue is full"));
    let mut done = Vec::new();
    engine.drain(&mut done).unwrap();
    assert_eq!(done.len(), 4);
    engine.buffer_mut(0).fill(1);
    engine.buffer_mut(1).fill(1);
}

#[test]
#[should_panic(expected = "in flight")]
fn a_buffer_in_flight_cannot_be_touched() {
    let mut engine = engine(vec![0; 16384], &[]);
    engine.submit(0, Op::Write { file: 0, offset: 0, span: Span::whole(0, 4096) }).unwrap();
    engine.buffer_mut(0).fill(1);
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![(1u32..9000).prop_map(Fault::Short), Just(Fault::Errno(libc::EINTR)), Just(Fault::Errno(libc::EAGAIN)),]
}

proptest! {
    #[test]
    fn any_cutting_short_moves_the_same_bytes(
        script in prop::collection::vec(fault(), 0..40),
        start in 0u32..100,
        len in 1u32..8000,
        offset in 0u64..8000,
    ) {
        let mut engine = engine(vec![0; 16384], &script);
        engine.buffer_mut(0).copy_from_slice(&pattern(8192));
        run(&mut engine, Op::Write { file: 0, offset, span: Span { buffer: 0, start, len } }).unwrap();
        run(&mut engine, Op::Read { file: 0, offset, span: Span { buffer: 1, start, len } }).unwrap();
        let range = start as usize..(start + len) as usize;
        prop_assert_eq!(&engine.buffer(1)[range.clone()], &pattern(8192)[range]);
    }
}
