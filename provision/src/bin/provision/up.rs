//! `provision up`: from nothing, or from wherever it stands, to a cluster whose replication is proven.

use blockdev::{Cancel, Result, ui};
use clap::ArgMatches;
use provision::config::Settings;
use provision::plan::print_json_line;
use provision::topology::Role;
use provision::up::Up;
use provision::{Cluster, Connection};
use serde::Serialize;

use crate::selection::{Selection, make_files_with_their_own_modes, observer};

/// Make the cluster, or finish or start one that exists.
///
/// Interrupted anywhere, it goes on when it is run again. With `--output json` every step is a line of its own, and the
/// last one says how to connect.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    settings: Settings,

    /// Change nothing; print the shell commands that would do the same, in order.
    #[arg(long)]
    dry_run: bool,

    /// Format the shared disk although it holds something, which is gone then.
    #[arg(long)]
    reformat: bool,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "ready")]
struct Ready<'a> {
    cluster: &'a str,
    nodes: &'a [Connection],
}

pub(crate) fn run(args: &Args, selection: &Selection, matches: &ArgMatches, output: ui::Output) -> Result<()> {
    make_files_with_their_own_modes();
    let layers = selection.layers(&args.settings, matches)?;
    let mut up = Up::prepare(&selection.state()?, layers, &Cancel::on_signals()?)?;
    if args.reformat {
        up.allow_reformat()?;
    }
    up.notices.iter().for_each(|text| ui::notice(text));
    if args.dry_run {
        return ui::print(&up.as_shell_script()?);
    }
    let cluster = up.run(&mut *observer(output))?;
    tell(&cluster, output)
}

/// Says how to connect, where things are, and what to do next.
pub(crate) fn tell(cluster: &Cluster, output: ui::Output) -> Result<()> {
    let name = cluster.record.config.name.as_str();
    let connections = cluster.connections();
    match output {
        ui::Output::Json => print_json_line(&Ready { cluster: name, nodes: &connections }),
        ui::Output::Text => ui::print(&text(cluster, name, &connections)),
    }
}

fn text(cluster: &Cluster, name: &str, connections: &[Connection]) -> String {
    let mut text = format!("cluster {name} is up\n");
    for connection in connections {
        let what = if connection.role == Role::Primary { "writer" } else { "reader" };
        text += &format!("  {what}  {:<10}  {}\n", connection.node, connection.string());
    }
    text += &format!("  files   {}\n", cluster.runtime().files());
    let flag = if name == "default" { String::new() } else { format!(" --name {name}") };
    let primary = &cluster.record.topology.primary().name;
    text += &format!("  logs    {}, or provision{flag} logs {primary}\n", cluster.runtime().logs());
    text += &format!("next: provision{flag} psql {primary}, provision{flag} status, provision{flag} down\n");
    text
}
