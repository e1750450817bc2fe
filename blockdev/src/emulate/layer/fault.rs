//! Faults: what a disk does when it is broken, or lies.

use std::fmt;
use std::str::FromStr;
use std::sync::Mutex;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::spec::Spec;
use crate::emulate::mailbox::lock;
use crate::emulate::request::{Operation, Request};
use crate::error::{Error, Result};
use crate::units::{ByteOffset, ByteRange, ByteSize};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is not done, and an error says so.
    Fails(Errno),
    /// It is not answered until the fault is taken away.
    Stuck,
    /// Of a write only the first sectors reach the disk, and it is said to be done.
    Torn,
    /// A bit is wrong: of what is read, or of what is written.
    Corrupt,
    /// A write lands elsewhere, and is said to be done.
    Misdirected,
    /// A write reaches nothing, and is said to be done; a flush is not made.
    Lost,
}

impl Kind {
    const NAMES: [(&'static str, Self); 7] = [
        ("eio", Self::Fails(Errno::EIO)),
        ("enospc", Self::Fails(Errno::ENOSPC)),
        ("stuck", Self::Stuck),
        ("torn", Self::Torn),
        ("corrupt", Self::Corrupt),
        ("misdirected", Self::Misdirected),
        ("lost", Self::Lost),
    ];

    fn name(self) -> &'static str {
        Self::NAMES.into_iter().find(|(_, kind)| *kind == self).map_or("eio", |(name, _)| name)
    }

    /// Whether it can happen to such an operation.
    fn can_hit(self, operation: Operation) -> bool {
        match self {
            Self::Fails(Errno::ENOSPC) => operation.changes(),
            Self::Fails(_) | Self::Stuck => true,
            Self::Torn | Self::Misdirected => operation == Operation::Write,
            Self::Corrupt => matches!(operation, Operation::Read | Operation::Write),
            Self::Lost => operation != Operation::Read,
        }
    }
}

/// A fault, and whom it hits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fault {
    kind: Kind,
    /// Only such operations.
    operation: Option<Operation>,
    /// Only what touches these bytes.
    range: Option<ByteRange>,
    /// How likely, from 0 to 1.
    probability: f64,
    /// How many are let pass first.
    after: u64,
    /// How often at most.
    count: Option<u64>,
    /// What decides which are hit, and how.
    seed: u64,
}

impl Fault {
    /// Whether what it hits is not answered as long as it is there.
    pub(in super::super) fn keeps_waiting(&self) -> bool {
        self.kind == Kind::Stuck
    }
}

impl FromStr for Fault {
    type Err = Error;

    /// A kind (`eio`, `enospc`, `stuck`, `torn`, `corrupt`, `misdirected`, `lost`), then any of `op=write`, `range=1M-2M`,
    /// `probability=0.01`, `after=100`, `count=3`, `seed=7`.
    fn from_str(text: &str) -> Result<Self> {
        let spec = Spec { what: "fault", text };
        let mut parts = spec.parts();
        let kind = parts.next().and_then(|(key, word)| {
            let named = Kind::NAMES.into_iter().find(|(name, _)| *name == word);
            named.filter(|_| key.is_none()).map(|(_, kind)| kind)
        });
        let Some(kind) = kind else {
            let names: Vec<&str> = Kind::NAMES.iter().map(|(name, _)| *name).collect();
            return Err(spec.bad(format_args!("it starts with its kind, one of {}", names.join(", "))));
        };
        let mut fault = Self { kind, operation: None, range: None, probability: 1.0, after: 0, count: None, seed: 0 };
        for (key, value) in parts {
            match key {
                Some("op") => fault.operation = Some(spec.operation(value)?),
                Some("range") => {
                    let (from, to) =
                        value.split_once('-').ok_or_else(|| spec.bad("a range is FROM-TO, such as 1M-2M"))?;
                    let (from, to) = (spec.size(from)?, spec.size(to)?);
                    if from >= to {
                        return Err(spec.bad("its range ends before it begins"));
                    }
                    fault.range = Some(ByteRange { start: ByteOffset::new(from.bytes()), len: to - from });
                }
                Some("probability") => {
                    fault.probability = spec.value(value)?;
                    if !(0.0..=1.0).contains(&fault.probability) {
                        return Err(spec.bad("a probability is from 0 to 1"));
                    }
                }
                Some("after") => fault.after = spec.value(value)?,
                Some("count") => fault.count = Some(spec.value(value)?),
                Some("seed") => fault.seed = spec.value(value)?,
                _ => return Err(spec.bad("its keys are op, range, probability, after, count and seed")),
            }
        }
        if let Some(operation) = fault.operation
            && !kind.can_hit(operation)
        {
            return Err(spec.bad(format_args!("it cannot happen to a {}", operation.name())));
        }
        Ok(fault)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        if let Some(operation) = self.operation {
            write!(f, ",op={}", operation.name())?;
        }
        if let Some(range) = self.range {
            write!(f, ",range={}-{}", range.start.bytes(), range.end().bytes())?;
        }
        if self.probability < 1.0 {
            write!(f, ",probability={}", self.probability)?;
        }
        if self.after > 0 {
            write!(f, ",after={}", self.after)?;
        }
        if let Some(count) = self.count {
            write!(f, ",count={count}")?;
        }
        if self.seed > 0 {
            write!(f, ",seed={}", self.seed)?;
        }
        Ok(())
    }
}

