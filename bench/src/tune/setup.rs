//! The setups that are compared.
//!
//! Not every combination of every choice: a *baseline*, which is what onedisk recommends, and from there one change at
//! a time. What each change does alone says which are worth combining; the combination is then measured for itself.

use std::fmt;
use std::str::FromStr;

use blockdev::engine::Choice;
use blockdev::image::Prealloc;
use blockdev::{ByteSize, Error, Result};

/// What a device is said to have that schedules nothing, or cannot.
pub const NO_SCHEDULER: &str = "none";

/// One way to set up a disk, and to do I/O on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// How the space of the image is allocated ahead of time.
    pub prealloc: Prealloc,
    /// The loop device on it, or none: the image file itself.
    pub device: Option<Device>,
    /// What does the I/O: uring, uring with a polling kernel thread, or threads.
    pub engine: Choice,
}

/// How a loop device is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Whether it goes past the page cache.
    pub direct_io: bool,
    /// Its smallest unit of I/O: 512 or 4096 bytes.
    pub block_size: ByteSize,
    /// Its I/O scheduler.
    pub scheduler: String,
}

/// One of the choices that make a setup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Factor {
    /// How the image is pre-allocated.
    Prealloc,
    /// Whether the loop device goes past the page cache.
    DirectIo,
    /// The loop device's logical block size.
    BlockSize,
    /// The loop device's I/O scheduler.
    Scheduler,
    /// How I/O is submitted.
    Engine,
    /// Whether there is a loop device at all.
    Device,
}

impl Factor {
    /// Those that can be varied, by the names that [`FromStr`] takes.
    pub const VARIED: [(&str, Self); 5] = [
        ("prealloc", Self::Prealloc),
        ("direct-io", Self::DirectIo),
        ("block-size", Self::BlockSize),
        ("scheduler", Self::Scheduler),
        ("engine", Self::Engine),
    ];
}

impl FromStr for Factor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = Self::VARIED.into_iter().find(|(name, _)| *name == text);
        known.map(|(_, factor)| factor).ok_or_else(|| {
            Error::invalid(format!("{text:?} is no choice that can be varied"))
                .with_hint(Self::VARIED.map(|(name, _)| name).join(", "))
        })
    }
}

impl Setup {
    /// What onedisk recommends: written blocks, a loop device with direct I/O in blocks of 512 bytes and `scheduler`,
    /// which is the kernel's own choice, and io_uring.
    #[must_use]
    pub fn recommended(scheduler: &str) -> Self {
        let device = Device { direct_io: true, block_size: ByteSize::new(512), scheduler: scheduler.to_owned() };
        Self { prealloc: Prealloc::Written, device: Some(device), engine: Choice::Uring }
    }

    /// The image file itself, without a loop device: what can be had without root, and the ceiling for all that stands on it.
    #[must_use]
    pub fn file() -> Self {
        Self { prealloc: Prealloc::Written, device: None, engine: Choice::Uring }
    }

    /// This setup, and every other that differs from it in one choice; last the file without its device. `schedulers` are
    /// those that the kernel offers.
    #[must_use]
    pub fn one_change_each(&self, schedulers: &[String]) -> Vec<Self> {
        let mut setups = vec![self.clone()];
        for prealloc in [Prealloc::Written, Prealloc::Reserved, Prealloc::Sparse] {
            setups.push(Self { prealloc, ..self.clone() });
        }
        if let Some(device) = &self.device {
            let with = |device| Self { device: Some(device), ..self.clone() };
            for direct_io in [true, false] {
                setups.push(with(Device { direct_io, ..device.clone() }));
            }
            for block_size in [512, 4096].map(ByteSize::new) {
                setups.push(with(Device { block_size, ..device.clone() }));
            }
            for scheduler in schedulers {
                setups.push(with(Device { scheduler: scheduler.clone(), ..device.clone() }));
            }
        }
        for engine in [Choice::Uring, Choice::UringSqpoll, Choice::Threads] {
            setups.push(Self { engine, ..self.clone() });
        }
        setups.push(Self { device: None, ..self.clone() });
        let mut seen: Vec<Self> = Vec::new();
        setups.retain(|setup| {
            let new = !seen.contains(setup);
            if new {
                seen.push(setup.clone());
            }
            new
        });
        setups
    }

