//! `make peers`: our programs against dd, fio, nbdkit, QEMU and the original's pfsd on this machine, also under PolarDB, in
//! turns, and `bench lag` against what is known of a lag, into one file.
//!
//! What is written is a run as `bench disk` writes it, so `bench report peers.json` draws it and `bench compare` tells
//! two of them apart.

mod child;
mod contest;
mod durable;
mod fio;
mod lag;
mod pfsd;
mod polardb;
mod polarfs;
mod programs;
mod random;
mod sequential;
mod served;
mod target;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use bench::report::{self, Cell, Environment, Finding, Measure, Parameter, Run, Severity, vocabulary};
use blockdev::{ByteSize, Cancel, Context, Error, ErrorKind, Result, ui};
use clap::Parser;

use programs::Programs;

/// Compare vdisk and bench with dd, fio, nbdkit and QEMU, pfsd with the original's, also under PolarDB, and a replica's lag
/// with what is known of it, and write what came out to a file.
#[derive(Debug, Parser)]
#[command(name = "peers")]
struct Cli {
    /// Where the image is made; beside the programs unless said otherwise.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// How large the image is, a multiple of 1 MiB.
    #[arg(long, default_value = "8G")]
    size: ByteSize,
    /// How often each program has its turn.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long each random load runs in a round.
    #[arg(long, default_value = "2s")]
    runtime: String,
    /// What to compare; everything unless this is said.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Where the result goes.
    #[arg(long, default_value = "peers.json")]
    save: PathBuf,
}

/// How much of a disk is served at the most: so much that it is in memory where the page cache is asked for.
const SERVED_MAX: ByteSize = ByteSize::mib(2048);

/// Something that can be compared by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Images and I/O on them: vdisk and bench with dd and fio.
    Disk,
    /// Volumes: pfs with the original and with the disk.
    Volume,
    /// The daemon: pfsd with the original's.
    Pfsd,
    /// Replication lag: bench with a delay that is known, with what replication says of itself, and with the rate asked for.
    Lag,
    /// A disk served over NBD: vdisk serve with nbdkit and QEMU.
    Nbd,
    /// A disk served as a block device: vdisk serve with QEMU and the bare loop device.
    Fuse,
    /// PolarDB on the daemon: with ours and with the original's.
    Polardb,
}

