//! Writing volumes: what is done, what cannot be done, and who else may not.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use blockdev::{Error, ErrorKind};
use common::clean;
use common::model::{self, Model, Work, Worker};
use common::script::pattern;
use common::transactions;
use pfs::format::{LEADER_AT, Number, Object};
use pfs::volume::writer::{Allocate, Fence, Options, Position, TOO_MANY_FILES, Writer};
use pfs::volume::{Device, Follower, Metadata, Volume, VolumePath};

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
