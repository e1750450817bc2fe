//! `pfs` against the original, and against the disk that a volume is on.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use bench::report::{Cell, Finding, Measure, Run, Severity, stats};
use blockdev::{ByteSize, Cancel, Context, Error, ErrorKind, Result};

use crate::contest::{Contest, Contestant, ELAPSED, LEAD, RATE, REPORTED, median};
use crate::programs::Programs;
use crate::random::Attached;
use crate::target::{Target, Wanted};
use crate::{child, durable};

/// How large the volume is: two chunks.
const VOLUME: ByteSize = ByteSize::gib(20);

/// The journal that the original makes unless told otherwise.
const JOURNAL: ByteSize = ByteSize::gib(1);

/// How much is copied into the volume.
const COPIED: ByteSize = ByteSize::new(4_000_000_000);

/// How many files fill the volume, in how many directories: all inodes of two chunks but a few.
const FILES: usize = 4000;
const DIRECTORIES: usize = 40;

/// Ours, called as ours: what it copied survives a loss of power once it ends.
const CP: &str = "pfs cp";

/// What is compared, on a volume of its own.
pub(crate) struct Job<'a> {
    /// Our programs.
    pub(crate) programs: &'a Programs,
    /// The original's `pfs`, if it is here.
    pub(crate) original: Option<&'a Path>,
    /// Where the image of the volume is made, and what is copied into it.
    pub(crate) scratch: &'a Path,
    /// How often each program has its turn.
    pub(crate) rounds: u32,
}

impl Job<'_> {
    /// Makes, lists and fills volumes on a loop device.
    pub(crate) fn run(&self, cancel: &Cancel) -> Result<(Vec<Cell>, Vec<Finding>)> {
        let image = self.scratch.join("volume.img");
        let mut create = self.programs.vdisk();
        create.arg("create").arg(format!("--size={}", VOLUME.bytes())).arg(&image);
        child::run(create, cancel)?;
        let attached = Attached::new(self.programs, &image, cancel)?;
        let disk = Disk { job: self, device: &attached.device };
        let (mut cells, mut findings) = (Vec::new(), Vec::new());
        let mut take = |(measured, judged): (Vec<Cell>, Vec<Finding>)| {
            cells.extend(measured);
            findings.extend(judged);
        };
        if let Some(original) = self.original {
            take(disk.make(original, cancel)?);
            take(disk.list(original, cancel)?);
        }
        take(disk.copy(cancel)?);
        disk.fresh(cancel)?;
        take(durable::run(&attached.device, self.rounds, cancel)?);
        drop(attached);
        fs::remove_file(&image).context(|| format!("cannot remove {}", image.display()))?;
        Ok((cells, findings))
    }
}

/// The device that the volume is on.
struct Disk<'a> {
    job: &'a Job<'a>,
    device: &'a Path,
}

