//! Writing volumes: the same work as the original leads to the same objects, transaction by transaction.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::path::Path;

use common::model::{self, Model, Worker};
use common::script::{self, pattern};
use pfs::check::check;
use pfs::format::{Direntry, DirentryState, Inode, JournalEntry, NamePiece, Object, Seconds, Stamp};
use pfs::volume::writer::{Options, Position, Writer};
use pfs::volume::{Device, Load, Volume, VolumePath};

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

#[test]
fn random_work_is_done_as_it_should_be() {
    for seed in 0..3 {
        let (image, _directory) = common::copy("fresh-10g");
        let mut model = Model::default();
        let mut worker = Worker::new(seed, 5 << 20);
        for _ in 0..3 {
            let writer = Writer::open(&image, Options::default()).unwrap();
            let mut content = writer.content().unwrap();
            for _ in 0..200 {
                let work = worker.next(&model);
                let expected = model.apply(&work);
                let found = model::perform(&writer, &mut content, &work);
                let found = found.map_err(|error| error.errno().unwrap_or_else(|| panic!("{work:?}: {error}")));
                assert_eq!(found, expected, "seed {seed}: {work:?}");
            }
            drop(content);
            writer.close().unwrap();
            clean(&image);
            let found = Model::read(&mut Volume::open(&image).unwrap()).unwrap();
            assert!(found == model, "seed {seed}: {}", model::difference(&found, &model));
        }
    }
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
