//! Writing volumes: the same work as the original leads to the same objects, transaction by transaction.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use blockdev::buffer::Memory;
use blockdev::engine::Lent;
use blockdev::{Error, ErrorKind};
use common::model::{self, Model, Work, Worker};
use common::script::{self, pattern};
use pfs::check::check;
use pfs::format::{Direntry, DirentryState, Inode, JournalEntry, LEADER_AT, NamePiece, Number, Object, Seconds, Stamp};
use pfs::volume::writer::{Allocate, Fence, Handle, Options, Position, TOO_MANY_FILES, Writer};
use pfs::volume::{Device, Follower, Load, Metadata, Volume, VolumePath};

/// The transactions in a volume's journal. The times of inodes are left out.
fn transactions(path: &Path) -> Vec<Vec<Object>> {
    let mut volume = Volume::load(Device::open(path).unwrap(), Load { replay: false, verify: true }).unwrap();
    let (journal, leader) = (volume.journal().clone(), volume.leader().clone());
    let mut transactions = vec![Vec::new()];
    journal
        .visit(volume.device_mut(), leader.tail.offset, leader.entries(), |bytes, at| {
            let entry = JournalEntry::parse(bytes, at)?;
            transactions.last_mut().unwrap().push(timeless(entry.object));
            if entry.last {
                transactions.push(Vec::new());
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(transactions.pop(), Some(Vec::new()));
    transactions
}

fn timeless(object: Object) -> Object {
    match object {
        Object::Inode(inode) => {
            Object::Inode(Inode { atime: Seconds(0), ctime: Seconds(0), mtime: Seconds(0), btime: Stamp(0), ..inode })
        }
        object => object,
    }
}

fn clean(path: &Path) {
    let report = check(&mut Device::open(path).unwrap()).unwrap();
    assert_eq!(report.findings, [], "{}", path.display());
    assert!(report.complete);
}

fn path(text: &str) -> VolumePath {
    VolumePath::new(text)
}

#[test]
fn files_and_directories_are_made_and_removed() {
    let (image, _directory) = common::copy("fresh-10g");
    let writer = Writer::open(&image, Options::default()).unwrap();
    let directory = writer.mkdir(&path("/d")).unwrap();
    let file = writer.create(&path("/d/f"), true).unwrap();
    assert_eq!(writer.lookup(&path("d/f")).unwrap(), file);
    let mut content = writer.content().unwrap();
    let bytes = pattern(7, 0, 10_000);
    assert_eq!(content.write(file, Position::At(100), &bytes).unwrap(), 100);
    assert_eq!(content.write(file, Position::End, b"end").unwrap(), 10_100);
    let mut read = vec![1; 20_000];
    assert_eq!(content.read(file, 0, &mut read).unwrap(), 10_103);
    assert_eq!(read[..100], [0; 100]);
    assert_eq!(read[100..10_100], bytes);
    assert_eq!(&read[10_100..10_103], b"end");
    writer.rename(&path("/d/f"), &path("/g")).unwrap();
    assert_eq!(writer.entries(directory).unwrap(), []);
    writer.rmdir(&path("/d")).unwrap();
    drop(content);
    assert_eq!(writer.stat(directory).unwrap_err().errno(), Some(libc::ENOENT));
    writer.close().unwrap();
    clean(&image);
    let mut volume = Volume::open(&image).unwrap();
    let inode = volume.metadata().lookup(&path("/g")).unwrap();
    let map = volume.metadata().file_map(inode.number).unwrap();
    let mut again = vec![1; 20_000];
    assert_eq!(volume.read(&map, 0, &mut again).unwrap(), 10_103);
    assert_eq!(again[..10_103], read[..10_103]);
}

/// Plays the script of a volume on what it was before, and compares what that does with what the original did. The first
/// thing that the script does is to make something called `first`.
fn same_transactions(name: &str, first: &str) {
    let script = String::from_utf8(common::recorded(name, "script.fx").unwrap()).unwrap();
    let expected = transactions(&common::image(name));
    let makes = |transaction: &Vec<Object>| match &transaction[0] {
        Object::Direntry(Direntry { state: DirentryState::Head(head), .. }) => {
            head.name == NamePiece::new(first.as_bytes())
        }
        _ => false,
    };
    let began = expected.iter().position(makes).unwrap();
    let (image, _directory) = common::copy(name);
    common::rewind(&image, began as u64);
    let writer = Writer::open(&image, Options { keep_orphans: true, ..Options::default() }).unwrap();
    let mut content = writer.content().unwrap();
    for line in script.lines() {
        // What the original could not do is not done either.
        let _ = script::play(&writer, &mut content, line);
    }
    drop(content);
    writer.close().unwrap();
    clean(&image);
    let found = transactions(&image);
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!(found == expected, "{name}: transaction {}: {found:#?} instead of {expected:#?}", index + 1);
    }
    assert_eq!(found.len(), expected.len());
}

#[test]
fn the_same_work_is_the_same_transactions() {
    same_transactions("tree-10g", "deep");
}

#[test]
fn the_same_work_on_two_chunks_is_the_same_transactions() {
    same_transactions("grown-20g", "after");
}

/// Does random work on a volume, which is closed and opened again meanwhile, and compares.
fn random_work(name: &str, seed: u64, count: usize) {
    let (image, _directory) = common::copy(name);
    let mut model = Model::read(&mut Volume::open(&image).unwrap()).unwrap();
    let mut worker = Worker::new(seed, 5 << 20);
    for _ in 0..3 {
        let writer = Writer::open(&image, Options::default()).unwrap();
        let mut content = writer.content().unwrap();
        for _ in 0..count / 3 {
            let work = worker.next(&model);
            let expected = model.apply(&work);
            let found = model::perform(&writer, &mut content, &work);
            let found = found.map_err(|error| error.errno().unwrap_or_else(|| panic!("{work:?}: {error}")));
            assert_eq!(found, expected, "{name}, seed {seed}: {work:?}");
        }
        drop(content);
        writer.close().unwrap();
        clean(&image);
        let found = Model::read(&mut Volume::open(&image).unwrap()).unwrap();
        assert!(found == model, "{name}, seed {seed}: {}", model::difference(&found, &model));
    }
}

#[test]
fn random_work_is_done_as_it_should_be() {
    for seed in 0..3 {
        random_work("fresh-10g", seed, 600);
    }
}

#[test]
fn a_journal_goes_round_and_is_trimmed_when_it_must() {
    // One of 1 MiB, whose live part crosses its end: 4,096 entries are a lap.
    let (image, _directory) = common::copy("wrap-10g");
    let mut model = Model::read(&mut Volume::open(&image).unwrap()).unwrap();
    let before = Volume::open(&image).unwrap().leader().clone();
    let writer = Writer::open(&image, Options::default()).unwrap();
    for round in 0..700 {
        let name = |index: usize| format!("{}{index}", "n".repeat(200));
        for work in [
            Work::Create(name(round)),
            Work::Rename(name(round), name(round + 10_000)),
            Work::Unlink(name(round + 10_000)),
        ] {
            model.apply(&work).unwrap();
            model::perform(&writer, &mut writer.content().unwrap(), &work).unwrap();
        }
    }
    let statistics = writer.statistics();
    assert!(statistics.trims >= 3, "{statistics:?}");
    writer.close().unwrap();
    clean(&image);
    let mut volume = Volume::open(&image).unwrap();
    assert!(volume.leader().head_lsn.raw() - before.head_lsn.raw() > 3 * 4096);
    // What followers need stays as long as there is room for it.
    assert!(volume.leader().entries() > 1000);
    assert!(Model::read(&mut volume).unwrap() == model);
    random_work("wrap-10g", 5, 300);
}

/// Lets a writer write until somebody says otherwise.
#[derive(Debug)]
struct Until(Arc<AtomicBool>, Arc<AtomicBool>);

impl Fence for Until {
    fn check(&mut self, _: &mut Device) -> blockdev::Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(Error::refused("host 7 has the lease now")) } else { Ok(()) }
    }

    fn release(&mut self, _: &mut Device) -> blockdev::Result<()> {
        self.1.store(true, Ordering::Relaxed);
        Ok(())
    }
}

