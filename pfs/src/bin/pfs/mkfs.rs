//! `pfs mkfs`: makes a volume.

use std::ffi::OsString;

use blockdev::ui::ProgressBar;
use blockdev::{ByteSize, Cancel, Error, ErrorKind};
use nix::errno::Errno;
use pfs::format::{ChunkId, Kind, OBJECT_SIZE};
use pfs::mkfs::{HOSTS_MAX, Made, MkfsOptions, mkfs};

use crate::session::{Failure, Session};

/// Make a volume on an image file or device.
///
/// Refused where there is a volume already, a file system, a partition table or anything else known; or where the disk is in
/// use. The volume is as large as whole chunks of 10 GiB fit, and is there only once it is whole and durable.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How large the journal is, 1M or more; 0 for as much as a volume of this size can need.
    #[arg(short = 'l', long, alias = "log-size", value_name = "SIZE", default_value = "1G")]
    journal: ByteSize,

    /// How many hosts may share the volume.
    #[arg(short = 'u', long, alias = "num-users", value_name = "COUNT", default_value_t = 30,
        value_parser = clap::value_parser!(u8).range(1..=i64::from(HOSTS_MAX)))]
    hosts: u8,

    /// Make it whatever the disk holds, and whoever has it open. What is there is lost.
    #[arg(short, long)]
    force: bool,

    /// Taken from whoever gives it, as by the original; sectors have 4096 bytes.
    #[arg(short = 's', long, value_name = "BYTES", hide = true)]
    sector_size: Option<u64>,

    /// The file or device.
    #[arg(value_name = "VOLUME")]
    volume: OsString,
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    let path = session.disk_to_write(&args.volume)?;
    let journal = (args.journal > ByteSize::ZERO).then_some(args.journal);
    let options = MkfsOptions { journal, hosts: args.hosts, force: args.force, ..MkfsOptions::default() };
    let made = mkfs(&path, &options, &mut ProgressBar::new(), &Cancel::on_signals()?)
        .map_err(|error| failure(error, session))?;
    let original = session.compatible;
    session.print(&made, |made| if original { as_the_original(made) } else { text(made) }.into_bytes())
}

/// How the original ends over it.
fn failure(error: Error, session: &Session<'_>) -> Failure {
    let errno = match (error.kind(), error.errno()) {
        (ErrorKind::Refused, Some(libc::EAGAIN)) => return session.failed("mkfs", error, Errno::EACCES),
        (ErrorKind::Refused, _) => Errno::EBUSY,
        (ErrorKind::InvalidInput | ErrorKind::NotFound | ErrorKind::Permission, _) => Errno::EINVAL,
        _ => Errno::EIO,
    };
    Failure::Exit { error, errno }
}

fn text(made: &Made) -> String {
    let Made { path, size, chunks, unused, journal, hosts, elapsed_s } = made;
    let s = if *chunks == 1 { "" } else { "s" };
    let mut out = format!(
        "made a volume of {size} ({chunks} chunk{s}) on {} in {elapsed_s:.2} s: a journal of {journal}, up to {hosts} hosts\n",
        path.display()
    );
    if *unused > ByteSize::ZERO {
        out.push_str(&format!("the last {unused} are left over: a volume consists of whole chunks of 10 GiB\n"));
    }
    out
}

fn as_the_original(made: &Made) -> String {
    let chunks: String = ChunkId::all(made.chunks).map(chunk_as_the_original).collect();
    let [blktags, direntries, inodes] = Kind::ALL.map(Kind::per_chunk);
    format!(
        "{chunks}Inited filesystem({} bytes), {} chunks, {blktags} blktags, {direntries} direntries, {inodes} inodes per \
         chunk\nmaking paxos file\ninit paxos lease\nmaking journal file\npfs mkfs succeeds!\n",
        made.size.bytes(),
        made.chunks
    )
}

/// What the original prints when it has made a chunk.
pub(crate) fn chunk_as_the_original(id: ChunkId) -> String {
    let number = id.raw();
    let mut out = format!("Init chunk {number}\n");
    for kind in Kind::ALL {
        let bda = format!("{:#x}", id.start().bytes() + kind.offset());
        let (sectors, count) = (kind.sectors(), kind.per_chunk());
        let first = u64::from(id.raw()) << kind.shift();
        let end = first + count as u64;
        out.push_str(&format!(
            "\t\tmetaset {number:>8x}/{}: sectbda {bda:>16}, npage {sectors:>8}, objsize {OBJECT_SIZE:>4}, nobj {count:>4}, \
             oid range [{first:>8x}, {end:>8x})\n",
            kind as u8
        ));
    }
    out.push('\n');
    out
}
