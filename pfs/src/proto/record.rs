//! Fields in bytes that were copied out of what others write, at offsets as the layout counts them.

/// Bytes of which the first is at offset `base` of a record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a> {
    bytes: &'a [u8],
    base: usize,
}

/// Offsets are those of a layout, known when this is written; one beyond the bytes is a mistake that any test finds.
impl<'a> Record<'a> {
    pub(super) fn new(bytes: &'a [u8], base: usize) -> Self {
        Self { bytes, base }
    }

    fn array<const N: usize>(self, at: usize) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes[at - self.base..][..N]);
        array
    }

    pub(super) fn u32(self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    pub(super) fn i32(self, at: usize) -> i32 {
        i32::from_le_bytes(self.array(at))
    }

    pub(super) fn u64(self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    pub(super) fn i64(self, at: usize) -> i64 {
        i64::from_le_bytes(self.array(at))
    }

    /// The text that begins at `at` and ends at a NUL, or after `size` bytes.
    pub(super) fn text(self, at: usize, size: usize) -> String {
        let field = &self.bytes[at - self.base..][..size];
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(size);
        String::from_utf8_lossy(&field[..end]).into_owned()
    }
}

/// As [`Record`], to be filled.
#[derive(Debug)]
pub(super) struct RecordMut<'a> {
    bytes: &'a mut [u8],
    base: usize,
}

impl<'a> RecordMut<'a> {
    pub(super) fn new(bytes: &'a mut [u8], base: usize) -> Self {
        Self { bytes, base }
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        self.bytes[at - self.base..][..value.len()].copy_from_slice(value);
    }

    pub(super) fn put_u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    pub(super) fn put_i32(&mut self, at: usize, value: i32) {
        self.put(at, &value.to_le_bytes());
    }

    pub(super) fn put_u64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    pub(super) fn put_i64(&mut self, at: usize, value: i64) {
        self.put(at, &value.to_le_bytes());
    }

    /// As much of a text as a field of `size` bytes has room for, with a NUL after it.
    pub(super) fn put_text(&mut self, at: usize, size: usize, text: &str) {
        let text = &text.as_bytes()[..text.len().min(size - 1)];
        self.put(at, text);
        self.put(at + text.len(), &[0]);
    }
}
