//! What the layers of a served disk do to requests, its power and its hosts: through a port, as an export uses it.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use blockdev::buffer::Memory;
use blockdev::emulate::{
    Action, Answer, Disk, DiskOptions, HostId, Keep, LayerName, Layers, Operation, Outcome, Port, Recording, Request,
};
use blockdev::engine::{Choice, Lent};
use blockdev::{ByteOffset, ByteRange, ByteSize, ErrorKind};
use nix::errno::Errno;
use proptest::prelude::*;

const SIZE: u64 = 4 << 20;
const SECTOR: usize = 512;

struct Fixture {
    disk: Arc<Disk>,
    dir: tempfile::TempDir,
}

impl Fixture {
    fn with(options: DiskOptions, layers: &Layers) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let image = dir.path().join("disk.img");
        File::create(&image).unwrap().set_len(SIZE).unwrap();
        let disk = Disk::open(&image, options).unwrap();
        disk.set_layers(layers.clone()).unwrap();
        Self { disk, dir }
    }

    fn new(layers: &Layers) -> Self {
        Self::with(
            DiskOptions { hosts: vec!["a".parse().unwrap(), "b".parse().unwrap()], ..DiskOptions::default() },
            layers,
        )
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What is on the image itself.
    fn image(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
        File::open(self.path("disk.img")).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn user(&self) -> User {
        self.host("a")
    }

    fn host(&self, name: &str) -> User {
        User {
            port: self.disk.open_port(64).unwrap(),
            host: self.disk.host(name).unwrap(),
            memory: Memory::new(1 << 20).unwrap(),
        }
    }
}

/// A host's port, and memory for its requests.
struct User {
    // Dropped before the memory that it was lent.
    port: Port,
    host: HostId,
    memory: Memory,
}

impl User {
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: requests are waited for before anybody looks.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr().as_ptr(), self.memory.len()) }
    }

    fn lent(&self, len: usize) -> Lent {
        // SAFETY: the port is dropped before the memory; requests are waited for before it is used again.
        unsafe { Lent::new(self.memory.as_ptr(), u32::try_from(len).unwrap()) }
    }

    fn submit(&mut self, tag: u64, request: Request) {
        self.port.submit(self.host, tag, request);
    }

    fn answers(&mut self, count: usize) -> Vec<Answer> {
        let mut answers = Vec::new();
        let began = Instant::now();
        while answers.len() < count {
            self.port.wait(None, Some(Duration::from_secs(1)), &mut answers).unwrap();
            assert!(began.elapsed() < Duration::from_secs(60), "{} of {count} answers", answers.len());
        }
        answers
    }

    fn ask(&mut self, request: Request) -> Outcome {
        self.submit(0, request);
        self.answers(1)[0].outcome
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Outcome {
        self.put(offset, bytes, false)
    }

    fn put(&mut self, offset: u64, bytes: &[u8], fua: bool) -> Outcome {
        self.bytes()[..bytes.len()].copy_from_slice(bytes);
        let memory = self.lent(bytes.len());
        self.ask(Request::Write { offset: ByteOffset::new(offset), memory, fua })
    }

    fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let memory = self.lent(len);
        self.ask(Request::Read { offset: ByteOffset::new(offset), memory })?;
        Ok(self.bytes()[..len].to_vec())
    }

    fn flush(&mut self) -> Outcome {
        self.ask(Request::Flush)
    }
}

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(ByteOffset::new(start), ByteSize::new(len)).unwrap()
}

fn layers(change: impl FnOnce(&mut Layers)) -> Layers {
    let mut layers = Layers::default();
    change(&mut layers);
    layers
}

fn faults(texts: &[&str]) -> Layers {
    layers(|layers| layers.faults = texts.iter().map(|text| text.parse().unwrap()).collect())
}

fn cached() -> Layers {
    layers(|layers| layers.cache = Some(ByteSize::mib(8)))
}

