//! Copies between a process's own memory and memory that other processes may be changing at the same time. What comes over is
//! then some mixture of old and new bytes; nothing else.
//!
//! To the compiler such memory is no place for an ordinary copy, for which nobody else may write. So this is done by an
//! instruction that the compiler does not look into, or word by word with atomics, which is several times slower.

#[cfg(any(test, not(target_arch = "x86_64")))]
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Copies bytes out of shared memory.
///
/// # Safety
/// There are as many bytes at `from`, mapped for as long as this takes.
pub(super) unsafe fn copy_out(from: *const u8, into: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise, and `into` is as long.
    unsafe {
        move_bytes(from, into.as_mut_ptr(), into.len());
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller's promise.
    unsafe {
        words_out(from, into);
    }
}

/// Copies bytes into shared memory.
///
/// # Safety
/// There are as many bytes at `to`, mapped for as long as this takes.
pub(super) unsafe fn copy_in(from: &[u8], to: *mut u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise, and `from` is as long.
    unsafe {
        move_bytes(from.as_ptr(), to, from.len());
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller's promise.
    unsafe {
        words_in(from, to);
    }
}

/// # Safety
/// There are `len` bytes to be read at `from` and to be written at `to`.
#[cfg(target_arch = "x86_64")]
unsafe fn move_bytes(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: it touches these bytes alone, forwards, as the direction flag is clear wherever Rust runs.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") len => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
    }
}

/// # Safety
/// As [`copy_out`].
#[cfg(any(test, not(target_arch = "x86_64")))]
unsafe fn words_out(from: *const u8, into: &mut [u8]) {
    let (head, rest) = into.split_at_mut(from.align_offset(8).min(into.len()));
    let (words, tail) = rest.as_chunks_mut();
    // SAFETY: the caller's promise; words are aligned.
    let byte = |at: usize| unsafe { AtomicU8::from_ptr(from.add(at).cast_mut()) }.load(Ordering::Relaxed);
    // SAFETY: as above.
    let word = |at: usize| unsafe { AtomicU64::from_ptr(from.add(at).cast_mut().cast()) }.load(Ordering::Relaxed);
    let (first, last) = (head.len(), head.len() + 8 * words.len());
    head.iter_mut().enumerate().for_each(|(index, into)| *into = byte(index));
    words.iter_mut().enumerate().for_each(|(index, into)| *into = word(first + 8 * index).to_ne_bytes());
    tail.iter_mut().enumerate().for_each(|(index, into)| *into = byte(last + index));
}

/// # Safety
/// As [`copy_in`].
#[cfg(any(test, not(target_arch = "x86_64")))]
unsafe fn words_in(from: &[u8], to: *mut u8) {
    let (head, rest) = from.split_at(to.align_offset(8).min(from.len()));
    let (words, tail) = rest.as_chunks();
    // SAFETY: the caller's promise; words are aligned.
    let byte = |at: usize, byte| unsafe { AtomicU8::from_ptr(to.add(at)) }.store(byte, Ordering::Relaxed);
    // SAFETY: as above.
    let word = |at: usize, word| unsafe { AtomicU64::from_ptr(to.add(at).cast()) }.store(word, Ordering::Relaxed);
    let (first, last) = (head.len(), head.len() + 8 * words.len());
    head.iter().enumerate().for_each(|(index, from)| byte(index, *from));
    words.iter().enumerate().for_each(|(index, from)| word(first + 8 * index, u64::from_ne_bytes(*from)));
    tail.iter().enumerate().for_each(|(index, from)| byte(last + index, *from));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_at_any_place_are_copied_and_none_beside_them() {
        let source: Vec<u8> = (0..80).collect();
        for (start, len) in (0..17).flat_map(|start| (0..40).map(move |len| (start, len))) {
            let mut expected = vec![0xff; 80];
            expected[start..start + len].copy_from_slice(&source[7..7 + len]);
            let mut copies = [vec![0xff; 80], vec![0xff; 80], vec![0xff; 80], vec![0xff; 80]];
            let [a, b, c, d] = &mut copies;
            // SAFETY: all of it is inside of these.
            unsafe {
                copy_in(&source[7..7 + len], a.as_mut_ptr().add(start));
                words_in(&source[7..7 + len], b.as_mut_ptr().add(start));
                copy_out(source.as_ptr().add(7), &mut c[start..start + len]);
                words_out(source.as_ptr().add(7), &mut d[start..start + len]);
            }
            copies.iter().for_each(|copy| assert_eq!(*copy, expected, "{len} bytes at {start}"));
        }
    }
}
