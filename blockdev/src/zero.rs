//! Telling zeroes from anything else at the speed of memory.

/// The width that the compiler turns into a few vector instructions, in bytes.
const CHUNK: usize = 128;

/// Whether every byte is zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<CHUNK>();
    chunks.iter().all(chunk_is_zero) && rest.iter().all(|byte| *byte == 0)
}

/// Where the first byte is that is not zero.
#[must_use]
pub fn first_nonzero(bytes: &[u8]) -> Option<usize> {
    // Chunks that are all zero are skipped at full speed; only the one that is not is looked at byte by byte.
    let (chunks, _) = bytes.as_chunks::<CHUNK>();
    let skipped = chunks.iter().take_while(|chunk| chunk_is_zero(chunk)).count() * CHUNK;
    bytes[skipped..].iter().position(|byte| *byte != 0).map(|at| skipped + at)
}

fn chunk_is_zero(chunk: &[u8; CHUNK]) -> bool {
    // Folded without a branch, which is what makes it a vector operation.
    let (words, _) = chunk.as_chunks::<8>();
    words.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_looking_at_every_byte(
            len in 0usize..1000,
            marks in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        ) {
            let mut bytes = vec![0; len];
            if len > 0 {
                for (at, byte) in marks {
                    bytes[at.index(len)] = byte;
                }
            }
            let first = bytes.iter().position(|byte| *byte != 0);
            prop_assert_eq!(first_nonzero(&bytes), first);
            prop_assert_eq!(is_zero(&bytes), first.is_none());
        }
    }
}