fn main() -> ExitCode {
    ui::exit("peers", &run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<()> {
    let started = Instant::now();
    let cancel = Cancel::on_signals()?;
    if cli.size == ByteSize::ZERO || !cli.size.is_multiple_of(ByteSize::mib(1)) {
        return Err(Error::invalid(format!("--size {}: it is not a multiple of 1 MiB, in which dd writes", cli.size)));
    }
    let programs = Programs::beside_this()?;
    let mut run = Run::begin("peers", cli.size.to_string(), Environment::of_this_machine(Vec::new()));
    run.parameters = vec![vocabulary::PROGRAM, vocabulary::QUEUE_DEPTH];
    run.measures =
        vec![contest::RATE, contest::REPORTED, contest::ELAPSED, contest::CPU, contest::CPU_SHARE, contest::LEAD];
    run.parameters.extend([vocabulary::LOAD, durable::DURABLE]);
    run.measures.push(durable::KEPT);
    run.parameters.extend([vocabulary::RATE, vocabulary::DELAY, vocabulary::READER]);
    run.measures.extend([vocabulary::FOUND, lag::MEAN, vocabulary::REPLAY_LAG]);
    run.measures.extend([vocabulary::SENT_RATE, vocabulary::RATE_KEPT]);
    run.parameters.push(vocabulary::RW);
    run.measures.push(vocabulary::IOPS);
    // Before half an hour of measuring, not after, it turns out whether this can be written.
    run.save(&cli.save, false).map_err(|error| error.with_hint("choose another file with --save"))?;
    let outcome = compare(cli, &programs, &mut run, &cancel);
    run.end(started.elapsed(), outcome.is_ok());
    run.save(&cli.save, false)?;
    outcome?;
    ui::print(&run.to_text())?;
    ui::notice(&format!("written to {}", cli.save.display()));
    Ok(())
}

/// Runs all comparisons; those that came to an end are in `run`, also when one fails.
fn compare(cli: &Cli, programs: &Programs, run: &mut Run, cancel: &Cancel) -> Result<()> {
    let parent = cli.dir.as_deref().unwrap_or(programs.directory());
    let scratch = tempfile::Builder::new()
        .prefix("onedisk-peers-")
        .tempdir_in(parent)
        .context(|| format!("cannot make a directory in {}", parent.display()))?;
    let is_asked_for = |part| cli.only.is_empty() || cli.only.contains(&part);
    if is_asked_for(Part::Volume) {
        polarfs(cli, programs, scratch.path(), run, cancel)?;
    }
    if is_asked_for(Part::Pfsd) {
        compare_pfsd(cli, programs, parent, run, cancel)?;
    }
    if is_asked_for(Part::Lag) {
        compare_lag(cli, programs, run, cancel)?;
    }
    for (part, way) in [(Part::Nbd, served::Way::Nbd), (Part::Fuse, served::Way::Fuse)] {
        if is_asked_for(part) {
            serve(cli, programs, scratch.path(), way, run, cancel)?;
        }
    }
    if is_asked_for(Part::Polardb) {
        compare_under_polardb(cli, programs, scratch.path(), run, cancel)?;
    }
    if is_asked_for(Part::Disk) {
        disk(cli, programs, scratch.path(), run, cancel)?;
    }
    Ok(())
}

/// Compares `vdisk` and `bench` with dd and fio.
fn disk(cli: &Cli, programs: &Programs, scratch: &Path, run: &mut Run, cancel: &Cancel) -> Result<()> {
    let image = scratch.join("shared.img");
    let [dd, fio] = ["dd", "fio"].map(|program| {
        let here = programs::is_installed(program);
        if !here {
            let text = format!("{program} is not installed: NOT compared with it");
            run.findings.push(missing(&format!("no-{program}"), text).with_hint("make deps"));
        }
        here
    });
    let job = sequential::Job { programs, image: &image, size: cli.size, rounds: cli.rounds };
    take(run, job.fill(dd, fio, cancel)?);
    child::run(job.create(), cancel)?;
    run.environment.targets.push(facts(programs, &image, cancel)?);
    if !fio {
        return Ok(());
    }
    take(run, job.scan(cancel)?);
    let random = |target: &Path, what| {
        ui::notice(&format!("Random I/O on the {what}: bench and fio take turns at 24 loads"));
        random::Job { programs, target, what, rounds: cli.rounds, runtime: &cli.runtime }.table(cancel)
    };
    take_run(run, random(&image, "image")?);
    match random::Attached::new(programs, &image, cancel) {
        Ok(attached) => take_run(run, random(&attached.device, "loop device")?),
        Err(error) => {
            cancel.check("peers")?;
            ui::report_error("peers", &error);
            run.findings.push(missing("no-loop-device", format!("no loop device, NOT compared on one: {error}")));
        }
    }
    run.findings.extend(random::judge(&run.cells));
    Ok(())
}

/// Compares `pfs` with the original and with the disk.
fn polarfs(cli: &Cli, programs: &Programs, scratch: &Path, run: &mut Run, cancel: &Cancel) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        run.findings
            .push(missing("no-volume", "no loop device without root: pfs NOT compared with anything".to_owned()));
        return Ok(());
    }
    let original = tests::original_pfs().map(|directory| directory.join("bin/pfs"));
    if original.is_none() {
        let text = "the original PolarFS is not installed: mkfs and tree NOT compared with it".to_owned();
        let hint = "ONEDISK_PFS_ORIGINAL=DIR names where it is, with DIR/bin/pfs";
        run.findings.push(missing("no-original-pfs", text).with_hint(hint));
    }
    let job = polarfs::Job { programs, original: original.as_deref(), scratch, rounds: cli.rounds };
    take(run, job.run(cancel)?);
    Ok(())
}

/// Our pfsd and the original's, where it is here.
fn compare_pfsd(cli: &Cli, programs: &Programs, dir: &Path, run: &mut Run, cancel: &Cancel) -> Result<()> {
    if !pfsd::has_original() {
        let text = "the original's pfsdaemon is not installed in /usr/local/polarstore, or this is not root: NOT compared with it";
        run.findings.push(missing("no-pfsdaemon", text.to_owned()));
    }
    ui::notice("pfsd, and the original's: they take turns at 10 loads, on the disk and in memory");
    let job = pfsd::Job { programs, dir, rounds: cli.rounds, runtime: &cli.runtime };
    let table = job.table(cancel)?;
    run.findings.extend(pfsd::judge(&table.cells));
    take_run(run, table);
    Ok(())
}

