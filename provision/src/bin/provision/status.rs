//! `provision status`: how the nodes are.

use std::io::IsTerminal;
use std::time::Duration;

use blockdev::{Cancel, Error, ErrorKind, Result, ui};
use provision::engine::{NodeState, NodeStatus};
use provision::plan::print_json_line;

use crate::selection::Selection;

/// Say how the nodes are: role, state, position in the log, lag, heartbeat, disk usage.
///
/// Fails, with status 1, when a node is not as it should be.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Say it again and again, until interrupted.
    #[arg(long)]
    watch: bool,

    /// How often, with --watch.
    #[arg(long, value_name = "TIME", default_value = "1s", requires = "watch")]
    interval: humantime::Duration,
}

pub(crate) fn run(args: &Args, selection: &Selection, output: ui::Output) -> Result<()> {
    let cancel = Cancel::on_signals()?;
    let cluster = selection.open(&cancel)?;
    if !args.watch {
        let nodes = cluster.engine().status(&cluster)?;
        ui::print_result(output, &nodes, |nodes| table(nodes))?;
        return all_well(&nodes);
    }
    while !cancel.is_cancelled() {
        // Nodes may have come or gone since.
        let cluster = selection.open(&cancel)?;
        let nodes = cluster.engine().status(&cluster)?;
        match output {
            ui::Output::Json => print_json_line(&nodes)?,
            ui::Output::Text => {
                let clear = if std::io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
                ui::print(&format!("{clear}{}", table(&nodes)))?;
            }
        }
        sleep(*args.interval, &cancel);
    }
    Ok(())
}

fn sleep(time: Duration, cancel: &Cancel) {
    const SLICE: Duration = Duration::from_millis(50);
    let mut left = time;
    while !left.is_zero() && !cancel.is_cancelled() {
        std::thread::sleep(left.min(SLICE));
        left = left.saturating_sub(SLICE);
    }
}

fn all_well(nodes: &[NodeStatus]) -> Result<()> {
    let without_heartbeat = |node: &NodeStatus| node.state == NodeState::Running && node.heartbeat_ms == Some(0);
    let ill: Vec<String> = nodes
        .iter()
        .filter(|node| node.state != NodeState::Running)
        .map(|node| format!("{} {}", node.node, describe(node.state)))
        .chain(
            nodes.iter().filter(|node| without_heartbeat(node)).map(|node| format!("{} has no heartbeat", node.node)),
        )
        .collect();
    if ill.is_empty() {
        return Ok(());
    }
    let stopped = nodes
        .iter()
        .all(|node| matches!(node.state, NodeState::Running | NodeState::Stopped) && !without_heartbeat(node));
    let remedy = if stopped { "`provision start` starts them" } else { "`provision repair` mends what can be mended" };
    Err(Error::new(ErrorKind::Io, ill.join("; ")).with_hint(remedy))
}

fn describe(state: NodeState) -> &'static str {
    match state {
        NodeState::Missing => "is not complete",
        NodeState::Stopped => "is stopped",
        NodeState::Starting => "does not answer yet",
        NodeState::Running => "is running",
        NodeState::NotFollowing => "does not follow its primary",
        NodeState::WrongRole => "has another role than it should",
    }
}

fn word(state: NodeState) -> &'static str {
    match state {
        NodeState::Missing => "missing",
        NodeState::Stopped => "stopped",
        NodeState::Starting => "starting",
        NodeState::Running => "running",
        NodeState::NotFollowing => "not following",
        NodeState::WrongRole => "wrong role",
    }
}

fn table(nodes: &[NodeStatus]) -> String {
    let dash = || "-".to_owned();
    let heartbeat = nodes.iter().any(|node| node.heartbeat_ms.is_some());
    let shared = nodes.iter().any(|node| node.pfsd_workers.is_some());
    let rows = nodes.iter().map(|node| {
        let mut row = vec![
            node.node.to_string(),
            node.role.to_string(),
            word(node.state).to_owned(),
            node.port.to_string(),
            node.lsn.clone().unwrap_or_else(dash),
            node.lag_bytes.map_or_else(dash, |bytes| blockdev::ByteSize::new(bytes).to_string()),
            node.lag_ms.map_or_else(dash, |ms| format!("{ms:.1} ms")),
            node.disk_usage.to_string(),
        ];
        if heartbeat {
            row.push(match node.heartbeat_ms {
                None => dash(),
                Some(0) => "stopped".to_owned(),
                Some(ms) => format!("every {ms} ms"),
            });
        }
        if shared {
            let program = node.pfsd.as_ref().and_then(|program| program.file_name());
            row.push(program.map_or_else(dash, |name| name.to_string_lossy().into_owned()));
            row.push(node.pfsd_workers.map_or_else(dash, |workers| workers.to_string()));
            row.push(node.shared_disk_usage.map_or_else(dash, |usage| usage.to_string()));
        }
        row
    });
    let mut header = vec!["NODE", "ROLE", "STATE", "PORT>", "LSN", "LAG>", "LAG TIME>", "DISK>"];
    if heartbeat {
        header.push("HEARTBEAT");
    }
    if shared {
        header.extend(["PFSD", "PFSD WORKERS>", "SHARED DISK>"]);
    }
    ui::table(&header, rows)
}
