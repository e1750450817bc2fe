//! From what the writer wrote and what a reader saw to how long it took: plain arithmetic on two lists of times.
//!
//! Transactions of one *slot* follow each other, each with a higher number than the one before, so a reader that sees a
//! number has seen all that are lower. All times are nanoseconds on one clock.

/// A transaction of the writer, in the order of its slot's numbers, which count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Written {
    /// When it should have begun.
    pub(super) intended: u64,
    /// When it was sent.
    pub(super) sent: u64,
    /// When its commit was acknowledged; nothing if it never was.
    pub(super) acknowledged: Option<u64>,
}

/// The first time that a reader saw a number of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sighting {
    /// In which slot.
    pub(super) slot: usize,
    /// The number.
    pub(super) number: u64,
    /// When the last look was sent that did not see it.
    pub(super) missed: u64,
    /// When the answer of the first look came that did.
    pub(super) seen: u64,
}

/// What became of a transaction at one reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    /// The transaction.
    pub(super) written: Written,
    /// What became of it.
    pub(super) fate: Fate,
}

/// See [`Sample`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It was seen: it became visible after a look was sent that missed it, and before the answer of one that did not.
    Seen {
        /// When that look was sent.
        missed: u64,
        /// When that answer came.
        seen: u64,
    },
    /// It was not seen until then.
    Unseen {
        /// When the last look was sent.
        until: u64,
    },
}

impl Sample {
    /// How long after the commit's acknowledgement the reader saw it, at most: the answer of the first look that saw it
    /// had come. What is seen before its acknowledgement took no time. Nothing where there was no acknowledgement or no
    /// sight.
    pub(super) fn lag(&self) -> Option<u64> {
        match (self.written.acknowledged, self.fate) {
            (Some(acknowledged), Fate::Seen { seen, .. }) => Some(seen.saturating_sub(acknowledged)),
            _ => None,
        }
    }

    /// How long after its sending it became visible, as far as one can tell: in the middle of the two looks between which
    /// it did.
    pub(super) fn since_sent(&self) -> Option<u64> {
        match self.fate {
            Fate::Seen { missed, seen } => Some(missed.midpoint(seen).saturating_sub(self.written.sent)),
            Fate::Unseen { .. } => None,
        }
    }

    /// How long after it should have begun; for what was not seen, how long it was waited for.
    pub(super) fn since_intended(&self) -> u64 {
        match self.fate {
            Fate::Seen { seen, .. } => seen.saturating_sub(self.written.intended),
            Fate::Unseen { until } => until.saturating_sub(self.written.intended),
        }
    }

    /// Whether the very first look after the acknowledgement saw it, so that all that is known is that it took no longer
    /// than [`lag`](Self::lag) says.
    pub(super) fn is_left_censored(&self) -> bool {
        match (self.written.acknowledged, self.fate) {
            (Some(acknowledged), Fate::Seen { missed, .. }) => missed < acknowledged,
            _ => false,
        }
    }

    /// How far apart the two looks were between which it became visible.
    pub(super) fn resolution(&self) -> Option<u64> {
        match self.fate {
            Fate::Seen { missed, seen } => Some(seen.saturating_sub(missed)),
            Fate::Unseen { .. } => None,
        }
    }
}

