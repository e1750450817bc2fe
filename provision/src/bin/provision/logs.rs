//! `provision logs`: what a node's database says.

use std::time::Duration;

use blockdev::{Cancel, Error, ErrorKind, Result, ui};
use provision::runtime::{Service, ServiceLog};
use provision::step::{Log, tail};

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
    let service = Service { node, name: cluster.engine().service() };
    let log: Box<dyn Log> = if args.setup {
        Box::new(cluster.runtime().setup_log(node))
    } else {
        Box::new(ServiceLog { runtime: cluster.runtime(), service })
    };
    let mut end = log.length()?.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("{} has not said anything yet", node.name))
            .with_hint(format!("its log will be {}", log.place()))
    })?;
    for line in tail(&*log, 0, args.lines) {
        ui::print(&(line + "\n"))?;
    }
    while args.follow && !cancel.is_cancelled() {
        let more = log.read(end)?;
        end += more.len() as u64;
        ui::print(&String::from_utf8_lossy(&more))?;
        std::thread::sleep(INTERVAL);
    }
    Ok(())
}