#[test]
fn latency_is_never_less_and_many_requests_share_it() {
    let fixture = Fixture::new(&layers(|layers| layers.latency = Some("20ms,read=5ms".parse().unwrap())));
    let mut user = fixture.user();
    let began = Instant::now();
    user.write(0, &[1; 512]).unwrap();
    assert!(began.elapsed() >= Duration::from_millis(20));
    let began = Instant::now();
    user.read(0, 512).unwrap();
    assert!(began.elapsed() >= Duration::from_millis(5));
    // All at once they take no longer than one, or nobody could call it a queue.
    let began = Instant::now();
    for tag in 0..50 {
        user.submit(tag, Request::Flush);
    }
    user.answers(50);
    assert!(began.elapsed() >= Duration::from_millis(20) && began.elapsed() < Duration::from_millis(500));
    // A refusal takes as long as anything else.
    let counts = fixture.disk.layer_counts();
    assert_eq!(counts[LayerName::Latency as usize].requests, 52);
    fixture.disk.set_layers(Layers::default()).unwrap();
    user.flush().unwrap();
    assert_eq!(fixture.disk.layer_counts()[LayerName::Latency as usize].requests, 52);
}

#[test]
fn a_rate_is_not_exceeded_by_all_ports_together() {
    let fixture = Fixture::new(&layers(|layers| layers.rate = vec!["iops=2000".parse().unwrap()]));
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut user = fixture.user();
                for tag in 0..300 {
                    let memory = user.lent(512);
                    user.submit(tag, Request::Read { offset: ByteOffset::ZERO, memory });
                }
                user.answers(300);
            });
        }
    });
    // 600, of which 20 may come at once.
    assert!(began.elapsed() >= Duration::from_millis(289), "{:?}", began.elapsed());
}

#[test]
fn no_more_are_served_at_once_than_there_are_places() {
    let fixture = Fixture::new(&layers(|layers| {
        layers.queue_depth = Some(4);
        layers.latency = Some("10ms".parse().unwrap());
    }));
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut user = fixture.user();
                for tag in 0..20 {
                    user.submit(tag, Request::Flush);
                }
                user.answers(20);
            });
        }
    });
    assert!(began.elapsed() >= Duration::from_millis(100), "ten times four: {:?}", began.elapsed());
    // Whoever leaves with places, or in line, leaves them to others.
    let mut user = fixture.user();
    for tag in 0..20 {
        user.submit(tag, Request::Flush);
    }
    drop(user);
    let mut user = fixture.user();
    for tag in 0..8 {
        user.submit(tag, Request::Flush);
    }
    user.answers(8);
}

#[test]
fn faults_do_what_they_are_called() {
    let fixture = Fixture::new(&faults(&["eio,op=read,range=1M-2M", "enospc,op=write,count=1"]));
    let mut user = fixture.user();
    assert_eq!(user.write(0, &[1; 512]), Err(Errno::ENOSPC));
    assert_eq!(user.write(0, &[1; 512]), Ok(()));
    assert_eq!(user.read(1 << 20, 512), Err(Errno::EIO));
    assert_eq!(user.read(0, 512), Ok(vec![1; 512]));

    let fixture = Fixture::new(&faults(&["torn,op=write,seed=3"]));
    let mut user = fixture.user();
    user.write(0, &[9; 8 * SECTOR]).unwrap();
    let image = fixture.image();
    let reached = image[..8 * SECTOR].iter().take_while(|byte| **byte == 9).count();
    assert!(reached < 8 * SECTOR && reached.is_multiple_of(SECTOR), "{reached}");
    assert!(image[reached..8 * SECTOR].iter().all(|byte| *byte == 0));

    let fixture = Fixture::new(&faults(&["misdirected,op=write,seed=5"]));
    let mut user = fixture.user();
    user.write(0, &[7; 512]).unwrap();
    let image = fixture.image();
    let landed = image.iter().position(|byte| *byte == 7).unwrap();
    assert!(landed > 0 && landed.is_multiple_of(SECTOR));
    assert_eq!(image.iter().filter(|byte| **byte == 7).count(), 512);

    let fixture = Fixture::new(&faults(&["corrupt,op=write,count=1", "corrupt,op=read,count=1,after=1"]));
    let mut user = fixture.user();
    let wrong = |bytes: &[u8]| bytes.iter().map(|byte| byte.count_ones()).sum::<u32>();
    user.write(0, &[0; 4096]).unwrap();
    assert_eq!(wrong(&user.read(0, 4096).unwrap()), 1);
    assert_eq!(wrong(&fixture.image()[..4096]), 1);
    user.write(0, &[0; 4096]).unwrap();
    assert_eq!(wrong(&user.read(0, 4096).unwrap()), 1, "what is on the disk is right");
    assert_eq!(wrong(&user.read(0, 4096).unwrap()), 0);

    let fixture = Fixture::new(&faults(&["lost,op=write,count=1"]));
    let mut user = fixture.user();
    user.write(0, &[1; 512]).unwrap();
    assert_eq!(user.read(0, 512), Ok(vec![0; 512]));
}