/// What became of everything in `written`, a list for each slot, at a reader that saw `sightings`, in the order of their
/// times, and sent its last look at `until`.
pub(super) fn join(written: &[Vec<Written>], sightings: &[Sighting], until: u64) -> Vec<Sample> {
    let mut samples = Vec::with_capacity(written.iter().map(Vec::len).sum());
    let mut done = vec![0; written.len()];
    for sighting in sightings {
        let Some(done) = done.get_mut(sighting.slot) else { continue };
        let of_slot = &written[sighting.slot];
        let end = usize::try_from(sighting.number).unwrap_or(usize::MAX).min(of_slot.len());
        let fate = Fate::Seen { missed: sighting.missed, seen: sighting.seen };
        samples.extend(of_slot.get(*done..end).into_iter().flatten().map(|written| Sample { written: *written, fate }));
        *done = end.max(*done);
    }
    for (of_slot, done) in written.iter().zip(done) {
        let fate = Fate::Unseen { until };
        samples.extend(of_slot[done..].iter().map(|written| Sample { written: *written, fate }));
    }
    samples
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(sent: u64, acknowledged: u64) -> Written {
        Written { intended: sent - 1, sent, acknowledged: Some(acknowledged) }
    }

    #[test]
    fn a_sample_is_the_time_between_the_last_miss_and_the_first_hit() {
        let slots = [vec![written(100, 150), written(200, 210)]];
        let samples = join(&slots, &[Sighting { slot: 0, number: 1, missed: 160, seen: 190 }], 900);
        assert_eq!(samples.len(), 2);
        let (first, second) = (samples[0], samples[1]);
        assert_eq!(first.fate, Fate::Seen { missed: 160, seen: 190 });
        assert_eq!((first.lag(), first.since_sent(), first.since_intended()), (Some(40), Some(75), 91));
        assert_eq!((first.resolution(), first.is_left_censored()), (Some(30), false));
        assert_eq!(second.fate, Fate::Unseen { until: 900 });
        assert_eq!((second.lag(), second.since_sent(), second.since_intended()), (None, None, 701));
        assert!(!second.is_left_censored());
    }

    #[test]
    fn a_hit_on_the_first_look_is_left_censored() {
        let slots = [vec![written(100, 150)]];
        // A look that began before the acknowledgement and missed says nothing of the time after it.
        for (missed, seen, lag) in [(140, 170, 20), (90, 145, 0)] {
            let sample = join(&slots, &[Sighting { slot: 0, number: 1, missed, seen }], 900)[0];
            assert_eq!((sample.lag(), sample.is_left_censored()), (Some(lag), true));
        }
    }

    #[test]
    fn whoever_sees_a_number_has_seen_those_below() {
        let slots = [vec![written(10, 11), written(20, 21), written(30, 31)], vec![written(10, 12)]];
        let sightings = [
            Sighting { slot: 0, number: 3, missed: 40, seen: 50 },
            Sighting { slot: 7, number: 1, missed: 0, seen: 1 },
        ];
        let samples = join(&slots, &sightings, 60);
        let lags: Vec<_> = samples.iter().map(Sample::lag).collect();
        assert_eq!(lags, [Some(39), Some(29), Some(19), None]);
    }

    #[test]
    fn what_was_not_acknowledged_has_no_lag() {
        let lost = Written { acknowledged: None, ..written(10, 11) };
        let sample = join(&[vec![lost]], &[Sighting { slot: 0, number: 1, missed: 12, seen: 15 }], 60)[0];
        assert_eq!((sample.lag(), sample.since_sent(), sample.is_left_censored()), (None, Some(3), false));
    }

    proptest! {
        /// A writer that commits at random times, a replica that delays each commit at random but keeps their order, and
        /// a reader that looks at random times: every sample holds the truth between its two looks.
        #[test]
        fn every_sample_holds_the_truth(
            steps in prop::collection::vec((1u64..50, 1u64..50, 0u64..200), 1..40),
            looks in prop::collection::vec((1u64..60, 1u64..30), 1..80),
        ) {
            let (mut slot, mut visible) = (Vec::new(), Vec::new());
            let (mut now, mut last) = (10, 0);
            for (gap, commit, delay) in steps {
                now += gap;
                slot.push(written(now, now + commit));
                now += commit;
                last = last.max(now + delay);
                visible.push(last);
            }
            let (mut sightings, mut known, mut before, mut time) = (Vec::new(), 0, 0, 0);
            for (pause, trip) in looks {
                let sent = time + pause;
                // The database answers half way.
                let number = visible.iter().filter(|at| **at <= sent + trip / 2).count() as u64;
                if number > known {
                    sightings.push(Sighting { slot: 0, number, missed: before, seen: sent + trip });
                    known = number;
                }
                (before, time) = (sent, sent + trip);
            }
            let samples = join(&[slot.clone()], &sightings, before);
            prop_assert_eq!(samples.len(), slot.len());
            for (sample, truth) in samples.iter().zip(&visible) {
                match sample.fate {
                    Fate::Seen { missed, seen } => prop_assert!(missed <= *truth && *truth <= seen),
                    Fate::Unseen { until } => prop_assert!(*truth > until),
                }
            }
        }
    }
}
