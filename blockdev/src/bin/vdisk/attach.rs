//! `vdisk attach`: a file as a block device.

use std::path::PathBuf;

use blockdev::loopdev::{self, Name, Options};
use blockdev::{ByteSize, Result, ui};
use serde::Serialize;

/// Attach a file to a loop device, with direct I/O.
///
/// Prints the device. A file that is attached in the same way already is not attached again. The device stays until
/// `vdisk detach`, or the next boot.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file.
    file: PathBuf,

    /// A stable name for the device: makes the link /dev/NAME, such as nvme1n1.
    #[arg(long)]
    name: Option<Name>,

    /// The device's smallest unit of I/O.
    #[arg(long, value_name = "BYTES", default_value = "512", value_parser = ["512", "4096"])]
    block_size: String,

    /// Refuse writes to the device.
    #[arg(long)]
    read_only: bool,

    /// Go through the page cache instead of direct I/O: every block is then cached twice.
    #[arg(long)]
    buffered: bool,
}

#[derive(Debug, Serialize)]
struct Attached {
    /// Whether it was attached now, and not before.
    is_new: bool,
    #[serde(flatten)]
    device: loopdev::LoopDevice,
}

pub(crate) fn run(args: &Args, output: ui::Output) -> Result<()> {
    let options = Options {
        logical_block_size: args.block_size.parse::<ByteSize>()?,
        direct_io: !args.buffered,
        read_only: args.read_only,
    };
    let mut attachment = loopdev::attach(&args.file, &options)?;
    if let Some(name) = &args.name {
        attachment.give_name(name)?;
    }
    let is_new = attachment.is_new();
    let attached = Attached { is_new, device: attachment.keep()? };
    ui::print_result(output, &attached, |attached| format!("{}\n", attached.device.path.display()))
}