#[test]
fn a_writer_that_lost_its_lease_stops() {
    let (image, _directory) = common::copy("fresh-10g");
    let (lost, released) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    let fence = || Some(Box::new(Until(lost.clone(), released.clone())) as Box<dyn Fence>);
    let writer = Writer::open(&image, Options { fence: fence(), ..Options::default() }).unwrap();
    writer.mkdir(&path("/kept")).unwrap();
    writer.close().unwrap();
    assert!(released.load(Ordering::Relaxed));

    let writer = Writer::open(&image, Options { fence: fence(), ..Options::default() }).unwrap();
    let file = writer.create(&path("/f"), true).unwrap();
    let before = Volume::open(&image).unwrap().leader().clone();
    lost.store(true, Ordering::Relaxed);
    let text = "the volume is not written any more: host 7 has the lease now";
    assert_eq!(writer.mkdir(&path("/lost")).unwrap_err().to_string(), text);
    assert_eq!(writer.rmdir(&path("/kept")).unwrap_err().to_string(), text);
    let error = writer.content().unwrap().write(file, Position::At(0), b"lost").unwrap_err();
    assert_eq!((error.to_string().as_str(), error.kind()), (text, ErrorKind::Refused));
    assert_eq!(writer.close().unwrap_err().to_string(), text);
    assert_eq!(*Volume::open(&image).unwrap().leader(), before);
    clean(&image);
}

