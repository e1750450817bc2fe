//! `vdisk detach`: gives loop devices back.

use std::path::PathBuf;

use blockdev::loopdev::{self, LoopDevice};
use blockdev::{Result, ui};

/// Detach loop devices, and remove the names they were given.
///
/// A device that is mounted, open or otherwise in use is refused, with what uses it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A device (/dev/loop3), a name it was given (nvme1n1), or the file it is attached to.
    #[arg(value_name = "DEVICE|NAME|FILE", required_unless_present = "all", conflicts_with = "all")]
    targets: Vec<PathBuf>,

    /// Every device whose file onedisk made, and no other.
    #[arg(long)]
    all: bool,
}

pub(crate) fn run(args: &Args, output: ui::Output) -> Result<()> {
    let mut devices = Vec::new();
    if args.all {
        devices = loopdev::list();
        devices.retain(LoopDevice::is_ours);
        if devices.is_empty() {
            ui::notice("no loop device is attached to a file that onedisk made");
        }
    }
    for target in &args.targets {
        let found = loopdev::find(target)?;
        devices.extend(found.into_iter().filter(|device| !devices.contains(device)).collect::<Vec<_>>());
    }

    // One that cannot be detached keeps no other from it.
    let (mut detached, mut failure) = (Vec::new(), None);
    for device in devices {
        match loopdev::detach(&device) {
            Ok(()) => detached.push(device),
            Err(error) => {
                if let Some(earlier) = failure.replace(error) {
                    ui::report_error("vdisk", &earlier);
                }
            }
        }
    }
    ui::print_result(output, &detached, |detached| {
        detached.iter().map(|device| format!("{}\n", device.path.display())).collect()
    })?;
    failure.map_or(Ok(()), Err)
}
