//! `provision logs`: what runs on a node, and what it says.

use std::time::Duration;

use blockdev::{Cancel, Error, ErrorKind, Result, ui};
use provision::Cluster;
use provision::runtime::Service;
use provision::step::{Log, tail};

use crate::selection::Selection;

/// Print what a node's database says, or something else that runs there.
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

    /// What else runs on the node, instead of the database: heartbeat, pfsd.
    #[arg(long, value_name = "NAME", conflicts_with = "setup")]
    service: Option<String>,

    /// What the commands said that made the node, instead.
    #[arg(long)]
    setup: bool,
}

pub(crate) fn run(args: &Args, selection: &Selection) -> Result<()> {
    const INTERVAL: Duration = Duration::from_millis(200);
    let cancel = Cancel::on_signals()?;
    let cluster = selection.open(&cancel)?;
    let node = cluster.record.topology.node(&args.node)?;
    let log: Box<dyn Log> = if args.setup {
        Box::new(cluster.runtime().setup_log(node))
    } else {
        Box::new(cluster.engine().log(&cluster, Service { node, name: service(&cluster, args.service.as_deref())? }))
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

/// The service called `name`; the database if nobody says.
fn service(cluster: &Cluster, name: Option<&str>) -> Result<&'static str> {
    let services = cluster.engine().services();
    let Some(name) = name else { return Ok(cluster.engine().service()) };
    services.iter().find(|service| **service == name).copied().ok_or_else(|| {
        Error::invalid(format!("nothing called {name:?} runs on the nodes of this cluster"))
            .with_hint(format!("there is: {}", services.join(", ")))
    })
}
