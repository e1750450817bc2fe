//! Scripts of operations that the original has played, and playing them.

use blockdev::Cancel;
use pfs::volume::VolumePath;
use pfs::volume::writer::{Allocate, Content, Position, Writer};

/// Bytes `from` to `from + len` of the pattern with which the scripts fill files.
#[must_use]
pub fn pattern(seed: u64, from: u64, len: usize) -> Vec<u8> {
    let noise = noise();
    let mut bytes = Vec::with_capacity(len);
    let mut at = from;
    while bytes.len() < len {
        let (page, within) = (at >> 12, usize::try_from(at & 0xfff).unwrap());
        let start = (seed * 257).wrapping_add(page.wrapping_mul((2 * seed) | 1)) & 0xfff;
        let count = (4096 - within).min(len - bytes.len());
        let start = usize::try_from(start).unwrap() + within;
        bytes.extend_from_slice(&noise[start..start + count]);
        at += count as u64;
    }
    bytes
}

fn noise() -> Vec<u8> {
    let mut state: u64 = 0x5046_5346_4958_5455;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u8::try_from((state >> 33) & 0xff).unwrap()
    })
    .take(8192)
    .collect()
}

/// Plays one line. What cannot be done is not done.
pub fn play(writer: &Writer, content: &mut Content<'_>, line: &str) -> blockdev::Result<()> {
    let words: Vec<&str> = line.split(' ').collect();
    let path = |index: usize| VolumePath::new(super::path(words[index]));
    let number = |index: usize| words[index].parse::<u64>().unwrap();
    match words[0] {
        "mkdir" => writer.mkdir(&path(1)).map(|_| ()),
        "creat" => writer.create(&path(1), true).map(|_| ()),
        "write" => {
            let file = writer.create(&path(1), false)?;
            let bytes = pattern(number(2), number(3), usize::try_from(number(4)).unwrap());
            // As the client that once played this: no more than 4 MiB at once.
            for (piece, at) in bytes.chunks(4 << 20).zip((number(3)..).step_by(4 << 20)) {
                content.write(file, Position::At(at), piece)?;
            }
            Ok(())
        }
        "trunc" => writer.truncate(writer.lookup(&path(1))?, number(2)),
        "falloc" => writer.allocate(writer.lookup(&path(1))?, number(2), number(3), Allocate::default()),
        "mv" => writer.rename(&path(1), &path(2)),
        "rm" => writer.unlink(&path(1)),
        "rmdir" => writer.rmdir(&path(1)),
        // The original's daemon discards what was freed meanwhile.
        "sleep" => writer.discard(false, &Cancel::new()).map(|_| ()),
        other => panic!("{other}"),
    }
}