#[test]
fn what_is_stuck_goes_on_when_the_fault_goes_and_fails_when_the_power_goes() {
    let fixture = Fixture::new(&faults(&["stuck,op=write"]));
    let mut user = fixture.user();
    let memory = user.lent(512);
    user.bytes()[..512].fill(3);
    let write = Request::Write { offset: ByteOffset::ZERO, memory, fua: false };
    user.submit(1, write);
    // Others are not kept by it.
    assert_eq!(user.flush(), Ok(()));
    let mut answers = Vec::new();
    user.port.wait(None, Some(Duration::from_millis(50)), &mut answers).unwrap();
    assert!(answers.is_empty() && user.port.pending() == 1);
    fixture.disk.set_layers(Layers::default()).unwrap();
    assert_eq!(user.answers(1), [Answer { tag: 1, outcome: Ok(()) }]);
    assert_eq!(fixture.image()[..512], [3; 512]);

    fixture.disk.set_layers(faults(&["stuck,op=write"])).unwrap();
    user.submit(2, write);
    assert_eq!(user.flush(), Ok(()));
    fixture.disk.cut_power(Keep::None, 0).unwrap();
    assert_eq!(user.answers(1), [Answer { tag: 2, outcome: Err(Errno::EIO) }]);
}

#[test]
fn what_is_not_flushed_is_seen_by_all_and_lost_without_power() {
    for engine in [Choice::Uring, Choice::Threads] {
        for direct_io in [false, true] {
            let options = DiskOptions { engine, direct_io, ..DiskOptions::default() };
            let fixture = Fixture::with(options, &cached());
            let (mut user, mut other) = (fixture.host("disk"), fixture.host("disk"));
            user.write(0, &[1; 8192]).unwrap();
            user.flush().unwrap();
            assert_eq!(fixture.disk.dirty(), ByteSize::ZERO);
            user.write(4096, &[2; 512]).unwrap();
            user.write(1024, &[3; 1024]).unwrap();
            let mut expected = vec![1; 8192];
            expected[4096..4608].fill(2);
            expected[1024..2048].fill(3);
            assert_eq!(other.read(0, 8192).unwrap(), expected);
            assert_eq!(other.read(1024, 512).unwrap(), [3; 512]);
            assert_eq!(fixture.image()[..8192], [1; 8192]);
            // Forced unit access is for itself alone.
            user.put(8192, &[4; 512], true).unwrap();
            assert_eq!(fixture.image()[8192..8704], [4; 512]);
            assert_eq!(fixture.disk.dirty(), ByteSize::new(512 + 1024 + 512));
            assert_eq!(other.ask(Request::WriteZeroes { range: range(0, 512), allocate: false, fua: false }), Ok(()));
            assert_eq!(other.read(0, 1024).unwrap(), [[0; 512], [1; 512]].concat());

            let loss = fixture.disk.cut_power(Keep::None, 0).unwrap();
            assert_eq!((loss.unflushed, loss.lost), (3, 3));
            assert_eq!(user.read(0, 512), Err(Errno::EIO));
            assert_eq!(user.flush(), Err(Errno::EIO));
            fixture.disk.restore_power();
            let mut expected = vec![1; 8192];
            expected.extend([4; 512]);
            assert_eq!(user.read(0, 8704).unwrap(), expected);
        }
    }
}

