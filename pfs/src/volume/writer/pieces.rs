//! Cutting what is read and written into I/Os: as large as can be, straight from and to memory where it is aligned.

use std::collections::VecDeque;
use std::ptr;

use blockdev::engine::Lent;

use super::super::data::Segment;
use super::plan::{Run, SECTOR};

/// Bytes in a buffer, for what is not aligned.
pub(super) const BUFFER: usize = 64 << 10;

/// One I/O, or two of the same sectors.
#[derive(Debug, Clone, Copy)]
pub(super) enum Piece {
    /// Straight from or to memory.
    Direct { at: u64, from: u32, len: u32 },
    /// Whole sectors into a buffer, and some of their bytes into memory.
    Read { at: u64, sectors: u32, skip: u32, from: u32, len: u32 },
    /// Whole sectors of a run out of a buffer; what of them is to stay is read into it before. The run's data are in memory
    /// from there on.
    Write { at: u64, sectors: u32, read: bool, run: Run, from: u32 },
}

/// Cuts a range of the device that goes from or to memory `from` on into what is aligned, and what is before and after it.
fn aligned(at: u64, len: u64, memory: Lent, from: u64) -> (u64, u64) {
    let before = at.next_multiple_of(SECTOR) - at;
    let address = memory.start().addr().get() as u64 + from + before;
    if before >= len || !address.is_multiple_of(SECTOR) {
        return (len, 0);
    }
    (before, (len - before) / SECTOR * SECTOR)
}

/// What to do to read segments of a file into memory. What was never written is zeroed at once.
#[allow(clippy::cast_possible_truncation, reason = "no longer than the memory, or than a buffer")]
pub(super) fn read_pieces(segments: &[Segment], memory: Lent) -> VecDeque<Piece> {
    let mut pieces = VecDeque::new();
    let mut from = 0;
    for segment in segments {
        match *segment {
            Segment::Zero { len } => {
                let zeroes = memory.part(from as u32, len as u32);
                // SAFETY: who lent the memory promised that it is there for this alone.
                unsafe { ptr::write_bytes(zeroes.start().as_ptr(), 0, len as usize) };
            }
            Segment::Data { at, len } => {
                let at = at.bytes();
                let (before, direct) = aligned(at, len, memory, from);
                through_buffers(at, before, from, &mut pieces);
                if direct > 0 {
                    let from = (from + before) as u32;
                    pieces.push_back(Piece::Direct { at: at + before, from, len: direct as u32 });
                }
                let done = before + direct;
                through_buffers(at + done, len - done, from + done, &mut pieces);
            }
        }
        from += segment.len();
    }
    pieces
}

#[allow(clippy::cast_possible_truncation, reason = "no longer than the memory, or than a buffer")]
fn through_buffers(at: u64, len: u64, from: u64, pieces: &mut VecDeque<Piece>) {
    let mut done = 0;
    while done < len {
        let skip = (at + done) % SECTOR;
        let part = (len - done).min(BUFFER as u64 - skip);
        let sectors = (skip + part).next_multiple_of(SECTOR) as u32;
        let (start, from) = (at + done - skip, (from + done) as u32);
        pieces.push_back(Piece::Read { at: start, sectors, skip: skip as u32, from, len: part as u32 });
        done += part;
    }
}

