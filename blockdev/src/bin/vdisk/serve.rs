//! `vdisk serve`: an image as a disk that several hosts share, served from user space.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use blockdev::emulate::nbd::{Address, Certificates};
use blockdev::emulate::{DiskOptions, Export, Fault, HostName, Latency, Layers, Limit, Options, Served};
use blockdev::engine::Choice;
use blockdev::{ByteSize, Cancel, ErrorKind, Result, ui};
use serde::Serialize;

/// How often to look whether it is to end.
const TICK: Duration = Duration::from_millis(100);

/// Serve an image as a disk that several hosts share.
///
/// Prints where each host finds the disk, and serves until it is interrupted: then, with --attach, until nobody uses a device
/// any more. Interrupted again it ends at once, and devices in use fail.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image, or a block device.
    #[arg(value_name = "IMAGE")]
    path: PathBuf,

    /// Export it over NBD at unix:PATH or tcp:HOST:PORT, to each host under its name. May be given several times.
    #[arg(long, value_name = "ADDRESS", required_unless_present_any = ["fuse", "attach"])]
    nbd: Vec<Address>,

    /// Export it through FUSE as files of this machine: in this directory, to each host under its name.
    #[arg(long, value_name = "DIRECTORY")]
    fuse: Option<PathBuf>,

    /// Export it as block devices of this machine: to each host as a loop device on such a file.
    #[arg(long)]
    attach: bool,

    /// A host that uses the disk. May be given several times.
    #[arg(long = "host", value_name = "NAME", default_value = "disk")]
    hosts: Vec<HostName>,

    /// Let only those in through TCP who have a certificate: a directory with ca-cert.pem, server-cert.pem and server-key.pem.
    #[arg(long, value_name = "DIRECTORY")]
    tls: Option<PathBuf>,

    /// Read and write the image past the page cache.
    #[arg(long)]
    direct: bool,

    /// Refuse whatever changes the disk.
    #[arg(long)]
    read_only: bool,

    /// The disk's smallest unit of I/O.
    #[arg(long, value_name = "BYTES", default_value = "512", value_parser = ["512", "4096"])]
    sector_size: String,

    /// How long it takes at the least: 1ms, lognormal:80us:900us (median, 99th percentile), read=80us,write=20us,flush=1ms.
    #[arg(long, value_name = "LATENCY", help_heading = "Layers")]
    latency: Option<Latency>,

    /// How much it does in a second at the most: iops=1800 or bandwidth=100M, each with burst= and op=. May be given several
    /// times.
    #[arg(long, value_name = "RATE", help_heading = "Layers")]
    rate: Vec<Limit>,

    /// How many requests it serves at once.
    #[arg(long, value_name = "NUMBER", help_heading = "Layers")]
    queue_depth: Option<u32>,

    /// What goes wrong: eio, enospc, stuck, torn, corrupt, misdirected or lost, then any of op=write, range=1M-2M,
    /// probability=0.01, after=100, count=3, seed=7. May be given several times.
    #[arg(long = "fault", value_name = "FAULT", help_heading = "Layers")]
    faults: Vec<Fault>,

    /// How much is written to memory and lost without power, until a flush.
    #[arg(long, value_name = "SIZE", help_heading = "Layers")]
    cache: Option<ByteSize>,

    /// Write down everything that changes the disk, for `vdisk replay`.
    #[arg(long, value_name = "FILE", help_heading = "Layers")]
    record: Option<PathBuf>,

    /// What carries the I/O: auto, uring, uring-sqpoll, aio or threads.
    #[arg(long, default_value_t)]
    engine: Choice,
}

#[derive(Debug, Serialize)]
struct Serving {
    size: ByteSize,
    exports: Vec<Export>,
}

pub(crate) fn run(args: &Args, output: ui::Output) -> Result<()> {
    let cancel = Cancel::on_signals()?;
    let options = Options {
        disk: DiskOptions {
            sector_size: args.sector_size.parse()?,
            direct_io: args.direct,
            read_only: args.read_only,
            engine: args.engine,
            hosts: args.hosts.clone(),
        },
        nbd: args.nbd.clone(),
        fuse: args.fuse.clone(),
        attach: args.attach,
        layers: Layers {
            queue_depth: args.queue_depth,
            rate: args.rate.clone(),
            faults: args.faults.clone(),
            latency: args.latency.clone(),
            record: args.record.clone(),
            cache: args.cache,
        },
        certificates: args.tls.clone().map(Certificates::new),
    };
    let mut served = Served::start(&args.path, &options)?;
    let serving = Serving { size: served.disk().size(), exports: served.exports() };
    ui::print_result(output, &serving, |serving| serving.exports.iter().map(|export| format!("{export}\n")).collect())?;
    while !cancel.is_cancelled() && !served.is_asked_to_stop() {
        thread::sleep(TICK);
    }
    give_devices_back(&mut served)?;
    served.stop()
}

/// Waits until nobody uses a device any more, and says who does.
fn give_devices_back(served: &mut Served) -> Result<()> {
    let mut said = String::new();
    while let Err(error) = served.detach() {
        if error.kind() != ErrorKind::Refused {
            return Err(error);
        }
        let why = format!(
            "{error}; the disk is served until then{}",
            error.hint().map_or(String::new(), |hint| format!(" ({hint})"))
        );
        if why != said {
            ui::notice(&why);
            said = why;
        }
        thread::sleep(TICK);
    }
    Ok(())
}