impl Disk<'_> {
    /// What the original calls it.
    fn name(&self) -> String {
        self.device.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// A path in the volume, as the original names it.
    fn path(&self, path: &str) -> String {
        format!("/{}/{path}", self.name())
    }

    /// A path in the volume, as ours names it.
    fn own_path(&self, path: &str) -> String {
        format!("{}:/{path}", self.device.display())
    }

    /// Ours or the original, called as the original. No daemon has the volume: neither looks for one.
    fn as_original(&self, program: Command, args: &[&str]) -> Command {
        let mut command = program;
        command.args(["-C", "disk", "-E", "0"]).args(args);
        command
    }

    /// Compares making a volume.
    fn make(&self, original: &Path, cancel: &Cancel) -> Result<(Vec<Cell>, Vec<Finding>)> {
        let name = self.name();
        let mkfs = |program| self.as_original(program, &["mkfs", "-f", &name]);
        let contest = Contest {
            group: "Making a volume of 20 GiB with a journal of 1 GiB",
            contestants: vec![
                Contestant::new("pfs mkfs", || mkfs(self.job.programs.pfs())),
                Contestant::new("the original's pfs mkfs", || mkfs(Command::new(original))),
            ],
            size: JOURNAL,
            rounds: self.job.rounds,
        };
        let cells = contest.run(cancel, || Ok(()))?;
        let finding = time_over("mkfs-over-original", "time of pfs mkfs over the original's", 0.7, &cells[1]);
        Ok((cells, finding.into_iter().collect()))
    }

    /// Compares listing a full volume, which this makes.
    fn list(&self, original: &Path, cancel: &Cancel) -> Result<(Vec<Cell>, Vec<Finding>)> {
        self.fresh(cancel)?;
        let tree = self.job.scratch.join("tree");
        for directory in 0..DIRECTORIES {
            let directory = tree.join(format!("d{directory}"));
            fs::create_dir_all(&directory).context(|| format!("cannot make {}", directory.display()))?;
            for file in 0..FILES / DIRECTORIES {
                let file = directory.join(format!("file{file}"));
                File::create(&file).context(|| format!("cannot make {}", file.display()))?;
            }
        }
        let mut fill = self.job.programs.pfs();
        fill.args(["cp", "-r"]).arg(&tree).arg(self.own_path(""));
        child::run(fill, cancel)?;
        let root = self.path("");
        let list = |program| self.as_original(program, &["tree", "-v", &root]);
        let contest = Contest {
            group: "Listing a full volume: pfs tree -v",
            contestants: vec![
                Contestant::new("pfs tree", || list(self.job.programs.pfs())),
                Contestant::new("the original's pfs tree", || list(Command::new(original))),
            ],
            // All of its metadata are read.
            size: ByteSize::new(2 * 0xD_1000),
            rounds: self.job.rounds,
        };
        let cells = contest.run(cancel, || Ok(()))?;
        let finding = time_over("tree-over-original", "time of pfs tree over the original's", 0.5, &cells[1]);
        Ok((cells, finding.into_iter().collect()))
    }

    /// Compares copying into a volume with writing to the device.
    fn copy(&self, cancel: &Cancel) -> Result<(Vec<Cell>, Vec<Finding>)> {
        let source = self.job.scratch.join("source");
        write_source(&source)?;
        let bench = || {
            let mut command = self.job.programs.bench();
            command.args([
                "disk",
                "--rw=write",
                "--bs=1m",
                "--iodepth=4",
                "--runtime=2s",
                "--warmup=500ms",
                "--destroy",
            ]);
            command.arg("--output=json").arg(self.device);
            command
        };
        let target = self.path("copy");
        let mut contestants = vec![
            Contestant::new(CP, || {
                let mut command = self.job.programs.pfs();
                command.arg("cp").arg(&source).arg(self.own_path("copy"));
                command
            }),
            Contestant::new("pfs -C disk cp", || {
                let mut command = self.as_original(self.job.programs.pfs(), &["cp", "-D", "disk"]);
                command.arg(&source).arg(&target);
                command
            }),
        ];
        let by_original = |original: &'_ Path| {
            let mut command = self.as_original(Command::new(original), &["cp", "-D", "disk"]);
            command.arg(&source).arg(&target);
            command
        };
        contestants.extend(
            self.job.original.map(|original| Contestant::new("the original's pfs cp", move || by_original(original))),
        );
        // Last, so that all of them begin on a fresh volume.
        contestants.push(Contestant { reported: Some(bandwidth), ..Contestant::new("bench disk --rw write", bench) });
        let contest =
            Contest { group: "Copying 4 GB into a volume", contestants, size: COPIED, rounds: self.job.rounds };
        self.fresh(cancel)?;
        let mut cells = contest.run(cancel, || {
            // What is copied comes from memory, not from the disk that it goes to.
            warm(&source)?;
            self.fresh(cancel)
        })?;
        let mut findings = Vec::new();
        if let Some(mut disk) = cells.pop() {
            // It writes for a time, not so many bytes.
            for measure in [&ELAPSED, &RATE, &LEAD] {
                disk.figures.remove(&*measure.name);
            }
            for (cell, contestant) in cells.iter().zip(&contest.contestants) {
                findings.extend(share_of(&contestant.name, cell, &disk));
            }
            cells.push(disk);
        }
        Ok((cells, findings))
    }

    /// Makes an empty volume.
    fn fresh(&self, cancel: &Cancel) -> Result<()> {
        let mut command = self.job.programs.pfs();
        command.args(["mkfs", "--force", "--journal=32M"]).arg(self.device);
        child::run(command, cancel).map(drop)
    }
}

