//! Latencies, counted so that no tail is lost.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use blockdev::{Error, ErrorKind, Result};
use hdrhistogram::serialization::{Deserializer, Serializer, V2Serializer};

/// The percentiles that every summary of latencies gives.
pub const PERCENTILES: [f64; 7] = [50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99];

/// The longest latency told apart from longer ones: one hour, in nanoseconds.
const LONGEST_NS: u64 = 3_600_000_000_000;

/// Latencies are kept to this many significant decimal digits.
const SIGNIFICANT_DIGITS: u8 = 3;

/// Cookie, payload length, normalising offset, digits (4 bytes each), lowest, highest, ratio (8 bytes each): the header
/// of an encoded histogram. Source: `HistogramEncodingV2` in the HdrHistogram reference implementation.
const HEADER_BYTES: usize = 40;

/// Latencies in nanoseconds, 1 ns to 1 h, to three significant digits.
///
/// Recording is a few nanoseconds and never allocates; two histograms merge without loss, so each thread keeps its own.
#[derive(Clone, PartialEq)]
pub struct Histogram(hdrhistogram::Histogram<u64>);

impl Histogram {
    /// An empty histogram.
    #[must_use]
    pub fn new() -> Self {
        let counts = hdrhistogram::Histogram::new_with_bounds(1, LONGEST_NS, SIGNIFICANT_DIGITS);
        Self(counts.expect("the bounds are constants that hdrhistogram accepts")) // as every test shows
    }

    /// Counts one latency. Zero counts as 1 ns, more than an hour as an hour.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    /// Counts `count` times the same latency.
    pub fn record_n(&mut self, ns: u64, count: u64) {
        self.0.saturating_record_n(ns.max(1), count);
    }