#[test]
fn another_writer_is_noticed_before_anything_is_overwritten() {
    let (image, _directory) = common::copy("fresh-10g");
    let one = Writer::open(&image, Options::default()).unwrap();
    one.mkdir(&path("/first")).unwrap();
    // As the original: it asks nobody.
    let other = Writer::open(&image, Options::default()).unwrap();
    other.mkdir(&path("/other")).unwrap();
    let error = one.mkdir(&path("/late")).unwrap_err();
    let shown = image.display();
    let expected = format!(
        "the volume is not written any more: somebody else writes {shown}: the journal holds transactions 0 to 2 \
         instead of 0 to 1"
    );
    assert!(error.to_string().starts_with(&expected), "{error}");
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.hint().unwrap().contains("pfs check"));
    assert!(one.close().is_err());
    other.mkdir(&path("/more")).unwrap();
    other.close().unwrap();
    clean(&image);
    let found = Model::read(&mut Volume::open(&image).unwrap()).unwrap();
    assert_eq!(found.0.keys().collect::<Vec<_>>(), ["first", "more", "other"]);
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

#[test]
fn a_follower_sees_what_is_written() {
    let (image, _directory) = common::copy("wrap-10g");
    let writer = Writer::open(&image, Options::default()).unwrap();
    let follower = Follower::open(&image, Duration::from_millis(1)).unwrap();
    let late = Follower::open(&image, Duration::from_secs(3600)).unwrap();
    let soon = Duration::from_secs(30);
    for round in 0..20 {
        let name = path(&format!("/seen{round}"));
        let file = writer.create(&name, true).unwrap();
        assert!(follower.wait(soon, |metadata, _| metadata.lookup(&name).is_ok()), "{name:?}");
        let bytes = pattern(round, 0, 5000);
        writer.content().unwrap().write(file, Position::At(0), &bytes).unwrap();
        let size = |metadata: &Metadata| metadata.stat(file.inode).unwrap().size;
        assert!(follower.wait(soon, |metadata, _| size(metadata) == 5000));
        if round % 5 == 4 {
            // All of the journal is gone: what is in it cannot be followed any more.
            writer.empty_journal().unwrap();
        }
        follower.check().unwrap();
    }
    let last = path("/seen19");
    assert!(!late.wait(Duration::ZERO, |metadata, _| metadata.lookup(&last).is_ok()));
    drop(late);
    let leader = Volume::open(&image).unwrap().leader().clone();
    assert!(follower.wait(soon, |_, known| *known == leader));
    writer.close().unwrap();
    // Somebody breaks the record, and mends it.
    common::write(&image, LEADER_AT, &[0; 4096]);
    while follower.check().is_ok() {
        std::thread::yield_now();
    }
    let why = follower.check().unwrap_err().to_string();
    assert!(why.starts_with("cannot follow the volume: the volume is damaged: leader record at"), "{why}");
    assert!(follower.with(|metadata, _| metadata.lookup(&last).is_ok()));
    common::write(&image, LEADER_AT, &leader.write());
    while follower.check().is_err() {
        std::thread::yield_now();
    }
    assert_eq!(Follower::open(Path::new("/nothere"), soon).unwrap_err().errno(), Some(libc::ENOENT));
}

