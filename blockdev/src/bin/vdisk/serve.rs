//! `vdisk serve`: an image as a disk that several hosts share, served from user space.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use blockdev::emulate::nbd::{Address, Certificates};
use blockdev::emulate::{DiskOptions, Export, HostName, Options, Served};
use blockdev::engine::Choice;
use blockdev::{ByteSize, Cancel, Result, ui};
use serde::Serialize;

/// How often to look whether it is to end.
const TICK: Duration = Duration::from_millis(100);

/// Serve an image as a disk that several hosts share.
///
/// Prints where each host finds the disk, and serves until it is interrupted.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image, or a block device.
    #[arg(value_name = "IMAGE")]
    path: PathBuf,

    /// Export it over NBD at unix:PATH or tcp:HOST[:PORT], to each host under its name. May be given several times.
    #[arg(long, value_name = "ADDRESS", required = true)]
    nbd: Vec<Address>,

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

    /// What carries the I/O: auto, uring, uring-sqpoll or threads.
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
        certificates: args.tls.clone().map(Certificates::new),
    };
    let served = Served::start(&args.path, &options)?;
    let serving = Serving { size: served.disk().size(), exports: served.exports() };
    ui::print_result(output, &serving, |serving| {
        serving.exports.iter().map(|export| format!("{}\n", export.uri)).collect()
    })?;
    while !cancel.is_cancelled() {
        thread::sleep(TICK);
    }
    drop(served);
    Ok(())
}