#[test]
fn a_cache_that_is_full_writes_the_oldest_and_one_that_goes_is_flushed() {
    let fixture = Fixture::new(&layers(|layers| layers.cache = Some(ByteSize::kib(64))));
    let mut user = fixture.user();
    for index in 0..64u8 {
        user.write(u64::from(index) * 4096, &[index + 1; 4096]).unwrap();
        assert!(fixture.disk.dirty() <= ByteSize::kib(64));
    }
    // Larger than the cache.
    user.write(512 << 10, &[99; 256 << 10]).unwrap();
    user.write(0, &[200; 4096]).unwrap();
    assert_eq!(user.read(0, 8192).unwrap(), [[200; 4096], [2; 4096]].concat());
    fixture.disk.set_layers(Layers::default()).unwrap();
    let image = fixture.image();
    assert_eq!(image[..4096], [200; 4096]);
    for index in 1..64u8 {
        assert_eq!(image[usize::from(index) * 4096..][..4096], [index + 1; 4096], "block {index}");
    }
    assert_eq!(image[512 << 10..768 << 10], [99; 256 << 10]);
    assert_eq!(user.read(0, 4096).unwrap(), [200; 4096]);
}

/// Something that is done to the disk.
#[derive(Debug, Clone)]
enum Step {
    Write { sector: u64, sectors: u64, fua: bool },
    Zero { sector: u64, sectors: u64 },
    Flush,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = (0u64..24, 1u64..6);
    let step = prop_oneof![
        6 => (place.clone(), prop::bool::weighted(0.2)).prop_map(|((sector, sectors), fua)| Step::Write { sector, sectors, fua }),
        1 => place.prop_map(|(sector, sectors)| Step::Zero { sector, sectors }),
        1 => Just(Step::Flush),
    ];
    prop::collection::vec(step, 1..40)
}

/// What each sector may be: the number of the write that it is of, 0 for none.
type Sectors = Vec<u64>;

/// Does `steps`; returns the disk after each of them, from before the first, and the number of the last that is durable
/// for each sector.
fn run(user: &mut User, steps: &[Step]) -> (Vec<Sectors>, Sectors) {
    let mut states = vec![vec![0u64; 32]];
    let mut durable = vec![0usize; 32];
    for (number, step) in (1u64..).zip(steps) {
        let mut state = states.last().unwrap().clone();
        match *step {
            Step::Write { sector, sectors, fua } => {
                let bytes: Vec<u8> = (0..sectors).flat_map(|_| number.to_le_bytes().repeat(SECTOR / 8)).collect();
                user.put(sector * 512, &bytes, fua).unwrap();
                let touched = usize::try_from(sector).unwrap()..usize::try_from(sector + sectors).unwrap();
                state[touched.clone()].fill(number);
                if fua {
                    durable[touched].fill(states.len());
                }
            }
            Step::Zero { sector, sectors } => {
                let zero =
                    Request::WriteZeroes { range: range(sector * 512, sectors * 512), allocate: false, fua: false };
                user.ask(zero).unwrap();
                state[usize::try_from(sector).unwrap()..usize::try_from(sector + sectors).unwrap()].fill(0);
            }
            Step::Flush => {
                user.flush().unwrap();
                durable.fill(states.len());
            }
        }
        states.push(state);
    }
    let since = durable.iter().map(|state| *state as u64).collect();
    (states, since)
}