/// What `bench lag` says of a replica, and what is known of it.
fn compare_lag(cli: &Cli, programs: &Programs, run: &mut Run, cancel: &Cancel) -> Result<()> {
    if !tests::has_postgresql() {
        let text = "PostgreSQL is not installed: bench lag NOT compared with anything".to_owned();
        run.findings.push(missing("no-postgresql", text).with_hint("apt-get install postgresql"));
        return Ok(());
    }
    take(run, lag::Job { programs, rounds: cli.rounds, runtime: &cli.runtime }.run(cancel)?);
    Ok(())
}

/// Our server of disks, and other people's.
fn serve(
    cli: &Cli,
    programs: &Programs,
    scratch: &Path,
    way: served::Way,
    run: &mut Run,
    cancel: &Cancel,
) -> Result<()> {
    if !programs::is_installed("fio") || (way == served::Way::Fuse && !nix::unistd::geteuid().is_root()) {
        let text = format!("no fio, or this is not root: vdisk serve NOT compared with anything ({way:?})");
        run.findings.push(missing("no-served", text).with_hint("make deps"));
        return Ok(());
    }
    let image = scratch.join("served.img");
    let mut create = programs.vdisk();
    create.arg("create").arg(&image).arg(format!("--size={}", cli.size.min(SERVED_MAX).bytes())).arg("--force");
    child::run(create, cancel)?;
    let job = served::Job { programs, image: &image, scratch, way, rounds: cli.rounds, runtime: &cli.runtime };
    take(run, job.run(cancel)?);
    std::fs::remove_file(&image).context(|| format!("cannot remove {}", image.display()))
}

/// PolarDB on our pfsd and on the original's, where there is an image with both PolarDB and that.
fn compare_under_polardb(cli: &Cli, programs: &Programs, dir: &Path, run: &mut Run, cancel: &Cancel) -> Result<()> {
    let image = std::env::var("ONEDISK_POLARDB_IMAGE").unwrap_or_default();
    if image.is_empty() || !nix::unistd::geteuid().is_root() {
        let text = "ONEDISK_POLARDB_IMAGE names no image with PolarDB 15 and pfsd, or this is not root: PolarDB NOT measured on pfsd";
        run.findings.push(missing("no-polardb", text.to_owned()));
        return Ok(());
    }
    let runtime = humantime::parse_duration(&cli.runtime)
        .map_err(|source| Error::invalid(format!("--runtime {} is no time", cli.runtime)).with_source(source))?;
    ui::notice("PolarDB on pfsd, and on the original's: they take turns at 8 loads");
    let job = polardb::Job { programs, dir, image: &image, rounds: cli.rounds, runtime };
    take(run, job.run(cancel)?);
    take_columns(run, polardb::PARAMETERS, polardb::MEASURES);
    Ok(())
}

/// What is missing is a result too, and said loudly.
fn missing(id: &str, text: String) -> Finding {
    ui::notice(&text);
    Finding::new(Severity::Warning, id, text)
}

fn take(run: &mut Run, (cells, findings): (Vec<Cell>, Vec<Finding>)) {
    run.cells.extend(cells);
    run.findings.extend(findings);
}

/// Takes over what `bench disk` measured.
fn take_run(run: &mut Run, from: Run) {
    let Run { cells, findings, parameters, measures, .. } = from;
    take_columns(run, parameters, measures);
    take(run, (cells, findings));
}

/// Takes over what the report has columns for.
fn take_columns(
    run: &mut Run,
    parameters: impl IntoIterator<Item = Parameter>,
    measures: impl IntoIterator<Item = Measure>,
) {
    for parameter in parameters {
        if !run.parameters.contains(&parameter) {
            run.parameters.push(parameter);
        }
    }
    for measure in measures {
        if !run.measures.contains(&measure) {
            run.measures.push(measure);
        }
    }
}

/// What `vdisk info` knows of the image.
fn facts(programs: &Programs, image: &Path, cancel: &Cancel) -> Result<report::Target> {
    let mut info = programs.vdisk();
    info.args(["info", "--output", "json"]).arg(image);
    let facts = serde_json::from_str(&child::run(info, cancel)?.stdout)
        .map_err(|source| Error::new(ErrorKind::VerifyFailed, "vdisk info printed no JSON").with_source(source))?;
    Ok(report::Target { name: image.display().to_string(), facts })
}