/// What to do to write runs of a file from memory.
#[allow(clippy::cast_possible_truncation, reason = "no longer than the memory, or than a buffer")]
pub(super) fn write_pieces(runs: &[Run], memory: Lent) -> VecDeque<Piece> {
    let mut pieces = VecDeque::new();
    let mut from = 0;
    for run in runs {
        let (start, end) = (run.at - run.at % SECTOR, run.end().next_multiple_of(SECTOR));
        let (before, direct) = aligned(run.at + run.zeroes, run.data, memory, from);
        // A run's last sector in part, where nothing is kept, is filled up with zeroes.
        let (first, last) = (run.at + run.zeroes + before, run.at + run.zeroes + before + direct);
        let buffered = |from_at: u64, to: u64, from: u64, pieces: &mut VecDeque<Piece>| {
            let mut at = from_at;
            while at < to {
                let read_first = at < run.at;
                let alone = read_first || (run.keep && at + SECTOR > run.end());
                let mut sectors = if alone { SECTOR } else { (to - at).min(BUFFER as u64) };
                if !alone && run.keep && at + sectors > run.end() {
                    sectors -= SECTOR;
                }
                let read = read_first || (run.keep && at + sectors > run.end());
                pieces.push_back(Piece::Write { at, sectors: sectors as u32, read, run: *run, from: from as u32 });
                at += sectors;
            }
        };
        if direct == 0 {
            buffered(start, end, from, &mut pieces);
        } else {
            buffered(start, first, from, &mut pieces);
            let from_direct = (from + before) as u32;
            pieces.push_back(Piece::Direct { at: first, from: from_direct, len: direct as u32 });
            buffered(last, end, from, &mut pieces);
        }
        from += run.data;
    }
    pieces
}

