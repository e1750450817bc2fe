//! `vdisk info`: everything known of a file or device.

use std::path::PathBuf;

use blockdev::extents::{self, Summary};
use blockdev::loopdev::LoopDevice;
use blockdev::signature::Contents;
use blockdev::topology::{AtomicWrites, Device, DirectIo, Kind, Topology, WriteCache};
use blockdev::{ErrorKind, Result, mark, ui};
use serde::Serialize;

/// Show everything known of a file or block device: sizes, extents by state, alignment, file system, device and queue,
/// loop devices, what it holds and who is using it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A file, or a block device.
    #[arg(value_name = "FILE|DEVICE")]
    path: PathBuf,
}

#[derive(Debug, Serialize)]
struct Info {
    #[serde(flatten)]
    topology: Topology,
    /// In what state the blocks are, of the file or of that below a loop device.
    extents: Option<Summary>,
    /// Nothing where this user may not read it.
    contents: Option<Contents>,
    /// Whether onedisk made the file.
    is_ours: bool,
}

pub(crate) fn run(args: &Args, output: ui::Output) -> Result<()> {
    let topology = Topology::of(&args.path)?;
    let file = match topology.kind {
        Kind::File => Some(&*args.path),
        Kind::BlockDevice => topology.below.as_ref().map(|below| &*below.path),
    };
    let info = Info {
        extents: file.and_then(|file| readable(extents::summarize_path(file)).transpose()).transpose()?,
        contents: readable(Contents::of(&args.path, &[]))?,
        is_ours: file.is_some_and(mark::is_set),
        topology,
    };
    ui::print_result(output, &info, text)
}

/// What this user may not read is left out, and the rest is shown.
fn readable<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::Permission => {
            ui::notice(&format!("not all is shown: {error}: permission denied"));
            Ok(None)
        }
        outcome => outcome.map(Some),
    }
}

type Facts = Vec<(&'static str, String)>;

fn text(info: &Info) -> String {
    let mut facts = of_topology(&info.topology);
    if let Some(contents) = &info.contents {
        let names: Vec<&str> = contents.signatures.iter().map(|signature| signature.name).collect();
        facts.push(("holds", if names.is_empty() { "nothing known".to_owned() } else { names.join(", ") }));
        facts.extend(contents.uses.iter().map(|r#use| ("in use", r#use.to_string())));
    }
    let mut of_file = Facts::new();
    if let Some(extents) = &info.extents {
        let gap = extents.gap().map(|gap| format!(" ({gap})")).unwrap_or_default();
        of_file.push(("extents", format!("{extents}{gap}")));
    }
    of_file.push(("made by", if info.is_ours { "onedisk" } else { "other" }.to_owned()));
    match &info.topology.below {
        // A loop device; and then the file that it is attached to.
        Some(below) => ui::facts(facts) + "\n" + &ui::facts(of_topology(below).into_iter().chain(of_file)),
        None if info.topology.kind == Kind::File => ui::facts(facts.into_iter().chain(of_file)),
        None => ui::facts(facts),
    }
}

fn of_topology(topology: &Topology) -> Facts {
    let mut facts = vec![
        (if topology.kind == Kind::File { "file" } else { "device" }, topology.path.display().to_string()),
        ("size", format!("{} ({} bytes)", topology.size, topology.size.bytes())),
    ];
    if let Some(allocated) = topology.allocated {
        facts.push(("allocated", allocated.to_string()));
    }
    facts.push(("direct I/O", topology.direct_io.map_or("none".to_owned(), direct_io)));
    facts.push(("atomic writes", topology.atomic_writes.map_or("none".to_owned(), atomic_writes)));
    facts.extend(topology.loop_devices.iter().map(|device| ("loop device", loop_device(device))));
    if let Some(file_system) = &topology.file_system {
        let (source, point) = (file_system.source.display(), file_system.mount_point.display());
        facts.push(("file system", format!("{}, {source} on {point}", file_system.name)));
    }
    if let Some(device) = &topology.device {
        of_device(device, topology.kind, &mut facts);
    }
    facts
}

fn of_device(device: &Device, kind: Kind, facts: &mut Facts) {
    if kind == Kind::File {
        facts.push(("on device", format!("{}, {}", device.path.display(), device.size)));
    }
    if let Some(model) = &device.model {
        facts.push(("model", model.clone()));
    }
    let (logical, physical) = (device.logical_block_size.bytes(), device.physical_block_size.bytes());
    facts.push(("blocks", format!("{logical} bytes logical, {physical} physical")));
    let mut traits = vec![if device.rotational { "rotational" } else { "not rotational" }];
    if device.read_only {
        traits.push("read-only");
    }
    facts.push(("traits", traits.join(", ")));
    let cache = match device.write_cache {
        Some(WriteCache::WriteBack) => "write back",
        Some(WriteCache::WriteThrough) => "write through",
        None => "unknown",
    };
    facts.push(("write cache", format!("{cache}, {}", if device.fua == Some(true) { "FUA" } else { "no FUA" })));
    if let Some(scheduler) = &device.scheduler {
        facts.push(("scheduler", format!("{} ({})", scheduler.current, scheduler.available.join(", "))));
    }
    if let Some(requests) = device.queue_requests {
        facts.push(("queue", format!("{requests} requests")));
    }
    let discard =
        device.discard.map(|discard| format!("{} at the least, {} at the most", discard.granularity, discard.max));
    facts.push(("discard", discard.unwrap_or("none".to_owned())));
    if !device.stands_on.is_empty() {
        facts.push(("stands on", device.stands_on.join(", ")));
    }
    if let Some(attached) = &device.loop_device {
        let deleted = if attached.deleted { " (deleted)" } else { "" };
        facts.push(("attached to", format!("{}{deleted}", attached.backing_file.display())));
        facts.push(("loop device", loop_device(attached)));
    }
}

fn direct_io(direct: DirectIo) -> String {
    let (memory, offset) = (direct.memory_align.bytes(), direct.offset_align.bytes());
    format!("memory aligned to {memory} bytes, offset and length to {offset}")
}

fn atomic_writes(atomic: AtomicWrites) -> String {
    format!("{} to {}", atomic.unit_min, atomic.unit_max)
}

fn loop_device(device: &LoopDevice) -> String {
    let mut parts = vec![device.path.display().to_string()];
    parts.extend(device.names.iter().map(|name| name.path().display().to_string()));
    parts.push(if device.direct_io { "direct I/O" } else { "buffered" }.to_owned());
    parts.push(format!("blocks of {} bytes", device.logical_block_size.bytes()));
    if device.read_only {
        parts.push("read-only".to_owned());
    }
    parts.join(", ")
}