fn sectors_of(image: &[u8]) -> Sectors {
    let number = |sector: &[u8]| {
        let first = u64::from_le_bytes(sector[..8].try_into().unwrap());
        assert!(sector.chunks(8).all(|word| word == first.to_le_bytes()), "a sector is written whole or not at all");
        first
    };
    image[..32 * SECTOR].chunks(SECTOR).map(number).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn after_a_power_cut_every_sector_is_one_it_may_be(steps in steps(), seed: u64, keep in 0u8..3, direct: bool) {
        let keep = [Keep::None, Keep::Random, Keep::Prefix][usize::from(keep)];
        let outcome = || {
            let options = DiskOptions { direct_io: direct, ..DiskOptions::default() };
            let fixture = Fixture::with(options, &cached());
            let mut user = fixture.host("disk");
            let (states, since) = run(&mut user, &steps);
            prop_assert_eq!(sectors_of(&user.read(0, 32 * SECTOR).unwrap()), states.last().unwrap().clone());
            let loss = fixture.disk.cut_power(keep, seed).unwrap();
            prop_assert_eq!(loss.kept + loss.torn + loss.lost, loss.unflushed);
            fixture.disk.restore_power();
            let image = sectors_of(&fixture.image());
            // Each sector is as it was at some moment since it was made durable.
            for (sector, number) in image.iter().enumerate() {
                let from = usize::try_from(since[sector]).unwrap();
                let allowed = states[from..].iter().any(|state| state[sector] == *number);
                prop_assert!(allowed, "sector {sector} is {number} ({keep:?})");
            }
            if keep == Keep::None {
                // Forced unit access makes one write durable, and none of those around it.
                for (sector, number) in image.iter().enumerate() {
                    prop_assert_eq!(*number, states[usize::try_from(since[sector]).unwrap()][sector]);
                }
            }
            Ok((image, loss))
        };
        let first = outcome()?;
        prop_assert_eq!(&first, &outcome()?, "the seed decides");
    }

    #[test]
    fn of_a_prefix_all_is_there_up_to_one_write(steps in steps(), seed: u64) {
        // Without forced unit access, which comes before its time.
        let steps: Vec<Step> = steps.into_iter().map(|step| match step {
            Step::Write { sector, sectors, .. } => Step::Write { sector, sectors, fua: false },
            other => other,
        }).collect();
        let fixture = Fixture::with(DiskOptions::default(), &cached());
        let mut user = fixture.host("disk");
        let (states, since) = run(&mut user, &steps);
        fixture.disk.cut_power(Keep::Prefix, seed).unwrap();
        let image = sectors_of(&fixture.image());
        let from = usize::try_from(since[0]).unwrap();
        let at_a_moment = states[from..].windows(2).any(|pair| {
            // The write of that moment is there up to some sector.
            (0..=32).any(|torn| [&pair[1][..torn], &pair[0][torn..]].concat() == image)
        });
        prop_assert!(at_a_moment || states.last() == Some(&image), "{image:?}");
    }
}

