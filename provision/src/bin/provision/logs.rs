//! `provision logs`: what a node's database says.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::Duration;

use blockdev::{Cancel, Context, Error, ErrorKind, Result, ui};
use provision::runtime::Service;
use provision::step::tail;

use crate::selection::Selection;

/// Print what a node's database says.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The node.
    node: String,

    /// How many of the last lines, as far as they are in its last 64 KiB.
    #[arg(long, short = 'n', default_value_t = 50)]
    lines: usize,

    /// Go on with what it says from now on, until interrupted.
    #[arg(long, short)]
    follow: bool,

    /// What the commands said that made the node, instead.
    #[arg(long)]
    setup: bool,
}

pub(crate) fn run(args: &Args, selection: &Selection) -> Result<()> {
    const INTERVAL: Duration = Duration::from_millis(200);
    let cancel = Cancel::on_signals()?;
    let cluster = selection.open(&cancel)?;
    let node = cluster.record.topology.node(&args.node)?;
    let path = if args.setup {
        cluster.runtime().setup_log(node)
    } else {
        cluster.runtime().log(Service { node, name: cluster.engine().service() })
    };
    let mut file =
        File::open(&path).context(|| format!("cannot open the log {}", path.display())).map_err(|error| {
            if error.kind() == ErrorKind::NotFound {
                Error::new(ErrorKind::NotFound, format!("{} has not said anything yet", node.name))
                    .with_hint(format!("its log will be {}", path.display()))
            } else {
                error
            }
        })?;
    let mut end = file.metadata().context(|| format!("cannot look at {}", path.display()))?.len();
    for line in tail(&path, 0, args.lines) {
        ui::print(&(line + "\n"))?;
    }
    while args.follow && !cancel.is_cancelled() {
        let mut more = Vec::new();
        let read = file.seek(SeekFrom::Start(end)).and_then(|_| file.read_to_end(&mut more));
        end += u64::try_from(read.context(|| format!("cannot read {}", path.display()))?).unwrap_or(0);
        ui::print(&String::from_utf8_lossy(&more))?;
        std::thread::sleep(INTERVAL);
    }
    Ok(())
}