    /// Adds all that `other` has counted.
    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("both have the same bounds"); // `new` and `decode` see to that
    }

    /// Forgets everything, keeping the memory.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// How many latencies were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Whether none was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The shortest, in nanoseconds; zero when empty.
    #[must_use]
    pub fn min(&self) -> u64 {
        if self.is_empty() { 0 } else { self.0.min() }
    }

    /// The longest, in nanoseconds; zero when empty.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.0.max()
    }

    /// The mean, in nanoseconds; zero when empty.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.0.mean()
    }

    /// The latency that `percentile` (0 to 100) of all are at or below, in nanoseconds; zero when empty.
    #[must_use]
    pub fn percentile(&self, percentile: f64) -> u64 {
        self.0.value_at_percentile(percentile)
    }

    /// Whether enough was counted to tell `percentile` (0 to 100) from the maximum: a thousand for 99.9.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a count far below 2^52")]
    pub fn tells(&self, percentile: f64) -> bool {
        self.count() as f64 * (100.0 - percentile) >= 100.0 * (1.0 - 1e-9)
    }

    /// Every latency that occurred, ascending, and how often.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value()))
    }

    /// HdrHistogram's own V2 encoding, in base64: what its implementations in other languages read.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(&self.0, &mut bytes).expect("writing to memory, of a size that fits 32 bits"); // 442 KiB at most
        BASE64.encode(bytes)
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// When it is anything else. No input makes this take more than a few MiB of memory.
    pub fn decode(text: &str) -> Result<Self> {
        let damaged = |why: &str| Error::new(ErrorKind::VerifyFailed, format!("a histogram is damaged: {why}"));
        let bytes = BASE64.decode(text).map_err(|source| damaged("it is not base64").with_source(source))?;
        // The payload's length is checked here because the library takes that much memory before it reads.
        let Some((header, payload)) = bytes.split_at_checked(HEADER_BYTES) else {
            return Err(damaged("it is shorter than a header"));
        };
        if header[4..8] != u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes() {
            return Err(damaged("its length is not what its header says"));
        }
        if header[12..16] != u32::from(SIGNIFICANT_DIGITS).to_be_bytes() {
            return Err(damaged("it is not one of three significant digits"));
        }
        // Counts are base-128 numbers, each byte but the last with its top bit set. Six bytes make 2^41, which no run
        // comes near and of which a histogram's whole length does not overflow the sums that the library takes.
        if payload.split(|byte| *byte < 0x80).any(|more| more.len() > 5) {
            return Err(damaged("it has an absurd count"));
        }
        let decoded: hdrhistogram::Histogram<u64> = Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(|source| damaged("it does not decode").with_source(source))?;
        if (decoded.low(), decoded.high()) != (1, LONGEST_NS) {
            return Err(damaged("it does not reach from 1 ns to 1 h"));
        }
        Ok(Self(decoded))
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Histogram({} from {} ns to {} ns)", self.count(), self.min(), self.max())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(latencies: &[u64]) -> Histogram {
        let mut histogram = Histogram::new();
        latencies.iter().for_each(|ns| histogram.record(*ns));
        histogram
    }

    #[test]
    fn nothing_was_counted() {
        let empty = Histogram::new();
        assert_eq!((empty.count(), empty.min(), empty.max(), empty.percentile(99.0)), (0, 0, 0, 0));
        assert!(empty.is_empty() && empty.buckets().next().is_none());
        assert_eq!(Histogram::decode(&empty.encode()).unwrap(), empty);
    }

    #[test]
    fn beyond_the_bounds_counts_as_the_bound() {
        let histogram = of(&[0, u64::MAX]);
        assert_eq!(histogram.count(), 2);
        assert_eq!(histogram.min(), 1);
        assert!(histogram.max() >= LONGEST_NS && histogram.max() < LONGEST_NS + LONGEST_NS / 500);
    }

    #[test]
    fn a_percentile_takes_enough_operations() {
        let mut histogram = Histogram::new();
        histogram.record_n(5, 999);
        assert!(histogram.tells(99.0) && !histogram.tells(99.9));
        histogram.record(5);
        assert!(histogram.tells(99.9) && !histogram.tells(99.99));
    }

    #[test]
    fn cleared_is_empty() {
        let mut histogram = of(&[5, 7]);
        histogram.clear();
        assert_eq!(histogram, Histogram::new());
    }

    /// The header of an encoded histogram whose payload has `length` bytes.
    fn header(length: u32) -> Vec<u8> {
        let mut header = BASE64.decode(Histogram::new().encode()).unwrap()[..HEADER_BYTES].to_vec();
        header[4..8].copy_from_slice(&length.to_be_bytes());
        header
    }

    #[test]
    fn what_is_not_a_histogram_says_why() {
        let good = of(&[1000, 2000]).encode();
        let with = |at: usize, byte: u8| {
            let mut bytes = BASE64.decode(&good).unwrap();
            bytes[at] = byte;
            BASE64.encode(bytes)
        };
        for (text, why) in [
            ("%%%".to_owned(), "not base64"),
            (String::new(), "shorter than a header"),
            (good[..good.len() - 4].to_owned(), "length"),
            (with(4, 0xff), "length"),
            (with(0, 0), "does not decode"),
            (BASE64.encode([&header(18)[..], &[0xfe; 16], &[1, 0]].concat()), "absurd count"),
            (with(15, 5), "three significant digits"),
            (with(31, 9), "from 1 ns to 1 h"),
        ] {
            let error = Histogram::decode(&text).unwrap_err();
            assert!(error.to_string().contains(why), "{text}: {error}");
            assert_eq!(error.kind(), ErrorKind::VerifyFailed);
        }
    }

    proptest! {
        #[test]
        fn percentiles_are_those_of_the_sorted_list(mut list in prop::collection::vec(1u64..LONGEST_NS, 1..200), p in 0.0f64..=100.0) {
            let histogram = of(&list);
            list.sort_unstable();
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a rank")]
            let rank = ((p / 100.0 * list.len() as f64).ceil() as usize).max(1);
            let (exact, counted) = (list[rank - 1], histogram.percentile(p));
            prop_assert!(counted >= exact && counted - exact <= exact / 500, "{exact} {counted}");
        }

        #[test]
        fn merged_is_as_if_counted_together(a in prop::collection::vec(1u64..LONGEST_NS, 0..100), b in prop::collection::vec(1u64..LONGEST_NS, 0..100)) {
            let mut merged = of(&a);
            merged.merge(&of(&b));
            prop_assert_eq!(merged, of(&[a, b].concat()));
        }

        #[test]
        fn counted_again_from_its_buckets_it_is_the_same(list in prop::collection::vec(1u64..LONGEST_NS, 0..100)) {
            let histogram = of(&list);
            let mut again = Histogram::new();
            histogram.buckets().for_each(|(ns, count)| again.record_n(ns, count));
            prop_assert!(again.buckets().eq(histogram.buckets()));
        }

        #[test]
        fn survives_encoding(list in prop::collection::vec(any::<u64>(), 0..200)) {
            let histogram = of(&list);
            prop_assert_eq!(Histogram::decode(&histogram.encode()).unwrap(), histogram);
        }

        #[test]
        fn no_bytes_make_decoding_panic(bounds: Option<[u8; 16]>, body in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = header(u32::try_from(body.len()).unwrap());
            if let Some(bounds) = bounds {
                bytes[16..32].copy_from_slice(&bounds);
            }
            bytes.extend(body);
            if let Ok(histogram) = Histogram::decode(&BASE64.encode(bytes)) {
                prop_assert!(histogram.percentile(99.0) <= histogram.max());
            }
        }
    }
}