#[test]
fn what_a_crash_left_unfreed_is_freed_at_opening() {
    let (image, _directory) = common::copy("dirty-10g");
    let before = transactions(&image);
    let writer = Writer::open(&image, Options { keep_orphans: true, ..Options::default() }).unwrap();
    assert_eq!(writer.statistics().transactions, 0);
    writer.close().unwrap();
    Writer::open(&image, Options::default()).unwrap().close().unwrap();
    // As the original did it: one transaction of one object, inode 35.
    let after = transactions(&image);
    assert_eq!(after.len(), before.len() + 1);
    let [Object::Inode(inode)] = &after[before.len()][..] else { panic!("{:?}", after.last()) };
    assert_eq!((inode.number.raw(), inode.is_used()), (35, false));
    clean(&image);
}

#[test]
fn a_full_volume_stays_as_it_is() {
    let (image, _directory) = common::copy("full-10g");
    let before = Volume::open(&image).unwrap().leader().clone();
    let writer = Writer::open(&image, Options::default()).unwrap();
    let mut content = writer.content().unwrap();
    let names = writer.entries(writer.lookup(&path("/n")).unwrap()).unwrap();
    let some = path(&format!("/n/{}", names[0].name));
    let long = path(&format!("/n/{}", "x".repeat(64)));
    let too_many = |outcome: blockdev::Result<()>, text: &str| {
        let error = outcome.unwrap_err();
        assert_eq!((error.errno(), error.kind()), (Some(TOO_MANY_FILES), ErrorKind::NoSpace));
        assert_eq!(error.to_string(), text);
    };
    too_many(writer.create(&path("/more"), true).map(|_| ()), "no direntry of the volume is free");
    too_many(writer.mkdir(&path("/more")).map(|_| ()), "no direntry of the volume is free");
    too_many(writer.rename(&some, &long), "no direntry of the volume is free");
    let file = writer.lookup(&some).unwrap();
    let size = writer.stat(file).unwrap().size;
    let far = 1 << 40;
    for error in [
        content.write(file, Position::At(far), b"x").unwrap_err(),
        writer.allocate(file, far, 1, Allocate::default()).unwrap_err(),
    ] {
        assert_eq!((error.errno(), error.kind()), (Some(libc::ENOSPC), ErrorKind::NoSpace));
        assert_eq!(error.to_string(), "no block of the volume is free");
    }
    assert_eq!(writer.stat(file).unwrap().size, size);
    drop(content);
    writer.close().unwrap();
    assert_eq!(*Volume::open(&image).unwrap().leader(), before);
    // What is given back can be had again, and nothing was lost meanwhile.
    let writer = Writer::open(&image, Options::default()).unwrap();
    writer.unlink(&some).unwrap();
    writer.create(&path("/more"), true).unwrap();
    assert_eq!(writer.create(&path("/evenmore"), true).unwrap_err().errno(), Some(TOO_MANY_FILES));
    writer.close().unwrap();
    clean(&image);
}