#[test]
fn a_recording_is_replayed_to_any_moment() {
    let fixture = Fixture::new(&Layers::default());
    let tape = fixture.path("tape");
    let recording = layers(|layers| {
        layers.record = Some(tape.clone());
        layers.cache = Some(ByteSize::mib(1));
    });
    fixture.disk.set_layers(recording.clone()).unwrap();
    let mut user = fixture.user();
    user.write(0, &[1; 4096]).unwrap();
    user.flush().unwrap();
    user.put(2048, &[2; 1024], true).unwrap();
    user.ask(Request::WriteZeroes { range: range(0, 512), allocate: true, fua: false }).unwrap();
    user.read(0, 512).unwrap();
    user.write(SIZE - 512, &[3; 512]).unwrap();
    fixture.disk.flush().unwrap();
    // Other layers may change meanwhile.
    let with_latency = Layers { latency: Some("1ms".parse().unwrap()), ..recording };
    fixture.disk.set_layers(with_latency).unwrap();
    user.write(512, &[4; 512]).unwrap();
    fixture.disk.set_layers(Layers::default()).unwrap();

    let mut opened = Recording::open(&tape).unwrap();
    assert_eq!(opened.size(), ByteSize::new(SIZE));
    let (mut data, mut operations) = (Vec::new(), Vec::new());
    while let Some(entry) = opened.next(&mut data).unwrap() {
        operations.push((entry.operation, entry.fua, entry.range.len.bytes(), data.len()));
    }
    let expected = [
        (Operation::Write, false, 4096, 4096),
        (Operation::Flush, false, 0, 0),
        (Operation::Write, true, 1024, 1024),
        (Operation::WriteZeroes, false, 512, 0),
        (Operation::Write, false, 512, 512),
        (Operation::Write, false, 512, 512),
    ];
    assert_eq!(operations, expected);
    let replayed = |until| {
        let path = fixture.path("copy");
        let copy = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
        copy.set_len(SIZE).unwrap();
        Recording::open(&tape).unwrap().replay(&copy, until).unwrap();
        let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
        copy.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert_eq!(replayed(None), fixture.image());
    assert_eq!(replayed(Some(0)), vec![0; usize::try_from(SIZE).unwrap()]);
    assert_eq!(replayed(Some(3))[..4096], [[1; 1024].as_slice(), &[1; 1024], &[2; 1024], &[1; 1024]].concat());
    // A tape that was cut off ends there; one that was tampered with is none.
    let whole = std::fs::read(&tape).unwrap();
    std::fs::write(&tape, &whole[..whole.len() - 10]).unwrap();
    let short = File::options().read(true).write(true).open(fixture.path("copy")).unwrap();
    assert_eq!(Recording::open(&tape).unwrap().replay(&short, None).unwrap(), 5);
    let mut damaged = whole.clone();
    damaged[100] ^= 1;
    std::fs::write(&tape, damaged).unwrap();
    let error = Recording::open(&tape).unwrap().replay(&short, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::VerifyFailed);
    // And nothing that is there already is recorded over.
    let error = fixture.disk.set_layers(layers(|layers| layers.record = Some(tape.clone()))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(fixture.disk.layers(), Layers::default());
}

#[test]
fn layers_change_while_requests_come() {
    let fixture = Fixture::new(&Layers::default());
    let done = AtomicBool::new(false);
    let written = AtomicU64::new(0);
    thread::scope(|scope| {
        for who in 0..2u64 {
            let (fixture, done, written) = (&fixture, &done, &written);
            scope.spawn(move || {
                let mut user = fixture.host(["a", "b"][usize::try_from(who).unwrap()]);
                let mut last = BTreeMap::new();
                let mut number = 0u64;
                while !done.load(Ordering::Relaxed) {
                    number += 1;
                    let sector = who * 100 + number % 50;
                    let fua = number.is_multiple_of(7);
                    user.put(sector * 512, &number.to_le_bytes().repeat(64), fua).unwrap();
                    last.insert(sector, number);
                    let other = who * 100 + (number * 31) % 50;
                    let expected = last.get(&other).copied().unwrap_or(0);
                    assert_eq!(
                        user.read(other * 512, 512).unwrap(),
                        expected.to_le_bytes().repeat(64),
                        "sector {other}"
                    );
                    if number.is_multiple_of(11) {
                        user.flush().unwrap();
                    }
                    written.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let every = [
            cached(),
            layers(|layers| layers.cache = Some(ByteSize::kib(4))),
            layers(|layers| layers.latency = Some("uniform:10us:200us".parse().unwrap())),
            layers(|layers| layers.queue_depth = Some(1)),
            layers(|layers| layers.rate = vec!["iops=5000".parse().unwrap()]),
            Layers { queue_depth: Some(2), latency: Some("50us".parse().unwrap()), ..cached() },
            Layers::default(),
        ];
        for round in 0..70 {
            fixture.disk.set_layers(every[round % every.len()].clone()).unwrap();
            let before = written.load(Ordering::Relaxed);
            let began = Instant::now();
            while written.load(Ordering::Relaxed) < before + 5 && began.elapsed() < Duration::from_secs(20) {
                thread::sleep(Duration::from_millis(1));
            }
            assert!(written.load(Ordering::Relaxed) >= before + 5, "round {round}: nothing goes on");
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn no_write_lands_after_its_host_was_fenced() {
    const RACES: u64 = 1000;
    for layers in [Layers::default(), cached()] {
        let fixture = Fixture::new(&layers);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let (fixture, stop) = (&fixture, &stop);
            // The host that does not know yet that it is dead: many writes in flight, all the time.
            scope.spawn(move || {
                let mut user = fixture.host("a");
                let mut flying = 0u32;
                let mut answers = Vec::new();
                user.bytes().fill(0x11);
                while !stop.load(Ordering::SeqCst) {
                    while flying < 16 {
                        let memory = user.lent(512);
                        user.submit(
                            0,
                            Request::Write { offset: ByteOffset::new(u64::from(flying) * 512), memory, fua: false },
                        );
                        flying += 1;
                    }
                    user.port.wait(None, Some(Duration::from_millis(10)), &mut answers).unwrap();
                    flying -= u32::try_from(answers.len()).unwrap();
                    answers.clear();
                }
            });
            let mut survivor = fixture.host("b");
            let mut landed = 0u64;
            for race in 1..=RACES {
                if race.is_multiple_of(3) {
                    thread::sleep(Duration::from_micros(race % 97));
                }
                fixture.disk.reserve(&Action::Fence { host: "a".parse().unwrap() }).unwrap();
                // From here on nothing of it lands: what the survivor writes stays.
                let mine = vec![0xee; 16 * 512];
                let before = survivor.read(0, 16 * 512).unwrap();
                landed += u64::from(before.iter().any(|byte| *byte != 0xee));
                survivor.write(0, &mine).unwrap();
                for _ in 0..3 {
                    thread::sleep(Duration::from_micros(30));
                    assert_eq!(survivor.read(0, 16 * 512).unwrap(), mine, "race {race}: a late write has landed");
                }
                fixture.disk.reserve(&Action::Unfence { host: "a".parse().unwrap() }).unwrap();
                thread::sleep(Duration::from_micros(50));
            }
            stop.store(true, Ordering::SeqCst);
            assert!(landed > RACES / 10, "the other host did write: in {landed} of {RACES} races");
        });
    }
}

#[test]
fn a_preempted_host_fails_and_stays_out_across_restarts() {
    let fixture = Fixture::new(&Layers::default());
    let [a, b] = ["a", "b"].map(|name| name.parse::<blockdev::emulate::HostName>().unwrap());
    let (mut first, mut second) = (fixture.host("a"), fixture.host("b"));
    let act = |action: Action| fixture.disk.reserve(&action).unwrap();
    act(Action::Register { host: a.clone(), key: 1, replace: false });
    act(Action::Register { host: b.clone(), key: 2, replace: false });
    act(Action::Reserve { host: a.clone(), key: 1, kind: Default::default() });
    assert_eq!((first.write(0, &[1; 512]), second.write(0, &[2; 512])), (Ok(()), Err(Errno::EBADE)));
    assert_eq!(second.read(0, 512), Ok(vec![1; 512]), "all may read");
    assert_eq!(second.flush(), Ok(()));
    act(Action::Preempt { host: b.clone(), key: 2, victim: 1, kind: Default::default() });
    assert_eq!((first.write(0, &[1; 512]), second.write(0, &[2; 512])), (Err(Errno::EBADE), Ok(())));
    assert_eq!(first.ask(Request::Trim { range: range(0, 512), fua: false }), Err(Errno::EBADE));
    let unknown = fixture.disk.reserve(&Action::Fence { host: "c".parse().unwrap() }).unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    drop((first, second));
    let Fixture { disk, dir } = fixture;
    let kept = disk.reservations();
    drop(disk);
    let options = DiskOptions { hosts: vec![a, b], ..DiskOptions::default() };
    let fixture = Fixture { disk: Disk::open(&dir.path().join("disk.img"), options).unwrap(), dir };
    assert_eq!(fixture.disk.reservations(), kept);
    assert_eq!(fixture.host("a").write(0, &[1; 512]), Err(Errno::EBADE));
    assert_eq!(fixture.host("b").write(0, &[1; 512]), Ok(()));
}
