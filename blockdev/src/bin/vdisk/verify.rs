//! `vdisk verify`: what became of an image.

use std::path::PathBuf;

use blockdev::engine::Choice;
use blockdev::image::{self, Checks, Verified};
use blockdev::stamp::Tally;
use blockdev::{Cancel, Result, ui};

/// Check that an image is what it should be.
///
/// Every block of a file must be written; a device has no extents, only content. Ends with exit code 5 if anything is wrong.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image, or a device.
    #[arg(value_name = "FILE|DEVICE")]
    path: PathBuf,

    /// Check that every byte is zero, as in a fresh image.
    #[arg(long)]
    zero: bool,

    /// Check that every sector is a whole stamp of `bench disk --verify` in its place, or zero.
    #[arg(long, conflicts_with = "zero")]
    stamped: bool,

    /// Of which run the stamps are to be; without it, of any.
    #[arg(long, requires = "stamped")]
    seed: Option<u64>,

    /// What reads: auto, uring, uring-sqpoll, aio or threads.
    #[arg(long, default_value_t)]
    engine: Choice,
}

pub(crate) fn run(args: &Args, output: ui::Output) -> Result<()> {
    let cancel = Cancel::on_signals()?;
    let checks = Checks { zero: args.zero, stamped: args.stamped, seed: args.seed };
    let verified = image::verify(&args.path, &checks, args.engine, &mut ui::ProgressBar::new(), &cancel)?;
    verified.notices.iter().for_each(|notice| ui::notice(notice));
    ui::print_result(output, &verified, text)?;
    verified.verdict()
}

fn text(verified: &Verified) -> String {
    let Verified { path, size, .. } = verified;
    let verdict = if verified.faults.is_empty() { "as it should be" } else { "NOT as it should be" };
    let mut lines = vec![format!("{}: {size}, {verdict}", path.display())];
    if let Some(extents) = &verified.extents {
        lines.push(format!("  extents: {extents}"));
    }
    if verified.zero.as_ref().is_some_and(|zero| zero.blocks_not_zero == 0) {
        lines.push("  content: zero in every byte".to_owned());
    }
    if let Some(Tally { stamped, zeroes, other_runs, .. }) = &verified.stamps {
        lines.push(format!("  content: {stamped} stamped, {zeroes} zero, {other_runs} of other runs"));
    }
    if let (Some(cost), Some(engine)) = (&verified.cost, &verified.engine) {
        lines.push(format!("  read {cost}, {engine}"));
    }
    lines.extend(verified.faults.iter().map(|fault| format!("  fault: {fault}")));
    lines.extend(super::report::reservations(None, &verified.missing));
    lines.join("\n") + "\n"
}
