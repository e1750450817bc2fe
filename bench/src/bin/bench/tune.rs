//! `bench tune`: which setup of a disk is best here.

use std::path::PathBuf;
use std::time::Duration;

use bench::report::Run;
use bench::tune::{self, Budget, Factor, Options};
use blockdev::{ByteSize, Cancel, Result, ui};

use crate::keep::Keep;
use crate::shown::Shown;
use crate::time::duration;

/// Find the best setup of a disk for a shared-disk database on this machine.
///
/// In DIR it builds, measures and removes one setup after the other: what onedisk recommends (the baseline) and, one
/// change at a time, other pre-allocation, the loop device through the page cache, with 4096-byte blocks and under each
/// I/O scheduler, other engines, and the image file without a loop device as the ceiling. Each does what a database does:
/// random reads and writes of 8 KiB pages and sequential log writes, with and without fdatasync, into fresh space and
/// over old. Every round visits every setup in a new order. Then come the ranking, with confidence intervals, what of it
/// is noise, and the commands that set up the best, which has met the baseline once more by then.
///
/// It needs root for loop devices; without, it measures files alone. One image exists at a time, in a directory of its
/// own that is removed at the end, also after Ctrl-C; schedulers get their old setting back.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory in which images would be kept: its disk is measured.
    dir: PathBuf,

    /// How long it may take.
    #[arg(long, default_value = "2m", value_parser = duration)]
    time: Duration,

    /// How large an image may be.
    #[arg(long, default_value = "4G")]
    space: ByteSize,

    /// Vary these choices alone; fewer take less time, or are told apart more sharply in the same.
    #[arg(long, value_name = "CHOICE", value_delimiter = ',',
          default_values = Factor::VARIED.map(|(name, _)| name))]
    vary: Vec<Factor>,

    /// The order of the visits and the offsets of the I/Os follow from this.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    #[command(flatten)]
    keep: Keep,
}

pub(crate) fn run(args: &Args, output: ui::Output) -> Result<()> {
    args.keep.check()?;
    let cancel = Cancel::on_signals()?;
    let options = Options {
        dir: args.dir.clone(),
        budget: Budget { time: args.time, space: args.space },
        vary: args.vary.clone(),
        seed: args.seed,
    };
    let run = tune::tune(&options, &mut Shown::default(), &cancel)?;
    ui::print_result(output, &run, Run::to_text)?;
    args.keep.write(&run)?;
    cancel.check("bench tune")
}
