//! The commands that set a setup up, to be typed as they are.

use std::path::Path;

use blockdev::image::Prealloc;
use blockdev::ui::shell_word;

use super::setup::Setup;

/// The size and the name of the disk in the commands: what the published recipe has.
const SIZE: &str = "20G";
const NAME: &str = "nvme1n1";

/// The commands that make a disk of `setup` in `dir`. `kernel_scheduler` is what a loop device has without being told.
#[must_use]
pub fn commands(setup: &Setup, dir: &Path, kernel_scheduler: Option<&str>) -> String {
    let image = shell_word(&dir.join(format!("{NAME}.img")).to_string_lossy());
    let prealloc = match setup.prealloc {
        Prealloc::Written => String::new(),
        other => format!(" --prealloc {other}"),
    };
    let mut commands = vec![format!("vdisk create {image} --size {SIZE}{prealloc}")];
    if let Some(device) = &setup.device {
        let block_size = match device.block_size.bytes() {
            512 => String::new(),
            bytes => format!(" --block-size {bytes}"),
        };
        let buffered = if device.direct_io { "" } else { " --buffered" };
        commands.push(format!("vdisk attach {image} --name {NAME}{block_size}{buffered}"));
        if kernel_scheduler != Some(&device.scheduler) {
            commands.push(format!(
                "echo {} > /sys/block/$(basename $(readlink /dev/{NAME}))/queue/scheduler",
                shell_word(&device.scheduler)
            ));
        }
    }
    commands.join(" && ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::setup::Factor;
    use blockdev::ByteSize;
    use blockdev::engine::Choice;

    #[test]
    fn the_recommended_setup_needs_no_options() {
        assert_eq!(
            commands(&Setup::recommended("none"), Path::new("/srv"), Some("none")),
            "vdisk create /srv/nvme1n1.img --size 20G && vdisk attach /srv/nvme1n1.img --name nvme1n1"
        );
        assert_eq!(commands(&Setup::file(), Path::new("/srv"), None), "vdisk create /srv/nvme1n1.img --size 20G");
    }

    #[test]
    fn every_choice_shows_in_the_commands() {
        let baseline = Setup::recommended("none");
        let mut other = Setup { prealloc: Prealloc::Sparse, engine: Choice::Threads, ..baseline.clone() };
        let device = other.device.as_mut().unwrap();
        (device.direct_io, device.block_size, device.scheduler) = (false, ByteSize::new(4096), "bfq".to_owned());
        assert_eq!(
            commands(&other, Path::new("/my disks"), Some("none")),
            "vdisk create '/my disks/nvme1n1.img' --size 20G --prealloc sparse \
             && vdisk attach '/my disks/nvme1n1.img' --name nvme1n1 --block-size 4096 --buffered \
             && echo bfq > /sys/block/$(basename $(readlink /dev/nvme1n1))/queue/scheduler"
        );
        // The engine is nobody's option but the program's that does the I/O.
        let shown = |setup: &Setup| commands(setup, Path::new("/srv"), Some("none"));
        for factor in other.changes_from(&baseline) {
            assert_eq!(
                shown(&baseline.with(factor, &other)) == shown(&baseline),
                factor == Factor::Engine,
                "{factor:?}"
            );
        }
    }
}
