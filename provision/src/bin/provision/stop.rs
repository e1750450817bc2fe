//! `provision stop`: the nodes end, their data stay.

use blockdev::{Cancel, Result, ui};
use provision::Cluster;
use provision::topology::Node;

use crate::selection::Selection;

/// Stop nodes, or all of them, so that nothing is lost.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The nodes; all of them if none is named.
    nodes: Vec<String>,
}

pub(crate) fn run(args: &Args, selection: &Selection) -> Result<()> {
    let (cluster, _lock) = selection.open_to_change(&Cancel::on_signals()?)?;
    let nodes = named(&cluster, &args.nodes)?;
    cluster.stop(&nodes)?;
    nodes.iter().for_each(|node| ui::notice(&format!("{} is stopped", node.name)));
    Ok(())
}

/// The nodes with these names; all if there are none.
pub(crate) fn named<'a>(cluster: &'a Cluster, names: &[String]) -> Result<Vec<&'a Node>> {
    let topology = &cluster.record.topology;
    if names.is_empty() {
        return Ok(topology.nodes().iter().collect());
    }
    names.iter().map(|name| topology.node(name)).collect()
}
