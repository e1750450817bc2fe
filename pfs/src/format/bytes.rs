//! Little-endian numbers in byte arrays whose layout is known.

use std::ops::Range;

/// The 8 bytes at `at` as a number.
///
/// Offsets are those of a layout, known when this is written; one beyond `N` is a mistake that any test finds.
pub(super) fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

/// The 4 bytes at `at` as a number.
pub(super) fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

/// The 4 bytes at `at` as a signed number.
pub(super) fn i32_at<const N: usize>(bytes: &[u8; N], at: usize) -> i32 {
    u32_at(bytes, at).cast_signed()
}

/// Writes a number over the 8 bytes at `at`.
pub(super) fn put_u64<const N: usize>(bytes: &mut [u8; N], at: usize, number: u64) {
    bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
}

/// Writes a number over the 4 bytes at `at`.
pub(super) fn put_u32<const N: usize>(bytes: &mut [u8; N], at: usize, number: u32) {
    bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
}

/// Whether nothing is set in `range`.
pub(super) fn is_zero<const N: usize>(bytes: &[u8; N], range: Range<usize>) -> bool {
    bytes[range].iter().all(|byte| *byte == 0)
}
