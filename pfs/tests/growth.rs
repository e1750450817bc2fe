//! Growing a volume under those who have it open.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod common;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use blockdev::{ErrorKind, loopdev};
use common::clean;
use common::image;
use common::script::pattern;
use pfs::format::{BlktagNo, Kind};
use pfs::growfs::{GrowfsOptions, growfs};
use pfs::volume::writer::{Allocate, Options, Position, TOO_MANY_FILES, Writer};
use pfs::volume::{Follower, Metadata, Volume, VolumePath};

const CHUNK: u64 = 10 << 30;
const BLOCK: u64 = 4 << 20;

/// All but the first, which has the metadata.
const BLOCKS_OF_A_CHUNK: u64 = 2559;

fn path(text: &str) -> VolumePath {
    VolumePath::new(text)
}

fn grow_file(path: &Path, chunks: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(chunks * CHUNK).unwrap();
}

fn grow(path: &Path, chunks: u64) {
    grow_file(path, chunks);
    growfs(path, &GrowfsOptions::default()).unwrap();
}

fn chunks(metadata: &Metadata) -> usize {
    metadata.headers().len()
}

/// Fills a writer's volume, lets it grow and fills it again: with blocks of one file, of which the last is written.
fn fill_and_grow(image: &Path, writer: &Writer, grow: impl FnOnce()) {
    let file = writer.create(&path("/f"), true).unwrap();
    let mut content = writer.content().unwrap();
    let free = |writer: &Writer| {
        writer.with_metadata(|metadata| {
            metadata.count(Kind::Blktag)
                - metadata.headers().map(|header| metadata.used::<BlktagNo>(header.id).count() as u64).sum::<u64>()
        })
    };
    let first = free(writer);
    writer.allocate(file, 0, first * BLOCK, Allocate::default()).unwrap();
    let error = content.write(file, Position::End, b"more").unwrap_err();
    assert_eq!(error.errno(), Some(libc::ENOSPC));
    assert!(!writer.regrow().unwrap());
    grow();
    assert_eq!(content.write(file, Position::End, b"more").unwrap_err().errno(), Some(libc::ENOSPC));
    assert!(writer.regrow().unwrap());
    assert!(!writer.regrow().unwrap());
    assert_eq!(free(writer), BLOCKS_OF_A_CHUNK);
    let bytes = pattern(5, 0, 3 * usize::try_from(BLOCK).unwrap() + 777);
    content.write(file, Position::End, &bytes).unwrap();
    writer.allocate(file, 0, (first + BLOCKS_OF_A_CHUNK) * BLOCK, Allocate::default()).unwrap();
    assert_eq!(free(writer), 0);
    assert_eq!(writer.mkdir(&path("/d")).unwrap(), writer.lookup(&path("/d")).unwrap());
    drop(content);
    let mut volume = Volume::open(image).unwrap();
    let map = volume.metadata().file_map(file.inode).unwrap();
    let mut read = vec![0; bytes.len()];
    volume.read(&map, first * BLOCK, &mut read).unwrap();
    assert!(read == bytes);
}

#[test]
fn a_writer_takes_new_chunks_into_use() {
    let (image, _directory) = common::copy("fresh-10g");
    let writer = Writer::open(&image, Options::default()).unwrap();
    fill_and_grow(&image, &writer, || grow(&image, 2));
    // What is in the journal now, and what was trimmed from it: both have objects of the new chunk.
    clean(&image);
    writer.empty_journal().unwrap();
    clean(&image);
    grow(&image, 4);
    assert!(writer.regrow().unwrap());
    writer.create(&path("/d/last"), true).unwrap();
    writer.close().unwrap();
    clean(&image);
    let volume = Volume::open(&image).unwrap();
    assert_eq!(volume.metadata().headers().map(|header| header.chunks.get()).collect::<Vec<_>>(), [4; 4]);
    volume.metadata().lookup(&path("/d/last")).unwrap();
}

#[test]
fn a_writer_takes_new_chunks_of_a_device_into_use() {
    tests::needs_root!();
    let (image, _directory) = common::copy("fresh-10g");
    let attachment = loopdev::attach(&image, &loopdev::Options::default()).unwrap();
    let device = attachment.device().clone();
    let writer = Writer::open(&device.path, Options::default()).unwrap();
    fill_and_grow(&device.path, &writer, || {
        grow_file(&image, 2);
        device.refresh_size().unwrap();
        growfs(&device.path, &GrowfsOptions::default()).unwrap();
    });
    writer.close().unwrap();
    clean(&device.path);
    attachment.detach().unwrap();
}