    /// The choices in which this differs from `other`.
    #[must_use]
    pub fn changes_from(&self, other: &Self) -> Vec<Factor> {
        let mut changes = Vec::new();
        let mut note = |changed: bool, factor| changes.extend(changed.then_some(factor));
        note(self.prealloc != other.prealloc, Factor::Prealloc);
        match (&self.device, &other.device) {
            (Some(own), Some(others)) => {
                note(own.direct_io != others.direct_io, Factor::DirectIo);
                note(own.block_size != others.block_size, Factor::BlockSize);
                note(own.scheduler != others.scheduler, Factor::Scheduler);
            }
            (None, None) => {}
            _ => note(true, Factor::Device),
        }
        note(self.engine != other.engine, Factor::Engine);
        changes
    }

    /// This setup with `factor` as `other` has it. A device is given or taken as a whole.
    #[must_use]
    pub fn with(&self, factor: Factor, other: &Self) -> Self {
        let mut setup = self.clone();
        match factor {
            Factor::Prealloc => setup.prealloc = other.prealloc,
            Factor::Engine => setup.engine = other.engine,
            Factor::Device => setup.device.clone_from(&other.device),
            Factor::DirectIo | Factor::BlockSize | Factor::Scheduler => {
                if let (Some(own), Some(others)) = (&mut setup.device, &other.device) {
                    match factor {
                        Factor::DirectIo => own.direct_io = others.direct_io,
                        Factor::BlockSize => own.block_size = others.block_size,
                        _ => own.scheduler.clone_from(&others.scheduler),
                    }
                }
            }
        }
        setup
    }

    /// What `factor` is in this setup, in a word or two: `4096-byte blocks`.
    #[must_use]
    pub fn choice(&self, factor: Factor) -> String {
        let of_device = |text: fn(&Device) -> String| self.device.as_ref().map_or_else(|| "no device".to_owned(), text);
        match factor {
            Factor::Prealloc => self.prealloc.to_string(),
            Factor::DirectIo => of_device(|device| if device.direct_io { "direct I/O" } else { "buffered" }.to_owned()),
            Factor::BlockSize => of_device(|device| format!("{}-byte blocks", device.block_size.bytes())),
            Factor::Scheduler => of_device(|device| device.scheduler.clone()),
            Factor::Engine => self.engine.to_string(),
            Factor::Device => if self.device.is_some() { "loop device" } else { "raw file" }.to_owned(),
        }
    }

    /// A name that tells it from `baseline`: what is changed, or `baseline`.
    #[must_use]
    pub fn name(&self, baseline: &Self) -> String {
        let changes = self.changes_from(baseline);
        if changes.is_empty() {
            return "baseline".to_owned();
        }
        changes.into_iter().map(|factor| self.choice(factor)).collect::<Vec<_>>().join(" + ")
    }

    /// Why a database that does not wait for fdatasyncs (pfsd's protocol has none) may lose acknowledged writes on this
    /// setup when the power fails, where the disk would not have lost them. Such a setup is measured but never recommended.
    #[must_use]
    pub fn risk(&self) -> Option<&'static str> {
        if self.device.as_ref().is_some_and(|device| !device.direct_io) {
            return Some("writes stay in the page cache until an fdatasync, and pfsd never asks for one");
        }
        match self.prealloc {
            Prealloc::Written => None,
            Prealloc::Reserved | Prealloc::Sparse => {
                Some("what is first written to a block hangs on the file system's journal until an fdatasync")
            }
        }
    }
}

