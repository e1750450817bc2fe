//! `vdisk list`: the attached loop devices.

use blockdev::loopdev::{self, LoopDevice};
use blockdev::{Result, ui};
use serde::Serialize;

/// List the loop devices that are attached, whoever attached them.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

#[derive(Debug, Serialize)]
struct Listed {
    #[serde(flatten)]
    device: LoopDevice,
    /// Whether onedisk made the file.
    is_ours: bool,
}

pub(crate) fn run(_: &Args, output: ui::Output) -> Result<()> {
    let listed = |device: LoopDevice| Listed { is_ours: device.is_ours(), device };
    let devices: Vec<Listed> = loopdev::list().into_iter().map(listed).collect();
    ui::print_result(output, &devices, |devices| {
        ui::table(&["DEVICE", "NAME", "SIZE>", "BLOCK>", "CACHE", "MODE", "MADE BY", "FILE"], devices.iter().map(row))
    })
}

fn row(Listed { device, is_ours }: &Listed) -> Vec<String> {
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let mut file = device.backing_file.display().to_string();
    if device.deleted {
        file += " (deleted)";
    }
    if device.offset.bytes() > 0 {
        file += &format!(" from {}", device.offset);
    }
    vec![
        device.path.display().to_string(),
        or_dash(device.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
        device.size.to_string(),
        device.logical_block_size.bytes().to_string(),
        if device.direct_io { "direct" } else { "buffered" }.to_owned(),
        if device.read_only { "ro" } else { "rw" }.to_owned(),
        if *is_ours { "onedisk" } else { "other" }.to_owned(),
        file,
    ]
}
