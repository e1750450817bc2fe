//! `vdisk replay`: what was recorded of a disk, shown or done again.

use std::fs::OpenOptions;
use std::path::PathBuf;

use blockdev::emulate::{Operation, RecordEntry, Recording};
use blockdev::{Context, Error, Result, lock, ui};
use serde::Serialize;

/// Show a recording of a disk, or do to an image what it says, up to any moment.
///
/// A recording is made by the layer `record` of `vdisk serve`. The image is a copy of the disk as it was when recording began.
/// What a power cut took from the disk is in the recording all the same.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The recording.
    recording: PathBuf,

    /// Change this image; otherwise the records are shown.
    #[arg(long, value_name = "IMAGE")]
    to: Option<PathBuf>,

    /// The last record: its number.
    #[arg(long, value_name = "NUMBER")]
    until: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Replayed {
    records: u64,
}

pub(crate) fn run(args: &Args, output: ui::Output) -> Result<()> {
    let mut recording = Recording::open(&args.recording)?;
    let Some(image) = &args.to else { return show(recording, args.until, output) };
    let what = || format!("cannot open {} to change it", image.display());
    let _lock = lock::exclusive(image)?;
    let file = OpenOptions::new().read(true).write(true).open(image).context(what)?;
    let size = blockdev::topology::Topology::of(image)?.size;
    if size < recording.size() {
        return Err(Error::invalid(format!(
            "{} has {size}, and the recording is of a disk of {}",
            image.display(),
            recording.size()
        )));
    }
    let records = recording.replay(&file, args.until)?;
    file.sync_data().context(|| format!("cannot make {} durable", image.display()))?;
    ui::print_result(output, &Replayed { records }, |replayed| format!("{} records\n", replayed.records))
}

fn show(mut recording: Recording, until: Option<u64>, output: ui::Output) -> Result<()> {
    let (mut data, mut entries) = (Vec::new(), Vec::new());
    while until.is_none_or(|until| (entries.len() as u64) < until)
        && let Some(entry) = recording.next(&mut data)?
    {
        entries.push(entry);
    }
    ui::print_result(output, &entries, |entries| {
        let row = |entry: &RecordEntry| {
            let flush = entry.operation == Operation::Flush;
            let number = |number: u64| if flush { "-".to_owned() } else { number.to_string() };
            #[allow(clippy::cast_precision_loss, reason = "microseconds of a few hours")]
            let at = entry.at_ns as f64 / 1e9;
            vec![
                entry.number.to_string(),
                format!("{at:.6}"),
                entry.host.to_string(),
                entry.operation.name().to_owned() + if entry.fua { ", durable" } else { "" },
                number(entry.range.start.bytes()),
                number(entry.range.len.bytes()),
            ]
        };
        ui::table(&["NUMBER>", "SECONDS>", "HOST>", "OPERATION", "OFFSET>", "BYTES>"], entries.iter().map(row))
    })
}