impl fmt::Display for Setup {
    /// `written, loop device with direct I/O in 512-byte blocks, scheduler none, engine uring`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, ", self.prealloc)?;
        match &self.device {
            Some(Device { direct_io, block_size, scheduler }) => {
                let cache = if *direct_io { "with direct I/O" } else { "through the page cache" };
                write!(f, "loop device {cache} in {}-byte blocks, scheduler {scheduler}", block_size.bytes())?;
            }
            None => f.write_str("file without a loop device")?,
        }
        write!(f, ", engine {}", self.engine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedulers() -> Vec<String> {
        ["none", "mq-deadline", "bfq"].map(str::to_owned).to_vec()
    }

    #[test]
    fn one_change_at_a_time_from_the_recommended() {
        let baseline = Setup::recommended("none");
        let setups = baseline.one_change_each(&schedulers());
        let names: Vec<String> = setups.iter().map(|setup| setup.name(&baseline)).collect();
        assert_eq!(
            names,
            [
                "baseline",
                "reserved",
                "sparse",
                "buffered",
                "4096-byte blocks",
                "mq-deadline",
                "bfq",
                "uring-sqpoll",
                "threads",
                "raw file"
            ]
        );
        assert!(setups[1..].iter().all(|setup| setup.changes_from(&baseline).len() == 1));
    }

    #[test]
    fn without_a_device_there_is_less_to_change() {
        let baseline = Setup::file();
        let setups = baseline.one_change_each(&schedulers());
        let names: Vec<String> = setups.iter().map(|setup| setup.name(&baseline)).collect();
        assert_eq!(names, ["baseline", "reserved", "sparse", "uring-sqpoll", "threads"]);
    }

    #[test]
    fn the_baseline_need_not_be_the_first_of_each_choice() {
        let baseline = Setup { engine: Choice::Threads, ..Setup::recommended("bfq") };
        let setups = baseline.one_change_each(&schedulers());
        let names: Vec<String> = setups.iter().map(|setup| setup.name(&baseline)).collect();
        assert!(names.contains(&"none".to_owned()) && names.contains(&"uring".to_owned()), "{names:?}");
        assert_eq!(setups.len(), 10);
    }

    #[test]
    fn changes_are_combined_one_by_one() {
        let baseline = Setup::recommended("none");
        for changed in baseline.one_change_each(&schedulers()) {
            let rebuilt = changed
                .changes_from(&baseline)
                .into_iter()
                .fold(baseline.clone(), |setup, factor| setup.with(factor, &changed));
            assert_eq!(rebuilt, changed);
        }
        let mut both = Setup { engine: Choice::Threads, ..baseline.clone() };
        both.device.as_mut().unwrap().block_size = ByteSize::new(4096);
        assert_eq!(both.name(&baseline), "4096-byte blocks + threads");
        assert_eq!(Setup { device: None, ..both }.name(&baseline), "raw file + threads");
    }

    #[test]
    fn only_written_blocks_past_the_page_cache_are_without_risk() {
        let baseline = Setup::recommended("none");
        let risky: Vec<String> = baseline
            .one_change_each(&schedulers())
            .iter()
            .filter(|setup| setup.risk().is_some())
            .map(|setup| setup.name(&baseline))
            .collect();
        assert_eq!(risky, ["reserved", "sparse", "buffered"]);
    }

    #[test]
    fn choices_to_vary_are_parsed() {
        for (name, factor) in Factor::VARIED {
            assert_eq!(name.parse::<Factor>().unwrap(), factor);
        }
        let error = "device".parse::<Factor>().unwrap_err();
        assert_eq!(error.to_string(), "\"device\" is no choice that can be varied");
        assert_eq!(error.hint(), Some("prealloc, direct-io, block-size, scheduler, engine"));
    }

    #[test]
    fn a_setup_says_all_of_itself() {
        assert_eq!(
            Setup::recommended("none").to_string(),
            "written, loop device with direct I/O in 512-byte blocks, scheduler none, engine uring"
        );
        assert_eq!(Setup::file().to_string(), "written, file without a loop device, engine uring");
    }
}
