//! `vdisk grow`: an image made larger where it is.

use std::path::PathBuf;

use blockdev::engine::Choice;
use blockdev::image::{self, GrowOptions, Grown, Prealloc};
use blockdev::{ByteSize, Cancel, Result, ui};

/// Make an image larger, and let the loop device on it see that.
///
/// The image may be in use meanwhile. If it is interrupted, the image has its old size again; if it is killed, running it
/// once more finishes it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image.
    file: PathBuf,

    /// How large it is to be in the end: 30G, 30GiB, 30720M; a multiple of 4096 bytes.
    #[arg(long, allow_hyphen_values = true)]
    size: ByteSize,

    /// How the new space is set aside.
    #[arg(long, value_enum, default_value_t)]
    prealloc: Prealloc,

    /// What writes: auto, uring, uring-sqpoll, aio or threads.
    #[arg(long, default_value_t)]
    engine: Choice,
}

pub(crate) fn run(args: &Args, output: ui::Output) -> Result<()> {
    let cancel = Cancel::on_signals()?;
    let options = GrowOptions { size: args.size, prealloc: args.prealloc, engine: args.engine };
    let grown = image::grow(&args.file, &options, &mut ui::ProgressBar::new(), &cancel)?;
    grown.allocation.notices.iter().for_each(|notice| ui::notice(notice));
    ui::print_result(output, &grown, text)
}

fn text(grown: &Grown) -> String {
    let Grown { path, size_before, size, devices, allocation } = grown;
    let path = path.display();
    let mut lines = if size_before == size {
        vec![format!("{path}: {size}, as before")]
    } else {
        let new = format!("  new extents: {}", allocation.extents);
        vec![format!("{path}: {size_before} grown to {size}, {allocation}"), new]
    };
    lines.extend(devices.iter().map(|device| format!("  {}: {}", device.path.display(), device.size)));
    lines.extend(super::report::reservations(allocation.price, &allocation.missing));
    lines.join("\n") + "\n"
}