/// Judges the time that ours took by that of `other`, round by round.
fn time_over(id: &'static str, what: &str, at_most: f64, other: &Cell) -> Option<Finding> {
    let lead = median(other, &LEAD)?;
    Some(Target { id, what: what.to_owned(), wanted: Wanted::AtMost(at_most) }.judge(1.0 / lead))
}

/// How much of the disk's rate copying reached, round by round. That of ours, called as ours, is held against what is asked
/// for.
fn share_of(name: &str, cell: &Cell, disk: &Cell) -> Option<Finding> {
    let samples = |cell: &Cell, measure: &Measure| Some(cell.figures.get(&*measure.name)?.samples.clone());
    let (rates, disk) = (samples(cell, &RATE)?, samples(disk, &REPORTED)?);
    let share = stats::median(&rates.iter().zip(&disk).map(|(rate, disk)| rate / disk).collect::<Vec<_>>())?;
    let what = format!("rate of {name} of 4 GB into a volume over the disk's sequential write rate");
    if name == CP {
        return Some(Target { id: "cp-over-disk", what, wanted: Wanted::AtLeast(0.9) }.judge(share));
    }
    Some(Finding::new(Severity::Note, "cp-over-disk-other", format!("{what}: {share:.3}")))
}

/// The bandwidth of the one load that bench ran, in bytes per second.
fn bandwidth(json: &str) -> Result<f64> {
    let run = Run::parse(json.as_bytes(), "what bench disk printed")?;
    let rate = run.cells.first().and_then(|cell| median(cell, &RATE));
    rate.ok_or_else(|| Error::new(ErrorKind::VerifyFailed, "bench disk printed no bandwidth"))
}

/// A file of bytes that nobody can compress.
fn write_source(path: &Path) -> Result<()> {
    let what = || format!("cannot write {}", path.display());
    let mut file = File::create(path).context(what)?;
    let mut state: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut block = vec![0u8; 1_000_000];
    for _ in 0..COPIED.bytes() / 1_000_000 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block).context(what)?;
    }
    file.sync_all().context(what)
}

/// Reads a file, so that it is in memory.
fn warm(path: &Path) -> Result<()> {
    let what = || format!("cannot read {}", path.display());
    let mut file = File::open(path).context(what)?;
    let mut block = vec![0u8; 1 << 20];
    while file.read(&mut block).context(what)? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_held_against_each_other() {
        let cell = |rates: [f64; 3]| Cell::new("", "").with_figure(&RATE, rates.to_vec());
        let disk = Cell::new("", "").with_figure(&REPORTED, vec![4e9, 2e9, 1e9]);
        let finding = share_of(CP, &cell([3.8e9, 1.9e9, 0.1e9]), &disk).unwrap();
        let text = "rate of pfs cp of 4 GB into a volume over the disk's sequential write rate";
        assert_eq!(finding.text, format!("{text}: 0.950, wanted at least 0.90: met"));
        let other = share_of("other", &cell([1e9, 1e9, 1e9]), &disk).unwrap();
        assert!(other.text.ends_with("write rate: 0.500") && other.severity == Severity::Note, "{other:?}");
        assert!(share_of(CP, &Cell::new("", ""), &disk).is_none());

        let original = Cell::new("", "").with_figure(&LEAD, vec![4.0, 2.0, 2.0]);
        let finding = time_over("x", "ours over theirs", 0.5, &original).unwrap();
        assert_eq!(finding.text, "ours over theirs: 0.500, wanted at most 0.50: met");
    }
}
