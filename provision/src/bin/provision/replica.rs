//! `provision replica`: replicas come and go.

use std::net::IpAddr;

use blockdev::{Cancel, Result, ui};
use provision::topology::{Name, Node};
use provision::up::{new_replica, ports_of_others};

use crate::selection::{Selection, make_files_with_their_own_modes, observer};
use crate::up::tell;

/// Add or remove a replica, its replication slot included.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Add a replica. Interrupted, `provision up` goes on.
    Add {
        /// What it is called; by default replicaN with the first free number.
        #[arg(value_name = "NAME")]
        node: Option<Name>,
        /// Its port on 127.0.0.1; by default a free one.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        port: Option<u16>,
        /// Where its Docker is, if not where that of the others is.
        #[arg(long, value_name = "ENDPOINT")]
        docker: Option<String>,
        /// The address of its Docker's machine at which everybody reaches it; by default 127.0.0.1.
        #[arg(long)]
        address: Option<IpAddr>,
    },
    /// Stop a replica, drop its slot on the primary, remove its files.
    Remove {
        /// Which one.
        #[arg(value_name = "NAME")]
        node: String,
    },
}

pub(crate) fn run(args: &Args, selection: &Selection, output: ui::Output) -> Result<()> {
    make_files_with_their_own_modes();
    let (cluster, lock) = selection.open_to_change(&Cancel::on_signals()?)?;
    match &args.command {
        Command::Add { node, port, docker, address } => {
            let state = selection.state()?;
            let replica = new_replica(&state, &cluster, node.clone(), *port)?;
            let replica = Node { docker: docker.clone(), address: *address, ..replica };
            let others = ports_of_others(&state, &cluster.record.config.name);
            let cluster = cluster.add_replica(replica, &others, &lock, &mut *observer(output))?;
            tell(&cluster, output)
        }
        Command::Remove { node } => {
            cluster.remove_replica(node, &lock)?;
            ui::notice(&format!("{node} is removed"));
            Ok(())
        }
    }
}