/// Puts what of a run falls into the sectors at `at` into them. Its data are in memory `from` there on.
pub(super) fn fill(sectors: &mut [u8], at: u64, run: Run, memory: Lent, from: u32) {
    let (start, end) = (at, at + sectors.len() as u64);
    let data = run.at + run.zeroes;
    #[allow(clippy::cast_possible_truncation, reason = "inside the sectors, or the memory")]
    let within = |from: u64, to: u64| {
        let (from, to) = (from.clamp(start, end), to.clamp(start, end));
        ((from - start) as usize, (to - start) as usize)
    };
    let (zeroes, zeroes_end) = within(run.at, data);
    sectors[zeroes..zeroes_end].fill(0);
    let (first, last) = within(data, run.end());
    if first < last {
        #[allow(clippy::cast_possible_truncation, reason = "inside the memory")]
        let from = from + (start + first as u64 - data) as u32;
        #[allow(clippy::cast_possible_truncation, reason = "no more than a buffer")]
        let memory = memory.part(from, (last - first) as u32);
        // SAFETY: who lent the memory promised that it is there, and that nobody writes it.
        unsafe { ptr::copy_nonoverlapping(memory.start().as_ptr(), sectors[first..last].as_mut_ptr(), last - first) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Bda;
    use blockdev::buffer::Memory;
    use proptest::prelude::*;

    const DISK: usize = 1 << 20;

    fn bytes(lent: Lent) -> &'static mut [u8] {
        // SAFETY: the tests use the memory from here alone, while it is there.
        unsafe { std::slice::from_raw_parts_mut(lent.start().as_ptr(), lent.len() as usize) }
    }

    fn lend(memory: &Memory, skip: usize, len: usize) -> Lent {
        // SAFETY: inside the memory, which is there while the test runs.
        unsafe { Lent::new(memory.as_ptr().add(skip), u32::try_from(len).unwrap()) }
    }

    fn noise(len: usize, seed: u8) -> Vec<u8> {
        (0..len).map(|index| (index * 31 % 251) as u8 ^ seed).collect()
    }

    fn range(at: u64, len: u32) -> std::ops::Range<usize> {
        assert!(at.is_multiple_of(SECTOR) && u64::from(len).is_multiple_of(SECTOR) && len > 0);
        at as usize..at as usize + len as usize
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_was_meant(
            at in 0u64..20_000, zeroes in prop_oneof![Just(0), 0u64..20_000], data in 1u64..300_000, keep: bool,
            aligned: bool, skip in prop_oneof![Just(0), Just(4096), 0usize..9000],
        ) {
            let (at, data) = if aligned { (at / SECTOR * SECTOR, data.next_multiple_of(SECTOR)) } else { (at, data) };
            // What was written further than this has nothing to be filled up.
            let run = Run { at, zeroes, data, keep: keep && zeroes == 0 };
            let memory = Memory::new(DISK).unwrap();
            let lent = lend(&memory, skip, data as usize);
            bytes(lent).copy_from_slice(&noise(data as usize, 1));
            let before = noise(DISK, 2);
            let mut disk = before.clone();
            let mut touched = vec![false; DISK];
            for piece in write_pieces(&[run], lent) {
                let range = match piece {
                    Piece::Direct { at, from, len } => {
                        prop_assert!(lent.part(from, len).start().addr().get().is_multiple_of(4096));
                        disk[range(at, len)].copy_from_slice(bytes(lent.part(from, len)));
                        range(at, len)
                    }
                    Piece::Write { at, sectors, read, run, from } => {
                        prop_assert!(sectors as usize <= BUFFER);
                        let mut buffer = if read { disk[range(at, sectors)].to_vec() } else { vec![0; sectors as usize] };
                        fill(&mut buffer, at, run, lent, from);
                        disk[range(at, sectors)].copy_from_slice(&buffer);
                        range(at, sectors)
                    }
                    Piece::Read { .. } => panic!("nothing is to be read"),
                };
                for touched in &mut touched[range] {
                    prop_assert!(!*touched);
                    *touched = true;
                }
            }
            let (start, first, end) = (at as usize, (at + zeroes) as usize, run.end() as usize);
            prop_assert_eq!(&disk[..start], &before[..start]);
            prop_assert!(disk[start..first].iter().all(|byte| *byte == 0));
            prop_assert!(disk[first..end] == *bytes(lent));
            // Where nothing is to be kept, the rest of the last sector is in a hole.
            let kept = if run.keep { end } else { end.next_multiple_of(4096) };
            prop_assert_eq!(&disk[kept..], &before[kept..]);
        }

        #[test]
        fn what_is_read_is_what_is_there(
            parts in prop::collection::vec((any::<bool>(), 0u64..60_000, 1u64..80_000, any::<bool>()), 1..5),
            skip in prop_oneof![Just(0), Just(4096), 0usize..9000],
        ) {
            let disk = noise(DISK, 3);
            let mut expected = Vec::new();
            let segments: Vec<Segment> = parts.into_iter().map(|(zero, at, len, aligned)| {
                let (at, len) = if aligned { (at / SECTOR * SECTOR, len.next_multiple_of(SECTOR)) } else { (at, len) };
                if zero {
                    expected.resize(expected.len() + len as usize, 0);
                    return Segment::Zero { len };
                }
                expected.extend_from_slice(&disk[at as usize..(at + len) as usize]);
                Segment::Data { at: Bda::new(at), len }
            }).collect();
            let memory = Memory::new(DISK).unwrap();
            let lent = lend(&memory, skip, expected.len());
            bytes(lent).fill(0xee);
            for piece in read_pieces(&segments, lent) {
                match piece {
                    Piece::Direct { at, from, len } => {
                        prop_assert!(lent.part(from, len).start().addr().get().is_multiple_of(4096));
                        bytes(lent.part(from, len)).copy_from_slice(&disk[range(at, len)]);
                    }
                    Piece::Read { at, sectors, skip, from, len } => {
                        prop_assert!(sectors as usize <= BUFFER);
                        let buffer = &disk[range(at, sectors)];
                        bytes(lent.part(from, len)).copy_from_slice(&buffer[skip as usize..][..len as usize]);
                    }
                    Piece::Write { .. } => panic!("nothing is to be written"),
                }
            }
            prop_assert!(bytes(lent) == expected);
        }
    }

    #[test]
    fn what_is_aligned_is_one_io() {
        let memory = Memory::new(DISK).unwrap();
        let lent = lend(&memory, 0, DISK);
        let run = Run { at: 8192, zeroes: 0, data: DISK as u64, keep: true };
        let pieces = write_pieces(&[run], lent);
        assert!(matches!(Vec::from(pieces)[..], [Piece::Direct { at: 8192, from: 0, .. }]));
        let pieces = read_pieces(&[Segment::Data { at: Bda::new(4096), len: DISK as u64 }], lent);
        assert!(matches!(Vec::from(pieces)[..], [Piece::Direct { at: 4096, from: 0, .. }]));
    }
}
