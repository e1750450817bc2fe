//! `vdisk create`: an image, whole or not at all.

use std::path::PathBuf;

use blockdev::engine::Choice;
use blockdev::image::{self, CreateOptions, Created, Prealloc};
use blockdev::{ByteSize, Cancel, Result, ui};

/// Make the image of a disk, with every block written.
///
/// It gets its name when it is whole and durable, so an image that is there is a finished one.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file to make.
    file: PathBuf,

    /// How large: 20G, 20GiB, 20480M; a multiple of 4096 bytes.
    #[arg(long, allow_hyphen_values = true)]
    size: ByteSize,

    /// How its space is set aside.
    #[arg(long, value_enum, default_value_t)]
    prealloc: Prealloc,

    /// Replace FILE if it exists, when the new image is whole. Until then both need their space.
    #[arg(long)]
    force: bool,

    /// What writes: auto, uring, uring-sqpoll, aio or threads.
    #[arg(long, default_value_t)]
    engine: Choice,
}

pub(crate) fn run(args: &Args, output: ui::Output) -> Result<()> {
    let cancel = Cancel::on_signals()?;
    let options = CreateOptions { size: args.size, prealloc: args.prealloc, force: args.force, engine: args.engine };
    let created = image::create(&args.file, &options, &mut ui::ProgressBar::new(), &cancel)?;
    created.allocation.notices.iter().for_each(|notice| ui::notice(notice));
    ui::print_result(output, &created, text)
}

fn text(created: &Created) -> String {
    let Created { path, size, allocation } = created;
    let mut lines = vec![format!("{}: {size}, {allocation}", path.display())];
    lines.push(format!("  extents: {}", allocation.extents));
    lines.extend(super::report::reservations(allocation.price, &allocation.missing));
    lines.join("\n") + "\n"
}