#[test]
fn what_cannot_be_done_says_why_and_changes_nothing() {
    let (image, _directory) = common::copy("tree-10g-flushed");
    let before = Volume::open(&image).unwrap().leader().clone();
    let writer = Writer::open(&image, Options::default()).unwrap();
    let (deep, file) = (path("/deep"), path("/sizes/s1"));
    let long = path(&format!("/{}", "x".repeat(256)));
    let outcomes: Vec<(blockdev::Result<()>, i32, &str)> = vec![
        (writer.mkdir(&deep).map(|_| ()), libc::EEXIST, "cannot make directory \"/deep\": it exists"),
        (writer.create(&file, true).map(|_| ()), libc::EEXIST, "cannot create \"/sizes/s1\": it exists"),
        (writer.create(&deep, false).map(|_| ()), libc::EISDIR, "cannot create \"/deep\": it is a directory"),
        (
            writer.create(&path("/new/"), false).map(|_| ()),
            libc::EISDIR,
            "cannot create \"/new/\": a path that ends in a slash is no file's",
        ),
        (writer.create(&path("/no/f"), true).map(|_| ()), libc::ENOENT, "cannot find \"/no/f\": there is no \"no\""),
        (
            writer.mkdir(&path("/sizes/s1/x")).map(|_| ()),
            libc::ENOTDIR,
            "cannot find \"/sizes/s1/x\": it goes on beyond a file",
        ),
        (writer.mkdir(&path("/..")).map(|_| ()), libc::EEXIST, "cannot make directory \"/..\": it exists"),
        (writer.rmdir(&deep), libc::ENOTEMPTY, "cannot remove directory \"/deep\": there is something in it"),
        (writer.rmdir(&file), libc::ENOTDIR, "cannot remove directory \"/sizes/s1\": it is no directory"),
        (writer.rmdir(&path("/")), libc::EINVAL, "cannot remove directory \"/\": it is the root"),
        (writer.unlink(&deep), libc::EISDIR, "cannot remove \"/deep\": it is a directory"),
        (writer.unlink(&path("/no")), libc::ENOENT, "cannot remove \"/no\": there is nothing of that name"),
        (
            writer.unlink(&path("/.pfs-journal")),
            libc::EPERM,
            "cannot remove \"/.pfs-journal\": it is the file system's own",
        ),
        (writer.rename(&path("/no"), &deep), libc::ENOENT, "cannot rename \"/no\": there is nothing of that name"),
        (writer.rename(&path("/"), &path("/x")), libc::EBUSY, "cannot rename \"/\": it is the root"),
        (writer.rename(&deep, &path("/")), libc::EBUSY, "cannot replace \"/\": it is the root"),
        (
            writer.rename(&deep, &path("/deep/level2/x")),
            libc::EINVAL,
            "cannot rename \"/deep\": it would be below itself",
        ),
        (writer.rename(&file, &deep), libc::EISDIR, "cannot replace \"/deep\": it is a directory"),
        (writer.rename(&deep, &file), libc::ENOTDIR, "cannot replace \"/sizes/s1\": it is no directory"),
        (writer.rename(&path("/many"), &deep), libc::ENOTEMPTY, "cannot replace \"/deep\": there is something in it"),
        (
            writer.rename(&file, &path("/.pfs-paxos")),
            libc::EPERM,
            "cannot replace \"/.pfs-paxos\": it is the file system's own",
        ),
    ];
    for (outcome, errno, text) in outcomes {
        let error = outcome.unwrap_err();
        assert_eq!((error.to_string().as_str(), error.errno()), (text, Some(errno)));
    }
    assert_eq!(writer.mkdir(&long).unwrap_err().errno(), Some(libc::ENAMETOOLONG));
    writer.rename(&file, &path("/sizes/../sizes/s1")).unwrap();
    let directory = writer.lookup(&deep).unwrap();
    let file = writer.lookup(&file).unwrap();
    for (outcome, errno) in [
        (writer.truncate(directory, 0), libc::EISDIR),
        (writer.truncate(file, u64::MAX), libc::EFBIG),
        (writer.allocate(file, u64::MAX, 2, Allocate::default()), libc::EFBIG),
        (writer.allocate(file, 0, 0, Allocate::default()), libc::EINVAL),
        (writer.content().unwrap().write(directory, Position::End, b"x").map(|_| ()), libc::EISDIR),
        (writer.content().unwrap().write(file, Position::At(1 << 63), b"x").map(|_| ()), libc::EFBIG),
    ] {
        assert_eq!(outcome.unwrap_err().errno(), Some(errno));
    }
    assert_eq!(writer.statistics().transactions, 0);
    writer.close().unwrap();
    assert_eq!(*Volume::open(&image).unwrap().leader(), before);
}