impl TryFrom<String> for Fault {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Fault> for String {
    fn from(fault: Fault) -> Self {
        fault.to_string()
    }
}

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Verdict {
    /// Nothing.
    Fine,
    /// It fails.
    Fails(Errno),
    /// It waits until the faults change.
    Stuck,
    /// Only so many bytes of it, fewer than all, are written.
    Torn(u32),
    /// This bit of its data is wrong.
    Corrupt { bit: u64 },
    /// It lands here.
    Misdirected(ByteOffset),
    /// It is only said to be done.
    Lost,
}

/// Faults, and how often each has come.
#[derive(Debug)]
pub(in super::super) struct Faults {
    faults: Vec<(Fault, Mutex<State>)>,
    sector: ByteSize,
    size: ByteSize,
}

#[derive(Debug)]
struct State {
    rng: fastrand::Rng,
    matched: u64,
    hits: u64,
}

impl Faults {
    /// Faults of a disk of `size`, in sectors of `sector`.
    pub(in super::super) fn new(faults: &[Fault], sector: ByteSize, size: ByteSize) -> Self {
        let state =
            |fault: &Fault| Mutex::new(State { rng: fastrand::Rng::with_seed(fault.seed), matched: 0, hits: 0 });
        Self { faults: faults.iter().map(|fault| (fault.clone(), state(fault))).collect(), sector, size }
    }

    /// How often each fault has come.
    pub(in super::super) fn hits(&self) -> impl Iterator<Item = u64> {
        self.faults.iter().map(|(_, state)| lock(state).hits)
    }

    /// What happens to `request`, which is legal: the first fault that hits it decides.
    pub(in super::super) fn judge(&self, request: &Request) -> Verdict {
        let operation = request.operation();
        let range = request.range();
        for (fault, state) in &self.faults {
            if !fault.kind.can_hit(operation) || fault.operation.is_some_and(|only| only != operation) {
                continue;
            }
            if let (Some(wanted), Some(range)) = (fault.range, range)
                && (range.end() <= wanted.start || wanted.end() <= range.start)
            {
                continue;
            }
            let mut state = lock(state);
            state.matched += 1;
            let due = state.matched > fault.after && fault.count.is_none_or(|count| state.hits < count);
            // Each draws once, so that which are hit does not depend on those before.
            let drawn = state.rng.f64() < fault.probability;
            if !due || !drawn {
                continue;
            }
            let verdict = self.verdict(fault.kind, range, &mut state.rng);
            if verdict != Verdict::Fine {
                state.hits += 1;
                return verdict;
            }
        }
        Verdict::Fine
    }

    fn verdict(&self, kind: Kind, range: Option<ByteRange>, rng: &mut fastrand::Rng) -> Verdict {
        let len = range.map_or(0, |range| range.len.bytes());
        let sector = self.sector.bytes();
        match kind {
            Kind::Fails(errno) => Verdict::Fails(errno),
            Kind::Stuck => Verdict::Stuck,
            Kind::Lost => Verdict::Lost,
            // A single sector is written or not, never in part.
            Kind::Torn => u32::try_from(rng.u64(..(len / sector).max(1)) * sector).map_or(Verdict::Fine, Verdict::Torn),
            Kind::Corrupt if len > 0 => Verdict::Corrupt { bit: rng.u64(..len * 8) },
            Kind::Corrupt => Verdict::Fine,
            Kind::Misdirected => {
                let places = self.size.saturating_sub(ByteSize::new(len)).bytes() / sector;
                let own = range.map_or(0, |range| range.start.bytes() / sector);
                match rng.u64(..=places) {
                    place if place == own => Verdict::Fine,
                    place => Verdict::Misdirected(ByteOffset::new(place * sector)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trim(offset: u64, len: u64) -> Request {
        Request::Trim { range: ByteRange { start: ByteOffset::new(offset), len: ByteSize::new(len) }, fua: false }
    }

    fn faults(texts: &[&str]) -> Faults {
        let parsed: Vec<Fault> = texts.iter().map(|text| text.parse().unwrap()).collect();
        Faults::new(&parsed, ByteSize::new(512), ByteSize::mib(1))
    }

    #[test]
    fn faults_are_read_and_written() {
        for text in ["eio", "corrupt,op=read,probability=0.25,seed=7", "stuck,range=1048576-2097152,after=10,count=3"] {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
        assert_eq!("eio,range=1M-2M".parse::<Fault>().unwrap().to_string(), "eio,range=1048576-2097152");
        for bad in
            ["", "eoi", "op=read", "torn,op=read", "eio,range=2M-1M", "eio,range=5", "eio,probability=2", "eio,x=1"]
        {
            assert!(bad.parse::<Fault>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_fault_hits_whom_it_is_meant_for() {
        let faults = faults(&["eio,op=trim,range=4k-8k,after=1,count=2"]);
        assert_eq!(faults.judge(&Request::Flush), Verdict::Fine);
        assert_eq!(faults.judge(&trim(0, 4096)), Verdict::Fine);
        assert_eq!(faults.judge(&trim(8192, 4096)), Verdict::Fine);
        let hit: Vec<bool> = (0..5).map(|_| faults.judge(&trim(7680, 1024)) != Verdict::Fine).collect();
        assert_eq!(hit, [false, true, true, false, false]);
        assert_eq!(faults.hits().collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn the_seed_decides_and_the_share_is_kept() {
        let hits = |seed: u64| -> Vec<bool> {
            let faults = faults(&[&format!("eio,probability=0.1,seed={seed}")]);
            (0..10_000).map(|_| faults.judge(&Request::Flush) != Verdict::Fine).collect()
        };
        assert_eq!(hits(1), hits(1));
        assert_ne!(hits(1), hits(2));
        let count = hits(1).iter().filter(|hit| **hit).count();
        assert!((900..1100).contains(&count), "{count}");
    }
}