#[test]
fn work_goes_on_while_a_volume_grows() {
    const THREADS: usize = 4;
    const EACH: usize = 700;
    let (image, _directory) = common::copy("fresh-10g");
    let writer = Writer::open(&image, Options::default()).unwrap();
    let full = AtomicUsize::new(0);
    // More than there is room for in one chunk: who finds no room waits for more.
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (writer, full) = (&writer, &full);
            scope.spawn(move || {
                for file in 0..EACH {
                    let name = path(&format!("/f{thread}-{file}"));
                    let mut waits = false;
                    while let Err(error) = writer.create(&name, true) {
                        assert_eq!(error.errno(), Some(TOO_MANY_FILES));
                        full.fetch_add(usize::from(!waits), Ordering::Relaxed);
                        waits = true;
                        std::thread::yield_now();
                    }
                }
            });
        }
        while full.load(Ordering::Relaxed) < THREADS {
            std::thread::yield_now();
        }
        grow(&image, 2);
        assert!(writer.regrow().unwrap());
    });
    writer.close().unwrap();
    clean(&image);
    let volume = Volume::open(&image).unwrap();
    assert_eq!(volume.metadata().entries(pfs::format::InodeNo::ROOT).unwrap().len(), THREADS * EACH + 2);
}

#[test]
fn readers_see_that_a_volume_grew() {
    let (image, _directory) = common::copy("fresh-10g");
    let writer = Writer::open(&image, Options::default()).unwrap();
    let mut told = Volume::open(&image).unwrap();
    let mut untold = Volume::open(&image).unwrap();
    let late = Follower::open(&image, Duration::from_secs(3600)).unwrap();
    let follower = Follower::open(&image, Duration::from_millis(1)).unwrap();
    assert!(!told.regrow().unwrap());
    late.regrow().unwrap();
    assert_eq!(late.with(|metadata, _| chunks(metadata)), 1);
    grow(&image, 2);
    assert!(!told.refresh().unwrap());
    assert!(told.regrow().unwrap());
    assert_eq!(chunks(told.metadata()), 2);
    late.regrow().unwrap();
    assert_eq!(late.with(|metadata, _| chunks(metadata)), 2);
    assert!(writer.regrow().unwrap());
    // The new chunk has more of everything that is free, so that this is in it.
    let name = path("/new");
    writer.create(&name, true).unwrap();
    assert!(untold.refresh().unwrap());
    untold.metadata().lookup(&name).unwrap();
    assert_eq!(chunks(untold.metadata()), 2);
    assert!(follower.wait(Duration::from_secs(30), |metadata, _| metadata.lookup(&name).is_ok()));
    follower.check().unwrap();
}

#[test]
fn new_chunks_that_are_not_new_are_refused() {
    let mut image = image::Image::of("fresh-10g");
    let writer = Writer::open(&image.path, Options::default()).unwrap();
    writer.mkdir(&path("/d")).unwrap();
    grow(&image.path, 2);
    let damage = || {
        let error = writer.regrow().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::VerifyFailed);
        image::text(&error)
    };
    // As if somebody had made something there already.
    image.object(CHUNK + image::INODE, 7, &[(33, &[1]), (40, &[1])]);
    let text = damage();
    assert!(text.contains("inode 2055") && text.ends_with("mo_used: 1, but its chunk is new"), "{text}");
    image.mend();
    image.object(CHUNK + image::BLKTAG, 0, &[(33, &[0])]);
    let text = damage();
    assert!(text.contains("blktag 4096") && text.ends_with("mo_used: 0, but its chunk is new"), "{text}");
    image.mend();
    image.write(CHUNK + image::DIRENTRY + 100, &[1]);
    assert!(damage().contains("direntry 2048"));
    image.mend();
    image.write(CHUNK + 8, &[1]);
    assert!(damage().contains("header of chunk 1"));
    image.mend();
    // Nothing of that was taken in.
    assert_eq!(writer.with_metadata(chunks), 1);
    assert!(writer.regrow().unwrap());
    // What never shrinks.
    let mut sector = [0; 4096];
    let fresh = File::open(common::image("fresh-10g")).unwrap();
    fresh.read_exact_at(&mut sector, 0).unwrap();
    image.write(0, &sector);
    let text = damage();
    assert!(text.ends_with("ck_nchunk: 1 chunks, which were 2"), "{text}");
    image.mend();
    writer.rmdir(&path("/d")).unwrap();
    writer.close().unwrap();
    clean(&image.path);
}
