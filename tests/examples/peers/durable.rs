//! What it costs that a change of a volume is acknowledged only once it survives a loss of power.
//!
//! One volume, opened for writing by turns with and without that, under the same loads.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bench::report::vocabulary::{IOPS, LOAD};
use bench::report::{Better, Cell, Finding, Measure, Parameter, Severity, Unit, stats};
use blockdev::buffer::Memory;
use blockdev::engine::Lent;
use blockdev::{Cancel, Error, ErrorKind, Result, ui};
use pfs::volume::VolumePath;
use pfs::volume::writer::{Handle, Options, Position, Writer};

/// How long a load runs in a round.
const RUNTIME: Duration = Duration::from_secs(1);

/// Bytes in a write: a page of the database's.
const PAGE: u32 = 8 << 10;

/// How large the file is that is written over.
const FILE: u64 = 256 << 20;

/// How long a file that is appended to becomes.
const APPENDED: u64 = 64 << 20;

/// Whether changes survive a loss of power once they are acknowledged.
pub(crate) const DURABLE: Parameter = Parameter::new("durable", "durable", Unit::Count);
/// The share of the rate without that is left.
pub(crate) const KEPT: Measure = Measure::new("kept", "of the rate without", Unit::Ratio, Better::Higher);

/// What is done, over and over again.
#[derive(Debug, Clone, Copy)]
enum Load {
    /// Files are made and removed, by so many threads.
    Names(usize),
    /// Pages of a file are written over, so many at once.
    Pages(usize),
    /// Pages are appended to a file, one after the other.
    Append,
}

const LOADS: [Load; 5] = [Load::Names(1), Load::Names(16), Load::Pages(1), Load::Pages(16), Load::Append];

impl Load {
    fn name(self) -> String {
        match self {
            Self::Names(1) => "files made and removed, 1 thread".to_owned(),
            Self::Names(threads) => format!("files made and removed, {threads} threads"),
            Self::Pages(depth) => format!("8 KiB written over, queue depth {depth}"),
            Self::Append => "8 KiB appended".to_owned(),
        }
    }

    /// How often a second it can be done.
    fn run(self, writer: &Writer, cancel: &Cancel) -> Result<f64> {
        let start = Instant::now();
        let running = || !cancel.is_cancelled() && start.elapsed() < RUNTIME;
        let count = match self {
            Self::Names(threads) => names(writer, threads, &running)?,
            Self::Pages(depth) => pages(writer, depth, &running)?,
            Self::Append => append(writer, &running)?,
        };
        cancel.check("measuring what durability costs")?;
        #[allow(clippy::cast_precision_loss, reason = "a rate is shown to three digits")]
        Ok(count as f64 / start.elapsed().as_secs_f64())
    }
}

/// Measures all loads on the volume on `device`, with durability and without by turns.
pub(crate) fn run(device: &Path, rounds: u32, cancel: &Cancel) -> Result<(Vec<Cell>, Vec<Finding>)> {
    // By load; with durability and without.
    let mut rates = LOADS.map(|_| [Vec::new(), Vec::new()]);
    for round in 0..rounds {
        ui::notice(&format!("What durability costs, round {} of {rounds}", round + 1));
        for turn in 0..2 {
            // Who comes first is another each round.
            let durable = (round + turn) % 2 == 0;
            let writer = Writer::open(device, Options { durable, ..Options::default() })?;
            for (load, rates) in LOADS.iter().zip(&mut rates) {
                rates[usize::from(!durable)].push(load.run(&writer, cancel)?);
            }
            writer.close()?;
        }
    }
    let (mut cells, mut findings) = (Vec::new(), Vec::new());
    for (load, [with, without]) in LOADS.iter().zip(rates) {
        let name = load.name();
        let kept: Vec<f64> = with.iter().zip(&without).map(|(with, without)| with / without).collect();
        let median = |samples: &[f64]| stats::median(samples).unwrap_or(f64::NAN);
        let text = format!(
            "durable: {name}: {:.2} of the rate without ({:.0} and {:.0} a second)",
            median(&kept),
            median(&with),
            median(&without)
        );
        findings.push(Finding::new(Severity::Note, "durable-cost", text));
        let cell = |durable: bool, rates: Vec<f64>| {
            let what = if durable { "durable" } else { "not durable" };
            Cell::new("What durability costs", format!("{name}: {what}"))
                .with_param(&LOAD, name.as_str())
                .with_param(&DURABLE, durable)
                .with_figure(&IOPS, rates)
        };
        cells.push(cell(true, with).with_figure(&KEPT, kept));
        cells.push(cell(false, without));
    }
    Ok((cells, findings))
}

/// A file to be written: empty, whatever it was.
fn file(writer: &Writer, name: &str) -> Result<Handle> {
    let file = writer.create(&VolumePath::new(name), false)?;
    writer.truncate(file, 0)?;
    Ok(file)
}

/// Makes and removes files, each thread its own.
fn names(writer: &Writer, threads: usize, running: &(dyn Fn() -> bool + Sync)) -> Result<u64> {
    let count = AtomicU64::new(0);
    let each = |thread: usize| -> Result<()> {
        let path = VolumePath::new(format!("/name{thread}"));
        while running() {
            writer.create(&path, true)?;
            writer.unlink(&path)?;
            count.fetch_add(2, Ordering::Relaxed);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || each(thread))).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().map_err(|_| Error::new(ErrorKind::Io, "a thread that made files panicked"))?
        })
    })?;
    Ok(count.into_inner())
}

/// Writes over pages of a file that are all written, anywhere in it.
fn pages(writer: &Writer, depth: usize, running: &dyn Fn() -> bool) -> Result<u64> {
    let file = writer.create(&VolumePath::new("/pages"), false)?;
    let mut content = writer.content()?;
    if writer.stat(file)?.size < FILE {
        let block = vec![7; 4 << 20];
        for at in (0..FILE).step_by(block.len()) {
            content.write(file, Position::At(at), &block)?;
        }
    }
    let memory = Memory::new(PAGE as usize)?;
    // SAFETY: nobody writes it, and everything on it is waited for below or by `content`, which is dropped first.
    let page = unsafe { Lent::new(memory.as_ptr(), PAGE) };
    let (mut state, mut count, mut done) = (1u64, 0, Vec::new());
    let mut content = content;
    loop {
        while content.unfinished() < depth && running() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let at = state % (FILE / u64::from(PAGE)) * u64::from(PAGE);
            content.start_write(0, file, Position::At(at), page);
        }
        if content.unfinished() == 0 {
            return Ok(count);
        }
        content.complete(1, None, &mut done)?;
        for finished in done.drain(..) {
            finished.result?;
            count += 1;
        }
    }
}

/// Appends pages to a file, which begins anew from time to time.
fn append(writer: &Writer, running: &dyn Fn() -> bool) -> Result<u64> {
    let file = file(writer, "/appended")?;
    let mut content = writer.content()?;
    let page = Memory::new(PAGE as usize)?;
    // SAFETY: nobody else has the memory.
    let page = unsafe { std::slice::from_raw_parts(page.as_ptr().as_ptr(), PAGE as usize) };
    let mut count = 0;
    while running() {
        if content.write(file, Position::End, page)? >= APPENDED {
            writer.truncate(file, 0)?;
        }
        count += 1;
    }
    Ok(count)
}
